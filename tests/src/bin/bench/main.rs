//! What clients see when something breaks: standin beside keepalived, on the same network, in the same run.

mod clocks;
mod crowd;
mod faults;
mod handovers;
mod load;
mod macs;
mod roles;
mod scale;
mod subject;
mod table;
mod watch;

use lab::{Error, Spinners, Stalls};
use standin_tests::wanted;
use std::{process::ExitCode, time::Duration};
use subject::{SYSTEMS, Subject, System};
use table::Table;
use watch::{Figures, jitter, millis};

const USAGE: &str =
    "bench [--runs N] [--loss-seconds N] [--rounds N] [--systems NAME,...] [--scenarios NAME,...]";

/// One thing that is done to every system.
struct Scenario {
    key: &'static str,
    /// Part of a run that names no scenarios. The others are long, or leave more behind than a run should.
    usual: bool,
    runs: Runs,
    play: Play,
}

enum Runs {
    /// As often as `--runs` says.
    Asked,
    /// Long, with many beats in each: at most so many.
    AtMost(usize),
}

enum Play {
    /// On a settled cluster of three servers that others use before and after; the server is its master.
    On(fn(&mut Subject, usize, &Options) -> Result<Figures, Error>),
    /// On a cluster of its own making.
    Alone(fn(&System, &Options) -> Result<Figures, Error>),
}

const fn fault(
    key: &'static str,
    play: fn(&mut Subject, usize, &Options) -> Result<Figures, Error>,
) -> Scenario {
    Scenario {
        key,
        usual: true,
        runs: Runs::Asked,
        play: Play::On(play),
    }
}

const fn by_name(runs: Runs, scenario: Scenario) -> Scenario {
    Scenario {
        usual: false,
        runs,
        ..scenario
    }
}

const fn alone(
    key: &'static str,
    play: fn(&System, &Options) -> Result<Figures, Error>,
) -> Scenario {
    Scenario {
        key,
        usual: false,
        runs: Runs::Asked,
        play: Play::Alone(play),
    }
}

const SCENARIOS: &[Scenario] = &[
    fault("power", faults::power),
    fault("cable", faults::cable),
    fault("partition", faults::partition),
    fault("stop", faults::stop),
    fault("handover", handovers::one),
    Scenario {
        runs: Runs::AtMost(2),
        ..fault("loss", load::loss)
    },
    Scenario {
        runs: Runs::AtMost(2),
        ..fault("idle", load::idle)
    },
    by_name(Runs::Asked, fault("killed", roles::killed)),
    by_name(Runs::AtMost(2), fault("stopped", roles::stopped)),
    by_name(Runs::Asked, fault("electd", roles::electd)),
    by_name(Runs::AtMost(1), fault("restarts", roles::restarts)),
    by_name(Runs::AtMost(1), fault("pairs", roles::pairs)),
    by_name(Runs::AtMost(1), fault("storm", roles::storm)),
    by_name(Runs::AtMost(2), fault("hogs", load::hogs)),
    by_name(Runs::AtMost(1), fault("busy", load::busy)),
    by_name(Runs::AtMost(1), fault("handovers", handovers::many)),
    by_name(Runs::AtMost(1), fault("clocks", clocks::offsets)),
    Scenario {
        key: "virtual-mac",
        usual: false,
        runs: Runs::Asked,
        play: Play::Alone(macs::power),
    },
    Scenario {
        key: "crowd",
        usual: false,
        runs: Runs::Asked,
        play: Play::Alone(crowd::crowd),
    },
    alone("addresses-1000", scale::thousand),
    alone("addresses-10000", scale::ten_thousand),
    alone("virtuals-200", scale::virtuals),
];

/// What the command line asks for.
struct Options {
    runs: usize,
    loss: Duration,
    /// Rounds of restarts and of handovers.
    rounds: u32,
    systems: Option<Vec<String>>,
    scenarios: Option<Vec<String>>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        runs: 5,
        loss: Duration::from_secs(60),
        rounds: 100,
        systems: None,
        scenarios: None,
    };
    let systems = SYSTEMS.map(|s| s.key);
    let scenarios: Vec<_> = SCENARIOS.iter().map(|s| s.key).collect();
    let usage = format!(
        "{USAGE}\nsystems: {}\nscenarios: {}",
        systems.join(" "),
        scenarios.join(" ")
    );
    standin_tests::options(&usage, |option, value| {
        match option {
            "--runs" => options.runs = value.number::<usize>()?.max(1),
            "--loss-seconds" => options.loss = Duration::from_secs(value.number()?),
            "--rounds" => options.rounds = value.number()?,
            "--systems" => options.systems = value.names(&systems)?,
            "--scenarios" => options.scenarios = value.names(&scenarios)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(options)
}

/// All wanted scenarios on one system; the longest stall of the machine in the runs that count.
fn measure(
    column: usize,
    system: &System,
    options: &Options,
    stalls: &Stalls,
    table: &mut Table,
) -> Result<Duration, Error> {
    let mut shared: Option<Subject> = None;
    let mut worst = Duration::ZERO;
    for scenario in SCENARIOS {
        let usual = scenario.usual && system.scenarios.is_none_or(|s| s.contains(&scenario.key));
        if !wanted(options.scenarios.as_ref(), scenario.key, usual) {
            continue;
        }
        let runs = match scenario.runs {
            Runs::Asked => options.runs,
            Runs::AtMost(most) => options.runs.min(most),
        };
        for run in 1..=runs {
            let mut again = 2;
            let (figures, stall) = loop {
                let figures = match scenario.play {
                    Play::Alone(play) => {
                        shared = None;
                        stalls.take();
                        play(system, options)?
                    }
                    Play::On(play) => {
                        let subject = match &mut shared {
                            Some(subject) => subject,
                            none => none.insert(Subject::start(system.kind)?),
                        };
                        let master = subject.settle()?;
                        jitter();
                        stalls.take();
                        play(subject, master, options)?
                    }
                };
                let stall = stalls.take();
                if stall <= system.resolution || again == 0 || runs != options.runs {
                    break (figures, stall);
                }
                println!(
                    "  {}: {}: the machine stood still for {:.1} ms: again",
                    system.title,
                    scenario.key,
                    millis(stall)
                );
                again -= 1;
            };
            worst = worst.max(stall);
            let told: Vec<_> = figures
                .iter()
                .map(|(name, value)| format!("{name} {value:.1}"))
                .collect();
            println!(
                "  {}: {} {run}/{runs}: {}; stall {:.1} ms",
                system.title,
                scenario.key,
                told.join("; "),
                millis(stall)
            );
            for (row, value) in figures {
                table.note(row, column, value);
            }
        }
    }
    Ok(worst)
}

fn bench(options: &Options) -> Result<(), Error> {
    let (stalls, _spinners) = (Stalls::start()?, Spinners::start()?);
    if !stalls.realtime {
        println!(
            "note: no real-time precedence for this user: the measuring itself may be late; run as root for figures"
        );
    }
    let columns: Vec<_> = SYSTEMS
        .into_iter()
        .filter(|s| wanted(options.systems.as_ref(), s.key, s.usual))
        .collect();
    let (mut table, mut worst) = (Table::default(), Vec::new());
    for (column, system) in columns.iter().enumerate() {
        println!("{}", system.title);
        let result = measure(column, system, options, &stalls, &mut table);
        if let Err(error) = &result {
            println!("  {}: ended early: {error}", system.title);
        }
        worst.push(result.unwrap_or_default());
    }
    table.print(&columns, &worst);
    Ok(())
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match lab::enter().and_then(|()| bench(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
