//! New directories, which come with what is in them.

use crate::{
    common::{Peer, Store, path, tree},
    faults::offer,
};
use filesync::{Node, Path};
use std::{fs, io};
use store::{Calls, Contents, Filling, Set};

fn scene(dir: &std::path::Path) -> (Store, Store) {
    let (alpha, beta) = (Store::new(dir, "alpha"), Store::new(dir, "beta"));
    fs::create_dir_all(alpha.at("d/e/f")).unwrap();
    for name in ["d/one!", "d/two!", "d/e/three!", "d/e/f/four", "last"] {
        alpha.write(name, name);
    }
    alpha.look();
    beta.look();
    (alpha, beta)
}

/// Contents straight from the other; before those of a file come, something happens.
struct Meanwhile<'a, F>(Peer<'a>, F);

impl<F: FnMut(&Path) -> io::Result<()>> Contents for Meanwhile<'_, F> {
    fn small(&mut self, path: &Path, node: &Node) -> io::Result<Option<Vec<u8>>> {
        (self.1)(path)?;
        self.0.small(path, node)
    }

    fn bring(&mut self, path: &Path, node: &Node, into: &mut Filling<'_>) -> io::Result<()> {
        self.0.bring(path, node, into)
    }
}

fn from<F: FnMut(&Path) -> io::Result<()>>(set: &Set, meanwhile: F) -> Meanwhile<'_, F> {
    Meanwhile(Peer(set), meanwhile)
}

fn staged(store: &Store) -> usize {
    fs::read_dir(store.at(store::STAGE)).unwrap().count()
}

#[test]
fn a_new_directory_comes_with_all_that_is_in_it_by_one_rename() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = scene(dir.path());
    let calls = Calls::only(u64::MAX);
    let open = beta.open_with(calls.clone()).unwrap();
    let set = alpha.open().set;
    let applied = offer(&alpha, &open, &mut from(&set, |_| Ok(())));
    assert!(applied.is_complete() && applied.done == 8, "{applied:?}");
    assert_eq!(tree(&alpha.root), tree(&beta.root));
    let renames = calls.made().into_iter().filter(|call| *call == "rename");
    assert_eq!(renames.count(), 2, "d and last");
    assert_eq!(staged(&beta), 0);
    drop(open);
    assert_eq!(beta.look().changed, 0, "it is known");
}

#[test]
fn where_somebody_made_the_directory_meanwhile_nothing_of_it_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = scene(dir.path());
    let open = beta.open();
    let set = alpha.open().set;
    let mut make = from(&set, |at: &Path| {
        if *at == path("d/two!") {
            fs::create_dir(beta.at("d"))?;
            beta.write("d/two!", "of somebody");
        }
        Ok(())
    });
    let applied = offer(&alpha, &open, &mut make);
    assert_eq!((applied.done, applied.put_off.count), (1, 7), "{applied:?}");
    assert_eq!(fs::read(beta.at("d/two!")).unwrap(), b"of somebody");
    assert_eq!(fs::read_dir(beta.at("d")).unwrap().count(), 1);
    assert_eq!(staged(&beta), 0);
    drop(open);
    beta.look();
    beta.open().pull(&alpha.open()).unwrap();
    assert_eq!(fs::read(beta.at("d/e/f/four")).unwrap(), b"d/e/f/four");
}

#[test]
fn what_cannot_be_made_ready_in_a_new_directory_is_not_there_and_the_rest_is() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = scene(dir.path());
    let set = alpha.open().set;
    let mut fail = from(&set, |at: &Path| match *at == path("d/e/three!") {
        true => {
            // Other contents than were announced.
            alpha.write("d/e/three!", "d/e/THREE!");
            Ok(())
        }
        false if *at == path("d/one!") => Err(io::ErrorKind::NotConnected.into()),
        false => Ok(()),
    });
    let applied = offer(&alpha, &beta.open(), &mut fail);
    assert_eq!((applied.done, applied.failed.count), (6, 2), "{applied:?}");
    let names = |at| {
        let all = fs::read_dir(beta.at(at)).unwrap();
        let mut names: Vec<_> = all.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("d"), ["e", "two!"]);
    assert_eq!(names("d/e"), ["f"]);
    assert_eq!(beta.look().changed, 0);
}

#[test]
fn what_a_cut_left_of_a_new_directory_is_swept_and_what_somebody_put_aside_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (_, beta) = scene(dir.path());
    fs::create_dir_all(beta.at(store::STAGE).join("new-1/e/f")).unwrap();
    fs::write(beta.at(store::STAGE).join("new-1/e/x"), "half").unwrap();
    fs::create_dir(beta.at(store::STAGE).join("1")).unwrap();
    fs::write(beta.at(store::STAGE).join("1/x"), "somebody's").unwrap();
    beta.look();
    assert!(!beta.at(store::STAGE).join("new-1").exists());
    assert!(beta.at(store::STAGE).join("1/x").exists());
}
