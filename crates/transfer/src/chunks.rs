//! Where a file is cut, and what of it is here already.

use crate::frame::{BLOB_MAX, Chunk, Error, Range};
use fastcdc::v2020::StreamCDC;
use linux::sparse::{self, Extent, Part};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read},
    num::NonZero,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
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

/// A chunk, and where it is.
pub(crate) type Place = (Range, Chunk);

fn part(file: &File, range: Range) -> Part<'_> {
    Part::new(file, range.offset, range.end())
}

/// The chunks of a part of a file, in order. `average` is a power of two from [`FINE`] to a quarter of a blob.
pub(crate) fn cut(
    file: &File,
    range: Range,
    average: u32,
) -> impl Iterator<Item = io::Result<Place>> + '_ {
    let average = average.clamp(FINE, BLOB_MAX as u32 / 4).next_power_of_two() as usize;
    let stream = StreamCDC::new(part(file, range), average / 4, average, average * 4);
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

/// From so many bytes on all processors cut,
const LARGE: u64 = 32 << 20;
/// each a part of so many after another.
const PART: u64 = 16 << 20;
/// With more of them, disks are no faster.
const MOST: usize = 4;

/// Shorter holes are cut like data.
const HOLE: u64 = 1 << 20;

/// What is in a part of a file, in order: data, and holes that are worth telling of, if `holes`.
pub(crate) fn extents(
    file: &File,
    range: Range,
    holes: bool,
) -> impl Iterator<Item = io::Result<Extent>> + '_ {
    let least = if holes { HOLE } else { u64::MAX };
    sparse::extents(file, range.offset, range.end(), least)
}

/// Gives the chunks of a hole.
pub(crate) fn hole_to(
    hole: Range,
    each: &mut dyn FnMut(Range, Chunk) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut at = hole.offset;
    while at < hole.end() {
        let chunk = Chunk::hole(hole.end() - at);
        let length = u64::from(chunk.length);
        each(Range { offset: at, length }, chunk)?;
        at += length;
    }
    Ok(())
}

/// The same chunks, given to `each` as they are known, and those of holes if `holes`: what is behind a hole is cut as if
/// the file began there. A large file is cut at several places at once. Where a chunk ends depends on where it begins
/// alone: as soon as what was cut from the beginning of a part begins a chunk where one of the part before ends, the rest
/// of the part is right.
pub(crate) fn cut_to(
    file: &File,
    range: Range,
    average: u32,
    holes: bool,
    each: &mut dyn FnMut(Range, Chunk) -> Result<(), Error>,
) -> Result<(), Error> {
    for extent in extents(file, range, holes) {
        let extent = extent?;
        let range = Range::of(&extent);
        match extent.hole {
            true => hole_to(range, each)?,
            false => cut_data_to(file, range, average, each)?,
        }
    }
    Ok(())
}

/// The same of a part without holes.
pub(crate) fn cut_data_to(
    file: &File,
    range: Range,
    average: u32,
    each: &mut dyn FnMut(Range, Chunk) -> Result<(), Error>,
) -> Result<(), Error> {
    cut_in_parts(file, range, average, (LARGE, PART), each)
}

fn cut_in_parts(
    file: &File,
    range: Range,
    average: u32,
    (large, part): (u64, u64),
    each: &mut dyn FnMut(Range, Chunk) -> Result<(), Error>,
) -> Result<(), Error> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(MOST);
    if range.length < large || threads < 2 {
        return cut(file, range, average).try_for_each(|one| {
            let (range, chunk) = one?;
            each(range, chunk)
        });
    }
    let parts = range.length.div_ceil(part);
    let start = |i: u64| range.offset.saturating_add(i * part).min(range.end());
    let next = AtomicU64::new(0);
    let (sender, cut_parts) = sync_channel(threads);
    let work = |sender: SyncSender<_>| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= parts {
                return;
            }
            let all = cut(file, range.after(start(i)), average);
            let own = |one: &io::Result<(Range, Chunk)>| {
                one.as_ref().map_or(true, |(r, _)| r.offset < start(i + 1))
            };
            let cut: io::Result<Vec<_>> = all.take_while(own).collect();
            if sender.send((i, cut)).is_err() {
                return; // nobody wants to know any more
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            scope.spawn(|| work(sender));
        }
        drop(sender);
        let cut_parts = cut_parts; // if this ends early, nobody waits for it to hear
        let (mut early, mut at) = (BTreeMap::new(), range.offset);
        for i in 0..parts {
            let cut_here = loop {
                if let Some(cut) = early.remove(&i) {
                    break cut;
                }
                let (j, cut) = cut_parts.recv().map_err(io::Error::other)?;
                early.insert(j, cut);
            };
            let cut_here: Vec<_> = cut_here?;
            let mut between = cut(file, range.after(at), average);
            while at < start(i + 1) {
                let known = cut_here.binary_search_by_key(&at, |(range, _)| range.offset);
                let Some(known) = known.ok().and_then(|known| cut_here.get(known..)) else {
                    let Some(one) = between.next() else {
                        return Ok(()); // it got shorter
                    };
                    let (place, chunk) = one?;
                    each(place, chunk)?;
                    at = place.end();
                    continue;
                };
                for (place, chunk) in known {
                    each(*place, *chunk)?;
                    at = place.end();
                }
                if known.is_empty() || at < start(i + 1) {
                    return Ok(()); // it got shorter
                }
            }
        }
        Ok(())
    })
}

/// What a chunk is known by.
pub(crate) fn name(data: &[u8]) -> Chunk {
    let mut hash = [0; 8];
    hash.copy_from_slice(&blake3::hash(data).as_bytes()[..8]);
    if hash == Chunk::HOLE {
        hash[0] = 1;
    }
    Chunk {
        length: u32::try_from(data.len()).unwrap_or(u32::MAX),
        hash,
    }
}

/// Reads a part of a file, what there is of it. The buffer only grows: to clear room in it costs as much as to fill it.
pub(crate) fn read<'b>(file: &File, range: Range, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    let length = usize::try_from(range.length).map_err(io::Error::other)?;
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let (mut part, mut filled) = (part(file, range), 0);
    while filled < length {
        match part.read(&mut buffer[filled..length]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(&buffer[..filled])
}

/// What is there, if it is this chunk.
pub(crate) fn look<'b>(
    file: &File,
    range: Range,
    chunk: &Chunk,
    buffer: &'b mut Vec<u8>,
) -> io::Result<Option<&'b [u8]>> {
    let data = read(file, range, buffer)?;
    Ok((name(data) == *chunk).then_some(data))
}

/// Where chunks are that follow one another from there on.
pub(crate) fn placed(
    mut offset: u64,
    chunks: impl IntoIterator<Item = Chunk>,
) -> impl Iterator<Item = Place> {
    chunks.into_iter().map(move |chunk| {
        let length = u64::from(chunk.length);
        let place = Range { offset, length };
        offset = place.end();
        (place, chunk)
    })
}

/// Where the chunks of a part of a file are.
pub(crate) fn places(
    file: &File,
    range: Range,
    average: u32,
) -> Result<HashMap<Chunk, Range>, Error> {
    let mut places = HashMap::new();
    cut_to(file, range, average, true, &mut |range, chunk| {
        if !chunk.is_hole() {
            places.insert(chunk, range);
        }
        Ok(())
    })?;
    Ok(places)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    fn noise(seed: &[u8], length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut xof = blake3::Hasher::new().update(seed).finalize_xof();
        xof.fill(&mut bytes);
        bytes
    }

    pub(crate) fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// All chunks of a file.
    pub(crate) fn all(file: &File, average: u32) -> Vec<Place> {
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
    fn whoever_cuts_in_parts_cuts_the_same() {
        let noise = noise(b"parts", 3_000_000);
        let zeros = vec![0; 1_000_000];
        let mixed = [&noise[..700_001], &zeros, &noise[700_001..1_500_000]].concat();
        for bytes in [noise, zeros, mixed] {
            let file = file(&bytes);
            let length = bytes.len() as u64;
            for (offset, part) in [(0, 100_000), (0, 1 << 20), (12_345, 65_536), (1, 300_000)] {
                let range = Range {
                    offset,
                    length: length - offset,
                };
                let mut parts = Vec::new();
                let each = &mut |range, chunk| {
                    parts.push((range, chunk));
                    Ok(())
                };
                cut_in_parts(&file, range, FINE, (0, part), each).unwrap();
                let whole: Vec<_> = cut(&file, range, FINE).collect::<Result<_, _>>().unwrap();
                assert!(parts == whole, "{offset} {part}");
            }
            let all = Range { offset: 0, length };
            let stop = &mut |_, _| Err(Error::Unexpected("enough"));
            let told = cut_in_parts(&file, all, FINE, (0, 65_536), stop);
            assert!(matches!(told, Err(Error::Unexpected("enough"))));
        }
    }

    #[test]
    fn the_chunks_of_a_file_are_some_hundreds() {
        assert_eq!(coarse(0), 16 * 1024);
        assert_eq!(coarse(256 << 20), 256 * 1024);
        assert_eq!(coarse(u64::MAX / 2), 256 * 1024);
    }
}
