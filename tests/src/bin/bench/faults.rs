//! A server, its cable or its network fails.

use crate::{
    Options,
    subject::{SERVERS, Subject},
    watch::{Figures, Watch, millis, wait_over},
};
use lab::Error;
use std::{thread, time::Duration};

/// The master loses its power.
pub fn power(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let watch = Watch::start(subject.net());
    subject.power_loss(master)?;
    wait_over(subject, master)?;
    let (outage, verdict) = watch.end(subject.net());
    subject.power_on(master)?;
    Ok(vec![
        ("power loss, ms", millis(outage.longest)),
        ("power loss, two masters, ms", millis(verdict.two)),
    ])
}

/// The master's cable is pulled, and plugged in again.
pub fn cable(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let watch = Watch::start(subject.net());
    subject.net().cable(master, false)?;
    wait_over(subject, master)?;
    let (out, _) = watch.end(subject.net());
    let watch = Watch::start(subject.net());
    subject.net().cable(master, true)?;
    thread::sleep(Duration::from_secs(3));
    let (outage, verdict) = watch.end(subject.net());
    Ok(vec![
        ("cable pulled, ms", millis(out.longest)),
        ("cable plugged in again, ms", millis(outage.longest)),
        ("cable plugged in again, takeovers", verdict.moves() as f64),
        (
            "cable plugged in again, two masters, ms",
            millis(verdict.two),
        ),
    ])
}

/// The servers cannot hear the master for ten seconds; clients can reach all.
pub fn partition(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let watch = Watch::start(subject.net());
    let others: Vec<usize> = (0..SERVERS).filter(|s| *s != master).collect();
    subject.net().partition(&[&[master], &others])?;
    thread::sleep(Duration::from_secs(10));
    let (apart, two) = watch.end(subject.net());
    let watch = Watch::start(subject.net());
    subject.net().heal()?;
    thread::sleep(Duration::from_secs(5));
    let (outage, verdict) = watch.end(subject.net());
    Ok(vec![
        ("partition 10 s, ms", millis(apart.longest)),
        ("partition 10 s, two masters, ms", millis(two.two)),
        ("partition healed, ms", millis(outage.longest)),
        ("partition healed, takeovers", verdict.moves() as f64),
    ])
}

/// The master is told to stop.
pub fn stop(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let watch = Watch::start(subject.net());
    subject.stop(master)?;
    wait_over(subject, master)?;
    let (outage, verdict) = watch.end(subject.net());
    subject.power_on(master)?;
    Ok(vec![
        ("graceful stop, ms", millis(outage.longest)),
        ("graceful stop, two masters, ms", millis(verdict.two)),
    ])
}
