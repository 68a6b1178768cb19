//! What befalls the cluster, and what may come of it.

use crate::{
    clock::Time,
    owned::{Change, Limit, Trouble},
    schedule::{Act, Kind, NAMES, PARTS, Part, Who},
    shells::Interruption,
    tcp::TcpEvent,
    world::{Event, Job, Wire, World, nanos},
};
use election::{Input, Preempt, Wish};
use protocol::{
    Instance, Number, Term,
    wire::{
        beat::{Ack, Freshness},
        signal::Body,
    },
};
use std::time::Duration;

/// What ends an act that has an end.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    Cuts(Vec<(usize, usize)>),
    Weather,
    SlowDisk(usize),
    BadDisk(usize),
    BadMemory(usize),
    Carrier(usize),
    Maintenance(usize),
}

impl World {
    fn who(&self, who: Who) -> usize {
        let n = self.servers.len();
        let master = self.master(0).unwrap_or(0);
        match who {
            Who::Master => master,
            Who::Server(k) => usize::from(k) % n,
            Who::Slave(k) => {
                let others: Vec<_> = (0..n).filter(|i| *i != master).collect();
                others[usize::from(k) % others.len()]
            }
        }
    }

    pub(crate) fn act(&mut self, number: usize) {
        let act = self.schedule.acts[number];
        let (i, j) = (self.who(act.who), self.who(act.to));
        let span = act.span * 1000;
        let now = self.now;
        self.note(|| format!("---- {act}    ({})", NAMES[i]));
        self.look();
        self.what_if(i);
        if let Some(trouble) = self.trouble(&act, i, j) {
            self.owned.add(trouble);
        }
        let n = self.servers.len();
        let start = |part| Event::Start { server: i, part };
        match act.kind {
            Kind::Kill => {
                self.kill(i, act.role);
                self.queue.push(now + span, start(act.role));
            }
            Kind::Power | Kind::Wipe | Kind::Restore => {
                self.power_off(i);
                match act.kind {
                    Kind::Wipe => self.wipe(i),
                    Kind::Restore => self.restore(i, act.n),
                    _ => {}
                }
                self.queue.push(now + span, Event::PowerOn(i));
            }
            Kind::Stall => self.stall(i, act.role, span),
            Kind::Freeze => PARTS.into_iter().for_each(|part| self.stall(i, part, span)),
            Kind::Pause => self.pause(i, span),
            Kind::Interrupt | Kind::Crash => {
                let come = Interruption {
                    outputs_left: act.n,
                    kill: act.kind == Kind::Crash,
                    span,
                };
                if let Some(electd) = self.servers[i].electd.as_mut() {
                    electd.interruption = Some(come);
                }
            }
            Kind::Cut => self.cut(vec![(i, j), (j, i)], span),
            Kind::OneWay => self.cut(vec![(i, j)], span),
            Kind::Isolate => self.cut((0..n).flat_map(|k| [(i, k), (k, i)]).collect(), span),
            Kind::Deaf => self.cut((0..n).map(|k| (k, i)).collect(), span),
            Kind::Mute => self.cut((0..n).map(|k| (i, k)).collect(), span),
            Kind::Split => {
                let side = |k: usize| act.n >> k & 1;
                let apart = (0..n).flat_map(|a| (0..n).map(move |b| (a, b)));
                self.cut(apart.filter(|(a, b)| side(*a) != side(*b)).collect(), span);
            }
            Kind::Weather => {
                self.weather = (act.n, act.n / 2, act.n / 2);
                self.undo_in(span, Undo::Weather);
            }
            Kind::Rate => self.set_rate(i, act.n.clamp(800, 1250)),
            Kind::Step => {
                let by = act.n * 1_000_000;
                let wall = &mut self.servers[i].wall;
                *wall = if act.n % 2 == 1 {
                    wall.wrapping_sub(by)
                } else {
                    wall.wrapping_add(by)
                };
                self.clock_disturbed(i);
            }
            Kind::SlowDisk => {
                self.servers[i].slow_disk = Some(act.n);
                self.undo_in(span, Undo::SlowDisk(i));
            }
            Kind::BadDisk => {
                self.servers[i].bad_disk += 1;
                self.undo_in(span, Undo::BadDisk(i));
            }
            Kind::BadMemory => {
                self.servers[i].bad_memory += 1;
                self.undo_in(span, Undo::BadMemory(i));
            }
            Kind::Burst => self.servers[i].burst_until = now + span,
            Kind::Carrier => {
                self.servers[i].no_carrier += 1;
                self.carrier_changed(i);
                self.undo_in(span, Undo::Carrier(i));
            }
            Kind::Broken => {
                let v = self.virtuals[0].clone();
                self.give(i, Input::GateBroken(v, "no such device".into()));
            }
            Kind::Promote => {
                let to = self.servers[j].name.clone();
                let which = (act.n as usize).checked_sub(1);
                let which = which.and_then(|v| self.virtuals.get(v)).cloned();
                self.wish(i, Wish::Promote(to, which));
            }
            Kind::Resign => self.wish(i, Wish::Resign),
            Kind::Maintenance => {
                self.wish(i, Wish::Maintenance(true));
                self.undo_in(span, Undo::Maintenance(i));
            }
            Kind::Add => {
                let to = self.servers[j].name.clone();
                self.wish(i, Wish::Add(to));
            }
            Kind::Remove => {
                let to = self.servers[j].name.clone();
                self.wish(i, Wish::Remove(to));
            }
            Kind::Lease => (0..n).for_each(|k| self.new_lease(k, Duration::from_micros(act.n))),
            Kind::OneLease => self.new_lease(i, Duration::from_micros(act.n)),
            Kind::Stop => {
                if let Some(electd) = self.servers[i].electd.as_mut() {
                    electd.stop = Some(span);
                }
                self.give(i, Input::Stop);
            }
            Kind::Fresh => {
                let fresh = Freshness {
                    term: Term(1),
                    run: act.n,
                };
                self.give(i, Input::Fresh(fresh));
            }
            Kind::Junk => self.junk(i),
        }
        self.look();
    }

    /// The disk is lost, and not for ever: it is found again when all is calm, if others are blank too, for then nobody
    /// would learn from anybody.
    fn wipe(&mut self, i: usize) {
        let Some(lost) = self.servers[i].disk.take() else {
            return;
        };
        self.servers[i].lost = Some(lost);
        self.disk_holds(i, None);
        self.judge.wiped(i);
        self.judge.moot(i);
        let lost = |s: &&crate::world::Server| s.lost.is_some() && s.disk.is_none();
        if self.servers.iter().filter(lost).count() > 1 {
            let calm = self.schedule.calm * 1000;
            self.owned.add(Trouble {
                from: self.now,
                end: calm,
                until: calm,
                what: "several disks are lost".into(),
                limit: Limit::Loose,
                change: Change::Yes,
                heir: None,
                wish: None,
                called: None,
            });
        }
    }

    /// The disk is put back to what it held so many writes ago. Promised is safety only as long as what was voted since
    /// is reserved there; what was promised since is covered by what the others tell, if whoever may be heard tells it;
    /// and the roster must be the same, for the majority that has it has it no longer then.
    fn restore(&mut self, i: usize, back: u64) {
        let server = &self.servers[i];
        let Some(present) = &server.disk else { return };
        let back = usize::try_from(back).unwrap_or(0);
        let Some(former) = server.former.iter().rev().nth(back).cloned() else {
            return;
        };
        let (now, local) = (self.now, self.local(i));
        let tells = |k: usize| {
            let other = &self.servers[k];
            let disk = other
                .disk
                .as_ref()
                .map_or(Duration::ZERO, |d| d.promise_max);
            let written = other.writing.as_ref().map_or(disk, |w| w.promise_max);
            disk.min(written).min(other.settings.lease)
        };
        let others = (0..self.servers.len()).filter(|k| *k != i);
        let told = others.map(tells).min().unwrap_or_default();
        let silence = former.promise_max.max(server.settings.lease).max(told);
        let covered = (0..self.virtuals.len()).all(|v| {
            let floors = self.judge.floors(i, v);
            let bound = self.judge.binding(i, v, now, local, server.rate);
            floors[0].max(floors[1]) <= former.reserved
                && bound.is_none_or(|(_, left)| left <= silence)
        });
        if covered && present.roster.version == former.roster.version {
            self.note(|| format!("{} finds its disk as it was: {former:?}", NAMES[i]));
            self.disk_holds(i, Some(former));
            self.judge.put_back(i);
            self.judge.moot(i);
        }
    }

    fn undo_in(&mut self, span: u64, undo: Undo) {
        self.undo.push(undo);
        self.queue
            .push(self.now + span, Event::Undo(self.undo.len() - 1));
    }

    pub(crate) fn undo(&mut self, number: usize) {
        let undo = self.undo[number].clone();
        self.note(|| format!("---- over: {undo:?}"));
        match undo {
            Undo::Cuts(cuts) => cuts
                .iter()
                .for_each(|(a, b)| self.cuts[*a][*b] = self.cuts[*a][*b].saturating_sub(1)),
            Undo::Weather => {
                self.weather = (self.schedule.loss, self.schedule.repeat, self.schedule.late)
            }
            Undo::SlowDisk(i) => self.servers[i].slow_disk = None,
            Undo::BadDisk(i) => {
                self.servers[i].bad_disk = self.servers[i].bad_disk.saturating_sub(1)
            }
            Undo::BadMemory(i) => {
                self.servers[i].bad_memory = self.servers[i].bad_memory.saturating_sub(1)
            }
            Undo::Carrier(i) => {
                self.servers[i].no_carrier = self.servers[i].no_carrier.saturating_sub(1);
                self.carrier_changed(i);
            }
            Undo::Maintenance(i) => self.wish(i, Wish::Maintenance(false)),
        }
    }

    fn cut(&mut self, cuts: Vec<(usize, usize)>, span: u64) {
        cuts.iter().for_each(|(a, b)| self.cuts[*a][*b] += 1);
        self.undo_in(span, Undo::Cuts(cuts));
    }

    fn carrier_changed(&mut self, i: usize) {
        self.arrives_now(i, Part::Doctord, Job::Carrier);
    }

    fn arrives_now(&mut self, server: usize, part: Part, job: Job) {
        self.queue.push(
            self.now,
            Event::Job {
                server,
                part,
                epoch: None,
                job,
            },
        );
    }

    fn give(&mut self, i: usize, input: Input) {
        self.arrives_now(i, Part::Electd, Job::Electd(Box::new(input)));
    }

    fn wish(&mut self, i: usize, wish: Wish) {
        self.wishes += 1;
        let id = self.wishes;
        self.give(i, Input::Operator { id, wish });
    }

    fn new_lease(&mut self, i: usize, lease: Duration) {
        self.servers[i].settings.lease = lease;
        self.reload(i);
    }

    /// SIGHUP to all roles.
    fn reload(&mut self, i: usize) {
        let settings = self.servers[i].settings.clone();
        self.shortest = self.shortest.min(settings.lease);
        self.give(i, Input::Settings(settings));
        self.arrives_now(i, Part::Doctord, Job::Reload);
        self.arrives_now(i, Part::Listend, Job::Reload);
    }

    /// Everything that reaches a server and has no place there: what was heard before, in other order and altered.
    fn junk(&mut self, i: usize) {
        for _ in 0..6 {
            let Some(n) = self.recorded.len().checked_sub(1) else {
                break;
            };
            let n = self.random.between(0, n as u64) as usize;
            let (from, to, path, mut wire) = self.recorded[n].clone();
            let delay = self.random.between(0, self.schedule.lease * 1000);
            let mut forged = false;
            if let Wire::Bytes(bytes) = &mut wire
                && self.random.percent(60)
            {
                let at = self.random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << self.random.below(8);
                forged = true;
            }
            self.deliver(delay, from, to, path, wire, forged);
        }
        for (from, to, path, wire) in self.answers.clone() {
            if to == i {
                self.deliver(0, from, to, path, wire, false);
            }
        }
        for _ in 0..4 {
            self.senseless(i);
        }
        let recorded = self
            .opening
            .iter()
            .filter(|(_, to, _)| *to == i)
            .map(|(from, _, bytes)| (*from, bytes.clone()));
        for (from, bytes) in recorded.collect::<Vec<_>>() {
            self.arrives_now(i, Part::Listend, Job::Tcp(TcpEvent::Replay { from, bytes }));
        }
    }

    /// RejectedIsInert: an elector that is told what has no place there is afterwards as one that was told nothing.
    fn senseless(&mut self, i: usize) {
        let local = self.local(i);
        let (a, b) = (self.random.bits(), self.random.below(200));
        let n = self.signals.len();
        let old = self
            .signals
            .get(self.random.below(n as u64) as usize)
            .cloned();
        let other = self.servers[(i + 1) % self.servers.len()].name.clone();
        let Some(electd) = self.servers[i].electd.as_ref() else {
            return;
        };
        let v = self.virtuals[0].clone();
        let (instance, number) = (Instance(a), Number(b));
        let signal = |body| protocol::wire::signal::Signal {
            virtual_server: v.clone(),
            instance,
            number,
            body,
        };
        let term = Term(b);
        let mut inputs = vec![
            Input::Ack {
                from: other.clone(),
                ack: Ack {
                    instance,
                    number,
                    waited: Duration::ZERO,
                    answers: vec![protocol::wire::beat::Answer {
                        virtual_server: v.clone(),
                        verdict: protocol::wire::beat::Verdict::Promised(
                            electd.core.term(&v).unwrap_or(term),
                        ),
                    }],
                    roster: electd.core.roster().version,
                },
            },
            Input::Signal {
                from: other.clone(),
                signal: signal(Body::Grant {
                    instance,
                    number,
                    term,
                }),
            },
            Input::Signal {
                from: other.clone(),
                signal: signal(Body::PreAnswer {
                    term,
                    round: a,
                    verdict: protocol::wire::signal::PreVerdict::Yes,
                }),
            },
            Input::GateShut(v.clone()),
        ];
        if let Ok(stranger) = "stranger".parse() {
            let from: protocol::ServerName = stranger;
            let calls = signal(Body::Call {
                term: Term(b + 1000),
                lease: Duration::from_millis(500),
                releases: Vec::new(),
                roster: Default::default(),
            });
            inputs.push(Input::Signal {
                from,
                signal: calls,
            });
        }
        // A vote or an answer that was counted once counts no second time, nor for another.
        if let Some((from, signal)) = old
            && from != self.servers[i].name
            && matches!(signal.body, Body::Grant { .. })
            && electd.core.term(&v).is_some()
        {
            inputs.push(Input::Signal { from, signal });
        }
        let settle = |mut elector: election::Elector| {
            elector.handle_timeout(local);
            while elector.poll_output().is_some() {}
            elector
        };
        let quiet = settle(electd.core.clone());
        for input in inputs {
            if matches!(input, Input::GateShut(_)) && quiet.term(&v).is_none() {
                continue;
            }
            let mut told = quiet.clone();
            let what = format!("{input:?}");
            told.handle(local, input);
            let mut acts = Vec::new();
            while let Some(output) = told.poll_output() {
                if !matches!(output, election::Output::Notice(_)) {
                    acts.push(output);
                }
            }
            if !acts.is_empty()
                || told.view(local) != quiet.view(local)
                || told.poll_timeout() != quiet.poll_timeout()
            {
                return self.not_inert(i, &format!("electd does something about {what}: {acts:?}"));
            }
        }
    }

    // ---- what may come of it -------------------------------------------------------------------------

    /// By the slowest clock there is.
    fn slow(&self, span: u64) -> u64 {
        let slowest = self
            .servers
            .iter()
            .map(|s| s.rate)
            .min()
            .unwrap_or(1000)
            .max(1);
        span * 1000 / slowest
    }

    fn trouble(&self, act: &Act, i: usize, j: usize) -> Option<Trouble> {
        if act.at == 0 && act.kind == Kind::Rate {
            return None; // how the clocks are, not what befalls them
        }
        let (now, span) = (self.now, act.span * 1000);
        let lease = nanos(self.servers[0].settings.lease);
        let heartbeat = self.schedule.heartbeat * 1000;
        let master = self.master(0);
        let hit = master.is_none_or(|m| m == i)
            || (0..self.virtuals.len()).any(|v| self.master(v) == Some(i));
        let (lasting, limit, change) = match act.kind {
            _ if master.is_none() || self.virtuals.len() > 1 && hit => {
                (span, Limit::Loose, Change::Yes)
            }
            Kind::Rate
            | Kind::Step
            | Kind::SlowDisk
            | Kind::BadDisk
            | Kind::Junk
            | Kind::Fresh
            | Kind::Add
            | Kind::Remove => (span, Limit::NoGap, Change::No),
            Kind::Lease => (3 * lease, Limit::NoGap, Change::No),
            Kind::OneLease | Kind::BadMemory | Kind::Restore => (
                span + 3 * self.schedule.longest_lease() * 1000,
                Limit::Loose,
                Change::Yes,
            ),
            Kind::Split | Kind::Weather | Kind::Broken => (span, Limit::Loose, Change::Yes),
            // What it forgot it counts as voted: the others hear of a higher floor.
            Kind::Power | Kind::Wipe if !hit => (span, Limit::NoGap, Change::Renewal),
            Kind::Isolate
            | Kind::Mute
            | Kind::Pause
            | Kind::Freeze
            | Kind::Deaf
            | Kind::Burst
            | Kind::Carrier
            | Kind::Maintenance
            | Kind::Resign
            | Kind::Stop
                if !hit =>
            {
                (span, Limit::NoGap, Change::No)
            }
            Kind::Stall | Kind::Kill | Kind::Interrupt | Kind::Crash if !hit => {
                (span, Limit::NoGap, Change::No)
            }
            Kind::Cut | Kind::OneWay if self.servers.len() > 2 => (span, Limit::NoGap, Change::No),
            Kind::Cut | Kind::OneWay | Kind::Burst => (span, Limit::Loose, Change::Yes),
            Kind::Power | Kind::Wipe | Kind::Isolate | Kind::Mute => {
                (span, Limit::By(self.succeeded(span)), Change::Yes)
            }
            Kind::Pause if span <= lease / 5 => {
                (span, Limit::By(now + span + self.slack()), Change::No)
            }
            Kind::Pause | Kind::Freeze => self.short_or(
                span,
                lease,
                Limit::By(self.succeeded(span).max(now + span + heartbeat)),
            ),
            Kind::Stall | Kind::Kill if act.role == Part::Listend => {
                (span, Limit::NoGap, Change::No)
            }
            Kind::Stall | Kind::Interrupt
                if act.role == Part::Electd || act.kind == Kind::Interrupt =>
            {
                self.short_or(span, lease, Limit::By(self.succeeded(span)))
            }
            Kind::Kill | Kind::Crash if act.role == Part::Electd || act.kind == Kind::Crash => {
                let (lasting, limit, _) = self.short_or(
                    span,
                    lease,
                    Limit::By(self.succeeded(span) + self.slow(lease)),
                );
                (lasting, limit, Change::Yes)
            }
            Kind::Stall | Kind::Kill if act.role == Part::Hbd => {
                self.short_or(span, lease, Limit::By(self.succeeded(span)))
            }
            Kind::Deaf | Kind::Stall | Kind::Kill => {
                self.short_or(span, lease, Limit::By(self.given_up(span)))
            }
            Kind::Interrupt | Kind::Crash => (span, Limit::Loose, Change::Yes),
            Kind::Carrier => (
                span,
                Limit::Long(self.given_away() + heartbeat + self.calls()),
                Change::Yes,
            ),
            Kind::Promote if hit && i == j || self.master(0) == Some(j) => {
                (span, Limit::NoGap, Change::No)
            }
            Kind::Promote | Kind::Maintenance | Kind::Resign | Kind::Stop => {
                (span, Limit::Long(self.given_away()), Change::Yes)
            }
        };
        // A machine that comes back keeps silent first.
        let silent = if matches!(act.kind, Kind::Power | Kind::Wipe | Kind::Restore) {
            self.slow(lease)
        } else {
            0
        };
        let heir = self.heir(act, i, j).filter(|_| change == Change::Yes);
        let invites = matches!(act.kind, Kind::Promote | Kind::Resign | Kind::Stop);
        let invited = invites && heir.is_some_and(|k| self.well(k));
        Some(Trouble {
            wish: invited.then_some(self.wishes + 1),
            called: None,
            from: now,
            end: now + lasting + silent,
            until: now + lasting + self.schedule.settles(act) * 1000,
            what: act.to_string(),
            limit,
            change,
            heir,
        })
    }

    /// A fault this short a lease bridges; a longer one ends as told.
    fn short_or(&self, span: u64, lease: u64, long: Limit) -> (u64, Limit, Change) {
        if span <= lease / 5 {
            (span, Limit::NoGap, Change::No)
        } else {
            (span, long, Change::Yes)
        }
    }

    /// From electd to electd, as a beat and as a signal goes.
    fn hops(&self) -> (u64, u64) {
        let (net, ring) = (self.schedule.delay.1 * 1000, self.schedule.ring.1 * 1000);
        (net + 3 * ring, net + 2 * ring)
    }

    /// PreCall and Call, and an answer to each.
    fn calls(&self) -> u64 {
        4 * self.hops().1 + self.slack()
    }

    fn slack(&self) -> u64 {
        self.schedule.lease * 10 + 100_000
    }

    /// Clocks that differ make voters free one after another, by more than a call waits: one try comes too early, and
    /// the next meets another server's.
    fn differ(&self) -> u64 {
        let rates = || self.servers.iter().map(|s| s.rate);
        let lease = nanos(self.servers[0].settings.lease);
        if rates().min() == rates().max() {
            0
        } else {
            2 * self.slow(lease / 4 + self.schedule.heartbeat * 1000)
        }
    }

    /// The time by which another server has taken over from one that fell silent now, or this one is back.
    fn succeeded(&self, span: u64) -> Time {
        let lease = self.slow(nanos(self.servers[0].settings.lease));
        let others = lease + self.hops().0 + self.calls() + self.differ();
        // One that wakes up when the others are about to vote may take a vote from them.
        let late = if span < 2 * lease {
            lease / 4 + self.schedule.heartbeat * 1000
        } else {
            0
        };
        self.now + others + late
    }

    /// The same of a master that is heard and hears nothing (R9).
    ///
    /// Its Release finds no link where silence has ended that; then promises run out, and the better servers have lost
    /// their first tries meanwhile: each waits for its rank.
    fn given_up(&self, span: u64) -> Time {
        let lease = nanos(self.servers[0].settings.lease);
        let gone = self.slow(lease * 4 / 5 + lease / 2);
        let ranks = self.slow(self.schedule.heartbeat * 500 * self.schedule.servers);
        let alone =
            gone + self.slow(lease) + ranks + self.given_away() + self.calls() + self.differ();
        self.succeeded(span).max(self.now + alone)
    }

    /// From the gate's shutting to the successor's opening.
    fn given_away(&self) -> u64 {
        self.schedule.gate.1 * 1000 + 1_000_000 + 4 * self.hops().1 + self.slack()
    }

    /// Who must take over, where that can be told: all clocks alike, all others well.
    fn heir(&self, act: &Act, i: usize, j: usize) -> Option<usize> {
        if self.servers.iter().any(|s| s.rate != 1000)
            || self.virtuals.len() > 1
            || self.schedule.preempt != 0
        {
            return None;
        }
        if act.kind == Kind::Promote {
            return (j != i).then_some(j);
        }
        let well = |k: &usize| *k != i && self.well(*k);
        let long = act.span * 1000 > 4 * nanos(self.servers[0].settings.lease);
        let dead = matches!(act.kind, Kind::Power | Kind::Isolate) && long;
        let leaves = matches!(act.kind, Kind::Resign | Kind::Stop);
        let rank = |k: &usize| (std::cmp::Reverse(self.schedule.priority(*k)), NAMES[*k]);
        ((dead || leaves) && self.fresh_alike() && act.at > 0)
            .then(|| (0..self.servers.len()).filter(well).min_by_key(rank))?
    }

    /// Could it serve?
    fn well(&self, k: usize) -> bool {
        let s = &self.servers[k];
        (k as u64) < self.schedule.servers
            && s.electd_runs()
            && s.no_carrier == 0
            && s.disk.is_some()
            && self.fresh_alike()
    }

    fn fresh_alike(&self) -> bool {
        !self.schedule.acts.iter().any(|a| {
            matches!(
                a.kind,
                Kind::Fresh | Kind::Maintenance | Kind::Broken | Kind::Add | Kind::Remove
            )
        })
    }

    // ---- the end -------------------------------------------------------------------------------------

    /// Troubles that are there from the beginning.
    pub(crate) fn first_trouble(&mut self) {
        let lease = self.slow(self.schedule.lease * 1000) * 5 / 4;
        let silent = if self.schedule.cold == 1 { lease } else { 0 };
        let rough = self.schedule.loss + self.schedule.repeat + self.schedule.late > 0
            || self.schedule.preempt > 0;
        let end = if rough {
            self.schedule.calm * 1000
        } else {
            silent
        };
        self.owned.add(Trouble {
            from: 0,
            end,
            until: end + lease + lease / 4,
            what: if rough {
                "a rough network"
            } else {
                "the start"
            }
            .into(),
            limit: Limit::Loose,
            change: Change::Yes,
            heir: None,
            wish: None,
            called: None,
        });
    }

    /// No more faults, and everything mended.
    pub(crate) fn calm(&mut self) {
        self.note(|| "---- calm".into());
        self.look();
        let mended = self.mend();
        if mended {
            let lease =
                self.slow(nanos(self.servers[0].settings.lease).max(self.schedule.lease * 1000));
            self.owned.add(Trouble {
                from: self.now,
                end: self.now + lease,
                until: self.now + lease,
                what: "calm".into(),
                limit: Limit::Loose,
                change: Change::Yes,
                heir: None,
                wish: None,
                called: None,
            });
        }
        self.look();
    }

    /// True if there was anything to mend.
    fn mend(&mut self) -> bool {
        let n = self.servers.len();
        let mut mended = self.weather != (0, 0, 0);
        self.weather = (0, 0, 0);
        self.schedule.preempt = 0;
        (self.schedule.loss, self.schedule.repeat, self.schedule.late) = (0, 0, 0);
        for a in 0..n {
            for b in 0..n {
                mended |= std::mem::take(&mut self.cuts[a][b]) > 0;
            }
        }
        let lease = Duration::from_micros(self.schedule.lease);
        let blank: Vec<_> = (0..n).filter(|i| self.servers[*i].lost.is_some()).collect();
        let several = blank
            .iter()
            .filter(|i| self.servers[**i].disk.is_none())
            .count()
            > 1;
        for i in blank {
            if several && self.servers[i].disk.is_none() {
                mended = true;
                self.power_off(i);
                let lost = self.servers[i].lost.take();
                self.disk_holds(i, lost);
            }
        }
        for i in 0..n {
            let s = &mut self.servers[i];
            mended |= s.bad_disk + s.bad_memory + s.no_carrier > 0 || s.burst_until > self.now;
            (s.bad_disk, s.bad_memory, s.burst_until) = (0, 0, 0);
            s.slow_disk = None;
            if let Some(electd) = &mut s.electd {
                electd.interruption = None;
            }
            if std::mem::take(&mut s.no_carrier) > 0 {
                self.carrier_changed(i);
            }
            let s = &mut self.servers[i];
            // A server that could serve again after a while would rightly be preferred.
            let wants = s.settings.lease != lease
                || s.settings
                    .virtual_servers
                    .values()
                    .any(|v| v.preempt != Preempt::Never);
            if wants {
                mended = true;
                s.settings.lease = lease;
                s.settings
                    .virtual_servers
                    .values_mut()
                    .for_each(|v| v.preempt = Preempt::Never);
                self.reload(i);
            }
            if self
                .schedule
                .acts
                .iter()
                .any(|a| a.kind == Kind::Maintenance)
            {
                mended = true;
                self.wish(i, Wish::Maintenance(false));
            }
            if !self.servers[i].powered {
                mended = true;
                self.power_on(i);
            }
            for part in PARTS {
                if !self.servers[i].processes[part as usize].alive {
                    mended = true;
                    self.start(i, part);
                }
            }
        }
        mended
    }

    /// When everything may be over, if it is as it must be, and when it is over at the latest.
    pub(crate) fn last_moments(&mut self) -> (Time, Time) {
        self.first_trouble();
        let (calm, lease) = (self.schedule.calm, self.schedule.longest_lease() * 1000);
        // What stands still is not woken before its time.
        let awake = self.schedule.acts.iter().map(|a| match a.kind {
            Kind::Stall | Kind::Freeze | Kind::Pause => a.at + a.span,
            Kind::Interrupt => calm + a.span,
            _ => calm,
        });
        let calm = awake.fold(calm, u64::max) * 1000;
        if self.schedule.crowded() {
            (calm + 2 * lease, calm + self.owned.loose() + 4 * lease)
        } else {
            (calm, calm + lease)
        }
    }

    /// What must be so in the end.
    pub(crate) fn at_the_end(&mut self) -> Result<(), crate::judge::Violation> {
        self.look();
        self.check();
        if let Some(what) = self.owned.end(self.now) {
            self.judge.fail(what.invariant, what.what);
        }
        for v in 0..self.virtuals.len() {
            let masters = (0..self.servers.len())
                .filter(|i| self.servers[*i].answers(v, self.now))
                .count();
            if self.schedule.none == 1 && masters != 1 {
                let what = format!(
                    "{masters} servers answer for virtual server {v} after all is whole again"
                );
                self.judge.fail(crate::judge::EVENTUALLY_OWNED, what);
            }
        }
        self.judge.failed().cloned().map_or(Ok(()), Err)
    }
}
