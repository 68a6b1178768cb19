//! Many clients, each a host of its own with a neighbour cache of its own.

use crate::{
    Error, Host,
    echo::{self, PORT, PRECEDENCE},
    net::{address, attach},
    pace::{self, Ticks},
    process::tool,
};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

/// Each client asks once in this time: all of them together leave most of a CPU to those they ask.
const EACH: Duration = Duration::from_millis(20);
/// The same while they learn where the virtual address is: they ask the whole network for it.
const EACH_LEARNING: Duration = Duration::from_millis(500);

/// Clients of the first virtual server.
pub struct Crowd {
    clients: Vec<Member>,
}

struct Member {
    host: Host,
    port: String,
    virtual_address: IpAddr,
    socket: UdpSocket,
}

/// When the clients of a crowd were served by another server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Return {
    /// How long after the first of them the last was.
    pub spread: Duration,
    /// Those that were not in time.
    pub missing: usize,
}

impl Crowd {
    /// Plugs `count` clients into the network, at most 400: as many as there are free addresses ask over IPv4,
    /// the rest over IPv6.
    pub fn gather(count: usize) -> Result<Self, Error> {
        // The lab's own hosts end in 11 to 16, 100, 150 and 200 to 205, its virtual addresses in 10, 20 ... 90.
        let free = |last: &u8| {
            !(last.is_multiple_of(10) || (11..=16).contains(last) || (200..=205).contains(last))
        };
        let v4 = (17..=254u8)
            .filter(free)
            .map(|last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last)));
        let v6 = (0..200).map(|n| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n)));
        let addresses = v4.chain(v6).take(count).enumerate();
        let clients = addresses
            .map(|(n, own)| Member::join(n, own))
            .collect::<Result<_, _>>()?;
        Ok(Self { clients })
    }

    /// Every client forgets where the virtual address is, then all learn it and are served: their entries
    /// are less than a second old.
    pub fn refresh(&self) -> Result<(), Error> {
        for client in &self.clients {
            let forget = format!("neigh flush to {} dev eth0\n", client.virtual_address);
            client.host.tool("ip", &["-batch", "-"], &forget)?;
        }
        let served = self.ask(EACH_LEARNING, Duration::from_secs(5), |_| true);
        match served.missing {
            0 => Ok(()),
            missing => Err(Error::Wrong(format!(
                "{missing} of {} clients are not served",
                self.clients.len()
            ))),
        }
    }

    /// Every client asks until a server other than number `old` answers it, at most `limit` long.
    pub fn back(&self, old: usize, limit: Duration) -> Return {
        self.ask(EACH, limit, |server| usize::from(server) != old)
    }

    fn ask(&self, each: Duration, limit: Duration, good: impl Fn(u8) -> bool) -> Return {
        let _ = daemon::sys::scheduler_fifo(PRECEDENCE);
        let (start, limit) = (pace::now(), pace::nanos(limit));
        let mut served: Vec<Option<u64>> = vec![None; self.clients.len()];
        let step = pace::nanos(each) / self.clients.len().max(1) as u64;
        let mut ticks = Ticks::start();
        while pace::now() - start < limit && served.contains(&None) {
            for (index, client) in self.clients.iter().enumerate() {
                ticks.next(step);
                if served[index].is_some() {
                    continue;
                }
                served[index] = client.answer(&good);
                // An error is one of the network that was broken on purpose.
                let _ = client.socket.send(&echo::request(0, pace::now()));
            }
        }
        let _ = daemon::sys::scheduler_normal();
        let times: Vec<u64> = served.iter().copied().flatten().collect();
        let spread =
            times.iter().max().copied().unwrap_or(0) - times.iter().min().copied().unwrap_or(0);
        Return {
            spread: Duration::from_nanos(spread),
            missing: served.len() - times.len(),
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let ports = self.clients.iter().fold(String::new(), |mut text, client| {
            let _ = writeln!(text, "link del dev {}", client.port);
            text
        });
        // What cannot be deleted now ends with the lab's own process.
        let _ = tool("ip", &["-force", "-batch", "-"], &ports);
    }
}

impl Member {
    fn join(number: usize, own: IpAddr) -> Result<Self, Error> {
        let (host, port) = (
            Host::new(&format!("crowd-{number}"))?,
            format!("crowd-{number}"),
        );
        let mac = format!("02:00:00:00:{:02x}:{:02x}", 1 + number / 256, number % 256);
        let length = if own.is_ipv4() { "/24" } else { "/64 nodad" };
        attach(&host, &port, "eth0", &mac, &[format!("{own}{length}")])?;
        // A switch copies a frame for a MAC address that it has lost to every port at no cost to anybody. Here the
        // machine would copy thousands in each millisecond, and measure that.
        let calm = [
            "link",
            "set",
            "dev",
            &port,
            "type",
            "bridge_slave",
            "flood",
            "off",
        ];
        tool("ip", &calm, "")?;
        let virtual_address = address(0, own.is_ipv6());
        let open = || {
            let socket = UdpSocket::bind(SocketAddr::new(own, 0))?;
            socket.connect(SocketAddr::new(virtual_address, PORT))?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = host
            .run(open)?
            .map_err(Error::system(format!("the socket of client {own}")))?;
        Ok(Self {
            host,
            port,
            virtual_address,
            socket,
        })
    }

    /// When the oldest good answer's request was sent.
    fn answer(&self, good: &impl Fn(u8) -> bool) -> Option<u64> {
        let mut bytes = [0; 64];
        loop {
            // An error other than "no more" is an old one of the network, told late; the next turn reads on.
            let length = self.socket.recv(&mut bytes).ok()?;
            let answer = echo::answer(&bytes[..length]);
            if let Some(answer) = answer.filter(|a| good(a.server)) {
                return Some(answer.handled);
            }
        }
    }
}
