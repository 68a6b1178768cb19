//! All six files of several servers: accounts are made, changed and removed on each as the system's programs do it, and
//! odd lines are written by hand. In whatever order servers meet, an account is in all files or in none.

use super::{author, digest, node};
use filesync::{
    Author, Entry, Node, Relation,
    accounts::{self, File, History, How, Pair, Side},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SERVERS: usize = 3;
const USERS: usize = 4;
const ODD: [&str; 7] = ["", "# by hand", "#", "   ", "oops", "cut:x", "+::::::"];

#[derive(Clone, Debug)]
enum Edit {
    Add(usize),
    Remove(usize),
    Shell(usize),
    Password(usize),
    Join(usize),
    Leave(usize),
    Comment(usize),
    Administrator(usize),
    Odd(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let user = 0..USERS;
    prop_oneof![
        user.clone().prop_map(Edit::Add),
        user.clone().prop_map(Edit::Remove),
        user.clone().prop_map(Edit::Shell),
        user.clone().prop_map(Edit::Password),
        user.clone().prop_map(Edit::Join),
        user.clone().prop_map(Edit::Leave),
        user.clone().prop_map(Edit::Comment),
        user.prop_map(Edit::Administrator),
        (0..6usize, 0..ODD.len()).prop_map(|(file, line)| Edit::Odd(file, line)),
    ]
}

type Texts = BTreeMap<File, String>;

fn start() -> Texts {
    let mut texts = Texts::new();
    for i in 0..12 {
        // So many more that removals are never too many.
        let lines = [
            (File::Passwd, format!("sys{i}:x:{i}:{i}::/:/bin/sh\n")),
            (File::Shadow, format!("sys{i}:*:1:0:99999:7:::\n")),
            (File::Group, format!("sys{i}:x:{i}:\n")),
            (File::Gshadow, format!("sys{i}:!::\n")),
            (File::Subuid, format!("sys{i}:{}:10\n", 900_000 + i * 10)),
            (File::Subgid, format!("sys{i}:{}:10\n", 900_000 + i * 10)),
        ];
        for (file, line) in lines {
            *texts.entry(file).or_default() += &line;
        }
    }
    *texts.get_mut(&File::Group).unwrap() += "team:x:100:\n";
    *texts.get_mut(&File::Gshadow).unwrap() += "team:!::\n";
    for user in [0, 1] {
        apply(&mut texts, &Edit::Add(user), user as u64);
    }
    texts
}

/// Whose record it is, if it is one.
fn owner(file: File, line: &str) -> Option<&str> {
    let width = match file {
        File::Passwd => 7,
        File::Shadow => 9,
        File::Group | File::Gshadow => 4,
        File::Subuid | File::Subgid => 3,
    };
    let fields: Vec<_> = line.split(':').collect();
    (fields.len() == width && !line.starts_with('+')).then(|| fields[0])
}

fn has(texts: &Texts, file: File, name: &str) -> bool {
    let mut owners = texts[&file].lines().filter_map(|line| owner(file, line));
    owners.any(|owner| owner == name)
}

/// Another field of the record of this name, if there is one.
fn set(texts: &mut Texts, file: File, name: &str, place: usize, to: impl Fn(&str) -> String) {
    let lines = texts[&file].lines().map(|line| {
        let mut fields: Vec<_> = line.split(':').map(str::to_owned).collect();
        if fields[0] == name && fields.len() > place {
            fields[place] = to(&fields[place]);
        }
        fields.join(":") + "\n"
    });
    let text = lines.collect();
    texts.insert(file, text);
}

fn without(list: &str, name: &str) -> String {
    let names = list.split(',').filter(|n| !n.is_empty() && *n != name);
    names.collect::<Vec<_>>().join(",")
}

fn with(list: &str, name: &str) -> String {
    let list = without(list, name);
    if list.is_empty() {
        name.into()
    } else {
        format!("{list},{name}")
    }
}

fn next_range(text: &str) -> u64 {
    let end = |line: &str| {
        let mut fields = line.split(':').skip(1).map(|f| f.parse::<u64>());
        Some(fields.next()?.ok()? + fields.next()?.ok()?)
    };
    let ends = text.lines().filter_map(end);
    ends.filter(|end| *end < 900_000).max().unwrap_or(100_000)
}

fn apply(texts: &mut Texts, edit: &Edit, now: u64) {
    let name = |user: &usize| format!("u{user}");
    let exists = |texts: &Texts, user: &usize| has(texts, File::Passwd, &name(user));
    match edit {
        Edit::Add(user) if !exists(texts, user) => {
            let (name, id) = (name(user), 1000 + now);
            let ranges = [File::Subuid, File::Subgid].map(|file| next_range(&texts[&file]));
            for (file, line) in [
                (File::Passwd, format!("{name}:x:{id}:{id}::/:/bin/sh\n")),
                (File::Shadow, format!("{name}:made{now}:1:0:99999:7:::\n")),
                (File::Group, format!("{name}:x:{id}:\n")),
                (File::Gshadow, format!("{name}:!::\n")),
                (File::Subuid, format!("{name}:{}:65536\n", ranges[0])),
                (File::Subgid, format!("{name}:{}:65536\n", ranges[1])),
            ] {
                *texts.get_mut(&file).unwrap() += &line;
            }
        }
        Edit::Remove(user) if exists(texts, user) => {
            let start = format!("{}:", name(user));
            for text in texts.values_mut() {
                let lines = text.lines().filter(|line| !line.starts_with(&start));
                *text = lines.map(|line| format!("{line}\n")).collect();
            }
            let gone = |list: &str| without(list, &name(user));
            set(texts, File::Group, "team", 3, gone);
            set(texts, File::Gshadow, "team", 2, gone);
            set(texts, File::Gshadow, "team", 3, gone);
        }
        Edit::Shell(user) => set(texts, File::Passwd, &name(user), 6, |_| {
            format!("/bin/{now}")
        }),
        Edit::Password(user) => set(texts, File::Shadow, &name(user), 1, |_| format!("p{now}")),
        Edit::Comment(user) => set(texts, File::Passwd, &name(user), 4, |_| format!("c{now}")),
        Edit::Join(user) if exists(texts, user) => {
            set(texts, File::Group, "team", 3, |list| {
                with(list, &name(user))
            });
            set(texts, File::Gshadow, "team", 3, |list| {
                with(list, &name(user))
            });
        }
        Edit::Leave(user) => {
            set(texts, File::Group, "team", 3, |list| {
                without(list, &name(user))
            });
            set(texts, File::Gshadow, "team", 3, |list| {
                without(list, &name(user))
            });
        }
        Edit::Administrator(user) => {
            let list = |list: &str| with(list, "sys1");
            set(texts, File::Gshadow, &name(user), 2, list);
        }
        Edit::Odd(file, line) => {
            let text = texts.get_mut(&File::IN_ORDER[*file]).unwrap();
            *text += &format!("{}\n", ODD[*line]);
        }
        Edit::Add(_) | Edit::Remove(_) | Edit::Join(_) => {}
    }
}

#[derive(Clone)]
struct Version {
    entry: Entry,
    text: String,
    history: History,
}

#[derive(Clone)]
struct Server {
    author: Author,
    files: BTreeMap<File, Version>,
    kept: BTreeMap<File, Vec<(Entry, String)>>,
}

fn file_node(text: &str, now: u64) -> Node {
    node(text.as_bytes(), now)
}

fn side(version: &Version) -> Side<'_> {
    Side {
        entry: &version.entry,
        text: version.text.as_bytes(),
        history: &version.history,
    }
}

impl Server {
    fn texts(&self) -> Texts {
        let texts = self.files.iter();
        texts
            .map(|(file, version)| (*file, version.text.clone()))
            .collect()
    }

    fn keep(&mut self) {
        for (file, version) in &self.files {
            let kept = self.kept.entry(*file).or_default();
            if !kept.iter().any(|(entry, _)| *entry == version.entry) {
                kept.push((version.entry.clone(), version.text.clone()));
            }
        }
    }

    fn edit(&mut self, edits: &[Edit], now: u64) {
        let mut texts = self.texts();
        edits.iter().for_each(|edit| apply(&mut texts, edit, now));
        for (file, text) in texts {
            let version = self.files.get_mut(&file).unwrap();
            if text != version.text {
                let node = file_node(&text, now);
                let entry = self.author.change(Some(&version.entry), Some(node), now);
                version.history = version
                    .history
                    .follow(file, text.as_bytes(), &entry, digest);
                (version.entry, version.text) = (entry, text);
            }
        }
        self.keep();
    }

    /// As syncd does.
    fn pull(&mut self, other: &Self, now: u64) {
        let pairs = self.files.iter().map(|(file, here)| {
            let there = &other.files[file];
            let kept = &self.kept[file];
            let entries = kept.iter().map(|(entry, _)| entry);
            let base = accounts::common(entries, &here.entry, &there.entry);
            let base = base.and_then(|base| kept.iter().find(|(entry, _)| entry == base));
            Pair {
                file: *file,
                base: base.map_or(b"", |(_, text)| text.as_bytes()),
                here: side(here),
                there: side(there),
            }
        });
        let pairs: Vec<_> = pairs.collect();
        let mut taken = Vec::new();
        if accounts::crossed(pairs.iter().map(|p| (p.here.entry, p.there.entry))) {
            let settled = accounts::settle(How::default(), &pairs, &mut self.author, now, digest);
            for (pair, settled) in pairs.iter().zip(settled.unwrap()) {
                let Some(settled) = settled else { continue };
                let version = Version {
                    entry: settled.entry,
                    text: String::from_utf8(settled.text).unwrap(),
                    history: settled.history,
                };
                taken.push((pair.file, version));
            }
        } else {
            for pair in &pairs {
                if pair.here.entry.vector.relation(&pair.there.entry.vector) == Relation::Older {
                    taken.push((pair.file, other.files[&pair.file].clone()));
                }
            }
        }
        self.files.extend(taken);
        self.keep();
    }
}

fn servers() -> Vec<Server> {
    let mut first = Server {
        author: author(SERVERS),
        files: BTreeMap::new(),
        kept: BTreeMap::new(),
    };
    for (file, text) in start() {
        let entry = first.author.change(None, Some(file_node(&text, 1)), 1);
        let history = History::default().follow(file, text.as_bytes(), &entry, digest);
        first.files.insert(
            file,
            Version {
                entry,
                text,
                history,
            },
        );
    }
    first.keep();
    let server = |i| Server {
        author: author(i),
        ..first.clone()
    };
    (0..SERVERS).map(server).collect()
}

/// Who has a record in each file; ranges only of those users who come and go.
fn names(texts: &Texts, file: File) -> BTreeSet<String> {
    let users = (0..USERS).map(|user| format!("u{user}"));
    users.filter(|user| has(texts, file, user)).collect()
}

/// An account is in all files or in none, nobody is a member who is no user, and no ranges overlap.
fn assert_whole(texts: &Texts) {
    let users = names(texts, File::Passwd);
    for file in texts.keys() {
        assert_eq!(names(texts, *file), users, "{file:?}: {texts:#?}");
    }
    for (file, place) in [(File::Group, 3), (File::Gshadow, 3)] {
        let team = texts[&file].lines().find(|line| line.starts_with("team:"));
        let list = team.unwrap().split(':').nth(place).unwrap();
        for member in list.split(',').filter(|name| !name.is_empty()) {
            assert!(users.contains(member), "{member} in {file:?}: {texts:#?}");
        }
    }
    for file in [File::Subuid, File::Subgid] {
        let range = |line: &str| {
            let owner = owner(file, line)?.to_owned();
            let mut fields = line.split(':').skip(1).map(|f| f.parse::<u64>());
            let start = fields.next()?.ok()?;
            Some((start, start + fields.next()?.ok()?, owner))
        };
        let mut ranges: Vec<_> = texts[&file].lines().filter_map(range).collect();
        ranges.sort();
        for (one, next) in ranges.iter().zip(ranges.iter().skip(1)) {
            assert!(one.1 <= next.0 || one.2 == next.2, "{file:?}: {ranges:?}");
        }
    }
}

/// Each user's own group has the number of that user's.
fn assert_groups_fit(texts: &Texts) {
    for user in names(texts, File::Passwd) {
        let id = |file: File, place: usize| {
            let mut lines = texts[&file].lines();
            let line = lines.find(|line| owner(file, line) == Some(&user));
            line.unwrap().split(':').nth(place).unwrap().to_owned()
        };
        let (gid, group) = (id(File::Passwd, 3), id(File::Group, 2));
        assert_eq!(gid, group, "{user}: {texts:#?}");
    }
}

/// How often each line is there.
fn lines(text: &str) -> BTreeMap<&str, usize> {
    let mut lines = BTreeMap::new();
    text.lines()
        .for_each(|line| *lines.entry(line).or_default() += 1);
    lines
}

/// What every side has of a line that was there before, or one side alone of one that is new, is there; records that
/// both changed, and lists and ranges, are merged and not the same line any more.
fn assert_nothing_lost(base: &Texts, sides: [&Texts; 2], merged: &Texts) {
    for (file, text) in merged {
        let was = lines(&base[file]);
        let [one, other, now] = [&sides[0][file], &sides[1][file], text].map(|text| lines(text));
        for line in one.keys().chain(other.keys()) {
            let count = |lines: &BTreeMap<&str, usize>| lines.get(line).copied().unwrap_or(0);
            let (before, here, there) = (count(&was), count(&one), count(&other));
            if here.min(there) < before {
                continue; // Somebody removed or changed it.
            }
            let Some(owner) = owner(*file, line) else {
                assert!(
                    count(&now) >= here.max(there),
                    "{line:?} of {file:?}: {text}"
                );
                continue;
            };
            let has_both = sides.iter().all(|texts| has(texts, *file, owner));
            let merges = here != there && has_both || matches!(file, File::Subuid | File::Subgid);
            let there_still = match merges {
                true => has(merged, *file, owner),
                false => count(&now) > 0,
            };
            assert!(there_still, "{line:?} of {file:?}: {text}");
        }
    }
}

fn meet(servers: &mut [Server], to: usize, from: usize, now: u64) {
    let other = servers[from].clone();
    servers[to].pull(&other, now);
}

/// Who has a line in the old form, too, must not take it for that when somebody knows of its removal.
#[test]
fn what_came_back_is_not_removed_again_by_who_knew_of_the_removal() {
    let mut servers = servers();
    servers[1].edit(&[Edit::Remove(0)], 20);
    servers[2].edit(&[Edit::Comment(0)], 23);
    meet(&mut servers, 2, 1, 24);
    servers[0].edit(&[Edit::Password(0)], 26);
    meet(&mut servers, 0, 2, 27);
    servers[1].edit(&[Edit::Add(2)], 29);
    meet(&mut servers, 1, 0, 30);
    assert_whole(&servers[1].texts());
    assert!(has(&servers[1].texts(), File::Subuid, "u0"));
}

/// What it was before it was changed came within a merge, and is in no former version here.
#[test]
fn a_user_who_came_within_a_merge_and_was_changed_is_not_taken_for_new() {
    let mut servers = servers();
    servers[1].edit(&[Edit::Add(3)], 13);
    meet(&mut servers, 0, 1, 16);
    servers[2].edit(&[Edit::Shell(0), Edit::Password(0)], 19);
    meet(&mut servers, 2, 0, 22);
    servers[2].edit(&[Edit::Password(3), Edit::Comment(3)], 25);
    servers[0].edit(&[Edit::Remove(3)], 28);
    meet(&mut servers, 2, 0, 31);
    assert_whole(&servers[2].texts());
    assert!(has(&servers[2].texts(), File::Subuid, "u3"));
}

#[test]
fn a_user_made_on_two_servers_is_one_sides_in_all_files() {
    let mut servers = servers();
    servers[0].edit(&[Edit::Add(2)], 20);
    servers[1].edit(&[Edit::Add(2)], 30);
    servers[0].edit(&[Edit::Comment(2)], 40);
    meet(&mut servers, 0, 1, 50);
    assert_groups_fit(&servers[0].texts());
    assert!(servers[0].texts()[&File::Group].contains("u2:x:1020:"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever two servers did: both come to the same, whoever merges, accounts are whole, and nothing that nobody
    /// removed is lost.
    #[test]
    fn two_servers_come_to_the_same_whole_accounts(
        here in proptest::collection::vec(edit(), 0..6),
        there in proptest::collection::vec(edit(), 0..6),
    ) {
        let mut both = servers();
        for (server, edits) in [&here, &there].into_iter().enumerate() {
            for (i, edit) in edits.iter().enumerate() {
                let now = 20 + 20 * i + 10 * server;
                both[server].edit(std::slice::from_ref(edit), now as u64);
            }
        }
        let before = [both[0].texts(), both[1].texts()];
        let mut mirrored = both.clone();
        let (one, other) = both.split_at_mut(1);
        one[0].pull(&other[0], 200);
        other[0].pull(&one[0], 200);
        let merged = one[0].texts();
        prop_assert_eq!(&merged, &other[0].texts());
        let (one, other) = mirrored.split_at_mut(1);
        other[0].pull(&one[0], 200);
        prop_assert_eq!(&merged, &other[0].texts(), "merged on the other server");
        assert_whole(&merged);
        assert_groups_fit(&merged);
        assert_nothing_lost(&start(), [&before[0], &before[1]], &merged);
    }

    /// In any order of edits and meetings.
    #[test]
    fn accounts_are_whole_in_any_order_of_meetings(
        steps in proptest::collection::vec((edit(), 0..SERVERS, proptest::option::of(0..SERVERS)), 1..30),
    ) {
        let mut servers = servers();
        let mut now = 10;
        for (edit, server, other) in &steps {
            now += 3;
            servers[*server].edit(std::slice::from_ref(edit), now);
            if let Some(other) = other {
                meet(&mut servers, *server, *other, now);
            }
            servers.iter().for_each(|server| assert_whole(&server.texts()));
        }
        for _ in 0..2 {
            for to in 0..SERVERS {
                (0..SERVERS).for_each(|from| meet(&mut servers, to, from, now + 3));
            }
        }
        for server in &servers {
            prop_assert_eq!(server.texts(), servers[0].texts());
            for (file, version) in &server.files {
                prop_assert_eq!(&version.entry, &servers[0].files[file].entry);
            }
        }
    }
}
