//! One other server: its incarnation, its windows, and the challenges between us (ELECTION R26).

use crate::{
    Path, Refusal,
    parts::Parts,
    times::Times,
    window::{Verdict, Window},
};
use mutants::{Mutant, planted};
use protocol::{
    BootTime, ServerName,
    local::{
        ring::{Arrival, HbdToDoctord},
        status::{PathRefusal, PathStatus, PeerStatus},
    },
    version::{self, Since},
    wire::datagram::{Body, Challenge, Data, Echo, Incarnation, Packet, Speaks},
};
use std::{collections::VecDeque, net::IpAddr, time::Duration};

/// How long one challenge is asked again before a fresh one takes its place.
const CHALLENGE_LIFE: Duration = Duration::from_secs(2);

/// Hellos of one peer answered in one heartbeat interval.
const ANSWERS_MAX: u32 = 16;

/// A peer is not asked more often than this because a former incarnation of it still sends.
const FORMER_ASK_EVERY: Duration = Duration::from_secs(1);

/// A peer that has answered in an older version only is asked again at once, for a later answer may have been lost, then ever
/// more seldom, up to this.
const LATER_ASK_EVERY: Duration = Duration::from_secs(60);

/// Distance between two alarms that two servers run under one name.
const ALARM_EVERY: Duration = Duration::from_secs(60);

/// So long after the last proof the name still counts as doubled: where both have one address, a challenge reaches
/// the former incarnation only now and then.
const DOUBLED_LIFE: Duration = Duration::from_secs(600);

/// Former incarnations of a peer remembered as such.
const FORMER_MAX: usize = 16;

/// One other server.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: ServerName,
    pub(crate) paths: Vec<Path>,
    known: Option<Known>,
    former: VecDeque<Incarnation>,
    asking: Option<(Challenge, BootTime)>,
    /// The version of the last hello.
    asked_in: u8,
    settled: Option<Challenge>,
    /// The last challenge made since the present incarnation proved itself: a former one that answers it still runs.
    since_replaced: Option<Challenge>,
    former_asked: Option<BootTime>,
    doubled: Option<BootTime>,
    alarmed: Option<BootTime>,
    hello_due: Option<BootTime>,
    hello_last: Option<BootTime>,
    answers: (BootTime, u32),
    sequence: u64,
    heard: Vec<Option<BootTime>>,
    refused: Vec<Option<PathRefusal>>,
    /// When it last sent a hello.
    asked: Option<BootTime>,
    parts: Parts,
    times: Times,
}

/// The incarnation that has proved itself and what came of it.
#[derive(Debug)]
struct Known {
    incarnation: Incarnation,
    since: BootTime,
    /// When a beat or an acknowledgement of it last arrived.
    beat: Option<BootTime>,
    /// The newest version of the protocol that it is known to speak, and this server.
    version: u8,
    /// How often it was asked for a later one.
    asked_again: u32,
    window: Window,
    /// Per path, to tell a copy over a second path from a replay.
    path_windows: Vec<Window>,
    echo: Option<Echo>,
}

/// What came of the answer to a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Of the incarnation that was known already.
    Known,
    /// A new incarnation is known.
    Met,
    /// A former incarnation still runs; true if that is to be told now.
    Doubled(bool),
}

/// When and how a datagram arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    pub(crate) path: usize,
    pub(crate) at: BootTime,
    pub(crate) real_ns: u64,
    pub(crate) raw_ns: Option<u64>,
}

impl Peer {
    /// A peer nothing is known of; it is to be asked at once.
    pub(crate) fn new(name: ServerName, paths: Vec<Path>) -> Self {
        let mut peer = Self {
            name,
            paths: Vec::new(),
            known: None,
            former: VecDeque::new(),
            asking: None,
            asked_in: version::FIRST,
            settled: None,
            since_replaced: None,
            former_asked: None,
            doubled: None,
            alarmed: None,
            hello_due: None,
            hello_last: None,
            answers: (BootTime(0), 0),
            sequence: 0,
            heard: Vec::new(),
            refused: Vec::new(),
            asked: None,
            parts: Parts::default(),
            times: Times::default(),
        };
        peer.set_paths(paths);
        peer
    }

    /// Other addresses; who the peer is stays known.
    pub(crate) fn set_paths(&mut self, paths: Vec<Path>) {
        if self.paths == paths {
            return;
        }
        self.heard = vec![None; paths.len()];
        self.refused = vec![None; paths.len()];
        if let Some(known) = &mut self.known {
            known.path_windows = vec![Window::new(); paths.len()];
        } else {
            self.hello_due = (!paths.is_empty()).then_some(BootTime(0));
        }
        self.paths = paths;
    }

    /// By which path a datagram between these addresses came.
    pub(crate) fn path_of(&self, source: IpAddr, local: IpAddr) -> Option<usize> {
        let remote = |p: &Path| p.remote == source;
        let both = self
            .paths
            .iter()
            .position(|p| remote(p) && p.local == local);
        both.or_else(|| self.paths.iter().position(remote))
    }

    /// When something authentic and new last arrived over a path.
    pub(crate) fn heard(&self, path: usize) -> Option<BootTime> {
        self.heard.get(path).copied().flatten()
    }

    /// Something came over a path and was refused; what passes by itself is not kept.
    pub(crate) fn note_refused(&mut self, path: usize, at: BootTime, why: Refusal) {
        if let (Some(refused), Some(why)) = (self.refused.get_mut(path), why.lasting()) {
            *refused = Some(PathRefusal { at, why });
        }
    }

    /// Its paths, for an operator.
    pub(crate) fn path_status(&self) -> impl Iterator<Item = PathStatus> {
        let status = |(i, path): (usize, &Path)| PathStatus {
            server: self.name.clone(),
            address: path.remote.to_string(),
            last_heard: self.heard(i),
            local: Since(Some(path.local)),
            refused: Since(self.refused.get(i).copied().flatten()),
            mtu: Since(None),
        };
        self.paths.iter().enumerate().map(status)
    }

    /// What came beside its beats, for an operator.
    pub(crate) fn status(&self) -> PeerStatus {
        PeerStatus {
            server: self.name.clone(),
            asked: self.asked,
            met: self.known.as_ref().map(|k| k.since),
            beat: self.known.as_ref().and_then(|k| k.beat),
            parts_missing: self.parts.broken_since(),
        }
    }

    /// The address from which something authentic and new last arrived.
    pub(crate) fn heard_last(&self) -> Option<IpAddr> {
        let heard = self.paths.iter().zip(&self.heard);
        let last = heard.max_by_key(|(_, at)| **at)?;
        last.1.map(|_| last.0.remote)
    }

    /// When it was last proved that two servers run under this name, if that was not long ago.
    pub(crate) fn doubled(&self, now: BootTime) -> Option<BootTime> {
        self.doubled.filter(|at| now.since(*at) < DOUBLED_LIFE)
    }

    /// When the next hello is due.
    pub(crate) fn hello_due(&self) -> Option<BootTime> {
        self.hello_due
    }

    /// The hello to send, if one is due, and in which version: who does not answer to one is asked in the other, which a
    /// release before there was a choice understands. `fresh` becomes the challenge unless an open one is young enough.
    pub(crate) fn hello(
        &mut self,
        now: BootTime,
        me: Incarnation,
        heartbeat: Duration,
        fresh: [u8; 16],
    ) -> Option<(u8, Packet)> {
        self.hello_due.filter(|due| *due <= now)?;
        let (challenge, made) = match self.asking {
            Some((challenge, made)) if now.since(made) < CHALLENGE_LIFE => (challenge, made),
            _ => {
                self.since_replaced = self.known.is_some().then_some(Challenge(fresh));
                (Challenge(fresh), now)
            }
        };
        self.asking = Some((challenge, made));
        self.hello_last = Some(now);
        // Its answer in a later version may be lost, and nothing says that it has none.
        self.hello_due = match &mut self.known {
            None => Some(now + heartbeat),
            Some(known) if known.version < *version::WIRE.end() => {
                let pause = heartbeat.saturating_mul(2_u32.saturating_pow(known.asked_again));
                known.asked_again += 1;
                Some(now + pause.min(LATER_ASK_EVERY))
            }
            Some(_) => None,
        };
        self.asked_in = match self.asked_in {
            version::GREETING => version::FIRST,
            _ => version::GREETING,
        };
        let hello = Packet::Hello {
            from: me,
            challenge,
        };
        Some((self.asked_in, hello))
    }

    /// The answer to a hello: nothing about the asker is kept, but if it is new to us it will be asked too.
    pub(crate) fn hello_received(
        &mut self,
        now: BootTime,
        me: Incarnation,
        heartbeat: Duration,
        (from, challenge): (Incarnation, Challenge),
        version: u8,
    ) -> Result<Packet, Refusal> {
        self.asked = Some(now);
        if self.former.contains(&from) {
            self.ask_former(now, heartbeat);
        } else if !self.is_known(from) || self.version() < version {
            self.ask(now, heartbeat);
        }
        if now.since(self.answers.0) >= heartbeat {
            self.answers = (now, 0);
        }
        if self.answers.1 >= ANSWERS_MAX {
            return Err(Refusal::HelloTooOften);
        }
        self.answers.1 += 1;
        Ok(Packet::HelloAnswer {
            from: me,
            to: from,
            challenge,
            speaks: Since(Speaks::OURS),
        })
    }

    /// The answer to our challenge.
    pub(crate) fn answer_received(
        &mut self,
        me: Incarnation,
        (from, to, challenge): (Incarnation, Incarnation, Challenge),
        speaks: Speaks,
        receipt: Receipt,
    ) -> Result<Answer, Refusal> {
        if to != me {
            return Err(Refusal::FormerReceiver);
        }
        let theirs = speaks.oldest..=speaks.newest;
        let version =
            version::common(&version::WIRE, &theirs).ok_or(Refusal::Version(speaks.newest))?;
        if self.settled == Some(challenge) && self.is_known(from) {
            self.learn_version(version);
            return Ok(Answer::Known); // The same hello, answered over another path or in another version too.
        }
        let fresh = self.since_replaced == Some(challenge) || planted(Mutant::AnyAnswerProves);
        if fresh && self.former.contains(&from) {
            self.since_replaced = None; // Proves it once, however often it is sent.
            return Ok(Answer::Doubled(self.note_doubled(receipt.at)));
        }
        let asked = self.asking.is_some_and(|(open, _)| open == challenge);
        if !asked && !planted(Mutant::ChallengeUnchecked) {
            return Err(Refusal::Unasked);
        }
        if self.former.contains(&from) {
            return Err(Refusal::FormerIncarnation);
        }
        self.asking = None;
        self.asked_in = version::FIRST;
        self.settled = Some(challenge);
        self.note_heard(receipt);
        if self.is_known(from) {
            self.learn_version(version);
            return Ok(Answer::Known);
        }
        let later = version < *version::WIRE.end();
        self.hello_due = later.then_some(receipt.at);
        let fresh = Known {
            incarnation: from,
            since: receipt.at,
            beat: None,
            version,
            asked_again: 0,
            window: Window::new(),
            path_windows: vec![Window::new(); self.paths.len()],
            echo: None,
        };
        if let Some(replaced) = self.known.replace(fresh) {
            self.former.truncate(FORMER_MAX - 1);
            self.former.push_front(replaced.incarnation);
            self.since_replaced = None; // Made before: the former may have answered while it was the only one.
        }
        Ok(Answer::Met)
    }

    /// Messages: what to tell doctord, or nothing for a copy over another path.
    pub(crate) fn data_received(
        &mut self,
        now: BootTime,
        me: Incarnation,
        heartbeat: Duration,
        data: Data,
        receipt: Receipt,
    ) -> Result<Vec<HbdToDoctord>, Refusal> {
        let unchecked = planted(Mutant::IncarnationUnchecked);
        if self.former.contains(&data.from) && !unchecked {
            self.ask_former(now, heartbeat);
            return Err(Refusal::FormerIncarnation);
        }
        let present = |k: &&mut Known| k.incarnation == data.from || unchecked;
        let Some(known) = self.known.as_mut().filter(present) else {
            self.ask(now, heartbeat);
            return Err(Refusal::UnknownIncarnation);
        };
        if data.to != me && !unchecked {
            // It missed our restart: our hello makes it ask us.
            self.ask(now, heartbeat);
            return Err(Refusal::FormerReceiver);
        }
        let newest = data.sequence > known.window.highest();
        let seen = known.window.note(data.sequence);
        let seen_here = known
            .path_windows
            .get_mut(receipt.path)
            .map(|w| w.note(data.sequence));
        match (seen, seen_here) {
            _ if planted(Mutant::ReplayHeard) => {}
            (Verdict::Below, _) => return Err(Refusal::Stale),
            (Verdict::Seen, Some(Verdict::New)) => {
                self.note_heard(receipt);
                return Ok(Vec::new());
            }
            (Verdict::Seen, _) => return Err(Refusal::Replayed),
            (Verdict::New, _) => {}
        }
        known.beat = Some(receipt.at);
        if newest {
            known.echo = Some(Echo {
                sent_ns: data.sent_ns,
                received_ns: receipt.real_ns,
            });
        }
        self.note_heard(receipt);
        for body in &data.bodies {
            if let Body::Beat(beat) = body {
                self.parts.arrived(receipt.at, beat);
            }
        }
        let arrival = Arrival {
            from: self.name.clone(),
            path: self.paths.get(receipt.path).map_or(0, |p| p.number),
            at: receipt.at,
            times: self.times.arrived(&data, receipt.raw_ns),
        };
        // All came with one packet: the times of it count once.
        let arrivals = std::iter::once(arrival.clone()).chain(std::iter::repeat(Arrival {
            times: None,
            ..arrival
        }));
        let message = |(body, arrival)| match body {
            Body::Beat(beat) => HbdToDoctord::Beat { arrival, beat },
            Body::Ack(ack) => HbdToDoctord::Ack { arrival, ack },
        };
        Ok(data.bodies.into_iter().zip(arrivals).map(message).collect())
    }

    /// The packet for messages, if the peer's incarnation is known.
    pub(crate) fn data(&mut self, me: Incarnation, bodies: Vec<Body>) -> Option<Packet> {
        let known = self.known.as_ref()?;
        self.sequence += 1;
        let (to, echo) = (known.incarnation, known.echo);
        Some(Packet::Data(Box::new(Data {
            from: me,
            to,
            sequence: self.sequence,
            sent_ns: 0,
            left: None,
            echo,
            bodies,
        })))
    }

    /// Its timestamps.
    pub(crate) fn times(&mut self) -> &mut Times {
        &mut self.times
    }

    /// What is spoken with it.
    pub(crate) fn version(&self) -> u8 {
        self.known.as_ref().map_or(version::FIRST, |k| k.version)
    }

    /// One run speaks what it speaks, and may have answered in the first version before.
    fn learn_version(&mut self, version: u8) {
        if let Some(known) = &mut self.known {
            known.version = known.version.max(version);
            if known.version == *version::WIRE.end() {
                self.hello_due = None;
            }
        }
    }

    fn is_known(&self, incarnation: Incarnation) -> bool {
        self.known
            .as_ref()
            .is_some_and(|k| k.incarnation == incarnation)
    }

    /// There is someone to ask: sooner than where nobody is known to be, but not for every packet.
    fn ask(&mut self, now: BootTime, heartbeat: Duration) {
        let paced = self
            .hello_last
            .map_or(now, |last| (last + heartbeat / 4).max(now));
        self.hello_due = Some(self.hello_due.map_or(paced, |due| due.min(paced)));
    }

    /// A former incarnation sends: late packets of it, a replay, or it still runs. Its answer to a challenge tells.
    fn ask_former(&mut self, now: BootTime, heartbeat: Duration) {
        let asked = self.former_asked;
        if asked.is_none_or(|last| now.since(last) >= FORMER_ASK_EVERY) {
            self.former_asked = Some(now);
            self.ask(now, heartbeat);
        }
    }

    /// Two servers run under this name. True if that is to be told now.
    fn note_doubled(&mut self, now: BootTime) -> bool {
        self.doubled = Some(now);
        let tell = self
            .alarmed
            .is_none_or(|last| now.since(last) >= ALARM_EVERY);
        if tell {
            self.alarmed = Some(now);
        }
        tell
    }

    fn note_heard(&mut self, receipt: Receipt) {
        if let Some(heard) = self.heard.get_mut(receipt.path) {
            *heard = Some(receipt.at);
        }
    }
}
