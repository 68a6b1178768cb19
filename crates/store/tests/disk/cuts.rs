//! A run that is cut off after any call: every path is old or new, the index is never ahead, and the next run ends it.

use crate::common::{Open, Seen, Store, Tree, differing, fast, is_root, path, tree};
use rustix::fs::{XattrFlags, setxattr};
use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
    sync::Arc,
};
use store::Calls;

/// A file whose metadata alone changes, and that is too large to be copied for it.
const LARGE: &str = "pl";

/// What both have to begin with.
fn common(store: &Store) {
    for name in ["c", "fd", "g1", "h1", "k", "m", "mv", "p", "r", "t"] {
        store.write(name, format!("old {name}"));
    }
    store.write(LARGE, vec![b'p'; 1 << 20]);
    fs::set_permissions(store.at(LARGE), Permissions::from_mode(0o4755)).unwrap();
    for name in ["df", "dm", "rd"] {
        fs::create_dir(store.at(name)).unwrap();
    }
    for name in ["df/x", "rd/x", "dm/x"] {
        store.write(name, format!("old {name}"));
    }
    fs::hard_link(store.at("g1"), store.at("g2")).unwrap();
    fs::hard_link(store.at("h1"), store.at("h2")).unwrap();
    fs::hard_link(store.at("h1"), store.at("dm/h3")).unwrap();
    symlink("old", store.at("s")).unwrap();
}

/// What the other makes of it.
fn script(store: &Store) {
    store.write("c", "of beta");
    store.write("m", vec![b'm'; 300_000]);
    fs::set_permissions(store.at("p"), Permissions::from_mode(0o600)).unwrap();
    setxattr(store.at("p"), "user.p", b"1", XattrFlags::empty()).unwrap();
    setxattr(store.at(LARGE), "user.p", b"1", XattrFlags::empty()).unwrap();
    setxattr(store.at(LARGE), "user.q", b"1", XattrFlags::empty()).unwrap();
    if is_root() {
        rustix::fs::chown(store.at(LARGE), Some(rustix::fs::Uid::from_raw(3)), None).unwrap();
    }
    fs::set_permissions(store.at(LARGE), Permissions::from_mode(0o6750)).unwrap();
    fs::File::open(store.at(LARGE))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    store.write("n", "new");
    fs::create_dir_all(store.at("nd/e")).unwrap();
    store.write("nd/x", "new");
    store.write("nd/copy", "old k");
    store.write("nd/small", "even");
    store.write("nd/e/small", "even too");
    symlink("small", store.at("nd/e/s")).unwrap();
    fs::remove_file(store.at("r")).unwrap();
    fs::remove_dir_all(store.at("rd")).unwrap();
    fs::rename(store.at("mv"), store.at("mw")).unwrap();
    fs::remove_file(store.at("s")).unwrap();
    symlink("new", store.at("s")).unwrap();
    store.write("h2", "new h");
    fs::set_permissions(store.at("dm"), Permissions::from_mode(0o2750)).unwrap();
    setxattr(store.at("dm"), "user.dm", b"1", XattrFlags::empty()).unwrap();
    fs::remove_file(store.at("fd")).unwrap();
    fs::create_dir(store.at("fd")).unwrap();
    store.write("fd/x", "new");
    fs::remove_dir_all(store.at("df")).unwrap();
    store.write("df", "new");
    fs::remove_file(store.at("g2")).unwrap();
    store.write("g2", "new g");
    fs::hard_link(store.at("t"), store.at("nd/t")).unwrap();
    if is_root() {
        rustix::fs::chown(store.at("dm"), Some(rustix::fs::Uid::from_raw(3)), None).unwrap();
    }
}

/// Both, each having looked.
fn scene(dir: &std::path::Path) -> (Store, Store) {
    let (alpha, beta) = (Store::new(dir, "alpha"), Store::new(dir, "beta"));
    common(&beta);
    beta.look();
    alpha.look();
    assert!(alpha.open().pull(&beta.open()).unwrap().is_complete());
    alpha.write("c", "of alpha");
    alpha.look();
    script(&beta);
    beta.look();
    (alpha, beta)
}

fn run(
    alpha: &Store,
    beta: &Store,
    calls: Arc<Calls>,
    together: usize,
) -> Result<bool, store::Error> {
    let mut open = alpha.open_with(calls)?;
    open.together = together;
    open.look()?;
    Ok(open.pull(&beta.open())?.is_complete())
}

fn alone(seen: Option<&Seen>) -> Option<Seen> {
    seen.map(|s| Seen {
        names: BTreeSet::new(),
        ..s.clone()
    })
}

/// It has told nobody anything yet.
fn told_nobody(store: &Store) {
    let (index, ledger) = (store.open().index, filesync::Ledger::default());
    index.write(|batch| batch.ledger(&ledger)).unwrap();
}

/// What the index has of beta's is on the disk.
fn not_ahead(alpha: &Store, copy: &Store, beta: &Store, new: &Tree) {
    let (here, there) = (copy.index(Calls::unlimited()).unwrap(), beta.open().index);
    let (before, now) = (alpha.open().index, tree(&copy.root));
    for row in here.rows().unwrap() {
        let (at, row) = row.unwrap();
        let theirs = there.row(&at).unwrap().map(|r| r.entry.node);
        let name = std::path::PathBuf::from(at.to_string());
        let news = before.row(&at).unwrap().map(|r| r.entry) != Some(row.entry.clone());
        if news && theirs == Some(row.entry.node) {
            let (is, will) = (alone(now.get(&name)), alone(new.get(&name)));
            assert_eq!(is, will, "{at}: index ahead");
        }
    }
}

/// Nothing was taken for a change of its own since it had so many, but at these paths.
fn no_events(open: &Open, own: u64, but: &[&str]) {
    let state = open.index.state().unwrap();
    for row in open.index.rows().unwrap() {
        let (at, row) = row.unwrap();
        let count = row.entry.vector.count(&state.replica);
        let fine = count <= own || but.iter().any(|name| at == path(name));
        assert!(fine, "an event of nobody at {at}: {:?}", row.entry);
    }
}

/// Each path is as it was or as it shall be.
fn old_or_new(now: &Tree, old: &Tree, new: &Tree) {
    for name in old.keys().chain(new.keys()).chain(now.keys()) {
        let (is, was, will) = (
            alone(now.get(name)),
            alone(old.get(name)),
            alone(new.get(name)),
        );
        let directory =
            |s: &Option<Seen>| s.as_ref().is_some_and(|s| s.mode & 0o170_000 == 0o040_000);
        // What is changed where it is may have half of what it gets until the next look.
        let contents = |s: &Option<Seen>| s.as_ref().map(|s| s.contents.clone());
        let large =
            contents(&is) == contents(&was) && contents(&is).is_some_and(|c| c.len() >= 1 << 20);
        let stays = large || directory(&is) && directory(&was) && directory(&will);
        assert!(
            stays || is == was || is == will,
            "{name:?} is {is:?}, was {was:?}, will be {will:?}"
        );
    }
}

#[test]
fn cut_off_after_any_call_it_is_old_or_new_and_the_next_run_ends_it() {
    cut_off_after_any_call(4096);
}

#[test]
fn cut_off_while_the_next_is_made_ready_it_is_no_different() {
    cut_off_after_any_call(2);
}

fn cut_off_after_any_call(together: usize) {
    let dir = fast();
    let (alpha, beta) = scene(dir.path());
    let (old, new) = (tree(&alpha.root), tree(&beta.root));
    let own = alpha.open().index.state().unwrap().count;
    for most in 0.. {
        let again = dir.path().join("again");
        told_nobody(&beta);
        let copy = alpha.copy(&again);
        let done = run(&copy, &beta, Calls::only(most), together);

        let now = tree(&copy.root);
        old_or_new(&now, &old, &new);
        not_ahead(&alpha, &copy, &beta, &new);
        assert!(
            run(&copy, &beta, Calls::unlimited(), 4096).unwrap(),
            "the next run, after {most}"
        );
        let end = tree(&copy.root);
        assert_eq!(end, new, "after {most}: {}", differing(&end, &new));
        let open = copy.open();
        let looked = open.look().unwrap();
        assert_eq!((looked.changed, looked.removed), (0, 0), "after {most}");
        // Of what was moved away only the removal may be its own, which it shares with the other.
        no_events(&open, own, &["mv"]);
        let kept = open.set.aside.list(10).unwrap();
        assert_eq!(kept.len(), 1, "after {most}");
        let mut text = String::new();
        open.set
            .aside
            .contents(&kept[0].0)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "of alpha", "after {most}");
        assert_eq!(fs::read_dir(copy.at(store::STAGE)).unwrap().count(), 0);
        drop(open);
        fs::remove_dir_all(&again).unwrap();
        if done.is_ok_and(|complete| complete) {
            assert!(most > 100, "there is something to cut: {most}");
            return;
        }
    }
}

#[test]
fn whatever_the_index_tells_is_on_the_disk_before() {
    let dir = fast();
    let (alpha, beta) = scene(dir.path());
    let calls = Calls::only(u64::MAX);
    assert!(run(&alpha, &beta, Arc::clone(&calls), 4096).unwrap());
    let (mut data, mut names, mut intended, mut renames) = (false, false, false, 0);
    let made = calls.made();
    // What is kept aside has barriers of its own.
    let mut aside = 0;
    for (i, call) in made.iter().enumerate() {
        match *call {
            "create" if made[i..].iter().take(4).any(|c| *c == "fsync") => aside = 4,
            _ if aside > 0 => {
                aside -= 1;
                continue;
            }
            _ => {}
        }
        match *call {
            "syncfs" => (data, names) = (false, false),
            "commit" => {
                assert!(
                    !data && !names,
                    "call {i}: index before disk: {:?}",
                    &made[..=i]
                );
                intended = true;
            }
            "rename" | "rmdir" | "link" => {
                assert!(
                    !data,
                    "call {i}: in place before it is on the disk: {:?}",
                    &made[..=i]
                );
                assert!(intended, "call {i}: in place before it is intended");
                (names, renames) = (true, renames + 1);
            }
            "unlink" | "fsync" => {}
            "create" | "mkdir" | "symlink" | "mknod" => (data, intended) = (true, false),
            // Of what is being made, or of a directory that stays.
            _ => names = true,
        }
    }
    assert!(renames > 20, "{renames}");
}

/// Groups of names, and what becomes of them.
fn groups(store: &Store) {
    fs::create_dir(store.at("d")).unwrap();
    for group in ["a", "b", "e", "f", "g", "i", "j", "l", "m", "o", "q"] {
        let first = format!("{group}1");
        store.write(&first, format!("old {group}"));
        for name in [format!("{group}2"), format!("d/{group}3")] {
            fs::hard_link(store.at(&first), store.at(&name)).unwrap();
        }
    }
    store.write("e1", vec![b'e'; 1 << 20]);
}

fn regroup(store: &Store) {
    let again = |from: &str, to: &str| {
        fs::remove_file(store.at(to)).unwrap();
        fs::hard_link(store.at(from), store.at(to)).unwrap();
    };
    store.write("a2", "new a");
    for name in ["b1", "e1"] {
        fs::set_permissions(store.at(name), Permissions::from_mode(0o600)).unwrap();
    }
    // The name that the others follow goes, another comes before it, or it is another file's.
    fs::remove_file(store.at("d/f3")).unwrap();
    store.write("f1", "new f");
    fs::remove_file(store.at("d/g3")).unwrap();
    store.write("d/g3", "alone");
    fs::hard_link(store.at("i1"), store.at("an i")).unwrap();
    store.write("i1", "new i");
    for (from, to) in [("j1", "k1"), ("j2", "k2"), ("d/j3", "d/k3")] {
        fs::rename(store.at(from), store.at(to)).unwrap();
    }
    // Two become one, and two swap a name.
    store.write("l1", "new l");
    for name in ["m1", "m2", "d/m3"] {
        again("l1", name);
    }
    again("o1", "q2");
    again("q1", "o2");
    store.write("o1", "new o");
}

/// Those that have the same names before and after are never found divided once it was looked at.
const LASTING: [&str; 3] = ["a1", "b1", "e1"];

#[test]
fn groups_of_names_cut_off_after_any_call_are_whole_after_the_next_look() {
    cut_off_groups(4096);
}

#[test]
fn groups_of_names_are_whole_however_few_have_a_barrier() {
    cut_off_groups(1);
}

fn cut_off_groups(together: usize) {
    let dir = fast();
    let (alpha, beta) = (
        Store::new(dir.path(), "alpha"),
        Store::new(dir.path(), "beta"),
    );
    groups(&beta);
    beta.look();
    alpha.look();
    assert!(alpha.open().pull(&beta.open()).unwrap().is_complete());
    alpha.look();
    regroup(&beta);
    beta.look();
    let (old, new) = (tree(&alpha.root), tree(&beta.root));
    let own = alpha.open().index.state().unwrap().count;
    let away = ["j1", "j2", "d/j3"];
    for most in 0.. {
        let again = dir.path().join("again");
        told_nobody(&beta);
        let copy = alpha.copy(&again);
        let done = run(&copy, &beta, Calls::only(most), together);
        old_or_new(&tree(&copy.root), &old, &new);
        not_ahead(&alpha, &copy, &beta, &new);

        // Nobody is there to ask, and what mends it is cut off as well.
        for least in [1, 3, 4] {
            let _ = copy.open_with(Calls::only(least)).and_then(|o| o.look());
            old_or_new(&tree(&copy.root), &old, &new);
        }
        copy.look();
        no_events(&copy.open(), own, &[]);
        let now = tree(&copy.root);
        for name in LASTING.map(std::path::Path::new) {
            let whole = [&old, &new].map(|tree| &tree[name]).contains(&&now[name]);
            assert!(whole, "{name:?} after {most}: {:?}", now[name]);
        }

        // A name whose file went elsewhere may have to wait for another run.
        let complete = (0..3).any(|_| run(&copy, &beta, Calls::unlimited(), 4096).unwrap());
        assert!(complete, "the next runs, after {most}");
        let end = tree(&copy.root);
        assert_eq!(end, new, "after {most}: {}", differing(&end, &new));
        let looked = copy.look();
        assert_eq!((looked.changed, looked.removed), (0, 0), "after {most}");
        no_events(&copy.open(), own, &away);
        assert_eq!(copy.open().set.aside.list(10).unwrap().len(), 0);
        fs::remove_dir_all(&again).unwrap();
        if done.is_ok() {
            assert!(most > 100, "there is something to cut: {most}");
            return;
        }
    }
}

#[test]
fn files_that_swap_their_names_in_a_circle_come_right() {
    for together in [1, 4096] {
        let dir = fast();
        let (alpha, beta) = (
            Store::new(dir.path(), "alpha"),
            Store::new(dir.path(), "beta"),
        );
        for name in ["a1", "b1"] {
            beta.write(name, name);
            fs::hard_link(beta.at(name), beta.at(&name.replace('1', "2"))).unwrap();
        }
        beta.look();
        alpha.look();
        assert!(alpha.open().pull(&beta.open()).unwrap().is_complete());
        let own = alpha.open().index.state().unwrap().count;
        for name in ["a1", "b1"] {
            fs::rename(beta.at(name), beta.at(&format!("{name} away"))).unwrap();
        }
        fs::rename(beta.at("a1 away"), beta.at("b1")).unwrap();
        fs::rename(beta.at("b1 away"), beta.at("a1")).unwrap();
        beta.look();
        let new = tree(&beta.root);
        for most in 0.. {
            let again = dir.path().join("again");
            told_nobody(&beta);
            let copy = alpha.copy(&again);
            let done = run(&copy, &beta, Calls::only(most), together);
            copy.look();
            no_events(&copy.open(), own, &[]);
            let complete = (0..3).any(|_| run(&copy, &beta, Calls::unlimited(), together).unwrap());
            assert!(complete, "after {most}");
            let end = tree(&copy.root);
            assert_eq!(end, new, "after {most}: {}", differing(&end, &new));
            copy.look();
            no_events(&copy.open(), own, &[]);
            fs::remove_dir_all(&again).unwrap();
            if done.is_ok() {
                break;
            }
        }
    }
}
