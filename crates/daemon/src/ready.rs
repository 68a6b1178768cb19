//! "I serve now", or "I wait for an address", said to a service manager that asked to be told (sd_notify(3)).

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr, net::UnixDatagram},
    },
};

/// Tells the service manager behind `$NOTIFY_SOCKET`, if there is one, that it need not wait, and what is being done.
pub(crate) fn notify(status: &str) -> io::Result<()> {
    tell(format!("READY=1\nSTATUS={status}").as_bytes())
}

/// Tells the service manager that the event loop turns, if it wants to know (WatchdogSec=).
pub fn watchdog() -> io::Result<()> {
    match std::env::var_os("WATCHDOG_USEC") {
        Some(_) => tell(b"WATCHDOG=1"),
        None => Ok(()),
    }
}

fn tell(message: &[u8]) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(address) if !address.is_empty() => send(&address, message),
        _ => Ok(()),
    }
}

fn send(address: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_service_manager_hears_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), b"READY=1").unwrap();
        let mut buffer = [0; 16];
        let n = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1");
    }
}
