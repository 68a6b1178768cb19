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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MAGIC: &[u8; 8] = b"standT\x00\x01";

    type Content = (u64, String);

    fn content() -> Content {
        (7, "x".repeat(300))
    }

    fn record() -> Vec<u8> {
        to_bytes(MAGIC, &content()).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Content, BadRecord> {
        from_bytes(MAGIC, bytes)
    }

    #[test]
    fn the_bytes_are_magic_length_checksum_and_payload() {
        let empty = [
            &MAGIC[..],
            &[0; 4],
            // SHA-256 of nothing.
            b"\xe3\xb0\xc4\x42\x98\xfc\x1c\x14\x9a\xfb\xf4\xc8\x99\x6f\xb9\x24",
        ];
        assert_eq!(to_bytes(MAGIC, &()).unwrap(), empty.concat());
        assert_eq!(from_bytes(MAGIC, &empty.concat()), Ok(()));
        let bytes = record();
        assert_eq!(bytes[8..12], [0x30, 1, 0, 0], "1 + 3 + 300 bytes");
        assert_eq!(bytes[12..HEAD], digest(&bytes[HEAD..]));
        assert_eq!(bytes[HEAD..], codec::encode_record(&content()).unwrap());
        assert_eq!(read(&bytes), Ok(content()));
    }

    #[test]
    fn what_follows_a_record_is_ignored() {
        for rest in [&[0][..], &[255; 100], &record()] {
            assert_eq!(read(&[&record(), rest].concat()), Ok(content()));
        }
    }

    #[test]
    fn a_record_cut_anywhere_is_short() {
        let bytes = record();
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]), Err(BadRecord::Short), "{length}");
        }
    }

    #[test]
    fn another_kind_of_record_is_refused_however_good() {
        for magic in [b"standM\x00\x01", b"standT\x00\x02"] {
            let bytes = to_bytes(magic, &content()).unwrap();
            assert_eq!(read(&bytes), Err(BadRecord::Magic));
        }
        assert_eq!(read(&[0; 1000]), Err(BadRecord::Magic), "a blank slot");
    }

    #[test]
    fn a_wrong_length_is_refused_with_or_without_bytes_to_fill_it() {
        let (bytes, true_length) = (record(), 304u32);
        for length in [
            0,
            1,
            303,
            305,
            48,
            304 + (1 << 16),
            304 + (1 << 24),
            u32::MAX,
        ] {
            let mut bytes = bytes.clone();
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            let longer = length > true_length;
            let cut = if longer {
                BadRecord::Short
            } else {
                BadRecord::Checksum
            };
            assert_eq!(read(&bytes), Err(cut), "{length}");
            bytes.resize(1 << 17, 0);
            let beyond = length > 1 << 17;
            let filled = if beyond {
                BadRecord::Short
            } else {
                BadRecord::Checksum
            };
            assert_eq!(read(&bytes), Err(filled), "{length}, filled");
        }
    }

    #[test]
    fn each_damaged_byte_is_noticed() {
        let bytes = record();
        for at in 0..bytes.len() {
            for damage in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
                let mut bytes = bytes.clone();
                bytes[at] ^= damage;
                let refused = match read(&bytes) {
                    Err(BadRecord::Magic) => at < 8,
                    Err(BadRecord::Short) => (8..12).contains(&at),
                    Err(BadRecord::Checksum) => at >= 8,
                    Err(BadRecord::Content(_)) | Ok(_) => false,
                };
                assert!(refused, "byte {at} ^ {damage}: {:?}", read(&bytes));
            }
        }
    }

    #[test]
    fn a_good_checksum_over_other_content_is_no_record() {
        let too_little = to_bytes(MAGIC, &7u64).unwrap();
        let too_much = to_bytes(MAGIC, &(content(), 1u8)).unwrap();
        let no_text = to_bytes(MAGIC, &(7u64, [2u8, 255, 255])).unwrap();
        for bytes in [too_little, too_much, no_text] {
            let refused = read(&bytes);
            assert!(matches!(refused, Err(BadRecord::Content(_))), "{refused:?}");
        }
    }

    #[test]
    fn what_is_too_long_to_be_read_is_not_written() {
        let longest = |n: usize| to_bytes(MAGIC, &"x".repeat(n));
        let most = codec::RECORD_MAX - 5;
        let bytes = longest(most).unwrap();
        assert_eq!(from_bytes(MAGIC, &bytes), Ok("x".repeat(most)));
        let refused = longest(most + 1);
        assert!(
            matches!(refused, Err(codec::CodecError::TooLong(_))),
            "{refused:?}"
        );
    }

    #[test]
    fn each_reason_is_told_in_words_of_its_own() {
        let content = BadRecord::Content("no text".into());
        let reasons = [
            BadRecord::Short,
            BadRecord::Magic,
            BadRecord::Checksum,
            content,
        ];
        let texts = reasons.map(|reason| reason.to_string());
        assert_eq!(texts[3], "unreadable content: no text");
        for (i, text) in texts.iter().enumerate() {
            assert!(!text.is_empty() && !texts[..i].contains(text), "{text:?}");
        }
    }
}
