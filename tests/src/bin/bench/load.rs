//! No fault at all: a lossy network, a busy machine, an idle one.

use crate::{
    Options,
    subject::{SERVERS, Subject},
    watch::{Figures, Watch, millis},
};
use lab::{Error, Hogs, Process};
use std::{
    thread,
    time::{Duration, Instant},
};

/// One beat in five is lost, on every way.
pub fn loss(subject: &mut Subject, _: usize, options: &Options) -> Result<Figures, Error> {
    let watch = Watch::start(subject.net());
    subject.net().loss(20)?;
    thread::sleep(options.loss);
    let (outage, verdict) = watch.end(subject.net());
    subject.net().heal()?;
    Ok(vec![
        ("20 % of beats lost, takeovers", verdict.moves() as f64),
        ("20 % of beats lost, two masters, ms", millis(verdict.two)),
        ("20 % of beats lost, requests lost", outage.lost as f64),
    ])
}

/// Eight processes that want every CPU, each in a session of its own.
pub fn hogs(subject: &mut Subject, _: usize, _: &Options) -> Result<Figures, Error> {
    let rows = [
        "8 hogs 30 s, takeovers",
        "8 hogs 30 s, two masters, ms",
        "8 hogs 30 s, longest outage, ms",
        "8 hogs 30 s, longest gap between beats, ms",
    ];
    let span = Duration::from_secs(30);
    crowded(subject, span, || Ok([Hogs::start(8, span)?]), rows)
}

/// The same for longer, and two processes that write to the disk as fast as it will take it.
pub fn busy(subject: &mut Subject, _: usize, _: &Options) -> Result<Figures, Error> {
    let rows = [
        "busy machine 60 s, takeovers",
        "busy machine 60 s, two masters, ms",
        "busy machine 60 s, longest outage, ms",
        "busy machine 60 s, longest gap between beats, ms",
    ];
    let span = Duration::from_secs(60);
    let load = || Ok([Hogs::start(8, span)?, Hogs::writing(2, span)?]);
    crowded(subject, span, load, rows)
}

/// No fault while others use the machine. The longest gap is that of any server since it started.
fn crowded<const N: usize>(
    subject: &Subject,
    span: Duration,
    load: impl Fn() -> Result<[Hogs; N], Error>,
    rows: [&'static str; 4],
) -> Result<Figures, Error> {
    let watch = Watch::start(subject.net());
    let load = load()?;
    thread::sleep(span);
    drop(load);
    let (outage, verdict) = watch.end(subject.net());
    let mut values = vec![
        verdict.moves() as f64,
        millis(verdict.two),
        millis(outage.longest),
    ];
    if let Subject::Standin(cluster) = subject {
        let gap = |server| cluster.counter(server, "electd", "beat_gap_max_us");
        let longest = (0..SERVERS).map(gap).max().unwrap_or(0);
        values.push(longest as f64 / 1000.0);
    }
    Ok(rows.into_iter().zip(values).collect())
}

/// What the master uses when nothing happens and no client asks.
pub fn idle(subject: &mut Subject, master: usize, _: &Options) -> Result<Figures, Error> {
    let net = subject.net();
    net.quiet(true);
    let usage = || {
        net.servers()[master]
            .processes()
            .iter()
            .map(Process::usage)
            .fold((Duration::ZERO, 0), |(cpu, rss), u| {
                (cpu + u.cpu, rss + u.rss)
            })
    };
    let ((before, _), start) = (usage(), Instant::now());
    thread::sleep(Duration::from_secs(30));
    let ((after, rss), took) = (usage(), start.elapsed());
    net.quiet(false);
    thread::sleep(Duration::from_secs(1));
    let share = after.saturating_sub(before).as_secs_f64() / took.as_secs_f64();
    Ok(vec![
        ("idle master, % of a core", share * 100.0),
        ("idle master, RSS MiB", rss as f64 / f64::from(1 << 20)),
    ])
}
