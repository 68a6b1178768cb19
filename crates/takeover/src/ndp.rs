//! Neighbour discovery frames of Ethernet and IPv6 (RFC 4861): built and read, nothing sent.

use crate::arp::Mac;
use std::net::Ipv6Addr;

/// EtherType of IPv6.
pub(crate) const ETHERTYPE: u16 = 0x86dd;
/// IPv6 next header of ICMPv6, and where it stands in a frame.
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const NEXT_HEADER_AT: usize = 20;
/// ICMPv6 types of solicitation and advertisement, and where they stand in a frame.
pub(crate) const SOLICIT: u8 = 135;
pub(crate) const ADVERTISE: u8 = 136;
pub(crate) const TYPE_AT: usize = 54;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// A router never forwards a packet with this hop limit unchanged: it was sent on this link.
const HOP_LIMIT: u8 = 255;

/// "`ip` is at `mac`", to everybody: unsolicited advertisement with override.
pub(crate) fn advertisement(mac: Mac, ip: Ipv6Addr, router: bool) -> Vec<u8> {
    let flags = OVERRIDE | if router { ROUTER } else { 0 };
    frame(
        multicast_mac(ALL_NODES),
        mac,
        ip,
        ALL_NODES,
        ADVERTISE,
        flags,
        ip,
        Some(TARGET_MAC),
    )
}

/// "Where are you? Asks `ip` at `mac`", to one neighbour: moves its entry.
pub(crate) fn unicast(mac: Mac, ip: Ipv6Addr, neighbour_mac: Mac, neighbour: Ipv6Addr) -> Vec<u8> {
    frame(
        neighbour_mac,
        mac,
        ip,
        neighbour,
        SOLICIT,
        0,
        neighbour,
        Some(SOURCE_MAC),
    )
}

/// "Where are you? Asks `ip` at `mac`", to one whose MAC address is not known.
pub(crate) fn ask_all(mac: Mac, ip: Ipv6Addr, neighbour: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(neighbour);
    let to = multicast_mac(group);
    frame(to, mac, ip, group, SOLICIT, 0, neighbour, Some(SOURCE_MAC))
}

/// The group that whoever has `ip` listens to (RFC 4291).
fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

/// "Has anybody `ip`?" without claiming it (RFC 4862).
pub(crate) fn probe(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(ip);
    frame(
        multicast_mac(group),
        mac,
        Ipv6Addr::UNSPECIFIED,
        group,
        SOLICIT,
        0,
        ip,
        None,
    )
}

#[allow(clippy::too_many_arguments)] // the fields of one frame, in the order they stand in it
fn frame(
    to_mac: Mac,
    mac: Mac,
    from: Ipv6Addr,
    to: Ipv6Addr,
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: Option<u8>,
) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(target.octets());
    if let Some(option) = option {
        body.extend([option, 1]);
        body.extend(mac);
    }
    let sum = checksum(from, to, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(TYPE_AT + body.len());
    frame.extend(to_mac);
    frame.extend(mac);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend([0x60, 0, 0, 0, 0, body.len() as u8, ICMPV6, HOP_LIMIT]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(body);
    frame
}

fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The Internet checksum of an ICMPv6 message; over a received one it is 0.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let words = |bytes: &[u8]| {
        bytes
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)))
            .fold(0u32, u32::wrapping_add)
    };
    let mut sum = words(&from.octets())
        + words(&to.octets())
        + body.len() as u32
        + u32::from(ICMPV6)
        + words(body);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Reads the claim "`address` is at `mac`" out of an advertisement, or out of the source of a
/// solicitation. None for everything else, for what is damaged or was forwarded by a router, and for who only speaks
/// for another one or shares an address with others (a proxy, anycast).
pub(crate) fn parse_claim(frame: &[u8]) -> Option<Claim> {
    parse(frame).filter(|claim| claim.overrides || !claim.advertised)
}

/// Reads the answer "`neighbour` is at `mac`" to a question of `own`: own, neighbour, MAC address.
pub(crate) fn parse_answer(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr, Mac)> {
    let read = parse(frame)?;
    read.solicited.then_some((read.to, read.claimed, read.mac))
}

/// "`claimed` is at `mac`."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) claimed: Ipv6Addr,
    pub(crate) mac: Mac,
    to: Ipv6Addr,
    /// It is an advertisement, and no question.
    pub(crate) advertised: bool,
    /// An advertisement that is to take the place of what was known.
    overrides: bool,
    /// An advertisement that answers a solicitation.
    solicited: bool,
}

fn parse(frame: &[u8]) -> Option<Claim> {
    let address = |at: usize| -> Option<Ipv6Addr> {
        let octets: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
        Some(octets.into())
    };
    let (from, to, target) = (address(22)?, address(38)?, address(62)?);
    let length = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
    let body = frame.get(TYPE_AT..TYPE_AT + length)?;
    let fine = frame[12..14] == ETHERTYPE.to_be_bytes()
        && frame[14] >> 4 == 6
        && frame[NEXT_HEADER_AT] == ICMPV6
        && frame[21] == HOP_LIMIT
        && body.len() >= 24
        && body[1] == 0
        && checksum(from, to, body) == 0;
    fine.then_some(())?;
    let (claimed, option) = match body[0] {
        ADVERTISE => (target, TARGET_MAC),
        SOLICIT if !from.is_unspecified() => (from, SOURCE_MAC),
        _ => return None,
    };
    // The option may be missing: then the frame's own sender is meant.
    Some(Claim {
        claimed,
        mac: link_address(&body[24..], option).or_else(|| frame[6..12].try_into().ok())?,
        to,
        advertised: body[0] == ADVERTISE,
        overrides: body[0] == ADVERTISE && body[4] & OVERRIDE != 0,
        solicited: body[0] == ADVERTISE && body[4] & SOLICITED != 0,
    })
}

fn link_address(mut options: &[u8], wanted: u8) -> Option<Mac> {
    while let [kind, units, ..] = options {
        let option = options
            .get(..usize::from(*units) * 8)
            .filter(|o| !o.is_empty())?;
        if *kind == wanted {
            return option[2..8].try_into().ok();
        }
        options = &options[option.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const IP: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

    fn claimed(frame: &[u8]) -> Option<(Ipv6Addr, Mac)> {
        parse_claim(frame).map(|claim| (claim.claimed, claim.mac))
    }

    #[test]
    fn who_speaks_for_another_one_claims_nothing() {
        let proxy = |flags| {
            let option = Some(TARGET_MAC);
            frame(MAC, MAC, IP, ALL_NODES, ADVERTISE, flags, IP, option)
        };
        assert_eq!(parse_claim(&proxy(SOLICITED)), None);
        assert_eq!(claimed(&proxy(SOLICITED | OVERRIDE)), Some((IP, MAC)));
    }

    #[test]
    fn unsolicited_advertisement_overrides_and_goes_to_all_nodes() {
        #[rustfmt::skip]
        let golden = [
            0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd,
            0x60, 0, 0, 0, 0, 32, 58, 255,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            136, 0, 0xf9, 0x0c, 0x20, 0, 0, 0,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
            2, 1, 2, 0, 0, 0, 0, 1,
        ];
        assert_eq!(advertisement(MAC, IP, false), golden);
        assert_eq!(advertisement(MAC, IP, true)[58], 0xa0);
    }

    #[test]
    fn unicast_solicitation_goes_to_the_neighbour_with_our_mac() {
        let neighbour = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
        let frame = unicast(MAC, IP, [2, 0, 0, 0, 0, 9], neighbour);
        assert_eq!(frame.len(), 86);
        assert_eq!(frame[..6], [2, 0, 0, 0, 0, 9]);
        assert_eq!(frame[38..54], neighbour.octets());
        assert_eq!(frame[62..78], neighbour.octets());
        assert_eq!(frame[78..], [1, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(claimed(&frame), Some((IP, MAC)));
    }

    #[test]
    fn probe_goes_to_the_solicited_node_group_and_claims_nothing() {
        let frame = probe(MAC, IP);
        assert_eq!(frame.len(), 78);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0, 0, 0x10]);
        assert_eq!(frame[22..38], [0; 16]);
        assert_eq!(
            checksum(
                Ipv6Addr::UNSPECIFIED,
                "ff02::1:ff00:10".parse().unwrap(),
                &frame[54..]
            ),
            0
        );
        assert_eq!(parse_claim(&frame), None);
    }

    #[test]
    fn advertisement_is_read_as_claim() {
        assert_eq!(claimed(&advertisement(MAC, IP, true)), Some((IP, MAC)));
    }

    #[test]
    fn a_neighbour_of_unknown_mac_is_asked_through_its_group() {
        let neighbour = "2001:db8::1:2:99".parse().unwrap();
        let frame = ask_all(MAC, IP, neighbour);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 2, 0, 0x99]);
        assert_eq!(claimed(&frame), Some((IP, MAC)));
    }

    #[test]
    fn an_answer_names_who_asked() {
        let client: Ipv6Addr = "2001:db8::99".parse().unwrap();
        let mac = [2, 0, 0, 0, 0, 9];
        let flags = SOLICITED | OVERRIDE;
        let answer = frame(
            MAC,
            mac,
            client,
            IP,
            ADVERTISE,
            flags,
            client,
            Some(TARGET_MAC),
        );
        assert_eq!(parse_answer(&answer), Some((IP, client, mac)));
        assert_eq!(parse_answer(&advertisement(mac, client, false)), None);
        assert_eq!(parse_answer(&unicast(mac, client, MAC, IP)), None);
    }

    #[test]
    fn damaged_or_forwarded_frames_are_refused() {
        let fine = advertisement(MAC, IP, false);
        for cut in 0..fine.len() {
            assert_eq!(parse_claim(&fine[..cut]), None);
        }
        for place in (12..15).chain(18..22).chain(54..fine.len()) {
            let mut bad = fine.clone();
            bad[place] ^= 0x40;
            assert_eq!(parse_claim(&bad), None, "byte {place}");
        }
    }
}
