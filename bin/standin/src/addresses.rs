//! `standin check`, of the virtual addresses: whether they fit the interface that they are to be on, and whether another
//! machine has one of them.

use config::{Config, VirtualAddress, VirtualServer};
use daemon::machine::{interface_name, ip};
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};
use protocol::{ServerName, owner::Mac};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What is found out.
pub enum Found {
    Ok(String),
    Note(String),
    Wrong(String),
}

/// Everything about the virtual addresses of this server.
pub fn check(config: &Config, me: &ServerName) -> Vec<Found> {
    let interfaces = Interface::all(config);
    let mut found = Vec::new();
    for v in &config.virtual_servers {
        if let Some(interface) = interfaces.get(&v.interface) {
            let wrong = unfit(v, interface).into_iter().map(|what| {
                Found::Wrong(format!(
                    "virtual server {}: {what} (in {})",
                    v.name,
                    config.file.display()
                ))
            });
            found.extend(wrong);
        }
    }
    found.extend(conflicts(config, me));
    found
}

/// The first interface whose packets this server forwards, if it forwards any, besides those of the virtual servers.
pub fn forwards_for(config: &Config) -> Option<String> {
    let is_on = |path| std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    let forwards =
        is_on("/proc/sys/net/ipv4/ip_forward") || is_on("/proc/sys/net/ipv6/conf/all/forwarding");
    let own = |name: &String| config.virtual_servers.iter().any(|v| v.interface == *name);
    let all = Interface::all(config);
    let mut others = all.iter().filter(|(name, _)| forwards && !own(name));
    let other = others.find(|(_, interface)| interface.up && !interface.loopback);
    other.map(|(name, _)| name.clone())
}

/// An interface as it is now.
#[derive(Debug, Default)]
struct Interface {
    up: bool,
    loopback: bool,
    /// Its addresses with their prefixes, without link-local and virtual ones.
    networks: Vec<VirtualAddress>,
}

impl Interface {
    fn all(config: &Config) -> BTreeMap<String, Self> {
        let addresses = config.virtual_servers.iter().flat_map(|v| &v.addresses);
        let virtual_ips: BTreeSet<IpAddr> = addresses.map(|a| a.ip).collect();
        let mut all = BTreeMap::<String, Self>::new();
        for found in getifaddrs().into_iter().flatten() {
            let interface = all.entry(interface_name(&found)).or_default();
            interface.up |= found.flags.contains(InterfaceFlags::IFF_UP);
            interface.loopback |= found.flags.contains(InterfaceFlags::IFF_LOOPBACK);
            let ip = |address: Option<SockaddrStorage>| ip(&address?);
            if let (Some(ip), Some(mask)) = (ip(found.address), mask(found.netmask))
                && !is_link_local(ip)
                && !virtual_ips.contains(&ip)
            {
                interface.networks.push(VirtualAddress { ip, prefix: mask });
            }
        }
        all
    }
}

fn mask(mask: Option<SockaddrStorage>) -> Option<u8> {
    let ones = match ip(&mask?)? {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    u8::try_from(ones).ok()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether `ip` is in the network of `address`.
fn is_in(ip: IpAddr, address: &VirtualAddress) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let network = |ip| {
        bits(ip)
            .checked_shr(128 - u32::from(address.prefix))
            .unwrap_or(0)
    };
    ip.is_ipv4() == address.ip.is_ipv4() && network(ip) == network(address.ip)
}

/// What keeps clients from addresses of `v` on this interface, and what to do.
fn unfit(v: &VirtualServer, interface: &Interface) -> Vec<String> {
    let name = &v.interface;
    let mut wrong = Vec::new();
    if interface.loopback || !interface.up {
        return wrong; // said by `Host`
    }
    for address in &v.addresses {
        let ip = address.ip;
        if is_link_local(ip) {
            wrong.push(format!(
                "{address} is link-local: hosts take it to be on any of their links, no router passes it on, and it may \
                 be another host's by chance; write an address of the network that {name} is in"
            ));
        } else if !interface.networks.iter().any(|network| is_in(ip, network)) {
            let networks = interface.networks.iter();
            let of_family = networks.filter(|network| network.ip.is_ipv4() == ip.is_ipv4());
            let of_family: Vec<_> = of_family.map(ToString::to_string).collect();
            let has = match of_family.as_slice() {
                // It brings its network along.
                [] if address.prefix < if ip.is_ipv4() { 32 } else { 128 } => continue,
                [] => "has none".to_owned(),
                networks => format!("has {}", networks.join(", ")),
            };
            wrong.push(format!(
                "{address} is in no network of interface {name}, which {has}: neighbours do not look for it there; write \
                 an address of such a network, name another interface, or give {name} an address of its own in that \
                 network"
            ));
        }
    }
    wrong
}

/// Addresses that a machine has which is no server of the cluster.
fn conflicts(config: &Config, me: &ServerName) -> Vec<Found> {
    let mut by_interface = BTreeMap::<&str, Vec<&VirtualServer>>::new();
    for v in &config.virtual_servers {
        by_interface.entry(&v.interface).or_default().push(v);
    }
    let others: Vec<_> = config.peers(me).collect();
    let mut found = Vec::new();
    for (interface, virtual_servers) in by_interface {
        let servers = others.iter().flat_map(|s| s.addresses.iter().copied());
        let addresses = virtual_servers.iter().flat_map(|v| &v.addresses);
        let asked: Vec<_> = servers.chain(addresses.map(|a| a.ip)).collect();
        if asked.len() > takeover::HOLDERS_MAX {
            found.push(Found::Note(format!(
                "interface {interface}: only {} of its addresses are asked for",
                takeover::HOLDERS_MAX
            )));
        }
        let holders = match takeover::holders(interface, &asked) {
            Ok(holders) => holders,
            Err(why) => {
                let what = format!("not asked whether others have the addresses: {why}");
                found.push(Found::Note(what));
                continue;
            }
        };
        let servers: Vec<_> = others
            .iter()
            .flat_map(|s| &s.addresses)
            .filter_map(|ip| holders.get(ip))
            .collect();
        let mut free = 0;
        for v in virtual_servers {
            // A server that is elsewhere may have another MAC address here.
            let here = |ip: &IpAddr| v.addresses.iter().any(|a| is_in(*ip, a));
            let mut serving = others.iter().filter(|s| !s.witness);
            let all_known = serving.all(|s| s.addresses.iter().any(here));
            for address in &v.addresses {
                let holder = holders.get(&address.ip);
                let own = |mac: &&[u8; 6]| v.mac.is_some_and(|virtual_mac| virtual_mac.0 == **mac);
                let Some(mac) = holder.filter(|mac| !servers.contains(mac) && !own(mac)) else {
                    free += 1;
                    continue;
                };
                let mac = Mac(*mac);
                let (v, ip) = (&v.name, address.ip);
                found.push(if all_known {
                    Found::Wrong(format!(
                        "virtual server {v}: {ip} is claimed by {mac} on {interface}, which is no server of this \
                         cluster; take it off that machine"
                    ))
                } else {
                    Found::Note(format!(
                        "virtual server {v}: {ip} is at {mac} on {interface}; not known whether that is one of the \
                         other servers"
                    ))
                });
            }
        }
        if free > 0 {
            found.push(Found::Ok(format!(
                "interface {interface}: no machine but the servers of this cluster has the addresses"
            )));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(text: &str) -> VirtualAddress {
        let (ip, prefix) = text.split_once('/').unwrap();
        VirtualAddress {
            ip: ip.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
        }
    }

    fn configured(addresses: &str) -> Config {
        let text = format!(
            "[cluster]\nname = \"web\"\nquorum = \"none\"\n[[server]]\nname = \"alpha\"\naddress = [\"192.0.2.11\"]\n\
             [[virtual_server]]\nname = \"web\"\ninterface = \"eth0\"\naddress = [{addresses}]\n"
        );
        config::parse(&text, std::path::Path::new("standin.toml")).unwrap()
    }

    #[test]
    fn an_address_must_be_in_a_network_of_its_interface_if_that_is_fit() {
        let eth0 = |up| Interface {
            up,
            loopback: false,
            networks: vec![address("192.0.2.11/24"), address("2001:db8::11/64")],
        };
        let bare = || Interface {
            up: true,
            ..Interface::default()
        };
        let loopback = Interface {
            loopback: true,
            ..eth0(true)
        };
        for (addresses, interface, expected) in [
            ("\"192.0.2.10/24\", \"2001:db8::10/64\"", eth0(true), vec![]),
            ("\"192.0.2.10/32\"", eth0(true), vec![]),
            (
                "\"198.51.100.1/24\"",
                eth0(true),
                vec!["198.51.100.1/24 is in no network"],
            ),
            (
                "\"2001:db8:1::10/64\"",
                eth0(true),
                vec!["2001:db8:1::10/64 is in no network"],
            ),
            ("\"192.0.2.10/24\"", bare(), vec![]),
            ("\"192.0.2.10\"", bare(), vec!["192.0.2.10/32 is in no"]),
            (
                "\"fe80::10/64\", \"169.254.1.1/16\"",
                eth0(true),
                vec!["fe80::10/64 is link-local", "169.254.1.1/16 is link-local"],
            ),
            ("\"192.0.2.10/24\"", eth0(false), vec![]),
            (
                "\"192.0.2.10/24\"",
                loopback,
                vec![], // said by `Host`
            ),
        ] {
            let wrong = unfit(&configured(addresses).virtual_servers[0], &interface);
            assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
            for (wrong, expected) in wrong.iter().zip(expected) {
                assert!(wrong.starts_with(expected), "{wrong}");
            }
        }
    }

    #[test]
    fn the_loopback_interface_is_known() {
        let all = Interface::all(&configured("\"192.0.2.10/24\""));
        assert!(all.get("lo").is_some_and(|lo| lo.loopback));
    }
}
