//! nfnetlink, as much of it as the nftables gate needs: attributes, batches that happen whole or not at all, lists.
//!
//! The kernel has carried out a batch when the call that sends it returns; its answers are waiting then.

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use rtnetlink::sys::{Socket, SocketAddr};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Families of tables: IPv4 and IPv6 together; ARP.
pub(crate) const INET: u8 = 1;
pub(crate) const ARP: u8 = 3;

pub(crate) const NEW_TABLE: u8 = 0;
pub(crate) const GET_TABLE: u8 = 1;
pub(crate) const DEL_TABLE: u8 = 2;
pub(crate) const NEW_CHAIN: u8 = 3;
pub(crate) const GET_CHAIN: u8 = 4;
pub(crate) const DEL_CHAIN: u8 = 5;
pub(crate) const NEW_RULE: u8 = 6;
pub(crate) const GET_RULE: u8 = 7;
pub(crate) const DEL_RULE: u8 = 8;
pub(crate) const NEW_SET: u8 = 9;
pub(crate) const NEW_ELEMENT: u8 = 12;
pub(crate) const DEL_ELEMENT: u8 = 14;
/// As the former, and fine if it is not there: Linux 6.3 or later.
pub(crate) const DESTROY_ELEMENT: u8 = 30;

/// Of new things: whether they are there or not; only if not there yet; and a rule goes behind the others.
pub(crate) const CREATE: u16 = NLM_F_CREATE;
pub(crate) const EXCLUSIVE: u16 = NLM_F_CREATE | 0x200;
pub(crate) const APPEND: u16 = NLM_F_CREATE | 0x800;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETFILTER: isize = 12;
const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NESTED: u16 = 0x8000;
/// Of a message, in bytes: the header, and with the family behind it.
const HEADER: usize = 16;
const BODY: usize = 20;
/// How often a list is asked for anew that changed while it was told.
const TRIES: usize = 8;

/// The attributes of a message, or of one of its attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(pub(crate) Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (value.len() + 4) as u16; // whoever nests thousands splits them
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn long(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// A list: each of them as attribute 1.
    pub(crate) fn list<'a>(self, kind: u16, items: impl IntoIterator<Item = &'a Self>) -> Self {
        let empty = Self::new();
        let all = items
            .into_iter()
            .fold(empty, |list, item| list.nest(1, item));
        self.nest(kind, &all)
    }
}

/// The value of an attribute; none if it is not there.
pub(crate) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !NESTED;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// One step of a batch, or a question.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) family: u8,
    pub(crate) flags: u16,
    pub(crate) attributes: Attributes,
}

impl Message {
    pub(crate) fn new(kind: u8, family: u8, flags: u16, attributes: Attributes) -> Self {
        Self {
            kind,
            family,
            flags,
            attributes,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Nfnetlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Nfnetlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Carries out all of it, or nothing: then the refused messages by position.
    pub(crate) fn commit(&mut self, messages: &[Message]) -> io::Result<Vec<(usize, Errno)>> {
        let Some(last) = messages.len().checked_sub(1) else {
            return Ok(Vec::new());
        };
        let first = self.sequence;
        self.sequence = first.wrapping_add(messages.len() as u32 + 2);
        let mut bytes = Vec::new();
        put(&mut bytes, (BATCH_BEGIN, NLM_F_REQUEST, first), 0, &[]);
        for (place, message) in messages.iter().enumerate() {
            let ack = if place == last { NLM_F_ACK } else { 0 };
            put(
                &mut bytes,
                (
                    NFTABLES << 8 | u16::from(message.kind),
                    NLM_F_REQUEST | message.flags | ack,
                    first.wrapping_add(1 + place as u32),
                ),
                message.family,
                &message.attributes.0,
            );
        }
        let end = first.wrapping_add(1 + messages.len() as u32);
        put(&mut bytes, (BATCH_END, NLM_F_REQUEST, end), 0, &[]);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;

        let (mut refused, mut confirmed) = (Vec::new(), false);
        while let Some(got) = self.receive()? {
            for (header, body) in split(&self.buffer[..got]) {
                let place = header.sequence.wrapping_sub(first) as usize;
                if header.kind != NLMSG_ERROR || place > messages.len() {
                    continue; // an answer to something earlier
                }
                let errno = Errno::from_raw(error(body));
                if word(body) != 0 {
                    refused.push((place.saturating_sub(1), errno));
                } else {
                    confirmed |= place == last + 1;
                }
            }
        }
        if refused.is_empty() && !confirmed {
            return Err(io::Error::other("the kernel did not confirm a batch"));
        }
        Ok(refused)
    }

    /// The one thing that these attributes name.
    pub(crate) fn one(
        &mut self,
        kind: u8,
        family: u8,
        about: &Attributes,
    ) -> io::Result<Vec<Vec<u8>>> {
        let answer = self.ask(kind, family, NLM_F_ACK, about)?;
        answer.ok_or_else(|| io::ErrorKind::Interrupted.into())
    }

    /// All that there is of a kind and fits the attributes (older kernels: all); the attributes of each.
    pub(crate) fn list(
        &mut self,
        kind: u8,
        family: u8,
        about: &Attributes,
    ) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..TRIES {
            if let Some(all) = self.ask(kind, family, NLM_F_DUMP, about)? {
                return Ok(all);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// None if it changed while it was told.
    fn ask(
        &mut self,
        kind: u8,
        family: u8,
        flags: u16,
        about: &Attributes,
    ) -> io::Result<Option<Vec<Vec<u8>>>> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let (mut bytes, kind) = (Vec::new(), NFTABLES << 8 | u16::from(kind));
        let header = (kind, NLM_F_REQUEST | flags, sequence);
        put(&mut bytes, header, family, &about.0);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let (mut all, mut whole) = (Vec::new(), true);
        while let Some(got) = self.receive()? {
            for (header, body) in split(&self.buffer[..got]) {
                if header.sequence != sequence {
                    continue;
                }
                whole &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    NLMSG_DONE => return Ok(whole.then_some(all)),
                    NLMSG_ERROR if word(body) == 0 => return Ok(whole.then_some(all)),
                    NLMSG_ERROR => {
                        return Err(io::Error::from_raw_os_error(error(body)));
                    }
                    _ => all.push(body.get(BODY - HEADER..).unwrap_or_default().to_vec()),
                }
            }
        }
        Err(io::Error::other("the kernel did not finish a list"))
    }

    /// The next datagram that is waiting.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        loop {
            let fd = self.socket.as_raw_fd();
            return match recv(fd, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(got) => Ok(Some(got)),
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::EINTR) => continue,
                Err(e) => Err(e.into()),
            };
        }
    }
}

/// Hears what others change in nftables.
#[derive(Debug)]
pub(crate) struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Monitor {
    pub(crate) fn open() -> io::Result<Self> {
        const GROUP: u32 = 7;
        let mut socket = Socket::new(NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 1 << (GROUP - 1)))?;
        Ok(Self {
            socket,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Whether something of these kinds has happened since this was last asked, or may have.
    pub(crate) fn saw(&mut self, kinds: &[u8]) -> bool {
        let mut saw = false;
        loop {
            let fd = self.socket.as_raw_fd();
            match recv(fd, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(got) => {
                    saw |= split(&self.buffer[..got]).any(|(header, _)| {
                        kinds
                            .iter()
                            .any(|kind| header.kind == NFTABLES << 8 | u16::from(*kind))
                    });
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return saw,
                // Some were lost.
                Err(_) => return true,
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn put(to: &mut Vec<u8>, (kind, flags, sequence): (u16, u16, u32), family: u8, attributes: &[u8]) {
    to.extend(((BODY + attributes.len()) as u32).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(flags.to_ne_bytes());
    to.extend(sequence.to_ne_bytes());
    to.extend([0; 4]);
    let [high, low] = NFTABLES.to_be_bytes(); // looked at in the first and last message of a batch
    to.extend([family, 0, high, low]);
    to.extend(attributes);
}

/// Of a message; its length is that of the slice behind it.
pub(crate) struct Header {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages of a datagram, each with what follows its header.
pub(crate) fn split(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let length = word(bytes) as usize;
        let message = bytes.get(..length).filter(|m| m.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let half = |at| u16::from_ne_bytes([message[at], message[at + 1]]);
        let header = Header {
            kind: half(4),
            flags: half(6),
            sequence: word(&message[8..]),
        };
        Some((header, &message[HEADER..]))
    })
}

/// The error number in the body of an answer; 0: done.
pub(crate) fn error(body: &[u8]) -> i32 {
    word(body).cast_signed().wrapping_neg()
}

pub(crate) fn word(bytes: &[u8]) -> u32 {
    let word = bytes.get(..4).and_then(|b| b.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let inner = Attributes::new().number(2, 7);
        let all = Attributes::new().text(1, "ab").list(3, [&inner, &inner]).0;
        assert_eq!(all.len() % 4, 0);
        assert_eq!(attribute(&all, 1), Some(&b"ab\0"[..]));
        let list = attribute(&all, 3).unwrap_or_default();
        let item = attribute(list, 1).unwrap_or_default();
        assert_eq!(attribute(item, 2), Some(&7u32.to_be_bytes()[..]));
        assert_eq!(attribute(&all, 9), None);
        for end in 0..all.len() {
            attribute(&all[..end], 9);
        }
    }

    #[test]
    fn a_cut_datagram_ends_the_list() {
        let mut bytes = Vec::new();
        put(&mut bytes, (5, 0, 1), INET, &[0; 4]);
        put(&mut bytes, (6, 0, 2), INET, &[]);
        assert_eq!(split(&bytes).count(), 2);
        assert_eq!(split(&bytes[..bytes.len() - 1]).count(), 1);
        assert_eq!(split(&[0; 64]).count(), 0);
    }
}
