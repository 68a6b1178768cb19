//! Planned handovers.

use crate::{
    Options,
    subject::Subject,
    watch::{Figures, Watch, millis, next, wait_over},
};
use lab::{Error, Outage, Verdict};
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

/// Handovers one after another; how long the longest outage was and how many requests were lost in all.
pub fn many(subject: &mut Subject, _: usize, options: &Options) -> Result<Figures, Error> {
    let (mut longest, mut lost, mut two) = (Duration::ZERO, 0, Duration::ZERO);
    for _ in 0..options.rounds {
        let master = subject.settle()?;
        let (outage, verdict) = promote(subject, master)?;
        longest = longest.max(outage.longest);
        lost += outage.lost;
        two += verdict.two;
    }
    Ok(vec![
        ("planned handovers, longest outage, ms", millis(longest)),
        (
            "planned handovers, requests lost each",
            lost as f64 / f64::from(options.rounds.max(1)),
        ),
        ("planned handovers, two masters in all, ms", millis(two)),
    ])
}
