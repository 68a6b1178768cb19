//! What to do about this server's clock: a state machine that is asked once a second.

use crate::agreement::{Interval, outvoted};
use protocol::ServerName;
use std::fmt;

/// Furthest from its own that the clock's rate is ever made, in parts of 10^9: the kernel's own limit.
pub const RATE_MAX: i64 = 500_000;

/// A clock at rest runs within this of true, in parts of 10^9; a master's clock beyond it runs wild.
const RATE_SANE: i64 = 300_000;

/// What is further off at the start is set, what is nearer slewed, in nanoseconds.
pub const STEP_MIN: i64 = 128_000_000;

/// What is further off is not believed: a day.
pub const STEP_SANE: i64 = 86_400_000_000_000;

/// An offset up to this is made good slowly, so that the noise of the network is not passed on, in nanoseconds.
const NEAR: i64 = 200_000;

/// A master whose clock has been as near as the first is not followed any more once a majority agrees that it is
/// further off than the second, in nanoseconds;
const LEAP: (i64, u64) = (1_000_000, 10_000_000);

/// unless nothing was known of it for so many seconds: clocks left alone may have gone apart by themselves.
const ALONE: u32 = 60;

/// Seconds in which an offset is made good, if the limit of the rate permits, far and near.
const HASTE: (i64, i64) = (2, 8);

/// The clock's own rate follows what is measured by this part a second.
const LEARN: i64 = 16;

/// The rate is remembered after so many seconds of following, and again if it has changed by so much.
const REMEMBER: (u32, i64) = (600, 100);

/// The kernel may round a rate by so much.
const ROUNDING: u64 = 1;

/// Two clocks cannot be read at once: so much may lie between, in nanoseconds.
const READING: u64 = 5_000_000;

/// The master's clock as it is seen here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whose it is.
    pub server: ServerName,
    /// The master's clock minus this server's.
    pub interval: Interval,
    /// How much faster than this server's raw clock it runs, in parts of 10^9.
    pub rate_ppb: i64,
}

/// What is known at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The kernel's rate, read back.
    pub rate_ppb: i64,
    /// CLOCK_REALTIME minus CLOCK_BOOTTIME: changes only when the clock is set, for both are slewed alike.
    pub since_boot_ns: i64,
    /// This server is master of something, or about to be: its clock is not set.
    pub holds: bool,
    /// The master whose clock all follow, if it is another server and its clock is known.
    pub source: Option<Source>,
    /// The clocks of the other slaves, as far as known, minus this server's.
    pub others: Vec<Interval>,
}

/// To be done in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the clock run so much faster, in parts of 10^9.
    Rate(i64),
    /// Set the clock forward (back, if negative) by so many nanoseconds.
    Step(i64),
    /// Keep this rate for the next start.
    Remember(i64),
    /// Tell the operator; comes once, until it has changed.
    Alarm(Alarm),
}

/// Why the clock is not steered though it could be, or not as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Somebody else has changed the rate: from now on nothing is done until the next start.
    SecondWriter {
        /// As it was made here.
        wrote: i64,
        /// As it is.
        found: i64,
    },
    /// Somebody else has set the clock by so much, with the same consequence.
    Set(i64),
    /// A majority of the servers agrees against the master.
    Outvoted(ServerName),
    /// The master's clock runs too fast or too slow for a clock.
    Wild(ServerName, i64),
    /// So far off cannot be right.
    Absurd(ServerName, i64),
    /// It is too far to be made good soon, and may not be set now.
    Far(ServerName, i64),
    /// All is well again.
    Over,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: &i64| *ns as f64 / 1e9;
        match self {
            Self::SecondWriter { wrote, found } => write!(
                f,
                "somebody else steers this clock (rate {found} ppb, not {wrote}): syncd leaves it alone from now on; \
                 end the other, or write discipline = \"observe\""
            ),
            Self::Set(ns) => write!(
                f,
                "somebody else has set this clock by {:.3} s: syncd leaves it alone from now on, until it is restarted",
                seconds(ns)
            ),
            Self::Outvoted(server) => write!(
                f,
                "the clock of master {server} is not followed: a majority of the servers agrees against it; set it \
                 right, or hand over"
            ),
            Self::Wild(server, rate) => write!(
                f,
                "the clock of master {server} is not followed: it runs {rate} ppb off, as no clock does by itself"
            ),
            Self::Absurd(server, ns) => write!(
                f,
                "the clock of master {server} is not followed: it is {:.0} s off; set the one that is wrong",
                seconds(ns)
            ),
            Self::Far(server, ns) => write!(
                f,
                "this clock is {:.3} s off that of master {server} and is only slewed, 0.5 ms a second; to set it at \
                 once, restart syncd while this server holds no address",
                seconds(ns)
            ),
            Self::Over => f.write_str("the clock follows the master's again"),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Discipline {
    /// What clocks may differ by, in nanoseconds.
    skew_ns: u64,
    /// At which rate this clock shows the master's time, as far as learned.
    own: i64,
    wrote: Option<i64>,
    /// [`Reading::since_boot_ns`], as it should be.
    since_boot: Option<i64>,
    /// Once it has followed or held an address, the clock is never set.
    started: bool,
    stopped: bool,
    followed: u32,
    /// The master whose clock has been like this one, and seconds for which nothing is known of it.
    like: Option<(ServerName, u32)>,
    remembered: Option<i64>,
    alarm: Option<Alarm>,
}

impl Discipline {
    /// With what was remembered, or else the rate that the kernel has, unless that is rather what a slew has left.
    /// `fresh` if the clock may still be set.
    pub fn new(remembered: Option<i64>, kernel: i64, skew_ns: u64, fresh: bool) -> Self {
        let sane = |rate: &i64| rate.abs() <= RATE_SANE;
        let own = remembered
            .filter(sane)
            .or(Some(kernel).filter(sane))
            .unwrap_or(0);
        Self {
            skew_ns,
            own,
            wrote: None,
            since_boot: None,
            started: !fresh,
            stopped: false,
            followed: 0,
            like: None,
            remembered,
            alarm: None,
        }
    }

    /// Somebody else was noticed: nothing is done any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The clock's own rate as far as learned, in parts of 10^9.
    pub fn own_rate(&self) -> i64 {
        self.own
    }

    /// A second has passed.
    pub fn handle(&mut self, reading: &Reading) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stopped {
            return actions;
        }
        if let Some(alarm) = self.second_writer(reading) {
            self.stopped = true;
            return vec![Action::Alarm(alarm)];
        }
        self.started |= reading.holds;
        let source = reading.source.as_ref();
        self.compare(source);
        let alarm = source.and_then(|s| self.objection(s, &reading.others));
        let follow = source.filter(|_| alarm.is_none());
        let far = follow.and_then(|s| self.step_or_far(s, &mut actions));
        self.tell(source.is_some(), alarm.or(far), &mut actions);
        // Without a master to follow, being it, the clock goes on at its own rate, unmoved.
        let mut rate = self.own;
        if let Some(source) = follow {
            self.started = true;
            self.learn(source.rate_ppb, &mut actions);
            let offset = match actions.first() {
                Some(Action::Step(set)) => {
                    self.since_boot = Some(reading.since_boot_ns.saturating_add(*set));
                    0
                }
                _ => source.interval.offset_ns,
            };
            let seconds = if offset.abs() > NEAR {
                HASTE.0
            } else {
                HASTE.1
            };
            rate = self.own.saturating_add(offset / seconds);
        }
        let rate = rate.clamp(-RATE_MAX, RATE_MAX);
        if rate != reading.rate_ppb || self.wrote.is_none() {
            self.wrote = Some(rate);
            actions.push(Action::Rate(rate));
        }
        actions
    }

    fn second_writer(&mut self, reading: &Reading) -> Option<Alarm> {
        let (found, since_boot) = (reading.rate_ppb, reading.since_boot_ns);
        let before = self.since_boot.replace(since_boot).unwrap_or(since_boot);
        match self.wrote {
            Some(wrote) if wrote.abs_diff(found) > ROUNDING => {
                Some(Alarm::SecondWriter { wrote, found })
            }
            _ if before.abs_diff(since_boot) > READING => Some(Alarm::Set(since_boot - before)),
            _ => None,
        }
    }

    /// Notes whether this master's clock has been like this one.
    fn compare(&mut self, source: Option<&Source>) {
        let Some(source) = source else {
            let like = self.like.take().map(|(server, alone)| (server, alone + 1));
            self.like = like.filter(|(_, alone)| *alone < ALONE);
            return;
        };
        let near = source.interval.offset_ns.abs() < LEAP.0;
        let known = self.like.as_ref().is_some_and(|l| l.0 == source.server);
        self.like = (near || known).then(|| (source.server.clone(), 0));
    }

    /// Why this master's clock is not to be followed.
    fn objection(&self, source: &Source, others: &[Interval]) -> Option<Alarm> {
        let server = || source.server.clone();
        let offset = source.interval.offset_ns;
        let own = Interval {
            offset_ns: 0,
            bound_ns: 0,
        };
        let all: Vec<_> = others.iter().copied().chain([own]).collect();
        let skew = match self.like {
            Some(_) => self.skew_ns.min(LEAP.1),
            None => self.skew_ns,
        };
        if outvoted(source.interval, &all, skew) {
            Some(Alarm::Outvoted(server()))
        } else if offset.abs() > STEP_SANE {
            Some(Alarm::Absurd(server(), offset))
        } else if source.rate_ppb.abs() > RATE_SANE {
            Some(Alarm::Wild(server(), source.rate_ppb))
        } else {
            None
        }
    }

    /// Sets the clock at the start; later says that it is far off.
    fn step_or_far(&self, source: &Source, actions: &mut Vec<Action>) -> Option<Alarm> {
        let offset = source.interval.offset_ns;
        if !self.started && offset.abs() > STEP_MIN {
            actions.push(Action::Step(offset));
            return None;
        }
        (offset.unsigned_abs() > self.skew_ns).then(|| Alarm::Far(source.server.clone(), offset))
    }

    fn learn(&mut self, rate: i64, actions: &mut Vec<Action>) {
        self.followed = self.followed.saturating_add(1);
        let miss = rate - self.own;
        // The first seconds of an estimate are rough, and what is learned is to last.
        self.own += if self.followed < 10 { 0 } else { miss / LEARN };
        let known = self
            .remembered
            .is_some_and(|r| r.abs_diff(self.own) <= REMEMBER.1.unsigned_abs());
        if self.followed >= REMEMBER.0 && !known {
            self.followed = 10;
            self.remembered = Some(self.own);
            actions.push(Action::Remember(self.own));
        }
    }

    /// An alarm once, until it is another or over; how far off or fast exactly does not make it another.
    fn tell(&mut self, judged: bool, alarm: Option<Alarm>, actions: &mut Vec<Action>) {
        use std::mem::discriminant;
        let same = alarm.as_ref().map(discriminant) == self.alarm.as_ref().map(discriminant);
        if same || !judged {
            return;
        }
        actions.push(Action::Alarm(alarm.clone().unwrap_or(Alarm::Over)));
        self.alarm = alarm;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const SKEW: u64 = 1_000_000_000;

    fn reading(offset_ns: i64) -> Reading {
        Reading {
            rate_ppb: 0,
            since_boot_ns: 0,
            holds: false,
            source: Some(Source {
                server: "alpha".parse().unwrap(),
                interval: Interval {
                    offset_ns,
                    bound_ns: 50_000,
                },
                rate_ppb: 0,
            }),
            others: Vec::new(),
        }
    }

    fn holding(offset_ns: i64) -> Reading {
        Reading {
            holds: true,
            ..reading(offset_ns)
        }
    }

    fn master() -> Reading {
        Reading {
            source: None,
            ..holding(0)
        }
    }

    fn new() -> Discipline {
        Discipline::new(None, 0, SKEW, true)
    }

    fn alarm(actions: &[Action]) -> Option<&Alarm> {
        actions.iter().find_map(|a| match a {
            Action::Alarm(alarm) => Some(alarm),
            _ => None,
        })
    }

    #[test]
    fn far_off_at_the_start_is_set_once_and_slewed_ever_after() {
        let mut discipline = new();
        assert_eq!(
            discipline.handle(&reading(-3_000 * MS)),
            [Action::Step(-3_000 * MS), Action::Rate(0)]
        );
        let later = discipline.handle(&Reading {
            since_boot_ns: -3_000 * MS,
            ..reading(-3_000 * MS)
        });
        assert!(matches!(alarm(&later), Some(Alarm::Far(..))), "{later:?}");
        assert_eq!(later.last(), Some(&Action::Rate(-RATE_MAX)));
    }

    #[test]
    fn nothing_is_set_under_a_held_address_nor_after_one() {
        let mut discipline = new();
        assert_eq!(discipline.handle(&master()), [Action::Rate(0)]);
        let after = discipline.handle(&reading(9_000 * MS));
        assert!(
            !after.iter().any(|a| matches!(a, Action::Step(_))),
            "{after:?}"
        );
    }

    #[test]
    fn master_of_one_and_slave_of_the_first_slews_and_is_not_set() {
        let mut discipline = new();
        let actions = discipline.handle(&holding(9_000 * MS));
        assert_eq!(actions.last(), Some(&Action::Rate(RATE_MAX)));
        assert!(!actions.iter().any(|a| matches!(a, Action::Step(_))));
    }

    #[test]
    fn later_than_the_start_and_after_a_crash_in_a_slew_nothing_is_taken_for_granted() {
        let mut discipline = Discipline::new(None, RATE_MAX, SKEW, false);
        let actions = discipline.handle(&reading(500 * MS));
        assert_eq!(actions, [Action::Rate(RATE_MAX)]);
        assert_eq!(discipline.own_rate(), 0);
    }

    #[test]
    fn a_new_master_keeps_its_own_rate_whatever_it_was_slewing() {
        let mut discipline = Discipline::new(Some(7_000), 0, SKEW, true);
        let mut now = reading(90 * MS);
        now.source.as_mut().unwrap().rate_ppb = 7_000;
        assert_eq!(discipline.handle(&now), [Action::Rate(RATE_MAX)]);
        let master = Reading {
            rate_ppb: RATE_MAX,
            ..master()
        };
        assert_eq!(discipline.handle(&master), [Action::Rate(7_000)]);
    }

    #[test]
    fn a_second_writer_ends_it_for_good_and_aloud() {
        let mut discipline = new();
        discipline.handle(&reading(0));
        let found = Reading {
            rate_ppb: 40,
            ..reading(0)
        };
        assert_eq!(
            discipline.handle(&found),
            [Action::Alarm(Alarm::SecondWriter {
                wrote: 0,
                found: 40
            })]
        );
        assert!(discipline.is_stopped());
        assert_eq!(discipline.handle(&reading(50 * MS)), []);
    }

    #[test]
    fn a_clock_set_by_somebody_else_ends_it_too() {
        let mut discipline = new();
        discipline.handle(&reading(0));
        let set = Reading {
            since_boot_ns: 6 * MS,
            ..reading(0)
        };
        assert_eq!(discipline.handle(&set), [Action::Alarm(Alarm::Set(6 * MS))]);
        assert!(discipline.is_stopped());
    }

    #[test]
    fn a_master_that_is_wrong_is_not_followed() {
        let against = Interval {
            offset_ns: 0,
            bound_ns: 1_000,
        };
        let mut outvoted = reading(5_000 * MS);
        outvoted.others = vec![against];
        let mut wild = reading(1_000);
        wild.source.as_mut().unwrap().rate_ppb = -301_000;
        for (now, word) in [
            (outvoted, "majority"),
            (wild, "runs -301000 ppb"),
            (reading(2 * STEP_SANE), "172800 s off"),
        ] {
            let mut discipline = new();
            let actions = discipline.handle(&now);
            assert!(
                alarm(&actions).unwrap().to_string().contains(word),
                "{actions:?}"
            );
            assert_eq!(actions.last(), Some(&Action::Rate(0)));
            assert_eq!(discipline.handle(&now), [], "said once");
            assert_eq!(alarm(&discipline.handle(&reading(0))), Some(&Alarm::Over));
        }
    }

    #[test]
    fn a_remembered_rate_is_the_first_one_and_a_learned_one_is_remembered() {
        let mut discipline = Discipline::new(Some(-20_000), 123, SKEW, true);
        let mut now = reading(0);
        now.source = None;
        assert_eq!(discipline.handle(&now), [Action::Rate(-20_000)]);
        let mut remembered = Vec::new();
        for _ in 0..1300 {
            let mut now = reading(0);
            now.source.as_mut().unwrap().rate_ppb = 30_000;
            now.rate_ppb = discipline.own_rate();
            for action in discipline.handle(&now) {
                if let Action::Remember(rate) = action {
                    remembered.push(rate);
                }
            }
        }
        assert_eq!(remembered.len(), 1, "{remembered:?}");
        assert!(remembered[0].abs_diff(30_000) < 20);
    }
}
