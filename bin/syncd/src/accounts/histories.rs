//! Which event each line of each account file is from, on the disk.

use super::{digest, which};
use crate::replica::Local;
use filesync::{Digest, Entry, Path, accounts::History};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::SystemTime,
};

/// Histories on the disk, one file for each version.
pub(super) struct Histories(pub(super) PathBuf);

impl Histories {
    pub(super) fn of(local: &Local) -> Self {
        Self(local.state.join("records"))
    }

    pub(super) fn file(&self, path: &Path, entry: &Entry) -> PathBuf {
        let version = digest(format!("{:?}", entry.vector).as_bytes());
        let name = String::from_utf8_lossy(path.as_bytes()).into_owned();
        self.0.join(format!("{name}.{}", hex(&version)))
    }

    pub(super) fn read(&self, path: &Path, entry: &Entry) -> io::Result<Option<History>> {
        match fs::read(self.file(path, entry)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(History::from_bytes(&other?)),
        }
    }

    /// It is on the disk when this returns.
    pub(super) fn write(&self, path: &Path, entry: &Entry, history: &History) -> io::Result<()> {
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
    pub(super) fn current(&self, path: &Path, entry: &Entry, text: &[u8]) -> io::Result<History> {
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
    pub(super) fn sweep(&self, path: &Path, entry: &Entry) -> io::Result<()> {
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
