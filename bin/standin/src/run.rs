//! `standin run`: the main daemon. It starts the roles, restarts a dead one at once, and stops them in order;
//! the roles outlive it and a new main daemon finds them again.

use crate::child::Keeper;
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::{ClusterKeys, Config};
use daemon::{Args, Boot, Error, Event, EventLoop, START_PRIORITY};
use mio::{Interest, unix::SourceFd};
use nix::sys::signal::Signal;
use protocol::{
    BootTime, Role,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::Detail,
    },
};
use std::{
    collections::VecDeque,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{self, Child, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

/// In the order of their start.
pub const ROLES: [Role; 5] = [
    Role::Hbd,
    Role::Listend,
    Role::Doctord,
    Role::Electd,
    Role::Syncd,
];
/// In the order of their end: electd hands over first, while the others still carry its words.
const STOP_ORDER: [Role; 5] = [
    Role::Electd,
    Role::Syncd,
    Role::Listend,
    Role::Doctord,
    Role::Hbd,
];
/// A new key restarts these, in this order: without rights they cannot read it. Everything else is read
/// again in place.
const NEW_KEY_ORDER: [Role; 2] = [Role::Hbd, Role::Listend];
/// How long a role without addresses may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long electd may take, beyond two leases and a script's time limit, to hand over and to clean up.
const HANDOVER_LIMIT: Duration = Duration::from_secs(5);
/// A reload lets a restarted role find its neighbours before it restarts the next.
const RELOAD_STEP: Duration = Duration::from_millis(250);
/// A killed process that is not gone by then is looked at again.
const REAP_RETRY: Duration = Duration::from_millis(1);
/// How long `--daemon` waits for the main daemon to serve.
const DAEMON_LIMIT: Duration = Duration::from_secs(10);
/// `--log` if not given.
const LOG: &str = "/var/log/standin.log";

/// Those that have anything to do.
pub fn roles(config: &Config) -> impl Iterator<Item = Role> {
    let idle = (!config.runs_syncd()).then_some(Role::Syncd);
    ROLES.into_iter().filter(move |r| Some(*r) != idle)
}

pub fn command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("run")
        .about("The main daemon: start all roles of this server and keep them running")
        .arg(flag("daemon").help("Go to the background once it serves"))
        .arg(flag("detached").hide(true))
        .arg(
            Arg::new("log")
                .long("log")
                .value_name("FILE")
                .default_value(LOG)
                .help("With --daemon: append the log to FILE"),
        )
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    let args = crate::args(matches);
    if matches.get_flag("daemon") {
        let log = matches.get_one::<String>("log").map_or(LOG, String::as_str);
        return match detach(&args, Path::new(log)) {
            Ok(pid) => {
                println!("standin runs, pid {pid}, log {log}");
                ExitCode::SUCCESS
            }
            Err(e) => crate::fail(&e),
        };
    }
    if matches.get_flag("detached") {
        // Fails only for the leader of a process group, which a spawned process is not.
        let _ = nix::unistd::setsid();
    }
    daemon::run_as(Role::Main, args, main_daemon)
}

/// Starts the main daemon in a session of its own and waits until it serves; its process number.
fn detach(args: &Args, log: &Path) -> Result<u32, Error> {
    // What is wrong with the configuration is said here, where somebody reads it.
    daemon::load_config(args)?;
    let failed = |what: String| move |e| Error::io(what, e);
    let output = OpenOptions::new().create(true).append(true).open(log);
    let output = output.map_err(failed(format!("cannot open the log {}", log.display())))?;
    let errors = output
        .try_clone()
        .map_err(failed("cannot copy a descriptor".into()))?;
    let own = std::env::current_exe().map_err(failed("cannot find this executable".into()))?;
    let child = process::Command::new(own)
        .arg("run")
        .arg("--detached")
        .args(args.to_arguments())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn();
    let child = child.map_err(failed("cannot start the main daemon".into()))?;
    await_service(child, args, log)
}

fn await_service(mut child: Child, args: &Args, log: &Path) -> Result<u32, Error> {
    let end = Instant::now() + DAEMON_LIMIT;
    let step = Duration::from_millis(10);
    while Instant::now() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::Failed(format!(
                "the main daemon ended at once ({status}); see {}",
                log.display()
            )));
        }
        match daemon::ctl::call(&args.run_dir, Role::Main, &CtlRequest::Status, step * 10) {
            Ok(CtlReply::Status(status)) if status.pid == child.id() => return Ok(child.id()),
            Ok(_) | Err(_) => thread::sleep(step),
        }
    }
    Err(Error::Failed(format!(
        "the main daemon does not answer; see {}",
        log.display()
    )))
}

fn main_daemon(boot: Boot) -> Result<(), Error> {
    for role in roles(&boot.config) {
        crate::child::executable(role)?;
    }
    let looped = EventLoop::open(&boot, &[], &[])?;
    let pid_file = PidFile::write(&boot.args.run_dir)?;
    let notes = boot.realtime(START_PRIORITY);
    let now = daemon::now();
    let keepers = roles(&boot.config)
        .map(|role| Keeper::new(role, &boot.args, now))
        .collect();
    let mut main = Main {
        keys: boot.keys().ok(),
        boot,
        looped,
        keepers,
        notes,
        reloads: VecDeque::new(),
        next_reload: None,
        look_again: None,
        stopping: false,
    };
    main.adopt()?;
    main.work()?;
    main.boot.ready();
    let end = main.serve();
    takeover::unmount_gate(&main.boot.args.run_dir);
    drop(pid_file);
    end
}

/// `<run-dir>/standin.pid`, for init scripts.
struct PidFile(PathBuf);

impl PidFile {
    fn write(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join("standin.pid");
        std::fs::write(&path, format!("{}\n", process::id()))
            .map_err(|e| Error::io(format!("cannot write {}", path.display()), e))?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A file left over names a process that is gone, which init scripts expect.
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Main {
    boot: Boot,
    looped: EventLoop,
    keepers: Vec<Keeper>,
    notes: Vec<String>,
    /// The cluster keys in force, if they could be read.
    keys: Option<ClusterKeys>,
    /// Roles that a new key has still to restart.
    reloads: VecDeque<Role>,
    next_reload: Option<BootTime>,
    /// A process has ended and could not be reaped yet.
    look_again: Option<BootTime>,
    stopping: bool,
}

impl Main {
    /// Watches the roles found running.
    fn adopt(&mut self) -> Result<(), Error> {
        for (id, keeper) in self.keepers.iter().enumerate() {
            watch(&mut self.looped, id, keeper)?;
        }
        Ok(())
    }

    fn serve(&mut self) -> Result<(), Error> {
        let mut events = Vec::new();
        while !self.finished() {
            let deadline = self.deadline();
            self.looped.wait(deadline, &mut events)?;
            for event in events.drain(..) {
                match event {
                    Event::Ctl { conn, request } => {
                        let reply = self.answer(&request);
                        self.looped.reply(conn, &reply);
                    }
                    Event::Terminate => self.stop(),
                    Event::Reload => self.reload(),
                    Event::Source { .. }
                    | Event::Deadline
                    | Event::Woken
                    | Event::Message { .. }
                    | Event::Up(_)
                    | Event::Down(_)
                    | Event::PeerGone(_) => {}
                }
            }
            self.work()?;
        }
        log::info!("all roles have ended");
        Ok(())
    }

    fn finished(&self) -> bool {
        self.stopping && self.keepers.iter().all(|k| !k.runs())
    }

    fn deadline(&self) -> Option<BootTime> {
        let own = self
            .keepers
            .iter()
            .flat_map(|k| [k.start_at, k.kill_at])
            .flatten();
        own.chain(self.next_reload).chain(self.look_again).min()
    }

    /// Does whatever is due; harmless if nothing is.
    fn work(&mut self) -> Result<(), Error> {
        let now = daemon::now();
        self.look_again = None;
        for id in 0..self.keepers.len() {
            self.bury(id, now);
            let keeper = &mut self.keepers[id];
            if keeper.kill_at.is_some_and(|at| at <= now) {
                log::error!("{} does not end; killing it", keeper.role);
                keeper.signal(Signal::SIGKILL);
                keeper.kill_at = Some(now + STOP_LIMIT);
            }
            if keeper.start_at.is_some_and(|at| at <= now) && !self.stopping {
                self.start(id, now)?;
            }
        }
        if self.stopping {
            self.stop_next(now);
        } else if self.next_reload.is_some_and(|at| at <= now) {
            self.reload_next(now);
        }
        Ok(())
    }

    fn start(&mut self, id: usize, now: BootTime) -> Result<(), Error> {
        let keeper = &mut self.keepers[id];
        if let Err(e) = keeper.start(&self.boot, now) {
            log::error!("{e}");
            return Ok(());
        }
        watch(&mut self.looped, id, keeper)
    }

    /// A process that has ended is reaped before another is started (ELECTION R8).
    fn bury(&mut self, id: usize, now: BootTime) {
        let keeper = &mut self.keepers[id];
        let asked = keeper.kill_at.is_some();
        // Closing the descriptor ends the watch as well.
        let Some(how) = keeper.reap() else {
            if keeper.ended() {
                self.look_again = Some(now + REAP_RETRY);
            }
            return;
        };
        let role = keeper.role;
        if self.stopping {
            log::info!("{role} has ended: {how}");
        } else if asked {
            keeper.start_at = Some(now);
        } else {
            let pause = keeper.mourn(now);
            let when = if pause.is_zero() {
                "at once".to_owned()
            } else {
                format!("in {} ms, for it died often", pause.as_millis())
            };
            log::error!("{role} died ({how}); starting it again {when}");
        }
    }

    fn stop(&mut self) {
        if !self.stopping {
            log::info!("stopping");
            self.stopping = true;
            self.reloads.clear();
            self.next_reload = None;
            for keeper in &mut self.keepers {
                keeper.start_at = None;
            }
        }
    }

    /// Asks the first role in order that still runs to end.
    fn stop_next(&mut self, now: BootTime) {
        let config = &self.boot.config;
        let limit = HANDOVER_LIMIT + 2 * config.cluster.lease + config.scripts.timeout;
        let running = |role: &Role| {
            self.keepers
                .iter()
                .position(|k| k.role == *role && k.runs())
        };
        if let Some(id) = STOP_ORDER.iter().find_map(running) {
            let keeper = &mut self.keepers[id];
            if keeper.kill_at.is_none() {
                let limit = if keeper.role == Role::Electd {
                    limit
                } else {
                    STOP_LIMIT
                };
                keeper.kill_at = Some(now + limit);
                keeper.signal(Signal::SIGTERM);
            }
        }
    }

    /// All roles read the configuration again in place; only a new key restarts hbd and listend.
    fn reload(&mut self) {
        if self.stopping {
            return;
        }
        if let Err(e) = self.boot.reload() {
            for line in e.to_string().lines() {
                log::error!("reload: {line}");
            }
            log::error!("reload: the configuration in force is kept");
            return;
        }
        let keys = match self.boot.keys() {
            Ok(keys) => Some(keys),
            Err(e) => {
                log::error!("reload: the cluster key in force is kept: {e}");
                self.keys.clone()
            }
        };
        self.enlist();
        let new_key = keys != self.keys;
        self.keys = keys;
        let what = if new_key {
            "; the key is new: restarting hbd, then listend"
        } else {
            ""
        };
        log::info!("reload: telling the roles{what}");
        let restarted = |role| new_key && NEW_KEY_ORDER.contains(&role);
        for keeper in self.keepers.iter().filter(|k| !restarted(k.role)) {
            keeper.signal(Signal::SIGHUP);
        }
        if new_key {
            self.reloads = NEW_KEY_ORDER.into();
            self.next_reload = Some(daemon::now());
        }
    }

    /// A role that has got something to do is started. One that has nothing to do any more knows that itself.
    fn enlist(&mut self) {
        let new = |r: &Role| !self.keepers.iter().any(|k| k.role == *r);
        let new: Vec<Role> = roles(&self.boot.config).filter(new).collect();
        for role in new {
            let keeper = Keeper::new(role, &self.boot.args, daemon::now());
            if let Err(e) = watch(&mut self.looped, self.keepers.len(), &keeper) {
                log::error!("{role}: {e}");
                continue;
            }
            self.keepers.push(keeper);
        }
    }

    fn reload_next(&mut self, now: BootTime) {
        // The one before must be back first.
        if self
            .keepers
            .iter()
            .any(|k| k.kill_at.is_some() || !k.runs())
        {
            self.next_reload = Some(now + REAP_RETRY * 10);
            return;
        }
        let Some(role) = self.reloads.pop_front() else {
            self.next_reload = None;
            return;
        };
        if let Some(keeper) = self.keepers.iter_mut().find(|k| k.role == role) {
            keeper.signal(Signal::SIGTERM);
            keeper.kill_at = Some(now + STOP_LIMIT);
        }
        self.next_reload = Some(now + RELOAD_STEP);
    }

    fn answer(&self, request: &CtlRequest) -> CtlReply {
        match request {
            CtlRequest::Status => {
                let roles = self.keepers.iter().map(Keeper::status).collect();
                let detail = Detail::Main { roles };
                let counters = self.looped.counters();
                CtlReply::Status(Box::new(self.boot.status(
                    counters,
                    self.notes.clone(),
                    detail,
                )))
            }
            CtlRequest::Promote { .. }
            | CtlRequest::Resign
            | CtlRequest::Maintenance(_)
            | CtlRequest::ServerAdd(_)
            | CtlRequest::ServerRemove(_)
            | CtlRequest::SyncNow { .. }
            | CtlRequest::SyncTook { .. } => {
                CtlReply::No("that is electd's to do, not the main daemon's".into())
            }
        }
    }
}

/// Lets the end of a keeper's process wake the loop.
fn watch(looped: &mut EventLoop, id: usize, keeper: &Keeper) -> Result<(), Error> {
    match keeper.raw_fd() {
        Some(fd) => looped.register(&mut SourceFd(&fd), id, Interest::READABLE),
        None => Ok(()),
    }
}
