//! One electd per server: an abstract socket that the kernel gives back when the process is gone (R8).

use daemon::{Boot, Error};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket},
};
use std::os::fd::{AsRawFd, OwnedFd};

/// Held for life.
pub struct InstanceLock {
    _socket: OwnedFd,
}

/// Takes the lock `standin-electd/<cluster>/<server>`.
pub fn acquire(boot: &Boot) -> Result<InstanceLock, Error> {
    let name = format!("standin-electd/{}/{}", boot.config.cluster.name, boot.me);
    let failed = |e: Errno| Error::io(format!("cannot take the instance lock @{name}"), e);
    let address = UnixAddr::new_abstract(name.as_bytes()).map_err(failed)?;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    match bind(socket.as_raw_fd(), &address) {
        Ok(()) => Ok(InstanceLock { _socket: socket }),
        Err(Errno::EADDRINUSE) => Err(Error::Failed(format!(
            "another electd of server {} runs already (it holds @{name}); stop it first",
            boot.me
        ))),
        Err(e) => Err(failed(e)),
    }
}
