//! The table of all connections: whom to dial, whom to let in, which session speaks for a peer.

use crate::{
    dial::Dialer,
    reason::Reason,
    session::{Heard, Session, Timing},
};
use protocol::{
    BootTime, ServerName,
    seal::Sealer,
    version,
    wire::{frame::Challenge, signal::Signal},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// Most connections per listed address that have not proved themselves, and so many again that have said an
/// authentic hello, which may be a recorded one; one more replaces the oldest of its kind.
pub const PENDING_MAX: usize = 8;

/// Names a connection in the shell; never used twice.
pub type ConnId = usize;

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: ServerName,
    /// Its addresses: each is a path to it, and only from them it may connect.
    pub addresses: Vec<IpAddr>,
}

/// Why a connection is closed before a byte of it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwanted {
    /// No server in the configuration has its source address.
    Unlisted,
    /// It comes from this server, whose name is greater: this side dials, and soon, for it may have knocked
    /// ([`Links::knock`]).
    WrongDirection(ServerName),
}

impl Unwanted {
    /// Name of the counter for this reason.
    pub fn counter(&self) -> &'static str {
        match self {
            Self::Unlisted => "refused_unlisted",
            Self::WrongDirection(_) => "refused_direction",
        }
    }
}

impl fmt::Display for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlisted => f.write_str("no server in the configuration has this address"),
            Self::WrongDirection(peer) => {
                write!(f, "{peer} dials, but this server's name is the lesser")
            }
        }
    }
}

/// What the shell does, in order.
#[derive(Debug)]
pub enum Output {
    /// Open a TCP connection to a path of a peer; then [`Links::connected`] or [`Links::closed`].
    Dial {
        /// Its name from now on.
        conn: ConnId,
        /// To whom.
        peer: ServerName,
        /// Which of the peer's addresses.
        path: usize,
    },
    /// Write [`Links::outgoing`] of this connection.
    Write(ConnId),
    /// Close this connection; it is forgotten here.
    Close {
        /// Which.
        conn: ConnId,
        /// Whose it was, or claimed to be.
        peer: ServerName,
        /// It was the open session of the peer.
        was_open: bool,
        /// Why.
        reason: Reason,
        /// Write these first, if that is possible at once.
        last_words: Vec<u8>,
    },
    /// A signal arrived.
    Signal {
        /// From whom.
        from: ServerName,
        /// What it says.
        signal: Signal,
    },
    /// Signals can, or can no longer, be sent to this server.
    Link {
        /// Which server.
        server: ServerName,
        /// They can.
        up: bool,
    },
}

#[derive(Debug)]
struct PeerState {
    /// Only towards peers that this side dials.
    dialer: Option<Dialer>,
    /// What it is asked to speak next.
    version: u8,
    /// The open session that speaks for the peer.
    current: Option<ConnId>,
}

#[derive(Debug)]
struct Conn {
    peer: ServerName,
    /// Where an accepted connection comes from.
    source: Option<IpAddr>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// TCP is connecting, until this deadline.
    Connecting(BootTime),
    Session(Box<Session>),
}

impl Conn {
    fn is_open(&self) -> bool {
        matches!(&self.stage, Stage::Session(s) if s.is_open())
    }

    fn is_greeted(&self) -> bool {
        matches!(&self.stage, Stage::Session(s) if s.is_greeted())
    }

    fn poll_timeout(&self) -> BootTime {
        match &self.stage {
            Stage::Connecting(deadline) => *deadline,
            Stage::Session(session) => session.poll_timeout(),
        }
    }
}

/// All connections of one server.
#[derive(Debug)]
pub struct Links {
    me: ServerName,
    sealer: Arc<Sealer>,
    timing: Timing,
    peers: BTreeMap<ServerName, PeerState>,
    by_address: HashMap<IpAddr, ServerName>,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: ConnId,
    outputs: VecDeque<Output>,
    counters: BTreeMap<&'static str, u64>,
}

impl Links {
    /// For the server `me`. Connections are numbered from `first_conn`.
    pub fn new(
        me: ServerName,
        peers: Vec<Peer>,
        sealer: Sealer,
        timing: Timing,
        first_conn: ConnId,
        now: BootTime,
    ) -> Self {
        let mut links = Self {
            me,
            sealer: Arc::new(sealer),
            timing,
            peers: BTreeMap::new(),
            by_address: HashMap::new(),
            conns: BTreeMap::new(),
            next_conn: first_conn,
            outputs: VecDeque::new(),
            counters: BTreeMap::new(),
        };
        links.set_peers(peers, now);
        links
    }

    /// This server is back: tells those who dial it, and may be waiting out a long back-off, by a connection over
    /// each path, which they turn away unread.
    pub fn knock(&mut self, now: BootTime) {
        for peer in self.peers.keys().cloned().collect::<Vec<_>>() {
            if peer < self.me {
                let paths = self.by_address.values().filter(|p| **p == peer).count();
                (0..paths).for_each(|path| self.connect(now, peer.clone(), path));
            }
        }
    }

    /// The configuration or the keys were read again: every connection is closed and made anew.
    pub fn reload(&mut self, peers: Vec<Peer>, sealer: Sealer, timing: Timing, now: BootTime) {
        for conn in self.conns.keys().copied().collect::<Vec<_>>() {
            self.close(now, conn, Reason::Reload);
        }
        (self.sealer, self.timing) = (Arc::new(sealer), timing);
        self.set_peers(peers, now);
    }

    fn set_peers(&mut self, peers: Vec<Peer>, now: BootTime) {
        (self.peers, self.by_address) = (BTreeMap::new(), HashMap::new());
        for Peer { name, addresses } in peers {
            let dialer = (self.me < name).then(|| Dialer::new(addresses.len(), now));
            self.by_address.extend(
                addresses
                    .into_iter()
                    .map(|ip| (ip.to_canonical(), name.clone())),
            );
            self.peers.insert(
                name,
                PeerState {
                    dialer,
                    version: *version::WIRE.end(),
                    current: None,
                },
            );
        }
    }

    /// Someone connected from `source`. `challenge` is random and never used again.
    pub fn accepted(
        &mut self,
        now: BootTime,
        source: IpAddr,
        challenge: Challenge,
    ) -> Result<ConnId, Unwanted> {
        let source = source.to_canonical();
        let peer = self.wanted(source).inspect_err(|unwanted| {
            count(&mut self.counters, unwanted.counter());
            if let Unwanted::WrongDirection(peer) = unwanted
                && let Some(dialer) = self.peers.get_mut(peer).and_then(|p| p.dialer.as_mut())
            {
                dialer.urge(now);
            }
        })?;
        count(&mut self.counters, "accepted");
        for greeted in [false, true] {
            let pending =
                |c: &Conn| c.source == Some(source) && !c.is_open() && c.is_greeted() == greeted;
            let mut pending = self.conns.iter().filter(|(_, c)| pending(c));
            let oldest = pending.next().map(|(id, _)| *id);
            if let Some(oldest) = oldest.filter(|_| pending.count() + 1 >= PENDING_MAX) {
                self.close(now, oldest, Reason::Replaced);
            }
        }
        let (sealer, me) = (self.sealer.clone(), self.me.clone());
        let session = Session::accept(sealer, me, peer.clone(), self.timing, challenge, now);
        let stage = Stage::Session(Box::new(session));
        Ok(self.insert(Conn {
            peer,
            source: Some(source),
            stage,
        }))
    }

    /// The TCP connection that [`Output::Dial`] asked for is made.
    pub fn connected(&mut self, now: BootTime, conn: ConnId, challenge: Challenge) {
        let Some(entry) = self.conns.get_mut(&conn) else {
            return;
        };
        if let Stage::Connecting(_) = entry.stage {
            if self.me > entry.peer {
                return self.close(now, conn, Reason::Knocked);
            }
            let version = (self.peers.get(&entry.peer)).map_or(version::FIRST, |p| p.version);
            let (sealer, ends) = (self.sealer.clone(), (self.me.clone(), entry.peer.clone()));
            let session = Session::dial(sealer, ends, version, self.timing, challenge, now);
            entry.stage = Stage::Session(Box::new(session));
            self.outputs.push_back(Output::Write(conn));
        }
    }

    /// Bytes arrived.
    pub fn received(&mut self, now: BootTime, conn: ConnId, bytes: &[u8]) {
        let Some(Conn {
            peer,
            stage: Stage::Session(session),
            ..
        }) = self.conns.get_mut(&conn)
        else {
            return;
        };
        let (peer, was_waiting) = (peer.clone(), session.outgoing().len());
        let mut heard = Vec::new();
        let result = session.receive(now, bytes, &mut heard);
        let must_write = session.outgoing().len() > was_waiting;
        for item in heard {
            match item {
                Heard::Open => self.opened(now, &peer, conn),
                Heard::Signal(signal) => {
                    count(&mut self.counters, "signals_received");
                    self.outputs.push_back(Output::Signal {
                        from: peer.clone(),
                        signal,
                    });
                }
            }
        }
        match result {
            Err(reason) => self.close(now, conn, reason),
            Ok(()) if must_write => self.outputs.push_back(Output::Write(conn)),
            Ok(()) => {}
        }
    }

    /// The connection failed or was closed, `reason` says by whom. Also for one that could not be dialled.
    pub fn closed(&mut self, now: BootTime, conn: ConnId, reason: Reason) {
        self.close(now, conn, reason);
    }

    /// Sends a signal, or drops and counts it: `false`.
    pub fn send(&mut self, now: BootTime, to: &ServerName, signal: Signal) -> bool {
        let Some(peer) = self.peers.get_mut(to) else {
            count(&mut self.counters, "dropped_unknown_peer");
            return false;
        };
        let Some(conn) = peer.current else {
            if let Some(dialer) = &mut peer.dialer {
                dialer.urge(now);
            }
            count(&mut self.counters, "dropped_no_link");
            return false;
        };
        let Some(Conn {
            stage: Stage::Session(session),
            ..
        }) = self.conns.get_mut(&conn)
        else {
            return false;
        };
        match session.send(now, signal) {
            Ok(true) => {
                count(&mut self.counters, "signals_sent");
                self.outputs.push_back(Output::Write(conn));
                true
            }
            Ok(false) => {
                count(&mut self.counters, "dropped_too_long");
                false
            }
            Err(reason) => {
                self.close(now, conn, reason);
                false
            }
        }
    }

    /// Bytes to write on a connection; empty if there are none or it is closed.
    pub fn outgoing(&self, conn: ConnId) -> &[u8] {
        match self.conns.get(&conn) {
            Some(Conn {
                stage: Stage::Session(session),
                ..
            }) => session.outgoing(),
            _ => &[],
        }
    }

    /// So many of them were written.
    pub fn sent(&mut self, conn: ConnId, bytes: usize) {
        if let Some(Conn {
            stage: Stage::Session(session),
            ..
        }) = self.conns.get_mut(&conn)
        {
            session.sent(bytes);
        }
    }

    /// The TCP connection is still being made.
    pub fn is_connecting(&self, conn: ConnId) -> bool {
        matches!(
            self.conns.get(&conn),
            Some(Conn {
                stage: Stage::Connecting(_),
                ..
            })
        )
    }

    /// Next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Links::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let dials = self.peers.values().filter_map(|p| p.dialer.as_ref()?.due());
        self.conns
            .values()
            .map(Conn::poll_timeout)
            .chain(dials)
            .min()
    }

    /// Dials, pings and gives up where it is time to.
    pub fn handle_timeout(&mut self, now: BootTime) {
        let due = |c: &Conn| c.poll_timeout() <= now;
        // Whoever pings one pings all, or they wake up each at its own time.
        let pings = self.conns.values().any(|c| c.is_open() && due(c));
        let due = |(_, c): &(&ConnId, &Conn)| due(c) || (pings && c.is_open());
        let due: Vec<ConnId> = self.conns.iter().filter(due).map(|(id, _)| *id).collect();
        for conn in due {
            match self.conns.get_mut(&conn).map(|c| &mut c.stage) {
                Some(Stage::Connecting(_)) => self.close(now, conn, Reason::ConnectTimeout),
                Some(Stage::Session(session)) => match session.handle_timeout(now) {
                    Ok(()) => self.outputs.push_back(Output::Write(conn)),
                    Err(reason) => self.close(now, conn, reason),
                },
                None => {}
            }
        }
        self.dial(now);
    }

    /// Every peer, and whether its link is up.
    pub fn links(&self) -> impl Iterator<Item = (&ServerName, bool)> {
        self.peers
            .iter()
            .map(|(name, peer)| (name, peer.current.is_some()))
    }

    /// Everything counted.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters.iter().map(|(name, n)| (*name, *n))
    }

    fn wanted(&self, source: IpAddr) -> Result<ServerName, Unwanted> {
        let peer = self.by_address.get(&source).ok_or(Unwanted::Unlisted)?;
        if self.me < *peer {
            Err(Unwanted::WrongDirection(peer.clone()))
        } else {
            Ok(peer.clone())
        }
    }

    fn insert(&mut self, conn: Conn) -> ConnId {
        let id = self.next_conn;
        self.next_conn += 1;
        self.conns.insert(id, conn);
        id
    }

    fn dial(&mut self, now: BootTime) {
        let mut dials = Vec::new();
        for (name, peer) in &mut self.peers {
            if let Some(dialer) = peer
                .dialer
                .as_mut()
                .filter(|d| d.due().is_some_and(|due| due <= now))
            {
                dials.push((name.clone(), dialer.start(now)));
            }
        }
        for (peer, path) in dials {
            count(&mut self.counters, "dialled");
            self.connect(now, peer, path);
        }
    }

    fn connect(&mut self, now: BootTime, peer: ServerName, path: usize) {
        let stage = Stage::Connecting(now + self.timing.connect);
        let conn = self.insert(Conn {
            peer: peer.clone(),
            source: None,
            stage,
        });
        self.outputs.push_back(Output::Dial { conn, peer, path });
    }

    /// The peer proved itself on this connection: from now on it speaks for the peer.
    fn opened(&mut self, now: BootTime, name: &ServerName, conn: ConnId) {
        count(&mut self.counters, "opened");
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let older = peer.current.replace(conn);
        if let Some(dialer) = &mut peer.dialer {
            dialer.succeeded();
        }
        if let Some(older) = older {
            self.close(now, older, Reason::Replaced);
        }
        self.outputs.push_back(Output::Link {
            server: name.clone(),
            up: true,
        });
    }

    fn close(&mut self, now: BootTime, conn: ConnId, reason: Reason) {
        let Some(entry) = self.conns.remove(&conn) else {
            return;
        };
        count(&mut self.counters, reason.counter());
        let was_open = entry.is_open();
        let Conn {
            peer: name,
            source,
            stage,
        } = entry;
        let last_words = match stage {
            Stage::Session(session) if !was_open => session.outgoing().to_vec(),
            _ => Vec::new(),
        };
        let mut went_down = false;
        if let Some(peer) = self.peers.get_mut(&name) {
            went_down = peer.current == Some(conn);
            if went_down {
                peer.current = None;
            }
            if let (Some(dialer), None) = (&mut peer.dialer, source) {
                peer.version = match reason {
                    Reason::Older(theirs) => theirs,
                    _ => *version::WIRE.end(), // it may be another release that answers next
                };
                match reason {
                    Reason::Older(_) => dialer.again(now),
                    Reason::ConnectTimeout if !was_open => dialer.failed(now, true),
                    _ if was_open => dialer.lost(now, !matches!(reason, Reason::Closed)),
                    _ => dialer.failed(now, false),
                }
            }
        }
        let server = name.clone();
        self.outputs.push_back(Output::Close {
            conn,
            peer: name,
            was_open,
            reason,
            last_words,
        });
        if went_down {
            self.outputs.push_back(Output::Link { server, up: false });
        }
    }
}

fn count(counters: &mut BTreeMap<&'static str, u64>, name: &'static str) {
    *counters.entry(name).or_default() += 1;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::{
        Instance, Number,
        wire::{frame, signal::Body},
    };
    use std::time::Duration;

    const ALPHA: &str = "192.0.2.11";
    const BETA: &str = "192.0.2.12";

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ms(n: u64) -> BootTime {
        BootTime(0) + Duration::from_millis(n)
    }

    fn timing() -> Timing {
        Timing::new(Duration::from_millis(100), Duration::from_millis(500))
    }

    fn peer(text: &str, addresses: &[&str]) -> Peer {
        Peer {
            name: name(text),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
        }
    }

    fn links(me: &str, peers: Vec<Peer>) -> Links {
        Links::new(
            name(me),
            peers,
            Sealer::new(&[[1; 32]], "web"),
            timing(),
            100,
            ms(0),
        )
    }

    fn alpha() -> Links {
        links("alpha", vec![peer("beta", &[BETA, "198.51.100.12"])])
    }

    fn beta() -> Links {
        links("beta", vec![peer("alpha", &[ALPHA])])
    }

    fn signal(number: u64) -> Signal {
        Signal {
            virtual_server: "web".parse().unwrap(),
            instance: Instance(1),
            number: Number(number),
            body: Body::ReadyQuery,
        }
    }

    fn outputs(links: &mut Links) -> Vec<Output> {
        std::iter::from_fn(|| links.poll_output()).collect()
    }

    fn dialled(links: &mut Links, now: BootTime) -> ConnId {
        links.handle_timeout(now);
        let out = outputs(links);
        let dial = |o: &Output| {
            if let Output::Dial { conn, .. } = o {
                Some(*conn)
            } else {
                None
            }
        };
        out.iter().find_map(dial).unwrap()
    }

    fn take(links: &mut Links, conn: ConnId) -> Vec<u8> {
        let bytes = links.outgoing(conn).to_vec();
        links.sent(conn, bytes.len());
        bytes
    }

    /// Carries bytes both ways until nothing moves.
    fn carry(now: BootTime, a: (&mut Links, ConnId), b: (&mut Links, ConnId)) {
        loop {
            let (there, back) = (take(a.0, a.1), take(b.0, b.1));
            if there.is_empty() && back.is_empty() {
                return;
            }
            b.0.received(now, b.1, &there);
            a.0.received(now, a.1, &back);
        }
    }

    /// A fresh connection from alpha to beta, its handshake finished.
    fn join(now: BootTime, alpha: &mut Links, beta: &mut Links, salt: u8) -> (ConnId, ConnId) {
        let a = dialled(alpha, now);
        alpha.connected(now, a, Challenge([salt; 16]));
        let b = beta
            .accepted(now, ip(ALPHA), Challenge([salt + 1; 16]))
            .unwrap();
        carry(now, (alpha, a), (beta, b));
        (a, b)
    }

    fn is_up(links: &Links) -> bool {
        links.links().all(|(_, up)| up)
    }

    fn counter(links: &Links, name: &str) -> u64 {
        links
            .counters()
            .find(|(n, _)| *n == name)
            .map_or(0, |(_, n)| n)
    }

    #[test]
    fn the_lesser_name_dials_and_signals_go_both_ways() {
        let (mut alpha, mut beta) = (alpha(), beta());
        beta.handle_timeout(ms(0));
        assert!(outputs(&mut beta).is_empty(), "the greater name waits");
        let (a, b) = join(ms(0), &mut alpha, &mut beta, 10);
        assert!(is_up(&alpha) && is_up(&beta));
        assert!(alpha.send(ms(1), &name("beta"), signal(1)));
        assert!(beta.send(ms(1), &name("alpha"), signal(2)));
        carry(ms(1), (&mut alpha, a), (&mut beta, b));
        let got = |o: Vec<Output>| {
            o.into_iter().find_map(|o| {
                if let Output::Signal { signal, .. } = o {
                    Some(signal)
                } else {
                    None
                }
            })
        };
        assert_eq!(got(outputs(&mut beta)), Some(signal(1)));
        assert_eq!(got(outputs(&mut alpha)), Some(signal(2)));
    }

    #[test]
    fn strangers_and_those_who_shall_be_dialled_are_turned_away_unread() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let challenge = Challenge([9; 16]);
        assert_eq!(
            beta.accepted(ms(0), ip("203.0.113.1"), challenge),
            Err(Unwanted::Unlisted)
        );
        assert_eq!(
            beta.accepted(ms(0), ip(BETA), challenge),
            Err(Unwanted::Unlisted),
            "not even from itself"
        );
        let wrong = Err(Unwanted::WrongDirection(name("beta")));
        assert_eq!(alpha.accepted(ms(0), ip(BETA), challenge), wrong);
        assert_eq!(counter(&beta, "refused_unlisted"), 2);
        assert!(
            beta.accepted(ms(0), ip("::ffff:192.0.2.11"), challenge)
                .is_ok(),
            "the same address"
        );
    }

    #[test]
    fn a_peer_that_is_back_knocks_and_is_dialled_at_once() {
        let mut alpha = alpha();
        for n in 0..10 {
            alpha.handle_timeout(ms(n * 1000));
            let conn = dialled(&mut alpha, ms(n * 1000));
            alpha.closed(ms(n * 1000), conn, Reason::Connect("refused".into()));
        }
        assert_eq!(alpha.poll_timeout(), Some(ms(9500)));
        let mut beta = beta();
        beta.knock(ms(9100));
        let knock = dialled(&mut beta, ms(9100));
        beta.connected(ms(9100), knock, Challenge([1; 16]));
        let closed = |o: &Output| {
            matches!(
                o,
                Output::Close {
                    reason: Reason::Knocked,
                    ..
                }
            )
        };
        assert!(outputs(&mut beta).iter().any(closed), "and says nothing");
        let turned_away = alpha.accepted(ms(9100), ip(BETA), Challenge([2; 16]));
        assert_eq!(turned_away, Err(Unwanted::WrongDirection(name("beta"))));
        assert_eq!(alpha.poll_timeout(), Some(ms(9100)));
        let turned_away = alpha.accepted(ms(9101), ip("192.0.2.99"), Challenge([2; 16]));
        assert_eq!(turned_away, Err(Unwanted::Unlisted));
    }

    #[test]
    fn a_restarted_peer_gets_through_at_once_and_replaces_its_older_session() {
        let (mut first, mut beta) = (alpha(), beta());
        let (_, old) = join(ms(0), &mut first, &mut beta, 10);
        outputs(&mut beta);
        let mut second = alpha();
        let (a, b) = join(ms(5), &mut second, &mut beta, 20);
        let out = outputs(&mut beta);
        let replaced = |o: &Output| matches!(o, Output::Close { conn, reason: Reason::Replaced, .. } if *conn == old);
        assert!(out.iter().any(replaced), "{out:?}");
        assert!(
            !out.iter()
                .any(|o| matches!(o, Output::Link { up: false, .. })),
            "the link never was down"
        );
        assert!(is_up(&beta));
        assert!(beta.send(ms(6), &name("alpha"), signal(3)));
        carry(ms(6), (&mut second, a), (&mut beta, b));
        assert!(
            outputs(&mut second)
                .iter()
                .any(|o| matches!(o, Output::Signal { .. }))
        );
    }

    #[test]
    fn a_connection_that_proves_nothing_replaces_nothing() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let (a, b) = join(ms(0), &mut alpha, &mut beta, 10);
        outputs(&mut beta);
        // The hello of a recorded session: authentic, but it cannot answer beta's new challenge.
        let mut recorded = super::tests::alpha();
        let r = dialled(&mut recorded, ms(1));
        recorded.connected(ms(1), r, Challenge([30; 16]));
        let hello = take(&mut recorded, r);
        for _ in 0..3 * PENDING_MAX {
            let conn = beta
                .accepted(ms(2), ip(ALPHA), Challenge([31; 16]))
                .unwrap();
            beta.received(ms(2), conn, &hello);
        }
        assert!(beta.conns.len() <= 1 + PENDING_MAX, "strangers are bounded");
        let closed_current = |o: &Output| matches!(o, Output::Close { conn, .. } if *conn == b);
        assert!(!outputs(&mut beta).iter().any(closed_current));
        assert!(alpha.send(ms(3), &name("beta"), signal(4)));
        carry(ms(3), (&mut alpha, a), (&mut beta, b));
        assert!(
            outputs(&mut beta)
                .iter()
                .any(|o| matches!(o, Output::Signal { .. }))
        );
        // All of them are gone when the handshake deadline has passed.
        alpha.handle_timeout(ms(500));
        carry(ms(500), (&mut alpha, a), (&mut beta, b));
        beta.handle_timeout(ms(1002));
        assert_eq!(beta.conns.keys().collect::<Vec<_>>(), [&b]);
        assert_eq!(counter(&beta, "handshake_timeout") as usize, PENDING_MAX);
    }

    #[test]
    fn a_new_connection_is_let_in_though_the_address_is_flooded() {
        let (mut alpha, mut beta) = (alpha(), beta());
        for _ in 0..100 {
            beta.accepted(ms(0), ip(ALPHA), Challenge([1; 16])).unwrap();
        }
        join(ms(1), &mut alpha, &mut beta, 10);
        assert!(is_up(&beta));
        assert_eq!(counter(&beta, "replaced") as usize, 101 - PENDING_MAX);
    }

    #[test]
    fn a_handshake_under_way_outlives_a_flood_of_silent_connections() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let a = dialled(&mut alpha, ms(1));
        alpha.connected(ms(1), a, Challenge([10; 16]));
        let b = beta
            .accepted(ms(1), ip(ALPHA), Challenge([20; 16]))
            .unwrap();
        let hello = take(&mut alpha, a);
        beta.received(ms(1), b, &hello);
        for _ in 0..100 {
            beta.accepted(ms(1), ip(ALPHA), Challenge([1; 16])).unwrap();
        }
        carry(ms(2), (&mut alpha, a), (&mut beta, b));
        assert!(is_up(&beta));
        assert!(beta.conns.len() <= 1 + PENDING_MAX);
    }

    #[test]
    fn paths_are_tried_in_turn_and_attempts_that_hang_are_made_afresh() {
        let mut alpha = alpha();
        let (mut now, mut paths, mut starts) = (ms(0), Vec::new(), Vec::new());
        while starts.len() < 5 {
            alpha.handle_timeout(now);
            for output in outputs(&mut alpha) {
                if let Output::Dial { path, .. } = output {
                    paths.push(path);
                    starts.push(now.since(ms(0)).as_millis());
                }
            }
            now = alpha.poll_timeout().unwrap();
        }
        assert_eq!(paths, [0, 1, 0, 1, 0]);
        assert_eq!(starts, [0, 500, 1000, 1500, 2000]);
    }

    #[test]
    fn silence_ends_a_session_on_both_sides_and_the_link_comes_back() {
        let (mut alpha, mut beta) = (alpha(), beta());
        join(ms(0), &mut alpha, &mut beta, 10);
        let mut now = ms(0);
        while is_up(&alpha) || is_up(&beta) {
            now = alpha
                .poll_timeout()
                .into_iter()
                .chain(beta.poll_timeout())
                .min()
                .unwrap();
            alpha.handle_timeout(now);
            beta.handle_timeout(now);
            assert!(now <= ms(800), "two pings of 400 ms");
        }
        assert_eq!(counter(&beta, "silence"), 1);
        let redial = outputs(&mut alpha);
        let dial = |o: &Output| {
            if let Output::Dial { conn, path, .. } = o {
                Some((*conn, *path))
            } else {
                None
            }
        };
        let (conn, path) = redial.iter().find_map(dial).unwrap();
        assert_eq!(path, 1, "another path than the one that fell silent");
        alpha.connected(now, conn, Challenge([40; 16]));
        let b = beta.accepted(now, ip(ALPHA), Challenge([41; 16])).unwrap();
        carry(now, (&mut alpha, conn), (&mut beta, b));
        assert!(is_up(&alpha) && is_up(&beta));
    }

    #[test]
    fn idle_sessions_live_on_pings_alone_and_stay_quiet_in_between() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let (a, b) = join(ms(0), &mut alpha, &mut beta, 10);
        let (mut now, mut wakeups) = (ms(0), 0);
        while now < ms(10_000) {
            now = alpha
                .poll_timeout()
                .into_iter()
                .chain(beta.poll_timeout())
                .min()
                .unwrap();
            alpha.handle_timeout(now);
            beta.handle_timeout(now);
            carry(now, (&mut alpha, a), (&mut beta, b));
            wakeups += 1;
        }
        assert!(is_up(&alpha) && is_up(&beta));
        assert!(
            wakeups <= 30,
            "{wakeups} wake-ups: one ping makes both sides speak"
        );
    }

    #[test]
    fn a_signal_without_link_is_dropped_counted_and_hurries_the_next_attempt() {
        let mut alpha = alpha();
        let mut now = ms(0);
        for _ in 0..10 {
            let conn = dialled(&mut alpha, now);
            alpha.closed(now, conn, Reason::Connect("refused".into()));
            now = alpha.poll_timeout().unwrap();
        }
        let early = now - Duration::from_millis(400);
        assert!(!alpha.send(early, &name("beta"), signal(1)));
        assert_eq!(counter(&alpha, "dropped_no_link"), 1);
        assert_eq!(
            alpha.poll_timeout(),
            Some(early),
            "the last attempt is long enough ago"
        );
        assert!(!alpha.send(early, &name("nobody"), signal(1)));
        assert_eq!(counter(&alpha, "dropped_unknown_peer"), 1);
    }

    #[test]
    fn a_peer_that_reads_nothing_is_dropped_before_the_buffer_outgrows_its_bound() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let (a, _) = join(ms(0), &mut alpha, &mut beta, 10);
        let long = || Signal {
            body: Body::NotReady {
                why: "x".repeat(50_000),
            },
            ..signal(1)
        };
        let mut sent = 0;
        while alpha.send(ms(1), &name("beta"), long()) {
            assert!(alpha.outgoing(a).len() <= crate::OUTGOING_MAX);
            sent += 1;
        }
        assert!(sent >= 4 && !is_up(&alpha));
        assert_eq!(counter(&alpha, "overflow"), 1);
    }

    #[test]
    fn a_signal_too_long_for_a_frame_is_dropped_and_hurts_nothing() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let (a, b) = join(ms(0), &mut alpha, &mut beta, 10);
        let long = Signal {
            body: Body::NotReady {
                why: "x".repeat(61_430),
            },
            ..signal(1)
        };
        assert!(!alpha.send(ms(1), &name("beta"), long));
        assert!(alpha.send(ms(1), &name("beta"), signal(2)));
        carry(ms(1), (&mut alpha, a), (&mut beta, b));
        assert!(
            outputs(&mut beta)
                .iter()
                .any(|o| matches!(o, Output::Signal { .. }))
        );
    }

    #[test]
    fn a_reload_closes_everything_and_begins_anew_with_the_new_keys() {
        let (mut alpha, mut beta) = (alpha(), beta());
        join(ms(0), &mut alpha, &mut beta, 10);
        let keys = || Sealer::new(&[[2; 32]], "web");
        alpha.reload(vec![peer("beta", &[BETA])], keys(), timing(), ms(50));
        beta.reload(vec![peer("alpha", &[ALPHA])], keys(), timing(), ms(50));
        assert!(!is_up(&alpha) && !is_up(&beta));
        outputs(&mut alpha);
        join(ms(50), &mut alpha, &mut beta, 20);
        assert!(is_up(&alpha) && is_up(&beta));
    }

    #[test]
    fn a_peer_of_the_release_before_is_dialled_again_at_once_in_its_version() {
        let mut alpha = alpha();
        let asked = |alpha: &mut Links, now| {
            let conn = dialled(alpha, now);
            alpha.connected(now, conn, Challenge([1; 16]));
            (conn, take(alpha, conn)[frame::MAGIC.len()])
        };
        let (conn, version) = asked(&mut alpha, ms(0));
        assert_eq!(version, 2);
        alpha.received(ms(1), conn, b"standin\x01R\0\x02no");
        let (conn, version) = asked(&mut alpha, ms(1));
        assert_eq!(version, 1);
        assert_eq!(counter(&alpha, "older_version"), 1);
        assert_eq!(counter(&alpha, "refused_version"), 0);
        alpha.closed(ms(2), conn, Reason::Closed);
        let (_, version) = asked(&mut alpha, ms(100));
        assert_eq!(version, 2, "it may be replaced by now");
    }

    #[test]
    fn a_peer_of_a_release_that_has_nothing_in_common_is_refused() {
        let mut alpha = alpha();
        let conn = dialled(&mut alpha, ms(0));
        alpha.connected(ms(0), conn, Challenge([1; 16]));
        alpha.received(ms(1), conn, b"standin\x07R\0\x02no");
        assert_eq!(counter(&alpha, "refused_version"), 1);
    }

    #[test]
    fn a_wrong_key_is_told_in_words() {
        let mut alpha = alpha();
        let sealer = Sealer::new(&[[2; 32]], "web");
        let peers = vec![peer("alpha", &[ALPHA])];
        let mut beta = Links::new(name("beta"), peers, sealer, timing(), 100, ms(0));
        let a = dialled(&mut alpha, ms(0));
        alpha.connected(ms(0), a, Challenge([1; 16]));
        let b = beta.accepted(ms(0), ip(ALPHA), Challenge([2; 16])).unwrap();
        beta.received(ms(0), b, &take(&mut alpha, a));
        let Some(Output::Close {
            reason: Reason::Seal(_),
            last_words,
            was_open: false,
            ..
        }) = beta.poll_output()
        else {
            panic!("beta must close")
        };
        assert!(last_words.len() <= frame::PREAMBLE + frame::HEADER + frame::REFUSAL_MAX);
        alpha.received(ms(0), a, &last_words);
        let words = outputs(&mut alpha).into_iter().find_map(|o| match o {
            Output::Close {
                reason: Reason::Refused(words),
                ..
            } => Some(words),
            _ => None,
        });
        assert!(words.unwrap().contains("cluster.key"));
    }

    fn closed(outputs: &[Output], wanted: ConnId) -> Option<(bool, usize)> {
        outputs.iter().find_map(|o| match o {
            Output::Close {
                conn,
                was_open,
                last_words,
                ..
            } if *conn == wanted => Some((*was_open, last_words.len())),
            _ => None,
        })
    }

    #[test]
    fn a_flood_neither_ends_an_open_session_nor_what_comes_from_another_address() {
        let mut alpha = alpha();
        let other = "198.51.100.11";
        let mut beta = links("beta", vec![peer("alpha", &[ALPHA, other])]);
        let (_, b) = join(ms(0), &mut alpha, &mut beta, 10);
        let mut from = |address: &str| {
            let conn = beta.accepted(ms(1), ip(address), Challenge([1; 16]));
            (conn.unwrap(), outputs(&mut beta))
        };
        let first = from(other).0;
        for n in 0..100 {
            let ended = from(ALPHA).1;
            assert!(closed(&ended, b).is_none() && closed(&ended, first).is_none());
            assert_eq!(ended.len(), usize::from(n >= PENDING_MAX));
        }
        for n in 1..100 {
            let ended = closed(&from(other).1, first);
            assert_eq!(ended.is_some(), n == PENDING_MAX, "the oldest goes first");
        }
        assert!(is_up(&beta));
    }

    #[test]
    fn an_open_session_ends_as_such_and_takes_what_was_unwritten_along() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let (a, _) = join(ms(0), &mut alpha, &mut beta, 10);
        assert!(alpha.send(ms(1), &name("beta"), signal(1)));
        assert!(!alpha.outgoing(a).is_empty());
        outputs(&mut alpha);
        alpha.closed(ms(5000), a, Reason::Closed);
        let out = outputs(&mut alpha);
        assert_eq!(closed(&out, a), Some((true, 0)));
        assert!(
            out.iter()
                .any(|o| matches!(o, Output::Link { up: false, .. }))
        );
        let redial = dialled(&mut alpha, ms(5000));
        assert_ne!(redial, a, "at once, over the same path");
    }

    #[test]
    fn writing_is_asked_for_when_there_is_something_to_write_and_only_then() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let a = dialled(&mut alpha, ms(0));
        alpha.connected(ms(0), a, Challenge([1; 16]));
        let b = beta.accepted(ms(0), ip(ALPHA), Challenge([2; 16])).unwrap();
        let writes = |links: &mut Links| {
            let write = |o: &Output| matches!(o, Output::Write(_));
            outputs(links).iter().filter(|o| write(o)).count()
        };
        assert_eq!(writes(&mut alpha), 1);
        beta.received(ms(0), b, &take(&mut alpha, a));
        assert_eq!(writes(&mut beta), 1, "its answer");
        alpha.received(ms(0), a, &take(&mut beta, b));
        assert_eq!(writes(&mut alpha), 1, "its proof");
        beta.received(ms(0), b, &take(&mut alpha, a));
        assert_eq!(writes(&mut beta), 0);
        assert!(alpha.send(ms(1), &name("beta"), signal(1)));
        assert_eq!(writes(&mut alpha), 1);
        beta.received(ms(1), b, &take(&mut alpha, a));
        assert_eq!(writes(&mut beta), 0, "a signal needs no answer");
    }

    #[test]
    fn a_timeout_that_comes_early_does_nothing() {
        let (mut alpha, mut beta) = (alpha(), beta());
        let (a, _) = join(ms(0), &mut alpha, &mut beta, 10);
        assert!(!alpha.is_connecting(a));
        alpha.closed(ms(0), a, Reason::Closed);
        let a = dialled(&mut alpha, ms(20));
        assert!(alpha.is_connecting(a));
        outputs(&mut beta);
        for links in [&mut alpha, &mut beta] {
            let due = links.poll_timeout();
            links.handle_timeout(ms(30));
            assert!(links.poll_output().is_none());
            assert_eq!(links.poll_timeout(), due);
        }
        alpha.connected(ms(30), a, Challenge([3; 16]));
        assert!(!alpha.is_connecting(a));
    }

    #[test]
    fn a_connection_in_the_making_is_left_alone_while_others_ping() {
        let peers = vec![peer("beta", &[BETA]), peer("gamma", &["192.0.2.13"])];
        let mut alpha = links("alpha", peers);
        let mut beta = beta();
        alpha.handle_timeout(ms(0));
        let dial = |o: Output| match o {
            Output::Dial { conn, peer, .. } => Some((conn, peer)),
            _ => None,
        };
        let dials: Vec<_> = outputs(&mut alpha).into_iter().filter_map(dial).collect();
        let (a, c) = (dials[0].0, dials[1].0);
        assert_eq!(dials[1].1, name("gamma"));
        alpha.connected(ms(0), a, Challenge([1; 16]));
        let b = beta.accepted(ms(0), ip(ALPHA), Challenge([2; 16])).unwrap();
        carry(ms(0), (&mut alpha, a), (&mut beta, b));
        let pinged = alpha.poll_timeout().unwrap();
        alpha.handle_timeout(pinged);
        assert!(!alpha.outgoing(a).is_empty());
        assert!(alpha.is_connecting(c), "its own time has not come");
    }

    #[test]
    fn who_is_turned_away_unread_is_told_of_in_words() {
        assert!(Unwanted::Unlisted.to_string().contains("no server"));
        let wrong = Unwanted::WrongDirection(name("beta")).to_string();
        assert!(wrong.starts_with("beta dials"), "{wrong}");
    }
}
