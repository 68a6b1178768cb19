//! What servers say to each other: beats over UDP, signals over TCP.

pub mod beat;
pub mod datagram;
pub mod frame;
pub mod signal;
