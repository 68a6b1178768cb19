//! Follows how fresh the files are while the daemon runs: all that counts is looked at once, and then glimpsed at, for a
//! disk may go at any moment.

use crate::fresh;
use config::Config;
use daemon::Args;
use protocol::{ServerName, wire::beat::Freshness};
use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// A unit that is gone is noticed after so long.
const GLIMPSE: Duration = Duration::from_secs(5);
/// What is in doubt is looked at so often.
const LOOK: Duration = Duration::from_secs(60);

/// A thread of its own, which may hang together with a disk; it ends when this is dropped.
pub struct Follow(Sender<Option<Arc<Config>>>);

impl Follow {
    /// Something may be fresher.
    pub fn now(&self) {
        // A thread that died was told of when it did.
        let _ = self.0.send(None);
    }

    /// Other sets may count; all are looked at anew.
    pub fn config(&self, config: Arc<Config>) {
        let _ = self.0.send(Some(config));
    }
}

/// Tells whenever it is another one, how fresh the files are, or why they count for nothing.
pub fn begin(
    config: Arc<Config>,
    me: ServerName,
    args: Args,
    tell: impl Fn(Result<Freshness, String>) + Send + 'static,
) -> io::Result<Follow> {
    let (sender, words) = channel();
    let follow = move || follow(config, &me, &args, &words, tell);
    thread::Builder::new().name("fresh".into()).spawn(follow)?;
    Ok(Follow(sender))
}

fn follow(
    mut config: Arc<Config>,
    me: &ServerName,
    args: &Args,
    words: &Receiver<Option<Arc<Config>>>,
    tell: impl Fn(Result<Freshness, String>),
) {
    let mut looked: Option<Instant> = None;
    let mut told = None;
    loop {
        let mut now = fresh::now(&config, me, args);
        if looked.is_none_or(|at| now.is_err() && at.elapsed() >= LOOK) {
            fresh::look(&config, me, args, looked.is_none());
            looked = Some(Instant::now());
            now = fresh::now(&config, me, args);
        }
        if told.as_ref() != Some(&now) {
            tell(now.clone());
            told = Some(now);
        }
        match words.recv_timeout(GLIMPSE) {
            Ok(Some(new)) => (config, looked) = (new, None),
            Ok(None) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
