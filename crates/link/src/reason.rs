//! Why a connection ended.

use protocol::{codec::CodecError, seal::OpenError, version};
use std::fmt;

/// Why a connection ended.
#[derive(Debug)]
pub enum Reason {
    /// Connecting failed, in the kernel's words.
    Connect(String),
    /// The peer did not take the connection in time.
    ConnectTimeout,
    /// The peer closed it.
    Closed,
    /// The network failed, in the kernel's words.
    Network(String),
    /// The first bytes are not standin's.
    Preamble,
    /// The peer speaks this other version, which this server does not.
    Version(u8),
    /// The peer speaks no later version than this one, which is to be spoken then.
    Older(u8),
    /// The peer refuses, in its words.
    Refused(String),
    /// Neither a sealed frame nor a refusal.
    Kind(u8),
    /// A frame of this many bytes, which is more or less than there can be.
    Length(usize),
    /// A frame did not open.
    Seal(OpenError),
    /// An authentic frame without sense.
    Malformed(CodecError),
    /// An authentic frame of another connection: a replay.
    Replay,
    /// An authentic frame out of its place.
    Order {
        /// The number it should have.
        expected: u64,
        /// The number it has.
        got: u64,
    },
    /// An authentic frame that has no place in this state.
    Unexpected,
    /// The handshake took too long.
    HandshakeTimeout,
    /// Nothing authentic was heard for too long.
    Silence,
    /// The peer takes no more bytes.
    Overflow,
    /// A newer session of the same peer took its place, or a newer attempt from the same address.
    Replaced,
    /// This side's configuration changed.
    Reload,
    /// It was only to tell the peer to dial.
    Knocked,
}

impl Reason {
    /// Name of the counter for this reason.
    pub fn counter(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::Closed => "closed_by_peer",
            Self::Network(_) => "network_error",
            Self::Preamble => "refused_not_ours",
            Self::Version(_) => "refused_version",
            Self::Older(_) => "older_version",
            Self::Refused(_) => "refused_by_peer",
            Self::Kind(_) => "refused_kind",
            Self::Length(_) => "refused_length",
            Self::Seal(_) => "refused_unauthentic",
            Self::Malformed(_) => "refused_malformed",
            Self::Replay => "refused_replayed",
            Self::Order { .. } => "refused_order",
            Self::Unexpected => "refused_unexpected",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Silence => "silence",
            Self::Overflow => "overflow",
            Self::Replaced => "replaced",
            Self::Reload => "reload",
            Self::Knocked => "knocked",
        }
    }

    /// Something arrived that must not: an operator wants to know.
    pub fn is_refusal(&self) -> bool {
        self.counter().starts_with("refused_")
    }

    /// One of the two ended it on purpose, and another connection is there or comes.
    pub fn is_planned(&self) -> bool {
        matches!(
            self,
            Self::Older(_) | Self::Replaced | Self::Reload | Self::Knocked
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(words) => write!(f, "cannot connect: {words}"),
            Self::ConnectTimeout => f.write_str("no answer to connecting"),
            Self::Closed => f.write_str("closed by the peer"),
            Self::Network(words) => f.write_str(words),
            Self::Preamble => f.write_str("its first bytes are not standin's"),
            Self::Version(theirs) => write!(
                f,
                "it speaks version {theirs} and this server versions {} to {}: install the same release on both",
                version::WIRE.start(),
                version::WIRE.end()
            ),
            Self::Older(theirs) => write!(
                f,
                "it speaks version {theirs}, and so does this server with it"
            ),
            Self::Refused(words) => write!(f, "refused by the peer: {words}"),
            Self::Kind(kind) => write!(f, "unknown kind of frame {kind}"),
            Self::Length(length) => write!(f, "a frame cannot have {length} bytes here"),
            Self::Seal(e) => write!(
                f,
                "{e}: compare cluster name, server names and cluster.key of both"
            ),
            Self::Malformed(e) => e.fmt(f),
            Self::Replay => f.write_str("a frame of another connection: a replay"),
            Self::Order { expected, got } => write!(f, "frame {got} where {expected} is due"),
            Self::Unexpected => f.write_str("a frame that has no place here"),
            Self::HandshakeTimeout => f.write_str("handshake not finished in time"),
            Self::Silence => f.write_str("nothing heard for too long"),
            Self::Overflow => f.write_str("the peer takes no more bytes"),
            Self::Replaced => f.write_str("replaced by a newer connection"),
            Self::Reload => f.write_str("configuration read again"),
            Self::Knocked => f.write_str("the peer shall dial"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Unwanted;

    #[test]
    fn every_counter_stands_in_the_manual_and_speaks_in_one_line() {
        let manual = include_str!("../../../docs/PROTOCOL.md");
        let reasons = [
            Reason::Connect("refused".into()),
            Reason::ConnectTimeout,
            Reason::Closed,
            Reason::Network("reset".into()),
            Reason::Preamble,
            Reason::Version(2),
            Reason::Older(1),
            Reason::Refused("no".into()),
            Reason::Kind(1),
            Reason::Length(1),
            Reason::Seal(OpenError::Unauthentic),
            Reason::Malformed(CodecError::TooLong(protocol::codec::MESSAGE_MAX)),
            Reason::Replay,
            Reason::Order {
                expected: 1,
                got: 2,
            },
            Reason::Unexpected,
            Reason::HandshakeTimeout,
            Reason::Silence,
            Reason::Overflow,
            Reason::Replaced,
            Reason::Reload,
            Reason::Knocked,
        ];
        for reason in &reasons {
            assert!(
                manual.contains(&format!("`{}`", reason.counter())),
                "{}",
                reason.counter()
            );
            assert!(!reason.to_string().contains('\n'));
        }
        assert!(
            manual.contains(Unwanted::Unlisted.counter()) && manual.contains("`refused_direction`")
        );
    }

    #[test]
    fn what_must_not_arrive_is_a_refusal_and_a_failing_network_is_none() {
        for refusal in [Reason::Preamble, Reason::Replay, Reason::Kind(1)] {
            assert!(refusal.is_refusal(), "{refusal}");
        }
        for other in [Reason::Closed, Reason::Silence, Reason::Reload] {
            assert!(!other.is_refusal(), "{other}");
        }
    }
}
