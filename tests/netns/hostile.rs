//! Packets, connections and programs that mean harm.

use crate::scene::{
    Failure, Outcome, PATIENCE, bounded, ensure, memory, others, patient, rises, undisturbed,
    unlapsed, with,
};
use lab::{Cluster, Datagram, Forger, PORT, Recorder, Signal, Stream};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use protocol::{
    Role,
    codec::encode,
    local::{Hello, MAGIC, ctl::CtlRequest},
    seal::Sealer,
    wire::datagram::{self, Challenge, Incarnation, Packet},
};
use std::{
    collections::VecDeque,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The roles that listen.
const ROLES: [&str; 4] = ["hbd", "listend", "doctord", "electd"];

/// Where a server's beats come from and go to.
fn at(cluster: &Cluster, server: usize) -> SocketAddrV4 {
    match cluster.server_address(server) {
        IpAddr::V4(ip) => SocketAddrV4::new(ip, PORT),
        IpAddr::V6(_) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT),
    }
}

/// An address of no server, on the same network.
const UNLISTED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 150), PORT);

/// Numbers without meaning, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Garbage of any length; half of it begins like a packet of standin.
    fn garbage(&mut self) -> Vec<u8> {
        let length = (self.next() % 600) as usize;
        let mut bytes = self.bytes(length);
        if self.next().is_multiple_of(2) {
            let head = [&datagram::MAGIC[..], &[2]].concat();
            bytes.splice(..bytes.len().min(head.len()), head);
        }
        bytes
    }
}

/// Beats that a server received, as recorded there for so long.
fn beats(recorder: &Recorder, to: SocketAddrV4, from: Option<SocketAddrV4>) -> Vec<Datagram> {
    let mut all = recorder.datagrams();
    all.retain(|d| d.to == to && from.is_none_or(|f| d.from == f));
    all
}

fn send_all(forger: &Forger, datagrams: &[Datagram]) -> Outcome {
    for datagram in datagrams {
        forger.send(datagram)?;
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn is_back(cluster: &Cluster, server: usize, role: &str, pid: i32) -> Outcome {
    let what = format!("{role} of {} runs again", cluster.name(server));
    lab::wait_for(&what, PATIENCE, || {
        let now = cluster.role(server, role);
        (now.len() == 1 && now[0].pid != pid).then_some(())
    })?;
    Ok(())
}

/// Kills a role and waits until it and its whole cluster are well again.
fn restart(cluster: &Cluster, server: usize, role: &str) -> Outcome {
    let before = cluster.role(server, role).first().map_or(0, |p| p.pid);
    cluster.kill(server, role, Signal::SIGKILL)?;
    is_back(cluster, server, role, before)?;
    cluster.settle()?;
    Ok(())
}

/// The cluster's own key, as a thief has it.
fn stolen_key() -> Result<Sealer, Failure> {
    let file = Path::new(lab::FOLDER).join("cluster.key");
    let text = fs::read_to_string(&file).map_err(|e| Failure::Wrong(e.to_string()))?;
    let keys = config::key::parse_key(&text, &file).map_err(|e| Failure::Wrong(e.to_string()))?;
    Ok(Sealer::new(&keys.open, "lab"))
}

fn hello(cluster: &Cluster, sealer: &Sealer, from: usize, to: usize) -> Result<Vec<u8>, Failure> {
    let packet = Packet::Hello {
        from: Incarnation([7; 16]),
        challenge: Challenge([8; 16]),
    };
    let wrong = |e: &dyn std::fmt::Display| Failure::Wrong(e.to_string());
    let name = |server: usize| cluster.name(server).parse();
    let (from, to) = (
        name(from).map_err(|e| wrong(&e))?,
        name(to).map_err(|e| wrong(&e))?,
    );
    datagram::seal(sealer, (&from, &to), 2, [9; 24], &packet).map_err(|e| wrong(&e))
}

pub fn forged_and_damaged_packets_change_nothing() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        let victim = others(cluster, master)[0];
        let stranger = cluster.net().stranger()?;
        let forger = Forger::open(&stranger)?;
        let recorder = Recorder::start(cluster.host(victim))?;
        thread::sleep(Duration::from_secs(1));
        let genuine = beats(&recorder, at(cluster, victim), Some(at(cluster, master)));
        let Some(beat) = genuine.last().cloned() else {
            return Err(Failure::Wrong("no beat was recorded".to_owned()));
        };
        let before = memory(cluster, victim);
        undisturbed(cluster, |cluster| {
            let send = |from: SocketAddrV4, payload: Vec<u8>| {
                let to = at(cluster, victim);
                forger.send(&Datagram { from, to, payload })
            };
            let count = |what| cluster.counter(victim, "hbd", what);
            let marks = [
                ("refused_unauthentic", 500),
                ("refused_not_ours", 5),
                ("refused_version", 1),
                ("refused_unlisted", 1),
            ]
            .map(|(what, least)| (what, count(what) + least - 1));
            let other_key = Sealer::new(&[[7; 32]], "lab");
            send(
                at(cluster, master),
                hello(cluster, &other_key, master, victim)?,
            )?;
            // Right in everything but its sender's address.
            send(UNLISTED, hello(cluster, &stolen_key()?, master, victim)?)?;
            for cut in 0..beat.payload.len() {
                send(beat.from, beat.payload[..cut].to_vec())?;
            }
            for place in 0..beat.payload.len() * 8 {
                let mut flipped = beat.payload.clone();
                flipped[place / 8] ^= 1 << (place % 8);
                send(beat.from, flipped)?;
                thread::sleep(Duration::from_micros(100));
            }
            let long = [&beat.payload[..], &[0; 1]].concat();
            send(beat.from, long)?;
            // From one server, as if it were another's.
            let other = others(cluster, victim).into_iter().find(|s| *s != master);
            send(at(cluster, other.unwrap_or(master)), beat.payload.clone())?;
            for (what, mark) in marks {
                rises(cluster, victim, ("hbd", what), mark)?;
            }
            Ok(())
        })?;
        bounded(cluster, victim, &before)
    })
}

pub fn replayed_and_reordered_beats_change_nothing() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        let victim = others(cluster, master)[0];
        let stranger = cluster.net().stranger()?;
        let forger = Forger::open(&stranger)?;
        let here = at(cluster, victim);
        let recorder = Recorder::start(cluster.host(victim))?;
        thread::sleep(Duration::from_secs(2));
        undisturbed(cluster, |cluster| {
            // At once, backwards.
            let mut recorded = beats(&recorder, here, None);
            recorded.reverse();
            let mark = cluster.counter(victim, "hbd", "refused_replayed");
            send_all(&forger, &recorded)?;
            let all = recorded.len() as u64;
            rises(cluster, victim, ("hbd", "refused_replayed"), mark + all - 1)?;
            // Held back on the way, then let go in the wrong order.
            let sender = Recorder::start(cluster.host(master))?;
            cluster.net().one_way(master, victim)?;
            thread::sleep(Duration::from_millis(1100));
            cluster.net().heal()?;
            let mut held = beats(&sender, here, Some(at(cluster, master)));
            thread::sleep(Duration::from_millis(500));
            held.reverse();
            send_all(&forger, &held)?;
            // Nobody may take them twice.
            let mark = cluster.counter(victim, "hbd", "refused_replayed");
            send_all(&forger, &held)?;
            rises(
                cluster,
                victim,
                ("hbd", "refused_replayed"),
                mark + held.len() as u64 - 1,
            )
        })?;
        // Recorded before a restart of either side and sent again after it.
        let recorded = beats(&recorder, here, None);
        let from_master: Vec<_> = recorded
            .iter()
            .filter(|d| d.from == at(cluster, master))
            .cloned()
            .collect();
        restart(cluster, victim, "hbd")?;
        undisturbed(cluster, |cluster| {
            let mark = cluster.counter(victim, "hbd", "refused_former_receiver");
            send_all(&forger, &recorded)?;
            rises(
                cluster,
                victim,
                ("hbd", "refused_former_receiver"),
                mark + 5,
            )
        })?;
        restart(cluster, master, "hbd")?;
        undisturbed(cluster, |cluster| {
            let mark = cluster.counter(victim, "hbd", "refused_former_incarnation");
            let both = beats(&recorder, here, Some(at(cluster, master)));
            send_all(&forger, &both)?;
            rises(
                cluster,
                victim,
                ("hbd", "refused_former_incarnation"),
                mark + 5,
            )
        })?;
        // Recorded in an old term, with an old master, and sent again in a new one.
        let name = cluster.name(victim).to_owned();
        cluster.tell(master, &["promote", &name])?;
        lab::wait_for("the slave is master", PATIENCE, || {
            cluster.master(0).filter(|m| *m == victim)
        })?;
        cluster.settle()?;
        undisturbed(cluster, |_| {
            for copies in [&from_master, &beats(&recorder, here, None)] {
                send_all(&forger, copies)?;
            }
            Ok(())
        })
    })
}

/// Connects from a server's own host, as that server's listend does.
fn dial(cluster: &Cluster, from: usize, to: usize) -> Result<Option<TcpStream>, Failure> {
    let to = at(cluster, to).into();
    let stream = cluster
        .host(from)
        .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))?;
    Ok(stream.ok())
}

/// Says this on a connection of its own and waits until the other side has closed it, or a while.
fn say(cluster: &Cluster, from: usize, to: usize, bytes: &[u8]) -> Outcome {
    let Some(mut stream) = dial(cluster, from, to)? else {
        return Ok(()); // Not even taken.
    };
    let wait = Some(Duration::from_millis(100));
    let _ = stream
        .set_read_timeout(wait)
        .and_then(|()| stream.write_all(bytes));
    let mut answer = [0; 4096];
    while stream.read(&mut answer).is_ok_and(|n| n > 0) {}
    Ok(())
}

pub fn replayed_and_damaged_signals_change_nothing() -> Outcome {
    with(patient(), |cluster| {
        cluster.settle()?;
        // Who has the greater name is dialled.
        let (from, victim) = (0, 2);
        let recorder = Recorder::start(cluster.host(victim))?;
        restart(cluster, victim, "listend")?;
        // An old term's signals: a handover each way.
        for target in [1, 0] {
            let name = cluster.name(target).to_owned();
            cluster.tell(victim, &["promote", &name])?;
            lab::wait_for(&format!("{name} is master"), PATIENCE, || {
                cluster.master(0).filter(|m| *m == target)
            })?;
            cluster.settle()?;
        }
        let to = at(cluster, victim);
        let mut streams: Vec<Stream> = recorder.streams();
        streams.retain(|s| s.to == to && s.from.ip() == at(cluster, from).ip());
        streams.sort_by_key(|s| std::cmp::Reverse(s.bytes.len()));
        let Some(longest) = streams.first().cloned() else {
            return Err(Failure::Wrong("no connection was recorded".to_owned()));
        };
        let (before, link) = (memory(cluster, victim), recorder.streams().len());
        ensure(link > 0, "no stream")?;
        for side in [from, victim] {
            undisturbed(cluster, |cluster| {
                let count = |what| cluster.counter(victim, "listend", what);
                let marks = [
                    "refused_replayed",
                    "refused_unauthentic",
                    "refused_not_ours",
                    "refused_length",
                ]
                .map(|what| (what, count(what)));
                say(cluster, from, victim, &longest.bytes)?;
                for stream in streams.iter().take(5) {
                    say(cluster, from, victim, &stream.bytes)?;
                }
                for place in 0..longest.bytes.len().min(60) {
                    let mut flipped = longest.bytes.clone();
                    flipped[place] ^= 0x55;
                    say(cluster, from, victim, &flipped)?;
                }
                for cut in [1, 7, 8, 9, 10, 11, 30, 80] {
                    say(
                        cluster,
                        from,
                        victim,
                        &longest.bytes[..cut.min(longest.bytes.len())],
                    )?;
                }
                let mut noise = Noise(3);
                for _ in 0..50 {
                    say(cluster, from, victim, &noise.garbage())?;
                }
                for (what, mark) in marks {
                    rises(cluster, victim, ("listend", what), mark)?;
                }
                Ok(())
            })?;
            // And all of it once more after a restart of this side.
            restart(cluster, side, "listend")?;
        }
        bounded(cluster, victim, &before)
    })
}

/// How many of the beats sent to a server reached its doctor's door, of those that others sent meanwhile.
struct Tally(u64, u64);

impl Tally {
    fn take(cluster: &Cluster, server: usize) -> Self {
        let sent = others(cluster, server).into_iter().map(|other| {
            // Each message goes to both others of three.
            cluster.counter(other, "hbd", "messages_sent") / 2
        });
        Self(
            sent.sum(),
            cluster.counter(server, "hbd", "messages_received"),
        )
    }

    fn since(&self, cluster: &Cluster, server: usize) -> f64 {
        let now = Self::take(cluster, server);
        (now.1 - self.1) as f64 / (now.0 - self.0).max(1) as f64
    }
}

pub fn floods_of_garbage_hide_no_beat() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        let slaves = others(cluster, master);
        let stranger = cluster.net().stranger()?;
        let forger = Forger::open(&stranger)?;
        let mut noise = Noise(1);
        let garbage: Vec<Vec<u8>> = (0..1000).map(|_| noise.garbage()).collect();
        let before: Vec<_> = (0..3).map(|s| memory(cluster, s)).collect();
        // From an address of no server; from a server's address and another port; as if a server had sent it.
        let listed = at(cluster, slaves[1]);
        let other_port = SocketAddrV4::new(*listed.ip(), 5000);
        for (from, counter, share) in [
            (UNLISTED, "refused_unlisted", 0.9),
            (other_port, "refused_unauthentic", 0.9),
            (listed, "refused_unauthentic", 0.45),
        ] {
            undisturbed(cluster, |cluster| {
                for victim in [master, slaves[0]] {
                    let mark = cluster.counter(victim, "hbd", counter);
                    let tally = Tally::take(cluster, victim);
                    let (start, mut sent) = (Instant::now(), 0);
                    let to = at(cluster, victim);
                    while sent < 100_000 || start.elapsed() < Duration::from_secs(4) {
                        let payload = garbage[sent % garbage.len()].clone();
                        forger.send(&Datagram { from, to, payload })?;
                        sent += 1;
                    }
                    let arrived = tally.since(cluster, victim);
                    println!(
                        "{sent} datagrams from {from} to {} in {:?}: {:.0} % of the beats arrived",
                        cluster.name(victim),
                        start.elapsed(),
                        arrived * 100.0
                    );
                    ensure(
                        arrived > share,
                        format!("only {:.0} % of the beats arrived", arrived * 100.0),
                    )?;
                    rises(cluster, victim, ("hbd", counter), mark + 999)?;
                }
                Ok(())
            })?;
        }
        (0..3).try_for_each(|s| bounded(cluster, s, &before[s]))
    })
}

/// Connects as fast as the network lets it, until it is `over`.
fn flood_of_connections(cluster: &Cluster, (from, victim): (usize, usize), over: &AtomicBool) {
    let to = at(cluster, victim).into();
    let flood = || {
        let mut held = VecDeque::new();
        while !over.load(Ordering::Relaxed) {
            held.extend(TcpStream::connect_timeout(&to, Duration::from_millis(100)));
            if held.len() > 400 {
                held.pop_front();
            }
        }
    };
    // The flood of a test that fails has ended with it.
    let _ = cluster.host(from).run(flood);
}

/// Open descriptors of a role.
fn descriptors(cluster: &Cluster, server: usize, role: &str) -> usize {
    let pid = cluster.role(server, role).first().map_or(0, |p| p.pid);
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

pub fn half_open_and_slow_connections_keep_no_link_out() -> Outcome {
    with(patient(), |cluster| {
        cluster.settle()?;
        let (from, victim) = (0, 2);
        let stranger = cluster.net().stranger()?;
        let forger = Forger::open(&stranger)?;
        let before = memory(cluster, victim);
        undisturbed(cluster, |cluster| {
            let replaced = cluster.counter(victim, "listend", "replaced");
            // Asked for, never finished: the kernel's business, which must not become ours.
            for n in 0..1000 {
                let source = SocketAddrV4::new(*at(cluster, from).ip(), 20_000 + n);
                forger.half_open(source, at(cluster, victim))?;
            }
            let mut open = Vec::new();
            for _ in 0..1000 {
                open.extend(dial(cluster, from, victim)?);
            }
            ensure(
                open.len() > 900,
                format!("only {} connections were taken at all", open.len()),
            )?;
            // Half of them silent, half of them a byte now and then of what may become a hello.
            let preamble = protocol::wire::frame::preamble(2);
            for byte in preamble {
                for stream in open.iter_mut().step_by(2) {
                    let _ = stream.write_all(&[byte]);
                }
                thread::sleep(Duration::from_millis(100));
            }
            let used = descriptors(cluster, victim, "listend");
            ensure(used < 100, format!("listend holds {used} descriptors"))?;
            rises(cluster, victim, ("listend", "replaced"), replaced + 900)?;
            // While more come all the time, a link that breaks must come back.
            let up = || {
                let status = cluster.status(victim)?;
                let links = status["links"].as_array()?.clone();
                Some(links.iter().all(|l| l["up"] == true))
            };
            ensure(up() == Some(true), "a link was lost")?;
            let over = AtomicBool::new(false);
            let cluster = &*cluster;
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| flood_of_connections(cluster, (from, victim), &over));
                }
                thread::sleep(Duration::from_millis(500));
                let outcome = restart(cluster, from, "listend").and_then(|()| {
                    let start = Instant::now();
                    lab::wait_for("the link is back although others connect", PATIENCE, || {
                        (up() == Some(true)).then_some(())
                    })?;
                    println!("the link was back {:?} after its cluster", start.elapsed());
                    Ok(())
                });
                over.store(true, Ordering::Relaxed);
                outcome
            })
        })?;
        bounded(cluster, victim, &before)
    })
}

/// How long an attack on the local sockets goes on: longer than a lease.
const ATTACK_SECONDS: &str = "4";
const LONG_ATTACK_SECONDS: &str = "9";

// ---- the local sockets -------------------------------------------------------------------------------------------

fn open_socket(path: &Path) -> nix::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let patience = TimeVal::new(0, 200_000);
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

fn tell(fd: &OwnedFd, bytes: &[u8]) -> bool {
    send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).is_ok()
}

/// The other side has not closed it.
fn is_open(fd: &OwnedFd) -> bool {
    let read = recv(fd.as_raw_fd(), &mut [0; 256], MsgFlags::MSG_DONTWAIT);
    read.is_ok_and(|n| n > 0) || read == Err(nix::Error::EAGAIN)
}

fn greeting(role: Role) -> Vec<u8> {
    let hello = Hello {
        magic: MAGIC,
        version: 2,
        role,
    };
    encode(&hello).unwrap_or_default()
}

/// A process that does nothing but harm to one socket: `KIND SOCKET SECONDS`.
pub fn attack(args: &[String]) -> ExitCode {
    let [kind, path, seconds] = args else {
        return ExitCode::from(2);
    };
    let (path, mut noise, mut held) = (Path::new(path), Noise(5), Vec::new());
    let end = Instant::now() + Duration::from_secs(seconds.parse().unwrap_or(5));
    let request = encode(&CtlRequest::Status).unwrap_or_default();
    while Instant::now() < end {
        let Ok(fd) = open_socket(path) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        match kind.as_str() {
            "garbage" => {
                let length = (noise.next() % 3000) as usize + 1;
                let _ = tell(&fd, &noise.bytes(length));
            }
            // Takes every place there is: some without a word, most greeted, none with a request.
            "silent" => {
                if !noise.next().is_multiple_of(4) {
                    let _ = tell(&fd, &greeting(Role::Standin));
                }
                held.push(fd);
                if held.len() >= 100 {
                    held.retain(is_open);
                    thread::sleep(Duration::from_millis(1));
                }
            }
            // As many requests as fit, whose answers it does not read.
            "requests" => {
                let _ = tell(&fd, &greeting(Role::Standin));
                while Instant::now() < end && tell(&fd, &request) {}
            }
            // Says it is a neighbour, and then nothing that makes sense.
            _ => {
                for role in [Role::Hbd, Role::Doctord, Role::Listend, Role::Electd] {
                    let Ok(fd) = open_socket(path) else { continue };
                    let _ = tell(&fd, &greeting(role));
                    let mut answer = [0; 256];
                    let _ = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty());
                    for _ in 0..1000 {
                        let length = (noise.next() % 300) as usize + 1;
                        if !tell(&fd, &noise.bytes(length)) {
                            break;
                        }
                    }
                }
                thread::sleep(Duration::from_millis(500));
            }
        }
    }
    ExitCode::SUCCESS
}

/// Attacks every socket of a server at once, as this user if one is given.
fn attack_all(
    cluster: &Cluster,
    server: usize,
    kind: &str,
    user: Option<&str>,
    meanwhile: Option<fn(&Cluster, usize) -> Outcome>,
) -> Outcome {
    let seconds = meanwhile.map_or(ATTACK_SECONDS, |_| LONG_ATTACK_SECONDS);
    let wrong = |e: std::io::Error| Failure::Wrong(e.to_string());
    let program = Path::new(lab::FOLDER).join("attacker");
    if !program.exists() {
        let own = std::env::current_exe().map_err(wrong)?;
        fs::copy(own, &program).map_err(wrong)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).map_err(wrong)?;
    }
    let mut attackers = Vec::new();
    for role in ROLES.iter().chain(&["main"]) {
        let path = cluster.run_dir(server).join(format!("{role}.sock"));
        let mut command = match user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([&format!("--reuid={user}"), &format!("--regid={user}")]);
                command.arg("--clear-groups").arg(&program);
                command
            }
            None => Command::new(&program),
        };
        command.args(["--attack", kind]).arg(path).arg(seconds);
        attackers.push(command.stdin(Stdio::null()).spawn().map_err(wrong)?);
    }
    let outcome = meanwhile.map_or(Ok(()), |act| act(cluster, server));
    for mut attacker in attackers {
        let status = attacker.wait().map_err(wrong)?;
        ensure(
            status.success(),
            format!("the attacker {kind} itself failed: {status}"),
        )?;
    }
    outcome
}

/// Kills every role in turn; each must find its neighbours again while the attack goes on.
fn restart_all(cluster: &Cluster, server: usize) -> Outcome {
    thread::sleep(Duration::from_secs(1));
    for role in ROLES {
        let pid = cluster.role(server, role).first().map_or(0, |p| p.pid);
        cluster.kill(server, role, Signal::SIGKILL)?;
        is_back(cluster, server, role, pid)?;
    }
    Ok(())
}

pub fn local_sockets_stand_garbage_and_floods() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        let slave = others(cluster, master)[0];
        for server in [master, slave] {
            let before = memory(cluster, server);
            undisturbed(cluster, |cluster| {
                let marks: Vec<_> = ROLES
                    .iter()
                    .map(|role| {
                        (
                            *role,
                            cluster.counter(server, role, "local_refused_garbage"),
                        )
                    })
                    .collect();
                for kind in ["garbage", "silent", "requests", "neighbour"] {
                    attack_all(cluster, server, kind, None, None)?;
                    bounded(cluster, server, &before)?;
                }
                for (role, mark) in marks {
                    rises(cluster, server, (role, "local_refused_garbage"), mark + 100)?;
                }
                Ok(())
            })?;
            cluster.settle()?;
        }
        Ok(())
    })
}

pub fn roles_find_each_other_while_their_sockets_are_attacked() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        unlapsed(cluster, |cluster| {
            for kind in ["silent", "requests"] {
                attack_all(cluster, master, kind, None, Some(restart_all))?;
                cluster.settle()?;
            }
            Ok(())
        })
    })
}

/// Only where the lab has more than one user.
pub fn strange_users_reach_no_local_socket() -> Outcome {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !map.contains("4294967295") {
        return Err(Failure::Skip("this lab has only one user".to_owned()));
    }
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        let before = memory(cluster, master);
        undisturbed(cluster, |cluster| {
            let attack = |kind| attack_all(cluster, master, kind, Some("65534"), None);
            attack("requests")?;
            for role in ROLES {
                let seen = cluster.counter(master, role, "local_refused_user");
                ensure(seen == 0, format!("{role}'s socket is open to everybody"))?;
            }
            // As if somebody had opened them.
            for role in ROLES.iter().chain(&["main"]) {
                let path = cluster.run_dir(master).join(format!("{role}.sock"));
                let opened = fs::set_permissions(&path, fs::Permissions::from_mode(0o666));
                ensure(opened.is_ok(), format!("{}: {opened:?}", path.display()))?;
            }
            for kind in ["garbage", "silent", "requests", "neighbour"] {
                attack(kind)?;
            }
            for role in ROLES {
                rises(cluster, master, (role, "local_refused_user"), 100)?;
                let heard = cluster.counter(master, role, "local_refused_garbage");
                ensure(heard == 0, format!("{role} listened to a stranger"))?;
            }
            Ok(())
        })?;
        bounded(cluster, master, &before)
    })
}
