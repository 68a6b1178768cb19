//! From the disk to the index: what changed here since the last look.

use crate::{
    error::{At, Error},
    index::Index,
    recover::recover,
    rows::Row,
    set::{Set, reserved},
    walk::{Counts, Walk},
};
use filesync::{Author, Difference, Entry, Path, Proof, Sight, Span, guard};
use std::{cell::RefCell, collections::BTreeMap, iter::Peekable};

/// So many changes are written to the index at once.
const BATCH: usize = 4096;

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
}

/// One thing to be written: an entry if it changed, a proof if it was looked at.
struct News {
    path: Path,
    entry: Option<Entry>,
    proof: Option<Proof>,
}

/// What the iterators of a look share. Whatever fails is left here, for they can only end; all of the look is void then.
struct Shared<'i> {
    index: &'i Index,
    now: u64,
    news: Vec<News>,
    /// Of the last step, which may yet turn out to be a change.
    last: Option<News>,
    failed: Option<Error>,
    unknown: Vec<Path>,
}

impl Shared<'_> {
    /// A proof must never be in the index before the change that was seen with it.
    fn flush(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.settle();
        let (now, news) = (self.now, std::mem::take(&mut self.news));
        if news.is_empty() {
            return Ok(());
        }
        self.index.write(|batch| {
            news.iter().try_for_each(|n| match (&n.entry, n.proof) {
                (Some(entry), proof) => batch.note(&n.path, entry, proof, now),
                (None, Some(proof)) => batch.prove(&n.path, proof),
                (None, None) => Ok(()),
            })
        })
    }

    /// The last step is past: it is what it is.
    fn settle(&mut self) {
        self.news.extend(self.last.take());
    }

    /// The value, or none and the reason kept.
    fn take<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }
}

/// The rows of an index, asked for in order.
struct Cursor<R: Iterator<Item = (Path, Row)>>(Peekable<R>);

impl<R: Iterator<Item = (Path, Row)>> Cursor<R> {
    fn row(&mut self, path: &Path) -> Option<Row> {
        while self.0.next_if(|(known, _)| known < path).is_some() {}
        self.0
            .next_if(|(known, _)| known == path)
            .map(|(_, row)| row)
    }
}

/// Looks at the whole set and writes what changed to the index.
pub fn look(set: &Set, index: &Index, how: &Look<'_>) -> Result<Summary, Error> {
    recover(set, index)?;
    let state = index.state()?;
    let intents: BTreeMap<_, _> = index.intents()?.into_iter().collect();
    let shared = RefCell::new(Shared {
        index,
        now: how.now,
        news: Vec::new(),
        last: None,
        failed: None,
        unknown: Vec::new(),
    });
    let rows = || -> Result<_, Error> {
        let rows = index.rows()?;
        Ok(rows.map_while(|row| shared.borrow_mut().take(row)))
    };

    let mut proven = Cursor(rows()?.peekable());
    let known = |path: &Path| {
        let row = proven.row(path)?;
        Some((row.entry, row.proof?))
    };
    let mut walk = Walk::new(&set.root, how.now, known, how.excluded).at("read", &set.name)?;
    let mut first = walk.next();
    let live = u64::from(first.is_some());
    let root = state.root.as_ref().unwrap_or(&set.seen);
    match guard::recognise(root, &set.seen, state.live, live) {
        Err(guard::Doubt::Empty) if how.may_be_empty => {}
        Err(doubt) => {
            let root = set.name.clone();
            return Err(Error::Root { root, doubt });
        }
        Ok(()) => {}
    }

    // When the next step is asked for, whatever came of those before has been put to the news.
    let seen = std::iter::from_fn(|| {
        {
            let mut shared = shared.borrow_mut();
            shared.settle();
            if shared.news.len() >= BATCH {
                let flushed = shared.flush();
                shared.take(flushed)?;
            }
        }
        let step = first.take().or_else(|| walk.next())?;
        let mut shared = shared.borrow_mut();
        let (path, entry) = (step.path.clone(), None);
        match (&step.sight, step.proof) {
            (Sight::Unknown, _) => shared.unknown.push(path),
            (Sight::Node(_), None) => {}
            (Sight::Node(_), proof) => shared.last = Some(News { path, entry, proof }),
        }
        Some((step.path, step.sight))
    });
    let mut hidden = Hidden {
        excluded: how.excluded,
        directory: None,
    };
    let included = rows()?
        .filter(|(path, row)| !hidden.hides(path, &row.entry))
        .map(|(path, row)| (path, row.entry));
    let mut author = Author {
        replica: state.replica.clone(),
        count: state.count,
        held: how.held,
        unit: how.unit,
    };
    let span = Span {
        previous: state.looked,
        now: how.now,
    };
    let intended = |path: &Path| intents.get(path).cloned();
    let (mut changed, mut removed) = (0, 0);
    for (path, entry) in Difference::new(included, seen, intended, &mut author, span) {
        let mut shared = shared.borrow_mut();
        if shared.failed.is_some() {
            break;
        }
        match entry.node {
            Some(_) => changed += 1,
            None => removed += 1,
        }
        match &mut shared.last {
            Some(last) if last.path == path => last.entry = Some(entry),
            _ => shared.news.push(News {
                path,
                entry: Some(entry),
                proof: None,
            }),
        }
    }
    let mut shared = shared.borrow_mut();
    shared.flush()?;
    let done = intents.into_keys().filter(|path| {
        let unknown = |u: &Path| path == u || path.is_below(u);
        !shared.unknown.iter().any(unknown)
    });
    index.write(|batch| {
        batch.state.looked = how.now;
        done.into_iter()
            .try_for_each(|path| batch.drop_intent(&path))
    })?;
    Ok(Summary {
        changed,
        removed,
        counts: walk.counts,
    })
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
