//! Password files, merged record by record, as one database.
//!
//! A whole file that wins loses the password that was changed on the other server. Here each record is taken from the
//! side that changed it last, as its [`History`] tells; one that both changed is merged field by field against the last
//! version that both had, members of groups one by one; where both changed the same field the winner's stays and the
//! loser's is told. Whether an account lives is decided for all files at once, and all are settled or none.
//!
//! ```text
//!   records      what is a record, and of whom; all else is carried along as it is
//!   history      which event each line is from
//!   versions     so: who removed what, who changed what
//!   fate         which accounts live, in all files
//!   merge        each file, line by line; ranges: none overlap that did not before
//!   duplicates   numbers that several names have
//! ```
//!
//! The winner is the same for all who merge, and so is the history: it does not matter who does it.

mod duplicates;
mod fate;
mod history;
mod merge;
mod ranges;
mod records;
mod versions;

pub use duplicates::{Duplicate, duplicates};
pub use history::History;
pub use records::{count, may_stand};

use crate::{
    entry::{Author, Digest, Entry, Kind, Node},
    version::{Rank, Relation},
};
use fate::Fate;
use std::fmt;
use versions::{Names, Versions};

/// Which file (passwd(5), group(5), shadow(5), gshadow(5), subuid(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// `/etc/passwd`
    Passwd,
    /// `/etc/shadow`
    Shadow,
    /// `/etc/group`
    Group,
    /// `/etc/gshadow`
    Gshadow,
    /// `/etc/subuid`
    Subuid,
    /// `/etc/subgid`
    Subgid,
}

impl File {
    /// All, in the order in which they are put in place: a name before who refers to it, the password last.
    pub const IN_ORDER: [Self; 6] = [
        Self::Group,
        Self::Gshadow,
        Self::Subuid,
        Self::Subgid,
        Self::Passwd,
        Self::Shadow,
    ];

    /// The one of this file name.
    pub fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"passwd" => Self::Passwd,
            b"shadow" => Self::Shadow,
            b"group" => Self::Group,
            b"gshadow" => Self::Gshadow,
            b"subuid" => Self::Subuid,
            b"subgid" => Self::Subgid,
            _ => return None,
        })
    }

    /// Fields that are lists of names, by their place.
    fn lists(self) -> &'static [usize] {
        match self {
            Self::Group => &[3],
            Self::Gshadow => &[2, 3],
            Self::Passwd | Self::Shadow | Self::Subuid | Self::Subgid => &[],
        }
    }

    /// How many fields a record has.
    fn width(self) -> usize {
        match self {
            Self::Passwd => 7,
            Self::Shadow => 9,
            Self::Group | Self::Gshadow => 4,
            Self::Subuid | Self::Subgid => 3,
        }
    }
}

/// Something an operator should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Both changed this field (counted from 0) of this record: the winner's is in the text.
    Field(String, usize),
    /// One removed this account, or a line, the other changed it: it is in all files that had it.
    RemovedAndChanged(String),
    /// These two records have the same number.
    SameNumber(String, String),
    /// A range of subordinate ids, new on one server, overlapped with one that was new on the other.
    Moved {
        /// Whose.
        owner: String,
        /// Its first id until now.
        from: u64,
        /// Its first id from now on.
        to: u64,
        /// Whose range it overlapped with.
        of: String,
    },
    /// A range likewise, and no other of its size is free: it is not in the text.
    LeftOut {
        /// Whose.
        owner: String,
        /// Its first id.
        from: u64,
        /// Whose range it overlapped with.
        of: String,
    },
    /// These two have ranges that overlap, and had them so on one server before.
    Overlap(String, String),
}

impl Note {
    /// Somebody's change is not in the text.
    pub fn loses(&self) -> bool {
        match self {
            Self::Field(..) | Self::LeftOut { .. } => true,
            Self::RemovedAndChanged(_)
            | Self::SameNumber(..)
            | Self::Moved { .. }
            | Self::Overlap(..) => false,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name, field) => write!(
                f,
                "field {} of {name} was changed on both servers: the winning file's is taken, the other file is kept aside",
                field + 1
            ),
            Self::RemovedAndChanged(name) => {
                write!(
                    f,
                    "{name} was removed on one server and changed on the other: it stays, in all files"
                )
            }
            Self::SameNumber(one, other) => {
                write!(
                    f,
                    "{one} and {other} have the same number: give one of them another"
                )
            }
            Self::Moved {
                owner,
                from,
                to,
                of,
            } => write!(
                f,
                "{owner}'s range from {from} overlapped with {of}'s, given on the other server: it begins at {to} now; \
                 what {owner} has with the old ids must be given the new ones"
            ),
            Self::LeftOut { owner, from, of } => write!(
                f,
                "{owner}'s range from {from} overlapped with {of}'s, given on the other server, and no other is free: it is \
                 left out, and the file with it kept aside; give {owner} a smaller one"
            ),
            Self::Overlap(one, other) => write!(
                f,
                "the ranges of {one} and {other} overlap: give one of them another"
            ),
        }
    }
}

/// Why the text must not be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody would have user id 0.
    NoRoot,
    /// Fewer than half the records of one of the sides would be left.
    TooFew {
        /// Records before.
        before: usize,
        /// Records after.
        after: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoot => f.write_str("nobody would have user id 0"),
            Self::TooFew { before, after } => {
                write!(f, "only {after} of {before} records would be left")
            }
        }
    }
}

impl std::error::Error for Refused {}

/// The last version that both have in them, of those that were kept: what was changed since, either changed.
pub fn common<'a>(
    kept: impl IntoIterator<Item = &'a Entry>,
    here: &Entry,
    there: &Entry,
) -> Option<&'a Entry> {
    let has = |entry: &Entry, old: &Entry| {
        let relation = entry.vector.relation(&old.vector);
        matches!(relation, Relation::Newer | Relation::Equal)
    };
    let both = kept
        .into_iter()
        .filter(|old| has(here, old) && has(there, old));
    both.max_by(|a, b| a.rank.cmp(&b.rank))
}

/// One of two versions.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// What is known of it.
    pub entry: &'a Entry,
    /// Its text.
    pub text: &'a [u8],
    /// Where its records are from.
    pub history: &'a History,
}

/// A file as two servers have it.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Which file.
    pub file: File,
    /// The last version that both had; empty if none is known.
    pub base: &'a [u8],
    /// This server's.
    pub here: Side<'a>,
    /// The other's.
    pub there: Side<'a>,
}

impl Pair<'_> {
    fn relation(&self) -> Relation {
        let [here, there] = [self.here, self.there].map(|side| &side.entry.vector);
        here.relation(there)
    }
}

/// How files of two servers are merged.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// However few records are left, an operator said that it is right.
    pub few: bool,
    /// What was changed on both sides is as it is there: nothing is known of how this side's came to be.
    pub yields: bool,
}

/// What is to be there of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What is known of it then.
    pub entry: Entry,
    /// Where its records are from.
    pub history: History,
    /// Its text.
    pub text: Vec<u8>,
    /// What to look at.
    pub notes: Vec<Note>,
    /// Not all that was changed here is in it: this server's version is to be kept aside.
    pub here_loses: bool,
    /// Not all that was changed there is.
    pub there_loses: bool,
    /// Records are in it that one server had removed.
    pub restores: bool,
}

/// Nothing is settled, for this file must not be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Which.
    pub file: File,
    /// Why not.
    pub why: Refused,
}

/// Whether each of two servers has something that the other has not, in whichever of the files: here's and there's.
pub fn crossed<'a>(files: impl IntoIterator<Item = (&'a Entry, &'a Entry)>) -> bool {
    let relation = |(here, there): (&Entry, &Entry)| here.vector.relation(&there.vector);
    let (mut here, mut there) = (false, false);
    for relation in files.into_iter().map(relation) {
        here |= matches!(relation, Relation::Newer | Relation::Concurrent);
        there |= matches!(relation, Relation::Older | Relation::Concurrent);
    }
    here && there
}

/// Settles all files of which the versions differ and each server may have something that the other has not; none: as
/// this server has it, it is right. Whoever comes first makes new versions that have both in them, which all others
/// take; where nothing is left of the version that loses, the one that wins is enough, as for any other file.
pub fn settle(
    how: How,
    pairs: &[Pair<'_>],
    author: &mut Author,
    nanos: u64,
    digest: impl Fn(&[u8]) -> Digest,
) -> Result<Vec<Option<Settled>>, Unsettled> {
    // One side for all files: who was made on both must not have one's number and the other's group.
    let concurrent = pairs
        .iter()
        .filter(|pair| pair.relation() == Relation::Concurrent);
    let [here, there] = [
        last(concurrent.clone().map(|pair| pair.here.entry)),
        last(concurrent.map(|pair| pair.there.entry)),
    ];
    let stays = !how.yields && here > there;
    let all: Vec<_> = pairs
        .iter()
        .map(|pair| Versions::new(pair, stays))
        .collect();
    let fate = Fate::of(&all);
    let mut told = Names::new();
    // What is noted once of an account is noted where one would look first.
    let mut places: Vec<_> = (0..all.len()).collect();
    places.sort_by_key(|place| all[*place].file);
    let mut merged: Vec<_> = pairs.iter().map(|_| None).collect();
    for place in places {
        let file = all[place].file;
        let text = merge::merge(&all[place], &fate, how, &mut told, &digest);
        merged[place] = Some(text.map_err(|why| Unsettled { file, why })?);
    }
    let merged = all.iter().zip(merged);
    let settled = merged.map(|(versions, text)| version(versions, text?, author, nanos, &digest));
    Ok(settled.collect())
}

/// What decides between sides: the youngest of their versions.
fn last<'a>(entries: impl Iterator<Item = &'a Entry>) -> Option<(&'a Rank, &'a Option<Node>)> {
    entries.map(|entry| (&entry.rank, &entry.node)).max()
}

/// The version that has a merged text.
fn version(
    versions: &Versions<'_>,
    merged: merge::Text,
    author: &mut Author,
    nanos: u64,
    digest: impl Fn(&[u8]) -> Digest,
) -> Option<Settled> {
    let merge::Text {
        text,
        notes,
        history,
        known,
        restores,
        loses: [here_loses, there_loses],
    } = merged;
    let [here, there] = versions.sides.each_ref().map(|version| version.side);
    let [winner, loser] = [versions.won(), versions.lost()].map(|version| version.side);
    let stays = versions.winner == 0;
    let (node, lost) = winner.entry.node.as_ref().zip(loser.entry.node.as_ref())?;
    let concurrent = versions.relation == Relation::Concurrent;
    if known && stays && text == here.text && !concurrent {
        return None;
    }
    // The version of a vector is that of the highest rank in it.
    let outranks = !concurrent || there.entry.rank > here.entry.rank;
    let entry = if known && text == there.text && (node == lost || !stays && outranks) {
        let mut joined = there.entry.clone();
        joined.vector.join(&here.entry.vector);
        joined.rank = joined.rank.max(here.entry.rank.clone());
        joined
    } else {
        let mut node = node.clone();
        node.kind = Kind::File {
            size: text.len() as u64,
            digest: digest(&text),
        };
        if text == loser.text {
            node.mtime = lost.mtime;
        } else if text != winner.text {
            node.mtime = nanos.into();
        }
        author.merge(here.entry, there.entry, node, nanos)
    };
    let history = history.follow(versions.file, &text, &entry, digest);
    Some(Settled {
        entry,
        history,
        text,
        notes,
        here_loses,
        there_loses,
        restores,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
