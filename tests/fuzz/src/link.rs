//! The core of listend: connections from anywhere, cut and damaged streams, authentic frames of any contents, and
//! honest sessions in between.

use crate::{
    messages::{self, HEARTBEAT, LEASE, Near, SERVERS, name},
    meter,
};
use ::link::{ConnId, Links, OUTGOING_MAX, Output, PENDING_MAX, Peer, Reason, Session, Timing};
use arbitrary::{Result, Unstructured};
use protocol::{
    BootTime, ServerName,
    codec::encode,
    seal::{Channel, Context, Sealer},
    wire::frame::{self, Body, Challenge, Frame},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const ME: &str = SERVERS[1];

/// What a run may have at any time: two tables, and the other ends of their connections.
const RUN_MAX: usize = 16 << 20;

/// What a connection that has proved nothing may cost when bytes arrive: they are kept up to the end of a
/// handshake frame, which is opened and answered.
const STRANGER_MAX: usize = 16 * frame::HANDSHAKE_MAX;

/// Most connections at a time: those that others make, from two addresses each, and one to each peer for the links
/// that this side dials or is knocking with.
const CONNECTIONS_MAX: usize = 2 * 2 * (2 * PENDING_MAX + 1) + 4;

/// Plays the events in `bytes`.
pub fn run(bytes: &[u8]) {
    let _ = meter::within(RUN_MAX, || play(&mut Unstructured::new(bytes)));
}

fn address(server: usize, path: u8) -> std::net::IpAddr {
    [192, 0, 2, 1 + 10 * u8::try_from(server).unwrap_or(9) + path].into()
}

fn peers(count: usize) -> Result<Vec<Peer>> {
    let peer = |server| {
        let name = name(SERVERS[server])?;
        Ok(Peer {
            name,
            addresses: vec![address(server, 0), address(server, 1)],
        })
    };
    [0, 2].into_iter().take(count).map(peer).collect()
}

fn sealer() -> Sealer {
    Sealer::new(&[[1; 32]], "web")
}

/// Two tables that are told the same, and what is at the other ends.
struct Host {
    twins: [Links; 2],
    now: BootTime,
    /// Every connection: to whom, and an honest session at its other end.
    conns: BTreeMap<ConnId, (ServerName, Session)>,
    connecting: BTreeSet<ConnId>,
    salt: u8,
    past: Vec<u8>,
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let now = BootTime(1_000_000_000_000);
    let twin = || Ok(Links::new(name(ME)?, peers(2)?, sealer(), timing(), 1, now));
    let mut host = Host {
        twins: [twin()?, twin()?],
        now,
        conns: BTreeMap::new(),
        connecting: BTreeSet::new(),
        salt: 0,
        past: Vec::new(),
    };
    host.each(|t, now| t.knock(now))?;
    while !u.is_empty() {
        host.event(u)?;
    }
    let [one, other] = host
        .twins
        .map(|t| format!("{:?}", t.links().collect::<Vec<_>>()));
    assert_eq!(one, other);
    Ok(())
}

fn timing() -> Timing {
    Timing::new(HEARTBEAT, LEASE)
}

impl Host {
    fn event(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.now = self.now + messages::step(u)?;
        match u.int_in_range(0..=15u8)? {
            0..=1 => self.accept(u.int_in_range(0..=3)?, u.int_in_range(0..=1)?)?,
            2 => self.connected(u)?,
            3..=6 => self.carry(u)?,
            7 => self.frame(u)?,
            8..=9 => {
                let length = u.int_in_range(0..=300)?;
                let bytes = u.bytes(length.min(u.len()))?.to_vec();
                self.hostile(u, &bytes)?;
            }
            10 => {
                let past = self.past.clone();
                self.hostile(u, &past)?;
            }
            11..=12 => {
                let (to, signal) = (messages::server(u)?, Near::default().signal(u)?);
                self.each(|t, now| {
                    t.send(now, &to, signal.clone());
                })?;
            }
            13 => {
                if let Some((conn, _)) = self.any(u)? {
                    self.each(|t, now| t.closed(now, conn, Reason::Closed))?;
                }
            }
            14 => {
                let due = self.twins[0].poll_timeout();
                self.now = self.now.max(due.unwrap_or(self.now));
            }
            _ if u.int_in_range(0..=7u8)? == 7 => {
                let count = u.int_in_range(0..=2)?;
                let peers = peers(count)?;
                self.each(|t, now| t.reload(peers.clone(), sealer(), timing(), now))?;
            }
            _ => {}
        }
        self.settle()
    }

    /// Tells both tables the same and does what they want.
    fn each(&mut self, mut tell: impl FnMut(&mut Links, BootTime)) -> Result<()> {
        for twin in &mut self.twins {
            tell(twin, self.now);
        }
        self.carry_out()
    }

    fn challenge(&mut self) -> Challenge {
        self.salt = self.salt.wrapping_add(1);
        Challenge([self.salt; 16])
    }

    /// One of the connections and whether it may be a stranger's.
    fn any(&mut self, u: &mut Unstructured<'_>) -> Result<Option<(ConnId, bool)>> {
        let Some(last) = self.conns.len().checked_sub(1) else {
            return Ok(None);
        };
        let at = u.int_in_range(0..=last)?;
        let found = self.conns.iter().nth(at);
        Ok(found.map(|(conn, (_, other))| (*conn, !other.is_open())))
    }

    /// Somebody connects.
    fn accept(&mut self, server: usize, path: u8) -> Result<()> {
        let (mine, theirs) = (self.challenge(), self.challenge());
        let source = address(server, path);
        let before = links(&self.twins[0]);
        let answers = self
            .twins
            .each_mut()
            .map(|t| t.accepted(self.now, source, mine));
        assert_eq!(answers[0], answers[1]);
        if server == 0
            && let Ok(conn) = answers[0]
        {
            let me = name(ME)?;
            let peer: ServerName = name(SERVERS[server])?;
            let sealer = Arc::new(sealer());
            let version = if theirs.0[0] % 2 == 0 { 1 } else { 2 };
            let other = Session::dial(
                sealer,
                (peer.clone(), me),
                version,
                timing(),
                theirs,
                self.now,
            );
            self.conns.insert(conn, (peer, other));
        } else {
            assert!(
                answers[0].is_err(),
                "a stranger, or one that is to be dialled, was let in"
            );
            assert_eq!(before, links(&self.twins[0]));
        }
        self.carry_out()
    }

    /// One of the connections that the table wanted is there, or cannot be made.
    fn connected(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(last) = self.connecting.len().checked_sub(1) else {
            return Ok(());
        };
        let at = u.int_in_range(0..=last)?;
        let conn = self.connecting.iter().nth(at).copied();
        let conn = conn.ok_or(arbitrary::Error::IncorrectFormat)?;
        let mine = self.challenge();
        if u.int_in_range(0..=3u8)? == 3 {
            self.each(|t, now| t.closed(now, conn, Reason::Connect("refused".into())))
        } else {
            self.connecting.remove(&conn);
            self.each(|t, now| t.connected(now, conn, mine))
        }
    }

    /// What the honest other end of a connection has to say arrives, whole or in part, and what it is told.
    fn carry(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((conn, _)) = self.any(u)? else {
            return Ok(());
        };
        let ours = self.twins[0].outgoing(conn).to_vec();
        self.each(|t, _| t.sent(conn, ours.len()))?;
        let part: u8 = u.arbitrary()?;
        let speaks = u.arbitrary()?;
        let signal = if speaks {
            Some(Near::default().signal(u)?)
        } else {
            None
        };
        let Some((_, other)) = self.conns.get_mut(&conn) else {
            return Ok(());
        };
        if other.receive(self.now, &ours, &mut Vec::new()).is_err() {
            return self.each(|t, now| t.closed(now, conn, Reason::Closed));
        }
        if let Some(signal) = signal {
            let _ = other.send(self.now, signal);
        }
        let theirs = other.outgoing();
        let length = if part < 192 {
            theirs.len()
        } else {
            theirs.len() * usize::from(part) / 256
        };
        let theirs = theirs[..length].to_vec();
        other.sent(length);
        self.past.clone_from(&theirs);
        self.each(|t, now| t.received(now, conn, &theirs))
    }

    /// An authentic frame with any contents, in its place or not.
    fn frame(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let body = match u.int_in_range(0..=2u8)? {
            0 => Body::Hello {
                ping: messages::span(u)?,
            },
            1 => Body::Ping,
            _ => Body::Signal(Near::default().signal(u)?),
        };
        let challenge = |u: &mut Unstructured<'_>| Ok(Challenge([u.int_in_range(0..=40)?; 16]));
        let frame = Frame {
            sender: challenge(u)?,
            receiver: if u.arbitrary()? {
                Some(challenge(u)?)
            } else {
                None
            },
            sequence: messages::number_near(u, 0)?,
            body,
        };
        let (from, to): (ServerName, ServerName) = (name(SERVERS[0])?, name(ME)?);
        let context = Context {
            version: 2,
            channel: Channel::Tcp,
            from: &from,
            to: &to,
        };
        let nonce = self.challenge().nonce(frame.sequence);
        let sealed = sealer().seal(&context, nonce, &encode(&frame).unwrap_or_default());
        let mut bytes = if u.arbitrary()? {
            frame::preamble(2).to_vec()
        } else {
            Vec::new()
        };
        if sealed.len() <= frame::SEALED_MAX {
            frame::write_sealed(&sealed, &mut bytes);
        }
        self.hostile(u, &bytes)
    }

    /// Bytes that no honest session has sent.
    fn hostile(&mut self, u: &mut Unstructured<'_>, bytes: &[u8]) -> Result<()> {
        let Some((conn, stranger)) = self.any(u)? else {
            return Ok(());
        };
        let now = self.now;
        let mut most = 0;
        for twin in &mut self.twins {
            most = meter::peak(|| twin.received(now, conn, bytes)).1;
        }
        // The other end has proved itself before this one knows it: then frames may be long.
        if stranger {
            assert!(most <= STRANGER_MAX, "{most} bytes for a stranger");
        }
        self.carry_out()
    }

    /// What is due is done at once, and then nothing is.
    fn settle(&mut self) -> Result<()> {
        if self.twins[0]
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            self.each(|t, now| t.handle_timeout(now))?;
        }
        let due = self.twins[0].poll_timeout();
        assert_eq!(due, self.twins[1].poll_timeout());
        assert!(due.is_none_or(|at| at > self.now), "{:?}", self.twins[0]);
        assert!(
            self.conns.len() <= CONNECTIONS_MAX,
            "{} connections",
            self.conns.len()
        );
        for conn in self.conns.keys() {
            assert!(self.twins[0].outgoing(*conn).len() <= OUTGOING_MAX);
        }
        Ok(())
    }

    fn carry_out(&mut self) -> Result<()> {
        let [one, other] = self
            .twins
            .each_mut()
            .map(|t| std::iter::from_fn(|| t.poll_output()).collect::<Vec<_>>());
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
        for output in one {
            match output {
                Output::Dial { conn, peer, path } => {
                    assert!(path < 2);
                    let theirs = self.challenge();
                    let (me, sealer) = (name(ME)?, Arc::new(sealer()));
                    let other =
                        Session::accept(sealer, peer.clone(), me, timing(), theirs, self.now);
                    self.conns.insert(conn, (peer, other));
                    self.connecting.insert(conn);
                }
                Output::Close {
                    conn, last_words, ..
                } => {
                    assert!(last_words.len() <= OUTGOING_MAX);
                    assert!(self.conns.remove(&conn).is_some(), "closed twice");
                    self.connecting.remove(&conn);
                }
                Output::Write(_) | Output::Signal { .. } | Output::Link { .. } => {}
            }
        }
        Ok(())
    }
}

fn links(links: &Links) -> Vec<(ServerName, bool)> {
    links.links().map(|(name, up)| (name.clone(), up)).collect()
}
