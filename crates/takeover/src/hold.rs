//! The late packets of a planned handover: none is lost.
//!
//! ```text
//!   client ──▶ gate of the old master ──▶ tap ──▶ this thread ──▶ MAC address of the new master
//!              (neither delivered nor            (keeps them until
//!               dropped: led to the tap)          the new one has opened)
//! ```
//!
//! At the beginning arriving packets are held, ARP and neighbour discovery are shut, and the replies of what was
//! delivered before may leave for [`DRAIN`] more. Then the gate shuts by itself, is read back, and electd may
//! release. When a successor has this server's vote (or its claim was heard), and announces the addresses, it has
//! opened, and its MAC address is known: the frames follow it, in order, and so do stragglers for [`FORWARD`]. If
//! none comes in time they are dropped. An announcement alone, from whomever, moves nothing.
//!
//! The thread may be late or die: what is held ends by an absolute time that the kernel looks at, and the gate
//! shuts by another one. Nothing here can open it.

use crate::{
    Error, Mac, Shared, arp,
    clock::now,
    early::Early,
    gate::{Gate, NOTE, Note},
    ndp,
    sleep::Sleeper,
    sys::{
        self, PacketSocket,
        tap::{Tap, mac_of},
    },
};
use crossbeam_channel::{Receiver, Sender};
use nix::sys::eventfd::{EfdFlags, EventFd};
use protocol::{BootTime, VirtualServerName};
use std::{
    collections::{HashMap, VecDeque},
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Replies of what was delivered may leave for so long after the last packet was.
pub(crate) const DRAIN: Duration = Duration::from_millis(1);
/// Frames follow the new master for so long: clients learn where it is from its announcements, not all at once.
const FORWARD: Duration = Duration::from_secs(2);
/// A clean stop waits for so much of it.
const LINGER: Duration = Duration::from_millis(100);
/// Sending is tried again after so long when the interface's queue is full.
const RETRY: Duration = Duration::from_micros(500);
/// Most that is kept of all virtual servers together; what comes later is dropped.
const FRAMES_MAX: usize = 16_384;
const BYTES_MAX: usize = 16 << 20;
/// Most frames read between two looks at the clock.
const FRAMES_A_ROUND: usize = 64;
const STACK: usize = 512 * 1024;

/// What has become of the late packets of planned handovers, since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatePackets {
    /// Held back while nobody held the addresses.
    pub held: u64,
    /// Sent on to the new master, those held and stragglers.
    pub forwarded: u64,
    /// Dropped: no new master in time, or more than can be kept.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    held: AtomicU64,
    forwarded: AtomicU64,
    dropped: AtomicU64,
}

fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}

enum Command {
    Begin(Handover),
    Succeeded(VirtualServerName),
    /// Stop when nothing is kept any more.
    Finish,
    Stop,
}

/// Tells the thread what to do.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: Sender<Command>,
    waker: Arc<EventFd>,
    counters: Arc<Counters>,
    tap: u32,
}

impl Handle {
    /// Begins: `patience` is how long a successor has to come. False if the virtual server has no door, or the
    /// thread is gone: then the caller has to shut.
    pub(crate) fn begin(
        &self,
        v: &VirtualServerName,
        shared: &Arc<Shared>,
        patience: Duration,
    ) -> bool {
        let begun = now();
        let (drained, until) = (begun + DRAIN, begun + patience);
        let Some(door) = shared.drain(self.tap, drained, until) else {
            return false;
        };
        self.tell(Command::Begin(Handover {
            v: v.clone(),
            shared: shared.clone(),
            door,
            drained: Some(drained),
            until,
            elected: false,
            forwarded: None,
            successors: HashMap::new(),
            waiting: VecDeque::new(),
        }))
    }

    /// Another server may announce the addresses from now on.
    pub(crate) fn succeeded(&self, v: &VirtualServerName) {
        self.tell(Command::Succeeded(v.clone()));
    }

    /// Asks the thread to end: at once, or when the new masters have everything.
    pub(crate) fn end(&self, at_once: bool) {
        self.tell(if at_once {
            Command::Stop
        } else {
            Command::Finish
        });
    }

    pub(crate) fn counters(&self) -> LatePackets {
        LatePackets {
            held: self.counters.held.load(Relaxed),
            forwarded: self.counters.forwarded.load(Relaxed),
            dropped: self.counters.dropped.load(Relaxed),
        }
    }

    /// False if the thread is gone.
    fn tell(&self, command: Command) -> bool {
        let told = self.commands.send(command).is_ok();
        // Fails only when the counter is full: then it is readable anyway.
        let _ = self.waker.write(1);
        told
    }
}

/// One virtual server that is, or has just been, handed over.
struct Handover {
    v: VirtualServerName,
    shared: Arc<Shared>,
    door: usize,
    /// Until when replies leave; none once the gate is shut.
    drained: Option<BootTime>,
    /// Until when frames are held, or sent on.
    until: BootTime,
    /// A successor may announce the addresses.
    elected: bool,
    /// Since when frames are sent on.
    forwarded: Option<BootTime>,
    /// Who announced the addresses last, by interface and kind of address.
    successors: HashMap<Way, Mac>,
    waiting: VecDeque<(Way, Vec<u8>)>,
}

/// How a frame came: the number of the interface, and whether it is IPv6. A successor may have its IPv4 addresses
/// in use before the others.
type Way = (u32, bool);

impl Handover {
    /// Where frames that came that way are to be sent now.
    fn successor(&self, way: Way) -> Option<Mac> {
        self.forwarded?;
        self.successors.get(&way).copied()
    }

    /// Nothing is kept, and most clients know better by now.
    fn may_end(&self, now: BootTime) -> bool {
        let since = self.forwarded.map(|at| now.since(at));
        self.drained.is_none() && self.waiting.is_empty() && since.is_some_and(|s| s >= LINGER)
    }
}

/// Where the new master's announcements are heard.
struct Ears {
    arp: PacketSocket,
    nd: PacketSocket,
}

/// Shuts the gate of a virtual server, and sees to the rest.
pub(crate) type Shut = Box<dyn Fn(&VirtualServerName, &Shared) + Send>;

struct Holder {
    gate: Arc<Gate>,
    tap: Tap,
    shut: Shut,
    commands: Receiver<Command>,
    counters: Arc<Counters>,
    sleeper: Sleeper,
    sender: PacketSocket,
    /// Only during a handover.
    ears: Option<Ears>,
    /// This server's own MAC addresses, by interface, during a handover.
    macs: HashMap<u32, Mac>,
    handovers: Vec<Handover>,
    early: Early<Way>,
    kept_frames: usize,
    kept_bytes: usize,
    blocked_until: Option<BootTime>,
    finishing: bool,
    buffer: Vec<u8>,
}

/// Starts the thread, under SCHED_FIFO with that priority if any.
pub(crate) fn start(
    gate: Arc<Gate>,
    tap: Tap,
    realtime: Option<i32>,
    shut: Shut,
) -> Result<(Handle, JoinHandle<()>), Error> {
    let waker = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(|e| Error::kernel("an event descriptor")(e.into()))?;
    let (commands, inbox) = crossbeam_channel::unbounded();
    let handle = Handle {
        commands,
        waker: Arc::new(waker),
        counters: Arc::default(),
        tap: tap.index(),
    };
    let holder = Holder {
        gate,
        tap,
        shut,
        commands: inbox,
        counters: handle.counters.clone(),
        sleeper: Sleeper::new(handle.waker.clone())?,
        sender: PacketSocket::sender().map_err(Error::kernel("a packet socket"))?,
        ears: None,
        macs: HashMap::new(),
        handovers: Vec::new(),
        early: Early::new(),
        kept_frames: 0,
        kept_bytes: 0,
        blocked_until: None,
        finishing: false,
        buffer: vec![0; 1 << 16],
    };
    holder
        .sleeper
        .watch(&holder.tap)
        .map_err(Error::kernel("an epoll descriptor"))?;
    let run = move || {
        if let Some(priority) = realtime
            && let Err(e) = sys::scheduler_fifo(priority)
        {
            log::warn!("the thread that keeps late packets runs without real-time priority: {e}");
        }
        holder.run();
    };
    let thread = std::thread::Builder::new()
        .name("hold".into())
        .stack_size(STACK)
        .spawn(run)
        .map_err(Error::kernel("a thread that keeps late packets"))?;
    Ok((handle, thread))
}

impl Holder {
    fn run(mut self) {
        while self.take_commands() {
            self.shut_drained();
            self.hear();
            self.succeed();
            let more = self.read();
            self.forward();
            self.expire();
            let at = now();
            if self.finishing && self.handovers.iter().all(|h| h.may_end(at)) {
                break;
            }
            self.wait(more);
        }
    }

    /// False when asked to stop.
    fn take_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Begin(handover) => self.begin(handover),
                Command::Succeeded(v) => {
                    let of = self.handovers.iter_mut().filter(|h| h.v == v);
                    of.for_each(|h| h.elected = true);
                }
                Command::Finish => self.finishing = true,
                Command::Stop => return false,
            }
        }
        true
    }

    fn begin(&mut self, mut handover: Handover) {
        if self.ears.is_none() {
            // MAC addresses may have changed since the last time.
            self.macs.clear();
            match self.listen() {
                Ok(ears) => self.ears = Some(ears),
                Err(e) => log::warn!("the new master of {} is not heard: {e}", handover.v),
            }
        }
        self.end(|h| h.v == handover.v);
        handover.waiting = self.early.of(handover.door);
        count(&self.counters.held, handover.waiting.len());
        self.handovers.push(handover);
    }

    fn listen(&self) -> io::Result<Ears> {
        let ears = Ears {
            arp: PacketSocket::receiver(arp::ETHERTYPE, Vec::new())?,
            nd: PacketSocket::receiver(ndp::ETHERTYPE, sys::neighbour_discovery_filter())?,
        };
        self.sleeper.watch(&ears.arp)?;
        self.sleeper.watch(&ears.nd)?;
        Ok(ears)
    }

    /// A successor is elected and announces: what is kept follows it from now on.
    fn succeed(&mut self) {
        let at = now();
        let ready = |h: &&mut Handover| h.elected && h.forwarded.is_none();
        for handover in self.handovers.iter_mut().filter(ready) {
            if handover.successors.is_empty() || at > handover.until {
                continue;
            }
            handover.forwarded = Some(at);
            handover.until = at + FORWARD;
            handover.shared.hold_on(handover.until, self.tap.index());
        }
    }

    fn shut_drained(&mut self) {
        let at = now();
        for handover in &mut self.handovers {
            if handover.drained.is_some_and(|until| at > until) {
                handover.drained = None;
                (self.shut)(&handover.v, &handover.shared);
            }
        }
    }

    /// Who says that it has one of the addresses?
    fn hear(&mut self) {
        let Some(ears) = self.ears.take() else { return };
        let mut buffer = [0; 256];
        let mut heard: Vec<(u32, IpAddr, Mac)> = Vec::new();
        for _ in 0..FRAMES_A_ROUND {
            // Errors mean that an interface went down: told elsewhere.
            match ears.arp.receive(&mut buffer) {
                Ok(Some((length, interface))) => {
                    let claim = arp::parse(&buffer[..length]);
                    heard.extend(claim.map(|c| (interface, c.sender.into(), c.sender_mac)));
                }
                Ok(None) => break,
                Err(_) => {}
            }
        }
        for _ in 0..FRAMES_A_ROUND {
            match ears.nd.receive(&mut buffer) {
                Ok(Some((length, interface))) => {
                    let claim = ndp::parse_claim(&buffer[..length]);
                    heard.extend(claim.map(|c| (interface, c.claimed.into(), c.mac)));
                }
                Ok(None) => break,
                Err(_) => {}
            }
        }
        self.ears = Some(ears);
        // What this server itself has sent carries no interface.
        for (interface, ip, mac) in heard.into_iter().filter(|(i, ..)| *i != 0) {
            let Some(door) = self.gate.door_of(ip) else {
                continue;
            };
            if let Some(handover) = self.handovers.iter_mut().find(|h| h.door == door) {
                let way = (interface, ip.is_ipv6());
                handover.successors.insert(way, mac);
            }
        }
    }

    /// Takes what the gate has held; whether there may be more.
    fn read(&mut self) -> bool {
        for _ in 0..FRAMES_A_ROUND {
            let frame = match self.tap.read(&mut self.buffer) {
                Ok(Some(length)) => &self.buffer[..length],
                Ok(None) => return false,
                Err(e) => {
                    log::error!("cannot read late packets: {e}");
                    return false;
                }
            };
            let Some(note) = Note::read(frame) else {
                continue; // the kernel's own, about the tap itself
            };
            if self.kept_frames >= FRAMES_MAX || self.kept_bytes >= BYTES_MAX {
                count(&self.counters.dropped, 1);
                continue;
            }
            // Sent on by the interface below, not with the virtual MAC address as sender.
            let way = (self.gate.below(note.interface), is_ipv6(frame));
            self.kept_frames += 1;
            self.kept_bytes += frame.len();
            let handover = self.handovers.iter_mut().find(|h| h.door == note.door);
            let Some(handover) = handover else {
                self.early.keep(now(), note.door, way, frame.to_vec());
                continue;
            };
            if handover.successor(way).is_none() {
                count(&self.counters.held, 1);
            }
            handover.waiting.push_back((way, frame.to_vec()));
        }
        true
    }

    /// Sends what is kept after those who have the addresses now.
    fn forward(&mut self) {
        if self.blocked_until.is_some_and(|until| now() < until) {
            return;
        }
        self.blocked_until = None;
        for handover in self.handovers.iter_mut().filter(|h| h.forwarded.is_some()) {
            let mut homeless = VecDeque::new();
            while let Some((way, mut frame)) = handover.waiting.pop_front() {
                let Some(to) = handover.successor(way) else {
                    homeless.push_back((way, frame));
                    continue;
                };
                let (interface, _) = way;
                let length = frame.len();
                let sent = own_mac(&mut self.macs, interface)
                    .and_then(|own| send(&self.sender, interface, &mut frame, to, own));
                if sent.as_ref().is_err_and(is_full) {
                    homeless.push_back((way, frame));
                    homeless.append(&mut handover.waiting);
                    self.blocked_until = Some(now() + RETRY);
                    break;
                }
                self.kept_frames -= 1;
                self.kept_bytes -= length;
                match sent {
                    Ok(()) => count(&self.counters.forwarded, 1),
                    Err(_) => count(&self.counters.dropped, 1),
                }
            }
            handover.waiting = homeless;
        }
    }

    /// Ends what nobody came for, and what has been sent on for long enough.
    fn expire(&mut self) {
        let (frames, bytes) = self.early.expired(now());
        (self.kept_frames, self.kept_bytes) = (self.kept_frames - frames, self.kept_bytes - bytes);
        count(&self.counters.dropped, frames);
        if self.handovers.is_empty() {
            return;
        }
        let at = now();
        self.end(|h| h.drained.is_none() && at > h.until);
        if self.handovers.is_empty() {
            self.ears = None;
        }
    }

    fn end(&mut self, over: impl Fn(&Handover) -> bool) {
        for gone in self.handovers.extract_if(.., |h| over(h)) {
            let lost = gone.waiting.len();
            self.kept_frames -= lost;
            self.kept_bytes -= gone.waiting.iter().map(|(_, f)| f.len()).sum::<usize>();
            count(&self.counters.dropped, lost);
            if lost > 0 {
                let v = &gone.v;
                log::warn!(
                    "{lost} late packets of {v} are dropped: no new master was heard in time"
                );
            }
        }
    }

    fn wait(&mut self, busy: bool) {
        let after = Duration::from_nanos(1);
        let due = self.handovers.iter().map(|h| {
            let linger = h.forwarded.filter(|_| self.finishing).map(|at| at + LINGER);
            let until = h.drained.unwrap_or(h.until) + after;
            linger.filter(|l| *l < until && now() < *l).unwrap_or(until)
        });
        let due = due.chain(self.blocked_until).chain(self.early.due());
        self.sleeper.wait(due.min(), busy);
    }
}

/// Whether the frame carries IPv6, in a VLAN or not.
pub(crate) fn is_ipv6(frame: &[u8]) -> bool {
    let ethertype = |at: usize| frame.get(at..at + 2);
    let tagged = [[0x81, 0x00], [0x88, 0xa8]].map(|tag| ethertype(NOTE) == Some(&tag[..]));
    let at = if tagged.contains(&true) {
        NOTE + 4
    } else {
        NOTE
    };
    ethertype(at) == Some(&ndp::ETHERTYPE.to_be_bytes()[..])
}

fn own_mac(known: &mut HashMap<u32, Mac>, interface: u32) -> io::Result<Mac> {
    if let Some(mac) = known.get(&interface) {
        return Ok(*mac);
    }
    let mac = mac_of(interface)?;
    known.insert(interface, mac);
    Ok(mac)
}

/// From this server's own MAC address: a switch must not look for the client here.
fn send(
    sender: &PacketSocket,
    interface: u32,
    frame: &mut [u8],
    to: Mac,
    own: Mac,
) -> io::Result<()> {
    let short = io::ErrorKind::InvalidData;
    let (addresses, rest) = frame.split_at_mut_checked(NOTE).ok_or(short)?;
    let ethertype = rest.first_chunk().ok_or(short)?;
    addresses[..6].copy_from_slice(&to);
    addresses[6..].copy_from_slice(&own);
    let ethertype = u16::from_be_bytes(*ethertype);
    sender.send(interface, ethertype, frame)
}

fn is_full(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock || e.raw_os_error() == Some(nix::libc::ENOBUFS)
}
