//! Removals that are so old that nobody need remember them.

use crate::common::{Pulled, Store, later, path};
use protocol::ServerName;
use std::{fs, time::Duration};

const DAY: Duration = Duration::from_secs(86_400);
const HORIZON: Duration = Duration::from_secs(30 * 86_400);

/// Takes what is new at `from`; both look before.
fn pass(from: &Store, to: &Store) -> Pulled {
    from.look();
    to.look();
    let pulled = to.open().pull(&from.open()).unwrap();
    assert!(pulled.is_complete(), "{pulled:?}");
    pulled
}

fn meet(stores: &[&Store]) {
    for _ in 0..2 {
        for from in stores {
            for to in stores.iter().filter(|to| to.name != from.name) {
                pass(from, to);
            }
        }
    }
}

/// So many removals are forgotten, so much later.
fn forget(store: &Store, others: &[&str], after: Duration) -> u64 {
    let others: Vec<ServerName> = others.iter().map(|o| o.parse().unwrap()).collect();
    let now = later() + u64::try_from(after.as_nanos()).unwrap();
    store.open().index.forget(&others, now, HORIZON).unwrap()
}

/// Three that had the files `a` to `d` and know that `a` and `b` were removed, and gamma as it was before.
fn removed(dir: &std::path::Path) -> ([Store; 3], Store) {
    let stores = ["alpha", "beta", "gamma"].map(|name| Store::new(dir, name));
    let [alpha, beta, gamma] = &stores;
    for file in ["a", "b", "c", "d"] {
        alpha.write(file, file);
    }
    for store in [beta, gamma] {
        store.write("other", "");
    }
    meet(&[alpha, beta, gamma]);
    fs::create_dir(dir.join("backup")).unwrap();
    let before = gamma.copy(&dir.join("backup"));
    for file in ["a", "b"] {
        fs::remove_file(alpha.at(file)).unwrap();
    }
    meet(&[alpha, beta, gamma]);
    (stores, before)
}

#[test]
fn a_removal_is_forgotten_when_all_have_it_and_no_backup_is_older_and_looked_for_once_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let ([alpha, beta, _], _) = removed(dir.path());
    let all = ["beta", "gamma"];
    assert_eq!(forget(&alpha, &["beta", "gamma", "delta"], 31 * DAY), 0);
    assert_eq!(
        forget(&alpha, &all, 31 * DAY + DAY / 2),
        0,
        "looked already"
    );
    assert_eq!(
        forget(&alpha, &all, 29 * DAY),
        0,
        "that was before: too young"
    );
    assert_eq!(forget(&alpha, &all, 31 * DAY), 2);
    let index = alpha.open().index;
    assert!(index.row(&path("a")).unwrap().is_none() && index.row(&path("c")).unwrap().is_some());
    drop(index);
    // Who remembers it tells nobody, and a new file is newer than what is remembered.
    assert_eq!(pass(&beta, &alpha).operations, 0);
    alpha.write("a", "new");
    let pulled = pass(&alpha, &beta);
    assert!(pulled.conflicts.is_empty(), "{pulled:?}");
    assert_eq!(fs::read(beta.at("a")).unwrap(), b"new");
}

#[test]
fn what_all_forgot_does_not_come_back_with_a_server_that_was_set_back_to_before() {
    let dir = tempfile::tempdir().unwrap();
    let ([alpha, beta, _gamma], before) = removed(dir.path());
    assert_eq!(forget(&alpha, &["beta", "gamma"], 31 * DAY), 2);
    assert_eq!(forget(&beta, &["alpha", "gamma"], 31 * DAY), 2);
    // What was made and edited there since is not forgotten.
    before.write("b", "edited");
    before.write("new", "n");
    meet(&[&before, &alpha, &beta]);
    for store in [&alpha, &beta, &before] {
        assert!(!store.at("a").exists(), "{}", store.name);
        let read = |file| fs::read_to_string(store.at(file)).unwrap();
        let files = ["b", "c", "new"].map(read);
        assert_eq!(files, ["edited", "c", "n"], "{}", store.name);
    }
    meet(&[&before, &alpha, &beta]);
    assert_eq!(pass(&alpha, &before).operations, 0);
    assert_eq!(pass(&before, &alpha).operations, 0);
}

#[test]
fn whoever_leaves_out_something_else_is_told_all_again_and_says_nothing_by_what_it_does_not_name() {
    let dir = tempfile::tempdir().unwrap();
    let ([alpha, beta, _], _) = removed(dir.path());
    let open = alpha.open();
    let told = |index: &store::Index| {
        let from = beta.open().index.state().unwrap().replica;
        index.taken().unwrap().unwrap().told(&from)
    };
    open.index.abide(0).unwrap();
    let (known, before) = (open.index.knowledge().unwrap(), told(&open.index));
    assert!(before > 0);
    open.index.abide(7).unwrap();
    let after = open.index.knowledge().unwrap();
    assert_eq!((after.rules, told(&open.index)), (7, 0));
    assert!(known.events.has(&after.events) && !after.events.has(&known.events));
    open.index.abide(7).unwrap();
    drop(open);
    pass(&beta, &alpha);
    assert!(told(&alpha.open().index) >= before);
}
