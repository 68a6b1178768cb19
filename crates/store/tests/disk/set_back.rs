//! A server comes back out of a backup: with its files and its index, or with one of the two.

use crate::common::{Open, Store, differing, fast, tree};
use std::{fs, process::Command};

struct Pair {
    _dir: tempfile::TempDir,
    stores: Vec<Store>,
    /// Of the first one.
    backup: Store,
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Back {
    All,
    Index,
    /// The directory is another one.
    Files,
    /// They are copied over those that are there.
    Over,
}

/// So many documents there are.
const DOCUMENTS: u32 = 50;

impl Pair {
    /// All have the same, and the first is backed up.
    fn new(names: &[&'static str]) -> Self {
        let dir = fast();
        let stores: Vec<_> = names
            .iter()
            .map(|name| Store {
                joins: true,
                ..Store::new(dir.path(), name)
            })
            .collect();
        for i in 0..DOCUMENTS {
            stores[0].write(&format!("document {i}"), format!("document {i}"));
        }
        for name in ["kept", "edited", "edited there", "removed there", "both"] {
            stores[0].write(name, format!("{name}, before the backup"));
        }
        let backup = Store::new(&dir.path().join("backup"), names[0]);
        let pair = Self {
            _dir: dir,
            stores,
            backup,
        };
        pair.meet();
        pair.meet();
        pair.copy(&pair.stores[0], &pair.backup, Back::All);
        pair
    }

    fn copy(&self, from: &Store, to: &Store, what: Back) {
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            let copied = Command::new("cp").arg("-aT").args([from, to]).status();
            assert!(copied.unwrap().success());
        };
        if [Back::All, Back::Files].contains(&what) {
            fs::remove_dir_all(&to.root).unwrap();
        }
        if what != Back::Index {
            copy(&from.root, &to.root);
        }
        if [Back::All, Back::Index].contains(&what) {
            fs::remove_dir_all(&to.state).unwrap();
            copy(&from.state, &to.state);
        }
    }

    fn set_back(&self, what: Back) {
        self.copy(&self.backup, &self.stores[0], what);
    }

    /// Each takes what each other one has; how many conflicts there were.
    fn meet(&self) -> usize {
        let count = self.stores.len();
        let mut conflicts = 0;
        for (i, j) in (0..count).flat_map(|i| (0..count).map(move |j| (i, j))) {
            if i != j {
                conflicts += self.pull(i, j);
            }
        }
        conflicts
    }

    fn pull(&self, i: usize, j: usize) -> usize {
        let (one, other) = (self.looked(i), self.looked(j));
        let pulled = one.pull(&other).unwrap();
        assert!(pulled.is_complete(), "{pulled:?}");
        pulled.conflicts.len()
    }

    /// Opened and looked at, anew if its history is not known.
    fn looked(&self, i: usize) -> Open {
        let open = self.stores[i].open();
        match open.look() {
            Err(e) if e.is_new_history() => open.index.give_up().unwrap(),
            looked => {
                looked.unwrap();
                return open;
            }
        }
        drop(open);
        let open = self.stores[i].open();
        open.look().unwrap();
        open
    }

    fn alike(&self) {
        let first = tree(&self.stores[0].root);
        for other in &self.stores[1..] {
            let other = tree(&other.root);
            assert!(first == other, "{}", differing(&first, &other));
        }
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.stores[0].at(name)).ok()
    }

    /// In a tree, or kept aside.
    fn has(&self, text: &str) -> bool {
        let mut folders: Vec<_> = self
            .stores
            .iter()
            .flat_map(|s| [s.root.clone(), s.state.join("aside")])
            .collect();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let at = entry.unwrap().path();
                match at.is_dir() {
                    true => folders.push(at),
                    false if fs::read(&at).unwrap() == text.as_bytes() => return true,
                    false => {}
                }
            }
        }
        false
    }
}

/// What happens between the backup and its return.
fn life(pair: &Pair) {
    let [one, other, ..] = &pair.stores[..] else {
        panic!("two")
    };
    one.write("edited", "edited since");
    one.write("both", "both, here");
    one.write("made", "made since");
    for i in 0..DOCUMENTS {
        one.write(&format!("document {i}"), format!("document {i}, edited"));
    }
    other.write("edited there", "edited there since");
    other.write("made there", "made there since");
    fs::remove_file(other.at("removed there")).unwrap();
    pair.meet();
    pair.alike();
}

#[test]
fn it_takes_what_it_missed_and_nothing_conflicts_that_nobody_touched() {
    for what in [Back::All, Back::Index] {
        let pair = Pair::new(&["alpha", "beta"]);
        life(&pair);
        let before = tree(&pair.stores[1].root);
        pair.set_back(what);
        assert_eq!(pair.meet(), 0, "{what:?}");
        pair.alike();
        let now = tree(&pair.stores[0].root);
        assert!(now == before, "{what:?}: {}", differing(&before, &now));
    }
}

#[test]
fn an_edit_after_it_is_never_taken_for_one_that_was_lost_with_it() {
    // As many edits as were lost, fewer, and more: numbers of events meet in every way.
    for edits in 0..6 {
        for third in [false, true] {
            let names: &[&'static str] = match third {
                true => &["alpha", "beta", "gamma"],
                false => &["alpha", "beta"],
            };
            let pair = Pair::new(names);
            life(&pair);
            pair.set_back(Back::All);
            let one = &pair.stores[0];
            for i in 0..edits {
                one.write(&format!("new {i}"), format!("new {i}"));
            }
            one.write("both", "both, after it came back");
            if third {
                // Whoever knows nothing of what was lost meets it first.
                pair.pull(2, 0);
            }
            pair.meet();
            pair.meet();
            pair.alike();
            for i in 0..edits {
                let new = format!("new {i}");
                assert_eq!(pair.read(&new), Some(new), "{edits} {third}");
            }
            for text in [
                "both, after it came back",
                "both, here",
                "edited since",
                "made since",
            ] {
                assert!(pair.has(text), "{text}: {edits} {third}");
            }
            assert_eq!(pair.read("edited").as_deref(), Some("edited since"));
            assert_eq!(pair.read("removed there"), None);
        }
    }
}

#[test]
fn an_index_that_was_closed_here_goes_on_as_it_was() {
    let pair = Pair::new(&["alpha", "beta"]);
    let writer = || pair.stores[0].open().index.writer().unwrap();
    let before = writer();
    pair.stores[0].write("new", "new");
    pair.meet();
    let after = writer();
    assert_eq!(before.replica, after.replica);
    assert!(after.count > before.count);
    fs::remove_file(pair.stores[0].state.join("note")).unwrap();
    assert_ne!(writer().replica, after.replica);
}

#[test]
fn files_out_of_a_backup_are_no_edits() {
    for what in [Back::Files, Back::Over] {
        let pair = Pair::new(&["alpha", "beta"]);
        life(&pair);
        let before = tree(&pair.stores[1].root);
        pair.set_back(what);
        pair.stores[0].write("both", "both, after it came back");
        pair.stores[0].write("new", "new");
        pair.meet();
        pair.meet();
        pair.alike();
        assert_eq!(pair.read("new").as_deref(), Some("new"), "{what:?}");
        fs::remove_file(pair.stores[0].at("new")).unwrap();
        let now = tree(&pair.stores[0].root);
        assert!(now == before, "{what:?}: {}", differing(&before, &now));
        for text in [
            "both, after it came back",
            "edited, before the backup",
            "document 7",
        ] {
            assert!(pair.has(text), "{what:?}: {text}");
        }
    }
}

#[test]
fn one_file_that_somebody_put_back_is_an_edit() {
    let pair = Pair::new(&["alpha", "beta"]);
    life(&pair);
    fs::remove_file(pair.stores[0].at("edited")).unwrap();
    let (from, to) = (pair.backup.at("edited"), pair.stores[0].at("edited"));
    assert!(
        Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(pair.meet(), 0);
    pair.alike();
    assert_eq!(
        pair.read("edited").as_deref(),
        Some("edited, before the backup")
    );
}
