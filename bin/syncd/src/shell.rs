//! `syncd` as a daemon: carries words between the plan, the threads that do its jobs, electd and the operator.

use crate::{
    accounts, conflicts,
    follow::{self, Follow},
    jobs::{self, Ground},
    scrub::{self, Scrub},
    sessions::Sessions,
    steer::{self, Steer},
    triggers::change::{self, Watch, Word},
    units,
};
use daemon::{Boot, ConnId, Error, Event, EventLoop, durable};
use mio::Waker;
use protocol::{
    BootTime, Role, ServerName, Term, codec,
    local::{
        ctl::{CtlReply, CtlRequest},
        ring::{ElectdToSyncd, SyncdToElectd},
        status::{Detail, LastRun, OwedRun, SET_NOTES_MAX, SetPeer, SetStatus, SyncdStatus},
    },
    version::Since,
    wire::beat::Freshness,
};
use schedule::{Done, Ended, Job, Memory, Now, Plan, Rules, SetRules};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

/// In `<state-dir>/sync`.
const MEMORY: &str = "schedule";
/// So often all is looked at where changes are told.
const LOOK: Duration = Duration::from_secs(3600);
/// Longest reason told in `standin sync status`, in characters.
const REASON: usize = 300;

/// What a thread says.
enum Report {
    Ended(u64, Ended),
    Watch(ServerName, Word),
    Fresh(Result<Freshness, String>),
    /// What a scrub of this set found wrong.
    Scrubbed(ServerName, Option<String>),
}

#[derive(Clone)]
struct Reporter(Sender<Report>, Arc<Waker>);

impl Reporter {
    fn tell(&self, report: Report) {
        // Without a receiver the daemon has ended.
        if self.0.send(report).is_ok() {
            let _ = self.1.wake();
        }
    }
}

struct Shell {
    boot: Boot,
    events: EventLoop,
    plan: Plan,
    /// As it is on the disk.
    saved: Memory,
    ground: Ground,
    watches: BTreeMap<ServerName, Watch>,
    steer: Steer,
    reporter: Reporter,
    reports: Receiver<Report>,
    follow: Follow,
    scrub: Option<Scrub>,
    /// When all of what is watched is looked at next.
    look: BootTime,
    /// None until each unit that counts has been looked at since the start.
    fresh: Option<Freshness>,
    notes: BTreeMap<String, String>,
    waiting: Vec<Waiting>,
    stopped: bool,
}

/// Somebody who asked for runs and waits for their end.
struct Waiting {
    conn: ConnId,
    sets: Vec<ServerName>,
    peers: Vec<ServerName>,
}

/// Until stopped.
pub fn run(boot: Boot) -> Result<(), Error> {
    // It was started in real time, as the others are, and has no use for it.
    let _ = daemon::sys::scheduler_normal();
    let events = EventLoop::open(&boot, &[Role::Electd], &[Role::Electd])?;
    let (sender, reports) = channel();
    let reporter = Reporter(sender, events.waker());
    let (memory, lost) = remembered(&boot);
    let ground = Ground {
        config: Arc::clone(&boot.config),
        me: boot.me.clone(),
        args: boot.args.clone(),
        sessions: Sessions::tended().map_err(|e| Error::io("start a thread", e))?,
        passed_on: Arc::new(Mutex::new(BTreeMap::new())),
    };
    let steer = steer(&boot, true);
    let teller = reporter.clone();
    let tell = move |fresh| teller.tell(Report::Fresh(fresh));
    let follow = follow::begin(
        Arc::clone(&boot.config),
        boot.me.clone(),
        boot.args.clone(),
        tell,
    )
    .map_err(|e| Error::io("start a thread", e))?;
    let mut shell = Shell {
        plan: Plan::new(rules(&boot), memory.clone()),
        saved: memory,
        boot,
        events,
        ground,
        watches: BTreeMap::new(),
        reporter,
        reports,
        follow,
        scrub: None,
        look: daemon::now() + LOOK,
        fresh: None,
        notes: BTreeMap::new(),
        waiting: Vec::new(),
        steer,
        stopped: false,
    };
    if let Some(why) = lost {
        shell.note("memory", Some(why));
        // Whatever was owed is owed to somebody.
        shell.plan.wanted(&[], &[], now());
    }
    shell.watch();
    shell.scrub();
    shell.boot.ready();
    shell.serve()
}

fn steer(boot: &Boot, fresh: bool) -> Steer {
    let config = Arc::clone(&boot.config);
    steer::spawn(config, boot.me.clone(), boot.args.clone(), fresh)
}

fn now() -> Now {
    Now {
        boot: daemon::now(),
        real: daemon::real_now_ns() / 1_000_000_000,
    }
}

fn remembered(boot: &Boot) -> (Memory, Option<String>) {
    let path = boot.args.state_dir.join("sync").join(MEMORY);
    let lost = |why: String| {
        let why = format!(
            "{}: {why}; what was owed to other servers is forgotten, so all is made alike with all of them",
            path.display()
        );
        (Memory::default(), Some(why))
    };
    match fs::read(&path) {
        Ok(bytes) => match Memory::decode(&bytes) {
            Ok(memory) => (memory, None),
            Err(e) => lost(e.to_string()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => (Memory::default(), None),
        Err(e) => lost(e.to_string()),
    }
}

fn rules(boot: &Boot) -> Rules {
    let config = &boot.config;
    let place = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut servers: Vec<_> = config.servers.iter().filter(|s| !s.witness).collect();
    servers.sort_by_key(|s| &s.name);
    let own = servers.iter().position(|s| s.name == boot.me);
    let witness = config.server(&boot.me).is_some_and(|s| s.witness);
    let sets = config.sets.iter().filter(|_| !witness);
    Rules {
        peers: servers
            .iter()
            .map(|s| s.name.clone())
            .filter(|name| *name != boot.me)
            .collect(),
        place: (place(own.unwrap_or(0)), place(servers.len())),
        keeper: config.virtual_servers.first().map(|v| v.name.clone()),
        sets: sets
            .map(|set| SetRules {
                name: set.name.clone(),
                election: set.on.election,
                cron: set.on.cron.clone(),
            })
            .collect(),
    }
}

impl Shell {
    fn serve(mut self) -> Result<(), Error> {
        let mut events = Vec::new();
        while !self.stopped {
            self.begin();
            self.save();
            self.tell_waiting();
            let wake = self.plan.wake(now(), &daemon::sys::local_offset);
            let look = (!self.watches.is_empty()).then_some(self.look);
            self.events
                .wait(wake.into_iter().chain(look).min(), &mut events)?;
            self.look_round();
            for event in events.drain(..) {
                self.event(event);
            }
        }
        self.save();
        // Whatever is at work is cut off, as by a power cut: nothing is lost by it.
        Ok(())
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Message {
                from: Role::Electd,
                version,
                bytes,
            } => {
                for message in codec::decode_all(&bytes, version) {
                    match message {
                        Ok(message) => self.told(message),
                        Err(e) => log::warn!("unreadable message from electd: {e}"),
                    }
                }
            }
            Event::Up(Role::Electd) => self.tell_fresh(),
            Event::PeerGone(Role::Electd) => self.plan.blind(),
            Event::Woken => {
                for report in self.reports.try_iter().collect::<Vec<_>>() {
                    self.report(report);
                }
            }
            Event::Ctl { conn, request } => self.answer(conn, request),
            Event::Terminate => self.stopped = true,
            Event::Reload => self.reload(),
            Event::Message { .. }
            | Event::Up(_)
            | Event::Down(_)
            | Event::PeerGone(_)
            | Event::Source { .. }
            | Event::Deadline => {}
        }
    }

    fn told(&mut self, message: ElectdToSyncd) {
        match message {
            ElectdToSyncd::Role {
                virtual_server,
                master,
            } => self.plan.master(virtual_server, master, now()),
            ElectdToSyncd::Dead(dead) => self.plan.down(dead.into_iter().collect(), now()),
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Ended(id, ended) => {
                self.plan.ended(id, &ended, now());
                self.follow.now();
            }
            Report::Watch(set, Word::Changed) => self.plan.changed(&set, now()),
            Report::Watch(set, Word::Trouble(why)) => {
                self.note(
                    &format!("watch {set}"),
                    why.map(|why| format!("{set}: {why}")),
                );
            }
            Report::Fresh(fresh) => self.found(fresh),
            Report::Scrubbed(set, wrong) => self.note(&format!("scrub {set}"), wrong),
        }
    }

    /// Some changes are told by no event: through a name outside of the set, or on another machine.
    fn look_round(&mut self) {
        if self.look <= daemon::now() {
            self.look = daemon::now() + LOOK;
            for set in self.watches.keys() {
                self.plan.changed(set, now());
            }
        }
    }

    fn scrub(&mut self) {
        let (config, me) = (Arc::clone(&self.boot.config), self.boot.me.clone());
        let reporter = self.reporter.clone();
        let tell = move |set, wrong| reporter.tell(Report::Scrubbed(set, wrong));
        self.scrub = match scrub::begin(config, me, self.boot.args.clone(), tell) {
            Ok(scrub) => Some(scrub),
            Err(e) => {
                log::error!("cannot start a thread: no set is scrubbed: {e}");
                None
            }
        };
    }

    /// Begins whatever is due.
    fn begin(&mut self) {
        while let Some(job) = self.plan.poll(now(), &daemon::sys::local_offset) {
            let id = job.id;
            if let Err(e) = self.spawn(job) {
                log::error!("cannot start a thread: {e}");
                self.plan.ended(id, &Ended::default(), now());
            }
        }
    }

    fn spawn(&self, job: Job) -> std::io::Result<()> {
        let (ground, reporter) = (self.ground.clone(), self.reporter.clone());
        let work = move || {
            let ended = jobs::work(&job, &ground);
            reporter.tell(Report::Ended(job.id, ended));
        };
        thread::Builder::new()
            .name("job".into())
            .spawn(work)
            .map(drop)
    }

    fn watch(&mut self) {
        self.watches.clear();
        for set in self.boot.config.sets.iter().filter(|s| s.on.change) {
            let (config, reporter) = (Arc::clone(&self.boot.config), self.reporter.clone());
            let (name, told) = (set.name.clone(), set.name.clone());
            let args = self.boot.args.clone();
            let units = move || units::of(&config, &args, |s| s.name == name);
            let tell = move |word| reporter.tell(Report::Watch(told.clone(), word));
            match change::watch(units, tell) {
                Ok(watch) => drop(self.watches.insert(set.name.clone(), watch)),
                Err(e) => log::error!("cannot watch {}: {e}", set.name),
            }
        }
    }

    /// How fresh the files are, or why they count for nothing.
    fn found(&mut self, fresh: Result<Freshness, String>) {
        let (fresh, doubt) = match fresh {
            Ok(fresh) => (fresh, None),
            Err(why) => (Freshness::default(), Some(why)),
        };
        if doubt.is_none() && (self.fresh.is_none() || self.notes.contains_key("fresh")) {
            log::info!("files here are of run {} in term {}", fresh.run, fresh.term);
        }
        let what = |why| format!("the files here count for nothing in an election: {why}");
        self.note("fresh", doubt.map(what));
        if self.fresh != Some(fresh) {
            self.fresh = Some(fresh);
            self.tell_fresh();
        }
    }

    fn tell_fresh(&mut self) {
        if let (Some(fresh), true) = (self.fresh, self.events.is_up(Role::Electd)) {
            self.events.send(Role::Electd, &SyncdToElectd(fresh));
        }
    }

    /// What must survive, before anything is done about it.
    fn save(&mut self) {
        if *self.plan.memory() == self.saved {
            return;
        }
        let written = codec::encode_record(self.plan.memory())
            .map_err(|e| e.to_string())
            .and_then(|bytes| {
                let folder = self.boot.args.state_dir.join("sync");
                durable::write(&folder, MEMORY, &bytes).map_err(|e| e.to_string())
            });
        match written {
            Ok(()) => self.note("memory", None),
            Err(why) => {
                let what =
                    format!("what is owed to other servers would not survive a restart: {why}");
                self.note("memory", Some(what));
            }
        }
        self.saved = self.plan.memory().clone();
    }

    fn note(&mut self, about: &str, what: Option<String>) {
        match what {
            Some(what) if self.notes.get(about) != Some(&what) => {
                log::error!("{what}");
                self.notes.insert(about.to_owned(), what);
            }
            Some(_) => {}
            None => drop(self.notes.remove(about)),
        }
    }

    fn reload(&mut self) {
        if let Err(e) = self.boot.reload() {
            return self.note(
                "reload",
                Some(format!("the configuration stays as it was: {e}")),
            );
        }
        self.note("reload", None);
        self.steer.stop();
        self.steer = steer(&self.boot, false);
        self.ground.config = Arc::clone(&self.boot.config);
        self.plan.rules(rules(&self.boot));
        self.follow.config(Arc::clone(&self.boot.config));
        self.watch();
        self.scrub();
        log::info!("configuration read again");
    }

    // ---- the operator --------------------------------------------------------------------------------

    fn answer(&mut self, conn: ConnId, request: CtlRequest) {
        let reply = match request {
            CtlRequest::Status => self.told_status(),
            CtlRequest::SyncTook { set, changes } => {
                if changes > 0 {
                    self.plan.brought(&set, now());
                }
                self.follow.now();
                CtlReply::Done(String::new())
            }
            CtlRequest::SyncNow { sets, peers } => {
                let reply = self.wanted(&sets, &peers);
                self.events.reply(conn, &reply);
                if let CtlReply::Done(_) = reply {
                    self.events.hold(conn);
                    self.waiting.push(Waiting { conn, sets, peers });
                }
                return;
            }
            CtlRequest::Promote { .. }
            | CtlRequest::Resign
            | CtlRequest::Maintenance(_)
            | CtlRequest::ServerAdd(_)
            | CtlRequest::ServerRemove(_) => {
                CtlReply::No("that is electd's to do, not syncd's".into())
            }
        };
        self.events.reply(conn, &reply);
    }

    fn told_status(&self) -> CtlReply {
        let detail = Detail::Syncd(Box::new(self.status()));
        let counters = self.events.counters();
        let clock = Some(self.steer.in_words()).filter(|words| !words.is_empty());
        let notes = self.notes.values().cloned().chain(clock).collect();
        CtlReply::Status(Box::new(self.boot.status(counters, notes, detail)))
    }

    /// Whoever waits for what was tried by now hears how it went.
    fn tell_waiting(&mut self) {
        let plan = &self.plan;
        let tried = |w: &mut Waiting| plan.was_tried(&w.sets, &w.peers);
        let done: Vec<_> = self.waiting.extract_if(.., tried).collect();
        if done.is_empty() {
            return;
        }
        let reply = self.told_status();
        for Waiting { conn, .. } in done {
            self.events.reply(conn, &reply);
        }
    }

    fn wanted(&mut self, sets: &[ServerName], peers: &[ServerName]) -> CtlReply {
        let rules = rules(&self.boot);
        let known: BTreeSet<_> = rules.sets.iter().map(|s| &s.name).collect();
        if let Some(set) = sets.iter().find(|s| !known.contains(s)) {
            return CtlReply::No(format!("no set {set} is kept alike here"));
        }
        if let Some(peer) = peers.iter().find(|p| !rules.peers.contains(p)) {
            return CtlReply::No(format!("{peer} is no other server with files"));
        }
        self.plan.wanted(sets, peers, now());
        CtlReply::Done("begun".into())
    }

    fn status(&self) -> SyncdStatus {
        let Freshness { term, run } = self.fresh.unwrap_or_default();
        let set = |name: &ServerName| {
            let running = self.plan.running().iter().find(|j| j.sets.contains(name));
            SetStatus {
                name: name.clone(),
                running: running.map(|j| j.why.to_string()),
                aside: conflicts::count(&self.boot.config, &self.boot.args, name),
                next: self.plan.next_of(name, &daemon::sys::local_offset),
                peers: self.peers(name),
                notes: Since(self.set_notes(name)),
            }
        };
        SyncdStatus {
            freshness: (Term(term.0), run),
            numbers: self.plan.numbers(),
            sets: self.boot.config.sets.iter().map(|s| set(&s.name)).collect(),
        }
    }

    /// What an operator should look at in the files of a set.
    fn set_notes(&self, name: &ServerName) -> Vec<String> {
        let (config, args) = (&self.boot.config, &self.boot.args);
        let units = units::of(config, args, |set| set.name == *name);
        let notes = units.iter().flat_map(accounts::duplicates);
        let short = notes.map(|note| note.chars().take(REASON).collect());
        short.take(SET_NOTES_MAX).collect()
    }

    fn peers(&self, set: &ServerName) -> Vec<SetPeer> {
        let past = self.plan.past(set);
        let told = |last: &schedule::Last| {
            let counts = |d: &Done| (d.taken, d.given, d.conflicts);
            let short = |why: &String| why.chars().take(REASON).collect();
            LastRun {
                at: last.at,
                why: last.why.to_string(),
                outcome: last.outcome.as_ref().map(counts).map_err(short),
                complete: last.outcome.as_ref().is_ok_and(|d| d.complete),
            }
        };
        let debt = |peer: &ServerName| {
            let debt = past?.debts.get(peer)?;
            Some(OwedRun {
                since: debt.since,
                why: debt.why.to_string(),
                tries: debt.tries,
            })
        };
        let peers = rules(&self.boot).peers.into_iter();
        peers
            .map(|server| SetPeer {
                last: past.and_then(|p| p.last.get(&server)).map(told),
                notable: Since(past.and_then(|p| p.notable.0.get(&server)).map(told)),
                debt: debt(&server),
                server,
            })
            .collect()
    }
}
