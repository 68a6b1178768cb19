//! What servers believe of each other's clocks. They share one here, so all of it is error.

use crate::{
    Options,
    subject::{SERVERS, Subject},
    watch::Figures,
};
use lab::Error;
use std::{
    thread,
    time::{Duration, Instant},
};

/// Until the filters have settled, and how long is looked.
const SPANS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

/// Every server's word about every other, again and again.
pub fn offsets(subject: &mut Subject, _: usize, _: &Options) -> Result<Figures, Error> {
    let Subject::Standin(cluster) = subject else {
        return Ok(Vec::new());
    };
    thread::sleep(SPANS.0);
    let (mut errors, mut bounds) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < SPANS.1 {
        for server in 0..SERVERS {
            let status = cluster.status(server).unwrap_or_default();
            for other in status["servers"].as_array().into_iter().flatten() {
                let own = other["name"] == cluster.name(server);
                if let (false, Some(offset), Some(bound)) = (
                    own,
                    other["offset_us"].as_f64(),
                    other["offset_bound_us"].as_f64(),
                ) {
                    errors.push(offset.abs());
                    bounds.push(bound);
                }
            }
        }
    }
    let part = |all: &mut Vec<f64>, percent: usize| {
        all.sort_by(f64::total_cmp);
        all.get(all.len().saturating_sub(1) * percent / 100)
            .copied()
    };
    let beyond = errors.iter().zip(&bounds).filter(|(e, b)| e > b).count();
    let figures = [
        (
            "clocks: error of the offset, median, us",
            part(&mut errors, 50),
        ),
        (
            "clocks: error of the offset, p99, us",
            part(&mut errors, 99),
        ),
        (
            "clocks: bound of the offset, median, us",
            part(&mut bounds, 50),
        ),
        ("clocks: errors beyond the bound", Some(beyond as f64)),
    ];
    Ok(figures
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect())
}
