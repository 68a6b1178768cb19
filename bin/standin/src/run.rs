//! `standin run`: the main daemon. It starts the roles, restarts a dead one at once, and stops them in order;
//! the roles outlive it and a new main daemon finds them again. Every second it looks after them and the run-dir.

use crate::{child::Keeper, failover::alarm::Alarms, planned, process, pulse};
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::{ClusterKeys, Config, ConfigError};
use daemon::{Args, Boot, Error, Event, EventLoop, START_PRIORITY, eprintln, println};
use mio::{Interest, unix::SourceFd};
use nix::sys::signal::Signal;
use protocol::{
    BootTime, Role, ServerName,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::Detail,
    },
};
use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command as Program, ExitCode, Stdio},
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
/// How often, and how far apart, a port that is taken is tried again.
const PORT_TRIES: u32 = 5;
const PORT_PAUSE: Duration = Duration::from_millis(50);
/// A role without a name for its socket is restarted after so long.
const UNNAMED_LIMIT: Duration = Duration::from_secs(3);
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
    let loaded = daemon::load_or_kept(args)?;
    if let Some(e) = &loaded.refused {
        eprintln!("standin: {e}\nstandin: the last good configuration is in force");
    }
    if let Ok(me) = &loaded.me {
        startable(&loaded.config, me, args)?;
    }
    let failed = |what: String| move |e| Error::io(what, e);
    let log = &std::path::absolute(log).map_err(failed("cannot find the folder".into()))?;
    let output = daemon::open_log(log);
    let output = output.map_err(failed(format!("cannot open the log {}", log.display())))?;
    let errors = output
        .try_clone()
        .map_err(failed("cannot copy a descriptor".into()))?;
    let own = std::env::current_exe().map_err(failed("cannot find this executable".into()))?;
    let child = Program::new(own)
        .arg("run")
        .arg("--detached")
        .args(args.to_arguments())
        .env(daemon::LOG_FILE, log)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn();
    let child = child.map_err(failed("cannot start the main daemon".into()))?;
    if loaded.me.is_err() {
        println!(
            "this host has no address of a server of {} yet: waiting for one",
            args.config.display()
        );
        return Ok(child.id());
    }
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
    startable(&boot.config, &boot.me, &boot.args)?;
    boot.keep_config();
    restore_sockets(&boot.args.run_dir);
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
        look_after: now,
        stopping: false,
        alarms: None,
    };
    main.alarms = Alarms::start(
        main.boot.args.clone(),
        main.boot.config.clone(),
        main.boot.me.clone(),
    )
    .inspect_err(|e| log::error!("no alarms: cannot start a thread: {e}"))
    .ok();
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
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(|e| Error::io(format!("cannot write {}", path.display()), e))?;
        Ok(Self(path))
    }

    /// Makes it anew if it was removed.
    fn keep(run_dir: &Path) -> io::Result<()> {
        let path = run_dir.join("standin.pid");
        if path.exists() {
            return Ok(());
        }
        std::fs::write(path, format!("{}\n", std::process::id()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A file left over names a process that is gone, which init scripts expect.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn restore_sockets(run_dir: &Path) {
    for socket in daemon::run_dir::restore_sockets(run_dir) {
        log::warn!(
            "{}: owner or mode were changed by another program; put right",
            socket.display()
        );
    }
}

/// Refuses at once what no role could start with, instead of starting roles again and again: the key, and the port if
/// it is not a role of this server that has it.
fn startable(config: &Config, me: &ServerName, args: &Args) -> Result<(), Error> {
    let runs = |role| process::find(role, args).is_some();
    let (hbd, listend) = (runs(Role::Hbd), runs(Role::Listend));
    if !hbd || !listend {
        daemon::key::load(&config.cluster.key)?;
    }
    let port = config.cluster.port;
    for ip in config.server(me).map_or(&[][..], |s| &s.addresses) {
        // An address that is not here yet may come.
        let taken = try_port(*ip, port, !hbd, !listend)
            .is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse);
        if taken {
            let what = format!(
                "port {port} of {ip} is taken by another program; end it, or choose another port on all servers"
            );
            return Err(ConfigError::one(&config.file, None, "[cluster] port", what).into());
        }
    }
    Ok(())
}

/// Whether the port can be had. Who tries this as well has it only for a moment.
pub fn try_port(ip: IpAddr, port: u16, udp: bool, tcp: bool) -> io::Result<()> {
    let once = || -> io::Result<()> {
        let _udp = udp.then(|| UdpSocket::bind((ip, port))).transpose()?;
        let _tcp = tcp.then(|| TcpListener::bind((ip, port))).transpose()?;
        Ok(())
    };
    for _ in 0..PORT_TRIES {
        match once() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => thread::sleep(PORT_PAUSE),
            tried => return tried,
        }
    }
    once()
}

/// SIGKILL ends whatever can be ended; what cannot sleeps in the kernel, and its successor waits (ELECTION R8).
fn kill_again(keeper: &mut Keeper, now: BootTime) {
    keeper.kill_at = Some(now + STOP_LIMIT);
    let (role, pid) = (keeper.role, keeper.pid().unwrap_or_default());
    if !keeper.killed() {
        log::error!("{role} does not end; killing it");
        keeper.signal(Signal::SIGKILL);
    } else if keeper.stuck.is_none() && process::is_uninterruptible(pid) {
        let what = format!(
            "{role}, pid {pid}, was killed and cannot end: it sleeps in the kernel (state D), waiting for a disk or a \
             network file system; {role} is started again when it has ended"
        );
        log::error!("{what}");
        keeper.stuck = Some(what);
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
    /// When the roles are greeted and the run-dir is looked after.
    look_after: BootTime,
    stopping: bool,
    alarms: Option<Alarms>,
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
        let own = own.chain(self.next_reload).chain(self.look_again);
        own.chain([self.look_after]).min()
    }

    /// Does whatever is due; harmless if nothing is.
    fn work(&mut self) -> Result<(), Error> {
        let now = daemon::now();
        self.look_again = None;
        for id in 0..self.keepers.len() {
            self.bury(id, now);
            let keeper = &mut self.keepers[id];
            if keeper.kill_at.is_some_and(|at| at <= now) {
                kill_again(keeper, now);
            }
            if keeper.start_at.is_some_and(|at| at <= now) && !self.stopping {
                self.start(id, now)?;
            }
        }
        if self.look_after <= now {
            self.look_after = now + pulse::EVERY;
            self.look_after(now);
        }
        if self.stopping {
            self.stop_next(now);
        } else if self.next_reload.is_some_and(|at| at <= now) {
            self.reload_next(now);
        }
        Ok(())
    }

    fn look_after(&mut self, now: BootTime) {
        if let Err(e) = daemon::watchdog() {
            log::warn!("cannot tell the service manager ($NOTIFY_SOCKET): {e}");
        }
        let run_dir = self.boot.args.run_dir.clone();
        if let Err(e) = daemon::run_dir::make(&run_dir).and_then(|()| PidFile::keep(&run_dir)) {
            log::warn!("the run-dir {}: {e}", run_dir.display());
        }
        self.boot.keep_config();
        restore_sockets(&run_dir);
        for keeper in &mut self.keepers {
            let Some(silent) = keeper.ping(&run_dir, now) else {
                continue;
            };
            log::error!(
                "{}, pid {}, has not answered for {} s; killing it and starting another",
                keeper.role,
                keeper.pid().unwrap_or_default(),
                silent.as_secs()
            );
            keeper.signal(Signal::SIGKILL);
            keeper.kill_at = Some(now + STOP_LIMIT);
        }
        self.replace_unnamed(&run_dir, now);
    }

    /// A role whose socket was removed makes it anew, if it may; those without rights are restarted, one after
    /// another: first doctord, to whom a new hbd must get through at once.
    fn replace_unnamed(&mut self, run_dir: &Path, now: BootTime) {
        for keeper in self.keepers.iter_mut().rev() {
            if keeper.unnamed_for(run_dir, now) < UNNAMED_LIMIT
                || self.reloads.contains(&keeper.role)
            {
                continue;
            }
            log::warn!(
                "{}: its socket was removed by another program; restarting it",
                keeper.role
            );
            self.reloads.push_back(keeper.role);
            self.next_reload = self.next_reload.or(Some(now));
        }
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
        let pid = keeper.pid();
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
        } else if planned::was_announced(&self.boot.args.run_dir, role, pid) {
            log::info!("{role} was ended by `standin restart`; starting the next one");
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
            self.alarms.take();
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
            if std::env::var_os(daemon::LOG_FILE).is_some() {
                // They keep the configuration as well, but the log may have been renamed.
                self.keepers.iter().for_each(|k| k.signal(Signal::SIGHUP));
            }
            return;
        }
        self.boot.keep_config();
        if let Some(alarms) = &self.alarms {
            alarms.configure(self.boot.config.clone());
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
            // Not SIGTERM: electd goes on, and is not waited for.
            keeper.signal(Signal::SIGINT);
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
                let notes = self.notes.iter().cloned();
                let notes = notes.chain(self.keepers.iter().filter_map(Keeper::note));
                let status = self.boot.status(counters, notes.collect(), detail);
                CtlReply::Status(Box::new(status))
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
