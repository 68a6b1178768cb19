//! One peer's clock: limits that hold for certain, and an estimate within them.

use crate::filter::Filter;
use mutants::{Mutant, planted};
use protocol::local::ring::FourTimes;
use std::{collections::VecDeque, time::Duration};

/// How fast the peer's clock and this server's raw one may drift apart, in nanoseconds a second (ppb): the peer slews
/// by 500 ppm, and the two crystals are 100 ppm off each at most.
pub const DRIFT: u64 = 700_000;

/// Longest time from sending a beat to the echo of it.
const EXCHANGE_MAX: u64 = 30_000_000_000;

/// Exchanges after which an estimate is given.
const SETTLED: u32 = 4;

/// Exchanges among which the quickest is looked for.
const WINDOW: usize = 64;

/// The latest time that a clock may show, in nanoseconds since 1970: 2116. Differences of two such times have room in 64 bits.
const SHOWS_MAX: u64 = i64::MAX as u64 / 2;

/// An estimate without a new exchange for so long is none.
const LIFE: u64 = 300_000_000_000;

/// One side's sharpest limit: its time, and the peer's clock minus the raw one (less [`PeerClock::base`]).
#[derive(Clone, Copy, Debug)]
struct Limit {
    at: u64,
    value: i64,
}

/// What is known of a peer's clock at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The peer's CLOCK_REALTIME minus this server's CLOCK_MONOTONIC_RAW, in nanoseconds.
    pub offset_ns: i64,
    /// It is off by this at most.
    pub bound_ns: u64,
    /// How much faster than the raw clock it runs, in parts of 10^9.
    pub rate_ppb: i64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct PeerClock {
    /// Taken from all values, so that they are small.
    base: i64,
    low: Option<Limit>,
    high: Option<Limit>,
    filter: Option<Filter>,
    /// Of the last exchanges: time on the way by both clocks, and how long the peer held it.
    delays: VecDeque<(i64, i64)>,
    newest: u64,
    /// Exchanges since the beginning or the last step, up to [`SETTLED`].
    settled: u32,
    steps: u64,
}

impl PeerClock {
    /// An exchange: `t1` and `t4` by this server's CLOCK_MONOTONIC_RAW, `t2` and `t3` by the peer's CLOCK_REALTIME.
    /// What makes no sense, or is not newer than the last one, is left out.
    pub fn add(&mut self, times: FourTimes) {
        let FourTimes { t1, t2, t3, t4 } = times;
        let (Some(taken), Some(held)) = (t4.checked_sub(t1), t3.checked_sub(t2)) else {
            return;
        };
        if taken > EXCHANGE_MAX || t4 <= self.newest || t3 > SHOWS_MAX || t4 > SHOWS_MAX {
            return;
        }
        // By the peer's clock it may have been held a little longer than it was.
        if held > taken + drift(taken) {
            return;
        }
        self.newest = t4;
        let (low, high) = (t3 as i64 - t4 as i64, t2 as i64 - t1 as i64);
        if self.filter.is_none() {
            self.base = low;
        }
        let low = Limit {
            at: t4,
            value: low.saturating_sub(self.base),
        };
        let high = Limit {
            at: t1,
            value: high.saturating_sub(self.base),
        };
        self.low = Some(self.low.map_or(low, |known| sharper(known, low, -1)));
        self.high = Some(self.high.map_or(high, |known| sharper(known, high, 1)));
        let (least, most) = self.limits(t4);
        if least > most {
            // No clock can have run like this: it was set.
            self.steps += 1;
            self.settled = 0;
            (self.low, self.high, self.filter) = (Some(low), Some(high), None);
            self.delays.clear();
        }
        self.estimate_from(low, high, taken as i64, held as i64);
        self.settled = (self.settled + 1).min(SETTLED);
    }

    fn estimate_from(&mut self, low: Limit, high: Limit, taken: i64, held: i64) {
        let middle = high.at + (low.at - high.at) / 2;
        let phase = low.value as f64 / 2.0 + high.value as f64 / 2.0;
        if self.delays.len() == WINDOW {
            self.delays.pop_front();
        }
        self.delays.push_back((taken - held, held));
        // The peer's clock told how long it held it, and runs at a rate of its own.
        let rate = self.filter.as_ref().map_or(0.0, Filter::rate) / 1e9;
        let delays = self
            .delays
            .iter()
            .map(|(d, held)| *d as f64 + *held as f64 * rate);
        let count = self.delays.len() as f64;
        let (quickest, delay) = delays.fold((f64::MAX, 0.0), |(least, _), d| (d.min(least), d));
        // All that it was longer under way may have been in one direction; and the quickest of few is none.
        let doubt = (delay - quickest + delay / count) / 2.0;
        let (least, most) = self.limits(low.at);
        match &mut self.filter {
            Some(filter) => filter.add(middle, phase, doubt),
            None => self.filter = Some(Filter::new(middle, phase, doubt)),
        }
        if let Some(filter) = &mut self.filter {
            let later = filter.rate() * (low.at - middle) as f64 / 1e9;
            filter.confine(least as f64 - later, most as f64 - later);
        }
    }

    /// What is known at a time of this server's CLOCK_MONOTONIC_RAW that is not before the last exchange.
    pub fn estimate(&self, at: u64) -> Option<Estimate> {
        let filter = self.filter.as_ref().filter(|_| self.settled >= SETTLED)?;
        if at.saturating_sub(self.newest) > LIFE {
            return None;
        }
        let (mut least, mut most) = self.limits(at);
        let offset = (filter.phase(at) as i64).min(most).max(least);
        if planted(Mutant::WaysAlike) {
            (least, most) = (offset, offset);
        }
        Some(Estimate {
            offset_ns: self.base.saturating_add(offset),
            bound_ns: most.abs_diff(offset).max(offset.abs_diff(least)),
            rate_ppb: filter.rate() as i64,
        })
    }

    /// How often the clock was set.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Least and most that the peer's clock may show (minus the raw one and the base).
    fn limits(&self, at: u64) -> (i64, i64) {
        let aged = |limit: Limit| drift(at.saturating_sub(limit.at)) as i64;
        let least = self
            .low
            .map_or(i64::MIN, |l| l.value.saturating_sub(aged(l)));
        let most = self
            .high
            .map_or(i64::MAX, |h| h.value.saturating_add(aged(h)));
        (least, most)
    }
}

/// The sharper of two limits; both give way at the same rate, so it stays the sharper one. `sign` is the direction in
/// which they do.
fn sharper(known: Limit, new: Limit, sign: i64) -> Limit {
    let later = new.at.max(known.at);
    let aged = |l: Limit| (sign * l.value).saturating_add(drift(later - l.at) as i64);
    if aged(new) <= aged(known) { new } else { known }
}

fn drift(span: u64) -> u64 {
    let span = Duration::from_nanos(span);
    u64::try_from(span.as_nanos() * u128::from(DRIFT) / 1_000_000_000).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// An exchange begun at `at`: the peer is `ahead`, the ways took `out` and `back` (all nanoseconds).
    fn exchange(at: u64, ahead: u64, out: u64, back: u64) -> FourTimes {
        FourTimes {
            t1: at,
            t2: at + out + ahead,
            t3: at + out + 50 * MS + ahead,
            t4: at + out + 50 * MS + back,
        }
    }

    fn after(exchanges: &[FourTimes]) -> PeerClock {
        let mut clock = PeerClock::default();
        exchanges.iter().for_each(|e| clock.add(*e));
        clock
    }

    #[test]
    fn before_four_exchanges_nothing_is_said() {
        let all: Vec<_> = (1..=4)
            .map(|i| exchange(i * 100 * MS, 5 * MS, 1000, 1000))
            .collect();
        assert_eq!(after(&all[..3]).estimate(500 * MS), None);
        assert!(after(&all).estimate(500 * MS).is_some());
    }

    #[test]
    fn the_quickest_way_in_each_direction_limits_the_error() {
        let ahead = 1_700_000_000_000 * MS;
        // Never both ways quick at once.
        let all: Vec<_> = (1..=20)
            .map(|i| {
                let (out, back) = if i % 2 == 0 {
                    (50_000, MS)
                } else {
                    (MS, 50_000)
                };
                exchange(i * 100 * MS, ahead, out, back)
            })
            .collect();
        let clock = after(&all);
        let now = all[19].t4;
        let estimate = clock.estimate(now).unwrap();
        let error = estimate.offset_ns.abs_diff(ahead as i64);
        assert!(error <= estimate.bound_ns, "{estimate:?}");
        // Half a millisecond each would be the limit of a single exchange.
        assert!(estimate.bound_ns < 330_000, "{estimate:?}");
        assert_eq!(clock.steps(), 0);
    }

    #[test]
    fn the_bound_grows_with_age_and_ends() {
        let all: Vec<_> = (1..=9)
            .map(|i| exchange(i * 100 * MS, 0, 1000, 1000))
            .collect();
        let clock = after(&all);
        let now = all[8].t4;
        let [fresh, old] = [now, now + 10_000 * MS].map(|at| clock.estimate(at).unwrap().bound_ns);
        assert_eq!(old - fresh, 7 * MS);
        assert_eq!(clock.estimate(now + LIFE + 1), None);
    }

    #[test]
    fn a_step_is_noticed_and_believed_after_four_exchanges() {
        let mut clock = after(
            &(1..=20)
                .map(|i| exchange(i * 100 * MS, 0, 1000, 1000))
                .collect::<Vec<_>>(),
        );
        for i in 21..=24 {
            assert_eq!(
                clock.estimate(i * 100 * MS).is_some(),
                i == 21,
                "exchange {i}"
            );
            clock.add(exchange(i * 100 * MS, 80 * MS, 1000, 1000));
        }
        let estimate = clock.estimate(2460 * MS).unwrap();
        assert_eq!(clock.steps(), 1);
        assert!(
            estimate.offset_ns.abs_diff(80 * MS as i64) < 2_000,
            "{estimate:?}"
        );
    }

    #[test]
    fn nonsense_and_copies_of_the_past_are_left_out() {
        let good = exchange(100 * MS, 0, 1000, 1000);
        let table = [
            FourTimes {
                t4: good.t1 - 1,
                ..good
            },
            FourTimes {
                t3: good.t2 - 1,
                ..good
            },
            FourTimes {
                t3: good.t3 + MS,
                ..good
            },
            FourTimes {
                t3: u64::MAX,
                ..good
            },
            FourTimes {
                t2: SHOWS_MAX + 1,
                t3: SHOWS_MAX + 1,
                ..good
            },
            FourTimes {
                t1: 0,
                t4: EXCHANGE_MAX + 1,
                ..good
            },
        ];
        for (i, times) in table.into_iter().enumerate() {
            let mut clock = after(&[times; 9]);
            assert_eq!(clock.newest, 0, "row {i}");
            clock.add(good);
            assert_eq!(clock.newest, good.t4);
        }
        assert_eq!(after(&[good; 9]).estimate(good.t4), None);
    }
}
