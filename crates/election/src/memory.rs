//! What survives electd's death but not a reboot: `<run-dir>/electd.state` (ELECTION, "State").
//!
//! Written before the message that relies on it, alternately into two slots, each under a checksum; no
//! fsync, since the run-dir is in memory. A record of another boot counts for nothing.

use crate::record::{self, BadRecord};
use protocol::{BootTime, ServerName, Term, VirtualServerName, codec::CodecError};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"standM\x00\x01";

/// Length of one of the file's two slots in bytes.
pub const SLOT: usize = 64 * 1024;

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
    /// Floor of every virtual server not named below.
    pub floor_base: Term,
    /// What was voted, and to whom it was last promised.
    pub votes: Vec<Vote>,
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

    /// Reads one slot.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadRecord> {
        record::from_bytes(MAGIC, bytes)
    }

    /// The newer good slot of this boot in a file's content.
    pub fn newest(file: &[u8], boot_id: [u8; 16]) -> Option<Self> {
        file.chunks(SLOT)
            .filter_map(|slot| Self::from_bytes(slot).ok())
            .filter(|memory| memory.boot_id == boot_id)
            .max_by_key(|memory| memory.sequence)
    }

    /// Which of the two slots this record belongs into.
    pub fn slot(&self) -> usize {
        usize::from(self.sequence % 2 == 1)
    }
}
