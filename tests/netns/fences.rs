//! What keeps the lease when nobody is left to: each gate of the kernel. The judge of every scenario sees to it that
//! never two servers answer.

use crate::scene::{
    Failure, Outcome, PATIENCE, ensure, gave_up, no_takeover, patient, unlapsed, with_environment,
};
use lab::{Cluster, Signal, Spec};
use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

const GATE: &str = "STANDIN_GATE";
/// In every server's mount namespace, and in ours.
const SWITCH: &str = "STANDIN_TEST_STALL";

/// Plays with that gate in force on all servers; skipped where it is not to be had.
fn behind(spec: Spec, gate: &str, play: impl FnOnce(&mut Cluster) -> Outcome) -> Outcome {
    let stall = stall_file();
    let stall = stall.to_string_lossy();
    with_environment(spec, &[(GATE, gate), (SWITCH, &stall)], |cluster| {
        let said = in_force(cluster, cluster.settle()?);
        let wanted = match gate {
            "nftables" => said.starts_with("nftables"),
            "clsact" => said.starts_with("eBPF on ") && said.contains("clsact"),
            _ => said.starts_with("eBPF on ") && !said.contains("clsact"),
        };
        if !wanted && said.contains(" refused: ") {
            return Err(Failure::Skip(said));
        }
        ensure(wanted, format!("gate: {said}"))?;
        play(cluster)
    })
}

fn stall_file() -> std::path::PathBuf {
    Path::new(lab::FOLDER).join("stall")
}

fn in_force(cluster: &Cluster, server: usize) -> String {
    let status = cluster.status(server).unwrap_or_default();
    let gate = &status["virtual_servers"][0]["gate"];
    gate.as_str().unwrap_or_default().to_owned()
}

fn signal_all(cluster: &Cluster, server: usize, signal: Signal) -> Outcome {
    for process in cluster.host(server).processes() {
        process.signal(signal)?;
    }
    Ok(())
}

/// Nobody is left on the old master but its kernel.
fn silences(gate: &str) -> Outcome {
    behind(Spec::default(), gate, |cluster| {
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            let old = cluster.settle()?;
            signal_all(cluster, old, signal)?;
            cluster.wait_master(0, Some(old))?;
            if signal == Signal::SIGSTOP {
                thread::sleep(3 * cluster.spec().profile.lease);
                signal_all(cluster, old, Signal::SIGCONT)?;
                gave_up(cluster, old)?;
            }
        }
        Ok(())
    })
}

pub fn a_master_whose_roles_all_stop_or_die_is_silenced_by_the_kernel() -> Outcome {
    silences("tcx")
}

pub fn so_does_the_gate_at_clsact() -> Outcome {
    silences("clsact")
}

pub fn so_does_the_gate_of_nftables() -> Outcome {
    silences("nftables")
}

/// The master has just decided to extend its lease, and stands still before it can write so. Meanwhile another is
/// elected. Then the write comes, and the writer dies: nobody can make up for it, and the addresses stay.
fn late_write(gate: &str) -> Outcome {
    behind(Spec::default(), gate, |cluster| {
        for stall_ms in [400, 450, 500] {
            let old = cluster.settle()?;
            fs::write(stall_file(), "stop").map_err(|e| Failure::Wrong(e.to_string()))?;
            lab::wait_for("the stall begins", PATIENCE, || {
                (!stall_file().exists()).then_some(())
            })?;
            let began = Instant::now();
            for role in ["standin", "hbd", "listend", "doctord"] {
                cluster.kill(old, role, Signal::SIGSTOP)?;
            }
            thread::sleep(Duration::from_millis(stall_ms).saturating_sub(began.elapsed()));
            cluster.kill(old, "electd", Signal::SIGCONT)?;
            let address = format!("{}/24", cluster.address(0));
            for _ in 0..50 {
                let ip = ["address", "replace", &address, "dev", "eth0"];
                cluster.host(old).tool("ip", &ip, "")?;
                thread::sleep(Duration::from_millis(10));
            }
            cluster.wait_master(0, Some(old))?;
            for role in ["standin", "hbd", "listend", "doctord"] {
                cluster.kill(old, role, Signal::SIGCONT)?;
            }
            gave_up(cluster, old)?;
        }
        Ok(())
    })
}

pub fn a_stall_before_the_gate_is_written_lets_nothing_past_the_lease() -> Outcome {
    late_write("tcx")
}

pub fn nor_does_one_before_the_gate_of_nftables() -> Outcome {
    late_write("nftables")
}

fn flush(cluster: &Cluster, server: usize) -> Outcome {
    let nft = cluster.host(server);
    let done = nft.run(|| Command::new("nft").args(["flush", "ruleset"]).status())?;
    match done {
        Ok(status) if status.success() => Ok(()),
        other => Err(Failure::Skip(format!("nft flush ruleset: {other:?}"))),
    }
}

/// The gate is put back, and works.
pub fn a_stranger_who_flushes_nftables_changes_nothing() -> Outcome {
    behind(Spec::default(), "nftables", |cluster| {
        let master = cluster.settle()?;
        no_takeover(cluster, |cluster| {
            for _ in 0..5 {
                flush(cluster, master)?;
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        })?;
        lab::wait_for("the log tells of it", PATIENCE, || {
            let log = cluster.log(master);
            log.contains("the gate on all interfaces (nftables) was missing")
                .then_some(())
        })?;
        signal_all(cluster, master, Signal::SIGSTOP)?;
        cluster.wait_master(0, Some(master))?;
        thread::sleep(3 * cluster.spec().profile.lease);
        signal_all(cluster, master, Signal::SIGCONT)?;
        gave_up(cluster, master)
    })
}

pub fn an_electd_that_is_killed_leaves_the_gate_of_nftables_as_it_is() -> Outcome {
    behind(patient(), "nftables", |cluster| {
        unlapsed(cluster, |cluster| {
            for _ in 0..5 {
                // A role that was well for a second is replaced at once.
                thread::sleep(Duration::from_millis(1200));
                let master = cluster.wait_master(0, None)?;
                cluster.kill(master, "electd", Signal::SIGKILL)?;
                lab::wait_for("electd serves again", PATIENCE, || {
                    in_force(cluster, master)
                        .starts_with("nftables")
                        .then_some(())
                })?;
            }
            Ok(())
        })
    })
}
