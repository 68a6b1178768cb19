//! Edits files as people and programs do, so that it is certain what each edit took the place of.
//!
//! What goes is moved out of the set and read there; what is replaced is swapped with the new. Who writes into a file
//! that is there looks afterwards whether it still is.

use crate::{
    history::{Contents, Event, History},
    plan::Edit,
    tree,
};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

/// The users of one server.
pub struct Users<'a> {
    pub server: usize,
    /// The set's directory.
    pub files: PathBuf,
    /// A directory beside it, on the same file system.
    pub beside: PathBuf,
    pub history: &'a History,
    /// Whoever reads here must not see half of what a user writes.
    pub writing: &'a Mutex<()>,
}

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Different each time, of that length at least, and not to be packed.
fn fresh(size: usize, name: &str) -> Vec<u8> {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut bytes = format!("{name} {number}\n").into_bytes();
    let mut noise = vec![0; size];
    blake3::Hasher::new()
        .update(&bytes)
        .finalize_xof()
        .fill(&mut noise);
    bytes.append(&mut noise);
    bytes
}

impl Users<'_> {
    fn at(&self, path: &str) -> PathBuf {
        self.files.join(path)
    }

    fn aside(&self) -> PathBuf {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        self.beside.join(number.to_string())
    }

    /// Does it, if it can be done; what came of it is in the history.
    pub fn edit(&self, edit: &Edit) {
        let mut event = Event {
            at: self.history.now(),
            server: self.server,
            what: format!("{edit:?}"),
            paths: Vec::new(),
            saw: Vec::new(),
            wrote: None,
            removes: false,
        };
        let result = self.try_edit(edit, &mut event);
        if let Err(why) = result {
            event.what += &format!(" ({why})");
            event.removes = false;
            if event.saw.is_empty() && event.wrote.is_none() {
                return; // nothing to do it with
            }
        }
        self.history.done(event);
    }

    fn try_edit(&self, edit: &Edit, event: &mut Event) -> io::Result<()> {
        match edit {
            Edit::Overwrite { path, size } => self.change(path, event, true, |file, _| {
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
                Ok((0, fresh(*size, path)))
            }),
            Edit::Append { path, size } => {
                self.change(path, event, false, |_, old| Ok((old, fresh(*size, path))))
            }
            Edit::Patch { path, size } => self.change(path, event, false, |_, old| {
                Ok((old / 3, fresh(*size, path)))
            }),
            Edit::Replace { path, size } => {
                let bytes = fresh(*size, path);
                event.wrote = Some(self.history.write(&bytes, path));
                let new = self.aside();
                let written = fs::write(&new, bytes).and_then(|()| self.swap(&new, path, event));
                if written.is_err() {
                    self.unwritten(event);
                    let _ = fs::remove_file(&new);
                }
                written
            }
            Edit::Symlink { path } => {
                let target = format!("to-{}", COUNT.fetch_add(1, Ordering::Relaxed));
                let hash = self
                    .history
                    .write(format!("symlink {target}").as_bytes(), path);
                self.history.doubt(&hash); // what is kept aside of it does not tell where it led
                event.wrote = Some(hash);
                let new = self.aside();
                symlink(target, &new)?;
                self.swap(&new, path, event)
            }
            Edit::Delete { path } | Edit::DeleteAll { path } => {
                event.paths.push(path.clone());
                event.removes = true;
                let directory = fs::symlink_metadata(self.at(path))?.is_dir();
                if directory != matches!(edit, Edit::DeleteAll { .. }) {
                    return Err(io::Error::other("not such a thing"));
                }
                let gone = self.aside();
                fs::rename(self.at(path), &gone)?;
                self.bury(&gone, path, event)
            }
            Edit::Move { from, to } => {
                event.paths.extend([from.clone(), to.clone()]);
                let found = fs::symlink_metadata(self.at(from))?;
                if from == to || to.starts_with(&format!("{from}/")) {
                    return Err(io::Error::other("nowhere to go"));
                }
                if !found.is_dir() {
                    self.make_room(to)?;
                    let gone = self.aside();
                    if fs::symlink_metadata(self.at(to)).is_ok_and(|there| !there.is_dir())
                        && fs::rename(self.at(to), &gone).is_ok()
                    {
                        self.bury(&gone, to, event)?;
                    }
                }
                rename(&self.at(from), &self.at(to), RenameFlags::RENAME_NOREPLACE)
            }
            Edit::Link { from, to } => {
                event.paths.extend([from.clone(), to.clone()]);
                self.make_room(to)?;
                fs::hard_link(self.at(from), self.at(to))
            }
            Edit::Mkdir { path } => {
                event.paths.push(path.clone());
                fs::create_dir(self.at(path))
            }
            Edit::Chmod { path, mode } => {
                event.paths.push(path.clone());
                if fs::symlink_metadata(self.at(path))?.is_symlink() {
                    return Err(io::Error::other("a link has no mode"));
                }
                fs::set_permissions(self.at(path), fs::Permissions::from_mode(*mode))
            }
            Edit::Chown { path, id } => {
                event.paths.push(path.clone());
                lchown(self.at(path), Some(*id), Some(*id))
            }
            Edit::Touch { path, seconds } => {
                event.paths.push(path.clone());
                let by = Duration::from_secs(seconds.unsigned_abs());
                let time = match *seconds < 0 {
                    true => SystemTime::now() - by,
                    false => SystemTime::now() + by,
                };
                File::options()
                    .write(true)
                    .open(self.at(path))?
                    .set_modified(time)
            }
        }
    }

    fn make_room(&self, path: &str) -> io::Result<()> {
        match self.at(path).parent() {
            Some(parent) => fs::create_dir_all(parent),
            None => Ok(()),
        }
    }

    /// What it was to write never came into the set.
    fn unwritten(&self, event: &Event) {
        if let Some(hash) = &event.wrote {
            self.history.doubt(hash);
        }
    }

    /// What was made beside the set takes a place in it.
    fn swap(&self, new: &Path, path: &str, event: &mut Event) -> io::Result<()> {
        event.paths.push(path.to_owned());
        let to = self.at(path);
        self.make_room(path)?;
        if fs::symlink_metadata(&to).is_ok_and(|there| there.is_dir()) {
            return Err(io::Error::other("a directory is there"));
        }
        loop {
            match rename(new, &to, RenameFlags::RENAME_NOREPLACE) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
            match rename(new, &to, RenameFlags::RENAME_EXCHANGE) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
                Ok(()) => return self.bury(new, path, event),
            }
        }
    }

    /// What was at `path` is out of the set now: it was seen, and goes.
    fn bury(&self, gone: &Path, path: &str, event: &mut Event) -> io::Result<()> {
        if !fs::symlink_metadata(gone)?.is_dir() {
            let symlink = fs::symlink_metadata(gone)?.is_symlink();
            if !symlink {
                event
                    .saw
                    .push((path.to_owned(), blake3::hash(&fs::read(gone)?)));
            }
            return fs::remove_file(gone);
        }
        for (name, item) in tree::tree(gone) {
            if let Some(hash) = item.contents {
                event.saw.push((format!("{path}/{name}"), hash));
            }
        }
        fs::remove_dir_all(gone)
    }

    /// Writes into a file that is there, or a new one if it may be.
    fn change(
        &self,
        path: &str,
        event: &mut Event,
        create: bool,
        how: impl FnOnce(&mut File, u64) -> io::Result<(u64, Vec<u8>)>,
    ) -> io::Result<()> {
        event.paths.push(path.to_owned());
        let at = self.at(path);
        if fs::symlink_metadata(&at).is_ok_and(|there| there.is_symlink()) {
            return Err(io::Error::other("a link"));
        }
        if create {
            self.make_room(path)?;
        }
        let _writing = self.writing.lock();
        let mut options = File::options();
        let mut file = options.read(true).write(true).create(create).open(&at)?;
        let mut old = Vec::new();
        file.read_to_end(&mut old)?;
        let (from, bytes) = how(&mut file, old.len() as u64)?;
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        let mut new = old[..start.min(old.len())].to_vec();
        new.extend(&bytes);
        if start > 0 && new.len() < old.len() {
            new.extend(&old[new.len()..]);
        }
        let hash = self.history.write(&new, path);
        event.wrote = Some(hash);
        let written = file.write_all_at(&bytes, from);
        let mut hash = hash;
        if written.is_err() {
            self.history.doubt(&hash);
            new.clear();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut new)?;
            hash = self.history.write(&new, path);
            event.wrote = Some(hash);
        }
        let seen = blake3::hash(&old);
        match still_there(&file, &at) {
            true => event.saw.push((path.to_owned(), seen)),
            false => {
                self.history.doubt(&hash);
                self.history.doubt(&seen);
                event.what += ", while something else took its place";
            }
        }
        file.flush()?;
        written
    }
}

fn still_there(file: &File, at: &Path) -> bool {
    let same = |a: fs::Metadata, b: fs::Metadata| a.ino() == b.ino();
    match (file.metadata(), fs::symlink_metadata(at)) {
        (Ok(a), Ok(b)) => same(a, b),
        _ => false,
    }
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
}

/// Reads a file whole, when no user is writing here.
pub fn read(writing: &Mutex<()>, path: &Path) -> io::Result<Contents> {
    let _quiet = writing.lock();
    Ok(blake3::hash(&fs::read(path)?))
}
