//! What one step does to a server: inputs handled, outputs carried out.

use crate::{
    cluster::Cluster,
    digest::INSTANCES,
    judge::{Invariant, Judge},
    scenario::Order,
    world::{Arm, Flight, Gate, Lie, Load, News, PRE_CALLS, SLOW, UNHEARD, World},
};
use election::{Elector, Input, Output, Start};
use protocol::{
    BootTime, Instance, Number, ServerName, Term, VirtualServerName,
    local::ring::{Health, HealthState, LinkHealth, ServerHealth},
    wire::{
        beat::{Ack, Beat, Participation, Verdict, Why},
        signal::{Body, PreVerdict, Signal},
    },
};
use std::{sync::Arc, time::Duration};

/// Counted when something is refused that must change nothing (DESIGN, RejectedIsInert).
const INERT: [&str; 12] = [
    "beat_unlisted",
    "ack_unlisted",
    "signal_unlisted",
    "out_of_state_pre_answer",
    "out_of_state_grant",
    "out_of_state_refuse",
    "out_of_state_ready",
    "out_of_state_not_ready",
    "out_of_state_hand_over",
    "grant_unasked",
    "grant_late",
    "ready_unasked",
];

/// Told as the wait of an acknowledgement, so that the estimate of the round trip stays at nothing: it only
/// spreads candidates in time, which the scenarios do in ways of their own.
const LONG: Duration = Duration::from_secs(1 << 30);

/// Back-off is drawn from one fixed seed for each server.
const SEEDS: [u64; 4] = [11, 25, 38, 47];

/// A server catches up on at most so many of its own times in one turn.
const TURNS_MAX: usize = 4;

fn refused(elector: &Elector) -> u64 {
    let counters = elector.counters();
    INERT.iter().filter_map(|what| counters.get(what)).sum()
}

impl Cluster {
    // ---- time ------------------------------------------------------------------------------------------

    /// Time goes on by one tick; every server does what is due.
    pub(crate) fn tick(&self, w: &mut World) {
        w.say(|_| "tick".into());
        w.late.retain_mut(|(age, _)| {
            *age = age.saturating_add(1); // SLOW stays what it is
            *age <= self.scenario.late || *age == SLOW
        });
        for (i, rate) in self.scenario.rates.iter().enumerate().take(w.hosts.len()) {
            let host = w.host(i);
            host.now = BootTime(host.now.0 + rate);
            host.pre_calls = 0;
            if let Some(ticks) = &mut host.stalled {
                *ticks += 1;
            }
            for age in &mut host.heard {
                *age = (*age & UNHEARD) | ((*age & !UNHEARD) + 1).min(self.deaf_after);
            }
        }
        for i in 0..w.hosts.len() {
            self.turn(w, i);
        }
    }

    /// Health if it changed, then whatever is due.
    pub(crate) fn turn(&self, w: &mut World, i: usize) {
        if w.hosts[i].elector.is_none() || w.hosts[i].stalled.is_some() {
            return;
        }
        self.tell_health(w, i);
        for _ in 0..TURNS_MAX {
            let host = &w.hosts[i];
            let due = |e: &Elector| e.poll_timeout().is_some_and(|at| at <= host.now);
            if host.stalled.is_some() || !host.elector.as_ref().is_some_and(due) {
                return;
            }
            let host = w.host(i);
            let now = host.now;
            if let Some(elector) = &mut host.elector {
                elector.reseed(SEEDS[i]);
                elector.handle_timeout(now);
            }
            self.after_handling(w, i);
        }
    }

    // ---- the doctor ------------------------------------------------------------------------------------

    fn opinion(&self, w: &World, i: usize, j: usize) -> HealthState {
        let host = &w.hosts[i];
        let age = host.heard[j];
        match host.lie {
            Some(Lie::AllDead) => HealthState::Dead,
            Some(Lie::AllAlive) => HealthState::Alive,
            None if age & !UNHEARD >= self.dead_after => HealthState::Dead,
            None if age & UNHEARD != 0 => HealthState::Unknown,
            None if age <= 2 => HealthState::Alive,
            None => HealthState::Suspect,
        }
    }

    /// Tells the doctor's opinion if it changed.
    pub(crate) fn tell_health(&self, w: &mut World, i: usize) {
        let mut opinion = [0; 4];
        let mut servers = Vec::new();
        for j in (0..w.hosts.len()).filter(|j| *j != i) {
            let state = self.opinion(w, i, j);
            opinion[j] = 1 + state as u8;
            servers.push(ServerHealth {
                server: self.names[j].clone(),
                state,
                last_heard: None,
            });
        }
        if opinion == w.hosts[i].opinion {
            return;
        }
        w.host(i).opinion = opinion;
        let links = vec![LinkHealth {
            interface: "eth0".into(),
            up: true,
        }];
        self.give(w, i, Input::Health(Health { servers, links }));
    }

    // ---- inputs ----------------------------------------------------------------------------------------

    /// Something arrives.
    pub(crate) fn deliver(&self, w: &mut World, mut flight: Flight) {
        let (from, to) = (flight.from, flight.to);
        let arrived = flight.arrived.is_some();
        if flight.load.travels() && !arrived {
            let cut = w.hosts[from].mute || w.hosts[to].deaf || w.is_parted(from, to);
            if cut || !w.hosts[to].powered {
                w.say(|_| format!("{from} -> {to} {}: cut off", self.text(&flight.load)));
                return;
            }
            if let Load::Beat(_) = flight.load {
                w.host(to).heard[from] = 0; // by the doctor, whatever electd does
            }
        }
        if w.hosts[to].elector.is_none() {
            return;
        }
        let now = w.hosts[to].now;
        let at = *flight.arrived.get_or_insert(now);
        if w.hosts[to].stalled.is_some() {
            w.say(|_| format!("{from} -> {to} {}: waits", self.text(&flight.load)));
            w.host(to).waiting.push_back(flight);
            return;
        }
        w.say(|_| format!("{from} -> {to} {}", self.text(&flight.load)));
        let sender = self.names[from].clone();
        match flight.load {
            Load::Beat(beat) => {
                self.tell_health(w, to);
                if w.hosts[to].elector.is_none() {
                    return;
                }
                if beat.standings.iter().any(|s| s.claim.is_some()) {
                    let asked = (beat.instance, beat.number, beat.lease);
                    w.host(to).asked.push(asked);
                }
                let beat = Beat::clone(&beat);
                self.hear(
                    w,
                    to,
                    Input::Beat {
                        from: sender,
                        at,
                        beat,
                    },
                );
            }
            Load::Ack(ack) => {
                let mut ack = Ack::clone(&ack);
                ack.waited = LONG;
                self.hear(w, to, Input::Ack { from: sender, ack });
            }
            Load::Signal(signal) => {
                self.note_arrival(w, from, to, &signal);
                let signal = Signal::clone(&signal);
                self.hear(
                    w,
                    to,
                    Input::Signal {
                        from: sender,
                        signal,
                    },
                );
            }
            Load::Linked => self.give(w, to, Input::Linked(sender)),
            Load::GateShut(v) => {
                let gate = &mut w.host(to).gates[v];
                *gate = gate.filter(|g| !g.shutting);
                self.give(w, to, Input::GateShut(self.virtuals[v].clone()));
            }
            Load::Written => {
                let host = w.host(to);
                if let Some(written) = host.writing.take() {
                    host.written(written.clone());
                    self.give(w, to, Input::Reserved(written));
                }
            }
            Load::Timer => self.turn(w, to),
        }
    }

    fn note_arrival(&self, w: &mut World, from: usize, to: usize, signal: &Signal) {
        let v = self.place(&signal.virtual_server);
        match &signal.body {
            Body::Release { .. } => {
                w.judge
                    .released((to, v), from, (signal.instance, signal.number));
            }
            Body::Call {
                releases, lease, ..
            } => {
                for r in releases {
                    let by = self.index(&r.server);
                    w.judge.released((to, v), by, (r.instance, r.number));
                }
                let asked = (signal.instance, signal.number, *lease);
                w.host(to).asked.push(asked);
            }
            _ => {}
        }
    }

    pub(crate) fn index(&self, name: &ServerName) -> usize {
        self.names.iter().position(|n| n == name).unwrap_or(0)
    }

    pub(crate) fn place(&self, name: &VirtualServerName) -> usize {
        self.virtuals.iter().position(|v| v == name).unwrap_or(0)
    }

    /// An input of another server: RejectedIsInert is checked.
    fn hear(&self, w: &mut World, i: usize, input: Input) {
        let before = Arc::clone(&w.hosts[i]);
        let Some(elector) = &before.elector else {
            return;
        };
        let count = refused(elector);
        self.handle(w, i, input);
        let host = &w.hosts[i];
        if let Some(after) = &host.elector
            && refused(after) > count
            && !self.is_inert(elector, after, host.now)
        {
            let what = format!("{i} was changed by what it refused");
            w.judge(Err((Invariant::RejectedIsInert, what)));
        }
        self.after_handling(w, i);
    }

    /// Does `after` differ from what time alone would have made of `before`?
    fn is_inert(&self, before: &Elector, after: &Elector, now: BootTime) -> bool {
        let mut before = before.clone();
        before.handle_timeout(now);
        let told = |elector: &Elector| {
            let mut elector = elector.clone();
            let reply = |o: &Output| {
                let Output::Signal { signal, .. } = o else {
                    return !matches!(o, Output::Notice(_) | Output::Changed(..));
                };
                !matches!(signal.body, Body::Refuse { .. } | Body::NotReady { .. })
            };
            let outputs: Vec<_> = std::iter::from_fn(|| elector.poll_output())
                .filter(reply)
                .collect();
            let mut s = self.situation.clone();
            elector.tell(now, &mut s);
            (outputs, s.words)
        };
        told(&before) == told(after)
    }

    /// An input of its own machine.
    pub(crate) fn give(&self, w: &mut World, i: usize, input: Input) {
        self.handle(w, i, input);
        self.after_handling(w, i);
    }

    fn handle(&self, w: &mut World, i: usize, input: Input) {
        let host = w.host(i);
        let now = host.now;
        if let Some(elector) = &mut host.elector {
            elector.reseed(SEEDS[i]);
            elector.handle(now, input);
        }
    }

    // ---- outputs ---------------------------------------------------------------------------------------

    /// Takes what the elector wants and carries it out, unless it holds that back for one more input.
    pub(crate) fn after_handling(&self, w: &mut World, i: usize) {
        let host = w.host(i);
        for (name, term) in self.virtuals.iter().zip(&mut host.terms) {
            if let Some(own) = host.elector.as_ref().and_then(|e| e.mastership(name)) {
                *term = own;
            }
        }
        host.handled = host.now;
        if host.arm == Some(Arm::Hold) && !host.holding {
            host.holding = true;
            return;
        }
        if host.holding {
            (host.holding, host.arm) = (false, None);
        }
        self.collect(w, i);
        self.carry_out(w, i);
    }

    /// What is held back is carried out at the latest when nothing else is there to handle.
    pub(crate) fn hold_no_longer(&self, w: &mut World) {
        for i in 0..w.hosts.len() {
            if w.hosts[i].holding {
                let host = w.host(i);
                (host.holding, host.arm) = (false, None);
                self.collect(w, i);
                self.carry_out(w, i);
            }
        }
    }

    fn collect(&self, w: &mut World, i: usize) {
        let said = |line| format!("{i}: {line}");
        loop {
            let host = w.host(i);
            let Some(output) = host.elector.as_mut().and_then(Elector::poll_output) else {
                return;
            };
            match output {
                Output::Notice(text) => w.say(|_| said(text)),
                Output::Changed(..) => {}
                Output::Alarm(text) => {
                    if text.contains("give way") {
                        w.judge(Err((Invariant::NoRival, text)));
                    } else {
                        w.say(|_| said(text));
                    }
                }
                Output::Answer { answer, .. } => {
                    w.refused |= answer.is_err();
                    w.say(|_| said(format!("{answer:?}")));
                }
                Output::Announce(_) | Output::Clients(..) | Output::Probe(_) => {}
                output => host.pending.push_back(output),
            }
        }
    }

    /// One output after another, until a stall or death that was armed.
    pub(crate) fn carry_out(&self, w: &mut World, i: usize) {
        let mut done = 0;
        loop {
            let host = &w.hosts[i];
            let next = !host.pending.is_empty();
            match host.arm {
                Some(Arm::Stall(n)) if done >= n || !next => {
                    let host = w.host(i);
                    (host.stalled, host.arm) = (Some(0), None);
                    return w.say(|_| format!("{i} stalls"));
                }
                Some(Arm::Die(n)) if done >= n || !next => {
                    w.host(i).arm = None;
                    return self.kill(w, i, false);
                }
                _ => {}
            }
            let Some(output) = w.host(i).pending.pop_front() else {
                w.host(i).asked.clear();
                return;
            };
            if !matches!(output, Output::Role(_) | Output::Succeeded(_)) {
                done += 1;
            }
            self.output(w, i, output);
            if w.hosts[i].elector.is_none() {
                return; // stopped
            }
        }
    }

    fn send(&self, w: &mut World, from: usize, to: usize, load: Load) {
        let flight = Flight {
            from,
            to,
            load,
            arrived: None,
        };
        self.launch(w, flight);
    }

    /// Behind all others, or where it is sorted if order does not matter.
    pub(crate) fn launch(&self, w: &mut World, flight: Flight) {
        let at = match self.scenario.order {
            Order::Sent => w.flights.len(),
            Order::Any => {
                let key = flight.key();
                w.flights.partition_point(|f| f.key() <= key)
            }
        };
        w.flights.insert(at, flight);
    }

    fn output(&self, w: &mut World, i: usize, output: Output) {
        w.say(|w| self.describe(w, i, &output));
        match output {
            Output::Remember(memory) => w.host(i).memory = Some(memory),
            Output::Beat(beat) => {
                let by = (beat.instance, beat.number);
                if beat.participation == Participation::Active {
                    let verdict = w.judge.takes_part(i, w.hosts[i].handled);
                    w.judge(verdict);
                }
                for standing in &beat.standings {
                    if let Some(claim) = standing.claim {
                        let v = self.place(&standing.virtual_server);
                        let verdict = w.judge.floor((i, v), claim.term, true, "claims");
                        w.judge(verdict);
                        self.promises(w, (i, v), i, claim.term, by, beat.lease);
                        if beat.lease.as_nanos() != u128::from(self.lease) && claim.lease_held {
                            w.news |= News::Lease as u8;
                        }
                    }
                }
                let room = if self.scenario.parts { 1 } else { usize::MAX };
                for beat in beat.parts(room, |_| 1).into_iter().map(Arc::new) {
                    for to in (0..w.hosts.len()).filter(|to| *to != i) {
                        self.send(w, i, to, Load::Beat(Arc::clone(&beat)));
                    }
                }
            }
            Output::Ack { to, ack } => self.acks(w, i, self.index(&to), ack),
            Output::Signal { to, signal } => self.says(w, i, self.index(&to), signal),
            Output::Open(name, until) => self.opens(w, (i, self.place(&name)), until),
            Output::Shut(name) | Output::HandOver(name, _) => {
                let v = self.place(&name);
                if let Some(gate) = &mut w.host(i).gates[v] {
                    gate.shutting = true;
                }
                self.send(w, i, i, Load::GateShut(v));
            }
            Output::Reserve(reservation) => {
                w.host(i).writing = Some(reservation);
                self.send(w, i, i, Load::Written);
            }
            Output::Role(change) => {
                if change.master {
                    let v = self.place(&change.virtual_server);
                    let verdict = w.judge.wins(i, v, change.term);
                    w.judge(verdict);
                    w.news |= match change.renewed {
                        true => News::Renewed as u8,
                        false => News::Elected as u8,
                    };
                    if change.reason.starts_with("took over by handover") {
                        w.news |= News::HandedOver as u8;
                    }
                }
            }
            Output::Stopped(last) => {
                let host = w.host(i);
                host.disk = last.or_else(|| host.disk.take());
                host.writing = None;
                self.ends(w, i);
            }
            Output::Succeeded(name) => {
                if w.gate(i, self.place(&name)).is_some() {
                    let what = format!("{i} has a successor before its gate is shut");
                    w.judge(Err((Invariant::ReleaseBeforeGrant, what)));
                }
            }
            Output::Announce(_)
            | Output::Clients(..)
            | Output::Probe(_)
            | Output::Changed(..)
            | Output::Alarm(_)
            | Output::Notice(_)
            | Output::Answer { .. } => {}
        }
    }

    fn acks(&self, w: &mut World, i: usize, to: usize, ack: Ack) {
        let alone = self.scenario.virtuals == 1 && !self.scenario.spare;
        if ack.answers.is_empty() && self.scenario.quiet_background && alone {
            return; // Only round trip and roster hang on it; what claims get back has the roster too.
        }
        let handled = w.hosts[i].handled;
        let verdict = w.judge.not_silent(i, handled, "acknowledges");
        w.judge(verdict);
        for answer in &ack.answers {
            if let Verdict::Promised(term) = answer.verdict {
                let v = self.place(&answer.virtual_server);
                let verdict = w.judge.floor((i, v), term, false, "acknowledges");
                w.judge(verdict);
                let by = (ack.instance, ack.number);
                let lease = self.lease_of(w, i, by);
                self.promises(w, (i, v), to, term, by, lease);
            }
        }
        self.send(w, i, to, Load::Ack(Arc::new(ack)));
    }

    /// A promise is told.
    fn promises(
        &self,
        w: &mut World,
        (voter, v): (usize, usize),
        holder: usize,
        term: Term,
        by: (Instance, Number),
        lease: Duration,
    ) {
        let host = &w.hosts[voter];
        let handled = host.handled;
        let (memory, disk) = (host.memory.as_ref(), host.disk.as_ref());
        let whose = (voter, &self.virtuals[v]);
        let verdict = Judge::durable(whose, (term, &self.names[holder]), lease, memory, disk);
        w.judge(verdict);
        let verdict = w.judge.promise((voter, v), handled, holder, by, lease);
        w.judge(verdict);
    }

    /// For how long what `i` answers now asked for a promise.
    fn lease_of(&self, w: &World, i: usize, by: (Instance, Number)) -> Duration {
        let asked = w.hosts[i].asked.iter().find(|(i, k, _)| (*i, *k) == by);
        asked.map_or(Duration::from_nanos(self.lease), |(_, _, lease)| *lease)
    }

    fn says(&self, w: &mut World, i: usize, to: usize, signal: Signal) {
        let handled = w.hosts[i].handled;
        let v = self.place(&signal.virtual_server);
        match &signal.body {
            Body::PreCall { .. } => {
                let asked = &mut w.host(i).pre_calls;
                if *asked >= PRE_CALLS.1 {
                    return w.say(|_| format!("{i} -> {to}: lost, one of too many"));
                }
                *asked += 1;
            }
            Body::Call { term, lease, .. } => {
                let by = (signal.instance, signal.number);
                w.judge.calls(v, *term);
                let verdict = w.judge.vote((i, v), *term, i, by);
                w.judge(verdict);
                self.promises(w, (i, v), i, *term, by, *lease);
            }
            Body::Grant {
                instance,
                number,
                term,
            } => {
                let by = (*instance, *number);
                let verdict = w.judge.vote((i, v), *term, to, by);
                w.judge(verdict);
                let lease = self.lease_of(w, i, by);
                self.promises(w, (i, v), to, *term, by, lease);
            }
            Body::PreAnswer {
                verdict: PreVerdict::Yes,
                ..
            } => {
                let verdict = w.judge.not_silent(i, handled, "would vote");
                w.judge(verdict);
            }
            Body::PreAnswer {
                verdict:
                    PreVerdict::No {
                        why: Why::Promised, ..
                    },
                ..
            }
            | Body::Refuse {
                why: Why::Promised, ..
            } if w.judge.is_recalled(i, v, handled) => self.news(w, News::Kept),
            Body::Release { .. } => {
                let open = w.gate(i, v).is_some();
                let verdict = w.judge.releases(i, v, open);
                w.judge(verdict);
            }
            _ => {}
        }
        self.send(w, i, to, Load::Signal(Arc::new(signal)));
    }

    /// What not every scenario asks for makes no difference where nobody does.
    fn news(&self, w: &mut World, news: News) {
        if self.scenario.sometimes.contains(&news) {
            w.news |= news as u8;
        }
    }

    fn opens(&self, w: &mut World, (i, v): (usize, usize), until: BootTime) {
        let host = w.host(i);
        let gate = &mut host.gates[v];
        let lapsed = gate.is_some_and(|g| g.deadline < host.now);
        let before = gate.map_or(BootTime(0), |g| g.deadline);
        *gate = Some(Gate {
            deadline: until.max(before),
            shutting: false,
        });
        let (now, term) = (host.now, host.terms[v]);
        if now > until {
            return; // A write that comes too late opens nothing.
        }
        let present = host.elector.as_ref().map(|e| e.counted_roster().clone());
        let roster = present
            .iter()
            .flat_map(|r| &r.voters)
            .map(|server| 1 << self.index(server))
            .fold(0, |a, b: u8| a | b);
        if roster.count_ones() as usize != self.scenario.voters {
            w.news |= News::Changed as u8;
        }
        let changed = present.is_some_and(|r| r.version.counter > 0);
        if changed && v == 0 && i != self.scenario.preferred[0] {
            self.news(w, News::ChangedAgain);
        }
        if lapsed && w.judge.token(v) == Some((term, i)) {
            w.news |= News::Regained as u8;
        }
        let verdict = w.judge.opens(i, v, term, roster);
        w.judge(verdict);
    }

    // ---- lives and deaths ------------------------------------------------------------------------------

    /// electd ends; what its kernel holds stays.
    fn ends(&self, w: &mut World, i: usize) {
        let host = w.host(i);
        host.elector = None;
        host.pending.clear();
        host.asked.clear();
        host.waiting.clear();
        (host.stalled, host.arm, host.holding) = (None, None, false);
        for gate in host.gates.iter_mut().flatten() {
            gate.shutting = false;
        }
        w.flights.retain(|f| f.to != i || f.load.travels());
        w.late.retain(|(age, f)| f.to != i || *age != SLOW);
        self.killed(w, i);
    }

    fn killed(&self, w: &mut World, i: usize) {
        for v in 0..self.virtuals.len() {
            let open = w.gate(i, v).is_some();
            w.judge.killed(i, v, open);
        }
    }

    /// electd is killed; a write under way reaches the disk or not.
    pub(crate) fn kill(&self, w: &mut World, i: usize, landed: bool) {
        w.say(|_| format!("{i} electd is killed"));
        let host = w.host(i);
        if let Some(writing) = host.writing.take().filter(|_| landed) {
            host.written(writing);
        }
        self.ends(w, i);
    }

    /// Power loss.
    pub(crate) fn power_off(&self, w: &mut World, i: usize, landed: bool) {
        self.kill(w, i, landed);
        w.say(|_| format!("{i} loses power"));
        let host = w.host(i);
        (host.powered, host.memory) = (false, None);
        host.gates = Default::default();
        (host.opinion, host.lie) = ([0; 4], None);
        host.heard = [UNHEARD; 4];
        self.killed(w, i);
    }

    /// electd is started; with the power if that was off.
    pub(crate) fn start(&self, w: &mut World, i: usize) {
        let open: Vec<_> = (0..self.virtuals.len()).map(|v| w.gate(i, v)).collect();
        let host = w.host(i);
        host.powered = true;
        host.starts += 1;
        host.opinion = [0; 4];
        let mut gates = Vec::new();
        for ((gate, open), name) in host.gates.iter_mut().zip(open).zip(&self.virtuals) {
            *gate = gate.filter(|_| open.is_some());
            gates.extend(open.map(|at| (name.clone(), at)));
        }
        let start = Start {
            instance: Instance(INSTANCES * (i as u64 + 1) + host.starts),
            seed: SEEDS[i],
            reservation: host.disk.clone(),
            memory: host.memory.clone(),
            gates,
        };
        let silent = match (&host.memory, &host.disk) {
            (None, Some(disk)) => Some(host.now + disk.promise_max.max(host.settings.lease)),
            // It has yet to learn for how long (R21); not less than the shortest lease.
            (None, None) => {
                let leases = self.scenario.leases.iter().copied();
                let shortest = leases.fold(self.lease, u64::min);
                Some(host.now + Duration::from_nanos(shortest))
            }
            (Some(_), _) => None,
        };
        host.elector = Some(Elector::new(host.settings.clone(), start, host.now));
        w.judge.started(i, silent);
        self.killed(w, i);
        w.say(|_| format!("{i} electd starts"));
        self.after_handling(w, i);
        self.turn(w, i);
        self.link(w, i);
    }

    /// The links of `i` are up again.
    pub(crate) fn link(&self, w: &mut World, i: usize) {
        for j in (0..w.hosts.len()).filter(|j| *j != i) {
            for (from, to) in [(i, j), (j, i)] {
                if w.hosts[to].elector.is_some() && w.hosts[from].elector.is_some() {
                    self.send(w, from, to, Load::Linked);
                }
            }
        }
    }

    /// The stall is over: the rest is carried out, then what waited is handled, then what is due.
    pub(crate) fn resume(&self, w: &mut World, i: usize) {
        w.say(|_| format!("{i} goes on"));
        let host = w.host(i);
        host.stalled = None;
        let waiting: Vec<_> = host.waiting.drain(..).collect();
        self.carry_out(w, i);
        w.flights.extend(waiting);
        self.send(w, i, i, Load::Timer);
    }

    /// A write ends in an error; its bytes reached the disk or not.
    pub(crate) fn write_fails(&self, w: &mut World, i: usize, landed: bool) {
        w.say(|_| format!("{i} a write fails, landed: {landed}"));
        let host = w.host(i);
        if let Some(writing) = host.writing.take().filter(|_| landed) {
            host.written(writing);
        }
        self.give(w, i, Input::ReserveFailed("no space left on device".into()));
    }
}
