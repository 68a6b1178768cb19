//! Which accounts live, decided once for all files.
//!
//! Whoever removes an account does so in every file, and whoever changes it in one of them: seen file by file it would
//! come back in that one only. So a change of any record of an account outlives its removal, and then the other records
//! come back as they were, from the side that still has them: shadow, ranges, the group of the same name, the primary
//! group, memberships. An account that nobody changed dies in all.

use super::{
    File,
    records::{self, Line},
    versions::{Names, Versions},
};

/// See the module.
#[derive(Default)]
pub(super) struct Fate<'a> {
    /// Users that one side removed, or a part of them, and the other changed.
    users: Names<'a>,
    /// Those of them whom each side removed altogether.
    whole: [Names<'a>; 2],
    /// Groups likewise.
    groups: Names<'a>,
    /// Users whom each side removed and nobody changed.
    gone: [Names<'a>; 2],
}

const USER: [File; 2] = [File::Passwd, File::Shadow];
const RANGES: [File; 2] = [File::Subuid, File::Subgid];
const GROUP: [File; 2] = [File::Group, File::Gshadow];

/// The union of what each of these files gives.
fn over<'a>(
    all: &[Versions<'a>],
    files: &[File],
    each: impl Fn(&Versions<'a>) -> Names<'a>,
) -> Names<'a> {
    let of = all.iter().filter(|versions| files.contains(&versions.file));
    of.flat_map(each).collect()
}

impl<'a> Fate<'a> {
    pub(super) fn of(all: &[Versions<'a>]) -> Self {
        let mut fate = Self::default();
        for side in [0, 1] {
            fate.decide(all, side);
        }
        fate
    }

    /// What becomes of what this side removed.
    fn decide(&mut self, all: &[Versions<'a>], side: usize) {
        let other = 1 - side;
        let removed = |files: &[File]| over(all, files, |versions| versions.removed(side));
        let changed = |files: &[File]| over(all, files, |versions| versions.changed(other));
        let users = |side: usize| over(all, &[File::Passwd], |versions| versions.all(side));
        let groups = removed(&GROUP);
        // A record that was changed there may look as if it were new there: then one that was not says that it is not.
        let mut whole = removed(&File::IN_ORDER);
        let (own, others) = (users(side), users(other));
        whole.retain(|user| others.contains(user) && !own.contains(user));
        let (user_changed, group_changed) = (changed(&[USER, RANGES].concat()), changed(&GROUP));
        let joined = match whole.is_empty() {
            true => Names::new(),
            false => over(all, &GROUP, |versions| versions.joined(other)),
        };

        for user in removed(&USER).union(&whole).copied() {
            let own_group = groups.contains(user) && group_changed.contains(user);
            let all_of_it = whole.contains(user);
            let lives =
                user_changed.contains(user) || all_of_it && (own_group || joined.contains(user));
            if lives {
                self.users.insert(user);
            }
            if all_of_it && lives {
                self.whole[side].insert(user);
                self.groups.insert(user);
            } else if all_of_it {
                self.gone[side].insert(user);
            }
        }

        let passwd = all.iter().filter(|v| v.file == File::Passwd);
        let users = passwd.flat_map(|v| v.named(other).map(move |named| (v, named)));
        let live = users
            .filter(|(v, (key, _, name))| v.changed_by(other, key) || self.users.contains(name));
        let primary: Names<'a> = live
            .map(|(_, (_, line, _))| records::field(line, 3))
            .collect();
        let group = all.iter().filter(|v| v.file == File::Group);
        let used = group.flat_map(|v| v.named(other));
        let used = used.filter(|(_, line, _)| primary.contains(records::field(line, 2)));
        let used: Names<'a> = used.map(|(_, _, name)| name).collect();
        let lives = |group: &&&[u8]| group_changed.contains(**group) || used.contains(**group);
        self.groups.extend(groups.iter().filter(lives));
    }

    /// Whether all records of this name are there, whoever removed one.
    pub(super) fn keeps(&self, file: File, name: &[u8]) -> bool {
        match file {
            File::Passwd | File::Shadow => self.users.contains(name),
            File::Subuid | File::Subgid => self.whole.iter().any(|users| users.contains(name)),
            File::Group | File::Gshadow => self.groups.contains(name),
        }
    }

    /// A list of members, with those who came back and without those who are gone; `lists` is what each side has.
    pub(super) fn members(&self, merged: Vec<u8>, lists: [Line<'_>; 2]) -> Vec<u8> {
        if self.whole.iter().chain(&self.gone).all(Names::is_empty) {
            return merged;
        }
        let lists: [Names<'_>; 2] = lists.map(|list| records::names(list).collect());
        let gone = |name: &[u8]| {
            let by = |side: usize| self.gone[side].contains(name) && !lists[side].contains(name);
            by(0) || by(1)
        };
        let back = |side: usize| {
            let there = lists[1 - side].iter().copied();
            there.filter(move |name| self.whole[side].contains(name))
        };
        let mut all: Vec<_> = records::names(&merged).filter(|name| !gone(name)).collect();
        let here: Names<'_> = all.iter().copied().collect();
        let back: Names<'_> = back(0).chain(back(1)).collect();
        all.extend(back.difference(&here));
        all.join(&b',')
    }
}
