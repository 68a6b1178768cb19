//! A set of password files: each is merged record by record, all are put in place under the system's locks.
//!
//! ```text
//!   look      under the lock of all: no program is half-way through them
//!   history   which event each record is from, on the disk before anybody is told of the version
//!   settle    what two changed, with what the other knows of its records
//!   check     every record is one, somebody has user id 0, not half of them are gone
//!   apply     under all locks: group, gshadow, subuid, subgid, passwd, shadow
//! ```

use crate::{
    locks::Locks,
    pull::Report,
    replica::{Allowed, Local},
    units::Unit,
};
use filesync::{
    Conflict, Digest, Entry, Node, Operation, Outcome, Path, Planner, Source,
    accounts::{self, File as Which, History, How, Settled, Side},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::SystemTime,
};
use store::{Contents, Filling, Kept};
use transfer::{Error, Puller, Wanted};

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

/// Histories on the disk, one file for each version.
struct Histories(PathBuf);

impl Histories {
    fn of(local: &Local) -> Self {
        Self(local.state.join("records"))
    }

    fn file(&self, path: &Path, entry: &Entry) -> PathBuf {
        let version = digest(format!("{:?}", entry.vector).as_bytes());
        let name = String::from_utf8_lossy(path.as_bytes()).into_owned();
        self.0.join(format!("{name}.{}", hex(&version)))
    }

    fn read(&self, path: &Path, entry: &Entry) -> io::Result<Option<History>> {
        match fs::read(self.file(path, entry)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(History::from_bytes(&other?)),
        }
    }

    /// It is on the disk when this returns.
    fn write(&self, path: &Path, entry: &Entry, history: &History) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&self.0)?;
        let file = self.file(path, entry);
        let new = file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut written = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        written.write_all(&history.to_bytes())?;
        written.sync_all()?;
        fs::rename(&new, &file)?;
        File::open(&self.0)?.sync_all()
    }

    /// All of a file, the youngest last.
    fn all(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let start = format!("{}.", String::from_utf8_lossy(path.as_bytes()));
        let mut all = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&start) {
                let at = entry
                    .metadata()?
                    .modified()
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                all.push((at, entry.path()));
            }
        }
        all.sort();
        Ok(all.into_iter().map(|(_, path)| path).collect())
    }

    /// The history of what is there now, made from the youngest that there is if this version has none.
    fn current(&self, path: &Path, entry: &Entry, text: &[u8]) -> io::Result<History> {
        if let Some(history) = self.read(path, entry)? {
            return Ok(history);
        }
        let youngest = self.all(path)?.pop().map(fs::read).transpose()?;
        let before = youngest.and_then(|bytes| History::from_bytes(&bytes));
        let before = before.unwrap_or_default();
        let Some(file) = which(path) else {
            return Ok(before);
        };
        // One that is none has no history until it is mended.
        let history = before.follow(file, text, entry, digest);
        Ok(history.unwrap_or_default())
    }

    /// Only what is there now is of use.
    fn sweep(&self, path: &Path, entry: &Entry) -> io::Result<()> {
        let current = self.file(path, entry);
        for old in self.all(path)?.into_iter().filter(|file| *file != current) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

fn hex(digest: &Digest) -> String {
    let first = digest.0.iter().take(16);
    first.map(|b| format!("{b:02x}")).collect()
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
    dry: bool,
) -> Result<Report, Error> {
    let mut offered = BTreeMap::new();
    puller.ask_changes(told)?;
    loop {
        let page = puller.entries(2)?;
        if page.is_empty() {
            break;
        }
        offered.extend(page.into_iter().filter(|(path, _)| which(path).is_some()));
    }
    let ours = |(path, entry): &(Path, Entry)| !local.unit.excludes(path, entry.is_directory());
    let offered = offered.into_iter().filter(ours).collect();
    let index = local.index.reader().map_err(failed)?;
    let mut operations = planner.batch(&index, offered);
    operations.extend(planner.groups(&index));
    operations.extend(planner.removals());
    let mut run = Merging {
        local,
        puller,
        few: allowed.deletes,
        report: Report::default(),
        ready: Vec::new(),
    };
    for conflict in std::mem::take(&mut planner.conflicts) {
        let settles = matches!(conflict.outcome, Outcome::GaveWay | Outcome::Stayed);
        if settles && conflict.here.file().is_some() && conflict.there.file().is_some() {
            operations.retain(|o| o.path != conflict.path);
            run.settle(conflict)?;
        } else {
            run.report.conflicts.push(conflict);
        }
    }
    for operation in operations {
        run.take(operation)?;
    }
    run.finish(dry)
}

/// One file that is to be put in place.
struct Ready {
    operation: Operation,
    text: Vec<u8>,
    history: Option<History>,
}

struct Merging<'a, S> {
    local: &'a Local,
    puller: &'a mut Puller<S>,
    /// However few records are left.
    few: bool,
    report: Report,
    ready: Vec<Ready>,
}

/// Of a file that has been checked.
struct Texts<'a>(BTreeMap<&'a Path, &'a [u8]>);

impl Contents for Texts<'_> {
    fn bring(&mut self, path: &Path, _: &Node, into: &mut Filling<'_>) -> io::Result<()> {
        let text = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        into.write_all(text)
    }
}

impl<S: Read + Write> Merging<'_, S> {
    fn refuse(&mut self, path: &Path, why: impl std::fmt::Display) {
        self.report.applied.failed.add(path, why);
    }

    fn fetch(&mut self, path: &Path, digest: &Digest, size: u64) -> Result<Option<Vec<u8>>, Error> {
        let wanted = Wanted { path, digest, size };
        let mut bytes = Vec::new();
        let part = |_: usize, _: u64, part: &[u8]| {
            if (bytes.len() + part.len()) as u64 > TEXT_MAX {
                return Err(io::Error::other("no account file is so large"));
            }
            bytes.extend_from_slice(part);
            Ok(())
        };
        let came = self.puller.files(&[wanted], part)?;
        Ok((came == [true]).then_some(bytes))
    }

    /// Contents and history of the other's version.
    fn theirs(&mut self, path: &Path, entry: &Entry) -> Result<Option<(Vec<u8>, History)>, Error> {
        let Some((size, wanted)) = entry.file() else {
            return Ok(None);
        };
        let Some(text) = self
            .fetch(path, &wanted, size)?
            .filter(|t| digest(t) == wanted)
        else {
            self.report
                .applied
                .put_off
                .add(path, "it has changed there meanwhile");
            return Ok(None);
        };
        let asked = [ASKED, path.as_bytes()].concat();
        let sent = match Path::try_from(asked) {
            Ok(asked) => self.fetch(&asked, &wanted, TEXT_MAX)?,
            Err(_) => None,
        };
        let sent = sent.and_then(|bytes| History::from_bytes(&bytes));
        Ok(Some((text, sent.unwrap_or_default())))
    }

    /// Both changed it.
    fn settle(&mut self, conflict: Conflict) -> Result<(), Error> {
        let Conflict {
            path,
            here,
            there,
            outcome,
        } = conflict;
        let Some(file) = which(&path) else {
            return Ok(());
        };
        let Some((theirs, their_history)) = self.theirs(&path, &there)? else {
            return Ok(());
        };
        let Some(ours) = text_of(self.local, &path, &here)? else {
            let why = "something else is there by now";
            self.report.applied.put_off.add(&path, why);
            return Ok(());
        };
        let our_history = Histories::of(self.local).current(&path, &here, &ours)?;
        let base = self.base(&path, &here, &there)?;
        let how = How {
            file,
            base: &base,
            few: self.few,
        };
        let (ours, theirs) = (
            Side {
                entry: &here,
                text: &ours,
                history: &our_history,
            },
            Side {
                entry: &there,
                text: &theirs,
                history: &their_history,
            },
        );
        let now = daemon::real_now_ns();
        let mut author = self.local.author().map_err(failed)?;
        author.count += self.ready.len() as u64;
        let settled = accounts::settle(how, &ours, &theirs, &mut author, now, digest);
        let Settled {
            entry,
            text,
            history,
            notes,
        } = match settled {
            Ok(settled) => settled,
            Err(why) => {
                self.refuse(&path, format!("not merged: {why}"));
                return Ok(());
            }
        };
        let loses = notes.iter().any(accounts::Note::loses);
        if loses && outcome == Outcome::Stayed {
            let node = there.node.clone();
            let kept = node.map(|node| Kept {
                path: path.clone(),
                node,
                at: now,
                why: format!("merged into a version of {:?}", here.rank.replica),
            });
            if let Some(kept) = kept {
                let aside = &self.local.set.aside;
                aside.keep_text(&kept, theirs.text).map_err(failed)?;
                self.report.applied.kept += 1;
            }
        }
        let notes = notes.iter().map(ToString::to_string);
        let merged = "changed on both servers, merged record by record".to_owned();
        let notes = std::iter::once(merged).chain(notes);
        self.report
            .notes
            .extend(notes.map(|note| (path.clone(), note)));
        let operation = Operation {
            path,
            keep: loses && outcome == Outcome::GaveWay && entry.node != here.node,
            was: Some(here),
            entry,
            source: Source::Fetch,
        };
        self.ready.push(Ready {
            operation,
            text,
            history: Some(history),
        });
        Ok(())
    }

    /// The last version that both had, as far as it was kept.
    fn base(&self, path: &Path, here: &Entry, there: &Entry) -> Result<Vec<u8>, Error> {
        let Some(archive) = self.local.versions.archive().map_err(failed)? else {
            return Ok(Vec::new());
        };
        let versions = archive.of(path).map_err(failed)?;
        let entries = versions.iter().map(|version| &version.entry);
        let common = accounts::common(entries, here, there).and_then(Entry::file);
        let mut text = Vec::new();
        if let Some((_, digest)) = common {
            let piece = |bytes: &[u8]| text.write_all(bytes);
            archive.read(&digest, piece).map_err(failed)?;
        }
        Ok(text)
    }

    /// What is only newer there is taken as it is, if it can be.
    fn take(&mut self, mut operation: Operation) -> Result<(), Error> {
        let path = operation.path.clone();
        let Some(file) = which(&path) else {
            return Ok(());
        };
        let was = operation.was.clone();
        let may_go = self.few && !matches!(file, Which::Passwd | Which::Group);
        if operation.is_note() || operation.removes() && may_go {
            self.ready.push(Ready {
                operation,
                text: Vec::new(),
                history: None,
            });
            return Ok(());
        }
        if operation.entry.file().is_none() {
            let what = match operation.entry.node {
                None => "was removed there and stays here",
                Some(_) => "is no file there and stays here as it is",
            };
            self.refuse(&path, what);
            return Ok(());
        }
        let Some((text, history)) = self.theirs(&path, &operation.entry)? else {
            return Ok(());
        };
        let before = match &was {
            Some(was) => text_of(self.local, &path, was)?.map_or(0, |t| accounts::count(&t)),
            None => 0,
        };
        if let Err(why) = accounts::may_stand(file, &text, before, self.few) {
            self.refuse(&path, format!("not taken: {why}"));
            return Ok(());
        }
        operation.source = Source::Fetch;
        self.ready.push(Ready {
            operation,
            text,
            history: Some(history),
        });
        Ok(())
    }

    /// All are put in place, each whole and in an order that is safe if it ends half-way.
    fn finish(mut self, dry: bool) -> Result<Report, Error> {
        self.ready.sort_by_key(|ready| place(&ready.operation.path));
        let operations: Vec<_> = self.ready.iter().map(|r| r.operation.clone()).collect();
        if dry {
            self.report.planned = operations;
            return Ok(self.report);
        }
        if operations.is_empty() {
            return Ok(self.report);
        }
        let histories = Histories::of(self.local);
        for Ready {
            operation, history, ..
        } in &self.ready
        {
            if let Some(history) = history {
                histories.write(&operation.path, &operation.entry, history)?;
            }
        }
        let texts = self.ready.iter();
        let texts = texts.map(|r| (&r.operation.path, r.text.as_slice()));
        let mut texts = Texts(texts.collect());
        let locks = match lock(&self.local.unit) {
            Ok(locks) => locks,
            Err(why) => {
                for operation in &operations {
                    self.report.applied.failed.add(&operation.path, &why);
                }
                return Ok(self.report);
            }
        };
        let now = daemon::real_now_ns();
        let (set, index) = (&self.local.set, &self.local.index);
        let applied = store::apply(set, index, operations, &mut texts, now);
        drop(locks);
        self.report.add(applied.map_err(failed)?);
        note(self.local).map_err(io::Error::other)?;
        Ok(self.report)
    }
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
