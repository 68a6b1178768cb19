//! `standin init`: the first reservation and roster of a new cluster, once on each server (ELECTION R21, R24).

use clap::{Arg, ArgAction, ArgMatches, Command};
use config::Config;
use daemon::{Args, Error, durable, machine};
use election::{Kept, Reservation};
use protocol::{
    Role, ServerName,
    local::ctl::CtlRequest,
    owner::{Owner, Present},
};
use std::{io::ErrorKind, path::Path, time::Duration};

/// How long electd may take to answer if it runs.
const TIMEOUT: Duration = Duration::from_millis(500);

pub fn command() -> Command {
    Command::new("init")
        .about("Begin a new cluster: write this server's first term reservation and roster")
        .arg(
            Arg::new("adopt")
                .long("adopt")
                .action(ArgAction::SetTrue)
                .help("Make a state-dir written on another machine this one's, which replaces that machine for good"),
        )
}

pub fn run(matches: &ArgMatches) -> Result<String, Error> {
    let args = crate::args(matches);
    let (config, me) = daemon::load_config(&args)?;
    let present = machine::present(&config, &me);
    if matches.get_flag("adopt") {
        return adopt(&args, &present);
    }
    let path = args.state_dir.join(durable::RESERVATION);
    // Not `exists`: what cannot be looked at must not be overwritten either.
    if std::fs::symlink_metadata(&path).is_ok() {
        return Err(Error::Failed(exists(&path, &present)));
    }
    let reservation = first(&config);
    write(&args, &reservation, &present.owner)?;
    let mut told = format!(
        "{}: {me} votes with {}",
        path.display(),
        voters(&reservation)
    );
    if let Some(line) = crate::ssh::host_key_line(&me, &config) {
        told += &format!("\n{line}");
    }
    Ok(told)
}

/// Why there is nothing to begin.
fn exists(path: &Path, present: &Present) -> String {
    let shown = path.display();
    if let Ok(bytes) = std::fs::read(path)
        && let Ok(Kept::Foreign { why, .. }) = Kept::read(&bytes, present)
    {
        return format!("{shown}: {}", machine::foreign(&why));
    }
    let me = &present.owner.server;
    format!(
        "{shown} exists: {me} belongs to a cluster already, and forgetting its terms could make two masters in one \
         term; to begin again from nothing, stop standin on all servers and remove that file on each"
    )
}

/// A cluster was restored on other machines: terms, longest promise and roster go on here.
fn adopt(args: &Args, present: &Present) -> Result<String, Error> {
    let path = args.state_dir.join(durable::RESERVATION);
    let shown = path.display();
    // What it has in memory is not of this file, and it may write its own at any moment.
    if daemon::ctl::call(&args.run_dir, Role::Electd, &CtlRequest::Status, TIMEOUT).is_ok() {
        let what = "electd runs here; stop standin first";
        return Err(Error::Failed(what.into()));
    }
    let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            Error::Failed(format!("{shown}: there is none, so nothing to adopt"))
        }
        _ => Error::io(format!("cannot read {shown}"), e),
    })?;
    let kept = Kept::read(&bytes, present)
        .map_err(|e| Error::Failed(format!("{shown}: {e}; nothing of it can be adopted")))?;
    match kept {
        Kept::Own { .. } => Err(Error::Failed(format!(
            "{shown}: it is this machine's own; there is nothing to adopt"
        ))),
        Kept::Foreign { why, .. } if !why.may_be_adopted() => Err(Error::Failed(format!(
            "{shown}: {}",
            machine::foreign(&why)
        ))),
        Kept::Foreign { reservation, why } => {
            write(args, &reservation, &present.owner)?;
            Ok(format!(
                "{shown}: {why}; now it is this machine's: {} votes with {}, terms up to {}\n\
                 The machine it was copied from must never run with it again: two servers of one name could make two \
                 masters.",
                present.owner.server,
                voters(&reservation),
                reservation.reserved
            ))
        }
    }
}

fn write(args: &Args, reservation: &Reservation, owner: &Owner) -> Result<(), Error> {
    let bytes = reservation
        .to_owned_bytes(owner)
        .map_err(|e| Error::Failed(e.to_string()))?;
    durable::write(&args.state_dir, durable::RESERVATION, &bytes)
}

fn voters(reservation: &Reservation) -> String {
    let names = reservation.roster.voters.iter().map(ServerName::as_str);
    names.collect::<Vec<_>>().join(", ")
}

fn first(config: &Config) -> Reservation {
    let voters: Vec<ServerName> = config.servers.iter().map(|s| s.name.clone()).collect();
    let keeper = config.virtual_servers.first().map(|v| v.name.clone());
    Reservation::first(voters, keeper, config.cluster.lease)
}
