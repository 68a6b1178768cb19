//! A file of which an older version was cut: where it is the same it is cut the same, and that is quicker to see than to
//! find out anew.
//!
//! Where a chunk ends depends on what is in it, and at times on the byte behind it. So whatever was a chunk of the older
//! version, and not its last one, which ended with the file, is one of this version as well if it begins where one of this
//! begins; or at least as good a one, where something was changed right behind it.

use crate::{
    chunks::{self, Place},
    frame::{Chunk, Error, Range},
    halves::Halves,
};
use std::{fs::File, io};

/// So many chunks are compared at once at first,
const FEW: usize = 4;
/// and so many at most.
const MOST: usize = 64;
/// So many were cut and not made up for by others that were the same: it is another file.
const NEW: usize = 64;

/// Chunks as [`chunks::cut_to`] gives them, with the help of an older version's. In a file with holes that is of those at
/// the same place.
pub(crate) fn recut(
    file: &File,
    range: Range,
    average: u32,
    holes: bool,
    older: &[Chunk],
    each: &mut dyn FnMut(Range, Chunk) -> Result<(), Error>,
) -> Result<(), Error> {
    let extents = chunks::extents(file, range, holes).collect::<io::Result<Vec<_>>>()?;
    let sparse = extents.len() > 1;
    let mut older = chunks::placed(0, older.iter().copied()).peekable();
    for extent in extents {
        let range = Range::of(&extent);
        let mut here = Vec::new();
        while let Some((_, chunk)) =
            older.next_if(|(place, _)| !sparse || place.offset < range.end())
        {
            here.extend(Some(chunk).filter(|chunk| !chunk.is_hole()));
        }
        match extent.hole {
            true => chunks::hole_to(range, each)?,
            false => recut_data(file, range, average, &here, each)?,
        }
    }
    Ok(())
}

fn recut_data(
    file: &File,
    range: Range,
    average: u32,
    older: &[Chunk],
    each: &mut dyn FnMut(Range, Chunk) -> Result<(), Error>,
) -> Result<(), Error> {
    let older = older.split_last().map_or(older, |(_, others)| others);
    if older.is_empty() {
        return chunks::cut_data_to(file, range, average, each);
    }
    let (mut at, mut next, mut much, mut left) = (range.offset, 0, FEW, NEW);
    let mut halves = Halves::default();
    loop {
        let expected = older.iter().skip(next).take(much).copied();
        let fits = |(place, _): &Place| place.end() <= range.end();
        let expected = chunks::placed(at, expected).take_while(fits);
        let expected: Vec<Place> = expected.collect();
        let same = halves.each(&expected, |(place, chunk), buffer| {
            Ok(chunks::look(file, *place, chunk, buffer)?.is_some())
        })?;
        let count = same.iter().take_while(|same| **same).count();
        for (place, chunk) in expected.iter().take(count) {
            each(*place, *chunk)?;
            at = place.end();
        }
        next += count;
        left = NEW.min(left + count);
        if count > 0 && count == expected.len() {
            much = MOST.min(2 * much);
            continue;
        }
        much = FEW;
        let mut cut = chunks::cut(file, range.after(at), average).take(left);
        next = loop {
            let Some(one) = cut.next() else {
                return chunks::cut_data_to(file, range.after(at), average, each);
            };
            let (place, chunk) = one?;
            each(place, chunk)?;
            at = place.end();
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
    use crate::chunks::tests::{all, file};

    const AVERAGE: u32 = 16 * 1024;

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
            let older = all(&file(old), AVERAGE).into_iter();
            let older: Vec<_> = older.map(|(_, chunk)| chunk).collect();
            for (j, new) in versions.iter().enumerate() {
                let cut = all(&file(new), AVERAGE);
                let range = Range {
                    offset: 0,
                    length: new.len() as u64,
                };
                // It grows meanwhile, to what another version was.
                let file = file(&[new, &noise[3_000_000..]].concat());
                let mut chunks = Vec::new();
                let each = &mut |range, chunk| {
                    chunks.push((range, chunk));
                    Ok(())
                };
                recut(&file, range, AVERAGE, true, &older, each).unwrap();
                assert!(chunks == cut, "{i} {j}");
            }
        }
    }
}
