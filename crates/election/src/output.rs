//! What the elector wants done. The order is a promise: a shell carries the outputs out one after another.

use crate::{memory::Memory, reservation::Reservation, state::Change};
use protocol::{
    BootTime, ServerName, Term, VirtualServerName,
    wire::{
        beat::{Ack, Beat},
        signal::{Client, Signal},
    },
};
use std::time::Duration;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write this to the run-dir before anything that follows is carried out. The shell adds boot id and
    /// sequence.
    Remember(Memory),
    /// Send this beat to every other server. The beat's time was taken by the core before this output.
    Beat(Beat),
    /// Send this acknowledgement.
    Ack {
        /// To whom.
        to: ServerName,
        /// The acknowledgement.
        ack: Ack,
    },
    /// Send this signal.
    Signal {
        /// To whom.
        to: ServerName,
        /// The signal.
        signal: Signal,
    },
    /// Open or extend the gate until this absolute time (ELECTION R8).
    Open(VirtualServerName, BootTime),
    /// Shut the gate now; [`crate::Input::GateShut`] follows when it reads back shut.
    Shut(VirtualServerName),
    /// The same for a successor that is to come within the time given: what still arrives may be kept for it, and
    /// replies may leave for a moment more, under the lease.
    HandOver(VirtualServerName, Duration),
    /// After [`Output::HandOver`]: another server got this one's vote in a higher term, or claims in it. It has what
    /// was kept as soon as it announces the addresses.
    Succeeded(VirtualServerName),
    /// Announce the addresses again: a rival was heard, or a network healed.
    Announce(VirtualServerName),
    /// Keep these clients in mind, the master has seen them: the next opening asks each by itself.
    Clients(VirtualServerName, Vec<Client>),
    /// `quorum = none`: ask whether anybody answers for the addresses.
    Probe(VirtualServerName),
    /// Sync this reservation to disk in the background; [`crate::Input::Reserved`] follows.
    Reserve(Reservation),
    /// The role changed: log it, run the role scripts.
    Role(RoleChange),
    /// The last change of a virtual server, for `standin status`: keep it for the next electd.
    Changed(VirtualServerName, Change),
    /// For the log and `standin status`: an operator must know.
    Alarm(String),
    /// For the log: life and state changes.
    Notice(String),
    /// The answer to an operator.
    Answer {
        /// The wish's id.
        id: u64,
        /// Done, or not, in words.
        answer: Result<String, String>,
    },
    /// After [`crate::Input::Stop`]: every mastership is handed over or released. The reservation given
    /// here is to be synced as the last act (ELECTION R22).
    Stopped(Option<Reservation>),
}

/// A change of this server's role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// In which virtual server.
    pub virtual_server: VirtualServerName,
    /// Master now, or slave.
    pub master: bool,
    /// In which term.
    pub term: Term,
    /// The same master in a higher term (R16): role scripts do not run.
    pub renewed: bool,
    /// Who is master now, if known.
    pub holder: Option<ServerName>,
    /// Why, in words.
    pub reason: String,
}
