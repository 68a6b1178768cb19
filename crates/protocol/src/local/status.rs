//! What each role tells about itself; `standin status` puts the parts together.

use super::ring::{Health, HealthState};
use crate::{
    ids::{BootTime, Role, RosterVersion, ServerName, Term, VirtualServerName},
    version::Since,
    wire::beat::Participation,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// What a role tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleStatus {
    /// Which role.
    pub role: Role,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: BootTime,
    /// Its program's version.
    pub version: String,
    /// Everything counted, refusals by reason among it.
    pub counters: BTreeMap<String, u64>,
    /// What an operator should know: missing rights, a foreign address, a configuration mismatch.
    pub notes: Vec<String>,
    /// What only this role knows.
    pub detail: Detail,
}

/// What only one role knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detail {
    /// hbd.
    Hbd {
        /// Per peer and path.
        paths: Vec<PathStatus>,
        /// Per peer: what arrived beside its beats.
        peers: Since<2, Vec<PeerStatus>>,
        /// Addresses of no server of the configuration that sent packets of standin, the last of them.
        strangers: Since<2, Vec<Stranger>>,
    },
    /// listend.
    Listend {
        /// Per peer: link up.
        links: Vec<(ServerName, bool)>,
        /// Per peer without a link: why the last attempt came to nothing, where this side knows.
        failed: Since<2, Vec<(ServerName, String)>>,
    },
    /// doctord.
    Doctord {
        /// The present opinion.
        health: Health,
        /// Last clock offset of each server, where known.
        offsets: Vec<(ServerName, OffsetStatus)>,
    },
    /// electd.
    Electd(Box<ElectdStatus>),
    /// The main daemon.
    Main {
        /// The roles it keeps running.
        roles: Vec<ChildStatus>,
    },
    /// syncd.
    Syncd(Box<SyncdStatus>),
}

/// One path to one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// The peer.
    pub server: ServerName,
    /// Its address on this path.
    pub address: String,
    /// When something authentic last arrived over it.
    pub last_heard: Option<BootTime>,
    /// This server's address on it.
    pub local: Since<2, Option<IpAddr>>,
    /// What arrived over it and was refused, the last time, for a reason that does not pass by itself.
    pub refused: Since<2, Option<PathRefusal>>,
    /// Longest packet that passes it uncut, as far as the kernel knows.
    pub mtu: Since<2, Option<u32>>,
}

/// A packet from a peer's address that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRefusal {
    /// When.
    pub at: BootTime,
    /// Why.
    pub why: Refused,
}

/// Why a packet from a peer's address was refused; what a restart brings along is not among it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Refused {
    /// Longer than any packet.
    TooLong,
    /// It is no packet of standin.
    NotOurs,
    /// Of this version of the protocol, which this server does not speak.
    Version(u8),
    /// Its seal does not open: another key, cluster name or server name.
    Unauthentic,
    /// The seal opens, and there is no packet in it.
    Malformed,
}

/// What arrived of a peer beside its beats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer.
    pub server: ServerName,
    /// When it last asked who this server is.
    pub asked: Option<BootTime>,
    /// Since when its present run is known, for it has answered this server.
    pub met: Option<BootTime>,
    /// When a beat or an acknowledgement of that run last arrived.
    pub beat: Option<BootTime>,
    /// Since when its beats, which travel in parts, come with parts missing, every one.
    pub parts_missing: Option<BootTime>,
}

/// A source of packets that belongs to no server of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// Its address.
    pub address: IpAddr,
    /// When it was last heard.
    pub at: BootTime,
    /// Which server it is, by the seal of its packets.
    pub server: Option<ServerName>,
}

/// Another server's clock minus this server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetStatus {
    /// Difference in nanoseconds.
    pub offset_ns: i64,
    /// It is off by this at most.
    pub bound_ns: u64,
    /// How much faster the other clock runs than this server's would by itself, in parts of 10^9.
    pub rate_ppb: i64,
}

impl OffsetStatus {
    /// The clocks are apart by so much at least.
    pub fn least_ns(&self) -> u64 {
        self.offset_ns.unsigned_abs().saturating_sub(self.bound_ns)
    }

    /// As "1.002 s ahead (+- 0.1 ms)".
    pub fn in_words(&self) -> String {
        let (sign, seconds) = (
            self.offset_ns < 0,
            self.offset_ns.unsigned_abs() as f64 / 1e9,
        );
        let way = if sign { "behind" } else { "ahead" };
        format!(
            "{seconds:.3} s {way} (+- {:.1} ms)",
            self.bound_ns as f64 / 1e6
        )
    }
}

/// One child of the main daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStatus {
    /// Which role.
    pub role: Role,
    /// Its process, if it runs.
    pub pid: Option<u32>,
    /// When it was last started.
    pub started: BootTime,
    /// How often it had to be started again.
    pub restarts: u64,
}

/// electd's view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectdStatus {
    /// This server.
    pub server: ServerName,
    /// Blank, silent, or taking part.
    pub standing: String,
    /// Maintenance is on.
    pub maintenance: bool,
    /// This server only votes.
    pub witness: bool,
    /// The lease in force here.
    pub lease: Duration,
    /// The quorum rule, and whether it promises that never two servers answer.
    pub quorum: String,
    /// Voters needed.
    pub quorum_need: u32,
    /// Voters heard now, this one included.
    pub quorum_have: u32,
    /// The roster's version.
    pub roster: RosterVersion,
    /// The voters in force.
    pub voters: Vec<ServerName>,
    /// This server, then every other one as electd sees it.
    pub servers: Vec<ServerView>,
    /// Every virtual server.
    pub virtual_servers: Vec<VirtualServerView>,
    /// Blank or silent: it neither votes nor promises yet.
    pub abstains: Since<2, bool>,
}

/// A server as electd sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Its name.
    pub name: ServerName,
    /// The doctor's word.
    pub state: HealthState,
    /// Its place in the order of succession, 0 = first; none for a witness or an unfit server.
    pub rank: Option<u32>,
    /// When its last beat arrived.
    pub last_heard: Option<BootTime>,
    /// How fresh its files are: term and run.
    pub freshness: (Term, u64),
    /// Its configuration differs from this server's.
    pub config_differs: bool,
    /// Its last beat said that it takes no mastership: it was stopped, or is in maintenance.
    pub withdrawn: Since<2, bool>,
    /// It only votes.
    pub witness: Since<2, bool>,
    /// Whether it takes part, as far as it told.
    pub participation: Since<2, Option<Participation>>,
    /// It hears this server, by its last beat.
    pub hears: Since<2, Option<bool>>,
}

/// One virtual server as electd sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServerView {
    /// Its name.
    pub name: VirtualServerName,
    /// "master", "slave", "candidate" or "witness".
    pub role: String,
    /// Who is master, as far as known.
    pub master: Option<ServerName>,
    /// The term of that master, or the highest known.
    pub term: Term,
    /// As in the configuration, the first of them: those of all virtual servers must fit into one answer.
    pub addresses: Vec<String>,
    /// How many there are.
    pub addresses_total: u32,
    /// The MAC address that moves along with them; none: that of whichever server has them.
    pub mac: Option<String>,
    /// What guards the addresses, and why not something better.
    pub gate: String,
    /// The lease still runs for so long (master only).
    pub lease_left: Option<Duration>,
    /// How the clients took the last change of address (master only).
    pub clients: Option<ClientsView>,
    /// Why the role or the master last changed.
    pub reason: String,
    /// When that was; none: not since electd knows of this virtual server.
    pub changed: Since<2, Option<BootTime>>,
    /// The last run of the role scripts.
    pub scripts: Since<2, Option<ScriptsView>>,
    /// Who could serve it by its own word: places in [`ElectdStatus::servers`].
    pub fit: Since<2, Option<Vec<u8>>>,
    /// Why this server could not.
    pub unfit: Since<2, Option<String>>,
    /// The kernel keeps the lease, whatever becomes of electd.
    pub gated: Since<2, Option<bool>>,
}

/// A run of the role scripts for one virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptsView {
    /// When it began.
    pub began: BootTime,
    /// It goes on.
    pub running: bool,
    /// So many scripts failed.
    pub failed: u32,
    /// The first of them.
    pub first_failed: Option<FailedScript>,
}

/// Longest text of a [`FailedScript`] in characters: those of all virtual servers must fit into one answer.
pub const SCRIPT_TEXT_MAX: usize = 80;

/// A role script that failed; each text has at most [`SCRIPT_TEXT_MAX`] characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedScript {
    /// Folder and name, and what it was called with: "master.d/50-service start".
    pub script: String,
    /// "exit status: 1", or why it did not end by itself.
    pub how: String,
    /// The first line that it printed.
    pub output: String,
}

/// Most silent clients named in a [`ClientsView`].
pub const SILENT_MAX: usize = 16;

/// Which clients are known to send to this server now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsView {
    /// So many were asked by themselves.
    pub asked: u32,
    /// So many have answered for every address.
    pub answered: u32,
    /// So many have not, however often they were asked; the others may still.
    pub silent: u32,
    /// The first of the silent ones, at most [`SILENT_MAX`].
    pub silent_first: Vec<IpAddr>,
    /// From the opening of the addresses to the last answer.
    pub last_answer: Option<Duration>,
}

/// syncd's view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncdStatus {
    /// How fresh this server's files are: term and run.
    pub freshness: (Term, u64),
    /// This server numbers runs, in this term.
    pub numbers: Option<Term>,
    /// Every set.
    pub sets: Vec<SetStatus>,
}

/// So many notes are told of a set.
pub const SET_NOTES_MAX: usize = 16;

/// One set of files. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetStatus {
    /// Its name.
    pub name: ServerName,
    /// Why it is being made alike now, if it is.
    pub running: Option<String>,
    /// When its schedule comes next.
    pub next: Option<u64>,
    /// So many versions that lost a conflict are kept aside.
    pub aside: u64,
    /// How it fares with each other server.
    pub peers: Vec<SetPeer>,
    /// What an operator should look at in its files, at most [`SET_NOTES_MAX`].
    pub notes: Since<2, Vec<String>>,
}

/// How a set fares with another server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPeer {
    /// Which.
    pub server: ServerName,
    /// The last run.
    pub last: Option<LastRun>,
    /// What is owed to it.
    pub debt: Option<OwedRun>,
    /// The last run that did anything, or left anything undone.
    pub notable: Since<2, Option<LastRun>>,
}

/// A run that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// When.
    pub at: u64,
    /// Why it ran.
    pub why: String,
    /// Changes taken, given, and made on both sides; or why it came to nothing.
    pub outcome: Result<(u64, u64, u64), String>,
    /// Nothing was left undone.
    pub complete: bool,
}

/// A run that is owed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedRun {
    /// Since when.
    pub since: u64,
    /// Why.
    pub why: String,
    /// So often it was tried in vain.
    pub tries: u32,
}
