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

/// SIGKILL of the master's electd.
pub fn electd(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let Subject::Standin(cluster) = subject else {
        return Ok(Figures::new());
    };
    let watch = Watch::start(cluster.net());
    cluster.kill(master, "electd", Signal::SIGKILL)?;
    thread::sleep(Duration::from_secs(2));
    let (outage, verdict) = watch.end(cluster.net());
    Ok(vec![
        ("SIGKILL of electd alone, ms", millis(outage.longest)),
        ("SIGKILL of electd alone, takeovers", verdict.moves() as f64),
    ])
}

/// SIGKILL of every role on every server, each when the one before is ready again.
pub fn restarts(subject: &mut Subject, _: usize, options: &Options) -> Result<Figures, Error> {
    let rows = [
        "restarts of every role, takeovers",
        "restarts of every role, requests lost",
        "restarts of every role, longest outage, ms",
        "restarts of every role, two masters, ms",
    ];
    restart(subject, options.rounds, &singly(), true, rows)
}

/// The same without waiting: as soon as there is a process again, which may not have begun to serve.
pub fn storm(subject: &mut Subject, _: usize, options: &Options) -> Result<Figures, Error> {
    let rows = [
        "kills without pause, takeovers",
        "kills without pause, requests lost",
        "kills without pause, longest outage, ms",
        "kills without pause, two masters, ms",
    ];
    restart(subject, options.rounds, &singly(), false, rows)
}

fn singly() -> Vec<Vec<&'static str>> {
    ROLES.into_iter().map(|role| vec![role]).collect()
}

/// SIGKILL of every two roles of a server at once.
pub fn pairs(subject: &mut Subject, _: usize, options: &Options) -> Result<Figures, Error> {
    let others = |i: usize| ROLES[i + 1..].iter().map(move |two| vec![ROLES[i], two]);
    let each: Vec<_> = (0..ROLES.len()).flat_map(others).collect();
    let rows = [
        "restarts of two roles at once, takeovers",
        "restarts of two roles at once, requests lost",
        "restarts of two roles at once, longest outage, ms",
        "restarts of two roles at once, two masters, ms",
    ];
    restart(subject, options.rounds, &each, true, rows)
}

fn restart(
    subject: &Subject,
    rounds: u32,
    sets: &[Vec<&str>],
    ready: bool,
    rows: [&'static str; 4],
) -> Result<Figures, Error> {
    let Subject::Standin(cluster) = subject else {
        return Ok(Figures::new());
    };
    let pid = |server: usize, role: &str| match &cluster.role(server, role)[..] {
        [one] => Some(one.pid),
        _ => None,
    };
    let patience = Duration::from_secs(30);
    let watch = Watch::start(cluster.net());
    for _ in 0..rounds {
        for server in 0..SERVERS {
            for set in sets {
                let mut before = Vec::new();
                for role in set {
                    let runs = || pid(server, role);
                    before.push(lab::wait_for("the role runs", patience, runs)?);
                }
                for role in set {
                    cluster.kill(server, role, Signal::SIGKILL)?;
                }
                for (role, before) in set.iter().zip(before) {
                    lab::wait_for("the role runs again", patience, || {
                        pid(server, role).filter(|now| {
                            let said = format!("ready, pid {now},");
                            *now != before && (!ready || cluster.log(server).contains(&said))
                        })
                    })?;
                }
            }
        }
    }
    thread::sleep(Duration::from_secs(3));
    let (outage, verdict) = watch.end(cluster.net());
    let values = [
        verdict.moves() as f64,
        outage.lost as f64,
        millis(outage.longest),
        millis(verdict.two),
    ];
    Ok(rows.into_iter().zip(values).collect())
}
