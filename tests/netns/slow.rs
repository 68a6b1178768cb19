//! Programs, disks and readers that are slow, greedy or dead, and restarts without end.

use crate::scene::{
    Failure, Outcome, PATIENCE, Two, bounded, ensure, judged, memory, others, patient, undisturbed,
    unlapsed, with,
};
use lab::{Cluster, Hogs, Signal};
use nix::{sys::stat::Mode, unistd::mkfifo};
use protocol::{
    Role,
    local::ctl::{CtlReply, CtlRequest},
};
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

pub(crate) const ROLES: [&str; 4] = ["hbd", "listend", "doctord", "electd"];

fn wrong(e: impl std::fmt::Display) -> Failure {
    Failure::Wrong(e.to_string())
}

fn script(side: &str, name: &str, text: &str) -> Outcome {
    let path = Path::new(lab::FOLDER).join("etc").join(side).join(name);
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
        .map_err(wrong)
}

pub fn hanging_crashing_and_talkative_scripts_disturb_nothing() -> Outcome {
    with(patient(), |cluster| {
        let first = cluster.settle()?;
        for side in ["master.d", "slave.d"] {
            script(side, "10-crash", "#!/bin/sh\nkill -SEGV $$\n")?;
            script(side, "20-no-program", "#!/nonexistent\n")?;
            script(
                side,
                "30-talk",
                "#!/bin/sh\nyes 'a line without any sense' | head -c 50000000\nexit 1\n",
            )?;
            script(
                side,
                "40-hang",
                "#!/bin/sh\n[ \"$1\" = stop ] && exit\ntrap '' TERM\nwhile :; do sleep 1; done\n",
            )?;
        }
        let before: Vec<_> = (0..3).map(|s| memory(cluster, s)).collect();
        let mut master = first;
        for _ in 0..2 {
            let next = others(cluster, master)[0];
            let name = cluster.name(next).to_owned();
            cluster.tell(master, &["promote", &name])?;
            master = cluster.wait_master(0, Some(master))?;
            undisturbed(cluster, |_| {
                thread::sleep(Duration::from_secs(3));
                Ok(())
            })?;
        }
        for (server, before) in before.iter().enumerate() {
            bounded(cluster, server, before)?;
            let log = cluster.run_dir(server).join("scripts.log");
            let length = fs::metadata(&log).map_or(0, |m| m.len());
            ensure(
                length < 8 << 20,
                format!("{} has {length} bytes", log.display()),
            )?;
        }
        Ok(())
    })
}

/// A log that takes nothing more: a pipe that nobody reads, full.
struct DeadLog {
    path: PathBuf,
    _reader: File,
}

impl DeadLog {
    fn make(cluster: &Cluster, server: usize) -> Result<Self, Failure> {
        let path = cluster.config_file(server).with_file_name("log");
        mkfifo(&path, Mode::S_IRWXU).map_err(wrong)?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK);
        let mut pipe = options.open(&path).map_err(wrong)?;
        while pipe.write(&[b'x'; 4096]).is_ok_and(|n| n > 0) {}
        Ok(Self {
            path,
            _reader: pipe,
        })
    }
}

impl Drop for DeadLog {
    fn drop(&mut self) {
        // Or whoever wants to show the log waits for it.
        let _ = fs::remove_file(&self.path);
    }
}

pub fn a_full_disk_and_a_dead_log_disturb_nothing() -> Outcome {
    judged(patient(), Two::Never, |cluster| {
        let logs = (0..3)
            .map(|s| DeadLog::make(cluster, s))
            .collect::<Result<Vec<_>, _>>()?;
        for server in 0..3 {
            cluster.init(server)?;
            cluster.start_server(server)?;
        }
        let master = cluster.settle()?;
        for server in 0..3 {
            let mut file = File::create(cluster.state_dir(server).join("filler")).map_err(wrong)?;
            while file.write_all(&[0; 4096]).is_ok() {}
        }
        unlapsed(cluster, |cluster| {
            for role in ROLES {
                for server in 0..3 {
                    kill(cluster, server, role)?;
                    back(cluster, server, role)?;
                }
            }
            cluster.settle()?;
            Ok(())
        })?;
        for server in 0..3 {
            fs::remove_file(cluster.state_dir(server).join("filler")).map_err(wrong)?;
        }
        cluster.settle()?;
        // An election needs no log either.
        cluster.power_loss(master)?;
        cluster.wait_master(0, Some(master))?;
        drop(logs);
        Ok(())
    })
}

pub fn a_hundred_clients_asking_for_status_disturb_nothing() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        let before = memory(cluster, master);
        let (answered, asked) = (AtomicU64::new(0), AtomicU64::new(0));
        undisturbed(cluster, |cluster| {
            let (run_dir, end) = (
                cluster.run_dir(master),
                Instant::now() + Duration::from_secs(15),
            );
            thread::scope(|scope| {
                for n in 0..100 {
                    let role = [
                        Role::Electd,
                        Role::Hbd,
                        Role::Electd,
                        Role::Doctord,
                        Role::Listend,
                    ][n % 5];
                    let (run_dir, answered, asked) = (&run_dir, &answered, &asked);
                    scope.spawn(move || {
                        while Instant::now() < end {
                            let patience = Duration::from_secs(5);
                            let reply =
                                daemon::ctl::call(run_dir, role, &CtlRequest::Status, patience);
                            asked.fetch_add(1, Ordering::Relaxed);
                            if matches!(reply, Ok(CtlReply::Status(_))) {
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            Ok(())
        })?;
        let (answered, asked) = (answered.into_inner(), asked.into_inner());
        ensure(
            answered > 1000 && answered * 2 > asked,
            format!("only {answered} of {asked} requests were answered"),
        )?;
        let gap = cluster.counter(master, "electd", "beat_gap_max_us");
        ensure(
            gap > 0,
            "status does not tell the longest gap between beats",
        )?;
        bounded(cluster, master, &before)
    })
}

/// What takes as much memory as it gets, and touches all of it, until it may have no more: `--eat BYTES`.
pub fn eat(bytes: &str) -> ExitCode {
    let limit: usize = bytes.parse().unwrap_or(0);
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while eaten.len() << 20 < limit {
        eaten.push(vec![1; 1 << 20]);
    }
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        for block in &mut eaten {
            for page in block.chunks_mut(4096) {
                page[0] = page[0].wrapping_add(1);
            }
        }
    }
    ExitCode::SUCCESS
}

pub fn hogs_and_memory_pressure_disturb_nothing() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        undisturbed(cluster, |_| {
            let _hogs = Hogs::start(8, Duration::from_secs(20))?;
            thread::sleep(Duration::from_secs(20));
            Ok(())
        })?;
        undisturbed(cluster, |_| {
            let available = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let free: u64 = available
                .lines()
                .find_map(|l| {
                    l.strip_prefix("MemAvailable:")?
                        .trim()
                        .strip_suffix(" kB")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            let bytes = (free * 1024 / 2).min(3 << 29).to_string();
            let own = std::env::current_exe().map_err(wrong)?;
            let status = Command::new(own)
                .args(["--eat", &bytes])
                .status()
                .map_err(wrong)?;
            ensure(status.success(), format!("the eater ended with {status}"))
        })?;
        let gap = cluster.counter(master, "electd", "beat_gap_max_us");
        ensure(
            gap >= 100_000,
            format!("the longest gap between beats every 200 ms is told as {gap} microseconds"),
        )
    })
}

// ---- restarts ----------------------------------------------------------------------------------------------------

pub(crate) fn pid(cluster: &Cluster, server: usize, role: &str) -> Option<i32> {
    match &cluster.role(server, role)[..] {
        [one] => Some(one.pid),
        _ => None,
    }
}

/// Kills a role if it runs.
pub(crate) fn kill(cluster: &Cluster, server: usize, role: &str) -> Outcome {
    let before = lab::wait_for("the role runs", PATIENCE, || pid(cluster, server, role))?;
    cluster.kill(server, role, Signal::SIGKILL)?;
    let what = format!("{role} of {} runs again", cluster.name(server));
    lab::wait_for(&what, PATIENCE, || {
        pid(cluster, server, role).filter(|now| *now != before)
    })?;
    Ok(())
}

/// Waits until a role answers.
pub(crate) fn back(cluster: &Cluster, server: usize, role: &str) -> Outcome {
    let all = [
        Role::Main,
        Role::Hbd,
        Role::Listend,
        Role::Doctord,
        Role::Electd,
    ];
    let role = all
        .into_iter()
        .find(|r| r.name() == role)
        .unwrap_or(Role::Main);
    let run_dir = cluster.run_dir(server);
    let what = format!("{role} of {} answers", cluster.name(server));
    lab::wait_for(&what, PATIENCE, || {
        let patience = Duration::from_millis(200);
        daemon::ctl::call(&run_dir, role, &CtlRequest::Status, patience).ok()
    })?;
    Ok(())
}

pub fn a_killed_main_daemon_finds_its_roles_again() -> Outcome {
    with(patient(), |cluster| {
        cluster.settle()?;
        undisturbed(cluster, |cluster| {
            for server in 0..3 {
                let roles = |cluster: &Cluster| ROLES.map(|role| pid(cluster, server, role));
                let before = roles(cluster);
                cluster.send(server, Signal::SIGKILL)?;
                thread::sleep(Duration::from_millis(300));
                cluster.start_server(server)?;
                lab::wait_for("the new main daemon answers", PATIENCE, || {
                    back(cluster, server, "main").ok()
                })?;
                ensure(
                    roles(cluster) == before,
                    format!(
                        "{}: the roles were {before:?}, now {:?}",
                        cluster.name(server),
                        roles(cluster)
                    ),
                )?;
            }
            cluster.settle()?;
            Ok(())
        })?;
        // It watches what it found.
        unlapsed(cluster, |cluster| {
            for role in ROLES {
                kill(cluster, 0, role)?;
                back(cluster, 0, role)?;
            }
            cluster.settle()?;
            Ok(())
        })
    })
}

pub fn rounds_of_restarts_cost_no_takeover() -> Outcome {
    with(patient(), |cluster| {
        cluster.settle()?;
        unlapsed(cluster, |cluster| {
            for _ in 0..10 {
                for server in 0..3 {
                    for role in ROLES {
                        kill(cluster, server, role)?;
                        back(cluster, server, role)?;
                    }
                }
            }
            cluster.settle()?;
            Ok(())
        })
    })
}

pub fn two_roles_killed_at_once_cost_no_takeover() -> Outcome {
    with(patient(), |cluster| {
        let master = cluster.settle()?;
        unlapsed(cluster, |cluster| {
            for server in [master, others(cluster, master)[0]] {
                for (i, one) in ROLES.iter().enumerate() {
                    for two in &ROLES[i + 1..] {
                        let before = [one, two].map(|role| pid(cluster, server, role));
                        for role in [one, two] {
                            cluster.kill(server, role, Signal::SIGKILL)?;
                        }
                        for (role, before) in [one, two].into_iter().zip(before) {
                            lab::wait_for(&format!("{role} runs again"), PATIENCE, || {
                                pid(cluster, server, role).filter(|now| Some(*now) != before)
                            })?;
                            back(cluster, server, role)?;
                        }
                    }
                }
            }
            cluster.settle()?;
            Ok(())
        })
    })
}
