//! Sockets and clock around the table of links.

use crate::socket;
use config::{ClusterKeys, Server};
use daemon::{Boot, Error, Event, EventLoop, Limiter, now};
use link::{ConnId, Links, Output, Peer, Reason, Timing, Unwanted};
use mio::{
    Interest,
    net::{TcpListener, TcpStream},
};
use protocol::{
    BootTime, Role, ServerName, codec,
    local::{
        ctl::{CtlReply, CtlRequest},
        ring::{ElectdToListend, ListendToElectd},
        status::Detail,
    },
    seal::Sealer,
    version::Since,
    wire::frame::Challenge,
};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    time::Duration,
};

/// Distance between two log lines about the same thing.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How soon an address that could not be bound is tried again.
const BIND_RETRY: Duration = Duration::from_millis(500);

/// Buffers read from one connection before others get their turn.
const BUDGET: usize = 32;

/// Connections accepted before those taken earlier get their turn: too few to push one out that has not been read yet.
const ACCEPT_BUDGET: usize = link::PENDING_MAX / 2;

/// Bytes read at a time.
const BUFFER: usize = 64 * 1024;

/// Listeners are sources 0, 1, ...; connections follow.
const FIRST_CONN: ConnId = 1024;

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// All of listend.
pub struct Shell {
    boot: Boot,
    keys: ClusterKeys,
    event_loop: EventLoop,
    links: Links,
    listeners: Vec<Listener>,
    bind_at: Option<BootTime>,
    streams: HashMap<ConnId, TcpStream>,
    buffer: Vec<u8>,
    notes: Vec<String>,
    limiter: Limiter,
    malformed: u64,
    /// Why the last connection with a peer came to nothing.
    failed: BTreeMap<ServerName, String>,
}

struct Listener {
    address: SocketAddr,
    state: Result<TcpListener, String>,
}

/// Told to end, it reads its sockets at most this often again.
const LAST_ROUNDS: u32 = 64;

/// Go on, or end.
#[derive(PartialEq, Eq)]
enum Flow {
    Go,
    End,
}

impl Shell {
    /// Binds what can be bound by now, and is ready to dial.
    pub fn open(boot: Boot) -> Result<Self, Error> {
        let keys = boot.keys()?;
        let sealer = Sealer::new(&keys.open, &boot.config.cluster.name);
        let event_loop = EventLoop::open(&boot, &[Role::Electd], &[Role::Electd])?;
        let (peers, timing) = (peers(&boot), timing(&boot));
        let links = Links::new(boot.me.clone(), peers, sealer, timing, FIRST_CONN, now());
        let mut shell = Self {
            boot,
            keys,
            event_loop,
            links,
            listeners: Vec::new(),
            bind_at: None,
            streams: HashMap::new(),
            buffer: vec![0; BUFFER],
            notes: Vec::new(),
            limiter: Limiter::new(LINE_EVERY),
            malformed: 0,
            failed: BTreeMap::new(),
        };
        shell.listen();
        shell.links.knock(now());
        shell.act();
        Ok(shell)
    }

    /// Adds what an operator should know to the status.
    pub fn add_notes(&mut self, notes: Vec<String>) {
        self.notes.extend(notes);
    }

    /// Serves until it is told to end. What electd said before that is still passed on: a Release that is
    /// lost costs the others a whole lease.
    pub fn run(mut self) -> Result<(), Error> {
        let mut events = Vec::new();
        let mut rounds_left = None;
        loop {
            let timeout = self.links.poll_timeout();
            let deadline = match rounds_left {
                Some(_) => Some(now()),
                None => timeout.into_iter().chain(self.bind_at).min(),
            };
            self.event_loop.wait(deadline, &mut events)?;
            let quiet = events.iter().all(|e| matches!(e, Event::Deadline));
            for event in events.drain(..) {
                if self.handle(event) == Flow::End {
                    rounds_left = Some(LAST_ROUNDS);
                }
                self.act();
            }
            rounds_left = rounds_left.map(|n| n - 1);
            if rounds_left.is_some_and(|n| quiet || n == 0) {
                return Ok(());
            }
            // After the sockets were read: a stall of this process is no silence of the peers.
            self.links.handle_timeout(now());
            self.act();
            if self.bind_at.is_some_and(|at| at <= now()) {
                self.bind();
            }
        }
    }

    fn handle(&mut self, event: Event) -> Flow {
        match event {
            Event::Message {
                from: Role::Electd,
                version,
                bytes,
            } => match codec::decode_as(&bytes, version) {
                Ok(ElectdToListend { to, signal }) => {
                    self.links.send(now(), &to, signal);
                }
                Err(e) => {
                    self.malformed += 1;
                    self.limiter
                        .warn(now(), "malformed", || format!("from electd: {e}"));
                }
            },
            Event::Source { id, .. } if id < FIRST_CONN => self.accept(id),
            Event::Source { id, writable, .. } => self.source(id, writable),
            Event::Up(Role::Electd) => self.tell_links(),
            Event::Ctl { conn, request } => {
                let reply = self.answer(request);
                self.event_loop.reply(conn, &reply);
            }
            Event::Terminate => {
                log::info!("told to end");
                return Flow::End;
            }
            Event::Reload => self.reload(),
            Event::Message { .. }
            | Event::Up(_)
            | Event::Down(_)
            | Event::PeerGone(_)
            | Event::Woken
            | Event::Deadline => {}
        }
        Flow::Go
    }

    /// Carries out what the table decided, in its order.
    fn act(&mut self) {
        while let Some(output) = self.links.poll_output() {
            match output {
                Output::Signal { from, signal } => {
                    self.tell(&ListendToElectd::Signal { from, signal });
                }
                Output::Write(conn) => self.flush(conn),
                Output::Link { server, up } => {
                    if up {
                        log::info!("link to {server} is up");
                        self.failed.remove(&server);
                    }
                    self.tell(&ListendToElectd::Link { server, up });
                }
                Output::Dial { conn, peer, path } => {
                    if let Err(e) = self.dial(conn, &peer, path) {
                        self.links
                            .closed(now(), conn, Reason::Connect(e.to_string()));
                    }
                }
                Output::Close {
                    conn,
                    peer,
                    was_open,
                    reason,
                    last_words,
                } => {
                    if reason.is_refusal() {
                        let line = || format!("connection with {peer} refused: {reason}");
                        self.limiter.warn(now(), reason.counter(), line);
                    } else if was_open {
                        log::info!("link to {peer} ended: {reason}");
                    } else {
                        log::debug!("connection with {peer} ended: {reason}");
                    }
                    if !reason.is_planned() {
                        self.failed.insert(peer, reason.to_string());
                    }
                    self.close(conn, &last_words);
                }
            }
        }
    }

    /// Something happened on a connection.
    fn source(&mut self, conn: ConnId, writable: bool) {
        if self.links.is_connecting(conn) {
            let Some(stream) = self.streams.get(&conn).filter(|_| writable) else {
                return;
            };
            match socket::finished(stream) {
                None => return,
                Some(Ok(())) => match challenge() {
                    Ok(challenge) => self.links.connected(now(), conn, challenge),
                    Err(e) => self
                        .links
                        .closed(now(), conn, Reason::Connect(e.to_string())),
                },
                Some(Err(e)) => self
                    .links
                    .closed(now(), conn, Reason::Connect(e.to_string())),
            }
            self.act();
        }
        if writable {
            self.flush(conn);
        }
        self.read(conn);
    }

    /// Reads all there is; signals are passed on before the next read.
    fn read(&mut self, conn: ConnId) {
        for _ in 0..BUDGET {
            let Some(stream) = self.streams.get_mut(&conn) else {
                return;
            };
            match stream.read(&mut self.buffer) {
                Ok(0) => self.links.closed(now(), conn, Reason::Closed),
                Ok(n) => self.links.received(now(), conn, &self.buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self
                    .links
                    .closed(now(), conn, Reason::Network(e.to_string())),
            }
            self.act();
        }
        if let Some(stream) = self.streams.get_mut(&conn)
            && let Err(e) = self.event_loop.reregister(stream, conn, BOTH)
        {
            self.links
                .closed(now(), conn, Reason::Network(e.to_string()));
        }
    }

    fn flush(&mut self, conn: ConnId) {
        loop {
            let waiting = self.links.outgoing(conn);
            let Some(stream) = self.streams.get_mut(&conn).filter(|_| !waiting.is_empty()) else {
                return;
            };
            match stream.write(waiting) {
                Ok(n) => self.links.sent(conn, n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self
                    .links
                    .closed(now(), conn, Reason::Network(e.to_string())),
            }
        }
    }

    fn dial(&mut self, conn: ConnId, peer: &ServerName, path: usize) -> Result<(), Error> {
        let config = &self.boot.config;
        let nowhere = || Error::Failed(format!("{peer} has no such path"));
        let to = config
            .server(peer)
            .and_then(|s| s.addresses.get(path))
            .copied()
            .ok_or_else(nowhere)?;
        let from = own(&self.boot)
            .and_then(|me| source(me, path, to))
            .ok_or_else(|| Error::Failed(format!("this server has no address of {to}'s family")))?;
        let to = SocketAddr::new(to, config.cluster.port);
        let user_timeout = user_timeout(&self.boot);
        let failed = |e| Error::io(format!("from {from} to {to}"), e);
        let mut stream = socket::dial(from, to, user_timeout).map_err(failed)?;
        self.event_loop.register(&mut stream, conn, BOTH)?;
        self.streams.insert(conn, stream);
        Ok(())
    }

    fn accept(&mut self, id: usize) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(Listener {
                state: Ok(listener),
                ..
            }) = self.listeners.get(id)
            else {
                return;
            };
            match socket::accept(listener, user_timeout(&self.boot)) {
                Ok(Some((stream, source))) => {
                    if let Err(e) = self.admit(stream, source) {
                        self.limiter
                            .warn(now(), "accept", || format!("cannot take a connection: {e}"));
                    }
                }
                Ok(None) => return,
                Err(e) => return self.listener_failed(id, &e.to_string()),
            }
        }
        if let Some(Listener {
            state: Ok(listener),
            ..
        }) = self.listeners.get_mut(id)
            && let Err(e) = self.event_loop.reregister(listener, id, Interest::READABLE)
        {
            self.listener_failed(id, &e.to_string());
        }
    }

    /// A connection from `source`: closed unread unless a peer lives there that dials this side.
    fn admit(&mut self, mut stream: TcpStream, source: IpAddr) -> Result<(), Error> {
        match self.links.accepted(now(), source, challenge()?) {
            Err(Unwanted::WrongDirection(peer)) => log::debug!("{peer} has knocked"),
            Err(unwanted @ Unwanted::Unlisted) => {
                let line = || format!("connection from {source} refused: {unwanted}");
                self.limiter.warn(now(), unwanted.counter(), line);
            }
            Ok(conn) => match self.event_loop.register(&mut stream, conn, BOTH) {
                Ok(()) => {
                    self.streams.insert(conn, stream);
                }
                Err(e) => self
                    .links
                    .closed(now(), conn, Reason::Network(e.to_string())),
            },
        }
        self.act();
        Ok(())
    }

    fn close(&mut self, conn: ConnId, last_words: &[u8]) {
        if let Some(mut stream) = self.streams.remove(&conn) {
            if !last_words.is_empty() {
                // A courtesy: if it cannot be done at once it is not done.
                let _ = stream
                    .write(last_words)
                    .and_then(|_| stream.shutdown(Shutdown::Write));
            }
            let _ = self.event_loop.deregister(&mut stream);
        }
    }

    /// Replaces the listeners by those of the configuration in force.
    fn listen(&mut self) {
        for listener in &mut self.listeners {
            if let Ok(socket) = &mut listener.state {
                let _ = self.event_loop.deregister(socket);
            }
        }
        let port = self.boot.config.cluster.port;
        let addresses = own(&self.boot)
            .map(|me| me.addresses.clone())
            .unwrap_or_default();
        let listener = |ip| Listener {
            address: SocketAddr::new(ip, port),
            state: Err(String::new()),
        };
        self.listeners = addresses.into_iter().map(listener).collect();
        self.bind();
    }

    /// Binds what is not bound. An address that is not there yet is tried again and again.
    fn bind(&mut self) {
        self.bind_at = None;
        for (id, listener) in self.listeners.iter_mut().enumerate() {
            let Err(before) = &listener.state else {
                continue;
            };
            let bound = TcpListener::bind(listener.address)
                .map_err(|e| e.to_string())
                .and_then(|mut socket| {
                    let registered = self
                        .event_loop
                        .register(&mut socket, id, Interest::READABLE);
                    registered.map(|()| socket).map_err(|e| e.to_string())
                });
            match &bound {
                Ok(_) => log::info!("listening at {}", listener.address),
                Err(e) => {
                    if e != before {
                        log::warn!("cannot listen at {}: {e}; trying again", listener.address);
                    }
                    self.bind_at = Some(now() + BIND_RETRY);
                }
            }
            listener.state = bound;
        }
    }

    fn listener_failed(&mut self, id: usize, why: &str) {
        let Some(listener) = self.listeners.get_mut(id) else {
            return;
        };
        if let Ok(socket) = &mut listener.state {
            let _ = self.event_loop.deregister(socket);
        }
        log::warn!(
            "cannot accept at {}: {why}; listening anew",
            listener.address
        );
        listener.state = Err(why.to_owned());
        self.bind_at = Some(now() + BIND_RETRY);
    }

    fn tell(&mut self, message: &ListendToElectd) {
        self.event_loop.send(Role::Electd, message);
    }

    /// electd (again) listens: it knows of no link.
    fn tell_links(&mut self) {
        let links: Vec<_> = self
            .links
            .links()
            .map(|(server, up)| (server.clone(), up))
            .collect();
        for (server, up) in links {
            self.tell(&ListendToElectd::Link { server, up });
        }
    }

    fn answer(&self, request: CtlRequest) -> CtlReply {
        match request {
            CtlRequest::Status => CtlReply::Status(Box::new(self.status())),
            CtlRequest::Promote { .. }
            | CtlRequest::Resign
            | CtlRequest::Maintenance(_)
            | CtlRequest::ServerAdd(_)
            | CtlRequest::ServerRemove(_)
            | CtlRequest::SyncNow { .. }
            | CtlRequest::SyncTook { .. } => {
                CtlReply::No("listend only tells its status; ask electd".into())
            }
        }
    }

    fn status(&self) -> protocol::local::status::RoleStatus {
        let mut counters: BTreeMap<String, u64> = self.event_loop.counters();
        counters.extend(self.links.counters().map(|(name, n)| (name.to_owned(), n)));
        counters.insert("malformed_from_electd".into(), self.malformed);
        let mut notes = self.notes.clone();
        for listener in &self.listeners {
            if let Err(why) = &listener.state {
                notes.push(format!("not listening at {}: {why}", listener.address));
            }
        }
        let links = self
            .links
            .links()
            .map(|(server, up)| (server.clone(), up))
            .collect();
        let down = |name: &ServerName| self.links.links().any(|(peer, up)| peer == name && !up);
        let failed = self.failed.clone().into_iter();
        let detail = Detail::Listend {
            links,
            failed: Since(failed.filter(|(name, _)| down(name)).collect()),
        };
        self.boot.status(counters, notes, detail)
    }

    /// Reads configuration and keys again; links are made anew only if something they depend on changed.
    fn reload(&mut self) {
        let before = (own_addresses(&self.boot), self.boot.config.cluster.port);
        let depends = |boot: &Boot| (peers(boot), boot.config.cluster.clone());
        let (links_before, keys_before) = (depends(&self.boot), self.keys.clone());
        if let Err(e) = self.boot.reload() {
            log::error!("the old configuration stays in force: {e}");
            return;
        }
        match self.boot.keys() {
            Ok(keys) => self.keys = keys,
            Err(e) => {
                log::info!("the cluster key stays as it was, a restart reads it again: {e}")
            }
        }
        if before != (own_addresses(&self.boot), self.boot.config.cluster.port) {
            self.listen();
        }
        if links_before != depends(&self.boot) || keys_before != self.keys {
            let sealer = Sealer::new(&self.keys.open, &self.boot.config.cluster.name);
            self.links
                .reload(peers(&self.boot), sealer, timing(&self.boot), now());
            self.tell_links();
        }
        log::info!("configuration read again");
    }
}

fn own(boot: &Boot) -> Option<&Server> {
    boot.config.server(&boot.me)
}

fn own_addresses(boot: &Boot) -> Vec<IpAddr> {
    own(boot).map(|me| me.addresses.clone()).unwrap_or_default()
}

fn peers(boot: &Boot) -> Vec<Peer> {
    let peer = |s: &Server| Peer {
        name: s.name.clone(),
        addresses: s.addresses.clone(),
    };
    boot.config.peers(&boot.me).map(peer).collect()
}

fn timing(boot: &Boot) -> Timing {
    Timing::new(boot.config.cluster.heartbeat, boot.config.cluster.lease)
}

fn user_timeout(boot: &Boot) -> Duration {
    let timing = timing(boot);
    timing.silence(timing.ping)
}

/// Own address for a path: the one of the same place in the list, else the first of the same family.
fn source(me: &Server, path: usize, to: IpAddr) -> Option<IpAddr> {
    let same = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
    me.addresses
        .get(path)
        .filter(same)
        .or_else(|| me.addresses.iter().find(same))
        .copied()
}

fn challenge() -> Result<Challenge, Error> {
    daemon::random().map(Challenge)
}
