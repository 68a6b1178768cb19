//! Names, terms, numbers and times: the small types that every message is made of.

use serde::{Deserialize, Serialize};
use std::{fmt, ops, str::FromStr, sync::Arc, time::Duration};

/// Longest name of a server or virtual server in bytes.
pub const NAME_MAX: usize = 63;

/// A text that is no name: empty, too long, or with a character outside `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadName(pub String);

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "\"{}\" is not a name: 1 to {NAME_MAX} of A-Z a-z 0-9 . _ -",
            self.0.escape_debug()
        )
    }
}

impl std::error::Error for BadName {}

fn checked(text: &str) -> Result<Arc<str>, BadName> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    if text.is_empty() || text.len() > NAME_MAX || !text.bytes().all(fine) {
        return Err(BadName(text.chars().take(NAME_MAX).collect()));
    }
    Ok(text.into())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                checked(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                checked(&text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Name of a server, the same in every server's configuration.
    ServerName
}
name! {
    /// Name of a virtual server: one set of addresses with one master.
    VirtualServerName
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Term of a mastership: grows with every election, never used twice for one virtual server.
    Term
}
number! {
    /// 64 random bits drawn by electd at each of its starts.
    Instance
}
number! {
    /// Number of a beat or call within an instance: one more for each.
    Number
}

impl Term {
    /// The term after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Number {
    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Version of the roster of voters: the higher replaces the lower (ELECTION R24).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RosterVersion {
    /// Term of the master that made it.
    pub term: Term,
    /// Changes made in that term.
    pub counter: u64,
}

impl fmt::Display for RosterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.counter)
    }
}

/// A reading of this server's CLOCK_BOOTTIME in nanoseconds. It never leaves the server (ELECTION R1).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Time from `earlier` to this; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl ops::Add<Duration> for BootTime {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl ops::Sub<Duration> for BootTime {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// One process of standin, or the operator's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Heartbeats over UDP.
    Hbd,
    /// Signals over TCP.
    Listend,
    /// The opinion about every server's health.
    Doctord,
    /// Role, term, vote, lease and addresses.
    Electd,
    /// The main daemon, `standin run`.
    Main,
    /// The operator's command, `standin`; it has no socket of its own.
    Standin,
    /// Files and time.
    Syncd,
}

impl Role {
    /// The name in `ps`, in the log, and of the socket `<run-dir>/<name>.sock`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hbd => "hbd",
            Self::Listend => "listend",
            Self::Doctord => "doctord",
            Self::Electd => "electd",
            Self::Main => "main",
            Self::Standin => "standin",
            Self::Syncd => "syncd",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
