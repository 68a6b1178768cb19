//! Keeps what a stranger can cause from filling the log.

use protocol::BootTime;
use std::{collections::BTreeMap, time::Duration};

/// Distance between two lines about the same thing.
const INTERVAL: Duration = Duration::from_secs(60);

/// Things told apart; whatever comes on top shares one line.
const KEYS_MAX: usize = 256;

/// Lets a line about one thing through now and then, and counts the others.
#[derive(Debug, Default)]
pub struct Limiter {
    seen: BTreeMap<String, (BootTime, u64)>,
}

impl Limiter {
    /// If a line about `key` may be written: how many were not since the last one.
    pub fn allow(&mut self, now: BootTime, key: &str) -> Option<u64> {
        let full = self.seen.len() >= KEYS_MAX && !self.seen.contains_key(key);
        let key = if full { "" } else { key };
        match self.seen.get_mut(key) {
            Some((last, held)) if now.since(*last) < INTERVAL => {
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

    #[test]
    fn one_line_an_interval_for_each_thing_and_the_rest_counted() {
        let mut limiter = Limiter::default();
        let start = BootTime(5);
        assert_eq!(limiter.allow(start, "a"), Some(0));
        for _ in 0..10 {
            assert_eq!(limiter.allow(start, "a"), None);
        }
        assert_eq!(limiter.allow(start, "b"), Some(0));
        assert_eq!(limiter.allow(start + INTERVAL, "a"), Some(10));
        assert_eq!(limiter.allow(start + INTERVAL * 2, "a"), Some(0));
    }

    #[test]
    fn ever_new_things_do_not_fill_the_memory() {
        let mut limiter = Limiter::default();
        for i in 0..10 * KEYS_MAX {
            limiter.allow(BootTime(0), &i.to_string());
        }
        assert!(limiter.seen.len() <= KEYS_MAX + 1);
    }
}
