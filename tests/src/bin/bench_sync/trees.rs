//! What is kept alike. The same in every run.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

/// Numbers without any order that compression could find: xorshift64*.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn write(&mut self, into: &mut impl Write, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let some = self.next().to_le_bytes();
            let length = left.min(8) as usize;
            into.write_all(&some[..length])?;
            left -= length as u64;
        }
        Ok(())
    }
}

/// `files` of them with `bytes` in all, a hundred to a directory.
pub fn many(root: &Path, files: u64, bytes: u64) -> io::Result<()> {
    let mut noise = Noise(88_172_645_463_325_252);
    let each = bytes / files;
    for i in 0..files {
        let dir = root.join(format!("d{:05}", i / 100));
        if i % 100 == 0 {
            fs::create_dir(&dir)?;
        }
        let mut file = File::create(dir.join(format!("file-{i:07}.dat")))?;
        let mut contents = Vec::new();
        // Half noise, half text, as files are.
        noise.write(&mut contents, each / 2)?;
        let text = b"one line of text, and ".iter().cycle();
        contents.extend(text.take((each - each / 2) as usize));
        file.write_all(&contents)?;
    }
    Ok(())
}

/// One file of noise.
pub fn large(path: &Path, bytes: u64) -> io::Result<()> {
    let mut into = BufWriter::with_capacity(1 << 20, File::create(path)?);
    Noise(362_436_069_123).write(&mut into, bytes)?;
    into.flush()
}

/// The file with `byte` in front.
pub fn put_in_front(path: &Path, byte: u8) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut into = File::create(&new)?;
    into.write_all(&[byte])?;
    io::copy(&mut File::open(path)?, &mut into)?;
    fs::rename(new, path)
}
