//! TCP sockets as the links need them.

use mio::net::{TcpListener, TcpStream};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt,
    },
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

/// Begins to connect to `to`. The source is one of this server's listed addresses and never a virtual one,
/// which the kernel might choose and the peer would turn away.
pub fn dial(from: IpAddr, to: SocketAddr, user_timeout: Duration) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    prepare(&socket, user_timeout)?;
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from_std(socket.into())),
        Err(e) => Err(e.into()),
    }
}

/// Takes the next connection, `None` if there is none.
pub fn accept(
    listener: &TcpListener,
    user_timeout: Duration,
) -> io::Result<Option<(TcpStream, IpAddr)>> {
    loop {
        return match listener.accept() {
            Ok((stream, source)) => {
                prepare(&stream, user_timeout)?;
                Ok(Some((stream, source.ip())))
            }
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                _ => Err(e),
            },
        };
    }
}

/// Whether a connection that was begun is made; `None` while it is not decided.
pub fn finished(stream: &TcpStream) -> Option<io::Result<()>> {
    if let Some(e) = stream.take_error().unwrap_or_else(Some) {
        return Some(Err(e));
    }
    match stream.peer_addr() {
        Ok(_) => Some(Ok(())),
        Err(e) if e.kind() == io::ErrorKind::NotConnected => None,
        Err(e) => Some(Err(e)),
    }
}

/// Signals leave at once, and what is not acknowledged for so long ends the connection.
fn prepare(socket: &impl AsFd, user_timeout: Duration) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    let millis = u32::try_from(user_timeout.as_millis()).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpUserTimeout, &millis)?;
    Ok(())
}
