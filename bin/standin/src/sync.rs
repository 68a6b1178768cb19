//! `standin sync`: what an operator does with files kept alike.

use clap::{ArgMatches, Command};
use std::process::ExitCode;

pub fn command() -> Command {
    Command::new("sync")
        .about("Files kept alike: former versions, and which rule applies")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(crate::versions::commands())
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    match matches.subcommand() {
        Some((name, matches)) => crate::fail(&crate::versions::run(name, matches)),
        None => ExitCode::from(2),
    }
}
