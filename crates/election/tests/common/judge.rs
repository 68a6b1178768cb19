//! The invariants of the rule book, checked over true time from what the servers do and say alone:
//! nothing here looks into an elector.

use election::{Mode, RoleChange};
use protocol::{
    BootTime, Instance, Number, ServerName, Term, VirtualServerName,
    wire::{
        beat::{Ack, Beat, Verdict},
        signal::{Body, PreVerdict, Signal},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Until when a promise given binds its giver.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// By the voter's clock.
    Local(BootTime),
    /// By true time: the voter lost power and its clock with it.
    True(u64),
}

#[derive(Clone, Debug)]
struct Promise {
    holder: usize,
    by: (Instance, Number),
    until: Until,
}

type At = (usize, VirtualServerName);

pub struct Judge {
    mode: Mode,
    names: Vec<ServerName>,
    /// What each voter has promised, as its messages told.
    promises: BTreeMap<At, Promise>,
    /// Who got whose vote.
    votes: BTreeMap<(usize, VirtualServerName, Term), (usize, Instance, Number)>,
    /// The highest term voted or acknowledged in for others, and for oneself.
    floors: BTreeMap<(usize, VirtualServerName, bool), Term>,
    won: BTreeMap<(VirtualServerName, Term), usize>,
    /// The term of the last gate opened.
    token: BTreeMap<VirtualServerName, (Term, usize)>,
    rosters: BTreeMap<At, Vec<usize>>,
    leases: BTreeMap<(Instance, Number), Duration>,
    /// By the server's own clock.
    silent: BTreeMap<usize, BootTime>,
    failed: Option<String>,
    /// What was seen at all, so that a scenario can be sure that it tested something.
    pub seen: BTreeMap<&'static str, u64>,
}

impl Judge {
    pub fn new(mode: Mode, names: Vec<ServerName>) -> Self {
        Self {
            mode,
            names,
            promises: BTreeMap::new(),
            votes: BTreeMap::new(),
            floors: BTreeMap::new(),
            won: BTreeMap::new(),
            token: BTreeMap::new(),
            rosters: BTreeMap::new(),
            leases: BTreeMap::new(),
            silent: BTreeMap::new(),
            failed: None,
            seen: BTreeMap::new(),
        }
    }

    fn index(&self, name: &ServerName) -> usize {
        self.names.iter().position(|n| n == name).unwrap()
    }

    fn fail(&mut self, what: String) {
        self.failed.get_or_insert(what);
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    // ---- what servers do -------------------------------------------------------------------------

    /// A start without memory is silent until `until` by the server's new clock.
    pub fn started(&mut self, server: usize, silent_until: Option<BootTime>) {
        if let Some(until) = silent_until {
            self.count("silent start");
            self.silent.insert(server, until);
        }
    }

    /// Killed with these gates open: the promise to oneself holds for them and ends for the others.
    pub fn killed(&mut self, server: usize, open: &[VirtualServerName]) {
        self.promises
            .retain(|(voter, v), p| *voter != server || p.holder != server || open.contains(v));
    }

    pub fn power_off(&mut self, server: usize, now: u64, local: BootTime, rate: u64) {
        self.silent.remove(&server);
        self.promises
            .retain(|(voter, _), p| *voter != server || p.holder != server);
        for (_, p) in self
            .promises
            .iter_mut()
            .filter(|((voter, _), _)| *voter == server)
        {
            if let Until::Local(until) = p.until {
                p.until = Until::True(now + (until.0.saturating_sub(local.0)) * 1000 / rate);
            }
        }
    }

    /// The disk is gone, and with it what this server called in alone: no other server can tell it its own
    /// vote for a call that nobody else heard (R21). The vote died with the instance that called.
    pub fn wiped(&mut self, server: usize) {
        self.votes
            .retain(|(voter, _, _), (caller, ..)| *voter != server || *caller != server);
        self.floors
            .retain(|(voter, _, own), _| *voter != server || !*own);
    }

    /// NoVoteTwice for acknowledgements, RestartSilence, and that nobody is promised to two.
    #[allow(clippy::too_many_arguments)]
    fn promise(
        &mut self,
        now: u64,
        voter: usize,
        local: BootTime,
        v: &VirtualServerName,
        holder: usize,
        by: (Instance, Number),
        lease: Duration,
    ) {
        let key = (voter, v.clone());
        let mut until = local + lease;
        if let Some(p) = self.promises.get(&key) {
            let bound = match p.until {
                Until::Local(until) => local <= until,
                Until::True(until) => now <= until,
            };
            if p.holder != holder && bound {
                return self.fail(format!(
                    "promise broken: {} promised {v} to {} ({:?} {}) and now to {}",
                    self.names[voter], self.names[p.holder], p.until, p.by.1, self.names[holder]
                ));
            }
            if let (true, Until::Local(before)) = (p.holder == holder, p.until) {
                until = until.max(before);
            }
        }
        self.promises.insert(
            key,
            Promise {
                holder,
                by,
                until: Until::Local(until),
            },
        );
        self.must_not_be_silent(voter, local, "promises");
    }

    fn must_not_be_silent(&mut self, server: usize, local: BootTime, does: &str) {
        if self
            .silent
            .get(&server)
            .is_some_and(|until| local <= *until)
        {
            self.fail(format!(
                "RestartSilence: {} {does} while it should be silent",
                self.names[server]
            ));
        }
    }

    fn floor(&mut self, server: usize, v: &VirtualServerName, term: Term, own: bool, does: &str) {
        let name = self.names[server].clone();
        let known = |own| {
            self.floors
                .get(&(server, v.clone(), own))
                .copied()
                .unwrap_or_default()
        };
        let before = known(true).max(known(false));
        self.floors
            .insert((server, v.clone(), own), known(own).max(term));
        if term < before {
            self.fail(format!(
                "NoVoteTwice: {name} {does} in term {term} after term {before}"
            ));
        }
    }

    pub fn beats(&mut self, now: u64, server: usize, local: BootTime, beat: &Beat) {
        self.leases.insert((beat.instance, beat.number), beat.lease);
        if self.mode == Mode::None {
            return;
        }
        for standing in &beat.standings {
            if let Some(claim) = standing.claim {
                let v = &standing.virtual_server;
                self.floor(server, v, claim.term, true, "claims");
                self.promise(
                    now,
                    server,
                    local,
                    v,
                    server,
                    (beat.instance, beat.number),
                    beat.lease,
                );
            }
        }
    }

    pub fn acks(&mut self, now: u64, server: usize, local: BootTime, to: &ServerName, ack: &Ack) {
        if self.mode == Mode::None {
            return;
        }
        self.must_not_be_silent(server, local, "acknowledges");
        let lease = self.leases[&(ack.instance, ack.number)];
        let to = self.index(to);
        for answer in &ack.answers {
            if let Verdict::Promised(term) = answer.verdict {
                self.floor(server, &answer.virtual_server, term, false, "acknowledges");
                let by = (ack.instance, ack.number);
                self.promise(now, server, local, &answer.virtual_server, to, by, lease);
            }
        }
    }

    fn vote(
        &mut self,
        voter: usize,
        v: &VirtualServerName,
        term: Term,
        to: (usize, Instance, Number),
    ) {
        self.floor(voter, v, term, to.0 == voter, "votes");
        let before = *self.votes.entry((voter, v.clone(), term)).or_insert(to);
        if before != to {
            self.fail(format!(
                "NoVoteTwice: {} voted twice in term {term} of {v}",
                self.names[voter]
            ));
        }
    }

    pub fn says(
        &mut self,
        now: u64,
        server: usize,
        local: BootTime,
        to: &ServerName,
        signal: &Signal,
    ) {
        let v = &signal.virtual_server;
        match &signal.body {
            _ if self.mode == Mode::None => {}
            Body::Call { term, lease, .. } => {
                self.leases.insert((signal.instance, signal.number), *lease);
                self.count("call");
                self.vote(server, v, *term, (server, signal.instance, signal.number));
                self.promise(
                    now,
                    server,
                    local,
                    v,
                    server,
                    (signal.instance, signal.number),
                    *lease,
                );
            }
            Body::Grant {
                instance,
                number,
                term,
            } => {
                self.count("grant");
                let to = self.index(to);
                let lease = self.leases[&(*instance, *number)];
                self.vote(server, v, *term, (to, *instance, *number));
                self.promise(now, server, local, v, to, (*instance, *number), lease);
            }
            Body::PreAnswer {
                verdict: PreVerdict::Yes,
                ..
            } => {
                self.must_not_be_silent(server, local, "would vote");
            }
            Body::Release { .. } => {
                self.count("release");
                if self
                    .promises
                    .get(&(server, v.clone()))
                    .is_some_and(|p| p.holder == server)
                {
                    self.promises.remove(&(server, v.clone()));
                }
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
        let v = &signal.virtual_server;
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

    fn released(
        &mut self,
        voter: usize,
        v: &VirtualServerName,
        by: &ServerName,
        i: Instance,
        k: Number,
    ) {
        let (key, holder) = ((voter, v.clone()), self.index(by));
        if holder == voter {
            return; // its own word counts when it is said
        }
        if self
            .promises
            .get(&key)
            .is_some_and(|p| p.holder == holder && p.by.0 == i && p.by.1 <= k)
        {
            self.promises.remove(&key);
        }
    }

    pub fn role(&mut self, server: usize, change: &RoleChange) {
        if change.master {
            let before = self
                .won
                .insert((change.virtual_server.clone(), change.term), server);
            if before.is_some() {
                self.fail(format!(
                    "OneMasterPerTerm: term {} was won twice",
                    change.term
                ));
            }
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
        let voters = roster.iter().map(|n| self.index(n)).collect();
        self.rosters.insert((server, v.clone()), voters);
        let token = self.token.entry(v.clone()).or_insert((term, server));
        let before = *token;
        *token = (term, server);
        let grows = term > before.0 || (term, server) == before;
        if !grows && self.mode == Mode::Majority {
            self.fail(format!(
                "TermMonotone: {} opens its gate in term {term} after {} in term {}",
                self.names[server], self.names[before.1], before.0
            ));
        }
    }

    /// At every step: AtMostOneGate, GateImpliesLease, and whatever failed before.
    pub fn check(
        &mut self,
        now: u64,
        locals: &[BootTime],
        open: &[(VirtualServerName, usize)],
    ) -> Result<(), String> {
        if let Some(what) = &self.failed {
            return Err(what.clone());
        }
        if self.mode == Mode::None {
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        for (v, server) in open {
            if !seen.insert(v) {
                let all: Vec<_> = open
                    .iter()
                    .filter(|(x, _)| x == v)
                    .map(|(_, i)| &self.names[*i])
                    .collect();
                return Err(format!("AtMostOneGate: {all:?} answer for {v} at once"));
            }
            let Some(roster) = self.rosters.get(&(*server, v.clone())) else {
                continue;
            };
            let in_force = |voter: &&usize| {
                self.promises.get(&(**voter, v.clone())).is_some_and(|p| {
                    p.holder == *server
                        && match p.until {
                            Until::Local(until) => locals[**voter] <= until,
                            Until::True(until) => now <= until,
                        }
                })
            };
            let promised = roster.iter().filter(in_force).count();
            if promised < roster.len() / 2 + 1 {
                return Err(format!(
                    "GateImpliesLease: the gate of {} for {v} is open on {promised} of {} promises",
                    self.names[*server],
                    roster.len()
                ));
            }
        }
        Ok(())
    }
}
