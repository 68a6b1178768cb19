//! A role dies or is replaced, and its work goes on.

use crate::{
    scene::{Outcome, PATIENCE, ensure, gave_up, patient, undisturbed, unlapsed, with},
    slow::{ROLES, back, kill, pid},
};
use lab::{Cluster, Signal};
use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Real-time precedence of whoever looks whether a process is there: above the daemons.
const LOOKING: i32 = 70;

/// Whether the process is there, be it only to be reaped.
fn is_there(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

pub fn a_killed_electd_is_gone_and_back_at_once() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        // The best of some: the machine may stall in any one, but the kernel's wait for packet sockets is in all.
        let mut best = Duration::MAX;
        unlapsed(cluster, |cluster| {
            for _ in 0..8 {
                let old =
                    lab::wait_for("electd runs", PATIENCE, || pid(cluster, master, "electd"))?;
                // Or a busy machine lets whoever looks wait.
                let _ = daemon::sys::scheduler_fifo(LOOKING);
                let start = Instant::now();
                cluster.kill(master, "electd", Signal::SIGKILL)?;
                while is_there(old) {
                    thread::sleep(Duration::from_micros(200));
                }
                best = best.min(start.elapsed());
                let _ = daemon::sys::scheduler_normal();
                back(cluster, master, "electd")?;
                thread::sleep(Duration::from_millis(150));
            }
            Ok(())
        })?;
        ensure(
            best < Duration::from_millis(10),
            format!("a killed electd was reaped after {best:?} at best"),
        )
    })
}

pub fn roles_killed_as_soon_as_they_run_are_always_replaced_at_once() -> Outcome {
    with(patient(), |cluster| {
        cluster.settle()?;
        unlapsed(cluster, |cluster| {
            for _ in 0..20 {
                for server in 0..3 {
                    for role in ROLES {
                        kill(cluster, server, role)?;
                    }
                }
            }
            cluster.settle()?;
            Ok(())
        })?;
        for server in 0..3 {
            let log = cluster.log(server);
            let paused = log.lines().find(|l| l.contains("died often"));
            ensure(paused.is_none(), format!("{paused:?}"))?;
        }
        Ok(())
    })
}

/// Which file the process runs.
fn program(pid: i32) -> io::Result<u64> {
    fs::metadata(Path::new("/proc").join(pid.to_string()).join("exe")).map(|m| m.ino())
}

/// Installs a program over the one of that name, as a package manager does: written beside it, then renamed.
fn install(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = folder.join("new");
    fs::write(&new, content)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::rename(&new, folder.join(name))
}

fn own_programs(cluster: &mut Cluster) -> Result<PathBuf, crate::scene::Failure> {
    let folder = cluster.copy_programs()?;
    for server in 0..3 {
        cluster.stop(server)?;
        cluster.start_server(server)?;
    }
    cluster.settle()?;
    Ok(folder)
}

fn wrong(e: io::Error) -> crate::scene::Failure {
    crate::scene::Failure::Wrong(e.to_string())
}

pub fn new_programs_replace_running_ones_without_a_takeover() -> Outcome {
    with(patient(), |cluster| {
        let folder = own_programs(cluster)?;
        for role in ROLES {
            let content = fs::read(folder.join(role)).map_err(wrong)?;
            install(&folder, role, &content).map_err(wrong)?;
        }
        unlapsed(cluster, |cluster| {
            for server in 0..3 {
                let told = cluster.tell(server, &["restart"])?;
                for role in ROLES {
                    ensure(told.contains(role), format!("not restarted: {told}"))?;
                    let now =
                        lab::wait_for("the role runs", PATIENCE, || pid(cluster, server, role))?;
                    let installed = fs::metadata(folder.join(role)).map_err(wrong)?.ino();
                    ensure(
                        program(now).map_err(wrong)? == installed,
                        format!("{role} of {} runs the old program", cluster.name(server)),
                    )?;
                }
            }
            cluster.settle()?;
            Ok(())
        })?;
        // One alone, and nothing but it.
        let before = ROLES.map(|role| pid(cluster, 0, role));
        cluster.tell(0, &["restart", "doctord"])?;
        let after = ROLES.map(|role| pid(cluster, 0, role));
        let changed: Vec<_> = (0..4).filter(|i| before[*i] != after[*i]).collect();
        ensure(changed == [2], format!("{before:?} became {after:?}"))
    })
}

pub fn a_program_that_does_not_run_replaces_nothing() -> Outcome {
    with(patient(), |cluster| {
        let folder = own_programs(cluster)?;
        install(&folder, "electd", b"#!/bin/sh\nexit 7\n").map_err(wrong)?;
        let before = ROLES.map(|role| pid(cluster, 0, role));
        let no = undisturbed_answer(cluster)?;
        ensure(
            no.contains("electd --version fails") && ROLES.map(|r| pid(cluster, 0, r)) == before,
            format!("restarted although electd does not run: {no}"),
        )
    })
}

fn undisturbed_answer(cluster: &mut Cluster) -> Result<String, crate::scene::Failure> {
    let mut text = String::new();
    undisturbed(cluster, |cluster| {
        let answer = cluster.ask(0, &["restart"])?;
        text = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure(answer.status.code() == Some(1), format!("{answer:?}"))
    })?;
    Ok(text)
}

/// As under a service manager that starts the main daemon again but leaves its children alone.
pub fn a_main_daemon_killed_again_and_again_stops_all_in_the_end() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        undisturbed(cluster, |cluster| {
            let before = ROLES.map(|role| pid(cluster, master, role));
            for _ in 0..5 {
                cluster.send(master, Signal::SIGKILL)?;
                thread::sleep(Duration::from_millis(100)); // RestartSec of the unit
                cluster.start_server(master)?;
                back(cluster, master, "main")?;
            }
            let after = ROLES.map(|role| pid(cluster, master, role));
            ensure(before == after, format!("{before:?} became {after:?}"))
        })?;
        // It found electd running, and starts the next one when that dies.
        unlapsed(cluster, |cluster| {
            kill(cluster, master, "electd")?;
            cluster.settle()?;
            Ok(())
        })?;
        cluster.stop(master)?;
        cluster.wait_master(0, Some(master))?;
        gave_up(cluster, master)
    })
}
