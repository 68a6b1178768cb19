//! The service behind the virtual address: tells who answered, and when.

use crate::{Error, net::Host, pace};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// UDP port of the service.
pub(crate) const PORT: u16 = 7;
/// Precedence of the lab's own threads: above the daemons, below the stall meter.
pub(crate) const PRECEDENCE: i32 = 98;

/// A request: number and time of sending, handed back as they came.
pub(crate) fn request(number: u64, sent: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&sent.to_le_bytes());
    bytes
}

/// What an answer says.
pub(crate) struct Answer {
    pub number: u64,
    /// When the server handled it.
    pub handled: u64,
    /// Which server, counted from 0.
    pub server: u8,
}

/// Reads an answer; none if it is something else.
pub(crate) fn answer(bytes: &[u8]) -> Option<Answer> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some(Answer {
        number: word(0)?,
        handled: word(16)?,
        server: *bytes.get(24)?,
    })
}

/// Binds to an address that the host does not have yet, so that answers come from it once it has.
fn open(address: IpAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    match SocketAddr::new(address, PORT) {
        SocketAddr::V4(v4) => bind(fd.as_raw_fd(), &SockaddrIn::from(v4))?,
        SocketAddr::V6(v6) => bind(fd.as_raw_fd(), &SockaddrIn6::from(v6))?,
    }
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

/// Answers on `host`, which is server number `server`, whatever reaches one of `addresses`.
pub(crate) fn serve(
    host: &Host,
    server: u8,
    addresses: &[IpAddr],
    stop: &Arc<AtomicBool>,
) -> Result<(), Error> {
    for address in addresses {
        let address = *address;
        let socket = host
            .run(|| open(address))?
            .map_err(Error::system(format!("echo service at {address}")))?;
        let stop = Arc::clone(stop);
        host.thread("echo", move || {
            let _ = daemon::sys::scheduler_fifo(PRECEDENCE);
            let mut bytes = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                // Errors are those of a network that is being broken on purpose.
                let Ok((16, from)) = socket.recv_from(&mut bytes) else {
                    continue;
                };
                bytes[16..24].copy_from_slice(&pace::now().to_le_bytes());
                bytes[24] = server;
                let _ = socket.send_to(&bytes[..25], from);
            }
        })?;
    }
    Ok(())
}
