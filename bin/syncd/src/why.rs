//! `syncd why`: which set, path, exclude or rule applies to a path, and what is known of it here.

use crate::{
    restore::{kind, plain},
    units,
    units::Unit,
    when,
};
use clap::{Arg, ArgMatches, Command};
use config::{Config, SyncSet};
use daemon::{Args, eprintln, println};
use filesync::Path;
use protocol::ServerName;
use std::{
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path as FsPath, PathBuf},
    process::ExitCode,
};
use store::{Archive, Calls, Index};

pub fn command() -> Command {
    Command::new("why")
        .about("Tell which set and rule applies to a path")
        .arg(
            Arg::new("path")
                .value_name("PATH")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf)),
        )
}

pub fn run(matches: &ArgMatches, args: &Args, config: &Config, me: &ServerName) -> ExitCode {
    let path = matches
        .get_one::<PathBuf>("path")
        .cloned()
        .unwrap_or_default();
    let why = Why { config, me, args };
    match plain(&path).and_then(|path| why.tell(&path)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("syncd: {why}");
            ExitCode::FAILURE
        }
    }
}

struct Why<'a> {
    config: &'a Config,
    me: &'a ServerName,
    args: &'a Args,
}

impl Why<'_> {
    fn line(&self, line: usize) -> String {
        format!("{}:{line}", self.config.file.display())
    }

    /// Prints it. Whether the path is kept alike.
    fn tell(&self, path: &FsPath) -> Result<bool, String> {
        let shown = path.display();
        let units = units::of(self.config, self.args, |_| true);
        let unit = units.iter().find(|unit| unit.inner(path).is_some());
        let Some((unit, inner)) = unit.and_then(|unit| Some((unit, unit.inner(path)?))) else {
            println!(
                "{shown} is in no set: no path of a [[sync]] in {} has it",
                self.config.file.display()
            );
            let beside = units.iter().find(|unit| path.starts_with(&unit.root));
            if let Some(unit) = beside {
                let names: Vec<_> = unit.names().map(|n| n.escape_ascii().to_string()).collect();
                println!(
                    "  of {} there is only: {}",
                    unit.root.display(),
                    names.join(", ")
                );
            }
            return Ok(false);
        };
        let Some(set) = self.config.sets.iter().find(|set| unit.is_of(set)) else {
            return Err(format!("{} is of no set", unit.name));
        };
        self.set(path, set, unit);
        if let Some(fault) = &unit.fault {
            println!("  not kept alike: {fault}");
            return Ok(false);
        }
        let Some(inner) = inner else {
            println!("  kept alike: the directory of the set");
            return Ok(true);
        };
        if let Some(reason) = self.left_out(path, set, unit, &inner) {
            println!("  not kept alike: {reason}");
            return Ok(false);
        }
        let peers = self.config.peers(self.me).filter(|s| !s.witness);
        let peers: Vec<_> = peers.map(|s| s.name.to_string()).collect();
        println!("  kept alike with {}", peers.join(", "));
        self.known(unit, &inner)?;
        Ok(true)
    }

    fn set(&self, path: &FsPath, set: &SyncSet, unit: &Unit) {
        let here = set.paths.iter().position(|p| path.starts_with(p));
        println!("{}", path.display());
        println!("  set {}, {}", set.name, self.line(set.lines.set));
        if let Some((at, line)) =
            here.and_then(|i| Some((set.paths.get(i)?, set.lines.paths.get(i)?)))
        {
            println!("  path \"{}\", {}", at.display(), self.line(*line));
        }
        println!(
            "  unit {}, state in {}",
            unit.name,
            unit.state(&self.args.state_dir).display()
        );
        if unit.accounts {
            println!("  merge = \"accounts\": record by record, under the system's locks");
        }
        match unit.keep {
            Some(store::Keep::Versions(most)) => {
                println!("  keep = {most}: so many former versions")
            }
            Some(store::Keep::For(span)) => {
                println!(
                    "  keep = \"{}\": former versions of that time",
                    humantime::format_duration(span)
                );
            }
            None => {}
        }
    }

    /// Why it is no part of the set.
    fn left_out(&self, path: &FsPath, set: &SyncSet, unit: &Unit, inner: &Path) -> Option<String> {
        if self.config.server(self.me).is_some_and(|s| s.witness) {
            return Some(format!("{} is a witness", self.me));
        }
        if let Some(own) = unit.own_directory(inner) {
            return Some(format!(
                "it is in {}, which is standin's own on this server",
                own.display()
            ));
        }
        if store::is_own(inner) {
            return Some("it is standin's own".into());
        }
        let there = std::fs::symlink_metadata(path).ok();
        let directory = there.as_ref().is_some_and(std::fs::Metadata::is_dir);
        if let Some((what, pattern)) = unit.excluded_by(inner, directory) {
            let index = set.excludes.iter().position(|line| *line == pattern);
            let line = index.and_then(|i| set.lines.excludes.get(i));
            let own = set.excludes.len().saturating_sub(set.perishable.len());
            let key = match index.is_some_and(|i| i >= own) {
                true => "perishable",
                false => "exclude",
            };
            let line = line.map_or_else(String::new, |line| format!(", {}", self.line(*line)));
            return Some(format!(
                "{key} \"{}\"{line}, matches {what}",
                pattern.escape_debug()
            ));
        }
        let there = there?;
        if there.file_type().is_socket() {
            return Some("it is a socket, of use to nobody else".into());
        }
        let root = std::fs::metadata(&unit.root).ok()?;
        (root.dev() != there.dev()).then(|| {
            format!(
                "another file system than that of {} is mounted there",
                unit.root.display()
            )
        })
    }

    /// What the index has of it, if no run is at work.
    fn known(&self, unit: &Unit, inner: &Path) -> Result<(), String> {
        let state = unit.state(&self.args.state_dir);
        let file = state.join("index");
        if !file.exists() {
            println!("  no run has been here yet");
            return Ok(());
        }
        let here = daemon::machine::present(self.config, self.me);
        let incarnation = daemon::random_u64().map_err(|e| e.to_string())?;
        let new = || filesync::Replica {
            server: self.me.clone(),
            incarnation,
        };
        let note = unit.note(&self.args.run_dir);
        let row = match Index::open(&file, &note, &here, new, Calls::unlimited()) {
            Ok(opened) => opened.index.row(inner).map_err(|e| e.to_string())?,
            Err(e) if e.is_busy() => {
                println!("  a run is at work on it: what is known cannot be told now");
                return Ok(());
            }
            Err(e) => return Err(e.to_string()),
        };
        let Some(row) = row else {
            println!("  not seen by any run yet");
            return Ok(());
        };
        let node = row.entry.node.as_ref();
        let what = node.map_or_else(|| "removed".into(), |node| kind(&node.kind));
        let rank = &row.entry.rank;
        println!(
            "  known: {what}, changed by {} {}, here since {}",
            rank.replica.server,
            when::show(rank.nanos),
            when::show(row.at)
        );
        let kept = state.join("kept");
        if kept.exists() {
            let archive = Archive::open(&kept).map_err(|e| e.to_string())?;
            let versions = archive.of(inner).map_err(|e| e.to_string())?.len();
            println!("  {versions} versions kept, `standin sync restore --list` names them");
        }
        Ok(())
    }
}
