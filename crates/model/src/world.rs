//! A cluster of real electors as one value: what each server, its kernel, its disk and the network hold.

use crate::{
    digest,
    judge::{Clock, Disk, Invariant, Judge, SERVERS_MAX, VIRTUALS_MAX, Verdict},
    scenario::{FAULTS, Fault, Scenario},
};
use election::{Elector, Memory, Output, Reservation, Settings, situation::Situation};
use protocol::{
    BootTime, Instance, Number, ServerName, Term,
    wire::{
        beat::{Ack, Beat, Roster},
        signal::Signal,
    },
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

/// Kept from one digest to the next.
type Scratch = (Option<Situation>, Vec<(Instance, Number)>);

/// The age of a write that a slow disk holds up: it has no end.
pub const SLOW: u8 = u8::MAX;

/// Questions (PreCall) of one server that are as many as none, and those after which any more in this tick are lost.
///
/// Where nothing takes any time, a renewal that is refused is tried again at once, and time would never go on.
pub const PRE_CALLS: (u8, u8) = (6, 18);

/// Not heard since the doctor began to listen.
pub const UNHEARD: u8 = 128;

/// The kernel's gate.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Absolute, by the server's clock.
    pub deadline: BootTime,
    /// It is being shut.
    pub shutting: bool,
}

/// What shall befall electd when it next carries something out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// It stalls after so many outputs.
    Stall(u8),
    /// It dies after so many outputs.
    Die(u8),
    /// It takes one more input before it carries out anything.
    Hold,
}

/// What a doctor says against the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Everybody else is dead.
    AllDead,
    /// Everybody else is alive.
    AllAlive,
}

/// One server.
#[derive(Clone, Debug)]
pub struct Host {
    /// electd, if it runs.
    pub elector: Option<Elector>,
    pub powered: bool,
    /// CLOCK_BOOTTIME.
    pub now: BootTime,
    pub settings: Settings,
    /// Of each virtual server.
    pub gates: [Option<Gate>; VIRTUALS_MAX],
    /// The run-dir.
    pub memory: Option<Memory>,
    /// The state-dir.
    pub disk: Option<Reservation>,
    pub writing: Option<Reservation>,
    /// What was on disk first, and what was before that which is on it now: a disk may be put back to those.
    pub former: [Option<Reservation>; 2],
    /// Wanted by the elector and not carried out yet.
    pub pending: VecDeque<Output>,
    /// Claims and calls handled and not answered yet, with their leases: for the judge.
    pub asked: Vec<(Instance, Number, Duration)>,
    /// When what is pending was decided.
    pub handled: BootTime,
    /// The terms of the masterships that `pending` may speak of.
    pub terms: [Term; VIRTUALS_MAX],
    /// Stalled for so many ticks.
    pub stalled: Option<u8>,
    pub arm: Option<Arm>,
    /// It took an input and has not carried out yet what follows.
    pub holding: bool,
    /// What arrived during the stall.
    pub waiting: VecDeque<Flight>,
    /// The doctor: ticks since each server was heard.
    pub heard: [u8; SERVERS_MAX],
    /// The opinion last told.
    pub opinion: [u8; SERVERS_MAX],
    pub lie: Option<Lie>,
    /// Cut off: nothing comes in, nothing goes out.
    pub deaf: bool,
    pub mute: bool,
    /// Questions sent in this tick.
    pub pre_calls: u8,
    /// Instances so far.
    pub starts: u64,
}

/// On its way to a server.
#[derive(Clone, Debug)]
pub struct Flight {
    pub from: usize,
    pub to: usize,
    pub load: Load,
    /// It waits in the receiver's socket since.
    pub arrived: Option<BootTime>,
}

/// What comes to a server.
#[derive(Clone, Debug)]
pub enum Load {
    Beat(Arc<Beat>),
    Ack(Arc<Ack>),
    Signal(Arc<Signal>),
    /// Its link to `from` is up again.
    Linked,
    /// Of its own kernel: the gate of this virtual server reads back shut.
    GateShut(usize),
    /// Of its own disk: written.
    Written,
    /// Its timer.
    Timer,
}

impl Load {
    /// It goes over the network.
    pub fn travels(&self) -> bool {
        matches!(self, Self::Beat(_) | Self::Ack(_) | Self::Signal(_))
    }

    /// Nothing hangs on it in time: a beat without a claim, an acknowledgement of one.
    pub fn is_background(&self) -> bool {
        match self {
            Self::Beat(beat) => beat.standings.iter().all(|s| s.claim.is_none()),
            Self::Ack(ack) => ack.answers.is_empty(),
            Self::Signal(_) | Self::Linked | Self::GateShut(_) | Self::Written | Self::Timer => {
                false
            }
        }
    }
}

/// What just happened, for the properties that hold sometimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A gate opened for a new master.
    Elected = 1,
    /// By a planned handover.
    HandedOver = 2,
    /// A lease that had run out was re-acquired.
    Regained = 4,
    /// The same master, a higher term.
    Renewed = 8,
    /// A change of the roster is in force at the master.
    Changed = 16,
    /// A changed lease is in use at a master.
    Lease = 32,
    /// A voter restarted from the run-dir keeps a promise given before.
    Kept = 64,
    /// A changed roster was changed once more, by another master.
    ChangedAgain = 128,
}

/// The whole.
#[derive(Clone, Debug)]
pub struct World {
    pub hosts: Vec<Arc<Host>>,
    /// In the order they were sent.
    pub flights: Vec<Flight>,
    /// Held up by the network for so many ticks.
    pub late: Vec<(u8, Flight)>,
    /// Faults that may still come, of each kind and in all.
    pub left: [u8; FAULTS],
    pub total: u8,
    /// These servers and the others do not reach each other, one bit each.
    pub parted: u8,
    /// The last wish was refused at once.
    pub refused: bool,
    pub judge: Judge,
    /// Bits of [`News`].
    pub news: u8,
    pub failed: Option<(Invariant, String)>,
    /// What the last step did, if somebody wants to read it.
    pub log: Option<Vec<String>>,
    pub digest: u64,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl World {
    /// A copy to change: names that are shared stay shared.
    pub fn host(&mut self, i: usize) -> &mut Host {
        Arc::make_mut(&mut self.hosts[i])
    }

    /// Until when the gate of `i` for virtual server `v` is open, if it is.
    pub fn gate(&self, i: usize, v: usize) -> Option<BootTime> {
        let host = &self.hosts[i];
        host.gates[v]
            .map(|g| g.deadline)
            .filter(|at| host.now <= *at)
    }

    /// Are these two on different sides of a partition?
    pub fn is_parted(&self, i: usize, j: usize) -> bool {
        (self.parted >> i ^ self.parted >> j) & 1 == 1
    }

    /// For [`World::log`].
    pub fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.log.is_some() {
            let line = line(self);
            self.log.get_or_insert_default().push(line);
        }
    }

    /// The first verdict that is none of innocence stays.
    pub fn judge(&mut self, verdict: Verdict) {
        if let Err(failed) = verdict
            && self.failed.is_none()
        {
            self.failed = Some(failed);
        }
    }

    /// Is one more of these left?
    pub fn may(&self, fault: Fault) -> bool {
        self.total > 0 && self.left[fault as usize] > 0
    }

    pub fn spend(&mut self, fault: Fault) {
        self.total -= 1;
        self.left[fault as usize] -= 1;
        if self.total == 0 {
            self.left = [0; FAULTS]; // Whatever else was left cannot come any more.
        }
    }

    pub fn clocks(&self, scenario: &Scenario) -> Vec<Clock> {
        let hosts = self.hosts.iter().zip(scenario.rates);
        hosts.map(|(h, rate)| Clock { now: h.now, rate }).collect()
    }

    /// The judge looks.
    pub fn check(&mut self, scenario: &Scenario) {
        let clocks = self.clocks(scenario);
        let hosts = 0..self.hosts.len();
        let gates_of = |v| hosts.clone().map(|i| self.gate(i, v)).collect();
        let gates: Vec<Vec<_>> = (0..scenario.virtuals).map(gates_of).collect();
        let disks: Vec<_> = self.hosts.iter().map(|host| host.disk_seen()).collect();
        let verdict = self.judge.check(&clocks, &gates, &disks);
        self.judge(verdict);
    }

    /// Ends a step: the judge looks, the digest is taken.
    pub fn settle(&mut self, scenario: &Scenario, situation: &Situation) {
        self.check(scenario);
        let clocks = self.clocks(scenario);
        thread_local! {
            static SCRATCH: RefCell<Scratch> = const { RefCell::new((None, Vec::new())) };
        }
        self.digest = SCRATCH.with_borrow_mut(|(s, used)| {
            let s = s.get_or_insert_with(|| situation.clone());
            s.again(situation);
            self.tell(&clocks, s);
            digest::digest(&s.words, used)
        });
    }

    fn tell(&self, clocks: &[Clock], s: &mut Situation) {
        for host in &self.hosts {
            host.tell(s);
            if self.may(Fault::Restore) {
                for former in &host.former {
                    s.option(former.as_ref(), Situation::reservation);
                }
            }
        }
        s.plain(self.flights.len() as u64);
        for flight in &self.flights {
            s.at(self.hosts[flight.to].now);
            flight.tell(s);
        }
        for (age, flight) in &self.late {
            s.at(self.hosts[flight.to].now);
            s.plain(u64::from(*age));
            flight.tell(s);
        }
        self.left.iter().for_each(|n| s.plain(u64::from(*n)));
        s.plain(u64::from(self.total) << 8 | u64::from(self.news));
        s.plain(u64::from(self.parted));
        s.plain(self.failed.as_ref().map_or(0, |(what, _)| 1 + *what as u64));
        self.judge.tell(clocks, s);
    }
}

impl Host {
    /// This is on disk now.
    pub fn written(&mut self, reservation: Reservation) {
        let before = self.disk.replace(reservation);
        if self.former[0].is_none() {
            self.former[0].clone_from(&before);
        }
        self.former[1] = before;
    }

    fn disk_seen(&self) -> Disk {
        let index = |name: &ServerName| self.settings.servers.iter().position(|s| s == name);
        let seen = |r: &Roster| {
            let places = r.voters.iter().filter_map(index);
            (r.version, places.fold(0, |set, at| set | 1 << at))
        };
        let promised = self.disk.iter().chain(&self.writing).map(|r| r.promise_max);
        Disk {
            roster: self.disk.as_ref().map(|r| seen(&r.roster)),
            counted: self.elector.as_ref().map(|e| seen(e.counted_roster())),
            promise_max: promised.min(),
        }
    }

    fn tell(&self, s: &mut Situation) {
        let Self {
            elector,
            powered,
            now,
            settings,
            gates,
            memory,
            disk,
            writing,
            former: _, // told where it may come back
            pending,
            asked,
            handled,
            terms,
            stalled,
            arm,
            holding,
            waiting,
            heard,
            opinion,
            lie,
            deaf,
            mute,
            pre_calls,
            starts: _,
        } = self;
        s.at(*now);
        s.option(elector.as_ref(), |s, elector| elector.tell(*now, s));
        s.span(settings.lease);
        for gate in gates {
            s.option(*gate, |s, gate| {
                s.plain(u64::from(gate.shutting) << 1 | u64::from(*now <= gate.deadline));
                s.time(gate.deadline.max(BootTime(now.0 - 1)));
            });
        }
        s.option(memory.as_ref(), Situation::memory);
        s.option(disk.as_ref(), Situation::reservation);
        s.option(writing.as_ref(), Situation::reservation);
        // The index does not matter where no signal's ends are told.
        let me = settings
            .servers
            .iter()
            .position(|n| *n == settings.me)
            .unwrap_or(0);
        for output in pending {
            s.output(me, output);
        }
        if !pending.is_empty() || *holding {
            for (i, k, lease) in asked {
                s.words.push(election::situation::Word::Number(*i, *k));
                s.span(*lease);
            }
            s.time(*handled);
            terms.iter().for_each(|term| s.plain(term.0));
        }
        s.plain(waiting.len() as u64);
        for flight in waiting {
            flight.tell(s);
        }
        s.option(*stalled, |s, ticks| s.plain(u64::from(ticks)));
        s.option(*arm, |s, arm| {
            s.plain(match arm {
                Arm::Stall(n) => u64::from(n) << 2,
                Arm::Die(n) => u64::from(n) << 2 | 1,
                Arm::Hold => 2,
            });
        });
        let bytes = heard.iter().chain(opinion);
        s.plain(bytes.fold(0, |word, b| word << 8 | u64::from(*b)));
        s.plain(u64::from(pre_calls.saturating_sub(PRE_CALLS.0)));
        let lie = match lie {
            None => 0,
            Some(Lie::AllDead) => 1,
            Some(Lie::AllAlive) => 2,
        };
        let flags = [*powered, *holding, *deaf, *mute];
        s.plain(
            flags
                .iter()
                .fold(lie, |word, flag| word << 1 | u64::from(*flag)),
        );
    }
}

impl Flight {
    fn tell(&self, s: &mut Situation) {
        let Self {
            from,
            to,
            load,
            arrived,
        } = self;
        s.plain((*from as u64) << 8 | *to as u64);
        match load {
            Load::Beat(beat) => s.beat(beat),
            Load::Ack(ack) => s.ack(ack),
            Load::Signal(signal) => s.signal(*from, *to, signal),
            Load::Linked => s.plain(1),
            Load::GateShut(v) => {
                s.plain(2);
                s.plain(*v as u64);
            }
            Load::Written => s.plain(3),
            Load::Timer => s.plain(4),
        }
        s.option(*arrived, Situation::time);
    }

    /// By this they are sorted where their order does not matter.
    pub fn key(&self) -> (usize, usize, u8, Instance, Number) {
        let (kind, instance, number) = match &self.load {
            Load::Beat(b) => (0, b.instance, b.number),
            Load::Ack(a) => (1, a.instance, a.number),
            Load::Signal(s) => (2, s.instance, s.number),
            Load::Linked => (3, Instance(0), Number(0)),
            Load::GateShut(v) => (4, Instance(*v as u64), Number(0)),
            Load::Written => (5, Instance(0), Number(0)),
            Load::Timer => (6, Instance(0), Number(0)),
        };
        (self.to, self.from, kind, instance, number)
    }
}
