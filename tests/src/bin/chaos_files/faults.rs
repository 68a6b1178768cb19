//! The servers, broken and mended.

use crate::plan::{Fault, SERVERS};
use lab::{Cluster, Error, FOLDER, LONG, Process, Signal, Spec};
use nix::{
    mount::{MsFlags, mount},
    sys::statvfs::statvfs,
};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Of the disk with the files, and of the one with what syncd knows of them.
const DISK: usize = 256 << 20;

fn failed(what: &Path) -> impl Fn(nix::Error) -> Error {
    let what = what.display().to_string();
    move |e| Error::System {
        what: what.clone(),
        source: e.into(),
    }
}

pub fn disk(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name).join("disk")
}

fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::System {
        what: path.display().to_string(),
        source,
    })
}

fn resize(disk: &Path, size: usize, again: bool) -> Result<(), Error> {
    let options = format!("size={size},mode=755");
    let flags = match again {
        true => MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID,
        false => MsFlags::MS_NOSUID,
    };
    mount(
        Some("disk"),
        disk,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(failed(disk))
}

/// Three servers that keep files alike as soon as they change, each with a disk of its own for them.
pub fn servers() -> Result<Cluster, Error> {
    let spec = Spec {
        servers: SERVERS,
        profile: LONG,
        ..Spec::default()
    };
    let mut cluster = Cluster::prepare(spec)?;
    for server in 0..SERVERS {
        let (disk, files) = (disk(cluster.name(server)), cluster.files(server));
        make_folder(&disk)?;
        resize(&disk, DISK, false)?;
        for folder in [&disk.join("files"), &disk.join("beside"), &files] {
            make_folder(folder)?;
        }
        let none = None::<&str>;
        mount(
            Some(&disk.join("files")),
            &files,
            none,
            MsFlags::MS_BIND,
            none,
        )
        .map_err(failed(&files))?;
    }
    cluster.keep_files(&["change"])?;
    for server in 0..SERVERS {
        resize(&cluster.state_dir(server), DISK, true)?;
        let config = cluster.config_file(server);
        let text = fs::read_to_string(&config).unwrap_or_default();
        // No run asks whether somebody means it.
        cluster.write_config(server, &format!("{text}delete_limit = 100\n"))?;
    }
    cluster.boot()?;
    cluster.settle()?;
    Ok(cluster)
}

/// The processes of syncd: the daemon, or those that serve others.
pub fn syncd(cluster: &Cluster, server: usize, serve: bool) -> Vec<Process> {
    let mut found = cluster.role(server, "syncd");
    found.retain(|p| p.line.iter().any(|word| word == "serve") == serve);
    found
}

/// Until a file is made ready there, or it takes too long.
fn wait_for_stage(cluster: &Cluster, server: usize) {
    let stage = disk(cluster.name(server)).join("files/.standin-stage");
    let staged = || fs::read_dir(&stage).is_ok_and(|mut names| names.next().is_some());
    let start = Instant::now();
    while !staged() && start.elapsed() < Duration::from_secs(4) {
        thread::sleep(Duration::from_micros(300));
    }
}

/// Does it and undoes it; `stalled` while syncd is stopped in the middle of its work.
pub fn play(
    cluster: &mut Cluster,
    server: usize,
    fault: &Fault,
    stalled: impl FnOnce(),
) -> Result<(), Error> {
    match fault {
        Fault::Kill {
            daemon,
            serve,
            busy,
        } => {
            if *busy {
                wait_for_stage(cluster, server);
            }
            for (wanted, serves) in [(daemon, false), (serve, true)] {
                let found = syncd(cluster, server, serves);
                found
                    .iter()
                    .filter(|_| *wanted)
                    .try_for_each(|p| p.signal(Signal::SIGKILL))?;
            }
            Ok(())
        }
        Fault::Stall { lasts, busy } => {
            if *busy {
                wait_for_stage(cluster, server);
            }
            let found = cluster.role(server, "syncd");
            found.iter().try_for_each(|p| p.signal(Signal::SIGSTOP))?;
            if *busy {
                stalled();
            }
            thread::sleep(*lasts);
            found.iter().try_for_each(|p| p.signal(Signal::SIGCONT))
        }
        Fault::Ssh { away } => {
            cluster.stop_ssh(server)?;
            thread::sleep(*away);
            cluster.start_ssh(server)
        }
        Fault::Cable { out } => {
            cluster.net().cable(server, false)?;
            thread::sleep(*out);
            cluster.net().cable(server, true)
        }
        Fault::Full { left, lasts } => {
            let disk = disk(cluster.name(server));
            let found = statvfs(&disk).map_err(failed(&disk))?;
            let used =
                (found.blocks() - found.blocks_free()) as usize * found.fragment_size() as usize;
            // Whoever writes meanwhile makes it too small: then it does not become full this time.
            let _ = resize(&disk, used + left, true);
            thread::sleep(*lasts);
            resize(&disk, DISK, true)
        }
        Fault::Power { off, index_lost } => {
            cluster.power_loss(server)?;
            thread::sleep(*off);
            if *index_lost {
                let known = cluster.state_dir(server).join("sync");
                for file in ["files/index", "files/fresh", "schedule"] {
                    let _ = fs::remove_file(known.join(file));
                }
            }
            cluster.power_on(server)?;
            cluster.start_ssh(server)
        }
    }
}

/// What a server's syncd says of itself, if it does.
pub fn owes(cluster: &Cluster, server: usize) -> Option<bool> {
    let said = cluster.ask(server, &["sync", "status", "--json"]).ok()?;
    let status: serde_json::Value = serde_json::from_slice(&said.stdout).ok()?;
    let sets = status["sets"].as_array()?;
    let owed = |peer: &serde_json::Value| !peer["owed"].is_null();
    Some(sets.iter().any(|set| {
        let mut peers = set["servers"].as_array().into_iter().flatten();
        !set["running"].is_null() || peers.any(owed)
    }))
}

/// Waits until nothing is owed any more for so long.
pub fn quiet(cluster: &Cluster, limit: Duration) -> bool {
    const CALM: u32 = 5;
    let (start, mut calm) = (Instant::now(), 0);
    while calm < CALM {
        if start.elapsed() > limit {
            return false;
        }
        let all = (0..SERVERS).all(|server| owes(cluster, server) == Some(false));
        calm = if all { calm + 1 } else { 0 };
        thread::sleep(Duration::from_secs(1));
    }
    true
}
