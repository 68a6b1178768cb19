//! Bytes of files: digests, copies, holes.

use crate::{
    calls::Calls,
    parts::{self, Known, Zeros},
};
use filesync::Digest;
use linux::sparse::{Extent, extent};
use rustix::{
    fs::{FallocateFlags, Stat, fallocate, fstat, ftruncate},
    io::Errno,
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Read at once.
pub(crate) const BUFFER: usize = 128 * 1024;
/// Holes are as fine as this.
pub(crate) const PAGE: usize = 4096;
pub(crate) static ZEROS: [u8; BUFFER] = [0; BUFFER];

/// So many zeros, piece by piece.
pub(crate) fn zeros(mut count: u64) -> impl Iterator<Item = &'static [u8]> {
    std::iter::from_fn(move || {
        let some = usize::try_from(count).unwrap_or(BUFFER).min(BUFFER);
        count -= some as u64;
        Some(&ZEROS[..some]).filter(|piece| !piece.is_empty())
    })
}

/// Length of a file that is like this, and whether it has no holes.
pub(crate) fn extents(stat: &Stat) -> (u64, bool) {
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
    if let Some((size, digest, _)) = parts::digest(file, stat, None)? {
        return Ok((size, digest));
    }
    let mut hasher = blake3::Hasher::new();
    let size = pieces(file, stat, |_, bytes, _| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok((size, Digest(*hasher.finalize().as_bytes())))
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

/// Length and digest of a file just written, of which this is known; whole pages of zeros become holes.
pub(crate) fn digest_and_punch(file: &File, known: &Known) -> io::Result<(u64, Digest)> {
    let stat = fstat(file)?;
    if let Some((size, digest, zeros)) = parts::digest(file, &stat, Some(known))? {
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
pub(crate) fn add_zeros(zeros: &mut Zeros, at: u64, bytes: &[u8]) {
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
