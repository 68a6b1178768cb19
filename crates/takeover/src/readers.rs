//! Everything that reads bytes of the wire, of the kernel or of the run-dir, in one place for the fuzz targets.

use crate::{
    arp,
    gate::Note,
    gate_file, hold, ndp, neighbours,
    netlink::{self, ip_of, is_ours},
    nfnetlink,
};
use rtnetlink::{packet_core::NetlinkPayload, packet_route::RouteNetlinkMessage};

/// Reads `bytes` in every way in which this crate reads any. It never panics, whatever they are.
pub fn read_any(bytes: &[u8]) {
    arp::parse(bytes);
    ndp::parse_claim(bytes);
    ndp::parse_answer(bytes);
    Note::read(bytes);
    hold::is_ipv6(bytes);
    if let Some((bytes, boot)) = bytes.split_first_chunk() {
        let boot = boot.first_chunk().copied().unwrap_or_default();
        gate_file::decode(bytes, boot);
    }
    for (_, body) in nfnetlink::split(bytes) {
        nfnetlink::error(body);
        nfnetlink::attribute(body, 1).map(|inner| nfnetlink::attribute(inner, 11));
    }
    for message in netlink::split(bytes) {
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(about)) => {
                neighbours::read_neighbour(about);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(about)) => {
                neighbours::read_gateways(&about.attributes);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(about)) => {
                ip_of(about).filter(|_| is_ours(about));
            }
            _ => {}
        }
        netlink::read_change(message);
    }
}
