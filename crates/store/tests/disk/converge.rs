//! What users do on one server, or on two at once, is the same everywhere after one run each way.

use crate::common::{Open, Store, fast, tree};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{fs, os::unix::fs::symlink, path::Path};

/// Something that somebody does to a name of a file, if it can be done.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Remove,
    Directory,
    Symlink,
    Replace,
    Append,
    Rename,
    Link,
}

fn does(store: &Store, deed: Deed, name: &str) {
    let (at, other) = (store.at(name), store.at("r"));
    let _ = match deed {
        Deed::Remove => fs::remove_file(&at).or_else(|_| fs::remove_dir(&at)),
        Deed::Directory => fs::remove_file(&at).and_then(|()| fs::create_dir(&at)),
        Deed::Symlink => {
            let _ = fs::remove_file(&at);
            symlink("nowhere", &at)
        }
        Deed::Replace => {
            fs::write(&other, name).unwrap();
            fs::rename(&other, &at)
        }
        Deed::Append => fs::write(&at, "in place"),
        Deed::Rename => fs::rename(&at, &other),
        Deed::Link => fs::hard_link(&at, &other),
    };
}

#[test]
fn whatever_two_things_one_does_to_the_names_of_a_file_the_other_gets_in_one_run() {
    use Deed::*;
    let deeds = [Remove, Directory, Symlink, Replace, Append, Rename, Link];
    let all: Vec<_> = deeds
        .iter()
        .flat_map(|deed| ["p", "q"].map(|name| (*deed, name)))
        .collect();
    let mut wrong = Vec::new();
    for first in &all {
        for second in &all {
            let dir = fast();
            let [alpha, beta] = ["alpha", "beta"].map(|name| Store::new(dir.path(), name));
            alpha.write("p", "of both");
            alpha.write("another", "");
            fs::hard_link(alpha.at("p"), alpha.at("q")).unwrap();
            alpha.look();
            beta.look();
            beta.open().pull(&alpha.open()).unwrap();
            for (deed, name) in [first, second] {
                does(&alpha, *deed, name);
            }
            let made = tree(&alpha.root);
            alpha.look();
            beta.look();
            let taken = beta.open().pull(&alpha.open()).unwrap();
            alpha.look();
            beta.look();
            let given = alpha.open().pull(&beta.open()).unwrap();
            let fine = taken.is_complete() && given.is_complete();
            let quiet = taken.conflicts.is_empty() && given.conflicts.is_empty();
            let alike = tree(&alpha.root) == made && tree(&beta.root) == made;
            if !(fine && quiet && alike) {
                wrong.push(format!("{first:?} {second:?}: {fine} {quiet} {alike}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "complete, no conflict, alike?\n{}",
        wrong.join("\n")
    );
}

/// Two stores that have what `makes` makes.
fn pair(dir: &Path, makes: impl Fn(&Store)) -> [Store; 2] {
    let [alpha, beta] = ["alpha", "beta"].map(|name| Store::new(dir, name));
    makes(&alpha);
    alpha.look();
    beta.look();
    beta.open().pull(&alpha.open()).unwrap();
    [alpha, beta]
}

/// One takes all that another has; both look before, and nothing of what was done counts as an edit after.
fn takes(store: &Store, other: &Store) {
    store.look();
    other.look();
    // What one operation did, the next one finds in the index.
    let here = Open {
        together: 1,
        ..store.open()
    };
    let pulled = here.pull(&other.open()).unwrap();
    assert!(pulled.is_complete(), "{pulled:?}");
    drop(here);
    let again = store.look();
    assert_eq!((again.changed, again.removed), (0, 0));
}

/// Makes a file, and the directories that it is in.
fn make(store: &Store, name: &str, contents: &str) {
    fs::create_dir_all(store.at(name).parent().unwrap()).unwrap();
    store.write(name, contents);
}

fn link(store: &Store, name: &str, new: &str) {
    fs::create_dir_all(store.at(new).parent().unwrap()).unwrap();
    fs::hard_link(store.at(name), store.at(new)).unwrap();
}

fn kept(store: &Store) -> Vec<String> {
    let list = store.open().set.aside.list(10).unwrap().into_iter();
    list.map(|(_, kept)| kept.path.to_string()).collect()
}

#[test]
fn a_file_of_two_names_that_is_exchanged_with_a_directory_is_so_elsewhere_in_one_run() {
    for (file, name, directory) in [("a/x", "g", "d"), ("d!", "g/e", "g"), ("a", "d/x", "d")] {
        let dir = fast();
        let [alpha, beta] = pair(dir.path(), |store| {
            make(store, file, "of both");
            make(store, &format!("{directory}/z"), "in it");
            link(store, file, name);
        });
        let (one, other) = (alpha.at(file), alpha.at(directory));
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
        let made = tree(&alpha.root);
        takes(&beta, &alpha);
        assert_eq!(tree(&beta.root), made, "{file} {name} {directory}");
    }
}

#[test]
fn a_name_that_only_one_knows_is_a_file_of_its_own_where_the_other_makes_something_else_of_the_file()
 {
    // The first name goes, or becomes something else, or is in a directory that does.
    for (file, name, becomes) in [("b", "d/y", "b"), ("d/e", "g", "d"), ("g/w", "d/x", "d")] {
        let dir = fast();
        let [alpha, beta] = pair(dir.path(), |store| {
            make(store, file, "of both");
            make(store, "d/z", "in it");
        });
        link(&beta, file, name);
        let _ = fs::remove_file(alpha.at(becomes));
        let _ = fs::remove_dir_all(alpha.at(becomes));
        symlink("nowhere", alpha.at(becomes)).unwrap();
        takes(&beta, &alpha);
        takes(&alpha, &beta);
        assert_eq!(tree(&alpha.root), tree(&beta.root));
        let stays = [file, name]
            .into_iter()
            .filter(|p| !Path::new(p).starts_with(becomes));
        for stays in stays {
            assert_eq!(fs::read(alpha.at(stays)).unwrap(), b"of both", "{stays}");
        }
    }
}

#[test]
fn both_names_of_a_file_go_with_a_directory_that_becomes_something_else_and_the_new_one_is_kept() {
    let dir = fast();
    let [alpha, beta] = pair(dir.path(), |store| make(store, "d/e", "of both"));
    link(&beta, "d/e", "d/x");
    fs::remove_dir_all(alpha.at("d")).unwrap();
    alpha.write("d", "a file");
    takes(&beta, &alpha);
    takes(&alpha, &beta);
    assert_eq!(fs::read(beta.at("d")).unwrap(), b"a file");
    assert_eq!(tree(&alpha.root), tree(&beta.root));
    assert_eq!(kept(&beta), ["d/x"]);
}

#[test]
fn edits_deep_in_a_directory_that_becomes_a_file_are_kept_aside_in_one_run() {
    let dir = fast();
    let [alpha, beta] = pair(dir.path(), |store| {
        make(store, "g/e/z", "of both");
        make(store, "g/y/z", "of both");
    });
    let edited = ["g/e/a", "g/e/b", "g/e/c", "g/e/d", "g/e/z"];
    edited.iter().for_each(|name| beta.write(name, name));
    fs::remove_dir_all(alpha.at("g")).unwrap();
    alpha.write("g", "a file");
    takes(&beta, &alpha);
    takes(&alpha, &beta);
    assert_eq!(fs::read(beta.at("g")).unwrap(), b"a file");
    assert_eq!(tree(&alpha.root), tree(&beta.root));
    let mut kept = kept(&beta);
    kept.sort();
    assert_eq!(kept, edited);
}

#[test]
fn two_directories_become_a_file_and_a_further_name_of_it_in_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = (
        Store::new(dir.path(), "alpha"),
        Store::new(dir.path(), "beta"),
    );
    for name in ["a", "b"] {
        fs::create_dir(alpha.at(name)).unwrap();
    }
    alpha.write("b/in", "it goes");
    alpha.look();
    beta.look();
    beta.open().pull(&alpha.open()).unwrap();
    fs::remove_dir(alpha.at("a")).unwrap();
    fs::remove_dir_all(alpha.at("b")).unwrap();
    alpha.write("a", "of two names");
    fs::hard_link(alpha.at("a"), alpha.at("b")).unwrap();
    alpha.look();
    beta.look();
    let pulled = beta.open().pull(&alpha.open()).unwrap();
    assert!(pulled.is_complete());
    assert_eq!(tree(&beta.root), tree(&alpha.root));
}
