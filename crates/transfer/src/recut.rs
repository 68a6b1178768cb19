//! A file of which an older version was cut: where it is the same it is cut the same, and that is quicker to see than to
//! find out anew.
//!
//! Where a chunk ends depends on what is in it, and at times on the byte behind it. So whatever was a chunk of the older
//! version, and not its last one, which ended with the file, is one of this version as well if it begins where one of this
//! begins; or at least as good a one, where something was changed right behind it.

use crate::{
    chunks,
    former::Place,
    frame::{Chunk, Error, Range},
    halves::Halves,
};
use std::fs::File;

/// So many chunks are compared at once at first,
const FEW: usize = 4;
/// and so many at most.
const MOST: usize = 64;
/// So many were cut and not made up for by others that were the same: it is another file.
const NEW: usize = 64;

/// Chunks as [`chunks::cut_to`] gives them, with the help of an older version's.
pub(crate) fn recut(
    file: &File,
    range: Range,
    average: u32,
    older: &[Chunk],
    each: &mut dyn FnMut(Range, Chunk) -> Result<(), Error>,
) -> Result<(), Error> {
    let end = range.offset.saturating_add(range.length);
    let from = |offset| Range {
        offset,
        length: end - offset,
    };
    let older = older.split_last().map_or(older, |(_, others)| others);
    if older.is_empty() {
        return chunks::cut_to(file, range, average, each);
    }
    let (mut at, mut next, mut much, mut left) = (range.offset, 0, FEW, NEW);
    let mut halves = Halves::default();
    loop {
        let mut offset = at;
        let expected = older.iter().skip(next).take(much).map(|chunk| {
            let length = u64::from(chunk.length);
            offset += length;
            let offset = offset - length;
            (Range { offset, length }, *chunk)
        });
        let fits = |(range, _): &Place| range.offset + range.length <= end;
        let expected: Vec<Place> = expected.take_while(fits).collect();
        let same = halves.each(&expected, |(range, chunk), buffer| {
            Ok(chunks::look(file, *range, chunk, buffer)?.is_some())
        })?;
        let count = same.iter().take_while(|same| **same).count();
        for (range, chunk) in expected.iter().take(count) {
            each(*range, *chunk)?;
            at = range.offset + range.length;
        }
        next += count;
        left = NEW.min(left + count);
        if count > 0 && count == expected.len() {
            much = MOST.min(2 * much);
            continue;
        }
        much = FEW;
        let mut cut = chunks::cut(file, from(at), average).take(left);
        next = loop {
            let Some(one) = cut.next() else {
                return chunks::cut_to(file, from(at), average, each);
            };
            let (range, chunk) = one?;
            each(range, chunk)?;
            at = range.offset + range.length;
            left -= 1;
            // What comes again and again is mostly the same one.
            let mut order = (next..older.len()).chain(0..next);
            if let Some(i) = order.find(|i| older.get(*i) == Some(&chunk)) {
                break i + 1;
            }
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    const AVERAGE: u32 = 16 * 1024;

    fn cut(file: &File, all: Range) -> Vec<Place> {
        let cut = chunks::cut(file, all, AVERAGE);
        cut.collect::<Result<_, _>>().unwrap()
    }

    fn all(bytes: &[u8]) -> Range {
        Range {
            offset: 0,
            length: bytes.len() as u64,
        }
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_is_cut_the_same_whatever_its_older_version_was() {
        let mut noise = vec![0; 4_000_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let old = &noise[..3_000_000];
        let zeros = vec![0; 500_000];
        let versions = [
            old.to_vec(),
            [b"x", old].concat(),
            old[1..].to_vec(),
            [&old[..1_000_000], b"put in", &old[1_000_000..]].concat(),
            [&old[..1_000_000], &old[1_100_000..]].concat(),
            [&old[..1_000_000], b"changed", &old[1_000_007..]].concat(),
            [&old[1_500_000..], &old[..1_500_000]].concat(),
            [&old[..1_000_000], &zeros, &old[1_000_000..], &zeros].concat(),
            noise[..3_000_001].to_vec(), // the last chunk goes on
            noise.clone(),
            old[..2_999_999].to_vec(),
            noise[3_500_000..].to_vec(),
            zeros.clone(),
            Vec::new(),
        ];
        for (i, old) in versions.iter().enumerate() {
            let older = cut(&file(old), all(old)).into_iter();
            let older: Vec<_> = older.map(|(_, chunk)| chunk).collect();
            for (j, new) in versions.iter().enumerate() {
                // It grows meanwhile, to what another version was.
                let file = file(&[new, &noise[3_000_000..]].concat());
                let mut chunks = Vec::new();
                let each = &mut |range, chunk| {
                    chunks.push((range, chunk));
                    Ok(())
                };
                recut(&file, all(new), AVERAGE, &older, each).unwrap();
                assert!(chunks == cut(&file, all(new)), "{i} {j}");
            }
        }
    }
}
