//! Reads all files of a set when its `scrub` says so, a few at a time, and tells which of them have other contents without
//! a trace. Runs go on meanwhile: a set is held only while its index is read.

use crate::{
    replica::{Allowed, BUSY, Local},
    units::{self, Unit},
};
use config::Config;
use daemon::{Args, durable, machine};
use protocol::{ServerName, codec};
use std::{
    collections::BTreeMap,
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use store::Verified;

/// In `<state-dir>/sync`: up to which moment each set was scrubbed when that was due, in seconds since 1970.
const MEMORY: &str = "scrubbed";
/// So many paths are taken from the index at once,
const PAGE: usize = 1024;
/// and so many of them read at once: by one thread.
const TOGETHER: usize = 16;
/// So often the clock is looked at,
const CLOCK: Duration = Duration::from_secs(30);
/// and whether a run has let go of a set.
const AGAIN: Duration = Duration::from_secs(2);

/// The thread; it ends with this, once it has read what it is at.
pub struct Scrub {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Drop for Scrub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }
}

/// Begins. Of each set that was scrubbed, `tell` is told what is wrong with it, or that nothing is.
pub fn begin(
    config: Arc<Config>,
    me: ServerName,
    args: Args,
    tell: impl Fn(ServerName, Option<String>) + Send + 'static,
) -> io::Result<Scrub> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let work = move || {
        let mut scrubber = Scrubber {
            seen: remembered(&args),
            config,
            me,
            args,
            stop: stopped,
        };
        while !scrubber.stopped() {
            for (set, at) in scrubber.due() {
                let wrong = scrubber.set(&set);
                if scrubber.stopped() {
                    return; // the next one begins anew
                }
                tell(set.clone(), wrong);
                scrubber.seen.insert(set, at);
                scrubber.remember();
            }
            thread::park_timeout(CLOCK);
        }
    };
    let thread = thread::Builder::new().name("scrub".into()).spawn(work)?;
    Ok(Scrub { stop, thread })
}

/// Up to when each set was scrubbed.
type Seen = BTreeMap<ServerName, u64>;

fn remembered(args: &Args) -> Seen {
    let file = args.state_dir.join("sync").join(MEMORY);
    let read = fs::read(file).ok();
    // Who remembers nothing begins now.
    read.and_then(|bytes| codec::decode_record(&bytes).ok())
        .unwrap_or_default()
}

struct Scrubber {
    config: Arc<Config>,
    me: ServerName,
    args: Args,
    stop: Arc<AtomicBool>,
    seen: Seen,
}

impl Scrubber {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The sets whose moment has come since they were last scrubbed, and what time it is.
    fn due(&mut self) -> Vec<(ServerName, u64)> {
        let now = daemon::real_now_ns() / 1_000_000_000;
        let mut due = Vec::new();
        for set in &self.config.sets {
            let Some(cron) = &set.scrub else {
                continue;
            };
            let seen = self.seen.entry(set.name.clone()).or_insert(now);
            *seen = now.min(*seen); // the clock may have been ahead
            let next = cron.next(seen.cast_signed(), &daemon::sys::local_offset);
            if next.is_some_and(|next| next <= now.cast_signed()) {
                due.push((set.name.clone(), now));
            }
        }
        due
    }

    fn remember(&self) {
        let bytes = codec::encode_record(&self.seen).map_err(|e| e.to_string());
        let folder = self.args.state_dir.join("sync");
        let written = bytes
            .and_then(|bytes| durable::write(&folder, MEMORY, &bytes).map_err(|e| e.to_string()));
        written
            .unwrap_or_else(|why| log::warn!("that a set was scrubbed is not remembered: {why}"));
    }

    /// Scrubs a set; what is wrong with it.
    fn set(&self, set: &ServerName) -> Option<String> {
        log::info!("scrub of {set} begins");
        let mut verified = Verified::default();
        for unit in units::of(&self.config, &self.args, |s| s.name == *set) {
            if let Err(why) = self.unit(&unit, &mut verified) {
                let why = format!("scrub of {}: {why}", unit.name);
                log::error!("{why}");
                return Some(why);
            }
        }
        let Verified {
            read,
            altered,
            unreadable,
        } = &verified;
        for (what, list) in [("altered", altered), ("cannot be read", unreadable)] {
            for (path, why) in &list.first {
                log::warn!("scrub of {set}: {what}: {path}: {why}");
            }
        }
        log::info!(
            "scrub of {set} ends: {read} files read, {} altered, {} cannot be read",
            altered.count,
            unreadable.count
        );
        let first = altered.first.iter().chain(&unreadable.first).next()?;
        Some(format!(
            "scrub of {set}: {} files altered without a trace, {} cannot be read; the first is {}, the log names them",
            altered.count, unreadable.count, first.0
        ))
    }

    fn unit(&self, unit: &Unit, verified: &mut Verified) -> Result<(), String> {
        let here = machine::present(&self.config, &self.me);
        let mut last = None;
        while !self.stopped() {
            let local = match Local::prepare(unit.clone(), &here, &self.args, Allowed::default()) {
                Err(why) if why == BUSY => {
                    thread::park_timeout(AGAIN);
                    continue;
                }
                other => other?,
            };
            let rows = local.index.reader();
            let rows = rows.and_then(|index| index.after(last.as_ref(), PAGE));
            let mut rows = rows.map_err(|e| e.to_string())?;
            let Local { set, index, .. } = local;
            drop(index);
            let Some((path, _)) = rows.last() else {
                return Ok(());
            };
            last = Some(path.clone());
            while !rows.is_empty() && !self.stopped() {
                let few = rows.drain(..TOGETHER.min(rows.len())).collect();
                verified.join(store::verify(set.dir(), few));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    fn scrubber(dir: &Path, seen: Seen) -> Scrubber {
        let data = dir.join("data");
        fs::create_dir_all(&data).unwrap();
        let text = format!(
            r#"
[cluster]
name = "web"
quorum = "none"
[[server]]
name = "alpha"
address = "192.0.2.11"
host_key = "ssh-ed25519 AAAA"
[[server]]
name = "beta"
address = "192.0.2.12"
host_key = "ssh-ed25519 AAAA"
[[sync]]
name = "data"
path = ["{}"]
scrub = "cron: 0 * * * *"
[[sync]]
name = "other"
path = ["/nowhere"]
"#,
            data.display()
        );
        let file = dir.join("standin.toml");
        let path = |name: &str| dir.join(name);
        Scrubber {
            config: Arc::new(config::parse(&text, &file).unwrap()),
            me: "alpha".parse().unwrap(),
            args: Args {
                config: file,
                run_dir: path("run"),
                state_dir: path("state"),
                server: None,
            },
            stop: Arc::default(),
            seen,
        }
    }

    #[test]
    fn a_set_is_scrubbed_when_its_moment_came_also_while_nobody_ran() {
        let dir = tempfile::tempdir().unwrap();
        let name: ServerName = "data".parse().unwrap();
        let now = daemon::real_now_ns() / 1_000_000_000;
        let due = |seen: Seen| {
            let mut scrubber = scrubber(dir.path(), seen);
            let due: Vec<_> = scrubber.due().into_iter().map(|(set, _)| set).collect();
            (due, scrubber.seen[&name] <= now + 60)
        };
        assert_eq!(due(Seen::new()), (vec![], true), "it begins now");
        let two_hours = [(name.clone(), now - 7200)];
        assert_eq!(due(two_hours.into()), (vec![name.clone()], true));
        let ahead = [(name.clone(), now + 999_999)];
        assert_eq!(due(ahead.into()), (vec![], true), "a clock that was ahead");
    }

    #[test]
    fn all_files_are_read_and_what_is_wrong_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let scrubber = scrubber(dir.path(), Seen::new());
        let (set, data) = ("data".parse().unwrap(), dir.path().join("data"));
        fs::create_dir_all(scrubber.args.state_dir.join("sync")).unwrap();
        fs::create_dir_all(scrubber.args.run_dir.join("sync")).unwrap();
        for n in 0..40 {
            fs::write(data.join(n.to_string()), "contents").unwrap();
        }
        let units = units::of(&scrubber.config, &scrubber.args, |s| s.name == set);
        let here = machine::present(&scrubber.config, &scrubber.me);
        let open = || Local::open(units[0].clone(), &here, &scrubber.args, Allowed::default());
        drop(open().unwrap());
        assert_eq!(scrubber.set(&set), None);
        let local = open().unwrap();
        let path = filesync::Path::try_from(b"7".to_vec()).unwrap();
        let mut row = local.index.row(&path).unwrap().unwrap();
        row.entry.node.as_mut().unwrap().kind = filesync::Kind::File {
            size: 8,
            digest: filesync::Digest([7; 32]),
        };
        let write = |batch: &mut store::Batch<'_>| batch.note(&path, &row.entry, row.proof, 9);
        local.index.write(write).unwrap();
        drop(local);
        let wrong = scrubber.set(&set).unwrap();
        assert!(
            wrong.contains("1 files altered") && wrong.contains("the first is 7"),
            "{wrong}"
        );
        let gone = dir.path().join("gone");
        fs::rename(&data, gone).unwrap();
        assert!(scrubber.set(&set).unwrap().contains("scrub of data"));
    }
}
