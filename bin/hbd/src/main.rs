//! hbd, the heartbeat daemon: sends and receives beats over UDP, decides nothing.

mod shell;
mod socket;
mod wall;

use daemon::{Boot, Error};
use protocol::Role;
use shell::Shell;
use std::process::ExitCode;

/// Real-time priority, where permitted.
const PRIORITY: i32 = 50;

fn main() -> ExitCode {
    daemon::main(Role::Hbd, run)
}

fn run(boot: Boot) -> Result<(), Error> {
    let mut shell = Shell::open(boot)?;
    shell.give_up_rights(PRIORITY)?;
    shell.serve()
}
