//! Late packets that arrive before the word that their handover has begun: the kernel leads them here from the moment
//! that the gate is told to, and a busy thread may read them before it reads that word.

use protocol::BootTime;
use std::{collections::VecDeque, time::Duration};

/// The word is that far behind at most.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is due is over after it.
const AFTER: Duration = Duration::from_nanos(1);

/// Frames by virtual server (its door), oldest first, with how they came.
#[derive(Debug)]
pub(crate) struct Early<W>(VecDeque<(BootTime, usize, (W, Vec<u8>))>);

impl<W> Early<W> {
    /// None.
    pub fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Keeps one that came now.
    pub fn keep(&mut self, now: BootTime, door: usize, way: W, frame: Vec<u8>) {
        self.0.push_back((now, door, (way, frame)));
    }

    /// Those of this door, in order: its handover has begun.
    pub fn of(&mut self, door: usize) -> VecDeque<(W, Vec<u8>)> {
        let (of, others): (VecDeque<_>, _) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(_, d, _)| *d == door);
        self.0 = others;
        of.into_iter().map(|(.., frame)| frame).collect()
    }

    /// Those that no handover came for in time: how many, and of how many bytes.
    pub fn expired(&mut self, now: BootTime) -> (usize, usize) {
        let (mut frames, mut bytes) = (0, 0);
        while let Some((at, _, (_, frame))) = self.0.front()
            && now.since(*at) > PATIENCE
        {
            (frames, bytes) = (frames + 1, bytes + frame.len());
            self.0.pop_front();
        }
        (frames, bytes)
    }

    /// When to look for such again.
    pub fn due(&self) -> Option<BootTime> {
        self.0.front().map(|(at, ..)| *at + PATIENCE + AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_waits_for_its_handover_and_for_no_other() {
        let at = |ms: u64| BootTime(ms * 1_000_000);
        let mut early = Early::new();
        early.keep(at(10), 1, 'a', vec![1]);
        early.keep(at(20), 2, 'b', vec![2, 2]);
        early.keep(at(30), 1, 'c', vec![3]);
        assert_eq!(early.due(), Some(at(110) + AFTER));
        assert_eq!(early.of(1), [('a', vec![1]), ('c', vec![3])]);
        assert_eq!(early.of(1), []);
        assert_eq!(early.expired(at(120)), (0, 0));
        assert_eq!(early.expired(at(120) + AFTER), (1, 2));
        assert_eq!((early.due(), early.of(2)), (None, VecDeque::new()));
    }
}
