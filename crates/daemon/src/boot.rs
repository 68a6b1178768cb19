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
use std::{
    collections::BTreeMap,
    path::Path,
    process::{self, ExitCode},
    sync::Arc,
};

/// Longest configuration file in bytes.
const CONFIG_MAX: u64 = 4 * 1024 * 1024;

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
        let started = clock::now();
        let Loaded {
            text,
            config,
            me,
            refused,
        } = load_or_kept(&args)?;
        logging::set_name(format!("{role}[{me}]"));
        let refused = refused.map(|e| {
            let what = format!("{e}\nthe last good configuration is in force; mend the file, then run `standin reload`");
            what.lines().for_each(|line| log::error!("{line}"));
            what
        });
        run_dir::make(&args.run_dir).map_err(|e| {
            Error::io(
                format!("cannot make the run-dir {}", args.run_dir.display()),
                e,
            )
        })?;
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

    /// Keeps the configuration in force in the run-dir, for roles that start while the file is bad.
    pub fn keep_config(&self) {
        if let Err(e) = run_dir::keep_config(&self.args.run_dir, &self.text) {
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
        if let Err(e) = ready::notify() {
            log::warn!("cannot tell the service manager ($NOTIFY_SOCKET): {e}");
        }
    }

    /// Reads the configuration again. On an error the old one stays in force.
    pub fn reload(&mut self) -> Result<(), Error> {
        let loaded = load(&self.args, &self.args.config).and_then(|loaded| {
            if loaded.me == self.me {
                return Ok(loaded);
            }
            let what = format!(
                "this server was \"{}\" and would now be \"{}\"; restart it to rename it",
                self.me, loaded.me
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
    load(args, &args.config).map(|loaded| (loaded.config, loaded.me))
}

/// As [`load_config`], but from the copy of the last good one in the run-dir if the file is bad; then what is wrong
/// with the file comes along.
pub fn load_config_or_kept(args: &Args) -> Result<(Config, ServerName, Option<Error>), Error> {
    load_or_kept(args).map(|loaded| (loaded.config, loaded.me, loaded.refused))
}

struct Loaded {
    text: String,
    config: Config,
    me: ServerName,
    /// The file is bad, and this is the kept one.
    refused: Option<Error>,
}

fn load_or_kept(args: &Args) -> Result<Loaded, Error> {
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
    let me = config.find_self(
        args.server.as_deref(),
        &hostname.to_string_lossy(),
        &local_addresses(),
    )?;
    Ok(Loaded {
        text,
        config,
        me,
        refused: None,
    })
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
