//! Standing, asking, calling, granting (ELECTION R10 to R16).

use crate::{
    elector::{AFTER, Elector},
    input::Mode,
    output::Output,
    state::{Campaign, Gate, Kind, Peer, Phase, Taking, Virtual},
    voter::Asked,
};
use mutants::{Mutant, planted};
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term, VirtualServerName,
    local::ring::HealthState,
    wire::{
        beat::{Participation, Why},
        signal::{Body, PreVerdict, Released, Signal},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What stands in the way of standing while this server stands already, or its gate is not shut yet.
pub(crate) const BUSY: &str = "busy";

/// Failed attempts after which the back-off no longer grows (R15).
const TRIES_MAX: u32 = 3;

impl Elector {
    /// D: how long a call may take (ELECTION, "What a configuration must satisfy").
    pub(crate) fn patience(&self) -> Duration {
        self.lease / 4
    }

    pub(crate) fn virtual_timeouts(&self, v: &Virtual, at: &mut impl FnMut(BootTime)) {
        if let Some(campaign) = &v.campaign {
            at(campaign.deadline + AFTER);
            if let Phase::Pre { ask_again, .. } = &campaign.phase {
                ask_again.values().for_each(|t| at(*t));
            }
        }
        if let Some(end) = self.lease_end(v) {
            at(end + self.lease / 2 + AFTER);
        }
        v.stand_at.into_iter().for_each(&mut *at);
        if v.is_idle() && !self.settings.witness {
            at(v.voter.promise_end() + AFTER);
        }
        if let Some(handover) = &v.handover {
            at(handover.deadline + AFTER);
        }
        if let Some((_, until)) = v.succession.filter(|_| self.stopping) {
            at(until + AFTER);
        }
        if v.campaign.is_none() && v.gate != Gate::Shut {
            at(v.not_before);
        }
    }

    // ---- standing ----------------------------------------------------------------------------------

    /// R10: what stands in the way of standing now.
    fn obstacle(
        &self,
        now: BootTime,
        name: &VirtualServerName,
        v: &Virtual,
    ) -> Result<(), &'static str> {
        let me = &self.settings.me;
        let stands_in_the_way = |yes: bool, what| if yes { Err(what) } else { Ok(()) };
        stands_in_the_way(self.taking == Taking::Blank, "blank: no reservation")?;
        stands_in_the_way(self.taking != Taking::Active, "silent after a restart")?;
        stands_in_the_way(self.stopping, "stopping")?;
        stands_in_the_way(self.maintenance, "maintenance is on")?;
        self.fit(name, now)?;
        let majority = self.settings.mode == Mode::Majority;
        let listed = self.counted_roster().voters.contains(me);
        stands_in_the_way(
            majority && !listed,
            "not in the roster (standin server add)",
        )?;
        stands_in_the_way(v.gate != Gate::Shut || !v.is_idle(), BUSY)?;
        stands_in_the_way(!v.voter.free_for(me, now), "promised to another")?;
        let unknown = |p: &Peer| p.health.is_none_or(|h| h == HealthState::Unknown);
        stands_in_the_way(
            !self.doctor || self.peers.values().any(unknown),
            "the doctor does not know yet",
        )?;
        stands_in_the_way(
            majority && self.surroundings.0.in_touch < self.quorum(),
            "no majority in touch",
        )?;
        stands_in_the_way(
            self.peers.iter().any(|(server, peer)| {
                peer.health != Some(HealthState::Dead)
                    && peer.claim(server, name, &v.voter).is_some()
            }),
            "another server claims it",
        )
    }

    /// Voters heard within two intervals that also hear this server; this one included.
    pub(crate) fn in_touch(&self, now: BootTime) -> usize {
        let span = self.settings.heartbeat * 2;
        let mutual = |name: &ServerName| {
            let Some(peer) = self.peers.get(name) else {
                return false;
            };
            let Some(beat) = &peer.beat else { return false };
            peer.heard.is_some_and(|at| now.since(at) <= span)
                && beat
                    .heard
                    .iter()
                    .any(|h| h.server == self.settings.me && h.age <= span)
        };
        let voters = &self.counted_roster().voters;
        voters
            .iter()
            .filter(|name| **name == self.settings.me || mutual(name))
            .count()
    }

    /// R11: how many fit servers, by their own last beats, are better than `server`.
    pub(crate) fn rank(
        &self,
        now: BootTime,
        name: &VirtualServerName,
        server: &ServerName,
    ) -> Option<u32> {
        let own = self.merit(now, name, server)?;
        let better = self
            .settings
            .servers
            .iter()
            .filter(|s| *s != server)
            .filter(|s| self.merit(now, name, s).is_some_and(|merit| merit > own));
        u32::try_from(better.count()).ok()
    }

    /// What servers are ordered by: fresher files, then priority, then the name first in order.
    fn merit(
        &self,
        now: BootTime,
        name: &VirtualServerName,
        server: &ServerName,
    ) -> Option<(
        protocol::wire::beat::Freshness,
        u32,
        std::cmp::Reverse<ServerName>,
    )> {
        let voters = &self.counted_roster().voters;
        if self.settings.mode == Mode::Majority && !voters.contains(server) {
            return None;
        }
        let last = std::cmp::Reverse(server.clone());
        if *server == self.settings.me {
            let priority = self
                .settings
                .virtual_servers
                .get(name)
                .map_or(0, |s| s.priority);
            let fit = self.fit(name, now).is_ok() && !self.maintenance;
            return fit.then_some((self.freshness, priority, last));
        }
        let peer = self.peers.get(server)?;
        let beat = peer.beat.as_ref()?;
        let standing = peer.standing(name)?;
        let able = standing.fit
            && !beat.witness
            && !beat.maintenance
            && beat.participation != Participation::Blank // one still silent will be able in a moment
            && !matches!(peer.health, Some(HealthState::Dead | HealthState::Suspect));
        able.then_some((beat.freshness, standing.priority, last))
    }

    /// R10, R11: stand when nothing is in the way, after rank x skew and the back-off.
    pub(crate) fn stand_if_free(&mut self, now: BootTime, name: &VirtualServerName) {
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        let obstacle = self.obstacle(now, name, v).err();
        if obstacle.is_some_and(|o| o == v.obstacle)
            && v.stand_at.is_none()
            && v.ready_since.is_none()
        {
            return;
        }
        let since = v.ready_since.unwrap_or(now);
        let rank = self
            .rank(now, name, &self.settings.me)
            .filter(|_| !planted(Mutant::RankIgnored))
            .unwrap_or(0);
        let at = (since + self.skew() * rank).max(v.not_before);
        let ready = obstacle.is_none();
        let next = (
            obstacle.unwrap_or(""),
            ready.then_some(since),
            (ready && now < at).then_some(at),
        );
        if next != (v.obstacle, v.ready_since, v.stand_at)
            && let Some(v) = self.virtuals.get_mut(name)
        {
            (v.obstacle, v.ready_since, v.stand_at) = next;
        }
        if ready && now >= at {
            self.stand(now, name, Kind::Ordinary);
        }
    }

    /// R16: a master that meets a higher floor, or an electd that starts with its gate open.
    pub(crate) fn renew_if_needed(&mut self, now: BootTime, name: &VirtualServerName) {
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        let left_over = v.mastership.is_none() && matches!(v.gate, Gate::Open(_));
        if left_over && planted(Mutant::NoRenewal) {
            return self.leave(now, name, None, "not renewed");
        }
        if v.campaign.is_some() || v.leaving.is_some() || now < v.not_before {
            return;
        }
        let outdone = v.mastership.as_ref().is_some_and(|m| v.highest() > m.term);
        if left_over && !v.gate_open(now) {
            return self.leave(
                now,
                name,
                None,
                "the gate closed before the mastership was renewed",
            );
        }
        let asks = self.settings.mode == Mode::Majority && self.taking == Taking::Active;
        if left_over || (outdone && asks) {
            self.stand(now, name, Kind::Renewal);
        }
    }

    /// Begins a campaign: asks who would vote (R12), or calls at once when invited (R19).
    pub(crate) fn stand(&mut self, now: BootTime, name: &VirtualServerName, kind: Kind) {
        let (lease, deadline) = (self.lease, now + self.patience());
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        let term = self.next_term(v.highest());
        self.round += 1;
        let round = self.round;
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        v.ready_since = None;
        v.campaign = Some(Campaign {
            kind,
            term,
            lease,
            deadline,
            phase: Phase::Pre {
                round,
                yes: BTreeSet::new(),
                no: BTreeSet::new(),
                ask_again: BTreeMap::new(),
            },
        });
        match (self.settings.mode, kind) {
            (Mode::Majority, Kind::Invited) => self.call_for_votes(now, name),
            (Mode::Majority, Kind::Ordinary) if planted(Mutant::NoPreVote) => {
                self.call_for_votes(now, name);
            }
            (Mode::Majority, Kind::Ordinary | Kind::Renewal) => {
                let me = self.settings.me.clone();
                match self.would_vote(now, name, &me, term, lease) {
                    Ok(()) => self.count_pre_vote(now, name, &me, true),
                    Err((why, _)) => {
                        self.count_pre_vote(now, name, &me, false);
                        self.notice(format!("not standing for {name}: {why}"));
                    }
                }
                for voter in self.other_voters() {
                    self.say(&voter, name, Body::PreCall { term, lease, round });
                }
            }
            (Mode::None, Kind::Ordinary) => {
                if let Some(c) = self
                    .virtuals
                    .get_mut(name)
                    .and_then(|v| v.campaign.as_mut())
                {
                    c.phase = Phase::Probe;
                    c.deadline = now + lease.max(Duration::from_secs(1));
                }
                self.outputs.push_back(Output::Probe(name.clone()));
            }
            (Mode::None, Kind::Invited | Kind::Renewal) => self.take_unasked(now, name),
        }
    }

    /// The next term to use: without a quorum, term mod n is the own place by name, so that two masters
    /// never share one.
    fn next_term(&self, highest: Term) -> Term {
        let next = highest.next();
        let servers = &self.settings.servers;
        match self.settings.mode {
            Mode::Majority => next,
            Mode::None => {
                let n = servers.len().max(1) as u64;
                let place = servers
                    .iter()
                    .position(|s| *s == self.settings.me)
                    .unwrap_or(0) as u64;
                Term(next.0.saturating_add((place + n - next.0 % n) % n))
            }
        }
    }

    fn other_voters(&self) -> Vec<ServerName> {
        let voters = self.counted_roster().voters.iter();
        voters
            .filter(|v| **v != self.settings.me)
            .cloned()
            .collect()
    }

    // ---- quorum = none -----------------------------------------------------------------------------

    pub(crate) fn probed(&mut self, now: BootTime, name: &VirtualServerName, answered: bool) {
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        if !v
            .campaign
            .as_ref()
            .is_some_and(|c| matches!(c.phase, Phase::Probe))
        {
            return self.count("probe_unasked");
        }
        if answered {
            return self.fail(now, name, "another machine answers for the address");
        }
        let free = self
            .virtuals
            .get(name)
            .is_some_and(|v| v.voter.free_for(&self.settings.me, now));
        if free {
            self.take_unasked(now, name)
        } else {
            self.fail(now, name, "promised meanwhile")
        }
    }

    /// `quorum = none`: master by own word.
    fn take_unasked(&mut self, now: BootTime, name: &VirtualServerName) {
        let Some((term, _)) = self.vote_for_self(now, name) else {
            return self.fail(now, name, "term reservation not synced yet");
        };
        let good = BTreeMap::from([(self.settings.me.clone(), now + self.usable(self.lease))]);
        self.win(
            now,
            name,
            term,
            good,
            "took over without asking (quorum = none)",
        );
    }

    // ---- the caller's side ---------------------------------------------------------------------------

    /// R13: own vote and promise, number + 1.
    fn vote_for_self(&mut self, now: BootTime, name: &VirtualServerName) -> Option<(Term, Number)> {
        let me = self.settings.me.clone();
        let v = self.virtuals.get(name)?;
        let campaign = v.campaign.as_ref()?;
        let lease = campaign.lease;
        let term = campaign.term.max(self.next_term(v.highest()));
        if !self.is_synced(term, lease) {
            self.need(term, lease);
            return None;
        }
        let number = self.note_sent(now, lease);
        self.note_promise(lease);
        let (instance, roster) = (self.instance, self.counted_roster().version);
        let v = self.virtuals.get_mut(name)?;
        v.campaign.as_mut()?.term = term;
        let asked = Asked {
            term,
            instance,
            number,
            lease,
            roster,
        };
        self.remember |= v.voter.promise(&me, asked, now);
        Some((term, number))
    }

    /// R13: the call.
    fn call_for_votes(&mut self, now: BootTime, name: &VirtualServerName) {
        let free = self
            .virtuals
            .get(name)
            .is_some_and(|v| v.voter.free_for(&self.settings.me, now));
        if !free {
            return self.fail(now, name, "promised to another");
        }
        let Some((_, number)) = self.vote_for_self(now, name) else {
            return self.fail(now, name, "term reservation not synced yet");
        };
        let deadline = now + self.patience();
        let me = self.settings.me.clone();
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        let Some(campaign) = v.campaign.as_mut() else {
            return;
        };
        campaign.deadline = deadline;
        campaign.phase = Phase::Call {
            number,
            sent: now,
            granted: BTreeSet::from([me]),
            refused: BTreeSet::new(),
        };
        for voter in self.other_voters() {
            self.say_call(&voter, name);
        }
        self.count_votes(now, name);
    }

    /// The call under way, as it was first sent (R2), with the releases known by now.
    fn say_call(&mut self, to: &ServerName, name: &VirtualServerName) {
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        let Some((campaign, Phase::Call { number, .. })) =
            v.campaign.as_ref().map(|c| (c, &c.phase))
        else {
            return;
        };
        let released = |(server, instance, number): (&ServerName, _, _)| Released {
            server: server.clone(),
            instance,
            number,
        };
        let signal = Signal {
            virtual_server: name.clone(),
            instance: self.instance,
            number: *number,
            body: Body::Call {
                term: campaign.term,
                lease: campaign.lease,
                releases: v.voter.releases().map(released).collect(),
                roster: self.counted_roster().version,
            },
        };
        let to = to.clone();
        self.outputs.push_back(Output::Signal { to, signal });
    }

    /// A voter's link came back: what it was asked before may not have reached it.
    pub(crate) fn ask_again(&mut self, now: BootTime, server: &ServerName) {
        if !self.counted_roster().voters.contains(server) {
            return;
        }
        for name in self.virtuals.keys().cloned().collect::<Vec<_>>() {
            let campaign = self.virtuals.get(&name).and_then(|v| v.campaign.as_ref());
            let Some(c) = campaign.filter(|c| now <= c.deadline) else {
                continue;
            };
            match &c.phase {
                Phase::Pre { round, yes, .. } if !yes.contains(server) => {
                    let body = Body::PreCall {
                        term: c.term,
                        lease: c.lease,
                        round: *round,
                    };
                    self.say(server, &name, body);
                }
                Phase::Call {
                    granted, refused, ..
                } if !granted.contains(server) && !refused.contains(server) => {
                    self.say_call(server, &name);
                }
                Phase::Pre { .. } | Phase::Call { .. } | Phase::Probe => {}
            }
        }
    }

    pub(crate) fn campaign_time(&mut self, now: BootTime, name: &VirtualServerName) {
        let campaign = self.virtuals.get(name).and_then(|v| v.campaign.as_ref());
        let Some(campaign) = campaign else {
            return;
        };
        if now > campaign.deadline {
            return self.fail(now, name, "no majority answered in time");
        }
        let asks = match &campaign.phase {
            Phase::Pre { ask_again, .. } => ask_again.values().any(|t| *t <= now),
            Phase::Call { .. } | Phase::Probe => false,
        };
        if !asks {
            return;
        }
        let campaign = self
            .virtuals
            .get_mut(name)
            .and_then(|v| v.campaign.as_mut());
        let Some(campaign) = campaign else {
            return;
        };
        let (term, lease) = (campaign.term, campaign.lease);
        if let Phase::Pre {
            ask_again, round, ..
        } = &mut campaign.phase
        {
            let round = *round;
            let due: Vec<_> = ask_again
                .iter()
                .filter(|(_, t)| **t <= now)
                .map(|(s, _)| s.clone())
                .collect();
            ask_again.retain(|_, t| *t > now);
            for server in due {
                if server != self.settings.me {
                    self.say(&server, name, Body::PreCall { term, lease, round });
                }
            }
        }
    }

    pub(crate) fn pre_answer(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        term: Term,
        answered: u64,
        verdict: PreVerdict,
    ) {
        if let PreVerdict::No { floor, .. } = verdict {
            self.learn_floor(name, floor);
        }
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        let highest = v.highest();
        let Some(campaign) = v.campaign.as_mut() else {
            return self.count("pre_answer_unasked");
        };
        let Phase::Pre {
            round, ask_again, ..
        } = &mut campaign.phase
        else {
            return self.count("pre_answer_late");
        };
        if answered != *round || term != campaign.term || now > campaign.deadline {
            return self.count("pre_answer_late");
        }
        match verdict {
            PreVerdict::Yes => self.count_pre_vote(now, name, from, true),
            PreVerdict::No {
                retry_after: Some(after),
                ..
            } if now + after <= campaign.deadline => {
                ask_again.insert(from.clone(), now + after + AFTER);
            }
            PreVerdict::No {
                why: Why::Floor, ..
            } if highest >= term => {
                let kind = campaign.kind;
                self.stand(now, name, kind); // the floor is known now
            }
            PreVerdict::No { why, .. } => {
                self.notice(format!(
                    "{from} would not vote for this server in {name}: {why}"
                ));
                self.count_pre_vote(now, name, from, false);
            }
        }
    }

    fn count_pre_vote(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        voter: &ServerName,
        vote: bool,
    ) {
        let Some(campaign) = self
            .virtuals
            .get_mut(name)
            .and_then(|v| v.campaign.as_mut())
        else {
            return;
        };
        let Phase::Pre { yes, no, .. } = &mut campaign.phase else {
            return;
        };
        let answers = if vote { &mut *yes } else { &mut *no };
        answers.insert(voter.clone());
        let (yes, no) = (yes.clone(), no.clone());
        let (need, voters) = (self.quorum(), self.counted_roster().voters.len());
        if self.listed(&yes) >= need {
            self.call_for_votes(now, name);
        } else if voters.saturating_sub(self.listed(&no)) < need {
            self.fail(now, name, "a majority would not vote for this server");
        }
    }

    /// How many of them are in the roster in force: it may have changed since they answered (R24).
    fn listed(&self, servers: &BTreeSet<ServerName>) -> usize {
        let voters = &self.counted_roster().voters;
        voters.iter().filter(|v| servers.contains(*v)).count()
    }

    pub(crate) fn grant(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        instance: Instance,
        answered: Number,
        term: Term,
    ) {
        let (own, patience) = (self.instance, self.patience());
        let Some(campaign) = self
            .virtuals
            .get_mut(name)
            .and_then(|v| v.campaign.as_mut())
        else {
            return self.count("grant_unasked");
        };
        match &mut campaign.phase {
            Phase::Call {
                number,
                sent,
                granted,
                ..
            } if (*number == answered || planted(Mutant::OtherCallGranted))
                && own == instance
                && campaign.term == term
                && now.since(*sent) <= patience =>
            {
                granted.insert(from.clone());
            }
            Phase::Call { .. } | Phase::Pre { .. } | Phase::Probe => {
                return self.count("grant_late");
            }
        }
        self.count_votes(now, name);
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn refusal(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        instance: Instance,
        answered: Number,
        term: Term,
        floor: Term,
    ) {
        self.learn_floor(name, floor);
        let own = self.instance;
        let Some(campaign) = self
            .virtuals
            .get_mut(name)
            .and_then(|v| v.campaign.as_mut())
        else {
            return;
        };
        if let Phase::Call {
            number,
            granted,
            refused,
            ..
        } = &mut campaign.phase
            && *number == answered
            && own == instance
            && campaign.term == term
            && !granted.contains(from)
        {
            refused.insert(from.clone());
            self.count_votes(now, name);
        }
    }

    /// R13: at m votes, master. R15: no longer possible, released at once instead of at D.
    fn count_votes(&mut self, now: BootTime, name: &VirtualServerName) {
        let need = self.quorum();
        let Some(campaign) = self.virtuals.get(name).and_then(|v| v.campaign.as_ref()) else {
            return;
        };
        let Phase::Call {
            sent,
            granted,
            refused,
            ..
        } = &campaign.phase
        else {
            return;
        };
        let (term, kind) = (campaign.term, campaign.kind);
        let fewer = usize::from(planted(Mutant::OneVoteFewer));
        let (votes, voters) = (self.listed(granted), self.counted_roster().voters.len());
        if votes + fewer >= need {
            let until = *sent + self.usable(campaign.lease);
            let good = granted.iter().map(|voter| (voter.clone(), until)).collect();
            let how = match kind {
                Kind::Ordinary => "elected",
                Kind::Invited => "took over by handover",
                Kind::Renewal => "renewed",
            };
            let reason = format!("{how} with {votes} of {voters} votes");
            self.win(now, name, term, good, &reason);
        } else if voters.saturating_sub(self.listed(refused)) < need {
            self.fail(now, name, "a majority refused its vote");
        }
    }

    /// R15: no majority. With the gate shut: Release, slave, back-off. With it open: again, until it closes.
    fn fail(&mut self, now: BootTime, name: &VirtualServerName, why: &str) {
        let skew = self.skew();
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        let Some(campaign) = v.campaign.take() else {
            return;
        };
        v.ready_since = None;
        v.tries = (v.tries + 1).min(TRIES_MAX);
        let open = v.gate_open(now);
        let backoff = if campaign.kind == Kind::Renewal {
            skew / 4
        } else {
            skew * (1 << v.tries)
        };
        let called = matches!(campaign.phase, Phase::Call { .. });
        let backoff = if campaign.kind == Kind::Renewal {
            backoff
        } else {
            self.random(backoff)
        };
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        v.not_before = now + backoff;
        if v.tries <= 1 || called {
            self.notice(format!(
                "election for {name} in term {}: {why}",
                campaign.term
            ));
        }
        match campaign.kind {
            Kind::Renewal if open => {} // renew_if_needed tries again
            Kind::Renewal => self.leave(now, name, None, "the mastership could not be renewed"),
            Kind::Ordinary | Kind::Invited if called => {
                let term = campaign.term;
                self.leave_as(now, name, term, None, false, why);
            }
            Kind::Ordinary | Kind::Invited => {}
        }
    }

    // ---- the voter's side ----------------------------------------------------------------------------

    /// R14 as far as it does not depend on the call's number: would this server vote for `caller` now?
    fn would_vote(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        caller: &ServerName,
        term: Term,
        lease: Duration,
    ) -> Result<(), (Why, Option<Duration>)> {
        if self.taking != Taking::Active {
            return Err((Why::Silent, None));
        }
        let Some(v) = self.virtuals.get(name) else {
            return Err((Why::TooMany, None));
        };
        let again = planted(Mutant::VotesTwice) && term == v.voter.voted;
        if term <= v.voter.voted && !again {
            return Err((Why::Floor, None));
        }
        if term.0 - v.voter.voted.0 > 1 << 32 {
            return Err((Why::Absurd, None));
        }
        if !self.is_synced(term, lease) {
            self.need(term, lease);
            return Err((Why::Reservation, None));
        }
        let own = *caller == self.settings.me;
        let serves = v.mastership.is_some() || v.leaving.is_some() || v.gate != Gate::Shut;
        if serves && planted(Mutant::GrantsWhileServing) {
            return Ok(());
        }
        if !v.voter.free_for(caller, now) {
            return Err((Why::Promised, Some(v.voter.busy_for(now))));
        }
        if !own && serves {
            return Err((Why::Shutting, None));
        }
        Ok(())
    }

    fn know(&mut self, name: &VirtualServerName) -> bool {
        let full = self.virtuals.len() >= protocol::wire::beat::VIRTUAL_SERVERS_MAX;
        if !self.virtuals.contains_key(name) && full {
            return false;
        }
        if !self.virtuals.contains_key(name) {
            self.virtuals.know(name, self.floor_base);
        }
        true
    }

    /// R12, the voter's side: changes nothing but what is reserved.
    pub(crate) fn pre_call(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        term: Term,
        lease: Duration,
        round: u64,
    ) {
        if !self.know(name) {
            return self.count("virtual_servers_full");
        }
        let floor = self
            .virtuals
            .get(name)
            .map_or(self.floor_base, |v| v.voter.voted);
        let no = |(why, retry_after)| PreVerdict::No {
            why,
            floor,
            retry_after,
        };
        let verdict = match self.would_vote(now, name, from, term, lease) {
            Err(refusal) => no(refusal),
            Ok(()) if !self.counted_roster().voters.contains(from) => no((Why::Roster, None)),
            Ok(()) if !self.doctor_agrees(now, name, from) => no((Why::Doctor, None)),
            Ok(()) => PreVerdict::Yes,
        };
        self.say(
            from,
            name,
            Body::PreAnswer {
                term,
                round,
                verdict,
            },
        );
    }

    /// R12: the doctor does not say that the holder, other than the caller, is alive and claiming. Not
    /// knowing counts as no only until a lease after the own promise ended.
    fn doctor_agrees(&self, now: BootTime, name: &VirtualServerName, caller: &ServerName) -> bool {
        let Some(v) = self.virtuals.get(name) else {
            return true;
        };
        let Some(holder) = v
            .voter
            .holder
            .as_ref()
            .filter(|h| *h != caller && **h != self.settings.me)
        else {
            return true;
        };
        let Some(peer) = self.peers.get(holder) else {
            return true;
        };
        if planted(Mutant::DoctorNotAsked) {
            return true;
        }
        let known = if self.doctor { peer.health } else { None };
        match known {
            Some(HealthState::Alive) => peer.claim(holder, name, &v.voter).is_none(),
            Some(HealthState::Suspect | HealthState::Dead) => true,
            Some(HealthState::Unknown) | None => now > v.voter.promise_end() + self.lease,
        }
    }

    /// R14: a call. A vote is a promise.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn call(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        (instance, number): (Instance, Number),
        term: Term,
        lease: Duration,
        releases: Vec<Released>,
        roster: RosterVersion,
    ) {
        if !self.know(name) {
            return self.count("virtual_servers_full");
        }
        for released in releases {
            self.note_release(now, name, &released);
        }
        let verdict = self
            .would_vote(now, name, from, term, lease)
            .map_err(|(why, _)| why);
        let outdated = self.is_outdated(roster) && !planted(Mutant::OldRosterCalls);
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        let verdict = verdict.and_then(|()| {
            if v.voter.stale(from, instance, number) {
                Err(Why::Stale)
            } else if outdated {
                Err(Why::Roster)
            } else {
                Ok(())
            }
        });
        match verdict {
            Ok(()) => {
                v.campaign = None;
                let asked = Asked {
                    term,
                    instance,
                    number,
                    lease,
                    roster,
                };
                self.remember |= v.voter.promise(from, asked, now);
                self.note_promise(lease);
                self.say(
                    from,
                    name,
                    Body::Grant {
                        instance,
                        number,
                        term,
                    },
                );
                self.note_successor(name, term);
            }
            Err(why) => {
                let floor = v.voter.voted;
                if why == Why::Shutting && v.mastership.is_some() {
                    self.leave(
                        now,
                        name,
                        None,
                        "another server was called and the own promise had ended",
                    );
                }
                self.say(
                    from,
                    name,
                    Body::Refuse {
                        instance,
                        number,
                        term,
                        why,
                        floor,
                    },
                );
            }
        }
    }
}
