//! Another machine has one of the addresses, and keeps silent unless it is asked.

use super::*;

const HOLDS: &str =
    "ip address add 192.0.2.10/32 dev p0; ip address add 2001:db8::10/128 dev p0 nodad";
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn claim(stage: &Stage, of_server: bool) -> IpAddr {
    let Event::ForeignClaim {
        v,
        ip,
        mac,
        of_server: of,
    } = stage.event().0
    else {
        panic!("no claim");
    };
    assert_eq!((v, mac, of), (web(), PEER, of_server));
    ip
}

fn waiting(addresses: &[&str]) -> AddressSet {
    AddressSet {
        on_conflict: OnConflict::Wait,
        ..set(addresses)
    }
}

/// That it must not be opened.
fn refusal(stage: &Stage) {
    let Event::Failed { v, what } = stage.event().0 else {
        panic!("no failure");
    };
    assert_eq!(v, web());
    let expected = "another machine, 02:00:00:00:00:09, has 192.0.2.10, and on_conflict";
    assert!(what.starts_with(expected), "{what}");
}

in_namespace!(a_silent_holder_is_found_by_asking_and_contradicted, || {
    let peer = cable();
    peer.sh(HOLDS);
    let stage = Stage::new(vec![set(&[VIP, VIP6])]);
    stage.open(ms(20_000));
    let frames = peer.frames();
    let mut claimed = [claim(&stage, false), claim(&stage, false)];
    claimed.sort();
    let both = ["192.0.2.10", "2001:db8::10"].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(claimed, both);
    wait_for("the contradiction", || {
        frames.recv_timeout(PATIENCE).unwrap()[..] == GRATUITOUS
    });
    assert!(here(VIP) && here(VIP6));
});

in_namespace!(
    a_server_of_the_cluster_that_still_has_an_address_is_known_as_one,
    || {
        let peer = cable();
        peer.sh(HOLDS);
        sh("ip neighbour replace 192.0.2.99 lladdr 02:00:00:00:00:09 dev s0 nud reachable");
        let stage = Stage::new(vec![waiting(&[VIP])]);
        stage
            .takeover()
            .set_servers(vec!["192.0.2.99".parse().unwrap()]);
        thread::sleep(ms(300));
        stage.open(ms(20_000));
        claim(&stage, true);
        stage.no_event();
        assert!(here(VIP));
    },
    tcx
);

in_namespace!(
    this_machine_is_no_other_holder_by_its_second_interface,
    || {
        let peer = cable();
        sh(&format!(
            "ip link add s1 type veth peer name p1 && ip link set p1 netns {} && ip link set s1 up
             ip address add 192.0.2.12/24 dev s1",
            peer.tid
        ));
        peer.sh(
            "ip link add br0 type bridge && ip link set br0 up && ip link set p1 up
             ip link set p0 master br0 && ip link set p1 master br0",
        );
        let frames = peer.frames();
        let stage = Stage::new(vec![set(&[VIP])]);
        stage.open(ms(20_000));
        // s1 answers: Linux does so for all of its addresses.
        let answers =
            |f: Vec<u8>| f[12..14] == [8, 6] && f[20..22] == [0, 2] && f[28..32] == [192, 0, 2, 10];
        wait_for("an answer", || {
            answers(frames.recv_timeout(PATIENCE).unwrap())
        });
        thread::sleep(ms(100));
        stage.no_event();
    },
    tcx
);

in_namespace!(
    what_another_machine_has_is_left_to_it_if_so_configured,
    || {
        let peer = cable();
        peer.sh(HOLDS);
        let stage = Stage::new(vec![waiting(&[VIP])]);
        // Asked beside the vote: it is not even opened.
        let frames = peer.frames();
        stage.takeover().look_for_others(&web());
        thread::sleep(ms(300));
        stage.takeover().open(&web(), now() + ms(20_000));
        claim(&stage, false);
        refusal(&stage);
        assert!(!here(VIP));
        stage.takeover().shut(&web());
        assert_eq!(stage.event().0, Event::Shut { v: web() });
        assert!(frames.try_iter().all(|f| f[..] != GRATUITOUS));
        stage.takeover.unwrap().close();
        // Nobody had asked: the answer comes after the opening, and ends it.
        let stage = Stage::new(vec![waiting(&[VIP])]);
        stage.open(ms(20_000));
        claim(&stage, false);
        refusal(&stage);
        stage.takeover().shut(&web());
        assert_eq!(stage.event().0, Event::Shut { v: web() });
        assert!(gone(VIP));
    }
);
