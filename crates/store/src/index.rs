//! What is known of each path, and of the set: an index on the disk that outlives a kill at any moment.

use crate::{
    calls::Calls,
    dir::{identity, own_directory},
    error::{At, Error},
    life::Life,
    rows::{
        self, DIGESTS, INTENTS, LINKS, PATHS, Row, SEQUENCES, STATE, State, Writer, beginning,
        compare, decode, decode_row, encode, encode_row, key,
    },
    times::Times,
};
use filesync::{
    Digest, Entry, Forgotten, Kind, Knowledge, Ledger, Path, Proof, Replica, Standing, Stat, Tree,
    guard::Identity,
};
use protocol::{
    ServerName,
    owner::{Foreign, Owner, Present},
};
use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table};
use serde::{Serialize, de::DeserializeOwned};
use std::{io, iter::Peekable, path::PathBuf, sync::Arc, time::Duration};

/// Bytes of the file kept in memory.
const CACHE: usize = 16 << 20;
/// So many changes are sorted in memory; for more the whole index is read in order.
const FEW: usize = 8192;
/// Key of the owner. Programs that know of none leave it as it is.
const OWNER: &str = "owner";
/// Key of who makes changes, if that is not whoever keeps the index.
const WRITER: &str = "writer";
/// Key of the history that this replica is part of.
const STANDING: &str = "standing";
/// Key of the file that the index itself was.
const FILE: &str = "file";
/// Key of the directory that the root was.
const IDENTITY: &str = "identity";
/// Key of which modification times the root's file system can hold.
const TIMES: &str = "times";
/// Key of when the root was last changed, when it was last looked at.
const CHANGED: &str = "changed";
/// Key of a mark: what is in the root did not come of what this index knows.
const GIVEN_UP: &str = "given-up";
/// Key of a mark: the index may have come back from a backup, and nobody has looked since.
const UNCERTAIN: &str = "uncertain";
/// Key of how far this replica has got with the others.
const TAKEN: &str = "taken";
/// Key of what this replica has heard of, but for its last own events.
const KNOWN: &str = "known";
/// Key of when it was last looked for removals to forget.
const SWEPT: &str = "swept";
/// So often that is done at most.
const DAY: Duration = Duration::from_secs(86_400);

/// See the module.
pub struct Index {
    db: Database,
    calls: Arc<Calls>,
    file: Identity,
    /// Dropped, and written, after the file is closed.
    _life: Life,
}

/// An index, and where it comes from.
pub struct Opened {
    /// It.
    pub index: Index,
    /// Nothing is known yet.
    pub new: bool,
    /// The file that was there before and could not be read.
    pub damaged: Option<PathBuf>,
    /// The file that was there before and is another machine's or another server's.
    pub foreign: Option<(PathBuf, Foreign)>,
    /// The file that was there before, if what it knows is not what is in the root: see [`Index::give_up`].
    pub given_up: Option<PathBuf>,
}

/// What a file that is there is good for.
enum Existing {
    Own(Index),
    Damaged,
    Foreign(Foreign),
    GivenUp,
}

/// Rows in the order of paths.
type Rows = Box<dyn Iterator<Item = Result<(Path, Row), Error>>>;

impl Index {
    /// Opens the index in `file` as the server that `present` is. One that cannot be read, or is another one's, is set
    /// aside, not deleted; then, and if there is none, a new one is made for the replica that `new` gives: with an
    /// incarnation drawn for it. One that names no owner is adopted. `note` is a file in the run-dir that tells whether
    /// the index came back from a backup: then whatever changes is changed by a new incarnation, too.
    pub fn open(
        file: &std::path::Path,
        note: &std::path::Path,
        present: &Present,
        new: impl FnOnce() -> Replica,
        calls: Arc<Calls>,
    ) -> Result<Opened, Error> {
        let shown = file.display();
        let folder = file.parent().filter(|f| !f.as_os_str().is_empty());
        let folder = folder.unwrap_or(std::path::Path::new("."));
        let folder =
            own_directory(folder, Arc::clone(&calls)).at("open the directory of", &shown)?;
        let (mut damaged, mut foreign, mut given_up) = (None, None, None);
        if file.try_exists().at("find", &shown)? {
            let aside = |why| set_aside(file, why).at("set aside", &shown);
            let life = Life::of(file, note);
            let unbroken = life.is_unbroken();
            match Self::existing(file, life, present, Arc::clone(&calls))? {
                Existing::Own(index) => {
                    if !unbroken {
                        index.continue_as(new())?;
                    }
                    return Ok(Opened {
                        index,
                        new: false,
                        damaged,
                        foreign,
                        given_up,
                    });
                }
                Existing::Damaged => damaged = Some(aside("damaged")?),
                Existing::Foreign(why) => foreign = Some((aside("foreign")?, why)),
                Existing::GivenUp => given_up = Some(aside("given-up")?),
            }
        }
        let db = Builder::new().set_cache_size(CACHE).create(file)?;
        let index = Self {
            db,
            calls,
            file: identity_of(file)?,
            _life: Life::of(file, note),
        };
        let state = State {
            replica: new(),
            count: 0,
            sequence: 0,
            live: 0,
            looked: 0,
            root: None,
        };
        index.begin(&state, &present.owner)?;
        // The file's name is as durable as what is in it.
        folder.sync().at("sync the directory of", &shown)?;
        Ok(Opened {
            index,
            new: true,
            damaged,
            foreign,
            given_up,
        })
    }

    /// The file is closed again if it is not this server's own.
    fn existing(
        file: &std::path::Path,
        life: Life,
        present: &Present,
        calls: Arc<Calls>,
    ) -> Result<Existing, Error> {
        let read = || -> Result<_, Error> {
            let db = Builder::new().set_cache_size(CACHE).open(file)?;
            let index = Self {
                db,
                calls,
                file: identity_of(file)?,
                _life: life,
            };
            index.state()?;
            for table in [PATHS, INTENTS] {
                index.table(table)?;
            }
            let stored = index.owner()?;
            Ok((index, stored))
        };
        let (index, stored) = match read() {
            Ok(read) => read,
            Err(e) if is_damage(&e) => return Ok(Existing::Damaged),
            Err(e) => return Err(e),
        };
        match present.claim(stored.as_ref()) {
            Err(why) => Ok(Existing::Foreign(why)),
            Ok(_) if index.table(STATE)?.get(GIVEN_UP)?.is_some() => Ok(Existing::GivenUp),
            Ok(owner) => {
                if stored.as_ref() != Some(&owner) {
                    index.belong(&owner)?;
                }
                Ok(Existing::Own(index))
            }
        }
    }

    fn owner(&self) -> Result<Option<Owner>, Error> {
        self.kept(OWNER)
    }

    /// What is kept of the set under this key.
    fn kept<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        kept_in(&self.table(STATE)?, key)
    }

    fn belong(&self, owner: &Owner) -> Result<(), Error> {
        let tx = self.db.begin_write()?;
        tx.open_table(STATE)?
            .insert(OWNER, encode(owner)?.as_slice())?;
        Ok(tx.commit()?)
    }

    /// Whatever changes from now on is this one's change.
    fn continue_as(&self, replica: Replica) -> Result<(), Error> {
        let known = self.knowledge()?;
        self.write(|batch| {
            batch.keep(KNOWN, &known)?;
            batch.writer = Writer { replica, count: 0 };
            batch.mark(UNCERTAIN)
        })
    }

    /// Since when what is in the set has been there, the next look cannot tell.
    pub(crate) fn is_uncertain(&self) -> Result<bool, Error> {
        let came_back = self.table(STATE)?.get(UNCERTAIN)?.is_some();
        Ok(came_back || self.standing()?.is_newcomer())
    }

    fn begin(&self, state: &State, owner: &Owner) -> Result<(), Error> {
        let tx = self.db.begin_write()?;
        {
            tx.open_table(PATHS)?;
            tx.open_table(SEQUENCES)?;
            tx.open_table(DIGESTS)?;
            tx.open_table(LINKS)?;
            tx.open_table(INTENTS)?;
            let mut states = tx.open_table(STATE)?;
            states.insert("state", encode(state)?.as_slice())?;
            states.insert(OWNER, encode(owner)?.as_slice())?;
            states.insert(STANDING, encode(&Standing::new(&state.replica))?.as_slice())?;
            states.insert(TAKEN, encode(&Ledger::default())?.as_slice())?;
        }
        Ok(tx.commit()?)
    }

    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        table: redb::TableDefinition<'_, K, V>,
    ) -> Result<ReadOnlyTable<K, V>, Error> {
        Ok(self.db.begin_read()?.open_table(table)?)
    }

    /// Of the set as a whole.
    pub fn state(&self) -> Result<State, Error> {
        state_in(&self.table(STATE)?)
    }

    /// Who makes changes here.
    pub fn writer(&self) -> Result<Writer, Error> {
        let table = self.table(STATE)?;
        writer_in(&table, &state_in(&table)?)
    }

    /// How far the others have got.
    pub fn ledger(&self) -> Result<Ledger, Error> {
        ledger_in(&self.table(STATE)?)
    }

    /// Whether its file is another one than when the set was last looked at: it came out of a backup.
    pub(crate) fn is_restored(&self) -> Result<bool, Error> {
        let file: Option<Identity> = self.kept(FILE)?;
        Ok(file.is_some_and(|file| file != self.file))
    }

    /// The directory that the root was; not known of an old index.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, Error> {
        self.kept(IDENTITY)
    }

    /// Notes that somebody was told which modification times the root's file system can hold; whether it is news.
    pub fn tell_times(&self, times: &Times) -> Result<bool, Error> {
        let news = self.kept::<Times>(TIMES)?.as_ref() != Some(times);
        if news {
            self.write(|batch| batch.keep(TIMES, times))?;
        }
        Ok(news)
    }

    /// The root's change time at the last look, in nanoseconds since 1970.
    pub(crate) fn changed(&self) -> Result<Option<i64>, Error> {
        self.kept(CHANGED)
    }

    /// What is in the root came from elsewhere: of that this index knows nothing. It is set aside when it is opened again,
    /// and a new one begins.
    pub fn give_up(&self) -> Result<(), Error> {
        self.write(|batch| batch.mark(GIVEN_UP))
    }

    /// The history that this replica is part of.
    pub fn standing(&self) -> Result<Standing, Error> {
        Ok(self.kept(STANDING)?.unwrap_or_default())
    }

    /// How far this replica has got with the others; none: the index was begun by a program that left that to them.
    pub fn taken(&self) -> Result<Option<Ledger>, Error> {
        self.kept(TAKEN)
    }

    /// What this replica has heard of.
    pub fn knowledge(&self) -> Result<Knowledge, Error> {
        let Writer { replica, count } = self.writer()?;
        let mut known: Knowledge = self.kept(KNOWN)?.unwrap_or_default();
        known.events.note(&replica, count);
        Ok(known)
    }

    /// By these `rules` something is left out of the set from now on. By others nothing is known of what was left out
    /// before, and all is to be told again.
    pub fn abide(&self, rules: u64) -> Result<(), Error> {
        let known: Option<Knowledge> = self.kept(KNOWN)?;
        if known.as_ref().is_some_and(|known| known.rules == rules) {
            return Ok(());
        }
        self.write(|batch| {
            if known.is_some() {
                batch.keep(TAKEN, &Ledger::default())?;
            }
            let forgotten = known.and_then(|known| known.forgotten);
            let known = Knowledge {
                forgotten,
                rules,
                ..Knowledge::default()
            };
            batch.keep(KNOWN, &known)
        })
    }

    /// It as it is now, for many questions one after another.
    pub fn reader(&self) -> Result<Reader, Error> {
        let tx = self.db.begin_read()?;
        Ok(Reader {
            paths: tx.open_table(PATHS)?,
            digests: tx.open_table(DIGESTS)?,
            links: tx.open_table(LINKS)?,
        })
    }

    /// Of one path.
    pub fn row(&self, path: &Path) -> Result<Option<Row>, Error> {
        self.reader()?.row(path)
    }

    /// All paths in order, as they are now, one after another.
    pub fn rows(&self) -> Result<Rows, Error> {
        let range = self.table(PATHS)?.range::<&[u8]>(..)?;
        Ok(Box::new(range.map(|item| {
            let (key, row) = item?;
            Ok((rows::path(key.value())?, decode_row(row.value())?))
        })))
    }

    /// The same, for who wants to know little of most of them.
    pub(crate) fn cursor(&self) -> Result<Cursor, Error> {
        let range = self.table(PATHS)?.range::<&[u8]>(..)?;
        Ok(Cursor(range.peekable()))
    }

    /// What changed after this sequence number, in the order of paths.
    pub fn since(&self, sequence: u64) -> Result<Rows, Error> {
        let fresh = self.table(SEQUENCES)?.range(sequence.saturating_add(1)..)?;
        let mut keys = Vec::new();
        for item in fresh.take(FEW + 1) {
            keys.push(item?.1.value().to_vec());
        }
        if keys.len() > FEW {
            let fresh = move |row: &Result<(Path, Row), Error>| {
                row.as_ref()
                    .map_or(true, |(_, row)| row.sequence > sequence)
            };
            return Ok(Box::new(self.rows()?.filter(fresh)));
        }
        keys.sort_unstable();
        let table = self.table(PATHS)?;
        Ok(Box::new(keys.into_iter().filter_map(move |key| {
            let read = || -> Result<_, Error> {
                let Some(row) = table.get(key.as_slice())? else {
                    return Ok(None);
                };
                Ok(Some((rows::path(&key)?, decode_row(row.value())?)))
            };
            read().transpose()
        })))
    }

    /// What was about to be done when the last run ended.
    pub fn intents(&self) -> Result<Vec<(Path, Entry)>, Error> {
        let all = self.table(INTENTS)?.range::<&[u8]>(..)?;
        all.map(|item| {
            let (key, entry) = item?;
            Ok((rows::path(key.value())?, decode(entry.value())?))
        })
        .collect()
    }

    /// Changes it: all of what `change` does is on the disk when this returns, or none of it.
    pub fn write<T>(
        &self,
        change: impl FnOnce(&mut Batch<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let tx = self.db.begin_write()?;
        let done = {
            let states = tx.open_table(STATE)?;
            let state = state_in(&states)?;
            let writer = writer_in(&states, &state)?;
            let mut batch = Batch {
                file: &self.file,
                state,
                writer: writer.clone(),
                states,
                paths: tx.open_table(PATHS)?,
                sequences: tx.open_table(SEQUENCES)?,
                digests: tx.open_table(DIGESTS)?,
                links: tx.open_table(LINKS)?,
                intents: tx.open_table(INTENTS)?,
            };
            let done = change(&mut batch)?;
            if batch.writer != writer {
                batch
                    .states
                    .insert(WRITER, encode(&batch.writer)?.as_slice())?;
            }
            let state = encode(&batch.state)?;
            batch.states.insert("state", state.as_slice())?;
            done
        };
        self.calls.one("commit").at("write", "the index")?;
        tx.commit()?;
        Ok(done)
    }

    /// Forgets removals that all `others` have and that are older than any backup; looks for them once a day at most.
    /// Returns how many. Nobody may have been told of this index by whoever has it open now.
    pub fn forget(&self, others: &[ServerName], now: u64, horizon: Duration) -> Result<u64, Error> {
        let age = |time: u64| Duration::from_nanos(now.saturating_sub(time));
        let swept: Option<u64> = self.kept(SWEPT)?;
        if swept.is_some_and(|swept| swept <= now && age(swept) < DAY) {
            return Ok(0);
        }
        self.write(|batch| batch.keep(SWEPT, &now))?;
        let (ledger, known) = (self.ledger()?, self.knowledge()?);
        let may = |row: &Row| {
            // A directory that was left over is known by its tombstone. One of a clock that was ahead waits for the others.
            row.entry.node.is_none()
                && row.proof.is_none()
                && age(row.entry.rank.nanos) > horizon
                && known.events.has(&row.entry.vector)
                && ledger.may_forget(others, row.sequence, age(row.at), horizon)
        };
        let mut count = 0;
        let mut rows = self.rows()?.filter(|item| match item {
            Ok((_, row)) => may(row),
            Err(_) => true,
        });
        loop {
            let rows: Vec<_> = rows.by_ref().take(FEW).collect::<Result<_, _>>()?;
            if rows.is_empty() {
                return Ok(count);
            }
            count += rows.len() as u64;
            self.write(|batch| {
                let mut known: Knowledge = kept_in(&batch.states, KNOWN)?.unwrap_or_default();
                for (path, row) in &rows {
                    let before = known.forgotten.take();
                    known.forgotten = Some(Forgotten::with(before, &row.entry, row.sequence));
                    batch.forget(path)?;
                }
                batch.keep(KNOWN, &known)
            })?;
        }
    }
}

/// The rows of an index, in order, as they stand there.
pub(crate) struct Cursor(Peekable<redb::Range<'static, &'static [u8], &'static [u8]>>);

/// The key and the bytes of a row.
type Raw = (
    redb::AccessGuard<'static, &'static [u8]>,
    redb::AccessGuard<'static, &'static [u8]>,
);

type Bytes<'a> = (&'a [u8], &'a [u8]);

impl Cursor {
    /// The next row whose path is before this one; of none, the next one at all.
    pub(crate) fn before(&mut self, path: Option<&Path>) -> Option<Result<(Path, Row), Error>> {
        let before = |key: &[u8]| path.is_none_or(|path| compare(key, path).is_lt());
        let next = self.next_if(before)?;
        Some(next.and_then(|(key, row)| Ok((rows::path(key.value())?, decode_row(row.value())?))))
    }

    /// The row of this path, if all before it were asked for.
    pub(crate) fn of(&mut self, path: &Path) -> Option<Result<Raw, Error>> {
        self.next_if(|key| compare(key, path).is_eq())
    }

    /// The next row, if its key begins with this.
    pub(crate) fn peek(&mut self, start: &[u8]) -> Result<Option<Bytes<'_>>, Error> {
        if let Some(Err(e)) = self.0.next_if(Result::is_err) {
            return Err(e.into());
        }
        Ok(match self.0.peek() {
            Some(Ok((key, row))) if key.value().starts_with(start) => {
                Some((key.value(), row.value()))
            }
            _ => None,
        })
    }

    /// Nothing more is asked of the next row.
    pub(crate) fn skip(&mut self) {
        self.0.next();
    }

    /// An error is due at once.
    fn next_if(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Option<Result<Raw, Error>> {
        let next = self.0.next_if(|item| match item {
            Ok((key, _)) => wanted(key.value()),
            Err(_) => true,
        })?;
        Some(next.map_err(Error::from))
    }
}

/// An index as it was at one moment.
pub struct Reader {
    paths: ReadOnlyTable<&'static [u8], &'static [u8]>,
    digests: ReadOnlyTable<&'static [u8], ()>,
    links: ReadOnlyTable<&'static [u8], ()>,
}

impl Reader {
    /// Of one path.
    pub fn row(&self, path: &Path) -> Result<Option<Row>, Error> {
        let bytes = self.paths.get(key(path).as_slice())?;
        bytes.map(|bytes| decode_row(bytes.value())).transpose()
    }

    /// The next paths after this one, at most so many, in order.
    pub fn after(&self, path: Option<&Path>, most: usize) -> Result<Vec<(Path, Row)>, Error> {
        let from = path.map_or(Vec::new(), |path| rows::pair(&key(path), &[0]));
        let rows = self.paths.range(from.as_slice()..)?.take(most);
        rows.map(|item| {
            let (key, row) = item?;
            Ok((rows::path(key.value())?, decode_row(row.value())?))
        })
        .collect()
    }

    /// The further names of a file.
    pub fn links_to(&self, to: &Path) -> Result<Vec<Path>, Error> {
        let start = rows::link(to);
        let (from, until) = beginning(&start);
        let all = self.links.range(from.as_slice()..until.as_slice())?;
        all.map(|item| rows::path(item?.0.value().get(start.len()..).unwrap_or_default()))
            .collect()
    }

    fn first_holder(&self, digest: &Digest) -> Result<Option<Path>, Error> {
        let (from, until) = beginning(&digest.0);
        let mut range = match until.is_empty() {
            true => self.digests.range(from.as_slice()..)?,
            false => self.digests.range(from.as_slice()..until.as_slice())?,
        };
        let first = range.next().transpose()?;
        first
            .map(|(k, _)| rows::path(k.value().get(digest.0.len()..).unwrap_or_default()))
            .transpose()
    }

    fn below(&self, directory: &Path) -> Result<Vec<Path>, Error> {
        let (from, until) = beginning(&rows::below(directory));
        let mut live = Vec::new();
        for item in self.paths.range(from.as_slice()..until.as_slice())? {
            let (key, row) = item?;
            let row = decode_row(row.value())?;
            if row.entry.node.is_some() {
                live.push(rows::path(key.value())?);
            }
        }
        Ok(live)
    }
}

/// An index that cannot be read answers as if it knew nothing: a plan made of that is carried out by nobody, for every
/// operation is checked against the index again, and that check fails with the reason.
impl Tree for Reader {
    fn entry(&self, path: &Path) -> Option<Entry> {
        self.row(path).ok().flatten().map(|row| row.entry)
    }

    fn live_below(&self, directory: &Path) -> Vec<Path> {
        self.below(directory).unwrap_or_default()
    }

    fn holder(&self, digest: &Digest) -> Option<Path> {
        self.first_holder(digest).ok().flatten()
    }

    fn names(&self, path: &Path) -> Vec<Path> {
        self.links_to(path).unwrap_or_default()
    }
}

fn identity_of(file: &std::path::Path) -> Result<Identity, Error> {
    let opened = std::fs::File::open(file);
    opened
        .and_then(|file| identity(&file))
        .at("find", &file.display())
}

fn state_in(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<State, Error> {
    let bytes = table.get("state")?;
    decode(bytes.as_ref().map_or(&[][..], |b| b.value()))
}

fn writer_in(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    state: &State,
) -> Result<Writer, Error> {
    Ok(kept_in(table, WRITER)?.unwrap_or_else(|| Writer {
        replica: state.replica.clone(),
        count: state.count,
    }))
}

fn ledger_in(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Ledger, Error> {
    Ok(kept_in(table, "ledger")?.unwrap_or_default())
}

fn kept_in<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, Error> {
    let bytes = table.get(key)?;
    bytes.map(|bytes| decode(bytes.value())).transpose()
}

/// Whether the file itself is to blame, not the machine and not another process that has it open.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Record(_) | Error::Version(_) => true,
        Error::Index(e) => match &**e {
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. } => true,
            redb::Error::Io(e) => matches!(
                e.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ),
            _ => false,
        },
        Error::At { .. } | Error::Root { .. } => false,
    }
}

/// Renames a file to the first name that is free and says `why`.
fn set_aside(file: &std::path::Path, why: &str) -> io::Result<PathBuf> {
    for n in 1..1000 {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".{why}-{n}"));
        let aside = PathBuf::from(name);
        if !aside.try_exists()? {
            std::fs::rename(file, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::Error::other("too many such files are kept already"))
}

/// Changes of an index that are made together or not at all.
pub struct Batch<'t> {
    file: &'t Identity,
    /// Of the set as a whole; written with the rest.
    pub state: State,
    writer: Writer,
    paths: Table<'t, &'static [u8], &'static [u8]>,
    sequences: Table<'t, u64, &'static [u8]>,
    digests: Table<'t, &'static [u8], ()>,
    links: Table<'t, &'static [u8], ()>,
    intents: Table<'t, &'static [u8], &'static [u8]>,
    states: Table<'t, &'static str, &'static [u8]>,
}

impl Batch<'_> {
    /// This is at `path` now.
    pub fn note(
        &mut self,
        path: &Path,
        entry: &Entry,
        proof: Option<Proof>,
        at: u64,
    ) -> Result<(), Error> {
        let key = key(path);
        self.forget(path)?;
        self.intents.remove(key.as_slice())?;
        self.count(entry);
        self.state.sequence += 1;
        let sequence = self.state.sequence;
        self.sequences.insert(sequence, key.as_slice())?;
        for (table, row) in [&mut self.digests, &mut self.links]
            .into_iter()
            .zip(extra(&key, entry))
        {
            if let Some(row) = row {
                table.insert(row.as_slice(), ())?;
            }
        }
        self.state.live += u64::from(entry.node.is_some());
        let entry = entry.clone();
        let row = Row {
            entry,
            sequence,
            at,
            proof,
        };
        self.paths
            .insert(key.as_slice(), encode_row(&row)?.as_slice())?;
        Ok(())
    }

    /// What is known of `path` was looked at and is still so.
    pub fn prove(&mut self, path: &Path, proof: Proof) -> Result<(), Error> {
        let key = key(path);
        let Some(mut row) = self.row(&key)? else {
            return Ok(());
        };
        row.proof = Some(proof);
        self.paths
            .insert(key.as_slice(), encode_row(&row)?.as_slice())?;
        Ok(())
    }

    /// All names that the directory at `path` had are known, if it is still the one that was looked at.
    pub(crate) fn has_all(&mut self, path: &Path, stat: &Stat) -> Result<(), Error> {
        let key = key(path);
        let row = self.paths.get(key.as_slice())?.map(|r| r.value().to_vec());
        let Some(row) = row else { return Ok(()) };
        if rows::proof(&row)?
            .0
            .is_some_and(|proof| proof.stat == *stat)
        {
            self.paths
                .insert(key.as_slice(), rows::with_all(&row).as_slice())?;
        }
        Ok(())
    }

    /// This is about to be at `path`.
    pub fn intend(&mut self, path: &Path, entry: &Entry) -> Result<(), Error> {
        self.count(entry);
        self.intents
            .insert(key(path).as_slice(), encode(entry)?.as_slice())?;
        Ok(())
    }

    /// What is about to be at `path`.
    pub(crate) fn intent(&self, path: &Path) -> Result<Option<Entry>, Error> {
        let bytes = self.intents.get(key(path).as_slice())?;
        bytes.map(|bytes| decode(bytes.value())).transpose()
    }

    /// Nothing is about to be at `path` any more.
    pub fn drop_intent(&mut self, path: &Path) -> Result<(), Error> {
        self.intents.remove(key(path).as_slice())?;
        Ok(())
    }

    /// What is known of a path, with what was changed here.
    pub(crate) fn entry(&self, path: &Path) -> Result<Option<Entry>, Error> {
        Ok(self.row(&key(path))?.map(|row| row.entry))
    }

    /// This replica has taken all up to `sequence`.
    pub fn acknowledged(&mut self, by: &Replica, sequence: u64, at: u64) -> Result<(), Error> {
        let mut ledger = ledger_in(&self.states)?;
        ledger.acknowledged(by, sequence, at);
        self.ledger(&ledger)
    }

    /// This replica has taken all that `from` has up to `sequence`.
    pub fn took(&mut self, from: &Replica, sequence: u64, at: u64) -> Result<(), Error> {
        let mut taken: Ledger = kept_in(&self.states, TAKEN)?.unwrap_or_default();
        taken.stands(from, sequence, at);
        self.keep(TAKEN, &taken)
    }

    /// All that one that knows this has is here.
    pub fn knows(&mut self, other: &Knowledge) -> Result<(), Error> {
        let mut known: Knowledge = kept_in(&self.states, KNOWN)?.unwrap_or_default();
        known.join(other);
        self.keep(KNOWN, &known)
    }

    fn keep(&mut self, key: &str, value: &impl Serialize) -> Result<(), Error> {
        self.states.insert(key, encode(value)?.as_slice())?;
        Ok(())
    }

    fn mark(&mut self, key: &'static str) -> Result<(), Error> {
        self.states.insert(key, &[][..])?;
        Ok(())
    }

    /// The root is this directory, and had this change time when it was looked at.
    pub(crate) fn looked(&mut self, root: &Identity, changed: i64) -> Result<(), Error> {
        self.states.remove(UNCERTAIN)?;
        self.keep(IDENTITY, root)?;
        self.keep(FILE, self.file)?;
        self.keep(CHANGED, &changed)
    }

    /// The history that this replica is part of.
    pub fn standing(&mut self, standing: &Standing) -> Result<(), Error> {
        self.keep(STANDING, standing)
    }

    /// How far the others have got.
    pub fn ledger(&mut self, ledger: &Ledger) -> Result<(), Error> {
        self.keep("ledger", ledger)
    }

    /// Knows nothing of `path` any more.
    fn forget(&mut self, path: &Path) -> Result<(), Error> {
        let key = key(path);
        let Some(row) = self.row(&key)? else {
            return Ok(());
        };
        self.sequences.remove(row.sequence)?;
        for (table, row) in [&mut self.digests, &mut self.links]
            .into_iter()
            .zip(extra(&key, &row.entry))
        {
            if let Some(row) = row {
                table.remove(row.as_slice())?;
            }
        }
        self.state.live -= u64::from(row.entry.node.is_some());
        self.paths.remove(key.as_slice())?;
        Ok(())
    }

    fn row(&self, key: &[u8]) -> Result<Option<Row>, Error> {
        let bytes = self.paths.get(key)?;
        bytes.map(|bytes| decode_row(bytes.value())).transpose()
    }

    /// No number of an event is used twice.
    fn count(&mut self, entry: &Entry) {
        let own = entry.vector.count(&self.writer.replica);
        self.writer.count = self.writer.count.max(own);
        if self.writer.replica == self.state.replica {
            self.state.count = self.writer.count;
        }
    }
}

/// The row of `digests` and that of `links` that belong to an entry.
fn extra(key: &[u8], entry: &Entry) -> [Option<Vec<u8>>; 2] {
    match entry.node.as_ref().map(|n| &n.kind) {
        Some(Kind::File { digest, .. }) => [Some(rows::pair(&digest.0, key)), None],
        Some(Kind::HardLink { to }) => [None, Some(rows::pair(&rows::link(to), key))],
        _ => [None, None],
    }
}
