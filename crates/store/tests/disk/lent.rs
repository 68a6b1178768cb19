//! What a run itself put in place, moved or gave other metadata is not read for the sake of that.

use crate::common::{LIMIT, Open, Store, fast, later, path};
use filesync::{LENT, Proof, Stat};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};
use store::{Look, Summary, look};

/// Two with the same large file, which both have looked at.
fn alike() -> (tempfile::TempDir, Store, Store) {
    let dir = fast();
    let alpha = Store::new(dir.path(), "alpha");
    let beta = Store::new(dir.path(), "beta");
    alpha.write("a", vec![7; 2 << 20]);
    beta.write("stays", "");
    pass(&alpha, &beta);
    beta.look();
    (dir, alpha, beta)
}

/// What is new at alpha comes to beta.
fn pass(alpha: &Store, beta: &Store) -> bool {
    alpha.look();
    beta.look();
    beta.open().pull(&alpha.open()).unwrap().is_complete()
}

fn look_at(open: &Open, now: u64) -> Summary {
    let how = Look {
        now,
        held: false,
        unit: 100_000_000,
        excluded: &|_, _| false,
        may_be_empty: false,
        limit: LIMIT,
    };
    look(&open.set, &open.index, &how).unwrap()
}

fn much_later() -> u64 {
    later() + LENT.unsigned_abs() + 1_000_000_000
}

fn read(store: &Store, now: u64) -> (u64, u64) {
    let looked = look_at(&store.open(), now);
    (looked.changed, looked.counts.read)
}

#[test]
fn a_large_file_that_came_is_read_again_only_after_a_while() {
    let (_dir, alpha, beta) = alike();
    for contents in [8, 9] {
        alpha.write("a", vec![contents; 2 << 20]);
        assert!(pass(&alpha, &beta));
        assert_eq!(read(&beta, later()), (0, 0));
    }
    assert_eq!(read(&beta, much_later()), (0, 1));
    assert!(pass(&alpha, &beta));
    alpha.write("a", vec![10; 2 << 20]);
    assert!(pass(&alpha, &beta));
    beta.write("a", vec![11; 2 << 20]);
    assert_eq!(read(&beta, later()), (1, 1), "an edit is seen at once");
}

#[test]
fn what_was_moved_is_read_again_only_after_a_while() {
    let (_dir, alpha, beta) = alike();
    fs::rename(alpha.at("a"), alpha.at("b")).unwrap();
    assert!(pass(&alpha, &beta));
    assert_eq!(read(&beta, later()), (0, 0));
    fs::rename(alpha.at("b"), alpha.at("c")).unwrap();
    assert!(pass(&alpha, &beta), "once more");
    assert_eq!(read(&beta, later()), (0, 0));
    assert_eq!(read(&beta, much_later()), (0, 1));
    assert_eq!(read(&beta, much_later()), (0, 0), "once");
}

#[test]
fn what_was_given_another_mode_is_read_again_only_after_a_while() {
    let (_dir, alpha, beta) = alike();
    for mode in [0o640, 0o600] {
        fs::set_permissions(alpha.at("a"), fs::Permissions::from_mode(mode)).unwrap();
        assert!(pass(&alpha, &beta));
        assert_eq!(fs::metadata(beta.at("a")).unwrap().mode() & 0o777, mode);
        assert_eq!(read(&beta, later()), (0, 0));
    }
    assert_eq!(read(&beta, much_later()), (0, 1));
}

#[test]
fn a_change_in_between_is_found_later_and_nothing_takes_its_place_before() {
    let (_dir, alpha, beta) = alike();
    fs::write(beta.at("a"), vec![8; 2 << 20]).unwrap();
    let meta = fs::metadata(beta.at("a")).unwrap();
    let nanos = |seconds: i64, nanos: i64| seconds * 1_000_000_000 + nanos;
    let stat = Stat {
        size: meta.size(),
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        device: meta.dev(),
        inode: meta.ino(),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
    };
    // As if it had been changed, its time put back, in the very moment in which a run moved it.
    let proof = Proof::lend(None, stat, i64::try_from(later()).unwrap());
    let prove = |batch: &mut store::Batch<'_>| batch.prove(&path("a"), proof);
    beta.open().index.write(prove).unwrap();
    assert_eq!(read(&beta, later()), (0, 0), "not seen yet");

    alpha.write("a", vec![9; 2 << 20]);
    assert!(!pass(&alpha, &beta));
    assert_eq!(fs::read(beta.at("a")).unwrap()[0], 8);
    fs::remove_file(alpha.at("a")).unwrap();
    alpha.write("b", "");
    assert!(!pass(&alpha, &beta));
    assert_eq!(fs::read(beta.at("a")).unwrap()[0], 8);

    let changed = read(&beta, much_later()).0;
    assert_eq!(changed, 1, "an edit like any other");
}
