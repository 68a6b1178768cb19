//! The kernel's neighbour tables and default routes.

use crate::{
    Error,
    arp::Mac,
    netlink::{Asker, Changer, neighbour},
};
use futures::{StreamExt, TryStreamExt};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia},
    },
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Most routes looked at: the kernel lists the default routes first, and a router may have a million others.
const ROUTES_MAX: usize = 256;

/// The kernel counts ages in this.
const TICK: Duration = Duration::from_millis(10);

/// A neighbour whose MAC address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) interface: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: Mac,
    /// Since it was last confirmed, changed or used.
    pub(crate) age: Duration,
}

/// Reads the tables, adds to them, and forgets what is not known.
pub(crate) struct Tables(Asker, Changer);

impl Tables {
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self(Asker::open()?, Changer::open()?))
    }

    /// Tells the kernel where neighbours of an interface are that it knows nothing of. It believes that until it has
    /// asked them itself, which it does some seconds after it has first sent them something.
    pub(crate) fn introduce(
        &mut self,
        interface: u32,
        neighbours: impl Iterator<Item = (IpAddr, Mac)>,
    ) -> io::Result<()> {
        let messages = neighbours.map(|(ip, mac)| {
            let mut message = neighbour(interface, ip);
            message.header.state = NeighbourState::Stale;
            let mac = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
            message.attributes.push(mac);
            RouteNetlinkMessage::NewNeighbour(message)
        });
        // A refusal is the kernel's better knowledge, or that it has no room: it asks then, as it always does.
        self.1.change(messages, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// The neighbours on all interfaces.
    pub(crate) fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        Ok(self.list()?.iter().filter_map(read_neighbour).collect())
    }

    fn list(&mut self) -> io::Result<Vec<NeighbourMessage>> {
        let handle = self.0.handle();
        self.0
            .ask(async move { handle.neighbours().get().execute().try_collect().await })
    }

    /// Forgets the neighbours on these interfaces that were asked for their MAC address and have not answered: the
    /// next packet to one asks anew.
    pub(crate) fn forget_unanswered(&mut self, interfaces: &[u32]) -> io::Result<()> {
        let mut unanswered = self.list()?;
        unanswered.retain(|n| interfaces.contains(&n.header.ifindex) && is_unanswered(n));
        let messages = unanswered.into_iter();
        // A refusal means that it has gone by itself.
        self.1
            .change(messages.map(RouteNetlinkMessage::DelNeighbour), 0)
            .map(drop)
    }

    /// The default gateways, and the number of the interface of each.
    pub(crate) fn gateways(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut gateways = Vec::new();
        for family in [v4, v6] {
            let handle = self.0.handle();
            let routes: Vec<RouteMessage> = self.0.ask(async move {
                let routes = handle.route().get(family).execute();
                routes.take(ROUTES_MAX).try_collect().await
            })?;
            let default = routes
                .iter()
                .filter(|r| r.header.destination_prefix_length == 0);
            gateways.extend(default.flat_map(|r| read_gateways(&r.attributes)));
        }
        Ok(gateways)
    }
}

/// Whether a question is under way for a neighbour that nobody has configured.
fn is_unanswered(message: &NeighbourMessage) -> bool {
    let configured = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::ExtFlags(flags) if !flags.is_empty());
    message.header.state == NeighbourState::Incomplete
        && NeighbourFlags::Router.contains(message.header.flags)
        && !message.attributes.iter().any(configured)
}

/// A neighbour, if its MAC address is known.
pub(crate) fn read_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let known = [
        NeighbourState::Reachable,
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Permanent,
    ];
    known.contains(&message.header.state).then_some(())?;
    let (mut ip, mut mac, mut age) = (None, None, Duration::ZERO);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => ip = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                ip = Some(IpAddr::V6(*a))
            }
            NeighbourAttribute::LinkLayerAddress(a) => mac = a.as_slice().try_into().ok(),
            NeighbourAttribute::CacheInfo(info) => {
                age = TICK * info.confirmed.min(info.used).min(info.updated);
            }
            _ => {}
        }
    }
    let unicast = |mac: &Mac| mac[0] & 1 == 0 && *mac != [0; 6];
    Some(Neighbour {
        interface: message.header.ifindex,
        ip: ip.filter(|ip| !ip.is_multicast())?,
        mac: mac.filter(unicast)?,
        age,
    })
}

/// The gateways of a route, and the number of the interface of each.
pub(crate) fn read_gateways(attributes: &[RouteAttribute]) -> Vec<(u32, IpAddr)> {
    let mut found: Vec<(u32, IpAddr)> = read_gateway(attributes, None).into_iter().collect();
    for attribute in attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            let hop = |hop| -> Option<(u32, IpAddr)> {
                let hop: &rtnetlink::packet_route::route::RouteNextHop = hop;
                read_gateway(&hop.attributes, Some(hop.interface_index))
            };
            found.extend(hops.iter().filter_map(hop));
        }
    }
    found
}

fn read_gateway(attributes: &[RouteAttribute], interface: Option<u32>) -> Option<(u32, IpAddr)> {
    let (mut interface, mut ip) = (interface, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(a)) => ip = Some(IpAddr::V4(*a)),
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) => ip = Some(IpAddr::V6(*a)),
            RouteAttribute::Via(RouteVia::Inet6(a)) => ip = Some(IpAddr::V6(*a)),
            _ => {}
        }
    }
    interface.zip(ip)
}
