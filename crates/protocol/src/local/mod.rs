//! What the processes of one server say to each other over `<run-dir>/<role>.sock`.
//!
//! The receiver of a message owns the socket and the sender connects to it. The first packet of a
//! connection is a [`Hello`]; the answer is a [`HelloAnswer`], and a refusal is given in words. Both are the same in every
//! version; who is told another version connects anew.

pub mod ctl;
pub mod ring;
pub mod status;

use crate::{
    ids::Role,
    version::{self, LOCAL},
};
use serde::{Deserialize, Serialize};

/// First packet on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Always [`MAGIC`].
    pub magic: [u8; 8],
    /// What the connecting side wants to speak, of [`crate::version::LOCAL`].
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
    /// Another version, please, of these: said to those only that ask for a later one than the first.
    Speaks {
        /// The oldest.
        oldest: u16,
        /// The newest.
        newest: u16,
    },
}

impl HelloAnswer {
    /// The answer of `role` to a hello of a version that it does not speak.
    pub fn other_version(role: Role, hello: &Hello) -> Self {
        let (oldest, newest) = (*LOCAL.start(), *LOCAL.end());
        if hello.version > u16::from(version::FIRST) {
            return Self::Speaks {
                oldest: oldest.into(),
                newest: newest.into(),
            };
        }
        Self::Refused(format!(
            "{role} speaks versions {oldest} to {newest} of the local protocol, {} version {}; restart the older",
            hello.role, hello.version
        ))
    }

    /// What to ask for next by who asked for version `asked` and was not welcome; or why there is no use.
    pub fn version_instead(self, asked: u8) -> Result<u8, String> {
        match self {
            Self::Welcome => Err("welcome is an answer to the first message only".to_owned()),
            // A release before there was a choice refuses whatever is not the first version.
            Self::Refused(_) if asked > version::FIRST && LOCAL.contains(&version::FIRST) => {
                Ok(version::FIRST)
            }
            Self::Refused(why) => Err(why),
            Self::Speaks { oldest, newest } => {
                let version = |v: u16| u8::try_from(v).unwrap_or(u8::MAX);
                version::common(&LOCAL, &(version(oldest)..=version(newest)))
                    .filter(|v| *v != asked)
                    .ok_or_else(|| {
                        let (first, last) = (LOCAL.start(), LOCAL.end());
                        format!("it speaks versions {oldest} to {newest} of the local protocol, this program {first} to {last}; restart the older")
                    })
            }
        }
    }
}
