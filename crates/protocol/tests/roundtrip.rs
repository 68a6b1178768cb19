//! Every message survives being written and read; nothing else is read; no bytes make the reader panic.
#![allow(clippy::unwrap_used)]

use proptest::{collection::vec, option, prelude::*};
use protocol::{
    BootTime, Instance, Number, Role, RosterVersion, ServerName, Term, VirtualServerName,
    codec::{self, CodecError, MESSAGE_MAX},
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
        ring::{
            Arrival, DoctordToElectd, ElectdToHbd, ElectdToListend, FourTimes, HbdToDoctord,
            Health, HealthState, LinkHealth, ListendToElectd, ServerHealth,
        },
        status::{
            ChildStatus, ClientsView, Detail, ElectdStatus, FailedScript, OffsetStatus,
            PathRefusal, PathStatus, Refused, RoleStatus, ScriptsView, ServerView,
            VirtualServerView,
        },
    },
    version::Since,
    wire::{
        beat::{
            Ack, Answer, Beat, Claim, Freshness, Heard, Part, Participation, Roster, Standing,
            VIRTUAL_SERVERS_MAX, Verdict, Why,
        },
        datagram::{self, Challenge, Data, Echo, Incarnation, Left, Packet, Speaks},
        frame,
        signal::{Body, CLIENTS_MAX, Client, PreVerdict, Released, Signal},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, time::Duration};

/// Read and written again; with a byte more or less it is no message.
fn survives<M: Serialize + DeserializeOwned + PartialEq + Debug>(
    message: &M,
) -> Result<(), TestCaseError> {
    let mut bytes = codec::encode(message).unwrap();
    prop_assert_eq!(&codec::decode::<M>(&bytes).unwrap(), message);
    bytes.push(0);
    prop_assert!(matches!(
        codec::decode::<M>(&bytes),
        Err(CodecError::Trailing(1))
    ));
    bytes.truncate(bytes.len() - 2);
    prop_assert!(codec::decode::<M>(&bytes).is_err());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packets(packet in packet()) { survives(&packet)?; }

    #[test]
    fn frames(frame in frame()) { survives(&frame)?; }

    #[test]
    fn ring(
        a in hbd_to_doctord(), b in doctord_to_electd(), c in electd_to_hbd(),
        d in listend_to_electd(), to in server(), signal in signal(),
    ) {
        survives(&a)?;
        survives(&b)?;
        survives(&c)?;
        survives(&d)?;
        survives(&ElectdToListend { to, signal })?;
    }

    #[test]
    fn operator(request in request(), reply in reply()) {
        survives(&request)?;
        survives(&reply)?;
    }

    #[test]
    fn greeting(role in role(), version in any::<u16>(), words in any::<String>()) {
        survives(&Hello { magic: MAGIC, version, role })?;
        survives(&HelloAnswer::Refused(words))?;
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = codec::decode::<Packet>(&bytes);
        let _ = codec::decode::<frame::Frame>(&bytes);
        let _ = codec::decode::<HbdToDoctord>(&bytes);
        let _ = codec::decode::<DoctordToElectd>(&bytes);
        let _ = codec::decode::<ElectdToHbd>(&bytes);
        let _ = codec::decode::<ListendToElectd>(&bytes);
        let _ = codec::decode::<ElectdToListend>(&bytes);
        let _ = codec::decode::<CtlRequest>(&bytes);
        let _ = codec::decode::<CtlReply>(&bytes);
        let _ = codec::decode::<Hello>(&bytes);
        let _ = codec::decode::<HelloAnswer>(&bytes);
    }

    /// What a single changed byte of a message turns into is either refused or another message that
    /// survives: reading never makes something that cannot be written.
    #[test]
    fn changed_bytes_are_refused_or_well_formed(
        packet in packet(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut bytes = codec::encode(&packet).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(other) = codec::decode::<Packet>(&bytes) {
            survives(&other)?;
        }
    }
}

#[test]
fn a_message_has_at_most_the_limit_and_not_a_byte_more() {
    let text = |n: usize| "x".repeat(n);
    // Kind and a length of three bytes go before the text.
    let fits = HelloAnswer::Refused(text(MESSAGE_MAX - 4));
    let bytes = codec::encode(&fits).unwrap();
    assert_eq!(bytes.len(), MESSAGE_MAX);
    assert_eq!(codec::decode::<HelloAnswer>(&bytes).unwrap(), fits);
    let over = HelloAnswer::Refused(text(MESSAGE_MAX - 3));
    assert!(matches!(codec::encode(&over), Err(CodecError::TooLong(_))));
    assert!(matches!(
        codec::decode::<HelloAnswer>(&vec![0; MESSAGE_MAX + 1]),
        Err(CodecError::TooLong(_))
    ));
}

#[test]
fn many_small_numbers_are_read_as_well_as_few_large_ones() {
    for number in [1, u64::MAX] {
        let message = vec![number; MESSAGE_MAX / 10];
        assert_eq!(
            codec::decode::<Vec<u64>>(&codec::encode(&message).unwrap()).unwrap(),
            message
        );
    }
    let message = vec![1u64; MESSAGE_MAX - 3];
    assert_eq!(
        codec::decode::<Vec<u64>>(&codec::encode(&message).unwrap()).unwrap(),
        message
    );
}

#[test]
fn a_claimed_length_allocates_nothing_before_it_is_checked() {
    // HelloAnswer::Refused with a text of 2^40 bytes, of which none are there.
    let mut bytes = vec![1, 0xfd];
    bytes.extend((1u64 << 40).to_le_bytes());
    assert!(matches!(
        codec::decode::<HelloAnswer>(&bytes),
        Err(CodecError::Malformed(_))
    ));
    // A path list of 2^60 entries.
    let mut bytes = vec![0xfd];
    bytes.extend((1u64 << 60).to_le_bytes());
    assert!(codec::decode::<Vec<u64>>(&bytes).is_err());
}

#[test]
fn names_are_checked_when_read() {
    for bad in ["", "a b", "a/b", "..\n", "\u{e4}", &"x".repeat(64)] {
        let bytes = codec::encode(&bad).unwrap();
        assert!(codec::decode::<ServerName>(&bytes).is_err(), "{bad:?}");
        assert!(
            codec::decode::<VirtualServerName>(&bytes).is_err(),
            "{bad:?}"
        );
    }
    let longest = "x".repeat(63);
    let name: ServerName = codec::decode(&codec::encode(&longest).unwrap()).unwrap();
    assert_eq!(name.as_str(), longest);
}

#[test]
fn the_largest_beat_and_acknowledgement_are_one_packet() {
    let long = |i: usize| format!("{i:063}");
    let name = |i| long(i).parse::<ServerName>().unwrap();
    let most = Term(u64::MAX);
    let standing = |i| Standing {
        virtual_server: long(i).parse().unwrap(),
        floor: most,
        claim: Some(Claim {
            term: most,
            lease_held: true,
        }),
        fit: true,
        priority: u32::MAX,
    };
    let version = RosterVersion {
        term: most,
        counter: u64::MAX,
    };
    let beat = Beat {
        instance: Instance(u64::MAX),
        number: Number(u64::MAX),
        lease: Duration::from_secs(10),
        promise_max: Duration::from_secs(10),
        floor_base: most,
        participation: Participation::Active,
        maintenance: true,
        witness: false,
        freshness: Freshness {
            term: most,
            run: u64::MAX,
        },
        standings: (0..VIRTUAL_SERVERS_MAX).map(standing).collect(),
        heard: (0..15)
            .map(|i| Heard {
                server: name(i),
                age: Duration::from_secs(10),
            })
            .collect(),
        roster: Roster {
            version,
            voters: (0..16).map(name).collect(),
            keeper: Some(long(0).parse().unwrap()),
        },
        config_hash: u64::MAX,
        part: Default::default(),
    };
    let refused = |i| Answer {
        virtual_server: long(i).parse().unwrap(),
        verdict: Verdict::Refused {
            why: Why::Promised,
            floor: most,
            holder: None,
        },
    };
    let ack = Ack {
        instance: Instance(u64::MAX),
        number: Number(u64::MAX),
        waited: Duration::MAX,
        answers: (0..VIRTUAL_SERVERS_MAX).map(refused).collect(),
        roster: version,
    };
    for body in [datagram::Body::Beat(beat), datagram::Body::Ack(ack)] {
        let data = Data {
            from: Incarnation([0xff; 16]),
            to: Incarnation([0xff; 16]),
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
        survives(&Packet::Data(Box::new(data))).unwrap();
    }
}

#[test]
fn the_longest_list_of_clients_fits() {
    let client = Client {
        ip: std::net::Ipv6Addr::from([0xff; 16]).into(),
        mac: [0xff; 6],
        age_s: u32::MAX,
    };
    let name = "x".repeat(63);
    survives(&ElectdToListend {
        to: name.parse().unwrap(),
        signal: Signal {
            virtual_server: name.parse().unwrap(),
            instance: Instance(u64::MAX),
            number: Number(u64::MAX),
            body: Body::Clients {
                clients: vec![client; CLIENTS_MAX],
            },
        },
    })
    .unwrap();
}

fn server() -> impl Strategy<Value = ServerName> {
    "[A-Za-z0-9._-]{1,63}".prop_map(|s| s.parse().unwrap())
}

fn virtual_server() -> impl Strategy<Value = VirtualServerName> {
    "[A-Za-z0-9._-]{1,63}".prop_map(|s| s.parse().unwrap())
}

prop_compose! {
    fn term()(n in any::<u64>()) -> Term { Term(n) }
}

prop_compose! {
    fn number()(n in any::<u64>()) -> Number { Number(n) }
}

prop_compose! {
    fn instance()(n in any::<u64>()) -> Instance { Instance(n) }
}

prop_compose! {
    fn time()(n in any::<u64>()) -> BootTime { BootTime(n) }
}

prop_compose! {
    fn version()(term in term(), counter in any::<u64>()) -> RosterVersion {
        RosterVersion { term, counter }
    }
}

fn role() -> impl Strategy<Value = Role> {
    use Role::*;
    prop::sample::select(vec![Hbd, Listend, Doctord, Electd, Main, Standin, Syncd])
}

fn health_state() -> impl Strategy<Value = HealthState> {
    use HealthState::*;
    prop::sample::select(vec![Alive, Suspect, Dead, Unknown])
}

fn why() -> impl Strategy<Value = Why> {
    use Why::*;
    prop::sample::select(vec![
        Floor,
        Promised,
        Reservation,
        Silent,
        Doctor,
        Roster,
        Stale,
        Shutting,
        Absurd,
        TooMany,
    ])
}

fn participation() -> impl Strategy<Value = Participation> {
    use Participation::*;
    prop::sample::select(vec![Blank, Silent, Active])
}

prop_compose! {
    fn standing()(
        virtual_server in virtual_server(), floor in term(),
        claim in option::of((term(), any::<bool>())), fit in any::<bool>(), priority in any::<u32>(),
    ) -> Standing {
        let claim = claim.map(|(term, lease_held)| Claim { term, lease_held });
        Standing { virtual_server, floor, claim, fit, priority }
    }
}

prop_compose! {
    fn roster()(
        version in version(), voters in vec(server(), 0..4), keeper in option::of(virtual_server()),
    ) -> Roster {
        Roster { version, voters, keeper }
    }
}

prop_compose! {
    fn beat()(
        (instance, number, floor_base) in (instance(), number(), term()),
        (lease, promise_max) in any::<(Duration, Duration)>(),
        participation in participation(),
        (maintenance, witness, config_hash) in any::<(bool, bool, u64)>(),
        (fresh, run) in (term(), any::<u64>()),
        standings in vec(standing(), 0..4),
        heard in vec((server(), any::<Duration>()), 0..4),
        roster in roster(),
        (index, of) in any::<(u16, u16)>(),
    ) -> Beat {
        let freshness = Freshness { term: fresh, run };
        let heard = heard.into_iter().map(|(server, age)| Heard { server, age }).collect();
        Beat {
            instance, number, lease, promise_max, floor_base, participation, maintenance, witness,
            freshness, standings, heard, roster, config_hash, part: Since(Part { index, of }),
        }
    }
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        term().prop_map(Verdict::Promised),
        (why(), term(), option::of(server())).prop_map(|(why, floor, holder)| Verdict::Refused {
            why,
            floor,
            holder
        }),
    ]
}

prop_compose! {
    fn ack()(
        instance in instance(), number in number(), waited in any::<Duration>(),
        answers in vec((virtual_server(), verdict()), 0..4), roster in version(),
    ) -> Ack {
        let answer = |(virtual_server, verdict)| Answer { virtual_server, verdict };
        Ack { instance, number, waited, answers: answers.into_iter().map(answer).collect(), roster }
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let incarnation = || any::<[u8; 16]>().prop_map(Incarnation);
    let challenge = || any::<[u8; 16]>().prop_map(Challenge);
    let body = prop_oneof![
        beat().prop_map(datagram::Body::Beat),
        ack().prop_map(datagram::Body::Ack)
    ];
    let echo = any::<Option<(u64, u64)>>().prop_map(|e| {
        e.map(|(sent_ns, received_ns)| Echo {
            sent_ns,
            received_ns,
        })
    });
    let left = any::<Option<(u64, u32)>>()
        .prop_map(|l| l.map(|(sent_ns, late_ns)| Left { sent_ns, late_ns }));
    let data = (
        incarnation(),
        incarnation(),
        any::<u64>(),
        any::<u64>(),
        left,
        echo,
        vec(body, 0..3),
    )
        .prop_map(|(from, to, sequence, sent_ns, left, echo, bodies)| Data {
            from,
            to,
            sequence,
            sent_ns,
            left,
            echo,
            bodies,
        });
    prop_oneof![
        (incarnation(), challenge())
            .prop_map(|(from, challenge)| Packet::Hello { from, challenge }),
        (incarnation(), incarnation(), challenge()).prop_map(|(from, to, challenge)| {
            Packet::HelloAnswer {
                from,
                to,
                challenge,
                speaks: Since(Speaks {
                    oldest: 1,
                    newest: 7,
                }),
            }
        }),
        data.prop_map(|data| Packet::Data(Box::new(data))),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let released =
        (server(), instance(), number()).prop_map(|(server, instance, number)| Released {
            server,
            instance,
            number,
        });
    let verdict = prop_oneof![
        Just(PreVerdict::Yes),
        (why(), term(), any::<Option<Duration>>()).prop_map(|(why, floor, retry_after)| {
            PreVerdict::No {
                why,
                floor,
                retry_after,
            }
        }),
    ];
    let pre_call = (term(), any::<Duration>(), any::<u64>());
    let client = (any::<std::net::IpAddr>(), any::<[u8; 6]>(), any::<u32>())
        .prop_map(|(ip, mac, age_s)| Client { ip, mac, age_s });
    prop_oneof![
        pre_call.prop_map(|(term, lease, round)| Body::PreCall { term, lease, round }),
        (term(), any::<u64>(), verdict).prop_map(|(term, round, verdict)| Body::PreAnswer {
            term,
            round,
            verdict
        }),
        (term(), any::<Duration>(), vec(released, 0..3), version()).prop_map(
            |(term, lease, releases, roster)| Body::Call {
                term,
                lease,
                releases,
                roster
            }
        ),
        (instance(), number(), term()).prop_map(|(instance, number, term)| Body::Grant {
            instance,
            number,
            term
        }),
        (instance(), number(), term(), why(), term()).prop_map(
            |(instance, number, term, why, floor)| Body::Refuse {
                instance,
                number,
                term,
                why,
                floor
            }
        ),
        (term(), option::of(server())).prop_map(|(term, invited)| Body::Release { term, invited }),
        Just(Body::ReadyQuery),
        Just(Body::Ready),
        any::<String>().prop_map(|why| Body::NotReady { why }),
        server().prop_map(|to| Body::HandOver { to }),
        vec(client, 0..4).prop_map(|clients| Body::Clients { clients }),
    ]
}

prop_compose! {
    fn signal()(
        virtual_server in virtual_server(), instance in instance(), number in number(), body in body(),
    ) -> Signal {
        Signal { virtual_server, instance, number, body }
    }
}

fn frame() -> impl Strategy<Value = frame::Frame> {
    let challenge = || any::<[u8; 16]>().prop_map(frame::Challenge);
    let body = prop_oneof![
        any::<Duration>().prop_map(|ping| frame::Body::Hello { ping }),
        Just(frame::Body::Ping),
        signal().prop_map(frame::Body::Signal),
    ];
    (challenge(), option::of(challenge()), any::<u64>(), body).prop_map(
        |(sender, receiver, sequence, body)| frame::Frame {
            sender,
            receiver,
            sequence,
            body,
        },
    )
}

prop_compose! {
    fn arrival()(
        from in server(), path in any::<u8>(), at in time(), times in any::<Option<[u64; 4]>>(),
    ) -> Arrival {
        let times = times.map(|[t1, t2, t3, t4]| FourTimes { t1, t2, t3, t4 });
        Arrival { from, path, at, times }
    }
}

fn hbd_to_doctord() -> impl Strategy<Value = HbdToDoctord> {
    prop_oneof![
        (arrival(), beat()).prop_map(|(arrival, beat)| HbdToDoctord::Beat { arrival, beat }),
        (arrival(), ack()).prop_map(|(arrival, ack)| HbdToDoctord::Ack { arrival, ack }),
        Just(HbdToDoctord::Listening),
    ]
}

fn health() -> impl Strategy<Value = Health> {
    let server =
        (server(), health_state(), option::of(time())).prop_map(|(server, state, last_heard)| {
            ServerHealth {
                server,
                state,
                last_heard,
            }
        });
    let link = any::<(String, bool)>().prop_map(|(interface, up)| LinkHealth { interface, up });
    (vec(server, 0..4), vec(link, 0..4)).prop_map(|(servers, links)| Health { servers, links })
}

fn doctord_to_electd() -> impl Strategy<Value = DoctordToElectd> {
    prop_oneof![
        (server(), time(), beat()).prop_map(|(from, at, beat)| DoctordToElectd::Beat {
            from,
            at,
            beat
        }),
        (server(), time(), ack()).prop_map(|(from, at, ack)| DoctordToElectd::Ack {
            from,
            at,
            ack
        }),
        health().prop_map(DoctordToElectd::Health),
    ]
}

fn electd_to_hbd() -> impl Strategy<Value = ElectdToHbd> {
    prop_oneof![
        (time(), beat()).prop_map(|(made, beat)| ElectdToHbd::Beat { made, beat }),
        (time(), server(), ack()).prop_map(|(made, to, ack)| ElectdToHbd::Ack { made, to, ack }),
    ]
}

fn listend_to_electd() -> impl Strategy<Value = ListendToElectd> {
    prop_oneof![
        (server(), signal()).prop_map(|(from, signal)| ListendToElectd::Signal { from, signal }),
        (server(), any::<bool>()).prop_map(|(server, up)| ListendToElectd::Link { server, up }),
    ]
}

fn request() -> impl Strategy<Value = CtlRequest> {
    prop_oneof![
        Just(CtlRequest::Status),
        (server(), option::of(virtual_server()))
            .prop_map(|(to, virtual_server)| CtlRequest::Promote { to, virtual_server }),
        Just(CtlRequest::Resign),
        any::<bool>().prop_map(CtlRequest::Maintenance),
        server().prop_map(CtlRequest::ServerAdd),
        server().prop_map(CtlRequest::ServerRemove),
        (vec(server(), 0..3), vec(server(), 0..3))
            .prop_map(|(sets, peers)| CtlRequest::SyncNow { sets, peers }),
        (server(), any::<u64>()).prop_map(|(set, changes)| CtlRequest::SyncTook { set, changes }),
    ]
}

fn electd_status() -> impl Strategy<Value = ElectdStatus> {
    let view = (
        server(),
        health_state(),
        any::<Option<u32>>(),
        option::of(time()),
        (term(), any::<u64>()),
        any::<[bool; 3]>(),
    )
        .prop_map(
            |(name, state, rank, last_heard, freshness, [config_differs, withdrawn, witness])| {
                ServerView {
                    name,
                    state,
                    rank,
                    last_heard,
                    freshness,
                    config_differs,
                    withdrawn: Since(withdrawn),
                    witness: Since(witness),
                    participation: Since(witness.then_some(Participation::Active)),
                    hears: Since(withdrawn.then_some(witness)),
                }
            },
        );
    let clients = any::<(u32, u32, u32, Vec<std::net::IpAddr>, Option<Duration>)>().prop_map(
        |(asked, answered, silent, silent_first, last_answer)| ClientsView {
            asked,
            answered,
            silent,
            silent_first,
            last_answer,
        },
    );
    let failed = any::<[String; 3]>().prop_map(|[script, how, output]| FailedScript {
        script,
        how,
        output,
    });
    let scripts = (time(), any::<(bool, u32)>(), option::of(failed)).prop_map(
        |(began, (running, failed), first_failed)| ScriptsView {
            began,
            running,
            failed,
            first_failed,
        },
    );
    let virtual_view = (
        virtual_server(),
        any::<[String; 3]>(),
        option::of(server()),
        term(),
        any::<(Vec<String>, Option<String>)>(),
        any::<(
            Option<Duration>,
            Option<Vec<u8>>,
            Option<String>,
            Option<bool>,
        )>(),
        (option::of(clients), option::of(time()), option::of(scripts)),
    )
        .prop_map(
            |(name, [role, gate, reason], master, term, (addresses, mac), could, rest)| {
                let (lease_left, fit, unfit, gated) = could;
                let (clients, changed, scripts) = rest;
                VirtualServerView {
                    name,
                    role,
                    master,
                    term,
                    addresses_total: u32::try_from(addresses.len()).unwrap_or(0),
                    addresses,
                    mac,
                    gate,
                    lease_left,
                    clients,
                    reason,
                    changed: Since(changed),
                    scripts: Since(scripts),
                    fit: Since(fit),
                    unfit: Since(unfit),
                    gated: Since(gated),
                }
            },
        );
    (
        server(),
        any::<([String; 2], [bool; 3], Duration, u32, u32)>(),
        version(),
        vec(server(), 0..4),
        vec(view, 0..3),
        vec(virtual_view, 0..2),
    )
        .prop_map(|(server, rest, roster, voters, servers, virtual_servers)| {
            let ([standing, quorum], flags, lease, quorum_need, quorum_have) = rest;
            let [maintenance, witness, abstains] = flags;
            ElectdStatus {
                server,
                standing,
                maintenance,
                witness,
                lease,
                quorum,
                quorum_need,
                quorum_have,
                roster,
                voters,
                servers,
                virtual_servers,
                abstains: Since(abstains),
            }
        })
}

fn detail() -> impl Strategy<Value = Detail> {
    let path = (server(), any::<String>(), option::of(time())).prop_map(
        |(server, address, last_heard)| PathStatus {
            server,
            address,
            last_heard,
            local: Since(last_heard.map(|_| [192, 0, 2, 1].into())),
            refused: Since(last_heard.map(|at| PathRefusal {
                at,
                why: Refused::Unauthentic,
            })),
            mtu: Since(last_heard.map(|_| 1400)),
        },
    );
    let offset =
        any::<(i64, u64, i64)>().prop_map(|(offset_ns, bound_ns, rate_ppb)| OffsetStatus {
            offset_ns,
            bound_ns,
            rate_ppb,
        });
    let child = (role(), any::<Option<u32>>(), time(), any::<u64>()).prop_map(
        |(role, pid, started, restarts)| ChildStatus {
            role,
            pid,
            started,
            restarts,
        },
    );
    prop_oneof![
        vec(path, 0..3).prop_map(|paths| Detail::Hbd {
            paths,
            peers: Since::default(),
            strangers: Since::default(),
        }),
        vec((server(), any::<bool>()), 0..3).prop_map(|links| Detail::Listend {
            links,
            failed: Since::default(),
        }),
        (health(), vec((server(), offset), 0..3))
            .prop_map(|(health, offsets)| Detail::Doctord { health, offsets }),
        electd_status().prop_map(|status| Detail::Electd(Box::new(status))),
        vec(child, 0..5).prop_map(|roles| Detail::Main { roles }),
    ]
}

fn reply() -> impl Strategy<Value = CtlReply> {
    let counters = prop::collection::btree_map(any::<String>(), any::<u64>(), 0..5);
    let status = (
        role(),
        any::<u32>(),
        time(),
        any::<String>(),
        counters,
        vec(any::<String>(), 0..3),
        detail(),
    )
        .prop_map(
            |(role, pid, started, version, counters, notes, detail)| RoleStatus {
                role,
                pid,
                started,
                version,
                counters,
                notes,
                detail,
            },
        );
    prop_oneof![
        status.prop_map(|status| CtlReply::Status(Box::new(status))),
        any::<String>().prop_map(CtlReply::Done),
        any::<String>().prop_map(CtlReply::No),
    ]
}

#[test]
fn messages_in_a_row_are_read_one_by_one_up_to_the_first_that_is_none() {
    let read = |bytes: &[u8]| codec::decode_all::<(u64, String)>(bytes, 2).collect::<Vec<_>>();
    let message = |n: u64| (n, "x".repeat(usize::try_from(n).unwrap()));
    let mut bytes: Vec<u8> = (0..300)
        .flat_map(|n| codec::encode(&message(n)).unwrap())
        .collect();
    let got = read(&bytes);
    assert_eq!(got.len(), 300);
    assert!((0..).zip(got).all(|(n, got)| got.unwrap() == message(n)));
    bytes.truncate(bytes.len() - 1);
    let got = read(&bytes);
    assert!(got.len() == 300 && got[298].is_ok() && got[299].is_err());
    assert!(read(&[0; codec::MESSAGE_MAX + 1])[0].is_err());
    assert_eq!(
        codec::decode_all::<()>(&[1, 2, 3], 2).count(),
        1,
        "no message of no bytes for ever"
    );
}
