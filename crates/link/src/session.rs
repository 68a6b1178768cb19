//! One TCP session: handshake, order, keep-alive, bounds.

use crate::reason::Reason;
use mutants::{Mutant, planted};
use protocol::{
    BootTime, ServerName, codec,
    seal::{Channel, Context, OVERHEAD, Sealer},
    version,
    wire::{
        frame::{self, Body, Challenge, Frame, HEADER, Header, PREAMBLE},
        signal::Signal,
    },
};
use std::{mem, sync::Arc, time::Duration};

/// Most bytes waiting to be written; a peer that lets more pile up is dead to us.
pub const OUTGOING_MAX: usize = 256 * 1024;

/// Longest ping interval of a peer that this side goes along with.
pub const PING_MAX: Duration = Duration::from_secs(10);

const PING_MIN: Duration = Duration::from_millis(100);
const HANDSHAKE_MIN: Duration = Duration::from_secs(1);
const CONNECT_MIN: Duration = Duration::from_millis(200);

/// Pings that may go missing before a session counts as dead: TCP sends a lost one again in half of that time.
const PINGS_MISSED: u32 = 2;

/// The deadlines of all sessions of a server.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Each side speaks at least this often.
    pub ping: Duration,
    /// A lease: a session lasts at least so long without a word.
    pub lease: Duration,
    /// From the TCP connection to the open session.
    pub handshake: Duration,
    /// For the TCP connection itself; then a fresh attempt, rather than TCP's own late retry.
    pub connect: Duration,
}

impl Timing {
    /// From the cluster's heartbeat interval and lease.
    pub fn new(heartbeat: Duration, lease: Duration) -> Self {
        Self {
            ping: (heartbeat * 4).max(PING_MIN),
            lease,
            handshake: lease.max(HANDSHAKE_MIN),
            connect: lease.max(CONNECT_MIN),
        }
    }

    /// How much silence of a peer with this ping interval ends a session.
    pub fn silence(&self, peer_ping: Duration) -> Duration {
        self.lease
            .max(self.ping.max(peer_ping.min(PING_MAX)) * PINGS_MISSED)
    }
}

/// What a session heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The peer has proved itself: signals may go both ways.
    Open,
    /// A signal.
    Signal(Signal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Dial,
    Accept,
}

/// What is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Preamble,
    Hello,
    /// Accepting side only: the first frame that names its challenge.
    Proof,
    Open,
}

/// One TCP session, from the established connection on. After an error it must be closed.
#[derive(Debug)]
pub struct Session {
    sealer: Arc<Sealer>,
    me: ServerName,
    peer: ServerName,
    timing: Timing,
    side: Side,
    state: State,
    /// Of the protocol: the dialling side's wish, until the accepting side has taken it.
    version: u8,
    mine: Challenge,
    theirs: Option<Challenge>,
    next_sent: u64,
    next_heard: u64,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    written: usize,
    silence: Duration,
    /// Before the session is open: since when it waits. Then: when the peer was last heard.
    heard_at: BootTime,
    sent_at: BootTime,
}

impl Session {
    /// The dialling side, just connected, which wants to speak `version`. `challenge` is random and never used again.
    pub fn dial(
        sealer: Arc<Sealer>,
        (me, peer): (ServerName, ServerName),
        version: u8,
        timing: Timing,
        challenge: Challenge,
        now: BootTime,
    ) -> Self {
        let mut session = Self::new(sealer, me, peer, timing, challenge, now, Side::Dial);
        session.version = version;
        session
            .outgoing
            .extend_from_slice(&frame::preamble(version));
        session.push(now, Body::Hello { ping: timing.ping }).ok();
        session
    }

    /// The accepting side, which speaks the version that it is asked for. It says nothing until it has heard an
    /// authentic hello.
    pub fn accept(
        sealer: Arc<Sealer>,
        me: ServerName,
        peer: ServerName,
        timing: Timing,
        challenge: Challenge,
        now: BootTime,
    ) -> Self {
        Self::new(sealer, me, peer, timing, challenge, now, Side::Accept)
    }

    fn new(
        sealer: Arc<Sealer>,
        me: ServerName,
        peer: ServerName,
        timing: Timing,
        mine: Challenge,
        now: BootTime,
        side: Side,
    ) -> Self {
        Self {
            sealer,
            me,
            peer,
            timing,
            side,
            state: State::Preamble,
            version: *version::WIRE.end(),
            mine,
            theirs: None,
            next_sent: 0,
            next_heard: 0,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            written: 0,
            silence: timing.silence(timing.ping),
            heard_at: now,
            sent_at: now,
        }
    }

    /// The peer has proved itself.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// An authentic hello was heard, of now or recorded; the proof is due.
    pub fn is_greeted(&self) -> bool {
        self.state == State::Proof
    }

    /// Takes what arrived, in pieces of any size, and appends what it says to `heard`.
    pub fn receive(
        &mut self,
        now: BootTime,
        mut bytes: &[u8],
        heard: &mut Vec<Heard>,
    ) -> Result<(), Reason> {
        loop {
            let missing = self.needed()?.saturating_sub(self.incoming.len());
            let Some((part, rest)) = bytes.split_at_checked(missing) else {
                self.incoming.extend_from_slice(bytes);
                return Ok(());
            };
            self.incoming.extend_from_slice(part);
            bytes = rest;
            // A header that has just become whole tells how much follows.
            if self.needed()? == self.incoming.len() {
                let item = mem::take(&mut self.incoming);
                self.item(now, &item, heard)?;
                self.incoming = item;
                self.incoming.clear();
            }
        }
    }

    /// Sends a signal. Nothing is sent, and nothing is wrong, if it is too long for a frame: `Ok(false)`.
    pub fn send(&mut self, now: BootTime, signal: Signal) -> Result<bool, Reason> {
        if self.state != State::Open {
            return Ok(false);
        }
        match self.push(now, Body::Signal(signal)) {
            Ok(()) => Ok(true),
            Err(Reason::Malformed(_)) => Ok(false),
            Err(reason) => Err(reason),
        }
    }

    /// Bytes to write to the peer.
    pub fn outgoing(&self) -> &[u8] {
        &self.outgoing[self.written..]
    }

    /// So many of them were written.
    pub fn sent(&mut self, count: usize) {
        self.written = (self.written + count).min(self.outgoing.len());
        if self.written == self.outgoing.len() {
            self.outgoing.clear();
            self.written = 0;
        }
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> BootTime {
        match self.state {
            State::Open => self.ping_due().min(self.heard_at + self.silence),
            _ => self.heard_at + self.timing.handshake,
        }
    }

    /// Speaks if it is time to, fails if the peer's time is over.
    pub fn handle_timeout(&mut self, now: BootTime) -> Result<(), Reason> {
        if self.state != State::Open {
            let late = now >= self.heard_at + self.timing.handshake;
            return if late {
                Err(Reason::HandshakeTimeout)
            } else {
                Ok(())
            };
        }
        if now >= self.heard_at + self.silence {
            return Err(Reason::Silence);
        }
        self.ping_if_soon(now, self.timing.ping / 8)
    }

    /// The dialling side speaks a little sooner, so that one ping makes both sides speak and each wakes up once.
    fn ping_due(&self) -> BootTime {
        let sooner = match self.side {
            Side::Dial => self.timing.ping / 8,
            Side::Accept => Duration::ZERO,
        };
        self.sent_at + self.timing.ping - sooner
    }

    fn ping_if_soon(&mut self, now: BootTime, slack: Duration) -> Result<(), Reason> {
        if now + slack >= self.ping_due() {
            self.push(now, Body::Ping)?;
        }
        Ok(())
    }

    /// Length of what is being received, as far as can be told from `incoming`.
    fn needed(&self) -> Result<usize, Reason> {
        if self.state == State::Preamble {
            return Ok(PREAMBLE);
        }
        let Some(start) = self.incoming.first_chunk::<HEADER>() else {
            return Ok(HEADER);
        };
        let header = Header::read(*start).ok_or(Reason::Kind(start[0]))?;
        let allowed = match header {
            Header::Sealed(_) if self.is_open() => OVERHEAD..=frame::SEALED_MAX,
            Header::Sealed(_) => OVERHEAD..=frame::HANDSHAKE_MAX,
            Header::Refusal(_) => 0..=frame::REFUSAL_MAX,
        };
        let length = header.length();
        if allowed.contains(&length) {
            Ok(HEADER + length)
        } else {
            Err(Reason::Length(length))
        }
    }

    /// One whole preamble or frame.
    fn item(&mut self, now: BootTime, item: &[u8], heard: &mut Vec<Heard>) -> Result<(), Reason> {
        if self.state == State::Preamble {
            return self.preamble(item);
        }
        let (header, contents) = item
            .split_at_checked(HEADER)
            .ok_or(Reason::Length(item.len()))?;
        if header.first() == Some(&b'R') {
            return Err(Reason::Refused(frame::read_refusal(contents)));
        }
        let context = Context {
            version: self.version,
            channel: Channel::Tcp,
            from: &self.peer,
            to: &self.me,
        };
        let plain = self
            .sealer
            .open(&context, contents)
            .map_err(|e| self.refuse(Reason::Seal(e)))?;
        let frame = codec::decode_as(&plain, self.version).map_err(Reason::Malformed)?;
        self.frame(now, frame, heard)
    }

    fn preamble(&mut self, item: &[u8]) -> Result<(), Reason> {
        let bytes = item.first_chunk().ok_or(Reason::Preamble)?;
        let theirs = frame::read_preamble(*bytes).ok_or(Reason::Preamble)?;
        let spoken = match self.side {
            Side::Dial => theirs == self.version,
            Side::Accept => version::WIRE.contains(&theirs),
        };
        if spoken {
            (self.state, self.version) = (State::Hello, theirs);
            return Ok(());
        }
        let older = theirs < self.version && version::WIRE.contains(&theirs);
        Err(match self.side {
            Side::Dial if older => Reason::Older(theirs),
            Side::Dial | Side::Accept => self.refuse(Reason::Version(theirs)),
        })
    }

    /// An authentic frame: is it of this session, in its place, and allowed here?
    fn frame(&mut self, now: BootTime, frame: Frame, heard: &mut Vec<Heard>) -> Result<(), Reason> {
        let first = self.state == State::Hello;
        let names_me = if first && self.side == Side::Accept {
            None
        } else {
            Some(self.mine)
        };
        let ours = frame.receiver == names_me && (first || self.theirs == Some(frame.sender));
        if !ours && !planted(Mutant::SessionUnchecked) {
            return Err(Reason::Replay);
        }
        if frame.sequence != self.next_heard {
            return Err(Reason::Order {
                expected: self.next_heard,
                got: frame.sequence,
            });
        }
        self.next_heard += 1;
        match (self.state, self.side, frame.body) {
            (State::Hello, side, Body::Hello { ping }) => {
                self.theirs = Some(frame.sender);
                self.silence = self.timing.silence(ping);
                match side {
                    Side::Accept => {
                        self.state = State::Proof;
                        let preamble = frame::preamble(self.version);
                        self.outgoing.extend_from_slice(&preamble);
                        self.push(
                            now,
                            Body::Hello {
                                ping: self.timing.ping,
                            },
                        )
                    }
                    Side::Dial => {
                        self.open(now, heard);
                        self.push(now, Body::Ping)
                    }
                }
            }
            (State::Proof, Side::Accept, Body::Ping) => {
                self.open(now, heard);
                Ok(())
            }
            (State::Open, _, Body::Ping) => {
                self.heard_at = now;
                self.ping_if_soon(now, self.timing.ping / 2)
            }
            (State::Open, _, Body::Signal(signal)) => {
                self.heard_at = now;
                heard.push(Heard::Signal(signal));
                Ok(())
            }
            (
                State::Preamble | State::Hello | State::Proof | State::Open,
                Side::Dial | Side::Accept,
                _,
            ) => Err(Reason::Unexpected),
        }
    }

    fn open(&mut self, now: BootTime, heard: &mut Vec<Heard>) {
        self.state = State::Open;
        self.heard_at = now;
        heard.push(Heard::Open);
    }

    /// The accepting side tells a caller that cannot be understood why, in clear.
    fn refuse(&mut self, reason: Reason) -> Reason {
        if self.side == Side::Accept && matches!(self.state, State::Preamble | State::Hello) {
            // In the caller's version, or else the newest: who asked for a newer one asks for that then.
            let preamble = frame::preamble(self.version);
            self.outgoing.extend_from_slice(&preamble);
            let words = match &reason {
                Reason::Version(theirs) => {
                    let (oldest, newest) = (version::WIRE.start(), version::WIRE.end());
                    format!(
                        "this server speaks versions {oldest} to {newest}, you version {theirs}"
                    )
                }
                other => other.to_string(),
            };
            frame::write_refusal(&words, &mut self.outgoing);
        }
        reason
    }

    fn push(&mut self, now: BootTime, body: Body) -> Result<(), Reason> {
        let frame = Frame {
            sender: self.mine,
            receiver: self.theirs,
            sequence: self.next_sent,
            body,
        };
        let plain = codec::encode_as(&frame, self.version).map_err(Reason::Malformed)?;
        let context = Context {
            version: self.version,
            channel: Channel::Tcp,
            from: &self.me,
            to: &self.peer,
        };
        let sealed = self
            .sealer
            .seal(&context, self.mine.nonce(self.next_sent), &plain);
        if self.outgoing().len() + HEADER + sealed.len() > OUTGOING_MAX {
            return Err(Reason::Overflow);
        }
        // Written bytes go when they would make the buffer outgrow its bound.
        if self.outgoing.len() + HEADER + sealed.len() > OUTGOING_MAX {
            self.outgoing.drain(..mem::take(&mut self.written));
        }
        frame::write_sealed(&sealed, &mut self.outgoing);
        self.next_sent += 1;
        self.sent_at = now;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::{
        Instance, Number,
        wire::{frame::HANDSHAKE_MAX, signal},
    };

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    fn ms(n: u64) -> BootTime {
        BootTime(0) + Duration::from_millis(n)
    }

    fn sealer(key: u8) -> Arc<Sealer> {
        Arc::new(Sealer::new(&[[key; 32]], "web"))
    }

    fn timing() -> Timing {
        Timing::new(Duration::from_millis(100), Duration::from_millis(500))
    }

    fn dial(challenge: u8) -> Session {
        let challenge = Challenge([challenge; 16]);
        Session::dial(
            sealer(1),
            (name("alpha"), name("beta")),
            *version::WIRE.end(),
            timing(),
            challenge,
            ms(0),
        )
    }

    fn accept(challenge: u8) -> Session {
        let challenge = Challenge([challenge; 16]);
        Session::accept(
            sealer(1),
            name("beta"),
            name("alpha"),
            timing(),
            challenge,
            ms(0),
        )
    }

    fn take(session: &mut Session) -> Vec<u8> {
        let bytes = session.outgoing().to_vec();
        session.sent(bytes.len());
        bytes
    }

    fn feed(session: &mut Session, bytes: &[u8]) -> Result<Vec<Heard>, Reason> {
        let mut heard = Vec::new();
        session.receive(ms(1), bytes, &mut heard).map(|()| heard)
    }

    fn a_signal(number: u64) -> Signal {
        Signal {
            virtual_server: "web".parse().unwrap(),
            instance: Instance(1),
            number: Number(number),
            body: signal::Body::Ready,
        }
    }

    /// An open session, and all that each side sent for it.
    fn open(a: u8, b: u8) -> (Session, Session, Vec<u8>, Vec<u8>) {
        let (mut alpha, mut beta) = (dial(a), accept(b));
        let hello = take(&mut alpha);
        assert!(feed(&mut beta, &hello).unwrap().is_empty());
        let answer = take(&mut beta);
        assert_eq!(feed(&mut alpha, &answer).unwrap(), [Heard::Open]);
        let proof = take(&mut alpha);
        assert_eq!(feed(&mut beta, &proof).unwrap(), [Heard::Open]);
        (alpha, beta, [hello, proof].concat(), answer)
    }

    #[test]
    fn the_accepting_side_is_silent_until_it_hears_an_authentic_hello() {
        let mut beta = accept(2);
        assert!(beta.outgoing().is_empty());
        feed(&mut beta, &frame::preamble(*version::WIRE.end())).unwrap();
        assert!(beta.outgoing().is_empty());
    }

    #[test]
    fn a_session_fed_byte_by_byte_hears_the_same() {
        let (mut alpha, mut beta, ..) = open(1, 2);
        for n in 0..3 {
            alpha.send(ms(2), a_signal(n)).unwrap();
        }
        let mut heard = Vec::new();
        for byte in take(&mut alpha) {
            beta.receive(ms(2), &[byte], &mut heard).unwrap();
        }
        assert_eq!(heard, [0, 1, 2].map(|n| Heard::Signal(a_signal(n))));
    }

    #[test]
    fn a_recorded_session_opens_nothing_on_either_side() {
        let (mut alpha, _, mut dialled, answered) = open(1, 2);
        alpha.send(ms(2), a_signal(7)).unwrap();
        dialled.extend(take(&mut alpha));
        let mut beta = accept(3);
        assert!(matches!(feed(&mut beta, &dialled), Err(Reason::Replay)));
        assert!(!beta.is_open());
        let mut alpha = dial(4);
        assert!(matches!(feed(&mut alpha, &answered), Err(Reason::Replay)));
    }

    #[test]
    fn a_frame_of_another_session_of_the_same_servers_is_a_replay() {
        let (mut other, ..) = open(1, 2);
        let (_, mut beta, ..) = open(3, 4);
        other.send(ms(2), a_signal(7)).unwrap();
        assert!(matches!(
            feed(&mut beta, &take(&mut other)),
            Err(Reason::Replay)
        ));
    }

    #[test]
    fn an_own_frame_sent_back_does_not_open() {
        let (mut alpha, ..) = open(1, 2);
        alpha.send(ms(2), a_signal(7)).unwrap();
        let own = take(&mut alpha);
        assert!(matches!(feed(&mut alpha, &own), Err(Reason::Seal(_))));
    }

    #[test]
    fn repeated_left_out_and_swapped_frames_are_refused() {
        for order in [&[0, 0][..], &[1], &[1, 0]] {
            let (mut alpha, mut beta, ..) = open(1, 2);
            let frames: Vec<Vec<u8>> = (0..2)
                .map(|n| {
                    alpha.send(ms(2), a_signal(n)).unwrap();
                    take(&mut alpha)
                })
                .collect();
            let bytes: Vec<u8> = order.iter().flat_map(|i| frames[*i].clone()).collect();
            assert!(
                matches!(feed(&mut beta, &bytes), Err(Reason::Order { .. })),
                "{order:?}"
            );
        }
    }

    #[test]
    fn a_wrong_key_does_not_open() {
        let mut alpha = dial(1);
        let challenge = Challenge([2; 16]);
        let mut beta = Session::accept(
            sealer(9),
            name("beta"),
            name("alpha"),
            timing(),
            challenge,
            ms(0),
        );
        assert!(matches!(
            feed(&mut beta, &take(&mut alpha)),
            Err(Reason::Seal(_))
        ));
    }

    #[test]
    fn another_version_is_answered_in_words() {
        let mut beta = accept(2);
        let bytes = *b"standin\x07";
        assert!(matches!(feed(&mut beta, &bytes), Err(Reason::Version(7))));
        let answer = take(&mut beta);
        assert!(answer.starts_with(&frame::preamble(*version::WIRE.end())));
        assert!(String::from_utf8_lossy(&answer).contains("speaks versions 1 to 2, you version 7"));
        let mut alpha = dial(1);
        assert!(matches!(feed(&mut alpha, &answer), Err(Reason::Refused(_))));
        assert!(matches!(
            feed(&mut accept(2), b"GET / HTTP/1.1\r\n"),
            Err(Reason::Preamble)
        ));
    }

    #[test]
    fn who_dials_in_an_older_version_is_answered_in_it() {
        let old = |key| {
            let ends = (name("alpha"), name("beta"));
            Session::dial(sealer(key), ends, 1, timing(), Challenge([1; 16]), ms(0))
        };
        let (mut alpha, mut beta) = (old(1), accept(2));
        feed(&mut beta, &take(&mut alpha)).unwrap();
        let answer = take(&mut beta);
        assert!(answer.starts_with(b"standin\x01"));
        assert_eq!(feed(&mut alpha, &answer).unwrap(), [Heard::Open]);
        assert_eq!(feed(&mut beta, &take(&mut alpha)).unwrap(), [Heard::Open]);
        let (mut alpha, mut beta) = (old(9), accept(2));
        assert!(feed(&mut beta, &take(&mut alpha)).is_err());
        let refusal = feed(&mut alpha, &take(&mut beta));
        assert!(matches!(refusal, Err(Reason::Refused(_))), "{refusal:?}");
    }

    #[test]
    fn the_version_asked_for_is_bound_into_the_seal() {
        let mut hello = take(&mut dial(1));
        hello[frame::MAGIC.len()] = 1;
        assert!(matches!(feed(&mut accept(2), &hello), Err(Reason::Seal(_))));
    }

    #[test]
    fn a_cut_frame_is_waited_for_and_a_changed_one_refused() {
        let hello = take(&mut dial(1));
        for cut in 0..hello.len() {
            let mut beta = accept(2);
            assert!(feed(&mut beta, &hello[..cut]).unwrap().is_empty());
            assert!(beta.outgoing().is_empty());
        }
        for place in 0..hello.len() {
            let mut bad = hello.clone();
            bad[place] ^= 1;
            let mut beta = accept(2);
            assert!(
                feed(&mut beta, &bad).is_err() || beta.outgoing().is_empty(),
                "byte {place}"
            );
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_kept() {
        let stranger = |length: u16| {
            let mut bytes = frame::preamble(*version::WIRE.end()).to_vec();
            bytes.push(b'S');
            bytes.extend(length.to_be_bytes());
            let mut beta = accept(2);
            let refused = matches!(feed(&mut beta, &bytes), Err(Reason::Length(_)));
            assert!(beta.incoming.capacity() <= HEADER + HANDSHAKE_MAX);
            refused
        };
        assert!(stranger(u16::MAX) && stranger(HANDSHAKE_MAX as u16 + 1) && stranger(0));
        assert!(!stranger(HANDSHAKE_MAX as u16));
        let (_, mut beta, ..) = open(1, 2);
        let too_long = (frame::SEALED_MAX as u16 + 1).to_be_bytes();
        assert!(matches!(
            feed(&mut beta, &[b'S', too_long[0], too_long[1]]),
            Err(Reason::Length(_))
        ));
    }

    #[test]
    fn a_slow_feeder_is_timed_out_before_and_after_the_handshake() {
        let hello = take(&mut dial(1));
        let mut beta = accept(2);
        for (n, byte) in hello[..20].iter().enumerate() {
            beta.receive(ms(40 * n as u64), &[*byte], &mut Vec::new())
                .unwrap();
        }
        assert_eq!(beta.poll_timeout(), ms(1000));
        assert!(beta.handle_timeout(ms(999)).is_ok());
        assert!(matches!(
            beta.handle_timeout(ms(1000)),
            Err(Reason::HandshakeTimeout)
        ));

        let (mut alpha, mut beta, ..) = open(1, 2);
        alpha.send(ms(2), a_signal(1)).unwrap();
        for (n, byte) in take(&mut alpha).iter().take(20).enumerate() {
            beta.receive(ms(2 + 40 * n as u64), &[*byte], &mut Vec::new())
                .unwrap();
        }
        assert!(
            matches!(beta.handle_timeout(ms(801)), Err(Reason::Silence)),
            "half a frame is not a word"
        );
    }

    #[test]
    fn patience_follows_the_slower_of_both_but_not_without_end() {
        let (fast, slow) = (
            Timing::new(ms(5).since(ms(0)), ms(25).since(ms(0))),
            timing(),
        );
        assert_eq!(fast.ping, Duration::from_millis(100));
        assert_eq!(fast.silence(fast.ping), Duration::from_millis(200));
        assert_eq!(fast.silence(slow.ping), Duration::from_millis(800));
        assert_eq!(fast.silence(Duration::MAX), PING_MAX * 2);
        assert_eq!((fast.handshake, fast.connect), (HANDSHAKE_MIN, CONNECT_MIN));
    }

    fn a_long_signal(length: usize) -> Signal {
        Signal {
            body: signal::Body::NotReady {
                why: "x".repeat(length),
            },
            ..a_signal(1)
        }
    }

    #[test]
    fn an_open_session_hears_signals_as_long_as_a_frame() {
        let (mut alpha, mut beta, ..) = open(1, 2);
        assert!(alpha.is_open() && beta.is_open());
        assert!(alpha.send(ms(2), a_long_signal(50_000)).unwrap());
        let heard = feed(&mut beta, &take(&mut alpha)).unwrap();
        assert_eq!(heard, [Heard::Signal(a_long_signal(50_000))]);
    }

    #[test]
    fn what_was_written_in_part_goes_on_where_it_stopped() {
        let (mut alpha, mut beta, ..) = open(1, 2);
        let mut heard = Vec::new();
        for n in 0..20 {
            alpha.send(ms(2), a_signal(n)).unwrap();
            let part = alpha.outgoing()[..7].to_vec();
            alpha.sent(part.len());
            beta.receive(ms(2), &part, &mut heard).unwrap();
        }
        beta.receive(ms(2), &take(&mut alpha), &mut heard).unwrap();
        assert_eq!(heard.len(), 20);
        assert!(alpha.outgoing().is_empty() && alpha.outgoing.is_empty());
    }

    #[test]
    fn the_buffer_is_filled_to_its_bound_and_what_was_written_makes_room() {
        let (mut alpha, ..) = open(1, 2);
        alpha.send(ms(2), a_long_signal(50_000)).unwrap();
        let overhead = alpha.outgoing().len() - 50_000;
        for _ in 0..4 {
            alpha.send(ms(2), a_long_signal(50_000)).unwrap();
        }
        let left = OUTGOING_MAX - alpha.outgoing().len() - overhead;
        assert!(alpha.send(ms(2), a_long_signal(left)).unwrap());
        assert_eq!(alpha.outgoing().len(), OUTGOING_MAX);
        alpha.sent(50_000 + overhead);
        let rest = alpha.outgoing().to_vec();
        assert!(alpha.send(ms(3), a_long_signal(50_000)).unwrap());
        assert!(alpha.outgoing().starts_with(&rest));
        assert_eq!(alpha.outgoing.len(), OUTGOING_MAX, "and no more is kept");
        let one_more = alpha.send(ms(3), a_signal(1));
        assert!(matches!(one_more, Err(Reason::Overflow)));
    }

    #[test]
    fn the_dialling_side_pings_a_little_sooner_and_neither_before_it_is_time() {
        let (mut alpha, mut beta, ..) = open(1, 2);
        assert_eq!(
            (alpha.poll_timeout(), beta.poll_timeout()),
            (ms(351), ms(401))
        );
        for (session, due) in [(&mut alpha, 301), (&mut beta, 351)] {
            session.handle_timeout(ms(due - 1)).unwrap();
            assert!(session.outgoing().is_empty());
            session.handle_timeout(ms(due)).unwrap();
            assert!(!session.outgoing().is_empty());
        }
    }

    #[test]
    fn only_a_caller_that_cannot_be_understood_is_answered_in_clear() {
        let mut alpha = dial(1);
        let hello = take(&mut alpha);
        let version = feed(&mut alpha, b"standin\x07");
        assert!(matches!(version, Err(Reason::Version(7))));
        assert!(alpha.outgoing().is_empty(), "who dials does not refuse");
        let mut beta = accept(2);
        feed(&mut beta, &hello).unwrap();
        assert!(beta.is_greeted());
        take(&mut beta);
        let sealed = [&[b'S', 0, OVERHEAD as u8][..], &[0; OVERHEAD]].concat();
        assert!(matches!(feed(&mut beta, &sealed), Err(Reason::Seal(_))));
        assert!(
            beta.outgoing().is_empty(),
            "nor once a hello was understood"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_nor_outgrow_the_buffer(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..8),
            side in 0..4,
        ) {
            let mut session = match side {
                0 => dial(1),
                1 => accept(2),
                2 => open(1, 2).0,
                _ => open(1, 2).1,
            };
            // Half of the strangers know how to begin.
            let mut bytes = if side == 1 { frame::preamble(*version::WIRE.end()).to_vec() } else { b"S".to_vec() };
            let allowed = if session.is_open() { frame::SEALED_MAX } else { HANDSHAKE_MAX };
            for piece in pieces {
                bytes.extend(piece);
                if feed(&mut session, &bytes).is_err() {
                    break;
                }
                prop_assert!(session.incoming.len() <= HEADER + allowed);
                bytes.clear();
            }
            prop_assert!(session.outgoing.len() <= OUTGOING_MAX);
        }

        #[test]
        fn changed_bytes_of_a_true_session_are_never_heard_as_signals(place in 0usize..400, bit in 0u8..8) {
            let (mut alpha, mut beta, ..) = open(1, 2);
            for n in 0..3 {
                alpha.send(ms(2), a_signal(n)).unwrap();
            }
            let mut bytes = take(&mut alpha);
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            let mut heard = Vec::new();
            beta.receive(ms(2), &bytes, &mut heard).ok();
            let expected: Vec<_> = (0..3).map(|n| Heard::Signal(a_signal(n))).collect();
            prop_assert!(heard.len() < 3 && expected.starts_with(&heard));
        }
    }
}
