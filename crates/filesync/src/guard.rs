//! What must not be taken for removals: a root that is gone, and too many at once.

use crate::version::Replica;
use serde::{Deserialize, Serialize};

/// How a set's root is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The replica named in the marker file that standin left there.
    pub marker: Option<Replica>,
    /// Device that it is on.
    pub device: u64,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
