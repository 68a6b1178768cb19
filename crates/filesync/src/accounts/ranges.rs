//! Subordinate ids (subuid(5)): what two servers gave to different users, not knowing of each other, may overlap, and
//! then each user's containers own the other's files.
//!
//! The later of two such ranges moves to the next that is free; its user has to move the files. Ranges that overlapped
//! on one of the servers already were made so by somebody, and stay.

use super::{
    File, Note, Refused,
    merge::Merged,
    records::{self, Line, Records},
    versions::Versions,
};

/// useradd(8) gives ranges from here (`SUB_UID_MIN`, login.defs(5)) ...
const FIRST: u64 = 100_000;
/// ... to here (`SUB_UID_MAX`).
const LAST: u64 = 600_100_000;

#[derive(Clone, Copy)]
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

    /// The next start at which it overlaps with none of the others.
    fn free(&self, others: &[Self]) -> Option<u64> {
        let mut starts: Vec<_> = others.iter().map(Self::end).chain([FIRST]).collect();
        starts.sort_unstable();
        let fits = |start: &&u64| {
            let moved = Self {
                start: **start,
                ..*self
            };
            let free = !others.iter().any(|other| moved.overlaps(other));
            free && moved.start >= FIRST && moved.end() <= LAST + 1
        };
        let next = starts
            .iter()
            .filter(|start| **start >= self.start)
            .find(fits);
        next.or_else(|| starts.iter().find(fits)).copied()
    }
}

/// Moves what overlaps only since both servers' ranges are in one text.
pub(super) fn part(
    versions: &Versions<'_>,
    merged: &mut [Merged],
    notes: &mut Vec<Note>,
) -> Result<(), Refused> {
    let file = versions.file;
    if !matches!(file, File::Subuid | File::Subgid) {
        return Ok(());
    }
    let lines: Vec<_> = merged.iter().map(|m| m.line.clone()).collect();
    let mut ranges: Vec<_> = lines.iter().map(|line| Range::read(file, line)).collect();
    for one in 0..ranges.len() {
        for other in 0..one {
            let Some((a, b)) = ranges[one].zip(ranges[other]) else {
                continue;
            };
            if a.owner == b.owner || !a.overlaps(&b) {
                continue;
            }
            let keys = [&merged[one].key, &merged[other].key];
            let [owner, of] = [a.owner, b.owner].map(records::shown);
            let both = |records: &Records<'_>| keys.iter().all(|key| records.get(key).is_some());
            let known = versions.sides.each_ref().map(|side| both(&side.records));
            if known != [false, false] {
                if known != [true, true] && !both(&versions.base) {
                    notes.push(Note::Overlap(of, owner));
                }
                continue;
            }
            let [was, other_was] = keys.map(|key| versions.base.get(key).is_some());
            let later = versions.won().records.get(keys[0]).is_some();
            let first_moves = if was == other_was { later } else { other_was };
            let (moves, range, stays) = if first_moves {
                (one, a, b)
            } else {
                (other, b, a)
            };
            let [owner, of] = [range.owner, stays.owner].map(records::shown);

            let others = ranges
                .iter()
                .enumerate()
                .filter(|(place, _)| *place != moves);
            let others: Vec<_> = others.filter_map(|(_, range)| *range).collect();
            let Some(to) = range.free(&others) else {
                return Err(Refused::NoRange { owner, of });
            };
            let moved = format!(":{to}:{}", range.count);
            let end = records::ending(&lines[moves]).1;
            merged[moves].line = [range.owner, moved.as_bytes(), end].concat();
            merged[moves].event = None;
            ranges[moves] = Some(Range { start: to, ..range });
            notes.push(Note::Moved {
                owner,
                from: range.start,
                to,
                of,
            });
        }
    }
    Ok(())
}
