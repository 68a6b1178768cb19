//! A set of password files: merged record by record, as one database, and put in place under the system's locks.
//!
//! ```text
//!   look      under the lock of all: no program is half-way through them
//!   history   which event each record is from, on the disk before anybody is told of the version
//!   settle    all files, if each server has something new, with what the other knows of its records; all or none
//!   check     somebody has user id 0, not half of the records are gone
//!   apply     under all locks: group, gshadow, subuid, subgid, passwd, shadow
//! ```

use crate::{
    locks::Locks,
    pull::Report,
    replica::{Allowed, Local},
    units::Unit,
};
use filesync::{
    Conflict, Digest, Entry, Node, Operation, Outcome, Path, Planner, Relation, Source,
    accounts::{self, File as Which, History, How, Pair, Settled, Side, Unsettled},
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
        Ok(before.follow(file, text, entry, digest))
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
    let mut run = Merging {
        local,
        puller,
        how: How {
            few: allowed.deletes,
            yields: planner.yields,
        },
        report: Report::default(),
        ready: Vec::new(),
        aside: Vec::new(),
        settled: Vec::new(),
    };
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
    run.finish(dry)
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

/// A file that two servers have.
struct Both {
    path: Path,
    here: Entry,
    there: Entry,
}

impl Both {
    fn relation(&self) -> Relation {
        self.here.vector.relation(&self.there.vector)
    }

    /// Nothing of it is to be taken.
    fn is_done(&self) -> bool {
        matches!(self.relation(), Relation::Newer | Relation::Equal)
    }
}

/// The contents of one version, and where its records are from.
struct Known {
    text: Vec<u8>,
    history: History,
}

impl Known {
    fn side<'a>(&'a self, entry: &'a Entry) -> Side<'a> {
        Side {
            entry,
            text: &self.text,
            history: &self.history,
        }
    }
}

/// One file that is to be put in place.
struct Ready {
    operation: Operation,
    text: Vec<u8>,
    history: Option<History>,
    /// Records are in it that were removed here or there.
    restores: bool,
}

struct Merging<'a, S> {
    local: &'a Local,
    puller: &'a mut Puller<S>,
    how: How,
    report: Report,
    ready: Vec<Ready>,
    /// The other's versions that lost, with their contents.
    aside: Vec<(Kept, Vec<u8>)>,
    /// What was settled together and is put in place together.
    settled: Vec<Both>,
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

    /// Nothing is taken of these now.
    fn put_off(&mut self, files: &[Both], why: &str) {
        for file in files.iter().filter(|file| !file.is_done()) {
            self.report.applied.put_off.add(&file.path, why);
        }
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

    /// Contents and history of the other's version; none: it is another one by now.
    fn theirs(&mut self, path: &Path, entry: &Entry) -> Result<Option<Known>, Error> {
        let Some((size, wanted)) = entry.file() else {
            return Ok(None);
        };
        let text = self.fetch(path, &wanted, size)?;
        let Some(text) = text.filter(|t| digest(t) == wanted) else {
            return Ok(None);
        };
        let asked = [ASKED, path.as_bytes()].concat();
        let sent = match Path::try_from(asked) {
            Ok(asked) => self.fetch(&asked, &wanted, TEXT_MAX)?,
            Err(_) => None,
        };
        let sent = sent.and_then(|bytes| History::from_bytes(&bytes));
        let history = sent.unwrap_or_default();
        Ok(Some(Known { text, history }))
    }

    /// Contents and history of the version here, if it is still there.
    fn ours(&self, path: &Path, entry: &Entry) -> Result<Option<Known>, Error> {
        let Some(text) = text_of(self.local, path, entry)? else {
            return Ok(None);
        };
        let history = Histories::of(self.local).current(path, entry, &text)?;
        Ok(Some(Known { text, history }))
    }

    /// Both have something new: all files are settled, or none.
    fn settle(&mut self, files: Vec<Both>) -> Result<(), Error> {
        let mut known = Vec::new();
        for Both { path, here, there } in &files {
            let Some(ours) = self.ours(path, here)? else {
                self.put_off(&files, &format!("{path} is another one here by now"));
                return Ok(());
            };
            let theirs = match here.vector.relation(&there.vector) {
                Relation::Equal => self.ours(path, here)?,
                _ => self.theirs(path, there)?,
            };
            let Some(theirs) = theirs else {
                self.put_off(&files, &format!("{path} has changed there meanwhile"));
                return Ok(());
            };
            known.push((ours, theirs, self.base(path, here, there)?));
        }
        let mut pairs = Vec::new();
        for (both, (ours, theirs, base)) in files.iter().zip(&known) {
            pairs.extend(which(&both.path).map(|file| Pair {
                file,
                base,
                here: ours.side(&both.here),
                there: theirs.side(&both.there),
            }));
        }
        let now = daemon::real_now_ns();
        let mut author = self.local.author().map_err(failed)?;
        match accounts::settle(self.how, &pairs, &mut author, now, digest) {
            Ok(settled) => {
                let theirs = known.iter().map(|(_, theirs, _)| theirs.text.as_slice());
                for ((both, theirs), settled) in files.iter().zip(theirs).zip(settled) {
                    if let Some(settled) = settled {
                        self.prepare(both, theirs, settled, now);
                    }
                }
                self.settled = files;
            }
            Err(Unsettled { file, why }) => {
                let of_it = |both: &&Both| which(&both.path) == Some(file);
                let cause = files.iter().find(of_it).map(|both| both.path.to_string());
                let cause = cause.unwrap_or_default();
                for Both { path, .. } in files.iter().filter(|b| of_it(b) || !b.is_done()) {
                    match which(path) == Some(file) {
                        true => self.refuse(path, format!("not merged: {why}")),
                        false => self.refuse(path, format!("not merged, for {cause} is not")),
                    }
                }
            }
        }
        Ok(())
    }

    /// One file, as it was settled.
    fn prepare(&mut self, both: &Both, theirs: &[u8], settled: Settled, now: u64) {
        let Both { path, here, there } = both;
        let loses = settled.notes.iter().any(accounts::Note::loses);
        let lost = there.node.clone().filter(|_| loses && settled.stays);
        self.aside.extend(lost.map(|node| {
            let kept = Kept {
                path: path.clone(),
                node,
                at: now,
                why: format!("merged into a version of {:?}", here.rank.replica),
            };
            (kept, theirs.to_vec())
        }));
        let notes = settled.notes.iter().map(ToString::to_string);
        let merged = "changed on both servers, merged record by record".to_owned();
        let merged = (both.relation() == Relation::Concurrent).then_some(merged);
        let notes = merged.into_iter().chain(notes);
        let notes = notes.map(|note| (path.clone(), note));
        self.report.notes.extend(notes);
        let operation = Operation {
            path: path.clone(),
            keep: loses && !settled.stays && settled.entry.node != here.node,
            was: Some(here.clone()),
            entry: settled.entry,
            source: Source::Fetch,
        };
        self.ready.push(Ready {
            operation,
            text: settled.text,
            history: Some(settled.history),
            restores: settled.restores,
        });
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
        let few = self.how.few;
        let may_go = few && !matches!(file, Which::Passwd | Which::Group);
        if operation.is_note() || operation.removes() && may_go {
            self.ready.push(Ready {
                operation,
                text: Vec::new(),
                history: None,
                restores: false,
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
        let Some(Known { text, history }) = self.theirs(&path, &operation.entry)? else {
            let why = "it has changed there meanwhile";
            self.report.applied.put_off.add(&path, why);
            return Ok(());
        };
        let count = |text: Vec<u8>| accounts::count(file, &text);
        let before = match &was {
            Some(was) => text_of(self.local, &path, was)?.map_or(0, count),
            None => 0,
        };
        if let Err(why) = accounts::may_stand(file, &text, before, few) {
            self.refuse(&path, format!("not taken: {why}"));
            return Ok(());
        }
        operation.source = Source::Fetch;
        self.ready.push(Ready {
            operation,
            text,
            history: Some(history),
            restores: false,
        });
        Ok(())
    }

    /// All are put in place, each whole and in an order that is safe if it ends half-way.
    fn finish(mut self, dry: bool) -> Result<Report, Error> {
        // Why an account is there again is mostly in the other of the two: as long as that is not merged, both will be.
        let shadow_first =
            |r: &Ready| r.restores && which(&r.operation.path) == Some(Which::Shadow);
        let shadow_first = self.ready.iter().any(shadow_first);
        self.ready.sort_by_key(|r| match which(&r.operation.path) {
            Some(Which::Passwd) if shadow_first && !r.restores => Which::IN_ORDER.len(),
            _ => place(&r.operation.path),
        });
        if dry {
            self.report.planned = self.ready.into_iter().map(|r| r.operation).collect();
            return Ok(self.report);
        }
        let (mut report, local) = (self.report, self.local);
        if self.ready.is_empty() {
            return Ok(report);
        }
        let locks = match lock(&local.unit) {
            Ok(locks) => locks,
            Err(why) => {
                for ready in &self.ready {
                    report.applied.failed.add(&ready.operation.path, &why);
                }
                return Ok(report);
            }
        };
        let mut changed = None;
        for Both { path, here, .. } in &self.settled {
            if changed.is_none() && text_of(local, path, here)?.is_none() {
                changed = Some(path);
            }
        }
        if let Some(changed) = changed {
            let settled = |path: &Path| self.settled.iter().any(|both| both.path == *path);
            for ready in self.ready.extract_if(.., |r| settled(&r.operation.path)) {
                let why = format!("{changed} is another one here by now");
                report.applied.put_off.add(&ready.operation.path, why);
            }
            self.aside.clear();
            report.notes.clear();
        }
        for (kept, text) in &self.aside {
            local.set.aside.keep_text(kept, text).map_err(failed)?;
            report.applied.kept += 1;
        }
        let histories = Histories::of(local);
        for Ready {
            operation, history, ..
        } in &self.ready
        {
            if let Some(history) = history {
                histories.write(&operation.path, &operation.entry, history)?;
            }
        }
        let operations = self.ready.iter().map(|r| r.operation.clone()).collect();
        let texts = self.ready.iter();
        let texts = texts.map(|r| (&r.operation.path, r.text.as_slice()));
        let mut texts = Texts(texts.collect());
        let now = daemon::real_now_ns();
        let (set, index) = (&local.set, &local.index);
        let applied = store::apply(set, index, operations, &mut texts, now);
        drop(locks);
        report.add(applied.map_err(failed)?);
        note(local).map_err(io::Error::other)?;
        Ok(report)
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
