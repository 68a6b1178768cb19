//! The real daemon: its command line, and two of them over the loopback with the test as electd and doctord.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use nix::sys::{
    signal::{Signal, kill},
    socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
        recv, send, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};
use protocol::{
    Instance, Number, Role, RosterVersion, ServerName, Term, codec,
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
        ring::{Arrival, ElectdToHbd, HbdToDoctord},
        status::{Detail, RoleStatus},
    },
    wire::beat::{Ack, Beat, Freshness, Participation, Roster},
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    net::UdpSocket,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

const HBD: &str = env!("CARGO_BIN_EXE_hbd");

/// Long enough for any machine; nothing waits so long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

fn run(arguments: &[&str]) -> Output {
    Command::new(HBD).args(arguments).output().unwrap()
}

#[test]
fn version_names_the_program() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("hbd "));
}

#[test]
fn wrong_usage_and_a_missing_configuration_end_with_2() {
    assert_eq!(run(&["--no-such-option"]).status.code(), Some(2));
    let output = run(&["--config", "/nonexistent/standin.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/standin.toml"));
}

#[test]
fn a_key_that_others_can_read_ends_with_2() {
    let cluster = Cluster::new(&["127.0.1.1", "127.0.1.2", "127.0.1.3"]);
    let key = cluster.dir.path().join("key");
    std::fs::set_permissions(key, PermissionsExt::from_mode(0o644)).unwrap();
    let output = cluster.command("alpha").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"));
}

#[test]
fn beats_and_acknowledgements_arrive_once_with_their_times() {
    let cluster = Cluster::new(&[
        "127.0.1.11\", \"127.0.1.21",
        "127.0.1.12\", \"127.0.1.22",
        "127.0.1.13",
    ]);
    let (alpha, beta) = (cluster.start("alpha"), cluster.start("beta"));
    alpha.wait_for_peer(&beta);
    for n in 1000..1050 {
        let sent = daemon::now();
        alpha.beat(n);
        let (arrival, number) = beta.next();
        assert_eq!(number, n, "each once, although there are two paths");
        assert_eq!(arrival.from, name("alpha"));
        assert!(sent <= arrival.at && arrival.at <= daemon::now());
        beta.ack("alpha", n);
        let (arrival, number) = alpha.next();
        assert_eq!((arrival.from, number), (name("beta"), n));
        if n == 1000 {
            continue;
        }
        // Those of the exchange before: when its packets really left is known since.
        let times = arrival.times.unwrap();
        // One clock: what is raw time here is as much later there as it is by the clock of this machine.
        let (_, lead) = daemon::raw_and_lead_ns();
        let real = |raw: u64| raw.checked_add_signed(lead).unwrap();
        let (t1, t4) = (real(times.t1), real(times.t4));
        let slack = 1_000_000; // Somebody may slew the clock meanwhile.
        assert!(t1 <= times.t2 + slack && times.t2 <= times.t3, "{times:?}");
        assert!(
            times.t3 <= t4 + slack && t4 < t1 + 1_000_000_000,
            "{times:?}"
        );
    }
    let status = beta.status();
    assert!(status.counters["duplicates"] >= 49, "{:?}", status.counters);
    let Detail::Hbd { paths, .. } = status.detail else {
        panic!("hbd")
    };
    let heard: Vec<_> = paths
        .iter()
        .map(|p| (p.server.as_str(), p.last_heard.is_some()))
        .collect();
    assert_eq!(heard[..2], [("alpha", true), ("alpha", true)]);
    assert!(
        heard[2..].iter().all(|h| *h == ("gamma", false)),
        "{heard:?}"
    );
}

#[test]
fn a_killed_hbd_is_heard_again_at_once_when_restarted() {
    let cluster = Cluster::new(&["127.0.1.31", "127.0.1.32", "127.0.1.33"]);
    let (alpha, mut beta) = (cluster.start("alpha"), cluster.start("beta"));
    alpha.wait_for_peer(&beta);
    let start = Instant::now();
    for _ in 0..3 {
        beta.process.0.kill().unwrap();
        beta.process.0.wait().unwrap();
        drop(beta);
        beta = cluster.start("beta");
        alpha.wait_for_peer(&beta);
    }
    println!(
        "killed, started and heard again three times within {:?}",
        start.elapsed()
    );
}

#[test]
fn a_flood_of_garbage_neither_stops_beats_nor_gets_through() {
    let cluster = Cluster::new(&["127.0.1.41", "127.0.1.42", "127.0.1.43"]);
    let (alpha, beta) = (cluster.start("alpha"), cluster.start("beta"));
    alpha.wait_for_peer(&beta);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for source in ["127.0.1.43:0", "127.0.1.99:0"] {
            let socket = UdpSocket::bind(source).unwrap();
            let (to, stop) = (("127.0.1.42", cluster.port), &stop);
            scope.spawn(move || {
                let garbage = [&b"stdn\x01"[..], &[7; 200]].concat();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = socket.send_to(&garbage, to);
                }
            });
        }
        let mut heard = 0;
        let start = Instant::now();
        for n in 1000.. {
            alpha.beat(n);
            beta.beat(n);
            std::thread::sleep(Duration::from_millis(10));
            heard += beta.pending();
            if (heard >= 20 && n >= 1050) || start.elapsed() > PATIENCE {
                break;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(heard >= 20, "{heard} beats heard during the flood");
        println!(
            "{heard} beats heard during the flood of {:?}",
            start.elapsed()
        );
    });
    let counters = beta.status().counters;
    assert!(
        counters["refused_unlisted"] > 0 && counters["refused_unauthentic"] > 0,
        "{counters:?}"
    );
    println!("{counters:?}");
}

#[test]
fn a_port_in_use_is_told_and_waited_for() {
    let cluster = Cluster::new(&["127.0.1.51\", \"127.0.1.61", "127.0.1.52", "127.0.1.53"]);
    let taken = UdpSocket::bind(("127.0.1.51", cluster.port)).unwrap();
    let (alpha, beta) = (cluster.start("alpha"), cluster.start("beta"));
    alpha.wait_for_peer(&beta);
    let note = |s: &RoleStatus| {
        s.notes
            .iter()
            .any(|n| n.contains("cannot listen at 127.0.1.51"))
    };
    assert!(note(&alpha.status()));
    drop(taken);
    let start = Instant::now();
    while note(&alpha.status()) {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    alpha.wait_for_peer(&beta);
}

#[test]
fn a_reload_changes_addresses_and_a_bad_file_changes_nothing() {
    let cluster = Cluster::new(&["127.0.1.81", "127.0.1.82", "127.0.1.83"]);
    let (mut alpha, beta) = (cluster.start("alpha"), cluster.start("beta"));
    alpha.wait_for_peer(&beta);
    let file = cluster.dir.path().join("standin.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let reload = |text: &str| {
        std::fs::write(&file, text).unwrap();
        for daemon in [&alpha, &beta] {
            daemon.unix_signal(Signal::SIGHUP);
        }
    };
    reload("nonsense");
    alpha.wait_for_peer(&beta);
    reload(&text.replace("127.0.1.81", "127.0.1.84"));
    let start = Instant::now();
    let moved = |s: RoleStatus| match s.detail {
        Detail::Hbd { paths, .. } => paths.iter().any(|p| p.address == "127.0.1.84"),
        _ => false,
    };
    while !moved(beta.status()) {
        assert!(start.elapsed() < PATIENCE);
    }
    alpha.wait_for_peer(&beta);
    assert!(
        UdpSocket::bind(("127.0.1.81", cluster.port)).is_ok(),
        "the former socket is closed"
    );
    alpha.unix_signal(Signal::SIGINT);
    assert_eq!(alpha.process.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_is_no_request_for_hbd_is_refused_in_words() {
    let cluster = Cluster::new(&["127.0.1.71", "127.0.1.72", "127.0.1.73"]);
    let alpha = cluster.start("alpha");
    let operator = dial(&alpha.run_dir, Role::Standin);
    transmit(&operator, &CtlRequest::Resign);
    let CtlReply::No(why) = receive(&operator) else {
        panic!("a no")
    };
    assert!(why.contains("electd"), "{why}");
    send(
        alpha.electd.as_raw_fd(),
        &[0xff; 30],
        MsgFlags::MSG_NOSIGNAL,
    )
    .unwrap();
    let start = Instant::now();
    while !alpha.status().counters.contains_key("malformed_messages") {
        assert!(start.elapsed() < PATIENCE);
    }
}

fn name(text: &str) -> ServerName {
    text.parse().unwrap()
}

struct Cluster {
    dir: tempfile::TempDir,
    port: u16,
}

impl Cluster {
    fn new(addresses: &[&str; 3]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let first = addresses[0].split('"').next().unwrap();
        let port = UdpSocket::bind((first, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let key = dir.path().join("key");
        std::fs::write(&key, "5a".repeat(32)).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        let mut text = format!(
            "[cluster]\nname = \"web\"\nkey = \"{}\"\nport = {port}\nheartbeat = \"100ms\"\nlease = \"500ms\"\nrealtime = false\n",
            key.display()
        );
        for (server, address) in ["alpha", "beta", "gamma"].iter().zip(addresses) {
            text += &format!("\n[[server]]\nname = \"{server}\"\naddress = [\"{address}\"]\n");
        }
        text += "\n[[virtual_server]]\nname = \"web\"\ninterface = \"lo\"\naddress = [\"192.0.2.10/24\"]\n";
        std::fs::write(dir.path().join("standin.toml"), text).unwrap();
        Self { dir, port }
    }

    fn command(&self, server: &str) -> Command {
        let mut command = Command::new(HBD);
        command
            .arg("--config")
            .arg(self.dir.path().join("standin.toml"));
        command
            .arg("--run-dir")
            .arg(self.dir.path().join(server))
            .args(["--server", server]);
        command
    }

    /// Starts hbd, with the test as its electd and doctord.
    fn start(&self, server: &str) -> Daemon {
        let run_dir = self.dir.path().join(server);
        std::fs::create_dir_all(&run_dir).unwrap();
        let path = run_dir.join("doctord.sock");
        let _ = std::fs::remove_file(&path);
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let process = Process(self.command(server).spawn().unwrap());
        let (socket, _) = UnixListener::from(listener).accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let doctord = OwnedFd::from(socket);
        let hello: Hello = receive(&doctord);
        assert_eq!((hello.magic, hello.role), (MAGIC, Role::Hbd));
        transmit(&doctord, &HelloAnswer::Welcome);
        let electd = dial(&run_dir, Role::Electd);
        Daemon {
            process,
            doctord,
            electd,
            run_dir,
            told: RefCell::default(),
        }
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Daemon {
    process: Process,
    doctord: OwnedFd,
    electd: OwnedFd,
    run_dir: PathBuf,
    /// Read and not asked for yet.
    told: RefCell<VecDeque<HbdToDoctord>>,
}

impl Daemon {
    /// Both beat until each has heard the other, then nothing is under way any more.
    fn wait_for_peer(&self, other: &Self) {
        let start = Instant::now();
        let (mut here, mut there) = (0, 0);
        for n in 1.. {
            self.beat(n);
            other.beat(n);
            std::thread::sleep(Duration::from_millis(10));
            here += self.pending();
            there += other.pending();
            if here > 0 && there > 0 {
                std::thread::sleep(Duration::from_millis(50));
                self.pending();
                other.pending();
                return;
            }
            assert!(start.elapsed() < PATIENCE);
        }
    }

    fn unix_signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.0.id()).unwrap();
        kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    fn beat(&self, number: u64) {
        let beat = Beat {
            instance: Instance(1),
            number: Number(number),
            lease: Duration::from_millis(500),
            promise_max: Duration::from_millis(500),
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
        };
        transmit(
            &self.electd,
            &ElectdToHbd::Beat {
                made: daemon::now(),
                beat,
            },
        );
    }

    fn ack(&self, to: &str, number: u64) {
        let (answers, roster) = (Vec::new(), RosterVersion::default());
        let ack = Ack {
            instance: Instance(1),
            number: Number(number),
            waited: Duration::ZERO,
            answers,
            roster,
        };
        transmit(
            &self.electd,
            &ElectdToHbd::Ack {
                made: daemon::now(),
                to: name(to),
                ack,
            },
        );
    }

    /// The next beat or acknowledgement for doctord, of a packet that may hold several.
    fn next(&self) -> (Arrival, u64) {
        loop {
            let told = self.told.borrow_mut().pop_front();
            match told.unwrap_or(HbdToDoctord::Listening) {
                HbdToDoctord::Beat { arrival, beat } => return (arrival, beat.number.0),
                HbdToDoctord::Ack { arrival, ack } => return (arrival, ack.number.0),
                HbdToDoctord::Listening => {
                    let packet = receive_bytes(&self.doctord);
                    let messages = codec::decode_all(&packet, 2).map(Result::unwrap);
                    self.told.borrow_mut().extend(messages);
                }
            }
        }
    }

    /// Beats and acknowledgements that wait for doctord; reads them.
    fn pending(&self) -> usize {
        let mut count = 0;
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = recv(
            self.doctord.as_raw_fd(),
            &mut buffer,
            MsgFlags::MSG_DONTWAIT,
        ) {
            let messages = codec::decode_all(&buffer[..n], 2).map(Result::unwrap);
            count += messages
                .filter(|m| !matches!(m, HbdToDoctord::Listening))
                .count();
        }
        count
    }

    fn status(&self) -> RoleStatus {
        let operator = dial(&self.run_dir, Role::Standin);
        transmit(&operator, &CtlRequest::Status);
        match receive(&operator) {
            CtlReply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }
}

fn seqpacket() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    let patience = TimeVal::new(PATIENCE.as_secs() as i64, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
    socket
}

fn dial(run_dir: &Path, role: Role) -> OwnedFd {
    let socket = seqpacket();
    let address = UnixAddr::new(&run_dir.join("hbd.sock")).unwrap();
    let start = Instant::now();
    while let Err(e) = connect(socket.as_raw_fd(), &address) {
        assert!(start.elapsed() < PATIENCE, "{e}");
        std::thread::sleep(Duration::from_millis(5));
    }
    transmit(
        &socket,
        &Hello {
            magic: MAGIC,
            version: 2,
            role,
        },
    );
    assert_eq!(receive::<HelloAnswer>(&socket), HelloAnswer::Welcome);
    socket
}

fn transmit<M: serde::Serialize>(socket: &OwnedFd, message: &M) {
    let bytes = codec::encode(message).unwrap();
    send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
}

fn receive<M: serde::de::DeserializeOwned>(socket: &OwnedFd) -> M {
    codec::decode(&receive_bytes(socket)).unwrap()
}

fn receive_bytes(socket: &OwnedFd) -> Vec<u8> {
    let mut buffer = vec![0; 65536];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
    buffer.truncate(length);
    buffer
}
