//! Real daemons on a real network, broken at random for minutes, and judged from outside.
//!
//! A seed gives a schedule of faults before anything runs; so the same faults come again with the same seed, and a
//! saved schedule can be shortened by hand. (Time is real time: what the servers make of the faults differs.)
//!
//! - [`schedule`]: faults as values and as text; [`generate`]: a schedule from a seed.
//! - [`stage`]: does them and undoes them; [`calm`]: since when a majority is left alone.
//! - [`run`]: plays and judges; [`witness`]: what answers prove; [`report`]: what is told.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod calm;
mod generate;
mod report;
mod run;
mod schedule;
mod stage;
mod witness;

use lab::{DEFAULT, Error, FAST, FASTEST, LONG, Profile, Spec};
use run::Verdict;
use schedule::Schedule;
use std::{
    env, fs,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const USAGE: &str = "\
chaos [--seconds N] [--seed N] [--profile default|fast|fastest|long] [--servers N] [--virtual-servers N]
      [--schedule FILE] [--plan] [--explain]

  --seconds N          how long, 300 by default
  --seed N             which faults; random by default, and printed
  --profile NAME       heartbeat and lease
  --servers N          3 to 5; --virtual-servers N: 1 to 3
  --schedule FILE      these faults instead: lines as --plan prints them
  --plan               print the schedule and do nothing
  --explain            print all that the daemons logged, even if nothing fails

The environment, STANDIN_GATE for example, is passed on to the daemons. Exit code 0: all was well; 1: it was not, what is
told after \"caught:\"; 2: wrong usage, or the lab failed.";

struct Options {
    seconds: u64,
    seed: Option<u64>,
    profile: Profile,
    servers: usize,
    virtual_servers: usize,
    schedule: Option<String>,
    plan: bool,
    explain: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        seconds: 300,
        seed: None,
        profile: DEFAULT,
        servers: 3,
        virtual_servers: 1,
        schedule: None,
        plan: false,
        explain: false,
    };
    let mut args = env::args().skip(1);
    while let Some(option) = args.next() {
        let flag = match option.as_str() {
            "--plan" => Some(&mut options.plan),
            "--explain" => Some(&mut options.explain),
            _ => None,
        };
        if let Some(flag) = flag {
            *flag = true;
            continue;
        }
        let value = args.next().ok_or(USAGE)?;
        let number = |least: u64, most: u64| match value.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(format!(
                "{option} {value}: a number of {least} to {most} is needed"
            )),
        };
        match option.as_str() {
            "--seconds" => options.seconds = number(1, 86_400)?,
            "--seed" => options.seed = Some(number(0, u64::MAX)?),
            "--servers" => options.servers = number(3, 5)? as usize,
            "--virtual-servers" => options.virtual_servers = number(1, 3)? as usize,
            "--schedule" => options.schedule = Some(value),
            "--profile" => {
                let known = [DEFAULT, FAST, FASTEST, LONG];
                let found = known.into_iter().find(|profile| profile.name == value);
                options.profile = found.ok_or(format!("no profile \"{value}\"\n{USAGE}"))?;
            }
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(options)
}

/// Small enough to be typed.
fn some_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| {
        u64::from(now.subsec_nanos()) / 1000 * 997 % 1_000_000
    })
}

/// The schedule, and how to have it again.
fn schedule(options: &Options) -> Result<(Schedule, String), String> {
    let mut again = format!("chaos --profile {}", options.profile.name);
    for (option, value, usual) in [
        ("--servers", options.servers, 3),
        ("--virtual-servers", options.virtual_servers, 1),
    ] {
        if value != usual {
            again += &format!(" {option} {value}");
        }
    }
    if let Some(file) = &options.schedule {
        let text = fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
        let schedule: Schedule = text.parse().map_err(|e| format!("{file}: {e}"))?;
        let highest = schedule.servers().max();
        if highest.is_some_and(|server| server >= options.servers) {
            return Err(format!(
                "{file} names more servers than {}",
                options.servers
            ));
        }
        return Ok((schedule, again + &format!(" --schedule {file}")));
    }
    let seed = options.seed.unwrap_or_else(some_seed);
    let length = Duration::from_secs(options.seconds);
    let made = generate::generate(seed, length, options.servers, options.profile);
    again += &format!(" --seed {seed} --seconds {}", options.seconds);
    Ok((made, again))
}

fn chaos(options: &Options) -> Result<Verdict, Error> {
    let (schedule, again) = schedule(options).map_err(Error::Wrong)?;
    println!("{again}");
    run::run(
        Spec {
            servers: options.servers,
            virtual_servers: options.virtual_servers,
            profile: options.profile,
            ..Spec::default()
        },
        schedule,
        &again,
        options.explain,
    )
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    if options.plan {
        return match schedule(&options) {
            Ok((schedule, again)) => {
                print!("# {again}\n{schedule}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("chaos: {why}");
                ExitCode::from(2)
            }
        };
    }
    match lab::enter().and_then(|()| chaos(&options)) {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Caught) => ExitCode::FAILURE,
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::from(2)
        }
    }
}
