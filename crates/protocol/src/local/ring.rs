//! The ring of DESIGN section 1: hbd to doctord to electd to hbd, and listend to electd to listend.

use crate::{
    ids::{BootTime, ServerName, Term, VirtualServerName},
    wire::{
        beat::{Ack, Beat, Freshness},
        signal::Signal,
    },
};
use serde::{Deserialize, Serialize};

/// hbd to doctord: what arrived, authenticated and new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HbdToDoctord {
    /// A beat.
    Beat {
        /// Where and when it arrived.
        arrival: Arrival,
        /// The beat.
        beat: Beat,
    },
    /// An acknowledgement.
    Ack {
        /// Where and when it arrived.
        arrival: Arrival,
        /// The acknowledgement.
        ack: Ack,
    },
    /// Nothing may have arrived, but hbd is there and reads its sockets: sent when the link to doctord is
    /// made and every heartbeat interval, so that silence can be told from deafness.
    Listening,
}

/// How a beat or acknowledgement arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The authenticated sender.
    pub from: ServerName,
    /// Over which path, counted in the order of the addresses in the configuration.
    pub path: u8,
    /// When the kernel received it.
    pub at: BootTime,
    /// The four timestamps of an offset estimate, once the peer has echoed one of ours.
    pub times: Option<FourTimes>,
}

/// Four timestamps in nanoseconds (RFC 5905, section 8): the peer's by its CLOCK_REALTIME, since 1970, ours as hbd
/// measured them, or by CLOCK_MONOTONIC_RAW, which nobody sets or slews, once it has told doctord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FourTimes {
    /// Sent by us.
    pub t1: u64,
    /// Received by the peer's kernel.
    pub t2: u64,
    /// Sent by the peer.
    pub t3: u64,
    /// Received by our kernel.
    pub t4: u64,
}

/// doctord to electd: the same, and the doctor's opinion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DoctordToElectd {
    /// A beat.
    Beat {
        /// The authenticated sender.
        from: ServerName,
        /// When the kernel received it.
        at: BootTime,
        /// The beat.
        beat: Beat,
    },
    /// An acknowledgement.
    Ack {
        /// The authenticated sender.
        from: ServerName,
        /// When the kernel received it.
        at: BootTime,
        /// The acknowledgement.
        ack: Ack,
    },
    /// The doctor's opinion, whenever it changes and every heartbeat interval.
    Health(Health),
}

/// The doctor's opinion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Every other server of the configuration.
    pub servers: Vec<ServerHealth>,
    /// Every interface that a virtual server uses.
    pub links: Vec<LinkHealth>,
}

/// The doctor's opinion about one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHealth {
    /// Which.
    pub server: ServerName,
    /// Opinion.
    pub state: HealthState,
    /// When its last beat arrived.
    pub last_heard: Option<BootTime>,
}

/// One word about a server's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HealthState {
    /// Heard within two heartbeat intervals.
    Alive,
    /// Not heard for longer than that.
    Suspect,
    /// Not heard for a lease.
    Dead,
    /// The doctor is blind or was late, and accuses nobody.
    Unknown,
}

impl HealthState {
    /// The word in `standin status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }
}

/// Carrier of one interface of this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkHealth {
    /// Its name.
    pub interface: String,
    /// Present, up and with carrier.
    pub up: bool,
}

/// electd to hbd: send this once on every path; drop it if it waited longer than a heartbeat interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElectdToHbd {
    /// To every other server.
    Beat {
        /// When electd made it.
        made: BootTime,
        /// The beat.
        beat: Beat,
    },
    /// To one server.
    Ack {
        /// When electd made it.
        made: BootTime,
        /// To whom.
        to: ServerName,
        /// The acknowledgement.
        ack: Ack,
    },
}

/// listend to electd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListendToElectd {
    /// A signal arrived.
    Signal {
        /// The authenticated sender.
        from: ServerName,
        /// What it says.
        signal: Signal,
    },
    /// The link to a server was made or lost.
    Link {
        /// Which server.
        server: ServerName,
        /// Signals can be sent now.
        up: bool,
    },
}

/// electd to syncd, when it changes, and all of it when the link is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElectdToSyncd {
    /// What this server is of a virtual server.
    Role {
        /// Of which.
        virtual_server: VirtualServerName,
        /// Master in this term; none: not master.
        master: Option<Term>,
    },
    /// Which other servers the doctor holds for dead.
    Dead(Vec<ServerName>),
}

/// syncd to electd: what this server's files are now, by completed runs. Each replaces the one before, also by less: a
/// disk may go. Who has not looked at the files says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncdToElectd(pub Freshness);

/// electd to listend: send this signal; drop it without a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectdToListend {
    /// To whom.
    pub to: ServerName,
    /// What.
    pub signal: Signal,
}
