//! A history before it happens: the cluster, and what befalls it when. As text it survives any change of the
//! generator, so a bug found once is kept as such a text.
//!
//! ```text
//! seed=7 heartbeat=100000 lease=500000 servers=3 ...
//! at=2500000 kill who=master role=electd span=20000
//! end=9000000
//! ```
//!
//! Times are microseconds of true time. What is not named has its default.

use election::Mode;
use std::{fmt, str::FromStr};

/// Names of servers.
pub const NAMES: [&str; 6] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"];

/// One of the four processes of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// Heartbeats.
    Hbd,
    /// Signals.
    Listend,
    /// The doctor.
    Doctord,
    /// The elector.
    #[default]
    Electd,
}

/// All four, in the order in which they are numbered here.
pub const PARTS: [Part; 4] = [Part::Hbd, Part::Listend, Part::Doctord, Part::Electd];

impl Part {
    fn name(self) -> &'static str {
        ["hbd", "listend", "doctord", "electd"][self as usize]
    }
}

/// A server, found when the time has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// Whose gate for the first virtual server is open; the first if nobody's is.
    #[default]
    Master,
    /// The server of this place, by name.
    Server(u8),
    /// The server of this place among those that are not master.
    Slave(u8),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Server(n) => f.write_str(NAMES[usize::from(*n) % NAMES.len()]),
            Self::Slave(n) => write!(f, "slave{n}"),
        }
    }
}

impl FromStr for Who {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "master" {
            return Ok(Self::Master);
        }
        if let Some(place) = NAMES.iter().position(|n| *n == text) {
            return Ok(Self::Server(u8::try_from(place).unwrap_or(0)));
        }
        let number = text.strip_prefix("slave").and_then(|n| n.parse().ok());
        number
            .map(Self::Slave)
            .ok_or_else(|| format!("no server is called {text}"))
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What can befall a cluster.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name in a text.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    /// Process `role` is killed and started again after `span`.
    Kill = "kill",
    /// Power fails and comes back after `span`: clock, run-dir and gates are gone.
    Power = "power",
    /// The same, and the disk is replaced by an empty one.
    Wipe = "wipe",
    /// The same, and the disk is put back to what it held `n` writes ago, if the others can tell what it forgets then.
    Restore = "restore",
    /// Process `role` stands still for `span`.
    Stall = "stall",
    /// All processes of a server do; its kernel goes on.
    Freeze = "freeze",
    /// The whole machine does, its clock too: a paused virtual machine.
    Pause = "pause",
    /// electd stands still for `span` after so many (`n`) more of its outputs, in the middle of a turn.
    Interrupt = "interrupt",
    /// electd is killed there, and started again after `span`.
    Crash = "crash",
    /// Nothing passes between `who` and `to` for `span`.
    Cut = "cut",
    /// Nothing passes from `who` to `to`.
    OneWay = "oneway",
    /// Nothing passes between `who` and anybody.
    Isolate = "isolate",
    /// Nothing reaches `who`.
    Deaf = "deaf",
    /// Nothing of `who` reaches anybody.
    Mute = "mute",
    /// The servers whose bits are set in `n` are cut off from the others.
    Split = "split",
    /// `n` percent of all packets are lost, half as many repeated and half as many very late.
    Weather = "weather",
    /// The boot-time clock runs at `n` thousandths of true time from now on.
    Rate = "rate",
    /// The wall clock is set ahead, or (odd `n`) back, by `n` milliseconds.
    Step = "step",
    /// Writing the reservation takes `n` microseconds, for `span`.
    SlowDisk = "slowdisk",
    /// Writing the reservation fails for `span`.
    BadDisk = "baddisk",
    /// Writing the run-dir fails for `span`.
    BadMemory = "badmemory",
    /// Too much to do: for `span` processes are late again and again, and the socket of hbd runs over.
    Burst = "burst",
    /// The interface has no carrier for `span`.
    Carrier = "carrier",
    /// The gate of the first virtual server cannot be opened at `who`.
    Broken = "broken",
    /// The operator at `who` wants `to` to be master, of the virtual server of place `n` if that is not 0.
    Promote = "promote",
    /// The operator wants `who` to give up what it has.
    Resign = "resign",
    /// Maintenance at `who` for `span`.
    Maintenance = "maintenance",
    /// The operator at `who` adds `to` to the roster.
    Add = "add",
    /// The operator at `who` removes `to` from the roster.
    Remove = "remove",
    /// All servers get a lease of `n` microseconds.
    Lease = "lease",
    /// `who` alone gets it.
    OneLease = "onelease",
    /// electd is told to end, and is started again `span` after it did.
    Stop = "stop",
    /// `who` completed its run `n` of synchronising files.
    Fresh = "fresh",
    /// Old, altered and senseless packets and signals reach `who`.
    Junk = "junk",
}

/// One thing that befalls a cluster. What a kind does not use is left at its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Act {
    /// When, in microseconds.
    pub at: u64,
    /// What.
    pub kind: Kind,
    /// Whom.
    pub who: Who,
    /// And whom.
    pub to: Who,
    /// Which process.
    pub role: Part,
    /// A number.
    pub n: u64,
    /// For how long, in microseconds.
    pub span: u64,
}

impl Act {
    /// At the master, for no time.
    pub fn new(at: u64, kind: Kind) -> Self {
        Self {
            at,
            kind,
            who: Who::Master,
            to: Who::Server(0),
            role: Part::Electd,
            n: 0,
            span: 0,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Kind::*;
        write!(f, "at={} {} who={}", self.at, self.kind.name(), self.who)?;
        if matches!(self.kind, Cut | OneWay | Promote | Add | Remove) {
            write!(f, " to={}", self.to)?;
        }
        if matches!(self.kind, Kill | Stall) {
            write!(f, " role={}", self.role.name())?;
        }
        if self.n != 0 {
            write!(f, " n={}", self.n)?;
        }
        if self.span != 0 {
            write!(f, " span={}", self.span)?;
        }
        Ok(())
    }
}

/// The cluster, how it is connected, and what befalls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Of everything that the text does not fix: delays, back-offs, challenges.
    pub seed: u64,
    /// Heartbeat, in microseconds.
    pub heartbeat: u64,
    /// Lease, in microseconds.
    pub lease: u64,
    /// Servers that serve and vote.
    pub servers: u64,
    /// Servers that only vote.
    pub witnesses: u64,
    /// Servers in the configuration, but not in the first roster, and blank.
    pub blank: u64,
    /// Virtual servers.
    pub virtuals: u64,
    /// Nobody is asked (`quorum = none`).
    pub none: u64,
    /// Addresses of each server.
    pub paths: u64,
    /// Beats travel as sealed bytes, as outside; otherwise as what the seal holds.
    pub sealed: u64,
    /// Each virtual server has a part of the beat to itself.
    pub parts: u64,
    /// All start after a power loss; otherwise electd finds an empty memory of this boot.
    pub cold: u64,
    /// Shortest and longest delay of a packet, in microseconds.
    pub delay: (u64, u64),
    /// The same of a message between two processes.
    pub ring: (u64, u64),
    /// Percent of packets lost.
    pub loss: u64,
    /// Percent of packets repeated.
    pub repeat: u64,
    /// Percent of packets that come up to a lease late.
    pub late: u64,
    /// How long writing the reservation takes.
    pub disk: u64,
    /// Shortest and longest time to shut a gate and read it back.
    pub gate: (u64, u64),
    /// Servers are preferred (`preempt`): 0 never, 1 fresher, 2 always.
    pub preempt: u64,
    /// Of each server, two decimal digits from the last on, 0 for 50.
    pub priorities: u64,
    /// What befalls it.
    pub acts: Vec<Act>,
    /// From then on nothing does, and all is mended.
    pub calm: u64,
}

macro_rules! fields {
    ($this:ident, $do:ident) => {
        $do!($this; seed heartbeat lease servers witnesses blank virtuals none paths sealed parts cold loss repeat late disk preempt priorities calm)
    };
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            seed: 1,
            heartbeat: 100_000,
            lease: 500_000,
            servers: 3,
            witnesses: 0,
            blank: 0,
            virtuals: 1,
            none: 0,
            paths: 1,
            sealed: 0,
            parts: 0,
            cold: 0,
            delay: (50, 300),
            ring: (10, 60),
            loss: 0,
            repeat: 0,
            late: 0,
            disk: 5000,
            gate: (100, 2000),
            preempt: 0,
            priorities: 0,
            acts: Vec::new(),
            calm: 3_000_000,
        }
    }
}

impl Schedule {
    /// How many servers there are.
    pub fn size(&self) -> usize {
        usize::try_from(self.servers + self.witnesses + self.blank)
            .map_or(NAMES.len(), |n| n.min(NAMES.len()))
    }

    /// How the elector makes sure to be alone.
    pub fn mode(&self) -> Mode {
        if self.none == 0 {
            Mode::Majority
        } else {
            Mode::None
        }
    }

    /// The longest lease that any server is given, in microseconds.
    pub fn longest_lease(&self) -> u64 {
        let changes = self
            .acts
            .iter()
            .filter(|a| matches!(a.kind, Kind::Lease | Kind::OneLease));
        changes.map(|a| a.n).fold(self.lease, u64::max)
    }

    /// How long something may still come of an act after it is over, in microseconds: links are made anew, a
    /// doctor learns, a server that lost its memory keeps silent, a former master stands back (R19).
    pub fn settles(&self, act: &Act) -> u64 {
        let lease = self.lease * 125 / 100;
        let silent = if matches!(act.kind, Kind::Power | Kind::Wipe | Kind::Restore) {
            lease
        } else {
            0
        };
        silent + lease * 23 / 10
    }

    /// Something befalls it before the last thing is forgotten, or all the time.
    pub fn crowded(&self) -> bool {
        let over = |a: &Act| a.at + a.span + self.settles(a);
        let acts: Vec<_> = self.acts.iter().filter(|a| a.at > 0).collect();
        let rough = self.loss + self.repeat + self.late + self.preempt + self.none > 0;
        rough
            || acts.windows(2).any(|w| w[1].at < over(w[0]))
            || acts.last().is_some_and(|a| self.calm < over(a))
    }

    /// Of the server of this place.
    pub fn priority(&self, place: usize) -> u32 {
        let digits =
            u32::try_from(place).map_or(0, |p| self.priorities / 100_u64.saturating_pow(p) % 100);
        if digits == 0 {
            50
        } else {
            u32::try_from(digits).unwrap_or(50)
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Self::default();
        macro_rules! show {
            ($this:ident; $($field:ident)*) => {
                $(if $this.$field != plain.$field { write!(f, concat!(stringify!($field), "={} "), $this.$field)?; })*
            };
        }
        let this = self;
        fields!(this, show);
        for (name, pair, usual) in [
            ("delay", self.delay, plain.delay),
            ("ring", self.ring, plain.ring),
            ("gate", self.gate, plain.gate),
        ] {
            if pair != usual {
                write!(f, "{name}={},{} ", pair.0, pair.1)?;
            }
        }
        writeln!(f)?;
        self.acts.iter().try_for_each(|act| writeln!(f, "{act}"))
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut schedule = Self::default();
        for line in text
            .lines()
            .map(|l| l.split('#').next().unwrap_or("").trim())
        {
            if line.starts_with("at=") {
                schedule.acts.push(read_act(line)?);
            } else {
                for word in line.split_whitespace() {
                    schedule.set(word)?;
                }
            }
        }
        Ok(schedule)
    }
}

impl Schedule {
    fn set(&mut self, word: &str) -> Result<(), String> {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("no key=value: {word}"))?;
        macro_rules! read {
            ($this:ident; $($field:ident)*) => {
                match key {
                    $(stringify!($field) => $this.$field = number(value)?,)*
                    "delay" => $this.delay = pair(value)?,
                    "ring" => $this.ring = pair(value)?,
                    "gate" => $this.gate = pair(value)?,
                    _ => return Err(format!("unknown key {key}")),
                }
            };
        }
        let this = self;
        fields!(this, read);
        Ok(())
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("no number: {text}"))
}

fn pair(text: &str) -> Result<(u64, u64), String> {
    let (low, high) = text
        .split_once(',')
        .ok_or_else(|| format!("no pair: {text}"))?;
    Ok((number(low)?, number(high)?))
}

fn read_act(line: &str) -> Result<Act, String> {
    let mut words = line.split_whitespace();
    let at = words
        .next()
        .and_then(|w| w.strip_prefix("at="))
        .unwrap_or("");
    let name = words.next().unwrap_or("");
    let kind = Kind::ALL.iter().find(|k| k.name() == name);
    let kind = kind.ok_or_else(|| format!("nothing is called {name}"))?;
    let mut act = Act::new(number(at)?, *kind);
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("no key=value: {word}"))?;
        match key {
            "who" => act.who = value.parse()?,
            "to" => act.to = value.parse()?,
            "role" => {
                let part = PARTS.iter().find(|p| p.name() == value);
                act.role = *part.ok_or_else(|| format!("no process is called {value}"))?;
            }
            "n" => act.n = number(value)?,
            "span" => act.span = number(value)?,
            _ => return Err(format!("unknown key {key}")),
        }
    }
    Ok(act)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_all_of_a_schedule_that_matters() {
        for seed in 0..300 {
            let schedule = crate::generate::schedule(seed, None);
            let text = schedule.to_string();
            let again: Schedule = text.parse().unwrap();
            assert_eq!(again.to_string(), text, "seed {seed}");
            if seed < 20 {
                let digest = |s: &Schedule| crate::World::run(s, false).digest;
                assert_eq!(digest(&schedule), digest(&again), "seed {seed}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, why) in [
            ("servers", "no key=value: servers"),
            ("colour=3", "unknown key colour"),
            ("servers=many", "no number: many"),
            ("at=5 dance who=master", "nothing is called dance"),
            ("at=5 kill who=omega", "no server is called omega"),
        ] {
            assert_eq!(text.parse::<Schedule>(), Err(why.into()));
        }
    }
}
