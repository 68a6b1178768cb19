//! Two cores and the network between them: what is passed on, what is refused, and how restarts heal.

#![allow(clippy::unwrap_used, missing_docs)]

use heartbeat::{Heartbeat, Input, Output, PART_MAX, PeerSettings, Refusal, Settings, Transmit};
use proptest::prelude::*;
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term,
    local::{
        ring::{ElectdToHbd, HbdToDoctord},
        status::{PathRefusal, Refused, Stranger},
    },
    seal::{NONCE, Sealer},
    wire::{
        beat::{
            Ack, Answer, Beat, Claim, Freshness, Participation, Roster, Standing, Verdict, Why,
        },
        datagram::{self, Challenge, Data, Incarnation, Packet},
    },
};
use std::{net::IpAddr, time::Duration};

/// All wall clocks are so far ahead of the one that nobody sets, in nanoseconds.
const WALL: u64 = 1_000_000_000;
const H: Duration = Duration::from_millis(100);
const KEY: [u8; 32] = [1; 32];

fn name(text: &str) -> ServerName {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(server: &str) -> Vec<IpAddr> {
    let last = server.as_bytes()[0];
    vec![
        ip(&format!("192.0.2.{last}")),
        ip(&format!("2001:db8::{last:x}")),
    ]
}

fn beat(number: u64) -> Beat {
    Beat {
        instance: Instance(1),
        number: Number(number),
        lease: 5 * H,
        promise_max: 5 * H,
        floor_base: Term(0),
        participation: Participation::Active,
        maintenance: false,
        witness: false,
        freshness: Freshness::default(),
        standings: Vec::new(),
        heard: Vec::new(),
        roster: Roster::default(),
        config_hash: 0,
        part: Default::default(),
    }
}

fn ack(number: u64) -> Ack {
    Ack {
        instance: Instance(1),
        number: Number(number),
        waited: Duration::ZERO,
        answers: Vec::new(),
        roster: RosterVersion::default(),
    }
}

/// A datagram on its way.
#[derive(Clone, Debug)]
struct Datagram {
    source: IpAddr,
    target: IpAddr,
    bytes: Vec<u8>,
}

/// One server: its core and everything that came out of it.
struct Host {
    core: Heartbeat,
    delivered: Vec<HbdToDoctord>,
    refused: Vec<Refusal>,
    met: usize,
    /// When it was told that two servers run under the peer's name.
    doubled: Vec<BootTime>,
    out: Vec<Datagram>,
}

/// Never the same bits twice.
fn fresh<const N: usize>() -> [u8; N] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bits = [0; N];
    bits[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    bits
}

impl Host {
    fn with(me: &str, peers: &[&str], keys: &[[u8; 32]], cluster: &str) -> Self {
        let peer = |p: &&str| PeerSettings {
            name: name(p),
            addresses: addresses(p),
        };
        let peers = peers.iter().map(peer).collect();
        let settings = Settings {
            me: name(me),
            addresses: addresses(me),
            heartbeat: H,
            part_max: PART_MAX,
            peers,
        };
        let core = Heartbeat::new(settings, Sealer::new(keys, cluster), Incarnation(fresh()));
        Self {
            core,
            delivered: Vec::new(),
            refused: Vec::new(),
            met: 0,
            doubled: Vec::new(),
            out: Vec::new(),
        }
    }

    fn new(me: &str) -> Self {
        let peers: Vec<_> = ["alpha", "beta"].into_iter().filter(|p| *p != me).collect();
        Self::with(me, &peers, &[KEY], "web")
    }

    fn drain(&mut self, now: BootTime) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Transmit(mut t) => {
                    self.core.leaves(&mut t, now.0 + WALL, now.0);
                    let bytes = self.core.seal(&t, fresh()).unwrap();
                    self.out.extend(t.paths.iter().map(|p| Datagram {
                        source: p.local,
                        target: p.remote,
                        bytes: bytes.clone(),
                    }));
                }
                Output::Deliver(message) => self.delivered.push(message),
                Output::Met(_) => self.met += 1,
                Output::Doubled { .. } => self.doubled.push(now),
                Output::Refused { why, .. } => self.refused.push(why),
            }
        }
    }

    fn receive(&mut self, now: BootTime, d: &Datagram) {
        let (source, local, bytes) = (d.source, d.target, d.bytes.as_slice());
        let real_ns = now.0 + WALL;
        self.core.handle(
            now,
            Input::Datagram {
                source,
                local,
                bytes,
                at: now,
                real_ns,
                raw_ns: Some(now.0),
            },
        );
        self.drain(now);
    }

    fn send(&mut self, now: BootTime, number: u64) -> Vec<Datagram> {
        self.core.handle(
            now,
            Input::Send(vec![ElectdToHbd::Beat {
                made: now,
                beat: beat(number),
            }]),
        );
        self.drain(now);
        std::mem::take(&mut self.out)
    }

    fn tick(&mut self, now: BootTime) -> Vec<Datagram> {
        if self.core.poll_timeout().is_some_and(|t| t <= now) {
            self.core.handle(now, Input::Timeout { fresh: fresh() });
        }
        self.drain(now);
        std::mem::take(&mut self.out)
    }

    fn counter(&self, wanted: &str) -> u64 {
        self.core
            .counters()
            .find(|(name, _)| *name == wanted)
            .map_or(0, |(_, n)| n)
    }

    /// Numbers of the beats delivered.
    fn numbers(&self) -> Vec<u64> {
        let number = |m: &HbdToDoctord| match m {
            HbdToDoctord::Beat { beat, .. } => beat.number.0,
            HbdToDoctord::Ack { ack, .. } => ack.number.0,
            HbdToDoctord::Listening => unreachable!("the shell sends it"),
        };
        self.delivered.iter().map(number).collect()
    }
}

fn ms(n: u64) -> BootTime {
    BootTime(n * 1_000_000)
}

/// Carries everything both ways until nothing moves, without letting time pass.
fn exchange(now: BootTime, a: &mut Host, b: &mut Host) -> Vec<Datagram> {
    let mut carried = Vec::new();
    loop {
        let (to_b, to_a) = (a.tick(now), b.tick(now));
        if to_b.is_empty() && to_a.is_empty() {
            return carried;
        }
        to_b.iter().for_each(|d| b.receive(now, d));
        to_a.iter().for_each(|d| a.receive(now, d));
        carried.extend(to_b.into_iter().chain(to_a));
    }
}

fn pair() -> (Host, Host) {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    exchange(ms(0), &mut a, &mut b);
    assert_eq!((a.met, b.met), (1, 1));
    (a, b)
}

#[test]
fn both_starting_at_once_know_each_other_after_one_round() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    let (hello_a, hello_b) = (a.tick(ms(0)), b.tick(ms(0)));
    hello_a.iter().for_each(|d| b.receive(ms(1), d));
    hello_b.iter().for_each(|d| a.receive(ms(1), d));
    let (answer_a, answer_b) = (std::mem::take(&mut a.out), std::mem::take(&mut b.out));
    answer_b.iter().for_each(|d| a.receive(ms(2), d));
    answer_a.iter().for_each(|d| b.receive(ms(2), d));
    assert_eq!((a.met, b.met), (1, 1));
    let beats = a.send(ms(3), 1);
    beats.iter().for_each(|d| b.receive(ms(3), d));
    assert_eq!(b.numbers(), [1]);
}

#[test]
fn a_message_is_delivered_once_whatever_paths_it_comes_by() {
    let (mut a, mut b) = pair();
    let beats = a.send(ms(10), 7);
    assert_eq!(beats.len(), 2, "one per path");
    beats.iter().for_each(|d| b.receive(ms(11), d));
    assert_eq!(b.numbers(), [7]);
    assert_eq!(b.counter("duplicates"), 1);
    assert!(b.refused.is_empty());
    let heard: Vec<_> = b.core.paths().iter().map(|p| p.last_heard).collect();
    assert_eq!(
        heard,
        [Some(ms(11)), Some(ms(11))],
        "the copy proves its path alive"
    );
    let HbdToDoctord::Beat { arrival, .. } = &b.delivered[0] else {
        panic!("a beat")
    };
    assert_eq!((arrival.path, arrival.at), (0, ms(11)));
}

#[test]
fn an_acknowledgement_goes_to_one_server() {
    let mut a = Host::with("alpha", &["beta", "gamma"], &[KEY], "web");
    let mut b = Host::new("beta");
    let mut c = Host::with("gamma", &["alpha"], &[KEY], "web");
    for d in a.tick(ms(0)) {
        let host = if addresses("beta").contains(&d.target) {
            &mut b
        } else {
            &mut c
        };
        host.receive(ms(0), &d);
    }
    exchange(ms(0), &mut a, &mut b);
    for d in c.tick(ms(0)) {
        a.receive(ms(0), &d);
    }
    a.out.clear();
    a.core.handle(
        ms(1),
        Input::Send(vec![ElectdToHbd::Ack {
            made: ms(1),
            to: name("beta"),
            ack: ack(3),
        }]),
    );
    let sent = a.tick(ms(1));
    assert!(sent.iter().all(|d| addresses("beta").contains(&d.target)) && sent.len() == 2);
    sent.iter().for_each(|d| b.receive(ms(1), d));
    assert_eq!(b.numbers(), [3]);
}

#[test]
fn a_replay_is_refused_on_the_path_it_came_by() {
    let (mut a, mut b) = pair();
    let beats = a.send(ms(10), 7);
    for _ in 0..3 {
        beats.iter().for_each(|d| b.receive(ms(11), d));
    }
    assert_eq!(b.numbers(), [7]);
    assert_eq!(b.refused, [Refusal::Replayed; 4]);
    assert_eq!(b.counter("refused_replayed"), 4);
}

#[test]
fn replays_do_not_make_a_path_look_alive() {
    let (mut a, mut b) = pair();
    let beats = a.send(ms(10), 7);
    beats.iter().for_each(|d| b.receive(ms(11), d));
    beats.iter().for_each(|d| b.receive(ms(900), d));
    assert!(b.core.paths().iter().all(|p| p.last_heard == Some(ms(11))));
}

#[test]
fn reordering_within_the_window_is_fine_and_below_it_stale() {
    let (mut a, mut b) = pair();
    let mut sent: Vec<_> = (1..=1025).map(|n| a.send(ms(n), n)[0].clone()).collect();
    let last = sent.pop().unwrap();
    b.receive(ms(2000), &last);
    sent.iter()
        .skip(1)
        .rev()
        .for_each(|d| b.receive(ms(2000), d));
    assert_eq!(b.delivered.len(), 1024);
    assert!(b.refused.is_empty());
    b.receive(ms(2000), &sent[0]);
    assert_eq!(b.refused, [Refusal::Stale]);
}

#[test]
fn replays_are_refused_after_the_receiver_restarts() {
    let (mut a, b) = pair();
    let mut recorded = a.send(ms(110), 1);
    drop(b);
    let mut b = Host::new("beta");
    recorded.iter().for_each(|d| b.receive(ms(120), d));
    recorded.extend(exchange(ms(120), &mut a, &mut b));
    assert_eq!((a.met, b.met), (2, 1));
    recorded.iter().for_each(|d| b.receive(ms(130), d));
    assert!(b.delivered.is_empty());
    a.send(ms(200), 2)
        .iter()
        .for_each(|d| b.receive(ms(200), d));
    assert_eq!(b.numbers(), [2]);
}

#[test]
fn replays_are_refused_after_the_sender_restarts() {
    let (mut a, mut b) = pair();
    let recorded: Vec<_> = (1..=5).flat_map(|n| a.send(ms(10 + n), n)).collect();
    let mut a = Host::new("alpha");
    exchange(ms(200), &mut a, &mut b);
    assert_eq!((a.met, b.met), (1, 2));
    recorded.iter().for_each(|d| b.receive(ms(300), d));
    assert!(b.delivered.is_empty());
    assert!(b.refused.iter().all(|r| *r == Refusal::FormerIncarnation));
    a.send(ms(300), 9)
        .iter()
        .for_each(|d| b.receive(ms(300), d));
    assert_eq!(b.numbers(), [9]);
}

#[test]
fn everything_recorded_before_both_restart_changes_nothing_after() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    let mut recorded = exchange(ms(0), &mut a, &mut b);
    recorded.extend(a.send(ms(1), 1).into_iter().chain(b.send(ms(1), 1)));
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    exchange(ms(500), &mut a, &mut b);
    for d in &recorded {
        let host = if addresses("alpha").contains(&d.target) {
            &mut a
        } else {
            &mut b
        };
        host.receive(ms(600), d);
    }
    assert!(a.delivered.is_empty() && b.delivered.is_empty());
    assert_eq!((a.met, b.met), (1, 1));
    exchange(ms(700), &mut a, &mut b);
    assert_eq!(
        (a.met, b.met),
        (1, 1),
        "replayed hellos led to no other incarnation"
    );
    a.send(ms(701), 2)
        .iter()
        .for_each(|d| b.receive(ms(701), d));
    assert_eq!(b.numbers(), [2]);
}

#[test]
fn a_recorded_answer_answers_no_later_challenge() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    let recorded = exchange(ms(0), &mut a, &mut b);
    let mut a = Host::new("alpha");
    a.tick(ms(100));
    recorded
        .iter()
        .filter(|d| addresses("alpha").contains(&d.target))
        .for_each(|d| a.receive(ms(100), d));
    assert_eq!(a.met, 0);
    assert!(a.refused.iter().all(|r| *r == Refusal::FormerReceiver) && !a.refused.is_empty());
}

#[test]
fn a_peer_that_missed_our_restart_learns_of_it_from_its_own_beat() {
    let (_, mut b) = pair();
    let mut a = Host::new("alpha");
    a.tick(ms(10)).clear(); // All hellos lost.
    b.send(ms(20), 1).iter().for_each(|d| a.receive(ms(20), d));
    assert_eq!(a.refused, [Refusal::UnknownIncarnation; 2]);
    assert!(a.tick(ms(20)).is_empty(), "hellos keep their distance");
    exchange(ms(35), &mut a, &mut b);
    assert_eq!((a.met, b.met), (1, 2));
}

#[test]
fn lost_hellos_and_answers_are_repeated_until_known() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    for round in 0..50 {
        assert_eq!(
            a.tick(ms(round * 100)).len(),
            2,
            "one hello per path and interval"
        );
        assert!(a.tick(ms(round * 100 + 99)).is_empty());
    }
    exchange(ms(5000), &mut a, &mut b);
    assert_eq!((a.met, b.met), (1, 1));
    assert_eq!(a.core.poll_timeout(), None, "nothing left to ask");
}

#[test]
fn a_late_answer_of_the_former_run_does_not_bring_it_back() {
    let (mut a, mut b1) = (Host::new("alpha"), Host::new("beta"));
    let hello = a.tick(ms(0));
    hello.iter().for_each(|d| b1.receive(ms(0), d));
    let late = std::mem::take(&mut b1.out);
    let mut b2 = Host::new("beta");
    hello.iter().for_each(|d| b2.receive(ms(1), d));
    for d in std::mem::take(&mut b2.out) {
        a.receive(ms(2), &d);
    }
    assert_eq!(a.met, 1);
    late.iter().for_each(|d| a.receive(ms(3), d));
    assert_eq!(a.met, 1);
    exchange(ms(200), &mut a, &mut b2);
    b2.send(ms(201), 4)
        .iter()
        .for_each(|d| a.receive(ms(201), d));
    assert_eq!(a.numbers(), [4]);
}

#[test]
fn hello_is_answered_in_any_state_and_keeps_nothing() {
    let (mut a, mut b) = pair();
    a.send(ms(1), 1).iter().for_each(|d| b.receive(ms(1), d));
    let mut stranger = Host::new("alpha");
    for d in stranger.tick(ms(2)) {
        b.receive(ms(2), &d);
    }
    let answered = b.out.iter().filter(|d| {
        let sealer = Sealer::new(&[KEY], "web");
        let packet = datagram::open(&sealer, &name("beta"), &name("alpha"), &d.bytes);
        matches!(packet, Ok((_, Packet::HelloAnswer { .. })))
    });
    assert_eq!(answered.count(), 2);
    b.out.clear();
    // The stranger never answers beta's challenge: alpha goes on as before, replays still refused.
    a.send(ms(3), 2).iter().for_each(|d| b.receive(ms(3), d));
    assert_eq!(b.numbers(), [1, 2]);
    assert_eq!(b.met, 1);
}

#[test]
fn a_flood_of_hellos_is_answered_sparingly_and_asked_back_paced() {
    let (_, mut b) = pair();
    let mut stranger = Host::new("alpha");
    let hello = stranger.tick(ms(1000)).remove(0);
    let mut sent = 0;
    for i in 0..10_000 {
        let now = BootTime(ms(1000).0 + i * 10_000);
        b.receive(now, &hello);
        sent += b.tick(now).len();
    }
    assert!(sent <= 16 + 5 * 2, "{sent} datagrams in one interval");
    assert_eq!(b.counter("refused_hello_too_often"), 10_000 - 16);
    b.receive(ms(1200), &hello);
    assert!(!b.out.is_empty(), "answered again in the next interval");
}

#[test]
fn a_replayed_hello_cannot_reset_the_window() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    let recorded = exchange(ms(0), &mut a, &mut b);
    let beats = a.send(ms(1), 1);
    beats.iter().for_each(|d| b.receive(ms(1), d));
    for round in 1..20 {
        for d in recorded
            .iter()
            .filter(|d| addresses("beta").contains(&d.target))
        {
            b.receive(ms(round * 1000), d);
        }
        exchange(ms(round * 1000), &mut a, &mut b);
        beats.iter().for_each(|d| b.receive(ms(round * 1000), d));
    }
    assert_eq!(b.numbers(), [1]);
}

#[test]
fn what_is_refused_from_a_peers_address_is_told_of_that_path_and_what_passes_by_itself_is_not() {
    let (a, mut b) = pair();
    let mut forged = Host::with("alpha", &["beta"], &[[9; 32]], "web").tick(ms(5));
    forged.iter_mut().for_each(|d| d.bytes[4] = 77);
    let refused = |b: &Host| -> Vec<Option<PathRefusal>> {
        b.core.paths().into_iter().map(|p| p.refused.0).collect()
    };
    assert_eq!(refused(&b), [None, None]);
    b.receive(ms(5), &forged[1]);
    let why = Refused::Version(77);
    assert_eq!(refused(&b), [None, Some(PathRefusal { at: ms(5), why })]);
    forged[0].bytes = b"GET / HTTP/1.0".to_vec();
    b.receive(ms(6), &forged[0]);
    let first = refused(&b)[0];
    assert_eq!(first.map(|r| r.why), Some(Refused::NotOurs));
    // A restarted peer that has not proved itself yet.
    let mut restarted = Host::new("alpha");
    restarted
        .tick(ms(7))
        .iter()
        .for_each(|d| b.receive(ms(7), d));
    assert_eq!(refused(&b)[0], first);
    drop(a);
}

#[test]
fn a_peer_that_sends_from_another_address_is_named_by_its_seal_and_nothing_of_it_is_taken() {
    let (mut a, mut b) = pair();
    let mut beats = a.send(ms(1000), 1);
    let genuine = beats.remove(0);
    let from = |address: &str, bytes: &[u8]| Datagram {
        source: ip(address),
        bytes: bytes.to_vec(),
        ..genuine.clone()
    };
    let foreign = Host::with("alpha", &["beta"], &[[9; 32]], "web").tick(ms(5));
    b.receive(ms(1000), &from("198.51.100.1", &genuine.bytes));
    b.receive(ms(1500), &from("198.51.100.2", &genuine.bytes)); // too soon
    b.receive(ms(2000), &from("198.51.100.3", &foreign[0].bytes));
    b.receive(ms(3000), &from("198.51.100.4", b"GET / HTTP/1.0"));
    let stranger = |address: &str, at, server: Option<&str>| Stranger {
        address: ip(address),
        at: ms(at),
        server: server.map(name),
    };
    let two = [
        stranger("198.51.100.3", 2000, None),
        stranger("198.51.100.1", 1000, Some("alpha")),
    ];
    assert_eq!(b.core.strangers(), two);
    assert_eq!(b.numbers(), [0; 0], "not one beat");
    for n in 0..1000 {
        let any = format!("203.0.113.{}", n % 256);
        b.receive(ms(4000 + n * 1000), &from(&any, &foreign[0].bytes));
    }
    assert_eq!(b.core.strangers().len(), 8, "the last of them");
}

#[test]
fn a_peer_that_asks_and_one_that_sends_no_beat_are_told_apart() {
    let (mut a, mut b) = pair();
    let [before] = &b.core.peers()[..] else {
        panic!("one peer");
    };
    assert!(before.met.is_some() && before.beat.is_none(), "{before:?}");
    a.send(ms(50), 1).iter().for_each(|d| b.receive(ms(50), d));
    assert_eq!(b.core.peers()[0].beat, Some(ms(50)));
    let mut restarted = Host::new("alpha");
    restarted
        .tick(ms(70))
        .iter()
        .for_each(|d| b.receive(ms(70), d));
    assert_eq!(b.core.peers()[0].asked, Some(ms(70)));
}

#[test]
fn strangers_are_refused_before_and_by_cryptography() {
    let (mut a, mut b) = pair();
    let mut genuine = a.send(ms(1), 1).remove(0);
    let mut unlisted = genuine.clone();
    unlisted.source = ip("198.51.100.1");
    b.receive(ms(1), &unlisted);
    let forged = |keys: &[[u8; 32]], cluster: &str, peer: &str| {
        let mut x = Host::with("alpha", &[peer], keys, cluster);
        let mut d = x.tick(ms(1)).remove(0);
        d.target = addresses("beta")[0];
        d
    };
    b.receive(ms(1), &forged(&[[9; 32]], "web", "beta"));
    b.receive(ms(1), &forged(&[KEY], "mail", "beta"));
    b.receive(ms(1), &forged(&[KEY], "web", "gamma"));
    let mut garbage = genuine.clone();
    garbage.bytes = b"GET / HTTP/1.0".to_vec();
    b.receive(ms(1), &garbage);
    garbage.bytes = genuine.bytes.clone();
    garbage.bytes[4] = 77;
    b.receive(ms(1), &garbage);
    b.core.handle(ms(1), Input::TooLong(ip("192.0.2.97")));
    b.drain(ms(1));
    use Refusal::*;
    assert_eq!(
        b.refused,
        [
            Unlisted,
            Unauthentic,
            Unauthentic,
            Unauthentic,
            NotOurs,
            Version(77),
            TooLong
        ]
    );
    for bit in 5 * 8..genuine.bytes.len() * 8 {
        genuine.bytes[bit / 8] ^= 1 << (bit % 8);
        b.receive(ms(1), &genuine);
        genuine.bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for cut in 0..genuine.bytes.len() {
        let bytes = genuine.bytes[..cut].to_vec();
        b.receive(
            ms(1),
            &Datagram {
                bytes,
                ..genuine.clone()
            },
        );
    }
    assert!(b.delivered.is_empty() && b.out.is_empty());
    b.receive(ms(1), &genuine);
    assert_eq!(b.numbers(), [1]);
}

#[test]
fn sealed_nonsense_changes_nothing() {
    let (_, mut b) = pair();
    let sealer = Sealer::new(&[KEY], "web");
    let context = protocol::seal::Context {
        version: 2,
        channel: protocol::seal::Channel::Udp,
        from: &name("alpha"),
        to: &name("beta"),
    };
    for nonsense in [&[][..], &[9], &[0; 40], &[2, 0xff, 0xff, 0xff, 0xff, 0xff]] {
        let mut bytes = [&datagram::MAGIC[..], &[2]].concat();
        bytes.extend(sealer.seal(&context, fresh::<NONCE>(), nonsense));
        let (source, target) = (addresses("alpha")[0], addresses("beta")[0]);
        b.receive(
            ms(1),
            &Datagram {
                source,
                target,
                bytes,
            },
        );
    }
    assert_eq!(b.refused, [Refusal::Malformed; 4]);
}

#[test]
fn two_keys_may_be_live_at_once() {
    let (old, new) = ([1; 32], [2; 32]);
    let mut a = Host::with("alpha", &["beta"], &[new, old], "web");
    let mut b = Host::with("beta", &["alpha"], &[old, new], "web");
    exchange(ms(0), &mut a, &mut b);
    b.send(ms(1), 1).iter().for_each(|d| a.receive(ms(1), d));
    // Beta changes its key while it runs: no round is needed.
    b.core.set_keys(Sealer::new(&[new], "web"));
    b.send(ms(2), 2).iter().for_each(|d| a.receive(ms(2), d));
    a.send(ms(2), 3).iter().for_each(|d| b.receive(ms(2), d));
    assert_eq!((a.numbers(), b.numbers()), (vec![1, 2], vec![3]));
}

#[test]
fn what_waited_too_long_and_what_has_no_receiver_is_dropped() {
    let mut a = Host::new("alpha");
    a.tick(ms(0));
    assert!(a.send(ms(1), 1).is_empty());
    assert_eq!(a.counter("unsent_unknown_incarnation"), 1);
    let (mut a, _) = pair();
    let late = ElectdToHbd::Beat {
        made: ms(0),
        beat: beat(1),
    };
    a.core.handle(ms(101), Input::Send(vec![late.clone()]));
    assert!(a.tick(ms(101)).is_empty());
    assert_eq!(a.counter("unsent_late"), 1);
    a.core.handle(ms(100), Input::Send(vec![late]));
    assert_eq!(a.tick(ms(100)).len(), 2);
}

#[test]
fn what_is_sent_together_leaves_in_one_packet_and_arrives_in_order() {
    let (mut a, mut b) = pair();
    let acks = [1, 2].map(|number| ElectdToHbd::Ack {
        made: ms(10),
        to: name("beta"),
        ack: ack(number),
    });
    let beat = ElectdToHbd::Beat {
        made: ms(10),
        beat: beat(3),
    };
    let all: Vec<_> = acks.into_iter().chain([beat]).collect();
    a.core.handle(ms(10), Input::Send(all));
    let sent = a.tick(ms(10));
    assert_eq!(sent.len(), 2, "one per path");
    b.send(ms(9), 1).iter().for_each(|d| a.receive(ms(10), d));
    sent.iter().for_each(|d| b.receive(ms(11), d));
    assert_eq!(b.numbers(), [1, 2, 3]);
    sent.iter().for_each(|d| b.receive(ms(12), d));
    assert_eq!(b.numbers(), [1, 2, 3], "a replay brings none of them again");
    // The four times are those of the packet, and counted once.
    a.core
        .handle(ms(20), Input::Send(vec![beat_at_ten(4), beat_at_ten(5)]));
    a.tick(ms(20)).iter().for_each(|d| b.receive(ms(21), d));
    let times = |m: &HbdToDoctord| match m {
        HbdToDoctord::Beat { arrival, .. } | HbdToDoctord::Ack { arrival, .. } => arrival.times,
        HbdToDoctord::Listening => None,
    };
    assert!(times(&b.delivered[3]).is_some() && times(&b.delivered[4]).is_none());
}

#[test]
fn what_would_not_pass_a_link_in_one_piece_leaves_in_several_packets() {
    let (mut a, mut b) = pair();
    let many: Vec<_> = (1..=100).map(beat_at_ten).collect();
    a.core.handle(ms(10), Input::Send(many));
    let sent = a.tick(ms(10));
    assert!(sent.len() > 4, "{} packets", sent.len());
    assert!(
        sent.iter().all(|d| d.bytes.len() < 1280),
        "IPv6's least MTU"
    );
    sent.iter().for_each(|d| b.receive(ms(11), d));
    assert_eq!(b.numbers(), (1..=100).collect::<Vec<_>>());
}

fn beat_at_ten(number: u64) -> ElectdToHbd {
    let (made, beat) = (ms(10), beat(number));
    ElectdToHbd::Beat { made, beat }
}

#[test]
fn four_timestamps_come_with_the_first_echo() {
    let (mut a, mut b) = pair();
    a.send(ms(10), 1).iter().for_each(|d| b.receive(ms(12), d));
    b.send(ms(15), 1).iter().for_each(|d| a.receive(ms(16), d));
    let times = |m: &HbdToDoctord| match m {
        HbdToDoctord::Beat { arrival, .. } | HbdToDoctord::Ack { arrival, .. } => arrival.times,
        HbdToDoctord::Listening => None,
    };
    assert_eq!(times(&b.delivered[0]), None);
    let t = times(&a.delivered[0]).unwrap();
    assert_eq!(
        [t.t1, t.t2 - WALL, t.t3 - WALL, t.t4],
        [10, 12, 15, 16].map(|n| n * 1_000_000)
    );
}

#[test]
fn what_the_kernel_tells_of_packets_that_left_comes_with_the_next() {
    let (mut a, mut b) = pair();
    let (alpha, beta) = (name("alpha"), name("beta"));
    a.send(ms(10), 1).iter().for_each(|d| b.receive(ms(12), d));
    a.core.left(&beta, ms(10).0 + WALL, 300_000);
    b.send(ms(15), 1).iter().for_each(|d| a.receive(ms(16), d));
    b.core.left(&alpha, ms(15).0 + WALL, 200_000);
    b.send(ms(25), 2).iter().for_each(|d| a.receive(ms(26), d));
    let HbdToDoctord::Beat { arrival, .. } = &a.delivered[1] else {
        panic!("a beat")
    };
    let t = arrival.times.unwrap();
    assert_eq!(
        [t.t1, t.t2 - WALL, t.t3 - WALL, t.t4].map(|t| t / 100_000),
        [103, 120, 152, 160]
    );
}

#[test]
fn a_new_run_counts_only_once_it_has_answered() {
    let (mut a1, mut b) = pair();
    let mut a2 = Host::new("alpha");
    let hello = a2.tick(ms(100));
    hello.iter().for_each(|d| b.receive(ms(100), d));
    for d in std::mem::take(&mut b.out) {
        a2.receive(ms(101), &d); // Alpha's new run knows beta, but beta's own hello is lost.
    }
    b.tick(ms(101)).clear();
    assert_eq!(a2.met, 1);
    a2.send(ms(102), 1)
        .iter()
        .for_each(|d| b.receive(ms(102), d));
    assert!(b.delivered.is_empty());
    assert_eq!(b.refused, [Refusal::UnknownIncarnation; 2]);
    a1.send(ms(103), 2)
        .iter()
        .for_each(|d| b.receive(ms(103), d));
    assert_eq!(b.numbers(), [2], "until then the former run counts");
    exchange(ms(200), &mut a2, &mut b);
    assert_eq!(b.met, 2);
}

#[test]
fn of_two_runs_at_once_the_later_counts_for_good() {
    let (mut a, mut b1) = pair();
    let mut b2 = Host::new("beta");
    exchange(ms(100), &mut a, &mut b2);
    assert_eq!(a.met, 2);
    // Something makes alpha ask again, and the former run answers.
    let stranger = Host::new("beta").tick(ms(200));
    stranger.iter().for_each(|d| a.receive(ms(200), d));
    a.out.clear();
    for d in a.tick(ms(200)) {
        b1.receive(ms(200), &d);
    }
    a.refused.clear();
    for d in std::mem::take(&mut b1.out) {
        a.receive(ms(200), &d);
    }
    // The answer by the second path proves nothing more.
    assert_eq!((a.met, a.refused), (2, vec![Refusal::FormerIncarnation]));
    assert_eq!(a.doubled, [ms(200)]);
}

/// Whatever beta asks and sends reaches each of these, whatever they answer reaches beta; in this order.
fn ask_all(now: BootTime, beta: &mut Host, all: &mut [&mut Host]) -> Vec<Datagram> {
    let mut carried = Vec::new();
    for d in beta.tick(now) {
        for host in &mut *all {
            host.receive(now, &d);
        }
    }
    for host in all {
        let sent = host.tick(now);
        sent.iter().for_each(|d| beta.receive(now, d));
        carried.extend(sent);
    }
    carried
}

#[test]
fn a_restart_raises_no_alarm_whatever_is_late_or_replayed() {
    let (mut a1, mut b) = (Host::new("alpha"), Host::new("beta"));
    let mut recorded = exchange(ms(0), &mut a1, &mut b);
    recorded.extend((1..=5).flat_map(|n| a1.send(ms(n), n)));
    // Beta's question reaches both runs; the answer of the former is late.
    let mut a2 = Host::new("alpha");
    a2.tick(ms(10)).iter().for_each(|d| b.receive(ms(10), d));
    for d in b.tick(ms(50)) {
        a1.receive(ms(50), &d);
        a2.receive(ms(50), &d);
    }
    recorded.extend(std::mem::take(&mut a1.out));
    drop(a1);
    for d in std::mem::take(&mut a2.out) {
        b.receive(ms(51), &d);
    }
    assert_eq!(b.met, 2);
    recorded.retain(|d| addresses("beta").contains(&d.target));
    let asked = b.counter("hellos_sent");
    for round in 1..=100 {
        let now = ms(51 + round * 100);
        recorded.iter().for_each(|d| b.receive(now, d));
        ask_all(now, &mut b, &mut [&mut a2]);
        a2.send(now, round).iter().for_each(|d| b.receive(now, d));
    }
    assert!(b.doubled.is_empty() && b.core.doubled(ms(10_051)).next().is_none());
    assert_eq!(b.counter("alarm_two_servers"), 0);
    let asked = b.counter("hellos_sent") - asked;
    assert!(
        (1..=11).contains(&asked),
        "{asked} questions in ten seconds"
    );
    assert_eq!(b.met, 2);
    assert_eq!(b.numbers(), (1..=100).collect::<Vec<_>>());
}

#[test]
fn two_that_live_under_one_name_raise_the_alarm() {
    for former_first in [false, true] {
        let (mut a1, mut b) = pair();
        let mut a2 = Host::new("alpha");
        exchange(ms(100), &mut a2, &mut b);
        let (asked, mut recorded) = (b.counter("hellos_sent"), Vec::new());
        let from = |round: u64| ms(200 + round * 250);
        let mut rounds = 0..;
        for round in rounds.by_ref().take(600) {
            let now = from(round);
            for d in b.send(now, round) {
                a1.receive(now, &d);
                a2.receive(now, &d);
            }
            for host in [&mut a1, &mut a2] {
                let sent = host.send(now, round);
                sent.iter().for_each(|d| b.receive(now, d));
                recorded.extend(sent.into_iter().filter(|_| round >= 590));
            }
            let mut both = [&mut a2, &mut a1];
            if former_first {
                both.reverse();
            }
            recorded.extend(ask_all(now, &mut b, &mut both));
        }
        assert!(b.doubled[0] <= from(2), "{:?}", b.doubled);
        let again = b.doubled.windows(2).map(|w| w[1].since(w[0]));
        assert!(again.clone().all(|d| d >= Duration::from_secs(60)));
        assert_eq!(again.count(), 2, "as long as it lasts");
        assert!(b.counter("alarm_two_servers") >= 70);
        let asked = b.counter("hellos_sent") - asked;
        assert!(asked <= 151, "{asked} questions in 150 seconds");
        // The session with the present run is as it was, and the former is refused.
        assert_eq!((b.met, a1.met, a2.met), (2, 1, 1));
        assert_eq!(b.numbers(), (0..600).collect::<Vec<_>>());
        // The former one is stopped: what was recorded of it, its answers too, proves nothing.
        drop(a1);
        recorded.retain(|d| addresses("beta").contains(&d.target));
        let told = (b.doubled.len(), b.counter("alarm_two_servers"));
        for round in rounds.step_by(200).take(16) {
            recorded.iter().for_each(|d| b.receive(from(round), d));
            ask_all(from(round), &mut b, &mut [&mut a2]);
        }
        assert_eq!(told, (b.doubled.len(), b.counter("alarm_two_servers")));
        let last = b.core.doubled(from(600)).next().unwrap();
        assert_eq!((last.0, last.1 > from(590)), (&name("alpha"), true));
        assert!(b.core.doubled(from(3200)).next().is_none(), "over");
    }
}

#[test]
fn a_challenge_gets_old() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    for d in a.tick(ms(0)) {
        b.receive(ms(0), &d);
    }
    let late = std::mem::take(&mut b.out);
    a.tick(ms(2000));
    late.iter().for_each(|d| a.receive(ms(2001), d));
    assert_eq!(
        (a.met, a.refused.as_slice()),
        (0, &[Refusal::Unasked; 2][..])
    );
}

#[test]
fn the_echo_is_of_the_newest_message() {
    let (mut a, mut b) = pair();
    let (first, second) = (a.send(ms(10), 1), a.send(ms(20), 2));
    b.receive(ms(21), &second[0]);
    b.receive(ms(25), &first[0]);
    b.send(ms(30), 1).iter().for_each(|d| a.receive(ms(31), d));
    let HbdToDoctord::Beat { arrival, .. } = &a.delivered[0] else {
        panic!("a beat")
    };
    let times = arrival.times.unwrap();
    assert_eq!(
        [times.t1, times.t2],
        [20, WALL / 1_000_000 + 21].map(|n| n * 1_000_000)
    );
}

#[test]
fn a_new_configuration_keeps_those_who_stay() {
    let (mut a, mut b) = pair();
    let peer = |p: &str, addresses| PeerSettings {
        name: name(p),
        addresses,
    };
    let settings = |peers| Settings {
        me: name("alpha"),
        addresses: addresses("alpha"),
        heartbeat: H,
        part_max: PART_MAX,
        peers,
    };
    let moved = vec![ip("198.51.100.66")];
    a.core.configure(settings(vec![
        peer("gamma", addresses("gamma")),
        peer("beta", moved),
    ]));
    let sent = a.send(ms(1), 1);
    assert_eq!(sent.len(), 1, "gamma is unknown, beta has one address");
    assert_eq!(sent[0].target, ip("198.51.100.66"));
    b.receive(ms(1), &sent[0]);
    assert_eq!(b.numbers(), [1]);
    assert!(
        a.tick(ms(1))
            .iter()
            .all(|d| addresses("gamma").contains(&d.target))
    );
    a.core
        .configure(settings(vec![peer("gamma", addresses("gamma"))]));
    b.send(ms(2), 1).iter().for_each(|d| a.receive(ms(2), d));
    assert_eq!(a.refused, [Refusal::Unlisted; 2]);
}

#[test]
fn paths_join_addresses_of_one_family_and_look_alike_from_both_sides() {
    let [v4, w4, v6, w6] = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"].map(ip);
    let x4 = ip("192.0.2.3");
    type Row<'a> = (&'a [IpAddr], &'a [IpAddr], &'a [(IpAddr, IpAddr)]);
    let table: [Row<'_>; 5] = [
        (&[v4, v6], &[w4, w6], &[(v4, w4), (v6, w6)]),
        (&[v4], &[w4, x4], &[(v4, w4), (v4, x4)]),
        (&[v4, v6], &[w6, w4], &[(v4, w4), (v6, w6)]),
        (&[v4], &[w6], &[]),
        (&[v4, v6], &[w4], &[(v4, w4)]),
    ];
    for (ours, theirs, wanted) in table {
        for swapped in [false, true] {
            let (mine, other) = if swapped {
                (theirs, ours)
            } else {
                (ours, theirs)
            };
            let peers = vec![PeerSettings {
                name: name("beta"),
                addresses: other.to_vec(),
            }];
            let (me, addresses) = (name("alpha"), mine.to_vec());
            let settings = Settings {
                me,
                addresses,
                heartbeat: H,
                part_max: PART_MAX,
                peers,
            };
            let mut core =
                Heartbeat::new(settings, Sealer::new(&[KEY], "web"), Incarnation([1; 16]));
            assert_eq!(core.unreachable().count(), usize::from(wanted.is_empty()));
            core.handle(ms(0), Input::Timeout { fresh: fresh() });
            let mut got = match core.poll_output() {
                Some(Output::Transmit(t)) => t
                    .paths
                    .iter()
                    .map(|p| {
                        if swapped {
                            (p.remote, p.local)
                        } else {
                            (p.local, p.remote)
                        }
                    })
                    .collect(),
                _ => Vec::new(),
            };
            got.sort_unstable();
            assert_eq!(got, wanted, "{ours:?} {theirs:?} swapped: {swapped}");
        }
    }
}

/// Beta's core, where alpha is heard from two addresses; what happens to it is told without seals.
struct Told(Heartbeat);

const FROM: [&str; 2] = ["192.0.2.97", "192.0.2.98"];
const TO: [&str; 2] = ["203.0.113.1", "203.0.113.2"];

impl Told {
    fn new(remote: &[&str], local: &[&str]) -> Self {
        let all = |list: &[&str]| list.iter().map(|a| ip(a)).collect();
        let peer = PeerSettings {
            name: name("alpha"),
            addresses: all(remote),
        };
        let settings = Settings {
            me: name("beta"),
            addresses: all(local),
            heartbeat: H,
            part_max: PART_MAX,
            peers: vec![peer],
        };
        Self(Heartbeat::new(
            settings,
            Sealer::new(&[KEY], "web"),
            Incarnation([0; 16]),
        ))
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.0.poll_output()).collect()
    }

    fn tell(&mut self, now: BootTime, from: &str, to: &str, packet: Packet) -> Vec<Output> {
        let input = Input::Opened {
            version: 2,
            source: ip(from),
            local: ip(to),
            packet,
            at: now,
            real_ns: now.0,
            raw_ns: None,
        };
        self.0.handle(now, input);
        self.outputs()
    }

    /// The challenge that is asked now, if any is, where `fresh` is there for a new one.
    fn asks(&mut self, now: BootTime, fresh: u8) -> Option<Challenge> {
        self.0.poll_timeout().filter(|due| *due <= now)?;
        self.0.handle(now, Input::Timeout { fresh: [fresh; 16] });
        self.outputs().into_iter().find_map(|o| match o {
            Output::Transmit(Transmit {
                packet: Packet::Hello { challenge, .. },
                ..
            }) => Some(challenge),
            _ => None,
        })
    }

    fn answer(&mut self, now: BootTime, path: usize, from: u8, challenge: u8) -> Vec<Output> {
        let packet = Packet::HelloAnswer {
            from: Incarnation([from; 16]),
            to: Incarnation([0; 16]),
            challenge: Challenge([challenge; 16]),
            speaks: Default::default(),
        };
        self.tell(now, FROM[path], TO[path], packet)
    }

    /// This run of alpha says hello, is asked and answers.
    fn meet(&mut self, now: BootTime, path: usize, from: u8) -> Vec<Output> {
        self.hello(now, path, from);
        assert_eq!(self.asks(now, from), Some(Challenge([from; 16])));
        self.answer(now, path, from, from)
    }

    fn hello(&mut self, now: BootTime, path: usize, from: u8) {
        let (from, challenge) = (Incarnation([from; 16]), Challenge([99; 16]));
        let hello = Packet::Hello { from, challenge };
        self.tell(now, FROM[path], TO[path], hello);
    }

    fn data(&mut self, now: BootTime, from: u8) -> Vec<Output> {
        let data = Data {
            from: Incarnation([from; 16]),
            to: Incarnation([0; 16]),
            sequence: 1,
            sent_ns: 0,
            left: None,
            echo: None,
            bodies: Vec::new(),
        };
        self.tell(now, FROM[0], TO[0], Packet::Data(Box::new(data)))
    }
}

fn refused(outputs: &[Output]) -> Option<Refusal> {
    outputs.iter().find_map(|o| match o {
        Output::Refused { why, .. } => Some(*why),
        _ => None,
    })
}

#[test]
fn a_packet_counts_for_the_path_between_its_two_addresses() {
    let mut b = Told::new(&FROM[..1], &TO);
    assert_eq!(b.asks(ms(0), 1), Some(Challenge([1; 16])));
    let packet = Packet::HelloAnswer {
        from: Incarnation([1; 16]),
        to: Incarnation([0; 16]),
        challenge: Challenge([1; 16]),
        speaks: Default::default(),
    };
    b.tell(ms(1), FROM[0], TO[1], packet);
    let ends: Vec<_> = b.0.ends().map(|path| (path.local, path.remote)).collect();
    assert_eq!(ends, TO.map(|to| (ip(to), ip(FROM[0]))));
    let heard: Vec<_> = b.0.paths().iter().map(|p| p.last_heard).collect();
    assert_eq!(heard, [None, Some(ms(1))]);
}

#[test]
fn a_challenge_is_asked_again_for_two_seconds_and_then_replaced() {
    let mut b = Told::new(&FROM, &TO);
    let asked: Vec<_> = (0..=21).map(|n| b.asks(ms(n * 100), n as u8)).collect();
    assert_eq!(asked[..20], [Some(Challenge([0; 16])); 20]);
    assert_eq!(asked[20..], [Some(Challenge([20; 16])); 2]);
    // However often it was asked, one answer will do.
    assert_eq!(b.answer(ms(2199), 0, 7, 20), [Output::Met(name("alpha"))]);
}

#[test]
fn a_known_run_that_answers_unasked_is_refused() {
    let mut b = Told::new(&FROM, &TO);
    b.meet(ms(0), 0, 1);
    assert_eq!(refused(&b.answer(ms(5), 0, 1, 2)), Some(Refusal::Unasked));
    assert_eq!(refused(&b.answer(ms(5), 1, 2, 1)), Some(Refusal::Unasked));
    assert_eq!(refused(&b.answer(ms(5), 1, 1, 1)), None, "a copy of it");
    assert_eq!(b.0.paths()[0].last_heard, Some(ms(0)));
}

#[test]
fn sixteen_former_runs_are_remembered_as_such() {
    let mut b = Told::new(&FROM, &TO);
    for run in 1..=18 {
        b.meet(ms(u64::from(run) * 10_000), 0, run);
    }
    let now = ms(200_000);
    assert_eq!(refused(&b.data(now, 18)), None);
    for run in 2..=17 {
        let why = refused(&b.data(now, run));
        assert_eq!(why, Some(Refusal::FormerIncarnation), "run {run}");
    }
    let why = refused(&b.data(now, 1));
    assert_eq!(why, Some(Refusal::UnknownIncarnation));
}

#[test]
fn the_alarm_names_where_both_runs_were_heard_and_lasts_ten_minutes() {
    let mut b = Told::new(&FROM, &TO);
    b.meet(ms(0), 0, 1);
    b.meet(ms(5_000), 1, 2);
    b.hello(ms(10_000), 0, 1);
    assert_eq!(b.asks(ms(10_000), 3), Some(Challenge([3; 16])));
    let alarm = Output::Doubled {
        server: name("alpha"),
        former: ip(FROM[0]),
        present: Some(ip(FROM[1])),
    };
    assert_eq!(b.answer(ms(10_000), 0, 1, 3), [alarm]);
    let doubled = |at: BootTime| b.0.doubled(at).count();
    let over = ms(610_000);
    assert_eq!((doubled(BootTime(over.0 - 1)), doubled(over)), (1, 0));
}

#[test]
fn a_key_that_is_gone_opens_nothing() {
    let (mut a, mut b) = pair();
    b.core.set_keys(Sealer::new(&[[2; 32]], "web"));
    a.send(ms(1), 1).iter().for_each(|d| b.receive(ms(1), d));
    assert_eq!(b.refused, [Refusal::Unauthentic; 2]);
    a.core.set_keys(Sealer::new(&[[2; 32]], "web"));
    a.send(ms(2), 2).iter().for_each(|d| b.receive(ms(2), d));
    assert_eq!(b.numbers(), [2]);
}

#[derive(Clone, Debug)]
enum Step {
    Beat(bool),
    Tick(bool),
    Carry(usize),
    Replay(usize),
    Restart(bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Beat),
        4 => any::<bool>().prop_map(Step::Tick),
        8 => any::<usize>().prop_map(Step::Carry),
        4 => any::<usize>().prop_map(Step::Replay),
        1 => any::<bool>().prop_map(Step::Restart),
        2 => (1..300u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_never_get_through(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ours in any::<bool>(),
    ) {
        let (_, mut b) = pair();
        let mut all = if ours { [&datagram::MAGIC[..], &[2]].concat() } else { Vec::new() };
        all.extend(bytes);
        let (source, target) = (addresses("alpha")[0], addresses("beta")[0]);
        b.receive(ms(1), &Datagram { source, target, bytes: all });
        prop_assert!(b.delivered.is_empty() && b.out.is_empty() && b.refused.len() == 1);
    }

    #[test]
    fn authentic_packets_with_arbitrary_contents_get_through_only_with_both_incarnations(
        from in any::<[u8; 16]>(), challenge in any::<[u8; 16]>(), kind in 0..2,
    ) {
        let (_, mut b) = pair();
        let (from, challenge) = (Incarnation(from), Challenge(challenge));
        let packet = match kind {
            0 => Packet::Hello { from, challenge },
            _ => Packet::HelloAnswer { from, to: from, challenge, speaks: Default::default() },
        };
        let bytes = datagram::seal(&Sealer::new(&[KEY], "web"), (&name("alpha"), &name("beta")), 2, fresh(), &packet).unwrap();
        let (source, target) = (addresses("alpha")[0], addresses("beta")[0]);
        b.receive(ms(1), &Datagram { source, target, bytes });
        prop_assert_eq!(b.met, 1);
        prop_assert!(b.delivered.is_empty());
    }

    /// Loss, delay, reordering, replay and restarts in any order: no beat twice in one run of the
    /// receiver, and once the network is kind the two know each other again.
    #[test]
    fn no_beat_twice_and_always_healed(steps in proptest::collection::vec(step(), 0..200)) {
        let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
        let (mut now, mut number, mut wire, mut past) = (0, 0, Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Beat(first) => {
                    number += 1;
                    wire.extend(pick(&mut a, &mut b, first).send(ms(now), number));
                }
                Step::Tick(first) => wire.extend(pick(&mut a, &mut b, first).tick(ms(now))),
                Step::Restart(first) => {
                    let fresh = Host::new(if first { "alpha" } else { "beta" });
                    let old = std::mem::replace(pick(&mut a, &mut b, first), fresh);
                    no_beat_twice(&old)?;
                }
                Step::Wait(n) => now += n,
                Step::Carry(i) if !wire.is_empty() => {
                    let d: Datagram = wire.swap_remove(i % wire.len());
                    pick(&mut a, &mut b, addresses("alpha").contains(&d.target)).receive(ms(now), &d);
                    past.push(d);
                }
                Step::Replay(i) if !past.is_empty() => {
                    let d: &Datagram = &past[i % past.len()];
                    pick(&mut a, &mut b, addresses("alpha").contains(&d.target)).receive(ms(now), d);
                }
                Step::Carry(_) | Step::Replay(_) => {}
            }
        }
        no_beat_twice(&a)?;
        no_beat_twice(&b)?;
        for round in 1..=4 {
            let now = ms(now + round * 100);
            exchange(now, &mut a, &mut b);
            a.send(now, number + round).iter().for_each(|d| b.receive(now, d));
            b.send(now, number + round).iter().for_each(|d| a.receive(now, d));
        }
        prop_assert_eq!(a.numbers().pop(), Some(number + 4));
        prop_assert_eq!(b.numbers().pop(), Some(number + 4));
    }
}

fn pick<'a>(a: &'a mut Host, b: &'a mut Host, first: bool) -> &'a mut Host {
    if first { a } else { b }
}

fn no_beat_twice(host: &Host) -> Result<(), TestCaseError> {
    prop_assert!(host.doubled.is_empty(), "each restart ended the former run");
    let mut numbers = host.numbers();
    let all = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    prop_assert_eq!(numbers.len(), all);
    Ok(())
}

/// Version of the protocol in which a datagram is sealed.
fn version(d: &Datagram) -> u8 {
    d.bytes[datagram::MAGIC.len()]
}

#[test]
fn what_both_speak_is_spoken_with_a_release_before_there_was_a_choice() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    // beta as the former release is: nothing else gets in, nothing else comes out.
    for round in 0..5 {
        for _ in 0..2 {
            let now = ms(round * 100);
            let (to_b, to_a) = (a.tick(now), b.tick(now));
            let old = |d: &&Datagram| version(d) == 1;
            to_b.iter().filter(old).for_each(|d| b.receive(now, d));
            to_a.iter().filter(old).for_each(|d| a.receive(now, d));
        }
    }
    assert_eq!((a.met, b.met), (1, 1));
    let beats = a.send(ms(500), 7);
    assert!(!beats.is_empty() && beats.iter().all(|d| version(d) == 1));
    beats.iter().for_each(|d| b.receive(ms(500), d));
    assert_eq!(b.numbers(), [7]);
    // It is replaced by this release.
    let mut b = Host::new("beta");
    exchange(ms(600), &mut a, &mut b);
    let beats = a.send(ms(700), 8);
    assert!(!beats.is_empty() && beats.iter().all(|d| version(d) == 2));
    beats.iter().for_each(|d| b.receive(ms(700), d));
    assert_eq!(b.numbers(), [8]);
}

#[test]
fn an_answer_lost_in_the_later_version_is_made_up_for() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    a.tick(ms(0)); // Its first hello is lost, and it asks in the first version.
    let hello = a.tick(ms(100));
    assert!(hello.iter().all(|d| version(d) == 1));
    hello.iter().for_each(|d| b.receive(ms(100), d));
    let answers = std::mem::take(&mut b.out);
    answers.iter().for_each(|d| a.receive(ms(100), d));
    assert_eq!(a.met, 1);
    assert!(a.send(ms(101), 1).iter().all(|d| version(d) == 1));
    let later = a.core.poll_timeout().unwrap();
    exchange(later, &mut a, &mut b);
    assert!(a.send(later, 2).iter().all(|d| version(d) == 2));
}

#[test]
fn who_answered_in_the_first_version_is_asked_for_a_later_one_at_once_and_then_ever_more_seldom() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    a.tick(ms(0));
    for d in a.tick(ms(100)) {
        b.receive(ms(100), &d); // It starts just then, and asks as well.
    }
    let answers = std::mem::take(&mut b.out);
    b.tick(ms(100)).iter().for_each(|d| a.receive(ms(101), d));
    answers.iter().for_each(|d| a.receive(ms(101), d));
    a.out.clear();
    assert!(a.send(ms(102), 1).iter().all(|d| version(d) == 1));
    exchange(ms(150), &mut a, &mut b);
    assert!(a.send(ms(151), 2).iter().all(|d| version(d) == 2));

    // One that knows no later version is left alone.
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    let old = |d: &&Datagram| version(d) == 1;
    let mut asked = Vec::new();
    for now in (0..600_000).step_by(50).map(ms) {
        let hellos = a.tick(now);
        asked.extend(hellos.first().map(|_| now));
        hellos.iter().filter(old).for_each(|d| b.receive(now, d));
        let answers = std::mem::take(&mut b.out);
        answers.iter().filter(old).for_each(|d| a.receive(now, d));
    }
    let gaps: Vec<_> = asked.windows(2).map(|w| w[1].since(w[0])).collect();
    assert!(gaps[3] < Duration::from_secs(1), "{gaps:?}");
    assert!(gaps[gaps.len() - 3] >= Duration::from_secs(60), "{gaps:?}");
    assert!(asked.len() < 30, "{gaps:?}");
}

fn standing(i: usize) -> Standing {
    Standing {
        virtual_server: format!("virtual-server-of-thirty-n-{i:03}")
            .parse()
            .unwrap(),
        floor: Term(70_000),
        claim: Some(Claim {
            term: Term(70_000),
            lease_held: true,
        }),
        fit: true,
        priority: 100,
    }
}

#[test]
fn a_beat_of_256_virtual_servers_and_its_acknowledgement_pass_in_packets_below_1200_bytes() {
    let (mut a, mut b) = pair();
    let many = Beat {
        standings: (0..256).map(standing).collect(),
        ..beat(7)
    };
    let refused = |s: &Standing| Answer {
        virtual_server: s.virtual_server.clone(),
        verdict: Verdict::Refused {
            why: Why::Promised,
            floor: s.floor,
            holder: Some(name("gamma")),
        },
    };
    let answers = many.standings.iter().map(refused).collect();
    let answered = Ack { answers, ..ack(9) };
    let made = ms(10);
    let messages = vec![
        ElectdToHbd::Beat {
            made,
            beat: many.clone(),
        },
        ElectdToHbd::Ack {
            made,
            to: name("beta"),
            ack: answered.clone(),
        },
    ];
    a.core.handle(made, Input::Send(messages));
    a.drain(made);
    let packets = std::mem::take(&mut a.out);
    assert!(packets.len() > 16);
    for packet in &packets {
        assert!(packet.bytes.len() < 1200, "{}", packet.bytes.len());
        b.receive(made, packet);
    }
    let (mut standings, mut answers, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for message in &b.delivered {
        match message {
            HbdToDoctord::Beat { beat, .. } => {
                assert_eq!((beat.number, beat.lease), (many.number, many.lease));
                parts.push(beat.part.0);
                standings.extend(beat.standings.clone());
            }
            HbdToDoctord::Ack { ack, .. } => {
                assert_eq!(
                    (ack.number, ack.instance),
                    (answered.number, answered.instance)
                );
                answers.extend(ack.answers.clone());
            }
            HbdToDoctord::Listening => {}
        }
    }
    assert_eq!((standings, answers), (many.standings, answered.answers));
    let of = u16::try_from(parts.len()).unwrap();
    assert!((0..of).eq(parts.iter().map(|p| p.index)) && parts.iter().all(|p| p.of == of));
}

#[test]
fn a_peer_of_the_release_before_gets_a_beat_in_one_piece() {
    let (mut a, mut b) = (Host::new("alpha"), Host::new("beta"));
    for now in [ms(0), ms(100), ms(100), ms(200)] {
        let (to_b, to_a) = (a.tick(now), b.tick(now));
        to_b.iter()
            .filter(|d| version(d) == 1)
            .for_each(|d| b.receive(now, d));
        to_a.iter()
            .filter(|d| version(d) == 1)
            .for_each(|d| a.receive(now, d));
    }
    let made = ms(300);
    let standings = (0..256).map(standing).collect();
    let beat = Beat {
        standings,
        ..beat(7)
    };
    a.core
        .handle(made, Input::Send(vec![ElectdToHbd::Beat { made, beat }]));
    a.drain(made);
    std::mem::take(&mut a.out)
        .iter()
        .for_each(|d| b.receive(made, d));
    let [HbdToDoctord::Beat { beat, .. }] = &b.delivered[..] else {
        panic!("{:?}", b.delivered.len())
    };
    assert_eq!((beat.standings.len(), beat.part.0.of), (256, 1));
}
