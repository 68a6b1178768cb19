//! What servers know of each other's clocks, and whether it is true: no limit that is told may be wrong, however
//! lopsided and late the network is. Only where clocks run alike: the others here run further apart than crystals do.

use crate::{
    clock::Time,
    judge::CLOCK_WITHIN_BOUND,
    schedule::{NAMES, Part},
    world::World,
};
use ::clock::PeerClock;
use protocol::{BootTime, local::ring::HbdToDoctord};

/// See the module; by server and peer.
pub(crate) struct Clocks {
    known: Vec<Vec<PeerClock>>,
    /// Since when nobody has set, stopped or restarted a server's clock.
    even: Vec<Time>,
}

impl Clocks {
    pub fn new(n: usize) -> Self {
        Self {
            known: vec![vec![PeerClock::default(); n]; n],
            even: vec![0; n],
        }
    }
}

impl World {
    /// Something was done to a server's clock that no message tells: what was learned of it and by it counts no more.
    pub(crate) fn clock_disturbed(&mut self, i: usize) {
        // What arrives while hbd stands still is stamped by a clock that has been set since.
        let stalled = self.servers[i].processes[Part::Hbd as usize].stalled_until;
        self.clocks.even[i] = self.now.max(stalled);
        self.clocks.known[i].fill(PeerClock::default());
        for known in &mut self.clocks.known {
            known[i] = PeerClock::default();
        }
    }

    /// Four timestamps have come with a message.
    pub(crate) fn times_arrive(&mut self, i: usize, message: &HbdToDoctord) {
        let (HbdToDoctord::Beat { arrival, .. } | HbdToDoctord::Ack { arrival, .. }) = message
        else {
            return;
        };
        let (Some(j), Some(times)) = (self.index(&arrival.from), arrival.times) else {
            return;
        };
        let (own, peer) = (&self.servers[i], &self.servers[j]);
        if [own, peer]
            .iter()
            .any(|s| s.rate != 1000 || s.paused || !s.powered)
        {
            return;
        }
        let sent = own.clock.true_time(BootTime(times.t1));
        if sent <= self.clocks.even[i].max(self.clocks.even[j]) {
            return;
        }
        let known = &mut self.clocks.known[i][j];
        known.add(times);
        let local = own.local(self.now).0;
        let Some(estimate) = known.estimate(local) else {
            return;
        };
        let truth = peer.real_ns(self.now).wrapping_sub(local) as i64;
        let error = estimate.offset_ns.abs_diff(truth);
        if error > estimate.bound_ns {
            let what = format!(
                "{} takes the clock of {} for {error} ns other than it is, and is sure of {} ns",
                NAMES[i], NAMES[j], estimate.bound_ns
            );
            self.judge.fail(CLOCK_WITHIN_BOUND, what);
        }
        self.judge.count("clock compared");
    }
}
