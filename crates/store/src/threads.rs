//! Work for all processors that there are, which is done when the call returns.

use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// With more of them, disks are no faster.
const MOST: usize = 4;
/// Less work than this is done before a thread has begun.
const FEW: usize = 16;

/// What `work` makes of each, in the same order.
pub(crate) fn map<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(MOST).min(all.len() / FEW);
    if threads < 2 {
        return all.into_iter().map(work).collect();
    }
    // Whoever is quicker takes more.
    let share = all.len().div_ceil(4 * threads);
    let mut shares = Vec::new();
    let mut all = all.into_iter().peekable();
    while all.peek().is_some() {
        shares.push(Mutex::new((
            all.by_ref().take(share).collect::<Vec<_>>(),
            Vec::new(),
        )));
    }
    let next = AtomicUsize::new(0);
    let help = || {
        while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut share = share.lock().unwrap_or_else(PoisonError::into_inner);
            let some = std::mem::take(&mut share.0);
            share.1 = some.into_iter().map(&work).collect();
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(help);
        }
        help();
    });
    let done = |share: Mutex<(Vec<T>, Vec<R>)>| {
        share.into_inner().unwrap_or_else(PoisonError::into_inner).1
    };
    shares.into_iter().flat_map(done).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_once_and_stays_in_order() {
        for length in [0, 1, 31, 32, 1000] {
            let count = AtomicUsize::new(0);
            let done = map((0..length).collect(), |n: usize| {
                count.fetch_add(1, Ordering::Relaxed);
                2 * n
            });
            assert_eq!(done, (0..length).map(|n| 2 * n).collect::<Vec<_>>());
            assert_eq!(count.into_inner(), length);
        }
    }
}
