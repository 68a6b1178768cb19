//! Whether a role hangs: every second the main daemon greets it, and counts the seconds without an answer in which the
//! main daemon itself ran. Time in which it was stopped, or the whole machine, is held against nobody.

use protocol::BootTime;
use std::time::Duration;

/// How often a role is greeted.
pub const EVERY: Duration = Duration::from_secs(1);
/// A role silent for so long hangs.
pub const LIMIT: Duration = Duration::from_secs(5);
/// One that has not answered yet may be starting for so long: a slow disk, a clock to wait for.
pub const START_LIMIT: Duration = Duration::from_secs(30);
/// A second that took longer was one in which the main daemon did not run.
const LATE: Duration = Duration::from_millis(500);

/// What became of the last greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Answered.
    Answered,
    /// Not answered.
    Unanswered,
    /// Nobody could be greeted: its socket is not there.
    Unreachable,
}

/// One process of a role.
#[derive(Debug, Default)]
pub struct Pulse {
    last: Option<BootTime>,
    silent: Duration,
    /// It has answered before.
    known: bool,
}

impl Pulse {
    /// Of a process that served already, or of one that starts.
    pub fn new(known: bool) -> Self {
        Self {
            known,
            ..Self::default()
        }
    }

    /// Whether it has ever answered.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// What the greeting before came to; for how long it has been silent, if that is too long.
    pub fn tick(&mut self, now: BootTime, greeting: Greeting) -> Option<Duration> {
        let passed = self.last.replace(now).map(|last| now.since(last));
        let passed = passed.filter(|passed| *passed <= EVERY + LATE);
        match greeting {
            Greeting::Answered => {
                self.known = true;
                self.silent = Duration::ZERO;
            }
            Greeting::Unanswered => self.silent += passed.unwrap_or_default(),
            // A socket that another program removed is no sign of a hung process.
            Greeting::Unreachable if self.known => {}
            Greeting::Unreachable => self.silent += passed.unwrap_or_default(),
        }
        let limit = if self.known { LIMIT } else { START_LIMIT };
        (self.silent >= limit).then_some(self.silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Greeting::{Answered, Unanswered, Unreachable};

    /// Ticks a second apart from `second` on; the first at which it is called hung.
    fn hung(pulse: &mut Pulse, second: u64, greetings: &[Greeting]) -> Option<u64> {
        let at = |s| BootTime(0) + Duration::from_secs(s);
        let mut ticks = (second..).zip(greetings);
        ticks.find_map(|(s, g)| pulse.tick(at(s), *g).map(|_| s))
    }

    #[test]
    fn a_role_is_hung_after_five_seconds_of_silence_and_not_before() {
        let mut pulse = Pulse::default();
        assert_eq!(hung(&mut pulse, 0, &[Answered; 10]), None);
        assert_eq!(hung(&mut pulse, 10, &[Unanswered; 4]), None);
        assert_eq!(hung(&mut pulse, 14, &[Answered]), None);
        assert_eq!(hung(&mut pulse, 15, &[Unanswered; 9]), Some(19));
    }

    #[test]
    fn time_in_which_the_main_daemon_itself_was_stopped_does_not_count() {
        let mut pulse = Pulse::default();
        assert_eq!(hung(&mut pulse, 0, &[Answered]), None);
        assert_eq!(hung(&mut pulse, 1, &[Unanswered; 3]), None);
        assert_eq!(hung(&mut pulse, 60, &[Unanswered; 2]), None);
        assert_eq!(hung(&mut pulse, 3600, &[Unanswered]), None);
        assert_eq!(hung(&mut pulse, 3601, &[Unanswered]), Some(3601));
    }

    #[test]
    fn a_role_that_starts_has_longer() {
        let mut pulse = Pulse::default();
        assert_eq!(hung(&mut pulse, 0, &[Unreachable; 20]), None);
        assert_eq!(hung(&mut pulse, 20, &[Unanswered; 20]), Some(30));
    }

    #[test]
    fn a_socket_that_was_removed_is_no_silence() {
        let mut pulse = Pulse::default();
        assert_eq!(hung(&mut pulse, 0, &[Answered]), None);
        assert_eq!(hung(&mut pulse, 1, &[Unreachable; 100]), None);
    }
}
