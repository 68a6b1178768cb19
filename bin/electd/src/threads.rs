//! What electd's own threads report to its loop.

use crossbeam_channel::{Receiver, Sender, unbounded};
use election::Reservation;
use mio::Waker;
use std::sync::Arc;

/// A report of another thread.
#[derive(Debug)]
pub enum Report {
    /// The reservation was written, or not.
    Reservation(Result<Reservation, String>),
    /// Something about the addresses.
    Takeover(takeover::Event),
}

/// The sending end: wakes the loop.
#[derive(Clone)]
pub struct Reporter {
    reports: Sender<Report>,
    waker: Arc<Waker>,
}

impl Reporter {
    /// A reporter and the loop's end of it.
    pub fn new(waker: Arc<Waker>) -> (Self, Receiver<Report>) {
        let (reports, inbox) = unbounded();
        (Self { reports, waker }, inbox)
    }

    /// Hands a report to the loop.
    pub fn report(&self, report: Report) {
        // The loop is gone only while the process ends.
        if self.reports.send(report).is_ok() {
            let _ = self.waker.wake();
        }
    }
}
