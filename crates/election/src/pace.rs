//! When beats and acknowledgements leave: together, so that an idle cluster wakes up once an interval and
//! not once a message.
//!
//! ```text
//!   master (leads)      ──beat──▶ ...................................... ──beat──▶     every 15/16 h
//!   slave  (follows)              ──ack, beat──▶                                ──ack, beat──▶
//! ```
//!
//! The leader is the server first by name that claims a virtual server. Whoever hears it beats in the same turn
//! in which it acknowledges, if its own beat would be due soon. Nobody waits for the leader: a follower's own
//! timer stands at h after its last beat, as if there were no leader, and a lead that is lost costs nothing.
//! Since the leader's interval is a little shorter, its beat comes before that timer, from whatever phase the
//! two began with. Beats are h apart at most, seldom 3/4 h, never less.
//!
//! An acknowledgement that answers a claim leaves at once: a lease hangs on it. On any other nothing hangs, and
//! it leaves with the next beat.

use crate::{elector::Elector, output::Output};
use protocol::{BootTime, ServerName, wire::beat::Ack};
use std::time::Duration;

/// Most acknowledgements that wait, for each peer.
const HELD_MAX: usize = 4;

impl Elector {
    /// How long after one beat of this server the next is due.
    pub(crate) fn beat_interval(&self, now: BootTime) -> Duration {
        let heartbeat = self.settings.heartbeat;
        if self.leader(now) == Some(&self.settings.me) {
            heartbeat - heartbeat / 16
        } else {
            heartbeat
        }
    }

    /// The server first by name that claims anything.
    fn leader(&self, now: BootTime) -> Option<&ServerName> {
        let recent = |at: BootTime| now.since(at) <= 2 * self.settings.heartbeat;
        let claiming = self.peers.iter().filter(|(_, p)| p.claims);
        let heard = claiming.filter(|(_, p)| p.heard.is_some_and(recent));
        let master = self.virtuals.values().any(|v| v.mastership.is_some());
        let own = master.then_some(&self.settings.me);
        heard.map(|(name, _)| name).chain(own).min()
    }

    /// A beat of `from` was heard: the own one leaves in the same turn, if that is the leader and it is nearly time.
    pub(crate) fn follow(&mut self, now: BootTime, from: &ServerName) {
        let soon = now + self.settings.heartbeat / 4 >= self.next_beat;
        if soon && self.leader(now) == Some(from) {
            self.next_beat = self.next_beat.min(now);
        }
    }

    /// One acknowledgement for each beat; `urgent` if the beat claimed anything.
    pub(crate) fn acknowledge(&mut self, now: BootTime, to: ServerName, ack: Ack, urgent: bool) {
        if urgent {
            return self.outputs.push_back(Output::Ack { to, ack });
        }
        self.held.push((to, now, ack));
        if self.held.len() > HELD_MAX * self.peers.len() {
            self.release_held(now); // Their beats come much faster than ours.
        }
    }

    /// A beat leaves, and with it what waited for that.
    pub(crate) fn release_held(&mut self, now: BootTime) {
        for (to, since, mut ack) in self.held.drain(..) {
            ack.waited = now.since(since);
            self.outputs.push_back(Output::Ack { to, ack });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Input, Memory, Mode, Reservation, Settings, Start};
    use protocol::{Instance, RosterVersion};
    use std::collections::BTreeMap;

    #[test]
    fn the_wait_for_a_beat_is_no_part_of_the_round_trip() {
        let (h, mut now) = (Duration::from_millis(100), BootTime(1_000_000_000_000));
        let servers = ["alpha", "beta", "gamma"].map(|n| n.parse::<ServerName>().unwrap());
        let settings = Settings {
            me: servers[2].clone(),
            heartbeat: h,
            lease: 5 * h,
            margin: Duration::ZERO,
            mode: Mode::Majority,
            witness: false,
            servers: servers.to_vec(),
            virtual_servers: BTreeMap::new(),
            config_hash: 1,
        };
        let start = Start {
            instance: Instance(1),
            seed: 1,
            reservation: Some(Reservation::first(servers.to_vec(), None, 5 * h)),
            memory: Some(Memory::default()),
            gates: Vec::new(),
        };
        let mut elector = Elector::new(settings, start, now);
        let mut answer = |waited: Duration| {
            let beat = std::iter::from_fn(|| elector.poll_output()).find_map(|o| match o {
                Output::Beat(beat) => Some(beat),
                _ => None,
            });
            let ack = Ack {
                instance: Instance(1),
                number: beat.unwrap().number,
                waited,
                answers: Vec::new(),
                roster: RosterVersion::default(),
            };
            let from = servers[0].clone();
            now = now + h;
            elector.handle(now, Input::Ack { from, ack });
            elector.skew()
        };
        for _ in 0..100 {
            assert_eq!(answer(h * 9 / 10), h / 2, "four round trips of h / 10");
        }
        assert!(answer(Duration::ZERO) > h / 2);
    }
}
