//! What the elector knows: of itself, of each virtual server, of each other server.

use crate::voter::Voter;
use mutants::{Mutant, planted};
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
    /// The last change of role or master.
    pub change: Change,
}

/// A change of this server's role for a virtual server, or of its master; a renewed mastership is none. For operators
/// alone: nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When; none: nothing has changed since electd knows of the virtual server.
    pub at: Option<BootTime>,
    /// Who has been master since, as far as known.
    pub master: Option<ServerName>,
    /// Why, in words.
    pub reason: String,
}

impl Change {
    /// `master` claims it in `term`; whether that is a change. Where this server has just ceased to be master, the reason
    /// for that lasts.
    pub(crate) fn follow(&mut self, now: BootTime, master: &ServerName, term: Term) -> bool {
        if self.master.as_ref() == Some(master) {
            return false;
        }
        let before = self.master.replace(master.clone());
        match (self.at, before) {
            (Some(_), None) => {}
            (_, Some(before)) => {
                self.at = Some(now);
                self.reason = format!("{master} is master in term {term}, after {before}");
            }
            (None, None) => {
                self.at = Some(now);
                self.reason = format!("{master} is master in term {term}");
            }
        }
        true
    }
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
            change: Change {
                at: None,
                master: None,
                reason: "started".into(),
            },
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

/// By which beat a standing came.
pub(crate) type Older = BTreeMap<VirtualServerName, (Instance, Number)>;

/// By which beat what is known of `v` came: by the newest, unless only an older one named it.
pub(crate) fn came_by(newest: &Beat, older: &Older, v: &VirtualServerName) -> (Instance, Number) {
    let older = older.get(v).copied();
    older.unwrap_or((newest.instance, newest.number))
}

/// Another server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// The newest; of its standings those that came last, for a part leaves the others as they are (R25).
    pub beat: Option<Beat>,
    /// The standings name virtual servers in order, as every elector does.
    sorted: bool,
    /// Standings that no part of the newest beat has named yet, and by which beat they came.
    pub older: Older,
    /// Parts of the newest beat that have come.
    pub parts: BTreeSet<u16>,
    /// All parts of one beat have come since the server started or was blank: what they did not name it does not have.
    pub complete: bool,
    /// That beat claims a virtual server.
    pub claims: bool,
    pub heard: Option<BootTime>,
    pub health: Option<HealthState>,
    pub last_heard: Option<BootTime>,
    /// The roster its last acknowledgement told as synced.
    pub roster: Option<RosterVersion>,
}

impl Peer {
    /// A newer beat, or another part of the newest; gives what was known before.
    pub fn take_beat(&mut self, mut beat: Beat) -> Option<Beat> {
        let former = self.beat.take();
        let part = beat.part.0;
        let same = |f: &Beat| f.instance == beat.instance && f.participation == beat.participation;
        self.complete &= former.as_ref().is_some_and(same);
        let is_newest = |f: &Beat| (f.instance, f.number) == (beat.instance, beat.number);
        if !former.as_ref().is_some_and(is_newest) {
            self.parts.clear();
        }
        self.parts.insert(part.index);
        if part.of > 1 {
            if let Some(former) = former
                .as_ref()
                .filter(|_| !planted(Mutant::PartTakenForAll))
            {
                self.keep_unnamed(former, &mut beat);
            }
            beat.standings
                .sort_by_cached_key(|s| s.virtual_server.clone());
        } else {
            self.older.clear();
        }
        if self.parts.len() >= usize::from(part.of) {
            let older = std::mem::take(&mut self.older);
            let named = |s: &Standing| !older.contains_key(&s.virtual_server);
            beat.standings.retain(named);
            self.complete = true;
        }
        let mut pairs = beat.standings.windows(2);
        self.sorted = pairs.all(|p| p[0].virtual_server < p[1].virtual_server);
        self.claims = beat.standings.iter().any(|s| s.claim.is_some());
        self.beat = Some(beat);
        former
    }

    /// Adds to a part what it does not name, as it was.
    fn keep_unnamed(&mut self, former: &Beat, beat: &mut Beat) {
        let named: BTreeSet<_> = beat.standings.iter().map(|s| &s.virtual_server).collect();
        self.older.retain(|v, _| !named.contains(v));
        let unnamed = |s: &&Standing| !named.contains(&s.virtual_server);
        let kept: Vec<_> = former.standings.iter().filter(unnamed).cloned().collect();
        let newest = (former.instance, former.number);
        if newest != (beat.instance, beat.number) {
            for standing in &kept {
                let v = standing.virtual_server.clone();
                self.older.entry(v).or_insert(newest);
            }
        }
        beat.standings.extend(kept);
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
        let (instance, number) = came_by(beat, &self.older, v);
        (!voter.is_released(me, instance, number)).then_some(claim)
    }

    /// It has no reservation, as far as it told (R21).
    pub fn is_blank(&self) -> bool {
        let blank = |beat: &Beat| beat.participation == Participation::Blank;
        self.beat.as_ref().is_some_and(blank)
    }

    /// Newer than what is known, or a part of the newest that has not come yet.
    pub fn is_news(&self, beat: &Beat) -> bool {
        self.beat.as_ref().is_none_or(|known| {
            known.instance != beat.instance
                || beat.number > known.number
                || beat.number == known.number && !self.parts.contains(&beat.part.0.index)
        })
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::{
        version::Since,
        wire::beat::{Freshness, Part, Roster},
    };
    use std::time::Duration;

    /// Part `index` of `of` of a beat that names these virtual servers, claimed if written in capitals.
    fn part(number: u64, (index, of): (u16, u16), names: &[&str]) -> Beat {
        let standing = |name: &&str| Standing {
            virtual_server: name.to_lowercase().parse().unwrap(),
            floor: Term(number),
            claim: (name.to_lowercase() != **name).then_some(Claim {
                term: Term(1),
                lease_held: true,
            }),
            fit: true,
            priority: 1,
        };
        Beat {
            instance: Instance(1),
            number: Number(number),
            lease: Duration::from_secs(1),
            promise_max: Duration::from_secs(1),
            floor_base: Term(0),
            participation: Participation::Active,
            maintenance: false,
            witness: false,
            freshness: Freshness::default(),
            standings: names.iter().map(standing).collect(),
            heard: Vec::new(),
            roster: Roster::default(),
            config_hash: 1,
            part: Since(Part { index, of }),
        }
    }

    fn claimed(peer: &Peer) -> String {
        let me = "alpha".parse().unwrap();
        let (voter, beat) = (Voter::with_floor(Term(0)), peer.beat.as_ref().unwrap());
        let names = beat.standings.iter().map(|s| &s.virtual_server);
        let claimed = names.filter(|v| peer.claim(&me, v, &voter).is_some());
        claimed.map(|v| v.to_string()).collect()
    }

    #[test]
    fn what_a_part_does_not_name_is_as_it_was() {
        let mut peer = Peer::default();
        peer.take_beat(part(1, (0, 2), &["A", "b"]));
        assert!(!peer.complete, "c may be there");
        peer.take_beat(part(1, (1, 2), &["C"]));
        assert_eq!((claimed(&peer).as_str(), peer.complete), ("ac", true));
        peer.take_beat(part(2, (0, 2), &["a", "B"]));
        assert_eq!(claimed(&peer), "bc", "the other part was lost");
        assert_eq!(peer.older.len(), 1);
        peer.take_beat(part(3, (1, 2), &["c"]));
        assert_eq!(claimed(&peer), "b");
    }

    #[test]
    fn what_no_part_of_a_beat_names_is_gone() {
        let mut peer = Peer::default();
        peer.take_beat(part(1, (0, 1), &["A", "B", "C"]));
        peer.take_beat(part(2, (1, 2), &["C"]));
        assert_eq!(claimed(&peer), "abc");
        peer.take_beat(part(2, (0, 2), &["A"]));
        assert_eq!((claimed(&peer).as_str(), peer.older.len()), ("ac", 0));
        peer.take_beat(part(3, (0, 1), &["A"]));
        assert_eq!(claimed(&peer), "a");
    }

    #[test]
    fn a_whole_beat_takes_the_place_of_all_parts_before_it() {
        let mut peer = Peer::default();
        peer.take_beat(part(1, (0, 1), &["a", "B"]));
        peer.take_beat(part(2, (0, 2), &["A"]));
        assert_eq!(peer.older.len(), 1);
        peer.take_beat(part(3, (0, 1), &["a", "B"]));
        assert_eq!((claimed(&peer).as_str(), peer.older.len()), ("b", 0));
    }

    #[test]
    fn each_part_of_a_number_is_news_once() {
        let mut peer = Peer::default();
        for (number, index) in [(1, 1), (1, 0), (2, 0)] {
            let beat = part(number, (index, 2), &["a"]);
            assert!(peer.is_news(&beat));
            peer.take_beat(beat.clone());
            assert!(!peer.is_news(&beat));
        }
        assert!(!peer.is_news(&part(1, (0, 2), &["a"])), "an older one");
    }

    #[test]
    fn what_was_told_by_another_run_or_while_blank_is_not_complete() {
        let blank = |number, place| Beat {
            participation: Participation::Blank,
            ..part(number, place, &["a"])
        };
        let mut peer = Peer::default();
        peer.take_beat(blank(1, (0, 1)));
        peer.take_beat(part(2, (0, 2), &["a"]));
        assert!(!peer.complete);
        peer.take_beat(part(2, (1, 2), &["b"]));
        assert!(peer.complete);
        let mut restarted = part(1, (0, 2), &["a"]);
        restarted.instance = Instance(2);
        peer.take_beat(restarted);
        assert!(!peer.complete);
    }

    #[test]
    fn a_claim_that_an_older_beat_made_is_released_with_that_beat() {
        let mut peer = Peer::default();
        peer.take_beat(part(1, (0, 1), &["A", "B"]));
        peer.take_beat(part(2, (0, 2), &["A"]));
        let (beta, mut voter) = ("beta".parse().unwrap(), Voter::with_floor(Term(0)));
        voter.release(&beta, Instance(1), Number(1), BootTime(1));
        let claims = |v: &str| peer.claim(&beta, &v.parse().unwrap(), &voter).is_some();
        assert_eq!((claims("a"), claims("b")), (true, false));
    }
}
