//! The `SOCK_SEQPACKET` sockets of the ring: one message = one packet, nothing blocks.

use crate::{
    Error,
    privileges::{STATUS_GROUP, USER},
    sys,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, getsockopt,
        listen, recv, send, setsockopt, socket, sockopt,
    },
    unistd::{Gid, Group, Uid, User},
};
use protocol::Role;
use std::{
    fs::{Permissions, rename, set_permissions},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

/// Connections that wait to be accepted: more than others can fill before a neighbour finds no place there.
const BACKLOG: i32 = 1024;

/// Room for what one event about hundreds of virtual servers brings: a signal to each other server for each of
/// them, at some 800 bytes of the kernel's memory a message.
const SEND_BUFFER: usize = 2 << 20;

/// Of every socket: its owner and the group of the daemons without privileges.
pub(crate) const MODE: u32 = 0o660;

/// Where `role` listens.
pub(crate) fn path(run_dir: &Path, role: Role) -> PathBuf {
    run_dir.join(format!("{role}.sock"))
}

/// Listens at `<run-dir>/<role>.sock`. A file left over by a dead process is replaced in one step, so that
/// nobody who connects finds nothing; a living process is left alone and is an error.
pub(crate) fn open(run_dir: &Path, role: Role) -> Result<OwnedFd, Error> {
    let path = path(run_dir, role);
    if answered(&path) {
        return Err(Error::Failed(format!(
            "{} is served by another {role} of this server; stop that one first",
            path.display()
        )));
    }
    let fresh = run_dir.join(format!(".{role}.sock.{}", std::process::id()));
    let failed = |e: io::Error| Error::io(format!("cannot listen at {}", path.display()), e);
    let _ = std::fs::remove_file(&fresh);
    let socket = seqpacket(true).map_err(|e| failed(e.into()))?;
    let address = UnixAddr::new(&fresh).map_err(|e| too_long(&path, e))?;
    let open = || -> io::Result<()> {
        bind(socket.as_raw_fd(), &address)?;
        permit(&fresh)?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        rename(&fresh, &path)
    };
    open().map_err(|e| {
        let _ = std::fs::remove_file(&fresh);
        failed(e)
    })?;
    Ok(socket)
}

/// Gives a socket its mode, and members of the status group the right to connect to it.
pub(crate) fn permit(path: &Path) -> io::Result<()> {
    set_permissions(path, Permissions::from_mode(MODE))?;
    // Without access control lists, or where this process owns no files, status is for root alone.
    if let Some(group) = status_group()
        && let Err(e) = sys::admit_group(path, group.as_raw())
    {
        log::info!(
            "members of {STATUS_GROUP} cannot ask at {}: {e}",
            path.display()
        );
    }
    Ok(())
}

fn status_group() -> Option<Gid> {
    Group::from_name(STATUS_GROUP).ok().flatten().map(|g| g.gid)
}

/// Tells a file at `path` from another one put in its place.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn too_long(path: &Path, e: Errno) -> Error {
    let what = format!(
        "the socket path {} is too long; choose a shorter --run-dir",
        path.display()
    );
    Error::io(what, e)
}

/// Somebody lives behind `path`: it takes connections, or has no room for more just now.
fn answered(path: &Path) -> bool {
    match dial(path) {
        Ok(_) => true,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

fn seqpacket(nonblocking: bool) -> nix::Result<OwnedFd> {
    let mut flags = SockFlag::SOCK_CLOEXEC;
    flags.set(SockFlag::SOCK_NONBLOCK, nonblocking);
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

/// Connects without waiting.
pub(crate) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket(true)?;
    // As much as is granted.
    let _ = setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)
        .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER));
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Reads of a socket take as long as they take.
pub(crate) fn wait_for_ever(socket: &OwnedFd) -> io::Result<()> {
    let none = nix::sys::time::TimeVal::new(0, 0);
    Ok(setsockopt(socket, sockopt::ReceiveTimeout, &none)?)
}

/// Connects; this and every later read or write of the socket takes at most `timeout`.
pub(crate) fn dial_blocking(path: &Path, timeout: std::time::Duration) -> io::Result<OwnedFd> {
    use nix::sys::time::TimeVal;
    let micros = i64::try_from(timeout.as_micros())
        .unwrap_or(i64::MAX)
        .max(1);
    let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
    let socket = seqpacket(false)?;
    setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// What a read brought.
pub(crate) enum Received {
    /// A message of so many bytes.
    Message(usize),
    /// Nothing more for now.
    Nothing,
    /// The other side is gone, or sent more than any message may have.
    Closed,
}

/// Reads one message into `buffer`, which holds the longest that may come.
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Received {
    loop {
        // With MSG_TRUNC the answer is the packet's whole length, even if the buffer is shorter.
        return match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Received::Nothing,
            Ok(n) if (1..=buffer.len()).contains(&n) => Received::Message(n),
            Ok(_) | Err(_) => Received::Closed,
        };
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The other side will read it.
    Yes,
    /// The other side does not keep up: dropped.
    Full,
    /// The other side is gone: dropped.
    Closed,
}

/// Sends one message.
pub(crate) fn transmit(socket: &OwnedFd, message: &[u8]) -> Sent {
    loop {
        return match send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Sent::Yes,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => Sent::Full,
            Err(_) => Sent::Closed,
        };
    }
}

/// Takes the next waiting connection.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    sys::accept(AsFd::as_fd(listener))
}

/// What the user behind a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Root, or this daemon's own user before it dropped privileges: everything.
    Full,
    /// The user of the daemons without privileges: messages of the ring and `status`, but no commands and
    /// nothing in electd's name.
    Ring,
    /// A member of the status group: `status`, and nothing else.
    Status,
    /// Nothing.
    Denied,
}

/// Decides about users once, at start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doorkeeper {
    own: Uid,
    standin: Option<Uid>,
    status: Option<Gid>,
}

impl Doorkeeper {
    pub(crate) fn new() -> Self {
        let standin = User::from_name(USER).ok().flatten().map(|u| u.uid);
        Self {
            own: Uid::effective(),
            standin,
            status: status_group(),
        }
    }

    /// Access of the process at the other end (SO_PEERCRED).
    pub(crate) fn access(&self, socket: &OwnedFd) -> Access {
        use std::os::fd::AsFd;
        let credentials =
            getsockopt::<BorrowedFd<'_>, _>(&socket.as_fd(), sockopt::PeerCredentials);
        let Ok(credentials) = credentials else {
            return Access::Denied;
        };
        let groups = || {
            let mut groups = sys::peer_groups(socket.as_fd()).unwrap_or_default();
            groups.push(credentials.gid());
            groups
        };
        self.access_of(Uid::from_raw(credentials.uid()), groups)
    }

    fn access_of(&self, uid: Uid, groups: impl FnOnce() -> Vec<u32>) -> Access {
        if uid.is_root() || uid == self.own {
            Access::Full
        } else if self.standin == Some(uid) {
            Access::Ring
        } else if self.status.is_some_and(|s| groups().contains(&s.as_raw())) {
            Access::Status
        } else {
            Access::Denied
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_get_what_they_need_and_no_more() {
        let door = Doorkeeper {
            own: Uid::from_raw(1000),
            standin: Some(Uid::from_raw(990)),
            status: Some(Gid::from_raw(77)),
        };
        for (uid, group, expected) in [
            (0, 0, Access::Full),
            (1000, 77, Access::Full),
            (990, 77, Access::Ring),
            (1001, 100, Access::Denied),
            (1001, 77, Access::Status),
        ] {
            let access = door.access_of(Uid::from_raw(uid), || vec![5, group]);
            assert_eq!(access, expected, "uid {uid}, group {group}");
        }
        let door = Doorkeeper {
            own: Uid::from_raw(0),
            standin: None,
            status: None,
        };
        assert_eq!(door.access_of(Uid::from_raw(1), || vec![0]), Access::Denied);
    }
}
