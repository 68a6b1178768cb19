//! Operations carried out, so that each path is at every moment as it was or as it shall be.
//!
//! ```text
//!   check     the index and the disk are still what the operation was made for
//!   keep      the loser, durable
//!   stage     what shall be there, whole, with all it has
//!   barrier   all of that is on the disk
//!   intents   in the index: what happens now is nobody's change
//!   rename
//!   barrier
//!   index     it is there
//! ```
//!
//! That is done for many operations at once, and the second barrier of some is the first one of the next. While a
//! barrier is waited for, those before are renamed and those after it checked and staged: that they are still right is
//! seen once more at the rename.

mod given_times;
mod place;
mod ready;

use crate::{
    dir::{Dir, Name, Places, is_no_way},
    error::{At, Error, Listing},
    index::{Batch, Index, Reader},
    leftover,
    look::signed,
    rows::Row,
    set::Set,
    sight::{self, Found},
    stage::{Contents, Temp},
};
use filesync::{Entry, Kind, Node, Operation, Path, Proof, Stat};
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    rc::Rc,
    sync::Arc,
    thread, vec,
};

/// So many operations have one barrier,
const TOGETHER: usize = 4096;
/// or those that bring so many bytes.
const BYTES: u64 = 64 << 20;
/// A file of so many bytes is not copied for the sake of its metadata.
const LARGE: u64 = 1 << 20;
/// So many are staged side by side.
const STAGED: usize = 256;

/// What came of a run's operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Done.
    pub done: u64,
    /// Where losers were kept aside.
    pub kept: BTreeSet<Path>,
    /// What was not any more what the operation was made for; it will be offered again.
    pub put_off: Listing,
    /// What the system did not allow.
    pub failed: Listing,
    /// Directories that are removed and stay for what is left out of the set.
    pub left: Listing,
}

impl Applied {
    /// All was done.
    pub fn is_complete(&self) -> bool {
        self.put_off.count == 0 && self.failed.count == 0
    }
}

/// Why an operation is not carried out.
enum Refusal {
    PutOff(&'static str),
    /// This is in the directory that is to go.
    Held(Path),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What becomes of the contents that are at a path.
#[derive(Clone, Copy)]
enum Contained {
    /// They are there afterwards, or at another path: it is early enough to find out later that somebody changed them.
    Stay,
    /// This is the last moment.
    Go,
}

/// What is left to do once all is staged.
enum Action {
    Note,
    /// The contents of a small file that is to be staged, in its directory if that is.
    Make(Vec<u8>, Option<Arc<Dir>>),
    Put(Temp),
    /// It comes with its directory.
    Within,
    Move(Path, Stat),
    Link(Path),
    /// What is there stays and gets other metadata.
    Give,
    Remove,
}

struct Ready {
    operation: Operation,
    /// What is there now.
    before: Option<Stat>,
    action: Action,
    /// Further names of what is there now, which are to be names of what comes.
    links: Vec<(Path, Entry)>,
}

impl Ready {
    /// What the index is to be told before it happens.
    fn intents(&self) -> impl Iterator<Item = (&Path, &Entry, bool)> {
        let acts = !matches!(self.action, Action::Note);
        let own = (&self.operation.path, &self.operation.entry, false);
        let links = self.links.iter().map(|(path, entry)| (path, entry, true));
        std::iter::once(own).chain(links).filter(move |_| acts)
    }
}

/// What is at a path now, and a proof if nothing needs to be read for it.
type Done = (Path, Entry, Option<Proof>);

/// Into the index: what was done, and what is intended, of a further name only if it has not become something else and
/// is not about to.
fn note(
    batch: &mut Batch<'_>,
    done: &[Done],
    intents: &[(&Path, &Entry, bool)],
    now: u64,
) -> Result<(), Error> {
    for (path, entry, proof) in done {
        batch.note(path, entry, *proof, now)?;
    }
    for (path, entry, further) in intents {
        if *further {
            let stays = batch.entry(path)?.as_ref() == Some(*entry);
            if !stays || batch.intent(path)?.is_some_and(|other| other != **entry) {
                continue;
            }
        }
        batch.intend(path, entry)?;
    }
    Ok(())
}

struct Run<'a> {
    set: &'a Set,
    index: &'a Index,
    /// As it was after the last commit.
    reader: Reader,
    places: Places,
    /// New directories that are just made ready, each in the one before it.
    fresh: Vec<(Path, Arc<Dir>)>,
    /// Directories that were left over, and of which the index does not know yet.
    left: BTreeSet<Path>,
    /// New directories that do not come, nor what was made ready in them.
    lost: Vec<Path>,
    /// Still to be made ready,
    operations: vec::IntoIter<Operation>,
    /// and nothing comes after them.
    over: bool,
    contents: &'a mut dyn Contents,
    now: u64,
    applied: Applied,
    /// Directories in which something came or went, and the times that they are to have in the end.
    times: BTreeMap<Path, Option<i128>>,
    /// Done on the disk and not in the index.
    done: Vec<Done>,
    /// Something was written since the last barrier.
    dirty: bool,
}

/// Carries out `operations`, in order, and then what else `contents` has. What cannot be done is told and the rest goes
/// on; an error ends the run, and the next look finds out how far it got.
pub fn apply(
    set: &Set,
    index: &Index,
    operations: Vec<Operation>,
    contents: &mut dyn Contents,
    now: u64,
) -> Result<Applied, Error> {
    apply_by(TOGETHER, set, index, operations, contents, now)
}

/// Likewise, with so many operations to a barrier.
pub fn apply_by(
    together: usize,
    set: &Set,
    index: &Index,
    operations: Vec<Operation>,
    contents: &mut dyn Contents,
    now: u64,
) -> Result<Applied, Error> {
    let applied = Applied::default();
    let mut run = Run {
        set,
        index,
        reader: index.reader()?,
        places: Places::default(),
        fresh: Vec::new(),
        left: BTreeSet::new(),
        lost: Vec::new(),
        operations: operations.into_iter(),
        over: false,
        contents,
        now,
        applied,
        times: BTreeMap::new(),
        done: Vec::new(),
        dirty: false,
    };
    let mut staged = run.make_ready(together);
    let mut intended = Vec::new();
    while !staged.is_empty() || !intended.is_empty() || !run.over {
        // While what is staged goes to the disk, what did so before is put in place, and the next is made ready.
        let done = std::mem::take(&mut run.done);
        let next = run.barrier(done, &staged, |run| {
            run.carry_out_all(intended);
            run.make_ready(together)
        })?;
        intended = staged;
        staged = next;
    }
    run.give_times();
    let done = std::mem::take(&mut run.done);
    run.barrier(done, &[], |_| ())?;
    Ok(run.applied)
}

impl Run<'_> {
    fn next(&mut self) -> Option<Operation> {
        let next = self.operations.next();
        if next.is_some() || self.over {
            return next;
        }
        self.operations = self.contents.more().into_iter();
        self.over = self.operations.len() == 0;
        self.operations.next()
    }

    fn refuse(&mut self, path: &Path, refusal: Refusal) {
        match refusal {
            Refusal::PutOff(why) => self.applied.put_off.add(path, why),
            Refusal::Held(by) => {
                let why = format!("{by} is in it");
                self.applied.put_off.add(path, why);
            }
            Refusal::Failed(error) => self.applied.failed.add(path, error),
        }
    }

    fn carry_out_all(&mut self, intended: Vec<Ready>) {
        self.places.forget();
        for one in intended {
            let path = one.operation.path.clone();
            match self.carry_out(one) {
                Ok((entry, proof)) => self.done.push((path, entry, proof)),
                Err(refusal) => self.refuse(&path, refusal),
            }
        }
    }

    /// All that was written up to now is on the disk when this returns; then in the index, too, what was `done` before,
    /// and that `next` is to be done. `meanwhile` was done beside it.
    fn barrier<T>(
        &mut self,
        done: Vec<Done>,
        next: &[Ready],
        meanwhile: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Error> {
        self.places.forget();
        let dirty = std::mem::take(&mut self.dirty);
        let intents: Vec<_> = next.iter().flat_map(Ready::intents).collect();
        let changes = !done.is_empty() || !intents.is_empty();
        self.applied.done += done.len() as u64;
        let (set, index, now) = (self.set, self.index, self.now);
        let settle = || {
            if dirty {
                set.root.sync_all().at("sync", &set.name)?;
            }
            match changes {
                true => index.write(|batch| note(batch, &done, &intents, now)),
                false => Ok(()),
            }
        };
        let (settled, value) = if dirty || changes {
            thread::scope(|scope| {
                let settled = scope.spawn(settle);
                let value = meanwhile(self);
                (settled.join(), value)
            })
        } else {
            (Ok(Ok(())), meanwhile(self))
        };
        let died = |_| {
            let died = io::Error::other("the thread that waits for the disk died");
            Err(died).at("sync", &set.name)
        };
        settled.unwrap_or_else(died)?;
        self.reader = self.index.reader()?;
        Ok(value)
    }

    /// The directory that a path is in, and its name there.
    fn at<'p>(&self, path: &'p Path) -> io::Result<(Rc<Dir>, Name<'p>)> {
        self.places.of(&self.set.root, path)
    }

    /// What is at a path, if it is what the index says; `moved`: or nothing.
    fn standing(
        &self,
        path: &Path,
        row: Option<&Row>,
        moved: bool,
        contents: Contained,
    ) -> Result<Option<Stat>, Refusal> {
        let known = row.and_then(|r| r.entry.node.as_ref());
        let otherwise = Refusal::PutOff("something else is there by now");
        let (dir, name) = match self.at(path) {
            Err(e) if is_no_way(&e) && (known.is_none() || moved) => return Ok(None),
            Err(e) if is_no_way(&e) => return Err(otherwise),
            other => other.at("open the directory of", path)?,
        };
        let stat = dir
            .stat_of(name)
            .at("stat", path)?
            .map(|raw| sight::stat(&raw));
        let (known, stat) = match (known, stat) {
            (None, None) => return Ok(None),
            (Some(_), None) if moved => return Ok(None),
            (None, Some(stat)) if self.is_left(row, &dir, name)? => return Ok(Some(stat)),
            (Some(known), Some(stat)) => (known, stat),
            (None, Some(_)) | (Some(_), None) => return Err(otherwise),
        };
        if let Kind::HardLink { to } = &known.kind {
            let first = self.stat(to).at("stat", to)?;
            let one = first.is_some_and(|first| same_inode(&first, &stat));
            return if one { Ok(Some(stat)) } else { Err(otherwise) };
        }
        if row
            .and_then(|r| r.proof)
            .is_some_and(|proof| match contents {
                Contained::Stay => proof.serves(&stat, signed(self.now)),
                Contained::Go => proof.holds(&stat),
            })
        {
            return Ok(Some(stat));
        }
        match sight::see(&dir, name).at("read", path)? {
            Found::Node(node, stat) if self.set.times.is(&node, known) => Ok(Some(stat)),
            Found::Busy | Found::Growing(_) => Err(Refusal::PutOff("it changes while it is read")),
            Found::Node(..) | Found::Socket | Found::Nothing => Err(otherwise),
        }
    }

    /// Whether the directory at a path was left over by an earlier run.
    fn is_left(&self, row: Option<&Row>, dir: &Dir, name: Name) -> Result<bool, Refusal> {
        match (row, dir.child(name)) {
            (Some(row), Ok(directory)) => {
                Ok(leftover::is_left(row, &directory).at("stat", self.set.name.as_str())?)
            }
            _ => Ok(false),
        }
    }

    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        let found = self.places.stat(&self.set.root, path)?;
        Ok(found.map(|raw| sight::stat(&raw)))
    }
}

/// A directory, or a large file with the same contents, gets what it is to have where it is; anything else at once with
/// a copy of its contents.
fn stays(was: &Node, node: &Node) -> bool {
    match node.kind {
        Kind::Directory => was.is_directory(),
        Kind::File { size, .. } => size >= LARGE && was.kind == node.kind,
        _ => false,
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn same_inode(a: &Stat, b: &Stat) -> bool {
    (a.device, a.inode) == (b.device, b.inode)
}
