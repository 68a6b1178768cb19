//! Which parts of a file are holes, and reading without moving anybody's file offset: `SEEK_DATA` and `SEEK_HOLE` of
//! lseek(2).

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

/// A stretch of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub from: u64,
    /// Where the next one begins.
    pub to: u64,
    /// Nothing was ever written there: it reads as zeros.
    pub hole: bool,
}

impl Extent {
    /// In bytes.
    pub fn length(&self) -> u64 {
        self.to - self.from
    }
}

/// What comes at `at` in a file of which everything up to `end` is of interest; a file system that knows of no holes calls
/// all of it data. Moves the file offset.
pub fn extent(file: &File, at: u64, end: u64) -> io::Result<Extent> {
    let sought = |from| match seek(file, from) {
        Err(Errno::NXIO) => Ok(end),
        other => Ok::<u64, io::Error>(other?.min(end)),
    };
    let data = sought(SeekFrom::Data(at))?;
    let (to, hole) = match data > at {
        true => (data, true),
        false => (sought(SeekFrom::Hole(at))?.max(at + 1), false),
    };
    Ok(Extent { from: at, to, hole })
}

/// What is from `from` to `to` in a file, in order; holes shorter than `least` count as data. Moves the file offset.
pub fn extents(
    file: &File,
    from: u64,
    to: u64,
    least: u64,
) -> impl Iterator<Item = io::Result<Extent>> + '_ {
    let (mut at, mut ahead) = (from, None);
    std::iter::from_fn(move || {
        let mut data: Option<Extent> = None;
        loop {
            let next = match ahead.take() {
                Some(next) => next,
                None if at >= to => return data.map(Ok),
                None => match extent(file, at, to) {
                    Ok(next) => next,
                    Err(e) => {
                        at = to;
                        return Some(Err(e));
                    }
                },
            };
            at = next.to;
            let hole = next.hole && next.length() >= least;
            match &mut data {
                None if hole => return Some(Ok(next)),
                None => data = Some(Extent { hole, ..next }),
                Some(data) if hole => {
                    ahead = Some(next);
                    return Some(Ok(*data));
                }
                Some(data) => data.to = next.to,
            }
        }
    })
}

/// A part of a file, read without moving anybody's place in it.
#[derive(Debug)]
pub struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Part<'a> {
    /// From `from` up to `to`, both in bytes.
    pub fn new(file: &'a File, from: u64, to: u64) -> Self {
        let (at, end) = (from, to);
        Self { file, at, end }
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let Some(buffer) = buffer.get_mut(..length).filter(|b| !b.is_empty()) else {
            return Ok(0);
        };
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn data_and_holes_come_in_order_and_short_holes_are_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(20 * MIB).unwrap();
        for at in [3 * MIB, 4 * MIB, 9 * MIB] {
            file.write_all_at(&[7; 65_536], at).unwrap();
        }
        let told = |from, to, least| -> Vec<_> {
            let all = extents(&file, from, to, least).map(Result::unwrap);
            all.map(|e| (e.from, e.to, e.hole)).collect()
        };
        let first = (0, 3 * MIB, true);
        let (last, end) = ((9 * MIB, 9 * MIB + 65_536, false), 20 * MIB);
        let between = (4 * MIB + 65_536, 9 * MIB, true);
        let joined = (3 * MIB, 4 * MIB + 65_536, false);
        let tail = (last.1, end, true);
        assert_eq!(told(0, end, MIB), [first, joined, between, last, tail]);
        assert_eq!(told(0, end, 1).len(), 7);
        assert_eq!(told(0, end, end), [(0, end, false)]);
        assert_eq!(told(MIB, 2 * MIB, MIB), [(MIB, 2 * MIB, true)]);
        assert_eq!(told(5, 5, MIB), []);
        let mut read = Vec::new();
        let mut part = Part::new(&file, 3 * MIB - 2, 3 * MIB + 3);
        part.read_to_end(&mut read).unwrap();
        assert_eq!(read, [0, 0, 7, 7, 7]);
    }
}
