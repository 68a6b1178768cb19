//! `standin-model`: explores the election of the real core exhaustively, within stated bounds.

use clap::{Arg, ArgAction, Command, value_parser};
use model::{
    run::{self, Outcome},
    scenario::{self, Depth, Scenario},
};
use std::process::ExitCode;

fn command() -> Command {
    Command::new("standin-model")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Explores the election exhaustively, within stated bounds")
        .arg(
            Arg::new("depth")
                .long("depth")
                .value_name("DEPTH")
                .value_parser(["quick", "nightly"])
                .default_value("quick")
                .help("How much is explored"),
        )
        .arg(
            Arg::new("scenario")
                .long("scenario")
                .value_name("NAME")
                .help("Only this one"),
        )
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("N")
                .value_parser(value_parser!(usize))
                .default_value("1")
                .help("Threads to explore with"),
        )
        .arg(
            Arg::new("explain")
                .long("explain")
                .action(ArgAction::SetTrue)
                .help("Say what each scenario is about, and explore nothing"),
        )
}

fn main() -> ExitCode {
    let options = command().get_matches();
    let text = |name: &str| options.get_one::<String>(name).map(String::as_str);
    let depth = match text("depth") {
        Some("nightly") => Depth::Nightly,
        _ => Depth::Quick,
    };
    let mut scenarios = scenario::all(depth);
    if let Some(name) = text("scenario") {
        scenarios.retain(|s| s.name == name);
        if scenarios.is_empty() {
            eprintln!("no scenario {name}; --explain lists them");
            return ExitCode::from(2);
        }
    }
    if options.get_flag("explain") {
        scenarios.iter().for_each(explain);
        return ExitCode::SUCCESS;
    }
    let threads = options.get_one("threads").copied().unwrap_or(1);
    let mut states = 0;
    for scenario in scenarios {
        match explore(scenario, threads) {
            Ok(explored) => states += explored,
            Err(code) => return code,
        }
    }
    println!("{states} distinct states in all, no violation");
    ExitCode::SUCCESS
}

fn explain(scenario: &Scenario) {
    println!("{:14} {}", scenario.name, scenario.about);
    println!("{:14} {}", "", scenario.bounds());
}

/// Explores one scenario; how many states it has.
fn explore(scenario: Scenario, threads: usize) -> Result<usize, ExitCode> {
    let (name, bounds) = (scenario.name, scenario.bounds());
    let outcome = run::explore(scenario, threads).map_err(|e| {
        eprintln!("{name}: {e}");
        ExitCode::from(2)
    })?;
    let Outcome {
        states,
        generated,
        depth,
        time,
        caught,
        unseen,
    } = outcome;
    let verdict = match (&caught, unseen.is_empty()) {
        (Some((invariant, _)), _) => format!("{invariant} BROKEN"),
        (None, true) => "holds".into(),
        (None, false) => format!("NEVER SEEN: {}", unseen.join(", ")),
    };
    println!(
        "{name:14} {states:>9} states of {generated:>9}, depth {depth:>5}, {:>6.1} s: {verdict} ({bounds})",
        time.as_secs_f64()
    );
    if let Some((invariant, path)) = caught {
        path.iter().for_each(|line| println!("{line}"));
        println!("caught: {invariant} in {name}");
        return Err(ExitCode::FAILURE);
    }
    if !unseen.is_empty() {
        return Err(ExitCode::FAILURE);
    }
    Ok(states)
}
