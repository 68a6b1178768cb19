//! What is in a set, in the order of paths, one after another: memory does not grow with the tree, only with the names
//! of one directory and with the hard links.
//!
//! A directory in which nothing came or went since its names were read has those that the index knows; each of them is
//! still looked at, and told of only if it is not what it was.

use crate::{
    dir::{Dir, Name},
    error::{Error, Listing},
    index::Cursor,
    rows,
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
    /// Grew while they were read, and count for what was there at first.
    pub growing: Listing,
    /// Could not be read, nor anything below them.
    pub unreadable: Listing,
    /// Are nothing that could be kept alike: sockets.
    pub skipped: Listing,
    /// Directories that were removed elsewhere and stay for what is left out of the set.
    pub left: Listing,
    /// Files that were read.
    pub read: u64,
    /// Directories whose names were read.
    pub listed: u64,
}

impl Counts {
    /// With those of another.
    pub(crate) fn join(&mut self, other: Self) {
        self.busy.join(other.busy);
        self.growing.join(other.growing);
        self.unreadable.join(other.unreadable);
        self.skipped.join(other.skipped);
        self.left.join(other.left);
        self.read += other.read;
        self.listed += other.listed;
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
    /// Nothing, where the index knows something.
    Nothing,
    /// Every name that this directory had at the time of this is in the index.
    All(Stat),
    /// A further name of a file.
    Further(Path),
    /// This, in this directory.
    Here(Arc<Dir>, Stat),
}

/// A directory whose names were read, or taken for those that the index knows, and what it was like before.
pub(crate) struct Entered {
    /// None: the root.
    pub(crate) path: Option<Path>,
    pub(crate) inode: u64,
    pub(crate) ctime: i64,
}

struct Level {
    dir: Arc<Dir>,
    /// None: the root.
    path: Option<Path>,
    /// Of the directory before its names were read.
    stat: Stat,
    names: Names,
}

enum Names {
    /// As they were read, and whether the index knew all of them up to now.
    Read(vec::IntoIter<Vec<u8>>, bool),
    /// Those in the index whose keys begin with this.
    Known(Vec<u8>),
}

/// See the module.
pub(crate) struct Walk<X> {
    excluded: X,
    levels: Vec<Level>,
    /// First name of whatever has several.
    links: HashMap<(u64, u64), Path>,
    device: u64,
    /// The time of the look.
    now: i64,
    /// So far.
    pub(crate) counts: Counts,
    /// So far, in order.
    pub(crate) entered: Vec<Entered>,
}

impl<X> Walk<X>
where
    X: Fn(&Path, bool) -> bool,
{
    /// Of all beneath `root` that is not `excluded` (the path, and whether it is a directory).
    pub(crate) fn new(root: &Dir, excluded: X, now: i64) -> io::Result<Self> {
        let dir = root.again()?;
        let stat = sight::stat(&dir.stat()?);
        let names = Names::Read(dir.names()?.into_iter(), false);
        Ok(Self {
            excluded,
            levels: vec![Level {
                dir: Arc::new(dir),
                path: None,
                stat,
                names,
            }],
            links: HashMap::new(),
            device: stat.device,
            now,
            counts: Counts::default(),
            entered: vec![Entered {
                path: None,
                inode: stat.inode,
                ctime: stat.ctime,
            }],
        })
    }

    /// What is in the directory of the last step comes next; `known`: it has the names that the index knows. It was
    /// like this before.
    pub(crate) fn enter(&mut self, path: &Path, stat: Stat, known: bool) -> io::Result<()> {
        let Some(level) = self.levels.last() else {
            return Ok(());
        };
        let dir = level.dir.child(Name::last(path))?;
        let now = sight::stat(&dir.stat()?);
        self.entered.push(Entered {
            path: Some(path.clone()),
            inode: now.inode,
            ctime: now.ctime,
        });
        let same = now == stat;
        let names = if known && same {
            Names::Known(rows::below(path))
        } else {
            self.counts.listed += 1;
            Names::Read(dir.names()?.into_iter(), same)
        };
        self.levels.push(Level {
            dir: Arc::new(dir),
            path: Some(path.clone()),
            stat,
            names,
        });
        Ok(())
    }

    /// Nothing in this directory, which is like this, is part of the set.
    pub(crate) fn pass(&mut self, path: &Path, stat: &Stat) {
        self.entered.push(Entered {
            path: Some(path.clone()),
            inode: stat.inode,
            ctime: stat.ctime,
        });
    }

    /// The index knows nothing of a name in the directory of the last step.
    pub(crate) fn is_new(&mut self) {
        if let Some(Level {
            names: Names::Read(_, all),
            ..
        }) = self.levels.last_mut()
        {
            *all = false;
        }
    }

    /// What is at a path in the directory that was entered last.
    fn at(&mut self, path: &Path) -> What {
        match self.step(path) {
            Ok(Some(what)) => what,
            Ok(None) => What::Nothing,
            // Gone since its name was read.
            Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => What::Nothing,
            Err(e) => {
                self.counts.unreadable.add(path, e);
                What::Unknown
            }
        }
    }

    /// The same; none if there is nothing to tell.
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
        if !matches!(kind, FileType::Directory | FileType::Socket) && raw.st_nlink > 1 {
            match self.links.get(&(stat.device, stat.inode)) {
                Some(first) => return Ok(Some(What::Further(first.clone()))),
                None => {
                    self.links.insert((stat.device, stat.inode), path.clone());
                }
            }
        }
        Ok(Some(What::Here(Arc::clone(&level.dir), stat)))
    }

    /// What comes next; `rows` are past all that was told of.
    pub(crate) fn next(&mut self, rows: &mut Cursor) -> Result<Option<Step>, Error> {
        loop {
            let (device, now) = (self.device, self.now);
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            let path = match &mut level.names {
                Names::Read(names, all) => {
                    let Some(name) = names.next() else {
                        let all = *all;
                        let left = self.levels.pop();
                        match left.and_then(|l| Some((l.path?, What::All(l.stat)))) {
                            Some((path, what)) if all => return Ok(Some(Step { path, what })),
                            _ => continue,
                        }
                    };
                    match join(level.path.as_ref(), &name) {
                        Ok(path) if reserved(&path) => continue,
                        Ok(path) => path,
                        Err(_) => {
                            *all = false;
                            if let Some(directory) = &level.path {
                                let why = "a path in it has more than 4,095 bytes; shorten it, or exclude the directory";
                                self.counts.unreadable.add(directory, why);
                            }
                            continue;
                        }
                    }
                }
                Names::Known(start) => {
                    let Some((key, row)) = rows.peek(start)? else {
                        self.levels.pop();
                        continue;
                    };
                    let name = key.get(start.len()..).and_then(Name::new);
                    let proof = rows::proof(row)?.0;
                    if let (Some(name), Some(proof)) = (name, proof)
                        && let Some(stat) = alone(&level.dir, name, device)
                        && proof.serves(&stat, now)
                    {
                        rows.skip();
                        continue;
                    }
                    let path = rows::path(key)?;
                    // What is in a directory that is none any more is gone with it.
                    if name.is_none() {
                        let what = What::Nothing;
                        return Ok(Some(Step { path, what }));
                    }
                    path
                }
            };
            let what = self.at(&path);
            return Ok(Some(Step { path, what }));
        }
    }
}

/// What is at this name, if that is all: no directory, nothing of several names. What fails here is told when the path
/// is looked at.
fn alone(dir: &Dir, name: Name, device: u64) -> Option<Stat> {
    let raw = dir.stat_of(name).ok()??;
    let alone = match FileType::from_raw_mode(raw.st_mode) {
        FileType::Directory => false,
        _ => raw.st_nlink == 1,
    };
    (alone && raw.st_dev == device).then(|| sight::stat(&raw))
}

/// Puts a name behind a directory's path.
pub(crate) fn join(directory: Option<&Path>, name: &[u8]) -> Result<Path, filesync::BadPath> {
    let mut bytes = Vec::new();
    if let Some(directory) = directory {
        bytes.extend(directory.as_bytes());
        bytes.push(b'/');
    }
    bytes.extend(name);
    Path::try_from(bytes)
}
