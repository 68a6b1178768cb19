//! Work for two processors, and the room they need for it.

use std::{io, thread};

/// A buffer for each; what has grown once is not made again.
#[derive(Default)]
pub(crate) struct Halves([Vec<u8>; 2]);

impl Halves {
    /// What comes of each, in order. Two copy twice as much in the same time; more wait for the same memory.
    pub(crate) fn each<T: Sync, R: Send>(
        &mut self,
        all: &[T],
        work: impl Fn(&T, &mut Vec<u8>) -> io::Result<R> + Sync,
    ) -> io::Result<Vec<R>> {
        let Self([buffer, other]) = self;
        let (some, others) = all.split_at(all.len() / 2);
        let work = |some: &[T], buffer: &mut Vec<u8>| -> io::Result<Vec<R>> {
            some.iter().map(|one| work(one, buffer)).collect()
        };
        if some.is_empty() {
            return work(others, other); // for one alone no thread is begun
        }
        thread::scope(|scope| {
            let others = scope.spawn(|| work(others, other));
            let mut done = work(some, buffer)?;
            let died = |_| Err(io::Error::other("the thread that copies died"));
            done.append(&mut others.join().unwrap_or_else(died)?);
            Ok(done)
        })
    }
}
