//! `<state-dir>/maintenance`: that a server is in maintenance, and since when. It survives restarts and reboots.

use crate::{Error, durable};
use std::{fs, io, path::Path};

const FILE: &str = "maintenance";

/// Since when the server has been in maintenance, in seconds since 1970; none: it is not.
pub fn since(state_dir: &Path) -> Option<u64> {
    let text = fs::read_to_string(state_dir.join(FILE)).ok()?;
    // What cannot be read is no reason to become master in the midst of an operator's work.
    Some(text.trim().parse().unwrap_or_default())
}

/// Remembers it, from `now` on unless it is on already.
pub fn begin(state_dir: &Path, now: u64) -> Result<(), Error> {
    match since(state_dir) {
        Some(_) => Ok(()),
        None => durable::write(state_dir, FILE, format!("{now}\n").as_bytes()),
    }
}

/// Forgets it.
pub fn end(state_dir: &Path) -> Result<(), Error> {
    let path = state_dir.join(FILE);
    match fs::remove_file(&path).and_then(|()| fs::File::open(state_dir)?.sync_all()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove {}", path.display()), e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_is_kept_from_when_it_began_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(since(dir.path()), None);
        end(dir.path()).unwrap();
        begin(dir.path(), 100).unwrap();
        begin(dir.path(), 200).unwrap();
        assert_eq!(since(dir.path()), Some(100));
        end(dir.path()).unwrap();
        assert_eq!(since(dir.path()), None);
        fs::write(dir.path().join(FILE), "damaged").unwrap();
        assert_eq!(since(dir.path()), Some(0));
    }
}
