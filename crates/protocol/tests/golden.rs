//! The bytes of every message in each version that is spoken, as they were when it was made: `testdata/wire-N.txt` for what
//! travels between servers (inside the seal), `testdata/local-N.txt` for what the processes of one server say to each
//! other. A change of the bytes is a new version; then
//! `GOLDEN=write cargo test -p standin-protocol --test golden` writes its files, and those of the others stay as they are.
#![allow(clippy::unwrap_used)]

use protocol::{
    BootTime, Instance, Number, Role, RosterVersion, Term, codec,
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
        ring::{
            Arrival, DoctordToElectd, ElectdToHbd, ElectdToListend, ElectdToSyncd, FourTimes,
            HbdToDoctord, Health, HealthState, LinkHealth, ListendToElectd, ServerHealth,
            SyncdToElectd,
        },
        status::{
            ChildStatus, ClientsView, Detail, ElectdStatus, FailedScript, LastRun, OffsetStatus,
            OwedRun, PathRefusal, PathStatus, PeerStatus, Refused, RoleStatus, ScriptsView,
            ServerView, SetPeer, SetStatus, Stranger, SyncdStatus, VirtualServerView,
        },
    },
    seal::{NONCE, Sealer},
    version::{self, Since},
    wire::{
        beat::{
            Ack, Answer, Beat, Claim, Freshness, Heard, Part, Participation, Roster, Standing,
            Verdict, Why,
        },
        datagram::{self, Challenge, Data, Echo, Incarnation, Left, Packet, Speaks},
        frame::{self, Frame},
        signal::{Body, Client, PreVerdict, Released, Signal},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, fmt::Write, path::Path, time::Duration};

/// Lines of a golden file, of one version.
struct Golden(String, u8);

impl Golden {
    fn line(&mut self, name: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(self.0, "{name:<28} {hex}").unwrap();
    }

    fn message<M: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, m: &M) {
        let bytes = codec::encode_as(m, self.1).unwrap();
        let read = codec::decode_as::<M>(&bytes, self.1).unwrap();
        assert_eq!(codec::encode_as(&read, self.1).unwrap(), bytes);
        assert!(self.1 < *version::WIRE.end() || read == *m);
        self.line(name, &bytes);
    }

    fn compare(&self, file: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata")
            .join(file);
        if std::env::var_os("GOLDEN").is_some_and(|v| v == "write") {
            std::fs::write(&path, &self.0).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        for (ours, theirs) in self.0.lines().zip(golden.lines()) {
            assert_eq!(
                ours, theirs,
                "{file}: other bytes: that takes another version"
            );
        }
        assert_eq!(
            self.0.lines().count(),
            golden.lines().count(),
            "{file}: other messages"
        );
    }
}

#[test]
fn wire_messages_keep_their_bytes() {
    version::WIRE.for_each(wire_messages_of);
}

fn wire_messages_of(version: u8) {
    let mut golden = Golden(String::new(), version);
    for packet in packets() {
        let name = match &packet {
            Packet::Hello { .. } => "packet hello",
            Packet::HelloAnswer { .. } => "packet hello-answer",
            Packet::Data(data) => match data.bodies[..] {
                [datagram::Body::Beat(_)] => "packet beat",
                [datagram::Body::Ack(_)] => "packet ack",
                _ => "packet bundle",
            },
        };
        golden.message(name, &packet);
    }
    for why in WHYS {
        golden.message(&format!("why {}", format!("{why:?}").to_lowercase()), &why);
    }
    for signal in signals() {
        let name = match &signal.body {
            Body::PreCall { .. } => "signal pre-call",
            Body::PreAnswer { .. } => "signal pre-answer",
            Body::Call { .. } => "signal call",
            Body::Grant { .. } => "signal grant",
            Body::Refuse { .. } => "signal refuse",
            Body::Release { .. } => "signal release",
            Body::ReadyQuery => "signal ready-query",
            Body::Ready => "signal ready",
            Body::NotReady { .. } => "signal not-ready",
            Body::HandOver { .. } => "signal hand-over",
            Body::Clients { .. } => "signal clients",
        };
        golden.message(name, &signal);
    }
    for (i, body) in frame_bodies().into_iter().enumerate() {
        let name = match &body {
            frame::Body::Hello { .. } => "frame hello",
            frame::Body::Ping => "frame ping",
            frame::Body::Signal(_) => "frame signal",
        };
        let sender = frame::Challenge([0x11; 16]);
        let receiver = (i > 0).then_some(frame::Challenge([0x22; 16]));
        golden.message(
            name,
            &Frame {
                sender,
                receiver,
                sequence: i as u64,
                body,
            },
        );
    }
    let sealer = Sealer::new(&[[0x5a; 32]], "web");
    let (from, to) = ("alpha".parse().unwrap(), "beta".parse().unwrap());
    let sealed =
        datagram::seal(&sealer, (&from, &to), version, [0x33; NONCE], &packets()[0]).unwrap();
    golden.line("sealed packet hello", &sealed);
    golden.compare(&format!("wire-{version}.txt"));
}

#[test]
fn local_messages_keep_their_bytes() {
    version::LOCAL.for_each(local_messages_of);
}

fn local_messages_of(version: u8) {
    let mut golden = Golden(String::new(), version);
    for role in ROLES {
        let hello = Hello {
            magic: MAGIC,
            version: version.into(),
            role,
        };
        golden.message(&format!("hello {role}"), &hello);
    }
    golden.message("hello-answer welcome", &HelloAnswer::Welcome);
    golden.message(
        "hello-answer refused",
        &HelloAnswer::Refused("version 2".to_owned()),
    );
    if version > 1 {
        let (oldest, newest) = (1, 2);
        golden.message(
            "hello-answer speaks",
            &HelloAnswer::Speaks { oldest, newest },
        );
    }
    for message in hbd_to_doctord() {
        let name = match &message {
            HbdToDoctord::Beat { .. } => "hbd-to-doctord beat",
            HbdToDoctord::Ack { .. } => "hbd-to-doctord ack",
            HbdToDoctord::Listening => "hbd-to-doctord listening",
        };
        golden.message(name, &message);
    }
    for message in doctord_to_electd() {
        let name = match &message {
            DoctordToElectd::Beat { .. } => "doctord-to-electd beat",
            DoctordToElectd::Ack { .. } => "doctord-to-electd ack",
            DoctordToElectd::Health(_) => "doctord-to-electd health",
        };
        golden.message(name, &message);
    }
    for message in electd_to_hbd() {
        let name = match &message {
            ElectdToHbd::Beat { .. } => "electd-to-hbd beat",
            ElectdToHbd::Ack { .. } => "electd-to-hbd ack",
        };
        golden.message(name, &message);
    }
    for message in listend_to_electd() {
        let name = match &message {
            ListendToElectd::Signal { .. } => "listend-to-electd signal",
            ListendToElectd::Link { .. } => "listend-to-electd link",
        };
        golden.message(name, &message);
    }
    let [signal, ..] = signals();
    let to = "beta".parse().unwrap();
    golden.message("electd-to-listend", &ElectdToListend { to, signal });
    let role = ElectdToSyncd::Role {
        virtual_server: "web".parse().unwrap(),
        master: Some(Term(5)),
    };
    golden.message("electd-to-syncd role", &role);
    let dead = ElectdToSyncd::Dead(vec!["beta".parse().unwrap()]);
    golden.message("electd-to-syncd dead", &dead);
    let fresh = Freshness {
        term: Term(5),
        run: 17,
    };
    golden.message("syncd-to-electd", &SyncdToElectd(fresh));
    for request in requests() {
        let name = match &request {
            CtlRequest::Status => "request status",
            CtlRequest::Promote { .. } => "request promote",
            CtlRequest::Resign => "request resign",
            CtlRequest::Maintenance(_) => "request maintenance",
            CtlRequest::ServerAdd(_) => "request server-add",
            CtlRequest::ServerRemove(_) => "request server-remove",
            CtlRequest::SyncNow { .. } => "request sync-now",
            CtlRequest::SyncTook { .. } => "request sync-took",
        };
        golden.message(name, &request);
    }
    for reply in replies() {
        let name = match &reply {
            CtlReply::Status(status) => match status.detail {
                Detail::Hbd { .. } => "reply status hbd",
                Detail::Listend { .. } => "reply status listend",
                Detail::Doctord { .. } => "reply status doctord",
                Detail::Electd(_) => "reply status electd",
                Detail::Main { .. } => "reply status main",
                Detail::Syncd(_) => "reply status syncd",
            },
            CtlReply::Done(_) => "reply done",
            CtlReply::No(_) => "reply no",
        };
        golden.message(name, &reply);
    }
    golden.compare(&format!("local-{version}.txt"));
}

const H: Duration = Duration::from_millis(100);
const VERSION: RosterVersion = RosterVersion {
    term: Term(6),
    counter: 2,
};
const ROLES: [Role; 7] = [
    Role::Hbd,
    Role::Listend,
    Role::Doctord,
    Role::Electd,
    Role::Main,
    Role::Standin,
    Role::Syncd,
];
const WHYS: [Why; 10] = [
    Why::Floor,
    Why::Promised,
    Why::Reservation,
    Why::Silent,
    Why::Doctor,
    Why::Roster,
    Why::Stale,
    Why::Shutting,
    Why::Absurd,
    Why::TooMany,
];

fn beat() -> Beat {
    Beat {
        instance: Instance(0x0123_4567_89ab_cdef),
        number: Number(300),
        lease: 5 * H,
        promise_max: 10 * H,
        floor_base: Term(3),
        participation: Participation::Active,
        maintenance: true,
        witness: false,
        freshness: Freshness {
            term: Term(5),
            run: 17,
        },
        standings: vec![
            Standing {
                virtual_server: "web".parse().unwrap(),
                floor: Term(7),
                claim: Some(Claim {
                    term: Term(7),
                    lease_held: true,
                }),
                fit: true,
                priority: 100,
            },
            Standing {
                virtual_server: "mail".parse().unwrap(),
                floor: Term(70_000),
                claim: None,
                fit: false,
                priority: 0,
            },
        ],
        heard: vec![Heard {
            server: "beta".parse().unwrap(),
            age: H,
        }],
        roster: Roster {
            version: VERSION,
            voters: vec!["alpha".parse().unwrap(), "beta".parse().unwrap()],
            keeper: Some("web".parse().unwrap()),
        },
        config_hash: 0xfeed,
        part: Since(Part { index: 1, of: 3 }),
    }
}

fn ack() -> Ack {
    let answer = |name: &str, verdict| Answer {
        virtual_server: name.parse().unwrap(),
        verdict,
    };
    let (why, floor) = (Why::Promised, Term(9));
    Ack {
        instance: Instance(1),
        number: Number(2),
        waited: H,
        answers: vec![
            answer("web", Verdict::Promised(Term(7))),
            answer(
                "mail",
                Verdict::Refused {
                    why,
                    floor,
                    holder: "beta".parse().ok(),
                },
            ),
            answer(
                "db",
                Verdict::Refused {
                    why: Why::Floor,
                    floor,
                    holder: None,
                },
            ),
        ],
        roster: VERSION,
    }
}

fn packets() -> [Packet; 5] {
    let (from, to) = (Incarnation([0xaa; 16]), Incarnation([0xbb; 16]));
    let challenge = Challenge([0xcc; 16]);
    let data = |bodies, echo, left| {
        let (sequence, sent_ns) = (70_000, 1_700_000_000_000_000_000);
        Packet::Data(Box::new(Data {
            from,
            to,
            sequence,
            sent_ns,
            left,
            echo,
            bodies,
        }))
    };
    let left = Some(Left {
        sent_ns: 1_600_000_000_000_000_000,
        late_ns: 12_345,
    });
    let echo = Some(Echo {
        sent_ns: 1,
        received_ns: u64::MAX,
    });
    [
        Packet::Hello { from, challenge },
        Packet::HelloAnswer {
            from,
            to,
            challenge,
            speaks: Since(Speaks {
                oldest: 1,
                newest: 2,
            }),
        },
        data(vec![datagram::Body::Beat(beat())], echo, left),
        data(vec![datagram::Body::Ack(ack())], None, None),
        data(
            vec![datagram::Body::Ack(ack()), datagram::Body::Beat(beat())],
            None,
            None,
        ),
    ]
}

fn signals() -> [Signal; 14] {
    let term = Term(8);
    let (instance, number) = (Instance(0xa1), Number(44));
    let released = Released {
        server: "alpha".parse().unwrap(),
        instance,
        number,
    };
    let answer = |verdict| Body::PreAnswer {
        term,
        round: 3,
        verdict,
    };
    let no = |retry_after| PreVerdict::No {
        why: Why::Doctor,
        floor: Term(7),
        retry_after,
    };
    [
        Body::PreCall {
            term,
            lease: 5 * H,
            round: 3,
        },
        answer(PreVerdict::Yes),
        answer(no(Some(H))),
        answer(no(None)),
        Body::Call {
            term,
            lease: 5 * H,
            releases: vec![released],
            roster: VERSION,
        },
        Body::Grant {
            instance,
            number,
            term,
        },
        Body::Refuse {
            instance,
            number,
            term,
            why: Why::Floor,
            floor: Term(9),
        },
        Body::Release {
            term,
            invited: "beta".parse().ok(),
        },
        Body::Release {
            term,
            invited: None,
        },
        Body::ReadyQuery,
        Body::Ready,
        Body::NotReady {
            why: "in maintenance".to_owned(),
        },
        Body::HandOver {
            to: "beta".parse().unwrap(),
        },
        Body::Clients {
            clients: ["192.0.2.99", "2001:db8::99"]
                .map(|ip| Client {
                    ip: ip.parse().unwrap(),
                    mac: [2, 0, 0, 0, 0, 9],
                    age_s: 300,
                })
                .to_vec(),
        },
    ]
    .map(|body| {
        let (instance, number) = (Instance(0xb2), Number(55));
        Signal {
            virtual_server: "web".parse().unwrap(),
            instance,
            number,
            body,
        }
    })
}

fn frame_bodies() -> [frame::Body; 3] {
    let [signal, ..] = signals();
    [
        frame::Body::Hello { ping: H },
        frame::Body::Ping,
        frame::Body::Signal(signal),
    ]
}

fn hbd_to_doctord() -> [HbdToDoctord; 3] {
    let arrival = |times| Arrival {
        from: "alpha".parse().unwrap(),
        path: 1,
        at: BootTime(123_456_789_000),
        times,
    };
    let times = Some(FourTimes {
        t1: 1,
        t2: 2,
        t3: 3,
        t4: 4,
    });
    [
        HbdToDoctord::Beat {
            arrival: arrival(times),
            beat: beat(),
        },
        HbdToDoctord::Ack {
            arrival: arrival(None),
            ack: ack(),
        },
        HbdToDoctord::Listening,
    ]
}

fn health() -> Health {
    use HealthState::{Alive, Dead, Suspect, Unknown};
    let server = |(i, state)| ServerHealth {
        server: format!("s{i}").parse().unwrap(),
        state,
        last_heard: (i > 0).then_some(BootTime(i)),
    };
    Health {
        servers: [(0, Unknown), (1, Alive), (2, Suspect), (3, Dead)]
            .map(server)
            .into(),
        links: vec![LinkHealth {
            interface: "eth0".to_owned(),
            up: true,
        }],
    }
}

fn doctord_to_electd() -> [DoctordToElectd; 3] {
    let (from, at) = ("alpha".parse().unwrap(), BootTime(9));
    [
        DoctordToElectd::Beat {
            from,
            at,
            beat: beat(),
        },
        DoctordToElectd::Ack {
            from: "beta".parse().unwrap(),
            at,
            ack: ack(),
        },
        DoctordToElectd::Health(health()),
    ]
}

fn electd_to_hbd() -> [ElectdToHbd; 2] {
    let made = BootTime(9);
    [
        ElectdToHbd::Beat { made, beat: beat() },
        ElectdToHbd::Ack {
            made,
            to: "beta".parse().unwrap(),
            ack: ack(),
        },
    ]
}

fn listend_to_electd() -> [ListendToElectd; 2] {
    let [signal, ..] = signals();
    [
        ListendToElectd::Signal {
            from: "alpha".parse().unwrap(),
            signal,
        },
        ListendToElectd::Link {
            server: "beta".parse().unwrap(),
            up: true,
        },
    ]
}

fn requests() -> [CtlRequest; 9] {
    [
        CtlRequest::Status,
        CtlRequest::Promote {
            to: "beta".parse().unwrap(),
            virtual_server: "web".parse().ok(),
        },
        CtlRequest::Resign,
        CtlRequest::Maintenance(true),
        CtlRequest::Maintenance(false),
        CtlRequest::ServerAdd("delta".parse().unwrap()),
        CtlRequest::ServerRemove("delta".parse().unwrap()),
        CtlRequest::SyncNow {
            sets: vec!["www".parse().unwrap()],
            peers: vec!["beta".parse().unwrap()],
        },
        CtlRequest::SyncTook {
            set: "www".parse().unwrap(),
            changes: 7,
        },
    ]
}

fn replies() -> Vec<CtlReply> {
    let beta = || "beta".parse().unwrap();
    let path = PathStatus {
        server: beta(),
        address: "192.0.2.12".to_owned(),
        last_heard: Some(BootTime(8)),
        local: Since("192.0.2.11".parse().ok()),
        refused: Since(Some(PathRefusal {
            at: BootTime(9),
            why: Refused::Version(3),
        })),
        mtu: Since(Some(1400)),
    };
    let peer_status = PeerStatus {
        server: beta(),
        asked: Some(BootTime(6)),
        met: Some(BootTime(7)),
        beat: None,
        parts_missing: Some(BootTime(8)),
    };
    let stranger = Stranger {
        address: "192.0.2.99".parse().unwrap(),
        at: BootTime(9),
        server: Some(beta()),
    };
    let offset = OffsetStatus {
        offset_ns: -5,
        bound_ns: 90,
        rate_ppb: -6_000,
    };
    let child = ChildStatus {
        role: Role::Hbd,
        pid: Some(77),
        started: BootTime(1),
        restarts: 2,
    };
    let server = ServerView {
        name: beta(),
        state: HealthState::Alive,
        rank: Some(0),
        last_heard: None,
        freshness: (Term(5), 17),
        config_differs: false,
        withdrawn: Since(true),
        witness: Since(false),
        participation: Since(Some(Participation::Silent)),
        hears: Since(Some(true)),
    };
    let virtual_server = VirtualServerView {
        name: "web".parse().unwrap(),
        role: "slave".to_owned(),
        master: Some(beta()),
        term: Term(8),
        addresses: vec!["192.0.2.10/24".to_owned()],
        addresses_total: 2,
        mac: Some("02:00:5e:00:53:01".to_owned()),
        gate: "none".to_owned(),
        lease_left: Some(4 * H),
        clients: Some(ClientsView {
            asked: 3,
            answered: 1,
            silent: 1,
            silent_first: vec!["192.0.2.99".parse().unwrap()],
            last_answer: Some(H),
        }),
        reason: "handover".to_owned(),
        changed: Since(Some(BootTime(9))),
        scripts: Since(Some(ScriptsView {
            began: BootTime(10),
            running: true,
            failed: 1,
            first_failed: Some(FailedScript {
                script: "master.d/50-service start".to_owned(),
                how: "exit status: 1".to_owned(),
                output: "no such service".to_owned(),
            }),
        })),
        fit: Since(Some(vec![0, 2])),
        unfit: Since(Some("its interface is down".to_owned())),
        gated: Since(Some(true)),
    };
    let electd = ElectdStatus {
        server: "alpha".parse().unwrap(),
        standing: "taking part".to_owned(),
        maintenance: false,
        witness: true,
        lease: 5 * H,
        quorum: "majority".to_owned(),
        quorum_need: 2,
        quorum_have: 3,
        roster: VERSION,
        voters: vec![beta()],
        servers: vec![server],
        virtual_servers: vec![virtual_server],
        abstains: Since(true),
    };
    let peer = SetPeer {
        server: beta(),
        last: Some(LastRun {
            at: 1_767_225_600,
            why: "cron".to_owned(),
            outcome: Ok((3, 4, 0)),
            complete: true,
        }),
        debt: Some(OwedRun {
            since: 1_767_225_601,
            why: "change".to_owned(),
            tries: 2,
        }),
        notable: Since(Some(LastRun {
            at: 1_767_225_000,
            why: "hand".to_owned(),
            outcome: Err("not reached".to_owned()),
            complete: false,
        })),
    };
    let syncd = SyncdStatus {
        freshness: (Term(5), 17),
        numbers: Some(Term(5)),
        sets: vec![SetStatus {
            name: "www".parse().unwrap(),
            running: None,
            next: Some(1_767_236_400),
            aside: 2,
            peers: vec![peer],
            notes: Since(vec!["duplicate uid 7: ann and bob in passwd".to_owned()]),
        }],
    };
    let details = [
        (
            Role::Hbd,
            Detail::Hbd {
                paths: vec![path],
                peers: Since(vec![peer_status]),
                strangers: Since(vec![stranger]),
            },
        ),
        (
            Role::Listend,
            Detail::Listend {
                links: vec![(beta(), true)],
                failed: Since(vec![(beta(), "no answer".to_owned())]),
            },
        ),
        (
            Role::Doctord,
            Detail::Doctord {
                health: health(),
                offsets: vec![(beta(), offset)],
            },
        ),
        (Role::Electd, Detail::Electd(Box::new(electd))),
        (Role::Main, Detail::Main { roles: vec![child] }),
        (Role::Syncd, Detail::Syncd(Box::new(syncd))),
    ];
    let status = |(role, detail)| {
        CtlReply::Status(Box::new(RoleStatus {
            role,
            pid: 4242,
            started: BootTime(1),
            version: "0.1.0".to_owned(),
            counters: [("messages_sent".to_owned(), 12)].into(),
            notes: vec!["no real-time scheduling".to_owned()],
            detail,
        }))
    };
    let words = [
        CtlReply::Done("done".to_owned()),
        CtlReply::No("no".to_owned()),
    ];
    details.into_iter().map(status).chain(words).collect()
}
