//! What is at a name.

use crate::{
    attributes, contents,
    dir::{Dir, Name},
};
use filesync::{Kind, Node, Path, Stat};
use rustix::fs::{FileType, fstat, major, minor};
use std::{collections::BTreeMap, io};

/// A file that changes while it is read is read again so often.
const TRIES: usize = 3;

/// What was found.
pub(crate) enum Found {
    /// This, and so it was before and after.
    Node(Node, Stat),
    /// It changes all the time.
    Busy,
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
pub(crate) fn node(kind: Kind, stat: &Stat, attributes: BTreeMap<Vec<u8>, Vec<u8>>) -> Node {
    let own_time = kind != Kind::Directory;
    Node {
        kind,
        mode: (stat.mode & 0o7777) as u16,
        uid: stat.uid,
        gid: stat.gid,
        mtime: if own_time { stat.mtime } else { 0 },
        attributes,
    }
}

/// What is at a name now. A further name of a file is that file here.
pub(crate) fn see(dir: &Dir, name: Name) -> io::Result<Found> {
    for _ in 0..TRIES {
        let Some(raw) = dir.stat_of(name)? else {
            return Ok(Found::Nothing);
        };
        let before = stat(&raw);
        let (kind, attributes) = match FileType::from_raw_mode(raw.st_mode) {
            FileType::Socket => return Ok(Found::Socket),
            FileType::RegularFile => {
                let file = dir.open(name)?;
                if stat(&fstat(&file)?) != before {
                    continue;
                }
                let (size, digest) = contents::digest(&file)?;
                let attributes = attributes::read(&file)?;
                if stat(&fstat(&file)?) != before {
                    continue;
                }
                (Kind::File { size, digest }, attributes)
            }
            FileType::Directory => (Kind::Directory, attributes::read(&dir.child(name)?)?),
            FileType::Symlink => {
                let target = dir.target(name)?;
                (Kind::Symlink { target }, BTreeMap::new())
            }
            FileType::Fifo => (Kind::Fifo, attributes::read_unopened(dir, name)?),
            kind @ (FileType::BlockDevice | FileType::CharacterDevice) => {
                let block = kind == FileType::BlockDevice;
                let (major, minor) = (major(raw.st_rdev), minor(raw.st_rdev));
                (
                    Kind::Device {
                        block,
                        major,
                        minor,
                    },
                    attributes::read_unopened(dir, name)?,
                )
            }
            FileType::Unknown => return Err(io::Error::other("of no known type")),
        };
        // What comes and goes in a directory is no part of it.
        let own = |s: Stat| match kind {
            Kind::Directory => (s.mode, s.uid, s.gid, s.inode, 0, 0),
            _ => (s.mode, s.uid, s.gid, s.inode, s.mtime, s.ctime),
        };
        if dir
            .stat_of(name)?
            .is_none_or(|now| own(stat(&now)) != own(before))
        {
            continue;
        }
        let node = node(kind, &before, attributes);
        return Ok(Found::Node(node, before));
    }
    Ok(Found::Busy)
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
