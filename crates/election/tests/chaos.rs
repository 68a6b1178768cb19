//! Everything at once, from a seed: servers killed, stalled, without power and without memory, links cut,
//! slow, lossy and repeating, disks slow, failing and wiped, clocks at different rates, operators with
//! wishes. The judge checks the invariants at every step; when all is whole again there must be a
//! master soon, and it must stay.
//!
//! `STANDIN_SEEDS=from..to cargo test -p standin-election --test chaos` runs other seeds;
//! a failure prints its seed and the last events.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{L, Random, Setup, Sim, ms, secs};
use election::{Input, Mode, Preempt, Wish};
use protocol::wire::beat::Freshness;
use std::{collections::BTreeMap, time::Duration};

/// Simulated time under faults.
const SPAN: Duration = Duration::from_secs(40);

/// Seeds of an ordinary test run.
const SEEDS: std::ops::Range<u64> = 0..300;

struct Chaos {
    sim: Sim,
    random: Random,
    /// Faults are chosen among those below this.
    kinds: u64,
    /// A gate could not be opened somewhere.
    broken: bool,
}

impl Chaos {
    fn new(seed: u64, mode: Mode) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        let (least, most) = if mode == Mode::Majority {
            (3, 5)
        } else {
            (2, 3)
        };
        let servers = usize::try_from(random.between(least, most)).unwrap();
        let witnesses = usize::from(servers == 3 && random.percent(30));
        let setup = Setup {
            servers: servers - witnesses,
            witnesses,
            virtual_servers: if random.percent(70) {
                vec!["web"]
            } else {
                vec!["web", "mail"]
            },
            seed,
            mode,
            ..Setup::default()
        };
        let mut sim = Sim::new(&setup);
        let lossy = random.percent(60);
        let slow = random.percent(20);
        let rude = random.percent(30);
        let (loss, repeat, late) = (random.below(25), random.below(10), random.below(8));
        sim.all_links(|l| {
            if lossy {
                (l.loss, l.repeat, l.late) = (loss, repeat, late);
            }
            if slow {
                l.delay = (200, 15_000);
            }
            if rude {
                (l.signal_loss, l.signal_repeat) = (10, 20);
            }
        });
        if random.percent(40) {
            sim.stalls = (random.between(1, 10), random.between(10, 900));
        }
        for i in 0..sim.servers.len() {
            if random.percent(70) {
                sim.set_rate(i, random.between(900, 1120));
            }
            sim.servers[i].disk_delay = ms(random.between(1, 30));
            if random.percent(20) {
                sim.servers[i].disk_delay = ms(random.between(100, 3000));
            }
            sim.servers[i].gate_delay = (10, random.between(100, 60_000));
            for settings in sim.servers[i].settings.virtual_servers.values_mut() {
                settings.preempt = match random.below(4) {
                    0 => Preempt::Always,
                    1 => Preempt::Fresher,
                    _ => Preempt::Never,
                };
                settings.priority = u32::try_from(random.between(90, 110)).unwrap();
            }
        }
        Self {
            sim,
            random,
            kinds: 24,
            broken: false,
        }
    }

    fn any(&mut self) -> usize {
        usize::try_from(self.random.below(self.sim.servers.len() as u64)).unwrap()
    }

    /// The master, more often than not.
    fn victim(&mut self) -> usize {
        let master = self.sim.master();
        if self.random.percent(60)
            && let Some(master) = master
        {
            master
        } else {
            self.any()
        }
    }

    fn fault(&mut self) {
        let (i, j) = (self.victim(), self.any());
        let n = self.sim.servers.len();
        let after = ms(self.random.between(1, 1500));
        match self.random.below(self.kinds) {
            0 | 1 => {
                self.sim.kill(i);
                let after = if self.random.percent(60) {
                    ms(self.random.between(1, 60))
                } else {
                    after
                };
                self.sim.restart_in(i, after);
            }
            2 => {
                self.sim.power_off(i);
                self.sim.power_on_in(i, after * 3);
            }
            3 | 4 if i != j => self.sim.cut(i, j),
            5 => self.sim.links[i][j].up = false,
            6 => {
                let side: Vec<_> = (0..n).filter(|_| self.random.percent(50)).collect();
                self.sim.partition(&side);
            }
            7 | 8 => self.sim.heal_cuts(),
            9 => self.sim.partition(&[i]),
            10 => {
                let span = ms(self.random.between(1, 1500));
                self.sim.stall(i, span);
            }
            11 => self.sim.doctor_restart_if_on(i),
            12 => {
                let up = self.random.percent(60);
                self.sim.set_interface(i, up);
            }
            13 => self.sim.servers[i].disk_fails = self.random.percent(40),
            14 => {
                let to = self.sim.servers[j].name.clone();
                self.sim.wish(i, Wish::Promote(to, None));
            }
            15 => {
                self.sim.wish(i, Wish::Resign);
            }
            16 => {
                let on = self.random.percent(40);
                self.sim.wish(j, Wish::Maintenance(on));
            }
            17 => {
                let lease = ms([300, 500, 500, 800, 2000][self.random.below(5) as usize]);
                let all = self.random.percent(70);
                for k in (0..n).filter(|k| all || *k == i) {
                    self.sim.settings(k, |s| s.lease = lease);
                }
            }
            18 => {
                self.sim.give(i, Input::Stop);
                self.sim.restart_in(i, after * 2);
            }
            // Without a quorum nobody else need have heard of the terms that were on the disk.
            19 if self.sim.mode == Mode::Majority
                && self.sim.blank_count() == 0
                && self.random.percent(30) =>
            {
                self.sim.power_off(i);
                self.sim.wipe(i);
                self.sim.power_on_in(i, after);
            }
            20 if n > 3 => {
                let to = self.sim.servers[j].name.clone();
                let wish = if self.random.percent(50) {
                    Wish::Add(to)
                } else {
                    Wish::Remove(to)
                };
                self.sim.wish(i, wish);
            }
            21 => {
                let rate = self.random.between(900, 1120);
                self.sim.set_rate(i, rate);
            }
            22 => {
                let run = self.random.below(5);
                let term = protocol::Term(1);
                self.sim.give(j, Input::Fresh(Freshness { term, run }));
            }
            23 => {
                self.broken = true;
                self.sim.give(
                    i,
                    Input::GateBroken("web".parse().unwrap(), "no such device".into()),
                );
            }
            _ => {}
        }
        // Power that never comes back is not what is tested.
        for k in 0..n {
            if !self.sim.servers[k].powered {
                self.sim.power_on_in(k, secs(5));
            } else if self.sim.servers[k].elector.is_none() {
                self.sim.restart_in(k, secs(3));
            }
        }
    }

    fn run(mut self) -> BTreeMap<&'static str, u64> {
        self.sim.power_on_all();
        let pace = self.random.between(50, 1500);
        let end = self.sim.now + SPAN.as_nanos() as u64;
        while self.sim.now < end {
            let pause = self.random.between(1, pace);
            self.sim.run(ms(pause));
            self.fault();
        }
        self.whole_again();
        let n = self.sim.servers.len();
        let names: Vec<_> = self.sim.servers[0]
            .settings
            .virtual_servers
            .keys()
            .cloned()
            .collect();
        for v in &names {
            // Four seconds have passed since all is whole: as long as any lease here and the silence after a
            // power loss. A server whose gate could not be opened leaves it alone for 30 s.
            let most = if self.broken { secs(30) } else { L * 3 };
            self.sim.until(most, |s| s.master_of(v.as_str()).is_some());
        }
        self.sim.run(secs(2));
        let begin = self.sim.now;
        self.sim.run(secs(5));
        for v in &names {
            let masters = (0..n)
                .filter(|i| self.sim.gate_open(*i, v.as_str()))
                .count();
            if masters != 1 {
                self.sim
                    .fail(&format!("EventuallyOwned: {v} has {masters} masters"));
            }
        }
        if self.sim.changes_since(begin) > 0 {
            self.sim.fail("NoFlap: a fit master was replaced");
        }
        assert!((0..n).all(|i| self.sim.servers[i].elector.is_some()));
        let mut seen = self.sim.judge.seen.clone();
        seen.insert("role changes", self.sim.roles.len() as u64);
        seen
    }

    /// No more faults, and everything mended.
    fn whole_again(&mut self) {
        self.sim.heal();
        self.sim.stalls = (0, 0);
        for i in 0..self.sim.servers.len() {
            let s = &mut self.sim.servers[i];
            (s.disk_fails, s.interface_up) = (false, true);
            s.disk_delay = s.disk_delay.min(ms(100));
            self.sim.power_on(i);
            self.sim.start(i);
            self.sim.set_interface(i, true);
            // A server that could serve again after a while would rightly be preferred.
            self.sim.settings(i, |s| {
                s.lease = ms(500);
                s.virtual_servers
                    .values_mut()
                    .for_each(|v| v.preempt = Preempt::Never);
            });
            self.sim.wish(i, Wish::Maintenance(false));
        }
        // Whoever was stopping when the faults ended is started again.
        self.sim.run(secs(4));
        for i in 0..self.sim.servers.len() {
            self.sim.start(i);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("STANDIN_SEEDS") else {
        return SEEDS;
    };
    let (from, to) = text.split_once("..").expect("STANDIN_SEEDS=from..to");
    from.parse().unwrap()..to.parse().unwrap()
}

#[test]
fn under_random_faults_every_invariant_holds_and_afterwards_there_is_a_master() {
    all_seeds(seeds(), Mode::Majority);
}

#[test]
fn without_a_quorum_there_is_one_master_again_after_random_faults() {
    let range = seeds();
    all_seeds(
        range.start..range.start + (range.end - range.start) / 4,
        Mode::None,
    );
}

fn all_seeds(range: std::ops::Range<u64>, mode: Mode) {
    let threads = 2;
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|t| {
                let range = range.clone();
                scope.spawn(move || {
                    let mut seen = BTreeMap::<_, u64>::new();
                    let mut failed = Vec::new();
                    for seed in range.filter(|s| s % threads == t) {
                        match std::panic::catch_unwind(|| Chaos::new(seed, mode).run()) {
                            Ok(one) => one
                                .into_iter()
                                .for_each(|(k, n)| *seen.entry(k).or_default() += n),
                            Err(_) => failed.push(seed),
                        }
                    }
                    (seen, failed)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().unwrap())
            .collect::<Vec<_>>()
    });
    let failed: Vec<_> = results.iter().flat_map(|(_, failed)| failed).collect();
    for (seen, _) in &results {
        println!("{seen:?}");
    }
    assert!(failed.is_empty(), "failing seeds: {failed:?}");
}
