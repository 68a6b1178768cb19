//! Files are alike after an election, and whoever has the last of them wins the next.

use crate::scene::{Failure, Outcome, PATIENCE, Two, ensure, gave_up, judged, patient};
use lab::{Cluster, Error, NAMES, Spec, wait_for};
use std::{fs, process::Command, time::Duration};

fn system<T>(what: &str, result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|e| Failure::Wrong(format!("{what}: {e}")))
}

/// Programs, keys, directories, SSH servers and configurations of servers that keep files alike; the last is preferred.
fn prepare(cluster: &mut Cluster) -> Outcome {
    match cluster.keep_files(&["election"]) {
        Err(Error::Missing { tool }) => return Err(Failure::Skip(format!("needs {tool}"))),
        other => other?,
    }
    let mut text = system("config", fs::read_to_string(cluster.config_file(0)))?;
    for (place, name) in NAMES[..cluster.spec().servers].iter().enumerate() {
        let named = format!("name = \"{name}\"\n");
        let more = format!("{named}priority = {}\n", 100 + 50 * place);
        text = text.replacen(&named, &more, 1);
    }
    for server in 0..cluster.spec().servers {
        cluster.write_config(server, &text)?;
        cluster.init(server)?;
    }
    Ok(())
}

fn write(cluster: &Cluster, server: usize, name: &str, contents: &str) -> Outcome {
    system(name, fs::write(cluster.files(server).join(name), contents))
}

/// All these servers have exactly these contents there.
fn alike(cluster: &Cluster, servers: &[usize], name: &str, contents: &str) -> Outcome {
    let has = |server: &usize| {
        let read = fs::read_to_string(cluster.files(*server).join(name));
        read.is_ok_and(|read| read == contents)
    };
    wait_for(
        &format!("{name} is {contents} everywhere"),
        PATIENCE,
        || servers.iter().all(has).then_some(()),
    )?;
    Ok(())
}

/// `standin check` tells this among other things.
fn checked(cluster: &Cluster, server: usize, what: &str) -> Outcome {
    let said = cluster.ask(server, &["check"])?.stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure(said.contains(what), format!("not \"{what}\": {said}"))
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
    let (alpha, bravo, charlie) = (0, 1, 2);
    judged(patient(), Two::Never, |cluster| {
        prepare(cluster)?;
        for server in [alpha, bravo, charlie] {
            let name = format!("of-{}", cluster.name(server));
            write(cluster, server, &name, "here before")?;
        }
        for server in [alpha, bravo, charlie] {
            cluster.start_server(server)?;
        }
        let first = cluster.settle()?;
        for name in ["of-alpha", "of-bravo", "of-charlie"] {
            alike(cluster, &[alpha, bravo, charlie], name, "here before")?;
        }
        let run = all_fresh(cluster, &[alpha, bravo, charlie], (0, 0))?;
        checked(cluster, alpha, "ok     charlie: its syncd answers")?;
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
        checked(
            cluster,
            alpha,
            "note   files cannot be kept alike with charlie",
        )?;
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
        cluster.start_ssh(charlie)?;
        alike(cluster, &[charlie], "late", "news")?;
        all_fresh(cluster, &[bravo, charlie], run)?;
        // So does the one that was master.
        write(cluster, bravo, "later", "more")?;
        cluster.power_on(alpha)?;
        cluster.start_ssh(alpha)?;
        cluster.settle()?;
        synced(cluster, bravo)?;
        alike(cluster, &[alpha, charlie], "later", "more")?;
        all_fresh(cluster, &[bravo, alpha, charlie], run)?;
        Ok(())
    })
}

/// In the namespace of a server's syncd, which sees its files by a mount of its own.
fn mounts(cluster: &Cluster, server: usize, words: &[&str]) -> Outcome {
    let mut syncd = cluster.role(server, "syncd");
    syncd.retain(|p| p.line.get(1).is_none_or(|word| word != "serve"));
    let [syncd] = &syncd[..] else {
        return Err(Failure::Wrong(format!("not one daemon: {syncd:?}")));
    };
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--mount", "--target", &syncd.pid.to_string()]);
    let done = system("nsenter", nsenter.args(words).status())?;
    ensure(done.success(), format!("{words:?}: {done}"))
}

pub fn a_server_whose_files_are_not_mounted_does_not_win_until_they_are_again() -> Outcome {
    let (alpha, bravo, charlie) = (0, 1, 2);
    let all = [alpha, bravo, charlie];
    judged(patient(), Two::Never, |cluster| {
        prepare(cluster)?;
        write(cluster, alpha, "one", "is enough")?;
        for server in all {
            cluster.start_server(server)?;
        }
        let first = cluster.settle()?;
        let mut run = all_fresh(cluster, &all, (0, 0))?;
        if first != alpha {
            cluster.tell(first, &["promote", "alpha"])?;
            cluster.settle()?;
            run = all_fresh(cluster, &all, run)?;
        }
        let preferred = |better: usize, worse: usize| {
            let (better, worse) = (cluster.name(better), cluster.name(worse));
            let what = format!("{better} ranks before {worse}");
            wait_for(&what, PATIENCE, || {
                let ranks = all.map(|by| {
                    let rank = |of| rank(cluster, by, cluster.named(of)?);
                    Some(rank(better)? < rank(worse)?)
                });
                ranks.iter().all(|ok| *ok == Some(true)).then_some(())
            })
        };
        preferred(charlie, bravo)?;
        let (path, files) = (Cluster::files_path(), cluster.files(charlie));
        let (path, files) = (path.display().to_string(), files.display().to_string());
        mounts(cluster, charlie, &["umount", &path])?;
        preferred(bravo, charlie)?;
        ensure(
            fresh(cluster, alpha, charlie) == Some((0, 0)),
            "what is not there is fresh",
        )?;
        mounts(cluster, charlie, &["mount", "--bind", &files, &path])?;
        preferred(charlie, bravo)?;
        ensure(
            fresh(cluster, alpha, charlie) == Some(run),
            "what is there again is another run's",
        )?;
        mounts(cluster, charlie, &["umount", &path])?;
        preferred(bravo, charlie)?;
        cluster.power_loss(alpha)?;
        let winner = cluster.wait_master(0, Some(alpha))?;
        ensure(winner == bravo, "charlie won, although its files are gone")
    })
}

pub fn a_master_that_loses_its_power_in_a_run_keeps_nothing_occupied() -> Outcome {
    let all = [0, 1, 2];
    judged(patient(), Two::Never, |cluster| {
        prepare(cluster)?;
        for server in all {
            cluster.start_server(server)?;
        }
        let master = cluster.settle()?;
        let run = all_fresh(cluster, &all, (0, 0))?;
        let left = crate::scene::others(cluster, master);
        let noise = "head -c 100M /dev/urandom >\"$0\"";
        let large = cluster.files(master).join("large");
        let made = Command::new("sh").args(["-c", noise]).arg(&large).status();
        ensure(system("a large file", made)?.success(), "no large file")?;
        let mut asking = cluster.begin(master, &["sync", "now"])?;
        // In the middle of it: one of the others has begun to write what comes.
        wait_for("a file is on its way", PATIENCE, || {
            let begun = |server: &usize| {
                let stage = cluster.files(*server).join(".standin-stage");
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
        Cluster::files_path().display(),
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
            fs::remove_file(cluster.files(alpha).join("removed")),
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
            let read = |server: usize| fs::read_to_string(cluster.files(server).join(name)).ok();
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
            let path = Cluster::files_path().join(name).display().to_string();
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
