//! Who votes, and what a voter must remember.

use crate::scene::{
    Failure, Outcome, PATIENCE, Two, ensure, judged, no_takeover, nobody, others, with,
};
use lab::{Cluster, Signal, Spec};
use serde_json::Value;
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

/// The command line for `standin COMMAND` on a host, as the server of that name.
fn as_server(cluster: &Cluster, host: usize, name: &str, command: &[&str]) -> Vec<String> {
    let paths = [
        ("--config", cluster.config_file(host)),
        ("--run-dir", cluster.run_dir(host)),
        ("--state-dir", cluster.state_dir(host)),
    ];
    let paths = paths.map(|(option, path)| [option.to_owned(), path.display().to_string()]);
    let mut args: Vec<String> = command.iter().map(|c| (*c).to_owned()).collect();
    args.extend(paths.into_iter().flatten());
    args.extend(["--server".to_owned(), name.to_owned()]);
    args
}

pub fn a_copied_state_dir_makes_no_second_master() -> Outcome {
    let spec = Spec {
        spares: 1,
        ..Spec::default()
    };
    with(spec, |cluster| {
        // The spare is the machine that the master was cloned to: its state-dir, name and address, another MAC address.
        let clone = 3;
        let master = cluster.settle()?;
        let (name, slaves) = (cluster.name(master).to_owned(), others(cluster, master));
        let copied = fs::copy(reservation(cluster, master), reservation(cluster, clone));
        ensure(copied.is_ok(), format!("{copied:?}"))?;
        cluster
            .net()
            .partition(&[&[master, slaves[0]], &[clone, slaves[1]]])?;
        let host = cluster.host(clone);
        let address = format!("{}/24", cluster.server_address(master));
        host.tool(
            "ip",
            &["addr", "flush", "dev", "eth0", "scope", "global"],
            "",
        )?;
        host.tool("ip", &["addr", "add", &address, "dev", "eth0"], "")?;
        let standin = lab::binary("standin")?;
        let mut child = host.spawn(
            &standin,
            &as_server(cluster, clone, &name, &["run"]),
            &[],
            &cluster.run_dir(clone).with_file_name("log"),
        )?;
        let ask = |command: &[&str]| -> Result<String, Failure> {
            let output = cluster
                .host(clone)
                .output(&standin, &as_server(cluster, clone, &name, command))?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr))
        };
        let mark = cluster.net().judge().mark();
        let said = lab::wait_for("the clone hears its half", PATIENCE, || {
            let said = ask(&["status", "--json"]).ok()?;
            let status: Value = serde_json::from_str(&said).ok()?;
            let servers = status["servers"].as_array()?;
            let other = servers
                .iter()
                .find(|s| s["name"] == cluster.name(slaves[1]))?;
            (other["state"] == "alive").then_some(said)
        })?;
        let mac = cluster.mac(master);
        for words in [
            "blank",
            "written on another machine",
            &mac,
            "standin init --adopt",
        ] {
            ensure(
                said.contains(words),
                format!("the clone's status does not say \"{words}\": {said}"),
            )?;
        }
        let checked = ask(&["check"])?;
        ensure(
            checked.contains("written on another machine"),
            format!("check does not say whose the reservation is: {checked}"),
        )?;
        thread::sleep(Duration::from_secs(4));
        ensure(
            cluster.wait_master(0, None)? == master,
            "the master changed",
        )?;
        let moves = cluster.net().judge().since(mark, 0).moves();
        ensure(moves == 0, format!("the address moved {moves} times"))?;
        cluster.host(clone).kill_all()?;
        let ended = child.wait();
        ensure(ended.is_ok(), format!("{ended:?}"))?;
        Ok(())
    })
}

pub fn a_cluster_restored_on_other_machines_goes_on_when_it_is_adopted() -> Outcome {
    judged(Spec::default(), Two::Never, |cluster| {
        for server in 0..3 {
            let other = format!("02:00:00:00:99:{server:02x}");
            let own = cluster.mac(server);
            let set = |mac: &str| {
                let host = cluster.host(server);
                host.tool("ip", &["link", "set", "dev", "eth0", "address", mac], "")
            };
            set(&other)?;
            cluster.init(server)?;
            set(&own)?;
            cluster.net().forget(server)?; // with its MAC address it lost its neighbours
        }
        for server in 0..3 {
            cluster.start_server(server)?;
        }
        for server in 0..3 {
            let name = cluster.name(server).to_owned();
            lab::wait_for(&format!("{name} says that all are blank"), PATIENCE, || {
                let status = cluster.status(server)?.to_string();
                let all = status.contains("so is every other server");
                (all && status.contains("written on another machine")).then_some(())
            })?;
        }
        nobody(cluster, "all are blank", Duration::from_secs(2))?;
        let refused = cluster.ask(0, &["init", "--adopt"])?;
        ensure(
            refused.status.code() == Some(1),
            "adopted under a running electd",
        )?;
        for server in 0..3 {
            cluster.stop(server)?;
            cluster.tell(server, &["init", "--adopt"])?;
        }
        for server in 0..3 {
            cluster.start_server(server)?;
        }
        cluster.settle()?;
        Ok(())
    })
}
