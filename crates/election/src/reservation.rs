//! What survives everything: the term reservation in `<state-dir>/reservation` (ELECTION, "State").

use crate::record::{self, BadRecord};
use protocol::{ServerName, Term, VirtualServerName, codec::CodecError, wire::beat::Roster};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const MAGIC: &[u8; 8] = b"standR\x00\x01";

/// Terms reserved at a time; half of them are kept ahead of every floor seen (ELECTION R22).
pub const BLOCK: u64 = 2048;

/// Written with a temporary file, fsync, rename and fsync of the folder, never in the path of an election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Votes are given only in terms up to this one.
    pub reserved: Term,
    /// Longest lease ever promised: a restarted voter is silent that long.
    pub promise_max: Duration,
    /// The voters in force.
    pub roster: Roster,
}

impl Reservation {
    /// The first reservation of a new cluster (`standin init`): the same on every server.
    ///
    /// `keeper` is the virtual server whose master may change the roster: the first of the configuration.
    pub fn first(
        mut voters: Vec<ServerName>,
        keeper: Option<VirtualServerName>,
        lease: Duration,
    ) -> Self {
        voters.sort();
        voters.dedup();
        let roster = Roster {
            voters,
            keeper,
            ..Roster::default()
        };
        Self {
            reserved: Term(BLOCK),
            promise_max: lease,
            roster,
        }
    }

    /// The file's content.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        record::to_bytes(MAGIC, self)
    }

    /// Reads a file's content.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadRecord> {
        record::from_bytes(MAGIC, bytes)
    }
}
