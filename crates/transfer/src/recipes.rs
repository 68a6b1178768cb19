//! How large files that came or went in parts were cut: whoever has one of them need not cut it again when a newer one
//! comes, or is wanted.

use crate::{
    chunks,
    frame::{Chunk, Range},
};
use filesync::{Digest, Path};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// So many files are remembered,
const FILES: usize = 16;
/// and none with more chunks than this: a megabyte at most.
pub(crate) const CHUNKS_MAX: usize = 64 * 1024;

/// A file's contents, and the average size of its chunks.
type Name = (Digest, u32);

#[derive(Debug)]
struct Recipe {
    of: Name,
    /// Where that file was.
    path: Path,
    chunks: Vec<Chunk>,
}

/// See the module. What is wrong in it costs time, never contents: those are checked as a whole.
#[derive(Debug, Default)]
pub struct Recipes(Mutex<VecDeque<Recipe>>);

impl Recipes {
    /// Nothing is known.
    pub const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// Where the chunks of this file are, if that is known. It is told once: if it is wrong, the next try is not misled.
    pub(crate) fn places(&self, digest: &Digest, average: u32) -> Option<HashMap<Chunk, Range>> {
        let mut known = self.known();
        let place = known.iter().position(|r| r.of == (*digest, average))?;
        let chunks = known.remove(place)?.chunks;
        let placed = chunks::placed(0, chunks).filter(|(_, chunk)| !chunk.is_hole());
        Some(placed.map(|(place, chunk)| (chunk, place)).collect())
    }

    /// How the file that was last at this path was cut.
    pub(crate) fn last(&self, path: &Path, average: u32) -> Option<Vec<Chunk>> {
        let known = self.known();
        let last = known.iter().find(|r| r.path == *path && r.of.1 == average);
        last.map(|r| r.chunks.clone())
    }

    /// A file was cut so; what it was before is of no use any more.
    pub(crate) fn keep(&self, path: &Path, digest: &Digest, average: u32, chunks: Vec<Chunk>) {
        if chunks.len() > CHUNKS_MAX {
            return;
        }
        let of = (*digest, average);
        let mut known = self.known();
        known.retain(|r| r.of != of && r.path != *path);
        known.truncate(FILES - 1);
        known.push_front(Recipe {
            of,
            path: path.clone(),
            chunks,
        });
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Recipe>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_files_are_known_by_contents_and_average() {
        let recipes = Recipes::default();
        let digest = |n: usize| Digest([n as u8; 32]);
        let path = |n: usize| Path::try_from(vec![b'a' + n as u8]).unwrap();
        let chunk = |length: u32| Chunk {
            length,
            hash: [length as u8; 8],
        };
        for n in 0..=FILES {
            recipes.keep(&path(n), &digest(n), 8, vec![chunk(5), chunk(7)]);
        }
        recipes.keep(&path(9), &digest(99), 8, vec![chunk(1); CHUNKS_MAX + 1]);
        assert!(recipes.places(&digest(0), 8).is_none(), "too long ago");
        assert!(recipes.places(&digest(99), 8).is_none(), "too many");
        assert!(recipes.places(&digest(1), 16).is_none());
        let places = recipes.places(&digest(1), 8).unwrap();
        let range = |offset, length| Range { offset, length };
        assert_eq!(places[&chunk(5)], range(0, 5));
        assert_eq!(places[&chunk(7)], range(5, 7));
        assert!(recipes.places(&digest(1), 8).is_none(), "told once");
        assert!(recipes.last(&path(1), 8).is_none());
        recipes.keep(&path(2), &digest(77), 8, vec![chunk(3)]);
        for _ in 0..2 {
            assert_eq!(recipes.last(&path(2), 8), Some(vec![chunk(3)]));
            assert!(recipes.last(&path(2), 16).is_none());
        }
        assert!(recipes.places(&digest(2), 8).is_none(), "it is newer now");
    }
}
