//! What would a server do if this happened to it now? Nothing of what is asked here happens: electors are cloned, or
//! made of what a start would find, and told what may come; what they want done is thrown away.
//!
//! A fault at the one moment at which it hurts need not be in the schedule then: for each promise in force it is asked
//! whether it outlives the end of electd, of the power and of the disk, until its last instant.

use crate::{
    judge::{
        AT_MOST_ONE_GATE, NO_VOTE_TWICE, REJECTED_IS_INERT, RELEASE_BEFORE_GRANT, RESTART_SILENCE,
    },
    schedule::NAMES,
    world::World,
};
use election::{Elector, Input, Memory, Output, Reservation, Start};
use protocol::{
    BootTime, Instance, Number, ServerName, Term, VirtualServerName,
    wire::{
        beat::{Ack, Answer, Beat, Claim, Participation, Roster, Standing, Verdict, Why},
        signal::{Body, Signal},
    },
};
use std::time::Duration;

/// Turns that time alone brings before a promise ends: with fewer, electd is late, which it may be.
const TURNS: u64 = 2;

/// Past any silence.
const LATE: Duration = Duration::from_secs(60);

/// Of no server that ever ran.
const NOBODY: Instance = Instance(0x6e6f_626f_6479);

/// How often an offer is made again, in the term that the refusal asks for.
const TRIES: u64 = 4;

/// What a server loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    Electd,
    Power,
    Disk,
    /// The power, and the disk is put back to an older state; others are heard, or nobody is.
    Years {
        heard: bool,
    },
}

/// What is asked about: a promise of `who` about `v`.
struct Question<'a> {
    who: usize,
    v: &'a VirtualServerName,
    /// To whom it is promised, and for how long from now on, by the voter's clock.
    holder: usize,
    left: Duration,
    /// The highest term voted in for another; for itself.
    floors: [Term; 2],
    /// It voted in the former for a server that was removed since. Without its disk it hears of it only from those of
    /// its majority, if it had one: every other voter is heard (R21), so a term won is known to one of them.
    for_removed: bool,
    /// It keeps silent, or is blank.
    silent: bool,
    /// What it would do much later is asked too.
    late: bool,
    /// Who comes instead.
    other: &'a ServerName,
    roster: &'a Roster,
    beats: &'a [(usize, ServerName, Beat)],
}

impl World {
    /// Whatever server `i` has promised must outlive what may happen now.
    pub(crate) fn what_if(&mut self, i: usize) {
        let server = &self.servers[i];
        if self.schedule.none == 1 || server.paused || self.judge.failed().is_some() {
            return;
        }
        let (now, local) = (self.now, self.local(i));
        let late = self.curious.percent(25);
        let server = &self.servers[i];
        let mut beats = None;
        for v in 0..self.virtuals.len() {
            let Some((holder, mut left)) = self.judge.binding(i, v, now, local, server.rate) else {
                continue;
            };
            if holder == i {
                match server.gates[v] {
                    Some(gate) if server.answers(v, now) => {
                        left = left.min(gate.deadline.since(local));
                    }
                    _ => continue,
                }
            }
            let Some(other) = (0..self.servers.len()).rfind(|k| *k != i && *k != holder) else {
                continue;
            };
            let beats = beats.get_or_insert_with(|| self.next_beats(i));
            let rosters = beats.iter().map(|(_, _, beat)| &beat.roster);
            let own = server.electd.as_ref().map(|e| e.core.counted_roster());
            let on_disk = server.disk.as_ref().map(|d| &d.roster);
            let Some(roster) = rosters.chain(own).chain(on_disk).max_by_key(|r| r.version) else {
                continue;
            };
            let floors = self.judge.floors(i, v);
            let voted_for = self.judge.voted_for(i, v, floors[0]);
            let question = Question {
                who: i,
                v: &self.virtuals[v],
                holder,
                left,
                for_removed: voted_for.is_some_and(|name| !roster.voters.contains(name)),
                floors,
                late,
                silent: server.disk.is_none()
                    || server
                        .memory
                        .as_ref()
                        .is_none_or(|m| m.silent_until.is_some()),
                other: &self.servers[other].name,
                roster,
                beats,
            };
            if let Err((invariant, what)) = self.ask(&question, local) {
                self.judge.fail(invariant, what);
                return;
            }
        }
    }

    /// R7, R24: a master hears of a roster of which only few acknowledge it.
    fn outnumbered(
        &self,
        question: &Question,
        local: BootTime,
    ) -> Result<(), (&'static str, String)> {
        let (i, v) = (question.who, question.v);
        let server = &self.servers[i];
        let other = (i + 1) % self.servers.len();
        let Some(electd) = &server.electd else {
            return Ok(());
        };
        let Some(term) = electd.core.term(v) else {
            return Ok(());
        };
        let mut elector = electd.core.clone();
        while elector.poll_output().is_some() {}
        let mut roster = electd.core.counted_roster().clone();
        roster.version.counter += 1;
        let strangers = (0..=roster.voters.len()).filter_map(|n| format!("x{n}").parse().ok());
        roster.voters.extend(strangers.collect::<Vec<_>>());
        let name = &self.servers[other].name;
        let beat = beat(NOBODY, Number(1), SHORT, roster, Vec::new());
        elector.handle(local, heard(name, local, beat));
        for _ in 0..4 {
            let Some(at) = elector.poll_timeout().map(|t| t.max(local)) else {
                return Ok(());
            };
            elector.handle_timeout(at);
            let outputs: Vec<_> = std::iter::from_fn(|| elector.poll_output()).collect();
            let sent = outputs.iter().find_map(|o| match o {
                Output::Beat(beat) => Some((beat.instance, beat.number)),
                _ => None,
            });
            let Some((instance, number)) = sent else {
                continue;
            };
            for voter in self.servers.iter().filter(|s| s.name != server.name) {
                let verdict = Verdict::Promised(term);
                let answer = Answer {
                    virtual_server: v.clone(),
                    verdict,
                };
                let ack = Ack {
                    instance,
                    number,
                    waited: Duration::ZERO,
                    answers: vec![answer],
                    roster: Default::default(),
                };
                let from = voter.name.clone();
                elector.handle(at, Input::Ack { from, ack });
            }
            let mut outputs = std::iter::from_fn(|| elector.poll_output());
            if outputs.any(|o| matches!(o, Output::Open(of, _) if of == *v)) {
                let what = format!(
                    "{} knows of a roster that it is outnumbered in, and opens its gate for {v}",
                    NAMES[i]
                );
                return Err((AT_MOST_ONE_GATE, what));
            }
            return Ok(());
        }
        Ok(())
    }

    fn ask(&self, question: &Question, local: BootTime) -> Result<(), (&'static str, String)> {
        let server = &self.servers[question.who];
        if let Some(electd) = &server.electd {
            let mut elector = electd.core.clone();
            settle(&mut elector, local);
            if let Some(writing) = &server.writing {
                elector.handle(local, Input::Reserved(writing.clone()));
            }
            question.put(elector, local, Lost::Nothing)?;
        }
        let disks = [server.disk.as_ref(), server.writing.as_ref()];
        for disk in disks.into_iter().flatten() {
            if server.powered {
                let elector = self.starts(question.who, Some(disk), server.memory.clone(), local);
                question.put(elector, local, Lost::Electd)?;
            }
            if question.holder != question.who {
                let elector = self.starts(question.who, Some(disk), None, local);
                question.put(elector, local, Lost::Power)?;
            }
        }
        if question.holder != question.who {
            let elector = self.starts(question.who, None, None, local);
            question.put(elector, local, Lost::Disk)?;
            self.ask_older(question, local)?;
        } else if question.late {
            self.outnumbered(question, local)?;
        }
        Ok(())
    }

    /// R20: a disk from before the lease was raised. What the others tell makes up for it, and who hears nobody is silent.
    fn ask_older(
        &self,
        question: &Question,
        local: BootTime,
    ) -> Result<(), (&'static str, String)> {
        let server = &self.servers[question.who];
        let floor = question.floors[0].max(question.floors[1]);
        let Some(disk) = &server.disk else {
            return Ok(());
        };
        let older = |r: &&Reservation| {
            r.roster.version == disk.roster.version
                && r.promise_max < question.left
                && r.reserved >= floor
        };
        let Some(older) = server.former.iter().rfind(older) else {
            return Ok(());
        };
        let told = question.beats.iter().map(|(_, _, beat)| beat.promise_max);
        let told = told.max().is_some_and(|told| told >= question.left);
        for heard in [told, false] {
            let elector = self.starts(question.who, Some(older), None, local);
            question.put(elector, local, Lost::Years { heard })?;
        }
        Ok(())
    }

    /// An electd that starts with these. Gates outlive nothing but its death.
    fn starts(
        &self,
        i: usize,
        disk: Option<&Reservation>,
        memory: Option<Memory>,
        local: BootTime,
    ) -> Elector {
        let server = &self.servers[i];
        let open = |(v, gate): (&VirtualServerName, &Option<crate::world::Gate>)| {
            let deadline = gate.filter(|g| local <= g.deadline)?.deadline;
            Some((v.clone(), deadline))
        };
        let gates = self.virtuals.iter().zip(&server.gates).filter_map(open);
        let start = Start {
            instance: NOBODY,
            seed: 1,
            reservation: disk.cloned(),
            gates: if memory.is_some() {
                gates.collect()
            } else {
                Vec::new()
            },
            memory,
        };
        Elector::new(server.settings.clone(), start, local)
    }

    /// What the others tell next, without claims: a claim that is heard is promised for anew.
    fn next_beats(&self, i: usize) -> Vec<(usize, ServerName, Beat)> {
        let mut beats = Vec::new();
        for (j, server) in self.servers.iter().enumerate() {
            let Some(electd) = server.electd.as_ref().filter(|_| j != i) else {
                continue;
            };
            let mut elector = electd.core.clone();
            while elector.poll_output().is_some() {}
            let mut at = server.local(self.now);
            for _ in 0..4 {
                at = elector.poll_timeout().map_or(at, |t| t.max(at));
                elector.handle_timeout(at);
                let outputs = std::iter::from_fn(|| elector.poll_output());
                let beat = outputs.filter_map(|o| match o {
                    Output::Beat(beat) => Some(beat),
                    _ => None,
                });
                if let Some(mut beat) = beat.last() {
                    beat.standings.iter_mut().for_each(|s| s.claim = None);
                    beats.push((j, server.name.clone(), beat));
                    break;
                }
            }
        }
        beats
    }

    /// R23: a shorter longest promise begins to be written, and from now on a restart may find it, even if the write
    /// fails: for longer nobody is promised anything.
    pub(crate) fn what_if_it_fails(&mut self, i: usize, shorter: &Reservation) {
        let server = &self.servers[i];
        let (Some(electd), Some(disk)) = (&server.electd, &server.disk) else {
            return;
        };
        if self.schedule.none == 1 || shorter.promise_max >= disk.promise_max {
            return;
        }
        let (now, local) = (self.now, self.local(i));
        let mut elector = electd.core.clone();
        while elector.poll_output().is_some() {}
        let mut failed = elector.clone();
        failed.handle(local, Input::ReserveFailed("what if".into()));
        for v in 0..self.virtuals.len() {
            let bound = self.judge.binding(i, v, now, local, server.rate);
            let from = bound.map_or((i + 1) % self.servers.len(), |(holder, _)| holder);
            let offer = Offer {
                from: &self.servers[from].name,
                v: &self.virtuals[v],
                by: NOBODY,
                lease: disk.promise_max,
                roster: electd.core.counted_roster(),
            };
            let promises = |e: &Elector| offer.call(e.clone(), local, Term(1), Number(1), TRIES);
            if from != i
                && let Some(term) = promises(&elector).or_else(|| promises(&failed))
            {
                let what = format!(
                    "{} writes that it is silent for {:?}, and would promise {} for {:?} in term {term}",
                    NAMES[i], shorter.promise_max, self.virtuals[v], disk.promise_max
                );
                return self.judge.fail(RESTART_SILENCE, what);
            }
        }
    }

    /// R13: only what answers this very call counts as a vote.
    pub(crate) fn what_if_answered(&mut self, i: usize, signal: &Signal) {
        let Body::Call { term, .. } = signal.body else {
            return;
        };
        let (local, v) = (self.local(i), &signal.virtual_server);
        let Some(electd) = self.servers[i].electd.as_ref() else {
            return;
        };
        let mut calling = electd.core.clone();
        while calling.poll_output().is_some() {}
        let answers = [
            (
                signal.instance,
                Number(signal.number.0.wrapping_sub(1)),
                term,
            ),
            (signal.instance, signal.number.next(), term),
            (NOBODY, signal.number, term),
            (signal.instance, signal.number, Term(term.0 - 1)),
        ];
        for (instance, number, term) in answers {
            let mut elector = calling.clone();
            for other in self
                .servers
                .iter()
                .filter(|s| s.name != self.servers[i].name)
            {
                let body = Body::Grant {
                    instance,
                    number,
                    term,
                };
                elector.handle(local, said(&other.name, v, (Instance(1), Number(1)), body));
            }
            let outputs = std::iter::from_fn(|| elector.poll_output());
            if outputs.into_iter().any(|o| matches!(o, Output::Open(..))) {
                let what = format!(
                    "{} called by number {} in {}, and answers to number {number} of {instance:?} in term {term} open its gate",
                    NAMES[i], signal.number, signal.instance.0
                );
                return self.judge.fail(REJECTED_IS_INERT, what);
            }
        }
    }

    /// R18: what is known to be released stays so, whatever older word of it comes.
    pub(crate) fn what_if_released(&mut self, i: usize, from: &ServerName, signal: &Signal) {
        let Body::Release { .. } = signal.body else {
            return;
        };
        let Some(electd) = self.servers[i].electd.as_ref() else {
            return;
        };
        let (local, v, by) = (self.local(i), &signal.virtual_server, signal.instance);
        let mut elector = electd.core.clone();
        settle(&mut elector, local);
        let older = Number(signal.number.0.saturating_sub(2));
        let body = Body::Release {
            term: Term(0),
            invited: None,
        };
        elector.handle(local, said(from, v, (by, older), body));
        let offer = Offer {
            from,
            v,
            by,
            lease: SHORT,
            roster: &electd.core.counted_roster().clone(),
        };
        if let Some(term) = offer.call(elector, local, Term(1), signal.number, TRIES) {
            let what = format!(
                "{} would vote for {from} in term {term} by number {}, which it was told is released",
                NAMES[i], signal.number
            );
            self.judge.fail(REJECTED_IS_INERT, what);
        }
    }
}

/// Done with what was due, and nothing left to say.
fn settle(elector: &mut Elector, now: BootTime) {
    elector.handle_timeout(now);
    pump(elector, now, |_| ());
}

/// Everything it wants done, in order; the disk is quick.
fn pump(elector: &mut Elector, now: BootTime, mut see: impl FnMut(&Output)) {
    while let Some(output) = elector.poll_output() {
        see(&output);
        if let Output::Reserve(reservation) = output {
            elector.handle(now, Input::Reserved(reservation));
        }
    }
}

fn said(
    from: &ServerName,
    v: &VirtualServerName,
    (instance, number): (Instance, Number),
    body: Body,
) -> Input {
    let signal = Signal {
        virtual_server: v.clone(),
        instance,
        number,
        body,
    };
    Input::Signal {
        from: from.clone(),
        signal,
    }
}

fn heard(from: &ServerName, at: BootTime, beat: Beat) -> Input {
    let from = from.clone();
    Input::Beat { from, at, beat }
}

fn beat(
    instance: Instance,
    number: Number,
    lease: Duration,
    roster: Roster,
    standings: Vec<Standing>,
) -> Beat {
    Beat {
        instance,
        number,
        lease,
        promise_max: lease,
        floor_base: Term(0),
        participation: Participation::Active,
        maintenance: false,
        witness: false,
        freshness: Default::default(),
        standings,
        heard: Vec::new(),
        roster,
        config_hash: 1,
        part: Default::default(),
    }
}

impl Question<'_> {
    fn put(
        &self,
        mut elector: Elector,
        begin: BootTime,
        lost: Lost,
    ) -> Result<(), (&'static str, String)> {
        let end = begin + self.left;
        pump(&mut elector, begin, |_| ());
        // Who remembers needs no word of others, and what it hears must not refresh what is asked for.
        let silent = match lost {
            Lost::Nothing | Lost::Electd => self.silent,
            Lost::Power | Lost::Disk => true,
            Lost::Years { heard } => heard,
        };
        if silent {
            self.hear(&mut elector, begin, true);
        }
        let step = self.left / u32::try_from(TURNS).unwrap_or(1);
        let mut at = begin + step;
        while let Some(next) = elector
            .poll_timeout()
            .map(|t| t.max(at))
            .filter(|t| *t < end)
        {
            elector.handle_timeout(next);
            pump(&mut elector, next, |_| ());
            at = next + step;
        }
        if silent {
            self.hear(&mut elector, end, false);
        }
        let offer = Offer {
            from: self.other,
            v: self.v,
            by: NOBODY,
            lease: SHORT,
            roster: self.roster,
        };
        let own = if lost == Lost::Disk {
            Term(0)
        } else {
            self.floors[1]
        };
        let floor = self.floors[0].max(own);
        let first = floor.next();
        let promises = offer
            .call(elector.clone(), end, first, Number(1), TRIES)
            .map(|term| ("vote for", term))
            .or_else(|| {
                // A claim is a beat, too: who hears it has heard somebody.
                let unheard = lost == Lost::Years { heard: false };
                let term = (!unheard).then(|| offer.claim(elector.clone(), end, first))?;
                term.map(|term| ("promise to", term))
            });
        if let Some((does, term)) = promises {
            let what = format!(
                "{} promised {} to {} for {:?} more; if it lost {lost:?} now, it would {does} {} in term {term} before",
                NAMES[self.who], self.v, NAMES[self.holder], self.left, self.other
            );
            return Err((RELEASE_BEFORE_GRANT, what));
        }
        if silent && self.late && !(lost == Lost::Disk && self.for_removed) {
            let late = end + LATE;
            elector.handle_timeout(late);
            pump(&mut elector, late, |_| ());
            self.hear(&mut elector, late, false);
            if floor.0 > 0
                && let Some(term) = offer.call(elector, late, floor, Number(1), 1)
            {
                let what = format!(
                    "{} voted in term {floor} of {}; if it lost {lost:?} now, it would vote for {} in term {term} one day",
                    NAMES[self.who], self.v, self.other
                );
                return Err((NO_VOTE_TWICE, what));
            }
        }
        Ok(())
    }

    fn hear(&self, elector: &mut Elector, now: BootTime, all: bool) {
        for (j, from, beat) in self.beats {
            if all || *j != self.holder {
                elector.handle(now, heard(from, now, beat.clone()));
                pump(elector, now, |_| ());
            }
        }
        elector.handle_timeout(now);
        pump(elector, now, |_| ());
    }
}

/// Of another server, which wants a promise.
struct Offer<'a> {
    from: &'a ServerName,
    v: &'a VirtualServerName,
    by: Instance,
    lease: Duration,
    roster: &'a Roster,
}

/// In which term it may be tried again, if that may help.
fn higher(why: Why, term: Term) -> Option<Term> {
    matches!(why, Why::Floor | Why::Reservation).then_some(term)
}

/// So short that every voter may promise it.
const SHORT: Duration = Duration::from_millis(1);

impl Offer<'_> {
    /// In which term it gets a vote, if it does; after the first try in those that refusals ask for.
    fn call(
        &self,
        mut elector: Elector,
        now: BootTime,
        mut term: Term,
        number: Number,
        tries: u64,
    ) -> Option<Term> {
        for _ in 0..tries {
            let body = Body::Call {
                term,
                lease: self.lease,
                releases: Vec::new(),
                roster: self.roster.version,
            };
            elector.handle(now, said(self.from, self.v, (self.by, number), body));
            let (mut granted, mut next) = (false, None);
            pump(&mut elector, now, |output| {
                if let Output::Signal { signal, .. } = output {
                    match signal.body {
                        Body::Grant { .. } => granted = true,
                        Body::Refuse { floor, why, .. } => next = higher(why, floor.next()),
                        _ => {}
                    }
                }
            });
            if granted {
                return Some(term);
            }
            term = term.max(next?);
        }
        None
    }

    /// In which term a claim is promised for.
    fn claim(&self, mut elector: Elector, now: BootTime, mut term: Term) -> Option<Term> {
        for number in 1..=TRIES {
            let standing = Standing {
                virtual_server: self.v.clone(),
                floor: term,
                claim: Some(Claim {
                    term,
                    lease_held: true,
                }),
                fit: true,
                priority: 50,
            };
            let number = Number(number);
            let beat = beat(
                self.by,
                number,
                self.lease,
                self.roster.clone(),
                vec![standing],
            );
            elector.handle(now, heard(self.from, now, beat));
            let (mut promised, mut next) = (false, None);
            pump(&mut elector, now, |output| {
                if let Output::Ack { ack, .. } = output {
                    for answer in &ack.answers {
                        match answer.verdict {
                            Verdict::Promised(_) => promised = true,
                            Verdict::Refused { floor, why, .. } => next = higher(why, floor),
                        }
                    }
                }
            });
            if promised {
                return Some(term);
            }
            term = term.max(next?);
        }
        None
    }
}
