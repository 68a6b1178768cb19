//! Password files of two servers made one, record by record, against the last version that both had.
//!
//! A whole file that wins loses the password that was changed on the other server. Here a record changed on one side
//! only is taken from that side, and one changed on both is merged field by field, members of groups one by one; where
//! both changed the same field the winner's stays and the loser's is told.
//!
//! The winner is the same for all who merge, so the text is, too: it does not matter who does it.

use std::{collections::BTreeMap, fmt};

/// Which file (passwd(5), group(5), shadow(5), gshadow(5), subuid(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// `/etc/passwd`
    Passwd,
    /// `/etc/shadow`
    Shadow,
    /// `/etc/group`
    Group,
    /// `/etc/gshadow`
    Gshadow,
    /// `/etc/subuid`
    Subuid,
    /// `/etc/subgid`
    Subgid,
}

impl File {
    /// All, in the order in which they are put in place: a name before who refers to it, the password last.
    pub const IN_ORDER: [Self; 6] = [
        Self::Group,
        Self::Gshadow,
        Self::Subuid,
        Self::Subgid,
        Self::Passwd,
        Self::Shadow,
    ];

    /// The one of this file name.
    pub fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"passwd" => Self::Passwd,
            b"shadow" => Self::Shadow,
            b"group" => Self::Group,
            b"gshadow" => Self::Gshadow,
            b"subuid" => Self::Subuid,
            b"subgid" => Self::Subgid,
            _ => return None,
        })
    }

    /// Fields that are lists of names, by their place.
    fn lists(self) -> &'static [usize] {
        match self {
            Self::Group => &[3],
            Self::Gshadow => &[2, 3],
            Self::Passwd | Self::Shadow | Self::Subuid | Self::Subgid => &[],
        }
    }

    /// The field with a number that belongs to one record only.
    fn number(self) -> Option<usize> {
        match self {
            Self::Passwd | Self::Group => Some(2),
            Self::Shadow | Self::Gshadow | Self::Subuid | Self::Subgid => None,
        }
    }
}

/// Something an operator should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Both changed this field (counted from 0) of this record: the winner's is in the text.
    Field(String, usize),
    /// One removed this record, the other changed it: it is in the text.
    RemovedAndChanged(String),
    /// These two records have the same number.
    SameNumber(String, String),
}

/// Why the text must not be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody would have user id 0.
    NoRoot,
    /// Fewer than half the records of one of the sides would be left.
    TooFew {
        /// Records before.
        before: usize,
        /// Records after.
        after: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoot => f.write_str("nobody would have user id 0"),
            Self::TooFew { before, after } => {
                write!(f, "only {after} of {before} records would be left")
            }
        }
    }
}

impl std::error::Error for Refused {}

/// A merged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The text.
    pub text: Vec<u8>,
    /// What to look at.
    pub notes: Vec<Note>,
}

type Line<'a> = &'a [u8];

/// Records by key, and the keys in order of the text.
struct Records<'a> {
    order: Vec<Line<'a>>,
    lines: BTreeMap<Line<'a>, Line<'a>>,
}

impl<'a> Records<'a> {
    fn read(file: File, text: &'a [u8]) -> Self {
        let (mut order, mut lines) = (Vec::new(), BTreeMap::new());
        for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let key = key(file, line);
            if lines.insert(key, line).is_none() {
                order.push(key);
            }
        }
        Self { order, lines }
    }
}

/// What a record is known by: its name; a range of ids, a comment and a line of NIS are known by themselves.
fn key(file: File, line: Line<'_>) -> Line<'_> {
    let whole = matches!(file, File::Subuid | File::Subgid)
        || matches!(line.first(), Some(b'#' | b'+' | b'-'));
    match line.iter().position(|b| *b == b':') {
        Some(colon) if !whole => &line[..colon],
        Some(_) | None => line,
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// One file of two servers. `base` is the last version that both had; empty if none is known.
pub fn merge(file: File, base: &[u8], winner: &[u8], loser: &[u8]) -> Result<Merged, Refused> {
    let [base, won, lost] = [base, winner, loser].map(|text| Records::read(file, text));
    let mut notes = Vec::new();
    let mut merged: Vec<Vec<u8>> = Vec::new();
    let only_lost = lost.order.iter().filter(|k| !won.lines.contains_key(*k));
    for key in won.order.iter().chain(only_lost) {
        let of = |records: &Records<'_>| records.lines.get(key).map(|l| l.to_vec());
        let line = match (of(&base), of(&won), of(&lost)) {
            (base, Some(ours), Some(theirs)) => {
                Some(fields(file, base.as_deref(), &ours, &theirs, &mut notes))
            }
            (None, one, other) => one.or(other),
            (Some(base), Some(one), None) | (Some(base), None, Some(one)) => {
                let changed = one != base;
                if changed {
                    notes.push(Note::RemovedAndChanged(text(key)));
                }
                changed.then_some(one)
            }
            (Some(_), None, None) => None,
        };
        merged.extend(line);
    }
    check(file, &merged, won.order.len().max(lost.order.len()))?;
    notes.extend(same_numbers(file, &merged));
    let mut text = merged.join(&b'\n');
    text.push(b'\n');
    Ok(Merged { text, notes })
}

/// A record that both have, field by field.
fn fields(
    file: File,
    base: Option<&[u8]>,
    ours: &[u8],
    theirs: &[u8],
    notes: &mut Vec<Note>,
) -> Vec<u8> {
    let split =
        |line: &[u8]| -> Vec<Vec<u8>> { line.split(|b| *b == b':').map(<[u8]>::to_vec).collect() };
    let (us, them) = (split(ours), split(theirs));
    let base = base.map(split).filter(|b| b.len() == us.len());
    if us.len() != them.len() || ours == theirs {
        return ours.to_vec();
    }
    let name = text(&us[0]);
    let field = |i: usize| {
        let before = base.as_ref().map(|b| &b[i]);
        if us[i] == them[i] || before == Some(&them[i]) {
            us[i].clone()
        } else if before == Some(&us[i]) {
            them[i].clone()
        } else if file.lists().contains(&i) {
            members(before.map_or(&[][..], |b| b), &us[i], &them[i])
        } else {
            notes.push(Note::Field(name.clone(), i));
            us[i].clone()
        }
    };
    let merged: Vec<_> = (0..us.len()).map(field).collect();
    merged.join(&b':')
}

/// A list of names: who was added on either side is in it, who was removed on either side is not.
fn members(base: &[u8], ours: &[u8], theirs: &[u8]) -> Vec<u8> {
    let names = |list: &'_ [u8]| -> Vec<Vec<u8>> {
        let names = list.split(|b| *b == b',').filter(|n| !n.is_empty());
        names.map(<[u8]>::to_vec).collect()
    };
    let [base, us, them] = [base, ours, theirs].map(names);
    let stays =
        |name: &&Vec<u8>| !base.contains(name) || (us.contains(name) && them.contains(name));
    let new = them.iter().filter(|name| !us.contains(name));
    let merged: Vec<_> = us.iter().chain(new).filter(stays).cloned().collect();
    merged.join(&b',')
}

fn check(file: File, merged: &[Vec<u8>], before: usize) -> Result<(), Refused> {
    let after = merged.len();
    if after * 2 < before {
        return Err(Refused::TooFew { before, after });
    }
    let root = |line: &Vec<u8>| line.split(|b| *b == b':').nth(2) == Some(b"0");
    if file == File::Passwd && !merged.iter().any(root) {
        return Err(Refused::NoRoot);
    }
    Ok(())
}

fn same_numbers(file: File, merged: &[Vec<u8>]) -> Vec<Note> {
    let Some(place) = file.number() else {
        return Vec::new();
    };
    let mut first = BTreeMap::new();
    let mut notes = Vec::new();
    for line in merged {
        let fields: Vec<_> = line.split(|b| *b == b':').collect();
        let Some(number) = fields.get(place).filter(|n| !n.is_empty()) else {
            continue;
        };
        let name = text(fields[0]);
        match first.get(*number) {
            Some(other) => notes.push(Note::SameNumber(String::clone(other), name)),
            None => {
                first.insert(*number, name);
            }
        }
    }
    notes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
    const SHADOW: &str =
        "root:*:1:0:99999:7:::\nann:$y$a:1:0:99999:7:::\nben:$y$b:1:0:99999:7:::\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:ann,ben\n";

    fn merged(file: File, base: &str, winner: &str, loser: &str) -> (String, Vec<Note>) {
        let m = merge(file, base.as_bytes(), winner.as_bytes(), loser.as_bytes()).unwrap();
        (String::from_utf8(m.text).unwrap(), m.notes)
    }

    #[test]
    fn a_password_changed_on_each_of_two_servers_keeps_both() {
        let ours = SHADOW.replace("$y$a:1", "$y$A:2");
        let theirs = SHADOW.replace("$y$b:1", "$y$B:3");
        let (text, notes) = merged(File::Shadow, SHADOW, &ours, &theirs);
        assert!(
            text.contains("ann:$y$A:2:") && text.contains("ben:$y$B:3:"),
            "{text}"
        );
        assert_eq!(notes, []);
    }

    #[test]
    fn a_password_changed_twice_is_the_winners_and_told() {
        let ours = SHADOW.replace("$y$a", "$y$A");
        let theirs = SHADOW.replace("$y$a", "$y$Z");
        let (text, notes) = merged(File::Shadow, SHADOW, &ours, &theirs);
        assert!(text.contains("ann:$y$A:"));
        assert_eq!(notes, [Note::Field("ann".into(), 1)]);
    }

    #[test]
    fn users_added_and_removed_on_either_side() {
        let ours = format!("{PASSWD}carl:x:1001:1001::/home/carl:/bin/sh\n");
        let theirs = PASSWD.replace(
            "ann:x:1000:1000::/home/ann:/bin/sh\n",
            "dora:x:1002:1002::/home/dora:/bin/sh\n",
        );
        let (text, notes) = merged(File::Passwd, PASSWD, &ours, &theirs);
        let names: Vec<_> = text.lines().map(|l| l.split(':').next().unwrap()).collect();
        assert_eq!(names, ["root", "carl", "dora"]);
        assert_eq!(notes, []);
    }

    #[test]
    fn two_new_users_with_one_number_are_told() {
        let ours = format!("{PASSWD}carl:x:1001:1001::/home/carl:/bin/sh\n");
        let theirs = format!("{PASSWD}dora:x:1001:1001::/home/dora:/bin/sh\n");
        let (text, notes) = merged(File::Passwd, PASSWD, &ours, &theirs);
        assert_eq!(text.lines().count(), 4);
        assert_eq!(notes, [Note::SameNumber("carl".into(), "dora".into())]);
    }

    #[test]
    fn members_of_a_group_come_and_go_one_by_one() {
        let ours = GROUP.replace("ann,ben", "ann,ben,carl");
        let theirs = GROUP.replace("ann,ben", "ben,dora");
        let (text, notes) = merged(File::Group, GROUP, &ours, &theirs);
        assert!(text.contains("wheel:x:10:ben,carl,dora\n"), "{text}");
        assert_eq!(notes, []);
    }

    #[test]
    fn a_record_removed_here_and_changed_there_stays_and_is_told() {
        let ours = PASSWD.replace("ann:x:1000:1000::/home/ann:/bin/sh\n", "");
        let theirs = PASSWD.replace("ann:/bin/sh", "ann:/bin/zsh");
        let (text, notes) = merged(File::Passwd, PASSWD, &ours, &theirs);
        assert!(text.contains("/bin/zsh"));
        assert_eq!(notes, [Note::RemovedAndChanged("ann".into())]);
    }

    #[test]
    fn without_a_common_version_nothing_is_taken_for_removed() {
        let ours = format!("{PASSWD}carl:x:1001:1001::/home/carl:/bin/sh\n");
        let theirs = format!("{PASSWD}dora:x:1002:1002::/home/dora:/bin/sh\n");
        let (text, _) = merged(File::Passwd, "", &ours, &theirs);
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_text_without_root_or_with_few_records_is_refused() {
        let merge = |base: &str, ours: &str, theirs: &str| {
            merge(
                File::Passwd,
                base.as_bytes(),
                ours.as_bytes(),
                theirs.as_bytes(),
            )
        };
        let rootless = PASSWD.replace("root:x:0:0:root:/root:/bin/sh\n", "");
        assert_eq!(merge(PASSWD, PASSWD, &rootless), Err(Refused::NoRoot));
        let many: String = (0..10).map(|i| format!("u{i}:x:{i}:0:::\n")).collect();
        let few: String = many.lines().take(3).map(|l| format!("{l}\n")).collect();
        assert_eq!(
            merge(&many, &many, &few),
            Err(Refused::TooFew {
                before: 10,
                after: 3
            })
        );
        assert_eq!(merge("", "", ""), Err(Refused::NoRoot));
    }

    #[test]
    fn comments_and_lines_of_nis_are_kept_as_they_are() {
        let ours = format!("# local\n{PASSWD}+::::::\n");
        let (text, _) = merged(File::Passwd, PASSWD, &ours, PASSWD);
        assert_eq!(text, ours);
    }

    proptest! {
        /// Each server edits users of its own: afterwards every edit of both is there.
        #[test]
        fn no_edit_of_different_records_is_lost(
            ours in proptest::collection::btree_map(0..20usize, 0..1000u32, 0..20),
            theirs in proptest::collection::btree_map(20..40usize, 0..1000u32, 0..20),
        ) {
            let base: Vec<String> = (0..40).map(|i| format!("u{i}:old:1:0:99999:7:::")).collect();
            let edit = |edits: &BTreeMap<usize, u32>| {
                let mut lines = base.clone();
                edits.iter().for_each(|(i, password)| lines[*i] = format!("u{i}:{password}:2:0:99999:7:::"));
                lines.join("\n") + "\n"
            };
            let all: BTreeMap<_, _> = ours.iter().chain(&theirs).map(|(i, p)| (*i, *p)).collect();
            let common = base.join("\n") + "\n";
            let (text, notes) = merged(File::Shadow, &common, &edit(&ours), &edit(&theirs));
            prop_assert_eq!(text, edit(&all));
            prop_assert_eq!(notes, vec![]);
        }

        #[test]
        fn any_text_is_merged_or_refused(base: Vec<u8>, ours: Vec<u8>, theirs: Vec<u8>, which in 0..6usize) {
            let _ = merge(File::IN_ORDER[which], &base, &ours, &theirs);
        }
    }
}
