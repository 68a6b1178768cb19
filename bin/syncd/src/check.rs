//! `syncd check`: whether what the sets name is there and can be kept alike, in the words of `standin check`. Changes
//! nothing, and asks no other server.

use crate::units;
use clap::Command;
use config::Config;
use daemon::{Args, println};
use std::{path::PathBuf, process::ExitCode};

pub fn command() -> Command {
    Command::new("check")
        .about("Look at the paths of the sets on this server; exit 1 if one cannot be kept alike")
}

pub fn run(args: &Args, config: &Config) -> ExitCode {
    let mut fine = true;
    for unit in units::of(config, args, |_| true) {
        let (set, root) = (unit.set_name(), unit.root.display());
        match &unit.fault {
            Some(fault) => {
                fine = false;
                println!("WRONG  {fault}");
            }
            None => println!("ok     set {set}: {root}"),
        }
        for own in unit.own_directories() {
            println!(
                "note   set {set}: {} in {root} is not kept alike: it is standin's own on this server",
                own.display()
            );
        }
    }
    for set in &config.sets {
        let is_link = |path: &&PathBuf| path.is_symlink() && !path.is_dir();
        for path in set.paths.iter().filter(is_link) {
            println!(
                "note   set {}: {} is a symbolic link: the link is kept alike, not what it leads to",
                set.name,
                path.display()
            );
        }
    }
    match fine {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
