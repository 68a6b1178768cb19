//! The thin shell around the core: sockets, clocks, randomness, the ring, and the log.

use crate::{socket::Socket, wall::WallClock};
use config::{ClusterKeys, Config};
use daemon::{Boot, Error, Event, EventLoop, Keep, Limiter};
use heartbeat::{Heartbeat, Input, Output, Path, PeerSettings, Refusal, Settings, Transmit};
use nix::errno::Errno;
use protocol::{
    BootTime, Role, ServerName, codec,
    local::{
        ctl::{CtlReply, CtlRequest},
        ring::{ElectdToHbd, HbdToDoctord},
        status::Detail,
    },
    seal::{NONCE, OVERHEAD, Sealer},
    version::Since,
    wire::datagram::{DATAGRAM_MAX, Incarnation},
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Distance between two log lines about the same thing.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// Datagrams read from one socket before everything else has its turn again.
const READ_BUDGET: usize = 64;

/// Pause after that many from anybody at all; what comes from a peer's address and port has no pause.
const STRANGERS_PAUSE: Duration = Duration::from_millis(1);

/// Packets of which the kernel may still tell when they left.
const SENT: usize = 64;

/// Room for a packet as the kernel gives it back, with the headers of all layers.
const LEFT_MAX: usize = DATAGRAM_MAX + 256;

/// First and longest wait before a socket that could not be opened is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// hbd's shell.
pub struct Shell {
    boot: Boot,
    core: Heartbeat,
    ring: EventLoop,
    slots: BTreeMap<usize, Slot>,
    next_slot: usize,
    counters: BTreeMap<String, u64>,
    /// Rights that were missing at the start.
    notes: Vec<String>,
    /// Paths that could not be sent on the last time.
    broken: BTreeMap<(IpAddr, IpAddr), Errno>,
    limiter: Limiter,
    /// When doctord is told again that hbd is there and reads; a message tells the same.
    listening_at: BootTime,
    /// doctord got a message in this turn.
    delivered: bool,
    buffer: Vec<u8>,
    /// The last packets that were sent.
    sent: VecDeque<Sent>,
    wall: WallClock,
}

/// One packet that was sent.
struct Sent {
    to: ServerName,
    /// By its seal it is known again.
    end: [u8; OVERHEAD - NONCE],
    /// As it says.
    real_ns: u64,
    /// As far as was known then, the wall clock had not been set since.
    even: BootTime,
    /// Copies, one for each path, of which the kernel has not told when they left.
    untold: usize,
    /// How much later the first of the others did.
    late: Option<u32>,
}

impl Sent {
    fn new(to: &ServerName, bytes: &[u8], real_ns: u64, even: BootTime) -> Self {
        let end = bytes.last_chunk().copied().unwrap_or_default();
        Self {
            to: to.clone(),
            end,
            real_ns,
            even,
            untold: 0,
            late: None,
        }
    }

    /// A copy left so much later. When the first did is known once all have been told: a copy that no driver tells of may
    /// have been before them, and a time of leaving that is too late would make a wrong limit.
    fn left(&mut self, late: u32) -> Option<u32> {
        self.late = Some(self.late.map_or(late, |known| known.min(late)));
        self.untold = self.untold.checked_sub(1)?;
        self.late.filter(|_| self.untold == 0)
    }
}

/// One address of this server and a socket there.
struct Slot {
    address: IpAddr,
    /// The only address it hears; `None`: all that have no socket of their own.
    peer: Option<IpAddr>,
    socket: Option<Socket>,
    /// Why there is no socket.
    error: Option<Errno>,
    retry_at: BootTime,
    retry_after: Duration,
    /// There may be more to read.
    readable: bool,
    /// Before this nothing was left to read: whatever is read later did not arrive earlier.
    drained: BootTime,
    /// Whatever arrived before this is read.
    read_to: BootTime,
    /// Nothing is read before.
    resume_at: BootTime,
    /// As the socket told last.
    overflowed: u32,
}

impl Slot {
    fn new(address: IpAddr, peer: Option<IpAddr>) -> Self {
        Self {
            address,
            peer,
            socket: None,
            error: None,
            retry_at: BootTime(0),
            retry_after: RETRY.0,
            readable: false,
            drained: BootTime(0),
            read_to: BootTime(0),
            resume_at: BootTime(0),
            overflowed: 0,
        }
    }
}

impl Shell {
    /// Reads the key, draws the incarnation, opens sockets and ring.
    pub fn open(boot: Boot) -> Result<Self, Error> {
        let sealer = sealer(&boot.keys()?, &boot.config);
        let incarnation = Incarnation(daemon::random()?);
        let core = Heartbeat::new(settings(&boot.config, &boot.me), sealer, incarnation);
        let ring = EventLoop::open(&boot, &[Role::Electd], &[Role::Doctord])?;
        let mut shell = Self {
            boot,
            core,
            ring,
            slots: BTreeMap::new(),
            next_slot: 0,
            counters: BTreeMap::new(),
            notes: Vec::new(),
            broken: BTreeMap::new(),
            limiter: Limiter::new(LINE_EVERY),
            listening_at: BootTime(0),
            delivered: false,
            buffer: vec![0; DATAGRAM_MAX],
            sent: VecDeque::new(),
            wall: WallClock::default(),
        };
        shell.renew_slots(false)?;
        Ok(shell)
    }

    /// Real time first, since that takes a right; then hbd gives up all it has.
    pub fn give_up_rights(&mut self, priority: i32) -> Result<(), Error> {
        self.notes = self.boot.realtime(priority);
        self.notes.extend(self.boot.drop_privileges(Keep::Nothing)?);
        Ok(())
    }

    /// Serves until told to stop.
    pub fn serve(&mut self) -> Result<(), Error> {
        self.boot.ready();
        let mut events = Vec::new();
        loop {
            let deadline = self.deadline();
            self.ring.wait(deadline, &mut events)?;
            for event in events.drain(..) {
                match event {
                    Event::Message {
                        from: Role::Electd,
                        version,
                        bytes,
                    } => self.relay(&bytes, version)?,
                    Event::Message { .. } => self.count("malformed_messages"),
                    Event::Ctl { conn, request } => {
                        let reply = self.answer(&request);
                        self.ring.reply(conn, &reply);
                    }
                    Event::Source { id, readable, .. } => {
                        if let Some(slot) = self.slots.get_mut(&id) {
                            slot.readable |= readable;
                        }
                    }
                    Event::Reload => self.reload()?,
                    Event::Terminate => {
                        log::info!("stops; counted: {:?}", self.all_counters());
                        return Ok(());
                    }
                    Event::Up(Role::Doctord) => self.listening_at = BootTime(0),
                    Event::Up(_) | Event::Down(_) | Event::PeerGone(_) => {}
                    Event::Woken | Event::Deadline => {}
                }
            }
            for id in self.ids() {
                self.receive(id)?;
            }
            self.timeouts()?;
        }
    }

    fn ids(&self) -> Vec<usize> {
        self.slots.keys().copied().collect()
    }

    fn deadline(&self) -> Option<BootTime> {
        let slots = self.slots.values();
        let unread = slots.clone().filter(|s| s.readable).map(|s| s.resume_at);
        let retries = slots.filter(|s| s.socket.is_none()).map(|s| s.retry_at);
        let listening = self.tells_doctord().then_some(self.listening_at);
        unread
            .chain(retries)
            .chain(self.core.poll_timeout())
            .chain(listening)
            .min()
    }

    /// Someone to tell, and something to tell: a socket is open, and nothing of a peer has been unread for long. A
    /// flood must not make the doctor blind: its end need not be reached, only what came before now.
    fn tells_doctord(&self) -> bool {
        let slack = self.boot.config.cluster.heartbeat / 4;
        let now = daemon::now();
        let behind = |s: &&Slot| s.readable && now.since(s.read_to) > slack;
        // Strangers may wait, unless a peer is heard among them only.
        let heard = |s: &&Slot| s.peer.is_some() || !self.all_peers_have_sockets();
        self.ring.is_up(Role::Doctord)
            && self.slots.values().any(|s| s.socket.is_some())
            && !self.slots.values().filter(heard).any(|s| behind(&s))
    }

    fn all_peers_have_sockets(&self) -> bool {
        let mut peers = self.slots.values().filter(|s| s.peer.is_some());
        peers.all(|s| s.socket.is_some())
    }

    fn timeouts(&mut self) -> Result<(), Error> {
        let now = daemon::now();
        let heartbeat = self.boot.config.cluster.heartbeat;
        let delivered = std::mem::take(&mut self.delivered);
        if (delivered || self.listening_at <= now) && self.tells_doctord() {
            if !delivered {
                self.ring.queue(Role::Doctord, &HbdToDoctord::Listening);
            }
            self.listening_at = now + heartbeat;
        }
        if self.core.poll_timeout().is_some_and(|due| due <= now) {
            self.core.handle(
                now,
                Input::Timeout {
                    fresh: daemon::random()?,
                },
            );
            self.carry_out()?;
        }
        let due = |s: &Slot| s.socket.is_none() && s.retry_at <= now;
        for id in self.ids() {
            if self.slots.get(&id).is_some_and(due) {
                self.open_slot(id)?;
            }
        }
        Ok(())
    }

    fn relay(&mut self, bytes: &[u8], version: u8) -> Result<(), Error> {
        let mut messages = Vec::new();
        for message in codec::decode_all::<ElectdToHbd>(bytes, version) {
            match message {
                Ok(message) => messages.push(message),
                Err(e) => {
                    self.count("malformed_messages");
                    self.warn(
                        "electd",
                        &format!("electd: {e}: install one version of all daemons"),
                    );
                }
            }
        }
        self.core.handle(daemon::now(), Input::Send(messages));
        self.carry_out()
    }

    /// Reads what is there, within the budget.
    fn receive(&mut self, id: usize) -> Result<(), Error> {
        for _ in 0..READ_BUDGET {
            let Some(slot) = self.slots.get_mut(&id) else {
                return Ok(());
            };
            let before = daemon::now();
            let ready = slot.readable && slot.resume_at <= before;
            let Some(socket) = slot.socket.as_ref().filter(|_| ready) else {
                return Ok(());
            };
            let datagram = match socket.receive(&mut self.buffer) {
                Ok(datagram) => datagram,
                Err(Errno::EAGAIN) => {
                    slot.readable = false;
                    slot.drained = before;
                    return Ok(());
                }
                // The peer's kernel says that no hbd runs there.
                Err(Errno::ECONNREFUSED) => continue,
                Err(e) => {
                    self.count(&format!("receive_errors_{e:?}").to_lowercase());
                    continue;
                }
            };
            let local = slot.address;
            let (now, real_now) = (daemon::now(), daemon::real_now_ns());
            let (raw, lead) = self.wall.read();
            let real_ns = datagram.received_ns.unwrap_or(real_now);
            // Setting the wall clock in between must not move an arrival out of the time it can have had.
            let waited = Duration::from_nanos(real_now.saturating_sub(real_ns));
            let at = (now - waited).max(slot.drained.min(now));
            slot.read_to = at;
            // A stamp that may be from before the clock was set measures nothing.
            let stamped = real_ns.wrapping_sub(lead as u64);
            let even = slot.drained >= self.wall.even && stamped <= raw;
            let raw_ns = even.then_some(stamped);
            let overflowed = datagram.overflowed.unwrap_or(slot.overflowed);
            let lost = overflowed.wrapping_sub(slot.overflowed);
            slot.overflowed = overflowed;
            let source = datagram.source;
            let input = if datagram.cut {
                Input::TooLong(source)
            } else {
                let bytes = &self.buffer[..datagram.length];
                Input::Datagram {
                    source,
                    local,
                    bytes,
                    at,
                    real_ns,
                    raw_ns,
                }
            };
            self.core.handle(now, input);
            if lost > 0 {
                self.add("lost_buffer_full", lost.into());
            }
            self.carry_out()?;
        }
        if let Some(slot) = self.slots.get_mut(&id).filter(|s| s.peer.is_none()) {
            slot.resume_at = daemon::now() + STRANGERS_PAUSE;
        }
        Ok(())
    }

    fn carry_out(&mut self) -> Result<(), Error> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Transmit(transmit) => self.transmit(transmit)?,
                // It would take what a part does not name for given up.
                Output::Deliver(HbdToDoctord::Beat { beat, .. })
                    if !beat.is_known_in(self.ring.version(Role::Doctord)) =>
                {
                    self.count("unsent_part_to_older");
                }
                Output::Deliver(message) => {
                    self.delivered |= self.ring.queue(Role::Doctord, &message);
                }
                Output::Met(server) => log::info!("{server}: heard, its incarnation is proved"),
                Output::Doubled {
                    server,
                    former,
                    present,
                } => {
                    let present = present.map(|address| format!(" and at {address}"));
                    let present = present.unwrap_or_default();
                    log::error!(
                        "{}; they answer at {former} (refused){present}",
                        two_servers(&server)
                    );
                }
                Output::Refused { source, why } => self.log_refusal(source, why),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, mut transmit: Transmit) -> Result<(), Error> {
        let nonce = daemon::random()?;
        self.note_left();
        let (raw, lead) = self.wall.read();
        let real = raw.wrapping_add_signed(lead);
        self.core.leaves(&mut transmit, real, raw);
        let bytes = match self.core.seal(&transmit, nonce) {
            Ok(bytes) => bytes,
            Err(e) => {
                self.count("unsent_too_long");
                self.warn("seal", &format!("{}: cannot be told: {e}", transmit.to));
                return Ok(());
            }
        };
        self.sent.truncate(SENT - 1);
        self.sent
            .push_front(Sent::new(&transmit.to, &bytes, real, self.wall.even));
        let port = self.boot.config.cluster.port;
        for path in &transmit.paths {
            let from = |s: &&Slot| s.address == path.local && s.peer.is_none();
            let slot = self.slots.values().find(from);
            match slot.and_then(|s| s.socket.as_ref()) {
                Some(socket) => {
                    let sent = socket.send(&bytes, SocketAddr::new(path.remote, port));
                    self.sent[0].untold += usize::from(sent.is_ok());
                    self.note_sent(&transmit.to, path, sent);
                }
                None => self.count("unsent_no_socket"),
            }
        }
        // Most have left by now; nobody is woken for what is read.
        self.note_left();
        Ok(())
    }

    /// When packets left, as far as the kernel has told by now.
    fn note_left(&mut self) {
        let mut buffer = [0; LEFT_MAX];
        for slot in self.slots.values().filter(|s| s.peer.is_none()) {
            let Some(socket) = &slot.socket else { continue };
            while let Some((at, length)) = socket.left(&mut buffer) {
                let it = |sent: &&mut Sent| buffer[..length].ends_with(&sent.end);
                let Some(sent) = self.sent.iter_mut().find(it) else {
                    continue;
                };
                self.wall.read();
                // By a clock that nobody has set meanwhile.
                if sent.even == self.wall.even
                    && let Ok(late) = u32::try_from(at.wrapping_sub(sent.real_ns))
                    && let Some(late) = sent.left(late)
                {
                    self.core.left(&sent.to, sent.real_ns, late);
                }
            }
        }
    }

    /// An error of sending is never fatal: the next beat tries again.
    fn note_sent(&mut self, to: &ServerName, path: &Path, sent: Result<(), Errno>) {
        let pair = (path.local, path.remote);
        let way = || format!("{to}: path from {} to {}", pair.0, pair.1);
        match sent {
            Ok(()) => {
                self.count("datagrams_sent");
                if !self.broken.is_empty()
                    && self.broken.remove(&pair).is_some()
                    && self
                        .limiter
                        .allow(daemon::now(), &format!("{} again", way()))
                        .is_some()
                {
                    log::info!("{}: sending works again", way());
                }
            }
            Err(e) => {
                self.count(&format!("send_errors_{e:?}").to_lowercase());
                if self.broken.insert(pair, e) != Some(e) {
                    self.warn(&way(), &format!("{}: cannot send: {}", way(), e.desc()));
                }
            }
        }
    }

    fn log_refusal(&mut self, source: IpAddr, why: Refusal) {
        use Refusal::*;
        match why {
            // What a restart of either side, or a slow path, brings along.
            UnknownIncarnation | FormerIncarnation | FormerReceiver | Unasked | Stale => {
                log::debug!("{source}: refused: {why}");
            }
            // Any address of the world: one thing to the limiter.
            Unlisted => self.warn(why.name(), &format!("{source}: refused: {why}")),
            TooLong | NotOurs | Version(_) | Unauthentic | Malformed | Replayed | HelloTooOften => {
                let key = format!("{} {source}", why.name());
                self.warn(&key, &format!("{source}: refused: {why}"));
            }
        }
    }

    fn warn(&mut self, key: &str, line: &str) {
        self.limiter.warn(daemon::now(), key, || line.to_owned());
    }

    fn count(&mut self, name: &str) {
        self.add(name, 1);
    }

    fn add(&mut self, name: &str, count: u64) {
        match self.counters.get_mut(name) {
            Some(n) => *n += count,
            None => {
                self.counters.insert(name.to_owned(), count);
            }
        }
    }

    fn all_counters(&self) -> BTreeMap<String, u64> {
        let mut all = self.ring.counters();
        all.extend(self.counters.clone());
        all.extend(self.core.counters().map(|(name, n)| (name.to_owned(), n)));
        all
    }

    fn answer(&self, request: &CtlRequest) -> CtlReply {
        let CtlRequest::Status = request else {
            return CtlReply::No("hbd only tells its status; ask electd".to_owned());
        };
        let mut notes = self.notes.clone();
        notes.extend(self.slots.values().filter_map(|s| {
            let error = s.error.filter(|_| s.peer.is_none())?.desc();
            Some(format!("cannot listen at {}: {error}", s.address))
        }));
        notes.extend(
            self.broken
                .iter()
                .map(|((from, to), e)| format!("cannot send from {from} to {to}: {}", e.desc())),
        );
        notes.extend(self.core.unreachable().map(|server| {
            format!("{server}: has no address of the same family (IPv4, IPv6) as this server")
        }));
        let now = daemon::now();
        notes.extend(self.core.doubled(now).map(|(server, proved)| {
            let ago = now.since(proved).as_secs();
            format!("{}; last proved {ago} s ago", two_servers(server))
        }));
        let mut paths = self.core.paths();
        for (path, ends) in paths.iter_mut().zip(self.core.ends()) {
            path.mtu = Since(self.mtu(ends));
        }
        let detail = Detail::Hbd {
            paths,
            peers: Since(self.core.peers()),
            strangers: Since(self.core.strangers()),
        };
        CtlReply::Status(Box::new(self.boot.status(
            self.all_counters(),
            notes,
            detail,
        )))
    }

    fn mtu(&self, path: &Path) -> Option<u32> {
        let ours = |s: &&Slot| s.address == path.local && s.peer == Some(path.remote);
        self.slots.values().find(ours)?.socket.as_ref()?.mtu()
    }

    /// On an error everything stays as it was.
    fn reload(&mut self) -> Result<(), Error> {
        let port = self.boot.config.cluster.port;
        if let Err(e) = self.boot.reload() {
            log::error!("configuration not reloaded: {e}");
            return Ok(());
        }
        match self.boot.keys() {
            Ok(keys) => self.core.set_keys(sealer(&keys, &self.boot.config)),
            Err(e) => log::info!("the cluster key stays as it was, a restart reads it again: {e}"),
        }
        self.core
            .configure(settings(&self.boot.config, &self.boot.me));
        self.broken.clear();
        self.renew_slots(port == self.boot.config.cluster.port)?;
        log::info!("configuration reloaded");
        Ok(())
    }

    /// The sockets that the configuration in force wants; those that are there already may be kept. One that cannot
    /// be had does not hinder the others.
    fn renew_slots(&mut self, keep: bool) -> Result<(), Error> {
        let own = own_addresses(&self.boot.config, &self.boot.me);
        let mut wanted: Vec<_> = own.into_iter().map(|address| (address, None)).collect();
        wanted.extend(self.core.ends().map(|p| (p.local, Some(p.remote))));
        for id in self.ids() {
            let place = self.slots.get(&id).and_then(|slot| {
                let own = (slot.address, slot.peer);
                wanted.iter().position(|w| keep && *w == own)
            });
            if let Some(place) = place {
                wanted.remove(place);
            } else if let Some(mut socket) = self.slots.remove(&id).and_then(|s| s.socket) {
                self.ring.deregister(socket.source())?;
            }
        }
        for (address, peer) in wanted {
            let id = self.next_slot;
            self.next_slot += 1;
            self.slots.insert(id, Slot::new(address, peer));
            self.open_slot(id)?;
        }
        Ok(())
    }

    fn open_slot(&mut self, id: usize) -> Result<(), Error> {
        let port = self.boot.config.cluster.port;
        let Some((address, peer)) = self.slots.get(&id).map(|s| (s.address, s.peer)) else {
            return Ok(());
        };
        let here = self.slots.values().filter(|s| s.address == address);
        let opened = match peer {
            None => Socket::open(address, port),
            // The address' own socket is first, and shares its port with no other process.
            Some(_) if here.clone().all(|s| s.peer.is_some() || s.socket.is_none()) => {
                Err(Errno::EADDRNOTAVAIL)
            }
            Some(peer) => {
                let others = here.filter_map(|s| s.socket.as_ref());
                Socket::open_for(peer, address, port, others)
            }
        };
        let Some(slot) = self.slots.get_mut(&id) else {
            return Ok(());
        };
        match opened {
            Ok(mut socket) => {
                self.ring
                    .register(socket.source(), id, mio::Interest::READABLE)?;
                slot.socket = Some(socket);
                slot.readable = true; // What came before the registration is told by nobody.
                slot.drained = daemon::now();
                if slot.error.take().is_some() && peer.is_none() {
                    log::info!("listens at {address} port {port} now");
                }
            }
            Err(e) => {
                // A peer without a socket of its own is heard all the same, among strangers.
                if slot.error.replace(e) != Some(e) && peer.is_none() {
                    log::warn!("cannot listen at {address} port {port}: {}", e.desc());
                }
                slot.retry_at = daemon::now() + slot.retry_after;
                slot.retry_after = (slot.retry_after * 2).min(RETRY.1);
            }
        }
        Ok(())
    }
}

/// The alarm, and what to do.
fn two_servers(name: &ServerName) -> String {
    format!(
        "{name}: two servers run under this name: stop one of them (a clone needs a name and addresses of its own), then restart hbd of the other, see hbd(8)"
    )
}

fn sealer(keys: &ClusterKeys, config: &Config) -> Sealer {
    Sealer::new(&keys.open, &config.cluster.name)
}

fn own_addresses(config: &Config, me: &ServerName) -> Vec<IpAddr> {
    config
        .server(me)
        .map(|s| s.addresses.clone())
        .unwrap_or_default()
}

fn settings(config: &Config, me: &ServerName) -> Settings {
    let peer = |s: &config::Server| PeerSettings {
        name: s.name.clone(),
        addresses: s.addresses.clone(),
    };
    Settings {
        me: me.clone(),
        addresses: own_addresses(config, me),
        heartbeat: config.cluster.heartbeat,
        part_max: heartbeat::PART_MAX,
        peers: config.peers(me).map(peer).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn when_a_packet_left_is_known_once_all_its_copies_are_told() {
        let mut sent = Sent::new(&"beta".parse().unwrap(), &[7; 60], 1, BootTime(0));
        sent.untold = 3;
        assert_eq!(
            [30, 10, 20].map(|late| sent.left(late)),
            [None, None, Some(10)]
        );
        assert_eq!(sent.left(5), None, "more than were sent");
    }
}
