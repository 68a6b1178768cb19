//! A file that is given its contents: what comes in order into an empty one is known, and under way to the disk, once it
//! is there.

use crate::contents;
use filesync::Digest;
use rustix::fs::{Advice, fadvise, ftruncate};
use std::{
    fs::File,
    io::{self, Write},
    num::NonZero,
    os::unix::fs::FileExt,
};

/// So much at once is sent on its way to the disk: a barrier then waits for little.
const MUCH: u64 = 8 << 20;

/// See the module. What is written follows what was written before.
pub struct Filling<'a> {
    file: &'a File,
    hasher: blake3::Hasher,
    at: u64,
    /// Up to here it is on its way.
    sent: u64,
    begun: bool,
    in_order: bool,
}

impl<'a> Filling<'a> {
    /// Of a file that is empty, or has something in it already.
    pub(crate) fn new(file: &'a File) -> io::Result<Self> {
        let begun = file.metadata()?.len() > 0;
        Ok(Self {
            file,
            hasher: blake3::Hasher::new(),
            at: 0,
            sent: 0,
            begun,
            in_order: !begun,
        })
    }

    /// There was something in it.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// The file, for what does not come in order; it is read once more in the end.
    pub fn file(&mut self) -> &'a File {
        self.in_order = false;
        self.file
    }

    /// Length and digest of all of it.
    pub(crate) fn finish(self) -> io::Result<(u64, Digest)> {
        if !self.in_order {
            return contents::digest_and_punch(self.file);
        }
        ftruncate(self.file, self.at)?; // it may end in a hole
        Ok((self.at, Digest(*self.hasher.finalize().as_bytes())))
    }
}

impl Write for Filling<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.in_order {
            contents::write(self.file, self.at, bytes)?;
            self.hasher.update(bytes);
        } else {
            self.file.write_all_at(bytes, self.at)?;
        }
        self.at += bytes.len() as u64;
        if self.at - self.sent >= MUCH {
            // Nothing of it is out of the cache before it is on the disk, and nobody minds if nothing comes of it.
            let _ = fadvise(
                self.file,
                self.sent,
                NonZero::new(self.at - self.sent),
                Advice::DontNeed,
            );
            self.sent = self.at;
        }
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
        let mut filling = Filling::new(&file).unwrap();
        pieces.iter().for_each(|p| filling.write_all(p).unwrap());
        assert_eq!(filling.finish().unwrap(), wanted);
        assert_eq!(contents::digest(&file).unwrap(), wanted);
        assert!(fstat(&file).unwrap().st_blocks < 34_000 / 512, "holes");
        let other = tempfile::tempfile().unwrap();
        let mut filling = Filling::new(&other).unwrap();
        filling.write_all(b"first").unwrap();
        let mut file = filling.file();
        file.write_all(b"last").unwrap();
        let known = filling.finish().unwrap();
        assert_eq!(known, contents::digest(&other).unwrap());
        // What was there does not shine through where zeros come.
        let begun = tempfile::tempfile().unwrap();
        begun.write_all_at(&[1; 40_000], 0).unwrap();
        let mut filling = Filling::new(&begun).unwrap();
        pieces.iter().for_each(|p| filling.write_all(p).unwrap());
        assert_eq!(filling.finish().unwrap(), contents::digest(&begun).unwrap());
        let mut there = vec![0; 34_000];
        begun.read_exact_at(&mut there, 0).unwrap();
        assert_eq!(there, pieces.concat());
    }
}
