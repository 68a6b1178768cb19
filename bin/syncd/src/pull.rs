//! Takes from another server what is newer there.

use crate::{
    accounts, agreed,
    bring::Bring,
    fresh,
    replica::{Allowed, Local},
};
use filesync::{Conflict, Entry, Operation, Outcome, Path, Planner, Replica, Standing, Terms};
use std::{
    fmt,
    io::{Read, Write},
    sync::PoisonError,
};
use store::{Applied, Listing};
use transfer::{Error, Farewell, Greeting, NOTE_MAX, NOTES_MAX, Puller, Recipes};

/// So many pages of entries, each a megabyte on its way, are planned at once: what moved is only found among them. That
/// is some tens of megabytes.
const PAGES: usize = 3;

/// How large files that came or went before were cut.
pub static RECIPES: Recipes = Recipes::new();

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    pub applied: Applied,
    pub removed: u64,
    /// Too many removals: none was carried out.
    pub refused_removals: u64,
    pub conflicts: Vec<Conflict>,
    /// What would be done, if nothing was.
    pub planned: Vec<Operation>,
    /// What to look at in account files.
    pub notes: Vec<(Path, String)>,
    /// Former versions that could not be kept.
    pub unkept: Listing,
    /// Nothing is taken before the other, which is new, has all that is here.
    pub waits: bool,
}

impl Report {
    /// Nothing was left undone.
    pub fn is_complete(&self) -> bool {
        let open = |c: &Conflict| matches!(c.outcome, Outcome::Undecided | Outcome::Impossible);
        self.applied.is_complete()
            && self.refused_removals == 0
            && !self.waits
            && self.unkept.count == 0
            && !self.conflicts.iter().any(open)
    }

    /// As it is told to the other.
    pub fn farewell(&self) -> Farewell {
        Farewell {
            taken: self.applied.done,
            left: self.applied.put_off.count
                + self.applied.failed.count
                + self.refused_removals
                + u64::from(self.waits),
            kept: self.applied.kept.len() as u64,
            notes: self.notes.iter().take(NOTES_MAX).map(note).collect(),
        }
    }

    pub fn add(&mut self, applied: Applied) {
        self.applied.done += applied.done;
        self.applied.kept.extend(applied.kept);
        self.applied.put_off.join(applied.put_off);
        self.applied.failed.join(applied.failed);
    }
}

/// As the other may tell it.
fn note((path, note): &(Path, String)) -> String {
    format!("{path}: {note}").chars().take(NOTE_MAX).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Applied {
            done,
            kept,
            put_off,
            failed,
        } = &self.applied;
        write!(f, "{done} taken")?;
        let parts = [
            (self.removed, "of them removals"),
            (kept.len() as u64, "former versions kept aside"),
            (put_off.count, "put off: they were changing"),
            (failed.count, "failed"),
        ];
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        Ok(())
    }
}

/// Asks `puller`, who was greeted with `greeting`, for all that is new to this side.
pub fn pull<S: Read + Write>(
    local: &Local,
    puller: &mut Puller<S>,
    greeting: &Greeting,
    allowed: Allowed,
) -> Result<Report, Error> {
    let _turn = local.turn.lock().unwrap_or_else(PoisonError::into_inner);
    let standing = local.index.standing().map_err(failed)?;
    let terms = standing.terms(&greeting.standing);
    if terms == Terms::Wait {
        return Ok(Report {
            waits: true,
            ..Report::default()
        });
    }
    let (from, last) = (&greeting.replica, greeting.last);
    // What one of the two does not remember any more is told again: it may have been set back.
    let taken = local.index.taken().map_err(failed)?;
    let taken = taken.map_or(greeting.told, |taken| taken.told(from));
    let after = greeting.told.min(taken);
    let mut unkept = if allowed.dry {
        Listing::default()
    } else {
        local.keep().map_err(failed)?
    };
    let mut planner = local.planner(&greeting.replica.server);
    planner.yields = terms == Terms::Yield;
    let mut report = match local.unit.accounts {
        true => accounts::pull(local, puller, planner, after, allowed)?,
        false => take(local, puller, planner, from, after, allowed)?,
    };
    if !allowed.dry {
        unkept.join(local.keep().map_err(failed)?);
        if report.is_complete() {
            if last > after {
                puller.took(last)?;
                let noted = has_all(local, greeting, standing);
                puller.heard()?;
                noted.map_err(failed)?;
            } else if standing != greeting.standing {
                has_all(local, greeting, standing).map_err(failed)?;
            }
            let raised = fresh::raise(&local.state, &local.replica, greeting.fresh);
            raised.map_err(|why| Error::Io(std::io::Error::other(why)))?;
        }
    }
    report.unkept = unkept;
    Ok(report)
}

/// Notes that all the other has is here now.
fn has_all(local: &Local, greeting: &Greeting, mut standing: Standing) -> Result<(), store::Error> {
    let (from, now) = (&greeting.replica, daemon::real_now_ns());
    standing.has_all_of(&greeting.standing);
    local.index.write(|batch| {
        batch.took(from, greeting.last, now)?;
        batch.standing(&standing)
    })
}

fn take<S: Read + Write>(
    local: &Local,
    puller: &mut Puller<S>,
    mut planner: Planner,
    from: &Replica,
    after: u64,
    allowed: Allowed,
) -> Result<Report, Error> {
    let (mut report, dry) = (Report::default(), allowed.dry);
    // Where nothing is, nothing moves.
    let pages = match local.index.state().map_err(failed)?.live {
        0 => 1,
        _ => PAGES,
    };
    puller.ask_changes(after)?;
    let next = |puller: &mut Puller<S>| loop {
        let offered = puller.entries(pages)?;
        if offered.is_empty() {
            return Ok(Vec::new());
        }
        // What is left out here is nobody's business here, whatever the other's configuration says.
        let ours = |(path, entry): &(Path, Entry)| !local.unit.excludes(path, entry.is_directory());
        let offered = offered.into_iter().filter(ours).collect();
        let index = local.index.reader().map_err(failed)?;
        let operations = planner.batch(&index, offered);
        if !operations.is_empty() {
            return Ok(operations);
        }
    };
    carry_out(local, puller, next, dry, &mut report)?;
    let index = local.index.reader().map_err(failed)?;
    let mut author = local.author().map_err(failed)?;
    planner.orphans(&index, &mut author, daemon::real_now_ns());
    carry_out(
        local,
        puller,
        once(planner.groups(&index)),
        dry,
        &mut report,
    )?;
    let removals = planner.removed().count() as u64;
    let limit = local.unit.limit();
    let live = local.index.state().map_err(failed)?.live;
    let permitted = allowed.deletes || limit.permits(removals, live) || {
        let alone = agreed::alone(local, from, planner.removed(), dry).map_err(failed)?;
        limit.permits(alone, live)
    };
    if permitted {
        report.removed = removals;
        carry_out(local, puller, once(planner.removals()), dry, &mut report)?;
        let mut author = local.author().map_err(failed)?;
        let index = local.index.reader().map_err(failed)?;
        let operations = planner.directories(&index, &mut author, daemon::real_now_ns());
        carry_out(local, puller, once(operations), dry, &mut report)?;
    } else {
        report.refused_removals = removals;
    }
    report.conflicts = planner.conflicts;
    Ok(report)
}

fn failed(e: store::Error) -> Error {
    Error::Io(std::io::Error::other(e))
}

/// These operations, and no more.
fn once<S>(
    mut operations: Vec<Operation>,
) -> impl FnMut(&mut Puller<S>) -> Result<Vec<Operation>, Error> {
    move |_| Ok(std::mem::take(&mut operations))
}

fn carry_out<S: Read + Write>(
    local: &Local,
    puller: &mut Puller<S>,
    mut next: impl FnMut(&mut Puller<S>) -> Result<Vec<Operation>, Error>,
    dry: bool,
    report: &mut Report,
) -> Result<(), Error> {
    if dry {
        loop {
            let operations = next(puller)?;
            if operations.is_empty() {
                return Ok(());
            }
            report.planned.extend(operations);
        }
    }
    let mut bring = Bring::new(puller, &local.set, &local.meter, &RECIPES, &mut next);
    let now = daemon::real_now_ns();
    let applied =
        store::apply(&local.set, &local.index, Vec::new(), &mut bring, now).map_err(failed)?;
    report.add(applied);
    bring.finish()
}
