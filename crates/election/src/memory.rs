//! What survives electd's death but not a reboot: `<run-dir>/electd.state` (ELECTION, "State").
//!
//! Written before the message that relies on it, alternately into two slots, each under a checksum; no
//! fsync, since the run-dir is in memory. A record of another boot counts for nothing.

use crate::record::{self, BadRecord};
use protocol::{BootTime, ServerName, Term, VirtualServerName, codec::CodecError};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"standM\x00\x02";

/// Of the format before: when a silence began was not in it.
const FORMER: &[u8; 8] = b"standM\x00\x01";

/// Length of one of the file's two slots in bytes: room for as many virtual servers as a server keeps promises
/// for, under the longest names.
pub const SLOT: usize = 128 * 1024;

/// Slots were half as long once; a newer electd finds what an older one wrote.
const STEP: usize = 64 * 1024;

/// One slot's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The kernel's boot id; a record of another boot counts for nothing.
    pub boot_id: [u8; 16],
    /// The higher of two good slots is the newer.
    pub sequence: u64,
    /// No vote and no promise before then: earlier promises were forgotten with a reboot (ELECTION R20 b),
    /// and a restart of electd must not cut the silence short.
    pub silent_until: Option<BootTime>,
    /// When that silence began: what the others tell is counted from there.
    pub silent_since: Option<BootTime>,
    /// Floor of every virtual server not named below.
    pub floor_base: Term,
    /// What was voted, and to whom it was last promised.
    pub votes: Vec<Vote>,
}

/// The format before.
#[derive(Serialize, Deserialize)]
struct Former {
    boot_id: [u8; 16],
    sequence: u64,
    silent_until: Option<BootTime>,
    floor_base: Term,
    votes: Vec<Vote>,
}

impl From<Former> for Memory {
    fn from(former: Former) -> Self {
        Self {
            boot_id: former.boot_id,
            sequence: former.sequence,
            silent_until: former.silent_until,
            silent_since: None,
            floor_base: former.floor_base,
            votes: former.votes,
        }
    }
}

/// The memory of one virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Which.
    pub virtual_server: VirtualServerName,
    /// Highest term voted or acknowledged in.
    pub voted: Term,
    /// The server last promised to.
    pub holder: Option<ServerName>,
}

impl Memory {
    /// The slot's bytes, shorter than [`SLOT`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        record::to_bytes(MAGIC, self)
    }

    /// Reads one slot, of the format before as well.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadRecord> {
        match record::from_bytes(MAGIC, bytes) {
            Err(BadRecord::Magic) => record::from_bytes(FORMER, bytes).map(Former::into),
            read => read,
        }
    }

    /// The newer good slot of this boot in a file's content.
    pub fn newest(file: &[u8], boot_id: [u8; 16]) -> Option<Self> {
        (0..file.len())
            .step_by(STEP)
            .filter_map(|at| Self::from_bytes(&file[at..]).ok())
            .filter(|memory| memory.boot_id == boot_id)
            .max_by_key(|memory| memory.sequence)
    }

    /// Which of the two slots this record belongs into.
    pub fn slot(&self) -> usize {
        usize::from(self.sequence % 2 == 1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::wire::beat::VIRTUAL_SERVERS_MAX;

    fn largest() -> Memory {
        let vote = |n: usize| Vote {
            virtual_server: format!("{n:063}").parse().unwrap(),
            voted: Term(u64::MAX),
            holder: Some(format!("{n:063}").parse().unwrap()),
        };
        Memory {
            boot_id: [255; 16],
            sequence: u64::MAX,
            silent_until: Some(BootTime(u64::MAX)),
            silent_since: Some(BootTime(u64::MAX)),
            floor_base: Term(u64::MAX),
            votes: (0..VIRTUAL_SERVERS_MAX).map(vote).collect(),
        }
    }

    #[test]
    fn the_largest_memory_fits_into_its_slot() {
        let memory = largest();
        let bytes = memory.to_bytes().unwrap();
        assert!(bytes.len() <= SLOT, "{}", bytes.len());
        assert_eq!(Memory::from_bytes(&bytes), Ok(memory));
    }

    #[test]
    fn what_was_written_into_shorter_slots_is_found() {
        let mut memory = largest();
        memory.votes.truncate(3);
        let mut file = vec![0; 2 * STEP];
        let older = Memory {
            sequence: 4,
            ..memory.clone()
        }
        .to_bytes()
        .unwrap();
        let newer = Memory {
            sequence: 5,
            ..memory
        }
        .to_bytes()
        .unwrap();
        file[..older.len()].copy_from_slice(&older);
        file[STEP..STEP + newer.len()].copy_from_slice(&newer);
        assert_eq!(Memory::newest(&file, [255; 16]).unwrap().sequence, 5);
    }

    #[test]
    fn what_an_electd_of_the_format_before_wrote_is_remembered() {
        let former = Former {
            boot_id: [7; 16],
            sequence: 9,
            silent_until: Some(BootTime(5)),
            floor_base: Term(3),
            votes: largest().votes,
        };
        let bytes = record::to_bytes(FORMER, &former).unwrap();
        let memory = Memory::newest(&bytes, [7; 16]).unwrap();
        assert_eq!((memory.sequence, memory.floor_base), (9, Term(3)));
        assert_eq!(memory.silent_until, Some(BootTime(5)));
        assert_eq!(memory.votes, former.votes);
    }
}
