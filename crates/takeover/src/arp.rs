//! ARP frames of Ethernet and IPv4: built and read, nothing sent.
//!
//! All announcements are *requests*: Linux takes the new address of a request whatever the age of its
//! entry, but ignores most reply forms for one second after the last change.

use std::net::Ipv4Addr;

/// A MAC address.
pub type Mac = [u8; 6];

/// EtherType of ARP.
pub(crate) const ETHERTYPE: u16 = 0x0806;

const LEN: usize = 42;
const BROADCAST: Mac = [0xff; 6];
const UNKNOWN: Mac = [0; 6];
// Ethernet, IPv4, their address lengths.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// What an ARP frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) sender_mac: Mac,
    /// 0.0.0.0 in a probe: it claims nothing.
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
    /// An answer, and no question.
    pub(crate) reply: bool,
}

/// Where the kind of an ARP message stands in a frame, and an answer's.
pub(crate) const OPERATION_AT: usize = 20;
pub(crate) const OPERATION_REPLY: u16 = 2;

/// "`ip` is at `mac`", to everybody: gratuitous ARP in request form.
pub(crate) fn gratuitous(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    request(BROADCAST, mac, ip, ip)
}

/// "Where are you? Asks `ip` at `mac`", to one neighbour: moves its entry and makes a missing one.
pub(crate) fn unicast(mac: Mac, ip: Ipv4Addr, neighbour_mac: Mac, neighbour: Ipv4Addr) -> Vec<u8> {
    request(neighbour_mac, mac, ip, neighbour)
}

/// "Where are you? Asks `ip` at `mac`", to one whose MAC address is not known.
pub(crate) fn ask_all(mac: Mac, ip: Ipv4Addr, neighbour: Ipv4Addr) -> Vec<u8> {
    request(BROADCAST, mac, ip, neighbour)
}

/// "Has anybody `ip`?" without claiming it (RFC 5227).
pub(crate) fn probe(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    request(BROADCAST, mac, Ipv4Addr::UNSPECIFIED, ip)
}

fn request(to: Mac, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LEN);
    frame.extend(to);
    frame.extend(mac);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend(KIND);
    frame.extend(REQUEST);
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend(UNKNOWN);
    frame.extend(target.octets());
    frame
}

/// Reads a frame; none if it is not ARP of Ethernet and IPv4. Padding after it is allowed.
pub(crate) fn parse(frame: &[u8]) -> Option<Arp> {
    let (ethernet, arp) = frame.get(..LEN)?.split_at(14);
    let fine = ethernet[12..] == ETHERTYPE.to_be_bytes()
        && arp[..6] == KIND
        && [REQUEST, REPLY].iter().any(|op| arp[6..8] == *op);
    fine.then_some(())?;
    let sender: [u8; 4] = arp[14..18].try_into().ok()?;
    let target: [u8; 4] = arp[24..28].try_into().ok()?;
    Some(Arp {
        sender_mac: arp[8..14].try_into().ok()?,
        sender: sender.into(),
        target: target.into(),
        reply: arp[6..8] == REPLY,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

    #[test]
    fn gratuitous_arp_is_a_broadcast_request_with_sender_as_target() {
        #[rustfmt::skip]
        let golden = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08, 0x06,
            0, 1, 0x08, 0x00, 6, 4, 0, 1,
            2, 0, 0, 0, 0, 1, 192, 0, 2, 10,
            0, 0, 0, 0, 0, 0, 192, 0, 2, 10,
        ];
        assert_eq!(gratuitous(MAC, IP), golden);
    }

    #[test]
    fn unicast_request_goes_to_the_neighbour_alone() {
        #[rustfmt::skip]
        let golden = [
            2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x08, 0x06,
            0, 1, 0x08, 0x00, 6, 4, 0, 1,
            2, 0, 0, 0, 0, 1, 192, 0, 2, 10,
            0, 0, 0, 0, 0, 0, 192, 0, 2, 99,
        ];
        assert_eq!(
            unicast(MAC, IP, [2, 0, 0, 0, 0, 9], Ipv4Addr::new(192, 0, 2, 99)),
            golden
        );
    }

    #[test]
    fn probe_claims_nothing() {
        let read = parse(&probe(MAC, IP)).unwrap();
        assert_eq!(
            read,
            Arp {
                sender_mac: MAC,
                sender: Ipv4Addr::UNSPECIFIED,
                target: IP,
                reply: false,
            }
        );
        assert_eq!(probe(MAC, IP)[38..], IP.octets());
    }

    #[test]
    fn what_is_built_is_read_and_padding_ignored() {
        let mut frame = gratuitous(MAC, IP);
        frame.resize(60, 0);
        assert_eq!(
            parse(&frame),
            Some(Arp {
                sender_mac: MAC,
                sender: IP,
                target: IP,
                reply: false,
            })
        );
    }

    #[test]
    fn an_answer_is_told_from_a_question() {
        let neighbour = Ipv4Addr::new(192, 0, 2, 99);
        let mut frame = unicast(MAC, neighbour, [2, 0, 0, 0, 0, 9], IP);
        assert!(!parse(&frame).unwrap().reply);
        frame[OPERATION_AT + 1] = OPERATION_REPLY as u8;
        let read = parse(&frame).unwrap();
        assert!(read.reply);
        assert_eq!(
            (read.sender, read.sender_mac, read.target),
            (neighbour, MAC, IP)
        );
    }

    #[test]
    fn other_frames_are_refused() {
        let fine = gratuitous(MAC, IP);
        for cut in 0..fine.len() {
            assert_eq!(parse(&fine[..cut]), None);
        }
        for (place, byte) in [(12, 0x86), (15, 6), (16, 0x86), (18, 8), (19, 16), (21, 3)] {
            let mut bad = fine.clone();
            bad[place] = byte;
            assert_eq!(parse(&bad), None, "byte {place} = {byte}");
        }
    }
}
