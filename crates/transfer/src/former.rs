//! A former version of a large file that is to come, and what of the new one is in it.
//!
//! Most of a file stays where it was, or moves by as much as was put in before it: so the chunks of the new file are
//! looked for where they should be by that, and only where they are not is the former version cut as the new one was.

use crate::{
    chunks::{self, FINE, Place},
    frame::{Chunk, Error, Range},
    halves::Halves,
};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
};

/// So many chunks are looked through for the place where it goes on.
const AROUND: u64 = 32;

/// Puts bytes at their place in the new file, from several threads at once.
pub type Put<'a> = &'a (dyn Fn(u64, &[u8]) -> io::Result<()> + Sync);

/// See the module.
pub(crate) struct Former<'a> {
    file: &'a File,
    /// Of the new file's chunks.
    average: u32,
    /// Where chunks are.
    places: HashMap<Chunk, Range>,
    /// The parts of the file of which that is not known, in order.
    unknown: Vec<Range>,
    /// Where a chunk of the new file is expected here: so much further on.
    shift: i64,
    halves: Halves,
}

impl<'a> Former<'a> {
    /// Of which nothing is known, or where all its chunks are.
    pub(crate) fn new(
        file: &'a File,
        average: u32,
        places: Option<HashMap<Chunk, Range>>,
    ) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let unknown = match places {
            Some(_) => Vec::new(),
            None => vec![Range { offset: 0, length }],
        };
        Ok(Self {
            file,
            average,
            places: places.unwrap_or_default(),
            unknown,
            shift: 0,
            halves: Halves::default(),
        })
    }

    /// Puts in place what is found of these chunks, in order; the others.
    pub(crate) fn reuse(&mut self, part: Vec<Place>, put: Put<'_>) -> Result<Vec<Place>, Error> {
        if self.unknown.is_empty() {
            return self.known(part, put);
        }
        let (mut rest, tail) = self.follow(part, put)?;
        // From the last chunk that was found on.
        let from = rest.len() - tail;
        let Some(found) = self.find(rest.get(from..).unwrap_or_default())? else {
            return Ok(rest);
        };
        let moved = rest.split_off(from + found);
        rest.extend(self.follow(moved, put)?.0);
        Ok(rest)
    }

    /// The same for chunks that were not found, once all were looked for.
    pub(crate) fn search(&mut self, rest: Vec<Place>, put: Put<'_>) -> Result<Vec<Place>, Error> {
        if rest.is_empty() {
            return Ok(rest);
        }
        for range in std::mem::take(&mut self.unknown) {
            self.places
                .extend(chunks::places(self.file, range, self.average)?);
        }
        self.known(rest, put)
    }

    /// Cuts once more, smaller, what is in none of the new file's chunks: it may have much in common with those that
    /// are not here. False if there is nothing.
    pub(crate) fn finer(&mut self, new: &[Chunk]) -> Result<bool, Error> {
        let new: HashSet<_> = new.iter().collect();
        let places = std::mem::take(&mut self.places);
        let left = places.into_iter().filter(|(chunk, _)| !new.contains(chunk));
        for (_, range) in left {
            self.places.extend(chunks::places(self.file, range, FINE)?);
        }
        Ok(!self.places.is_empty())
    }

    /// Chunks whose places are known.
    fn known(&mut self, part: Vec<Place>, put: Put<'_>) -> Result<Vec<Place>, Error> {
        let (mut here, mut rest) = (Vec::new(), Vec::new());
        for (range, chunk) in part {
            match self.places.get(&chunk) {
                Some(place) => here.push((*place, range.offset)),
                None => rest.push((range, chunk)),
            }
        }
        let file = self.file;
        self.halves.each(&here, |(range, at), buffer| {
            put(*at, chunks::read(file, *range, buffer)?)
        })?;
        Ok(rest)
    }

    /// Chunks that are where they are expected. The others, and how many of them are behind all of these.
    fn follow(&mut self, part: Vec<Place>, put: Put<'_>) -> Result<(Vec<Place>, usize), Error> {
        let (file, shift) = (self.file, self.shift);
        let found = self.halves.each(&part, |(range, chunk), buffer| {
            let Some(place) = moved(*range, shift) else {
                return Ok(None);
            };
            let Some(data) = chunks::look(file, place, chunk, buffer)? else {
                return Ok(None);
            };
            put(range.offset, data)?;
            Ok(Some(place))
        })?;
        let (mut rest, mut tail) = (Vec::new(), 0);
        for ((range, chunk), found) in part.into_iter().zip(found) {
            if let Some(place) = found {
                self.learn(chunk, place);
                tail = 0;
            } else {
                rest.push((range, chunk));
                tail += 1;
            }
        }
        Ok((rest, tail))
    }

    /// Looks for one of these chunks not far from where the first is expected, and expects all where it is; which one.
    fn find(&mut self, rest: &[Place]) -> Result<Option<usize>, Error> {
        let Some(from) = rest
            .first()
            .and_then(|(first, _)| moved(*first, self.shift))
        else {
            return Ok(None);
        };
        let around = Range {
            offset: from.offset,
            length: AROUND * u64::from(self.average),
        };
        let near = chunks::places(self.file, around, self.average)?;
        for (i, (range, chunk)) in rest.iter().enumerate() {
            if let Some(place) = near.get(chunk).or_else(|| self.places.get(chunk)) {
                self.shift = place.offset.wrapping_sub(range.offset).cast_signed();
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// A chunk is there.
    fn learn(&mut self, chunk: Chunk, place: Range) {
        self.places.insert(chunk, place);
        let holds = |u: &Range| u.offset <= place.offset && place.end() <= u.end();
        // In order, more often than not it is the last part that it is in.
        let Some(i) = self.unknown.iter().rposition(holds) else {
            return;
        };
        let whole = self.unknown.remove(i);
        let between = |from: u64, to: u64| Range {
            offset: from,
            length: to - from,
        };
        let left = [
            between(whole.offset, place.offset),
            between(place.end(), whole.end()),
        ];
        let left = left.into_iter().filter(|range| range.length > 0);
        self.unknown.splice(i..i, left);
    }
}

/// The same so much further on.
fn moved(range: Range, shift: i64) -> Option<Range> {
    let offset = range.offset.checked_add_signed(shift)?;
    Some(Range { offset, ..range })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::chunks::tests::{all, file};
    use std::os::unix::fs::FileExt;

    const AVERAGE: u32 = 16 * 1024;

    /// Of the chunks of `new` those not found without a search, and how many bytes of `old` nobody looked at.
    fn left(old: &[u8], new: &[u8]) -> (usize, u64) {
        let recipe = all(&file(new), AVERAGE);
        let (old, into) = (file(old), file(&vec![0; new.len()]));
        let put: Put<'_> = &|at, bytes| into.write_all_at(bytes, at);
        let mut former = Former::new(&old, AVERAGE, None).unwrap();
        let mut rest = Vec::new();
        for part in recipe.chunks(20) {
            rest.append(&mut former.reuse(part.to_vec(), put).unwrap());
        }
        let mut now = vec![0; new.len()];
        into.read_exact_at(&mut now, 0).unwrap();
        for (range, _) in recipe.iter().filter(|one| !rest.contains(one)) {
            let place = range.offset as usize..range.end() as usize;
            assert!(now[place.clone()] == new[place]);
        }
        let unknown = former.unknown.iter().map(|range| range.length).sum();
        (rest.len(), unknown)
    }

    #[test]
    fn what_stayed_or_moved_along_is_found_where_it_should_be() {
        let mut old = vec![0; 4_000_000];
        blake3::Hasher::new().finalize_xof().fill(&mut old);
        assert_eq!(left(&old, &old), (0, 0));
        let most = u64::from(8 * AVERAGE);
        let cases = [
            [b"x", &old[..]].concat(),
            old[1..].to_vec(),
            [&old[..2_000_000], b"put in", &old[2_000_000..]].concat(),
            [&old[..2_000_000], &old[2_050_000..]].concat(),
            [&old[..1_000_000], b"changed", &old[1_000_007..]].concat(),
        ];
        for (i, new) in cases.iter().enumerate() {
            let (rest, unknown) = left(&old, new);
            assert!(rest <= 3 && unknown <= most, "{i}: {rest} {unknown}");
        }
        let (rest, unknown) = left(&old[..100_000], &old[200_000..]);
        assert!(rest > 100 && unknown == 100_000, "{rest} {unknown}");
    }
}
