//! A whole cluster on one machine: real daemons on real, namespaced networks.
//!
//! The question this crate answers is "what do clients see when something breaks?", for any kind of break and
//! for any program that moves an address. So it builds a network, breaks it, and measures from outside; it
//! knows nothing of elections.
//!
//! ```text
//!    alpha   bravo   charlie ...      one network namespace each, eth0 = 192.0.2.11, .12, .13 ...
//!      |       |       |
//!    ==+=======+=======+====== bridge ==+======== (in the lab's own namespace; faults are nftables rules here)
//!                              |        |
//!                            client   judge (one interface for every server)
//! ```
//!
//! - [`enter`] puts the program into namespaces of its own, without root where the system allows it. The
//!   program is a child of the new process namespace's first process: when the lab ends, for whatever reason,
//!   every process, interface and file of it is gone.
//! - [`Net`] is the bridge, the hosts and the faults: cable, partition, one-way loss, lost beats.
//! - [`Client`] sends a request each millisecond to the virtual address as any program would, through the
//!   kernel's neighbour cache, and tells the longest time without answers.
//! - [`Crowd`] is hundreds of such clients, each a host of its own.
//! - [`Judge`] asks every server each millisecond for the virtual address *directly by its MAC address*, past
//!   every cache, and so sees two holders even where each client sees only one.
//! - [`Sweep`] is a client of thousands of addresses.
//! - [`Recorder`] and [`Forger`] are what an attacker on the same network has.
//! - [`Stalls`] tells how long this machine itself stood still, without which no figure here means anything.
//! - [`Cluster`] runs standin's daemons on the hosts, with files to keep alike if asked to; [`Keepalived`] runs keepalived there, for comparison.
//!
//! It does not simulate: time is real time, and a figure is worth what the machine's stalls leave of it.

mod client;
mod cluster;
mod crowd;
mod echo;
mod enter;
mod error;
mod files;
mod judge;
mod keepalived;
mod mac_watch;
mod net;
mod pace;
mod process;
mod stall;
mod sweep;
mod wire;

pub use client::{Client, Outage};
pub use cluster::{Cluster, DEFAULT, FAST, FASTEST, LONG, PORT, Profile, Spec};
pub use crowd::{Crowd, Return};
pub use enter::{FOLDER, enter};
pub use error::Error;
pub use judge::{Answered, Holding, Judge, Verdict};
pub use keepalived::Keepalived;
pub use mac_watch::MacWatch;
pub use net::{Faults, Host, NAMES, Net, Wiring};
pub use nix::sys::signal::Signal;
pub use pace::clock;
pub use process::{Process, Usage, binary};
pub use stall::{Hogs, Spinners, Stalls};
pub use sweep::{Sweep, Swept};
pub use wire::{Datagram, Forger, Recorder, Stream};

use std::time::{Duration, Instant};

/// Asks `probe` until it gives something; an error naming `what` after `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            return Err(Error::Late {
                what: what.to_owned(),
                limit,
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
