//! What is at a path, and since which version.

use crate::{
    knowledge::Forgotten,
    path::Path,
    version::{Rank, Replica, Vector},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Digest of a file's contents (BLAKE3, 32 bytes).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

/// What kind of thing, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Of the contents.
        digest: Digest,
    },
    /// A directory. What is in it is no part of it.
    Directory,
    /// A symbolic link: data, never followed.
    Symlink {
        /// Where it points, as it stands there.
        target: Vec<u8>,
    },
    /// A further name of what is at another path of the same set and no directory: the first in order of its names.
    HardLink {
        /// That name.
        to: Path,
    },
    /// A named pipe.
    Fifo,
    /// A device.
    Device {
        /// A block device, not a character device.
        block: bool,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-user-id, set-group-id and sticky: the low twelve bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in nanoseconds since 1970; 0 for further names, and for directories of which it is not known.
    pub mtime: i128,
    /// Extended attributes, ACLs (`system.posix_acl_*`) and capabilities among them, as the kernel gives them.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    /// Nothing is lost with the other while this one is there: the same but for the time.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            kind,
            mode,
            uid,
            gid,
            mtime: _,
            attributes,
        } = self;
        (kind, mode, uid, gid, attributes)
            == (
                &other.kind,
                &other.mode,
                &other.uid,
                &other.gid,
                &other.attributes,
            )
    }

    /// The same; a directory's time may be another, for it follows from what comes and goes there.
    pub fn is_as(&self, other: &Self) -> bool {
        (self.mtime == other.mtime || self.is_directory()) && self.says_the_same(other)
    }

    /// Whether its time is later; any is later than one that is not known.
    pub fn is_later(&self, other: &Self) -> bool {
        let time = |node: &Self| (node.mtime != 0, node.mtime);
        time(self) > time(other)
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// The path of which it is a further name, if it is one.
    pub fn further_name_of(&self) -> Option<&Path> {
        match &self.kind {
            Kind::HardLink { to } => Some(to),
            _ => None,
        }
    }
}

/// One path as a replica knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What is there; none: it was removed (a tombstone).
    pub node: Option<Node>,
    /// The events in it.
    pub vector: Vector,
    /// Of the event that `node` is from.
    pub rank: Rank,
}

impl Entry {
    /// Whether there is a directory.
    pub fn is_directory(&self) -> bool {
        self.node.as_ref().is_some_and(Node::is_directory)
    }

    /// Size and digest of the file, if one is there.
    pub fn file(&self) -> Option<(u64, Digest)> {
        match self.node.as_ref()?.kind {
            Kind::File { size, digest } => Some((size, digest)),
            _ => None,
        }
    }
}

/// Who makes changes now, and how they are stamped.
#[derive(Clone, Debug)]
pub struct Author {
    /// This replica.
    pub replica: Replica,
    /// Number of its last event.
    pub count: u64,
    /// This server holds a virtual server's address.
    pub held: bool,
    /// What clocks may differ by, in nanoseconds: the same constant in the whole cluster.
    pub unit: u64,
    /// It has no history, or goes on with an index that may have come back from a backup: what it comes by has been there
    /// since nobody knows when.
    pub uncertain: bool,
    /// Removals that nobody here remembers: what is new comes after them.
    pub forgotten: Option<Forgotten>,
}

impl Author {
    /// A new event: `before` is this now, since `nanos`.
    pub fn change(&mut self, before: Option<&Entry>, node: Option<Node>, nanos: u64) -> Entry {
        self.count += 1;
        let forgotten = self.forgotten.as_ref().filter(|_| !self.uncertain);
        let mut vector = match (before, forgotten) {
            (Some(before), _) => before.vector.clone(),
            (None, Some(forgotten)) => forgotten.events.clone(),
            (None, None) => Vector::default(),
        };
        vector.note(&self.replica, self.count);
        let rank = match (before, forgotten) {
            (Some(before), _) if node.is_none() && before.node.is_some() => {
                Rank::of_turn(&before.rank)
            }
            (None, _) if self.uncertain => Rank::of_unknown(&self.replica, nanos),
            _ => Rank::of_change(
                before.map(|b| &b.rank).or(forgotten.map(|f| &f.rank)),
                &self.replica,
                nanos,
                self.held && !self.uncertain,
                self.unit,
            ),
        };
        Entry { node, vector, rank }
    }

    /// A new event: what became of two versions that knew nothing of each other, and has both in it.
    pub fn merge(&mut self, here: &Entry, there: &Entry, node: Node, nanos: u64) -> Entry {
        let mut both = here.clone();
        both.vector.join(&there.vector);
        both.rank = both.rank.max(there.rank.clone());
        self.change(Some(&both), Some(node), nanos)
    }

    /// A new event: what was removed elsewhere must stay, as it was.
    pub fn put_back(&mut self, removed: &Entry, node: Option<Node>) -> Entry {
        self.count += 1;
        let (mut vector, rank) = (removed.vector.clone(), Rank::of_turn(&removed.rank));
        vector.note(&self.replica, self.count);
        Entry { node, vector, rank }
    }
}
