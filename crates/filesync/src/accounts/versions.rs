//! A file as two servers have it: who removed which record, and who changed it.

use super::{
    File, Pair, Side,
    history::Event,
    records::{self, Key, Line, Records},
};
use crate::version::Relation;
use std::collections::BTreeSet;

/// One server's version.
pub(super) struct Version<'a> {
    pub(super) side: &'a Side<'a>,
    pub(super) records: Records<'a>,
}

impl<'a> Version<'a> {
    fn new(file: File, side: &'a Side<'a>) -> Self {
        let records = Records::read(file, side.text);
        Self { side, records }
    }

    pub(super) fn event(&self, key: &[u8]) -> Event {
        self.side.history.of(key, self.side.entry)
    }

    pub(super) fn knows(&self, event: &Event) -> bool {
        event.is_in(&self.side.entry.vector)
    }
}

/// Names of users and groups.
pub(super) type Names<'a> = BTreeSet<&'a [u8]>;

/// See the module.
pub(super) struct Versions<'a> {
    pub(super) file: File,
    pub(super) relation: Relation,
    /// Here, there.
    pub(super) sides: [Version<'a>; 2],
    /// Whose version wins where both changed something, by its place.
    pub(super) winner: usize,
    /// The last version that both had; nothing if none is known.
    pub(super) base: Records<'a>,
}

impl<'a> Versions<'a> {
    /// `stays`: where both changed something, this side's is taken.
    pub(super) fn new(pair: &'a Pair<'a>, stays: bool) -> Self {
        let sides = [&pair.here, &pair.there];
        let relation = pair.relation();
        let stays = match relation {
            Relation::Newer | Relation::Equal => true,
            Relation::Older => false,
            Relation::Concurrent => stays,
        };
        Self {
            file: pair.file,
            relation,
            sides: sides.map(|side| Version::new(pair.file, side)),
            winner: usize::from(!stays),
            base: Records::read(pair.file, pair.base),
        }
    }

    pub(super) fn won(&self) -> &Version<'a> {
        &self.sides[self.winner]
    }

    pub(super) fn lost(&self) -> &Version<'a> {
        &self.sides[1 - self.winner]
    }

    /// A record that this side has was changed or added there, and the other side does not know.
    pub(super) fn changed_by(&self, side: usize, key: &[u8]) -> bool {
        let (own, other) = (&self.sides[side], &self.sides[1 - side]);
        own.records.lines.contains_key(key) && !other.knows(&own.event(key))
    }

    /// A record that only the other side has, changed since or not, was removed here.
    pub(super) fn removed_by(&self, side: usize, key: &[u8]) -> bool {
        let (own, other) = (&self.sides[side], &self.sides[1 - side]);
        let has = |records: &Records<'_>| records.lines.contains_key(key);
        let was_here = || has(&self.base) || own.knows(&other.event(key));
        !has(&own.records) && has(&other.records) && was_here()
    }

    /// The records of a side, with their names.
    pub(super) fn named(&self, side: usize) -> impl Iterator<Item = (&Key, Line<'a>, &'a [u8])> {
        let lines = self.sides[side].records.lines.iter();
        lines.filter_map(|(key, line)| Some((key, *line, records::name(self.file, line)?)))
    }

    /// Who has a record on this side.
    pub(super) fn all(&self, side: usize) -> Names<'a> {
        self.named(side).map(|(_, _, name)| name).collect()
    }

    /// Of whom this side changed a record, or added one.
    pub(super) fn changed(&self, side: usize) -> Names<'a> {
        let named = self.named(side);
        let changed = named.filter(|(key, ..)| self.changed_by(side, key));
        changed.map(|(_, _, name)| name).collect()
    }

    /// Of whom this side has no record any more.
    pub(super) fn removed(&self, side: usize) -> Names<'a> {
        let has = self.all(side);
        let named = self.named(1 - side);
        let removed =
            named.filter(|(key, _, name)| !has.contains(name) && self.removed_by(side, key));
        removed.map(|(_, _, name)| name).collect()
    }

    /// Whom this side made a member of something; nobody knows without the last version that both had.
    pub(super) fn joined(&self, side: usize) -> Names<'a> {
        let mut joined = Names::new();
        if self.base.order.is_empty() {
            return joined;
        }
        let named = self.named(side);
        for (key, line, _) in named.filter(|(key, ..)| self.changed_by(side, key)) {
            for place in self.file.lists() {
                let before = self.base.get(key).map(|line| records::field(line, *place));
                let before: Names<'_> = records::names(before.unwrap_or_default()).collect();
                let now = records::names(records::field(line, *place));
                joined.extend(now.filter(|name| !before.contains(name)));
            }
        }
        joined
    }
}
