//! What must come of a round, by what was touched where.

use crate::common::{Seen, Tree};
use filesync::Conflict;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

const KIND: u32 = 0o170_000;
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

fn is_directory(seen: &Seen) -> bool {
    seen.mode & KIND == DIRECTORY
}

/// What somebody wrote that is in a tree, and in how many files. An empty one is nobody's.
pub fn copies_in(tree: &Tree) -> BTreeMap<Vec<u8>, usize> {
    let mut copies = BTreeMap::new();
    for (path, seen) in tree {
        let first = seen.names.first() == Some(path);
        if first && !seen.contents.is_empty() {
            *copies.entry(seen.contents.clone()).or_default() += 1;
        }
    }
    copies
}

pub fn values_of(tree: &Tree) -> BTreeSet<Vec<u8>> {
    copies_in(tree).into_keys().collect()
}

/// Everything since all trees were the same.
#[derive(Default)]
pub struct Round {
    base: Tree,
    /// What changed on each server.
    pub touched: Vec<BTreeSet<PathBuf>>,
    /// What was written.
    pub made: BTreeSet<Vec<u8>>,
}

impl Round {
    pub fn new(base: Tree, servers: usize) -> Self {
        Self {
            base,
            touched: vec![BTreeSet::new(); servers],
            made: BTreeSet::new(),
        }
    }

    pub fn touch(&mut self, i: usize, before: &Tree, after: &Tree) {
        let paths = before.keys().chain(after.keys());
        let touched = paths.filter(|p| before.get(*p) != after.get(*p));
        self.touched[i].extend(touched.cloned());
    }

    /// It was there, or was written since.
    pub fn knows(&self, value: &Vec<u8>) -> bool {
        self.made.contains(value) || values_of(&self.base).contains(value)
    }

    /// What all had, in words.
    pub fn base(&self) -> String {
        let each = self.base.iter().map(|(path, seen)| {
            let others: Vec<_> = seen.names.iter().filter(|name| *name != path).collect();
            let some = &seen.contents[..seen.contents.len().min(12)];
            format!(
                "{path:?} {:o} {others:?} {}",
                seen.mode,
                some.escape_ascii()
            )
        });
        each.collect::<Vec<_>>().join("\n  ")
    }

    /// Others than this one touched it.
    fn others(&self, i: usize) -> impl Iterator<Item = (usize, &BTreeSet<PathBuf>)> + Clone {
        let all = self.touched.iter().enumerate();
        all.filter(move |(j, _)| *j != i)
    }

    /// So many servers touched it, or something above or below it.
    fn near(&self, path: &Path) -> usize {
        let near = |other: &PathBuf| other.starts_with(path) || path.starts_with(other);
        let servers = self.touched.iter();
        servers.filter(|touched| touched.iter().any(near)).count()
    }

    /// Nobody was near what another one touched.
    pub fn is_apart(&self) -> bool {
        let mut all = self.touched.iter().flatten();
        all.all(|path| self.near(path) == 1)
    }

    /// `ends` are the trees before the first run, `end` what all have now.
    pub fn judge<'a>(
        &self,
        ends: &[Tree],
        end: &Tree,
        conflicts: &[Conflict],
        kept: impl Iterator<Item = &'a filesync::Path>,
    ) -> Result<(), String> {
        for conflict in conflicts {
            let path = Path::new(OsStr::from_bytes(conflict.path.as_bytes()));
            let by = self.touched.iter().filter(|t| t.contains(path)).count();
            if by < 2 {
                return Err(format!(
                    "a conflict at {path:?}, which {by} touched: {conflict:?}"
                ));
            }
        }
        for path in kept {
            let path = Path::new(OsStr::from_bytes(path.as_bytes()));
            if self.near(path) < 2 {
                return Err(format!("kept aside, and nobody else was near it: {path:?}"));
            }
        }
        for (i, touched) in self.touched.iter().enumerate() {
            for path in touched {
                self.judge_own(i, path, &ends[i], ends, end)?;
            }
        }
        self.judge_rest(end)?;
        self.judge_removed(ends, end)
    }

    /// What only one touched is as that one has it, if nothing that it needs was touched by others.
    fn judge_own(
        &self,
        i: usize,
        path: &Path,
        mine: &Tree,
        ends: &[Tree],
        end: &Tree,
    ) -> Result<(), String> {
        let mut others = self.others(i);
        let here = mine.get(path);
        let touched = others.clone().any(|(_, t)| t.contains(path));
        let seen = here.into_iter().chain(self.base.get(path));
        let names: BTreeSet<_> = seen.flat_map(|s| &s.names).map(PathBuf::as_path).collect();
        // Something else than a directory wants the place of one that it, or another name of it, is in.
        let displaced = names.iter().copied().chain([path]).any(|name| {
            let mut above = name.ancestors().skip(1);
            above.any(|above| {
                others.clone().any(|(j, t)| {
                    t.contains(above) && ends[j].get(above).is_some_and(|s| !is_directory(s))
                })
            })
        });
        let needed = !here.is_some_and(is_directory)
            && others.clone().any(|(j, t)| {
                let there = |p: &PathBuf| ends[j].contains_key(p);
                t.iter()
                    .any(|p| p != path && p.starts_with(path) && there(p))
            });
        let shared = others.any(|(_, t)| names.iter().any(|name| t.contains(*name)));
        if touched || displaced || needed || shared || end.get(path) == here {
            return Ok(());
        }
        Err(format!(
            "only {i} touched {path:?}:\n  {here:?}\n  became {:?}",
            end.get(path)
        ))
    }

    /// What nobody touched is as it was, and nothing else is there.
    fn judge_rest(&self, end: &Tree) -> Result<(), String> {
        let all = self.base.keys().chain(end.keys());
        for path in all.filter(|p| !self.touched.iter().any(|t| t.contains(*p))) {
            let (was, is) = (self.base.get(path), end.get(path));
            if was != is {
                return Err(format!(
                    "nobody touched {path:?}:\n  {was:?}\n  became {is:?}"
                ));
            }
        }
        Ok(())
    }

    /// What one removed and nobody else touched does not come back.
    fn judge_removed(&self, ends: &[Tree], end: &Tree) -> Result<(), String> {
        let there = values_of(end);
        for (i, mine) in ends.iter().enumerate() {
            let mine = values_of(mine);
            for (path, seen) in &self.base {
                let value = &seen.contents;
                if seen.mode & KIND != FILE || value.is_empty() || mine.contains(value) {
                    continue;
                }
                // A copy may have been touched, and stay.
                let same =
                    |name: &PathBuf| self.base.get(name).is_some_and(|s| s.contents == *value);
                let names = |t: &BTreeSet<PathBuf>| t.iter().any(same);
                if !self.others(i).any(|(_, t)| names(t)) && there.contains(value) {
                    return Err(format!(
                        "{i} removed {path:?}, nobody else touched it, and it is there"
                    ));
                }
            }
        }
        Ok(())
    }
}
