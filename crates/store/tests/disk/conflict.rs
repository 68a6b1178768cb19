//! What loses is kept; what changed meanwhile is left alone.

use crate::common::{Peer, Store, later, path, tree};
use filesync::{Planner, Source};
use std::{fs, io::Read, os::unix::fs::PermissionsExt};
use store::{Applied, apply};

fn pair(dir: &std::path::Path) -> (Store, Store) {
    let pair = (Store::new(dir, "alpha"), Store::new(dir, "beta"));
    pair.0.write("a", "common");
    pair.0.look();
    pair.1.look();
    pair.1.open().pull(&pair.0.open()).unwrap();
    pair
}

#[test]
fn the_loser_of_a_conflict_is_kept_once_with_all_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = pair(dir.path());
    alpha.write("a", "of alpha");
    fs::set_permissions(alpha.at("a"), fs::Permissions::from_mode(0o604)).unwrap();
    alpha.look();
    beta.write("a", "of beta, later");
    beta.look();
    let pulled = alpha.open().pull(&beta.open()).unwrap();
    assert_eq!((pulled.conflicts.len(), pulled.is_complete()), (1, true));
    assert_eq!(fs::read(alpha.at("a")).unwrap(), b"of beta, later");
    let open = alpha.open();
    let kept = open.set.aside.list(10).unwrap();
    assert_eq!(kept.len(), 1);
    let (id, kept) = &kept[0];
    assert_eq!((kept.path.clone(), kept.node.mode), (path("a"), 0o604));
    assert!(kept.why.contains("beta"), "{}", kept.why);
    let mut text = String::new();
    open.set
        .aside
        .contents(id)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "of alpha");
    assert!(open.set.aside.kept("../index").is_err());
    assert_eq!(open.set.aside.list(0).unwrap(), []);
}

#[test]
fn where_only_owner_or_mode_gave_way_no_contents_are_kept_and_all_that_was_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = pair(dir.path());
    for store in [&alpha, &beta] {
        fs::create_dir(store.at("d")).unwrap();
    }
    alpha.look();
    beta.look();
    beta.open().pull(&alpha.open()).unwrap();
    alpha.open().pull(&beta.open()).unwrap();
    let mode = |store: &Store, name: &str, mode| {
        fs::set_permissions(store.at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    for (store, own) in [(&alpha, 0o600), (&beta, 0o640)] {
        mode(store, "a", own);
        mode(store, "d", own | 0o100);
        store.look();
    }
    let pulled = alpha.open().pull(&beta.open()).unwrap();
    assert_eq!((pulled.conflicts.len(), pulled.is_complete()), (2, true));
    assert_eq!(tree(&alpha.root), tree(&beta.root));
    let open = alpha.open();
    let kept = open.set.aside.list(10).unwrap();
    let modes: std::collections::BTreeSet<_> =
        kept.iter().map(|(_, kept)| kept.node.mode).collect();
    assert_eq!(modes, [0o600, 0o700].into());
    for (id, _) in &kept {
        let contents = open.set.aside.contents(id).map(drop);
        assert_eq!(contents.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}

/// Does to beta what alpha has, with something happening between plan and act.
fn meanwhile(alpha: &Store, beta: &Store, happens: impl FnOnce()) -> Applied {
    alpha.look();
    beta.look();
    let (a, b) = (alpha.open(), beta.open());
    let mut planner = Planner::default();
    let offered = a
        .index
        .since(0)
        .unwrap()
        .map(|row| row.map(|(p, r)| (p, r.entry)));
    let index = b.index.reader().unwrap();
    let mut operations = planner.batch(&index, offered.collect::<Result<_, _>>().unwrap());
    operations.extend(planner.groups(&index));
    operations.extend(planner.removals());
    happens();
    apply(&b.set, &b.index, operations, &mut Peer(&a.set), later()).unwrap()
}

#[test]
fn what_somebody_changed_since_the_look_stays() {
    for removal in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (alpha, beta) = pair(dir.path());
        alpha.write("b", "keeps it from being empty");
        if removal {
            fs::remove_file(alpha.at("a")).unwrap();
        } else {
            alpha.write("a", "new");
        }
        let applied = meanwhile(&alpha, &beta, || beta.write("a", "edited"));
        assert_eq!((applied.done, applied.put_off.count), (1, 1), "{applied:?}");
        assert_eq!(fs::read(beta.at("a")).unwrap(), b"edited");
    }
}

/// Something in the way of what comes in the very moment between check and rename.
struct Meddler<'a>(Peer<'a>, Box<dyn Fn() + 'a>);

impl store::Contents for Meddler<'_> {
    fn bring(
        &mut self,
        path: &filesync::Path,
        node: &filesync::Node,
        into: &mut store::Filling<'_>,
    ) -> std::io::Result<()> {
        (self.1)();
        self.0.bring(path, node, into)
    }
}

#[test]
fn what_somebody_changes_between_check_and_rename_stays() {
    type Meddle<'a> = &'a dyn Fn(&Store);
    let cases: [(&str, Meddle); 4] = [
        ("a", &|beta| beta.write("a", "edited")),
        ("a", &|beta| {
            beta.write("other", "edited");
            fs::rename(beta.at("other"), beta.at("a")).unwrap();
        }),
        ("new", &|beta| beta.write("new", "edited")),
        ("new", &|beta| {
            std::os::unix::fs::symlink("edited", beta.at("new")).unwrap()
        }),
    ];
    for (name, meddle) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (alpha, beta) = pair(dir.path());
        alpha.write(name, "from alpha");
        alpha.look();
        beta.look();
        let (a, b) = (alpha.open(), beta.open());
        let mut planner = Planner::default();
        let row = a.index.row(&path(name)).unwrap().unwrap();
        let operations = planner.batch(&b.index.reader().unwrap(), vec![(path(name), row.entry)]);
        assert_eq!(operations[0].source, Source::Fetch);
        let mut contents = Meddler(Peer(&a.set), Box::new(|| meddle(&beta)));
        let applied = apply(&b.set, &b.index, operations, &mut contents, later()).unwrap();
        assert_eq!((applied.done, applied.put_off.count), (0, 1), "{applied:?}");
        let there = tree(&beta.root)[std::path::Path::new(name)]
            .contents
            .clone();
        assert_eq!(there, b"edited", "{name}");
        assert_eq!(fs::read_dir(beta.at(store::STAGE)).unwrap().count(), 0);
    }
}

#[test]
fn a_rename_moves_the_file_itself() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = pair(dir.path());
    let inode = |name: &str| fs::metadata(beta.at(name)).unwrap().ino();
    let before = inode("a");
    fs::rename(alpha.at("a"), alpha.at("moved")).unwrap();
    let applied = meanwhile(&alpha, &beta, || {});
    assert!(applied.is_complete(), "{applied:?}");
    assert_eq!(inode("moved"), before);
    assert!(!beta.at("a").exists());
    assert_eq!(beta.look().changed, 0);
}

#[test]
fn a_file_replaced_keeps_its_further_names() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = pair(dir.path());
    fs::hard_link(alpha.at("a"), alpha.at("b")).unwrap();
    meanwhile(&alpha, &beta, || {});
    alpha.write("b", "changed");
    let applied = meanwhile(&alpha, &beta, || {});
    assert!(applied.is_complete(), "{applied:?}");
    assert_eq!(tree(&alpha.root), tree(&beta.root));
    let looked = beta.look();
    assert_eq!((looked.changed, looked.removed), (0, 0));
}

#[test]
fn operations_on_standins_own_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = pair(dir.path());
    let (a, b) = (alpha.open(), beta.open());
    let entry = a.index.row(&path("a")).unwrap().unwrap().entry;
    for name in [".standin-set", ".standin-stage/x"] {
        let operation = filesync::Operation {
            path: path(name),
            was: None,
            entry: entry.clone(),
            keep: false,
            source: Source::Copy(path("a")),
        };
        let applied = apply(
            &b.set,
            &b.index,
            vec![operation],
            &mut Peer(&a.set),
            later(),
        )
        .unwrap();
        assert_eq!((applied.done, applied.put_off.count), (0, 1));
    }
}
