//! Processes killed, stopped and started again.

use crate::{
    Options,
    subject::{ROLES, SERVERS, Subject},
    watch::{Figures, Watch, millis, wait_over},
};
use lab::{Error, Signal};
use std::{thread, time::Duration};

/// SIGKILL of all processes of the master at once.
pub fn killed(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let watch = Watch::start(subject.net());
    subject.signal(master, None, Signal::SIGKILL)?;
    wait_over(subject, master)?;
    thread::sleep(Duration::from_secs(5));
    let (outage, verdict) = watch.end(subject.net());
    subject.power_loss(master)?;
    subject.power_on(master)?;
    Ok(vec![
        ("SIGKILL of all of the master, ms", millis(outage.longest)),
        (
            "SIGKILL of all of the master, two masters in 5 s, ms",
            millis(verdict.two),
        ),
    ])
}

macro_rules! stopped_rows {
    ($what:literal) => {
        [
            concat!("SIGSTOP of ", $what, " 10 s, ms"),
            concat!("SIGSTOP of ", $what, " ends, ms"),
            concat!("SIGSTOP of ", $what, ", two masters, ms"),
            concat!("SIGSTOP of ", $what, ", takeovers"),
        ]
    };
}

/// SIGSTOP for ten seconds of each role in turn, then of all of the master, and what its waking does.
pub fn stopped(subject: &mut Subject, _: usize, _: &Options) -> Result<Figures, Error> {
    let each = [
        stopped_rows!("hbd"),
        stopped_rows!("listend"),
        stopped_rows!("doctord"),
        stopped_rows!("electd"),
    ];
    let mut figures = Figures::new();
    if let Subject::Standin(_) = subject {
        for (role, rows) in ROLES.into_iter().zip(each) {
            figures.extend(stop_and_wake(subject, Some(role), rows)?);
        }
    }
    figures.extend(stop_and_wake(
        subject,
        None,
        stopped_rows!("all of the master"),
    )?);
    Ok(figures)
}

fn stop_and_wake(
    subject: &Subject,
    role: Option<&str>,
    rows: [&'static str; 4],
) -> Result<Figures, Error> {
    let master = subject.settle()?;
    let watch = Watch::start(subject.net());
    subject.signal(master, role, Signal::SIGSTOP)?;
    thread::sleep(Duration::from_secs(10));
    let (outage, verdict) = watch.end(subject.net());
    let woken = Watch::start(subject.net());
    subject.signal(master, role, Signal::SIGCONT)?;
    thread::sleep(Duration::from_secs(3));
    let (after, later) = woken.end(subject.net());
    let values = [
        millis(outage.longest),
        millis(after.longest),
        millis(verdict.two + later.two),
        (verdict.moves() + later.moves()) as f64,
    ];
    Ok(rows.into_iter().zip(values).collect())
}

/// SIGKILL of every role on every server, one after another; the cluster beats again before the next.
pub fn restarts(subject: &mut Subject, _: usize, options: &Options) -> Result<Figures, Error> {
    let Subject::Standin(cluster) = subject else {
        return Ok(Figures::new());
    };
    let watch = Watch::start(cluster.net());
    for _ in 0..options.rounds {
        for server in 0..SERVERS {
            for role in ROLES {
                let pid = || match &cluster.role(server, role)[..] {
                    [one] => Some(one.pid),
                    _ => None,
                };
                let before = lab::wait_for("the role runs", Duration::from_secs(30), pid)?;
                cluster.kill(server, role, Signal::SIGKILL)?;
                lab::wait_for("the role runs again", Duration::from_secs(30), || {
                    pid().filter(|now| *now != before)
                })?;
                thread::sleep(cluster.spec().profile.heartbeat * 2);
            }
        }
    }
    thread::sleep(Duration::from_secs(3));
    let (outage, verdict) = watch.end(cluster.net());
    Ok(vec![
        ("restarts of every role, takeovers", verdict.moves() as f64),
        ("restarts of every role, requests lost", outage.lost as f64),
        (
            "restarts of every role, two masters, ms",
            millis(verdict.two),
        ),
    ])
}
