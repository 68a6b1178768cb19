//! The one place where messages become bytes and bytes become messages.
//!
//! bincode's standard configuration (little-endian, variable-length integers) with a hard limit on what a
//! decoder may allocate. Trailing bytes are an error: a message is exactly its bytes.

use crate::version;
use serde::{Serialize, de::DeserializeOwned};

/// Largest message in bytes, on the network and on local sockets alike.
pub const MESSAGE_MAX: usize = 60 * 1024;

/// Why bytes could not be made or understood.
#[derive(Debug)]
pub enum CodecError {
    /// It needs more bytes than this.
    TooLong(usize),
    /// Bytes are left over after the message.
    Trailing(usize),
    /// The bytes are not such a message.
    Malformed(bincode::error::DecodeError),
    /// The value cannot be written as bytes.
    Unwritable(bincode::error::EncodeError),
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong(most) => write!(f, "message longer than {most} bytes"),
            Self::Trailing(n) => write!(f, "{n} bytes after the end of the message"),
            Self::Malformed(e) => write!(f, "malformed message: {e}"),
            Self::Unwritable(e) => write!(f, "message cannot be written: {e}"),
        }
    }
}

impl std::error::Error for CodecError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLong(_) | Self::Trailing(_) => None,
            Self::Malformed(e) => Some(e),
            Self::Unwritable(e) => Some(e),
        }
    }
}

/// Largest record in bytes: what a server keeps for itself and never sends.
pub const RECORD_MAX: usize = 124 * 1024;

/// What a decoder may count while it reads one message. It counts integers at their full size, up to eight
/// for one byte, and so must be allowed eight times the bytes. A text costs no more than it counts; a list is made
/// with room for what it claims to have, in one mebibyte at most, before its entries turn out to be missing.
const DECODER: usize = 8;

/// The newest version.
const NEWEST: u8 = *version::WIRE.end();

/// Writes `message` as bytes of the newest version, at most [`MESSAGE_MAX`] of them.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    encode_as(message, NEWEST)
}

/// The same as bytes of `version`.
pub fn encode_as<T: Serialize>(message: &T, version: u8) -> Result<Vec<u8>, CodecError> {
    encode_within(message, version, MESSAGE_MAX)
}

/// Writes `record` as bytes, at most [`RECORD_MAX`] of them.
pub fn encode_record<T: Serialize>(record: &T) -> Result<Vec<u8>, CodecError> {
    encode_record_as(record, NEWEST)
}

/// The same as bytes of `version`.
pub fn encode_record_as<T: Serialize>(record: &T, version: u8) -> Result<Vec<u8>, CodecError> {
    encode_within(record, version, RECORD_MAX)
}

fn encode_within<T: Serialize>(value: &T, version: u8, most: usize) -> Result<Vec<u8>, CodecError> {
    let standard = bincode::config::standard();
    let bytes = version::with(version, || bincode::serde::encode_to_vec(value, standard))
        .map_err(CodecError::Unwritable)?;
    if bytes.len() > most {
        Err(CodecError::TooLong(most))
    } else {
        Ok(bytes)
    }
}

/// Reads the messages of `version` that fill `bytes` one after another; the last one is an error if the rest is no
/// message.
pub fn decode_all<T: DeserializeOwned>(
    bytes: &[u8],
    version: u8,
) -> impl Iterator<Item = Result<T, CodecError>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take()?;
        if bytes.len() > MESSAGE_MAX {
            return Some(Err(CodecError::TooLong(MESSAGE_MAX)));
        }
        let limited = limited::<{ DECODER * MESSAGE_MAX }>();
        match version::with(version, || {
            bincode::serde::decode_from_slice(bytes, limited)
        }) {
            Ok((message, used)) => {
                rest = bytes
                    .get(used..)
                    .filter(|rest| !rest.is_empty() && used > 0);
                Some(Ok(message))
            }
            Err(e) => Some(Err(CodecError::Malformed(e))),
        }
    })
}

/// Reads one message of the newest version that fills `bytes` to the last one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_as(bytes, NEWEST)
}

/// The same of `version`.
pub fn decode_as<T: DeserializeOwned>(bytes: &[u8], version: u8) -> Result<T, CodecError> {
    decode_within::<{ DECODER * MESSAGE_MAX }, T>(bytes, version)
}

/// Reads one record that fills `bytes` to the last one.
pub fn decode_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_record_as(bytes, NEWEST)
}

/// The same of `version`.
pub fn decode_record_as<T: DeserializeOwned>(bytes: &[u8], version: u8) -> Result<T, CodecError> {
    decode_within::<{ DECODER * RECORD_MAX }, T>(bytes, version)
}

fn limited<const LIMIT: usize>() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

fn decode_within<const LIMIT: usize, T: DeserializeOwned>(
    bytes: &[u8],
    version: u8,
) -> Result<T, CodecError> {
    if bytes.len() > LIMIT / DECODER {
        return Err(CodecError::TooLong(LIMIT / DECODER));
    }
    let limited = limited::<LIMIT>();
    let (message, used) = version::with(version, || {
        bincode::serde::decode_from_slice(bytes, limited)
    })
    .map_err(CodecError::Malformed)?;
    match bytes.len() - used {
        0 => Ok(message),
        left => Err(CodecError::Trailing(left)),
    }
}
