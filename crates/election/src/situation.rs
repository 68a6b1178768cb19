//! The elector's state in words, so that a model check knows equal situations: times are told relative to now,
//! what only the log and an operator see is left out, and what only names something (instances, numbers,
//! rounds) is marked as such, to be renamed.
//!
//! Each struct is taken apart field by field: a new field does not compile until it is decided on here.

use crate::{
    elector::{Elector, Surroundings},
    memory::Memory,
    output::Output,
    reservation::Reservation,
    state::{Campaign, Gate, Handover, Leaving, Mastership, Peer, Phase, Taking, Virtual},
    virtuals::Due,
    voter::{Promise, Voter},
};
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term, VirtualServerName,
    local::ring::HealthState,
    wire::{
        beat::{Ack, Beat, Claim, Participation, Roster, Standing, Verdict, Why},
        signal::{Body, PreVerdict, Signal},
    },
};
use std::time::Duration;

/// What lies further ahead never comes in a model.
const FAR: u64 = 1 << 20;

/// One word of a situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Itself.
    Plain(u64),
    /// A beat or call: only which is the earlier matters.
    Number(Instance, Number),
    /// When a beat or call was sent, and for which lease: matters as long as somebody knows of that number.
    Sent(Instance, Number, u64, u64),
    /// A release: matters as long as somebody knows of a number that it covers.
    Released(usize, Instance, Number),
    /// A round of this server: only its distance from the present one matters.
    Round(usize, u64),
    /// The present round of this server.
    RoundNow(usize, u64),
}

/// A situation as it is told.
#[derive(Clone, Debug)]
pub struct Situation {
    servers: Vec<ServerName>,
    virtual_servers: Vec<VirtualServerName>,
    heartbeat: Duration,
    /// No rule looks further back than so many nanoseconds.
    horizon: u64,
    /// Leases change: what was promised lately matters (R23).
    lease_changes: bool,
    now: BootTime,
    /// What was told so far.
    pub words: Vec<Word>,
}

impl Situation {
    /// One of these servers, where no lease is longer than `longest`.
    pub fn new(
        servers: Vec<ServerName>,
        virtual_servers: Vec<VirtualServerName>,
        heartbeat: Duration,
        longest: Duration,
        lease_changes: bool,
    ) -> Self {
        Self {
            servers,
            virtual_servers,
            heartbeat,
            horizon: u64::try_from(longest.as_nanos())
                .unwrap_or(u64::MAX)
                .saturating_add(1),
            lease_changes,
            now: BootTime(0),
            words: Vec::with_capacity(512),
        }
    }

    /// Empty again, and of the same kind as `like`.
    pub fn again(&mut self, like: &Self) {
        if self.servers != like.servers {
            self.servers.clone_from(&like.servers);
        }
        if self.virtual_servers != like.virtual_servers {
            self.virtual_servers.clone_from(&like.virtual_servers);
        }
        (self.heartbeat, self.horizon) = (like.heartbeat, like.horizon);
        self.lease_changes = like.lease_changes;
        self.words.clear();
    }

    /// What follows is told by the clock of a server where it is `now`.
    pub fn at(&mut self, now: BootTime) {
        self.now = now;
    }

    /// A plain word.
    pub fn plain(&mut self, word: u64) {
        self.words.push(Word::Plain(word));
    }

    /// A time: ahead of now, or so long ago.
    pub fn time(&mut self, at: BootTime) {
        let word = self.relative(at);
        self.plain(word);
    }

    fn relative(&self, at: BootTime) -> u64 {
        let ago = self.now.0.saturating_sub(at.0).min(self.horizon);
        let ahead = at.0.saturating_sub(self.now.0).min(FAR);
        FAR + ahead - ago
    }

    /// A span.
    pub fn span(&mut self, span: Duration) {
        self.plain(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How long ago somebody was heard: what is longer than 2 h is all the same (R10).
    fn age(&mut self, age: Duration) {
        self.span(age.min(self.heartbeat * 2 + Duration::from_nanos(1)));
    }

    fn index(&self, name: &ServerName) -> usize {
        self.servers
            .iter()
            .position(|s| s == name)
            .unwrap_or(usize::MAX)
    }

    /// A server.
    pub fn server(&mut self, name: &ServerName) {
        self.plain(self.index(name) as u64);
    }

    fn name(&mut self, name: &VirtualServerName) {
        let at = self.virtual_servers.iter().position(|v| v == name);
        self.plain(at.map_or(u64::MAX, |at| at as u64));
    }

    /// Perhaps something.
    pub fn option<T>(&mut self, value: Option<T>, tell: impl FnOnce(&mut Self, T)) {
        self.plain(u64::from(value.is_some()));
        if let Some(value) = value {
            tell(self, value);
        }
    }

    fn version(&mut self, RosterVersion { term, counter }: RosterVersion) {
        self.plain(term.0);
        self.plain(counter);
    }

    fn roster(
        &mut self,
        Roster {
            version,
            voters,
            keeper,
        }: &Roster,
    ) {
        self.version(*version);
        self.option(keeper.as_ref(), Self::name);
        let set = voters
            .iter()
            .map(|v| 1 << self.index(v).min(62))
            .fold(0, |a, b| a | b);
        self.plain(set);
    }

    /// A reservation.
    pub fn reservation(&mut self, reservation: &Reservation) {
        let Reservation {
            reserved,
            promise_max,
            roster,
        } = reservation;
        self.plain(reserved.0);
        self.span(*promise_max);
        self.roster(roster);
    }

    /// The run-dir's memory.
    pub fn memory(&mut self, memory: &Memory) {
        let Memory {
            boot_id: _,
            sequence: _,
            silent_until,
            silent_since,
            floor_base,
            votes,
        } = memory;
        self.option(*silent_until, Self::time);
        self.option(*silent_since, Self::time);
        self.plain(floor_base.0);
        self.plain(votes.len() as u64);
        for vote in votes {
            self.name(&vote.virtual_server);
            self.plain(vote.voted.0);
            self.option(vote.holder.as_ref(), Self::server);
        }
    }

    fn claim(&mut self, Claim { term, lease_held }: Claim) {
        self.plain(term.0 << 1 | u64::from(lease_held));
    }

    /// A beat.
    pub fn beat(&mut self, beat: &Beat) {
        let Beat {
            instance,
            number,
            lease,
            promise_max,
            floor_base,
            participation,
            maintenance,
            witness: _,
            freshness,
            standings,
            heard,
            roster,
            config_hash: _,
            part,
        } = beat;
        self.words.push(Word::Number(*instance, *number));
        self.span(*lease);
        self.span(*promise_max);
        self.plain(floor_base.0);
        self.plain(match participation {
            Participation::Blank => 0,
            Participation::Silent => 1,
            Participation::Active => 2,
        });
        self.plain(u64::from(*maintenance));
        self.plain(freshness.run);
        for Standing {
            virtual_server,
            floor,
            claim,
            fit,
            priority,
        } in standings
        {
            self.name(virtual_server);
            self.plain(floor.0);
            self.option(*claim, Self::claim);
            self.plain(u64::from(*fit) << 32 | u64::from(*priority));
        }
        for heard in heard {
            self.server(&heard.server);
            self.age(heard.age);
        }
        self.roster(roster);
        self.plain(u64::from(part.0.index) << 16 | u64::from(part.0.of));
    }

    /// An acknowledgement; how long it waited is left out, the model hides round trips.
    pub fn ack(&mut self, ack: &Ack) {
        let Ack {
            instance,
            number,
            waited: _,
            answers,
            roster,
        } = ack;
        self.words.push(Word::Number(*instance, *number));
        for answer in answers {
            self.name(&answer.virtual_server);
            match &answer.verdict {
                Verdict::Promised(term) => self.plain(term.0 << 1),
                Verdict::Refused { why, floor, holder } => {
                    self.plain(floor.0 << 1 | 1);
                    self.why(*why);
                    self.option(holder.as_ref(), Self::server);
                }
            }
        }
        self.version(*roster);
    }

    fn why(&mut self, why: Why) {
        self.plain(why as u64);
    }

    /// A signal between these two.
    pub fn signal(&mut self, from: usize, to: usize, signal: &Signal) {
        let Signal {
            virtual_server,
            instance,
            number,
            body,
        } = signal;
        self.name(virtual_server);
        match body {
            Body::PreCall { term, lease, round } => {
                self.plain(term.0 << 4);
                self.span(*lease);
                self.words.push(Word::Round(from, *round));
            }
            Body::PreAnswer {
                term,
                round,
                verdict,
            } => {
                self.plain(term.0 << 4 | 1);
                self.words.push(Word::Round(to, *round));
                match verdict {
                    PreVerdict::Yes => self.plain(0),
                    PreVerdict::No {
                        why,
                        floor,
                        retry_after,
                    } => {
                        self.plain(floor.0 << 1 | 1);
                        self.why(*why);
                        self.option(*retry_after, Self::span);
                    }
                }
            }
            Body::Call {
                term,
                lease,
                releases,
                roster,
            } => {
                self.plain(term.0 << 4 | 2);
                self.words.push(Word::Number(*instance, *number));
                self.span(*lease);
                for released in releases {
                    let server = self.index(&released.server);
                    self.words
                        .push(Word::Released(server, released.instance, released.number));
                }
                self.version(*roster);
            }
            Body::Grant {
                instance,
                number,
                term,
            } => {
                self.plain(term.0 << 4 | 3);
                self.words.push(Word::Number(*instance, *number));
            }
            Body::Refuse {
                instance,
                number,
                term,
                why,
                floor,
            } => {
                self.plain(term.0 << 4 | 4);
                self.words.push(Word::Number(*instance, *number));
                self.why(*why);
                self.plain(floor.0);
            }
            Body::Release { term, invited } => {
                self.plain(term.0 << 4 | 5);
                self.words.push(Word::Number(*instance, *number));
                self.option(invited.as_ref(), Self::server);
            }
            Body::ReadyQuery => self.plain(6),
            Body::Ready => self.plain(7),
            Body::NotReady { why: _ } => self.plain(8),
            Body::HandOver { to } => {
                self.plain(9);
                self.server(to);
            }
            Body::Clients { clients } => self.plain((clients.len() as u64) << 4 | 10),
        }
    }

    /// An output of server `from`; what only a log sees is left out.
    pub fn output(&mut self, from: usize, output: &Output) {
        match output {
            Output::Remember(memory) => {
                self.plain(1);
                self.memory(memory);
            }
            Output::Beat(beat) => {
                self.plain(2);
                self.beat(beat);
            }
            Output::Ack { to, ack } => {
                self.plain(3);
                self.server(to);
                self.ack(ack);
            }
            Output::Signal { to, signal } => {
                self.plain(4);
                self.server(to);
                self.signal(from, self.index(to), signal);
            }
            Output::Open(name, until) => {
                self.plain(5);
                self.name(name);
                self.time(*until);
            }
            Output::Shut(name) | Output::HandOver(name, _) => {
                self.plain(6);
                self.name(name);
            }
            Output::Reserve(reservation) => {
                self.plain(7);
                self.reservation(reservation);
            }
            Output::Role(change) => {
                self.plain(8 | u64::from(change.master) << 4 | u64::from(change.renewed) << 5);
                self.name(&change.virtual_server);
                self.plain(change.term.0);
            }
            Output::Stopped(last) => {
                self.plain(9);
                self.option(last.as_ref(), Self::reservation);
            }
            Output::Succeeded(_)
            | Output::Announce(_)
            | Output::Clients(..)
            | Output::Probe(_)
            | Output::Changed(..)
            | Output::Alarm(_)
            | Output::Notice(_)
            | Output::Answer { .. } => {}
        }
    }

    fn surroundings(&mut self, surroundings: &Surroundings) {
        let (lease, skew, in_touch, active) = surroundings.parts();
        self.span(lease);
        self.span(skew);
        self.plain((in_touch as u64) << 1 | u64::from(active));
    }

    fn promise(&mut self, promise: &Promise) {
        let Promise {
            holder,
            by,
            until,
            firm_until,
            roster,
            earlier,
        } = promise;
        self.server(holder);
        self.option(*by, |s, (i, k)| s.words.push(Word::Number(i, k)));
        self.time(*until);
        let firm = firm_until.filter(|firm| self.now <= *firm);
        self.option(firm, Self::time);
        self.version(*roster);
        let earlier = earlier.filter(|(_, until)| self.now <= *until);
        self.option(earlier, |s, (version, until)| {
            s.version(version);
            s.time(until);
        });
    }

    fn voter(&mut self, voter: &Voter) {
        self.plain(voter.voted.0);
        self.option(voter.holder.as_ref(), Self::server);
        self.option(voter.promise.as_ref(), Self::promise);
        if voter.promise.is_none() {
            self.time(voter.released_at);
        }
        for (server, instance, number) in voter.releases() {
            let server = self.index(server);
            self.words.push(Word::Released(server, instance, number));
        }
    }

    fn campaign(&mut self, me: usize, campaign: &Campaign) {
        let Campaign {
            kind,
            term,
            lease,
            deadline,
            phase,
        } = campaign;
        self.plain(*kind as u64);
        self.plain(term.0);
        self.span(*lease);
        self.time(*deadline);
        match phase {
            Phase::Pre {
                round,
                yes,
                no,
                ask_again,
            } => {
                self.plain(1);
                self.words.push(Word::Round(me, *round));
                for (said, servers) in [(2, yes), (3, no)] {
                    self.plain(said);
                    servers.iter().for_each(|s| self.server(s));
                }
                for (server, at) in ask_again {
                    self.server(server);
                    self.time(*at);
                }
            }
            Phase::Call {
                number: _,
                sent,
                granted,
                refused,
            } => {
                self.plain(4);
                self.time(*sent);
                for (said, servers) in [(2, granted), (3, refused)] {
                    self.plain(said);
                    servers.iter().for_each(|s| self.server(s));
                }
            }
            Phase::Probe => self.plain(5),
        }
    }

    fn virtual_server(&mut self, me: usize, instance: Instance, v: &Virtual) {
        let Virtual {
            voter,
            seen,
            gate,
            mastership,
            campaign,
            leaving,
            handover,
            succession,
            ready_since,
            stand_at,
            obstacle: _,
            not_before,
            tries,
            broken_until,
            master,
            change: _,
        } = v;
        self.voter(voter);
        self.plain(seen.0);
        match gate {
            Gate::Shut => self.plain(0),
            Gate::Shutting => self.plain(1),
            Gate::Open(until) if *until < self.now => self.plain(2),
            Gate::Open(until) => {
                self.plain(3);
                self.time(*until);
            }
        }
        // `since` matters only where a server is preferred, which no model does.
        self.option(
            mastership.as_ref(),
            |s,
             Mastership {
                 term,
                 since: _,
                 good,
             }| {
                s.plain(term.0);
                for (server, until) in good {
                    s.server(server);
                    s.time(*until);
                }
            },
        );
        self.option(campaign.as_ref(), |s, campaign| {
            s.campaign(me, campaign);
            if let Phase::Call { number, .. } = &campaign.phase {
                s.words.push(Word::Number(instance, *number));
            }
        });
        self.option(
            leaving.as_ref(),
            |s,
             Leaving {
                 term,
                 invited,
                 was_master,
                 reason: _,
             }| {
                s.plain(term.0 << 1 | u64::from(*was_master));
                s.option(invited.as_ref(), Self::server);
            },
        );
        self.option(handover.as_ref(), |s, handover| {
            let Handover {
                to,
                others,
                deadline,
                reason: _,
                wish: _,
                regardless,
            } = handover;
            s.server(to);
            others.iter().for_each(|o| s.server(o));
            s.time(*deadline);
            s.plain(u64::from(*regardless));
        });
        self.option(*succession, |s, (term, until)| {
            s.plain(term.0);
            s.time(until);
        });
        self.option(*ready_since, Self::time);
        self.option(*stand_at, Self::time);
        let later = Some(*not_before).filter(|at| *at > self.now);
        self.option(later, Self::time);
        self.plain(u64::from(*tries));
        self.option(*broken_until, Self::time);
        self.option(master.as_ref(), |s, (server, term)| {
            s.server(server);
            s.plain(term.0);
        });
    }

    fn peer(&mut self, peer: &Peer) {
        self.option(peer.beat.as_ref(), Self::beat);
        for (v, (instance, number)) in &peer.older {
            self.name(v);
            self.words.push(Word::Number(*instance, *number));
        }
        peer.parts
            .iter()
            .for_each(|part| self.plain(u64::from(*part)));
        self.plain(u64::from(peer.complete));
        self.option(peer.heard, |s, at| s.age(s.now.since(at)));
        self.plain(match peer.health {
            None => 0,
            Some(HealthState::Alive) => 1,
            Some(HealthState::Suspect) => 2,
            Some(HealthState::Dead) => 3,
            Some(HealthState::Unknown) => 4,
        });
        self.option(peer.roster, Self::version);
    }

    fn due(&mut self, due: Due) {
        // What is past is as good as now.
        for at in [due.look, due.wake] {
            self.option(at, |s, at| s.time(at.max(s.now)));
        }
    }

    fn taking(&mut self, taking: &Taking) {
        match taking {
            Taking::Blank => self.plain(0),
            Taking::Silent { since, until } => {
                self.plain(1);
                self.time(*since);
                self.time(*until);
            }
            Taking::Active => self.plain(2),
        }
    }
}

impl Elector {
    /// Tells the whole state at `now`. The seed is left out: whoever compares situations sets it
    /// ([`Elector::reseed`]).
    pub fn tell(&self, now: BootTime, s: &mut Situation) {
        let Self {
            settings,
            instance,
            number,
            sent,
            taking,
            all_are_blank: _,
            reservation,
            wanted,
            reserving,
            unsure,
            longest,
            reserve_again,
            promised_max,
            floor_base,
            virtuals,
            surroundings,
            peers,
            links,
            doctor,
            lease,
            maintenance,
            freshness,
            stopping,
            stopped,
            waiting: _,
            parts: _,
            roster_wish: _,
            preempted: _,
            offered,
            round,
            round_trip,
            seed: _,
            next_beat,
            held,
            clock,
            remember,
            outputs,
            counters: _,
        } = self;
        s.at(now);
        let me = s.index(&settings.me);
        s.span(settings.lease);
        s.words.push(Word::Number(*instance, *number));
        for (number, at, lease) in sent {
            let (at, lease) = (s.relative(*at), lease.as_nanos() as u64);
            s.words.push(Word::Sent(*instance, *number, at, lease));
        }
        s.taking(taking);
        s.reservation(reservation);
        s.reservation(wanted);
        s.span(*longest);
        s.option(*reserve_again, Situation::time);
        if s.lease_changes {
            s.span(promised_max.0);
            s.span(promised_max.1);
            s.time(promised_max.2);
        }
        s.plain(floor_base.0);
        for (name, v) in virtuals.iter() {
            s.name(name);
            s.virtual_server(me, *instance, v);
        }
        let dues: Vec<Due> = virtuals.keys().map(|name| virtuals.due_of(name)).collect();
        dues.into_iter().for_each(|due| s.due(due));
        let stirred = virtuals.stirred();
        s.plain(stirred.len() as u64);
        stirred.iter().for_each(|name| s.name(name));
        s.surroundings(&surroundings.0);
        s.surroundings(&surroundings.1);
        for peer in peers.values() {
            s.peer(peer);
        }
        let flags = [
            *reserving,
            *unsure,
            *doctor,
            *maintenance,
            *stopping,
            *stopped,
            *remember,
        ];
        let flags = flags.into_iter().chain(links.values().copied());
        s.plain(flags.fold(1, |word, flag| word << 1 | u64::from(flag)));
        s.span(*lease);
        s.plain(freshness.run);
        if *maintenance {
            s.time(*offered);
        }
        s.words.push(Word::RoundNow(me, *round));
        s.span(*round_trip);
        s.time(*next_beat);
        for (to, _, ack) in held {
            s.server(to);
            s.ack(ack);
        }
        s.time(*clock);
        for output in outputs {
            s.output(me, output);
        }
    }

    /// The back-off to come is drawn from this seed.
    pub fn reseed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// The term in which this server is master of `name`.
    pub fn mastership(&self, name: &VirtualServerName) -> Option<Term> {
        Some(self.virtuals.get(name)?.mastership.as_ref()?.term)
    }
}
