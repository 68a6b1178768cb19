//! What is in a set, in the order of paths, one after another: memory does not grow with the tree, only with the names
//! of one directory and with the hard links.

use crate::{
    dir::{Dir, Name},
    error::Listing,
    set::reserved,
    sight,
};
use filesync::{Path, Stat};
use rustix::{fs::FileType, io::Errno};
use std::{collections::HashMap, io, sync::Arc, vec};

/// What a walk came by and could not tell of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Changed while they were read.
    pub busy: Listing,
    /// Could not be read, nor anything below them.
    pub unreadable: Listing,
    /// Are nothing that could be kept alike: sockets, names that are too long.
    pub skipped: Listing,
    /// Files that were read.
    pub read: u64,
}

impl Counts {
    /// With those of another.
    pub(crate) fn join(&mut self, other: Self) {
        self.busy.join(other.busy);
        self.unreadable.join(other.unreadable);
        self.skipped.join(other.skipped);
        self.read += other.read;
    }
}

/// One path.
#[derive(Debug)]
pub(crate) struct Step {
    /// Which.
    pub(crate) path: Path,
    /// What is there.
    pub(crate) what: What,
}

/// What is at a path, before anything is read.
#[derive(Debug)]
pub(crate) enum What {
    /// It, and all below it, could not be looked at.
    Unknown,
    /// A further name of a file.
    Further(Path),
    /// This, in this directory.
    Here(Arc<Dir>, Stat),
}

struct Level {
    dir: Arc<Dir>,
    path: Option<Path>,
    names: vec::IntoIter<Vec<u8>>,
}

/// See the module.
pub(crate) struct Walk<X> {
    excluded: X,
    levels: Vec<Level>,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), Path>,
    device: u64,
    /// So far.
    pub(crate) counts: Counts,
}

impl<X> Walk<X>
where
    X: Fn(&Path, bool) -> bool,
{
    /// Of all beneath `root` that is not `excluded` (the path, and whether it is a directory).
    pub(crate) fn new(root: &Dir, excluded: X) -> io::Result<Self> {
        let dir = root.again()?;
        let device = dir.stat()?.st_dev;
        let names = dir.names()?.into_iter();
        Ok(Self {
            excluded,
            levels: vec![Level {
                dir: Arc::new(dir),
                path: None,
                names,
            }],
            links: HashMap::new(),
            device,
            counts: Counts::default(),
        })
    }

    /// What is in the directory of the last step is not looked at.
    pub(crate) fn pass_over(&mut self, directory: &Path) {
        if self
            .levels
            .last()
            .is_some_and(|l| l.path.as_ref() == Some(directory))
        {
            self.levels.pop();
        }
    }

    /// What is at one name; none if there is nothing to tell.
    fn step(&mut self, path: &Path) -> io::Result<Option<What>> {
        let Some(level) = self.levels.last() else {
            return Ok(None);
        };
        let name = Name::last(path);
        let Some(raw) = level.dir.stat_of(name)? else {
            return Ok(None);
        };
        let (stat, kind) = (sight::stat(&raw), FileType::from_raw_mode(raw.st_mode));
        let directory = kind == FileType::Directory;
        if (self.excluded)(path, directory) {
            return Ok(None);
        }
        if stat.device != self.device {
            return Err(io::Error::other("another file system is mounted there"));
        }
        if kind == FileType::RegularFile && raw.st_nlink > 1 {
            match self.links.get(&(stat.device, stat.inode)) {
                Some(first) => return Ok(Some(What::Further(first.clone()))),
                None => {
                    self.links.insert((stat.device, stat.inode), path.clone());
                }
            }
        }
        let here = What::Here(Arc::clone(&level.dir), stat);
        if directory {
            let dir = level.dir.child(name)?;
            let names = dir.names()?.into_iter();
            self.levels.push(Level {
                dir: Arc::new(dir),
                path: Some(path.clone()),
                names,
            });
        }
        Ok(Some(here))
    }
}

/// Puts a name behind a directory's path.
fn join(directory: Option<&Path>, name: &[u8]) -> Result<Path, filesync::BadPath> {
    let mut bytes = Vec::new();
    if let Some(directory) = directory {
        bytes.extend(directory.as_bytes());
        bytes.push(b'/');
    }
    bytes.extend(name);
    Path::try_from(bytes)
}

impl<X> Iterator for Walk<X>
where
    X: Fn(&Path, bool) -> bool,
{
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            let level = self.levels.last_mut()?;
            let Some(name) = level.names.next() else {
                self.levels.pop();
                continue;
            };
            let path = match join(level.path.as_ref(), &name) {
                Ok(path) if reserved(&path) => continue,
                Ok(path) => path,
                Err(_) => {
                    if let Some(directory) = &level.path {
                        self.counts.skipped.add(directory, "too long a path in it");
                    }
                    continue;
                }
            };
            let what = match self.step(&path) {
                Ok(None) => continue,
                Ok(Some(what)) => what,
                // Gone since its name was read.
                Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => continue,
                Err(e) => {
                    self.counts.unreadable.add(&path, e);
                    What::Unknown
                }
            };
            return Some(Step { path, what });
        }
    }
}
