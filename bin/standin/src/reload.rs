//! `standin reload`: all roles read the configuration again, or one says why not.

use clap::{ArgMatches, Command};
use daemon::{
    Args, Error, RELOADS, RELOADS_REFUSED,
    sys::{pidfd_open, pidfd_send_signal},
};
use nix::sys::signal::Signal;
use protocol::{
    Role,
    local::status::{Detail, RoleStatus},
};
use std::{
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

/// How long a role may take to read its configuration; one that a new key restarts takes longer.
const LIMIT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(10);

pub fn command() -> Command {
    Command::new("reload")
        .about("All roles read the configuration again; says no if one of them refuses it")
}

pub fn run(matches: &ArgMatches) -> Result<String, Error> {
    let args = crate::args(matches);
    // What is wrong with it is said before anybody is told.
    let (config, _) = daemon::load_config(&args)?;
    daemon::key::load(&config.cluster.key)?;
    let main = crate::restart::status(&args, Role::Main)?;
    let before: Vec<RoleStatus> = roles(&main)
        .map(|role| crate::restart::status(&args, role))
        .collect::<Result<_, _>>()?;
    pidfd_open(main.pid)
        .and_then(|process| pidfd_send_signal(process.as_fd(), Signal::SIGHUP as i32))
        .map_err(|e| Error::io(format!("cannot tell the main daemon, pid {}", main.pid), e))?;
    // The main daemon reads it first, and tells the others only if it is good.
    let mut told = vec![settled(&args, &main)?];
    for before in &before {
        told.push(settled(&args, before)?);
    }
    Ok(told.join("\n"))
}

fn roles(main: &RoleStatus) -> impl Iterator<Item = Role> {
    let roles = match &main.detail {
        Detail::Main { roles } => roles.as_slice(),
        _ => &[],
    };
    roles.iter().filter(|r| r.pid.is_some()).map(|r| r.role)
}

/// Waits until the role has read the file, and says so; or until it has refused it.
fn settled(args: &Args, before: &RoleStatus) -> Result<String, Error> {
    let role = before.role;
    let end = Instant::now() + LIMIT;
    loop {
        let now = crate::restart::status(args, role);
        match now.as_ref().map(|now| outcome(before, now)) {
            Ok(Outcome::Done) => return Ok(format!("{role}: configuration read again")),
            Ok(Outcome::Restarted) => return Ok(format!("{role}: started with it")),
            Ok(Outcome::Unknown) => {
                return Ok(format!(
                    "{role}: told; version {} does not say more",
                    before.version
                ));
            }
            Ok(Outcome::Refused) => {
                let notes = now.map(|now| now.notes.join("\n")).unwrap_or_default();
                return Err(Error::Failed(format!("{role} refuses it: {notes}")));
            }
            Ok(Outcome::Waiting) | Err(_) if Instant::now() < end => thread::sleep(STEP),
            Ok(Outcome::Waiting) | Err(_) => {
                return Err(Error::Failed(format!(
                    "{role} has not read it within {} s; its log says why",
                    LIMIT.as_secs()
                )));
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    /// Another process: it has read the file at its start.
    Restarted,
    /// Of a version that does not count.
    Unknown,
    Waiting,
}

fn outcome(before: &RoleStatus, now: &RoleStatus) -> Outcome {
    if now.pid != before.pid {
        return Outcome::Restarted;
    }
    let rose = |name| Some(now.counters.get(name)? > before.counters.get(name)?);
    match (rose(RELOADS), rose(RELOADS_REFUSED)) {
        (_, Some(true)) => Outcome::Refused,
        (Some(true), _) => Outcome::Done,
        (Some(false), _) => Outcome::Waiting,
        (None, _) => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::BootTime;

    fn status(pid: u32, counters: &[(&str, u64)]) -> RoleStatus {
        RoleStatus {
            role: Role::Hbd,
            pid,
            started: BootTime(0),
            version: "1".into(),
            counters: counters.iter().map(|(k, n)| ((*k).into(), *n)).collect(),
            notes: Vec::new(),
            detail: Detail::Main { roles: Vec::new() },
        }
    }

    #[test]
    fn what_a_role_counts_tells_what_it_made_of_the_file() {
        let before = status(1, &[(RELOADS, 3), (RELOADS_REFUSED, 1)]);
        for (now, expected) in [
            (before.clone(), Outcome::Waiting),
            (
                status(1, &[(RELOADS, 4), (RELOADS_REFUSED, 1)]),
                Outcome::Done,
            ),
            (
                status(1, &[(RELOADS, 3), (RELOADS_REFUSED, 2)]),
                Outcome::Refused,
            ),
            (
                status(2, &[(RELOADS, 0), (RELOADS_REFUSED, 0)]),
                Outcome::Restarted,
            ),
            (status(1, &[]), Outcome::Unknown),
        ] {
            assert_eq!(outcome(&before, &now), expected, "{now:?}");
        }
    }
}
