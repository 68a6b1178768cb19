//! Who holds the virtual addresses, in truth.
//!
//! The judge has one interface for each server, each with a permanent neighbour entry that gives every virtual
//! address that server's MAC address. So each request reaches the server it is meant for, whatever any cache
//! believes, and that server answers if, and only if, its kernel takes the address for its own.

use crate::{
    Error,
    echo::{self, PORT, PRECEDENCE},
    net::Host,
    pace::{self, PERIOD, Ticks},
};
use nix::sys::socket::{setsockopt, sockopt};
use std::{
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Two answers count as given at the same instant if both were given within so long after their round began.
/// Later ones may tell of a later moment than that at which they were asked for.
const SAME_INSTANT: u64 = PERIOD / 2;
/// Answers count for "who holds it" until then.
const SAME_STRETCH: u64 = 5 * PERIOD;

/// Asks every server for every virtual address each millisecond.
pub struct Judge {
    ledger: Arc<Mutex<Ledger>>,
    paused: Arc<AtomicBool>,
}

#[derive(Default)]
struct Ledger {
    /// When each round began.
    began: Vec<u64>,
    /// For each address and round, the servers that answered: bits.
    rounds: Vec<Vec<Round>>,
    /// For each address, who gave each answer and when, as they came in.
    answers: Vec<Vec<Answered>>,
}

/// An answer that reached who had asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answered {
    /// When the server gave it, on [`clock`](crate::clock).
    pub at: Duration,
    /// The server's number.
    pub server: usize,
}

impl From<&echo::Answer> for Answered {
    fn from(answer: &echo::Answer) -> Self {
        Self {
            at: Duration::from_nanos(answer.handled),
            server: answer.server.into(),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Round {
    /// Answered at once.
    prompt: u8,
    /// Answered soon.
    soon: u8,
}

/// A stretch of time with the same holders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Began so long after the mark.
    pub from: Duration,
    /// Lasted so long.
    pub length: Duration,
    /// The servers that answered, by number.
    pub servers: Vec<usize>,
}

/// What the judge saw of one address in some stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Rounds asked.
    pub rounds: usize,
    /// For so long, counted in rounds of a millisecond, two servers or more answered at the same instant.
    pub two: Duration,
    /// For so long nobody answered.
    pub none: Duration,
    /// Who held the address, in order of time.
    pub holdings: Vec<Holding>,
}

impl Verdict {
    /// Whether more than one server ever answered at the same instant.
    pub fn guilty(&self) -> bool {
        !self.two.is_zero()
    }

    /// The longest stretch in which nobody answered.
    pub fn longest_gap(&self) -> Duration {
        let gaps = self.holdings.iter().filter(|h| h.servers.is_empty());
        gaps.map(|h| h.length).max().unwrap_or_default()
    }

    /// How often the address came to another server.
    pub fn moves(&self) -> usize {
        let single: Vec<_> = self
            .holdings
            .iter()
            .filter(|h| h.servers.len() == 1)
            .map(|h| h.servers[0])
            .collect();
        single.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Judge {
    /// `interfaces`: the judge's, one for each server in order.
    pub(crate) fn start(
        host: &Host,
        interfaces: &[String],
        addresses: &[IpAddr],
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let open = |interface: &String, address: IpAddr| -> io::Result<UdpSocket> {
            let any: IpAddr = if address.is_ipv4() {
                [0; 4].into()
            } else {
                [0u16; 8].into()
            };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
            setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
            socket.connect(SocketAddr::new(address, PORT))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let mut sockets = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            for interface in interfaces {
                let socket = host
                    .run(|| open(interface, *address))?
                    .map_err(Error::system("the judge's socket"))?;
                sockets.push((index, socket));
            }
        }
        let ledger = Ledger {
            began: Vec::new(),
            rounds: vec![Vec::new(); addresses.len()],
            answers: vec![Vec::new(); addresses.len()],
        };
        let judge = Self {
            ledger: Arc::new(Mutex::new(ledger)),
            paused: Arc::default(),
        };
        let (ledger, paused, stop) = (
            Arc::clone(&judge.ledger),
            Arc::clone(&judge.paused),
            Arc::clone(stop),
        );
        host.thread("judge", move || {
            let _ = daemon::sys::scheduler_fifo(PRECEDENCE);
            let mut ticks = Ticks::start();
            let mut bytes = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                ticks.next(PERIOD);
                let mut ledger = lock(&ledger);
                for (address, socket) in &sockets {
                    // Errors are those of a network that is being broken on purpose.
                    while let Ok(length) = socket.recv(&mut bytes) {
                        if let Some(answer) = echo::answer(&bytes[..length]) {
                            ledger.note(*address, &answer);
                        }
                    }
                }
                if paused.load(Ordering::Relaxed) {
                    continue;
                }
                let began = pace::now();
                let number = ledger.open(began);
                drop(ledger);
                let request = echo::request(number, began);
                for (_, socket) in &sockets {
                    if socket.send(&request).is_err() {
                        let _ = socket.send(&request);
                    }
                }
            }
        })?;
        Ok(judge)
    }

    /// Marks this moment, for [`Judge::since`].
    pub fn mark(&self) -> usize {
        lock(&self.ledger).began.len()
    }

    /// What was seen of address number `address` from the mark until now. Waits a moment for answers under way.
    pub fn since(&self, mark: usize, address: usize) -> Verdict {
        let until = self.mark();
        thread::sleep(Duration::from_millis(50));
        let ledger = lock(&self.ledger);
        verdict(
            &ledger.began[mark..until],
            &ledger.rounds[address][mark..until],
        )
    }

    /// The answers for address number `address` from number `mark` of them on, in the order in which they came in.
    pub fn answers(&self, address: usize, mark: usize) -> Vec<Answered> {
        lock(&self.ledger).answers[address][mark..].to_vec()
    }

    /// Who holds address number `address` now: the servers that answered one of the last few rounds.
    pub fn holders(&self, address: usize) -> Vec<usize> {
        let ledger = lock(&self.ledger);
        // The newest round's answers are still under way.
        let recent = ledger.rounds[address].iter().rev().skip(1).take(5);
        servers(recent.fold(0, |all, round| all | round.soon))
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}

impl Ledger {
    fn open(&mut self, began: u64) -> u64 {
        self.began.push(began);
        self.rounds
            .iter_mut()
            .for_each(|r| r.push(Round::default()));
        self.began.len() as u64 - 1
    }

    fn note(&mut self, address: usize, answer: &echo::Answer) {
        let slot = usize::try_from(answer.number).unwrap_or(usize::MAX);
        let (Some(began), Some(round)) = (self.began.get(slot), self.rounds[address].get_mut(slot))
        else {
            return;
        };
        self.answers[address].push(answer.into());
        let bit = 1u8.checked_shl(answer.server.into()).unwrap_or(0);
        let late = answer.handled.saturating_sub(*began);
        if late <= SAME_INSTANT {
            round.prompt |= bit;
        }
        if late <= SAME_STRETCH {
            round.soon |= bit;
        }
    }
}

fn servers(bits: u8) -> Vec<usize> {
    (0..8).filter(|server| bits & (1 << server) != 0).collect()
}

fn verdict(began: &[u64], rounds: &[Round]) -> Verdict {
    let mut verdict = Verdict {
        rounds: rounds.len(),
        ..Verdict::default()
    };
    let Some(start) = began.first() else {
        return verdict;
    };
    let mut stretch: Option<(u64, u8)> = None;
    let mut close = |from: u64, until: u64, bits: u8| {
        let (from, length) = (
            Duration::from_nanos(from - start),
            Duration::from_nanos(until - from),
        );
        verdict.holdings.push(Holding {
            from,
            length,
            servers: servers(bits),
        });
    };
    let mut end = *start;
    let (mut two, mut none) = (0, 0);
    for (at, round) in began.iter().zip(rounds) {
        two += u32::from(round.prompt.count_ones() > 1);
        none += u32::from(round.soon == 0);
        let bits = if round.prompt != 0 {
            round.prompt
        } else {
            round.soon
        };
        match stretch {
            Some((_, same)) if same == bits => {}
            Some((from, other)) => {
                close(from, *at, other);
                stretch = Some((*at, bits));
            }
            None => stretch = Some((*at, bits)),
        }
        end = at + PERIOD;
    }
    if let Some((from, bits)) = stretch {
        close(from, end, bits);
    }
    verdict.two = Duration::from_nanos(PERIOD) * two;
    verdict.none = Duration::from_nanos(PERIOD) * none;
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(rounds: &[u8]) -> Verdict {
        let began: Vec<u64> = (0..rounds.len() as u64).map(|n| 77 + n * PERIOD).collect();
        let rounds: Vec<Round> = rounds
            .iter()
            .map(|bits| Round {
                prompt: *bits,
                soon: *bits,
            })
            .collect();
        verdict(&began, &rounds)
    }

    #[test]
    fn two_servers_in_one_round_are_seen_and_one_after_the_other_are_not() {
        let fine = judged(&[1, 1, 0, 0, 2, 2]);
        assert!(!fine.guilty());
        assert_eq!(fine.none, Duration::from_millis(2));
        assert_eq!(fine.moves(), 1);
        let held: Vec<_> = fine
            .holdings
            .iter()
            .map(|h| (h.length.as_millis(), h.servers.clone()))
            .collect();
        assert_eq!(held, [(2, vec![0]), (2, vec![]), (2, vec![1])]);
        assert_eq!(judged(&[1, 3, 3, 2]).two, Duration::from_millis(2));
    }

    #[test]
    fn an_answer_given_long_after_its_round_proves_no_simultaneity() {
        let mut ledger = Ledger {
            began: Vec::new(),
            rounds: vec![Vec::new()],
            answers: vec![Vec::new()],
        };
        let number = ledger.open(1000);
        let answer = |server, late| echo::Answer {
            number,
            handled: 1000 + late,
            server,
        };
        ledger.note(0, &answer(0, 20_000));
        ledger.note(0, &answer(1, SAME_INSTANT + 1));
        ledger.note(
            0,
            &echo::Answer {
                number: 99,
                handled: 0,
                server: 0,
            },
        );
        assert!(!verdict(&ledger.began, &ledger.rounds[0]).guilty());
        ledger.note(0, &answer(1, SAME_INSTANT));
        assert!(verdict(&ledger.began, &ledger.rounds[0]).guilty());
    }
}
