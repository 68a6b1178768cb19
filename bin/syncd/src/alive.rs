//! Signs of life of whoever asks. It may be at work on what it got for as long as its disk takes, or on what it gets from
//! others; but a process that was stopped, or whose machine was, must not keep a unit from everybody else.
//!
//! So what goes from the one who asks to `syncd serve` goes in pieces, each with its length before it (u32,
//! little-endian), and while a run goes on a thread sends a piece of no length every now and then.

use std::{
    io::{self, Read, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// So often a sign is given.
const SIGN: Duration = Duration::from_secs(5);
/// Whoever gives none for so long is gone.
const SIGNS: Duration = Duration::from_secs(30);
/// Whoever gives signs only is as good as gone after so long.
const WORDS: Duration = Duration::from_secs(20 * 60);

/// Whether the one who asks has been silent for too long: since its last word, and since its last sign.
pub fn is_gone(now: Instant, word: Instant, sign: Instant) -> bool {
    now.saturating_duration_since(sign) > SIGNS || now.saturating_duration_since(word) > WORDS
}

/// Writes in pieces.
pub struct Teller<W> {
    to: W,
    piece: Vec<u8>,
}

impl<W: Write> Teller<W> {
    pub fn new(to: W) -> Self {
        let piece = Vec::new();
        Self { to, piece }
    }

    /// All of this, as one piece.
    pub fn tell(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.piece.clear();
        self.piece.extend_from_slice(&length.to_le_bytes());
        self.piece.extend_from_slice(bytes);
        self.to.write_all(&self.piece)
    }
}

/// A thread that gives signs of life until this is dropped.
pub struct Signs {
    _ends_with_it: Sender<()>,
}

impl Signs {
    pub fn give<W: Write + Send + 'static>(teller: &Arc<Mutex<Teller<W>>>) -> io::Result<Self> {
        let (sender, over) = channel();
        let teller = Arc::clone(teller);
        let give = move || {
            while over.recv_timeout(SIGN) == Err(RecvTimeoutError::Timeout) {
                let mut teller = teller.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever does not hear it is told by what is said next.
                if teller.tell(&[]).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("signs".into()).spawn(give)?;
        Ok(Self {
            _ends_with_it: sender,
        })
    }
}

/// Reads what was written in pieces, from something that does not wait.
pub struct Hearer<R> {
    from: R,
    /// Come before anybody asked for it.
    early: Vec<u8>,
    /// So many bytes of the next piece's length are here.
    known: usize,
    length: [u8; 4],
    /// Still to come of this piece.
    left: usize,
}

impl<R: Read> Hearer<R> {
    /// So much is heard early; no list of requests is as long.
    const EARLY: usize = 1 << 20;

    pub fn new(from: R) -> Self {
        Self {
            from,
            early: Vec::new(),
            known: 0,
            length: [0; 4],
            left: 0,
        }
    }

    pub fn get_ref(&self) -> &R {
        &self.from
    }

    /// Whether it may be heard early.
    pub fn has_room(&self) -> bool {
        self.early.len() < Self::EARLY
    }

    /// Takes in what is there, to be read later.
    pub fn hear(&mut self) -> io::Result<()> {
        let mut some = [0; 4096];
        match self.from.read(&mut some)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.early.extend_from_slice(&some[..length]);
                Ok(())
            }
        }
    }

    fn next(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.early.is_empty() {
            return self.from.read(into);
        }
        let length = into.len().min(self.early.len());
        into[..length].copy_from_slice(&self.early[..length]);
        self.early.drain(..length);
        Ok(length)
    }
}

impl<R: Read> Read for Hearer<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let mut length = self.length;
            match self.next(&mut length[self.known..])? {
                0 => return Ok(0),
                read => self.known += read,
            }
            self.length = length;
            if self.known == length.len() {
                self.known = 0;
                self.left = u32::from_le_bytes(length) as usize;
            }
        }
        let most = into.len().min(self.left);
        let read = self.next(&mut into[..most])?;
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{collections::VecDeque, io::ErrorKind::WouldBlock};

    /// What comes, a few bytes at a time; in between there is nothing.
    struct Bits(VecDeque<Vec<u8>>);

    impl Bits {
        fn of(bytes: &[u8], size: usize) -> Self {
            let bits = bytes.chunks(size);
            Self(bits.flat_map(|bit| [vec![], bit.to_vec()]).collect())
        }
    }

    impl Read for Bits {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some(mut bit) = self.0.pop_front() else {
                return Ok(0);
            };
            let length = bit.len().min(into.len());
            if length == 0 {
                return Err(WouldBlock.into());
            }
            into[..length].copy_from_slice(&bit[..length]);
            if length < bit.len() {
                self.0.push_front(bit.split_off(length));
            }
            Ok(length)
        }
    }

    fn told(pieces: &[&[u8]]) -> Vec<u8> {
        let mut teller = Teller::new(Vec::new());
        for piece in pieces {
            teller.tell(piece).unwrap();
        }
        teller.to
    }

    #[test]
    fn pieces_and_signs_come_as_one_stream_however_they_are_cut_and_heard() {
        let told = told(&[b"", b"one", b"", b"", b"and another", b""]);
        for size in 1..told.len() {
            for early in 0..8 {
                let mut hearer = Hearer::new(Bits::of(&told, size));
                let (mut all, mut some) = (Vec::new(), [0; 5]);
                let mut turn = 0;
                loop {
                    turn += 1;
                    // Sometimes it is heard before it is asked for.
                    if early > 0 && turn % early == 0 {
                        let _ = hearer.hear();
                    }
                    match hearer.read(&mut some) {
                        Ok(0) => break,
                        Ok(length) => all.extend_from_slice(&some[..length]),
                        Err(e) => assert_eq!(e.kind(), WouldBlock),
                    }
                }
                assert_eq!(all, b"oneand another", "{size} {early}");
            }
        }
    }

    #[test]
    fn whoever_gives_no_sign_is_gone_soon_and_whoever_says_no_word_late() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let gone = |word, sign| is_gone(start + 2000 * second, start + word, start + sign);
        assert!(!gone(2000 * second, 2000 * second));
        assert!(!gone(801 * second, 1971 * second));
        assert!(gone(801 * second, 1969 * second));
        assert!(gone(799 * second, 2000 * second));
    }
}
