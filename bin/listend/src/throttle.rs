//! What a stranger can cause is logged at intervals, however often he causes it.

use protocol::BootTime;
use std::{collections::BTreeMap, time::Duration};

/// Shortest time between two lines of one kind.
const INTERVAL: Duration = Duration::from_secs(10);

/// Remembers, for each kind of line, when it was last logged and how often it was not.
#[derive(Debug, Default)]
pub struct Throttle(BTreeMap<&'static str, (BootTime, u64)>);

impl Throttle {
    /// Logs the warning, or only counts it.
    pub fn warn(&mut self, now: BootTime, kind: &'static str, line: impl FnOnce() -> String) {
        if let Some(missed) = self.admit(now, kind) {
            match missed {
                0 => log::warn!("{}", line()),
                n => log::warn!("{} ({n} more like it since the last such line)", line()),
            }
        }
    }

    /// If a line may be logged now: how many were not since the last one.
    fn admit(&mut self, now: BootTime, kind: &'static str) -> Option<u64> {
        match self.0.get_mut(kind) {
            Some((last, missed)) if now.since(*last) < INTERVAL => {
                *missed += 1;
                None
            }
            Some((last, missed)) => {
                *last = now;
                Some(std::mem::take(missed))
            }
            None => {
                self.0.insert(kind, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_gives_one_line_an_interval_and_hides_no_other_kind() {
        let mut throttle = Throttle::default();
        let start = BootTime(1);
        assert_eq!(throttle.admit(start, "a"), Some(0));
        for _ in 0..1000 {
            assert_eq!(throttle.admit(start + INTERVAL / 2, "a"), None);
        }
        assert_eq!(throttle.admit(start + INTERVAL / 2, "b"), Some(0));
        assert_eq!(throttle.admit(start + INTERVAL, "a"), Some(1000));
        assert_eq!(throttle.admit(start + INTERVAL * 2, "a"), Some(0));
    }
}
