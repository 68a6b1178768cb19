//! The worker thread. Its round: take commands, guard the deadlines, then everything else in small pieces.

use crate::{
    AddressSet, Adopted, Emit, Error, Event, Shared,
    arp::{self, Mac},
    clock::now,
    gate::{
        Earlier,
        any::{Door, Gate},
    },
    macvlan::{Device, Devices},
    ndp,
    netlink::{self, BATCH, Change, Link, Netlink, Setting},
    refresher::{self, Opening},
    sleep::Sleeper,
    sys::{self, Hold, PacketSocket},
};
use config::VirtualAddress;
use crossbeam_channel::Receiver;
use nix::{errno::Errno, sys::eventfd::EventFd};
use protocol::{BootTime, VirtualServerName};
use rtnetlink::packet_route::address::AddressMessage;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs, io,
    net::IpAddr,
    ops::Range,
    sync::Arc,
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
/// A virtual MAC address is announced again and again: replies leave by the interface below, with its own MAC
/// address, and switches forget what they do not hear (after 5 min by default).
const REMINDER: Duration = Duration::from_secs(60);
/// After its addresses have gone the device stays up for so long behind the kernel's gate, which keeps it silent: the
/// late packets of a planned handover still come by it.
const LATE: Duration = Duration::from_secs(2);
/// At most so many frames in each window: a switch or a slow host must not drop them.
const FRAMES_A_WINDOW: usize = 1000;
const WINDOW: Duration = Duration::from_millis(10);
/// Most frames sent or read between two looks at the deadlines.
const FRAMES_A_ROUND: usize = 64;

const RENEWAL: Duration = Duration::from_secs(1);
/// Removing starts so much earlier for each address (1,000 IPv4 addresses take 7 to 10 ms), but at most
/// so much: a short lease must have something left.
const REMOVAL_PER_ADDRESS: Duration = Duration::from_micros(10);
const REMOVAL_MAX: Duration = Duration::from_millis(10);
/// Adding or renewing an IPv6 address costs the kernel time in proportion to the groups that the interface
/// has joined, one for each address there: about a microsecond each (`ipv6_mc_up`, twice when adding). With
/// more addresses than this they are added under a [`Hold`], so that the joining comes after the adding.
const IPV6_CHEAP: usize = 64;
/// An IPv4 address is looked for in the interface's list, some nanoseconds for each one there. With more than
/// this, beats and promises must not wait for it even if there is but one processor.
const IPV4_CHEAP: usize = 512;
/// Between two looks at the deadlines the kernel is kept for about a millisecond: so many steps through those lists.
const STEPS_IPV4: usize = 200_000;
const STEPS_IPV6: usize = 2_000;
/// Renewing may take this part of a processor.
const RENEWAL_SHARE: u32 = 200;
/// What was found out for one virtual server holds for all that open in the same moment.
const MOMENT: Duration = Duration::from_millis(10);

/// How long a clean stop tries, and how much longer for each IPv6 address (10,000 take the kernel up to 20 s).
const CLOSE_MAX: Duration = Duration::from_secs(5);
const CLOSE_PER_IPV6: Duration = Duration::from_millis(3);

/// The kernel takes IPv6 addresses into use a moment after they were added, when a worker thread of its own gets a
/// processor. So long is waited for that, with looks so often; then they are announced anyway.
const SETTLE_MAX: Duration = Duration::from_millis(250);
/// It is told of if it took longer than this.
const SETTLE_LATE: Duration = Duration::from_millis(20);
const SETTLE_LOOK: Duration = Duration::from_micros(200);

const RETRY_OPEN: Duration = Duration::from_millis(200);
const RETRY_CLOSE: Duration = Duration::from_millis(10);
const CLAIM_INTERVAL: Duration = Duration::from_secs(1);
const PROBES: u32 = 3;
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// What the handle asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// A deadline has changed.
    Look,
    /// Whether [`Event::Shut`] was told already.
    Shut(VirtualServerName, bool),
    Announce(VirtualServerName),
    Probe(VirtualServerName),
    Replace(Vec<(AddressSet, Arc<Shared>)>),
    Stop,
    /// Remove all addresses, then the gate, then stop.
    Close,
}

/// Where the addresses of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// None is there.
    Shut,
    /// The deadline is ahead but the interface or the kernel would not have them; some may be there.
    Wanted,
    /// All are there, or just being added.
    Open,
    /// Being removed, or not yet read back as gone.
    Closing,
}

#[derive(Clone, Copy, Debug)]
struct Settling {
    generation: u64,
    look: BootTime,
    until: BootTime,
}

#[derive(Debug)]
struct Probe {
    left: u32,
    next: BootTime,
}

struct Set {
    v: VirtualServerName,
    /// As configured.
    network: String,
    /// The one with the virtual MAC address on it, if there is to be one.
    device: Option<Device>,
    /// The one of these two that carries the addresses.
    interface: String,
    addresses: Vec<VirtualAddress>,
    /// The place in `addresses` of each.
    place: HashMap<IpAddr, usize>,
    shared: Arc<Shared>,
    /// The kernel's gate knows all addresses.
    led: bool,
    phase: Phase,
    /// Each opening has its own number, so that a step can see that it was overtaken.
    generation: u64,
    /// The IPv6 addresses of this opening were added, but are not in use yet.
    settling: Option<Settling>,
    link: Option<Link>,
    /// The interface below, if there is a device on it.
    below: Option<Link>,
    /// The device may be up.
    raised: bool,
    /// It stays up until then.
    lower_at: BootTime,
    /// What was put back once it is open again.
    put_back: Option<String>,
    /// Whether the prefix route is left alone, by address.
    no_prefix_route: Vec<bool>,
    failed: Option<String>,
    retry_at: BootTime,
    lapsed: bool,
    shut_asked: bool,
    /// No longer configured: forgotten once shut.
    retired: bool,
    announced_from: BootTime,
    next_burst: usize,
    renew_at: BootTime,
    renewed: usize,
    /// The first so many are still to be removed, piece by piece behind the shut gate.
    going: usize,
    /// From here on our own neighbour entries are still to be removed.
    unforgotten: usize,
    claims: HashMap<IpAddr, BootTime>,
    probe: Option<Probe>,
}

impl Set {
    fn new(set: AddressSet, shared: Arc<Shared>) -> Self {
        let device = Device::of(&set);
        Self {
            v: set.virtual_server,
            place: places(&set.addresses),
            interface: carrier(&set.interface, device.as_ref()),
            network: set.interface,
            device,
            addresses: set.addresses,
            shared,
            led: false,
            phase: Phase::Shut,
            generation: 0,
            settling: None,
            link: None,
            below: None,
            raised: false,
            lower_at: BootTime(0),
            put_back: None,
            no_prefix_route: Vec::new(),
            failed: None,
            retry_at: BootTime(0),
            lapsed: false,
            shut_asked: false,
            retired: false,
            announced_from: BootTime(0),
            next_burst: BURSTS.len(),
            renew_at: BootTime(0),
            renewed: 0,
            going: 0,
            unforgotten: usize::MAX,
            claims: HashMap::new(),
            probe: None,
        }
    }

    fn deadline(&self) -> BootTime {
        self.shared.deadline()
    }

    /// When removing must begin: so that it has ended by the deadline, unless the kernel's gate keeps that.
    fn last_call(&self) -> BootTime {
        if self.shared.door.is_some() {
            return self.deadline();
        }
        self.deadline() - (REMOVAL_PER_ADDRESS * self.addresses.len() as u32).min(REMOVAL_MAX)
    }

    /// How many addresses to add, renew or remove between two looks at the deadlines. Under a [`Hold`] no group is
    /// joined yet.
    fn batch(&self, held: bool) -> usize {
        let (v6, v4) = (self.ipv6_count(), self.addresses.len() - self.ipv6_count());
        let steps_v6 = if held { BATCH } else { STEPS_IPV6 / v6.max(1) };
        let steps = steps_v6.min(STEPS_IPV4 / v4.max(1));
        if v6 > IPV6_CHEAP || v4 > IPV4_CHEAP {
            steps.clamp(1, BATCH)
        } else {
            BATCH
        }
    }

    /// Adding so many must not be disturbed, nor disturb.
    fn is_large(&self) -> bool {
        let v6 = self.ipv6_count();
        v6 > IPV6_CHEAP || self.addresses.len() - v6 > IPV4_CHEAP
    }

    /// How often to renew lifetimes: every second unless that would cost more than a [`RENEWAL_SHARE`] of a
    /// processor. Measured: 4 us for an address, and for each other one there 3 ns (IPv4) or 0.5 us (IPv6).
    fn renewal(&self) -> Duration {
        let v6 = self.ipv6_count() as u64;
        let v4 = self.addresses.len() as u64 - v6;
        let nanos = 4000 * (v4 + v6) + 3 * v4 * v4 + 500 * v6 * v6;
        let cost = Duration::from_nanos(nanos);
        (cost * RENEWAL_SHARE).max(RENEWAL)
    }

    fn ipv6(&self) -> impl DoubleEndedIterator<Item = IpAddr> {
        let ips = self.addresses.iter().map(|a| a.ip);
        ips.filter(IpAddr::is_ipv6)
    }

    fn ipv6_count(&self) -> usize {
        self.ipv6().count()
    }

    /// The addresses that may be announced.
    fn announced(&self) -> impl Iterator<Item = IpAddr> {
        let settled = self.settling.is_none();
        let ips = self.addresses.iter().map(|a| a.ip);
        ips.filter(move |ip| settled || ip.is_ipv4())
    }

    /// Seconds for the kernel: longer than the next renewal, and than the lease.
    fn lifetime(&self, now: BootTime) -> u32 {
        let ahead = self.deadline().since(now).max(self.renewal());
        u32::try_from(ahead.as_secs_f64().ceil() as u64 * 2).unwrap_or(u32::MAX - 1)
    }

    fn settings(&self, link: &Link, range: Range<usize>) -> Vec<Setting> {
        let lifetime = self.lifetime(now());
        range
            .map(|i| Setting {
                interface: link.index,
                address: self.addresses[i],
                lifetime,
                no_prefix_route: self.no_prefix_route.get(i).copied().unwrap_or(false),
            })
            .collect()
    }

    fn next_burst_at(&self) -> Option<BootTime> {
        (self.phase == Phase::Open).then_some(())?;
        let after = BURSTS.get(self.next_burst).copied().or_else(|| {
            let reminders = u32::try_from(self.next_burst - BURSTS.len() + 1).ok()?;
            self.device
                .as_ref()
                .map(|_| BURSTS[BURSTS.len() - 1] + REMINDER * reminders)
        });
        after.map(|after| self.announced_from + after)
    }

    /// Where others may be heard: on the interface that carries the addresses, or on the one below.
    fn is_at(&self, interface: u32) -> bool {
        let links = [&self.link, &self.below];
        links.into_iter().flatten().any(|l| l.index == interface)
    }

    /// The next time something is to be done; none if only a command, a frame or a change can bring work.
    fn due(&self) -> Option<BootTime> {
        let guard = match self.phase {
            Phase::Shut => self.raised.then_some(self.lower_at).filter(|at| at.0 != 0),
            Phase::Wanted => Some(self.last_call().min(self.retry_at)),
            Phase::Open => Some(self.last_call().min(self.renew_at)),
            Phase::Closing => Some(self.retry_at),
        };
        let probe = self.probe.as_ref().map(|p| p.next);
        let settled = self.settling.map(|s| s.look);
        [guard, probe, settled, self.next_burst_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a listed address is one of this set's, where it should not be left.
    fn left_over(&self, listed: &AddressMessage) -> bool {
        let here = self
            .link
            .as_ref()
            .is_some_and(|l| l.index == listed.header.index);
        (here || netlink::is_ours(listed))
            && netlink::ip_of(listed).is_some_and(|ip| self.place.contains_key(&ip))
    }
}

struct Frame {
    generation: u64,
    interface: u32,
    ethertype: u16,
    bytes: Vec<u8>,
}

fn places(addresses: &[VirtualAddress]) -> HashMap<IpAddr, usize> {
    addresses
        .iter()
        .enumerate()
        .map(|(n, a)| (a.ip, n))
        .collect()
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

fn carrier(interface: &str, device: Option<&Device>) -> String {
    device.map_or(interface, |d| d.name.as_str()).to_owned()
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
        known.for_each(|link| worker.carrier(link));
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

    // ---- the deadlines

    /// Begins to remove the addresses whose time has come. Called between any two pieces of work.
    fn guard(&mut self) {
        for i in 0..self.sets.len() {
            let set = &mut self.sets[i];
            let guarded = matches!(set.phase, Phase::Wanted | Phase::Open);
            if !guarded || now() < set.last_call() {
                continue;
            }
            // Extended in this very moment, perhaps, by somebody who thought that they were there.
            if !set.shared.lapse(|| now() >= set.last_call()) {
                continue;
            }
            // With deadline 0 a command to shut is under way, and will have its own event.
            set.lapsed = set.deadline() != BootTime(0);
            self.close(i);
        }
    }

    /// Removes all addresses of a set and reads back. Ceasing is becoming in reverse: gate first.
    fn close(&mut self, i: usize) {
        let set = &mut self.sets[i];
        set.shared.absent();
        if set.shut_asked && set.shared.settle() && self.gate.as_ref().is_some_and(Gate::holds) {
            set.shut_asked = false;
            (self.emit)(Event::Shut { v: set.v.clone() });
        }
        if set.going > 0 {
            return; // under way
        }
        let was_open = matches!(set.phase, Phase::Wanted | Phase::Open);
        set.phase = Phase::Closing;
        if was_open && self.gate.is_some() {
            set.lower_at = now() + LATE;
        }
        set.next_burst = BURSTS.len();
        set.unforgotten = usize::MAX;
        if was_open && set.shared.door.is_some() && set.is_large() && set.link.is_some() {
            // The gate is shut, so nobody waits for it; and what others wait for must not wait for this.
            set.going = set.addresses.len();
            return self.forget_frames(i);
        }
        let mut result = Ok(());
        if was_open && let Some(link) = &set.link {
            // In reverse: with the first address of a network the kernel would drop or move the others.
            let reversed: Vec<_> = set.addresses.iter().rev().copied().collect();
            result = self
                .netlink
                .remove(link.index, &reversed)
                .map(drop)
                .map_err(|e| e.to_string());
        }
        self.forget_frames(i);
        self.read_back(i, result);
    }

    /// Removes a piece of what is to go behind the shut gate. Whether there is more.
    fn remove_some(&mut self) -> bool {
        let Some(i) = self.sets.iter().position(|s| s.going > 0) else {
            return false;
        };
        let set = &mut self.sets[i];
        let piece = set.going.saturating_sub(set.batch(false))..set.going;
        set.going = piece.start;
        let reversed: Vec<_> = set.addresses[piece].iter().rev().copied().collect();
        let removed = match &set.link {
            Some(link) => self.netlink.remove(link.index, &reversed).map(drop),
            None => Ok(()),
        };
        if self.sets[i].going == 0 || removed.is_err() {
            self.sets[i].going = 0;
            self.read_back(i, removed.map_err(|e| e.to_string()));
        }
        true
    }

    /// Reading back tells more than the answers to the removal.
    fn read_back(&mut self, i: usize, result: Result<(), String>) {
        match self.sweep(i).or_else(|e| result.and(Err(e))) {
            Ok(()) => self.closed(i),
            Err(what) => {
                self.sets[i].retry_at = now() + RETRY_CLOSE;
                self.fail(i, format!("cannot remove addresses: {what}"));
            }
        }
    }

    fn closed(&mut self, i: usize) {
        let set = &mut self.sets[i];
        set.phase = Phase::Shut;
        set.failed = None;
        set.retry_at = BootTime(0);
        let v = set.v.clone();
        if std::mem::take(&mut set.lapsed) {
            (self.emit)(Event::Lapsed { v: v.clone() });
        }
        if std::mem::take(&mut self.sets[i].shut_asked) {
            (self.emit)(Event::Shut { v });
        }
        self.lower(i);
    }

    /// Removes every address of the set that is listed, until none is.
    fn sweep(&mut self, i: usize) -> Result<(), String> {
        let mut found = Vec::new();
        for _ in 0..3 {
            let set = &mut self.sets[i];
            set.link = self
                .netlink
                .link(&set.interface)
                .map_err(|e| e.to_string())?;
            found = self.netlink.addresses().map_err(|e| e.to_string())?;
            found.retain(|listed| set.left_over(listed));
            if found.is_empty() {
                return Ok(());
            }
            let mut listed = found.clone();
            listed.reverse();
            self.netlink
                .remove_listed(listed)
                .map_err(|e| e.to_string())?;
        }
        let ips: Vec<String> = found
            .iter()
            .filter_map(netlink::ip_of)
            .map(|ip| ip.to_string())
            .collect();
        Err(format!(
            "{} still on {}",
            ips.join(", "),
            self.sets[i].interface
        ))
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

    // ---- a MAC address that moves along

    /// Makes the set's device, if it needs one, so that it is there when its time comes.
    fn prepare(&mut self, i: usize) {
        if self.sets[i].device.is_some() && !self.sets[i].retired {
            match self.device_link(i) {
                Ok(link) => {
                    let set = &mut self.sets[i];
                    set.raised = link.up;
                    set.failed = None;
                    self.lower(i);
                }
                Err(what) => {
                    self.sets[i].link = None;
                    self.fail(i, what);
                }
            }
        }
    }

    /// The set's device as it is, made if need be, with the gate on it.
    fn device_link(&mut self, i: usize) -> Result<Link, String> {
        let Some(device) = self.sets[i].device.clone() else {
            return Err("no virtual MAC address is configured".to_owned());
        };
        let (link, below) = self.devices.ensure(&mut self.netlink, &device)?;
        if let Some(gate) = &self.gate {
            gate.attach(&link)?;
        }
        let set = &mut self.sets[i];
        set.link = Some(link.clone());
        set.below = Some(below);
        Ok(link)
    }

    /// The device, up: its addresses are about to come.
    fn raise(&mut self, i: usize) -> Result<Link, String> {
        let name = self.sets[i].network.clone();
        let link = self.device_link(i)?;
        if self.sets[i].below.as_ref().is_none_or(|below| !below.up) {
            return Err(down(&name));
        }
        if link.up {
            return Ok(link);
        }
        self.sets[i].raised = true;
        self.netlink
            .set_up(link.index, true)
            .map_err(|e| format!("cannot set {} up: {e}", link.name))?;
        let link = Link { up: true, ..link };
        self.sets[i].link = Some(link.clone());
        Ok(link)
    }

    /// The addresses have gone: no switch is to hear of the MAC address from here. The kernel takes some
    /// milliseconds for it, which another set's addresses can wait for only if the gate guards them.
    fn lower(&mut self, i: usize) {
        let guarded = |s: &Set| matches!(s.phase, Phase::Wanted | Phase::Open);
        let set = &self.sets[i];
        if !set.raised
            || set.phase != Phase::Shut
            || now() < set.lower_at
            || self.gate.is_none() && self.sets.iter().any(guarded)
        {
            return;
        }
        if let Some(link) = &set.link
            && let Err(e) = self.netlink.set_up(link.index, false)
        {
            log::warn!("{}: cannot set {} down: {e}", set.v, set.interface);
        }
        self.sets[i].raised = false;
        self.sets[i].lower_at = BootTime(0);
    }

    /// Another program has changed the set's device: it is made anew, and all that is on it.
    fn remake(&mut self, i: usize) {
        if self.sets[i].phase != Phase::Open {
            return self.prepare(i);
        }
        let set = &mut self.sets[i];
        set.put_back = Some(format!("{} on {}", set.interface, set.network));
        set.shared.absent();
        set.phase = Phase::Wanted;
        set.retry_at = BootTime(0);
        self.forget_frames(i);
    }

    /// Whether the device of an open set is what it should be.
    fn device_holds(&mut self, i: usize) -> bool {
        let (Some(device), Some(below)) = (&self.sets[i].device, &self.sets[i].below) else {
            return true;
        };
        let found = self.netlink.link(&device.name);
        // Not to be told now: the next time tells.
        found.map_or(true, |link| {
            link.is_some_and(|link| link.up && device.is(&link, below))
        })
    }

    fn keep_devices(&mut self) {
        let names = self
            .sets
            .iter()
            .filter_map(|s| Some(s.device.as_ref()?.name.as_str()));
        let names: Vec<&str> = names.collect();
        self.devices.keep(&mut self.netlink, &names);
    }

    // ---- opening

    /// Opens what is to be open and was not possible before, closes what could not be closed before.
    fn retry(&mut self) {
        for i in 0..self.sets.len() {
            let set = &self.sets[i];
            if now() < set.retry_at {
                continue;
            }
            if set.phase == Phase::Closing && set.going == 0 {
                self.close(i);
            }
            let set = &self.sets[i];
            if matches!(set.phase, Phase::Shut | Phase::Wanted) && now() < set.last_call() {
                self.open(i);
            }
            self.lower(i); // what had to wait
        }
        if self
            .sets
            .iter()
            .any(|s| s.retired && s.phase == Phase::Shut)
        {
            for set in self.sets.iter().filter(|s| s.retired) {
                if let (Phase::Shut, Some(door)) = (set.phase, &set.shared.door) {
                    set.addresses.iter().for_each(|a| door.forget(a));
                    set.device.iter().for_each(|d| door.forget_mac(d.mac));
                }
            }
            self.sets.retain(|s| !(s.retired && s.phase == Phase::Shut));
            self.index();
            self.keep_devices();
        }
    }

    /// Becoming master, in the order of the steps.
    fn open(&mut self, i: usize) {
        let link = match self.usable_link(i) {
            Ok(link) => link,
            Err(what) => return self.open_failed(i, what),
        };
        // 1. The kernel's gate, shut, before any address is there.
        // A device of its own has just come.
        let held = self.moment().gate_held && self.sets[i].device.is_none();
        let hold = |worker: &mut Self| if held { Ok(()) } else { worker.hold_gate() };
        if let Err(what) = self.lead(i).and_then(|()| hold(self)) {
            return self.open_failed(i, what);
        }
        self.moment.gate_held = true;
        self.sets[i].shared.absent();

        // 2. Addresses.
        let Some(generation) = self.add_all(i, &link) else {
            return;
        };

        // 3. ARP and neighbour discovery pass, then traffic.
        let set = &mut self.sets[i];
        set.shared.open_first();
        set.shared.settle();
        set.shared.open();
        set.shared.settle();

        // 4. Announce, now that what it brings here is served: broadcast, then each client by itself. Our own view
        // of the addresses is of no use.
        let at = now();
        set.announced_from = at;
        set.next_burst = 0;
        let some = set.ipv6_count() > 0;
        set.settling = some.then_some(Settling {
            generation,
            look: at,
            until: at + SETTLE_MAX,
        });
        self.settle(i);
        self.speak();
        let set = &mut self.sets[i];
        if set.generation == generation {
            set.unforgotten = 0;
        }

        self.guard();
        let set = &mut self.sets[i];
        if set.generation == generation {
            set.failed = None;
            let v = set.v.clone();
            if let Some(what) = set.put_back.take() {
                (self.emit)(Event::Restored { v: v.clone(), what });
            }
            (self.emit)(Event::Opened { v });
        }
    }

    /// IPv6 addresses are announced when the kernel delivers what arrives for them: whoever learns where they are
    /// must find them there.
    fn settle(&mut self, i: usize) {
        let set = &mut self.sets[i];
        let Some(settling) = set.settling.filter(|s| s.look <= now()) else {
            return;
        };
        set.settling = None;
        if settling.generation != set.generation || set.phase != Phase::Open {
            return; // overtaken
        }
        let (first, last) = (set.ipv6().next(), set.ipv6().next_back());
        let mut looked_at = first.into_iter().chain(last);
        if !looked_at.all(|ip| self.netlink.delivers_here(ip).unwrap_or(true))
            && now() < settling.until
        {
            let look = now() + SETTLE_LOOK;
            set.settling = Some(Settling { look, ..settling });
            return;
        }
        let took = SETTLE_MAX.saturating_sub(settling.until.since(now()));
        if took > SETTLE_LATE {
            let v = &set.v;
            log::warn!("the kernel has not taken the IPv6 addresses of {v} into use for {took:?}");
        }
        if set.next_burst > 0 {
            set.announced_from = now();
            set.next_burst = 0;
        }
    }

    /// Removes a piece of our own view of addresses that are here now. Whether there is more.
    fn forget_some(&mut self) -> bool {
        let waits = |s: &Set| s.phase == Phase::Open && s.unforgotten < s.addresses.len();
        let Some(i) = self.sets.iter().position(waits) else {
            return false;
        };
        let set = &mut self.sets[i];
        let Some(link) = &set.link else { return false };
        let piece = set.unforgotten..(set.unforgotten + BATCH).min(set.addresses.len());
        set.unforgotten = piece.end;
        let done = self
            .netlink
            .forget_neighbours(link.index, &set.addresses[piece]);
        if let Err(e) = done {
            log::warn!(
                "{}: cannot remove own neighbour entries on {}: {e}",
                set.v,
                link.name
            );
        }
        true
    }

    /// What the kernel said, if that was in this moment.
    fn moment(&mut self) -> &mut Moment {
        let now = now();
        if now.since(self.moment.at) > MOMENT {
            self.moment = Moment {
                at: now,
                ..Moment::default()
            };
        }
        &mut self.moment
    }

    fn usable_link(&mut self, i: usize) -> Result<Link, String> {
        if self.sets[i].device.is_some() {
            return self.raise(i);
        }
        let found = self.configured_link(i);
        self.sets[i].link = found.clone().unwrap_or_default();
        found.and_then(|link| usable(link, &self.sets[i].network))
    }

    /// The interface that is configured, whatever carries the addresses.
    fn configured_link(&mut self, i: usize) -> Result<Option<Link>, String> {
        let name = self.sets[i].network.clone();
        if let Some(link) = self.moment().links.get(&name) {
            return Ok(Some(link.clone()));
        }
        let found = self.netlink.link(&name);
        let found = found.map_err(|e| format!("cannot look up interface {name}: {e}"))?;
        let known = found.clone().map(|link| (name, link));
        self.moment.links.extend(known);
        Ok(found)
    }

    /// Adds the addresses; none if that failed, or the deadline passed meanwhile.
    fn add_all(&mut self, i: usize, link: &Link) -> Option<u64> {
        self.generations += 1;
        let generation = self.generations;
        let set = &mut self.sets[i];
        set.generation = generation;
        set.phase = Phase::Open;
        set.renewed = 0;
        set.renew_at = now() + set.renewal();
        let v6 = set.ipv6_count();
        if v6 < set.addresses.len() {
            keep_secondaries(&link.name);
        }
        if v6 > 0 || set.device.is_some() {
            // Without the list we would share the route: no reason not to open.
            let listed = self.listed();
            let set = &mut self.sets[i];
            set.no_prefix_route = prefix_route_is_anothers(set, link, &listed);
        }
        let large = self.realtime.filter(|_| self.sets[i].is_large());
        let _hold = large.map(Hold::begin);
        let mut from = 0;
        while from < self.sets[i].addresses.len() {
            let set = &self.sets[i];
            let batch = set.batch(large.is_some());
            let to = (from + batch).min(set.addresses.len());
            let settings = set.settings(link, from..to);
            if let Some(what) = refusal(link, &settings, self.netlink.set(&settings)) {
                self.open_failed(i, what);
                return None;
            }
            from = to;
            self.guard();
            if self.sets[i].generation != generation {
                return None;
            }
        }
        Some(generation)
    }

    /// All addresses of this machine, of this moment; none if they cannot be had.
    fn listed(&mut self) -> Arc<Vec<AddressMessage>> {
        if let Some(listed) = &self.moment().listed {
            return listed.clone();
        }
        let listed = Arc::new(self.netlink.addresses().unwrap_or_default());
        self.moment.listed = Some(listed.clone());
        listed
    }

    fn open_failed(&mut self, i: usize, what: String) {
        let set = &mut self.sets[i];
        set.shared.absent();
        set.phase = Phase::Wanted;
        set.next_burst = BURSTS.len();
        set.retry_at = now() + RETRY_OPEN;
        self.forget_frames(i);
        self.fail(i, what);
    }

    /// Ends an opening: none of its frames is sent any more.
    fn forget_frames(&mut self, i: usize) {
        let ended = std::mem::take(&mut self.sets[i].generation);
        if ended != 0 {
            self.queue.retain(|frame| frame.generation != ended);
        }
    }

    fn fail(&mut self, i: usize, what: String) {
        let set = &mut self.sets[i];
        if set.failed.as_ref() != Some(&what) {
            set.failed = Some(what.clone());
            let v = set.v.clone();
            (self.emit)(Event::Failed { v, what });
        }
    }

    /// Renews kernel lifetimes, one batch in a round. Whether there is more to renew now.
    fn renew(&mut self) -> bool {
        let Some(i) = self
            .sets
            .iter()
            .position(|s| s.phase == Phase::Open && s.renew_at <= now())
        else {
            return false;
        };
        let set = &mut self.sets[i];
        let Some(link) = set.link.clone() else {
            return false;
        };
        if set.renewed == 0 {
            if let Err(what) = self.hold_gate() {
                self.open_failed(i, what);
                return true;
            }
            if !self.device_holds(i) {
                self.remake(i);
                return true;
            }
        }
        let set = &mut self.sets[i];
        let range = set.renewed..(set.renewed + set.batch(false)).min(set.addresses.len());
        set.renewed = range.end;
        let settings = set.settings(&link, range.clone());
        if range.end == set.addresses.len() {
            set.renewed = 0;
            set.renew_at = now() + set.renewal();
        }
        if let Some(what) = refusal(&link, &settings, self.netlink.set(&settings)) {
            self.open_failed(i, what);
        }
        true
    }

    // ---- what others do

    fn notice(&mut self) {
        let mut removed: HashMap<usize, Vec<VirtualAddress>> = HashMap::new();
        for change in self.netlink.changes() {
            if !matches!(change, Change::Removed(..)) {
                self.moment = Moment::default();
            }
            match change {
                Change::Removed(interface, ip) => {
                    let Some(&i) = self.owner.get(&ip) else {
                        continue;
                    };
                    let set = &self.sets[i];
                    let here = set.link.as_ref().is_some_and(|l| l.index == interface);
                    if here && set.phase == Phase::Open {
                        removed
                            .entry(i)
                            .or_default()
                            .extend(set.place.get(&ip).map(|n| set.addresses[*n]));
                    }
                }
                Change::Link(link) => {
                    self.carrier(&link);
                    self.link_changed(&link);
                }
                Change::Gone(index, name) => {
                    self.without_carrier.remove(&index);
                    if let Some(gate) = &self.gate {
                        gate.detach(index);
                    }
                    self.device_changed(index);
                    for i in self.open_on(index) {
                        self.sets[i].link = None;
                        self.open_failed(
                            i,
                            format!("interface {name} does not exist; waiting for it"),
                        );
                    }
                }
                Change::Unknown => {
                    self.gate_partial = true;
                    let open = |s: &&Set| s.phase == Phase::Open;
                    let listed = self.listed();
                    let here = |l: &AddressMessage| Some((l.header.index, netlink::ip_of(l)?));
                    let here: HashSet<_> = listed.iter().filter_map(here).collect();
                    for (i, set) in self.sets.iter().enumerate().filter(|(_, s)| open(s)) {
                        let there = |a: &&VirtualAddress| {
                            let index = set.link.as_ref().map(|l| l.index);
                            index.is_some_and(|index| here.contains(&(index, a.ip)))
                        };
                        let missing = set.addresses.iter().filter(|a| !there(a));
                        removed.insert(i, missing.copied().collect());
                    }
                    for set in &mut self.sets {
                        set.retry_at = BootTime(0);
                    }
                }
            }
        }
        for (i, addresses) in removed {
            self.guard();
            self.restore(i, &addresses);
        }
    }

    /// What was asked while there was none is asked anew: by a thread that may take its time.
    fn carrier(&mut self, link: &Link) {
        if !link.carries {
            self.without_carrier.insert(link.index);
        } else if self.without_carrier.remove(&link.index) {
            self.refresher
                .tell(refresher::Command::CarrierBack(link.index));
        }
    }

    fn open_on(&self, interface: u32) -> Vec<usize> {
        let on = |s: &Set| s.phase == Phase::Open && s.is_at(interface);
        (0..self.sets.len())
            .filter(|i| on(&self.sets[*i]))
            .collect()
    }

    /// The interface with this number has changed or is gone. If it is a set's device it is looked at as it is
    /// now: what is told may be older than what we did last.
    fn device_changed(&mut self, interface: u32) {
        for i in 0..self.sets.len() {
            let set = &self.sets[i];
            let told = set.link.as_ref().filter(|l| l.index == interface);
            let (Some(device), Some(below), Some(_)) = (&set.device, &set.below, told) else {
                continue;
            };
            let as_it_should = match self.netlink.link(&device.name) {
                Ok(Some(link)) => {
                    let up = match set.phase {
                        Phase::Open => link.up,
                        Phase::Shut => !link.up || set.raised,
                        Phase::Wanted | Phase::Closing => true,
                    };
                    device.is(&link, below) && up
                }
                Ok(None) => false,
                Err(_) => true, // looked at again with the next renewal
            };
            if !as_it_should {
                self.remake(i);
            }
        }
    }

    fn link_changed(&mut self, link: &Link) {
        if let Some(gate) = &self.gate
            && let Err(what) = gate.attach(link)
        {
            self.gate_partial = true;
            for i in 0..self.sets.len() {
                if self.sets[i].phase == Phase::Open {
                    self.open_failed(i, what.clone());
                }
            }
        }
        self.device_changed(link.index);
        for i in self.open_on(link.index) {
            let set = &mut self.sets[i];
            if set.device.is_some() {
                if set.network == link.name && !link.up {
                    self.open_failed(i, down(&link.name));
                }
                continue;
            }
            let new_mac = set.link.as_ref().is_some_and(|l| l.mac != link.mac);
            set.link = Some(link.clone());
            if !link.up {
                self.open_failed(i, down(&link.name));
            } else if new_mac {
                set.announced_from = now();
                set.next_burst = 0;
            }
        }
        for set in self
            .sets
            .iter_mut()
            .filter(|s| s.phase == Phase::Wanted && s.network == link.name)
        {
            if link.up {
                set.retry_at = BootTime(0);
            }
        }
        for i in 0..self.sets.len() {
            let set = &self.sets[i];
            if set.phase == Phase::Shut && set.network == link.name && set.link.is_none() {
                self.prepare(i);
            }
        }
    }

    /// Puts back the addresses that are really missing: some of our own removals may have been reported late.
    fn restore(&mut self, i: usize, addresses: &[VirtualAddress]) {
        let set = &self.sets[i];
        let (Phase::Open, Some(link)) = (set.phase, set.link.clone()) else {
            return;
        };
        let mut places: Vec<usize> = addresses
            .iter()
            .filter_map(|a| set.place.get(&a.ip).copied())
            .collect();
        places.sort_unstable();
        let places = places.into_iter();
        let settings: Vec<Setting> = places.flat_map(|n| set.settings(&link, n..n + 1)).collect();
        let mut answers = self.netlink.add_missing(&settings);
        let mut there = Vec::new();
        if let Ok(refused) = &mut answers {
            there = refused
                .extract_if(.., |(_, e)| *e == Errno::EEXIST)
                .map(|(n, _)| n)
                .collect();
        }
        if let Some(what) = refusal(&link, &settings, answers) {
            return self.open_failed(i, what);
        }
        let there: HashSet<usize> = there.into_iter().collect();
        let restored: Vec<VirtualAddress> = (0..settings.len())
            .filter(|n| !there.contains(n))
            .map(|n| settings[n].address)
            .collect();
        let Some(first) = restored.first() else {
            return;
        };
        for address in &restored {
            self.announce_one(i, address.ip);
        }
        let more = match restored.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let what = format!("{first}{more} on {}", link.name);
        let v = self.sets[i].v.clone();
        (self.emit)(Event::Restored { v, what });
    }

    // ---- frames

    /// Reads what others say about our addresses.
    fn hear(&mut self) {
        let mut buffer = [0; 256];
        for _ in 0..FRAMES_A_ROUND {
            match self.arp.receive(&mut buffer) {
                Ok(Some((length, interface))) => {
                    if let Some(heard) = arp::parse(&buffer[..length]) {
                        self.claimed(interface, heard.sender.into(), heard.sender_mac);
                    }
                }
                Ok(None) => break,
                Err(_) => {} // an interface went down: told elsewhere
            }
        }
        for _ in 0..FRAMES_A_ROUND {
            match self.nd.as_ref().map(|nd| nd.receive(&mut buffer)) {
                Some(Ok(Some((length, interface)))) => {
                    if let Some((ip, mac)) = ndp::parse_claim(&buffer[..length]) {
                        self.claimed(interface, ip.into(), mac);
                    }
                }
                None | Some(Ok(None)) => break,
                Some(Err(_)) => {}
            }
        }
    }

    fn claimed(&mut self, interface: u32, ip: IpAddr, mac: Mac) {
        let Some(&i) = self.owner.get(&ip) else {
            return;
        };
        let set = &mut self.sets[i];
        // The virtual MAC address is another's until it is up here.
        let ours = match set.phase {
            Phase::Open => &set.link,
            _ => set.below.as_ref().map_or(&set.link, |_| &set.below),
        };
        if !set.is_at(interface) || ours.as_ref().is_some_and(|l| l.mac == Some(mac)) {
            return;
        }
        let v = set.v.clone();
        if set.probe.take().is_some() {
            (self.emit)(Event::Probed {
                v: v.clone(),
                answered_by: Some(mac),
            });
        }
        if self.sets[i].phase != Phase::Open {
            return;
        }
        let told = self.sets[i].claims.entry(ip).or_default();
        if *told != BootTime(0) && now().since(*told) < CLAIM_INTERVAL {
            return;
        }
        *told = now();
        self.announce_one(i, ip);
        (self.emit)(Event::ForeignClaim { v, mac });
    }

    fn announce_one(&mut self, i: usize, ip: IpAddr) {
        let set = &self.sets[i];
        let Some((link, mac)) = set.link.as_ref().and_then(|l| Some((l, l.mac?))) else {
            return;
        };
        self.queue.push_back(announcement(
            set.generation,
            link.index,
            mac,
            ip,
            is_router(&link.name),
        ));
    }

    /// Queues what is due and sends a piece of the queue. Whether there is more to send now.
    fn speak(&mut self) -> bool {
        for i in 0..self.sets.len() {
            if self.sets[i].next_burst_at().is_some_and(|at| at <= now()) {
                self.queue_burst(i);
            }
            if self.sets[i].probe.as_ref().is_some_and(|p| p.next <= now()) {
                self.probe_on(i);
            }
        }
        self.send_some()
    }

    fn queue_burst(&mut self, i: usize) {
        let set = &mut self.sets[i];
        let burst = set.next_burst;
        // Late ones are made up for by one.
        while set.next_burst_at().is_some_and(|at| at <= now()) {
            set.next_burst += 1;
        }
        let Some((link, mac)) = set.link.as_ref().and_then(|l| Some((l, l.mac?))) else {
            return;
        };
        let router = is_router(&link.name);
        if set.announced().next().is_none() {
            return; // soon
        }
        // Switches are reminded by one frame.
        let count = if burst < BURSTS.len() { usize::MAX } else { 1 };
        let own = set.announced().take(count);
        self.queue
            .extend(own.map(|ip| announcement(set.generation, link.index, mac, ip, router)));
        if burst == 0 {
            let opening = Opening {
                v: set.v.clone(),
                from: set.announced_from,
                interface: link.index,
                name: set.network.clone(),
                mac,
                own: set.announced().collect(),
                shared: set.shared.clone(),
            };
            self.send_some(); // the broadcasts go first
            self.refresher.tell(refresher::Command::Opened(opening));
        }
    }

    fn send_some(&mut self) -> bool {
        if now().since(self.window_from) >= WINDOW {
            self.window_from = now();
            self.window_sent = 0;
        }
        let quota = FRAMES_A_ROUND.min(FRAMES_A_WINDOW - self.window_sent);
        for _ in 0..quota {
            let Some(frame) = self.queue.front() else {
                return false;
            };
            let sent = self
                .sender
                .send(frame.interface, frame.ethertype, &frame.bytes);
            let full = |e: &io::Error| {
                e.kind() == io::ErrorKind::WouldBlock
                    || e.raw_os_error() == Some(nix::libc::ENOBUFS)
            };
            self.window_sent += 1;
            if sent.as_ref().is_err_and(full) {
                self.window_sent = FRAMES_A_WINDOW; // the next window tries it again
                break;
            }
            // Other errors mean that the interface is gone or down: told elsewhere.
            self.queue.pop_front();
        }
        !self.queue.is_empty() && self.window_sent < FRAMES_A_WINDOW
    }

    // ---- probing

    fn probe_on(&mut self, i: usize) {
        let set = &mut self.sets[i];
        let v = set.v.clone();
        let Some(probe) = &mut set.probe else { return };
        if probe.left == 0 {
            set.probe = None;
            return (self.emit)(Event::Probed {
                v,
                answered_by: None,
            });
        }
        // Asked with the own MAC address: to claim nothing.
        let found = self.configured_link(i);
        let link = match found.and_then(|link| usable(link, &self.sets[i].network)) {
            Ok(link) => link,
            Err(what) => {
                self.sets[i].probe = None;
                return (self.emit)(Event::Failed { v, what });
            }
        };
        let set = &mut self.sets[i];
        if let Some(probe) = &mut set.probe {
            probe.left -= 1;
            probe.next = now() + PROBE_INTERVAL;
        }
        if set.device.is_none() {
            set.link = Some(link.clone());
        } else {
            set.below = Some(link.clone());
        }
        let Some(mac) = link.mac else {
            return;
        };
        let interface = link.index;
        self.queue.extend(set.addresses.iter().map(|a| {
            let (ethertype, bytes) = match a.ip {
                IpAddr::V4(ip) => (arp::ETHERTYPE, arp::probe(mac, ip)),
                IpAddr::V6(ip) => (ndp::ETHERTYPE, ndp::probe(mac, ip)),
            };
            Frame {
                generation: 0,
                interface,
                ethertype,
                bytes,
            }
        }));
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

fn down(interface: &str) -> String {
    format!("interface {interface} is down; waiting for it (ip link set {interface} up)")
}

fn usable(found: Option<Link>, name: &str) -> Result<Link, String> {
    match found {
        None => Err(format!("interface {name} does not exist; waiting for it")),
        Some(link) if !link.up => Err(down(name)),
        Some(link) => Ok(link),
    }
}

fn announcement(generation: u64, interface: u32, mac: Mac, ip: IpAddr, router: bool) -> Frame {
    let (ethertype, bytes) = match ip {
        IpAddr::V4(ip) => (arp::ETHERTYPE, arp::gratuitous(mac, ip)),
        IpAddr::V6(ip) => (ndp::ETHERTYPE, ndp::advertisement(mac, ip, router)),
    };
    Frame {
        generation,
        interface,
        ethertype,
        bytes,
    }
}

/// The first refusal in words; none if all was accepted.
fn refusal(
    link: &Link,
    settings: &[Setting],
    answer: io::Result<Vec<(usize, Errno)>>,
) -> Option<String> {
    let name = &link.name;
    match answer {
        Err(e) => Some(format!("cannot add addresses to {name}: {e}")),
        Ok(refused) => refused.first().map(|(place, errno)| {
            let address = settings[*place].address;
            let hint = match errno {
                Errno::EACCES if address.ip.is_ipv6() => " (is IPv6 disabled there?)",
                Errno::EPERM => " (CAP_NET_ADMIN is needed)",
                _ => "",
            };
            format!("cannot add {address} to {name}: {}{hint}", errno.desc())
        }),
    }
}

/// By address: whether another address of the interface, or of the one below, is in its network. The route to the
/// network is that one's then, and must not get our address's lifetime. (IPv4 sees to that by itself, but not
/// between two interfaces: the server would go on with the virtual address as its own.)
fn prefix_route_is_anothers(set: &Set, link: &Link, listed: &[AddressMessage]) -> Vec<bool> {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V6(ip) => Some(u128::from(ip)),
        IpAddr::V4(ip) if set.device.is_some() => Some(u128::from(ip.to_bits()) << 96),
        IpAddr::V4(_) => None,
    };
    let below = set.below.as_ref().map(|l| l.index);
    let others: Vec<(u128, u8)> = listed
        .iter()
        .filter(|l| l.header.index == link.index || Some(l.header.index) == below)
        .filter_map(|l| {
            netlink::ip_of(l)
                .filter(|ip| !set.place.contains_key(ip))
                .zip(Some(l.header.prefix_len))
        })
        .filter_map(|(ip, prefix)| Some((bits(ip)?, prefix)))
        .collect();
    let own = set.addresses.iter();
    own.map(|a| {
        let Some(ip) = bits(a.ip) else { return false };
        let host_bits = 128 - u32::from(a.prefix.min(128));
        let network = |ip: u128| ip.checked_shr(host_bits).unwrap_or(0);
        others
            .iter()
            .any(|(other, prefix)| *prefix == a.prefix && network(*other) == network(ip))
    })
    .collect()
}

/// Without this the kernel drops an interface's other addresses of a network together with the first one.
fn keep_secondaries(interface: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/promote_secondaries");
    if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "0")
        && let Err(e) = fs::write(&path, "1")
    {
        log::warn!(
            "cannot write {path}: {e}; removing an address may take others of its network along"
        );
    }
}

/// Whether this server forwards IPv6 there: hosts drop a router whose advertisements deny it.
fn is_router(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_virtual_mac_address_is_announced_for_ever() {
        for mac in [None, Some([2, 0, 0x5e, 0, 0x53, 1])] {
            let set = AddressSet {
                virtual_server: "web".parse().unwrap(),
                interface: "eth0".to_owned(),
                addresses: Vec::new(),
                mac,
            };
            let mut set = Set::new(set, Shared::new(None, None));
            set.announced_from = BootTime(1);
            assert_eq!(set.next_burst_at(), None, "not while shut");
            set.phase = Phase::Open;
            let mut after = Vec::new();
            for burst in BURSTS.len() - 1..BURSTS.len() + 2 {
                set.next_burst = burst;
                after.extend(
                    set.next_burst_at()
                        .map(|at| at.since(BootTime(1)).as_secs()),
                );
            }
            let expected: &[u64] = if mac.is_some() { &[10, 70, 130] } else { &[10] };
            assert_eq!(after, expected);
        }
    }
}
