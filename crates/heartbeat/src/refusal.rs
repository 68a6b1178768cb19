//! Why a datagram is refused. Every reason has its counter.

use protocol::{local::status::Refused, version, wire::datagram::PacketError};
use std::fmt;

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Its source address belongs to no server of the configuration. Dropped before any cryptography, but for a try a
    /// second to name it.
    Unlisted,
    /// Longer than any packet.
    TooLong,
    /// Does not begin like a packet of standin.
    NotOurs,
    /// Another version of the protocol.
    Version(u8),
    /// The seal does not open: other key, cluster, sender or receiver, or changed on the way.
    Unauthentic,
    /// The seal opens, the contents are no packet.
    Malformed,
    /// From an incarnation that has not proved itself yet.
    UnknownIncarnation,
    /// From an incarnation that a later one has replaced: late, or a replay.
    FormerIncarnation,
    /// To a former incarnation of this server: late, or a replay.
    FormerReceiver,
    /// Answers no challenge that is open.
    Unasked,
    /// Its sequence number has been seen and it came by the same path again: a replay.
    Replayed,
    /// Its sequence number lies below the window: very late, or a replay.
    Stale,
    /// More hellos than are answered in one heartbeat interval.
    HelloTooOften,
}

impl Refusal {
    /// Name of the counter.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unlisted => "refused_unlisted",
            Self::TooLong => "refused_too_long",
            Self::NotOurs => "refused_not_ours",
            Self::Version(_) => "refused_version",
            Self::Unauthentic => "refused_unauthentic",
            Self::Malformed => "refused_malformed",
            Self::UnknownIncarnation => "refused_unknown_incarnation",
            Self::FormerIncarnation => "refused_former_incarnation",
            Self::FormerReceiver => "refused_former_receiver",
            Self::Unasked => "refused_unasked",
            Self::Replayed => "refused_replayed",
            Self::Stale => "refused_stale",
            Self::HelloTooOften => "refused_hello_too_often",
        }
    }

    /// What an operator has to mend, unlike what a restart or a slow path brings along.
    pub fn lasting(self) -> Option<Refused> {
        match self {
            Self::TooLong => Some(Refused::TooLong),
            Self::NotOurs => Some(Refused::NotOurs),
            Self::Version(version) => Some(Refused::Version(version)),
            Self::Unauthentic => Some(Refused::Unauthentic),
            Self::Malformed => Some(Refused::Malformed),
            Self::Unlisted
            | Self::UnknownIncarnation
            | Self::FormerIncarnation
            | Self::FormerReceiver
            | Self::Unasked
            | Self::Replayed
            | Self::Stale
            | Self::HelloTooOften => None,
        }
    }
}

impl From<&PacketError> for Refusal {
    fn from(error: &PacketError) -> Self {
        match error {
            PacketError::NotOurs => Self::NotOurs,
            PacketError::Version(v) => Self::Version(*v),
            PacketError::Seal(_) => Self::Unauthentic,
            PacketError::Malformed(_) => Self::Malformed,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlisted => f.write_str("address of no server in the configuration"),
            Self::TooLong => f.write_str("longer than any packet"),
            Self::NotOurs => f.write_str("not a packet of standin"),
            Self::Version(v) => {
                let (oldest, newest) = (version::WIRE.start(), version::WIRE.end());
                write!(
                    f,
                    "protocol version {v}, this server speaks {oldest} to {newest}: install one release on all"
                )
            }
            Self::Unauthentic => {
                f.write_str("seal does not open: compare cluster name and cluster.key")
            }
            Self::Malformed => f.write_str("sealed, but no packet: install one version on all"),
            Self::UnknownIncarnation => {
                f.write_str("restarted, has not answered the challenge yet")
            }
            Self::FormerIncarnation => {
                f.write_str("of a run before the peer's restart (late, or a replay)")
            }
            Self::FormerReceiver => f.write_str("for a run before our restart (late, or a replay)"),
            Self::Unasked => f.write_str("answer to no open challenge"),
            Self::Replayed => f.write_str("seen before (a replay)"),
            Self::Stale => f.write_str("far behind the newest (very late, or a replay)"),
            Self::HelloTooOften => f.write_str("too many hellos"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_words_of_its_own() {
        use Refusal::*;
        let all = [
            Unlisted,
            TooLong,
            NotOurs,
            Version(77),
            Unauthentic,
            Malformed,
            UnknownIncarnation,
            FormerIncarnation,
            FormerReceiver,
            Unasked,
            Replayed,
            Stale,
            HelloTooOften,
        ];
        let told = all.map(|why| (why.name(), why.to_string()));
        for (i, (name, words)) in told.iter().enumerate() {
            assert!(name.starts_with("refused_") && !words.is_empty());
            let others = &told[..i];
            assert!(
                others.iter().all(|(n, w)| n != name && w != words),
                "{name}: {words}"
            );
        }
        assert!(told[3].1.contains("version 77"));
    }
}
