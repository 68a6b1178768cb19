//! UDP sockets, with the kernel's time of arrival on every datagram.
//!
//! Each address of this server has one socket that anybody reaches, and beside it one for each address of a peer,
//! connected to it. The kernel gives what comes from there to that socket and its buffer alone, so whatever fills
//! another's buffer, be it a stranger's flood or one in another peer's name, hides no beat of this peer.

use mio::net::UdpSocket;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage,
        TimestampingFlag, Timestamps, bind, connect, getsockopt, recvmsg, setsockopt, socket,
        sockopt,
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
    /// Datagrams that found the socket's buffer full so far, where there were any.
    pub overflowed: Option<u32>,
}

impl Socket {
    /// Binds to `address`, even while the system does not have it (interface down, IPv6 still tentative):
    /// whatever arrives for it will be received, and sending works as soon as the address is there. The
    /// port is not shared: no SO_REUSEADDR, so that no other process can take our beats away.
    pub fn open(address: IpAddr, port: u16) -> Result<Self, Errno> {
        Self::bound(address, port, false)
    }

    /// A socket that gets all that comes from `peer` to `address`, both at `port`. `others` are this process'
    /// sockets there; the port is shared with them alone, and only for this moment.
    pub fn open_for<'a>(
        peer: IpAddr,
        address: IpAddr,
        port: u16,
        others: impl Iterator<Item = &'a Self> + Clone,
    ) -> Result<Self, Errno> {
        let share = |shared: bool| {
            let mut sockets = others.clone();
            sockets.try_for_each(|s| setsockopt(&s.inner, sockopt::ReuseAddr, &shared))
        };
        let opened = share(true).and_then(|()| Self::bound(address, port, true));
        let connected = opened.and_then(|socket| {
            let remote = SockaddrStorage::from(SocketAddr::new(peer, port));
            connect(socket.inner.as_raw_fd(), &remote)?;
            setsockopt(&socket.inner, sockopt::ReuseAddr, &false)?;
            Ok(socket)
        });
        share(false).and(connected)
    }

    fn bound(address: IpAddr, port: u16, shared: bool) -> Result<Self, Errno> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
        setsockopt(&fd, sockopt::ReuseAddr, &shared)?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        // When what is sent really leaves is a favour, too. Without OPT_TSONLY the whole packet comes with it: whoever sent
        // it knows it again for certain, and a count of packets might slip.
        let leaving = TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE
            | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
        let _ = setsockopt(&fd, sockopt::Timestamping, &leaving);
        setsockopt(&fd, sockopt::RxqOvfl, &1)?;
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
        let mut control = nix::cmsg_space!(TimeSpec, Timestamps, u32);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.inner.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let (mut stamp, mut overflowed) = (None, None);
        for control in message.cmsgs().into_iter().flatten() {
            match control {
                ControlMessageOwned::RxqOvfl(count) => overflowed = Some(count),
                other => stamp = stamp.or(timestamp(other)),
            }
        }
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
            overflowed,
        })
    }

    /// A packet that was sent and has left since, with all its headers: when the kernel gave it to the network, by
    /// CLOCK_REALTIME in nanoseconds since 1970, and its length in `buffer`. None: no other has, or it is not told.
    pub fn left(&self, buffer: &mut [u8]) -> Option<(u64, usize)> {
        let mut control = nix::cmsg_space!(
            TimeSpec,
            Timestamps,
            nix::libc::sock_extended_err,
            nix::libc::sockaddr_in6
        );
        loop {
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE;
            let fd = self.inner.as_raw_fd();
            let message =
                recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags).ok()?;
            let stamps = message.cmsgs().into_iter().flatten().find_map(|c| match c {
                ControlMessageOwned::ScmTimestampsns(stamps) => nanoseconds(stamps.system),
                _ => None,
            });
            // Others wait behind one that says nothing.
            if let Some(at) = stamps.filter(|_| !message.flags.contains(MsgFlags::MSG_TRUNC)) {
                return Some((at, message.bytes));
            }
        }
    }

    /// Longest packet that reaches the peer of a connected socket uncut, as far as the kernel knows. Of IPv6 it is not asked:
    /// each of its links carries more than any part of a beat.
    pub fn mtu(&self) -> Option<u32> {
        let mtu = getsockopt(&self.inner, sockopt::IpMtu).ok()?;
        u32::try_from(mtu).ok()
    }

    /// For the event loop.
    pub fn source(&mut self) -> &mut UdpSocket {
        &mut self.inner
    }
}

fn timestamp(message: ControlMessageOwned) -> Option<u64> {
    match message {
        ControlMessageOwned::ScmTimestampns(time) => nanoseconds(time),
        _ => None,
    }
}

fn nanoseconds(time: TimeSpec) -> Option<u64> {
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
    fn when_a_packet_left_is_told_with_the_packet() {
        for home in [HOME, "::1".parse().unwrap()] {
            let a = Socket::open(home, 0).unwrap();
            let to = a.inner.local_addr().unwrap();
            let b = Socket::open(home, 0).unwrap();
            let mut buffer = [0; 200];
            assert_eq!(b.left(&mut buffer), None);
            let before = daemon::real_now_ns();
            b.send(b"beat", to).unwrap();
            b.send(&[7; 500], to).unwrap();
            b.send(b"another beat", to).unwrap();
            let (first, length) = b.left(&mut buffer).unwrap();
            assert!(before <= first && buffer[..length].ends_with(b"beat"));
            let (second, length) = b.left(&mut buffer).unwrap();
            assert!(
                buffer[..length].ends_with(b"another beat"),
                "a cut one is passed over"
            );
            assert_eq!(b.left(&mut buffer), None);
            let arrived = receive(&a, &mut buffer).received_ns.unwrap();
            assert!(first <= arrived && first <= second && second <= daemon::real_now_ns());
        }
    }

    #[test]
    fn the_port_is_not_shared() {
        let a = Socket::open(HOME, 0).unwrap();
        let port = a.inner.local_addr().unwrap().port();
        assert_eq!(Socket::open(HOME, port).unwrap_err(), Errno::EADDRINUSE);
    }

    #[test]
    fn a_peers_datagrams_have_a_buffer_of_their_own() {
        let [a, b, c]: [IpAddr; 3] =
            ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(|a| a.parse().unwrap());
        let any = Socket::open(a, 0).unwrap();
        let port = any.inner.local_addr().unwrap().port();
        let from_b = Socket::open_for(b, a, port, std::iter::once(&any)).unwrap();
        let from_c = Socket::open_for(c, a, port, [&any, &from_b].into_iter()).unwrap();
        // The port stays closed to everybody else.
        assert_eq!(Socket::open(a, port).unwrap_err(), Errno::EADDRINUSE);
        assert_eq!(Socket::bound(a, port, true).unwrap_err(), Errno::EADDRINUSE);
        let (to, mut buffer) = (SocketAddr::new(a, port), [0; 50]);
        let (peer, flood) = (
            Socket::open(b, port).unwrap(),
            Socket::open(c, port).unwrap(),
        );
        let stranger = Socket::open(c, 0).unwrap();
        for _ in 0..20_000 {
            flood.send(b"garbage", to).unwrap();
            stranger.send(b"garbage", to).unwrap();
        }
        peer.send(b"beat", to).unwrap();
        assert_eq!(receive(&from_b, &mut buffer).source, b);
        assert_eq!(from_b.receive(&mut buffer).unwrap_err(), Errno::EAGAIN);
        assert_eq!(receive(&from_c, &mut buffer).source, c);
        assert_eq!(receive(&any, &mut buffer).source, c);
        // What was lost is told with the first that comes after it.
        while from_c.receive(&mut buffer).is_ok() {}
        flood.send(b"garbage", to).unwrap();
        assert!(receive(&from_c, &mut buffer).overflowed.unwrap() > 1000);
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
