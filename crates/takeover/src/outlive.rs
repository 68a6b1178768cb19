//! Descriptors whose closing takes the kernel long, and must not delay the end of the process.
//!
//! The kernel closes a packet socket, and removes the interface of a tap, only after it has waited until no processor
//! looks at it any more: 10 to 20 ms each. A killed process is gone, and may be replaced, only after that; a handful
//! of them costs a fast lease.

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// As long as the descriptor returned is open, the end of this process closes that one as well as `slow`, but waits for
/// neither: `slow` lies, together with the returned one, in a message to the returned one that nobody reads. What holds
/// only itself the kernel collects, and closes in a thread of its own.
pub(crate) fn outlive(slow: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (from, to) = socketpair(
        AddressFamily::Unix,
        SockType::Datagram,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?;
    let both = [slow.as_raw_fd(), to.as_raw_fd()];
    sendmsg::<()>(
        from.as_raw_fd(),
        &[IoSlice::new(&[0])],
        &[ControlMessage::ScmRights(&both)],
        MsgFlags::empty(),
        None,
    )?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::unistd::{pipe, read};
    use std::{
        os::fd::AsFd,
        time::{Duration, Instant},
    };

    #[test]
    fn what_outlives_is_closed_in_the_end() {
        let (reading, writing) = pipe().unwrap();
        nix::fcntl::fcntl(
            &reading,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .unwrap();
        let kept = outlive(writing.as_fd()).unwrap();
        drop(writing);
        let ended = || read(&reading, &mut [0]) == Ok(0);
        assert!(!ended(), "somebody still holds the writing end");
        drop(kept);
        let limit = Instant::now() + Duration::from_secs(10);
        while !ended() {
            // Any Unix socket closed makes the kernel look.
            drop(std::os::unix::net::UnixDatagram::unbound().unwrap());
            assert!(Instant::now() < limit, "the kernel never closed it");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
