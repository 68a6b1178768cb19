//! The locks that the system's own programs take before they change password files: that of lckpwdf(3), which passwd(1)
//! and PAM take, then one for each file as shadow-utils does it, a link named after the file with a process id in it.
//!
//! They are taken in the order in which those programs take them, and nobody is waited for longer than a time limit.

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
    sys::signal::kill,
    unistd::Pid,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};
use store::{Calls, Dir, Name};

/// How long they are waited for: as long as lckpwdf(3) waits.
const PATIENCE: Duration = Duration::from_secs(15);
/// So often they are tried.
const STEP: Duration = Duration::from_millis(20);
/// No process id is longer.
const ID_MAX: u64 = 32;

/// Held until dropped.
pub struct Locks {
    dir: Dir,
    held: Vec<String>,
    /// A lock that goes with the last one who has it open.
    _all: File,
}

impl Drop for Locks {
    fn drop(&mut self) {
        for lock in self.held.iter().rev() {
            let _ = unlink(&self.dir, lock);
        }
    }
}

impl Locks {
    /// Of these files in a directory, or who has them.
    pub fn take<'f>(
        root: &Path,
        files: impl IntoIterator<Item = &'f [u8]>,
    ) -> Result<Self, String> {
        Self::within(PATIENCE, root, files)
    }

    fn within<'f>(
        patience: Duration,
        root: &Path,
        files: impl IntoIterator<Item = &'f [u8]>,
    ) -> Result<Self, String> {
        let limit = Instant::now() + patience;
        let told = |path: &Path, e: io::Error| format!("cannot lock {}: {e}", path.display());
        let path = root.join(".pwd.lock");
        let all = lock_all(&path, limit).map_err(|e| told(&path, e))?;
        let dir = Dir::root(root, Calls::unlimited()).map_err(|e| told(root, e))?;
        let mut locks = Self {
            dir,
            held: Vec::new(),
            _all: all,
        };
        let files: Vec<_> = files.into_iter().collect();
        sweep(&locks.dir, &files).map_err(|e| told(root, e))?;
        for file in files {
            let lock = format!("{}.lock", String::from_utf8_lossy(file));
            let path = root.join(&lock);
            lock_one(&locks.dir, &path, &lock, limit).map_err(|e| told(&path, e))?;
            locks.held.push(lock);
        }
        Ok(locks)
    }
}

fn busy(who: &str) -> io::Error {
    io::Error::other(format!(
        "{who} has it; try again when the accounts are not being changed"
    ))
}

fn lock_all(path: &Path, limit: Instant) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
    // Not of the process: such a lock would go with any other file of that name that is closed here.
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(file),
            Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) if Instant::now() < limit => {
                thread::sleep(STEP);
            }
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(busy("another process")),
            Err(e) => return Err(e.into()),
        }
    }
}

fn name(text: &str) -> io::Result<Name<'_>> {
    Name::new(text.as_bytes()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn unlink(dir: &Dir, text: &str) -> io::Result<()> {
    match dir.unlink(name(text)?) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn lock_one(dir: &Dir, path: &Path, lock: &str, limit: Instant) -> io::Result<()> {
    let own = format!("{}.{}", lock.trim_end_matches(".lock"), std::process::id());
    unlink(dir, &own)?;
    let mut file = dir.create(name(&own)?)?;
    // With the NUL that those who read it expect.
    let written = write!(file, "{}\0", std::process::id()).and_then(|()| file.sync_data());
    let taken = written.and_then(|()| {
        loop {
            match dir.link(name(&own)?, dir, name(lock)?) {
                Ok(()) if file.metadata()?.nlink() == 2 => return Ok(()),
                Ok(()) => return Err(busy("another process")),
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                Err(_) => {}
            }
            match holder(dir, lock)? {
                // Whoever had it died with it.
                Holder::Nobody => unlink(dir, lock)?,
                _ if Instant::now() < limit => thread::sleep(STEP),
                Holder::Process(id) => return Err(busy(&format!("process {id}"))),
                Holder::Unknown => {
                    let what = format!("it names no process; remove {}", path.display());
                    return Err(io::Error::other(what));
                }
            }
        }
    });
    unlink(dir, &own)?;
    taken
}

/// Whoever dies while it takes a lock leaves the file that would have become it, named with its process' number.
fn sweep(dir: &Dir, files: &[&[u8]]) -> io::Result<()> {
    for left in dir.names()? {
        let mut files = files.iter();
        let id = files.find_map(|file| left.strip_prefix(*file)?.strip_prefix(b"."));
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let Some((id, left)) = id.and_then(text).zip(text(&left)) else {
            continue;
        };
        if !id.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // There is nothing in it yet if death was quick.
        let stat = dir.stat_of(name(left)?)?;
        let empty =
            stat.is_some_and(|s| s.st_size == 0 && s.st_mode & libc::S_IFMT == libc::S_IFREG);
        let who = if empty { Ok(of(id)) } else { holder(dir, left) };
        if matches!(who, Ok(Holder::Nobody)) {
            unlink(dir, left)?;
        }
    }
    Ok(())
}

enum Holder {
    Nobody,
    Process(i32),
    Unknown,
}

fn holder(dir: &Dir, lock: &str) -> io::Result<Holder> {
    let mut text = String::new();
    match dir.open(name(lock)?) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(e) => return Err(e),
        Ok(file) => file.take(ID_MAX).read_to_string(&mut text)?,
    };
    Ok(of(text.trim_end_matches('\0')))
}

/// Whether there is a process of this number.
fn of(id: &str) -> Holder {
    let Some(id) = id.parse().ok().filter(|id| *id > 0) else {
        return Holder::Unknown;
    };
    // With the lock of all held, one with our own number is of somebody who had it before a restart.
    let own = u32::try_from(id) == Ok(std::process::id());
    match kill(Pid::from_raw(id), None) {
        _ if own => Holder::Nobody,
        Err(Errno::ESRCH) => Holder::Nobody,
        _ => Holder::Process(id),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILES: [&[u8]; 2] = [b"passwd", b"shadow"];
    const SHORT: Duration = Duration::from_millis(60);

    fn why(dir: &tempfile::TempDir) -> String {
        let taken = Locks::within(SHORT, dir.path(), FILES);
        taken.map(drop).unwrap_err()
    }

    #[test]
    fn all_are_held_and_all_are_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let locks = Locks::take(dir.path(), FILES).unwrap();
        let id = std::fs::read(dir.path().join("shadow.lock")).unwrap();
        assert_eq!(id, format!("{}\0", std::process::id()).into_bytes());
        assert!(
            why(&dir).contains(".pwd.lock: another process has it"),
            "{}",
            why(&dir)
        );
        drop(locks);
        drop(Locks::take(dir.path(), FILES).unwrap());
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, [".pwd.lock"]);
    }

    #[test]
    fn a_lock_of_somebody_alive_is_respected_and_one_of_the_dead_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("shadow.lock");
        std::fs::write(&lock, "1\0").unwrap();
        assert!(
            why(&dir).contains("shadow.lock: process 1 has it"),
            "{}",
            why(&dir)
        );
        assert!(!dir.path().join("passwd.lock").exists(), "nothing is left");
        std::fs::write(&lock, "what?").unwrap();
        assert!(
            why(&dir).contains("names no process; remove"),
            "{}",
            why(&dir)
        );
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let left = |id: u32| dir.path().join(format!("shadow.{id}"));
        for (id, text) in [
            (child.id(), format!("{}\0", child.id())),
            (1, "1\0".into()),
            (7, "no number".into()),
        ] {
            std::fs::write(left(id), text).unwrap();
        }
        for gone in [child.id(), std::process::id()] {
            std::fs::write(&lock, format!("{gone}\0")).unwrap();
            drop(Locks::within(SHORT, dir.path(), FILES).unwrap());
        }
        let there = || [child.id(), 1, 7].map(|id| left(id).exists());
        assert_eq!(there(), [false, true, true], "of the dead alone");
        // They died, or go on, before they wrote anything.
        std::fs::write(left(child.id()), "").unwrap();
        std::fs::write(left(1), "").unwrap();
        drop(Locks::within(SHORT, dir.path(), FILES).unwrap());
        assert_eq!(there(), [false, true, true], "of the dead alone");
    }
}
