//! What the daemon does in threads of its own: one job of the plan.

use crate::{
    fresh,
    replica::{Allowed, Local},
    run::{self, Wanted},
    sessions::Sessions,
    units,
};
use config::{Config, Server};
use daemon::{Args, machine};
use protocol::ServerName;
use schedule::{Done, Ended, Job, Why};
use std::{
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A new master begins with nobody later than this after it began.
const ELECTION: Duration = Duration::from_secs(60);

/// All that a job needs.
#[derive(Clone)]
pub struct Ground {
    pub config: Arc<Config>,
    pub me: ServerName,
    pub args: Args,
    /// What is kept open between jobs.
    pub sessions: Arc<Sessions>,
    /// How many changes of its own each unit had when they were last passed on.
    pub passed_on: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// Does a job. Whatever is wrong with one, the next may begin.
pub fn work(job: &Job, ground: &Ground) -> Ended {
    let ended = panic::catch_unwind(AssertUnwindSafe(|| do_it(job, ground)));
    ended.unwrap_or_else(|_| {
        let mut ended = Ended::default();
        fail(job, "its thread died: the log says why", &mut ended);
        ended
    })
}

/// With none of its servers.
fn fail(job: &Job, why: &str, ended: &mut Ended) {
    let failed = |pair| (pair, Err(why.to_owned()));
    ended.outcomes.extend(job.pairs().map(failed));
}

fn do_it(job: &Job, ground: &Ground) -> Ended {
    let mut ended = Ended::default();
    if job.check && !ground.has_news(job) {
        ended.idle = true;
        return ended;
    }
    if !job.peers.is_empty() {
        ground.sync(job, &mut ended);
    }
    if let Some(term) = job.number {
        let numbered = fresh::number(&ground.config, &ground.me, &ground.args, term);
        match numbered {
            Ok(numbered) => ended.numbered = numbered,
            Err(why) => log::warn!("this run is not numbered: {why}"),
        }
    }
    ended
}

impl Ground {
    /// Whether something was changed here, by somebody else than syncd, since it was last passed on.
    fn has_news(&self, job: &Job) -> bool {
        let wanted = |set: &config::SyncSet| job.sets.contains(&set.name);
        let units = units::of(&self.config, &self.args, wanted);
        let here = machine::present(&self.config, &self.me);
        let mut news = false;
        for unit in units {
            let name = unit.name.clone();
            let local = Local::open(unit, &here, &self.args, Allowed::default());
            let count = local.ok().and_then(|l| Some(l.index.writer().ok()?.count));
            let mut known = self
                .passed_on
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            news |= match count {
                Some(count) => known.insert(name, count) != Some(count),
                None => true,
            };
        }
        news
    }

    fn sync(&self, job: &Job, ended: &mut Ended) {
        let names = |list: &[ServerName]| list.iter().map(ToString::to_string).collect();
        let wanted = Wanted {
            sets: names(&job.sets),
            peers: names(&job.peers),
            quiet: true,
            until: (job.why == Why::Election).then(|| Instant::now() + ELECTION),
            ..Wanted::default()
        };
        let peers: Vec<&Server> = self
            .config
            .peers(&self.me)
            .filter(|s| job.peers.contains(&s.name))
            .collect();
        let outcomes = &mut ended.outcomes;
        run::sync(
            &self.config,
            &self.me,
            &self.args,
            &wanted,
            &peers,
            &self.sessions,
            &mut |one| {
                let Some(set) = one.unit.set() else {
                    return;
                };
                let outcome = one.outcome.map(|done| Done {
                    complete: done.complete,
                    taken: done.taken,
                    given: done.given,
                    conflicts: done.conflicts,
                });
                let known = outcomes.remove(&(set.clone(), one.peer.clone()));
                let outcome = match known {
                    Some(known) => both(known, outcome),
                    None => outcome,
                };
                outcomes.insert((set, one.peer.clone()), outcome);
            },
        );
    }
}

/// Two units of a set.
fn both(a: Result<Done, String>, b: Result<Done, String>) -> Result<Done, String> {
    let (a, b) = (a?, b?);
    Ok(Done {
        complete: a.complete && b.complete,
        taken: a.taken + b.taken,
        given: a.given + b.given,
        conflicts: a.conflicts + b.conflicts,
    })
}
