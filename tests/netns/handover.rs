//! A planned handover loses nothing: what comes too late for the old master is kept and sent on to the new one.

use crate::scene::{Outcome, ensure, with};
use lab::{Cluster, Spec, Stalls};
use std::{thread, time::Duration};

/// Requests a millisecond.
const RATE: u32 = 10;
const ROUNDS: usize = 6;
/// Replies have so long to leave before the gate shuts, and are lost if the service takes longer: as it does where the
/// machine itself stands still.
const STALL_MAX: Duration = Duration::from_millis(1);
/// Rounds spoilt by stalls are played again, but not for ever.
const SPOILT_MAX: usize = 20;

/// How often a kernel without a free processor was not ready itself: that is none of standin's either.
fn unready(cluster: &Cluster) -> usize {
    let logs = cluster.tails(10_000);
    logs.matches("has not taken the IPv6 addresses").count()
}

fn late_packets(cluster: &Cluster, what: &str) -> u64 {
    let servers = 0..cluster.spec().servers;
    servers.map(|s| cluster.counter(s, "electd", what)).sum()
}

/// Handovers from each to the next while clients ask all the time.
fn hand_round(cluster: &mut Cluster) -> Outcome {
    let stalls = Stalls::start()?;
    cluster.net().client(0).rate(RATE);
    let (mut fine, mut spoilt) = (0, 0);
    while fine < ROUNDS {
        let master = cluster.settle()?;
        let next = (master + 1) % cluster.spec().servers;
        let unready_before = unready(cluster);
        stalls.take();
        let mark = cluster.net().client(0).mark();
        let name = cluster.name(next).to_owned();
        let accepted = cluster.ask(master, &["promote", &name])?.status.success();
        if accepted {
            cluster.wait_master(0, Some(master))?;
        }
        thread::sleep(Duration::from_millis(300));
        let seen = cluster.net().client(0).since(mark);
        let stall = stalls.take();
        // A successor that was just stalled is not ready, and the master stays.
        let disturbed = stall > STALL_MAX || unready(cluster) > unready_before;
        if !accepted || (seen.lost > 0 && disturbed) {
            spoilt += 1;
            ensure(
                spoilt < SPOILT_MAX,
                format!("this machine stands still too often; the last time for {stall:?}"),
            )?;
            continue;
        }
        ensure(
            seen.lost == 0,
            format!(
                "{} of {} requests were lost in handover {fine}; late packets held {}, sent on {}, dropped {}; stall \
                 {stall:?}",
                seen.lost,
                seen.sent,
                late_packets(cluster, "late_packets_held"),
                late_packets(cluster, "late_packets_forwarded"),
                late_packets(cluster, "late_packets_dropped"),
            ),
        )?;
        fine += 1;
    }
    ensure(
        late_packets(cluster, "late_packets_forwarded") > 0,
        "no packet was late: nothing was tested",
    )
}

pub fn handovers_lose_no_request() -> Outcome {
    with(Spec::default(), hand_round)
}

pub fn handovers_lose_no_request_over_ipv6() -> Outcome {
    let spec = Spec {
        ipv6: true,
        ..Spec::default()
    };
    with(spec, hand_round)
}
