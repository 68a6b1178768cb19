//! The log: one line on stderr per event, `electd[alpha]: info: text`.
//!
//! Until a daemon is ready its lines are written at once, or not at all if that would have to wait. From then on a
//! thread writes them, behind a bounded queue: a stopped terminal, a full pipe or a dead journal costs lines, never a
//! heartbeat, and keeps no restarted daemon from its work.

use crate::run_dir;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Lines that wait for a slow reader.
const QUEUE_MAX: usize = 1024;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Names the file that stderr is, so that it can be opened anew: set by whoever started the daemon.
pub const FILE: &str = "STANDIN_LOG_FILE";

static NAME: Mutex<String> = Mutex::new(String::new());
static QUEUE: OnceLock<Sender<Line>> = OnceLock::new();
static LOST: AtomicU64 = AtomicU64::new(0);

enum Line {
    Text(Vec<u8>),
    Flush(Sender<()>),
}

/// Begins logging; level from `RUST_LOG`, else info.
pub(crate) fn start(role: &str) {
    set_name(role.to_owned());
    // The journal stamps each line itself, and takes its priority from the head of it (sd-daemon(3)).
    let journal = is_journal();
    let format = move |out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>| {
        if journal {
            write!(out, "<{}>", priority(record.level()))?;
        } else {
            write!(out, "{} ", out.timestamp_millis())?;
        }
        let name = NAME.lock().unwrap_or_else(PoisonError::into_inner);
        let level = record.level().as_str().to_ascii_lowercase();
        writeln!(out, "{}: {level}: {}", *name, record.args())
    };
    let env = env_logger::Env::default().default_filter_or("info");
    let target = env_logger::Target::Pipe(Box::new(Stderr));
    // A second start in one process (tests) keeps the first.
    let _ = env_logger::Builder::from_env(env)
        .format(format)
        .target(target)
        .try_init();
    // The usual words of a panic would be written whatever that takes.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
}

/// Whether stderr is the journal's: `JOURNAL_STREAM` is inherited by those whose output goes elsewhere, too.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = nix::sys::stat::fstat(io::stderr());
    stderr.is_ok_and(|s| stream == format!("{}:{}", s.st_dev, s.st_ino).as_str())
}

/// As syslog(3) counts.
fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

/// Opens the log file anew, for it may have been renamed.
pub(crate) fn reopen() {
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let opened = open_file(Path::new(&path)).and_then(|file| {
        nix::unistd::dup2_stdout(&file)?;
        Ok(nix::unistd::dup2_stderr(&file)?)
    });
    if let Err(e) = opened {
        log::warn!(
            "cannot open the log {} anew: {e}; the file that was open goes on",
            Path::new(&path).display()
        );
    }
}

/// Opens the log file, or makes it. The daemons without privileges may append to it, so that they can open it anew.
pub fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o640).open(path)?;
    if let Some(group) = run_dir::group() {
        // Elsewhere they go on with the file that they have.
        let _ = nix::unistd::fchown(&file, None, Some(group))
            .map_err(io::Error::from)
            .and_then(|()| file.set_permissions(Permissions::from_mode(0o660)));
    }
    Ok(file)
}

/// The name at the head of each line.
pub(crate) fn set_name(name: String) {
    *NAME.lock().unwrap_or_else(PoisonError::into_inner) = name;
}

/// From now on a thread of its own writes the lines. Called after privileges are dropped, so that the
/// thread has none either.
pub(crate) fn detach() {
    let (sender, receiver) = bounded(QUEUE_MAX);
    let started = thread::Builder::new()
        .name("log".into())
        .spawn(move || write_lines(&receiver));
    if started.is_ok() {
        // Only the first queue counts; a second thread ends with its sender.
        let _ = QUEUE.set(sender);
    }
}

/// Waits, for a limited time, until everything logged so far is written.
pub(crate) fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let (sender, receiver) = bounded(1);
    if queue
        .send_timeout(Line::Flush(sender), FLUSH_TIMEOUT)
        .is_ok()
    {
        let _ = receiver.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Lines lost because nobody read the log.
pub(crate) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

fn write_lines(lines: &Receiver<Line>) {
    for line in lines {
        match line {
            Line::Text(text) => {
                let _ = io::stderr().write_all(&text);
            }
            Line::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Whether stderr takes a line without a wait.
fn writable() -> bool {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match QUEUE.get() {
            None if writable() => io::stderr().write_all(text)?,
            None => drop(LOST.fetch_add(1, Ordering::Relaxed)),
            Some(queue) => match queue.try_send(Line::Text(text.to_vec())) {
                Ok(()) => {}
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            },
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_must_act_upon_stands_out_in_the_journal() {
        use log::Level::{Debug, Error, Info, Warn};
        assert_eq!([Error, Warn, Info, Debug].map(priority), [3, 4, 6, 7]);
    }
}
