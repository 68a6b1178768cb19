//! electd decides who is master, and owns the addresses (electd(8)).
//!
//! The rules are in the crate `election`, the addresses in `takeover`; this shell carries messages, time and
//! files between them and the rest of standin.

mod change_file;
mod conflicts;
mod lock;
mod memory_file;
mod reservation_file;
mod settings;
mod shell;
mod threads;
mod watchdog;

use daemon::{Boot, Error, Keep, machine};
use protocol::Role;
use std::process::ExitCode;
use takeover::{GateHome, GateKind};

/// The best gate that is tried, for tests and for an operator who distrusts a better one.
const GATE: &str = "STANDIN_GATE";

fn main() -> ExitCode {
    daemon::main(Role::Electd, run)
}

fn run(boot: Boot) -> Result<(), Error> {
    daemon::check_clock()?;
    let lock = lock::acquire(&boot)?;
    let mut gate = GateHome::mount(&boot.args.run_dir); // takes a right that is given up now
    if let Some(kind) = wanted_gate()? {
        gate = gate.at_most(kind, &format!("{GATE} is {kind}"));
    }
    let gate = gate.for_lease(boot.config.cluster.heartbeat, boot.config.cluster.lease);
    let present = machine::present(&boot.config, &boot.me); // takes a right that is given up now, too
    let mut notes = boot.drop_privileges(Keep::NetAdmin)?;
    let mut shell = shell::Shell::open(boot, lock, gate, &present)?;
    notes.extend(shell.realtime());
    shell.ready(notes);
    shell.run()
}

fn wanted_gate() -> Result<Option<GateKind>, Error> {
    let Ok(text) = std::env::var(GATE) else {
        return Ok(None);
    };
    let kind = text.parse();
    kind.map(Some)
        .map_err(|e| Error::Failed(format!("environment variable {GATE}: {e}")))
}
