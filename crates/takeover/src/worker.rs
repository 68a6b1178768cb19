//! The worker thread. Its round: take commands, guard the deadlines, then everything else in small pieces.

mod changes;
mod closing;
mod device;
mod frames;
mod opening;
mod others;
mod set;

use crate::{
    AddressSet, Adopted, Emit, Error, Event, ServerMacs, Shared,
    arp::{self, Mac},
    clock::now,
    gate::{
        Earlier,
        any::{Door, Gate},
    },
    macvlan::{Device, Devices},
    ndp,
    netlink::{self, Link, Netlink},
    refresher,
    sleep::Sleeper,
    sys::{self, PacketSocket},
};
use config::VirtualAddress;
use crossbeam_channel::Receiver;
use frames::Frame;
use nix::sys::eventfd::EventFd;
use opening::prefix_route_is_anothers;
use protocol::{BootTime, VirtualServerName};
use rtnetlink::packet_route::address::AddressMessage;
use set::{Phase, Probe, Set, carrier, places};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

/// When to announce, counted from opening. Switches and hosts may miss or ignore an early one.
const BURSTS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
];
/// While clients have not acknowledged, and where none is known, it goes on: each later, by half of the time until then,
/// and not for longer than a client is remembered.
const LATE_BURSTS: Duration = Duration::from_secs(600);
const WINDOW: Duration = Duration::from_millis(10);

/// How long a clean stop tries, and how much longer for each IPv6 address (10,000 take the kernel up to 20 s).
const CLOSE_MAX: Duration = Duration::from_secs(5);
const CLOSE_PER_IPV6: Duration = Duration::from_millis(3);

const PROBES: u32 = 3;

/// What the handle asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// A deadline has changed.
    Look,
    /// Whether [`Event::Shut`] was told already.
    Shut(VirtualServerName, bool),
    Announce(VirtualServerName),
    Probe(VirtualServerName),
    LookForOthers(VirtualServerName),
    Replace(Vec<(AddressSet, Arc<Shared>)>),
    Stop,
    /// Remove all addresses, then the gate, then stop.
    Close,
}

/// What the kernel said a moment ago.
#[derive(Default)]
struct Moment {
    at: BootTime,
    links: HashMap<String, Link>,
    gate_held: bool,
    listed: Option<Arc<Vec<AddressMessage>>>,
}

/// The round stops the process if it panics: nobody would guard the addresses, and a restarted electd can.
struct Abort;

impl Drop for Abort {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

pub(crate) struct Worker {
    sets: Vec<Set>,
    /// The place in `sets` of each address.
    owner: HashMap<IpAddr, usize>,
    commands: Receiver<Command>,
    emit: Emit,
    gate: Option<Gate>,
    /// Numbers of the interfaces that were last heard to be without a carrier.
    without_carrier: HashSet<u32>,
    /// The interfaces are to be listed again before the gate is whole.
    gate_partial: bool,
    /// When a clean stop gives up.
    closing: Option<BootTime>,
    refresher: refresher::Handle,
    server_macs: ServerMacs,
    /// Those of this machine's interfaces, and when they were read.
    local_macs: (BootTime, HashSet<Mac>),
    /// The priority of this thread, if it has real time.
    realtime: Option<i32>,
    moment: Moment,
    devices: Devices,
    netlink: Netlink,
    sleeper: Sleeper,
    sender: PacketSocket,
    arp: PacketSocket,
    /// Only while there is an IPv6 address.
    nd: Option<PacketSocket>,
    queue: VecDeque<Frame>,
    window_from: BootTime,
    window_sent: usize,
    generations: u64,
}

impl Worker {
    pub(crate) fn start(
        sets: Vec<(AddressSet, Arc<Shared>)>,
        gate: Option<Gate>,
        (commands, waker): (Receiver<Command>, Arc<EventFd>),
        emit: Emit,
        refresher: refresher::Handle,
        server_macs: ServerMacs,
        devices: Devices,
    ) -> Result<(Self, Vec<Adopted>), Error> {
        let needs = "a packet socket (CAP_NET_RAW is needed)";
        let mut worker = Self {
            sets: sets
                .into_iter()
                .map(|(set, shared)| Set::new(set, shared))
                .collect(),
            owner: HashMap::new(),
            commands,
            emit,
            gate,
            without_carrier: HashSet::new(),
            gate_partial: false,
            closing: None,
            refresher,
            server_macs,
            local_macs: (BootTime(0), HashSet::new()),
            realtime: None,
            moment: Moment::default(),
            devices,
            netlink: Netlink::open()?,
            sleeper: Sleeper::new(waker)?,
            sender: PacketSocket::sender().map_err(Error::kernel(needs))?,
            arp: PacketSocket::receiver(arp::ETHERTYPE, Vec::new())
                .map_err(Error::kernel(needs))?,
            nd: None,
            queue: VecDeque::new(),
            window_from: BootTime(0),
            window_sent: 0,
            generations: 0,
        };
        worker
            .watch()
            .map_err(Error::kernel("an epoll descriptor"))?;
        worker.index();
        worker.listen_nd().map_err(Error::kernel(needs))?;
        let earlier = worker.gate.as_ref().and_then(|gate| gate.earlier());
        let mut adopted = Vec::new();
        let listed = worker.netlink.addresses();
        let listed = listed.map_err(|e| Error::LeftOver(e.to_string()))?;
        for i in 0..worker.sets.len() {
            worker.lead(i).map_err(Error::Gate)?;
            let found = worker.adopt(i, earlier.as_ref(), &listed);
            adopted.extend(found.map_err(Error::LeftOver)?);
        }
        let links = worker.netlink.links();
        let known = links.iter().flatten();
        known.for_each(|link| worker.carrier_changed(link));
        // The earlier life's gate gives way to ours, which has its deadlines by now.
        if let Some(gate) = worker.gate.clone() {
            gate.pin_doors().map_err(Error::Gate)?;
            let links = links.map_err(|e| Error::Gate(format!("listing interfaces: {e}")))?;
            gate.attach_all(&links).map_err(Error::Gate)?;
        }
        for i in 0..worker.sets.len() {
            let set = &worker.sets[i];
            if set.phase == Phase::Shut && listed.iter().any(|l| set.left_over(l)) {
                worker.sweep(i).map_err(Error::LeftOver)?;
            }
            worker.prepare(i);
        }
        worker.keep_devices();
        Ok((worker, adopted))
    }

    /// `realtime`: the priority of this thread, if it has real time.
    pub(crate) fn run(mut self, realtime: Option<i32>) {
        self.realtime = realtime;
        let _abort = Abort;
        while self.take_commands() {
            self.guard();
            self.retry();
            (0..self.sets.len()).for_each(|i| self.settle(i));
            self.notice();
            self.hear();
            let renewing = self.renew();
            let speaking = self.speak();
            let clearing = self.remove_some() || (!speaking && self.forget_some());
            self.wait(renewing || speaking || clearing);
        }
    }

    /// Takes over what an earlier life left open, if its deadline is ahead and its addresses are there.
    fn adopt(
        &mut self,
        i: usize,
        earlier: Option<&Earlier>,
        listed: &[AddressMessage],
    ) -> Result<Option<Adopted>, String> {
        let set = &mut self.sets[i];
        let mut look = |name| self.netlink.link(name).map_err(|e| e.to_string());
        set.link = look(&set.interface)?;
        if set.device.is_some() {
            set.below = look(&set.network)?;
        }
        let from_gate = earlier.and_then(|earlier| earlier.deadlines(&set.v));
        let from_file = || {
            let deadline = set.shared.file.as_ref()?.read()?;
            Some((deadline, deadline))
        };
        let noted = from_gate.or_else(from_file);
        if set.shared.door.as_ref().is_some_and(Door::remembers) {
            set.shared.note(BootTime(0)); // the gate remembers from now on
        }
        let noted = noted.filter(|(_, deadline)| now() < *deadline);
        let (Some((first, deadline)), Some(link)) = (noted, &set.link) else {
            return Ok(None);
        };
        let as_it_should = |device: &Device| {
            let below = set.below.as_ref();
            link.up && below.is_some_and(|below| device.is(link, below))
        };
        if !set.device.as_ref().is_none_or(as_it_should) {
            return Ok(None);
        }
        let here = |l: &AddressMessage| {
            l.header.index == link.index
                && netlink::ip_of(l).is_some_and(|ip| set.place.contains_key(&ip))
        };
        if !listed.iter().any(here) {
            return Ok(None);
        }
        set.no_prefix_route = prefix_route_is_anothers(set, link, listed);
        set.shared.adopt(first, deadline);
        set.phase = Phase::Open;
        set.announced_from = now();
        set.others.adopted(now());
        set.shared.acknowledged.store(true, SeqCst); // the earlier life has announced
        // Renewed at once: their lifetime may be near its end, and one may be missing.
        set.renew_at = BootTime(0);
        self.generations += 1;
        set.generation = self.generations;
        Ok(Some(Adopted {
            virtual_server: set.v.clone(),
            deadline,
        }))
    }

    // ---- the kernel's gate

    /// Leads the set's addresses through its door.
    fn lead(&mut self, i: usize) -> Result<(), String> {
        let set = &mut self.sets[i];
        if self.gate.is_none() || set.led {
            return Ok(());
        }
        let door = set.shared.door.as_ref();
        let door = door.ok_or("it has no door in the gate")?;
        door.lead(&set.addresses)?;
        if let Some(device) = &set.device {
            door.lead_mac(device.mac)?;
        }
        set.led = true;
        Ok(())
    }

    fn lead_or_warn(&mut self, i: usize) {
        if !self.sets[i].retired
            && let Err(e) = self.lead(i)
        {
            log::error!("{}: {e}; it stays shut", self.sets[i].v);
        }
    }

    /// Makes sure that the gate is whole, and tells if it was not.
    fn hold_gate(&mut self) -> Result<(), String> {
        let Some(gate) = self.gate.clone() else {
            return Ok(());
        };
        let back = if self.gate_partial {
            let links = self.netlink.links();
            let links = links.map_err(|e| format!("cannot list interfaces: {e}"))?;
            gate.attach_all(&links)
        } else {
            gate.verify()
        };
        self.gate_partial = back.is_err();
        let back = back?;
        if !back.is_empty() {
            let what = format!("the gate on {}", back.join(", "));
            log::warn!("{what} was missing and has been put back");
            for set in self.sets.iter().filter(|s| s.phase == Phase::Open) {
                let (v, what) = (set.v.clone(), what.clone());
                (self.emit)(Event::Restored { v, what });
            }
        }
        Ok(())
    }

    // ---- commands and waiting

    /// Carries out what was asked for; false when asked to stop.
    fn take_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Look => {}
                Command::Stop => return false,
                Command::Close => self.close_all(),
                Command::Shut(v, told) => self.on(&v, |worker, i| {
                    worker.sets[i].shut_asked |= !told;
                    worker.close(i);
                }),
                Command::Announce(v) => self.on(&v, |worker, i| {
                    worker.sets[i].announced_from = now();
                    worker.sets[i].next_burst = 0;
                }),
                Command::Probe(v) => self.on(&v, |worker, i| {
                    worker.sets[i].probe = Some(Probe {
                        left: PROBES,
                        next: BootTime(0),
                    });
                }),
                Command::LookForOthers(v) => self.on(&v, Self::look_for_others),
                Command::Replace(sets) => self.replace(sets),
            }
        }
        !self.closed_for_good()
    }

    /// The clean stop begins.
    fn close_all(&mut self) {
        let v6: usize = self.sets.iter().map(Set::ipv6_count).sum();
        let per_address = CLOSE_PER_IPV6 * u32::try_from(v6).unwrap_or(u32::MAX);
        self.closing = Some(now() + CLOSE_MAX + per_address);
        for i in 0..self.sets.len() {
            if self.sets[i].phase != Phase::Shut {
                self.close(i);
            }
        }
    }

    /// Whether the clean stop has ended: with no address left the gate goes too.
    fn closed_for_good(&mut self) -> bool {
        let Some(until) = self.closing else {
            return false;
        };
        let all_shut = self.sets.iter().all(|s| s.phase == Phase::Shut);
        if all_shut {
            self.devices.keep(&mut self.netlink, &[]);
            if let Some(gate) = &self.gate {
                gate.remove();
            }
        }
        all_shut || now() >= until
    }

    fn on(&mut self, v: &VirtualServerName, act: impl FnOnce(&mut Self, usize)) {
        if let Some(i) = self.sets.iter().position(|s| s.v == *v && !s.retired) {
            act(self, i);
        }
    }

    fn replace(&mut self, mut new: Vec<(AddressSet, Arc<Shared>)>) {
        for i in 0..self.sets.len() {
            let v = &self.sets[i].v;
            match new
                .iter()
                .position(|(set, _)| set.virtual_server == *v && !self.sets[i].retired)
            {
                Some(place) => self.reshape(i, new.swap_remove(place).0),
                None => {
                    self.sets[i].retired = true;
                    self.sets[i].shut_asked = true;
                    self.close(i);
                }
            }
        }
        for i in 0..self.sets.len() {
            self.lead_or_warn(i);
        }
        for (set, shared) in new {
            self.sets.push(Set::new(set, shared));
            let i = self.sets.len() - 1;
            self.lead_or_warn(i);
            self.sets[i].phase = Phase::Closing; // swept in the next round
        }
        for i in 0..self.sets.len() {
            self.prepare(i);
        }
        self.index();
        if let Err(e) = self.listen_nd() {
            log::warn!("foreign claims of IPv6 addresses will not be noticed: {e}");
        }
    }

    /// Gives a set other addresses: all are removed where they were if the interface is another, else
    /// those no longer listed; what is to be open is opened again in the next round.
    fn reshape(&mut self, i: usize, new: AddressSet) {
        let set = &mut self.sets[i];
        let device = Device::of(&new);
        let interface = carrier(&new.interface, device.as_ref());
        set.on_conflict = new.on_conflict;
        if set.network == new.interface && set.device == device && set.addresses == new.addresses {
            return;
        }
        let other = set.interface != interface || set.network != new.interface;
        let stay: HashSet<&VirtualAddress> = new.addresses.iter().collect();
        let goes = |a: &VirtualAddress| other || !stay.contains(a);
        let going: Vec<_> = set.addresses.iter().rev().copied().filter(goes).collect();
        if let Some(link) = &set.link
            && let Err(e) = self.netlink.remove(link.index, &going)
        {
            log::error!(
                "{}: cannot remove addresses from {}: {e}",
                set.v,
                set.interface
            );
        }
        set.shared.absent();
        if let Some(door) = &set.shared.door {
            let mut gone = set.addresses.iter();
            gone.by_ref()
                .filter(|a| !stay.contains(a))
                .for_each(|a| door.forget(a));
            set.device.iter().for_each(|d| door.forget_mac(d.mac));
        }
        set.led = false;
        set.network = new.interface;
        set.interface = interface;
        set.device = device;
        set.place = places(&new.addresses);
        set.addresses = new.addresses;
        set.going = 0;
        set.claims.clear();
        set.retry_at = BootTime(0);
        set.next_burst = BURSTS.len();
        if other {
            set.link = None;
            set.below = None;
        }
        set.phase = match set.phase {
            Phase::Open | Phase::Wanted => Phase::Wanted,
            Phase::Shut | Phase::Closing => Phase::Closing,
        };
        self.forget_frames(i);
        if other {
            self.keep_devices();
        }
    }

    fn index(&mut self) {
        let all = self
            .sets
            .iter()
            .enumerate()
            .flat_map(|(i, s)| s.addresses.iter().map(move |a| (a.ip, i)));
        self.owner = all.collect();
    }

    fn watch(&self) -> io::Result<()> {
        self.sleeper.watch(&self.arp)?;
        self.sleeper.watch(self.netlink.monitor())
    }

    fn listen_nd(&mut self) -> io::Result<()> {
        if self.nd.is_none() && self.owner.keys().any(IpAddr::is_ipv6) {
            let nd = PacketSocket::receiver(ndp::ETHERTYPE, sys::neighbour_discovery_filter())?;
            self.sleeper.watch(&nd)?;
            self.nd = Some(nd);
        }
        Ok(())
    }

    fn wait(&mut self, busy: bool) {
        let queue = (!self.queue.is_empty()).then(|| self.window_from + WINDOW);
        let due = self.sets.iter().filter_map(Set::due).chain(queue).min();
        self.sleeper.wait(due, busy);
    }
}
