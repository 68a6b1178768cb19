//! `standin sync restore|why`: handed over to syncd, which knows what it keeps.

use clap::{Arg, ArgMatches, Command};
use daemon::Error;
use protocol::Role;
use std::{ffi::OsString, os::unix::process::CommandExt, process};

pub fn commands() -> [Command; 2] {
    let arguments = |value: &'static str, help: &'static str| {
        Arg::new("arguments")
            .value_name(value)
            .num_args(1..)
            .required(true)
            .trailing_var_arg(true)
            .allow_hyphen_values(true)
            .value_parser(clap::value_parser!(OsString))
            .help(help)
    };
    [
        Command::new("restore")
            .about("Put a former version of a file or directory back")
            .arg(arguments(
                "PATH",
                "The path, then --list, --at TIME, --id ID or --to FILE: see syncd(8)",
            )),
        Command::new("why")
            .about("Tell which set and rule applies to a path")
            .arg(arguments("PATH", "The path, as it is on this server")),
    ]
}

/// Becomes syncd; returns only if that cannot be.
pub fn run(name: &str, matches: &ArgMatches) -> Error {
    let syncd = match crate::child::executable(Role::Syncd) {
        Ok(syncd) => syncd,
        Err(e) => return e,
    };
    let arguments: Vec<&OsString> = matches
        .get_many("arguments")
        .into_iter()
        .flatten()
        .collect();
    let own = crate::args(matches).to_arguments();
    // What stands behind the path is not read here.
    let given = |option: &OsString| {
        let option = option.to_string_lossy();
        arguments
            .iter()
            .any(|a| a.to_string_lossy().starts_with(&*option))
    };
    let own = own
        .chunks(2)
        .filter(|pair| !pair.first().is_some_and(given));
    let mut command = process::Command::new(&syncd);
    command.arg(name).args(own.flatten()).args(&arguments);
    Error::io(format!("cannot start {}", syncd.display()), command.exec())
}
