//! What would be known of the files here by now, if a dry run did what it plans: what it plans with the next server is
//! planned against that.

use filesync::{Digest, Entry, Node, Operation, Path, Tree};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};
use store::Set;

/// Nothing, if it is no dry run.
#[derive(Debug, Default)]
pub struct Foretold {
    /// Of each path what was known before, and what would be known.
    paths: BTreeMap<Path, (Option<Entry>, Entry)>,
    /// Of files the paths that would have become further names of them, and may have become something else since.
    names: BTreeMap<Path, BTreeSet<Path>>,
    /// Directories that would stay, and what for.
    held: BTreeMap<Path, Path>,
}

impl Foretold {
    /// These would have been carried out.
    pub fn note(&mut self, operations: Vec<Operation>) {
        for Operation {
            path, was, entry, ..
        } in operations
        {
            let parent = path.parent().and_then(|parent| self.paths.get(&parent));
            if entry.node.is_some() && parent.is_some_and(|(_, parent)| !parent.is_directory()) {
                continue; // it would be put off
            }
            if let Some(file) = further_name_of(&entry) {
                let names = self.names.entry(file.clone()).or_default();
                names.insert(path.clone());
            }
            let told = self.paths.entry(path).or_insert((was, entry.clone()));
            told.1 = entry;
        }
    }

    /// What would be known.
    pub fn entries(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.paths.iter().map(|(path, (_, entry))| (path, entry))
    }

    /// So many paths would have something there, if so many have now.
    pub fn live(&self, live: u64) -> u64 {
        self.paths.values().fold(live, |live, (was, entry)| {
            let was = was.as_ref().and_then(|was| was.node.as_ref());
            let live = live + u64::from(entry.node.is_some());
            live.saturating_sub(u64::from(was.is_some()))
        })
    }

    /// Finds out which directories would stay for what is left out of the set.
    pub fn look(&mut self, set: &Set) {
        let gone = self.paths.iter().filter(|(_, (was, entry))| {
            was.as_ref().is_some_and(Entry::is_directory) && entry.node.is_none()
        });
        let held = gone.filter_map(|(path, _)| Some((path.clone(), store::held_by(set, path)?)));
        self.held = held.collect();
    }

    /// What would come of it all: each path that would not be what it is, once.
    pub fn changes(&self) -> impl Iterator<Item = String> {
        self.paths.iter().filter_map(|(path, (was, entry))| {
            let was = was.as_ref().and_then(|was| was.node.as_ref());
            let what = match (was, entry.node.as_ref()) {
                (was, now) if was == now => return None,
                // Its time follows from what is told.
                (Some(was), Some(now)) if was.is_as(now) => return None,
                (None, _) => "made",
                (_, None) => "removed",
                (Some(_), Some(_)) => "changed",
            };
            Some(match self.held.get(path) {
                Some(held) => {
                    format!("{path}: removed elsewhere and would stay here: {held} is left out")
                }
                None => format!("would be {what}: {path}"),
            })
        })
    }

    /// An index, as it would be.
    pub fn of<'a, T>(&'a self, index: &'a T) -> Over<'a, T> {
        Over {
            foretold: self,
            index,
        }
    }
}

/// See [`Foretold::of`].
pub struct Over<'a, T> {
    foretold: &'a Foretold,
    index: &'a T,
}

impl<T: Tree> Over<'_, T> {
    /// What the index has of these, and what would be there instead.
    fn with(&self, index: Vec<Path>, foretold: impl Iterator<Item = Path>) -> Vec<Path> {
        let told = |path: &Path| self.foretold.paths.contains_key(path);
        let index = index.into_iter().filter(|path| !told(path));
        let all: BTreeSet<_> = index.chain(foretold).collect();
        all.into_iter().collect()
    }
}

impl<T: Tree> Tree for Over<'_, T> {
    fn entry(&self, path: &Path) -> Option<Entry> {
        match self.foretold.paths.get(path) {
            Some((_, entry)) => Some(entry.clone()),
            None => self.index.entry(path),
        }
    }

    fn live_below(&self, directory: &Path) -> Vec<Path> {
        let after = (Bound::Excluded(directory), Bound::Unbounded);
        let below = self.foretold.paths.range::<Path, _>(after);
        let below = below.take_while(|(path, _)| path.is_below(directory));
        let live = below.filter(|(_, (_, entry))| entry.node.is_some());
        self.with(
            self.index.live_below(directory),
            live.map(|(path, _)| path.clone()),
        )
    }

    fn holder(&self, digest: &Digest) -> Option<Path> {
        self.index.holder(digest)
    }

    fn names(&self, path: &Path) -> Vec<Path> {
        let names = self.foretold.names.get(path).into_iter().flatten();
        let names = names.filter(|name| {
            let told = self.foretold.paths.get(*name);
            told.and_then(|(_, entry)| further_name_of(entry)) == Some(path)
        });
        self.with(self.index.names(path), names.cloned())
    }
}

fn further_name_of(entry: &Entry) -> Option<&Path> {
    entry.node.as_ref().and_then(Node::further_name_of)
}
