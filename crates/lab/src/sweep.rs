//! A client of very many addresses: no kernel's neighbour cache holds so many, so it keeps its own table, from the
//! announcements and answers that it hears, and asks with frames of its own (ARP, ICMP echo).

use crate::{
    Error, Net,
    echo::PRECEDENCE,
    net::{CLIENT, INTERFACE, last_byte, v4},
    pace,
    wire::checksum,
};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
        socket, sockopt,
    },
};
use std::{
    collections::HashMap,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// Questions sent in each millisecond.
const RATE: usize = 50;
/// The same before anything has happened.
const CALM: usize = 5;

/// Asks many addresses, from the client's host.
pub struct Sweep {
    socket: OwnedFd,
    addresses: Vec<Ipv4Addr>,
    place: HashMap<Ipv4Addr, usize>,
    /// Where this client sends what is for each address.
    table: Vec<Option<Mac>>,
    servers: Vec<Mac>,
}

/// When the addresses of a dead server answered again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// So many were its own.
    pub asked: usize,
    /// So long after the beginning the first answered from elsewhere.
    pub first: Duration,
    /// After so long the last.
    pub last: Duration,
    /// So many never did.
    pub missing: usize,
}

/// What was heard about an address.
enum Heard {
    /// It is said to be there.
    Said(Ipv4Addr, Mac),
    /// It has answered an echo request.
    Answered(Ipv4Addr, Mac),
}

impl Sweep {
    /// Opens on the client's host of `net`.
    pub fn open(net: &Net, addresses: Vec<Ipv4Addr>) -> Result<Self, Error> {
        let open = || -> nix::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                flags,
                SockProtocol::EthAll,
            )?;
            setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20))?;
            let mut interfaces = getifaddrs()?.filter(|i| i.interface_name == INTERFACE);
            let here = interfaces.find_map(|i| i.address?.as_link_addr().copied());
            bind(fd.as_raw_fd(), &here.ok_or(Errno::ENODEV)?)?;
            Ok(fd)
        };
        let socket = net
            .client_host()
            .run(open)?
            .map_err(Error::system("a packet socket to sweep with"))?;
        let place = addresses.iter().enumerate().map(|(n, a)| (*a, n)).collect();
        let servers = (0..net.servers().len()).map(|s| mac(last_byte(s)));
        Ok(Self {
            socket,
            place,
            table: vec![None; addresses.len()],
            servers: servers.collect(),
            addresses,
        })
    }

    /// Asks until every address is answered; by which server each.
    pub fn holders(&mut self, limit: Duration) -> Result<Vec<usize>, Error> {
        let mut holders = vec![None; self.addresses.len()];
        self.ask(limit, RATE, &mut holders, Some);
        let missing = holders.iter().filter(|h| h.is_none()).count();
        let all: Option<Vec<usize>> = holders.into_iter().collect();
        all.ok_or_else(|| {
            Error::Wrong(format!("{missing} addresses are not answered in {limit:?}"))
        })
    }

    /// Asks for the addresses that `old` held (as [`Sweep::holders`] told) until others answer; times are counted
    /// from now.
    pub fn back(&mut self, holders: &[usize], old: usize, limit: Duration) -> Swept {
        let start = pace::now();
        let mut times = vec![None; self.addresses.len()];
        for (time, holder) in times.iter_mut().zip(holders) {
            if *holder != old {
                *time = Some(u64::MAX);
            }
        }
        self.ask(limit, CALM, &mut times, |server| {
            (server != old).then(pace::now)
        });
        let own = || times.iter().zip(holders).filter(|(_, h)| **h == old);
        let after = |at: u64| Duration::from_nanos(at - start);
        Swept {
            asked: own().count(),
            first: own().filter_map(|(t, _)| *t).min().map_or(limit, after),
            last: own().filter_map(|(t, _)| *t).max().map_or(limit, after),
            missing: own().filter(|(t, _)| t.is_none()).count(),
        }
    }

    /// Addresses that more than one server answers for now, past every table.
    pub fn doubly_held(&mut self) -> usize {
        let mut held = vec![Vec::new(); self.addresses.len()];
        for server in self.servers.clone() {
            for n in 0..self.addresses.len() {
                self.send(&self.echo(n, server));
                if n % RATE == 0 {
                    pace::sleep_until(pace::now() + pace::PERIOD);
                }
            }
        }
        pace::sleep_until(pace::now() + 20 * pace::PERIOD);
        while let Some(heard) = self.hear() {
            if let Some(Heard::Answered(address, mac)) = heard
                && let (Some(n), Some(server)) = (self.place.get(&address), self.server(mac))
                && !held[*n].contains(&server)
            {
                held[*n].push(server);
            }
        }
        held.iter().filter(|h| h.len() > 1).count()
    }

    /// Asks for every address without an outcome, again and again.
    fn ask<T>(
        &mut self,
        limit: Duration,
        mut rate: usize,
        outcomes: &mut [Option<T>],
        outcome: impl Fn(usize) -> Option<T>,
    ) {
        let _ = daemon::sys::scheduler_fifo(PRECEDENCE);
        let (mut due, end) = (pace::now(), pace::now() + pace::nanos(limit));
        let mut waiting: Vec<usize> = (0..outcomes.len())
            .filter(|n| outcomes[*n].is_none())
            .collect();
        let mut next = 0;
        while !waiting.is_empty() && pace::now() < end {
            for _ in 0..rate.min(waiting.len()) {
                let n = waiting[next % waiting.len()];
                next += 1;
                let frame = match self.table[n] {
                    Some(mac) => self.echo(n, mac),
                    None => self.who_has(n),
                };
                self.send(&frame);
            }
            // With precedence over everything else it must leave the processor at times, or the kernel stops all
            // that has any.
            due = (due + pace::PERIOD).max(pace::now() + pace::PERIOD / 2);
            pace::sleep_until(due);
            let mut changed = false;
            while let Some(heard) = self.hear() {
                match heard {
                    Some(Heard::Said(address, mac)) => {
                        if let Some(n) = self.place.get(&address) {
                            self.table[*n] = Some(mac);
                        }
                    }
                    Some(Heard::Answered(address, mac)) => {
                        if let (Some(n), Some(server)) =
                            (self.place.get(&address), self.server(mac))
                            && outcomes[*n].is_none()
                        {
                            outcomes[*n] = outcome(server);
                            if outcomes[*n].is_some() {
                                (changed, rate) = (true, RATE);
                            }
                        }
                    }
                    None => {}
                }
            }
            if changed {
                waiting.retain(|n| outcomes[*n].is_none());
            }
        }
        let _ = daemon::sys::scheduler_normal();
    }

    fn server(&self, mac: Mac) -> Option<usize> {
        self.servers.iter().position(|s| *s == mac)
    }

    fn send(&self, frame: &[u8]) {
        // Errors are those of a network that is being broken on purpose, or full.
        let _ = send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT);
    }

    /// The next frame: none if there is no more, and nothing in it if it is about something else.
    fn hear(&self) -> Option<Option<Heard>> {
        let mut frame = [0; 128];
        loop {
            return match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => Some(read(&frame[..length.min(frame.len())])),
                Err(Errno::EINTR) => continue,
                Err(_) => None,
            };
        }
    }

    fn who_has(&self, n: usize) -> Vec<u8> {
        let own = mac(CLIENT);
        let mut frame = ethernet(BROADCAST, own, 0x0806);
        frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend_from_slice(&own);
        frame.extend_from_slice(&v4(CLIENT).octets());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&self.addresses[n].octets());
        frame
    }

    fn echo(&self, n: usize, to: Mac) -> Vec<u8> {
        let mut icmp = vec![8, 0, 0, 0, 0x5a, 0x5a, 0, 0];
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0];
        ip.extend_from_slice(&v4(CLIENT).octets());
        ip.extend_from_slice(&self.addresses[n].octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = ethernet(to, mac(CLIENT), 0x0800);
        frame.extend_from_slice(&ip);
        frame.extend_from_slice(&icmp);
        frame
    }
}

fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes()[..]].concat()
}

fn read(frame: &[u8]) -> Option<Heard> {
    let address = |at: usize| {
        let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let hardware = |at: usize| -> Option<Mac> { frame.get(at..at + 6)?.try_into().ok() };
    match frame.get(12..14)? {
        // Whoever speaks ARP says where it is.
        [8, 6] => Some(Heard::Said(address(28)?, hardware(22)?)),
        [8, 0] if frame.get(23) == Some(&1) && frame.get(34) == Some(&0) => {
            Some(Heard::Answered(address(26)?, hardware(6)?))
        }
        _ => None,
    }
}
