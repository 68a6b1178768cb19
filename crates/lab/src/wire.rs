//! Packets as an attacker has them: listened to, recorded, changed, forged, and sent again.

use crate::{Error, Host};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const TCP: usize = 20;
/// Recorded packets at most; what comes later is left out.
const RECORD_MAX: usize = 200_000;

/// A UDP datagram, with whatever sender it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// From where it says it comes.
    pub from: SocketAddrV4,
    /// Where it goes.
    pub to: SocketAddrV4,
    /// What is in it.
    pub payload: Vec<u8>,
}

/// One direction of a TCP connection, as far as it was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Who speaks.
    pub from: SocketAddrV4,
    /// To whom.
    pub to: SocketAddrV4,
    /// What it says, in order, without gaps.
    pub bytes: Vec<u8>,
}

#[derive(Default)]
struct Record {
    datagrams: Vec<Datagram>,
    segments: Vec<(u32, Datagram)>,
}

/// Records all that a host sends and receives over IPv4, until it is dropped.
pub struct Recorder {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Begins to listen on `host`.
    pub fn start(host: &Host) -> Result<Self, Error> {
        let open = || -> nix::Result<OwnedFd> {
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
            // As much as is granted: a recorder that misses packets only attacks less.
            let _ = setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20));
            Ok(fd)
        };
        let socket = host
            .run(open)?
            .map_err(Error::system("a packet socket to record with"))?;
        let recorder = Self {
            record: Arc::default(),
            stop: Arc::default(),
        };
        let (record, stop) = (Arc::clone(&recorder.record), Arc::clone(&recorder.stop));
        host.thread("recorder", move || {
            let mut buffer = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                // Errors are those of time-outs and of a network that is being broken on purpose.
                if let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    lock(&record).note(&buffer[..length]);
                }
            }
        })?;
        Ok(recorder)
    }

    /// Every datagram so far, in order.
    pub fn datagrams(&self) -> Vec<Datagram> {
        lock(&self.record).datagrams.clone()
    }

    /// Every TCP stream so far that said anything, oldest first.
    pub fn streams(&self) -> Vec<Stream> {
        let record = lock(&self.record);
        let mut streams: Vec<(u32, Stream)> = Vec::new();
        for (sequence, segment) in &record.segments {
            let (from, to) = (segment.from, segment.to);
            let known = streams
                .iter_mut()
                .find(|(_, s)| (s.from, s.to) == (from, to));
            match known {
                Some((next, stream)) if next == sequence => {
                    stream.bytes.extend_from_slice(&segment.payload);
                    *next = next.wrapping_add(segment.payload.len() as u32);
                }
                Some(_) => {} // Sent again, or after a gap.
                None => streams.push((
                    sequence.wrapping_add(segment.payload.len() as u32),
                    Stream {
                        from,
                        to,
                        bytes: segment.payload.clone(),
                    },
                )),
            }
        }
        streams.into_iter().map(|(_, stream)| stream).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Record {
    /// Notes an Ethernet frame if it carries UDP or TCP over IPv4, unfragmented.
    fn note(&mut self, frame: &[u8]) -> Option<()> {
        if self.datagrams.len() + self.segments.len() >= RECORD_MAX {
            return None;
        }
        let packet = frame.get(ETHERNET..)?;
        let word = |bytes: &[u8], at: usize| {
            Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        if word(frame, 12)? != 0x0800 || packet.first()? >> 4 != 4 || word(packet, 6)? & 0x3fff != 0
        {
            return None;
        }
        let address = |at: usize| {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        let (header, total) = (
            usize::from(packet.first()? & 15) * 4,
            usize::from(word(packet, 2)?),
        );
        let inner = packet.get(header..total)?;
        let (from, to) = (
            SocketAddrV4::new(address(12)?, word(inner, 0)?),
            SocketAddrV4::new(address(16)?, word(inner, 2)?),
        );
        let datagram = |payload: &[u8]| Datagram {
            from,
            to,
            payload: payload.to_vec(),
        };
        match packet.get(9)? {
            17 => self.datagrams.push(datagram(inner.get(UDP..)?)),
            6 => {
                let payload = inner.get(usize::from(inner.get(12)? >> 4) * 4..)?;
                if !payload.is_empty() {
                    let sequence = u32::from_be_bytes(inner.get(4..8)?.try_into().ok()?);
                    self.segments.push((sequence, datagram(payload)));
                }
            }
            _ => {}
        }
        Some(())
    }
}

/// Sends packets with any sender's address.
pub struct Forger(OwnedFd);

impl Forger {
    /// Opens on `host`, whose network it then uses.
    pub fn open(host: &Host) -> Result<Self, Error> {
        let open = || {
            // This protocol means: the address of the sender stands in the packet, which comes whole.
            let flags = SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
        };
        host.run(open)?
            .map(Self)
            .map_err(Error::system("a raw socket to forge with"))
    }

    /// Sends a datagram as if its sender had.
    pub fn send(&self, datagram: &Datagram) -> Result<(), Error> {
        let length = (UDP + datagram.payload.len()) as u16;
        let mut udp = Vec::with_capacity(usize::from(length));
        for word in [datagram.from.port(), datagram.to.port(), length, 0] {
            udp.extend_from_slice(&word.to_be_bytes());
        }
        udp.extend_from_slice(&datagram.payload);
        self.packet(17, datagram.from, datagram.to, &udp)
    }

    /// Asks for a TCP connection that nobody will finish.
    pub fn half_open(&self, from: SocketAddrV4, to: SocketAddrV4) -> Result<(), Error> {
        let mut tcp = Vec::with_capacity(TCP);
        tcp.extend_from_slice(&from.port().to_be_bytes());
        tcp.extend_from_slice(&to.port().to_be_bytes());
        tcp.extend_from_slice(&[0; 8]);
        tcp.extend_from_slice(&[(TCP as u8 / 4) << 4, 2, 0xff, 0xff, 0, 0, 0, 0]);
        let mut pseudo = Vec::new();
        pseudo.extend_from_slice(&from.ip().octets());
        pseudo.extend_from_slice(&to.ip().octets());
        pseudo.extend_from_slice(&[0, 6, 0, TCP as u8]);
        pseudo.extend_from_slice(&tcp);
        tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        self.packet(6, from, to, &tcp)
    }

    fn packet(
        &self,
        protocol: u8,
        from: SocketAddrV4,
        to: SocketAddrV4,
        inner: &[u8],
    ) -> Result<(), Error> {
        // The kernel fills in length, number and checksum.
        let mut packet = vec![0; IP];
        (packet[0], packet[8], packet[9]) = (0x45, 64, protocol);
        packet[12..16].copy_from_slice(&from.ip().octets());
        packet[16..20].copy_from_slice(&to.ip().octets());
        packet.extend_from_slice(inner);
        let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
        match sendto(self.0.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN) => Ok(()),
            Err(e) => Err(Error::system("sending a forged packet")(e)),
        }
    }
}

/// The checksum of IP and its kin.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
