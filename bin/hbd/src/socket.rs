//! One UDP socket per address of this server, with the kernel's time of arrival on every datagram.

use mio::net::UdpSocket;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
        recvmsg, setsockopt, socket, sockopt,
    },
    sys::time::TimeSpec,
};
use std::{
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

/// Room for bursts: some thousand beats, so that a stalled hbd loses none.
const RECEIVE_BUFFER: usize = 1024 * 1024;

/// Network control, as routing protocols are marked: CS6 (RFC 2474, RFC 4594).
const TRAFFIC_CLASS: i32 = 0xc0;

/// A bound socket.
#[derive(Debug)]
pub struct Socket {
    inner: UdpSocket,
}

/// One datagram read.
#[derive(Debug)]
pub struct Datagram {
    /// Its bytes in the buffer.
    pub length: usize,
    /// It was longer than the buffer.
    pub cut: bool,
    /// The sender's address.
    pub source: IpAddr,
    /// When the kernel received it: CLOCK_REALTIME in nanoseconds since 1970.
    pub received_ns: Option<u64>,
}

impl Socket {
    /// Binds to `address`, even while the system does not have it (interface down, IPv6 still tentative):
    /// whatever arrives for it will be received, and sending works as soon as the address is there. The
    /// port is not shared: no SO_REUSEADDR, so that no other process can take our beats away.
    pub fn open(address: IpAddr, port: u16) -> Result<Self, Errno> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        // Only a favour asked of the network: no error if it is not granted.
        let _ = match address {
            IpAddr::V4(_) => setsockopt(&fd, sockopt::Ipv4Tos, &TRAFFIC_CLASS),
            IpAddr::V6(_) => setsockopt(&fd, sockopt::Ipv6TClass, &TRAFFIC_CLASS),
        };
        bind(
            fd.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(address, port)),
        )?;
        Ok(Self {
            inner: UdpSocket::from_std(std::net::UdpSocket::from(fd)),
        })
    }

    /// Sends one datagram or fails at once.
    pub fn send(&self, bytes: &[u8], to: SocketAddr) -> Result<(), Errno> {
        let sent = self.inner.send_to(bytes, to);
        sent.map(drop)
            .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// Reads one datagram into `buffer`; `EAGAIN` if none is there.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Datagram, Errno> {
        let mut control = nix::cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.inner.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let stamp = message
            .cmsgs()
            .ok()
            .and_then(|mut all| all.find_map(timestamp));
        let from = message.address.as_ref();
        let v4 = from
            .and_then(SockaddrStorage::as_sockaddr_in)
            .map(|a| IpAddr::V4(a.ip()));
        let v6 = from
            .and_then(SockaddrStorage::as_sockaddr_in6)
            .map(|a| IpAddr::V6(a.ip()));
        Ok(Datagram {
            length: message.bytes,
            cut: message.flags.contains(MsgFlags::MSG_TRUNC),
            source: v4.or(v6).ok_or(Errno::EAFNOSUPPORT)?,
            received_ns: stamp,
        })
    }

    /// For the event loop.
    pub fn source(&mut self) -> &mut UdpSocket {
        &mut self.inner
    }
}

fn timestamp(message: ControlMessageOwned) -> Option<u64> {
    let ControlMessageOwned::ScmTimestampns(time) = message else {
        return None;
    };
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(u64::try_from(time.tv_nsec()).ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn receive(socket: &Socket, buffer: &mut [u8]) -> Datagram {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match socket.receive(buffer) {
                Ok(datagram) => return datagram,
                Err(e) => assert!(e == Errno::EAGAIN && Instant::now() < end, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn datagrams_come_with_source_and_time_and_long_ones_are_marked() {
        let a = Socket::open(HOME, 0).unwrap();
        let to = a.inner.local_addr().unwrap();
        let b = Socket::open(HOME, 0).unwrap();
        let before = daemon::real_now_ns();
        b.send(b"beat", to).unwrap();
        b.send(&[7; 100], to).unwrap();
        let mut buffer = [0; 50];
        let short = receive(&a, &mut buffer);
        assert_eq!(
            (&buffer[..short.length], short.cut, short.source),
            (&b"beat"[..], false, HOME)
        );
        let stamp = short.received_ns.unwrap();
        assert!(before <= stamp && stamp <= daemon::real_now_ns());
        assert!(receive(&a, &mut buffer).cut);
        assert_eq!(a.receive(&mut buffer).unwrap_err(), Errno::EAGAIN);
    }

    #[test]
    fn the_port_is_not_shared() {
        let a = Socket::open(HOME, 0).unwrap();
        let port = a.inner.local_addr().unwrap().port();
        assert_eq!(Socket::open(HOME, port).unwrap_err(), Errno::EADDRINUSE);
    }

    #[test]
    fn an_address_not_there_yet_is_bound_and_only_sending_fails() {
        let away = Socket::open("192.0.2.1".parse().unwrap(), 0).unwrap();
        let to = SocketAddr::new(HOME, 9);
        assert!(away.send(b"beat", to).is_err());
        // The error of sending does not disturb receiving.
        assert_eq!(away.receive(&mut [0; 9]).unwrap_err(), Errno::EAGAIN);
    }

    #[test]
    fn nobody_listening_at_the_peer_disturbs_nothing() {
        let a = Socket::open(HOME, 0).unwrap();
        let deaf = Socket::open(HOME, 0).unwrap().inner.local_addr().unwrap();
        for _ in 0..10 {
            a.send(b"beat", deaf).unwrap();
            assert_eq!(a.receive(&mut [0; 9]).unwrap_err(), Errno::EAGAIN);
        }
    }
}
