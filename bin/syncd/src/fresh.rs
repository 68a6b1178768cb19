//! How fresh a unit is, by runs that were completed (docs/SYNC.md, "Which server is fresher").
//!
//! The master of the first virtual server numbers runs: (term, run) means "all that this master had then". Whoever takes
//! all that a server has is as fresh as that server was when it began to tell. So a number is only ever proved by a run,
//! whoever it was made with. Each unit has its own; a server is as fresh as the least fresh of its `election` sets.

use crate::{
    replica::{Allowed, BUSY, Local},
    units::{self, Unit},
};
use config::Config;
use daemon::{Args, durable};
use filesync::Replica;
use protocol::{ServerName, Term, codec, wire::beat::Freshness};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

/// In a unit's directory.
const FILE: &str = "fresh";
/// So often a unit that is at work is waited for,
const TRIES: u32 = 50;
/// so long each time.
const STEP: Duration = Duration::from_millis(100);

/// Several threads may prove a unit at once; no two processes do, for the index has one owner.
static WRITING: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    /// Of the replica that it was proved for: a lost index knows nothing.
    incarnation: u64,
    fresh: Freshness,
    /// The index's last change when this server gave it a number itself.
    sequence: u64,
}

/// What was proved for this replica.
pub fn of(state: &Path, replica: &Replica) -> Freshness {
    stamp(state, replica).fresh
}

fn stamp(state: &Path, replica: &Replica) -> Stamp {
    let read = read(state);
    let own = read.filter(|s| s.incarnation == replica.incarnation);
    own.unwrap_or(Stamp {
        incarnation: replica.incarnation,
        ..Stamp::default()
    })
}

fn read(state: &Path) -> Option<Stamp> {
    // What cannot be read proves nothing.
    codec::decode_record(&fs::read(state.join(FILE)).ok()?).ok()
}

fn write(state: &Path, stamp: &Stamp) -> Result<(), String> {
    let bytes = codec::encode_record(stamp).map_err(|e| e.to_string())?;
    durable::write(state, FILE, &bytes).map_err(|e| e.to_string())
}

/// All that another server of this freshness had is here now. It is on the disk when this returns.
pub fn raise(state: &Path, replica: &Replica, to: Freshness) -> Result<(), String> {
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let known = stamp(state, replica);
    if known.fresh >= to {
        return Ok(());
    }
    let raised = Stamp { fresh: to, ..known };
    write(state, &raised)
}

/// The units that count in elections.
fn units(config: &Config) -> Result<Vec<Unit>, String> {
    units::of(config, |set| set.on.election)
}

/// How fresh this server is, as far as is written: the least fresh of what counts.
pub fn written(config: &Config, args: &Args) -> Freshness {
    let of =
        |unit: &Unit| read(&unit.state(&args.state_dir)).map_or_else(Default::default, |s| s.fresh);
    let units = units(config).unwrap_or_default();
    units.iter().map(of).min().unwrap_or_default()
}

/// The same, once each unit has been looked at: its directory is there, and its index.
pub fn proved(config: &Config, me: &ServerName, args: &Args) -> Result<Freshness, String> {
    let mut least: Option<Freshness> = None;
    for unit in units(config)? {
        let local = open(&unit, me, args)?;
        least = Some(least.map_or(local.fresh(), |l| l.min(local.fresh())));
    }
    Ok(least.unwrap_or_default())
}

fn open(unit: &Unit, me: &ServerName, args: &Args) -> Result<Local, String> {
    let mut tries = 0;
    loop {
        match Local::open(unit.clone(), me, args, Allowed::default()) {
            Err(why) if why == BUSY && tries < TRIES => thread::sleep(STEP),
            other => return other.map_err(|why| format!("{}: {why}", unit.name)),
        }
        tries += 1;
    }
}

/// Numbers what is here as the next run of `term`, of which this server is master, if anything is new since the last.
pub fn number(config: &Config, me: &ServerName, args: &Args, term: Term) -> Result<bool, String> {
    let locals = units(config)?;
    let locals: Result<Vec<Local>, _> = locals.iter().map(|u| open(u, me, args)).collect();
    let mut stamps = Vec::new();
    for local in locals? {
        let sequence = local.index.state().map_err(|e| e.to_string())?.sequence;
        stamps.push((stamp(&local.state, &local.replica), sequence, local));
    }
    let last = stamps.iter().map(|(s, ..)| s.fresh).max();
    let Some(next) = next(
        last,
        term,
        stamps.iter().map(|(s, q, _)| (s.fresh, s.sequence, *q)),
    ) else {
        return Ok(false);
    };
    for (stamp, sequence, local) in stamps {
        let numbered = Stamp {
            fresh: next,
            sequence,
            ..stamp
        };
        write(&local.state, &numbered)?;
    }
    Ok(true)
}

/// The next number, if there is anything new; each unit has its freshness, and its index's last change when it was
/// last numbered here and now.
fn next(
    last: Option<Freshness>,
    term: Term,
    units: impl Iterator<Item = (Freshness, u64, u64)>,
) -> Option<Freshness> {
    let last = last?;
    let mut units = units;
    let new = units.any(|(fresh, numbered, now)| fresh != last || numbered != now);
    match last.term.cmp(&term) {
        // Another master numbers in a higher term; this one will hear of it.
        std::cmp::Ordering::Greater => None,
        std::cmp::Ordering::Less => Some(Freshness { term, run: 1 }),
        std::cmp::Ordering::Equal => new.then(|| Freshness {
            term,
            run: last.run.saturating_add(1),
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fresh(term: u64, run: u64) -> Freshness {
        Freshness {
            term: Term(term),
            run,
        }
    }

    fn replica(incarnation: u64) -> Replica {
        Replica {
            server: "alpha".parse().unwrap(),
            incarnation,
        }
    }

    #[test]
    fn what_was_proved_stays_and_only_rises_and_ends_with_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("set");
        assert_eq!(of(&state, &replica(1)), fresh(0, 0));
        raise(&state, &replica(1), fresh(7, 2)).unwrap();
        raise(&state, &replica(1), fresh(6, 9)).unwrap();
        assert_eq!(of(&state, &replica(1)), fresh(7, 2));
        assert_eq!(of(&state, &replica(2)), fresh(0, 0), "another index");
        raise(&state, &replica(2), fresh(1, 1)).unwrap();
        assert_eq!(of(&state, &replica(2)), fresh(1, 1));
        fs::write(state.join(FILE), b"?").unwrap();
        assert_eq!(of(&state, &replica(2)), fresh(0, 0));
    }

    #[test]
    fn a_number_is_given_to_what_is_new_only() {
        let number = |term, units: &[(Freshness, u64, u64)]| {
            let last = units.iter().map(|u| u.0).max();
            next(last, Term(term), units.iter().copied())
        };
        assert_eq!(number(7, &[]), None, "nothing counts");
        assert_eq!(number(7, &[(fresh(0, 0), 0, 0)]), Some(fresh(7, 1)));
        assert_eq!(number(7, &[(fresh(7, 1), 4, 4)]), None, "nothing is new");
        assert_eq!(number(7, &[(fresh(7, 1), 4, 5)]), Some(fresh(7, 2)));
        let cut_off = [(fresh(7, 2), 4, 4), (fresh(7, 1), 3, 3)];
        assert_eq!(
            number(7, &cut_off),
            Some(fresh(7, 3)),
            "one was written only"
        );
        assert_eq!(number(8, &[(fresh(7, 3), 4, 4)]), Some(fresh(8, 1)));
        assert_eq!(number(6, &[(fresh(7, 3), 4, 9)]), None, "deposed");
    }
}
