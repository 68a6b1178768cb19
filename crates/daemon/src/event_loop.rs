//! The one place where a daemon waits: for its neighbours in the ring, the operator, its timer, Unix
//! signals, and whatever else it registered.
//!
//! Incoming connections begin with a greeting and belong to a neighbour or to the operator's command.
//! Outgoing links are made again and again until they hold. All readiness is edge-triggered underneath, so
//! a connection with more to read than its share of one round is kept in mind for the next.

use crate::{
    Boot, Error, clock,
    local_socket::{self, Access, Doorkeeper, Received, Sent},
};
use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use protocol::{
    BootTime, Role,
    codec::{MESSAGE_MAX, decode, decode_as, encode, encode_as, encode_record_as},
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
    },
    version,
};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Incoming connections at a time; one more takes the place of one without a neighbour behind it.
const CONNECTIONS_MAX: usize = 64;
/// Requests of operators answered in one round: an answer costs far more than a neighbour's message.
const REQUESTS_PER_ROUND: usize = 8;
/// For each unit of time that a round with requests took, operators wait so many.
const REQUESTS_PAUSE: u32 = 3;
/// Messages read from one connection in one round.
const READS_PER_CONNECTION: usize = 64;
/// Messages read from all connections in one round.
const READS_PER_ROUND: usize = 256;
/// Connections accepted in one round.
const ACCEPTS_PER_ROUND: usize = 32;
/// A connection that has not said who it is by then is closed.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// An operator's connection without a request for so long is closed.
const CTL_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a listener out of descriptors tries again.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// A lost link is tried so often in quick succession: a neighbour that was killed is back in milliseconds.
const QUICK_TRIES: u32 = 40;
/// So many messages wait for each other at most before they leave for a neighbour.
const QUEUE_MAX: usize = 16;
/// What carries electd's last messages waits for these beyond two leases, when all are told to end at once.
const HANDOVER: Duration = Duration::from_secs(5);
/// How often it is seen whether the own socket still has its name.
const LOOK: Duration = Duration::from_secs(1);
/// Time between quick tries.
const QUICK_RETRY: Duration = Duration::from_millis(1);
/// First and last step of the back-off after them.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// A neighbour that does not answer the greeting by then is dialled anew.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(1);

const LISTENER: usize = 0;
const TIMER: usize = 1;
const SIGNALS: usize = 2;
const WAKER: usize = 3;
const OUTGOING: usize = 8;
const INCOMING: usize = 1024;
const SOURCES: usize = usize::MAX / 2;

/// An operator's connection that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(usize);

/// What [`EventLoop::wait`] brings.
#[derive(Debug)]
pub enum Event {
    /// A packet of a neighbour: one message or several in a row, to be decoded by the daemon that knows their type
    /// ([`protocol::codec::decode_all`]).
    Message {
        /// Who sent it.
        from: Role,
        /// In which version of the local protocol.
        version: u8,
        /// The messages.
        bytes: Vec<u8>,
    },
    /// A request of the operator; answer it with [`EventLoop::reply`].
    Ctl {
        /// Where the answer goes.
        conn: ConnId,
        /// The request.
        request: CtlRequest,
    },
    /// The outgoing link to a role was made.
    Up(Role),
    /// The outgoing link to a role was lost.
    Down(Role),
    /// An incoming neighbour is gone.
    PeerGone(Role),
    /// A registered source is ready. Readiness is told once: read or write until it would block.
    Source {
        /// As registered.
        id: usize,
        /// Reading will not block, or fails.
        readable: bool,
        /// Writing will not block, or fails.
        writable: bool,
    },
    /// Another thread called the waker.
    Woken,
    /// SIGINT, or SIGTERM: who carries electd's messages gets that only once electd is gone, or time is up.
    Terminate,
    /// SIGHUP.
    Reload,
    /// The deadline given to `wait` has passed; always the last event of its round.
    Deadline,
}

/// See the module's head.
pub struct EventLoop {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    timer: TimerFd,
    armed: Option<BootTime>,
    signals: Signals,
    listener: Listener,
    incoming: BTreeMap<usize, Incoming>,
    next_token: usize,
    unread: BTreeSet<usize>,
    /// Where the next round of reading begins, so that a few busy ones cannot keep the others waiting.
    next_read: usize,
    /// When the round began whose requests are being answered now.
    answering: Option<BootTime>,
    /// No request is read before.
    operators_at: BootTime,
    outgoing: Vec<Outgoing>,
    pending: Vec<Event>,
    counters: Counters,
    buffer: Vec<u8>,
    role: Role,
    /// How long it waits for electd once it is told to end, and until when it does.
    handover: Duration,
    ending: Option<BootTime>,
}

struct Listener {
    socket: OwnedFd,
    run_dir: PathBuf,
    /// Which file it has made, and when that is looked for again.
    file: Option<(u64, u64)>,
    look: BootTime,
    /// That it cannot be put back has been said.
    lost: bool,
    door: Doorkeeper,
    receives_from: Vec<Role>,
    ready: bool,
    retry: Option<BootTime>,
}

struct Incoming {
    socket: OwnedFd,
    access: Access,
    state: IncomingState,
}

#[derive(Clone, Copy)]
enum IncomingState {
    Greeting {
        until: BootTime,
    },
    Neighbour(Role, u8),
    /// Closed if it is silent until then; none: its last answer takes its time.
    Operator {
        until: Option<BootTime>,
        version: u8,
    },
}

struct Outgoing {
    role: Role,
    path: PathBuf,
    state: OutgoingState,
    /// The version of the local protocol that is spoken, or asked for.
    version: u8,
    tries: u32,
    /// That it cannot be reached has been said.
    refused: bool,
    /// Messages that leave in one packet, and how many.
    queue: (Vec<u8>, usize),
}

enum OutgoingState {
    Down { retry: BootTime },
    Greeting { socket: OwnedFd, until: BootTime },
    Up { socket: OwnedFd },
}

#[derive(Default)]
struct Counters(BTreeMap<String, u64>);

impl Counters {
    fn add(&mut self, name: &str) {
        match self.0.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(name.to_owned(), 1)),
        }
    }
}

impl EventLoop {
    /// Listens at this role's socket for `receives_from` and the operator, and begins to dial `sends_to`.
    pub fn open(boot: &Boot, receives_from: &[Role], sends_to: &[Role]) -> Result<Self, Error> {
        let run_dir = &boot.args.run_dir;
        let failed = |e: io::Error| Error::io("cannot set up the event loop", e);
        let poll = Poll::new().map_err(failed)?;
        let registry = poll.registry();
        let waker = Arc::new(Waker::new(registry, Token(WAKER)).map_err(failed)?);
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        );
        let timer = timer.map_err(|e| failed(e.into()))?;
        let readable = Interest::READABLE;
        let timer_fd = timer.as_fd().as_raw_fd();
        registry
            .register(&mut SourceFd(&timer_fd), Token(TIMER), readable)
            .map_err(failed)?;
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
        registry
            .register(&mut signals, Token(SIGNALS), readable)
            .map_err(failed)?;
        let socket = local_socket::open(run_dir, boot.role)?;
        registry
            .register(
                &mut SourceFd(&socket.as_raw_fd()),
                Token(LISTENER),
                readable,
            )
            .map_err(failed)?;
        let outgoing = |role: &Role| Outgoing {
            role: *role,
            path: local_socket::path(run_dir, *role),
            state: OutgoingState::Down {
                retry: BootTime::default(),
            },
            version: *version::LOCAL.end(),
            tries: 0,
            refused: false,
            queue: (Vec::new(), 0),
        };
        Ok(Self {
            poll,
            events: Events::with_capacity(128),
            waker,
            timer,
            armed: None,
            signals,
            listener: Listener {
                socket,
                run_dir: run_dir.clone(),
                file: local_socket::identity(&local_socket::path(run_dir, boot.role)),
                look: clock::now() + LOOK,
                lost: false,
                door: Doorkeeper::new(),
                receives_from: receives_from.to_vec(),
                ready: false,
                retry: None,
            },
            incoming: BTreeMap::new(),
            next_token: INCOMING,
            unread: BTreeSet::new(),
            next_read: 0,
            answering: None,
            operators_at: BootTime(0),
            outgoing: sends_to.iter().map(outgoing).collect(),
            pending: Vec::new(),
            counters: Counters::default(),
            buffer: vec![0; MESSAGE_MAX],
            role: boot.role,
            handover: HANDOVER + 2 * boot.config.cluster.lease,
            ending: None,
        })
    }

    /// Listens to `source`; its events carry `id`.
    pub fn register(
        &mut self,
        source: &mut impl mio::event::Source,
        id: usize,
        interest: Interest,
    ) -> Result<(), Error> {
        let result = self
            .poll
            .registry()
            .register(source, Token(SOURCES + id), interest);
        result.map_err(|e| Error::io("cannot watch a descriptor", e))
    }

    /// Listens to `source` under another id or interest.
    pub fn reregister(
        &mut self,
        source: &mut impl mio::event::Source,
        id: usize,
        interest: Interest,
    ) -> Result<(), Error> {
        let result = self
            .poll
            .registry()
            .reregister(source, Token(SOURCES + id), interest);
        result.map_err(|e| Error::io("cannot watch a descriptor", e))
    }

    /// Listens to `source` no longer.
    pub fn deregister(&mut self, source: &mut impl mio::event::Source) -> Result<(), Error> {
        let result = self.poll.registry().deregister(source);
        result.map_err(|e| Error::io("cannot stop watching a descriptor", e))
    }

    /// Wakes [`EventLoop::wait`] from another thread, as [`Event::Woken`].
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Waits until something happens or `deadline` passes, and puts it into `events`, which is emptied first.
    /// A round brings a bounded number of events, and [`Event::Deadline`] even if more is there to read.
    pub fn wait(
        &mut self,
        deadline: Option<BootTime>,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        events.clear();
        self.flush();
        if let Some(began) = self.answering.take() {
            let now = clock::now();
            self.operators_at = now + now.since(began) * REQUESTS_PAUSE;
        }
        loop {
            let now = clock::now();
            self.housekeeping(now);
            self.arm(deadline)?;
            let busy = !self.pending.is_empty() || self.listener.ready || self.has_readable(now);
            match self
                .poll
                .poll(&mut self.events, busy.then_some(Duration::ZERO))
            {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("cannot wait for events", e)),
            }
            self.collect();
            if self.listener.ready {
                self.accept();
            }
            self.read();
            events.append(&mut self.pending);
            if deadline.is_some_and(|d| d <= clock::now()) {
                events.push(Event::Deadline);
            }
            if !events.is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends `message` to `to`. Never blocks; false means dropped, and counted.
    pub fn send<M: Serialize>(&mut self, to: Role, message: &M) -> bool {
        self.queue(to, message) && self.flush_to(to)
    }

    /// Like [`EventLoop::send`], but it may wait for the next [`EventLoop::wait`], to leave in one packet with others
    /// and wake the neighbour once. False means dropped, and counted.
    pub fn queue<M: Serialize>(&mut self, to: Role, message: &M) -> bool {
        let Some(link) = self.outgoing.iter_mut().find(|o| o.role == to) else {
            return false;
        };
        if !matches!(link.state, OutgoingState::Up { .. }) {
            self.counters.add(&format!("local_unsent_{to}_down"));
            return false;
        }
        let Ok(bytes) = encode_as(message, link.version) else {
            self.counters.add(&format!("local_unsent_{to}_too_long"));
            return false;
        };
        if (link.queue.1 >= QUEUE_MAX || link.queue.0.len() + bytes.len() > MESSAGE_MAX)
            && !self.flush_to(to)
        {
            return false;
        }
        if let Some(link) = self.outgoing.iter_mut().find(|o| o.role == to) {
            link.queue.0.extend_from_slice(&bytes);
            link.queue.1 += 1;
        }
        true
    }

    /// Everything queued leaves; [`EventLoop::wait`] does so, too.
    pub fn flush(&mut self) {
        for i in 0..self.outgoing.len() {
            self.flush_to(self.outgoing[i].role);
        }
    }

    fn flush_to(&mut self, to: Role) -> bool {
        let Some(link) = self.outgoing.iter_mut().find(|o| o.role == to) else {
            return false;
        };
        let count = std::mem::take(&mut link.queue.1);
        if count == 0 {
            return true;
        }
        let sent = match &link.state {
            OutgoingState::Up { socket } => local_socket::transmit(socket, &link.queue.0),
            OutgoingState::Down { .. } | OutgoingState::Greeting { .. } => Sent::Closed,
        };
        link.queue.0.clear();
        let why = match sent {
            Sent::Yes => return true,
            Sent::Full => "full",
            Sent::Closed => "down",
        };
        if sent == Sent::Closed && matches!(link.state, OutgoingState::Up { .. }) {
            self.pending.push(Event::Down(to));
            link.lost(clock::now());
        }
        for _ in 0..count {
            self.counters.add(&format!("local_unsent_{to}_{why}"));
        }
        false
    }

    /// Answers a request. The connection stays open for the next one.
    pub fn reply(&mut self, conn: ConnId, reply: &CtlReply) {
        let Some(incoming) = self.incoming.get_mut(&conn.0) else {
            return;
        };
        let version = match &mut incoming.state {
            IncomingState::Operator { version, until } => {
                *until = Some(clock::now() + CTL_TIMEOUT);
                *version
            }
            IncomingState::Neighbour(..) | IncomingState::Greeting { .. } => version::FIRST,
        };
        let sent = encode_record_as(reply, version)
            .map(|bytes| local_socket::transmit(&incoming.socket, &bytes));
        if !matches!(sent, Ok(Sent::Yes)) {
            self.counters.add("local_unsent_reply");
            self.close(conn.0);
        }
    }

    /// The operator waits for another answer, for as long as it takes.
    pub fn hold(&mut self, conn: ConnId) {
        let incoming = self.incoming.get_mut(&conn.0);
        if let Some(IncomingState::Operator { until, .. }) = incoming.map(|i| &mut i.state) {
            *until = None;
        }
    }

    /// Whether messages to `role` have somewhere to go.
    pub fn is_up(&self, role: Role) -> bool {
        self.outgoing
            .iter()
            .any(|o| o.role == role && matches!(o.state, OutgoingState::Up { .. }))
    }

    /// The version of the local protocol that `role` is spoken to in.
    pub fn version(&self, role: Role) -> u8 {
        let link = self.outgoing.iter().find(|o| o.role == role);
        link.map_or(version::FIRST, |o| o.version)
    }

    /// Everything counted here: messages dropped, strangers refused, links made.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.counters.0.clone()
    }

    /// Sets the timer to whatever is due first.
    fn arm(&mut self, deadline: Option<BootTime>) -> Result<(), Error> {
        let outgoing = self.outgoing.iter().filter_map(Outgoing::due);
        let incoming = self.incoming.values().filter_map(|i| i.state.due());
        let waiting = self.unread.iter().any(|t| self.is_operator(*t));
        let operators = waiting.then_some(self.operators_at);
        let own = outgoing
            .chain(incoming)
            .chain(self.listener.retry)
            .chain([self.listener.look])
            .chain(self.ending)
            .chain(operators);
        let due = own.chain(deadline).min();
        if due == self.armed {
            return Ok(());
        }
        self.armed = due;
        let set = match due {
            None => self.timer.unset(),
            // Zero would disarm the timer; the past fires at once.
            Some(due) => self.timer.set(
                Expiration::OneShot(TimeSpec::from(Duration::from_nanos(due.0.max(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
        };
        set.map_err(|e| Error::io("cannot set the timer", e))
    }

    /// What time brings: links to dial, connections to give up.
    fn housekeeping(&mut self, now: BootTime) {
        for i in 0..self.outgoing.len() {
            if self.outgoing[i].due().is_some_and(|due| due <= now) {
                self.dial(i, now);
            }
        }
        let overdue = |i: &Incoming| i.state.due().is_some_and(|due| due <= now);
        let overdue: Vec<usize> = self
            .incoming
            .iter()
            .filter(|(_, i)| overdue(i))
            .map(|(token, _)| *token)
            .collect();
        for token in overdue {
            self.counters.add("local_closed_idle");
            self.close(token);
        }
        if self.listener.retry.is_some_and(|retry| retry <= now) {
            self.listener.retry = None;
            self.listener.ready = true;
        }
        if self
            .ending
            .is_some_and(|until| until <= now || !self.has_electd())
        {
            self.ending = None;
            self.pending.push(Event::Terminate);
        }
        if self.listener.look <= now {
            self.listener.look = now + LOOK;
            self.look_after_socket();
        }
    }

    /// A socket whose name another program removed is reached by nobody: it is made anew. Where this process may not,
    /// the main daemon restarts it.
    fn look_after_socket(&mut self) {
        let path = local_socket::path(&self.listener.run_dir, self.role);
        if local_socket::identity(&path) == self.listener.file {
            return;
        }
        let registry = self.poll.registry();
        let opened = local_socket::open(&self.listener.run_dir, self.role).and_then(|socket| {
            registry
                .register(
                    &mut SourceFd(&socket.as_raw_fd()),
                    Token(LISTENER),
                    Interest::READABLE,
                )
                .map_err(|e| Error::io("cannot watch a socket", e))?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => {
                // Its descriptor is closed below, which ends the watch in any case.
                let _ = registry.deregister(&mut SourceFd(&self.listener.socket.as_raw_fd()));
                self.listener.socket = socket;
                self.listener.file = local_socket::identity(&path);
                self.listener.lost = false;
                log::warn!(
                    "{} was removed by another program and has been made anew",
                    path.display()
                );
            }
            Err(e) => {
                if !std::mem::replace(&mut self.listener.lost, true) {
                    log::warn!("{} was removed by another program: {e}", path.display());
                }
            }
        }
    }

    fn collect(&mut self) {
        let mut signalled = false;
        for event in &self.events {
            match event.token().0 {
                LISTENER => self.listener.ready = true,
                TIMER => self.armed = None,
                SIGNALS => signalled = true,
                WAKER => self.pending.push(Event::Woken),
                token if token >= SOURCES => self.pending.push(Event::Source {
                    id: token - SOURCES,
                    readable: event.is_readable() || event.is_read_closed() || event.is_error(),
                    writable: event.is_writable() || event.is_write_closed() || event.is_error(),
                }),
                token => drop(self.unread.insert(token)),
            }
        }
        if signalled {
            let received: BTreeSet<i32> = self.signals.pending().collect();
            if received.contains(&SIGHUP) {
                crate::log::reopen();
                self.pending.push(Event::Reload);
            }
            let carries = matches!(self.role, Role::Hbd | Role::Listend | Role::Doctord);
            if received.contains(&SIGINT) {
                self.pending.push(Event::Terminate);
            } else if received.contains(&SIGTERM) {
                // At a halt everybody is told to end: electd, too, and hands over first.
                let wait = (carries && self.has_electd()).then_some(self.handover);
                match wait {
                    Some(wait) => self.ending = Some(clock::now() + wait),
                    None => self.pending.push(Event::Terminate),
                }
            }
        }
    }

    fn has_electd(&self) -> bool {
        let electd = |i: &Incoming| i.is_neighbour(Role::Electd);
        self.is_up(Role::Electd) || self.incoming.values().any(electd)
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_ROUND {
            let socket = match local_socket::accept(&self.listener.socket) {
                Ok(socket) => socket,
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.listener.ready = false;
                        return;
                    }
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => {
                        self.counters.add("local_accept_failed");
                        self.listener.ready = false;
                        self.listener.retry = Some(clock::now() + ACCEPT_RETRY);
                        return;
                    }
                },
            };
            if let Err(counter) = self.admit(socket) {
                self.counters.add(counter);
            }
        }
    }

    /// Keeps a new connection, or says what to count.
    fn admit(&mut self, socket: OwnedFd) -> Result<(), &'static str> {
        let access = self.listener.door.access(&socket);
        if access == Access::Denied {
            return Err("local_refused_user");
        }
        if self.incoming.len() >= CONNECTIONS_MAX {
            self.make_room()?;
        }
        let token = self.next_token;
        self.next_token += 1;
        self.poll
            .registry()
            .register(
                &mut SourceFd(&socket.as_raw_fd()),
                Token(token),
                Interest::READABLE,
            )
            .map_err(|_| "local_accept_failed")?;
        let state = IncomingState::Greeting {
            until: clock::now() + GREETING_TIMEOUT,
        };
        self.incoming.insert(
            token,
            Incoming {
                socket,
                access,
                state,
            },
        );
        self.unread.insert(token);
        Ok(())
    }

    /// Closes the connection that is worth least: whoever connects may be a neighbour that was restarted, and must
    /// get in whatever others do.
    fn make_room(&mut self) -> Result<(), &'static str> {
        let worth = |i: &Incoming| match i.state {
            IncomingState::Greeting { until } => Some((0, until)),
            IncomingState::Operator { until, .. } => Some((1, until.unwrap_or(BootTime(u64::MAX)))),
            IncomingState::Neighbour(..) => None,
        };
        let worths = self
            .incoming
            .iter()
            .filter_map(|(t, i)| Some((worth(i)?, *t)));
        let (_, least) = worths.min().ok_or("local_refused_full")?;
        self.counters.add("local_closed_full");
        self.close(least);
        Ok(())
    }

    /// Has not said yet who it is: the greeting tells how much more is read.
    fn is_new(&self, token: usize) -> bool {
        let incoming = self.incoming.get(&token);
        incoming.is_some_and(|i| matches!(i.state, IncomingState::Greeting { .. }))
    }

    fn is_operator(&self, token: usize) -> bool {
        let incoming = self.incoming.get(&token);
        incoming.is_some_and(|i| matches!(i.state, IncomingState::Operator { .. }))
    }

    /// Something can be read at once, operators only if it is their time.
    fn has_readable(&self, now: BootTime) -> bool {
        let theirs = self.operators_at <= now;
        self.unread.iter().any(|t| theirs || !self.is_operator(*t))
    }

    /// Reads from every connection that has something, within the budget of a round. Operators get theirs only now
    /// and then, so that all their requests together take but a part of the time.
    fn read(&mut self) {
        let now = clock::now();
        let (mut left, mut requests) = (READS_PER_ROUND, REQUESTS_PER_ROUND);
        if self.operators_at > now {
            requests = 0;
        }
        let mut unread = std::mem::take(&mut self.unread);
        let later = unread.split_off(&self.next_read);
        for token in later.into_iter().chain(unread) {
            let operator = self.is_operator(token);
            let share = match () {
                () if operator => left.min(requests).min(1),
                () if self.is_new(token) => left.min(1),
                () => left.min(READS_PER_CONNECTION),
            };
            if share > 0 {
                self.next_read = token + 1;
            }
            let (read, drained) = if token >= INCOMING {
                self.read_incoming(token, share)
            } else {
                self.read_outgoing(token - OUTGOING, share)
            };
            left -= read;
            if operator && read > 0 {
                requests -= read;
                self.answering = Some(now);
            }
            if !drained {
                self.unread.insert(token);
            }
        }
    }

    /// Reads up to `share` messages; returns how many, and whether none is left.
    fn read_incoming(&mut self, token: usize, share: usize) -> (usize, bool) {
        for read in 0..share {
            let Some(incoming) = self.incoming.get(&token) else {
                return (read, true);
            };
            match local_socket::receive(&incoming.socket, &mut self.buffer) {
                Received::Nothing => return (read, true),
                Received::Closed => {
                    self.close(token);
                    return (read, true);
                }
                Received::Message(length) => {
                    if let Err(counter) = self.take(token, length) {
                        self.counters.add(counter);
                        self.close(token);
                        return (read + 1, true);
                    }
                }
            }
        }
        (share, false)
    }

    /// Handles the message in the buffer, or says what to count before the connection is closed.
    fn take(&mut self, token: usize, length: usize) -> Result<(), &'static str> {
        let Some(incoming) = self.incoming.get_mut(&token) else {
            return Ok(());
        };
        let message = &self.buffer[..length];
        match incoming.state {
            IncomingState::Neighbour(from, version) => {
                self.pending.push(Event::Message {
                    from,
                    version,
                    bytes: message.to_vec(),
                });
                Ok(())
            }
            IncomingState::Operator { version, .. } => {
                let request: CtlRequest =
                    decode_as(message, version).map_err(|_| "local_refused_garbage")?;
                if incoming.access != Access::Full && request != CtlRequest::Status {
                    let no = CtlReply::No("only root may command; run it as root".into());
                    // The answer is a courtesy: the connection is closed in any case.
                    let _ = encode_as(&no, version)
                        .map(|no| local_socket::transmit(&incoming.socket, &no));
                    return Err("local_refused_command");
                }
                incoming.state = IncomingState::Operator {
                    until: Some(clock::now() + CTL_TIMEOUT),
                    version,
                };
                self.pending.push(Event::Ctl {
                    conn: ConnId(token),
                    request,
                });
                Ok(())
            }
            IncomingState::Greeting { .. } => {
                let hello: Hello = decode(message).map_err(|_| "local_refused_garbage")?;
                self.greet(token, &hello)
            }
        }
    }

    fn greet(&mut self, token: usize, hello: &Hello) -> Result<(), &'static str> {
        let Some(incoming) = self.incoming.get_mut(&token) else {
            return Ok(());
        };
        let spoken = u8::try_from(hello.version).ok();
        let answer = if hello.magic != MAGIC {
            return Err("local_refused_garbage");
        } else if let Some(version) = spoken.filter(|v| version::LOCAL.contains(v)) {
            let operator = match hello.role {
                Role::Standin => true,
                Role::Main => incoming.access != Access::Status,
                _ => false,
            };
            if operator {
                incoming.state = IncomingState::Operator {
                    until: Some(clock::now() + CTL_TIMEOUT),
                    version,
                };
                HelloAnswer::Welcome
            } else if incoming.access == Access::Status {
                return Err("local_refused_user");
            } else if hello.role == Role::Electd && incoming.access != Access::Full {
                return Err("local_refused_command");
            } else if self.listener.receives_from.contains(&hello.role) {
                incoming.state = IncomingState::Neighbour(hello.role, version);
                HelloAnswer::Welcome
            } else {
                HelloAnswer::Refused(format!("{} takes no messages of {}", self.role, hello.role))
            }
        } else {
            HelloAnswer::other_version(self.role, hello)
        };
        let refused = answer != HelloAnswer::Welcome;
        let bytes = encode(&answer).map_err(|_| "local_refused_hello")?;
        let sent = local_socket::transmit(&incoming.socket, &bytes);
        if refused || sent != Sent::Yes {
            return Err("local_refused_hello");
        }
        if let IncomingState::Neighbour(role, _) = incoming.state {
            self.replace_older(token, role);
        }
        Ok(())
    }

    /// A role speaks over one connection, the newest.
    fn replace_older(&mut self, token: usize, role: Role) {
        let older = self
            .incoming
            .iter()
            .filter(|(t, i)| **t != token && i.is_neighbour(role));
        let older: Vec<usize> = older.map(|(t, _)| *t).collect();
        for token in older {
            self.counters.add("local_replaced");
            self.close(token);
        }
    }

    fn close(&mut self, token: usize) {
        let Some(incoming) = self.incoming.remove(&token) else {
            return;
        };
        let _ = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&incoming.socket.as_raw_fd()));
        self.unread.remove(&token);
        if let IncomingState::Neighbour(role, _) = incoming.state
            && !self.incoming.values().any(|i| i.is_neighbour(role))
        {
            self.pending.push(Event::PeerGone(role));
        }
    }

    /// Reads the answer to the greeting; after that nothing comes this way but the end.
    fn read_outgoing(&mut self, i: usize, share: usize) -> (usize, bool) {
        let now = clock::now();
        for read in 0..share {
            let Some(link) = self.outgoing.get_mut(i) else {
                return (read, true);
            };
            let (OutgoingState::Greeting { socket, .. } | OutgoingState::Up { socket }) =
                &link.state
            else {
                return (read, true);
            };
            let length = match local_socket::receive(socket, &mut self.buffer) {
                Received::Nothing => return (read, true),
                Received::Message(length) => length,
                Received::Closed => 0,
            };
            match link.answered(&self.buffer[..length], now) {
                Answer::Up => {
                    self.counters.add(&format!("local_link_{}", link.role));
                    self.pending.push(Event::Up(link.role));
                }
                Answer::Down => self.pending.push(Event::Down(link.role)),
                Answer::Nothing => {}
            }
        }
        (share, false)
    }

    fn dial(&mut self, i: usize, now: BootTime) {
        let link = &mut self.outgoing[i];
        let hello = Hello {
            magic: MAGIC,
            version: link.version.into(),
            role: self.role,
        };
        let dialled = local_socket::dial(&link.path);
        if let Err(e) = &dialled {
            link.say_refused(e);
        }
        let dialled = dialled.ok().filter(|socket| {
            let fd = socket.as_raw_fd();
            let registry = self.poll.registry();
            registry
                .register(&mut SourceFd(&fd), Token(OUTGOING + i), Interest::READABLE)
                .is_ok()
                && encode(&hello)
                    .is_ok_and(|bytes| local_socket::transmit(socket, &bytes) == Sent::Yes)
        });
        match dialled {
            Some(socket) => {
                link.state = OutgoingState::Greeting {
                    socket,
                    until: now + WELCOME_TIMEOUT,
                };
                self.unread.insert(OUTGOING + i);
            }
            None => link.lost(now),
        }
    }
}

enum Answer {
    Up,
    Down,
    Nothing,
}

impl Outgoing {
    /// When it must be dialled.
    fn due(&self) -> Option<BootTime> {
        match self.state {
            OutgoingState::Down { retry } => Some(retry),
            OutgoingState::Greeting { until, .. } => Some(until),
            OutgoingState::Up { .. } => None,
        }
    }

    /// The neighbour said `message`, or closed (an empty one).
    fn answered(&mut self, message: &[u8], now: BootTime) -> Answer {
        let lost = OutgoingState::Down { retry: now };
        match std::mem::replace(&mut self.state, lost) {
            OutgoingState::Greeting { socket, .. } => match decode(message) {
                Ok(HelloAnswer::Welcome) => {
                    self.state = OutgoingState::Up { socket };
                    self.tries = 0;
                    self.refused = false;
                    return Answer::Up;
                }
                Ok(answer) => match answer.version_instead(self.version) {
                    Ok(version) => {
                        self.version = version;
                        return Answer::Nothing; // Dialled again at once.
                    }
                    Err(why) => {
                        log::warn!("{} refuses the link: {why}", self.role);
                        self.tries = self.tries.max(QUICK_TRIES + 6);
                        self.lost(now);
                    }
                },
                Err(_) => self.lost(now),
            },
            OutgoingState::Up { .. } => {
                self.lost(now);
                return Answer::Down;
            }
            down @ OutgoingState::Down { .. } => self.state = down,
        }
        Answer::Nothing
    }

    /// A neighbour that is not there comes; one that may not be reached stays deaf until somebody mends it.
    fn say_refused(&mut self, e: &io::Error) {
        use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
        let comes = matches!(e.kind(), NotFound | ConnectionRefused | WouldBlock);
        if !comes && !std::mem::replace(&mut self.refused, true) {
            log::error!(
                "cannot reach {} at {}: {e}; the main daemon mends owner and mode of the sockets, see that it runs",
                self.role,
                self.path.display()
            );
        }
    }

    fn lost(&mut self, now: BootTime) {
        self.version = *version::LOCAL.end(); // It may be another release that answers next.
        self.state = OutgoingState::Down {
            retry: now + back_off(self.tries),
        };
        self.tries = self.tries.saturating_add(1);
    }
}

/// Time until the next try after `tries` in vain.
fn back_off(tries: u32) -> Duration {
    if tries < QUICK_TRIES {
        return QUICK_RETRY;
    }
    let doublings = (tries - QUICK_TRIES).min(16);
    RETRY.0.saturating_mul(1 << doublings).min(RETRY.1)
}

impl Incoming {
    fn is_neighbour(&self, role: Role) -> bool {
        matches!(self.state, IncomingState::Neighbour(r, _) if r == role)
    }
}

impl IncomingState {
    /// When the connection must be closed.
    fn due(&self) -> Option<BootTime> {
        match self {
            Self::Greeting { until } => Some(*until),
            Self::Operator { until, .. } => *until,
            Self::Neighbour(..) => None,
        }
    }
}
