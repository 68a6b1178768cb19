//! listend carries signals between electors: one sealed, lasting TCP session to each other server.
//!
//! ```text
//!   electd ──ElectdToListend──▶ listend ══TCP══ listend of another server
//!   electd ◀──ListendToElectd── listend
//! ```
//!
//! It decides nothing and holds no right: it gives its privileges up before it is ready.

mod shell;
mod socket;

use daemon::{Boot, Error, Keep};
use protocol::Role;
use std::process::ExitCode;

/// Real-time priority: signals are small and rare, and an election waits for them.
const PRIORITY: i32 = 20;

fn main() -> ExitCode {
    daemon::main(Role::Listend, run)
}

fn run(boot: Boot) -> Result<(), Error> {
    let mut shell = shell::Shell::open(boot.clone())?;
    shell.add_notes(boot.realtime(PRIORITY));
    shell.add_notes(boot.drop_privileges(Keep::Nothing)?);
    boot.ready();
    shell.run()
}
