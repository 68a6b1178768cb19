//! What arrives too late for the old master of a planned handover is sent on to the new one: in order, once, and
//! as it came.

use super::*;
use nix::sys::socket::{setsockopt, sockopt};
use std::{
    io::Write,
    net::{TcpListener, TcpStream},
};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);
const VIPS: [&str; 2] = [VIP, VIP6];

fn ip(address: &str) -> IpAddr {
    address.split('/').next().unwrap().parse().unwrap()
}

/// A third machine on the cable, with the virtual addresses, which says nothing yet.
fn successor(peer: &Peer) -> Peer {
    let next = Peer::new();
    peer.sh(&format!(
        "ip link add m0 link p0 address 02:00:00:00:00:77 type macvlan mode bridge
         ip link set m0 netns {}",
        next.tid
    ));
    next.sh(&format!(
        "ip address add {VIP} dev m0; ip address add {VIP6} dev m0 nodad; ip link set m0 up"
    ));
    next
}

/// It asks for somebody, from both virtual addresses.
fn announce(next: &Peer) {
    next.run(|| {
        for (from, to) in [(VIP, "192.0.2.11"), (VIP6, "2001:db8::11")] {
            let socket = UdpSocket::bind((ip(from), 0)).unwrap();
            let _ = socket.send_to(b"here", (ip(to), 9));
        }
    });
}

/// All that the third machine gets at one virtual address from now on.
fn received(next: &Peer, address: &'static str) -> Receiver<Vec<u8>> {
    let (tell, told) = channel();
    next.run(move || {
        let socket = UdpSocket::bind((ip(address), PORT)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = socket.recv(&mut buffer) {
                if tell.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
    });
    told
}

/// The peer knows who is master, and does not learn that it changes.
fn knows_the_old_one(peer: &Peer) {
    for vip in VIPS {
        let vip = ip(vip);
        peer.sh(&format!(
            "ip neighbour replace {vip} lladdr 02:00:00:00:00:01 dev p0 nud permanent"
        ));
    }
}

/// Datagrams with these numbers; in one piece, of several, as big servers send them.
fn ask(peer: &Peer, to: &'static str, numbers: std::ops::Range<u16>, in_one_piece: bool) {
    peer.run(move || {
        let any: IpAddr = if ip(to).is_ipv6() { "::" } else { "0.0.0.0" }
            .parse()
            .unwrap();
        let socket = UdpSocket::bind((any, 0)).unwrap();
        let bodies = numbers.map(|n| [&n.to_be_bytes()[..], &[7; 998]].concat());
        if in_one_piece {
            setsockopt(&socket, sockopt::UdpGsoSegment, &1000).unwrap();
            let all: Vec<u8> = bodies.flatten().collect();
            socket.send_to(&all, (ip(to), PORT)).unwrap();
        } else {
            for body in bodies {
                socket.send_to(&body, (ip(to), PORT)).unwrap();
            }
        }
    });
}

fn numbers(got: &Receiver<Vec<u8>>, count: usize) -> Vec<u16> {
    let datagrams = (0..count).map(|_| got.recv_timeout(PATIENCE).expect("a late packet"));
    datagrams
        .map(|d| {
            assert_eq!(d.len(), 1000);
            u16::from_be_bytes([d[0], d[1]])
        })
        .collect()
}

fn hand_over(stage: &Stage, patience: Duration) {
    stage.takeover().hand_over(&web(), patience);
    // The successor here has no gate: asked before, it has answered.
    let events = std::iter::repeat_with(|| stage.event().0);
    let mut others = events.skip_while(|e| matches!(e, Event::ForeignClaim { .. }));
    assert_eq!(others.next(), Some(Event::Shut { v: web() }));
}

fn datagrams_follow() {
    let peer = cable();
    let next = successor(&peer);
    knows_the_old_one(&peer);
    let stage = Stage::new(vec![set(&VIPS)]);
    let old = echo(&VIPS);
    stage.open(LONG);
    ask(&peer, VIP, 0..1, false);
    wait_for("the old master serves", || old.heard.load(SeqCst) == 1);
    let got = VIPS.map(|vip| received(&next, vip));

    hand_over(&stage, LONG);
    for vip in VIPS {
        ask(&peer, vip, 1..6, false);
        ask(&peer, vip, 6..20, true);
    }
    wait_for("all are held", || {
        stage.takeover().late_packets().held >= 38
    });
    // Neither an announcement alone nor an election alone is enough.
    announce(&next);
    thread::sleep(ms(50));
    assert_eq!(stage.takeover().late_packets().forwarded, 0);
    stage.takeover().succeeded(&web());
    for got in &got {
        assert_eq!(numbers(got, 19), (1..20).collect::<Vec<_>>());
    }
    // Whoever has not learned it yet is served by the new one, too.
    for (vip, got) in VIPS.iter().zip(&got) {
        ask(&peer, vip, 20..25, false);
        assert_eq!(numbers(got, 5), (20..25).collect::<Vec<_>>());
    }
    for got in &got {
        assert_eq!(got.recv_timeout(ms(50)), Err(RecvTimeoutError::Timeout));
    }
    assert_eq!(old.heard.load(SeqCst), 1, "delivered here, too");
    let late = stage.takeover().late_packets();
    assert_eq!((late.held, late.forwarded, late.dropped), (38, 48, 0));
}

/// The checksum of IP and its kin; 0 over what carries a right one.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The TCP payload of a frame to the virtual address, with right checksums and of a size for a cable.
fn tcp_payload(frame: &[u8]) -> Option<&[u8]> {
    let (packet, v6) = match frame.get(12..14)? {
        [8, 0] if frame[23] == 6 => (&frame[14..], false),
        [0x86, 0xdd] if frame[20] == 6 => (&frame[14..], true),
        _ => return None,
    };
    assert!(frame.len() <= 1514, "{}", frame.len());
    let (addresses, tcp) = if v6 {
        let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        (&packet[8..40], &packet[40..40 + length])
    } else {
        let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        assert_eq!(checksum(&packet[..20]), 0);
        (&packet[12..20], &packet[20..length])
    };
    let pseudo = [addresses, &[0, 6], &(tcp.len() as u16).to_be_bytes(), tcp].concat();
    assert_eq!(checksum(&pseudo), 0);
    Some(&tcp[usize::from(tcp[12] >> 4) * 4..])
}

fn streams_follow() {
    for vip in VIPS {
        let peer = cable();
        let next = successor(&peer);
        knows_the_old_one(&peer);
        let stage = Stage::new(vec![set(&VIPS)]);
        stage.open(LONG);
        let listener = TcpListener::bind((ip(vip), PORT)).unwrap();
        let mut client = peer.run(move || TcpStream::connect((ip(vip), PORT)).unwrap());
        let (_old, _) = listener.accept().unwrap();
        hand_over(&stage, LONG);
        let frames = next.frames();
        // The kernel hands as much over the cable in one piece as the window allows.
        client.set_nonblocking(true).unwrap();
        let sent = client.write(&[5; 100_000]).unwrap();
        assert!(sent > 5000);
        wait_for("some are held", || stage.takeover().late_packets().held > 4);
        stage.takeover().succeeded(&web());
        announce(&next);
        let mut bytes = 0;
        while bytes < 5000 {
            let frame = frames.recv_timeout(PATIENCE).expect("a late frame");
            if frame[..6] == [2, 0, 0, 0, 0, 0x77]
                && let Some(payload) = tcp_payload(&frame)
            {
                assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 1], "whose address is it?");
                assert!(payload.iter().all(|b| *b == 5));
                bytes += payload.len();
            }
        }
        drop(stage);
        // What a killed electd leaves is for one of the same run-dir.
        sh("nft flush ruleset; ip link del s0");
    }
}

fn nobody_comes() {
    let peer = cable();
    knows_the_old_one(&peer);
    let stage = Stage::new(vec![set(&VIPS)]);
    let old = echo(&VIPS);
    stage.open(LONG);
    hand_over(&stage, ms(500));
    ask(&peer, VIP, 0..3, false);
    ask(&peer, VIP6, 0..3, false);
    wait_for("they are dropped", || {
        stage.takeover().late_packets().dropped == 6
    });
    ask(&peer, VIP, 0..3, false);
    thread::sleep(ms(50));
    assert_eq!(old.heard.load(SeqCst), 0);
    // And this server may have the addresses again.
    stage.open(LONG);
    ask(&peer, VIP, 0..1, false);
    wait_for("it serves again", || old.heard.load(SeqCst) == 1);
    assert_eq!(stage.takeover().late_packets().held, 6);
}

/// The tap of this life, if any.
fn taps() -> usize {
    sh("ip -o link show | grep -c standin || true")
        .trim()
        .parse()
        .unwrap()
}

fn killed() {
    let peer = cable();
    knows_the_old_one(&peer);
    let mut stage = Stage::new(vec![set(&VIPS)]);
    let old = echo(&VIPS);
    stage.open(LONG);
    assert_eq!(taps(), 1);
    hand_over(&stage, LONG);
    ask(&peer, VIP, 0..3, false);
    wait_for("they are held", || {
        stage.takeover().late_packets().held == 3
    });
    stage.takeover = None;
    wait_for("the tap goes", || taps() == 0);
    ask(&peer, VIP, 0..3, false);
    assert_eq!(stage.restart(vec![set(&VIPS)]), []);
    assert_eq!(taps(), 1);
    ask(&peer, VIP, 0..3, false);
    thread::sleep(ms(50));
    assert_eq!(stage.takeover().late_packets().held, 0);
    assert_eq!(old.heard.load(SeqCst), 0);
    stage.open(LONG);
    ask(&peer, VIP, 0..1, false);
    wait_for("it serves again", || old.heard.load(SeqCst) == 1);
}

macro_rules! late_packets {
    ($($name:ident: $body:ident)*) => {$(
        #[test]
        fn $name() {
            run(concat!("late_packets::", stringify!($name)), "tcx", $body);
        }
    )*};
}

late_packets! {
    late_datagrams_follow_the_new_master: datagrams_follow
    late_segments_of_streams_follow_the_new_master: streams_follow
    late_packets_are_dropped_if_nobody_takes_over: nobody_comes
    a_killed_electd_holds_nothing: killed
}
