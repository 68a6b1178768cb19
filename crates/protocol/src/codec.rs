//! The one place where messages become bytes and bytes become messages.
//!
//! bincode's standard configuration (little-endian, variable-length integers) with a hard limit on what a
//! decoder may allocate. Trailing bytes are an error: a message is exactly its bytes.

use serde::{Serialize, de::DeserializeOwned};

/// Largest message in bytes, on the network and on local sockets alike.
pub const MESSAGE_MAX: usize = 60 * 1024;

/// Why bytes could not be made or understood.
#[derive(Debug)]
pub enum CodecError {
    /// The message needs more than [`MESSAGE_MAX`] bytes.
    TooLong,
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
            Self::TooLong => write!(f, "message longer than {MESSAGE_MAX} bytes"),
            Self::Trailing(n) => write!(f, "{n} bytes after the end of the message"),
            Self::Malformed(e) => write!(f, "malformed message: {e}"),
            Self::Unwritable(e) => write!(f, "message cannot be written: {e}"),
        }
    }
}

impl std::error::Error for CodecError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLong | Self::Trailing(_) => None,
            Self::Malformed(e) => Some(e),
            Self::Unwritable(e) => Some(e),
        }
    }
}

/// What a decoder may count while it reads one message. It counts integers at their full size, up to eight
/// for one byte, and so must be allowed eight times [`MESSAGE_MAX`]; it allocates no more than it counts.
const DECODER_MAX: usize = 8 * MESSAGE_MAX;

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODER_MAX>()
}

/// Writes `message` as bytes, at most [`MESSAGE_MAX`] of them.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes =
        bincode::serde::encode_to_vec(message, configuration()).map_err(CodecError::Unwritable)?;
    if bytes.len() > MESSAGE_MAX {
        Err(CodecError::TooLong)
    } else {
        Ok(bytes)
    }
}

/// Reads the messages that fill `bytes` one after another; the last one is an error if the rest is no message.
pub fn decode_all<T: DeserializeOwned>(
    bytes: &[u8],
) -> impl Iterator<Item = Result<T, CodecError>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take()?;
        if bytes.len() > MESSAGE_MAX {
            return Some(Err(CodecError::TooLong));
        }
        match bincode::serde::decode_from_slice(bytes, configuration()) {
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

/// Reads one message that fills `bytes` to the last one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MESSAGE_MAX {
        return Err(CodecError::TooLong);
    }
    let (message, used) =
        bincode::serde::decode_from_slice(bytes, configuration()).map_err(CodecError::Malformed)?;
    match bytes.len() - used {
        0 => Ok(message),
        left => Err(CodecError::Trailing(left)),
    }
}
