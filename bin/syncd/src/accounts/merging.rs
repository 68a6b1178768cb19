//! What one run does with the account files of another server: settles those of which each has something new, together,
//! takes what is only newer there, and puts all in place.

use super::{
    ASKED, TEXT_MAX, digest, failed, histories::Histories, lock, note, place, text_of, which,
};
use crate::{pull::Report, replica::Local};
use filesync::{
    Digest, Entry, Node, Operation, Path, Relation, Source,
    accounts::{self, File as Which, History, How, Pair, Settled, Side, Unsettled},
};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};
use store::{Contents, Filling, Kept};
use transfer::{Error, Piece, Puller, Wanted};

/// A file that two servers have.
pub(super) struct Both {
    pub(super) path: Path,
    pub(super) here: Entry,
    pub(super) there: Entry,
}

impl Both {
    fn relation(&self) -> Relation {
        self.here.vector.relation(&self.there.vector)
    }

    /// Nothing of it is to be taken.
    pub(super) fn is_done(&self) -> bool {
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

/// What a run takes, and what becomes of it.
pub(super) struct Merging<'a, S> {
    local: &'a Local,
    puller: &'a mut Puller<S>,
    how: How,
    pub(super) report: Report,
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

impl<'a, S: Read + Write> Merging<'a, S> {
    pub(super) fn new(local: &'a Local, puller: &'a mut Puller<S>, how: How) -> Self {
        Self {
            local,
            puller,
            how,
            report: Report::default(),
            ready: Vec::new(),
            aside: Vec::new(),
            settled: Vec::new(),
        }
    }

    pub(super) fn refuse(&mut self, path: &Path, why: impl std::fmt::Display) {
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
        let part = |_: usize, piece: Piece<'_>| match piece {
            Piece::Data(part) if (bytes.len() + part.len()) as u64 <= TEXT_MAX => {
                bytes.extend_from_slice(part);
                Ok(())
            }
            _ => Err(io::Error::other("no account file is so large")),
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
    pub(super) fn settle(&mut self, files: Vec<Both>) -> Result<(), Error> {
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
        let lost = there.node.clone().filter(|_| settled.there_loses);
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
            keep: settled.here_loses && settled.entry.node != here.node,
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
    pub(super) fn take(&mut self, mut operation: Operation) -> Result<(), Error> {
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
    pub(super) fn finish(mut self, dry: bool) -> Result<Report, Error> {
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
            report.applied.kept.insert(kept.path.clone());
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
