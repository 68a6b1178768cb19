//! `standin sync`: what this server's syncd does, and what it is asked to do.

use crate::status::{Table, uptime};
use clap::{Arg, ArgAction, ArgMatches, Command};
use daemon::{Args, Error, print, println};
use protocol::{
    Role, ServerName,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::{Detail, LastRun, SetPeer, SetStatus, SyncdStatus},
    },
};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    process::{self, ExitCode},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long syncd may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn command() -> Command {
    let name = |id: &'static str, help: &'static str| {
        Arg::new(id)
            .long(id)
            .value_name("NAME")
            .action(ArgAction::Append)
            .value_parser(|text: &str| text.parse::<ServerName>().map_err(|e| e.to_string()))
            .help(help)
    };
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("For programs; stable keys");
    Command::new("sync")
        .about("Files kept alike: make them so now, how they fare, and what lost a conflict")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            Command::new("now")
                .about("Make files alike now, and wait until they are; exit 1 if something is left undone")
                .args([
                    name("set", "Only this set"),
                    name("peer", "Only with this server"),
                ]),
            Command::new("status")
                .about("Each set with each server: last run, what is owed since when, next run")
                .arg(json),
            Command::new("conflicts")
                .about("List the versions that lost against another and are kept aside")
                .arg(Arg::new("set").long("set").value_name("NAME").help("Only of this set")),
        ])
        .subcommands(crate::versions::commands())
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    let args = crate::args(matches);
    let done = match matches.subcommand() {
        Some(("now", matches)) => now(matches, &args),
        Some(("status", matches)) => status(&args).map(|(status, at)| {
            if matches.get_flag("json") {
                println!("{:#}", to_json(&status));
            } else {
                print!("{}", text(&status, at));
            }
            ExitCode::SUCCESS
        }),
        Some((name @ ("restore" | "why"), matches)) => Err(crate::versions::run(name, matches)),
        Some((name, matches)) => pass_on(name, matches, &args),
        None => return ExitCode::from(2),
    };
    done.unwrap_or_else(|e| crate::fail(&e))
}

/// What only syncd can do, for it alone knows what it has on the disk.
fn pass_on(name: &str, matches: &ArgMatches, args: &Args) -> Result<ExitCode, Error> {
    let syncd = crate::child::executable(Role::Syncd)?;
    let mut command = process::Command::new(&syncd);
    command.arg(name).args(args.to_arguments());
    if let Some(set) = matches.get_one::<String>("set") {
        command.args(["--set", set]);
    }
    let ended = command.status();
    let ended = ended.map_err(|e| Error::io(format!("cannot start {}", syncd.display()), e))?;
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn status(args: &Args) -> Result<(SyncdStatus, u64), Error> {
    let reply = daemon::ctl::call(&args.run_dir, Role::Syncd, &CtlRequest::Status, TIMEOUT)?;
    of_reply(reply)
}

fn of_reply(reply: CtlReply) -> Result<(SyncdStatus, u64), Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
    match reply {
        CtlReply::Status(status) => match status.detail {
            Detail::Syncd(syncd) => Ok((*syncd, seconds.unwrap_or_default().as_secs())),
            _ => Err(Error::Failed("somebody else answers for syncd".into())),
        },
        CtlReply::Done(why) | CtlReply::No(why) => Err(Error::Failed(why)),
    }
}

fn now(matches: &ArgMatches, args: &Args) -> Result<ExitCode, Error> {
    let names = |id: &str| -> Vec<ServerName> {
        matches.get_many(id).unwrap_or_default().cloned().collect()
    };
    let (sets, peers) = (names("set"), names("peer"));
    let request = CtlRequest::SyncNow {
        sets: sets.clone(),
        peers: peers.clone(),
    };
    let done = daemon::ctl::call_until_done(&args.run_dir, Role::Syncd, &request, TIMEOUT)?;
    let (mut status, at) = of_reply(done)?;
    let all = |names: &[ServerName], n: &ServerName| names.is_empty() || names.contains(n);
    status.sets.retain(|set| all(&sets, &set.name));
    for set in &mut status.sets {
        set.peers.retain(|p| all(&peers, &p.server));
    }
    print!("{}", text(&status, at));
    let owed = |s: &SetStatus| s.peers.iter().any(|p| p.debt.is_some());
    Ok(match status.sets.iter().any(owed) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

pub fn ago(now: u64, at: u64) -> String {
    uptime(Duration::from_secs(now.saturating_sub(at)))
}

fn text(status: &SyncdStatus, now: u64) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(status, now, &mut out);
    out
}

fn write_text(status: &SyncdStatus, now: u64, out: &mut String) -> std::fmt::Result {
    let (term, run) = status.freshness;
    write!(out, "files of run {run} in term {term}")?;
    match status.numbers {
        Some(term) => writeln!(out, "; this server numbers runs, in term {term}\n")?,
        None => out.write_str("\n\n")?,
    }
    let mut table = Table::new(["SET", "WITH", "LAST RUN", "OWED", "NEXT"]);
    for set in &status.sets {
        let next = match (&set.running, set.next) {
            (Some(why), _) => format!("runs now ({why})"),
            (None, Some(at)) => {
                format!("in {}", uptime(Duration::from_secs(at.saturating_sub(now))))
            }
            (None, None) => "-".into(),
        };
        for peer in &set.peers {
            table.row([
                set.name.to_string(),
                peer.server.to_string(),
                last(peer, now),
                owed(peer, now),
                next.clone(),
            ]);
        }
    }
    table.write(out)?;
    for set in status.sets.iter().filter(|s| s.aside > 0) {
        writeln!(
            out,
            "{}: {} versions that lost a conflict are kept aside, see `standin sync conflicts`",
            set.name, set.aside
        )?;
    }
    for note in notes(status) {
        writeln!(out, "{note}")?;
    }
    Ok(())
}

/// What to look at in the files of each set.
pub fn notes(status: &SyncdStatus) -> impl Iterator<Item = String> {
    let of = |set: &'_ SetStatus| {
        let name = set.name.clone();
        let notes = set.notes.0.clone().into_iter();
        notes.map(move |note| format!("{name}: {note}"))
    };
    status.sets.iter().flat_map(of)
}

fn last(peer: &SetPeer, now: u64) -> String {
    let Some(last) = &peer.last else {
        return "never".into();
    };
    let before = peer.notable.0.as_ref().filter(|notable| *notable != last);
    let before = before.map(|notable| format!("; before: {}", ended(notable, now)));
    ended(last, now) + &before.unwrap_or_default()
}

fn ended(last: &LastRun, now: u64) -> String {
    let mut text = format!("{} ago ({}): ", ago(now, last.at), last.why);
    match &last.outcome {
        Ok((taken, given, conflicts)) => {
            let _ = write!(text, "{taken} taken, {given} given");
            if *conflicts > 0 {
                let _ = write!(text, ", {conflicts} conflicts");
            }
            if !last.complete {
                text += ", some left undone";
            }
        }
        Err(why) => text += why,
    }
    text
}

fn owed(peer: &SetPeer, now: u64) -> String {
    match &peer.debt {
        None => "-".into(),
        Some(debt) => format!(
            "for {} ({}{})",
            ago(now, debt.since),
            debt.why,
            match debt.tries {
                0 => String::new(),
                n => format!(", tried {n} times"),
            }
        ),
    }
}

fn to_json(status: &SyncdStatus) -> Value {
    let run = |l: &LastRun| {
        json!({
            "at": l.at,
            "why": l.why,
            "complete": l.complete,
            "taken": l.outcome.as_ref().ok().map(|o| o.0),
            "given": l.outcome.as_ref().ok().map(|o| o.1),
            "conflicts": l.outcome.as_ref().ok().map(|o| o.2),
            "error": l.outcome.as_ref().err(),
        })
    };
    let peer = |p: &SetPeer| {
        json!({
            "server": p.server.as_str(),
            "last": p.last.as_ref().map(run),
            "notable": p.notable.0.as_ref().map(run),
            "owed": p.debt.as_ref().map(|d| json!({ "since": d.since, "why": d.why, "tries": d.tries })),
        })
    };
    let set = |s: &SetStatus| {
        json!({
            "name": s.name.as_str(),
            "running": s.running,
            "next": s.next,
            "kept_aside": s.aside,
            "notes": s.notes.0,
            "servers": s.peers.iter().map(peer).collect::<Vec<_>>(),
        })
    };
    json!({
        "freshness": { "term": status.freshness.0.0, "run": status.freshness.1 },
        "numbers_in_term": status.numbers.map(|t| t.0),
        "sets": status.sets.iter().map(set).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use protocol::{Term, local::status::OwedRun, version::Since};

    fn example() -> SyncdStatus {
        let peer = |server: &str, last: Option<LastRun>, debt| SetPeer {
            server: server.parse().unwrap(),
            notable: Since(last.clone()),
            last,
            debt,
        };
        let last = |outcome, complete| {
            Some(LastRun {
                at: 1000,
                why: "cron".into(),
                outcome,
                complete,
            })
        };
        let debt = Some(OwedRun {
            since: 400,
            why: "change".into(),
            tries: 3,
        });
        SyncdStatus {
            freshness: (Term(7), 2),
            numbers: Some(Term(7)),
            sets: vec![SetStatus {
                name: "www".parse().unwrap(),
                running: None,
                next: Some(4060),
                aside: 1,
                notes: Since(vec!["duplicate uid 7: ann and bob in passwd".into()]),
                peers: vec![
                    peer("beta", last(Ok((3, 4, 1)), true), None),
                    peer("gamma", last(Err("cannot reach gamma".into()), false), debt),
                ],
            }],
        }
    }

    #[test]
    fn the_text_tells_each_debt_with_its_age() {
        let text = text(&example(), 1060);
        for part in [
            "files of run 2 in term 7; this server numbers runs, in term 7",
            "www  beta   1 min ago (cron): 3 taken, 4 given, 1 conflicts  -",
            "cannot reach gamma",
            "for 11 min (change, tried 3 times)",
            "in 50 min",
            "www: 1 versions that lost",
            "www: duplicate uid 7: ann and bob in passwd\n",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn what_a_run_did_is_told_until_another_one_does_something() {
        let mut status = example();
        let beta = &mut status.sets[0].peers[0];
        beta.last = Some(LastRun {
            at: 1050,
            why: "follow".into(),
            outcome: Ok((0, 0, 0)),
            complete: true,
        });
        let text = text(&status, 1060);
        let told = "10 s ago (follow): 0 taken, 0 given; before: 1 min ago (cron): 3 taken, 4 given, 1 conflicts  -";
        assert!(text.contains(told), "{text}");
        let json = to_json(&status);
        let beta = &json["sets"][0]["servers"][0];
        assert_eq!(
            (&beta["last"]["given"], &beta["notable"]["given"]),
            (&json!(0), &json!(4))
        );
    }

    #[test]
    fn json_has_the_stable_keys() {
        let json = to_json(&example());
        assert_eq!(json["freshness"], json!({ "term": 7, "run": 2 }));
        let set = &json["sets"][0];
        assert_eq!(
            (&set["name"], &set["next"], &set["kept_aside"]),
            (&json!("www"), &json!(4060), &json!(1))
        );
        let note = "duplicate uid 7: ann and bob in passwd";
        assert_eq!(set["notes"], json!([note]));
        assert_eq!(set["servers"][0]["last"]["given"], json!(4));
        assert_eq!(
            set["servers"][1]["last"]["error"],
            json!("cannot reach gamma")
        );
        assert_eq!(
            set["servers"][1]["owed"],
            json!({ "since": 400, "why": "change", "tries": 3 })
        );
    }
}
