//! From the command line to a daemon that knows who it is.

use crate::{
    Error,
    args::{self, Args},
    clock, key, log as logging,
    machine::local_addresses,
    privileges::{self, Keep, START_PRIORITY},
    ready, run_dir, sys,
};
use config::{ClusterKeys, Config, ConfigError};
use protocol::{
    BootTime, Role, ServerName,
    local::status::{Detail, RoleStatus},
};
use signal_hook::consts::SIGHUP;
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Longest configuration file in bytes.
const CONFIG_MAX: u64 = 4 * 1024 * 1024;

/// How often an address of this server is looked for while it has none.
const LOOK_FOR_ADDRESS: Duration = Duration::from_millis(200);

/// The whole of a daemon's `main`: options, log, configuration, then `run`; its error is logged. Exit code
/// 0 when `run` ends well, 2 for wrong usage or configuration, else 1.
pub fn main(role: Role, run: fn(Boot) -> Result<(), Error>) -> ExitCode {
    let command = args::command(role.name(), about(role));
    let args = match command.try_get_matches() {
        Ok(matches) => Args::from_matches(&matches),
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    run_as(role, args, run)
}

/// [`main`] for an executable that has read its command line itself.
pub fn run_as(role: Role, args: Args, run: impl FnOnce(Boot) -> Result<(), Error>) -> ExitCode {
    logging::start(role.name());
    let hurried = |boot: Boot| {
        if boot.config.cluster.realtime {
            // A lease may run out while it starts; what is not permitted is told by `realtime`.
            let _ = sys::scheduler_fifo(START_PRIORITY);
        }
        run(boot)
    };
    let end = match Boot::new(role, args).and_then(hurried) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            for line in e.to_string().lines() {
                log::error!("{line}");
            }
            e.exit_code()
        }
    };
    logging::flush();
    end
}

fn about(role: Role) -> &'static str {
    match role {
        Role::Hbd => "standin's heartbeat daemon: sends and receives heartbeats over UDP",
        Role::Listend => "standin's signal daemon: carries signals between servers over TCP",
        Role::Doctord => "standin's doctor: tells which servers are alive",
        Role::Electd => "standin's elector: role, term, lease and addresses of this server",
        Role::Main => "standin's main daemon",
        Role::Standin => "standin's command",
        Role::Syncd => "standin's file daemon: keeps files alike on all servers",
    }
}

/// A daemon at its start: what it was told and who it is.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Which daemon.
    pub role: Role,
    /// Its options.
    pub args: Args,
    /// Its configuration, checked.
    pub config: Arc<Config>,
    /// This server.
    pub me: ServerName,
    /// When it started.
    pub started: BootTime,
    /// The file's text, as it is in force.
    text: String,
    /// Why the file as it stands is not in force.
    refused: Option<String>,
    /// How often it was read again, and how often that was refused.
    reloads: Reloads,
}

#[derive(Clone, Copy, Debug, Default)]
struct Reloads {
    done: u64,
    refused: u64,
}

/// Counters in every role's status: how often it read its configuration again, and how often it could not.
pub const RELOADS: &str = "config_reloads";
/// See [`RELOADS`].
pub const RELOADS_REFUSED: &str = "config_reloads_refused";

impl Boot {
    /// Reads the configuration, finds this server in it and makes the run-dir.
    pub fn new(role: Role, args: Args) -> Result<Self, Error> {
        let loaded = load_or_kept(&args)?;
        run_dir::make(&args.run_dir).map_err(|e| {
            Error::io(
                format!("cannot make the run-dir {}", args.run_dir.display()),
                e,
            )
        })?;
        let (loaded, me) = match loaded.me.clone() {
            Ok(me) => (loaded, me),
            Err(why) => wait_for_address(role, &args, &why)?,
        };
        let Loaded {
            text,
            config,
            me: _,
            refused,
        } = loaded;
        let started = clock::now();
        logging::set_name(format!("{role}[{me}]"));
        let refused = refused.map(|e| {
            let what = format!("{e}\nthe last good configuration is in force; mend the file, then run `standin reload`");
            what.lines().for_each(|line| log::error!("{line}"));
            what
        });
        Ok(Self {
            role,
            args,
            config: Arc::new(config),
            me,
            started,
            text,
            refused,
            reloads: Reloads::default(),
        })
    }

    /// Keeps the configuration in force, and which server this is, in the run-dir: for roles that start while the file
    /// is bad, or while the address that tells it is gone.
    pub fn keep_config(&self) {
        let run_dir = &self.args.run_dir;
        let kept = run_dir::keep_config(run_dir, &self.text)
            .and_then(|()| run_dir::keep_server(run_dir, &self.me));
        if let Err(e) = kept {
            log::error!(
                "cannot keep the configuration in the run-dir, no role could start from a bad file: {e}"
            );
        }
    }

    /// The cluster keys.
    pub fn keys(&self) -> Result<ClusterKeys, Error> {
        key::load(&self.config.cluster.key)
    }

    /// Real-time scheduling at `priority` for the calling thread and locked memory for the process, unless
    /// the configuration says no. The notes say what was not permitted. Call it before
    /// [`Boot::drop_privileges`].
    pub fn realtime(&self, priority: i32) -> Vec<String> {
        let notes = if self.config.cluster.realtime {
            privileges::realtime(priority)
        } else {
            Vec::new()
        };
        self.log_notes(notes)
    }

    /// Gives up every right but `keep`, for good. The notes say what was not possible. Call it once, before
    /// any thread is started.
    pub fn drop_privileges(&self, keep: Keep) -> Result<Vec<String>, Error> {
        privileges::drop_to(keep).map(|notes| self.log_notes(notes))
    }

    /// "I serve now": a log line, and a word to the service manager if it asked for one. From now on a
    /// thread writes the log, so that no reader of it can stall the daemon.
    pub fn ready(&self) {
        logging::detach();
        log::info!(
            "ready, pid {}, version {}",
            process::id(),
            env!("CARGO_PKG_VERSION")
        );
        told_manager(ready::notify(&format!("serves as {}", self.me)));
    }

    /// Reads the configuration again. On an error the old one stays in force.
    pub fn reload(&mut self) -> Result<(), Error> {
        let loaded = load(&self.args, &self.args.config).and_then(|loaded| {
            // Without an address for the moment it is still the same server.
            let me = match loaded.me.clone() {
                Err(_) if loaded.config.server(&self.me).is_some() => self.me.clone(),
                found => found?,
            };
            if me == self.me {
                return Ok(loaded);
            }
            let what = format!(
                "this server was \"{}\" and would now be \"{me}\"; restart it to rename it",
                self.me
            );
            Err(ConfigError::one(&self.args.config, None, "[[server]]", what).into())
        });
        match loaded {
            Ok(loaded) => {
                self.reloads.done += 1;
                self.refused = None;
                self.text = loaded.text;
                self.config = Arc::new(loaded.config);
                Ok(())
            }
            Err(e) => {
                self.reloads.refused += 1;
                self.refused = Some(format!("{e}; the configuration as it was is in force"));
                Err(e)
            }
        }
    }

    /// This daemon's answer to `status`.
    pub fn status(
        &self,
        mut counters: BTreeMap<String, u64>,
        mut notes: Vec<String>,
        detail: Detail,
    ) -> RoleStatus {
        notes.extend(self.refused.clone());
        counters.insert(RELOADS.into(), self.reloads.done);
        counters.insert(RELOADS_REFUSED.into(), self.reloads.refused);
        if logging::lost() > 0 {
            counters.insert("log_lines_lost".into(), logging::lost());
        }
        RoleStatus {
            role: self.role,
            pid: process::id(),
            started: self.started,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            counters,
            notes,
            detail,
        }
    }

    fn log_notes(&self, notes: Vec<String>) -> Vec<String> {
        for note in &notes {
            log::warn!("{note}");
        }
        notes
    }
}

/// Reads and checks the configuration, and finds this server in it.
pub fn load_config(args: &Args) -> Result<(Config, ServerName), Error> {
    let loaded = load(args, &args.config)?;
    Ok((loaded.config, loaded.me?))
}

/// A configuration that a daemon would start with.
pub struct Loaded {
    text: String,
    /// Checked.
    pub config: Config,
    /// This server; or why this host is none of the servers as long as it gets no other address.
    pub me: Result<ServerName, ConfigError>,
    /// The file is bad, and this is the kept one.
    pub refused: Option<Error>,
}

/// As [`load_config`], but also while this host has no address yet, and from the copy of the last good one in the run-dir
/// if the file is bad.
pub fn load_or_kept(args: &Args) -> Result<Loaded, Error> {
    load(args, &args.config).or_else(|refused| {
        match load(args, &run_dir::kept_config(&args.run_dir)) {
            Ok(kept) => Ok(Loaded {
                refused: Some(refused),
                ..kept
            }),
            Err(_) => Err(refused),
        }
    })
}

/// Whatever file the text is read from, messages name the one that the operator writes.
fn load(args: &Args, from: &Path) -> Result<Loaded, Error> {
    let text = read_config(from)?;
    let config = config::parse(&text, &args.config)?;
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let hostname = hostname.to_string_lossy();
    let (given, local) = (args.server.as_deref(), local_addresses());
    let me = match config.find_self(given, &hostname, &local) {
        Err(why) if config.may_yet_be_found(given, &hostname, &local) => {
            let kept = run_dir::kept_server(&args.run_dir);
            kept.filter(|kept| config.server(kept).is_some()).ok_or(why)
        }
        found => Ok(found?),
    };
    Ok(Loaded {
        text,
        config,
        me,
        refused: None,
    })
}

/// At boot the network may come late (DHCP, a slow bond). The file is read anew each time, for it may be mended
/// meanwhile.
fn wait_for_address(
    role: Role,
    args: &Args,
    why: &ConfigError,
) -> Result<(Loaded, ServerName), Error> {
    const WAITING: &str = "waiting until this host has an address of one of the servers";
    let failed = |what: &'static str| move |e| Error::io(what, e);
    let renamed_log = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGHUP, renamed_log.clone())
        .map_err(failed("cannot handle Unix signals"))?;
    let marker = run_dir::Waiting::new(&args.run_dir, role)
        .map_err(failed("cannot write to the run-dir"))?;
    let mut logged = why.to_string();
    logged.lines().for_each(|line| log::warn!("{line}"));
    log::warn!("{WAITING}");
    // The rest of the boot need not wait.
    told_manager(ready::notify(WAITING));
    loop {
        std::thread::sleep(LOOK_FOR_ADDRESS);
        told_manager(ready::watchdog());
        if renamed_log.swap(false, Ordering::Relaxed) {
            logging::reopen();
        }
        match load_or_kept(args).map(|loaded| (loaded.me.clone(), loaded)) {
            Ok((Ok(me), loaded)) => {
                log::info!("this host is {me} now");
                drop(marker);
                return Ok((loaded, me));
            }
            Ok((Err(_), _)) => logged.clear(),
            Err(e) => {
                let e = e.to_string();
                if e != logged {
                    e.lines().for_each(|line| log::error!("{line}"));
                }
                logged = e;
            }
        }
    }
}

fn told_manager(told: io::Result<()>) {
    if let Err(e) = told {
        log::warn!("cannot tell the service manager ($NOTIFY_SOCKET): {e}");
    }
}

fn read_config(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CONFIG_MAX).read_to_string(&mut text))
        .map_err(|e| {
            let what = format!("cannot be read: {e}; write it, or name another with --config FILE");
            ConfigError::one(path, None, "", what)
        })?;
    Ok(text)
}
