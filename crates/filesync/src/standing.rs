//! Whose history counts.
//!
//! A server that was installed anew has files that nobody wrote: what its packages brought, a fresh password file. They
//! are younger than those of the others and mean nothing. So replicas that have met share a *history*, named after one
//! of them, and a new index is a history of its own. Where two histories meet, the one that fewer servers share gives
//! way in every conflict and becomes part of the other; nothing is taken of it before. Two that nobody shares are equal.

use crate::version::Replica;
use protocol::ServerName;
use serde::{Deserialize, Serialize};
use std::{cmp::Ordering, collections::BTreeSet};

/// The history that a replica is part of. Kept with the index, and told in a greeting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Incarnation of the replica that it is named after; 0: of before there were any.
    history: u64,
    /// The servers that are known to share it.
    shared: BTreeSet<ServerName>,
}

/// What a replica does with what another one offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// Conflicts are decided by rank.
    Equal,
    /// It gives way in each conflict.
    Yield,
    /// It takes nothing yet: the other has still to take all that is here.
    Wait,
}

impl Standing {
    /// Of a new index.
    pub fn new(replica: &Replica) -> Self {
        Self {
            history: replica.incarnation,
            shared: BTreeSet::from([replica.server.clone()]),
        }
    }

    /// Nobody shares its history.
    pub fn is_newcomer(&self) -> bool {
        self.weight() < 2
    }

    fn weight(&self) -> usize {
        match self.history {
            0 => usize::MAX,
            _ => self.shared.len(),
        }
    }

    /// Towards one of this standing.
    pub fn terms(&self, other: &Self) -> Terms {
        if self.history == other.history || self.is_newcomer() && other.is_newcomer() {
            return Terms::Equal;
        }
        let (own, theirs) = (self.weight(), other.weight());
        match own.cmp(&theirs).then(other.history.cmp(&self.history)) {
            Ordering::Less => Terms::Yield,
            Ordering::Equal => Terms::Equal,
            Ordering::Greater => Terms::Wait,
        }
    }

    /// It has all that one of this standing has.
    pub fn has_all_of(&mut self, other: &Self) {
        self.history = match self.terms(other) {
            Terms::Equal => self.history.min(other.history),
            Terms::Yield => other.history,
            Terms::Wait => self.history,
        };
        self.shared.extend(other.shared.iter().cloned());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn new(server: &str, incarnation: u64) -> Standing {
        let server = server.parse().unwrap();
        Standing::new(&Replica {
            server,
            incarnation,
        })
    }

    /// These have met.
    fn shared(servers: &[(&str, u64)]) -> Standing {
        let mut all = new(servers[0].0, servers[0].1);
        for (server, incarnation) in servers {
            all.has_all_of(&new(server, *incarnation));
        }
        all
    }

    #[test]
    fn newcomers_among_themselves_are_equal_and_share_a_history_then() {
        let (mut alpha, mut beta) = (new("alpha", 5), new("beta", 3));
        assert_eq!(alpha.terms(&beta), Terms::Equal);
        alpha.has_all_of(&beta);
        assert!(!alpha.is_newcomer());
        assert_eq!(beta.terms(&alpha), Terms::Equal);
        beta.has_all_of(&alpha);
        assert_eq!(alpha, beta);
    }

    #[test]
    fn one_that_is_new_gives_way_to_those_that_have_met_and_is_one_of_them_then() {
        let old = shared(&[("alpha", 5), ("beta", 3)]);
        let mut gamma = new("gamma", 1);
        assert_eq!(gamma.terms(&old), Terms::Yield);
        assert_eq!(old.terms(&gamma), Terms::Wait);
        gamma.has_all_of(&old);
        assert_eq!(gamma.terms(&old), Terms::Equal);
        assert_eq!(old.terms(&gamma), Terms::Equal);
    }

    #[test]
    fn two_that_were_installed_anew_do_not_outweigh_the_one_that_was_not() {
        let mut gamma = shared(&[("alpha", 5), ("beta", 3)]);
        gamma.has_all_of(&shared(&[("gamma", 9)]));
        gamma.shared.insert("gamma".parse().unwrap());
        let anew = shared(&[("alpha", 1), ("beta", 2)]);
        assert_eq!(anew.terms(&gamma), Terms::Yield);
        assert_eq!(gamma.terms(&anew), Terms::Wait);
    }

    #[test]
    fn an_index_of_before_outweighs_a_new_one_and_is_equal_to_its_like() {
        let before = Standing::default();
        assert_eq!(before.terms(&Standing::default()), Terms::Equal);
        assert_eq!(before.terms(&new("alpha", 1)), Terms::Wait);
        assert!(!before.is_newcomer());
    }
}
