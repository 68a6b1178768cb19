//! doctord: the opinion about every server's health, and nothing else. See doctord(8).

mod clocks;
mod shell;

use protocol::Role;
use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main(Role::Doctord, shell::run)
}
