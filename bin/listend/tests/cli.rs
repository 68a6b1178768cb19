//! The real daemon: its command line, and two of them over the loopback with the test as their electds.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use nix::sys::{
    signal::{Signal as UnixSignal, kill},
    socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
        recv, send, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};
use nix::unistd::Pid;
use protocol::{
    Instance, Number, Role, ServerName, codec,
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
        ring::{ElectdToListend, ListendToElectd},
        status::{Detail, RoleStatus},
    },
    wire::signal::{Body, Signal},
};
use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

const LISTEND: &str = env!("CARGO_BIN_EXE_listend");

/// Long enough for any machine; nothing waits so long when all is well.
const PATIENCE: Duration = Duration::from_secs(10);

fn run(args: &[&str]) -> Output {
    Command::new(LISTEND).args(args).output().unwrap()
}

#[test]
fn tells_its_version() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("listend "));
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
    let cluster = Cluster::new(&["127.0.0.14", "127.0.0.15", "127.0.0.16"]);
    std::fs::set_permissions(
        cluster.dir.path().join("key"),
        PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let output = cluster.command("alpha").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"));
}

#[test]
fn two_daemons_carry_signals_between_their_electds_and_outlive_a_restart() {
    let cluster = Cluster::new(&["127.0.0.11", "127.0.0.12", "127.0.0.13"]);
    let (alpha, mut beta) = (cluster.start("alpha"), cluster.start("beta"));
    alpha.wait_for_link("beta");
    beta.wait_for_link("alpha");

    alpha.send("beta", 1);
    assert_eq!(beta.next_signal(), (name("alpha"), 1));
    beta.send("alpha", 2);
    assert_eq!(alpha.next_signal(), (name("beta"), 2));

    let mut samples: Vec<Duration> = (0..200)
        .map(|n| {
            let start = Instant::now();
            alpha.send("beta", n);
            assert_eq!(beta.next_signal().1, n);
            start.elapsed()
        })
        .collect();
    samples.sort();
    println!(
        "electd to electd: median {:?}, maximum {:?}",
        samples[100], samples[199]
    );

    let strangers: Vec<TcpStream> = (0..5)
        .map(|_| TcpStream::connect(("127.0.0.11", cluster.port)).unwrap())
        .collect();
    for mut stranger in strangers {
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(
            answer.is_empty(),
            "not a byte for 127.0.0.1, which is not listed"
        );
    }
    let status = alpha.status();
    assert_eq!(status.counters["refused_unlisted"], 5);
    assert_eq!(status.counters["signals_sent"], 201);
    let Detail::Listend { links, failed } = &status.detail else {
        panic!("{status:?}");
    };
    assert_eq!(*links, [(name("beta"), true), (name("gamma"), false)]);
    assert!(
        matches!(&failed.0[..], [(peer, why)] if *peer == name("gamma") && why.contains("refused")),
        "{failed:?}"
    );

    let start = Instant::now();
    beta.process.kill().unwrap();
    beta.process.wait().unwrap();
    drop(beta);
    let beta = cluster.start("beta");
    beta.wait_for_link("alpha");
    println!(
        "killed, started and linked again within {:?}",
        start.elapsed()
    );
    while alpha.status().detail != status.detail {
        assert!(start.elapsed() < PATIENCE);
    }
    alpha.send("beta", 3);
    assert_eq!(beta.next_signal(), (name("alpha"), 3));
}

#[test]
fn the_init_script_starts_restarts_reloads_and_stops_the_role_alone() {
    let cluster = Cluster::new(&["127.0.0.17", "127.0.0.18", "127.0.0.19"]);
    cluster.write_defaults();
    let script = |action: &str| cluster.script("listend", &[action]);
    assert_eq!(script("status").0, 3);
    let (code, words) = script("start");
    assert_eq!(code, 0, "{words}");
    let first = cluster.pid("listend").expect("it runs");
    assert!(
        words.contains(&format!("listend started, pid {first}")),
        "{words}"
    );
    assert_eq!(script("status").0, 0);
    assert!(script("start").1.contains("runs already"));
    assert_eq!(script("reload").0, 0);
    let (code, words) = script("restart");
    assert_eq!(code, 0, "{words}");
    let second = cluster.pid("listend").expect("it runs again");
    assert_ne!(first, second);
    assert_eq!(script("stop").0, 0);
    assert_eq!(cluster.pid("listend"), None);
    assert_eq!((script("status").0, script("stop").0), (3, 0));
    assert_eq!(
        (
            script("dance").0,
            cluster.script("standin", &["start", "nobody"]).0
        ),
        (2, 2)
    );

    // A daemon that could not start: nothing is tried.
    std::fs::write(
        cluster.dir.path().join("standin.toml"),
        "[cluster]\nname = 1\n",
    )
    .unwrap();
    let (code, words) = script("start");
    assert_eq!(code, 6, "{words}");
    assert!(words.contains("standin.toml"), "{words}");
    let code = |args: &[&str]| cluster.script("standin", args).0;
    assert_eq!(code(&["reload", "listend"]), 7, "it does not run");
    assert_eq!(code(&["try-restart", "listend"]), 0);
    assert_eq!((code(&["try-restart"]), code(&["reload"])), (0, 7));
    std::fs::write(cluster.run_dir("alpha").join("standin.pid"), "1\n").unwrap();
    assert_eq!(code(&["status"]), 1, "dead, and a pid file is left");
}

#[test]
fn the_init_script_restarts_nothing_with_a_bad_file_and_ends_what_a_dead_main_daemon_left() {
    let cluster = Cluster::new(&["127.0.0.24", "127.0.0.25", "127.0.0.26"]);
    cluster.write_defaults();
    assert_eq!(cluster.script("listend", &["start"]).0, 0);
    let pid = cluster.pid("listend");
    let file = cluster.dir.path().join("standin.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "[cluster]\nname = 1\n").unwrap();
    for args in [
        &["restart", "listend"][..],
        &["reload", "listend"],
        &["restart"],
    ] {
        let (code, words) = cluster.script("standin", args);
        assert_eq!(code, 6, "{words}");
        assert!(words.contains("standin.toml"), "{words}");
        assert_eq!(cluster.pid("listend"), pid);
    }
    std::fs::write(&file, good).unwrap();
    let (code, words) = cluster.script("standin", &["stop"]);
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("listend stopped"), "{words}");
    assert_eq!(cluster.pid("listend"), None);
}

#[test]
fn the_init_script_lets_a_running_main_daemon_restart_the_role() {
    let cluster = Cluster::new(&["127.0.0.21", "127.0.0.22", "127.0.0.23"]);
    cluster.write_defaults();
    // Stands for `standin run`: keeps listend running, and does nothing else.
    let main = cluster.dir.path().join("standin");
    let text = "#!/bin/sh\nconfig=$1; shift 2; while :; do \"$LISTEND\" --config \"$config\" \"$@\"; done\n";
    std::fs::write(&main, text).unwrap();
    std::fs::set_permissions(&main, PermissionsExt::from_mode(0o755)).unwrap();
    let run_dir = cluster.run_dir("alpha");
    let mut command = Command::new(&main);
    command
        .arg(cluster.dir.path().join("standin.toml"))
        .arg("run")
        .arg("--run-dir")
        .arg(&run_dir);
    let main = Process(
        command
            .args(["--server", "alpha"])
            .env("LISTEND", LISTEND)
            .spawn()
            .unwrap(),
    );
    let start = Instant::now();
    while cluster.pid("listend").is_none() || !run_dir.join("listend.sock").exists() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let first = cluster.pid("listend");
    let (code, words) = cluster.script("listend", &["stop"]);
    assert_eq!(code, 1, "{words}");
    assert_eq!(cluster.pid("listend"), first, "left alone");
    // Stands for the command.
    let bin = cluster.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("standin"), "#!/bin/sh\necho \"<$*>\"; exit 4\n").unwrap();
    std::fs::set_permissions(bin.join("standin"), PermissionsExt::from_mode(0o755)).unwrap();
    let defaults = cluster.dir.path().join("default");
    let text = std::fs::read_to_string(&defaults).unwrap();
    std::fs::write(&defaults, format!("{text}STANDIN_BIN={}\n", bin.display())).unwrap();
    let (code, words) = cluster.script("listend", &["restart"]);
    assert_eq!(code, 4, "{words}");
    assert!(words.contains("<restart listend --run-dir"), "{words}");
    std::fs::write(&defaults, text).unwrap();
    drop(main);
    assert_eq!(cluster.script("listend", &["stop"]).0, 0);
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
        let port = TcpListener::bind((addresses[0], 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let key = dir.path().join("key");
        std::fs::write(&key, "5a".repeat(32)).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        let mut text = format!(
            "[cluster]\nname = \"web\"\nkey = \"{}\"\nport = {port}\nheartbeat = \"100ms\"\nlease = \"500ms\"\n",
            key.display()
        );
        for (server, address) in ["alpha", "beta", "gamma"].iter().zip(addresses) {
            text += &format!("\n[[server]]\nname = \"{server}\"\naddress = [\"{address}\"]\n");
        }
        text += "\n[[virtual_server]]\nname = \"web\"\ninterface = \"lo\"\naddress = [\"192.0.2.10/24\"]\n";
        std::fs::write(dir.path().join("standin.toml"), text).unwrap();
        Self { dir, port }
    }

    fn run_dir(&self, server: &str) -> PathBuf {
        self.dir.path().join(server)
    }

    fn command(&self, server: &str) -> Command {
        let mut command = Command::new(LISTEND);
        command
            .arg("--config")
            .arg(self.dir.path().join("standin.toml"));
        command
            .arg("--run-dir")
            .arg(self.run_dir(server))
            .args(["--server", server]);
        command
    }

    /// What /etc/default/standin would hold for alpha.
    fn write_defaults(&self) {
        let dir = self.dir.path().display();
        let bin = Path::new(LISTEND).parent().unwrap().display();
        let text = format!(
            "STANDIN_BIN={bin}\nSTANDIN_RUN={dir}/alpha\nSTANDIN_LOG={dir}/log\nSTANDIN_WAIT=10\n\
             STANDIN_ARGS='--config {dir}/standin.toml --server alpha'\n"
        );
        std::fs::write(self.dir.path().join("default"), text).unwrap();
    }

    /// Exit code and words of an init script.
    fn script(&self, name: &str, args: &[&str]) -> (i32, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../init.d")
            .join(name);
        let defaults = self.dir.path().join("default");
        let output = Command::new(script)
            .args(args)
            .env("STANDIN_DEFAULTS", defaults)
            .output()
            .unwrap();
        let words = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&words).into_owned(),
        )
    }

    /// Alpha's process of that name, found by its run-dir.
    fn pid(&self, name: &str) -> Option<u32> {
        let run_dir = self.run_dir("alpha");
        let ours = |pid: &u32| {
            let read = |file: &str| {
                std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
            };
            read("comm").trim() == name && read("cmdline").contains(run_dir.to_str().unwrap())
        };
        let entries = std::fs::read_dir("/proc").unwrap();
        entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .find(ours)
    }

    /// Starts listend, with the test as its electd on both sides.
    fn start(&self, server: &str) -> Daemon {
        let run_dir = self.run_dir(server);
        std::fs::create_dir_all(&run_dir).unwrap();
        let path = run_dir.join("electd.sock");
        let _ = std::fs::remove_file(&path);
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let mut process = Process(self.command(server).spawn().unwrap());
        let from_listend = accepted(&UnixListener::from(listener));
        let hello: Hello = receive(&from_listend);
        assert_eq!((hello.magic, hello.role), (MAGIC, Role::Listend));
        transmit(&from_listend, &HelloAnswer::Welcome);
        let to_listend = dial(&run_dir, Role::Electd);
        assert!(process.try_wait().unwrap().is_none());
        Daemon {
            process,
            from_listend,
            to_listend,
            run_dir,
        }
    }
}

/// Whatever an init script started ends with the test, even a failed one.
impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(pid) = self.pid("listend") {
            let _ = kill(Pid::from_raw(pid as i32), UnixSignal::SIGKILL);
        }
    }
}

struct Process(Child);

impl std::ops::Deref for Process {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Daemon {
    process: Process,
    from_listend: OwnedFd,
    to_listend: OwnedFd,
    run_dir: PathBuf,
}

impl Daemon {
    fn wait_for_link(&self, peer: &str) {
        let wanted = ListendToElectd::Link {
            server: name(peer),
            up: true,
        };
        while receive::<ListendToElectd>(&self.from_listend) != wanted {}
    }

    fn send(&self, to: &str, number: u64) {
        let signal = Signal {
            virtual_server: "web".parse().unwrap(),
            instance: Instance(7),
            number: Number(number),
            body: Body::ReadyQuery,
        };
        transmit(
            &self.to_listend,
            &ElectdToListend {
                to: name(to),
                signal,
            },
        );
    }

    fn next_signal(&self) -> (ServerName, u64) {
        loop {
            if let ListendToElectd::Signal { from, signal } = receive(&self.from_listend) {
                return (from, signal.number.0);
            }
        }
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
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::new(PATIENCE.as_secs() as i64, 0),
    )
    .unwrap();
    socket
}

fn accepted(listener: &UnixListener) -> OwnedFd {
    let (socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

fn dial(run_dir: &Path, role: Role) -> OwnedFd {
    let socket = seqpacket();
    let address = UnixAddr::new(&run_dir.join("listend.sock")).unwrap();
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
    send(
        socket.as_raw_fd(),
        &codec::encode(message).unwrap(),
        MsgFlags::MSG_NOSIGNAL,
    )
    .unwrap();
}

fn receive<M: serde::de::DeserializeOwned>(socket: &OwnedFd) -> M {
    let mut buffer = vec![0; codec::MESSAGE_MAX];
    let n = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("a message in time");
    codec::decode(&buffer[..n]).unwrap()
}
