//! syncd, the file daemon: keeps files alike on all servers (syncd(8)).

mod accounts;
mod bring;
mod locks;
mod pull;
mod replica;
mod restore;
mod run;
mod serve;
mod ssh;
mod units;
mod when;
mod why;

use clap::Command;
use daemon::Args;
use std::process::ExitCode;

fn command() -> Command {
    Command::new("syncd")
        .about("standin's file daemon: keeps files alike on all servers")
        .version(env!("CARGO_PKG_VERSION"))
        .args(Args::definitions())
        .arg_required_else_help(true)
        .subcommand_required(true)
        .after_help(
            "Exit codes: 0 all is alike, 1 something is not, 2 wrong usage or configuration.",
        )
        .subcommands([run::command(), serve::command()])
        .subcommands([restore::command(), why::command()])
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    match matches.subcommand() {
        Some(("run", matches)) => run::run(matches),
        Some(("serve", matches)) => serve::run(matches),
        Some(("restore", matches)) => restore::run(matches),
        Some(("why", matches)) => why::run(matches),
        _ => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
