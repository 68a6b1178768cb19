//! How the threads of this crate sleep: until something can be read, a time has come, or another thread wakes them.

use crate::{Error, clock::Timer};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::EventFd,
};
use protocol::BootTime;
use std::{io, os::fd::AsFd, sync::Arc};

/// Whoever holds `waker` wakes it by writing.
pub(crate) struct Sleeper {
    waker: Arc<EventFd>,
    timer: Timer,
    epoll: Epoll,
}

impl Sleeper {
    pub(crate) fn new(waker: Arc<EventFd>) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::kernel("an epoll descriptor")(e);
        let sleeper = Self {
            waker,
            timer: Timer::new()?,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| failed(e.into()))?,
        };
        sleeper.watch(sleeper.waker.as_ref()).map_err(failed)?;
        sleeper.watch(&sleeper.timer).map_err(failed)?;
        Ok(sleeper)
    }

    /// From now on it wakes when this can be read.
    pub(crate) fn watch(&self, source: impl AsFd) -> io::Result<()> {
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        Ok(self.epoll.add(source, readable)?)
    }

    /// Until `due` at the latest; not at all if `busy`.
    pub(crate) fn wait(&self, due: Option<BootTime>, busy: bool) {
        if let Err(e) = self.timer.set(due) {
            log::error!("cannot set the timer: {e}");
        }
        let timeout = if busy {
            EpollTimeout::ZERO
        } else {
            EpollTimeout::NONE
        };
        // Interrupted or not: the round looks at everything.
        let _ = self.epoll.wait(&mut [EpollEvent::empty(); 4], timeout);
        let _ = self.waker.read();
    }
}
