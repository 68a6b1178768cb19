//! What is in a set, in the order of paths, one after another: memory does not grow with the tree, only with the names
//! of one directory and with the hard links.

use crate::{
    dir::{Dir, Name},
    error::Listing,
    set::reserved,
    sight::{self, Found},
};
use filesync::{Entry, Kind, Node, Path, Proof, Sight, Stat};
use rustix::{fs::FileType, io::Errno};
use std::{collections::HashMap, io, vec};

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

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub path: Path,
    /// What is there.
    pub sight: Sight,
    /// That it was looked at just now; none if nothing new was learned of it.
    pub proof: Option<Proof>,
}

struct Level {
    dir: Dir,
    path: Option<Path>,
    names: vec::IntoIter<Vec<u8>>,
}

/// See the module.
pub struct Walk<K, X> {
    known: K,
    excluded: X,
    now: i64,
    levels: Vec<Level>,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), Path>,
    device: u64,
    /// So far.
    pub counts: Counts,
}

impl<K, X> Walk<K, X>
where
    K: FnMut(&Path) -> Option<(Entry, Proof)>,
    X: Fn(&Path, bool) -> bool,
{
    /// Of all beneath `root` that is not `excluded` (the path, and whether it is a directory). `known` is asked in
    /// order of paths; `now` is when it begins, in nanoseconds since 1970.
    pub fn new(root: &Dir, now: u64, known: K, excluded: X) -> io::Result<Self> {
        let dir = root.again()?;
        let device = dir.stat()?.st_dev;
        let names = dir.names()?.into_iter();
        Ok(Self {
            known,
            excluded,
            now: i64::try_from(now).unwrap_or(i64::MAX),
            levels: vec![Level {
                dir,
                path: None,
                names,
            }],
            links: HashMap::new(),
            device,
            counts: Counts::default(),
        })
    }

    /// What is at one name; none if there is nothing to tell.
    fn step(&mut self, path: &Path) -> io::Result<Option<(Sight, Option<Proof>)>> {
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
        let inner = match directory {
            true => {
                let dir = level.dir.child(name)?;
                let names = dir.names()?.into_iter();
                Some(Level {
                    dir,
                    path: Some(path.clone()),
                    names,
                })
            }
            false => None,
        };
        if kind == FileType::RegularFile && raw.st_nlink > 1 {
            match self.links.get(&(stat.device, stat.inode)) {
                Some(first) => {
                    let node = sight::further_name(first.clone());
                    return Ok(Some((Sight::Node(node), None)));
                }
                None => {
                    self.links.insert((stat.device, stat.inode), path.clone());
                }
            }
        }
        let found = match self.proven(path, &stat) {
            Some(node) => Some((Sight::Node(node), None)),
            None => self.look_at(path)?,
        };
        if matches!(found, Some((Sight::Node(_), _))) {
            self.levels.extend(inner);
        }
        Ok(found)
    }

    /// What is known of it, if it is certainly still that.
    fn proven(&mut self, path: &Path, stat: &Stat) -> Option<Node> {
        let (entry, proof) = (self.known)(path)?;
        let node = entry.node.filter(|_| proof.holds(stat))?;
        (!matches!(node.kind, Kind::HardLink { .. })).then_some(node)
    }

    fn look_at(&mut self, path: &Path) -> io::Result<Option<(Sight, Option<Proof>)>> {
        let Some(level) = self.levels.last() else {
            return Ok(None);
        };
        Ok(match sight::see(&level.dir, Name::last(path))? {
            Found::Node(node, stat) => {
                self.counts.read += u64::from(matches!(node.kind, Kind::File { .. }));
                let proof = Proof { stat, at: self.now };
                Some((Sight::Node(node), Some(proof)))
            }
            Found::Busy => {
                self.counts.busy.add(path, "changes while it is read");
                Some((Sight::Unknown, None))
            }
            Found::Socket => {
                self.counts.skipped.add(path, "a socket");
                None
            }
            Found::Nothing => None,
        })
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

impl<K, X> Iterator for Walk<K, X>
where
    K: FnMut(&Path) -> Option<(Entry, Proof)>,
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
            let (sight, proof) = match self.step(&path) {
                Ok(None) => continue,
                Ok(Some(found)) => found,
                // Gone since its name was read.
                Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => continue,
                Err(e) => {
                    self.counts.unreadable.add(&path, e);
                    (Sight::Unknown, None)
                }
            };
            return Some(Step { path, sight, proof });
        }
    }
}
