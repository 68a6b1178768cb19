//! Random histories on real trees: users work on two or three servers at once, then each has a run; and what came of it
//! is judged from outside, by what stands in the trees.
//!
//! `STANDIN_SEEDS=from..to` runs other seeds.

mod deeds;
mod judge;

use crate::common::{LIMIT, Open, Random, Store, Tree, differing, fast, folder_times, later, tree};
use deeds::{Values, firsts};
use filesync::{Conflict, Kind, Path};
use judge::{Round, copies_in, values_of};
use std::{collections::BTreeSet, io::Read, path::PathBuf};
use store::{Look, Summary, look};

/// What users do, and what is known of it.
struct Users {
    random: Random,
    roots: Vec<PathBuf>,
    spare: PathBuf,
    /// What each of them has to do with: the first components of names.
    firsts: Vec<Vec<&'static str>>,
    values: Values,
    round: Round,
    /// What was written and is neither gone nor kept aside, as far as is known.
    written: BTreeSet<Vec<u8>>,
    story: Vec<String>,
}

impl Users {
    /// Somebody on a server does something.
    fn work(&mut self, i: usize) {
        let before = tree(&self.roots[i]);
        let times = folder_times(&self.roots[i]);
        let Self {
            random,
            spare,
            values,
            ..
        } = self;
        let what = deeds::one(
            &self.roots[i],
            &before,
            spare,
            &self.firsts[i],
            random,
            values,
        );
        let after = tree(&self.roots[i]);
        let (had, has) = (values_of(&before), values_of(&after));
        let new: Vec<_> = has.difference(&had).map(|value| short(value)).collect();
        self.story.push(format!("{i}: {what} {}", new.concat()));
        self.written.extend(has.difference(&had).cloned());
        // What somebody removes may have another copy for a moment, while it is moved.
        let (copies, left) = (copies_in(&before), copies_in(&after));
        for (value, count) in copies {
            if left.get(&value).is_none_or(|left| *left < count) {
                self.written.remove(&value);
            }
        }
        self.round.made.extend(has.difference(&had).cloned());
        self.round.touch(i, &before, &after);
        // Somebody set it back, or moved an older directory there.
        let now = folder_times(&self.roots[i]);
        let older = times
            .into_iter()
            .filter(|(path, then)| now.get(path).is_some_and(|t| t < then));
        self.round.touched[i].extend(older.map(|(path, _)| path));
    }

    /// Each of them has names of its own, or all have all.
    fn divide(&mut self) {
        let n = self.roots.len();
        let apart = self.random.below(2) == 0;
        let mut own = vec![Vec::new(); n];
        for first in firsts() {
            let owner = self.random.below(n as u64) as usize;
            own[owner].push(first);
        }
        for (firsts_of, own) in self.firsts.iter_mut().zip(own) {
            *firsts_of = match apart && !own.is_empty() {
                true => own,
                false => firsts(),
            };
        }
    }
}

struct World {
    users: Users,
    opens: Vec<Open>,
    /// By how much each server's clock is fast, in nanoseconds.
    fast: Vec<u64>,
}

/// What came of a run.
#[derive(Default)]
struct Ran {
    operations: usize,
    conflicts: Vec<Conflict>,
    /// Where something was put off, or failed.
    undone: Vec<String>,
}

fn see(open: &Open, fast: u64) -> Result<Summary, String> {
    let how = Look {
        now: later() + fast,
        held: false,
        unit: 100_000_000,
        excluded: &|_, _| false,
        may_be_empty: true,
        limit: LIMIT,
    };
    look(&open.set, &open.index, &how).map_err(|e| e.to_string())
}

impl World {
    fn new(dir: &std::path::Path, seed: u64) -> Self {
        let mut random = Random(seed);
        let count = 2 + usize::from(random.below(3) == 0);
        let stores: Vec<_> = ["alpha", "beta", "gamma"][..count]
            .iter()
            .map(|name| Store::new(dir, name))
            .collect();
        let opens = stores.iter().map(|store| Open {
            together: random.of(&[1, 3, 4096]),
            page: random.of(&[3, 7, 1000]),
            ..store.open()
        });
        let opens = opens.collect();
        let hour = 3_600_000_000_000;
        let fast = (0..count).map(|_| random.of(&[0, 0, hour])).collect();
        let users = Users {
            roots: stores.iter().map(|s| s.root.clone()).collect(),
            spare: dir.join("spare"),
            firsts: vec![firsts(); count],
            values: Values::default(),
            round: Round::default(),
            written: BTreeSet::new(),
            story: Vec::new(),
            random,
        };
        Self { users, opens, fast }
    }

    fn trees(&self) -> Vec<Tree> {
        self.users.roots.iter().map(|root| tree(root)).collect()
    }

    /// One takes what another has; if `live`, users work meanwhile.
    fn pull(&mut self, i: usize, j: usize, live: bool, ran: &mut Ran) -> Result<(), String> {
        let Self { users, opens, .. } = self;
        users.story.push(format!("{i} takes from {j}"));
        let mut work = || {
            if live && users.random.below(2) == 0 {
                let who = users.random.below(users.roots.len() as u64);
                users.work(who as usize);
            }
        };
        let pulled = opens[i].pull_while(&opens[j], &mut work);
        let pulled = pulled.map_err(|e| e.to_string())?;
        ran.operations += pulled.operations;
        for applied in pulled.applied.iter().filter(|a| !a.is_complete()) {
            ran.undone.push(format!("{i}: {applied:?}"));
        }
        ran.conflicts.extend(pulled.conflicts);
        Ok(())
    }

    /// As a server does it that has a run: all look, it takes from all, and gives to all.
    fn run(&mut self, i: usize, live: bool) -> Result<Ran, String> {
        let mut ran = Ran::default();
        self.users.story.push(format!("{i} has a run"));
        for (open, fast) in self.opens.iter().zip(&self.fast) {
            see(open, *fast)?;
        }
        let others: Vec<_> = (0..self.opens.len()).filter(|j| *j != i).collect();
        for j in &others {
            self.pull(i, *j, live, &mut ran)?;
        }
        for j in &others {
            self.pull(*j, i, live, &mut ran)?;
        }
        Ok(ran)
    }

    /// A run in which nothing that would be lost is removed: what is left is nobody's edit.
    fn strict(&mut self, i: usize) -> Result<Ran, String> {
        self.opens.iter_mut().for_each(|open| open.strict = true);
        let ran = self.run(i, false);
        self.opens.iter_mut().for_each(|open| open.strict = false);
        ran
    }

    /// Runs until nobody has anything to do.
    fn settle(&mut self, first: usize) -> Result<(), String> {
        let n = self.opens.len();
        for k in 0..6 {
            let ran = self.run((first + k) % n, false)?;
            if !ran.undone.is_empty() && k + 1 >= n {
                return Err(format!("left undone in a later run: {:?}", ran.undone));
            }
            if ran.operations == 0 {
                return self.alike();
            }
        }
        Err("no end of operations".into())
    }

    fn alike(&self) -> Result<(), String> {
        let trees = self.trees();
        if let Some(other) = trees.iter().find(|t| **t != trees[0]) {
            return Err(format!("not the same: {}", differing(&trees[0], other)));
        }
        let times = self.users.roots.iter().map(|root| folder_times(root));
        let times: Vec<_> = times.collect();
        match times.iter().any(|t| *t != times[0]) {
            true => Err(format!("other times of directories: {times:?}")),
            false => Ok(()),
        }
    }

    fn kept(&self) -> BTreeSet<(usize, String, Path)> {
        let each = self.opens.iter().enumerate().flat_map(|(i, open)| {
            let list = open.set.aside.list(usize::MAX).unwrap();
            list.into_iter().map(move |(id, kept)| (i, id, kept.path))
        });
        each.collect()
    }

    /// What was written is in the tree or kept aside.
    fn nothing_lost(&mut self) -> Result<(), String> {
        let there = values_of(&tree(&self.users.roots[0]));
        if let Some(risen) = there.iter().find(|v| !self.users.round.knows(v)) {
            return Err(format!("it has come back: {}", short(risen)));
        }
        let mut missing: BTreeSet<_> = self.users.written.difference(&there).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        for (i, id, _) in self.kept() {
            let (mut bytes, aside) = (Vec::new(), &self.opens[i].set.aside);
            if let Kind::Symlink { target } = aside.kept(&id).unwrap().node.kind {
                bytes = target;
            } else if let Ok(mut file) = aside.contents(&id) {
                file.read_to_end(&mut bytes).unwrap();
            }
            if missing.remove(&bytes) {
                self.users.written.remove(&bytes);
            }
        }
        match missing.first() {
            None => Ok(()),
            Some(lost) => Err(format!("lost: {}", short(lost))),
        }
    }

    /// All work, then there is a run: what it comes to is judged path by path.
    fn apart(&mut self) -> Result<(), String> {
        let n = self.opens.len();
        self.users.divide();
        let most = self.users.random.of(&[2, 5, 12]);
        for i in 0..n {
            for _ in 0..=self.users.random.below(most) {
                self.users.work(i);
            }
        }
        let kept = self.kept();
        let ends = self.trees();
        let first = self.users.random.below(n as u64) as usize;
        let apart = self.users.round.is_apart();
        let mut conflicts = Vec::new();
        if self.users.random.below(3) == 0 {
            conflicts.extend(self.strict(first)?.conflicts);
            for (i, open) in self.opens.iter().enumerate() {
                let again = see(open, self.fast[i])?;
                if again.changed + again.removed > 0 && apart {
                    return Err(format!(
                        "what is refused counts as an edit on {i}: {again:?}"
                    ));
                }
            }
        }
        for k in 0..n {
            let ran = self.run((first + k) % n, false)?;
            conflicts.extend(ran.conflicts);
            // What is in a directory that lost to something else waits until that is done elsewhere.
            if !ran.undone.is_empty() && (k + 1 == n || apart) {
                return Err(format!("left undone in run {k}: {:?}", ran.undone));
            }
            if apart {
                self.alike()?;
            }
            for (i, open) in self.opens.iter().enumerate() {
                let again = see(open, self.fast[i])?;
                if again.changed + again.removed > 0 && (k + 1 == n || apart) {
                    return Err(format!("run {k} counts as an edit on {i}: {again:?}"));
                }
            }
        }
        self.alike()?;
        let kept_now = self.kept();
        let kept = kept_now.difference(&kept).map(|(_, _, path)| path);
        let end = tree(&self.users.roots[0]);
        self.users.round.judge(&ends, &end, &conflicts, kept)?;
        self.settle(first)
    }

    /// Some take from others while all work.
    fn mixed(&mut self) -> Result<(), String> {
        let n = self.opens.len() as u64;
        for _ in 0..self.users.random.below(40) {
            let i = self.users.random.below(n) as usize;
            if self.users.random.below(4) > 0 {
                self.users.work(i);
                continue;
            }
            let j = (i + 1) % self.opens.len();
            see(&self.opens[i], self.fast[i])?;
            see(&self.opens[j], self.fast[j])?;
            self.pull(i, j, false, &mut Ran::default())?;
        }
        self.settle(0)
    }

    /// Users work while a run goes on.
    fn live(&mut self) -> Result<(), String> {
        let n = self.opens.len();
        for i in 0..n {
            for _ in 0..self.users.random.below(4) {
                self.users.work(i);
            }
        }
        let first = self.users.random.below(n as u64) as usize;
        self.run(first, true)?;
        self.settle(first)
    }

    fn round(&mut self) -> Result<(), String> {
        self.users.story.push("--".into());
        self.users.round = Round::new(tree(&self.users.roots[0]), self.opens.len());
        match self.users.random.below(8) {
            0 => self.mixed(),
            1 => self.live(),
            _ => self.apart(),
        }?;
        self.nothing_lost()
    }
}

fn short(value: &[u8]) -> String {
    value[..value.len().min(12)].escape_ascii().to_string()
}

fn history(seed: u64) -> Result<(), String> {
    let dir = fast();
    let mut world = World::new(dir.path(), seed);
    world.users.round = Round::new(Tree::new(), world.opens.len());
    for _ in 0..world.users.random.below(40) {
        world.users.work(0);
    }
    world.settle(0)?;
    for _ in 0..8 {
        world.round().map_err(|why| {
            let last = world.users.story.rsplit(|deed| deed == "--").next();
            let story = last.unwrap_or_default().join("\n  ");
            format!("{why}\n  {}\n  {story}", world.users.round.base())
        })?;
    }
    Ok(())
}

#[test]
fn whatever_users_do_one_run_each_way_brings_it_to_all_and_only_what_two_changed_is_a_conflict() {
    let seeds = match std::env::var("STANDIN_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("STANDIN_SEEDS=from..to");
            from.parse().unwrap()..to.parse().unwrap()
        }
        Err(_) => 0..8,
    };
    let failed: Vec<_> = seeds
        .filter_map(|seed| history(seed).err().map(|why| (seed, why)))
        .collect();
    if let Some((seed, why)) = failed.first() {
        let kinds = failed.iter().map(|(seed, why)| {
            let line: String = why.lines().next().unwrap_or("").chars().take(150).collect();
            format!("{seed}: {line}")
        });
        let kinds: Vec<_> = kinds.collect();
        panic!("failing seeds:\n{}\nseed {seed}: {why}", kinds.join("\n"));
    }
}
