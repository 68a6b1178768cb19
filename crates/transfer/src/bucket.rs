//! A token bucket: how long whoever has moved some bytes waits until the rate is kept.

/// So much may go at once, in nanoseconds of the rate: fine enough that no second has more than a few percent too many.
const BURST: u64 = 10_000_000;

/// See the module. Time is whatever nanoseconds the caller counts.
#[derive(Debug)]
pub struct Bucket {
    rate: u64,
    /// All that went is paid for at this moment.
    paid: u64,
}

impl Bucket {
    /// Of so many bytes per second.
    pub fn new(rate: u64) -> Self {
        let rate = rate.max(1);
        Self { rate, paid: 0 }
    }

    /// So many bytes go now; none other before so many nanoseconds have passed.
    pub fn take(&mut self, now: u64, bytes: u64) -> u64 {
        let costs = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        let costs = u64::try_from(costs).unwrap_or(u64::MAX);
        let from = self.paid.max(now.saturating_sub(BURST));
        self.paid = from.saturating_add(costs);
        self.paid.saturating_sub(now)
    }

    /// So many bytes at once are little enough, and not too little to be worth a call.
    pub fn piece(&self) -> usize {
        usize::try_from(self.rate / 50).map_or(64 * 1024, |piece| piece.clamp(512, 64 * 1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Bytes that go in each of some seconds when as many are moved as may be, after a pause; a call takes `slow`.
    fn seconds(rate: u64, pause: u64, slow: u64) -> Vec<u64> {
        let mut bucket = Bucket::new(rate);
        let mut now = pause;
        let mut went = vec![0; 5];
        loop {
            let second = usize::try_from((now - pause) / SECOND).unwrap_or(usize::MAX);
            let Some(count) = went.get_mut(second) else {
                return went;
            };
            let piece = bucket.piece() as u64;
            *count += piece;
            now += slow + bucket.take(now + slow, piece);
        }
    }

    #[test]
    fn in_no_second_more_goes_than_the_rate_allows_and_hardly_less() {
        for rate in [1024, 50_000, 10_000_000, 3_000_000_000] {
            for (pause, slow) in [(0, 0), (1000 * SECOND, 0), (7 * SECOND, 3000)] {
                for count in seconds(rate, pause, slow) {
                    let share = count as f64 / rate as f64;
                    assert!(
                        (0.97..1.53).contains(&share) && (rate < 50_000 || share < 1.04),
                        "{share} of {rate} after {pause} with {slow}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_did_not_go_is_not_saved_up() {
        let mut bucket = Bucket::new(1000);
        assert!(bucket.take(3600 * SECOND, 1000) > SECOND * 9 / 10);
        let wait = bucket.take(7200 * SECOND, 1000);
        assert!(wait > SECOND * 9 / 10 && wait <= SECOND);
    }

    #[test]
    fn numbers_beyond_reason_are_no_trouble() {
        let mut bucket = Bucket::new(0);
        assert_eq!(bucket.take(5, u64::MAX), u64::MAX - 5);
        assert_eq!(bucket.take(u64::MAX, 1), 0);
    }
}
