//! electd decides who is master, and owns the addresses (electd(8)).
//!
//! The rules are in the crate `election`, the addresses in `takeover`; this shell carries messages, time and
//! files between them and the rest of standin.

mod lock;
mod memory_file;
mod reservation_file;
mod settings;
mod shell;
mod threads;

use daemon::{Boot, Error, Keep};
use protocol::Role;
use std::process::ExitCode;
use takeover::GateHome;

fn main() -> ExitCode {
    daemon::main(Role::Electd, run)
}

fn run(boot: Boot) -> Result<(), Error> {
    daemon::check_clock()?;
    let lock = lock::acquire(&boot)?;
    let gate = GateHome::mount(&boot.args.run_dir); // takes a right that is given up now
    let mut notes = boot.drop_privileges(Keep::NetAdmin)?;
    let mut shell = shell::Shell::open(boot, lock, gate)?;
    notes.extend(shell.realtime());
    shell.ready(notes);
    shell.run()
}
