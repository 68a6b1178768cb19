//! The four timestamps of exchanges with one peer (RFC 5905, section 8).
//!
//! A packet says when it was made. When it really left, the kernel tells afterwards, and the next packet to the same peer
//! passes that on ([`Left`]), as NTP's interleaved mode does: an exchange then counts one packet later and without what
//! packets wait on their way out.

use protocol::{
    local::ring::FourTimes,
    wire::datagram::{Data, Left},
};
use std::collections::VecDeque;

/// Packets whose time of leaving is known when they are echoed.
const SENT: usize = 64;

/// Exchanges that wait for the true time of their third stamp.
const WAITING: usize = 4;

#[derive(Debug)]
struct Sent {
    /// As the packet says.
    real_ns: u64,
    /// The same by CLOCK_MONOTONIC_RAW.
    raw_ns: u64,
    /// How much later it left, over whichever path it left first.
    late_ns: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Times {
    sent: VecDeque<Sent>,
    waiting: VecDeque<FourTimes>,
}

impl Times {
    /// A packet is made; what it says of the ones before.
    pub(crate) fn leaves(&mut self, real_ns: u64, raw_ns: u64) -> Option<Left> {
        // Older ones the other waits for no more.
        let known = self.sent.iter().take(WAITING).find_map(|sent| {
            let late_ns = sent.late_ns?;
            Some(Left {
                sent_ns: sent.real_ns,
                late_ns,
            })
        });
        self.sent.truncate(SENT - 1);
        self.sent.push_front(Sent {
            real_ns,
            raw_ns,
            late_ns: None,
        });
        known
    }

    /// The packet that was made at `real_ns` left so much later, over one of its paths.
    pub(crate) fn left(&mut self, real_ns: u64, late_ns: u32) {
        let mut sent = self.sent.iter_mut();
        if let Some(sent) = sent.find(|sent| sent.real_ns == real_ns) {
            sent.late_ns = Some(sent.late_ns.map_or(late_ns, |known| known.min(late_ns)));
        }
    }

    /// A packet that no other came before, at this time of CLOCK_MONOTONIC_RAW if that is known: an exchange of which
    /// all is known that will be.
    pub(crate) fn arrived(&mut self, data: &Data, raw_ns: Option<u64>) -> Option<FourTimes> {
        let exchange = data.echo.zip(raw_ns).map(|(echo, t4)| FourTimes {
            t1: echo.sent_ns,
            t2: echo.received_ns,
            t3: data.sent_ns,
            t4,
        });
        let known = match data.left {
            None => exchange,
            Some(left) => {
                let mut waiting = self.waiting.iter();
                let before = waiting.find(|times| times.t3 == left.sent_ns).copied();
                before.map(|times| FourTimes {
                    t3: times.t3.saturating_add(left.late_ns.into()),
                    ..times
                })
            }
        };
        self.waiting.truncate(WAITING - 1);
        self.waiting.extend(exchange);
        self.waiting.rotate_right(usize::from(exchange.is_some()));
        let times = known?;
        let sent = self.sent.iter().find(|sent| sent.real_ns == times.t1)?;
        let late = u64::from(sent.late_ns.unwrap_or(0));
        let t1 = sent.raw_ns.saturating_add(late);
        Some(FourTimes { t1, ..times })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::wire::datagram::{Echo, Incarnation};

    /// This side's wall clock is so far ahead of its raw one.
    const WALL: u64 = 1_000_000;

    fn packet(sent_ns: u64, echo: (u64, u64), left: Option<(u64, u32)>) -> Data {
        Data {
            from: Incarnation([1; 16]),
            to: Incarnation([2; 16]),
            sequence: 1,
            sent_ns,
            left: left.map(|(sent_ns, late_ns)| Left { sent_ns, late_ns }),
            echo: Some(Echo {
                sent_ns: echo.0,
                received_ns: echo.1,
            }),
            bodies: Vec::new(),
        }
    }

    #[test]
    fn without_the_kernels_word_an_exchange_counts_at_once_as_it_was_told() {
        let mut times = Times::default();
        assert_eq!(times.leaves(WALL + 100, 100), None);
        let told = times.arrived(&packet(5_200, (WALL + 100, 5_150), None), Some(260));
        let whole = FourTimes {
            t1: 100,
            t2: 5_150,
            t3: 5_200,
            t4: 260,
        };
        assert_eq!(told, Some(whole));
        let mut set = Times::default();
        set.leaves(WALL + 100, 100);
        let told = set.arrived(&packet(5_200, (WALL + 100, 5_150), None), None);
        assert_eq!(told, None, "nobody knows when it arrived");
        let told = set.arrived(&packet(5_200, (WALL + 99, 5_150), None), Some(260));
        assert_eq!(told, None, "an echo of what was not sent");
    }

    #[test]
    fn with_it_both_ways_count_from_where_they_really_began() {
        let mut times = Times::default();
        times.leaves(WALL + 100, 100);
        times.left(WALL + 100, 30);
        times.left(WALL + 100, 7);
        times.left(WALL + 100, 9);
        times.left(WALL + 101, 1);
        let first = packet(5_200, (WALL + 100, 5_150), Some((5_000, 3)));
        assert_eq!(times.arrived(&first, Some(260)), None, "it waits");
        let left = times.leaves(WALL + 300, 300);
        let first_path = Left {
            sent_ns: WALL + 100,
            late_ns: 7,
        };
        assert_eq!(left, Some(first_path), "of several paths the first");
        let second = packet(5_400, (WALL + 300, 5_350), Some((5_200, 4)));
        let whole = FourTimes {
            t1: 107,
            t2: 5_150,
            t3: 5_204,
            t4: 260,
        };
        assert_eq!(times.arrived(&second, Some(460)), Some(whole));
        // A kernel that tells no more is not believed to.
        let left = [400, 500, 600, 700].map(|at| times.leaves(WALL + at, at));
        assert_eq!(
            left,
            [Some(first_path), Some(first_path), Some(first_path), None]
        );
        let lost = packet(5_800, (WALL + 300, 5_350), Some((5_600, 4)));
        assert_eq!(times.arrived(&lost, Some(860)), None);
    }

    #[test]
    fn an_echo_of_one_of_the_last_64_packets_counts_and_no_older_one() {
        let mut times = Times::default();
        (0..=SENT as u64).for_each(|n| assert_eq!(times.leaves(WALL + n, n), None));
        let mut echo = |n| times.arrived(&packet(5_200 + n, (WALL + n, 5_150), None), Some(260));
        assert_eq!(echo(0), None);
        assert_eq!(echo(1).map(|t| t.t1), Some(1));
        assert_eq!(echo(SENT as u64).map(|t| t.t1), Some(SENT as u64));
    }

    #[test]
    fn four_exchanges_wait_for_the_kernels_word() {
        let mut times = Times::default();
        times.leaves(WALL + 100, 100);
        let mut arrive = |n: u64, left: u64| {
            let left = Some((5_200 + left, 1));
            let packet = packet(5_200 + n, (WALL + 100, 5_150), left);
            times.arrived(&packet, Some(260)).map(|t| t.t3)
        };
        (0..5).for_each(|n| assert_eq!(arrive(n, 99), None));
        assert_eq!(arrive(5, 0), None, "five came after it");
        assert_eq!(arrive(6, 3), Some(5_204));
        assert_eq!(arrive(7, 6), Some(5_207));
    }
}
