//! Which sequence numbers of one incarnation have been seen (as RFC 6479, sections 2 and 3).

/// Sequence numbers remembered below the highest, itself included.
pub(crate) const SIZE: u64 = 1024;

/// A sliding window over sequence numbers, which start at one. Number n has bit n mod [`SIZE`].
#[derive(Clone, Debug)]
pub(crate) struct Window {
    highest: u64,
    seen: [u64; (SIZE / 64) as usize],
}

/// What the window says about a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    New,
    Seen,
    Below,
}

impl Window {
    /// Nothing seen yet.
    pub(crate) fn new() -> Self {
        Self {
            highest: 0,
            seen: [0; (SIZE / 64) as usize],
        }
    }

    /// The highest number seen.
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    /// Looks at a number and remembers it.
    pub(crate) fn note(&mut self, number: u64) -> Verdict {
        let (word, bit) = ((number % SIZE / 64) as usize, 1 << (number % 64));
        if number > self.highest {
            self.slide(number);
        } else if number == 0 || self.highest - number >= SIZE {
            return Verdict::Below;
        } else if self.seen[word] & bit != 0 {
            return Verdict::Seen;
        }
        self.seen[word] |= bit;
        Verdict::New
    }

    fn slide(&mut self, number: u64) {
        if number - self.highest >= SIZE {
            self.seen = [0; (SIZE / 64) as usize];
        } else {
            for passed in self.highest + 1..=number {
                self.seen[(passed % SIZE / 64) as usize] &= !(1 << (passed % 64));
            }
        }
        self.highest = number;
    }
}

#[cfg(test)]
mod tests {
    use super::{SIZE, Verdict::*, Window};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn edges() {
        let mut w = Window::new();
        let table = [
            (0, Below),
            (1, New),
            (1, Seen),
            (3, New),
            (2, New),
            (2, Seen),
            (SIZE, New),
            (1, Seen),
            (SIZE + 1, New),
            (1, Below),
            (2, Seen),
            (4, New),
            (3 * SIZE, New),
            (2 * SIZE, Below),
            (2 * SIZE + 1, New),
            (2 * SIZE + 1, Seen),
            (u64::MAX, New),
            (u64::MAX, Seen),
            (u64::MAX - SIZE + 1, New),
            (u64::MAX - SIZE, Below),
            (0, Below),
        ];
        for (i, (number, verdict)) in table.into_iter().enumerate() {
            assert_eq!(w.note(number), verdict, "row {i}, number {number}");
        }
    }

    #[test]
    fn a_number_that_was_passed_over_is_new_whatever_was_seen_a_window_before() {
        for old in 1..=SIZE {
            let mut w = Window::new();
            let later = [old, old + 600, old + SIZE + 2, old + SIZE, old + SIZE];
            let verdicts = later.map(|number| w.note(number));
            assert_eq!(verdicts, [New, New, New, New, Seen], "after {old}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_that_forgets_nothing(
            numbers in proptest::collection::vec(prop_oneof![0..3000u64, 900..1100u64, any::<u64>()], 0..400)
        ) {
            let (mut w, mut all, mut highest) = (Window::new(), BTreeSet::new(), 0);
            for n in numbers {
                let verdict = w.note(n);
                let known = if n == 0 || n.saturating_add(SIZE) <= highest { Below } else if all.contains(&n) { Seen } else { New };
                prop_assert_eq!(verdict, known);
                all.insert(n);
                highest = highest.max(n);
            }
        }
    }
}
