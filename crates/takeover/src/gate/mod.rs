//! The kernel's gate: packets of a virtual address pass only while now <= its deadline, whatever electd does.
//!
//! ```text
//!   electd, worker ── deadlines, absolute ──▶ doors (a map: memory shared with the kernel)
//!                                               ▲
//!   packet ──▶ program at every interface ──────┴── addresses (a map: which door)
//! ```
//!
//! A planned handover leads the packets that a door refuses to electd itself, for a moment (`holding`).
//!
//! Links, and the doors for the next electd, are pinned in `<run-dir>/bpf`: the gate stays when electd is
//! killed, and shuts by itself. Each life of electd has programs and maps of its own and puts them in the
//! place of the earlier ones, so that a late write of an earlier life reaches memory that nobody looks at.

pub(crate) mod any;
mod assembler;
mod attach;
mod backstop;
mod clsact;
mod holding;
pub(crate) mod nftables;
mod program;
mod ruleset;
mod stall;
mod transit;

use crate::{
    arp::Mac,
    sys::bpf::{Attached, Map, Memory, Program, Side},
};
use any::GateKind;
use attach::Places;
pub(crate) use attach::{pins, remove_left_over};
use backstop::Backstop;
use clsact::Filters;
use config::VirtualAddress;
use holding::Holds;
pub(crate) use holding::{NOTE, Note};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use program::Frames;
use protocol::{BootTime, VirtualServerName};
pub(crate) use stall::stall;
use std::{
    collections::HashMap,
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::Ordering::SeqCst},
    time::Duration,
};
use transit::Transit;

/// Twice what a configuration may hold: at a reload some are on their way out.
const DOORS: usize = 512;
const ADDRESSES: usize = 65_536;

/// A door: two deadlines in nanoseconds of CLOCK_BOOTTIME, then the name of its virtual server.
const NAME_AT: usize = 16;
const NAME: usize = 64;
const DOOR: usize = NAME_AT + NAME;

/// The doors as pinned; another name first, so that no moment is without. (No dots: the kernel keeps those.)
const PINNED_DOORS: &str = "doors";
const COMING_DOORS: &str = "doors-new";

/// Index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

/// Where the eBPF gate is kept, or why there is none; and what is not to be tried.
#[derive(Clone, Debug)]
pub struct GateHome {
    path: Result<PathBuf, String>,
    at_most: GateKind,
    why: String,
    /// Why not nftables.
    too_short: Option<String>,
}

impl GateHome {
    /// `<run-dir>/bpf`, with a BPF file system mounted there if there is none yet: this needs
    /// CAP_SYS_ADMIN, which may be dropped afterwards. CAP_BPF and CAP_NET_ADMIN are needed to go on.
    pub fn mount(run_dir: &Path) -> Self {
        let home = run_dir.join("bpf");
        Self {
            path: mounted(&home).map(|()| home),
            at_most: GateKind::Tcx,
            why: String::new(),
            too_short: None,
        }
    }

    /// For leases of that length, renewed at each heartbeat: see [`lease_fits`].
    pub fn for_lease(self, heartbeat: Duration, lease: Duration) -> Self {
        Self {
            too_short: lease_fits(GateKind::Nftables, heartbeat, lease).err(),
            ..self
        }
    }

    /// Nothing better than this kind of gate is tried; `why` is told by [`crate::Takeover::gate_in_force`].
    pub fn at_most(self, kind: GateKind, why: &str) -> Self {
        Self {
            at_most: kind,
            why: why.to_owned(),
            ..self
        }
    }

    pub(crate) fn path(&self) -> Result<PathBuf, String> {
        self.path.clone()
    }

    /// Why a kind of gate is not to be tried.
    pub(crate) fn unwanted(&self, kind: GateKind) -> Option<&str> {
        match &self.too_short {
            _ if kind < self.at_most => Some(self.why.as_str()),
            Some(why) if kind == GateKind::Nftables => Some(why.as_str()),
            _ => None,
        }
    }
}

/// Whether a lease leaves room for that kind of gate: what the gate may use of it must outlast the loss of one beat.
pub fn lease_fits(kind: GateKind, heartbeat: Duration, lease: Duration) -> Result<(), String> {
    /// The longest time between two ticks of a kernel.
    const TICK: Duration = Duration::from_millis(10);
    if kind != GateKind::Nftables {
        return Ok(());
    }
    let least = (nftables::MARGIN + heartbeat * 2 + TICK) * 5 / 4;
    if lease >= least {
        return Ok(());
    }
    Err(format!(
        "a lease of {} is too short for it; write lease = \"{}\" or more",
        humantime::format_duration(lease),
        humantime::format_duration(Duration::from_millis(least.as_millis() as u64 + 1))
    ))
}

fn is_mounted(home: &Path) -> bool {
    statfs(home).is_ok_and(|f| f.filesystem_type() == BPF_FS_MAGIC)
}

fn mounted(home: &Path) -> Result<(), String> {
    let shown = home.display();
    if is_mounted(home) {
        return Ok(());
    }
    if let Err(e) = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(home)
    {
        return Err(format!("cannot create {shown}: {e}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("standin"), home, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|e| format!("cannot mount a BPF file system at {shown}: {}", e.desc()))
}

/// Unmounts `<run-dir>/bpf` if no gate is left in it. Needs CAP_SYS_ADMIN.
pub fn unmount_gate(run_dir: &Path) {
    let home = run_dir.join("bpf");
    if is_mounted(&home) && pins(&home).is_empty() {
        match nix::mount::umount(&home) {
            Ok(()) => drop(fs::remove_dir(&home)),
            Err(e) => log::warn!("cannot unmount {}: {e}", home.display()),
        }
    }
}

/// Whether an interface that comes while electd is stopped would be kept silent behind an eBPF gate; the words say why
/// not. (nftables looks at all interfaces.)
pub fn check_backstop() -> Result<(), String> {
    backstop::check()
}

/// Removes the backstop that an earlier life left.
pub(crate) fn remove_backstop(run_dir: &Path) {
    nftables::remove_named(&backstop::prefix_of(run_dir));
}

/// Whether this process could have that kind of gate; the words say why not.
pub fn check_gate(kind: GateKind) -> Result<(), String> {
    match kind {
        GateKind::Tcx | GateKind::Clsact => {
            Gate::load(PathBuf::new(), kind == GateKind::Clsact).map(drop)
        }
        GateKind::Nftables => nftables::check(),
        GateKind::Addresses => Ok(()),
    }
}

#[derive(Debug)]
struct Programs {
    ingress: Program,
    egress: Program,
}

impl Programs {
    fn load(frames: Frames, tables: program::Tables, transit: Transit) -> Result<Self, String> {
        let load = |side| {
            let code = program::program(side, frames, tables, transit)
                .ok_or("the gate's program has a wrong jump")?;
            Program::load(&code).map_err(|e| format!("loading a program: {e}"))
        };
        Ok(Self {
            ingress: load(Side::Ingress)?,
            egress: load(Side::Egress)?,
        })
    }

    fn on(&self, side: Side) -> &Program {
        match side {
            Side::Ingress => &self.ingress,
            Side::Egress => &self.egress,
        }
    }
}

/// One electd's gate: its own programs and maps.
#[derive(Debug)]
pub(crate) struct Gate {
    home: PathBuf,
    /// At `clsact`, not at TCX.
    clsact: Option<Filters>,
    addresses: Map,
    doors: Map,
    memory: Memory,
    holds: Holds,
    ethernet: Programs,
    /// For tunnels whose packets have no link-layer header.
    bare: Programs,
    macvlan: Programs,
    free: Mutex<Vec<usize>>,
    places: Mutex<Places>,
    /// The tap for late packets.
    tap: OnceLock<u32>,
    /// For the interfaces without gate; or why there is none.
    backstop: Result<Backstop, String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// Loads programs and empty maps; nothing is attached yet.
    pub(crate) fn load(home: PathBuf, clsact: bool) -> Result<Self, String> {
        Self::load_with(home, clsact, Err("not begun".to_owned()))
    }

    /// With rules of nftables for interfaces without gate, and for what only passes through, if they can be had.
    pub(crate) fn with_backstop(
        home: PathBuf,
        clsact: bool,
        run_dir: &Path,
    ) -> Result<Self, String> {
        let backstop = Backstop::start(run_dir);
        if let Err(why) = &backstop {
            log::warn!("no backstop for interfaces that come while electd is stopped: {why}");
        }
        Self::load_with(home, clsact, backstop)
    }

    fn load_with(
        home: PathBuf,
        clsact: bool,
        backstop: Result<Backstop, String>,
    ) -> Result<Self, String> {
        let transit = match &backstop {
            Ok(_) => Transit::Passes,
            Err(_) => Transit::Drops,
        };
        let table = |e| format!("making a map: {e} (CAP_BPF is needed)");
        let addresses = Map::hash(16, 4, ADDRESSES).map_err(table)?;
        let doors = Map::array(DOOR, DOORS).map_err(table)?;
        let memory = doors
            .memory()
            .map_err(|e| format!("sharing a map's memory: {e}"))?;
        let holds = Holds::new(DOORS).map_err(table)?;
        let tables = program::Tables {
            addresses: addresses.fd(),
            doors: doors.fd(),
            holds: holds.fd(),
        };
        if !clsact {
            Attached::query(LOOPBACK, Side::Ingress).map_err(|e| {
                format!("asking for the programs of an interface (TCX, Linux 6.6 or later): {e}")
            })?;
        }
        Ok(Self {
            clsact: clsact.then(|| Filters::of(&home)),
            home,
            ethernet: Programs::load(Frames::Ethernet, tables, transit)?,
            bare: Programs::load(Frames::Bare, tables, transit)?,
            macvlan: Programs::load(Frames::Macvlan, tables, transit)?,
            addresses,
            doors,
            memory,
            holds,
            free: Mutex::new((0..DOORS).rev().collect()),
            places: Mutex::new(Places::default()),
            tap: OnceLock::new(),
            backstop,
        })
    }

    /// Why nothing keeps an interface silent that comes while electd is stopped.
    pub(crate) fn no_backstop(&self) -> Option<&str> {
        self.backstop.as_ref().err().map(String::as_str)
    }

    /// Whether it is attached to the queueing discipline `clsact`.
    pub(crate) fn clsact(&self) -> bool {
        self.clsact.is_some()
    }

    /// The interface of electd's own tap needs no gate: what leaves there only electd sees.
    pub(crate) fn leave_alone(&self, tap: u32) {
        let _ = self.tap.set(tap);
    }

    /// The door of that address.
    pub(crate) fn door_of(&self, ip: IpAddr) -> Option<usize> {
        let door = self.addresses.get(&key(ip)).ok()?;
        Some(u32::from_ne_bytes(door.try_into().ok()?) as usize)
    }

    /// The doors that an earlier life of electd left, if any.
    pub(crate) fn earlier(&self) -> Option<Earlier> {
        Map::pinned_array(&self.home.join(PINNED_DOORS), DOOR)
            .ok()
            .map(|doors| Earlier::read(&doors))
    }

    /// Leaves the doors to the next life.
    pub(crate) fn pin_doors(&self) -> Result<(), String> {
        let (coming, pinned) = (self.home.join(COMING_DOORS), self.home.join(PINNED_DOORS));
        let _ = fs::remove_file(&coming);
        self.doors
            .pin(&coming)
            .and_then(|()| fs::rename(&coming, &pinned))
            .map_err(|e| format!("pinning {}: {e}", pinned.display()))
    }
}

/// The place of a MAC address among the addresses: where no packet's address can be.
fn mac_key(mac: Mac) -> [u8; 16] {
    let mut key = [0xff; 16];
    key[10..].copy_from_slice(&mac);
    key
}

fn key(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The deadlines of an earlier life, first and second by virtual server.
#[derive(Debug)]
pub(crate) struct Earlier(HashMap<[u8; NAME], (BootTime, BootTime)>);

impl Earlier {
    fn read(doors: &Map) -> Self {
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).ok().map(BootTime);
        let read = |place: u32| {
            let door = doors.get(&place.to_ne_bytes()).ok()?;
            let name = door.get(NAME_AT..)?.try_into().ok()?;
            Some((name, (number(&door[..8])?, number(&door[8..16])?)))
        };
        let mut all = HashMap::new();
        for (name, deadlines) in (0..doors.entries() as u32).filter_map(read) {
            // A door that was given back keeps the name until it is used again.
            let known = all.entry(name).or_insert(deadlines);
            *known = (*known).max(deadlines);
        }
        Self(all)
    }

    /// First and second deadline of that virtual server's door.
    pub(crate) fn deadlines(&self, v: &VirtualServerName) -> Option<(BootTime, BootTime)> {
        self.0.get(&name_bytes(v)).copied()
    }
}

fn name_bytes(v: &VirtualServerName) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    for (to, from) in bytes.iter_mut().zip(v.to_string().bytes()) {
        *to = from;
    }
    bytes
}

/// One virtual server's door. Shut and given back when dropped.
#[derive(Debug)]
pub(crate) struct Door {
    gate: Arc<Gate>,
    place: usize,
}

impl Door {
    /// A door, shut.
    pub(crate) fn new(gate: &Arc<Gate>, v: &VirtualServerName) -> Result<Self, String> {
        let place = lock(&gate.free).pop();
        let place = place.ok_or_else(|| format!("more than {DOORS} virtual servers"))?;
        let door = Self {
            gate: gate.clone(),
            place,
        };
        let mut bytes = [0; DOOR];
        bytes[NAME_AT..].copy_from_slice(&name_bytes(v));
        gate.doors
            .set(&(place as u32).to_ne_bytes(), &bytes)
            .map_err(|e| format!("naming a door: {e}"))?;
        Ok(door)
    }

    /// Leads packets of these addresses through this door.
    pub(crate) fn lead(&self, addresses: &[VirtualAddress]) -> Result<(), String> {
        let here = (self.place as u32).to_ne_bytes();
        for a in addresses {
            let led = self.gate.addresses.set(&key(a.ip), &here);
            led.map_err(|e| format!("cannot lead {} through the gate: {e}", a.ip))?;
        }
        if let Ok(backstop) = &self.gate.backstop {
            backstop.lead(addresses.iter().map(|a| a.ip));
        }
        Ok(())
    }

    /// Leads all that leaves a macvlan device from this MAC address through this door.
    pub(crate) fn lead_mac(&self, mac: Mac) -> Result<(), String> {
        let here = (self.place as u32).to_ne_bytes();
        let led = self.gate.addresses.set(&mac_key(mac), &here);
        led.map_err(|e| format!("cannot lead a MAC address through the gate: {e}"))
    }

    /// Forgets an address, which is on no interface any more.
    pub(crate) fn forget(&self, address: &VirtualAddress) {
        if self.forget_key(&key(address.ip), &address.ip)
            && let Ok(backstop) = &self.gate.backstop
        {
            backstop.forget(address.ip);
        }
    }

    /// Forgets a MAC address, whose device is gone.
    pub(crate) fn forget_mac(&self, mac: Mac) {
        self.forget_key(&mac_key(mac), &"a MAC address");
    }

    /// Whether it was this door's.
    fn forget_key(&self, key: &[u8; 16], what: &dyn std::fmt::Display) -> bool {
        let here = (self.place as u32).to_ne_bytes();
        let mine = self.gate.addresses.get(key).is_ok_and(|door| door == here);
        if mine && let Err(e) = self.gate.addresses.remove(key) {
            log::warn!("cannot take {what} out of the gate: {e}");
        }
        mine
    }

    /// ARP and neighbour discovery pass until then.
    pub(crate) fn open_first(&self, deadline: BootTime) {
        self.gate
            .memory
            .word(self.place, 0)
            .store(deadline.0, SeqCst);
    }

    /// ARP and neighbour discovery pass until the first, everything else until the second deadline.
    pub(crate) fn set(&self, first: BootTime, second: BootTime) {
        let _stalled = stall();
        self.open_first(first);
        self.gate.memory.word(self.place, 1).store(second.0, SeqCst);
    }

    /// Nothing passes. Whether it reads back so.
    pub(crate) fn shut(&self) -> bool {
        let words = [1, 0].map(|n| self.gate.memory.word(self.place, n));
        for word in words {
            word.store(0, SeqCst);
        }
        words.iter().all(|word| word.load(SeqCst) == 0)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Not shut: electd ends without a word when it is killed too, and the next one adopts.
        lock(&self.gate.free).push(self.place);
    }
}
