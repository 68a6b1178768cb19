//! The last step of each operation: one rename, which is done only if what goes is what should.

use super::{Action, Contained, LARGE, Ready, Refusal, Run, is, same_inode};
use crate::{
    attributes,
    dir::{Dir, Name, is_no_way},
    error::At,
    leftover::{Held, Leftovers},
    look::signed,
    sight,
    stage::Temp,
};
use filesync::{Entry, Kind, Operation, Path, Proof, Source, Stat};
use rustix::{
    fs::{FileType, RenameFlags, fstat},
    io::Errno,
};
use std::{io, rc::Rc};

const NO_DIRECTORY: Refusal = Refusal::PutOff("its directory is not there");

impl Run<'_> {
    /// The last step: one rename. Returns what is there now, with a proof of what was moved or given other metadata.
    pub(super) fn carry_out(&mut self, ready: Ready) -> Result<(Entry, Option<Proof>), Refusal> {
        let Ready {
            operation,
            before,
            action,
            links,
        } = ready;
        let path = &operation.path;
        let before = self.still_linked(&operation)?.or(before);
        self.touch(&operation, &action, &links)?;
        self.dirty |= !matches!(action, Action::Note);
        let directory = |e: &Entry| e.is_directory();
        if directory(&operation.entry) || operation.was.as_ref().is_some_and(directory) {
            self.places.forget(); // it may be the one
        }
        let mut proof = None;
        match &action {
            Action::Note => {
                // It may be there still, for what is left out.
                if operation.entry.node.is_none() {
                    proof = self.reader.row(path)?.and_then(|row| row.proof);
                }
            }
            Action::Make(..) => {}
            Action::Within => {
                if self.lost.iter().any(|lost| path.is_below(lost)) {
                    return Err(NO_DIRECTORY);
                }
            }
            Action::Remove => {
                let moved = matches!(operation.source, Source::Move(_));
                let before = match moved {
                    // Either it went, or it goes now with its contents.
                    true => {
                        let row = self.reader.row(path)?;
                        self.standing(path, row.as_ref(), true, Contained::Go)?
                    }
                    false => before,
                };
                proof = self.remove(path, before)?;
            }
            Action::Give => proof = self.give(&operation, before)?,
            Action::Move(from, stat) => {
                let (source, old) = self.at(from).at("open the directory of", from)?;
                let now = source.stat_of(old).at("stat", from)?;
                let now = now.map(|now| sight::stat(&now));
                let Some(now) = now.filter(|now| alike(now, stat)) else {
                    return Err(Refusal::PutOff(
                        "what was to be moved is not there any more",
                    ));
                };
                let (dir, name) = self.place(path)?;
                into_nothing(&source, old, &dir, name).at_path("move", path)?;
                if now == *stat
                    && let Some(after) = self.renamed(path, now)?
                {
                    proof = Some(self.lend(from, after)?);
                }
            }
            Action::Link(to) => {
                let temp = self.link(to)?;
                self.put(&temp, path, before)?;
                if let Some(old) = before {
                    self.relink(path, &old, &links);
                }
            }
            Action::Put(temp) => {
                let large = operation
                    .entry
                    .file()
                    .is_some_and(|(size, _)| size >= LARGE);
                let made = match large {
                    true => self.set.stage.stat_of(temp.name()).at("stat", path)?,
                    false => None,
                };
                let spoilt = |lost: &Path| lost == path || lost.is_below(path);
                if temp.is_tree() && self.lost.iter().any(spoilt) {
                    let _ = temp.discard(&self.set.stage); // the next run sweeps
                    return Err(Refusal::PutOff("something in it could not be made ready"));
                }
                let put = self.put(temp, path, before);
                if put.is_err() && temp.is_tree() {
                    self.lost.push(path.clone());
                }
                put?;
                if let Some(made) = made {
                    // What came was checked, and nobody but syncd could get at it.
                    let after = self.renamed(path, sight::stat(&made))?;
                    proof = after.map(|after| Proof::lend(None, after, signed(self.now)));
                }
                if let Some(old) = before {
                    self.relink(path, &old, &links);
                }
            }
        }
        self.keep_time(&operation);
        Ok((operation.entry, proof))
    }

    /// What is at `path` now, if it is what was like this and was renamed: that moves its change time alone.
    fn renamed(&self, path: &Path, was: Stat) -> Result<Option<Stat>, Refusal> {
        let now = self.stat(path).at("stat", path)?;
        Ok(now.filter(|now| {
            let ctime = now.ctime;
            *now == Stat { ctime, ..was }
        }))
    }

    /// For what was at `from` and is like this now.
    fn lend(&self, from: &Path, now: Stat) -> Result<Proof, Refusal> {
        let before = self.reader.row(from)?.and_then(|row| row.proof);
        Ok(Proof::lend(before.as_ref(), now, signed(self.now)))
    }

    /// A further name may have followed its file since the check.
    fn still_linked(&self, operation: &Operation) -> Result<Option<Stat>, Refusal> {
        let was = operation.was.as_ref().and_then(|w| w.node.as_ref());
        let Some(Kind::HardLink { to }) = was.map(|w| &w.kind) else {
            return Ok(None);
        };
        let first = self.stat(to).at("stat", to)?;
        let own = self.stat(&operation.path).at("stat", &operation.path)?;
        Ok(own.filter(|own| first.is_some_and(|first| same_inode(&first, own))))
    }

    fn place<'p>(&self, path: &'p Path) -> Result<(Rc<Dir>, Name<'p>), Refusal> {
        match self.at(path) {
            Err(e) if is_no_way(&e) => Err(NO_DIRECTORY),
            other => Ok(other.at("open the directory of", path)?),
        }
    }

    /// One more name for a file of the set, in the stage.
    fn link(&self, to: &Path) -> Result<Temp, Refusal> {
        let (dir, name) = self.place(to)?;
        let temp = Temp::new().at("name", to)?;
        match dir
            .stat_of(name)
            .at("stat", to)?
            .map(|raw| sight::stat(&raw))
        {
            Some(stat) if !is_kind(&stat, FileType::Directory) => {}
            _ => {
                return Err(Refusal::PutOff("what it is a name of is not there"));
            }
        }
        dir.link(name, &self.set.stage, temp.name())
            .at("link", to)?;
        Ok(temp)
    }

    /// What is staged takes its place; if that cannot be, nothing has happened.
    fn put(&self, temp: &Temp, path: &Path, before: Option<Stat>) -> Result<(), Refusal> {
        let stage = &self.set.stage;
        let put = || {
            let (dir, name) = self.place(path)?;
            match before {
                None => into_nothing(stage, temp.name(), &dir, name).at_path("put in place", path),
                Some(before) => self.exchange(temp, &dir, name, path, &before),
            }
        };
        put().inspect_err(|_| {
            let _ = temp.discard(stage); // the next run sweeps
        })
    }

    /// Swaps what is staged with what is there, and removes that if it is what it should be.
    fn exchange(
        &self,
        temp: &Temp,
        dir: &Dir,
        name: Name,
        path: &Path,
        before: &Stat,
    ) -> Result<(), Refusal> {
        const OTHER: Refusal = Refusal::PutOff("something else is there by now");
        let stage = &self.set.stage;
        let directory = is_kind(before, FileType::Directory);
        if directory && let Some(held) = self.empty(path, dir, name)? {
            return Err(Refusal::Held(held.path()));
        }
        match stage.rename(temp.name(), dir, name, RenameFlags::EXCHANGE) {
            Err(e) if is(&e, Errno::NOENT) => return Err(OTHER),
            Err(e) if is(&e, Errno::INVAL) && !directory => {
                // A file system that cannot: the next best.
                let now = dir.stat_of(name).at("stat", path)?;
                if !now.is_some_and(|now| alike(&sight::stat(&now), before)) {
                    return Err(OTHER);
                }
                stage
                    .rename(temp.name(), dir, name, RenameFlags::empty())
                    .at("replace", path)?;
                // A rename of one name of a file to another one does nothing.
                return Ok(temp.discard(stage).at("replace", path)?);
            }
            other => other.at("replace", path)?,
        }
        let displaced = stage.stat_of(temp.name()).at("stat", path)?;
        let fine = displaced.is_some_and(|now| alike(&sight::stat(&now), before));
        let gone = match fine {
            true => temp.discard(stage),
            false => Err(Errno::NOTEMPTY.into()),
        };
        match gone {
            Err(e) if is(&e, Errno::NOTEMPTY) => {
                stage
                    .rename(temp.name(), dir, name, RenameFlags::EXCHANGE)
                    .at("put back", path)?;
                Err(OTHER)
            }
            other => Ok(other.at("replace", path)?),
        }
    }

    /// Returns by what to know a directory again that stays.
    fn remove(&mut self, path: &Path, before: Option<Stat>) -> Result<Option<Proof>, Refusal> {
        let Some(before) = before else {
            return Ok(None); // it was moved
        };
        let (dir, name) = self.place(path)?;
        if is_kind(&before, FileType::Directory) {
            return self.remove_directory(path, &dir, name, before);
        }
        let (stage, temp) = (&self.set.stage, Temp::new().at("remove", path)?);
        dir.rename(name, stage, temp.name(), RenameFlags::empty())
            .at("remove", path)?;
        let displaced = stage.stat_of(temp.name()).at("stat", path)?;
        if !displaced.is_some_and(|now| alike(&sight::stat(&now), &before)) {
            into_nothing(stage, temp.name(), &dir, name).at_path("put back", path)?;
            return Err(Refusal::PutOff("something else is there by now"));
        }
        stage.unlink(temp.name()).at("remove", path)?;
        Ok(None)
    }

    /// What is left out of the set stays, and its directory for it.
    fn remove_directory(
        &mut self,
        path: &Path,
        dir: &Dir,
        name: Name,
        stat: Stat,
    ) -> Result<Option<Proof>, Refusal> {
        match dir.remove_directory(name) {
            Err(e) if is(&e, Errno::NOTEMPTY) => {}
            other => {
                other.at("remove", path)?;
                return Ok(None);
            }
        }
        match self.empty(path, dir, name)? {
            Some(Held::Here(held)) => Err(Refusal::Held(held)),
            Some(Held::Left(held)) => {
                let why = format!("{held} is left out");
                self.applied.left.add(path, why);
                self.left.insert(path.clone());
                let (at, lent) = (signed(self.now), false);
                Ok(Some(Proof { stat, at, lent }))
            }
            None => match dir.remove_directory(name) {
                Err(e) if is(&e, Errno::NOTEMPTY) => {
                    Err(Refusal::PutOff("something came into it meanwhile"))
                }
                other => {
                    other.at("remove", path)?;
                    Ok(None)
                }
            },
        }
    }

    /// Removes what is in a directory and goes with it, if nothing else holds that; or what does.
    fn empty(&self, path: &Path, dir: &Dir, name: Name) -> Result<Option<Held>, Refusal> {
        let directory = dir.child(name).at("open", path)?;
        let leftovers = Leftovers {
            set: self.set,
            index: &self.reader,
            new: &self.left,
        };
        let held = leftovers.holder(path, &directory)?;
        if held.is_none() {
            leftovers.clear(path, &directory)?;
        }
        Ok(held)
    }

    /// What stays gets what it is to have; what a cut leaves half done, the next look finishes.
    fn give(&self, operation: &Operation, before: Option<Stat>) -> Result<Option<Proof>, Refusal> {
        let path = &operation.path;
        let was = operation.was.as_ref().and_then(|w| w.node.as_ref());
        let (Some(node), Some(before)) = (&operation.entry.node, before) else {
            return Err(Refusal::PutOff("nothing is there"));
        };
        let (dir, name) = self.place(path)?;
        let there = dir.open_to_give(name, node).at("open", path)?;
        let now = sight::stat(&fstat(&there).map_err(io::Error::from).at("stat", path)?);
        if !alike(&now, &before) {
            return Err(Refusal::PutOff("something else is there by now"));
        }
        attributes::give(&there, node, dir.calls())
            .inspect_err(|_| {
                let _ = was.map(|was| attributes::give(&there, was, dir.calls()));
            })
            .at("change", path)?;
        if node.is_directory() || now != before {
            return Ok(None);
        }
        let after = sight::stat(&fstat(&there).map_err(io::Error::from).at("stat", path)?);
        let given = Stat {
            mode: (now.mode & !0o7777) | u32::from(node.mode),
            uid: node.uid,
            gid: node.gid,
            mtime: i64::try_from(self.set.times.held(node.mtime)).unwrap_or(i64::MAX),
            ctime: after.ctime,
            ..now
        };
        (after == given).then(|| self.lend(path, after)).transpose()
    }

    /// The further names of what was replaced follow. Whichever cannot is told by the next look as a file of its own.
    fn relink(&mut self, path: &Path, old: &Stat, links: &[(Path, Entry)]) {
        for (name, _) in links {
            let follow = || -> Result<(), Refusal> {
                let now = self.stat(name).at("stat", name)?;
                let Some(now) = now.filter(|now| same_inode(now, old)) else {
                    return Ok(());
                };
                let temp = self.link(path)?;
                self.put(&temp, name, Some(now))
            };
            if let Err(refusal) = follow() {
                self.refuse(name, refusal);
            }
        }
    }
}

/// A rename that replaces nothing.
fn into_nothing(from: &Dir, old: Name, to: &Dir, new: Name) -> io::Result<()> {
    match from.rename(old, to, new, RenameFlags::NOREPLACE) {
        // A file system that cannot: the next best.
        Err(e) if is(&e, Errno::INVAL) && to.stat_of(new)?.is_none() => {
            from.rename(old, to, new, RenameFlags::empty())
        }
        other => other,
    }
}

/// A rename that found something in its way is put off.
trait AtPath {
    fn at_path(self, what: &'static str, path: &Path) -> Result<(), Refusal>;
}

impl AtPath for io::Result<()> {
    fn at_path(self, what: &'static str, path: &Path) -> Result<(), Refusal> {
        match self {
            Err(e) if is(&e, Errno::EXIST) => {
                Err(Refusal::PutOff("something came there meanwhile"))
            }
            other => Ok(other.at(what, path)?),
        }
    }
}

fn is_kind(stat: &Stat, kind: rustix::fs::FileType) -> bool {
    FileType::from_raw_mode(stat.mode) == kind
}

/// The same file, unchanged: a rename or a link moves its change time, and what is in a directory is no part of it.
fn alike(now: &Stat, before: &Stat) -> bool {
    let directory = is_kind(before, FileType::Directory);
    let own = |s: &Stat| (s.mode, s.uid, s.gid);
    let data = |s: &Stat| (s.size, s.mtime);
    same_inode(now, before) && own(now) == own(before) && (directory || data(now) == data(before))
}
