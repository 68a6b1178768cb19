//! How large files that came in parts were cut: whoever has one of them need not cut it again when a newer one comes.

use crate::frame::{Chunk, Range};
use filesync::Digest;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

/// So many files are remembered,
const FILES: usize = 16;
/// and none with more chunks than this: a megabyte at most.
const CHUNKS: usize = 64 * 1024;

/// A file's contents, and the average size of its chunks.
type Name = (Digest, u32);

/// See the module. What is wrong in it costs time, never contents: those are checked as a whole.
#[derive(Debug, Default)]
pub struct Recipes(Mutex<VecDeque<(Name, Vec<Chunk>)>>);

impl Recipes {
    /// Nothing is known.
    pub const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// Where the chunks of this file are, if that is known. It is told once: if it is wrong, the next try is not misled.
    pub(crate) fn places(&self, digest: &Digest, average: u32) -> Option<HashMap<Chunk, Range>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known
            .iter()
            .position(|(name, _)| *name == (*digest, average))?;
        let (_, chunks) = known.remove(place)?;
        let mut offset = 0;
        let place = |chunk: Chunk| {
            let length = u64::from(chunk.length);
            offset += length;
            let offset = offset - length;
            (chunk, Range { offset, length })
        };
        Some(chunks.into_iter().map(place).collect())
    }

    /// A file was cut so.
    pub(crate) fn keep(&self, digest: &Digest, average: u32, chunks: Vec<Chunk>) {
        if chunks.len() > CHUNKS {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(name, _)| *name != (*digest, average));
        known.truncate(FILES - 1);
        known.push_front(((*digest, average), chunks));
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
        let chunk = |length: u32| Chunk {
            length,
            hash: [length as u8; 8],
        };
        for n in 0..=FILES {
            recipes.keep(&digest(n), 8, vec![chunk(5), chunk(7)]);
        }
        recipes.keep(&digest(99), 8, vec![chunk(1); CHUNKS + 1]);
        assert!(recipes.places(&digest(0), 8).is_none(), "too long ago");
        assert!(recipes.places(&digest(99), 8).is_none(), "too many");
        assert!(recipes.places(&digest(1), 16).is_none());
        let places = recipes.places(&digest(1), 8).unwrap();
        let range = |offset, length| Range { offset, length };
        assert_eq!(places[&chunk(5)], range(0, 5));
        assert_eq!(places[&chunk(7)], range(5, 7));
        assert!(recipes.places(&digest(1), 8).is_none(), "told once");
    }
}
