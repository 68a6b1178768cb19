//! `standin-model`: explores the election of the real core exhaustively, within stated bounds.

use clap::{Arg, ArgAction, Command, value_parser};
use model::{
    run,
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
            Arg::new("faults")
                .long("faults")
                .value_name("N")
                .value_parser(value_parser!(u8))
                .help("Faults in a run, instead of the depth's"),
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
        .args(mutant_option())
}

/// `--mutant`, where bugs can be planted at all.
fn mutant_option() -> Option<Arg> {
    let names = mutants::Mutant::ALL.iter().map(|m| m.name());
    cfg!(feature = "mutants").then(|| {
        Arg::new("mutant")
            .long("mutant")
            .value_name("NAME")
            .value_parser(names.collect::<Vec<_>>())
            .help("Plant this bug first")
    })
}

#[cfg(feature = "mutants")]
fn plant(name: &str) {
    mutants::plant(
        mutants::Mutant::ALL
            .iter()
            .copied()
            .find(|m| m.name() == name),
    );
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
    if let Some(faults) = options.get_one::<u8>("faults") {
        scenarios.iter_mut().for_each(|s| s.total = *faults);
    }
    if options.get_flag("explain") {
        scenarios.iter().for_each(explain);
        return ExitCode::SUCCESS;
    }
    #[cfg(feature = "mutants")]
    if let Some(name) = text("mutant") {
        plant(name);
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
    println!("{name:13} {outcome} ({bounds})");
    let Some(caught) = outcome.caught() else {
        return Ok(outcome.states);
    };
    outcome.path.iter().for_each(|line| println!("{line}"));
    println!("caught: {caught} in {name}");
    Err(ExitCode::FAILURE)
}
