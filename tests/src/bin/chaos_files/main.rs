//! Files that three servers keep alike, edited by users on each while servers, networks and disks fail, and judged from
//! outside: nothing that anybody wrote is lost.
//!
//! A seed gives the plan before anything runs. Time is real time, so the same plan need not come to the same.
//!
//! - [`plan`]: who edits what and what fails, from a seed.
//! - [`users`]: edits files as people and programs do; [`history`]: what they wrote, and what they saw when they replaced
//!   it.
//! - [`faults`]: makes the servers, breaks them and mends them.
//! - [`tree`]: what a server has; [`judge`]: what must be true all the time, and in the end.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod faults;
mod history;
mod judge;
mod plan;
mod tree;
mod users;

use lab::Error;
use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const USAGE: &str = "\
chaos-files [--seconds N] [--seed N] [--faults yes|no]

  --seconds N        how long users edit and servers fail, 60 by default
  --seed N           which edits and faults; random by default, and printed
  --faults no        edits alone

Exit code 0: all was well; 1: it was not, what is told after \"caught:\"; 2: wrong usage, or the lab failed.";

struct Options {
    seconds: u64,
    seed: u64,
    faults: bool,
}

fn read_options() -> Result<Options, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut options = Options {
        seconds: 60,
        // Small enough to be typed.
        seed: now.map_or(0, |now| now.as_micros() as u64 % 1_000_000),
        faults: true,
    };
    standin_tests::options(USAGE, |option, value| {
        match option {
            "--seconds" => options.seconds = value.number()?,
            "--seed" => options.seed = value.number()?,
            "--faults" => options.faults = value.names(&["yes", "no"])? != Some(vec!["no".into()]),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(options)
}

/// What was caught.
fn chaos(options: &Options) -> Result<Vec<String>, Error> {
    let (seed, seconds) = (options.seed, options.seconds);
    println!("chaos-files --seed {seed} --seconds {seconds}");
    let plan = plan::plan(seed, Duration::from_secs(seconds), options.faults);
    judge::play(&plan)
}

fn main() -> ExitCode {
    let options = match read_options() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match lab::enter().and_then(|()| chaos(&options)) {
        Ok(caught) if caught.is_empty() => ExitCode::SUCCESS,
        Ok(caught) => {
            for what in caught {
                println!("caught: {what}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("chaos-files: {error}");
            ExitCode::from(2)
        }
    }
}
