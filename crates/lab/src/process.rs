//! Processes: tools, standin's own programs, and what `/proc` tells about those on a host.

use crate::{Error, enter::STAGE};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};
use std::{
    env, fs, io,
    io::Write,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// Folders that are not in every user's path.
const SBIN: &str = ":/usr/local/sbin:/usr/sbin:/sbin";

/// A command that does not inherit the lab's mark, and finds tools in the `sbin` folders too.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = env::var("PATH").unwrap_or_default();
    command.env_remove(STAGE).env("PATH", path + SBIN);
    command
}

/// The path of a program of the system, for those that must be called by it.
pub(crate) fn find(name: &str) -> Result<PathBuf, Error> {
    let path = env::var("PATH").unwrap_or_default() + SBIN;
    let mut folders = env::split_paths(&path).map(|folder| folder.join(name));
    folders
        .find(|p| p.is_absolute() && p.is_file())
        .ok_or_else(|| Error::Missing {
            tool: name.to_owned(),
        })
}

/// Runs a tool of the system in the calling thread's namespace, with `input` on its standard input.
pub(crate) fn tool(program: &str, args: &[&str], input: &str) -> Result<(), Error> {
    let named = || format!("{program} {}", args.join(" "));
    let mut child = command(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                tool: program.to_owned(),
            },
            _ => Error::system(named())(e),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends early says why on standard error; that is the better message.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::system(named()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Refused {
        command: named(),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The path of one of standin's own programs: in `STANDIN_BIN_DIR` if that is set, else beside this program or
/// in the folder above it.
pub fn binary(name: &str) -> Result<PathBuf, Error> {
    let folders: Vec<PathBuf> = match env::var_os("STANDIN_BIN_DIR") {
        Some(folder) => vec![folder.into()],
        None => {
            let program = env::current_exe().map_err(Error::system("own program's path"))?;
            program
                .ancestors()
                .skip(1)
                .take(2)
                .map(PathBuf::from)
                .collect()
        }
    };
    let found = folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| Error::NoBinary {
        name: name.to_owned(),
        folders,
    })
}

/// A process of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its name: the program's, or what it called itself.
    pub name: String,
    /// Its command line.
    pub line: Vec<String>,
}

/// What processes have used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a CPU, user and system.
    pub cpu: Duration,
    /// Memory in use now, in bytes.
    pub rss: u64,
}

/// Every process whose network namespace is the one with this inode number.
pub(crate) fn in_namespace(inode: u64) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let processes = entries.flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let namespace = fs::metadata(entry.path().join("ns/net")).ok()?;
        if namespace.ino() != inode {
            return None;
        }
        let name = fs::read_to_string(entry.path().join("comm"))
            .ok()?
            .trim_end()
            .to_owned();
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = line
            .split(|b| *b == 0)
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect();
        Some(Process { pid, name, line })
    });
    processes.collect()
}

impl Process {
    /// Sends it a Unix signal; that it is gone already is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => Err(Error::system(format!(
                "sending {signal} to {} ({})",
                self.name, self.pid
            ))(error)),
        }
    }

    /// What it has used so far; nothing if it is gone.
    pub fn usage(&self) -> Usage {
        let ticks = sysconf(SysconfVar::CLK_TCK)
            .ok()
            .flatten()
            .unwrap_or(100)
            .max(1)
            .unsigned_abs();
        // Nanoseconds on a CPU, exact where the kernel keeps them; the ticks of `stat` hide short runs.
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid))
            .into_iter()
            .flatten()
            .flatten();
        let exact: Option<u64> = tasks
            .map(|t| {
                fs::read_to_string(t.path().join("schedstat"))
                    .ok()?
                    .split(' ')
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .sum();
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<u64> = after.split(' ').map(|f| f.parse().unwrap_or(0)).collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        let coarse = Duration::from_millis((field(11) + field(12)) * 1000 / ticks);
        let page = sysconf(SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .unwrap_or(4096)
            .unsigned_abs();
        Usage {
            cpu: exact
                .filter(|ns| *ns > 0)
                .map_or(coarse, Duration::from_nanos),
            rss: field(21) * page,
        }
    }
}

/// Kills everything in a namespace: again and again, since what is killed may just have started another.
pub(crate) fn kill_namespace(inode: u64) -> Result<(), Error> {
    for _ in 0..500 {
        let living: Vec<_> = in_namespace(inode);
        if living.is_empty() {
            return Ok(());
        }
        for process in living {
            process.signal(Signal::SIGKILL)?;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let names: Vec<_> = in_namespace(inode).into_iter().map(|p| p.name).collect();
    Err(Error::Wrong(format!(
        "these do not die: {}",
        names.join(", ")
    )))
}
