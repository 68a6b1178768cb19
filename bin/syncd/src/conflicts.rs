//! `syncd conflicts`: what lost against another version and is kept aside, for `standin sync conflicts`.

use crate::units;
use clap::{Arg, ArgMatches, Command};
use config::Config;
use daemon::{Args, eprintln, println};
use filesync::{Kind, Node};
use protocol::ServerName;
use std::{
    io::{self, ErrorKind},
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};
use store::{Aside, Kept};

/// Told at most of each directory.
const MOST: usize = 1000;

pub fn command() -> Command {
    Command::new("conflicts")
        .about("List the versions that lost against another and are kept aside")
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("NAME")
                .help("Only of this set"),
        )
}

pub fn run(matches: &ArgMatches, args: &Args, config: &Config) -> ExitCode {
    let only = matches.get_one::<String>("set");
    let wanted = |name: &str| only.is_none_or(|o| o == name);
    if !config.sets.iter().any(|s| wanted(s.name.as_str())) {
        eprintln!("syncd: no such [[sync]] in {}", config.file.display());
        return ExitCode::from(2);
    }
    match list(config, args, wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("syncd: {why}");
            ExitCode::FAILURE
        }
    }
}

fn list(config: &Config, args: &Args, wanted: impl Fn(&str) -> bool) -> Result<(), String> {
    let mut none = true;
    for unit in units::of(config, args, |set| wanted(set.name.as_str())) {
        let folder = unit.state(&args.state_dir).join("aside");
        let Some(aside) = open(&folder).map_err(|e| format!("{}: {e}", folder.display()))? else {
            continue;
        };
        for (id, kept) in aside.list(MOST).map_err(|e| e.to_string())? {
            none = false;
            println!("{}", line(&unit.root.display().to_string(), &kept));
            let Node {
                kind,
                mode,
                uid,
                gid,
                ..
            } = kept.node;
            let contents = folder.join(&id);
            match kind {
                Kind::File { .. } if contents.exists() => {
                    println!("    its contents: {}", contents.display());
                }
                Kind::Symlink { target } => println!("    its target: {}", target.escape_ascii()),
                _ => println!("    mode {mode:04o}, owner {uid}, group {gid}"),
            }
        }
    }
    if none {
        println!("nothing is kept aside");
    }
    Ok(())
}

fn line(
    root: &str,
    Kept {
        path,
        node,
        at,
        why,
    }: &Kept,
) -> String {
    let when = UNIX_EPOCH + Duration::from_nanos(*at);
    let what = match &node.kind {
        Kind::File { size, .. } => format!("file of {size} bytes"),
        Kind::Directory => "directory".to_owned(),
        Kind::Symlink { .. } => "symbolic link".to_owned(),
        Kind::HardLink { to } => format!("further name of {to}"),
        Kind::Fifo => "named pipe".to_owned(),
        Kind::Device { .. } => "device".to_owned(),
    };
    let when = humantime::format_rfc3339_seconds(when);
    format!("{when}  {root}/{path}: {what}: {}", why.escape_debug())
}

/// None: nothing was ever kept.
fn open(folder: &std::path::Path) -> io::Result<Option<Aside>> {
    match Aside::read(folder) {
        Ok(aside) => Ok(Some(aside)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// How many versions of a set are kept aside.
pub fn count(config: &Config, args: &Args, set: &ServerName) -> u64 {
    let units = units::of(config, args, |s| s.name == *set);
    let of = |unit: &units::Unit| {
        let aside = open(&unit.state(&args.state_dir).join("aside")).ok()??;
        aside.count().ok()
    };
    units.iter().filter_map(of).sum()
}
