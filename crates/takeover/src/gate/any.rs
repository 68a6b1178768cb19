//! The gate in force, of whatever kind, and its doors.

use super::{Door as EbpfDoor, nftables::Nftables, nftables::NftablesDoor};
use super::{Earlier, Gate as Ebpf, GateHome, nftables};
use crate::{arp::Mac, netlink::Link};
use config::VirtualAddress;
use mutants::{Mutant, planted};
use protocol::{BootTime, VirtualServerName};
use std::{fmt, path::Path, str::FromStr, sync::Arc, time::Duration};

/// What may keep the lease, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GateKind {
    /// eBPF at TCX: Linux 6.6 or later.
    Tcx,
    /// eBPF at the queueing discipline `clsact`: Linux 5.8 or later.
    Clsact,
    /// nftables.
    Nftables,
    /// Nothing in the kernel but the lifetime of the addresses.
    Addresses,
}

impl GateKind {
    /// All, best first.
    pub const ALL: [Self; 4] = [Self::Tcx, Self::Clsact, Self::Nftables, Self::Addresses];
    const NAMES: [&str; 4] = ["tcx", "clsact", "nftables", "addresses"];
}

impl fmt::Display for GateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for GateKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        known.ok_or_else(|| format!("\"{text}\" is none of {}", Self::NAMES.join(", ")))
    }
}

/// A gate of the kernel.
#[derive(Clone, Debug)]
pub(crate) enum Gate {
    Ebpf(Arc<Ebpf>),
    Nftables(Arc<Nftables>),
}

impl Gate {
    /// Nothing is attached yet; none for [`GateKind::Addresses`].
    pub(crate) fn load(
        kind: GateKind,
        home: &GateHome,
        run_dir: &Path,
        realtime: Option<i32>,
    ) -> Option<Result<Self, String>> {
        let gate = match kind {
            GateKind::Addresses => return None,
            GateKind::Nftables => Nftables::load(run_dir, realtime)
                .map(Arc::new)
                .map(Self::Nftables),
            GateKind::Tcx | GateKind::Clsact => home
                .path()
                .and_then(|path| Ebpf::with_backstop(path, kind == GateKind::Clsact, run_dir))
                .map(|gate| Self::Ebpf(Arc::new(gate))),
        };
        Some(gate)
    }

    pub(crate) fn kind(&self) -> GateKind {
        match self {
            Self::Ebpf(gate) if gate.clsact() => GateKind::Clsact,
            Self::Ebpf(_) => GateKind::Tcx,
            Self::Nftables(_) => GateKind::Nftables,
        }
    }

    /// How much earlier than a lease's end its deadline must be.
    pub(crate) fn margin(&self) -> Duration {
        match self {
            Self::Ebpf(_) => Duration::ZERO,
            Self::Nftables(_) => nftables::MARGIN,
        }
    }

    /// In words.
    pub(crate) fn in_force(&self) -> String {
        match self {
            Self::Ebpf(gate) => {
                let how = if gate.clsact() { " (clsact)" } else { "" };
                let mut said = match gate.interfaces().as_slice() {
                    [] => format!("eBPF{how}, but there is no interface"),
                    [one] => format!("eBPF on {one}{how}"),
                    names => format!("eBPF on {} interfaces{how}", names.len()),
                };
                if let Some(why) = gate.no_backstop() {
                    said += &format!(", no backstop for others (nftables refused: {why})");
                }
                said
            }
            Self::Nftables(_) => "nftables on all interfaces".to_owned(),
        }
    }

    pub(crate) fn earlier(&self) -> Option<Earlier> {
        match self {
            Self::Ebpf(gate) => gate.earlier(),
            Self::Nftables(_) => None,
        }
    }

    pub(crate) fn pin_doors(&self) -> Result<(), String> {
        match self {
            Self::Ebpf(gate) => gate.pin_doors(),
            Self::Nftables(_) => Ok(()),
        }
    }

    /// As [`Ebpf::attach_all`].
    pub(crate) fn attach_all(&self, interfaces: &[Link]) -> Result<Vec<String>, String> {
        match self {
            Self::Ebpf(gate) => gate.attach_all(interfaces),
            Self::Nftables(_) => self.verify(),
        }
    }

    pub(crate) fn attach(&self, interface: &Link) -> Result<(), String> {
        match self {
            Self::Ebpf(gate) => gate.attach(interface),
            Self::Nftables(_) => Ok(()),
        }
    }

    pub(crate) fn detach(&self, index: u32) {
        if let Self::Ebpf(gate) = self {
            gate.detach(index);
        }
    }

    /// Looks after it; returns where it was missing and has been put back.
    pub(crate) fn verify(&self) -> Result<Vec<String>, String> {
        match self {
            Self::Ebpf(gate) => gate.verify(),
            Self::Nftables(gate) => {
                let damaged = gate.hold()?;
                let everywhere = damaged.then(|| "all interfaces (nftables)".to_owned());
                Ok(everywhere.into_iter().collect())
            }
        }
    }

    pub(crate) fn holds(&self) -> bool {
        match self {
            Self::Ebpf(gate) => gate.holds(),
            Self::Nftables(gate) => gate.holds(),
        }
    }

    /// Takes the gate away: a clean stop.
    pub(crate) fn remove(&self) {
        match self {
            Self::Ebpf(gate) => gate.remove(),
            Self::Nftables(gate) => gate.remove(),
        }
    }
}

/// One virtual server's door.
#[derive(Debug)]
pub(crate) enum Door {
    Ebpf(EbpfDoor),
    Nftables(NftablesDoor),
}

impl Door {
    /// A door, shut.
    pub(crate) fn new(gate: &Gate, v: &VirtualServerName) -> Result<Self, String> {
        match gate {
            Gate::Ebpf(gate) => EbpfDoor::new(gate, v).map(Self::Ebpf),
            Gate::Nftables(gate) => NftablesDoor::new(gate).map(Self::Nftables),
        }
    }

    /// Whether a later life of electd reads the deadlines from the gate itself.
    pub(crate) fn remembers(&self) -> bool {
        matches!(self, Self::Ebpf(_))
    }

    pub(crate) fn lead(&self, addresses: &[VirtualAddress]) -> Result<(), String> {
        match self {
            Self::Ebpf(door) => door.lead(addresses),
            Self::Nftables(door) => {
                door.lead(addresses.iter().map(|a| a.ip));
                Ok(())
            }
        }
    }

    pub(crate) fn forget(&self, address: &VirtualAddress) {
        match self {
            Self::Ebpf(door) => door.forget(address),
            Self::Nftables(door) => door.forget(address.ip),
        }
    }

    /// As [`EbpfDoor::lead_mac`]; nftables sees no frames that are neither ARP nor IP of a virtual address.
    pub(crate) fn lead_mac(&self, mac: Mac) -> Result<(), String> {
        match self {
            Self::Ebpf(door) => door.lead_mac(mac),
            Self::Nftables(_) => Ok(()),
        }
    }

    pub(crate) fn forget_mac(&self, mac: Mac) {
        if let Self::Ebpf(door) = self {
            door.forget_mac(mac);
        }
    }

    /// ARP and neighbour discovery pass until then (nftables: once [settled](Self::settle)).
    pub(crate) fn open_first(&self, deadline: BootTime) {
        match self {
            Self::Ebpf(door) => door.open_first(deadline),
            Self::Nftables(door) => door.open_first(deadline),
        }
    }

    /// Everything passes until then.
    pub(crate) fn open(&self, deadline: BootTime) {
        let deadline = if planted(Mutant::GateStaysOpen) {
            deadline + Duration::from_secs(60)
        } else {
            deadline
        };
        self.set(deadline, deadline);
    }

    pub(crate) fn set(&self, first: BootTime, second: BootTime) {
        match self {
            Self::Ebpf(door) => door.set(first, second),
            Self::Nftables(door) => door.set(first, second),
        }
    }

    /// Nothing passes. Whether it reads back so: nftables takes a moment.
    pub(crate) fn shut(&self) -> bool {
        match self {
            Self::Ebpf(door) => door.shut(),
            Self::Nftables(door) => {
                door.set(BootTime(0), BootTime(0));
                false
            }
        }
    }

    /// A planned handover: what arrives goes to the tap until `held`, replies leave until `drained`. The door's
    /// number; none where packets cannot be held, and then nothing has changed.
    pub(crate) fn drain(&self, tap: u32, drained: BootTime, held: BootTime) -> Option<usize> {
        match self {
            Self::Ebpf(door) => {
                door.hold(tap, held);
                door.drain(drained);
                Some(door.number())
            }
            Self::Nftables(_) => None,
        }
    }

    /// What arrives goes on to the tap until then.
    pub(crate) fn hold_on(&self, tap: u32, until: BootTime) {
        if let Self::Ebpf(door) = self {
            door.hold(tap, until);
        }
    }

    /// Nothing goes to the tap any more.
    pub(crate) fn hold_no_more(&self) {
        if let Self::Ebpf(door) = self {
            door.hold_no_more();
        }
    }

    /// Waits until the gate is as it was asked to be last; whether it is.
    pub(crate) fn settle(&self) -> bool {
        match self {
            Self::Ebpf(_) => true,
            Self::Nftables(door) => door.settle(),
        }
    }
}
