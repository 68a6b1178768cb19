//! Former versions, kept: what each path was at each look, with all it had.
//!
//! A version must be here before something takes its place, and nobody asks before a file is edited. So what is new in
//! the index goes here at the end of each look and of each run: all that a run of syncd can replace, and all that an
//! editor can, since the last run.
//!
//! Contents are cut where they say (FastCDC) and each chunk is kept once, packed, whoever has it. All of it is in one
//! file that is changed by transactions: after a cut it is as it was before the version or with it.
//!
//! | table | from | to |
//! |---|---|---|
//! | `versions` | path, two NULs, number | [`Version`] |
//! | `contents` | digest of a file | how many versions have it, digests of its chunks and lengths of its holes |
//! | `chunks` | digest of a chunk | 1 if packed, its bytes |
//! | `uses` | digest of a chunk | how often contents name it |
//! | `state` | `state` | how far the index was read |
//! | `state` | `aged` | up to which moment versions have grown old |
//!
//! One wrong reading of the clock must not cost what was kept for a month: versions grow old by the system's clock, but by
//! two days at most from one look through all of them to the next, a day apart, and not at all while it disagrees with
//! those of the other servers. A clock that is behind makes no version older than it is.

use crate::{
    contents::zeros,
    dir::own_directory,
    error::{At, Error, Listing},
    index::Index,
    parts::Digester,
    rows::{self, beginning, decode, encode, key},
    set::Set,
};
use fastcdc::v2020::StreamCDC;
use filesync::{Digest, Entry, Kind, Ledger, Node, Path, Replica};
use linux::sparse::{Part, extents};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use rustix::fs::statvfs;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet, fs::File, io, os::unix::fs::MetadataExt, path::PathBuf, time::Duration,
};

/// Bytes of the file kept in memory.
const CACHE: usize = 8 << 20;
/// Average size of a chunk: the same for all, so that all versions of a file are cut alike.
const AVERAGE: usize = 64 * 1024;
/// So many versions,
const TOGETHER: usize = 1024;
/// or so many bytes have one transaction.
const BYTES: u64 = 32 << 20;
/// What is left free of the file system, in percent: former versions are worth less than what is there now.
const FREE: u64 = 5;
/// So many versions of one path are kept, whatever is wanted.
const MOST: usize = 1000;
/// What was removed so long ago is forgotten, in nanoseconds, even if there are few versions of it.
const GONE: u64 = 90 * 86_400 * 1_000_000_000;
/// So often all is looked through for what is too old, in nanoseconds.
const SWEEP: u64 = 86_400 * 1_000_000_000;
/// By so much at most all grows older from one sweep to the next, in nanoseconds.
const STRIDE: u64 = 2 * SWEEP;
/// Level of zstd: it packs as fast as a disk writes.
const LEVEL: i32 = 1;
/// Shorter holes are part of a chunk.
const HOLE: u64 = 1 << 20;
/// Chunks are at most so large, in bytes; no record makes more be allocated.
const CHUNK_MAX: usize = 4 * AVERAGE;

type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;
const VERSIONS: Bytes = TableDefinition::new("versions");
const CONTENTS: Bytes = TableDefinition::new("contents");
const CHUNKS: Bytes = TableDefinition::new("chunks");
const USES: TableDefinition<'static, &'static [u8], u64> = TableDefinition::new("uses");
const STATE: Bytes = TableDefinition::new("state");

/// What a path was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// What was there.
    pub entry: Entry,
    /// Since when, in nanoseconds since 1970.
    pub at: u64,
    /// Number of the index's change that it came with.
    sequence: u64,
}

/// Which versions are kept besides the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// So many former ones.
    Versions(u32),
    /// Those that were there within this time.
    For(Duration),
}

/// A reading of the system's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// In nanoseconds since 1970.
    pub now: u64,
    /// No other server's clock is known to be elsewhere.
    pub agrees: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// New versions.
    pub versions: u64,
    /// What could not be kept; it is tried again by the next run.
    pub failed: Listing,
    /// Versions that were too old, or too many.
    pub dropped: u64,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    /// Whose index was read; another incarnation begins anew.
    replica: Option<Replica>,
    /// How far.
    sequence: u64,
    /// Number of the last version.
    number: u64,
    /// When all was last looked through.
    swept: u64,
}

/// See the module.
pub struct Archive {
    db: Database,
    file: PathBuf,
}

impl Archive {
    /// Opens the archive in `file`, made if need be. One that is damaged is not touched: it is a backup.
    pub fn open(file: &std::path::Path) -> Result<Self, Error> {
        let folder = file.parent().unwrap_or(std::path::Path::new("."));
        let folder = own_directory(folder, crate::Calls::unlimited());
        let folder = folder.at("open the directory of", &file.display())?;
        let new = !file.try_exists().at("find", &file.display())?;
        let db = Builder::new().set_cache_size(CACHE).create(file)?;
        if new {
            let tx = db.begin_write()?;
            Tables::open(&tx)?;
            tx.commit()?;
            folder.sync().at("sync the directory of", &file.display())?;
        }
        let file = file.to_owned();
        Ok(Self { db, file })
    }

    fn state(&self) -> Result<State, Error> {
        let table = self.db.begin_read()?.open_table(STATE)?;
        let bytes = table.get(&b"state"[..])?;
        bytes.map_or(Ok(State::default()), |bytes| decode(bytes.value()))
    }

    /// Up to which moment versions had grown old at the last sweep.
    fn aged(&self, swept: u64, now: u64) -> Result<u64, Error> {
        let table = self.db.begin_read()?.open_table(STATE)?;
        let bytes = table.get(&b"aged"[..])?;
        match bytes.map(|bytes| <[u8; 8]>::try_from(bytes.value())) {
            Some(Ok(bytes)) => Ok(u64::from_be_bytes(bytes)),
            Some(Err(_)) => Err(damaged("a moment of another length")),
            None if swept == 0 => Ok(now),
            None => Ok(swept.min(now)),
        }
    }

    /// Keeps what is new in the index, then drops what is not to be kept any more.
    pub fn keep(
        &self,
        set: &Set,
        index: &Index,
        keep: Keep,
        clock: Clock,
    ) -> Result<Stored, Error> {
        let Clock { now, agrees } = clock;
        let known = index.state()?;
        let mut state = self.state()?;
        if state.replica.as_ref() != Some(&known.replica) {
            (state.replica, state.sequence) = (Some(known.replica.clone()), 0);
        }
        let ledger = index.ledger()?;
        let mut stored = Stored::default();
        let sweep = agrees && now.abs_diff(state.swept) > SWEEP;
        if known.sequence == state.sequence && !sweep {
            return Ok(stored);
        }
        let aged = self.aged(state.swept, now)?;
        let grown = now.min(if agrees { aged + STRIDE } else { aged });
        let mut rows = index.since(state.sequence)?.peekable();
        let mut reached = known.sequence;
        let trim = Trim {
            keep,
            now: grown,
            ledger: &ledger,
        };
        while rows.peek().is_some() {
            let tx = self.db.begin_write()?;
            let mut tables = Tables::open(&tx)?;
            let (mut count, mut bytes) = (0, 0);
            while count < TOGETHER
                && bytes < BYTES
                && let Some(row) = rows.next()
            {
                let (path, row) = row?;
                count += 1;
                let version = Version {
                    entry: row.entry,
                    at: row.at.max(aged),
                    sequence: row.sequence,
                };
                match self.add(&mut tables, set, &path, &version, &mut state.number) {
                    Ok(None) => {}
                    Ok(Some(size)) => {
                        bytes += size;
                        stored.versions += 1;
                        stored.dropped += tables.trim(&path, &trim)?;
                    }
                    Err(Failure::Archive(e)) => return Err(e),
                    Err(Failure::File(why)) => {
                        reached = reached.min(version.sequence - 1);
                        stored.failed.add(&path, why);
                    }
                }
            }
            if rows.peek().is_none() {
                state.sequence = reached;
            }
            tables.state(&state)?;
            drop(tables);
            tx.commit()?;
        }
        if !sweep && state.sequence == reached {
            return Ok(stored);
        }
        state.sequence = reached;
        if sweep {
            stored.dropped += self.sweep(&trim)?;
            state.swept = now;
        }
        let tx = self.db.begin_write()?;
        let mut tables = Tables::open(&tx)?;
        tables.state(&state)?;
        tables.aged(if sweep { aged.max(grown) } else { aged })?;
        drop(tables);
        tx.commit()?;
        Ok(stored)
    }

    /// Adds a version with its contents; how many bytes were new, or none if it is known.
    fn add(
        &self,
        tables: &mut Tables<'_>,
        set: &Set,
        path: &Path,
        version: &Version,
        number: &mut u64,
    ) -> Result<Option<u64>, Failure> {
        let last = tables.of(path)?.pop();
        match &last {
            Some((_, last)) if is_same(&last.entry, &version.entry) => return Ok(None),
            // What was never here needs no grave.
            None if version.entry.node.is_none() => return Ok(None),
            _ => {}
        }
        let mut bytes = 0;
        if let Some((size, digest)) = file_of(&version.entry)
            && !tables.take(&digest)?
        {
            let file = set.read(path).map_err(|e| Failure::File(e.to_string()))?;
            let taken = file.metadata().map(|m| 512 * m.blocks());
            self.has_room(taken.map_or(size, |taken| taken.min(size)))?;
            tables.fill(&file, size, &digest)?;
            bytes = size;
        }
        *number += 1;
        let record = encode(version)?;
        let own = number_key(path, *number);
        let put = tables.versions.insert(own.as_slice(), record.as_slice());
        put.map_err(Error::from)?;
        Ok(Some(bytes))
    }

    fn has_room(&self, size: u64) -> Result<(), Failure> {
        let told = statvfs(&self.file).map_err(|e| Failure::File(e.to_string()))?;
        let left = (told.f_bavail * told.f_frsize).saturating_sub(size);
        if left < told.f_blocks * told.f_frsize / 100 * FREE {
            let what = "too little space is left for former versions";
            return Err(Failure::File(what.into()));
        }
        Ok(())
    }

    fn sweep(&self, trim: &Trim<'_>) -> Result<u64, Error> {
        let mut dropped = 0;
        let mut paths = self.below(None)?.into_iter().peekable();
        while paths.peek().is_some() {
            let tx = self.db.begin_write()?;
            let mut tables = Tables::open(&tx)?;
            for path in paths.by_ref().take(TOGETHER) {
                dropped += tables.trim(&path, trim)?;
            }
            drop(tables);
            tx.commit()?;
        }
        Ok(dropped)
    }

    /// All kept versions of a path, the oldest first.
    pub fn of(&self, path: &Path) -> Result<Vec<Version>, Error> {
        let table = self.db.begin_read()?.open_table(VERSIONS)?;
        Ok(of(&table, path)?.into_iter().map(|(_, v)| v).collect())
    }

    /// All paths in a directory, or in the set, that there are versions of, in order.
    pub fn below(&self, directory: Option<&Path>) -> Result<BTreeSet<Path>, Error> {
        let (from, until) = match directory {
            Some(directory) => beginning(&rows::pair(&key(directory), &[0])),
            None => (Vec::new(), vec![u8::MAX; 256]),
        };
        let table = self.db.begin_read()?.open_table(VERSIONS)?;
        let mut paths = BTreeSet::new();
        for item in table.range(from.as_slice()..until.as_slice())? {
            let path = path_of(item?.0.value())?;
            if directory.is_none_or(|directory| path.is_below(directory)) {
                paths.insert(path);
            }
        }
        Ok(paths)
    }

    /// Gives the contents of a file piece by piece; false if they are not here.
    pub fn read(
        &self,
        digest: &Digest,
        mut piece: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<bool, Error> {
        let tx = self.db.begin_read()?;
        let (contents, chunks) = (tx.open_table(CONTENTS)?, tx.open_table(CHUNKS)?);
        let Some(recipe) = contents.get(digest.0.as_slice())? else {
            return Ok(false);
        };
        for name in recipe.value().get(8..).unwrap_or_default().chunks(32) {
            if let Some(length) = hole_of(name) {
                zeros(length)
                    .try_for_each(&mut piece)
                    .at("read", "what is kept")?;
                continue;
            }
            let chunk = chunks
                .get(name)?
                .ok_or_else(|| damaged("a chunk is missing"))?;
            let mut give = || match chunk.value().split_first() {
                Some((1, packed)) => piece(&zstd::bulk::decompress(packed, CHUNK_MAX)?),
                Some((_, plain)) => piece(plain),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
            give().at("read", "what is kept")?;
        }
        Ok(true)
    }
}

/// A version is not kept, and the rest is; or nothing can be.
enum Failure {
    File(String),
    Archive(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Archive(error)
    }
}

/// Whether it is the same version; of a directory, whatever came and went in it.
fn is_same(last: &Entry, entry: &Entry) -> bool {
    let alike = |last: &Node| entry.node.as_ref().is_some_and(|node| last.is_as(node));
    last == entry || last.vector == entry.vector && last.node.as_ref().is_some_and(alike)
}

fn file_of(entry: &Entry) -> Option<(u64, Digest)> {
    match entry.node.as_ref()?.kind {
        Kind::File { size, digest } => Some((size, digest)),
        _ => None,
    }
}

/// Stands for a hole of so many bytes where the digest of a chunk would stand.
fn hole(length: u64) -> [u8; 32] {
    let mut name = [0; 32];
    name[24..].copy_from_slice(&length.to_le_bytes());
    name
}

fn hole_of(name: &[u8]) -> Option<u64> {
    let (zeros, length) = name.split_last_chunk()?;
    zeros
        .iter()
        .all(|b| *b == 0)
        .then(|| u64::from_le_bytes(*length))
}

fn damaged(what: &str) -> Error {
    redb::StorageError::Corrupted(what.to_owned()).into()
}

fn number_key(path: &Path, number: u64) -> Vec<u8> {
    [rows::link(path).as_slice(), &number.to_be_bytes()].concat()
}

fn path_of(key: &[u8]) -> Result<Path, Error> {
    let end = key.len().checked_sub(10);
    rows::path(end.and_then(|end| key.get(..end)).unwrap_or_default())
}

/// A version and its place in the table.
type Numbered = (Vec<u8>, Version);

fn of(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    path: &Path,
) -> Result<Vec<Numbered>, Error> {
    let (from, until) = beginning(&rows::link(path));
    let range = table.range(from.as_slice()..until.as_slice())?;
    let all = range.map(|item| {
        let (key, version) = item?;
        Ok((key.value().to_vec(), decode(version.value())?))
    });
    all.collect()
}

/// What is kept, and what it depends on.
struct Trim<'a> {
    keep: Keep,
    now: u64,
    ledger: &'a Ledger,
}

impl Trim<'_> {
    /// Which of the versions of a path, the oldest first, need not be kept.
    fn superfluous(&self, versions: &[Version]) -> Vec<bool> {
        let Some(current) = versions.last() else {
            return Vec::new();
        };
        let age = |version: &Version| self.now.saturating_sub(version.at);
        if current.entry.node.is_none() && age(current) > GONE {
            return vec![true; versions.len()];
        }
        let common: BTreeSet<_> = self
            .ledger
            .sequences()
            .filter_map(|told| versions.iter().rposition(|v| v.sequence <= told))
            .collect();
        let mut live = 0;
        let one = |(i, version): (usize, &Version)| {
            let Some(next) = versions.get(i + 1) else {
                return false; // what is there now
            };
            live += usize::from(version.entry.node.is_some());
            let wanted = match self.keep {
                Keep::Versions(most) => live <= most as usize,
                Keep::For(span) => u128::from(age(next)) <= span.as_nanos(),
            };
            !(wanted && live <= MOST || common.contains(&i))
        };
        let youngest_first = versions.iter().enumerate().rev();
        let mut which: Vec<_> = youngest_first.map(one).collect();
        which.reverse();
        which
    }
}

struct Tables<'t> {
    versions: Table<'t, &'static [u8], &'static [u8]>,
    contents: Table<'t, &'static [u8], &'static [u8]>,
    chunks: Table<'t, &'static [u8], &'static [u8]>,
    uses: Table<'t, &'static [u8], u64>,
    states: Table<'t, &'static [u8], &'static [u8]>,
}

impl<'t> Tables<'t> {
    fn open(tx: &'t redb::WriteTransaction) -> Result<Self, Error> {
        Ok(Self {
            versions: tx.open_table(VERSIONS)?,
            contents: tx.open_table(CONTENTS)?,
            chunks: tx.open_table(CHUNKS)?,
            uses: tx.open_table(USES)?,
            states: tx.open_table(STATE)?,
        })
    }

    fn state(&mut self, state: &State) -> Result<(), Error> {
        let state = encode(state)?;
        self.states.insert(&b"state"[..], state.as_slice())?;
        Ok(())
    }

    fn aged(&mut self, moment: u64) -> Result<(), Error> {
        let bytes = moment.to_be_bytes();
        self.states.insert(&b"aged"[..], bytes.as_slice())?;
        Ok(())
    }

    fn of(&self, path: &Path) -> Result<Vec<Numbered>, Error> {
        of(&self.versions, path)
    }

    fn recipe(&self, digest: &Digest) -> Result<Option<(u64, Vec<u8>)>, Error> {
        let Some(bytes) = self.contents.get(digest.0.as_slice())? else {
            return Ok(None);
        };
        let (count, chunks) = bytes
            .value()
            .split_first_chunk()
            .ok_or_else(|| damaged("contents without a count"))?;
        Ok(Some((u64::from_le_bytes(*count), chunks.to_vec())))
    }

    fn put_recipe(&mut self, digest: &Digest, count: u64, chunks: &[u8]) -> Result<(), Error> {
        let recipe = [&count.to_le_bytes(), chunks].concat();
        self.contents
            .insert(digest.0.as_slice(), recipe.as_slice())?;
        Ok(())
    }

    /// One more version has these contents; false if they are not here.
    fn take(&mut self, digest: &Digest) -> Result<bool, Error> {
        let Some((count, chunks)) = self.recipe(digest)? else {
            return Ok(false);
        };
        self.put_recipe(digest, count + 1, &chunks)?;
        Ok(true)
    }

    /// The contents of a file, for its first version; nothing is kept of a file that is not what it should be.
    fn fill(&mut self, file: &File, size: u64, digest: &Digest) -> Result<(), Failure> {
        let mut chunks = Vec::new();
        let filled = match self.cut(file, size, &mut chunks) {
            Ok(there) if there == (size, *digest) => {
                return Ok(self.put_recipe(digest, 1, &chunks)?);
            }
            Ok(_) => Failure::File("it has changed again".into()),
            Err(failure) => failure,
        };
        self.drop_chunks(&chunks)?;
        Err(filled)
    }

    /// Uses the chunks of a file of this size, and names them; what was there in the end.
    fn cut(
        &mut self,
        file: &File,
        size: u64,
        chunks: &mut Vec<u8>,
    ) -> Result<(u64, Digest), Failure> {
        let unread = |e: io::Error| Failure::File(e.to_string());
        let mut digester = Digester::new(size);
        // It may have grown.
        let length = file.metadata().map_err(unread)?.len().min(size);
        for extent in extents(file, 0, length, HOLE) {
            let extent = extent.map_err(unread)?;
            if extent.hole {
                digester.skip(extent.length());
                chunks.extend_from_slice(&hole(extent.length()));
                continue;
            }
            let part = Part::new(file, extent.from, extent.to);
            for chunk in StreamCDC::new(part, AVERAGE / 4, AVERAGE, CHUNK_MAX) {
                let data = chunk.map_err(|e| unread(e.into()))?.data;
                digester.update(&data);
                let name = *blake3::hash(&data).as_bytes();
                self.use_chunk(&name, &data)?;
                chunks.extend_from_slice(&name);
            }
        }
        Ok(digester.finish())
    }

    fn use_chunk(&mut self, name: &[u8; 32], data: &[u8]) -> Result<(), Error> {
        let uses = self.uses.get(name.as_slice())?.map_or(0, |u| u.value());
        self.uses.insert(name.as_slice(), uses + 1)?;
        if uses == 0 {
            let packed = zstd::bulk::compress(data, LEVEL).at("pack", "a chunk")?;
            let (flag, bytes) = if packed.len() < data.len() {
                (1, packed.as_slice())
            } else {
                (0, data)
            };
            let chunk = [&[flag], bytes].concat();
            self.chunks.insert(name.as_slice(), chunk.as_slice())?;
        }
        Ok(())
    }

    fn drop_chunks(&mut self, chunks: &[u8]) -> Result<(), Error> {
        for name in chunks.chunks(32) {
            let uses = self.uses.get(name)?.map_or(0, |u| u.value());
            if uses > 1 {
                self.uses.insert(name, uses - 1)?;
            } else {
                self.uses.remove(name)?;
                self.chunks.remove(name)?;
            }
        }
        Ok(())
    }

    /// Drops what need not be kept of a path; how many versions.
    fn trim(&mut self, path: &Path, trim: &Trim<'_>) -> Result<u64, Error> {
        let (keys, versions): (Vec<_>, Vec<_>) = self.of(path)?.into_iter().unzip();
        let mut dropped = 0;
        let superfluous = trim.superfluous(&versions);
        for ((key, version), _) in keys.iter().zip(&versions).zip(superfluous).filter(|v| v.1) {
            dropped += 1;
            self.versions.remove(key.as_slice())?;
            let Some((_, digest)) = file_of(&version.entry) else {
                continue;
            };
            match self.recipe(&digest)? {
                Some((count, chunks)) if count > 1 => {
                    self.put_recipe(&digest, count - 1, &chunks)?;
                }
                Some((_, chunks)) => {
                    self.drop_chunks(&chunks)?;
                    self.contents.remove(digest.0.as_slice())?;
                }
                None => {}
            }
        }
        Ok(dropped)
    }
}
