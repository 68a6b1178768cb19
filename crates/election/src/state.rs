//! What the elector knows: of itself, of each virtual server, of each other server.

use crate::voter::Voter;
use protocol::VirtualServerName;
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term,
    local::ring::HealthState,
    wire::beat::{Beat, Claim, Participation, Standing},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Whether this server takes part (R20, R21).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    Blank,
    /// Nothing is promised until then, counted from the start; and not before a majority was heard.
    Silent {
        since: BootTime,
        until: BootTime,
    },
    Active,
}

/// The kernel's gate as far as the elector knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Shut,
    Open(BootTime),
    Shutting,
}

/// One virtual server.
#[derive(Clone, Debug)]
pub(crate) struct Virtual {
    pub voter: Voter,
    /// Highest floor anybody told.
    pub seen: Term,
    pub gate: Gate,
    pub mastership: Option<Mastership>,
    pub campaign: Option<Campaign>,
    pub leaving: Option<Leaving>,
    pub handover: Option<Handover>,
    /// Handed over in this term: until when a successor is waited for.
    pub succession: Option<(Term, BootTime)>,
    /// Since when nothing stands in the way of standing.
    pub ready_since: Option<BootTime>,
    /// When it stands, if nothing comes in the way until then.
    pub stand_at: Option<BootTime>,
    /// Why this server does not stand.
    pub obstacle: &'static str,
    /// Neither stand nor renew before then.
    pub not_before: BootTime,
    /// Failed attempts in a row.
    pub tries: u32,
    /// The gate cannot be opened here until then.
    pub broken_until: Option<BootTime>,
    /// The master last seen claiming, for the log and the operator.
    pub master: Option<(ServerName, Term)>,
    /// Why the role last changed.
    pub reason: String,
}

impl Virtual {
    pub fn new(floor: Term) -> Self {
        Self {
            voter: Voter::with_floor(floor),
            seen: floor,
            gate: Gate::Shut,
            mastership: None,
            campaign: None,
            leaving: None,
            handover: None,
            succession: None,
            ready_since: None,
            stand_at: None,
            obstacle: "just started",
            not_before: BootTime(0),
            tries: 0,
            broken_until: None,
            master: None,
            reason: "started".into(),
        }
    }

    /// The highest term known of anybody (R12).
    pub fn highest(&self) -> Term {
        self.voter.voted.max(self.seen)
    }

    /// Nobody can be harmed by this server's gate.
    pub fn is_idle(&self) -> bool {
        self.mastership.is_none() && self.campaign.is_none() && self.leaving.is_none()
    }

    pub fn gate_open(&self, now: BootTime) -> bool {
        matches!(self.gate, Gate::Open(until) if now <= until)
    }
}

/// This server is master.
#[derive(Clone, Debug)]
pub(crate) struct Mastership {
    pub term: Term,
    pub since: BootTime,
    /// `good[voter]`: until when this voter's promise may be used (R7).
    pub good: BTreeMap<ServerName, BootTime>,
}

/// Why this server calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody holds it.
    Ordinary,
    /// The old master invited this server (R19).
    Invited,
    /// This server is master and needs a higher term (R16).
    Renewal,
}

/// An election this server stands in.
#[derive(Clone, Debug)]
pub(crate) struct Campaign {
    pub kind: Kind,
    pub term: Term,
    pub lease: Duration,
    pub deadline: BootTime,
    pub phase: Phase,
}

#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Asking who would vote (R12).
    Pre {
        round: u64,
        yes: BTreeSet<ServerName>,
        no: BTreeSet<ServerName>,
        ask_again: BTreeMap<ServerName, BootTime>,
    },
    /// Waiting for votes (R13).
    Call {
        number: Number,
        sent: BootTime,
        granted: BTreeSet<ServerName>,
        refused: BTreeSet<ServerName>,
    },
    /// `quorum = none`: waiting for an answer of the virtual address.
    Probe,
}

/// Giving up: the gate is being shut, the Release follows.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    pub term: Term,
    pub invited: Option<ServerName>,
    pub was_master: bool,
    pub reason: String,
}

/// A planned handover: the successor was asked whether it is ready (R19).
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    pub to: ServerName,
    /// Asked next if this one is not ready.
    pub others: Vec<ServerName>,
    pub deadline: BootTime,
    pub reason: String,
    pub wish: Option<u64>,
    /// Give up even if nobody is ready.
    pub regardless: bool,
}

/// Another server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub beat: Option<Beat>,
    /// The beat names virtual servers in order, as every elector does.
    sorted: bool,
    /// That beat claims a virtual server.
    pub claims: bool,
    pub heard: Option<BootTime>,
    pub health: Option<HealthState>,
    pub last_heard: Option<BootTime>,
    /// The roster its last acknowledgement told as synced.
    pub roster: Option<RosterVersion>,
}

impl Peer {
    /// A newer beat; gives the one before.
    pub fn take_beat(&mut self, beat: Beat) -> Option<Beat> {
        let mut pairs = beat.standings.windows(2);
        self.sorted = pairs.all(|p| p[0].virtual_server < p[1].virtual_server);
        self.beat.replace(beat)
    }

    pub fn standing(&self, v: &VirtualServerName) -> Option<&Standing> {
        let all = &self.beat.as_ref()?.standings;
        if self.sorted {
            let place = all.binary_search_by(|s| s.virtual_server.cmp(v)).ok()?;
            return all.get(place);
        }
        all.iter().find(|s| &s.virtual_server == v)
    }

    /// Its claim, unless `voter` knows that it was released since.
    pub fn claim(&self, me: &ServerName, v: &VirtualServerName, voter: &Voter) -> Option<Claim> {
        let beat = self.beat.as_ref()?;
        let claim = self.standing(v)?.claim?;
        (!voter.is_released(me, beat.instance, beat.number)).then_some(claim)
    }

    /// It has no reservation, as far as it told (R21).
    pub fn is_blank(&self) -> bool {
        let blank = |beat: &Beat| beat.participation == Participation::Blank;
        self.beat.as_ref().is_some_and(blank)
    }

    pub fn is_newer(&self, instance: Instance, number: Number) -> bool {
        self.beat
            .as_ref()
            .is_none_or(|b| b.instance != instance || number > b.number)
    }
}

/// The answers to a wish that concerns several virtual servers, as they come in.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    missing: usize,
    refused: bool,
    said: Vec<String>,
}

impl Parts {
    pub fn of(virtual_servers: usize) -> Self {
        Self {
            missing: virtual_servers,
            refused: false,
            said: Vec::new(),
        }
    }

    /// Notes one; the whole answer after the last: a refusal if one of them is.
    pub fn add(&mut self, answer: &Result<String, String>) -> Option<Result<String, String>> {
        let (Ok(text) | Err(text)) = answer;
        self.refused |= answer.is_err();
        self.said.push(text.clone());
        self.missing = self.missing.saturating_sub(1);
        let whole = || self.said.join("; ");
        (self.missing == 0).then(|| {
            if self.refused {
                Err(whole())
            } else {
                Ok(whole())
            }
        })
    }
}

/// An operator waits for this to be seen.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub id: u64,
    pub virtual_server: VirtualServerName,
    /// This server must claim it; or anybody else.
    pub to: Option<ServerName>,
    pub deadline: BootTime,
}
