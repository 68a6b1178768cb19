//! Who votes, and what a voter must remember.

use crate::scene::{Outcome, PATIENCE, Two, ensure, judged, no_takeover, nobody, others, with};
use lab::{Cluster, Signal, Spec};
use std::{fs, path::PathBuf, thread, time::Duration};

fn reservation(cluster: &Cluster, server: usize) -> PathBuf {
    cluster.state_dir(server).join("reservation")
}

pub fn a_lost_or_damaged_reservation_makes_a_server_blank_until_the_others_have_told() -> Outcome {
    with(Spec::default(), |cluster| {
        for damaged in [false, true] {
            let master = cluster.settle()?;
            let slaves = others(cluster, master);
            let (forgetful, away) = (slaves[0], slaves[1]);
            cluster.stop(forgetful)?;
            let file = reservation(cluster, forgetful);
            let done = if damaged {
                fs::write(&file, "no reservation at all")
            } else {
                fs::remove_file(&file)
            };
            ensure(done.is_ok(), format!("{}: {done:?}", file.display()))?;
            cluster.power_loss(away)?;
            // Without its vote there is no majority, and it has none until *every* other server has told.
            cluster.start_server(forgetful)?;
            nobody(
                cluster,
                "one voter is away and one is blank",
                Duration::from_secs(4),
            )?;
            cluster.power_on(away)?;
            cluster.settle()?;
            ensure(
                file.exists(),
                "the blank server has made no new reservation",
            )?;
            // Now its vote counts again.
            cluster.power_loss(away)?;
            thread::sleep(Duration::from_secs(2));
            cluster.wait_master(0, None)?;
            cluster.power_on(away)?;
        }
        Ok(())
    })
}

pub fn a_server_is_added_and_another_removed_under_load() -> Outcome {
    with(
        Spec {
            spares: 1,
            ..Spec::default()
        },
        |cluster| {
            let new = 3;
            let master = cluster.settle()?;
            let text = cluster.spec().config(4);
            no_takeover(cluster, |cluster| {
                for server in 0..4 {
                    cluster.write_config(server, &text)?;
                }
                for server in 0..3 {
                    cluster.send(server, Signal::SIGHUP)?;
                }
                cluster.start_server(new)?;
                cluster.settle()?;
                lab::wait_for("delta is added to the roster", PATIENCE, || {
                    cluster.tell(master, &["server", "add", "delta"]).ok()
                })?;
                cluster.settle()?;
                Ok(())
            })?;
            let gone = others(cluster, master)[0];
            let name = cluster.name(gone).to_owned();
            no_takeover(cluster, |cluster| {
                lab::wait_for(
                    &format!("{name} is removed from the roster"),
                    PATIENCE,
                    || cluster.tell(master, &["server", "remove", &name]).ok(),
                )?;
                cluster.stop(gone)?;
                Ok(())
            })?;
            cluster.settle()?;
            // The new voter's vote is needed, and counts.
            cluster.power_loss(master)?;
            cluster.wait_master(0, Some(master))?;
            cluster.power_on(master)?;
            cluster.settle()?;
            Ok(())
        },
    )
}

pub fn the_lease_changes_while_running() -> Outcome {
    with(Spec::default(), |cluster| {
        for (heartbeat, lease) in [("200ms", "1500ms"), ("20ms", "150ms")] {
            no_takeover(cluster, |cluster| {
                let text = cluster.spec().config(3);
                let text = text.replace("\"100ms\"", &format!("\"{heartbeat}\""));
                let text = text.replace("\"500ms\"", &format!("\"{lease}\""));
                // One after the other: meanwhile the servers disagree, and that must not matter.
                for server in 0..3 {
                    cluster.write_config(server, &text)?;
                    cluster.send(server, Signal::SIGHUP)?;
                    thread::sleep(Duration::from_secs(1));
                }
                let wanted = lease.trim_end_matches("ms").parse::<u64>().ok();
                for server in 0..3 {
                    lab::wait_for(
                        &format!("{} uses the new lease", cluster.name(server)),
                        PATIENCE,
                        || (cluster.status(server)?["lease_ms"].as_u64() == wanted).then_some(()),
                    )?;
                }
                Ok(())
            })?;
            let old = cluster.settle()?;
            cluster.power_loss(old)?;
            cluster.wait_master(0, Some(old))?;
            cluster.power_on(old)?;
            cluster.settle()?;
        }
        Ok(())
    })
}

pub fn init_refuses_a_server_that_has_a_reservation() -> Outcome {
    judged(Spec::default(), Two::Never, |cluster| {
        cluster.init(0)?;
        let before = fs::read(reservation(cluster, 0)).ok();
        ensure(before.is_some(), "standin init has written no reservation")?;
        let again = cluster.ask(0, &["init"])?;
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        ensure(
            again.status.code() == Some(1),
            format!("a second init was not refused: {said}"),
        )?;
        ensure(
            said.contains("reservation"),
            format!("the refusal does not name the reservation: {said}"),
        )?;
        ensure(
            fs::read(reservation(cluster, 0)).ok() == before,
            "the refused init changed the reservation",
        )
    })
}
