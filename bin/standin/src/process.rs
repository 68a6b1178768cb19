//! A role's process as the kernel shows it, whether it answers or not.

use daemon::{Args, RUN_DIR, privileges::USER};
use nix::unistd::{Uid, User};
use protocol::Role;
use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The process of `role` in this run-dir, if there is one. Others of the same name (another run-dir, another user's, a
/// container's) are none of our business.
pub fn find(role: Role, args: &Args) -> Option<u32> {
    let all = fs::read_dir("/proc").ok()?;
    let numbers = all.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    numbers.into_iter().find(|pid| is_ours(*pid, role, args))
}

/// Whether process `pid` is `role` of this run-dir.
pub fn is_ours(pid: u32, role: Role, args: &Args) -> bool {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let name = fs::read_to_string(dir.join("comm"));
    name.is_ok_and(|name| name.trim_end() == role.name())
        && same_namespace(&dir)
        && user(&dir).is_some_and(may_run_roles)
        && fs::read(dir.join("cmdline")).is_ok_and(|line| run_dir(&line) == Some(&args.run_dir))
}

/// Its state is uninterruptible sleep: no signal reaches it.
pub fn is_uninterruptible(pid: u32) -> bool {
    status(&PathBuf::from(format!("/proc/{pid}")), "State:").is_some_and(|s| s.starts_with('D'))
}

fn status(dir: &Path, key: &str) -> Option<String> {
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key));
    value.map(|value| value.trim().to_owned())
}

/// A process number of a container is another one here.
fn same_namespace(dir: &Path) -> bool {
    match fs::read_link(dir.join("ns/pid")) {
        Ok(namespace) => fs::read_link("/proc/self/ns/pid").is_ok_and(|own| own == namespace),
        Err(_) => true,
    }
}

fn user(dir: &Path) -> Option<Uid> {
    let users = status(dir, "Uid:")?;
    users
        .split_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Uid::from_raw)
}

fn may_run_roles(uid: Uid) -> bool {
    let roles_user = || User::from_name(USER).ok().flatten().map(|user| user.uid);
    uid == Uid::effective() || uid.is_root() || Some(uid) == roles_user()
}

/// Which run-dir a command line names; none: there is no command line, the process is ending.
fn run_dir(line: &[u8]) -> Option<&Path> {
    let mut words = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    words.next()?;
    let mut found = Path::new(RUN_DIR);
    while let Some(word) = words.next() {
        if word == b"--run-dir" {
            found = words.next().map_or(found, as_path);
        } else if let Some(value) = word.strip_prefix(b"--run-dir=") {
            found = as_path(value);
        }
    }
    Some(found)
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_tells_the_run_dir() {
        for (line, expected) in [
            (&b"hbd\0"[..], Some(RUN_DIR)),
            (b"hbd\0--run-dir\0/run/a\0--server\0alpha\0", Some("/run/a")),
            (
                b"/bin/sh\0/usr/sbin/hbd\0--run-dir=/run/b\0",
                Some("/run/b"),
            ),
            (b"hbd\0--config\0/run/c\0", Some(RUN_DIR)),
            (b"", None),
        ] {
            assert_eq!(run_dir(line), expected.map(Path::new), "{line:?}");
        }
    }
}
