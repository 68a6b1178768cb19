//! What is told of a run.

use crate::{
    run::{Failure, Figures, Verdict},
    stage::Stage,
};
use lab::Cluster;
use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, SystemTime},
};

/// Log lines from so long before what went wrong, and so long after.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(1);
/// Lines of a log's end.
const TAIL: usize = 15;
/// Events told.
const EVENTS: usize = 40;

/// What the daemons have to say about two masters, or about themselves.
pub fn complaint(cluster: &Cluster) -> Option<String> {
    let mut masters: BTreeMap<(String, String), &str> = BTreeMap::new();
    for server in 0..cluster.spec().servers {
        let name = cluster.name(server);
        for line in cluster.log(server).lines() {
            let told = ["both give way", " claims ", "panicked"];
            if told.iter().any(|part| line.contains(part)) {
                return Some(format!("log of {name}: {line}"));
            }
            let Some((v, term)) = elected(line) else {
                continue;
            };
            let other = masters.insert((v.to_owned(), term.to_owned()), name);
            if other.is_some_and(|other| other != name) {
                return Some(format!(
                    "{v} had two masters in term {term}: {other:?}, {name}"
                ));
            }
        }
    }
    None
}

/// The virtual server and the term that somebody has become master of.
fn elected(line: &str) -> Option<(&str, &str)> {
    let (_, change) = line.split_once(" role virtual_server=")?;
    let word = |key: &str| change.split(' ').find_map(|word| word.strip_prefix(key));
    let v = change.split(' ').next()?;
    (word("to=") == Some("master")).then(|| word("term=").map(|term| (v, term)))?
}

/// Everything one needs to see why.
pub fn explain(stage: &Stage, started: SystemTime, failure: &Failure) {
    println!(
        "\n{}: at {:.3} s: {}\n\n--- what happened",
        if failure.of_the_lab {
            "the lab failed"
        } else {
            "caught"
        },
        failure.at.as_secs_f64(),
        failure.what
    );
    let until = stage
        .log
        .partition_point(|(at, _)| *at <= failure.at + AFTER);
    for (at, text) in &stage.log[until.saturating_sub(EVENTS)..until] {
        println!("{:9.3}  {text}", at.as_secs_f64());
    }
    let (from, to) = (failure.at.saturating_sub(BEFORE), failure.at + AFTER);
    logs(&stage.cluster, started, from..to);
    for server in 0..stage.cluster.spec().servers {
        println!("\n--- status of {} now", stage.cluster.name(server));
        match stage.cluster.ask(server, &["status"]) {
            Ok(output) => println!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout).trim_end(),
                String::from_utf8_lossy(&output.stderr).trim_end()
            ),
            Err(error) => println!("{error}"),
        }
    }
    println!("\n{}", stage.cluster.tails(TAIL));
}

/// What all daemons logged in that part of the run, in order.
pub fn logs(cluster: &Cluster, started: SystemTime, when: Range<Duration>) {
    println!("\n--- what the daemons said then (seconds of this run)");
    let mut lines = Vec::new();
    for server in 0..cluster.spec().servers {
        for line in cluster.log(server).lines() {
            let stamped = line.split_once(' ').and_then(|(time, rest)| {
                let time = humantime::parse_rfc3339(time).ok()?;
                Some((time.duration_since(started).ok()?, rest.to_owned()))
            });
            if let Some((at, text)) = stamped.filter(|(at, _)| when.contains(at)) {
                lines.push((at, cluster.name(server), text));
            }
        }
    }
    lines.sort();
    for (at, name, text) in lines {
        println!("{:9.3}  {name} {text}", at.as_secs_f64());
    }
}

/// The last line.
pub fn summary(figures: &Figures, again: &str, verdict: Verdict) {
    let faults: Vec<_> = figures
        .faults
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    println!(
        "\n{}: {again}: {:.0} s; {} faults ({}); {} takeovers; {} answers; longest outage {:.0} ms, with a majority \
         undisturbed {:.0} ms; longest stall of the machine {:.0} ms; two masters {:.0} ms",
        match verdict {
            Verdict::Fine => "fine",
            Verdict::Caught => "FAILED",
            Verdict::Unknown => "no verdict",
        },
        figures.lasted.as_secs_f64(),
        figures.faults.values().sum::<usize>(),
        faults.join(", "),
        figures.takeovers,
        figures.answers,
        ms(figures.outage),
        ms(figures.undisturbed),
        ms(figures.stall),
        ms(figures.two),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_tells_who_is_master_of_what_in_which_term() {
        let line = "2026-01-01T00:00:00.000Z electd: info: role virtual_server=web from=slave to=master term=7 reason=\"x\"";
        assert_eq!(elected(line), Some(("web", "7")));
        assert_eq!(elected(&line.replace("to=master", "to=slave")), None);
        assert_eq!(elected("electd: info: addresses of web are up"), None);
    }
}
