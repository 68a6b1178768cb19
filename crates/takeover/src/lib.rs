//! Takes addresses over and gives them up: the only crate that changes addresses and neighbours.
//!
//! ```text
//!   electd ── open until t, shut, announce, probe ──▶ worker thread ──▶ netlink: addresses
//!          ◀───────── opened, shut, lapsed, ... ────              ├──▶ ARP, ND: announcements
//!                                                                 ▼ opened
//!          ◀──▶ clients, receipts ───────────────── refresh thread ──▶ ARP, ND: a question to each client
//! ```
//!
//! Three fences keep the lease, each able to act without the one before: the kernel's gate ([`gate`]: packets of
//! a virtual address pass only while now <= its deadline, by CLOCK_BOOTTIME), the worker, which removes the
//! addresses then, and the addresses' own lifetime of a few seconds in the kernel, renewed each second. Nobody
//! needs to act for a lease to end; extending it is a store into memory shared with the kernel. Where the gate
//! cannot be had in eBPF, nftables has one; where neither, the worker alone.
//!
//! Whether the clients send to this server now is the refresh thread's matter: it asks each of them by itself
//! and counts the answers (`refresh`), those it has seen and those the former master has told of (`clients`).
//!
//! It decides nothing: who is master, and until when, is electd's matter.

mod arp;
mod carrier;
mod clients;
mod clock;
mod early;
mod error;
mod gate;
mod gate_file;
mod hold;
mod holders;
mod macvlan;
mod ndp;
mod neighbours;
mod netlink;
mod nfnetlink;
mod outlive;
mod readers;
mod refresh;
mod refresher;
mod scripts;
mod sleep;
mod sys;
mod worker;

pub use arp::Mac;
pub use error::Error;
pub use gate::{GateHome, any::GateKind, check_backstop, check_gate, lease_fits, unmount_gate};
pub use hold::LatePackets;
pub use holders::{HOLDERS_MAX, holders};
pub use macvlan::check_mac;
pub use readers::read_any;
pub use refresh::Receipts;
pub use scripts::{PATH as SCRIPT_PATH, ScriptRole, ScriptRun, Scripts, is_left_over};

use config::{OnConflict, VirtualAddress};
use crossbeam_channel::Sender;
use gate::any::{Door, Gate};
use gate_file::{BootId, GateFile};
use macvlan::Devices;
use nix::sys::eventfd::{EfdFlags, EventFd};
use protocol::{BootTime, VirtualServerName, wire::signal::Client};
use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};
use sys::tap::Tap;
use worker::{Command, Worker};

/// Without the kernel's gate: how much earlier than the lease's end the deadline must be, so that the addresses
/// are gone in time. For sets of many addresses the worker itself begins the earlier the more there are.
const ADDRESSES_MARGIN: Duration = Duration::from_millis(2);

/// What the worker's stack needs at most: all of it may be locked into memory.
const STACK: usize = 512 * 1024;

/// The thread that keeps late packets runs so much below the worker, and so below electd's own loop.
const HOLDER_BELOW: i32 = 2;

const LATE_LOST: &str = "late packets of a planned handover will be lost";

/// The tap for late packets, which the gate leaves alone; none where there can be no tap.
fn late_packets_tap(gate: &Arc<gate::Gate>) -> Option<(Arc<gate::Gate>, Tap)> {
    match Tap::open() {
        Ok(tap) => {
            gate.leave_alone(tap.index());
            Some((gate.clone(), tap))
        }
        Err(why) => {
            log::warn!("{LATE_LOST}: {why}");
            None
        }
    }
}

/// The addresses of a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSet {
    /// Whose addresses they are.
    pub virtual_server: VirtualServerName,
    /// The interface that carries them.
    pub interface: String,
    /// The addresses, in the order they are added and announced.
    pub addresses: Vec<VirtualAddress>,
    /// The MAC address that they are at on whichever server; none: the interface's own.
    pub mac: Option<Mac>,
    /// What to do if another machine has one of them.
    pub on_conflict: OnConflict,
}

/// Addresses found open at start: they stay, and the worker guards their deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Whose addresses they are.
    pub virtual_server: VirtualServerName,
    /// Until when they stay unless extended.
    pub deadline: BootTime,
}

/// What the worker did or saw. Delivered on the worker's thread: the receiver must not block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The addresses are there and the first announcements are on their way.
    Opened {
        /// Whose addresses.
        v: VirtualServerName,
    },
    /// Asked to shut: no packet of the addresses passes the kernel's gate, read back; the addresses are removed
    /// meanwhile. Without that gate: read back, none of the addresses is left.
    Shut {
        /// Whose addresses.
        v: VirtualServerName,
    },
    /// The deadline has passed: read back, none of the addresses is left.
    Lapsed {
        /// Whose addresses.
        v: VirtualServerName,
    },
    /// Something cannot be done now. It is tried again for as long as it is wanted; the same trouble is
    /// told once. Instead of `Probed`: the probe could not be made.
    Failed {
        /// Whose addresses.
        v: VirtualServerName,
        /// What, and why not.
        what: String,
    },
    /// Addresses, the gate, or the device of a virtual MAC address, removed by another program, were put back.
    Restored {
        /// Whose addresses.
        v: VirtualServerName,
        /// What, and where: "192.0.2.10/24 and 2 more on eth0", "the gate on eth0".
        what: String,
    },
    /// Somebody else says that an address of ours is at its MAC address. Told at most once a second for
    /// each address; the address has been announced again, if it is here.
    ForeignClaim {
        /// Whose address.
        v: VirtualServerName,
        /// The address.
        ip: IpAddr,
        /// Who claims it.
        mac: Mac,
        /// It is one of the cluster's servers.
        of_server: bool,
    },
    /// Another machine has one of the addresses, and they are not to be taken from it: whether that is still so, seen
    /// every 10 s. The first time [`Self::Failed`] tells why.
    Taken {
        /// Whose addresses.
        v: VirtualServerName,
        /// It has not gone.
        taken: bool,
    },
    /// Open, and clients were seen on the interface that were not told of before, or a minute has passed:
    /// for the other servers. Delivered on another thread than the rest.
    Clients {
        /// Whose addresses; all open sets of the interface have the same clients.
        v: VirtualServerName,
        /// At most [`CLIENTS_MAX`](protocol::wire::signal::CLIENTS_MAX) of them.
        clients: Vec<Client>,
    },
    /// The probe has ended.
    Probed {
        /// Whose addresses.
        v: VirtualServerName,
        /// Who answered for one of them.
        answered_by: Option<Mac>,
    },
}

/// Where the cluster's servers are, as far as this machine's neighbours tell.
type ServerMacs = Arc<Mutex<BTreeMap<IpAddr, Mac>>>;

type Emit = Arc<dyn Fn(Event) + Send + Sync>;

/// What the handle and the worker share about a virtual server.
#[derive(Debug)]
struct Shared {
    /// The addresses may be there while now <= this (nanoseconds of CLOCK_BOOTTIME); 0 = shut.
    deadline: AtomicU64,
    /// The addresses are there: the worker needs no waking for a longer deadline.
    present: AtomicBool,
    /// Every client that was asked has answered since the last opening or announcement.
    acknowledged: AtomicBool,
    /// Held while deadline, presence and door change together: a few instructions.
    change: Mutex<()>,
    /// Its door in the kernel's gate.
    door: Option<Door>,
    /// None if it could not be opened at a reload: then a restart of electd does not adopt.
    file: Option<GateFile>,
    file_failed: AtomicBool,
}

impl Shared {
    fn new(file: Option<GateFile>, door: Option<Door>) -> Arc<Self> {
        Arc::new(Self {
            deadline: AtomicU64::new(0),
            present: AtomicBool::new(false),
            acknowledged: AtomicBool::new(false),
            change: Mutex::new(()),
            door,
            file,
            file_failed: AtomicBool::new(false),
        })
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadline(&self) -> BootTime {
        BootTime(self.deadline.load(SeqCst))
    }

    /// A longer deadline. Whether the worker must look at it.
    fn extend(&self, deadline: BootTime) -> bool {
        let _changing = self.changing();
        if self.deadline() >= deadline {
            return false;
        }
        self.deadline.store(deadline.0, SeqCst);
        let present = self.present.load(SeqCst);
        if !self.door.as_ref().is_some_and(Door::remembers) {
            self.note(deadline);
        }
        if present && let Some(door) = &self.door {
            door.open(deadline);
        }
        !present
    }

    /// Whether the kernel's gate reads back shut now.
    fn shut(&self) -> bool {
        let _changing = self.changing();
        self.deadline.store(0, SeqCst);
        self.present.store(false, SeqCst);
        if !self.door.as_ref().is_some_and(Door::remembers) {
            self.note(BootTime(0));
        }
        self.door.as_ref().is_some_and(Door::shut)
    }

    /// Waits until the gate is as it was told to be last; whether there is one and it is. Not for whoever must not
    /// wait.
    fn settle(&self) -> bool {
        self.door.as_ref().is_some_and(Door::settle)
    }

    /// The addresses are not there, or not for long; the deadline wanted stays.
    fn absent(&self) {
        let _changing = self.changing();
        self.present.store(false, SeqCst);
        if let Some(door) = &self.door {
            door.shut();
        }
    }

    /// As [`Self::absent`] unless the deadline is ahead of `call` again.
    fn lapse(&self, call: impl Fn() -> bool) -> bool {
        let _changing = self.changing();
        if !call() {
            return false;
        }
        self.present.store(false, SeqCst);
        if let Some(door) = &self.door {
            door.shut();
        }
        true
    }

    /// A planned handover: what arrives goes to the tap from now on, replies leave until `drained` at most, and
    /// no later deadline is taken. The door's number; none without a door that can hold packets.
    fn drain(&self, tap: u32, drained: BootTime, held: BootTime) -> Option<usize> {
        let _changing = self.changing();
        let number = self.door.as_ref()?.drain(tap, drained, held)?;
        self.present.store(false, SeqCst);
        Some(number)
    }

    /// Goes on leading to the tap what arrives, unless the addresses are here again.
    fn hold_on(&self, until: BootTime, tap: u32) {
        let _changing = self.changing();
        if let Some(door) = &self.door
            && !self.present.load(SeqCst)
        {
            door.hold_on(tap, until);
        }
    }

    /// The addresses are there and about to be announced: ARP and neighbour discovery may pass.
    fn open_first(&self) {
        let _changing = self.changing();
        if let Some(door) = &self.door {
            door.open_first(self.deadline());
        }
    }

    /// Everything may pass, until the deadline of this moment; none if asked to shut meanwhile.
    fn open(&self) {
        let _changing = self.changing();
        if self.deadline() != BootTime(0) {
            self.present.store(true, SeqCst);
            if let Some(door) = &self.door {
                door.hold_no_more();
                door.open(self.deadline());
            }
        }
    }

    /// Found open.
    fn adopt(&self, first: BootTime, second: BootTime) {
        let _changing = self.changing();
        self.deadline.store(second.0, SeqCst);
        self.present.store(true, SeqCst);
        if let Some(door) = &self.door {
            door.set(first, second);
        }
    }

    fn note(&self, deadline: BootTime) {
        let Some(file) = &self.file else { return };
        if let Err(e) = file.write(deadline)
            && !self.file_failed.swap(true, SeqCst)
        {
            log::warn!(
                "cannot write {}: {e}; a restart of electd would not adopt",
                file.path().display()
            );
        }
    }
}

/// The handle to the worker. Dropping it stops the worker and leaves the addresses as they are: they go
/// with their kernel lifetime unless the next life adopts them.
pub struct Takeover {
    run_dir: PathBuf,
    boot: BootId,
    gate: Option<Gate>,
    /// Why there is no better gate.
    better: String,
    shared: Mutex<BTreeMap<VirtualServerName, Arc<Shared>>>,
    shutter: Arc<Shutter>,
    thread: Option<JoinHandle<()>>,
    refresher: refresher::Handle,
    receipts: refresher::Board,
    refresh_thread: Option<JoinHandle<()>>,
    /// None where late packets cannot be kept.
    holder: Option<(hold::Handle, JoinHandle<()>)>,
}

/// Shuts the gate of a virtual server, and sees to the rest.
struct Shutter {
    gate: Option<Gate>,
    emit: Emit,
    commands: Sender<Command>,
    waker: Arc<EventFd>,
}

impl Shutter {
    /// Tells at once if the gate is there and reads back shut; the worker removes the addresses.
    fn shut(&self, v: &VirtualServerName, shared: &Shared) {
        let told = shared.shut() && self.gate.as_ref().is_some_and(Gate::holds);
        if told {
            (self.emit)(Event::Shut { v: v.clone() });
        }
        self.tell(Command::Shut(v.clone(), told));
    }

    fn tell(&self, command: Command) {
        // Fails only when the worker is gone, and then the process is going too.
        let _ = self.commands.send(command);
        // Fails only when the counter is full: then it is readable anyway.
        let _ = self.waker.write(1);
    }
}

impl Takeover {
    /// Starts the worker, under SCHED_FIFO with the priority given if any. Sets with a deadline of this
    /// boot still ahead and addresses there are adopted; all other left-over addresses of the sets are
    /// removed before it returns. An interface that is missing is no error, nor is a gate that cannot be had.
    pub fn start(
        run_dir: &Path,
        home: GateHome,
        sets: Vec<AddressSet>,
        realtime: Option<i32>,
        events: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<(Self, Vec<Adopted>), Error> {
        let emit: Emit = Arc::new(events);
        let mut better = Vec::new();
        for kind in GateKind::ALL {
            let loaded = match home.unwanted(kind) {
                Some(why) => Some(Err(why.to_owned())),
                None => Gate::load(kind, &home, run_dir, realtime),
            };
            let gate = match loaded {
                Some(Ok(gate)) => Some(gate),
                Some(Err(why)) => {
                    better.push((kind, why));
                    continue;
                }
                None => None,
            };
            let why = refusals(&better);
            match Self::start_behind(gate, why, run_dir, sets.clone(), realtime, emit.clone()) {
                Err(Error::Gate(why)) => better.push((kind, why)),
                other => return other,
            }
        }
        Err(Error::Worker) // not reached: without a gate in the kernel there is no Error::Gate
    }

    fn start_behind(
        gate: Option<Gate>,
        better: String,
        run_dir: &Path,
        sets: Vec<AddressSet>,
        realtime: Option<i32>,
        emit: Emit,
    ) -> Result<(Self, Vec<Adopted>), Error> {
        let boot = gate_file::boot_id()?;
        let tap = match &gate {
            Some(Gate::Ebpf(gate)) => late_packets_tap(gate),
            Some(Gate::Nftables(_)) | None => None,
        };
        let mut shared = BTreeMap::new();
        let mut with_shared = Vec::new();
        for set in sets {
            let v = &set.virtual_server;
            let door = gate.as_ref().map(|gate| Door::new(gate, v));
            let door = door.transpose().map_err(Error::Gate)?;
            let own = Shared::new(Some(GateFile::open(run_dir, v, boot)?), door);
            shared.insert(v.clone(), own.clone());
            with_shared.push((set, own));
        }
        let waker = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|e| Error::kernel("an event descriptor")(e.into()))?;
        let waker = Arc::new(waker);
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (report, started) = crossbeam_channel::bounded(1);
        let worker_waker = waker.clone();
        let worker_gate = gate.clone();
        let worker_emit = emit.clone();
        let refresher_emit = emit.clone();
        let server_macs = ServerMacs::default();
        let worker_servers = server_macs.clone();
        let (refresher, receipts, refresh_thread) = refresher::start(
            with_shared.clone(),
            realtime.is_some(),
            server_macs,
            move |e| refresher_emit(e),
        )?;
        let worker_refresher = refresher.clone();
        let devices = Devices::open(run_dir)?;
        let run = move || {
            if let Some(priority) = realtime
                && let Err(e) = sys::scheduler_fifo(priority)
            {
                log::warn!(
                    "the thread that guards the addresses runs without real-time priority: {e}"
                );
            }
            let started = Worker::start(
                with_shared,
                worker_gate,
                (inbox, worker_waker),
                worker_emit,
                worker_refresher,
                worker_servers,
                devices,
            );
            match started {
                Ok((worker, adopted)) => {
                    let _ = report.send(Ok(adopted));
                    worker.run(realtime);
                }
                Err(e) => {
                    let _ = report.send(Err(e));
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("takeover".into())
            .stack_size(STACK)
            .spawn(run)
            .map_err(Error::kernel("a thread that guards the addresses"))?;
        let adopted = match started.recv().map_err(|_| Error::Worker) {
            Ok(Ok(adopted)) => adopted,
            Ok(Err(e)) | Err(e) => {
                refresher.tell(refresher::Command::Stop);
                return Err(e);
            }
        };
        // A gate of an earlier life would stay shut for good.
        if !matches!(gate, Some(Gate::Ebpf(_))) {
            gate::remove_left_over(&run_dir.join("bpf"));
            gate::remove_backstop(run_dir);
        }
        if !matches!(gate, Some(Gate::Nftables(_))) {
            gate::nftables::remove_left_over(run_dir);
        }
        let shutter = Arc::new(Shutter {
            gate: gate.clone(),
            emit,
            commands,
            waker,
        });
        let holder = tap.and_then(|(gate, tap)| {
            let shutter = shutter.clone();
            let shut = Box::new(move |v: &VirtualServerName, own: &Shared| shutter.shut(v, own));
            hold::start(gate, tap, realtime.map(|p| p - HOLDER_BELOW), shut)
                .map_err(|e| log::warn!("{LATE_LOST}: {e}"))
                .ok()
        });
        let takeover = Self {
            run_dir: run_dir.to_owned(),
            boot,
            gate,
            better,
            shared: Mutex::new(shared),
            shutter,
            holder,
            thread: Some(thread),
            refresher,
            receipts,
            refresh_thread: Some(refresh_thread),
        };
        Ok((takeover, adopted))
    }

    /// How much earlier than the lease's end a deadline must be with the gate in force. It stays the same as
    /// long as this lives.
    pub fn margin(&self) -> Duration {
        let margin = self.gate.as_ref().map(Gate::margin);
        margin.unwrap_or(ADDRESSES_MARGIN)
    }

    /// The kind of gate in force.
    pub fn gate_kind(&self) -> GateKind {
        match &self.gate {
            Some(gate) => gate.kind(),
            None => GateKind::Addresses,
        }
    }

    /// What keeps the lease, and why not something better, for `standin status`.
    pub fn gate_in_force(&self) -> String {
        let in_force = match &self.gate {
            Some(gate) => gate.in_force(),
            None => "addresses only".to_owned(),
        };
        match self.better.as_str() {
            "" => in_force,
            better => format!("{in_force}: {better}"),
        }
    }

    /// Opens, or extends: the addresses are to be there until `deadline`. Never shortens. Costs a store into
    /// memory that the kernel's gate reads (without eBPF, a small write to the run-dir, and for nftables waking
    /// the thread that writes it); the worker is woken only if the addresses are not there.
    pub fn open(&self, v: &VirtualServerName, deadline: BootTime) {
        let Some(shared) = self.find(v) else { return };
        if shared.extend(deadline) {
            self.tell(Command::Look);
        }
    }

    /// Shuts now. [`Event::Shut`] follows, also if nothing was open: at once if the kernel's gate is there and
    /// reads back shut, else when the addresses read back gone.
    pub fn shut(&self, v: &VirtualServerName) {
        let Some(shared) = self.find(v) else { return };
        self.shutter.shut(v, &shared);
    }

    /// Shuts as [`Self::shut`] does, for another server that takes over within `patience`: what still arrives is
    /// kept for it, and replies of what was delivered before may leave for a millisecond more. Where that is not
    /// possible it is a plain shutting.
    pub fn hand_over(&self, v: &VirtualServerName, patience: Duration) {
        let Some(shared) = self.find(v) else { return };
        let whole = self.gate.as_ref().is_some_and(Gate::holds);
        let holder = self.holder.as_ref().filter(|_| whole);
        if !holder.is_some_and(|(holder, _)| holder.begin(v, &shared, patience)) {
            self.shutter.shut(v, &shared);
        }
    }

    /// After [`Self::hand_over`]: another server has the votes, or is about to: what was kept may be sent on to the
    /// one that announces the addresses.
    pub fn succeeded(&self, v: &VirtualServerName) {
        if let Some((holder, _)) = &self.holder {
            holder.succeeded(v);
        }
    }

    /// What has become of the late packets of planned handovers.
    pub fn late_packets(&self) -> LatePackets {
        self.holder
            .as_ref()
            .map(|(holder, _)| holder.counters())
            .unwrap_or_default()
    }

    fn end_holding(&mut self, at_once: bool) {
        if let Some((holder, thread)) = self.holder.take() {
            holder.end(at_once);
            let _ = thread.join();
        }
    }

    /// Stops cleanly: removes the addresses of all virtual servers, then the gate. If that cannot be done within
    /// some seconds the gate stays, shut. What is kept of a handover is sent on before.
    pub fn close(mut self) {
        self.end_holding(false);
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for own in shared.values() {
            own.shut();
        }
        drop(shared);
        self.tell(Command::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Announces the addresses again, if they are there: after a heal.
    pub fn announce(&self, v: &VirtualServerName) {
        self.tell(Command::Announce(v.clone()));
    }

    /// Asks the network whether anybody has the addresses: three times, 20 ms apart, without claiming
    /// them. [`Event::Probed`] follows at the first answer or 20 ms after the last question.
    pub fn probe(&self, v: &VirtualServerName) {
        self.tell(Command::Probe(v.clone()));
    }

    /// Votes are being asked for: asks the network beside that whether another machine has the addresses, without
    /// claiming them. What comes of it is reported when they are to be opened here.
    pub fn look_for_others(&self, v: &VirtualServerName) {
        self.tell(Command::LookForOthers(v.clone()));
    }

    /// Takes a changed configuration. Addresses no longer listed are removed; [`Event::Shut`] follows for
    /// virtual servers no longer listed. Addresses new in an open set are added.
    pub fn replace_sets(&self, sets: Vec<AddressSet>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *shared);
        let mut with_shared = Vec::new();
        for set in sets {
            let v = &set.virtual_server;
            let own = old.remove(v).unwrap_or_else(|| {
                let file = GateFile::open(&self.run_dir, v, self.boot)
                    .map_err(|e| log::warn!("{e}; a restart of electd would not adopt"));
                let door = self.gate.as_ref().and_then(|gate| {
                    Door::new(gate, v)
                        .map_err(|e| log::error!("{v}: {e}; it stays shut"))
                        .ok()
                });
                Shared::new(file.ok(), door)
            });
            shared.insert(v.clone(), own.clone());
            with_shared.push((set, own));
        }
        for gone in old.values() {
            gone.shut();
            if let Some(file) = &gone.file {
                file.remove();
            }
        }
        let told = refresher::Command::Sets(with_shared.clone());
        self.refresher.tell(told);
        self.tell(Command::Replace(with_shared));
    }

    /// What another server has seen on the interface of a virtual server: the next opening asks these too.
    pub fn learn(&self, v: &VirtualServerName, clients: &[Client]) {
        let now = clock::now();
        let seen = clients.iter().map(|c| {
            let age = Duration::from_secs(c.age_s.into());
            (c.ip, c.mac, now - age)
        });
        let told = refresher::Command::Learn(v.clone(), seen.collect());
        self.refresher.tell(told);
    }

    /// The addresses of the cluster's servers: they are asked as all neighbours are, but are no clients.
    pub fn set_servers(&self, servers: Vec<IpAddr>) {
        self.refresher.tell(refresher::Command::Servers(servers));
    }

    /// Another server may have missed [`Event::Clients`]: all are told again.
    pub fn tell_clients_again(&self) {
        self.refresher.tell(refresher::Command::TellAgain);
    }

    /// How the clients took the last opening or announcement, while open.
    pub fn receipts(&self, v: &VirtualServerName) -> Option<Receipts> {
        let board = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        board.get(v).cloned()
    }

    fn find(&self, v: &VirtualServerName) -> Option<Arc<Shared>> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let found = shared.get(v).cloned();
        if found.is_none() {
            log::warn!("virtual server {v} has no addresses here");
        }
        found
    }

    fn tell(&self, command: Command) {
        self.shutter.tell(command);
    }
}

/// Why there is no better gate, in words; what eBPF was refused for twice is told once.
pub fn refusals(better: &[(GateKind, String)]) -> String {
    let mut told: Vec<String> = Vec::new();
    let mut last = "";
    for (kind, why) in better {
        let name = match kind {
            GateKind::Tcx => "eBPF",
            GateKind::Clsact if why == last => continue,
            GateKind::Clsact => "eBPF at clsact",
            GateKind::Nftables | GateKind::Addresses => "nftables",
        };
        told.push(format!("{name} refused: {why}"));
        last = why;
    }
    told.join("; ")
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Takeover")
            .field("gate", &self.gate_in_force())
            .finish_non_exhaustive()
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        self.end_holding(true);
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.refresher.tell(refresher::Command::Stop);
        if let Some(thread) = self.refresh_thread.take() {
            let _ = thread.join();
        }
    }
}
