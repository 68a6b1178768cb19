//! The heartbeat and its acknowledgement (ELECTION, "Messages").

use crate::ids::{Instance, Number, RosterVersion, ServerName, Term, VirtualServerName};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Most virtual servers a server keeps promises for (ELECTION R25), so that
/// a beat that names them all stays one datagram.
pub const VIRTUAL_SERVERS_MAX: usize = 512;

/// Sent every heartbeat interval by every server to every other, over every path, under one number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The sender's electd instance.
    pub instance: Instance,
    /// Grows by one per beat or call of the instance.
    pub number: Number,
    /// The sender's lease L: how long an acknowledgement of this beat promises.
    pub lease: Duration,
    /// Longest lease the sender may ever have promised; a blank server needs it (ELECTION R21).
    pub promise_max: Duration,
    /// Floor of every virtual server that `standings` does not name.
    pub floor_base: Term,
    /// Whether the sender votes and promises yet.
    pub participation: Participation,
    /// The sender takes no new mastership (`standin maintenance on`).
    pub maintenance: bool,
    /// The sender votes but never serves.
    pub witness: bool,
    /// How fresh the sender's files are.
    pub freshness: Freshness,
    /// One entry for every virtual server the sender knows.
    pub standings: Vec<Standing>,
    /// Whom the sender hears.
    pub heard: Vec<Heard>,
    /// The voters the sender counts by.
    pub roster: Roster,
    /// Hash of the sender's configuration: a mismatch is reported, never a reason to ignore a beat.
    pub config_hash: u64,
}

/// Whether a server takes part in elections (ELECTION R20, R21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Participation {
    /// Its reservation is missing: its floors mean nothing.
    Blank,
    /// It restarted without its memory and keeps silent; its floors hold.
    Silent,
    /// It votes and promises.
    Active,
}

/// What a server says about one virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Which.
    pub virtual_server: VirtualServerName,
    /// Highest term the sender voted or acknowledged in.
    pub floor: Term,
    /// The sender claims to be master.
    pub claim: Option<Claim>,
    /// The sender could serve it: in its file, interface up, checks good.
    pub fit: bool,
    /// The sender's priority for it; higher is preferred.
    pub priority: u32,
}

/// A claim to be master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// In which term.
    pub term: Term,
    /// Lease held, or lost and being re-acquired.
    pub lease_held: bool,
}

/// How fresh a server's files are: by completed run under the highest term, then by run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Freshness {
    /// Term under which the last run was completed.
    pub term: Term,
    /// Completed runs in that term.
    pub run: u64,
}

/// Whom the sender hears, and how long ago it last did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The server heard.
    pub server: ServerName,
    /// Time since its last beat arrived.
    pub age: Duration,
}

/// The voters in force (ELECTION R24).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The higher replaces the lower.
    pub version: RosterVersion,
    /// Sorted by name, without repetition.
    pub voters: Vec<ServerName>,
    /// The virtual server whose master alone may change the roster, so that the terms in the version are
    /// terms of one election.
    pub keeper: Option<VirtualServerName>,
}

/// The answer to one beat: sent only after electd itself has noted its promises (ELECTION R3, R5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Instance of the beat answered.
    pub instance: Instance,
    /// Number of the beat answered.
    pub number: Number,
    /// How long it waited for a beat to leave with; zero if the beat answered claimed anything.
    pub waited: Duration,
    /// One answer per virtual server that the beat claimed and that was not dropped.
    pub answers: Vec<Answer>,
    /// The roster the sender of this acknowledgement counts by, synced.
    pub roster: RosterVersion,
}

/// The answer to one claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which virtual server.
    pub virtual_server: VirtualServerName,
    /// Promised or refused.
    pub verdict: Verdict,
}

/// A promise to nobody else for the beat's lease, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Promised for the claim in this term.
    Promised(Term),
    /// Not promised.
    Refused {
        /// The reason.
        why: Why,
        /// The highest term the voter has voted or acknowledged in.
        floor: Term,
        /// To whom it is promised, if to anybody.
        holder: Option<ServerName>,
    },
}

/// Why a voter says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Why {
    /// It has voted or acknowledged in a higher term.
    Floor,
    /// It is promised to another.
    Promised,
    /// Its term reservation or longest promise is not on disk yet; it is being synced.
    Reservation,
    /// It restarted and keeps silent (ELECTION R20), or is blank (R21).
    Silent,
    /// Its doctor sees the holder alive and claiming, or sees nothing yet.
    Doctor,
    /// The caller's roster is older than its own (ELECTION R24).
    Roster,
    /// The call was released or overtaken by a later number (ELECTION R5).
    Stale,
    /// Its own gate is not shut yet.
    Shutting,
    /// The term is further above its own than any term can be (ELECTION R22).
    Absurd,
    /// It keeps promises for as many virtual servers as it can (ELECTION R25).
    TooMany,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Floor => "voted in a higher term",
            Self::Promised => "promised to another",
            Self::Reservation => "term reservation not synced yet",
            Self::Silent => "silent after its start",
            Self::Doctor => "its doctor does not see the master dead",
            Self::Roster => "older roster",
            Self::Stale => "released or overtaken",
            Self::Shutting => "its own gate is not shut yet",
            Self::Absurd => "term too far ahead",
            Self::TooMany => "too many virtual servers",
        })
    }
}
