//! What is promised about the tools themselves.

use crate::scene::{Failure, Outcome, ensure, with};
use lab::{Keepalived, Spec};
use std::{
    env,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

pub fn status_tells_what_it_promises() -> Outcome {
    with(Spec::default(), |cluster| {
        let master = cluster.settle()?;
        for server in 0..3 {
            let status = cluster.status(server).unwrap_or_default();
            let has = |path: &str| status.pointer(path).is_some_and(|v| !v.is_null());
            let fields = [
                "server",
                "cluster",
                "role",
                "term",
                "master",
                "lease_ms",
                "quorum/have",
                "quorum/need",
                "servers/0/name",
                "servers/0/state",
                "servers/0/last_heard_ms",
                "virtual_servers/0/name",
                "virtual_servers/0/role",
                "virtual_servers/0/master",
                "virtual_servers/0/term",
                "virtual_servers/0/addresses/0",
                "roles/0/name",
                "roles/0/pid",
                "roles/0/uptime_s",
                "roles/0/restarts",
            ];
            for field in fields {
                ensure(
                    has(&format!("/{field}")),
                    format!("status --json has no {field}: {status}"),
                )?;
            }
            ensure(
                status["master"] == cluster.name(master),
                format!("wrong master: {status}"),
            )?;
            ensure(
                status["quorum"]["have"] == 3 && status["quorum"]["need"] == 2,
                format!("wrong quorum: {status}"),
            )?;
            let words = cluster.tell(server, &["status"])?;
            ensure(
                words.contains(cluster.name(master)),
                format!("status does not name the master: {words}"),
            )?;
        }
        Ok(())
    })
}

/// The judge must be able to find somebody guilty: keepalived in a partition is.
pub fn the_judge_sees_two_masters_where_there_are_two() -> Outcome {
    let cluster = match Keepalived::start(3, Duration::from_millis(100)) {
        Err(lab::Error::Missing { tool }) => {
            return Err(Failure::Skip(format!("{tool} is not installed")));
        }
        other => other?,
    };
    let master = cluster.settle()?;
    let others: Vec<usize> = (0..3).filter(|s| *s != master).collect();
    ensure(
        !cluster.net().judge().since(0, 0).guilty() || master == 0,
        "two holders before anything happened",
    )?;
    let (mark, client) = (cluster.net().judge().mark(), cluster.net().client(0).mark());
    cluster.net().partition(&[&[master], &others])?;
    thread::sleep(Duration::from_secs(3));
    let (verdict, outage) = (
        cluster.net().judge().since(mark, 0),
        cluster.net().client(0).since(client),
    );
    ensure(
        verdict.guilty(),
        format!("two holders were not seen: {verdict:?}"),
    )?;
    ensure(
        outage.sent > 1000,
        format!(
            "the client sent only {} requests in three seconds",
            outage.sent
        ),
    )
}

pub fn the_demo_plays_to_its_end() -> Outcome {
    let mut command = Command::new(lab::binary("standin")?);
    let output = command.args(["lab", "demo"]).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Failure::Wrong(format!("standin lab demo: {e}")))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if said.contains("not permitted here") {
        return Err(Failure::Skip(said.trim().to_owned()));
    }
    ensure(
        output.status.success(),
        format!("standin lab demo ended with {}:\n{said}", output.status),
    )
}

/// As root, gives root away and plays a scenario; an ordinary user does that all the time.
pub fn an_ordinary_user_can_run_a_lab() -> Outcome {
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !root {
        return Err(Failure::Skip(
            "all of these tests run as an ordinary user now".to_owned(),
        ));
    }
    let program = env::current_exe().map_err(|e| Failure::Wrong(e.to_string()))?;
    let drop = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let readable = Command::new("setpriv")
        .args(drop)
        .arg("test")
        .arg("-x")
        .arg(&program)
        .status();
    if !readable.is_ok_and(|s| s.success()) {
        return Err(Failure::Skip(format!(
            "an ordinary user cannot execute {}",
            program.display()
        )));
    }
    let mut command = Command::new("setpriv");
    command.args(drop).arg(&program).args([
        "--one",
        "power_loss_moves_the_address_and_the_old_master_returns_as_slave",
    ]);
    let output = command
        .current_dir(Path::new("/"))
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|e| Failure::Wrong(format!("setpriv: {e}")))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(crate::SKIPPED) => Err(Failure::Skip(said)),
        _ => Err(Failure::Wrong(said)),
    }
}
