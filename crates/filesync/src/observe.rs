//! From what is on the disk to events: what changed here since the last look.

use crate::{
    entry::{Author, Entry, Node},
    path::Path,
};
use serde::{Deserialize, Serialize};
use std::iter::Peekable;

/// A file may change again within so many nanoseconds without a trace: a kernel's time stamps are that coarse at the
/// worst, and a little more for other machines' file systems.
pub const RACY: i64 = 2_000_000_000;

/// What syncd itself moved, or gave other metadata, is not read again for the sake of that for so many nanoseconds.
pub const LENT: i64 = 60_000_000_000;

/// What stat(2) tells of a file; all of it changes, or the change time does, when the file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Modification time in nanoseconds since 1970.
    pub mtime: i64,
    /// Change time, likewise; no program can set it.
    pub ctime: i64,
}

/// That a file's contents were looked at; or, `lent`, that they were before syncd itself moved it or gave it other
/// metadata, and that it was the same file before and after. Somebody may have changed it in between and put its time
/// back, so that is believed for a while only, and never where what is there goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// As it was before and after.
    pub stat: Stat,
    /// When, in nanoseconds since 1970, by the clock that stamps the files.
    pub at: i64,
    /// Nothing was read at that time.
    pub lent: bool,
}

impl Proof {
    /// Whether a file that looks like this now is certainly what it was then: git's "racily clean" is not.
    pub fn holds(&self, now: &Stat) -> bool {
        let quiet = |time: i64| time < self.at.saturating_sub(RACY);
        !self.lent && self.stat == *now && quiet(now.mtime) && quiet(now.ctime)
    }

    /// Whether it need not be read at `time`.
    pub fn serves(&self, now: &Stat, time: i64) -> bool {
        let young = (self.at..self.at.saturating_add(LENT)).contains(&time);
        self.holds(now) || (self.lent && self.stat == *now && young)
    }

    /// Of a file that was like its stat at `time`, and is like this after syncd itself moved it, or gave it what `now`
    /// has. A proof that was lent is not good for longer thereby.
    pub fn lend(before: Option<&Self>, now: Stat, time: i64) -> Self {
        let lent = before.filter(|p| p.lent && p.at <= time);
        let at = lent.map_or(time, |p| p.at);
        Self {
            stat: now,
            at,
            lent: true,
        }
    }
}

/// What a look at a path gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// This.
    Node(Node),
    /// It, and all below it, could not be looked at, or changed meanwhile: nothing is known, and nothing concluded.
    Unknown,
}

/// The time of a look, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When the look before began.
    pub previous: u64,
    /// When this one began.
    pub now: u64,
}

impl Span {
    /// Of a look at `now` after one that began at `looked`. What an uncertain author finds is as old as it says.
    pub fn new(author: &Author, looked: u64, now: u64) -> Self {
        let previous = match author.uncertain {
            true => 0,
            false => looked,
        };
        Self { previous, now }
    }

    /// When a change happened: a modification time is believed if it lies where it can. A directory's tells of something
    /// else.
    fn stamp(&self, node: Option<&Node>) -> u64 {
        let node = node.filter(|node| !node.is_directory());
        let told = node.and_then(|n| u64::try_from(n.mtime).ok());
        told.filter(|t| (self.previous..=self.now).contains(t))
            .unwrap_or(self.now)
    }
}

/// What changed, path by path in order. Only what was seen to be absent counts as removed.
///
/// `intended` tells of an operation that was about to be carried out when syncd died: what it would have brought is
/// no change of anybody here, and would be dangerous as one, for it would look younger than it is.
pub struct Observer<'a, I> {
    intended: I,
    author: &'a mut Author,
    span: Span,
    unknown: Option<Path>,
}

impl<'a, I> Observer<'a, I>
where
    I: Fn(&Path) -> Option<Entry>,
{
    /// Who was told nothing yet.
    pub fn new(intended: I, author: &'a mut Author, span: Span) -> Self {
        Self {
            intended,
            author,
            span,
            unknown: None,
        }
    }

    /// It is below what could not be looked at.
    pub fn hides(&self, path: &Path) -> bool {
        self.unknown.as_ref().is_some_and(|u| path.is_below(u))
    }

    /// This is known of a path, and it is gone.
    pub fn absent(&mut self, path: &Path, known: &Entry) -> Option<Entry> {
        self.change(path, Some(known), None)
    }

    /// This was seen. What is known and was seen to be still so need not be told at all.
    pub fn seen(&mut self, path: &Path, known: Option<&Entry>, sight: Sight) -> Option<Entry> {
        match sight {
            Sight::Unknown => {
                self.unknown = Some(path.clone());
                None
            }
            Sight::Node(node) => self.change(path, known, Some(node)),
        }
    }

    fn change(&mut self, path: &Path, known: Option<&Entry>, node: Option<Node>) -> Option<Entry> {
        let was = known.and_then(|k| k.node.as_ref());
        if was == node.as_ref() {
            return None;
        }
        let alike = |other: &Option<Node>| match (other, &node) {
            (Some(other), Some(node)) => other.is_as(node),
            (other, node) => other == node,
        };
        if let Some(intended) = (self.intended)(path).filter(|i| alike(&i.node)) {
            return Some(intended);
        }
        // What came or went in a directory is told, and is nobody's change of it.
        if let (Some(known), Some(was), Some(now)) = (known, was, &node)
            && was.is_as(now)
            && now.is_later(was)
        {
            let known = known.clone();
            return Some(Entry { node, ..known });
        }
        let at = self.span.stamp(node.as_ref());
        Some(self.author.change(known, node, at))
    }
}

/// All changes between two sequences sorted by path.
pub struct Difference<'a, K: Iterator, S: Iterator, I> {
    known: Peekable<K>,
    seen: Peekable<S>,
    observer: Observer<'a, I>,
}

impl<'a, K, S, I> Difference<'a, K, S, I>
where
    K: Iterator<Item = (Path, Entry)>,
    S: Iterator<Item = (Path, Sight)>,
    I: Fn(&Path) -> Option<Entry>,
{
    /// Between what is known and what is seen.
    pub fn new(known: K, seen: S, intended: I, author: &'a mut Author, span: Span) -> Self {
        Self {
            known: known.peekable(),
            seen: seen.peekable(),
            observer: Observer::new(intended, author, span),
        }
    }
}

impl<K, S, I> Iterator for Difference<'_, K, S, I>
where
    K: Iterator<Item = (Path, Entry)>,
    S: Iterator<Item = (Path, Sight)>,
    I: Fn(&Path) -> Option<Entry>,
{
    type Item = (Path, Entry);

    fn next(&mut self) -> Option<(Path, Entry)> {
        loop {
            let seen_first = match (self.known.peek(), self.seen.peek()) {
                (None, None) => return None,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((known, _)), Some((seen, _))) => seen <= known,
            };
            let (path, change) = if seen_first {
                let (path, sight) = self.seen.next()?;
                let known = self.known.next_if(|(known, _)| *known == path);
                let known = known.as_ref().map(|(_, entry)| entry);
                let change = self.observer.seen(&path, known, sight);
                (path, change)
            } else {
                let (path, entry) = self.known.next()?;
                let hidden = self.observer.hides(&path);
                let change = (!hidden)
                    .then(|| self.observer.absent(&path, &entry))
                    .flatten();
                (path, change)
            };
            if let Some(change) = change {
                return Some((path, change));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        entry::{Digest, Kind},
        version::Replica,
    };
    use std::collections::BTreeMap;

    fn path(text: &str) -> Path {
        Path::try_from(text.as_bytes().to_vec()).unwrap()
    }

    pub(crate) fn file(content: u8, mtime: i128) -> Node {
        Node {
            kind: Kind::File {
                size: 1,
                digest: Digest([content; 32]),
            },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime,
            attributes: BTreeMap::new(),
        }
    }

    fn author() -> Author {
        Author {
            replica: Replica {
                server: "alpha".parse().unwrap(),
                incarnation: 7,
            },
            count: 10,
            held: false,
            unit: 1000,
            uncertain: false,
            forgotten: None,
        }
    }

    const SPAN: Span = Span {
        previous: 5_000,
        now: 9_000,
    };

    fn look(known: &BTreeMap<Path, Entry>, seen: &[(&str, Sight)]) -> BTreeMap<Path, Entry> {
        let seen = seen.iter().map(|(p, s)| (path(p), s.clone()));
        let known = known.clone().into_iter();
        Difference::new(known, seen, |_| None, &mut author(), SPAN).collect()
    }

    fn known(files: &[&str]) -> BTreeMap<Path, Entry> {
        let seen: Vec<_> = files
            .iter()
            .map(|f| (*f, Sight::Node(file(1, 100))))
            .collect();
        look(&BTreeMap::new(), &seen)
    }

    #[test]
    fn new_changed_and_removed_are_told_and_the_rest_is_not() {
        let before = known(&["a", "b", "c"]);
        let changes = look(
            &before,
            &[
                ("a", Sight::Node(file(1, 100))),
                ("c", Sight::Node(file(2, 6_000))),
                ("d", Sight::Node(file(3, 1))),
            ],
        );
        let names: Vec<_> = changes.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["b", "c", "d"]);
        assert_eq!(changes[&path("b")].node, None);
        assert!(changes[&path("b")].vector.count(&author().replica) > 10);
        assert_eq!(
            changes[&path("c")].rank.nanos,
            6_000.max(before[&path("c")].rank.nanos)
        );
        assert_eq!(
            changes[&path("d")].rank.nanos,
            SPAN.now,
            "a time before the last look is not believed"
        );
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_removed() {
        let before = known(&["a", "a/x", "a/y", "a-", "b"]);
        let changes = look(
            &before,
            &[("a", Sight::Unknown), ("a-", Sight::Node(file(1, 100)))],
        );
        let names: Vec<_> = changes.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn what_syncd_itself_was_about_to_bring_is_no_change_of_this_server() {
        let before = known(&["a", "b"]);
        let mut elsewhere = author();
        elsewhere.replica.server = "beta".parse().unwrap();
        let theirs = elsewhere.change(before.get(&path("a")), Some(file(9, 7)), 7);
        let seen = [
            (path("a"), Sight::Node(file(9, 7))),
            (path("b"), Sight::Node(file(9, 7))),
        ];
        let intended = |_: &Path| Some(theirs.clone());
        let mut author = author();
        let changes: BTreeMap<_, _> = Difference::new(
            before.clone().into_iter(),
            seen.into_iter(),
            intended,
            &mut author,
            SPAN,
        )
        .collect();
        assert_eq!(changes[&path("a")], theirs);
        let other = |_: &Path| {
            Some(Entry {
                node: Some(file(8, 7)),
                ..theirs.clone()
            })
        };
        let seen = [(path("a"), Sight::Node(file(9, 7)))];
        let changes: BTreeMap<_, _> = Difference::new(
            before.into_iter(),
            seen.into_iter(),
            other,
            &mut author,
            SPAN,
        )
        .collect();
        assert_ne!(
            changes[&path("a")].vector,
            theirs.vector,
            "something else came of it"
        );
    }

    pub(crate) fn with_times(mtime: i64, ctime: i64) -> Stat {
        Stat {
            size: 5,
            mode: 0o100_644,
            uid: 1,
            gid: 1,
            device: 1,
            inode: 2,
            mtime,
            ctime,
        }
    }

    #[test]
    fn what_came_or_went_in_a_directory_is_nobodys_change_unless_its_time_was_set_back() {
        let directory = |mode, mtime| Node {
            kind: Kind::Directory,
            mode,
            ..file(1, mtime)
        };
        let known = author().change(None, Some(directory(0o755, 5)), 6);
        let seen = |node: Node| {
            let mut author = author();
            let mut observer = Observer::new(|_| None, &mut author, SPAN);
            let seen = observer.seen(&path("d"), Some(&known), Sight::Node(node.clone()));
            seen.map(|entry| {
                assert_eq!(entry.node, Some(node));
                entry.vector == known.vector && entry.rank == known.rank
            })
        };
        assert_eq!(seen(directory(0o755, 5)), None);
        assert_eq!(seen(directory(0o755, 6)), Some(true));
        assert_eq!(seen(directory(0o755, 4)), Some(false), "somebody set it");
        assert_eq!(seen(directory(0o700, 6)), Some(false));
        assert_eq!(seen(file(1, 6)), Some(false));
    }

    #[test]
    fn a_file_looked_at_while_its_times_were_young_is_looked_at_again() {
        let stat = with_times(10 * RACY, 10 * RACY);
        let proof = |at| Proof {
            stat,
            at,
            lent: false,
        };
        assert!(proof(11 * RACY + 1).holds(&stat));
        assert!(
            !proof(11 * RACY).holds(&stat),
            "within the grain of the clock"
        );
        assert!(!proof(9 * RACY).holds(&stat), "from the future");
        let changed = Stat { ctime: 3, ..stat };
        assert!(!proof(20 * RACY).holds(&changed));
        let renamed_back = Stat { inode: 3, ..stat };
        assert!(!proof(20 * RACY).holds(&renamed_back));
    }

    #[test]
    fn what_syncd_moved_is_read_again_in_a_while_however_often_it_moves() {
        let stat = with_times(10, 20 * RACY);
        let at = 20 * RACY;
        let first = Proof::lend(None, stat, at);
        assert!(!first.holds(&stat), "not where anything is lost with it");
        assert!(first.serves(&stat, at) && first.serves(&stat, at + LENT - 1));
        assert!(!first.serves(&stat, at + LENT));
        assert!(!first.serves(&stat, at - 1), "a clock that was set back");
        let touched = Stat {
            ctime: 20 * RACY + 1,
            ..stat
        };
        assert!(!first.serves(&touched, at));
        let second = Proof::lend(Some(&first), touched, at + LENT - 1);
        assert!(second.serves(&touched, at + LENT - 1) && !second.serves(&touched, at + LENT));
        let read = Proof {
            stat,
            at: at + LENT,
            lent: false,
        };
        assert!(read.holds(&stat) && read.serves(&stat, i64::MAX));
        assert_eq!(Proof::lend(Some(&read), touched, at).at, at, "anew");
    }
}
