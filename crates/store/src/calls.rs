//! Every call that changes something on a disk is counted here first, so that a test can end a run after each.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The calls that a run may still make.
#[derive(Debug)]
pub struct Calls {
    left: AtomicU64,
    /// What was called, if anybody wants to know.
    made: Option<Mutex<Vec<&'static str>>>,
}

impl Calls {
    /// As many as it needs.
    pub fn unlimited() -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(u64::MAX),
            made: None,
        })
    }

    /// So many, and every further one fails as if the process were dead; what was called is kept.
    pub fn only(most: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(most),
            made: Some(Mutex::default()),
        })
    }

    /// What was called, in order, if it is limited.
    pub fn made(&self) -> Vec<&'static str> {
        let made = self.made.as_ref().map(Mutex::lock);
        made.map(|m| m.unwrap_or_else(PoisonError::into_inner).clone())
            .unwrap_or_default()
    }

    /// Before each call.
    pub(crate) fn one(&self, what: &'static str) -> io::Result<()> {
        let Some(made) = &self.made else {
            return Ok(());
        };
        let less = |left: u64| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .map_err(|_| io::Error::other("cut off"))?;
        made.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
        Ok(())
    }
}
