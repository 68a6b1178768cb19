//! Namespaces of processes, mounts and network that end with whoever watches over them, and a folder that goes then.

use crate::scene::{fine, told};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal},
    },
};
use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, exit},
};

/// Who watches tells by this where the folder shall be.
const FOLDER: &str = "STANDIN_BENCH_SYNC";

/// Starts this program again as the first process within and ends with it, or returns within: the folder, which is
/// still to be made.
pub fn alone() -> Result<PathBuf, String> {
    match env::var_os(FOLDER) {
        Some(folder) => within().map(|()| folder.into()),
        None => watch().map(|code| exit(code)),
    }
}

fn within() -> Result<(), String> {
    let failed = |e: nix::Error| e.to_string();
    set_pdeathsig(Signal::SIGKILL).map_err(failed)?;
    SigSet::all().thread_unblock().map_err(failed)?;
    fine(Command::new("mount").args(["--make-rprivate", "/"]))?;
    fine(Command::new("mount").args(["-t", "proc", "proc", "/proc"]))?;
    fine(Command::new("ip").args(["link", "set", "lo", "up"])).map(drop)
}

/// Until it has ended, or this process shall; then all within have ended, and the folder is gone.
fn watch() -> Result<i32, String> {
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let mut awaited: SigSet = signals.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block().map_err(|e| e.to_string())?;
    let spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    unshare(spaces).map_err(|e| format!("needs root: {e}"))?;
    let own = format!("standin-bench-sync-{}", std::process::id());
    let folder = env::temp_dir().join(own);
    let program = env::current_exe().map_err(told("own program's path"))?;
    let mut again = Command::new(program);
    again.args(env::args_os().skip(1)).env(FOLDER, &folder);
    let mut first = again.spawn().map_err(told("start within"))?;
    let code = loop {
        let signal = awaited.wait().map_err(|e| e.to_string())?;
        if signal != Signal::SIGCHLD {
            // With the first process all others end, and it only after them.
            first.kill().map_err(told("kill"))?;
            first.wait().map_err(told("wait"))?;
            break 128 + signal as i32;
        }
        if let Some(status) = first.try_wait().map_err(told("wait"))? {
            break status.code().unwrap_or(128 + status.signal().unwrap_or(0));
        }
    };
    let _ = fs::remove_dir_all(folder);
    Ok(code)
}
