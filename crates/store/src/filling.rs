//! A file that is given its contents: what comes in order into an empty one is known, and under way to the disk, once it
//! is there; of what comes anywhere, large parts. Pages of zeros become holes.

use crate::{
    contents,
    parts::{self, Digester, Known},
};
use filesync::Digest;
use rustix::fs::{Advice, fadvise, ftruncate};
use std::{
    fs::File,
    io::{self, Read, Write},
    num::NonZero,
    os::unix::fs::FileExt,
};

/// So much at once is sent on its way to the disk: a barrier then waits for little.
const MUCH: u64 = 8 << 20;

/// See the module. What is written follows what was written before.
pub struct Filling<'a> {
    file: &'a File,
    /// What the file will have, in bytes.
    size: u64,
    digester: Digester,
    at: u64,
    begun: bool,
    in_order: bool,
    known: Known,
}

impl<'a> Filling<'a> {
    /// Of a file that is empty, or has something in it already.
    pub(crate) fn new(file: &'a File, size: u64) -> io::Result<Self> {
        let begun = file.metadata()?.len() > 0;
        Ok(Self {
            file,
            size,
            digester: Digester::new(size),
            at: 0,
            begun,
            in_order: !begun,
            known: Known::default(),
        })
    }

    /// What was in it before, if there was something.
    pub fn begun(&self) -> Option<&'a File> {
        self.begun.then_some(self.file)
    }

    /// For what does not come in order: puts bytes at their place, from several threads at once.
    pub fn anywhere(&mut self) -> impl Fn(u64, &[u8]) -> io::Result<()> + Sync + '_ {
        self.in_order = false;
        |at, bytes| self.put(at, bytes)
    }

    /// So many zeros come next.
    pub fn skip(&mut self, count: u64) -> io::Result<()> {
        if !self.in_order {
            return io::copy(&mut io::repeat(0).take(count), self).map(drop);
        }
        self.digester.skip(count);
        self.at += count;
        Ok(())
    }

    fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self.begun {
            true => self.file.write_all_at(bytes, at)?,
            false => contents::write(self.file, at, bytes)?,
        }
        if self.size >= parts::LARGE {
            self.known.add(at, bytes);
        }
        self.send(at, at + bytes.len() as u64);
        Ok(())
    }

    /// What was written ends there: if that is the end of so much, it is sent on its way to the disk. Nothing of it is out
    /// of the cache before it is there, and nobody minds if nothing comes of it.
    fn send(&self, at: u64, end: u64) {
        if at / MUCH < end / MUCH {
            let from = (end / MUCH - 1) * MUCH;
            let _ = fadvise(self.file, from, NonZero::new(MUCH), Advice::DontNeed);
        }
    }

    /// Length and digest of all of it.
    pub(crate) fn finish(self) -> io::Result<(u64, Digest)> {
        if self.in_order {
            ftruncate(self.file, self.at)?; // it may end in a hole
            return Ok(self.digester.finish());
        }
        if self.file.metadata()?.len() < self.size {
            ftruncate(self.file, self.size)?; // likewise
        }
        contents::digest_and_punch(self.file, &self.known)
    }
}

impl Write for Filling<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.at + bytes.len() as u64;
        if self.in_order {
            contents::write(self.file, self.at, bytes)?;
            self.digester.update(bytes);
            self.send(self.at, end);
        } else {
            self.put(self.at, bytes)?;
        }
        self.at = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fs::fstat;

    #[test]
    fn what_came_in_order_is_known_and_what_did_not_is_read() {
        let pieces: [&[u8]; 4] = [&[7; 5000], &[0; 20_000], b"", &[0; 9000]];
        let wanted = contents::digest_of(&pieces.concat());
        let file = tempfile::tempfile().unwrap();
        let mut filling = Filling::new(&file, 34_000).unwrap();
        pieces.iter().for_each(|p| filling.write_all(p).unwrap());
        assert_eq!(filling.finish().unwrap(), wanted);
        assert_eq!(contents::digest(&file).unwrap(), wanted);
        assert!(fstat(&file).unwrap().st_blocks < 34_000 / 512, "holes");
        let other = tempfile::tempfile().unwrap();
        let mut filling = Filling::new(&other, 9).unwrap();
        filling.write_all(b"first").unwrap();
        filling.anywhere()(5, b"last").unwrap();
        let known = filling.finish().unwrap();
        assert_eq!(known, contents::digest(&other).unwrap());
        // What was there does not shine through where zeros come.
        let begun = tempfile::tempfile().unwrap();
        begun.write_all_at(&[1; 40_000], 0).unwrap();
        let mut filling = Filling::new(&begun, 40_000).unwrap();
        pieces.iter().for_each(|p| filling.write_all(p).unwrap());
        assert_eq!(filling.finish().unwrap(), contents::digest(&begun).unwrap());
        let mut there = vec![0; 34_000];
        begun.read_exact_at(&mut there, 0).unwrap();
        assert_eq!(there, pieces.concat());
    }
}
