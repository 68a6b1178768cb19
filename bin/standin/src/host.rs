//! What this machine itself says about whether it could serve: interfaces, IPv6, role scripts. Read by `standin status`,
//! `standin check` and the main daemon alike.

use config::Config;
use daemon::{
    links::{LinkState, Links, Table},
    machine,
};
use nix::unistd::{AccessFlags, Uid, access};
use protocol::{ServerName, VirtualServerName};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::Read,
    net::IpAddr,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// Where role scripts are, below `[scripts] directory`.
pub const SCRIPT_FOLDERS: [&str; 2] = ["master.d", "slave.d"];

/// Bytes of a script in which the interpreter is named: what the kernel reads.
const SHEBANG_MAX: usize = 256;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// What is wrong with the interface of each virtual server.
    pub interfaces: BTreeMap<VirtualServerName, Unfit>,
    /// Heartbeat addresses of this server that share one cable, and the interface at its end.
    pub shared: Vec<(String, Vec<IpAddr>)>,
    /// Role scripts that cannot run, or that others may write.
    pub scripts: Vec<(PathBuf, ScriptFault)>,
}

/// Why a virtual server cannot be served by this machine's interface, or not as well as it could.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unfit {
    /// The interface, as configured, fares so.
    Link(String, LinkState),
    /// It is the loopback interface, which nothing leaves by.
    Loopback(String),
    /// It has IPv6 addresses, and IPv6 is off there.
    NoIpv6(String),
    /// It is there by another name only; the kernel's own is the second.
    OtherName(String, String),
}

/// Why a role script does not do what its author wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScriptFault {
    /// It begins like a script and is not executable, or its file system is mounted `noexec`.
    NotExecutable,
    /// Its first line names a program that is not there.
    NoInterpreter(String),
    /// A link that leads nowhere.
    Dangling,
    /// Its folder cannot be read.
    Unreadable,
    /// Others than root may change what runs as root.
    Writable,
}

impl Host {
    /// Looks around.
    pub fn look(config: &Config, me: &ServerName) -> Self {
        let server = config.server(me);
        let mut host = Self::default();
        let Some(server) = server else {
            return host;
        };
        if let Ok(table) = Links::snapshot() {
            host.shared = shared(&table, &machine::interfaces_of(&server.addresses));
            if !server.witness {
                host.interfaces = interfaces(&table, config);
            }
        }
        if !server.witness {
            host.scripts = scripts(&config.scripts.directory);
        }
        host
    }
}

fn interfaces(table: &Table, config: &Config) -> BTreeMap<VirtualServerName, Unfit> {
    let unfit = |v: &config::VirtualServer| {
        let name = v.interface.clone();
        let state = table.state(&name);
        if state != LinkState::Up {
            return Some(Unfit::Link(name, state));
        }
        if table.is_loopback(&name) {
            return Some(Unfit::Loopback(name));
        }
        let own = table.name(&name).unwrap_or(&name);
        let wants_ipv6 = v.addresses.iter().any(|a| a.ip.is_ipv6());
        if wants_ipv6 && ipv6_is_off(own) {
            return Some(Unfit::NoIpv6(name));
        }
        (own != name).then(|| Unfit::OtherName(name.clone(), own.to_owned()))
    };
    let all = config.virtual_servers.iter();
    all.filter_map(|v| Some((v.name.clone(), unfit(v)?)))
        .collect()
}

/// By the administrator's will, for this interface or for the whole machine.
fn ipv6_is_off(interface: &str) -> bool {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(interface);
    fs::read_to_string(path.join("disable_ipv6")).map_or(true, |text| text.trim() != "0")
}

fn shared(table: &Table, addresses: &[(String, IpAddr)]) -> Vec<(String, Vec<IpAddr>)> {
    let mut by_cable = BTreeMap::<&str, Vec<IpAddr>>::new();
    for (interface, ip) in addresses {
        if let Some(cable) = table.cable(interface)
            && !table.is_loopback(cable)
        {
            by_cable.entry(cable).or_default().push(*ip);
        }
    }
    let several = by_cable.into_iter().filter(|(_, ips)| ips.len() > 1);
    several
        .map(|(cable, ips)| (cable.to_owned(), ips))
        .collect()
}

/// Every fault of the role scripts below `directory`.
fn scripts(directory: &Path) -> Vec<(PathBuf, ScriptFault)> {
    let folders = SCRIPT_FOLDERS.map(|folder| directory.join(folder));
    folders.iter().flat_map(|folder| faults(folder)).collect()
}

fn faults(folder: &Path) -> Vec<(PathBuf, ScriptFault)> {
    let Ok(metadata) = fs::metadata(folder) else {
        return Vec::new(); // no folder, no scripts
    };
    let Ok(entries) = fs::read_dir(folder) else {
        let readable = Uid::effective().is_root(); // who is not root need not be able to
        return readable
            .then(|| (folder.to_owned(), ScriptFault::Unreadable))
            .into_iter()
            .collect();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let own = others_may_write(&metadata).then(|| (folder.to_owned(), ScriptFault::Writable));
    let scripts = paths
        .into_iter()
        .filter(|path| !takeover::is_left_over(path));
    let faulty = scripts.filter_map(|path| fault(&path).map(|fault| (path, fault)));
    own.into_iter().chain(faulty).collect()
}

fn fault(path: &Path) -> Option<ScriptFault> {
    let Ok(metadata) = fs::metadata(path) else {
        return Some(ScriptFault::Dangling);
    };
    if !metadata.is_file() {
        return None;
    }
    let mut head = Vec::new();
    let read = File::open(path).map(|file| file.take(SHEBANG_MAX as u64).read_to_end(&mut head));
    let interpreter = read.ok().and_then(|_| interpreter(&head));
    let executable = metadata.permissions().mode() & 0o111 != 0;
    match interpreter {
        // A file that is no script, such as a README, need not be executable.
        None if !executable => None,
        Some(_) if !executable || access(path, AccessFlags::X_OK).is_err() => {
            Some(ScriptFault::NotExecutable)
        }
        Some(missing) if find(&missing).is_none() => Some(ScriptFault::NoInterpreter(
            missing.to_string_lossy().into_owned(),
        )),
        Some(_) | None => others_may_write(&metadata).then_some(ScriptFault::Writable),
    }
}

/// The program that the first line names; of `env` the one that it is to find.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let mut words = line.split(blank).filter(|word| !word.is_empty());
    let first = Path::new(OsStr::from_bytes(words.next()?));
    if first.file_name() != Some(OsStr::new("env")) {
        return Some(first.to_owned());
    }
    let option = |word: &&[u8]| word.starts_with(b"-") || word.contains(&b'=');
    let found = words.find(|word| !option(word));
    Some(found.map_or(first.to_owned(), |word| {
        PathBuf::from(OsStr::from_bytes(word))
    }))
}

/// Where a program is; one without a slash is looked for as role scripts do.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    let folders = takeover::SCRIPT_PATH.split(':');
    folders
        .map(|f| Path::new(f).join(program))
        .find(|p| p.exists())
}

fn others_may_write(metadata: &Metadata) -> bool {
    let owner = Uid::from_raw(metadata.uid());
    let root = owner.is_root() || owner == Uid::effective();
    let group = metadata.gid() != 0 && metadata.mode() & 0o020 != 0;
    !root || group || metadata.mode() & 0o002 != 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn script(folder: &Path, name: &str, text: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn scripts_that_do_not_run_or_that_others_may_write_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("master.d");
        fs::create_dir(&folder).unwrap();
        let good = "#!/bin/sh\nexit 0\n";
        for (name, text, mode) in [
            ("10-good", good, 0o755),
            ("11-env", "#!/usr/bin/env -S LANG=C sh\n", 0o755),
            ("12-no-first-line", "exit 0\n", 0o755),
            ("20-plain", good, 0o644),
            ("21-readme", "Put scripts here.\n", 0o644),
            ("30-no-python", "#!/usr/bin/python9 -u\n", 0o755),
            ("31-dos", "#!/bin/sh\r\nexit 0\r\n", 0o755),
            ("32-env", "#!/usr/bin/env no-such-program\n", 0o755),
            ("40-anybody", good, 0o757),
            ("50-backup~", good, 0o644),
        ] {
            script(&folder, name, text, mode);
        }
        std::os::unix::fs::symlink("/nowhere/at/all", folder.join("60-link")).unwrap();
        let no = |what: &str| ScriptFault::NoInterpreter(what.to_owned());
        let expected = [
            ("20-plain", ScriptFault::NotExecutable),
            ("30-no-python", no("/usr/bin/python9")),
            ("31-dos", no("/bin/sh\r")),
            ("32-env", no("no-such-program")),
            ("40-anybody", ScriptFault::Writable),
            ("60-link", ScriptFault::Dangling),
        ];
        let expected = expected.map(|(name, fault)| (folder.join(name), fault));
        assert_eq!(scripts(directory.path()), expected);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let all = scripts(directory.path());
        assert_eq!(all[0], (folder.clone(), ScriptFault::Writable));
    }
}
