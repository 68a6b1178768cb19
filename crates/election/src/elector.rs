//! The elector: one `match` from inputs to rules, and what time alone brings about.

use crate::{
    input::{Input, Mode, Settings, Start, Wish},
    memory::{Memory, Vote},
    output::{Output, RoleChange},
    reservation::{BLOCK, Reservation},
    state::{
        Change, Gate, Kind, Mastership, Older, Parts, Peer, Taking, Virtual, Waiting, came_by,
    },
    virtuals::{Due, Virtuals},
    voter::{Asked, Promise},
};
use mutants::{Mutant, planted};
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term, VirtualServerName,
    local::ring::{Health, HealthState},
    version::Since,
    wire::{
        beat::{
            Ack, Answer, Beat, Claim, Freshness, Heard, Participation, Roster, Standing,
            VIRTUAL_SERVERS_MAX, Verdict, Why,
        },
        signal::{Body, Signal},
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// A term further above the own than this is refused (R22).
const TERM_JUMP_MAX: u64 = 1 << 32;

/// Just past an instant that still binds.
pub(crate) const AFTER: Duration = Duration::from_nanos(1);

/// A virtual server whose gate cannot be opened here is left to the others for so long, or until its interface is up
/// again.
const BROKEN: Duration = Duration::from_secs(30);

/// A failed write of the reservation is tried again after this.
const RESERVE_AGAIN: Duration = Duration::from_secs(1);

/// m = n/2 + 1 of a roster.
pub(crate) fn majority(roster: &Roster) -> usize {
    roster.voters.len() / 2 + 1
}

/// What every virtual server's standing depends on and what changes without an event about all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    lease: Duration,
    skew: Duration,
    pub(crate) in_touch: usize,
    active: bool,
}

impl Surroundings {
    /// All there is of them.
    pub(crate) fn parts(&self) -> (Duration, Duration, usize, bool) {
        let Self {
            lease,
            skew,
            in_touch,
            active,
        } = *self;
        (lease, skew, in_touch, active)
    }
}

/// The core of electd: a pure state machine. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Elector {
    pub(crate) settings: Settings,
    pub(crate) instance: Instance,
    pub(crate) number: Number,
    /// When each beat or call was sent, and for which lease (R2); as far back as it can matter.
    pub(crate) sent: VecDeque<(Number, BootTime, Duration)>,
    pub(crate) taking: Taking,
    /// The operator was told that nobody can end being blank.
    pub(crate) all_are_blank: bool,
    /// What is on disk.
    pub(crate) reservation: Reservation,
    /// What shall be on disk.
    pub(crate) wanted: Reservation,
    /// A write is under way.
    pub(crate) reserving: bool,
    /// A write failed: any of the reservations asked for may be on disk.
    pub(crate) unsure: bool,
    /// The longest promise covered by whatever may be on disk (R23).
    pub(crate) longest: Duration,
    pub(crate) reserve_again: Option<BootTime>,
    /// The longest lease promised in this span and in the one before, and when the span ends (R23).
    pub(crate) promised_max: (Duration, Duration, BootTime),
    pub(crate) floor_base: Term,
    pub(crate) virtuals: Virtuals,
    /// As all of them were last looked at, and as their times were last reckoned.
    pub(crate) surroundings: (Surroundings, Surroundings),
    pub(crate) peers: BTreeMap<ServerName, Peer>,
    pub(crate) links: BTreeMap<String, bool>,
    pub(crate) doctor: bool,
    pub(crate) lease: Duration,
    pub(crate) maintenance: bool,
    pub(crate) freshness: Freshness,
    pub(crate) stopping: bool,
    pub(crate) stopped: bool,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) parts: BTreeMap<u64, Parts>,
    /// The operator whose change of the roster is being synced.
    pub(crate) roster_wish: Option<(u64, RosterVersion)>,
    pub(crate) preempted: Option<BootTime>,
    /// When a server in maintenance last looked for a successor.
    pub(crate) offered: BootTime,
    pub(crate) round: u64,
    /// Smoothed round trip of beats.
    pub(crate) round_trip: Duration,
    pub(crate) seed: u64,
    pub(crate) next_beat: BootTime,
    /// Acknowledgements that leave with the next beat, and since when they wait.
    pub(crate) held: Vec<(ServerName, BootTime, Ack)>,
    /// The time of the last event: what was due by then has been done.
    pub(crate) clock: BootTime,
    pub(crate) remember: bool,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) counters: BTreeMap<&'static str, u64>,
}

impl Elector {
    /// An elector that starts at `now` with what it found (R20, R21).
    pub fn new(settings: Settings, start: Start, now: BootTime) -> Self {
        let blank = start.reservation.is_none();
        let reservation = start.reservation.unwrap_or_else(|| Reservation {
            reserved: Term(0),
            ..Reservation::first(Vec::new(), None, Duration::ZERO)
        });
        // A longer one waits until it may be promised (R23); a renewal must not wait for the disk (R16).
        let lease = if blank {
            settings.lease
        } else {
            settings.lease.min(reservation.promise_max)
        };
        let mut elector = Self {
            instance: start.instance,
            number: Number(0),
            sent: VecDeque::new(),
            taking: if blank && !planted(Mutant::BlankVotes) {
                Taking::Blank
            } else {
                Taking::Active
            },
            all_are_blank: false,
            wanted: reservation.clone(),
            reserving: false,
            unsure: false,
            longest: reservation.promise_max,
            reserve_again: None,
            promised_max: (
                Duration::ZERO,
                reservation.promise_max,
                now + reservation.promise_max,
            ),
            reservation,
            floor_base: Term(0),
            virtuals: Virtuals::default(),
            surroundings: Default::default(),
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            doctor: false,
            lease,
            maintenance: false,
            freshness: Freshness::default(),
            stopping: false,
            stopped: false,
            waiting: Vec::new(),
            parts: BTreeMap::new(),
            roster_wish: None,
            preempted: None,
            offered: now,
            round: 0,
            round_trip: Duration::ZERO,
            seed: start.seed,
            next_beat: now,
            held: Vec::new(),
            clock: now,
            remember: false,
            outputs: VecDeque::new(),
            counters: BTreeMap::new(),
            settings,
        };
        match (start.memory, blank) {
            (Some(memory), false) => elector.recall(memory, &start.gates, now), // R20 (a)
            (_, true) => elector.notice("blank: no reservation; waiting for the others".into()), // R21
            (None, false) => elector.fall_silent(elector.reservation.reserved, now), // R20 (b)
        }
        elector.fit_to_settings(now);
        for (name, _) in start.gates {
            let v = elector.virtuals.know(&name, elector.floor_base);
            if v.gate == Gate::Shut {
                v.gate = Gate::Shutting;
                elector.outputs.push_back(Output::Shut(name));
            }
        }
        elector.remember = elector.taking != Taking::Blank;
        elector.advance(now);
        elector
    }

    /// R20 (a): the memory of this boot.
    fn recall(&mut self, memory: Memory, gates: &[(VirtualServerName, BootTime)], now: BootTime) {
        self.floor_base = memory.floor_base;
        // R20 (b), before electd was restarted. The format before noted no end of it but its time.
        let since = memory
            .silent_since
            .or(Some(now).filter(|now| Some(*now) <= memory.silent_until));
        if let (Some(since), Some(until)) = (since, memory.silent_until) {
            self.taking = Taking::Silent { since, until };
        }
        let firm = if planted(Mutant::FirmForOwnLease) {
            now + self.settings.lease
        } else {
            now + self.reservation.promise_max
        };
        for vote in memory.votes {
            let mut v = Virtual::new(vote.voted);
            let open = gates
                .iter()
                .find(|(name, until)| *name == vote.virtual_server && now <= *until);
            let own = vote.holder.as_ref() == Some(&self.settings.me);
            let bound = (!own || open.is_some()) && !planted(Mutant::PromisesForgotten);
            if let Some(holder) = vote.holder.clone().filter(|_| bound) {
                v.voter.promise = Some(Promise {
                    holder,
                    by: None,
                    until: firm,
                    firm_until: Some(firm),
                    roster: RosterVersion::default(),
                    earlier: None,
                });
            }
            v.voter.holder = vote.holder;
            if let Some((_, until)) = open.filter(|_| own) {
                v.gate = Gate::Open(*until);
                v.change.reason = "electd restarted with its gate open".into();
            }
            self.virtuals.insert(vote.virtual_server, v);
        }
    }

    /// R20 (b): nothing is remembered but the reservation, and that may be an old one: silent for the longest of what
    /// it says and what the configuration says; the others' beats may add to it ([`Self::learn_silent`]).
    pub(crate) fn fall_silent(&mut self, floor: Term, now: BootTime) {
        let span = self.reservation.promise_max.max(self.settings.lease);
        self.promised_max = (Duration::ZERO, span, now + span); // R23: forgotten, and perhaps given just now
        self.floor_base = floor;
        for v in self.virtuals.values_mut() {
            v.voter.voted = v.voter.voted.max(floor);
            v.seen = v.seen.max(floor);
        }
        self.taking = if planted(Mutant::RestartedVotes) {
            Taking::Active
        } else {
            Taking::Silent {
                since: now,
                until: now + span,
            }
        };
        self.wanted.reserved = self
            .wanted
            .reserved
            .max(Term(floor.0.saturating_add(BLOCK)));
        self.remember = true;
        self.notice(format!(
            "silent for {} ms: no memory of earlier promises",
            span.as_millis()
        ));
    }

    /// Takes over what the present settings say.
    fn fit_to_settings(&mut self, now: BootTime) {
        for name in self.settings.virtual_servers.keys() {
            self.virtuals.know(name, self.floor_base);
        }
        let servers = &self.settings.servers;
        self.peers.retain(|name, _| servers.contains(name));
        for name in self
            .settings
            .servers
            .iter()
            .filter(|s| **s != self.settings.me)
        {
            self.peers.entry(name.clone()).or_default();
        }
        if self.taking != Taking::Blank {
            self.wanted.promise_max = self.wanted.promise_max.max(self.settings.lease);
        }
        self.settle_lease();
        self.next_beat = self.next_beat.min(now + self.settings.heartbeat);
    }

    /// R23: a longer lease is used once this server and a majority can promise it, a shorter one at once.
    fn settle_lease(&mut self) {
        let wanted = self.settings.lease;
        if wanted <= self.lease {
            self.lease = wanted;
            return;
        }
        let able = |name: &ServerName| {
            if *name == self.settings.me {
                return self.longest >= wanted;
            }
            let beat = self.peers.get(name).and_then(|p| p.beat.as_ref());
            beat.is_some_and(|b| b.promise_max >= wanted)
        };
        let voters = self
            .reservation
            .roster
            .voters
            .iter()
            .filter(|n| able(n))
            .count();
        if able(&self.settings.me) && voters >= self.quorum() {
            self.lease = wanted;
        }
    }

    /// One event at `now`; then whatever time brings about.
    pub fn handle(&mut self, now: BootTime, input: Input) {
        if self.stopped {
            return; // R22: what is voted now would not be in the last reservation
        }
        self.clock = self.clock.max(now);
        self.check_leases(now); // R9: before any Ack is looked at
        match &input {
            // These say themselves what they are about.
            Input::Beat { .. } | Input::Ack { .. } | Input::Signal { .. } | Input::Linked(_) => {}
            Input::GateShut(_)
            | Input::ForeignClaim(_)
            | Input::Clients(..)
            | Input::Probed(..) => {}
            Input::Health(_)
            | Input::DoctorLost
            | Input::GateBroken(..)
            | Input::Taken(..)
            | Input::Reserved(_)
            | Input::ReserveFailed(_)
            | Input::Fresh(_)
            | Input::Settings(_)
            | Input::Operator { .. }
            | Input::Stop => self.virtuals.stir_all(),
        }
        match input {
            Input::Beat { from, at, beat } => self.beat(now, from, at, beat),
            Input::Ack { from, ack } => self.ack(now, &from, ack),
            Input::Signal { from, signal } => self.signal(now, from, signal),
            Input::Linked(server) => self.ask_again(now, &server),
            Input::Health(health) => self.health(now, health),
            Input::DoctorLost => self.doctor = false,
            Input::GateShut(name) => self.gate_shut(now, &name),
            Input::GateBroken(name, why) => self.gate_broken(now, &name, why),
            Input::Taken(name, taken) => self.taken(now, &name, taken),
            Input::ForeignClaim(name) => {
                if self
                    .virtuals
                    .get(&name)
                    .is_some_and(|v| v.mastership.is_some())
                {
                    self.outputs.push_back(Output::Announce(name));
                }
            }
            Input::Clients(name, clients) => self.tell_clients(&name, &clients),
            Input::Probed(name, answered) => self.probed(now, &name, answered),
            Input::Reserved(reservation) => self.reserved(reservation),
            Input::ReserveFailed(why) => {
                (self.reserving, self.unsure) = (false, true);
                if planted(Mutant::FailedWriteForgotten) {
                    (self.unsure, self.longest) = (false, self.reservation.promise_max);
                }
                self.reserve_again = Some(now + RESERVE_AGAIN);
                self.outputs.push_back(Output::Alarm(format!(
                    "the term reservation cannot be written: {why}; terms up to {} are left",
                    self.reservation.reserved
                )));
            }
            Input::Fresh(freshness) => self.freshness = freshness,
            Input::Settings(settings) => {
                self.settings = settings;
                self.fit_to_settings(now);
            }
            Input::Operator { id, wish } => self.operator(now, id, wish),
            Input::Stop => self.stop(now),
        }
        self.advance(now);
    }

    /// Time has reached [`Elector::poll_timeout`]; extra calls are harmless.
    pub fn handle_timeout(&mut self, now: BootTime) {
        self.clock = self.clock.max(now);
        self.check_leases(now);
        self.advance(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When time alone will bring something about.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        if self.stopped {
            return None;
        }
        let mut next = self.next_beat;
        // What was due by the last event has been done, or waits for another one.
        let mut at = |time: BootTime| {
            if time > self.clock {
                next = next.min(time);
            }
        };
        if let Taking::Silent { until, .. } = self.taking {
            at(until + AFTER);
        }
        self.reserve_again.into_iter().for_each(&mut at);
        self.waiting.iter().for_each(|w| at(w.deadline + AFTER));
        self.virtuals.wake().into_iter().for_each(&mut at);
        Some(next)
    }

    /// R9 for every virtual server: a lease that ended G ago is given up.
    fn check_leases(&mut self, now: BootTime) {
        if planted(Mutant::NoGivingUp) {
            return;
        }
        let grace = self.lease / 2;
        for name in self.virtuals.due(now) {
            let Some(v) = self.virtuals.get(&name) else {
                continue;
            };
            let Some(end) = self.lease_end(v) else {
                continue;
            };
            if now > end + grace {
                self.leave(now, &name, None, "lease lost and not re-acquired");
            }
        }
    }

    fn surroundings(&self, now: BootTime) -> Surroundings {
        Surroundings {
            lease: self.lease,
            skew: self.skew(),
            in_touch: self.in_touch(now),
            active: self.taking == Taking::Active,
        }
    }

    /// Those that something may have come about for (see [`Virtuals`]).
    fn turn(&mut self, now: BootTime) -> Vec<VirtualServerName> {
        let surroundings = self.surroundings(now);
        if std::mem::replace(&mut self.surroundings.0, surroundings) != surroundings {
            self.virtuals.stir_all();
        }
        self.virtuals.take_turn(now)
    }

    /// Reckons anew when something will be due for those that may have changed.
    fn reckon(&mut self, now: BootTime, mut turned: Vec<VirtualServerName>) {
        let surroundings = self.surroundings(now);
        if std::mem::replace(&mut self.surroundings.1, surroundings) != surroundings {
            turned = self.virtuals.keys().cloned().collect();
        } else {
            turned.extend(self.virtuals.stirred());
        }
        for name in turned {
            let Some(v) = self.virtuals.get(&name) else {
                continue;
            };
            let due = self.virtual_due(v);
            self.virtuals.set_due(&name, due);
        }
    }

    fn virtual_due(&self, v: &Virtual) -> Due {
        let mut due = Due::default();
        let ahead = |to: &mut Option<BootTime>, at: BootTime| {
            if at > self.clock {
                *to = Some(to.map_or(at, |t| t.min(at)));
            }
        };
        self.virtual_timeouts(v, &mut |at| ahead(&mut due.wake, at));
        due.look = due.wake;
        // What is only looked at when something else happens.
        let open = match v.gate {
            Gate::Open(until) => Some(until + AFTER),
            Gate::Shut | Gate::Shutting => None,
        };
        let broken = v.broken_until.map(|until| until + AFTER);
        let promise = v.voter.promise.as_ref().map(|p| p.until + AFTER);
        for at in [open, broken, promise, Some(v.not_before)] {
            at.into_iter().for_each(|at| ahead(&mut due.look, at));
        }
        // R9 comes before anything else of an event, so one already over is due at the next.
        if let Some(end) = self.lease_end(v) {
            let over = end + self.lease / 2 + AFTER;
            due.look = Some(due.look.map_or(over, |at| at.min(over)));
        }
        due
    }

    pub(crate) fn masterships(&self) -> Vec<VirtualServerName> {
        let master = |(_, v): &(&VirtualServerName, &Virtual)| v.mastership.is_some();
        self.virtuals
            .iter()
            .filter(master)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Everything that time, or a changed state, brings about.
    fn advance(&mut self, now: BootTime) {
        if self.stopped {
            return;
        }
        if let Taking::Silent { until, .. } = self.taking
            && now > until
            && self.has_heard_a_majority()
        {
            self.taking = Taking::Active;
            self.remember = true;
            self.notice("taking part in elections".into());
        }
        self.blank_learns(now);
        self.warn_if_all_are_blank();
        self.keep_reservation(now);
        let turn = self.turn(now);
        for name in &turn {
            self.give_way_if_unfit(now, name);
            self.campaign_time(now, name);
            self.stop_time(now, name);
            self.handover_time(now, name);
            self.renew_if_needed(now, name);
            self.stand_if_free(now, name);
        }
        self.prefer(now);
        self.offer(now);
        self.expire_waiting(now);
        if now >= self.next_beat {
            self.send_beat(now);
        }
        self.settle_roster();
        self.finish_stop(now);
        self.write_memory();
        self.reckon(now, turn);
    }

    /// Puts the memory in front of everything queued in this turn that may rely on it.
    fn write_memory(&mut self) {
        if std::mem::take(&mut self.remember) {
            let votes = self.virtuals.iter().map(|(name, v)| Vote {
                virtual_server: name.clone(),
                voted: v.voter.voted,
                holder: v.voter.holder.clone(),
            });
            let (silent_since, silent_until) = match self.taking {
                Taking::Silent { since, until } => (Some(since), Some(until)),
                Taking::Blank | Taking::Active => (None, None),
            };
            let (floor_base, votes) = (self.floor_base, votes.collect());
            let memory = Memory {
                silent_until,
                silent_since,
                floor_base,
                votes,
                ..Memory::default()
            };
            // One of an earlier turn that nobody has carried out yet: this one has all that it had.
            if planted(Mutant::MemoryLate) {
                self.outputs.push_back(Output::Remember(memory));
            } else if let Some(Output::Remember(waiting)) = self.outputs.front_mut() {
                *waiting = memory;
            } else {
                self.outputs.push_front(Output::Remember(memory));
            }
        }
    }

    // ---- beats and acknowledgements -----------------------------------------------------------------

    /// Makes one beat for everybody and promises to itself what it claims (R2, R4, R7).
    fn send_beat(&mut self, now: BootTime) {
        let interval = self.beat_interval(now);
        let late = now.since(self.next_beat) >= interval;
        self.next_beat = if late {
            now + interval
        } else {
            self.next_beat + interval
        };
        self.settle_lease();
        let number = self.note_sent(now, self.lease);
        let roster = self.counted_roster().clone();
        let mut standings = Vec::with_capacity(self.virtuals.len());
        for name in self.virtuals.keys().cloned().collect::<Vec<_>>() {
            let claim = self.claim(now, &name, number, roster.version);
            let fit = self.fit(&name, now).is_ok();
            let Some(v) = self.virtuals.get(&name) else {
                continue;
            };
            let settings = self.settings.virtual_servers.get(&name);
            standings.push(Standing {
                floor: v.voter.voted,
                claim,
                fit,
                priority: settings.map_or(0, |s| s.priority),
                virtual_server: name,
            });
        }
        let heard = self.peers.iter().filter_map(|(server, peer)| {
            Some(Heard {
                server: server.clone(),
                age: now.since(peer.heard?),
            })
        });
        let beat = Beat {
            instance: self.instance,
            number,
            lease: self.lease,
            promise_max: self.reservation.promise_max,
            floor_base: self.floor_base,
            participation: self.participation(),
            maintenance: self.maintenance || self.stopping,
            witness: self.settings.witness,
            freshness: self.freshness,
            standings,
            heard: heard.collect(),
            roster,
            config_hash: self.settings.config_hash,
            part: Since::default(),
        };
        self.release_held(now);
        self.outputs.push_back(Output::Beat(beat));
        for name in self.masterships() {
            let until = now + self.usable(self.lease);
            if planted(Mutant::ExtendsUnasked)
                && let Some(m) = self
                    .virtuals
                    .get_mut(&name)
                    .and_then(|v| v.mastership.as_mut())
            {
                m.good.values_mut().for_each(|good| *good = until);
            }
            self.extend(now, &name);
        }
    }

    /// R2: the clock is read before the beat or call is handed on.
    pub(crate) fn note_sent(&mut self, now: BootTime, lease: Duration) -> Number {
        self.number = self.number.next();
        self.sent.push_back((self.number, now, lease));
        let keep = self
            .lease
            .max(self.reservation.promise_max)
            .saturating_mul(2);
        while self
            .sent
            .front()
            .is_some_and(|(_, at, _)| now.since(*at) > keep)
        {
            self.sent.pop_front();
        }
        self.number
    }

    /// The claim in beat `number`, if this server may make one, promised to itself (R4, R5, R7).
    fn claim(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        number: Number,
        roster: RosterVersion,
    ) -> Option<Claim> {
        let (instance, lease, me) = (self.instance, self.lease, self.settings.me.clone());
        let usable = self.usable(lease);
        let v = self.virtuals.get(name)?;
        let term = v.mastership.as_ref()?.term;
        let free = v.voter.free_for(&me, now);
        if !self.is_synced(term, lease) || term < v.voter.voted || !free {
            return None;
        }
        let v = self.virtuals.get_mut(name)?;
        let asked = Asked {
            term,
            instance,
            number,
            lease,
            roster,
        };
        self.remember |= v.voter.promise(&me, asked, now);
        self.promised_max.0 = self.promised_max.0.max(lease); // R23: a blank server asks this one
        let mastership = v.mastership.as_mut()?;
        let good = mastership.good.entry(me).or_default();
        *good = (*good).max(now + usable);
        let v = self.virtuals.get(name)?;
        let lease_held = self.lease_end(v).is_some_and(|end| now <= end);
        Some(Claim { term, lease_held })
    }

    /// R1: what a master may use of a promise of `lease`.
    pub(crate) fn usable(&self, lease: Duration) -> Duration {
        if planted(Mutant::UsableWholeLease) {
            return lease;
        }
        (lease * 4 / 5).saturating_sub(self.settings.margin)
    }

    /// R7: the m-th largest of the voters' promises.
    pub(crate) fn lease_end(&self, v: &Virtual) -> Option<BootTime> {
        if planted(Mutant::LeaseByDisk) {
            return self.lease_end_by(v, self.roster());
        }
        self.lease_end_by(v, self.counted_roster())
    }

    /// The same, counted by this roster.
    pub(crate) fn lease_end_by(&self, v: &Virtual, roster: &Roster) -> Option<BootTime> {
        let mastership = v.mastership.as_ref()?;
        let (counted, need): (&[ServerName], usize) = match self.settings.mode {
            Mode::Majority => (&roster.voters, majority(roster)),
            Mode::None => (std::slice::from_ref(&self.settings.me), 1),
        };
        let mut good: Vec<BootTime> = mastership
            .good
            .iter()
            .filter(|(voter, _)| counted.contains(voter))
            .map(|(_, t)| *t)
            .collect();
        good.sort_unstable_by(|a, b| b.cmp(a));
        let fewer = usize::from(planted(Mutant::OneVoterFewer));
        Some(
            good.get(need.saturating_sub(1 + fewer))
                .copied()
                .unwrap_or_default(),
        )
    }

    /// m = n/2 + 1 of the roster; one where nobody is asked.
    pub(crate) fn quorum(&self) -> usize {
        match self.settings.mode {
            Mode::Majority => majority(self.counted_roster()),
            Mode::None => 1,
        }
    }

    /// R7, R8: beyond the gate's deadline, write the lease end there.
    pub(crate) fn extend(&mut self, now: BootTime, name: &VirtualServerName) {
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        let Some(end) = self.lease_end(v) else { return };
        let further = match v.gate {
            Gate::Open(until) => end > until,
            Gate::Shut => true,
            Gate::Shutting => planted(Mutant::ReopensWhileShutting),
        };
        if further && end > now {
            if let Some(v) = self.virtuals.get_mut(name) {
                v.gate = Gate::Open(end);
            }
            self.outputs.push_back(Output::Open(name.clone(), end));
        }
    }

    /// Another server's word about itself has changed: which virtual servers does that concern?
    fn stir_changed(&mut self, from: &ServerName, former: Option<Beat>, older: &Older) {
        let Some((peer, beat)) = self
            .peers
            .get(from)
            .and_then(|p| Some((p, p.beat.as_ref()?)))
        else {
            return;
        };
        let about_itself = |b: &Beat| {
            (
                b.participation,
                b.maintenance,
                b.witness,
                b.freshness,
                b.promise_max,
            )
        };
        let named = |b: &Beat, other: &Beat| {
            let mut pairs = b.standings.iter().zip(&other.standings);
            b.standings.len() == other.standings.len()
                && pairs.all(|(a, b)| a.virtual_server == b.virtual_server)
        };
        let comparable = former
            .as_ref()
            .filter(|f| about_itself(f) == about_itself(beat) && named(f, beat));
        let Some(former) = comparable else {
            return self.virtuals.stir_all();
        };
        for (was, is) in former.standings.iter().zip(&beat.standings) {
            let name = &is.virtual_server;
            // A claim that was released counts again in a later beat.
            let released = |b: &Beat, older: &Older| {
                let (instance, number) = came_by(b, older, name);
                let v = self.virtuals.get(name);
                v.is_some_and(|v| v.voter.is_released(from, instance, number))
            };
            let again = || released(former, older) != released(beat, &peer.older);
            if was != is || (is.claim.is_some() && again()) {
                self.virtuals.stir(name);
            }
        }
    }

    fn beat(&mut self, now: BootTime, from: ServerName, at: BootTime, beat: Beat) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return self.count("beat_unlisted");
        };
        let claims = beat.standings.iter().any(|s| s.claim.is_some());
        if peer.is_news(&beat) {
            peer.heard = Some(peer.heard.map_or(at, |t| t.max(at)).min(now));
            // R24: who lost its disk holds no longer what it told before.
            if beat.participation == Participation::Blank {
                peer.roster = None;
            }
            let older = peer.older.clone();
            let former = peer.take_beat(beat.clone());
            self.stir_changed(&from, former, &older);
        }
        for standing in &beat.standings {
            self.learn_floor(&standing.virtual_server, standing.floor);
        }
        self.offered_roster(&beat.roster);
        self.learn_silent(beat.promise_max);
        self.note_claims(now, &from, &beat);
        self.follow(now, &from);
        if self.taking != Taking::Active {
            return; // R20, R21: no Ack
        }
        if !claims && beat.part.0.index > 0 {
            return; // R25: one of those that claim nothing is enough
        }
        let mut answers = Vec::new();
        for standing in beat.standings {
            let Some(claim) = standing.claim else {
                continue;
            };
            let asked = Asked {
                term: claim.term,
                instance: beat.instance,
                number: beat.number,
                lease: beat.lease,
                roster: beat.roster.version,
            };
            if let Some(verdict) = self.judge(now, &standing.virtual_server, &from, asked) {
                answers.push(Answer {
                    virtual_server: standing.virtual_server,
                    verdict,
                });
            }
        }
        let ack = Ack {
            instance: beat.instance,
            number: beat.number,
            waited: Duration::ZERO,
            answers,
            roster: self.settled_roster(now),
        };
        self.acknowledge(now, from, ack, claims);
    }

    /// R5 and R17: the answer to one claim; none if the beat is dropped.
    fn judge(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        from: &ServerName,
        asked: Asked,
    ) -> Option<Verdict> {
        let Asked {
            term,
            instance,
            number,
            lease,
            roster,
        } = asked;
        if !self.virtuals.contains_key(name) && self.virtuals.len() >= VIRTUAL_SERVERS_MAX {
            let floor = self.floor_base;
            return Some(Verdict::Refused {
                why: Why::TooMany,
                floor,
                holder: None,
            });
        }
        let v = self.virtuals.know(name, self.floor_base);
        let (floor, holder) = (
            v.voter.voted,
            v.voter.promise.as_ref().map(|p| p.holder.clone()),
        );
        let refuse = |why| {
            Some(Verdict::Refused {
                why,
                floor,
                holder: holder.clone(),
            })
        };
        if term < floor && !planted(Mutant::OldTermsAcknowledged) {
            if v.mastership.is_some() {
                self.count("rival_claim_in_lower_term"); // R17: in a lower term: refuse
                self.outputs.push_back(Output::Announce(name.clone()));
            }
            return refuse(Why::Floor);
        }
        if v.voter.stale(from, instance, number) {
            self.count("beat_released_or_overtaken");
            return None;
        }
        if term.0.saturating_sub(floor.0) > TERM_JUMP_MAX {
            return refuse(Why::Absurd); // R22
        }
        if let Some(own) = v.mastership.as_ref().map(|m| m.term) {
            self.meet_rival(now, name, from, own, term); // R17
        }
        let v = self.virtuals.get_mut(name)?;
        if !v.voter.free_for(from, now) {
            return refuse(Why::Promised);
        }
        if v.gate == Gate::Shutting {
            return refuse(Why::Shutting);
        }
        if self.is_outdated(roster) && !planted(Mutant::OldRosterPromised) {
            return refuse(Why::Roster);
        }
        if !self.is_synced(term, lease) {
            self.need(term, lease);
            return refuse(Why::Reservation);
        }
        self.note_promise(lease);
        let v = self.virtuals.get_mut(name)?;
        self.remember |= v.voter.promise(from, asked, now);
        Some(Verdict::Promised(term))
    }

    /// R17: another server claims in a term not below the own.
    fn meet_rival(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        from: &ServerName,
        own: Term,
        term: Term,
    ) {
        let over = self
            .virtuals
            .get(name)
            .and_then(|v| self.lease_end(v))
            .is_none_or(|end| now > end);
        if term == own || (!over && self.settings.mode == Mode::Majority) {
            self.count("alarm_two_masters");
            self.outputs.push_back(Output::Alarm(format!(
                "{from} claims {name} in term {term} while this server is master in term {own}: both give way"
            )));
        }
        self.leave(now, name, None, &format!("{from} is master in term {term}"));
    }

    fn ack(&mut self, now: BootTime, from: &ServerName, ack: Ack) {
        if !self.peers.contains_key(from) {
            return self.count("ack_unlisted");
        }
        if ack.instance != self.instance {
            return self.count("ack_of_former_instance");
        }
        let Ok(index) = self
            .sent
            .binary_search_by_key(&ack.number, |(number, _, _)| *number)
        else {
            return self.count("ack_of_unknown_beat");
        };
        let (_, sent, lease) = self.sent[index];
        if let Some(peer) = self.peers.get_mut(from) {
            peer.roster = Some(ack.roster).filter(|_| !peer.is_blank());
        }
        self.note_round_trip(now.since(sent).saturating_sub(ack.waited));
        let usable = self.usable(lease);
        for Answer {
            virtual_server: name,
            verdict,
        } in ack.answers
        {
            let Some(v) = self.virtuals.get_mut(&name) else {
                continue;
            };
            match verdict {
                Verdict::Promised(term) => {
                    let Some(mastership) = v.mastership.as_mut().filter(|m| m.term == term) else {
                        self.count("ack_without_mastership");
                        continue;
                    };
                    let good = mastership.good.entry(from.clone()).or_default();
                    let from = if planted(Mutant::LeaseFromReceipt) {
                        now
                    } else {
                        sent
                    };
                    *good = (*good).max(from + usable); // R7
                    self.extend(now, &name);
                }
                Verdict::Refused { floor, .. } => self.learn_floor(&name, floor), // R16 follows
            }
        }
    }

    fn note_round_trip(&mut self, sample: Duration) {
        self.round_trip = (self.round_trip * 7 + sample) / 8;
    }

    /// skew = max(h/2, 4 round trips), at most what the configuration's constraints allow.
    pub(crate) fn skew(&self) -> Duration {
        let others = u32::try_from(self.settings.servers.len().saturating_sub(1))
            .unwrap_or(1)
            .max(1);
        let most = (self.lease / 2 / others).max(self.settings.heartbeat / 2);
        (self.settings.heartbeat / 2)
            .max(self.round_trip * 4)
            .min(most)
    }

    /// A floor heard of: terms above it are reserved ahead of time (R22), and called in (R12, R16).
    pub(crate) fn learn_floor(&mut self, name: &VirtualServerName, floor: Term) {
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        let absurd = floor.0.saturating_sub(v.highest().0) > TERM_JUMP_MAX;
        if absurd && self.taking != Taking::Blank {
            return self.count("floor_absurd");
        }
        if floor > v.seen
            && !planted(Mutant::FloorNotLearned)
            && let Some(v) = self.virtuals.get_mut(name)
        {
            v.seen = floor;
        }
    }

    /// Logs who is master, and answers operators that waited for it.
    fn note_claims(&mut self, now: BootTime, from: &ServerName, beat: &Beat) {
        for standing in &beat.standings {
            let Some(claim) = standing.claim else {
                continue;
            };
            let name = &standing.virtual_server;
            self.note_successor(name, claim.term);
            let Some(v) = self.virtuals.get(name) else {
                continue;
            };
            let known = v
                .master
                .as_ref()
                .is_some_and(|(m, t)| *t > claim.term || (m == from && *t == claim.term));
            if known || v.mastership.as_ref().is_some_and(|m| m.term > claim.term) {
                continue;
            }
            if let Some(v) = self.virtuals.get_mut(name) {
                v.master = Some((from.clone(), claim.term));
                v.tries = 0;
                if v.change.follow(now, from, claim.term) {
                    let changed = Output::Changed(name.clone(), v.change.clone());
                    self.outputs.push_back(changed);
                }
            }
            self.notice(format!("master of {name} is {from} in term {}", claim.term));
            self.answer_waiting(name, from, claim.term);
        }
    }

    fn health(&mut self, now: BootTime, health: Health) {
        self.doctor = true;
        let mut healed = false;
        for report in health.servers {
            let Some(peer) = self.peers.get_mut(&report.server) else {
                continue;
            };
            let was = peer.health.replace(report.state);
            peer.last_heard = report.last_heard;
            healed |= report.state == HealthState::Alive
                && matches!(was, Some(HealthState::Dead | HealthState::Unknown));
        }
        let links = health.links.into_iter().map(|l| (l.interface, l.up));
        let before = std::mem::replace(&mut self.links, links.collect());
        for (name, settings) in &self.settings.virtual_servers {
            let was = before.get(&settings.interface);
            let is = self.links.get(&settings.interface);
            // The reason was the interface, most likely.
            if (was, is) == (Some(&false), Some(&true))
                && let Some(v) = self.virtuals.get_mut(name)
            {
                v.broken_until = None;
            }
        }
        if healed {
            for name in self.masterships() {
                if self.virtuals.get(&name).is_some_and(|v| v.gate_open(now)) {
                    self.outputs.push_back(Output::Announce(name));
                }
            }
        }
    }

    // ---- small helpers ------------------------------------------------------------------------------

    pub(crate) fn participation(&self) -> Participation {
        match self.taking {
            Taking::Blank => Participation::Blank,
            Taking::Silent { .. } => Participation::Silent,
            Taking::Active => Participation::Active,
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    pub(crate) fn notice(&mut self, text: String) {
        self.outputs.push_back(Output::Notice(text));
    }

    /// A signal of this server; `number` is the last one used unless it is a call's own.
    pub(crate) fn say(&mut self, to: &ServerName, name: &VirtualServerName, body: Body) {
        let signal = Signal {
            virtual_server: name.clone(),
            instance: self.instance,
            number: self.number,
            body,
        };
        self.outputs.push_back(Output::Signal {
            to: to.clone(),
            signal,
        });
    }

    /// Uniform in 0 ..= `span`, from the seeded generator (splitmix64, Steele et al. 2014).
    pub(crate) fn random(&mut self, span: Duration) -> Duration {
        if planted(Mutant::NoBackOff) {
            return Duration::ZERO;
        }
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(z % (nanos + 1))
    }

    /// Could this server serve it: configured, interface up, gate not broken.
    pub(crate) fn fit(&self, name: &VirtualServerName, now: BootTime) -> Result<(), &'static str> {
        let Some(settings) = self.settings.virtual_servers.get(name) else {
            return Err("not in this server's configuration");
        };
        if self.settings.witness {
            return Err("a witness only votes");
        }
        if self.links.get(&settings.interface) == Some(&false) {
            return Err("its interface is down");
        }
        let broken = self.virtuals.get(name).and_then(|v| v.broken_until);
        if broken.is_some_and(|until| now <= until) {
            return Err("its addresses could not be set up here");
        }
        Ok(())
    }

    fn gate_broken(&mut self, now: BootTime, name: &VirtualServerName, why: String) {
        self.outputs
            .push_back(Output::Alarm(format!("{name}: {why}")));
        if let Some(v) = self.virtuals.get_mut(name) {
            v.broken_until = Some(now + BROKEN);
        }
    }

    /// It goes on, or has ended. Whoever answers while another server claims it may be that one.
    fn taken(&mut self, now: BootTime, name: &VirtualServerName, taken: bool) {
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        let mut peers = self.peers.iter();
        let claimed = peers.any(|(server, peer)| peer.claim(server, name, &v.voter).is_some());
        v.broken_until = (taken && !claimed).then_some(now + BROKEN);
    }

    fn give_way_if_unfit(&mut self, now: BootTime, name: &VirtualServerName) {
        let master = self
            .virtuals
            .get(name)
            .is_some_and(|v| v.mastership.is_some());
        if master && let Err(why) = self.fit(name, now) {
            self.leave(now, name, None, why);
        }
    }

    pub(crate) fn change_role(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        master: bool,
        term: Term,
        renewed: bool,
        reason: &str,
    ) {
        let me = self.settings.me.clone();
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        if !renewed {
            v.change = Change {
                at: Some(now),
                master: master.then(|| me.clone()),
                reason: reason.to_owned(),
            };
            let changed = Output::Changed(name.clone(), v.change.clone());
            self.outputs.push_back(changed);
        }
        if master {
            v.master = Some((me, term));
        }
        let holder = v
            .master
            .as_ref()
            .filter(|(m, _)| master || *m != self.settings.me);
        let holder = holder.map(|(m, _)| m.clone());
        self.outputs.push_back(Output::Role(RoleChange {
            virtual_server: name.clone(),
            master,
            term,
            renewed,
            holder,
            reason: reason.to_owned(),
        }));
    }

    /// Becomes master of `term`; the gate may open at once (R13).
    pub(crate) fn win(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        term: Term,
        good: BTreeMap<ServerName, BootTime>,
        reason: &str,
    ) {
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        let renewed = v.campaign.take().is_some_and(|c| c.kind == Kind::Renewal);
        v.mastership = Some(Mastership {
            term,
            since: now,
            good,
        });
        v.tries = 0;
        v.ready_since = None;
        v.not_before = BootTime(0);
        v.succession = None; // whoever was awaited, this server holds it now
        self.extend(now, name);
        self.change_role(now, name, true, term, renewed, reason);
        let me = self.settings.me.clone();
        self.answer_waiting(name, &me, term);
        self.restamp_roster(name, term);
        self.next_beat = self.next_beat.min(now);
    }

    fn expire_waiting(&mut self, now: BootTime) {
        let (over, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|w| now > w.deadline);
        self.waiting = rest;
        for Waiting {
            id,
            virtual_server,
            to,
            ..
        } in over
        {
            let who = to.map_or("another server".to_owned(), |s| s.to_string());
            let answer = Err(format!(
                "{who} has not become master of {virtual_server} in time"
            ));
            self.answer(id, answer);
        }
    }

    fn answer_waiting(&mut self, name: &VirtualServerName, master: &ServerName, term: Term) {
        let me = &self.settings.me;
        let met = |w: &Waiting| {
            &w.virtual_server == name && w.to.as_ref().map_or(master != me, |to| to == master)
        };
        let (done, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(met);
        self.waiting = rest;
        for Waiting { id, .. } in done {
            let answer = Ok(format!("{master} is master of {name} in term {term}"));
            self.answer(id, answer);
        }
    }

    /// The operator's wish `id` concerns so many virtual servers, and is answered when each has its answer.
    pub(crate) fn expect(&mut self, id: u64, virtual_servers: usize) {
        self.parts.insert(id, Parts::of(virtual_servers));
    }

    /// Answers a wish, or one part of it.
    pub(crate) fn answer(&mut self, id: u64, answer: Result<String, String>) {
        let answer = match self.parts.get_mut(&id).map(|parts| parts.add(&answer)) {
            None => answer,
            Some(None) => return,
            Some(Some(whole)) => {
                self.parts.remove(&id);
                whole
            }
        };
        self.outputs.push_back(Output::Answer { id, answer });
    }

    fn operator(&mut self, now: BootTime, id: u64, wish: Wish) {
        match wish {
            Wish::Promote(to, which) => self.promote(now, id, &to, which),
            Wish::Resign => self.resign(now, id),
            Wish::Maintenance(on) => self.set_maintenance(now, id, on),
            Wish::Add(server) => self.change_roster(now, id, &server, true),
            Wish::Remove(server) => self.change_roster(now, id, &server, false),
        }
    }

    /// R24: the roster that this server counts by: the highest known, on disk or on its way there; none while it is
    /// blank.
    pub fn counted_roster(&self) -> &Roster {
        if self.taking == Taking::Blank {
            &self.reservation.roster
        } else {
            &self.wanted.roster
        }
    }

    /// The roster on disk.
    pub fn roster(&self) -> &Roster {
        &self.reservation.roster
    }
}
