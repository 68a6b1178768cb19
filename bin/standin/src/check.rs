//! `standin check`: would this server start, and serve?

use crate::addresses::{self, Found};
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::{Config, Server};
use daemon::{
    Args, Error, durable, machine, println,
    privileges::USER,
    sys::{self, Capability},
};
use election::Kept;
use nix::unistd::{AccessFlags, Uid, User, access, setfsgid, setfsuid};
use protocol::{
    Role, ServerName,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::Detail,
    },
};
use std::{io::ErrorKind, path::Path, process::ExitCode, thread, time::Duration};
use takeover::GateKind;

const TIMEOUT: Duration = Duration::from_millis(500);

pub fn command() -> Command {
    Command::new("check")
        .about("Check configuration, key, rights, interfaces and folders of this server")
        .arg(
            Arg::new("config-only")
                .long("config-only")
                .action(ArgAction::SetTrue)
                .help("Only the configuration and the key; touches no network"),
        )
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    let args = crate::args(matches);
    let mut report = Report::default();
    let (config, me) = match daemon::load_config_early(&args) {
        Ok((config, Ok(me))) => (config, me),
        Ok((config, Err(why))) if matches.get_flag("config-only") => {
            report.note(why);
            return match key(&config, &mut report) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => crate::fail(&e),
            };
        }
        Ok((_, Err(why))) => return crate::fail(&why.into()),
        Err(e) => return crate::fail(&e),
    };
    report.ok(format!(
        "{}: cluster {}, this server is {me}",
        args.config.display(),
        config.cluster.name
    ));
    if let Err(e) = key(&config, &mut report) {
        return crate::fail(&e);
    }
    if matches.get_flag("config-only") {
        return ExitCode::SUCCESS;
    }
    clock(&mut report);
    if let Some(server) = config.server(&me) {
        rights(server, &mut report);
        if !server.witness {
            interfaces(&config, &mut report);
            for found in addresses::check(&config, &me) {
                match found {
                    Found::Ok(what) => report.ok(what),
                    Found::Note(what) => report.note(what),
                    Found::Wrong(what) => report.wrong(what),
                }
            }
            gate(&config, &mut report);
            scripts(&config, &mut report);
            if !config.sets.is_empty() {
                for found in crate::ssh::check(&config, &me) {
                    match found {
                        Ok(what) => report.ok(what),
                        Err(what) => report.wrong(what),
                    }
                }
                if let Err(what) = crate::ssh::reach(&config, &args) {
                    report.wrong(what);
                }
            }
        }
        let running = roles(&config, &args.run_dir, &mut report);
        if running {
            local_ways(&config, &args.run_dir, &mut report);
        }
        clocks(&args, &config, &mut report);
        if !running {
            ports(server, config.cluster.port, &mut report);
        }
    }
    executables(&config, &mut report);
    folder("run-dir", &args.run_dir, &mut report);
    folder("state-dir", &args.state_dir, &mut report);
    reservation(&args, &config, &me, &mut report);
    if report.wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

#[derive(Default)]
struct Report {
    wrong: usize,
}

impl Report {
    fn ok(&mut self, what: impl std::fmt::Display) {
        println!("ok     {what}");
    }

    /// Worth knowing, and no reason not to start.
    fn note(&mut self, what: impl std::fmt::Display) {
        println!("note   {what}");
    }

    fn wrong(&mut self, what: impl std::fmt::Display) {
        self.wrong += 1;
        println!("WRONG  {what}");
    }
}

fn key(config: &Config, report: &mut Report) -> Result<(), Error> {
    let keys = daemon::key::load(&config.cluster.key)?;
    let live = keys.open.len();
    report.ok(format!(
        "{}: cluster key, {live} live",
        config.cluster.key.display()
    ));
    Ok(())
}

fn clock(report: &mut Report) {
    match daemon::check_clock() {
        Ok(()) => report.ok("clock: good for leases"),
        Err(e) => report.wrong(e),
    }
}

fn rights(server: &Server, report: &mut Report) {
    let have = sys::capabilities().unwrap_or(0);
    let needed = [
        (Capability::NetAdmin, "CAP_NET_ADMIN"),
        (Capability::NetRaw, "CAP_NET_RAW"),
    ];
    for (capability, name) in needed {
        if sys::has(have, capability) || server.witness {
            continue;
        }
        report.wrong(format!(
            "{name} is missing: electd could not hold an address; run as root"
        ));
    }
    let wanted = [
        (Capability::SysNice, "CAP_SYS_NICE"),
        (Capability::IpcLock, "CAP_IPC_LOCK"),
    ];
    for (capability, name) in wanted {
        if !sys::has(have, capability) {
            report.note(format!(
                "{name} is missing: real time only as far as limits permit"
            ));
        }
    }
}

/// What would keep the lease when electd is killed or stopped.
fn gate(config: &Config, report: &mut Report) {
    let cluster = &config.cluster;
    let have = sys::capabilities().unwrap_or(0);
    let mut refused = Vec::new();
    for kind in GateKind::ALL {
        let ebpf = matches!(kind, GateKind::Tcx | GateKind::Clsact);
        let gate = if ebpf && !sys::has(have, Capability::SysAdmin) {
            Err("CAP_SYS_ADMIN is missing, to mount its file system".to_owned())
        } else {
            takeover::lease_fits(kind, cluster.heartbeat, cluster.lease)
                .and_then(|()| takeover::check_gate(kind))
        };
        match gate {
            Ok(()) => break,
            Err(why) => refused.push((kind, why)),
        }
    }
    let better = takeover::refusals(&refused);
    let ebpf = refused.len() < 2;
    let backstop = match ebpf {
        true => takeover::check_backstop(),
        false => Ok(()),
    };
    let passes_on = ebpf && backstop.is_ok() || refused.len() > 2;
    if !passes_on && let Some(interface) = addresses::forwards_for(config) {
        report.wrong(format!(
            "this server forwards packets, and {interface} is up: what comes by it (containers, guests) does not reach a \
             virtual address while another server is its master; give this server the eBPF gate and nftables (below is \
             what is refused), or let nothing behind it use the virtual addresses (net.ipv4.ip_forward = 0 and \
             net.ipv6.conf.all.forwarding = 0)"
        ));
    }
    if let Err(why) = backstop {
        report.note(format!(
            "gate: no backstop: an interface that comes while electd is stopped or killed answers for the addresses that \
             it then has (nftables refused: {why})"
        ));
    }
    match refused.len() {
        0 => report.ok("gate: eBPF, the kernel keeps the lease"),
        1 => report.ok(format!(
            "gate: eBPF at clsact, the kernel keeps the lease: {better}"
        )),
        2 => report.note(format!(
            "gate: nftables, the kernel keeps the lease: {better}"
        )),
        _ => report.note(format!("gate: addresses only: {better}")),
    }
}

fn interfaces(config: &Config, report: &mut Report) {
    for v in &config.virtual_servers {
        let interface = v.interface.as_str();
        match nix::net::if_::if_nametoindex(interface) {
            Ok(_) => report.ok(format!("virtual server {}: interface {interface} is here", v.name)),
            Err(_) => report.wrong(format!(
                "virtual server {}: no interface {interface} on this host; see `ip link` and mend interface in {}",
                v.name,
                config.file.display()
            )),
        }
        if let Some(mac) = v.mac {
            match takeover::check_mac(interface) {
                Ok(()) => report.ok(format!(
                    "virtual server {}: at MAC address {mac} on whichever server",
                    v.name
                )),
                Err(why) => report.wrong(format!(
                    "virtual server {}: mac: {why} (in {})",
                    v.name,
                    config.file.display()
                )),
            }
        }
    }
}

fn scripts(config: &Config, report: &mut Report) {
    for part in ["master.d", "slave.d"] {
        let folder = config.scripts.directory.join(part);
        if !folder.is_dir() {
            report.note(format!(
                "{}: no such folder, so no role scripts",
                folder.display()
            ));
        }
    }
}

/// Which roles answer; whether any does.
fn roles(config: &Config, run_dir: &Path, report: &mut Report) -> bool {
    let mut running = false;
    for role in std::iter::once(Role::Main).chain(crate::run::roles(config)) {
        match daemon::ctl::call(run_dir, role, &CtlRequest::Status, TIMEOUT) {
            Ok(CtlReply::Status(status)) => {
                running = true;
                report.ok(format!("{role}: runs, pid {}", status.pid));
            }
            Ok(CtlReply::Done(_) | CtlReply::No(_)) | Err(_) => {
                report.note(format!("{role}: does not run"))
            }
        }
    }
    running
}

/// Each role's socket, tried as the user that the roles without privileges are: root may do what they may not.
fn local_ways(config: &Config, run_dir: &Path, report: &mut Report) {
    let Ok(Some(user)) = User::from_name(USER) else {
        return;
    };
    if !Uid::effective().is_root() {
        return report.note(format!(
            "not tried whether user {USER} reaches the roles: run as root"
        ));
    }
    let roles: Vec<Role> = crate::run::roles(config).collect();
    let run_dir = run_dir.to_owned();
    // These belong to a thread alone.
    let tried = thread::spawn(move || {
        setfsgid(user.gid);
        setfsuid(user.uid);
        let call = |role: Role| daemon::ctl::call(&run_dir, role, &CtlRequest::Status, TIMEOUT);
        roles
            .into_iter()
            .map(|role| (role, call(role).err()))
            .collect::<Vec<_>>()
    });
    for (role, failed) in tried.join().unwrap_or_default() {
        match failed {
            None => report.ok(format!("{role}: user {USER} reaches it")),
            Some(e) => report.wrong(format!("{role}, as user {USER}: {e}")),
        }
    }
}

/// How far the other servers' clocks are from this one's.
fn clocks(args: &Args, config: &Config, report: &mut Report) {
    let limit = config.time.max_skew;
    let doctord = daemon::ctl::detail(&args.run_dir, Role::Doctord, TIMEOUT);
    let Some(Detail::Doctord { offsets, .. }) = doctord else {
        return;
    };
    for (name, offset) in &offsets {
        let words = offset.in_words();
        if u128::from(offset.least_ns()) <= limit.as_nanos() {
            report.ok(format!("clock of {name}: {words}"));
        } else {
            report.wrong(format!(
                "clock of {name}: {words}, more than max_skew = {:?}: what both have changed stays in conflict, for \
                 no modification time decides; compare both with a third clock, set the one that is wrong (best while \
                 it holds no address), and let a time daemon or [time] discipline keep it",
                limit
            ));
        }
    }
}

/// The port must be free on the server's own addresses, which must be on this host.
fn ports(server: &Server, port: u16, report: &mut Report) {
    for ip in &server.addresses {
        let bound = crate::run::try_port(*ip, port, true, true);
        match bound {
            Ok(_) => report.ok(format!("address {ip} is here and port {port} free")),
            Err(e) if e.kind() == ErrorKind::AddrInUse => report.wrong(format!(
                "port {port} of {ip} is taken by another program; end it, or choose another port in [cluster]"
            )),
            Err(e) if e.kind() == ErrorKind::AddrNotAvailable => report.wrong(format!(
                "address {ip} of server {} is not on this host; mend its address, or configure the interface",
                server.name
            )),
            Err(e) => report.wrong(format!("port {port} of {ip}: {e}")),
        }
    }
}

fn executables(config: &Config, report: &mut Report) {
    for role in crate::run::roles(config) {
        match crate::child::executable(role) {
            Ok(path) => report.ok(format!("{}: executable", path.display())),
            Err(e) => report.wrong(e),
        }
    }
}

/// The folder, or the nearest one above it that exists, can be written.
fn folder(name: &str, path: &Path, report: &mut Report) {
    let path = if path.is_absolute() {
        path.to_owned()
    } else {
        Path::new(".").join(path)
    };
    let Some(existing) = path.ancestors().find(|p| p.exists()) else {
        return;
    };
    match access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => report.ok(format!("{name} {}: can be written", path.display())),
        Err(e) => report.wrong(format!(
            "{name} {}: {} cannot be written ({e}); run as root, or choose another with --{name}",
            path.display(),
            existing.display()
        )),
    }
}

fn reservation(args: &Args, config: &Config, me: &ServerName, report: &mut Report) {
    let path = args.state_dir.join(durable::RESERVATION);
    let shown = path.display();
    let blank = "this server would be blank until every other one has told what it needs";
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return report.wrong(format!(
                "{shown}: no term reservation; on a new cluster run `standin init` on each server, else {blank}"
            ));
        }
        Err(e) => return report.wrong(format!("{shown}: {e}")),
    };
    let reservation = match Kept::read(&bytes, &machine::present(config, me)) {
        Ok(Kept::Own {
            reservation,
            stored,
            ..
        }) => {
            report.ok(format!("{shown}: terms up to {}", reservation.reserved));
            if stored.is_none() {
                report.note(format!(
                    "{shown}: it names no owner; electd makes it this machine's at its next start"
                ));
            }
            reservation
        }
        Ok(Kept::Foreign { why, .. }) => {
            return report.wrong(format!("{shown}: {}", machine::foreign(&why)));
        }
        Err(e) => return report.wrong(format!("{shown}: {e}; {blank}")),
    };
    let voters = &reservation.roster.voters;
    if !voters.contains(me) {
        report.note(format!(
            "{me} is not a voter yet; run `standin server add {me}` on the master"
        ));
    }
    let listed = |name: &ServerName| config.server(name).is_some();
    for voter in voters.iter().filter(|v| !listed(v)) {
        report.note(format!(
            "voter {voter} is not in {}; run `standin server remove {voter}` on the master",
            config.file.display()
        ));
    }
}
