//! What the shells in `bin/*/src/shell.rs` do around the cores, without sockets and files: which output of a core
//! goes into which input, and what a restart loses. listend's is in [`crate::tcp`].

use crate::{
    clock::Time,
    judge::{NO_FLAP, RELEASE_BEFORE_GRANT},
    schedule::{Kind, NAMES, Part},
    world::{Event, Gate, INTERFACE, Job, Wire, World},
};
use detector::{Detector, Input as Seen, Params};
use election::{Elector, Input, Memory, Output, Start, Withheld};
use heartbeat::{
    Heartbeat, Input as Heard, Output as Said, PART_MAX, PeerSettings, Settings, Transmit,
};
use protocol::{
    BootTime, Instance, Number, ServerName, VirtualServerName,
    local::ring::{
        DoctordToElectd, ElectdToHbd, ElectdToListend, HbdToDoctord, HealthState, ListendToElectd,
    },
    wire::{
        datagram::{Incarnation, Packet},
        signal::{Body, PreVerdict, Signal},
    },
};
use std::time::Duration;

pub(crate) const TO_DOCTORD: usize = 0;
pub(crate) const DOCTORD_TO_ELECTD: usize = 1;
pub(crate) const TO_HBD: usize = 2;
pub(crate) const TO_LISTEND: usize = 3;
pub(crate) const LISTEND_TO_ELECTD: usize = 4;

/// A server that is refused again and again stands back ever longer (R15): so often it stands in a lease at most.
const ROUNDS_MAX: usize = 20;

/// What still drains through a gate that is shut for a successor.
const DRAIN: u64 = 1_000_000;

pub(crate) struct Hbd {
    pub core: Heartbeat,
    pub incarnation: Incarnation,
    /// doctord is told again that hbd listens.
    listening_at: BootTime,
    /// Nothing was unread then.
    drained: BootTime,
}

pub(crate) struct Doctord {
    pub core: Detector,
    draining: bool,
    /// Whom it called dead last.
    dead: Vec<ServerName>,
}

/// What comes in the middle of electd's outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interruption {
    pub outputs_left: u64,
    pub kill: bool,
    pub span: u64,
}

pub(crate) struct Electd {
    pub core: Elector,
    /// When it last looked at its clock: what it wants done was decided then.
    handled: BootTime,
    /// What leaves for hbd at the end of the turn.
    queued: Vec<ElectdToHbd>,
    pub interruption: Option<Interruption>,
    /// What could not be written to the run-dir yet.
    pending: Option<Memory>,
    withheld: Withheld,
    /// An operator has wanted something of it, or it was told to end.
    asked: bool,
    /// It has offered its mastership to a server that is preferred.
    preferred: bool,
    /// Told to end; started again so long after it did.
    pub stop: Option<u64>,
    stopped: bool,
    longest: Duration,
    /// Whom its doctor sees alive, by its last word; none without a doctor.
    alive: Option<Vec<ServerName>>,
    /// The last beat of each server: whose, of which run, and which virtual servers it claims.
    claims: Vec<(ServerName, Instance, Number, Vec<VirtualServerName>)>,
    /// When it began to ask for votes, for each virtual server; and the last round.
    rounds: Vec<(VirtualServerName, u64, BootTime)>,
    /// The last call.
    called: Number,
}

impl Electd {
    fn note(&mut self, input: &Input) {
        match input {
            Input::Operator { .. } | Input::Stop => self.asked = true,
            Input::Signal { signal, .. } if matches!(signal.body, Body::HandOver { .. }) => {
                self.asked = true;
            }
            Input::DoctorLost => self.alive = None,
            Input::Health(health) => {
                let alive = health
                    .servers
                    .iter()
                    .filter(|s| s.state == HealthState::Alive);
                let known = self.alive.get_or_insert_default();
                if !alive.clone().map(|s| &s.server).eq(known.iter()) {
                    *known = alive.map(|s| s.server.clone()).collect();
                }
            }
            Input::Beat { from, beat, .. } => {
                let claimed = || beat.standings.iter().filter(|s| s.claim.is_some());
                match self.claims.iter_mut().find(|c| c.0 == *from) {
                    Some(last) if last.1 == beat.instance && last.2 >= beat.number => {}
                    Some((_, instance, number, claims)) => {
                        (*instance, *number) = (beat.instance, beat.number);
                        if !claimed().map(|s| &s.virtual_server).eq(claims.iter()) {
                            *claims = claimed().map(|s| s.virtual_server.clone()).collect();
                        }
                    }
                    None => {
                        let claims = claimed().map(|s| s.virtual_server.clone()).collect();
                        self.claims
                            .push((from.clone(), beat.instance, beat.number, claims));
                    }
                }
            }
            _ => {}
        }
    }

    /// The server last promised to, if the doctor sees it alive and its last beat claims; and which beat that is.
    fn sees_at_work(
        &self,
        memory: &Memory,
        v: &VirtualServerName,
        (me, caller): (&ServerName, &ServerName),
    ) -> Option<(ServerName, Instance, Number)> {
        let vote = memory.votes.iter().find(|x| x.virtual_server == *v)?;
        let holder = vote.holder.as_ref().filter(|h| *h != me && *h != caller)?;
        let last = self
            .claims
            .iter()
            .find(|c| c.0 == *holder && c.3.contains(v))?;
        let alive = self.alive.as_ref().is_some_and(|a| a.contains(holder));
        alive.then(|| (holder.clone(), last.1, last.2))
    }

    /// It is the first time that this call is said.
    fn calls(&mut self, signal: &Signal) -> bool {
        let call = matches!(signal.body, Body::Call { .. });
        call && std::mem::replace(&mut self.called, signal.number) != signal.number
    }

    /// A round of asking for votes begins: too many of them in a lease?
    fn asks(&mut self, v: &VirtualServerName, round: u64, now: BootTime, lease: Duration) -> bool {
        if self
            .rounds
            .last()
            .is_some_and(|r| r.0 == *v && r.1 == round)
            || self.core.term(v).is_some()
        {
            return false;
        }
        self.rounds.retain(|r| now.since(r.2) < lease);
        if !self.rounds.iter().any(|r| r.0 == *v && r.1 == round) {
            self.rounds.push((v.clone(), round, now));
        }
        self.rounds.iter().filter(|r| r.0 == *v).count() > ROUNDS_MAX
    }

    /// The longest lease that it can have used.
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

fn params(settings: &election::Settings) -> Params {
    Params {
        servers: settings
            .servers
            .iter()
            .filter(|s| **s != settings.me)
            .cloned()
            .collect(),
        interfaces: vec![INTERFACE.into()],
        heartbeat: settings.heartbeat,
        lease: settings.lease,
    }
}

/// The number of a birth is in the second half of an incarnation.
fn birth(incarnation: Incarnation) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&incarnation.0[8..]);
    u64::from_be_bytes(bytes)
}

impl World {
    // ---- hbd -----------------------------------------------------------------------------------------

    pub(crate) fn start_hbd(&mut self, i: usize) {
        self.births += 1;
        let mut id: [u8; 16] = self.random.bytes();
        id[8..].copy_from_slice(&self.births.to_be_bytes());
        let server = &self.servers[i];
        let peer = |s: &crate::world::Server| PeerSettings {
            name: s.name.clone(),
            addresses: s.addresses.clone(),
        };
        let settings = Settings {
            me: server.name.clone(),
            addresses: server.addresses.clone(),
            heartbeat: server.settings.heartbeat,
            part_max: if self.schedule.parts == 1 {
                1
            } else {
                PART_MAX
            },
            peers: self
                .servers
                .iter()
                .filter(|s| s.name != server.name)
                .map(peer)
                .collect(),
        };
        let hbd = Hbd {
            core: Heartbeat::new(settings, Self::sealer(), Incarnation(id)),
            incarnation: Incarnation(id),
            listening_at: BootTime(0),
            drained: self.local(i),
        };
        let server = &mut self.servers[i];
        server.hbd = Some(hbd);
        server.heard.iter_mut().for_each(|h| *h = (0, Vec::new()));
    }

    pub(crate) fn hbd_job(&mut self, i: usize, job: Job) {
        let (now, real_now) = (self.local(i), self.servers[i].real_ns(self.now));
        let wall = self.servers[i].wall;
        match job {
            Job::Datagram {
                from,
                path,
                wire,
                real_ns,
                forged,
            } => {
                let path = path.min(self.servers[from].addresses.len() - 1);
                let source = self.servers[from].addresses[path];
                let server = &mut self.servers[i];
                let local = server.addresses[path.min(server.addresses.len() - 1)];
                let Some(hbd) = server.hbd.as_mut() else {
                    return;
                };
                // As the shell reckons when it arrived, with a wall clock that may have been set since.
                let waited = Duration::from_nanos(real_now.saturating_sub(real_ns));
                let at = (now - waited).max(hbd.drained.min(now));
                let raw_ns = Some(real_ns.wrapping_sub(wall));
                let met = match wire {
                    Wire::Packet(version, packet) => {
                        let met = data_of(&packet);
                        hbd.core.handle(
                            now,
                            Heard::Opened {
                                source,
                                local,
                                version,
                                packet,
                                at,
                                real_ns,
                                raw_ns,
                            },
                        );
                        met
                    }
                    Wire::Bytes(bytes) => {
                        hbd.core.handle(
                            now,
                            Heard::Datagram {
                                source,
                                local,
                                bytes: &bytes,
                                at,
                                real_ns,
                                raw_ns,
                            },
                        );
                        None
                    }
                };
                self.carry_out_hbd(i, Some((from, met, forged)));
            }
            Job::ToHbd(messages) => {
                if let Some(hbd) = self.servers[i].hbd.as_mut() {
                    hbd.core.handle(now, Heard::Send(messages));
                }
                self.carry_out_hbd(i, None);
            }
            Job::RingUp(_) => {
                if let Some(hbd) = self.servers[i].hbd.as_mut() {
                    hbd.listening_at = BootTime(0);
                }
                self.carry_out_hbd(i, None);
            }
            _ => {}
        }
    }

    pub(crate) fn hbd_timeout(&mut self, i: usize) {
        self.carry_out_hbd(i, None);
    }

    /// One turn's end. `about`: a packet of this server has just been handled.
    fn carry_out_hbd(&mut self, i: usize, about: Option<(usize, Option<Data>, bool)>) {
        let now = self.local(i);
        let fresh = self.random.bytes();
        let Some(hbd) = self.servers[i].hbd.as_mut() else {
            return;
        };
        if hbd.core.poll_timeout().is_some_and(|due| due <= now) {
            hbd.core.handle(now, Heard::Timeout { fresh });
        }
        let (mut batch, mut met) = (Vec::new(), false);
        while let Some(said) = self.servers[i]
            .hbd
            .as_mut()
            .and_then(|h| h.core.poll_output())
        {
            match said {
                Said::Transmit(transmit) => self.transmit(i, transmit),
                Said::Deliver(message) => {
                    self.times_arrive(i, &message);
                    batch.push(message);
                }
                Said::Met(_) => met = true,
                // Whoever runs again has ended before.
                Said::Doubled { server, .. } => self.not_inert(
                    i,
                    &format!("hbd takes a former run of {server} for a second server"),
                ),
                Said::Refused { .. } => {}
            }
        }
        if let Some((from, data, forged)) = about.filter(|_| met || !batch.is_empty()) {
            self.believed(i, from, data, forged);
        }
        let delivered = !batch.is_empty() && self.ring_send(i, TO_DOCTORD, Job::ToDoctord(batch));
        let up = self.servers[i].rings[TO_DOCTORD].up;
        let heartbeat = self.servers[i].settings.heartbeat;
        let Some(hbd) = self.servers[i].hbd.as_mut() else {
            return;
        };
        hbd.drained = now;
        let mut next = hbd.core.poll_timeout();
        if up {
            let due = delivered || hbd.listening_at <= now;
            if due {
                hbd.listening_at = now + heartbeat;
            }
            next = Some(next.map_or(hbd.listening_at, |t| t.min(hbd.listening_at)));
            if due && !delivered {
                self.ring_send(i, TO_DOCTORD, Job::ToDoctord(vec![HbdToDoctord::Listening]));
            }
        }
        self.rearm(i, Part::Hbd, next);
    }

    fn transmit(&mut self, i: usize, mut transmit: Transmit) {
        let Some(to) = self.index(&transmit.to) else {
            return;
        };
        let (real, raw) = (self.servers[i].real_ns(self.now), self.local(i).0);
        let sealed = self.schedule.sealed == 1;
        let nonce = sealed.then(|| self.random.bytes());
        let Some(hbd) = self.servers[i].hbd.as_mut() else {
            return;
        };
        hbd.core.leaves(&mut transmit, real, raw);
        // Every second server's kernel tells when packets left: at once, here.
        if i.is_multiple_of(2) {
            hbd.core.left(&transmit.to, real, 0);
        }
        let wire = match nonce.map(|nonce| hbd.core.seal(&transmit, nonce)) {
            Some(Ok(bytes)) => Wire::Bytes(bytes),
            Some(Err(_)) => return,
            None => Wire::Packet(transmit.version, transmit.packet),
        };
        for path in transmit.paths.iter().skip(1) {
            self.datagram(i, to, usize::from(path.number), wire.clone(), false);
        }
        if let Some(path) = transmit.paths.first() {
            self.datagram(i, to, usize::from(path.number), wire, false);
        }
    }

    /// hbd believed a packet, or the run that answered: was it new, of the present run of both sides, and real?
    fn believed(&mut self, i: usize, from: usize, data: Option<Data>, forged: bool) {
        if forged {
            return self.not_inert(
                i,
                &format!("hbd believed a forged packet of {}", NAMES[from]),
            );
        }
        let Some(data) = data else { return };
        let server = &mut self.servers[i];
        let me = server.hbd.as_ref().map(|h| h.incarnation);
        let (newest, seen) = &mut server.heard[from];
        let born = birth(data.from);
        if born > *newest {
            (*newest, *seen) = (born, Vec::new());
        }
        // An answer has no number: that of a run already taken changes nothing.
        let sequence = data.sequence.unwrap_or_default();
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if seen.len() <= word {
            seen.resize(word + 1, 0);
        }
        let what = if me != Some(data.to) {
            "hbd believed a packet to its former run"
        } else if born < *newest {
            "hbd believed a packet of a former run"
        } else if data.sequence.is_some() && seen[word] & bit != 0 {
            "hbd believed a packet twice"
        } else {
            seen[word] |= bit;
            return;
        };
        self.not_inert(i, &format!("{what}, of {}", NAMES[from]));
    }

    // ---- doctord -------------------------------------------------------------------------------------

    pub(crate) fn start_doctord(&mut self, i: usize) {
        let now = self.now;
        let server = &mut self.servers[i];
        let params = params(&server.settings);
        let mut core = Detector::new(params, server.local(now));
        let up = server.no_carrier == 0;
        core.handle(
            server.local(now),
            Seen::Link {
                interface: INTERFACE.into(),
                up,
            },
        );
        server.doctord = Some(Doctord {
            core,
            draining: false,
            dead: Vec::new(),
        });
    }

    pub(crate) fn doctord_job(&mut self, i: usize, job: Job) {
        let now = self.local(i);
        let up = self.servers[i].no_carrier == 0;
        let reload = matches!(job, Job::Reload).then(|| params(&self.servers[i].settings));
        let Some(doctord) = self.servers[i].doctord.as_mut() else {
            return;
        };
        let mut batch = Vec::new();
        let mut heard = false;
        match job {
            Job::ToDoctord(messages) => {
                heard = true;
                for message in messages {
                    let input = match message {
                        HbdToDoctord::Beat { arrival, beat } => {
                            let (from, at, lease) = (arrival.from.clone(), arrival.at, beat.lease);
                            batch.push(DoctordToElectd::Beat {
                                from: arrival.from,
                                at,
                                beat,
                            });
                            Seen::Beat { from, at, lease }
                        }
                        HbdToDoctord::Ack { arrival, ack } => {
                            let (from, at) = (arrival.from.clone(), arrival.at);
                            batch.push(DoctordToElectd::Ack {
                                from: arrival.from,
                                at,
                                ack,
                            });
                            Seen::Ack { from, at }
                        }
                        HbdToDoctord::Listening => Seen::HbdListens,
                    };
                    doctord.core.handle(now, input);
                }
            }
            Job::RingUp(_) => doctord.core.handle(now, Seen::ElectdUp),
            Job::PeerGone(_) => doctord.core.handle(now, Seen::HbdGone),
            Job::Reload => reload
                .into_iter()
                .for_each(|p| doctord.core.handle(now, Seen::Params(p))),
            Job::Carrier => doctord.core.handle(
                now,
                Seen::Link {
                    interface: INTERFACE.into(),
                    up,
                },
            ),
            _ => {}
        }
        self.doctord_turn(i, heard, batch);
    }

    pub(crate) fn doctord_timeout(&mut self, i: usize) {
        self.doctord_turn(i, false, Vec::new());
    }

    fn doctord_turn(&mut self, i: usize, heard: bool, mut batch: Vec<DoctordToElectd>) {
        let now = self.local(i);
        // Whatever waits is read first, hbd's end too.
        let waits = !self.servers[i].processes[Part::Doctord as usize]
            .inbox
            .is_empty();
        let Some(doctord) = self.servers[i].doctord.as_mut() else {
            return;
        };
        if doctord.draining && !heard && !waits {
            doctord.draining = false;
            doctord.core.handle(now, Seen::Drained);
        }
        doctord.core.handle_timeout(now);
        let mut accused = Vec::new();
        while let Some(output) = doctord.core.poll_output() {
            match output {
                detector::Output::Drain => doctord.draining = true,
                detector::Output::Health(health) => {
                    let dead = || {
                        health
                            .servers
                            .iter()
                            .filter(|s| s.state == HealthState::Dead)
                    };
                    if dead().count() != doctord.dead.len()
                        || dead().any(|s| !doctord.dead.contains(&s.server))
                    {
                        accused.extend(
                            dead()
                                .map(|s| s.server.clone())
                                .filter(|s| !doctord.dead.contains(s)),
                        );
                        doctord.dead = dead().map(|s| s.server.clone()).collect();
                    }
                    batch.push(DoctordToElectd::Health(health));
                }
            }
        }
        let (draining, next) = (doctord.draining, doctord.core.poll_timeout());
        for server in accused {
            self.note(|| format!("{} calls {server} dead", NAMES[i]));
            self.accuses(i, &server, self.shortest);
        }
        if !batch.is_empty() {
            self.ring_send(i, DOCTORD_TO_ELECTD, Job::ToElectd(batch));
        }
        if draining {
            let epoch = Some(self.servers[i].processes[Part::Doctord as usize].epoch);
            let event = Event::Job {
                server: i,
                part: Part::Doctord,
                epoch,
                job: Job::Turn,
            };
            self.queue.push(self.now + 1000, event);
        } else {
            self.rearm(i, Part::Doctord, next);
        }
    }

    // ---- electd --------------------------------------------------------------------------------------

    pub(crate) fn start_electd(&mut self, i: usize) {
        let instance = Instance(self.random.bits());
        let seed = self.random.bits();
        let local = self.local(i);
        let server = &mut self.servers[i];
        for gate in &mut server.gates {
            gate.take_if(|g| local > g.deadline);
        }
        let gates = || {
            let all = self.virtuals.iter().zip(&server.gates);
            all.filter_map(|(v, g)| Some((v.clone(), g.as_ref()?.deadline)))
        };
        let open: Vec<VirtualServerName> = gates().map(|(v, _)| v).collect();
        let start = Start {
            instance,
            seed,
            reservation: server.disk.clone(),
            memory: server.memory.clone(),
            gates: gates().collect(),
        };
        let silent = server.memory.is_none();
        // A blank one learns at least the lease that it has then.
        let leases = self.schedule.acts.iter();
        let leases = leases
            .filter(|a| matches!(a.kind, Kind::Lease | Kind::OneLease))
            .map(|a| a.n);
        let least = Duration::from_micros(leases.fold(self.schedule.lease, u64::min));
        let longest = server.disk.as_ref().map_or(least, |r| r.promise_max);
        self.judge.killed(i, &open); // gates may have closed since
        self.judge.started(i, silent.then(|| local + longest));
        match &server.disk {
            Some(disk) => {
                self.judge.stores(i, disk);
                self.judge.counts_by(i, disk.roster.version);
            }
            None => self.judge.blank(i),
        }
        server.electd = Some(Electd {
            core: Elector::new(server.settings.clone(), start, local),
            handled: local,
            queued: Vec::new(),
            interruption: None,
            pending: None,
            withheld: Withheld::default(),
            asked: false,
            preferred: false,
            stop: None,
            stopped: false,
            longest: longest.max(server.settings.lease),
            alive: None,
            claims: Vec::new(),
            rounds: Vec::new(),
            called: Number(0),
        });
        self.note(|| {
            let memory = if silent {
                "remembers nothing"
            } else {
                "remembers"
            };
            format!("{} electd starts, {memory}", NAMES[i])
        });
        self.carry_out(i);
        self.what_if(i);
    }

    pub(crate) fn electd_killed(&mut self, i: usize) {
        let landed = self.random.percent(50);
        let now = self.now;
        let server = &mut self.servers[i];
        server.electd = None;
        if let Some(reservation) = server
            .writing
            .take()
            .filter(|_| landed && server.bad_disk == 0)
        {
            self.disk_holds(i, Some(reservation));
        }
        let server = &mut self.servers[i];
        for gate in server.gates.iter_mut().flatten() {
            gate.shutting = false;
        }
        let open: Vec<_> = (0..self.virtuals.len())
            .filter(|v| self.servers[i].gate_open(*v, now))
            .collect();
        let open: Vec<_> = open.into_iter().map(|v| self.virtuals[v].clone()).collect();
        self.judge.killed(i, &open);
    }

    pub(crate) fn electd_job(&mut self, i: usize, job: Job) {
        match job {
            Job::ToElectd(messages) => {
                for message in messages {
                    let input = match message {
                        DoctordToElectd::Beat { from, at, beat } => Input::Beat { from, at, beat },
                        DoctordToElectd::Ack { from, ack, .. } => Input::Ack { from, ack },
                        DoctordToElectd::Health(health) => Input::Health(health),
                    };
                    self.tell(i, input);
                }
            }
            Job::Signalled(ListendToElectd::Signal { from, signal }) => {
                self.signalled(i, from, signal)
            }
            Job::Signalled(ListendToElectd::Link { server, up: true }) => {
                self.tell(i, Input::Linked(server))
            }
            Job::Signalled(ListendToElectd::Link { up: false, .. }) => {}
            Job::RingUp(Part::Listend) => {
                for name in self.servers[i].settings.servers.clone() {
                    self.tell(i, Input::Linked(name));
                }
            }
            Job::PeerGone(Part::Doctord) => self.tell(i, Input::DoctorLost),
            Job::Electd(input) => {
                if let Input::Settings(settings) = &*input
                    && let Some(electd) = self.servers[i].electd.as_mut()
                {
                    electd.longest = electd.longest.max(settings.lease);
                }
                let failed = matches!(*input, Input::ReserveFailed(_));
                self.tell(i, *input);
                if failed {
                    self.carry_out(i);
                    return self.what_if(i);
                }
            }
            Job::Written(reservation) => {
                self.judge.stores(i, &reservation);
                self.judge.counts_by(i, reservation.roster.version);
                self.tell(i, Input::Reserved(reservation));
            }
            Job::GateReadsShut(v) => {
                self.note(|| format!("{} gate {v} reads back shut", NAMES[i]));
                let v = self.virtuals[v].clone();
                self.tell(i, Input::GateShut(v));
            }
            _ => {}
        }
        self.carry_out(i);
    }

    fn signalled(&mut self, i: usize, from: ServerName, signal: Signal) {
        self.judge.signal_arrives(&from, i, &signal);
        self.note(|| format!("{} <- {from} {}", NAMES[i], told(&signal)));
        if self.record {
            self.signals.push_back((from.clone(), signal.clone()));
            if self.signals.len() > 24 {
                self.signals.pop_front();
            }
        }
        self.tell(
            i,
            Input::Signal {
                from: from.clone(),
                signal: signal.clone(),
            },
        );
        self.what_if_released(i, &from, &signal);
    }

    fn tell(&mut self, i: usize, input: Input) {
        let local = self.local(i);
        if let Some(electd) = self.servers[i].electd.as_mut() {
            electd.note(&input);
            electd.handled = local;
            electd.core.handle(local, input);
        }
    }

    pub(crate) fn electd_timeout(&mut self, i: usize) {
        let local = self.local(i);
        let Some(electd) = self.servers[i].electd.as_mut() else {
            return;
        };
        if electd.core.poll_timeout().is_some_and(|t| t <= local) {
            electd.handled = local;
            electd.core.handle_timeout(local);
            if electd.core.poll_timeout().is_some_and(|t| t <= local) {
                let what = format!(
                    "electd of {} asks for a time-out in the past: it would spin",
                    NAMES[i]
                );
                self.judge.fail(NO_FLAP, what);
            }
        }
        self.carry_out(i);
    }

    /// The outputs, one after another; a stall or a death may come in between.
    pub(crate) fn carry_out(&mut self, i: usize) {
        if self.servers[i].processes[Part::Electd as usize].stalled_until > self.now {
            return;
        }
        let mut remembered = self.remember(i, None);
        while let Some((electd, output)) = self.servers[i].electd.as_mut().and_then(|e| {
            let output = (e.withheld.next(remembered)).or_else(|| e.core.poll_output());
            output.map(|output| (e, output))
        }) {
            if let (false, Output::Signal { signal, .. }) = (remembered, &output) {
                self.judge.decides(i, electd.handled, signal);
            }
            match electd.withheld.pass(output, remembered) {
                Some(Output::Remember(memory)) => remembered = self.remember(i, Some(memory)),
                Some(output) => self.output(i, output),
                None => {}
            }
            let Some(electd) = self.servers[i].electd.as_mut() else {
                return;
            };
            if let Some(come) = &mut electd.interruption {
                if come.outputs_left > 0 {
                    come.outputs_left -= 1;
                    continue;
                }
                let come = *come;
                electd.interruption = None;
                return self.interrupted(i, come);
            }
        }
        self.check();
        let Some(electd) = self.servers[i].electd.as_mut() else {
            return;
        };
        if electd.stopped {
            let after = electd.stop.unwrap_or(0);
            self.note(|| format!("{} electd has stopped", NAMES[i]));
            self.kill(i, Part::Electd);
            let event = Event::Start {
                server: i,
                part: Part::Electd,
            };
            return self.queue.push(self.now + after, event);
        }
        let queued = std::mem::take(&mut electd.queued);
        let next = electd.core.poll_timeout();
        if !queued.is_empty() {
            self.ring_send(i, TO_HBD, Job::ToHbd(queued));
        }
        self.rearm(i, Part::Electd, next);
    }

    fn interrupted(&mut self, i: usize, come: Interruption) {
        if come.kill {
            self.note(|| format!("{} electd is killed in the middle of a turn", NAMES[i]));
            self.kill(i, Part::Electd);
            let event = Event::Start {
                server: i,
                part: Part::Electd,
            };
            self.queue.push(self.now + come.span, event);
        } else {
            self.note(|| format!("{} electd stands still in the middle of a turn", NAMES[i]));
            self.stall(i, Part::Electd, come.span);
        }
    }

    fn output(&mut self, i: usize, output: Output) {
        let (now, local) = (self.now, self.local(i));
        let Some(electd) = self.servers[i].electd.as_mut() else {
            return;
        };
        let handled = electd.handled;
        match output {
            Output::Remember(_) => {}
            Output::Beat(beat) => {
                self.judge.beats(now, i, handled, &beat);
                electd.queued.push(ElectdToHbd::Beat { made: local, beat });
            }
            Output::Ack { to, ack } => {
                self.judge.acks(now, i, handled, &to, &ack);
                electd.queued.push(ElectdToHbd::Ack {
                    made: local,
                    to,
                    ack,
                });
            }
            Output::Signal { to, signal } => self.say(i, handled, to, signal),
            Output::Open(v, until) => self.open(i, &v, until),
            Output::Shut(v) => self.shut(i, &v, 0),
            Output::HandOver(v, _) => self.shut(i, &v, DRAIN),
            Output::Succeeded(v) => {
                let open = self
                    .place(&v)
                    .is_some_and(|v| self.servers[i].answers(v, now));
                // A gate that a stopped clock keeps open is a known limit.
                let excused = self.local(i) <= self.servers[i].excused;
                if open && !excused && self.schedule.none == 0 {
                    let what =
                        format!("{} is told of a successor while its gate is open", NAMES[i]);
                    self.judge.fail(RELEASE_BEFORE_GRANT, what);
                }
            }
            Output::Probe(v) => {
                let answered = self.place(&v).is_some_and(|v| {
                    (0..self.servers.len()).any(|j| {
                        j != i
                            && self.cuts[i][j] + self.cuts[j][i] == 0
                            && self.servers[j].answers(v, now)
                    })
                });
                self.later(
                    i,
                    60_000_000,
                    Job::Electd(Box::new(Input::Probed(v, answered))),
                );
            }
            Output::Reserve(reservation) => self.reserve(i, reservation),
            Output::Role(change) => {
                self.note(|| {
                    let what = match (change.master, change.renewed) {
                        (true, false) => "MASTER",
                        (true, true) => "MASTER still",
                        (false, _) => "SLAVE",
                    };
                    let (v, term, why) = (&change.virtual_server, change.term, &change.reason);
                    format!("{} {what} of {v} in term {term}: {why}", NAMES[i])
                });
                self.judge.role(i, &change);
                if change.master {
                    self.judge.count("masters");
                    if let Some(electd) = &self.servers[i].electd {
                        let voters = &electd.core.counted_roster().voters;
                        let v = &change.virtual_server;
                        self.judge.elected(i, v, change.term, voters);
                    }
                    if let Some(what) = self.owned.master(now, i, change.renewed) {
                        self.judge.fail(what.invariant, what.what);
                    }
                }
            }
            Output::Alarm(text) | Output::Notice(text) => {
                self.note(|| format!("{} says: {text}", NAMES[i]))
            }
            Output::Answer { id, answer } => {
                self.note(|| format!("{} answers {answer:?}", NAMES[i]));
                if let Err(why) = answer
                    && let Some(what) = self.owned.refused(now, id, &why)
                {
                    self.judge.fail(what.invariant, what.what);
                }
            }
            Output::Announce(_) | Output::Clients(..) | Output::Changed(..) => {}
            Output::Stopped(last) => {
                if let Some(last) = last.filter(|_| self.servers[i].bad_disk == 0) {
                    let rate = self.servers[i].rate;
                    self.judge.writes(i, now, local, rate, &last);
                    self.disk_holds(i, Some(last));
                }
                let server = &mut self.servers[i];
                server.writing = None;
                if let Some(electd) = server.electd.as_mut() {
                    electd.stopped = true;
                }
            }
        }
    }

    /// Writes this, or what could not be written before, to the run-dir; false if nothing that relies on it may leave.
    fn remember(&mut self, i: usize, memory: Option<Memory>) -> bool {
        let server = &mut self.servers[i];
        let Some(electd) = server.electd.as_mut() else {
            return false;
        };
        if memory.is_some() {
            electd.pending = memory;
        }
        if server.bad_memory > 0 {
            return electd.pending.is_none();
        }
        if let Some(memory) = electd.pending.take() {
            self.judge.remembers(i, &memory);
            server.memory = Some(memory);
        }
        true
    }

    fn say(&mut self, i: usize, handled: BootTime, to: ServerName, signal: Signal) {
        if let Body::Release { .. } = signal.body
            && let Some(v) = self.place(&signal.virtual_server)
            && self.servers[i].gate_open(v, self.now)
        {
            let what = format!(
                "{} releases {} with its gate open",
                NAMES[i], signal.virtual_server
            );
            self.judge.fail(RELEASE_BEFORE_GRANT, what);
        }
        self.note(|| format!("{} -> {to} {}", NAMES[i], told(&signal)));
        self.is_considerate(i, handled, &to, &signal);
        if let Body::Call { term, .. } = signal.body
            && let Some(what) = self.owned.calls(self.now, i, term)
        {
            self.judge.fail(what.invariant, what.what);
        }
        self.judge.says(self.now, i, handled, &to, &signal);
        let again = self.servers[i]
            .electd
            .as_mut()
            .is_some_and(|e| e.calls(&signal));
        if again {
            self.what_if_answered(i, &signal);
        }
        self.ring_send(
            i,
            TO_LISTEND,
            Job::ToListend(ElectdToListend { to, signal }),
        );
    }

    /// R12 and R15: who would vote minds what its doctor sees; who is refused stands back.
    fn is_considerate(&mut self, i: usize, handled: BootTime, to: &ServerName, signal: &Signal) {
        let (now, server) = (self.now, &mut self.servers[i]);
        let open = (0..self.virtuals.len()).any(|v| server.gate_open(v, now));
        // It stands back for some heartbeats at most, however long the lease.
        let longest = server.settings.heartbeat * 10;
        let Some(electd) = server.electd.as_mut() else {
            return;
        };
        let v = &signal.virtual_server;
        match &signal.body {
            Body::PreAnswer {
                verdict: PreVerdict::Yes,
                ..
            } => {
                let memory = server.memory.as_ref();
                let seen = memory.and_then(|m| electd.sees_at_work(m, v, (&server.name, to)));
                if let Some((holder, instance, number)) = seen
                    && !self.judge.is_released(i, v, &holder, (instance, number))
                {
                    let what = format!(
                        "{} would vote for {to} while its doctor sees {holder} at work",
                        NAMES[i]
                    );
                    self.judge.fail(NO_FLAP, what);
                }
            }
            // R27: no schedule is as long as the time between two of them.
            Body::ReadyQuery if !electd.asked && std::mem::replace(&mut electd.preferred, true) => {
                let what = format!("{} prefers another server again, {to}", NAMES[i]);
                self.judge.fail(NO_FLAP, what);
            }
            Body::PreCall { round, lease, .. }
                if !open && electd.asks(v, *round, handled, (*lease).min(longest)) =>
            {
                let what = format!(
                    "{} stands more than {ROUNDS_MAX} times in a lease",
                    NAMES[i]
                );
                self.judge.fail(NO_FLAP, what);
            }
            _ => {}
        }
    }

    fn open(&mut self, i: usize, v: &VirtualServerName, until: BootTime) {
        let (now, local) = (self.now, self.local(i));
        let Some(place) = self.place(v) else { return };
        let server = &mut self.servers[i];
        let gate = server.gates[place].get_or_insert(Gate {
            deadline: until,
            shutting: false,
        });
        let (shutting, was) = (gate.shutting, gate.deadline);
        gate.deadline = gate.deadline.max(until);
        if shutting {
            let what = format!("{} opens the gate of {v} while it is being shut", NAMES[i]);
            self.judge.fail(RELEASE_BEFORE_GRANT, what);
        }
        if local > until {
            return;
        }
        if was == until || was < local {
            self.note(|| {
                format!(
                    "{} gate of {v} OPEN for {:.3} ms",
                    NAMES[i],
                    until.since(local).as_secs_f64() * 1e3
                )
            });
        }
        let server = &self.servers[i];
        if until > server.excused
            && let Some(electd) = &server.electd
            && let Some(term) = electd.core.term(v)
        {
            let clocks: [_; NAMES.len()] =
                std::array::from_fn(|k| self.servers.get(k).map_or(server.clock, |s| s.clock));
            let closes = server.clock.true_time(until);
            self.judge
                .opens(i, v, term, &electd.core.counted_roster().voters);
            self.judge.outlasts(now, i, v, closes, &clocks);
        }
        self.look();
    }

    fn shut(&mut self, i: usize, v: &VirtualServerName, more: u64) {
        let Some(place) = self.place(v) else { return };
        let (low, high) = self.schedule.gate;
        if let Some(gate) = &mut self.servers[i].gates[place] {
            gate.shutting = true;
        }
        let after = self.random.between(low, high) * 1000 + more;
        let epoch = self.servers[i].processes[Part::Electd as usize].epoch;
        self.queue.push(
            self.now + after,
            Event::GateShut {
                server: i,
                v: place,
                epoch,
            },
        );
    }

    /// The takeover thread has shut the gate, and tells electd.
    pub(crate) fn gate_shut(&mut self, i: usize, v: usize, epoch: u32) {
        let process = &self.servers[i].processes[Part::Electd as usize];
        if process.epoch != epoch || !process.alive {
            return;
        }
        self.look();
        if self.servers[i].gates[v].is_some_and(|g| g.shutting) {
            self.servers[i].gates[v] = None;
        }
        self.look();
        self.arrives(i, Part::Electd, Some(epoch), Job::GateReadsShut(v));
    }

    fn later(&mut self, i: usize, after: Time, job: Job) {
        let epoch = Some(self.servers[i].processes[Part::Electd as usize].epoch);
        self.queue.push(
            self.now + after,
            Event::Job {
                server: i,
                part: Part::Electd,
                epoch,
                job,
            },
        );
    }

    fn reserve(&mut self, i: usize, reservation: election::Reservation) {
        self.note(|| {
            format!(
                "{} reserves up to {}, roster {}",
                NAMES[i], reservation.reserved, reservation.roster.version
            )
        });
        if let Some(disk) = &self.servers[i].disk {
            let present = &disk.roster;
            // Whose disk is lost takes part again when it has heard every other server, this one too (R21).
            let holds = |s: &&crate::world::Server| {
                present.voters.contains(&s.name)
                    && s.disk
                        .as_ref()
                        .is_none_or(|d| d.roster.version >= present.version)
            };
            let holders = self.servers.iter().filter(holds).count();
            self.judge
                .changes_roster(present, &reservation.roster, holders);
        }
        let (now, local, rate) = (self.now, self.local(i), self.servers[i].rate);
        self.judge.writes(i, now, local, rate, &reservation);
        self.what_if_it_fails(i, &reservation);
        let usual = self.schedule.disk;
        let server = &mut self.servers[i];
        let delay = server.slow_disk.unwrap_or(usual) * 1000;
        let epoch = server.processes[Part::Electd as usize].epoch;
        if server.bad_disk == 0 {
            server.writing = Some(reservation.clone());
            self.queue.push(
                now + delay,
                Event::DiskDone {
                    server: i,
                    epoch,
                    reservation,
                },
            );
        } else {
            // A failed write may have reached the disk all the same.
            if self.random.percent(30) {
                self.disk_holds(i, Some(reservation));
            }
            let failed = Input::ReserveFailed("no space left".into());
            self.later(i, delay, Job::Electd(Box::new(failed)));
        }
        self.what_if(i);
    }

    /// The writer thread has synced it, and tells electd.
    pub(crate) fn disk_done(&mut self, i: usize, epoch: u32, reservation: election::Reservation) {
        let process = &self.servers[i].processes[Part::Electd as usize];
        if process.epoch != epoch || !process.alive {
            return;
        }
        if self.servers[i].writing.take().is_some() {
            self.disk_holds(i, Some(reservation.clone()));
        }
        self.arrives(i, Part::Electd, Some(epoch), Job::Written(reservation));
        if self.curious.percent(30) {
            self.what_if(i);
        }
    }
}

/// The run of either side, and the number of a packet with messages.
#[derive(Clone, Copy, Debug)]
struct Data {
    from: Incarnation,
    to: Incarnation,
    sequence: Option<u64>,
}

fn data_of(packet: &Packet) -> Option<Data> {
    match packet {
        Packet::Data(data) => Some(Data {
            from: data.from,
            to: data.to,
            sequence: Some(data.sequence),
        }),
        Packet::HelloAnswer { from, to, .. } => Some(Data {
            from: *from,
            to: *to,
            sequence: None,
        }),
        Packet::Hello { .. } => None,
    }
}

/// A signal in few words.
pub(crate) fn told(signal: &Signal) -> String {
    let v = &signal.virtual_server;
    match &signal.body {
        Body::PreCall { term, .. } => format!("would you vote for me in term {term} of {v}?"),
        Body::PreAnswer { term, verdict, .. } => format!("term {term} of {v}: {verdict:?}"),
        Body::Call { term, .. } => format!("CALL in term {term} of {v}, number {}", signal.number),
        Body::Grant { term, .. } => format!("my vote in term {term} of {v}"),
        Body::Refuse {
            term, why, floor, ..
        } => format!("no vote in term {term} of {v}: {why}, floor {floor}"),
        Body::Release { term, invited } => {
            format!("RELEASE of term {term} of {v}, invites {invited:?}")
        }
        other => format!("{other:?} about {v}"),
    }
}
