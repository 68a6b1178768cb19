//! syncd, the file daemon: keeps files alike on all servers (syncd(8)).

mod accounts;
mod agreed;
mod alive;
mod bring;
mod channel;
mod check;
mod conflicts;
mod follow;
mod foretold;
mod fresh;
mod jobs;
mod locks;
mod machine;
mod pace;
mod places;
mod progress;
mod pull;
mod reach;
mod replica;
mod restore;
mod run;
mod scrub;
mod serve;
mod sessions;
mod shell;
mod ssh;
mod steer;
mod triggers;
mod units;
mod versions;
mod when;
mod why;

use clap::Command;
use daemon::{Args, eprintln};
use protocol::Role;
use std::process::ExitCode;

fn command() -> Command {
    Command::new("syncd")
        .about("standin's file daemon: keeps files alike on all servers")
        .version(env!("CARGO_PKG_VERSION"))
        .args(Args::definitions())
        .after_help(
            "Exit codes: 0 all is alike, 1 something is not, 2 wrong usage or configuration, \
             3 nothing is wrong but sockets (run) or a server that does not answer (reach).",
        )
        .subcommands([run::command(), serve::command(), conflicts::command()])
        .subcommands([restore::command(), why::command()])
        .subcommands([check::command(), reach::command()])
}

/// Says warnings and errors on standard error.
struct Said;

impl log::Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("syncd: {}", record.args());
    }

    fn flush(&self) {}
}

fn main() -> ExitCode {
    // A file that may grow no more is an error of that file, with a cause, not the end of the process.
    daemon::sys::ignore_file_size_signal();
    let matches = command().get_matches();
    let Some((name, matches)) = matches.subcommand() else {
        return daemon::run_as(Role::Syncd, Args::from_matches(&matches), shell::run);
    };
    // What is of the daemon's log is said to whoever called.
    if log::set_logger(&Said).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let args = Args::from_matches(matches);
    let (config, me) = match daemon::load_config(&args) {
        Ok(loaded) => loaded,
        Err(e) => {
            eprintln!("syncd: {e}");
            return e.exit_code();
        }
    };
    match name {
        "run" => run::run(matches, &args, &config, &me),
        "conflicts" => conflicts::run(matches, &args, &config),
        "restore" => restore::run(matches, &args, &config, &me),
        "check" => check::run(&args, &config),
        "reach" => reach::run(&config, &me),
        "why" => why::run(matches, &args, &config, &me),
        _ => serve::run(&args),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
