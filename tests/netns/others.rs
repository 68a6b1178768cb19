//! What is promised about the tools themselves.

use crate::scene::{Failure, Outcome, PATIENCE, ensure, with};
use lab::{Keepalived, Spec};
use std::{
    env, fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
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

/// Signals are blocked and beats pass: all serve on, and nobody could take over. Then the packets of one server come from
/// another address.
pub fn what_forbids_a_failover_is_an_alarm_that_comes_and_goes() -> Outcome {
    with(Spec::default(), |cluster| {
        let master = cluster.settle()?;
        let can = |wanted: bool| {
            let what = format!("can_fail_over: {wanted}");
            lab::wait_for(&what, PATIENCE, || {
                (cluster.status(master)?["can_fail_over"] == wanted).then_some(())
            })
        };
        let logged = |line: &str| {
            lab::wait_for(line, PATIENCE, || {
                cluster.log(master).contains(line).then_some(())
            })
        };
        let filter = |server: usize, rules: &str| {
            let host = cluster.host(server);
            host.tool("nft", &["-f", "-"], rules)
        };
        can(true)?;
        filter(
            master,
            "table inet signals {\nchain in {\ntype filter hook input priority 0\n\
             meta l4proto tcp drop\n}\n}\n",
        )?;
        can(false)?;
        logged("alarm: cannot fail over: there is no link for signals (TCP) to ")?;
        let check = cluster.ask(master, &["check"])?;
        let said = String::from_utf8_lossy(&check.stdout);
        ensure(
            check.status.code() == Some(1) && said.contains("WRONG  cannot fail over: "),
            format!("check is content: {said}"),
        )?;
        filter(master, "delete table inet signals\n")?;
        can(true)?;
        logged("over: there is no link for signals (TCP) to ")?;

        let other = (master + 1) % 3;
        let (own, elsewhere) = (cluster.server_address(other), "192.0.2.150");
        filter(
            other,
            &format!(
                "table ip nat {{\nchain out {{\ntype filter hook postrouting priority 0\n\
                 udp dport {} ip saddr {own} ip saddr set {elsewhere}\n}}\n}}\n",
                lab::PORT
            ),
        )?;
        let there = format!(
            "{} is not heard: its packets come from {elsewhere}",
            cluster.name(other)
        );
        let here = format!("{} is heard and does not hear", cluster.name(master));
        for (server, line) in [(master, there.as_str()), (other, here.as_str())] {
            lab::wait_for(line, PATIENCE, || {
                let notes = cluster.status(server)?["notes"].to_string();
                notes.contains(line).then_some(())
            })?;
        }
        Ok(())
    })
}

/// The client has a wrong entry, fresh and good for ten minutes, and hears no broadcast; the new master has
/// never seen it: only the old one's list helps.
pub fn a_client_that_hears_no_broadcast_moves_after_power_loss() -> Outcome {
    with(Spec::default(), |cluster| {
        let old = cluster.settle()?;
        let client = cluster.net().client_host();
        let reachable = "/proc/sys/net/ipv4/neigh/eth0/base_reachable_time_ms";
        client
            .run(|| fs::write(reachable, "600000"))?
            .map_err(|e| Failure::Wrong(format!("{reachable}: {e}")))?;
        client.tool(
            "nft",
            &["-f", "-"],
            "table netdev deaf {\nchain in {\ntype filter hook ingress device eth0 priority 0\n\
             ether daddr ff:ff:ff:ff:ff:ff drop\n}\n}\n",
        )?;
        // The neighbours are read every three seconds, and news are told every five.
        thread::sleep(Duration::from_secs(10));
        let replace = format!(
            "neigh replace {} lladdr {} dev eth0 nud reachable\n",
            cluster.address(0),
            cluster.mac(old)
        );
        cluster.power_loss(old)?;
        let client = cluster.net().client_host();
        client.tool("ip", &["-batch", "-"], &replace)?;
        let new = cluster.wait_master(0, Some(old))?;
        let show = ["neigh", "show", &cluster.address(0).to_string()].map(String::from);
        lab::wait_for("the client's move", PATIENCE, || {
            let output = client.output(Path::new("ip"), &show).ok()?;
            String::from_utf8_lossy(&output.stdout)
                .contains(&cluster.mac(new))
                .then_some(())
        })?;
        lab::wait_for("answers to the client", PATIENCE, || {
            (cluster.net().client(0).silence() < Duration::from_millis(50)).then_some(())
        })?;
        let receipts = lab::wait_for("the receipts in status", PATIENCE, || {
            let status = cluster.status(new)?;
            let clients = status.pointer("/virtual_servers/0/clients")?.clone();
            (clients["answered"].as_u64()? > 0).then_some(clients)
        })?;
        println!("{receipts}");
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

/// What a program says that makes a lab of its own, and ends well.
fn whole_program(program: &str, args: &[&str], input: &str) -> Result<String, Failure> {
    let mut command = Command::new(lab::binary(program)?);
    command.args(args).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |e| Failure::Wrong(format!("{program}: {e}"));
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if said.contains("not permitted here") {
        return Err(Failure::Skip(said.trim().to_owned()));
    }
    ensure(
        output.status.success(),
        format!("{program} ended with {}:\n{said}", output.status),
    )?;
    Ok(said)
}

pub fn the_demo_plays_to_its_end() -> Outcome {
    whole_program("standin", &["lab", "demo"], "").map(drop)
}

pub fn a_person_writes_a_file_in_the_lab_and_reads_it_on_the_others() -> Outcome {
    let typed = "write alpha docs/news it is so\nsync now alpha\nread docs/news\n\
                 write alpha ../news x\nremove bravo docs/news\nsync now bravo\nread docs/news\n";
    let said = whole_program("standin", &["lab"], typed)?;
    if said.contains("files are left out") {
        return Err(Failure::Skip(said));
    }
    for told in ["alpha: it is so", "bravo: it is so", "charlie: it is so"] {
        ensure(said.contains(told), format!("not \"{told}\":\n{said}"))?;
    }
    let gone = said.matches("No such file").count();
    ensure(gone == 3, format!("it was removed from {gone}:\n{said}"))?;
    ensure(
        said.contains("../news: give a name"),
        format!("a name that leads out is taken:\n{said}"),
    )
}

/// Other faults each time; what fails can be had again with the seed printed.
pub fn chaos_for_a_while() -> Outcome {
    whole_program("chaos", &["--seconds", "45"], "").map(drop)
}

pub fn chaos_of_files_for_a_while() -> Outcome {
    whole_program("chaos-files", &["--seconds", "25"], "").map(drop)
}

/// Removes a folder when it goes.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What stays is a copy of some programs in the system's folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies of the programs where every user may execute them.
fn copies() -> Result<Temporary, lab::Error> {
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |source| lab::Error::System { what, source }
    };
    let folder = Temporary(env::temp_dir().join(format!("standin-netns-{}", std::process::id())));
    fs::create_dir(&folder.0).map_err(failed(&folder.0))?;
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&folder.0, open).map_err(failed(&folder.0))?;
    let own = env::current_exe().map_err(failed(Path::new("own program's path")))?;
    fs::copy(&own, folder.0.join("netns")).map_err(failed(&own))?;
    for name in ["standin", "hbd", "listend", "doctord", "electd", "syncd"] {
        let program = lab::binary(name)?;
        fs::copy(&program, folder.0.join(name)).map_err(failed(&program))?;
    }
    Ok(folder)
}

/// As root, gives root away and plays a scenario; an ordinary user does that all the time.
pub fn an_ordinary_user_can_run_a_lab() -> Outcome {
    let root = fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !root {
        return Err(Failure::Skip(
            "all of these tests run as an ordinary user now".to_owned(),
        ));
    }
    let folder = copies()?;
    for scenario in [
        "power_loss_moves_the_address_and_the_old_master_returns_as_slave",
        "a_master_that_loses_its_power_in_a_run_keeps_nothing_occupied",
    ] {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(folder.0.join("netns"))
            .args(["--one", scenario])
            .env("STANDIN_BIN_DIR", &folder.0)
            .current_dir("/")
            .stdin(Stdio::null());
        let output = command
            .output()
            .map_err(|e| Failure::Wrong(format!("setpriv: {e}")))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(0) => {}
            Some(crate::SKIPPED) => return Err(Failure::Skip(said)),
            _ => return Err(Failure::Wrong(said)),
        }
    }
    Ok(())
}
