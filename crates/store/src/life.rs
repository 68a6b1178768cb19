//! Whether an index is the one that this server left when it last closed it, or one that came back: out of a backup, or
//! with a file system that was set back.
//!
//! Such an index knows of fewer events of its own than the other servers do, and would give their numbers again. So a
//! note of the file as it was closed is kept in the run-dir, which no backup and no snapshot of a disk has. Change
//! time and inode are in it: no program can put them back.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Drawn by the kernel at each boot (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Writes the note once the index is closed.
pub(crate) struct Life {
    index: PathBuf,
    note: PathBuf,
}

impl Life {
    /// Of the index at this path, with the note at that one.
    pub(crate) fn of(index: &Path, note: &Path) -> Self {
        let (index, note) = (index.to_owned(), note.to_owned());
        Self { index, note }
    }

    /// Nothing but this server has touched the index since it was closed. To be asked before it is opened.
    pub(crate) fn is_unbroken(&self) -> bool {
        let left = fs::read_to_string(&self.note);
        left.is_ok_and(|left| self.seen().is_ok_and(|seen| seen == left))
    }

    fn seen(&self) -> io::Result<String> {
        let boot = fs::read_to_string(BOOT)?;
        let file = fs::metadata(&self.index)?;
        let (inode, size) = (file.ino(), file.size());
        let changed = (file.ctime(), file.ctime_nsec());
        Ok(format!(
            "{} {inode} {size} {}.{:09}\n",
            boot.trim_end(),
            changed.0,
            changed.1
        ))
    }

    fn write(&self) -> io::Result<()> {
        let seen = self.seen()?;
        if let Some(folder) = self.note.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.note, seen)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Without a note, or with half of one, the index counts as one that came back: that costs some bytes.
        let _ = self.write();
    }
}
