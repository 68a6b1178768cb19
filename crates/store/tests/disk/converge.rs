//! Stores under random edits come to the same, and nothing that was written is lost.
//!
//! `STANDIN_SEEDS=from..to` runs other seeds.

use crate::common::{LIMIT, Random, Store, Tree, differing, fast, tree};
use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
};

const NAMES: [&str; 9] = ["a", "b", "d", "d/x", "d/y", "d/e", "d/e/z", "f", "d!"];

struct World {
    random: Random,
    stores: Vec<Store>,
    values: u64,
    written: Vec<Vec<u8>>,
    /// What somebody overwrote or removed who saw it.
    superseded: BTreeSet<Vec<u8>>,
}

impl World {
    fn supersede(&mut self, i: usize, at: &str) {
        let gone = tree(&self.stores[i].root);
        let below = |name: &std::path::Path| name.starts_with(at);
        let gone = gone.into_iter().filter(|(name, _)| below(name));
        self.superseded.extend(gone.map(|(_, seen)| seen.contents));
    }

    fn edit(&mut self) {
        let i = usize::try_from(self.random.below(self.stores.len() as u64)).unwrap();
        let (name, other) = (self.random.of(&NAMES), self.random.of(&NAMES));
        let (at, to) = (self.stores[i].at(name), self.stores[i].at(other));
        let is_dir = |at: &std::path::Path| fs::symlink_metadata(at).is_ok_and(|m| m.is_dir());
        let placed = |at: &std::path::Path| is_dir(at.parent().unwrap()) && !is_dir(at);
        match self.random.below(12) {
            0..4 if placed(&at) => {
                self.supersede(i, name);
                self.values += 1;
                let value = format!(
                    "value {} {}",
                    self.values,
                    "x".repeat(self.values as usize % 50)
                );
                if self.random.below(2) == 0 {
                    let _ = fs::remove_file(&at);
                }
                if !fs::symlink_metadata(&at).is_ok_and(|m| m.is_symlink()) {
                    fs::write(&at, &value).unwrap();
                    self.written.push(value.into_bytes());
                }
            }
            4 if placed(&at) => drop(fs::create_dir(&at)),
            5 => {
                self.supersede(i, name);
                let _ = if is_dir(&at) {
                    fs::remove_dir_all(&at)
                } else {
                    fs::remove_file(&at)
                };
            }
            6 if !fs::symlink_metadata(&at).is_ok_and(|m| m.is_symlink()) => {
                let mode = 0o700 | u32::try_from(self.random.below(64)).unwrap();
                let _ = fs::set_permissions(&at, Permissions::from_mode(mode));
            }
            7 | 8 if placed(&to) && !is_dir(&at) && at.exists() && at != to => {
                self.supersede(i, other);
                fs::rename(&at, &to).unwrap();
            }
            9 if placed(&at) => {
                self.supersede(i, name);
                let _ = fs::remove_file(&at);
                symlink(format!("{}", self.random.below(1000)), &at).unwrap();
            }
            10 | 11
                if placed(&to)
                    && fs::symlink_metadata(&at).is_ok_and(|m| m.is_file())
                    && at != to =>
            {
                self.supersede(i, other);
                let _ = fs::remove_file(&to);
                fs::hard_link(&at, &to).unwrap();
            }
            _ => {}
        }
    }

    /// One takes what another has.
    fn meet(&mut self, i: usize, j: usize) -> usize {
        let (here, there) = (self.stores[i].open(), self.stores[j].open());
        let anything = |open: &crate::common::Open| {
            let how = store::Look {
                now: crate::common::later(),
                held: false,
                unit: 100_000_000,
                excluded: &|_, _| false,
                may_be_empty: true,
                limit: LIMIT,
            };
            store::look(&open.set, &open.index, &how).unwrap()
        };
        anything(&here);
        anything(&there);
        let pulled = here.pull(&there).unwrap();
        pulled.operations
    }

    fn settle(&mut self) -> Result<(), String> {
        let n = self.stores.len();
        for _ in 0..15 {
            let mut operations = 0;
            for i in 0..n {
                for j in (0..n).filter(|j| *j != i) {
                    operations += self.meet(i, j);
                }
            }
            if operations == 0 {
                return Ok(());
            }
        }
        Err("no end of operations".into())
    }
}

fn run(seed: u64) -> Result<(), String> {
    let dir = fast();
    let mut random = Random(seed);
    let names = ["alpha", "beta", "gamma"];
    let count = 2 + usize::try_from(random.below(2)).unwrap();
    let stores = names[..count]
        .iter()
        .map(|n| Store::new(dir.path(), n))
        .collect();
    let mut world = World {
        random,
        stores,
        values: 0,
        written: Vec::new(),
        superseded: BTreeSet::new(),
    };
    for _ in 0..60 {
        match world.random.below(8) {
            0 => {
                let i = usize::try_from(world.random.below(count as u64)).unwrap();
                world.meet(i, (i + 1) % count);
            }
            _ => world.edit(),
        }
    }
    world.settle()?;
    let trees: Vec<Tree> = world.stores.iter().map(|s| tree(&s.root)).collect();
    if let Some(other) = trees.iter().find(|t| **t != trees[0]) {
        return Err(format!("not the same: {}", differing(&trees[0], other)));
    }
    let mut there: BTreeSet<Vec<u8>> = trees[0].values().map(|s| s.contents.clone()).collect();
    there.extend(world.superseded.iter().cloned());
    for store in &world.stores {
        let open = store.open();
        for (id, _) in open.set.aside.list(usize::MAX).unwrap() {
            let mut bytes = Vec::new();
            if let Ok(mut file) = open.set.aside.contents(&id) {
                file.read_to_end(&mut bytes).unwrap();
            }
            there.insert(bytes);
        }
    }
    if let Some(lost) = world.written.iter().find(|value| !there.contains(*value)) {
        return Err(format!("lost: {}", lost.escape_ascii()));
    }
    Ok(())
}

#[test]
fn random_trees_come_to_the_same_and_nothing_is_lost() {
    let seeds = match std::env::var("STANDIN_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("STANDIN_SEEDS=from..to");
            from.parse().unwrap()..to.parse().unwrap()
        }
        Err(_) => 0..12,
    };
    let failed: Vec<_> = seeds
        .filter_map(|seed| run(seed).err().map(|why| (seed, why)))
        .collect();
    if let Some((seed, why)) = failed.first() {
        let seeds: Vec<_> = failed.iter().map(|(seed, _)| seed).collect();
        panic!("seed {seed}: {why}\nfailing seeds: {seeds:?}");
    }
}

/// Something that somebody does to a name of a file, if it can be done.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Remove,
    Directory,
    Symlink,
    Replace,
    Append,
    Rename,
    Link,
}

fn does(store: &Store, deed: Deed, name: &str) {
    let (at, other) = (store.at(name), store.at("r"));
    let _ = match deed {
        Deed::Remove => fs::remove_file(&at).or_else(|_| fs::remove_dir(&at)),
        Deed::Directory => fs::remove_file(&at).and_then(|()| fs::create_dir(&at)),
        Deed::Symlink => {
            let _ = fs::remove_file(&at);
            std::os::unix::fs::symlink("nowhere", &at)
        }
        Deed::Replace => {
            fs::write(&other, name).unwrap();
            fs::rename(&other, &at)
        }
        Deed::Append => fs::write(&at, "in place"),
        Deed::Rename => fs::rename(&at, &other),
        Deed::Link => fs::hard_link(&at, &other),
    };
}

#[test]
fn whatever_two_things_one_does_to_the_names_of_a_file_the_other_gets_in_one_run() {
    use Deed::*;
    let deeds = [Remove, Directory, Symlink, Replace, Append, Rename, Link];
    let all: Vec<_> = deeds
        .iter()
        .flat_map(|deed| ["p", "q"].map(|name| (*deed, name)))
        .collect();
    let mut wrong = Vec::new();
    for first in &all {
        for second in &all {
            let dir = fast();
            let [alpha, beta] = ["alpha", "beta"].map(|name| Store::new(dir.path(), name));
            alpha.write("p", "of both");
            alpha.write("another", "");
            fs::hard_link(alpha.at("p"), alpha.at("q")).unwrap();
            alpha.look();
            beta.look();
            beta.open().pull(&alpha.open()).unwrap();
            for (deed, name) in [first, second] {
                does(&alpha, *deed, name);
            }
            let made = tree(&alpha.root);
            alpha.look();
            beta.look();
            let taken = beta.open().pull(&alpha.open()).unwrap();
            alpha.look();
            beta.look();
            let given = alpha.open().pull(&beta.open()).unwrap();
            let fine = taken.is_complete() && given.is_complete();
            let quiet = taken.conflicts + given.conflicts == 0;
            let alike = tree(&alpha.root) == made && tree(&beta.root) == made;
            if !(fine && quiet && alike) {
                wrong.push(format!("{first:?} {second:?}: {fine} {quiet} {alike}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "complete, no conflict, alike?\n{}",
        wrong.join("\n")
    );
}
