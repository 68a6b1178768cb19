//! Owner, mode, extended attributes and times: read, and given to what is made ready.

use crate::{
    calls::Calls,
    dir::{Dir, Name},
    times::stamps,
};
use filesync::Node;
use rustix::{
    fs::{
        AtFlags, Gid, Mode, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fgetxattr,
        flistxattr, fremovexattr, fsetxattr, fstat, futimens, lgetxattr, llistxattr, lremovexattr,
        lsetxattr, utimensat,
    },
    io::Errno,
};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Attributes of one file may have so many bytes, names and all: what a record of the index has room for.
const MOST: usize = 96 * 1024;

type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// The others belong to the machine: labels of its security policy, or a file system's own notes.
fn carried(name: &[u8]) -> bool {
    let single: [&[u8]; 3] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    let all: [&[u8]; 2] = [b"user.", b"trusted."];
    all.iter().any(|start| name.starts_with(start)) || single.contains(&name)
}

/// Calls again with more room until it is enough.
fn whole(
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 2 * MOST => buffer = vec![0; 4 * buffer.len()],
            Err(e) => return Err(e),
        }
    }
}

/// What has attributes.
enum Holder<'a> {
    Open(BorrowedFd<'a>),
    /// What cannot be opened without consequences, by a path that leads through its open directory.
    Closed(Vec<u8>),
}

impl Holder<'_> {
    fn closed(dir: &Dir, name: Name) -> Self {
        let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
        path.extend(dir.bytes(name));
        Self::Closed(path)
    }

    /// Those that go along.
    fn read(&self) -> io::Result<Attributes> {
        let list = whole(|buffer| match self {
            Self::Open(fd) => flistxattr(fd, buffer),
            Self::Closed(path) => llistxattr(path.as_slice(), buffer),
        });
        let names = match list {
            Err(Errno::OPNOTSUPP) => return Ok(Attributes::new()),
            other => other?,
        };
        let mut attributes = Attributes::new();
        let mut bytes = 0;
        for name in names.split(|b| *b == 0).filter(|n| carried(n)) {
            let value = whole(|buffer| match self {
                Self::Open(fd) => fgetxattr(fd, name, buffer),
                Self::Closed(path) => lgetxattr(path.as_slice(), name, buffer),
            });
            let value = match value {
                Err(Errno::NODATA) => continue, // removed meanwhile; its change time tells
                other => other?,
            };
            bytes += name.len() + value.len();
            attributes.insert(name.to_vec(), value);
        }
        if bytes > MOST {
            return Err(io::Error::other("too many extended attributes"));
        }
        Ok(attributes)
    }

    fn give(&self, attributes: &Attributes, calls: &Calls) -> io::Result<()> {
        let there = self.read()?;
        for name in there.keys().filter(|n| !attributes.contains_key(*n)) {
            calls.one("removexattr")?;
            match self {
                Self::Open(fd) => fremovexattr(fd, name.as_slice())?,
                Self::Closed(path) => lremovexattr(path.as_slice(), name.as_slice())?,
            }
        }
        for (name, value) in attributes {
            if there.get(name) != Some(value) {
                calls.one("setxattr")?;
                let (name, flags) = (name.as_slice(), XattrFlags::empty());
                match self {
                    Self::Open(fd) => fsetxattr(fd, name, value, flags)?,
                    Self::Closed(path) => lsetxattr(path.as_slice(), name, value, flags)?,
                }
            }
        }
        Ok(())
    }
}

/// The extended attributes that go along.
pub(crate) fn read(fd: impl AsFd) -> io::Result<Attributes> {
    Holder::Open(fd.as_fd()).read()
}

/// The same of what cannot be opened without consequences.
pub(crate) fn read_unopened(dir: &Dir, name: Name) -> io::Result<Attributes> {
    match Holder::closed(dir, name).read() {
        // Not to be taken for a removal.
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.stat_of(name)?.is_some() => {
            Err(io::Error::other(
                "the attributes of a pipe, device or symbolic link cannot be read without /proc",
            ))
        }
        other => other,
    }
}

/// Gives an open file or directory all that `node` has. The order matters: a new owner takes set-user-id bits and
/// capabilities away, and all of it changes the times. A directory gets its time when nothing
/// comes or goes in it any more.
pub(crate) fn give(fd: impl AsFd, node: &Node, calls: &Calls) -> io::Result<()> {
    let fd = fd.as_fd();
    let stat = fstat(fd)?;
    if (stat.st_uid, stat.st_gid) != (node.uid, node.gid) {
        calls.one("fchown")?;
        fchown(
            fd,
            Some(Uid::from_raw(node.uid)),
            Some(Gid::from_raw(node.gid)),
        )?;
    }
    calls.one("fchmod")?;
    fchmod(fd, Mode::from_raw_mode(node.mode.into()))?;
    Holder::Open(fd).give(&node.attributes, calls)?;
    if !node.is_directory() {
        give_time(fd, node, calls)?;
    }
    Ok(())
}

/// Gives an open file its time alone.
pub(crate) fn give_time(fd: impl AsFd, node: &Node, calls: &Calls) -> io::Result<()> {
    calls.one("utimens")?;
    Ok(futimens(fd, &stamps(node.mtime))?)
}

/// Gives what cannot be opened without consequences what `node` has: a symbolic link, a pipe, a device.
pub(crate) fn give_unopened(dir: &Dir, name: Name, node: &Node) -> io::Result<()> {
    let (calls, bytes) = (dir.calls(), dir.bytes(name));
    let link = matches!(node.kind, filesync::Kind::Symlink { .. });
    let stat = dir.stat_of(name)?.ok_or(Errno::NOENT)?;
    if (stat.st_uid, stat.st_gid) != (node.uid, node.gid) {
        calls.one("chown")?;
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(dir, bytes, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if !link {
        calls.one("chmod")?;
        chmodat(
            dir,
            bytes,
            Mode::from_raw_mode(node.mode.into()),
            AtFlags::empty(),
        )?;
    }
    Holder::closed(dir, name).give(&node.attributes, calls)?;
    calls.one("utimens")?;
    utimensat(dir, bytes, &stamps(node.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
