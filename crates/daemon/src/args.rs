//! The options that every executable understands.

use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// `--config` if not given.
pub const CONFIG: &str = "/etc/standin/standin.toml";
/// `--run-dir` if not given.
pub const RUN_DIR: &str = "/run/standin";
/// `--state-dir` if not given.
pub const STATE_DIR: &str = "/var/lib/standin";

/// The common options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// The configuration file.
    pub config: PathBuf,
    /// Sockets and what must outlive a process but not the machine's uptime.
    pub run_dir: PathBuf,
    /// What must outlive everything.
    pub state_dir: PathBuf,
    /// This server's name, where address and host name do not tell it.
    pub server: Option<String>,
}

impl Args {
    /// The definitions of the common options; they may stand before or after a subcommand.
    pub fn definitions() -> [Arg; 4] {
        let option = |name: &'static str, value: &'static str| {
            Arg::new(name).long(name).value_name(value).global(true)
        };
        [
            option("config", "FILE")
                .default_value(CONFIG)
                .help("Configuration file"),
            option("run-dir", "DIR")
                .default_value(RUN_DIR)
                .help("Sockets and run-time state"),
            option("state-dir", "DIR")
                .default_value(STATE_DIR)
                .help("State that outlives a reboot"),
            option("server", "NAME")
                .help("This server's name [default: found by address, then by host name]"),
        ]
    }

    /// The common options as given.
    pub fn from_matches(matches: &ArgMatches) -> Self {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let path = |name: &str| PathBuf::from(text(name).unwrap_or_default());
        Self {
            config: path("config"),
            run_dir: path("run-dir"),
            state_dir: path("state-dir"),
            server: text("server"),
        }
    }

    /// The common options as they are given to another executable.
    pub fn to_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = vec![
            "--config".into(),
            self.config.clone().into_os_string(),
            "--run-dir".into(),
            self.run_dir.clone().into_os_string(),
            "--state-dir".into(),
            self.state_dir.clone().into_os_string(),
        ];
        if let Some(server) = &self.server {
            arguments.extend(["--server".into(), server.into()]);
        }
        arguments
    }
}

/// The command line of the daemon `name`.
pub(crate) fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .args(Args::definitions())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_survive_being_passed_on() {
        let parse = |line: &[&str]| {
            Args::from_matches(&command("hbd", "").try_get_matches_from(line).unwrap())
        };
        let args = parse(&["hbd"]);
        assert_eq!(args.config, PathBuf::from(CONFIG));
        assert_eq!(args.server, None);
        let args = parse(&[
            "hbd",
            "--config",
            "/a b",
            "--run-dir=/r",
            "--server",
            "alpha",
        ]);
        assert_eq!(args.run_dir, PathBuf::from("/r"));
        let again = args.to_arguments();
        let line = std::iter::once("hbd").chain(again.iter().map(|a| a.to_str().unwrap()));
        assert_eq!(parse(&line.collect::<Vec<_>>()), args);
    }
}
