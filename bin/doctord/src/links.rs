//! Carrier of this machine's interfaces, as the kernel tells it (rtnetlink(7), RTM_NEWLINK and RTM_DELLINK).
//!
//! A subscription brings every change at once; a dump at the start, and whenever the subscription lost
//! something, brings the rest. Of each message only index, flags and name are read, so that an attribute
//! this program has never heard of cannot hide a lost carrier.

use mio::{Interest, Registry, Token, event::Source, unix::SourceFd};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom,
        send, socket,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// More than the kernel puts into one packet of a dump.
const PACKET_MAX: usize = 64 * 1024;
/// Packets read in one round; a machine that makes interfaces faster than that is read on in the next.
const PACKETS_PER_ROUND: usize = 64;

// linux/rtnetlink.h, linux/netlink.h, linux/if.h, linux/if_link.h
const RTMGRP_LINK: u32 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;
const IFF_DORMANT: u32 = 1 << 17;
const IFLA_IFNAME: u16 = 3;
const HEADER: usize = 16;

/// The kernel's link messages, and what they have told so far.
pub struct Links {
    socket: OwnedFd,
    table: Table,
    buffer: Vec<u8>,
}

impl Links {
    /// Subscribes and asks for a dump. Takes no right.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
        let mut links = Self {
            socket,
            table: Table::default(),
            buffer: vec![0; PACKET_MAX],
        };
        links.ask()?;
        Ok(links)
    }

    /// Reads what there is. True if there may be more: call again, for readiness is told only once.
    pub fn read(&mut self) -> io::Result<bool> {
        for _ in 0..PACKETS_PER_ROUND {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut self.buffer) {
                // Only the kernel has port 0.
                Ok((_, Some(from))) if from.pid() != 0 => {}
                Ok((length, _)) => self.table.packet(&self.buffer[..length.min(PACKET_MAX)]),
                Err(Errno::EAGAIN) => {
                    if self.table.stale {
                        self.ask()?;
                    }
                    return Ok(false);
                }
                Err(Errno::EINTR) => {}
                // The socket's queue ran over.
                Err(Errno::ENOBUFS) => self.table.stale = true,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Whether `interface` is present, up and with carrier; none before the first dump is complete.
    pub fn is_up(&self, interface: &str) -> Option<bool> {
        self.table.complete.then(|| self.table.is_up(interface))
    }

    fn ask(&mut self) -> io::Result<()> {
        let mut request = [0; 2 * HEADER];
        request[..4].copy_from_slice(&(2 * HEADER as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
        request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        self.table.begin_dump();
        match send(self.socket.as_raw_fd(), &request, MsgFlags::empty()) {
            // A dump is still under way; its end finds the table stale and asks again.
            Err(Errno::EBUSY) => self.table.stale = true,
            sent => drop(sent?),
        }
        Ok(())
    }
}

impl Source for Links {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).register(registry, token, interest)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).reregister(registry, token, interest)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).deregister(registry)
    }
}

/// Every interface by its index. Pure: bytes in, answers out.
#[derive(Debug, Default)]
struct Table {
    links: BTreeMap<u32, (String, bool)>,
    /// A dump has been seen to its end.
    complete: bool,
    /// Something was missed: another dump is needed.
    stale: bool,
    /// Interfaces named since the dump began; the others are gone when it ends.
    named: BTreeSet<u32>,
}

impl Table {
    fn begin_dump(&mut self) {
        self.stale = false;
        self.named.clear();
    }

    /// Takes in one packet of messages. What makes no sense ends the packet and asks for a dump.
    fn packet(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = u32_at(bytes, 0).map_or(0, |length| length as usize);
            let (Some(message), Some(kind), Some(flags)) = (
                bytes.get(HEADER..length),
                u16_at(bytes, 4),
                u16_at(bytes, 6),
            ) else {
                self.stale = true;
                return;
            };
            self.stale |= flags & NLM_F_DUMP_INTR != 0;
            self.message(kind, message);
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn message(&mut self, kind: u16, message: &[u8]) {
        match kind {
            RTM_NEWLINK | RTM_DELLINK => {
                let (Some(&family), Some(index), Some(flags)) =
                    (message.first(), u32_at(message, 4), u32_at(message, 8))
                else {
                    self.stale = true;
                    return;
                };
                // A bridge tells of its ports with messages of its own family: a port that leaves the
                // bridge has not left the machine.
                if i32::from(family) != AddressFamily::Unspec as i32 {
                    return;
                }
                if kind == RTM_DELLINK {
                    self.links.remove(&index);
                    return;
                }
                let Some(name) = name(message.get(HEADER..).unwrap_or_default()) else {
                    return;
                };
                let up = flags & (IFF_UP | IFF_LOWER_UP | IFF_DORMANT) == IFF_UP | IFF_LOWER_UP;
                self.links.insert(index, (name, up));
                self.named.insert(index);
            }
            NLMSG_DONE if !self.stale => {
                self.links.retain(|index, _| self.named.contains(index));
                self.complete = true;
            }
            NLMSG_ERROR => self.stale |= u32_at(message, 0) != Some(0),
            _ => {}
        }
    }

    fn is_up(&self, interface: &str) -> bool {
        self.links
            .values()
            .any(|(name, up)| name == interface && *up)
    }
}

/// The interface's name among its attributes.
fn name(mut attributes: &[u8]) -> Option<String> {
    loop {
        let (length, kind) = (usize::from(u16_at(attributes, 0)?), u16_at(attributes, 2)?);
        let value = attributes.get(4..length)?;
        if kind == IFLA_IFNAME {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::{collection::vec, prelude::*, sample::Index};

    const CARRIER: u32 = IFF_UP | IFF_LOWER_UP;
    const AF_BRIDGE: u8 = 7;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER as u32 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(kind: u16, family: u8, index: u32, flags: u32, name: &str) -> Vec<u8> {
        let mut body = vec![family, 0, 1, 0];
        body.extend(index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        // Something unknown before the name.
        body.extend(attribute(999, b"?????"));
        body.extend(attribute(IFLA_IFNAME, format!("{name}\0").as_bytes()));
        message(kind, 0, &body)
    }

    fn new_link(index: u32, flags: u32, name: &str) -> Vec<u8> {
        link(RTM_NEWLINK, 0, index, flags, name)
    }

    fn done() -> Vec<u8> {
        message(NLMSG_DONE, 0, &[0; 4])
    }

    /// eth0 (2) and eth1 (3), both up, as a dump tells it.
    fn table() -> Table {
        let mut table = Table::default();
        table.begin_dump();
        table.packet(&[new_link(2, CARRIER, "eth0"), new_link(3, CARRIER, "eth1")].concat());
        assert!(!table.complete);
        table.packet(&done());
        assert!(table.complete && table.is_up("eth0") && table.is_up("eth1"));
        table
    }

    #[test]
    fn up_means_present_up_with_carrier_and_let_in() {
        let rows = [
            (CARRIER, true),
            (IFF_UP, false),
            (IFF_LOWER_UP, false),
            (CARRIER | IFF_DORMANT, false),
            (CARRIER | 0x40, true),
            (0, false),
        ];
        for (flags, up) in rows {
            let mut table = table();
            table.packet(&new_link(2, flags, "eth0"));
            assert_eq!(table.is_up("eth0"), up, "flags {flags:#x}");
        }
        assert!(!table().is_up("eth7"));
    }

    #[test]
    fn an_interface_may_vanish_come_back_and_change_its_name() {
        let mut table = table();
        table.packet(&link(RTM_DELLINK, 0, 2, 0, "eth0"));
        assert!(!table.is_up("eth0"));
        table.packet(&new_link(9, CARRIER, "eth0"));
        assert!(table.is_up("eth0"));
        table.packet(&new_link(9, CARRIER, "lan0"));
        assert!(!table.is_up("eth0") && table.is_up("lan0"));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_still_there() {
        let mut table = table();
        table.packet(&link(RTM_DELLINK, AF_BRIDGE, 2, CARRIER, "eth0"));
        assert!(table.is_up("eth0"));
    }

    #[test]
    fn what_a_second_dump_does_not_name_is_gone() {
        let mut table = table();
        table.stale = true;
        table.begin_dump();
        table.packet(&[new_link(3, CARRIER, "eth1"), done()].concat());
        assert!(!table.is_up("eth0") && table.is_up("eth1"));
    }

    #[test]
    fn an_interrupted_dump_is_asked_for_again_and_removes_nothing() {
        let mut table = table();
        table.begin_dump();
        table.packet(&message(NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4]));
        assert!(table.stale && table.is_up("eth0"));
    }

    #[test]
    fn garbage_is_survived() {
        let good = [new_link(2, 0, "eth0"), done()].concat();
        for cut in 0..good.len() {
            let mut table = table();
            table.packet(&good[..cut]);
            table.packet(&good[cut..]);
        }
        for value in [0_u8, 1, 15, 17, 255] {
            for at in 0..good.len() {
                let mut bytes = good.clone();
                bytes[at] = value;
                table().packet(&bytes);
            }
        }
    }

    #[test]
    fn the_kernels_own_dump_is_understood() {
        let mut links = Links::open().unwrap();
        for _ in 0..1000 {
            links.read().unwrap();
            if let Some(missing) = links.is_up("no-such-link") {
                assert!(!missing);
                assert!(links.table.links.values().any(|(name, _)| name == "lo"));
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the kernel sent no dump");
    }

    proptest! {
        #[test]
        fn damaged_packets_are_survived_and_the_next_is_read(
            changes in vec((any::<Index>(), any::<u8>()), 1..8), end in any::<Index>(),
        ) {
            let mut bytes = [new_link(2, 0, "eth0"), link(RTM_DELLINK, 0, 3, 0, "eth1"), done()].concat();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(end.index(bytes.len()) + 1);
            let mut table = table();
            table.packet(&bytes);
            prop_assert!(table.links.len() <= 4);
            table.packet(&new_link(2, CARRIER, "eth0"));
            prop_assert!(table.is_up("eth0"));
        }
    }
}
