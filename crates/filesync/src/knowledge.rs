//! What a replica has heard of altogether, so that it need not remember each removal for ever.
//!
//! Whoever takes all that another one has knows of all events that the other knows of. Of each it has a version, or one
//! that came after it, or it *forgot* the path: it was removed, every other server had confirmed that, and that is long ago.
//! So a version that has nothing in it but events that are known, of a path of which nothing is known, was removed: it
//! comes from a server that was set back to a state from before, or was away. That server is told so when it takes what
//! is new: of its versions, that of a path which the other does not name goes if the other knows of all that is in it.

use crate::{
    entry::Entry,
    version::{Rank, Vector},
};
use serde::{Deserialize, Serialize};

/// Of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// The events that it knows of.
    pub events: Vector,
    /// What it forgot.
    pub forgotten: Option<Forgotten>,
    /// Names what it leaves out: of that it knows nothing. Those that leave out different things tell each other nothing by
    /// what they do not name.
    pub rules: u64,
}

/// The removals that a replica forgot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The highest of their sequence numbers in this replica's index.
    pub sequence: u64,
    /// All that was in them.
    pub events: Vector,
    /// The highest of their ranks: what ranks above was never removed by them.
    pub rank: Rank,
}

impl Forgotten {
    /// With one more.
    pub fn with(before: Option<Self>, removal: &Entry, sequence: u64) -> Self {
        let Entry { vector, rank, .. } = removal.clone();
        let one = Self {
            sequence,
            events: vector,
            rank,
        };
        one.and(before)
    }

    fn and(mut self, other: Option<Self>) -> Self {
        if let Some(other) = other {
            self.sequence = self.sequence.max(other.sequence);
            self.events.join(&other.events);
            self.rank = self.rank.max(other.rank);
        }
        self
    }
}

impl Knowledge {
    /// All that one with this knowledge has is here now.
    pub fn join(&mut self, other: &Self) {
        self.events.join(&other.events);
        if let Some(theirs) = other.forgotten.clone() {
            // Nothing of it was in this index.
            let theirs = Forgotten {
                sequence: 0,
                ..theirs
            };
            self.forgotten = Some(theirs.and(self.forgotten.take()));
        }
    }

    /// Given that nothing is known of its path: whether this version was removed, and that forgotten. The event that it is
    /// from is known then; others in it have lost to that one, unless it was put back.
    pub fn forgot(&self, version: &Entry) -> bool {
        let Entry { node, vector, rank } = version;
        let is_known = match rank.turns {
            0 => self.events.count(&rank.replica) >= vector.count(&rank.replica),
            _ => self.events.has(vector),
        };
        let forgotten = self.forgotten.as_ref();
        node.is_some() && is_known && forgotten.is_some_and(|forgotten| *rank <= forgotten.rank)
    }

    /// Whether one that has all up to this sequence number was told of all that is forgotten.
    pub fn told_all(&self, sequence: u64) -> bool {
        let forgotten = self.forgotten.as_ref();
        forgotten.is_none_or(|forgotten| forgotten.sequence <= sequence)
    }

    /// What one that was not told is to hear of a path that is not named, of which it has this version.
    pub fn removal(&self, version: &Entry) -> Option<Entry> {
        let mut vector = version.vector.clone();
        vector.join(&self.events);
        let removed = self.forgot(version) && vector != version.vector;
        removed.then(|| Entry {
            node: None,
            vector,
            rank: Rank::of_turn(&version.rank),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        entry::Author,
        observe::tests::file,
        version::{Relation, Replica},
    };

    pub(crate) fn author(name: &str) -> Author {
        Author {
            replica: Replica {
                server: name.parse().unwrap(),
                incarnation: 1,
            },
            count: 0,
            held: false,
            unit: 1,
            uncertain: false,
            forgotten: None,
        }
    }

    #[test]
    fn a_version_of_which_all_is_known_was_removed_and_any_other_is_new() {
        let (mut alpha, mut beta) = (author("alpha"), author("beta"));
        let made = alpha.change(None, Some(file(1, 5)), 5);
        let removed = beta.change(Some(&made), None, 9);
        let mut knowledge = Knowledge::default();
        knowledge.events.join(&removed.vector);
        assert!(!knowledge.forgot(&made), "nothing is forgotten");
        assert!(knowledge.told_all(0));
        knowledge.forgotten = Some(Forgotten::with(None, &removed, 7));
        assert!(knowledge.forgot(&made));
        assert!(!knowledge.forgot(&removed), "it may be remembered again");
        assert!(knowledge.told_all(7) && !knowledge.told_all(6));
        let heard = knowledge.removal(&made).unwrap();
        assert_eq!(heard.node, None);
        assert!(heard.rank > made.rank);
        assert_eq!(heard.vector.relation(&made.vector), Relation::Newer);
        assert_eq!(knowledge.removal(&removed), None);
        // An edit that was never told, and a number that was given twice.
        let edited = author("gamma").change(Some(&made), Some(file(2, 6)), 6);
        let again = author("alpha").change(None, Some(file(3, 50)), 50);
        for new in [edited, again] {
            assert!(!knowledge.forgot(&new));
            assert_eq!(knowledge.removal(&new), None);
        }
    }
}
