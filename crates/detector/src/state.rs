//! The detector itself.

use crate::{Input, Output, Params};
use mutants::{Mutant, planted};
use protocol::{
    BootTime, ServerName,
    local::ring::{Health, HealthState, LinkHealth, ServerHealth},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Shortest lease (ELECTION, "What a configuration must satisfy"); a beat that names a shorter one is
/// taken to mean this.
pub const LEASE_MIN: Duration = Duration::from_millis(25);

/// Longest lease, likewise: nobody stays undead for a wild number.
pub const LEASE_MAX: Duration = Duration::from_secs(10);

/// Just past: a server is still alive two heartbeats after its last beat, and no longer.
const INSTANT: Duration = Duration::from_nanos(1);

/// What is known about one server.
#[derive(Clone, Debug)]
struct Server {
    state: HealthState,
    last_heard: Option<BootTime>,
    /// As its last beat told.
    lease: Option<Duration>,
}

impl Server {
    fn new() -> Self {
        Self {
            state: HealthState::Unknown,
            last_heard: None,
            lease: None,
        }
    }
}

/// The doctor's mind. See the crate's description.
#[derive(Clone, Debug)]
pub struct Detector {
    params: Params,
    servers: BTreeMap<ServerName, Server>,
    /// Every interface ever reported; an interface never reported is in no [`Health`].
    links: BTreeMap<String, bool>,
    /// Since when everything that arrived was heard; none without hbd.
    listening: Option<BootTime>,
    /// When hbd last said anything, if it is one that says regularly that it listens.
    hbd_heard: Option<BootTime>,
    /// When to say the next [`Output::Health`], and to notice a stall if that is late.
    tick: BootTime,
    /// [`Output::Drain`] was given and not answered.
    draining: bool,
    /// Something changed since the last [`Output::Health`].
    changed: bool,
    outputs: VecDeque<Output>,
    stalls: u64,
}

impl Detector {
    /// A doctor that has heard nobody and whose hbd is not connected yet.
    pub fn new(params: Params, now: BootTime) -> Self {
        let servers = params
            .servers
            .iter()
            .map(|name| (name.clone(), Server::new()))
            .collect();
        Self {
            params,
            servers,
            links: BTreeMap::new(),
            listening: None,
            hbd_heard: None,
            tick: now,
            draining: false,
            changed: true,
            outputs: VecDeque::new(),
            stalls: 0,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: BootTime, input: Input) {
        self.notice_stall(now, self.tick);
        self.notice_deafness(now);
        let mut may_accuse = false;
        match input {
            Input::Beat { from, at, lease } => {
                self.hbd_spoke(now, at);
                self.notice_stall(now, at);
                self.hear(now, &from, at, lease);
                self.tick_early(now);
            }
            Input::Ack { at, .. } => {
                self.hbd_spoke(now, at);
                self.notice_stall(now, at);
                self.tick_early(now);
            }
            Input::HbdListens => {
                self.hbd_spoke(now, now);
                self.hbd_heard = Some(now);
            }
            Input::HbdGone => (self.listening, self.hbd_heard) = (None, None),
            Input::Drained => {
                may_accuse = self.draining;
                self.draining = false;
            }
            Input::Link { interface, up } => {
                let before = self.links.insert(interface.clone(), up);
                self.changed |= before != Some(up) && self.params.interfaces.contains(&interface);
            }
            Input::ElectdUp => self.changed = true,
            Input::Params(params) => self.replace(params),
        }
        self.judge(now, may_accuse);
    }

    /// Time has passed; harmless at any time.
    pub fn handle_timeout(&mut self, now: BootTime) {
        self.notice_stall(now, self.tick);
        self.notice_deafness(now);
        self.tick_from(now, self.tick);
        self.judge(now, false);
    }

    /// electd is woken in this turn anyway: the opinion comes along if it would be due soon.
    fn tick_early(&mut self, now: BootTime) {
        if now + self.interval() / 4 >= self.tick {
            self.tick_from(now, now);
        }
    }

    fn tick_from(&mut self, now: BootTime, due: BootTime) {
        if now >= due {
            self.tick = now + self.interval();
            self.changed = true;
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let next = self
            .servers
            .values()
            .filter_map(|server| self.next_change(server));
        next.chain([self.tick]).min()
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() && std::mem::take(&mut self.changed) {
            self.outputs.push_back(Output::Health(self.health()));
        }
        self.outputs.pop_front()
    }

    /// The present opinion.
    pub fn health(&self) -> Health {
        let server = |(name, server): (&ServerName, &Server)| ServerHealth {
            server: name.clone(),
            state: server.state,
            last_heard: server.last_heard,
        };
        let link = |interface: &String| {
            self.links.get(interface).map(|up| LinkHealth {
                interface: interface.clone(),
                up: *up,
            })
        };
        Health {
            servers: self.servers.iter().map(server).collect(),
            links: self.params.interfaces.iter().filter_map(link).collect(),
        }
    }

    /// How often this doctor found that it had been stalled.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// Has listened without a gap since then; none without hbd.
    pub fn listening_since(&self) -> Option<BootTime> {
        self.listening
    }

    fn hear(&mut self, now: BootTime, from: &ServerName, at: BootTime, lease: Duration) {
        let Some(server) = self.servers.get_mut(from) else {
            return;
        };
        let at = at.min(now);
        // Several paths: what arrives late tells neither the time nor the lease any more.
        if server.last_heard <= Some(at) {
            server.last_heard = Some(at);
            server.lease = Some(lease.clamp(LEASE_MIN, LEASE_MAX));
        }
    }

    /// A new configuration: who stays is remembered, who is new is unknown.
    fn replace(&mut self, params: Params) {
        self.servers.retain(|name, _| params.servers.contains(name));
        for name in &params.servers {
            self.servers.entry(name.clone()).or_insert_with(Server::new);
        }
        self.params = params;
        self.changed = true;
    }

    /// Whatever hbd says, it is there, and was when this arrived.
    fn hbd_spoke(&mut self, now: BootTime, at: BootTime) {
        self.listening.get_or_insert(at.min(now));
        self.hbd_heard = self.hbd_heard.map(|_| now);
    }

    /// An hbd that is stopped keeps its socket open: only its own word shows that it listens.
    fn notice_deafness(&mut self, now: BootTime) {
        let due = |last: BootTime| last + self.params.heartbeat + self.patience();
        if self.hbd_heard.is_some_and(|last| now > due(last)) {
            self.listening = None;
        }
    }

    /// What should have been dealt with at `due` is dealt with only now: whoever was silent meanwhile may
    /// not have been.
    fn notice_stall(&mut self, now: BootTime, due: BootTime) {
        if now.since(due) <= self.patience() || planted(Mutant::BlindAccuses) {
            return;
        }
        self.tick = self.tick.max(now);
        if self.listening.is_some_and(|since| since < now) {
            self.listening = Some(now);
            self.stalls += 1;
        }
    }

    fn judge(&mut self, now: BootTime, may_accuse: bool) {
        let verdicts: Vec<_> = self
            .servers
            .values()
            .map(|server| self.opinion(now, server))
            .collect();
        for (server, verdict) in self.servers.values_mut().zip(verdicts) {
            if verdict == server.state {
                continue;
            }
            if verdict == HealthState::Dead && !may_accuse {
                if !self.draining {
                    self.draining = true;
                    self.outputs.push_back(Output::Drain);
                }
                continue;
            }
            server.state = verdict;
            self.changed = true;
        }
    }

    fn opinion(&self, now: BootTime, server: &Server) -> HealthState {
        if server
            .last_heard
            .is_some_and(|last| now.since(last) <= 2 * self.params.heartbeat)
        {
            return HealthState::Alive;
        }
        match self.watched_since(server) {
            None => HealthState::Unknown,
            Some(since) if now.since(since) >= self.lease(server) => HealthState::Dead,
            Some(since) if server.last_heard == Some(since) => HealthState::Suspect,
            Some(_) => HealthState::Unknown,
        }
    }

    /// Begin of the silence, as far as it was listened to.
    fn watched_since(&self, server: &Server) -> Option<BootTime> {
        self.listening
            .map(|since| server.last_heard.map_or(since, |last| last.max(since)))
    }

    fn next_change(&self, server: &Server) -> Option<BootTime> {
        match server.state {
            HealthState::Alive => server
                .last_heard
                .map(|last| last + 2 * self.params.heartbeat + INSTANT),
            HealthState::Suspect | HealthState::Unknown => self
                .watched_since(server)
                .map(|since| since + self.lease(server)),
            HealthState::Dead => None,
        }
    }

    fn lease(&self, server: &Server) -> Duration {
        if planted(Mutant::SilenceOverlooked) {
            return 10 * self.params.lease;
        }
        server.lease.unwrap_or(self.params.lease)
    }

    fn shortest_lease(&self) -> Duration {
        let leases = self.servers.values().filter_map(|server| server.lease);
        leases.fold(self.params.lease, Duration::min)
    }

    /// What is later than that was stalled.
    fn patience(&self) -> Duration {
        self.shortest_lease() / 4
    }

    fn interval(&self) -> Duration {
        self.params.heartbeat.min(self.shortest_lease() / 5)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use HealthState::{Alive, Dead, Suspect, Unknown};

    const LEASE: u64 = 500;

    /// A detector with a shell that is never late unless told, and an hbd that says nothing of itself
    /// unless told.
    struct Doctor {
        core: Detector,
        now: BootTime,
        /// What electd was told last.
        told: Health,
        drains: u32,
        /// The shell obeys [`Output::Drain`] at once.
        drain_at_once: bool,
    }

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    fn at(ms: u64) -> BootTime {
        BootTime(0) + Duration::from_millis(ms)
    }

    fn params(servers: &[&str], lease_ms: u64) -> Params {
        Params {
            servers: servers.iter().map(|server| name(server)).collect(),
            interfaces: vec!["eth0".into()],
            heartbeat: Duration::from_millis(100),
            lease: Duration::from_millis(lease_ms),
        }
    }

    impl Doctor {
        /// At 10 s, with an hbd that spoke at that moment.
        fn listening() -> Self {
            let mut doctor = Self::deaf();
            doctor.ack("gamma");
            doctor
        }

        fn deaf() -> Self {
            let now = at(10_000);
            let core = Detector::new(params(&["beta", "gamma"], LEASE), now);
            Self {
                core,
                now,
                told: Health::default(),
                drains: 0,
                drain_at_once: true,
            }
        }

        fn input(&mut self, input: Input) -> &mut Self {
            self.core.handle(self.now, input);
            self.outputs();
            self
        }

        fn outputs(&mut self) {
            while let Some(output) = self.core.poll_output() {
                match output {
                    Output::Health(health) => self.told = health,
                    Output::Drain => {
                        self.drains += 1;
                        if self.drain_at_once {
                            self.core.handle(self.now, Input::Drained);
                        }
                    }
                }
            }
        }

        fn beat(&mut self, from: &str) -> &mut Self {
            let (at, lease) = (self.now, Duration::from_millis(LEASE));
            self.input(Input::Beat {
                from: name(from),
                at,
                lease,
            })
        }

        fn beat_at(&mut self, from: &str, ms: u64, lease_ms: u64) -> &mut Self {
            let lease = Duration::from_millis(lease_ms);
            self.input(Input::Beat {
                from: name(from),
                at: at(ms),
                lease,
            })
        }

        fn ack(&mut self, from: &str) -> &mut Self {
            self.input(Input::Ack {
                from: name(from),
                at: self.now,
            })
        }

        /// Lets time pass as a shell on time would: every time-out is handled when it is due.
        fn until(&mut self, ms: u64) -> &mut Self {
            while let Some(due) = self.core.poll_timeout().filter(|due| *due <= at(ms)) {
                self.now = self.now.max(due);
                self.core.handle_timeout(self.now);
                self.outputs();
                if !self.drain_at_once && self.core.poll_timeout() == Some(due) {
                    break;
                }
            }
            self.now = at(ms);
            self
        }

        /// Time passes and nobody is there to notice.
        fn stall_until(&mut self, ms: u64) -> &mut Self {
            self.now = at(ms);
            self
        }

        fn wake(&mut self) -> &mut Self {
            self.core.handle_timeout(self.now);
            self.outputs();
            self
        }

        /// What electd believes.
        fn state(&self, server: &str) -> HealthState {
            self.told
                .servers
                .iter()
                .find(|known| known.server == name(server))
                .unwrap()
                .state
        }
    }

    #[test]
    fn silence_makes_alive_suspect_and_dead_after_exactly_the_lease() {
        let table = [
            (10_000, Alive),
            (10_200, Alive),
            (10_201, Suspect),
            (10_499, Suspect),
            (10_500, Dead),
            (60_000, Dead),
        ];
        let mut doctor = Doctor::listening();
        doctor.beat("beta");
        for (ms, state) in table {
            assert_eq!(doctor.until(ms).state("beta"), state, "at {ms} ms");
        }
    }

    #[test]
    fn the_verdict_comes_to_the_nanosecond() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(10_450);
        let due = doctor.core.poll_timeout().unwrap();
        assert_eq!(due, at(10_500));
        doctor.core.handle_timeout(due - INSTANT);
        doctor.outputs();
        assert_eq!((doctor.state("beta"), doctor.drains), (Suspect, 0));
    }

    #[test]
    fn a_dead_server_is_alive_again_with_its_first_beat() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(11_000);
        assert_eq!(doctor.state("beta"), Dead);
        assert_eq!(doctor.beat("beta").state("beta"), Alive);
    }

    #[test]
    fn silence_counts_from_the_kernels_time_of_arrival() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(10_150);
        doctor.beat_at("beta", 10_100, LEASE);
        assert_eq!(doctor.until(10_599).state("beta"), Suspect);
        assert_eq!(doctor.until(10_600).state("beta"), Dead);
    }

    #[test]
    fn the_first_beat_begins_the_watch_when_it_arrived() {
        let mut doctor = Doctor::deaf();
        doctor.until(10_050).beat_at("beta", 10_020, LEASE);
        assert_eq!(doctor.until(10_221).state("beta"), Suspect);
        assert_eq!(
            (doctor.until(10_520).state("beta"), doctor.state("gamma")),
            (Dead, Dead)
        );
    }

    #[test]
    fn an_older_beat_over_a_slower_path_changes_nothing() {
        let mut doctor = Doctor::listening();
        doctor.until(10_100).beat("beta");
        doctor.beat_at("beta", 10_050, 10_000);
        assert_eq!(doctor.told.servers[0].last_heard, Some(at(10_100)));
        assert_eq!(doctor.until(10_600).state("beta"), Dead);
    }

    #[test]
    fn never_heard_is_unknown_for_a_lease_and_then_dead() {
        let mut doctor = Doctor::listening();
        assert_eq!(doctor.until(10_499).state("beta"), Unknown);
        assert_eq!(doctor.until(10_500).state("beta"), Dead);
    }

    #[test]
    fn without_hbd_nobody_is_ever_accused() {
        let mut doctor = Doctor::deaf();
        assert_eq!(doctor.until(60_000).state("beta"), Unknown);
        assert_eq!(doctor.drains, 0);
    }

    #[test]
    fn when_hbd_goes_what_was_heard_stays_true_and_all_else_is_unknown() {
        let mut doctor = Doctor::listening();
        doctor.until(11_000).beat("beta");
        assert_eq!(doctor.state("gamma"), Dead);
        doctor.input(Input::HbdGone);
        assert_eq!(
            (doctor.state("beta"), doctor.state("gamma")),
            (Alive, Unknown)
        );
        assert_eq!(doctor.until(11_200).state("beta"), Alive);
        assert_eq!(doctor.until(11_201).state("beta"), Unknown);
        assert_eq!(doctor.until(60_000).state("beta"), Unknown);
    }

    #[test]
    fn a_suspect_is_not_called_dead_when_hbd_was_away_for_a_moment() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(10_400);
        doctor.input(Input::HbdGone);
        doctor.until(10_405).ack("gamma");
        // The silence began before the gap: only what was listened to counts.
        assert_eq!(doctor.until(10_904).state("beta"), Unknown);
        assert_eq!(doctor.until(10_905).state("beta"), Dead);
    }

    #[test]
    fn a_short_restart_of_hbd_goes_unnoticed_by_a_server_that_beats() {
        let mut doctor = Doctor::listening();
        for ms in (10_000..12_000).step_by(100) {
            doctor.until(ms).beat("beta");
            if ms == 11_000 {
                doctor.until(11_020).input(Input::HbdGone);
                doctor.until(11_025).input(Input::HbdListens);
            }
            assert_eq!(doctor.state("beta"), Alive, "at {ms} ms");
        }
    }

    #[test]
    fn an_hbd_that_says_it_listens_is_enough_to_call_the_never_heard_dead() {
        let mut doctor = Doctor::deaf();
        for ms in (10_000..=10_500).step_by(100) {
            doctor.until(ms).input(Input::HbdListens);
        }
        assert_eq!(doctor.state("beta"), Dead);
    }

    #[test]
    fn an_hbd_that_stops_saying_so_is_deaf_though_its_link_stands() {
        let mut doctor = Doctor::listening();
        doctor.input(Input::HbdListens).beat("beta");
        assert_eq!(doctor.until(60_000).state("beta"), Unknown);
        // It runs again: a full lease from here.
        for ms in (60_000..60_500).step_by(100) {
            assert_eq!(doctor.until(ms).state("beta"), Unknown, "at {ms} ms");
            doctor.input(Input::HbdListens);
        }
        doctor.until(60_500);
        assert_eq!(doctor.state("beta"), Dead);
    }

    #[test]
    fn an_hbd_that_was_deaf_once_is_watched_again_from_its_first_word_on() {
        let mut doctor = Doctor::listening();
        doctor.input(Input::HbdListens).beat("beta");
        doctor.until(11_000).beat("beta").beat("gamma");
        // Stopped again, and heard of again when a lease has passed: nobody had listened meanwhile.
        doctor.until(11_600).beat("beta");
        assert_eq!(doctor.state("gamma"), Unknown);
    }

    #[test]
    fn a_stalled_doctor_accuses_nobody_until_it_has_listened_a_lease() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").beat("gamma").stall_until(12_000).wake();
        assert_eq!(
            (doctor.state("beta"), doctor.state("gamma")),
            (Unknown, Unknown)
        );
        assert_eq!(doctor.core.stalls(), 1);
        doctor.until(12_050).beat("gamma");
        assert_eq!(doctor.until(12_499).state("beta"), Unknown);
        assert_eq!(
            (doctor.until(12_500).state("beta"), doctor.state("gamma")),
            (Dead, Suspect)
        );
        assert_eq!(doctor.until(12_550).state("gamma"), Dead);
    }

    #[test]
    fn a_stall_is_noticed_whatever_comes_first_after_it() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").beat("gamma").stall_until(10_700);
        // The socket is read before the timer is looked at.
        doctor.beat_at("gamma", 10_690, LEASE).wake();
        assert_eq!(
            (doctor.state("beta"), doctor.state("gamma")),
            (Unknown, Alive)
        );
        assert_eq!(doctor.core.stalls(), 1);
    }

    #[test]
    fn being_late_by_less_than_a_quarter_of_the_lease_is_no_stall() {
        // The tick is due at 10.1 s.
        for (ms, stalls) in [(10_225, 0), (10_226, 1)] {
            let mut doctor = Doctor::listening();
            doctor.wake().beat("beta").stall_until(ms).wake();
            assert_eq!(doctor.core.stalls(), stalls, "woken at {ms} ms");
        }
    }

    #[test]
    fn a_beat_that_waited_long_in_a_queue_tells_of_a_stall_elsewhere() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(10_450);
        // hbd was stopped and begins to hand on what it has: beta's beats may be among the rest.
        doctor.beat_at("gamma", 10_300, LEASE);
        assert_eq!(doctor.until(10_949).state("beta"), Unknown);
        assert_eq!(doctor.until(10_950).state("beta"), Dead);
    }

    #[test]
    fn sockets_are_drained_before_anybody_is_called_dead() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").beat("gamma");
        doctor.drain_at_once = false;
        doctor.until(10_500);
        assert_eq!((doctor.drains, doctor.state("beta")), (1, Suspect));
        // Asked once, not at every look.
        doctor.wake().wake();
        assert_eq!((doctor.drains, doctor.state("beta")), (1, Suspect));
        // One of the two had a beat waiting.
        doctor.beat_at("beta", 10_490, LEASE);
        doctor.input(Input::Drained);
        assert_eq!((doctor.state("beta"), doctor.state("gamma")), (Alive, Dead));
    }

    #[test]
    fn drained_without_having_been_asked_accuses_nobody() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(10_499);
        doctor.drain_at_once = false;
        doctor.stall_until(10_500);
        doctor.input(Input::Drained);
        assert_eq!((doctor.state("beta"), doctor.drains), (Suspect, 1));
    }

    #[test]
    fn the_lease_is_the_one_in_the_servers_own_beats() {
        let mut doctor = Doctor::listening();
        doctor.beat_at("beta", 10_000, 3_000).beat("gamma");
        assert_eq!(
            (doctor.until(12_999).state("beta"), doctor.state("gamma")),
            (Suspect, Dead)
        );
        assert_eq!(doctor.until(13_000).state("beta"), Dead);
        doctor.beat_at("beta", 13_000, 1_000);
        assert_eq!(doctor.until(13_999).state("beta"), Suspect);
        assert_eq!(doctor.until(14_000).state("beta"), Dead);
    }

    #[test]
    fn a_wild_lease_is_taken_for_the_nearest_allowed() {
        let mut doctor = Doctor::listening();
        doctor
            .beat_at("beta", 10_000, 0)
            .beat_at("gamma", 10_000, u64::MAX);
        assert_eq!(doctor.until(10_200).state("beta"), Alive);
        assert_eq!(doctor.until(10_201).state("beta"), Dead);
        assert_eq!(doctor.until(19_999).state("gamma"), Suspect);
        assert_eq!(doctor.until(20_000).state("gamma"), Dead);
        assert!(
            doctor.core.poll_timeout().unwrap() > at(20_000),
            "no busy loop"
        );
    }

    #[test]
    fn an_acknowledgement_is_no_sign_of_life() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(10_450);
        doctor.input(Input::Ack {
            from: name("beta"),
            at: at(10_450),
        });
        assert_eq!(doctor.until(10_500).state("beta"), Dead);
    }

    #[test]
    fn a_stranger_is_ignored() {
        let mut doctor = Doctor::listening();
        doctor.beat("mallory");
        assert_eq!(doctor.told.servers.len(), 2);
    }

    #[test]
    fn electd_is_told_at_once_when_a_link_changes_or_it_connects_and_with_every_heartbeat() {
        let mut doctor = Doctor::listening();
        doctor.until(10_001);
        assert_eq!(
            doctor.told.links,
            [],
            "a link never looked at is not called down"
        );
        doctor.input(Input::Link {
            interface: "eth0".into(),
            up: false,
        });
        assert_eq!(
            doctor.told.links,
            [LinkHealth {
                interface: "eth0".into(),
                up: false
            }]
        );

        doctor.told = Health::default();
        doctor.input(Input::Link {
            interface: "eth0".into(),
            up: false,
        });
        doctor.input(Input::Link {
            interface: "eth1".into(),
            up: true,
        });
        assert_eq!(doctor.told, Health::default(), "no news");
        doctor.input(Input::ElectdUp);
        assert_eq!(doctor.told, doctor.core.health());

        doctor.told = Health::default();
        doctor.until(10_099);
        assert_eq!(doctor.told, Health::default());
        doctor.until(10_101);
        assert_eq!(doctor.told, doctor.core.health());
    }

    #[test]
    fn the_opinion_comes_along_with_what_wakes_electd_anyway() {
        let mut doctor = Doctor::listening();
        doctor.wake();
        let tick = doctor.core.poll_timeout().unwrap();
        assert_eq!(tick, at(10_100));
        for (ms, told) in [
            (10_074, false),
            (10_075, true),
            (10_080, false),
            (10_168, true),
        ] {
            doctor.told = Health::default();
            doctor.until(ms).ack("beta");
            assert_eq!(!doctor.told.servers.is_empty(), told, "at {ms} ms");
        }
        // Never later than a heartbeat after the last.
        assert_eq!(doctor.core.poll_timeout().unwrap(), at(10_268));
        // hbd's own word wakes nobody else.
        doctor.told = Health::default();
        doctor.until(10_260).input(Input::HbdListens);
        assert_eq!(doctor.told, Health::default());
    }

    #[test]
    fn a_new_configuration_keeps_what_is_known() {
        let mut doctor = Doctor::listening();
        doctor.input(Input::Link {
            interface: "eth1".into(),
            up: true,
        });
        doctor.beat("beta").until(10_050);
        let mut changed = params(&["beta", "delta"], 1_000);
        changed.interfaces = vec!["eth1".into()];
        doctor.input(Input::Params(changed));
        assert_eq!(
            (doctor.state("beta"), doctor.state("delta")),
            (Alive, Unknown)
        );
        assert_eq!(doctor.told.servers.len(), 2);
        assert_eq!(
            doctor.told.links,
            [LinkHealth {
                interface: "eth1".into(),
                up: true
            }]
        );
        // delta was never heard and has told no lease: ours holds.
        assert_eq!(doctor.until(10_999).state("delta"), Unknown);
        assert_eq!(doctor.until(11_000).state("delta"), Dead);
    }

    #[test]
    fn extra_calls_change_nothing() {
        let mut doctor = Doctor::listening();
        doctor.beat("beta").until(10_300);
        let before = (doctor.core.health(), doctor.core.poll_timeout());
        doctor.wake().wake();
        assert_eq!((doctor.core.health(), doctor.core.poll_timeout()), before);
    }

    #[test]
    fn the_listening_that_counts_is_told_with_its_begin() {
        let mut doctor = Doctor::deaf();
        assert_eq!(doctor.core.listening_since(), None);
        doctor.until(10_050).beat_at("beta", 10_020, LEASE);
        assert_eq!(doctor.core.listening_since(), Some(at(10_020)));
        doctor.input(Input::HbdGone);
        assert_eq!(doctor.core.listening_since(), None);
    }

    #[test]
    fn an_hbd_is_deaf_when_its_word_is_overdue_and_not_a_moment_before() {
        // Every heartbeat, and a quarter of a lease of patience.
        for (late, state) in [(Duration::ZERO, Dead), (INSTANT, Unknown)] {
            let mut doctor = Doctor::listening();
            doctor.until(10_275).input(Input::HbdListens);
            while doctor
                .core
                .poll_timeout()
                .is_some_and(|due| due < at(10_500))
            {
                let due = doctor.core.poll_timeout().unwrap_or(doctor.now);
                doctor.now = due;
                doctor.wake();
            }
            doctor.now = at(10_500) + late;
            doctor.wake();
            assert_eq!(doctor.state("beta"), state, "{late:?}");
        }
    }
}
