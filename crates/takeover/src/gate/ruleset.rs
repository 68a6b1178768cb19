//! The tables of the nftables gate: which packets they look at. The kinds are those of the eBPF gate (`program`).
//!
//! A packet's address leads to a chain of its door (`ip daddr vmap @traffic4`). That drops it unless the door's number
//! is an element of both sets `a` and `b`, whose elements end by themselves (why two: see `nftables`).
//!
//! ARP that arrives from a virtual address passes: it is another server's claim, and what this server may answer to
//! it is looked at on its way out.

use crate::nfnetlink::{
    APPEND, ARP, Attributes, EXCLUSIVE, GET_CHAIN, GET_RULE, GET_TABLE, INET, Message, NEW_CHAIN,
    NEW_ELEMENT, NEW_RULE, NEW_SET, NEW_TABLE, Nfnetlink, attribute,
};
use std::{io, net::IpAddr};

/// The two sets of elements that end by themselves.
pub(super) const SETS: [&str; 2] = ["a", "b"];

/// The chains of either table.
pub(super) const CHAINS: [&str; 2] = ["in", "out"];

const TRAFFIC4: &str = "traffic4";
const TRAFFIC6: &str = "traffic6";
const ND: &str = "nd6";
const ARP4: &str = "arp4";
/// The addresses of `arp4`.
const VIRTUAL4: &str = "virtual4";

/// Most elements in one message.
const ELEMENTS: usize = 1000;

/// Before all others see an arriving packet (defragmentation is at -400), and after all have seen a leaving one.
const FIRST_OF_ALL: i32 = -450;
const LAST_OF_ALL: i32 = 450;

/// Where arriving and leaving packets come by, and when.
pub(super) const PREROUTING: Option<(u32, i32)> = Some((0, FIRST_OF_ALL));
pub(super) const POSTROUTING: Option<(u32, i32)> = Some((4, LAST_OF_ALL));
/// Where what is for this machine comes by, translated and routed.
pub(super) const LOCAL_INPUT: Option<(u32, i32)> = Some((1, FIRST_OF_ALL));
pub(super) const ARP_INPUT: Option<(u32, i32)> = Some((0, FIRST_OF_ALL));
pub(super) const ARP_OUTPUT: Option<(u32, i32)> = Some((1, LAST_OF_ALL));

/// The interface a packet came by, and the one that it leaves by.
pub(super) const IIF: u32 = 4;
pub(super) const OIF: u32 = 5;
/// Its priority in queues.
pub(super) const PRIORITY: u32 = 2;

/// Types of keys and their length, as nft names them: so that it lists the tables readably.
pub(super) const IPV4: (u32, u32) = (7, 4);
pub(super) const IPV6: (u32, u32) = (8, 16);

const ACCEPT: u32 = 1;
pub(super) const DROP: u32 = 0;
const JUMP: u32 = (-3i32).cast_unsigned();
const VERDICTS: u32 = 0xffff_ff00;
pub(super) const LOOPBACK: u32 = 1;

/// The number of a door's deadline: that of ARP and neighbour discovery, or that of all else.
pub(super) fn element(place: usize, traffic: bool) -> u32 {
    (place as u32) << 1 | u32::from(traffic)
}

pub(super) fn named(table: &str) -> Attributes {
    Attributes::new().text(1, table)
}

/// The tables and their sets, empty; no packet is looked at yet.
pub(super) fn tables(table: &str) -> Vec<Message> {
    const CONSTANT: u32 = 2;
    const MAP: u32 = 8;
    const TIMEOUT: u32 = 0x10;
    const MARK: (u32, u32) = (19, 4);
    let mut id = 0;
    let mut set = |family, name: &str, flags, key: (u32, u32)| {
        id += 1;
        let mut about = named(table)
            .text(2, name)
            .number(3, flags)
            .number(4, key.0)
            .number(5, key.1)
            .number(10, id);
        if flags & MAP != 0 {
            about = about.number(6, VERDICTS);
        }
        Message::new(NEW_SET, family, EXCLUSIVE, about)
    };
    let new_table = |family| Message::new(NEW_TABLE, family, EXCLUSIVE, named(table));
    vec![
        new_table(INET),
        new_table(ARP),
        set(INET, TRAFFIC4, CONSTANT | MAP, IPV4),
        set(INET, TRAFFIC6, CONSTANT | MAP, IPV6),
        set(INET, ND, CONSTANT | MAP, IPV6),
        set(ARP, ARP4, CONSTANT | MAP, IPV4),
        set(ARP, VIRTUAL4, CONSTANT, IPV4),
        set(INET, SETS[0], TIMEOUT, MARK),
        set(INET, SETS[1], TIMEOUT, MARK),
        set(ARP, SETS[0], TIMEOUT, MARK),
        set(ARP, SETS[1], TIMEOUT, MARK),
    ]
}

/// What the kernel says about these tables, but for their elements.
pub(super) fn listed(kernel: &mut Nfnetlink, name: &str) -> io::Result<Vec<Vec<u8>>> {
    let table = named(name);
    let mut all = Vec::new();
    for family in [INET, ARP] {
        all.extend(kernel.one(GET_TABLE, family, &table)?);
        for chain in CHAINS {
            all.extend(kernel.one(GET_CHAIN, family, &table.clone().text(3, chain))?);
        }
        let mut rules = kernel.list(GET_RULE, family, &table)?;
        rules.retain(|rule| attribute(rule, 1) == attribute(&table.0, 1));
        all.extend(rules);
    }
    Ok(all)
}

/// The chain that lets through what one deadline of a door permits.
fn chain_of(element: u32) -> String {
    let which = if element & 1 == 1 { "traffic" } else { "first" };
    format!("door{}-{which}", element >> 1)
}

/// The chains of the doors, each of which drops while its door is shut.
pub(super) fn doors(table: &str, place: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    for (family, traffic) in [(INET, false), (INET, true), (ARP, false)] {
        let element = element(place, traffic);
        let name = chain_of(element);
        let mut chain = Chain::new(table, family, &name, None);
        for set in SETS {
            chain.rule(&[load(element), is_not_in(set), verdict(DROP)]);
        }
        messages.extend(chain.messages);
    }
    messages
}

/// One element of a set, or of a map that leads to a door's chain.
pub(super) fn item(key: &[u8], door: Option<u32>) -> Attributes {
    let item = Attributes::new().nest(1, &Attributes::new().bytes(1, key));
    match door {
        Some(element) => {
            let jump = Attributes::new()
                .number(1, JUMP)
                .text(2, &chain_of(element));
            item.nest(2, &Attributes::new().nest(2, &jump))
        }
        None => item,
    }
}

/// Fills the maps: each address leads to its door. Messages for batches of their own, so that none gets too big.
pub(super) fn leads(table: &str, addresses: &[(IpAddr, usize)]) -> Vec<Message> {
    let (mut traffic4, mut traffic6, mut nd) = (vec![], vec![], vec![]);
    let (mut arp, mut virtual4) = (vec![], vec![]);
    for (ip, place) in addresses {
        let (first, traffic) = (element(*place, false), element(*place, true));
        match ip {
            IpAddr::V4(ip) => {
                traffic4.push(item(&ip.octets(), Some(traffic)));
                arp.push(item(&ip.octets(), Some(first)));
                virtual4.push(item(&ip.octets(), None));
            }
            IpAddr::V6(ip) => {
                traffic6.push(item(&ip.octets(), Some(traffic)));
                nd.push(item(&ip.octets(), Some(first)));
            }
        }
    }
    let maps = [
        (INET, TRAFFIC4, traffic4),
        (INET, TRAFFIC6, traffic6),
        (INET, ND, nd),
        (ARP, ARP4, arp),
        (ARP, VIRTUAL4, virtual4),
    ];
    maps.iter()
        .flat_map(|(family, map, items)| fill(NEW_ELEMENT, EXCLUSIVE, (*family, table, map), items))
        .collect()
}

/// Puts these into a set or map, or takes them out (`kind`). Messages for batches of their own, so that none gets too big.
pub(super) fn fill(
    kind: u8,
    flags: u16,
    (family, table, set): (u8, &str, &str),
    items: &[Attributes],
) -> Vec<Message> {
    let message = |items: &[Attributes]| {
        let about = named(table).text(2, set).list(3, items);
        Message::new(kind, family, flags, about)
    };
    items.chunks(ELEMENTS).map(message).collect()
}

/// Puts an element into one of [`SETS`], or takes it out (`kind`); with the milliseconds after which it ends.
pub(super) fn timed(
    kind: u8,
    table: &str,
    (family, set, element): (u8, &str, u32),
    timeout_ms: Option<u64>,
) -> Message {
    let item = item(&element.to_ne_bytes(), None);
    let (flags, item) = match timeout_ms {
        Some(ms) => (EXCLUSIVE, item.long(4, ms)),
        None => (0, item),
    };
    let about = named(table).text(2, set).list(3, [&item]);
    Message::new(kind, family, flags, about)
}

// ---- expressions

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::new().text(1, name).nest(2, data)
}

/// What is loaded, looked up or compared is in register 1.
fn payload(base: u32, offset: u32, length: u32) -> Attributes {
    let data = Attributes::new().number(1, 1).number(2, base);
    expression("payload", &data.number(3, offset).number(4, length))
}

pub(super) fn network(offset: u32, length: u32) -> Attributes {
    payload(1, offset, length)
}

pub(super) fn transport(offset: u32, length: u32) -> Attributes {
    payload(2, offset, length)
}

pub(super) fn meta(key: u32) -> Attributes {
    expression("meta", &Attributes::new().number(1, 1).number(2, key))
}

pub(super) fn is(value: &[u8]) -> Attributes {
    let data = Attributes::new().number(1, 1).number(2, 0);
    expression("cmp", &data.nest(3, &Attributes::new().bytes(1, value)))
}

fn load(element: u32) -> Attributes {
    let value = Attributes::new().bytes(1, &element.to_ne_bytes());
    expression("immediate", &Attributes::new().number(1, 1).nest(2, &value))
}

fn lead_through(map: &str) -> Attributes {
    let data = Attributes::new().text(1, map);
    expression("lookup", &data.number(2, 1).number(3, 0))
}

pub(super) fn is_in(set: &str) -> Attributes {
    expression("lookup", &Attributes::new().text(1, set).number(2, 1))
}

fn is_not_in(set: &str) -> Attributes {
    const INVERTED: u32 = 1;
    let data = Attributes::new().text(1, set).number(2, 1);
    expression("lookup", &data.number(5, INVERTED))
}

pub(super) fn verdict(code: u32) -> Attributes {
    let verdict = Attributes::new().nest(2, &Attributes::new().number(1, code));
    expression(
        "immediate",
        &Attributes::new().number(1, 0).nest(2, &verdict),
    )
}

/// IPv4, IPv6 packets; ICMPv6 of that kind.
pub(super) fn ipv4() -> [Attributes; 2] {
    [meta(NFPROTO), is(&[2])]
}

pub(super) fn ipv6() -> [Attributes; 2] {
    [meta(NFPROTO), is(&[10])]
}

pub(super) fn icmpv6(kind: u8) -> Vec<Attributes> {
    const L4PROTO: u32 = 16;
    let icmp = [meta(L4PROTO), is(&[58]), transport(0, 1), is(&[kind])];
    [&ipv6()[..], &icmp].concat()
}

const NFPROTO: u32 = 15;

/// The rules of one chain.
pub(super) struct Chain<'a> {
    table: &'a str,
    family: u8,
    name: &'a str,
    pub(super) messages: Vec<Message>,
}

impl<'a> Chain<'a> {
    /// With its place (hook and priority) if packets come there by themselves.
    pub(super) fn new(
        table: &'a str,
        family: u8,
        name: &'a str,
        place: Option<(u32, i32)>,
    ) -> Self {
        let mut about = named(table).text(3, name);
        if let Some((hook, priority)) = place {
            let place = Attributes::new().number(1, hook);
            let place = place.number(2, priority.cast_unsigned());
            about = about.nest(4, &place).number(5, ACCEPT).text(7, "filter");
        }
        Self {
            table,
            family,
            name,
            messages: vec![Message::new(NEW_CHAIN, family, EXCLUSIVE, about)],
        }
    }

    pub(super) fn rule(&mut self, expressions: &[Attributes]) {
        let about = named(self.table).text(2, self.name).list(4, expressions);
        self.messages
            .push(Message::new(NEW_RULE, self.family, APPEND, about));
    }

    /// Leads what has an address in the map to its door.
    fn judge(&mut self, which: &[Attributes], address: &Attributes, map: &str) {
        self.rule(&[which, &[address.clone(), lead_through(map)]].concat());
    }

    pub(super) fn accept(&mut self, which: &[Attributes]) {
        self.rule(&[which, &[verdict(ACCEPT)]].concat());
    }
}

/// Chains and rules: from here on packets are looked at. The maps cannot be changed any more.
pub(super) fn rules(table: &str) -> Vec<Message> {
    let [input, output] = CHAINS;
    let (ipv4, ipv6) = (ipv4(), ipv6());
    let (solicitation, advertisement) = (icmpv6(135), icmpv6(136));
    let target = transport(8, 16);

    let mut arriving = Chain::new(table, INET, input, PREROUTING);
    arriving.accept(&[meta(IIF), is(&LOOPBACK.to_ne_bytes())]);
    arriving.judge(&ipv4, &network(16, 4), TRAFFIC4);
    arriving.judge(&solicitation, &target, ND);
    arriving.accept(&solicitation);
    arriving.accept(&advertisement);
    arriving.judge(&ipv6, &network(24, 16), TRAFFIC6);

    let mut leaving = Chain::new(table, INET, output, POSTROUTING);
    leaving.accept(&[meta(OIF), is(&LOOPBACK.to_ne_bytes())]);
    leaving.judge(&ipv4, &network(12, 4), TRAFFIC4);
    leaving.judge(&solicitation, &network(8, 16), ND);
    leaving.accept(&solicitation);
    leaving.judge(&advertisement, &target, ND);
    leaving.accept(&advertisement);
    leaving.judge(&ipv6, &network(8, 16), TRAFFIC6);

    let mut arp_in = Chain::new(table, ARP, input, ARP_INPUT);
    arp_in.accept(&[network(14, 4), is_in(VIRTUAL4)]);
    arp_in.judge(&[], &network(24, 4), ARP4);

    let mut arp_out = Chain::new(table, ARP, output, ARP_OUTPUT);
    arp_out.judge(&[], &network(14, 4), ARP4);

    [arriving, leaving, arp_in, arp_out]
        .into_iter()
        .flat_map(|chain| chain.messages)
        .collect()
}
