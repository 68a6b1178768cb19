//! Files that must survive a power loss: written whole or not at all.

use crate::Error;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Name of the term reservation in the state-dir.
pub const RESERVATION: &str = "reservation";

/// Replaces `folder/name` by `bytes`: temporary file, fsync, rename, fsync of the folder. The folder is
/// made if it is missing, the file's mode is 0600.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let temporary = folder.join(format!(".{name}.new"));
    let path = folder.join(name);
    let written = make(folder)
        .and_then(|()| fill(&temporary, bytes))
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| File::open(folder)?.sync_all());
    written.map_err(|e| {
        // The temporary file is of no use to anybody; the old file is as it was.
        let _ = fs::remove_file(&temporary);
        Error::io(format!("cannot write {}", path.display()), e)
    })
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

fn fill(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        write(&state, RESERVATION, b"one").unwrap();
        write(&state, RESERVATION, b"two").unwrap();
        assert_eq!(fs::read(state.join(RESERVATION)).unwrap(), b"two");
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = write(&file, RESERVATION, b"one").unwrap_err().to_string();
        assert!(error.contains("file/reservation"), "{error}");
    }
}
