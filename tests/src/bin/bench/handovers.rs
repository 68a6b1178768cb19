//! Planned handovers.

use crate::{
    Options,
    subject::Subject,
    watch::{Figures, Watch, millis, next, wait_over},
};
use lab::{Error, Outage, Stalls, Verdict};
use standin_tests::Summary;
use std::time::Duration;

/// The next server is made master by command.
fn promote(subject: &mut Subject, master: usize) -> Result<(Outage, Verdict), Error> {
    let watch = Watch::start(subject.net());
    subject.promote(next(master))?;
    wait_over(subject, master)?;
    let seen = watch.end(subject.net());
    subject.demote(next(master))?;
    Ok(seen)
}

/// One handover.
pub fn one(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let (outage, verdict) = promote(subject, master)?;
    Ok(vec![
        ("planned handover, ms", millis(outage.longest)),
        ("planned handover, requests lost", outage.lost as f64),
        ("planned handover, two masters, ms", millis(verdict.two)),
    ])
}

/// A handover in which the machine stood still for longer says little.
const STALL: Duration = Duration::from_millis(2);
/// Requests a millisecond while handovers follow one another.
const RATE: u32 = 10;

/// Handovers one after another under load: what was lost, and how long the slowest answer took.
pub fn many(subject: &mut Subject, _: usize, options: &Options) -> Result<Figures, Error> {
    subject.net().client(0).rate(RATE);
    let figures = one_after_another(subject, options);
    subject.net().client(0).rate(1);
    figures
}

fn one_after_another(subject: &mut Subject, options: &Options) -> Result<Figures, Error> {
    let (mut longest, mut lost, mut two) = (Duration::ZERO, 0, Duration::ZERO);
    let (mut slowest, mut with_loss, mut stalled) = (Vec::new(), 0, 0);
    let stalls = Stalls::start()?;
    for _ in 0..options.rounds {
        let master = subject.settle()?;
        stalls.take();
        let (outage, verdict) = promote(subject, master)?;
        longest = longest.max(outage.longest);
        lost += outage.lost;
        two += verdict.two;
        with_loss += usize::from(outage.lost > 0);
        slowest.push(millis(outage.slowest));
        stalled += usize::from(stalls.take() > STALL);
    }
    let slowest = Summary::of(&slowest);
    Ok(vec![
        ("planned handovers, longest outage, ms", millis(longest)),
        (
            "planned handovers, requests lost each",
            lost as f64 / f64::from(options.rounds.max(1)),
        ),
        ("planned handovers, with any loss", with_loss as f64),
        (
            "planned handovers, slowest answer, median, ms",
            slowest.median,
        ),
        ("planned handovers, slowest answer, ms", slowest.max),
        ("planned handovers, two masters in all, ms", millis(two)),
        (
            "planned handovers, machine stood still > 2 ms",
            stalled as f64,
        ),
    ])
}
