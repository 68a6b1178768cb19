//! `standin status`: what the roles of this server tell, put together.

use crate::{
    failover::{self, Judgement, Known, Weight},
    host::Host,
    verdict,
};
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::Config;
use daemon::{STATUS_GROUP, ctl::CallError, eprintln, print, println};
use protocol::{
    BootTime, Role, ServerName,
    local::{
        ctl::{CtlReply, CtlRequest},
        ring::HealthState,
        status::{
            ChildStatus, ClientsView, Detail, ElectdStatus, OffsetStatus, RoleStatus, ScriptsView,
            ServerView, VirtualServerView,
        },
    },
};
use serde_json::{Map, Value, json};
use std::{
    cell::OnceCell,
    collections::BTreeMap,
    fmt::{self, Write as _},
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

/// The main daemon and those that it runs.
fn roles(config: &Config) -> impl Iterator<Item = Role> {
    std::iter::once(Role::Main).chain(crate::run::roles(config))
}

/// A role that does not answer by then is shown as down.
const TIMEOUT: Duration = Duration::from_millis(500);

pub fn command() -> Command {
    Command::new("status")
        .about("Who is master, who is alive, and how this server's roles are; exit 1 if electd does not answer")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("For programs; stable keys"))
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .conflicts_with("json")
                .help("One line for a monitoring system; exit 0 fine, 1 degraded, 2 nobody is master, 3 unknown"),
        )
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    let args = crate::args(matches);
    let check = matches.get_flag("check");
    // The daemons serve whatever the file says by now.
    let loaded = daemon::load_or_kept(&args).and_then(|l| Ok((l.config, l.me?, l.refused)));
    let (config, me, refused) = match loaded {
        Ok(found) => found,
        Err(e) if check => return verdict::end(verdict::State::Unknown, &e.to_string()),
        Err(e) => return crate::fail(&e),
    };
    if let Some(e) = refused.as_ref().filter(|_| !check) {
        eprintln!("standin: {e}\nstandin: the daemons go on with the last good configuration");
    }
    let mut picture = Picture {
        config: &config,
        me: &me,
        now: daemon::now(),
        answers: BTreeMap::new(),
        failures: BTreeMap::new(),
        refused: refused.map(|e| e.to_string()),
        maintenance_since: daemon::maintenance::since(&args.state_dir),
        host: Host::look(&config, &me),
        judgement: OnceCell::new(),
    };
    for role in roles(&config) {
        match daemon::ctl::call(&args.run_dir, role, &CtlRequest::Status, TIMEOUT) {
            Ok(CtlReply::Status(status)) => drop(picture.answers.insert(role, *status)),
            Ok(CtlReply::No(why) | CtlReply::Done(why)) => {
                picture.failures.insert(role, Silence::Said(why));
            }
            Err(e) => drop(picture.failures.insert(role, Silence::Call(e))),
        }
    }
    picture.now = daemon::now();
    picture.complete_addresses();
    if check {
        return verdict::run(&picture);
    }
    if matches.get_flag("json") {
        println!("{:#}", picture.json());
    } else {
        print!("{}", picture.text());
    }
    if picture.electd().is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Why a role did not tell its status.
pub(crate) enum Silence {
    /// It was not to be asked.
    Call(CallError),
    /// It gave another answer.
    Said(String),
}

impl Silence {
    fn is_forbidden(&self) -> bool {
        matches!(self, Self::Call(CallError::NotPermitted(..)))
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(CallError::NotPermitted(..)) => write!(
                f,
                "not known: not permitted; run this command as root, or as a member of group {STATUS_GROUP}"
            ),
            Self::Call(e) => e.fmt(f),
            Self::Said(why) => f.write_str(why),
        }
    }
}

/// Everything known at one moment.
pub(crate) struct Picture<'a> {
    config: &'a Config,
    me: &'a ServerName,
    now: BootTime,
    answers: BTreeMap<Role, RoleStatus>,
    /// Why a role did not answer.
    failures: BTreeMap<Role, Silence>,
    /// What is wrong with the file, if the last good one is shown.
    refused: Option<String>,
    /// In seconds since 1970, as far as this user may read it.
    maintenance_since: Option<u64>,
    host: Host,
    /// What all of it says about a failover, once it is complete.
    judgement: OnceCell<Judgement>,
}

impl Picture<'_> {
    pub(crate) fn electd(&self) -> Option<&ElectdStatus> {
        match &self.answers.get(&Role::Electd)?.detail {
            Detail::Electd(status) => Some(status),
            Detail::Hbd { .. }
            | Detail::Listend { .. }
            | Detail::Doctord { .. }
            | Detail::Main { .. }
            | Detail::Syncd(_) => None,
        }
    }

    /// Why electd told nothing.
    pub(crate) fn silence(&self) -> Option<&Silence> {
        self.failures.get(&Role::Electd)
    }

    /// The roles that cannot have done their work just now.
    pub(crate) fn down(&self) -> impl Iterator<Item = Role> {
        let down = self.failures.iter().filter(|(_, why)| !why.is_forbidden());
        down.map(|(role, _)| *role)
    }

    pub(crate) fn me(&self) -> &ServerName {
        self.me
    }

    /// electd tells the first of many addresses; the others stand in the file, if it is the one that electd has.
    fn complete_addresses(&mut self) {
        let electd = self.answers.get_mut(&Role::Electd).map(|s| &mut s.detail);
        let Some(Detail::Electd(status)) = electd else {
            return;
        };
        for v in &mut status.virtual_servers {
            let mut written = self.config.virtual_servers.iter();
            let Some(written) = written.find(|w| w.name == v.name) else {
                continue;
            };
            let all: Vec<_> = written.addresses.iter().map(ToString::to_string).collect();
            if u32::try_from(all.len()) == Ok(v.addresses_total) && all.starts_with(&v.addresses) {
                v.addresses = all;
            }
        }
    }

    fn offset(&self, server: &ServerName) -> Option<OffsetStatus> {
        if server == self.me {
            return Some(OffsetStatus {
                offset_ns: 0,
                bound_ns: 0,
                rate_ppb: 0,
            });
        }
        let Detail::Doctord { offsets, .. } = &self.answers.get(&Role::Doctord)?.detail else {
            return None;
        };
        offsets
            .iter()
            .find(|(name, _)| name == server)
            .map(|(_, offset)| *offset)
    }

    fn children(&self) -> &[ChildStatus] {
        match self.answers.get(&Role::Main).map(|s| &s.detail) {
            Some(Detail::Main { roles }) => roles,
            _ => &[],
        }
    }

    fn virtual_servers(&self) -> &[VirtualServerView] {
        self.electd().map_or(&[], |e| &e.virtual_servers)
    }

    /// The highest role this server has for any virtual server.
    fn role(&self) -> &str {
        let Some(electd) = self.electd() else {
            return match self.silence() {
                Some(silence) if silence.is_forbidden() => "unknown",
                Some(_) | None => "down",
            };
        };
        let has = |role: &str| electd.virtual_servers.iter().any(|v| v.role == role);
        match () {
            () if has("master") => "master",
            () if has("candidate") => "candidate",
            () if electd.witness => "witness",
            () => "slave",
        }
    }

    /// This server if it is master of anything, else the first master known, and that one's term.
    fn master(&self) -> Option<(&ServerName, u64)> {
        let all = self.virtual_servers();
        let first = all
            .iter()
            .find(|v| v.master.as_ref() == Some(self.me))
            .or_else(|| all.iter().find(|v| v.master.is_some()));
        first.and_then(|v| v.master.as_ref().map(|m| (m, v.term.0)))
    }

    fn judgement(&self) -> &Judgement {
        self.judgement.get_or_init(|| {
            failover::judge(&Known {
                config: self.config,
                now: self.now,
                answers: &self.answers,
                host: &self.host,
            })
        })
    }

    fn notes(&self) -> Vec<String> {
        let down = self.failures.values().filter(|why| !why.is_forbidden());
        let forbidden = self.failures.values().find(|why| why.is_forbidden());
        let silent = down.chain(forbidden).map(ToString::to_string);
        // They may be so for good, and on purpose: nothing for a monitoring system.
        let files = match self.answers.get(&Role::Syncd).map(|s| &s.detail) {
            Some(Detail::Syncd(syncd)) => crate::sync::notes(syncd).collect(),
            _ => Vec::new(),
        };
        silent
            .chain(self.told(Weight::Remark))
            .chain(files)
            .collect()
    }

    /// What an operator should know, of the roles that answered; of a failover what weighs so much at least.
    pub(crate) fn told(&self, least: Weight) -> impl Iterator<Item = String> {
        let notes = self
            .answers
            .iter()
            .flat_map(|(role, s)| s.notes.iter().map(move |n| format!("{role}: {n}")));
        let scripts = self.virtual_servers().iter().filter_map(failed_scripts);
        let found = self.judgement().findings.iter();
        let found = found.filter(move |f| f.weight <= least);
        let found = found.map(|f| format!("failover: {f}"));
        self.refused
            .iter()
            .cloned()
            .chain(notes)
            .chain(scripts)
            .chain(found)
    }

    /// By this server's clock, which may have been set since.
    fn wall(&self, at: BootTime) -> Duration {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        now.saturating_sub(self.now.since(at))
    }

    /// When the last change was; since electd runs there was none before.
    fn changed(&self, v: &VirtualServerView) -> Option<BootTime> {
        let started = self.answers.get(&Role::Electd).map(|s| s.started);
        v.changed.0.or(started)
    }

    fn last_change(&self, v: &VirtualServerView) -> String {
        let Some(at) = self.changed(v) else {
            return v.reason.clone();
        };
        let ago = uptime(self.now.since(at));
        let when = humantime::format_rfc3339_seconds(UNIX_EPOCH + self.wall(at));
        format!("{when} ({ago} ago): {}", v.reason)
    }

    fn last_heard_ms(&self, server: &ServerView) -> Option<u128> {
        server.last_heard.map(|at| self.now.since(at).as_millis())
    }

    fn json(&self) -> Value {
        let electd = self.electd();
        let lease = electd.map_or(self.config.cluster.lease, |e| e.lease);
        let counters = self
            .answers
            .iter()
            .map(|(role, s)| (role.name().to_owned(), json!(s.counters)));
        json!({
            "server": self.me.as_str(),
            "cluster": self.config.cluster.name,
            "role": self.role(),
            "term": self.master().map(|(_, term)| term).or_else(|| self.virtual_servers().iter().map(|v| v.term.0).max()),
            "master": self.master().map(|(name, _)| name.as_str()),
            "lease_ms": u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            "quorum": {
                "have": electd.map(|e| e.quorum_have),
                "need": electd.map(|e| e.quorum_need),
                "rule": electd.map_or_else(|| self.config.cluster.quorum.to_string(), |e| e.quorum.clone()),
            },
            "servers": electd.map_or(&[][..], |e| &e.servers).iter().map(|s| self.server_json(s)).collect::<Vec<_>>(),
            "virtual_servers": self.virtual_servers().iter().map(|v| self.virtual_server_json(v)).collect::<Vec<_>>(),
            "roles": roles(self.config).map(|role| self.role_json(role)).collect::<Vec<_>>(),
            "standing": electd.map(|e| e.standing.as_str()),
            "maintenance": electd.map(|e| e.maintenance),
            "maintenance_since": electd.filter(|e| e.maintenance).and(self.maintenance_since),
            "witness": electd.map(|e| e.witness),
            "roster": electd.map(|e| e.roster.to_string()),
            "voters": electd.map(|e| e.voters.iter().map(ServerName::as_str).collect::<Vec<_>>()),
            "paths": self.paths_json(),
            "links": self.links_json(),
            "interfaces": self.interfaces_json(),
            "can_fail_over": self.judgement().can(None),
            "counters": counters.collect::<Map<String, Value>>(),
            "notes": self.notes(),
        })
    }

    fn server_json(&self, s: &ServerView) -> Value {
        let offset = self.offset(&s.name);
        json!({
            "name": s.name.as_str(),
            "state": s.state.name(),
            "rank": s.rank,
            "offset_us": offset.map(|o| o.offset_ns as f64 / 1000.0),
            "offset_bound_us": offset.map(|o| o.bound_ns.div_ceil(1000)),
            "last_heard_ms": self.last_heard_ms(s).map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            "freshness": { "term": s.freshness.0.0, "run": s.freshness.1 },
            "config_differs": s.config_differs,
            "withdrawn": s.withdrawn.0,
        })
    }

    fn role_json(&self, role: Role) -> Value {
        let child = self.children().iter().find(|c| c.role == role);
        let status = self.answers.get(&role);
        json!({
            "name": role.name(),
            "pid": status.map(|s| s.pid),
            "uptime_s": status.map(|s| self.now.since(s.started).as_secs()),
            "restarts": child.map_or(0, |c| c.restarts),
            "version": status.map(|s| s.version.as_str()),
        })
    }

    fn virtual_server_json(&self, v: &VirtualServerView) -> Value {
        let left = v
            .lease_left
            .map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX));
        json!({
            "name": v.name.as_str(),
            "role": v.role,
            "master": v.master.as_ref().map(ServerName::as_str),
            "term": v.term.0,
            "addresses": v.addresses,
            "addresses_total": v.addresses_total,
            "mac": v.mac,
            "gate": v.gate,
            "reason": v.reason,
            "changed": self.changed(v).map(|at| self.wall(at).as_secs()),
            "scripts": v.scripts.0.as_ref().map(|s| self.scripts_json(s)),
            "lease_left_ms": left,
            "can_fail_over": self.judgement().can(Some(&v.name)),
            "clients": v.clients.as_ref().map(clients_json),
        })
    }

    fn scripts_json(&self, scripts: &ScriptsView) -> Value {
        let failed = scripts.first_failed.as_ref();
        json!({
            "began": self.wall(scripts.began).as_secs(),
            "running": scripts.running,
            "failed": scripts.failed,
            "first_failed": failed.map(|f| json!({ "script": f.script, "how": f.how, "output": f.output })),
        })
    }

    fn paths_json(&self) -> Vec<Value> {
        let Some(Detail::Hbd { paths, .. }) = self.answers.get(&Role::Hbd).map(|s| &s.detail)
        else {
            return Vec::new();
        };
        let path = |p: &protocol::local::status::PathStatus| {
            let heard = p.last_heard.map(|at| self.now.since(at).as_millis());
            json!({
                "server": p.server.as_str(),
                "address": p.address,
                "last_heard_ms": heard.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            })
        };
        paths.iter().map(path).collect()
    }

    fn links_json(&self) -> Vec<Value> {
        let Some(Detail::Listend { links, .. }) =
            self.answers.get(&Role::Listend).map(|s| &s.detail)
        else {
            return Vec::new();
        };
        links
            .iter()
            .map(|(server, up)| json!({ "server": server.as_str(), "up": up }))
            .collect()
    }

    fn interfaces_json(&self) -> Vec<Value> {
        let Some(Detail::Doctord { health, .. }) =
            self.answers.get(&Role::Doctord).map(|s| &s.detail)
        else {
            return Vec::new();
        };
        health
            .links
            .iter()
            .map(|l| json!({ "name": l.interface, "up": l.up }))
            .collect()
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        self.write_head(out)?;
        let mut table = Table::new([
            "VIRTUAL SERVER",
            "ROLE",
            "MASTER",
            "TERM",
            "LEASE LEFT",
            "ADDRESSES",
            "LAST CHANGE",
        ]);
        for v in self.virtual_servers() {
            table.row([
                v.name.to_string(),
                v.role.clone(),
                v.master
                    .as_ref()
                    .map_or_else(|| "-".into(), ServerName::to_string),
                v.term.to_string(),
                v.lease_left
                    .map_or_else(|| "-".into(), |l| format!("{} ms", l.as_millis())),
                addresses(v),
                self.last_change(v),
            ]);
        }
        table.write(out)?;
        self.write_gates(out)?;
        self.write_silent(out)?;
        let rank = match self.virtual_servers() {
            [] => "RANK".to_owned(),
            [first, ..] => format!("RANK FOR {}", first.name),
        };
        let mut table = Table::new([
            "SERVER",
            "STATE",
            &rank,
            "LAST HEARD",
            "CLOCK OFFSET",
            "FILES",
        ]);
        for s in self.electd().map_or(&[][..], |e| &e.servers) {
            let offset = self.offset(&s.name);
            let differs = if s.config_differs {
                " (its configuration differs)"
            } else {
                ""
            };
            table.row([
                format!("{}{differs}", s.name),
                state_of(s).into(),
                s.rank.map_or_else(|| "-".into(), |r| r.to_string()),
                self.last_heard_ms(s)
                    .map_or_else(|| "never".into(), |ms| format!("{ms} ms ago")),
                offset.map_or_else(
                    || "-".into(),
                    |o| format!("{} us +- {}", o.offset_ns / 1000, o.bound_ns.div_ceil(1000)),
                ),
                format!("{}.{}", s.freshness.0, s.freshness.1),
            ]);
        }
        table.write(out)?;
        let mut table = Table::new(["PROCESS", "STATE", "PID", "UPTIME", "RESTARTS"]);
        for role in roles(self.config) {
            let status = self.answers.get(&role);
            let child = self.children().iter().find(|c| c.role == role);
            table.row([
                role.to_string(),
                match (status, self.failures.get(&role)) {
                    (Some(_), _) => "runs",
                    (None, Some(why)) if why.is_forbidden() => "not known: not permitted",
                    (None, _) => "down",
                }
                .into(),
                status.map_or_else(|| "-".into(), |s| s.pid.to_string()),
                status.map_or_else(|| "-".into(), |s| uptime(self.now.since(s.started))),
                child.map_or_else(|| "-".into(), |c| c.restarts.to_string()),
            ]);
        }
        table.write(out)?;
        let electd = self.answers.get(&Role::Electd);
        if let Some(gap) = electd
            .and_then(|s| s.counters.get("beat_gap_max_us"))
            .filter(|g| **g > 0)
        {
            writeln!(
                out,
                "longest time between two beats of this server: {} ms",
                gap.div_ceil(1000)
            )?;
        }
        for note in self.notes() {
            writeln!(out, "note: {note}")?;
        }
        Ok(())
    }

    fn write_head(&self, out: &mut String) -> std::fmt::Result {
        write!(
            out,
            "server {} of cluster {}: {}",
            self.me,
            self.config.cluster.name,
            match self.silence() {
                Some(silence) if silence.is_forbidden() => "not known: not permitted",
                Some(_) | None => self.role(),
            }
        )?;
        let Some(electd) = self.electd() else {
            out.write_str("\n")?;
            return self.write_failover(out);
        };
        if electd.maintenance {
            out.write_str(", in maintenance")?;
            if let Some(since) = self.maintenance_since {
                let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
                write!(out, " for {}", crate::sync::ago(now, since))?;
            }
        }
        writeln!(out, ", {}", electd.standing)?;
        let voters: Vec<&str> = electd.voters.iter().map(ServerName::as_str).collect();
        writeln!(
            out,
            "quorum {}: {} voters heard, {} needed; roster {}: {}; lease {} ms",
            electd.quorum,
            electd.quorum_have,
            electd.quorum_need,
            electd.roster,
            voters.join(" "),
            electd.lease.as_millis()
        )?;
        self.write_failover(out)
    }

    fn write_failover(&self, out: &mut String) -> std::fmt::Result {
        if self.silence().is_some_and(Silence::is_forbidden) {
            return out.write_str("can fail over: not known: not permitted\n\n");
        }
        let all: Vec<_> = self
            .virtual_servers()
            .iter()
            .map(|v| v.name.clone())
            .collect();
        for line in self.judgement().lines(&all) {
            writeln!(out, "{line}")?;
        }
        out.write_str("\n")
    }

    /// What guards the addresses, once if it is the same everywhere.
    fn write_gates(&self, out: &mut String) -> std::fmt::Result {
        let all = self.virtual_servers();
        let Some(first) = all.first() else {
            return Ok(());
        };
        if all.iter().all(|v| v.gate == first.gate) {
            if first.gate.is_empty() {
                return Ok(());
            }
            return writeln!(out, "gate: {}\n", first.gate);
        }
        for v in all {
            writeln!(out, "gate of {}: {}", v.name, v.gate)?;
        }
        out.write_str("\n")
    }

    /// The clients that may not know where the addresses are now.
    fn write_silent(&self, out: &mut String) -> std::fmt::Result {
        let mut any = false;
        for v in self.virtual_servers() {
            let Some(clients) = v.clients.as_ref().filter(|c| c.silent > 0) else {
                continue;
            };
            any = true;
            let first: Vec<String> = clients
                .silent_first
                .iter()
                .map(ToString::to_string)
                .collect();
            let named = u32::try_from(first.len()).unwrap_or(u32::MAX);
            let more = match clients.silent.saturating_sub(named) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            writeln!(
                out,
                "clients of {}: {} of {} have not answered: {}{more}",
                v.name,
                clients.silent,
                clients.asked,
                first.join(" ")
            )?;
        }
        if any { out.write_str("\n") } else { Ok(()) }
    }
}

/// The first addresses and how many more there are, and at which MAC address they are if that moves along.
fn addresses(v: &VirtualServerView) -> String {
    const SHOWN: usize = 8;
    let total = usize::try_from(v.addresses_total).unwrap_or(usize::MAX);
    let more = total.saturating_sub(v.addresses.len().min(SHOWN));
    let more = (more > 0).then(|| format!("and {more} more"));
    let at = v.mac.as_ref().map(|mac| format!("at {mac}"));
    let shown = v.addresses.iter().take(SHOWN).cloned();
    let parts = shown.chain(more).chain(at);
    parts.collect::<Vec<_>>().join(" ")
}

/// The doctor's word, but for a server that went in order.
pub(crate) fn state_of(s: &ServerView) -> &'static str {
    match s.state {
        HealthState::Dead if s.withdrawn.0 => "left",
        state => state.name(),
    }
}

/// What an operator should know of the last run of the role scripts.
fn failed_scripts(v: &VirtualServerView) -> Option<String> {
    let scripts = v.scripts.0.as_ref()?;
    let first = scripts.first_failed.as_ref()?;
    let more = match scripts.failed {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    let output = match first.output.as_str() {
        "" => "it printed nothing",
        output => output,
    };
    Some(format!(
        "role scripts of {}: {}: {}: {output}{more}",
        v.name, first.script, first.how
    ))
}

fn clients_json(clients: &ClientsView) -> Value {
    let last = clients.last_answer.map(|span| span.as_secs_f64() * 1e3);
    json!({
        "asked": clients.asked,
        "answered": clients.answered,
        "silent": clients.silent_first.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "silent_count": clients.silent,
        "last_answer_ms": last,
    })
}

pub(crate) fn uptime(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Left-aligned columns, two blanks apart.
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned)],
        }
    }

    pub(crate) fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    pub(crate) fn write(&self, out: &mut String) -> std::fmt::Result {
        if self.rows.len() == 1 {
            return Ok(());
        }
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|r| r[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..N).map(width).collect();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        out.write_str("\n")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use protocol::{
        RosterVersion, Term,
        local::{
            ring::{Health, HealthState},
            status::{FailedScript, SetStatus, SyncdStatus},
        },
        version::Since,
        wire::beat::Participation,
    };
    use std::path::Path;

    const CONFIG: &str = "[cluster]\nname = \"web\"\n\
        [[server]]\nname = \"alpha\"\naddress = \"192.0.2.11\"\n\
        [[server]]\nname = \"beta\"\naddress = \"192.0.2.12\"\n\
        [[server]]\nname = \"gamma\"\naddress = \"192.0.2.13\"\n";

    pub(crate) fn answer(role: Role, detail: Detail) -> (Role, RoleStatus) {
        let counters = BTreeMap::from([("refused_replay".to_owned(), 3)]);
        let notes = vec!["memory is not locked".to_owned()];
        let started = BootTime(1_000_000_000);
        (
            role,
            RoleStatus {
                role,
                pid: 42,
                started,
                version: "0".into(),
                counters,
                notes,
                detail,
            },
        )
    }

    pub(crate) fn electd(role: &str) -> Detail {
        let view = |name: &str, role: &str, master: &str| VirtualServerView {
            name: name.parse().unwrap(),
            role: role.into(),
            master: master.parse().ok(),
            term: Term(7),
            addresses: vec!["192.0.2.10/24".into()],
            addresses_total: 1,
            mac: Some("02:00:5e:00:53:01".into()),
            gate: "kernel lifetime".into(),
            lease_left: (role == "master").then_some(Duration::from_millis(380)),
            clients: (role == "master").then(|| ClientsView {
                asked: 250,
                answered: 230,
                silent: 18,
                silent_first: (1..=16).map(|n| [192, 0, 2, n].into()).collect(),
                last_answer: Some(Duration::from_micros(3250)),
            }),
            reason: "lease expired".into(),
            changed: Since((role == "master").then_some(BootTime(4_000_000_000))),
            scripts: Since((role == "master").then(|| ScriptsView {
                began: BootTime(5_000_000_000),
                running: false,
                failed: 2,
                first_failed: Some(FailedScript {
                    script: "master.d/50-service start".into(),
                    how: "exit status: 1".into(),
                    output: "no such service".into(),
                }),
            })),
            fit: Since(Some(vec![0])),
            unfit: Since(None),
            gated: Since(Some(true)),
        };
        Detail::Electd(Box::new(ElectdStatus {
            server: "alpha".parse().unwrap(),
            standing: "taking part".into(),
            maintenance: false,
            witness: false,
            lease: Duration::from_millis(500),
            quorum: "majority".into(),
            quorum_need: 2,
            quorum_have: 3,
            roster: RosterVersion {
                term: Term(7),
                counter: 0,
            },
            voters: vec!["alpha".parse().unwrap()],
            servers: vec![ServerView {
                name: "beta".parse().unwrap(),
                state: HealthState::Alive,
                rank: Some(1),
                last_heard: Some(BootTime(9_950_000_000)),
                freshness: (Term(7), 2),
                config_differs: true,
                withdrawn: Since(false),
                witness: Since(false),
                participation: Since(Some(Participation::Active)),
                hears: Since(Some(true)),
            }],
            virtual_servers: vec![view("mail", "slave", "beta"), view("web", role, "alpha")],
            abstains: Since(false),
        }))
    }

    pub(crate) fn picture<R>(
        answers: Vec<(Role, RoleStatus)>,
        look: impl FnOnce(&Picture<'_>) -> R,
    ) -> R {
        let down: Vec<Role> = roles_of_all()
            .filter(|r| answers.iter().all(|(a, _)| a != r))
            .collect();
        let silent = |r: Role| (r, Silence::Said(format!("{r} does not answer")));
        picture_of(answers, down.into_iter().map(silent), look)
    }

    pub(crate) fn roles_of_all() -> impl Iterator<Item = Role> {
        roles(&config::parse(CONFIG, Path::new("f")).unwrap())
            .collect::<Vec<_>>()
            .into_iter()
    }

    pub(crate) fn picture_of<R>(
        answers: Vec<(Role, RoleStatus)>,
        failures: impl Iterator<Item = (Role, Silence)>,
        look: impl FnOnce(&Picture<'_>) -> R,
    ) -> R {
        let config = config::parse(CONFIG, Path::new("f")).unwrap();
        let me = config.servers[0].name.clone();
        let answers: BTreeMap<Role, RoleStatus> = answers.into_iter().collect();
        let failures = failures.collect();
        let now = BootTime(10_000_000_000);
        look(&Picture {
            config: &config,
            me: &me,
            now,
            answers,
            failures,
            refused: None,
            maintenance_since: None,
            host: Host::default(),
            judgement: OnceCell::new(),
        })
    }

    #[test]
    fn json_has_the_stable_keys() {
        let offset = OffsetStatus {
            offset_ns: -12_400,
            bound_ns: 39_100,
            rate_ppb: 5,
        };
        let offsets = vec![("beta".parse().unwrap(), offset)];
        let child = ChildStatus {
            role: Role::Electd,
            pid: Some(42),
            started: BootTime(1),
            restarts: 4,
        };
        let answers = vec![
            answer(Role::Electd, electd("master")),
            answer(
                Role::Doctord,
                Detail::Doctord {
                    health: Health::default(),
                    offsets,
                },
            ),
            answer(Role::Main, Detail::Main { roles: vec![child] }),
        ];
        let json = picture(answers, |p| p.json());
        assert_eq!(json["server"], "alpha");
        assert_eq!(json["cluster"], "web");
        assert_eq!(json["role"], "master");
        assert_eq!(json["term"], 7);
        assert_eq!(json["master"], "alpha");
        assert_eq!(json["lease_ms"], 500);
        assert_eq!(
            (&json["quorum"]["have"], &json["quorum"]["need"]),
            (&json!(3), &json!(2))
        );
        let server = &json["servers"][0];
        assert_eq!(server["name"], "beta");
        assert_eq!(server["state"], "alive");
        assert_eq!(server["rank"], 1);
        assert_eq!(server["offset_us"], -12.4);
        assert_eq!(server["offset_bound_us"], 40);
        assert_eq!(server["last_heard_ms"], 50);
        assert_eq!(server["freshness"], json!({"term": 7, "run": 2}));
        let web = &json["virtual_servers"][1];
        assert_eq!(web["name"], "web");
        assert_eq!(web["role"], "master");
        assert_eq!(web["addresses"], json!(["192.0.2.10/24"]));
        assert_eq!(web["gate"], "kernel lifetime");
        assert_eq!(web["lease_left_ms"], 380);
        assert_eq!(web["clients"]["asked"], 250);
        assert_eq!(web["clients"]["answered"], 230);
        assert_eq!(web["clients"]["silent"][15], "192.0.2.16");
        assert_eq!(web["clients"]["silent_count"], 18);
        assert_eq!(web["clients"]["last_answer_ms"], 3.25);
        assert_eq!(json["virtual_servers"][0]["clients"], Value::Null);
        let roles = json["roles"].as_array().unwrap();
        let role = |name: &str| roles.iter().find(|r| r["name"] == name).unwrap();
        assert_eq!(role("electd")["restarts"], 4);
        assert_eq!(role("electd")["uptime_s"], 9);
        assert_eq!(role("hbd")["pid"], Value::Null);
        assert_eq!(json["counters"]["electd"]["refused_replay"], 3);
        let notes = json["notes"].to_string();
        assert!(
            notes.contains("hbd does not answer") && notes.contains("electd: memory"),
            "{notes}"
        );
    }

    #[test]
    fn without_electd_the_role_is_down_and_the_rest_is_told() {
        let child = ChildStatus {
            role: Role::Electd,
            pid: None,
            started: BootTime(1),
            restarts: 9,
        };
        let answers = vec![answer(Role::Main, Detail::Main { roles: vec![child] })];
        let (json, text) = picture(answers, |p| (p.json(), p.text()));
        assert_eq!(json["role"], "down");
        assert_eq!(json["term"], Value::Null);
        assert_eq!(json["servers"], json!([]));
        assert!(
            text.starts_with("server alpha of cluster web: down\n"),
            "{text}"
        );
        assert!(
            text.lines()
                .any(|l| l.split_whitespace().collect::<Vec<_>>()
                    == ["electd", "down", "-", "-", "9"]),
            "{text}"
        );
    }

    #[test]
    fn what_is_found_in_files_is_a_note_and_no_fault() {
        let found = "duplicate uid 7: ann and bob in passwd";
        let set = SetStatus {
            name: "accounts".parse().unwrap(),
            running: None,
            next: None,
            aside: 0,
            peers: Vec::new(),
            notes: Since(vec![found.into()]),
        };
        let syncd = SyncdStatus {
            sets: vec![set],
            ..SyncdStatus::default()
        };
        let answers = vec![answer(Role::Syncd, Detail::Syncd(Box::new(syncd)))];
        let look = |p: &Picture<'_>| (p.text(), p.told(Weight::Weakness).collect::<Vec<_>>());
        let (text, faults) = picture(answers, look);
        assert!(
            text.contains(&format!("note: accounts: {found}\n")),
            "{text}"
        );
        assert!(!faults.concat().contains(found), "{faults:?}");
    }

    #[test]
    fn text_names_master_servers_and_processes() {
        let text = picture(vec![answer(Role::Electd, electd("candidate"))], |p| {
            p.text()
        });
        assert!(
            text.starts_with("server alpha of cluster web: candidate, taking part\n"),
            "{text}"
        );
        for part in [
            "3 voters heard, 2 needed",
            "beta (its configuration differs)",
            "50 ms ago",
            "RANK FOR mail",
            "lease expired",
            "note: hbd does not answer",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn text_names_silent_clients_and_nothing_if_there_are_none() {
        let text = |role| picture(vec![answer(Role::Electd, electd(role))], |p| p.text());
        let master = text("master");
        let line = "clients of web: 18 of 250 have not answered: 192.0.2.1 192.0.2.2 ";
        assert!(master.contains(line), "{master}");
        assert!(master.contains(" 192.0.2.16 and 2 more\n"), "{master}");
        let slave = text("slave");
        assert!(!slave.contains("clients of"), "{slave}");
    }

    #[test]
    fn a_change_is_told_with_its_time_and_a_script_that_failed_with_its_output() {
        let answers = vec![answer(Role::Electd, electd("master"))];
        let (text, json) = picture(answers, |p| (p.text(), p.json()));
        assert!(text.contains("Z (6 s ago): lease expired"), "{text}");
        assert!(text.contains("Z (9 s ago): lease expired"), "{text}");
        let note = "note: role scripts of web: master.d/50-service start: exit status: 1: no such service (and 1 more)\n";
        assert!(text.contains(note), "{text}");
        let web = &json["virtual_servers"][1];
        assert_eq!(web["scripts"]["first_failed"]["output"], "no such service");
        assert!(web["changed"].as_u64() > Some(1_700_000_000), "{web}");
    }

    #[test]
    fn only_what_is_down_is_called_so() {
        let forbidden = |role| {
            let path = "/run/standin".into();
            (role, Silence::Call(CallError::NotPermitted(role, path)))
        };
        let (json, text, down) = picture_of(vec![], roles_of_all().map(forbidden), |p| {
            (p.json(), p.text(), p.down().count())
        });
        assert_eq!((&json["role"], down), (&json!("unknown"), 0));
        assert!(!text.contains("down"), "{text}");
        let head = "server alpha of cluster web: not known: not permitted\n";
        assert!(text.starts_with(head), "{text}");
        assert_eq!(text.matches("note: ").count(), 1, "{text}");
        assert!(text.contains("group standin-status"), "{text}");
    }

    #[test]
    fn a_server_that_went_in_order_has_left() {
        let server = |state, withdrawn| ServerView {
            name: "beta".parse().unwrap(),
            state,
            rank: None,
            last_heard: None,
            freshness: (Term(7), 2),
            config_differs: false,
            withdrawn: Since(withdrawn),
            witness: Since(false),
            participation: Since(None),
            hears: Since(None),
        };
        for (state, withdrawn, word) in [
            (HealthState::Dead, true, "left"),
            (HealthState::Dead, false, "dead"),
            (HealthState::Alive, true, "alive"),
        ] {
            assert_eq!(state_of(&server(state, withdrawn)), word);
        }
    }

    #[test]
    fn uptimes_are_short() {
        for (seconds, expected) in [
            (59, "59 s"),
            (61, "1 min"),
            (3661, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(uptime(Duration::from_secs(seconds)), expected);
        }
    }
}
