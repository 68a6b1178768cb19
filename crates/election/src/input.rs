//! What the elector is told.

use crate::{memory::Memory, reservation::Reservation};
use protocol::{
    BootTime, Instance, ServerName, VirtualServerName,
    local::ring::Health,
    wire::{
        beat::{Ack, Beat, Freshness},
        signal::{Client, Signal},
    },
};
use std::{collections::BTreeMap, time::Duration};

/// The configuration as far as it concerns the elector. Everything but `me` and `mode` may change at will.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This server.
    pub me: ServerName,
    /// Heartbeat interval h.
    pub heartbeat: Duration,
    /// Lease L.
    pub lease: Duration,
    /// Taken off the usable part of a lease, for a gate that does not keep absolute time (ELECTION R1).
    pub margin: Duration,
    /// How the elector makes sure to be alone.
    pub mode: Mode,
    /// This server votes and never serves.
    pub witness: bool,
    /// All servers of the configuration, this one included, sorted.
    pub servers: Vec<ServerName>,
    /// The virtual servers of the configuration.
    pub virtual_servers: BTreeMap<VirtualServerName, VirtualServerSettings>,
    /// Hash of the configuration, told in beats.
    pub config_hash: u64,
}

/// One virtual server's settings.
#[derive(Clone, Debug)]
pub struct VirtualServerSettings {
    /// The interface that carries its addresses.
    pub interface: String,
    /// This server's priority for it.
    pub priority: u32,
    /// Whether a better server is preferred to the present master.
    pub preempt: Preempt,
}

/// Preference of a server: always a planned handover begun by the master (ELECTION R27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    /// The winner stays.
    Never,
    /// Hand over to a server with fresher files.
    Fresher,
    /// Hand over to the server first in rank.
    Always,
}

/// How the elector makes sure to be alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// More than half of the roster: never two masters.
    Majority,
    /// Nobody is asked: available in every partition, two masters while it lasts.
    None,
}

/// What a starting elector finds.
#[derive(Clone, Debug)]
pub struct Start {
    /// 64 random bits.
    pub instance: Instance,
    /// Seed of the back-off.
    pub seed: u64,
    /// The reservation file, if it is there and good.
    pub reservation: Option<Reservation>,
    /// The run-dir's memory, if it is of this boot and good.
    pub memory: Option<Memory>,
    /// Gates still open, with their deadlines.
    pub gates: Vec<(VirtualServerName, BootTime)>,
}

/// One event.
#[derive(Clone, Debug)]
pub enum Input {
    /// A beat of another server, through hbd and doctord.
    Beat {
        /// The authenticated sender.
        from: ServerName,
        /// When it arrived.
        at: BootTime,
        /// The beat.
        beat: Beat,
    },
    /// An acknowledgement of one of this server's beats.
    Ack {
        /// The authenticated sender.
        from: ServerName,
        /// The acknowledgement.
        ack: Ack,
    },
    /// A signal of another server, through listend.
    Signal {
        /// The authenticated sender.
        from: ServerName,
        /// The signal.
        signal: Signal,
    },
    /// The doctor's opinion.
    Health(Health),
    /// Signals can be sent to this server again.
    Linked(ServerName),
    /// The doctor cannot be heard: this server accuses nobody.
    DoctorLost,
    /// The gate of a virtual server was read back shut.
    GateShut(VirtualServerName),
    /// The gate of a virtual server cannot be opened here; why.
    GateBroken(VirtualServerName, String),
    /// Another machine claims an address of a virtual server.
    ForeignClaim(VirtualServerName),
    /// Another machine, no server of the cluster, has one of its addresses, which are not to be taken from it; or it has
    /// none any more. Comes again for as long as it has one; the first word is [`Input::GateBroken`].
    Taken(VirtualServerName, bool),
    /// The clients seen on the interface of a virtual server: the other servers are told if this one is
    /// master.
    Clients(VirtualServerName, Vec<Client>),
    /// `quorum = none`: did anybody answer for the addresses?
    Probed(VirtualServerName, bool),
    /// This reservation is on disk now.
    Reserved(Reservation),
    /// The reservation could not be written; why. It is tried again.
    ReserveFailed(String),
    /// How fresh its files are now; what was said before counts no more.
    Fresh(Freshness),
    /// The configuration was read again.
    Settings(Settings),
    /// The operator wants something; `id` comes back with the answer.
    Operator {
        /// Comes back in [`crate::Output::Answer`].
        id: u64,
        /// What.
        wish: Wish,
    },
    /// Stop cleanly: hand over, then [`crate::Output::Stopped`].
    Stop,
}

/// What an operator may want.
#[derive(Clone, Debug)]
pub enum Wish {
    /// Hand over to this server.
    Promote(ServerName, Option<VirtualServerName>),
    /// Hand over to whoever is ready.
    Resign,
    /// Take no mastership, or take part again.
    Maintenance(bool),
    /// Add a voter.
    Add(ServerName),
    /// Remove a voter.
    Remove(ServerName),
}
