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
    collections::BTreeMap,
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

/// Parts of a file that were hashed while they were written, from several threads at once.
#[derive(Default)]
pub(crate) struct Known(Mutex<BTreeMap<u64, Part>>);

enum Part {
    /// What is in it up to there.
    Begun(Box<Hasher>, u64),
    /// All of it.
    Whole(ChainingValue),
    /// It was not written in order, or has pages of zeros that are to become holes: it is to be read.
    Unknown,
}

impl Known {
    /// These bytes were written there.
    pub(crate) fn add(&self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let from = at - at % PART;
            let room = usize::try_from(from + PART - at).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at(bytes.len().min(room));
            let to = at + piece.len() as u64;
            // Whoever else writes there meanwhile finds it unknown.
            let part = match self.parts().insert(from, Part::Unknown) {
                None if at == from => Some(Box::new(hasher(from))),
                Some(Part::Begun(hasher, up_to)) if up_to == at => Some(hasher),
                _ => None,
            };
            let empty = |page: &[u8]| page.iter().all(|b| *b == 0);
            if let Some(mut hasher) = part
                && !piece.chunks_exact(PAGE).any(empty)
            {
                hasher.update(piece);
                let part = match to == from + PART {
                    true => Part::Whole(hasher.finalize_non_root()),
                    false => Part::Begun(hasher, to),
                };
                self.parts().insert(from, part);
            }
            (at, bytes) = (to, rest);
        }
    }

    fn of(&self, from: u64) -> Option<ChainingValue> {
        match self.parts().get(&from) {
            Some(Part::Whole(value)) => Some(*value),
            _ => None,
        }
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<u64, Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let expected = (0..32).filter(|i| ![5, 6, 7, 8, 9, 13].contains(i));
        assert_eq!(known_parts, expected.collect::<Vec<_>>());
        let (size, digest, zeros) = digest(&file, &fstat(&file).unwrap(), Some(&known))
            .unwrap()
            .unwrap();
        assert_eq!((size, digest), digest_of(&bytes));
        assert!(zeros.len() == 1 && zeros[0].1 - zeros[0].0 == 4 * PAGE as u64);
    }
}
