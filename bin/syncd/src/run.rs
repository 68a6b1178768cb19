//! `syncd run`: makes files alike now, with all other servers that can be reached, for people and for cron.

use crate::{
    foretold::Foretold,
    progress::Board,
    pull::{RECIPES, Report, pull},
    replica::{Allowed, Answering, BUSY, Local},
    serve::tell_daemon,
    sessions::Sessions,
    ssh::{Connection, PATIENCE, READING},
    units::{self, Unit},
};
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::{Config, Server};
use daemon::{Args, eprintln, machine, println};
use filesync::{Conflict, Outcome};
use protocol::{ServerName, owner::Present};
use std::{
    collections::BTreeMap,
    fmt,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{Condvar, Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};
use transfer::{End, Error, Farewell, Puller, serve};

/// So long the others wait for a server that is slow to give what is new there.
const OTHERS: Duration = Duration::from_secs(2);

/// So often another run is waited for.
const TRIES: u64 = 20;

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
                "Remove here whatever was removed elsewhere, however much it is, and believe an emptied directory",
            ),
            flag(
                "trust-root",
                "A set's directory does not carry the marker that was left there, and that is right",
            ),
            flag(
                "checksum",
                "Read all files here, those that look unchanged too; what changed without a trace is told",
            ),
            flag(
                "no-progress",
                "Do not show on a terminal how far it has got",
            ),
        ])
}

pub fn run(matches: &ArgMatches, args: &Args, config: &Config, me: &ServerName) -> ExitCode {
    let names =
        |id: &str| -> Vec<String> { matches.get_many(id).unwrap_or_default().cloned().collect() };
    let wanted = Wanted {
        sets: names("set"),
        peers: names("peer"),
        allowed: Allowed {
            deletes: matches.get_flag("allow-deletes"),
            root: matches.get_flag("trust-root"),
            dry: matches.get_flag("dry-run"),
            checksum: matches.get_flag("checksum"),
        },
        quiet: false,
        until: None,
        board: match matches.get_flag("no-progress") {
            true => Board::default(),
            false => Board::of_terminal(),
        },
    };
    if let Err(why) = wanted.check(config, me) {
        eprintln!("syncd: {why}");
        return ExitCode::from(2);
    }
    let peers = config.peers(me).filter(|s| !s.witness && wanted.peer(s));
    let peers: Vec<_> = peers.collect();
    let (mut fine, mut all) = (true, true);
    let sessions = Sessions::default();
    let mut told = |ended: Ended<'_>| {
        if let Ok(done) = &ended.outcome {
            tell_daemon(args, ended.unit, done.taken);
            all &= !done.skipped;
        }
        fine &= ended.outcome.is_ok_and(|done| done.complete);
    };
    let board = &wanted.board;
    let of_use = board.beside(|| sync(config, me, args, &wanted, &peers, &sessions, &mut told));
    match (fine && of_use, all) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(3),
        (false, _) => ExitCode::FAILURE,
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
    /// There is something here that cannot be kept alike.
    pub skipped: bool,
    pub taken: u64,
    pub given: u64,
    pub conflicts: u64,
}

impl Done {
    /// Together with what was done in an earlier round with the same server.
    fn after(mut self, before: Option<Self>) -> Self {
        if let Some(before) = before {
            self.taken += before.taken;
            self.given += before.given;
            self.conflicts += before.conflicts;
        }
        self
    }
}

/// Makes the wanted sets alike with these servers, and tells how each unit fared with each. Whether every unit could be
/// looked at.
pub fn sync(
    config: &Config,
    me: &ServerName,
    args: &Args,
    wanted: &Wanted,
    peers: &[&Server],
    sessions: &Sessions,
    told: &mut dyn FnMut(Ended<'_>),
) -> bool {
    let run = Run {
        config,
        here: machine::present(config, me),
        args,
        wanted,
        sessions,
    };
    let mut lost = BTreeMap::new();
    let wanted = |set: &config::SyncSet| run.wanted.set(set.name.as_str());
    let units = units::of(config, args, wanted);
    for unit in &units {
        for (peer, outcome) in run.unit(unit, peers, &mut lost) {
            told(Ended {
                unit,
                peer: &peer.name,
                outcome,
            });
        }
    }
    units.iter().all(|unit| unit.fault.is_none())
}

/// Why one unit did not get through with one server.
enum Stopped {
    /// Another run is at work on it; it may be waiting for this one.
    Busy,
    /// The other was new and has all that is here now: what it has can be taken.
    Joined(Farewell),
    /// The unit is of no use, here or there.
    Unit(String),
    /// The server is.
    Lost(String),
}

impl Stopped {
    fn of(why: String) -> Self {
        match why.contains(BUSY) {
            true => Self::Busy,
            false => Self::Unit(why),
        }
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str(BUSY),
            Self::Joined(_) => f.write_str("it is new and changes while it is joined"),
            Self::Unit(why) | Self::Lost(why) => f.write_str(why),
        }
    }
}

/// What an operator, or syncd itself, asks for.
#[derive(Default)]
pub struct Wanted {
    /// None: all.
    pub sets: Vec<String>,
    /// None: all.
    pub peers: Vec<String>,
    pub allowed: Allowed,
    /// Nobody reads along: it goes to the log, and what changed nothing is not told.
    pub quiet: bool,
    /// Nothing is begun later.
    pub until: Option<Instant>,
    /// Where an operator sees how far it has got.
    pub board: Board,
}

impl Wanted {
    fn set(&self, name: &str) -> bool {
        self.sets.is_empty() || self.sets.iter().any(|s| s == name)
    }

    fn peer(&self, server: &Server) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|p| p == server.name.as_str())
    }

    /// Names of nothing are wrong usage.
    fn check(&self, config: &Config, me: &ServerName) -> Result<(), String> {
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
        for name in &self.peers {
            let server = config.servers.iter().find(|s| s.name.as_str() == name);
            let why = match server {
                None => format!("no such [[server]] in {file}"),
                Some(server) if server.name == *me => {
                    "this server itself; name another one".to_owned()
                }
                Some(server) if server.witness => "a witness has no files".to_owned(),
                Some(_) => continue,
            };
            return Err(format!("--peer {name}: {why}"));
        }
        Ok(())
    }
}

struct Run<'a> {
    config: &'a Config,
    here: Present,
    args: &'a Args,
    wanted: &'a Wanted,
    sessions: &'a Sessions,
}

/// Whoever did not answer, or broke off, is not tried again in the same run, and why.
type Lost = BTreeMap<String, String>;

/// Counts the servers from which is still to be taken.
struct Taken {
    left: Mutex<usize>,
    all: Condvar,
}

impl Taken {
    fn new(servers: usize) -> Self {
        Self {
            left: Mutex::new(servers),
            all: Condvar::new(),
        }
    }

    /// One less; returns when none is left, or whoever is will not be waited for any longer.
    fn wait(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_sub(1);
        self.all.notify_all();
        let waited = self.all.wait_timeout_while(left, OTHERS, |left| *left > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

type Outcomes<'a> = Vec<(&'a Server, Result<Done, String>)>;

impl Run<'_> {
    /// One unit with all servers at once.
    fn unit<'p>(&self, unit: &Unit, peers: &[&'p Server], lost: &mut Lost) -> Outcomes<'p> {
        if let Some(why) = &unit.fault {
            self.complain(&format!("syncd: {why}"));
            return peers.iter().map(|p| (*p, Err(why.clone()))).collect();
        }
        let mut outcomes: Outcomes<'p> = Vec::new();
        let mut left = Vec::new();
        let mut before = BTreeMap::new();
        let mut foretold = Foretold::default();
        for peer in peers {
            match lost.get(peer.name.as_str()) {
                Some(why) => outcomes.push((*peer, Err(why.clone()))),
                None => left.push(*peer),
            }
        }
        for tries in 1.. {
            if self
                .wanted
                .until
                .is_some_and(|until| until <= Instant::now())
            {
                let late = || Err("not reached in time".to_owned());
                outcomes.extend(left.drain(..).map(|peer| (peer, late())));
            }
            if left.is_empty() {
                break;
            }
            let earlier = outcomes.len();
            let mut took = false;
            for (peer, outcome) in self.once(unit, &std::mem::take(&mut left), &mut foretold) {
                match outcome {
                    Err(Stopped::Busy) if tries < TRIES => left.push(peer),
                    Err(Stopped::Joined(given)) if tries < TRIES => {
                        let Farewell { taken, kept, .. } = given;
                        self.say(&format!(
                            "{} with {}: it is new and joins: {taken} given, {kept} former versions kept aside there",
                            unit.name, peer.name
                        ));
                        left.push(peer);
                    }
                    Err(stopped) => {
                        let why = stopped.to_string();
                        self.complain(&format!("{} with {}: {why}", unit.name, peer.name));
                        if let Stopped::Lost(_) = stopped {
                            lost.insert(peer.name.to_string(), why.clone());
                        }
                        outcomes.push((peer, Err(why)));
                    }
                    Ok(done) => {
                        took |= done.taken > 0;
                        outcomes.push((peer, Ok(done.after(before.remove(&peer.name)))));
                    }
                }
            }
            // Who was not busy in an earlier round has still to be given what came from those that were.
            if took && tries < TRIES {
                let again: Vec<_> = outcomes
                    .extract_if(..earlier, |(_, outcome)| outcome.is_ok())
                    .collect();
                for (peer, outcome) in again {
                    before.extend(outcome.ok().map(|done| (peer.name.clone(), done)));
                    left.push(peer);
                }
            }
            if !left.is_empty() {
                // The unit is let go meanwhile: the run that is in the way may be waiting for this one.
                let random = daemon::random_u64().unwrap_or_default();
                thread::sleep(Duration::from_millis(50 + random % (100 * tries)));
            }
        }
        for change in foretold.changes() {
            self.say(&format!("{}: {change}", unit.name));
        }
        outcomes
    }

    /// The same, with no second try. The others make themselves ready while this side looks; what is new anywhere is
    /// taken from all, and then given to all.
    fn once<'p>(
        &self,
        unit: &Unit,
        peers: &[&'p Server],
        foretold: &mut Foretold,
    ) -> Vec<(&'p Server, Result<Done, Stopped>)> {
        let all = |why: &str| {
            let stopped = |peer: &&'p Server| (*peer, Err(Stopped::of(why.to_owned())));
            peers.iter().map(stopped).collect()
        };
        let local = Local::prepare(unit.clone(), &self.here, self.args, self.wanted.allowed);
        let mut local = match local {
            Ok(local) => local,
            Err(why) => return all(&why),
        };
        local.turn = Mutex::new(std::mem::take(foretold));
        if let Some(limits) = local.new_limits() {
            self.complain(&format!(
                "{}: the file system of {} keeps modification times {limits}: what has others on other servers has the \
                 nearest earlier one here",
                unit.name,
                unit.root.display()
            ));
        }
        self.wanted.board.show(&unit.name, &local.meter);
        let start = Instant::now();
        let (looked, taken) = (OnceLock::new(), Taken::new(peers.len()));
        let ended = thread::scope(|scope| {
            let with = |peer: &'p Server| {
                let (local, looked, taken) = (&local, &looked, &taken);
                scope.spawn(move || self.with(local, peer, looked, taken))
            };
            let threads: Vec<_> = peers.iter().map(|peer| with(peer)).collect();
            // Whoever waits for it must not wait for ever.
            let look = || panic::catch_unwind(AssertUnwindSafe(|| local.look()));
            looked.get_or_init(|| look().unwrap_or_else(|_| Err("the look at it died".into())));
            let died = |_| Err(Stopped::Lost("its thread died".into()));
            let ended = threads.into_iter().map(|t| t.join().unwrap_or_else(died));
            ended.collect::<Vec<_>>()
        });
        let seconds = start.elapsed().as_secs_f64();
        if let Some(verified) = local.verified() {
            let name = &unit.name;
            self.say(&format!("{name}: {} files verified", verified.read));
            self.list(&format!("{name}: not verified"), &verified.unreadable);
            self.list(&format!("{name}: ALTERED"), &verified.altered);
        }
        let told = peers.iter().zip(ended).map(|(peer, ended)| {
            let done =
                ended.map(|(report, given)| self.tell(&local, peer, &report, given, seconds));
            (*peer, done)
        });
        let told = told.collect();
        let Local { turn, set, .. } = local;
        *foretold = turn.into_inner().unwrap_or_else(PoisonError::into_inner);
        foretold.look(&set);
        told
    }

    /// One unit with one server.
    fn with(
        &self,
        local: &Local,
        peer: &Server,
        looked: &OnceLock<Result<(), String>>,
        taken: &Taken,
    ) -> Result<(Report, Farewell), Stopped> {
        let (mut session, report) = match self.take(local, peer, looked) {
            Ok(both) => both,
            Err(stopped) => {
                taken.wait();
                return Err(stopped);
            }
        };
        // What another server gives now can be given to this one.
        taken.wait();
        let given = self.give(local, &mut session);
        let given = given.map_err(|e| Stopped::of(e.to_string()))?;
        self.sessions.give_back(self.config, peer, session);
        match report.waits && given.left == 0 && !self.wanted.allowed.dry {
            true => Err(Stopped::Joined(given)),
            false => Ok((report, given)),
        }
    }

    /// Takes what is newer there.
    fn take(
        &self,
        local: &Local,
        peer: &Server,
        looked: &OnceLock<Result<(), String>>,
    ) -> Result<(Connection, Report), Stopped> {
        let session = self.sessions.lend(self.config, peer);
        let mut session = session.map_err(|why| Stopped::Lost(format!("cannot reach {why}")))?;
        let broken = |e: Error| Stopped::of(e.to_string());
        let begun = session
            .get_mut()
            .begin(local.unit.pace.clone(), self.wanted.until);
        begun.map_err(|e| broken(e.into()))?;
        let mut puller = Puller::new(&mut session).map_err(|e| broken(e.into()))?;
        let (cluster, name) = (&self.config.cluster.name, &local.unit.name);
        puller.call(cluster, name, &local.replica).map_err(broken)?;
        if let Err(why) = looked.wait() {
            return Err(Stopped::of(why.clone()));
        }
        let greeting = match puller.answer() {
            Err(Error::Refused(why)) => {
                let refused = Error::Refused(why);
                self.sessions.give_back(self.config, peer, session);
                return Err(broken(refused));
            }
            other => other.map_err(broken)?,
        };
        let allowed = self.wanted.allowed;
        puller.stream().get_mut().patience(READING);
        let report = pull(local, &mut puller, &greeting, allowed).map_err(broken)?;
        // It may have to wait for a slow disk now.
        session.get_mut().patience(PATIENCE);
        Ok((session, report))
    }

    /// Gives what is newer here.
    fn give(&self, local: &Local, session: &mut Connection) -> Result<Farewell, Error> {
        let mut puller = Puller::new(&mut *session)?;
        if self.wanted.allowed.dry {
            puller.bye(Farewell::default())?;
            return Ok(Farewell::default());
        }
        puller.your_turn()?;
        let cluster = &self.config.cluster.name;
        let mut answering = Answering {
            local,
            cluster,
            other: None,
        };
        match serve(session, &mut answering, &RECIPES)? {
            End::Bye(farewell) => Ok(farewell),
            End::YourTurn(_) => Err(Error::Unexpected("no goodbye")),
        }
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
        let Farewell {
            taken,
            left,
            kept,
            notes,
        } = given;
        let counts = &local.counts();
        let done = Done {
            complete: report.is_complete()
                && left == 0
                && counts.unreadable.count == 0
                && counts.busy.count == 0
                && local.verified().is_none_or(store::Verified::is_fine),
            skipped: counts.skipped.count > 0,
            taken: report.applied.done,
            given: taken,
            conflicts: report.conflicts.len() as u64,
        };
        let quiet = self.wanted.quiet && notes.is_empty();
        if quiet && done.complete && done.taken + taken + done.conflicts == 0 {
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
            (
                "growing, kept alike as far as it stood still",
                &counts.growing,
            ),
            ("cannot be read", &counts.unreadable),
            ("not kept alike", &counts.skipped),
            ("removed elsewhere and stays here", &counts.left),
        ] {
            self.list(&format!("{name}: {what}"), list);
        }
        self.list(&format!("{name}: not done"), &report.applied.failed);
        self.list(&format!("{name}: put off"), &report.applied.put_off);
        self.list(&format!("{name}: no former version kept"), &report.unkept);
        for (path, note) in report.notes() {
            self.say(&format!("{name}: {path}: {note}"));
        }
        for note in notes {
            self.say(&format!("{name} on {}: {}", peer.name, note.escape_debug()));
        }
        let aside = local.unit.state(&self.args.state_dir).join("aside");
        for Conflict {
            path,
            here,
            there,
            outcome,
        } in &report.conflicts
        {
            let what = match outcome {
                Outcome::GaveWay if here.node.is_none() => format!(
                    "removed here and changed on another server: the version of {} comes back",
                    peer.name
                ),
                Outcome::GaveWay if self.wanted.allowed.dry => {
                    "changed here and on another server: the version here would be kept aside".into()
                }
                Outcome::GaveWay if !report.applied.kept.contains(path) => {
                    "changed here and on another server: the version here stays for now, for it cannot be kept aside".into()
                }
                Outcome::GaveWay => format!(
                    "changed here and on another server: {} is kept in {}",
                    match here.file().is_some() && here.file() == there.file() {
                        true => "what the version here has other than contents",
                        false => "the version here",
                    },
                    aside.display()
                ),
                Outcome::Stayed => format!(
                    "changed here and on another server: {} {} its version aside",
                    peer.name,
                    if self.wanted.allowed.dry { "would keep" } else { "keeps" }
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
        if report.waits {
            self.complain(&format!(
                "{name}: {} is new and has not taken all that is here yet: nothing is taken from it before",
                peer.name
            ));
        }
        if report.refused_removals > 0 {
            self.complain(&format!(
                "{name}: {} were removed on {} and stay here, more than {} %: if that is right, run syncd with \
                 --allow-deletes here, or on another server first: what two servers removed is believed",
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
            self.wanted.board.clear();
            println!("{line}");
        }
    }

    fn complain(&self, line: &str) {
        if self.wanted.quiet {
            log::warn!("{line}");
        } else {
            self.wanted.board.clear();
            eprintln!("{line}");
        }
    }
}
