//! Carries out the faults, and undoes them, on a running cluster; and keeps book of who is disturbed since when.

use crate::{
    calm::Calm,
    schedule::{Act, Fault, PARTS, Target},
    witness::Barred,
};
use lab::{Cluster, Error, Faults, NAMES, Signal, clock};
use std::{collections::BTreeMap, fs, process::Child, thread, time::Duration};

/// A server that was told to stop has ended after this at the latest; its scripts may take ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// What could not be undone is tried again so much later.
const AGAIN: Duration = Duration::from_millis(50);
/// A loss of more than so many beats of a hundred is no network to be master on.
const BEARABLE: u8 = 20;
/// A cable carries so soon after it is plugged in.
const CARRIER: Duration = Duration::from_secs(5);
/// A stopped process has really stopped by then.
const HALT: Duration = Duration::from_millis(500);

/// A fault that lasts and was begun.
#[derive(Clone, Debug)]
pub struct Begun {
    pub act: Act,
    pub server: usize,
    since: Duration,
}

/// A command of the operator that has not ended yet.
struct Running {
    child: Child,
    server: usize,
    words: String,
    after: After,
}

/// What the end of a command means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    /// The server is undisturbed again.
    Calm,
    /// The server is no longer in maintenance, if the command did it.
    Active,
}

pub struct Stage {
    pub cluster: Cluster,
    pub calm: Calm,
    /// Stretches of time without renewal.
    pub barred: Vec<Barred>,
    /// What happened, on the lab's clock.
    pub log: Vec<(Duration, String)>,
    pub began: Duration,
    /// Faults of the network that are there now.
    network: Vec<Act>,
    /// How often a server's processes are stopped, cable pulled, interface off.
    stopped: BTreeMap<(usize, &'static str), u32>,
    unplugged: Vec<u32>,
    off: Vec<bool>,
    /// Without its main daemon.
    headless: Vec<bool>,
    /// Cables plugged in since then that do not carry yet, by server.
    plugging: Vec<(usize, Duration)>,
    running: Vec<Running>,
}

impl Stage {
    pub fn new(cluster: Cluster) -> Self {
        let servers = cluster.spec().servers;
        Self {
            cluster,
            calm: Calm::new(servers),
            barred: Vec::new(),
            log: Vec::new(),
            began: clock(),
            network: Vec::new(),
            stopped: BTreeMap::new(),
            unplugged: vec![0; servers],
            off: vec![false; servers],
            headless: vec![false; servers],
            plugging: Vec::new(),
            running: Vec::new(),
        }
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        clock().saturating_sub(self.began)
    }

    /// Tells what happened just now.
    pub fn note(&mut self, text: String) {
        let now = self.now();
        println!("{:9.3}  {text}", now.as_secs_f64());
        self.log.push((now, text));
    }

    fn servers(&self) -> usize {
        self.cluster.spec().servers
    }

    fn others(&self, server: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.servers()).filter(move |other| *other != server)
    }

    // ---- the faults --------------------------------------------------------------------------------------------------

    /// Begins a fault; what must be ended later, if it lasts.
    pub fn begin(&mut self, fault: &Fault, master: usize) -> Result<Option<Begun>, Error> {
        let server = match fault.target {
            Some(Target::Server(server)) => server,
            Some(Target::Master) => master,
            None => 0,
        };
        let who = if fault.target == Some(Target::Master) {
            format!(": {}", NAMES[server])
        } else {
            String::new()
        };
        if fault.act.aims() && self.headless[server] && needs_a_server(&fault.act) {
            self.note(format!("{fault}{who} is down: left out"));
            return Ok(None);
        }
        self.note(format!("{fault}{who}"));
        match &fault.act {
            Act::Kill(parts) => self.kill(server, parts)?,
            Act::Stop(parts) => self.stop(server, parts)?,
            Act::Power => {
                self.away(server, true);
                self.cluster.power_loss(server)?;
                self.off[server] = true;
                self.bar();
            }
            Act::Leave => {
                self.away(server, true);
                self.cluster.send(server, Signal::SIGTERM)?;
            }
            Act::Cable | Act::Bounce => {
                self.calm.server(server, self.now(), true);
                self.unplugged[server] += 1;
                if fault.act == Act::Cable {
                    self.cluster.net().cable(server, false)?;
                } else {
                    self.cluster.net().interface(server, false)?;
                }
                self.bar();
            }
            Act::Split(_) | Act::Cut(..) | Act::Mute(..) | Act::Loss(_) => {
                self.links(&fault.act, true);
                self.network.push(fault.act.clone());
                self.cluster.net().set(self.faults())?;
                self.bar();
            }
            Act::Maintenance => {
                self.calm.votes_only(server, self.now(), true);
                self.command(server, &["maintenance", "on"], After::Nothing)?;
            }
            Act::Promote => {
                self.command(server, &["promote", NAMES[server]], After::Nothing)?;
            }
            Act::Resign => self.command(server, &["resign"], After::Nothing)?,
            Act::Restart => {
                self.calm.server(server, self.now(), true);
                self.unbar_electd(server);
                self.command(server, &["restart"], After::Calm)?;
            }
            Act::Unaddress => {
                self.calm.touch(server, self.now());
                for v in 0..self.cluster.spec().virtual_servers {
                    let address = format!("{}/24", self.cluster.address(v));
                    let delete = ["addr", "del", &address, "dev", "eth0"];
                    // Only a master has it.
                    let _ = self.cluster.host(server).tool("ip", &delete, "");
                }
            }
            Act::Ungate => {
                self.calm.touch(server, self.now());
                let host = self.cluster.host(server);
                host.tool("nft", &["flush", "ruleset"], "")?;
                // There is one only where that gate is in force.
                let _ = host.tool("tc", &["qdisc", "del", "dev", "eth0", "clsact"], "");
            }
        }
        let begun = Begun {
            act: fault.act.clone(),
            server,
            since: self.now(),
        };
        Ok(fault.act.lasts().then_some(begun))
    }

    /// Ends a fault; gives when to try again, if it cannot be ended yet.
    pub fn end(&mut self, begun: &Begun) -> Result<Option<Duration>, Error> {
        let server = begun.server;
        let later = Ok(Some(self.now() + AGAIN));
        match &begun.act {
            Act::Kill(_) => {
                self.cluster.start_server(server)?;
                self.away(server, false);
            }
            Act::Leave => {
                if !self.cluster.has_ended(server) {
                    if self.now() > begun.since + STOP_LIMIT {
                        return Err(Error::Late {
                            what: format!("{} ends when asked to", NAMES[server]),
                            limit: STOP_LIMIT,
                        });
                    }
                    return later;
                }
                self.cluster.start_server(server)?;
                self.away(server, false);
            }
            Act::Power => {
                self.off[server] = false;
                self.unbar();
                self.cluster.power_on(server)?;
                if self.unplugged[server] > 0 {
                    self.cluster.net().cable(server, false)?;
                }
                self.headless[server] = false;
                self.plugging.push((server, self.now()));
            }
            Act::Stop(parts) => self.resume(server, parts)?,
            Act::Cable => {
                self.unplugged[server] -= 1;
                self.unbar();
                if self.unplugged[server] == 0 && !self.off[server] {
                    self.cluster.net().cable(server, true)?;
                }
                self.plugging.push((server, self.now()));
            }
            Act::Bounce => {
                self.unplugged[server] -= 1;
                self.unbar();
                self.cluster.net().interface(server, true)?;
                self.plugging.push((server, self.now()));
            }
            Act::Split(_) | Act::Cut(..) | Act::Mute(..) | Act::Loss(_) => {
                let there = self.network.iter().position(|act| *act == begun.act);
                there.map(|at| self.network.remove(at));
                self.unbar();
                self.cluster.net().set(self.faults())?;
                self.links(&begun.act, false);
            }
            Act::Maintenance => {
                self.command(server, &["maintenance", "off"], After::Active)?;
            }
            Act::Promote | Act::Resign | Act::Restart | Act::Unaddress | Act::Ungate => {}
        }
        self.note(format!("  over: {} {}", begun.act.word(), self.whom(begun)));
        Ok(None)
    }

    fn whom(&self, begun: &Begun) -> &str {
        if begun.act.aims() {
            NAMES[begun.server]
        } else {
            ""
        }
    }

    fn away(&mut self, server: usize, away: bool) {
        if away {
            self.unbar_electd(server);
        }
        self.headless[server] = away;
        self.calm.server(server, self.now(), away);
    }

    fn kill(&mut self, server: usize, parts: &[&'static str]) -> Result<(), Error> {
        if parts.contains(&"main") {
            self.away(server, true);
        }
        if parts.len() == PARTS.len() {
            return self.cluster.kill_all(server);
        }
        if parts.contains(&"electd") {
            self.unbar_electd(server);
        }
        for part in parts {
            self.signal(server, part, Signal::SIGKILL)?;
        }
        self.calm.touch(server, self.now());
        Ok(())
    }

    fn signal(&self, server: usize, part: &str, signal: Signal) -> Result<(), Error> {
        if part == "main" {
            return self.cluster.send(server, signal);
        }
        let found = self.cluster.role(server, part);
        found.iter().try_for_each(|p| p.signal(signal))
    }

    fn stop(&mut self, server: usize, parts: &[&'static str]) -> Result<(), Error> {
        self.calm.server(server, self.now(), true);
        for part in parts {
            *self.stopped.entry((server, *part)).or_default() += 1;
            self.signal(server, part, Signal::SIGSTOP)?;
        }
        // The signal is taken when the process runs next, at the latest.
        let halted = || self.halted(server).then_some(());
        if parts.contains(&"electd") && lab::wait_for("electd stands still", HALT, halted).is_ok() {
            let from = clock();
            self.barred.push(Barred {
                server,
                why: STOPPED.to_owned(),
                from,
                lapsed: from + self.usable(),
                until: None,
            });
        }
        Ok(())
    }

    fn resume(&mut self, server: usize, parts: &[&'static str]) -> Result<(), Error> {
        for part in parts {
            let count = self.stopped.entry((server, *part)).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                if *part == "electd" {
                    self.unbar_electd(server);
                }
                self.signal(server, part, Signal::SIGCONT)?;
            }
        }
        self.calm.server(server, self.now(), false);
        Ok(())
    }

    // ---- the network -------------------------------------------------------------------------------------------------

    /// Pairs of which the second does not hear the first.
    fn pairs(&self, act: &Act) -> Vec<(usize, usize)> {
        let all = || (0..self.servers()).flat_map(|a| self.others(a).map(move |b| (a, b)));
        match act {
            Act::Split(groups) => {
                let place = |server| groups.iter().position(|g| g.contains(&server));
                all().filter(|(a, b)| place(*a) != place(*b)).collect()
            }
            Act::Cut(a, b) => vec![(*a, *b), (*b, *a)],
            Act::Mute(a, b) => vec![(*a, *b)],
            Act::Loss(percent) if *percent > BEARABLE => all().collect(),
            _ => Vec::new(),
        }
    }

    fn links(&mut self, act: &Act, trouble: bool) {
        let now = self.now();
        for (from, to) in self.pairs(act) {
            self.calm.link(from, to, now, trouble);
        }
    }

    fn faults(&self) -> Faults {
        let mut faults = Faults::default();
        for act in &self.network {
            match act {
                Act::Loss(percent) => faults.loss = faults.loss.max(*percent),
                _ => faults.one_way.extend(self.pairs(act)),
            }
        }
        faults
    }

    // ---- who can have no lease ---------------------------------------------------------------------------------------

    /// What a lease is at most, from the moment the beat that renews it is made.
    fn usable(&self) -> Duration {
        self.cluster.spec().profile.lease * 4 / 5
    }

    /// Whether no other server can hear it, or it can hear none.
    fn isolated(&self, server: usize) -> bool {
        let one_way = self.faults().one_way;
        let deaf = self.others(server).all(|o| one_way.contains(&(o, server)));
        let mute = self.others(server).all(|o| one_way.contains(&(server, o)));
        deaf || mute || self.unplugged[server] > 0 || self.off[server]
    }

    /// Whoever is cut off now can renew no lease from now on.
    fn bar(&mut self) {
        let from = clock();
        for server in 0..self.servers() {
            let known = |b: &Barred| b.server == server && b.why == CUT && b.until.is_none();
            if self.isolated(server) && !self.barred.iter().any(known) {
                self.barred.push(Barred {
                    server,
                    why: CUT.to_owned(),
                    from,
                    lapsed: from + self.usable(),
                    until: None,
                });
            }
        }
    }

    /// Whoever is to be cut off no longer may soon renew one; called before the cut is mended.
    fn unbar(&mut self) {
        for server in 0..self.servers() {
            if !self.isolated(server) {
                self.close(server, CUT);
            }
        }
    }

    /// An electd goes on, or another one comes; called before it does.
    fn unbar_electd(&mut self, server: usize) {
        if !self.halted(server) {
            // It was replaced while nobody looked: then nothing is known.
            let known = |b: &Barred| b.server == server && b.why == STOPPED && b.until.is_none();
            self.barred.retain(|b| !known(b));
        }
        self.close(server, STOPPED);
    }

    fn close(&mut self, server: usize, why: &str) {
        let now = clock();
        for bar in &mut self.barred {
            if bar.server == server && bar.why == why && bar.until.is_none() {
                bar.until = Some(now);
            }
        }
    }

    /// Whether every thread of a server's electd stands still.
    fn halted(&self, server: usize) -> bool {
        let asked = self
            .stopped
            .get(&(server, "electd"))
            .is_some_and(|n| *n > 0);
        let [electd] = &self.cluster.role(server, "electd")[..] else {
            return false;
        };
        let tasks = fs::read_dir(format!("/proc/{}/task", electd.pid));
        let mut tasks = tasks.into_iter().flatten().flatten().map(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, s)| s.chars().next());
            state == Some('T')
        });
        asked && tasks.all(|stopped| stopped)
    }

    // ---- the operator's commands -------------------------------------------------------------------------------------

    fn command(&mut self, server: usize, words: &[&str], after: After) -> Result<(), Error> {
        self.running.push(Running {
            child: self.cluster.begin(server, words)?,
            server,
            words: words.join(" "),
            after,
        });
        Ok(())
    }

    /// Looks what that was begun has come to its end by itself; whether there is more.
    pub fn settle(&mut self) -> Result<bool, Error> {
        self.cables()?;
        self.commands()?;
        Ok(!self.running.is_empty() || !self.plugging.is_empty())
    }

    /// A server is left alone only once its cable carries.
    fn cables(&mut self) -> Result<(), Error> {
        let now = self.now();
        for (server, since) in std::mem::take(&mut self.plugging) {
            // Pulled again: no wonder.
            let pulled = self.unplugged[server] > 0 || self.off[server];
            if pulled || self.cluster.net().carries(server) {
                self.calm.server(server, now, false);
                continue;
            }
            if now > since + CARRIER {
                let text = format!("the cable of {} does not carry", NAMES[server]);
                return Err(Error::Wrong(text));
            }
            self.plugging.push((server, since));
        }
        Ok(())
    }

    /// Looks which commands have ended.
    fn commands(&mut self) -> Result<(), Error> {
        let mut still = Vec::new();
        for mut one in std::mem::take(&mut self.running) {
            let Ok(ended) = one.child.try_wait() else {
                continue;
            };
            let Some(status) = ended else {
                still.push(one);
                continue;
            };
            let said = match status.code() {
                Some(0) => "done".to_owned(),
                Some(code) => format!("says no ({code})"),
                None => "was killed".to_owned(),
            };
            let name = NAMES[one.server];
            match one.after {
                After::Active if !status.success() => {
                    // Nobody else will ask for it again.
                    thread::sleep(Duration::from_millis(20));
                    let words: Vec<&str> = one.words.split(' ').collect();
                    self.command(one.server, &words, After::Active)?;
                    continue;
                }
                After::Active => self.calm.votes_only(one.server, self.now(), false),
                After::Calm => self.calm.server(one.server, self.now(), false),
                After::Nothing => {}
            }
            self.note(format!("  standin {} at {name}: {said}", one.words));
        }
        self.running.append(&mut still);
        Ok(())
    }
}

const STOPPED: &str = "its electd was stopped";
const CUT: &str = "it was cut off from all others";

/// Whether this can be done only to a server that runs.
fn needs_a_server(act: &Act) -> bool {
    match act {
        Act::Stop(_) | Act::Cable | Act::Bounce | Act::Unaddress | Act::Ungate => false,
        Act::Kill(parts) => parts.contains(&"main"),
        _ => true,
    }
}
