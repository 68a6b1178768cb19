//! What only passes through: a packet of a virtual address that this server forwards to, or from, the server that has
//! the address. It is answered elsewhere, so no deadline is for it. (Containers, routed guests and tunnels of a server
//! that is not master reach the address by this.)
//!
//! Arriving for a virtual address whose deadline has passed, a packet goes on if the kernel's routes lead it away from
//! here, and bears the note [`ONWARD`] from then on. Whoever translates its destination (NAT) would have it answered
//! here after all: on its way out it is dropped if it is for no virtual address any more, and when it is delivered
//! here, the backstop drops it, which knows it by its priority. What arrives *from* a virtual address bears the note
//! [`FROM_VIRTUAL`], and may leave as it came. An answer of this server, or of a container behind a translation, bears
//! none: it is under its deadline as ever.
//!
//! The notes are in `tc_index`, which the kernel takes along; what comes in from outside bears none.

use super::{
    assembler::{Assembler, R0, R1, R2, R3, R4, R6, R7, R8, R10},
    program::{FOR_US, INTERFACE, KEY, KIND, MAP_LOOKUP, load},
};

/// What is done with packets of a virtual address that another server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transit {
    /// They pass if this server only forwards them. Needs the backstop.
    Passes,
    Drops,
}

/// Notes in `tc_index`: for a virtual address; from one.
const ONWARD: i32 = 0x5d12;
const FROM_VIRTUAL: i32 = 0x5d11;

/// The priority of what bears [`ONWARD`], for nftables, which does not see `tc_index`. IPv4 sets another one when it
/// forwards, and the gate when the packet leaves.
pub(super) const ONWARD_PRIORITY: u32 = 0x5d12_5d12;

/// Of the context.
const PRIORITY: i16 = 32;
const NOTE: i16 = 44;

/// A function of the kernel: where a packet would be forwarded.
const FIB_LOOKUP: i32 = 69;
/// Its answers: forwarded; forwarded once the neighbour is known; forwarded if it were shorter, as the sender will hear.
const FORWARDED: i32 = 0;
const NO_NEIGHBOUR: i32 = 7;
const TOO_LONG: i32 = 8;

/// Its question, on the stack (`struct bpf_fib_lookup`).
const QUESTION: i16 = -112;
const QUESTION_LENGTH: i16 = 64;
const QUESTION_INTERFACE: i16 = 8;
const QUESTION_FROM: i16 = 16;
const QUESTION_TO: i16 = 32;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Where the addresses stand in a header.
const FROM4: i32 = 12;
const TO4: i32 = 16;
const FROM6: i32 = 8;
const TO6: i32 = 24;

fn note(a: &mut Assembler, note: i32) {
    a.set(R1, note).store32(R6, NOTE, R1);
}

/// Arriving: a note that somebody else has written, or that is left from another network, is none.
pub(super) fn forget(a: &mut Assembler) {
    a.load32(R1, R6, NOTE)
        .if_equal(R1, ONWARD, "forget")
        .if_not(R1, FROM_VIRTUAL, "begin")
        .label("forget");
    note(a, 0);
    a.label("begin");
}

/// Arriving, for a virtual address, and late: on to "pass" if it is only forwarded, else to "drop".
pub(super) fn on_its_way(a: &mut Assembler, header: i32, ipv6: i32, protocol: i16) {
    a.label("late")
        .load32(R1, R6, KIND)
        .if_not(R1, FOR_US, "drop");
    for at in (QUESTION..QUESTION + QUESTION_LENGTH).step_by(8) {
        a.put64(R10, at, 0);
    }
    a.load32(R1, R6, INTERFACE)
        .store32(R10, QUESTION + QUESTION_INTERFACE, R1)
        .load32(R1, R6, protocol)
        .if_equal(R1, ipv6, "late6");
    let family = |family| i32::from_ne_bytes([family, 0, 0, 0]);
    a.put32(R10, QUESTION, family(IPV4));
    load(a, header + FROM4, QUESTION + QUESTION_FROM, 4);
    load(a, header + TO4, QUESTION + QUESTION_TO, 4);
    a.go("whither").label("late6");
    a.put32(R10, QUESTION, family(IPV6));
    load(a, header + FROM6, QUESTION + QUESTION_FROM, 16);
    load(a, header + TO6, QUESTION + QUESTION_TO, 16);
    a.label("whither")
        .copy(R1, R6)
        .copy(R2, R10)
        .add(R2, QUESTION.into())
        .set(R3, QUESTION_LENGTH.into())
        .set(R4, 0)
        .call(FIB_LOOKUP)
        .if_equal(R0, FORWARDED, "onward")
        .if_equal(R0, NO_NEIGHBOUR, "onward")
        .if_not(R0, TOO_LONG, "drop")
        .label("onward");
    note(a, ONWARD);
    a.set(R1, ONWARD_PRIORITY.cast_signed())
        .store32(R6, PRIORITY, R1)
        .go("pass");
}

/// Arriving, and for no virtual address: notes whether it is from one. `R7` holds the EtherType, `R8` whether it is
/// ARP or neighbour discovery (0).
pub(super) fn from_virtual(a: &mut Assembler, addresses: i32, header: i32, ipv6: i32) {
    a.label("no door")
        .if_equal(R8, 0, "pass")
        .if_equal(R7, ipv6, "from6");
    load(a, header + FROM4, KEY + 12, 4);
    a.go("from").label("from6");
    load(a, header + FROM6, KEY, 16);
    a.label("from");
    find(a, addresses);
    a.if_equal(R0, 0, "pass");
    note(a, FROM_VIRTUAL);
    a.go("pass");
}

/// Leaving, from a virtual address, and late: on to "pass" if it came so, else to "drop".
pub(super) fn came_from_virtual(a: &mut Assembler) {
    a.label("late")
        .load32(R1, R6, NOTE)
        .if_not(R1, FROM_VIRTUAL, "drop")
        .go("pass");
}

/// Leaving: what came in for a virtual address must be for one still. Once it has left it is a packet like any other.
pub(super) fn is_translated_v4(a: &mut Assembler, addresses: i32, header: i32) {
    a.load32(R1, R6, NOTE).if_not(R1, ONWARD, "own4");
    load(a, header + TO4, KEY + 12, 4);
    a.put64(R10, KEY, 0)
        .put32(R10, KEY + 8, 0xffffu32.to_be().cast_signed());
    still_virtual(a, addresses);
    a.label("own4");
}

/// The same for IPv6.
pub(super) fn is_translated_v6(a: &mut Assembler, addresses: i32, header: i32) {
    a.load32(R1, R6, NOTE).if_not(R1, ONWARD, "own6");
    load(a, header + TO6, KEY, 16);
    still_virtual(a, addresses);
    a.label("own6");
}

fn still_virtual(a: &mut Assembler, addresses: i32) {
    find(a, addresses);
    a.if_equal(R0, 0, "drop");
    note(a, 0);
    a.store32(R6, PRIORITY, R1);
}

fn find(a: &mut Assembler, addresses: i32) {
    a.map(R1, addresses)
        .copy(R2, R10)
        .add(R2, KEY.into())
        .call(MAP_LOOKUP);
}
