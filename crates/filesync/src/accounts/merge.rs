//! One file of the database, line by line: as the side has it that changed it last, field by field where both did.

use super::{
    File, How, Note, Refused, duplicates,
    fate::Fate,
    history::{Event, History},
    ranges,
    records::{self, Key, Line},
    versions::{Names, Versions},
};
use crate::{entry::Digest, version::Relation};
use std::collections::BTreeMap;

/// A line of the merged text.
pub(super) struct Merged {
    pub(super) key: Key,
    pub(super) line: Vec<u8>,
    /// Where it is from, if one side has it so.
    pub(super) event: Option<Event>,
}

/// A merged text.
pub(super) struct Text {
    pub(super) text: Vec<u8>,
    pub(super) notes: Vec<Note>,
    /// Of the lines that are one side's.
    pub(super) history: History,
    /// All are, and from where they are there.
    pub(super) known: bool,
    /// Some were removed on one side, and are there again.
    pub(super) restores: bool,
    /// Somebody's change on each side is not in it.
    pub(super) loses: [bool; 2],
}

/// Merges a file; `told` are the accounts of which it is noted already that they came back.
pub(super) fn merge<'a>(
    versions: &Versions<'a>,
    fate: &Fate<'a>,
    how: How,
    told: &mut Names<'a>,
    digest: impl Fn(&[u8]) -> Digest,
) -> Result<Text, Refused> {
    let file = versions.file;
    let mut notes = Vec::new();
    let (mut merged, mut restores) = (Vec::new(), false);
    let owners = [versions.all(0), versions.all(1)];
    for key in order(versions) {
        let Some((line, event)) = decide(versions, fate, how, &owners, &key, &mut notes) else {
            continue;
        };
        if versions.removed_by(0, &key) || versions.removed_by(1, &key) {
            restores |= event.is_none();
            let line = one_of(versions, &key);
            let owner = records::name(file, line).unwrap_or(line);
            if told.insert(owner) {
                notes.push(Note::RemovedAndChanged(records::shown(owner)));
            }
        }
        merged.push(Merged { key, line, event });
    }
    let mut loses = ranges::part(versions, how, &mut merged, &mut notes);
    let field = |note: &Note| matches!(note, Note::Field(..));
    loses[1 - versions.winner] |= notes.iter().any(field);

    let lines: Vec<_> = merged.iter().map(|m| m.line.as_slice()).collect();
    let text = text(versions, &lines);
    let here = &versions.sides[0];
    let is_here = matches!(versions.relation, Relation::Newer | Relation::Equal);
    if !is_here || text != here.side.text {
        let before = versions
            .sides
            .iter()
            .map(|side| side.records.count(file))
            .max();
        records::check(file, &lines, if how.few { 0 } else { before.unwrap_or(0) })?;
    }
    notes.extend(same_numbers(versions, &lines));

    let mut history = History::default();
    for Merged { key, line, event } in &merged {
        if let Some(event) = event {
            history.put(key, digest(line), event.clone());
        }
    }
    Ok(Text {
        text,
        notes,
        history,
        known: merged.iter().all(|m| m.event.is_some()),
        restores,
        loses,
    })
}

/// The text of these lines: one side's to the byte if that has the same.
fn text(versions: &Versions<'_>, lines: &[Line<'_>]) -> Vec<u8> {
    let as_it_was = |text: &&[u8]| records::lines(text).eq(lines.iter().copied());
    let mut sides = [versions.won(), versions.lost()]
        .into_iter()
        .map(|version| version.side.text);
    match sides.find(as_it_was) {
        Some(text) => text.to_vec(),
        None => lines
            .iter()
            .flat_map(|line| [line, &b"\n"[..]].concat())
            .collect(),
    }
}

/// All keys: the winner's in their order, those of the loser after what they come after there, and after what is new
/// of the winner; but nothing new comes after a line of NIS, which would hide it.
fn order(versions: &Versions<'_>) -> Vec<Key> {
    let (won, lost) = (&versions.won().records, &versions.lost().records);
    let mut after: BTreeMap<Option<&Key>, Vec<&Key>> = BTreeMap::new();
    let mut last = None;
    for key in &lost.order {
        match won.lines.contains_key(key) {
            true => last = Some(key),
            false => after.entry(last).or_default().push(key),
        }
    }
    let mut all: Vec<&Key> = Vec::new();
    let mut waiting = after.remove(&None).unwrap_or_default();
    for key in &won.order {
        let shared = lost.lines.contains_key(key);
        if shared || won.get(key).is_some_and(records::is_nis) {
            all.append(&mut waiting);
        }
        all.push(key);
        if shared {
            waiting = after.remove(&Some(key)).unwrap_or_default();
        }
    }
    all.append(&mut waiting);
    all.into_iter().cloned().collect()
}

/// The line of whoever has one.
fn one_of<'a>(versions: &Versions<'a>, key: &[u8]) -> Line<'a> {
    let mut lines = versions.sides.iter().map(|side| side.records.get(key));
    lines.find_map(|line| line).unwrap_or_default()
}

/// The merged line of a key, and where it is from if one side has it so; none: it was removed.
fn decide<'a>(
    versions: &Versions<'a>,
    fate: &Fate<'a>,
    how: How,
    owners: &[Names<'a>; 2],
    key: &[u8],
    notes: &mut Vec<Note>,
) -> Option<(Vec<u8>, Option<Event>)> {
    let file = versions.file;
    let (winner, loser) = (versions.won(), versions.lost());
    let (us, them) = (winner.event(key), loser.event(key));
    let (line, mut event) = match (winner.records.get(key), loser.records.get(key)) {
        (Some(ours), Some(theirs)) => match (loser.knows(&us), winner.knows(&them)) {
            (true, false) => (theirs.to_vec(), Some(them)),
            (false, true) => (ours.to_vec(), Some(us)),
            _ if ours == theirs => (ours.to_vec(), Some(us.max(them))),
            _ => {
                let line = fields(file, how, versions.base.get(key), ours, theirs, notes);
                let event = match &line {
                    line if line == ours => Some(us),
                    line if line == theirs => Some(them),
                    _ => None,
                };
                (line, event)
            }
        },
        (None, None) => return None,
        (ours, theirs) => {
            let lacks = match ours {
                Some(_) => 1 - versions.winner,
                None => versions.winner,
            };
            let line = ours.or(theirs)?.to_vec();
            let event = versions.sides[1 - lacks].event(key);
            if versions.sides[lacks].knows(&event) {
                let name = records::name(file, &line)?;
                let back = fate.keeps(file, name) && !owners[lacks].contains(name);
                // As something new: whoever knows of the removal would remove it again.
                return back.then(|| (lists(versions, fate, key, &line), None));
            }
            (line, Some(event))
        }
    };
    let kept = lists(versions, fate, key, &line);
    if kept != line {
        event = None;
    }
    Some((kept, event))
}

/// A line with its lists of members as they are when accounts come back or are gone.
fn lists(versions: &Versions<'_>, fate: &Fate<'_>, key: &[u8], line: &[u8]) -> Vec<u8> {
    let places = versions.file.lists();
    if places.is_empty() || records::name(versions.file, line).is_none() {
        return line.to_vec();
    }
    let (body, end) = records::ending(line);
    let of = |place: usize| {
        let list = |side: usize| {
            let line = versions.sides[side].records.get(key).unwrap_or_default();
            records::field(line, place)
        };
        [list(0), list(1)]
    };
    let fields = body.split(|b| *b == b':').enumerate();
    let fields: Vec<_> = fields
        .map(|(place, field)| match places.contains(&place) {
            true => fate.members(field.to_vec(), of(place)),
            false => field.to_vec(),
        })
        .collect();
    [&fields.join(&b':'), end].concat()
}

/// A record that both have, field by field; how the line ends is one more.
fn fields(
    file: File,
    how: How,
    base: Option<Line<'_>>,
    ours: Line<'_>,
    theirs: Line<'_>,
    notes: &mut Vec<Note>,
) -> Vec<u8> {
    let split = |line: Line<'_>| -> Vec<Vec<u8>> {
        let (body, end) = records::ending(line);
        let fields = body.split(|b| *b == b':').map(<[u8]>::to_vec);
        fields.chain([end.to_vec()]).collect()
    };
    let (us, them) = (split(ours), split(theirs));
    let base = base.map(split).filter(|b| b.len() == us.len());
    if us.len() != them.len() {
        return ours.to_vec();
    }
    let name = records::shown(&us[0]);
    let end = us.len() - 1;
    let field = |i: usize| {
        let before = base.as_ref().map(|b| &b[i]);
        if us[i] == them[i] || before == Some(&them[i]) {
            us[i].clone()
        } else if before == Some(&us[i]) {
            them[i].clone()
        } else if file.lists().contains(&i) && !how.yields {
            members(before.map_or(&[][..], |b| b), &us[i], &them[i])
        } else {
            if i != end {
                notes.push(Note::Field(name.clone(), i));
            }
            us[i].clone()
        }
    };
    let mut merged: Vec<_> = (0..us.len()).map(field).collect();
    let end = merged.pop().unwrap_or_default();
    [merged.join(&b':'), end].concat()
}

/// A list of names: who was added on either side is in it, who was removed on either side is not.
fn members(base: &[u8], ours: &[u8], theirs: &[u8]) -> Vec<u8> {
    let [was, us, them] =
        [base, ours, theirs].map(|list| records::names(list).collect::<Names<'_>>());
    let stays = |name: &&[u8]| !was.contains(name) || us.contains(name) && them.contains(name);
    let new = records::names(theirs).filter(|name| !us.contains(name));
    let merged: Vec<_> = records::names(ours).chain(new).filter(stays).collect();
    merged.join(&b',')
}

/// Names that have the same number, and have it on neither server alone.
fn same_numbers(versions: &Versions<'_>, lines: &[Line<'_>]) -> Vec<Note> {
    let sides = versions
        .sides
        .iter()
        .map(|version| records::lines(version.side.text));
    let known: Vec<_> = sides
        .flat_map(|lines| duplicates::pairs(versions.file, lines))
        .collect();
    let new = duplicates::pairs(versions.file, lines.iter().copied()).into_iter();
    let new = new
        .filter(|pair| !known.contains(pair))
        .map(|pair| pair.map(records::shown));
    new.map(|[one, other]| Note::SameNumber(one, other))
        .collect()
}
