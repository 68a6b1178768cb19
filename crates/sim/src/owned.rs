//! How long nobody had an address, and who took it over: every gap and every change of master is excused by what
//! really happened then, or by nothing.
//!
//! A *trouble* is what an act makes. One that stands alone has the exact consequences of the rule book: no gap
//! at all, or one that ends by a certain time (ELECTION, "What a configuration must satisfy"). Several at once excuse
//! more: a gap ends a fixed time after the last of them.

use crate::{
    clock::Time,
    judge::{EVENTUALLY_OWNED, NO_FLAP, Violation},
    schedule::{NAMES, Schedule},
};
use protocol::Term;
use std::collections::BTreeMap;

/// What may become of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// They are answered for all the time.
    NoGap,
    /// Somebody answers for them by then.
    By(Time),
    /// Nobody does for so long at most.
    Long(Time),
    /// Somebody does so long after the last trouble ended.
    Loose,
}

/// What new term may come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    No,
    /// The same master follows up (R16).
    Renewal,
    Yes,
}

/// What an act makes.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub from: Time,
    /// What happened is over.
    pub end: Time,
    /// Nothing comes of it any more.
    pub until: Time,
    pub what: String,
    pub limit: Limit,
    /// What new term there may be.
    pub change: Change,
    /// Whose turn it is, if anybody's.
    pub heir: Option<usize>,
    /// The heir is invited (R19), and able: its first call has the votes, and this wish of an operator is fulfilled.
    pub wish: Option<u64>,
    /// In which term the invited server called.
    pub called: Option<Term>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Who answers, and until when its gate is open.
    by: Option<(usize, Time)>,
    lost: Time,
}

#[derive(Debug)]
pub(crate) struct Owned {
    troubles: Vec<Trouble>,
    held: Vec<Held>,
    loose: Time,
    /// Things happen before the last ones are forgotten.
    crowded: bool,
    /// AtMostOneGate is not promised, and so is nothing here until all is calm.
    judged: bool,
    pub gaps: u64,
    changes: u64,
    longest: Time,
    /// The least time by which a limit was kept, in thousandths of the limit.
    pub closest: BTreeMap<String, (Time, Time)>,
}

fn ms(t: Time) -> f64 {
    t as f64 / 1e6
}

impl Owned {
    pub fn new(schedule: &Schedule, virtuals: usize) -> Self {
        let lease = schedule.longest_lease() * 1000;
        Self {
            troubles: Vec::new(),
            held: vec![Held::default(); virtuals],
            loose: 4 * lease * 112 / 100
                + lease.max(1_000_000_000)
                + 300_000_000
                + 3 * schedule.disk * 1000,
            crowded: schedule.crowded(),
            judged: schedule.none == 0,
            gaps: 0,
            changes: 0,
            longest: 0,
            closest: BTreeMap::new(),
        }
    }

    /// How long after the last trouble somebody answers at the latest.
    pub fn loose(&self) -> Time {
        self.loose
    }

    pub fn add(&mut self, mut trouble: Trouble) {
        let latest = match trouble.limit {
            Limit::By(time) => time,
            Limit::Loose => trouble.end + self.loose,
            Limit::NoGap | Limit::Long(_) => 0,
        };
        trouble.until = trouble.until.max(latest);
        if self.crowded {
            trouble.until = trouble.until.max(trouble.end + self.loose);
        }
        self.troubles.push(trouble);
    }

    fn alone(&self, at: Time) -> Result<Option<&Trouble>, ()> {
        let mut all = self
            .troubles
            .iter()
            .filter(|t| t.from <= at && at <= t.until);
        match (all.next(), all.next()) {
            (None, _) => Ok(None),
            (Some(one), None) => Ok(Some(one)),
            (Some(_), Some(_)) => Err(()),
        }
    }

    /// The end of a row of troubles that each begin before the one before is forgotten.
    fn row(&self, at: Time) -> Time {
        let mut end = at;
        for trouble in &self.troubles {
            if trouble.from <= end + self.loose && trouble.end + self.loose >= at {
                end = end.max(trouble.end);
            }
        }
        end
    }

    /// Who answers now, and until when as far as known.
    pub fn look(&mut self, now: Time, v: usize, best: Option<(usize, Time)>) -> Option<Violation> {
        let held = self.held[v];
        let lapsed = held.by.is_some_and(|(_, closes)| closes + 1000 < now);
        let lost = held.by.map_or(held.lost, |(_, closes)| closes);
        self.held[v] = Held {
            by: best,
            lost: lost.min(now),
        };
        if best.is_some() && (lapsed || held.by.is_none()) {
            return self.gap(lost, now, v, true);
        }
        None
    }

    /// Nobody answered from `lost` to `now`.
    fn gap(&mut self, lost: Time, now: Time, v: usize, over: bool) -> Option<Violation> {
        self.gaps += u64::from(over);
        if !self.judged {
            return None;
        }
        self.longest = self.longest.max(now - lost);
        let length = now - lost;
        let fail = |invariant, why: String| {
            let what = format!(
                "nobody answered for virtual server {v} for {:.3} ms from {:.6} s on: {why}",
                ms(length),
                ms(lost) / 1e3
            );
            Some(Violation { invariant, what })
        };
        // A gate may have closed a moment before what did it was noticed.
        match self.alone(lost) {
            Ok(None) => fail(NO_FLAP, "nothing had happened".into()),
            Ok(Some(one)) if !self.joined(one) => {
                let (limit, what) = match one.limit {
                    Limit::NoGap => return fail(NO_FLAP, format!("{} is no reason", one.what)),
                    Limit::By(time) => (time.saturating_sub(lost), one.what.clone()),
                    Limit::Long(span) => (span, one.what.clone()),
                    Limit::Loose => (
                        (one.end + self.loose).saturating_sub(lost),
                        one.what.clone(),
                    ),
                };
                let key = what
                    .split(" span")
                    .next()
                    .unwrap_or("")
                    .split("who")
                    .next()
                    .unwrap_or("")
                    .to_owned();
                let worst = self.closest.entry(key).or_insert((0, 1));
                if u128::from(length) * u128::from(worst.1)
                    > u128::from(worst.0) * u128::from(limit.max(1))
                {
                    *worst = (length, limit.max(1));
                }
                (length > limit).then(|| {
                    fail(
                        EVENTUALLY_OWNED,
                        format!("{what} excuses {:.3} ms", ms(limit)),
                    )
                })?
            }
            Ok(Some(_)) | Err(()) => {
                let limit = (self.row(lost) + self.loose).saturating_sub(lost);
                (length > limit).then(|| {
                    fail(
                        EVENTUALLY_OWNED,
                        format!("all that happened excuses {:.3} ms", ms(limit)),
                    )
                })?
            }
        }
    }

    /// Another trouble begins before this one's limit.
    fn joined(&self, one: &Trouble) -> bool {
        let limit = match one.limit {
            Limit::NoGap => return false,
            Limit::By(time) => time,
            Limit::Long(span) => one.until + span,
            Limit::Loose => one.end + self.loose,
        };
        self.troubles
            .iter()
            .any(|t| t.from > one.from && t.from <= limit)
    }

    /// Somebody is master in a new term.
    pub fn master(&mut self, now: Time, server: usize, renewed: bool) -> Option<Violation> {
        self.changes += 1;
        if !self.judged {
            return None;
        }
        let fail = |why: String| {
            let what = format!("{} is master in a new term: {why}", NAMES[server]);
            Some(Violation {
                invariant: NO_FLAP,
                what,
            })
        };
        match self.alone(now) {
            Ok(None) => fail("nothing had happened".into()),
            Ok(Some(one))
                if one.change == Change::No || one.change == Change::Renewal && !renewed =>
            {
                fail(format!("{} is no reason", one.what))
            }
            Ok(Some(Trouble {
                heir: Some(heir),
                what,
                ..
            })) if *heir != server => {
                fail(format!("after {what} it was the turn of {}", NAMES[*heir]))
            }
            Ok(Some(_)) | Err(()) => None,
        }
    }

    /// Somebody calls: nobody may stand beside who was invited, and that needs no second call (R19).
    pub fn calls(&mut self, now: Time, server: usize, term: Term) -> Option<Violation> {
        self.alone(now)
            .ok()
            .flatten()
            .filter(|t| t.wish.is_some())?;
        let mut troubles = self.troubles.iter_mut();
        let one = troubles.find(|t| t.from <= now && now <= t.until)?;
        let first = *one.called.get_or_insert(term);
        let heir = one.heir.filter(|_| self.judged)?;
        (heir != server || first != term).then(|| Violation {
            invariant: NO_FLAP,
            what: format!(
                "{} calls in term {term} after {}, which invited {} alone, and once",
                NAMES[server], one.what, NAMES[heir]
            ),
        })
    }

    /// An operator's wish is not fulfilled: was it in the way of anything?
    pub fn refused(&self, now: Time, wish: u64, why: &str) -> Option<Violation> {
        let one = self.troubles.iter().find(|t| t.wish == Some(wish))?;
        let disturbs = |t: &&Trouble| t.from <= now && one.from <= t.until;
        let alone = self.troubles.iter().filter(disturbs).count() == 1;
        (alone && self.judged).then(|| Violation {
            invariant: NO_FLAP,
            what: format!("{}, and nothing was in its way: {why}", one.what),
        })
    }

    /// At the end of everything: nobody answers still?
    pub fn end(&mut self, now: Time) -> Option<Violation> {
        (0..self.held.len()).find_map(|v| {
            let held = self.held[v];
            match held.by {
                Some((_, closes)) if closes >= now => None,
                Some((_, closes)) => self.gap(closes, now, v, false),
                None => self.gap(held.lost, now, v, false),
            }
        })
    }

    /// Does anybody answer for each of them now?
    pub fn all_held(&self, now: Time) -> bool {
        self.held
            .iter()
            .all(|h| h.by.is_some_and(|(_, closes)| closes >= now))
    }

    pub fn told(&self, seen: &mut BTreeMap<&'static str, u64>) {
        seen.insert("gaps", self.gaps);
        seen.insert("terms", self.changes);
        seen.insert("longest gap, µs", self.longest / 1000);
    }
}
