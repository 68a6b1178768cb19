//! How far the others have got with what this replica knows: what is owed to them, and which tombstones nobody needs
//! any more.
//!
//! Every change of an index, its own or taken from another, gets the next sequence number of that index. A server that
//! has taken all up to a number has acknowledged it.

use crate::version::Replica;
use protocol::ServerName;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// One other server's progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// With another index it knows nothing of what it took before.
    incarnation: u64,
    sequence: u64,
    /// When, in nanoseconds since 1970.
    at: u64,
}

/// All others' progress. Kept with the index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger(BTreeMap<ServerName, Progress>);

/// What one server has not taken yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debt {
    /// Which server.
    pub server: ServerName,
    /// All after this sequence number.
    pub after: u64,
    /// When it last took anything, in nanoseconds since 1970; none: never.
    pub last: Option<u64>,
}

impl Ledger {
    /// From where on this replica is to be told: after this sequence number.
    pub fn told(&self, replica: &Replica) -> u64 {
        let known = self.0.get(&replica.server);
        known
            .filter(|p| p.incarnation == replica.incarnation)
            .map_or(0, |p| p.sequence)
    }

    /// When that was, in nanoseconds since 1970.
    pub fn when(&self, replica: &Replica) -> Option<u64> {
        let known = self.0.get(&replica.server);
        known
            .filter(|p| p.incarnation == replica.incarnation)
            .map(|p| p.at)
    }

    /// Up to where each of the others has all.
    pub fn sequences(&self) -> impl Iterator<Item = u64> {
        self.0.values().map(|p| p.sequence)
    }

    /// This replica has taken all up to `sequence`.
    pub fn acknowledged(&mut self, replica: &Replica, sequence: u64, at: u64) {
        self.stands(replica, sequence.max(self.told(replica)), at);
    }

    /// This replica has taken all up to `sequence` and no more, whatever it had before.
    pub fn stands(&mut self, replica: &Replica, sequence: u64, at: u64) {
        let progress = Progress {
            incarnation: replica.incarnation,
            sequence,
            at,
        };
        self.0.insert(replica.server.clone(), progress);
    }

    /// What the other members have not taken of an index whose last sequence number is `last`.
    pub fn debts(&self, others: &[ServerName], last: u64) -> Vec<Debt> {
        let debt = |server: &ServerName| {
            let progress = self.0.get(server);
            let after = progress.map_or(0, |p| p.sequence);
            (after < last).then(|| Debt {
                server: server.clone(),
                after,
                last: progress.map(|p| p.at),
            })
        };
        others.iter().filter_map(debt).collect()
    }

    /// Whether a tombstone of this sequence number, `age` old, can go: every other member has it, and no backup that
    /// might be put back is older.
    pub fn may_forget(
        &self,
        others: &[ServerName],
        sequence: u64,
        age: Duration,
        horizon: Duration,
    ) -> bool {
        let has = |server: &ServerName| self.0.get(server).is_some_and(|p| p.sequence >= sequence);
        age > horizon && others.iter().all(has)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn replica(name: &str, incarnation: u64) -> Replica {
        Replica {
            server: name.parse().unwrap(),
            incarnation,
        }
    }

    fn others() -> Vec<ServerName> {
        vec!["beta".parse().unwrap(), "gamma".parse().unwrap()]
    }

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_server_with_a_new_index_is_told_everything_again() {
        let mut ledger = Ledger::default();
        ledger.acknowledged(&replica("beta", 1), 7, 100);
        ledger.acknowledged(&replica("beta", 1), 5, 101);
        assert_eq!(ledger.told(&replica("beta", 1)), 7, "never backwards");
        assert_eq!(ledger.told(&replica("beta", 2)), 0);
        ledger.acknowledged(&replica("beta", 2), 3, 102);
        assert_eq!(ledger.told(&replica("beta", 2)), 3);
    }

    #[test]
    fn debts_name_whoever_is_behind_and_since_when() {
        let mut ledger = Ledger::default();
        ledger.acknowledged(&replica("beta", 1), 9, 100);
        let debts = ledger.debts(&others(), 9);
        assert_eq!(debts.len(), 1);
        assert_eq!(
            (debts[0].server.as_str(), debts[0].after, debts[0].last),
            ("gamma", 0, None)
        );
        let debts = ledger.debts(&others(), 12);
        assert_eq!((debts[0].after, debts[0].last), (9, Some(100)));
    }

    #[test]
    fn a_tombstone_stays_until_every_member_has_it_and_no_backup_is_older() {
        let mut ledger = Ledger::default();
        ledger.acknowledged(&replica("beta", 1), 9, 100);
        assert!(
            !ledger.may_forget(&others(), 5, 2 * DAY, DAY),
            "gamma has never been told"
        );
        ledger.acknowledged(&replica("gamma", 1), 5, 100);
        assert!(ledger.may_forget(&others(), 5, 2 * DAY, DAY));
        assert!(!ledger.may_forget(&others(), 6, 2 * DAY, DAY));
        assert!(!ledger.may_forget(&others(), 5, DAY, DAY));
        ledger.acknowledged(&replica("gamma", 2), 0, 100);
        assert!(
            !ledger.may_forget(&others(), 5, 2 * DAY, DAY),
            "gamma lost its index"
        );
    }
}
