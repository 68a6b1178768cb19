//! Time and precedence of the measuring threads.

use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use std::time::Duration;

/// One request each so many nanoseconds.
pub(crate) const PERIOD: u64 = 1_000_000;

/// Now on the clock that all figures of the lab are taken from.
pub(crate) fn now() -> u64 {
    let Ok(time) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    nanos(Duration::from(time))
}

/// The same as a span, to compare with what [`Judge::answers`](crate::Judge::answers) tells.
pub fn clock() -> Duration {
    Duration::from_nanos(now())
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Sleeps until that instant.
pub(crate) fn sleep_until(instant: u64) {
    let time = Duration::from_nanos(instant).into();
    while clock_nanosleep(
        ClockId::CLOCK_MONOTONIC,
        ClockNanosleepFlags::TIMER_ABSTIME,
        &time,
    ) == Err(nix::Error::EINTR)
    {}
}

/// The instants of a beat; those missed by a late thread are left out, never made up for.
pub(crate) struct Ticks(u64);

impl Ticks {
    pub(crate) fn start() -> Self {
        Self(now())
    }

    /// Waits for the next one, `period` after the last.
    pub(crate) fn next(&mut self, period: u64) {
        let now = now();
        self.0 += period;
        if self.0 < now {
            self.0 += (now - self.0) / period * period;
        } else {
            sleep_until(self.0);
        }
    }
}
