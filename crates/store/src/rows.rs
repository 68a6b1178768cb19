//! How the index is laid out in its file.
//!
//! | table | from | to |
//! |---|---|---|
//! | `paths` | path | [`Row`] |
//! | `sequences` | sequence number | path |
//! | `digests` | digest, path of a file that has it | |
//! | `links` | path of a file, path of a further name | |
//! | `intents` | path | what is about to be there |
//! | `state` | `state`, `writer`, `ledger`, `taken`, `standing`, `identity`, `changed`, `file`, `uncertain`, `owner`, `given-up`, `times`, `known`, `swept` | [`State`], [`Writer`], [`filesync::Ledger`] of the others and of this replica, [`filesync::Standing`], [`filesync::guard::Identity`], [`protocol::owner::Owner`], [`crate::Times`], [`filesync::Knowledge`], when |
//!
//! A path is written with NUL for its slashes: so the order of bytes is the order of paths, and no path is the beginning
//! of another one followed by two NULs. Each record begins with the version of its form.

use crate::error::Error;
use filesync::{Entry, Path, Proof, Replica, Stat, guard::Root};
use protocol::codec;
use redb::TableDefinition;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::cmp::Ordering;

/// Version of the form of records.
const VERSION: u8 = 2;

type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Set = TableDefinition<'static, &'static [u8], ()>;

pub(crate) const PATHS: Bytes = TableDefinition::new("paths");
pub(crate) const SEQUENCES: TableDefinition<'static, u64, &'static [u8]> =
    TableDefinition::new("sequences");
pub(crate) const DIGESTS: Set = TableDefinition::new("digests");
pub(crate) const LINKS: Set = TableDefinition::new("links");
pub(crate) const INTENTS: Bytes = TableDefinition::new("intents");
pub(crate) const STATE: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("state");

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What is known.
    pub entry: Entry,
    /// Number of the change of this index that it came with.
    pub sequence: u64,
    /// When that was, in nanoseconds since 1970.
    pub at: u64,
    /// When it was last looked at.
    pub proof: Option<Proof>,
}

/// The set as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Who keeps this index.
    pub replica: Replica,
    /// Number of its last event as a [`Writer`].
    pub count: u64,
    /// Number of the index's last change.
    pub sequence: u64,
    /// So many paths have something there.
    pub live: u64,
    /// When the last look began, in nanoseconds since 1970.
    pub looked: u64,
    /// How the root is recognised; none before the first time.
    pub root: Option<Root>,
}

/// Who makes changes here: whoever keeps the index, until it comes back from a backup. From then on it is another
/// incarnation, for the numbers of that one may have been given after the backup was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Who.
    pub replica: Replica,
    /// Number of its last event.
    pub count: u64,
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = codec::encode_record(value).map_err(Error::Record)?;
    bytes.insert(0, VERSION);
    Ok(bytes)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match bytes.split_first() {
        Some((&VERSION, record)) => codec::decode_record(record).map_err(Error::Record),
        other => Err(Error::Version(other.map(|(version, _)| *version))),
    }
}

/// Bytes of a proof.
const PROOF: usize = 60;
/// What follows the version: no proof, one, one of a directory of which all names are known, or one that was lent.
const UNPROVEN: u8 = 0;
const PROVEN: u8 = 1;
const ALL: u8 = 2;
const LENT: u8 = 3;

pub(crate) fn encode_row(row: &Row) -> Result<Vec<u8>, Error> {
    let record =
        codec::encode_record(&(&row.entry, row.sequence, row.at)).map_err(Error::Record)?;
    let mut bytes = Vec::with_capacity(2 + PROOF + record.len());
    let proven = match row.proof {
        None => UNPROVEN,
        Some(Proof { lent: false, .. }) => PROVEN,
        Some(Proof { lent: true, .. }) => LENT,
    };
    bytes.extend([VERSION, proven]);
    if let Some(Proof { stat, at, .. }) = &row.proof {
        bytes.extend(stat.size.to_le_bytes());
        bytes.extend(
            [stat.mode, stat.uid, stat.gid]
                .map(u32::to_le_bytes)
                .concat(),
        );
        bytes.extend([stat.device, stat.inode].map(u64::to_le_bytes).concat());
        bytes.extend([stat.mtime, stat.ctime, *at].map(i64::to_le_bytes).concat());
    }
    bytes.extend(record);
    Ok(bytes)
}

pub(crate) fn decode_row(bytes: &[u8]) -> Result<Row, Error> {
    let (proof, record) = proof(bytes)?;
    let (entry, sequence, at) = codec::decode_record(record).map_err(Error::Record)?;
    Ok(Row {
        entry,
        sequence,
        at,
        proof,
    })
}

/// The proof of a row, and the rest.
pub(crate) fn proof(bytes: &[u8]) -> Result<(Option<Proof>, &[u8]), Error> {
    let (lent, rest) = match bytes {
        [VERSION, UNPROVEN, record @ ..] => return Ok((None, record)),
        [VERSION, proven @ (PROVEN | ALL | LENT), rest @ ..] => (*proven == LENT, rest),
        other => return Err(Error::Version(other.first().copied())),
    };
    let (fields, record) = rest.split_at_checked(PROOF).ok_or(Error::Version(None))?;
    let four = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| fields[at + i]));
    let eight = |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| fields[at + i]));
    let stat = Stat {
        size: eight(0),
        mode: four(8),
        uid: four(12),
        gid: four(16),
        device: eight(20),
        inode: eight(28),
        mtime: eight(36).cast_signed(),
        ctime: eight(44).cast_signed(),
    };
    let at = eight(52).cast_signed();
    Ok((Some(Proof { stat, at, lent }), record))
}

/// Whether it is the row of a directory that had no other names than those in the index when it was like its proof.
pub(crate) fn has_all(bytes: &[u8]) -> bool {
    bytes.starts_with(&[VERSION, ALL])
}

/// The same row, as such a directory's.
pub(crate) fn with_all(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let [_, proven @ PROVEN, ..] = bytes.as_mut_slice() {
        *proven = ALL;
    }
    bytes
}

/// How a key stands to that of a path.
pub(crate) fn compare(other: &[u8], path: &Path) -> Ordering {
    let nul = |b: &u8| if *b == b'/' { 0 } else { *b };
    other.iter().copied().cmp(path.as_bytes().iter().map(nul))
}

pub(crate) fn key(path: &Path) -> Vec<u8> {
    let nul = |b: &u8| if *b == b'/' { 0 } else { *b };
    path.as_bytes().iter().map(nul).collect()
}

pub(crate) fn path(key: &[u8]) -> Result<Path, Error> {
    let slash = |b: &u8| if *b == 0 { b'/' } else { *b };
    let bytes: Vec<_> = key.iter().map(slash).collect();
    Path::try_from(bytes).map_err(|_| {
        let what = "a path of the index is none".to_owned();
        redb::StorageError::Corrupted(what).into()
    })
}

/// Keys that begin with `start`, given that the last byte of that is not 255.
pub(crate) fn beginning(start: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut end = start.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    (start.to_vec(), end)
}

pub(crate) fn pair(first: &[u8], path: &[u8]) -> Vec<u8> {
    [first, path].concat()
}

/// What the keys of all that is in a directory begin with.
pub(crate) fn below(directory: &Path) -> Vec<u8> {
    pair(&key(directory), &[0])
}

pub(crate) fn link(to: &Path) -> Vec<u8> {
    let mut bytes = key(to);
    bytes.extend([0, 0]);
    bytes
}
