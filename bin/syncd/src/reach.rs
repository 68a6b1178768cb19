//! `syncd reach`: whether each other server lets this one in, and is who it should be. Changes nothing, here or there.

use crate::{sessions::COMMAND, ssh};
use clap::Command;
use config::{Config, Server};
use daemon::println;
use protocol::ServerName;
use std::{process::ExitCode, thread};

pub fn command() -> Command {
    Command::new("reach")
        .about("Try the way to each other server; exit 1 if one is not as it should be")
}

pub fn run(config: &Config, me: &ServerName) -> ExitCode {
    let others: Vec<_> = config.peers(me).filter(|s| !s.witness).collect();
    // Whoever does not answer takes seconds.
    let fine = thread::scope(|scope| {
        let tried: Vec<_> = others
            .into_iter()
            .map(|server| scope.spawn(|| reach(config, server)))
            .collect();
        // A thread that panicked has said so.
        tried.into_iter().all(|one| one.join().unwrap_or(false))
    });
    match fine {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Tells in the words of `standin check`.
fn reach(config: &Config, server: &Server) -> bool {
    match ssh::connect(config, server, COMMAND) {
        Ok(_) => println!("ok     {}: its syncd answers", server.name),
        Err(e) if e.silent => println!("note   files cannot be kept alike with {e}"),
        Err(e) => {
            println!("WRONG  {e}");
            return false;
        }
    }
    true
}
