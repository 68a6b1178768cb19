//! What others do to interfaces and addresses.

use super::{
    Moment, Worker,
    opening::{down, refusal},
    set::{Phase, Set},
};
use crate::{
    Event,
    clock::now,
    netlink::{self, Change, Link, Setting},
    refresher,
};
use config::VirtualAddress;
use nix::errno::Errno;
use protocol::BootTime;
use rtnetlink::packet_route::address::AddressMessage;
use std::collections::{HashMap, HashSet};

impl Worker {
    pub(super) fn notice(&mut self) {
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
                    let (link, back) = self.as_it_is(link);
                    self.carrier_changed(&link);
                    self.link_changed(&link, back);
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
    pub(super) fn carrier_changed(&mut self, link: &Link) {
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

    /// An interface of ours that is told to be down is looked at: that may be older than what we did last. Whether it is
    /// back by now.
    fn as_it_is(&mut self, told: Link) -> (Link, bool) {
        if told.up || self.open_on(told.index).is_empty() {
            return (told, false);
        }
        match self.netlink.link(&told.name) {
            Ok(Some(link)) if link.index == told.index => {
                let back = link.up;
                (link, back)
            }
            _ => (told, false),
        }
    }

    /// `back`: it was down meanwhile, or may have been.
    fn link_changed(&mut self, link: &Link, back: bool) {
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
            } else if new_mac || back {
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
}
