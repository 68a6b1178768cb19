//! A server that was installed anew joins those that have a history.

use crate::common::{Store, differing, fast, tree};
use std::{
    fs,
    time::{Duration, SystemTime},
};

fn store(dir: &std::path::Path, name: &'static str) -> Store {
    Store {
        joins: true,
        ..Store::new(dir, name)
    }
}

fn pull(one: &Store, other: &Store) -> usize {
    let (one, other) = (one.open(), other.open());
    one.look().unwrap();
    other.look().unwrap();
    let pulled = one.pull(&other).unwrap();
    assert!(pulled.is_complete(), "{pulled:?}");
    pulled.operations
}

/// Until nobody has anything to do.
fn meet(stores: &[&Store]) {
    while (0..stores.len())
        .flat_map(|i| (0..stores.len()).map(move |j| (i, j)))
        .map(|(i, j)| {
            if i == j {
                0
            } else {
                pull(stores[i], stores[j])
            }
        })
        .sum::<usize>()
        > 0
    {}
    for other in &stores[1..] {
        let (one, other) = (tree(&stores[0].root), tree(&other.root));
        assert!(one == other, "{}", differing(&one, &other));
    }
}

fn aged(store: &Store, name: &str, age: u64) {
    let file = fs::File::options()
        .write(true)
        .open(store.at(name))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(age))
        .unwrap();
}

/// What is kept aside at a store.
fn aside(store: &Store) -> Vec<String> {
    let all = fs::read_dir(store.state.join("aside")).unwrap();
    let all = all.map(|entry| entry.unwrap().path());
    let contents = all.filter(|at| at.extension().is_none_or(|e| e != "record"));
    contents.map(|at| fs::read_to_string(at).unwrap()).collect()
}

#[test]
fn whatever_it_has_gives_way_and_is_kept_however_young_it_is() {
    for order in [true, false] {
        let dir = fast();
        let [alpha, beta, gamma] = ["alpha", "beta", "gamma"].map(|name| store(dir.path(), name));
        alpha.write("passwd", "of the cluster");
        alpha.write("removed", "of the cluster, once");
        aged(&alpha, "passwd", 9_000);
        meet(&[&alpha, &beta]);
        fs::remove_file(alpha.at("removed")).unwrap();
        beta.write("edited", "of the cluster, edited");
        aged(&beta, "edited", 9_000);
        meet(&[&alpha, &beta]);

        for name in ["passwd", "removed", "edited", "new"] {
            gamma.write(name, format!("{name} of a package"));
        }
        gamma.look();
        gamma.write("passwd", "edited before it met anybody");
        if order {
            assert_eq!(pull(&alpha, &gamma), 0, "it has to take all first");
        }
        meet(&[&gamma, &beta, &alpha]);
        assert_eq!(
            fs::read_to_string(alpha.at("passwd")).unwrap(),
            "of the cluster"
        );
        assert_eq!(
            fs::read_to_string(alpha.at("edited")).unwrap(),
            "of the cluster, edited"
        );
        assert_eq!(
            fs::read_to_string(alpha.at("new")).unwrap(),
            "new of a package"
        );
        assert!(!alpha.at("removed").exists());
        assert!(aside(&alpha).is_empty() && aside(&beta).is_empty());
        let mut kept = aside(&gamma);
        kept.sort();
        assert_eq!(
            kept,
            [
                "edited before it met anybody",
                "edited of a package",
                "removed of a package"
            ]
        );

        // From now on it is like all others.
        gamma.write("passwd", "edited on gamma");
        meet(&[&gamma, &beta, &alpha]);
        assert_eq!(
            fs::read_to_string(alpha.at("passwd")).unwrap(),
            "edited on gamma"
        );
    }
}

#[test]
fn among_newcomers_what_changed_last_wins() {
    let dir = fast();
    let [alpha, beta] = ["alpha", "beta"].map(|name| store(dir.path(), name));
    for (store, name, age) in [
        (&alpha, "a", 10),
        (&beta, "a", 5000),
        (&alpha, "b", 5000),
        (&beta, "b", 10),
    ] {
        store.write(name, format!("{name} of {}", store.name));
        aged(store, name, age);
    }
    meet(&[&alpha, &beta]);
    assert_eq!(fs::read_to_string(beta.at("a")).unwrap(), "a of alpha");
    assert_eq!(fs::read_to_string(alpha.at("b")).unwrap(), "b of beta");
}
