//! The gate's programs at the queueing discipline `clsact`, for kernels that have eBPF but not TCX (before Linux 6.6).
//!
//! A filter of kind `bpf` for each side, with a number of this server's own among those of the highest precedence:
//! putting another program under the same number replaces it with no packet between. It stays when electd dies.

use crate::{
    gate_file,
    nfnetlink::{self, Attributes, attribute, split, word},
    sys::bpf::{Program, Side},
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
};

const NEW_QDISC: u16 = 36;
const DEL_QDISC: u16 = 37;
const NEW_FILTER: u16 = 44;
const DEL_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const CLSACT: (u32, u32) = (0xffff_0000, 0xffff_fff1);
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Highest precedence, all protocols.
const PRECEDENCE: u32 = 1 << 16 | (3u16.to_be() as u32);

/// Between the header of a message and its attributes.
const ABOUT: usize = 20;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;

/// One server's filters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters {
    number: u32,
}

/// What a message is about: the interface, its own number, what it belongs to, precedence and protocol.
type About = (u32, u32, u32, u32);

impl Filters {
    /// Those of the server whose gate is at home there.
    pub(super) fn of(home: &Path) -> Self {
        let number = gate_file::checksum(home.as_os_str().as_bytes()) as u32;
        Self { number: number | 1 }
    }

    fn about(self, interface: u32, side: Side) -> About {
        let parent = match side {
            Side::Ingress => INGRESS,
            Side::Egress => EGRESS,
        };
        (interface, self.number, parent, PRECEDENCE)
    }

    /// Puts the program there, in the place of an earlier one. Whether `clsact` was made for it.
    pub(super) fn put(self, interface: u32, side: Side, program: &Program) -> io::Result<bool> {
        let kind = Attributes::new().text(KIND, "clsact");
        let clsact = (interface, CLSACT.0, CLSACT.1, 0);
        let made = match ask(NEW_QDISC, CREATE | EXCLUSIVE | ACK, clsact, &kind) {
            Err(e) if e.raw_os_error() == Some(nix::libc::EEXIST) => false,
            answer => answer.map(|_| true)?,
        };
        let own = |value: u32| value.to_ne_bytes();
        let options = Attributes::new()
            .bytes(6, &own(program.fd().cast_unsigned()))
            .text(7, "standin")
            .bytes(8, &own(1)); // what it returns is the verdict
        let filter = Attributes::new().text(KIND, "bpf").nest(OPTIONS, &options);
        ask(
            NEW_FILTER,
            CREATE | ACK,
            self.about(interface, side),
            &filter,
        )?;
        Ok(made)
    }

    /// Whether the program is there.
    pub(super) fn carries(self, interface: u32, side: Side, program: &Program) -> io::Result<bool> {
        let kind = Attributes::new().text(KIND, "bpf");
        let found = match ask(GET_FILTER, ACK, self.about(interface, side), &kind) {
            Err(e)
                if [nix::libc::ENOENT, nix::libc::EINVAL]
                    .contains(&e.raw_os_error().unwrap_or(0)) =>
            {
                return Ok(false);
            }
            found => found?,
        };
        let id = |about: &Vec<u8>| Some(word(attribute(attribute(about, OPTIONS)?, 11)?));
        Ok(found.iter().any(|about| id(about) == Some(program.id())))
    }

    /// Takes the programs off; `clsact` too if told that it was made for them and nobody else uses it.
    pub(super) fn take_off(self, interface: u32, made: bool) {
        let kind = Attributes::new().text(KIND, "bpf");
        for side in [Side::Ingress, Side::Egress] {
            // Mostly there is none.
            let _ = ask(DEL_FILTER, ACK, self.about(interface, side), &kind);
        }
        let used = |parent| {
            let about = (interface, 0, parent, 0);
            ask(GET_FILTER, DUMP, about, &Attributes::new()).map_or(true, |all| !all.is_empty())
        };
        if made && !used(INGRESS) && !used(EGRESS) {
            let about = (interface, CLSACT.0, CLSACT.1, 0);
            let _ = ask(DEL_QDISC, ACK, about, &Attributes::new());
        }
    }

    /// Takes off what an earlier life left, when another gate is in force now.
    pub(super) fn remove_left_over(self) {
        for interface in nix::net::if_::if_nameindex().iter().flatten() {
            self.take_off(interface.index(), false);
        }
    }
}

/// One question or change; the attributes of each answer. The kernel has answered when the call returns.
fn ask(kind: u16, flags: u16, about: About, attributes: &Attributes) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let (interface, own, parent, info) = about;
    let length = (16 + ABOUT + attributes.0.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 12]); // sequence and sender; then family and padding
    for number in [interface, own, parent, info] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(&attributes.0);
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
    let (mut all, mut buffer) = (Vec::new(), vec![0; 32 * 1024]);
    loop {
        let got = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(got) => got,
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        };
        for (header, body) in split(&buffer[..got]) {
            match header.kind {
                DONE => return Ok(all),
                ERROR if word(body) == 0 => return Ok(all),
                ERROR => return Err(io::Error::from_raw_os_error(nfnetlink::error(body))),
                _ => all.push(body.get(ABOUT..).unwrap_or_default().to_vec()),
            }
        }
    }
}
