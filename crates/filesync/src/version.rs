//! Which of two versions is newer: vectors say so, and only between versions that know nothing of each other a rank
//! does.
//!
//! ```text
//!   event         one change of one path at one replica, with a rank above that of what it changed
//!   vector        per replica the number of its last event that this version has in it
//!   the version   of a vector is the event of the highest rank among all that are in it
//! ```
//!
//! So whoever has the same vector has the same contents, in whatever order it learned of the events: a rank that grows
//! with every change makes the highest one a version that nothing in the vector supersedes. (Parker et al.,
//! "Detection of Mutual Inconsistency in Distributed Systems", 1983; Kulkarni et al., "Logical Physical Clocks", 2014.)

use protocol::ServerName;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Who makes changes. Whoever loses its index begins anew: its former counts mean nothing any more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// The server.
    pub server: ServerName,
    /// Random, drawn with a new index.
    pub incarnation: u64,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.server, self.incarnation)
    }
}

/// How one vector stands to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both have the same events.
    Equal,
    /// It has all of the other's events and more.
    Newer,
    /// The other has all of its events and more.
    Older,
    /// Each has events that the other has not.
    Concurrent,
}

/// Which events a version has in it.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vector(BTreeMap<Replica, u64>);

impl Vector {
    /// The number of this replica's last event in it; 0 if there is none.
    pub fn count(&self, replica: &Replica) -> u64 {
        self.0.get(replica).copied().unwrap_or(0)
    }

    /// With this event, too; 0 is none.
    pub fn note(&mut self, replica: &Replica, count: u64) {
        if count == 0 {
            return;
        }
        let known = self.0.entry(replica.clone()).or_default();
        *known = count.max(*known);
    }

    /// With all events of the other, too.
    pub fn join(&mut self, other: &Self) {
        for (replica, count) in &other.0 {
            self.note(replica, *count);
        }
    }

    /// Whether it has all events of the other.
    pub fn has(&self, other: &Self) -> bool {
        matches!(self.relation(other), Relation::Equal | Relation::Newer)
    }

    /// How it stands to the other.
    pub fn relation(&self, other: &Self) -> Relation {
        let lacks = |a: &Self, b: &Self| b.0.iter().any(|(r, count)| *count > a.count(r));
        match (lacks(self, other), lacks(other, self)) {
            (false, false) => Relation::Equal,
            (false, true) => Relation::Newer,
            (true, false) => Relation::Older,
            (true, true) => Relation::Concurrent,
        }
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}

/// What decides between versions that know nothing of each other: a total order, carried in the version, the same for
/// all who compare. The fields in order of weight.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rank {
    /// Time in units of what clocks may differ by: within one unit they cannot tell.
    pub unit: u64,
    /// Made by a server that held a virtual server's address.
    pub held: bool,
    /// When, in nanoseconds since 1970, and never before what it changed.
    pub nanos: u64,
    /// One more for each change that the clock cannot tell from the one before.
    pub step: u32,
    /// Who made it.
    pub replica: Replica,
    /// How often it was removed and put back since. A removal weighs as much as what was removed, and no more: whatever
    /// was made of it elsewhere outlives it.
    pub turns: u32,
}

impl Rank {
    /// Of a change of `before`, made at `nanos`, for clocks that may differ by `unit` nanoseconds.
    pub fn of_change(
        before: Option<&Self>,
        replica: &Replica,
        nanos: u64,
        held: bool,
        unit: u64,
    ) -> Self {
        let fresh = Self {
            unit: nanos / unit.max(1),
            held,
            nanos,
            step: 0,
            replica: replica.clone(),
            turns: 0,
        };
        let Some(before) = before else { return fresh };
        let mut rank = Self {
            unit: fresh.unit.max(before.unit),
            ..fresh
        };
        if nanos <= before.nanos {
            (rank.nanos, rank.step) = (before.nanos, before.step.saturating_add(1));
        }
        if rank <= *before {
            rank.unit = before.unit + 1;
        }
        rank
    }

    /// Of what was there before anything was known: below all that is known of. Among the like the time decides.
    pub fn of_unknown(replica: &Replica, nanos: u64) -> Self {
        Self {
            unit: 0,
            ..Self::of_change(None, replica, nanos, false, u64::MAX)
        }
    }

    /// Of the removal of `before`, or of its return.
    pub fn of_turn(before: &Self) -> Self {
        Self {
            turns: before.turns.saturating_add(1),
            ..before.clone()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replica(name: &str) -> Replica {
        Replica {
            server: name.parse().unwrap(),
            incarnation: 1,
        }
    }

    fn vector(counts: &[(&str, u64)]) -> Vector {
        let mut vector = Vector::default();
        counts
            .iter()
            .for_each(|(name, count)| vector.note(&replica(name), *count));
        vector
    }

    #[test]
    fn vectors_tell_newer_older_and_neither() {
        let table = [
            (vec![], vec![], Relation::Equal),
            (vec![("a", 1)], vec![], Relation::Newer),
            (vec![("a", 1)], vec![("a", 2)], Relation::Older),
            (vec![("a", 1)], vec![("b", 1)], Relation::Concurrent),
            (
                vec![("a", 2), ("b", 1)],
                vec![("a", 1), ("b", 1)],
                Relation::Newer,
            ),
            (
                vec![("a", 2), ("b", 1)],
                vec![("a", 1), ("b", 2)],
                Relation::Concurrent,
            ),
        ];
        for (a, b, relation) in table {
            assert_eq!(vector(&a).relation(&vector(&b)), relation, "{a:?} {b:?}");
        }
    }

    #[test]
    fn another_incarnation_is_another_replica() {
        let mut reborn = replica("a");
        reborn.incarnation = 2;
        let mut vector = vector(&[("a", 5)]);
        assert_eq!(vector.count(&reborn), 0);
        vector.note(&reborn, 1);
        assert_eq!(vector.count(&replica("a")), 5);
    }

    #[test]
    fn within_what_clocks_can_tell_the_holder_of_the_address_wins_and_beyond_it_the_later() {
        let (a, b) = (replica("a"), replica("b"));
        let of = |r, nanos, held| Rank::of_change(None, r, nanos, held, 1000);
        assert!(of(&a, 5_100, true) > of(&b, 5_900, false));
        assert!(of(&a, 5_100, true) < of(&b, 6_000, false));
        assert!(of(&a, 5_100, false) < of(&b, 5_200, false));
    }

    #[test]
    fn what_was_there_before_anything_was_known_loses_to_what_was_changed_since() {
        let (a, b) = (replica("a"), replica("b"));
        let unknown = |r, nanos| Rank::of_unknown(r, nanos);
        assert!(unknown(&a, 9_000) < Rank::of_change(None, &b, 2_000, false, 1_000));
        assert!(unknown(&a, 9_000) > unknown(&b, 8_000));
        let changed = Rank::of_change(Some(&unknown(&a, 9_000)), &b, 2_000, false, 1_000);
        assert!(changed > unknown(&a, 9_000) && changed.unit > 0);
    }

    #[test]
    fn a_removal_weighs_as_much_as_what_it_removed() {
        let (a, b) = (replica("a"), replica("b"));
        let first = Rank::of_change(None, &a, 1000, false, 10);
        let removal = Rank::of_turn(&first);
        assert!(removal > first);
        let edit = Rank::of_change(Some(&first), &b, 1001, false, 10);
        assert!(
            edit > removal,
            "an edit of what was removed elsewhere outlives the removal"
        );
        let again = Rank::of_change(Some(&removal), &a, 0, false, 10);
        assert!(again > removal, "made anew");
    }

    proptest! {
        #[test]
        fn whatever_the_clock_says_a_change_outranks_what_it_changed(
            times in proptest::collection::vec((0u64..5000, any::<bool>(), 0..3usize, any::<bool>()), 1..40),
            unit in 1u64..2000,
        ) {
            let replicas = [replica("a"), replica("b"), replica("c")];
            let mut rank: Option<Rank> = None;
            for (nanos, held, who, removes) in times {
                let next = match &rank {
                    Some(before) if removes => Rank::of_turn(before),
                    before => Rank::of_change(before.as_ref(), &replicas[who], nanos, held, unit),
                };
                prop_assert!(rank.is_none_or(|before| next > before));
                rank = Some(next);
            }
        }
    }
}
