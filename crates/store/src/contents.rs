//! Bytes of files: digests, copies, holes.

use crate::calls::Calls;
use filesync::Digest;
use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate, fstat, ftruncate, seek},
    io::Errno,
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Read at once.
const BUFFER: usize = 128 * 1024;
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

/// Gives all of a file, piece by piece, holes as zeros (true: it is one).
fn pieces(
    file: &File,
    mut piece: impl FnMut(u64, &[u8], bool) -> io::Result<()>,
) -> io::Result<u64> {
    let stat = fstat(file)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let dense = u64::try_from(stat.st_blocks).unwrap_or(0) >= size.div_ceil(512);
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
    let mut hasher = blake3::Hasher::new();
    let size = pieces(file, |_, bytes, _| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok((size, Digest(*hasher.finalize().as_bytes())))
}

/// Length and digest of what is in memory.
pub(crate) fn digest_of(bytes: &[u8]) -> (u64, Digest) {
    (bytes.len() as u64, Digest(*blake3::hash(bytes).as_bytes()))
}

/// Writes all of a file into an empty one, whole pages of zeros as holes.
pub(crate) fn write(into: &File, bytes: &[u8]) -> io::Result<()> {
    let (mut from, mut to) = (0, 0);
    for page in bytes.chunks(PAGE) {
        let zeros = page.len() == PAGE && page.iter().all(|b| *b == 0);
        if zeros {
            into.write_all_at(&bytes[from..to], from as u64)?;
            from = to + PAGE;
        }
        to += page.len();
    }
    if from < to {
        into.write_all_at(&bytes[from..to], from as u64)?;
    } else if from > 0 {
        ftruncate(into, bytes.len() as u64)?;
    }
    Ok(())
}

/// Copies all of a file into an empty one, holes as holes.
pub(crate) fn copy(from: &File, into: &File, calls: &Calls) -> io::Result<()> {
    let size = pieces(from, |at, bytes, hole| {
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
    let mut hasher = blake3::Hasher::new();
    let mut zeros: Vec<(u64, u64)> = Vec::new();
    let size = pieces(file, |at, bytes, hole| {
        hasher.update(bytes);
        for (i, page) in bytes.chunks(PAGE).enumerate() {
            if hole || page.len() < PAGE || page.iter().any(|b| *b != 0) {
                continue;
            }
            let from = at + (i * PAGE) as u64;
            match zeros.last_mut() {
                Some((_, to)) if *to == from => *to += PAGE as u64,
                _ => zeros.push((from, from + PAGE as u64)),
            }
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
