//! Every subject is fed its corpus, damaged copies of it, and random bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use election::{Memory, memory::Vote};
use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};
use protocol::{
    Instance, Number, RosterVersion, Term,
    codec::{MESSAGE_MAX, RECORD_MAX, encode, encode_record},
    wire::{
        beat::Ack,
        datagram::{self, Data, Incarnation, Packet},
    },
};
use standin_fuzz::SUBJECTS;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Longest random input: some hundred events of a core.
const RANDOM_MAX: usize = 4096;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a folder by name, without what stands after the dot.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let listed = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let path = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().path();
    let named = |path: PathBuf| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path);
    listed.map(path).map(named).collect()
}

fn names(folder: &str) -> BTreeSet<String> {
    entries(&here().join(folder))
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

fn corpus(subject: &str) -> Vec<Vec<u8>> {
    let found = entries(&here().join("corpus").join(subject));
    found
        .into_iter()
        .map(|(_, path)| fs::read(path).unwrap())
        .collect()
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

/// Feeds a subject its corpus, then so many damaged and so many random inputs.
fn feed(subject: &str, cases: u32) {
    let (_, run) = SUBJECTS
        .iter()
        .find(|(name, _)| *name == subject)
        .expect("in the list");
    let corpus = corpus(subject);
    corpus.iter().for_each(|seed| run(seed));
    let change = (any::<Index>(), any::<u8>(), 0..4u8);
    let damaged = (any::<Index>(), vec(change, 1..8));
    let damage = |(seed, changes): (Index, Vec<(Index, u8, u8)>)| {
        let mut bytes = seed.get(&corpus).clone();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len().max(1));
            match kind {
                0 if at < bytes.len() => drop(bytes.remove(at)),
                1 => bytes.insert(at, byte),
                2 => bytes.truncate(at),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = byte),
            }
        }
        bytes
    };
    let check = |bytes: Vec<u8>| {
        run(&bytes);
        Ok(())
    };
    runner(cases).run(&damaged.prop_map(damage), check).unwrap();
    runner(cases)
        .run(&vec(any::<u8>(), 0..RANDOM_MAX), check)
        .unwrap();
}

/// Every list and text of every message is said to be longer than any memory, once.
#[test]
fn a_length_that_is_only_claimed_costs_little() {
    let mut claim = vec![0xfd];
    claim.extend((1u64 << 60).to_le_bytes());
    for seed in corpus("codec") {
        for at in 0..seed.len() {
            let bytes = [&seed[..at], &claim, &seed[at + 1..]].concat();
            standin_fuzz::codec::run(&bytes);
        }
    }
}

/// As many of the smallest entries as there is room for.
#[test]
fn a_message_full_of_small_entries_costs_so_many_times_its_length() {
    let ack = datagram::Body::Ack(Ack {
        instance: Instance(0),
        number: Number(0),
        waited: Duration::ZERO,
        answers: Vec::new(),
        roster: RosterVersion::default(),
    });
    let entry = encode(&ack).unwrap().len();
    let full = Packet::Data(Box::new(Data {
        from: Incarnation([0; 16]),
        to: Incarnation([0; 16]),
        sequence: 1,
        sent_ns: 0,
        left: None,
        echo: None,
        bodies: vec![ack; (MESSAGE_MAX - 64) / entry],
    }));
    standin_fuzz::codec::run(&encode(&full).unwrap());
    let vote = Vote {
        virtual_server: "v".parse().unwrap(),
        voted: Term(0),
        holder: None,
    };
    let entry = encode(&vote).unwrap().len();
    let full = Memory {
        votes: vec![vote; (RECORD_MAX - 64) / entry],
        ..Memory::default()
    };
    standin_fuzz::codec::run(&encode_record(&full).unwrap());
}

/// The meter sees what is taken for a moment only.
#[test]
#[should_panic(expected = "1000000 bytes allocated, 999999 allowed")]
fn too_much_memory_is_noticed() {
    standin_fuzz::meter::within(999_999, || drop(vec![0u8; 1_000_000]));
}

macro_rules! fed {
    ($($subject:ident $cases:literal)*) => {
        $(
            #[test]
            fn $subject() {
                feed(stringify!($subject), $cases);
            }
        )*

        #[test]
        fn every_subject_is_fed_here_and_by_make_fuzz_and_has_a_corpus() {
            let listed: BTreeSet<String> = SUBJECTS.iter().map(|(name, _)| (*name).to_owned()).collect();
            let fed: BTreeSet<String> = [$(stringify!($subject).to_owned()),*].into();
            assert_eq!(fed, listed);
            assert_eq!(names("fuzz_targets"), listed);
            assert_eq!(names("corpus"), listed);
        }
    };
}

fed! {
    clock 1000
    codec 1000
    config 200
    detector 200
    election 200
    files 200
    heartbeat 200
    kernel 1000
    link 200
    local 200
    seal 200
}
