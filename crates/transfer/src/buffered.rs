//! A stream that reads and writes much at once: frames are small, and a call or an SSH packet each costs more than they.

use std::io::{self, Read, Write};

/// Bytes read or written at once.
const MUCH: usize = 128 * 1024;

/// See the module. What was written goes when it is flushed, or is much.
#[derive(Debug)]
pub struct Buffered<S> {
    stream: S,
    read: Vec<u8>,
    /// What of it is not given yet.
    from: usize,
    written: Vec<u8>,
}

impl<S> Buffered<S> {
    /// Nothing is read or written yet.
    pub fn new(stream: S) -> Self {
        let (read, written) = (Vec::new(), Vec::with_capacity(MUCH));
        Self {
            stream,
            read,
            from: 0,
            written,
        }
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream itself, to be set up otherwise.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: Read> Read for Buffered<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.from == self.read.len() {
            if buffer.len() >= MUCH {
                return self.stream.read(buffer);
            }
            self.from = 0;
            self.read.resize(MUCH, 0);
            let come = self.stream.read(&mut self.read);
            self.read.truncate(come.as_ref().map_or(0, |come| *come));
            come?;
        }
        let length = buffer.len().min(self.read.len() - self.from);
        buffer[..length].copy_from_slice(&self.read[self.from..self.from + length]);
        self.from += length;
        Ok(length)
    }
}

impl<S: Write> Buffered<S> {
    fn send(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.written);
        self.written.clear();
        sent
    }
}

impl<S: Write> Write for Buffered<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.written.len() + buffer.len() > MUCH {
            self.send()?;
        }
        if buffer.len() >= MUCH {
            return self.stream.write(buffer);
        }
        self.written.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.stream.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Counts calls, and reads as much as it may.
    #[derive(Default)]
    struct Counted {
        there: Vec<u8>,
        calls: usize,
    }

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.calls += 1;
            let length = buffer.len().min(self.there.len());
            buffer[..length].copy_from_slice(&self.there[..length]);
            self.there.drain(..length);
            Ok(length)
        }
    }

    impl Write for Counted {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            self.there.extend_from_slice(buffer);
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_arrives_in_order_in_few_calls() {
        let pieces: Vec<Vec<u8>> = [1, 7, MUCH - 1, 5, 3 * MUCH, 2, MUCH, 100]
            .iter()
            .enumerate()
            .map(|(i, length)| vec![i as u8; *length])
            .collect();
        let mut stream = Buffered::new(Counted::default());
        for piece in &pieces {
            stream.write_all(piece).unwrap();
        }
        stream.flush().unwrap();
        assert!(stream.get_ref().calls <= 8, "{}", stream.get_ref().calls);
        let mut all = Vec::new();
        let mut piece = [0; 1000];
        loop {
            let length = stream.read(&mut piece).unwrap();
            if length == 0 {
                break;
            }
            all.extend_from_slice(&piece[..length]);
        }
        assert_eq!(all, pieces.concat());
        assert!(stream.get_ref().calls < 30, "{}", stream.get_ref().calls);
    }

    #[test]
    fn what_is_not_flushed_has_not_gone() {
        let mut stream = Buffered::new(Counted::default());
        stream.write_all(b"frame").unwrap();
        assert_eq!(stream.get_ref().calls, 0);
        stream.flush().unwrap();
        assert_eq!(stream.get_ref().there, b"frame");
    }
}
