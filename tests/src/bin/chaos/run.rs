//! Plays a schedule and judges it from outside, all the time and at the end.

use crate::{
    report,
    schedule::Schedule,
    stage::{Begun, Stage},
    witness::{self, Crime},
};
use lab::{Answered, Cluster, Error, NAMES, Spec, Spinners, Stalls};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, SystemTime},
};

/// How often is looked for what must not be.
const LOOK: Duration = Duration::from_millis(500);
/// At most so long nothing is looked at.
const TICK: Duration = Duration::from_millis(5);
/// Answers of the last moments may still come in out of order.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// Beyond what the rules allow for: daemons that start on a busy machine, the machine's own small stalls.
const MARGIN: Duration = Duration::from_secs(2);
/// A stall of the machine worth telling, and one that is a disturbance of its own.
const STALL: Duration = Duration::from_millis(100);
/// Outages from here on are told.
const OUTAGE: Duration = Duration::from_millis(50);

/// What must not be, and about when.
pub struct Failure {
    pub at: Duration,
    pub what: String,
    /// It is the lab that could not do something: nothing is said about the servers.
    pub of_the_lab: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    Caught,
    /// The lab failed.
    Unknown,
}

/// What a run came to.
#[derive(Default)]
pub struct Figures {
    pub lasted: Duration,
    pub faults: BTreeMap<&'static str, usize>,
    pub takeovers: usize,
    pub answers: usize,
    pub outage: Duration,
    /// The longest outage while a majority was undisturbed, from when on it was.
    pub undisturbed: Duration,
    pub stall: Duration,
    pub two: Duration,
}

/// Plays it on a cluster of that kind.
pub fn run(spec: Spec, schedule: Schedule, again: &str, explain: bool) -> Result<Verdict, Error> {
    let (stalls, _spinners) = (Stalls::start()?, Spinners::start()?);
    if !stalls.realtime {
        println!(
            "note: no real-time precedence for this user: the machine's stalls are not all seen"
        );
    }
    let cluster = match Cluster::start(spec) {
        Err(late @ Error::Late { .. }) => {
            println!("caught: before anything went wrong: {late}");
            return Ok(Verdict::Caught);
        }
        other => other?,
    };
    stalls.take();
    let mut run = Run {
        seen: vec![Seen::default(); cluster.spec().virtual_servers],
        stage: Stage::new(cluster),
        stalls,
        figures: Figures::default(),
        looked: Duration::ZERO,
        started: SystemTime::now(),
        master: 0,
    };
    let failure = run.play(&schedule).and_then(|()| run.finish()).err();
    run.count();
    if let Some(failure) = &failure {
        report::explain(&run.stage, run.started, failure);
    }
    if explain {
        let all = Duration::ZERO..run.figures.lasted;
        report::logs(&run.stage.cluster, run.started, all);
    }
    let verdict = match &failure {
        None => Verdict::Fine,
        Some(failure) if failure.of_the_lab => Verdict::Unknown,
        Some(_) => Verdict::Caught,
    };
    if verdict != Verdict::Fine {
        println!("\nagain: {again}\nor, shortened by hand, with --schedule FILE:\n{schedule}");
    }
    report::summary(&run.figures, again, verdict);
    Ok(verdict)
}

/// What was seen of one virtual server.
#[derive(Clone, Default)]
struct Seen {
    /// Answers to the judge and to the client that have been looked at.
    judged: usize,
    received: usize,
    /// Those that the next ones are compared with.
    answers: Vec<Answered>,
    requests: Vec<(usize, Answered)>,
    holder: Option<usize>,
    /// No answer for so long.
    silence: Duration,
}

struct Run {
    stage: Stage,
    stalls: Stalls,
    figures: Figures,
    seen: Vec<Seen>,
    looked: Duration,
    started: SystemTime,
    /// Who was master last.
    master: usize,
}

impl Run {
    fn lab<T>(&self, result: Result<T, Error>) -> Result<T, Failure> {
        result.map_err(|error| Failure {
            of_the_lab: !matches!(error, Error::Late { .. }),
            ..self.wrong(error.to_string())
        })
    }

    fn wrong(&self, what: String) -> Failure {
        Failure {
            at: self.stage.now(),
            what,
            of_the_lab: false,
        }
    }

    fn play(&mut self, schedule: &Schedule) -> Result<(), Failure> {
        let mut faults = schedule.0.iter().peekable();
        let mut open: Vec<(Duration, Begun)> = Vec::new();
        loop {
            let now = self.stage.now();
            while let Some(at) = open.iter().position(|(end, _)| *end <= now) {
                let (_, begun) = open.remove(at);
                let ended = self.stage.end(&begun);
                if let Some(later) = self.lab(ended)? {
                    open.push((later, begun));
                }
            }
            if let Some(fault) = faults.next_if(|fault| fault.at <= now) {
                *self.figures.faults.entry(fault.act.word()).or_default() += 1;
                let begun = self.stage.begin(fault, self.master);
                if let Some(begun) = self.lab(begun)? {
                    open.push((fault.end(), begun));
                }
            }
            let settled = self.stage.settle();
            let busy = self.lab(settled)?;
            self.look()?;
            if open.is_empty() && faults.peek().is_none() && !busy {
                return Ok(());
            }
            let ends = open.iter().map(|(end, _)| *end);
            let next = ends.chain(faults.peek().map(|f| f.at)).min();
            let now = self.stage.now();
            thread::sleep(next.unwrap_or(now + TICK).saturating_sub(now).min(TICK));
        }
    }

    /// One look at everything from outside.
    fn look(&mut self) -> Result<(), Failure> {
        let stall = self.stalls.take();
        let now = self.stage.now();
        self.figures.stall = self.figures.stall.max(stall);
        if stall > STALL {
            self.stage.calm.stalled(now);
            self.stage
                .note(format!("  the machine stood still for {stall:.0?}"));
        }
        for v in 0..self.seen.len() {
            self.holder(v);
            self.served(v, now)?;
        }
        if now > self.looked + LOOK {
            self.looked = now;
            self.crimes()?;
        }
        Ok(())
    }

    fn holder(&mut self, v: usize) {
        let holder = self.stage.cluster.master(v);
        let seen = &mut self.seen[v];
        let Some(new) = holder else {
            return;
        };
        let old = seen.holder.replace(new);
        if v == 0 {
            self.master = new;
        }
        if old != Some(new) {
            let before = old.map_or("nobody", |old| NAMES[old]);
            self.stage
                .note(format!("  {} answers, before {before}", NAMES[new]));
        }
    }

    /// Clients may wait only as long as no majority has been left alone long enough.
    fn served(&mut self, v: usize, now: Duration) -> Result<(), Failure> {
        let silence = self.stage.cluster.net().client(v).silence();
        let before = std::mem::replace(&mut self.seen[v].silence, silence);
        if silence < before && before > OUTAGE {
            self.stage
                .note(format!("  clients are served again, after {before:.0?}"));
        }
        let Some(since) = self.stage.calm.since() else {
            return Ok(());
        };
        let waited = silence.min(now.saturating_sub(since));
        self.figures.undisturbed = self.figures.undisturbed.max(waited);
        // Three leases, and the longest promise: all servers have the same lease here.
        let limit = self.stage.cluster.spec().profile.lease * 4 + MARGIN;
        if waited > limit {
            let what = format!(
                "clients have waited {silence:.2?}, though a majority is undisturbed since {:.3} s",
                since.as_secs_f64()
            );
            return Err(self.wrong(what));
        }
        Ok(())
    }

    fn crimes(&mut self) -> Result<(), Failure> {
        let settled = lab::clock().saturating_sub(UNDER_WAY);
        for (v, seen) in self.seen.iter_mut().enumerate() {
            let net = self.stage.cluster.net();
            let judged = net.judge().answers(v, seen.judged);
            let received = net.client(v).answers(seen.received);
            seen.judged += judged.len();
            seen.received += received.len();
            seen.answers.extend(judged);
            seen.answers
                .extend(received.iter().map(|(_, answer)| answer));
            seen.answers.sort_unstable();
            seen.requests.extend(received);
            let crime: Option<Crime> = witness::interleaved(&seen.answers)
                .or_else(|| witness::without_lease(&seen.answers, &self.stage.barred))
                .or_else(|| witness::answered_twice(&seen.requests));
            if let Some(crime) = crime {
                return Err(Failure {
                    at: crime.at.saturating_sub(self.stage.began),
                    what: crime.what,
                    of_the_lab: false,
                });
            }
            seen.answers.retain(|answer| answer.at > settled);
            seen.requests.retain(|(_, answer)| answer.at > settled);
        }
        let over = |until: Duration| until < settled;
        self.stage.barred.retain(|b| !b.until.is_some_and(over));
        Ok(())
    }

    /// All is healed: one master, and everybody says so.
    fn finish(&mut self) -> Result<(), Failure> {
        self.stage.note("all is healed".to_owned());
        let settled = self.stage.cluster.settle();
        // Why they do not agree, perhaps.
        self.roles()?;
        let master = self.lab(settled)?;
        self.look()?;
        self.crimes()?;
        if let Some(what) = report::complaint(&self.stage.cluster) {
            return Err(self.wrong(what));
        }
        self.stage
            .note(format!("all servers agree on {}", NAMES[master]));
        for v in 0..self.seen.len() {
            let verdict = self.stage.cluster.net().judge().since(0, v);
            if let Some(both) = verdict.holdings.iter().find(|h| h.servers.len() > 1) {
                let names: Vec<_> = both.servers.iter().map(|s| NAMES[*s]).collect();
                let what = format!("{} answered at the same instant", names.join(" and "));
                return Err(self.wrong(what));
            }
        }
        Ok(())
    }

    /// Whatever has died runs again.
    fn roles(&self) -> Result<(), Failure> {
        for server in 0..self.stage.cluster.spec().servers {
            for role in ["hbd", "listend", "doctord", "electd"] {
                let running = self.stage.cluster.role(server, role).len();
                if running != 1 {
                    let name = self.stage.cluster.name(server);
                    return Err(self.wrong(format!("{running} {role} run on {name} at the end")));
                }
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        let net = self.stage.cluster.net();
        for v in 0..self.seen.len() {
            let (verdict, outage) = (net.judge().since(0, v), net.client(v).since(0));
            self.figures.two += verdict.two;
            self.figures.takeovers += verdict.moves();
            self.figures.answers += outage.sent - outage.lost;
            self.figures.outage = self.figures.outage.max(outage.longest);
        }
        self.figures.lasted = self.stage.now();
    }
}
