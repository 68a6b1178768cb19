//! The other servers' clocks, from the timestamps that every beat brings.

use clock::PeerClock;
use config::Config;
use daemon::Limiter;
use protocol::{
    BootTime, ServerName,
    local::{ring::Arrival, status::OffsetStatus},
};
use std::{collections::BTreeMap, time::Duration};

/// Distance between two looks, and between two log lines about the same server.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// See the module.
pub struct Clocks {
    max_skew: Duration,
    peers: BTreeMap<ServerName, PeerClock>,
    /// Who is too far off, in words.
    notes: BTreeMap<ServerName, String>,
    look_at: BootTime,
    limiter: Limiter,
    /// For those who were set.
    set: Limiter,
}

impl Clocks {
    pub fn new(config: &Config, me: &ServerName) -> Self {
        let mut clocks = Self {
            max_skew: config.time.max_skew,
            peers: BTreeMap::new(),
            notes: BTreeMap::new(),
            look_at: BootTime(0),
            limiter: Limiter::new(EVERY.1),
            set: Limiter::new(EVERY.1),
        };
        clocks.configure(config, me);
        clocks
    }

    /// Who stays is remembered.
    pub fn configure(&mut self, config: &Config, me: &ServerName) {
        self.max_skew = config.time.max_skew;
        let mut before = std::mem::take(&mut self.peers);
        let peer = |s: &config::Server| {
            let known = before.remove(&s.name).unwrap_or_default();
            (s.name.clone(), known)
        };
        self.peers = config.peers(me).map(peer).collect();
        self.notes.retain(|name, _| self.peers.contains_key(name));
    }

    /// What arrived may bring timestamps along. Whether they show that the clock was set.
    pub fn heard(&mut self, now: BootTime, arrival: &Arrival) -> bool {
        let (Some(peer), Some(times)) = (self.peers.get_mut(&arrival.from), arrival.times) else {
            return false;
        };
        let before = peer.steps();
        peer.add(times);
        let set = peer.steps() > before;
        if set && self.set.allow(now, arrival.from.as_str()).is_some() {
            log::warn!(
                "somebody has set the clock of {}, or slews it faster than 500 ppm: it is measured anew",
                arrival.from
            );
        }
        set
    }

    /// Every other server's clock minus this server's, where known.
    pub fn offsets(&self) -> Vec<(ServerName, OffsetStatus)> {
        let (raw, lead) = daemon::raw_and_lead_ns();
        let offset = |(name, peer): (&ServerName, &PeerClock)| {
            let estimate = peer.estimate(raw)?;
            let offset = OffsetStatus {
                offset_ns: estimate.offset_ns.saturating_sub(lead),
                bound_ns: estimate.bound_ns,
                rate_ppb: estimate.rate_ppb,
            };
            Some((name.clone(), offset))
        };
        self.peers.iter().filter_map(offset).collect()
    }

    /// Looks for clocks that are certainly too far off, now and then.
    pub fn look(&mut self, now: BootTime) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + EVERY.0;
        let (far, near): (Vec<_>, Vec<_>) = self
            .offsets()
            .into_iter()
            .partition(|(_, o)| o.least_ns() > nanos(self.max_skew));
        for (name, _) in near {
            if self.notes.remove(&name).is_some() {
                log::info!("the clock of {name} is within max_skew of this server's again");
            }
        }
        for (name, offset) in far {
            let note = format!(
                "the clock of {name} is {} of this server's, more than max_skew: no modification time decides \
                 between the two",
                offset.in_words()
            );
            if self.limiter.allow(now, name.as_str()).is_some() {
                log::error!("{note}; see `standin check`");
            }
            self.notes.insert(name, note);
        }
    }

    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.notes.values()
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
