//! Single rules at a single elector: what exactly is answered, and in which order.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{H, L, Setup, Sim, ms, name, secs, vname};
use election::{
    Elector, Input, Memory, Mode, Output, Reservation, Settings, Start, Wish, memory::Vote,
};
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term,
    local::ring::{Health, HealthState, LinkHealth, ServerHealth},
    wire::{
        beat::{Ack, Answer, Beat, Claim, Participation, Roster, Standing, Verdict, Why},
        signal::{Body, PreVerdict, Released, Signal},
    },
};
use std::time::Duration;

/// The elector of gamma, alone, with alpha and beta played by the test.
struct Alone {
    elector: Elector,
    now: BootTime,
}

const ALPHA: Instance = Instance(0xa);
const BETA: Instance = Instance(0xb);

impl Alone {
    /// Taking part, promised to nobody, floor 0.
    fn new() -> Self {
        Self::remembering(Memory::default())
    }

    fn settings() -> Settings {
        Sim::new(&Setup::default()).servers[2].settings.clone()
    }

    fn reservation() -> Reservation {
        let voters = ["alpha", "beta", "gamma"].map(name).to_vec();
        Reservation::first(voters, Some(vname("web")), L)
    }

    fn remembering(memory: Memory) -> Self {
        Self::starting(Self::settings(), Self::reservation(), memory)
    }

    fn starting(settings: Settings, reservation: Reservation, memory: Memory) -> Self {
        let now = BootTime(1_000_000_000_000);
        let start = Start {
            instance: Instance(0xc),
            seed: 1,
            reservation: Some(reservation),
            memory: Some(memory),
            gates: Vec::new(),
        };
        let mut this = Self {
            elector: Elector::new(settings, start, now),
            now,
        };
        this.outputs();
        this
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.elector.poll_output()).collect()
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        self.elector.handle(self.now, input);
        self.outputs()
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        self.elector.handle_timeout(self.now);
        self.outputs();
    }

    fn beat_of(
        &mut self,
        from: &str,
        number: u64,
        term: Option<u64>,
        lease: Duration,
    ) -> Vec<Output> {
        let beat = Self::a_beat(from, number, term, lease);
        self.hear(from, beat)
    }

    fn a_beat(from: &str, number: u64, term: Option<u64>, lease: Duration) -> Beat {
        let instance = if from == "alpha" { ALPHA } else { BETA };
        Beat {
            instance,
            number: Number(number),
            lease,
            promise_max: L,
            floor_base: Term(0),
            participation: Participation::Active,
            maintenance: false,
            witness: false,
            freshness: Default::default(),
            standings: vec![Standing {
                virtual_server: vname("web"),
                floor: Term(0),
                claim: term.map(|t| Claim {
                    term: Term(t),
                    lease_held: true,
                }),
                fit: true,
                priority: 100,
            }],
            heard: Vec::new(),
            roster: Roster::default(),
            config_hash: 1,
            part: Default::default(),
        }
    }

    fn hear(&mut self, from: &str, beat: Beat) -> Vec<Output> {
        self.give(Input::Beat {
            from: name(from),
            at: self.now,
            beat,
        })
    }

    /// The acknowledgement of a claim in term 3 for a lease, counted by this roster.
    fn ack_by(&mut self, from: &str, number: u64, roster: &Roster) -> Ack {
        let mut beat = Self::a_beat(from, number, Some(3), L);
        beat.roster = roster.clone();
        let outputs = self.hear(from, beat);
        let ack = outputs.into_iter().find_map(|o| match o {
            Output::Ack { ack, .. } => Some(ack),
            _ => None,
        });
        ack.unwrap()
    }

    /// On disk now.
    fn store(&mut self, roster: &Roster) {
        let mut reservation = Self::reservation();
        reservation.roster = roster.clone();
        self.give(Input::Reserved(reservation));
    }

    /// The verdict on a beat; none if it was dropped.
    fn claim(&mut self, from: &str, number: u64, term: u64, lease: Duration) -> Option<Verdict> {
        let outputs = self.beat_of(from, number, Some(term), lease);
        let answers = outputs.into_iter().find_map(|o| match o {
            Output::Ack { ack, .. } => Some(ack.answers),
            _ => None,
        });
        answers.unwrap().into_iter().next().map(|a| a.verdict)
    }

    fn signal(&mut self, from: &str, number: u64, body: Body) -> Vec<Output> {
        let instance = if from == "alpha" { ALPHA } else { BETA };
        let signal = Signal {
            virtual_server: vname("web"),
            instance,
            number: Number(number),
            body,
        };
        self.give(Input::Signal {
            from: name(from),
            signal,
        })
    }

    fn said(outputs: Vec<Output>) -> Vec<Body> {
        let said = outputs.into_iter().filter_map(|o| match o {
            Output::Signal { signal, .. } => Some(signal.body),
            _ => None,
        });
        said.collect()
    }

    fn call(&mut self, from: &str, number: u64, term: u64) -> Result<Term, Why> {
        self.call_with(from, number, term, RosterVersion::default(), Vec::new())
    }

    fn call_with(
        &mut self,
        from: &str,
        number: u64,
        term: u64,
        roster: RosterVersion,
        releases: Vec<Released>,
    ) -> Result<Term, Why> {
        let body = Body::Call {
            term: Term(term),
            lease: L,
            releases,
            roster,
        };
        let outputs = self.signal(from, number, body);
        match Self::said(outputs).pop().unwrap() {
            Body::Grant { term, .. } => Ok(term),
            Body::Refuse { why, .. } => Err(why),
            other => panic!("{other:?}"),
        }
    }

    fn pre_call(&mut self, from: &str, term: u64) -> PreVerdict {
        let outputs = self.signal(
            from,
            1,
            Body::PreCall {
                term: Term(term),
                lease: L,
                round: 1,
            },
        );
        match Self::said(outputs).pop().unwrap() {
            Body::PreAnswer { verdict, .. } => verdict,
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self, from: &str, number: u64) {
        self.signal(
            from,
            number,
            Body::Release {
                term: Term(0),
                invited: None,
            },
        );
    }

    fn health(&mut self, alpha: HealthState) {
        let server = |n: &str, state| ServerHealth {
            server: name(n),
            state,
            last_heard: None,
        };
        let servers = vec![server("alpha", alpha), server("beta", HealthState::Alive)];
        let links = vec![LinkHealth {
            interface: "eth0".into(),
            up: true,
        }];
        self.give(Input::Health(Health { servers, links }));
    }
}

fn promised(term: u64) -> Option<Verdict> {
    Some(Verdict::Promised(Term(term)))
}

fn refused(verdict: Option<Verdict>) -> Why {
    let Some(Verdict::Refused { why, .. }) = verdict else {
        panic!("{verdict:?}")
    };
    why
}

fn holder(verdict: Option<Verdict>) -> Option<ServerName> {
    let Some(Verdict::Refused { holder, .. }) = verdict else {
        panic!("{verdict:?}")
    };
    holder
}

#[test]
fn r5_a_claim_is_promised_until_its_own_lease_has_passed_and_nobody_else_before() {
    let mut voter = Alone::new();
    assert_eq!(voter.claim("alpha", 1, 3, ms(300)), promised(3));
    voter.pass(ms(299));
    assert_eq!(holder(voter.claim("beta", 1, 4, L)), Some(name("alpha")));
    assert_eq!(refused(voter.claim("beta", 2, 4, L)), Why::Promised);
    voter.pass(ms(2));
    assert_eq!(
        voter.claim("beta", 3, 4, L),
        promised(4),
        "the beat's lease counts, not this server's"
    );
}

#[test]
fn r5_a_claim_below_the_floor_is_refused_with_the_floor() {
    let mut voter = Alone::new();
    assert_eq!(voter.claim("alpha", 1, 7, ms(1)), promised(7));
    voter.pass(ms(2));
    let verdict = voter.claim("alpha", 2, 6, L);
    assert!(
        matches!(
            verdict,
            Some(Verdict::Refused {
                why: Why::Floor,
                floor: Term(7),
                ..
            })
        ),
        "{verdict:?}"
    );
}

#[test]
fn r5_overtaken_and_released_beats_get_no_answer_and_change_nothing() {
    let mut voter = Alone::new();
    assert_eq!(voter.claim("alpha", 5, 3, L), promised(3));
    assert_eq!(voter.claim("alpha", 4, 3, L), None, "overtaken");
    assert_eq!(
        voter.claim("alpha", 5, 3, L),
        promised(3),
        "a repeated one says the same"
    );
    voter.release("alpha", 6);
    assert_eq!(voter.claim("alpha", 6, 3, L), None, "released");
    assert_eq!(
        voter.claim("beta", 1, 4, L),
        promised(4),
        "and nobody is promised by it"
    );
}

#[test]
fn r5_r22_r23_nothing_is_promised_beyond_the_reservation_or_the_longest_promise_on_disk() {
    let mut voter = Alone::new();
    let disk = Reservation::first(Vec::new(), None, L);
    assert_eq!(
        refused(voter.claim("alpha", 1, disk.reserved.0 + 1, L)),
        Why::Reservation
    );
    assert_eq!(
        refused(voter.claim("alpha", 2, 3, secs(2))),
        Why::Reservation
    );
    assert_eq!(refused(voter.claim("alpha", 3, 1 << 40, L)), Why::Absurd);
    assert_eq!(
        voter.claim("alpha", 4, disk.reserved.0, L),
        promised(disk.reserved.0)
    );
}

#[test]
fn r23_a_refused_longer_lease_is_promised_once_it_is_on_disk_and_a_wild_one_never() {
    let mut voter = Alone::new();
    let reserve = |outputs: Vec<Output>| {
        outputs.into_iter().find_map(|o| match o {
            Output::Reserve(r) => Some(r),
            _ => None,
        })
    };
    let first = reserve(voter.beat_of("alpha", 1, Some(3), secs(2))).unwrap();
    assert_eq!(first.promise_max, secs(2));
    voter.give(Input::Reserved(first));
    assert_eq!(voter.claim("alpha", 2, 3, secs(2)), promised(3));
    let wild = reserve(voter.beat_of("alpha", 3, Some(3), Duration::MAX)).unwrap();
    assert_eq!(wild.promise_max, secs(10), "no lease is longer");
    voter.give(Input::Reserved(wild));
    assert_eq!(
        refused(voter.claim("alpha", 4, 3, Duration::MAX)),
        Why::Reservation
    );
}

#[test]
fn r14_a_vote_is_a_promise_and_is_given_once_per_term() {
    let mut voter = Alone::new();
    assert_eq!(voter.call("alpha", 1, 3), Ok(Term(3)));
    assert_eq!(
        voter.call("alpha", 1, 3),
        Err(Why::Floor),
        "a repeated call"
    );
    assert_eq!(voter.call("beta", 1, 4), Err(Why::Promised));
    assert_eq!(refused(voter.claim("beta", 2, 4, L)), Why::Promised);
    assert_eq!(
        voter.call("alpha", 2, 4),
        Ok(Term(4)),
        "the holder may call higher (R16)"
    );
    voter.pass(L + ms(1));
    assert_eq!(
        voter.call("beta", 3, 4),
        Err(Why::Floor),
        "one vote per term"
    );
    assert_eq!(voter.call("beta", 4, 5), Ok(Term(5)));
}

#[test]
fn r14_a_released_or_overtaken_call_and_one_by_an_older_roster_get_no_vote() {
    let mut voter = Alone::new();
    voter.release("alpha", 7);
    assert_eq!(voter.call("alpha", 7, 3), Err(Why::Stale));
    assert_eq!(voter.claim("beta", 9, 3, L), promised(3));
    assert_eq!(voter.call("beta", 8, 4), Err(Why::Stale));
    let roster = Reservation::first(
        ["alpha", "beta", "gamma"].map(name).to_vec(),
        Some(vname("web")),
        L,
    );
    let mut newer = roster;
    newer.roster.version = RosterVersion {
        term: Term(3),
        counter: 1,
    };
    voter.give(Input::Reserved(newer));
    let older = RosterVersion {
        term: Term(3),
        counter: 0,
    };
    assert_eq!(
        voter.call_with("beta", 10, 5, older, Vec::new()),
        Err(Why::Roster)
    );
    let same = RosterVersion {
        term: Term(3),
        counter: 1,
    };
    assert_eq!(
        voter.call_with("beta", 11, 5, same, Vec::new()),
        Ok(Term(5))
    );
}

#[test]
fn r18_a_relayed_release_frees_as_the_release_itself_does() {
    let mut voter = Alone::new();
    assert_eq!(voter.claim("alpha", 5, 3, L), promised(3));
    let released = |number| {
        vec![Released {
            server: name("alpha"),
            instance: ALPHA,
            number: Number(number),
        }]
    };
    let any = RosterVersion::default();
    assert_eq!(
        voter.call_with("beta", 1, 4, any, released(4)),
        Err(Why::Promised),
        "an older one"
    );
    assert_eq!(voter.call_with("beta", 2, 5, any, released(5)), Ok(Term(5)));
}

#[test]
fn the_memory_is_written_before_the_message_that_relies_on_it_and_only_when_it_changed() {
    let mut voter = Alone::new();
    let position = |outputs: &[Output], what: fn(&Output) -> bool| outputs.iter().position(what);
    let remember: fn(&Output) -> bool = |o| matches!(o, Output::Remember(_));
    let outputs = voter.beat_of("alpha", 1, Some(3), L);
    assert!(position(&outputs, remember) < position(&outputs, |o| matches!(o, Output::Ack { .. })));
    assert!(position(&outputs, remember).is_some());
    let outputs = voter.beat_of("alpha", 2, Some(3), L);
    assert_eq!(position(&outputs, remember), None, "no write per beat");
    let body = Body::Call {
        term: Term(4),
        lease: L,
        releases: Vec::new(),
        roster: RosterVersion::default(),
    };
    let outputs = voter.signal("alpha", 3, body);
    let grant: fn(&Output) -> bool =
        |o| matches!(o, Output::Signal { signal, .. } if matches!(signal.body, Body::Grant { .. }));
    assert!(position(&outputs, grant).is_some());
    assert!(position(&outputs, remember).unwrap() < position(&outputs, grant).unwrap());
}

#[test]
fn r12_a_pre_vote_says_what_a_vote_would_and_changes_nothing() {
    let mut voter = Alone::new();
    voter.health(HealthState::Alive);
    assert_eq!(voter.pre_call("beta", 3), PreVerdict::Yes);
    assert_eq!(
        voter.pre_call("alpha", 3),
        PreVerdict::Yes,
        "nobody was promised by the first"
    );
    assert_eq!(voter.claim("alpha", 1, 3, L), promised(3));
    let PreVerdict::No {
        why, retry_after, ..
    } = voter.pre_call("beta", 4)
    else {
        panic!("promised")
    };
    assert_eq!((why, retry_after), (Why::Promised, Some(L)));
}

#[test]
fn r12_the_voters_doctor_protects_a_master_that_is_alive_and_claims() {
    let mut voter = Alone::new();
    voter.health(HealthState::Alive);
    assert_eq!(voter.claim("alpha", 1, 3, L), promised(3));
    voter.pass(L + ms(1));
    let why = |verdict| match verdict {
        PreVerdict::No { why, .. } => Some(why),
        PreVerdict::Yes => None,
    };
    assert_eq!(why(voter.pre_call("beta", 4)), Some(Why::Doctor));
    assert_eq!(
        why(voter.pre_call("alpha", 4)),
        None,
        "but not against itself (R16)"
    );
    voter.beat_of("alpha", 2, None, L);
    assert_eq!(why(voter.pre_call("beta", 4)), None, "it claims no more");
    voter.beat_of("alpha", 3, Some(3), ms(1));
    voter.pass(ms(2));
    assert_eq!(why(voter.pre_call("beta", 4)), Some(Why::Doctor));
    voter.health(HealthState::Suspect);
    assert_eq!(why(voter.pre_call("beta", 4)), None);
    voter.health(HealthState::Unknown);
    assert_eq!(
        why(voter.pre_call("beta", 4)),
        Some(Why::Doctor),
        "an ignorant doctor protects"
    );
    voter.pass(L);
    assert_eq!(why(voter.pre_call("beta", 4)), None, "but not for ever");
}

#[test]
fn r20_a_restarted_voter_is_bound_to_the_last_holder_whoever_releases_what() {
    let remembered = {
        let mut voter = Alone::new();
        let outputs = voter.beat_of("alpha", 5, Some(3), ms(10));
        outputs.into_iter().find_map(|o| match o {
            Output::Remember(m) => Some(m),
            _ => None,
        })
    };
    let mut voter = Alone::remembering(remembered.unwrap());
    assert_eq!(voter.call("beta", 1, 4), Err(Why::Promised));
    assert_eq!(
        refused(voter.claim("alpha", 6, 2, L)),
        Why::Floor,
        "its vote is remembered"
    );
    assert_eq!(
        voter.claim("alpha", 2, 3, ms(10)),
        promised(3),
        "a late beat of before"
    );
    voter.release("alpha", 3);
    assert_eq!(
        voter.call("beta", 2, 4),
        Err(Why::Promised),
        "a late release of before"
    );
    voter.pass(L + ms(1));
    assert_eq!(voter.call("beta", 3, 4), Ok(Term(4)));
}

#[test]
fn r22_after_a_clean_stop_nothing_is_voted_or_promised_any_more() {
    let mut voter = Alone::new();
    assert_eq!(voter.call("alpha", 1, 3), Ok(Term(3)));
    let outputs = voter.give(Input::Stop);
    let Some(Output::Stopped(Some(last))) = outputs.last() else {
        panic!("{outputs:?}")
    };
    assert_eq!(last.reserved, Term(3));
    let body = Body::Call {
        term: Term(4),
        lease: L,
        releases: Vec::new(),
        roster: RosterVersion::default(),
    };
    assert_eq!(voter.signal("alpha", 2, body), []);
    assert_eq!(voter.beat_of("alpha", 3, Some(3), L), []);
    voter.now = voter.now + secs(60);
    voter.elector.handle_timeout(voter.now);
    assert_eq!(voter.outputs(), []);
    assert_eq!(voter.elector.poll_timeout(), None);
}

#[test]
fn r23_while_a_lower_longest_promise_is_being_written_no_longer_one_is_given() {
    let mut voter = Alone::new();
    let reserve = |outputs: Vec<Output>| {
        outputs.into_iter().find_map(|o| match o {
            Output::Reserve(r) => Some(r),
            _ => None,
        })
    };
    let first = reserve(voter.beat_of("alpha", 1, Some(3), secs(2))).unwrap();
    voter.give(Input::Reserved(first));
    assert_eq!(voter.claim("alpha", 2, 3, secs(2)), promised(3));
    let mut lowered = None;
    let begin = voter.now;
    for number in 3..200 {
        voter.now = voter.now + H;
        lowered = reserve(voter.beat_of("alpha", number, Some(3), L));
        if lowered.is_some() {
            break;
        }
    }
    let lowered = lowered.expect("lowered when that long has passed");
    assert!(voter.now.since(begin) >= secs(2));
    assert_eq!(lowered.promise_max, L);
    assert_eq!(
        refused(voter.claim("alpha", 300, 3, secs(2))),
        Why::Reservation
    );
    // Even a write that fails may have reached the disk.
    voter.give(Input::ReserveFailed("i/o error".into()));
    assert_eq!(
        refused(voter.claim("alpha", 301, 3, secs(2))),
        Why::Reservation
    );
}

#[test]
fn r14_a_master_that_slept_through_its_own_promise_gives_way_to_a_call() {
    let mut sim = Sim::settled(&Setup::default());
    let master = sim.master().unwrap();
    let other = (master + 1) % 3;
    let caller = sim.servers[other].name.clone();
    let term = Term(sim.term(master) + 1);
    sim.sent = Some(Vec::new());
    sim.partition(&[master]);
    sim.stall(master, ms(700)); // lease and grace are over, whenever the last beat was
    sim.run(ms(690));
    let body = Body::Call {
        term,
        lease: L,
        releases: Vec::new(),
        roster: RosterVersion { term, counter: 0 },
    };
    let signal = Signal {
        virtual_server: vname("web"),
        instance: Instance(5),
        number: Number(1),
        body,
    };
    sim.give(
        master,
        Input::Signal {
            from: caller.clone(),
            signal,
        },
    ); // waits for the end of the stall
    sim.run(ms(10));
    let sent = sim.sent.as_ref().unwrap();
    let answered = |body: &Body| {
        matches!(
            body,
            Body::Refuse {
                why: Why::Shutting,
                ..
            }
        )
    };
    assert!(
        sent.iter()
            .any(|(i, to, s)| *i == master && *to == caller && answered(&s.body)),
        "{sent:?}"
    );
    assert_eq!(sim.role(master, "web"), "slave");
}

#[test]
fn r16_voters_that_reboot_one_after_another_cost_the_master_nothing_but_a_higher_term() {
    // A rebooted voter's floor is its reservation: the master must take a higher term to keep its promise.
    let mut sim = Sim::settled(&Setup::default());
    let (master, begin, term) = (
        sim.master().unwrap(),
        sim.now,
        sim.term(sim.master().unwrap()),
    );
    for voter in (0..3).filter(|i| *i != master).cycle().take(6) {
        sim.power_off(voter);
        sim.run(ms(200));
        sim.power_on(voter);
        for _ in 0..1000 {
            sim.run(ms(2));
            assert!(sim.gate_open(master, "web"), "the gate closed");
        }
    }
    assert_eq!(sim.changes_since(begin), 0);
    assert!(sim.term(master) > term + 1000);
}

#[test]
fn without_a_quorum_two_servers_that_never_heard_of_each_other_use_different_terms() {
    for seed in 0..20 {
        let setup = Setup {
            servers: 2,
            mode: election::Mode::None,
            seed,
            ..Setup::default()
        };
        let mut sim = Sim::new(&setup);
        sim.partition(&[0]);
        sim.power_on_all();
        sim.run(secs(4));
        assert!(sim.gate_open(0, "web") && sim.gate_open(1, "web"));
        assert_ne!(sim.term(0), sim.term(1));
    }
}

#[test]
fn r16_a_longer_lease_in_the_file_does_not_keep_a_restarted_electd_from_renewing_in_time() {
    let mut sim = Sim::settled(&Setup::default());
    let (master, begin) = (sim.master().unwrap(), sim.now);
    sim.servers[master].disk_delay = secs(3);
    sim.kill(master);
    sim.servers[master].settings.lease = secs(2);
    sim.start(master);
    for _ in 0..1000 {
        sim.run(ms(5));
        assert!(sim.gate_open(master, "web"), "the gate closed");
    }
    assert_eq!(sim.changes_since(begin), 0);
}

#[test]
fn r25_maintenance_of_a_slave_is_answered_at_once() {
    let mut voter = Alone::new();
    let outputs = voter.give(Input::Operator {
        id: 4,
        wish: Wish::Maintenance(true),
    });
    assert!(outputs.iter().any(|o| matches!(
        o,
        Output::Answer {
            id: 4,
            answer: Ok(_)
        }
    )));
}

#[test]
fn r13_the_lease_of_a_call_runs_from_before_the_call() {
    // The voter's clock as fast, the master's as slow as R1 allows, a slow network, one voter to lean on,
    // which hears nothing more once it has granted: the judge watches every millisecond.
    for seed in 0..20 {
        let mut sim = Sim::new(&Setup {
            seed,
            ..Setup::default()
        });
        sim.set_rate(0, 900);
        sim.set_rate(1, 1120);
        sim.all_links(|l| l.delay = (20_000, 30_000));
        sim.power_on(0);
        sim.power_on(1);
        sim.set_interface(1, false);
        sim.sent = Some(Vec::new());
        let granted = |s: &Sim| {
            s.sent
                .iter()
                .flatten()
                .any(|(i, _, signal)| *i == 1 && matches!(signal.body, Body::Grant { .. }))
        };
        sim.until(secs(5), granted);
        sim.links[0][1].up = false;
        sim.until(secs(1), |s| s.gate_open(0, "web"));
        sim.until(secs(1), |s| s.master().is_none());
    }
}

#[test]
fn r18_a_release_of_one_instance_does_not_forget_that_of_another() {
    let mut voter = Alone::new();
    voter.release("alpha", 10);
    let other = Released {
        server: name("alpha"),
        instance: Instance(99),
        number: Number(3),
    };
    let _ = voter.call_with("beta", 1, 1, RosterVersion::default(), vec![other]);
    voter.release("beta", 1);
    assert_eq!(voter.claim("alpha", 9, 3, L), None, "still released");
}

#[test]
fn r19_an_invitation_into_a_term_that_is_over_is_declined() {
    let mut voter = Alone::new();
    assert_eq!(voter.claim("beta", 1, 5, ms(1)), promised(5));
    voter.pass(ms(2));
    let invitation = |term| Body::Release {
        term: Term(term),
        invited: Some(name("gamma")),
    };
    assert_eq!(Alone::said(voter.signal("alpha", 3, invitation(4))), []);
    assert_eq!(
        voter.elector.counters().get("invitation_declined"),
        Some(&1)
    );
    let said = Alone::said(voter.signal("alpha", 4, invitation(5)));
    assert!(
        matches!(
            said[..],
            [Body::Call { term: Term(6), .. }, Body::Call { .. }]
        ),
        "{said:?}"
    );
}

#[test]
fn r19_the_others_leave_the_invited_server_the_time_of_its_call() {
    for lost in [false, true] {
        let mut sim = Sim::settled(&Setup::default());
        let old = sim.master().unwrap();
        let (to, other) = ((old + 1) % 3, (old + 2) % 3);
        sim.settings(other, |settings| {
            for v in settings.virtual_servers.values_mut() {
                v.priority = 200; // first in rank: it would stand at once
            }
        });
        sim.run(secs(2));
        // The invitation takes longer than the news that nobody is master.
        sim.links[old][to].delay = (8_000, 8_000);
        sim.wish(old, Wish::Promote(sim.servers[to].name.clone(), None));
        sim.until(secs(1), |s| !s.gate_open(old, "web"));
        if lost {
            sim.power_off(to);
        }
        sim.until(secs(1), |s| s.master().is_some_and(|m| m != old));
        assert_eq!(sim.master(), Some(if lost { other } else { to }));
    }
}

#[test]
fn r21_what_a_blank_server_has_learned_counts_only_when_it_is_on_disk() {
    let mut sim = Sim::settled(&Setup {
        blank: 1,
        ..Setup::default()
    });
    sim.power_off(3);
    sim.wipe(3);
    sim.servers[3].disk_delay = secs(5);
    sim.power_on(3);
    sim.run(secs(1));
    assert_eq!(sim.view(3).standing, "taking part", "it has learned");
    sim.give(3, Input::Stop);
    sim.run(ms(10));
    assert_eq!(sim.stopped, [3]);
    assert_eq!(sim.servers[3].reservation, None);
}

#[test]
fn r24_a_master_that_has_lost_its_lease_changes_no_roster() {
    let mut sim = Sim::settled(&Setup {
        blank: 1,
        ..Setup::default()
    });
    let master = sim.master().unwrap();
    sim.partition(&[master]);
    sim.until(L, |s| !s.gate_open(master, "web"));
    sim.run(ms(10));
    assert_eq!(
        sim.role(master, "web"),
        "master",
        "it may still re-acquire it"
    );
    let id = sim.wish(master, Wish::Add(name("delta")));
    assert!(
        sim.answers[&id].as_ref().unwrap_err().contains("lease"),
        "{:?}",
        sim.answers
    );
}

#[test]
fn r7_an_acknowledgement_of_no_beat_of_this_instance_changes_nothing() {
    let mut alone = Alone::new();
    let state = |alone: &Alone| {
        let all = format!("{:?}", alone.elector);
        all.split(", counters: ").next().map(str::to_owned)
    };
    alone.pass(Duration::ZERO);
    let (own, before) = (Instance(0xc), state(&alone));
    for (instance, number) in [(Instance(0xd), 1), (own, 9999)] {
        let ack = Ack {
            instance,
            number: Number(number),
            waited: Duration::ZERO,
            answers: Vec::new(),
            roster: RosterVersion::default(),
        };
        let from = name("alpha");
        alone.give(Input::Ack { from, ack });
        assert_eq!(state(&alone), before, "beat {number} of {instance}");
    }
    let counted = alone.elector.counters();
    assert_eq!(counted["ack_of_former_instance"], 1);
    assert_eq!(counted["ack_of_unknown_beat"], 1);
}

#[test]
fn numbers_at_their_end_stop_nothing() {
    let settings = Settings {
        mode: Mode::None,
        ..Alone::settings()
    };
    let reservation = Reservation {
        reserved: Term(u64::MAX),
        promise_max: Duration::MAX,
        ..Alone::reservation()
    };
    let vote = Vote {
        virtual_server: vname("web"),
        voted: Term(u64::MAX - 1),
        holder: None,
    };
    let votes = vec![vote];
    let mut alone = Alone::starting(
        settings,
        reservation,
        Memory {
            votes,
            ..Memory::default()
        },
    );
    let dead = |server| ServerHealth {
        server: name(server),
        state: HealthState::Dead,
        last_heard: None,
    };
    let servers = ["alpha", "beta"].map(dead).to_vec();
    let links = Vec::new();
    alone.give(Input::Health(Health { servers, links }));
    alone.pass(secs(1));
    let outputs = alone.give(Input::Probed(vname("web"), false));
    let won = |o: &Output| matches!(o, Output::Role(r) if r.master && r.term == Term(u64::MAX));
    assert!(outputs.iter().any(won), "{outputs:?}");
}

fn roster(counter: u64, voters: &[&str]) -> Roster {
    Roster {
        version: RosterVersion {
            term: Term(3),
            counter,
        },
        voters: voters.iter().map(|v| name(v)).collect(),
        keeper: Some(vname("web")),
    }
}

#[test]
fn r24_a_claim_counted_by_an_older_roster_than_the_own_is_refused() {
    let (older, newer) = (
        roster(0, &["alpha", "beta", "gamma"]),
        roster(1, &["alpha", "beta", "delta", "gamma"]),
    );
    let mut voter = Alone::new();
    let promised = |ack: &Ack| matches!(ack.answers[0].verdict, Verdict::Promised(_));
    assert!(promised(&voter.ack_by("alpha", 1, &older)));
    voter.store(&newer);
    let ack = voter.ack_by("alpha", 2, &older);
    assert_eq!(
        refused(Some(ack.answers[0].verdict.clone())),
        Why::Roster,
        "its majority may not meet one of the newer roster's"
    );
    assert!(promised(&voter.ack_by("alpha", 3, &newer)));
}

#[test]
fn r24_an_acknowledgement_tells_the_lowest_roster_by_which_a_promise_may_be_counted() {
    let (older, newer) = (
        roster(0, &["alpha", "beta", "gamma"]),
        roster(1, &["alpha", "beta", "delta", "gamma"]),
    );
    let mut voter = Alone::new();
    voter.store(&older);
    assert_eq!(voter.ack_by("alpha", 1, &older).roster, older.version);
    voter.store(&newer);
    let ack = voter.ack_by("alpha", 2, &newer);
    assert_eq!(
        ack.roster, older.version,
        "what was promised to the first beat binds for a lease"
    );
    voter.pass(L + ms(1));
    assert_eq!(voter.ack_by("alpha", 3, &newer).roster, newer.version);
}

#[test]
fn r24_after_a_restart_no_roster_is_told_as_settled_while_the_firm_promise_binds() {
    let held = roster(0, &["alpha", "beta", "gamma"]);
    let mut voter = Alone::new();
    voter.store(&held);
    let mut beat = Alone::a_beat("alpha", 6, Some(3), L);
    beat.roster = held.clone();
    let remembered = voter.hear("alpha", beat).into_iter().find_map(|o| match o {
        Output::Remember(m) => Some(m),
        _ => None,
    });
    let mut voter = Alone::remembering(remembered.unwrap());
    voter.store(&held);
    assert!(voter.ack_by("alpha", 7, &held).roster < held.version);
    voter.pass(L + ms(1));
    assert_eq!(voter.ack_by("alpha", 8, &held).roster, held.version);
}

/// gamma, just booted with `promise_max` on disk, and L in its configuration.
fn booted(promise_max: Duration) -> Alone {
    let reservation = Reservation {
        promise_max,
        ..Alone::reservation()
    };
    let now = BootTime(1_000_000_000_000);
    let start = Start {
        instance: Instance(0xc),
        seed: 1,
        reservation: Some(reservation),
        memory: None,
        gates: Vec::new(),
    };
    let mut this = Alone {
        elector: Elector::new(Alone::settings(), start, now),
        now,
    };
    this.outputs();
    this
}

fn standing(alone: &Alone) -> String {
    alone.elector.view(alone.now).standing
}

#[test]
fn r20_a_booted_server_is_silent_for_the_longest_of_disk_configuration_and_what_others_tell() {
    let mut voter = booted(ms(10));
    voter.beat_of("beta", 1, None, L);
    voter.pass(L);
    assert!(standing(&voter).contains("silent"), "the configuration's");
    voter.pass(ms(1));
    assert_eq!(standing(&voter), "taking part");

    let mut voter = booted(ms(10));
    let mut beat = Alone::a_beat("beta", 1, None, L);
    beat.promise_max = secs(3);
    voter.pass(ms(100));
    voter.hear("beta", beat);
    // Of the write under way since the start it hears now.
    let outputs = voter.give(Input::Reserved(Reservation {
        promise_max: L,
        ..Alone::reservation()
    }));
    let stored = |o: &Output| matches!(o, Output::Reserve(r) if r.promise_max == secs(3));
    assert!(
        outputs.iter().any(stored),
        "a second power loss must not cut it short: {outputs:?}"
    );
    voter.pass(ms(2900));
    assert!(standing(&voter).contains("silent"), "what beta told");
    assert_eq!(voter.call("alpha", 1, 3000), Err(Why::Silent));
    voter.pass(ms(1));
    assert_eq!(standing(&voter), "taking part");
}

#[test]
fn r20_silence_does_not_end_before_a_majority_was_heard() {
    let mut voter = booted(L);
    voter.pass(secs(60));
    assert!(standing(&voter).contains("silent"));
    assert_eq!(voter.call("alpha", 1, 3000), Err(Why::Silent));
    voter.beat_of("beta", 1, None, L);
    assert_eq!(standing(&voter), "taking part");
}

#[test]
fn r20_a_restart_of_electd_does_not_end_a_silence_in_which_nobody_was_heard() {
    let mut voter = booted(L);
    let until = voter.now + L;
    let memory = Memory {
        silent_until: Some(until),
        silent_since: Some(voter.now),
        ..Memory::default()
    };
    voter = Alone::remembering(memory);
    voter.now = until + secs(1);
    voter.pass(ms(1));
    assert!(standing(&voter).contains("silent"));
    let outputs = voter.beat_of("beta", 1, None, L);
    assert_eq!(standing(&voter), "taking part");
    let over = |o: &Output| matches!(o, Output::Remember(m) if m.silent_until.is_none());
    assert!(outputs.iter().any(over), "it is remembered as over");
}

#[test]
fn r20_a_silence_of_the_format_before_ended_by_its_time_alone() {
    let begin = booted(L).now;
    let ended = |until| Memory {
        silent_until: Some(until),
        ..Memory::default()
    };
    let voter = Alone::remembering(ended(BootTime(begin.0 - 1)));
    assert_eq!(standing(&voter), "taking part");
    let voter = Alone::remembering(ended(begin + L));
    assert!(standing(&voter).contains("silent"));
}

/// gamma in a campaign in term 6, and its call.
fn calling() -> (Alone, Signal) {
    let mut gamma = Alone::new();
    assert_eq!(gamma.claim("beta", 1, 5, ms(1)), promised(5));
    gamma.pass(ms(2));
    let outputs = invite(&mut gamma, 5);
    let call = outputs.into_iter().find_map(|o| match o {
        Output::Signal { signal, .. } => Some(signal),
        _ => None,
    });
    (gamma, call.unwrap())
}

fn invite(gamma: &mut Alone, term: u64) -> Vec<Output> {
    let body = Body::Release {
        term: Term(term),
        invited: Some(name("gamma")),
    };
    gamma.signal("alpha", 100 + term, body)
}

fn grant(call: &Signal) -> Body {
    Body::Grant {
        instance: call.instance,
        number: call.number,
        term: Term(6),
    }
}

/// gamma, master in term 6 by its own vote and beta's, 5 ms after the call; and what came of that vote.
fn serving() -> (Alone, Vec<Output>) {
    let (mut gamma, call) = calling();
    gamma.pass(ms(5));
    let outputs = gamma.signal("beta", 50, grant(&call));
    (gamma, outputs)
}

fn opened(outputs: &[Output]) -> Option<BootTime> {
    outputs.iter().find_map(|o| match o {
        Output::Open(_, until) => Some(*until),
        _ => None,
    })
}

fn shuts(outputs: &[Output]) -> bool {
    outputs.iter().any(|o| matches!(o, Output::Shut(_)))
}

#[test]
fn r13_a_vote_counts_for_the_call_that_it_answers_and_for_no_other() {
    let (mut gamma, call) = calling();
    for (instance, number, term) in [(1, 0, 6), (0, 1, 6), (0, 0, 5), (0, 0, 7), (1, 1, 7)] {
        let body = Body::Grant {
            instance: Instance(call.instance.0 + instance),
            number: Number(call.number.0 + number),
            term: Term(term),
        };
        let outputs = gamma.signal("beta", 50, body);
        assert_eq!(opened(&outputs), None, "{instance} {number} {term}");
    }
    assert_eq!(gamma.elector.counters()["grant_late"], 5);
    assert!(opened(&gamma.signal("beta", 51, grant(&call))).is_some());
}

#[test]
fn r13_a_new_masters_gate_is_open_as_long_as_it_may_use_votes_given_when_it_called() {
    let (gamma, outputs) = serving();
    let usable = L * 4 / 5 - Alone::settings().margin;
    assert_eq!(opened(&outputs), Some(gamma.now - ms(5) + usable));
    let claims = outputs.iter().find_map(|o| match o {
        Output::Beat(beat) => beat.standings[0].claim,
        _ => None,
    });
    let claim = Claim {
        term: Term(6),
        lease_held: true,
    };
    assert_eq!(claims, Some(claim), "and its next beat says so");
}

#[test]
fn r15_one_refusal_of_three_ends_no_campaign_and_two_do() {
    let refuse = |call: &Signal| Body::Refuse {
        instance: call.instance,
        number: call.number,
        term: Term(6),
        why: Why::Floor,
        floor: Term(0),
    };
    let (mut gamma, call) = calling();
    gamma.signal("alpha", 50, refuse(&call));
    assert!(opened(&gamma.signal("beta", 50, grant(&call))).is_some());
    let (mut gamma, call) = calling();
    gamma.signal("alpha", 50, refuse(&call));
    let said = Alone::said(gamma.signal("beta", 50, refuse(&call)));
    assert!(matches!(said[..], [Body::Release { .. }, _]), "{said:?}");
    assert_eq!(opened(&gamma.signal("beta", 51, grant(&call))), None);
}

#[test]
fn r14_a_master_that_refuses_an_old_call_stays_master() {
    let (mut gamma, _) = serving();
    let old = Body::Call {
        term: Term(6),
        lease: L,
        releases: Vec::new(),
        roster: RosterVersion::default(),
    };
    let outputs = gamma.signal("alpha", 50, old);
    assert!(!shuts(&outputs));
    let said = Alone::said(outputs);
    assert!(
        matches!(
            said[..],
            [Body::Refuse {
                why: Why::Floor,
                ..
            }]
        ),
        "{said:?}"
    );
}

#[test]
fn r18_the_own_promise_ends_when_the_gate_is_shut_and_not_before() {
    let (mut gamma, _) = serving();
    let (me, web) = (name("gamma"), vname("web"));
    gamma.give(Input::GateShut(web.clone()));
    let unasked = gamma.elector.counters().get("gate_shut_unasked").copied();
    assert_eq!(unasked, Some(1));
    assert_eq!(
        gamma.elector.view(gamma.now).virtual_servers[0].role,
        "master"
    );
    // A rival in a higher term: give way.
    let verdict = gamma.claim("beta", 60, 9, L);
    assert_eq!(holder(verdict), Some(me.clone()));
    assert_eq!(holder(gamma.claim("beta", 61, 9, L)), Some(me));
    gamma.give(Input::GateShut(web));
    assert_eq!(gamma.claim("beta", 62, 9, L), promised(9));
}

#[test]
fn r19_who_campaigns_already_declines_another_invitation() {
    let (mut gamma, _) = calling();
    assert_eq!(Alone::said(invite(&mut gamma, 8)), []);
    assert_eq!(gamma.elector.counters()["invitation_declined"], 1);
}

#[test]
fn r20_a_restarted_electd_is_bound_by_its_own_promise_where_its_gate_is_open_and_nowhere_else() {
    let now = BootTime(1_000_000_000_000);
    let table = [
        (None, Ok(Term(4))),
        (Some(("mail", now + L)), Ok(Term(4))),
        (Some(("web", now - ms(1))), Err(Why::Shutting)), // which its shell does first
        (Some(("web", now + L)), Err(Why::Promised)),
    ];
    for (gate, answer) in table {
        let vote = Vote {
            virtual_server: vname("web"),
            voted: Term(3),
            holder: Some(name("gamma")),
        };
        let memory = Memory {
            votes: vec![vote],
            ..Memory::default()
        };
        let start = Start {
            instance: Instance(0xc),
            seed: 1,
            reservation: Some(Alone::reservation()),
            memory: Some(memory),
            gates: gate.iter().map(|(v, at)| (vname(v), *at)).collect(),
        };
        let elector = Elector::new(Alone::settings(), start, now);
        let mut gamma = Alone { elector, now };
        gamma.outputs();
        assert_eq!(gamma.call("beta", 1, 4), answer, "{gate:?}");
    }
}

#[test]
fn r22_a_term_is_absurd_from_the_first_one_beyond_the_bound_on() {
    const JUMP: u64 = 1 << 32;
    let mut voter = Alone::new();
    assert_eq!(voter.claim("alpha", 1, 5, ms(1)), promised(5));
    voter.pass(ms(2));
    assert_eq!(voter.call("beta", 1, 5 + JUMP), Err(Why::Reservation));
    assert_eq!(voter.call("beta", 2, 6 + JUMP), Err(Why::Absurd));
    let claimed = refused(voter.claim("beta", 3, 5 + JUMP, L));
    assert_eq!(claimed, Why::Reservation);
    assert_eq!(refused(voter.claim("beta", 4, 6 + JUMP, L)), Why::Absurd);
}

#[test]
fn r22_half_a_block_of_terms_is_kept_ahead_of_the_floor() {
    let block = Alone::reservation().reserved.0;
    for (term, wanted) in [(block / 2, None), (block / 2 + 1, Some(block / 2 * 3 + 1))] {
        let mut voter = Alone::new();
        let outputs = voter.beat_of("alpha", 1, Some(term), L);
        let reserved = outputs.iter().find_map(|o| match o {
            Output::Reserve(r) => Some(r.reserved.0),
            _ => None,
        });
        assert_eq!(reserved, wanted, "floor {term}");
    }
}

#[test]
fn r5_claims_to_more_virtual_servers_than_there_may_be_are_refused_and_the_known_go_on() {
    let mut voter = Alone::new();
    let claims = |voter: &mut Alone, number| {
        let mut beat = Alone::a_beat("alpha", number, Some(3), L);
        let standing = beat.standings.pop().unwrap();
        let named = |n: usize| Standing {
            virtual_server: vname(&format!("v{n}")),
            ..standing.clone()
        };
        beat.standings = (0..600).map(named).collect();
        let outputs = voter.hear("alpha", beat);
        let answers = outputs.into_iter().find_map(|o| match o {
            Output::Ack { ack, .. } => Some(ack.answers),
            _ => None,
        });
        let verdicts = answers.unwrap().into_iter().map(|a| Some(a.verdict));
        verdicts.collect::<Vec<_>>()
    };
    let first = claims(&mut voter, 1);
    let known = first.iter().filter(|v| **v == promised(3)).count();
    assert_eq!(known + 1, 512, "with the one configured");
    for (i, verdict) in claims(&mut voter, 2).into_iter().enumerate() {
        if i < known {
            assert_eq!(verdict, promised(3), "{i}");
        } else {
            assert_eq!(refused(verdict), Why::TooMany, "{i}");
        }
    }
    assert_eq!(voter.claim("alpha", 3, 3, L), promised(3));
}

#[test]
fn r7_an_acknowledgement_that_comes_again_opens_nothing_again() {
    let (mut gamma, outputs) = serving();
    let sent = outputs.iter().find_map(|o| match o {
        Output::Beat(beat) => Some((beat.instance, beat.number)),
        _ => None,
    });
    let ((instance, number), at) = (sent.unwrap(), gamma.now);
    let answer = Answer {
        virtual_server: vname("web"),
        verdict: Verdict::Promised(Term(6)),
    };
    let ack = Ack {
        instance,
        number,
        waited: Duration::ZERO,
        answers: vec![answer],
        roster: RosterVersion::default(),
    };
    let ack = Input::Ack {
        from: name("beta"),
        ack,
    };
    gamma.now = at + ms(3);
    let usable = L * 4 / 5 - Alone::settings().margin;
    assert_eq!(opened(&gamma.give(ack.clone())), Some(at + usable));
    assert_eq!(opened(&gamma.give(ack)), None);
}

#[test]
fn r22_a_write_that_failed_is_tried_again_after_a_second() {
    let reserves = |outputs: &[Output]| outputs.iter().any(|o| matches!(o, Output::Reserve(_)));
    let mut voter = Alone::new();
    let floor = Alone::reservation().reserved.0 / 2 + 1;
    assert!(reserves(&voter.beat_of("alpha", 1, Some(floor), L)));
    let failed = voter.now;
    assert!(!reserves(&voter.give(Input::ReserveFailed("full".into()))));
    for (after, again) in [(1, false), (999, false), (1000, true)] {
        voter.now = failed + ms(after);
        voter.elector.handle_timeout(voter.now);
        assert_eq!(reserves(&voter.outputs()), again, "{after} ms");
    }
}

#[test]
fn r23_a_lower_longest_promise_waits_for_those_given_while_another_write_was_under_way() {
    let long = Reservation {
        promise_max: secs(2),
        ..Alone::reservation()
    };
    let mut voter = Alone::starting(Alone::settings(), long, Memory::default());
    let reserve = |outputs: Vec<Output>| {
        outputs.into_iter().find_map(|o| match o {
            Output::Reserve(r) => Some(r),
            _ => None,
        })
    };
    let mut beat = Alone::a_beat("alpha", 1, None, L);
    beat.roster = roster(0, &["alpha", "beta", "gamma"]);
    let under_way = reserve(voter.hear("alpha", beat)).unwrap();
    // Two spans without a promise: a lower one is chosen.
    for _ in 0..2 {
        voter.pass(secs(2) + ms(1));
    }
    assert_eq!(voter.claim("alpha", 2, 3, secs(2)), promised(3));
    let next = reserve(voter.give(Input::Reserved(under_way)));
    assert!(
        next.as_ref().is_none_or(|r| r.promise_max == secs(2)),
        "{next:?}"
    );
}
