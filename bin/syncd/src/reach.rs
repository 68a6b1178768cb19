//! `syncd reach`: whether each other server lets this one in, and is who it should be. Changes nothing, here or there.

use crate::{sessions::COMMAND, ssh};
use clap::Command;
use config::{Config, Server};
use daemon::println;
use protocol::ServerName;
use std::{process::ExitCode, thread};

/// Exit status if nothing is wrong but that somebody does not answer.
const SILENT: u8 = 3;

pub fn command() -> Command {
    Command::new("reach")
        .about("Try the way to each other server; exit 1 if one is not as it should be, 3 if one does not answer")
}

pub fn run(config: &Config, me: &ServerName) -> ExitCode {
    let others: Vec<_> = config.peers(me).filter(|s| !s.witness).collect();
    // Whoever does not answer takes seconds.
    let ways = thread::scope(|scope| {
        let tried: Vec<_> = others
            .into_iter()
            .map(|server| scope.spawn(|| reach(config, server)))
            .collect();
        // A thread that panicked has said so.
        let ways = tried.into_iter();
        ways.map(|one| one.join().unwrap_or(Way::Wrong)).max()
    });
    match ways {
        None | Some(Way::Good) => ExitCode::SUCCESS,
        Some(Way::Silent) => ExitCode::from(SILENT),
        Some(Way::Wrong) => ExitCode::FAILURE,
    }
}

/// What came of trying; the worst last.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Good,
    /// Nobody answers at all: it may only be down.
    Silent,
    Wrong,
}

/// Tells in the words of `standin check`.
fn reach(config: &Config, server: &Server) -> Way {
    match ssh::connect(config, server, COMMAND) {
        Ok(_) => {
            println!("ok     {}: its syncd answers", server.name);
            Way::Good
        }
        Err(e) if e.silent => {
            println!("note   files cannot be kept alike with {e}");
            Way::Silent
        }
        Err(e) => {
            println!("WRONG  {e}");
            Way::Wrong
        }
    }
}
