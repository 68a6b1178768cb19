//! How fast the contents of a set go, over all sessions of this process together.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use transfer::Bucket;

/// One for each direction.
struct Buckets {
    sent: Mutex<Bucket>,
    got: Mutex<Bucket>,
}

/// See the module; none: as fast as they can.
#[derive(Clone, Default)]
pub struct Pace(Option<Arc<Buckets>>);

impl Pace {
    /// Of so many bytes per second in each direction.
    pub fn of(rate: Option<config::Rate>) -> Self {
        let bucket = |rate: config::Rate| Mutex::new(Bucket::new(rate.0));
        Self(rate.map(|rate| {
            Arc::new(Buckets {
                sent: bucket(rate),
                got: bucket(rate),
            })
        }))
    }

    /// Sends a piece of this, and waits until more may go.
    pub fn send(
        &self,
        bytes: &[u8],
        send: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let Some(buckets) = &self.0 else {
            return send(bytes);
        };
        let length = bytes.len().min(piece(&buckets.sent));
        let sent = send(&bytes[..length])?;
        pay(&buckets.sent, sent);
        Ok(sent)
    }

    /// Gets a piece, and waits until more may come.
    pub fn get(
        &self,
        into: &mut [u8],
        get: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let Some(buckets) = &self.0 else {
            return get(into);
        };
        let length = into.len().min(piece(&buckets.got));
        let got = get(&mut into[..length])?;
        pay(&buckets.got, got);
        Ok(got)
    }
}

fn piece(bucket: &Mutex<Bucket>) -> usize {
    bucket
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .piece()
}

fn pay(bucket: &Mutex<Bucket>, bytes: usize) {
    let now = daemon::now().0;
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    let wait = bucket.take(now, bytes as u64);
    drop(bucket);
    thread::sleep(Duration::from_nanos(wait));
}
