//! What is explored: which cluster, which faults, how many of each.

use crate::{judge::VIRTUALS_MAX, world::News};

/// What may go wrong, or be asked for. Each costs one of its kind and one of the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A message is lost.
    Lose,
    /// A message is held up, to arrive any time up to `late` ticks later, or not at all.
    Delay,
    /// A message arrives, and once more any time up to `late` ticks later.
    Repeat,
    /// A server is cut off: it hears nobody, nobody hears it, or both; until healed.
    Cut,
    /// electd is killed, between two inputs or between two outputs; a write may reach the disk or not.
    Kill,
    /// A server loses power; a write may reach the disk or not.
    Power,
    /// A server loses power and its disk.
    Wipe,
    /// electd stalls before, between or after outputs, or takes one more input first.
    Stall,
    /// A doctor says that all others are dead, or alive.
    Lie,
    /// A write fails, and reaches the disk or not.
    Disk,
    /// An operator's wish.
    Wish,
    /// Another lease on one server.
    Lease,
    /// A write stays under way for as long as it takes, and with it every later one of that server.
    Slow,
    /// The network falls into two halves, until healed.
    Part,
    /// A server loses power, and its disk is as it was: first of all, or before the last write.
    Restore,
}

/// How many kinds there are.
pub const FAULTS: usize = 15;

/// An operator's wishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Hand over to this server.
    Promote(usize),
    /// Hand this virtual server over to this server, the others stay.
    Move(usize, usize),
    /// Hand over to anybody.
    Resign,
    /// Hand over and stop.
    Stop,
    /// Take this server into the roster.
    Add(usize),
    /// Take it out again.
    Remove(usize),
}

/// Where a scenario begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Everything was just powered on.
    Boot,
    /// All have been silent long enough; nobody is master yet.
    Ready,
    /// A master has been elected and all is at rest.
    Settled,
}

/// In which order messages arrive within a tick, unless a fault befalls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they were sent.
    Sent,
    /// In every order.
    Any,
}

/// One bounded space.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Servers in the first roster.
    pub voters: usize,
    /// The last voter is a witness.
    pub witness: bool,
    /// One more server, not in the first roster and without a reservation.
    pub spare: bool,
    /// Virtual servers; the first is the roster's keeper.
    pub virtuals: usize,
    /// Each of them has a part of the beat to itself (R25).
    pub parts: bool,
    /// Which server has the highest priority for each of them.
    pub preferred: [usize; VIRTUALS_MAX],
    /// Nanoseconds of each clock per tick: 4 or 5.
    pub rates: [u64; 4],
    /// Where it begins.
    pub begin: Begin,
    /// In which order messages arrive.
    pub order: Order,
    /// Beats without a claim, and acknowledgements of such, arrive at once and can only be cut off.
    pub quiet_background: bool,
    /// Servers suffer between two ticks only, not between two messages.
    pub coarse: bool,
    /// What happens until somebody has a choice is one step: between two ticks that is a write that may fail, be
    /// slow or be lost with its server, and a message that something may befall.
    pub swift: bool,
    /// What was cut off stays cut off, and hears nobody; electd is killed between two inputs only.
    pub lasting: bool,
    /// Who is killed or loses power is back at once.
    pub prompt: bool,
    /// Faults of each kind.
    pub faults: Vec<(Fault, u8)>,
    /// Faults in all.
    pub total: u8,
    /// Terms called in, at most.
    pub terms: u8,
    /// How long a message is held up at most, in ticks.
    pub late: u8,
    /// How long a stall lasts at most, in ticks.
    pub stall: u8,
    /// What operators may ask for.
    pub wishes: Vec<Asked>,
    /// They ask in this order, of the master concerned, and only for what is not refused at once.
    pub in_turn: bool,
    /// Other leases, in nanoseconds.
    pub leases: Vec<u64>,
    /// The lease at `standin init`, where it was raised since, in nanoseconds.
    pub raised_from: Option<u64>,
    /// The reservation on disk is as good as used up.
    pub nearly_used_up: bool,
    /// What must be seen.
    pub sometimes: Vec<News>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: "",
            about: "",
            voters: 3,
            witness: false,
            spare: false,
            virtuals: 1,
            parts: false,
            preferred: [0; VIRTUALS_MAX],
            rates: [4; 4],
            begin: Begin::Settled,
            order: Order::Sent,
            quiet_background: true,
            coarse: false,
            swift: false,
            lasting: false,
            prompt: false,
            faults: Vec::new(),
            total: 0,
            terms: 3,
            late: 6,
            stall: 6,
            wishes: Vec::new(),
            in_turn: false,
            leases: Vec::new(),
            raised_from: None,
            nearly_used_up: false,
            sometimes: vec![News::Elected],
        }
    }
}

impl Scenario {
    /// All servers.
    pub fn servers(&self) -> usize {
        self.voters + usize::from(self.spare)
    }

    /// The bounds in words.
    pub fn bounds(&self) -> String {
        let faults: Vec<_> = self
            .faults
            .iter()
            .map(|(f, n)| format!("{n} {f:?}").to_lowercase())
            .collect();
        format!(
            "{} voters{}{}{}, {} terms, {} of [{}], {} order{}",
            self.voters,
            if self.witness { " (one a witness)" } else { "" },
            if self.spare { " and a spare" } else { "" },
            match self.virtuals {
                1 => String::new(),
                n => format!(", {n} virtual servers"),
            },
            self.terms,
            self.total,
            faults.join(", "),
            match self.order {
                Order::Sent => "sent",
                Order::Any => "any",
            },
            if self.rates == [4; 4] {
                ""
            } else {
                ", clocks 4:5"
            },
        )
    }
}

/// How much is explored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// In a minute, for every test run.
    Quick,
    /// In an hour or so.
    Nightly,
}

/// All scenarios at this depth.
pub fn all(depth: Depth) -> Vec<Scenario> {
    use Fault::{
        Cut, Delay, Disk, Kill, Lease, Lie, Lose, Part, Power, Repeat, Restore, Slow, Stall, Wipe,
        Wish,
    };
    let nightly = depth == Depth::Nightly;
    let by = |quick: u8, night: u8| if nightly { night } else { quick };
    vec![
        Scenario {
            name: "elect",
            about: "the first election; every message lost, late, twice; lying doctors",
            begin: Begin::Ready,
            faults: vec![(Lose, 3), (Delay, 2), (Repeat, 2), (Lie, 1)],
            total: by(1, 3),
            ..Scenario::default()
        },
        Scenario {
            name: "order",
            about: "the first election, messages in every order",
            begin: Begin::Ready,
            order: Order::Any,
            faults: vec![(Lose, 1), (Delay, 1), (Lie, 1)],
            total: by(0, 1),
            terms: by(2, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "messages",
            about: "a master at rest; every message, also the background's, lost, late, twice",
            quiet_background: false,
            faults: vec![(Lose, 3), (Delay, 2), (Repeat, 2)],
            total: by(1, 2),
            sometimes: vec![],
            ..Scenario::default()
        },
        Scenario {
            name: "quorum-lost",
            about: "servers cut off, in one direction or both, and healed; lying doctors",
            faults: vec![(Cut, 2), (Lose, 1), (Delay, 1), (Lie, 1)],
            total: by(1, 2),
            sometimes: vec![News::Elected, News::Regained],
            ..Scenario::default()
        },
        Scenario {
            name: "crash",
            about: "power losses, with and without what was being written",
            faults: vec![(Power, 2), (Cut, 1), (Lose, 1), (Delay, 1)],
            total: by(1, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "restart",
            about: "electd killed between inputs and between outputs, and started again",
            begin: Begin::Ready,
            faults: vec![(Kill, 2), (Lose, 1), (Delay, 1), (Cut, 1)],
            total: by(1, 2),
            sometimes: vec![News::Renewed],
            ..Scenario::default()
        },
        Scenario {
            name: "drift",
            about: "clocks at 4:5, the master's slow, a voter's fast; cuts, late messages, stalls",
            rates: [4, 5, 4, 4],
            faults: vec![(Cut, 2), (Delay, 1), (Stall, 1), (Lie, 1)],
            total: by(1, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "drift-back",
            about: "clocks at 4:5, the master's fast, both voters' slow",
            rates: [5, 4, 4, 4],
            faults: vec![(Cut, 2), (Delay, 1), (Stall, 1), (Lie, 1)],
            total: by(1, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "stall",
            about: "electd stalls between handling and each output; cuts, lying doctors",
            faults: vec![(Stall, 2), (Cut, 1), (Lie, 1), (Kill, 1)],
            total: by(1, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "handover",
            about: "planned handovers, with messages lost, late, twice and stalls",
            faults: vec![
                (Wish, 2),
                (Lose, 1),
                (Delay, 1),
                (Repeat, 1),
                (Stall, 1),
                (Cut, 1),
            ],
            total: by(1, 2),
            wishes: vec![Asked::Promote(1), Asked::Promote(2), Asked::Stop],
            sometimes: vec![News::HandedOver],
            ..Scenario::default()
        },
        Scenario {
            name: "lease-change",
            about: "another lease on one server after the other; power losses",
            coarse: true,
            faults: if nightly {
                vec![(Lease, 2), (Power, 1), (Cut, 1), (Disk, 1)]
            } else {
                vec![(Lease, 2)]
            },
            total: 2,
            leases: vec![30, 12],
            sometimes: vec![News::Lease],
            ..Scenario::default()
        },
        Scenario {
            name: "roster",
            about: "a server added and one removed; cuts and power losses",
            spare: true,
            coarse: true,
            faults: vec![(Wish, 2), (Cut, 2), (Kill, 1), (Power, 1)],
            total: by(1, 2),
            wishes: vec![Asked::Add(3), Asked::Remove(2)],
            sometimes: vec![News::Changed],
            ..Scenario::default()
        },
        Scenario {
            name: "witness",
            about: "two servers and a witness; cuts, crashes, restarts",
            witness: true,
            faults: vec![(Cut, 2), (Power, 1), (Kill, 1), (Delay, 1), (Lie, 1)],
            total: by(1, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "storm",
            about: "misfortunes of servers of every kind, one after another, between ticks",
            coarse: true,
            faults: vec![(Cut, 3), (Power, 2), (Kill, 2), (Stall, 1), (Lie, 1)],
            total: by(1, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "disk",
            about: "terms all but used up; writes fail, power goes, a disk is lost",
            nearly_used_up: true,
            begin: Begin::Boot,
            coarse: true,
            faults: vec![(Disk, 1), (Power, 1), (Wipe, 1), (Cut, 1), (Kill, 1)],
            total: by(1, 2),
            ..Scenario::default()
        },
        Scenario {
            name: "rosters",
            about: "two changes of the roster by two masters of the keeper, the first goes on serving another \
                    virtual server; a slow disk, a partition",
            voters: 4,
            virtuals: 2,
            coarse: true,
            swift: true,
            faults: vec![(Wish, 3), (Slow, 1), (Part, 1)],
            total: by(3, 5),
            wishes: vec![Asked::Remove(3), Asked::Move(0, 1), Asked::Remove(0)],
            in_turn: true,
            sometimes: vec![News::Changed, News::ChangedAgain],
            ..Scenario::default()
        },
        Scenario {
            name: "rosters-add",
            about: "a server added and one removed by two masters of the keeper, a third server serves another \
                    virtual server; a slow disk, a partition",
            spare: true,
            virtuals: 2,
            preferred: [0, 2],
            coarse: true,
            swift: true,
            faults: vec![(Wish, 3), (Slow, 1), (Part, 1)],
            total: by(3, 5),
            wishes: vec![Asked::Add(3), Asked::Move(0, 1), Asked::Remove(0)],
            in_turn: true,
            sometimes: vec![News::Changed, News::ChangedAgain],
            ..Scenario::default()
        },
        Scenario {
            name: "parts",
            about: "each virtual server in a part of the beat of its own, parts lost and late, a server killed or without \
                    power",
            virtuals: 2,
            parts: true,
            coarse: true,
            faults: vec![(Lose, 2), (Delay, 1), (Kill, 1), (Power, 1)],
            total: by(1, 2),
            terms: 3,
            ..Scenario::default()
        },
        Scenario {
            name: "lease-disk",
            about: "a lease lowered and raised; a disk lost, or written late, in error or not at all; power back at \
                    once, when promises have longest to go",
            coarse: true,
            swift: true,
            prompt: true,
            faults: if nightly {
                vec![(Lease, 2), (Wipe, 1), (Power, 1), (Slow, 1), (Disk, 1)]
            } else {
                vec![(Lease, 1), (Wipe, 1)]
            },
            total: by(2, 3),
            leases: vec![12],
            sometimes: vec![News::Lease],
            ..Scenario::default()
        },
        Scenario {
            name: "put-back",
            about: "the lease was raised, is lowered and raised; a disk put back, perhaps to before all that, or \
                    written late, in error or not at all",
            coarse: true,
            swift: true,
            prompt: true,
            raised_from: Some(4),
            faults: if nightly {
                vec![(Lease, 2), (Restore, 1), (Power, 1), (Slow, 1), (Disk, 1)]
            } else {
                vec![(Lease, 1), (Restore, 1)]
            },
            total: by(2, 3),
            leases: vec![12],
            sometimes: vec![News::Lease],
            ..Scenario::default()
        },
        Scenario {
            name: "lease-kill",
            about: "a lease lowered; voters restarted from the run-dir while another calls",
            coarse: true,
            swift: true,
            lasting: true,
            terms: 2,
            faults: if nightly {
                vec![(Lease, 1), (Kill, 1), (Cut, 1)]
            } else {
                vec![(Kill, 1), (Cut, 1)]
            },
            total: by(2, 3),
            leases: vec![12],
            sometimes: if nightly {
                vec![News::Lease, News::Kept]
            } else {
                vec![News::Kept]
            },
            ..Scenario::default()
        },
    ]
}
