//! This machine's interfaces, as the kernel tells of them (rtnetlink(7), RTM_NEWLINK and RTM_DELLINK): what doctord watches,
//! and what `standin check` and `standin status` show, is one table.
//!
//! A subscription brings every change at once; a dump at the start, and whenever the subscription lost something, brings
//! the rest. Of each message only index, flags, names and what it stands on are read, so that an attribute this program
//! has never heard of cannot hide a lost carrier.

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
    thread,
    time::{Duration, Instant},
};

/// More than the kernel puts into one packet of a dump.
const PACKET_MAX: usize = 64 * 1024;
/// Packets read in one round; a machine that makes interfaces faster than that is read on in the next.
const PACKETS_PER_ROUND: usize = 64;

/// How long a dump is waited for, and how often it is looked for.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(2);
const SNAPSHOT_STEP: Duration = Duration::from_millis(1);
/// No interface stands on as many others.
const DEPTH_MAX: usize = 16;

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
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_LOWER_UP: u32 = 1 << 16;
const IFF_DORMANT: u32 = 1 << 17;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
/// The bits above say how an attribute is written.
const NLA_TYPE_MASK: u16 = 0x3fff;
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

    /// How `interface`, by any of its names, fares; none before the first dump is complete.
    pub fn state(&self, interface: &str) -> Option<LinkState> {
        self.table.complete.then(|| self.table.state(interface))
    }

    /// All interfaces as they are now.
    pub fn snapshot() -> io::Result<Table> {
        let mut links = Self::open()?;
        let end = Instant::now() + SNAPSHOT_LIMIT;
        while links.read()? || !links.table.complete {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(SNAPSHOT_STEP);
        }
        Ok(links.table)
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

/// How an interface fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkState {
    /// There, up and with carrier.
    Up,
    /// There is none of this name.
    Missing,
    /// Switched off.
    Down,
    /// Switched on, and nothing at the other end of the cable.
    NoCarrier,
    /// With carrier, and not let in yet: 802.1X, a bond that negotiates.
    Dormant,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    alternative: Vec<String>,
    flags: u32,
    /// "vlan", "bond", "bridge", ...; empty for a real one.
    kind: String,
    /// The interface it belongs to, as the port of a bridge or bond.
    master: Option<u32>,
    /// The interface it is made of.
    below: Option<u32>,
}

impl Link {
    fn state(&self) -> LinkState {
        match self.flags {
            flags if flags & IFF_UP == 0 => LinkState::Down,
            flags if flags & IFF_LOWER_UP == 0 => LinkState::NoCarrier,
            flags if flags & IFF_DORMANT != 0 => LinkState::Dormant,
            _ => LinkState::Up,
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alternative.iter().any(|a| a == name)
    }
}

/// Every interface by its index. Pure: bytes in, answers out.
#[derive(Debug, Default)]
pub struct Table {
    links: BTreeMap<u32, Link>,
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
                let Some(link) = link(flags, message.get(HEADER..).unwrap_or_default()) else {
                    return;
                };
                self.links.insert(index, link);
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

    /// How the interface of this name fares.
    pub fn state(&self, interface: &str) -> LinkState {
        self.find(interface)
            .map_or(LinkState::Missing, |(_, link)| link.state())
    }

    /// Nothing leaves this machine by it.
    pub fn is_loopback(&self, interface: &str) -> bool {
        self.find(interface)
            .is_some_and(|(_, link)| link.flags & IFF_LOOPBACK != 0)
    }

    /// The name that the kernel itself uses for the interface.
    pub fn name(&self, interface: &str) -> Option<&str> {
        self.find(interface).map(|(_, link)| link.name.as_str())
    }

    /// The cable that all packets of the interface pass: the interface at the bottom of VLANs and the like; none where
    /// there are several, below a bond or a bridge.
    pub fn cable(&self, interface: &str) -> Option<&str> {
        let (mut index, mut link) = self.find(interface)?;
        for _ in 0..DEPTH_MAX {
            let mut ports = self.links.iter().filter(|(_, l)| l.master == Some(index));
            let below = match (ports.next(), ports.next()) {
                (Some(_), Some(_)) => return None,
                (Some((port, _)), None) => Some(*port),
                (None, _) => link.below,
            };
            match below.and_then(|b| Some((b, self.links.get(&b)?))) {
                Some(lower) => (index, link) = lower,
                None => return Some(&link.name),
            }
        }
        None
    }

    fn find(&self, interface: &str) -> Option<(u32, &Link)> {
        let called = |(_, link): &(&u32, &Link)| link.is_called(interface);
        let (index, link) = self.links.iter().find(called)?;
        Some((*index, link))
    }
}

/// An interface by its attributes; none without a name.
fn link(flags: u32, attributes: &[u8]) -> Option<Link> {
    let (mut name, mut elsewhere) = (None, false);
    let mut link = Link {
        name: String::new(),
        alternative: Vec::new(),
        flags,
        kind: String::new(),
        master: None,
        below: None,
    };
    each(attributes, |kind, value| match kind {
        IFLA_IFNAME => name = Some(text(value)),
        IFLA_MASTER => link.master = u32_at(value, 0),
        IFLA_LINK => link.below = u32_at(value, 0),
        IFLA_LINK_NETNSID => elsewhere = true,
        IFLA_LINKINFO => each(value, |kind, value| {
            if kind == IFLA_INFO_KIND {
                link.kind = text(value);
            }
        }),
        IFLA_PROP_LIST => each(value, |kind, value| {
            if kind == IFLA_ALT_IFNAME {
                link.alternative.push(text(value));
            }
        }),
        _ => {}
    });
    // The other end of a veth is not below it, and a number in another namespace names nothing here.
    if elsewhere || link.kind == "veth" {
        link.below = None;
    }
    link.name = name?;
    Some(link)
}

/// Calls `f` with each attribute, up to the first that makes no sense.
fn each(mut attributes: &[u8], mut f: impl FnMut(u16, &[u8])) {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        let Some(value) = attributes.get(4..length) else {
            return;
        };
        f(kind & NLA_TYPE_MASK, value);
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
}

/// Up to the byte that ends it.
fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
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

    impl Table {
        fn is_up(&self, interface: &str) -> bool {
            self.state(interface) == LinkState::Up
        }
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
            (CARRIER, LinkState::Up),
            (IFF_UP, LinkState::NoCarrier),
            (IFF_LOWER_UP, LinkState::Down),
            (CARRIER | IFF_DORMANT, LinkState::Dormant),
            (CARRIER | 0x40, LinkState::Up),
            (0, LinkState::Down),
        ];
        for (flags, state) in rows {
            let mut table = table();
            table.packet(&new_link(2, flags, "eth0"));
            assert_eq!(table.state("eth0"), state, "flags {flags:#x}");
        }
        assert_eq!(table().state("eth7"), LinkState::Missing);
    }

    /// An interface with more attributes.
    fn link_with(index: u32, name: &str, more: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0, 0, 1, 0];
        body.extend(index.to_ne_bytes());
        body.extend(CARRIER.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(attribute(IFLA_IFNAME, format!("{name}\0").as_bytes()));
        body.extend(more.concat());
        message(RTM_NEWLINK, 0, &body)
    }

    #[test]
    fn an_interface_is_known_by_all_its_names() {
        const NESTED: u16 = 0x8000;
        let names = ["enp2s5", "a-name-that-is-longer-than-others"];
        let names = names.map(|n| attribute(IFLA_ALT_IFNAME, format!("{n}\0").as_bytes()));
        let list = attribute(NESTED | IFLA_PROP_LIST, &names.concat());
        let mut table = table();
        table.packet(&link_with(2, "eth0", &[list]));
        for name in ["eth0", "enp2s5", "a-name-that-is-longer-than-others"] {
            assert!(table.is_up(name), "{name}");
            assert_eq!(table.name(name), Some("eth0"));
        }
        table.packet(&link_with(2, "eth0", &[]));
        assert_eq!(
            table.state("enp2s5"),
            LinkState::Missing,
            "it was taken away"
        );
    }

    #[test]
    fn the_cable_is_the_interface_at_the_bottom_where_there_is_one() {
        let on = |kind, index: u32| attribute(kind, &index.to_ne_bytes());
        let kind = |k: &str| attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, k.as_bytes()));
        let away = on(IFLA_LINK_NETNSID, 0);
        let mut table = table();
        table.packet(&link_with(4, "eth0.7", &[on(IFLA_LINK, 2), kind("vlan")]));
        table.packet(&link_with(5, "mac0", &[kind("macvlan"), on(IFLA_LINK, 4)]));
        table.packet(&link_with(6, "veth0", &[on(IFLA_LINK, 2), away]));
        table.packet(&link_with(7, "veth1", &[on(IFLA_LINK, 6), kind("veth")]));
        table.packet(&link_with(8, "bond0", &[kind("bond")]));
        table.packet(&link_with(9, "bond0.1", &[on(IFLA_LINK, 8), kind("vlan")]));
        table.packet(&link_with(10, "port1", &[on(IFLA_MASTER, 8)]));
        for (interface, cable) in [
            ("eth0", Some("eth0")),
            ("eth0.7", Some("eth0")),
            ("mac0", Some("eth0")),
            ("eth1", Some("eth1")),
            ("veth0", Some("veth0")),
            ("veth1", Some("veth1")),
            ("bond0.1", Some("port1")),
            ("eth9", None),
        ] {
            assert_eq!(table.cable(interface), cable, "{interface}");
        }
        table.packet(&link_with(11, "port2", &[on(IFLA_MASTER, 8)]));
        assert_eq!(table.cable("bond0.1"), None, "two cables");
        table.packet(&link_with(2, "eth0", &[on(IFLA_LINK, 4)]));
        assert_eq!(table.cable("eth0.7"), None, "a circle");
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
            if let Some(state) = links.state("no-such-link") {
                assert_eq!(state, LinkState::Missing);
                assert!(links.table.is_loopback("lo"));
                return;
            }
            thread::sleep(Duration::from_millis(1));
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
