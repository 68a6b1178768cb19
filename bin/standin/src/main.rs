//! standin, the operator's command (standin(8)). One file for each subcommand.

mod addresses;
mod check;
mod child;
mod control;
mod failover;
mod host;
mod init;
mod keygen;
mod lab;
mod planned;
mod process;
mod pulse;
mod reload;
mod restart;
mod run;
mod ssh;
mod status;
mod sync;
mod time;
mod verdict;
mod versions;

use clap::{ArgMatches, Command};
use daemon::{Args, Error, eprintln, println};
use std::process::ExitCode;

fn command() -> Command {
    Command::new("standin")
        .about("A few Linux servers stand in for one another")
        .version(env!("CARGO_PKG_VERSION"))
        .args(Args::definitions())
        .arg_required_else_help(true)
        .subcommand_required(true)
        .after_help("Exit codes: 0 fine, 1 says no, 2 wrong usage or configuration.")
        .subcommands([run::command(), restart::command(), reload::command()])
        .subcommands([status::command(), check::command(), time::command()])
        .subcommands([keygen::command(), init::command()])
        .subcommands(control::commands())
        .subcommands([sync::command(), lab::command()])
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    let Some((name, matches)) = matches.subcommand() else {
        return ExitCode::from(2);
    };
    match name {
        "run" => run::run(matches),
        "reload" => end(reload::run(matches)),
        "restart" => end(restart::run(matches)),
        "status" => status::run(matches),
        "check" => check::run(matches),
        "time" => time::run(matches),
        "keygen" => end(keygen::run(matches)),
        "sync" => sync::run(matches),
        "lab" => lab::run(matches),
        "init" => end(init::run(matches)),
        _ => control::run(name, matches),
    }
}

/// Prints what was done, or why not.
fn end(result: Result<String, Error>) -> ExitCode {
    match result {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(e) => fail(&e),
    }
}

/// Prints an error; its exit code.
fn fail(e: &Error) -> ExitCode {
    eprintln!("standin: {e}");
    e.exit_code()
}

/// The common options of a subcommand.
fn args(matches: &ArgMatches) -> Args {
    Args::from_matches(matches)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
