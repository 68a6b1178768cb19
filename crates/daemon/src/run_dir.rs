//! The run-dir: whose it is, and what is kept in it for roles that start: the configuration, and which server this is.

use crate::{local_socket, privileges::USER};
use nix::unistd::{Uid, User};
use protocol::{Role, ServerName};
use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The last good configuration, from which a role starts when the file is bad.
const KEPT_CONFIG: &str = "last-good.toml";
/// Which server this host was last.
const KEPT_SERVER: &str = "last-server";
/// Set-group-id: what is made in the run-dir has its group.
const MODE: u32 = 0o2755;
const ROLES: [Role; 6] = [
    Role::Main,
    Role::Hbd,
    Role::Listend,
    Role::Doctord,
    Role::Electd,
    Role::Syncd,
];

/// The group of the daemons without privileges. None: there is no such user, or this process may not give files away.
pub(crate) fn group() -> Option<nix::unistd::Gid> {
    let user = Uid::effective().is_root().then(|| User::from_name(USER));
    user?.ok().flatten().map(|user| user.gid)
}

/// Makes the run-dir. Its group is that of the daemons without privileges and passes on to every socket made
/// in it (setgid), so that they can connect and a daemon needs no right to give files away.
pub fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    // Where the user is not mapped (user namespace) all daemons stay root and need no group.
    if let Some(group) = group()
        && nix::unistd::chown(path, None, Some(group)).is_ok()
    {
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
    }
    Ok(())
}

/// Gives the sockets of running roles back to the group of the daemons without privileges, if another program (a
/// service manager, a clean-up) took them away; those that it mended.
pub fn restore_sockets(path: &Path) -> Vec<PathBuf> {
    let Some(group) = group() else {
        return Vec::new();
    };
    let sockets = ROLES.map(|role| local_socket::path(path, role));
    let mend = |socket: &PathBuf| {
        let Ok(found) = fs::symlink_metadata(socket) else {
            return false;
        };
        let right = found.gid() == group.as_raw() && found.mode() & 0o777 == local_socket::MODE;
        found.file_type().is_socket()
            && !right
            && nix::unistd::chown(socket, None, Some(group)).is_ok()
            && local_socket::permit(socket).is_ok()
    };
    sockets.into_iter().filter(mend).collect()
}

/// Keeps `text` as the last good configuration.
pub(crate) fn keep_config(run_dir: &Path, text: &str) -> io::Result<()> {
    keep(run_dir, KEPT_CONFIG, text)
}

/// Where the last good configuration is kept.
pub(crate) fn kept_config(run_dir: &Path) -> PathBuf {
    run_dir.join(KEPT_CONFIG)
}

/// Keeps which server this host is.
pub(crate) fn keep_server(run_dir: &Path, me: &ServerName) -> io::Result<()> {
    keep(run_dir, KEPT_SERVER, &format!("{me}\n"))
}

/// Which server this host has been since the machine's start, if it has been one.
pub(crate) fn kept_server(run_dir: &Path) -> Option<ServerName> {
    let kept = fs::read_to_string(run_dir.join(KEPT_SERVER)).ok()?;
    kept.trim_end().parse().ok()
}

fn keep(run_dir: &Path, name: &str, text: &str) -> io::Result<()> {
    use std::io::Write;
    let path = run_dir.join(name);
    if fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    let fresh = run_dir.join(format!(".{name}.new"));
    // The run-dir is in memory: no power loss to think of.
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&fresh, &path));
    written.inspect_err(|_| drop(fs::remove_file(&fresh)))
}

/// `<run-dir>/ROLE.waiting`: the daemon does not serve yet, for this host has no address of a server; for init scripts.
pub(crate) struct Waiting(PathBuf);

impl Waiting {
    pub(crate) fn new(run_dir: &Path, role: Role) -> io::Result<Self> {
        let path = run_dir.join(format!("{role}.waiting"));
        fs::write(&path, format!("{}\n", std::process::id())).map(|()| Self(path))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // One left over says nothing: an init script removes it before it starts a daemon.
        let _ = fs::remove_file(&self.0);
    }
}
