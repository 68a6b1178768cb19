//! CLOCK_BOOTTIME, and a timer on it.

use crate::Error;
use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::clock_gettime,
};
use protocol::BootTime;
use std::os::fd::{AsFd, BorrowedFd};

/// Now.
pub(crate) fn now() -> BootTime {
    // The call cannot fail: Linux has had this clock since 2.6.39. Were it to, "late" is the safe answer.
    clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(BootTime(u64::MAX), |t| {
        BootTime(
            (t.tv_sec() as u64)
                .saturating_mul(1_000_000_000)
                .saturating_add(t.tv_nsec() as u64),
        )
    })
}

/// A descriptor that becomes readable at an absolute time.
#[derive(Debug)]
pub(crate) struct Timer(TimerFd);

impl Timer {
    pub(crate) fn new() -> Result<Self, Error> {
        TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .map(Self)
        .map_err(|e| Error::kernel("a timer on the boot-time clock")(e.into()))
    }

    /// Sets it; a time that is past makes it readable at once. Setting it makes it unreadable till then.
    pub(crate) fn set(&self, at: Option<BootTime>) -> nix::Result<()> {
        let Some(BootTime(at)) = at else {
            return self.0.unset();
        };
        let at = TimeSpec::new(
            (at / 1_000_000_000) as i64,
            (at.max(1) % 1_000_000_000) as i64,
        );
        self.0.set(
            Expiration::OneShot(at),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME,
        )
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
