//! Many addresses in one virtual server, many virtual servers: all of them move, and no beat waits for it.

use crate::scene::{Failure, Outcome, ensure, with};
use lab::{Cluster, LONG, Profile, Spec, Stalls, Sweep};
use std::{thread, time::Duration};

const LIMIT: Duration = Duration::from_secs(40);

/// No takeover comes of a stall of this machine, and the election is over in some seconds.
const CALM: Profile = Profile {
    heartbeat: Duration::from_millis(100),
    lease: Duration::from_millis(1500),
    ..LONG
};

/// Power loss of the master of the first virtual server: all addresses that it had answer elsewhere, none in two
/// places, and no beat of the others was late by a lease.
fn all_move(cluster: &mut Cluster) -> Outcome {
    let mut sweep = Sweep::open(cluster.net(), cluster.spec().further())?;
    let holders = sweep.holders(LIMIT)?;
    let stalls = Stalls::start()?;
    let master = cluster.wait_master(0, None)?;
    let swept = thread::scope(|scope| {
        let swept = scope.spawn(|| sweep.back(&holders, master, LIMIT));
        cluster.power_loss(master)?;
        swept
            .join()
            .map_err(|_| Failure::Wrong("the sweep panicked".to_owned()))
    })?;
    ensure(swept.asked > 0, "the master had none of the addresses")?;
    ensure(
        swept.missing == 0,
        format!("not all answer again: {swept:?}"),
    )?;
    let double = sweep.doubly_held();
    ensure(
        double == 0,
        format!("two servers answer for {double} addresses"),
    )?;
    let stall = stalls.take();
    // How late a beat may be depends on the machine; that it comes before any promise ends does not.
    let longest = cluster.spec().profile.lease + stall * 2;
    for server in (0..cluster.spec().servers).filter(|s| *s != master) {
        let gap = Duration::from_micros(cluster.counter(server, "electd", "beat_gap_max_us"));
        ensure(
            gap < longest,
            format!(
                "{gap:?} between two beats of {}; stall {stall:?}",
                cluster.name(server)
            ),
        )?;
        let lost = cluster.counter(server, "electd", "local_unsent_listend_full");
        ensure(lost == 0, format!("{lost} signals had no room"))?;
    }
    cluster.power_on(master)?;
    cluster.settle()?;
    let double = sweep.doubly_held();
    ensure(
        double == 0,
        format!("two servers answer for {double} addresses"),
    )
}

pub fn a_thousand_addresses_move() -> Outcome {
    let spec = Spec {
        profile: CALM,
        further_addresses: 1000,
        ..Spec::default()
    };
    with(spec, all_move)
}

pub fn two_hundred_virtual_servers_move() -> Outcome {
    let spec = Spec {
        profile: CALM,
        further_virtual_servers: 200,
        ..Spec::default()
    };
    with(spec, all_move)
}
