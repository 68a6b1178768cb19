//! Everything that anybody wrote, and who saw it when replacing it.

use lab::NAMES;
use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub type Contents = blake3::Hash;

/// Something that a user has written.
pub struct Version {
    pub number: usize,
    /// Its path, when it was written.
    pub path: String,
    /// Somebody replaced or removed it who had it.
    pub superseded: bool,
    /// It may not have been in the set at any time: somebody wrote to a file that another took the place of meanwhile.
    pub doubtful: bool,
}

/// Something that a user has done.
pub struct Event {
    pub at: Duration,
    pub server: usize,
    pub what: String,
    pub paths: Vec<String>,
    pub saw: Vec<(String, Contents)>,
    pub wrote: Option<Contents>,
    /// It removed what it saw, and wrote nothing.
    pub removes: bool,
}

#[derive(Default)]
pub struct Known {
    pub versions: HashMap<Contents, Version>,
    pub events: Vec<Event>,
}

pub struct History {
    start: Instant,
    known: Mutex<Known>,
}

impl History {
    pub fn new() -> Self {
        let history = Self {
            start: Instant::now(),
            known: Mutex::default(),
        };
        // A file is empty for a moment when it is overwritten. Nobody misses that.
        history.write(b"", "anywhere");
        history.doubt(&blake3::hash(b""));
        history
    }

    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Before it is written.
    pub fn write(&self, bytes: &[u8], path: &str) -> Contents {
        let hash = blake3::hash(bytes);
        let mut known = self.known();
        let number = known.versions.len();
        known.versions.entry(hash).or_insert_with(|| Version {
            number,
            path: path.to_owned(),
            superseded: false,
            doubtful: false,
        });
        hash
    }

    pub fn doubt(&self, hash: &Contents) {
        if let Some(version) = self.known().versions.get_mut(hash) {
            version.doubtful = true;
        }
    }

    /// After it was done.
    pub fn done(&self, event: Event) {
        let mut known = self.known();
        for (_, hash) in &event.saw {
            if let Some(version) = known.versions.get_mut(hash) {
                version.superseded = true;
            }
        }
        known.events.push(event);
    }

    /// The paths that others than this server have written last, in the last seconds.
    pub fn recent(&self, server: usize) -> BTreeSet<String> {
        const RECENT: Duration = Duration::from_secs(3);
        let since = self.now().saturating_sub(RECENT);
        let known = self.known();
        let events = known.events.iter().rev().take_while(|e| e.at >= since);
        let wrote = events.filter(|e| e.server != server && e.wrote.is_some());
        wrote.flat_map(|e| e.paths.iter().cloned()).collect()
    }

    pub fn is_known(&self, hash: &Contents) -> bool {
        self.known().versions.contains_key(hash)
    }
}

impl Known {
    pub fn name(&self, hash: &Contents) -> String {
        match self.versions.get(hash) {
            Some(version) => format!("v{}", version.number),
            None => format!("?{}", &hash.to_hex()[..12]),
        }
    }

    /// What has to do with these contents or this path, as lines.
    pub fn about(&self, path: &str, hash: Option<&Contents>) -> String {
        let mut text = String::new();
        for event in &self.events {
            let beneath = |p: &String| {
                p == path
                    || path
                        .strip_prefix(p.as_str())
                        .is_some_and(|r| r.starts_with('/'))
            };
            let of = hash.is_some_and(|h| {
                event.wrote.as_ref() == Some(h) || event.saw.iter().any(|(_, s)| s == h)
            });
            if !of && !event.paths.iter().any(beneath) {
                continue;
            }
            let saw: Vec<_> = event
                .saw
                .iter()
                .map(|(p, h)| format!("{p}={}", self.name(h)))
                .collect();
            let wrote = event.wrote.as_ref().map_or("-".into(), |h| self.name(h));
            let (at, server) = (event.at.as_secs_f64(), NAMES[event.server]);
            let what = &event.what;
            let _ = writeln!(
                text,
                "  {at:8.3} {server:<8} {what}; replaced [{}], wrote {wrote}",
                saw.join(" ")
            );
        }
        text
    }
}
