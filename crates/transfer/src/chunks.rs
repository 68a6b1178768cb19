//! Where a file is cut, and what of it is here already.

use crate::frame::{BLOB_MAX, Chunk, Range};
use fastcdc::v2020::StreamCDC;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

/// Version of where files are cut: `fastcdc` 5.0.0, v2020, normalization 1, a quarter and four times the average.
pub const CHUNKER: u32 = 0x0500_2020;

/// Chunks of what is new are cut once more, to about so many bytes.
pub(crate) const FINE: u32 = 4 * 1024;

/// Average size of the chunks of a file: some hundreds of them, whatever its size.
pub(crate) fn coarse(size: u64) -> u32 {
    let average = (size / 1024).next_power_of_two();
    u32::try_from(average.clamp(16 * 1024, 256 * 1024)).unwrap_or(256 * 1024)
}

/// A part of a file, read without moving anybody's place in it.
pub(crate) struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Part<'a> {
    pub(crate) fn of(file: &'a File, range: Range) -> Self {
        Self {
            file,
            at: range.offset,
            end: range.offset.saturating_add(range.length),
        }
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        if length == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The chunks of a part of a file, in order. `average` is a power of two from [`FINE`] to a quarter of a blob.
pub(crate) fn cut(
    file: &File,
    range: Range,
    average: u32,
) -> impl Iterator<Item = io::Result<(Range, Chunk)>> + '_ {
    let average = average.clamp(FINE, BLOB_MAX as u32 / 4).next_power_of_two() as usize;
    let stream = StreamCDC::new(Part::of(file, range), average / 4, average, average * 4);
    let mut offset = range.offset;
    stream.map(move |chunk| {
        let chunk = chunk.map_err(io::Error::from)?;
        let place = Range {
            offset,
            length: chunk.data.len() as u64,
        };
        offset += place.length;
        Ok((place, name(&chunk.data)))
    })
}

/// What a chunk is known by.
pub(crate) fn name(data: &[u8]) -> Chunk {
    let mut hash = [0; 8];
    hash.copy_from_slice(&blake3::hash(data).as_bytes()[..8]);
    Chunk {
        length: u32::try_from(data.len()).unwrap_or(u32::MAX),
        hash,
    }
}

/// Where the chunks of a part of a file are.
pub(crate) fn places(file: &File, range: Range, average: u32) -> io::Result<HashMap<Chunk, Range>> {
    cut(file, range, average)
        .map(|one| one.map(|(range, chunk)| (chunk, range)))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    fn noise(seed: &[u8], length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut xof = blake3::Hasher::new().update(seed).finalize_xof();
        xof.fill(&mut bytes);
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn all(file: &File, average: u32) -> Vec<(Range, Chunk)> {
        let range = Range {
            offset: 0,
            length: file.metadata().unwrap().len(),
        };
        cut(file, range, average).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn where_a_file_is_cut_never_changes() {
        let chunks = all(&file(&noise(b"golden", 200_000)), 16 * 1024);
        let lengths: Vec<_> = chunks.iter().map(|(range, _)| range.length).collect();
        assert_eq!(lengths.iter().sum::<u64>(), 200_000);
        let told = format!("{lengths:?} {:02x?}", chunks[1].1.hash);
        assert_eq!(
            told,
            include_str!("../testdata/cuts-1.txt").trim_end(),
            "another CHUNKER is needed"
        );
    }

    #[test]
    fn a_byte_put_in_front_leaves_all_chunks_but_the_first() {
        let bytes = noise(b"front", 2_000_000);
        let before: HashMap<_, _> = all(&file(&bytes), 16 * 1024)
            .into_iter()
            .map(|(r, c)| (c, r))
            .collect();
        let longer = [&b"x"[..], &bytes].concat();
        let new = all(&file(&longer), 16 * 1024)
            .into_iter()
            .filter(|(_, c)| !before.contains_key(c));
        assert!(new.count() <= 2);
    }

    #[test]
    fn the_chunks_of_a_file_are_some_hundreds() {
        assert_eq!(coarse(0), 16 * 1024);
        assert_eq!(coarse(256 << 20), 256 * 1024);
        assert_eq!(coarse(u64::MAX / 2), 256 * 1024);
    }
}
