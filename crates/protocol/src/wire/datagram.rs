//! The UDP packet: a small clear header, then a sealed [`Packet`].
//!
//! ```text
//!   "stdn" | version | nonce (24) | ciphertext | tag (16)
//! ```
//!
//! The header only tells other traffic and other versions apart; nothing is decided by it. Who speaks to
//! whom, which run of each, and in which order stands under the seal.

use super::beat::{Ack, Beat};
use crate::{
    codec::{self, CodecError, MESSAGE_MAX},
    ids::ServerName,
    seal::{Channel, Context, NONCE, OVERHEAD, OpenError, Sealer},
    version::{self, Since},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// First bytes of every packet.
pub const MAGIC: [u8; 4] = *b"stdn";

/// Bytes of the clear header.
pub const HEADER: usize = MAGIC.len() + 1;

/// Longest packet in bytes; it fits into one UDP datagram.
pub const DATAGRAM_MAX: usize = HEADER + OVERHEAD + MESSAGE_MAX;

/// 128 random bits that hbd draws at each of its starts: one run of one server's hbd.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub [u8; 16]);

/// 128 fresh random bits; only whoever opened them under the cluster key can say them back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Challenge(pub [u8; 16]);

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({:032x})", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Challenge({:032x})", u128::from_be_bytes(self.0))
    }
}

/// What one server's hbd sends to another's (ELECTION R26).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packet {
    /// Who are you now? Answered in any state; changes nothing at the receiver.
    Hello {
        /// The sender's incarnation.
        from: Incarnation,
        /// To be said back.
        challenge: Challenge,
    },
    /// The answer: proves that the sender's incarnation lived after the challenge was made.
    HelloAnswer {
        /// The sender's incarnation.
        from: Incarnation,
        /// The incarnation that asked.
        to: Incarnation,
        /// Its challenge.
        challenge: Challenge,
        /// The sender's [`version::WIRE`].
        speaks: Since<2, Speaks>,
    },
    /// Everything else.
    Data(Box<Data>),
}

/// The versions that a server speaks, as far as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaks {
    /// The oldest.
    pub oldest: u8,
    /// The newest.
    pub newest: u8,
}

impl Default for Speaks {
    /// Who says nothing speaks the first version only.
    fn default() -> Self {
        Self {
            oldest: version::FIRST,
            newest: version::FIRST,
        }
    }
}

impl Speaks {
    /// This program.
    pub const OURS: Self = Self {
        oldest: *version::WIRE.start(),
        newest: *version::WIRE.end(),
    };
}

/// Beats and acknowledgements that leave together, between two incarnations that have proved themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// The sender's incarnation.
    pub from: Incarnation,
    /// The receiver's incarnation.
    pub to: Incarnation,
    /// Starts at one and grows by one per packet; the same on every path.
    pub sequence: u64,
    /// When it was sent: the sender's CLOCK_REALTIME in nanoseconds since 1970.
    pub sent_ns: u64,
    /// When the last packet to the receiver of which that is known really left, if the sender's kernel tells such a thing.
    pub left: Option<Left>,
    /// The newest message that the sender has had from the receiver, if any.
    pub echo: Option<Echo>,
    /// The messages, in the order in which they were made.
    pub bodies: Vec<Body>,
}

/// Two of the four timestamps of an offset estimate, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// `sent_ns` of the message received: by the clock of this packet's receiver.
    pub sent_ns: u64,
    /// When the kernel received it: by the clock of this packet's sender.
    pub received_ns: u64,
}

/// How much later than it says a packet left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// What it says: `sent_ns`.
    pub sent_ns: u64,
    /// How much later the kernel gave it to the network, in nanoseconds.
    pub late_ns: u32,
}

/// One message in a [`Data`] packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A heartbeat.
    Beat(Beat),
    /// An acknowledgement.
    Ack(Ack),
}

/// Why bytes are no packet from this sender to this receiver.
#[derive(Debug)]
pub enum PacketError {
    /// The bytes do not begin like a packet of standin.
    NotOurs,
    /// The sender speaks this other version of the protocol.
    Version(u8),
    /// The seal does not open.
    Seal(OpenError),
    /// Sealed by a server of this cluster, but not a packet of this version.
    Malformed(CodecError),
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("not a packet of standin"),
            Self::Version(v) => {
                write!(
                    f,
                    "protocol version {v}, this server speaks {} to {}: install one release on all",
                    version::WIRE.start(),
                    version::WIRE.end()
                )
            }
            Self::Seal(e) => e.fmt(f),
            Self::Malformed(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for PacketError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotOurs | Self::Version(_) => None,
            Self::Seal(e) => Some(e),
            Self::Malformed(e) => Some(e),
        }
    }
}

/// Makes the bytes of a packet of `version`. `nonce` is random and never used again.
pub fn seal(
    sealer: &Sealer,
    (from, to): (&ServerName, &ServerName),
    version: u8,
    nonce: [u8; NONCE],
    packet: &Packet,
) -> Result<Vec<u8>, CodecError> {
    let plain = codec::encode_as(packet, version)?;
    let mut bytes = Vec::with_capacity(HEADER + OVERHEAD + plain.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(version);
    bytes.extend_from_slice(&sealer.seal(
        &Context {
            version,
            channel: Channel::Udp,
            from,
            to,
        },
        nonce,
        &plain,
    ));
    Ok(bytes)
}

/// Reads what [`seal`] made for the same sender and receiver, and of which version it is.
pub fn open(
    sealer: &Sealer,
    from: &ServerName,
    to: &ServerName,
    bytes: &[u8],
) -> Result<(u8, Packet), PacketError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(PacketError::NotOurs)?;
    let (&spoken, sealed) = rest.split_first().ok_or(PacketError::NotOurs)?;
    if !version::WIRE.contains(&spoken) {
        return Err(PacketError::Version(spoken));
    }
    let context = Context {
        version: spoken,
        channel: Channel::Udp,
        from,
        to,
    };
    let plain = sealer.open(&context, sealed).map_err(PacketError::Seal)?;
    let packet = codec::decode_as(&plain, spoken).map_err(PacketError::Malformed)?;
    Ok((spoken, packet))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hello() -> Packet {
        Packet::Hello {
            from: Incarnation([1; 16]),
            challenge: Challenge([2; 16]),
        }
    }

    fn names() -> (ServerName, ServerName) {
        ("alpha".parse().unwrap(), "beta".parse().unwrap())
    }

    #[test]
    fn a_packet_survives_the_way_and_fits_a_datagram() {
        let (sealer, (a, b)) = (Sealer::new(&[[1; 32]], "web"), names());
        let bytes = seal(&sealer, (&a, &b), 2, [9; NONCE], &hello()).unwrap();
        assert_eq!(open(&sealer, &a, &b, &bytes).unwrap(), (2, hello()));
        const { assert!(DATAGRAM_MAX <= 65_507) };
    }

    #[test]
    fn other_traffic_and_other_versions_are_told_apart() {
        let (sealer, (a, b)) = (Sealer::new(&[[1; 32]], "web"), names());
        let mut bytes = seal(&sealer, (&a, &b), 1, [9; NONCE], &hello()).unwrap();
        for cut in 0..HEADER {
            assert!(matches!(
                open(&sealer, &a, &b, &bytes[..cut]),
                Err(PacketError::NotOurs)
            ));
        }
        for cut in HEADER..bytes.len() {
            assert!(matches!(
                open(&sealer, &a, &b, &bytes[..cut]),
                Err(PacketError::Seal(_))
            ));
        }
        bytes[4] = 200;
        assert!(matches!(
            open(&sealer, &a, &b, &bytes),
            Err(PacketError::Version(200))
        ));
        bytes[0] ^= 1;
        assert!(matches!(
            open(&sealer, &a, &b, &bytes),
            Err(PacketError::NotOurs)
        ));
    }

    #[test]
    fn sealed_nonsense_is_malformed_and_no_more() {
        let (sealer, (a, b)) = (Sealer::new(&[[1; 32]], "web"), names());
        let context = Context {
            version: 1,
            channel: Channel::Udp,
            from: &a,
            to: &b,
        };
        let mut bytes = [&MAGIC[..], &[1]].concat();
        bytes.extend(sealer.seal(&context, [9; NONCE], &[0xff; 40]));
        assert!(matches!(
            open(&sealer, &a, &b, &bytes),
            Err(PacketError::Malformed(_))
        ));
    }
}
