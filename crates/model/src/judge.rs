//! The invariants of DESIGN section 2 over true time, from what the servers do and say alone: nothing here
//! looks into an elector.

use election::{
    Memory, Reservation,
    memory::Vote as Remembered,
    situation::{Situation, Word},
};
use protocol::{BootTime, Instance, Number, RosterVersion, ServerName, Term, VirtualServerName};
use std::time::Duration;

/// Most servers of a model.
pub const SERVERS_MAX: usize = 4;

/// Most virtual servers of a model.
pub const VIRTUALS_MAX: usize = 2;

/// True time between two ticks, in the units that clock rates divide (see [`Clock::left`]).
const TICK: u64 = 20;

/// What must hold always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    AtMostOneGate,
    GateImpliesLease,
    OneMasterPerTerm,
    TermMonotone,
    NoVoteTwice,
    RestartSilence,
    ReleaseBeforeGrant,
    RejectedIsInert,
    /// ELECTION R17: a master never meets a claim of another while its own lease runs.
    NoRival,
}

impl Invariant {
    /// As DESIGN names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AtMostOneGate => "AtMostOneGate",
            Self::GateImpliesLease => "GateImpliesLease",
            Self::OneMasterPerTerm => "OneMasterPerTerm",
            Self::TermMonotone => "TermMonotone",
            Self::NoVoteTwice => "NoVoteTwice",
            Self::RestartSilence => "RestartSilence",
            Self::ReleaseBeforeGrant => "ReleaseBeforeGrant",
            Self::RejectedIsInert => "RejectedIsInert",
            Self::NoRival => "NoRival",
        }
    }
}

/// What was broken, and how.
pub type Verdict = Result<(), (Invariant, String)>;

fn broken(invariant: Invariant, what: String) -> Verdict {
    Err((invariant, what))
}

/// One server's clock now: what it shows, and its nanoseconds per tick.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// CLOCK_BOOTTIME.
    pub now: BootTime,
    /// Nanoseconds per tick.
    pub rate: u64,
}

impl Clock {
    /// True time until this clock shows `at`; exact, since rates divide [`TICK`].
    fn left(self, at: BootTime) -> Option<u64> {
        (self.now <= at).then(|| (at.0 - self.now.0) * (TICK / self.rate))
    }
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    holder: usize,
    by: (Instance, Number),
    /// By the voter's clock, which is thought to run on while the voter is without power.
    until: BootTime,
    /// The voter's disk was put back to a state of before it.
    put_back: bool,
    known: Known,
}

/// What the voter itself knows of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Given,
    /// It was started again since, from the run-dir.
    Recalled,
    /// It was started again since, without.
    Forgotten,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vote {
    term: Term,
    caller: usize,
    by: (Instance, Number),
}

/// A server's disk, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// The roster on it: its version, and its voters, one bit each. None while it is blank.
    pub roster: Option<(RosterVersion, u8)>,
    /// The roster that electd counts by, if it runs: one that is not written yet, perhaps.
    pub counted: Option<(RosterVersion, u8)>,
    /// The longest promise that it, and what is being written, is sure to tell of.
    pub promise_max: Option<Duration>,
}

/// What it has seen of one virtual server.
#[derive(Clone, Debug, Default)]
struct Seen {
    promises: [Option<Promise>; SERVERS_MAX],
    votes: [Option<Vote>; SERVERS_MAX],
    /// The highest term voted or acknowledged in for others, and for oneself.
    floors: [(Term, Term); SERVERS_MAX],
    /// The last terms won, and by whom.
    won: Vec<(Term, usize)>,
    /// The term of the last gate opened, and whose it was.
    token: Option<(Term, usize)>,
    /// The voters each open gate counts by, one bit each.
    rosters: [u8; SERVERS_MAX],
    /// The highest term called in, and how many there were.
    called: (Term, u8),
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    virtuals: Vec<Seen>,
    silent: [Option<BootTime>; SERVERS_MAX],
}

impl Judge {
    /// One that watches so many virtual servers.
    pub fn new(virtuals: usize) -> Self {
        Self {
            virtuals: vec![Seen::default(); virtuals],
            ..Self::default()
        }
    }

    /// How many terms were called in, those of all virtual servers together.
    pub fn terms(&self) -> u8 {
        self.virtuals.iter().map(|seen| seen.called.1).sum()
    }

    /// Counts terms anew.
    pub fn forget_terms(&mut self) {
        self.virtuals.iter_mut().for_each(|seen| seen.called.1 = 0);
    }

    /// The last term in which a gate opened, and whose.
    pub fn token(&self, v: usize) -> Option<(Term, usize)> {
        self.virtuals[v].token
    }

    /// A start, from the run-dir or silent until then.
    pub fn started(&mut self, server: usize, silent_until: Option<BootTime>) {
        let known = match silent_until {
            None => Known::Recalled,
            Some(_) => {
                self.silent[server] = silent_until;
                Known::Forgotten
            }
        };
        for seen in &mut self.virtuals {
            if let Some(promise) = &mut seen.promises[server] {
                promise.known = known;
            }
        }
    }

    /// Killed: the promise to oneself holds as long as the gate may be open.
    pub fn killed(&mut self, server: usize, v: usize, gate_open: bool) {
        let promise = &mut self.virtuals[v].promises[server];
        if !gate_open && promise.is_some_and(|p| p.holder == server) {
            *promise = None;
        }
    }

    /// The disk is gone, and with it what this server called in alone: nobody else can tell it that (R21).
    pub fn wiped(&mut self, server: usize) {
        for seen in &mut self.virtuals {
            seen.votes[server] = seen.votes[server].filter(|v| v.caller != server);
            seen.floors[server].1 = Term(0);
        }
    }

    /// The disk is as it was earlier: it cannot tell of promises given since.
    pub fn put_back(&mut self, server: usize) {
        for seen in &mut self.virtuals {
            if let Some(promise) = &mut seen.promises[server] {
                promise.put_back = true;
            }
        }
    }

    /// Is this voter bound by a promise that it was told of by the run-dir after a restart?
    pub fn is_recalled(&self, voter: usize, v: usize, now: BootTime) -> bool {
        let recalled = |p: Promise| p.known == Known::Recalled && now <= p.until;
        self.virtuals[v].promises[voter].is_some_and(recalled)
    }

    /// RestartSilence: a server says in a beat that it takes part.
    pub fn takes_part(&self, server: usize, now: BootTime) -> Verdict {
        let promises = self.virtuals.iter().filter_map(|s| s.promises[server]);
        let forgotten = |p: &Promise| p.known == Known::Forgotten && now <= p.until;
        match promises.into_iter().find(forgotten) {
            Some(p) => {
                let left = p.until.since(now).as_nanos();
                let what = format!(
                    "{server} takes part {left} ns before a promise to {} ends that it forgot",
                    p.holder
                );
                broken(Invariant::RestartSilence, what)
            }
            None => Ok(()),
        }
    }

    /// A promise is told: by whom, at what time of its clock, to whom, for which beat or call, for how long.
    pub fn promise(
        &mut self,
        (voter, v): (usize, usize),
        now: BootTime,
        holder: usize,
        by: (Instance, Number),
        lease: Duration,
    ) -> Verdict {
        let mut until = now + lease;
        let promise = &mut self.virtuals[v].promises[voter];
        if let Some(p) = promise.filter(|p| now <= p.until) {
            if p.holder != holder {
                let what = format!(
                    "{voter} promised to {} and, {} ns before that ends, to {holder}",
                    p.holder,
                    p.until.since(now).as_nanos()
                );
                return broken(Invariant::ReleaseBeforeGrant, what);
            }
            until = until.max(p.until);
        }
        *promise = Some(Promise {
            holder,
            by,
            until,
            put_back: false,
            known: Known::Given,
        });
        self.not_silent(voter, now, "promises")
    }

    /// What is told now must outlive a kill that follows at once, by the run-dir's memory of term and holder (R5), and
    /// a power loss: the term by the reservation on disk (R22), the length by the longest promise noted there (R23).
    pub fn durable(
        (voter, v): (usize, &VirtualServerName),
        (term, holder): (Term, &ServerName),
        lease: Duration,
        memory: Option<&Memory>,
        disk: Option<&Reservation>,
    ) -> Verdict {
        let remembered = |vote: &Remembered| {
            vote.virtual_server == *v && vote.voted >= term && vote.holder.as_ref() == Some(holder)
        };
        let Some(disk) = disk else {
            let what = format!("{voter} promises without a reservation on disk");
            return broken(Invariant::RestartSilence, what);
        };
        if !memory.is_some_and(|m| m.votes.iter().any(remembered)) {
            let what = format!("{voter} promises in term {term} what it would forget if killed");
            return broken(Invariant::NoVoteTwice, what);
        }
        if term > disk.reserved {
            let what = format!(
                "{voter} promises in term {term}, and after a power loss knows of {} only",
                disk.reserved
            );
            return broken(Invariant::NoVoteTwice, what);
        }
        if lease > disk.promise_max {
            let what = format!(
                "{voter} promises for {} ns, and after a power loss is silent for {} only",
                lease.as_nanos(),
                disk.promise_max.as_nanos()
            );
            return broken(Invariant::RestartSilence, what);
        }
        Ok(())
    }

    /// RestartSilence.
    pub fn not_silent(&self, server: usize, now: BootTime, does: &str) -> Verdict {
        match self.silent[server] {
            Some(until) if now <= until => broken(
                Invariant::RestartSilence,
                format!("{server} {does} while it should be silent"),
            ),
            _ => Ok(()),
        }
    }

    /// Votes, acknowledges or claims in this term.
    pub fn floor(
        &mut self,
        (server, v): (usize, usize),
        term: Term,
        own: bool,
        does: &str,
    ) -> Verdict {
        let (others, mine) = &mut self.virtuals[v].floors[server];
        let before = (*others).max(*mine);
        let floor = if own { mine } else { others };
        *floor = term.max(*floor);
        if term < before {
            return broken(
                Invariant::NoVoteTwice,
                format!("{server} {does} in term {term} after term {before}"),
            );
        }
        Ok(())
    }

    /// A vote is told.
    pub fn vote(
        &mut self,
        (voter, v): (usize, usize),
        term: Term,
        caller: usize,
        by: (Instance, Number),
    ) -> Verdict {
        self.floor((voter, v), term, caller == voter, "votes")?;
        let vote = Vote { term, caller, by };
        let before = self.virtuals[v].votes[voter].replace(vote);
        match before.filter(|b| b.term == term && *b != vote) {
            Some(b) => broken(
                Invariant::NoVoteTwice,
                format!("{voter} voted in term {term} for {} and {caller}", b.caller),
            ),
            None => Ok(()),
        }
    }

    /// A server calls in this term.
    pub fn calls(&mut self, v: usize, term: Term) {
        let called = &mut self.virtuals[v].called;
        if term > called.0 {
            *called = (term, called.1.saturating_add(1));
        }
    }

    /// The server's own word that its gate is shut.
    pub fn releases(&mut self, server: usize, v: usize, gate_open: bool) -> Verdict {
        let promise = &mut self.virtuals[v].promises[server];
        *promise = promise.filter(|p| p.holder != server);
        if gate_open {
            let what = format!("{server} releases with its gate open");
            return broken(Invariant::ReleaseBeforeGrant, what);
        }
        Ok(())
    }

    /// A release is handled by a voter, by the sender's word or relayed.
    pub fn released(&mut self, (voter, v): (usize, usize), by: usize, (i, k): (Instance, Number)) {
        if by != voter {
            let covered = |p: &Promise| p.holder == by && p.by.0 == i && p.by.1 <= k;
            let promise = &mut self.virtuals[v].promises[voter];
            *promise = promise.filter(|p| !covered(p));
        }
    }

    /// OneMasterPerTerm.
    pub fn wins(&mut self, server: usize, v: usize, term: Term) -> Verdict {
        let won = &mut self.virtuals[v].won;
        if let Some((_, other)) = won.iter().find(|(t, _)| *t == term) {
            let what = format!("term {term} was won by {other} and {server}");
            return broken(Invariant::OneMasterPerTerm, what);
        }
        won.push((term, server));
        won.sort_unstable();
        if won.len() > 3 {
            won.remove(0);
        }
        Ok(())
    }

    /// TermMonotone: a gate opens, or is extended, in `term`, counting by the voters in `roster`.
    pub fn opens(&mut self, server: usize, v: usize, term: Term, roster: u8) -> Verdict {
        let seen = &mut self.virtuals[v];
        seen.rosters[server] = roster;
        let before = seen.token.replace((term, server));
        match before {
            Some((t, s)) if term < t || (term == t && s != server) => broken(
                Invariant::TermMonotone,
                format!("{server} opens its gate in term {term} after {s} in term {t}"),
            ),
            _ => Ok(()),
        }
    }

    /// AtMostOneGate, GateImpliesLease and RestartSilence. `gates`: until when each server's gate of each virtual
    /// server is open. A gate opens only in a step, so one look after each step sees every overlap; that the promises
    /// behind an open gate outlast it is reckoned exactly, also between two ticks.
    pub fn check(
        &self,
        clocks: &[Clock],
        gates: &[Vec<Option<BootTime>>],
        disks: &[Disk],
    ) -> Verdict {
        for (seen, gates) in self.virtuals.iter().zip(gates) {
            seen.check_gates(clocks, gates)?;
            seen.check_rivals(clocks, gates, disks)?;
            seen.check_disks(clocks, disks)?;
        }
        Ok(())
    }

    /// What it knows, as far as it still matters.
    pub fn tell(&self, clocks: &[Clock], s: &mut Situation) {
        for (server, clock) in clocks.iter().enumerate() {
            s.at(clock.now);
            s.option(
                self.silent[server].filter(|t| clock.now <= *t),
                Situation::time,
            );
        }
        self.virtuals.iter().for_each(|seen| seen.tell(clocks, s));
    }
}

impl Seen {
    fn check_gates(&self, clocks: &[Clock], gates: &[Option<BootTime>]) -> Verdict {
        let mut open = None;
        for (server, deadline) in gates.iter().enumerate() {
            let Some(left) = deadline.and_then(|at| clocks[server].left(at)) else {
                continue;
            };
            if let Some(other) = open.replace(server) {
                let what = format!("{other} and {server} answer at once");
                return broken(Invariant::AtMostOneGate, what);
            }
            let outlasts = |voter: &usize| {
                self.promises[*voter]
                    .filter(|p| p.holder == server)
                    .and_then(|p| clocks[*voter].left(p.until))
                    .is_some_and(|promised| promised >= left)
            };
            let roster = self.rosters[server];
            let voters = (0..clocks.len()).filter(|v| roster >> v & 1 == 1);
            let promised = voters.filter(outlasts).count();
            let need = roster.count_ones() as usize / 2 + 1;
            if promised < need {
                let what = format!(
                    "the gate of {server} is open on {promised} promises, of {need} needed"
                );
                return broken(Invariant::GateImpliesLease, what);
            }
        }
        Ok(())
    }

    /// Beside an open gate nobody else can be elected: no other server's roster has a majority of voters that hold
    /// no higher one and are bound by no promise to the gate's owner. An election takes no time here, and whether
    /// those voters reach each other is the network's whim.
    fn check_rivals(
        &self,
        clocks: &[Clock],
        gates: &[Option<BootTime>],
        disks: &[Disk],
    ) -> Verdict {
        let open = |server: usize| gates[server].is_some_and(|at| clocks[server].now <= at);
        for master in (0..clocks.len()).filter(|server| open(*server)) {
            let bound = |voter: usize| {
                self.promises[voter]
                    .is_some_and(|p| p.holder == master && clocks[voter].now <= p.until)
            };
            for rival in (0..clocks.len()).filter(|rival| *rival != master) {
                // After a restart it counts by the one on disk.
                let disk = disks[rival];
                let rosters = disk.roster.into_iter().chain(disk.counted);
                for (version, roster) in rosters {
                    let grants = |voter: &usize| {
                        roster >> voter & 1 == 1
                            && disks[*voter].roster.is_some_and(|(v, _)| v <= version)
                            && !bound(*voter)
                    };
                    let need = roster.count_ones() as usize / 2 + 1;
                    let votes = (0..clocks.len()).filter(grants).count();
                    if grants(&rival) && votes >= need {
                        let what = format!(
                            "{rival} could be elected by {votes} of the roster {version} beside {master}, whose gate is open"
                        );
                        return broken(Invariant::AtMostOneGate, what);
                    }
                }
            }
        }
        Ok(())
    }

    /// After a power loss now a voter would be silent for as long as what it has promised still binds.
    fn check_disks(&self, clocks: &[Clock], disks: &[Disk]) -> Verdict {
        for (voter, clock) in clocks.iter().enumerate() {
            let promise = self.promises[voter].filter(|p| clock.now <= p.until && !p.put_back);
            let (Some(promise), Some(promise_max)) = (promise, disks[voter].promise_max) else {
                continue;
            };
            let left = promise.until.since(clock.now);
            if left > promise_max {
                let what = format!(
                    "{voter} is bound to {} for {} ns more, and after a power loss would be silent for {} only",
                    promise.holder,
                    left.as_nanos(),
                    promise_max.as_nanos()
                );
                return broken(Invariant::RestartSilence, what);
            }
        }
        Ok(())
    }

    fn tell(&self, clocks: &[Clock], s: &mut Situation) {
        for (server, clock) in clocks.iter().enumerate() {
            s.at(clock.now);
            let promise = self.promises[server].filter(|p| clock.now <= p.until);
            s.option(promise, |s, p| {
                s.plain((p.holder as u64) << 1 | u64::from(p.put_back));
                s.words.push(Word::Number(p.by.0, p.by.1));
                s.time(p.until);
            });
            s.option(self.votes[server], |s, v| {
                s.plain(v.term.0);
                s.plain(v.caller as u64);
            });
            s.plain(self.floors[server].0.0);
            s.plain(self.floors[server].1.0);
            s.plain(u64::from(self.rosters[server]));
        }
        for (term, server) in self.won.iter().chain(&self.token) {
            s.plain(term.0);
            s.plain(*server as u64);
        }
        s.plain(self.called.0.0);
        s.plain(u64::from(self.called.1));
    }
}
