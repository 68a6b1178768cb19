//! `standin restart`: the roles anew, from the programs on disk, one after another and without a failover.

use crate::child::executable;
use clap::{Arg, ArgMatches, Command};
use daemon::{
    Args, Error,
    sys::{pidfd_open, pidfd_send_signal},
};
use nix::sys::signal::Signal;
use protocol::{
    Role,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::{Detail, RoleStatus},
    },
};
use std::{
    os::fd::AsFd,
    process::{self, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a role may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// One that has not answered by then is ended all the same.
const PROMPT: Duration = Duration::from_secs(2);
/// How long a role may take to be back.
const BACK: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(5);

pub fn command() -> Command {
    let roles = crate::run::ROLES.map(Role::name);
    Command::new("restart")
        .about("Replace the running roles by the programs on disk, without a failover")
        .arg(
            Arg::new("role")
                .value_name("ROLE")
                .num_args(0..)
                .value_parser(roles)
                .help("Only these roles"),
        )
}

pub fn run(matches: &ArgMatches) -> Result<String, Error> {
    let args = crate::args(matches);
    let wanted: Vec<&String> = matches.get_many("role").into_iter().flatten().collect();
    let wanted = |role: &Role| wanted.is_empty() || wanted.iter().any(|w| *w == role.name());
    // Nobody else would start them again.
    let main = status(&args, Role::Main)?;
    let (config, _) = daemon::load_config(&args)?;
    let roles: Vec<Role> = crate::run::roles(&config).filter(wanted).collect();
    if roles.is_empty() {
        let what =
            "syncd does not run: the configuration has no [[sync]] and no [time] discipline for it";
        return Err(Error::Failed(what.into()));
    }
    roles.iter().try_for_each(|role| runs_at_all(*role))?;
    let mut told = Vec::new();
    for role in roles {
        let now = replace(&args, &main, role)?;
        // The next one waits until beats have gone round again: at most one link of the ring is missing at a time.
        thread::sleep(2 * config.cluster.heartbeat);
        told.push(format!("{role}: version {}, pid {}", now.version, now.pid));
    }
    Ok(told.join("\n"))
}

pub fn status(args: &Args, role: Role) -> Result<RoleStatus, Error> {
    match daemon::ctl::call(&args.run_dir, role, &CtlRequest::Status, ANSWER)? {
        CtlReply::Status(status) => Ok(*status),
        CtlReply::Done(_) | CtlReply::No(_) => Err(Error::Failed(format!(
            "{role} gave an answer to another question"
        ))),
    }
}

/// A program that cannot even tell its version shall not replace one that runs.
fn runs_at_all(role: Role) -> Result<(), Error> {
    let path = executable(role)?;
    let mut command = process::Command::new(&path);
    let tried = command.arg("--version").stdout(Stdio::null()).status();
    let tried = tried.map_err(|e| Error::io(format!("cannot start {}", path.display()), e))?;
    if tried.success() {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "{} --version fails ({tried}); nothing was restarted: install it anew",
        path.display()
    )))
}

/// Kills the role, which renews whatever it held (asked to end, it would hand over), and waits for the next one. One
/// that hangs is known by what the main daemon says of it.
fn replace(args: &Args, main: &RoleStatus, role: Role) -> Result<RoleStatus, Error> {
    let before = match (
        daemon::ctl::call(&args.run_dir, role, &CtlRequest::Status, PROMPT),
        &main.detail,
    ) {
        (Ok(CtlReply::Status(status)), _) => status.pid,
        (_, Detail::Main { roles }) => roles
            .iter()
            .find(|r| r.role == role)
            .and_then(|r| r.pid)
            .ok_or_else(|| {
                Error::Failed(format!(
                    "{role} does not run just now; the main daemon starts it"
                ))
            })?,
        (_, _) => status(args, role)?.pid,
    };
    let killed = pidfd_open(before).and_then(|process| {
        crate::planned::announce(&args.run_dir, role, before)?;
        pidfd_send_signal(process.as_fd(), Signal::SIGKILL as i32)
    });
    killed.map_err(|e| Error::io(format!("cannot end {role}, pid {before}"), e))?;
    let end = Instant::now() + BACK;
    loop {
        match status(args, role) {
            Ok(now) if now.pid != before => return Ok(now),
            Ok(_) | Err(_) if Instant::now() < end => thread::sleep(STEP),
            Ok(_) | Err(_) => {
                return Err(Error::Failed(format!(
                    "{role} is not back within {} s, its log says why; the roles after it were left alone",
                    BACK.as_secs()
                )));
            }
        }
    }
}
