//! `standin promote`, `resign`, `maintenance`, `server`: requests to this server's electd.

use clap::{Arg, ArgMatches, Command};
use daemon::{Args, Error, eprintln};
use protocol::{
    Role,
    local::ctl::{CtlReply, CtlRequest},
};
use std::{
    process::ExitCode,
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

/// electd answers at once or after a handover; a lease is at most 10 s.
const TIMEOUT: Duration = Duration::from_secs(15);

pub fn commands() -> [Command; 4] {
    let name = || {
        Arg::new("name")
            .value_name("NAME")
            .required(true)
            .help("Name of the server")
    };
    [
        Command::new("promote")
            .about("Hand over to another server: NAME becomes master")
            .arg(name())
            .arg(
                Arg::new("virtual-server")
                    .long("virtual-server")
                    .value_name("V")
                    .help("Only this virtual server [default: all]"),
            ),
        Command::new("resign").about("Hand over whatever this server is master of"),
        Command::new("maintenance")
            .about("on: hand over and take no mastership; off: take part again")
            .arg(
                Arg::new("switch")
                    .value_name("on|off")
                    .required(true)
                    .value_parser(["on", "off"]),
            ),
        Command::new("server")
            .about("Change the voters of the cluster, one at a time, on the master")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(Command::new("add").about("Add a voter").arg(name()))
            .subcommand(Command::new("remove").about("Remove a voter").arg(name())),
    ]
}

pub fn run(command: &str, matches: &ArgMatches) -> ExitCode {
    let request = match request(command, matches) {
        Ok(request) => request,
        Err(what) => {
            eprintln!("standin: {what}");
            return ExitCode::from(2);
        }
    };
    let args = crate::args(matches);
    let reply = call(&args, &request);
    crate::end(reply.and_then(|reply| match reply {
        CtlReply::Done(what) => Ok(what),
        CtlReply::No(why) => Err(Error::Failed(why)),
        CtlReply::Status(_) => Err(Error::Failed(
            "electd gave an answer to another question".into(),
        )),
    }))
}

/// Maintenance is electd's once it has heard of it, whatever comes of the handover; then it is kept.
fn call(args: &Args, request: &CtlRequest) -> Result<CtlReply, Error> {
    if *request == CtlRequest::Maintenance(false) {
        daemon::maintenance::end(&args.state_dir)?;
    }
    let reply = daemon::ctl::call(&args.run_dir, Role::Electd, request, TIMEOUT)?;
    if *request == CtlRequest::Maintenance(true) {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        daemon::maintenance::begin(&args.state_dir, now)?;
    }
    Ok(reply)
}

fn request(command: &str, matches: &ArgMatches) -> Result<CtlRequest, String> {
    Ok(match command {
        "promote" => CtlRequest::Promote {
            to: name(matches, "name")?.ok_or("which server?")?,
            virtual_server: name(matches, "virtual-server")?,
        },
        "resign" => CtlRequest::Resign,
        "maintenance" => CtlRequest::Maintenance(
            matches
                .get_one::<String>("switch")
                .is_some_and(|s| s == "on"),
        ),
        _ => {
            let (change, matches) = matches.subcommand().ok_or("add or remove?")?;
            let server = name(matches, "name")?.ok_or("which server?")?;
            match change {
                "add" => CtlRequest::ServerAdd(server),
                _ => CtlRequest::ServerRemove(server),
            }
        }
    })
}

fn name<T: FromStr>(matches: &ArgMatches, key: &str) -> Result<Option<T>, String>
where
    T::Err: std::fmt::Display,
{
    let parse = |text: &String| text.parse().map_err(|e: T::Err| e.to_string());
    matches.get_one::<String>(key).map(parse).transpose()
}
