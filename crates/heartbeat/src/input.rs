//! What the core is told.

use protocol::{BootTime, ServerName, local::ring::ElectdToHbd, wire::datagram::Packet};
use std::{net::IpAddr, time::Duration};

/// A datagram with such a message has less than 1,200 bytes, seal and all, and passes any link in one piece: nobody needs
/// to put IP fragments together, which some networks drop (RFC 8900; RFC 8085, section 3.2).
pub const PART_MAX: usize = 1024;

/// What the configuration says to hbd.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This server.
    pub me: ServerName,
    /// Its addresses, in the order of the configuration.
    pub addresses: Vec<IpAddr>,
    /// Beats that waited longer than this are dropped; hellos into the void keep this distance.
    pub heartbeat: Duration,
    /// Longest message in bytes that need not travel in parts: [`PART_MAX`].
    pub part_max: usize,
    /// All other servers.
    pub peers: Vec<PeerSettings>,
}

/// One other server.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// Its name.
    pub name: ServerName,
    /// Its addresses, in the order of the configuration.
    pub addresses: Vec<IpAddr>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A datagram arrived.
    Datagram {
        /// From this address.
        source: IpAddr,
        /// At this address of ours.
        local: IpAddr,
        /// Its contents.
        bytes: &'a [u8],
        /// When the kernel received it.
        at: BootTime,
        /// The same by CLOCK_REALTIME, in nanoseconds since 1970.
        real_ns: u64,
        /// The same by CLOCK_MONOTONIC_RAW in nanoseconds, which nobody sets or slews; none if that is not certain.
        raw_ns: Option<u64>,
    },
    /// The same, its seal opened already: for whoever carries packets where no stranger can be.
    Opened {
        /// From this address.
        source: IpAddr,
        /// At this address of ours.
        local: IpAddr,
        /// In which version of the protocol.
        version: u8,
        /// What was sealed.
        packet: Packet,
        /// When it arrived.
        at: BootTime,
        /// The same by CLOCK_REALTIME, in nanoseconds since 1970.
        real_ns: u64,
        /// The same by CLOCK_MONOTONIC_RAW in nanoseconds, which nobody sets or slews; none if that is not certain.
        raw_ns: Option<u64>,
    },
    /// A datagram longer than any packet arrived from this address and was not read.
    TooLong(IpAddr),
    /// electd wants these sent; what goes to the same server leaves together.
    Send(Vec<ElectdToHbd>),
    /// The time told by `poll_timeout` has come.
    Timeout {
        /// Fresh random bits for challenges, never given before.
        fresh: [u8; 16],
    },
}
