//! Servers that do not hear each other.

use crate::scene::{
    Outcome, PATIENCE, Two, ensure, gave_up, judged, no_takeover, nobody, others, with,
};
use lab::Spec;
use std::{thread, time::Duration};

pub fn partition_never_makes_two_masters_and_healing_moves_nothing() -> Outcome {
    with(Spec::default(), |cluster| {
        for _ in 0..2 {
            let old = cluster.settle()?;
            cluster.net().partition(&[&[old], &others(cluster, old)])?;
            cluster.wait_master(0, Some(old))?;
            gave_up(cluster, old)?;
            no_takeover(cluster, |cluster| {
                cluster.net().heal()?;
                cluster.settle()?;
                Ok(())
            })?;
            let served =
                || (cluster.net().client(0).silence() < Duration::from_millis(20)).then_some(());
            lab::wait_for("clients are served after the heal", PATIENCE, served)?;
        }
        // A slave alone changes nothing either.
        let master = cluster.settle()?;
        let slave = others(cluster, master)[0];
        let rest = others(cluster, slave);
        no_takeover(cluster, |cluster| {
            cluster.net().partition(&[&[slave], &rest])?;
            thread::sleep(Duration::from_secs(3));
            cluster.net().heal()?;
            cluster.settle()?;
            Ok(())
        })
    })
}

pub fn lost_beats_make_no_takeover() -> Outcome {
    with(Spec::default(), |cluster| {
        no_takeover(cluster, |cluster| {
            cluster.net().loss(20)?;
            thread::sleep(Duration::from_secs(20));
            Ok(cluster.net().heal()?)
        })
    })
}

pub fn one_way_loss_leaves_one_master() -> Outcome {
    with(Spec::default(), |cluster| {
        // One slave is deaf to the master: the other's acknowledgements are enough.
        let master = cluster.settle()?;
        let slaves = others(cluster, master);
        cluster.net().one_way(master, slaves[0])?;
        thread::sleep(Duration::from_secs(3));
        cluster.wait_master(0, None)?;
        cluster.net().heal()?;
        cluster.settle()?;
        // All slaves are deaf to the master, which hears them: it must give way.
        let master = cluster.settle()?;
        for slave in others(cluster, master) {
            cluster.net().one_way(master, slave)?;
        }
        cluster.wait_master(0, Some(master))?;
        cluster.net().heal()?;
        // The master is deaf to all slaves, which hear it: no acknowledgement, no lease.
        let master = cluster.settle()?;
        for slave in others(cluster, master) {
            cluster.net().one_way(slave, master)?;
        }
        cluster.wait_master(0, Some(master))?;
        cluster.net().heal()?;
        cluster.settle()?;
        Ok(())
    })
}

pub fn quorum_lost_and_regained() -> Outcome {
    with(Spec::default(), |cluster| {
        let master = cluster.settle()?;
        let slaves = others(cluster, master);
        for slave in &slaves {
            cluster.power_loss(*slave)?;
        }
        nobody(
            cluster,
            "only one of three servers lives",
            Duration::from_secs(3),
        )?;
        cluster.power_on(slaves[0])?;
        cluster.wait_master(0, None)?;
        cluster.power_on(slaves[1])?;
        cluster.settle()?;
        // The same by partition: nobody has two others.
        cluster.net().partition(&[&[0], &[1], &[2]])?;
        nobody(cluster, "no server hears another", Duration::from_secs(3))?;
        cluster.net().heal()?;
        cluster.settle()?;
        Ok(())
    })
}

pub fn two_servers_and_a_witness() -> Outcome {
    const WITNESS: usize = 2;
    with(
        Spec {
            witness: true,
            ..Spec::default()
        },
        |cluster| {
            for _ in 0..2 {
                let old = cluster.settle()?;
                ensure(old != WITNESS, "the witness is master")?;
                cluster.power_loss(old)?;
                let new = cluster.wait_master(0, Some(old))?;
                ensure(new != WITNESS, "the witness is master")?;
                cluster.power_on(old)?;
                cluster.settle()?;
            }
            // The witness's vote is needed: without it one server has no majority.
            let master = cluster.settle()?;
            cluster.power_loss(WITNESS)?;
            cluster.power_loss(1 - master)?;
            nobody(
                cluster,
                "one server without witness is no majority",
                Duration::from_secs(3),
            )?;
            cluster.power_on(WITNESS)?;
            cluster.wait_master(0, None)?;
            ensure(
                !cluster.host(WITNESS).has_address(cluster.address(0)),
                "the witness holds the address",
            )
        },
    )
}

pub fn without_quorum_a_split_heals_to_one_master() -> Outcome {
    let spec = Spec {
        servers: 2,
        quorum: "none",
        ..Spec::default()
    };
    judged(spec, Two::Allowed, |cluster| {
        for server in 0..2 {
            cluster.init(server)?;
        }
        for server in 0..2 {
            cluster.start_server(server)?;
        }
        let old = cluster.settle()?;
        // One of two dies: the other takes over without asking.
        cluster.power_loss(old)?;
        cluster.wait_master(0, Some(old))?;
        cluster.power_on(old)?;
        cluster.settle()?;
        // Both serve while they do not hear each other.
        cluster.net().partition(&[&[0], &[1]])?;
        lab::wait_for("both servers serve their side", PATIENCE, || {
            (cluster.net().judge().holders(0) == [0, 1]).then_some(())
        })?;
        cluster.net().heal()?;
        let master = cluster.settle()?;
        gave_up(cluster, 1 - master)?;
        let status = cluster.status(master).unwrap_or_default().to_string();
        ensure(
            status.contains("none"),
            format!("status does not say that this quorum promises nothing: {status}"),
        )
    })
}
