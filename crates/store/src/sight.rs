//! What is at a name.

use crate::{
    attributes, contents,
    dir::{Dir, Name},
    times,
};
use filesync::{Kind, Node, Path, Stat};
use rustix::fs::{FileType, major, minor};
use std::{collections::BTreeMap, io};

/// A file that changes while it is read is read again so often.
const TRIES: usize = 3;

/// What was found.
pub(crate) enum Found {
    /// This, and so it was before and after.
    Node(Node, Stat),
    /// It changes all the time.
    Busy,
    /// It grows all the time; this is what of it stood still for a moment.
    Growing(Node),
    /// A socket: of no use to anybody else.
    Socket,
    /// Nothing.
    Nothing,
}

/// What stat(2) tells, as the core knows it.
pub(crate) fn stat(raw: &rustix::fs::Stat) -> Stat {
    let nanos = |seconds: i64, nanos: u64| {
        let nanos = i64::try_from(nanos).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    };
    Stat {
        size: u64::try_from(raw.st_size).unwrap_or(0),
        mode: raw.st_mode,
        uid: raw.st_uid,
        gid: raw.st_gid,
        device: raw.st_dev,
        inode: raw.st_ino,
        mtime: nanos(raw.st_mtime, raw.st_mtime_nsec),
        ctime: nanos(raw.st_ctime, raw.st_ctime_nsec),
    }
}

/// Puts together what was found.
pub(crate) fn node(
    kind: Kind,
    raw: &rustix::fs::Stat,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
) -> Node {
    Node {
        kind,
        mode: (raw.st_mode & 0o7777) as u16,
        uid: raw.st_uid,
        gid: raw.st_gid,
        mtime: times::of(raw),
        attributes,
    }
}

/// What is at a name now. A further name of a file is that file here.
pub(crate) fn see(dir: &Dir, name: Name) -> io::Result<Found> {
    for _ in 0..TRIES {
        if let Some(found) = see_once(dir, name)? {
            return Ok(found);
        }
    }
    Ok(Found::Busy)
}

/// The same of a file that was just like this, and may grow.
pub(crate) fn see_file(dir: &Dir, name: Name, before: Stat) -> io::Result<Found> {
    match file(dir, name, before.inode, true) {
        Ok(Some(found)) => Ok(found),
        // Whatever went wrong goes wrong again, if it is not that something else is there.
        Ok(None) | Err(_) => see(dir, name),
    }
}

/// None: it changes. If it only gets longer and `may_grow`, what was there at first is read twice: whatever is the same
/// both times was all there in between.
fn file(dir: &Dir, name: Name, inode: u64, may_grow: bool) -> io::Result<Option<Found>> {
    let (file, raw) = dir.open_and_stat(name)?;
    if raw.st_ino != inode {
        return Ok(None);
    }
    let before = stat(&raw);
    let (size, digest) = contents::digest_as(&file, &raw)?;
    let attributes = attributes::read(&file)?;
    let node = node(Kind::File { size, digest }, &raw, attributes);
    // This tells of the file as well: it is still that one, and whoever writes to it moves its times.
    let Some(after) = dir.stat_of(name)?.map(|after| stat(&after)) else {
        return Ok(None);
    };
    if after == before {
        return Ok(Some(Found::Node(node, before)));
    }
    let longer = Stat {
        size: after.size.max(before.size + 1),
        mtime: after.mtime,
        ctime: after.ctime,
        ..before
    };
    let grew = may_grow && after == longer && contents::digest_as(&file, &raw)? == (size, digest);
    Ok(grew.then_some(Found::Growing(node)))
}

fn see_once(dir: &Dir, name: Name) -> io::Result<Option<Found>> {
    let Some(raw) = dir.stat_of(name)? else {
        return Ok(Some(Found::Nothing));
    };
    let before = stat(&raw);
    let (kind, attributes) = match FileType::from_raw_mode(raw.st_mode) {
        FileType::Socket => return Ok(Some(Found::Socket)),
        FileType::RegularFile => return file(dir, name, before.inode, false),
        FileType::Directory => (Kind::Directory, attributes::read(&dir.child(name)?)?),
        FileType::Symlink => {
            let target = dir.target(name)?;
            let attributes = attributes::read_unopened(dir, name)?;
            (Kind::Symlink { target }, attributes)
        }
        FileType::Fifo => (Kind::Fifo, attributes::read_unopened(dir, name)?),
        kind @ (FileType::BlockDevice | FileType::CharacterDevice) => {
            let block = kind == FileType::BlockDevice;
            let (major, minor) = (major(raw.st_rdev), minor(raw.st_rdev));
            let device = Kind::Device {
                block,
                major,
                minor,
            };
            (device, attributes::read_unopened(dir, name)?)
        }
        FileType::Unknown => return Err(io::Error::other("of no known type")),
    };
    // What comes and goes in a directory is no part of it.
    let own = |s: Stat| match kind {
        Kind::Directory => (s.mode, s.uid, s.gid, s.inode, 0, 0),
        _ => (s.mode, s.uid, s.gid, s.inode, s.mtime, s.ctime),
    };
    let after = dir.stat_of(name)?;
    if after.is_none_or(|after| own(stat(&after)) != own(before)) {
        return Ok(None);
    }
    Ok(Some(Found::Node(node(kind, &raw, attributes), before)))
}

/// A further name of the file at `to`. Whatever else the file has is told at its first name.
pub(crate) fn further_name(to: Path) -> Node {
    Node {
        kind: Kind::HardLink { to },
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: 0,
        attributes: BTreeMap::new(),
    }
}
