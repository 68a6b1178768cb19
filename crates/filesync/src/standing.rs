//! Whether a replica has a history.
//!
//! A server that was installed anew has files that nobody wrote: what its packages brought, a fresh password file. They
//! are younger than those of the others and mean nothing. So a replica with a new index is a *newcomer* until it has all
//! that an established one has, or has met every other server and found none. It gives way in every conflict with an
//! established one, which takes nothing from it before.

use protocol::ServerName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Of a replica. Kept with the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// What it has counts.
    Established,
    /// It has a new index, and has all that these newcomers have.
    Newcomer(BTreeSet<ServerName>),
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
    pub fn new() -> Self {
        Self::Newcomer(BTreeSet::new())
    }

    /// Whether it is one.
    pub fn is_newcomer(&self) -> bool {
        *self != Self::Established
    }

    /// Towards one that is a newcomer, or is none.
    pub fn terms(&self, other_is_newcomer: bool) -> Terms {
        match (self.is_newcomer(), other_is_newcomer) {
            (true, false) => Terms::Yield,
            (false, true) => Terms::Wait,
            (true, true) | (false, false) => Terms::Equal,
        }
    }

    /// After it has taken all that `from` has, of all `others` that there are.
    pub fn has_all_of(&mut self, from: &ServerName, is_newcomer: bool, others: &[ServerName]) {
        let Self::Newcomer(met) = self else { return };
        met.insert(from.clone());
        if !is_newcomer || others.iter().all(|other| met.contains(other)) {
            *self = Self::Established;
        }
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServerName {
        name.parse().unwrap()
    }

    #[test]
    fn one_that_has_all_of_an_established_one_is_established() {
        let others = [name("beta"), name("gamma")];
        let mut standing = Standing::new();
        assert_eq!(standing.terms(false), Terms::Yield);
        standing.has_all_of(&name("beta"), false, &others);
        assert_eq!(standing, Standing::Established);
        assert_eq!(standing.terms(true), Terms::Wait);
    }

    #[test]
    fn newcomers_among_themselves_are_none_once_all_have_met() {
        let others = [name("beta"), name("gamma")];
        let mut standing = Standing::new();
        assert_eq!(standing.terms(true), Terms::Equal);
        standing.has_all_of(&name("beta"), true, &others);
        assert!(standing.is_newcomer(), "gamma may have a history");
        standing.has_all_of(&name("beta"), true, &others);
        assert!(standing.is_newcomer());
        standing.has_all_of(&name("gamma"), true, &others);
        assert!(!standing.is_newcomer());
    }
}
