//! Explores a scenario and says what came of it.

use crate::{
    model::Cluster,
    scenario::Scenario,
    world::World,
};
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::time::{Duration, Instant};

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
    /// The invariant broken, and a run that breaks it.
    pub caught: Option<(&'static str, Vec<String>)>,
    /// What must be seen and was not.
    pub unseen: Vec<&'static str>,
}

/// Explores all of it.
pub fn explore(
    scenario: Scenario,
    threads: usize,
) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
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
        caught: None,
        unseen: Vec::new(),
    };
    let mut found = checker.discoveries();
    for property in cluster.properties() {
        match (property.expectation, found.remove(property.name)) {
            (Expectation::Always, Some(path)) => {
                let path = retell(&cluster, path.into_actions());
                outcome.caught = Some((property.name, path));
            }
            (Expectation::Sometimes, None) => outcome.unseen.push(property.name),
            _ => {}
        }
    }
    Ok(outcome)
}

/// The run in words: each step, and what the servers did in it.
fn retell(cluster: &Cluster, actions: Vec<crate::model::Action>) -> Vec<String> {
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
    w.failed.as_ref().map(|(what, how)| format!("{}: {how}", what.name()))
}
