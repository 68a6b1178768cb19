//! What must not be taken for removals, or for edits: a root that is gone, or came back from a backup, and too many at
//! once.

use crate::{
    entry::{Kind, Node},
    observe::{Proof, RACY},
    version::Replica,
};
use serde::{Deserialize, Serialize};

/// How a set's root is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The replica named in the marker file that standin left there.
    pub marker: Option<Replica>,
    /// Device that it is on. It may have another number after each boot.
    pub device: u64,
}

/// The directory that a root is. Whatever was put back from a backup is another one; where a volume was set back, it is
/// the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Identity of the file system; 0 if it has none that lasts.
    pub filesystem: u64,
    /// Number of the directory there.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970; 0 if that is not known.
    pub born: i64,
}

/// Why nothing may be concluded from a look at a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The marker is gone, or another replica's: another file system is mounted there, or none.
    Marker,
    /// It is on another device than before.
    Device,
    /// There was something, and nothing is there now.
    Empty,
    /// Another directory carries the marker: what is in it has a history of its own.
    Replaced,
    /// It is the directory, in an older state.
    Past,
}

/// Whether what is seen at a root is what is known of it; `known_live` and `seen_live` count what is there.
pub fn recognise(known: &Root, seen: &Root, known_live: u64, seen_live: u64) -> Result<(), Doubt> {
    if known.marker != seen.marker {
        Err(Doubt::Marker)
    } else if known.device != seen.device {
        Err(Doubt::Device)
    } else if known_live > 0 && seen_live == 0 {
        Err(Doubt::Empty)
    } else {
        Ok(())
    }
}

/// How much a run may remove without being asked again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Percent of what is there.
    pub percent: u8,
    /// So many are never too many.
    pub least: u64,
}

impl Limit {
    /// Whether a run may remove so many of `live`.
    pub fn permits(&self, removals: u64, live: u64) -> bool {
        let share = u128::from(live) * u128::from(self.percent) / 100;
        removals <= self.least || u128::from(removals) <= share
    }
}

/// What tells that a root is in an older state than it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// So many files changed and have an older modification time than before.
    older: u64,
    /// A change time has gone back, which no program can do.
    back: bool,
}

impl Past {
    /// A path that was known with `before` was seen at `now`, in nanoseconds since 1970, as it is with `after`.
    pub fn note(
        &mut self,
        before: (Option<&Node>, Option<&Proof>),
        after: (&Node, Option<&Proof>),
        now: i64,
    ) {
        if let (Some(before), Some(after)) = (before.1, after.1) {
            self.changed(before.stat.ctime, after.stat.ctime, now);
        }
        if let Some(before) = before.0
            && let Kind::File { digest: then, .. } = &before.kind
            && let Kind::File { digest, .. } = &after.0.kind
        {
            self.older += u64::from(then != digest && after.0.mtime < before.mtime);
        }
    }

    /// Something that had the change time `then` has this one, at `now`, all in nanoseconds since 1970.
    pub fn changed(&mut self, then: i64, changed: i64, now: i64) {
        // A clock that was ahead and is right again is no backup.
        self.back |= changed < then.saturating_sub(RACY) && then <= now;
    }

    /// So many paths are there no more, in a root in which that tells of its age.
    pub fn missing(&mut self, count: usize) {
        self.older += count as u64;
    }

    /// Whether the root, which had so many paths, was set back. One file that somebody put back is an edit.
    pub fn is_set_back(&self, limit: Limit, live: u64) -> bool {
        self.back || !limit.permits(self.older, live)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::observe::tests::{file, with_times};

    fn proof(ctime: i64) -> Proof {
        Proof {
            stat: with_times(1, ctime),
            at: ctime,
            lent: false,
        }
    }

    #[test]
    fn a_change_time_that_went_back_tells_that_a_volume_was_set_back() {
        const HOUR: i64 = 3_600_000_000_000;
        let limit = Limit {
            percent: 50,
            least: 20,
        };
        let noted = |then, changed, now| {
            let mut past = Past::default();
            let (before, after) = (proof(then), proof(changed));
            past.note((None, Some(&before)), (&file(1, 5), Some(&after)), now);
            past.is_set_back(limit, 100)
        };
        assert!(noted(5 * HOUR, 4 * HOUR, 6 * HOUR));
        assert!(!noted(5 * HOUR, 5 * HOUR, 6 * HOUR));
        assert!(!noted(5 * HOUR, 6 * HOUR, 6 * HOUR));
        assert!(
            !noted(5 * HOUR, 5 * HOUR - 1, 6 * HOUR),
            "the grain of a clock"
        );
        assert!(!noted(9 * HOUR, 4 * HOUR, 6 * HOUR), "a clock was ahead");
    }

    #[test]
    fn many_files_that_became_older_were_restored_and_a_few_were_edited() {
        let limit = Limit {
            percent: 50,
            least: 20,
        };
        let restored = |count: u64, live| {
            let mut past = Past::default();
            for _ in 0..count {
                past.note((Some(&file(1, 9)), None), (&file(2, 5), None), 10);
                past.note((Some(&file(1, 5)), None), (&file(2, 9), None), 10);
                past.note((Some(&file(1, 9)), None), (&file(1, 5), None), 10);
            }
            past.is_set_back(limit, live)
        };
        assert!(!restored(20, 21));
        assert!(restored(21, 40));
        assert!(!restored(21, 42));
    }

    #[test]
    fn a_root_that_is_not_what_it_was_is_doubted() {
        let replica = |incarnation| Replica {
            server: "alpha".parse().unwrap(),
            incarnation,
        };
        let root = |marker: Option<u64>, device| Root {
            marker: marker.map(replica),
            device,
        };
        let known = root(Some(1), 5);
        let table = [
            (root(Some(1), 5), 3, Ok(())),
            (root(None, 5), 3, Err(Doubt::Marker)),
            (root(Some(2), 5), 3, Err(Doubt::Marker)),
            (root(Some(1), 6), 3, Err(Doubt::Device)),
            (root(Some(1), 5), 0, Err(Doubt::Empty)),
        ];
        for (seen, live, verdict) in table {
            assert_eq!(recognise(&known, &seen, 3, live), verdict, "{seen:?}");
        }
        assert_eq!(recognise(&known, &known, 0, 0), Ok(()));
    }

    #[test]
    fn a_few_removals_are_permitted_and_a_large_share_is_not() {
        let limit = Limit {
            percent: 25,
            least: 10,
        };
        assert!(limit.permits(10, 10));
        assert!(!limit.permits(11, 11));
        assert!(limit.permits(250, 1000));
        assert!(!limit.permits(251, 1000));
        assert!(!limit.permits(u64::MAX, u64::MAX));
    }
}
