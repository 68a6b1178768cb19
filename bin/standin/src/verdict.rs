//! `standin status --check`: one line and an exit code for a monitoring system (Nagios, Icinga and the like).

use crate::{
    failover::Weight,
    status::{Picture, state_of},
};
use daemon::println;
use protocol::local::ring::HealthState;
use std::{fmt, process::ExitCode};

/// How the cluster fares, as far as this server knows; the numbers are the exit codes that monitoring systems expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Fine = 0,
    Degraded = 1,
    NobodyMaster = 2,
    Unknown = 3,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "OK",
            Self::Degraded => "WARNING",
            Self::NobodyMaster => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// Prints the line; the exit code.
pub fn end(state: State, what: &str) -> ExitCode {
    // A second line would be another field to whoever reads it, and so would a bar.
    let what = what.replace(['\n', '|'], " ");
    println!("standin {state} - {what}");
    ExitCode::from(state as u8)
}

pub fn run(picture: &Picture<'_>) -> ExitCode {
    let (state, what) = of(picture);
    end(state, &what)
}

fn of(picture: &Picture<'_>) -> (State, String) {
    let Some(electd) = picture.electd() else {
        let why = match picture.silence() {
            Some(silence) => silence.to_string(),
            None => "electd does not answer".to_owned(),
        };
        return (State::Unknown, why);
    };
    let without: Vec<&str> = electd
        .virtual_servers
        .iter()
        .filter(|v| v.master.is_none())
        .map(|v| v.name.as_str())
        .collect();
    let mut wrong = Vec::new();
    if !without.is_empty() {
        wrong.push(format!("nobody is master of {}", without.join(", ")));
    }
    for server in &electd.servers {
        if server.state != HealthState::Alive {
            wrong.push(format!("{} is {}", server.name, state_of(server)));
        }
        if server.withdrawn.0 && server.state == HealthState::Alive && server.name != *picture.me()
        {
            wrong.push(format!("{} is in maintenance", server.name));
        }
        if server.config_differs {
            wrong.push(format!("the configuration of {} differs", server.name));
        }
    }
    if electd.maintenance {
        wrong.push("this server is in maintenance".to_owned());
    }
    if electd.abstains.0 {
        wrong.push(format!("this server is {}", electd.standing));
    }
    wrong.extend(picture.down().map(|role| format!("{role} is down")));
    // What is no more than a remark may be as it is for good: a gate, a shared cable.
    wrong.extend(picture.told(Weight::Weakness));
    if wrong.is_empty() {
        return (State::Fine, summary(picture));
    }
    let state = match without.is_empty() {
        true => State::Degraded,
        false => State::NobodyMaster,
    };
    (state, format!("{}; {}", wrong.join("; "), summary(picture)))
}

/// Who is master of what, and who is there.
fn summary(picture: &Picture<'_>) -> String {
    let Some(electd) = picture.electd() else {
        return String::new();
    };
    let alive = electd.servers.iter();
    let alive = alive.filter(|s| s.state == HealthState::Alive).count();
    let masters = electd.virtual_servers.iter().map(|v| match &v.master {
        Some(master) => format!("{} at {master}", v.name),
        None => format!("{} nowhere", v.name),
    });
    let masters: Vec<String> = masters.collect();
    format!(
        "{alive} of {} servers alive, seen by {}: {}",
        electd.servers.len(),
        picture.me(),
        masters.join(", ")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::status::{
        Silence,
        tests::{answer, electd, picture_of, roles_of_all},
    };
    use daemon::ctl::CallError;
    use protocol::{
        Role, ServerName,
        local::status::{Detail, RoleStatus, ServerView},
        version::Since,
        wire::beat::Participation,
    };

    /// A picture in which all is well, but for what `change` does to it.
    fn verdict(change: impl FnOnce(&mut Vec<(Role, RoleStatus)>)) -> (State, String) {
        let Detail::Electd(mut status) = electd("master") else {
            unreachable!("it is electd's");
        };
        let beta = status.servers.remove(0);
        let name = |text: &str| text.parse::<ServerName>().unwrap();
        status.voters = ["alpha", "beta", "gamma"].map(name).to_vec();
        for voter in &status.voters {
            status.servers.push(ServerView {
                name: voter.clone(),
                config_differs: false,
                participation: Since(Some(Participation::Active)),
                ..beta.clone()
            });
        }
        for v in &mut status.virtual_servers {
            v.scripts.0 = None;
            v.fit.0 = Some(vec![0, 1, 2]);
            v.gated.0 = Some(true);
        }
        let detail = |role| match role {
            Role::Electd => Detail::Electd(status.clone()),
            _ => Detail::Main { roles: vec![] },
        };
        let mut answers: Vec<_> = roles_of_all().map(|r| answer(r, detail(r))).collect();
        for (_, status) in &mut answers {
            status.notes.clear();
        }
        change(&mut answers);
        let silent: Vec<Role> = roles_of_all()
            .filter(|r| answers.iter().all(|(a, _)| a != r))
            .collect();
        let path = || "/run/standin".into();
        let silent = silent
            .into_iter()
            .map(|r| (r, Silence::Call(CallError::NotRunning(r, path()))));
        picture_of(answers, silent, of)
    }

    fn with_electd(change: impl FnOnce(&mut protocol::local::status::ElectdStatus)) -> State {
        let verdict = verdict(|answers| {
            for (_, status) in answers {
                if let Detail::Electd(electd) = &mut status.detail {
                    return change(electd);
                }
            }
        });
        verdict.0
    }

    #[test]
    fn a_cluster_that_could_lose_a_server_is_fine() {
        let (state, line) = verdict(|_| {});
        assert_eq!((state, state as u8), (State::Fine, 0), "{line}");
        assert_eq!(
            line,
            "3 of 3 servers alive, seen by alpha: mail at beta, web at alpha"
        );
    }

    #[test]
    fn what_an_operator_should_mend_is_degraded() {
        let dead = |s: &mut protocol::local::status::ElectdStatus| {
            s.servers[1].state = HealthState::Dead;
        };
        assert_eq!(with_electd(dead), State::Degraded);
        assert_eq!(with_electd(|s| s.maintenance = true), State::Degraded);
        assert_eq!(
            with_electd(|s| s.servers[1].withdrawn.0 = true),
            State::Degraded
        );
        assert_eq!(with_electd(|s| s.abstains.0 = true), State::Degraded);
        assert_eq!(
            with_electd(|s| s.servers[1].config_differs = true),
            State::Degraded
        );
        let (state, line) = verdict(|a| a.retain(|(r, _)| *r != Role::Hbd));
        assert_eq!((state, state as u8), (State::Degraded, 1), "{line}");
        assert!(line.starts_with("hbd is down; "), "{line}");
        let (state, line) = verdict(|a| a[0].1.notes.push("a foreign address".into()));
        assert_eq!(state, State::Degraded, "{line}");
        assert!(line.contains("a foreign address"), "{line}");
    }

    #[test]
    fn a_virtual_server_without_master_comes_before_all_else() {
        let (state, line) = verdict(|answers| {
            for (_, status) in answers {
                if let Detail::Electd(electd) = &mut status.detail {
                    electd.maintenance = true;
                    electd.virtual_servers[1].master = None;
                }
            }
        });
        assert_eq!((state, state as u8), (State::NobodyMaster, 2));
        assert!(line.starts_with("nobody is master of web; "), "{line}");
        assert!(line.contains("in maintenance"), "{line}");
    }

    #[test]
    fn without_electd_nothing_is_known() {
        let (state, line) = verdict(|a| a.retain(|(r, _)| *r != Role::Electd));
        assert_eq!((state, state as u8), (State::Unknown, 3), "{line}");
        assert!(line.contains("electd does not run"), "{line}");
    }
}
