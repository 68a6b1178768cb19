//! The index on its own.

use crate::common::{Random, later, path, present};
use filesync::{Author, Digest, Entry, Kind, Ledger, Node, Replica, Tree};
use protocol::owner::Foreign;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};
use store::{Calls, Error, Index, Opened};

fn replica(incarnation: u64) -> Replica {
    Replica {
        server: "alpha".parse().unwrap(),
        incarnation,
    }
}

fn open(file: &std::path::Path, incarnation: u64) -> Opened {
    on_machine(1, file, incarnation)
}

fn on_machine(mac: u8, file: &std::path::Path, incarnation: u64) -> Opened {
    let new = || replica(incarnation);
    let note = file.with_extension("note");
    Index::open(file, &note, &present("alpha", mac), new, Calls::unlimited()).unwrap()
}

fn node(content: u8) -> Node {
    let kind = Kind::File {
        size: 1,
        digest: Digest([content; 32]),
    };
    Node {
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 5,
        attributes: BTreeMap::new(),
    }
}

fn author(count: u64) -> Author {
    Author {
        replica: replica(1),
        count,
        held: false,
        unit: 1,
        uncertain: false,
        forgotten: None,
    }
}

fn entry(content: Option<u8>, count: u64) -> Entry {
    author(count - 1).change(None, content.map(node), 1)
}

/// All its tables tell the same.
fn consistent(index: &Index) {
    let rows: Vec<_> = index.rows().unwrap().map(Result::unwrap).collect();
    let state = index.state().unwrap();
    let live = rows.iter().filter(|(_, row)| row.entry.node.is_some());
    assert_eq!(state.live, live.count() as u64);
    let sequences: BTreeSet<_> = rows.iter().map(|(_, row)| row.sequence).collect();
    assert_eq!(sequences.len(), rows.len());
    assert!(sequences.last().is_none_or(|last| *last <= state.sequence));
    let since: Vec<_> = index.since(0).unwrap().map(Result::unwrap).collect();
    assert_eq!(since, rows);
    for (_, row) in &rows {
        let writer = index.writer().unwrap();
        assert!(row.entry.vector.count(&writer.replica) <= writer.count);
        if let Some(Node {
            kind: Kind::File { digest, .. },
            ..
        }) = &row.entry.node
        {
            let holder = index.reader().unwrap().holder(digest).unwrap();
            let held = index
                .row(&holder)
                .unwrap()
                .unwrap()
                .entry
                .node
                .unwrap()
                .kind;
            assert!(matches!(held, Kind::File { digest: d, .. } if d == *digest));
        }
    }
}

#[test]
fn what_was_committed_outlives_a_kill_at_any_moment() {
    const CHILD: &str = "STANDIN_STORE_CHILD";
    if let Some(file) = std::env::var_os(CHILD) {
        let index = open(file.as_ref(), 1).index;
        let mut count = index.state().unwrap().sequence;
        loop {
            let batch = |batch: &mut store::Batch<'_>| {
                for _ in 0..20 {
                    count += 1;
                    let name = format!("d/{}", count % 37);
                    let content = u8::try_from(count % 5).unwrap();
                    let content = (content > 0).then_some(content);
                    batch.note(&path(&name), &entry(content, count), None, count)?;
                }
                Ok(())
            };
            index.write(batch).unwrap();
            println!("count {count}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index");
    let mut random = Random(1);
    let mut last = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "index::what_was_committed_outlives_a_kill_at_any_moment",
            ])
            .env(CHILD, &file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let counts = lines.filter_map(|line| {
            let line = line.ok()?;
            line.split("count ").nth(1)?.trim().parse().ok()
        });
        let told: Vec<u64> = counts
            .take(1 + usize::try_from(random.below(5)).unwrap())
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let opened = open(&file, 2);
        assert!(!opened.new && opened.damaged.is_none(), "round {round}");
        let state = opened.index.state().unwrap();
        assert!(
            state.sequence >= *told.last().unwrap() && state.sequence > last,
            "round {round}"
        );
        assert_eq!(state.sequence % 20, 0, "a batch is whole or not there");
        last = state.sequence;
        consistent(&opened.index);
    }
}

#[test]
fn a_damaged_file_is_set_aside_and_a_new_incarnation_begins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index");
    let first = open(&file, 1);
    assert!(first.new && first.damaged.is_none());
    first
        .index
        .write(|batch| batch.note(&path("a"), &entry(Some(1), 1), None, 0))
        .unwrap();
    drop(first);
    let good = fs::read(&file).unwrap();
    let damages: [&dyn Fn() -> Vec<u8>; 3] = [&|| b"no index".repeat(1000), &Vec::new, &|| {
        good[..good.len() / 2].to_vec()
    }];
    for (n, damage) in damages.iter().enumerate() {
        fs::write(&file, damage()).unwrap();
        let opened = open(&file, 2 + n as u64);
        assert!(opened.new, "{n}");
        assert_eq!(fs::read(opened.damaged.unwrap()).unwrap(), damage(), "{n}");
        assert_eq!(opened.index.state().unwrap().replica, replica(2 + n as u64));
        assert_eq!(opened.index.rows().unwrap().count(), 0);
    }
    let again = open(&file, 9);
    assert!(!again.new);
    let (here, new) = (present("alpha", 1), || replica(1));
    let busy = Index::open(
        &file,
        &file.with_extension("note"),
        &here,
        new,
        Calls::unlimited(),
    )
    .map(drop);
    assert!(
        matches!(busy, Err(Error::Index(_))),
        "in use is no damage: {busy:?}"
    );
    assert!(file.exists());
}

#[test]
fn one_of_another_machine_is_set_aside_and_a_new_incarnation_begins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index");
    let first = on_machine(1, &file, 1);
    first
        .index
        .write(|batch| batch.note(&path("a"), &entry(Some(1), 1), None, 0))
        .unwrap();
    drop(first);
    let copied = on_machine(2, &file, 2);
    let (aside, why) = copied.foreign.unwrap();
    assert!(copied.new && copied.damaged.is_none());
    assert_eq!(aside, dir.path().join("index.foreign-1"));
    assert!(matches!(why, Foreign::Macs { .. }), "{why}");
    assert_eq!(copied.index.state().unwrap().replica, replica(2));
    assert_eq!(copied.index.rows().unwrap().count(), 0);
    drop(copied.index);
    let again = on_machine(2, &file, 3);
    assert!(!again.new && again.foreign.is_none());
    // What was set aside is as it was.
    let original = on_machine(1, &aside, 4);
    assert!(!original.new);
    assert_eq!(original.index.state().unwrap().replica, replica(1));
    assert_eq!(original.index.rows().unwrap().count(), 1);
}

#[test]
fn one_that_names_no_owner_is_adopted_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index");
    drop(on_machine(1, &file, 1));
    {
        let states = redb::TableDefinition::<&str, &[u8]>::new("state");
        let former = redb::Database::open(&file).unwrap();
        let tx = former.begin_write().unwrap();
        {
            let mut table = tx.open_table(states).unwrap();
            assert!(table.remove("owner").unwrap().is_some());
        }
        tx.commit().unwrap();
    }
    let adopted = on_machine(2, &file, 2);
    assert!(!adopted.new && adopted.foreign.is_none());
    assert_eq!(adopted.index.state().unwrap().replica, replica(1));
    drop(adopted);
    assert!(on_machine(1, &file, 3).foreign.is_some());
}

#[test]
fn rows_come_in_order_of_paths_and_by_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir.path().join("index"), 1).index;
    let names = ["a", "a/b", "a/b/c", "a!", "a-", "b"];
    index
        .write(|batch| {
            for (i, name) in names.iter().rev().enumerate() {
                let count = 1 + i as u64;
                batch.note(&path(name), &entry(Some(9), count), None, 0)?;
            }
            Ok(())
        })
        .unwrap();
    let listed = |after| -> Vec<_> {
        let rows = index.since(after).unwrap().map(Result::unwrap);
        rows.map(|(p, _)| p.to_string()).collect()
    };
    assert_eq!(listed(0), names);
    assert_eq!(listed(3), ["a", "a/b", "a/b/c"]);
    assert_eq!(listed(6), [""; 0]);
    let reader = index.reader().unwrap();
    assert_eq!(reader.live_below(&path("a")), [path("a/b"), path("a/b/c")]);
    assert_eq!(reader.holder(&Digest([9; 32])), Some(path("a")));
    assert_eq!(reader.holder(&Digest([8; 32])), None);
    // More than are sorted in memory.
    index
        .write(|batch| {
            (0..9000u64).try_for_each(|n| {
                batch.note(
                    &path(&format!("m/{n:05}")),
                    &entry(Some(7), 10 + n),
                    None,
                    0,
                )
            })
        })
        .unwrap();
    let many = listed(5);
    assert_eq!(many.len(), 9001);
    assert_eq!((many[0].as_str(), many[1].as_str()), ("a", "m/00000"));
    assert!(many[1..].is_sorted());
    consistent(&index);
}

#[test]
fn nothing_of_a_batch_that_fails_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir.path().join("index"), 1).index;
    let failed = index.write(|batch| {
        batch.note(&path("a"), &entry(Some(1), 1), None, 0)?;
        Err::<(), _>(Error::Version(None))
    });
    assert!(failed.is_err());
    assert_eq!(index.rows().unwrap().count(), 0);
    assert_eq!(index.state().unwrap().count, 0);
}

#[test]
fn tombstones_go_when_all_have_them_and_no_backup_is_older() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir.path().join("index"), 1).index;
    let others = ["beta".parse().unwrap()];
    let day = Duration::from_secs(86_400);
    let now = later();
    let old = now - 2 * u64::try_from(day.as_nanos()).unwrap();
    index
        .write(|batch| {
            batch.note(&path("live"), &entry(Some(1), 1), None, old)?;
            batch.note(&path("gone"), &entry(None, 2), None, old)?;
            batch.note(&path("young"), &entry(None, 3), None, now)?;
            batch.note(&path("untold"), &entry(None, 4), None, old)
        })
        .unwrap();
    let before = now - 2 * u64::try_from(day.as_nanos()).unwrap();
    assert_eq!(index.forget(&others, before, day).unwrap(), 0);
    let mut ledger = Ledger::default();
    let beta = Replica {
        server: "beta".parse().unwrap(),
        incarnation: 1,
    };
    ledger.acknowledged(&beta, 3, now);
    index.write(|batch| batch.ledger(&ledger)).unwrap();
    assert_eq!(index.forget(&others, now, day).unwrap(), 1);
    assert_eq!(index.row(&path("gone")).unwrap(), None);
    assert!(
        ["untold", "young"]
            .iter()
            .all(|p| index.row(&path(p)).unwrap().is_some())
    );
    consistent(&index);
}
