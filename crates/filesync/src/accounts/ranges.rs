//! Subordinate ids (subuid(5)): what two servers gave to different users, not knowing of each other, may overlap, and
//! then each user's containers own the other's files.
//!
//! The later of two such ranges moves to the next that is free; its user has to move the files. Where none is free it is
//! left out. Ranges that overlapped on one of the servers already were made so by somebody, and stay.

use super::{
    File, How, Note,
    merge::Merged,
    records::{self, Line, Records},
    versions::{Version, Versions},
};
use std::collections::BTreeMap;

/// useradd(8) gives ranges from here (`SUB_UID_MIN`, login.defs(5)) ...
const FIRST: u64 = 100_000;
/// ... to here (`SUB_UID_MAX`).
const LAST: u64 = 600_100_000;

/// A range, and the place of its line.
type Placed<'a> = (Range<'a>, usize);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Range<'a> {
    owner: &'a [u8],
    start: u64,
    count: u64,
}

impl<'a> Range<'a> {
    fn read(file: File, line: Line<'a>) -> Option<Self> {
        let number = |place| u64::try_from(records::number(records::field(line, place))?).ok();
        Some(Self {
            owner: records::name(file, line)?,
            start: number(1)?,
            count: number(2)?,
        })
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.count)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The next start at which it overlaps with none of the others, which are sorted by theirs.
    fn free(&self, others: &[Self]) -> Option<u64> {
        let after = |from: u64| {
            let start = others.iter().fold(from, |start, other| {
                let moved = Self { start, ..*self };
                if moved.overlaps(other) {
                    other.end()
                } else {
                    start
                }
            });
            (start.saturating_add(self.count) <= LAST + 1).then_some(start)
        };
        after(self.start.max(FIRST)).or_else(|| after(FIRST))
    }
}

/// Those of different users that overlap, of ranges sorted by their start.
fn overlapping<'a>(ranges: &[Placed<'a>]) -> Vec<(Placed<'a>, Placed<'a>)> {
    let after = |(i, one): (usize, &Placed<'a>)| {
        let (one, end) = (*one, one.0.end());
        let next = ranges[i + 1..].iter().copied();
        let near = next.take_while(move |(other, _)| other.start < end);
        near.filter(move |(other, _)| other.owner != one.0.owner && other.overlaps(&one.0))
            .map(move |other| (one, other))
    };
    ranges.iter().enumerate().flat_map(after).collect()
}

/// Moves what overlaps only since both servers' ranges are in one text; which sides lose one that cannot be moved.
pub(super) fn part(
    versions: &Versions<'_>,
    how: How,
    merged: &mut Vec<Merged>,
    notes: &mut Vec<Note>,
) -> [bool; 2] {
    let file = versions.file;
    let mut loses = [false, false];
    if !matches!(file, File::Subuid | File::Subgid) {
        return loses;
    }
    let lines: Vec<_> = merged.iter().map(|m| m.line.clone()).collect();
    let ranges = lines.iter().enumerate();
    let ranges = ranges.filter_map(|(place, line)| Some((Range::read(file, line)?, place)));
    let mut ranges: Vec<Placed<'_>> = ranges.collect();
    ranges.sort_by_key(|(range, place)| (range.start, *place));
    // By their places; none: it is left out.
    let mut moved: BTreeMap<usize, Option<Range<'_>>> = BTreeMap::new();
    for (one, other) in overlapping(&ranges) {
        if moved.contains_key(&one.1) || moved.contains_key(&other.1) {
            continue;
        }
        let keys = [one, other].map(|(_, place)| &merged[place].key);
        let both = |records: &Records<'_>| keys.iter().all(|key| records.get(key).is_some());
        let known = versions.sides.each_ref().map(|side| both(&side.records));
        if known != [false, false] {
            if known != [true, true] && !both(&versions.base) {
                let [one, other] = [one, other].map(|(range, _)| records::shown(range.owner));
                notes.push(Note::Overlap(one, other));
            }
            continue;
        }
        // What wins elsewhere is the younger version; where this side yields it is the one that is known.
        let later = if how.yields {
            &versions.sides[0]
        } else {
            versions.won()
        };
        let later = later.records.get(keys[0]).is_some();
        let [was, other_was] = keys.map(|key| versions.base.get(key).is_some());
        let first_moves = if was == other_was { later } else { other_was };
        let ((range, place), (stays, _)) = if first_moves {
            (one, other)
        } else {
            (other, one)
        };
        let [owner, of] = [range.owner, stays.owner].map(records::shown);

        let there = |(_, other): &&Placed<'_>| *other != place && !moved.contains_key(other);
        let others = ranges.iter().filter(there).map(|(other, _)| *other);
        let mut others: Vec<_> = others.chain(moved.values().copied().flatten()).collect();
        others.sort_by_key(|other| other.start);
        let from = range.start;
        let Some(to) = range.free(&others) else {
            let had = |side: &Version<'_>| side.records.get(&merged[place].key).is_some();
            let had = versions.sides.each_ref().map(had);
            loses = [loses[0] || had[0], loses[1] || had[1]];
            moved.insert(place, None);
            notes.push(Note::LeftOut { owner, from, of });
            continue;
        };
        let new = format!(":{to}:{}", range.count);
        let end = records::ending(&lines[place]).1;
        merged[place].line = [range.owner, new.as_bytes(), end].concat();
        merged[place].event = None;
        moved.insert(place, Some(Range { start: to, ..range }));
        notes.push(Note::Moved {
            owner,
            from,
            to,
            of,
        });
    }
    let mut places = 0..;
    merged.retain(|_| {
        places
            .next()
            .is_none_or(|place| moved.get(&place) != Some(&None))
    });
    loses
}
