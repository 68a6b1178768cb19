//! A set of password files: merged record by record, as one database, and put in place under the system's locks.
//!
//! ```text
//!   look      under the lock of all: no program is half-way through them
//!   history   which event each record is from, on the disk before anybody is told of the version
//!   settle    all files, if each server has something new, with what the other knows of its records; all or none
//!   check     somebody has user id 0, not half of the records are gone
//!   apply     under all locks: group, gshadow, subuid, subgid, passwd, shadow
//! ```

mod histories;
mod merging;

use crate::{
    locks::Locks,
    pull::Report,
    replica::{Allowed, Local},
    units::Unit,
};
use filesync::{
    Conflict, Digest, Entry, Outcome, Path, Planner,
    accounts::{self, File as Which, How},
};
use histories::Histories;
use merging::{Both, Merging};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
};
use transfer::{Error, Puller};

/// No such file is larger, in bytes.
const TEXT_MAX: u64 = 64 << 20;

/// Where another server asks for the history of a file: no path of any set.
const ASKED: &[u8] = b".standin-records/";

fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// The lock under which a unit is looked at, if it is of account files: no program is half-way through them.
pub fn quiet(unit: &Unit) -> Result<Option<Locks>, String> {
    let locked = unit.accounts.then(|| Locks::take(&unit.root, []));
    locked.transpose()
}

/// All locks of a unit, if it is of account files.
pub fn lock(unit: &Unit) -> Result<Option<Locks>, String> {
    let locked = unit.accounts.then(|| Locks::take(&unit.root, unit.names()));
    locked.transpose()
}

/// Numbers that several names have, if it is of account files.
pub fn duplicates(unit: &Unit) -> Vec<String> {
    let text = |file: &str| {
        let mut text = Vec::new();
        let of_it = unit.names().any(|name| name == file.as_bytes());
        if let Some(file) = of_it
            .then(|| File::open(unit.root.join(file)).ok())
            .flatten()
        {
            // What cannot be read now is told by the next run.
            let _ = file.take(TEXT_MAX).read_to_end(&mut text);
        }
        text
    };
    if !unit.accounts {
        return Vec::new();
    }
    let found = accounts::duplicates(&text("passwd"), &text("group"));
    found.iter().map(ToString::to_string).collect()
}

/// The file at a path, of a set of account files.
fn which(path: &Path) -> Option<Which> {
    Which::named(path.as_bytes())
}

fn place(path: &Path) -> usize {
    let file = which(path);
    let in_order = |known: &Which| Some(*known) == file;
    Which::IN_ORDER
        .iter()
        .position(in_order)
        .unwrap_or(usize::MAX)
}

/// What is here of a path, if it is a file that is still as the index knows it.
fn text_of(local: &Local, path: &Path, entry: &Entry) -> io::Result<Option<Vec<u8>>> {
    let Some((_, known)) = entry.file() else {
        return Ok(None);
    };
    let mut text = Vec::new();
    local
        .set
        .read(path)?
        .take(TEXT_MAX)
        .read_to_end(&mut text)?;
    Ok((digest(&text) == known).then_some(text))
}

/// Notes which event each record is from, after a look and after a run.
pub fn note(local: &Local) -> Result<(), String> {
    if !local.unit.accounts {
        return Ok(());
    }
    let histories = Histories::of(local);
    let each = || -> io::Result<()> {
        for row in local.index.rows().map_err(io::Error::other)? {
            let (path, row) = row.map_err(io::Error::other)?;
            if histories.read(&path, &row.entry)?.is_none()
                && let Some(text) = text_of(local, &path, &row.entry)?
            {
                let history = histories.current(&path, &row.entry, &text)?;
                histories.write(&path, &row.entry, &history)?;
            }
            histories.sweep(&path, &row.entry)?;
        }
        Ok(())
    };
    let shown = histories.0.display();
    each().map_err(|e| format!("cannot note the records in {shown}: {e}"))
}

/// What another server asks for: the history of a version, if that is what is there now.
pub fn asked(local: &Local, path: &Path, wanted: &Digest) -> io::Result<Option<File>> {
    let name = path.as_bytes().strip_prefix(ASKED);
    let Some(path) = name.and_then(|name| Path::try_from(name.to_vec()).ok()) else {
        return Ok(None);
    };
    let row = local.index.row(&path).map_err(io::Error::other)?;
    let entry = row.map(|row| row.entry);
    let entry = entry.filter(|e| e.file().is_some_and(|(_, digest)| digest == *wanted));
    match entry {
        Some(entry) if local.unit.accounts => {
            File::open(Histories::of(local).file(&path, &entry)).map(Some)
        }
        _ => Ok(None),
    }
}

/// Takes and merges what is newer there: as [`crate::pull::pull`] for any other set.
pub fn pull<S: Read + Write>(
    local: &Local,
    puller: &mut Puller<S>,
    mut planner: Planner,
    told: u64,
    allowed: Allowed,
) -> Result<Report, Error> {
    let mut offered = offers(local, puller, told)?;
    if !offered.is_empty() {
        // What is not new there may be what is missing here.
        offered = offers(local, puller, 0)?;
    }
    let index = local.index.reader().map_err(failed)?;
    let mut files = Vec::new();
    for (path, there) in &offered {
        let row = index.row(path).map_err(io::Error::other)?;
        let here = row
            .map(|row| row.entry)
            .filter(|here| here.file().is_some());
        if let Some(here) = here.filter(|_| there.file().is_some()) {
            files.push(Both {
                path: path.clone(),
                here,
                there: there.clone(),
            });
        }
    }
    let mut operations = planner.batch(&index, offered);
    operations.extend(planner.groups(&index));
    operations.extend(planner.removals());
    let how = How {
        few: allowed.deletes,
        yields: planner.yields,
    };
    let mut run = Merging::new(local, puller, how);
    let conflicts = std::mem::take(&mut planner.conflicts).into_iter();
    let settles = |c: &Conflict| {
        let of_files = c.here.file().is_some() && c.there.file().is_some();
        of_files && matches!(c.outcome, Outcome::GaveWay | Outcome::Stayed)
    };
    run.report.conflicts = conflicts.filter(|c| !settles(c)).collect();
    let open = |file: &Both| {
        let mut conflicts = run.report.conflicts.iter();
        conflicts.find(|c| c.path == file.path).map(|c| c.outcome)
    };
    // Of one version that is two nothing is believed.
    files.retain(|file| open(file) != Some(Outcome::Impossible));
    if accounts::crossed(files.iter().map(|file| (&file.here, &file.there))) {
        operations.retain(|o| !files.iter().any(|file| file.path == o.path));
        match files.iter().find(|file| open(file).is_some()) {
            Some(file) => {
                let why = format!("not taken before {} is decided", file.path);
                files
                    .iter()
                    .filter(|f| !f.is_done() && f.path != file.path)
                    .for_each(|f| run.refuse(&f.path, &why));
            }
            None => run.settle(files)?,
        }
    }
    for operation in operations {
        run.take(operation)?;
    }
    run.finish(allowed.dry)
}

/// The account files that the other has, changed after its event `after`.
fn offers<S: Read + Write>(
    local: &Local,
    puller: &mut Puller<S>,
    after: u64,
) -> Result<Vec<(Path, Entry)>, Error> {
    let mut offered = BTreeMap::new();
    puller.ask_changes(after)?;
    loop {
        let page = puller.entries(2)?;
        if page.is_empty() {
            break;
        }
        offered.extend(page.into_iter().filter(|(path, _)| which(path).is_some()));
    }
    let ours = |(path, entry): &(Path, Entry)| !local.unit.excludes(path, entry.is_directory());
    Ok(offered.into_iter().filter(ours).collect())
}

fn failed(e: store::Error) -> Error {
    Error::Io(io::Error::other(e))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_there_before_who_refers_to_it_and_the_password_comes_last() {
        let mut names = ["subuid", "shadow", "passwd", "gshadow", "group", "subgid"];
        names.sort_by_key(|name| place(&Path::try_from(name.as_bytes().to_vec()).unwrap()));
        assert_eq!(
            names,
            ["group", "gshadow", "subuid", "subgid", "passwd", "shadow"]
        );
    }
}
