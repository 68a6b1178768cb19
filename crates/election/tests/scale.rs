//! Many virtual servers: an event costs what it concerns, and all of them fail over.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{L, Setup, Sim, ms, name, secs};
use election::{Elector, Input, Output};
use protocol::{
    Instance, Number, Term,
    codec::encode,
    wire::{
        beat::{
            Ack, Answer, Beat, Claim, Freshness, Participation, Roster, Standing,
            VIRTUAL_SERVERS_MAX, Verdict, Why,
        },
        datagram::{Body, Data, Echo, Incarnation, Left, Packet},
    },
};
use std::time::{Duration, Instant};

fn many(n: usize) -> Sim {
    let names = (0..n).map(|v| &*format!("virtual-{v:03}").leak());
    Sim::settled(&Setup {
        virtual_servers: names.collect(),
        ..Setup::default()
    })
}

fn outputs(elector: &mut Elector) -> Vec<Output> {
    std::iter::from_fn(|| elector.poll_output()).collect()
}

/// The shortest of some runs: what the code takes when the machine lets it.
fn cost(mut run: impl FnMut()) -> Duration {
    let one = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..20).map(one).min().unwrap()
}

/// A beat and an acknowledgement of one claim among many that nobody disputes.
fn costs(virtual_servers: usize) -> (Duration, Duration) {
    let sim = many(virtual_servers);
    let elector = |i: usize| sim.servers[i].elector.clone().unwrap();
    let master = sim.master_of("virtual-000").unwrap();
    let slave = (master + 1) % 3;
    let beats = |i: usize| {
        let mut from = elector(i);
        let at = from.poll_timeout().unwrap();
        from.handle_timeout(at);
        let beat = outputs(&mut from).into_iter().find_map(|o| match o {
            Output::Beat(beat) => Some(beat),
            _ => None,
        });
        (from, at, beat.unwrap())
    };
    let (sender, sent, mut beat) = beats(master);
    let one = beat.standings.iter().find(|s| s.claim.is_some()).unwrap();
    let ack = Ack {
        instance: beat.instance,
        number: beat.number,
        waited: Duration::ZERO,
        answers: vec![Answer {
            virtual_server: one.virtual_server.clone(),
            verdict: Verdict::Promised(one.claim.unwrap().term),
        }],
        roster: beat.roster.version,
    };
    let (me, other) = (
        sim.servers[master].name.clone(),
        sim.servers[slave].name.clone(),
    );
    let now = sim.local(slave);
    let mut receiver = elector(slave);
    let for_beat = cost(|| {
        beat.number = beat.number.next();
        let (from, beat) = (me.clone(), beat.clone());
        receiver.handle(
            now,
            Input::Beat {
                from,
                at: now,
                beat,
            },
        );
        let _ = receiver.poll_timeout();
        outputs(&mut receiver);
    });
    let mut sender = sender;
    let for_ack = cost(|| {
        let (from, ack) = (other.clone(), ack.clone());
        sender.handle(sent, Input::Ack { from, ack });
        let _ = sender.poll_timeout();
        outputs(&mut sender);
    });
    (for_beat, for_ack)
}

#[test]
fn an_event_costs_what_it_concerns() {
    let (few, many) = (costs(20), costs(200));
    println!(
        "20 virtual servers: beat {:?}, ack of one {:?}",
        few.0, few.1
    );
    println!(
        "200 virtual servers: beat {:?}, ack of one {:?}",
        many.0, many.1
    );
    assert!(
        many.0 < few.0 * 30,
        "a beat that names ten times as many: {few:?}, {many:?}"
    );
    assert!(
        many.1 < few.1 * 4 + Duration::from_micros(20),
        "an ack of one: {few:?}, {many:?}"
    );
}

#[test]
fn many_virtual_servers_have_masters_again_after_a_power_loss() {
    let mut sim = many(50);
    let master = sim.master_of("virtual-000").unwrap();
    sim.power_off(master);
    sim.until(L * 3, |s| {
        (0..50).all(|v| s.master_of(&format!("virtual-{v:03}")).is_some())
    });
    sim.run(ms(10));
    let begin = sim.now;
    sim.power_on(master);
    sim.run(secs(5));
    assert_eq!(sim.changes_since(begin), 0, "NoFlap");
}

/// As large as a message of an honest server can be.
fn fits(body: Body) -> usize {
    let data = Data {
        from: Incarnation([255; 16]),
        to: Incarnation([255; 16]),
        sequence: u64::MAX,
        sent_ns: u64::MAX,
        left: Some(Left {
            sent_ns: u64::MAX,
            late_ns: u32::MAX,
        }),
        echo: Some(Echo {
            sent_ns: u64::MAX,
            received_ns: u64::MAX,
        }),
        bodies: vec![body],
    };
    encode(&Packet::Data(Box::new(data)))
        .expect("one datagram")
        .len()
}

#[test]
fn the_largest_beat_and_acknowledgement_are_one_datagram_each() {
    let long = |n: usize| format!("{n:063}");
    let voters = (0..64).map(|n| name(&long(n))).collect();
    let standing = |n: usize| Standing {
        virtual_server: long(n).parse().unwrap(),
        floor: Term(u64::MAX),
        claim: Some(Claim {
            term: Term(u64::MAX),
            lease_held: true,
        }),
        fit: true,
        priority: u32::MAX,
    };
    let beat = Beat {
        instance: Instance(u64::MAX),
        number: Number(u64::MAX),
        lease: secs(10),
        promise_max: secs(10),
        floor_base: Term(u64::MAX),
        participation: Participation::Active,
        maintenance: true,
        witness: true,
        freshness: Freshness {
            term: Term(u64::MAX),
            run: u64::MAX,
        },
        standings: (0..VIRTUAL_SERVERS_MAX).map(standing).collect(),
        heard: Vec::new(),
        roster: Roster {
            version: Default::default(),
            voters,
            keeper: None,
        },
        config_hash: u64::MAX,
        part: Default::default(),
    };
    println!("beat: {} bytes", fits(Body::Beat(beat)));
    // A server claims what is in its file: at most half of what others keep promises for.
    let answer = |n: usize| Answer {
        virtual_server: long(n).parse().unwrap(),
        verdict: Verdict::Refused {
            why: Why::TooMany,
            floor: Term(u64::MAX),
            holder: Some(name(&long(n))),
        },
    };
    let ack = Ack {
        instance: Instance(u64::MAX),
        number: Number(u64::MAX),
        waited: secs(10),
        answers: (0..VIRTUAL_SERVERS_MAX / 2).map(answer).collect(),
        roster: Default::default(),
    };
    println!("acknowledgement: {} bytes", fits(Body::Ack(ack)));
}
