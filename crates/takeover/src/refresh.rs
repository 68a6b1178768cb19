//! The acknowledged takeover: whom to ask, in which order, how often again, and who has answered. Pure.
//!
//! A broadcast tells nobody whether it was heard. A question *from* a virtual address to one client moves
//! that client's entry whatever its age, and its answer is the receipt. Every client has an entry of its own
//! for every address, so each such pair is asked: all clients for the first address, then for the second.

use crate::arp::Mac;
use protocol::{BootTime, local::status::SILENT_MAX};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

/// Most pairs of a virtual server's addresses and clients; the others hear the broadcasts.
pub(crate) const PAIRS_MAX: usize = 20_000;

/// How long to wait for an answer to the first question, to the second, and so on: asked again 2, 10, 50, 200 ms
/// and 1 s after the first time, called silent after 2 s.
const WAITS: [Duration; 6] = [
    Duration::from_millis(2),
    Duration::from_millis(8),
    Duration::from_millis(40),
    Duration::from_millis(150),
    Duration::from_millis(800),
    Duration::from_secs(1),
];

/// The silent are asked on: a switch may forward nothing for half a minute (spanning tree) or for minutes (its restart).
/// First each second, then ever more seldom: no client is out for longer than this part of the time before that.
const LATE_FIRST: Duration = Duration::from_secs(1);
const LATE_PART: u32 = 8;
const LATE_MAX: Duration = Duration::from_secs(60);
/// All of them together are asked at most so often.
const LATE_EACH: Duration = Duration::from_millis(1);

/// At most so many questions a millisecond, and so many at once.
const RATE: u64 = 200;
const BURST: u64 = 64;

/// Somebody to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) ip: IpAddr,
    /// None: known by address only, everybody on the network is asked for it.
    pub(crate) mac: Option<Mac>,
    /// Another server is asked too, but it is no client: it may be the very one that died.
    pub(crate) client: bool,
}

/// One question: asks from `own` where `target` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) own: IpAddr,
    pub(crate) target: Target,
}

/// Who is known to send to this server now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    /// So many clients were asked by themselves.
    pub asked: usize,
    /// So many have answered for every address.
    pub answered: usize,
    /// So many have not, however often they were asked.
    pub silent: usize,
    /// The first of the silent ones.
    pub silent_first: Vec<IpAddr>,
    /// From the opening to the last answer that was the first for its address.
    pub last_answer: Option<Duration>,
}

#[derive(Debug)]
struct Asked {
    target: Target,
    /// Addresses it has not answered for.
    left: usize,
    silent: bool,
    /// Silent for so long that nobody knows it any more.
    forgotten: bool,
}

#[derive(Debug)]
struct Pair {
    asked: usize,
    own: usize,
    answered: bool,
}

/// One opening's questions and receipts.
#[derive(Debug)]
pub(crate) struct Round {
    from: BootTime,
    own: Vec<IpAddr>,
    asked: Vec<Asked>,
    pairs: Vec<Pair>,
    place: HashMap<(IpAddr, IpAddr), usize>,
    /// `waiting[n]`: asked n times, due then. Each is in order of time, for all in it wait equally long.
    waiting: [VecDeque<(BootTime, usize)>; WAITS.len() + 1],
    /// Asked that often, and asked on when it is time.
    late: BTreeSet<(BootTime, usize)>,
    /// When all of `late` were asked at once, because one of them had answered.
    hurried: BootTime,
    last_answer: Option<Duration>,
    changed: bool,
}

impl Round {
    /// Questions from each of `own` to each target of its family, in the order given: targets of the first
    /// address first.
    pub(crate) fn new(from: BootTime, own: Vec<IpAddr>, targets: &[Target]) -> Self {
        let mut round = Self {
            from,
            own,
            asked: Vec::new(),
            pairs: Vec::new(),
            place: HashMap::new(),
            waiting: Default::default(),
            late: BTreeSet::new(),
            hurried: BootTime(0),
            last_answer: None,
            changed: true,
        };
        round.extend(targets);
        round
    }

    /// Further targets, of whom was learned meanwhile; for those there the MAC address is corrected.
    pub(crate) fn extend(&mut self, targets: &[Target]) {
        let known: HashMap<IpAddr, usize> = (0..)
            .zip(&self.asked)
            .map(|(n, asked)| (asked.target.ip, n))
            .collect();
        let mut new = Vec::new();
        for target in targets {
            match known.get(&target.ip) {
                Some(n) => self.asked[*n].target.mac = target.mac.or(self.asked[*n].target.mac),
                None => new.push(*target),
            }
        }
        self.changed |= !new.is_empty();
        let first = self.asked.len();
        let asked = |target| Asked {
            target,
            left: 0,
            silent: false,
            forgotten: false,
        };
        self.asked.extend(new.into_iter().map(asked));
        self.pair(0, first);
    }

    /// Further addresses: everybody is asked for these too.
    pub(crate) fn extend_own(&mut self, own: impl Iterator<Item = IpAddr>) {
        let first = self.own.len();
        self.own.extend(own);
        self.changed |= self.own.len() > first;
        self.pair(first, 0);
    }

    /// A question from each address, from number `own` on, to each target of its family, from number `first` on.
    fn pair(&mut self, own: usize, first: usize) {
        let mut rank = [0; 2];
        let ranked = self.own.iter().enumerate().skip(own).map(|(n, ip)| {
            let place = &mut rank[usize::from(ip.is_ipv6())];
            *place += 1;
            (*place, n)
        });
        let mut ranked: Vec<(usize, usize)> = ranked.collect();
        ranked.sort_unstable();
        for (_, own) in ranked {
            for asked in first..self.asked.len() {
                if self.pairs.len() == PAIRS_MAX {
                    return;
                }
                let target = self.asked[asked].target.ip;
                if target.is_ipv6() == self.own[own].is_ipv6() {
                    self.asked[asked].left += 1;
                    self.place.insert((self.own[own], target), self.pairs.len());
                    self.waiting[0].push_back((BootTime(0), self.pairs.len()));
                    self.pairs.push(Pair {
                        asked,
                        own,
                        answered: false,
                    });
                }
            }
        }
    }

    /// The next question that is due: first what was never asked.
    pub(crate) fn poll_question(&mut self, now: BootTime) -> Option<Question> {
        for times in 0..self.waiting.len() {
            while let Some((due, n)) = self.waiting[times].front().copied() {
                if !self.pairs[n].answered && due > now {
                    break;
                }
                self.waiting[times].pop_front();
                let pair = &self.pairs[n];
                if pair.answered {
                    continue;
                }
                let Some(wait) = WAITS.get(times) else {
                    self.asked[pair.asked].silent = true;
                    self.changed = true;
                    self.ask_later(now, n);
                    continue;
                };
                self.waiting[times + 1].push_back((now + *wait, n));
                return Some(self.question(n));
            }
        }
        while let Some((due, n)) = self.late.first().copied() {
            if due > now {
                break;
            }
            self.late.pop_first();
            let pair = &self.pairs[n];
            if !pair.answered && !self.asked[pair.asked].forgotten {
                self.ask_later(now, n);
                return Some(self.question(n));
            }
        }
        None
    }

    fn question(&self, n: usize) -> Question {
        let pair = &self.pairs[n];
        Question {
            own: self.own[pair.own],
            target: self.asked[pair.asked].target,
        }
    }

    fn ask_later(&mut self, now: BootTime, n: usize) {
        let part = now.since(self.from) / LATE_PART;
        let each = LATE_EACH * u32::try_from(self.late.len()).unwrap_or(u32::MAX);
        let wait = part.max(each).clamp(LATE_FIRST, LATE_MAX);
        self.late.insert((now + wait, n));
    }

    /// When there is something to ask, or somebody to be called silent; none if everybody has answered or is forgotten.
    pub(crate) fn poll_timeout(&self) -> Option<BootTime> {
        let front = |waiting: &VecDeque<(BootTime, usize)>| waiting.front().map(|(due, _)| *due);
        let late = self.late.first().map(|(due, _)| *due);
        self.waiting.iter().filter_map(front).chain(late).min()
    }

    /// Whether everybody has answered or was called silent.
    pub(crate) fn is_settled(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// The silent that nobody knows any more are neither asked nor listed.
    pub(crate) fn forget(&mut self, is_known: impl Fn(&IpAddr) -> bool) {
        for asked in self.asked.iter_mut().filter(|a| a.silent && !a.forgotten) {
            asked.forgotten = !is_known(&asked.target.ip);
            self.changed |= asked.forgotten;
        }
    }

    /// `target` has answered to `own`. Whether that was asked and is news.
    pub(crate) fn answered(&mut self, now: BootTime, own: IpAddr, target: IpAddr) -> bool {
        let Some(n) = self.place.get(&(own, target)) else {
            return false;
        };
        let pair = &mut self.pairs[*n];
        if std::mem::replace(&mut pair.answered, true) {
            return false;
        }
        self.changed = true;
        let asked = &mut self.asked[pair.asked];
        let was_silent = asked.silent;
        asked.left -= 1;
        asked.silent &= asked.left > 0;
        if asked.target.client {
            self.last_answer = Some(now.since(self.from));
        }
        // The way is free again: the others need not wait for their turn.
        if was_silent && now.since(self.hurried) >= LATE_FIRST {
            self.hurried = now;
            let late = std::mem::take(&mut self.late);
            self.late = late.into_iter().map(|(_, n)| (now, n)).collect();
        }
        true
    }

    /// Whether it stands otherwise than when this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Whether further targets are still taken in.
    pub(crate) fn is_young(&self, now: BootTime) -> bool {
        now.since(self.from) < WAITS.iter().sum()
    }

    /// How it stands.
    pub(crate) fn receipts(&self) -> Receipts {
        let mut receipts = Receipts {
            last_answer: self.last_answer,
            ..Receipts::default()
        };
        let has_questions =
            |a: &&Asked| a.target.client && !a.forgotten && (a.left > 0 || self.is_asked(a));
        for asked in self.asked.iter().filter(has_questions) {
            receipts.asked += 1;
            receipts.answered += usize::from(asked.left == 0);
            if asked.silent {
                receipts.silent += 1;
                if receipts.silent_first.len() < SILENT_MAX {
                    receipts.silent_first.push(asked.target.ip);
                }
            }
        }
        receipts
    }

    /// Those of a family without an address here, and those beyond the limit, have no question.
    fn is_asked(&self, asked: &Asked) -> bool {
        let target = asked.target.ip;
        let first = self.own.iter().find(|o| o.is_ipv6() == target.is_ipv6());
        first.is_some_and(|own| self.place.contains_key(&(*own, target)))
    }
}

/// A token bucket: nothing else on the machine or the network is to feel the questions.
#[derive(Debug)]
pub(crate) struct Pace {
    /// In millionths of a question.
    tokens: u64,
    at: BootTime,
}

impl Pace {
    const QUESTION: u64 = 1_000_000;

    pub(crate) fn new() -> Self {
        Self {
            tokens: BURST * Self::QUESTION,
            at: BootTime(0),
        }
    }

    /// Whether one more may go now.
    pub(crate) fn take(&mut self, now: BootTime) -> bool {
        // Questions a millisecond are millionths of a question a nanosecond.
        let earned = now.0.saturating_sub(self.at.0).saturating_mul(RATE);
        self.tokens = self
            .tokens
            .saturating_add(earned)
            .min(BURST * Self::QUESTION);
        self.at = now;
        if self.tokens < Self::QUESTION {
            return false;
        }
        self.tokens -= Self::QUESTION;
        true
    }

    /// When a good number may go again: better some at a time than one by one.
    pub(crate) fn refilled(&self) -> BootTime {
        let missing = (BURST / 2 * Self::QUESTION).saturating_sub(self.tokens);
        self.at + Duration::from_nanos(missing.div_ceil(RATE))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::Ipv4Addr;

    const START: BootTime = BootTime(1_000_000_000_000);
    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
    const VIP2: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11));

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from(0xc612_0000 + n).into()
    }

    fn target(ip: IpAddr) -> Target {
        Target {
            ip,
            mac: Some([2, 0, 0, 0, 0, 9]),
            client: true,
        }
    }

    fn targets(n: u32) -> Vec<Target> {
        (0..n).map(|n| target(ip(n))).collect()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn due(round: &mut Round, now: BootTime) -> Vec<(IpAddr, IpAddr)> {
        std::iter::from_fn(|| round.poll_question(now))
            .map(|q| (q.own, q.target.ip))
            .collect()
    }

    /// Asks whenever there is something to ask, until all is settled: the times, since the start.
    fn play(round: &mut Round) -> Vec<Duration> {
        let mut times = Vec::new();
        while !round.is_settled() {
            times.extend(step(round));
        }
        times
    }

    /// The next questions: the time of each, since the start.
    fn step(round: &mut Round) -> Vec<Duration> {
        let now = round.poll_timeout().unwrap().max(START);
        let asked = due(round, now);
        asked.iter().map(|_| now.since(START)).collect()
    }

    #[test]
    fn all_clients_are_asked_for_the_first_address_then_for_the_second() {
        let v6: IpAddr = "2001:db8::10".parse().unwrap();
        let c6: IpAddr = "2001:db8::99".parse().unwrap();
        let mut asked = targets(2);
        asked.push(target(c6));
        let mut round = Round::new(START, vec![VIP, VIP2, v6], &asked);
        assert_eq!(
            due(&mut round, START),
            [
                (VIP, ip(0)),
                (VIP, ip(1)),
                (v6, c6),
                (VIP2, ip(0)),
                (VIP2, ip(1))
            ]
        );
        assert_eq!(due(&mut round, START + ms(1)), []);
    }

    #[test]
    fn the_unanswered_are_asked_again_and_then_listed() {
        let mut round = Round::new(START, vec![VIP], &targets(2));
        assert_eq!(round.poll_question(START).unwrap().target.ip, ip(0));
        assert!(round.answered(START + ms(1), VIP, ip(0)));
        assert!(!round.answered(START + ms(1), VIP, ip(0)), "no news");
        assert!(!round.answered(START + ms(1), VIP, ip(7)), "never asked");
        let times = play(&mut round);
        assert_eq!(times, [0, 2, 10, 50, 200, 1000].map(ms));
        let mut receipts = Receipts {
            asked: 2,
            answered: 1,
            silent: 1,
            silent_first: vec![ip(1)],
            last_answer: Some(ms(1)),
        };
        assert_eq!(round.receipts(), receipts);
        // Late, but it has answered.
        assert!(round.answered(START + ms(9000), VIP, ip(1)));
        receipts = Receipts {
            answered: 2,
            silent: 0,
            silent_first: vec![],
            last_answer: Some(ms(9000)),
            ..receipts
        };
        assert_eq!(round.receipts(), receipts);
    }

    #[test]
    fn the_silent_are_asked_ever_more_seldom_until_they_answer() {
        let mut round = Round::new(START, vec![VIP], &targets(2));
        let first = play(&mut round).len();
        assert_eq!(first, 12);
        let mut times = Vec::new();
        while times
            .last()
            .is_none_or(|last| *last < Duration::from_secs(1200))
        {
            times.extend(step(&mut round));
        }
        times.dedup();
        assert_eq!(times[..3], [3000, 4000, 5000].map(ms));
        let s = Duration::from_secs;
        for pair in times.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(gap >= s(1) && gap <= (pair[0] / 8).clamp(s(1), s(60)));
        }
        assert!(times.len() < 60, "{}", times.len());
        // The port forwards: who has answered tells that the others can too.
        let now = START + s(1201);
        assert!(round.poll_timeout().unwrap() > now);
        assert!(round.answered(now, VIP, ip(0)));
        assert_eq!(due(&mut round, now), [(VIP, ip(1))]);
        assert_eq!(round.receipts().silent_first, [ip(1)]);
        assert!(round.answered(now, VIP, ip(1)));
        assert_eq!((round.receipts().answered, round.receipts().silent), (2, 0));
        while round.poll_timeout().is_some() {
            assert_eq!(step(&mut round), []);
        }
    }

    #[test]
    fn many_silent_ones_share_the_questions_of_a_second() {
        let mut round = Round::new(START, vec![VIP], &targets(5000));
        play(&mut round);
        let mut asked = 0;
        while round.poll_timeout().unwrap() < START + Duration::from_secs(12) {
            asked += step(&mut round).len();
        }
        assert!((5000..=10_000).contains(&asked), "{asked} in 10 s");
    }

    #[test]
    fn a_silent_client_that_nobody_knows_any_more_is_forgotten() {
        let mut round = Round::new(START, vec![VIP], &targets(2));
        play(&mut round);
        round.take_changed();
        round.forget(|_| true);
        assert!(!round.take_changed());
        round.forget(|who| *who == ip(1));
        assert!(round.take_changed());
        assert_eq!(round.receipts().silent_first, [ip(1)]);
        assert_eq!(round.receipts().asked, 1);
        let asked: Vec<_> = (0..9)
            .flat_map(|_| {
                let at = round.poll_timeout().unwrap();
                due(&mut round, at)
            })
            .collect();
        assert!(!asked.is_empty() && asked.iter().all(|(_, to)| *to == ip(1)));
    }

    #[test]
    fn a_client_that_answers_for_one_address_of_two_is_silent() {
        let mut round = Round::new(START, vec![VIP, VIP2], &targets(1));
        due(&mut round, START);
        round.answered(START, VIP, ip(0));
        let waiting = round.receipts();
        assert_eq!((waiting.asked, waiting.answered, waiting.silent), (1, 0, 0));
        play(&mut round);
        let settled = round.receipts();
        assert_eq!((settled.asked, settled.answered, settled.silent), (1, 0, 1));
    }

    #[test]
    fn other_servers_are_asked_and_not_counted() {
        let server = Target {
            client: false,
            ..target(ip(0))
        };
        let mut round = Round::new(START, vec![VIP], &[server]);
        assert_eq!(play(&mut round).len(), 6);
        assert_eq!(round.receipts(), Receipts::default());
    }

    #[test]
    fn who_is_learned_of_meanwhile_is_asked_too_and_a_new_mac_address_used() {
        let mut round = Round::new(START, vec![VIP], &targets(1));
        due(&mut round, START);
        let moved = Target {
            mac: Some([2, 0, 0, 0, 0, 7]),
            ..target(ip(0))
        };
        round.extend(&[moved, target(ip(1))]);
        assert_eq!(due(&mut round, START), [(VIP, ip(1))]);
        let again = round.poll_question(START + ms(2)).unwrap();
        assert_eq!(again.target, moved);
        assert_eq!(round.receipts().asked, 2);
    }

    #[test]
    fn further_addresses_are_asked_for_and_the_answers_of_before_count() {
        let v6: IpAddr = "2001:db8::10".parse().unwrap();
        let c6: IpAddr = "2001:db8::99".parse().unwrap();
        let mut round = Round::new(START, vec![VIP], &[target(ip(0)), target(c6)]);
        assert_eq!(due(&mut round, START), [(VIP, ip(0))]);
        round.answered(START + ms(1), VIP, ip(0));
        round.extend_own([v6].into_iter());
        assert_eq!(due(&mut round, START + ms(1)), [(v6, c6)]);
        round.answered(START + ms(3), v6, c6);
        let receipts = round.receipts();
        assert_eq!((receipts.asked, receipts.answered), (2, 2));
        assert_eq!(receipts.last_answer, Some(ms(3)));
        assert_eq!(due(&mut round, START + ms(9)), []);
        // Who has answered for one address has not for the next.
        round.extend_own([VIP2].into_iter());
        assert_eq!(due(&mut round, START + ms(9)), [(VIP2, ip(0))]);
        assert_eq!(round.receipts().answered, 1);
    }

    #[test]
    fn pairs_are_bounded_and_the_first_addresses_come_first() {
        let own: Vec<IpAddr> = (0..10_000).map(|n| ip(100_000 + n)).collect();
        let mut round = Round::new(START, own.clone(), &targets(3000));
        let asked = due(&mut round, START);
        assert_eq!(asked.len(), PAIRS_MAX);
        assert!(asked[..3000].iter().all(|(from, _)| *from == own[0]));
        assert_eq!(asked[PAIRS_MAX - 1].0, own[6]);
        round.extend(&[target(ip(5000))]);
        assert_eq!(due(&mut round, START), []);
        assert_eq!(
            round.receipts().asked,
            3000,
            "one without a question is not asked"
        );
        let v6 = target("2001:db8::99".parse().unwrap());
        assert_eq!(Round::new(START, vec![VIP], &[v6]).receipts().asked, 0);
    }

    #[test]
    fn the_pace_is_kept() {
        let mut pace = Pace::new();
        let mut sent = 0;
        for step in 0..1000 {
            let now = START + Duration::from_micros(step * 10);
            while pace.take(now) {
                sent += 1;
            }
        }
        // Within 10 ms: the rate, and the first burst.
        assert!((1980..=2000 + 64).contains(&sent), "{sent}");
        let later = pace.refilled();
        assert!(later > START + ms(9) && later < START + ms(11));
        assert!(pace.take(later));
    }
}
