//! Directories that were removed elsewhere and hold what is no part of the set.

use crate::common::{Open, Pulled, Store, later, path, tree};
use filesync::Path;
use std::{fs, os::unix::fs::PermissionsExt};
use store::{LeftOut, Summary, clear, held_by};

struct Rules;

impl LeftOut for Rules {
    fn excludes(&self, path: &Path, _: bool) -> bool {
        let name = path.as_bytes();
        name.ends_with(b".own") || self.perishes(path, false)
    }

    fn perishes(&self, path: &Path, _: bool) -> bool {
        path.as_bytes().ends_with(b".tmp")
    }
}

fn open(store: &Store) -> Open {
    let mut open = store.open();
    open.set.left_out = Box::new(Rules);
    open
}

fn look(store: &Store) -> Summary {
    let open = open(store);
    let excluded = |path: &Path, directory: bool| Rules.excludes(path, directory);
    let found = open.look_at(later(), &excluded).unwrap();
    clear(&open.set, &open.index, &found).unwrap();
    found
}

/// What is new at `from` comes to `to`.
fn pass(from: &Store, to: &Store) -> Pulled {
    look(from);
    look(to);
    open(to).pull(&open(from)).unwrap()
}

/// Both have `d`, `d/f` and `d/e/g`; beta has these files of its own, and alpha removes `d`.
fn removed(own: &[&str]) -> (tempfile::TempDir, Store, Store) {
    let dir = tempfile::tempdir().unwrap();
    let alpha = Store::new(dir.path(), "alpha");
    let beta = Store::new(dir.path(), "beta");
    fs::create_dir_all(alpha.at("d/e")).unwrap();
    for file in ["d/f", "d/e/g", "stays"] {
        alpha.write(file, file);
    }
    beta.write("stays too", "");
    for _ in 0..2 {
        assert!(pass(&alpha, &beta).is_complete() && pass(&beta, &alpha).is_complete());
    }
    own.iter().for_each(|file| beta.write(file, file));
    fs::remove_dir_all(alpha.at("d")).unwrap();
    (dir, alpha, beta)
}

fn left(pulled: &Pulled) -> Vec<(String, String)> {
    let all = pulled.applied.iter().flat_map(|a| &a.left.first);
    all.map(|(path, why)| (path.to_string(), why.clone()))
        .collect()
}

/// Nothing is new anywhere.
fn assert_settled(alpha: &Store, beta: &Store) {
    for (from, to) in [(alpha, beta), (beta, alpha)] {
        assert_eq!(look(to).changed, 0);
        let pulled = pass(from, to);
        assert_eq!((pulled.operations, pulled.is_complete()), (0, true));
    }
    assert!(!alpha.at("d").exists());
}

#[test]
fn a_directory_that_was_removed_stays_for_what_is_left_out_and_counts_as_removed() {
    let (_dir, alpha, beta) = removed(&["d/a.own", "d/e/b.own", "d/e/c.tmp"]);
    assert_eq!(held_by(&open(&beta).set, &path("d")), Some(path("d/a.own")));
    let pulled = pass(&alpha, &beta);
    assert!(pulled.is_complete(), "{pulled:?}");
    let why = |held: &str| format!("{held} is left out");
    assert_eq!(
        left(&pulled),
        [
            ("d/e".into(), why("d/e/b.own")),
            ("d".into(), why("d/a.own"))
        ]
    );
    for file in ["d/a.own", "d/e/b.own", "d/e/c.tmp"] {
        assert_eq!(fs::read_to_string(beta.at(file)).unwrap(), file);
    }
    assert!(!beta.at("d/f").exists());
    assert_settled(&alpha, &beta);
    let left = look(&beta).counts.left.first;
    assert_eq!(left, [(path("d"), why("d/a.own"))]);
    // What held it goes, one after another.
    fs::remove_file(beta.at("d/a.own")).unwrap();
    assert_settled(&alpha, &beta);
    assert!(beta.at("d/e/c.tmp").exists());
    fs::remove_file(beta.at("d/e/b.own")).unwrap();
    assert_settled(&alpha, &beta);
    assert!(!beta.at("d").exists());
}

#[test]
fn what_perishes_goes_with_its_directory_and_never_otherwise() {
    let (_dir, alpha, beta) = removed(&["d/a.tmp", "d/e/b.tmp", "c.tmp"]);
    fs::create_dir(beta.at("d/dir.tmp")).unwrap();
    beta.write("d/dir.tmp/f", "of no set");
    assert_eq!(held_by(&open(&beta).set, &path("d")), None);
    let pulled = pass(&alpha, &beta);
    assert!(
        pulled.is_complete() && left(&pulled).is_empty(),
        "{pulled:?}"
    );
    assert!(!beta.at("d").exists() && beta.at("c.tmp").exists());
    assert_settled(&alpha, &beta);
}

#[test]
fn what_is_new_in_a_directory_that_was_left_makes_it_part_of_the_set_again() {
    let (_dir, alpha, beta) = removed(&["d/a.own", "d/e/b.own"]);
    pass(&alpha, &beta);
    beta.write("d/e/new", "n");
    assert_eq!(look(&beta).changed, 3);
    assert!(pass(&beta, &alpha).is_complete());
    assert_eq!(fs::read_to_string(alpha.at("d/e/new")).unwrap(), "n");
    assert!(!alpha.at("d/a.own").exists());
    // So does an empty directory in it, and another directory at its path.
    fs::remove_dir_all(alpha.at("d")).unwrap();
    assert!(pass(&alpha, &beta).is_complete());
    fs::create_dir(beta.at("d/empty")).unwrap();
    assert_eq!(look(&beta).changed, 2);
}

#[test]
fn a_directory_that_was_left_is_taken_for_one_that_is_made_elsewhere_and_for_nothing_else() {
    let (_dir, alpha, beta) = removed(&["d/a.own"]);
    pass(&alpha, &beta);
    fs::create_dir(alpha.at("d")).unwrap();
    alpha.write("d/h", "h");
    fs::set_permissions(alpha.at("d"), fs::Permissions::from_mode(0o711)).unwrap();
    assert!(pass(&alpha, &beta).is_complete());
    assert_eq!(fs::read_to_string(beta.at("d/h")).unwrap(), "h");
    assert!(beta.at("d/a.own").exists());
    let mode = fs::metadata(beta.at("d")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o711);
    // A file finds it in its way, until that is gone.
    fs::remove_dir_all(alpha.at("d")).unwrap();
    alpha.write("d", "a file");
    for _ in 0..2 {
        let pulled = pass(&alpha, &beta);
        let put_off = pulled.applied.iter().flat_map(|a| &a.put_off.first);
        let put_off: Vec<_> = put_off.cloned().collect();
        assert_eq!(put_off, [(path("d"), "d/a.own is in it".to_owned())]);
    }
    fs::rename(beta.at("d/a.own"), beta.at("d/a.tmp")).unwrap();
    assert!(pass(&alpha, &beta).is_complete());
    assert_eq!(tree(&alpha.root), tree(&beta.root));
}

#[test]
fn a_directory_that_was_left_is_so_after_another_removal_of_it_was_heard_of() {
    let (dir, alpha, beta) = removed(&["d/a.own"]);
    let gamma = Store::new(dir.path(), "gamma");
    fs::create_dir_all(gamma.at("d")).unwrap();
    gamma.write("d/f", "d/f");
    gamma.write("other", "");
    look(&gamma);
    fs::remove_dir_all(gamma.at("d")).unwrap();
    assert!(pass(&alpha, &beta).is_complete());
    let pulled = pass(&gamma, &beta);
    assert!(pulled.is_complete() && pulled.operations > 0, "{pulled:?}");
    assert_eq!(look(&beta).changed, 0);
}
