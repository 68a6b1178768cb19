//! `standin check`: would this server start, and serve?

use crate::{
    addresses::{self, Found},
    failover::{self, Known, Weight},
    host::{Host, SCRIPT_FOLDERS},
};
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::{Config, ConfigError, Server, VirtualServer};
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
use std::{
    collections::BTreeSet, io::ErrorKind, path::Path, process::ExitCode, thread, time::Duration,
};
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
    let only = matches.get_flag("config-only");
    let mut report = Report::default();
    let loaded = match daemon::load_or_kept(&args) {
        Ok(loaded) => loaded,
        Err(e) => return nothing_to_go_by(&args, &e, only, report),
    };
    let config = loaded.config;
    let me = match loaded.me {
        Ok(me) => me,
        Err(why) if only => {
            report.note(why);
            if let Err(e) = key(&config, &mut report) {
                report.refused(&e);
            }
            return report.exit_code();
        }
        Err(why) => return nothing_to_go_by(&args, &why.into(), only, report),
    };
    match loaded.refused {
        None => report.ok(format!(
            "{}: cluster {}, this server is {me}",
            args.config.display(),
            config.cluster.name
        )),
        Some(e) => {
            report.refused(&e);
            report.note("the last good configuration is in force; what follows goes by that");
        }
    }
    if let Err(e) = key(&config, &mut report) {
        report.refused(&e);
    }
    if only {
        return report.exit_code();
    }
    clock(&mut report);
    if let Some(server) = config.server(&me) {
        rights(server, &mut report);
        if !server.witness {
            macs(&config, &mut report);
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
                let tried = [crate::ssh::paths(&args), crate::ssh::reach(&config, &args)];
                for what in tried.into_iter().filter_map(Result::err) {
                    report.wrong(what);
                }
                accounts(&config, &mut report);
            }
        }
        let running = roles(&config, &args.run_dir, &mut report);
        if running {
            local_ways(&config, &args.run_dir, &mut report);
        }
        if !running {
            ports(server, config.cluster.port, &mut report);
        }
        failover(&args, &config, &me, &mut report);
    }
    executables(&config, &mut report);
    folders(&args, &mut report);
    reservation(&args, &config, &me, &mut report);
    report.exit_code()
}

/// There is no configuration that says what else to look at.
fn nothing_to_go_by(args: &Args, why: &Error, only: bool, mut report: Report) -> ExitCode {
    report.refused(why);
    if !only {
        clock(&mut report);
        folders(args, &mut report);
        report.note("all else depends on the configuration: not looked at");
    }
    report.exit_code()
}

#[derive(Default)]
struct Report {
    wrong: usize,
    /// Configuration or key are among it.
    misconfigured: bool,
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

    /// What is wrong with a file, a line for each.
    fn refused(&mut self, e: &Error) {
        let Error::Config(ConfigError { problems }) = e else {
            return self.wrong(e);
        };
        self.misconfigured = true;
        for problem in problems {
            self.wrong(problem);
        }
    }

    fn exit_code(&self) -> ExitCode {
        match (self.misconfigured, self.wrong) {
            (true, _) => ExitCode::from(2),
            (false, 0) => ExitCode::SUCCESS,
            (false, _) => ExitCode::from(1),
        }
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

fn macs(config: &Config, report: &mut Report) {
    for v in &config.virtual_servers {
        let Some(mac) = v.mac else { continue };
        match takeover::check_mac(v.interface.as_str()) {
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

/// Numbers that several names have in the account files that are kept alike.
fn accounts(config: &Config, report: &mut Report) {
    for set in config.sets.iter().filter(|set| set.merge_accounts) {
        let folders: BTreeSet<_> = set.paths.iter().filter_map(|p| p.parent()).collect();
        for folder in folders {
            let mut text = |name: &str| {
                let path = folder.join(name);
                match std::fs::read(&path) {
                    _ if !set.paths.contains(&path) => Vec::new(),
                    Ok(text) => text,
                    Err(e) => {
                        report.wrong(format!("{}: {e}", path.display()));
                        Vec::new()
                    }
                }
            };
            let found = filesync::accounts::duplicates(&text("passwd"), &text("group"));
            for duplicate in found {
                report.note(format!(
                    "set {}: {duplicate}; give one of them another, and its files with it",
                    set.name
                ));
            }
        }
    }
}

fn scripts(config: &Config, report: &mut Report) {
    for part in SCRIPT_FOLDERS {
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

/// What the next failure would meet.
fn failover(args: &Args, config: &Config, me: &ServerName, report: &mut Report) {
    let host = Host::look(config, me);
    let sound = |v: &&VirtualServer| !host.interfaces.contains_key(&v.name);
    if config.server(me).is_some_and(|s| !s.witness) {
        for v in config.virtual_servers.iter().filter(sound) {
            let (name, interface) = (&v.name, &v.interface);
            report.ok(format!(
                "virtual server {name}: interface {interface} is here and up"
            ));
        }
    }
    let answers = failover::ask(&args.run_dir, config);
    let judgement = failover::judge(&Known {
        config,
        now: daemon::now(),
        answers: &answers,
        host: &host,
    });
    if let Some(Detail::Doctord { offsets, .. }) = answers.get(&Role::Doctord).map(|s| &s.detail) {
        let limit = config.time.max_skew.as_nanos();
        for (name, offset) in offsets {
            if u128::from(offset.least_ns()) <= limit {
                report.ok(format!("clock of {name}: {}", offset.in_words()));
            }
        }
    }
    for finding in &judgement.findings {
        match finding.weight {
            Weight::Outage => report.wrong(format!("cannot fail over: {finding}")),
            Weight::Weakness => report.wrong(finding),
            Weight::Remark => report.note(finding),
        }
    }
    if judgement.can(None) == Some(true) {
        report.ok("can fail over");
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

fn folders(args: &Args, report: &mut Report) {
    folder("run-dir", &args.run_dir, report);
    folder("state-dir", &args.state_dir, report);
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
