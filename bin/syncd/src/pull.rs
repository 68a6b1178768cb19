//! Takes from another server what is newer there.

use crate::{
    accounts, agreed,
    bring::Bring,
    foretold::Foretold,
    fresh,
    replica::{Allowed, Local},
};
use filesync::{
    Conflict, Entry, Knowledge, Operation, Outcome, Path, Planner, Replica, Standing, Terms,
};
use std::{
    fmt,
    io::{Read, Write},
    iter::Peekable,
    sync::PoisonError,
};
use store::{Applied, Listing, Row};
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
    /// Too many: nothing of these was carried out.
    pub refused_removals: u64,
    pub conflicts: Vec<Conflict>,
    /// What would be done with account files, if nothing was.
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
            notes: self.notes().take(NOTES_MAX).map(note).collect(),
        }
    }

    /// What an operator is to know, wherever the run began.
    pub fn notes(&self) -> impl Iterator<Item = (&Path, String)> {
        let notes = self.notes.iter().map(|(path, note)| (path, note.clone()));
        let left = self.applied.left.first.iter();
        notes.chain(left.map(|(path, why)| {
            let stays = format!("removed elsewhere and stays here: {why}");
            (path, stays)
        }))
    }

    pub fn add(&mut self, applied: Applied) {
        self.applied.done += applied.done;
        self.applied.kept.extend(applied.kept);
        self.applied.put_off.join(applied.put_off);
        self.applied.failed.join(applied.failed);
        self.applied.left.join(applied.left);
    }
}

/// As the other may tell it.
fn note((path, note): (&Path, String)) -> String {
    format!("{path}: {note}").chars().take(NOTE_MAX).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Applied {
            done,
            kept,
            put_off,
            failed,
            left: _,
        } = &self.applied;
        write!(f, "{done} taken")?;
        let parts = [
            (self.removed, "of them removals"),
            (kept.len() as u64, "former versions kept aside"),
            (put_off.count, "put off"),
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
    let mut turn = local.turn.lock().unwrap_or_else(PoisonError::into_inner);
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
    let mut after = greeting.told.min(taken);
    // What it forgot this side may not have been told of: then it tells all that is left.
    let told_all = greeting.knowledge.told_all(after);
    if !told_all {
        after = 0;
    }
    let mut unkept = if allowed.dry {
        Listing::default()
    } else {
        local.keep().map_err(failed)?
    };
    let mut planner = local.planner(&greeting.replica.server).map_err(failed)?;
    planner.yields = terms == Terms::Yield;
    let mut report = match local.unit.accounts {
        true => accounts::pull(local, puller, planner, after, allowed)?,
        false => {
            let foretold = &mut *turn;
            let whole = Some(&greeting.knowledge).filter(|_| !told_all);
            Taking {
                local,
                from,
                allowed,
                foretold,
                whole,
            }
            .take(puller, planner, after)?
        }
    };
    turn.note(std::mem::take(&mut report.planned));
    if !allowed.dry {
        unkept.join(local.keep().map_err(failed)?);
        if report.is_complete() {
            let known = local.index.knowledge().map_err(failed)?;
            let resolved = !report.conflicts.iter().any(Conflict::stayed);
            if last > after && resolved {
                puller.took(last)?;
                let noted = has_all(local, greeting, standing, resolved);
                puller.heard()?;
                noted.map_err(failed)?;
            } else if standing != greeting.standing
                || resolved && !known.events.has(&greeting.knowledge.events)
            {
                has_all(local, greeting, standing, resolved).map_err(failed)?;
            }
            let raised = fresh::raise(&local.state, &local.replica, greeting.fresh);
            raised.map_err(|why| Error::Io(std::io::Error::other(why)))?;
        }
    }
    report.unkept = unkept;
    Ok(report)
}

/// Notes that all the other has is here now; as long as it has still to give way somewhere, only whose history it shares.
fn has_all(
    local: &Local,
    greeting: &Greeting,
    mut standing: Standing,
    resolved: bool,
) -> Result<(), store::Error> {
    let (from, now) = (&greeting.replica, daemon::real_now_ns());
    standing.has_all_of(&greeting.standing);
    local.index.write(|batch| {
        if resolved {
            batch.took(from, greeting.last, now)?;
            batch.knows(&greeting.knowledge)?;
        }
        batch.standing(&standing)
    })
}

/// One side of it, of any set but one of account files.
struct Taking<'a> {
    local: &'a Local,
    from: &'a Replica,
    allowed: Allowed,
    foretold: &'a mut Foretold,
    /// The other tells all that it has, and what it does not name it may have forgotten.
    whole: Option<&'a Knowledge>,
}

impl Taking<'_> {
    fn take<S: Read + Write>(
        mut self,
        puller: &mut Puller<S>,
        mut planner: Planner,
        after: u64,
    ) -> Result<Report, Error> {
        let (mut report, local) = (Report::default(), self.local);
        let before = local.index.state().map_err(failed)?;
        // Where nothing is, nothing moves.
        let pages = match before.live {
            0 => 1,
            _ => PAGES,
        };
        puller.ask_changes(after)?;
        let rules = local.unit.rules();
        let whole = self.whole.filter(|whole| whole.rules == rules);
        let mut unnamed = match whole {
            Some(_) => Some(local.index.rows().map_err(failed)?.peekable()),
            None => None,
        };
        let own = &local.replica.server;
        let next = |puller: &mut Puller<S>, foretold: &Foretold| loop {
            let offered = puller.entries(pages)?;
            if let (Some(rows), Some(whole)) = (&mut unnamed, whole) {
                for (path, row) in not_among(rows, &offered).map_err(failed)? {
                    if !local.unit.excludes(&path, row.entry.is_directory()) {
                        planner.unnamed(path, row.entry, whole, own);
                    }
                }
            }
            if offered.is_empty() {
                return Ok(Vec::new());
            }
            // What is left out here is nobody's business here, whatever the other's configuration says.
            let ours =
                |(path, entry): &(Path, Entry)| !local.unit.excludes(path, entry.is_directory());
            let offered = offered.into_iter().filter(ours).collect();
            let index = local.index.reader().map_err(failed)?;
            let operations = planner.batch(&foretold.of(&index), offered);
            if !operations.is_empty() {
                return Ok(operations);
            }
        };
        self.carry_out(puller, next, &mut report)?;
        report.refused_removals = self.refuse(&mut planner, before.sequence)?;
        if !self.allowed.dry {
            report.removed = planner.removed().count() as u64;
        }
        let index = local.index.reader().map_err(failed)?;
        let mut author = local.author().map_err(failed)?;
        let now = daemon::real_now_ns();
        planner.orphans(&self.foretold.of(&index), &mut author, now);
        let operations = planner.groups(&self.foretold.of(&index));
        self.carry_out(puller, once(operations), &mut report)?;
        self.carry_out(puller, once(planner.removals()), &mut report)?;
        let mut author = local.author().map_err(failed)?;
        let index = local.index.reader().map_err(failed)?;
        let now = daemon::real_now_ns();
        let operations = planner.directories(&self.foretold.of(&index), &mut author, now);
        self.carry_out(puller, once(operations), &mut report)?;
        report.conflicts = planner.conflicts;
        Ok(report)
    }

    /// Refuses removals if they are too many; how many. What came has a higher number in the index than `before`, or came
    /// of a run with the same server that was cut off.
    fn refuse(&self, planner: &mut Planner, before: u64) -> Result<u64, Error> {
        let (index, limit) = (&self.local.index, self.local.unit.limit());
        let live = self.foretold.live(index.state().map_err(failed)?.live);
        let all = planner.removed().count() as u64;
        if self.allowed.deletes || limit.permits(all, live) {
            return Ok(0);
        }
        let taken = index.taken().map_err(failed)?;
        let met = taken.and_then(|taken| taken.when(self.from));
        let came = |row: &Row| {
            let of_others = row.entry.rank.replica.server != self.local.replica.server;
            row.sequence > before || of_others && met.is_some_and(|met| row.at > met)
        };
        let came = index.rows().map_err(failed)?.filter_map(|item| match item {
            Ok((path, row)) => came(&row).then_some(Ok((path, row.entry))),
            Err(e) => Some(Err(e)),
        });
        let foretold = self.foretold.entries();
        let foretold = foretold.map(|(path, entry)| Ok((path.clone(), entry.clone())));
        let reader = index.reader().map_err(failed)?;
        let lost = planner
            .lost(&self.foretold.of(&reader), foretold.chain(came))
            .map_err(failed)?;
        let count = lost.len() as u64;
        if limit.permits(count, live) {
            return Ok(0);
        }
        let removals = planner.removed().filter(|o| lost.contains(&o.path));
        let alone = agreed::alone(self.local, self.from, removals, self.allowed.dry);
        if limit.permits(alone.map_err(failed)?, live) {
            return Ok(0);
        }
        planner.refuse(&lost);
        Ok(count)
    }

    fn carry_out<S: Read + Write>(
        &mut self,
        puller: &mut Puller<S>,
        mut next: impl FnMut(&mut Puller<S>, &Foretold) -> Result<Vec<Operation>, Error>,
        report: &mut Report,
    ) -> Result<(), Error> {
        if self.allowed.dry {
            loop {
                let operations = next(puller, self.foretold)?;
                if operations.is_empty() {
                    return Ok(());
                }
                self.foretold.note(operations);
            }
        }
        let Local {
            set, index, meter, ..
        } = self.local;
        let mut next = |puller: &mut Puller<S>| next(puller, self.foretold);
        let mut bring = Bring::new(puller, set, meter, &RECIPES, &mut next);
        let now = daemon::real_now_ns();
        let applied = store::apply(set, index, Vec::new(), &mut bring, now).map_err(failed)?;
        report.add(applied);
        bring.finish()
    }
}

/// Of rows in order of path those that are not offered, up to the last that is; if none is, the rest.
fn not_among(
    rows: &mut Peekable<impl Iterator<Item = Result<(Path, Row), store::Error>>>,
    offered: &[(Path, Entry)],
) -> Result<Vec<(Path, Row)>, store::Error> {
    let mut others = Vec::new();
    let last = offered.last().map(|(path, _)| path);
    let due = |item: &Result<(Path, Row), _>| match (item, last) {
        (Ok((path, _)), Some(last)) => path <= last,
        (Err(_), _) | (_, None) => true,
    };
    while let Some(item) = rows.next_if(due) {
        let (path, row) = item?;
        let named = offered.binary_search_by(|(other, _)| other.cmp(&path));
        if named.is_err() && row.entry.node.is_some() {
            others.push((path, row));
        }
    }
    Ok(others)
}

fn failed(e: store::Error) -> Error {
    Error::Io(std::io::Error::other(e))
}

/// These operations, and no more.
fn once<S>(
    mut operations: Vec<Operation>,
) -> impl FnMut(&mut Puller<S>, &Foretold) -> Result<Vec<Operation>, Error> {
    move |_, _| Ok(std::mem::take(&mut operations))
}
