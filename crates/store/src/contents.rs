//! Bytes of files: digests, copies, holes.

use crate::{calls::Calls, threads};
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use filesync::Digest;
use rustix::{
    fs::{FallocateFlags, SeekFrom, Stat, fallocate, fstat, ftruncate, seek},
    io::Errno,
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Read at once.
const BUFFER: usize = 128 * 1024;
/// From so many bytes on a file is hashed in parts
const LARGE: u64 = 32 << 20;
/// of so many: a branch of the tree.
const PART: u64 = 1 << 20;
/// Holes are as fine as this.
const PAGE: usize = 4096;
static ZEROS: [u8; BUFFER] = [0; BUFFER];

/// A stretch of a file, and whether there is anything in it.
struct Extent {
    from: u64,
    to: u64,
    hole: bool,
}

/// What comes at `at` in a file of `size`; a file system that knows of no holes calls all of it data.
fn extent(file: &File, at: u64, size: u64) -> io::Result<Extent> {
    let sought = |from| match seek(file, from) {
        Err(Errno::NXIO) => Ok(size),
        other => Ok::<u64, io::Error>(other?.min(size)),
    };
    let data = sought(SeekFrom::Data(at))?;
    if data > at {
        return Ok(Extent {
            from: at,
            to: data,
            hole: true,
        });
    }
    let to = sought(SeekFrom::Hole(at))?.max(at + 1);
    Ok(Extent {
        from: at,
        to,
        hole: false,
    })
}

/// Length of a file that is like this, and whether it has no holes.
fn extents(stat: &Stat) -> (u64, bool) {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    (size, blocks >= size.div_ceil(512))
}

/// Gives all of a file that is like this, piece by piece, holes as zeros (true: it is one).
fn pieces(
    file: &File,
    stat: &Stat,
    mut piece: impl FnMut(u64, &[u8], bool) -> io::Result<()>,
) -> io::Result<u64> {
    let (size, dense) = extents(stat);
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
    let mut at = 0;
    while at < size {
        let extent = if dense {
            Extent {
                from: at,
                to: size,
                hole: false,
            }
        } else {
            extent(file, at, size)?
        };
        while at < extent.to {
            let most = usize::try_from(extent.to - at)
                .unwrap_or(BUFFER)
                .min(BUFFER);
            let got = if extent.hole {
                piece(at, &ZEROS[..most], true)?;
                most
            } else {
                let got = file.read_at(&mut buffer[..most], at)?;
                piece(at, &buffer[..got], false)?;
                got
            };
            if got == 0 {
                return Ok(at); // it got shorter meanwhile
            }
            at += got as u64;
        }
        debug_assert!(extent.from < extent.to);
    }
    Ok(size)
}

/// Length and digest.
pub(crate) fn digest(file: &File) -> io::Result<(u64, Digest)> {
    digest_as(file, &fstat(file)?)
}

/// The same of a file that is like this.
pub(crate) fn digest_as(file: &File, stat: &Stat) -> io::Result<(u64, Digest)> {
    if let Some((size, digest, _)) = digest_of_parts(file, stat, false)? {
        return Ok((size, digest));
    }
    let mut hasher = blake3::Hasher::new();
    let size = pieces(file, stat, |_, bytes, _| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok((size, Digest(*hasher.finalize().as_bytes())))
}

/// From where to where there are only zeros.
type Zeros = Vec<(u64, u64)>;

/// The same of a large file without holes by all processors: BLAKE3 is a tree, of which each hashes some branches; and
/// its pages of zeros, if they are asked for. None if it is not such a file, or got shorter meanwhile.
fn digest_of_parts(
    file: &File,
    stat: &Stat,
    zeros: bool,
) -> io::Result<Option<(u64, Digest, Zeros)>> {
    let (size, dense) = extents(stat);
    if size < LARGE || !dense {
        return Ok(None);
    }
    let parts: Vec<_> = (0..size.div_ceil(PART)).map(|i| i * PART).collect();
    let hashed = threads::map(
        parts,
        |from| -> io::Result<Option<(ChainingValue, Zeros)>> {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(from);
            let (mut at, to) = (from, size.min(from + PART));
            let mut empty = Zeros::new();
            let mut buffer = vec![0; BUFFER];
            while at < to {
                let most = usize::try_from(to - at).unwrap_or(BUFFER).min(BUFFER);
                let got = file.read_at(&mut buffer[..most], at)?;
                if got == 0 {
                    return Ok(None);
                }
                hasher.update(&buffer[..got]);
                if zeros {
                    add_zeros(&mut empty, at, &buffer[..got]);
                }
                at += got as u64;
            }
            Ok(Some((hasher.finalize_non_root(), empty)))
        },
    );
    let hashed: Option<Vec<_>> = hashed.into_iter().collect::<io::Result<_>>()?;
    let Some(hashed) = hashed else {
        return Ok(None);
    };
    let (values, empty): (Vec<_>, Vec<_>) = hashed.into_iter().unzip();
    let (left, right) = values.split_at(left(values.len()));
    let root = merge_subtrees_root(&merged(left), &merged(right), Mode::Hash);
    Ok(Some((size, Digest(*root.as_bytes()), empty.concat())))
}

/// So many of several parts are one branch.
fn left(parts: usize) -> usize {
    parts.next_power_of_two() / 2
}

/// The value of the branch that has all of these parts.
fn merged(parts: &[ChainingValue]) -> ChainingValue {
    match parts {
        [] => ChainingValue::default(),
        [one] => *one,
        several => {
            let (left, right) = several.split_at(left(several.len()));
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// Length and digest of what is in memory.
pub(crate) fn digest_of(bytes: &[u8]) -> (u64, Digest) {
    (bytes.len() as u64, Digest(*blake3::hash(bytes).as_bytes()))
}

/// Writes all of a small file into an empty one, whole pages of zeros as holes.
pub(crate) fn write_all(into: &File, bytes: &[u8]) -> io::Result<()> {
    write(into, 0, bytes)?;
    // It may end in a hole.
    match bytes.last() {
        Some(0) => Ok(ftruncate(into, bytes.len() as u64)?),
        _ => Ok(()),
    }
}

/// Writes a part of a file where nothing is yet, whole pages of zeros as holes; at the end of the file, too.
pub(crate) fn write(into: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let (mut from, mut to) = (0, 0);
    for page in bytes.chunks(PAGE) {
        let zeros = page.len() == PAGE && page.iter().all(|b| *b == 0);
        if zeros {
            into.write_all_at(&bytes[from..to], at + from as u64)?;
            from = to + PAGE;
        }
        to += page.len();
    }
    match from < to {
        true => into.write_all_at(&bytes[from..to], at + from as u64),
        false => Ok(()),
    }
}

/// Copies all of a file into an empty one, holes as holes.
pub(crate) fn copy(from: &File, into: &File, calls: &Calls) -> io::Result<()> {
    let size = pieces(from, &fstat(from)?, |at, bytes, hole| {
        if hole {
            return Ok(());
        }
        calls.one("write")?;
        into.write_all_at(bytes, at)
    })?;
    calls.one("truncate")?;
    Ok(ftruncate(into, size)?)
}

/// Length and digest of a file just written; whole pages of zeros become holes.
pub(crate) fn digest_and_punch(file: &File) -> io::Result<(u64, Digest)> {
    let stat = fstat(file)?;
    if let Some((size, digest, zeros)) = digest_of_parts(file, &stat, true)? {
        punch(file, &zeros)?;
        return Ok((size, digest));
    }
    let mut hasher = blake3::Hasher::new();
    let mut zeros = Zeros::new();
    let size = pieces(file, &stat, |at, bytes, hole| {
        hasher.update(bytes);
        if !hole {
            add_zeros(&mut zeros, at, bytes);
        }
        if zeros.len() > 1 {
            let last = zeros.pop();
            punch(
                file,
                &std::mem::replace(&mut zeros, last.into_iter().collect()),
            )?;
        }
        Ok(())
    })?;
    punch(file, &zeros)?;
    Ok((size, Digest(*hasher.finalize().as_bytes())))
}

/// The pages of zeros in this, which stands at `at`.
fn add_zeros(zeros: &mut Zeros, at: u64, bytes: &[u8]) {
    for (i, page) in bytes.chunks_exact(PAGE).enumerate() {
        if page.iter().any(|b| *b != 0) {
            continue;
        }
        let from = at + (i * PAGE) as u64;
        match zeros.last_mut() {
            Some((_, to)) if *to == from => *to += PAGE as u64,
            _ => zeros.push((from, from + PAGE as u64)),
        }
    }
}

fn punch(file: &File, zeros: &[(u64, u64)]) -> io::Result<()> {
    for (from, to) in zeros {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(file, flags, *from, to - from) {
            // Zeros that are written are as good.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_has_the_same_digest_in_parts() {
        let large = usize::try_from(LARGE).unwrap();
        let part = usize::try_from(PART).unwrap();
        for size in [large, large + 1, large + 3 * part, large + 5 * part + 1025] {
            let mut bytes = vec![0; size];
            let mut noise = blake3::Hasher::new().update(b"parts").finalize_xof();
            noise.fill(&mut bytes);
            let whole = digest_of(&bytes);
            let file = file(&bytes);
            let (size, digest, none) = digest_of_parts(&file, &fstat(&file).unwrap(), true)
                .unwrap()
                .unwrap();
            assert_eq!(((size, digest), none), (whole, Zeros::new()));
            let hole = PART - 2 * PAGE as u64;
            file.write_all_at(&ZEROS[..4 * PAGE], hole).unwrap();
            let (.., zeros) = digest_of_parts(&file, &fstat(&file).unwrap(), true)
                .unwrap()
                .unwrap();
            assert_eq!(zeros, [(hole, PART), (PART, hole + 4 * PAGE as u64)]);
            let before = super::digest(&file).unwrap();
            assert_eq!(digest_and_punch(&file).unwrap(), before);
            assert_eq!(super::digest(&file).unwrap(), before);
            let blocks = fstat(&file).unwrap().st_blocks.cast_unsigned();
            assert!(blocks < size.div_ceil(512), "there is a hole");
        }
        let small = file(b"small");
        assert_eq!(
            digest_of_parts(&small, &fstat(&small).unwrap(), false).unwrap(),
            None
        );
    }

    #[test]
    fn pages_of_zeros_are_holes_and_all_the_rest_is_written() {
        let page = |byte: u8| vec![byte; PAGE];
        let ends: [Vec<u8>; 3] = [vec![], vec![0; 10], vec![7; 10]];
        for pages in [
            [0, 0, 0],
            [1, 0, 1],
            [0, 1, 0],
            [1, 1, 1],
            [0, 0, 1],
            [1, 0, 0],
        ] {
            for end in &ends {
                let bytes = [pages.map(page).concat(), end.clone()].concat();
                let into = tempfile::tempfile().unwrap();
                write_all(&into, &bytes).unwrap();
                assert_eq!(digest(&into).unwrap(), digest_of(&bytes), "{pages:?}");
            }
        }
    }
}
