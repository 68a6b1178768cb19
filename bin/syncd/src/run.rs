//! `syncd run`: makes files alike now, with all other servers that can be reached, for people and for cron.

use crate::{
    pull::{Report, pull},
    replica::{Allowed, Answering, BUSY, Local},
    serve::tell_daemon,
    ssh::{self, Connection},
    units::{self, Unit},
};
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::{Config, Server};
use daemon::Args;
use filesync::{Conflict, Outcome};
use protocol::ServerName;
use std::{
    collections::BTreeMap,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use transfer::{Error, Farewell, Puller, serve};

/// So often another run is waited for.
const TRIES: u64 = 20;

/// What runs on the other server; a forced command there runs the same whatever this says.
const COMMAND: &str = "syncd serve";

pub fn command() -> Command {
    let name = |id: &'static str, help: &'static str| {
        Arg::new(id)
            .long(id)
            .value_name("NAME")
            .action(ArgAction::Append)
            .help(help)
    };
    let flag = |id: &'static str, help: &'static str| {
        Arg::new(id).long(id).action(ArgAction::SetTrue).help(help)
    };
    Command::new("run")
        .about("Make files alike on all servers now")
        .args([
            name("set", "Only this set"),
            name("peer", "Only with this server"),
            flag("dry-run", "Tell what would be done here, and do nothing"),
            flag(
                "allow-deletes",
                "Remove here whatever was removed elsewhere, however much it is",
            ),
            flag(
                "trust-root",
                "A set's directory is on another file system than before, and that is right",
            ),
        ])
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    let args = Args::from_matches(matches);
    let names =
        |id: &str| -> Vec<String> { matches.get_many(id).unwrap_or_default().cloned().collect() };
    let wanted = Wanted {
        sets: names("set"),
        peers: names("peer"),
        dry: matches.get_flag("dry-run"),
        allowed: Allowed {
            deletes: matches.get_flag("allow-deletes"),
            root: matches.get_flag("trust-root"),
        },
        quiet: false,
        until: None,
    };
    let (config, me) = match daemon::load_config(&args) {
        Ok(loaded) => loaded,
        Err(e) => {
            eprintln!("syncd: {e}");
            return e.exit_code();
        }
    };
    if let Err(why) = wanted.check(&config) {
        eprintln!("syncd: {why}");
        return ExitCode::from(2);
    }
    let peers = config.peers(&me).filter(|s| !s.witness && wanted.peer(s));
    let peers: Vec<_> = peers.collect();
    let mut fine = true;
    match sync(&config, &me, &args, &wanted, &peers, &mut |ended| {
        if let Ok(done) = &ended.outcome {
            tell_daemon(&args, ended.unit, done.taken);
        }
        fine &= ended.outcome.is_ok_and(|done| done.complete);
    }) {
        Ok(()) if fine => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("syncd: {why}");
            ExitCode::FAILURE
        }
    }
}

/// What a run of one unit with one server came to.
pub struct Ended<'a> {
    pub unit: &'a Unit,
    pub peer: &'a ServerName,
    /// Or why it came to nothing.
    pub outcome: Result<Done, String>,
}

/// What was done.
pub struct Done {
    /// Nothing was left undone.
    pub complete: bool,
    pub taken: u64,
    pub given: u64,
    pub conflicts: u64,
}

/// Makes the wanted sets alike with these servers, and tells how each unit fared with each.
pub fn sync(
    config: &Config,
    me: &ServerName,
    args: &Args,
    wanted: &Wanted,
    peers: &[&Server],
    told: &mut dyn FnMut(Ended<'_>),
) -> Result<(), String> {
    let run = Run {
        config,
        me,
        args,
        wanted,
    };
    let mut connections = BTreeMap::new();
    for unit in &units::of(config, |set| wanted.set(set.name.as_str()))? {
        for peer in peers {
            let late = wanted.until.is_some_and(|until| until <= Instant::now());
            let outcome = match late {
                true => Err("not reached in time".to_owned()),
                false => run.with(unit, peer, &mut connections),
            };
            told(Ended {
                unit,
                peer: &peer.name,
                outcome,
            });
        }
    }
    Ok(())
}

/// What an operator, or syncd itself, asks for.
#[derive(Default)]
pub struct Wanted {
    /// None: all.
    pub sets: Vec<String>,
    /// None: all.
    pub peers: Vec<String>,
    pub dry: bool,
    pub allowed: Allowed,
    /// Nobody reads along: it goes to the log, and what changed nothing is not told.
    pub quiet: bool,
    /// Nothing is begun later.
    pub until: Option<Instant>,
}

impl Wanted {
    fn set(&self, name: &str) -> bool {
        self.sets.is_empty() || self.sets.iter().any(|s| s == name)
    }

    fn peer(&self, server: &Server) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|p| p == server.name.as_str())
    }

    /// Names of nothing are wrong usage.
    fn check(&self, config: &Config) -> Result<(), String> {
        let file = config.file.display();
        if config.sets.is_empty() {
            return Err(format!(
                "{file} has no [[sync]]: nothing is to be kept alike"
            ));
        }
        let set = |name: &&String| !config.sets.iter().any(|s| s.name.as_str() == name.as_str());
        if let Some(name) = self.sets.iter().find(set) {
            return Err(format!("--set {name}: no such [[sync]] in {file}"));
        }
        let peer = |name: &&String| {
            !config
                .servers
                .iter()
                .any(|s| s.name.as_str() == name.as_str())
        };
        match self.peers.iter().find(peer) {
            Some(name) => Err(format!("--peer {name}: no such [[server]] in {file}")),
            None => Ok(()),
        }
    }
}

struct Run<'a> {
    config: &'a Config,
    me: &'a ServerName,
    args: &'a Args,
    wanted: &'a Wanted,
}

/// To each server, or why there is none.
type Connections = BTreeMap<String, Result<Connection, String>>;

impl Run<'_> {
    /// One unit with one server.
    fn with(
        &self,
        unit: &Unit,
        peer: &Server,
        connections: &mut Connections,
    ) -> Result<Done, String> {
        let name = &unit.name;
        let connection = connections.entry(peer.name.to_string()).or_insert_with(|| {
            let connected = ssh::connect(self.config, peer, COMMAND);
            connected.map_err(|why| {
                self.complain(&format!("{name}: cannot reach {why}"));
                format!("cannot reach {why}")
            })
        });
        let stream = match connection {
            Ok(stream) => stream,
            Err(why) => return Err(why.clone()),
        };
        let start = Instant::now();
        let mut tries = 0;
        let why = loop {
            // Given up while waiting: the run that is in the way may be waiting for this one.
            let ended = match Local::open(unit.clone(), self.me, self.args, self.wanted.allowed) {
                Ok(local) => {
                    let ended = self.exchange(&local, stream);
                    ended.map(|given| (local, given)).map_err(|e| e.to_string())
                }
                Err(why) => Err(why),
            };
            tries += 1;
            match ended {
                Ok((local, (report, given))) => {
                    let seconds = start.elapsed().as_secs_f64();
                    return Ok(self.tell(&local, peer, &report, given, seconds));
                }
                Err(why) if why.contains(BUSY) && tries < TRIES => {
                    let random = daemon::random_u64().unwrap_or_default();
                    thread::sleep(Duration::from_millis(50 + random % (100 * tries)));
                    *stream = match ssh::connect(self.config, peer, COMMAND) {
                        Ok(again) => again,
                        Err(why) => break why.to_string(),
                    };
                }
                Err(why) => break why,
            }
        };
        self.complain(&format!("{name} with {}: {why}", peer.name));
        // Nobody knows where in it we are.
        *connection = Err(format!("an earlier run with it broke off: {why}"));
        Err(why)
    }

    /// Takes what is newer there, then gives what is newer here.
    fn exchange(
        &self,
        local: &Local,
        stream: &mut Connection,
    ) -> Result<(Report, Farewell), Error> {
        let cluster = &self.config.cluster.name;
        let mut puller = Puller::new(&mut *stream)?;
        let greeting = puller.greet(cluster, &local.unit.name, &local.replica)?;
        let report = pull(
            local,
            &mut puller,
            &greeting,
            self.wanted.allowed,
            self.wanted.dry,
        )?;
        if self.wanted.dry {
            puller.bye(Farewell::default())?;
            return Ok((report, Farewell::default()));
        }
        puller.your_turn()?;
        let mut answering = Answering {
            local,
            cluster,
            other: None,
        };
        let given = serve(stream, &mut answering)?.ok_or(Error::Unexpected("no goodbye"))?;
        Ok((report, given))
    }

    /// All that an operator should know.
    fn tell(
        &self,
        local: &Local,
        peer: &Server,
        report: &Report,
        given: Farewell,
        seconds: f64,
    ) -> Done {
        let name = &local.unit.name;
        let Farewell { taken, left, kept } = given;
        let counts = &local.summary.counts;
        let done = Done {
            complete: report.is_complete() && left == 0 && counts.unreadable.count == 0,
            taken: report.applied.done,
            given: taken,
            conflicts: report.conflicts.len() as u64,
        };
        if self.wanted.quiet && done.complete && done.taken + taken + done.conflicts == 0 {
            return done;
        }
        let mut line = format!("{name} with {}: {report}; {taken} given", peer.name);
        if kept > 0 {
            line += &format!(", {kept} former versions kept aside there");
        }
        if left > 0 {
            line += &format!(
                ", {left} not taken there: run syncd on {} to see why",
                peer.name
            );
        }
        self.say(&format!("{line} ({seconds:.1} s)"));
        for (what, list) in [
            ("changing, left for the next run", &counts.busy),
            ("cannot be read", &counts.unreadable),
            ("not kept alike", &counts.skipped),
        ] {
            self.list(&format!("{name}: {what}"), list);
        }
        for operation in &report.planned {
            let what = match (&operation.was, &operation.entry.node) {
                _ if operation.is_note() => continue,
                (_, None) => "would be removed",
                (Some(was), Some(_)) if was.node.is_some() => "would be changed",
                (_, Some(_)) => "would be made",
            };
            self.say(&format!("{name}: {what}: {}", operation.path));
        }
        self.list(&format!("{name}: not done"), &report.applied.failed);
        self.list(&format!("{name}: put off"), &report.applied.put_off);
        self.list(&format!("{name}: no former version kept"), &report.unkept);
        for (path, note) in &report.notes {
            self.say(&format!("{name}: {path}: {note}"));
        }
        for Conflict { path, outcome, .. } in &report.conflicts {
            let what = match outcome {
                Outcome::GaveWay => format!(
                    "changed here and on another server: the version here is kept in {}",
                    local
                        .unit
                        .state(&self.args.state_dir)
                        .join("aside")
                        .display()
                ),
                Outcome::Stayed => format!(
                    "changed here and on another server: {} keeps its version aside",
                    peer.name
                ),
                Outcome::Undecided => {
                    "changed here and on another server, and clocks are too far apart to tell"
                        .into()
                }
                Outcome::Impossible => format!(
                    "the same version with other contents on {}: was a disk or a virtual machine copied or put \
                     back? Change the file once on the server that has it right",
                    peer.name
                ),
            };
            self.say(&format!("{name}: {path}: {what}"));
        }
        if report.refused_removals > 0 {
            self.complain(&format!(
                "{name}: {} were removed on {} and stay here, more than {} %: if that is right, run syncd with \
                 --allow-deletes",
                report.refused_removals, peer.name, local.unit.delete_limit
            ));
        }
        done
    }

    fn list(&self, what: &str, list: &store::Listing) {
        for (path, why) in &list.first {
            self.complain(&format!("{what}: {path}: {why}"));
        }
        let more = list.count.saturating_sub(list.first.len() as u64);
        if more > 0 {
            self.complain(&format!("{what}: {more} more"));
        }
    }

    fn say(&self, line: &str) {
        if self.wanted.quiet {
            log::info!("{line}");
        } else {
            println!("{line}");
        }
    }

    fn complain(&self, line: &str) {
        if self.wanted.quiet {
            log::warn!("{line}");
        } else {
            eprintln!("{line}");
        }
    }
}
