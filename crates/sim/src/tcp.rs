//! TCP connections as far as listend can tell: bytes in order, late when a segment is lost, an end that comes as a
//! message if it comes at all. And listend's shell around its core.

use crate::{
    clock::Time,
    schedule::{NAMES, Part},
    shells::LISTEND_TO_ELECTD,
    world::{Event, Job, World},
};
use link::{ConnId, Links, Output, Peer, Reason, Timing};
use protocol::{ServerName, local::ring::ListendToElectd, wire::frame::Challenge};

/// First time-out of a segment; each next one is twice as long (RFC 6298; Linux, TCP_RTO_MIN).
const RETRY: u64 = 200_000_000;
/// Longest here: a session is given up before that matters.
const RETRY_MAX: u64 = 3_200_000_000;
/// The same of a connection that is being made.
const SYN_RETRY: u64 = 1_000_000_000;

/// One end of a connection.
#[derive(Debug, Default)]
pub(crate) struct End {
    server: usize,
    /// Of listend.
    epoch: u32,
    /// As listend calls it; none before it was accepted, or after it was closed.
    id: Option<ConnId>,
    /// Written and not sent.
    out: Vec<u8>,
    /// Nothing more comes after `out`.
    fin: bool,
    /// A segment was lost and is sent again after this time.
    retry: u64,
    waiting: bool,
    /// Nothing arrives at the other end before.
    last: Time,
    gone: bool,
}

/// A connection: the dialling end, the other one.
#[derive(Debug, Default)]
pub(crate) struct Conn {
    ends: [End; 2],
    path: usize,
}

/// What happens to connection `conn`; `side` is the end that it happens at.
#[derive(Clone, Debug)]
pub(crate) enum TcpEvent {
    Syn {
        conn: usize,
    },
    Established {
        conn: usize,
    },
    Refused {
        conn: usize,
    },
    Accept {
        conn: usize,
    },
    Data {
        conn: usize,
        side: usize,
        bytes: Vec<u8>,
    },
    End {
        conn: usize,
        side: usize,
        reset: bool,
    },
    Retry {
        conn: usize,
        side: usize,
    },
    /// A stranger says what was once said.
    Replay {
        from: usize,
        bytes: Vec<u8>,
    },
}

impl World {
    pub(crate) fn start_listend(&mut self, i: usize) {
        let now = self.local(i);
        let (me, peers, timing) = self.neighbours(i);
        let mut links = Links::new(me, peers, Self::sealer(), timing, 1024, now);
        links.knock(now);
        self.servers[i].listend = Some(links);
        self.act_listend(i);
    }

    fn neighbours(&self, i: usize) -> (ServerName, Vec<Peer>, Timing) {
        let settings = &self.servers[i].settings;
        let peer = |s: &crate::world::Server| Peer {
            name: s.name.clone(),
            addresses: s.addresses.clone(),
        };
        let peers = self
            .servers
            .iter()
            .filter(|s| s.name != settings.me)
            .map(peer)
            .collect();
        (
            settings.me.clone(),
            peers,
            Timing::new(settings.heartbeat, settings.lease),
        )
    }

    /// The kernel closes what it had, if there is one.
    pub(crate) fn listend_killed(&mut self, i: usize) {
        let powered = self.servers[i].powered;
        self.servers[i].listend = None;
        for conn in 0..self.conns.len() {
            for side in 0..2 {
                let end = &mut self.conns[conn].ends[side];
                if end.server == i && !end.gone {
                    (end.gone, end.id) = (true, None);
                    if powered {
                        end.fin = true;
                        self.push_out(conn, side);
                    }
                }
            }
        }
    }

    pub(crate) fn listend_job(&mut self, i: usize, job: Job) {
        let now = self.local(i);
        let challenge = Challenge(self.random.bytes());
        let Some(links) = self.servers[i].listend.as_mut() else {
            return;
        };
        match job {
            Job::ToListend(message) => {
                links.send(now, &message.to, message.signal);
            }
            Job::Reload => {
                let (_, peers, timing) = self.neighbours(i);
                if let Some(links) = self.servers[i].listend.as_mut() {
                    links.reload(peers, Self::sealer(), timing, now);
                }
            }
            Job::RingUp(_) => {
                let all: Vec<_> = links
                    .links()
                    .map(|(server, up)| (server.clone(), up))
                    .collect();
                for (server, up) in all {
                    let job = Job::Signalled(ListendToElectd::Link { server, up });
                    self.ring_send(i, LISTEND_TO_ELECTD, job);
                }
            }
            Job::Tcp(TcpEvent::Established { conn }) => {
                if let Some(id) = self.conns[conn].ends[0].id {
                    links.connected(now, id, challenge);
                }
            }
            Job::Tcp(TcpEvent::Refused { conn }) => {
                if let Some(id) = self.conns[conn].ends[0].id.take() {
                    self.conns[conn].ends[0].gone = true;
                    links.closed(now, id, Reason::Connect("connection refused".into()));
                }
            }
            Job::Tcp(TcpEvent::Accept { conn }) => {
                let Conn { ends, path } = &self.conns[conn];
                let addresses = &self.servers[ends[0].server].addresses;
                let source = addresses[(*path).min(addresses.len() - 1)];
                let accepted = self.servers[i]
                    .listend
                    .as_mut()
                    .map(|l| l.accepted(now, source, challenge));
                let end = &mut self.conns[conn].ends[1];
                match accepted {
                    Some(Ok(id)) => end.id = Some(id),
                    _ => self.close_end(conn, 1),
                }
            }
            Job::Tcp(TcpEvent::Data { conn, side, bytes }) => {
                match self.conns[conn].ends[side].id {
                    Some(id) => links.received(now, id, &bytes),
                    None => self.reset(conn, side),
                }
            }
            Job::Tcp(TcpEvent::End { conn, side, reset }) => {
                if let Some(id) = self.conns[conn].ends[side].id.take() {
                    self.conns[conn].ends[side].gone = true;
                    let reason = if reset {
                        Reason::Network("reset".into())
                    } else {
                        Reason::Closed
                    };
                    links.closed(now, id, reason);
                }
            }
            Job::Tcp(TcpEvent::Replay { from, bytes }) => self.replay(i, from, &bytes),
            _ => {}
        }
        self.act_listend(i);
        self.listend_timeout(i);
    }

    /// A connection from a peer's address on which somebody repeats what was recorded: nothing may come of it.
    fn replay(&mut self, i: usize, from: usize, bytes: &[u8]) {
        let now = self.local(i);
        let challenge = Challenge(self.random.bytes());
        let source = self.servers[from].addresses[0];
        self.act_listend(i);
        let Some(links) = self.servers[i].listend.as_mut() else {
            return;
        };
        let Ok(id) = links.accepted(now, source, challenge) else {
            return;
        };
        links.received(now, id, bytes);
        let mut came = false;
        while let Some(output) = links.poll_output() {
            came |= matches!(output, Output::Signal { .. } | Output::Link { .. });
        }
        links.closed(now, id, Reason::Closed);
        while links.poll_output().is_some() {}
        if came {
            self.not_inert(i, "listend took a recorded connection for a new one");
        }
    }

    pub(crate) fn listend_timeout(&mut self, i: usize) {
        let now = self.local(i);
        let Some(links) = self.servers[i].listend.as_mut() else {
            return;
        };
        if links.poll_timeout().is_some_and(|t| t <= now) {
            links.handle_timeout(now);
            self.act_listend(i);
        }
        let next = self.servers[i]
            .listend
            .as_ref()
            .and_then(Links::poll_timeout);
        self.rearm(i, Part::Listend, next);
    }

    fn act_listend(&mut self, i: usize) {
        while let Some(output) = self.servers[i]
            .listend
            .as_mut()
            .and_then(Links::poll_output)
        {
            match output {
                Output::Signal { from, signal } => {
                    self.ring_send(
                        i,
                        LISTEND_TO_ELECTD,
                        Job::Signalled(ListendToElectd::Signal { from, signal }),
                    );
                }
                Output::Link { server, up } => {
                    let state = if up { "up" } else { "DOWN" };
                    self.note(|| format!("{} link to {server} is {state}", NAMES[i]));
                    self.ring_send(
                        i,
                        LISTEND_TO_ELECTD,
                        Job::Signalled(ListendToElectd::Link { server, up }),
                    );
                }
                Output::Write(id) => self.write(i, id),
                Output::Dial { conn, peer, path } => self.dial(i, conn, &peer, path),
                Output::Close {
                    conn, last_words, ..
                } => {
                    if let Some((conn, side)) = self.end_of(i, conn) {
                        self.conns[conn].ends[side]
                            .out
                            .extend_from_slice(&last_words);
                        self.close_end(conn, side);
                    }
                }
            }
        }
    }

    fn end_of(&self, i: usize, id: ConnId) -> Option<(usize, usize)> {
        let epoch = self.servers[i].processes[Part::Listend as usize].epoch;
        let ends = self.conns.iter().enumerate().rev();
        let mut all = ends.flat_map(|(c, conn)| {
            conn.ends
                .iter()
                .enumerate()
                .map(move |(s, end)| ((c, s), end))
        });
        all.find(|(_, e)| e.server == i && e.epoch == epoch && e.id == Some(id))
            .map(|(at, _)| at)
    }

    fn write(&mut self, i: usize, id: ConnId) {
        let Some((conn, side)) = self.end_of(i, id) else {
            return;
        };
        let Some(links) = self.servers[i].listend.as_mut() else {
            return;
        };
        let bytes = links.outgoing(id);
        if self.record && side == 0 && !bytes.is_empty() {
            let (from, to) = (i, self.conns[conn].ends[1].server);
            match self
                .opening
                .iter_mut()
                .find(|(a, b, _)| (*a, *b) == (from, to))
            {
                Some((.., said)) if said.len() < 600 => said.extend_from_slice(bytes),
                Some(_) => {}
                None => self.opening.push((from, to, bytes.to_vec())),
            }
        }
        self.conns[conn].ends[side].out.extend_from_slice(bytes);
        let length = bytes.len();
        links.sent(id, length);
        self.push_out(conn, side);
    }

    fn dial(&mut self, i: usize, id: ConnId, peer: &ServerName, path: usize) {
        let Some(to) = self.index(peer) else { return };
        // The other end has an epoch once it has taken the connection.
        let epoch = self.servers[i].processes[Part::Listend as usize].epoch;
        let end = |server, epoch, id| End {
            server,
            epoch,
            id,
            retry: RETRY,
            ..End::default()
        };
        let conn = self.conns.len();
        self.conns.push(Conn {
            ends: [end(i, epoch, Some(id)), end(to, 0, None)],
            path,
        });
        self.syn(conn);
    }

    fn syn(&mut self, conn: usize) {
        let [a, b] = &self.conns[conn].ends;
        let (from, to) = (a.server, b.server);
        if a.gone || a.id.is_none() {
            return;
        }
        let (at, event) = match self.way(from, to) {
            Some(delay) => (self.now + delay, TcpEvent::Syn { conn }),
            None => (self.now + SYN_RETRY, TcpEvent::Retry { conn, side: 0 }),
        };
        self.queue.push(at, Event::Tcp(event));
    }

    /// Sends what waits, or tries again later.
    fn push_out(&mut self, conn: usize, side: usize) {
        let end = &mut self.conns[conn].ends[side];
        if end.waiting || (end.out.is_empty() && !end.fin) {
            return;
        }
        let from = end.server;
        let to = self.conns[conn].ends[1 - side].server;
        let way = self.way(from, to);
        let end = &mut self.conns[conn].ends[side];
        match way {
            None => {
                end.waiting = true;
                let after = end.retry;
                end.retry = (after * 2).min(RETRY_MAX);
                self.queue
                    .push(self.now + after, Event::Tcp(TcpEvent::Retry { conn, side }));
            }
            Some(delay) => {
                end.retry = RETRY;
                let at = (self.now + delay).max(end.last);
                end.last = at;
                let bytes = std::mem::take(&mut end.out);
                let fin = std::mem::take(&mut end.fin);
                let side = 1 - side;
                if !bytes.is_empty() {
                    self.queue
                        .push(at, Event::Tcp(TcpEvent::Data { conn, side, bytes }));
                }
                if fin {
                    self.queue.push(
                        at,
                        Event::Tcp(TcpEvent::End {
                            conn,
                            side,
                            reset: false,
                        }),
                    );
                }
            }
        }
    }

    fn close_end(&mut self, conn: usize, side: usize) {
        let end = &mut self.conns[conn].ends[side];
        if !end.gone {
            (end.gone, end.id, end.fin) = (true, None, true);
            self.push_out(conn, side);
        }
    }

    /// There is nobody at `side`: the other end is told so.
    fn reset(&mut self, conn: usize, side: usize) {
        let (here, there) = (
            self.conns[conn].ends[side].server,
            self.conns[conn].ends[1 - side].server,
        );
        if !self.servers[here].powered {
            return;
        }
        if let Some(delay) = self.way(here, there) {
            let event = TcpEvent::End {
                conn,
                side: 1 - side,
                reset: true,
            };
            self.queue.push(self.now + delay, Event::Tcp(event));
        }
    }

    /// At a server's kernel.
    pub(crate) fn tcp(&mut self, event: TcpEvent) {
        match event {
            TcpEvent::Retry { conn, side } => {
                let end = &mut self.conns[conn].ends[side];
                end.waiting = false;
                if side == 0 && self.conns[conn].ends[1].epoch == 0 {
                    return self.syn(conn);
                }
                // A machine without power repeats nothing.
                if self.servers[self.conns[conn].ends[side].server].powered {
                    self.push_out(conn, side);
                }
            }
            TcpEvent::Syn { conn } => self.syn_arrives(conn),
            TcpEvent::Established { conn } | TcpEvent::Refused { conn } => {
                self.tcp_job(conn, 0, event)
            }
            TcpEvent::Accept { conn } => self.tcp_job(conn, 1, event),
            TcpEvent::Data { conn, side, .. } | TcpEvent::End { conn, side, .. } => {
                self.tcp_job(conn, side, event)
            }
            TcpEvent::Replay { .. } => {}
        }
    }

    fn syn_arrives(&mut self, conn: usize) {
        let (from, to) = (
            self.conns[conn].ends[0].server,
            self.conns[conn].ends[1].server,
        );
        let process = &self.servers[to].processes[Part::Listend as usize];
        let (alive, epoch) = (process.alive, process.epoch);
        let there = self.servers[to].powered && self.servers[to].paused_until <= self.now;
        let back = self.way(to, from).filter(|_| there);
        let Some(back) = back else {
            return self.queue.push(
                self.now + SYN_RETRY,
                Event::Tcp(TcpEvent::Retry { conn, side: 0 }),
            );
        };
        if !alive {
            return self
                .queue
                .push(self.now + back, Event::Tcp(TcpEvent::Refused { conn }));
        }
        self.conns[conn].ends[1].epoch = epoch;
        let forth = self.schedule.delay.1 * 1000;
        self.conns[conn].ends[0].last = self.now + back + forth;
        self.queue
            .push(self.now + back, Event::Tcp(TcpEvent::Established { conn }));
        self.queue.push(
            self.now + back + forth,
            Event::Tcp(TcpEvent::Accept { conn }),
        );
    }

    fn tcp_job(&mut self, conn: usize, side: usize, event: TcpEvent) {
        let end = &self.conns[conn].ends[side];
        let (i, epoch) = (end.server, end.epoch);
        let server = &self.servers[i];
        if server.paused_until > self.now {
            let at = server.paused_until;
            return self.queue.push(at, Event::Tcp(event));
        }
        let process = &server.processes[Part::Listend as usize];
        if !process.alive || process.epoch != epoch || end.gone {
            if matches!(event, TcpEvent::Data { .. } | TcpEvent::Accept { .. }) {
                self.reset(conn, side);
            }
            return;
        }
        self.arrives(i, Part::Listend, Some(epoch), Job::Tcp(event));
    }
}
