//! The machine as a state-dir knows it ([`protocol::owner`]).

use config::{Config, MachineBinding};
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    sys::socket::SockaddrStorage,
};
use protocol::{
    ServerName,
    owner::{Foreign, Id, Mac, Machine, Owner, Present},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

const MACHINE_ID: &str = "/etc/machine-id";
const DMI_UUID: &str = "/sys/class/dmi/id/product_uuid";
/// Bytes of a MAC address: tunnels have something else in its place.
const MAC_LENGTH: usize = 6;

/// Server `me` of this cluster, and as much of its machine as can be read now. The DMI's UUID takes root.
pub fn present(config: &Config, me: &ServerName) -> Present {
    let mut present = Present {
        owner: Owner {
            cluster: config.cluster.name.clone(),
            server: me.clone(),
            machine: None,
        },
        macs: BTreeSet::new(),
    };
    match config.cluster.machine {
        MachineBinding::None => return present,
        MachineBinding::Auto => {}
    }
    let interfaces = Interfaces::read(config);
    let own = config.server(me).map_or(&[][..], |s| &s.addresses);
    let read = |path| fs::read_to_string(path).ok();
    present.owner.machine = Some(Machine {
        machine_id: read(MACHINE_ID).and_then(|text| Id::of_machine(&text)),
        dmi_uuid: read(DMI_UUID).and_then(|text| Id::of_dmi(&text)),
        macs: interfaces.that_carry(own),
    });
    present.macs = interfaces.macs.into_values().collect();
    present
}

/// Why a reservation that is another machine's or another server's counts for nothing, and what can be done.
pub fn foreign(why: &Foreign) -> String {
    let adopt = match why.may_be_adopted() {
        true => {
            "; or, only if that machine will never run with it again, make it this one's with `standin init --adopt`"
        }
        false => "",
    };
    format!(
        "{why}; it counts as absent: this server is blank until every other one has told what it needs; remove the \
         file to leave it at that{adopt}"
    )
}

/// Those of these addresses that this machine has, and the interface of each.
pub fn interfaces_of(addresses: &[IpAddr]) -> Vec<(String, IpAddr)> {
    let all = getifaddrs().into_iter().flatten();
    let found = all.filter_map(|found| Some((interface_name(&found), ip(&found.address?)?)));
    found.filter(|(_, ip)| addresses.contains(ip)).collect()
}

/// "eth0:1" is how an address of eth0 may be labelled.
pub fn interface_name(found: &InterfaceAddress) -> String {
    let name = found.interface_name.split(':').next();
    name.unwrap_or_default().to_owned()
}

/// All addresses of this machine that can be seen by now.
pub(crate) fn local_addresses() -> Vec<IpAddr> {
    let ip = |interface: InterfaceAddress| ip(&interface.address?);
    getifaddrs().map_or(Vec::new(), |all| all.filter_map(ip).collect())
}

/// An address of either family; none if it is of another one.
pub fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
}

/// The interfaces of this network namespace. (/sys/class/net may be of another one.)
#[derive(Default)]
struct Interfaces {
    macs: BTreeMap<String, Mac>,
    addresses: Vec<(String, IpAddr)>,
}

impl Interfaces {
    fn read(config: &Config) -> Self {
        let mut interfaces = Self::default();
        for found in getifaddrs().into_iter().flatten() {
            let Some(address) = found.address else {
                continue;
            };
            if let Some(link) = address.as_link_addr() {
                let mac = link.addr().filter(|_| link.halen() == MAC_LENGTH);
                if let Some(mac) = mac.filter(|mac| tells_a_machine(mac, config)) {
                    interfaces.macs.insert(found.interface_name, Mac(mac));
                }
            } else if let Some(ip) = ip(&address) {
                interfaces.addresses.push((interface_name(&found), ip));
            }
        }
        interfaces
    }

    /// The MAC addresses of the interfaces that carry one of these addresses.
    fn that_carry(&self, own: &[IpAddr]) -> BTreeSet<Mac> {
        let carry = self.addresses.iter().filter(|(_, ip)| own.contains(ip));
        carry
            .filter_map(|(name, _)| self.macs.get(name).copied())
            .collect()
    }
}

/// The loopback interface has none, and a virtual server takes its own along from machine to machine.
fn tells_a_machine(mac: &[u8; MAC_LENGTH], config: &Config) -> bool {
    let mut virtual_macs = config.virtual_servers.iter().filter_map(|v| v.mac);
    *mac != [0; MAC_LENGTH] && virtual_macs.all(|v| v.0 != *mac)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(more: &str) -> Config {
        let text = format!(
            "[cluster]\nname = \"web\"\nquorum = \"none\"\n{more}\n\
             [[server]]\nname = \"alpha\"\naddress = [\"127.0.0.11\", \"192.0.2.11\"]\n\
             [[virtual_server]]\nname = \"web\"\ninterface = \"eth0\"\naddress = [\"192.0.2.10/24\"]\n\
             mac = \"02:00:5e:00:53:01\"\n"
        );
        config::parse(&text, Path::new("standin.toml")).unwrap()
    }

    #[test]
    fn only_interfaces_with_a_heartbeat_address_tell_the_machine() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let interfaces = Interfaces {
            macs: [("eth0", mac(1)), ("eth1", mac(2)), ("eth2", mac(3))]
                .map(|(name, mac)| (name.to_owned(), mac))
                .into(),
            addresses: vec![
                ("lo".to_owned(), ip("127.0.0.11")),
                ("eth0".to_owned(), ip("192.0.2.11")),
                ("eth0".to_owned(), ip("192.0.2.10")),
                ("eth1".to_owned(), ip("198.51.100.1")),
                ("eth2".to_owned(), ip("2001:db8::11")),
            ],
        };
        let own = [ip("127.0.0.11"), ip("192.0.2.11"), ip("2001:db8::11")];
        assert_eq!(interfaces.that_carry(&own), [mac(1), mac(3)].into());
        assert_eq!(interfaces.that_carry(&[ip("127.0.0.11")]), [].into());
    }

    #[test]
    fn neither_loopback_nor_a_mac_address_that_moves_tells_the_machine() {
        let config = config("");
        assert!(!tells_a_machine(&[0; 6], &config));
        assert!(!tells_a_machine(&[2, 0, 0x5e, 0, 0x53, 1], &config));
        assert!(tells_a_machine(&[2, 0, 0x5e, 0, 0x53, 2], &config));
    }

    #[test]
    fn the_machine_is_the_same_again_and_can_be_left_out() {
        let me = "alpha".parse().unwrap();
        let bound = present(&config(""), &me);
        assert!(bound.owner.machine.is_some());
        assert_eq!(
            present(&config(""), &me).claim(Some(&bound.owner)),
            Ok(bound.owner)
        );
        let unbound = present(&config("machine = \"none\""), &me);
        assert_eq!((unbound.owner.machine, unbound.macs), (None, [].into()));
    }
}
