//! Many removals: which of them lose anything, and what is left alone if that is too much.

use super::{Operation, Planner, Tree};
use crate::{
    entry::{Entry, Kind},
    path::Path,
};
use std::collections::{BTreeMap, BTreeSet};

impl Planner {
    /// The removals, once every batch is done, by which something would be lost. What only moved is not: whatever is
    /// removed as often as it `came` to another path, a directory from which all that goes moved, and what was in it.
    pub fn lost<E>(
        &self,
        tree: &impl Tree,
        came: impl IntoIterator<Item = Result<(Path, Entry), E>>,
    ) -> Result<BTreeSet<Path>, E> {
        let known = |path: &Path| tree.entry(path);
        let planned = |path: &Path| {
            let planned = self.groups.get(path).map(|o| o.entry.clone());
            planned.or_else(|| tree.entry(path))
        };
        let gone = |operation: &Operation| {
            let was = operation.was.as_ref();
            was.and_then(|was| contents(was, known))
        };
        let mut spare: BTreeMap<Kind, u64> = self
            .removals
            .values()
            .filter_map(|removal| Some((gone(removal)?, 0)))
            .collect();
        let mut count = |kind: Option<Kind>| {
            if let Some(spare) = kind.and_then(|kind| spare.get_mut(&kind)) {
                *spare += 1;
            }
        };
        for item in came {
            let (path, entry) = item?;
            if !self.removals.contains_key(&path) && !self.groups.contains_key(&path) {
                count(contents(&entry, planned));
            }
        }
        for operation in self.groups.values() {
            let comes = contents(&operation.entry, planned);
            count(comes.filter(|comes| gone(operation).as_ref() != Some(comes)));
        }
        // What was moved as it is has left its path already.
        let (first, others): (Vec<_>, Vec<_>) = self.removals.values().partition(|removal| {
            let moved = removal.moved_to().and_then(known);
            moved.is_some_and(|moved| contents(&moved, known) == gone(removal))
        });
        let mut lost = BTreeSet::new();
        for removal in first.into_iter().chain(others) {
            match gone(removal).and_then(|kind| spare.get_mut(&kind)) {
                Some(spare) if *spare > 0 => *spare -= 1,
                _ => drop(lost.insert(removal.path.clone())),
            }
        }
        // A name that stays is one of a file.
        let names = lost.iter().filter_map(|path| self.removals.get(path));
        let files: Vec<_> = names.filter_map(Operation::leaves).cloned().collect();
        lost.extend(files.into_iter().filter(|f| self.removals.contains_key(f)));
        lost.extend(self.lost_directories(&lost));
        Ok(lost)
    }

    fn lost_directories(&self, lost: &BTreeSet<Path>) -> Vec<Path> {
        let mut top: Option<(&Path, bool)> = None;
        let mut directories = Vec::new();
        for (path, _) in self.directories.iter().filter(|(_, o)| o.removes()) {
            if !top.is_some_and(|(top, _)| path.is_below(top)) {
                let inside = self.removals.range::<Path, _>(path..);
                let mut inside = inside.map_while(|(p, _)| p.is_below(path).then_some(p));
                top = Some((path, inside.any(|p| !lost.contains(p))));
            }
            if has_below(lost, path) || !top.is_some_and(|(_, moved)| moved) {
                directories.push(path.clone());
            }
        }
        directories
    }

    /// Leaves these alone, of what [`lost`](Self::lost) told, and all that can only be without them: nothing of that is
    /// planned any more.
    pub fn refuse(&mut self, lost: &BTreeSet<Path>) {
        let mut left: BTreeSet<_> = std::mem::take(&mut self.after).into_keys().collect();
        let names = lost.iter().filter_map(|path| self.removals.get(path));
        // A file with a further name that stays can become nothing else, nor anything be in that.
        let files: BTreeSet<_> = names.filter_map(Operation::leaves).cloned().collect();
        for (path, operation) in &self.groups {
            let ends = files.contains(path) && operation.entry.file().is_none();
            let without = operation.joins().is_some_and(|file| left.contains(file))
                || path.parent().is_some_and(|parent| left.contains(&parent));
            if ends || without {
                left.insert(path.clone());
            }
        }
        left.extend(lost.iter().cloned());
        let replaced = self.directories.keys();
        let replaced: Vec<_> = replaced.filter(|path| has_below(lost, path)).collect();
        left.extend(replaced.into_iter().cloned());
        for planned in [&mut self.groups, &mut self.removals, &mut self.directories] {
            planned.retain(|path, _| !left.contains(path));
        }
        self.conflicts.retain(|c| !left.contains(&c.path));
    }
}

/// What an entry is made of; nothing of a directory.
fn contents(entry: &Entry, known: impl Fn(&Path) -> Option<Entry>) -> Option<Kind> {
    match &entry.node.as_ref()?.kind {
        Kind::Directory => None,
        Kind::HardLink { to } => known(to)?.node.map(|file| file.kind),
        kind => Some(kind.clone()),
    }
}

fn has_below(paths: &BTreeSet<Path>, directory: &Path) -> bool {
    let after = (
        std::ops::Bound::Excluded(directory),
        std::ops::Bound::Unbounded,
    );
    let next = paths.range::<Path, _>(after).next();
    next.is_some_and(|path| path.is_below(directory))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        entry::{Author, Digest, Node},
        knowledge::tests::author,
        observe::tests::file,
    };
    use std::convert::Infallible;

    /// An index, and who has it.
    struct Server(BTreeMap<Path, Entry>, Author);

    impl Tree for Server {
        fn entry(&self, path: &Path) -> Option<Entry> {
            self.0.get(path).cloned()
        }

        fn live_below(&self, directory: &Path) -> Vec<Path> {
            let live = self.0.iter().filter(|(_, entry)| entry.node.is_some());
            let below = live.filter(|(path, _)| path.is_below(directory));
            below.map(|(path, _)| path.clone()).collect()
        }

        fn holder(&self, digest: &Digest) -> Option<Path> {
            let has = |entry: &Entry| entry.file().is_some_and(|(_, known)| known == *digest);
            let mut holders = self.0.iter().filter(|(_, entry)| has(entry));
            holders.next().map(|(path, _)| path.clone())
        }

        fn names(&self, path: &Path) -> Vec<Path> {
            let to = |entry: &Entry| entry.node.as_ref()?.further_name_of().cloned();
            let names = self.0.iter().filter(|(_, e)| to(e).as_ref() == Some(path));
            names.map(|(name, _)| name.clone()).collect()
        }
    }

    fn path(text: &str) -> Path {
        Path::try_from(text.as_bytes().to_vec()).unwrap()
    }

    /// `2`: contents, `/`: a directory, `>f`: a further name of f, `@x`: a symbolic link.
    fn node(what: &str) -> Node {
        let kind = match what.split_at(1) {
            ("/", _) => Kind::Directory,
            (">", to) => Kind::HardLink { to: path(to) },
            ("@", target) => Kind::Symlink {
                target: target.into(),
            },
            _ => return file(what.parse().unwrap(), 1),
        };
        Node { kind, ..file(1, 1) }
    }

    impl Server {
        fn of(name: &str, paths: &[(&str, &str)]) -> Self {
            let mut server = Self(BTreeMap::new(), author(name));
            paths
                .iter()
                .for_each(|(path, what)| server.set(path, Some(what)));
            server
        }

        fn set(&mut self, at: &str, what: Option<&str>) {
            let (before, node) = (self.0.remove(&path(at)), what.map(node));
            let now = self.1.change(before.as_ref(), node, 5);
            self.0.insert(path(at), now);
        }

        /// What of all that is there is to be done here; all that is no removal is done.
        fn plan(&mut self, other: &Self) -> (Planner, Vec<Path>) {
            let mut planner = Planner::default();
            let offered = other.0.clone().into_iter().collect();
            let mut came = Vec::new();
            for operation in planner.batch(self, offered) {
                came.push(operation.path.clone());
                self.0.insert(operation.path, operation.entry);
            }
            (planner, came)
        }

        fn lost(&self, planner: &Planner, came: &[Path]) -> BTreeSet<Path> {
            let came = came.iter();
            let came = came.map(|p| Ok::<_, Infallible>((p.clone(), self.0[p].clone())));
            planner.lost(self, came).unwrap()
        }
    }

    /// Beta takes what alpha made of what both had.
    fn lost(before: &[(&str, &str)], after: &[(&str, &str)]) -> Vec<String> {
        let mut alpha = Server::of("alpha", before);
        let mut beta = Server(alpha.0.clone(), Server::of("beta", &[]).1);
        let gone = before
            .iter()
            .filter(|(path, _)| !after.iter().any(|(p, _)| p == path));
        gone.for_each(|(path, _)| alpha.set(path, None));
        let new = after.iter().filter(|item| !before.contains(item));
        new.for_each(|(path, what)| alpha.set(path, Some(what)));
        let (planner, came) = beta.plan(&alpha);
        beta.lost(&planner, &came)
            .iter()
            .map(Path::to_string)
            .collect()
    }

    #[test]
    fn what_moved_is_not_lost_with_its_directories_and_names() {
        let tree = |top: &str| -> Vec<(String, String)> {
            let paths = [
                ("", "/"),
                ("/f", "1"),
                ("/same", "1"),
                ("/name", ">TOP/f"),
                ("/link", "@x"),
                ("/empty", "/"),
                ("/deep", "/"),
                ("/deep/g", "2"),
            ];
            let at_top =
                |(path, what): (&str, &str)| (format!("{top}{path}"), what.replace("TOP", top));
            paths.map(at_top).to_vec()
        };
        let (before, after) = (tree("old"), tree("new"));
        let borrowed = |tree: &'static [(String, String)]| -> Vec<(&str, &str)> {
            tree.iter().map(|(p, w)| (p.as_str(), w.as_str())).collect()
        };
        let (before, after) = (borrowed(before.leak()), borrowed(after.leak()));
        assert_eq!(lost(&before, &after), Vec::<String>::new());
        let partly: Vec<_> = after
            .iter()
            .filter(|(p, _)| *p != "new/deep/g")
            .copied()
            .collect();
        assert_eq!(lost(&before, &partly), ["old", "old/deep", "old/deep/g"]);
    }

    #[test]
    fn another_name_for_a_file_is_no_loss_whichever_of_its_names_goes() {
        let before = [("a", "1"), ("b", ">a")];
        assert!(lost(&before, &[("a", "1"), ("c", ">a")]).is_empty());
        assert!(lost(&before, &[("b", "1"), ("c", ">b")]).is_empty());
        assert_eq!(lost(&before, &[("b", "1")]), Vec::<String>::new());
        assert_eq!(lost(&before, &[("a", "1")]), ["b"]);
    }

    #[test]
    fn what_was_copied_before_is_lost_and_what_came_once_is_no_more_than_one() {
        let before = [("a", "1"), ("b", "1"), ("c", "1"), ("d", "2")];
        assert_eq!(lost(&before, &[("a", "1")]), ["b", "c", "d"]);
        assert_eq!(lost(&before, &[("a", "1"), ("e", "1")]), ["c", "d"]);
        assert_eq!(
            lost(&[("d", "/"), ("e", "/"), ("e/f", "/")], &[]),
            ["d", "e", "e/f"]
        );
    }

    #[test]
    fn what_is_refused_is_so_with_all_that_can_only_be_without_it() {
        // A file of two names became a directory, and a directory with a file in it a file.
        let before = [
            ("a", "1"),
            ("b", ">a"),
            ("d", "/"),
            ("d/x", "2"),
            ("e", "3"),
        ];
        let after = [("a", "/"), ("a/x", "4"), ("d", "5"), ("e", "6")];
        let mut alpha = Server::of("alpha", &before);
        let mut beta = Server(alpha.0.clone(), Server::of("beta", &[]).1);
        beta.set("d/x", Some("7"));
        // Thrice, so that it outranks the edit.
        ["b", "d/x", "d/x", "d/x"]
            .iter()
            .for_each(|gone| alpha.set(gone, None));
        after
            .iter()
            .for_each(|(path, what)| alpha.set(path, Some(what)));
        let (mut planner, came) = beta.plan(&alpha);
        assert_eq!(came, [path("e")]);
        let lost = beta.lost(&planner, &came);
        assert_eq!(lost, BTreeSet::from([path("b"), path("d/x")]));
        planner.refuse(&lost);
        let mut author = beta.1.clone();
        planner.orphans(&beta, &mut author, 5);
        let mut left = planner.groups(&beta);
        left.extend(planner.removals());
        left.extend(planner.directories(&beta, &mut author, 5));
        assert_eq!(left, []);
        assert_eq!(planner.conflicts, []);
        assert_eq!(author.count, beta.1.count);
    }
}
