//! The signals: what electors say to each other over the TCP links (ELECTION, "Messages").

use super::beat::Why;
use crate::ids::{Instance, Number, RosterVersion, ServerName, Term, VirtualServerName};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};

/// One signal about one virtual server. The link that carries it vouches for the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Which virtual server.
    pub virtual_server: VirtualServerName,
    /// The sender's electd instance.
    pub instance: Instance,
    /// The sender's number: a Call's own, otherwise the last one used.
    pub number: Number,
    /// What is said.
    pub body: Body,
}

/// What a signal says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Would you vote for me in this term? Changes nothing anywhere (ELECTION R12).
    PreCall {
        /// The term asked about.
        term: Term,
        /// The caller's lease.
        lease: Duration,
        /// Distinguishes the caller's rounds.
        round: u64,
    },
    /// The answer to a PreCall.
    PreAnswer {
        /// The term asked about.
        term: Term,
        /// The round asked in.
        round: u64,
        /// Yes, or no and why.
        verdict: PreVerdict,
    },
    /// Vote for me (ELECTION R13).
    Call {
        /// In this term.
        term: Term,
        /// For this lease.
        lease: Duration,
        /// Releases the caller knows of, relayed as fact (ELECTION R18).
        releases: Vec<Released>,
        /// The roster the caller counts by.
        roster: RosterVersion,
    },
    /// The vote, which is a promise (ELECTION R14).
    Grant {
        /// The call's instance.
        instance: Instance,
        /// The call's number.
        number: Number,
        /// The call's term.
        term: Term,
    },
    /// No vote.
    Refuse {
        /// The call's instance.
        instance: Instance,
        /// The call's number.
        number: Number,
        /// The call's term.
        term: Term,
        /// The reason.
        why: Why,
        /// The highest term the voter has voted or acknowledged in.
        floor: Term,
    },
    /// Nothing I sent up to this signal's number counts any more (ELECTION R18).
    Release {
        /// The term given up.
        term: Term,
        /// Who is invited to call at once, if anybody (ELECTION R19).
        invited: Option<ServerName>,
    },
    /// Could you take over now? (ELECTION R19)
    ReadyQuery,
    /// Yes.
    Ready,
    /// No.
    NotReady {
        /// In words, for the operator.
        why: String,
    },
    /// An operator at the sender asks the master to hand over to this server.
    HandOver {
        /// The server to hand over to.
        to: ServerName,
    },
    /// Who uses the addresses, as far as the master has seen: its successor asks each of them by itself.
    /// It adds to what was told before. It is advice: nothing of the election depends on it.
    Clients {
        /// At most [`CLIENTS_MAX`] of them.
        clients: Vec<Client>,
    },
}

/// Most clients in one signal.
pub const CLIENTS_MAX: usize = 512;

/// A neighbour on the interface of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its address.
    pub ip: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// So many seconds ago it was last seen.
    pub age_s: u32,
}

/// Answer to a PreCall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreVerdict {
    /// I would vote for you now.
    Yes,
    /// I would not.
    No {
        /// The reason.
        why: Why,
        /// The highest term the voter has voted or acknowledged in.
        floor: Term,
        /// If only time stands in the way: how long from now.
        retry_after: Option<Duration>,
    },
}

/// A release known as fact: nothing `server` sent up to (`instance`, `number`) counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Who released.
    pub server: ServerName,
    /// Its instance.
    pub instance: Instance,
    /// The last number released.
    pub number: Number,
}
