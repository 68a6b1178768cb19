//! The gate at the interfaces: put there, looked after, put back, taken away.

use super::{Gate, Programs, clsact::Filters, lock};
use crate::{
    netlink::Link as Interface,
    sys::bpf::{Attached, Link, Side},
};
use nix::libc::ENODEV;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::TryLockError,
};

const SIDES: [Side; 2] = [Side::Ingress, Side::Egress];

/// The interfaces that have the gate, by index.
#[derive(Debug, Default)]
pub(super) struct Places {
    with_gate: BTreeMap<u32, Place>,
    /// Where it could not be put.
    without: BTreeSet<u32>,
    /// Where `clsact` was made for it.
    made: BTreeSet<u32>,
}

/// What keeps a program at its place.
#[derive(Debug)]
enum Hold {
    Tcx(Link),
    /// The filter with this server's number.
    Clsact,
}

impl Hold {
    fn link(self) -> Option<Link> {
        match self {
            Self::Tcx(link) => Some(link),
            Self::Clsact => None,
        }
    }
}

#[derive(Debug)]
struct Place {
    interface: Interface,
    holds: [Hold; 2],
}

fn is_gone(e: &io::Error) -> bool {
    e.raw_os_error() == Some(ENODEV)
}

impl Gate {
    /// Whether packets of a virtual address could pass here. What passes a bridge's port for this server passes
    /// the bridge too, and what passes it for others is none of our business.
    fn carries(&self, interface: &Interface) -> bool {
        let own = self.tap.get() == Some(&interface.index);
        !interface.loopback && !interface.bridge_port && !own
    }

    /// Attaches the gate to all of these interfaces, which are all there are: in the place of an earlier life's,
    /// or in front of what else is there. Returns those where it had been and was missing.
    pub(crate) fn attach_all(&self, interfaces: &[Interface]) -> Result<Vec<String>, String> {
        let mut places = lock(&self.places);
        let there = |index: &u32| {
            interfaces
                .iter()
                .any(|i| i.index == *index && self.carries(i))
        };
        places.with_gate.retain(|index, _| there(index));
        places.without.retain(there);
        let carrying = interfaces.iter().filter(|i| self.carries(i));
        let back = self.attach_each(&mut places, carrying)?;
        drop(places);
        self.sweep_pins(interfaces);
        Ok(back)
    }

    /// An interface is new or has changed.
    pub(crate) fn attach(&self, interface: &Interface) -> Result<(), String> {
        let mut places = lock(&self.places);
        if self.carries(interface) {
            return self.attach_each(&mut places, [interface]).map(drop);
        }
        drop(places);
        self.detach(interface.index);
        Ok(())
    }

    /// An interface is gone.
    pub(crate) fn detach(&self, index: u32) {
        let mut places = lock(&self.places);
        places.without.remove(&index);
        if places.with_gate.remove(&index).is_some() {
            self.unpin(index);
            if let Some(filters) = self.clsact {
                filters.take_off(index, places.made.remove(&index));
            }
        }
        self.tell_backstop(&places);
    }

    /// What has no gate is kept silent by other means.
    fn tell_backstop(&self, places: &Places) {
        if let Ok(backstop) = &self.backstop {
            backstop.know(places.with_gate.keys());
        }
    }

    /// Looks after all places; returns where the gate was missing and has been put back.
    pub(crate) fn verify(&self) -> Result<Vec<String>, String> {
        let mut places = lock(&self.places);
        let known = places.with_gate.values().map(|p| p.interface.clone());
        let known: Vec<Interface> = known.collect();
        self.attach_each(&mut places, &known)
    }

    /// Until one fails. The names of those where the gate had been and was missing.
    fn attach_each<'a>(
        &self,
        places: &mut Places,
        interfaces: impl IntoIterator<Item = &'a Interface>,
    ) -> Result<Vec<String>, String> {
        let each = interfaces.into_iter();
        let attached: Result<Vec<_>, _> = each.map(|i| self.attach_one(places, i)).collect();
        self.tell_backstop(places);
        Ok(attached?.into_iter().flatten().collect())
    }

    /// Whether our program is at both sides of every known interface now. False also if somebody is just busy
    /// with them.
    pub(crate) fn holds(&self) -> bool {
        let places = match self.places.try_lock() {
            Ok(places) => places,
            Err(TryLockError::Poisoned(places)) => places.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        places.without.is_empty()
            && !places.with_gate.is_empty()
            && places.with_gate.iter().all(|(index, place)| {
                SIDES.iter().zip(&place.holds).all(|(side, hold)| {
                    let program = self.programs(&place.interface).on(*side);
                    let there = match (hold, self.clsact) {
                        (Hold::Tcx(link), _) => Attached::query(*index, *side)
                            .map(|attached| attached.carries(link, program)),
                        (Hold::Clsact, Some(filters)) => filters.carries(*index, *side, program),
                        (Hold::Clsact, None) => Ok(false),
                    };
                    there.unwrap_or_else(|e| is_gone(&e))
                })
            })
    }

    /// The names of the interfaces that have the gate.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let places = lock(&self.places);
        let names = places.with_gate.values().map(|p| p.interface.name.clone());
        names.collect()
    }

    /// The interface below that one if it is a macvlan device, else itself.
    pub(crate) fn below(&self, index: u32) -> u32 {
        let places = lock(&self.places);
        let place = places.with_gate.get(&index);
        place.and_then(|p| p.interface.macvlan_on).unwrap_or(index)
    }

    /// Takes the gate away: a clean stop.
    pub(crate) fn remove(&self) {
        let places = std::mem::take(&mut *lock(&self.places));
        unpin_all(&self.home);
        if let Ok(backstop) = &self.backstop {
            backstop.remove();
        }
        if let Some(filters) = self.clsact {
            for index in places.with_gate.keys() {
                filters.take_off(*index, places.made.contains(index));
            }
        }
    }

    fn programs(&self, interface: &Interface) -> &Programs {
        match interface {
            Interface {
                ethernet: false, ..
            } => &self.bare,
            Interface {
                macvlan_on: Some(_),
                ..
            } => &self.macvlan,
            _ => &self.ethernet,
        }
    }

    /// The interface's name if the gate had been there and was missing.
    fn attach_one(
        &self,
        places: &mut Places,
        interface: &Interface,
    ) -> Result<Option<String>, String> {
        let Interface { index, name, .. } = interface;
        let known = places.with_gate.remove(index);
        let was_known = known.is_some();
        let mut old = known.map_or([None, None], |p| p.holds.map(Hold::link));
        let (mut holds, mut missing) = (Vec::new(), false);
        for (side, old) in SIDES.into_iter().zip(&mut old) {
            let held = match self.clsact {
                Some(filters) => self.filter_side(filters, places, interface, side),
                None => self
                    .attach_side(interface, side, old.take())
                    .map(|(link, put)| (Hold::Tcx(link), put)),
            };
            match held {
                Ok((hold, put)) => {
                    holds.push(hold);
                    missing |= put;
                }
                Err(e) if is_gone(&e) => {
                    places.without.remove(index);
                    self.unpin(*index);
                    return Ok(None);
                }
                Err(e) => {
                    places.without.insert(*index);
                    return Err(format!("cannot gate interface {name}: {e}"));
                }
            }
        }
        if let Ok(holds) = holds.try_into() {
            let place = Place {
                interface: interface.clone(),
                holds,
            };
            places.with_gate.insert(*index, place);
            places.without.remove(index);
        }
        Ok((was_known && missing).then(|| name.clone()))
    }

    /// Our program at one side of `clsact`; whether anything was to be done.
    fn filter_side(
        &self,
        filters: Filters,
        places: &mut Places,
        interface: &Interface,
        side: Side,
    ) -> io::Result<(Hold, bool)> {
        let (index, program) = (interface.index, self.programs(interface).on(side));
        let put = !filters.carries(index, side, program)?;
        if put {
            if filters.put(index, side, program)? {
                places.made.insert(index);
            }
            // What an earlier life had at TCX gives way.
            let _ = fs::remove_file(self.pin_path(side, index));
        }
        Ok((Hold::Clsact, put))
    }

    /// Our link with our program at one side, pinned; whether anything was to be done.
    fn attach_side(
        &self,
        interface: &Interface,
        side: Side,
        old: Option<Link>,
    ) -> io::Result<(Link, bool)> {
        let program = self.programs(interface).on(side);
        let attached = Attached::query(interface.index, side)?;
        let path = self.pin_path(side, interface.index);
        let pinned = old.is_some() && path.exists();
        // A link that is attached elsewhere or nowhere is not ours any more: index numbers come back.
        let old = old.or_else(|| Link::pinned(&path).ok());
        let (link, mut put) = match old.filter(|link| attached.has(link)) {
            Some(link) if attached.carries(&link, program) => (link, false),
            Some(link) => {
                link.update(program)?;
                (link, true)
            }
            None => (Link::create(interface.index, side, program)?, true),
        };
        let old_filters = !pinned && side == Side::Egress; // both sides are here: an earlier life's give way
        if put || !pinned {
            let _ = fs::remove_file(&path);
            link.pin(&path)?;
            put = true;
            if old_filters {
                Filters::of(&self.home).take_off(interface.index, false);
            }
        }
        Ok((link, put))
    }

    fn pin_path(&self, side: Side, index: u32) -> PathBuf {
        let side = match side {
            Side::Ingress => "ingress",
            Side::Egress => "egress",
        };
        self.home.join(format!("{side}-{index}"))
    }

    fn unpin(&self, index: u32) {
        for side in SIDES {
            let _ = fs::remove_file(self.pin_path(side, index));
        }
    }

    /// Removes what is pinned of interfaces that are gone.
    fn sweep_pins(&self, interfaces: &[Interface]) {
        let index_of = |path: &Path| {
            path.file_name()?
                .to_str()?
                .split_once('-')?
                .1
                .parse::<u32>()
                .ok()
        };
        for path in pins(&self.home) {
            if let Some(index) = index_of(&path)
                && !interfaces
                    .iter()
                    .any(|i| i.index == index && self.carries(i))
            {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// What is pinned there. The kernel's own files in it have a dot in their names.
pub(crate) fn pins(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_none()).collect()
}

/// Removes whatever eBPF gate an earlier life left.
pub(crate) fn remove_left_over(home: &Path) {
    unpin_all(home);
    Filters::of(home).remove_left_over();
}

/// Removes whatever is pinned there.
fn unpin_all(home: &Path) {
    for path in pins(home) {
        if let Err(e) = fs::remove_file(&path) {
            log::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gate::GateHome;
    use nix::sched::{CloneFlags, unshare};
    use std::{
        process::Command,
        time::{Duration, Instant},
    };

    fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).status();
        assert!(done.unwrap().success(), "ip {arguments}");
    }

    fn interface(name: &str) -> Interface {
        let index = nix::net::if_::if_nametoindex(name).unwrap();
        Interface::known(index, name, true)
    }

    /// A gate in a mount and a network namespace of this thread's own, with the interface d0.
    fn stage() -> Option<(tempfile::TempDir, Gate)> {
        let spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
        let run_dir = tempfile::tempdir().unwrap();
        let gate = match unshare(spaces) {
            Ok(()) => GateHome::mount(run_dir.path()).path(),
            Err(e) => Err(e.to_string()),
        };
        match gate.and_then(|home| Gate::load(home, false)) {
            Ok(gate) => {
                ip("link add d0 type veth peer name d1");
                Some((run_dir, gate))
            }
            Err(why) => {
                eprintln!("SKIPPED: no gate in the kernel here: {why}");
                None
            }
        }
    }

    /// The kernel frees a link that nobody holds a little later.
    fn freed(index: u32) {
        let end = Instant::now() + Duration::from_secs(20);
        while SIDES.map(|s| Attached::query(index, s).unwrap().len()) != [0, 0] {
            assert!(Instant::now() < end, "still attached");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn what_another_takes_off_is_put_back() {
        let Some((_run_dir, gate)) = stage() else {
            return;
        };
        let d0 = interface("d0");
        assert!(!gate.holds());
        assert_eq!(gate.attach_all(std::slice::from_ref(&d0)), Ok(vec![]));
        assert!(gate.holds());
        assert_eq!(gate.verify(), Ok(vec![]));
        for side in [0, 1] {
            let places = lock(&gate.places);
            let Hold::Tcx(link) = &places.with_gate[&d0.index].holds[side] else {
                panic!("not at TCX");
            };
            link.detach().unwrap();
            drop(places);
            assert!(!gate.holds());
            assert_eq!(gate.verify(), Ok(vec!["d0".to_owned()]));
            assert!(gate.holds());
        }
        fs::remove_file(gate.pin_path(Side::Egress, d0.index)).unwrap();
        assert_eq!(gate.verify(), Ok(vec!["d0".to_owned()]));
        assert!(gate.pin_path(Side::Egress, d0.index).exists());
    }

    #[test]
    fn a_later_life_takes_the_place_and_an_interface_that_is_gone_is_forgotten() {
        let Some((run_dir, gate)) = stage() else {
            return;
        };
        let d0 = interface("d0");
        gate.attach_all(std::slice::from_ref(&d0)).unwrap();
        let later = Gate::load(run_dir.path().join("bpf"), false).unwrap();
        later.attach_all(std::slice::from_ref(&d0)).unwrap();
        assert!(later.holds() && !gate.holds());
        let attached = Attached::query(d0.index, Side::Ingress).unwrap();
        let places = lock(&later.places);
        let Hold::Tcx(link) = &places.with_gate[&d0.index].holds[0] else {
            panic!("not at TCX");
        };
        assert!(attached.has(link));
        assert_eq!(
            attached.len(),
            1,
            "in the place of the other, not beside it"
        );
        drop(places);
        ip("link del d0");
        assert_eq!(later.verify(), Ok(vec![]));
        assert!(!later.pin_path(Side::Ingress, d0.index).exists());
        ip("link add d0 type veth peer name d1");
        later.attach_all(&[interface("d0")]).unwrap();
        assert!(later.holds());
        later.remove();
        drop(gate);
        freed(interface("d0").index);
    }

    #[test]
    fn ports_of_a_bridge_have_none() {
        let Some((_run_dir, gate)) = stage() else {
            return;
        };
        let mut d0 = interface("d0");
        gate.attach_all(std::slice::from_ref(&d0)).unwrap();
        d0.bridge_port = true;
        gate.attach(&d0).unwrap();
        assert_eq!(gate.interfaces(), Vec::<String>::new());
        freed(d0.index);
    }
}
