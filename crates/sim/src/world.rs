//! Servers of real cores, and everything around them that is not real: time, network, disks, processes.

use crate::{
    clock::{Clock, NEVER, Time},
    clocks::Clocks,
    judge::{Judge, NO_FLAP, REJECTED_IS_INERT, Violation},
    owned::Owned,
    queue::Queue,
    random::Random,
    schedule::{Kind, NAMES, PARTS, Part, Schedule},
    shells::{Doctord, Electd, Hbd},
    tcp::{Conn, TcpEvent},
};
use election::{Input, Memory, Preempt, Reservation, Settings, VirtualServerSettings};
use link::Links;
use protocol::{
    BootTime, RosterVersion, ServerName, VirtualServerName,
    local::ring::{DoctordToElectd, ElectdToHbd, ElectdToListend, HbdToDoctord, ListendToElectd},
    seal::Sealer,
    wire::{datagram::Packet, signal::Signal},
};
use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// The only interface.
pub(crate) const INTERFACE: &str = "eth0";

/// Lines of a history kept.
const LINES_MAX: usize = 4000;

/// Events at one instant; more than that is a core that asks for a turn again and again.
const TURNS_MAX: u64 = 50_000;

/// Packets kept to be sent again.
const RECORDED_MAX: usize = 48;

/// States of a disk kept, to be put back.
const FORMER_MAX: usize = 8;

/// In one of so many events it is asked what if.
const CURIOUS: u64 = 800;

/// And answers to hellos, which are rare.
const ANSWERS_MAX: usize = 64;

/// Who sends to whom within a server.
pub(crate) const RINGS: [(Part, Part); 5] = [
    (Part::Hbd, Part::Doctord),
    (Part::Doctord, Part::Electd),
    (Part::Electd, Part::Hbd),
    (Part::Electd, Part::Listend),
    (Part::Listend, Part::Electd),
];

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// A packet under way, as it is or sealed.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    /// In this version of the protocol.
    Packet(u8, Packet),
    Bytes(Vec<u8>),
}

/// Which place of [`Server::awake`] is this process's.
pub(crate) fn watches(part: Part) -> Option<usize> {
    match part {
        Part::Hbd => Some(0),
        Part::Doctord => Some(1),
        Part::Listend | Part::Electd => None,
    }
}

/// What a server's processes get to do.
#[derive(Debug)]
pub(crate) enum Job {
    Datagram {
        from: usize,
        path: usize,
        wire: Wire,
        /// When it arrived, by the wall clock of then.
        real_ns: u64,
        /// Nobody of the cluster sent it so.
        forged: bool,
    },
    ToHbd(Vec<ElectdToHbd>),
    ToDoctord(Vec<HbdToDoctord>),
    ToElectd(Vec<DoctordToElectd>),
    ToListend(ElectdToListend),
    Signalled(ListendToElectd),
    RingUp(Part),
    PeerGone(Part),
    Electd(Box<Input>),
    /// The reservation is on disk.
    Written(Reservation),
    GateReadsShut(usize),
    Carrier,
    /// The configuration is read again.
    Reload,
    /// One more turn at once.
    Turn,
    Tcp(TcpEvent),
}

#[derive(Debug)]
pub(crate) enum Event {
    Job {
        server: usize,
        part: Part,
        /// For this life of the process; none for whichever there is.
        epoch: Option<u32>,
        job: Job,
    },
    Timer {
        server: usize,
        part: Part,
        epoch: u32,
    },
    Wake {
        server: usize,
        part: Part,
        epoch: u32,
    },
    RingMade {
        server: usize,
        ring: usize,
        epochs: (u32, u32),
    },
    Start {
        server: usize,
        part: Part,
    },
    PowerOn(usize),
    Resume(usize),
    Act(usize),
    Undo(usize),
    Tcp(TcpEvent),
    GateShut {
        server: usize,
        v: usize,
        epoch: u32,
    },
    DiskDone {
        server: usize,
        epoch: u32,
        reservation: Reservation,
    },
    Calm,
}

/// One process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pub alive: bool,
    pub epoch: u32,
    pub stalled_until: Time,
    /// By its own clock.
    pub stalled_since: BootTime,
    pub inbox: VecDeque<Job>,
    /// When its timer event comes.
    pub timer: Time,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ring {
    pub up: bool,
    /// Nothing overtakes what was sent before.
    pub last: Time,
}

/// The kernel's gate for one virtual server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    pub deadline: BootTime,
    pub shutting: bool,
}

pub(crate) struct Server {
    pub name: ServerName,
    pub addresses: Vec<IpAddr>,
    pub settings: Settings,
    pub powered: bool,
    pub clock: Clock,
    /// CLOCK_REALTIME minus CLOCK_BOOTTIME.
    pub wall: u64,
    pub processes: [Process; 4],
    pub rings: [Ring; 5],
    pub hbd: Option<Hbd>,
    pub listend: Option<Links>,
    pub doctord: Option<Doctord>,
    pub electd: Option<Electd>,
    /// Interfaces down, disk failing: how many acts say so.
    pub no_carrier: u32,
    pub bad_disk: u32,
    pub slow_disk: Option<u64>,
    pub disk: Option<Reservation>,
    pub writing: Option<Reservation>,
    /// What was on the disk that was lost.
    pub lost: Option<Reservation>,
    /// What the disk held before, the newest last.
    pub former: Vec<Reservation>,
    pub memory: Option<Memory>,
    /// The run-dir cannot be written: how many acts say so.
    pub bad_memory: u32,
    pub gates: Vec<Option<Gate>>,
    /// The roster that its electd last counted by.
    pub counts_by: RosterVersion,
    /// Stands still as a whole until then, its clock with it.
    pub paused_until: Time,
    pub paused: bool,
    /// The rate that its clock has when it does not stand.
    pub rate: u64,
    /// Gates not open beyond this were opened on the word of a clock that stood (ELECTION, "Known limits").
    pub excused: BootTime,
    /// Too much to do until then.
    pub burst_until: Time,
    /// Since when hbd, and doctord, has been there, and awake, without a break, by its own clock.
    pub awake: [BootTime; 2],
    /// Which incarnation of each peer's hbd it has believed, and which of its packets.
    pub heard: Vec<(u64, Vec<u64>)>,
}

impl Server {
    pub fn local(&self, now: Time) -> BootTime {
        self.clock.local(now)
    }

    pub fn real_ns(&self, now: Time) -> u64 {
        self.clock.local(now).0.wrapping_add(self.wall)
    }

    pub fn gate_open(&self, v: usize, now: Time) -> bool {
        self.gates[v].is_some_and(|g| self.local(now) <= g.deadline)
    }

    /// Its gate is open and it is there to answer.
    pub fn answers(&self, v: usize, now: Time) -> bool {
        self.powered && !self.paused && self.gate_open(v, now)
    }

    pub fn electd_runs(&self) -> bool {
        self.electd.is_some()
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What did not hold.
    pub violation: Option<Violation>,
    /// When the run ended, in nanoseconds of true time.
    pub end: Time,
    /// Of everything that happened, in order.
    pub digest: u64,
    /// Events handled.
    pub events: u64,
    /// What was seen, so that a run can be sure that it tested something.
    pub seen: std::collections::BTreeMap<&'static str, u64>,
    /// The history, if it was asked for.
    pub lines: Vec<String>,
}

/// Everything.
pub struct World {
    pub(crate) now: Time,
    pub(crate) schedule: Schedule,
    /// Of network and disks.
    pub(crate) random: Random,
    /// Of what is asked and does not happen.
    pub(crate) curious: Random,
    pub(crate) queue: Queue<Event>,
    pub(crate) servers: Vec<Server>,
    pub(crate) virtuals: Vec<VirtualServerName>,
    /// How many acts cut the way from one to another.
    pub(crate) cuts: Vec<Vec<u32>>,
    /// Percent lost, repeated, late.
    pub(crate) weather: (u64, u64, u64),
    pub(crate) conns: Vec<Conn>,
    pub(crate) judge: Judge,
    pub(crate) owned: Owned,
    pub(crate) undo: Vec<crate::acts::Undo>,
    /// Packets to be sent again by [`crate::schedule::Kind::Junk`].
    pub(crate) recorded: VecDeque<(usize, usize, usize, Wire)>,
    /// Answers to hellos, for the same, also those that were lost.
    pub(crate) answers: VecDeque<(usize, usize, usize, Wire)>,
    pub(crate) signals: VecDeque<(ServerName, Signal)>,
    /// How connections began: from, to, and what was said first.
    pub(crate) opening: Vec<(usize, usize, Vec<u8>)>,
    /// Packets and signals are kept for that.
    pub(crate) record: bool,
    pub(crate) births: u64,
    pub(crate) wishes: u64,
    /// Shortest lease that anybody was configured with.
    pub(crate) shortest: Duration,
    pub(crate) clocks: Clocks,
    digest: u64,
    events: u64,
    /// Of these at this instant.
    turns: u64,
    lines: Option<VecDeque<String>>,
}

impl World {
    /// As the schedule says, everything off.
    pub fn new(schedule: &Schedule, explain: bool) -> Self {
        let n = schedule.size();
        let names: Vec<ServerName> = NAMES[..n].iter().filter_map(|n| n.parse().ok()).collect();
        let virtuals: Vec<VirtualServerName> = ["web", "mail", "db", "ftp"]
            .iter()
            .take(usize::try_from(schedule.virtuals).unwrap_or(1).clamp(1, 4))
            .filter_map(|v| v.parse().ok())
            .collect();
        let voters = usize::try_from(schedule.servers + schedule.witnesses)
            .unwrap_or(n)
            .min(n);
        let lease = Duration::from_micros(schedule.lease);
        let first = Reservation::first(names[..voters].to_vec(), virtuals.first().cloned(), lease);
        let preempt = [Preempt::Never, Preempt::Fresher, Preempt::Always];
        let server = |(i, name): (usize, &ServerName)| {
            let own = VirtualServerSettings {
                interface: INTERFACE.into(),
                priority: schedule.priority(i),
                preempt: preempt[usize::try_from(schedule.preempt).unwrap_or(0).min(2)],
            };
            let net = |p: u64| Ipv4Addr::new(192, 0, 2, 11 + 32 * p as u8 + i as u8).into();
            Server {
                name: name.clone(),
                addresses: (0..schedule.paths.clamp(1, 2)).map(net).collect(),
                settings: Settings {
                    me: name.clone(),
                    heartbeat: Duration::from_micros(schedule.heartbeat),
                    lease,
                    margin: Duration::ZERO,
                    mode: schedule.mode(),
                    witness: (i as u64) >= schedule.servers && i < voters,
                    servers: names.clone(),
                    virtual_servers: virtuals.iter().map(|v| (v.clone(), own.clone())).collect(),
                    config_hash: 1,
                },
                powered: false,
                clock: Clock {
                    base: 0,
                    since: 0,
                    rate: 1000,
                },
                wall: 1_700_000_000_000_000_000,
                processes: Default::default(),
                rings: Default::default(),
                hbd: None,
                listend: None,
                doctord: None,
                electd: None,
                no_carrier: 0,
                bad_disk: 0,
                slow_disk: None,
                disk: (i < voters).then(|| first.clone()),
                writing: None,
                lost: None,
                former: Vec::new(),
                memory: None,
                bad_memory: 0,
                gates: vec![None; virtuals.len()],
                counts_by: RosterVersion::default(),
                paused_until: 0,
                paused: false,
                rate: 1000,
                excused: BootTime(0),
                burst_until: 0,
                awake: [BootTime(0); 2],
                heard: vec![(0, Vec::new()); n],
            }
        };
        let mut judge = Judge::new(schedule.mode(), names.clone());
        for v in &virtuals {
            judge.place(v);
        }
        (usize::try_from(schedule.servers).unwrap_or(n)..voters).for_each(|i| judge.only_votes(i));
        Self {
            now: 0,
            random: Random(schedule.seed),
            curious: Random(schedule.seed ^ 0x1f),
            queue: Queue::new(),
            servers: names.iter().enumerate().map(server).collect(),
            cuts: vec![vec![0; n]; n],
            weather: (schedule.loss, schedule.repeat, schedule.late),
            conns: Vec::new(),
            judge,
            owned: Owned::new(schedule, virtuals.len()),
            virtuals,
            undo: Vec::new(),
            recorded: VecDeque::new(),
            answers: VecDeque::new(),
            signals: VecDeque::new(),
            record: schedule.acts.iter().any(|a| a.kind == Kind::Junk),
            opening: Vec::new(),
            births: 0,
            wishes: 0,
            shortest: lease,
            clocks: Clocks::new(n),
            digest: 0xcbf2_9ce4_8422_2325,
            events: 0,
            turns: 0,
            lines: explain.then(VecDeque::new),
            schedule: schedule.clone(),
        }
    }

    /// Lives through a whole schedule.
    pub fn run(schedule: &Schedule, explain: bool) -> Outcome {
        let mut world = Self::new(schedule, explain);
        for (i, act) in schedule.acts.iter().enumerate() {
            world.queue.push(act.at * 1000, Event::Act(i));
        }
        world.queue.push(schedule.calm * 1000, Event::Calm);
        world.rosters_changed();
        for i in 0..world.servers.len() {
            world.first_power_on(i);
        }
        let (settled, end) = world.last_moments();
        let violation = loop {
            match world.queue.pop(end) {
                None => {
                    world.now = end;
                    break world.at_the_end().err();
                }
                Some((at, event)) => {
                    if at > settled && world.owned.all_held(at) {
                        break world.at_the_end().err();
                    }
                    world.turns = if at > world.now { 0 } else { world.turns + 1 };
                    world.now = at;
                    world.event(event);
                    if world.turns > TURNS_MAX {
                        world
                            .judge
                            .fail(NO_FLAP, "time stands still: somebody spins".into());
                    }
                    if let Some(what) = world.judge.failed() {
                        break Some(what.clone());
                    }
                }
            }
        };
        if let Some(what) = &violation {
            world.note(|| format!("VIOLATION {what}"));
        }
        let mut seen = std::mem::take(&mut world.judge.seen);
        world.owned.told(&mut seen);
        Outcome {
            violation,
            end: world.now,
            digest: world.digest,
            events: world.events,
            seen,
            lines: world.lines.map(Vec::from).unwrap_or_default(),
        }
    }

    /// A line of the history.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() >= LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(format!("{:12.6} {}", self.now as f64 / 1e9, line()));
        }
    }

    pub(crate) fn local(&self, i: usize) -> BootTime {
        self.servers[i].local(self.now)
    }

    pub(crate) fn index(&self, name: &ServerName) -> Option<usize> {
        self.servers.iter().position(|s| s.name == *name)
    }

    pub(crate) fn place(&self, v: &VirtualServerName) -> Option<usize> {
        self.virtuals.iter().position(|x| x == v)
    }

    /// Who answers for a virtual server.
    pub(crate) fn master(&self, v: usize) -> Option<usize> {
        (0..self.servers.len()).find(|i| self.servers[*i].answers(v, self.now))
    }

    fn digest(&mut self, what: u64) {
        self.digest = (self.digest ^ what).wrapping_mul(0x0000_0100_0000_01b3);
    }

    // ---- events --------------------------------------------------------------------------------------

    fn event(&mut self, event: Event) {
        self.events += 1;
        self.digest(self.now);
        if self.curious.below(CURIOUS) == 0 {
            let i = self.curious.below(self.servers.len() as u64);
            self.what_if(usize::try_from(i).unwrap_or(0));
        }
        match event {
            Event::Job {
                server,
                part,
                epoch,
                job,
            } => self.arrives(server, part, epoch, job),
            Event::Timer {
                server,
                part,
                epoch,
            } => {
                let process = &mut self.servers[server].processes[part as usize];
                if process.epoch == epoch && process.timer == self.now {
                    process.timer = NEVER;
                    if process.alive && process.stalled_until <= self.now {
                        self.timeout(server, part);
                    }
                }
            }
            Event::Wake {
                server,
                part,
                epoch,
            } => self.wake(server, part, epoch),
            Event::RingMade {
                server,
                ring,
                epochs,
            } => self.ring_made(server, ring, epochs),
            Event::Start { server, part } => self.start(server, part),
            Event::PowerOn(server) => self.power_on(server),
            Event::Resume(server) => self.resume(server),
            Event::Act(number) => self.act(number),
            Event::Undo(number) => self.undo(number),
            Event::Tcp(event) => self.tcp(event),
            Event::GateShut { server, v, epoch } => self.gate_shut(server, v, epoch),
            Event::DiskDone {
                server,
                epoch,
                reservation,
            } => self.disk_done(server, epoch, reservation),
            Event::Calm => self.calm(),
        }
    }

    /// Something for a process; it waits while that stands still.
    pub(crate) fn arrives(&mut self, i: usize, part: Part, epoch: Option<u32>, mut job: Job) {
        let (now, server) = (self.now, &mut self.servers[i]);
        if server.paused_until > now && matches!(job, Job::Datagram { .. }) {
            // The network card of a paused virtual machine.
            let at = server.paused_until;
            return self.queue.push(
                at,
                Event::Job {
                    server: i,
                    part,
                    epoch,
                    job,
                },
            );
        }
        if let Job::Datagram { real_ns, .. } = &mut job {
            *real_ns = server.real_ns(now);
            if server.burst_until > now && self.random.percent(30) {
                return; // the socket runs over
            }
        }
        let server = &mut self.servers[i];
        let process = &mut server.processes[part as usize];
        if !process.alive || epoch.is_some_and(|e| e != process.epoch) {
            return;
        }
        if process.stalled_until > now {
            return process.inbox.push_back(job);
        }
        if server.burst_until > now && self.random.percent(5) {
            let span = self.random.between(1, self.schedule.heartbeat * 1000);
            self.stall(i, part, span);
            return self.servers[i].processes[part as usize]
                .inbox
                .push_back(job);
        }
        self.job(i, part, job);
    }

    fn wake(&mut self, i: usize, part: Part, epoch: u32) {
        let awake = |w: &Self| {
            let process = &w.servers[i].processes[part as usize];
            process.epoch == epoch && process.alive && process.stalled_until <= w.now
        };
        if !awake(self) {
            return;
        }
        // What a doctor must notice goes by the leases told.
        let lease = Duration::from_micros(self.schedule.longest_lease());
        let local = self.local(i);
        let server = &mut self.servers[i];
        if let Some(place) = watches(part)
            && local.since(server.processes[part as usize].stalled_since) > lease / 2
        {
            server.awake[place] = local;
        }
        if part == Part::Electd {
            self.carry_out(i); // what the stall came in between
        }
        while awake(self)
            && let Some(job) = self.servers[i].processes[part as usize].inbox.pop_front()
        {
            self.job(i, part, job);
        }
        if awake(self) {
            self.timeout(i, part);
        }
    }

    fn job(&mut self, i: usize, part: Part, job: Job) {
        self.digest((i as u64) << 8 | part as u64);
        match part {
            Part::Hbd => self.hbd_job(i, job),
            Part::Listend => self.listend_job(i, job),
            Part::Doctord => self.doctord_job(i, job),
            Part::Electd => self.electd_job(i, job),
        }
    }

    fn timeout(&mut self, i: usize, part: Part) {
        match part {
            Part::Hbd => self.hbd_timeout(i),
            Part::Listend => self.listend_timeout(i),
            Part::Doctord => self.doctord_timeout(i),
            Part::Electd => self.electd_timeout(i),
        }
    }

    /// The process is to be woken when its clock shows `next`.
    pub(crate) fn rearm(&mut self, i: usize, part: Part, next: Option<BootTime>) {
        let server = &mut self.servers[i];
        let process = &mut server.processes[part as usize];
        let Some(next) = next.filter(|_| process.alive) else {
            return;
        };
        let at = server.clock.true_time(next).max(self.now);
        if at < process.timer {
            process.timer = at;
            let epoch = process.epoch;
            self.queue.push(
                at,
                Event::Timer {
                    server: i,
                    part,
                    epoch,
                },
            );
        }
    }

    /// The clock runs otherwise now: timers set by it come at other times.
    pub(crate) fn clock_changed(&mut self, i: usize) {
        for part in PARTS {
            let process = &mut self.servers[i].processes[part as usize];
            process.timer = NEVER;
            if process.alive && process.stalled_until <= self.now {
                self.timeout(i, part);
            }
        }
    }

    // ---- within a server -----------------------------------------------------------------------------

    /// Sends over a ring; false if the other end is not there.
    pub(crate) fn ring_send(&mut self, i: usize, ring: usize, job: Job) -> bool {
        if !self.servers[i].rings[ring].up {
            return false;
        }
        let delay = self
            .random
            .between(self.schedule.ring.0, self.schedule.ring.1)
            * 1000;
        let server = &mut self.servers[i];
        let at = (self.now + delay).max(server.rings[ring].last);
        server.rings[ring].last = at;
        let part = RINGS[ring].1;
        let epoch = Some(server.processes[part as usize].epoch);
        self.queue.push(
            at,
            Event::Job {
                server: i,
                part,
                epoch,
                job,
            },
        );
        true
    }

    fn connect_rings(&mut self, i: usize, part: Part) {
        for (ring, (from, to)) in RINGS.into_iter().enumerate() {
            if from != part && to != part {
                continue;
            }
            let after = self.random.between(150_000, 1_500_000);
            let process = |p: Part| &self.servers[i].processes[p as usize];
            if process(from).alive && process(to).alive {
                let epochs = (process(from).epoch, process(to).epoch);
                self.queue.push(
                    self.now + after,
                    Event::RingMade {
                        server: i,
                        ring,
                        epochs,
                    },
                );
            }
        }
    }

    fn ring_made(&mut self, i: usize, ring: usize, epochs: (u32, u32)) {
        let (from, to) = RINGS[ring];
        let process = |p: Part| &self.servers[i].processes[p as usize];
        let (a, b) = (process(from), process(to));
        if (a.epoch, b.epoch) != epochs || !a.alive || !b.alive {
            return;
        }
        let awake = a.stalled_until.max(b.stalled_until);
        if awake > self.now {
            // The greeting waits for both.
            return self.queue.push(
                awake,
                Event::RingMade {
                    server: i,
                    ring,
                    epochs,
                },
            );
        }
        self.servers[i].rings[ring].up = true;
        self.job(i, from, Job::RingUp(to));
    }

    /// What a server's process does is done by its next life.
    pub(crate) fn start(&mut self, i: usize, part: Part) {
        let now = self.now;
        let server = &mut self.servers[i];
        let process = &mut server.processes[part as usize];
        if !server.powered || process.alive {
            return;
        }
        if server.paused_until > now {
            let at = server.paused_until;
            return self.queue.push(at, Event::Start { server: i, part });
        }
        process.alive = true;
        process.epoch += 1;
        process.stalled_until = 0;
        process.timer = NEVER;
        process.inbox.clear();
        if let Some(place) = watches(part) {
            server.awake[place] = server.clock.local(now);
        }
        match part {
            Part::Hbd => self.start_hbd(i),
            Part::Listend => self.start_listend(i),
            Part::Doctord => self.start_doctord(i),
            Part::Electd => self.start_electd(i),
        }
        self.connect_rings(i, part);
        self.timeout(i, part);
    }

    /// SIGKILL, or the end of it.
    pub(crate) fn kill(&mut self, i: usize, part: Part) {
        let server = &mut self.servers[i];
        let process = &mut server.processes[part as usize];
        if !process.alive {
            return;
        }
        process.alive = false;
        process.epoch += 1;
        process.inbox.clear();
        process.stalled_until = 0;
        match part {
            Part::Hbd => server.hbd = None,
            Part::Listend => self.listend_killed(i),
            Part::Doctord => server.doctord = None,
            Part::Electd => self.electd_killed(i),
        }
        for (ring, (from, to)) in RINGS.into_iter().enumerate() {
            if from == part {
                self.ring_send(i, ring, Job::PeerGone(part));
            }
            if from == part || to == part {
                self.servers[i].rings[ring].up = false;
            }
        }
    }

    /// A process stands still for so many nanoseconds of true time.
    pub(crate) fn stall(&mut self, i: usize, part: Part, span: u64) {
        let until = self.now + span;
        let server = &mut self.servers[i];
        let process = &mut server.processes[part as usize];
        if process.alive && until > process.stalled_until {
            if process.stalled_until <= self.now {
                process.stalled_since = server.clock.local(self.now);
            }
            process.stalled_until = until;
            let epoch = process.epoch;
            self.queue.push(
                until,
                Event::Wake {
                    server: i,
                    part,
                    epoch,
                },
            );
        }
    }

    // ---- power ---------------------------------------------------------------------------------------

    fn boot_clock(&mut self, i: usize) {
        let base = self.random.between(1_000_000_000, 100_000_000_000);
        let now = self.now;
        let server = &mut self.servers[i];
        server.clock = Clock {
            base,
            since: now,
            rate: server.rate,
        };
        server.excused = BootTime(0);
        self.clock_disturbed(i);
    }

    fn first_power_on(&mut self, i: usize) {
        self.boot_clock(i);
        // As if this boot had seen an electd that promised nothing.
        let warm = self.schedule.cold == 0 && self.servers[i].disk.is_some();
        self.servers[i].memory = warm.then(Memory::default);
        self.boot(i);
    }

    pub(crate) fn power_on(&mut self, i: usize) {
        if !self.servers[i].powered {
            self.note(|| format!("{} has power again", NAMES[i]));
            self.boot_clock(i);
            self.boot(i);
        }
    }

    fn boot(&mut self, i: usize) {
        self.servers[i].powered = true;
        for part in PARTS {
            self.start(i, part);
        }
    }

    pub(crate) fn power_off(&mut self, i: usize) {
        if !self.servers[i].powered {
            return;
        }
        let (now, local) = (self.now, self.local(i));
        self.look();
        self.servers[i].powered = false; // nobody is told anything
        for part in PARTS {
            self.kill(i, part);
        }
        let server = &mut self.servers[i];
        server.memory = None;
        server.gates.fill(None);
        server.paused_until = server.paused_until.min(now);
        server.paused = false;
        let rate = server.rate; // that of a paused clock is 0
        self.judge.power_off(i, now, local, rate);
        self.look();
    }

    /// The whole machine stands still, its clock with it.
    pub(crate) fn pause(&mut self, i: usize, span: u64) {
        let now = self.now;
        if !self.servers[i].powered {
            return;
        }
        self.look();
        let server = &mut self.servers[i];
        let until = (now + span).max(server.paused_until);
        server.clock.set_rate(now, 0);
        server.paused_until = until;
        server.paused = true;
        let lease = server
            .electd
            .as_ref()
            .map_or(server.settings.lease, |e| e.longest());
        let open = server.gates.iter().flatten().map(|g| g.deadline).max();
        server.excused = (server.clock.local(now) + lease * 4 / 5).max(open.unwrap_or_default());
        for part in PARTS {
            self.stall(i, part, until - now);
        }
        self.queue.push(until, Event::Resume(i));
        self.look();
    }

    fn resume(&mut self, i: usize) {
        let now = self.now;
        let server = &mut self.servers[i];
        if !server.powered || server.paused_until != now {
            return;
        }
        server.clock.set_rate(now, server.rate);
        server.paused = false;
        self.clock_disturbed(i);
        for part in PARTS {
            let epoch = self.servers[i].processes[part as usize].epoch;
            self.servers[i].processes[part as usize].timer = NEVER;
            self.queue.push(
                now,
                Event::Wake {
                    server: i,
                    part,
                    epoch,
                },
            );
        }
        self.look();
    }

    pub(crate) fn set_rate(&mut self, i: usize, rate: u64) {
        let now = self.now;
        self.look();
        let server = &mut self.servers[i];
        self.judge.rate(i, now, server.rate, rate);
        server.rate = rate;
        if server.paused_until <= now {
            server.clock.set_rate(now, rate);
            self.clock_disturbed(i);
            self.clock_changed(i);
        }
        self.look();
    }

    // ---- the network ---------------------------------------------------------------------------------

    pub(crate) fn sealer() -> Sealer {
        Sealer::new(&[[7; 32]], "sim")
    }

    /// How long a packet is under way; none if it is lost.
    pub(crate) fn way(&mut self, from: usize, to: usize) -> Option<u64> {
        if self.cuts[from][to] > 0 || self.random.percent(self.weather.0) {
            return None;
        }
        let mut delay = self
            .random
            .between(self.schedule.delay.0, self.schedule.delay.1)
            * 1000;
        if self.random.percent(self.weather.2) {
            delay += self.random.below(self.schedule.lease * 1000);
        }
        Some(delay)
    }

    pub(crate) fn datagram(
        &mut self,
        from: usize,
        to: usize,
        path: usize,
        wire: Wire,
        forged: bool,
    ) {
        if self.record {
            let (kept, most) = match wire {
                Wire::Packet(_, Packet::HelloAnswer { .. }) => (&mut self.answers, ANSWERS_MAX),
                _ => (&mut self.recorded, RECORDED_MAX),
            };
            kept.push_back((from, to, path, wire.clone()));
            if kept.len() > most {
                kept.pop_front();
            }
        }
        if self.random.percent(self.weather.1)
            && let Some(delay) = self.way(from, to)
        {
            self.deliver(delay, from, to, path, wire.clone(), forged);
        }
        if let Some(delay) = self.way(from, to) {
            self.deliver(delay, from, to, path, wire, forged);
        }
    }

    pub(crate) fn deliver(
        &mut self,
        delay: u64,
        from: usize,
        to: usize,
        path: usize,
        wire: Wire,
        forged: bool,
    ) {
        let job = Job::Datagram {
            from,
            path,
            wire,
            real_ns: 0,
            forged,
        };
        let event = Event::Job {
            server: to,
            part: Part::Hbd,
            epoch: None,
            job,
        };
        self.queue.push(self.now + delay, event);
    }

    // ---- what is looked at from outside --------------------------------------------------------------

    /// AtMostOneGate and GateImpliesLease, now.
    pub(crate) fn check(&mut self) {
        let mut changed = false;
        for server in &mut self.servers {
            if let Some(electd) = &server.electd {
                let version = electd.core.counted_roster().version;
                changed |= std::mem::replace(&mut server.counts_by, version) != version;
            }
        }
        if changed {
            self.rosters_changed();
        }
        let mut locals = [BootTime(0); NAMES.len()];
        let mut open = [(0, 0); 4 * NAMES.len()];
        let mut count = 0;
        for (i, server) in self.servers.iter().enumerate() {
            locals[i] = server.local(self.now);
            for (v, gate) in server.gates.iter().enumerate() {
                if let Some(gate) = gate
                    && server.answers(v, self.now)
                    && gate.deadline > server.excused
                {
                    open[count] = (v, i);
                    count += 1;
                }
            }
        }
        // The first violation is kept by the judge.
        let _ = self
            .judge
            .check(self.now, &locals[..self.servers.len()], &open[..count]);
    }

    /// A disk holds something else now.
    pub(crate) fn disk_holds(&mut self, i: usize, held: Option<Reservation>) {
        let server = &mut self.servers[i];
        if let Some(before) = std::mem::replace(&mut server.disk, held) {
            server.former.push(before);
            if server.former.len() > FORMER_MAX {
                server.former.remove(0);
            }
        }
        self.rosters_changed();
    }

    fn rosters_changed(&mut self) {
        let disks = self
            .servers
            .iter()
            .map(|s| s.disk.as_ref().map(|d| &d.roster));
        let electds = self.servers.iter().enumerate();
        let counted =
            electds.filter_map(|(i, s)| Some((i, s.electd.as_ref()?.core.counted_roster())));
        self.judge.rosters(disks, counted);
    }

    /// Who owns what, for the length of gaps.
    pub(crate) fn look(&mut self) {
        for v in 0..self.virtuals.len() {
            let mut best: Option<(usize, Time)> = None;
            for (i, server) in self.servers.iter().enumerate() {
                if server.answers(v, self.now)
                    && let Some(gate) = server.gates[v]
                {
                    let closes = server.clock.true_time(gate.deadline);
                    if best.is_none_or(|(_, t)| closes > t) {
                        best = Some((i, closes));
                    }
                }
            }
            if let Some(what) = self.owned.look(self.now, v, best) {
                self.judge.fail(what.invariant, what.what);
            }
        }
    }

    /// A doctor called somebody dead: it must have watched for so long.
    pub(crate) fn accuses(&mut self, i: usize, of: &ServerName, patience: Duration) {
        let server = &self.servers[i];
        let watched = server
            .local(self.now)
            .since(server.awake[0].max(server.awake[1]));
        // A stall of less than a quarter of a lease need not be noticed, nor the end of a longer one.
        if watched < patience * 3 / 4 {
            let what = format!(
                "the doctor of {} calls {of} dead after watching for {:.3} ms",
                server.name,
                watched.as_secs_f64() * 1e3
            );
            self.judge.fail(NO_FLAP, what);
        }
    }

    pub(crate) fn not_inert(&mut self, i: usize, what: &str) {
        let what = format!("{}: {what}", self.servers[i].name);
        self.judge.fail(REJECTED_IS_INERT, what);
    }
}
