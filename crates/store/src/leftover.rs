//! Directories that were removed elsewhere and hold something that is no part of the set. For the set they are gone, and
//! the index says so; what is left stays where it is, unless it is to go with its directory.
//!
//! Such a directory is known again by the proof beside its tombstone, and is none any more as soon as something of the
//! set is in it.

use crate::{
    dir::{Dir, Name, identity},
    error::{At, Error},
    index::{Index, Reader},
    look::Summary,
    rows::Row,
    set::Set,
    stage, walk,
};
use filesync::Path;
use rustix::{fs::FileType, io::Errno};
use std::{collections::BTreeSet, io};

/// What in the directory of a set is no part of the set.
pub trait LeftOut: Send + Sync {
    /// Whether a path is, which is a directory or not.
    fn excludes(&self, path: &Path, directory: bool) -> bool;

    /// Whether it goes with its directory.
    fn perishes(&self, path: &Path, directory: bool) -> bool;
}

/// All is part of the set.
pub(crate) struct Nothing;

impl LeftOut for Nothing {
    fn excludes(&self, _: &Path, _: bool) -> bool {
        false
    }

    fn perishes(&self, _: &Path, _: bool) -> bool {
        false
    }
}

/// What keeps a directory from going.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Something that may be part of the set.
    Here(Path),
    /// Something that is none, and does not go with it.
    Left(Path),
}

impl Held {
    pub(crate) fn path(self) -> Path {
        match self {
            Self::Here(path) | Self::Left(path) => path,
        }
    }
}

/// Finds them by what is known.
pub(crate) struct Leftovers<'a> {
    pub(crate) set: &'a Set,
    pub(crate) index: &'a Reader,
    /// Those of which the index does not know yet.
    pub(crate) new: &'a BTreeSet<Path>,
}

impl Leftovers<'_> {
    /// Whether the directory at `path`, which is this one, was left over by a run.
    pub(crate) fn has(&self, path: &Path, directory: &Dir) -> Result<bool, Error> {
        if self.new.contains(path) {
            return Ok(true);
        }
        match self.index.row(path)? {
            Some(row) => is_left(&row, directory).at("find", path),
            None => Ok(false),
        }
    }

    /// What holds the directory at `path`; nothing, if nothing is in it but what goes with it. What is of the set comes first.
    pub(crate) fn holder(&self, path: &Path, directory: &Dir) -> Result<Option<Held>, Error> {
        let mut left = None;
        for name in directory.names().at("read", path)? {
            // A path that is too long is of no set.
            let (Some(name), Ok(inner)) = (Name::new(&name), walk::join(Some(path), &name)) else {
                left.get_or_insert_with(|| path.clone());
                continue;
            };
            let Some(stat) = directory.stat_of(name).at("stat", &inner)? else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if self.set.left_out.perishes(&inner, is_directory) {
                continue;
            }
            if self.set.left_out.excludes(&inner, is_directory) {
                left.get_or_insert(inner);
                continue;
            }
            if !is_directory {
                return Ok(Some(Held::Here(inner)));
            }
            let child = match directory.child(name) {
                Err(e) if e.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                    return Ok(Some(Held::Here(inner)));
                }
                other => other.at("open", &inner)?,
            };
            if !self.has(&inner, &child)? {
                return Ok(Some(Held::Here(inner)));
            }
            match self.holder(&inner, &child)? {
                Some(Held::Left(path)) => drop(left.get_or_insert(path)),
                Some(here) => return Ok(Some(here)),
                None => {}
            }
        }
        Ok(left.map(Held::Left))
    }

    /// Removes what is in a directory that nothing holds. Whatever came into it meanwhile stays, and so does the directory.
    pub(crate) fn clear(&self, path: &Path, directory: &Dir) -> Result<(), Error> {
        for name in directory.names().at("read", path)? {
            let (Some(name), Ok(inner)) = (Name::new(&name), walk::join(Some(path), &name)) else {
                continue;
            };
            let Some(stat) = directory.stat_of(name).at("stat", &inner)? else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if self.set.left_out.perishes(&inner, is_directory) {
                stage::discard_all(directory, name).at("remove", &inner)?;
            } else if is_directory {
                let child = directory.child(name).at("open", &inner)?;
                if self.has(&inner, &child)? {
                    self.clear(&inner, &child)?;
                    remove(directory, name).at("remove", &inner)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether `row` is of a directory that was removed elsewhere, and this is it. A number may be given again, but not with
/// the same time of birth, where the file system has one.
pub(crate) fn is_left(row: &Row, directory: &Dir) -> io::Result<bool> {
    let Some(proof) = row.proof.filter(|_| row.entry.node.is_none()) else {
        return Ok(false);
    };
    let seen = identity(directory)?;
    let before = u64::try_from(seen.born).is_ok_and(|born| born <= row.at);
    Ok(proof.stat.inode == seen.inode && before)
}

/// Whether a new directory could not be taken for this one.
pub(crate) fn is_certain(directory: &Dir) -> io::Result<bool> {
    Ok(identity(directory)?.born > 0)
}

/// Removes a directory if it is empty.
fn remove(directory: &Dir, name: Name) -> io::Result<()> {
    match directory.remove_directory(name) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

/// Removes those that a look found to be held by nothing any more.
pub fn clear(set: &Set, index: &Index, found: &Summary) -> Result<(), Error> {
    let reader = index.reader()?;
    let leftovers = Leftovers {
        set,
        index: &reader,
        new: &BTreeSet::new(),
    };
    for path in &found.released {
        let (parent, name) = set.root.place(path).at("find", path)?;
        let directory = parent.child(name).at("open", path)?;
        if leftovers.has(path, &directory)? && leftovers.holder(path, &directory)?.is_none() {
            leftovers.clear(path, &directory)?;
            remove(&parent, name).at("remove", path)?;
        }
    }
    Ok(())
}

/// What would stay below `path` if all that is of the set went.
pub fn held_by(set: &Set, path: &Path) -> Option<Path> {
    let directory = set.root.beneath(path).ok()?;
    let names = directory.names().ok()?;
    names.iter().find_map(|name| {
        let inner = walk::join(Some(path), name).ok()?;
        let stat = directory.stat_of(Name::last(&inner)).ok()??;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if set.left_out.perishes(&inner, is_directory) {
            return None;
        }
        match set.left_out.excludes(&inner, is_directory) {
            true => Some(inner),
            false => is_directory.then(|| held_by(set, &inner)).flatten(),
        }
    })
}
