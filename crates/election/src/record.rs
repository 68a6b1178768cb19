//! The bytes of the two things a server must not forget, each under a checksum.
//!
//! ```text
//! magic (8) | length (u32, little-endian) | SHA-256 of the payload, first 16 bytes | payload
//! ```

use protocol::codec;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

const HEAD: usize = 8 + 4 + 16;

/// Why bytes are no record.
#[derive(Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// Shorter than it says, or than any record.
    Short,
    /// Another kind of file, or another version of this one.
    Magic,
    /// The checksum does not fit.
    Checksum,
    /// The checksum fits, the content does not.
    Content(String),
}

impl std::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short => f.write_str("the file is cut short"),
            Self::Magic => f.write_str("not such a file, or of another version"),
            Self::Checksum => f.write_str("the checksum does not fit: the file is damaged"),
            Self::Content(why) => write!(f, "unreadable content: {why}"),
        }
    }
}

impl std::error::Error for BadRecord {}

fn digest(payload: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(payload)[..16]);
    short
}

pub(crate) fn to_bytes<T: Serialize>(
    magic: &[u8; 8],
    value: &T,
) -> Result<Vec<u8>, codec::CodecError> {
    let payload = codec::encode_record(value)?;
    let length =
        u32::try_from(payload.len()).map_err(|_| codec::CodecError::TooLong(codec::RECORD_MAX))?;
    let mut bytes = Vec::with_capacity(HEAD + payload.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&digest(&payload));
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Reads a record at the start of `bytes`; what follows it is ignored (slots are longer than records).
pub(crate) fn from_bytes<T: DeserializeOwned>(
    magic: &[u8; 8],
    bytes: &[u8],
) -> Result<T, BadRecord> {
    split(magic, bytes).map(|(value, _)| value)
}

/// Reads a record at the start of `bytes`, and gives what follows it.
pub(crate) fn split<'a, T: DeserializeOwned>(
    magic: &[u8; 8],
    bytes: &'a [u8],
) -> Result<(T, &'a [u8]), BadRecord> {
    let (head, rest) = bytes.split_at_checked(HEAD).ok_or(BadRecord::Short)?;
    if &head[..8] != magic {
        return Err(BadRecord::Magic);
    }
    let length = head[8..12]
        .iter()
        .rev()
        .fold(0usize, |n, b| n << 8 | usize::from(*b));
    let (payload, rest) = rest.split_at_checked(length).ok_or(BadRecord::Short)?;
    if head[12..] != digest(payload) {
        return Err(BadRecord::Checksum);
    }
    let value = codec::decode_record(payload).map_err(|e| BadRecord::Content(e.to_string()))?;
    Ok((value, rest))
}
