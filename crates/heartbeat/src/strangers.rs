//! Addresses of no server of the configuration that send packets of standin: another cluster, a server with an address
//! that the configuration does not know, or one whose packets a router gives another address (NAT).

use protocol::{BootTime, ServerName, local::status::Stranger};
use std::{collections::VecDeque, net::IpAddr, time::Duration};

/// Strangers remembered, the last that were heard.
const STRANGERS_MAX: usize = 8;

/// Seals of strangers are tried so seldom: whoever floods this server costs it nothing.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// The last of them.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    heard: VecDeque<Stranger>,
    tried: Option<BootTime>,
}

impl Strangers {
    /// A packet of standin has come from there. `who` tries its seal; it changes nothing but what is told of it.
    pub(crate) fn heard(
        &mut self,
        now: BootTime,
        address: IpAddr,
        who: impl FnOnce() -> Option<ServerName>,
    ) {
        if self.tried.is_some_and(|at| now.since(at) < TRY_EVERY) {
            return;
        }
        self.tried = Some(now);
        let place = self.heard.iter().position(|s| s.address == address);
        let known = place.and_then(|place| self.heard.remove(place));
        let server = who().or(known.and_then(|s| s.server));
        self.heard.truncate(STRANGERS_MAX - 1);
        self.heard.push_front(Stranger {
            address,
            at: now,
            server,
        });
    }

    /// The newest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Stranger> {
        self.heard.iter()
    }
}
