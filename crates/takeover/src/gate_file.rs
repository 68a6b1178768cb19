//! `<run-dir>/gate/<virtual server>`: until when the addresses may stay. It outlives electd, not the boot.

use crate::Error;
use protocol::{BootTime, VirtualServerName};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"standin1";
const LEN: usize = 40;

/// Random bytes that name this boot.
pub(crate) type BootId = [u8; 16];

/// This boot's id.
pub(crate) fn boot_id() -> Result<BootId, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|_| Error::file("read", path, io::ErrorKind::InvalidData.into()))
}

/// The file of one virtual server, open for as long as it is configured.
#[derive(Debug)]
pub(crate) struct GateFile {
    file: File,
    path: PathBuf,
    boot: BootId,
}

impl GateFile {
    pub(crate) fn open(run_dir: &Path, v: &VirtualServerName, boot: BootId) -> Result<Self, Error> {
        let folder = run_dir.join("gate");
        fs::create_dir_all(&folder).map_err(|e| Error::file("create", &folder, e))?;
        // "." and ".." are names too.
        let path = folder.join(format!("{v}.gate"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::file("open", &path, e))?;
        Ok(Self { file, path, boot })
    }

    /// The deadline noted in this boot; none if there is none or the file is damaged.
    pub(crate) fn read(&self) -> Option<BootTime> {
        let mut bytes = [0; LEN];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        decode(&bytes, self.boot)
    }

    /// Notes the deadline: one write to memory-backed storage, no sync.
    pub(crate) fn write(&self, deadline: BootTime) -> io::Result<()> {
        self.file.write_all_at(&encode(deadline, self.boot), 0)
    }

    pub(crate) fn remove(&self) {
        // What is left of it says nothing: its deadline is 0.
        if let Err(e) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn encode(deadline: BootTime, boot: BootId) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..24].copy_from_slice(&boot);
    bytes[24..32].copy_from_slice(&deadline.0.to_le_bytes());
    let sum = checksum(&bytes[..32]);
    bytes[32..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The deadline, if the bytes are whole and of this boot.
pub(crate) fn decode(bytes: &[u8; LEN], boot: BootId) -> Option<BootTime> {
    let deadline = BootTime(u64::from_le_bytes(bytes[24..32].try_into().ok()?));
    (encode(deadline, boot) == *bytes).then_some(deadline)
}

/// FNV-1a. It guards against a torn write, not against malice.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, b| {
        (sum ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_back_in_its_own_boot_only() {
        let bytes = encode(BootTime(123_456_789), [7; 16]);
        assert_eq!(decode(&bytes, [7; 16]), Some(BootTime(123_456_789)));
        assert_eq!(decode(&bytes, [8; 16]), None);
    }

    #[test]
    fn any_damaged_byte_is_noticed() {
        let fine = encode(BootTime(u64::MAX), [7; 16]);
        for place in 0..LEN {
            let mut bad = fine;
            bad[place] ^= 1;
            assert_eq!(decode(&bad, [7; 16]), None, "byte {place}");
        }
        assert_eq!(decode(&[0; LEN], [7; 16]), None);
    }
}
