//! What travels in a TCP link: a preamble in clear, then sealed frames.
//!
//! ```text
//!   preamble   "standin" version             once, each way
//!   sealed     'S'  length (u16, big-endian)  Frame, by `codec`, by `seal`
//!   refusal    'R'  length (u16, big-endian)  why this side closes, in words, in clear
//! ```
//!
//! Preamble and refusal are in clear and the same in every version, so that two versions can tell each
//! other why they do not talk. Nothing but a log line may depend on a refusal: anybody can forge one.

use super::signal::Signal;
use crate::{codec::MESSAGE_MAX, seal};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// First bytes of a link each way, before the version.
pub const MAGIC: [u8; 7] = *b"standin";

/// Bytes of the preamble: magic and version.
pub const PREAMBLE: usize = MAGIC.len() + 1;

/// Bytes before the contents of a frame: kind and length.
pub const HEADER: usize = 3;

/// Longest contents of a sealed frame, in bytes.
pub const SEALED_MAX: usize = MESSAGE_MAX + seal::OVERHEAD;

/// Longest contents of a sealed frame of the handshake: more is not read from a stranger.
pub const HANDSHAKE_MAX: usize = 256;

/// Longest refusal, in bytes.
pub const REFUSAL_MAX: usize = 200;

const _: () = assert!(
    SEALED_MAX <= u16::MAX as usize,
    "the length must fit its field"
);

/// 128 random bits, drawn afresh by each side for each connection: what names both sides' challenges
/// belongs to this connection and to no other, recorded or to come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Challenge(pub [u8; 16]);

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Challenge {
    /// The nonce of frame `sequence` of the side that drew this challenge. It never repeats, and its first
    /// 16 bytes, which derive the key, differ from frame to frame too.
    pub fn nonce(self, sequence: u64) -> [u8; seal::NONCE] {
        let key_part = u128::from_le_bytes(self.0) ^ u128::from(sequence);
        let mut nonce = [0; seal::NONCE];
        nonce[..16].copy_from_slice(&key_part.to_le_bytes());
        nonce[16..].copy_from_slice(&sequence.to_le_bytes());
        nonce
    }
}

/// One frame, before it is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The sender's challenge.
    pub sender: Challenge,
    /// The receiver's challenge; absent only in the dialling side's hello, which cannot know it.
    pub receiver: Option<Challenge>,
    /// 0 for the hello, then one more for each frame.
    pub sequence: u64,
    /// What it says.
    pub body: Body,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// First frame each way.
    Hello {
        /// The sender speaks at least this often; the receiver's patience depends on it.
        ping: Duration,
    },
    /// Nothing to say, but alive. The dialling side's first one ends the handshake.
    Ping,
    /// A signal between electors.
    Signal(Signal),
}

/// What stands before the contents of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Sealed contents of so many bytes follow.
    Sealed(usize),
    /// A refusal of so many bytes follows.
    Refusal(usize),
}

impl Header {
    /// The header at the start of `bytes`; `None` for an unknown kind.
    pub fn read(bytes: [u8; HEADER]) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes([bytes[1], bytes[2]]));
        match bytes[0] {
            b'S' => Some(Self::Sealed(length)),
            b'R' => Some(Self::Refusal(length)),
            _ => None,
        }
    }

    /// Length of the contents that follow.
    pub fn length(self) -> usize {
        match self {
            Self::Sealed(length) | Self::Refusal(length) => length,
        }
    }
}

/// The preamble of a connection that speaks `version`.
pub fn preamble(version: u8) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()] = version;
    bytes
}

/// The version in a preamble; `None` if it is none.
pub fn read_preamble(bytes: [u8; PREAMBLE]) -> Option<u8> {
    bytes.starts_with(&MAGIC).then_some(bytes[MAGIC.len()])
}

/// Appends a sealed frame with its header to `out`. `sealed` has at most [`SEALED_MAX`] bytes.
pub fn write_sealed(sealed: &[u8], out: &mut Vec<u8>) {
    write(b'S', sealed, out);
}

/// Appends a refusal to `out`, cut to [`REFUSAL_MAX`] bytes.
pub fn write_refusal(words: &str, out: &mut Vec<u8>) {
    let words = words.as_bytes();
    write(b'R', &words[..words.len().min(REFUSAL_MAX)], out);
}

/// A refusal's words, fit for a log: printable ASCII.
pub fn read_refusal(bytes: &[u8]) -> String {
    let printable = |b: &u8| {
        if (b' '..=b'~').contains(b) {
            char::from(*b)
        } else {
            '?'
        }
    };
    bytes.iter().take(REFUSAL_MAX).map(printable).collect()
}

fn write(kind: u8, contents: &[u8], out: &mut Vec<u8>) {
    debug_assert!(
        contents.len() <= SEALED_MAX,
        "checked where the message is encoded"
    );
    let length = u16::try_from(contents.len()).unwrap_or(u16::MAX);
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&contents[..usize::from(length)]);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn bytes_of_version_1_stay_what_they_are() {
        assert_eq!(preamble(1), *b"standin\x01");
        let hello = Frame {
            sender: Challenge([1; 16]),
            receiver: None,
            sequence: 0,
            body: Body::Hello {
                ping: Duration::from_millis(200),
            },
        };
        let mut golden = vec![1; 16];
        golden.extend([0, 0, 0, 0, 252, 0x00, 0xc2, 0xeb, 0x0b]);
        assert_eq!(codec::encode(&hello).unwrap(), golden);
        let ping = Frame {
            sender: Challenge([1; 16]),
            receiver: Some(Challenge([2; 16])),
            sequence: 1,
            body: Body::Ping,
        };
        let mut golden = vec![1; 16];
        golden.push(1);
        golden.extend([2; 16]);
        golden.extend([1, 1]);
        assert_eq!(codec::encode(&ping).unwrap(), golden);
        assert_eq!(codec::decode::<Frame>(&golden).unwrap(), ping);
    }

    #[test]
    fn headers_survive_the_round_trip() {
        let mut out = Vec::new();
        write_sealed(&[9; 300], &mut out);
        assert_eq!(out[..HEADER], [b'S', 1, 44]);
        assert_eq!(
            Header::read([out[0], out[1], out[2]]),
            Some(Header::Sealed(300))
        );
        assert_eq!(Header::read(*b"X\0\0"), None);
        assert_eq!(read_preamble(preamble(7)), Some(7));
        assert_eq!(read_preamble(*b"HTTP/1.1"), None);
    }

    #[test]
    fn refusals_are_cut_and_made_printable() {
        let mut out = Vec::new();
        write_refusal(&"x".repeat(1000), &mut out);
        assert_eq!(out.len(), HEADER + REFUSAL_MAX);
        assert_eq!(read_refusal(b"no\n\x1b[31m\xff"), "no??[31m?");
    }

    #[test]
    fn no_two_frames_share_a_nonce_or_its_key_part() {
        let challenge = Challenge([0xa5; 16]);
        let nonces: Vec<_> = (0..1000).map(|n| challenge.nonce(n)).collect();
        for part in [0..16, 0..24] {
            let mut seen: Vec<_> = nonces.iter().map(|n| n[part.clone()].to_vec()).collect();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), nonces.len());
        }
    }
}
