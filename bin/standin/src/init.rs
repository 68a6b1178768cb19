//! `standin init`: the first reservation and roster of a new cluster, once on each server (ELECTION R21, R24).

use clap::{ArgMatches, Command};
use config::Config;
use daemon::{Error, durable};
use election::Reservation;
use protocol::ServerName;

pub fn command() -> Command {
    Command::new("init")
        .about("Begin a new cluster: write this server's first term reservation and roster")
}

pub fn run(matches: &ArgMatches) -> Result<String, Error> {
    let args = crate::args(matches);
    let (config, me) = daemon::load_config(&args)?;
    let path = args.state_dir.join(durable::RESERVATION);
    // Not `exists`: what cannot be looked at must not be overwritten either.
    if std::fs::symlink_metadata(&path).is_ok() {
        return Err(Error::Failed(format!(
            "{} exists: {me} belongs to a cluster already, and forgetting its terms could make two masters in \
             one term; to begin again from nothing, stop standin on all servers and remove that file on each",
            path.display()
        )));
    }
    let reservation = first(&config);
    let bytes = reservation
        .to_bytes()
        .map_err(|e| Error::Failed(e.to_string()))?;
    durable::write(&args.state_dir, durable::RESERVATION, &bytes)?;
    let voters: Vec<&str> = reservation
        .roster
        .voters
        .iter()
        .map(|v| v.as_str())
        .collect();
    let mut told = format!("{}: {me} votes with {}", path.display(), voters.join(", "));
    if let Some(line) = crate::ssh::host_key_line(&me, &config) {
        told += &format!("\n{line}");
    }
    Ok(told)
}

fn first(config: &Config) -> Reservation {
    let voters: Vec<ServerName> = config.servers.iter().map(|s| s.name.clone()).collect();
    let keeper = config.virtual_servers.first().map(|v| v.name.clone());
    Reservation::first(voters, keeper, config.cluster.lease)
}
