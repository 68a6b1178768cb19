//! The alarms of the main daemon: a thread of its own asks the roles every few seconds and logs one line when a reason
//! comes and one when it goes, so that nothing ever blocks the watch over the roles.

use super::{Finding, Judgement, Known, Reason, Unknown, Weight, ask, judge};
use crate::host::Host;
use config::Config;
use daemon::Args;
use protocol::{ServerName, VirtualServerName};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// How often everything is looked at.
const EVERY: Duration = Duration::from_secs(3);
/// A reason has come, or gone, when so many looks in a row agree: a role that is restarted is no alarm.
const LOOKS: u32 = 2;

/// Ends the thread when dropped, at its next look.
pub struct Alarms(Arc<Shared>);

struct Shared {
    config: Mutex<Arc<Config>>,
    ended: AtomicBool,
}

impl Alarms {
    /// Begins to look after server `me`.
    pub fn start(args: Args, config: Arc<Config>, me: ServerName) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            config: Mutex::new(config),
            ended: AtomicBool::new(false),
        });
        let own = shared.clone();
        let look_on = move || own.look_on(&args, &me);
        thread::Builder::new()
            .name("alarms".into())
            .spawn(look_on)?;
        Ok(Self(shared))
    }

    /// Another configuration is in force.
    pub fn configure(&self, config: Arc<Config>) {
        *self.0.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The roles are told to end: what follows from that is no alarm.
    pub fn end(&self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl Drop for Alarms {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn look_on(&self, args: &Args, me: &ServerName) {
        // It was started by a thread that may run under real-time scheduling.
        if let Err(e) = daemon::sys::scheduler_normal() {
            log::warn!("the alarms run under the scheduling of the main daemon: {e}");
        }
        let mut watch = Watch::default();
        loop {
            thread::sleep(EVERY);
            let config = self
                .config
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let answers = ask(&args.run_dir, &config);
            let judgement = judge(&Known {
                config: &config,
                now: daemon::now(),
                answers: &answers,
                host: &Host::look(&config, me),
            });
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            for line in watch.look(judgement) {
                log::log!(line.level, "{}", line.text);
            }
        }
    }
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    level: log::Level,
    text: String,
}

/// What is found, and for how many looks.
#[derive(Default)]
struct Watch {
    seen: BTreeMap<(Reason, Vec<VirtualServerName>), Seen>,
}

struct Seen {
    finding: Finding,
    /// It was logged.
    told: bool,
    /// So many looks in a row say otherwise than was logged.
    looks: u32,
}

impl Watch {
    fn look(&mut self, judgement: Judgement) -> Vec<Line> {
        if judgement.unknown == Some(Unknown::Electd) {
            return Vec::new(); // electd is being restarted, and is looked after by others
        }
        let mut lines = Vec::new();
        let mut gone = std::mem::take(&mut self.seen);
        for finding in judgement.findings {
            let key = (finding.reason.clone(), finding.of.clone());
            let mut seen = gone.remove(&key).unwrap_or(Seen {
                finding: finding.clone(),
                told: false,
                looks: 0,
            });
            seen.finding = finding;
            seen.looks = if seen.told { 0 } else { seen.looks + 1 };
            if seen.looks >= LOOKS {
                (seen.told, seen.looks) = (true, 0);
                lines.push(seen.came());
            }
            self.seen.insert(key, seen);
        }
        for (key, mut seen) in gone {
            seen.looks += 1;
            if !seen.told {
                continue;
            }
            if seen.looks >= LOOKS {
                lines.push(seen.went());
            } else {
                self.seen.insert(key, seen);
            }
        }
        lines
    }
}

impl Seen {
    fn came(&self) -> Line {
        let (level, what) = match self.finding.weight {
            Weight::Outage => (log::Level::Error, "alarm: cannot fail over: "),
            Weight::Weakness => (log::Level::Warn, "alarm: "),
            Weight::Remark => (log::Level::Info, ""),
        };
        Line {
            level,
            text: format!("{what}{}", self.finding),
        }
    }

    fn went(&self) -> Line {
        Line {
            level: log::Level::Info,
            text: format!("over: {}", self.finding.reason.brief()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn judgement(reasons: &[Reason]) -> Judgement {
        let finding = |reason: &Reason| Finding {
            weight: Weight::Outage,
            of: Vec::new(),
            reason: reason.clone(),
            more: None,
        };
        Judgement {
            unknown: None,
            findings: reasons.iter().map(finding).collect(),
        }
    }

    #[test]
    fn a_reason_that_lasts_has_one_line_when_it_comes_and_one_when_it_goes() {
        let mut watch = Watch::default();
        let mut looks = |reasons: &[Reason], n: u32| -> Vec<String> {
            let lines = (0..n).flat_map(|_| watch.look(judgement(reasons)));
            lines.map(|line| line.text).collect()
        };
        let master = [Reason::NoMaster];
        assert_eq!(looks(&master, 1), [""; 0], "a moment is no alarm");
        assert_eq!(looks(&[], 5), [""; 0]);
        assert_eq!(
            looks(&master, 9),
            ["alarm: cannot fail over: nobody is master"]
        );
        assert_eq!(looks(&[], 1), [""; 0], "nor is it over at once");
        assert_eq!(looks(&master, 9), [""; 0]);
        assert_eq!(looks(&[], 9), ["over: nobody is master"]);
        assert_eq!(looks(&master, 2).len(), 1, "it may come again");
    }

    #[test]
    fn while_electd_does_not_answer_nothing_comes_and_nothing_goes() {
        let mut watch = Watch::default();
        let with = || judgement(&[Reason::NoMaster]);
        let without = || Judgement {
            unknown: Some(Unknown::Electd),
            ..judgement(&[])
        };
        assert_eq!(watch.look(with()), []);
        assert_eq!(watch.look(with()).len(), 1);
        (0..9).for_each(|_| assert_eq!(watch.look(without()), []));
        assert_eq!(watch.look(with()), []);
    }
}
