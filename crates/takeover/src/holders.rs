//! Who has an address now, for `standin check`: asked without claiming it.

use crate::{
    arp::{self, Mac},
    ndp,
    netlink::Netlink,
    sys::{self, PacketSocket},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// How often each address is asked for, and how long answers are waited for after that.
const QUESTIONS: u32 = 2;
const PATIENCE: Duration = Duration::from_millis(150);
/// More addresses than this [`holders`] does not ask for.
pub const HOLDERS_MAX: usize = 256;

/// "Has anybody this address?", without claiming it: the EtherType, and a frame from `mac`.
pub(crate) fn probe(mac: Mac, ip: IpAddr) -> (u16, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (arp::ETHERTYPE, arp::probe(mac, ip)),
        IpAddr::V6(ip) => (ndp::ETHERTYPE, ndp::probe(mac, ip)),
    }
}

/// Which of the addresses a machine of the interface's network says it has, and at which MAC address; this machine does
/// not answer itself. The words say why nobody can be asked.
pub fn holders(interface: &str, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, Mac>, String> {
    let text = |e: std::io::Error| e.to_string();
    let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
    let links = netlink.links().map_err(text)?;
    let link = links.iter().find(|link| link.name == interface);
    let link = link.ok_or_else(|| format!("interface {interface} does not exist"))?;
    let Some(mac) = link.mac.filter(|_| link.carries) else {
        return Err(format!(
            "interface {interface} is no Ethernet, down, or without carrier"
        ));
    };
    let asked = &addresses[..addresses.len().min(HOLDERS_MAX)];
    let sender = PacketSocket::sender().map_err(text)?;
    let arp = PacketSocket::receiver(arp::ETHERTYPE, Vec::new()).map_err(text)?;
    let nd = PacketSocket::receiver(ndp::ETHERTYPE, sys::neighbour_discovery_filter());
    let nd = nd.map_err(text)?;
    let mut found = BTreeMap::new();
    let mut heard = |on: u32, ip: IpAddr, at: Mac| {
        let own = links.iter().any(|link| link.mac == Some(at));
        if on == link.index && asked.contains(&ip) && !own {
            found.insert(ip, at);
        }
    };
    for _ in 0..QUESTIONS {
        for ip in asked {
            let (ethertype, frame) = probe(mac, *ip);
            sender.send(link.index, ethertype, &frame).map_err(text)?;
        }
        let end = Instant::now() + PATIENCE;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let mut buffer = [0; 256];
            while let Ok(Some((length, on))) = arp.receive(&mut buffer) {
                let claim = arp::parse(&buffer[..length]).filter(|claim| claim.reply);
                if let Some(claim) = claim {
                    heard(on, claim.sender.into(), claim.sender_mac);
                }
            }
            while let Ok(Some((length, on))) = nd.receive(&mut buffer) {
                let claim = ndp::parse_claim(&buffer[..length]).filter(|claim| claim.advertised);
                if let Some(claim) = claim {
                    heard(on, claim.claimed.into(), claim.mac);
                }
            }
            let ready = |socket| PollFd::new(socket, PollFlags::POLLIN);
            let mut both = [ready(arp.as_fd()), ready(nd.as_fd())];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            poll(&mut both, timeout).map_err(|e| e.to_string())?;
        }
    }
    Ok(found)
}
