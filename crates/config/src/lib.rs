//! `standin.toml`: from text to types that cannot hold a bad value.
//!
//! ```text
//!   text ──▶ raw (sections, keys, lines) ──▶ checked (what is meant, every rule kept) ──▶ Config
//! ```
//!
//! Every problem is reported at once, each with file, line, key and the mend. The crate opens no file: the
//! text comes from the caller. The file is the same on all servers; [`Config::hash`] tells whether it is.

mod checked;
pub mod error;
pub mod key;
mod mac;
mod nested;
mod rate;
mod raw;
mod sync;
mod time;

pub use error::{ConfigError, Problem};
pub use key::{ClusterKeys, parse_key};
pub use mac::MacAddress;
pub use rate::{BadRate, Rate};
pub use sync::ACCOUNT_FILES;
pub use time::TimeDiscipline;

use protocol::{ServerName, VirtualServerName};
use schedule::Cron;
use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

/// `[cluster] key` if the file has none.
pub const KEY_FILE: &str = "/etc/standin/cluster.key";
/// `[cluster] port` if the file has none.
pub const PORT: u16 = 6946;
/// `[cluster] heartbeat` if the file has none.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// `[cluster] lease` if the file has none.
pub const LEASE: Duration = Duration::from_millis(500);
/// Shortest heartbeat interval.
pub const HEARTBEAT_MIN: Duration = Duration::from_millis(5);
/// Longest lease.
pub const LEASE_MAX: Duration = Duration::from_secs(10);
/// A lease has at least so many heartbeat intervals.
pub const LEASE_HEARTBEATS_MIN: u32 = 5;
/// `priority` if the file has none.
pub const PRIORITY: u32 = 100;
/// Highest priority.
pub const PRIORITY_MAX: u32 = 65_535;
/// Most addresses of one server, that is, heartbeat paths.
pub const PATHS_MAX: usize = 8;
/// Most virtual servers of a cluster.
pub const VIRTUAL_SERVERS_MAX: usize = 256;
/// Most addresses of one virtual server.
pub const VIRTUAL_ADDRESSES_MAX: usize = 16_384;
/// Most former versions of a file that are kept by number.
pub const KEEP_VERSIONS_MAX: u32 = 1000;
/// Longest time that former versions are kept.
pub const KEEP_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// `[scripts] directory` if the file has none.
pub const SCRIPTS_DIRECTORY: &str = "/etc/standin";
/// `[scripts] timeout` if the file has none.
pub const SCRIPTS_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time limit of a script.
pub const SCRIPTS_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// `[ssh] user` if the file has none.
pub const SSH_USER: &str = "root";
/// `[ssh] key` if the file has none.
pub const SSH_KEY: &str = "/etc/standin/ssh_key";
/// `[ssh] port` if the file has none.
pub const SSH_PORT: u16 = 22;
/// `delete_limit` of a set that has none, in percent.
pub const DELETE_LIMIT: u8 = 25;
/// `[time] max_skew` if the file has none.
pub const MAX_SKEW: Duration = Duration::from_secs(1);
/// What `max_skew` may be.
pub const MAX_SKEW_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(3600);

/// Checks the text of a configuration file; `file` is named in errors.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
    checked::config(text, file)
}

/// A configuration that keeps every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it came from, for errors.
    pub file: PathBuf,
    /// What holds for all servers.
    pub cluster: Cluster,
    /// The servers, in the order of the file.
    pub servers: Vec<Server>,
    /// The virtual servers, in the order of the file.
    pub virtual_servers: Vec<VirtualServer>,
    /// How role scripts are run on this server.
    pub scripts: ScriptsConfig,
    /// How clocks are kept alike.
    pub time: TimeConfig,
    /// How servers reach one another to keep files alike.
    pub ssh: SshConfig,
    /// The files that are kept alike, in the order of the file.
    pub sets: Vec<SyncSet>,
    /// Of the meaning, not of the text, and of nothing that may differ between servers (key file, real
    /// time, scripts, who steers the clock): equal on all servers of a well-kept cluster.
    pub hash: u64,
}

/// What holds for all servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Name of the cluster, bound into every seal.
    pub name: String,
    /// The file with the cluster key.
    pub key: PathBuf,
    /// UDP port of heartbeats and TCP port of signals.
    pub port: u16,
    /// Heartbeat interval, h in the rules.
    pub heartbeat: Duration,
    /// Lease, L in the rules.
    pub lease: Duration,
    /// What makes a master.
    pub quorum: Quorum,
    /// Real-time scheduling and locked memory, where permitted.
    pub realtime: bool,
    /// The watchdog device that electd feeds.
    pub watchdog: Option<PathBuf>,
    /// How a server's machine is recognised.
    pub machine: MachineBinding,
}

/// How a server's machine is recognised, so that a copied state-dir does not act as the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineBinding {
    /// By machine-id, DMI UUID and the MAC addresses of its heartbeat interfaces, as far as these can be read.
    Auto,
    /// Not at all: only the names of cluster and server are compared.
    None,
}

/// What makes a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// Promises of more than half of the voters.
    Majority,
    /// Nothing: takes over without asking. Two masters at a time are possible.
    None,
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Majority => "majority",
            Self::None => "none",
        })
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub name: ServerName,
    /// Its addresses; each is a heartbeat path.
    pub addresses: Vec<IpAddr>,
    /// The higher stands first among equally fresh servers.
    pub priority: u32,
    /// Votes and never serves.
    pub witness: bool,
    /// Public key of its SSH server: kind and contents. Nobody else is believed to be it.
    pub host_key: Option<String>,
}

/// How clocks are kept alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeConfig {
    /// Who steers this server's clock.
    pub discipline: TimeDiscipline,
    /// What clocks may differ by: within it two times count as equal, beyond it no time decides anything.
    pub max_skew: Duration,
}

/// How servers reach one another to keep files alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshConfig {
    /// Who to be there.
    pub user: String,
    /// The file with the private key.
    pub key: PathBuf,
    /// Port of the SSH servers.
    pub port: u16,
}

/// Files that are kept alike on all servers but witnesses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncSet {
    /// Its name.
    pub name: ServerName,
    /// Files, and directories with all that is in them; absolute.
    pub paths: Vec<PathBuf>,
    /// What in them is left out, in the manner of gitignore(5), with what perishes.
    pub excludes: Vec<String>,
    /// What of that goes with a directory that was removed elsewhere.
    pub perishable: Vec<String>,
    /// How much of a path a run may remove without being told to, in percent.
    pub delete_limit: u8,
    /// Which former versions are kept.
    pub keep: Option<Keep>,
    /// It is of password files, merged record by record.
    pub merge_accounts: bool,
    /// When it is made alike; by hand always.
    pub on: Triggers,
    /// When all its files are read, in local time, to find what changed without a trace; none: never.
    pub scrub: Option<Cron>,
    /// How fast its contents may go in each direction; none: as fast as they can.
    pub rate: Option<Rate>,
    /// Where it stands in the file.
    pub lines: SyncLines,
}

/// Which former versions of a file are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// So many.
    Versions(u32),
    /// Those that were there within this time.
    For(Duration),
}

/// Lines of the file, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncLines {
    /// Of `[[sync]]`.
    pub set: usize,
    /// Of each path.
    pub paths: Vec<usize>,
    /// Of each exclude.
    pub excludes: Vec<usize>,
}

/// When syncd makes a set alike by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Triggers {
    /// When a server has become master. How fresh it is counts in the next election.
    pub election: bool,
    /// When something in it has changed.
    pub change: bool,
    /// At these moments of local time.
    pub cron: Vec<Cron>,
}

/// One virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// Its name.
    pub name: VirtualServerName,
    /// The interface that carries its addresses on every server.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<VirtualAddress>,
    /// The MAC address that moves along with them; none: they are at the MAC address of whichever server has them.
    pub mac: Option<MacAddress>,
    /// What to do if another machine has one of the addresses.
    pub on_conflict: OnConflict,
    /// Whether a better server takes over from a fit master.
    pub preempt: Preempt,
    /// Overrides the servers' priorities.
    pub priority: BTreeMap<ServerName, u32>,
}

/// An address of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
}

impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// What a server does when another machine, none of the cluster, has an address that it is to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// It takes the address over, and contradicts the other one.
    Take,
    /// It waits until the other one has gone.
    Wait,
}

/// Whether a better server takes over from a fit master (a planned handover, at most once in 10 min).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    /// The master stays.
    Never,
    /// A server with fresher files takes over.
    Fresher,
    /// A server with fresher files or higher priority takes over.
    Always,
}

impl fmt::Display for Preempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "never",
            Self::Fresher => "fresher",
            Self::Always => "always",
        })
    }
}

/// How role scripts are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptsConfig {
    /// Holds `master.d` and `slave.d`.
    pub directory: PathBuf,
    /// Time limit of one script.
    pub timeout: Duration,
}

impl Config {
    /// The server of that name.
    pub fn server(&self, name: &ServerName) -> Option<&Server> {
        self.servers.iter().find(|s| s.name == *name)
    }

    /// Whether there is anything for syncd to do: files, or the clock.
    pub fn runs_syncd(&self) -> bool {
        !self.sets.is_empty() || self.time.discipline != TimeDiscipline::Observe
    }

    /// All servers but `me`.
    pub fn peers(&self, me: &ServerName) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(move |s| s.name != *me)
    }

    /// Which of the servers this one is: the one named by `given` (`--server`), else the one that has one of
    /// the `local` addresses, else the one named like the host, with or without its domain.
    pub fn find_self(
        &self,
        given: Option<&str>,
        hostname: &str,
        local: &[IpAddr],
    ) -> Result<ServerName, ConfigError> {
        let fail = |what: String| ConfigError::one(&self.file, None, "[[server]]", what);
        let names = || {
            self.servers
                .iter()
                .map(|s| s.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        if let Some(given) = given {
            return self.named(given).ok_or_else(|| {
                fail(format!(
                    "no server is named \"{given}\" (--server); the file lists {}",
                    names()
                ))
            });
        }
        let mine: Vec<&Server> = self
            .servers
            .iter()
            .filter(|s| s.addresses.iter().any(|a| local.contains(a)))
            .collect();
        match mine.as_slice() {
            [server] => return Ok(server.name.clone()),
            [] => {}
            [a, b, ..] => {
                return Err(fail(format!(
                    "this host has addresses of both {} and {}; say which it is with --server NAME",
                    a.name, b.name
                )));
            }
        }
        self.named_like(hostname).ok_or_else(|| {
            fail(format!(
                "this host, \"{hostname}\", is not in the list: none of {} has its name or one of its \
                 addresses; add a [[server]] for it, or say which it is with --server NAME; a daemon waits until it has one \
                 of the addresses",
                names()
            ))
        })
    }

    /// Whether this host is none of the servers only as long as it has none of their addresses, as
    /// [`Config::find_self`] looks for them: it may get one, by DHCP for example.
    pub fn may_yet_be_found(&self, given: Option<&str>, hostname: &str, local: &[IpAddr]) -> bool {
        let mut all = self.servers.iter().flat_map(|s| &s.addresses);
        given.is_none() && self.named_like(hostname).is_none() && !all.any(|a| local.contains(a))
    }

    /// The server named like the host, with or without its domain.
    fn named_like(&self, hostname: &str) -> Option<ServerName> {
        let short = hostname.split('.').next().unwrap_or(hostname);
        self.named(hostname).or_else(|| self.named(short))
    }

    /// The priority of `server` for `v`: that of the virtual server if it gives one, else the server's own.
    pub fn priority(&self, server: &ServerName, v: &VirtualServerName) -> u32 {
        let special = self
            .virtual_servers
            .iter()
            .find(|x| x.name == *v)
            .and_then(|x| x.priority.get(server).copied());
        special
            .or_else(|| self.server(server).map(|s| s.priority))
            .unwrap_or(PRIORITY)
    }

    /// The step between candidates of neighbouring rank: half a heartbeat interval. Whoever measures round
    /// trips takes at least four of them.
    pub fn skew(&self) -> Duration {
        self.cluster.heartbeat / 2
    }

    fn named(&self, name: &str) -> Option<ServerName> {
        self.servers
            .iter()
            .map(|s| &s.name)
            .find(|n| n.as_str() == name)
            .cloned()
    }
}
