//! A server's clock: of the last samples, believe the one that was quickest under way.

use protocol::local::{ring::FourTimes, status::OffsetStatus};
use std::collections::VecDeque;

/// Samples remembered for each server (RFC 5905, section 10, keeps as many).
const SAMPLES: usize = 8;

/// The last samples of one server's clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offsets(VecDeque<FourTimes>);

impl Offsets {
    /// Takes a sample. A negative delay (a clock was set in between) proves nothing and is left out.
    pub(crate) fn add(&mut self, times: FourTimes) {
        if times.delay_ns() < 0 {
            return;
        }
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(times);
    }

    /// The best estimate; the newer of two equally good samples.
    pub(crate) fn best(&self) -> Option<OffsetStatus> {
        let best = self.0.iter().rev().min_by_key(|times| times.delay_ns())?;
        Some(OffsetStatus {
            offset_us: best.offset_ns() / 1000,
            bound_us: best.delay_ns().unsigned_abs().div_ceil(2000),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The peer is `offset` ahead; out and back take so long (all in nanoseconds).
    fn sample(offset: i64, out: u64, back: u64) -> FourTimes {
        let (t1, ahead) = (1_000_000_000_u64, |t: u64| t.saturating_add_signed(offset));
        FourTimes {
            t1,
            t2: ahead(t1 + out),
            t3: ahead(t1 + out + 500),
            t4: t1 + out + 500 + back,
        }
    }

    #[test]
    fn without_samples_nothing_is_known() {
        assert_eq!(Offsets::default().best(), None);
    }

    #[test]
    fn the_quickest_of_the_last_eight_is_believed() {
        let mut offsets = Offsets::default();
        offsets.add(sample(-7_000_000, 100_000, 100_000));
        for _ in 1..SAMPLES {
            offsets.add(sample(-7_000_000, 900_000, 100_000));
        }
        let best = OffsetStatus {
            offset_us: -7_000,
            bound_us: 100,
        };
        assert_eq!(offsets.best(), Some(best));
        // A ninth pushes the first one out: the asymmetry shows, but within the bound.
        offsets.add(sample(-7_000_000, 900_000, 100_000));
        assert_eq!(
            offsets.best(),
            Some(OffsetStatus {
                offset_us: -6_600,
                bound_us: 500
            })
        );
    }

    #[test]
    fn a_sample_that_arrived_before_it_left_is_ignored() {
        let mut offsets = Offsets::default();
        offsets.add(FourTimes {
            t1: 2_000,
            t2: 1_000,
            t3: 1_000,
            t4: 1_500,
        });
        assert_eq!(offsets.best(), None);
    }
}
