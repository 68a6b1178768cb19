//! When to dial a peer, and over which path.

use protocol::BootTime;
use std::time::Duration;

/// Shortest time from the start of one attempt to the start of the next.
pub const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// Longest such time, however long the peer has been away.
pub const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// The dialling side's patience with one peer. Back-off counts from the start of an attempt, and one
/// that waited in vain for its time-out is followed by the next at once.
#[derive(Debug)]
pub struct Dialer {
    paths: usize,
    path: usize,
    backoff: Duration,
    started: BootTime,
    due: Option<BootTime>,
}

impl Dialer {
    /// For a peer with this many paths, dialling at once.
    pub fn new(paths: usize, now: BootTime) -> Self {
        Self {
            paths: paths.max(1),
            path: 0,
            backoff: BACKOFF_MIN,
            started: BootTime(0),
            due: Some(now),
        }
    }

    /// When the next attempt starts; `None` while one runs or the link is up.
    pub fn due(&self) -> Option<BootTime> {
        self.due
    }

    /// An attempt starts now, over the path returned.
    pub fn start(&mut self, now: BootTime) -> usize {
        self.started = now;
        self.due = None;
        self.path
    }

    /// The attempt led to an open session.
    pub fn succeeded(&mut self) {
        self.backoff = BACKOFF_MIN;
    }

    /// The attempt failed: the next one goes over the next path. `waited`: by time-out, which is wait
    /// enough; a network that heals finds a fresh attempt and no back-off.
    pub fn failed(&mut self, now: BootTime, waited: bool) {
        self.path = (self.path + 1) % self.paths;
        if waited {
            self.due = Some(now);
        } else {
            self.due = Some(now.max(self.started + self.backoff));
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// The attempt has shown which version the peer speaks: the next follows at once over the same path.
    pub fn again(&mut self, now: BootTime) {
        self.due = Some(now);
    }

    /// An open session ended. `path_failed`: by silence rather than by the peer, so another path is tried.
    pub fn lost(&mut self, now: BootTime, path_failed: bool) {
        if path_failed {
            self.path = (self.path + 1) % self.paths;
        }
        self.due = Some(now.max(self.started + BACKOFF_MIN));
    }

    /// Somebody wants to speak to the peer: it may be back, so do not wait out a long back-off.
    pub fn urge(&mut self, now: BootTime) {
        if let Some(due) = self.due {
            self.backoff = BACKOFF_MIN;
            self.due = Some(due.min(now.max(self.started + BACKOFF_MIN)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ms(n: u64) -> BootTime {
        BootTime(0) + Duration::from_millis(n)
    }

    #[test]
    fn waits_longer_and_longer_up_to_the_limit_and_tries_every_path() {
        let mut dialer = Dialer::new(3, ms(1000));
        let (mut now, mut gaps, mut paths) = (ms(1000), Vec::new(), Vec::new());
        for _ in 0..8 {
            assert_eq!(dialer.due(), Some(now));
            paths.push(dialer.start(now));
            assert_eq!(dialer.due(), None);
            dialer.failed(now, false);
            let next = dialer.due().unwrap();
            gaps.push(next.since(now).as_millis());
            now = next;
        }
        assert_eq!(gaps, [20, 40, 80, 160, 320, 500, 500, 500]);
        assert_eq!(paths, [0, 1, 2, 0, 1, 2, 0, 1]);
    }

    #[test]
    fn an_attempt_that_timed_out_is_followed_by_the_next_at_once() {
        let mut dialer = Dialer::new(1, ms(0));
        for round in 0..10 {
            let start = ms(round * 500);
            assert!(dialer.due().unwrap() <= start);
            dialer.start(start);
            dialer.failed(ms(round * 500 + 500), true);
            assert_eq!(dialer.due(), Some(ms(round * 500 + 500)));
        }
    }

    #[test]
    fn a_lost_session_is_redialled_at_once_over_the_same_path_unless_it_fell_silent() {
        let mut dialer = Dialer::new(2, ms(0));
        assert_eq!(dialer.start(ms(0)), 0);
        dialer.succeeded();
        dialer.lost(ms(9000), false);
        assert_eq!(dialer.due(), Some(ms(9000)));
        assert_eq!(dialer.start(ms(9000)), 0);
        dialer.succeeded();
        dialer.lost(ms(9001), true);
        assert_eq!(
            dialer.due(),
            Some(ms(9020)),
            "a flapping session is not redialled without pause"
        );
        assert_eq!(dialer.start(ms(9020)), 1);
    }

    #[test]
    fn urging_shortens_a_long_wait_but_not_the_shortest() {
        let mut dialer = Dialer::new(1, ms(0));
        for n in 0..10 {
            dialer.start(ms(n * 1000));
            dialer.failed(ms(n * 1000), false);
        }
        assert_eq!(dialer.due(), Some(ms(9500)));
        dialer.urge(ms(9005));
        assert_eq!(dialer.due(), Some(ms(9020)));
        dialer.urge(ms(9100));
        assert_eq!(dialer.due(), Some(ms(9020)));
    }

    #[test]
    fn a_session_that_opened_ends_a_long_back_off() {
        let mut dialer = Dialer::new(1, ms(0));
        for n in 0..10 {
            dialer.start(ms(n * 1000));
            dialer.failed(ms(n * 1000), false);
        }
        dialer.start(ms(10_000));
        dialer.succeeded();
        dialer.lost(ms(20_000), false);
        dialer.start(ms(20_000));
        dialer.failed(ms(20_000), false);
        assert_eq!(dialer.due(), Some(ms(20_020)));
    }
}
