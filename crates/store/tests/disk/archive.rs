//! Former versions: kept once, as long as they are wanted, whatever ends a run.

use crate::common::{LIMIT, Open, Store, later, path};
use std::{fs, time::Duration};
use store::{Archive, Clock, Keep, Stored};

const DAY: u64 = 86_400 * 1_000_000_000;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

struct Kept {
    store: Store,
    archive: Archive,
}

impl Kept {
    fn new(dir: &std::path::Path) -> Self {
        let store = Store::new(dir, "alpha");
        let archive = Archive::open(&store.state.join("kept")).unwrap();
        Self { store, archive }
    }

    /// Looks and keeps what is there.
    fn keep(&self, keep: Keep) -> Stored {
        self.keep_at(keep, later())
    }

    fn keep_at(&self, keep: Keep, now: u64) -> Stored {
        self.keep_by(keep, Clock { now, agrees: true })
    }

    fn keep_by(&self, keep: Keep, clock: Clock) -> Stored {
        let Open { set, index, .. } = self.store.open();
        store::look(
            &set,
            &index,
            &store::Look {
                now: clock.now,
                held: false,
                unit: 1,
                excluded: &|_, _| false,
                may_be_empty: true,
                limit: LIMIT,
            },
        )
        .unwrap();
        self.archive.keep(&set, &index, keep, clock).unwrap()
    }

    /// The contents of all versions of a file, the oldest first; none where it was removed.
    fn versions(&self, name: &str) -> Vec<Option<Vec<u8>>> {
        let versions = self.archive.of(&path(name)).unwrap();
        let contents = |version: store::Version| {
            let filesync::Kind::File { digest, .. } = version.entry.node?.kind else {
                panic!("no file");
            };
            let mut bytes = Vec::new();
            let piece = |part: &[u8]| {
                bytes.extend_from_slice(part);
                Ok(())
            };
            assert!(self.archive.read(&digest, piece).unwrap(), "it is here");
            Some(bytes)
        };
        versions.into_iter().map(contents).collect()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let all = self.versions(name).into_iter();
        all.map(|v| v.map_or("-".into(), |v| String::from_utf8(v).unwrap()))
            .collect()
    }
}

#[test]
fn so_many_former_versions_are_kept_and_the_one_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    for i in 0..6 {
        kept.store.write("a", format!("{i}"));
        assert_eq!(kept.keep(Keep::Versions(2)).versions, 1);
        assert_eq!(kept.keep(Keep::Versions(2)), Stored::default(), "once");
    }
    assert_eq!(kept.texts("a"), ["3", "4", "5"]);
    fs::remove_file(kept.store.at("a")).unwrap();
    kept.store.write("b", "not empty");
    kept.keep(Keep::Versions(2));
    assert_eq!(kept.texts("a"), ["4", "5", "-"]);
    assert_eq!(kept.archive.below(None).unwrap().len(), 2);
}

#[test]
fn versions_of_a_time_span_are_kept_and_what_was_removed_long_ago_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    let (start, keep) = (later(), Keep::For(Duration::from_secs(2 * 86_400)));
    for day in 0..6 {
        kept.store.write("a", format!("{day}"));
        kept.keep_at(keep, start + day * DAY);
    }
    // Replaced on day 4 and 3; what was replaced on day 2 is older than two days, and a moment.
    assert_eq!(kept.texts("a"), ["2", "3", "4", "5"]);
    // Nothing changes, and time does.
    for day in 6..=20 {
        kept.keep_at(keep, start + day * DAY);
    }
    assert_eq!(kept.texts("a"), ["5"]);
    fs::remove_file(kept.store.at("a")).unwrap();
    kept.store.write("b", "");
    kept.keep_at(Keep::Versions(9), start + 21 * DAY);
    assert_eq!(kept.texts("a"), ["5", "-"]);
    for day in 22..=120 {
        kept.keep_at(Keep::Versions(9), start + day * DAY);
    }
    assert!(kept.archive.of(&path("a")).unwrap().is_empty());
    assert_eq!(kept.texts("b"), [""]);
}

#[test]
fn a_clock_that_is_wrong_for_a_while_costs_no_version() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    let (start, keep) = (later(), Keep::For(Duration::from_secs(30 * 86_400)));
    let all = ["one", "two", "three"];
    for (day, text) in all.iter().enumerate() {
        kept.store.write("a", text);
        kept.keep_at(keep, start + day as u64 * DAY);
    }
    let year = 365 * DAY;
    // Ahead for a run, or for several; every now and then; behind.
    for now in [year, year + 3, year + DAY / 2, 3, year, 4, year] {
        kept.keep_at(keep, start + now);
    }
    kept.store.write("a", "four");
    kept.keep_at(keep, 5);
    assert_eq!(kept.texts("a"), ["one", "two", "three", "four"]);
    // The others disagree: nothing grows older, however long.
    for day in 0..60 {
        let now = start + year + day * DAY;
        let agrees = false;
        kept.keep_by(keep, Clock { now, agrees });
    }
    assert_eq!(kept.texts("a"), ["one", "two", "three", "four"]);
    // In the end what is old goes all the same.
    for day in 3..=80 {
        kept.keep_at(keep, start + day * DAY);
    }
    assert_eq!(kept.texts("a"), ["four"]);
}

#[test]
fn contents_are_there_once_and_go_with_the_last_version() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    let size = || fs::metadata(kept.store.state.join("kept")).unwrap().len();
    let large = noise(1, 4 << 20);
    kept.store.write("a", &large);
    kept.store.write("same", &large);
    kept.keep(Keep::Versions(30));
    let once = size();
    for i in 0..20u8 {
        kept.store.write("a", [&[i; 7][..], &large].concat());
        kept.keep(Keep::Versions(30));
    }
    // Each has one or two chunks of its own.
    assert!(size() < 3 * once, "{} {once}", size());
    let all = kept.versions("a");
    assert_eq!(all.len(), 21);
    assert!(all[0].as_ref() == Some(&large) && all[20].as_ref().unwrap()[7..] == large);
    // Other contents find the room of what is dropped.
    fs::remove_file(kept.store.at("same")).unwrap();
    for i in 0..12 {
        kept.store.write("a", noise(10 + i, 4 << 20));
        kept.keep(Keep::Versions(1));
    }
    assert!(size() < 8 * once, "{} {once}", size());
    assert_eq!(kept.versions("a").len(), 2);
    assert!(
        kept.versions("same")[0].as_ref() == Some(&large),
        "the other one's are still here"
    );
}

#[test]
fn a_file_that_changed_since_the_look_is_kept_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    kept.store.write("a", "seen");
    kept.store.write("b", "seen");
    let open = kept.store.open();
    open.look().unwrap();
    kept.store.write("a", "changed");
    let stored = kept
        .archive
        .keep(
            &open.set,
            &open.index,
            Keep::Versions(5),
            Clock {
                now: later(),
                agrees: true,
            },
        )
        .unwrap();
    drop(open);
    assert_eq!((stored.versions, stored.failed.count), (1, 1), "{stored:?}");
    kept.keep(Keep::Versions(5));
    assert_eq!(
        (kept.texts("a"), kept.texts("b")),
        (vec!["changed".into()], vec!["seen".into()])
    );
}

#[test]
fn an_index_made_anew_leaves_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    for text in ["1", "2"] {
        kept.store.write("a", text);
        kept.keep(Keep::Versions(5));
    }
    fs::remove_file(kept.store.state.join("index")).unwrap();
    fs::remove_file(kept.store.at(store::MARKER)).unwrap();
    kept.keep(Keep::Versions(5));
    kept.store.write("a", "3");
    kept.keep(Keep::Versions(5));
    let mut texts = kept.texts("a");
    texts.dedup();
    assert_eq!(texts, ["1", "2", "3"]);
}

#[test]
fn what_could_not_be_read_is_kept_by_the_next_even_if_it_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    kept.store.write("a", "1");
    kept.store.write("b", "1");
    let open = kept.store.open();
    open.look().unwrap();
    let away = dir.path().join("away");
    fs::rename(kept.store.at("a"), &away).unwrap();
    let keep = Keep::Versions(5);
    let stored = kept
        .archive
        .keep(
            &open.set,
            &open.index,
            keep,
            Clock {
                now: later(),
                agrees: true,
            },
        )
        .unwrap();
    drop(open);
    assert_eq!((stored.versions, stored.failed.count), (1, 1), "{stored:?}");
    fs::rename(&away, kept.store.at("a")).unwrap();
    assert_eq!(kept.keep(keep).versions, 1);
    assert_eq!(kept.texts("a"), ["1"]);
}

#[test]
fn the_last_version_that_another_server_has_is_kept_however_old() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path());
    for i in 0..6 {
        kept.store.write("a", format!("{i}"));
        kept.keep(Keep::Versions(1));
        if i == 2 {
            let open = kept.store.open();
            let beta = filesync::Replica {
                server: "beta".parse().unwrap(),
                incarnation: 1,
            };
            let mut ledger = open.index.ledger().unwrap();
            ledger.acknowledged(&beta, open.index.state().unwrap().sequence, 1);
            open.index.write(|batch| batch.ledger(&ledger)).unwrap();
        }
    }
    assert_eq!(kept.texts("a"), ["2", "4", "5"]);
}
