//! The thread that makes sure of the clients. It watches who uses the interfaces, asks each by itself when the
//! addresses have come, and counts the answers. It may be late or stuck: the guard of the addresses is another
//! thread, and runs before this one.

use crate::{
    AddressSet, Error, Event, ServerMacs, Shared, arp,
    arp::Mac,
    carrier::Returned,
    clients::{Clients, Teller},
    clock::now,
    ndp,
    neighbours::Tables,
    refresh::{Pace, Question, Receipts, Round, Target},
    sleep::Sleeper,
    sys::{self, PacketSocket},
};
use crossbeam_channel::{Receiver, Sender};
use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    socket::{setsockopt, sockopt},
};
use protocol::{BootTime, VirtualServerName};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::SeqCst},
    thread::JoinHandle,
    time::Duration,
};

/// Between two looks at the kernel's neighbours, and at its default routes.
const NEIGHBOURS: Duration = Duration::from_secs(3);
const ROUTES: Duration = Duration::from_secs(60);
/// Between two counts of the receipts.
const RECEIPTS: Duration = Duration::from_millis(20);
/// Most default gateways of an interface.
const GATEWAYS_MAX: usize = 16;
/// Nothing is asked so shortly before the addresses must be gone: between looking at the time and the frame's
/// leaving, this thread may be stopped.
const BEFORE_END: Duration = Duration::from_millis(2);
/// The kernel is told where so many of the latest seen clients are, if that was so short a time ago: it answers them
/// at once, and need not ask the whole network for each. With many more its table is full, by default.
const INTRODUCED_MAX: usize = 512;
const INTRODUCED_AGE: Duration = Duration::from_secs(120);
/// Most answers read, and questions sent, before anything else gets its turn.
const FRAMES_A_ROUND: usize = 64;
/// Room for the answers of a thousand clients that come while this thread waits for a processor.
const RECEIVE_BUFFER: usize = 1 << 20;
/// With real time this runs before ordinary processes and after everything else of standin.
const PRIORITY: i32 = 1;
const STACK: usize = 512 * 1024;

/// Addresses have come, or their clients are to be made sure of again.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) v: VirtualServerName,
    /// The number of the opening.
    pub(crate) generation: u64,
    pub(crate) from: BootTime,
    pub(crate) interface: u32,
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) own: Vec<IpAddr>,
    pub(crate) shared: Arc<Shared>,
}

impl Opening {
    /// Whether the other one is the same with more addresses; with no more of them, all are to be asked anew.
    fn is_part_of(&self, other: &Self) -> bool {
        self.generation == other.generation && self.own.len() < other.own.len()
    }
}

#[derive(Debug)]
pub(crate) enum Command {
    Opened(Opening),
    /// What is configured, and what each shares with the worker.
    Sets(Vec<(AddressSet, Arc<Shared>)>),
    /// The cluster's servers: they are no clients.
    Servers(Vec<IpAddr>),
    /// What another server has seen on the interface of a virtual server.
    Learn(VirtualServerName, Vec<(IpAddr, Mac, BootTime)>),
    /// The carrier of the interface with this number is back.
    CarrierBack(u32),
    /// The other servers may have missed what they were told.
    TellAgain,
    Stop,
}

/// Where the receipts are read.
pub(crate) type Board = Arc<Mutex<BTreeMap<VirtualServerName, Receipts>>>;

/// Tells the thread what to do.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: Sender<Command>,
    waker: Arc<EventFd>,
}

impl Handle {
    /// Never waits.
    pub(crate) fn tell(&self, command: Command) {
        // Both fail only when the thread is gone or the counter full: it is readable then.
        let _ = self.commands.send(command);
        let _ = self.waker.write(1);
    }
}

/// Starts the thread.
pub(crate) fn start(
    sets: Vec<(AddressSet, Arc<Shared>)>,
    realtime: bool,
    server_macs: ServerMacs,
    emit: impl Fn(Event) + Send + 'static,
) -> Result<(Handle, Board, JoinHandle<()>), Error> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let waker =
        EventFd::from_flags(flags).map_err(|e| Error::kernel("an event descriptor")(e.into()))?;
    let (commands, inbox) = crossbeam_channel::unbounded();
    let handle = Handle {
        commands,
        waker: Arc::new(waker),
    };
    let board = Board::default();
    let mut refresher = Refresher::open(sets, inbox, handle.waker.clone(), board.clone(), emit)?;
    refresher.server_macs = server_macs;
    let run = move || {
        if realtime && let Err(e) = sys::scheduler_fifo(PRIORITY) {
            log::warn!("the thread that asks the clients runs without real-time priority: {e}");
        }
        refresher.run();
    };
    let thread = std::thread::Builder::new()
        .name("refresh".into())
        .stack_size(STACK)
        .spawn(run)
        .map_err(Error::kernel("a thread that asks the clients"))?;
    Ok((handle, board, thread))
}

#[derive(Default)]
struct Interface {
    /// Its number, when the tables were last read.
    index: u32,
    clients: Clients,
    gateways: Vec<IpAddr>,
    teller: Teller,
}

struct Running {
    opening: Opening,
    round: Round,
    /// When the receipts were last put up.
    told_at: BootTime,
    /// The kernel's tables were read since the opening.
    complete: bool,
    logged: bool,
    /// Somebody was silent when it was last logged.
    silent: bool,
}

impl Running {
    fn deadline(&self) -> BootTime {
        BootTime(self.opening.shared.deadline.load(SeqCst))
    }

    /// When there is something to ask or to put up.
    fn due(&self) -> Option<BootTime> {
        let told = self.round.is_changed().then(|| self.told_at + RECEIPTS);
        self.round.poll_timeout().into_iter().chain(told).min()
    }
}

struct Refresher<F> {
    commands: Receiver<Command>,
    emit: F,
    board: Board,
    tables: Tables,
    returned: Returned,
    sleeper: Sleeper,
    sender: PacketSocket,
    arp: PacketSocket,
    nd: PacketSocket,
    sets: Vec<(AddressSet, Arc<Shared>)>,
    interfaces: HashMap<String, Interface>,
    /// Those of all sets: whoever has one of them is no client.
    own: HashSet<IpAddr>,
    servers: HashSet<IpAddr>,
    /// What the worker is to know of them.
    server_macs: ServerMacs,
    running: Vec<Running>,
    /// Whose turn it is to ask.
    turn: usize,
    pace: Pace,
    read_at: BootTime,
    routes_at: BootTime,
}

impl<F: Fn(Event)> Refresher<F> {
    fn open(
        sets: Vec<(AddressSet, Arc<Shared>)>,
        commands: Receiver<Command>,
        waker: Arc<EventFd>,
        board: Board,
        emit: F,
    ) -> Result<Self, Error> {
        let needs = "a packet socket (CAP_NET_RAW is needed)";
        let receiver = |ethertype, filter| -> Result<PacketSocket, Error> {
            let socket = PacketSocket::receiver(ethertype, filter).map_err(Error::kernel(needs))?;
            // Without the right to exceed the system's limit, what is allowed has to do.
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
                .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER));
            Ok(socket)
        };
        let mut refresher = Self {
            commands,
            emit,
            board,
            tables: Tables::open()?,
            returned: Returned::default(),
            sleeper: Sleeper::new(waker)?,
            sender: PacketSocket::sender().map_err(Error::kernel(needs))?,
            arp: receiver(arp::ETHERTYPE, sys::arp_answer_filter())?,
            nd: receiver(ndp::ETHERTYPE, sys::advertisement_filter())?,
            sets: Vec::new(),
            interfaces: HashMap::new(),
            own: HashSet::new(),
            servers: HashSet::new(),
            server_macs: ServerMacs::default(),
            running: Vec::new(),
            turn: 0,
            pace: Pace::new(),
            read_at: BootTime(0),
            routes_at: BootTime(0),
        };
        refresher
            .watch()
            .map_err(Error::kernel("an epoll descriptor"))?;
        refresher.set_up(sets);
        Ok(refresher)
    }

    fn watch(&self) -> io::Result<()> {
        self.sleeper.watch(&self.arp)?;
        self.sleeper.watch(&self.nd)
    }

    fn run(mut self) {
        while self.take_commands() {
            self.forget_unanswered();
            let hearing = self.hear();
            let asking = self.ask();
            // The tables are looked at when nothing waits to be asked or heard.
            if !hearing && !asking {
                self.read_tables();
            }
            self.report();
            self.tell_others();
            self.wait(hearing || asking);
        }
    }

    fn take_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Opened(opening) => self.opened(opening),
                Command::Sets(sets) => self.set_up(sets),
                Command::Servers(servers) => {
                    self.servers = servers.into_iter().collect();
                    self.read_at = BootTime(0);
                }
                Command::Learn(v, seen) => {
                    let of = |set: &&(AddressSet, Arc<Shared>)| set.0.virtual_server == v;
                    if let Some((set, _)) = self.sets.iter().find(of)
                        && let Some(interface) = self.interfaces.get_mut(&set.interface)
                    {
                        interface.clients.learn(now(), seen);
                    }
                }
                Command::CarrierBack(interface) => self.returned.note(now(), interface),
                Command::TellAgain => {
                    self.interfaces.values_mut().for_each(|i| i.teller.again());
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn set_up(&mut self, sets: Vec<(AddressSet, Arc<Shared>)>) {
        let mut old = std::mem::take(&mut self.interfaces);
        for (set, _) in &sets {
            let name = &set.interface;
            if !self.interfaces.contains_key(name) {
                let kept = old.remove(name).unwrap_or_default();
                self.interfaces.insert(name.clone(), kept);
            }
        }
        let addresses = sets.iter().flat_map(|(set, _)| &set.addresses);
        self.own = addresses.map(|a| a.ip).collect();
        // What is asked for stays if nothing has changed; else another opening follows.
        self.running.retain(|running| {
            let same = |set: &AddressSet| {
                set.virtual_server == running.opening.v
                    && set.interface == running.opening.name
                    && set.addresses.iter().map(|a| &a.ip).eq(&running.opening.own)
            };
            sets.iter().any(|(set, _)| same(set))
        });
        self.sets = sets;
        self.read_at = BootTime(0);
        self.routes_at = BootTime(0);
    }

    // ---- asking

    fn opened(&mut self, opening: Opening) {
        // IPv6 addresses come into use a moment after the others: nobody is asked twice for those.
        let more = |old: &Opening| old.is_part_of(&opening);
        if let Some(running) = self.running.iter_mut().find(|r| more(&r.opening)) {
            let known: HashSet<IpAddr> = running.opening.own.iter().copied().collect();
            let further = opening.own.iter().filter(|ip| !known.contains(ip));
            running.round.extend_own(further.copied());
            running.logged = false;
            running.opening.own = opening.own;
            return;
        }
        opening.shared.acknowledged.store(false, SeqCst);
        // From memory first: reading the tables may take a while, and follows.
        self.introduce(&opening.name);
        let targets = self.targets(&opening.name);
        let round = Round::new(opening.from, opening.own.clone(), &targets);
        self.running.retain(|r| r.opening.v != opening.v);
        self.running.push(Running {
            opening,
            round,
            told_at: BootTime(0),
            complete: false,
            logged: false,
            silent: false,
        });
        self.read_at = BootTime(0);
    }

    /// Clients ask from this moment on, and the answers must know where to go.
    fn introduce(&mut self, interface: &str) {
        let at = now();
        let Some(interface) = self.interfaces.get(interface).filter(|i| i.index != 0) else {
            return;
        };
        let fresh = interface.clients.list(at).into_iter();
        let fresh = fresh.take_while(|(.., seen)| at.since(*seen) < INTRODUCED_AGE);
        let others = fresh.filter(|(ip, ..)| !self.own.contains(ip));
        let told = others.take(INTRODUCED_MAX).map(|(ip, mac, _)| (ip, mac));
        if let Err(e) = self.tables.introduce(interface.index, told) {
            log::warn!("cannot tell the kernel where clients are: {e}");
        }
    }

    /// Gateways, then who was seen last.
    fn targets(&self, interface: &str) -> Vec<Target> {
        let Some(interface) = self.interfaces.get(interface) else {
            return Vec::new();
        };
        let gateway = |ip: &IpAddr| Target {
            ip: *ip,
            mac: interface.clients.mac(ip),
            client: !self.servers.contains(ip),
        };
        let client = |(ip, mac, _): (IpAddr, Mac, BootTime)| Target {
            ip,
            mac: Some(mac),
            client: !self.servers.contains(&ip),
        };
        let list = interface.clients.list(now()).into_iter();
        let others = list.filter(|(ip, ..)| !interface.gateways.contains(ip));
        let all = interface.gateways.iter().map(gateway);
        all.chain(others.map(client))
            .filter(|target| !self.own.contains(&target.ip))
            .collect()
    }

    /// Sends some of the questions that are due. Whether more may be sent now.
    fn ask(&mut self) -> bool {
        self.running.retain(|running| {
            let goes_on = now() < running.deadline();
            if !goes_on {
                let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
                board.remove(&running.opening.v);
            }
            goes_on
        });
        for _ in 0..FRAMES_A_ROUND {
            let (count, at) = (self.running.len(), now());
            let due = |running: &Running| running.round.poll_timeout().is_some_and(|due| due <= at);
            let next = (0..count)
                .map(|n| (self.turn + n) % count)
                .find(|n| due(&self.running[*n]));
            let Some(next) = next else { return false };
            if !self.pace.take(at) {
                return false;
            }
            self.turn = next + 1;
            let running = &mut self.running[next];
            let Some(question) = running.round.poll_question(at) else {
                continue;
            };
            let Some((ethertype, frame)) = frame(running.opening.mac, question) else {
                continue;
            };
            // A question after the end would turn the client away from the next master.
            if now() + BEFORE_END >= running.deadline() {
                continue;
            }
            let interface = running.opening.interface;
            if let Err(e) = self.sender.send(interface, ethertype, &frame)
                && is_full(&e)
            {
                return false; // it is asked again
            }
        }
        true
    }

    // ---- hearing

    /// Reads answers. Whether there may be more.
    fn hear(&mut self) -> bool {
        let mut buffer = [0; 256];
        let mut heard = 0;
        for _ in 0..FRAMES_A_ROUND {
            match self.arp.receive(&mut buffer) {
                Ok(Some((length, interface))) => {
                    heard += 1;
                    if let Some(said) = arp::parse(&buffer[..length]).filter(|said| said.reply) {
                        let (own, client) = (said.target.into(), said.sender.into());
                        self.answered(interface, own, client, said.sender_mac);
                    }
                }
                Ok(None) => break,
                Err(_) => heard += 1, // an interface went down: told elsewhere
            }
        }
        for _ in 0..FRAMES_A_ROUND {
            match self.nd.receive(&mut buffer) {
                Ok(Some((length, interface))) => {
                    heard += 1;
                    if let Some((own, client, mac)) = ndp::parse_answer(&buffer[..length]) {
                        self.answered(interface, own.into(), client.into(), mac);
                    }
                }
                Ok(None) => break,
                Err(_) => heard += 1,
            }
        }
        heard > 0
    }

    fn answered(&mut self, interface: u32, own: IpAddr, client: IpAddr, mac: Mac) {
        let at = now();
        for running in &mut self.running {
            if running.opening.interface == interface
                && running.round.answered(at, own, client)
                && let Some(place) = self.interfaces.get_mut(&running.opening.name)
            {
                place.clients.note(at, client, mac);
            }
        }
    }

    // ---- who is there

    fn read_tables(&mut self) {
        if self.sets.is_empty() || now() < self.read_at {
            return;
        }
        self.read_at = now() + NEIGHBOURS;
        for (name, interface) in &mut self.interfaces {
            interface.index = nix::net::if_::if_nametoindex(name.as_str()).unwrap_or(0);
        }
        if now() >= self.routes_at {
            self.routes_at = now() + ROUTES;
            match self.tables.gateways() {
                Ok(gateways) => {
                    for interface in self.interfaces.values_mut() {
                        let here = gateways
                            .iter()
                            .filter(|(index, _)| *index == interface.index);
                        let mut here: Vec<IpAddr> = here.map(|(_, ip)| *ip).collect();
                        here.truncate(GATEWAYS_MAX);
                        interface.gateways = here;
                    }
                }
                Err(e) => log::warn!("cannot list default routes: {e}"),
            }
        }
        match self.tables.neighbours() {
            Ok(neighbours) => {
                let at = now();
                let macs = self.server_macs.lock();
                let mut macs = macs.unwrap_or_else(PoisonError::into_inner);
                let servers = neighbours.iter().filter(|n| self.servers.contains(&n.ip));
                macs.extend(servers.map(|n| (n.ip, n.mac)));
                drop(macs);
                for interface in self.interfaces.values_mut() {
                    let here = neighbours.iter().filter(|n| n.interface == interface.index);
                    let seen = here.map(|n| (n.ip, n.mac, at - n.age));
                    interface.clients.learn(at, seen);
                }
            }
            Err(e) => log::warn!("cannot list neighbours: {e}"),
        }
        for n in 0..self.running.len() {
            if self.running[n].round.is_young(now()) {
                let targets = self.targets(&self.running[n].opening.name);
                self.running[n].round.extend(&targets);
            }
            if let Some(place) = self.interfaces.get(&self.running[n].opening.name) {
                let is_known =
                    |ip: &IpAddr| place.clients.mac(ip).is_some() || place.gateways.contains(ip);
                self.running[n].round.forget(is_known);
            }
            self.running[n].complete = true;
        }
    }

    fn forget_unanswered(&mut self) {
        let interfaces = self.returned.poll(now());
        if !interfaces.is_empty()
            && let Err(e) = self.tables.forget_unanswered(&interfaces)
        {
            log::warn!("cannot forget neighbours that have not answered: {e}");
        }
    }

    fn tell_others(&mut self) {
        let apart = &self.own | &self.servers;
        for (set, shared) in &self.sets {
            let open = shared.present.load(SeqCst) && now().0 < shared.deadline.load(SeqCst);
            // The first open one of an interface speaks for all on it.
            if open
                && let Some(interface) = self.interfaces.get_mut(&set.interface)
                && let Some(clients) = interface.teller.poll(now(), &interface.clients, &apart)
            {
                let v = set.virtual_server.clone();
                (self.emit)(Event::Clients { v, clients });
            }
        }
    }

    // ---- telling how it stands

    fn report(&mut self) {
        for running in &mut self.running {
            let settled = running.complete && running.round.is_settled();
            let end = settled && !running.logged;
            let due = running.round.is_changed() && running.told_at + RECEIPTS <= now();
            if !(end || due) {
                continue;
            }
            running.round.take_changed();
            running.told_at = now();
            let receipts = running.round.receipts();
            let v = &running.opening.v;
            let acknowledged = receipts.asked > 0 && receipts.answered == receipts.asked;
            running
                .opening
                .shared
                .acknowledged
                .store(acknowledged, SeqCst);
            let heard_of_all = running.silent && receipts.silent == 0;
            if (end && receipts.asked > 0) || heard_of_all {
                log::info!("clients of {v}: {}", in_words(&receipts));
                running.silent = receipts.silent > 0;
            }
            running.logged |= end;
            let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            board.insert(v.clone(), receipts);
        }
    }

    fn wait(&mut self, busy: bool) {
        let asking = self.running.iter().filter_map(Running::due).min();
        let asking = asking.map(|due| due.max(self.pace.refilled()));
        let reading = (!self.sets.is_empty()).then_some(self.read_at);
        let open = |set: &&(AddressSet, Arc<Shared>)| set.1.present.load(SeqCst);
        let telling = self.sets.iter().filter(open);
        let telling = telling.filter_map(|(set, _)| self.interfaces.get(&set.interface));
        let telling = telling.map(|interface| interface.teller.next());
        let due = asking.into_iter().chain(reading).chain(telling);
        let due = due.chain(self.returned.due()).min();
        self.sleeper.wait(due, busy);
    }
}

fn frame(mac: Mac, question: Question) -> Option<(u16, Vec<u8>)> {
    let Target { ip, mac: to, .. } = question.target;
    match (question.own, ip) {
        (IpAddr::V4(own), IpAddr::V4(ip)) => Some((
            arp::ETHERTYPE,
            match to {
                Some(to) => arp::unicast(mac, own, to, ip),
                None => arp::ask_all(mac, own, ip),
            },
        )),
        (IpAddr::V6(own), IpAddr::V6(ip)) => Some((
            ndp::ETHERTYPE,
            match to {
                Some(to) => ndp::unicast(mac, own, to, ip),
                None => ndp::ask_all(mac, own, ip),
            },
        )),
        _ => None,
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

fn in_words(receipts: &Receipts) -> String {
    let Receipts {
        asked, answered, ..
    } = receipts;
    let mut text = format!("{answered} of {asked} have acknowledged");
    if let Some(last) = receipts.last_answer {
        text += &format!(
            ", the last {:.1} ms after the opening",
            last.as_secs_f64() * 1e3
        );
    }
    if receipts.silent > 0 {
        let names: Vec<String> = receipts
            .silent_first
            .iter()
            .map(IpAddr::to_string)
            .collect();
        text += &format!("; silent: {}", names.join(", "));
        if receipts.silent > names.len() {
            text += &format!(" and {} more", receipts.silent - names.len());
        }
    }
    text
}
