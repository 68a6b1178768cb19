//! The systems compared, and a running cluster of each.

use lab::{Cluster, DEFAULT, Error, FAST, FASTEST, Keepalived, LONG, Net, Profile, Signal, Spec};
use std::time::Duration;

/// Servers of a cluster.
pub const SERVERS: usize = 3;
/// The roles of standin.
pub const ROLES: [&str; 4] = ["hbd", "listend", "doctord", "electd"];

/// One of the systems compared.
#[derive(Clone, Copy)]
pub struct System {
    /// What the command line calls it.
    pub key: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// How to start it.
    pub kind: Kind,
    /// Stalls of the machine longer than this make a figure worthless.
    pub resolution: Duration,
    /// Only these of the usual scenarios.
    pub scenarios: Option<&'static [&'static str]>,
    /// Part of a run that names no systems.
    pub usual: bool,
}

/// How to start a system.
#[derive(Clone, Copy)]
pub enum Kind {
    /// With this interval of adverts.
    Keepalived(Duration),
    /// With these times.
    Standin(Profile),
}

const fn system(key: &'static str, title: &'static str, kind: Kind, resolution_ms: u64) -> System {
    System {
        key,
        title,
        kind,
        resolution: Duration::from_millis(resolution_ms),
        scenarios: None,
        usual: true,
    }
}

const fn keepalived(interval_ms: u64) -> Kind {
    Kind::Keepalived(Duration::from_millis(interval_ms))
}

/// All systems, in the order of the table's columns.
pub const SYSTEMS: [System; 7] = [
    System {
        scenarios: Some(&["power", "cable", "partition", "stop", "handover"]),
        ..system("k1s", "keepalived 1 s", keepalived(1000), 100)
    },
    System {
        scenarios: Some(&["loss", "idle"]),
        ..system("k100", "keepalived 100 ms", keepalived(100), 25)
    },
    system("k10", "keepalived 10 ms", keepalived(10), 4),
    system("default", "standin default", Kind::Standin(DEFAULT), 25),
    system("fast", "standin fast", Kind::Standin(FAST), 4),
    system("fastest", "standin fastest", Kind::Standin(FASTEST), 4),
    System {
        usual: false,
        ..system("long", "standin, lease 3 s", Kind::Standin(LONG), 100)
    },
];

/// A running cluster of either kind.
pub enum Subject {
    Keepalived(Keepalived),
    Standin(Cluster),
}

impl Subject {
    pub fn start(kind: Kind) -> Result<Self, Error> {
        Ok(match kind {
            Kind::Keepalived(interval) => Self::Keepalived(Keepalived::start(SERVERS, interval)?),
            Kind::Standin(profile) => Self::Standin(Cluster::start(Spec {
                profile,
                ..Spec::default()
            })?),
        })
    }

    /// As [`Subject::start`], with a MAC address that moves along.
    pub fn start_virtual_mac(kind: Kind) -> Result<Self, Error> {
        Ok(match kind {
            Kind::Keepalived(interval) => {
                Self::Keepalived(Keepalived::start_virtual_mac(SERVERS, interval)?)
            }
            Kind::Standin(profile) => Self::Standin(Cluster::start(Spec {
                profile,
                mac: "virtual",
                ..Spec::default()
            })?),
        })
    }

    pub fn net(&self) -> &Net {
        match self {
            Self::Keepalived(k) => k.net(),
            Self::Standin(c) => c.net(),
        }
    }

    pub fn settle(&self) -> Result<usize, Error> {
        match self {
            Self::Keepalived(k) => k.settle(),
            Self::Standin(c) => c.settle(),
        }
    }

    pub fn power_loss(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.power_loss(server),
            Self::Standin(c) => c.power_loss(server),
        }
    }

    pub fn power_on(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.power_on(server),
            Self::Standin(c) => c.power_on(server),
        }
    }

    pub fn stop(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.stop(server),
            Self::Standin(c) => c.stop(server),
        }
    }

    pub fn promote(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.promote(server),
            Self::Standin(c) => {
                let name = c.name(server).to_owned();
                c.tell(0, &["promote", &name]).map(drop)
            }
        }
    }

    /// A Unix signal to every process of a server, or of one role of standin.
    pub fn signal(&self, server: usize, role: Option<&str>, signal: Signal) -> Result<(), Error> {
        let processes = self.net().servers()[server].processes();
        let meant = |p: &&lab::Process| role.is_none_or(|role| p.name == role);
        processes
            .iter()
            .filter(meant)
            .try_for_each(|p| p.signal(signal))
    }

    /// What a handover needs to be undone.
    pub fn demote(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.demote(server),
            Self::Standin(_) => Ok(()),
        }
    }
}
