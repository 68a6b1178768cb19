//! A schedule from a seed.
//!
//! Busy stretches, in which faults follow each other and overlap, and rests, in which all must recover. A longer
//! schedule of the same seed begins like a shorter one.

use crate::schedule::{Act, Fault, PARTS, Schedule, Target};
use lab::Profile;
use standin_tests::Random;
use std::time::Duration;

/// So many faults may be there at a time.
const AT_ONCE: usize = 3;
/// Between two things that end a server.
const RECOVERY: Duration = Duration::from_millis(300);
/// Without a gate only the other fences are left: nothing else goes wrong for so long before and after.
const GATE_BACK: Duration = Duration::from_secs(2);

/// The faults of this seed for so long, for a cluster of so many servers.
pub fn generate(seed: u64, length: Duration, servers: usize, profile: Profile) -> Schedule {
    let mut maker = Maker {
        random: Random::new(seed),
        servers,
        lease: profile.lease,
        faults: Vec::new(),
    };
    let mut now = Duration::from_secs(1);
    loop {
        for _ in 0..4 + maker.random.below(7) {
            let Some(fault) = maker.fault(now) else {
                continue;
            };
            if fault.end() > length {
                return Schedule(maker.faults);
            }
            maker.faults.push(fault);
            now += maker.pause();
        }
        let over = maker.faults.iter().map(Fault::end).max();
        let rest = maker.random.between(Duration::ZERO, Duration::from_secs(4));
        now = over.unwrap_or_default().max(now) + rest;
        if now > length {
            return Schedule(maker.faults);
        }
    }
}

struct Maker {
    random: Random,
    servers: usize,
    lease: Duration,
    faults: Vec<Fault>,
}

impl Maker {
    /// From one fault to the next: most often about as long as the servers need, now and then at once.
    fn pause(&mut self) -> Duration {
        match self.random.below(4) {
            0 => self.random.between(Duration::ZERO, self.lease / 2),
            1 => self.random.between(Duration::ZERO, 2 * self.lease),
            _ => self
                .random
                .between(Duration::from_millis(100), Duration::from_millis(1500)),
        }
    }

    /// Shorter than a lease, about as long as a takeover, or long.
    fn span(&mut self) -> Duration {
        let tick = Duration::from_millis(5);
        match self.random.below(3) {
            0 => self.random.between(tick, 2 * self.lease),
            1 => self
                .random
                .between(self.lease, 4 * self.lease + Duration::from_secs(1)),
            _ => self
                .random
                .between(Duration::from_secs(1), Duration::from_secs(5)),
        }
    }

    fn server(&mut self) -> usize {
        self.random.below(self.servers)
    }

    fn target(&mut self) -> Target {
        match self.random.below(5) {
            0 | 1 => Target::Master,
            _ => Target::Server(self.server()),
        }
    }

    fn two(&mut self) -> (usize, usize) {
        let all = self.random.shuffled((0..self.servers).collect());
        (all[0], all[1])
    }

    /// One role, now and then several.
    fn roles(&mut self) -> Vec<&'static str> {
        let count = [1, 1, 1, 2, 2, 3, 4][self.random.below(7)];
        let mut roles = self.random.shuffled(PARTS[1..].to_vec());
        roles.truncate(count);
        roles
    }

    fn groups(&mut self) -> Vec<Vec<usize>> {
        let all = self.random.shuffled((0..self.servers).collect());
        if self.random.below(5) == 0 {
            return all.into_iter().map(|one| vec![one]).collect();
        }
        let (left, right) = all.split_at(1 + self.random.below(self.servers - 1));
        vec![left.to_vec(), right.to_vec()]
    }

    fn act(&mut self) -> Act {
        match self.random.below(100) {
            0..16 => Act::Kill(self.roles()),
            16..20 => Act::Kill(vec!["main"]),
            20..25 => Act::Kill(PARTS.to_vec()),
            25..37 => Act::Stop(self.roles()),
            37..42 => Act::Stop(PARTS.to_vec()),
            42..51 => Act::Power,
            51..57 => Act::Leave,
            57..63 => Act::Cable,
            63..66 => Act::Bounce,
            66..73 => Act::Split(self.groups()),
            73..77 => {
                let (a, b) = self.two();
                Act::Cut(a, b)
            }
            77..82 => {
                let (a, b) = self.two();
                Act::Mute(a, b)
            }
            82..85 => Act::Loss([5, 10, 20, 30, 60][self.random.below(5)]),
            85..89 => Act::Promote,
            89..91 => Act::Resign,
            91..94 => Act::Maintenance,
            94..96 => Act::Restart,
            96..98 => Act::Unaddress,
            _ => Act::Ungate,
        }
    }

    /// One more fault at that time that goes together with those that are there then.
    fn fault(&mut self, at: Duration) -> Option<Fault> {
        let (act, whom, span) = (self.act(), self.target(), self.span());
        let fault = Fault {
            at,
            target: act.aims().then_some(whom),
            span: if act.lasts() { span } else { Duration::ZERO },
            act,
        };
        let there = self.faults.iter().filter(|other| other.end() >= at);
        let goes = there.clone().count() < AT_ONCE
            && self.faults.iter().all(|other| together(other, &fault));
        goes.then_some(fault)
    }
}

/// Whether the later fault may come so soon after (or during) the earlier one.
fn together(earlier: &Fault, later: &Fault) -> bool {
    let gap = |needed: Duration| later.at >= earlier.end() + needed;
    if earlier.act == Act::Ungate || later.act == Act::Ungate {
        return gap(GATE_BACK);
    }
    let same = match (earlier.target, later.target) {
        (Some(Target::Server(a)), Some(Target::Server(b))) => a == b,
        (a, b) => a.is_some() && b.is_some(),
    };
    // A switched-off interface is nothing to boot with, nor to plug a cable into: that may never carry again.
    let off = |act: &Act| matches!(act, Act::Bounce | Act::Cable);
    if same && off(&earlier.act) && off(&later.act) {
        return gap(RECOVERY);
    }
    let away = |act: &Act| act.ends_a_server() || *act == Act::Bounce;
    if same && away(&earlier.act) && away(&later.act) {
        return gap(RECOVERY);
    }
    earlier.act.word() != later.act.word() || !later.act.lasts() || gap(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::{DEFAULT, FASTEST};

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_seed_is_a_schedule_and_a_longer_one_begins_like_a_shorter_one() {
        for seed in 0..50 {
            let short = generate(seed, MINUTE, 3, DEFAULT);
            assert_eq!(short, generate(seed, MINUTE, 3, DEFAULT));
            let long = generate(seed, 5 * MINUTE, 3, DEFAULT);
            assert!(long.0.starts_with(&short.0), "seed {seed}");
            assert!(short.0.len() > 10, "seed {seed}: {short}");
            assert!(short.0.iter().all(|fault| fault.end() <= MINUTE));
        }
        assert_ne!(
            generate(1, MINUTE, 3, DEFAULT),
            generate(2, MINUTE, 3, DEFAULT)
        );
    }

    #[test]
    fn text_is_all_there_is_to_a_schedule() {
        for seed in 0..50 {
            let made = generate(seed, 5 * MINUTE, 5, FASTEST);
            assert_eq!(made.to_string().parse(), Ok(made));
        }
    }

    #[test]
    fn every_kind_of_fault_comes() {
        let mut words: Vec<_> = (0..20)
            .flat_map(|seed| generate(seed, 5 * MINUTE, 3, DEFAULT).0)
            .map(|fault| fault.act.word())
            .collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 16, "{words:?}");
    }

    #[test]
    fn nothing_else_goes_wrong_while_a_gate_may_be_missing() {
        for seed in 0..50 {
            let faults = generate(seed, 5 * MINUTE, 3, DEFAULT).0;
            for (n, one) in faults.iter().enumerate() {
                let alone = |other: &Fault| {
                    other.at >= one.at + GATE_BACK || other.end() + GATE_BACK <= one.at
                };
                let gate = one.act == Act::Ungate;
                let rest = faults.iter().enumerate().filter(|(m, _)| *m != n);
                assert!(
                    !gate || rest.map(|(_, f)| f).all(alone),
                    "seed {seed}: {one}"
                );
            }
        }
    }
}
