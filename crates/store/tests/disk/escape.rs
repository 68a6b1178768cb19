//! Nobody who can write in a set makes the store reach out of it.

use crate::common::{Peer, Store, later, path, tree};
use filesync::Planner;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
};
use store::{Calls, Dir, Name, apply};

#[test]
fn a_symbolic_link_is_no_way() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("root/d")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/x"), "secret").unwrap();
    symlink("../outside", dir.path().join("root/out")).unwrap();
    symlink("d", dir.path().join("root/in")).unwrap();
    let root = Dir::root(&dir.path().join("root"), Calls::unlimited()).unwrap();
    for name in ["out", "in", "out/x", "in/x"] {
        assert!(root.beneath(&path(name)).is_err(), "{name}");
    }
    assert!(root.place(&path("out/x")).is_err());
    assert!(root.open(Name::new(b"out").unwrap()).is_err());
    assert!(root.beneath(&path("d")).is_ok());
    for bad in [&b".."[..], b".", b"", b"a/b", b"/etc", b"a\0"] {
        assert_eq!(Name::new(bad), None);
    }
}

#[test]
fn a_directory_swapped_for_a_link_all_the_time_never_leads_out() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = (
        Store::new(dir.path(), "alpha"),
        Store::new(dir.path(), "beta"),
    );
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    // Some names are taken out there, and some are free.
    for n in (0..20).step_by(2) {
        fs::write(outside.join(format!("{n}")), "outside").unwrap();
    }
    let before = tree(&outside);
    for store in [&alpha, &beta] {
        fs::create_dir(store.at("d")).unwrap();
        for n in 0..20 {
            store.write(&format!("d/{n}"), "common");
        }
    }
    symlink(&outside, beta.at("link")).unwrap();
    alpha.look();
    beta.look();
    beta.open().pull(&alpha.open()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let (a, b) = (beta.at("d"), beta.at("link"));
            let mut swaps = 0u64;
            while !stop.load(Ordering::Relaxed) || !swaps.is_multiple_of(2) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        });
        let mut done = 0;
        for round in 0..30 {
            for n in 0..20 {
                let text = if (round + n) % 5 == 0 {
                    None
                } else {
                    Some(format!("{round} {n}"))
                };
                match text {
                    Some(text) => alpha.write(&format!("d/{n}"), text),
                    None => drop(fs::remove_file(alpha.at(&format!("d/{n}")))),
                }
            }
            alpha.look();
            let (a, b) = (alpha.open(), beta.open());
            b.look().unwrap();
            let mut planner = Planner::default();
            let offered = a
                .index
                .since(0)
                .unwrap()
                .map(|row| row.map(|(p, r)| (p, r.entry)));
            let offered = offered.collect::<Result<Vec<_>, _>>().unwrap();
            let index = b.index.reader().unwrap();
            let mut operations = planner.batch(&index, offered);
            operations.extend(planner.groups(&index));
            operations.extend(planner.removals());
            done += apply(&b.set, &b.index, operations, &mut Peer(&a.set), later())
                .unwrap()
                .done;
            let texts = b.known().into_values().filter_map(|n| match n.kind {
                filesync::Kind::File { size, .. } => Some(size),
                _ => None,
            });
            assert!(
                texts.into_iter().all(|size| size != 7),
                "what is outside was read"
            );
        }
        stop.store(true, Ordering::Relaxed);
        assert!(swapper.join().unwrap() > 100);
        assert!(done > 0);
    });
    assert_eq!(tree(&outside), before);
}
