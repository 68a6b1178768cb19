//! The worker on real interfaces, in network namespaces of the test's own: no root is needed where
//! users may make user namespaces; else the tests say aloud that they are skipped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use config::{OnConflict, VirtualAddress};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use protocol::{BootTime, VirtualServerName, wire::signal};
use std::{
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};
use takeover::{AddressSet, Adopted, Event, GateHome, GateKind, Receipts, Takeover};

const INSIDE: &str = "STANDIN_TEST_INSIDE";
const PATIENCE: Duration = Duration::from_secs(20);
const VIP: &str = "192.0.2.10/24";
const VIP6: &str = "2001:db8::10/64";

/// Runs the body in a fresh network namespace, as root there: with each gate in the kernel that the body may meet.
macro_rules! in_namespace {
    ($name:ident, $body:expr) => {
        in_namespace!($name, $body, tcx nftables addresses);
    };
    ($name:ident, $body:expr, $($kind:ident)+) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $kind() {
                    let name = concat!(module_path!(), "::", stringify!($kind));
                    let (_, name) = name.split_once("::").unwrap();
                    run(name, stringify!($kind), $body);
                }
            )+
        }
    };
}

/// The same for what only a gate in the kernel can do.
macro_rules! behind_the_gate {
    ($name:ident, $body:expr) => {
        in_namespace!($name, $body, tcx clsact nftables);
    };
}

#[path = "netns/late_packets.rs"]
mod late_packets;
#[path = "netns/others.rs"]
mod others;
#[path = "netns/transit.rs"]
mod transit;

fn run(name: &str, kind: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    match takeover::check_gate(kind.parse().unwrap()) {
        Ok(()) => inside(name, kind, false),
        Err(why) => eprintln!("SKIPPED {name}: no such gate in the kernel here: {why}"),
    }
}

/// The gate that this test is about.
fn kind() -> GateKind {
    std::env::var(INSIDE).unwrap().parse().unwrap()
}

fn has_gate() -> bool {
    kind() != GateKind::Addresses
}

fn inside(name: &str, kind: &str, as_user: bool) {
    let user: &[&str] = if nix::unistd::geteuid().is_root() && !as_user {
        &[]
    } else {
        &["--user", "--map-root-user"]
    };
    let unshare = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare
            .args(user)
            .args(["--net", "--mount", "--"])
            .args(command);
        unshare
    };
    let permitted = unshare(&["true"]).stderr(Stdio::null()).status();
    if !permitted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED {name}: no network namespaces may be made here");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let test = [
        exe.to_str().unwrap(),
        "--exact",
        name,
        "--nocapture",
        "--test-threads=1",
    ];
    let status = unshare(&test).env(INSIDE, kind).status().unwrap();
    assert!(status.success(), "{name} failed in its namespace");
}

fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        out.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

fn now() -> BootTime {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    BootTime(t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn web() -> VirtualServerName {
    "web".parse().unwrap()
}

fn address(text: &str) -> VirtualAddress {
    let (ip, prefix) = text.split_once('/').unwrap();
    VirtualAddress {
        ip: ip.parse().unwrap(),
        prefix: prefix.parse().unwrap(),
    }
}

fn set(addresses: &[&str]) -> AddressSet {
    AddressSet {
        virtual_server: web(),
        interface: "s0".into(),
        addresses: addresses.iter().map(|a| address(a)).collect(),
        mac: None,
        on_conflict: OnConflict::Take,
    }
}

/// A thread in a namespace of its own: the other end of the cable.
struct Peer {
    tid: i32,
    jobs: Sender<Box<dyn FnOnce() + Send>>,
}

impl Peer {
    fn new() -> Self {
        let (tell, told) = channel();
        let (jobs, inbox) = channel::<Box<dyn FnOnce() + Send>>();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Self {
            tid: told.recv().unwrap(),
            jobs,
        }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs
            .send(Box::new(move || drop(tell.send(job()))))
            .unwrap();
        told.recv().unwrap()
    }

    fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || sh(&command))
    }

    /// Receives all frames that arrive at the peer from now on.
    fn frames(&self) -> Receiver<Vec<u8>> {
        let (tell, told) = channel();
        self.run(move || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                flags,
                SockProtocol::EthAll,
            )
            .unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok(n) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    if tell.send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
            });
        });
        told
    }
}

/// s0 here, p0 at the peer, both up.
fn cable() -> Peer {
    let peer = Peer::new();
    sh(&format!(
        "ip link set lo up
         ip link add s0 address 02:00:00:00:00:01 type veth peer name p0 address 02:00:00:00:00:09
         ip link set p0 netns {}
         ip address add 192.0.2.11/24 dev s0
         ip address add 2001:db8::11/64 dev s0 nodad
         ip link set s0 up",
        peer.tid
    ));
    peer.sh("ip link set lo up
         ip address add 192.0.2.99/24 dev p0
         ip address add 2001:db8::99/64 dev p0 nodad
         ip link set p0 up");
    peer
}

struct Stage {
    run_dir: tempfile::TempDir,
    takeover: Option<Takeover>,
    events: Receiver<(Event, BootTime)>,
}

impl Stage {
    fn new(sets: Vec<AddressSet>) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let (takeover, adopted, events) = start(run_dir.path(), sets);
        assert_eq!(adopted, []);
        Self {
            run_dir,
            takeover: Some(takeover),
            events,
        }
    }

    /// Stops the worker as a killed electd would, and starts another.
    fn restart(&mut self, sets: Vec<AddressSet>) -> Vec<Adopted> {
        self.takeover = None;
        let (takeover, adopted, events) = start(self.run_dir.path(), sets);
        self.takeover = Some(takeover);
        self.events = events;
        adopted
    }

    fn takeover(&self) -> &Takeover {
        self.takeover.as_ref().unwrap()
    }

    fn event(&self) -> (Event, BootTime) {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    fn open(&self, ahead: Duration) -> BootTime {
        let deadline = now() + ahead;
        self.takeover().open(&web(), deadline);
        assert_eq!(self.event().0, Event::Opened { v: web() });
        deadline
    }

    fn no_event(&self) {
        assert_eq!(
            self.events.recv_timeout(ms(50)),
            Err(RecvTimeoutError::Timeout)
        );
    }
}

fn gate_home(run_dir: &std::path::Path) -> GateHome {
    GateHome::mount(run_dir).at_most(kind(), "not wanted")
}

fn start(
    run_dir: &std::path::Path,
    sets: Vec<AddressSet>,
) -> (Takeover, Vec<Adopted>, Receiver<(Event, BootTime)>) {
    let (tell, events) = channel();
    let tell = move |event| {
        if !matches!(event, Event::Clients { .. }) {
            let _ = tell.send((event, now()));
        }
    };
    let (takeover, adopted) =
        Takeover::start(run_dir, gate_home(run_dir), sets, None, tell).unwrap();
    let said = takeover.gate_in_force();
    let (begins, ends) = match kind() {
        GateKind::Tcx => ("eBPF", ""),
        GateKind::Clsact => ("eBPF", "(clsact): eBPF refused: not wanted"),
        GateKind::Nftables => ("nftables", ": eBPF refused: not wanted"),
        GateKind::Addresses => (
            "addresses only: eBPF refused: not wanted",
            "nftables refused: not wanted",
        ),
    };
    assert!(said.starts_with(begins) && said.ends_with(ends), "{said}");
    (takeover, adopted, events)
}

fn here(address: &str) -> bool {
    let ip = address.split('/').next().unwrap();
    sh(&format!("ip -o address show dev s0 to {ip}")).contains(ip)
}

/// How long after its deadline a gate may let packets pass: electd asks for one that is so much earlier.
fn margin() -> Duration {
    if kind() == GateKind::Nftables {
        ms(20)
    } else {
        ms(0)
    }
}

/// After [`Event::Shut`]: behind the kernel's gate the addresses may go a little later.
fn gone(address: &str) -> bool {
    if has_gate() {
        wait_for("the removal", || !here(address));
    }
    !here(address)
}

fn wait_for(what: &str, mut outcome: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !outcome() {
        assert!(Instant::now() < end, "{what} did not come");
        thread::sleep(ms(2));
    }
}

in_namespace!(addresses_come_with_open_and_go_with_shut, || {
    let _peer = cable();
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    stage.open(ms(5000));
    assert!(here(VIP) && here(VIP6));
    let shown = sh("ip address show dev s0");
    assert!(
        shown.contains("192.0.2.10/24 ") && shown.contains("2001:db8::10/64"),
        "{shown}"
    );
    let lines: Vec<&str> = shown.lines().collect();
    for ours in ["192.0.2.10/24", "2001:db8::10/64"] {
        let at = lines.iter().position(|l| l.contains(ours)).unwrap();
        assert!(
            lines[at].contains("dynamic") && !lines[at].contains("tentative"),
            "{shown}"
        );
        assert!(
            lines[at + 1].contains("valid_lft 10sec") || lines[at + 1].contains("valid_lft 9sec"),
            "{shown}"
        );
    }
    stage.takeover().shut(&web());
    assert_eq!(stage.event().0, Event::Shut { v: web() });
    assert!(gone(VIP) && gone(VIP6));
    assert!(here("192.0.2.11") && here("2001:db8::11"));
    // Also if none was there.
    stage.takeover().shut(&web());
    assert_eq!(stage.event().0, Event::Shut { v: web() });
    stage.open(ms(5000));
    assert!(here(VIP));
});

in_namespace!(addresses_go_by_themselves_at_the_deadline, || {
    let _peer = cable();
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    for _ in 0..5 {
        let deadline = stage.open(ms(120));
        let (event, at) = stage.event();
        assert_eq!(event, Event::Lapsed { v: web() });
        let late = at.0 as i64 - deadline.0 as i64;
        eprintln!(
            "2 addresses read back as gone {} us after the deadline",
            late / 1000
        );
        assert!(!here(VIP) && !here(VIP6));
    }
});

in_namespace!(extending_keeps_them_and_never_shortens, || {
    let _peer = cable();
    let stage = Stage::new(vec![set(&[VIP])]);
    stage.open(ms(200));
    let mut last = now();
    for _ in 0..60 {
        thread::sleep(ms(20));
        last = now() + ms(200);
        stage.takeover().open(&web(), last);
        stage.takeover().open(&web(), now() + ms(1));
    }
    assert!(here(VIP));
    let (event, at) = stage.event();
    assert_eq!(event, Event::Lapsed { v: web() });
    assert!(at + ms(1) > last, "gone {:?} too early", last.since(at));
});

in_namespace!(kernel_removes_them_when_nobody_renews, || {
    let _peer = cable();
    let mut stage = Stage::new(vec![set(&[VIP, VIP6])]);
    stage.open(ms(300));
    stage.takeover = None;
    assert!(here(VIP));
    wait_for("the end of the kernel's lifetime", || {
        !here(VIP) && !here(VIP6)
    });
});

in_namespace!(lifetimes_are_renewed_while_open, || {
    let _peer = cable();
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    stage.open(ms(300));
    let end = Instant::now() + ms(3500);
    while Instant::now() < end {
        stage.takeover().open(&web(), now() + ms(1000));
        assert!(here(VIP) && here(VIP6));
        thread::sleep(ms(50));
    }
    // The route to the network is the server's own and lives on.
    let route = sh("ip -6 route show 2001:db8::/64 dev s0");
    assert!(!route.contains("expires"), "{route}");
    assert_eq!(
        stage.events.try_recv().err(),
        Some(std::sync::mpsc::TryRecvError::Empty),
        "all is well"
    );
});

in_namespace!(a_deadline_ahead_is_adopted_with_its_addresses, || {
    let _peer = cable();
    let mut stage = Stage::new(vec![set(&[VIP, VIP6])]);
    let deadline = stage.open(ms(1500));
    let adopted = stage.restart(vec![set(&[VIP, VIP6])]);
    assert_eq!(
        adopted,
        [Adopted {
            virtual_server: web(),
            deadline
        }]
    );
    assert!(here(VIP) && here(VIP6));
    let (event, at) = stage.event();
    assert_eq!(event, Event::Lapsed { v: web() });
    assert!(at + ms(1) > deadline);
    assert!(!here(VIP) && !here(VIP6));
});

in_namespace!(what_else_is_left_over_is_removed_at_start, || {
    let _peer = cable();
    let mut stage = Stage::new(vec![set(&[VIP])]);
    stage.open(ms(100));
    stage.takeover = None;
    // Past the deadline, but within the kernel's lifetime; and one that somebody added by hand.
    thread::sleep(ms(150));
    sh("ip address add 192.0.2.12/32 dev s0");
    assert!(here(VIP));
    assert_eq!(stage.restart(vec![set(&[VIP, "192.0.2.12/24"])]), []);
    assert!(!here(VIP) && !here("192.0.2.12") && here("192.0.2.11"));
    // A deadline ahead without addresses is not adopted either.
    stage.open(ms(5000));
    stage.takeover = None;
    sh("ip address del 192.0.2.10/24 dev s0; ip address del 192.0.2.12/24 dev s0");
    assert_eq!(stage.restart(vec![set(&[VIP, "192.0.2.12/24"])]), []);
});

in_namespace!(an_address_removed_by_another_program_is_put_back, || {
    let _peer = cable();
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    stage.open(ms(10_000));
    for address in [VIP, VIP6] {
        let before = now();
        sh(&format!("ip address del {address} dev s0"));
        let (event, at) = stage.event();
        let Event::Restored { what, .. } = event else {
            panic!("{event:?}")
        };
        assert!(what.starts_with(address), "{what}");
        eprintln!("put back {:?} after `ip` was started", at.since(before));
        assert!(here(address));
    }
    // Our own removals are not taken for another program's.
    stage.takeover().shut(&web());
    stage.takeover().open(&web(), now() + ms(10_000));
    assert_eq!(stage.event().0, Event::Shut { v: web() });
    assert_eq!(stage.event().0, Event::Opened { v: web() });
    stage.no_event();
});

in_namespace!(a_missing_interface_is_told_and_waited_for, || {
    let stage = Stage::new(vec![set(&[VIP])]);
    stage.takeover().open(&web(), now() + ms(60_000));
    let Event::Failed { what, .. } = stage.event().0 else {
        panic!()
    };
    assert_eq!(what, "interface s0 does not exist; waiting for it");
    stage.no_event();
    let _peer = cable();
    let is_open = || stage.events.recv_timeout(PATIENCE).unwrap().0 == (Event::Opened { v: web() });
    wait_for("opening", is_open);
    assert!(here(VIP));
    sh("ip link set s0 down");
    let Event::Failed { what, .. } = stage.event().0 else {
        panic!()
    };
    assert_eq!(
        what,
        "interface s0 is down; waiting for it (ip link set s0 up)"
    );
    sh("ip link set s0 up");
    assert_eq!(stage.event().0, Event::Opened { v: web() });
    sh("ip link del s0");
    wait_for("failure", || {
        matches!(stage.event().0, Event::Failed { .. })
    });
    stage.takeover().shut(&web());
    assert_eq!(stage.event().0, Event::Shut { v: web() });
});

in_namespace!(a_deadline_that_passes_on_a_missing_interface_lapses, || {
    let stage = Stage::new(vec![set(&[VIP])]);
    stage.takeover().open(&web(), now() + ms(100));
    assert!(matches!(stage.event().0, Event::Failed { .. }));
    assert_eq!(stage.event().0, Event::Lapsed { v: web() });
});

const GRATUITOUS: [u8; 42] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0,
    0, 1, 192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10,
];

in_namespace!(
    the_peer_hears_announcements_while_open_and_moves_its_entries,
    || {
        let peer = cable();
        // Each side knows the other; the peer has the virtual addresses elsewhere, and just now.
        sh(
            "ip neighbour replace 192.0.2.99 lladdr 02:00:00:00:00:09 dev s0 nud stale
        ip neighbour replace 2001:db8::99 lladdr 02:00:00:00:00:09 dev s0 nud stale
        ip neighbour replace 192.0.2.10 lladdr 02:00:00:00:00:66 dev s0 nud stale",
        );
        let frames = peer.frames();
        peer.sh(
            "ip neighbour replace 192.0.2.10 lladdr 02:00:00:00:00:66 dev p0 nud reachable
             ip neighbour replace 2001:db8::10 lladdr 02:00:00:00:00:66 dev p0 nud reachable",
        );
        let stage = Stage::new(vec![set(&[VIP, VIP6])]);
        stage.open(ms(700));
        let moved = |ip: &str| {
            peer.sh(&format!("ip neighbour show {ip} dev p0"))
                .contains("02:00:00:00:00:01")
        };
        wait_for("the move of the IPv4 entry", || moved("192.0.2.10"));
        wait_for("the move of the IPv6 entry", || moved("2001:db8::10"));
        assert_eq!(
            sh("ip neighbour show 192.0.2.10 dev s0"),
            "",
            "own entry is forgotten"
        );
        assert_eq!(stage.event().0, Event::Lapsed { v: web() });
        thread::sleep(ms(50));
        let heard: Vec<_> = frames.try_iter().collect();
        let count = |of: &dyn Fn(&&Vec<u8>) -> bool| heard.iter().filter(of).count();
        // At 0, 20, 100 and 500 ms; not at 2 s, when it is shut. Where the kernel takes the IPv6 address into use late,
        // the times begin anew with it, and what was announced until then was IPv4 alone.
        let to_all = |f: &&Vec<u8>| f[..6] == [0x33, 0x33, 0, 0, 0, 1] && f.get(54) == Some(&136);
        assert_eq!(count(&to_all), 4);
        let gratuitous = |f: &&Vec<u8>| f[..] == GRATUITOUS;
        let until_ipv6 = heard.iter().take_while(|f| !to_all(f)).filter(gratuitous);
        assert_eq!(count(&gratuitous), 4 + until_ipv6.count() - 1);
        let asked = |f: &&Vec<u8>| {
            f[..6] == [2, 0, 0, 0, 0, 9] && f[12..14] == [8, 6] && f[28..32] == [192, 0, 2, 10]
        };
        // It is asked again 2, 10, 50 and 200 ms after that until it answers, which a busy machine may do late.
        assert!((1..5).contains(&count(&asked)), "{}", count(&asked));
        let solicited =
            |f: &&Vec<u8>| f[..6] == [2, 0, 0, 0, 0, 9] && f.get(54) == Some(&135) && f[37] == 0x10;
        assert!((1..5).contains(&count(&solicited)), "{}", count(&solicited));
        // A heal announces again.
        stage.open(ms(5000));
        thread::sleep(ms(600));
        let _ = frames.try_iter().count();
        stage.takeover().announce(&web());
        wait_for("the announcement", || {
            frames.recv_timeout(PATIENCE).unwrap()[..] == GRATUITOUS
        });
    }
);

in_namespace!(a_foreign_claim_is_told_once_a_second_and_answered, || {
    let peer = cable();
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    stage.open(ms(20_000));
    thread::sleep(ms(600));
    let frames = peer.frames();
    peer.sh("ip address add 192.0.2.10/32 dev p0; ip address add 2001:db8::10/128 dev p0 nodad");
    // The peer's kernel asks for a stranger from the virtual address: a claim.
    let claim = |own: &'static str, stranger: &'static str| {
        peer.run(move || {
            let socket = UdpSocket::bind((own.parse::<IpAddr>().unwrap(), 0)).unwrap();
            socket
                .send_to(b"?", (stranger.parse::<IpAddr>().unwrap(), 9))
                .unwrap();
        });
    };
    let foreign = |ip: &str| Event::ForeignClaim {
        v: web(),
        ip: ip.parse().unwrap(),
        mac: [2, 0, 0, 0, 0, 9],
        of_server: false,
    };
    claim("192.0.2.10", "192.0.2.77");
    assert_eq!(stage.event().0, foreign("192.0.2.10"));
    wait_for("the answer", || {
        frames.recv_timeout(PATIENCE).unwrap()[..] == GRATUITOUS
    });
    claim("192.0.2.10", "192.0.2.78");
    stage.no_event();
    claim("2001:db8::10", "2001:db8::77");
    assert_eq!(stage.event().0, foreign("2001:db8::10"));
});

/// The peer hears nothing that is for all.
const DEAF_TO_BROADCASTS: &str = "nft -f - <<-END
table netdev deaf {
chain in {
type filter hook ingress device p0 priority 0
ether daddr ff:ff:ff:ff:ff:ff drop
ether daddr 33:33:00:00:00:01 drop
}
}
END";

/// The peer has the virtual addresses elsewhere, and since this moment.
const POISONED: &str =
    "ip neighbour replace 192.0.2.10 lladdr 02:00:00:00:00:66 dev p0 nud reachable
     ip neighbour replace 2001:db8::10 lladdr 02:00:00:00:00:66 dev p0 nud reachable";

fn moved(peer: &Peer, ip: &str) -> bool {
    peer.sh(&format!("ip neighbour show {ip} dev p0"))
        .contains("02:00:00:00:00:01")
}

/// The receipts, once all clients have answered or were given up.
fn settled(stage: &Stage, asked: usize) -> Receipts {
    let mut receipts = Receipts::default();
    wait_for("an answer or silence of every client", || {
        receipts = stage.takeover().receipts(&web()).unwrap_or_default();
        receipts.asked == asked && receipts.answered + receipts.silent == asked
    });
    receipts
}

in_namespace!(
    clients_with_fresh_wrong_entries_that_hear_no_broadcast_are_moved_and_answer,
    || {
        let peer = cable();
        sh(
            "ip neighbour replace 192.0.2.99 lladdr 02:00:00:00:00:09 dev s0 nud stale
            ip neighbour replace 2001:db8::99 lladdr 02:00:00:00:00:09 dev s0 nud stale",
        );
        peer.sh(DEAF_TO_BROADCASTS);
        for again in 0..3 {
            peer.sh(POISONED);
            let stage = Stage::new(vec![set(&[VIP, VIP6])]);
            stage.open(ms(5000));
            let receipts = settled(&stage, 2);
            assert_eq!(receipts.silent_first, [] as [IpAddr; 0], "opening {again}");
            assert!(moved(&peer, "192.0.2.10") && moved(&peer, "2001:db8::10"));
            // A heal makes sure of them again.
            peer.sh(POISONED);
            stage.takeover().announce(&web());
            wait_for("the move", || {
                moved(&peer, "192.0.2.10") && moved(&peer, "2001:db8::10")
            });
            stage.takeover().shut(&web());
            assert_eq!(stage.event().0, Event::Shut { v: web() });
        }
    }
);

in_namespace!(a_silent_client_is_asked_again_and_listed, || {
    let peer = cable();
    // Nobody has .77; the server .98 does not answer either, and is no client.
    sh(
        "ip neighbour replace 192.0.2.99 lladdr 02:00:00:00:00:09 dev s0 nud stale
        ip neighbour replace 192.0.2.77 lladdr 02:00:00:00:00:09 dev s0 nud stale
        ip neighbour replace 192.0.2.98 lladdr 02:00:00:00:00:09 dev s0 nud stale",
    );
    let frames = peer.frames();
    let stage = Stage::new(vec![set(&[VIP])]);
    stage
        .takeover()
        .set_servers(vec!["192.0.2.98".parse().unwrap()]);
    stage.open(ms(20_000));
    let receipts = settled(&stage, 2);
    assert_eq!(receipts.answered, 1);
    assert_eq!(
        receipts.silent_first,
        ["192.0.2.77".parse::<IpAddr>().unwrap()]
    );
    let heard: Vec<_> = frames.try_iter().collect();
    let asked = |last: u8| {
        let to = [192, 0, 2, last];
        let is =
            |f: &&Vec<u8>| f[12..14] == [8, 6] && f[..6] == [2, 0, 0, 0, 0, 9] && f[38..42] == to;
        heard.iter().filter(is).count()
    };
    assert_eq!((asked(99), asked(77), asked(98)), (1, 6, 6));
});

in_namespace!(
    a_client_behind_a_port_that_forwards_late_is_moved_when_it_does_and_taken_off_the_list,
    || {
        let peer = cable();
        sh("ip neighbour replace 192.0.2.99 lladdr 02:00:00:00:00:09 dev s0 nud stale");
        peer.sh(POISONED);
        peer.sh(
            "nft 'table netdev blocked { chain in { type filter hook ingress device p0 priority 0; drop; }; }'",
        );
        let stage = Stage::new(vec![set(&[VIP])]);
        stage.open(ms(20_000));
        assert_eq!(settled(&stage, 1).silent, 1);
        assert!(!moved(&peer, "192.0.2.10"));
        peer.sh("nft delete table netdev blocked");
        wait_for("the answer", || {
            stage
                .takeover()
                .receipts(&web())
                .unwrap_or_default()
                .answered
                == 1
        });
        assert!(moved(&peer, "192.0.2.10"));
        let receipts = stage.takeover().receipts(&web()).unwrap();
        assert_eq!((receipts.silent, receipts.silent_first), (0, vec![]));
    },
    tcx
);

in_namespace!(nobody_is_asked_any_more_once_the_lease_has_ended, || {
    let peer = cable();
    sh("ip neighbour replace 192.0.2.77 lladdr 02:00:00:00:00:09 dev s0 nud stale");
    let stage = Stage::new(vec![set(&[VIP])]);
    for shut in [false, true] {
        stage.open(ms(if shut { 5000 } else { 100 }));
        thread::sleep(ms(30));
        if shut {
            stage.takeover().shut(&web());
        }
        stage.event();
        let frames = peer.frames();
        thread::sleep(ms(1500));
        let from_vip = |f: &Vec<u8>| f[12..14] == [8, 6] && f[28..32] == [192, 0, 2, 10];
        assert_eq!(frames.try_iter().filter(from_vip).count(), 0);
        let told = || stage.takeover().receipts(&web()).is_none();
        wait_for("the end of the receipts", told);
    }
});

in_namespace!(clients_that_another_server_has_seen_are_moved_too, || {
    let peer = cable();
    peer.sh(DEAF_TO_BROADCASTS);
    peer.sh(POISONED);
    assert_eq!(
        sh("ip neighbour show dev s0"),
        "",
        "this server knows nobody"
    );
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    let client = |ip: &str, age_s| signal::Client {
        ip: ip.parse().unwrap(),
        mac: [2, 0, 0, 0, 0, 9],
        age_s,
    };
    let long_gone = client("192.0.2.77", 601);
    let list = [
        client("192.0.2.99", 300),
        client("2001:db8::99", 3),
        long_gone,
    ];
    stage.takeover().learn(&web(), &list);
    stage.open(ms(5000));
    let receipts = settled(&stage, 2);
    assert_eq!(receipts.answered, 2, "{receipts:?}");
    assert!(moved(&peer, "192.0.2.10") && moved(&peer, "2001:db8::10"));
});

in_namespace!(
    the_kernel_is_told_where_clients_are_that_another_server_has_just_seen,
    || {
        let peer = cable();
        sh("ip neighbour replace 192.0.2.98 lladdr 02:00:00:00:00:07 dev s0 nud stale");
        let stage = Stage::new(vec![set(&[VIP, VIP6])]);
        let seen = |ip: &str, age_s| signal::Client {
            ip: ip.parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 9],
            age_s,
        };
        let list = [
            seen("192.0.2.77", 3),
            seen("2001:db8::77", 3),
            seen("192.0.2.78", 300),
            seen("192.0.2.98", 3),
        ];
        thread::sleep(ms(200)); // the tables are read
        stage.takeover().learn(&web(), &list);
        let frames = peer.frames();
        stage.open(ms(5000));
        let known = |ip: &str| sh(&format!("ip neighbour show {ip} dev s0 nud stale"));
        for ip in ["192.0.2.77", "2001:db8::77"] {
            wait_for("the entry", || known(ip).contains("02:00:00:00:00:09"));
        }
        assert_eq!(known("192.0.2.78"), "", "it may be anywhere by now");
        let better = known("192.0.2.98");
        assert!(better.contains("02:00:00:00:00:07"), "{better}");
        // What is sent to one of them leaves at once.
        let socket = UdpSocket::bind("192.0.2.11:0").unwrap();
        socket.send_to(b"first", "192.0.2.77:9").unwrap();
        let mut heard = std::iter::from_fn(|| frames.recv_timeout(PATIENCE).ok());
        let about_it = |f: &Vec<u8>| match f[12..14] {
            [8, 0] => f[30..34] == [192, 0, 2, 77],
            [8, 6] => f[..6] == [0xff; 6] && f[38..42] == [192, 0, 2, 77],
            _ => false,
        };
        let first = heard.find(about_it).unwrap();
        assert_eq!(first[12..14], [8, 0], "it was asked for first");
    }
);

in_namespace!(
    a_gateway_is_asked_even_if_its_mac_address_is_not_known,
    || {
        let peer = cable();
        sh(
            "ip route add default via 192.0.2.99; ip -6 route add default via 2001:db8::99
        ip neighbour flush dev s0",
        );
        let frames = peer.frames();
        let stage = Stage::new(vec![set(&[VIP, VIP6])]);
        stage.open(ms(5000));
        assert_eq!(settled(&stage, 2).answered, 2);
        let to_all =
            |f: &Vec<u8>| f[12..14] == [8, 6] && f[0] == 0xff && f[38..42] == [192, 0, 2, 99];
        assert_eq!(frames.try_iter().filter(to_all).count(), 1);
    }
);

in_namespace!(the_other_servers_are_told_of_the_clients_while_open, || {
    let _peer = cable();
    let server = ["192.0.2.98", "192.0.2.10"];
    for ip in ["192.0.2.99", server[0], server[1]] {
        sh(&format!(
            "ip neighbour replace {ip} lladdr 02:00:00:00:00:09 dev s0 nud stale"
        ));
    }
    let (tell, events) = channel();
    let run_dir = tempfile::tempdir().unwrap();
    let tell = move |event| drop(tell.send(event));
    let home = gate_home(run_dir.path());
    let sets = vec![set(&[VIP])];
    let (takeover, _) = Takeover::start(run_dir.path(), home, sets, None, tell).unwrap();
    takeover.set_servers(vec![server[0].parse().unwrap()]);
    thread::sleep(ms(200));
    assert_eq!(events.try_iter().count(), 0, "a slave tells nobody");
    takeover.open(&web(), now() + ms(20_000));
    let mut told = Vec::new();
    while told.is_empty() {
        if let Event::Clients { v, clients } = events.recv_timeout(PATIENCE).unwrap() {
            assert_eq!(v, web());
            told = clients;
        }
    }
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (told[0].ip, told[0].mac),
        ("192.0.2.99".parse().unwrap(), [2, 0, 0, 0, 0, 9])
    );
    assert!(told[0].age_s < 60);
});

in_namespace!(two_hundred_and_fifty_clients_answer, || {
    let peer = cable();
    let lines = |each: &dyn Fn(u32) -> String| (1..=250).map(each).collect::<Vec<_>>().join("\n");
    peer.sh(&format!(
        "ip -batch - <<-END\n{}\nEND",
        lines(&|n| format!("address add 198.51.100.{n}/16 dev p0"))
    ));
    peer.sh(DEAF_TO_BROADCASTS);
    for opening in 0..5 {
        peer.sh("ip neighbour replace 198.51.0.10 lladdr 02:00:00:00:00:66 dev p0 nud reachable");
        let replace = |n| {
            format!("neighbour replace 198.51.100.{n} lladdr 02:00:00:00:00:09 dev s0 nud stale")
        };
        sh(&format!("ip -batch - <<-END\n{}\nEND", lines(&replace)));
        let stage = Stage::new(vec![set(&["198.51.0.10/16"])]);
        // Half of the openings find the tables read before, as after a while of being slave.
        if opening % 2 == 0 {
            thread::sleep(ms(200));
        }
        stage.open(ms(5000));
        let receipts = settled(&stage, 250);
        assert_eq!(receipts.answered, 250, "{:?}", receipts.silent_first);
        assert!(moved(&peer, "198.51.0.10"));
        eprintln!(
            "250 clients: the last receipt {:?} after the addresses came",
            receipts.last_answer.unwrap()
        );
        stage.takeover().shut(&web());
        assert_eq!(stage.event().0, Event::Shut { v: web() });
    }
});

in_namespace!(a_probe_finds_who_has_the_address, || {
    let peer = cable();
    for (vip, held) in [(VIP, "192.0.2.10/32"), (VIP6, "2001:db8::10/128 nodad")] {
        let stage = Stage::new(vec![set(&[vip])]);
        stage.takeover().probe(&web());
        assert_eq!(
            stage.event().0,
            Event::Probed {
                v: web(),
                answered_by: None
            }
        );
        peer.sh(&format!("ip address add dev p0 {held}"));
        stage.takeover().probe(&web());
        let answered_by = Some([2, 0, 0, 0, 0, 9]);
        assert_eq!(
            stage.event().0,
            Event::Probed {
                v: web(),
                answered_by
            }
        );
        assert!(!here(vip));
        stage.no_event();
    }
});

in_namespace!(
    a_virtual_mac_address_needs_an_interface_that_can_carry_it,
    || {
        let _peer = cable();
        sh(
            "ip link add br0 type bridge; ip link add d0 type veth peer name d1; ip link set d0 master br0",
        );
        let mac = Some([2, 0, 0x5e, 0, 0x53, 1]);
        for (interface, why) in [
            (
                "lo",
                "interface lo is not Ethernet and cannot carry a virtual MAC address; write mac = \"own\"",
            ),
            (
                "d0",
                "interface d0 is a port of a bridge (name the bridge instead) and cannot carry",
            ),
            ("gone", "interface gone does not exist; waiting for it"),
        ] {
            let bad = AddressSet {
                interface: interface.into(),
                mac,
                ..set(&[VIP])
            };
            let stage = Stage::new(vec![bad]);
            let Event::Failed { v, what } = stage.event().0 else {
                panic!("no failure on {interface}");
            };
            assert_eq!(v, web());
            assert!(what.starts_with(why), "{what}");
            stage.takeover.unwrap().close();
            assert!(takeover::check_mac(interface).is_err());
        }
        assert_eq!(takeover::check_mac("s0"), Ok(()));
    }
);

in_namespace!(
    a_virtual_mac_address_has_a_device_that_is_up_only_while_open,
    || {
        let _peer = cable();
        let virtual_set = || AddressSet {
            mac: Some([2, 0, 0x5e, 0, 0x53, 1]),
            ..set(&[VIP, VIP6])
        };
        let device = || sh("ip -o link show; ip -o address show");
        let is = |up: bool| {
            let shown = device();
            let line = shown.lines().find(|l| l.contains("si-02005e005301@s0"));
            line.is_some_and(|l| l.contains(",UP") == up && l.contains("02:00:5e:00:53:01"))
        };
        let mut stage = Stage::new(vec![virtual_set()]);
        assert!(is(false), "{}", device());
        stage.open(ms(20_000));
        assert!(is(true), "{}", device());
        for address in [VIP, VIP6] {
            let shown = sh(&format!(
                "ip -o address show dev si-02005e005301 to {address}"
            ));
            assert!(shown.contains(address), "{}", device());
        }
        // No other address, and no route: replies take the way they always took.
        let shown = sh(
            "ip -o address show dev si-02005e005301; ip route show dev si-02005e005301; ip -6 route show dev si-02005e005301",
        );
        assert!(
            !shown.contains("fe80::") && !shown.contains("192.0.2.0/24"),
            "{shown}"
        );
        assert_eq!(stage.restart(vec![virtual_set()]).len(), 1);
        assert!(is(true), "{}", device());
        stage.takeover().shut(&web());
        assert_eq!(stage.event().0, Event::Shut { v: web() });
        wait_for("the device to go down", || is(false));
        stage.takeover.take().unwrap().close();
        assert!(!device().contains("si-"), "{}", device());
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/s0/arp_ignore").trim(), "0");
    }
);

in_namespace!(a_changed_configuration_moves_addresses, || {
    let _peer = cable();
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    stage.open(ms(20_000));
    stage
        .takeover()
        .replace_sets(vec![set(&[VIP, "192.0.2.13/24"])]);
    assert_eq!(stage.event().0, Event::Opened { v: web() });
    assert!(here(VIP) && here("192.0.2.13") && !here(VIP6));
    sh("ip link add d0 type veth peer name d1; ip link set d1 up; ip link set d0 up");
    let elsewhere = AddressSet {
        interface: "d0".into(),
        ..set(&[VIP])
    };
    stage.takeover().replace_sets(vec![elsewhere]);
    assert_eq!(stage.event().0, Event::Opened { v: web() });
    assert!(!here(VIP) && !here("192.0.2.13"));
    assert!(sh("ip address show dev d0").contains("192.0.2.10"));
    let mail = AddressSet {
        virtual_server: "mail".parse().unwrap(),
        ..set(&["192.0.2.14/24"])
    };
    stage.takeover().replace_sets(vec![mail.clone()]);
    assert_eq!(stage.event().0, Event::Shut { v: web() });
    wait_for("the removal", || {
        !sh("ip address show dev d0").contains("192.0.2.10")
    });
    stage
        .takeover()
        .open(&mail.virtual_server, now() + ms(5000));
    assert_eq!(
        stage.event().0,
        Event::Opened {
            v: mail.virtual_server
        }
    );
    assert!(here("192.0.2.14"));
    assert!(!stage.run_dir.path().join("gate/web.gate").exists());
});

in_namespace!(removing_ours_leaves_the_others_of_the_network, || {
    let _peer = cable();
    sh("echo 0 > /proc/sys/net/ipv4/conf/s0/promote_secondaries
        echo 0 > /proc/sys/net/ipv4/conf/all/promote_secondaries
        ip address del 192.0.2.11/24 dev s0");
    let stage = Stage::new(vec![set(&[VIP])]);
    stage.open(ms(20_000));
    // Ours is the first of its network now; the server's own comes after it.
    sh("ip address add 192.0.2.11/24 dev s0");
    stage.takeover().shut(&web());
    assert_eq!(stage.event().0, Event::Shut { v: web() });
    assert!(gone(VIP) && here("192.0.2.11"));
});

in_namespace!(a_thousand_addresses, || {
    let peer = cable();
    let ip = |n: u32| format!("198.51.{}.{}/16", 100 + n / 250, 1 + n % 250);
    let mut many: Vec<String> = (0..1000).map(ip).collect();
    for family in ["IPv4", "IPv6"] {
        if family == "IPv6" {
            many = (0..1000).map(|n| format!("2001:db8:1::{n:x}/64")).collect();
        }
        let texts: Vec<&str> = many.iter().map(String::as_str).collect();
        let stage = Stage::new(vec![set(&texts)]);
        for _ in 0..3 {
            let frames = peer.frames();
            let before = now();
            let deadline = stage.open(ms(5000));
            let opened = now().since(before);
            let count = sh("ip -o address show dev s0")
                .lines()
                .filter(|l| l.contains(":1::") || l.contains("198.51"))
                .count();
            assert_eq!(count, 1000);
            let mut heard = 0;
            while heard < 1000 {
                let frame = frames.recv_timeout(PATIENCE).unwrap();
                heard += usize::from(
                    frame[0] & 1 == 1 && (frame[12..14] == [8, 6] || frame.get(54) == Some(&136)),
                );
            }
            let announced = now().since(before);
            let (event, at) = stage.event();
            assert_eq!(event, Event::Lapsed { v: web() });
            let gone = at.0 as i64 - deadline.0 as i64;
            let count = sh("ip -o address show dev s0")
                .lines()
                .filter(|l| l.contains(":1::") || l.contains("198.51"))
                .count();
            assert_eq!(count, 0);
            eprintln!(
                "1,000 {family} addresses: there after {opened:?}, announced after at most {announced:?}, \
                 read back as gone {} us after the deadline",
                gone / 1000
            );
        }
    }
});

// ---- the gate in the kernel

const PORT: u16 = 7777;

/// Answers requests to the virtual addresses, also before they are there; counts what arrives.
struct Echo {
    heard: Arc<AtomicUsize>,
}

fn echo(addresses: &[&'static str]) -> Echo {
    sh("echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind
        echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind");
    let heard = Arc::new(AtomicUsize::new(0));
    for address in addresses {
        let ip: IpAddr = address.split('/').next().unwrap().parse().unwrap();
        let socket = UdpSocket::bind((ip, PORT)).unwrap();
        let heard = heard.clone();
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                heard.fetch_add(1, SeqCst);
                let _ = socket.send_to(&buffer[..n], from);
            }
        });
    }
    Echo { heard }
}

/// Requests of the peer, one each 200 microseconds until the end: the times of those sent and answered.
struct Client {
    answered: Arc<Mutex<Vec<BootTime>>>,
    sent: Arc<AtomicUsize>,
}

impl Client {
    /// The peer knows the MAC address already: nothing here waits for ARP.
    fn start(peer: &Peer, to: &'static str, through: &str) -> Self {
        let to: IpAddr = to.split('/').next().unwrap().parse().unwrap();
        peer.sh(&format!(
            "ip neighbour replace {to} lladdr 02:00:00:00:00:01 dev {through} nud permanent"
        ));
        let answered = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::new(AtomicUsize::new(0));
        let (noted, counted) = (answered.clone(), sent.clone());
        peer.run(move || {
            let own = if to.is_ipv6() {
                "2001:db8::99"
            } else {
                "192.0.2.99"
            };
            let socket = UdpSocket::bind((own.parse::<IpAddr>().unwrap(), 0)).unwrap();
            let receiver = socket.try_clone().unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 8];
                while receiver.recv(&mut buffer).is_ok() {
                    noted
                        .lock()
                        .unwrap()
                        .push(BootTime(u64::from_ne_bytes(buffer)));
                }
            });
            thread::spawn(move || {
                loop {
                    let _ = socket.send_to(&now().0.to_ne_bytes(), (to, PORT));
                    counted.fetch_add(1, SeqCst);
                    thread::sleep(Duration::from_micros(200));
                }
            });
        });
        Self { answered, sent }
    }

    fn answered(&self) -> Vec<BootTime> {
        self.answered.lock().unwrap().clone()
    }

    /// How many of those sent from now on, for that long, are answered.
    fn count(&self, long: Duration) -> usize {
        let from = now();
        thread::sleep(long);
        let to = now();
        thread::sleep(ms(20));
        self.answered()
            .iter()
            .filter(|t| **t > from && **t < to)
            .count()
    }
}

/// How many sides of an interface have a gate that outlives electd.
fn pins(stage: &Stage, interface: &str) -> usize {
    let index = nix::net::if_::if_nametoindex(interface).unwrap_or(u32::MAX);
    let home = stage.run_dir.path().join("bpf");
    let pinned = |side: &&str| match kind() {
        GateKind::Tcx => home.join(format!("{side}-{index}")).exists(),
        GateKind::Clsact => {
            sh(&format!("tc filter show dev {interface} {side}")).contains("standin")
        }
        GateKind::Nftables => {
            let family = if *side == "egress" { "arp" } else { "inet" };
            sh("nft list tables").contains(&format!("{family} standin-"))
        }
        GateKind::Addresses => false,
    };
    ["ingress", "egress"].into_iter().filter(pinned).count()
}

fn frames_from_us(frames: &Receiver<Vec<u8>>) -> Vec<Vec<u8>> {
    frames
        .try_iter()
        .filter(|f| f[6..12] == [2, 0, 0, 0, 0, 1])
        .collect()
}

/// Whether a frame of ours speaks for a virtual address: ARP, advertisement, or from it.
fn speaks_for_vip(f: &[u8]) -> bool {
    let (v4, v6): (IpAddr, IpAddr) = (
        "192.0.2.10".parse().unwrap(),
        "2001:db8::10".parse().unwrap(),
    );
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else {
        panic!()
    };
    match &f[12..14] {
        [8, 6] => f[28..32] == v4.octets(),
        [8, 0] => f[26..30] == v4.octets(),
        [0x86, 0xdd] => f[22..38] == v6.octets() || f[54] == 136 && f[62..78] == v6.octets(),
        _ => false,
    }
}

/// The elements that standin's own static rules know of a set; none without these rules.
fn backstop(set: &str) -> Option<usize> {
    let tables = sh("nft list tables inet");
    let name = tables
        .split_whitespace()
        .find(|w| w.starts_with("standin-backstop-"))?;
    let listed = sh(&format!("nft list set inet {name} {set}"));
    let elements = listed.split("elements =").nth(1);
    Some(elements.map_or(0, |all| all.split(',').count()))
}

in_namespace!(
    an_interface_that_comes_while_electd_is_gone_answers_nothing,
    || {
        let peer = cable();
        let mut stage = Stage::new(vec![set(&[VIP, VIP6])]);
        let echo = echo(&[VIP, VIP6]);
        stage.open(ms(60_000));
        wait_for("the backstop", || backstop("virtual6") == Some(1));
        // Killed; the lease runs on, and what has a gate answers.
        stage.takeover = None;
        let through = |interface: &str| [VIP, VIP6].map(|vip| Client::start(&peer, vip, interface));
        assert!(through("p0").iter().all(|c| c.count(ms(200)) > 0));
        sh(&format!(
            "ip link add n0 address 02:00:00:00:00:01 type veth peer name p1 netns {}
             ip link set n0 up",
            peer.tid
        ));
        peer.sh(
            "ip address flush dev p0; ip link set p0 down; ip link set p1 up
             ip address add 192.0.2.99/24 dev p1; ip address add 2001:db8::99/64 dev p1 nodad",
        );
        sh("ip route replace 192.0.2.99 dev n0; ip -6 route replace 2001:db8::99 dev n0");
        let frames = peer.frames();
        // Who asks for the MAC address hears nothing.
        let asks = || {
            peer.sh("ip neighbour flush dev p1 nud all");
            peer.run(|| {
                for to in ["192.0.2.10", "2001:db8::10"] {
                    let to: IpAddr = to.parse().unwrap();
                    let any: IpAddr = if to.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
                    let _ = UdpSocket::bind((any, 0)).unwrap().send_to(b"?", (to, PORT));
                }
            });
        };
        asks();
        thread::sleep(ms(100));
        assert!(!frames_from_us(&frames).iter().any(|f| speaks_for_vip(f)));
        // Nor to who knows the MAC address.
        let heard = echo.heard.load(SeqCst);
        let clients = through("p1");
        assert!(clients.iter().all(|c| c.count(ms(200)) == 0));
        assert_eq!(echo.heard.load(SeqCst), heard);
        let said = frames_from_us(&frames);
        assert!(!said.iter().any(|f| speaks_for_vip(f)), "{said:x?}");
        // The next life puts its gate there.
        stage.restart(vec![set(&[VIP, VIP6])]);
        wait_for("answers", || clients.iter().all(|c| c.count(ms(20)) > 0));
        asks();
        wait_for("an answer to ARP", || frames_from_us(&frames).iter().any(|f| speaks_for_vip(f) && f[12..14] == [8, 6]));
        // A firewall that flushes everything.
        sh("nft flush ruleset");
        wait_for("the backstop", || backstop("virtual4") == Some(1));
        sh("ip link del n0");
        wait_for("its leaving", || backstop("gated") == Some(1));
        stage.takeover.take().unwrap().close();
        assert_eq!(sh("nft list tables"), "");
    },
    tcx clsact
);

in_namespace!(
    the_backstop_knows_thousands_of_addresses,
    || {
        let _peer = cable();
        let all: Vec<String> = (0..16_384)
            .map(|n| format!("10.1.{}.{}/16", n / 256, n % 256))
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let stage = Stage::new(vec![set(&all)]);
        wait_for("the backstop", || backstop("virtual4") == Some(16_384));
        stage.takeover().replace_sets(vec![set(&all[..3])]);
        wait_for("the removal", || backstop("virtual4") == Some(3));
    },
    tcx
);

behind_the_gate!(a_shut_gate_lets_nothing_in_and_nothing_out, || {
    let peer = cable();
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    sh(
        "ip neighbour replace 192.0.2.99 lladdr 02:00:00:00:00:09 dev s0
        ip neighbour replace 2001:db8::99 lladdr 02:00:00:00:00:09 dev s0",
    );
    let _own = echo(&["192.0.2.11", "2001:db8::11"]);
    let echo = echo(&[VIP, VIP6]);
    // As if the worker were late, or another program had put them there.
    sh("ip address add 192.0.2.10/24 dev s0; ip address add 2001:db8::10/64 dev s0 nodad");
    let frames = peer.frames();
    // The peer's kernel asks for both MAC addresses.
    let ask = || {
        peer.sh("ip neighbour flush dev p0");
        peer.run(|| {
            for to in ["192.0.2.10", "2001:db8::10"] {
                let to: IpAddr = to.parse().unwrap();
                let any: IpAddr = if to.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
                let _ = UdpSocket::bind((any, 0)).unwrap().send_to(b"?", (to, PORT));
            }
        });
        thread::sleep(ms(100));
    };
    // And this host speaks from them.
    let speak = || {
        for (from, to) in [
            ("192.0.2.10", "192.0.2.99"),
            ("2001:db8::10", "2001:db8::99"),
        ] {
            let socket = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
            let _ = socket.send_to(b"!", (to.parse::<IpAddr>().unwrap(), 9));
        }
        thread::sleep(ms(50));
    };
    ask();
    speak();
    let said = frames_from_us(&frames);
    let wrong: Vec<_> = said.iter().filter(|f| speaks_for_vip(f)).collect();
    assert!(wrong.is_empty(), "{wrong:x?}");
    assert_eq!(echo.heard.load(SeqCst), 0);
    // Nor with the MAC address known.
    let clients = [VIP, VIP6].map(|vip| Client::start(&peer, vip, "p0"));
    assert!(clients.iter().all(|c| c.count(ms(100)) == 0));
    assert_eq!(echo.heard.load(SeqCst), 0);
    assert!(clients.iter().all(|c| c.sent.load(SeqCst) > 10));
    // The server's own addresses are not its business.
    let own = ["192.0.2.11", "2001:db8::11"].map(|ip| Client::start(&peer, ip, "p0"));
    assert!(own.iter().all(|c| c.count(ms(200)) > 0));
    // The counterproof: open, all of it comes through.
    stage.open(ms(20_000));
    assert!(clients.iter().all(|c| c.count(ms(200)) > 0));
    ask();
    speak();
    let said = frames_from_us(&frames);
    for kind in [[8, 6], [8, 0], [0x86, 0xdd]] {
        let heard = said.iter().filter(|f| f[12..14] == kind);
        assert!(heard.clone().any(|f| speaks_for_vip(f)), "{kind:x?}");
    }
    assert!(
        said.iter()
            .any(|f| f[12..14] == [0x86, 0xdd] && f[54] == 136)
    );
});

behind_the_gate!(
    open_until_the_deadline_and_no_longer_without_anybody,
    || {
        let peer = cable();
        let mut stage = Stage::new(vec![set(&[VIP, VIP6])]);
        let _echo = echo(&[VIP, VIP6]);
        let clients = [VIP, VIP6].map(|vip| Client::start(&peer, vip, "p0"));
        let mut deadline = stage.open(ms(400));
        thread::sleep(ms(100));
        // A killed electd says nothing more, and its descriptors are closed.
        stage.takeover = None;
        for client in &clients {
            assert!(client.count(ms(50)) > 0, "still open");
        }
        thread::sleep((deadline + ms(300)).since(now()));
        assert!(here(VIP) && here(VIP6), "the addresses are still there");
        for client in &clients {
            let last = *client.answered().last().unwrap();
            assert!(
                last <= deadline + margin(),
                "{:?} late",
                last.since(deadline)
            );
            eprintln!(
                "last request answered {:?} before the deadline, {:?} after",
                deadline.since(last),
                last.since(deadline)
            );
        }
        // The next life finds a shut gate and adopts nothing, and opens again.
        assert_eq!(stage.restart(vec![set(&[VIP, VIP6])]), []);
        deadline = stage.open(ms(5000));
        assert!(clients.iter().all(|c| c.count(ms(100)) > 0));
        // Extended without the worker: the write alone counts.
        stage.takeover().open(&web(), deadline + ms(1000));
        stage.takeover().shut(&web());
        assert_eq!(stage.event().0, Event::Shut { v: web() });
        assert!(clients.iter().all(|c| c.count(ms(100)) == 0));
    }
);

behind_the_gate!(what_is_announced_is_served, || {
    let peer = cable();
    let _echo = echo(&[VIP]);
    let _client = Client::start(&peer, VIP, "p0");
    // Requests come each 200 microseconds: not every round would notice.
    for _ in 0..60 {
        let mut stage = Stage::new(vec![set(&[VIP])]);
        let frames = peer.frames();
        stage.open(ms(60_000));
        thread::sleep(ms(2));
        let until = now();
        let (mut announced, mut unanswered) = (false, Vec::new());
        wait_for("an answer to whatever follows the announcement", || {
            for frame in frames.try_iter() {
                announced |= frame[..] == GRATUITOUS;
                let udp = frame[12..14] == [8, 0] && frame.len() == 14 + 20 + 8 + 8;
                if !announced || !udp {
                    continue;
                }
                let sent = BootTime(u64::from_ne_bytes(frame[42..50].try_into().unwrap()));
                if frame[..6] == [2, 0, 0, 0, 0, 1] {
                    unanswered.push(sent);
                } else {
                    unanswered.retain(|s| *s != sent);
                }
            }
            announced && !unanswered.iter().any(|sent| *sent < until)
        });
        stage.takeover().shut(&web());
        assert_eq!(stage.event().0, Event::Shut { v: web() });
        assert!(gone(VIP));
        stage.takeover.take().unwrap().close(); // another run-dir: nobody would take its place
    }
});

behind_the_gate!(a_late_write_of_an_earlier_life_reaches_nobody, || {
    let peer = cable();
    let mut stage = Stage::new(vec![set(&[VIP])]);
    let _echo = echo(&[VIP]);
    let client = Client::start(&peer, VIP, "p0");
    let deadline = stage.open(ms(700));
    // It lives on, as a thread that was stalled for long might, while the next life begins.
    let earlier = stage.takeover.take().unwrap();
    let adopted = stage.restart(vec![set(&[VIP])]);
    assert_eq!(
        adopted,
        [Adopted {
            virtual_server: web(),
            deadline
        }]
    );
    assert!(client.count(ms(50)) > 0, "what was open stays open");
    earlier.open(&web(), now() + ms(60_000));
    thread::sleep((deadline + ms(150)).since(now()));
    let last = *client.answered().last().unwrap();
    assert!(
        last <= deadline + margin(),
        "{:?} late",
        last.since(deadline)
    );
    // Nor does it shut what the later one opens.
    stage.takeover().open(&web(), now() + ms(60_000));
    wait_for("answers", || client.count(ms(20)) > 0);
    drop(earlier);
});

behind_the_gate!(a_restart_loses_no_request, || {
    let peer = cable();
    let mut stage = Stage::new(vec![set(&[VIP])]);
    let _echo = echo(&[VIP]);
    let client = Client::start(&peer, VIP, "p0");
    stage.open(ms(30_000));
    wait_for("answers", || client.count(ms(20)) > 0);
    let mut longest = Duration::ZERO;
    let (from, before) = (client.answered().len(), client.sent.load(SeqCst));
    for _ in 0..20 {
        stage.takeover = None;
        let from = now();
        assert_eq!(stage.restart(vec![set(&[VIP])]).len(), 1);
        longest = longest.max(now().since(from));
    }
    eprintln!("the longest start took {longest:?}");
    let sent = client.sent.load(SeqCst) - before;
    thread::sleep(ms(100));
    let answered = client.answered().len() - from;
    assert!(answered + 2 >= sent, "{answered} of {sent} answered");
});

behind_the_gate!(a_gate_taken_away_is_put_back_and_told, || {
    let _peer = cable();
    let stage = Stage::new(vec![set(&[VIP])]);
    stage.open(ms(20_000));
    let home = stage.run_dir.path().join("bpf");
    assert_eq!(pins(&stage, "s0"), 2);
    match kind() {
        GateKind::Clsact => drop(sh("tc qdisc del dev s0 clsact")),
        GateKind::Nftables => drop(sh("nft flush ruleset")),
        GateKind::Tcx | GateKind::Addresses => {
            for entry in std::fs::read_dir(&home).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none() && !path.ends_with("doors") {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
    }
    let Event::Restored { what, .. } = stage.event().0 else {
        panic!()
    };
    let interfaces = if kind() == GateKind::Nftables {
        "all interfaces"
    } else {
        "s0"
    };
    assert!(
        what.starts_with("the gate on ") && what.contains(interfaces),
        "{what}"
    );
    assert_eq!(pins(&stage, "s0"), 2);
    stage.no_event();
});

behind_the_gate!(every_interface_has_the_gate, || {
    let peer = cable();
    let stage = Stage::new(vec![set(&[VIP])]);
    let echo = echo(&[VIP]);
    // This one comes later.
    sh(&format!(
        "ip link add s1 address 02:00:00:00:00:01 type veth peer name p1
         ip link set p1 netns {}
         echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
         echo 0 > /proc/sys/net/ipv4/conf/s1/rp_filter
         ip link set s1 up",
        peer.tid
    ));
    peer.sh("ip link set p1 up; ip route add 192.0.2.10/32 dev p1 src 192.0.2.99");
    wait_for("the gate on s1", || pins(&stage, "s1") == 2);
    sh("ip address add 192.0.2.10/24 dev s0");
    let client = Client::start(&peer, VIP, "p1");
    assert_eq!(client.count(ms(100)), 0);
    assert_eq!(echo.heard.load(SeqCst), 0);
    let deadline = stage.open(ms(800));
    wait_for("requests through s1", || echo.heard.load(SeqCst) > 0);
    thread::sleep((deadline + ms(50)).since(now()));
    sh("ip address replace 192.0.2.10/24 dev s0");
    let before = echo.heard.load(SeqCst);
    thread::sleep(ms(100));
    assert_eq!(echo.heard.load(SeqCst), before);
    if kind() != GateKind::Tcx {
        return; // nothing is pinned for an interface
    }
    // One made anew has it too, and the old one's is forgotten.
    let pinned = || {
        std::fs::read_dir(stage.run_dir.path().join("bpf"))
            .unwrap()
            .count()
    };
    let with_s1 = pinned();
    sh("ip link del s1");
    wait_for("the end of s1", || pinned() == with_s1 - 2);
    sh("ip link add s1 type veth peer name s2");
    wait_for("the gate on the new s1", || pins(&stage, "s1") == 2);
});

behind_the_gate!(a_clean_stop_takes_the_gate_away, || {
    let peer = cable();
    let mut stage = Stage::new(vec![set(&[VIP])]);
    let _echo = echo(&[VIP]);
    let client = Client::start(&peer, VIP, "p0");
    stage.open(ms(20_000));
    stage.takeover.take().unwrap().close();
    assert!(!here(VIP));
    assert_eq!(client.count(ms(50)), 0);
    takeover::unmount_gate(stage.run_dir.path());
    let home = stage.run_dir.path().join("bpf");
    assert!(!home.exists());
    assert_eq!(sh("nft list tables"), "");
    // What is put there by hand now is nobody's business.
    sh("ip address add 192.0.2.10/24 dev s0");
    wait_for("answers", || client.count(ms(20)) > 0);
});

behind_the_gate!(removing_a_thousand_addresses_delays_no_opening, || {
    let _peer = cable();
    let many: Vec<String> = (0..1000).map(|n| format!("2001:db8:1::{n:x}/64")).collect();
    let texts: Vec<&str> = many.iter().map(String::as_str).collect();
    let mail: VirtualServerName = "mail".parse().unwrap();
    let other = AddressSet {
        virtual_server: mail.clone(),
        ..set(&[VIP])
    };
    let stage = Stage::new(vec![set(&texts), other]);
    let there = || {
        sh("ip -o address show dev s0")
            .matches("2001:db8:1:")
            .count()
    };
    stage.open(ms(60_000));
    stage.takeover().shut(&web());
    stage.takeover().open(&mail, now() + ms(60_000));
    loop {
        match stage.event().0 {
            Event::Shut { .. } => {}
            event => {
                assert_eq!(event, Event::Opened { v: mail.clone() });
                break;
            }
        }
    }
    let left = there();
    assert!(left > 500, "only {left} were left when the other opened");
    wait_for("the removal", || there() == 0);
    assert!(here(VIP));
});

behind_the_gate!(shutting_a_thousand_addresses_waits_for_none, || {
    let _peer = cable();
    let many: Vec<String> = (0..1000)
        .map(|n| format!("198.51.{}.{}/16", 100 + n / 250, 1 + n % 250))
        .collect();
    let texts: Vec<&str> = many.iter().map(String::as_str).collect();
    let stage = Stage::new(vec![set(&texts)]);
    let there = || sh("ip -o address show dev s0").matches(" 198.51.").count();
    stage.open(ms(20_000));
    let before = now();
    stage.takeover().shut(&web());
    // nftables takes a moment, but no longer for many addresses.
    let patience = if kind() == GateKind::Nftables {
        ms(20)
    } else {
        ms(0)
    };
    let told = stage.events.recv_timeout(patience);
    let (event, at) = told.expect("told at once");
    assert_eq!(event, Event::Shut { v: web() });
    eprintln!("told shut after {:?}", at.since(before));
    wait_for("the removal", || there() == 0);
    eprintln!("removed after at most {:?}", now().since(before));
    stage.no_event();
});

#[test]
fn a_user_namespace_has_the_nftables_gate_and_says_so() {
    if std::env::var_os(INSIDE).is_none() {
        return inside(
            "a_user_namespace_has_the_nftables_gate_and_says_so",
            "nftables",
            true,
        );
    }
    let _peer = cable();
    let run_dir = tempfile::tempdir().unwrap();
    let home = GateHome::mount(run_dir.path());
    let (takeover, _) =
        Takeover::start(run_dir.path(), home, vec![set(&[VIP])], None, drop).unwrap();
    let said = takeover.gate_in_force();
    eprintln!("{said}");
    assert!(
        said.starts_with("nftables on all interfaces: eBPF refused: "),
        "{said}"
    );
    assert_eq!(takeover.margin(), ms(20));
    takeover.open(&web(), now() + ms(5000));
    wait_for("the address", || here(VIP));
    takeover.close();
    assert!(!here(VIP));
    assert_eq!(sh("nft list tables"), "");
}
