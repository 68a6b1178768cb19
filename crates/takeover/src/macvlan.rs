//! A MAC address that moves with its virtual server: the addresses are on a macvlan device of its own.
//!
//! ```text
//!   eth0 (02:..:0b, the server's own addresses)
//!    └── si-0a1b2c3d4e5f (the virtual MAC address, the same on every server)   master: up, addresses; else down
//! ```
//!
//! The device is made before anything is won, and stays down until then: a macvlan device that is down hears and
//! says nothing, so that no switch learns its MAC address at two places. The device is named after the MAC
//! address: whoever finds it knows what it is for. It outlives electd, and the next one uses it again.
//!
//! Linux answers ARP for an address on any interface: the one below would answer too, with its own MAC address,
//! and ask for clients with the virtual address as sender. So its `arp_ignore` is 1 and its `arp_announce` 2 while
//! there is such a device on it; what they were is noted in `<run-dir>/macvlan` and put back with the last device.
//! (The kernel's gate could drop such frames, but then nothing would be asked at all, and it is not to be had
//! everywhere.) IPv6 answers on the interface that has the address only.

use crate::{
    AddressSet, Error,
    arp::Mac,
    netlink::{Link, Netlink},
};
use nix::{errno::Errno, libc};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

const RECORD: &str = "macvlan";

/// What the interface below must be set to at least, where there are IPv4 addresses.
const BELOW: [(&str, u32); 2] = [("arp_ignore", 1), ("arp_announce", 2)];

/// The device of a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// The interface below.
    pub(crate) parent: String,
    pub(crate) mac: Mac,
    ipv4: bool,
    ipv6: bool,
}

impl Device {
    /// The device that these addresses need, if any.
    pub(crate) fn of(set: &AddressSet) -> Option<Self> {
        let mac = set.mac?;
        let has = |v6: bool| set.addresses.iter().any(|a| a.ip.is_ipv6() == v6);
        let digits = mac.map(|byte| format!("{byte:02x}")).concat();
        Some(Self {
            name: format!("si-{digits}"),
            parent: set.interface.clone(),
            mac,
            ipv4: has(false),
            ipv6: has(true),
        })
    }

    /// Whether `link` is this device, on `parent`.
    pub(crate) fn is(&self, link: &Link, parent: &Link) -> bool {
        // On a parent that is a macvlan device itself the kernel takes that one's parent.
        let on = link.macvlan_on.is_some()
            && [Some(parent.index), parent.macvlan_on].contains(&link.macvlan_on);
        on && link.mac == Some(self.mac)
    }

    /// Settings of the device itself, made with it.
    fn settings(&self) -> Vec<(String, String)> {
        let conf = |family: &str, key: &str| format!("{family}/conf/{}/{key}", self.name);
        let parents = |family: &str| {
            let path = format!("{family}/conf/{}/forwarding", self.parent);
            sysctl(&path).map(|value| (conf(family, "forwarding"), value))
        };
        let mut settings: Vec<_> = [
            // The server's other addresses are not at this MAC address.
            ("arp_ignore", "1"),
            ("arp_announce", "2"),
            // The route back to a client is that of the interface below.
            ("rp_filter", "2"),
        ]
        .map(|(key, value)| (conf("ipv4", key), value.to_owned()))
        .into();
        settings.extend(parents("ipv4"));
        if !Path::new("/proc/sys/net/ipv6").exists() {
            return settings;
        }
        let ipv6: &[_] = if self.ipv6 {
            // No address but the virtual ones: one that follows from the MAC address would be on all servers.
            &[
                ("disable_ipv6", "0"),
                ("addr_gen_mode", "1"),
                ("accept_ra", "0"),
                ("autoconf", "0"),
            ]
        } else {
            &[("disable_ipv6", "1")]
        };
        settings.extend(
            ipv6.iter()
                .map(|(key, value)| (conf("ipv6", key), (*value).to_owned())),
        );
        settings.extend(parents("ipv6").filter(|_| self.ipv6));
        settings
    }
}

/// Whether an interface can carry a device with a MAC address of its own; the words say why not.
pub fn check_mac(interface: &str) -> Result<(), String> {
    let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
    let found = netlink.link(interface).map_err(|e| e.to_string())?;
    found.map_or_else(
        || Err(format!("interface {interface} does not exist")),
        |parent| suitable(&parent),
    )
}

fn suitable(parent: &Link) -> Result<(), String> {
    let name = &parent.name;
    let why = if parent.loopback || !parent.ethernet {
        "is not Ethernet"
    } else if parent.bridge_port {
        "is a port of a bridge (name the bridge instead)"
    } else if is_wireless(parent) {
        "is wireless, where a station has one MAC address only"
    } else {
        return Ok(());
    };
    Err(format!(
        "interface {name} {why} and cannot carry a virtual MAC address; write mac = \"own\""
    ))
}

fn is_wireless(link: &Link) -> bool {
    let folder = Path::new("/sys/class/net").join(&link.name);
    // What is mounted there may show another network namespace.
    let index = fs::read_to_string(folder.join("ifindex")).ok();
    let same = index.is_some_and(|text| text.trim().parse() == Ok(link.index));
    same && folder.join("phy80211").exists()
}

/// What was done to the system and is to be undone, in memory and in `<run-dir>/macvlan`.
#[derive(Debug)]
pub(crate) struct Devices {
    path: PathBuf,
    /// Device and the interface below.
    made: BTreeMap<String, String>,
    /// Interface and key, and what it was.
    was: BTreeMap<(String, String), u32>,
    /// Whose own settings were made.
    settled: BTreeMap<String, Device>,
    /// What could not be set, so that it is told once.
    told: BTreeSet<String>,
}

impl Devices {
    /// Reads what an earlier life has done.
    pub(crate) fn open(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::file("read", &path, e)),
        };
        let (mut made, mut was) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["device", name, parent] => {
                    made.insert(name.to_owned(), parent.to_owned());
                }
                ["was", interface, key, value] => {
                    if let Ok(value) = value.parse() {
                        was.insert((interface.to_owned(), key.to_owned()), value);
                    }
                }
                _ => log::warn!("{}: cannot read \"{line}\"", path.display()),
            }
        }
        Ok(Self {
            path,
            made,
            was,
            settled: BTreeMap::new(),
            told: BTreeSet::new(),
        })
    }

    fn note(&self) -> Result<(), String> {
        let failed = |e: io::Error| format!("cannot write {}: {e}", self.path.display());
        if self.made.is_empty() && self.was.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
                _ => Ok(()),
            };
        }
        let made = self.made.iter().map(|(n, p)| format!("device {n} {p}\n"));
        let was = self.was.iter();
        let was = was.map(|((i, k), value)| format!("was {i} {k} {value}\n"));
        let text: String = made.chain(was).collect();
        let coming = self.path.with_extension("new");
        fs::write(&coming, text)
            .and_then(|()| fs::rename(&coming, &self.path))
            .map_err(failed)
    }

    /// The device and the interface below, as they are: made if it is missing or not as it should be, down if
    /// just made.
    pub(crate) fn ensure(
        &mut self,
        netlink: &mut Netlink,
        device: &Device,
    ) -> Result<(Link, Link), String> {
        let Device { name, parent, .. } = device;
        let below = look(netlink, parent)?
            .ok_or_else(|| format!("interface {parent} does not exist; waiting for it"))?;
        suitable(&below)?;
        self.silence(device);
        match look(netlink, name)? {
            Some(link) if device.is(&link, &below) => {
                self.settle(device);
                return Ok((link, below));
            }
            Some(link) if link.macvlan_on.is_none() => {
                return Err(format!(
                    "there is an interface {name} that is no macvlan device; remove it (ip link del {name})"
                ));
            }
            Some(link) => netlink
                .remove_link(link.index)
                .map_err(|e| format!("cannot remove {name}, which has changed: {e}"))?,
            None => {}
        }
        self.made.insert(name.clone(), parent.clone());
        self.note()?;
        netlink
            .make_macvlan(name, below.index, device.mac)
            .map_err(|e| refused(parent, &e))?;
        self.settled.remove(name);
        self.settle(device);
        let made = look(netlink, name)?.ok_or_else(|| format!("{name} is gone again"))?;
        Ok((made, below))
    }

    /// Sets the device up as it should be, once in its life and ours.
    fn settle(&mut self, device: &Device) {
        if self.settled.get(&device.name) == Some(device) {
            return;
        }
        for (path, value) in device.settings() {
            if let Err(what) = set_sysctl(&path, &value) {
                let name = &device.name;
                log::error!("{what}; {name} may answer or ask for what is not its own");
            }
        }
        self.settled.insert(device.name.clone(), device.clone());
    }

    /// Sees to it that the interface below does not speak for the virtual addresses.
    fn silence(&mut self, device: &Device) {
        if !device.ipv4 {
            return;
        }
        for (key, least) in BELOW {
            let path = |interface: &str| format!("ipv4/conf/{interface}/{key}");
            let value = |interface: &str| sysctl(&path(interface))?.parse::<u32>().ok();
            let own = value(&device.parent).unwrap_or(0);
            // The kernel takes the greater of the two.
            if own.max(value("all").unwrap_or(0)) >= least {
                continue;
            }
            let place = (device.parent.clone(), key.to_owned());
            self.was.entry(place).or_insert(own);
            let done = self
                .note()
                .and_then(|()| set_sysctl(&path(&device.parent), &least.to_string()));
            if let Err(what) = done
                && self.told.insert(what.clone())
            {
                log::error!(
                    "{what}; {} may answer for virtual addresses with its own MAC address",
                    device.parent
                );
            }
        }
    }

    /// Removes a device, and puts back the settings of the interface below if it was the last there.
    pub(crate) fn remove(&mut self, netlink: &mut Netlink, name: &str) -> Result<(), String> {
        let Some(parent) = self.made.get(name).cloned() else {
            return Ok(());
        };
        if let Some(link) = look(netlink, name)?.filter(|link| link.macvlan_on.is_some()) {
            netlink
                .remove_link(link.index)
                .map_err(|e| format!("cannot remove {name}: {e}"))?;
        }
        self.made.remove(name);
        self.settled.remove(name);
        if !self.made.values().any(|p| *p == parent) {
            for (key, _) in BELOW {
                let place = (parent.clone(), key.to_owned());
                if let Some(value) = self.was.remove(&place)
                    && let Err(what) =
                        set_sysctl(&format!("ipv4/conf/{parent}/{key}"), &value.to_string())
                {
                    log::warn!("{what}; it was {value} before");
                }
            }
        }
        self.note()
    }

    /// Removes the devices that are not `wanted`.
    pub(crate) fn keep(&mut self, netlink: &mut Netlink, wanted: &[&str]) {
        let gone = self.made.keys().filter(|n| !wanted.contains(&n.as_str()));
        for name in gone.cloned().collect::<Vec<_>>() {
            if let Err(what) = self.remove(netlink, &name) {
                log::warn!("{what}");
            }
        }
    }
}

fn look(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, String> {
    let found = netlink.link(name);
    found.map_err(|e| format!("cannot look up interface {name}: {e}"))
}

fn sysctl(path: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys/net").join(path)).ok()?;
    Some(text.trim().to_owned())
}

fn set_sysctl(path: &str, value: &str) -> Result<(), String> {
    if sysctl(path).as_deref() == Some(value) {
        return Ok(());
    }
    let path = Path::new("/proc/sys/net").join(path);
    match fs::write(&path, value) {
        // The interface is gone, and its settings with it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|e| format!("cannot write {value} to {}: {e}", path.display())),
    }
}

fn refused(parent: &str, error: &io::Error) -> String {
    let hint = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => {
            " (is it a port of a bridge or bond, or has it ipvlan devices? Name the bridge or bond instead)"
        }
        Some(Errno::EOPNOTSUPP) => " (has this kernel the module macvlan?)",
        Some(Errno::EPERM) => " (CAP_NET_ADMIN is needed)",
        _ => "",
    };
    let what = match error.raw_os_error() {
        Some(libc::ENOTSUP) => Errno::EOPNOTSUPP.desc().to_owned(),
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    };
    format!(
        "interface {parent} cannot carry a virtual MAC address: {what}{hint}; mend that, or write mac = \"own\""
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn devices(folder: &Path) -> Devices {
        Devices::open(folder).unwrap()
    }

    #[test]
    fn a_device_has_a_name_that_the_kernel_takes() {
        let set = AddressSet {
            virtual_server: "web".parse().unwrap(),
            interface: "eth0".to_owned(),
            addresses: Vec::new(),
            mac: Some([0x02, 0, 0x5e, 0, 0x53, 0xff]),
            on_conflict: config::OnConflict::Take,
        };
        let device = Device::of(&set).unwrap();
        assert_eq!(device.name, "si-02005e0053ff");
        assert!(device.name.len() <= 15);
        assert_eq!(Device::of(&AddressSet { mac: None, ..set }), None);
    }

    #[test]
    fn what_was_done_outlives_electd_and_no_file_stays_when_it_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = devices(folder.path());
        first.made.insert("si-1".to_owned(), "eth0".to_owned());
        let place = ("eth0".to_owned(), "arp_ignore".to_owned());
        first.was.insert(place.clone(), 0);
        first.note().unwrap();
        let mut second = devices(folder.path());
        assert_eq!(second.made, first.made);
        assert_eq!(second.was, first.was);
        second.made.clear();
        second.was.clear();
        second.note().unwrap();
        assert!(!folder.path().join(RECORD).exists());
        second.note().unwrap();
    }
}
