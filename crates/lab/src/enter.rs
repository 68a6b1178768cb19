//! The way into the lab: namespaces for everything, so that nothing outlives it.

use crate::{Error, process::tool};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getegid, geteuid},
};
use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, exit},
};

/// Marks the stages; never handed on to the lab's daemons.
pub(crate) const STAGE: &str = "STANDIN_LAB_STAGE";
/// The lab's folder, on a file system in memory that only the lab sees.
pub const FOLDER: &str = "/run/standin-lab";
/// The stage of a process that only keeps the CPUs awake.
pub(crate) const SPIN: &str = "spin";
/// Exit code of the first process for "this system does not let me".
const NOT_PERMITTED: i32 = 125;

/// Puts this program into mount, network and process namespaces of its own (and, for an ordinary user, a user
/// namespace in which that user is root). Must come first in `main`, while there is one thread: the program is
/// started again inside, and only there does this return `Ok`. The outer program ends with the inner one's exit
/// code.
pub fn enter() -> Result<(), Error> {
    match env::var(STAGE).as_deref() {
        Err(_) => outside(),
        Ok("first") => match first() {
            Err(error) => {
                eprintln!("{error}");
                exit(NOT_PERMITTED)
            }
            Ok(never) => match never {},
        },
        Ok(SPIN) => crate::stall::spin(),
        Ok(_) => inside(),
    }
}

/// A command that starts this program again, as that stage.
pub(crate) fn again(stage: &str) -> Result<Command, Error> {
    let program = env::current_exe().map_err(Error::system("own program's path"))?;
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).env(STAGE, stage);
    Ok(command)
}

/// Makes the namespaces and waits for the program inside them.
fn outside() -> Result<(), Error> {
    let (uid, gid) = (geteuid(), getegid());
    let spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if !uid.is_root() || unshare(spaces).is_err() {
        unshare(spaces | CloneFlags::CLONE_NEWUSER).map_err(|e| Error::NotPermitted {
            what: format!("making namespaces ({e})"),
        })?;
        let maps = [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {uid} 1")),
            ("gid_map", format!("0 {gid} 1")),
        ];
        for (file, text) in maps {
            fs::write(Path::new("/proc/self").join(file), text).map_err(|e| {
                Error::NotPermitted {
                    what: format!("writing {file} of a user namespace ({e})"),
                }
            })?;
        }
    }
    let status = again("first")?
        .status()
        .map_err(Error::system("starting the program inside the lab"))?;
    match status.code() {
        Some(NOT_PERMITTED) => Err(Error::NotPermitted {
            what: "preparing the lab's namespaces".to_owned(),
        }),
        Some(code) => exit(code),
        None => exit(128 + status.signal().unwrap_or(0)),
    }
}

enum Never {}

/// The first process of the new process namespace: when it ends, the kernel ends all others. It prepares the
/// file systems, starts the program and reaps whatever loses its parent.
fn first() -> Result<Never, Error> {
    let refused = |what: &'static str| {
        move |e| Error::NotPermitted {
            what: format!("{what} ({e})"),
        }
    };
    set_pdeathsig(Signal::SIGKILL).map_err(Error::system("asking to end with the parent"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(refused("making mounts private"))?;
    let hidden = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        hidden | MsFlags::MS_NOEXEC,
        none,
    )
    .map_err(refused("mounting /proc"))?;
    mount(Some("lab"), "/run", Some("tmpfs"), hidden, Some("mode=755"))
        .map_err(refused("mounting /run"))?;
    fs::create_dir(FOLDER).map_err(Error::system(FOLDER))?;
    let child = again("inside")?
        .spawn()
        .map_err(Error::system("starting the program inside the lab"))?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => exit(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => exit(128 + signal as i32),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(Error::system("waiting for the lab's processes")(error)),
        }
    }
}

fn inside() -> Result<(), Error> {
    set_pdeathsig(Signal::SIGKILL).map_err(Error::system("asking to end with the parent"))?;
    tool("nft", &["--version"], "")?;
    tool("ip", &["link", "set", "dev", "lo", "up"], "")
}
