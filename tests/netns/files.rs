//! Files are alike after an election, and whoever has the last of them wins the next.

use crate::scene::{Failure, Outcome, PATIENCE, Two, ensure, gave_up, judged, patient};
use lab::{Cluster, Error, FOLDER, NAMES, Spec, wait_for};
use nix::mount::{MsFlags, mount};
use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

/// The set's directory: the same path on all servers, and each sees its own there.
fn set() -> PathBuf {
    Path::new(FOLDER).join("files")
}

/// One server's own.
fn files(cluster: &Cluster, server: usize) -> PathBuf {
    Path::new(FOLDER).join(cluster.name(server)).join("files")
}

fn system<T>(what: &str, result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|e| Failure::Wrong(format!("{what}: {e}")))
}

/// SSH servers need users, which a namespace of an ordinary user has not.
fn needs_root() -> Outcome {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().nth(2) == Some("4294967295");
    let sshd = Path::new("/usr/sbin/sshd").exists();
    match whole && sshd {
        true => Ok(()),
        false => Err(Failure::Skip("needs root and an SSH server".into())),
    }
}

/// Programs, keys, directories and configurations of servers that keep files alike.
fn prepare(cluster: &mut Cluster) -> Outcome {
    let bin = cluster.copy_programs()?;
    let real = Path::new(FOLDER).join("real");
    let folder = |path: &Path| {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path);
        system(&path.display().to_string(), made)
    };
    folder(&real)?;
    folder(&set())?;
    folder(Path::new("/run/sshd"))?;
    system("syncd", fs::rename(bin.join("syncd"), real.join("syncd")))?;
    let wrapper = format!(
        "#!/bin/sh\nfor word; do [ \"$last\" = --server ] && server=$word; last=$word; done\n\
         exec unshare -m --propagation private sh -c 'mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"' sh \
         {FOLDER}/$server/files {} {} \"$@\"\n",
        set().display(),
        real.join("syncd").display()
    );
    system("a wrapper", fs::write(bin.join("syncd"), wrapper))?;
    let mode = fs::Permissions::from_mode(0o755);
    system("a wrapper", fs::set_permissions(bin.join("syncd"), mode))?;
    for key in ["host", "user"] {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let made = system(
            "ssh-keygen",
            command.arg(Path::new(FOLDER).join(key)).output(),
        )?;
        ensure(made.status.success(), format!("ssh-keygen: {made:?}"))?;
    }
    let host_key = system(
        "a key",
        fs::read_to_string(Path::new(FOLDER).join("host.pub")),
    )?;
    let mut text = cluster.spec().config(cluster.spec().servers);
    for (place, name) in NAMES[..cluster.spec().servers].iter().enumerate() {
        let named = format!("name = \"{name}\"\n");
        let more = format!(
            "{named}host_key = \"{}\"\npriority = {}\n",
            host_key.trim(),
            100 + 50 * place
        );
        text = text.replacen(&named, &more, 1);
    }
    text += &format!(
        "\n[ssh]\nkey = \"{FOLDER}/user\"\n\n[[sync]]\nname = \"files\"\npath = \"{}\"\non = \"election\"\n",
        set().display()
    );
    for server in 0..cluster.spec().servers {
        cluster.write_config(server, &text)?;
        folder(&files(cluster, server))?;
        // Room for an index.
        let state = cluster.state_dir(server);
        let none: Option<&str> = None;
        mount(none, &state, none, MsFlags::MS_REMOUNT, Some("size=64m"))
            .map_err(|e| Failure::Wrong(format!("{}: {e}", state.display())))?;
        cluster.init(server)?;
    }
    Ok(())
}

/// The SSH server of a server, which ends with whatever else runs there.
fn start_sshd(cluster: &Cluster, server: usize) -> Result<Child, Failure> {
    let user = system(
        "a key",
        fs::read_to_string(Path::new(FOLDER).join("user.pub")),
    )?;
    let own = Path::new(FOLDER).join(cluster.name(server));
    let forced = format!(
        "restrict,command=\"{FOLDER}/bin/syncd serve --config {} --run-dir {} --state-dir {} --server {}\" {user}",
        cluster.config_file(server).display(),
        cluster.run_dir(server).display(),
        cluster.state_dir(server).display(),
        cluster.name(server)
    );
    system("authorized_keys", fs::write(own.join("authorized"), forced))?;
    let options = [
        format!("ListenAddress={}", cluster.server_address(server)),
        format!("HostKey={FOLDER}/host"),
        format!("AuthorizedKeysFile={}", own.join("authorized").display()),
        "StrictModes=no".into(),
        "PidFile=none".into(),
        "UsePAM=no".into(),
        "PermitRootLogin=yes".into(),
    ];
    let mut args: Vec<String> = ["-D", "-e", "-f", "/dev/null"].map(String::from).into();
    args.extend(options.into_iter().flat_map(|o| ["-o".into(), o]));
    let sshd = Path::new("/usr/sbin/sshd");
    Ok(cluster
        .host(server)
        .spawn(sshd, &args, &[], &own.join("log"))?)
}

fn write(cluster: &Cluster, server: usize, name: &str, contents: &str) -> Outcome {
    system(name, fs::write(files(cluster, server).join(name), contents))
}

/// All these servers have exactly these contents there.
fn alike(cluster: &Cluster, servers: &[usize], name: &str, contents: &str) -> Outcome {
    let has = |server: &usize| {
        let read = fs::read_to_string(files(cluster, *server).join(name));
        read.is_ok_and(|read| read == contents)
    };
    wait_for(
        &format!("{name} is {contents} everywhere"),
        PATIENCE,
        || servers.iter().all(has).then_some(()),
    )?;
    Ok(())
}

/// How fresh `of` is, as `by` sees it.
fn fresh(cluster: &Cluster, by: usize, of: usize) -> Option<(u64, u64)> {
    let status = cluster.status(by)?;
    let servers = status["servers"].as_array()?;
    let one = servers.iter().find(|s| s["name"] == cluster.name(of))?;
    Some((
        one["freshness"]["term"].as_u64()?,
        one["freshness"]["run"].as_u64()?,
    ))
}

/// Waits until all these servers are of the same numbered run, newer than `than`.
fn all_fresh(
    cluster: &Cluster,
    servers: &[usize],
    than: (u64, u64),
) -> Result<(u64, u64), Failure> {
    let found = wait_for("all servers are equally fresh", PATIENCE, || {
        let by = servers[0];
        let first = fresh(cluster, by, by).filter(|f| *f > than)?;
        let same = |s: &usize| fresh(cluster, by, *s) == Some(first);
        servers.iter().all(same).then_some(first)
    })?;
    Ok(found)
}

/// The place of `of` in the order of succession, as `by` sees it.
fn rank(cluster: &Cluster, by: usize, of: usize) -> Option<u64> {
    let status = cluster.status(by)?;
    let servers = status["servers"].as_array()?;
    let one = servers.iter().find(|s| s["name"] == cluster.name(of))?;
    one["rank"].as_u64()
}

pub fn files_are_alike_after_an_election_and_a_server_that_missed_a_run_does_not_win() -> Outcome {
    needs_root()?;
    let (alpha, bravo, charlie) = (0, 1, 2);
    judged(patient(), Two::Never, |cluster| {
        prepare(cluster)?;
        for server in [alpha, bravo, charlie] {
            let name = format!("of-{}", cluster.name(server));
            write(cluster, server, &name, "here before")?;
            start_sshd(cluster, server)?;
        }
        for server in [alpha, bravo, charlie] {
            cluster.start_server(server)?;
        }
        let first = cluster.settle()?;
        for name in ["of-alpha", "of-bravo", "of-charlie"] {
            alike(cluster, &[alpha, bravo, charlie], name, "here before")?;
        }
        let run = all_fresh(cluster, &[alpha, bravo, charlie], (0, 0))?;
        if first != alpha {
            cluster.tell(first, &["promote", "alpha"])?;
        }
        cluster.settle()?;
        let run = match first == alpha {
            true => run,
            false => all_fresh(cluster, &[alpha, bravo, charlie], run)?,
        };
        // The one that all would prefer is away for a run.
        cluster.power_loss(charlie)?;
        write(cluster, alpha, "late", "news")?;
        cluster.tell(alpha, &["sync", "now", "--peer", "bravo"])?;
        alike(cluster, &[alpha, bravo], "late", "news")?;
        let run = all_fresh(cluster, &[alpha, bravo], run)?;
        let owed = cluster.tell(alpha, &["sync", "status"])?;
        ensure(
            owed.contains("for "),
            format!("charlie is owed nothing: {owed}"),
        )?;
        // It is back, but nobody reaches its files.
        cluster.power_on(charlie)?;
        cluster.settle()?;
        wait_for("bravo ranks before charlie", PATIENCE, || {
            let ranks = (
                rank(cluster, charlie, bravo)?,
                rank(cluster, charlie, charlie)?,
            );
            (ranks.0 < ranks.1).then_some(())
        })?;
        let behind = fresh(cluster, charlie, charlie);
        ensure(
            behind.is_some_and(|f| f < run && f > (0, 0)),
            format!("charlie remembers what it had, not {behind:?}; the others have {run:?}"),
        )?;
        cluster.power_loss(alpha)?;
        let winner = cluster.wait_master(0, Some(alpha))?;
        ensure(
            winner == bravo,
            "charlie won, although bravo has newer files",
        )?;
        // And now it gets them.
        start_sshd(cluster, charlie)?;
        alike(cluster, &[charlie], "late", "news")?;
        all_fresh(cluster, &[bravo, charlie], run)?;
        // So does the one that was master.
        write(cluster, bravo, "later", "more")?;
        cluster.power_on(alpha)?;
        start_sshd(cluster, alpha)?;
        cluster.settle()?;
        synced(cluster, bravo)?;
        alike(cluster, &[alpha, charlie], "later", "more")?;
        all_fresh(cluster, &[bravo, alpha, charlie], run)?;
        Ok(())
    })
}

pub fn a_master_that_loses_its_power_in_a_run_keeps_nothing_occupied() -> Outcome {
    needs_root()?;
    let all = [0, 1, 2];
    judged(patient(), Two::Never, |cluster| {
        prepare(cluster)?;
        for server in all {
            start_sshd(cluster, server)?;
            cluster.start_server(server)?;
        }
        let master = cluster.settle()?;
        let run = all_fresh(cluster, &all, (0, 0))?;
        let left = crate::scene::others(cluster, master);
        let noise = "head -c 100M /dev/urandom >\"$0\"";
        let large = files(cluster, master).join("large");
        let made = Command::new("sh").args(["-c", noise]).arg(&large).status();
        ensure(system("a large file", made)?.success(), "no large file")?;
        let mut asking = cluster.begin(master, &["sync", "now"])?;
        // In the middle of it: one of the others has begun to write what comes.
        wait_for("a file is on its way", PATIENCE, || {
            let begun = |server: &usize| {
                let stage = files(cluster, *server).join(".standin-stage");
                fs::read_dir(stage).is_ok_and(|mut entries| entries.next().is_some())
            };
            left.iter().any(begun).then_some(())
        })?;
        cluster.power_loss(master)?;
        let _ = asking.wait();
        cluster.wait_master(0, Some(master))?;
        all_fresh(cluster, &left, run)?;
        Ok(())
    })
}

/// What a server makes of a file while it does not hear the other.
fn own(cluster: &Cluster, server: usize, name: &str) -> String {
    format!("{name} of {}", cluster.name(server))
}

/// What `standin sync conflicts` says where this version of a file is, which it lists.
fn kept_aside(cluster: &Cluster, server: usize, name: &str, contents: &str) -> Outcome {
    let listed = cluster.tell(server, &["sync", "conflicts"])?;
    let of = format!(
        "{}/{name}: file of {} bytes",
        set().display(),
        contents.len()
    );
    let mut lines = listed.lines().skip_while(|line| !line.contains(&of));
    let file = lines.nth(1).and_then(|l| l.split_once("its contents: "));
    let read = file.and_then(|(_, file)| fs::read_to_string(file).ok());
    ensure(
        read.as_deref() == Some(contents),
        format!("not kept aside: {of}, \"{contents}\", but {read:?}:\n{listed}"),
    )
}

pub fn what_two_masters_changed_in_a_split_is_alike_after_it_and_nothing_is_lost() -> Outcome {
    needs_root()?;
    let (alpha, bravo) = (0, 1);
    let both = [alpha, bravo];
    let spec = Spec {
        servers: 2,
        quorum: "none",
        ..patient()
    };
    judged(spec, Two::Allowed, |cluster| {
        prepare(cluster)?;
        let alone = both.map(|server| format!("of-{}", cluster.name(server)));
        let before = ["edited", "removed", &alone[alpha], &alone[bravo]];
        for name in before {
            write(cluster, alpha, name, "before")?;
        }
        for server in both {
            start_sshd(cluster, server)?;
            cluster.start_server(server)?;
        }
        cluster.settle()?;
        for name in before {
            alike(cluster, &both, name, "before")?;
        }
        all_fresh(cluster, &both, (0, 0))?;
        cluster.net().partition(&[&[alpha], &[bravo]])?;
        wait_for("both servers serve their side", PATIENCE, || {
            (cluster.net().judge().holders(0) == both).then_some(())
        })?;
        for server in both {
            write(cluster, server, &alone[server], "changed")?;
            for name in ["edited", "made"] {
                write(cluster, server, name, &own(cluster, server, name))?;
            }
        }
        system(
            "remove",
            fs::remove_file(files(cluster, alpha).join("removed")),
        )?;
        write(cluster, bravo, "removed", "changed")?;
        cluster.net().heal()?;
        let master = cluster.settle()?;
        gave_up(cluster, 1 - master)?;
        // Nobody asks for it.
        for name in ["removed", &alone[alpha], &alone[bravo]] {
            alike(cluster, &both, name, "changed")?;
        }
        for name in ["edited", "made"] {
            let read = |server: usize| fs::read_to_string(files(cluster, server).join(name)).ok();
            let won = wait_for(&format!("{name} is alike"), PATIENCE, || {
                read(alpha).filter(|text| read(bravo).as_ref() == Some(text))
            })?;
            let winner = both.into_iter().find(|s| own(cluster, *s, name) == won);
            let Some(winner) = winner else {
                return Err(Failure::Wrong(format!(
                    "{name} is {won}, which nobody wrote"
                )));
            };
            let loser = 1 - winner;
            let lost = own(cluster, loser, name);
            kept_aside(cluster, loser, name, &lost)?;
            let path = set().join(name).display().to_string();
            cluster.tell(loser, &["sync", "restore", &path])?;
            synced(cluster, loser)?;
            alike(cluster, &both, name, &lost)?;
        }
        Ok(())
    })
}

/// `standin sync now` until nothing is left undone: a server that has just come back may not listen yet.
fn synced(cluster: &Cluster, server: usize) -> Result<(), Error> {
    wait_for("all is alike", PATIENCE + Duration::from_secs(30), || {
        let asked = cluster.ask(server, &["sync", "now"]).ok()?;
        asked.status.success().then_some(())
    })
}
