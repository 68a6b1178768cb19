//! What servers know of each other's clocks, and whether it is true: no limit that is told may be wrong, however
//! lopsided and late the network is. Only where clocks run alike: the others here run further apart than crystals do.

use crate::{
    clock::Time,
    judge::CLOCK_WITHIN_BOUND,
    schedule::{NAMES, Part},
    world::World,
};
use ::clock::PeerClock;
use protocol::{
    BootTime,
    local::ring::{FourTimes, HbdToDoctord},
};
use std::collections::VecDeque;

/// As many packets as hbd remembers.
const SENT: usize = 256;

/// See the module; by server and peer.
pub(crate) struct Clocks {
    known: Vec<Vec<PeerClock>>,
    /// When each server's last packets left: by its wall clock, as they say, and by the one that nobody sets.
    sent: Vec<VecDeque<(u64, u64)>>,
    /// Since when nobody has set, stopped or restarted a server's clock.
    even: Vec<Time>,
}

impl Clocks {
    pub fn new(n: usize) -> Self {
        Self {
            known: vec![vec![PeerClock::default(); n]; n],
            sent: vec![VecDeque::new(); n],
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

    /// A packet leaves, and says when.
    pub(crate) fn times_leave(&mut self, i: usize, real: u64) {
        let sent = &mut self.clocks.sent[i];
        sent.truncate(SENT - 1);
        sent.push_front((real, self.servers[i].local(self.now).0));
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
        // As hbd does: by a clock that nobody sets.
        let mut sent = self.clocks.sent[i].iter();
        let Some((_, t1)) = sent.find(|(real, _)| *real == times.t1).copied() else {
            return;
        };
        let sent = own.clock.true_time(BootTime(t1));
        if sent <= self.clocks.even[i].max(self.clocks.even[j]) {
            return;
        }
        let known = &mut self.clocks.known[i][j];
        known.add(FourTimes {
            t1,
            t4: times.t4.wrapping_sub(own.wall),
            ..times
        });
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
