//! A failing schedule to a short one that fails the same way.

use crate::{
    schedule::{Act, Schedule},
    world::{Outcome, World},
};

/// Schedules tried at most.
const TRIES_MAX: usize = 600;

/// The shortest schedule found whose outcome violates the same invariant.
pub fn shrink(schedule: &Schedule, invariant: &'static str) -> Schedule {
    let mut best = schedule.clone();
    let mut tries = 0;
    let mut fails = |candidate: &Schedule| {
        tries += 1;
        tries <= TRIES_MAX
            && run(candidate)
                .violation
                .is_some_and(|v| v.invariant == invariant)
    };
    loop {
        let before = best.clone();
        // Without whole runs of acts, then without single ones.
        let mut size = best.acts.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < best.acts.len() {
                let mut candidate = best.clone();
                candidate
                    .acts
                    .drain(at..(at + size).min(candidate.acts.len()));
                if fails(&candidate) {
                    best = candidate;
                } else {
                    at += size;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
        for simpler in simpler(&best) {
            if simpler != best && fails(&simpler) {
                best = simpler;
            }
        }
        if best == before {
            return best;
        }
    }
}

fn run(schedule: &Schedule) -> Outcome {
    World::run(schedule, false)
}

/// The same with one thing less out of the ordinary.
fn simpler(from: &Schedule) -> Vec<Schedule> {
    let plain = Schedule::default();
    let with = |change: &dyn Fn(&mut Schedule)| {
        let mut schedule = from.clone();
        change(&mut schedule);
        schedule
    };
    let mut all = vec![
        with(&|s| (s.loss, s.repeat, s.late) = (0, 0, 0)),
        with(&|s| (s.sealed, s.paths) = (0, 1)),
        with(&|s| s.parts = 0),
        with(&|s| (s.virtuals, s.preempt, s.priorities) = (1, 0, 0)),
        with(&|s| s.blank = 0),
        with(&|s| s.cold = 0),
        with(&|s| (s.servers, s.witnesses) = (3, 0)),
        with(&|s| {
            (s.delay, s.ring, s.gate, s.disk) = (plain.delay, plain.ring, plain.gate, plain.disk)
        }),
        with(&|s| s.calm = s.acts.iter().map(|a| a.at + a.span).max().unwrap_or(0)),
    ];
    for i in 0..from.acts.len() {
        let round = |n: u64| n - n % 1000;
        let act = |change: &dyn Fn(&mut Act)| with(&|s| change(&mut s.acts[i]));
        all.push(act(&|a| {
            (a.at, a.span) = (round(a.at), round(a.span).max(1))
        }));
        all.push(act(&|a| a.span /= 2));
    }
    all
}
