//! Reservation, promise_max, roster: what is synced to disk, never in the path of an election (ELECTION
//! R20 to R24).

use crate::{
    elector::Elector,
    input::Mode,
    output::Output,
    reservation::{BLOCK, Reservation},
    state::{Peer, Taking},
};
use mutants::{Mutant, planted};
use protocol::{
    BootTime, RosterVersion, ServerName, Term, VirtualServerName,
    wire::beat::{Participation, Roster},
};
use std::time::Duration;

/// The voters of a roster in one line.
fn names(roster: &Roster) -> String {
    let voters: Vec<_> = roster.voters.iter().map(|v| v.as_str()).collect();
    voters.join(" ")
}

/// No configuration has a longer lease: nobody is made silent for longer by a wild number.
const LEASE_MAX: Duration = Duration::from_secs(10);

impl Elector {
    /// R5, R13, R14: this term and this lease are covered by what is on disk, whatever becomes of the power.
    pub(crate) fn is_synced(&self, term: Term, lease: Duration) -> bool {
        (term <= self.reservation.reserved || planted(Mutant::ReservationNotSynced))
            && (lease <= self.longest || planted(Mutant::LongPromiseNotSynced))
    }

    /// Something asks for a term or a lease that is not synced yet.
    pub(crate) fn need(&mut self, term: Term, lease: Duration) {
        if term > self.reservation.reserved {
            self.wanted.reserved = self.wanted.reserved.max(Term(term.0.saturating_add(BLOCK)));
        }
        self.wanted.promise_max = self.wanted.promise_max.max(lease.min(LEASE_MAX));
    }

    /// A promise for `lease` was given (R23).
    pub(crate) fn note_promise(&mut self, lease: Duration) {
        self.promised_max.0 = self.promised_max.0.max(lease);
    }

    /// R22: half a block above every floor; R23: the longest promise, lowered when long past. One write
    /// at a time.
    pub(crate) fn keep_reservation(&mut self, now: BootTime) {
        if self.taking == Taking::Blank {
            return;
        }
        let floor = self
            .virtuals
            .values()
            .map(|v| v.highest())
            .max()
            .unwrap_or_default()
            .max(self.floor_base);
        if self.wanted.reserved.0 < floor.0.saturating_add(BLOCK / 2) {
            self.wanted.reserved = Term(floor.0.saturating_add(BLOCK));
        }
        let (current, former, end) = self.promised_max;
        if now > end {
            let current = if planted(Mutant::LongestLoweredEarly) {
                former
            } else {
                current
            };
            let longest = current.max(former).max(self.settings.lease).max(self.lease);
            if longest < self.wanted.promise_max {
                self.wanted.promise_max = longest;
            }
            self.promised_max = (Duration::ZERO, current, now + self.reservation.promise_max);
        }
        // R23: promised since a lower value was chosen, while another write was under way.
        let (current, former, _) = self.promised_max;
        self.wanted.promise_max = self.wanted.promise_max.max(current).max(former);
        let done = self.wanted == self.reservation && !self.unsure;
        if self.reserve_again.is_some_and(|at| now < at) || self.reserving || done {
            return;
        }
        self.reserve_again = None;
        self.reserving = true;
        self.longest = self.longest.min(self.wanted.promise_max); // R23: from now on it may be on disk
        self.outputs.push_back(Output::Reserve(self.wanted.clone()));
    }

    /// On disk now: in force from here on.
    pub(crate) fn reserved(&mut self, reservation: Reservation) {
        (self.reserving, self.unsure) = (false, false);
        self.longest = reservation.promise_max;
        let changed = reservation.roster.version != self.reservation.roster.version;
        self.reservation = reservation;
        if changed {
            let roster = &self.reservation.roster;
            let text = format!("roster {} in force: {}", roster.version, names(roster));
            self.notice(text);
        }
    }

    /// R21: a blank server is one no longer when every other server of the roster has told its floor.
    pub(crate) fn blank_learns(&mut self, now: BootTime) {
        if self.taking != Taking::Blank || self.wanted.roster.voters.is_empty() {
            return;
        }
        let mut floor = Term(0);
        let mut longest = self.settings.lease;
        for voter in self
            .wanted
            .roster
            .voters
            .iter()
            .filter(|v| **v != self.settings.me)
        {
            // What a part does not name may have any floor.
            let peer = self.peers.get(voter).filter(|p| p.complete);
            let told = peer.and_then(|p| p.beat.as_ref());
            let Some(beat) = told.filter(|b| b.participation != Participation::Blank) else {
                return;
            };
            floor = beat
                .standings
                .iter()
                .map(|s| s.floor)
                .fold(floor.max(beat.floor_base), Term::max);
            if !planted(Mutant::BlankForgetsLeases) {
                longest = longest.max(beat.promise_max.min(LEASE_MAX));
            }
            if planted(Mutant::BlankForgetsFloors) {
                floor = Term(0);
            }
        }
        let version = self.wanted.roster.version;
        self.notice(format!(
            "blank no longer: floor {floor} and roster {version} told by the others"
        ));
        self.wanted.reserved = floor;
        self.wanted.promise_max = longest;
        (self.reservation.promise_max, self.longest) = (longest, longest);
        self.fall_silent(floor, now);
    }

    /// R20, R21: while silent, for as long as any of the others may have been promised: this server's reservation may
    /// be from before a lease was raised. It is noted as promised, so that the disk holds it as long as it may bind.
    pub(crate) fn learn_silent(&mut self, told: Duration) {
        let told = told.min(LEASE_MAX);
        if planted(Mutant::ToldSilenceIgnored) {
            return;
        }
        let Taking::Silent { since, until } = &mut self.taking else {
            return;
        };
        if *since + told > *until {
            *until = *since + told;
            self.remember = true;
        }
        self.note_promise(told);
    }

    /// Voters heard since electd started, this one among them, make a majority: what they told is known. Without a
    /// quorum nobody is asked.
    pub(crate) fn has_heard_a_majority(&self) -> bool {
        let heard = |name: &&ServerName| {
            **name == self.settings.me || self.peers.get(*name).is_some_and(|p| p.beat.is_some())
        };
        self.settings.mode == Mode::None
            || planted(Mutant::SilenceUnheard)
            || self.counted_roster().voters.iter().filter(heard).count() >= self.quorum()
    }

    /// R21: if all others are blank as well nobody will ever tell anything, and only an operator can end that.
    pub(crate) fn warn_if_all_are_blank(&mut self) {
        let told = &self.wanted.roster.voters;
        let servers = if told.is_empty() {
            &self.settings.servers
        } else {
            told
        };
        let is_blank = |name| self.peers.get(name).is_some_and(Peer::is_blank);
        let all = self.taking == Taking::Blank
            && servers
                .iter()
                .all(|name| *name == self.settings.me || is_blank(name));
        if all && !self.all_are_blank {
            self.outputs.push_back(Output::Alarm(
                "blank, and so is every other server: none can tell the others what they need; on a new cluster run \
                 `standin init` on each server, on one that was restored on other machines `standin init --adopt`"
                    .into(),
            ));
        }
        self.all_are_blank = all;
    }

    /// R24: the higher replaces the lower, synced before the next acknowledgement, which tells it.
    pub(crate) fn offered_roster(&mut self, roster: &Roster) {
        let better =
            roster.version > self.wanted.roster.version || self.wanted.roster.voters.is_empty();
        if better && !roster.voters.is_empty() {
            self.wanted.roster = roster.clone();
            self.virtuals.stir_all(); // leases are counted by it from now on
        }
    }

    /// R5, R14, R24: who asks counts by an older roster than this server has on disk.
    pub(crate) fn is_outdated(&self, roster: RosterVersion) -> bool {
        self.settings.mode == Mode::Majority && roster < self.reservation.roster.version
    }

    /// R24: the version that an acknowledgement tells: the one on disk, or a lower one by which promises in force may
    /// still be counted.
    pub(crate) fn settled_roster(&self, now: BootTime) -> RosterVersion {
        let promises = self
            .virtuals
            .values()
            .filter_map(|v| v.voter.counted_by(now));
        if planted(Mutant::PromisesNotSettled) {
            return self.reservation.roster.version;
        }
        promises.fold(self.reservation.roster.version, RosterVersion::min)
    }

    /// R24: a new master of the keeper restamps the roster with its own term.
    pub(crate) fn restamp_roster(&mut self, name: &VirtualServerName, term: Term) {
        if self.wanted.roster.keeper.as_ref() == Some(name) && self.settings.mode == Mode::Majority
        {
            self.wanted.roster.version = RosterVersion { term, counter: 0 };
        }
    }

    /// R24: adds or removes one server; only the keeper's master, with lease, and only when a majority of
    /// the present roster is known to hold the present version of its own term.
    pub(crate) fn change_roster(&mut self, now: BootTime, id: u64, server: &ServerName, add: bool) {
        let answer = self.try_change_roster(now, server, add);
        match answer {
            Ok(roster) => {
                self.roster_wish = Some((id, roster.version));
                self.wanted.roster = roster;
            }
            Err(why) => self.answer(id, Err(why)),
        }
    }

    fn try_change_roster(
        &mut self,
        now: BootTime,
        server: &ServerName,
        add: bool,
    ) -> Result<Roster, String> {
        if self.settings.mode == Mode::None {
            return Err("quorum = none has no voters".into());
        }
        let present = self.reservation.roster.clone();
        let listed = present.voters.contains(server);
        if add == listed {
            let state = if listed { "already" } else { "not" };
            return Err(format!("{server} is {state} in the roster"));
        }
        let Some(keeper) = present.keeper.clone() else {
            return Err("the roster names no virtual server whose master may change it".into());
        };
        let Some(v) = self.virtuals.get(&keeper) else {
            return Err(format!(
                "the master of {keeper} changes the roster, and it is not configured"
            ));
        };
        let Some(mastership) = &v.mastership else {
            let master = v
                .master
                .as_ref()
                .map_or("its master".to_owned(), |(m, _)| m.to_string());
            return Err(format!(
                "only the master of {keeper} changes the roster: run this on {master}"
            ));
        };
        let settled = present.version.term == mastership.term
            && self.wanted.roster.version == present.version;
        if !settled && !planted(Mutant::RosterTwoAtATime) {
            return Err("the last change of the roster is not on disk yet: try again".into());
        }
        if self.lease_end(v).is_none_or(|end| now > end) {
            return Err("the lease is lost for the moment: try again".into());
        }
        let holds = |voter: &&ServerName| {
            let told = if **voter == self.settings.me {
                Some(self.settled_roster(now))
            } else {
                self.peers.get(*voter).and_then(|p| p.roster)
            };
            told == Some(present.version)
        };
        let holding = present.voters.iter().filter(holds).count();
        if holding < self.quorum() && !planted(Mutant::RosterTwoAtATime) {
            return Err("a majority does not hold the present roster yet: try again".into());
        }
        let mut next = present;
        next.version.counter += 1;
        if add {
            if !self.settings.servers.contains(server) {
                return Err(format!(
                    "{server} is not in the configuration: add [[server]] on all servers first"
                ));
            }
            let alive = self.peers.get(server).and_then(|p| p.beat.as_ref());
            if alive.is_none() {
                return Err(format!("{server} has not been heard: start it first"));
            }
            next.voters.push(server.clone());
            next.voters.sort();
        } else {
            if *server == self.settings.me {
                return Err(format!("{server} is master: promote another server first"));
            }
            if next.voters.len() <= 3 {
                return Err(
                    "a roster needs three voters at least: add another server first".into(),
                );
            }
            next.voters.retain(|v| v != server);
        }
        if self.lease_end_by(v, &next).is_none_or(|end| now > end) {
            return Err(format!(
                "a majority of {} does not acknowledge this master: start those that are down first",
                names(&next)
            ));
        }
        Ok(next)
    }

    /// Answers the operator whose change of the roster is on disk here.
    pub(crate) fn settle_roster(&mut self) {
        let Some((id, version)) = self.roster_wish else {
            return;
        };
        let roster = &self.reservation.roster;
        let answer = if roster.version == version {
            Ok(format!("roster {version}: {}", names(roster)))
        } else if self.wanted.roster.version != version {
            Err(format!(
                "overtaken by roster {} of another master",
                self.wanted.roster.version
            ))
        } else {
            return;
        };
        self.roster_wish = None;
        self.answer(id, answer);
    }
}
