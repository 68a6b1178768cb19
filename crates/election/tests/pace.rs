//! When beats and acknowledgements leave.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Departure, H, Setup, Sim, ms, secs};
use std::{collections::BTreeSet, time::Duration};

/// What left while a cluster did something.
fn departures(sim: &mut Sim, act: impl FnOnce(&mut Sim)) -> Vec<Departure> {
    sim.left = Some(Vec::new());
    act(sim);
    sim.left.take().unwrap()
}

fn beats(left: &[Departure], server: usize) -> Vec<u64> {
    let own = |d: &&Departure| d.server == server && d.ack.is_none();
    left.iter().filter(own).map(|d| d.at).collect()
}

fn gaps(left: &[Departure], server: usize) -> impl Iterator<Item = Duration> {
    let at = beats(left, server);
    let gap = |pair: &[u64]| Duration::from_nanos(pair[1] - pair[0]);
    at.windows(2).map(gap).collect::<Vec<_>>().into_iter()
}

#[test]
fn in_an_idle_cluster_everything_leaves_a_server_once_an_interval() {
    for seed in 1..20 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        let master = sim.master().unwrap();
        let left = departures(&mut sim, |sim| sim.run(secs(3)));
        for server in 0..3 {
            let turns: BTreeSet<_> = left.iter().filter(|d| d.server == server).collect_turns();
            assert!(
                turns.len() <= 33,
                "{} turns of {server} in 3 s, seed {seed}",
                turns.len()
            );
            let beats: BTreeSet<_> = beats(&left, server).into_iter().collect();
            assert_eq!(turns, beats, "no acknowledgement without a beat");
        }
        // The master's claims are answered at once, all else with the next beat.
        let master_name = sim.servers[master].name.clone();
        for departure in &left {
            if let Some((to, waited)) = &departure.ack {
                assert_eq!(*to == master_name, waited.is_zero(), "{departure:?}");
                assert!(*waited <= H, "{departure:?}");
            }
        }
    }
}

trait Turns {
    fn collect_turns(self) -> BTreeSet<u64>;
}

impl<'a, I: Iterator<Item = &'a Departure>> Turns for I {
    fn collect_turns(self) -> BTreeSet<u64> {
        self.map(|d| d.at).collect()
    }
}

#[test]
fn a_silent_master_delays_no_beat_of_anybody() {
    for seed in 1..20 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        let master = sim.master().unwrap();
        let left = departures(&mut sim, |sim| {
            sim.run(ms(300));
            sim.power_off(master);
            sim.run(secs(2));
        });
        assert!(sim.master().is_some_and(|m| m != master));
        for server in (0..3).filter(|s| *s != master) {
            let longest = gaps(&left, server).max().unwrap();
            assert!(longest <= H, "{server} paused for {longest:?}, seed {seed}");
        }
    }
}

#[test]
fn a_master_in_a_hurry_hurries_nobody_much() {
    let mut sim = Sim::settled(&Setup::default());
    let master = sim.master().unwrap();
    sim.settings(master, |settings| settings.heartbeat = H / 10);
    let left = departures(&mut sim, |sim| sim.run(secs(3)));
    assert!(beats(&left, master).len() > 250);
    for server in (0..3).filter(|s| *s != master) {
        assert!(gaps(&left, server).all(|gap| H * 3 / 4 <= gap && gap <= H));
    }
}

#[test]
fn masters_of_different_virtual_servers_agree_on_one_leader() {
    let mut sim = Sim::settled(&Setup {
        virtual_servers: vec!["web", "mail", "files"],
        ..Setup::default()
    });
    for (to, v) in ["web", "mail", "files"].into_iter().enumerate() {
        if sim.master_of(v) != Some(to) {
            let name = sim.servers[to].name.clone();
            let master = sim.master_of(v).unwrap();
            sim.wish(
                master,
                election::Wish::Promote(name, Some(common::vname(v))),
            );
            sim.run(secs(2));
        }
        assert_eq!(sim.master_of(v), Some(to));
    }
    let left = departures(&mut sim, |sim| sim.run(secs(3)));
    // Alpha leads; the others beat when they acknowledge its beat, hear each other, and no more.
    for server in 0..3 {
        let count = beats(&left, server).len();
        assert!((30..=33).contains(&count), "{count} beats of {server}");
    }
    let with_ack = |server: usize, at: u64| {
        let to_alpha = |d: &&Departure| {
            (d.at, d.server) == (at, server)
                && d.ack.as_ref().is_some_and(|(to, _)| to.as_str() == "alpha")
        };
        left.iter().any(|d| to_alpha(&d))
    };
    for server in 1..3 {
        assert!(beats(&left, server).iter().all(|at| with_ack(server, *at)));
    }
}
