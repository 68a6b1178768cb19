//! What the core wants done.

use crate::Refusal;
use protocol::{ServerName, local::ring::HbdToDoctord, wire::datagram::Packet};
use std::net::IpAddr;

/// One thing to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Seal with [`crate::Heartbeat::seal`] and send the same bytes over every path named.
    Transmit(Transmit),
    /// Tell doctord.
    Deliver(HbdToDoctord),
    /// A peer's incarnation proved itself; for the log.
    Met(ServerName),
    /// Two servers run under one name: an incarnation that another has replaced answered a challenge made after that.
    /// An alarm, repeated once a minute at most as long as it lasts.
    Doubled {
        /// The name.
        server: ServerName,
        /// The address from which the former incarnation, which is refused, answered.
        former: IpAddr,
        /// The address from which the present one was last heard.
        present: Option<IpAddr>,
    },
    /// Something was refused and counted; for the log, rate-limited.
    Refused {
        /// The address it came from.
        source: IpAddr,
        /// The reason.
        why: Refusal,
    },
}

/// One packet to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub to: ServerName,
    /// Over these paths.
    pub paths: Vec<Path>,
    /// In this version of the protocol.
    pub version: u8,
    /// The packet, its time of sending not yet filled in.
    pub packet: Packet,
}

/// From an address of ours to an address of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Place in the order of the addresses in the configuration, from zero.
    pub number: u8,
    /// Ours.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
}
