//! Digests of large files in parts: BLAKE3 is a tree, of which each processor hashes some branches, and of a file that is
//! being written some are known before it is there. Parts that are only zeros are left out.

use crate::{
    contents::{self, BUFFER, PAGE, ZEROS},
    threads,
};
use blake3::{
    Hasher,
    hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root},
};
use filesync::Digest;
use linux::sparse::extents;
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
/// What a digest of some parts alone is derived for: it is none of BLAKE3's of any file.
const SPARSE: &str = "standin 2026-11-30 digest of a file with parts of zeros";

/// From where to where there are only zeros.
pub(crate) type Zeros = Vec<(u64, u64)>;

/// Length and digest of a large file; if it was just written, with the help of what is known of it, and its pages of
/// zeros. None if it is not large, or got shorter meanwhile.
pub(crate) fn digest(
    file: &File,
    stat: &Stat,
    written: Option<&Known>,
) -> io::Result<Option<(u64, Digest, Zeros)>> {
    let (size, dense) = contents::extents(stat);
    if size < LARGE {
        return Ok(None);
    }
    let hash = |from| -> io::Result<Option<(Option<ChainingValue>, Zeros)>> {
        if let Some(value) = written.and_then(|known| known.of(from)) {
            return Ok(Some((Some(value), Zeros::new())));
        }
        let mut part = Hashed::at(from);
        let (mut at, to) = (from, size.min(from + PART));
        let mut empty = Zeros::new();
        let mut buffer = vec![0; BUFFER];
        while at < to {
            let most = usize::try_from(to - at).unwrap_or(BUFFER).min(BUFFER);
            let got = file.read_at(&mut buffer[..most], at)?;
            if got == 0 {
                return Ok(None);
            }
            part.update(&buffer[..got]);
            if written.is_some() {
                contents::add_zeros(&mut empty, at, &buffer[..got]);
            }
            at += got as u64;
        }
        Ok(Some((part.value(), empty)))
    };
    let hashed = threads::map(with_data(file, size, dense)?, |from| (from, hash(from)));
    let (mut values, mut empty) = (Values::new(), Zeros::new());
    for (from, hashed) in hashed {
        let Some((value, zeros)) = hashed? else {
            return Ok(None);
        };
        values.extend(value.map(|value| (from, value)));
        empty.extend(zeros);
    }
    Ok(Some((size, of_parts(size, &values), empty)))
}

/// Where the parts begin that are not in a hole.
fn with_data(file: &File, size: u64, dense: bool) -> io::Result<Vec<u64>> {
    let mut parts = Vec::new();
    let mut next = 0;
    let mut add = |from: u64, to: u64| {
        let first = next.max(from - from % PART);
        parts.extend((first..to).step_by(PART as usize));
        next = to.next_multiple_of(PART);
    };
    if dense {
        add(0, size);
    } else {
        for extent in extents(file, 0, size, PART) {
            let extent = extent?;
            if !extent.hole {
                add(extent.from, extent.to);
            }
        }
    }
    Ok(parts)
}

/// Parts that are not only zeros, by where they begin.
type Values = Vec<(u64, ChainingValue)>;

/// The digest of a file of so many bytes. It is that of BLAKE3, unless the file is large and some of its parts are only
/// zeros: then it is of all others, whether there are holes or zeros that were written, and costs nothing for them.
fn of_parts(size: u64, values: &Values) -> Digest {
    let digest = if values.len() as u64 == size.div_ceil(PART) {
        let values: Vec<_> = values.iter().map(|(_, value)| *value).collect();
        let (left, right) = values.split_at(left(values.len()));
        merge_subtrees_root(&merged(left), &merged(right), Mode::Hash)
    } else {
        let mut hasher = Hasher::new_derive_key(SPARSE);
        hasher.update(&size.to_le_bytes());
        for (from, value) in values {
            hasher.update(&from.to_le_bytes()).update(value);
        }
        hasher.finalize()
    };
    Digest(*digest.as_bytes())
}

/// A part, as it is read or written; only zeros up to now, or hashed.
pub(crate) enum Hashed {
    Zeros { from: u64, count: u64 },
    Data(Box<Hasher>),
}

impl Hashed {
    fn at(from: u64) -> Self {
        Self::Zeros { from, count: 0 }
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Self::Zeros { from, count } = self {
            if is_zeros(bytes) {
                *count += bytes.len() as u64;
                return;
            }
            let mut hasher = Box::new(hasher(*from));
            add_zeros(&mut hasher, *count);
            *self = Self::Data(hasher);
        }
        if let Self::Data(hasher) = self {
            hasher.update(bytes);
        }
    }

    /// None: there are only zeros.
    fn value(&self) -> Option<ChainingValue> {
        match self {
            Self::Zeros { .. } => None,
            Self::Data(hasher) => Some(hasher.finalize_non_root()),
        }
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes
        .chunks(ZEROS.len())
        .all(|some| some == &ZEROS[..some.len()])
}

fn add_zeros(hasher: &mut Hasher, count: u64) {
    for piece in contents::zeros(count) {
        hasher.update(piece);
    }
}

/// The digest of contents that come in order.
pub(crate) enum Digester {
    /// Of a file that is not large, and its length up to now.
    Small(Box<Hasher>, u64),
    /// Parts, the one that is not whole yet, and the length up to now.
    Large(Values, Hashed, u64),
}

impl Digester {
    /// Of contents of so many bytes.
    pub(crate) fn new(size: u64) -> Self {
        match size < LARGE {
            true => Self::Small(Box::default(), 0),
            false => Self::Large(Values::new(), Hashed::at(0), 0),
        }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        match self {
            Self::Small(hasher, at) => {
                hasher.update(bytes);
                *at += bytes.len() as u64;
            }
            Self::Large(values, part, at) => {
                while !bytes.is_empty() {
                    let room = usize::try_from(PART - *at % PART).unwrap_or(usize::MAX);
                    let (some, rest) = bytes.split_at(bytes.len().min(room));
                    part.update(some);
                    *at += some.len() as u64;
                    close(values, part, *at);
                    bytes = rest;
                }
            }
        }
    }

    /// The same for so many zeros.
    pub(crate) fn skip(&mut self, mut count: u64) {
        match self {
            Self::Small(hasher, at) => {
                add_zeros(hasher, count);
                *at += count;
            }
            Self::Large(values, part, at) => {
                while count > 0 {
                    let some = count.min(PART - *at % PART);
                    match part {
                        Hashed::Zeros { count, .. } => *count += some,
                        Hashed::Data(hasher) => add_zeros(hasher, some),
                    }
                    *at += some;
                    close(values, part, *at);
                    count -= some;
                }
            }
        }
    }

    /// Length and digest.
    pub(crate) fn finish(self) -> (u64, Digest) {
        match self {
            Self::Small(hasher, size) => (size, Digest(*hasher.finalize().as_bytes())),
            Self::Large(mut values, part, size) => {
                values.extend(part.value().map(|value| (size - size % PART, value)));
                (size, of_parts(size, &values))
            }
        }
    }
}

/// A part that ends there is whole.
fn close(values: &mut Values, part: &mut Hashed, at: u64) {
    if at.is_multiple_of(PART) {
        values.extend(part.value().map(|value| (at - PART, value)));
        *part = Hashed::at(at);
    }
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
    fn parts_of_zeros_cost_nothing_and_are_the_same_as_holes_or_written() {
        let (large, part) = (
            usize::try_from(LARGE).unwrap(),
            usize::try_from(PART).unwrap(),
        );
        let mut bytes = noise(large + 3 * part + 10);
        bytes[part + 7..3 * part + 7].fill(0);
        let length = bytes.len();
        bytes[20 * part - 5..length - 20].fill(0);
        let dense = file(&bytes);
        let (holes, none) = (tempfile::tempfile().unwrap(), Known::default());
        holes.set_len(length as u64).unwrap();
        for (i, page) in bytes.chunks(PAGE).enumerate() {
            if page.iter().any(|b| *b != 0) {
                holes.write_all_at(page, (i * PAGE) as u64).unwrap();
            }
        }
        let of = |file: &File| whole(file).unwrap();
        let wanted = of(&dense);
        assert_eq!(of(&holes), wanted);
        assert_ne!(wanted, digest_of(&bytes), "not all of it is hashed");
        assert_eq!(digest_and_punch(&dense, &none).unwrap(), wanted);
        assert_eq!(of(&dense), wanted);
        for step in [PAGE + 1, part, length] {
            let (mut written, mut skipped) = (Digester::new(wanted.0), Digester::new(wanted.0));
            for piece in bytes.chunks(step) {
                written.update(piece);
                match is_zeros(piece) {
                    true => skipped.skip(piece.len() as u64),
                    false => skipped.update(piece),
                }
            }
            assert_eq!(
                (written.finish(), skipped.finish()),
                (wanted, wanted),
                "{step}"
            );
        }
        // One more, one less, or elsewhere is another file.
        let other = |change: &dyn Fn(&File)| {
            let file = file(&bytes);
            change(&file);
            of(&file)
        };
        assert_ne!(other(&|f| f.write_all_at(&[1], 21 * PART).unwrap()), wanted);
        assert_ne!(other(&|f| f.write_all_at(&[0], 5).unwrap()), wanted);
        assert_ne!(other(&|f| f.set_len(length as u64 - 1).unwrap()), wanted);
        let moved = [&bytes[..part], &vec![0; part], &bytes[part..length - part]].concat();
        assert_ne!(of(&file(&moved)), wanted);
        let small = Digester::new(5);
        assert_eq!(small.finish(), digest_of(b""));
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
