//! What the worker knows of a virtual server's addresses, and when something is due for them.

use super::{BURSTS, LATE_BURSTS, others::Others};
use crate::{
    AddressSet, Shared,
    clock::now,
    macvlan::Device,
    netlink::{self, BATCH, Link, Setting},
};
use config::{OnConflict, VirtualAddress};
use protocol::{BootTime, VirtualServerName};
use rtnetlink::packet_route::address::AddressMessage;
use std::{
    collections::HashMap,
    net::IpAddr,
    ops::Range,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

/// A virtual MAC address is announced again and again: replies leave by the interface below, with its own MAC
/// address, and switches forget what they do not hear (after 5 min by default).
const REMINDER: Duration = Duration::from_secs(60);
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

/// Where the addresses of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
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
pub(super) struct Settling {
    pub(super) generation: u64,
    pub(super) look: BootTime,
    pub(super) until: BootTime,
}

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) left: u32,
    pub(super) next: BootTime,
}

pub(super) struct Set {
    pub(super) v: VirtualServerName,
    /// As configured.
    pub(super) network: String,
    /// The one with the virtual MAC address on it, if there is to be one.
    pub(super) device: Option<Device>,
    /// The one of these two that carries the addresses.
    pub(super) interface: String,
    pub(super) addresses: Vec<VirtualAddress>,
    /// The place in `addresses` of each.
    pub(super) place: HashMap<IpAddr, usize>,
    pub(super) shared: Arc<Shared>,
    /// The kernel's gate knows all addresses.
    pub(super) led: bool,
    pub(super) phase: Phase,
    /// Each opening has its own number, so that a step can see that it was overtaken.
    pub(super) generation: u64,
    /// The IPv6 addresses of this opening were added, but are not in use yet.
    pub(super) settling: Option<Settling>,
    pub(super) link: Option<Link>,
    /// The interface below, if there is a device on it.
    pub(super) below: Option<Link>,
    /// The device may be up.
    pub(super) raised: bool,
    /// It stays up until then.
    pub(super) lower_at: BootTime,
    /// What was put back once it is open again.
    pub(super) put_back: Option<String>,
    /// Whether the prefix route is left alone, by address.
    pub(super) no_prefix_route: Vec<bool>,
    pub(super) failed: Option<String>,
    pub(super) retry_at: BootTime,
    pub(super) lapsed: bool,
    pub(super) shut_asked: bool,
    /// No longer configured: forgotten once shut.
    pub(super) retired: bool,
    pub(super) announced_from: BootTime,
    pub(super) next_burst: usize,
    /// When the last one was due, counted from `announced_from`.
    pub(super) last_burst: Duration,
    pub(super) renew_at: BootTime,
    pub(super) renewed: usize,
    /// The first so many are still to be removed, piece by piece behind the shut gate.
    pub(super) going: usize,
    /// From here on our own neighbour entries are still to be removed.
    pub(super) unforgotten: usize,
    pub(super) claims: HashMap<IpAddr, BootTime>,
    pub(super) probe: Option<Probe>,
    pub(super) on_conflict: OnConflict,
    pub(super) others: Others,
}

impl Set {
    pub(super) fn new(set: AddressSet, shared: Arc<Shared>) -> Self {
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
            last_burst: Duration::ZERO,
            renew_at: BootTime(0),
            renewed: 0,
            going: 0,
            unforgotten: usize::MAX,
            claims: HashMap::new(),
            probe: None,
            on_conflict: set.on_conflict,
            others: Others::default(),
        }
    }

    pub(super) fn deadline(&self) -> BootTime {
        self.shared.deadline()
    }

    /// When removing must begin: so that it has ended by the deadline, unless the kernel's gate keeps that.
    pub(super) fn last_call(&self) -> BootTime {
        if self.shared.door.is_some() {
            return self.deadline();
        }
        self.deadline() - (REMOVAL_PER_ADDRESS * self.addresses.len() as u32).min(REMOVAL_MAX)
    }

    /// How many addresses to add, renew or remove between two looks at the deadlines. Under a [`Hold`] no group is
    /// joined yet.
    pub(super) fn batch(&self, held: bool) -> usize {
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
    pub(super) fn is_large(&self) -> bool {
        let v6 = self.ipv6_count();
        v6 > IPV6_CHEAP || self.addresses.len() - v6 > IPV4_CHEAP
    }

    /// How often to renew lifetimes: every second unless that would cost more than a [`RENEWAL_SHARE`] of a
    /// processor. Measured: 4 us for an address, and for each other one there 3 ns (IPv4) or 0.5 us (IPv6).
    pub(super) fn renewal(&self) -> Duration {
        let v6 = self.ipv6_count() as u64;
        let v4 = self.addresses.len() as u64 - v6;
        let nanos = 4000 * (v4 + v6) + 3 * v4 * v4 + 500 * v6 * v6;
        let cost = Duration::from_nanos(nanos);
        (cost * RENEWAL_SHARE).max(RENEWAL)
    }

    pub(super) fn ipv6(&self) -> impl DoubleEndedIterator<Item = IpAddr> {
        let ips = self.addresses.iter().map(|a| a.ip);
        ips.filter(IpAddr::is_ipv6)
    }

    pub(super) fn ipv6_count(&self) -> usize {
        self.ipv6().count()
    }

    /// The addresses that may be announced.
    pub(super) fn announced(&self) -> impl Iterator<Item = IpAddr> {
        let settled = self.settling.is_none();
        let ips = self.addresses.iter().map(|a| a.ip);
        ips.filter(move |ip| settled || ip.is_ipv4())
    }

    /// Seconds for the kernel: longer than the next renewal, and than the lease.
    fn lifetime(&self, now: BootTime) -> u32 {
        let ahead = self.deadline().since(now).max(self.renewal());
        u32::try_from(ahead.as_secs_f64().ceil() as u64 * 2).unwrap_or(u32::MAX - 1)
    }

    pub(super) fn settings(&self, link: &Link, range: Range<usize>) -> Vec<Setting> {
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

    pub(super) fn next_burst_at(&self) -> Option<BootTime> {
        (self.phase == Phase::Open).then_some(())?;
        let after = BURSTS.get(self.next_burst).copied().or_else(|| {
            let last = self.last_burst.max(BURSTS[BURSTS.len() - 1]);
            let late = self.goes_on_announcing().then(|| last + last / 2);
            let late = late.filter(|after| *after <= LATE_BURSTS);
            let reminder = self.device.as_ref().map(|_| last + REMINDER);
            late.into_iter().chain(reminder).min()
        });
        after.map(|after| self.announced_from + after)
    }

    /// Whether there may be somebody who has heard nothing yet.
    pub(super) fn goes_on_announcing(&self) -> bool {
        !self.shared.acknowledged.load(SeqCst)
    }

    /// Where others may be heard: on the interface that carries the addresses, or on the one below.
    pub(super) fn is_at(&self, interface: u32) -> bool {
        let links = [&self.link, &self.below];
        links.into_iter().flatten().any(|l| l.index == interface)
    }

    /// The next time something is to be done; none if only a command, a frame or a change can bring work.
    pub(super) fn due(&self) -> Option<BootTime> {
        let guard = match self.phase {
            Phase::Shut => self.raised.then_some(self.lower_at).filter(|at| at.0 != 0),
            Phase::Wanted => Some(self.last_call().min(self.retry_at)),
            Phase::Open => Some(self.last_call().min(self.renew_at)),
            Phase::Closing => Some(self.retry_at),
        };
        let probe = self.probe.as_ref().map(|p| p.next);
        let settled = self.settling.map(|s| s.look);
        let burst = self.next_burst_at();
        [guard, probe, settled, burst, self.others.next]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a listed address is one of this set's, where it should not be left.
    pub(super) fn left_over(&self, listed: &AddressMessage) -> bool {
        let here = self
            .link
            .as_ref()
            .is_some_and(|l| l.index == listed.header.index);
        (here || netlink::is_ours(listed))
            && netlink::ip_of(listed).is_some_and(|ip| self.place.contains_key(&ip))
    }
}

pub(super) fn places(addresses: &[VirtualAddress]) -> HashMap<IpAddr, usize> {
    addresses
        .iter()
        .enumerate()
        .map(|(n, a)| (a.ip, n))
        .collect()
}

pub(super) fn carrier(interface: &str, device: Option<&Device>) -> String {
    device.map_or(interface, |d| d.name.as_str()).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{super::BURSTS, *};

    fn bursts(set: &mut Set, count: usize) -> Vec<u64> {
        let mut after = Vec::new();
        for burst in BURSTS.len() - 1..BURSTS.len() - 1 + count {
            set.next_burst = burst;
            let Some(at) = set.next_burst_at() else { break };
            set.last_burst = at.since(set.announced_from);
            after.push(set.last_burst.as_secs());
        }
        after
    }

    #[test]
    fn what_is_not_acknowledged_is_announced_on_for_ten_minutes() {
        let set = AddressSet {
            virtual_server: "web".parse().unwrap(),
            interface: "eth0".to_owned(),
            addresses: Vec::new(),
            mac: None,
            on_conflict: OnConflict::Take,
        };
        let mut set = Set::new(set, Shared::new(None, None));
        set.announced_from = BootTime(1);
        set.phase = Phase::Open;
        let after = bursts(&mut set, 99);
        assert_eq!(after, [10, 15, 22, 33, 50, 75, 113, 170, 256, 384, 576]);
        set.last_burst = Duration::ZERO;
        assert_eq!(bursts(&mut set, 3), [10, 15, 22]);
        set.shared.acknowledged.store(true, SeqCst);
        set.next_burst = BURSTS.len() + 3;
        assert_eq!(set.next_burst_at(), None);
    }

    #[test]
    fn only_a_virtual_mac_address_is_announced_for_ever() {
        for mac in [None, Some([2, 0, 0x5e, 0, 0x53, 1])] {
            let set = AddressSet {
                virtual_server: "web".parse().unwrap(),
                interface: "eth0".to_owned(),
                addresses: Vec::new(),
                mac,
                on_conflict: OnConflict::Take,
            };
            let mut set = Set::new(set, Shared::new(None, None));
            set.announced_from = BootTime(1);
            assert_eq!(set.next_burst_at(), None, "not while shut");
            set.phase = Phase::Open;
            set.shared.acknowledged.store(true, SeqCst);
            let after = bursts(&mut set, 3);
            let expected: &[u64] = if mac.is_some() { &[10, 70, 130] } else { &[10] };
            assert_eq!(after, expected);
        }
    }
}
