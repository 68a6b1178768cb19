//! The wall clock beside the one that nobody sets.

use protocol::BootTime;

/// How fast the wall clock may be slewed against CLOCK_MONOTONIC_RAW, in parts of 10^9, and how coarsely both are read
/// together, in nanoseconds: what goes beyond has been set.
const SLEW: u64 = 1_000_000;
const COARSE: u64 = 5_000;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock {
    last: Option<(u64, i64)>,
    /// Since then nobody is known to have set it.
    pub even: BootTime,
}

impl WallClock {
    /// CLOCK_MONOTONIC_RAW, and by how much CLOCK_REALTIME is ahead of it, in nanoseconds.
    pub fn read(&mut self) -> (u64, i64) {
        let (raw, lead) = daemon::raw_and_lead_ns();
        self.note(daemon::now(), raw, lead);
        (raw, lead)
    }

    fn note(&mut self, now: BootTime, raw: u64, lead: i64) {
        let slewed = |(before, known): (u64, i64)| {
            let span = u128::from(raw.saturating_sub(before)) * u128::from(SLEW) / 1_000_000_000;
            u128::from(lead.abs_diff(known)) <= span + u128::from(COARSE)
        };
        if !self.last.is_none_or(slewed) {
            self.even = now;
        }
        self.last = Some((raw, lead));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_either_way_is_noticed_and_one_that_is_slewed_is_not() {
        const SECOND: u64 = 1_000_000_000;
        let mut wall = WallClock::default();
        for (i, (lead, even)) in [
            (0, 0),
            (500_000, 0),
            (0, 0),
            (2_000_000, 3),
            (2_500_000, 3),
            (-1_000_000_000_000, 5),
        ]
        .into_iter()
        .enumerate()
        {
            wall.note(BootTime(i as u64), i as u64 * SECOND, lead);
            assert_eq!(wall.even, BootTime(even), "{i}");
        }
    }
}
