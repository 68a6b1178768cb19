//! System calls without a safe form elsewhere: packet sockets, packet filters, taps, bpf(2), scheduling policy.

#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod tap;

use crate::outlive::outlive;
use mutants::{Mutant, planted};
use nix::libc;
use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// One instruction of a classic packet filter.
pub(crate) type Instruction = libc::sock_filter;

/// Load a byte, load two bytes (big-endian), compare with a constant, end with a constant.
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn instruction(code: u32, if_true: u8, if_false: u8, k: u32) -> Instruction {
    Instruction {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k,
    }
}

/// A filter for IPv6 frames: keeps neighbour solicitations and advertisements.
pub(crate) fn neighbour_discovery_filter() -> Vec<Instruction> {
    use crate::ndp::{ADVERTISE, ICMPV6, NEXT_HEADER_AT, SOLICIT, TYPE_AT};
    vec![
        instruction(LOAD_BYTE, 0, 0, NEXT_HEADER_AT as u32),
        instruction(EQUAL, 0, 4, ICMPV6.into()),
        instruction(LOAD_BYTE, 0, 0, TYPE_AT as u32),
        instruction(EQUAL, 1, 0, SOLICIT.into()),
        instruction(EQUAL, 0, 1, ADVERTISE.into()),
        instruction(RETURN, 0, 0, u32::MAX),
        instruction(RETURN, 0, 0, 0),
    ]
}

/// A filter for ARP frames: keeps answers.
pub(crate) fn arp_answer_filter() -> Vec<Instruction> {
    use crate::arp::{OPERATION_AT, OPERATION_REPLY};
    vec![
        instruction(LOAD_HALF, 0, 0, OPERATION_AT as u32),
        instruction(EQUAL, 0, 1, OPERATION_REPLY.into()),
        instruction(RETURN, 0, 0, u32::MAX),
        instruction(RETURN, 0, 0, 0),
    ]
}

/// A filter for IPv6 frames: keeps neighbour advertisements.
pub(crate) fn advertisement_filter() -> Vec<Instruction> {
    use crate::ndp::{ADVERTISE, ICMPV6, NEXT_HEADER_AT, TYPE_AT};
    vec![
        instruction(LOAD_BYTE, 0, 0, NEXT_HEADER_AT as u32),
        instruction(EQUAL, 0, 3, ICMPV6.into()),
        instruction(LOAD_BYTE, 0, 0, TYPE_AT as u32),
        instruction(EQUAL, 0, 1, ADVERTISE.into()),
        instruction(RETURN, 0, 0, u32::MAX),
        instruction(RETURN, 0, 0, 0),
    ]
}

/// A filter for netlink: keeps the messages of these types (at most 200).
pub(crate) fn netlink_filter(types: &[u16]) -> Vec<Instruction> {
    // The type stands at byte 4 in the machine's own order; the filter reads big-endian.
    let mut filter = vec![instruction(LOAD_HALF, 0, 0, 4)];
    for (i, kind) in types.iter().enumerate() {
        let to_keep = (types.len() - i) as u8;
        filter.push(instruction(EQUAL, to_keep, 0, kind.to_be().into()));
    }
    filter.extend([
        instruction(RETURN, 0, 0, 0),
        instruction(RETURN, 0, 0, u32::MAX),
    ]);
    filter
}

/// Lets only what the filter keeps into the socket.
pub(crate) fn attach_filter(socket: &impl AsRawFd, filter: &mut [Instruction]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` points at `filter`, both outlive the call, and the kernel copies them.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
}

/// A socket for whole frames, not blocking. The process that holds it ends without waiting for it.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    _kept: Option<OwnedFd>,
}

impl PacketSocket {
    /// A socket that only sends.
    pub(crate) fn sender() -> io::Result<Self> {
        // SAFETY: no memory is handed over.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                0,
            )
        };
        done(fd)?;
        // SAFETY: the descriptor is open and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // Refused, it costs time when this process ends, and nothing before.
        let kept = outlive(socket.as_fd()).ok();
        Ok(Self {
            fd: socket,
            _kept: kept,
        })
    }

    /// A socket that receives frames of one EtherType from all interfaces, those the filter keeps.
    pub(crate) fn receiver(ethertype: u16, mut filter: Vec<Instruction>) -> io::Result<Self> {
        let socket = Self::sender()?;
        if !filter.is_empty() {
            attach_filter(&socket.fd, &mut filter)?;
        }
        let address = link_address(0, ethertype);
        // SAFETY: the address is a valid sockaddr_ll of the length given.
        done(unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                LINK_ADDRESS_LEN,
            )
        })?;
        Ok(socket)
    }

    /// Sends one frame out of an interface.
    pub(crate) fn send(&self, interface: u32, ethertype: u16, frame: &[u8]) -> io::Result<()> {
        if planted(Mutant::AnnouncesNothing) {
            return Ok(());
        }
        let address = link_address(interface, ethertype);
        // SAFETY: buffer and address are valid for the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                LINK_ADDRESS_LEN,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Receives one frame, cut to the buffer: its length, and the number of the interface; none if
    /// there is no frame. A frame that this machine sent has interface 0.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, u32)>> {
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut length = LINK_ADDRESS_LEN;
        // SAFETY: buffer and address are valid for writes of the lengths given.
        let got = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock {
                Ok(None)
            } else {
                Err(error)
            };
        }
        let own = from.sll_pkttype == libc::PACKET_OUTGOING;
        Ok(Some((
            got as usize,
            if own { 0 } else { from.sll_ifindex as u32 },
        )))
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const LINK_ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn link_address(interface: u32, ethertype: u16) -> libc::sockaddr_ll {
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = interface as i32;
    address
}

/// Puts the calling thread under SCHED_FIFO; its children start under normal scheduling.
pub(crate) fn scheduler_fifo(priority: i32) -> io::Result<()> {
    scheduler(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, priority)
}

/// While many addresses are added: the calling thread stays on its processor, before all ordinary work and after
/// all else of standin that has real time.
///
/// Joining an address's group is work that the kernel queues on the processor that added it, and each group joined
/// makes the next address dearer. So 1,000 IPv6 addresses take 35 ms if that work must wait until all are
/// added, and 1.5 s if it may come between; and no beat waits for either.
#[derive(Debug)]
pub(crate) struct Hold {
    priority: i32,
    processors: Option<nix::sched::CpuSet>,
}

impl Hold {
    const PRIORITY: i32 = 2;

    /// `priority`: the thread's own, under SCHED_FIFO, which it gets back at the end.
    pub(crate) fn begin(priority: i32) -> Self {
        use nix::{
            sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
            unistd::Pid,
        };
        let this = Pid::from_raw(0);
        let stay = || -> nix::Result<CpuSet> {
            let all = sched_getaffinity(this)?;
            let mut one = CpuSet::new();
            one.set(sched_getcpu()?)?;
            sched_setaffinity(this, &one)?;
            Ok(all)
        };
        // Where either is refused the adding takes longer, and no more.
        let processors = stay().ok();
        let _ = scheduler_fifo(Self::PRIORITY);
        Self {
            priority,
            processors,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(e) = scheduler_fifo(self.priority) {
            log::error!(
                "cannot go back to real-time priority {}: {e}",
                self.priority
            );
        }
        if let Some(all) = &self.processors
            && let Err(e) = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), all)
        {
            log::error!("cannot go back to all processors: {e}");
        }
    }
}

/// Puts the calling thread under normal scheduling.
pub(crate) fn scheduler_normal() -> io::Result<()> {
    scheduler(libc::SCHED_OTHER, 0)
}

fn scheduler(policy: i32, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameters are valid; 0 means the calling thread.
    done(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) })
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
