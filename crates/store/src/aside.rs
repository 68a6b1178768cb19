//! What lost a conflict, kept outside of the set: each version once, with its contents and all it had.

use crate::{
    calls::Calls,
    contents,
    dir::{Dir, Name},
    error::{At, Error},
    rows::{decode, encode},
};
use filesync::{Kind, Node, Path};
use rustix::fs::{RenameFlags, fsync};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Write},
};

/// Longer than any record.
const RECORD_MAX: u64 = 256 * 1024;
const RECORD: &str = ".record";
const UNFINISHED: &str = ".new";

/// One version that lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Where it was.
    pub path: Path,
    /// What it was.
    pub node: Node,
    /// When it gave way, in nanoseconds since 1970.
    pub at: u64,
    /// To what.
    pub why: String,
}

/// Writes contents into an empty file.
type Fill<'a> = dyn Fn(&File) -> io::Result<()> + 'a;

/// See the module.
pub struct Aside(Dir);

impl Aside {
    /// Takes the directory over, without what was not finished.
    pub(crate) fn open(dir: Dir) -> io::Result<Self> {
        for name in dir.names()? {
            if name.ends_with(UNFINISHED.as_bytes())
                && let Some(name) = Name::new(&name)
            {
                dir.unlink(name)?;
            }
        }
        Ok(Self(dir))
    }

    /// The directory as it is, for who only reads, while others may be at work on it.
    pub fn read(path: &std::path::Path) -> io::Result<Self> {
        Dir::root(path, Calls::unlimited()).map(Self)
    }

    /// Keeps a version, with its contents if it is a file. It is on the disk when this returns.
    pub(crate) fn keep(&self, kept: &Kept, contents: Option<&File>) -> Result<(), Error> {
        let copy = |file: &File| {
            contents.map_or(Ok(()), |from| contents::copy(from, file, self.0.calls()))
        };
        self.keep_with(kept, contents.is_some().then_some(&copy))
    }

    /// Keeps a version of a small file that is not here.
    pub fn keep_text(&self, kept: &Kept, text: &[u8]) -> Result<(), Error> {
        self.keep_with(kept, Some(&|mut file: &File| file.write_all(text)))
    }

    fn keep_with(&self, kept: &Kept, fill: Option<&Fill<'_>>) -> Result<(), Error> {
        let identity = encode(&(&kept.path, &kept.node))?;
        let id = blake3::hash(&identity).to_hex();
        let record = format!("{id}{RECORD}");
        let keep = || -> io::Result<()> {
            let dir = &self.0;
            if dir.stat_of(Name::made(&record))?.is_some() {
                return Ok(()); // lost before, in the same form
            }
            if let Some(fill) = fill {
                self.add(&id, |file| {
                    fill(file)?;
                    let (size, digest) = contents::digest(file)?;
                    match kept.node.kind == (Kind::File { size, digest }) {
                        true => Ok(()),
                        false => Err(io::Error::other("it changed meanwhile")),
                    }
                })?;
            }
            let bytes = encode(kept).map_err(io::Error::other)?;
            self.add(&record, |mut file| {
                dir.calls().one("write")?;
                file.write_all(&bytes)
            })?;
            dir.sync()
        };
        keep().at("keep aside", &kept.path)
    }

    fn add(&self, to: &str, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let unfinished = format!("{to}{UNFINISHED}");
        let unfinished = Name::made(&unfinished);
        if self.0.stat_of(unfinished)?.is_some() {
            self.0.unlink(unfinished)?;
        }
        let file = self.0.create(unfinished)?;
        fill(&file)?;
        self.0.calls().one("fsync")?;
        fsync(&file)?;
        self.0
            .rename(unfinished, &self.0, Name::made(to), RenameFlags::empty())
    }

    /// How many there are.
    pub fn count(&self) -> io::Result<u64> {
        let names = self.0.names()?;
        Ok(names
            .iter()
            .filter(|n| n.ends_with(RECORD.as_bytes()))
            .count() as u64)
    }

    /// The last ones, at most so many, youngest first, each with the name to ask for it.
    pub fn list(&self, most: usize) -> Result<Vec<(String, Kept)>, Error> {
        let mut last = BTreeSet::new();
        for name in self.0.names().at("list", "what is kept aside")? {
            let Some(id) = name.strip_suffix(RECORD.as_bytes()) else {
                continue;
            };
            let id = String::from_utf8_lossy(id).into_owned();
            last.insert((self.kept(&id)?.at, id));
            if last.len() > most {
                last.pop_first();
            }
        }
        let youngest = last.into_iter().rev();
        youngest
            .map(|(_, id)| Ok((id.clone(), self.kept(&id)?)))
            .collect()
    }

    /// One of them.
    pub fn kept(&self, id: &str) -> Result<Kept, Error> {
        let record = format!("{id}{RECORD}");
        let mut bytes = Vec::new();
        self.given(&record)
            .and_then(|file| file.take(RECORD_MAX).read_to_end(&mut bytes))
            .at("read", &record)?;
        decode(&bytes)
    }

    /// Its contents, if it was a file.
    pub fn contents(&self, id: &str) -> io::Result<File> {
        self.given(id)
    }

    /// Somebody typed this.
    fn given(&self, name: &str) -> io::Result<File> {
        let name = Name::new(name.as_bytes());
        self.0.open(name.ok_or(io::ErrorKind::InvalidInput)?)
    }
}
