//! A cluster of real electors under virtual time: clocks that run at different rates, a network that
//! loses, delays, repeats and reorders, disks that are slow or fail, gates, doctors, and a judge that
//! checks the invariants of the rule book at every step over true time.
//!
//! Nothing sleeps and nothing is random but the given seed: the same seed gives the same run.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use election::{
    Elector, Input, Memory, Mode, Output, Preempt, Reservation, RoleChange, Settings, Start,
    VirtualServerSettings, Wish,
};
use protocol::{
    BootTime, Instance, ServerName, VirtualServerName,
    local::ring::{Health, HealthState, LinkHealth, ServerHealth},
    wire::{
        beat::{Ack, Beat},
        signal::{Body, Client, Signal},
    },
};
pub use sim::Random;
use sim::{
    clock::{Clock, Time},
    judge::Judge,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

pub const H: Duration = Duration::from_millis(100);
pub const L: Duration = Duration::from_millis(500);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap()
}

pub fn name(text: &str) -> ServerName {
    text.parse().unwrap()
}

pub fn vname(text: &str) -> VirtualServerName {
    text.parse().unwrap()
}

/// One direction between two servers, for packets and signals alike.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub up: bool,
    /// Shortest and longest delay, microseconds.
    pub delay: (u64, u64),
    /// Percent of packets lost, repeated, and very late (up to two seconds).
    pub loss: u64,
    pub repeat: u64,
    pub late: u64,
    /// Percent of signals lost with a broken link, or repeated (they must be inert).
    pub signal_loss: u64,
    pub signal_repeat: u64,
}

pub const LAN: Link = Link {
    up: true,
    delay: (100, 400),
    loss: 0,
    repeat: 0,
    late: 0,
    signal_loss: 0,
    signal_repeat: 0,
};

#[derive(Clone, Debug)]
enum Event {
    /// A packet or signal arrives.
    Beat {
        to: usize,
        from: usize,
        beat: Beat,
        at: Option<BootTime>,
    },
    Ack {
        to: usize,
        from: usize,
        ack: Ack,
    },
    Signal {
        to: usize,
        from: usize,
        signal: Signal,
    },
    Linked {
        to: usize,
        from: usize,
    },
    /// The elector's own time-out.
    Timeout {
        server: usize,
        epoch: u64,
    },
    /// Outputs left over by a stall.
    CarryOut {
        server: usize,
        epoch: u64,
    },
    GateReadsShut {
        server: usize,
        epoch: u64,
        v: VirtualServerName,
    },
    DiskDone {
        server: usize,
        epoch: u64,
        reservation: Reservation,
    },
    DiskFailed {
        server: usize,
        epoch: u64,
    },
    Doctor {
        server: usize,
        epoch: u64,
    },
    Probed {
        server: usize,
        epoch: u64,
        v: VirtualServerName,
        answered: bool,
    },
    /// For a stalled electd.
    Input {
        server: usize,
        epoch: u64,
        input: Box<Input>,
    },
    Restart {
        server: usize,
    },
}

/// What a doctor knows.
#[derive(Clone, Debug, Default)]
struct Doctor {
    epoch: u64,
    listening: Option<BootTime>,
    heard: BTreeMap<usize, (BootTime, Duration)>,
    last: BTreeMap<usize, HealthState>,
    tick: BootTime,
}

#[derive(Clone, Copy, Debug)]
struct Gate {
    deadline: BootTime,
    shutting: bool,
}

pub struct Server {
    pub name: ServerName,
    pub settings: Settings,
    pub elector: Option<Elector>,
    pub powered: bool,
    clock: Clock,
    /// Of electd; events of a former one are void.
    epoch: u64,
    timer: Option<BootTime>,
    /// When electd last looked at its clock: what it wants done now was decided then.
    handled: BootTime,
    stalled_until: Time,
    stopped: bool,
    pub reservation: Option<Reservation>,
    pub memory: Option<Memory>,
    writing: Option<Reservation>,
    pub disk_delay: Duration,
    pub disk_fails: bool,
    gates: BTreeMap<VirtualServerName, Gate>,
    /// Time to shut a gate and read it back, microseconds.
    pub gate_delay: (u64, u64),
    doctor: Doctor,
    pub interface_up: bool,
    /// What its takeover was told to keep in mind.
    pub clients: Vec<(VirtualServerName, Vec<Client>)>,
    /// How often its gate was shut for a successor, and how often one was told of.
    pub handed_over: (u32, u32),
}

/// What a scenario looks at afterwards.
#[derive(Clone, Debug)]
pub struct RoleSeen {
    pub at: Time,
    pub server: usize,
    pub change: RoleChange,
}

/// A beat, or an acknowledgement and to whom and after what wait, leaves a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    pub at: Time,
    pub server: usize,
    pub ack: Option<(ServerName, Duration)>,
}

pub struct Setup {
    pub servers: usize,
    pub witnesses: usize,
    /// Further servers, in the configuration but not in the first roster and blank.
    pub blank: usize,
    pub virtual_servers: Vec<&'static str>,
    pub mode: Mode,
    pub seed: u64,
    pub heartbeat: Duration,
    pub lease: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            servers: 3,
            witnesses: 0,
            blank: 0,
            virtual_servers: vec!["web"],
            mode: Mode::Majority,
            seed: 1,
            heartbeat: H,
            lease: L,
        }
    }
}

pub struct Sim {
    pub now: Time,
    pub random: Random,
    seed: u64,
    pub mode: Mode,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    pub servers: Vec<Server>,
    pub links: Vec<Vec<Link>>,
    pub judge: Judge,
    pub roles: Vec<RoleSeen>,
    pub answers: BTreeMap<u64, Result<String, String>>,
    pub stopped: Vec<usize>,
    pub alarms: Vec<String>,
    /// Signals sent, if a scenario wants to know.
    pub sent: Option<Vec<(usize, ServerName, Signal)>>,
    /// Beats and acknowledgements that left, likewise.
    pub left: Option<Vec<Departure>>,
    log: VecDeque<String>,
    /// Most lines of the log kept for a failure.
    pub log_max: usize,
    wish: u64,
    instances: u64,
}

const NAMES: [&str; 6] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"];

impl Sim {
    pub fn new(setup: &Setup) -> Self {
        let n = setup.servers + setup.witnesses + setup.blank;
        let names: Vec<_> = NAMES[..n].iter().map(|n| name(n)).collect();
        let virtual_servers: Vec<_> = setup.virtual_servers.iter().map(|v| vname(v)).collect();
        let mut random = Random(setup.seed);
        let voters: Vec<_> = names[..setup.servers + setup.witnesses].to_vec();
        let first = Reservation::first(voters, virtual_servers.first().cloned(), setup.lease);
        let servers = names.iter().enumerate().map(|(i, me)| {
            let witness = (setup.servers..setup.servers + setup.witnesses).contains(&i);
            let blank = i >= setup.servers + setup.witnesses;
            let own = |_: &VirtualServerName| VirtualServerSettings {
                interface: "eth0".into(),
                priority: 100,
                preempt: Preempt::Never,
            };
            Server {
                name: me.clone(),
                settings: Settings {
                    me: me.clone(),
                    heartbeat: setup.heartbeat,
                    lease: setup.lease,
                    margin: Duration::ZERO,
                    mode: setup.mode,
                    witness,
                    servers: names.clone(),
                    virtual_servers: virtual_servers
                        .iter()
                        .map(|v| (v.clone(), own(v)))
                        .collect(),
                    config_hash: 1,
                },
                elector: None,
                powered: false,
                clock: Clock {
                    base: random.below(1_000_000_000_000),
                    since: 0,
                    rate: 1000,
                },
                epoch: 0,
                timer: None,
                handled: BootTime(0),
                stalled_until: 0,
                stopped: false,
                reservation: (!blank).then(|| first.clone()),
                memory: None,
                writing: None,
                disk_delay: ms(10),
                disk_fails: false,
                gates: BTreeMap::new(),
                gate_delay: (100, 2000),
                doctor: Doctor::default(),
                interface_up: true,
                clients: Vec::new(),
                handed_over: (0, 0),
            }
        });
        Self {
            now: 0,
            seed: setup.seed,
            mode: setup.mode,
            events: BTreeMap::new(),
            sequence: 0,
            servers: servers.collect(),
            links: vec![vec![LAN; n]; n],
            judge: Judge::new(setup.mode, names.clone()),
            roles: Vec::new(),
            answers: BTreeMap::new(),
            stopped: Vec::new(),
            alarms: Vec::new(),
            sent: None,
            left: None,
            log: VecDeque::new(),
            log_max: std::env::var("STANDIN_LOG").map_or(400, |n| n.parse().unwrap()),
            wish: 0,
            instances: setup.seed.wrapping_mul(1_000_003),
            random,
        }
    }

    /// Started and settled: everything on, a master elected for all virtual servers.
    pub fn settled(setup: &Setup) -> Self {
        let mut sim = Self::new(setup);
        sim.power_on_all();
        sim.run(secs(4));
        let names: Vec<_> = sim.servers[0]
            .settings
            .virtual_servers
            .keys()
            .cloned()
            .collect();
        for v in names {
            sim.master_of(v.as_str())
                .expect("a master after four seconds");
        }
        sim
    }

    // ---- what a scenario does --------------------------------------------------------------------

    pub fn power_on_all(&mut self) {
        for i in 0..self.servers.len() {
            self.power_on(i);
        }
    }

    /// Boots: the memory in the run-dir is gone, the clock starts anew.
    pub fn power_on(&mut self, i: usize) {
        if self.servers[i].powered {
            return;
        }
        let base = self.random.between(1_000_000_000, 100_000_000_000);
        let now = self.now;
        let s = &mut self.servers[i];
        s.powered = true;
        s.clock = Clock {
            base,
            since: now,
            rate: s.clock.rate,
        };
        s.memory = None;
        s.gates.clear();
        self.start_doctor(i);
        self.start(i);
    }

    /// Power loss: gates, memory and everything on the way to the disk or network card is gone.
    pub fn power_off(&mut self, i: usize) {
        if !self.servers[i].powered {
            return;
        }
        self.kill(i);
        let local = self.local(i);
        let s = &mut self.servers[i];
        s.powered = false;
        let rate = s.clock.rate;
        s.memory = None;
        s.gates.clear();
        s.doctor.epoch += 1;
        s.doctor.listening = None;
        self.trace(|| format!("{i} POWER OFF"));
        self.judge.power_off(i, self.now, local, rate);
    }

    /// electd is killed: memory and gates stay. A write under way may or may not reach the disk.
    pub fn kill(&mut self, i: usize) {
        if self.servers[i].elector.take().is_none() {
            return;
        }
        let landed = self.random.percent(50);
        let s = &mut self.servers[i];
        s.epoch += 1;
        s.timer = None;
        s.stalled_until = 0;
        if let Some(reservation) = s.writing.take().filter(|_| landed && !s.disk_fails) {
            s.reservation = Some(reservation);
        }
        let local = self.servers[i].clock.local(self.now);
        let open: Vec<_> = self.servers[i]
            .gates
            .iter()
            .filter(|(_, g)| local <= g.deadline)
            .map(|(v, _)| v.clone())
            .collect();
        for gate in self.servers[i].gates.values_mut() {
            gate.shutting = false;
        }
        self.trace(|| format!("{i} KILLED, gates open {open:?}"));
        self.judge.killed(i, &open);
    }

    pub fn restart_in(&mut self, i: usize, after: Duration) {
        self.schedule(after, Event::Restart { server: i });
    }

    /// Starts electd if it does not run.
    pub fn start(&mut self, i: usize) {
        if !self.servers[i].powered || self.servers[i].elector.is_some() {
            return;
        }
        self.instances = self.instances.wrapping_add(1);
        let instance = Instance(self.instances);
        let seed = self.random.bits();
        let local = self.local(i);
        let s = &mut self.servers[i];
        s.stopped = false;
        s.gates.retain(|_, g| local <= g.deadline);
        let start = Start {
            instance,
            seed,
            reservation: s.reservation.clone(),
            memory: s.memory.clone(),
            gates: s
                .gates
                .iter()
                .map(|(v, g)| (v.clone(), g.deadline))
                .collect(),
        };
        let open: Vec<_> = s.gates.keys().cloned().collect();
        let silent = s.memory.is_none();
        // How long a blank server keeps silent, it has yet to learn.
        let span = s
            .reservation
            .as_ref()
            .map_or(Duration::ZERO, |r| r.promise_max);
        let settings = s.settings.clone();
        self.trace(|| {
            format!(
                "{i} START {}",
                if silent {
                    "without memory"
                } else {
                    "with memory"
                }
            )
        });
        self.judge.killed(i, &open); // gates may have closed since
        self.judge.started(i, silent.then(|| local + span));
        self.servers[i].handled = local;
        let elector = Elector::new(settings, start, local);
        self.servers[i].elector = Some(elector);
        self.settle(i);
        for from in 0..self.servers.len() {
            self.schedule(ms(2), Event::Linked { to: i, from });
            self.schedule(ms(2), Event::Linked { to: from, from: i });
        }
        let health = self.health(i);
        self.give(i, Input::Health(health));
    }

    /// electd stalls: what arrives waits.
    pub fn stall(&mut self, i: usize, span: Duration) {
        let until = self.now + nanos(span);
        let s = &mut self.servers[i];
        s.stalled_until = s.stalled_until.max(until);
        let epoch = s.epoch;
        self.trace(|| format!("{i} STALLS for {span:?}"));
        self.schedule(span, Event::CarryOut { server: i, epoch });
    }

    pub fn set_rate(&mut self, i: usize, rate: u64) {
        let now = self.now;
        let s = &mut self.servers[i];
        s.clock.set_rate(now, rate);
        let timer = s.timer;
        self.rearm(i, timer);
    }

    pub fn cut(&mut self, a: usize, b: usize) {
        (self.links[a][b].up, self.links[b][a].up) = (false, false);
    }

    pub fn join(&mut self, a: usize, b: usize) {
        (self.links[a][b].up, self.links[b][a].up) = (true, true);
        for (to, from) in [(a, b), (b, a)] {
            self.schedule(ms(5), Event::Linked { to, from });
        }
    }

    /// Cuts every link between `side` and the rest.
    pub fn partition(&mut self, side: &[usize]) {
        for a in 0..self.servers.len() {
            for b in 0..a {
                if side.contains(&a) != side.contains(&b) {
                    self.cut(a, b);
                }
            }
        }
    }

    pub fn heal(&mut self) {
        for a in 0..self.servers.len() {
            for b in 0..a {
                self.links[a][b] = LAN;
                self.links[b][a] = LAN;
                self.join(a, b);
            }
        }
    }

    /// The disk is replaced by an empty one while the power is off.
    pub fn wipe(&mut self, i: usize) {
        assert!(!self.servers[i].powered);
        self.servers[i].reservation = None;
        self.judge.wiped(i);
    }

    pub fn all_links(&mut self, change: impl Fn(&mut Link)) {
        self.links.iter_mut().flatten().for_each(change);
    }

    /// Asks server `i`; the answer comes into `answers` under the number returned.
    pub fn wish(&mut self, i: usize, wish: Wish) -> u64 {
        self.wish += 1;
        let id = self.wish;
        self.trace(|| format!("{i} WISH {wish:?}"));
        self.give(i, Input::Operator { id, wish });
        id
    }

    pub fn settings(&mut self, i: usize, change: impl FnOnce(&mut Settings)) {
        change(&mut self.servers[i].settings);
        let settings = self.servers[i].settings.clone();
        self.give(i, Input::Settings(settings));
    }

    pub fn set_interface(&mut self, i: usize, up: bool) {
        self.servers[i].interface_up = up;
        let health = self.health(i);
        self.give(i, Input::Health(health));
    }

    pub fn doctor_restart(&mut self, i: usize) {
        self.give(i, Input::DoctorLost);
        self.start_doctor(i);
    }

    // ---- what a scenario sees ----------------------------------------------------------------------

    pub fn local(&self, i: usize) -> BootTime {
        self.servers[i].clock.local(self.now)
    }

    pub fn gate_open(&self, i: usize, v: &str) -> bool {
        self.servers[i]
            .gates
            .get(&vname(v))
            .is_some_and(|g| self.local(i) <= g.deadline)
    }

    /// The one whose gate is open.
    pub fn master_of(&self, v: &str) -> Option<usize> {
        (0..self.servers.len()).find(|i| self.gate_open(*i, v))
    }

    pub fn master(&self) -> Option<usize> {
        self.master_of("web")
    }

    pub fn view(&self, i: usize) -> protocol::local::status::ElectdStatus {
        self.servers[i]
            .elector
            .as_ref()
            .unwrap()
            .view(self.local(i))
    }

    pub fn role(&self, i: usize, v: &str) -> String {
        let view = self.view(i);
        view.virtual_servers
            .iter()
            .find(|x| x.name.as_str() == v)
            .unwrap()
            .role
            .clone()
    }

    pub fn term(&self, i: usize) -> u64 {
        self.view(i).virtual_servers[0].term.0
    }

    pub fn counter(&self, i: usize, what: &str) -> u64 {
        self.servers[i]
            .elector
            .as_ref()
            .unwrap()
            .counters()
            .get(what)
            .copied()
            .unwrap_or(0)
    }

    /// Role changes since `at`, renewals not counted.
    pub fn changes_since(&self, at: Time) -> usize {
        self.roles
            .iter()
            .filter(|r| r.at >= at && !r.change.renewed)
            .count()
    }

    /// Runs until `done`, at most for `most`; how long it took.
    #[track_caller]
    pub fn until(&mut self, most: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let begin = self.now;
        let end = begin + nanos(most);
        while !done(self) {
            let next = self
                .events
                .first_key_value()
                .map_or(end, |((at, _), _)| *at);
            // Gates close by time alone, so look at least every millisecond.
            let next = next.min(self.now + 1_000_000);
            if next >= end {
                self.fail(&format!("not within {most:?}"));
            }
            self.step_to(next);
        }
        Duration::from_nanos(self.now - begin)
    }

    pub fn run(&mut self, span: Duration) {
        let end = self.now + nanos(span);
        while let Some(((at, _), _)) = self.events.first_key_value()
            && *at <= end
        {
            let at = *at;
            self.step_to(at);
        }
        self.now = end;
    }

    fn step_to(&mut self, at: Time) {
        self.now = self.now.max(at);
        self.check();
        while let Some(((at, _), _)) = self.events.first_key_value()
            && *at <= self.now
        {
            let (_, event) = self.events.pop_first().unwrap();
            self.event(event);
            self.check();
        }
    }

    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        for line in &self.log {
            eprintln!("{line}");
        }
        panic!(
            "seed {}: at {:.6} s: {what}",
            self.seed,
            self.now as f64 / 1e9
        );
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.log_max == 0 {
            return;
        }
        if self.log.len() >= self.log_max {
            self.log.pop_front();
        }
        let line = format!("{:12.6} {}", self.now as f64 / 1e9, line());
        self.log.push_back(line);
    }

    // ---- the machinery -------------------------------------------------------------------------------

    fn schedule(&mut self, after: Duration, event: Event) {
        self.schedule_at(self.now + nanos(after), event);
    }

    fn schedule_at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    fn current(&self, server: usize, epoch: u64) -> bool {
        self.servers[server].epoch == epoch && self.servers[server].elector.is_some()
    }

    /// Is electd of this event's server stalled now? Then it comes later.
    fn deferred(&mut self, server: usize, event: &Event) -> bool {
        let until = self.servers[server].stalled_until;
        if self.servers[server].elector.is_some() && self.now < until {
            self.schedule_at(until, event.clone());
            return true;
        }
        false
    }

    fn event(&mut self, event: Event) {
        match &event {
            Event::Timeout { server, epoch } => {
                if !self.current(*server, *epoch) || self.deferred(*server, &event) {
                    return;
                }
                let (i, local) = (*server, self.local(*server));
                if self.servers[i].timer.is_some_and(|t| t <= local) {
                    self.servers[i].timer = None;
                    self.servers[i].handled = local;
                    self.servers[i]
                        .elector
                        .as_mut()
                        .unwrap()
                        .handle_timeout(local);
                    self.settle(i);
                }
            }
            Event::CarryOut { server, epoch } => {
                if self.current(*server, *epoch) && !self.deferred(*server, &event) {
                    self.settle(*server);
                }
            }
            Event::Beat { to, from, beat, at } => {
                if !self.servers[*to].powered {
                    return;
                }
                // The doctor hears it when it arrives, electd when it gets to it.
                let i = *to;
                if at.is_none() {
                    self.hear(i, *from, beat.lease);
                }
                let at = at.unwrap_or(self.local(i));
                let event = Event::Beat {
                    to: i,
                    from: *from,
                    beat: beat.clone(),
                    at: Some(at),
                };
                if self.servers[i].elector.is_none() || self.deferred(i, &event) {
                    return;
                }
                self.trace(|| format!("{i} <- {from} beat {} {:?}", beat.number, claims(beat)));
                let from = self.servers[*from].name.clone();
                self.give(
                    i,
                    Input::Beat {
                        from,
                        at,
                        beat: beat.clone(),
                    },
                );
            }
            Event::Ack { to, from, ack } => {
                if self.servers[*to].elector.is_none() || self.deferred(*to, &event) {
                    return;
                }
                let from = self.servers[*from].name.clone();
                self.give(
                    *to,
                    Input::Ack {
                        from,
                        ack: ack.clone(),
                    },
                );
            }
            Event::Signal { to, from, signal } => {
                if self.servers[*to].elector.is_none() || self.deferred(*to, &event) {
                    return;
                }
                self.trace(|| format!("{to} <- {from} {:?} number {}", signal.body, signal.number));
                let sender = self.servers[*from].name.clone();
                self.judge.signal_arrives(&sender, *to, signal);
                self.give(
                    *to,
                    Input::Signal {
                        from: sender,
                        signal: signal.clone(),
                    },
                );
            }
            Event::Linked { to, from } => {
                if to != from && self.servers[*to].elector.is_some() && self.links[*to][*from].up {
                    let from = self.servers[*from].name.clone();
                    self.give(*to, Input::Linked(from));
                }
            }
            Event::GateReadsShut { server, epoch, v } => {
                if !self.current(*server, *epoch) {
                    return;
                }
                if self.servers[*server]
                    .gates
                    .get(v)
                    .is_some_and(|g| g.shutting)
                {
                    self.servers[*server].gates.remove(v);
                }
                if self.deferred(*server, &event) {
                    return;
                }
                self.trace(|| format!("{server} gate of {v} reads back shut"));
                self.give(*server, Input::GateShut(v.clone()));
            }
            Event::DiskDone {
                server,
                epoch,
                reservation,
            } => {
                if !self.current(*server, *epoch) {
                    return;
                }
                let s = &mut self.servers[*server];
                if s.writing.take().is_some() {
                    s.reservation = Some(reservation.clone());
                }
                if self.deferred(*server, &event) {
                    return;
                }
                self.give(*server, Input::Reserved(reservation.clone()));
            }
            Event::DiskFailed { server, epoch } => {
                if self.current(*server, *epoch) && !self.deferred(*server, &event) {
                    self.give(
                        *server,
                        Input::ReserveFailed("no space left on device".into()),
                    );
                }
            }
            Event::Probed {
                server,
                epoch,
                v,
                answered,
            } => {
                if self.current(*server, *epoch) && !self.deferred(*server, &event) {
                    self.give(*server, Input::Probed(v.clone(), *answered));
                }
            }
            Event::Doctor { server, epoch } => self.doctor_time(*server, *epoch),
            Event::Input {
                server,
                epoch,
                input,
            } => {
                if self.current(*server, *epoch) {
                    self.give(*server, (**input).clone());
                }
            }
            Event::Restart { server } => self.start(*server),
        }
    }

    /// Hands electd an input unless it is gone.
    pub fn give(&mut self, i: usize, input: Input) {
        let local = self.local(i);
        let s = &mut self.servers[i];
        let Some(elector) = s.elector.as_mut() else {
            return;
        };
        if self.now < s.stalled_until {
            let (at, epoch) = (s.stalled_until, s.epoch);
            return self.schedule_at(
                at,
                Event::Input {
                    server: i,
                    epoch,
                    input: Box::new(input),
                },
            );
        }
        s.handled = local;
        elector.handle(local, input);
        self.settle(i);
    }

    /// Carries out what the elector wants and sets its timer.
    fn settle(&mut self, i: usize) {
        if self.now < self.servers[i].stalled_until {
            return;
        }
        while let Some(output) = self.servers[i]
            .elector
            .as_mut()
            .and_then(Elector::poll_output)
        {
            self.output(i, output);
        }
        let Some(elector) = &self.servers[i].elector else {
            return;
        };
        let next = elector.poll_timeout();
        if self.servers[i].stopped {
            self.kill(i);
            return;
        }
        let local = self.local(i);
        if self.servers[i].handled == local && next.is_some_and(|t| t <= local) {
            self.fail(&format!(
                "server {i} asks for a time-out in the past: it would spin"
            ));
        }
        self.rearm(i, next);
    }

    fn rearm(&mut self, i: usize, next: Option<BootTime>) {
        self.servers[i].timer = next;
        if let Some(local) = next {
            let epoch = self.servers[i].epoch;
            let at = self.servers[i].clock.true_time(local);
            self.schedule_at(at, Event::Timeout { server: i, epoch });
        }
    }

    fn departs(&mut self, server: usize, ack: Option<(ServerName, Duration)>) {
        if let Some(left) = &mut self.left {
            left.push(Departure {
                at: self.now,
                server,
                ack,
            });
        }
    }

    fn output(&mut self, i: usize, output: Output) {
        let local = self.local(i);
        let epoch = self.servers[i].epoch;
        let handled = self.servers[i].handled;
        match output {
            Output::Remember(memory) => self.servers[i].memory = Some(memory),
            Output::Beat(beat) => {
                self.trace(|| format!("{i} beats {} {:?}", beat.number, claims(&beat)));
                self.judge.beats(self.now, i, handled, &beat);
                self.departs(i, None);
                for to in (0..self.servers.len()).filter(|to| *to != i) {
                    let beat = beat.clone();
                    self.packet(
                        i,
                        to,
                        Event::Beat {
                            to,
                            from: i,
                            beat,
                            at: None,
                        },
                    );
                }
            }
            Output::Ack { to, ack } => {
                self.trace(|| format!("{i} acks {to} {} {:?}", ack.number, ack.answers));
                self.judge.acks(self.now, i, handled, &to, &ack);
                self.departs(i, Some((to.clone(), ack.waited)));
                let to = self.index(&to);
                self.packet(i, to, Event::Ack { to, from: i, ack });
            }
            Output::Signal { to, signal } => {
                self.trace(|| format!("{i} -> {to} {:?} number {}", signal.body, signal.number));
                if let Body::Release { .. } = signal.body
                    && self.gate_open(i, signal.virtual_server.as_str())
                {
                    self.fail("ReleaseBeforeGrant: a Release with the gate open");
                }
                self.judge.says(self.now, i, handled, &to, &signal);
                if let Some(sent) = &mut self.sent {
                    sent.push((i, to.clone(), signal.clone()));
                }
                let to = self.index(&to);
                self.signal(i, to, signal);
            }
            Output::Open(v, until) => {
                self.trace(|| {
                    let left = until.0 as i64 - local.0 as i64;
                    format!("{i} gate of {v} open for {:.3} ms more", left as f64 / 1e6)
                });
                let gate = self.servers[i].gates.entry(v.clone()).or_insert(Gate {
                    deadline: until,
                    shutting: false,
                });
                gate.deadline = gate.deadline.max(until);
                if gate.shutting {
                    self.fail("the gate is opened while it is being shut");
                }
                if local <= until {
                    let elector = self.servers[i].elector.as_ref().unwrap();
                    let roster = elector.counted_roster().voters.clone();
                    let view = elector.view(local);
                    let term = view
                        .virtual_servers
                        .iter()
                        .find(|x| x.name == v)
                        .unwrap()
                        .term;
                    self.judge.opens(i, &v, term, &roster);
                }
            }
            Output::HandOver(v, patience) => {
                // A longer lease than promised so far waits for the disk (R23).
                assert!(patience > Duration::ZERO);
                self.servers[i].handed_over.0 += 1;
                self.output(i, Output::Shut(v));
            }
            Output::Succeeded(v) => {
                if self.servers[i].gates.contains_key(&v) {
                    self.fail("a successor before the gate reads back shut");
                }
                self.servers[i].handed_over.1 += 1;
            }
            Output::Shut(v) => {
                self.trace(|| format!("{i} shuts gate of {v}"));
                if let Some(gate) = self.servers[i].gates.get_mut(&v) {
                    gate.shutting = true;
                }
                let (low, high) = self.servers[i].gate_delay;
                let after = Duration::from_micros(self.random.between(low, high));
                self.schedule(
                    after,
                    Event::GateReadsShut {
                        server: i,
                        epoch,
                        v,
                    },
                );
            }
            Output::Announce(_) => {}
            Output::Clients(v, clients) => self.servers[i].clients.push((v, clients)),
            Output::Probe(v) => {
                let answered = (0..self.servers.len()).any(|j| {
                    j != i
                        && self.links[i][j].up
                        && self.links[j][i].up
                        && self.gate_open(j, v.as_str())
                });
                self.schedule(
                    ms(60),
                    Event::Probed {
                        server: i,
                        epoch,
                        v,
                        answered,
                    },
                );
            }
            Output::Reserve(reservation) => {
                self.trace(|| format!("{i} reserves {reservation:?}"));
                let s = &mut self.servers[i];
                assert!(s.writing.is_none(), "two writes at a time");
                let delay = s.disk_delay;
                if s.disk_fails {
                    // A failed write may have reached the disk all the same.
                    if self.random.percent(30) {
                        self.servers[i].reservation = Some(reservation);
                    }
                    self.schedule(delay, Event::DiskFailed { server: i, epoch });
                } else {
                    s.writing = Some(reservation.clone());
                    self.schedule(
                        delay,
                        Event::DiskDone {
                            server: i,
                            epoch,
                            reservation,
                        },
                    );
                }
            }
            Output::Role(change) => {
                self.trace(|| {
                    let what = if change.master { "MASTER" } else { "SLAVE" };
                    format!(
                        "{i} {what} of {} term {}: {}",
                        change.virtual_server, change.term, change.reason
                    )
                });
                self.judge.role(i, &change);
                self.roles.push(RoleSeen {
                    at: self.now,
                    server: i,
                    change,
                });
            }
            Output::Alarm(text) => {
                self.trace(|| format!("{i} ALARM {text}"));
                self.alarms.push(text);
            }
            Output::Notice(text) => self.trace(|| format!("{i} notice {text}")),
            Output::Changed(..) => {}
            Output::Answer { id, answer } => {
                self.trace(|| format!("{i} answers {answer:?}"));
                self.answers.insert(id, answer);
            }
            Output::Stopped(last) => {
                self.trace(|| format!("{i} STOPPED"));
                let s = &mut self.servers[i];
                if let Some(last) = last.filter(|_| !s.disk_fails) {
                    s.reservation = Some(last);
                }
                s.writing = None;
                s.stopped = true;
                self.stopped.push(i);
            }
        }
        self.check();
    }

    fn index(&self, name: &ServerName) -> usize {
        self.servers.iter().position(|s| &s.name == name).unwrap()
    }

    fn packet(&mut self, from: usize, to: usize, event: Event) {
        let link = self.links[from][to];
        if !link.up || self.random.percent(link.loss) {
            return;
        }
        let copies = 1 + u64::from(self.random.percent(link.repeat));
        for _ in 0..copies {
            let mut delay = self.random.between(link.delay.0, link.delay.1);
            if self.random.percent(link.late) {
                delay += self.random.below(2_000_000);
            }
            self.schedule(Duration::from_micros(delay), event.clone());
        }
    }

    /// In order and repeated by the kernel when lost, unless the link breaks.
    fn signal(&mut self, from: usize, to: usize, signal: Signal) {
        let link = self.links[from][to];
        if !link.up || self.random.percent(link.signal_loss) {
            return;
        }
        let mut delay = self.random.between(link.delay.0, link.delay.1);
        while self.random.percent(link.loss) {
            delay += 200_000;
        }
        let event = Event::Signal { to, from, signal };
        if self.random.percent(link.signal_repeat) {
            let late = delay + self.random.below(3_000_000);
            self.schedule(Duration::from_micros(late), event.clone());
        }
        if self.random.percent(link.late) {
            delay += self.random.below(2_000_000);
        }
        self.schedule(Duration::from_micros(delay), event);
    }

    fn check(&mut self) {
        let locals: Vec<_> = (0..self.servers.len()).map(|i| self.local(i)).collect();
        let open = self.servers.iter().enumerate().flat_map(|(i, s)| {
            let local = locals[i];
            s.gates
                .iter()
                .filter(move |(_, g)| local <= g.deadline)
                .map(move |(v, _)| (v, i))
        });
        let open: Vec<_> = open.map(|(v, i)| (self.judge.place(v), i)).collect();
        if let Err(what) = self.judge.check(self.now, &locals, &open) {
            self.fail(&what.to_string());
        }
    }

    // ---- the doctor ------------------------------------------------------------------------------------

    fn start_doctor(&mut self, i: usize) {
        let local = self.local(i);
        let epoch = self.servers[i].doctor.epoch + 1;
        self.servers[i].doctor = Doctor {
            epoch,
            listening: Some(local),
            tick: local,
            ..Doctor::default()
        };
        self.schedule(Duration::ZERO, Event::Doctor { server: i, epoch });
    }

    fn opinion(&self, i: usize, other: usize) -> HealthState {
        let (s, local) = (&self.servers[i], self.local(i));
        let Some(listening) = s.doctor.listening else {
            return HealthState::Unknown;
        };
        let heard = s.doctor.heard.get(&other);
        let (since, lease) =
            heard.map_or((listening, s.settings.lease), |(at, lease)| (*at, *lease));
        let quiet = local.since(since);
        match heard {
            Some(_) if quiet <= s.settings.heartbeat * 2 => HealthState::Alive,
            _ if quiet >= lease => HealthState::Dead,
            Some(_) => HealthState::Suspect,
            None => HealthState::Unknown,
        }
    }

    fn health(&self, i: usize) -> Health {
        let s = &self.servers[i];
        let others = s.settings.servers.iter().filter(|n| **n != s.name);
        let report = |n: &ServerName| {
            let other = self.index(n);
            ServerHealth {
                server: n.clone(),
                state: self.opinion(i, other),
                last_heard: s.doctor.heard.get(&other).map(|(at, _)| *at),
            }
        };
        Health {
            servers: others.map(report).collect(),
            links: vec![LinkHealth {
                interface: "eth0".into(),
                up: s.interface_up,
            }],
        }
    }

    fn hear(&mut self, i: usize, from: usize, lease: Duration) {
        let local = self.local(i);
        if self.servers[i].doctor.listening.is_some() {
            self.servers[i].doctor.heard.insert(from, (local, lease));
        }
    }

    fn doctor_time(&mut self, i: usize, epoch: u64) {
        if self.servers[i].doctor.epoch != epoch || !self.servers[i].powered {
            return;
        }
        let local = self.local(i);
        let opinions: BTreeMap<_, _> = (0..self.servers.len())
            .filter(|j| *j != i)
            .map(|j| (j, self.opinion(i, j)))
            .collect();
        let s = &mut self.servers[i];
        let heartbeat = s.settings.heartbeat;
        let changed = s.doctor.last != opinions;
        let due = local >= s.doctor.tick;
        if due {
            s.doctor.tick = local + heartbeat;
        }
        s.doctor.last = opinions;
        let mut next = s.doctor.tick;
        let listening = s.doctor.listening.unwrap_or(local);
        for j in (0..self.servers.len()).filter(|j| *j != i) {
            let s = &self.servers[i];
            let (since, lease) = s
                .doctor
                .heard
                .get(&j)
                .copied()
                .unwrap_or((listening, s.settings.lease));
            for at in [
                since + heartbeat * 2 + Duration::from_nanos(1),
                since + lease,
            ] {
                if at > local {
                    next = next.min(at);
                }
            }
        }
        let at = self.servers[i].clock.true_time(next).max(self.now + 1);
        self.schedule_at(at, Event::Doctor { server: i, epoch });
        // A stalled electd reads the latest opinion afterwards; the next one comes within h.
        if (changed || due) && self.now >= self.servers[i].stalled_until {
            let health = self.health(i);
            self.give(i, Input::Health(health));
        }
    }
}

fn claims(beat: &Beat) -> Vec<String> {
    let claim = |s: &protocol::wire::beat::Standing| {
        s.claim.map(|c| {
            format!(
                "{} term {}{}",
                s.virtual_server,
                c.term,
                if c.lease_held { "" } else { " lost" }
            )
        })
    };
    beat.standings.iter().filter_map(claim).collect()
}
