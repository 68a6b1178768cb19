//! Watches a set's directories (inotify(7)) and says that something changed: what, the look at it finds out.
//!
//! Where the kernel has lost count, or a file system came or went, everything is watched anew and counts as changed.

use crate::units::Unit;
use filesync::Path as SetPath;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use std::{
    collections::{HashMap, HashSet},
    io,
    os::{
        fd::AsFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// A watch that is over is noticed after so long.
const STEP: Duration = Duration::from_secs(5);
/// What cannot be watched is taken for changed, and tried again, so often.
const RETRY: Duration = Duration::from_secs(300);
/// A set that is not there is looked for so often.
const MISSING: Duration = Duration::from_secs(30);
/// What happened is told at the latest after so many readings, each of some hundred events.
const READS: u32 = 256;

/// What a watch says.
#[derive(Debug)]
pub enum Word {
    /// Something may have changed.
    Changed,
    /// Why nothing can be watched; none: all is watched.
    Trouble(Option<String>),
}

/// A running watch; it ends when this is dropped.
pub struct Watch(Arc<AtomicBool>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Watches what `units` gives, and tells.
pub fn watch(
    units: impl Fn() -> Vec<Unit> + Send + 'static,
    tell: impl Fn(Word) + Send + 'static,
) -> io::Result<Watch> {
    let over = Arc::new(AtomicBool::new(false));
    let watch = Watch(Arc::clone(&over));
    thread::Builder::new().name("watch".into()).spawn(move || {
        let over = || over.load(Ordering::Relaxed);
        while !over() {
            let units = units();
            let (why, wait) = match units.iter().find_map(|unit| unit.fault.clone()) {
                Some(why) => (why, MISSING),
                None => match Tree::new(&units) {
                    Err(why) => (why, RETRY),
                    Ok(mut tree) => {
                        tell(Word::Trouble(None));
                        tell(Word::Changed);
                        tree.follow(&tell, &over);
                        continue;
                    }
                },
            };
            tell(Word::Trouble(Some(why)));
            tell(Word::Changed);
            let start = Instant::now();
            while !over() && start.elapsed() < wait {
                thread::sleep(STEP);
            }
        }
    })?;
    Ok(watch)
}

/// Every directory of some units.
struct Tree<'a> {
    inotify: Inotify,
    units: &'a [Unit],
    /// Which unit, and where in it.
    places: HashMap<WatchDescriptor, (usize, Vec<u8>)>,
    roots: HashSet<WatchDescriptor>,
}

impl<'a> Tree<'a> {
    fn new(units: &'a [Unit]) -> Result<Self, String> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).map_err(|e| {
            format!("cannot watch for changes ({e}); see fs.inotify.max_user_instances")
        })?;
        let mut tree = Self {
            inotify,
            units,
            places: HashMap::new(),
            roots: HashSet::new(),
        };
        for unit in 0..units.len() {
            tree.add(unit, Vec::new())?;
        }
        Ok(tree)
    }

    /// Watches a directory and all in it. What is gone again is nothing to watch.
    fn add(&mut self, unit: usize, place: Vec<u8>) -> Result<(), String> {
        let wanted = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        let mut places = vec![place];
        while let Some(place) = places.pop() {
            let at = self.at(unit, &place);
            match self.inotify.add_watch(&at, wanted) {
                Ok(watch) => {
                    if place.is_empty() {
                        self.roots.insert(watch);
                    }
                    self.places.insert(watch, (unit, place.clone()));
                }
                Err(Errno::ENOSPC) => {
                    return Err(format!(
                        "too many directories to watch for changes: {} did not fit; raise \
                         fs.inotify.max_user_watches; until then it is looked at every {} minutes",
                        at.display(),
                        RETRY.as_secs() / 60
                    ));
                }
                Err(e) if place.is_empty() => {
                    return Err(format!("cannot watch {}: {e}", at.display()));
                }
                Err(_) => continue,
            }
            let Ok(entries) = std::fs::read_dir(&at) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().into_vec();
                if entry.file_type().is_ok_and(|t| t.is_dir())
                    && let Some(below) = self.within(unit, &place, &name, true)
                {
                    places.push(below);
                }
            }
        }
        Ok(())
    }

    fn at(&self, unit: usize, place: &[u8]) -> PathBuf {
        let root = &self.units[unit].root;
        if place.is_empty() {
            return root.clone();
        }
        root.join(Path::new(std::ffi::OsStr::from_bytes(place)))
    }

    /// Where in the unit this name is, if it belongs to it.
    fn within(&self, unit: usize, place: &[u8], name: &[u8], directory: bool) -> Option<Vec<u8>> {
        let mut path = place.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if place.is_empty() && [store::STAGE.as_bytes(), store::MARKER.as_bytes()].contains(&name) {
            return None;
        }
        let known = SetPath::try_from(path.clone()).ok()?;
        (!self.units[unit].excludes(&known, directory)).then_some(path)
    }

    /// Tells of changes until all has to be watched anew.
    fn follow(&mut self, tell: &impl Fn(Word), over: &impl Fn() -> bool) {
        let step = PollTimeout::try_from(STEP).unwrap_or(PollTimeout::MAX);
        while !over() {
            let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, step) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(_) => return,
            }
            // Read as fast as they come: the kernel has room for some only.
            let mut changed = false;
            for _ in 0..READS {
                let events = match self.inotify.read_events() {
                    Ok(events) => events,
                    Err(Errno::EAGAIN | Errno::EINTR) => break,
                    Err(_) => return,
                };
                for event in &events {
                    match self.takes(event) {
                        Ok(of_ours) => changed |= of_ours,
                        Err(()) => return,
                    }
                }
            }
            if changed {
                tell(Word::Changed);
            }
            // One word for what comes together.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it is a change of what is watched; an error: all has to be watched anew.
    fn takes(&mut self, event: &InotifyEvent) -> Result<bool, ()> {
        let has = |flag| event.mask.contains(flag);
        let gone = has(AddWatchFlags::IN_IGNORED)
            || has(AddWatchFlags::IN_UNMOUNT)
            || has(AddWatchFlags::IN_DELETE_SELF)
            || has(AddWatchFlags::IN_MOVE_SELF);
        if has(AddWatchFlags::IN_Q_OVERFLOW) || gone && self.roots.contains(&event.wd) {
            return Err(());
        }
        if has(AddWatchFlags::IN_IGNORED) {
            self.places.remove(&event.wd);
            return Ok(false);
        }
        let Some((unit, place)) = self.places.get(&event.wd).cloned() else {
            return Ok(false);
        };
        let directory = has(AddWatchFlags::IN_ISDIR);
        let Some(name) = &event.name else {
            // The directory itself: its owner, its mode.
            return Ok(!place.is_empty());
        };
        let Some(path) = self.within(unit, &place, name.as_bytes(), directory) else {
            return Ok(false);
        };
        if directory && (has(AddWatchFlags::IN_CREATE) || has(AddWatchFlags::IN_MOVED_TO)) {
            self.add(unit, path).map_err(|_| ())?;
        }
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{fs, sync::mpsc};

    /// What a watch says next; it waits for whoever hears it.
    fn word(words: &mpsc::Receiver<Word>) -> Word {
        words.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    /// What was said until everything is watched (anew).
    fn until_watched(words: &mpsc::Receiver<Word>) {
        while !matches!(word(words), Word::Trouble(None)) {}
        assert!(matches!(word(words), Word::Changed), "it counts as changed");
    }

    #[test]
    fn where_the_kernel_loses_count_all_is_watched_anew_and_counts_as_changed() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = dir.path().join("data");
        fs::create_dir(&root).unwrap();
        let text = format!(
            "[cluster]\nname = \"web\"\nquorum = \"none\"\n[[server]]\nname = \"alpha\"\n\
             address = \"127.0.0.1\"\nhost_key = \"ssh-ed25519 AAAAx\"\n[[sync]]\nname = \"data\"\npath = \"{}\"\n",
            root.display()
        );
        let config = config::parse(&text, Path::new("standin.toml")).unwrap();
        let (tell, words) = mpsc::sync_channel(0);
        let tell = move |word| drop(tell.send(word));
        let args = daemon::Args {
            config: config.file.clone(),
            run_dir: dir.path().join("run"),
            state_dir: dir.path().join("state"),
            server: None,
        };
        let units = move || crate::units::of(&config, &args, |_| true);
        let _watch = watch(units, tell).unwrap();
        assert!(matches!(word(&words), Word::Trouble(None)));
        // It waits to say that all counts as changed, and reads nothing meanwhile.
        let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let (one, other) = (root.join("one"), root.join("other"));
        fs::write(&one, "").unwrap();
        for _ in 0..=most.trim().parse::<u32>().unwrap() / 4 {
            fs::rename(&one, &other).unwrap();
            fs::rename(&other, &one).unwrap();
        }
        let unheard = root.join("unheard");
        fs::create_dir(&unheard).unwrap();
        assert!(matches!(word(&words), Word::Changed));
        until_watched(&words);
        // Nothing happened since but this.
        fs::write(unheard.join("file"), "").unwrap();
        assert!(matches!(word(&words), Word::Changed));
    }
}
