//! What a replica does with what another one has.
//!
//! Each replica changes only itself, and in a conflict only the one whose version loses acts: it keeps its version
//! aside, takes the other, and from then on has both in its vector. Whoever comes to such a vector has the loser kept,
//! so a crash at any point, and any order of meetings, loses nothing.
//!
//! ```text
//!   here older        take it
//!   here newer        nothing: the other takes ours
//!   neither, alike    note that both are in it
//!   neither           the higher rank stays; whoever has the lower one keeps it aside and takes the other
//! ```
//!
//! A replica whose history does not count ([`Standing`](crate::Standing)) takes the other's in the last case, whatever the
//! ranks.
//!
//! First come files and directories to be made or changed, parents before what is in them; then files that have further
//! names; then removals of files, so that what only moved is still there to move; then directories, the deepest first.
//! A file's further names change with it, all at once: whichever is to be another file's, or a file of its own, has to be
//! that before. Only where files swap names in a circle does one change with a file that it is to leave. A directory that is to go but has
//! something in it that nobody removed stays, as an event of this replica. Where a directory and something else want
//! the same path, what the directory has in it is kept aside if it gives way; which of the two that is may depend on
//! who met first, and all come to the same.

mod losses;

use crate::{
    entry::{Author, Digest, Entry, Kind, Node},
    knowledge::Knowledge,
    path::Path,
    version::Relation,
};
use protocol::ServerName;
use std::collections::{BTreeMap, BTreeSet};

/// What a replica knows of its own set: its index.
pub trait Tree {
    /// What is known of a path.
    fn entry(&self, path: &Path) -> Option<Entry>;
    /// All that is there below a directory, in order.
    fn live_below(&self, directory: &Path) -> Vec<Path>;
    /// A file with these contents.
    fn holder(&self, digest: &Digest) -> Option<Path>;
    /// The further names of the file at a path, in order.
    fn names(&self, path: &Path) -> Vec<Path>;
}

/// Where the contents of a file come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// There are none to bring: no file, or one whose contents are here.
    Nothing,
    /// The other replica.
    Fetch,
    /// This file here has the same.
    Copy(Path),
    /// This file here has the same and is to be removed.
    Move(Path),
}

/// One thing to do. Whoever does it makes sure that `was` is still what is there, on the disk too, that its directory
/// is one and that the file that a further name is for is there; if not, the operation is put off: it will be offered
/// again, and nothing is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Where.
    pub path: Path,
    /// What must still be known of it.
    pub was: Option<Entry>,
    /// What shall be known of it afterwards.
    pub entry: Entry,
    /// Keep what was there aside before: it lost.
    pub keep: bool,
    /// Where contents come from.
    pub source: Source,
}

impl Operation {
    /// Nothing changes on the disk.
    pub fn is_note(&self) -> bool {
        self.was.as_ref().and_then(|w| w.node.as_ref()) == self.entry.node.as_ref()
    }

    /// What is there stays the same kind of thing, with all its further names.
    pub fn goes_on(&self) -> bool {
        let kind = |entry: &'_ Entry| entry.node.as_ref().map(|node| node.kind.clone());
        match (self.was.as_ref().and_then(kind), kind(&self.entry)) {
            (Some(Kind::Symlink { .. }), Some(Kind::Symlink { .. })) => true,
            (Some(was @ (Kind::Fifo | Kind::Device { .. })), Some(now)) => was == now,
            (_, now) => matches!(now, Some(Kind::File { .. })),
        }
    }

    /// The file of which this will be a further name.
    fn joins(&self) -> Option<&Path> {
        self.entry.node.as_ref().and_then(Node::further_name_of)
    }

    /// The file of which this was a further name and will not be.
    fn leaves(&self) -> Option<&Path> {
        let was = self.was.as_ref().and_then(|w| w.node.as_ref());
        let file = was.and_then(Node::further_name_of);
        file.filter(|file| Some(*file) != self.joins())
    }

    /// Where that to be removed was moved to.
    fn moved_to(&self) -> Option<&Path> {
        match &self.source {
            Source::Move(to) => Some(to),
            _ => None,
        }
    }

    /// Something that is there goes.
    pub fn removes(&self) -> bool {
        self.entry.node.is_none() && !self.is_note()
    }
}

/// How a conflict ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The version here lost and is kept aside.
    GaveWay,
    /// The version here stays; the other replica gives way.
    Stayed,
    /// Nothing is done: clocks are not to be trusted now, and nothing else decides.
    Undecided,
    /// Both have the same version and not the same contents: a copied or set-back index, or a broken disk.
    Impossible,
}

/// Two versions of a path that know nothing of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Which.
    pub path: Path,
    /// The version here.
    pub here: Entry,
    /// The other.
    pub there: Entry,
    /// What becomes of it.
    pub outcome: Outcome,
}

impl Conflict {
    /// The other's version lost to the one here. The other has still to keep it aside, and until then it counts as neither
    /// taken nor known: nothing may be built on its having given way.
    pub fn stayed(&self) -> bool {
        self.outcome == Outcome::Stayed
    }
}

/// What a run makes of what the other replica offers.
#[derive(Debug, Default)]
pub struct Planner {
    /// Clocks are too far apart: a conflict waits for them.
    pub undecided: bool,
    /// The other's history counts and this one's does not: in each conflict the version here is forgotten, once it is
    /// kept aside.
    pub yields: bool,
    /// What is known here.
    pub known: Knowledge,
    /// Seen so far.
    pub conflicts: Vec<Conflict>,
    groups: BTreeMap<Path, Operation>,
    removals: BTreeMap<Path, Operation>,
    directories: BTreeMap<Path, Operation>,
    /// What can only be once removals and directories are done: further names of files that take the place of
    /// directories, and what takes the place of a file whose further names go.
    after: BTreeMap<Path, Operation>,
}

impl Planner {
    /// What to do now with a batch of the other's entries, sorted by path; removals are put off, and
    /// files with further names.
    pub fn batch(&mut self, tree: &impl Tree, offered: Vec<(Path, Entry)>) -> Vec<Operation> {
        let decided = offered.into_iter().filter_map(|(path, entry)| {
            let operation = self.decide(tree, path, entry)?;
            let was = operation.was.as_ref();
            let leaves = was.is_some_and(Entry::is_directory) && !operation.entry.is_directory();
            if leaves {
                self.directories.insert(operation.path.clone(), operation);
            } else if operation.removes() {
                self.removals.insert(operation.path.clone(), operation);
            } else if operation
                .joins()
                .is_some_and(|file| self.directories.contains_key(file))
            {
                self.after.insert(operation.path.clone(), operation);
            } else if self.waits(tree, &operation) {
                self.groups.insert(operation.path.clone(), operation);
            } else {
                return Some(operation);
            }
            None
        });
        let decided: Vec<_> = decided.collect();
        let placed = decided.into_iter();
        placed
            .map(|operation| self.place(tree, operation))
            .collect()
    }

    /// The other has told all that it knows and does not name this path, of which `here` is known: it goes if the other has
    /// forgotten its removal. What this server made may have lost to something else there before: that is kept aside.
    pub fn unnamed(&mut self, path: Path, here: Entry, there: &Knowledge, own: &ServerName) {
        let Some(entry) = there.removal(&here) else {
            return;
        };
        let all = match here.is_directory() {
            true => &mut self.directories,
            false => &mut self.removals,
        };
        let operation = Operation {
            path: path.clone(),
            keep: !here.is_directory() && here.rank.replica.server == *own,
            was: Some(here),
            entry,
            source: Source::Nothing,
        };
        all.insert(path, operation);
    }

    /// It is a file with further names, or must come after one.
    fn waits(&self, tree: &impl Tree, operation: &Operation) -> bool {
        let waits = |path: &Path| self.groups.contains_key(path);
        operation.joins().is_some_and(waits)
            || operation.path.parent().as_ref().is_some_and(waits)
            || !operation.is_note()
                && operation.was.is_some()
                && !tree.names(&operation.path).is_empty()
    }

    /// Once every batch is done: where a file goes, or becomes something else, those of its further names of which the
    /// other replica does not know are a file of their own.
    pub fn orphans(&mut self, tree: &impl Tree, author: &mut Author, nanos: u64) {
        let others = self.removals.values().chain(self.after.values());
        let going: BTreeMap<_, _> = (self.groups.values().chain(others))
            .map(|operation| (&operation.path, operation))
            .collect();
        let planned = |name: &Path| going.contains_key(name);
        let mut found = Vec::new();
        for (path, operation) in &going {
            let ends = !operation.goes_on() && operation.joins().is_none();
            if let Some(was) = operation.was.as_ref().filter(|_| ends) {
                found.extend(orphans(tree, path, was, planned, author, nanos));
            }
        }
        self.groups
            .extend(found.into_iter().map(|o| (o.path.clone(), o)));
    }

    /// What is to be done about files with further names.
    pub fn groups(&mut self, tree: &impl Tree) -> Vec<Operation> {
        let mut waiting = std::mem::take(&mut self.groups);
        self.put_late(&mut waiting);
        self.ordered(tree, waiting)
    }

    /// What becomes something else cannot take further names along: those that go must be gone before.
    fn put_late(&mut self, waiting: &mut BTreeMap<Path, Operation>) {
        loop {
            let others = self.removals.values().chain(self.after.values());
            let names: BTreeSet<_> = others.filter_map(Operation::leaves).collect();
            let follows = |path: &Path| self.after.contains_key(path);
            let late = |(path, operation): &(&Path, &Operation)| {
                names.contains(*path) && !operation.goes_on()
                    || operation.joins().is_some_and(follows)
                    || path.parent().as_ref().is_some_and(follows)
            };
            let late = waiting.iter().filter(late).map(|(path, _)| path.clone());
            let late: Vec<_> = late.collect();
            if late.is_empty() {
                return;
            }
            let moved = late.iter().filter_map(|path| waiting.remove_entry(path));
            self.after.extend(moved);
        }
    }

    /// Files after those of their names that leave, further names and what is in a directory after that.
    fn ordered(
        &mut self,
        tree: &impl Tree,
        mut waiting: BTreeMap<Path, Operation>,
    ) -> Vec<Operation> {
        let mut leaving: BTreeMap<Path, usize> = BTreeMap::new();
        for file in waiting.values().filter_map(Operation::leaves) {
            *leaving.entry(file.clone()).or_default() += 1;
        }
        let (mut ordered, mut circle) = (Vec::new(), false);
        while !waiting.is_empty() {
            let before = ordered.len();
            for path in waiting.keys().cloned().collect::<Vec<_>>() {
                let Some(operation) = waiting.get(&path) else {
                    continue;
                };
                let waits = |path: &Path| waiting.contains_key(path);
                let held = operation.joins().is_some_and(waits)
                    || path.parent().as_ref().is_some_and(waits)
                    || leaving.get(&path).is_some_and(|names| *names > 0);
                if held && !circle {
                    continue;
                }
                if let Some(names) = operation.leaves().and_then(|file| leaving.get_mut(file)) {
                    *names -= 1;
                }
                ordered.extend(waiting.remove(&path));
            }
            circle = ordered.len() == before;
        }
        let ordered = ordered.into_iter();
        ordered
            .map(|operation| self.place(tree, operation))
            .collect()
    }

    /// The files and directories that the run would remove.
    pub fn removed(&self) -> impl Iterator<Item = &Operation> {
        let directories = self.directories.values().filter(|o| o.removes());
        self.removals.values().chain(directories)
    }

    /// The removals of all but directories, once every batch is done: further names first, lest one that is left for a
    /// moment is taken for a new file.
    pub fn removals(&mut self) -> Vec<Operation> {
        let all = std::mem::take(&mut self.removals).into_values();
        let (mut further, files): (Vec<_>, Vec<_>) = all.partition(|o| o.leaves().is_some());
        further.extend(files);
        further
    }

    /// What becomes of directories that are to go, once the removals are done: the deepest first.
    pub fn directories(
        &mut self,
        tree: &impl Tree,
        author: &mut Author,
        nanos: u64,
    ) -> Vec<Operation> {
        let mut gone = BTreeSet::new();
        let mut operations = Vec::new();
        let all = std::mem::take(&mut self.directories);
        let replaced = all.iter().filter(|(_, o)| !o.removes());
        let replaced: BTreeSet<_> = replaced.map(|(path, _)| path.clone()).collect();
        let displaced = |path: &Path| replaced.iter().any(|other| path.is_below(other));
        for (path, operation) in all.into_iter().rev() {
            let inside: Vec<_> = tree
                .live_below(&path)
                .into_iter()
                .filter(|p| !gone.contains(p))
                .collect();
            if operation.entry.node.is_none() && !inside.is_empty() && !displaced(&path) {
                let was = operation.was;
                let node = was.as_ref().and_then(|w| w.node.clone());
                let entry = author.put_back(&operation.entry, node);
                operations.push(Operation {
                    path,
                    was,
                    entry,
                    keep: false,
                    source: Source::Nothing,
                });
                continue;
            }
            // Something else takes its place: what is in it has none any more.
            for inner in inside.into_iter().rev() {
                let Some(was) = tree.entry(&inner) else {
                    continue;
                };
                let within = |name: &Path| gone.contains(name) || name.is_below(&path);
                operations.extend(orphans(tree, &inner, &was, within, author, nanos));
                let entry = author.change(Some(&was), None, nanos);
                gone.insert(inner.clone());
                operations.push(Operation {
                    path: inner,
                    keep: !was.is_directory(),
                    was: Some(was),
                    entry,
                    source: Source::Nothing,
                });
            }
            gone.insert(path.clone());
            match operation.joins() {
                Some(file) if self.after.contains_key(file) || replaced.contains(file) => {
                    self.after.insert(path, operation);
                }
                _ => operations.push(self.place(tree, operation)),
            }
        }
        let after = std::mem::take(&mut self.after);
        operations.extend(self.ordered(tree, after));
        operations
    }

    /// Which version of a path is to be here.
    fn decide(&mut self, tree: &impl Tree, path: Path, there: Entry) -> Option<Operation> {
        let operation = |was, entry, keep| {
            let (path, source) = (path.clone(), Source::Nothing);
            Some(Operation {
                path,
                was,
                entry,
                keep,
                source,
            })
        };
        let Some(here) = tree.entry(&path) else {
            return match self.known.forgot(&there) {
                true => None,
                false => operation(None, there, false),
            };
        };
        let relation = here.vector.relation(&there.vector);
        let (alike, later) = match (&here.node, &there.node) {
            (Some(here), Some(there)) => (here.is_as(there), there.is_later(here)),
            (here, there) => (here == there, false),
        };
        let mut joined = there.clone();
        joined.vector.join(&here.vector);
        if self.yields && !alike {
            joined.vector.clone_from(&there.vector);
        }
        let outcome = match relation {
            // Else what is in it could never come, and nobody would hear that it was removed.
            Relation::Newer if self.yields && there.is_directory() && !here.is_directory() => {
                Outcome::GaveWay
            }
            Relation::Newer => return None,
            // Something came or went there in the directory.
            Relation::Equal if alike && later => return operation(Some(here), there, false),
            Relation::Equal if alike => return None,
            Relation::Equal => Outcome::Impossible,
            Relation::Older => return operation(Some(here), there, false),
            Relation::Concurrent if alike => {
                joined.rank = joined.rank.max(here.rank.clone());
                if !later {
                    joined.node.clone_from(&here.node);
                }
                return operation(Some(here), joined, false);
            }
            Relation::Concurrent if self.yields => Outcome::GaveWay,
            Relation::Concurrent if self.undecided => Outcome::Undecided,
            Relation::Concurrent if (&here.rank, &here.node) > (&there.rank, &there.node) => {
                Outcome::Stayed
            }
            Relation::Concurrent => Outcome::GaveWay,
        };
        let same = match (&here.node, &there.node) {
            (Some(a), Some(b)) => a.says_the_same(b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            self.conflicts.push(Conflict {
                path: path.clone(),
                here: here.clone(),
                there,
                outcome,
            });
        }
        let keep = !same && here.node.is_some();
        match outcome {
            Outcome::GaveWay => operation(Some(here), joined, keep),
            // The other may have heard of the removal, and forgotten it: it is told again.
            Outcome::Stayed if here.node.is_none() => operation(Some(here.clone()), here, false),
            _ => None,
        }
    }

    /// Where contents come from.
    fn place(&mut self, tree: &impl Tree, mut operation: Operation) -> Operation {
        let Some(node) = &operation.entry.node else {
            return operation;
        };
        if let Kind::File { digest, .. } = &node.kind {
            let has = |entry: &Entry| entry.file().is_some_and(|(_, known)| known == *digest);
            operation.source = if operation.was.as_ref().is_some_and(has) {
                Source::Nothing
            } else {
                match tree.holder(digest) {
                    None => Source::Fetch,
                    // One move only: what moved is not there for another one.
                    Some(path) => match self.removals.get_mut(&path) {
                        Some(removal) if removal.source == Source::Nothing && !removal.keep => {
                            removal.source = Source::Move(operation.path.clone());
                            Source::Move(path)
                        }
                        Some(removal) if matches!(removal.source, Source::Move(_)) => Source::Fetch,
                        Some(_) | None => Source::Copy(path),
                    },
                }
            };
        }
        operation
    }
}

/// The file at `path` goes, or becomes something else: those of its further names that do not leave are a file of their
/// own.
fn orphans(
    tree: &impl Tree,
    path: &Path,
    file: &Entry,
    leaves: impl Fn(&Path) -> bool,
    author: &mut Author,
    nanos: u64,
) -> Vec<Operation> {
    let mut operations: Vec<Operation> = Vec::new();
    for name in tree.names(path).into_iter().filter(|name| !leaves(name)) {
        let (Some(was), Some(file)) = (tree.entry(&name), &file.node) else {
            continue;
        };
        let node = match (operations.first(), was.node.clone()) {
            (Some(first), Some(further)) => Node {
                kind: Kind::HardLink {
                    to: first.path.clone(),
                },
                ..further
            },
            _ => file.clone(),
        };
        operations.push(Operation {
            path: name,
            entry: author.change(Some(&was), Some(node), nanos),
            was: Some(was),
            keep: false,
            source: Source::Copy(path.clone()),
        });
    }
    operations
}
