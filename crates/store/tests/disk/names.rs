//! Directories whose names need not be read again; in memory, where every Linux has a file system that tells of names.

use crate::common::{Random, Store, fast, path};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
};
use store::Summary;

/// A tree that was looked at until nothing is left to find out.
fn settled() -> (tempfile::TempDir, Store) {
    let dir = fast();
    let store = Store::new(dir.path(), "alpha");
    fs::create_dir_all(store.at("d/e")).unwrap();
    for name in ["d/e/z", "d/x", "d/y", "f"] {
        store.write(name, "1");
    }
    store.look();
    store.look();
    (dir, store)
}

fn told(looked: &Summary) -> (u64, u64, u64) {
    (looked.changed, looked.removed, looked.counts.listed)
}

#[test]
fn names_are_read_only_where_one_came_or_went() {
    let (_dir, store) = settled();
    assert_eq!(told(&store.look()), (0, 0, 0));
    store.write("d/e/new", "1");
    assert_eq!(told(&store.look()), (1, 0, 1));
    assert_eq!(told(&store.look()), (0, 0, 1), "now all are known");
    assert_eq!(told(&store.look()), (0, 0, 0));
    fs::remove_file(store.at("d/x")).unwrap();
    assert_eq!(told(&store.look()), (0, 1, 1));
    let file = File::options().write(true).open(store.at("d/e/z")).unwrap();
    file.write_all_at(b"2", 0).unwrap();
    assert_eq!(told(&store.look()), (1, 0, 0), "and each is looked at");
    fs::rename(store.at("d/e"), store.at("d/moved")).unwrap();
    assert_eq!(told(&store.look()), (3, 3, 2));
}

#[test]
fn a_name_that_is_excluded_no_more_is_found_though_nothing_changed() {
    let (_dir, store) = settled();
    store.write("d/left out", "1");
    let but = |p: &filesync::Path, _: bool| p.as_bytes() == b"d/left out";
    for _ in 0..3 {
        assert_eq!(store.open().look_but(&but).unwrap().changed, 0);
    }
    assert_eq!(store.look().changed, 1);
}

#[test]
fn what_comes_to_be_excluded_where_all_is_known_is_neither_changed_nor_removed() {
    let (_dir, store) = settled();
    store.write("d/y", "other");
    store.write("d/e/z", "other");
    fs::remove_file(store.at("d/x")).unwrap();
    let but = |p: &filesync::Path, _: bool| {
        [&b"d/e"[..], b"d/x", b"d/y"].contains(&p.as_bytes()) || p.is_below(&path("d/e"))
    };
    let looked = store.open().look_but(&but).unwrap();
    assert_eq!((looked.changed, looked.removed), (0, 0));
    let looked = store.look();
    assert_eq!((looked.changed, looked.removed), (2, 1));
}

/// Something happens to a tree, at one of a few names or in one of a few directories.
fn change(store: &Store, random: &mut Random) {
    let place = |random: &mut Random| {
        let folder = random.of(&["", "a/", "b/", "a/c/", "b/c/"]);
        store.at(&format!(
            "{folder}{}",
            random.of(&["a", "b", "c", "x", "y"])
        ))
    };
    let at = place(random);
    // Most of it is not possible at most moments, which is as well.
    let _ = match random.below(9) {
        0 => fs::create_dir(&at),
        1 | 2 => fs::write(&at, random.below(9).to_string()),
        3 => fs::remove_file(&at),
        4 => fs::remove_dir_all(&at),
        5 => fs::rename(&at, place(random)),
        6 => fs::hard_link(&at, place(random)),
        7 => symlink(random.below(9).to_string(), &at),
        _ => fs::set_permissions(
            &at,
            fs::Permissions::from_mode(0o700 + random.below(8) as u32),
        ),
    };
}

#[test]
fn a_tree_that_was_looked_at_often_is_known_like_one_that_never_was() {
    let dir = fast();
    let store = Store::new(dir.path(), "alpha");
    let mut random = Random(11);
    let mut spared = 0;
    store.write("stays", "1");
    for round in 0..300 {
        for _ in 0..random.below(4) {
            change(&store, &mut random);
        }
        let looked = store.look();
        spared += u64::from(looked.counts.listed == 0);
        let fresh = Store {
            name: "alpha",
            root: store.root.clone(),
            state: dir.path().join(format!("fresh-{round}")),
            joins: false,
        };
        fs::create_dir(&fresh.state).unwrap();
        fresh.look();
        assert_eq!(store.open().known(), fresh.open().known(), "round {round}");
        fs::remove_dir_all(&fresh.state).unwrap();
    }
    assert!(spared > 30, "{spared}: names are known now and then");
}
