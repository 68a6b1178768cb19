//! Keeps what a stranger can cause from filling the log.

use protocol::BootTime;
use std::{collections::BTreeMap, time::Duration};

/// Things told apart; whatever comes on top shares one line.
const KEYS_MAX: usize = 256;

/// Lets a line about one thing through now and then, and counts the others.
#[derive(Debug)]
pub struct Limiter {
    interval: Duration,
    seen: BTreeMap<String, (BootTime, u64)>,
}

impl Limiter {
    /// Lets one line about each thing through in every `interval`.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            seen: BTreeMap::new(),
        }
    }

    /// Logs the warning, or only counts it.
    pub fn warn(&mut self, now: BootTime, key: &str, line: impl FnOnce() -> String) {
        match self.allow(now, key) {
            Some(0) => log::warn!("{}", line()),
            Some(held) => log::warn!("{} (and {held} more since the last such line)", line()),
            None => {}
        }
    }

    /// If a line about `key` may be written: how many were not since the last one.
    pub fn allow(&mut self, now: BootTime, key: &str) -> Option<u64> {
        let full = self.seen.len() >= KEYS_MAX && !self.seen.contains_key(key);
        let key = if full { "" } else { key };
        match self.seen.get_mut(key) {
            Some((last, held)) if now.since(*last) < self.interval => {
                *held += 1;
                None
            }
            Some((last, held)) => {
                *last = now;
                Some(std::mem::take(held))
            }
            None => {
                self.seen.insert(key.to_owned(), (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    #[test]
    fn one_line_an_interval_for_each_thing_and_the_rest_counted() {
        let mut limiter = Limiter::new(INTERVAL);
        let start = BootTime(5);
        assert_eq!(limiter.allow(start, "a"), Some(0));
        for _ in 0..10 {
            assert_eq!(limiter.allow(start, "a"), None);
        }
        assert_eq!(limiter.allow(start + INTERVAL / 2, "a"), None);
        assert_eq!(limiter.allow(start + INTERVAL / 2, "b"), Some(0));
        assert_eq!(limiter.allow(start + INTERVAL, "a"), Some(11));
        assert_eq!(limiter.allow(start + INTERVAL * 2, "a"), Some(0));
    }

    #[test]
    fn ever_new_things_do_not_fill_the_memory() {
        let mut limiter = Limiter::new(INTERVAL);
        for i in 0..10 * KEYS_MAX {
            limiter.allow(BootTime(0), &i.to_string());
        }
        assert!(limiter.seen.len() <= KEYS_MAX + 1);
    }
}
