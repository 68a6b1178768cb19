//! What is owed to whom since when, and how it last went.

use protocol::{
    ServerName, Term, VirtualServerName,
    codec::{CodecError, decode_record, decode_record_as},
    version::{FIRST, Since},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Why a set is made alike; the later outweighs the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Why {
    /// Something changed here.
    Change,
    /// Something was taken from another, and the rest follow.
    Follow,
    /// Another server brought something here.
    Brought,
    /// The schedule of the configuration.
    Cron,
    /// Somebody asked for it.
    Hand,
    /// This server has become master.
    Election,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Change => "change",
            Self::Follow => "follow",
            Self::Brought => "brought",
            Self::Cron => "cron",
            Self::Hand => "hand",
            Self::Election => "election",
        })
    }
}

/// A set is owed to a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Why.
    pub why: Why,
    /// So often it was tried in vain.
    pub tries: u32,
}

/// What a run did with one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Nothing was left undone.
    pub complete: bool,
    /// Changes taken.
    pub taken: u64,
    /// Changes given.
    pub given: u64,
    /// Changes of both sides to the same path.
    pub conflicts: u64,
}

/// How a set last fared with a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When it ended, in seconds since 1970.
    pub at: u64,
    /// Why it ran.
    pub why: Why,
    /// What was done, or why nothing.
    pub outcome: Result<Done, String>,
}

impl Last {
    /// Whether it did anything, or left anything undone.
    pub fn is_notable(&self) -> bool {
        let nothing = |done: &Done| done.complete && done.taken + done.given + done.conflicts == 0;
        !self.outcome.as_ref().is_ok_and(nothing)
    }
}

/// What is known of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// When its schedule was last looked at and nothing of before was left to do, in seconds since 1970.
    pub seen: Option<u64>,
    /// What is owed.
    pub debts: BTreeMap<ServerName, Debt>,
    /// How it last went.
    pub last: BTreeMap<ServerName, Last>,
    /// How it went when there last was anything to tell of it.
    pub notable: Since<2, BTreeMap<ServerName, Last>>,
}

/// What survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Of each set.
    pub sets: BTreeMap<ServerName, Past>,
    /// The last term in which this server became master, and did what is to be done then.
    pub elections: BTreeMap<VirtualServerName, Term>,
}

impl Memory {
    /// Reads it as it is written, or was before there was anything notable in it.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode_record(bytes).or_else(|_| decode_record_as(bytes, FIRST))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::codec::{encode_record, encode_record_as};

    #[test]
    fn what_an_older_release_wrote_is_read() {
        let last = |outcome| Last {
            at: 7,
            why: Why::Cron,
            outcome,
        };
        let peer = |name: &str, outcome| (name.parse().unwrap(), last(outcome));
        let mut past = Past {
            last: BTreeMap::from([
                peer("beta", Ok(Done::default())),
                peer("gamma", Err("down".into())),
            ]),
            ..Past::default()
        };
        let memory = |past: &Past| Memory {
            sets: BTreeMap::from([("www".parse().unwrap(), past.clone())]),
            elections: BTreeMap::from([("web".parse().unwrap(), Term(3))]),
        };
        let old = encode_record_as(&memory(&past), FIRST).unwrap();
        assert_eq!(Memory::decode(&old).unwrap(), memory(&past));
        past.notable.0 = past.last.clone();
        let new = encode_record(&memory(&past)).unwrap();
        assert_eq!(Memory::decode(&new).unwrap(), memory(&past));
    }
}
