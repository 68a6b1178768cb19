//! Since when a majority of the servers has been left alone: only then may one ask that clients are served.

use std::time::Duration;

/// What is undisturbed since when. A disturbance that lasts is counted in and out; several may overlap.
#[derive(Clone, Debug)]
pub struct Calm {
    servers: Vec<Spot>,
    /// Whether the first hears the second, by number.
    links: Vec<Vec<Spot>>,
    /// Servers that only vote, each as often as told so.
    voters: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Spot {
    troubles: u32,
    since: Duration,
}

impl Spot {
    fn change(&mut self, now: Duration, trouble: bool) {
        self.since = now;
        self.troubles = if trouble {
            self.troubles + 1
        } else {
            self.troubles.saturating_sub(1)
        };
    }

    fn well(&self) -> Option<Duration> {
        (self.troubles == 0).then_some(self.since)
    }
}

impl Calm {
    /// All is well from the beginning.
    pub fn new(servers: usize) -> Self {
        Self {
            servers: vec![Spot::default(); servers],
            links: vec![vec![Spot::default(); servers]; servers],
            voters: vec![0; servers],
        }
    }

    /// Something is done to a server, and over at once.
    pub fn touch(&mut self, server: usize, now: Duration) {
        self.servers[server].since = now;
    }

    /// Something begins, or ends, to be wrong with a server.
    pub fn server(&mut self, server: usize, now: Duration, trouble: bool) {
        self.servers[server].change(now, trouble);
    }

    /// Something begins, or ends, to keep `to` from hearing `from`.
    pub fn link(&mut self, from: usize, to: usize, now: Duration, trouble: bool) {
        self.links[to][from].change(now, trouble);
    }

    /// A server begins, or ends, to only vote.
    pub fn votes_only(&mut self, server: usize, now: Duration, only: bool) {
        let count = &mut self.voters[server];
        *count = if only {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        self.touch(server, now);
    }

    /// The machine itself stood still.
    pub fn stalled(&mut self, now: Duration) {
        self.servers.iter_mut().for_each(|spot| spot.since = now);
    }

    /// Since when some majority, one of which may be master, has been well and connected; none if none is.
    pub fn since(&self) -> Option<Duration> {
        let all = self.servers.len();
        let sets = (1u32..1 << all).filter(|set| set.count_ones() as usize * 2 > all);
        let calm = |set: u32| {
            let members = || (0..all).filter(move |server| set & (1 << server) != 0);
            if members().all(|server| self.voters[server] > 0) {
                return None;
            }
            let spots = members().flat_map(|to| {
                let links = members().filter(move |from| *from != to);
                let links = links.map(move |from| &self.links[to][from]);
                links.chain([&self.servers[to]])
            });
            spots
                .map(Spot::well)
                .try_fold(Duration::ZERO, |latest, since| {
                    since.map(|since| latest.max(since))
                })
        };
        sets.filter_map(calm).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_majority_is_calm_since_the_last_of_its_troubles() {
        let mut calm = Calm::new(3);
        assert_eq!(calm.since(), Some(at(0)));
        calm.server(0, at(1), true);
        assert_eq!(calm.since(), Some(at(0)), "the other two are well");
        calm.touch(1, at(2));
        assert_eq!(calm.since(), Some(at(2)));
        calm.server(2, at(3), true);
        assert_eq!(calm.since(), None, "one of three is no majority");
        calm.server(2, at(4), true);
        calm.server(2, at(5), false);
        assert_eq!(calm.since(), None, "it has another trouble");
        calm.server(2, at(6), false);
        assert_eq!(calm.since(), Some(at(6)));
        calm.stalled(at(7));
        assert_eq!(calm.since(), Some(at(7)));
    }

    #[test]
    fn a_majority_hears_each_other_both_ways_and_has_somebody_to_be_master() {
        let mut calm = Calm::new(3);
        calm.link(0, 1, at(1), true);
        calm.link(2, 0, at(2), true);
        assert_eq!(calm.since(), Some(at(0)), "1 and 2 hear each other");
        calm.link(2, 1, at(3), true);
        assert_eq!(calm.since(), None);
        calm.link(0, 1, at(4), false);
        assert_eq!(calm.since(), Some(at(4)));
        calm.votes_only(0, at(5), true);
        calm.votes_only(1, at(6), true);
        assert_eq!(calm.since(), None, "2, which could be master, is cut off");
        calm.votes_only(1, at(7), false);
        assert_eq!(calm.since(), Some(at(7)));
    }
}
