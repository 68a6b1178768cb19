//! The gate itself: which packets it looks at, and what it does with them.
//!
//! A packet belongs to a virtual address by what it would make the network believe, or this server answer:
//!
//! | | arriving | leaving |
//! |---|---|---|
//! | ARP | asked for (but own announcements of others pass) | sender |
//! | neighbour solicitation | target | source |
//! | neighbour advertisement | passes: another one's claim | target |
//! | other IPv4 and IPv6 | destination | source |
//!
//! ARP and neighbour discovery pass while now <= the first deadline of the address's door, the others while
//! now <= the second. What belongs to no virtual address passes. VLAN tags are taken off by the kernel
//! before an arriving packet gets here, and the VLAN's own interface has a gate too. Two tags, and ARP or
//! neighbour discovery behind an extension header, are not looked into: the interface that they belong to, or
//! the answer on its way out, is.
//!
//! From a macvlan device, whatever leaves with a virtual MAC address as sender passes while now <= the first
//! deadline of that address's door, whomever it belongs to: a switch would learn from it where the MAC address is.
//!
//! What this server only passes on is judged by where it goes (`transit`). While a virtual server is being handed over, what arrives under the second deadline is not delivered: it is
//! held, that is, led to a tap of electd's with a note in the place of its MAC addresses ([`Note`]).

use super::{
    assembler::{Assembler, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10},
    holding::{HOLD_TAP, HOLD_UNTIL, NOTE, NOTE_MARK},
    transit::{self, Transit},
};
use crate::sys::bpf::Side;

/// Functions of the kernel that a program may call.
pub(super) const MAP_LOOKUP: i32 = 1;
const STORE_BYTES: i32 = 9;
const REDIRECT: i32 = 23;
const LOAD_BYTES: i32 = 26;
const BOOT_TIME: i32 = 125;

/// On to the next program; drop.
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// Of the context: whom the frame is for, the EtherType (VLAN tag already taken off), the interface.
pub(super) const KIND: i16 = 4;
const PROTOCOL: i16 = 16;
pub(super) const INTERFACE: i16 = 40;

/// Kinds of frames: for this machine, for another one.
pub(super) const FOR_US: i32 = 0;
const FOR_ANOTHER: i32 = 3;

/// Of a door, in bytes: the deadline of ARP and neighbour discovery, and that of all else.
const FIRST_DEADLINE: i16 = 0;
const SECOND_DEADLINE: i16 = 8;

/// On the stack: an address, four or sixteen bytes, the number of a door.
pub(super) const KEY: i16 = -16;
const SCRATCH: i16 = -24;
const DOOR: i16 = -32;
const NOTE_AT: i16 = -48;

/// The maps of a gate, by descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    /// Address (IPv4 as mapped IPv6) to door.
    pub(super) addresses: i32,
    /// Door to deadlines.
    pub(super) doors: i32,
    /// Door to what is held of it.
    pub(super) holds: i32,
}

/// `R6` holds the packet. Continues at "pass" if it is too short: nobody can make anything of it then.
pub(super) fn load(a: &mut Assembler, from: i32, to: i16, length: i32) {
    a.copy(R1, R6)
        .set(R2, from)
        .copy(R3, R10)
        .add(R3, to.into())
        .set(R4, length)
        .call(LOAD_BYTES)
        .if_not(R0, 0, "pass");
}

/// `*R0` = the entry of the door in a map. Continues at "drop" if there is none.
fn entry(a: &mut Assembler, map: i32) {
    a.map(R1, map)
        .copy(R2, R10)
        .add(R2, DOOR.into())
        .call(MAP_LOOKUP)
        .if_equal(R0, 0, "drop");
}

/// Holds the packet if packets of the door are held now. A frame for another machine's MAC address goes on: to
/// an interface on top of this one, which has a gate too, or nowhere.
fn hold(a: &mut Assembler, holds: i32) {
    entry(a, holds);
    a.load64(R8, R0, HOLD_UNTIL)
        .load32(R9, R0, HOLD_TAP)
        .call(BOOT_TIME)
        .if_more(R0, R8, "compare")
        .load32(R1, R6, KIND)
        .if_equal(R1, FOR_ANOTHER, "pass")
        .if_not(R1, FOR_US, "drop")
        .load32(R1, R6, INTERFACE)
        .store32(R10, NOTE_AT, R1)
        .load32(R1, R10, DOOR)
        .store32(R10, NOTE_AT + 4, R1)
        .put32(R10, NOTE_AT + 8, NOTE_MARK)
        .copy(R1, R6)
        .set(R2, 0)
        .copy(R3, R10)
        .add(R3, NOTE_AT.into())
        .set(R4, NOTE as i32)
        .set(R5, 0)
        .call(STORE_BYTES)
        .if_not(R0, 0, "drop")
        .copy(R1, R9)
        .set(R2, 0)
        .call(REDIRECT)
        .exit();
}

/// The door of the address that stands at `KEY`: `*R0` = its deadlines. Continues at `none` if there is no door.
fn find_door(a: &mut Assembler, tables: Tables, none: &'static str) {
    a.map(R1, tables.addresses)
        .copy(R2, R10)
        .add(R2, KEY.into())
        .call(MAP_LOOKUP)
        .if_equal(R0, 0, none)
        .load32(R1, R0, 0)
        .store32(R10, DOOR, R1);
    entry(a, tables.doors);
}

/// What the packets of an interface begin with, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frames {
    Ethernet,
    /// Ethernet, on a macvlan device: the sender's MAC address counts too.
    Macvlan,
    /// A tunnel without link-layer header; its packets are never held.
    Bare,
}

/// The program for one side.
pub(super) fn program(
    side: Side,
    frames: Frames,
    tables: Tables,
    transit: Transit,
) -> Option<Vec<u8>> {
    let mut a = Assembler::default();
    let header = if frames == Frames::Bare { 0 } else { 14 };
    let here = |ingress: i32, egress: i32| match side {
        Side::Ingress => header + ingress,
        Side::Egress => header + egress,
    };
    let ethertype = |number: u16| i32::from(number.to_be());
    let passes_on = transit == Transit::Passes;
    a.copy(R6, R1);
    if passes_on && side == Side::Ingress {
        transit::forget(&mut a);
    }
    a.load32(R7, R6, PROTOCOL)
        .if_equal(R7, ethertype(0x0806), "arp")
        .if_equal(R7, ethertype(0x0800), "ipv4")
        .if_equal(R7, ethertype(0x86dd), "ipv6")
        .go("pass");

    // R8: where in the door the deadline stands.
    a.label("arp").set(R8, FIRST_DEADLINE.into());
    load(&mut a, here(24, 14), KEY + 12, 4);
    if side == Side::Ingress {
        load(&mut a, header + 14, SCRATCH, 4);
        a.load32(R1, R10, KEY + 12)
            .load32(R2, R10, SCRATCH)
            .if_same32(R1, R2, "pass");
    }
    a.go("mapped");

    a.label("ipv4").set(R8, SECOND_DEADLINE.into());
    if passes_on && side == Side::Egress {
        transit::is_translated_v4(&mut a, tables.addresses, header);
    }
    load(&mut a, here(16, 12), KEY + 12, 4);
    a.label("mapped")
        .put64(R10, KEY, 0)
        .put32(R10, KEY + 8, 0xffffu32.to_be().cast_signed())
        .go("door");

    a.label("ipv6").set(R8, SECOND_DEADLINE.into());
    load(&mut a, header + 6, SCRATCH, 1);
    a.load8(R1, R10, SCRATCH).if_not(R1, 58, "address");
    load(&mut a, header + 40, SCRATCH, 1);
    a.load8(R1, R10, SCRATCH)
        .if_equal(R1, 135, "solicitation")
        .if_equal(R1, 136, "advertisement")
        .go("address");
    a.label("solicitation").set(R8, FIRST_DEADLINE.into());
    load(&mut a, here(48, 8), KEY, 16);
    a.go("door").label("advertisement");
    if side == Side::Ingress {
        a.go("pass");
    } else {
        a.set(R8, FIRST_DEADLINE.into());
        load(&mut a, header + 48, KEY, 16);
        a.go("door");
    }
    a.label("address");
    if passes_on && side == Side::Egress {
        transit::is_translated_v6(&mut a, tables.addresses, header);
    }
    load(&mut a, here(24, 8), KEY, 16);

    a.label("door");
    let own = passes_on && side == Side::Ingress;
    find_door(&mut a, tables, if own { "no door" } else { "pass" });
    a.if_equal(R8, FIRST_DEADLINE.into(), "first")
        .load64(R7, R0, SECOND_DEADLINE);
    if side == Side::Ingress && header > 0 {
        hold(&mut a, tables.holds);
    } else {
        a.go("compare");
    }
    a.label("compare")
        .call(BOOT_TIME)
        .if_more(R0, R7, if passes_on { "late" } else { "drop" })
        .go("pass");
    a.label("first")
        .load64(R7, R0, FIRST_DEADLINE)
        .call(BOOT_TIME)
        .if_more(R0, R7, "drop")
        .go("pass");
    match side {
        Side::Ingress if passes_on => {
            transit::on_its_way(&mut a, header, ethertype(0x86dd), PROTOCOL);
            transit::from_virtual(&mut a, tables.addresses, header, ethertype(0x86dd));
        }
        Side::Egress if passes_on => transit::came_from_virtual(&mut a),
        Side::Ingress | Side::Egress => {}
    }
    a.label("pass");
    if frames == Frames::Macvlan && side == Side::Egress {
        a.put64(R10, KEY, -1)
            .put32(R10, KEY + 8, -1)
            .copy(R1, R6)
            .set(R2, 6)
            .copy(R3, R10)
            .add(R3, (KEY + 10).into())
            .set(R4, 6)
            .call(LOAD_BYTES)
            .if_not(R0, 0, "next");
        find_door(&mut a, tables, "next");
        a.load64(R7, R0, FIRST_DEADLINE)
            .call(BOOT_TIME)
            .if_more(R0, R7, "drop");
    }
    a.label("next")
        .set(R0, NEXT)
        .exit()
        .label("drop")
        .set(R0, DROP)
        .exit();
    a.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        arp,
        clock::now,
        gate::{Door, Gate},
        ndp,
    };
    use config::VirtualAddress;
    use protocol::BootTime;
    use std::{
        net::{IpAddr, Ipv4Addr, Ipv6Addr},
        path::PathBuf,
        sync::Arc,
        time::Duration,
    };

    const MAC: arp::Mac = [2, 0, 0, 0, 0, 1];
    const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
    const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
    const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
    const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);

    fn ipv4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let mut frame = [vec![0; 12], vec![8, 0, 0x45], vec![0; 11]].concat();
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.resize(60, 0);
        frame
    }

    fn ipv6(next: u8, from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
        let mut frame = [vec![0; 12], vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 24]].concat();
        frame.extend([next, 255]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(body);
        frame.resize(90, 0);
        frame
    }

    fn nd(kind: u8, from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
        ipv6(58, from, to, &body)
    }

    fn arp_frame(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mut frame = arp::gratuitous(MAC, sender);
        frame[38..42].copy_from_slice(&target.octets());
        frame
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum When {
        Always,
        First,
        Second,
    }

    /// Each kind of packet, the side, and which deadline it is under.
    fn cases() -> Vec<(&'static str, Side, Vec<u8>, When)> {
        use Side::{Egress, Ingress};
        use When::{Always, First, Second};
        let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        vec![
            ("asked for", Ingress, arp_frame(OTHER4, V4), First),
            ("answer to us", Ingress, arp_frame(V4, OTHER4), Always),
            ("another's claim", Ingress, arp_frame(V4, V4), Always),
            ("strangers", Ingress, arp_frame(OTHER4, OTHER4), Always),
            ("own claim", Egress, arp::gratuitous(MAC, V4), First),
            ("own question", Egress, arp_frame(V4, OTHER4), First),
            ("own probe", Egress, arp::probe(MAC, V4), Always),
            ("a client's question", Egress, arp_frame(OTHER4, V4), Always),
            ("request", Ingress, ipv4(OTHER4, V4), Second),
            ("answer to a client here", Ingress, ipv4(V4, OTHER4), Always),
            ("reply", Egress, ipv4(V4, OTHER4), Second),
            ("a client's request", Egress, ipv4(OTHER4, V4), Always),
            ("solicited", Ingress, nd(135, OTHER6, all, V6), First),
            (
                "another's advertisement",
                Ingress,
                nd(136, V6, all, V6),
                Always,
            ),
            ("own advertisement", Egress, nd(136, V6, all, V6), First),
            (
                "as announced",
                Egress,
                ndp::advertisement(MAC, V6, false),
                First,
            ),
            (
                "advertised by another address",
                Egress,
                nd(136, OTHER6, all, V6),
                First,
            ),
            ("own solicitation", Egress, nd(135, V6, all, OTHER6), First),
            ("own probe6", Egress, ndp::probe(MAC, V6), Always),
            (
                "a client's solicitation",
                Egress,
                nd(135, OTHER6, all, V6),
                Always,
            ),
            ("ping6", Ingress, ipv6(58, OTHER6, V6, &[128]), Second),
            ("request6", Ingress, ipv6(17, OTHER6, V6, &[]), Second),
            ("reply6", Egress, ipv6(17, V6, OTHER6, &[]), Second),
            ("strangers6", Ingress, ipv6(17, OTHER6, OTHER6, &[]), Always),
            (
                "strangers6 leaving",
                Egress,
                ipv6(17, OTHER6, V6, &[]),
                Always,
            ),
        ]
    }

    /// A gate and a door in it; none, and a word, where the kernel refuses.
    fn loaded() -> Option<(Arc<Gate>, Door)> {
        let loaded = Gate::load(PathBuf::new(), false);
        let skipped = |why: &String| eprintln!("SKIPPED: no gate in the kernel here: {why}");
        let gate = Arc::new(loaded.inspect_err(skipped).ok()?);
        let door = Door::new(&gate, &"web".parse().unwrap()).unwrap();
        Some((gate, door))
    }

    fn lead_both(door: &Door) -> [VirtualAddress; 2] {
        let addresses = [IpAddr::V4(V4), IpAddr::V6(V6)];
        let addresses = addresses.map(|ip| VirtualAddress { ip, prefix: 24 });
        door.lead(&addresses).unwrap();
        addresses
    }

    #[test]
    fn whatever_leaves_with_a_virtual_mac_address_is_under_its_first_deadline() {
        let Some((gate, door)) = loaded() else {
            return;
        };
        door.lead_mac(MAC).unwrap();
        let far = now() + Duration::from_secs(60);
        let mut strangers = ipv4(OTHER4, OTHER4);
        let others = strangers.clone();
        strangers[6..12].copy_from_slice(&MAC);
        let report = ndp::probe(MAC, OTHER6);
        for (first, expected) in [(BootTime(0), DROP), (far, NEXT)] {
            door.set(first, BootTime(0));
            for frame in [&strangers, &report] {
                let said = |programs: &super::super::Programs, side| {
                    programs.on(side).try_on(frame).unwrap()
                };
                assert_eq!(said(&gate.macvlan, Side::Egress), expected);
                assert_eq!(said(&gate.macvlan, Side::Ingress), NEXT);
                assert_eq!(said(&gate.ethernet, Side::Egress), NEXT);
            }
            assert_eq!(gate.macvlan.egress.try_on(&others).unwrap(), NEXT);
        }
        door.set(BootTime(0), BootTime(0));
        door.forget_mac(MAC);
        assert_eq!(gate.macvlan.egress.try_on(&strangers).unwrap(), NEXT);
    }

    #[test]
    fn each_packet_is_under_its_deadline() {
        let Some((gate, door)) = loaded() else {
            return;
        };
        let addresses = lead_both(&door);
        let far = now() + Duration::from_secs(60);
        let past = BootTime(now().0 - 1);
        for (first, second) in [
            (BootTime(0), BootTime(0)),
            (far, BootTime(0)),
            (far, far),
            (past, past),
            (BootTime(0), far),
        ] {
            door.set(first, second);
            let kinds = [&gate.ethernet, &gate.macvlan];
            for ((what, side, frame, when), programs) in cases()
                .into_iter()
                .flat_map(|case| kinds.map(|programs| (case.clone(), programs)))
            {
                let program = programs.on(side);
                let passes = match when {
                    When::Always => true,
                    When::First => first == far,
                    When::Second => second == far,
                };
                let said = program
                    .try_on(&frame)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                let expected = if passes { NEXT } else { DROP };
                assert_eq!(
                    said, expected,
                    "{what}, {side:?}, doors {first:?} {second:?}"
                );
            }
        }
        door.set(far, far);
        assert!(door.shut());
        let request = ipv4(OTHER4, V4);
        assert_eq!(gate.ethernet.ingress.try_on(&request).unwrap(), DROP);
        door.forget(&addresses[0]);
        assert_eq!(gate.ethernet.ingress.try_on(&request).unwrap(), NEXT);
    }

    #[test]
    fn while_held_packets_go_to_the_tap_and_replies_leave_until_the_drain_ends() {
        const TO_THE_TAP: i32 = 7;
        let Some((gate, door)) = loaded() else {
            return;
        };
        lead_both(&door);
        let far = now() + Duration::from_secs(60);
        let past = BootTime(now().0 - 1);
        let all = |held: i32, replies: i32| {
            for (what, side, frame, when) in cases() {
                let expected = match (when, side) {
                    (When::Always, _) => NEXT,
                    (When::First, _) => DROP,
                    (When::Second, Side::Ingress) => held,
                    (When::Second, Side::Egress) => replies,
                };
                let said = gate.ethernet.on(side).try_on(&frame).unwrap();
                assert_eq!(said, expected, "{what}, {side:?}");
            }
        };
        door.set(far, far);
        door.hold(1, far);
        door.drain(now() + Duration::from_secs(30));
        all(TO_THE_TAP, NEXT);
        door.drain(past);
        all(TO_THE_TAP, DROP);
        door.drain(far); // never a longer life
        all(TO_THE_TAP, DROP);
        door.hold(1, past);
        all(DROP, DROP);
        door.hold(1, far);
        door.hold_no_more();
        all(DROP, DROP);
        // For the MAC address of another machine, which may be an interface on top of this one.
        door.hold(1, far);
        let mut stray = ipv4(OTHER4, V4);
        stray[..6].copy_from_slice(&MAC);
        assert_eq!(gate.ethernet.ingress.try_on(&stray).unwrap(), NEXT);
        // To all machines of the network.
        stray[..6].fill(0xff);
        assert_eq!(gate.ethernet.ingress.try_on(&stray).unwrap(), DROP);
    }
}
