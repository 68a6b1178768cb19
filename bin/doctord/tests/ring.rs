//! A running doctord between a played hbd and a played electd.
#![allow(clippy::unwrap_used)]

use nix::errno::Errno;
use nix::sys::{
    signal::{Signal, kill},
    socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, connect,
        listen, recv, send, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};
use nix::unistd::Pid;
use protocol::{
    BootTime, Role,
    codec::{decode, decode_all, encode},
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
        ring::{Arrival, DoctordToElectd, FourTimes, HbdToDoctord, Health, HealthState},
        status::{Detail, RoleStatus},
    },
    wire::beat::{Ack, Beat, Freshness, Participation, Roster},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    cell::RefCell,
    collections::VecDeque,
    fs,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(10);

const CONFIG: &str = r#"
[cluster]
name = "test"
key = "/nonexistent/cluster.key"
lease = "500ms"

[[server]]
name = "alpha"
address = ["192.0.2.11"]

[[server]]
name = "beta"
address = ["192.0.2.12"]

[[server]]
name = "gamma"
address = ["192.0.2.13"]

[[virtual_server]]
name = "web"
interface = "lo"
address = ["192.0.2.10/24"]
"#;

/// One connection; waits for at most [`PATIENCE`].
struct Wire {
    fd: RawFd,
    /// Closes it; an accepted one stays open until the test ends.
    _owner: Option<OwnedFd>,
    /// Messages that came together with one already heard.
    heard: RefCell<VecDeque<Vec<u8>>>,
}

impl Wire {
    fn unconnected() -> OwnedFd {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
    }

    fn dial(path: &Path, role: Role) -> Self {
        let start = Instant::now();
        loop {
            let owner = Self::unconnected();
            let fd = owner.as_raw_fd();
            if connect(fd, &UnixAddr::new(path).unwrap()).is_ok() {
                let wire = Self {
                    fd,
                    _owner: Some(owner),
                    heard: RefCell::default(),
                };
                wire.say(&Hello {
                    magic: MAGIC,
                    version: 2,
                    role,
                });
                assert_eq!(wire.hear::<HelloAnswer>(), HelloAnswer::Welcome);
                return wire;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "nobody listens at {}",
                path.display()
            );
            sleep(Duration::from_millis(2));
        }
    }

    fn accept(listener: &OwnedFd) -> Self {
        let limit = TimeVal::new(i64::try_from(PATIENCE.as_secs()).unwrap(), 0);
        setsockopt(listener, sockopt::ReceiveTimeout, &limit).unwrap();
        Self {
            fd: accept(listener.as_raw_fd()).unwrap(),
            _owner: None,
            heard: RefCell::default(),
        }
    }

    fn say<M: Serialize>(&self, message: &M) {
        send(self.fd, &encode(message).unwrap(), MsgFlags::empty()).unwrap();
    }

    fn hear<M: Serialize + DeserializeOwned>(&self) -> M {
        if let Some(message) = self.heard.borrow_mut().pop_front() {
            return decode(&message).unwrap();
        }
        let mut buffer = vec![0; 65_536];
        let start = Instant::now();
        loop {
            match recv(self.fd, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let mut messages = decode_all::<M>(&buffer[..length], 2).map(Result::unwrap);
                    let first = messages.next().unwrap();
                    let rest = messages.map(|m| encode(&m).unwrap());
                    self.heard.borrow_mut().extend(rest);
                    return first;
                }
                Err(Errno::EAGAIN) => assert!(start.elapsed() < PATIENCE, "nothing is said"),
                Err(e) => panic!("the connection broke: {e}"),
            }
            sleep(Duration::from_millis(1));
        }
    }
}

struct Stage {
    doctord: Child,
    hbd: Wire,
    electd: Wire,
    directory: tempfile::TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.doctord.kill();
        let _ = self.doctord.wait();
    }
}

impl Stage {
    fn set() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (path, open) = (directory.path(), fs::Permissions::from_mode(0o777));
        fs::set_permissions(path, open.clone()).unwrap();
        fs::write(path.join("standin.toml"), CONFIG).unwrap();
        let listener = Wire::unconnected();
        bind(
            listener.as_raw_fd(),
            &UnixAddr::new(&path.join("electd.sock")).unwrap(),
        )
        .unwrap();
        fs::set_permissions(path.join("electd.sock"), open).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let doctord = Command::new(env!("CARGO_BIN_EXE_doctord"))
            .arg("--config")
            .arg(path.join("standin.toml"))
            .arg("--run-dir")
            .arg(path)
            .arg("--state-dir")
            .arg(path)
            .args(["--server", "alpha"])
            .spawn()
            .unwrap();
        let hbd = Wire::dial(&path.join("doctord.sock"), Role::Hbd);
        let electd = Wire::accept(&listener);
        assert_eq!(electd.hear::<Hello>().role, Role::Doctord);
        electd.say(&HelloAnswer::Welcome);
        Self {
            doctord,
            hbd,
            electd,
            directory,
        }
    }

    /// The first message that `wanted` picks.
    fn until<T>(&self, what: &str, mut wanted: impl FnMut(DoctordToElectd) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "never: {what}");
            if let Some(found) = wanted(self.electd.hear()) {
                return found;
            }
        }
    }

    fn until_health(&self, what: &str, wanted: impl Fn(&Health) -> bool) {
        self.until(what, |message| match message {
            DoctordToElectd::Health(health) if wanted(&health) => Some(()),
            _ => None,
        });
    }

    fn until_state(&self, server: &str, state: HealthState) {
        self.until_health(&format!("{server} {}", state.name()), |health| {
            is(health, server, state)
        });
    }

    fn beat(&self, from: &str) -> Beat {
        let beat = beat();
        self.hbd.say(&HbdToDoctord::Beat {
            arrival: arrival(from),
            beat: beat.clone(),
        });
        beat
    }
}

fn is(health: &Health, server: &str, state: HealthState) -> bool {
    health
        .servers
        .iter()
        .any(|known| known.server.as_str() == server && known.state == state)
}

fn arrival(from: &str) -> Arrival {
    Arrival {
        from: from.parse().unwrap(),
        path: 0,
        at: daemon::now(),
        times: None,
    }
}

fn beat() -> Beat {
    Beat {
        instance: Default::default(),
        number: Default::default(),
        lease: Duration::from_millis(500),
        promise_max: Duration::from_millis(500),
        floor_base: Default::default(),
        participation: Participation::Active,
        maintenance: false,
        witness: false,
        freshness: Freshness::default(),
        standings: Vec::new(),
        heard: Vec::new(),
        roster: Roster::default(),
        config_hash: 7,
        part: Default::default(),
    }
}

#[test]
fn what_hbd_brings_is_handed_on_and_judged() {
    let stage = Stage::set();
    let sent = stage.beat("beta");
    let (from, at, got) = stage.until("the beat", |message| match message {
        DoctordToElectd::Beat { from, at, beat } => Some((from, at, beat)),
        _ => None,
    });
    assert_eq!((from.as_str(), &got), ("beta", &sent));
    assert!(BootTime(0) < at && at <= daemon::now());
    stage.until_state("beta", HealthState::Alive);

    let ack = Ack {
        instance: Default::default(),
        number: Default::default(),
        waited: Default::default(),
        answers: Vec::new(),
        roster: Default::default(),
    };
    stage.hbd.say(&HbdToDoctord::Ack {
        arrival: arrival("gamma"),
        ack: ack.clone(),
    });
    let got = stage.until("the acknowledgement", |message| match message {
        DoctordToElectd::Ack { ack, .. } => Some(ack),
        _ => None,
    });
    assert_eq!(got, ack);

    stage.until_health("both dead", |health| {
        is(health, "beta", HealthState::Dead) && is(health, "gamma", HealthState::Dead)
    });
    stage.beat("beta");
    stage.until_state("beta", HealthState::Alive);
}

#[test]
fn without_hbd_the_dead_become_unknown() {
    let mut stage = Stage::set();
    stage.beat("beta");
    stage.until_state("gamma", HealthState::Dead);
    let owner = Wire::unconnected();
    stage.hbd = Wire {
        fd: owner.as_raw_fd(),
        _owner: Some(owner),
        heard: RefCell::default(),
    };
    stage.until_state("gamma", HealthState::Unknown);
    stage.hbd = Wire::dial(&stage.directory.path().join("doctord.sock"), Role::Hbd);
    stage.beat("beta");
    stage.until_state("gamma", HealthState::Dead);
}

#[test]
fn a_doctor_that_was_stopped_does_not_wake_up_with_an_accusation() {
    let stage = Stage::set();
    let pid = Pid::from_raw(i32::try_from(stage.doctord.id()).unwrap());
    stage.beat("beta");
    stage.until_state("beta", HealthState::Alive);
    kill(pid, Signal::SIGSTOP).unwrap();
    sleep(Duration::from_millis(1200));
    kill(pid, Signal::SIGCONT).unwrap();
    let woken = daemon::now();
    let (dead_at, unknown) = {
        let mut unknown = false;
        let dead_at = stage.until("beta dead", |message| match message {
            DoctordToElectd::Health(health) => {
                unknown |= is(&health, "beta", HealthState::Unknown);
                is(&health, "beta", HealthState::Dead).then(daemon::now)
            }
            _ => None,
        });
        (dead_at, unknown)
    };
    assert!(unknown && dead_at.since(woken) >= Duration::from_millis(500));
}

#[test]
fn garbage_of_hbd_is_counted_and_the_operator_is_answered() {
    let stage = Stage::set();
    stage.hbd.say(&"no such message".to_owned());
    stage.beat("beta");
    stage.until_health("the link, and beta alive", |health| {
        is(health, "beta", HealthState::Alive) && health.links.len() == 1
    });
    let operator = Wire::dial(&stage.directory.path().join("doctord.sock"), Role::Standin);
    operator.say(&CtlRequest::Status);
    let CtlReply::Status(status) = operator.hear() else {
        panic!("no status")
    };
    assert_eq!(status.role, Role::Doctord);
    assert_eq!(
        (
            status.counters["refused_malformed"],
            status.counters["beats"]
        ),
        (1, 1)
    );
    assert!(matches!(status.detail, Detail::Doctord { health, .. } if health.servers.len() == 2));
    operator.say(&CtlRequest::Resign);
    assert!(matches!(operator.hear(), CtlReply::No(_)));
}

/// A beat whose timestamps say that the sender's clock is so much ahead; then doctord's status.
fn beats_of_a_clock_ahead(stage: &Stage, operator: &Wire, ns: i64) -> RoleStatus {
    for _ in 0..6 {
        let (raw, lead) = daemon::raw_and_lead_ns();
        let there = (raw - 30_000).checked_add_signed(lead + ns).unwrap();
        let mut arrival = arrival("beta");
        arrival.times = Some(FourTimes {
            t1: raw - 60_000,
            t2: there,
            t3: there,
            t4: raw,
        });
        stage.hbd.say(&HbdToDoctord::Beat {
            arrival,
            beat: beat(),
        });
        sleep(Duration::from_millis(2));
    }
    operator.say(&CtlRequest::Status);
    match operator.hear() {
        CtlReply::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn clocks_are_compared_and_one_too_far_off_is_told() {
    let stage = Stage::set();
    let operator = Wire::dial(&stage.directory.path().join("doctord.sock"), Role::Standin);
    for (set, (ahead, far)) in [
        (-40_000_000, false),
        (3_000_000_000, true),
        (1_000_000, false),
    ]
    .into_iter()
    .enumerate()
    {
        let start = Instant::now();
        loop {
            let status = beats_of_a_clock_ahead(&stage, &operator, ahead);
            let Detail::Doctord { offsets, .. } = &status.detail else {
                panic!("{status:?}")
            };
            let off = offsets.iter().find(|(name, _)| name.as_str() == "beta");
            let right = off.is_some_and(|(_, o)| {
                o.offset_ns.abs_diff(ahead) <= o.bound_ns && o.bound_ns < 10_000_000
            });
            let told = status.notes.iter().any(|n| n.contains("beta is 3.0"));
            let counted = status.counters.get("clocks_set").copied();
            if right && told == far {
                assert_eq!(counted.unwrap_or_default(), set as u64);
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{ahead} ahead: {status:?}");
        }
    }
}

#[test]
fn sigint_ends_it_well() {
    let mut stage = Stage::set();
    stage.until_health("a first word", |_| true);
    kill(
        Pid::from_raw(i32::try_from(stage.doctord.id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(stage.doctord.wait().unwrap().code(), Some(0));
}
