//! A set: the root that is kept alike, the stage in it and what is kept aside.

use crate::{
    aside::Aside,
    calls::Calls,
    dir::{Dir, Name, Places, own_directory},
    error::{At, Error},
    index::Index,
    leftover::{self, LeftOut},
    stage,
    times::Times,
};
use filesync::{
    Path, Replica,
    guard::{self, Doubt, Identity, Root},
};
use rustix::{
    fs::{Mode, RenameFlags, fchmod, fsync},
    process::geteuid,
};
use std::{
    fs::File,
    io::{self, Read, Write},
    sync::Arc,
};

/// Directory in the root where files are made ready.
pub const STAGE: &str = ".standin-stage";
/// File in the root by which it is recognised.
pub const MARKER: &str = ".standin-set";

/// What standin has in a root. Two sets may have files of one directory, each with its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Directory where files are made ready.
    pub stage: &'static str,
    /// File by which the root is recognised.
    pub marker: &'static str,
}

impl Own {
    /// Of most sets.
    pub const FILES: Self = Self {
        stage: STAGE,
        marker: MARKER,
    };
    /// Of account files.
    pub const ACCOUNTS: Self = Self {
        stage: ".standin-accounts-stage",
        marker: ".standin-accounts-set",
    };
}

/// Longer than any marker.
const MARKER_MAX: u64 = 4096;

/// Whether a path is standin's own and part of no set.
pub fn reserved(path: &Path) -> bool {
    let first = path.as_bytes().split(|b| *b == b'/').next();
    [Own::FILES, Own::ACCOUNTS]
        .iter()
        .flat_map(|own| [own.stage, own.marker])
        .any(|own| first == Some(own.as_bytes()))
}

/// What is done about a root that is not the one that the index knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopt {
    /// Nothing is done.
    No,
    /// It becomes the set's: an operator said so.
    Yes,
    /// The same, but for what is written in it: somebody wants to know what would come of it.
    Try,
}

/// See the module. To be opened for each run: it holds on to the file system that is mounted now.
pub struct Set {
    /// Where everything is.
    pub(crate) root: Dir,
    /// Beneath it, for standin alone.
    pub(crate) stage: Dir,
    /// As an operator knows it.
    pub(crate) name: String,
    /// As it is now.
    pub(crate) seen: Root,
    /// As a directory.
    pub(crate) identity: Identity,
    /// It is another directory than the index knows.
    pub(crate) moved: bool,
    /// What modification times can be held there.
    pub times: Times,
    /// A directory in which a name comes or goes has other times afterwards.
    pub(crate) tells_of_names: bool,
    /// What lost.
    pub aside: Aside,
    /// What in it is no part of the set. A look is told that, too.
    pub left_out: Box<dyn LeftOut>,
}

impl Set {
    /// Opens the set at `root`, with the directory `state` for what belongs to it. Nothing is touched at a root that
    /// is not the one that `index` knows; a new index knows none. One that was put there from elsewhere is
    /// [`Doubt::Replaced`](guard::Doubt::Replaced), and needs a new index.
    pub fn open(
        root: &std::path::Path,
        state: &std::path::Path,
        index: &Index,
        adopt: Adopt,
        calls: Arc<Calls>,
    ) -> Result<Self, Error> {
        Self::open_with(Own::FILES, root, state, index, adopt, calls)
    }

    /// The same, with other names of its own.
    pub fn open_with(
        own: Own,
        root: &std::path::Path,
        state: &std::path::Path,
        index: &Index,
        adopt: Adopt,
        calls: Arc<Calls>,
    ) -> Result<Self, Error> {
        let name = root.display().to_string();
        let dir = Dir::root(root, Arc::clone(&calls)).at("open", &name)?;
        let known = index.state()?;
        let mut seen = see(&dir, own, &name)?;
        let identity = dir.identity().at("find the file system of", &name)?;
        let (known_identity, mut moved) = (index.identity()?, false);
        if let Some(root) = &known.root {
            let doubt = |doubt| {
                let root = name.clone();
                Err(Error::Root { root, doubt })
            };
            moved = known_identity.is_some_and(|known| known != identity);
            // Another device number is no other file system.
            let root = Root {
                device: seen.device,
                ..root.clone()
            };
            match guard::recognise(&root, &seen, 0, 0) {
                // With the index it came out of one backup, or the look will tell.
                Ok(()) if moved && !index.is_restored()? => return doubt(Doubt::Replaced),
                Ok(()) => {}
                Err(_) if adopt != Adopt::No => return doubt(Doubt::Replaced),
                Err(why) => return doubt(why),
            }
        }
        let stage = open_stage(&dir, own).at("prepare the stage in", &name)?;
        if known.root.is_none() {
            seen.marker = Some(known.replica.clone());
            if adopt != Adopt::Try {
                write_marker(&dir, &stage, own, &known.replica).at("write the marker in", &name)?;
            }
        }
        if known.root.as_ref() != Some(&seen) {
            index.write(|batch| {
                batch.state.root = Some(seen.clone());
                Ok(())
            })?;
        }
        let aside = state.join("aside");
        let shown = aside.display().to_string();
        let aside = own_directory(&aside, calls)
            .and_then(Aside::open)
            .at("open", &shown)?;
        Ok(Self {
            times: Times::probe(&stage).at("find the file system of", &name)?,
            tells_of_names: dir.tells_of_names().at("find the file system of", &name)?,
            root: dir,
            stage,
            name,
            seen,
            identity,
            moved,
            aside,
            left_out: Box::new(leftover::Nothing),
        })
    }

    /// How a root looks, with nothing touched and no index asked.
    pub fn glimpse(own: Own, root: &std::path::Path) -> Result<Root, Error> {
        let name = root.display().to_string();
        let dir = Dir::root(root, Calls::unlimited()).at("open", &name)?;
        see(&dir, own, &name)
    }

    /// Its root.
    pub fn dir(&self) -> &Dir {
        &self.root
    }

    /// How its root looked when it was opened.
    pub fn root(&self) -> &Root {
        &self.seen
    }

    /// A regular file of the set, to be read.
    pub fn read(&self, path: &Path) -> io::Result<File> {
        let (dir, name) = self.root.place(path)?;
        dir.open(name)
    }

    /// The same for many files, soon one after another.
    pub fn opener(&self) -> Opener<'_> {
        Opener {
            root: &self.root,
            places: Places::default(),
        }
    }
}

/// Opens files of a set.
pub struct Opener<'a> {
    root: &'a Dir,
    places: Places,
}

impl Opener<'_> {
    /// A regular file, to be read.
    pub fn read(&self, path: &Path) -> io::Result<File> {
        let (dir, name) = self.places.of(self.root, path)?;
        dir.open(name)
    }
}

fn see(dir: &Dir, own: Own, name: &str) -> Result<Root, Error> {
    Ok(Root {
        marker: read_marker(dir, own).at("read the marker in", &name)?,
        device: dir.stat().at("stat", &name)?.st_dev,
    })
}

/// Opens the stage, made if need be and swept: what a former run left there is of no use, but for large files that were
/// on their way.
fn open_stage(root: &Dir, own: Own) -> io::Result<Dir> {
    let name = Name::made(own.stage);
    if root.stat_of(name)?.is_none() {
        root.create_directory(name)?;
    }
    let stage = root.child(name)?;
    if stage.stat()?.st_uid != geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "{} belongs to somebody else",
            own.stage
        )));
    }
    fchmod(&stage, Mode::RWXU)?;
    for left in stage.names()? {
        let Some(name) = Name::new(&left) else {
            continue;
        };
        if stage::is_tree(&left) {
            stage::discard_all(&stage, name)?;
            continue;
        }
        if stage::leave(&stage, &left)? {
            continue;
        }
        let directory = stage.stat_of(name)?.is_some_and(|s| {
            rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory
        });
        match directory {
            // Somebody put something in it just before it was swapped out: it stays, in nobody's way.
            true => drop(stage.remove_directory(name)),
            false => stage.unlink(name)?,
        }
    }
    Ok(stage)
}

/// The replica named in the marker; none if there is no marker, or none that names one.
fn read_marker(root: &Dir, own: Own) -> io::Result<Option<Replica>> {
    let name = Name::made(own.marker);
    if root.stat_of(name)?.is_none() {
        return Ok(None);
    }
    let mut text = Vec::new();
    root.open(name)?.take(MARKER_MAX).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.starts_with('#'));
    Ok(line.and_then(|line| {
        let (server, incarnation) = line.split_once(' ')?;
        Some(Replica {
            server: server.parse().ok()?,
            incarnation: u64::from_str_radix(incarnation, 16).ok()?,
        })
    }))
}

fn write_marker(root: &Dir, stage: &Dir, own: Own, replica: &Replica) -> io::Result<()> {
    let name = Name::made(own.marker);
    let mut file = stage.create(name)?;
    writeln!(
        file,
        "# standin: this directory is kept alike with other servers. Do not copy this file.\n{} {:x}",
        replica.server, replica.incarnation
    )?;
    fsync(&file)?;
    stage.rename(name, root, name, RenameFlags::empty())?;
    root.sync()
}
