//! Times of directories: what syncd puts in one, or takes out, changes them, and is no change of anybody there.

use super::{Action, Refusal, Run};
use crate::{
    dir::is_no_way,
    error::At,
    times::{self, stamps},
};
use filesync::{Entry, Node, Operation, Path};
use rustix::fs::futimens;
use std::io;

impl Run<'_> {
    /// Names are about to come or go where this operation is carried out: what is known of those directories is so again
    /// in the end, if it is so now.
    pub(super) fn touch(
        &mut self,
        operation: &Operation,
        action: &Action,
        links: &[(Path, Entry)],
    ) -> Result<(), Refusal> {
        if matches!(action, Action::Note | Action::Give) {
            return Ok(());
        }
        let from = match action {
            Action::Move(from, _) => Some(from),
            _ => None,
        };
        let further = links.iter().map(|(path, _)| path);
        let paths = [Some(&operation.path), from]
            .into_iter()
            .flatten()
            .chain(further);
        for path in paths {
            let Some(parent) = path.parent().filter(|p| !self.times.contains_key(p)) else {
                continue;
            };
            let now = match self.at(path) {
                Err(e) if is_no_way(&e) => continue,
                found => found.and_then(|(dir, _)| dir.stat()).at("stat", &parent)?,
            };
            let row = self.reader.row(&parent)?;
            let known = row
                .and_then(|row| row.entry.node)
                .and_then(|node| time(&node));
            let known = known.filter(|known| self.set.times.held(*known) == times::of(&now));
            self.times.insert(parent, known);
        }
        Ok(())
    }

    /// This was carried out: a directory that it is about is to have its time.
    pub(super) fn keep_time(&mut self, operation: &Operation) {
        let path = &operation.path;
        match operation.entry.node.as_ref().filter(|n| n.is_directory()) {
            Some(node) => drop(self.times.insert(path.clone(), time(node))),
            None => drop(self.times.remove(path)),
        }
    }

    /// Nothing comes or goes any more.
    pub(super) fn give_times(&mut self) {
        for (path, time) in std::mem::take(&mut self.times) {
            let Some(time) = time else {
                continue;
            };
            let give = || -> io::Result<()> {
                let dir = self.set.root.beneath(&path)?;
                dir.calls().one("utimens")?;
                Ok(futimens(&dir, &stamps(time))?)
            };
            match give() {
                Ok(()) => self.dirty = true,
                Err(e) if is_no_way(&e) => {}
                Err(e) => self.applied.failed.add(&path, e),
            }
        }
    }
}

/// Of a directory, if it is known.
fn time(node: &Node) -> Option<i128> {
    (node.is_directory() && node.mtime != 0).then_some(node.mtime)
}
