//! The lines of a text: records, known by their names, and all else, known by itself and carried along as it is.
//!
//! Comments, lines of NIS, blank lines and what nobody can read (a line cut short, a word) are no records. They say
//! nothing of an account, and keep nobody from merging what does.

use super::{File, Refused};
use std::collections::BTreeMap;

pub(super) type Line<'a> = &'a [u8];

/// What a line is known by.
pub(super) type Key = Vec<u8>;

/// The lines by their keys, and the keys in order of the text.
#[derive(Default)]
pub(super) struct Records<'a> {
    pub(super) order: Vec<Key>,
    pub(super) lines: BTreeMap<Key, Line<'a>>,
}

impl<'a> Records<'a> {
    pub(super) fn read(file: File, text: &'a [u8]) -> Self {
        let mut records = Self::default();
        let mut seen: BTreeMap<Key, usize> = BTreeMap::new();
        for line in lines(text) {
            let mut key = key(file, line);
            let count = seen.entry(key.clone()).or_default();
            *count += 1;
            // A group may have several lines, and two comments may be alike; no other key has a newline in it.
            if *count > 1 {
                key.extend(format!("\n{count}").bytes());
            }
            records.order.push(key.clone());
            records.lines.insert(key, line);
        }
        records
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Line<'a>> {
        self.lines.get(key).copied()
    }

    /// How many are records.
    pub(super) fn count(&self, file: File) -> usize {
        let lines = self.lines.values();
        lines.filter(|line| name(file, line).is_some()).count()
    }
}

/// The lines of a text; the last may end with a newline or not.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let lines = (!text.is_empty()).then(|| whole.split(|b| *b == b'\n'));
    lines.into_iter().flatten()
}

/// Whose record it is, if it is one.
pub(super) fn name(file: File, line: Line<'_>) -> Option<&[u8]> {
    let mut fields = line.split(|b| *b == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let other = matches!(name[0], b'#' | b'+' | b'-');
    (!other && fields.count() + 1 == file.width()).then_some(name)
}

/// A line of NIS hides what comes after it.
pub(super) fn is_nis(line: Line<'_>) -> bool {
    matches!(line.first(), Some(b'+' | b'-'))
}

/// A line without the carriage return that some editors leave at its end, and that.
pub(super) fn ending(line: Line<'_>) -> (Line<'_>, &[u8]) {
    let end = line.strip_suffix(b"\r").map_or(line.len(), <[u8]>::len);
    line.split_at(end)
}

/// A field of a line, counted from 0.
pub(super) fn field(line: Line<'_>, place: usize) -> Line<'_> {
    let mut fields = ending(line).0.split(|b| *b == b':');
    fields.nth(place).unwrap_or_default()
}

/// The names in a list.
pub(super) fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').filter(|name| !name.is_empty())
}

fn key(file: File, line: Line<'_>) -> Key {
    match name(file, line) {
        // Somebody may have several ranges.
        Some(_) if matches!(file, File::Subuid | File::Subgid) => ending(line).0.to_vec(),
        Some(name) => name.to_vec(),
        None if matches!(line.first(), None | Some(b'#' | b'+' | b'-')) => line.to_vec(),
        // No name begins so.
        None => [b":", line].concat(),
    }
}

/// Whether these lines may be put in place of a text that had so many records.
pub(super) fn check(file: File, lines: &[Line<'_>], before: usize) -> Result<(), Refused> {
    let records = lines.iter().filter(|line| name(file, line).is_some());
    let after = records.clone().count();
    if after * 2 < before {
        return Err(Refused::TooFew { before, after });
    }
    let root = |line: &&Line<'_>| number(field(line, 2)) == Some(0);
    if file == File::Passwd && records.clone().find(root).is_none() {
        return Err(Refused::NoRoot);
    }
    Ok(())
}

pub(super) fn number(field: &[u8]) -> Option<i64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Whether a text may take the place of another, which had so many records; `few`: whatever is missing.
pub fn may_stand(file: File, text: &[u8], before: usize, few: bool) -> Result<(), Refused> {
    let lines: Vec<_> = lines(text).collect();
    check(file, &lines, if few { 0 } else { before })
}

/// How many records a text has.
pub fn count(file: File, text: &[u8]) -> usize {
    Records::read(file, text).count(file)
}

pub(super) fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
