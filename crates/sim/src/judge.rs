//! The invariants of the rule book, checked over true time from what the servers do and say alone:
//! nothing here looks into an elector.

use crate::clock::{Clock, Time};
use election::{Memory, Mode, Reservation, RoleChange};
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term, VirtualServerName,
    wire::{
        beat::{Ack, Beat, Roster, Verdict},
        signal::{Body, PreVerdict, Signal},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    time::Duration,
};

/// At every instant at most one server answers for a virtual address.
pub const AT_MOST_ONE_GATE: &str = "AtMostOneGate";
/// An open gate has the promises of a majority behind it.
pub const GATE_IMPLIES_LEASE: &str = "GateImpliesLease";
/// No term is won twice.
pub const ONE_MASTER_PER_TERM: &str = "OneMasterPerTerm";
/// The terms of successive gates grow.
pub const TERM_MONOTONE: &str = "TermMonotone";
/// One vote a term; never below what was voted; never before it is remembered.
pub const NO_VOTE_TWICE: &str = "NoVoteTwice";
/// Who forgot a promise keeps silent until it would have ended.
pub const RESTART_SILENCE: &str = "RestartSilence";
/// A voter promised to one is free for another only by time or by a Release, and that comes with the gate shut.
pub const RELEASE_BEFORE_GRANT: &str = "ReleaseBeforeGrant";
/// What is unauthentic, replayed or out of state changes nothing.
pub const REJECTED_IS_INERT: &str = "RejectedIsInert";
/// What is said of another server's clock is true.
pub const CLOCK_WITHIN_BOUND: &str = "ClockWithinBound";
/// Servers that can, have a master within the time of the rule book.
pub const EVENTUALLY_OWNED: &str = "EventuallyOwned";
/// No failover, no new term, no gap and no accusation without need.
pub const NO_FLAP: &str = "NoFlap";

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// Until when a promise given binds its giver.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// By the voter's clock.
    Local(BootTime),
    /// By true time: the voter lost power and its clock with it.
    True(Time),
}

#[derive(Clone, Debug)]
struct Promise {
    holder: usize,
    by: (Instance, Number),
    until: Until,
    /// The roster versions told by the beats and calls that it was given for, each with when that would end.
    counted: Vec<(RosterVersion, BootTime)>,
    /// The voter was restarted since, and knows no longer by which beat or call it was.
    forgotten: bool,
}

/// What is known about one server in one virtual server.
#[derive(Clone, Debug, Default)]
struct Stand {
    /// What this voter has promised, as its messages told.
    promise: Option<Promise>,
    /// The highest term voted or acknowledged in for others, and for oneself.
    floors: [Term; 2],
    /// What this voter knows to be released: whose, of which instance, up to which number.
    released: Vec<(usize, Instance, Number)>,
    /// By whom this server counted when it last opened its gate.
    roster: Vec<usize>,
}

/// What one server has written.
#[derive(Clone, Debug, Default)]
struct Written {
    /// The run-dir's memory, if it is followed here.
    memory: Option<Memory>,
    /// What is on disk: terms reserved and longest promise, likewise.
    disk: Option<(Term, Duration)>,
    /// What may be there instead: it is being written, or writing it failed.
    maybe: Vec<(Term, Duration)>,
    /// By the server's own clock.
    silent: Option<BootTime>,
    /// Started without a reservation, and none is on disk yet.
    blank: bool,
    /// Its disk is one of earlier, and it has promised nothing since: what it has yet to hear from the others is not
    /// on its disk (ELECTION, R20).
    put_back: bool,
    /// The roster it counts by, likewise.
    counts_by: Option<RosterVersion>,
}

/// Watches a cluster.
#[derive(Clone, Debug)]
pub struct Judge {
    mode: Mode,
    names: Vec<ServerName>,
    virtuals: Vec<VirtualServerName>,
    stands: Vec<Vec<Stand>>,
    written: Vec<Written>,
    /// Who got whose vote.
    votes: HashMap<(usize, usize, Term), (usize, Instance, Number)>,
    won: HashMap<(usize, Term), usize>,
    /// The term of the last gate opened, of each virtual server.
    token: Vec<Option<(Term, usize)>>,
    leases: HashMap<(Instance, Number), Duration>,
    /// In which order the instances were first heard of.
    born: HashMap<Instance, usize>,
    /// The rosters that beats and calls named.
    called_by: HashMap<(Instance, Number), RosterVersion>,
    /// When a call was decided that the run-dir held up.
    decided: HashMap<(Instance, Number), BootTime>,
    /// All that ever were on a disk, were to be, or were counted by.
    rosters: BTreeMap<RosterVersion, Vec<ServerName>>,
    /// Those of them that somebody began to write.
    written_rosters: BTreeSet<RosterVersion>,
    /// The version on each disk; none if it is blank.
    held: Vec<Option<RosterVersion>>,
    /// Who has which roster on disk, or counts by it; empty while all of them name the same voters.
    apart: Vec<(usize, RosterVersion, Vec<usize>)>,
    /// Who never serves.
    witness: Vec<bool>,
    failed: Option<Violation>,
    /// What was seen at all, so that a run can be sure that it tested something.
    pub seen: BTreeMap<&'static str, u64>,
}

impl Judge {
    /// Of these servers.
    pub fn new(mode: Mode, names: Vec<ServerName>) -> Self {
        Self {
            mode,
            stands: vec![Vec::new(); names.len()],
            written: vec![Written::default(); names.len()],
            virtuals: Vec::new(),
            votes: HashMap::new(),
            won: HashMap::new(),
            token: Vec::new(),
            leases: HashMap::new(),
            born: HashMap::new(),
            called_by: HashMap::new(),
            decided: HashMap::new(),
            rosters: BTreeMap::new(),
            written_rosters: BTreeSet::new(),
            held: Vec::new(),
            apart: Vec::new(),
            witness: vec![false; names.len()],
            names,
            failed: None,
            seen: BTreeMap::new(),
        }
    }

    /// This server never serves.
    pub fn only_votes(&mut self, server: usize) {
        self.witness[server] = true;
    }

    /// A virtual server's place in what is handed to [`Judge::check`].
    pub fn place(&mut self, v: &VirtualServerName) -> usize {
        if let Some(place) = self.virtuals.iter().position(|x| x == v) {
            return place;
        }
        self.virtuals.push(v.clone());
        self.token.push(None);
        for stands in &mut self.stands {
            stands.push(Stand::default());
        }
        self.virtuals.len() - 1
    }

    fn index(&self, name: &ServerName) -> usize {
        let place = self.names.iter().position(|n| n == name);
        place.unwrap_or_else(|| panic!("{name} is no server of this world"))
    }

    /// Something does not hold; only the first is kept.
    pub fn fail(&mut self, invariant: &'static str, what: String) {
        self.failed.get_or_insert(Violation { invariant, what });
    }

    /// What failed first.
    pub fn failed(&self) -> Option<&Violation> {
        self.failed.as_ref()
    }

    /// Notes that something was seen.
    pub fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    // ---- what servers do -------------------------------------------------------------------------

    /// A start without memory is silent until `until` by the server's new clock.
    pub fn started(&mut self, server: usize, silent_until: Option<BootTime>) {
        if let Some(until) = silent_until {
            self.count("silent start");
            self.written[server].silent = Some(until);
        }
    }

    /// Killed with these gates open: the promise to oneself holds for them and ends for the others.
    pub fn killed(&mut self, server: usize, open: &[VirtualServerName]) {
        let virtuals = &self.virtuals;
        for (v, stand) in self.stands[server].iter_mut().enumerate() {
            stand.released.clear();
            stand.promise.iter_mut().for_each(|p| p.forgotten = true);
            if !open.contains(&virtuals[v]) {
                stand.promise.take_if(|p| p.holder == server);
            }
        }
    }

    /// Power is lost: what was promised binds all the same, until the clock would have shown its end.
    pub fn power_off(&mut self, server: usize, now: Time, local: BootTime, rate: u64) {
        self.written[server].silent = None;
        self.written[server].memory = None;
        for stand in &mut self.stands[server] {
            stand.released.clear();
            stand.promise.iter_mut().for_each(|p| p.forgotten = true);
            stand.promise.take_if(|p| p.holder == server);
            if let Some(Promise { counted, .. }) = &mut stand.promise {
                counted.clear(); // by a clock that is gone, and it acknowledges nothing before
            }
            if let Some(Promise { until, .. }) = &mut stand.promise
                && let Until::Local(end) = *until
            {
                *until = Until::True(now + end.0.saturating_sub(local.0) * 1000 / rate.max(1));
            }
        }
    }

    /// What a voter without memory waits for, it waits for by its clock, which runs otherwise from now on.
    pub fn rate(&mut self, server: usize, now: Time, was: u64, is: u64) {
        for stand in &mut self.stands[server] {
            if let Some(Promise {
                until: Until::True(until),
                ..
            }) = &mut stand.promise
            {
                *until = now + until.saturating_sub(now) * was / is.max(1);
            }
        }
    }

    /// The disk is gone, and with it what this server called in alone: no other server can tell it its own
    /// vote for a call that nobody else heard (R21). The vote died with the instance that called.
    pub fn wiped(&mut self, server: usize) {
        self.votes
            .retain(|(voter, _, _), (caller, ..)| *voter != server || *caller != server);
        for stand in &mut self.stands[server] {
            stand.floors[1] = Term(0);
        }
        self.written[server].disk = None;
        self.written[server].maybe.clear();
    }

    /// What this server sent counts no more, for its power is lost: a promise to it protects nobody. Said where the
    /// disk is not as it was then, for what such a server tells of its promises may be too little.
    pub fn moot(&mut self, server: usize) {
        for stand in self.stands.iter_mut().flatten() {
            stand.promise.take_if(|p| p.holder == server);
        }
    }

    /// Its disk shows what it held earlier.
    pub fn put_back(&mut self, server: usize) {
        self.written[server].put_back = true;
    }

    /// Started without a reservation.
    pub fn blank(&mut self, server: usize) {
        self.count("blank start");
        self.written[server].blank = true;
    }

    /// It knows that this roster is on disk.
    pub fn counts_by(&mut self, server: usize, version: RosterVersion) {
        self.written[server].counts_by = Some(version);
    }

    /// The run-dir holds this now.
    pub fn remembers(&mut self, server: usize, memory: &Memory) {
        self.written[server].memory = Some(memory.clone());
    }

    /// The disk holds this now, and electd knows it.
    pub fn stores(&mut self, server: usize, reservation: &Reservation) {
        let written = &mut self.written[server];
        written.disk = Some((reservation.reserved, reservation.promise_max));
        written.maybe.clear();
        written.blank = false;
    }

    /// R22, R23: this begins to be written, and from now on a restart may find it: whatever binds must be covered by
    /// the silence that it would bring.
    pub fn writes(
        &mut self,
        server: usize,
        now: Time,
        local: BootTime,
        rate: u64,
        reservation: &Reservation,
    ) {
        let (reserved, longest) = (reservation.reserved, reservation.promise_max);
        self.written[server].maybe.push((reserved, longest));
        if self.mode == Mode::None || self.written[server].put_back {
            return;
        }
        for v in 0..self.virtuals.len() {
            let Some((holder, left)) = self.binding(server, v, now, local, rate) else {
                continue;
            };
            if left > longest {
                let what = format!(
                    "{} writes that it would be silent for {longest:?} and is bound to {} for {left:?} more",
                    self.names[server], self.names[holder]
                );
                self.fail(RESTART_SILENCE, what);
            }
            let floor = self.stands[server][v].floors[0];
            if floor > reserved {
                let what = format!(
                    "{} reserves terms up to {reserved} and voted in term {floor}",
                    self.names[server]
                );
                self.fail(NO_VOTE_TWICE, what);
            }
        }
    }

    /// To whom this server is bound, and for how long by its clock.
    pub fn binding(
        &self,
        server: usize,
        v: usize,
        now: Time,
        local: BootTime,
        rate: u64,
    ) -> Option<(usize, Duration)> {
        let promise = self.stands[server][v].promise.as_ref()?;
        let left = match promise.until {
            Until::Local(until) => (local <= until).then(|| until.since(local))?,
            // Rounded twice.
            Until::True(until) => {
                let left = until.checked_sub(now)? * rate / 1000;
                Duration::from_nanos(left.checked_sub(10)?)
            }
        };
        Some((promise.holder, left))
    }

    /// The highest term that this server voted or acknowledged in for others, and for itself.
    pub fn floors(&self, server: usize, v: usize) -> [Term; 2] {
        self.stands[server][v].floors
    }

    /// Whom this server voted for in this term.
    pub fn voted_for(&self, server: usize, v: usize, term: Term) -> Option<&ServerName> {
        let (to, ..) = self.votes.get(&(server, v, term))?;
        Some(&self.names[*to])
    }

    /// R24: this server writes `next`, and has `present` on its disk; so many of the present voters have that.
    pub fn changes_roster(&mut self, present: &Roster, next: &Roster, holders: usize) {
        self.rosters
            .entry(present.version)
            .or_insert_with(|| present.voters.clone());
        self.learns_roster(next);
        let need = present.voters.len() / 2 + 1;
        let first = next.version != present.version && self.written_rosters.insert(next.version);
        if first && next.version.counter > 0 && holders < need {
            let what = format!(
                "roster {} is made while {holders} of {need} needed hold {}: three may be in force",
                next.version, present.version
            );
            self.fail(AT_MOST_ONE_GATE, what);
        }
    }

    /// A roster is counted by, or written; whoever is blank has none. A new master gives its own term to what it knows, which need not be on a disk
    /// yet; from there one is added or removed at a time.
    fn learns_roster(&mut self, next: &Roster) {
        let to = next.version;
        if next.voters.is_empty() {
            return;
        }
        if let Some(voters) = self.rosters.get(&to) {
            if *voters != next.voters {
                let what = format!("roster {to} is made of {:?} and of {voters:?}", next.voters);
                self.fail(AT_MOST_ONE_GATE, what);
            }
            return;
        }
        let changes = |from: &Vec<ServerName>| {
            let only =
                |a: &[ServerName], b: &[ServerName]| a.iter().filter(|v| !b.contains(v)).count();
            only(from, &next.voters) + only(&next.voters, from)
        };
        let before = to
            .counter
            .checked_sub(1)
            .map(|counter| RosterVersion { counter, ..to });
        let least = match before {
            Some(before) => self.rosters.get(&before).map(changes),
            None => self.rosters.values().map(changes).min(),
        };
        self.rosters.insert(to, next.voters.clone());
        if least.is_none_or(|changes| changes > usize::from(before.is_some())) {
            let what = format!(
                "roster {to} changes more voters than one of the version before, or what nobody had: their majorities may not meet"
            );
            self.fail(AT_MOST_ONE_GATE, what);
        }
    }

    /// The rosters on the disks, none on a blank one; and those that servers count by.
    pub fn rosters<'a>(
        &mut self,
        disks: impl Iterator<Item = Option<&'a Roster>>,
        counted: impl Iterator<Item = (usize, &'a Roster)>,
    ) {
        let disks: Vec<_> = disks.collect();
        for roster in disks.iter().flatten() {
            let known = self.rosters.entry(roster.version);
            known.or_insert_with(|| roster.voters.clone());
        }
        let counted: Vec<_> = counted.collect();
        for (_, roster) in &counted {
            self.learns_roster(roster);
        }
        let own = disks.iter().enumerate();
        let own = own.filter_map(|(i, d)| Some((i, (*d)?)));
        let mut all: Vec<_> = own
            .chain(counted)
            .filter(|(_, r)| !r.voters.is_empty())
            .collect();
        all.dedup_by(|a, b| a.0 == b.0 && a.1.version == b.1.version);
        let alike = all.windows(2).all(|w| w[0].1.voters == w[1].1.voters);
        self.held = disks.iter().map(|d| d.map(|d| d.version)).collect();
        self.apart.clear();
        if !alike {
            for (i, roster) in all {
                let voters = roster.voters.iter().map(|n| self.index(n)).collect();
                self.apart.push((i, roster.version, voters));
            }
        }
    }

    /// R24, where rosters differ: while one answers, no other could have a majority of its roster. An election takes
    /// no time, and whoever is silent or without power will come back.
    fn could_another_win(&mut self, now: Time, locals: &[BootTime], open: &[(usize, usize)]) {
        for (v, master) in open {
            let bound = |x: usize| {
                let promise = self.stands[x][*v].promise.as_ref();
                promise.is_some_and(|p| {
                    p.holder == *master
                        && match p.until {
                            Until::Local(until) => locals[x] <= until,
                            Until::True(until) => now <= until,
                        }
                })
            };
            for (other, version, voters) in &self.apart {
                if other == master || self.witness[*other] || !voters.contains(other) {
                    continue;
                }
                let free =
                    |x: &&usize| self.held[**x].is_some_and(|own| own <= *version) && !bound(**x);
                let votes = voters.iter().filter(free).count();
                if votes > voters.len() / 2 {
                    let what = format!(
                        "{} answers for {}, and {votes} of {} voters of roster {version} could elect {}",
                        self.names[*master],
                        self.virtuals[*v],
                        voters.len(),
                        self.names[*other]
                    );
                    return self.fail(AT_MOST_ONE_GATE, what);
                }
            }
        }
    }

    /// NoVoteTwice for acknowledgements, RestartSilence, and that nobody is promised to two.
    #[allow(clippy::too_many_arguments)]
    fn promise(
        &mut self,
        now: Time,
        voter: usize,
        local: BootTime,
        v: usize,
        holder: usize,
        term: Term,
        by: (Instance, Number),
    ) {
        let lease = self.lease(by);
        let mut until = local + lease;
        let mut counted = Vec::new();
        if let Some(p) = &self.stands[voter][v].promise {
            let bound = match p.until {
                Until::Local(until) => local <= until,
                Until::True(until) => now <= until,
            };
            if p.holder != holder && bound {
                let what = format!(
                    "{} promised {} to {} ({:?}, number {}) and now to {}",
                    self.names[voter],
                    self.virtuals[v],
                    self.names[p.holder],
                    p.until,
                    p.by.1,
                    self.names[holder]
                );
                return self.fail(RELEASE_BEFORE_GRANT, what);
            }
            if p.holder == holder && p.by.0 == by.0 && by.1 < p.by.1 && !p.forgotten {
                let what = format!(
                    "{} promises by number {} after {} of the same instance",
                    self.names[voter], by.1, p.by.1
                );
                return self.fail(REJECTED_IS_INERT, what);
            }
            // A call that is said again is what it was.
            if holder == voter && p.by == by && !p.forgotten {
                return;
            }
            if let (true, Until::Local(before)) = (p.holder == holder, p.until) {
                until = until.max(before);
                counted.clone_from(&p.counted);
            }
        }
        let mut released = self.stands[voter][v].released.iter();
        if released.any(|(server, i, k)| *server == holder && *i == by.0 && by.1 <= *k) {
            let what = format!(
                "{} promises to {} by number {}, which it knows to be released",
                self.names[voter], self.names[holder], by.1
            );
            return self.fail(REJECTED_IS_INERT, what);
        }
        if let Some(version) = self.called_by.get(&by).copied() {
            counted.retain(|(known, until)| local <= *until && *known != version);
            counted.push((version, local + lease));
        }
        self.stands[voter][v].promise = Some(Promise {
            holder,
            by,
            counted,
            until: Until::Local(until),
            forgotten: false,
        });
        self.written[voter].put_back = false;
        self.must_not_be_silent(voter, local, "promises");
        self.must_be_written(voter, v, holder, term, lease);
    }

    fn lease(&self, by: (Instance, Number)) -> Duration {
        self.leases.get(&by).copied().unwrap_or_default()
    }

    /// What a promise relies on is in the run-dir and on disk before it is said (R5, R22, R23).
    fn must_be_written(
        &mut self,
        voter: usize,
        v: usize,
        holder: usize,
        term: Term,
        lease: Duration,
    ) {
        let (me, written) = (&self.names[voter], &self.written[voter]);
        if let Some(memory) = &written.memory {
            let vote = memory
                .votes
                .iter()
                .find(|x| x.virtual_server == self.virtuals[v]);
            let fine = vote
                .is_some_and(|x| x.voted >= term && x.holder.as_ref() == Some(&self.names[holder]));
            if !fine {
                let what = format!(
                    "{me} promises to {} in term {term} and its run-dir says {vote:?}",
                    self.names[holder]
                );
                return self.fail(NO_VOTE_TWICE, what);
            }
        }
        // A failed write may have reached the disk, one under way may do so any time.
        for (reserved, longest) in written.disk.iter().chain(&written.maybe).copied() {
            if term > reserved {
                let what =
                    format!("{me} promises in term {term}, and its disk reserves {reserved}");
                return self.fail(NO_VOTE_TWICE, what);
            }
            if lease > longest {
                let what = format!(
                    "{me} promises {lease:?}, and would be silent for {longest:?} after a power loss"
                );
                return self.fail(RESTART_SILENCE, what);
            }
        }
    }

    fn must_not_be_silent(&mut self, server: usize, local: BootTime, does: &str) {
        if self.written[server].blank && does != "acknowledges" {
            let what = format!("{} {does} without a reservation", self.names[server]);
            return self.fail(RESTART_SILENCE, what);
        }
        if self.written[server]
            .silent
            .is_some_and(|until| local <= until)
        {
            let what = format!("{} {does} while it should be silent", self.names[server]);
            self.fail(RESTART_SILENCE, what);
        }
    }

    fn floor(&mut self, server: usize, v: usize, term: Term, own: bool, does: &str) {
        let floors = &mut self.stands[server][v].floors;
        let before = floors[0].max(floors[1]);
        floors[usize::from(own)] = floors[usize::from(own)].max(term);
        if term < before {
            let what = format!(
                "{} {does} in term {term} after term {before}",
                self.names[server]
            );
            self.fail(NO_VOTE_TWICE, what);
        }
    }

    fn is_born(&mut self, instance: Instance) {
        let next = self.born.len();
        self.born.entry(instance).or_insert(next);
    }

    /// A beat leaves electd, made at `local`.
    pub fn beats(&mut self, now: Time, server: usize, local: BootTime, beat: &Beat) {
        let by = (beat.instance, beat.number);
        self.is_born(beat.instance);
        self.leases.insert(by, beat.lease);
        self.called_by.insert(by, beat.roster.version);
        if self.mode == Mode::None {
            return;
        }
        for standing in &beat.standings {
            if let Some(claim) = standing.claim {
                let v = self.place(&standing.virtual_server);
                self.floor(server, v, claim.term, true, "claims");
                self.promise(now, server, local, v, server, claim.term, by);
            }
        }
    }

    /// An acknowledgement leaves electd.
    pub fn acks(&mut self, now: Time, server: usize, local: BootTime, to: &ServerName, ack: &Ack) {
        if self.mode == Mode::None {
            return;
        }
        self.must_not_be_silent(server, local, "acknowledges");
        let by = (ack.instance, ack.number);
        let beat = self.called_by.get(&by).copied();
        let own = self.written[server].counts_by.unwrap_or_default();
        let to = self.index(to);
        for answer in &ack.answers {
            if let Verdict::Promised(term) = answer.verdict {
                if beat.is_some_and(|roster| roster < own) {
                    let what = format!(
                        "{} of roster {own} promises to {}, which counts by {beat:?}: their majorities may not meet",
                        self.names[server], self.names[to]
                    );
                    self.fail(AT_MOST_ONE_GATE, what);
                }
                let v = self.place(&answer.virtual_server);
                self.floor(server, v, term, false, "acknowledges");
                self.promise(now, server, local, v, to, term, by);
            }
        }
        self.tells_roster(server, local, ack.roster);
    }

    /// R24: who tells a roster has promised nothing by an older one that still binds: it may be counted by its maker as
    /// one that knows no other.
    fn tells_roster(&mut self, server: usize, local: BootTime, told: RosterVersion) {
        let promises = self.stands[server]
            .iter()
            .filter_map(|s| s.promise.as_ref());
        let given = promises
            .flat_map(|p| &p.counted)
            .filter(|(_, until)| local <= *until);
        let least = given.map(|(version, _)| *version).min().unwrap_or(told);
        let disk = self.written[server].counts_by.unwrap_or(told);
        if told > least.min(disk) {
            let what = format!(
                "{} tells that it counts by roster {told}, and its promises were given by {least}, its disk has {disk}",
                self.names[server]
            );
            self.fail(AT_MOST_ONE_GATE, what);
        }
    }

    fn vote(&mut self, voter: usize, v: usize, term: Term, to: (usize, Instance, Number)) {
        self.floor(voter, v, term, to.0 == voter, "votes");
        let before = *self.votes.entry((voter, v, term)).or_insert(to);
        if before != to {
            let what = format!(
                "{} voted twice in term {term} of {}",
                self.names[voter], self.virtuals[v]
            );
            self.fail(NO_VOTE_TWICE, what);
        }
    }

    /// A signal that cannot leave: a call binds its caller from now on, whenever it leaves (R2); who releases is free,
    /// whoever hears of it.
    pub fn decides(&mut self, server: usize, local: BootTime, signal: &Signal) {
        match signal.body {
            Body::Call { .. } => {
                let by = (signal.instance, signal.number);
                self.decided.entry(by).or_insert(local);
            }
            Body::Release { .. } => {
                let v = self.place(&signal.virtual_server);
                self.own_promise_ends(server, v);
            }
            _ => {}
        }
    }

    fn own_promise_ends(&mut self, server: usize, v: usize) {
        let promise = &mut self.stands[server][v].promise;
        promise.take_if(|p| p.holder == server);
    }

    /// A signal leaves electd.
    pub fn says(
        &mut self,
        now: Time,
        server: usize,
        local: BootTime,
        to: &ServerName,
        signal: &Signal,
    ) {
        let v = self.place(&signal.virtual_server);
        match &signal.body {
            _ if self.mode == Mode::None => {}
            Body::Call {
                term,
                lease,
                roster,
                ..
            } => {
                let by = (signal.instance, signal.number);
                self.called_by.insert(by, *roster);
                self.is_born(signal.instance);
                self.leases.insert(by, *lease);
                self.count("call");
                self.vote(server, v, *term, (server, by.0, by.1));
                let decided = self.decided.get(&by).copied().unwrap_or(local);
                self.promise(now, server, decided, v, server, *term, by);
            }
            Body::Grant {
                instance,
                number,
                term,
            } => {
                self.count("grant");
                let called = self.called_by.get(&(*instance, *number)).copied();
                let own = self.written[server].counts_by.unwrap_or_default();
                if called.is_some_and(|roster| roster < own) {
                    let what = format!(
                        "{} of roster {own} votes for {to}, which counts by {called:?}: their majorities may not meet",
                        self.names[server]
                    );
                    self.fail(AT_MOST_ONE_GATE, what);
                }
                let to = self.index(to);
                self.vote(server, v, *term, (to, *instance, *number));
                self.promise(now, server, local, v, to, *term, (*instance, *number));
            }
            Body::PreAnswer {
                verdict: PreVerdict::Yes,
                ..
            } => self.must_not_be_silent(server, local, "would vote"),
            Body::Release { .. } => {
                self.count("release");
                self.own_promise_ends(server, v);
            }
            Body::PreCall { .. }
            | Body::PreAnswer { .. }
            | Body::Refuse { .. }
            | Body::ReadyQuery
            | Body::Ready
            | Body::NotReady { .. }
            | Body::HandOver { .. }
            | Body::Clients { .. } => {}
        }
    }

    /// Handled by `to` now.
    pub fn signal_arrives(&mut self, from: &ServerName, to: usize, signal: &Signal) {
        let v = self.place(&signal.virtual_server);
        match &signal.body {
            Body::Release { .. } => self.released(to, v, from, signal.instance, signal.number),
            Body::Call { releases, .. } => {
                for r in releases {
                    self.released(to, v, &r.server, r.instance, r.number);
                }
            }
            _ => {}
        }
    }

    fn released(&mut self, voter: usize, v: usize, by: &ServerName, i: Instance, k: Number) {
        let holder = self.index(by);
        if holder != voter {
            // its own word counts when it is said
            // One instance ends before the next begins, which releases with the gate of both shut.
            let born = &self.born;
            let earlier = |former: &Instance| born.get(former) < born.get(&i);
            let covered = |p: &mut Promise| {
                p.holder == holder && (p.by.0 == i && p.by.1 <= k || earlier(&p.by.0))
            };
            let stand = &mut self.stands[voter][v];
            stand.promise.take_if(covered);
            stand.released.push((holder, i, k));
        }
    }

    /// This voter knows that what `by` sent up to that number is released.
    pub fn is_released(
        &mut self,
        voter: usize,
        v: &VirtualServerName,
        by: &ServerName,
        (instance, number): (Instance, Number),
    ) -> bool {
        let (v, by) = (self.place(v), self.index(by));
        let mut known = self.stands[voter][v].released.iter();
        known.any(|(server, i, k)| *server == by && *i == instance && number <= *k)
    }

    /// A role changed.
    pub fn role(&mut self, server: usize, change: &RoleChange) {
        if change.master {
            let v = self.place(&change.virtual_server);
            if self.won.insert((v, change.term), server).is_some() {
                let what = format!(
                    "term {} of {} was won twice",
                    change.term, change.virtual_server
                );
                self.fail(ONE_MASTER_PER_TERM, what);
            }
        }
    }

    /// It won, by the votes of a majority of those it counts by.
    pub fn elected(
        &mut self,
        server: usize,
        v: &VirtualServerName,
        term: Term,
        roster: &[ServerName],
    ) {
        if self.mode == Mode::None {
            return;
        }
        let v = self.place(v);
        let voted = |name: &&ServerName| {
            let vote = self.votes.get(&(self.index(name), v, term));
            vote.is_some_and(|(to, ..)| *to == server)
        };
        let (votes, need) = (roster.iter().filter(voted).count(), roster.len() / 2 + 1);
        if votes < need {
            let what = format!(
                "{} is master in term {term} with {votes} of {need} votes needed",
                self.names[server]
            );
            self.fail(ONE_MASTER_PER_TERM, what);
        }
    }

    /// A gate opens, or is extended, in `term` of `server`, which counts by `roster`.
    pub fn opens(
        &mut self,
        server: usize,
        v: &VirtualServerName,
        term: Term,
        roster: &[ServerName],
    ) {
        let v = self.place(v);
        let same = |(i, n): (&usize, &ServerName)| self.names[*i] == *n;
        let old = &self.stands[server][v].roster;
        if old.len() != roster.len() || !old.iter().zip(roster).all(same) {
            self.stands[server][v].roster = roster.iter().map(|n| self.index(n)).collect();
        }
        let before = *self.token[v].get_or_insert((term, server));
        self.token[v] = Some((term, server));
        let grows = term > before.0 || (term, server) == before;
        if !grows && self.mode == Mode::Majority {
            let what = format!(
                "{} opens its gate in term {term} after {} in term {}",
                self.names[server], self.names[before.1], before.0
            );
            self.fail(TERM_MONOTONE, what);
        }
    }

    /// A gate was opened until `closes`: as the clocks run now, a majority of promises lasts as long.
    pub fn outlasts(
        &mut self,
        now: Time,
        server: usize,
        v: &VirtualServerName,
        closes: Time,
        clocks: &[Clock],
    ) {
        if self.mode == Mode::None {
            return;
        }
        let v = self.place(v);
        let lasts = |voter: &&usize| {
            let promise = &self.stands[**voter][v].promise;
            promise.as_ref().is_some_and(|p| {
                let ends = match p.until {
                    Until::Local(until) => clocks[**voter].true_time(until).max(now),
                    Until::True(until) => until,
                };
                p.holder == server && closes <= ends.saturating_add(1000)
            })
        };
        let roster = &self.stands[server][v].roster;
        let (promised, need) = (roster.iter().filter(lasts).count(), roster.len() / 2 + 1);
        if promised < need {
            let what = format!(
                "{} opens its gate for {} for {:.3} ms more, and only {promised} of {need} promises needed last as long",
                self.names[server],
                self.virtuals[v],
                (closes.saturating_sub(now)) as f64 / 1e6
            );
            self.fail(GATE_IMPLIES_LEASE, what);
        }
    }

    /// At every step: AtMostOneGate, GateImpliesLease, and whatever failed before. `open` are the open gates:
    /// virtual server (by [`Judge::place`]) and server.
    pub fn check(
        &mut self,
        now: Time,
        locals: &[BootTime],
        open: &[(usize, usize)],
    ) -> Result<(), Violation> {
        if let Some(what) = &self.failed {
            return Err(what.clone());
        }
        if self.mode == Mode::None {
            return Ok(());
        }
        for (n, (v, server)) in open.iter().enumerate() {
            if let Some((_, other)) = open[..n].iter().find(|(x, _)| x == v) {
                let what = format!(
                    "{} and {} answer for {} at once",
                    self.names[*other], self.names[*server], self.virtuals[*v]
                );
                self.fail(AT_MOST_ONE_GATE, what);
            }
            let roster = &self.stands[*server][*v].roster;
            if roster.is_empty() {
                continue;
            }
            let in_force = |voter: &&usize| {
                let promise = &self.stands[**voter][*v].promise;
                promise.as_ref().is_some_and(|p| {
                    p.holder == *server
                        && match p.until {
                            Until::Local(until) => locals[**voter] <= until,
                            Until::True(until) => now <= until,
                        }
                })
            };
            let promised = roster.iter().filter(in_force).count();
            if promised < roster.len() / 2 + 1 {
                let what = format!(
                    "the gate of {} for {} is open on {promised} of {} promises",
                    self.names[*server],
                    self.virtuals[*v],
                    roster.len()
                );
                self.fail(GATE_IMPLIES_LEASE, what);
            }
        }
        if !self.apart.is_empty() {
            self.could_another_win(now, locals, open);
        }
        self.failed.clone().map_or(Ok(()), Err)
    }
}
