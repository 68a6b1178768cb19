//! One role as the main daemon sees it: a process of its own, or one it found running.

use crate::{
    process,
    pulse::{Greeting, Pulse},
};
use daemon::{
    Args, Boot, Error, START_PRIORITY,
    ctl::Ping,
    sys::{pidfd_open, pidfd_send_signal, scheduler_fifo, scheduler_fifo_for_children},
};
use mutants::{Mutant, planted};
use nix::sys::signal::Signal;
use protocol::{
    BootTime, Role,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::ChildStatus,
    },
};
use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long a running role may take to say who it is.
const ADOPT_TIMEOUT: Duration = Duration::from_millis(300);
/// So many deaths within [`DEATHS_SPAN`] are mended at once.
const DEATHS_MAX: usize = 5;
/// What counts as repeated.
const DEATHS_SPAN: Duration = Duration::from_secs(10);
/// Whoever lived so long was well: its death is the first again, for mending it at once costs a twentieth of a
/// processor at most (a start takes some 10 ms).
const WELL: Duration = Duration::from_millis(200);
/// The same for one that SIGKILL ended, which no fault of its own does: an operator, or a kernel short of memory.
const WELL_IF_KILLED: Duration = Duration::from_millis(50);
/// First and last pause before the next start after repeated deaths.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The executable of `role`: beside this one.
pub fn executable(role: Role) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|e| Error::io("cannot find this executable", e))?;
    let path = own.with_file_name(role.name());
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Failed(format!(
        "{} is missing; install it beside {}",
        path.display(),
        own.display()
    )))
}

/// A role and its process, if it has one now.
pub struct Keeper {
    pub role: Role,
    process: Option<Process>,
    started: BootTime,
    starts: u64,
    deaths: Deaths,
    /// The last death was by SIGKILL.
    killed: bool,
    /// When it must be started.
    pub start_at: Option<BootTime>,
    /// When it must be killed, because it was asked to end.
    pub kill_at: Option<BootTime>,
    /// It was killed, and is still there.
    pub stuck: Option<String>,
    /// SIGKILL was sent to the process.
    sigkilled: Cell<bool>,
    /// Since when its socket has had no name.
    unnamed: Option<BootTime>,
    pulse: Pulse,
    ping: Option<Ping>,
}

struct Process {
    pid: u32,
    pidfd: OwnedFd,
    /// None: found running, not ours to reap.
    child: Option<Child>,
}

impl Keeper {
    /// Takes over the instance that answers at the role's socket, if there is one; else the role is due to
    /// be started.
    pub fn new(role: Role, args: &Args, now: BootTime) -> Self {
        let found = find(role, args);
        let started = found.as_ref().map_or(now, |(_, started)| *started);
        let process = found.map(|(process, _)| process);
        let start_at = process.is_none().then_some(now);
        let starts = u64::from(process.is_some());
        let deaths = Deaths::default();
        Self {
            role,
            process,
            started,
            starts,
            deaths,
            killed: false,
            start_at,
            kill_at: None,
            stuck: None,
            sigkilled: Cell::new(false),
            unnamed: None,
            pulse: Pulse::new(starts > 0),
            ping: None,
        }
    }

    /// Greets it, once a second; for how long it has been silent, if that is too long.
    pub fn ping(&mut self, run_dir: &Path, now: BootTime) -> Option<Duration> {
        let sent = self.ping.take();
        if !self.runs() {
            return None;
        }
        let greeting = match &sent {
            Some(ping) if ping.answered() => Greeting::Answered,
            Some(_) => Greeting::Unanswered,
            None => Greeting::Unreachable,
        };
        let silent = self.pulse.tick(now, greeting);
        self.ping = match Ping::send(run_dir, self.role) {
            Ok(ping) => Some(ping),
            // No room for one more greeting.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sent,
            Err(_) => None,
        };
        silent.filter(|_| self.kill_at.is_none())
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|p| p.pid)
    }

    /// What an operator should know of it.
    pub fn note(&self) -> Option<String> {
        self.stuck.clone()
    }

    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Readable when the process has ended.
    pub fn raw_fd(&self) -> Option<i32> {
        self.process.as_ref().map(|p| p.pidfd.as_raw_fd())
    }

    /// Whether the process has ended.
    pub fn ended(&self) -> bool {
        self.process.as_ref().is_some_and(|p| exited(&p.pidfd))
    }

    /// Starts the role. It stays when the main daemon dies, and no key pressed in the main daemon's terminal
    /// reaches it.
    pub fn start(&mut self, boot: &Boot, now: BootTime) -> Result<(), Error> {
        self.start_at = None;
        let started = executable(self.role).and_then(|path| {
            let mut command = Command::new(&path);
            command
                .args(boot.args.to_arguments())
                .stdin(Stdio::null())
                .process_group(0);
            for own in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
                command.env_remove(own);
            }
            let failed = |e| Error::io(format!("cannot start {}", path.display()), e);
            let mut child = spawn(&mut command, boot.config.cluster.realtime).map_err(failed)?;
            match pidfd_open(child.id()) {
                Ok(pidfd) => Ok(Process {
                    pid: child.id(),
                    pidfd,
                    child: Some(child),
                }),
                Err(e) => {
                    // Unwatched it would never be started again.
                    let _ = child.kill().and_then(|()| child.wait());
                    Err(failed(e))
                }
            }
        });
        match started {
            Ok(process) => {
                self.process = Some(process);
                self.pulse = Pulse::default();
                self.ping = None;
                self.unnamed = None;
                self.sigkilled.set(false);
                self.started = now;
                self.starts += 1;
                Ok(())
            }
            Err(e) => {
                self.start_at = Some(now + self.deaths.note(now).max(PAUSE.0));
                Err(e)
            }
        }
    }

    /// Reaps the process if it has ended; how it ended, in words.
    pub fn reap(&mut self) -> Option<String> {
        let process = self.process.as_mut()?;
        self.killed = false;
        let how = match &mut process.child {
            Some(child) => match child.try_wait() {
                Ok(None) => return None,
                Ok(Some(status)) => {
                    self.killed = status.signal() == Some(Signal::SIGKILL as i32);
                    status.to_string()
                }
                Err(e) => e.to_string(),
            },
            // Only the kernel's word counts, whoever reaps it.
            None if exited(&process.pidfd) => "ended".to_owned(),
            None => return None,
        };
        self.process = None;
        self.kill_at = None;
        self.stuck = None;
        Some(how)
    }

    /// The role died unasked: when to start it again.
    pub fn mourn(&mut self, now: BootTime) -> Duration {
        let well = if self.killed { WELL_IF_KILLED } else { WELL };
        if now.since(self.started) >= well {
            self.deaths = Deaths::default();
        }
        let pause = self.deaths.note(now);
        self.start_at = (!planted(Mutant::DeadNotReplaced)).then_some(now + pause);
        pause
    }

    /// Whether SIGKILL was sent to it.
    pub fn killed(&self) -> bool {
        self.sigkilled.get()
    }

    /// For how long nobody could connect to it, for another program removed its socket.
    pub fn unnamed_for(&mut self, run_dir: &Path, now: BootTime) -> Duration {
        let named = run_dir.join(format!("{}.sock", self.role)).exists();
        let applies = self.pulse.is_known() && self.runs() && self.kill_at.is_none();
        if named || !applies {
            self.unnamed = None;
        } else if self.unnamed.is_none() {
            self.unnamed = Some(now);
        }
        self.unnamed
            .map_or(Duration::ZERO, |since| now.since(since))
    }

    pub fn signal(&self, signal: Signal) {
        if signal == Signal::SIGKILL {
            self.sigkilled.set(true);
        }
        if let Some(process) = &self.process
            && let Err(e) = pidfd_send_signal(process.pidfd.as_fd(), signal as i32)
        {
            log::warn!("cannot send {signal} to {}: {e}", self.role);
        }
    }

    pub fn status(&self) -> ChildStatus {
        ChildStatus {
            role: self.role,
            pid: self.pid(),
            started: self.started,
            restarts: self.starts.saturating_sub(1),
        }
    }
}

/// In real time from its first instruction on, where that is permitted: on a busy machine a lease may run out
/// before an ordinary process has begun.
fn spawn(command: &mut Command, realtime: bool) -> io::Result<Child> {
    let realtime = realtime && scheduler_fifo_for_children(START_PRIORITY).is_ok();
    let child = command.spawn();
    if realtime {
        // What was permitted with more is permitted with less.
        let _ = scheduler_fifo(START_PRIORITY);
    }
    child
}

fn find(role: Role, args: &Args) -> Option<(Process, BootTime)> {
    let ask = || match daemon::ctl::call(&args.run_dir, role, &CtlRequest::Status, ADOPT_TIMEOUT) {
        Ok(CtlReply::Status(status)) => Some(status),
        Ok(CtlReply::Done(_) | CtlReply::No(_)) | Err(_) => None,
    };
    let Some(first) = ask() else {
        return find_silent(role, args);
    };
    let pidfd = pidfd_open(first.pid).ok()?;
    // Asked again behind the descriptor: the number was not given to another process in between.
    let again = ask().filter(|again| again.pid == first.pid)?;
    log::info!("{role} runs already, pid {}: watching it", again.pid);
    let (pid, child) = (again.pid, None);
    Some((Process { pid, pidfd, child }, again.started))
}

/// One that hangs, or whose socket was removed: it is watched like any other, and restarted if it stays so.
fn find_silent(role: Role, args: &Args) -> Option<(Process, BootTime)> {
    let pid = process::find(role, args)?;
    let pidfd = pidfd_open(pid).ok()?;
    if exited(&pidfd) || !process::is_ours(pid, role, args) {
        return None;
    }
    log::warn!("{role} runs already, pid {pid}, and does not answer: watching it");
    let child = None;
    Some((Process { pid, pidfd, child }, daemon::now()))
}

fn exited(pidfd: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The last deaths of a role: one is mended at once, many are not, for that would only burn the machine.
#[derive(Default)]
struct Deaths {
    recent: VecDeque<BootTime>,
    pauses: u32,
}

impl Deaths {
    /// Notes a death; how long to wait before the next start.
    fn note(&mut self, now: BootTime) -> Duration {
        while self
            .recent
            .front()
            .is_some_and(|t| now.since(*t) > DEATHS_SPAN)
        {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        if self.recent.len() <= DEATHS_MAX {
            self.pauses = 0;
            return Duration::ZERO;
        }
        self.recent.pop_front();
        let pause = PAUSE
            .0
            .saturating_mul(1 << self.pauses.min(16))
            .min(PAUSE.1);
        self.pauses += 1;
        pause
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime(0) + Duration::from_millis(ms)
    }

    #[test]
    fn single_deaths_are_mended_at_once_and_repeated_ones_with_growing_pauses() {
        let mut deaths = Deaths::default();
        for i in 0..5 {
            assert_eq!(deaths.note(at(i)), Duration::ZERO);
        }
        let mut now = 5;
        for expected in [100, 200, 400, 800, 1600, 3200, 5000] {
            assert_eq!(deaths.note(at(now)), Duration::from_millis(expected));
            now += expected;
        }
        assert_eq!(
            deaths.note(at(now + 60_000)),
            Duration::ZERO,
            "a minute of health is forgiven"
        );
    }

    #[test]
    fn who_lived_for_a_fifth_of_a_second_is_replaced_at_once_however_often() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            config: dir.path().join("none"),
            run_dir: dir.path().to_owned(),
            state_dir: dir.path().to_owned(),
            server: None,
        };
        let mut keeper = Keeper::new(Role::Electd, &args, at(0));
        for i in 1..100 {
            assert_eq!(keeper.mourn(at(i * 200)), Duration::ZERO, "death {i}");
            keeper.started = at(i * 200);
        }
        let mut now = 99 * 200;
        for i in 1..5 {
            now += 199;
            assert_eq!(keeper.mourn(at(now)), Duration::ZERO, "early death {i}");
            keeper.started = at(now);
        }
        assert_eq!(keeper.mourn(at(now + 199)), PAUSE.0);
        // Killed from outside, a shorter life is enough.
        keeper.killed = true;
        assert_eq!(keeper.mourn(at(now + 50)), Duration::ZERO);
    }
}
