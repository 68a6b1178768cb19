//! What one run measures, and the waiting around it.

use crate::subject::{SERVERS, Subject};
use lab::{Error, Net, Outage, Verdict};
use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The figures of one run, by row of the table, each with its unit in the row's name.
pub type Figures = Vec<(&'static str, f64)>;

/// In milliseconds.
pub fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Measures from its making to its end.
pub struct Watch {
    client: usize,
    judge: usize,
}

impl Watch {
    pub fn start(net: &Net) -> Self {
        Self {
            client: net.client(0).mark(),
            judge: net.judge().mark(),
        }
    }

    pub fn end(&self, net: &Net) -> (Outage, Verdict) {
        (
            net.client(0).since(self.client),
            net.judge().since(self.judge, 0),
        )
    }
}

/// Waits until another server holds the address and clients are served again, then a little longer.
pub fn wait_over(subject: &Subject, old: usize) -> Result<(), Error> {
    let net = subject.net();
    lab::wait_for("another server takes over", Duration::from_secs(60), || {
        let moved = net.judge().holders(0).iter().any(|h| *h != old);
        (moved && net.client(0).silence() < Duration::from_millis(20)).then_some(())
    })?;
    thread::sleep(Duration::from_millis(500));
    Ok(())
}

/// Any moment within a beat.
pub fn jitter() {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    thread::sleep(Duration::from_micros(
        u64::from(nanos / 1000 % 997) * 1009 / 10,
    ));
}

/// The server after this one.
pub fn next(server: usize) -> usize {
    (server + 1) % SERVERS
}
