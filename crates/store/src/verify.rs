//! Whether files that look as when they were last read still have the same contents: a program that writes through
//! mmap(2) may leave no trace, and neither does a disk that fails.
//!
//! Which of the two it was, nobody can tell. So what is found is told, and is no change of anybody: it goes nowhere.

use crate::{
    dir::{Dir, Places, is_no_way},
    error::Listing,
    rows::Row,
    sight::{self, Found},
    threads,
};
use filesync::{Kind, Node, Path, Proof};
use std::io;

const ALTERED: &str = "its contents are not those that were last read, though neither its size nor its times have \
                       changed: a program writes to it through mmap(2), or a disk fails. Nothing of it goes to other \
                       servers. If it is right, touch it; if not, copy it back from another server";

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files that were read.
    pub read: u64,
    /// Those with other contents than they had, though neither size nor times moved.
    pub altered: Listing,
    /// Those that could not be read.
    pub unreadable: Listing,
}

impl Verified {
    /// With those of another.
    pub fn join(&mut self, other: Self) {
        self.read += other.read;
        self.altered.join(other.altered);
        self.unreadable.join(other.unreadable);
    }

    /// Nothing is wrong.
    pub fn is_fine(&self) -> bool {
        self.altered.count == 0 && self.unreadable.count == 0
    }
}

/// Reads these files beneath `root`, but for those that have changed since they were last looked at: whoever looks next
/// reads them.
pub fn verify(root: &Dir, rows: Vec<(Path, Row)>) -> Verified {
    let files = rows.into_iter().filter_map(|(path, row)| {
        let node = row
            .entry
            .node
            .filter(|n| matches!(n.kind, Kind::File { .. }))?;
        Some((path, node, row.proof?))
    });
    let read = threads::map(files.collect(), |(path, node, proof)| {
        let same = is_same(root, &path, &node, &proof);
        (path, same)
    });
    let mut verified = Verified::default();
    for (path, same) in read {
        match same {
            Ok(None) => continue,
            Ok(Some(true)) => {}
            Ok(Some(false)) => verified.altered.add(&path, ALTERED),
            Err(e) if is_no_way(&e) => continue,
            Err(e) => verified.unreadable.add(&path, e),
        }
        verified.read += 1;
    }
    verified
}

/// None: it changed.
fn is_same(root: &Dir, path: &Path, node: &Node, proof: &Proof) -> io::Result<Option<bool>> {
    let places = Places::default();
    let stat = places.stat(root, path)?.map(|raw| sight::stat(&raw));
    if stat != Some(proof.stat) {
        return Ok(None);
    }
    let (dir, name) = places.of(root, path)?;
    Ok(match sight::see(&dir, name)? {
        Found::Node(seen, stat) if stat == proof.stat => Some(seen.kind == node.kind),
        _ => None,
    })
}
