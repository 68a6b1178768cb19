//! A server that is not master forwards for others: containers, routed guests.

use super::*;

/// Forwards here, and a guest behind s1; the peer, the master for now, has the addresses.
fn guest(peer: &Peer) -> Peer {
    let guest = Peer::new();
    sh(&format!(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         ip link add s1 type veth peer name g0 netns {} && ip link set s1 up
         ip address add 198.51.100.1/24 dev s1; ip address add 2001:db8:1::1/64 dev s1 nodad",
        guest.tid
    ));
    guest.sh("ip link set lo up; ip link set g0 up
         ip address add 198.51.100.2/24 dev g0; ip address add 2001:db8:1::2/64 dev g0 nodad
         ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:1::1");
    peer.sh("ip address add 192.0.2.10/32 dev p0; ip address add 2001:db8::10/128 dev p0 nodad
         ip route add 198.51.100.0/24 via 192.0.2.11; ip -6 route add 2001:db8:1::/64 via 2001:db8::11");
    peer.run(|| drop(echo(&[VIP, VIP6])));
    guest
}

/// Whether a request of the guest's is answered.
fn is_answered(guest: &Peer, to: &'static str) -> bool {
    guest.run(move || {
        let to: IpAddr = to.split('/').next().unwrap().parse().unwrap();
        let any: IpAddr = if to.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(ms(200))).unwrap();
        // The first may wait for a neighbour.
        (0..5).any(|_| {
            socket.send_to(b"?", (to, PORT)).unwrap();
            socket.recv(&mut [0; 8]).is_ok()
        })
    })
}

/// What is for the address goes to that one instead.
fn translate(to: &str) -> String {
    format!(
        "nft -f - <<-END
table ip translated {{
chain pre {{
type nat hook prerouting priority -100
ip daddr 192.0.2.10 udp dport {PORT} dnat to {to}
}}
}}
END"
    )
}

in_namespace!(
    what_a_server_only_passes_on_reaches_the_master_and_is_answered,
    || {
        let peer = cable();
        let guest = guest(&peer);
        let mut stage = Stage::new(vec![set(&[VIP, VIP6])]);
        wait_for("the backstop", || backstop("virtual6") == Some(1));
        for vip in [VIP, VIP6] {
            wait_for(vip, || is_answered(&guest, vip));
        }
        // An address that is here is answered here or nowhere.
        sh("ip address add 192.0.2.10/32 dev s0; ip address add 2001:db8::10/128 dev s0 nodad");
        let own = echo(&[VIP, VIP6]);
        for vip in [VIP, VIP6] {
            assert!(!is_answered(&guest, vip), "{vip}");
        }
        assert_eq!(own.heard.load(SeqCst), 0);
        sh("ip address del 192.0.2.10/32 dev s0; ip address del 2001:db8::10/128 dev s0");
        for vip in [VIP, VIP6] {
            wait_for(vip, || is_answered(&guest, vip));
        }
        assert_eq!(own.heard.load(SeqCst), 0);
        // As master it answers the guest itself.
        peer.sh("ip address del 192.0.2.10/32 dev p0; ip address del 2001:db8::10/128 dev p0");
        stage.open(ms(60_000));
        for vip in [VIP, VIP6] {
            wait_for(vip, || is_answered(&guest, vip));
        }
        assert!(own.heard.load(SeqCst) > 0);
        stage.takeover.take().unwrap().close();
    },
    tcx clsact
);

in_namespace!(
    what_is_translated_to_be_answered_here_does_not_pass,
    || {
        let peer = cable();
        let guest = guest(&peer);
        let _stage = Stage::new(vec![set(&[VIP])]);
        wait_for("the backstop", || backstop("virtual4") == Some(1));
        wait_for(VIP, || is_answered(&guest, VIP));
        // To this server itself, then to a container of its.
        for to in ["198.51.100.1", "203.0.113.2"] {
            let other = Peer::new();
            sh(&format!(
                "ip link add s2 type veth peer name c0 netns {} && ip link set s2 up
                 ip address add 203.0.113.1/24 dev s2",
                other.tid
            ));
            other.sh(
                "ip link set lo up; ip link set c0 up; ip address add 203.0.113.2/24 dev c0
                 ip route add default via 203.0.113.1",
            );
            let heard = match to {
                "198.51.100.1" => echo(&["198.51.100.1"]).heard,
                _ => other.run(|| echo(&["203.0.113.2"]).heard),
            };
            sh(&translate(to));
            assert!(!is_answered(&guest, VIP), "{to}");
            assert_eq!(heard.load(SeqCst), 0, "{to}");
            sh("nft delete table ip translated; ip link del s2");
            wait_for(VIP, || is_answered(&guest, VIP));
        }
    },
    tcx clsact
);

in_namespace!(
    a_container_behind_a_translation_is_under_the_deadline_as_its_server_is,
    || {
        let peer = cable();
        let guest = guest(&peer);
        peer.sh(
            "ip address del 192.0.2.10/32 dev p0
             ip neighbour replace 192.0.2.10 lladdr 02:00:00:00:00:01 dev p0 nud permanent",
        );
        sh(&translate("198.51.100.2"));
        let bind = |ip: &'static str, port| {
            move || {
                let socket = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), port)).unwrap();
                socket.set_read_timeout(Some(ms(300))).unwrap();
                socket
            }
        };
        let client = peer.run(bind("192.0.2.99", 0));
        let server = guest.run(bind("198.51.100.2", PORT));
        let stage = Stage::new(vec![set(&[VIP])]);
        stage.open(ms(60_000));
        let mut buffer = [0; 8];
        let ask = || client.send_to(b"?", ("192.0.2.10", PORT)).unwrap();
        wait_for("a request", || {
            ask();
            server.recv(&mut buffer).is_ok()
        });
        ask();
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"!", from).unwrap();
        client.recv(&mut buffer).unwrap();
        stage.takeover().shut(&web());
        assert_eq!(stage.event().0, Event::Shut { v: web() });
        assert!(gone(VIP));
        // The kernel goes on translating this flow, in both directions.
        server.send_to(b"late", from).unwrap();
        assert!(client.recv(&mut buffer).is_err(), "no answer after the deadline");
        ask();
        assert!(server.recv(&mut buffer).is_err(), "no request after the deadline");
    },
    tcx clsact
);
