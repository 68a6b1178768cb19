//! Whether what a look did not find is gone. A walk takes its time and is no snapshot: what somebody moves behind its back,
//! from where it has yet to come to where it has been, is found nowhere, and nobody removed it.
//!
//! Whatever is moved so comes into a directory after its names were read, and changes the times of that directory. So
//! those that changed since are read once more, with all that is new in them: what is missing and turns up there was moved.

use crate::{
    dir::{Name, Places},
    error::{At, Error},
    index::Reader,
    set::{Set, reserved},
    sight,
    walk::{self, Entered},
};
use filesync::Path;
use rustix::fs::{Dir as Listing, FileType};
use std::{
    collections::{BTreeSet, HashSet},
    io,
};

/// Two changes of a directory within so many nanoseconds may have one time: a kernel's time stamps are that coarse.
const TICK: i64 = 10_000_000;

/// What the index knows and a walk did not see.
pub(crate) struct Missing {
    pub(crate) path: Path,
    /// Of what was there, if that is known.
    pub(crate) inode: Option<u64>,
}

/// A walk that is over.
pub(crate) struct Walked<'a> {
    pub(crate) set: &'a Set,
    /// What the walk saw is in it.
    pub(crate) index: &'a Reader,
    pub(crate) excluded: &'a dyn Fn(&Path, bool) -> bool,
    pub(crate) entered: &'a [Entered],
    /// When it began, in nanoseconds since 1970.
    pub(crate) began: i64,
}

impl Walked<'_> {
    /// Those of the missing, in order, that are not gone: they came back, or were moved.
    pub(crate) fn not_gone(&self, missing: &[Missing]) -> Result<BTreeSet<Path>, Error> {
        let mut there = BTreeSet::new();
        if missing.is_empty() {
            return Ok(there);
        }
        let places = Places::default();
        let mut gone: Option<&Path> = None;
        for Missing { path, .. } in missing {
            if gone.is_some_and(|gone| path.is_below(gone)) {
                continue;
            }
            match self.is_there(&places, path) {
                Ok(false) => gone = Some(path),
                Ok(true) => drop(there.insert(path.clone())),
                Err(e) => return Err(e).at("stat", path),
            }
        }
        let moved = self.moved(missing)?;
        let mut above: Option<&Path> = None;
        for Missing { path, inode } in missing {
            let with_directory = above.is_some_and(|above| path.is_below(above));
            if with_directory || inode.is_some_and(|inode| moved.contains(&inode)) {
                there.insert(path.clone());
                above = if with_directory { above } else { Some(path) };
            }
        }
        Ok(there)
    }

    fn is_there(&self, places: &Places, path: &Path) -> io::Result<bool> {
        let stat = places.stat(&self.set.root, path)?;
        Ok(stat.is_some_and(|stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            kind != FileType::Socket && !(self.excluded)(path, kind == FileType::Directory)
        }))
    }

    /// The numbers of what is missing and turned up where the walk had been.
    fn moved(&self, missing: &[Missing]) -> Result<HashSet<u64>, Error> {
        let wanted: HashSet<u64> = missing.iter().filter_map(|m| m.inode).collect();
        let known: HashSet<_> = self.entered.iter().map(|e| e.path.as_ref()).collect();
        let mut found = HashSet::new();
        let touched = self.entered.iter().filter(|e| self.is_touched(e));
        let mut open: Vec<_> = touched.map(|e| e.path.clone()).collect();
        while let Some(directory) = open.pop() {
            let dir = match &directory {
                None => self.set.root.again(),
                Some(path) => self.set.root.beneath(path),
            };
            // It went meanwhile, and is missing at the next look.
            let Ok(dir) = dir else { continue };
            for entry in Listing::read_from(&dir)
                .map_err(io::Error::from)
                .at("read", &self.set.name)?
            {
                let entry = entry.map_err(io::Error::from).at("read", &self.set.name)?;
                let name = entry.file_name().to_bytes();
                let path = Name::new(name).and_then(|_| walk::join(directory.as_ref(), name).ok());
                let Some(path) = path.filter(|path| !reserved(path)) else {
                    continue;
                };
                let is_directory = entry.file_type() == FileType::Directory;
                if (self.excluded)(&path, is_directory) {
                    continue;
                }
                if wanted.contains(&entry.ino()) && !self.was_seen(&path, entry.ino())? {
                    found.insert(entry.ino());
                }
                if is_directory && !known.contains(&Some(&path)) {
                    open.push(Some(path));
                }
            }
        }
        Ok(found)
    }

    /// Names may have come into this directory since they were read.
    fn is_touched(&self, entered: &Entered) -> bool {
        let stat = match &entered.path {
            None => self.set.root.stat().map(Some),
            Some(path) => self
                .set
                .root
                .place(path)
                .and_then(|(dir, name)| dir.stat_of(name)),
        };
        let now = stat.ok().flatten().map(|raw| sight::stat(&raw));
        now.is_some_and(|now| {
            (now.inode, now.ctime) != (entered.inode, entered.ctime)
                || now.ctime >= self.began.saturating_sub(TICK)
        })
    }

    fn was_seen(&self, path: &Path, inode: u64) -> Result<bool, Error> {
        let row = self.index.row(path)?.filter(|row| row.entry.node.is_some());
        let proof = row.and_then(|row| row.proof);
        Ok(proof.is_some_and(|proof| proof.stat.inode == inode))
    }
}
