//! What a client of the virtual server sees.

use crate::{
    Answered, Error,
    echo::{self, PORT, PRECEDENCE},
    net::Host,
    pace::{self, Ticks},
};
use nix::sys::socket::{self, MsgFlags};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// No answer (yet).
const NOBODY: u8 = u8::MAX;
/// An answer that comes later serves nobody: such a request waited in the kernel until somebody had the address.
const TOO_LATE: u64 = 100 * pace::PERIOD;

/// Sends one request each millisecond (or more) to a virtual address, as any program would: through the kernel's
/// neighbour cache, knowing nothing of servers.
pub struct Client {
    ledger: Arc<Mutex<Ledger>>,
    paused: Arc<AtomicBool>,
    /// Nanoseconds from one request to the next.
    period: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct Ledger {
    /// When each request was sent.
    sent: Vec<u64>,
    /// Who answered it.
    server: Vec<u8>,
    /// How long that took, in nanoseconds.
    took: Vec<u64>,
    /// All answers, the late ones too, as they came in, each with the number of its request.
    answers: Vec<(usize, Answered)>,
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client saw in some stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outage {
    /// Requests sent.
    pub sent: usize,
    /// Requests never answered, or too late.
    pub lost: usize,
    /// The longest time between two answered requests, by when they were sent, with a lost one between them.
    pub longest: Duration,
    /// The longest time from a request to its answer.
    pub slowest: Duration,
}

impl Client {
    pub(crate) fn start(
        host: &Host,
        address: IpAddr,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let open = || {
            let any: IpAddr = if address.is_ipv4() {
                [0; 4].into()
            } else {
                [0u16; 8].into()
            };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
            socket.connect(SocketAddr::new(address, PORT))?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            std::io::Result::Ok((socket.try_clone()?, socket))
        };
        let (sender, receiver) = host
            .run(open)?
            .map_err(Error::system("the client's socket"))?;
        let client = Self {
            ledger: Arc::default(),
            paused: Arc::default(),
            period: Arc::new(AtomicU64::new(pace::PERIOD)),
            stop: Arc::clone(stop),
        };
        let (ledger, paused, period, stop) = (
            Arc::clone(&client.ledger),
            Arc::clone(&client.paused),
            Arc::clone(&client.period),
            Arc::clone(stop),
        );
        host.thread("client", move || {
            let _ = daemon::sys::scheduler_fifo(PRECEDENCE);
            let mut ticks = Ticks::start();
            while !stop.load(Ordering::Relaxed) {
                ticks.next(period.load(Ordering::Relaxed));
                if paused.load(Ordering::Relaxed) {
                    continue;
                }
                let sent = pace::now();
                let number = {
                    let mut ledger = lock(&ledger);
                    ledger.sent.push(sent);
                    ledger.server.push(NOBODY);
                    ledger.took.push(0);
                    ledger.sent.len() as u64 - 1
                };
                let request = echo::request(number, sent);
                // The first error may be an old one of the network, told late: then nothing was sent.
                let send = || socket::send(sender.as_raw_fd(), &request, MsgFlags::MSG_DONTWAIT);
                let _ = send().or_else(|_| send());
            }
        })?;
        let (ledger, stop) = (Arc::clone(&client.ledger), Arc::clone(&client.stop));
        host.thread("client-in", move || {
            let _ = daemon::sys::scheduler_fifo(PRECEDENCE);
            let mut bytes = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                let Ok(length) = receiver.recv(&mut bytes) else {
                    continue;
                };
                let Some(answer) = echo::answer(&bytes[..length]) else {
                    continue;
                };
                let slot = usize::try_from(answer.number).unwrap_or(usize::MAX);
                let mut ledger = lock(&ledger);
                let Some(sent) = ledger.sent.get(slot).copied() else {
                    continue;
                };
                ledger.answers.push((slot, (&answer).into()));
                let took = pace::now().saturating_sub(sent);
                if took <= TOO_LATE {
                    ledger.server[slot] = answer.server;
                    ledger.took[slot] = took;
                }
            }
        })?;
        Ok(client)
    }

    /// Marks this moment, for [`Client::since`].
    pub fn mark(&self) -> usize {
        lock(&self.ledger).sent.len()
    }

    /// What the client saw from the mark until now. Waits a moment for answers under way.
    pub fn since(&self, mark: usize) -> Outage {
        let until = self.mark();
        thread::sleep(Duration::from_millis(50));
        let ledger = lock(&self.ledger);
        let mut outage = measure(&ledger.sent[mark..until], &ledger.server[mark..until]);
        let slowest = ledger.took[mark..until].iter().max();
        outage.slowest = Duration::from_nanos(slowest.copied().unwrap_or_default());
        outage
    }

    /// The answers from number `mark` of them on, in the order in which they came in, each with the number of its request.
    pub fn answers(&self, mark: usize) -> Vec<(usize, Answered)> {
        lock(&self.ledger).answers[mark..].to_vec()
    }

    /// Sends so many requests each millisecond from now on, evenly; at least one.
    pub fn rate(&self, each_ms: u32) {
        let period = pace::PERIOD / u64::from(each_ms.max(1));
        self.period.store(period, Ordering::Relaxed);
    }

    /// What the client sees right now: how long ago the last answered request was sent.
    pub fn silence(&self) -> Duration {
        let ledger = lock(&self.ledger);
        let Some(first) = ledger.sent.first() else {
            return Duration::ZERO;
        };
        let last = ledger
            .server
            .iter()
            .rposition(|s| *s != NOBODY)
            .map_or(first, |at| &ledger.sent[at]);
        Duration::from_nanos(pace::now().saturating_sub(*last))
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}

fn measure(sent: &[u64], server: &[u8]) -> Outage {
    let mut outage = Outage {
        sent: sent.len(),
        ..Outage::default()
    };
    let Some(mut last) = sent.first().copied() else {
        return outage;
    };
    let mut open = false;
    for (at, server) in sent.iter().zip(server) {
        let answered = *server != NOBODY;
        outage.lost += usize::from(!answered);
        if open || !answered {
            outage.longest = outage.longest.max(Duration::from_nanos(at - last));
        }
        if answered {
            last = *at;
        }
        open = !answered;
    }
    outage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(answers: &str) -> (usize, u128) {
        let sent: Vec<u64> = (0..answers.len() as u64)
            .map(|n| n * pace::PERIOD)
            .collect();
        let server: Vec<u8> = answers
            .bytes()
            .map(|b| if b == b'.' { NOBODY } else { b - b'a' })
            .collect();
        let outage = measure(&sent, &server);
        (outage.lost, outage.longest.as_millis())
    }

    #[test]
    fn an_outage_lasts_from_the_last_answered_request_to_the_next() {
        assert_eq!(measured("aaaabbbb"), (0, 0));
        assert_eq!(measured("aaa.bbb"), (1, 2));
        assert_eq!(measured("aa...b..b"), (5, 4));
        assert_eq!(measured("..aa"), (2, 2));
        assert_eq!(measured("aa..."), (3, 3));
        assert_eq!(measured(""), (0, 0));
    }
}
