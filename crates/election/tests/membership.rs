//! Rosters that change while several virtual servers have masters, and disks that were lost or put back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{L, Setup, Sim, ms, secs, vname};
use election::Wish;
use protocol::RosterVersion;

/// Four voters and two virtual servers: whose master changes the roster ("web"), and another ("zmail").
const TWO: [&str; 2] = ["web", "zmail"];

fn version(sim: &Sim, i: usize) -> RosterVersion {
    sim.servers[i].elector.as_ref().unwrap().roster().version
}

fn others(sim: &Sim, i: usize) -> Vec<usize> {
    (0..sim.servers.len()).filter(|k| *k != i).collect()
}

fn promote(sim: &mut Sim, from: usize, to: usize, v: &str) {
    let name = sim.servers[to].name.clone();
    sim.wish(from, Wish::Promote(name, Some(vname(v))));
    sim.until(secs(2), |s| s.gate_open(to, v));
}

fn remove(sim: &mut Sim, at: usize, whom: usize) -> u64 {
    let name = sim.servers[whom].name.clone();
    sim.wish(at, Wish::Remove(name))
}

/// Two virtual servers at the same master, who has removed a server from the roster that nobody else has heard of, and
/// has handed "web" to another. Its own disk takes `disk` from then on.
fn former_keeper(disk: std::time::Duration) -> (Sim, [usize; 4]) {
    let mut sim = Sim::settled(&Setup {
        servers: 4,
        virtual_servers: TWO.to_vec(),
        ..Setup::default()
    });
    let a = sim.master_of("web").unwrap();
    let rest = others(&sim, a);
    let (b, c, d) = (rest[0], rest[1], rest[2]);
    let at = sim.master_of("zmail").unwrap();
    if at != a {
        promote(&mut sim, at, a, "zmail");
    }
    sim.run(secs(2));
    // Just after a beat, so that the next one is still to come.
    sim.left = Some(Vec::new());
    sim.until(secs(1), |s| {
        let left = s.left.as_ref().unwrap();
        left.iter().any(|l| l.server == a && l.ack.is_none())
    });
    sim.left = None;
    sim.servers[a].disk_delay = ms(1);
    let before = version(&sim, a);
    remove(&mut sim, a, d);
    sim.until(ms(60), |s| version(s, a) != before);
    assert_eq!(version(&sim, b), before, "nobody else has it");
    sim.servers[a].disk_delay = disk;
    promote(&mut sim, a, b, "web");
    (sim, [a, b, c, d])
}

#[test]
fn a_former_keepers_roster_gives_it_no_lease_beside_one_of_its_successors() {
    for disk in [ms(1), secs(20)] {
        let (mut sim, [a, b, c, _]) = former_keeper(disk);
        sim.run(L * 3);
        let id = remove(&mut sim, b, a);
        sim.run(ms(400));
        assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers);
        assert!(sim.gate_open(a, "zmail"), "it counts by what it knows");
        sim.partition(&[a, c]);
        sim.run(secs(5));
        assert!(!sim.gate_open(a, "zmail") && !sim.gate_open(c, "zmail"));
        assert!(
            sim.master_of("zmail").is_some(),
            "two of three are together"
        );
    }
}

#[test]
fn the_next_change_of_the_roster_waits_until_promises_by_the_one_before_have_run_out() {
    let (mut sim, [a, b, ..]) = former_keeper(ms(1));
    let begin = sim.now;
    loop {
        let id = remove(&mut sim, b, a);
        sim.run(ms(20));
        if let Some(Ok(_)) = sim.answers.get(&id) {
            break;
        }
    }
    let waited = std::time::Duration::from_nanos(sim.now - begin);
    assert!(waited >= L, "{waited:?}");
    assert!(waited <= L * 2, "{waited:?}");
}

#[test]
fn a_server_is_not_added_where_the_new_majority_would_not_acknowledge() {
    let mut sim = Sim::settled(&Setup {
        blank: 1,
        ..Setup::default()
    });
    let master = sim.master().unwrap();
    let down = others(&sim, master)[0];
    sim.power_off(down);
    sim.power_off(3);
    sim.wipe(3);
    sim.power_on(3);
    sim.run(secs(3));
    assert!(sim.view(3).standing.contains("blank"), "one has not told");
    let name = sim.servers[3].name.clone();
    let id = sim.wish(master, Wish::Add(name));
    sim.run(secs(3));
    let why = sim.answers[&id].as_ref().unwrap_err();
    assert!(why.contains("does not acknowledge"), "{why}");
    assert!(sim.gate_open(master, "web"));
}

/// A raised lease is in use; who is master, and the two others.
fn with_a_long_lease(sim: &mut Sim) -> (usize, usize, usize) {
    for i in 0..3 {
        sim.settings(i, |s| s.lease = secs(10));
    }
    sim.run(secs(25));
    let master = sim.master().unwrap();
    let rest = others(sim, master);
    (master, rest[0], rest[1])
}

#[test]
fn what_a_blank_server_learned_of_promises_outlives_a_second_power_loss() {
    let mut sim = Sim::settled(&Setup::default());
    let (a, b, g) = with_a_long_lease(&mut sim);
    // The lease is lowered, one server after another; the master's turn has not come yet.
    for i in [b, g] {
        sim.settings(i, |s| s.lease = L);
    }
    // b hears the master no longer; its promise ends, the other voter's goes on.
    sim.cut(a, b);
    sim.run(secs(11));
    assert!(sim.gate_open(a, "web"));
    sim.power_off(g);
    sim.wipe(g);
    sim.run(ms(300));
    sim.power_on(g);
    sim.until(secs(3), |s| {
        s.view(g).standing != "blank" && s.servers[g].reservation.is_some()
    });
    assert_eq!(
        sim.servers[g].reservation.as_ref().unwrap().promise_max,
        secs(10)
    );
    sim.power_off(g);
    sim.partition(&[a]);
    sim.run(ms(300));
    sim.power_on(g);
    sim.run(secs(7)); // the judge looks for a second gate
    assert!(sim.gate_open(a, "web"), "its lease runs on meanwhile");
}

#[test]
fn a_disk_from_before_the_lease_was_raised_does_not_shorten_the_silence() {
    let mut sim = Sim::settled(&Setup::default());
    let old: Vec<_> = sim.servers.iter().map(|s| s.reservation.clone()).collect();
    let (a, b, g) = with_a_long_lease(&mut sim);
    sim.cut(a, b);
    sim.run(secs(11));
    assert!(sim.gate_open(a, "web"), "by the promise of the third");
    sim.power_off(g);
    sim.servers[g].reservation = old[g].clone();
    sim.partition(&[a]);
    sim.run(ms(300));
    sim.power_on(g);
    sim.run(secs(7));
    assert!(sim.gate_open(a, "web"), "its lease runs on meanwhile");
    assert!(sim.view(g).standing.contains("silent"));
}
