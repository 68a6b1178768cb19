//! "I end this process on purpose": a word of `standin restart` to the main daemon, so that a planned restart is no alarm.

use protocol::Role;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

fn path(run_dir: &Path, role: Role) -> PathBuf {
    run_dir.join(format!("restarting.{role}"))
}

/// Says that the role's process `pid` is about to be ended.
pub fn announce(run_dir: &Path, role: Role, pid: u32) -> io::Result<()> {
    fs::write(path(run_dir, role), pid.to_string())
}

/// Whether the end of the role's process `pid` was announced; it is forgotten.
pub fn was_announced(run_dir: &Path, role: Role, pid: Option<u32>) -> bool {
    let path = path(run_dir, role);
    let Ok(text) = fs::read_to_string(&path) else {
        return false;
    };
    // A word about an earlier process is of no use any more.
    let _ = fs::remove_file(&path);
    text.parse().ok().is_some_and(|p| Some(p) == pid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_planned_end_is_known_once_and_for_that_process_alone() {
        let dir = tempfile::tempdir().unwrap();
        let known = |pid| was_announced(dir.path(), Role::Hbd, Some(pid));
        assert!(!known(7));
        announce(dir.path(), Role::Hbd, 7).unwrap();
        assert!(!was_announced(dir.path(), Role::Electd, Some(7)));
        assert!(known(7));
        assert!(!known(7));
        announce(dir.path(), Role::Hbd, 7).unwrap();
        assert!(!known(8));
        assert!(!known(7));
    }
}
