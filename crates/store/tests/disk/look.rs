//! From the disk to the index.

use crate::common::{LIMIT, Store, fast, is_root, later, path};
use filesync::{Kind, Node, guard::Doubt};
use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::atomic::{AtomicBool, Ordering},
};
use store::{Adopt, Calls, Error, Listing, Look, Set, Summary, look};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "alpha");
    (dir, store)
}

fn names(listing: &Listing) -> Vec<String> {
    listing.first.iter().map(|(p, _)| p.to_string()).collect()
}

#[test]
fn a_file_that_only_grows_counts_for_what_stood_still() {
    let (_dir, store) = store();
    store.write("log", "");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = fs::File::options()
                .append(true)
                .open(store.at("log"))
                .unwrap();
            for line in 0..5_000_000 {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                writeln!(log, "line {line}").unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        let mut growing = 0;
        while growing < 3 && !over.load(Ordering::Relaxed) {
            let counts = store.look().counts;
            assert_eq!(counts.busy.count, 0, "{counts:?}");
            growing += counts.growing.count;
            let open = store.open();
            let Kind::File { size, digest } = open.known()["log"].kind else {
                panic!("no file");
            };
            let mut there = fs::read(store.at("log")).unwrap();
            there.truncate(usize::try_from(size).unwrap());
            assert_eq!(blake3::hash(&there).as_bytes(), &digest.0);
        }
        over.store(true, Ordering::Relaxed);
        assert!(growing > 0);
    });
}

#[test]
fn contents_that_change_without_a_trace_are_told_and_are_nobodys_change() {
    let (_dir, store) = store();
    for name in ["rotten", "sound", "changed"] {
        store.write(name, name);
    }
    store.look();
    let open = store.open();
    let mut row = open.index.row(&path("rotten")).unwrap().unwrap();
    let file = fs::metadata(store.at("rotten")).unwrap();
    // As if it had been this when it was read: nothing but what is in it is another.
    let other = filesync::Digest([7; 32]);
    let node = row.entry.node.as_mut().unwrap();
    node.kind = Kind::File {
        size: file.len(),
        digest: other,
    };
    let write =
        |batch: &mut store::Batch<'_>| batch.note(&path("rotten"), &row.entry, row.proof, later());
    open.index.write(write).unwrap();
    store.write("changed", "since then");
    let verify = || {
        let rows = open.index.reader().unwrap().after(None, 10).unwrap();
        store::verify(open.set.dir(), rows)
    };
    let verified = verify();
    assert_eq!(verified.read, 2, "what changed is the next look's");
    assert_eq!(names(&verified.altered), ["rotten"]);
    assert!(!verified.is_fine());
    assert_eq!(open.look().unwrap().changed, 1);
    assert_eq!(
        open.known()["rotten"].kind,
        row.entry.node.as_ref().unwrap().kind
    );
    // Somebody says that it is right.
    fs::File::options()
        .write(true)
        .open(store.at("rotten"))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    assert_eq!(open.look().unwrap().changed, 1);
    assert!(verify().is_fine());
    let reader = open.index.reader().unwrap();
    let all: Vec<_> = reader
        .after(None, 10)
        .unwrap()
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(all, ["changed", "rotten", "sound"].map(path));
    assert_eq!(
        reader.after(Some(&path("changed")), 1).unwrap()[0].0,
        path("rotten")
    );
    assert_eq!(reader.after(Some(&path("sound")), 1).unwrap(), []);
}

#[test]
fn a_file_is_read_again_only_if_it_may_have_changed() {
    let (_dir, store) = store();
    store.write("a", "1");
    store.write("b", "1");
    let first = store.look();
    assert_eq!((first.changed, first.counts.read), (2, 2));
    let second = store.look();
    assert_eq!((second.changed, second.counts.read), (0, 0), "proven");
    let time = fs::metadata(store.at("a")).unwrap().modified().unwrap();
    store.write("a", "2");
    fs::File::options()
        .write(true)
        .open(store.at("a"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let third = store.look();
    assert_eq!(
        (third.changed, third.counts.read),
        (1, 1),
        "same size, same time"
    );
}

#[test]
fn what_was_looked_at_while_its_times_were_young_is_read_again() {
    let (_dir, store) = store();
    store.write("a", "1");
    let open = store.open();
    let at = fs::metadata(store.at("a")).unwrap();
    let young = (at.ctime() * 1_000_000_000 + at.ctime_nsec() + 1_000_000_000).unsigned_abs();
    let how = Look {
        now: young,
        held: false,
        unit: 1,
        excluded: &|_, _| false,
        may_be_empty: false,
        limit: LIMIT,
    };
    look(&open.set, &open.index, &how).unwrap();
    assert_eq!(look(&open.set, &open.index, &how).unwrap().counts.read, 1);
}

#[test]
fn a_root_that_is_gone_or_empty_removes_nothing() {
    let (dir, store) = store();
    store.write("a", "1");
    store.look();
    let known = store.open().known();
    let doubt = |result: Result<_, Error>| match result {
        Err(Error::Root { doubt, .. }) => Some(doubt),
        _ => None,
    };

    // As if the file system were not mounted.
    let mounted = dir.path().join("mounted");
    fs::rename(&store.root, &mounted).unwrap();
    fs::create_dir(&store.root).unwrap();
    assert_eq!(
        doubt(store.open_with(Calls::unlimited()).map(drop)),
        Some(Doubt::Marker)
    );
    assert_eq!(
        fs::read_dir(&store.root).unwrap().count(),
        0,
        "nothing is touched there"
    );
    fs::remove_dir(&store.root).unwrap();
    assert!(
        matches!(store.open_with(Calls::unlimited()), Err(Error::At { .. })),
        "no root"
    );
    fs::rename(&mounted, &store.root).unwrap();

    fs::rename(store.at("a"), dir.path().join("a")).unwrap();
    assert_eq!(doubt(store.open().look().map(drop)), Some(Doubt::Empty));
    assert_eq!(store.open().known(), known);
    let open = store.open();
    let how = Look {
        now: later(),
        held: false,
        unit: 1,
        excluded: &|_, _| false,
        may_be_empty: true,
        limit: LIMIT,
    };
    assert_eq!(
        look(&open.set, &open.index, &how).unwrap().removed,
        1,
        "unless it is meant"
    );
}

#[test]
fn another_replicas_root_is_taken_only_when_an_operator_says_so() {
    let (_dir, store) = store();
    store.write("a", "1");
    store.look();
    fs::write(store.at(store::MARKER), "gamma 9\n").unwrap();
    assert!(store.open_with(Calls::unlimited()).is_err());
    let index = store.index(Calls::unlimited()).unwrap();
    let adopt = |index: &store::Index| {
        let (root, state) = (&store.root, &store.state);
        Set::open(root, state, index, Adopt::Yes, Calls::unlimited())
    };
    let replaced = adopt(&index).err().unwrap();
    assert!(replaced.is_new_history(), "{replaced}");
    index.give_up().unwrap();
    drop(index);
    let index = store.index(Calls::unlimited()).unwrap();
    adopt(&index).unwrap();
    drop(index);
    assert_eq!(store.look().changed, 1, "nothing is known of what is there");
}

#[test]
fn what_cannot_be_read_is_not_removed() {
    if is_root() {
        return; // nothing is unreadable to root; the next test shows it otherwise
    }
    let (_dir, store) = store();
    fs::create_dir(store.at("d")).unwrap();
    store.write("d/x", "1");
    store.write("e", "1");
    store.look();
    fs::set_permissions(store.at("d"), fs::Permissions::from_mode(0o0)).unwrap();
    let looked = store.look();
    fs::set_permissions(store.at("d"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(looked.removed, 0);
    assert_eq!(names(&looked.counts.unreadable), ["d"]);
}

#[test]
fn what_has_more_attributes_than_can_be_kept_is_told_and_not_removed() {
    let dir = fast();
    let store = Store::new(dir.path(), "alpha");
    fs::create_dir(store.at("d")).unwrap();
    store.write("d/x", "1");
    store.look();
    let set = |n: u8| {
        let name = format!("user.{n}");
        rustix::fs::setxattr(
            store.at("d"),
            name,
            &[n; 60_000],
            rustix::fs::XattrFlags::empty(),
        )
    };
    if set(1).is_err() || set(2).is_err() {
        return; // a file system that holds no such thing cannot show it
    }
    let looked = store.look();
    assert_eq!((looked.changed, looked.removed), (0, 0));
    assert_eq!(names(&looked.counts.unreadable), ["d"]);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_busy_and_stays_as_known() {
    let (_dir, store) = store();
    store.write("a", vec![1; 32 << 20]);
    store.write("b", "1");
    store.look();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let begun = std::sync::Barrier::new(2);
    let looked = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let file = fs::File::options().write(true).open(store.at("a")).unwrap();
            let mut n = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                file.write_all_at(&n.to_le_bytes(), 0).unwrap();
                if n == 1 {
                    begun.wait();
                }
            }
        });
        let open = store.open();
        begun.wait();
        // A writer that had no processor in a whole look did not change it.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let looked = loop {
            let looked = open.look().unwrap();
            if looked.counts.busy.count > 0 || std::time::Instant::now() > end {
                break looked;
            }
        };
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
        looked
    });
    assert_eq!(names(&looked.counts.busy), ["a"]);
    assert_eq!((looked.changed, looked.removed), (0, 0));
    assert_eq!(store.look().changed, 1, "and later it is read");
}

/// Looks at a set with `y/1`, `y/2`, `z/1`, `m` and others, and does something each time the walk comes by `m`.
fn look_while(does: impl Fn(&Store)) -> (Summary, Vec<String>) {
    let (_dir, store) = store();
    for directory in ["a", "y", "z"] {
        fs::create_dir(store.at(directory)).unwrap();
    }
    for file in ["a/keep", "m", "other", "y/1", "y/2", "z/1"] {
        store.write(file, file);
    }
    store.look();
    let open = store.open();
    let now = later() - 10_000_000_000;
    let seen = open.look_at(now, &|path, _| {
        if path.as_bytes() == b"m" {
            does(&store);
        }
        false
    });
    let live = open.index.rows().unwrap().map(Result::unwrap);
    let live = live.filter(|(_, row)| row.entry.file().is_some());
    let live = live.map(|(path, _)| path.to_string());
    (seen.unwrap(), live.collect())
}

#[test]
fn what_is_moved_behind_a_walks_back_is_moved_and_not_removed() {
    let once = |from: &'static str, to: &'static str| {
        move |store: &Store| {
            let _ = fs::rename(store.at(from), store.at(to));
        }
    };
    let (seen, live) = look_while(once("y", "b"));
    assert_eq!(live, ["a/keep", "b/1", "b/2", "m", "other", "z/1"]);
    assert_eq!((seen.removed, seen.counts.busy.count), (3, 0));
    let (seen, live) = look_while(once("z/1", "a/1"));
    assert_eq!(live, ["a/1", "a/keep", "m", "other", "y/1", "y/2"]);
    assert_eq!((seen.removed, seen.counts.busy.count), (1, 0));
    // Into a directory that was not there when its place was read.
    let (_, live) = look_while(|store| {
        let _ = fs::create_dir(store.at("b"));
        let _ = fs::rename(store.at("y/1"), store.at("b/1"));
    });
    assert_eq!(live, ["a/keep", "b/1", "m", "other", "y/2", "z/1"]);
    // Out of the set, it is gone.
    let (seen, live) = look_while(|store| {
        let _ = fs::rename(store.at("y"), store.root.with_extension("elsewhere"));
    });
    assert_eq!(live, ["a/keep", "m", "other", "z/1"]);
    assert_eq!(seen.counts.busy.count, 0);
}

#[test]
fn where_each_walk_races_with_a_move_only_what_was_moved_last_is_left_for_the_next_look() {
    let turn = std::cell::Cell::new(0);
    let (seen, live) = look_while(|store| {
        let n = turn.replace(turn.get() + 1);
        let _ = fs::remove_file(store.at("other"));
        store.write(&format!("y/{}", n + 3), n.to_string());
        fs::rename(
            store.at(&format!("y/{}", n + 1)),
            store.at(&format!("a/{n}")),
        )
        .unwrap();
    });
    // The last one is believed to be where it was; each is known somewhere.
    let known =
        |n: &i32| [format!("a/{n}"), format!("y/{}", n + 1)].map(|name| live.contains(&name));
    for n in 0..turn.get() {
        assert_eq!(
            known(&n).iter().filter(|is| **is).count(),
            1,
            "{n}: {live:?}"
        );
    }
    let busy = names(&seen.counts.busy);
    assert!(
        !busy.is_empty() && busy.iter().all(|name| live.contains(name)),
        "{busy:?}"
    );
    assert!(!live.contains(&"other".to_owned()));
}

#[test]
fn what_comes_to_be_excluded_is_not_removed_anywhere() {
    let (_dir, store) = store();
    fs::create_dir(store.at("d")).unwrap();
    for name in ["a", "d/x", "e", "stays"] {
        store.write(name, "1");
    }
    store.look();
    let excluded = |p: &filesync::Path, directory: bool| {
        p.as_bytes() == b"a" || (p.as_bytes() == b"d" && directory)
    };
    let looked = store.open().look_but(&excluded).unwrap();
    assert_eq!((looked.changed, looked.removed), (0, 0));
    fs::remove_file(store.at("e")).unwrap();
    fs::remove_file(store.at("a")).unwrap();
    assert_eq!(store.open().look_but(&excluded).unwrap().removed, 1);
}

#[test]
fn standins_own_files_are_no_part_of_a_set() {
    let (_dir, store) = store();
    store.write("a", "1");
    store.look();
    store.write(".standin-stage/left", "half");
    store.look();
    assert_eq!(store.open().known().keys().collect::<Vec<_>>(), ["a"]);
    assert!(!store.at(".standin-stage/left").exists(), "swept");
}

#[test]
fn the_first_name_of_a_file_is_the_file_and_the_others_follow() {
    let (_dir, store) = store();
    fs::create_dir(store.at("d")).unwrap();
    store.write("d/m", "1");
    fs::hard_link(store.at("d/m"), store.at("z")).unwrap();
    fs::hard_link(store.at("d/m"), store.at("x")).unwrap();
    let kinds = || -> Vec<_> {
        let known = store.open().known();
        let first = |n: &Node| match &n.kind {
            Kind::HardLink { to } => format!("->{to}"),
            Kind::File { .. } => "file".into(),
            _ => String::new(),
        };
        known
            .iter()
            .map(|(p, n)| format!("{p} {}", first(n)))
            .collect()
    };
    store.look();
    assert_eq!(kinds(), ["d ", "d/m file", "x ->d/m", "z ->d/m"]);
    assert_eq!(store.look().counts.read, 0, "proven");
    fs::hard_link(store.at("z"), store.at("a")).unwrap();
    store.look();
    assert_eq!(kinds(), ["a file", "d ", "d/m ->a", "x ->a", "z ->a"]);
    fs::remove_file(store.at("a")).unwrap();
    fs::remove_file(store.at("d/m")).unwrap();
    fs::remove_file(store.at("z")).unwrap();
    store.look();
    assert_eq!(kinds(), ["d ", "x file"]);
}

#[test]
fn a_lost_index_is_another_replica_and_removes_nothing() {
    let (_dir, store) = store();
    store.write("a", "1");
    store.look();
    fs::remove_file(store.state.join("index")).unwrap();
    let open = store.open();
    let looked = open.look().unwrap();
    assert_eq!((looked.changed, looked.removed), (1, 0));
    assert_eq!(
        open.index.row(&path("a")).unwrap().unwrap().entry.rank.step,
        0
    );
}

/// The most memory that this process ever had, in KiB.
fn high_water() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_large_tree_is_looked_at_in_little_memory() {
    const CHILD: &str = "STANDIN_STORE_LOOK";
    if let Some(dir) = std::env::var_os(CHILD) {
        let store = Store::new(dir.as_ref(), "alpha");
        let first = store.look();
        let second = store.look();
        let live = store.open().index.state().unwrap().live;
        println!(
            "looked {} {} {live} {}",
            first.changed,
            second.changed + second.removed,
            high_water()
        );
        return;
    }
    let looked = |folders: u64| -> Vec<u64> {
        let dir = fast();
        let store = Store::new(dir.path(), "alpha");
        for folder in 0..folders {
            fs::create_dir(store.at(&format!("{folder}"))).unwrap();
            for file in 0..99 {
                let name = format!("{folder}/{file}");
                std::os::unix::fs::symlink("x", store.at(&name)).unwrap();
            }
        }
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "look::a_large_tree_is_looked_at_in_little_memory",
            ])
            .env(CHILD, dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8(child.stdout).unwrap();
        let line = text.split("looked ").nth(1).unwrap();
        line.lines()
            .next()
            .unwrap()
            .split(' ')
            .map(|n| n.parse().unwrap())
            .collect()
    };
    let (small, large) = (looked(10), looked(1000));
    assert_eq!(small[..3], [1000, 0, 1000]);
    assert_eq!(large[..3], [100_000, 0, 100_000], "over several batches");
    // The index keeps as much of its file in memory as it is allowed; nothing else grows.
    assert!(large[3] < small[3] + 40 * 1024, "{small:?} {large:?} KiB");
}
