//! From the disk to the index: what changed here since the last look.

use crate::{
    confirm::{Missing, Walked},
    dir::{Dir, Name},
    error::{At, Error},
    index::{Index, Reader},
    leftover::{self, Held, Leftovers},
    recover::recover,
    rows::{self, Row, State},
    set::{Set, reserved},
    sight::{self, Found},
    threads,
    times::Times,
    walk::{Counts, Step, Walk, What},
};
use filesync::{
    Author, Entry, Kind, Node, Observer, Path, Proof, Sight, Span, Stat,
    guard::{self, Limit, Past},
};
use rustix::{fs::FileType, io::Errno};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    thread::{self, Scope, ScopedJoinHandle},
};

/// So many changes are written to the index at once.
const BATCH: usize = 4096;
/// So many files are read together.
const UNREAD: usize = 256;
/// So often all is walked until nothing was moved meanwhile.
const TRIES: u32 = 4;

/// How to look.
pub struct Look<'a> {
    /// The time, in nanoseconds since 1970.
    pub now: u64,
    /// This server holds a virtual server's address.
    pub held: bool,
    /// See [`Author::unit`].
    pub unit: u64,
    /// What is no part of the set: a path, and whether it is a directory. What comes to be excluded is forgotten by
    /// nobody and removed nowhere.
    pub excluded: &'a dyn Fn(&Path, bool) -> bool,
    /// A set with nothing in it any more is one that was emptied: an operator said so.
    pub may_be_empty: bool,
    /// More files that changed and became older were not edited but restored.
    pub limit: Limit,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// New, or not what it was.
    pub changed: u64,
    /// There no more.
    pub removed: u64,
    /// What could not be told.
    pub counts: Counts,
    /// Directories that were removed elsewhere, and that nothing holds here any more: see [`clear`](crate::clear).
    pub released: Vec<Path>,
}

/// What is to be written of a path.
enum News {
    Changed(Entry, Option<Proof>),
    /// It was looked at and is what it was.
    Proven(Proof),
    /// All names of the directory that was like this are known.
    All(Stat),
}

/// A path of which more must be found out, or told.
struct Open {
    path: Path,
    known: Option<Row>,
    seen: Option<Seen>,
}

enum Seen {
    Unknown,
    Node(Node, Option<Proof>),
    /// A file in this directory that is still to be read, and was like this.
    Unread(Arc<Dir>, Stat),
    /// All names of the directory that was like this are in the index.
    All(Stat),
}

/// Looks at the whole set and writes what changed to the index.
pub fn look(set: &Set, index: &Index, how: &Look<'_>) -> Result<Summary, Error> {
    let mut tries = TRIES;
    let changed = set.root.changed().at("stat", &set.name)?;
    recover(set, index)?;
    let intents: BTreeMap<_, _> = index.intents()?.into_iter().collect();
    let mut found = 0;
    let (mut summary, unknown) = loop {
        tries -= 1;
        let state = index.state()?;
        let once =
            thread::scope(|scope| see_all(scope, set, index, how, &state, &intents, tries == 0))?;
        match once {
            Once::Moved(so_far) => found += so_far,
            Once::All(summary, unknown) => break (*summary, unknown),
        }
    };
    summary.changed += found;
    let done = intents.into_keys().filter(|path| {
        let within = |u: &Path| path == u || path.is_below(u);
        !unknown.iter().any(within)
    });
    index.write(|batch| {
        batch.state.looked = how.now;
        batch.looked(&set.identity, changed)?;
        done.into_iter()
            .try_for_each(|path| batch.drop_intent(&path))
    })?;
    Ok(summary)
}

/// What one walk came to.
enum Once {
    /// Something was moved behind its back: nothing counts as removed. So many changes were found.
    Moved(u64),
    /// And what of it is not known.
    All(Box<Summary>, Vec<Path>),
}

/// Walks once; the `last` time what was moved counts as not known.
fn see_all<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    set: &Set,
    index: &'env Index,
    how: &Look<'_>,
    state: &State,
    intents: &BTreeMap<Path, Entry>,
    last: bool,
) -> Result<Once, Error> {
    let mut walk = Walk::new(&set.root, how.excluded, signed(how.now)).at("read", &set.name)?;
    let mut rows = index.cursor()?;
    let reader = index.reader()?;
    let leftovers = Leftovers {
        set,
        index: &reader,
        new: &BTreeSet::new(),
    };
    let mut next = walk.next(&mut rows)?;
    let root = state.root.as_ref().unwrap_or(&set.seen);
    match guard::recognise(root, &set.seen, state.live, u64::from(next.is_some())) {
        Err(guard::Doubt::Empty) if how.may_be_empty => {}
        Err(doubt) => {
            let root = set.name.clone();
            return Err(Error::Root { root, doubt });
        }
        Ok(()) => {}
    }
    let writer = index.writer()?;
    let mut author = Author {
        replica: writer.replica,
        count: writer.count,
        held: how.held,
        unit: how.unit,
        uncertain: index.is_uncertain()?,
        forgotten: index.knowledge()?.forgotten,
    };
    let span = Span::new(&author, state.looked, how.now);
    let mut sights = Sights {
        scope,
        writing: None,
        index,
        now: how.now,
        observer: Observer::new(|path| intents.get(path).cloned(), &mut author, span),
        intents,
        times: &set.times,
        open: Vec::new(),
        unread: 0,
        news: Vec::new(),
        summary: Summary::default(),
        unknown: Vec::new(),
        missing: Vec::new(),
        past: Past::default(),
    };
    if let Some(before) = index.changed()? {
        let changed = set.root.changed().at("stat", &set.name)?;
        sights.past.changed(before, changed, signed(how.now));
    }
    let mut hidden = Hidden {
        excluded: how.excluded,
        directory: None,
    };
    loop {
        let here = next.as_ref().map(|step| &step.path);
        while let Some(row) = rows.before(here) {
            let (path, row) = row?;
            if !hidden.hides(&path, &row.entry) {
                sights.note(path, Some(row), None)?;
            }
        }
        let Some(Step { path, what }) = next else {
            break;
        };
        if let What::All(stat) = what {
            if set.tells_of_names {
                sights.note(path, None, Some(Seen::All(stat)))?;
            }
            next = walk.next(&mut rows)?;
            continue;
        }
        let raw = rows.of(&path).transpose()?;
        let bytes = raw.as_ref().map(|(_, row)| row.value());
        if bytes.is_none() {
            walk.is_new();
        }
        let mut proof = bytes.map(rows::proof).transpose()?.and_then(|(p, _)| p);
        if let (What::Here(dir, stat), Some(row)) = (&what, bytes)
            && is_directory(stat)
            && proof.is_some()
            && !rows::has_all(row)
            && rows::decode_row(row)?.entry.node.is_none()
        {
            if sights.is_left(&leftovers, &path, dir)? {
                walk.pass(&path, stat);
                next = walk.next(&mut rows)?;
                continue;
            }
            proof = None;
        }
        let mut proven = match &what {
            What::Here(_, stat) => proof.is_some_and(|p| p.serves(stat, signed(how.now))),
            _ => false,
        };
        let (mut seen, stat) = match what {
            What::Nothing | What::All(_) => (None, None),
            What::Unknown => (Some(Seen::Unknown), None),
            What::Further(to) => (Some(Seen::Node(sight::further_name(to), None)), None),
            What::Here(_, stat) if proven => (None, Some(stat)),
            What::Here(dir, stat) if is_file(&stat) => (Some(Seen::Unread(dir, stat)), None),
            What::Here(dir, _) => match sights.found(&path, sight::see(&dir, Name::last(&path))) {
                Some(Seen::Node(node, proof)) => {
                    let stat = proof.map(|proof| proof.stat);
                    (Some(Seen::Node(node, proof)), stat)
                }
                other => (other, None),
            },
        };
        if let Some(stat) = stat.filter(is_directory) {
            let known = proven && set.tells_of_names && bytes.is_some_and(rows::has_all);
            if let Err(e) = walk.enter(&path, stat, known) {
                seen = sights.found(&path, Err(e));
                proven = false;
            }
        }
        if !proven {
            let known = bytes.map(rows::decode_row).transpose()?;
            let known = known.filter(|row| !hidden.hides(&path, &row.entry));
            if known.is_some() || seen.is_some() {
                sights.note(path, known, seen)?;
            }
        }
        next = walk.next(&mut rows)?;
    }
    sights.flush()?;
    // Out of one backup with the index, nothing in it is older.
    let limit = match set.moved {
        true => Limit::default(),
        false => how.limit,
    };
    if set.moved {
        sights.past.missing(sights.missing.len());
    }
    if sights.past.is_set_back(limit, state.live) {
        let root = set.name.clone();
        return Err(Error::Root {
            root,
            doubt: guard::Doubt::Past,
        });
    }
    let reader = index.reader()?;
    let walked = Walked {
        set,
        index: &reader,
        excluded: how.excluded,
        entered: &walk.entered,
        began: signed(how.now),
    };
    let missing = std::mem::take(&mut sights.missing);
    let there = walked.not_gone(&missing)?;
    if !there.is_empty() && !last {
        return Ok(Once::Moved(sights.summary.changed));
    }
    for Missing { path, .. } in missing {
        if there.contains(&path) {
            let counts = &mut sights.summary.counts;
            counts.busy.add(&path, "was moved while all was looked at");
            sights.unknown.push(path);
        } else {
            sights.gone(&reader, path)?;
        }
    }
    sights.flush()?;
    let Sights {
        mut summary,
        unknown,
        ..
    } = sights;
    summary.counts.join(walk.counts);
    Ok(Once::All(Box::new(summary), unknown))
}

/// The time as a proof has it.
pub(crate) fn signed(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.mode) == FileType::RegularFile
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.mode) == FileType::Directory
}

/// What was come by and is not in the index yet.
struct Sights<'a, 'scope, 'env, I> {
    scope: &'scope Scope<'scope, 'env>,
    /// What is going to the index just now.
    writing: Option<ScopedJoinHandle<'scope, Result<(), Error>>>,
    index: &'env Index,
    now: u64,
    observer: Observer<'a, I>,
    intents: &'a BTreeMap<Path, Entry>,
    times: &'a Times,
    open: Vec<Open>,
    /// So many of them are still to be read.
    unread: usize,
    news: Vec<(Path, News)>,
    summary: Summary,
    unknown: Vec<Path>,
    missing: Vec<Missing>,
    past: Past,
}

impl<I: Fn(&Path) -> Option<Entry>> Sights<'_, '_, '_, I> {
    /// What is known of a path and what was seen there, in order.
    fn note(&mut self, path: Path, known: Option<Row>, seen: Option<Seen>) -> Result<(), Error> {
        self.unread += usize::from(matches!(seen, Some(Seen::Unread(..))));
        self.open.push(Open { path, known, seen });
        if self.unread >= UNREAD || self.open.len() >= BATCH {
            self.settle();
        }
        if self.news.len() >= BATCH {
            self.write()?;
        }
        Ok(())
    }

    /// None if there is nothing to tell.
    fn found(&mut self, path: &Path, found: io::Result<Found>) -> Option<Seen> {
        let counts = &mut self.summary.counts;
        match found {
            Ok(Found::Node(node, stat)) => {
                counts.read += u64::from(matches!(node.kind, Kind::File { .. }));
                let at = signed(self.now);
                let lent = false;
                Some(Seen::Node(node, Some(Proof { stat, at, lent })))
            }
            Ok(Found::Growing(node)) => {
                counts.read += 1;
                if let Kind::File { size, .. } = node.kind {
                    counts
                        .growing
                        .add(path, format!("the first {size} bytes stood still"));
                }
                Some(Seen::Node(node, None))
            }
            Ok(Found::Busy) => {
                counts.busy.add(path, "changes while it is read");
                Some(Seen::Unknown)
            }
            Ok(Found::Socket) => {
                counts
                    .skipped
                    .add(path, "a socket is of use on its machine only; exclude it");
                None
            }
            Ok(Found::Nothing) => None,
            Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => None,
            Err(e) => {
                counts.unreadable.add(path, e);
                Some(Seen::Unknown)
            }
        }
    }

    /// Whether a directory that is there counts as removed, for nothing in it is part of the set.
    fn is_left(
        &mut self,
        leftovers: &Leftovers<'_>,
        path: &Path,
        parent: &Dir,
    ) -> Result<bool, Error> {
        let Ok(directory) = parent.child(Name::last(path)) else {
            return Ok(false); // whoever looks at it tells why
        };
        if !leftovers.has(path, &directory)? {
            return Ok(false);
        }
        match leftovers.holder(path, &directory)? {
            Some(Held::Here(_)) => return Ok(false),
            Some(Held::Left(held)) => {
                let why = format!("{held} is left out");
                self.summary.counts.left.add(path, why);
            }
            None if leftover::is_certain(&directory).at("stat", path)? => {
                self.summary.released.push(path.clone());
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Reads what is unread, and finds out what changed.
    fn settle(&mut self) {
        self.unread = 0;
        let open = std::mem::take(&mut self.open);
        let unread = open.iter().filter_map(|o| match &o.seen {
            Some(Seen::Unread(dir, stat)) => Some((dir, &o.path, *stat)),
            _ => None,
        });
        let read = threads::map(unread.collect(), |(dir, path, stat)| {
            sight::see_file(dir, Name::last(path), stat)
        });
        let mut read = read.into_iter();
        for Open { path, known, seen } in open {
            let seen = match seen {
                Some(Seen::Unread(..)) => read.next().and_then(|found| self.found(&path, found)),
                other => other,
            };
            let before = known.as_ref().and_then(|row| row.proof);
            let inode = before.map(|proof| proof.stat.inode);
            let known = known.as_ref().map(|row| &row.entry);
            let (entry, proof) = match (seen, known) {
                (None, None) => continue,
                (None, Some(known)) => {
                    if known.node.is_some() && !self.observer.hides(&path) {
                        self.missing.push(Missing { path, inode });
                    }
                    continue;
                }
                (Some(Seen::Node(node, proof)), known) => {
                    let intended = self.intents.get(&path).and_then(|i| i.node.as_ref());
                    let node = self.times.meant(node, known.and_then(|k| k.node.as_ref()));
                    let node = self.times.meant(node, intended);
                    let before = (known.and_then(|k| k.node.as_ref()), before.as_ref());
                    self.past
                        .note(before, (&node, proof.as_ref()), signed(self.now));
                    (self.observer.seen(&path, known, Sight::Node(node)), proof)
                }
                (Some(Seen::All(stat)), _) => {
                    self.news.push((path, News::All(stat)));
                    continue;
                }
                (Some(Seen::Unknown | Seen::Unread(..)), known) => {
                    self.unknown.push(path.clone());
                    (self.observer.seen(&path, known, Sight::Unknown), None)
                }
            };
            let vector = known.map(|known| &known.vector);
            let changed = entry.as_ref().is_some_and(|e| Some(&e.vector) != vector);
            self.summary.changed += u64::from(changed);
            let news = match (entry, proof) {
                (Some(entry), proof) => News::Changed(entry, proof),
                (None, Some(proof)) => News::Proven(proof),
                (None, None) => continue,
            };
            self.news.push((path, news));
        }
    }

    /// This is certainly there no more.
    fn gone(&mut self, index: &Reader, path: Path) -> Result<(), Error> {
        let row = index.row(&path)?;
        if let Some(entry) = row.and_then(|row| self.observer.absent(&path, &row.entry)) {
            self.summary.removed += 1;
            self.news.push((path, News::Changed(entry, None)));
        }
        match self.news.len() < BATCH {
            true => Ok(()),
            false => self.write(),
        }
    }

    /// A proof is never in the index before the change that was seen with it.
    fn write(&mut self) -> Result<(), Error> {
        let (now, news) = (self.now, std::mem::take(&mut self.news));
        if news.is_empty() {
            return Ok(());
        }
        self.written()?;
        let index = self.index;
        let write = move || {
            index.write(|batch| {
                news.iter().try_for_each(|(path, news)| match news {
                    News::Changed(entry, proof) => batch.note(path, entry, *proof, now),
                    News::Proven(proof) => batch.prove(path, *proof),
                    News::All(stat) => batch.has_all(path, stat),
                })
            })
        };
        self.writing = Some(self.scope.spawn(write));
        Ok(())
    }

    /// All that was to go to the index is there.
    fn written(&mut self) -> Result<(), Error> {
        let died =
            |_| Err(io::Error::other("the thread that writes died")).at("write", "the index");
        let writing = self.writing.take().map(ScopedJoinHandle::join);
        writing.map_or(Ok(()), |written| written.unwrap_or_else(died))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.settle();
        self.write()?;
        self.written()
    }
}

/// Paths that are excluded, or in a directory that is: in order, the directory comes first.
struct Hidden<'a> {
    excluded: &'a dyn Fn(&Path, bool) -> bool,
    directory: Option<Path>,
}

impl Hidden<'_> {
    fn hides(&mut self, path: &Path, entry: &Entry) -> bool {
        if self.directory.as_ref().is_some_and(|d| path.is_below(d)) {
            return true;
        }
        let hides = reserved(path) || (self.excluded)(path, entry.is_directory());
        if hides {
            self.directory = Some(path.clone());
        }
        hides
    }
}
