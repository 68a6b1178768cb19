//! One behaviour of the rule book each. The judge in `common` checks the invariants all the while.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{H, L, Setup, Sim, ms, name, secs, vname};
use election::{Input, Mode, Preempt, Wish};
use protocol::{
    BootTime, Instance, Number, RosterVersion, Term,
    local::ring::HealthState,
    wire::{
        beat::{Freshness, Why},
        signal::{Body, CLIENTS_MAX, Client, PreVerdict, Released, Signal},
    },
};
use std::time::Duration;

/// A slow voter's clock (ELECTION, "Worst time without owner") and two calls.
const TAKEOVER: Duration = Duration::from_millis(560 + 2 * 125);

fn settled() -> Sim {
    Sim::settled(&Setup::default())
}

/// What the operator of server `i` reads as the last change of "web".
fn last_change(sim: &Sim, i: usize) -> (Option<BootTime>, String) {
    let mut view = sim.view(i);
    let web = view.virtual_servers.remove(0);
    (web.changed.0, web.reason)
}

#[test]
fn the_last_change_lasts_until_the_next_one_and_is_told_with_its_time() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let [new, other] = slaves(&sim)[..] else {
        unreachable!("three servers");
    };
    let elected = last_change(&sim, old);
    assert!(elected.1.starts_with("elected with "), "{elected:?}");
    sim.kill(old);
    sim.restart_in(old, ms(5));
    sim.run(secs(5));
    assert_eq!(sim.master(), Some(old), "a renewal is no change of master");
    let before = sim.local(other);
    let to = sim.servers[new].name.clone();
    sim.wish(old, Wish::Promote(to.clone(), None));
    sim.run(secs(5));
    let (left, why) = last_change(&sim, old);
    assert_eq!(why, format!("handed over to {to} by the operator"));
    let (won, why) = last_change(&sim, new);
    assert!(why.starts_with("took over by handover"), "{why}");
    let (seen, why) = last_change(&sim, other);
    let term = sim.term(new);
    let from = &sim.servers[old].name;
    assert_eq!(why, format!("{to} is master in term {term}, after {from}"));
    assert!(left.is_some() && won.is_some());
    assert!(
        seen > Some(before) && seen < Some(before + secs(1)),
        "{seen:?}"
    );
}

#[test]
fn a_server_that_was_stopped_has_said_that_it_takes_no_mastership_and_one_that_fails_has_not() {
    let mut sim = settled();
    let [stopped, failed] = slaves(&sim)[..] else {
        unreachable!("three servers");
    };
    let master = sim.master().unwrap();
    sim.give(stopped, Input::Stop);
    sim.until(secs(1), |s| s.stopped.contains(&stopped));
    let seen = |sim: &Sim, i: usize| {
        let name = &sim.servers[i].name;
        let view = sim.view(master);
        let server = view.servers.iter().find(|s| s.name == *name);
        server.map(|s| (s.state, s.withdrawn.0))
    };
    sim.until(secs(5), |s| {
        seen(s, stopped) == Some((HealthState::Dead, true))
    });
    sim.power_off(failed);
    sim.until(secs(5), |s| {
        seen(s, failed) == Some((HealthState::Dead, false))
    });
}

/// All but the master, in the order of their names.
fn slaves(sim: &Sim) -> Vec<usize> {
    let master = sim.master().unwrap();
    (0..sim.servers.len()).filter(|i| *i != master).collect()
}

// ---- election ----------------------------------------------------------------------------------------

#[test]
fn a_cluster_started_all_at_once_keeps_silent_for_a_lease_and_then_elects_within_another() {
    for seed in 0..20 {
        let mut sim = Sim::new(&Setup {
            seed,
            ..Setup::default()
        });
        sim.power_on_all();
        let took = sim.until(secs(5), |s| s.master().is_some());
        assert!(
            took > L,
            "silent for promise_max after a power loss, not {took:?}"
        );
        assert!(took < L * 2 + H, "{took:?}");
    }
}

#[test]
fn after_a_power_loss_of_the_master_another_takes_over_within_the_lease_of_a_slow_voter_and_two_calls()
 {
    for seed in 0..20 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        let old = sim.master().unwrap();
        sim.power_off(old);
        let took = sim.until(secs(5), |s| s.master().is_some());
        assert!(took < TAKEOVER, "seed {seed}: {took:?}");
        assert_ne!(sim.master(), Some(old));
    }
}

#[test]
fn the_fresher_then_the_higher_priority_then_the_first_name_takes_over() {
    let run = Freshness {
        term: Term(9),
        run: 1,
    };
    let gone = Freshness::default();
    // What server 2 says of its files, one after another; who else has the highest priority; who takes over.
    let table: [(&[Freshness], usize, usize); 4] = [
        (&[run], 1, 2),
        (&[], 2, 2),
        (&[], 9, 1),
        (&[run, gone], 1, 1),
    ];
    for (said, first, expected) in table {
        let mut sim = Sim::new(&Setup {
            servers: 4,
            ..Setup::default()
        });
        for i in 0..4 {
            let priority = if i == first || i == 0 { 200 } else { 100 };
            sim.servers[i]
                .settings
                .virtual_servers
                .values_mut()
                .for_each(|v| v.priority = priority);
        }
        sim.power_on_all();
        sim.run(secs(3));
        assert_eq!(
            sim.master(),
            Some(0),
            "the highest priority and first name is elected first"
        );
        for fresh in said {
            sim.give(2, Input::Fresh(*fresh));
            sim.run(secs(1));
        }
        sim.power_off(0);
        sim.until(secs(3), |s| s.master().is_some());
        assert_eq!(sim.master(), Some(expected));
    }
}

#[test]
fn with_a_fifth_of_all_packets_lost_nobody_takes_over_for_a_minute() {
    for seed in 0..5 {
        let mut sim = Sim::settled(&Setup {
            servers: 5,
            seed,
            ..Setup::default()
        });
        sim.all_links(|l| l.loss = 20);
        let begin = sim.now;
        sim.run(secs(60));
        assert_eq!(sim.changes_since(begin), 0, "seed {seed}");
        assert!(sim.master().is_some());
    }
}

#[test]
fn a_quiet_day_changes_nothing_and_writes_nothing() {
    let mut sim = settled();
    let begin = sim.now;
    let (memory, disk) = (
        sim.servers[0].memory.clone(),
        sim.servers[0].reservation.clone(),
    );
    sim.run(secs(600));
    assert_eq!(sim.changes_since(begin), 0);
    assert_eq!(sim.roles.len(), 1);
    assert_eq!(
        (memory, disk),
        (
            sim.servers[0].memory.clone(),
            sim.servers[0].reservation.clone()
        )
    );
}

#[test]
fn a_master_cut_off_shuts_its_gate_before_the_majority_elects_and_yields_when_the_network_heals() {
    for seed in 0..20 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        // The master's clock as slow, a voter's as fast as R1 allows.
        let old = sim.master().unwrap();
        let rest = slaves(&sim);
        sim.set_rate(old, 900);
        rest.iter().for_each(|i| sim.set_rate(*i, 1120));
        sim.run(secs(1));
        sim.partition(&[old]);
        let shut = sim.until(L, |s| !s.gate_open(old, "web"));
        let owned = sim.until(secs(2), |s| s.master().is_some());
        assert!(shut + owned < TAKEOVER, "{shut:?} {owned:?}");
        let new = sim.master().unwrap();
        assert_ne!(new, old);
        sim.heal();
        sim.run(secs(2));
        assert_eq!(sim.master(), Some(new));
        assert_eq!(sim.role(old, "web"), "slave");
        assert_eq!(sim.changes_since(0), 3, "won, lost, won");
    }
}

#[test]
fn a_voter_cut_off_and_back_disturbs_nobody() {
    let mut sim = settled();
    let (master, begin) = (sim.master(), sim.now);
    let slave = slaves(&sim)[0];
    for _ in 0..5 {
        sim.partition(&[slave]);
        sim.run(secs(3));
        sim.heal();
        sim.run(secs(3));
    }
    assert_eq!(sim.changes_since(begin), 0);
    assert_eq!(sim.master(), master);
}

#[test]
fn a_voter_that_does_not_hear_the_master_does_not_unseat_it() {
    let mut sim = settled();
    let (master, begin) = (sim.master().unwrap(), sim.now);
    let slave = slaves(&sim)[1];
    sim.cut(master, slave);
    sim.run(secs(10));
    assert_eq!(sim.changes_since(begin), 0);
    assert!(sim.gate_open(master, "web"));
}

#[test]
fn a_master_that_sends_but_hears_nobody_gives_up_and_another_takes_over() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    for i in slaves(&sim) {
        sim.links[i][old].up = false;
    }
    let took = sim.until(secs(5), |s| s.master().is_some_and(|m| m != old));
    assert!(took < L * 3, "{took:?}");
}

#[test]
fn a_master_without_quorum_closes_and_when_the_voters_are_back_there_is_one_again() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    slaves(&sim).into_iter().for_each(|i| sim.power_off(i));
    sim.until(L, |s| s.master().is_none());
    sim.run(secs(10));
    assert!(sim.master().is_none(), "one of three is no majority");
    assert_eq!(
        sim.role(old, "web"),
        "slave",
        "G later the mastership is given up"
    );
    sim.power_on_all();
    let took = sim.until(secs(5), |s| s.master().is_some());
    assert!(took < L * 3, "{took:?}");
}

#[test]
fn a_short_loss_of_the_network_is_a_gap_and_no_failover() {
    let mut sim = settled();
    let (master, begin) = (sim.master(), sim.now);
    sim.partition(&[0]);
    sim.partition(&[1]);
    sim.until(L, |s| s.master().is_none());
    sim.run(ms(20));
    sim.heal();
    sim.run(secs(3));
    assert_eq!(sim.master(), master);
    assert_eq!(sim.changes_since(begin), 0);
}

#[test]
fn two_servers_and_a_witness_survive_the_loss_of_either_server_and_the_witness_never_serves() {
    for lost in 0..2 {
        let setup = Setup {
            servers: 2,
            witnesses: 1,
            ..Setup::default()
        };
        let mut sim = Sim::settled(&setup);
        sim.power_off(lost);
        sim.until(secs(2), |s| s.gate_open(1 - lost, "web"));
        sim.power_off(1 - lost);
        sim.run(secs(10));
        assert!(sim.master().is_none());
        assert_eq!(sim.role(2, "web"), "witness");
        sim.power_on_all();
        sim.until(secs(3), |s| s.master().is_some());
    }
}

#[test]
fn two_virtual_servers_have_masters_of_their_own_and_each_fails_over_alone() {
    let mut sim = Sim::new(&Setup {
        virtual_servers: vec!["web", "mail"],
        ..Setup::default()
    });
    for (i, v) in [(0, "web"), (1, "mail")] {
        sim.servers[i]
            .settings
            .virtual_servers
            .get_mut(&vname(v))
            .unwrap()
            .priority = 200;
    }
    sim.power_on_all();
    sim.run(secs(3));
    assert_eq!(
        (sim.master_of("web"), sim.master_of("mail")),
        (Some(0), Some(1))
    );
    let begin = sim.now;
    sim.power_off(1);
    sim.until(secs(2), |s| s.master_of("mail").is_some());
    assert_eq!(sim.master_of("web"), Some(0));
    assert!(
        sim.roles
            .iter()
            .filter(|r| r.at > begin)
            .all(|r| r.change.virtual_server == vname("mail"))
    );
}

#[test]
fn a_master_whose_interface_goes_down_gives_way_at_once() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    sim.set_interface(old, false);
    let took = sim.until(secs(2), |s| s.master().is_some_and(|m| m != old));
    assert!(took < H * 2, "no lease has to run out: {took:?}");
    sim.run(secs(5));
    sim.set_interface(old, true);
    sim.run(secs(2));
    assert_ne!(sim.master(), Some(old), "the winner stays");
}

#[test]
fn a_server_whose_gate_cannot_be_opened_leaves_it_to_the_others() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    sim.give(
        old,
        Input::GateBroken(vname("web"), "no such device".into()),
    );
    sim.until(secs(2), |s| s.master().is_some_and(|m| m != old));
}

#[test]
fn addresses_that_another_machine_has_are_left_alone_until_it_has_gone() {
    let mut sim = settled();
    let taken = |sim: &mut Sim, taken| {
        for i in 0..3 {
            sim.give(i, Input::Taken(vname("web"), taken));
        }
    };
    for i in 0..3 {
        sim.give(i, Input::GateBroken(vname("web"), "taken".into()));
    }
    sim.until(secs(2), |s| s.master().is_none());
    sim.run(secs(1));
    let begin = sim.now;
    for _ in 0..10 {
        sim.run(secs(10));
        taken(&mut sim, true);
    }
    assert_eq!(
        sim.changes_since(begin),
        0,
        "nobody tries it again and again"
    );
    taken(&mut sim, false);
    sim.until(secs(2), |s| s.master().is_some());
    // Who answers is the master now, whatever it is taken for.
    sim.run(secs(1));
    let master = sim.master();
    for slave in slaves(&sim) {
        sim.give(slave, Input::Taken(vname("web"), true));
    }
    sim.give(
        master.unwrap(),
        Input::GateBroken(vname("web"), "eth0 is down".into()),
    );
    sim.until(secs(5), |s| s.master().is_some() && s.master() != master);
}

#[test]
fn an_interface_that_is_up_again_makes_a_server_fit_again() {
    let mut sim = settled();
    for _ in 0..4 {
        let old = sim.master().unwrap();
        sim.set_interface(old, false);
        sim.run(L);
        sim.give(old, Input::GateBroken(vname("web"), "eth0 is down".into()));
        sim.until(secs(5), |s| s.master().is_some_and(|m| m != old));
        sim.set_interface(old, true);
        sim.run(secs(2));
    }
}

#[test]
fn a_doctor_that_is_lost_accuses_nobody_and_costs_the_master_nothing() {
    let mut sim = settled();
    let (master, begin) = (sim.master(), sim.now);
    for i in 0..3 {
        sim.give(i, Input::DoctorLost);
        sim.doctor_restart(i);
    }
    sim.run(secs(5));
    assert_eq!(sim.master(), master);
    assert_eq!(sim.changes_since(begin), 0);
}

// ---- handover ----------------------------------------------------------------------------------------

#[test]
fn promote_hands_over_from_the_master_as_from_a_slave_within_milliseconds() {
    for asked_at_master in [true, false] {
        let mut sim = settled();
        let old = sim.master().unwrap();
        let to = slaves(&sim)[1];
        let at = if asked_at_master {
            old
        } else {
            slaves(&sim)[0]
        };
        let id = sim.wish(at, Wish::Promote(sim.servers[to].name.clone(), None));
        let took = sim.until(secs(1), |s| s.gate_open(to, "web"));
        assert!(took < ms(20), "{took:?}");
        sim.run(secs(1));
        assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers);
        let handed: Vec<_> = sim.servers.iter().map(|s| s.handed_over).collect();
        let other = slaves(&sim).into_iter().find(|s| *s != old).unwrap();
        assert_eq!(
            (handed[old], handed[to], handed[other]),
            ((1, 1), (0, 0), (0, 0))
        );
        let begin = sim.now;
        sim.run(secs(10));
        assert_eq!(sim.changes_since(begin), 0);
    }
}

/// Whoever takes over then has what was kept, and a stop waits for it, but not for ever.
#[test]
fn a_stop_waits_a_lease_for_the_successor_that_does_not_come() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let others = slaves(&sim);
    sim.give(old, Input::Stop);
    sim.until(secs(1), |s| s.servers[old].handed_over.0 == 1);
    for other in others {
        sim.kill(other);
    }
    assert_eq!(sim.stopped, vec![]);
    let took = sim.until(secs(1), |s| s.stopped == vec![old]);
    assert!(took > L / 2 && took < L * 3 / 2, "{took:?}");
    assert_eq!(sim.servers[old].handed_over, (1, 0));
}

#[test]
fn a_wish_about_several_virtual_servers_is_answered_once_all_are_done() {
    let mut sim = Sim::new(&Setup {
        virtual_servers: vec!["web", "mail"],
        ..Setup::default()
    });
    sim.power_on_all();
    sim.run(secs(3));
    let to = (0..3)
        .find(|i| Some(*i) != sim.master_of("web") && Some(*i) != sim.master_of("mail"))
        .unwrap();
    let asked = (to + 1) % 3;
    let id = sim.wish(asked, Wish::Promote(sim.servers[to].name.clone(), None));
    sim.run(secs(1));
    let said = sim.answers[&id].clone().unwrap();
    assert!(said.contains("web") && said.contains("mail"), "{said}");
    assert!(sim.gate_open(to, "web") && sim.gate_open(to, "mail"));
    let id = sim.wish(to, Wish::Maintenance(true));
    sim.run(secs(1));
    let said = sim.answers[&id].clone().unwrap();
    assert!(said.contains("web") && said.contains("mail"), "{said}");
}

#[test]
fn promote_of_a_server_that_is_not_ready_changes_nothing_and_says_why() {
    let mut sim = settled();
    let (master, to, begin) = (sim.master().unwrap(), slaves(&sim)[0], sim.now);
    sim.wish(to, Wish::Maintenance(true));
    let id = sim.wish(master, Wish::Promote(sim.servers[to].name.clone(), None));
    sim.run(secs(1));
    assert!(
        sim.answers[&id]
            .as_ref()
            .unwrap_err()
            .contains("maintenance"),
        "{:?}",
        sim.answers
    );
    sim.power_off(to);
    let id = sim.wish(master, Wish::Promote(sim.servers[to].name.clone(), None));
    sim.run(secs(1));
    assert!(
        sim.answers[&id]
            .as_ref()
            .unwrap_err()
            .contains("does not answer"),
        "{:?}",
        sim.answers
    );
    assert_eq!(sim.changes_since(begin), 0);
}

#[test]
fn when_the_invitation_is_lost_an_ordinary_election_follows_within_a_lease() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let to = slaves(&sim)[0];
    sim.servers[old].gate_delay = (5000, 5000);
    sim.wish(old, Wish::Promote(sim.servers[to].name.clone(), None));
    sim.until(ms(50), |s| s.role(old, "web") == "slave");
    // Cut after the answer "ready", while the gate is being shut: only the third server hears the Release.
    sim.links[old][to].up = false;
    sim.until(ms(50), |s| s.master().is_none());
    let took = sim.until(secs(3), |s| s.master().is_some());
    assert!(took < L + ms(250), "{took:?}");
    assert_ne!(
        sim.master(),
        Some(old),
        "who handed over stands again only after two leases"
    );
}

#[test]
fn a_call_reaches_a_voter_whose_link_comes_back_while_it_lasts() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let [to, third] = slaves(&sim)[..] else {
        panic!("three servers");
    };
    sim.servers[old].gate_delay = (5000, 5000);
    sim.wish(old, Wish::Promote(sim.servers[to].name.clone(), None));
    sim.until(ms(50), |s| s.role(old, "web") == "slave");
    // The third server hears neither Release nor call, the old master no call.
    sim.links[to][old].up = false;
    sim.links[old][third].up = false;
    sim.cut(to, third);
    sim.run(ms(20));
    assert_eq!(sim.master(), None);
    sim.join(to, third);
    let took = sim.until(secs(3), |s| s.master().is_some());
    assert_eq!(sim.master(), Some(to));
    assert!(took < ms(20), "{took:?}");
}

#[test]
fn resign_hands_over_to_the_first_in_rank_and_without_an_heir_changes_nothing() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let (first, second) = (slaves(&sim)[0], slaves(&sim)[1]);
    sim.give(
        second,
        Input::Fresh(Freshness {
            term: Term(5),
            run: 5,
        }),
    );
    sim.run(ms(300));
    let id = sim.wish(old, Wish::Resign);
    sim.run(secs(1));
    assert_eq!(sim.master(), Some(second));
    assert!(sim.answers[&id].is_ok());
    for i in [old, first] {
        sim.wish(i, Wish::Maintenance(true));
    }
    sim.run(secs(1));
    let (id, begin) = (sim.wish(second, Wish::Resign), sim.now);
    sim.run(secs(1));
    assert!(sim.answers[&id].is_err());
    assert_eq!(sim.changes_since(begin), 0);
}

#[test]
fn a_server_in_maintenance_hands_over_votes_and_does_not_stand() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let id = sim.wish(old, Wish::Maintenance(true));
    sim.until(secs(1), |s| s.master().is_some_and(|m| m != old));
    sim.run(secs(1));
    assert!(sim.answers[&id].is_ok());
    let new = sim.master().unwrap();
    sim.power_off(new);
    sim.until(secs(2), |s| {
        s.master().is_some_and(|m| m != new && m != old)
    });
    let last = sim.master().unwrap();
    sim.power_off(last);
    sim.power_on(new);
    sim.run(ms(300));
    sim.power_off(new);
    sim.run(secs(5));
    assert!(sim.master().is_none());
    sim.power_on(new);
    sim.until(secs(3), |s| s.gate_open(new, "web"));
    sim.wish(old, Wish::Maintenance(false));
    sim.power_off(new);
    sim.power_on(last);
    sim.until(secs(3), |s| s.master().is_some());
}

#[test]
fn a_master_in_maintenance_without_successor_hands_over_when_one_comes() {
    let mut sim = settled();
    let (old, others) = (sim.master().unwrap(), slaves(&sim));
    sim.power_off(others[0]);
    sim.wish(others[1], Wish::Maintenance(true));
    sim.run(secs(2));
    let id = sim.wish(old, Wish::Maintenance(true));
    sim.run(secs(8));
    assert!(sim.answers[&id].is_err(), "{:?}", sim.answers);
    assert_eq!(sim.master(), Some(old), "it serves rather than nobody");
    sim.wish(others[1], Wish::Maintenance(false));
    sim.until(secs(6), |s| s.gate_open(others[1], "web"));
}

#[test]
fn a_clean_stop_hands_over_first_and_leaves_a_reservation_of_what_was_voted() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let (begin, term) = (sim.now, sim.term(old));
    sim.give(old, Input::Stop);
    let took = sim.until(secs(1), |s| s.master().is_some_and(|m| m != old));
    assert!(took < ms(20), "{took:?}");
    // The successor may win by the other's vote and open first.
    sim.until(ms(20), |s| s.stopped == [old]);
    assert_eq!(sim.changes_since(begin), 2);
    let reserved = sim.servers[old].reservation.as_ref().unwrap().reserved;
    assert_eq!(reserved.0, term + 1, "it has voted for its successor");
    assert_eq!(sim.servers[old].handed_over, (1, 1));
    sim.run(secs(1));
    sim.start(old);
    sim.run(secs(3));
    assert_eq!(sim.changes_since(begin), 2, "its return disturbs nobody");
    assert!(
        sim.servers[old].reservation.as_ref().unwrap().reserved.0 > term + 1000,
        "and it reserves again"
    );
}

#[test]
fn the_last_server_stops_without_an_heir_and_shuts_its_gate_first() {
    let mut sim = settled();
    let last = sim.master().unwrap();
    slaves(&sim)
        .into_iter()
        .for_each(|i| sim.give(i, Input::Stop));
    sim.give(last, Input::Stop);
    sim.until(secs(1), |s| s.stopped.len() == 3);
    assert!(sim.master().is_none());
}

#[test]
fn a_candidate_or_a_renewing_server_that_is_told_to_stop_does_stop() {
    for seed in 0..40 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        let old = sim.master().unwrap();
        if seed % 2 == 0 {
            sim.power_off(old);
            sim.run(ms(400 + seed * 10));
        } else {
            sim.kill(old);
            sim.start(old);
        }
        let candidate = (0..3)
            .find(|i| sim.servers[*i].elector.is_some() && sim.role(*i, "web") == "candidate");
        let Some(i) = candidate.or(sim.servers[old].elector.as_ref().map(|_| old)) else {
            continue;
        };
        sim.give(i, Input::Stop);
        sim.until(secs(1), |s| s.stopped.contains(&i));
    }
}

#[test]
fn a_preferred_server_is_handed_over_to_once_and_not_every_time_it_is_better() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    let better = slaves(&sim)[0];
    for i in 0..3 {
        sim.settings(i, |s| {
            for v in s.virtual_servers.values_mut() {
                (v.preempt, v.priority) = (Preempt::Always, if i == better { 200 } else { 100 });
            }
        });
    }
    let took = sim.until(secs(30), |s| s.gate_open(better, "web"));
    assert!(
        took > secs(5),
        "a mastership lasts a while before preference has a say"
    );
    assert_ne!(old, better);
    let begin = sim.now;
    sim.run(secs(60));
    assert_eq!(
        sim.changes_since(begin),
        1,
        "the old one has become slave, and that was all"
    );
}

// ---- restarts ----------------------------------------------------------------------------------------

#[test]
fn an_electd_restarted_with_its_gate_open_renews_in_a_higher_term_and_clients_see_nothing() {
    for seed in 0..20 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        let (master, begin) = (sim.master().unwrap(), sim.now);
        let term = sim.term(master);
        sim.kill(master);
        sim.restart_in(master, ms(20));
        for _ in 0..2000 {
            sim.run(ms(1));
            assert!(sim.gate_open(master, "web"), "the gate closed");
        }
        let seen: Vec<_> = sim.roles.iter().filter(|r| r.at > begin).collect();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].change.renewed && seen[0].change.master && seen[0].change.term.0 > term);
    }
}

#[test]
fn an_electd_restarted_too_late_finds_its_gate_closed_and_the_cluster_elects_anew() {
    let mut sim = settled();
    let old = sim.master().unwrap();
    sim.kill(old);
    sim.restart_in(old, ms(430));
    sim.until(secs(3), |s| s.master().is_none());
    sim.until(secs(3), |s| s.master().is_some());
}

#[test]
fn a_killed_voter_keeps_the_promises_of_the_one_before() {
    let mut sim = settled();
    let (master, begin) = (sim.master().unwrap(), sim.now);
    let slave = slaves(&sim)[0];
    for _ in 0..20 {
        sim.kill(slave);
        sim.start(slave);
        sim.run(ms(130));
    }
    assert_eq!(sim.changes_since(begin), 0);
    assert!(sim.gate_open(master, "web"));
}

#[test]
fn a_voter_without_memory_keeps_silent_for_the_longest_promise_even_if_electd_is_killed_meanwhile()
{
    let mut sim = settled();
    let slave = slaves(&sim)[0];
    sim.power_off(slave);
    sim.run(ms(50));
    sim.power_on(slave);
    for _ in 0..4 {
        sim.run(ms(100));
        assert!(
            sim.view(slave).standing.contains("silent"),
            "{}",
            sim.view(slave).standing
        );
        sim.kill(slave);
        sim.start(slave); // the judge fails if it says anything
    }
    sim.run(ms(150));
    assert_eq!(sim.view(slave).standing, "taking part");
}

#[test]
fn a_master_and_a_voter_without_power_and_back_at_once_never_make_two_masters() {
    for seed in 0..20 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        let (master, voter) = (sim.master().unwrap(), slaves(&sim)[0]);
        // The master keeps its lease on the third; the voter has forgotten that it is promised.
        sim.power_off(voter);
        sim.power_on(voter);
        sim.partition(&[master]);
        sim.run(secs(3));
        assert!(sim.master().is_some_and(|m| m != master));
    }
}

#[test]
fn a_blank_server_says_nothing_until_every_other_has_told_and_then_joins() {
    let mut sim = settled();
    let (master, begin) = (sim.master().unwrap(), sim.now);
    let (blank, other) = (slaves(&sim)[0], slaves(&sim)[1]);
    sim.power_off(blank);
    sim.wipe(blank);
    sim.cut(blank, other);
    sim.run(ms(10));
    sim.power_on(blank);
    sim.run(secs(5));
    assert!(
        sim.view(blank).standing.contains("blank"),
        "one other server has not told"
    );
    sim.join(blank, other);
    sim.run(ms(200));
    assert!(sim.view(blank).standing.contains("silent"));
    sim.run(secs(1));
    assert_eq!(sim.view(blank).standing, "taking part");
    assert_eq!(
        sim.servers[blank]
            .reservation
            .as_ref()
            .unwrap()
            .roster
            .voters
            .len(),
        3
    );
    assert_eq!(sim.changes_since(begin), 0);
    sim.power_off(other);
    sim.run(secs(2));
    assert!(sim.gate_open(master, "web"), "its promise counts again");
}

#[test]
fn a_cluster_of_blank_servers_waits_for_standin_init() {
    let mut sim = Sim::new(&Setup {
        servers: 0,
        blank: 3,
        ..Setup::default()
    });
    sim.power_on_all();
    sim.run(secs(30));
    assert!(sim.master().is_none() && !sim.judge.seen.contains_key("call"));
    // Each says once that nobody can tell it anything, and what to do.
    assert_eq!(sim.alarms.len(), 3, "{:?}", sim.alarms);
    for alarm in &sim.alarms {
        assert!(alarm.contains("`standin init --adopt`"), "{alarm}");
    }
}

#[test]
fn a_blank_server_raises_no_alarm_while_another_one_may_still_tell() {
    let mut sim = settled();
    for server in 0..3 {
        sim.power_off(server);
    }
    for blank in [1, 2] {
        sim.wipe(blank);
        sim.power_on(blank);
    }
    sim.run(secs(5)); // the third has told nothing yet
    sim.power_on(0);
    sim.run(secs(5));
    assert_eq!(sim.alarms, Vec::<String>::new());
}

// ---- disk --------------------------------------------------------------------------------------------

#[test]
fn a_disk_that_needs_two_seconds_delays_no_election() {
    let mut sim = settled();
    for i in 0..3 {
        sim.servers[i].disk_delay = secs(2);
    }
    for _ in 0..5 {
        let old = sim.master().unwrap();
        sim.power_off(old);
        let took = sim.until(secs(5), |s| s.master().is_some());
        assert!(took < TAKEOVER, "{took:?}");
        sim.power_on(old);
        sim.run(secs(6));
    }
}

#[test]
fn with_a_failing_disk_nobody_votes_or_acknowledges_beyond_the_reservation() {
    let mut sim = settled();
    let (voter, other) = (slaves(&sim)[0], sim.servers[slaves(&sim)[1]].name.clone());
    sim.servers[voter].disk_fails = true;
    let reserved = sim.servers[voter].reservation.as_ref().unwrap().reserved;
    sim.sent = Some(Vec::new());
    let call = |term, number| Signal {
        virtual_server: vname("web"),
        instance: Instance(77),
        number: Number(number),
        body: Body::Call {
            term,
            lease: L,
            releases: Vec::new(),
            roster: RosterVersion {
                term: Term(99),
                counter: 0,
            },
        },
    };
    sim.partition(&[voter]);
    sim.run(secs(2)); // its promise has ended
    sim.give(
        voter,
        Input::Signal {
            from: other.clone(),
            signal: call(reserved.next(), 1),
        },
    );
    sim.run(secs(3));
    let answers = |sim: &Sim| -> Vec<_> {
        let sent = sim.sent.as_ref().unwrap().iter();
        sent.filter(|(i, to, s)| *i == voter && *to == other && s.number.0 > 0)
            .filter_map(|(.., s)| match &s.body {
                Body::Grant { term, .. } => Some((*term, None)),
                Body::Refuse { term, why, .. } => Some((*term, Some(*why))),
                _ => None,
            })
            .collect()
    };
    assert_eq!(answers(&sim), [(reserved.next(), Some(Why::Reservation))]);
    assert!(!sim.alarms.is_empty(), "the operator is told");
    sim.servers[voter].disk_fails = false;
    sim.run(secs(3));
    assert!(sim.servers[voter].reservation.as_ref().unwrap().reserved > reserved);
}

#[test]
fn elections_go_on_with_failing_disks_until_the_reservation_is_used_up() {
    let mut sim = settled();
    (0..3).for_each(|i| sim.servers[i].disk_fails = true);
    for _ in 0..5 {
        let old = sim.master().unwrap();
        sim.kill(old);
        sim.until(secs(3), |s| s.master().is_some_and(|m| m != old));
        sim.start(old);
        sim.run(secs(2));
    }
}

// ---- lease, roster -----------------------------------------------------------------------------------

#[test]
fn the_lease_is_changed_up_and_down_while_running_and_the_gate_stays_open() {
    let mut sim = settled();
    let (master, begin) = (sim.master().unwrap(), sim.now);
    let change = |sim: &mut Sim, lease: Duration| {
        for i in 0..3 {
            sim.settings(i, |s| s.lease = lease);
            for _ in 0..200 {
                sim.run(ms(2));
                assert!(sim.gate_open(master, "web"), "the gate closed at {lease:?}");
            }
        }
    };
    change(&mut sim, secs(2));
    assert_eq!(sim.view(master).lease, secs(2));
    assert!((0..3).all(|i| sim.servers[i].reservation.as_ref().unwrap().promise_max == secs(2)));
    change(&mut sim, ms(500));
    assert_eq!(sim.view(master).lease, ms(500));
    assert!((0..3).all(|i| sim.servers[i].reservation.as_ref().unwrap().promise_max == secs(2)));
    sim.run(secs(10));
    assert!((0..3).all(|i| sim.servers[i].reservation.as_ref().unwrap().promise_max == ms(500)));
    assert_eq!(sim.changes_since(begin), 0);
}

#[test]
fn a_longer_lease_on_the_master_alone_waits_for_a_majority_that_can_promise_it() {
    let mut sim = settled();
    let master = sim.master().unwrap();
    (0..3).for_each(|i| sim.servers[i].disk_delay = secs(3));
    sim.settings(master, |s| s.lease = secs(2));
    sim.run(secs(5));
    assert_eq!(sim.view(master).lease, L);
    sim.settings((master + 1) % 3, |s| s.lease = secs(2));
    sim.run(secs(5));
    assert_eq!(sim.view(master).lease, secs(2));
}

#[test]
fn a_promise_given_while_a_lower_longest_promise_is_being_written_is_covered_by_it() {
    // The longest promise is lowered in the background; a lease as long as before must wait meanwhile.
    let mut sim = settled();
    let (master, slave) = (sim.master().unwrap(), slaves(&sim)[0]);
    (0..3).for_each(|i| sim.settings(i, |s| s.lease = secs(2)));
    sim.run(secs(5));
    (0..3).for_each(|i| sim.settings(i, |s| s.lease = ms(500)));
    sim.servers[slave].disk_delay = ms(700);
    let promise_max = |s: &Sim| s.servers[slave].reservation.as_ref().unwrap().promise_max;
    for _ in 0..400 {
        // The master's lease goes to and fro at the worst of times.
        sim.settings(master, |s| {
            s.lease = if s.lease == ms(500) { secs(2) } else { ms(500) }
        });
        sim.run(ms(37));
        if promise_max(&sim) == ms(500) {
            break;
        }
    }
    sim.power_off(slave);
    sim.power_on(slave);
    sim.partition(&[master]);
    sim.run(secs(5)); // the judge would see a promise to two
}

#[test]
fn a_voter_is_added_to_the_roster_and_counts() {
    let mut sim = Sim::settled(&Setup {
        blank: 1,
        ..Setup::default()
    });
    let (master, begin) = (sim.master().unwrap(), sim.now);
    assert_eq!(
        sim.view(3).standing,
        "taking part",
        "it has learned from the others"
    );
    assert_eq!(sim.view(master).quorum_need, 2);
    let slave = slaves(&sim)[0];
    let wrong = sim.wish(slave, Wish::Add(name("delta")));
    let id = sim.wish(master, Wish::Add(name("delta")));
    sim.run(secs(2));
    assert!(sim.answers[&wrong].is_err(), "only the master changes it");
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers);
    assert_eq!(sim.view(master).quorum_need, 3);
    assert!((0..4).all(|i| {
        sim.servers[i]
            .reservation
            .as_ref()
            .unwrap()
            .roster
            .voters
            .len()
            == 4
    }));
    assert_eq!(sim.changes_since(begin), 0);
    sim.wish(master, Wish::Promote(name("delta"), None));
    sim.until(secs(1), |s| s.gate_open(3, "web"));
}

#[test]
fn a_server_outside_the_roster_does_not_stand_and_is_not_counted() {
    let mut sim = Sim::settled(&Setup {
        blank: 1,
        ..Setup::default()
    });
    let master = sim.master().unwrap();
    let slave = slaves(&sim)[0];
    sim.power_off(slave);
    sim.power_off(
        slaves(&sim)
            .into_iter()
            .find(|i| *i != slave && *i != 3)
            .unwrap(),
    );
    sim.run(secs(5));
    assert!(
        sim.master().is_none(),
        "the fourth server's promise is no voter's"
    );
    assert_eq!(sim.role(master, "web"), "slave");
}

#[test]
fn a_voter_is_removed_from_the_roster_and_counts_no_more() {
    let mut sim = Sim::settled(&Setup {
        servers: 5,
        ..Setup::default()
    });
    let master = sim.master().unwrap();
    for gone in (0..5).filter(|i| *i != master).take(2) {
        let id = sim.wish(master, Wish::Remove(sim.servers[gone].name.clone()));
        sim.run(secs(2));
        assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers);
        sim.power_off(gone);
    }
    assert_eq!(sim.view(master).quorum_need, 2);
    sim.power_off(master);
    sim.until(secs(3), |s| s.master().is_some());
    let master = sim.master().unwrap();
    let other = sim
        .view(master)
        .voters
        .into_iter()
        .find(|v| *v != sim.servers[master].name)
        .unwrap();
    sim.run(secs(1));
    let id = sim.wish(master, Wish::Remove(other));
    sim.run(secs(1));
    assert!(sim.answers[&id].is_err(), "three are the least");
}

#[test]
fn two_changes_of_the_roster_need_a_majority_that_holds_the_first() {
    let mut sim = Sim::settled(&Setup {
        servers: 4,
        blank: 1,
        ..Setup::default()
    });
    let master = sim.master().unwrap();
    let rest: Vec<_> = (0..4).filter(|i| *i != master).collect();
    rest.iter()
        .for_each(|i| sim.servers[*i].disk_delay = secs(5));
    let first = sim.wish(master, Wish::Add(name("epsilon")));
    sim.run(ms(500));
    assert!(sim.answers[&first].is_ok());
    let second = sim.wish(master, Wish::Remove(sim.servers[rest[0]].name.clone()));
    sim.run(ms(500));
    assert!(
        sim.answers[&second]
            .as_ref()
            .unwrap_err()
            .contains("majority"),
        "{:?}",
        sim.answers
    );
}

#[test]
fn a_voter_that_lost_its_disk_counts_no_more_as_one_that_holds_the_roster() {
    let mut sim = Sim::settled(&Setup {
        servers: 5,
        ..Setup::default()
    });
    let master = sim.master().unwrap();
    let rest: Vec<_> = (0..5).filter(|i| *i != master).collect();
    sim.servers[rest[0]].disk_delay = secs(50);
    let remove = |i: usize, sim: &mut Sim| {
        let id = sim.wish(master, Wish::Remove(sim.servers[i].name.clone()));
        sim.run(ms(300));
        sim.answers[&id].clone()
    };
    remove(rest[1], &mut sim).unwrap();
    sim.power_off(rest[2]);
    sim.wipe(rest[2]);
    sim.power_on(rest[2]);
    sim.run(ms(250));
    // Of the four voters the master and one more hold it.
    let refused = remove(rest[3], &mut sim).unwrap_err();
    assert!(refused.contains("majority"), "{refused}");
}

// ---- quorum = none -----------------------------------------------------------------------------------

#[test]
fn without_a_quorum_each_side_of_a_partition_has_a_master_and_the_higher_term_stays_when_it_heals()
{
    for seed in 0..20 {
        let setup = Setup {
            servers: 2,
            mode: Mode::None,
            seed,
            ..Setup::default()
        };
        let mut sim = Sim::settled(&setup);
        let old = sim.master().unwrap();
        sim.partition(&[old]);
        sim.run(secs(5));
        assert!(
            sim.gate_open(0, "web") && sim.gate_open(1, "web"),
            "seed {seed}: both serve"
        );
        let terms = [sim.term(0), sim.term(1)];
        assert_ne!(terms[0], terms[1]);
        sim.heal();
        sim.run(secs(2));
        let winner = usize::from(terms[1] > terms[0]);
        assert!(sim.gate_open(winner, "web") && !sim.gate_open(1 - winner, "web"));
        sim.power_off(winner);
        sim.until(secs(4), |s| s.gate_open(1 - winner, "web"));
    }
}

#[test]
fn without_a_quorum_a_restarted_electd_renews_and_a_stop_hands_over() {
    let mut sim = Sim::settled(&Setup {
        servers: 2,
        mode: Mode::None,
        ..Setup::default()
    });
    let old = sim.master().unwrap();
    sim.kill(old);
    sim.start(old);
    sim.run(secs(2));
    assert_eq!(sim.master(), Some(old));
    assert!(sim.roles.last().unwrap().change.renewed);
    sim.give(old, Input::Stop);
    sim.until(secs(1), |s| s.gate_open(1 - old, "web"));
}

// ---- what must not matter ----------------------------------------------------------------------------

#[test]
fn repeated_reordered_and_late_messages_change_nothing() {
    for seed in 0..10 {
        let mut sim = Sim::settled(&Setup {
            seed,
            ..Setup::default()
        });
        sim.all_links(|l| (l.repeat, l.late, l.signal_repeat) = (50, 5, 50));
        let begin = sim.now;
        sim.run(secs(10));
        assert_eq!(sim.changes_since(begin), 0, "seed {seed}");
        let to = slaves(&sim)[0];
        sim.wish(
            sim.master().unwrap(),
            Wish::Promote(sim.servers[to].name.clone(), None),
        );
        sim.run(secs(10));
        assert!(sim.master().is_some());
    }
}

/// The elector as text, without what only counts.
fn state_of(sim: &Sim, i: usize) -> String {
    let text = format!("{:?}", sim.servers[i].elector.as_ref().unwrap());
    text.split("counters: ").next().unwrap().to_owned()
}

#[test]
fn signals_that_a_state_does_not_accept_are_counted_and_change_nothing() {
    let mut sim = settled();
    let (master, slave) = (sim.master().unwrap(), slaves(&sim)[0]);
    let other = sim.servers[slaves(&sim)[1]].name.clone();
    let (i, k, t) = (Instance(1), Number(1), Term(1));
    let hopeless = [
        (
            slave,
            Body::PreAnswer {
                term: t,
                round: 1,
                verdict: PreVerdict::Yes,
            },
            "pre_answer_unasked",
        ),
        (
            slave,
            Body::Grant {
                instance: i,
                number: k,
                term: t,
            },
            "out_of_state_grant",
        ),
        (slave, Body::Ready, "out_of_state_ready"),
        (
            slave,
            Body::NotReady { why: "no".into() },
            "out_of_state_not_ready",
        ),
        (
            slave,
            Body::HandOver { to: other.clone() },
            "out_of_state_hand_over",
        ),
        (
            slave,
            Body::Refuse {
                instance: i,
                number: k,
                term: t,
                why: Why::Floor,
                floor: Term(500),
            },
            "out_of_state_refuse",
        ),
        (
            slave,
            Body::Clients {
                clients: Vec::new(),
            },
            "clients_not_of_master",
        ),
        (
            master,
            Body::Clients {
                clients: Vec::new(),
            },
            "out_of_state_clients",
        ),
        (
            master,
            Body::PreAnswer {
                term: t,
                round: 1,
                verdict: PreVerdict::Yes,
            },
            "pre_answer_unasked",
        ),
        (
            master,
            Body::Grant {
                instance: i,
                number: k,
                term: t,
            },
            "grant_unasked",
        ),
        (master, Body::Ready, "ready_unasked"),
        (
            master,
            Body::NotReady { why: "no".into() },
            "not_ready_unasked",
        ),
    ];
    for (server, body, counted) in hopeless {
        let (before, n) = (state_of(&sim, server), sim.counter(server, counted));
        let signal = Signal {
            virtual_server: vname("web"),
            instance: i,
            number: k,
            body: body.clone(),
        };
        sim.give(
            server,
            Input::Signal {
                from: other.clone(),
                signal,
            },
        );
        assert_eq!(sim.counter(server, counted), n + 1, "{body:?}");
        assert_eq!(state_of(&sim, server), before, "{body:?}");
    }
}

#[test]
fn the_clients_that_the_master_has_seen_are_told_to_the_others_and_no_slave_tells_any() {
    let mut sim = settled();
    let master = sim.master().unwrap();
    let seen = vec![Client {
        ip: [192, 0, 2, 99].into(),
        mac: [2, 0, 0, 0, 0, 9],
        age_s: 3,
    }];
    for slave in slaves(&sim) {
        sim.give(slave, Input::Clients(vname("web"), Vec::new()));
    }
    sim.give(master, Input::Clients(vname("web"), seen.clone()));
    sim.run(secs(1));
    for slave in slaves(&sim) {
        assert_eq!(sim.servers[slave].clients, [(vname("web"), seen.clone())]);
    }
    assert_eq!(sim.servers[master].clients, []);
    let many = Body::Clients {
        clients: vec![seen[0]; CLIENTS_MAX + 1],
    };
    let (slave, from) = (slaves(&sim)[0], sim.servers[master].name.clone());
    let signal = Signal {
        virtual_server: vname("web"),
        instance: Instance(1),
        number: Number(1),
        body: many,
    };
    sim.give(slave, Input::Signal { from, signal });
    assert_eq!(sim.counter(slave, "clients_too_many"), 1);
    assert_eq!(sim.servers[slave].clients.len(), 1);
}

#[test]
fn messages_of_an_unknown_server_or_about_unknown_things_change_nothing() {
    let mut sim = settled();
    let master = sim.master().unwrap();
    let before = state_of(&sim, master);
    let signal = Signal {
        virtual_server: vname("web"),
        instance: Instance(5),
        number: Number(9),
        body: Body::Call {
            term: Term(900),
            lease: L,
            releases: Vec::new(),
            roster: RosterVersion::default(),
        },
    };
    sim.give(
        master,
        Input::Signal {
            from: name("mallory"),
            signal,
        },
    );
    assert_eq!(sim.counter(master, "signal_unlisted"), 1);
    assert_eq!(state_of(&sim, master), before);
}

#[test]
fn a_blank_or_silent_server_answers_calls_with_no_and_grants_nothing() {
    let mut sim = Sim::new(&Setup {
        blank: 1,
        ..Setup::default()
    });
    sim.sent = Some(Vec::new());
    sim.power_on(0);
    sim.power_on(3);
    sim.run(ms(100));
    for server in [0, 3] {
        let body = Body::Call {
            term: Term(9000),
            lease: L,
            releases: Vec::new(),
            roster: RosterVersion::default(),
        };
        let signal = Signal {
            virtual_server: vname("web"),
            instance: Instance(5),
            number: Number(9),
            body,
        };
        sim.give(
            server,
            Input::Signal {
                from: name("beta"),
                signal,
            },
        );
        let sent = sim.sent.as_ref().unwrap();
        let refused = |s: &Signal| matches!(s.body, Body::Refuse { .. });
        assert!(sent.iter().any(|(i, _, s)| *i == server && refused(s)));
    }
}

#[test]
fn a_term_more_than_two_to_the_32_ahead_is_refused_and_not_learned() {
    let mut sim = settled();
    let slave = slaves(&sim)[0];
    let other = sim.servers[slaves(&sim)[1]].name.clone();
    let floor = Term(1 << 40);
    let body = Body::PreAnswer {
        term: Term(1),
        round: 1,
        verdict: PreVerdict::No {
            why: Why::Floor,
            floor,
            retry_after: None,
        },
    };
    let signal = Signal {
        virtual_server: vname("web"),
        instance: Instance(5),
        number: Number(9),
        body,
    };
    sim.give(
        slave,
        Input::Signal {
            from: other,
            signal,
        },
    );
    assert_eq!(sim.counter(slave, "floor_absurd"), 1);
    sim.run(secs(1));
    assert!(sim.servers[slave].reservation.as_ref().unwrap().reserved.0 < 10_000);
}

#[test]
fn a_release_of_another_instance_or_an_older_number_frees_nobody() {
    let mut sim = settled();
    let (master, slave) = (sim.master().unwrap(), slaves(&sim)[0]);
    let from = sim.servers[master].name.clone();
    let third = sim.servers[slaves(&sim)[1]].name.clone();
    sim.sent = Some(Vec::new());
    let released = |instance, number| Released {
        server: from.clone(),
        instance,
        number,
    };
    let releases = vec![
        released(Instance(123), Number(u64::MAX)),
        released(Instance(123), Number(1)),
    ];
    let term = Term(sim.term(slave) + 100);
    let body = Body::Call {
        term,
        lease: L,
        releases,
        roster: RosterVersion { term, counter: 0 },
    };
    let signal = Signal {
        virtual_server: vname("web"),
        instance: Instance(5),
        number: Number(9),
        body,
    };
    sim.give(
        slave,
        Input::Signal {
            from: third,
            signal,
        },
    );
    let (.., answer) = sim.sent.as_ref().unwrap().last().unwrap().clone();
    assert!(
        matches!(
            answer.body,
            Body::Refuse {
                why: Why::Promised,
                ..
            }
        ),
        "{answer:?}"
    );
}
