//! Digests of large files in parts: BLAKE3 is a tree, of which each processor hashes some branches, and of a file that is
//! being written some are known before it is there.

use crate::{
    contents::{self, BUFFER, PAGE},
    threads,
};
use blake3::{
    Hasher,
    hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root},
};
use filesync::Digest;
use rustix::fs::Stat;
use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// From so many bytes on a file is hashed in parts
pub(crate) const LARGE: u64 = 32 << 20;
/// of so many: a branch of the tree.
const PART: u64 = 1 << 20;

/// From where to where there are only zeros.
pub(crate) type Zeros = Vec<(u64, u64)>;

/// Length and digest of a large file without holes; if it was just written, with the help of what is known of it, and its
/// pages of zeros. None if it is not such a file, or got shorter meanwhile.
pub(crate) fn digest(
    file: &File,
    stat: &Stat,
    written: Option<&Known>,
) -> io::Result<Option<(u64, Digest, Zeros)>> {
    let (size, dense) = contents::extents(stat);
    if size < LARGE || !dense {
        return Ok(None);
    }
    let parts: Vec<_> = (0..size.div_ceil(PART)).map(|i| i * PART).collect();
    let hashed = threads::map(
        parts,
        |from| -> io::Result<Option<(ChainingValue, Zeros)>> {
            if let Some(value) = written.and_then(|known| known.of(from)) {
                return Ok(Some((value, Zeros::new())));
            }
            let mut hasher = hasher(from);
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
                if written.is_some() {
                    contents::add_zeros(&mut empty, at, &buffer[..got]);
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

/// Of the part that begins there.
fn hasher(from: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(from);
    hasher
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

/// So many parts may be half written: two threads write one each, and what has gaps is read in the end.
const OPEN: usize = 8;

/// Parts of a file that were hashed while they were written, from several threads at once.
#[derive(Default)]
pub(crate) struct Known(Mutex<Parts>);

#[derive(Default)]
struct Parts {
    /// All that is in them, by where they begin.
    whole: BTreeMap<u64, ChainingValue>,
    /// The last ones that are not.
    open: VecDeque<Open>,
}

/// What is in a part up to there.
struct Open {
    from: u64,
    up_to: u64,
    /// None while it is being hashed: whoever writes there meanwhile takes all of this away.
    hasher: Option<Box<Hasher>>,
}

impl Known {
    /// These bytes were written there. A part is known if what was written to it since its beginning was is all of it, in
    /// order, and has no pages of zeros that are to become holes.
    pub(crate) fn add(&self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let from = at - at % PART;
            let room = usize::try_from(from + PART - at).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at(bytes.len().min(room));
            let hasher = self.parts().take(from, at);
            if let Some(mut hasher) = hasher
                && !has_zeros(at, piece)
            {
                hasher.update(piece);
                self.parts().give(from, at + piece.len() as u64, hasher);
            }
            at += piece.len() as u64;
            bytes = rest;
        }
    }

    fn of(&self, from: u64) -> Option<ChainingValue> {
        self.parts().whole.get(&from).copied()
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parts {
    /// Something was written at `at` in the part that begins at `from`; what is to hash it, if that is of use.
    fn take(&mut self, from: u64, at: u64) -> Option<Box<Hasher>> {
        self.whole.remove(&from);
        let open = self.open.iter().position(|o| o.from == from);
        let open = open.and_then(|i| self.open.remove(i));
        let hasher = match open {
            Some(open) if open.up_to == at => open.hasher?,
            _ if at == from => Box::new(hasher(from)),
            _ => return None,
        };
        self.open.truncate(OPEN - 1);
        self.open.push_front(Open {
            from,
            up_to: at,
            hasher: None,
        });
        Some(hasher)
    }

    /// It was hashed up to there.
    fn give(&mut self, from: u64, up_to: u64, hasher: Box<Hasher>) {
        let own = |o: &Open| o.from == from && o.hasher.is_none();
        let Some(i) = self.open.iter().position(own) else {
            return;
        };
        if up_to == from + PART {
            self.open.remove(i);
            self.whole.insert(from, hasher.finalize_non_root());
        } else if let Some(open) = self.open.get_mut(i) {
            (open.up_to, open.hasher) = (up_to, Some(hasher));
        }
    }
}

/// Whether a page of the file may be one of zeros, if these bytes are at this place.
fn has_zeros(at: u64, mut bytes: &[u8]) -> bool {
    let mut first = PAGE - usize::try_from(at % PAGE as u64).unwrap_or(0);
    while !bytes.is_empty() {
        let (page, rest) = bytes.split_at(first.min(bytes.len()));
        if page.iter().all(|b| *b == 0) {
            return true;
        }
        (bytes, first) = (rest, PAGE);
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::contents::{digest as whole, digest_and_punch, digest_of};
    use rustix::fs::fstat;
    use std::io::Write;

    fn noise(size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let mut noise = blake3::Hasher::new().update(b"parts").finalize_xof();
        noise.fill(&mut bytes);
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_has_the_same_digest_in_parts() {
        let large = usize::try_from(LARGE).unwrap();
        let part = usize::try_from(PART).unwrap();
        let none = Known::default();
        for size in [large, large + 1, large + 3 * part, large + 5 * part + 1025] {
            let bytes = noise(size);
            let file = file(&bytes);
            let of_parts =
                || digest(&file, &fstat(&file).unwrap(), Some(&none)).map(Option::unwrap);
            let (size, digest, zeros) = of_parts().unwrap();
            assert_eq!(((size, digest), zeros), (digest_of(&bytes), Zeros::new()));
            let hole = PART - 2 * PAGE as u64;
            file.write_all_at(&[0; 4 * PAGE], hole).unwrap();
            let (.., zeros) = of_parts().unwrap();
            assert_eq!(zeros, [(hole, PART), (PART, hole + 4 * PAGE as u64)]);
            let before = whole(&file).unwrap();
            assert_eq!(digest_and_punch(&file, &none).unwrap(), before);
            assert_eq!(whole(&file).unwrap(), before);
            let blocks = fstat(&file).unwrap().st_blocks.cast_unsigned();
            assert!(blocks < size.div_ceil(512), "there is a hole");
        }
        let small = file(b"small");
        let stat = fstat(&small).unwrap();
        assert_eq!(digest(&small, &stat, None).unwrap(), None);
    }

    #[test]
    fn what_is_written_in_order_is_known_and_the_rest_is_read() {
        let size = usize::try_from(LARGE).unwrap() + 100_000;
        let part = usize::try_from(PART).unwrap();
        let mut bytes = noise(size);
        bytes[5 * part + 10_000..5 * part + 30_000].fill(0);
        // In the middle of a piece, and partly in one, partly in the next.
        for page in [10 * part + 20 * PAGE, 11 * part + 17 * PAGE] {
            bytes[page..page + PAGE].fill(0);
        }
        let file = file(&bytes);
        let known = Known::default();
        let add = |from: usize, to: usize| {
            for at in (from..to).step_by(70_000) {
                known.add(at as u64, &bytes[at..to.min(at + 70_000)]);
            }
        };
        add(0, 6 * part); // one with pages of zeros
        add(6 * part + 1, 7 * part);
        add(7 * part, 8 * part - 1);
        add(8 * part, 8 * part + 7);
        add(8 * part + 5, 9 * part);
        add(9 * part, 9 * part + 5);
        add(9 * part + 7, 10 * part);
        add(10 * part, size);
        known.add(13 * part as u64 + 5, b"something else");
        let whole = |i: usize| known.of((i * part) as u64).is_some();
        let known_parts: Vec<_> = (0..33).filter(|i| whole(*i)).collect();
        let expected = (0..32).filter(|i| ![5, 6, 7, 8, 9, 10, 11, 13].contains(i));
        assert_eq!(known_parts, expected.collect::<Vec<_>>());
        let (size, digest, zeros) = digest(&file, &fstat(&file).unwrap(), Some(&known))
            .unwrap()
            .unwrap();
        assert_eq!((size, digest), digest_of(&bytes));
        let lengths: Vec<_> = zeros.iter().map(|(from, to)| to - from).collect();
        assert_eq!(lengths, [4 * PAGE as u64, PAGE as u64, PAGE as u64]);
    }
}
