//! A seed to a schedule.

use crate::{
    random::Random,
    schedule::{Act, Kind, PARTS, Part, Schedule, Who},
};

/// How fast a cluster lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Heartbeat 10 ms, lease 50 ms.
    Tight,
    /// Heartbeat 100 ms, lease 500 ms: as configured by default.
    Usual,
    /// Heartbeat 100 ms, lease 1 s.
    Patient,
    /// Heartbeat 2 s, lease 10 s.
    Slow,
}

/// All of them.
pub const PROFILES: [Profile; 4] = [
    Profile::Tight,
    Profile::Usual,
    Profile::Patient,
    Profile::Slow,
];

impl Profile {
    /// Its name for the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tight => "tight",
            Self::Usual => "usual",
            Self::Patient => "patient",
            Self::Slow => "slow",
        }
    }

    fn times(self) -> (u64, u64) {
        match self {
            Self::Tight => (10_000, 50_000),
            Self::Usual => (100_000, 500_000),
            Self::Patient => (100_000, 1_000_000),
            Self::Slow => (2_000_000, 10_000_000),
        }
    }
}

/// What a seed stands for.
pub fn profile(seed: u64) -> Profile {
    Random(seed).of(&PROFILES)
}

/// The schedule of a seed, in a given profile or in its own.
pub fn schedule(seed: u64, wanted: Option<Profile>) -> Schedule {
    let mut random = Random(seed ^ 0x5eed);
    let profile = wanted.unwrap_or(profile(seed));
    let (heartbeat, lease) = profile.times();
    let servers = random.of(&[3, 3, 3, 3, 3, 3, 4, 5]);
    let witnesses = u64::from(servers == 3 && random.percent(20));
    let mut schedule = Schedule {
        seed,
        heartbeat,
        lease,
        servers: servers - witnesses,
        witnesses,
        blank: u64::from(random.percent(5)),
        virtuals: random.of(&[1, 1, 1, 1, 1, 2, 2, 2, 3, 3]),
        none: u64::from(random.percent(3)),
        paths: 1 + u64::from(random.percent(10)),
        sealed: u64::from(random.percent(10)),
        cold: u64::from(random.percent(15)),
        gate: (100, random.of(&[500, 2000, lease / 50, lease / 8])),
        ..Schedule::default()
    };
    schedule.parts = u64::from(schedule.virtuals > 1 && random.percent(70));
    if profile == Profile::Tight {
        (schedule.delay, schedule.ring, schedule.gate) = ((20, 80), (5, 20), (20, 200));
        schedule.disk = 1000;
    }
    if random.percent(40) {
        (0..schedule.size())
            .for_each(|_| schedule.priorities = schedule.priorities * 100 + random.between(48, 52));
    }
    let alike = random.percent(60);
    for i in 0..schedule.size() {
        if !alike {
            let rate = random.between(900, 1120);
            let who = Who::Server(i as u8);
            schedule.acts.push(Act {
                who,
                n: rate,
                ..Act::new(0, Kind::Rate)
            });
        }
    }
    match random.below(100) {
        _ if schedule.none == 1 => all_at_once(&mut random, &mut schedule),
        0..9 => changing_roster(&mut random, &mut schedule),
        9..17 => changing_leases(&mut random, &mut schedule),
        17 if seed.is_multiple_of(2) => preferring(&mut random, &mut schedule),
        17..70 => one_by_one(&mut random, &mut schedule),
        _ => all_at_once(&mut random, &mut schedule),
    }
    schedule
}

/// Where a fault hits.
fn anybody(random: &mut Random) -> Who {
    if random.percent(65) {
        Who::Master
    } else {
        Who::Slave(random.below(4) as u8)
    }
}

/// Each fault on its own, with time to heal: what it may cost is known exactly.
fn one_by_one(random: &mut Random, schedule: &mut Schedule) {
    let most = schedule.lease * 125 / 100;
    let mut at = if schedule.cold == 1 {
        3 * most
    } else {
        2 * most
    };
    for _ in 0..random.between(1, 2) {
        at += random.below(schedule.heartbeat * 2);
        let act = one(random, schedule, at);
        if act.kind == Kind::Lease {
            // One voter's disk is slow: it may not promise so long yet.
            let (n, span) = (2 * schedule.lease, 4 * schedule.lease);
            let who = Who::Slave(random.below(2) as u8);
            let slow = Act {
                who,
                n,
                span,
                ..Act::new(at, Kind::SlowDisk)
            };
            schedule.acts.push(slow);
        }
        at += act.span + schedule.settles(&act);
        schedule.acts.push(act);
    }
    schedule.calm = at;
}

/// Servers come and go from the roster, faster than they should.
fn changing_roster(random: &mut Random, schedule: &mut Schedule) {
    let lease = schedule.lease;
    (schedule.servers, schedule.witnesses, schedule.blank) =
        (random.between(4, 5), 0, random.below(2));
    schedule.virtuals = random.of(&[1, 2, 2, 3]);
    schedule.acts.retain(|a| a.kind != Kind::Rate);
    schedule.disk = random.of(&[schedule.disk, lease / 20, lease / 2]);
    let mut at = lease * 3;
    for _ in 0..random.between(3, 7) {
        let kind = random.of(&[Kind::Add, Kind::Remove, Kind::Remove, Kind::Promote]);
        let to = Who::Server(random.below(6) as u8);
        // The keeper's master may be another than the others'.
        let n = if kind == Kind::Promote {
            random.between(1, schedule.virtuals)
        } else {
            0
        };
        schedule.acts.push(Act {
            to,
            n,
            ..Act::new(at, kind)
        });
        if random.percent(30) {
            let act = one(random, schedule, at);
            schedule.acts.push(act);
        }
        let most = random.of(&[schedule.heartbeat / 10, schedule.heartbeat, lease]);
        at += random.between(1, most);
    }
    schedule.calm = at + lease;
}

/// Leases that differ, up and down, and servers that forget what they promised by them.
fn changing_leases(random: &mut Random, schedule: &mut Schedule) {
    let lease = schedule.lease;
    schedule.virtuals = random.of(&[1, 1, 2]);
    schedule.disk = random.of(&[schedule.disk, lease / 20, lease / 2]);
    let mut at = lease * 2;
    for _ in 0..random.between(2, 4) {
        let factor = random.of(&[5, 20, 50, 100, 100, 200, 400, 1000, 2000]);
        let n = (lease * factor / 100).clamp(5 * schedule.heartbeat, 10_000_000);
        let kind = random.of(&[Kind::Lease, Kind::OneLease, Kind::OneLease]);
        let who = anybody(random);
        schedule.acts.push(Act {
            n,
            who,
            ..Act::new(at, kind)
        });
        let longest = schedule.longest_lease();
        let most = random.of(&[schedule.heartbeat, lease, longest]);
        at += random.between(1, most);
        let kinds = [
            Kind::Kill,
            Kind::Kill,
            Kind::Power,
            Kind::Power,
            Kind::Wipe,
            Kind::Wipe,
            Kind::Restore,
            Kind::Stop,
            Kind::BadDisk,
            Kind::BadMemory,
            Kind::Cut,
            Kind::Isolate,
        ];
        let kind = random.of(&kinds);
        let most = random.of(&[lease / 5, lease, longest]);
        schedule.acts.push(Act {
            who: anybody(random),
            to: Who::Slave(random.below(4) as u8),
            n: random.below(3),
            span: random.between(1, most),
            ..Act::new(at, kind)
        });
        if random.percent(30) {
            let act = one(random, schedule, at);
            schedule.acts.push(act);
        }
        let most = random.of(&[schedule.heartbeat, lease, longest, 3 * longest]);
        at += random.between(1, most);
    }
    schedule.calm = at + lease;
}

/// A better server falls and comes back, twice, and is preferred once.
fn preferring(random: &mut Random, schedule: &mut Schedule) {
    let lease = schedule.lease;
    (schedule.servers, schedule.witnesses, schedule.blank) = (3, 0, 0);
    (schedule.virtuals, schedule.preempt) = (1, 2);
    let best = random.below(3);
    schedule.priorities = 505_050 + 10 * 100_u64.pow(best as u32);
    let who = Who::Server(best as u8);
    for at in [3 * lease, 32 * lease] {
        schedule.acts.push(Act {
            who,
            span: random.between(lease, 2 * lease),
            ..Act::new(at, Kind::Power)
        });
    }
    schedule.calm = 60 * lease;
}

fn one(random: &mut Random, schedule: &Schedule, at: u64) -> Act {
    let lease = schedule.lease;
    let short = random.between(1, lease / 5);
    let long = random.between(lease / 5, 2 * lease);
    let longer = random.between(lease, 5 * lease);
    let who = anybody(random);
    let role = random.of(&PARTS);
    let some = random.of(&[short, short, long]);
    let mut act = Act {
        who,
        role,
        ..Act::new(at, Kind::Kill)
    };
    (act.kind, act.span) = match random.below(39) {
        0..5 => (Kind::Kill, some),
        5..10 => (Kind::Power, random.of(&[long, longer])),
        10..12 => (Kind::Stall, some),
        12 | 13 => (Kind::Freeze, some),
        14 => (Kind::Pause, random.of(&[short, long, longer])),
        15 | 16 => {
            act.n = random.below(12);
            (random.of(&[Kind::Interrupt, Kind::Crash]), short)
        }
        17 | 18 => (Kind::Cut, random.of(&[long, longer])),
        19 => (Kind::OneWay, longer),
        20..23 => (Kind::Isolate, random.of(&[short, long, longer, 5 * lease])),
        23 | 24 => (Kind::Deaf, random.of(&[short, long, longer, 5 * lease])),
        25 => (Kind::Mute, random.of(&[long, longer])),
        26 => {
            act.n = random.between(1, 2000);
            (Kind::Step, 0)
        }
        27 => (random.of(&[Kind::SlowDisk, Kind::BadDisk]), long),
        28 => (Kind::Carrier, longer),
        29..32 => (random.of(&[Kind::Promote, Kind::Resign]), 0),
        32 => (Kind::Stop, long),
        33 => (Kind::Maintenance, long),
        34 => (Kind::Junk, 0),
        35 => {
            act.n = (lease * random.of(&[100, 150, 200]) / 100).min(10_000_000);
            (Kind::Lease, 0)
        }
        36 => (Kind::BadMemory, some),
        _ => (random.of(&[Kind::Add, Kind::Remove]), 0),
    };
    act.to = Who::Slave(random.below(4) as u8);
    if matches!(act.kind, Kind::Promote | Kind::Add | Kind::Remove) {
        act.who = Who::Master;
    }
    if act.kind == Kind::SlowDisk {
        act.n = long;
    }
    act
}

/// Fault upon fault; only what must never be, and that all is well in the end, can be asked.
fn all_at_once(random: &mut Random, schedule: &mut Schedule) {
    let lease = schedule.lease;
    if random.percent(50) {
        (schedule.loss, schedule.repeat, schedule.late) =
            (random.below(25), random.below(10), random.below(8));
    }
    if random.percent(20) {
        schedule.delay = (200, lease / 60);
    }
    if random.percent(20) {
        schedule.disk = random.between(lease / 10, 3 * lease);
    }
    schedule.preempt = random.of(&[0, 0, 0, 1, 2]);
    let begin = lease * random.between(1, 3);
    let pace = random.between(lease / 10, lease);
    let end = begin + 5 * lease;
    let mut at = begin;
    while at < end {
        let act = some(random, schedule, at);
        // It keeps a server away for half a minute: one is enough.
        let broken = |a: &Act| a.kind == Kind::Broken;
        if !broken(&act) || (schedule.servers > 2 && !schedule.acts.iter().any(broken)) {
            schedule.acts.push(act);
        }
        at += random.between(1, pace);
    }
    schedule.acts.sort_by_key(|a| a.at);
    schedule.calm = end;
}

fn some(random: &mut Random, schedule: &Schedule, at: u64) -> Act {
    let lease = schedule.lease;
    let span = random.of(&[lease / 20, lease / 5, lease, 3 * lease]);
    let span = random.between(1, span);
    let n = schedule.size() as u64;
    let mut act = one(random, schedule, at);
    if random.percent(45) {
        let (kind, number) = match random.below(18) {
            0 => (Kind::Kill, 0),
            1..4 => (Kind::Crash, random.below(20)),
            4 | 5 => (Kind::Interrupt, random.below(20)),
            6 => (Kind::Split, random.below(1 << n)),
            7 => (Kind::Weather, random.between(5, 60)),
            8 => (Kind::Rate, random.between(900, 1120)),
            9 => (Kind::Burst, 0),
            10 | 15 if schedule.none == 0 => (Kind::Wipe, 0),
            16 if schedule.none == 0 => (Kind::Restore, random.below(4)),
            17 => (
                Kind::OneLease,
                lease * random.of(&[20, 100, 160, 400]) / 100,
            ),
            11 => (Kind::Lease, lease * random.of(&[60, 100, 160, 200]) / 100),
            12 => (Kind::Fresh, random.between(1, 5)),
            13 => (Kind::Broken, 0),
            14 => (random.of(&[Kind::Add, Kind::Remove]), 0),
            _ => (Kind::Power, 0),
        };
        act = Act {
            kind,
            n: number,
            who: anybody(random),
            ..act
        };
        act.role = random.of(&[
            Part::Electd,
            Part::Electd,
            Part::Hbd,
            Part::Doctord,
            Part::Listend,
        ]);
    }
    if matches!(act.kind, Kind::Lease | Kind::OneLease) {
        act.n = act.n.clamp(5 * schedule.heartbeat, 10_000_000);
    }
    act.span = span;
    act
}
