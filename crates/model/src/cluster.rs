//! The cluster as stateright sees it: first states, actions, next states, properties.

use crate::{
    judge::{Invariant, Judge, VIRTUALS_MAX},
    scenario::{Asked, Begin, FAULTS, Fault, Order, Scenario},
    world::{Arm, Flight, Host, Lie, Load, News, SLOW, UNHEARD, World},
};
use election::{
    Input, Mode, Output, Preempt, Reservation, Settings, VirtualServerSettings, Wish,
    situation::Situation,
};
use protocol::{BadName, BootTime, ServerName, Term, VirtualServerName};
use stateright::{Model, Property};
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// Heartbeat h and lease L in nanoseconds of a clock that counts 4 to the tick: a beat each tick, a lease of five.
/// So small that fractions of h, like the leader's 1/16, round to nothing.
pub const HEARTBEAT: u64 = 4;
/// See [`HEARTBEAT`].
pub const LEASE: u64 = 5 * HEARTBEAT;

/// A first state is reached within so many steps.
const PREFIX_MAX: usize = 3000;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    /// The message at this place arrives.
    Next(usize),
    Lose(usize),
    Delay(usize),
    Repeat(usize),
    /// What was held up arrives.
    Arrive(usize),
    Cut(usize, bool, bool),
    Heal(usize),
    Kill(usize, bool),
    PowerOff(usize, bool),
    Wipe(usize),
    Start(usize),
    Arm(usize, Arm),
    Resume(usize),
    Lie(usize, Lie),
    Truth(usize),
    WriteFails(usize, bool),
    Wish(usize, Asked),
    Lease(usize, u64),
    /// The write at this place is slow.
    Slow(usize),
    /// These servers, one bit each, and the others no longer reach each other.
    Part(u8),
    Unpart,
    /// The disk is put back: to what was on it first, or before the last write.
    Restore(usize, usize),
}

/// A scenario and its cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) scenario: Scenario,
    pub(crate) names: Vec<ServerName>,
    pub(crate) virtuals: Vec<VirtualServerName>,
    pub(crate) lease: u64,
    pub(crate) situation: Situation,
    /// Ticks after which a server not heard is dead.
    pub(crate) dead_after: u8,
    /// Ticks not heard that are counted.
    pub(crate) deaf_after: u8,
    first: Option<World>,
}

const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

/// In order of name.
const VIRTUALS: [&str; VIRTUALS_MAX] = ["web", "zmail"];

impl Cluster {
    /// The cluster of a scenario, where the scenario begins.
    pub fn new(scenario: Scenario) -> Result<Self, BadName> {
        let parsed = NAMES[..scenario.servers()].iter().map(|n| n.parse());
        let names: Vec<ServerName> = parsed.collect::<Result<_, _>>()?;
        let parsed = VIRTUALS[..scenario.virtuals].iter().map(|n| n.parse());
        let virtuals: Vec<VirtualServerName> = parsed.collect::<Result<_, _>>()?;
        let longest = scenario
            .leases
            .iter()
            .copied()
            .max()
            .unwrap_or(0)
            .max(LEASE);
        let situation = Situation::new(
            names.clone(),
            virtuals.clone(),
            Duration::from_nanos(HEARTBEAT),
            Duration::from_nanos(longest),
            !scenario.leases.is_empty(),
        );
        let mut cluster = Self {
            scenario,
            names,
            virtuals,
            lease: LEASE,
            situation,
            dead_after: 5,
            deaf_after: 5,
            first: None,
        };
        cluster.first = cluster.begin();
        Ok(cluster)
    }

    fn settings(&self, i: usize) -> Settings {
        let own = |v: usize| VirtualServerSettings {
            interface: "eth0".into(),
            priority: if self.scenario.preferred[v] == i {
                200
            } else {
                100
            },
            preempt: Preempt::Never,
        };
        let virtuals = self.virtuals.iter().enumerate();
        Settings {
            me: self.names[i].clone(),
            heartbeat: Duration::from_nanos(HEARTBEAT),
            lease: Duration::from_nanos(self.lease),
            margin: Duration::ZERO,
            mode: Mode::Majority,
            witness: self.scenario.witness && i + 1 == self.scenario.voters,
            servers: self.names.clone(),
            virtual_servers: virtuals.map(|(v, name)| (name.clone(), own(v))).collect(),
            config_hash: 1,
        }
    }

    fn power_on(&self) -> World {
        let voters = self.names[..self.scenario.voters].to_vec();
        let lease = Duration::from_nanos(self.scenario.raised_from.unwrap_or(self.lease));
        let mut reservation = Reservation::first(voters, self.virtuals.first().cloned(), lease);
        if self.scenario.nearly_used_up {
            reservation.reserved = Term(1);
        }
        let host = |i: usize| Host {
            elector: None,
            powered: true,
            now: BootTime(1 << 20),
            settings: self.settings(i),
            gates: Default::default(),
            memory: None,
            disk: (i < self.scenario.voters).then(|| reservation.clone()),
            writing: None,
            former: Default::default(),
            pending: VecDeque::new(),
            asked: Vec::new(),
            handled: BootTime(0),
            terms: Default::default(),
            stalled: None,
            arm: None,
            holding: false,
            waiting: VecDeque::new(),
            heard: [UNHEARD; 4],
            opinion: [0; 4],
            lie: None,
            deaf: false,
            mute: false,
            pre_calls: 0,
            starts: 0,
        };
        let mut w = World {
            hosts: (0..self.names.len()).map(|i| Arc::new(host(i))).collect(),
            flights: Vec::new(),
            late: Vec::new(),
            left: [0; FAULTS],
            total: 0,
            parted: 0,
            refused: false,
            judge: Judge::new(self.scenario.virtuals),
            news: 0,
            failed: None,
            log: None,
            digest: 0,
        };
        for i in 0..w.hosts.len() {
            self.start(&mut w, i);
        }
        self.end_step(&mut w);
        w
    }

    /// The scenario's first state: a run without faults up to there. None if it never comes to rest.
    fn begin(&self) -> Option<World> {
        let mut w = self.power_on();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..PREFIX_MAX {
            let quiet = w.flights.is_empty();
            let there = match self.scenario.begin {
                Begin::Boot => true,
                Begin::Ready => {
                    // One tick more, and silence is over.
                    let waited = w.hosts[0].now.0 - (1 << 20);
                    quiet && waited >= self.lease
                }
                Begin::Settled => {
                    let mut preferred = self.scenario.preferred.iter().enumerate();
                    let owned =
                        preferred.all(|(v, i)| v >= self.virtuals.len() || w.gate(*i, v).is_some());
                    quiet && owned && !seen.insert(w.digest)
                }
            };
            if there {
                self.arm_budget(&mut w);
                return Some(w);
            }
            let action = if quiet { Action::Tick } else { Action::Next(0) };
            w = self.next_state(&w, action)?;
            if w.failed.is_some() {
                return Some(w); // Found before anything went wrong.
            }
        }
        None
    }

    fn arm_budget(&self, w: &mut World) {
        for (fault, n) in &self.scenario.faults {
            w.left[*fault as usize] = *n;
        }
        w.total = self.scenario.total;
        if w.total == 0 {
            w.left = [0; FAULTS];
        }
        w.judge.forget_terms();
        w.settle(&self.scenario, &self.situation);
    }

    /// Background arrives, what is held is carried out, the judge looks.
    fn end_step(&self, w: &mut World) {
        loop {
            let background = |f: &Flight| self.scenario.quiet_background && f.load.is_background();
            if let Some(at) = w.flights.iter().position(background) {
                let flight = w.flights.remove(at);
                self.deliver(w, flight);
            } else if w.flights.is_empty() && w.hosts.iter().any(|h| h.holding) {
                self.hold_no_longer(w);
            } else if self.scenario.swift && !w.flights.is_empty() && !self.has_choice(w) {
                w.check(&self.scenario);
                if w.failed.is_some() || !self.within_boundary(w) {
                    break; // A run of calls in no time ends at the bound on terms.
                }
                let flight = w.flights.remove(0);
                self.deliver(w, flight);
            } else {
                break;
            }
        }
        w.settle(&self.scenario, &self.situation);
    }

    /// May anything but its arrival befall what arrives next?
    fn has_choice(&self, w: &World) -> bool {
        let may = |faults: &[Fault]| faults.iter().any(|fault| w.may(*fault));
        match w.flights[0].load {
            Load::Written => may(&[
                Fault::Slow,
                Fault::Delay,
                Fault::Disk,
                Fault::Kill,
                Fault::Power,
            ]),
            Load::GateShut(_) => may(&[Fault::Delay]),
            Load::Beat(_) | Load::Ack(_) | Load::Signal(_) => {
                may(&[Fault::Lose, Fault::Repeat, Fault::Delay])
            }
            Load::Linked | Load::Timer => false,
        }
    }

    fn fault_actions(&self, w: &World, actions: &mut Vec<Action>) {
        let may = |fault| w.may(fault);
        let places = match self.scenario.order {
            Order::Sent => w.flights.len().min(1),
            Order::Any => w.flights.len(),
        };
        for at in 0..places {
            let load = &w.flights[at].load;
            let arrived = w.flights[at].arrived.is_some();
            if load.travels() && !arrived {
                if may(Fault::Lose) {
                    actions.push(Action::Lose(at));
                }
                if may(Fault::Repeat) {
                    actions.push(Action::Repeat(at));
                }
            }
            let slow = matches!(load, Load::GateShut(_) | Load::Written);
            if may(Fault::Delay) && (slow || load.travels() && !arrived) {
                actions.push(Action::Delay(at));
            }
            if may(Fault::Slow) && matches!(load, Load::Written) {
                actions.push(Action::Slow(at));
            }
            if let Load::Written = load
                && may(Fault::Disk)
                && w.hosts[w.flights[at].to].stalled.is_none()
            {
                let to = w.flights[at].to;
                actions.extend([Action::WriteFails(to, false), Action::WriteFails(to, true)]);
            }
        }
        for i in 0..w.hosts.len() {
            self.server_faults(w, i, places, actions);
        }
        if may(Fault::Part) && w.parted == 0 && w.flights.is_empty() {
            // Halves, named by the one that the first server is in.
            let half = w.hosts.len() as u32 / 2;
            let sides = (0..1 << w.hosts.len()).filter(|s: &u8| s & 1 == 1);
            actions.extend(sides.filter(|s| s.count_ones() == half).map(Action::Part));
        }
    }

    /// The wishes that may come at `i` now.
    fn wishes(&self, w: &World, i: usize) -> Vec<Asked> {
        let wishes = &self.scenario.wishes;
        if !self.scenario.in_turn {
            let sense = |asked: &&Asked| !matches!(asked, Asked::Promote(j) if *j == i);
            return wishes.iter().filter(sense).copied().collect();
        }
        let budget = self.scenario.faults.iter();
        let budget = budget
            .filter(|(fault, _)| *fault == Fault::Wish)
            .map(|(_, n)| *n);
        let done = budget.sum::<u8>() - w.left[Fault::Wish as usize];
        let concerned = |asked: &&Asked| {
            let v = match asked {
                Asked::Move(v, _) => *v,
                _ => 0,
            };
            let elector = w.hosts[i].elector.as_ref();
            elector.is_some_and(|e| e.mastership(&self.virtuals[v]).is_some())
        };
        let next = wishes.get(usize::from(done));
        next.filter(concerned).into_iter().copied().collect()
    }

    /// What befalls a server matters no earlier than just before something else happens to it.
    fn server_faults(&self, w: &World, i: usize, places: usize, actions: &mut Vec<Action>) {
        let may = |fault| w.may(fault);
        let quiet = w.flights.is_empty();
        let host = &w.hosts[i];
        let places = if self.scenario.coarse { 0 } else { places };
        let writes_now = |f: &Flight| f.to == i && matches!(f.load, Load::Written);
        let writing = self.scenario.swift && w.flights.first().is_some_and(writes_now);
        let next = quiet || writing || w.flights[..places].iter().any(|f| f.to == i);
        let touches = |f: &Flight| f.load.travels() && (f.to == i || f.from == i);
        if may(Fault::Cut)
            && !host.deaf
            && !host.mute
            && host.powered
            && (quiet || w.flights[..places].iter().any(touches))
        {
            let ways = [(true, true), (true, false), (false, true)];
            let ways = ways
                .into_iter()
                .filter(|(deaf, _)| *deaf || !self.scenario.lasting);
            actions.extend(ways.map(|(deaf, mute)| Action::Cut(i, deaf, mute)));
        }
        let writes: &[bool] = if host.writing.is_some() {
            &[false, true]
        } else {
            &[false]
        };
        if host.powered && next {
            if may(Fault::Power) {
                actions.extend(writes.iter().map(|landed| Action::PowerOff(i, *landed)));
            }
            if may(Fault::Wipe) {
                actions.push(Action::Wipe(i));
            }
            if may(Fault::Restore) {
                let differs = |at: &usize| {
                    let then = &host.former[*at];
                    then.is_some() && *then != host.disk && !(*at == 1 && *then == host.former[0])
                };
                let times = (0..host.former.len()).filter(differs);
                actions.extend(times.map(|at| Action::Restore(i, at)));
            }
        }
        if host.elector.is_none() {
            return;
        }
        if next && may(Fault::Kill) {
            actions.extend(writes.iter().map(|landed| Action::Kill(i, *landed)));
            if host.stalled.is_none() && host.arm.is_none() && !self.scenario.lasting {
                actions.extend([Action::Arm(i, Arm::Die(1)), Action::Arm(i, Arm::Die(2))]);
            }
        }
        if next && may(Fault::Stall) && host.stalled.is_none() && host.arm.is_none() {
            let arms = [
                Arm::Stall(0),
                Arm::Stall(1),
                Arm::Stall(2),
                Arm::Stall(9),
                Arm::Hold,
            ];
            actions.extend(arms.map(|arm| Action::Arm(i, arm)));
        }
        if quiet && host.stalled.is_none() {
            if may(Fault::Lie) && host.lie.is_none() {
                actions.extend([Lie::AllDead, Lie::AllAlive].map(|lie| Action::Lie(i, lie)));
            }
            if may(Fault::Wish) {
                let wishes = self.wishes(w, i);
                actions.extend(wishes.into_iter().map(|asked| Action::Wish(i, asked)));
            }
            if may(Fault::Lease) {
                let other = |lease: &&u64| u128::from(**lease) != host.settings.lease.as_nanos();
                let leases = self
                    .scenario
                    .leases
                    .iter()
                    .chain([&self.lease])
                    .filter(other);
                actions.extend(leases.map(|lease| Action::Lease(i, *lease)));
            }
        }
    }

    fn act(&self, w: &mut World, action: Action) {
        match action {
            Action::Tick => self.tick(w),
            Action::Next(at) => {
                let flight = w.flights.remove(at);
                self.deliver(w, flight);
            }
            Action::Lose(at) => {
                w.spend(Fault::Lose);
                let flight = w.flights.remove(at);
                w.say(|_| {
                    format!(
                        "{} -> {} {}: lost",
                        flight.from,
                        flight.to,
                        self.text(&flight.load)
                    )
                });
            }
            Action::Delay(at) => {
                w.spend(Fault::Delay);
                let flight = w.flights.remove(at);
                w.say(|_| {
                    format!(
                        "{} -> {} {}: held up",
                        flight.from,
                        flight.to,
                        self.text(&flight.load)
                    )
                });
                w.late.push((0, flight));
            }
            Action::Repeat(at) => {
                w.spend(Fault::Repeat);
                let flight = w.flights.remove(at);
                w.say(|_| {
                    format!(
                        "{} -> {} {}: will come twice",
                        flight.from,
                        flight.to,
                        self.text(&flight.load)
                    )
                });
                w.late.push((0, flight.clone()));
                self.deliver(w, flight);
            }
            Action::Arrive(at) => {
                let (_, flight) = w.late.remove(at);
                self.deliver(w, flight);
            }
            Action::Cut(i, deaf, mute) => {
                w.spend(Fault::Cut);
                w.say(|_| format!("{i} is cut off: deaf {deaf}, mute {mute}"));
                (w.host(i).deaf, w.host(i).mute) = (deaf, mute);
            }
            Action::Heal(i) => {
                w.say(|_| format!("{i} is connected again"));
                (w.host(i).deaf, w.host(i).mute) = (false, false);
                self.link(w, i);
            }
            Action::Kill(i, landed) => {
                w.spend(Fault::Kill);
                self.kill(w, i, landed);
                self.back_if_prompt(w, i);
            }
            Action::PowerOff(i, landed) => {
                w.spend(Fault::Power);
                self.power_off(w, i, landed);
                self.back_if_prompt(w, i);
            }
            Action::Wipe(i) => {
                w.spend(Fault::Wipe);
                self.power_off(w, i, false);
                w.host(i).disk = None;
                w.judge.wiped(i);
                self.back_if_prompt(w, i);
            }
            Action::Restore(i, at) => {
                w.spend(Fault::Restore);
                self.power_off(w, i, false);
                w.say(|_| format!("{i} has its disk put back"));
                let host = w.host(i);
                host.disk = host.former[at].clone();
                w.judge.put_back(i);
                self.back_if_prompt(w, i);
            }
            Action::Slow(at) => {
                w.spend(Fault::Slow);
                let flight = w.flights.remove(at);
                w.say(|_| format!("{} has a slow disk", flight.to));
                w.late.push((SLOW, flight));
            }
            Action::Part(side) => {
                w.spend(Fault::Part);
                let inside = (0..w.hosts.len()).filter(|i| side >> i & 1 == 1);
                let inside: Vec<_> = inside.collect();
                w.say(|_| format!("{inside:?} and the others no longer reach each other"));
                w.parted = side;
            }
            Action::Unpart => {
                w.say(|_| "all reach each other again".into());
                w.parted = 0;
                (0..w.hosts.len()).for_each(|i| self.link(w, i));
            }
            Action::Start(i) => self.start(w, i),
            Action::Arm(i, arm) => {
                w.spend(match arm {
                    Arm::Die(_) => Fault::Kill,
                    Arm::Stall(_) | Arm::Hold => Fault::Stall,
                });
                w.host(i).arm = Some(arm);
                w.say(|_| format!("{i} will {arm:?}"));
            }
            Action::Resume(i) => self.resume(w, i),
            Action::Lie(i, lie) => {
                w.spend(Fault::Lie);
                w.say(|_| format!("{i} doctor says {lie:?}"));
                w.host(i).lie = Some(lie);
                self.tell_health(w, i);
            }
            Action::Truth(i) => {
                w.host(i).lie = None;
                if w.hosts[i].elector.is_some() && w.hosts[i].stalled.is_none() {
                    self.tell_health(w, i);
                }
            }
            Action::WriteFails(i, landed) => {
                w.spend(Fault::Disk);
                w.flights
                    .retain(|f| f.to != i || !matches!(f.load, Load::Written));
                self.write_fails(w, i, landed);
            }
            Action::Wish(i, asked) => {
                w.spend(Fault::Wish);
                w.say(|_| format!("{i} is asked: {asked:?}"));
                let input = |wish| Input::Operator { id: 1, wish };
                let name = |j: usize| self.names[j].clone();
                let input = match asked {
                    Asked::Promote(j) => input(Wish::Promote(name(j), None)),
                    Asked::Move(v, j) => {
                        input(Wish::Promote(name(j), Some(self.virtuals[v].clone())))
                    }
                    Asked::Resign => input(Wish::Resign),
                    Asked::Stop => Input::Stop,
                    Asked::Add(j) => input(Wish::Add(name(j))),
                    Asked::Remove(j) => input(Wish::Remove(name(j))),
                };
                self.give(w, i, input);
            }
            Action::Lease(i, lease) => {
                w.spend(Fault::Lease);
                w.say(|_| format!("{i} lease is {lease} ns"));
                w.host(i).settings.lease = Duration::from_nanos(lease);
                let settings = w.hosts[i].settings.clone();
                self.give(w, i, Input::Settings(settings));
            }
        }
    }

    fn back_if_prompt(&self, w: &mut World, i: usize) {
        if self.scenario.prompt {
            self.start(w, i);
        }
    }

    // ---- for readers -----------------------------------------------------------------------------------

    pub(crate) fn text(&self, load: &Load) -> String {
        match load {
            Load::Beat(beat) => {
                let claims = beat.standings.iter().filter_map(|s| {
                    let claim = s.claim?;
                    Some(format!(
                        " claims {} in term {}",
                        s.virtual_server, claim.term
                    ))
                });
                let claims: Vec<_> = claims.collect();
                let roster = beat.roster.version;
                format!("beat {} roster {roster}{}", beat.number, claims.concat())
            }
            Load::Ack(ack) => {
                let answers: Vec<_> = ack
                    .answers
                    .iter()
                    .map(|a| format!(" {} {:?}", a.virtual_server, a.verdict))
                    .collect();
                format!(
                    "ack of {} roster {}{}",
                    ack.number,
                    ack.roster,
                    answers.concat()
                )
            }
            Load::Signal(signal) => format!(
                "{} {:?} (number {})",
                signal.virtual_server, signal.body, signal.number
            ),
            Load::Linked => "link is up".into(),
            Load::GateShut(v) => format!("gate of {} reads back shut", self.virtuals[*v]),
            Load::Written => "reservation is on disk".into(),
            Load::Timer => "timer".into(),
        }
    }

    pub(crate) fn describe(&self, w: &World, i: usize, output: &Output) -> String {
        let now = w.hosts[i].now;
        match output {
            Output::Remember(memory) => {
                let votes: Vec<_> = memory
                    .votes
                    .iter()
                    .map(|v| {
                        format!(
                            " {} voted {}, holder {:?}",
                            v.virtual_server, v.voted, v.holder
                        )
                    })
                    .collect();
                format!("{i}: remembers{}", votes.concat())
            }
            Output::Beat(beat) => format!(
                "{i}: sends {}",
                self.text(&Load::Beat(Arc::new(beat.clone())))
            ),
            Output::Ack { to, ack } => format!(
                "{i}: to {to} {}",
                self.text(&Load::Ack(Arc::new(ack.clone())))
            ),
            Output::Signal { to, signal } => format!(
                "{i}: to {to} {}",
                self.text(&Load::Signal(Arc::new(signal.clone())))
            ),
            Output::Open(name, until) => format!(
                "{i}: gate of {name} open for {} ns more",
                until.0 as i64 - now.0 as i64
            ),
            Output::Role(change) => format!(
                "{i}: {} of {} in term {}: {}",
                if change.master { "MASTER" } else { "slave" },
                change.virtual_server,
                change.term,
                change.reason
            ),
            other => format!("{i}: {other:?}"),
        }
    }
}

impl Model for Cluster {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        self.first.iter().cloned().collect()
    }

    fn actions(&self, w: &World, actions: &mut Vec<Action>) {
        if w.failed.is_some() {
            return;
        }
        let quiet = w.flights.is_empty();
        if quiet {
            let patient = |h: &Arc<Host>| h.stalled.is_none_or(|ticks| ticks < self.scenario.stall);
            if w.hosts.iter().all(patient) {
                actions.push(Action::Tick);
            }
            for (i, host) in w.hosts.iter().enumerate() {
                if host.stalled.is_some() {
                    actions.push(Action::Resume(i));
                }
                if host.elector.is_none() {
                    actions.push(Action::Start(i));
                }
                if (host.deaf || host.mute) && !self.scenario.lasting {
                    actions.push(Action::Heal(i));
                }
                if host.lie.is_some() {
                    actions.push(Action::Truth(i));
                }
            }
            for at in 0..w.late.len() {
                actions.push(Action::Arrive(at));
            }
            if w.parted != 0 && !self.scenario.lasting {
                actions.push(Action::Unpart);
            }
        } else {
            match self.scenario.order {
                Order::Sent => actions.push(Action::Next(0)),
                Order::Any => actions.extend((0..w.flights.len()).map(Action::Next)),
            }
        }
        if w.total > 0 {
            self.fault_actions(w, actions);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut w = last.clone();
        (w.news, w.refused) = (0, false);
        if let Some(log) = &mut w.log {
            log.clear();
        }
        self.act(&mut w, action);
        if self.scenario.in_turn && w.refused && matches!(action, Action::Wish(..)) {
            return None;
        }
        self.end_step(&mut w);
        Some(w)
    }

    fn within_boundary(&self, w: &World) -> bool {
        w.judge.terms() <= self.scenario.terms
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! always {
            ($($which:ident),*) => {
                vec![$(Property::always(Invariant::$which.name(), |_, w: &World| {
                    w.failed.as_ref().is_none_or(|(what, _)| *what != Invariant::$which)
                })),*]
            };
        }
        let mut all = always![
            AtMostOneGate,
            GateImpliesLease,
            OneMasterPerTerm,
            TermMonotone,
            NoVoteTwice,
            RestartSilence,
            ReleaseBeforeGrant,
            RejectedIsInert,
            NoRival
        ];
        macro_rules! sometimes {
            ($name:literal, $which:ident) => {
                Property::sometimes($name, |_, w: &World| w.news & News::$which as u8 != 0)
            };
        }
        all.extend(self.scenario.sometimes.iter().map(|news| match news {
            News::Elected => sometimes!("a master is elected", Elected),
            News::HandedOver => sometimes!("a handover succeeds", HandedOver),
            News::Regained => sometimes!("a lost quorum is regained", Regained),
            News::Renewed => sometimes!("a mastership is renewed", Renewed),
            News::Changed => sometimes!("a changed roster counts", Changed),
            News::Lease => sometimes!("a changed lease is held", Lease),
            News::Kept => sometimes!("a restarted voter keeps a promise", Kept),
            News::ChangedAgain => {
                sometimes!("another master changes the roster again", ChangedAgain)
            }
        }));
        all
    }
}
