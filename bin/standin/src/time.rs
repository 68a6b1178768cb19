//! `standin time chrony`: the lines that make the chronyds of a cluster keep one time, cut off from the world too.

use clap::{ArgMatches, Command};
use config::Config;
use daemon::print;
use protocol::ServerName;
use std::{fmt::Write as _, process::ExitCode};

pub fn command() -> Command {
    Command::new("time")
        .about("Keep the servers' clocks alike by other means than syncd")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("chrony")
                .about("Print what chrony on this server needs, for a file in /etc/chrony/conf.d"),
        )
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    match daemon::load_config(&crate::args(matches)) {
        Ok((config, me)) => {
            print!("{}", chrony(&config, &me));
            ExitCode::SUCCESS
        }
        Err(e) => crate::fail(&e),
    }
}

/// For one server. All ask all others, so that in a group cut off from the world each follows the same one of them.
fn chrony(config: &Config, me: &ServerName) -> String {
    let mut text = format!(
        "# Server {me} of cluster {}, by `standin time chrony`. Beside it: your own time servers (server, pool)\n\
         # and a driftfile, as in any chrony.conf; no other `local` line.\n\n\
         # The other servers of the cluster, who are told the time in turn.\n",
        config.cluster.name
    );
    // Writing to a String cannot fail.
    for server in config.peers(me) {
        if let Some(address) = server.addresses.first() {
            let _ = writeln!(text, "server {address} iburst minpoll 2 maxpoll 6 xleave");
        }
        for address in &server.addresses {
            let _ = writeln!(text, "allow {address}");
        }
    }
    text.push_str(
        "\n# With no better time to be had the servers agree on one of them and follow it.\n\
         local stratum 10 orphan\n\n\
         # The clock is set at the start alone, before standin holds an address; later it is slewed, and no faster\n\
         # than standin's bounds count on.\n\
         makestep 0.1 3\n\
         maxslewrate 500\n",
    );
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[cluster]
name = "web"
[[server]]
name = "alpha"
address = ["192.0.2.11", "2001:db8::11"]
[[server]]
name = "beta"
address = ["2001:db8::12", "192.0.2.12"]
[[server]]
name = "tie"
address = "192.0.2.13"
witness = true
"#;

    #[test]
    fn every_other_server_is_asked_once_and_allowed_to_ask_from_everywhere() {
        let config = config::parse(CONFIG, std::path::Path::new("f")).unwrap();
        let text = chrony(&config, &config.servers[0].name);
        let lines = |word: &str| {
            let of = |l: &&str| l.split(' ').next() == Some(word);
            text.lines()
                .filter(of)
                .map(|l| l.split(' ').nth(1).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(lines("server"), ["2001:db8::12", "192.0.2.13"]);
        assert_eq!(lines("allow"), ["2001:db8::12", "192.0.2.12", "192.0.2.13"]);
        assert!(text.contains("\nlocal stratum 10 orphan\n"));
    }

    #[test]
    fn chronyd_understands_it() {
        let Some(chronyd) = standin_tests::chronyd() else {
            return;
        };
        let config = config::parse(CONFIG, std::path::Path::new("f")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = chrony(&config, &config.servers[1].name);
        let check = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            // -p reads the file, prints what it has understood and ends.
            let mut chronyd = std::process::Command::new(&chronyd);
            chronyd
                .arg("-p")
                .arg("-f")
                .arg(file.path())
                .output()
                .unwrap()
        };
        let output = check(&text);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("local stratum 10 orphan"));
        assert!(!check(&text.replace("orphan", "orphans")).status.success());
    }
}
