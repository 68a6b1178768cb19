//! Operations checked against what is here, and what they bring made ready.
//!
//! A new directory is made ready with what comes in it: one rename brings all of it.

use super::{Action, BYTES, Contained, Ready, Refusal, Run, STAGED, stays};
use crate::{
    aside::Kept,
    dir::{Dir, Name},
    error::{At, Error},
    set::{Set, reserved},
    sight::{self, Found},
    stage::{self, Temp},
    threads,
};
use filesync::{Entry, Kind, Node, Operation, Path, Source, Stat};
use std::{fs::File, sync::Arc};

/// So deep are directories made ready in one another; each is held open.
const DEPTH: usize = 32;

impl Run<'_> {
    /// The next operations, checked, with what they bring staged.
    pub(super) fn make_ready(&mut self, together: usize) -> Vec<Ready> {
        let (mut ready, mut bytes) = (Vec::new(), 0);
        self.places.forget();
        self.fresh.clear(); // what comes later must not come with it
        while ready.len() < together && bytes < BYTES {
            let mut checked = Vec::new();
            let mut count = 0;
            while count < STAGED.min(together - ready.len()) && bytes < BYTES {
                let Some(operation) = self.next() else {
                    break;
                };
                count += 1;
                let path = operation.path.clone();
                let size = operation.entry.file().map_or(0, |(size, _)| size);
                match self.prepare(operation) {
                    Ok(one) => {
                        bytes = bytes.saturating_add(size);
                        checked.push(one);
                    }
                    Err(refusal) => self.refuse(&path, refusal),
                }
            }
            if count == 0 {
                break;
            }
            let set = self.set;
            let staged = threads::map(checked, |mut one| {
                let made = make_small(set, &mut one);
                (one, made)
            });
            for (one, made) in staged {
                match made {
                    Ok(()) => ready.push(one),
                    Err(e) => self.spoil(one, e),
                }
            }
        }
        ready
    }

    /// A small file could not be made ready.
    fn spoil(&mut self, one: Ready, error: Error) {
        let path = one.operation.path;
        if let Action::Make(_, Some(dir)) = one.action {
            self.discard(&dir, &path);
        }
        self.refuse(&path, Refusal::Failed(error));
    }

    /// What is half done must not come with its directory.
    fn discard(&mut self, dir: &Dir, path: &Path) {
        if stage::discard(dir, Name::last(path)).is_err() {
            self.lost.extend(path.parent());
        }
    }

    /// Checks an operation and makes ready what it brings.
    fn prepare(&mut self, operation: Operation) -> Result<Ready, Refusal> {
        let path = &operation.path;
        if reserved(path) {
            return Err(Refusal::PutOff("the name is standin's own"));
        }
        let row = self.reader.row(path)?;
        if row.as_ref().map(|r| &r.entry) != operation.was.as_ref() {
            return Err(Refusal::PutOff("the index knows something else by now"));
        }
        let moved = matches!(operation.source, Source::Move(_)) && operation.entry.node.is_none();
        let was = operation.was.as_ref().and_then(|w| w.node.as_ref());
        let contents = match &operation.entry.node {
            _ if operation.is_note() || moved => Contained::Stay,
            Some(node) if was.is_some_and(|was| stays(was, node)) => Contained::Stay,
            _ => Contained::Go,
        };
        let within = match was {
            None => self.within(path),
            Some(_) => None,
        };
        let before = match within {
            Some(_) => None,
            None => self.standing(path, row.as_ref(), moved, contents)?,
        };
        if operation.keep {
            self.keep(&operation)?;
        }
        let mut links = Vec::new();
        let action = match &operation.entry.node {
            _ if operation.is_note() => Action::Note,
            None => Action::Remove,
            Some(Node {
                kind: Kind::HardLink { to },
                ..
            }) => {
                // It may have had names of its own, of which not all are in the same batch.
                links = self.links(path)?;
                Action::Link(to.clone())
            }
            Some(node) if was.is_some_and(|was| stays(was, node)) => Action::Give,
            // It was left over.
            Some(node) if node.is_directory() && was.is_none() && before.is_some() => Action::Give,
            Some(node) => match self.movable(&operation, node, before)? {
                Some((from, stat)) => Action::Move(from, stat),
                None => {
                    if operation.goes_on() {
                        links = self.links(path)?;
                    }
                    self.dirty = true;
                    self.stage(&operation, node, within)?
                }
            },
        };
        Ok(Ready {
            operation,
            before,
            action,
            links,
        })
    }

    /// The directory that is made ready for what is in it, this path too.
    fn within(&mut self, path: &Path) -> Option<Arc<Dir>> {
        let parent = path.parent()?;
        while let Some((fresh, dir)) = self.fresh.last() {
            if *fresh == parent {
                return Some(Arc::clone(dir));
            }
            if parent.is_below(fresh) {
                return None;
            }
            self.fresh.pop();
        }
        None
    }

    /// Makes ready what `operation` brings, a small file but for its last steps.
    fn stage(
        &mut self,
        operation: &Operation,
        node: &Node,
        within: Option<Arc<Dir>>,
    ) -> Result<Action, Error> {
        let (path, stage, times) = (&operation.path, &self.set.stage, &self.set.times);
        let new = operation.was.as_ref().is_none_or(|w| w.node.is_none());
        if node.is_directory() && new {
            let (action, dir) = match within {
                Some(dir) => {
                    let name = Name::last(path);
                    let made =
                        stage::make_other(&dir, times, name, node).and_then(|()| dir.child(name));
                    if made.is_err() {
                        self.discard(&dir, path);
                    }
                    (Action::Within, made)
                }
                None => {
                    let temp = Temp::tree().at("name", path)?;
                    let made = stage::make_other(stage, times, temp.name(), node);
                    let made = made.and_then(|()| stage.child(temp.name()));
                    if made.is_err() {
                        let _ = temp.discard(stage); // the next run sweeps
                    }
                    (Action::Put(temp), made)
                }
            };
            let dir = dir.at("make ready", path)?;
            if self.fresh.len() < DEPTH {
                self.fresh.push((path.clone(), Arc::new(dir)));
            }
            return Ok(action);
        }
        let local = self.local(operation);
        let small = match local {
            None => self.contents.small(path, node).at("make ready", path)?,
            Some(_) => None,
        };
        Ok(match small {
            Some(bytes) => Action::Make(bytes, within),
            None => {
                let temp = stage::make(stage, times, path, node, local, self.contents);
                Action::Put(temp.at("make ready", path)?)
            }
        })
    }

    /// Keeps what is there now.
    fn keep(&mut self, operation: &Operation) -> Result<(), Refusal> {
        let path = &operation.path;
        let (dir, name) = self.at(path).at("open the directory of", path)?;
        let Found::Node(node, _) = sight::see(&dir, name).at("read", path)? else {
            return Err(Refusal::PutOff("it changes while it is kept aside"));
        };
        let winner = &operation.entry;
        let file = match node.kind {
            // What only gave way in its owner or mode has no contents of its own.
            Kind::File { size, digest } if winner.file() != Some((size, digest)) => {
                Some(dir.open(name).at("open", path)?)
            }
            _ => None,
        };
        let what = if winner.node.is_some() {
            "a version"
        } else {
            "a removal"
        };
        let why = format!("gave way to {what} of {:?}", winner.rank.replica);
        let kept = Kept {
            path: path.clone(),
            node,
            at: self.now,
            why,
        };
        self.set.aside.keep(&kept, file.as_ref())?;
        self.applied.kept.insert(path.clone());
        Ok(())
    }

    /// Where a file can be moved from as it is: no contents, no metadata, no other name changes.
    fn movable(
        &self,
        operation: &Operation,
        node: &Node,
        before: Option<Stat>,
    ) -> Result<Option<(Path, Stat)>, Refusal> {
        let Source::Move(from) = &operation.source else {
            return Ok(None);
        };
        if before.is_some() || operation.was.as_ref().is_some_and(|w| w.node.is_some()) {
            return Ok(None);
        }
        let row = self.reader.row(from)?;
        if row.as_ref().and_then(|r| r.entry.node.as_ref()) != Some(node)
            || !self.links(from)?.is_empty()
        {
            return Ok(None);
        }
        match self.standing(from, row.as_ref(), false, Contained::Stay) {
            Ok(Some(stat)) => Ok(Some((from.clone(), stat))),
            Ok(None) | Err(Refusal::PutOff(_)) => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// A file here that should have the contents; they are checked, and it need not be there.
    fn local(&self, operation: &Operation) -> Option<File> {
        let from = match &operation.source {
            Source::Nothing => &operation.path,
            Source::Copy(from) | Source::Move(from) => from,
            Source::Fetch => return None,
        };
        self.set.read(from).ok()
    }

    fn links(&self, path: &Path) -> Result<Vec<(Path, Entry)>, Error> {
        let names = self.reader.links_to(path)?.into_iter();
        let rows = names.filter_map(|name| match self.reader.row(&name) {
            Ok(row) => row.map(|row| Ok((name, row.entry))),
            Err(e) => Some(Err(e)),
        });
        rows.collect()
    }
}

/// A small file whose contents came.
fn make_small(set: &Set, one: &mut Ready) -> Result<(), Error> {
    let (stage, times) = (&set.stage, &set.times);
    let path = &one.operation.path;
    let (Action::Make(bytes, within), Some(node)) = (&one.action, &one.operation.entry.node) else {
        return Ok(());
    };
    one.action = match within {
        Some(dir) => {
            stage::make_small(dir, times, Name::last(path), node, bytes).at("make ready", path)?;
            Action::Within
        }
        None => {
            let temp = Temp::new().at("name", path)?;
            let made = stage::make_small(stage, times, temp.name(), node, bytes);
            if made.is_err() {
                let _ = temp.discard(stage); // the next run sweeps
            }
            made.at("make ready", path)?;
            Action::Put(temp)
        }
    };
    Ok(())
}
