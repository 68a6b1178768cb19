//! The core itself: gives each datagram and each message to the peer it concerns.

use crate::{
    Input, Output, Path, Refusal, Settings, Transmit,
    peer::{Answer, Peer, Receipt},
    strangers::Strangers,
    times::Times,
};
use protocol::{
    BootTime, ServerName,
    codec::{self, CodecError, MESSAGE_MAX},
    local::{
        ring::ElectdToHbd,
        status::{PathStatus, PeerStatus, Stranger},
    },
    seal::{NONCE, Sealer},
    wire::{
        beat::PARTS_SINCE,
        datagram::{self, Body, Incarnation, Packet},
    },
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

/// Most paths to one peer.
const PATHS_MAX: usize = 16;

/// Messages that leave together fill one packet up to here.
const BUNDLE_MAX: usize = 1024;

/// To whom, if not to all; what; and its length in bytes.
type Message = (Option<ServerName>, Body, usize);

/// Which peer, and which path to it.
type Place = (usize, usize);

/// The core of hbd.
#[derive(Debug)]
pub struct Heartbeat {
    me: ServerName,
    heartbeat: Duration,
    part_max: usize,
    sealer: Sealer,
    incarnation: Incarnation,
    peers: Vec<Peer>,
    outputs: VecDeque<Output>,
    counters: BTreeMap<&'static str, u64>,
    strangers: Strangers,
}

impl Heartbeat {
    /// `incarnation` is random and never given before.
    pub fn new(settings: Settings, sealer: Sealer, incarnation: Incarnation) -> Self {
        let mut core = Self {
            me: settings.me.clone(),
            heartbeat: settings.heartbeat,
            part_max: settings.part_max,
            sealer,
            incarnation,
            peers: Vec::new(),
            outputs: VecDeque::new(),
            counters: BTreeMap::new(),
            strangers: Strangers::default(),
        };
        core.configure(settings);
        core
    }

    /// Another configuration. Peers that stay by name stay known.
    pub fn configure(&mut self, settings: Settings) {
        let mut old = std::mem::take(&mut self.peers);
        for wanted in settings.peers {
            let paths = paths(&settings.addresses, &wanted.addresses);
            self.peers
                .push(match old.iter().position(|p| p.name == wanted.name) {
                    Some(at) => {
                        let mut peer = old.swap_remove(at);
                        peer.set_paths(paths);
                        peer
                    }
                    None => Peer::new(wanted.name, paths),
                });
        }
        self.me = settings.me;
        self.heartbeat = settings.heartbeat;
        self.part_max = settings.part_max;
    }

    /// Other cluster keys.
    pub fn set_keys(&mut self, sealer: Sealer) {
        self.sealer = sealer;
    }

    /// Takes in one thing that happened.
    pub fn handle(&mut self, now: BootTime, input: Input<'_>) {
        match input {
            Input::Datagram {
                source,
                local,
                bytes,
                at,
                real_ns,
                raw_ns,
            } => {
                let outcome = self
                    .open((source, local), bytes)
                    .and_then(|(place, opened)| {
                        self.packet(now, place, opened, (at, real_ns, raw_ns))
                    });
                if matches!(outcome, Err(Refusal::Unlisted)) {
                    self.stranger(now, source, bytes);
                }
                self.note(now, (source, local), outcome);
            }
            Input::Opened {
                source,
                local,
                version,
                packet,
                at,
                real_ns,
                raw_ns,
            } => {
                let opened = (version, packet);
                let outcome = self
                    .listed((source, local))
                    .and_then(|place| self.packet(now, place, opened, (at, real_ns, raw_ns)));
                self.note(now, (source, local), outcome);
            }
            Input::TooLong(source) => self.refuse(now, (source, source), Refusal::TooLong),
            Input::Send(messages) => self.send(now, messages),
            Input::Timeout { fresh } => self.hellos(now, fresh),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is wanted.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        self.peers.iter().filter_map(Peer::hello_due).min()
    }

    /// A transmission is sent now: CLOCK_REALTIME in nanoseconds since 1970, and CLOCK_MONOTONIC_RAW.
    pub fn leaves(&mut self, transmit: &mut Transmit, real_ns: u64, raw_ns: u64) {
        if let Packet::Data(data) = &mut transmit.packet {
            data.sent_ns = real_ns;
            data.left = self
                .times(&transmit.to)
                .and_then(|times| times.leaves(real_ns, raw_ns));
        }
    }

    /// What left to this peer at `real_ns` was given to the network so much later, as the kernel tells.
    pub fn left(&mut self, to: &ServerName, real_ns: u64, late_ns: u32) {
        if let Some(times) = self.times(to) {
            times.left(real_ns, late_ns);
        }
    }

    fn times(&mut self, of: &ServerName) -> Option<&mut Times> {
        let peer = self.peers.iter_mut().find(|peer| peer.name == *of);
        peer.map(Peer::times)
    }

    /// The bytes of a transmission: `nonce` is random and never given before.
    pub fn seal(&self, transmit: &Transmit, nonce: [u8; NONCE]) -> Result<Vec<u8>, CodecError> {
        let (ends, version) = ((&self.me, &transmit.to), transmit.version);
        datagram::seal(&self.sealer, ends, version, nonce, &transmit.packet)
    }

    /// Everything counted, refusals by reason among it.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters.iter().map(|(name, n)| (*name, *n))
    }

    /// Every path to every peer.
    pub fn paths(&self) -> Vec<PathStatus> {
        self.peers.iter().flat_map(Peer::path_status).collect()
    }

    /// What arrived of each peer beside its beats.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.peers.iter().map(Peer::status).collect()
    }

    /// The last addresses of no server of the configuration that sent packets of standin.
    pub fn strangers(&self) -> Vec<Stranger> {
        self.strangers.all().cloned().collect()
    }

    /// Both ends of every path to every peer.
    pub fn ends(&self) -> impl Iterator<Item = &Path> {
        self.peers.iter().flat_map(|peer| &peer.paths)
    }

    /// Peers without any path: no address of theirs is of the same family as one of ours.
    pub fn unreachable(&self) -> impl Iterator<Item = &ServerName> {
        self.peers
            .iter()
            .filter(|p| p.paths.is_empty())
            .map(|p| &p.name)
    }

    /// Names under which two servers were found to run not long ago, and when that was last proved.
    pub fn doubled(&self, now: BootTime) -> impl Iterator<Item = (&ServerName, BootTime)> {
        let peers = self.peers.iter();
        peers.filter_map(move |peer| Some((&peer.name, peer.doubled(now)?)))
    }

    fn note(
        &mut self,
        now: BootTime,
        ends: (IpAddr, IpAddr),
        outcome: Result<Vec<Output>, Refusal>,
    ) {
        match outcome {
            Ok(outputs) => self.outputs.extend(outputs),
            Err(why) => self.refuse(now, ends, why),
        }
    }

    /// From an address that is not listed: only remembered.
    fn stranger(&mut self, now: BootTime, source: IpAddr, bytes: &[u8]) {
        if !bytes.starts_with(&datagram::MAGIC) {
            return;
        }
        let Self {
            strangers,
            peers,
            sealer,
            me,
            ..
        } = self;
        strangers.heard(now, source, || {
            let sealed_by = |p: &&Peer| datagram::open(sealer, &p.name, me, bytes).is_ok();
            peers.iter().find(sealed_by).map(|p| p.name.clone())
        });
    }

    /// Level 1 (DESIGN section 2): the address is listed, or nothing else is looked at. Whose it is, and which path.
    fn listed(&self, (source, local): (IpAddr, IpAddr)) -> Result<Place, Refusal> {
        let listed = |peer: &Peer| peer.path_of(source, local);
        let mut peers = self.peers.iter().enumerate();
        let place = peers.find_map(|(i, p)| Some((i, listed(p)?)));
        place.ok_or(Refusal::Unlisted)
    }

    /// Level 3: the seal.
    fn open(&self, ends: (IpAddr, IpAddr), bytes: &[u8]) -> Result<(Place, (u8, Packet)), Refusal> {
        let place = self.listed(ends)?;
        let peer = &self.peers[place.0].name;
        let opened = datagram::open(&self.sealer, peer, &self.me, bytes);
        Ok((place, opened.map_err(|e| Refusal::from(&e))?))
    }

    fn packet(
        &mut self,
        now: BootTime,
        (index, path): Place,
        (version, packet): (u8, Packet),
        (at, real_ns, raw_ns): (BootTime, u64, Option<u64>),
    ) -> Result<Vec<Output>, Refusal> {
        let peer = &mut self.peers[index];
        let receipt = Receipt {
            path,
            at,
            real_ns,
            raw_ns,
        };
        let (me, heartbeat) = (self.incarnation, self.heartbeat);
        Ok(match packet {
            Packet::Hello { from, challenge } => {
                let packet = peer.hello_received(now, me, heartbeat, (from, challenge), version)?;
                count(&mut self.counters, "hellos_answered");
                let (to, paths) = (peer.name.clone(), vec![peer.paths[path]]);
                vec![Output::Transmit(Transmit {
                    to,
                    paths,
                    version,
                    packet,
                })]
            }
            Packet::HelloAnswer {
                from,
                to,
                challenge,
                speaks,
            } => match peer.answer_received(me, (from, to, challenge), speaks.0, receipt)? {
                Answer::Known => Vec::new(),
                Answer::Met => vec![Output::Met(peer.name.clone())],
                Answer::Doubled(tell) => {
                    count(&mut self.counters, "alarm_two_servers");
                    let doubled = Output::Doubled {
                        server: peer.name.clone(),
                        former: peer.paths[path].remote,
                        present: peer.heard_last(),
                    };
                    tell.then_some(doubled).into_iter().collect()
                }
            },
            Packet::Data(data) => {
                let messages = peer.data_received(now, me, heartbeat, *data, receipt)?;
                if messages.is_empty() {
                    count(&mut self.counters, "duplicates");
                }
                for _ in &messages {
                    count(&mut self.counters, "messages_received");
                }
                messages.into_iter().map(Output::Deliver).collect()
            }
        })
    }

    /// Each once per path, to one peer or all (ELECTION R3).
    fn send(&mut self, now: BootTime, messages: Vec<ElectdToHbd>) {
        let mut timely = Vec::new();
        for message in messages {
            let (made, to, body) = match message {
                ElectdToHbd::Beat { made, beat } => (made, None, Body::Beat(beat)),
                ElectdToHbd::Ack { made, to, ack } => (made, Some(to), Body::Ack(ack)),
            };
            if now.since(made) > self.heartbeat {
                count(&mut self.counters, "unsent_late");
                continue;
            }
            let length = size(&body);
            timely.push((to, body, length));
        }
        let long = timely.iter().any(|(.., length)| *length > self.part_max);
        let parted = long.then(|| in_parts(&timely, self.part_max));
        for index in 0..self.peers.len() {
            let known = self.peers[index].version() >= PARTS_SINCE;
            let messages = parted.as_ref().filter(|_| known).unwrap_or(&timely);
            for bodies in bundles(messages, &self.peers[index].name) {
                self.transmit(index, bodies);
            }
        }
    }

    /// One packet to one peer.
    fn transmit(&mut self, index: usize, bodies: Vec<Body>) {
        let (peer, messages) = (&mut self.peers[index], bodies.len());
        let packet = peer.data(self.incarnation, bodies);
        let version = peer.version();
        let name = if packet.is_some() {
            "messages_sent"
        } else {
            "unsent_unknown_incarnation"
        };
        (0..messages).for_each(|_| count(&mut self.counters, name));
        if let Some(packet) = packet {
            let (to, paths) = (peer.name.clone(), peer.paths.clone());
            self.outputs.push_back(Output::Transmit(Transmit {
                to,
                paths,
                version,
                packet,
            }));
        }
    }

    fn hellos(&mut self, now: BootTime, fresh: [u8; 16]) {
        for peer in &mut self.peers {
            if let Some((version, packet)) =
                peer.hello(now, self.incarnation, self.heartbeat, fresh)
            {
                count(&mut self.counters, "hellos_sent");
                let (to, paths) = (peer.name.clone(), peer.paths.clone());
                self.outputs.push_back(Output::Transmit(Transmit {
                    to,
                    paths,
                    version,
                    packet,
                }));
            }
        }
    }

    fn refuse(&mut self, now: BootTime, (source, local): (IpAddr, IpAddr), why: Refusal) {
        count(&mut self.counters, why.name());
        let place = self.listed((source, local));
        if let Some((peer, path)) = place
            .ok()
            .and_then(|(i, p)| Some((self.peers.get_mut(i)?, p)))
        {
            peer.note_refused(path, now, why);
        }
        self.outputs.push_back(Output::Refused { source, why });
    }
}

/// Bytes of a message or of a piece of one.
fn size<T: Serialize>(part: &T) -> usize {
    codec::encode(part).map_or(MESSAGE_MAX, |bytes| bytes.len())
}

/// The parts in which messages travel, each no longer than `most` if that can be (ELECTION R25): a packet then passes
/// any link in one piece, and what is lost with one part is not lost with the others.
fn in_parts(messages: &[Message], most: usize) -> Vec<Message> {
    let mut parted = Vec::new();
    for (to, body, length) in messages {
        if *length <= most {
            parted.push((to.clone(), body.clone(), *length));
            continue;
        }
        let measured = |body| {
            let length = size(&body);
            (to.clone(), body, length)
        };
        let room = |entries: usize| most.saturating_sub(length.saturating_sub(entries));
        match body.clone() {
            Body::Beat(beat) => {
                let room = room(beat.standings.iter().map(size).sum());
                let parts = beat.parts(room, size).into_iter();
                parted.extend(parts.map(Body::Beat).map(measured));
            }
            Body::Ack(ack) => {
                let room = room(ack.answers.iter().map(size).sum());
                let parts = ack.parts(room, size).into_iter();
                parted.extend(parts.map(Body::Ack).map(measured));
            }
        }
    }
    parted
}

/// What goes to `peer` of these messages (to whom, if not to all, and how long), a packet each.
fn bundles(messages: &[Message], peer: &ServerName) -> Vec<Vec<Body>> {
    let (mut bundles, mut room) = (Vec::<Vec<Body>>::new(), 0);
    for (to, body, length) in messages {
        if to.as_ref().is_some_and(|to| to != peer) {
            continue;
        }
        match bundles.last_mut().filter(|_| *length <= room) {
            Some(bundle) => bundle.push(body.clone()),
            None => {
                bundles.push(vec![body.clone()]);
                room = BUNDLE_MAX;
            }
        }
        room = room.saturating_sub(*length);
    }
    bundles
}

fn count(counters: &mut BTreeMap<&'static str, u64>, name: &'static str) {
    *counters.entry(name).or_default() += 1;
}

/// Path i joins the i-th address of either side. Where one side has fewer, or the families differ, its
/// first address of the other's family takes part, so that both sides see the same pairs.
fn paths(ours: &[IpAddr], theirs: &[IpAddr]) -> Vec<Path> {
    let mut paths: Vec<Path> = Vec::new();
    for i in 0..ours.len().max(theirs.len()).min(PATHS_MAX) {
        let pairs = [
            ours.get(i).and_then(|a| Some((*a, like(*a, theirs, i)?))),
            theirs.get(i).and_then(|b| Some((like(*b, ours, i)?, *b))),
        ];
        for (local, remote) in pairs.into_iter().flatten() {
            if !paths.iter().any(|p| (p.local, p.remote) == (local, remote)) {
                paths.push(Path {
                    number: i as u8,
                    local,
                    remote,
                });
            }
        }
    }
    paths
}

/// The address at place `i`, or else the first, of the family of `other`.
fn like(other: IpAddr, addresses: &[IpAddr], i: usize) -> Option<IpAddr> {
    let same = |a: &&IpAddr| a.is_ipv4() == other.is_ipv4();
    addresses
        .get(i)
        .filter(same)
        .or_else(|| addresses.iter().find(same))
        .copied()
}
