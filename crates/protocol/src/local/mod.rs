//! What the processes of one server say to each other over `<run-dir>/<role>.sock`.
//!
//! The receiver of a message owns the socket and the sender connects to it. The first packet of a
//! connection is a [`Hello`]; the answer is a [`HelloAnswer`], and a refusal is given in words.

pub mod ctl;
pub mod ring;
pub mod status;

use crate::ids::Role;
use serde::{Deserialize, Serialize};

/// First packet on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Always [`MAGIC`].
    pub magic: [u8; 8],
    /// The connecting side's [`crate::version::LOCAL`].
    pub version: u16,
    /// Who connects.
    pub role: Role,
}

/// First bytes of every local connection.
pub const MAGIC: [u8; 8] = *b"standin\0";

/// Answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloAnswer {
    /// Go on.
    Welcome,
    /// No, and why, for the log.
    Refused(String),
}
