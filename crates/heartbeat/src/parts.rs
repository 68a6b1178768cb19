//! Whether the beats of a peer that travel in parts (ELECTION R25) arrive whole.

use protocol::{BootTime, Instance, Number, wire::beat::Beat};
use std::collections::BTreeSet;

/// So many beats in a row, none of which came whole, are no chance: some of the parts do not pass.
const BROKEN: u32 = 10;

/// The parts of the newest beat, and what became of those before it.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    newest: Option<(Instance, Number)>,
    missing: BTreeSet<u16>,
    /// Beats in a row that did not come whole, and since when.
    broken: u32,
    since: Option<BootTime>,
}

impl Parts {
    /// A beat or a part of one has arrived.
    pub(crate) fn arrived(&mut self, now: BootTime, beat: &Beat) {
        let (this, part) = ((beat.instance, beat.number), beat.part.0);
        let late = |newest: (Instance, Number)| newest.0 == this.0 && newest.1 > this.1;
        if self.newest.is_some_and(late) {
            return;
        }
        if self.newest != Some(this) {
            if !self.missing.is_empty() {
                self.broken = self.broken.saturating_add(1);
                self.since = self.since.or(Some(now));
            }
            self.newest = Some(this);
            self.missing = (0..part.of).collect();
        }
        self.missing.remove(&part.index);
        if self.missing.is_empty() {
            (self.broken, self.since) = (0, None);
        }
    }

    /// Since when no beat has come whole, if that is no chance.
    pub(crate) fn broken_since(&self) -> Option<BootTime> {
        self.since.filter(|_| self.broken >= BROKEN)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::{
        Term,
        version::Since,
        wire::beat::{Freshness, Part, Participation, Roster},
    };
    use std::time::Duration;

    fn arrive(parts: &mut Parts, number: u64, index: u16, of: u16) {
        let beat = Beat {
            instance: Instance(1),
            number: Number(number),
            lease: Duration::from_secs(1),
            promise_max: Duration::from_secs(1),
            floor_base: Term(0),
            participation: Participation::Active,
            maintenance: false,
            witness: false,
            freshness: Freshness::default(),
            standings: Vec::new(),
            heard: Vec::new(),
            roster: Roster::default(),
            config_hash: 1,
            part: Since(Part { index, of }),
        };
        parts.arrived(BootTime(number), &beat);
    }

    #[test]
    fn a_part_that_never_comes_is_noticed_and_one_lost_now_and_then_is_not() {
        let mut parts = Parts::default();
        (1..=10).for_each(|number| arrive(&mut parts, number, 1, 3));
        assert_eq!(
            parts.broken_since(),
            None,
            "ten, and the last may be under way"
        );
        arrive(&mut parts, 11, 1, 3);
        assert_eq!(parts.broken_since(), Some(BootTime(2)));
        [0, 2]
            .iter()
            .for_each(|index| arrive(&mut parts, 11, *index, 3));
        assert_eq!(parts.broken_since(), None, "one has come whole");
        for number in 12..100 {
            arrive(&mut parts, number, 0, 2);
            if number % 5 == 0 {
                arrive(&mut parts, number, 1, 2);
            }
        }
        assert_eq!(parts.broken_since(), None);
    }

    #[test]
    fn parts_in_any_order_make_a_whole_and_late_ones_change_nothing() {
        let mut parts = Parts::default();
        for number in 1..50 {
            arrive(&mut parts, number, 1, 2);
            arrive(&mut parts, number, 0, 2);
            arrive(&mut parts, number - 1, 0, 2);
        }
        assert_eq!((parts.broken_since(), parts.broken), (None, 0));
        (50..99).for_each(|number| arrive(&mut parts, number, 0, 1));
        assert_eq!(parts.broken_since(), None, "beats of one part are whole");
    }
}
