//! Password files of several servers: users are made, changed and removed on each, servers meet in any order, and at the
//! end all have the same, with everybody's last password in it.
#![allow(clippy::unwrap_used, missing_docs)]

use filesync::{
    Author, Digest, Entry, Kind, Node, Relation, Replica,
    accounts::{self, File, History, How, Pair, Settled, Side},
};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[path = "accounts/database.rs"]
mod database;

const SERVERS: usize = 4;
/// Users that each server has for itself.
const OWN: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A new password, on this server.
    Change(usize, usize),
    Remove(usize, usize),
    Meet(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let server = 0..SERVERS;
    prop_oneof![
        4 => (server.clone(), 0..OWN).prop_map(|(s, u)| Step::Change(s, u)),
        1 => (server.clone(), 0..OWN).prop_map(|(s, u)| Step::Remove(s, u)),
        3 => (server.clone(), server).prop_map(|(a, b)| Step::Meet(a, b)),
    ]
}

/// No digest that anybody should use, and no two of these texts have the same.
fn digest(text: &[u8]) -> Digest {
    let mut sum = [0u8; 32];
    for (i, b) in text.iter().enumerate() {
        let place = i % 32;
        sum[place] = sum[place].wrapping_mul(31).wrapping_add(*b);
    }
    Digest(sum)
}

fn author(server: usize) -> Author {
    Author {
        replica: Replica {
            server: format!("s{server}").parse().unwrap(),
            incarnation: 1,
        },
        count: 0,
        held: false,
        unit: 10,
        uncertain: false,
        forgotten: None,
    }
}

fn node(text: &[u8], mtime: u64) -> Node {
    Node {
        kind: Kind::File {
            size: text.len() as u64,
            digest: digest(text),
        },
        mode: 0o600,
        uid: 0,
        gid: 42,
        mtime: mtime.into(),
        attributes: BTreeMap::new(),
    }
}

struct Server {
    author: Author,
    entry: Entry,
    text: Vec<u8>,
    history: History,
}

impl Server {
    fn side(&self) -> Side<'_> {
        Side {
            entry: &self.entry,
            text: &self.text,
            history: &self.history,
        }
    }

    fn edit(&mut self, user: &str, password: Option<&str>, now: u64) {
        let start = format!("{user}:");
        let text = String::from_utf8(self.text.clone()).unwrap();
        let mut lines: Vec<_> = text.lines().filter(|l| !l.starts_with(&start)).collect();
        let new = password.map(|p| format!("{user}:{p}:1:0:99999:7:::"));
        lines.extend(new.as_deref());
        let text = (lines.join("\n") + "\n").into_bytes();
        let entry = self
            .author
            .change(Some(&self.entry.clone()), Some(node(&text, now)), now);
        self.history = self.history.follow(File::Shadow, &text, &entry, digest);
        (self.entry, self.text) = (entry, text);
    }

    /// As syncd does: takes what is newer, and settles what neither knew.
    fn pull(&mut self, other: &Self, now: u64) -> Vec<accounts::Note> {
        match self.entry.vector.relation(&other.entry.vector) {
            Relation::Newer | Relation::Equal => Vec::new(),
            Relation::Older => {
                (self.entry, self.text) = (other.entry.clone(), other.text.clone());
                let sent = History::from_bytes(&other.history.to_bytes()).unwrap();
                assert_eq!(sent, other.history);
                self.history = sent;
                Vec::new()
            }
            Relation::Concurrent => {
                let mut author = self.author.clone();
                let (ours, theirs) = (self.side(), other.side());
                let pair = Pair {
                    file: File::Shadow,
                    base: b"",
                    here: ours,
                    there: theirs,
                };
                let how = How::default();
                let settled = accounts::settle(how, &[pair], &mut author, now, digest);
                let Some(Settled {
                    entry,
                    text,
                    history,
                    notes,
                    ..
                }) = settled.unwrap().remove(0)
                else {
                    return Vec::new();
                };
                assert_eq!(entry.node.as_ref().unwrap().kind, node(&text, 0).kind);
                self.author = author;
                (self.entry, self.text, self.history) = (entry, text, history);
                notes
            }
        }
    }
}

struct Cluster {
    servers: Vec<Server>,
    now: u64,
}

impl Cluster {
    fn new() -> Self {
        // So many more that removals are never too many.
        let system = (0..20).map(|i| format!("system{i}:*:1:0:99999:7:::\n"));
        let text = system.collect::<String>().into_bytes();
        let first = author(0).change(None, Some(node(&text, 1)), 1);
        let server = |i| Server {
            author: Author {
                count: 1,
                ..author(i)
            },
            entry: first.clone(),
            text: text.clone(),
            history: History::default().follow(File::Shadow, &text, &first, digest),
        };
        Self {
            servers: (0..SERVERS).map(server).collect(),
            now: 1,
        }
    }

    fn meet(&mut self, a: usize, b: usize) -> Vec<accounts::Note> {
        let mut notes = Vec::new();
        for (to, from) in [(a, b), (b, a)] {
            if to != from {
                let mut one = self.servers.remove(to);
                let place = from - usize::from(from > to);
                notes.extend(one.pull(&self.servers[place], self.now));
                self.servers.insert(to, one);
            }
        }
        if a != b {
            assert_eq!(self.servers[a].entry, self.servers[b].entry);
            assert_eq!(self.servers[a].text, self.servers[b].text);
        }
        notes
    }

    /// Carries out the steps with users of which `owner` tells whose they are; then everybody meets everybody.
    fn run(
        &mut self,
        steps: &[Step],
        user: impl Fn(usize, usize) -> String,
    ) -> (BTreeMap<String, String>, Vec<accounts::Note>) {
        let mut expected = BTreeMap::new();
        let mut notes = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            self.now += 3;
            match *step {
                Step::Change(server, which) => {
                    let (user, password) = (user(server, which), format!("p{i}"));
                    self.servers[server].edit(&user, Some(&password), self.now);
                    expected.insert(user, password);
                }
                Step::Remove(server, which) => {
                    let user = user(server, which);
                    self.servers[server].edit(&user, None, self.now);
                    expected.remove(&user);
                }
                Step::Meet(a, b) => notes.extend(self.meet(a, b)),
            }
        }
        for a in 0..SERVERS {
            for b in 0..a {
                notes.extend(self.meet(b, a));
            }
        }
        for a in 1..SERVERS {
            self.meet(0, a);
        }
        for server in &self.servers {
            assert_eq!(server.text, self.servers[0].text);
            assert_eq!(server.entry, self.servers[0].entry);
        }
        for (a, b) in (0..SERVERS).zip(1..SERVERS) {
            let before = self.servers[a].author.count;
            self.meet(a, b);
            assert_eq!(
                self.servers[a].author.count, before,
                "nothing is left to do"
            );
        }
        (expected, notes)
    }

    fn passwords(&self) -> BTreeMap<String, String> {
        let text = String::from_utf8(self.servers[0].text.clone()).unwrap();
        let fields = |line: &str| {
            let mut fields = line.split(':').map(str::to_owned);
            (fields.next().unwrap(), fields.next().unwrap())
        };
        let users = text.lines().map(fields);
        users
            .filter(|(user, _)| !user.starts_with("system"))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Each server has users of its own: whatever order they meet in, each user's last password is everywhere.
    #[test]
    fn every_password_is_everywhere_in_any_order_of_meetings(steps in proptest::collection::vec(step(), 1..60)) {
        let mut cluster = Cluster::new();
        let (expected, notes) = cluster.run(&steps, |server, which| format!("u{server}x{which}"));
        prop_assert_eq!(cluster.passwords(), expected);
        prop_assert!(!notes.iter().any(accounts::Note::loses), "{:?}", notes);
    }

    /// The same users on all servers: all come to the same, and what is there was written by somebody.
    #[test]
    fn users_changed_everywhere_come_to_the_same(steps in proptest::collection::vec(step(), 1..60)) {
        let mut cluster = Cluster::new();
        cluster.run(&steps, |_, which| format!("u{which}"));
        for (user, password) in cluster.passwords() {
            let written: usize = password.strip_prefix('p').unwrap().parse().unwrap();
            let by = matches!(steps[written], Step::Change(_, which) if user == format!("u{which}"));
            prop_assert!(by, "{} {}", user, password);
        }
    }
}
