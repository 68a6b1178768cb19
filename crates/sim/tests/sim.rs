//! The simulator on itself, on what it once found, and on new seeds for a fixed time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use sim::{
    KEPT, Outcome, Schedule, World,
    generate::{self, PROFILES},
};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How long new seeds are tried, where nobody says otherwise.
const SECONDS: u64 = 20;

/// These seeds are tried however long that takes.
const SEEDS: u64 = 150;

fn run(schedule: &Schedule) -> Outcome {
    World::run(schedule, false)
}

/// Every seed of `seeds`, on two threads, until `most` has passed; how many there were.
fn all(
    seeds: std::ops::Range<u64>,
    most: Duration,
    schedule: impl Fn(u64) -> Schedule + Sync,
) -> u64 {
    let (begin, next) = (Instant::now(), AtomicU64::new(seeds.start));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || (begin.elapsed() >= most && seed >= seeds.start + SEEDS) {
                return;
            }
            if let Some(violation) = run(&schedule(seed)).violation {
                panic!("seed {seed}: {violation}; standin-sim --seed {seed} --explain tells how");
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        other.join().unwrap();
    });
    next.into_inner() - seeds.start
}

#[test]
fn under_random_faults_every_invariant_holds() {
    let seconds = std::env::var("STANDIN_SIM_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    let most = Duration::from_secs(seconds);
    let done = all(0..u64::MAX, most, |seed| generate::schedule(seed, None));
    println!("{done} schedules");
}

#[test]
fn without_a_quorum_there_is_one_master_again_after_random_faults() {
    all(0..SEEDS / 2, Duration::ZERO, |seed| Schedule {
        none: 1,
        ..generate::schedule(seed, None)
    });
}

#[test]
fn the_same_seed_is_the_same_history_line_by_line() {
    for profile in PROFILES {
        for seed in 0..8 {
            let schedule = generate::schedule(seed, Some(profile));
            let [a, b] = [0, 1].map(|_| World::run(&schedule, true));
            assert!(a.lines == b.lines && !a.lines.is_empty(), "seed {seed}");
            assert_eq!(
                (a.digest, a.events, a.end),
                (b.digest, b.events, b.end),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn another_seed_is_another_history() {
    let [a, b] = [1, 2].map(|seed| {
        run(&Schedule {
            seed,
            ..Schedule::default()
        })
    });
    assert_ne!(a.digest, b.digest);
}

/// Every file of `testdata` is a schedule that once violated an invariant.
#[test]
fn what_was_found_once_is_not_found_again() {
    for (name, text) in KEPT {
        let schedule = text.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        let outcome = run(&schedule);
        assert!(
            outcome.violation.is_none(),
            "{name}: {}",
            outcome.violation.unwrap()
        );
    }
}

#[test]
fn every_schedule_kept_is_played() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let stem = |f: std::io::Result<std::fs::DirEntry>| {
        let path = f.unwrap().path();
        path.file_stem().unwrap().to_str().unwrap().to_owned()
    };
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(stem).collect();
    files.sort();
    assert!(files.iter().eq(KEPT.iter().map(|(name, _)| *name)));
}
