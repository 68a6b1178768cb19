//! `<run-dir>/electd.state`: what survives electd's death but not a reboot.

use daemon::Error;
use election::{Memory, memory::SLOT};
use protocol::BootTime;
use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// How often it is seen whether the file still has its name.
const LOOK: Duration = Duration::from_secs(1);

/// Two slots, written in turn, without fsync: the run-dir is in memory.
pub struct MemoryFile {
    file: File,
    path: PathBuf,
    boot_id: [u8; 16],
    sequence: u64,
    /// What was written last, and where.
    last: Option<(Vec<u8>, u64)>,
    /// When it is seen whether the file still has its name.
    look: BootTime,
    /// Could not be written yet: nothing that relies on it may be sent.
    pending: Option<Memory>,
}

impl MemoryFile {
    /// Opens the file and reads what this boot's last electd remembered.
    pub fn open(run_dir: &Path) -> Result<(Self, Option<Memory>), Error> {
        let path = run_dir.join("electd.state");
        let failed = |e| Error::io(format!("cannot open {}", path.display()), e);
        let boot_id = boot_id()?;
        let mut file = open(&path).map_err(failed)?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(2 * SLOT as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let memory = Memory::newest(&bytes, boot_id);
        let sequence = memory.as_ref().map_or(0, |m| m.sequence);
        Ok((
            Self {
                file,
                path,
                boot_id,
                sequence,
                last: None,
                look: daemon::now() + LOOK,
                pending: None,
            },
            memory,
        ))
    }

    /// Remembers; false if the file cannot be written, now or since an earlier call.
    pub fn write(&mut self, memory: Memory) -> bool {
        self.pending = Some(memory);
        self.retry()
    }

    /// Tries a failed write again; false if nothing that relies on it may be sent yet.
    pub fn retry(&mut self) -> bool {
        self.look_after();
        let Some(mut memory) = self.pending.take() else {
            return true;
        };
        memory.boot_id = self.boot_id;
        memory.sequence = self.sequence + 1;
        let at = (memory.slot() * SLOT) as u64;
        let written = memory
            .to_bytes()
            .map_err(io::Error::other)
            .and_then(|bytes| self.file.write_all_at(&bytes, at).map(|()| bytes));
        match written {
            Ok(bytes) => {
                self.sequence += 1;
                self.last = Some((bytes, at));
            }
            Err(e) => {
                log::error!(
                    "cannot write {}: {e}; no vote and no promise is given",
                    self.path.display()
                );
                self.pending = Some(memory);
            }
        }
        self.pending.is_none()
    }
}

impl MemoryFile {
    /// A file that another program removed is written anew: the next electd would know nothing of what this one
    /// promised.
    fn look_after(&mut self) {
        let now = daemon::now();
        if now < self.look {
            return;
        }
        self.look = now + LOOK;
        let identity = |m: io::Result<Metadata>| m.map(|m| (m.dev(), m.ino())).ok();
        let here = identity(std::fs::symlink_metadata(&self.path));
        let (Some((bytes, at)), true) = (&self.last, here != identity(self.file.metadata())) else {
            return;
        };
        match open(&self.path).and_then(|file| file.write_all_at(bytes, *at).map(|()| file)) {
            Ok(file) => {
                self.file = file;
                let path = self.path.display();
                log::warn!("{path} was removed by another program and has been written anew");
            }
            Err(e) => log::error!(
                "{} was removed by another program: {e}",
                self.path.display()
            ),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

/// The kernel's boot id: 128 random bits (random(4)).
pub fn boot_id() -> Result<[u8; 16], Error> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text =
        std::fs::read_to_string(PATH).map_err(|e| Error::io(format!("cannot read {PATH}"), e))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|_| Error::Failed(format!("{PATH} holds no boot id: {}", text.trim())))
}
