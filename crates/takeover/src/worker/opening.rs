//! The way from shut to open, and staying so.

use super::{
    BURSTS, Moment, Worker,
    set::{Phase, Set, Settling},
};
use crate::{
    Event,
    clock::now,
    netlink::{self, BATCH, Link, Setting},
    sys::Hold,
};
use nix::errno::Errno;
use rtnetlink::packet_route::address::AddressMessage;
use std::{fs, io, net::IpAddr, sync::Arc, time::Duration};

/// What was found out for one virtual server holds for all that open in the same moment.
const MOMENT: Duration = Duration::from_millis(10);
/// The kernel takes IPv6 addresses into use a moment after they were added, when a worker thread of its own gets a
/// processor. So long is waited for that, with looks so often; then they are announced anyway.
const SETTLE_MAX: Duration = Duration::from_millis(250);
/// It is told of if it took longer than this.
const SETTLE_LATE: Duration = Duration::from_millis(20);
const SETTLE_LOOK: Duration = Duration::from_micros(200);
const RETRY_OPEN: Duration = Duration::from_millis(200);

impl Worker {
    /// Opens what is to be open and was not possible before, closes what could not be closed before.
    pub(super) fn retry(&mut self) {
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
    pub(super) fn open(&mut self, i: usize) {
        if let Some(what) = self.is_taken(i) {
            return self.open_failed(i, what);
        }
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
        set.others.opened(at);
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
    pub(super) fn settle(&mut self, i: usize) {
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
    pub(super) fn forget_some(&mut self) -> bool {
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
    pub(super) fn moment(&mut self) -> &mut Moment {
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
    pub(super) fn configured_link(&mut self, i: usize) -> Result<Option<Link>, String> {
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
    pub(super) fn listed(&mut self) -> Arc<Vec<AddressMessage>> {
        if let Some(listed) = &self.moment().listed {
            return listed.clone();
        }
        let listed = Arc::new(self.netlink.addresses().unwrap_or_default());
        self.moment.listed = Some(listed.clone());
        listed
    }

    pub(super) fn open_failed(&mut self, i: usize, what: String) {
        let set = &mut self.sets[i];
        set.shared.absent();
        set.phase = Phase::Wanted;
        set.next_burst = BURSTS.len();
        set.retry_at = now() + RETRY_OPEN;
        self.forget_frames(i);
        self.fail(i, what);
    }

    /// Ends an opening: none of its frames is sent any more.
    pub(super) fn forget_frames(&mut self, i: usize) {
        let ended = std::mem::take(&mut self.sets[i].generation);
        if ended != 0 {
            self.queue.retain(|frame| frame.generation != ended);
        }
    }

    pub(super) fn fail(&mut self, i: usize, what: String) {
        let set = &mut self.sets[i];
        if set.failed.as_ref() != Some(&what) {
            set.failed = Some(what.clone());
            let v = set.v.clone();
            (self.emit)(Event::Failed { v, what });
        }
    }

    /// Renews kernel lifetimes, one batch in a round. Whether there is more to renew now.
    pub(super) fn renew(&mut self) -> bool {
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
}

pub(super) fn down(interface: &str) -> String {
    format!("interface {interface} is down; waiting for it (ip link set {interface} up)")
}

pub(super) fn usable(found: Option<Link>, name: &str) -> Result<Link, String> {
    match found {
        None => Err(format!("interface {name} does not exist; waiting for it")),
        Some(link) if !link.up => Err(down(name)),
        Some(link) => Ok(link),
    }
}

/// The first refusal in words; none if all was accepted.
pub(super) fn refusal(
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
pub(super) fn prefix_route_is_anothers(
    set: &Set,
    link: &Link,
    listed: &[AddressMessage],
) -> Vec<bool> {
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
