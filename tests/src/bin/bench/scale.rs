//! Thousands of addresses, hundreds of virtual servers.

use crate::{
    Options,
    subject::{Kind, SERVERS, Subject, System},
    watch::{Figures, millis},
};
use lab::{Cluster, Error, Keepalived, Spec, Sweep};
use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

/// 1,000 addresses of one virtual server.
pub fn thousand(system: &System, _: &Options) -> Result<Figures, Error> {
    let rows = [
        "1,000 addresses, power loss: first to last answering, ms",
        "1,000 addresses, power loss: to the last answering, ms",
        "1,000 addresses: never answering, or at two servers",
        "1,000 addresses: longest gap between beats, ms",
    ];
    moved(system, (1000, 0), rows)
}

/// 10,000 addresses of one virtual server.
pub fn ten_thousand(system: &System, _: &Options) -> Result<Figures, Error> {
    let rows = [
        "10,000 addresses, power loss: first to last answering, ms",
        "10,000 addresses, power loss: to the last answering, ms",
        "10,000 addresses: never answering, or at two servers",
        "10,000 addresses: longest gap between beats, ms",
    ];
    moved(system, (10_000, 0), rows)
}

/// 200 virtual servers, spread over the servers, and what they cost while nothing happens.
pub fn virtuals(system: &System, _: &Options) -> Result<Figures, Error> {
    let rows = [
        "200 virtual servers, power loss: first to last answering, ms",
        "200 virtual servers, power loss: to the last answering, ms",
        "200 virtual servers: never answering, or at two servers",
        "200 virtual servers: longest gap between beats, ms",
    ];
    moved(system, (0, 200), rows)
}

fn moved(
    system: &System,
    (addresses, virtual_servers): (usize, usize),
    rows: [&'static str; 4],
) -> Result<Figures, Error> {
    let spec = Spec {
        further_addresses: addresses,
        further_virtual_servers: virtual_servers,
        ..Spec::default()
    };
    let mut subject = match system.kind {
        Kind::Standin(profile) => Subject::Standin(Cluster::start(Spec {
            profile,
            ..spec.clone()
        })?),
        // It knows one instance for each virtual server, at 255 at most, and is compared with addresses alone.
        Kind::Keepalived(interval) if virtual_servers == 0 => {
            Subject::Keepalived(Keepalived::start_with(SERVERS, interval, addresses)?)
        }
        Kind::Keepalived(_) => return Ok(Figures::new()),
    };
    let all: Vec<Ipv4Addr> = spec.further();
    let mut sweep = Sweep::open(subject.net(), all)?;
    sweep.holders(LIMIT)?;
    let master = subject.settle()?;
    let mut figures = Figures::new();
    if let Subject::Standin(cluster) = &subject
        && virtual_servers > 0
    {
        cluster.net().quiet(true);
        let (before, start) = (cluster.usage(master).cpu, Instant::now());
        thread::sleep(Duration::from_secs(15));
        let used = cluster.usage(master).cpu.saturating_sub(before);
        let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
        figures.push((
            "200 virtual servers, idle server, % of a core",
            share * 100.0,
        ));
        cluster.net().quiet(false);
    }
    let holders = sweep.holders(LIMIT)?;
    let swept = thread::scope(|scope| {
        let swept = scope.spawn(|| sweep.back(&holders, master, LIMIT));
        subject.power_loss(master)?;
        let panicked = |_| Error::Wrong("the sweep panicked".to_owned());
        swept.join().map_err(panicked)
    })?;
    let wrong = swept.missing + sweep.doubly_held();
    let values = [
        millis(swept.last.saturating_sub(swept.first)),
        millis(swept.last),
        wrong as f64,
    ];
    figures.extend(rows.into_iter().zip(values));
    if let Subject::Standin(cluster) = &subject {
        let others = (0..SERVERS).filter(|s| *s != master);
        let gaps = others.map(|s| cluster.counter(s, "electd", "beat_gap_max_us"));
        figures.push((rows[3], gaps.max().unwrap_or(0) as f64 / 1000.0));
    }
    Ok(figures)
}
