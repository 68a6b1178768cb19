//! The heartbeat and its acknowledgement (ELECTION, "Messages").

use crate::{
    ids::{Instance, Number, RosterVersion, ServerName, Term, VirtualServerName},
    version::Since,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Most virtual servers a server keeps promises for (ELECTION R25), so that a beat that names them all fits into one
/// message, as it travels within a server and to a release that knows no parts.
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
    /// One entry for every virtual server the sender knows, over all parts.
    pub standings: Vec<Standing>,
    /// Whom the sender hears.
    pub heard: Vec<Heard>,
    /// The voters the sender counts by.
    pub roster: Roster,
    /// Hash of the sender's configuration: a mismatch is reported, never a reason to ignore a beat.
    pub config_hash: u64,
    /// Which part of the beat this is.
    pub part: Since<PARTS_SINCE, Part>,
}

/// The version of the protocol that knows parts of a beat.
pub const PARTS_SINCE: u8 = 2;

/// A place among the parts in which a beat travels (ELECTION R25).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// From zero.
    pub index: u16,
    /// How many there are.
    pub of: u16,
}

impl Default for Part {
    /// The only one.
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl Beat {
    /// Whoever speaks this version of the protocol takes it for what it is.
    pub fn is_known_in(&self, version: u8) -> bool {
        version >= PARTS_SINCE || self.part.0.of <= 1
    }

    /// Cuts it into parts that have `room` for standings of such a `size`, and for one in any case.
    pub fn parts(mut self, room: usize, size: impl Fn(&Standing) -> usize) -> Vec<Self> {
        let standings = std::mem::take(&mut self.standings);
        let pieces = pieces(standings, room, size);
        let of = u16::try_from(pieces.len()).unwrap_or(u16::MAX);
        let part = |(index, standings)| Self {
            standings,
            part: Since(Part { index, of }),
            ..self.clone()
        };
        (0..of).zip(pieces).map(part).collect()
    }
}

impl Ack {
    /// Cuts it into acknowledgements of the same beat, each with some of the answers.
    pub fn parts(mut self, room: usize, size: impl Fn(&Answer) -> usize) -> Vec<Self> {
        let answers = std::mem::take(&mut self.answers);
        let part = |answers| Self {
            answers,
            ..self.clone()
        };
        pieces(answers, room, size).into_iter().map(part).collect()
    }
}

/// In their order, one piece at least; no piece but one of a single entry is larger than `room`.
fn pieces<T>(entries: Vec<T>, room: usize, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut pieces, mut left) = (vec![Vec::new()], room);
    for entry in entries {
        let size = size(&entry);
        if size > left && pieces.last().is_some_and(|piece| !piece.is_empty()) {
            pieces.push(Vec::new());
            left = room;
        }
        left = left.saturating_sub(size);
        if let Some(piece) = pieces.last_mut() {
            piece.push(entry);
        }
    }
    pieces
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

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn pieces_keep_order_and_room_and_there_is_one_at_least() {
        let size = |n: &usize| *n;
        assert_eq!(pieces(vec![], 10, size), [vec![]]);
        assert_eq!(pieces(vec![3, 3, 3], 10, size), [vec![3, 3, 3]]);
        assert_eq!(
            pieces(vec![3, 8, 2, 1], 10, size),
            [vec![3], vec![8, 2], vec![1]]
        );
        assert_eq!(pieces(vec![11, 11], 10, size), [vec![11], vec![11]]);
        assert_eq!(
            pieces(vec![1, 11, 1], 10, size),
            [vec![1], vec![11], vec![1]]
        );
    }
}
