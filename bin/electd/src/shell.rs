//! Carries messages, time and files between the elector, the takeover and the other roles.

use crate::{
    change_file::ChangeFile,
    conflicts::Conflicts,
    lock::InstanceLock,
    memory_file::MemoryFile,
    reservation_file::{self, Writer},
    settings,
    threads::{Report, Reporter},
    watchdog::Watchdog,
};
use crossbeam_channel::Receiver;
use daemon::{Boot, ConnId, Error, Event, EventLoop};
use election::{Elector, Input, Output, RoleChange, Start, Wish, Withheld};
use protocol::{
    BootTime, Instance, Role, ServerName, Term, VirtualServerName, codec,
    local::{
        ctl::{CtlReply, CtlRequest},
        ring::{
            DoctordToElectd, ElectdToHbd, ElectdToListend, ElectdToSyncd, HealthState,
            ListendToElectd, ServerHealth, SyncdToElectd,
        },
        status::{ClientsView, Detail},
    },
    owner::{Mac, Owner, Present},
    version::Since,
    wire::signal::Body,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use takeover::{GateHome, GateKind, Receipts, ScriptRole, ScriptRun, Scripts, Takeover};

/// electd stands above everything but the kernel's own threads.
const PRIORITY: i32 = 60;

/// Outputs wait at most so long while there is more to read.
const CARRY_OUT: Duration = Duration::from_millis(1);

/// Addresses told in `standin status`, of all virtual servers; each is told one at least.
const ADDRESSES_TOLD: usize = 1000;

/// Alarms kept for `standin status`.
const ALARMS: usize = 8;

/// Everything electd holds.
pub struct Shell {
    boot: Boot,
    events: EventLoop,
    elector: Elector,
    takeover: Takeover,
    scripts: Scripts,
    memory: MemoryFile,
    changes: ChangeFile,
    withheld: Withheld,
    /// Whose every reservation is that is written.
    owner: Owner,
    /// Until the last reservation is to be written.
    writer: Option<Writer>,
    reports: Receiver<Report>,
    /// Who waits for which wish.
    wishes: BTreeMap<u64, ConnId>,
    last_wish: u64,
    notes: Vec<String>,
    /// Why the reservation that was found counts for nothing; until this server has one of its own.
    foreign: Option<String>,
    alarms: VecDeque<String>,
    conflicts: Conflicts,
    stopped: bool,
    watchdog: Option<Watchdog>,
    /// When the last beat was made, and the longest time between two.
    beats: (Option<BootTime>, Duration),
    /// Messages of neighbours that could not be read.
    malformed: u64,
    /// What syncd is told: of what this server is master, and who is dead.
    masters: BTreeMap<VirtualServerName, Term>,
    dead: Vec<ServerName>,
    /// Since when outputs may be waiting to be carried out.
    waits_since: Option<BootTime>,
    /// Lost last, so that no other electd starts before everything above is gone.
    _lock: InstanceLock,
}

impl Shell {
    /// Opens whatever needs rights, and finds out what an earlier electd left.
    pub fn open(
        boot: Boot,
        lock: InstanceLock,
        gate: GateHome,
        present: &Present,
    ) -> Result<Self, Error> {
        let receives = [Role::Doctord, Role::Listend, Role::Standin, Role::Syncd];
        let sends = [Role::Hbd, Role::Listend, Role::Syncd];
        let events = EventLoop::open(&boot, &receives, &sends)?;
        let (reporter, reports) = Reporter::new(events.waker());
        let (memory, remembered) = MemoryFile::open(&boot.args.run_dir)?;
        let changes = ChangeFile::open(&boot.args.run_dir)?;
        let found = reservation_file::open(&boot.args.state_dir, present)?;
        let writing = reporter.clone();
        let (state_dir, owner) = (boot.args.state_dir.clone(), found.owner.clone());
        let writer = Writer::start(state_dir, owner, move |written| {
            writing.report(Report::Reservation(written));
        })?;
        let scripts = &boot.config.scripts;
        let scripts = Scripts::start(
            &scripts.directory,
            scripts.timeout,
            &boot.args.run_dir.join("scripts.log"),
        );
        let realtime = boot.config.cluster.realtime.then_some(PRIORITY + 1);
        let sets = settings::address_sets(&boot.config, &boot.me);
        let (takeover, adopted) =
            Takeover::start(&boot.args.run_dir, gate, sets, realtime, move |event| {
                reporter.report(Report::Takeover(event));
            })
            .map_err(|e| Error::Failed(e.to_string()))?;
        takeover.set_servers(settings::server_addresses(&boot.config));
        let gates: Vec<_> = adopted
            .into_iter()
            .map(|a| (a.virtual_server, a.deadline))
            .collect();
        let mastered = |v: &VirtualServerName| {
            remembered.as_ref().is_none_or(|m| {
                m.votes
                    .iter()
                    .any(|x| x.virtual_server == *v && x.holder.as_ref() == Some(&boot.me))
            })
        };
        let to_slave: Vec<_> = settings::address_sets(&boot.config, &boot.me)
            .into_iter()
            .map(|set| set.virtual_server)
            .filter(|v| mastered(v) && !gates.iter().any(|(gate, _)| gate == v))
            .collect();
        let start = Start {
            instance: Instance(daemon::random_u64()?),
            seed: daemon::random_u64()?,
            reservation: found.reservation,
            memory: remembered,
            gates,
        };
        let mut elector = Elector::new(
            settings::election(&boot.config, &boot.me, takeover.margin()),
            start,
            daemon::now(),
        );
        elector.recall_changes(changes.changes());
        if daemon::maintenance::since(&boot.args.state_dir).is_some() {
            let wish = Wish::Maintenance(true);
            elector.handle(daemon::now(), Input::Operator { id: 0, wish }); // nobody waits for the answer
        }
        let mut alarms = VecDeque::new();
        let watchdog = boot.config.cluster.watchdog.as_deref();
        let watchdog = watchdog.and_then(|path| {
            let opened = Watchdog::open(path);
            opened
                .inspect_err(|why| {
                    log::error!("{why}");
                    alarms.push_back(why.clone());
                })
                .ok()
        });
        let shell = Self {
            boot,
            events,
            elector,
            takeover,
            scripts,
            memory,
            changes,
            withheld: Withheld::default(),
            owner: found.owner,
            writer: Some(writer),
            reports,
            wishes: BTreeMap::new(),
            last_wish: 0,
            notes: Vec::new(),
            foreign: found.foreign,
            alarms,
            conflicts: Conflicts::default(),
            stopped: false,
            watchdog,
            beats: (None, Duration::ZERO),
            malformed: 0,
            masters: BTreeMap::new(),
            dead: Vec::new(),
            waits_since: None,
            _lock: lock,
        };
        log::info!("gate: {}", shell.takeover.gate_in_force());
        for virtual_server in to_slave {
            shell.run_scripts(virtual_server, ScriptRole::Slave, None, "started");
        }
        Ok(shell)
    }

    /// Real time for the loop; the threads that may be slow were started without it.
    pub fn realtime(&self) -> Vec<String> {
        self.boot.realtime(PRIORITY)
    }

    /// Ready to serve; `notes` are kept for `standin status`.
    pub fn ready(&mut self, notes: Vec<String>) {
        self.notes = notes;
        self.carry_out();
        self.boot.ready();
    }

    /// Until stopped.
    pub fn run(mut self) -> Result<(), Error> {
        let mut events = Vec::new();
        while !self.stopped {
            self.events.wait(self.elector.poll_timeout(), &mut events)?;
            for event in events.drain(..) {
                self.event(event);
                self.carry_out_soon();
            }
            self.carry_out();
        }
        self.events.flush(); // the last beat says that this server takes no mastership
        if !self.scripts.wait_idle(self.boot.config.scripts.timeout) {
            log::warn!("role scripts still run; electd does not wait for them any longer");
        }
        self.takeover.close();
        if let Some(watchdog) = self.watchdog {
            watchdog.end();
        }
        Ok(())
    }

    fn tell(&mut self, input: Input) {
        self.elector.handle(daemon::now(), input);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Message {
                from: Role::Doctord,
                version,
                bytes,
            } => {
                for message in codec::decode_all(&bytes, version) {
                    match message {
                        Ok(message) => self.heard(message),
                        Err(e) => self.unreadable(Role::Doctord, &e),
                    }
                    self.carry_out_soon();
                }
            }
            Event::Message {
                from: Role::Listend,
                version,
                bytes,
            } => {
                for message in codec::decode_all(&bytes, version) {
                    match message {
                        Ok(message) => self.signalled(message),
                        Err(e) => self.unreadable(Role::Listend, &e),
                    }
                    self.carry_out_soon();
                }
            }
            Event::Message {
                from: Role::Syncd,
                version,
                bytes,
            } => {
                for message in codec::decode_all(&bytes, version) {
                    match message {
                        Ok(SyncdToElectd(fresh)) => self.tell(Input::Fresh(fresh)),
                        Err(e) => self.unreadable(Role::Syncd, &e),
                    }
                }
            }
            Event::Message { from, .. } => self.unreadable(from, &"nothing that electd listens to"),
            Event::Ctl { conn, request } => self.request(conn, request),
            Event::PeerGone(Role::Doctord) => self.tell(Input::DoctorLost),
            Event::Up(Role::Listend) => {
                let config = self.boot.config.clone();
                for server in &config.servers {
                    self.tell(Input::Linked(server.name.clone())); // itself is nobody it asks
                }
            }
            Event::Up(Role::Syncd) => {
                let roles: Vec<_> = self.masters.iter().map(|(v, t)| (v.clone(), *t)).collect();
                for (v, term) in roles {
                    self.tell_syncd(v, Some(term));
                }
                self.tell_dead();
            }
            Event::Up(_) | Event::Down(_) | Event::PeerGone(_) | Event::Source { .. } => {}
            Event::Woken => {
                for report in self.reports.try_iter().collect::<Vec<_>>() {
                    self.report(report);
                    self.carry_out();
                }
            }
            Event::Terminate => self.tell(Input::Stop),
            Event::Reload => self.reload(),
            Event::Deadline => self.elector.handle_timeout(daemon::now()),
        }
    }

    fn tell_syncd(&mut self, virtual_server: VirtualServerName, master: Option<Term>) {
        if self.events.is_up(Role::Syncd) {
            let message = ElectdToSyncd::Role {
                virtual_server,
                master,
            };
            self.events.queue(Role::Syncd, &message);
        }
    }

    fn tell_dead(&mut self) {
        if self.events.is_up(Role::Syncd) {
            let message = ElectdToSyncd::Dead(self.dead.clone());
            self.events.queue(Role::Syncd, &message);
        }
    }

    fn heard(&mut self, message: DoctordToElectd) {
        if let DoctordToElectd::Health(health) = &message {
            let dead = |s: &&ServerHealth| s.state == HealthState::Dead;
            let dead = health.servers.iter().filter(dead);
            if !dead.clone().map(|s| &s.server).eq(&self.dead) {
                self.dead = dead.map(|s| s.server.clone()).collect();
                self.tell_dead();
            }
        }
        self.tell(match message {
            DoctordToElectd::Beat { from, at, beat } => Input::Beat { from, at, beat },
            DoctordToElectd::Ack { from, ack, .. } => Input::Ack { from, ack },
            DoctordToElectd::Health(health) => Input::Health(health),
        });
    }

    fn signalled(&mut self, message: ListendToElectd) {
        match message {
            ListendToElectd::Signal { from, signal } => self.tell(Input::Signal { from, signal }),
            ListendToElectd::Link { server, up: true } => {
                self.takeover.tell_clients_again();
                self.tell(Input::Linked(server));
            }
            ListendToElectd::Link { up: false, .. } => {}
        }
    }

    /// Counted; told ever more seldom, for it may be a flood.
    fn unreadable(&mut self, from: Role, why: &dyn std::fmt::Display) {
        self.malformed += 1;
        if self.malformed.is_power_of_two() {
            log::warn!(
                "unreadable message from {from}: {why} ({} in all)",
                self.malformed
            );
        }
    }

    fn beat_made(&mut self) -> BootTime {
        let now = daemon::now();
        let (last, longest) = &mut self.beats;
        *longest = last
            .map_or(Duration::ZERO, |last| now.since(last))
            .max(*longest);
        *last = Some(now);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.beat(now);
        }
        now
    }

    fn report(&mut self, report: Report) {
        use takeover::Event as Address;
        match report {
            Report::Reservation(Ok(reservation)) => {
                self.foreign = None;
                self.tell(Input::Reserved(reservation));
            }
            Report::Reservation(Err(why)) => self.tell(Input::ReserveFailed(why)),
            Report::Takeover(Address::Opened { v }) => log::info!("addresses of {v} are up"),
            Report::Takeover(Address::Shut { v }) => self.tell(Input::GateShut(v)),
            Report::Takeover(Address::Lapsed { v }) => {
                log::warn!("lease of {v} ran out: its addresses are removed");
            }
            Report::Takeover(Address::Failed { v, what }) => self.tell(Input::GateBroken(v, what)),
            Report::Takeover(Address::Restored { v, what }) => {
                self.alarm(format!(
                    "{v}: {what} was removed by another program and put back"
                ));
            }
            Report::Takeover(Address::ForeignClaim {
                v,
                ip,
                mac,
                of_server: true,
            }) => {
                let mac = Mac(mac);
                self.alarm(format!("{v}: {mac}, a server of the cluster, claims {ip}"));
                self.tell(Input::ForeignClaim(v));
            }
            Report::Takeover(Address::ForeignClaim { v, ip, mac, .. }) => {
                if let Some(alarm) = self.conflicts.claimed(daemon::now(), &v, ip, Mac(mac)) {
                    log::error!("{alarm}");
                }
                self.tell(Input::ForeignClaim(v));
            }
            Report::Takeover(Address::Taken { v, taken }) => self.tell(Input::Taken(v, taken)),
            Report::Takeover(Address::Clients { v, clients }) => {
                self.tell(Input::Clients(v, clients))
            }
            Report::Takeover(Address::Probed { v, answered_by }) => {
                self.tell(Input::Probed(v, answered_by.is_some()));
            }
        }
    }

    /// What hundreds of messages at once bring about is remembered in one write, not one each; but nothing waits for
    /// long, and nothing once all that is there has been read.
    fn carry_out_soon(&mut self) {
        let now = daemon::now();
        if now.since(*self.waits_since.get_or_insert(now)) >= CARRY_OUT {
            self.carry_out();
        }
    }

    /// R8 and the order of DESIGN: the outputs, one after another.
    fn carry_out(&mut self) {
        self.waits_since = None;
        let mut remembered = self.memory.retry();
        while let Some(output) =
            (self.withheld.next(remembered)).or_else(|| self.elector.poll_output())
        {
            let Some(output) = self.withheld.pass(output, remembered) else {
                continue;
            };
            match output {
                Output::Remember(memory) => remembered = self.memory.write(memory),
                Output::Beat(beat) => {
                    let made = self.beat_made();
                    self.events
                        .queue(Role::Hbd, &ElectdToHbd::Beat { made, beat });
                }
                Output::Ack { to, ack } => {
                    self.events.queue(
                        Role::Hbd,
                        &ElectdToHbd::Ack {
                            made: daemon::now(),
                            to,
                            ack,
                        },
                    );
                }
                Output::Signal { to, signal } => {
                    if let Body::PreCall { .. } | Body::Call { .. } = signal.body {
                        self.takeover.look_for_others(&signal.virtual_server);
                    }
                    self.events
                        .send(Role::Listend, &ElectdToListend { to, signal });
                }
                Output::Open(v, until) => self.takeover.open(&v, until),
                Output::Shut(v) => self.takeover.shut(&v),
                Output::HandOver(v, patience) => self.takeover.hand_over(&v, patience),
                Output::Succeeded(v) => self.takeover.succeeded(&v),
                Output::Announce(v) => self.takeover.announce(&v),
                Output::Probe(v) => self.takeover.probe(&v),
                Output::Clients(v, clients) => self.takeover.learn(&v, &clients),
                Output::Reserve(reservation) => {
                    if let Some(writer) = &self.writer {
                        writer.request(reservation);
                    }
                }
                Output::Role(change) => self.role_changed(change),
                Output::Changed(v, change) => self.changes.keep(v, change),
                Output::Alarm(text) => self.alarm(text),
                Output::Notice(text) => log::info!("{text}"),
                Output::Answer { id, answer } => self.answer(id, answer),
                Output::Stopped(last) => {
                    if let Some(writer) = self.writer.take() {
                        writer.finish();
                    }
                    if let Some(last) = last
                        && let Err(e) =
                            reservation_file::write(&self.boot.args.state_dir, &last, &self.owner)
                    {
                        log::error!("{e}");
                    }
                    self.stopped = true;
                }
            }
        }
    }

    fn role_changed(&mut self, change: RoleChange) {
        let RoleChange {
            virtual_server,
            master,
            term,
            renewed,
            holder,
            reason,
        } = change;
        let (from, to) = match (master, renewed) {
            (true, true) => ("master", "master"),
            (true, false) => ("slave", "master"),
            (false, _) => ("master", "slave"),
        };
        log::info!(
            "role virtual_server={virtual_server} from={from} to={to} term={term} reason=\"{reason}\""
        );
        match master {
            true => self.masters.insert(virtual_server.clone(), term),
            false => self.masters.remove(&virtual_server),
        };
        self.tell_syncd(virtual_server.clone(), master.then_some(term));
        if !renewed {
            let role = if master {
                ScriptRole::Master
            } else {
                ScriptRole::Slave
            };
            let run = ScriptRun {
                virtual_server,
                server: self.boot.me.clone(),
                role,
                term,
                master: holder,
                reason,
            };
            self.scripts.run(run);
        }
    }

    fn run_scripts(
        &self,
        virtual_server: VirtualServerName,
        role: ScriptRole,
        master: Option<protocol::ServerName>,
        reason: &str,
    ) {
        let (server, term) = (self.boot.me.clone(), protocol::Term(0));
        let reason = reason.to_owned();
        self.scripts.run(ScriptRun {
            virtual_server,
            server,
            role,
            term,
            master,
            reason,
        });
    }

    fn alarm(&mut self, text: String) {
        log::error!("{text}");
        if self.alarms.back() != Some(&text) {
            self.alarms.push_back(text);
        }
        while self.alarms.len() > ALARMS {
            self.alarms.pop_front();
        }
    }

    // ---- the operator --------------------------------------------------------------------------------

    fn request(&mut self, conn: ConnId, request: CtlRequest) {
        let wish = match request {
            CtlRequest::Status => {
                let status = CtlReply::Status(Box::new(self.status()));
                return self.events.reply(conn, &status);
            }
            CtlRequest::Promote { to, virtual_server } => Wish::Promote(to, virtual_server),
            CtlRequest::Resign => Wish::Resign,
            CtlRequest::Maintenance(on) => Wish::Maintenance(on),
            CtlRequest::ServerAdd(server) => Wish::Add(server),
            CtlRequest::ServerRemove(server) => Wish::Remove(server),
            CtlRequest::SyncNow { .. } | CtlRequest::SyncTook { .. } => {
                let why = "that is syncd's to do, not electd's".to_owned();
                return self.events.reply(conn, &CtlReply::No(why));
            }
        };
        self.last_wish += 1;
        self.wishes.insert(self.last_wish, conn);
        self.tell(Input::Operator {
            id: self.last_wish,
            wish,
        });
    }

    fn answer(&mut self, id: u64, answer: Result<String, String>) {
        let Some(conn) = self.wishes.remove(&id) else {
            return;
        };
        let reply = match answer {
            Ok(text) => CtlReply::Done(text),
            Err(text) => CtlReply::No(text),
        };
        self.events.reply(conn, &reply);
    }

    fn status(&self) -> protocol::local::status::RoleStatus {
        let now: BootTime = daemon::now();
        let mut view = self.elector.view(now);
        let gate = self.takeover.gate_in_force();
        let gated = self.takeover.gate_kind() != GateKind::Addresses;
        let each = (ADDRESSES_TOLD / view.virtual_servers.len().max(1)).max(1);
        for v in &mut view.virtual_servers {
            let set = self
                .boot
                .config
                .virtual_servers
                .iter()
                .find(|x| x.name == v.name);
            let all = set.map_or(&[][..], |x| &x.addresses);
            v.addresses_total = u32::try_from(all.len()).unwrap_or(u32::MAX);
            v.addresses = all.iter().take(each).map(ToString::to_string).collect();
            v.mac = set.and_then(|x| x.mac).map(|mac| mac.to_string());
            v.gate = gate.clone();
            v.scripts.0 = self.scripts.last(&v.name);
            v.gated = Since(Some(gated));
            if v.role == "master" {
                v.clients = self.takeover.receipts(&v.name).map(clients_view);
            }
        }
        let mut counters = self.events.counters();
        counters.extend(
            self.elector
                .counters()
                .iter()
                .map(|(what, n)| ((*what).to_owned(), *n)),
        );
        let gap = u64::try_from(self.beats.1.as_micros()).unwrap_or(u64::MAX);
        counters.insert("beat_gap_max_us".to_owned(), gap);
        let late = self.takeover.late_packets();
        for (what, n) in [
            ("late_packets_held", late.held),
            ("late_packets_forwarded", late.forwarded),
            ("late_packets_dropped", late.dropped),
        ] {
            counters.insert(what.to_owned(), n);
        }
        counters.insert("refused_malformed".to_owned(), self.malformed);
        counters.insert("foreign_claims".to_owned(), self.conflicts.claims());
        let notes = self.notes.iter().chain(&self.foreign).chain(&self.alarms);
        let notes = notes.cloned().chain(self.conflicts.notes(now)).collect();
        self.boot
            .status(counters, notes, Detail::Electd(Box::new(view)))
    }

    /// SIGHUP: the elector takes the new settings in place; nothing is restarted.
    fn reload(&mut self) {
        if let Err(e) = self.boot.reload() {
            return self.alarm(format!("the configuration stays as it was: {e}"));
        }
        self.takeover
            .replace_sets(settings::address_sets(&self.boot.config, &self.boot.me));
        self.takeover
            .set_servers(settings::server_addresses(&self.boot.config));
        let cluster = &self.boot.config.cluster;
        let kind = self.takeover.gate_kind();
        if let Err(e) = takeover::lease_fits(kind, cluster.heartbeat, cluster.lease) {
            self.alarm(format!(
                "the gate of {kind} is in force: {e}, or restart standin"
            ));
        }
        let margin = self.takeover.margin();
        self.tell(Input::Settings(settings::election(
            &self.boot.config,
            &self.boot.me,
            margin,
        )));
        log::info!("configuration read again");
    }
}

fn clients_view(receipts: Receipts) -> ClientsView {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    ClientsView {
        asked: count(receipts.asked),
        answered: count(receipts.answered),
        silent: count(receipts.silent),
        silent_first: receipts.silent_first,
        last_answer: receipts.last_answer,
    }
}
