//! Cables that are plugged in again.
//!
//! With the carrier the kernel forgets an interface's neighbours. Whoever sends meanwhile has it ask for them anew,
//! into a cable that leads nowhere, and it repeats the question only a second later (`retrans_time_ms`): for so long
//! the server would stay mute. So what was asked in vain is forgotten once the carrier is back, and the next packet
//! asks at once.

use protocol::BootTime;
use std::time::Duration;

/// When is looked for what was asked in vain, from the carrier's return on: a switch may forward nothing at first.
const LOOKS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
];

/// The interfaces whose carrier has just come back.
#[derive(Debug, Default)]
pub(crate) struct Returned(Vec<Return>);

#[derive(Debug)]
struct Return {
    interface: u32,
    at: BootTime,
    looks: usize,
}

impl Return {
    fn due(&self) -> Option<BootTime> {
        LOOKS.get(self.looks).map(|after| self.at + *after)
    }
}

impl Returned {
    /// The carrier of the interface with this number is back.
    pub(crate) fn note(&mut self, at: BootTime, interface: u32) {
        self.0.retain(|one| one.interface != interface);
        self.0.push(Return {
            interface,
            at,
            looks: 0,
        });
    }

    /// When to look next; none if no carrier came back lately.
    pub(crate) fn due(&self) -> Option<BootTime> {
        self.0.iter().filter_map(Return::due).min()
    }

    /// The interfaces to look at now. Looks that were missed are made up for by one.
    pub(crate) fn poll(&mut self, now: BootTime) -> Vec<u32> {
        let mut found = Vec::new();
        for one in &mut self.0 {
            let missed = LOOKS[one.looks..].iter();
            let missed = missed.take_while(|after| one.at + **after <= now).count();
            one.looks += missed;
            if missed > 0 {
                found.push(one.interface);
            }
        }
        self.0.retain(|one| one.due().is_some());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_looked_at_until_a_second_after_its_carrier_came_back() {
        let (start, mut returned) = (BootTime(5), Returned::default());
        assert_eq!(returned.due(), None);
        returned.note(start, 7);
        returned.note(start + LOOKS[1], 8);
        assert_eq!(returned.due(), Some(start));
        assert_eq!(returned.poll(start), [7]);
        assert_eq!(returned.poll(start), []);
        assert_eq!(returned.poll(start + LOOKS[1]), [7, 8]);
        // Pulled and plugged in again: from the beginning, at once.
        returned.note(start + LOOKS[3], 7);
        assert_eq!(returned.poll(start + LOOKS[3]), [8, 7]);
        assert_eq!(returned.due(), Some(start + LOOKS[3] + LOOKS[1]));
        assert_eq!(returned.poll(start + LOOKS[5] * 2), [8, 7]);
        assert_eq!(returned.due(), None);
        assert!(returned.0.is_empty());
    }
}
