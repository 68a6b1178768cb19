//! Time: true time, which nobody in the world can see, and each server's clocks, which are all it has.

use protocol::BootTime;

/// Nanoseconds of true time since the world began.
pub type Time = u64;

/// A time that never comes.
pub const NEVER: Time = u64::MAX;

/// A server's CLOCK_BOOTTIME: local = base + (true - since) x rate / 1000. A rate of 0 is a clock that stands.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it showed at `since`.
    pub base: u64,
    /// Since when it runs at this rate.
    pub since: Time,
    /// Nanoseconds that it shows for 1000 true ones.
    pub rate: u64,
}

impl Clock {
    /// What it shows.
    pub fn local(&self, at: Time) -> BootTime {
        BootTime(self.base + (at - self.since) * self.rate / 1000)
    }

    /// The first true time at which this clock shows `local`; [`NEVER`] if it stands.
    pub fn true_time(&self, local: BootTime) -> Time {
        let ahead = local.0.saturating_sub(self.base);
        if ahead == 0 {
            return self.since;
        }
        if self.rate == 0 || ahead > u64::MAX / 1000 {
            return NEVER;
        }
        self.since + (ahead * 1000).div_ceil(self.rate)
    }

    /// Another rate from `now` on. A slewed clock does not step: rounding never goes back.
    pub fn set_rate(&mut self, now: Time, rate: u64) {
        *self = Self {
            base: self.local(now).0,
            since: now,
            rate,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_first_at_the_true_time_told() {
        for rate in [900, 1000, 1120] {
            let clock = Clock {
                base: 5,
                since: 7,
                rate,
            };
            for local in 6..2000 {
                let at = clock.true_time(BootTime(local));
                assert!(clock.local(at).0 >= local && clock.local(at - 1).0 < local);
            }
        }
    }

    #[test]
    fn a_clock_that_stands_shows_nothing_later() {
        let mut clock = Clock {
            base: 0,
            since: 0,
            rate: 1000,
        };
        clock.set_rate(50, 0);
        assert_eq!(clock.local(9000), BootTime(50));
        assert_eq!(clock.true_time(BootTime(51)), NEVER);
        clock.set_rate(9000, 1000);
        assert_eq!(clock.true_time(BootTime(51)), 9001);
    }
}
