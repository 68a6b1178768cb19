//! What is due now, and what comes of how it ended.

use crate::{
    cron::Cron,
    memory::{Debt, Done, Last, Memory, Past, Why},
};
use protocol::{BootTime, ServerName, Term, VirtualServerName};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Nothing may have changed for so long before it is passed on,
const QUIET: Duration = Duration::from_secs(2);
/// but it does not wait for longer than this.
const QUIET_MAX: Duration = Duration::from_secs(30);
/// How long a failed run waits for the next try, first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(900));
/// Something new is owed to a server that is there: it waits no longer than this, however often it failed before.
const SOON: Duration = Duration::from_secs(60);
/// The clock is read again after so long: it may have been set.
const CLOCK: Duration = Duration::from_secs(60);
/// Servers begin what is scheduled for one moment within so many seconds, one after another,
const SPLAY: i64 = 600;
/// and within this part of the time to the next such moment.
const SPLAY_PART: i64 = 4;
/// Who was seen later than this, in seconds, was seen by a clock that has been set back since.
const CLOCK_ERROR: u64 = 86_400;

/// A moment.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Since the machine started: for all waiting.
    pub boot: BootTime,
    /// Seconds since 1970: for schedules, and for what a person reads.
    pub real: u64,
}

/// When a set is made alike.
#[derive(Clone, Debug)]
pub struct SetRules {
    /// Its name.
    pub name: ServerName,
    /// With every election.
    pub election: bool,
    /// At these moments.
    pub cron: Vec<Cron>,
}

/// What the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The other servers that have files.
    pub peers: Vec<ServerName>,
    /// This server's place among all, and how many there are.
    pub place: (u32, u32),
    /// The virtual server whose master numbers runs.
    pub keeper: Option<VirtualServerName>,
    /// The sets.
    pub sets: Vec<SetRules>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// For [`Plan::ended`].
    pub id: u64,
    /// These sets,
    pub sets: Vec<ServerName>,
    /// with each of these servers,
    pub peers: Vec<ServerName>,
    /// for this reason.
    pub why: Why,
    /// If this brings anything new, number it as a run in this term.
    pub number: Option<Term>,
    /// Only if something of this server's own is new.
    pub check: bool,
}

impl Job {
    /// Each of the sets with each of the servers.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> {
        let with = |set| self.peers.iter().map(move |peer| (set, peer));
        let pairs = self.sets.iter().flat_map(with);
        pairs.map(|(set, peer): (&ServerName, &ServerName)| (set.clone(), peer.clone()))
    }
}

/// How a job ended.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// For each set and server what was done, or why nothing.
    pub outcomes: BTreeMap<Pair, Result<Done, String>>,
    /// There was something new, and it has got a number.
    pub numbered: bool,
    /// There was nothing to check for.
    pub idle: bool,
}

/// A set and a server.
pub type Pair = (ServerName, ServerName);

/// See the module.
#[derive(Debug)]
pub struct Plan {
    rules: Rules,
    memory: Memory,
    masters: BTreeMap<VirtualServerName, Term>,
    down: BTreeSet<ServerName>,
    /// First and last word of a change, and which it was.
    changed: BTreeMap<ServerName, (BootTime, BootTime, Why)>,
    /// When what is owed is tried; now, if it is not here.
    next: BTreeMap<Pair, BootTime>,
    running: Vec<Job>,
    /// Owed again since the run began that would have paid it.
    again: BTreeMap<Pair, Why>,
    last_id: u64,
    /// A term has begun, and nothing that this server has was numbered in it.
    unnumbered: bool,
}

impl Plan {
    /// With what is remembered.
    pub fn new(rules: Rules, memory: Memory) -> Self {
        let mut plan = Self {
            rules: Rules::default(),
            memory,
            masters: BTreeMap::new(),
            down: BTreeSet::new(),
            changed: BTreeMap::new(),
            next: BTreeMap::new(),
            running: Vec::new(),
            again: BTreeMap::new(),
            last_id: 0,
            unnumbered: false,
        };
        plan.rules(rules);
        plan
    }

    /// The configuration is another one now. What it does not name any more is owed no more.
    pub fn rules(&mut self, rules: Rules) {
        let sets: BTreeSet<_> = rules.sets.iter().map(|s| &s.name).collect();
        self.memory.sets.retain(|set, _| sets.contains(set));
        self.changed.retain(|set, _| sets.contains(set));
        for past in self.memory.sets.values_mut() {
            past.debts.retain(|peer, _| rules.peers.contains(peer));
            past.last.retain(|peer, _| rules.peers.contains(peer));
        }
        self.rules = rules;
    }

    /// What must be on the disk.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What is at work now.
    pub fn running(&self) -> &[Job] {
        &self.running
    }

    /// This server is master of a virtual server, in this term, or is not.
    pub fn master(&mut self, v: VirtualServerName, term: Option<Term>, now: Now) {
        let Some(term) = term else {
            self.masters.remove(&v);
            return;
        };
        self.unnumbered |=
            self.rules.keeper.as_ref() == Some(&v) && self.masters.get(&v) != Some(&term);
        self.masters.insert(v.clone(), term);
        if self.memory.elections.get(&v).is_none_or(|t| *t < term) {
            self.memory.elections.insert(v, term);
            for set in self.group() {
                self.owe_all(&set, Why::Election, now);
            }
        }
    }

    /// Nobody tells any more who is master, and who is there.
    pub fn blind(&mut self) {
        self.masters.clear();
        self.down.clear();
    }

    /// These servers do not answer; all others do.
    pub fn down(&mut self, down: BTreeSet<ServerName>, now: Now) {
        for back in self.down.difference(&down) {
            for ((_, peer), at) in &mut self.next {
                if peer == back {
                    *at = now.boot;
                }
            }
        }
        self.down = down;
    }

    /// Something changed in a set here.
    pub fn changed(&mut self, set: &ServerName, now: Now) {
        self.stir(set, Why::Change, now);
    }

    /// Another server has brought something new here.
    pub fn brought(&mut self, set: &ServerName, now: Now) {
        if self.numbers().is_some() && self.group().contains(set) {
            self.stir(set, Why::Brought, now);
        }
    }

    fn stir(&mut self, set: &ServerName, why: Why, now: Now) {
        if self.rules.sets.iter().any(|s| s.name == *set) {
            let entry = self.changed.entry(set.clone());
            let known = entry.or_insert((now.boot, now.boot, why));
            *known = (known.0, now.boot, known.2.max(why));
        }
    }

    /// Somebody asks for these sets and servers; none: all.
    pub fn wanted(&mut self, sets: &[ServerName], peers: &[ServerName], now: Now) {
        for pair in self.pairs(sets, peers) {
            self.owe(pair, Why::Hand, now);
        }
    }

    /// Whether all that was asked for was tried, and what came of it passed on.
    pub fn was_tried(&self, sets: &[ServerName], peers: &[ServerName]) -> bool {
        let tried = |(set, peer): &Pair| {
            let debt = self.memory.sets.get(set).and_then(|p| p.debts.get(peer));
            let owed = debt.is_some_and(|d| d.why >= Why::Hand && d.tries == 0);
            let at_work = |j: &Job| {
                let asked = matches!(j.why, Why::Follow | Why::Hand | Why::Election);
                asked && j.sets.contains(set) && j.peers.contains(peer)
            };
            !owed && !self.running.iter().any(at_work)
        };
        self.pairs(sets, peers).iter().all(tried)
    }

    /// These sets with these servers; none: all.
    fn pairs(&self, sets: &[ServerName], peers: &[ServerName]) -> Vec<Pair> {
        let all =
            |names: &[ServerName], name: &ServerName| names.is_empty() || names.contains(name);
        let sets = self.rules.sets.iter().filter(|s| all(sets, &s.name));
        let pairs = sets.flat_map(|s| {
            let peers = self.rules.peers.iter().filter(|p| all(peers, p));
            peers.map(|p| (s.name.clone(), p.clone()))
        });
        pairs.collect()
    }

    /// In which term this server numbers runs.
    pub fn numbers(&self) -> Option<Term> {
        self.masters.get(self.rules.keeper.as_ref()?).copied()
    }

    /// The sets that go with elections.
    fn group(&self) -> Vec<ServerName> {
        let sets = self.rules.sets.iter().filter(|s| s.election);
        sets.map(|s| s.name.clone()).collect()
    }

    fn owe_all(&mut self, set: &ServerName, why: Why, now: Now) {
        for peer in self.rules.peers.clone() {
            self.owe((set.clone(), peer), why, now);
        }
    }

    fn owe(&mut self, pair: Pair, why: Why, now: Now) {
        let at_work = |j: &Job| j.sets.contains(&pair.0) && j.peers.contains(&pair.1);
        if self.running.iter().any(at_work) {
            let again = self.again.entry(pair.clone()).or_insert(why);
            *again = (*again).max(why);
        }
        let past = self.memory.sets.entry(pair.0.clone()).or_default();
        let urgent = matches!(why, Why::Hand | Why::Election);
        let new = !past.debts.contains_key(&pair.1);
        let debt = past.debts.entry(pair.1.clone()).or_insert(Debt {
            since: now.real,
            why,
            tries: 0,
        });
        debt.why = debt.why.max(why);
        if urgent {
            debt.tries = 0; // what went wrong before may be mended
        }
        if self.down.contains(&pair.1) && why != Why::Hand {
            // It is tried at once when it is heard.
            if new {
                self.next.insert(pair, now.boot + PAUSE.1);
            }
        } else if new || urgent {
            self.next.insert(pair, now.boot);
        } else if let Some(at) = self.next.get_mut(&pair) {
            *at = (*at).min(now.boot + SOON);
        }
    }

    /// What is to be begun now, if anything is. `offset` tells by how many seconds local time is ahead at a moment.
    pub fn poll(&mut self, now: Now, offset: &dyn Fn(i64) -> i64) -> Option<Job> {
        self.scheduled(now, offset);
        self.quiet(now);
        let number = self.numbers();
        let group = self.group();
        // Elections first, in the order of the configuration: other sets' files have owners.
        let others = self.rules.sets.iter().filter(|s| !s.election);
        let mut lots: Vec<Vec<ServerName>> = match number {
            Some(_) if !group.is_empty() => vec![group.clone()],
            _ => group.iter().map(|s| vec![s.clone()]).collect(),
        };
        lots.extend(others.map(|s| vec![s.name.clone()]));
        let job = lots
            .into_iter()
            .find_map(|sets| self.job(sets, number, &group, now))?;
        self.running.push(job.clone());
        Some(job)
    }

    fn job(
        &mut self,
        sets: Vec<ServerName>,
        number: Option<Term>,
        group: &[ServerName],
        now: Now,
    ) -> Option<Job> {
        let busy = |set: &ServerName| self.running.iter().any(|j| j.sets.contains(set));
        if sets.iter().any(busy) {
            return None;
        }
        let mut peers = BTreeSet::new();
        let mut whys = Vec::new();
        for (set, peer, debt) in self.debts().filter(|(set, ..)| sets.contains(set)) {
            if self.due(set, peer).is_none_or(|at| at <= now.boot) {
                peers.insert(peer.clone());
                whys.push((debt.why, debt.tries));
            }
        }
        let of_group = number.is_some() && sets.iter().all(|s| group.contains(s));
        if of_group && self.unnumbered && whys.is_empty() {
            // Nobody is there: what this server has is still what the master of this term has.
            whys.push((Why::Election, 0));
        }
        let why = whys.iter().map(|(why, _)| *why).max()?;
        let numbers = of_group && why != Why::Follow;
        self.unnumbered &= !numbers;
        self.last_id += 1;
        Some(Job {
            id: self.last_id,
            sets,
            peers: peers.into_iter().collect(),
            why,
            number: number.filter(|_| numbers),
            check: whys.iter().all(|w| *w == (Why::Change, 0)),
        })
    }

    fn debts(&self) -> impl Iterator<Item = (&ServerName, &ServerName, &Debt)> {
        let sets = self.memory.sets.iter();
        sets.flat_map(|(set, past)| past.debts.iter().map(move |(peer, d)| (set, peer, d)))
    }

    fn due(&self, set: &ServerName, peer: &ServerName) -> Option<BootTime> {
        self.next.get(&(set.clone(), peer.clone())).copied()
    }

    /// What the clock brings.
    fn scheduled(&mut self, now: Now, offset: &dyn Fn(i64) -> i64) {
        for set in self.rules.sets.clone() {
            if set.cron.is_empty() {
                continue;
            }
            let past = self.memory.sets.entry(set.name.clone()).or_default();
            let seen = past.seen.filter(|s| *s <= now.real + CLOCK_ERROR);
            let Some(seen) = seen else {
                past.seen = Some(now.real);
                continue;
            };
            let due = next_of(&set, seen, self.rules.place, offset);
            if due.is_some_and(|at| at <= now.real) {
                past.seen = Some(now.real);
                self.owe_all(&set.name, Why::Cron, now);
            }
        }
    }

    /// When the clock next brings a set, in seconds since 1970.
    pub fn next_of(&self, set: &ServerName, offset: &dyn Fn(i64) -> i64) -> Option<u64> {
        let seen = self.memory.sets.get(set)?.seen?;
        let rules = self.rules.sets.iter().find(|s| s.name == *set)?;
        next_of(rules, seen, self.rules.place, offset)
    }

    /// What has changed and come to rest.
    fn quiet(&mut self, now: Now) {
        let rest = |(first, last, _): &(BootTime, BootTime, Why)| rests(*first, *last) <= now.boot;
        let ready = self.changed.iter().filter(|(_, c)| rest(c));
        let ready: Vec<_> = ready.map(|(set, c)| (set.clone(), c.2)).collect();
        for (set, why) in ready {
            self.changed.remove(&set);
            self.owe_all(&set, why, now);
        }
    }

    /// When to poll again at the latest.
    pub fn wake(&self, now: Now, offset: &dyn Fn(i64) -> i64) -> Option<BootTime> {
        let free = |set: &ServerName| !self.running.iter().any(|j| j.sets.contains(set));
        let debts = self.debts().filter(|(set, ..)| free(set));
        let debts = debts.map(|(set, peer, _)| self.due(set, peer).unwrap_or(now.boot));
        let changes = self
            .changed
            .values()
            .map(|(first, last, _)| rests(*first, *last));
        let clocks = self.rules.sets.iter().filter(|s| !s.cron.is_empty());
        let clocks = clocks.map(|set| {
            let next = self.next_of(&set.name, offset);
            let wait = next.map_or(CLOCK, |at| Duration::from_secs(at.saturating_sub(now.real)));
            now.boot + wait.min(CLOCK)
        });
        debts.chain(changes).chain(clocks).min()
    }

    /// A job has ended.
    pub fn ended(&mut self, id: u64, ended: &Ended, now: Now) {
        let Some(place) = self.running.iter().position(|j| j.id == id) else {
            return;
        };
        let job = self.running.remove(place);
        for pair in job.pairs() {
            let missed = Err("not reached in time".to_owned());
            let outcome = match ended.idle {
                true => None,
                false => Some(ended.outcomes.get(&pair).cloned().unwrap_or(missed)),
            };
            self.settle(pair, job.why, outcome, now);
        }
        if ended.numbered {
            for set in self.group() {
                self.owe_all(&set, Why::Follow, now);
            }
        } else if job.why != Why::Follow {
            self.pass_on(&job, ended, now);
        }
    }

    /// None: there was nothing to do.
    fn settle(&mut self, pair: Pair, why: Why, outcome: Option<Result<Done, String>>, now: Now) {
        if !self.rules.peers.contains(&pair.1) {
            return;
        }
        let Some(past) = self.memory.sets.get_mut(&pair.0) else {
            return;
        };
        let again = self.again.remove(&pair);
        let paid = match &outcome {
            None => true,
            Some(outcome) => outcome.as_ref().is_ok_and(|done| done.complete),
        };
        if paid {
            past.debts.remove(&pair.1);
            self.next.remove(&pair);
        } else {
            let debt = past.debts.entry(pair.1.clone()).or_insert(Debt {
                since: now.real,
                why,
                tries: 0,
            });
            debt.tries += 1;
            let pause = PAUSE.0 * 2_u32.pow((debt.tries - 1).min(16));
            let apart = Duration::from_secs(self.rules.place.0.into());
            self.next
                .insert(pair.clone(), now.boot + pause.min(PAUSE.1) + apart);
        }
        if let Some(outcome) = outcome {
            let at = now.real;
            let last = Last { at, why, outcome };
            if last.is_notable() {
                past.notable.0.insert(pair.1.clone(), last.clone());
            }
            past.last.insert(pair.1.clone(), last);
        }
        if let (true, Some(why)) = (paid, again) {
            self.owe(pair, why, now);
        }
    }

    /// What one server gave is new to the others that were met before it.
    fn pass_on(&mut self, job: &Job, ended: &Ended, now: Now) {
        for set in &job.sets {
            let with = |p: &ServerName| ended.outcomes.get(&(set.clone(), p.clone()));
            let met = job
                .peers
                .iter()
                .filter(|p| with(p).is_some_and(Result::is_ok));
            let gave = |p: &ServerName| matches!(with(p), Some(Ok(done)) if done.taken > 0);
            let owed: Vec<_> = met
                .filter(|p| job.peers.iter().any(|other| other != *p && gave(other)))
                .cloned()
                .collect();
            for peer in owed {
                self.owe((set.clone(), peer), Why::Follow, now);
            }
        }
    }

    /// What is owed and how it went, for those who ask.
    pub fn past(&self, set: &ServerName) -> Option<&Past> {
        self.memory.sets.get(set)
    }
}

fn rests(first: BootTime, last: BootTime) -> BootTime {
    (last + QUIET).min(first + QUIET_MAX)
}

/// The first moment after `seen` that one of its lines names, and this server's place after it.
fn next_of(
    set: &SetRules,
    seen: u64,
    (place, servers): (u32, u32),
    offset: &dyn Fn(i64) -> i64,
) -> Option<u64> {
    let seen = i64::try_from(seen).ok()?;
    let next = |cron: &Cron| {
        let at = cron.next(seen, offset)?;
        let after = cron.next(at, offset).unwrap_or(i64::MAX);
        let window = ((after - at) / SPLAY_PART).min(SPLAY);
        Some(at + window * i64::from(place) / i64::from(servers.max(1)))
    };
    let first = set.cron.iter().filter_map(next).min()?;
    u64::try_from(first).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    fn web() -> VirtualServerName {
        "web".parse().unwrap()
    }

    fn at(seconds: u64) -> Now {
        Now {
            boot: BootTime(seconds * 1_000_000_000),
            real: 1_767_225_600 + seconds, // 1 January 2026, a Thursday
        }
    }

    fn flat(_: i64) -> i64 {
        0
    }

    fn rules() -> Rules {
        let set = |text: &str, election: bool, cron: &[&str]| SetRules {
            name: name(text),
            election,
            cron: cron.iter().map(|c| c.parse().unwrap()).collect(),
        };
        Rules {
            peers: vec![name("beta"), name("gamma")],
            place: (0, 3),
            keeper: Some(web()),
            sets: vec![
                set("accounts", true, &[]),
                set("data", false, &["0 3 * * *"]),
                set("mail", true, &[]),
            ],
        }
    }

    fn plan() -> Plan {
        Plan::new(rules(), Memory::default())
    }

    fn poll(plan: &mut Plan, now: Now) -> Option<Job> {
        plan.poll(now, &flat)
    }

    /// All went well with all, and so many changes were taken from the server of that name.
    fn well(job: &Job, gave: &[(&str, u64)]) -> Ended {
        let mut ended = Ended::default();
        for (set, peer) in job
            .sets
            .iter()
            .flat_map(|s| job.peers.iter().map(move |p| (s, p)))
        {
            let taken = gave.iter().find(|(p, _)| *p == peer.as_str());
            let done = Done {
                complete: true,
                taken: taken.map_or(0, |(_, n)| *n),
                ..Done::default()
            };
            ended.outcomes.insert((set.clone(), peer.clone()), Ok(done));
        }
        ended
    }

    fn failed(job: &Job, peer: &str) -> Ended {
        let mut ended = well(job, &[]);
        for ((_, p), outcome) in &mut ended.outcomes {
            if p.as_str() == peer {
                *outcome = Err("no answer".into());
            }
        }
        ended
    }

    fn names(list: &[ServerName]) -> Vec<&str> {
        list.iter().map(ServerName::as_str).collect()
    }

    #[test]
    fn what_was_asked_for_was_tried_when_it_ended_well_or_not_and_was_passed_on() {
        let mut plan = plan();
        let (data, beta) = ([name("data")], [name("beta")]);
        assert!(plan.was_tried(&data, &[]));
        plan.wanted(&data, &[], at(0));
        assert!(!plan.was_tried(&data, &[]));
        let job = poll(&mut plan, at(0)).unwrap();
        assert!(!plan.was_tried(&[], &[]) && plan.was_tried(&[name("mail")], &[]));
        // Asked for once more while it is at work.
        plan.wanted(&data, &beta, at(1));
        plan.ended(job.id, &well(&job, &[("gamma", 1)]), at(2));
        assert!(!plan.was_tried(&data, &beta));
        let again = poll(&mut plan, at(2)).unwrap();
        plan.ended(again.id, &failed(&again, "beta"), at(3));
        assert!(plan.was_tried(&data, &beta));
        while let Some(job) = poll(&mut plan, at(3)) {
            assert_eq!(job.why, Why::Follow);
            assert!(!plan.was_tried(&data, &job.peers));
            plan.ended(job.id, &well(&job, &[]), at(3));
        }
        assert!(plan.was_tried(&[], &[]));
    }

    #[test]
    fn the_last_run_that_did_anything_is_known_until_another_one_does() {
        let mut plan = plan();
        let known = |plan: &Plan| {
            let past = &plan.memory().sets[&name("data")];
            let of = |map: &BTreeMap<ServerName, Last>| map.get(&name("beta")).cloned();
            (of(&past.last).unwrap(), of(&past.notable.0))
        };
        let mut run = |second, outcome: Result<Done, String>| {
            plan.wanted(&[name("data")], &[name("beta")], at(second));
            let job = poll(&mut plan, at(second)).unwrap();
            let mut ended = Ended::default();
            ended.outcomes.insert((name("data"), name("beta")), outcome);
            plan.ended(job.id, &ended, at(second + 1));
            known(&plan)
        };
        let done = |given, complete| Done {
            complete,
            given,
            ..Done::default()
        };
        assert_eq!(run(0, Ok(done(0, true))).1, None);
        let notable = [
            Ok(done(2, true)),
            Ok(done(0, false)),
            Err("gone".to_owned()),
        ];
        for (i, outcome) in (1..).zip(notable) {
            let (last, notable) = run(i * 100, outcome);
            assert_eq!(notable, Some(last.clone()));
            let (trivial, notable) = run(i * 100 + 50, Ok(done(0, true)));
            assert_eq!(notable, Some(last));
            assert_ne!(notable, Some(trivial));
        }
    }

    #[test]
    fn a_new_master_merges_with_all_numbers_the_run_and_visits_all_again() {
        let mut plan = plan();
        assert_eq!(poll(&mut plan, at(0)), None);
        plan.master(web(), Some(Term(7)), at(1));
        let job = poll(&mut plan, at(1)).unwrap();
        assert_eq!(names(&job.sets), ["accounts", "mail"]);
        assert_eq!(names(&job.peers), ["beta", "gamma"]);
        assert_eq!(
            (job.why, job.number, job.check),
            (Why::Election, Some(Term(7)), false)
        );
        assert_eq!(poll(&mut plan, at(1)), None, "one run at a time");
        let numbered = Ended {
            numbered: true,
            ..well(&job, &[("beta", 3)])
        };
        plan.ended(job.id, &numbered, at(2));
        let follow = poll(&mut plan, at(2)).unwrap();
        assert_eq!(names(&follow.peers), ["beta", "gamma"]);
        assert_eq!((follow.why, follow.number), (Why::Follow, None));
        // What comes meanwhile waits for the next occasion: two servers that never rest make no endless round.
        plan.ended(follow.id, &well(&follow, &[("gamma", 1)]), at(3));
        assert_eq!(poll(&mut plan, at(4)), None);
        plan.master(web(), Some(Term(7)), at(5));
        assert_eq!(poll(&mut plan, at(5)), None, "once in a term");
        plan.master(web(), Some(Term(8)), at(6));
        assert_eq!(poll(&mut plan, at(6)).unwrap().number, Some(Term(8)));
    }

    #[test]
    fn a_term_is_done_once_even_after_a_restart() {
        let mut first = plan();
        first.master(web(), Some(Term(7)), at(1));
        let job = poll(&mut first, at(1)).unwrap();
        first.ended(job.id, &well(&job, &[]), at(2));
        let mut second = Plan::new(rules(), first.memory().clone());
        second.master(web(), Some(Term(7)), at(3));
        let job = poll(&mut second, at(3)).unwrap();
        assert_eq!(
            (job.peers.len(), job.number),
            (0, Some(Term(7))),
            "nobody is owed"
        );
        // But what it did not get done is.
        let mut third = plan();
        third.master(web(), Some(Term(7)), at(1));
        let mut third = Plan::new(rules(), third.memory().clone());
        assert_eq!(poll(&mut third, at(2)).unwrap().peers.len(), 2);
    }

    #[test]
    fn a_master_of_something_else_merges_but_does_not_number() {
        let mut plan = plan();
        plan.master("mail".parse().unwrap(), Some(Term(7)), at(1));
        let job = poll(&mut plan, at(1)).unwrap();
        assert_eq!((job.why, job.number), (Why::Election, None));
        assert_eq!(job.sets.len(), 1, "each set by itself");
    }

    #[test]
    fn what_cannot_be_paid_is_tried_ever_later_and_survives() {
        let mut plan = plan();
        plan.wanted(&[name("data")], &[], at(0));
        let mut now = 0;
        for pause in [5, 10, 20, 40, 80, 160, 320, 640, 900, 900] {
            let job = poll(&mut plan, at(now)).unwrap();
            assert_eq!(names(&job.peers).last(), Some(&"gamma"));
            plan.ended(job.id, &failed(&job, "gamma"), at(now));
            assert_eq!(poll(&mut plan, at(now + pause - 1)), None);
            assert_eq!(
                plan.wake(at(now), &flat).map(|w| w.min(at(now + 59).boot)),
                Some(at(now + pause.min(59)).boot)
            );
            now += pause;
        }
        let memory = plan.memory().clone();
        let past = &memory.sets[&name("data")];
        assert_eq!(
            names(&past.debts.keys().cloned().collect::<Vec<_>>()),
            ["gamma"]
        );
        assert_eq!(
            (
                past.debts[&name("gamma")].since,
                past.debts[&name("gamma")].tries
            ),
            (at(0).real, 10)
        );
        assert!(
            past.last[&name("beta")].outcome.is_ok() && past.last[&name("gamma")].outcome.is_err()
        );
        // Something new does not wait as long.
        plan.changed(&name("data"), at(now - 300));
        let job = poll(&mut plan, at(now - 298)).unwrap();
        assert_eq!(names(&job.peers), ["beta"]);
        plan.ended(job.id, &well(&job, &[]), at(now - 298));
        assert_eq!(poll(&mut plan, at(now - 239)), None);
        let job = poll(&mut plan, at(now - 238)).unwrap();
        assert_eq!(names(&job.peers), ["gamma"]);
        plan.ended(job.id, &failed(&job, "gamma"), at(now - 238));
        // Somebody who has mended it need not wait for long again.
        plan.wanted(&[name("data")], &[name("gamma")], at(now));
        let job = poll(&mut plan, at(now)).unwrap();
        plan.ended(job.id, &failed(&job, "gamma"), at(now));
        assert!(poll(&mut plan, at(now + 5)).is_some());
        let mut restarted = Plan::new(rules(), memory);
        let job = poll(&mut restarted, at(0)).unwrap();
        assert_eq!((names(&job.peers), job.check), (vec!["gamma"], false));
        restarted.ended(job.id, &well(&job, &[]), at(1));
        assert!(restarted.memory().sets[&name("data")].debts.is_empty());
    }

    #[test]
    fn who_is_down_is_owed_and_met_when_it_is_back() {
        let mut plan = plan();
        plan.down([name("gamma")].into(), at(0));
        plan.changed(&name("data"), at(0));
        let job = poll(&mut plan, at(2)).unwrap();
        assert_eq!((names(&job.peers), job.check), (vec!["beta"], true));
        plan.ended(job.id, &well(&job, &[]), at(3));
        assert_eq!(poll(&mut plan, at(60)), None);
        plan.down(BTreeSet::new(), at(61));
        let job = poll(&mut plan, at(61)).unwrap();
        assert_eq!(names(&job.peers), ["gamma"]);
        plan.ended(job.id, &failed(&job, "gamma"), at(62));
        // A change that did not reach it is one still, whatever a look says.
        plan.changed(&name("data"), at(62));
        let job = poll(&mut plan, at(67)).unwrap();
        assert_eq!(
            (names(&job.peers), job.check),
            (vec!["beta", "gamma"], false)
        );
        plan.ended(job.id, &failed(&job, "gamma"), at(68));
        // Whoever is down for the doctor may still answer, and somebody may ask for it.
        plan.down([name("gamma")].into(), at(69));
        assert!(poll(&mut plan, at(78)).is_some());
    }

    #[test]
    fn a_master_with_nobody_there_numbers_what_it_has() {
        let mut plan = plan();
        plan.down([name("beta"), name("gamma")].into(), at(0));
        plan.master(web(), Some(Term(7)), at(1));
        let job = poll(&mut plan, at(1)).unwrap();
        assert_eq!((job.peers.len(), job.number), (0, Some(Term(7))));
        let ended = Ended {
            numbered: true,
            ..Ended::default()
        };
        plan.ended(job.id, &ended, at(2));
        assert_eq!(poll(&mut plan, at(3)), None);
        plan.down([name("gamma")].into(), at(4));
        let job = poll(&mut plan, at(4)).unwrap();
        assert_eq!(
            (names(&job.peers), job.number),
            (vec!["beta"], Some(Term(7)))
        );
    }

    #[test]
    fn changes_come_to_rest_first_but_not_for_ever() {
        let mut plan = plan();
        for second in 0..29 {
            plan.changed(&name("data"), at(second));
            assert_eq!(poll(&mut plan, at(second)), None);
        }
        plan.changed(&name("data"), at(30));
        let job = poll(&mut plan, at(30)).unwrap();
        assert_eq!(job.why, Why::Change);
        // Changed while it ran: it runs again, and finds out that it was itself.
        plan.changed(&name("data"), at(31));
        assert_eq!(poll(&mut plan, at(33)), None);
        plan.ended(job.id, &well(&job, &[]), at(34));
        let job = poll(&mut plan, at(34)).unwrap();
        assert!(job.check);
        let idle = Ended {
            idle: true,
            ..Ended::default()
        };
        plan.ended(job.id, &idle, at(35));
        assert_eq!(poll(&mut plan, at(36)), None);
    }

    #[test]
    fn what_one_gave_goes_to_the_others() {
        let mut plan = plan();
        plan.wanted(&[name("data")], &[], at(0));
        let job = poll(&mut plan, at(0)).unwrap();
        plan.ended(job.id, &well(&job, &[("gamma", 2)]), at(1));
        let job = poll(&mut plan, at(1)).unwrap();
        assert_eq!((names(&job.peers), job.why), (vec!["beta"], Why::Follow));
        plan.ended(job.id, &well(&job, &[]), at(2));
        assert_eq!(poll(&mut plan, at(3)), None);
    }

    #[test]
    fn what_another_brought_the_master_numbers_and_a_slave_leaves() {
        let mut plan = plan();
        plan.brought(&name("accounts"), at(0));
        assert_eq!(poll(&mut plan, at(3)), None);
        plan.master(web(), Some(Term(7)), at(4));
        let job = poll(&mut plan, at(4)).unwrap();
        plan.ended(job.id, &well(&job, &[]), at(5));
        plan.brought(&name("data"), at(6));
        assert_eq!(poll(&mut plan, at(9)), None, "data goes with no election");
        plan.brought(&name("accounts"), at(10));
        let job = poll(&mut plan, at(12)).unwrap();
        assert_eq!(
            (job.why, job.number, job.check),
            (Why::Brought, Some(Term(7)), false)
        );
    }

    #[test]
    fn the_schedule_is_kept_once_each_time_with_catching_up_and_apart() {
        let mut plan = plan();
        assert_eq!(poll(&mut plan, at(0)), None, "not at its first start");
        let three = 3 * 3600;
        assert_eq!(poll(&mut plan, at(three - 1)), None);
        let job = poll(&mut plan, at(three)).unwrap();
        assert_eq!((names(&job.sets), job.why), (vec!["data"], Why::Cron));
        plan.ended(job.id, &well(&job, &[]), at(three + 1));
        assert_eq!(poll(&mut plan, at(three + 2)), None);
        // Three days off: once, at once, and then as ever.
        let later = 4 * 86_400;
        let mut plan = Plan::new(rules(), plan.memory().clone());
        let job = poll(&mut plan, at(later)).unwrap();
        plan.ended(job.id, &well(&job, &[]), at(later));
        assert_eq!(poll(&mut plan, at(later + three - 1)), None);
        assert!(poll(&mut plan, at(later + three)).is_some());
        // The third of three servers begins 400 s later.
        let mut rules = rules();
        rules.place = (2, 3);
        let mut plan = Plan::new(rules, Memory::default());
        assert_eq!(poll(&mut plan, at(0)), None);
        assert_eq!(
            plan.next_of(&name("data"), &flat),
            Some(at(three + 400).real)
        );
        assert_eq!(poll(&mut plan, at(three + 399)), None);
        assert!(poll(&mut plan, at(three + 400)).is_some());
    }

    #[test]
    fn a_clock_set_back_by_years_stops_no_schedule() {
        let mut plan = plan();
        poll(&mut plan, at(400 * 86_400));
        assert_eq!(poll(&mut plan, at(0)), None);
        assert!(poll(&mut plan, at(3 * 3600)).is_some());
    }

    #[test]
    fn who_asks_again_while_it_runs_is_served_again() {
        let mut plan = plan();
        plan.wanted(&[name("data")], &[name("beta")], at(0));
        let job = poll(&mut plan, at(0)).unwrap();
        plan.wanted(&[name("data")], &[name("beta")], at(1));
        plan.ended(job.id, &well(&job, &[]), at(2));
        assert_eq!(poll(&mut plan, at(2)).unwrap().why, Why::Hand);
    }

    #[test]
    fn what_is_configured_no_more_is_owed_no_more() {
        let mut plan = plan();
        plan.wanted(&[name("accounts")], &[], at(0));
        let mut less = rules();
        less.peers.pop();
        less.sets.pop();
        let job = poll(&mut plan, at(0)).unwrap();
        plan.rules(less);
        plan.ended(job.id, &failed(&job, "gamma"), at(1));
        let owed = |p: &Plan| {
            p.debts()
                .filter(|(_, peer, _)| peer.as_str() == "gamma")
                .count()
        };
        assert_eq!(owed(&plan), 0);
        assert!(!plan.memory().sets.contains_key(&name("mail")));
    }

    #[test]
    fn without_electd_nobody_numbers() {
        let mut plan = plan();
        plan.master(web(), Some(Term(7)), at(1));
        plan.blind();
        let job = poll(&mut plan, at(1)).unwrap();
        assert_eq!(job.number, None);
    }
}
