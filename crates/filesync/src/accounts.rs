//! Password files, merged record by record.
//!
//! A whole file that wins loses the password that was changed on the other server. Here each record is taken from the
//! side that changed it last, as its [`History`] tells; one that both changed is merged field by field against the last
//! version that both had, members of groups one by one; where both changed the same field the winner's stays and the
//! loser's is told.
//!
//! The winner is the same for all who merge, and so is the history: it does not matter who does it.

mod history;

pub use history::History;

use crate::{
    entry::{Author, Digest, Entry, Kind},
    version::Relation,
};
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

    /// How many fields a record has.
    fn width(self) -> usize {
        match self {
            Self::Passwd => 7,
            Self::Shadow => 9,
            Self::Group | Self::Gshadow => 4,
            Self::Subuid | Self::Subgid => 3,
        }
    }

    /// Fields that are numbers, by their place.
    fn numbers(self) -> &'static [usize] {
        match self {
            Self::Passwd => &[2, 3],
            Self::Group => &[2],
            Self::Subuid | Self::Subgid => &[1, 2],
            Self::Shadow | Self::Gshadow => &[],
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

impl Note {
    /// Somebody's change is not in the text.
    pub fn loses(&self) -> bool {
        match self {
            Self::Field(..) => true,
            Self::RemovedAndChanged(_) | Self::SameNumber(..) => false,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name, field) => write!(
                f,
                "field {} of {name} was changed on both servers: the later file's is taken, the other file is kept aside",
                field + 1
            ),
            Self::RemovedAndChanged(name) => {
                write!(
                    f,
                    "{name} was removed on one server and changed on the other: it stays"
                )
            }
            Self::SameNumber(one, other) => {
                write!(
                    f,
                    "{one} and {other} have the same number: give one of them another"
                )
            }
        }
    }
}

/// Why the text must not be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody would have user id 0.
    NoRoot,
    /// This line, counted from 1, is none of such a file.
    Line {
        /// Which.
        line: usize,
        /// How so.
        what: &'static str,
    },
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
            Self::Line { line, what } => write!(f, "line {line} {what}"),
            Self::TooFew { before, after } => {
                write!(f, "only {after} of {before} records would be left")
            }
        }
    }
}

impl std::error::Error for Refused {}

type Line<'a> = &'a [u8];

/// Records by key, and the keys in order of the text.
#[derive(Default)]
struct Records<'a> {
    order: Vec<Line<'a>>,
    lines: BTreeMap<Line<'a>, Line<'a>>,
}

impl<'a> Records<'a> {
    fn read(file: File, text: &'a [u8]) -> Result<Self, Refused> {
        let (mut order, mut lines) = (Vec::new(), BTreeMap::new());
        let numbered = text.split(|b| *b == b'\n').enumerate();
        for (i, line) in numbered.filter(|(_, l)| !l.is_empty()) {
            let wrong = |what| Refused::Line { line: i + 1, what };
            let whole = is_whole(line);
            if !whole {
                well_formed(file, line).map_err(wrong)?;
            }
            let key = key(file, line);
            if lines.insert(key, line).is_none() {
                order.push(key);
            } else if !whole && key != line {
                return Err(wrong("is a second record of the same name"));
            }
        }
        Ok(Self { order, lines })
    }
}

/// A comment, or a line of NIS: known by itself, and all of it.
fn is_whole(line: Line<'_>) -> bool {
    matches!(line.first(), Some(b'#' | b'+' | b'-'))
}

fn well_formed(file: File, line: Line<'_>) -> Result<(), &'static str> {
    let fields: Vec<_> = line.split(|b| *b == b':').collect();
    let number = |place: &usize| {
        let field = fields.get(*place).copied().unwrap_or_default();
        !field.is_empty() && field.iter().all(u8::is_ascii_digit)
    };
    if fields.len() != file.width() {
        Err("has not the number of fields that such a file has")
    } else if fields[0].is_empty() {
        Err("has no name")
    } else if line.iter().any(|b| *b == 0 || *b == b'\r') {
        Err("has bytes that no such file has")
    } else if !file.numbers().iter().all(number) {
        Err("has no number where one must be")
    } else {
        Ok(())
    }
}

/// What a record is known by: its name; a range of ids, a comment and a line of NIS are known by themselves.
fn key(file: File, line: Line<'_>) -> Line<'_> {
    let whole = matches!(file, File::Subuid | File::Subgid) || is_whole(line);
    match line.iter().position(|b| *b == b':') {
        Some(colon) if !whole => &line[..colon],
        Some(_) | None => line,
    }
}

/// The last version that both have in them, of those that were kept: what was changed since, either changed.
pub fn common<'a>(
    kept: impl IntoIterator<Item = &'a Entry>,
    here: &Entry,
    there: &Entry,
) -> Option<&'a Entry> {
    let has = |entry: &Entry, old: &Entry| {
        let relation = entry.vector.relation(&old.vector);
        matches!(relation, Relation::Newer | Relation::Equal)
    };
    let both = kept
        .into_iter()
        .filter(|old| has(here, old) && has(there, old));
    both.max_by(|a, b| a.rank.cmp(&b.rank))
}

/// Whether a text may take the place of another, which had so many records; `few`: whatever is missing.
pub fn may_stand(file: File, text: &[u8], before: usize, few: bool) -> Result<(), Refused> {
    let records = Records::read(file, text)?;
    let lines: Vec<_> = records.lines.values().map(|l| l.to_vec()).collect();
    check(file, &lines, if few { 0 } else { before })
}

/// How many records a text has, whatever they are.
pub fn count(text: &[u8]) -> usize {
    text.split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .count()
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// One of two versions.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// What is known of it.
    pub entry: &'a Entry,
    /// Its text.
    pub text: &'a [u8],
    /// Where its records are from.
    pub history: &'a History,
}

/// A merged file.
struct Merged {
    text: Vec<u8>,
    notes: Vec<Note>,
    /// Of the records that are one side's.
    history: History,
}

/// How a file of two servers is merged.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// Which file.
    pub file: File,
    /// The last version that both had; empty if none is known.
    pub base: &'a [u8],
    /// However few records are left, an operator said that it is right.
    pub few: bool,
}

fn merge(
    How { file, base, few }: How<'_>,
    winner: &Side<'_>,
    loser: &Side<'_>,
    digest: impl Fn(&[u8]) -> Digest,
) -> Result<Merged, Refused> {
    let won = Records::read(file, winner.text)?;
    let lost = Records::read(file, loser.text)?;
    // A base that cannot be read is no help.
    let base = Records::read(file, base).unwrap_or_default();
    let mut notes = Vec::new();
    let mut history = History::default();
    // What is new goes before the lines of NIS, which would hide it.
    let (mut merged, mut nis): (Vec<Vec<u8>>, Vec<Vec<u8>>) = Default::default();
    let only_lost = lost.order.iter().filter(|k| !won.lines.contains_key(*k));
    for key in won.order.iter().chain(only_lost) {
        let event = |side: &Side<'_>| side.history.of(key, side.entry);
        let (us, them) = (event(winner), event(loser));
        let knows = |side: &Side<'_>, event| history::Event::is_in(event, &side.entry.vector);
        let before = base.lines.get(key);
        let one = |line: &Line<'_>, event| Some((line.to_vec(), Some(event)));
        let line = match (won.lines.get(key), lost.lines.get(key)) {
            (Some(ours), Some(theirs)) if ours == theirs => one(ours, us.max(them)),
            (Some(ours), Some(theirs)) => match (knows(loser, &us), knows(winner, &them)) {
                (true, false) => one(theirs, them),
                (false, true) => one(ours, us),
                _ => {
                    let line = fields(file, before.copied(), ours, theirs, &mut notes);
                    let event = match () {
                        () if line == *ours => Some(us),
                        () if line == *theirs => Some(them),
                        () => None,
                    };
                    Some((line, event))
                }
            },
            (Some(line), None) if !knows(loser, &us) => one(line, us),
            (None, Some(line)) if !knows(winner, &them) => one(line, them),
            _ => None,
        };
        let Some((line, event)) = line else { continue };
        if before.is_some() && !(won.lines.contains_key(key) && lost.lines.contains_key(key)) {
            notes.push(Note::RemovedAndChanged(text(key)));
        }
        if let Some(event) = event {
            history.put(key, digest(&line), event);
        }
        match key.first() {
            Some(b'+' | b'-') => nis.push(line),
            _ => merged.push(line),
        }
    }
    merged.extend(nis);
    let before = won.order.len().max(lost.order.len());
    check(file, &merged, if few { 0 } else { before })?;
    let whole = |records: &Records<'_>| -> Vec<Vec<u8>> {
        let lines = records.order.iter().filter_map(|k| records.lines.get(k));
        lines.map(|l| l.to_vec()).collect()
    };
    let known = same_numbers(file, &whole(&base));
    let new = same_numbers(file, &merged).into_iter();
    notes.extend(new.filter(|note| !known.contains(note)));
    let mut text = merged.join(&b'\n');
    text.push(b'\n');
    Ok(Merged {
        text,
        notes,
        history,
    })
}

/// What is to be there of a file that was changed on two servers which did not know of each other's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What is known of it then.
    pub entry: Entry,
    /// Where its records are from.
    pub history: History,
    /// Its text.
    pub text: Vec<u8>,
    /// What to look at.
    pub notes: Vec<Note>,
}

/// Settles that. Whoever comes first makes a new version that has both in it, which all others take; where nothing is
/// left of the version that loses, the one that wins is enough, as for any other file.
pub fn settle(
    how: How<'_>,
    here: &Side<'_>,
    there: &Side<'_>,
    author: &mut Author,
    nanos: u64,
    digest: impl Fn(&[u8]) -> Digest,
) -> Result<Settled, Refused> {
    let rank = |side: &Side<'_>| (side.entry.rank.clone(), side.entry.node.clone());
    let stays = rank(here) > rank(there);
    let (winner, loser) = if stays { (here, there) } else { (there, here) };
    let merged = merge(how, winner, loser, &digest)?;
    let Merged { text, notes, .. } = merged;
    let entry = match (&winner.entry.node, &loser.entry.node) {
        (Some(_), _) if !stays && text == there.text => {
            let mut joined = there.entry.clone();
            joined.vector.join(&here.entry.vector);
            joined
        }
        (Some(node), Some(lost)) => {
            let mut node = node.clone();
            node.kind = Kind::File {
                size: text.len() as u64,
                digest: digest(&text),
            };
            if text == loser.text {
                node.mtime = lost.mtime;
            } else if text != winner.text {
                node.mtime = i64::try_from(nanos).unwrap_or(i64::MAX);
            }
            author.merge(here.entry, there.entry, node, nanos)
        }
        _ => winner.entry.clone(),
    };
    let history = merged.history.follow(how.file, &text, &entry, digest)?;
    Ok(Settled {
        entry,
        text,
        history,
        notes,
    })
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
    use crate::version::Replica;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
    const SHADOW: &str =
        "root:*:1:0:99999:7:::\nann:$y$a:1:0:99999:7:::\nben:$y$b:1:0:99999:7:::\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:ann,ben\n";

    fn digest(line: &[u8]) -> Digest {
        let mut sum = [0u8; 32];
        for (i, b) in line.iter().enumerate() {
            sum[i % 32] = sum[i % 32].wrapping_mul(31).wrapping_add(*b);
        }
        Digest(sum)
    }

    /// `base` was everywhere, then each side changed it.
    fn of_base(file: File, base: &[u8], winner: &[u8], loser: &[u8]) -> Result<Merged, Refused> {
        let author = |server: &str| Author {
            replica: Replica {
                server: server.parse().unwrap(),
                incarnation: 1,
            },
            count: 0,
            held: false,
            unit: 1,
            uncertain: false,
        };
        let before = author("a").change(None, None, 1);
        let old = History::default().follow(file, base, &before, digest);
        let old = old.unwrap_or_default();
        let [ours, theirs] = [("b", winner), ("c", loser)].map(|(server, text)| {
            let entry = author(server).change(Some(&before), None, 2);
            let history = old.follow(file, text, &entry, digest).unwrap_or_default();
            (entry, text, history)
        });
        let [winner, loser] = [&ours, &theirs].map(|(entry, text, history)| Side {
            entry,
            text,
            history,
        });
        let few = false;
        merge(How { file, base, few }, &winner, &loser, digest)
    }

    fn merged(file: File, base: &str, winner: &str, loser: &str) -> (String, Vec<Note>) {
        let m = of_base(file, base.as_bytes(), winner.as_bytes(), loser.as_bytes()).unwrap();
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
            of_base(
                File::Passwd,
                base.as_bytes(),
                ours.as_bytes(),
                theirs.as_bytes(),
            )
            .map(|m| m.text)
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
            let _ = of_base(File::IN_ORDER[which], &base, &ours, &theirs);
        }
    }
}
