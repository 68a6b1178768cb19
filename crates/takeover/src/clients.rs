//! Who uses an interface: seen when, forgotten when, told to the other servers when. Pure.

use crate::arp::Mac;
use protocol::{
    BootTime,
    wire::signal::{CLIENTS_MAX, Client},
};
use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

/// Most clients kept for an interface: the latest seen.
pub(crate) const KEPT_MAX: usize = 4096;
/// A client not seen for so long is forgotten.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(600);

/// The other servers are told what is new at most this often,
const NEWS: Duration = Duration::from_secs(5);
/// and everybody once in this time, for servers that came later, and because ages change.
const ALL: Duration = Duration::from_secs(60);
/// Between two parts of a long list, so that it delays nothing else on its way.
const PART: Duration = Duration::from_millis(100);

/// The clients of one interface.
#[derive(Debug, Default)]
pub(crate) struct Clients(HashMap<IpAddr, (Mac, BootTime)>);

impl Clients {
    /// Notes clients and when each was seen; the later word counts.
    pub(crate) fn learn(
        &mut self,
        now: BootTime,
        seen: impl IntoIterator<Item = (IpAddr, Mac, BootTime)>,
    ) {
        for (ip, mac, at) in seen {
            let known = self.0.entry(ip).or_insert((mac, at));
            if at >= known.1 {
                *known = (mac, at.min(now));
            }
        }
        self.0.retain(|_, (_, at)| now.since(*at) < AGE_MAX);
        if self.0.len() > KEPT_MAX {
            for (ip, ..) in self.list(now).drain(KEPT_MAX..) {
                self.0.remove(&ip);
            }
        }
    }

    /// Seen this moment.
    pub(crate) fn note(&mut self, now: BootTime, ip: IpAddr, mac: Mac) {
        self.0.insert(ip, (mac, now));
    }

    pub(crate) fn mac(&self, ip: &IpAddr) -> Option<Mac> {
        self.0.get(ip).map(|(mac, _)| *mac)
    }

    /// Everybody, the latest seen first.
    pub(crate) fn list(&self, now: BootTime) -> Vec<(IpAddr, Mac, BootTime)> {
        let known = self.0.iter().map(|(ip, (mac, at))| (*ip, *mac, *at));
        let mut list: Vec<_> = known.filter(|(.., at)| now.since(*at) < AGE_MAX).collect();
        list.sort_unstable_by_key(|(ip, _, at)| (Reverse(*at), *ip));
        list
    }
}

/// What the other servers are told of an interface's clients.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    told: HashMap<IpAddr, Mac>,
    waiting: VecDeque<IpAddr>,
    next: BootTime,
    all: BootTime,
}

impl Teller {
    /// The next part of the list, if it is time; `apart` from these, who are no clients.
    pub(crate) fn poll(
        &mut self,
        now: BootTime,
        clients: &Clients,
        apart: &HashSet<IpAddr>,
    ) -> Option<Vec<Client>> {
        if now < self.next {
            return None;
        }
        if self.waiting.is_empty() {
            let everybody = now >= self.all;
            if everybody {
                self.all = now + ALL;
            }
            self.told.retain(|ip, _| clients.0.contains_key(ip));
            let list = clients.list(now);
            let new = list.into_iter().filter(|(ip, mac, _)| {
                !apart.contains(ip) && (everybody || self.told.get(ip) != Some(mac))
            });
            self.waiting = new.map(|(ip, ..)| ip).collect();
        }
        let part = self.waiting.len().min(CLIENTS_MAX);
        let mut told = Vec::with_capacity(part);
        for ip in self.waiting.drain(..part) {
            if let Some((mac, at)) = clients.0.get(&ip) {
                self.told.insert(ip, *mac);
                let age_s = u32::try_from(now.since(*at).as_secs()).unwrap_or(u32::MAX);
                told.push(Client {
                    ip,
                    mac: *mac,
                    age_s,
                });
            }
        }
        self.next = now + if self.waiting.is_empty() { NEWS } else { PART };
        (!told.is_empty()).then_some(told)
    }

    /// When there may be something to tell.
    pub(crate) fn next(&self) -> BootTime {
        self.next
    }

    /// Somebody may have missed it: everybody is told at the next time.
    pub(crate) fn again(&mut self) {
        self.all = BootTime(0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::Ipv4Addr;

    const START: BootTime = BootTime(1_000_000_000_000_000);
    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from(0xc612_0000 + n).into()
    }

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn many(n: u32, at: BootTime) -> Clients {
        let mut clients = Clients::default();
        clients.learn(at, (0..n).map(|n| (ip(n), MAC, at)));
        clients
    }

    #[test]
    fn the_latest_seen_are_kept_and_the_old_forgotten() {
        let mut clients = many(5000, START);
        assert_eq!(clients.0.len(), KEPT_MAX);
        let late = (0..4096).map(|n| (ip(10_000 + n), MAC, START + s(1 + u64::from(n) / 100)));
        clients.learn(START + s(60), late);
        assert_eq!(clients.list(START + s(60)).len(), KEPT_MAX);
        assert!(clients.mac(&ip(0)).is_none());
        assert_eq!(clients.list(START + s(60))[0].2, START + s(41));
        assert_eq!(clients.list(START + s(601)).len(), 3996);
        clients.learn(START + s(2000), []);
        assert!(clients.0.is_empty());
    }

    #[test]
    fn the_later_word_about_a_client_counts() {
        let mut clients = many(1, START);
        let other = [2, 0, 0, 0, 0, 7];
        clients.learn(START, [(ip(0), other, START - s(1))]);
        assert_eq!(clients.mac(&ip(0)), Some(MAC));
        clients.learn(START + s(2), [(ip(0), other, START + s(1))]);
        assert_eq!(clients.mac(&ip(0)), Some(other));
        // Nobody is seen in the future: its entry would never be replaced.
        clients.learn(START + s(2), [(ip(0), MAC, START + s(1000))]);
        clients.learn(START + s(3), [(ip(0), other, START + s(3))]);
        assert_eq!(clients.mac(&ip(0)), Some(other));
    }

    #[test]
    fn a_long_list_is_told_in_parts_and_then_only_news() {
        let mut clients = many(1200, START);
        let apart = HashSet::from([ip(7)]);
        let mut teller = Teller::default();
        let mut sizes = Vec::new();
        let mut now = START + s(1);
        while let Some(part) = teller.poll(now, &clients, &apart) {
            assert_eq!(teller.poll(now, &clients, &apart), None, "at once again");
            assert!(part.iter().all(|c| c.age_s >= 1 && c.ip != ip(7)));
            sizes.push(part.len());
            now = teller.next();
        }
        assert_eq!(sizes, [512, 512, 175]);
        assert_eq!(now, START + s(6) + PART * 2);
        clients.learn(
            now,
            [
                (ip(7), MAC, now),
                (ip(8), [1; 6], now),
                (ip(5000), MAC, now),
            ],
        );
        now = teller.next();
        let news = teller.poll(now, &clients, &apart).unwrap();
        assert_eq!(
            news.iter().map(|c| c.ip).collect::<Vec<_>>(),
            [ip(8), ip(5000)]
        );
        // A minute later, or to a server that came back: everybody.
        teller.again();
        assert_eq!(
            teller.poll(teller.next(), &clients, &apart).unwrap().len(),
            512
        );
        let mut teller = Teller::default();
        let few = many(3, START);
        let told = |teller: &mut Teller, at: u64| {
            teller
                .poll(START + s(at), &few, &apart)
                .map(|told| told.len())
        };
        assert_eq!(told(&mut teller, 0), Some(3));
        assert_eq!(told(&mut teller, 59), None);
        assert_eq!(told(&mut teller, 64), Some(3));
    }
}
