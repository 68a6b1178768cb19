//! Explores a scenario and says what came of it.

use crate::{cluster::Cluster, scenario::Scenario, world::World};
use protocol::BadName;
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::{
    fmt,
    time::{Duration, Instant},
};

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Distinct states.
    pub states: usize,
    /// States generated, repetitions included.
    pub generated: usize,
    /// Longest run explored, in steps.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// The invariant broken, if one was.
    pub broken: Option<&'static str>,
    /// The run that breaks it: each step, and what the servers did in it.
    pub path: Vec<String>,
    /// What must be seen and was not.
    pub unseen: Vec<&'static str>,
}

impl Outcome {
    /// What is wrong, if anything is.
    pub fn caught(&self) -> Option<String> {
        let unseen = || format!("never \"{}\"", self.unseen.join("\", \""));
        let broken = self.broken.map(str::to_owned);
        broken.or_else(|| (!self.unseen.is_empty()).then(unseen))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.caught().unwrap_or_else(|| "holds".into());
        write!(
            f,
            "{:>9} states, {:>9} steps, depth {:>4}, {:>7.1} s: {verdict}",
            self.states,
            self.generated,
            self.depth,
            self.time.as_secs_f64()
        )
    }
}

/// Explores all of it.
pub fn explore(scenario: Scenario, threads: usize) -> Result<Outcome, BadName> {
    let cluster = Cluster::new(scenario)?;
    let start = Instant::now();
    let checker = cluster
        .clone()
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    let time = start.elapsed();
    let mut outcome = Outcome {
        states: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        time,
        broken: None,
        path: Vec::new(),
        unseen: Vec::new(),
    };
    let mut unseen = Vec::new();
    if cluster.init_states().is_empty() {
        unseen.push("a cluster without faults comes to rest");
    }
    let mut found = checker.discoveries();
    for property in cluster.properties() {
        match (property.expectation, found.remove(property.name)) {
            (Expectation::Always, Some(path)) => {
                outcome.broken = Some(property.name);
                outcome.path = retell(&cluster, path.into_actions());
            }
            (Expectation::Sometimes, None) => unseen.push(property.name),
            _ => {}
        }
    }
    if outcome.broken.is_none() {
        outcome.unseen = unseen; // A search cut short says nothing about it.
    }
    Ok(outcome)
}

/// The run in words: each step, and what the servers did in it.
fn retell(cluster: &Cluster, actions: Vec<crate::cluster::Action>) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(mut w) = cluster.init_states().pop() else {
        return lines;
    };
    w.log = Some(Vec::new());
    for (n, action) in actions.into_iter().enumerate() {
        let Some(next) = cluster.next_state(&w, action) else {
            break;
        };
        w = next;
        lines.push(format!("{:4} {action:?}", n + 1));
        let said = w.log.iter().flatten().map(|line| format!("       {line}"));
        lines.extend(said);
    }
    lines.extend(ending(&w));
    lines
}

fn ending(w: &World) -> Option<String> {
    w.failed
        .as_ref()
        .map(|(what, how)| format!("{}: {how}", what.name()))
}
