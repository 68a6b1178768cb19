//! The shell around the detector: hbd's messages in, electd's messages out, links from the kernel.
//!
//! ```text
//!   hbd ──▶ forward to electd at once ──▶ detector ──▶ Health to electd
//!                        kernel (netlink) ──┘
//! ```

use crate::clocks::Clocks;
use config::Config;
use daemon::{
    Boot, Error, Event, EventLoop, Keep,
    links::{LinkState, Links},
};
use detector::{Detector, Input, Output, Params};
use mio::Interest;
use protocol::{
    BootTime, Role, ServerName,
    codec::decode_all,
    local::{
        ctl::{CtlReply, CtlRequest},
        ring::{Arrival, DoctordToElectd, HbdToDoctord, Health, HealthState},
        status::Detail,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Among real-time tasks: like hbd, for what renews a lease passes through here.
const PRIORITY: i32 = 50;
/// The event loop's name for the kernel's link messages.
const LINKS: usize = 0;

/// The whole life of doctord.
pub fn run(boot: Boot) -> Result<(), Error> {
    let mut shell = Shell::open(boot)?;
    shell.boot.ready();
    let mut events = Vec::new();
    loop {
        let deadline = shell.deadline();
        shell.event_loop.wait(deadline, &mut events)?;
        if !shell.round(&mut events)? {
            log::info!("stopped; counted {:?}", shell.counters());
            return Ok(());
        }
    }
}

struct Shell {
    boot: Boot,
    event_loop: EventLoop,
    detector: Detector,
    clocks: Clocks,
    links: Links,
    /// The kernel may have more to tell than was read so far.
    links_unread: bool,
    /// The detector wants everything read before it calls somebody dead.
    draining: bool,
    /// What the log was told last.
    told: Health,
    notes: Vec<String>,
    counters: BTreeMap<&'static str, u64>,
}

impl Shell {
    fn open(boot: Boot) -> Result<Self, Error> {
        let failed = |e| Error::io("cannot listen to the kernel's link messages (netlink)", e);
        let mut links = Links::open().map_err(failed)?;
        let mut event_loop = EventLoop::open(&boot, &[Role::Hbd], &[Role::Electd])?;
        event_loop.register(&mut links, LINKS, Interest::READABLE)?;
        let mut notes = boot.realtime(PRIORITY);
        notes.extend(boot.drop_privileges(Keep::Doctor)?);
        let clocks = Clocks::new(&boot.config, &boot.me);
        let detector = Detector::new(params(&boot.config, &boot.me), daemon::now());
        Ok(Self {
            boot,
            event_loop,
            detector,
            clocks,
            links,
            links_unread: true,
            draining: false,
            told: Health::default(),
            notes,
            counters: BTreeMap::new(),
        })
    }

    /// When to look again though nothing happened.
    fn deadline(&self) -> Option<BootTime> {
        if self.links_unread {
            Some(daemon::now())
        } else {
            self.detector.poll_timeout()
        }
    }

    /// One turn: first hand on, then judge. False when it is time to end.
    fn round(&mut self, events: &mut Vec<Event>) -> Result<bool, Error> {
        let mut inputs = Vec::new();
        let mut heard = false;
        for event in events.drain(..) {
            match event {
                Event::Message { version, bytes, .. } => {
                    heard = true;
                    self.hand_on(&bytes, version, &mut inputs);
                }
                Event::PeerGone(Role::Hbd) => {
                    log::warn!(
                        "hbd is gone; nobody is called dead until it has been back for a lease"
                    );
                    inputs.push(Input::HbdGone);
                }
                Event::Up(Role::Electd) => inputs.push(Input::ElectdUp),
                Event::Source { .. } => self.links_unread = true,
                Event::Reload => inputs.extend(self.reload()),
                Event::Ctl { conn, request } => {
                    let reply = self.answer(&request);
                    self.event_loop.reply(conn, &reply);
                }
                Event::Terminate => return Ok(false),
                Event::Up(_)
                | Event::Down(_)
                | Event::PeerGone(_)
                | Event::Woken
                | Event::Deadline => {}
            }
        }
        let now = daemon::now();
        for input in inputs {
            self.detector.handle(now, input);
        }
        if self.links_unread {
            self.look_at_links(now)?;
        }
        if self.draining && !heard {
            self.draining = false;
            self.detector.handle(now, Input::Drained);
        }
        self.detector.handle_timeout(now);
        self.clocks.look(now);
        self.carry_out(now);
        Ok(true)
    }

    /// Gives electd what hbd brought, and appends the detector's share of it to `inputs`.
    fn hand_on(&mut self, bytes: &[u8], version: u8, inputs: &mut Vec<Input>) {
        for message in decode_all(bytes, version) {
            match message {
                Ok(message) => inputs.push(self.hand_on_one(message)),
                Err(e) => {
                    log::debug!("hbd sent what is no message: {e}");
                    self.count("refused_malformed");
                }
            }
        }
    }

    fn hand_on_one(&mut self, message: HbdToDoctord) -> Input {
        match message {
            HbdToDoctord::Beat { arrival, beat } => {
                self.count("beats");
                self.clock_of(&arrival);
                let (from, at, lease) = (arrival.from.clone(), arrival.at, beat.lease);
                if !beat.is_known_in(self.event_loop.version(Role::Electd)) {
                    // It would take what a part does not name for given up.
                    self.count("unsent_part_to_older");
                    return Input::Beat { from, at, lease };
                }
                let message = DoctordToElectd::Beat {
                    from: arrival.from,
                    at,
                    beat,
                };
                self.event_loop.queue(Role::Electd, &message);
                Input::Beat { from, at, lease }
            }
            HbdToDoctord::Ack { arrival, ack } => {
                self.count("acks");
                self.clock_of(&arrival);
                let (from, at) = (arrival.from.clone(), arrival.at);
                let message = DoctordToElectd::Ack {
                    from: arrival.from,
                    at,
                    ack,
                };
                self.event_loop.queue(Role::Electd, &message);
                Input::Ack { from, at }
            }
            HbdToDoctord::Listening => Input::HbdListens,
        }
    }

    fn look_at_links(&mut self, now: BootTime) -> Result<(), Error> {
        let failed = |e| Error::io("cannot read the kernel's link messages (netlink)", e);
        self.links_unread = self.links.read().map_err(failed)?;
        for interface in interfaces(&self.boot.config) {
            if let Some(state) = self.links.state(&interface) {
                let up = state == LinkState::Up;
                self.detector.handle(now, Input::Link { interface, up });
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, now: BootTime) {
        while let Some(output) = self.detector.poll_output() {
            match output {
                Output::Drain => self.draining = true,
                Output::Health(health) => {
                    if self.event_loop.is_up(Role::Electd) {
                        let message = DoctordToElectd::Health(health.clone());
                        self.event_loop.queue(Role::Electd, &message);
                    }
                    self.tell_log(now, health);
                }
            }
        }
    }

    /// One line per change that an operator may ask about later.
    fn tell_log(&mut self, now: BootTime, health: Health) {
        for server in &health.servers {
            let before = self
                .told
                .servers
                .iter()
                .find(|known| known.server == server.server);
            let before = before.map_or(HealthState::Unknown, |known| known.state);
            if before == server.state {
                continue;
            }
            // Suspicion comes and goes with every lost packet.
            let level = match (before, server.state) {
                (HealthState::Alive, HealthState::Suspect) => log::Level::Debug,
                (HealthState::Suspect, HealthState::Alive) => log::Level::Debug,
                _ => log::Level::Info,
            };
            let silence = server.last_heard.map_or("always".to_owned(), |last| {
                format!("{} ms", now.since(last).as_millis())
            });
            let (from, to) = (before.name(), server.state.name());
            log::log!(
                level,
                "server={} from={from} to={to} silent={silence}",
                server.server
            );
        }
        for link in &health.links {
            if !self.told.links.contains(link) {
                let (up, level) = if link.up {
                    ("up", log::Level::Info)
                } else {
                    ("down", log::Level::Warn)
                };
                log::log!(level, "interface={} carrier={up}", link.interface);
            }
        }
        self.told = health;
    }

    fn reload(&mut self) -> Option<Input> {
        match self.boot.reload() {
            Ok(()) => {
                log::info!("configuration read again");
                self.clocks.configure(&self.boot.config, &self.boot.me);
                // It may name an interface that was of no interest so far.
                self.links_unread = true;
                Some(Input::Params(params(&self.boot.config, &self.boot.me)))
            }
            Err(e) => {
                log::error!("the old configuration stays: {e}");
                None
            }
        }
    }

    fn answer(&self, request: &CtlRequest) -> CtlReply {
        if *request != CtlRequest::Status {
            return CtlReply::No(
                "doctord has an opinion and nothing to command; ask electd".into(),
            );
        }
        let mut notes = self.notes.clone();
        if self.detector.listening_since().is_none() {
            notes.push("hbd is not heard: nobody is called dead".into());
        }
        notes.extend(self.clocks.notes().cloned());
        let detail = Detail::Doctord {
            health: self.detector.health(),
            offsets: self.clocks.offsets(),
        };
        CtlReply::Status(Box::new(self.boot.status(self.counters(), notes, detail)))
    }

    fn clock_of(&mut self, arrival: &Arrival) {
        if self.clocks.heard(daemon::now(), arrival) {
            self.count("clocks_set");
        }
    }

    fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_default() += 1;
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = self.event_loop.counters();
        all.extend(
            self.counters
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count)),
        );
        all.insert("stalls".into(), self.detector.stalls());
        all
    }
}

fn params(config: &Config, me: &ServerName) -> Params {
    Params {
        servers: config.peers(me).map(|server| server.name.clone()).collect(),
        interfaces: interfaces(config).into_iter().collect(),
        heartbeat: config.cluster.heartbeat,
        lease: config.cluster.lease,
    }
}

/// Every interface that a virtual server uses, once.
fn interfaces(config: &Config) -> BTreeSet<String> {
    config
        .virtual_servers
        .iter()
        .map(|virtual_server| virtual_server.interface.clone())
        .collect()
}
