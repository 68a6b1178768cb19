//! What may be said about a failover: one value per state, its weight, and words for it. Nothing in a value changes while
//! the state lasts, so that a log has one line when it comes and one when it goes.

use crate::host::{ScriptFault, Unfit};
use daemon::links::LinkState;
use protocol::{
    Role, ServerName,
    local::{ring::HealthState, status::Refused},
    version,
};
use std::{fmt, net::IpAddr, path::PathBuf};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The next failure is an outage.
    Outage,
    /// Something that a failover needs is broken, and something else still stands for it.
    Weakness,
    /// Worth knowing.
    Remark,
}

/// One state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// This server has no term reservation.
    OwnBlank,
    /// This server does not vote yet after a restart.
    OwnSilent,
    /// Nobody is master.
    NoMaster,
    /// A majority is not heard.
    TooFewVoters { heard: usize, needed: usize },
    /// Without the present master there is no majority.
    LastVoters { left: usize, needed: usize },
    /// Nobody else could serve.
    NoSpare(Vec<(ServerName, Unable)>),
    /// Whoever could serve has no links to a majority, over which elections go.
    NoSignals(Vec<ServerName>),
    /// A server without a link for signals, though it is alive.
    NoLink(ServerName),
    /// A server that does not live, as far as this one hears.
    Unheard(ServerName, Silence),
    /// A living server that does not hear this one.
    Deaf(ServerName),
    /// A living server that takes no mastership.
    Withdrawn(ServerName),
    /// One of several paths to a living server is silent.
    PathLost(ServerName, String, Option<Refused>),
    /// Packets of this length do not pass a path in one piece.
    ShortPackets(ServerName, String, u32),
    /// Some parts of a server's beats never come.
    PartsLost(ServerName),
    /// Servers without a reservation that wait for one another.
    BlanksWait(Vec<ServerName>),
    /// A clock is too far from this server's.
    Clock(ServerName),
    /// The interface of a virtual server is not fit for it.
    Interface(Unfit),
    /// Heartbeat addresses of this server that share one cable.
    SharedCable(String, Vec<IpAddr>),
    /// A role script that does not do what it is for.
    Script(PathBuf, ScriptFault),
    /// Nothing in the kernel keeps the lease.
    Ungated,
    /// A role of this server does not answer.
    Silent(Role),
}

/// Why a server could not take over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unable {
    NotVoter,
    Witness,
    Withdrawn,
    Blank,
    Unheard(HealthState),
    /// Why, of this server.
    Unfit(Option<String>),
}

/// Why a server is not heard, as far as this one can know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Silence {
    /// What comes from this address is refused.
    Refused(String, Refused),
    /// It sends from this address, which the configuration does not know.
    Elsewhere(IpAddr),
    /// Its questions arrive, and this server's are not answered.
    OneWay,
    /// Its hbd answers, and no beat comes.
    NoBeats,
    /// Only its signals come.
    SignalsOnly,
    /// It said that it stops.
    Stopped,
    /// Nothing comes, but something of standin does from these addresses.
    Strangers(Vec<IpAddr>),
    /// Nothing comes.
    Nothing,
    /// The doctor has no opinion yet.
    Unknown,
}

impl Reason {
    /// In a few words, for `can fail over: no, because ...`.
    pub fn brief(&self) -> String {
        match self {
            Self::OwnBlank => {
                "this server is blank: it has no term reservation and does not vote".into()
            }
            Self::OwnSilent => "this server is silent after a restart and does not vote yet".into(),
            Self::NoMaster => "nobody is master".into(),
            Self::TooFewVoters { heard, needed } => {
                format!("{heard} of the voters take part and {needed} are needed")
            }
            Self::LastVoters { left, needed } => {
                format!("without the master {left} voters would be left and {needed} are needed")
            }
            Self::NoSpare(others) if others.is_empty() => "there is no other server".into(),
            Self::NoSpare(others) => {
                let each = others.iter().map(|(name, why)| format!("{name} {why}"));
                let each: Vec<_> = each.collect();
                format!("no other server could serve: {}", each.join(", "))
            }
            Self::NoSignals(to) => {
                format!("there is no link for signals (TCP) to {}", names(to))
            }
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LastVoters { .. } => {
                write!(f, "{}: if it fails, nobody can be elected", self.brief())
            }
            Self::NoSignals(_) => write!(
                f,
                "{}, over which every election and handover goes: let TCP pass at the port of [cluster]",
                self.brief()
            ),
            Self::NoLink(server) => write!(
                f,
                "no link for signals (TCP) to {server}, though it is alive"
            ),
            Self::Unheard(server, why) => write!(f, "{server} {why}"),
            Self::Deaf(server) => write!(
                f,
                "{server} is heard and does not hear this server: what this one sends does not reach it, or is refused there \
                 (a firewall; another address, as behind NAT); see `standin status` there"
            ),
            Self::Withdrawn(server) => {
                write!(f, "{server} is in maintenance: it votes and takes no mastership")
            }
            Self::PathLost(server, way, None) => write!(
                f,
                "the path to {server} {way} is silent, though {server} is alive over another"
            ),
            Self::PathLost(server, way, Some(why)) => write!(
                f,
                "the path to {server} {way} is lost: what comes from there is refused: {}",
                refused(*why)
            ),
            Self::ShortPackets(server, way, mtu) => write!(
                f,
                "the path to {server} {way} passes only packets of {mtu} bytes in one piece (path MTU): beats may be \
                 cut into fragments, which some networks drop"
            ),
            Self::PartsLost(server) => write!(
                f,
                "of the beats of {server} some parts never come, and others do: packets of more than a certain length \
                 do not pass the path (MTU, or a firewall)"
            ),
            Self::BlanksWait(servers) => write!(
                f,
                "{} are blank, and each waits for ever for what the others remember: put the file `reservation` of \
                 one of them back into its state-dir; or stop standin on all servers, remove it on each, and \
                 run `standin init` on each",
                names(servers)
            ),
            Self::Clock(server) => write!(
                f,
                "the clock of {server} differs by more than max_skew: what both have changed stays in conflict, for no \
                 modification time decides; compare both with a third clock, set the one that is wrong (best while it \
                 holds no address), and let a time daemon or [time] discipline keep it"
            ),
            Self::Interface(unfit) => unfit.fmt(f),
            Self::SharedCable(cable, addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "heartbeat addresses {} share one cable, that of {cable}: both paths fail with it",
                    addresses.join(" and ")
                )
            }
            Self::Script(path, fault) => write!(f, "{}: {fault}", path.display()),
            Self::Ungated => f.write_str(
                "nothing in the kernel keeps the lease (gate: addresses only): while electd is stopped or killed a former \
                 master may answer for some seconds more; `standin check` says why",
            ),
            Self::Silent(role) => write!(f, "{role} of this server does not answer"),
            Self::OwnBlank
            | Self::OwnSilent
            | Self::NoMaster
            | Self::TooFewVoters { .. }
            | Self::NoSpare(_) => f.write_str(&self.brief()),
        }
    }
}

impl fmt::Display for Unable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVoter => f.write_str("is no voter (standin server add)"),
            Self::Witness => f.write_str("is a witness"),
            Self::Withdrawn => f.write_str("is in maintenance"),
            Self::Blank => f.write_str("is blank"),
            Self::Unheard(state) => write!(f, "is {}", state.name()),
            Self::Unfit(why) => {
                let why = why.as_deref().unwrap_or("interface or gate");
                write!(f, "is not fit ({why})")
            }
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(address, why) => write!(
                f,
                "is not heard: what comes from {address} is refused: {}",
                refused(*why)
            ),
            Self::Elsewhere(address) => write!(
                f,
                "is not heard: its packets come from {address}, an address that the configuration does not give it: \
                 another address on its side, or a router that changes addresses (NAT)"
            ),
            Self::OneWay => f.write_str(
                "is not heard: its questions arrive, and it answers none of this server's: they do not reach it, or it \
                 refuses them; see `standin status` there",
            ),
            Self::NoBeats => f.write_str(
                "is not heard: its hbd has answered, and no beat has come: electd does not run there, or its beats are \
                 longer than the path lets pass (MTU)",
            ),
            Self::SignalsOnly => f.write_str(
                "is not heard, though its link for signals (TCP) is up: UDP does not pass at the port of [cluster]",
            ),
            Self::Stopped => f.write_str("is not heard: it was stopped, or was in maintenance before"),
            Self::Strangers(addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "is not heard; packets with another cluster.key or cluster name come from {}, which no server of \
                     the configuration has",
                    addresses.join(", ")
                )
            }
            Self::Nothing => f.write_str("is not heard: nothing arrives from its addresses"),
            Self::Unknown => f.write_str("is not judged yet: doctord does not know"),
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name, LinkState::Missing) => write!(
                f,
                "no interface {name} on this host; see `ip link` and mend interface in the configuration"
            ),
            Self::Link(name, LinkState::Down) => {
                write!(f, "interface {name} is down; `ip link set {name} up`")
            }
            Self::Link(name, LinkState::NoCarrier) => {
                write!(f, "interface {name} has no carrier: see its cable")
            }
            Self::Link(name, LinkState::Dormant) => write!(
                f,
                "interface {name} is dormant: its network has not let it in"
            ),
            Self::Link(name, LinkState::Up) => write!(f, "interface {name} is up"),
            Self::Loopback(name) => write!(
                f,
                "interface {name} is the loopback interface: no announcement leaves by it, and no client reaches it"
            ),
            Self::OtherName(name, own) => write!(
                f,
                "interface {name} is called {own} by the kernel: it serves, but is noticed late when it comes back after it \
                 was gone; write interface = \"{own}\""
            ),
            Self::NoIpv6(name) => write!(
                f,
                "IPv6 is off on interface {name} (net.ipv6.conf.{name}.disable_ipv6), and there are IPv6 addresses"
            ),
        }
    }
}

impl fmt::Display for ScriptFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotExecutable => f.write_str(
                "is not executable, so it does not run: chmod +x, or remove it (a file system mounted noexec runs none)",
            ),
            Self::NoInterpreter(program) => write!(
                f,
                "cannot run: its first line names {}, which is not there",
                program.escape_debug()
            ),
            Self::Dangling => f.write_str("cannot run: it is a link to nothing"),
            Self::Unreadable => f.write_str("cannot be read, so no script of it runs"),
            Self::Writable => f.write_str(
                "can be written by others than root, and runs as root: chown root, chmod go-w",
            ),
        }
    }
}

fn refused(why: Refused) -> String {
    match why {
        Refused::TooLong => "longer than any packet".into(),
        Refused::NotOurs => "no packets of standin".into(),
        Refused::Version(version) => format!(
            "protocol version {version}, and this server speaks {} to {}: install one release on all",
            version::WIRE.start(),
            version::WIRE.end()
        ),
        Refused::Unauthentic => {
            "the seal does not open: compare cluster.key, cluster name and server names of both"
                .into()
        }
        Refused::Malformed => "sealed, but no packet: install one release on all".into(),
    }
}

fn names(servers: &[ServerName]) -> String {
    let names: Vec<_> = servers.iter().map(ServerName::as_str).collect();
    names.join(", ")
}
