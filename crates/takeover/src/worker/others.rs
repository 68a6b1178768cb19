//! Whether another machine has one of the addresses and does not say so. They are asked for beside the vote and after
//! each opening, without claiming them, and seldom from then on (RFC 5227, RFC 4862). Nothing waits for that.

use super::{
    Worker,
    frames::Frame,
    opening::usable,
    set::{Phase, Set},
};
use crate::{Event, arp::Mac, clock::now, holders::probe, netlink::Link};
use config::{OnConflict, VirtualAddress};
use protocol::{BootTime, owner};
use std::{collections::HashSet, net::IpAddr, ops::Range, time::Duration};

/// When the addresses are asked for, counted from the opening; and how often from then on.
const ROUNDS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(5),
];
const SELDOM: Duration = Duration::from_secs(60);
/// So many addresses are asked for at a time, and so far apart: announcements go first.
const PIECE: usize = 256;
const PIECE_PAUSE: Duration = Duration::from_millis(100);
/// With `on_conflict = "wait"`: who answers so soon after the opening was there before, and ends it;
const THERE_BEFORE: Duration = Duration::from_secs(10);
/// who has answered so short a time ago keeps from opening;
const FRESH: Duration = Duration::from_secs(5);
/// and it is seen so often whether it has gone.
const AGAIN: Duration = Duration::from_secs(10);
/// While the addresses are not here an answer must come so soon after the question.
const ANSWER: Duration = Duration::from_secs(2);
/// An answer counts once in this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// The MAC addresses of this machine are read so often at most.
const LOCAL: Duration = Duration::from_secs(1);

/// When the addresses of a set are asked for, and who has answered.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// When the next are asked for.
    pub(super) next: Option<BootTime>,
    /// The rounds since the opening.
    round: usize,
    /// Which address is next.
    place: usize,
    opened: Option<BootTime>,
    /// When they were asked for last.
    asked: BootTime,
    /// Not opened, or given up, for another machine has an address.
    waiting: bool,
    answer: Option<Answer>,
}

/// Another machine's.
#[derive(Clone, Copy, Debug)]
struct Answer {
    ip: IpAddr,
    mac: Mac,
    at: BootTime,
}

impl Others {
    /// The addresses are there.
    pub(super) fn opened(&mut self, at: BootTime) {
        *self = Self {
            next: Some(at),
            opened: Some(at),
            answer: self.answer,
            ..Self::default()
        };
    }

    /// Found open: whoever has them beside this server has not come to light by their opening.
    pub(super) fn adopted(&mut self, at: BootTime) {
        self.round = ROUNDS.len();
        self.next = Some(at + SELDOM);
    }

    /// They are being removed.
    pub(super) fn closed(&mut self) {
        self.opened = None;
        self.place = 0;
        self.next = self.next.filter(|_| self.waiting);
    }

    fn wait(&mut self) {
        self.waiting = true;
        self.place = 0;
        self.next = Some(now() + AGAIN);
    }

    /// The addresses to ask for now; plans the next ones.
    fn piece(&mut self, count: usize, at: BootTime) -> Range<usize> {
        self.asked = at;
        let piece = self.place.min(count)..(self.place + PIECE).min(count);
        if piece.end < count {
            self.place = piece.end;
            self.next = Some(at + PIECE_PAUSE);
            return piece;
        }
        self.place = 0;
        self.round += 1;
        self.next = match self.opened {
            Some(opened) => {
                let planned = ROUNDS.get(self.round).map(|after| opened + *after);
                Some(planned.map_or(at + SELDOM, |planned| planned.max(at)))
            }
            None if self.waiting => Some(at + AGAIN),
            None if self.round > ROUNDS.len() => Some(at + SELDOM), // adopted
            None => None,
        };
        piece
    }

    fn answered_within(&self, span: Duration, at: BootTime) -> Option<Answer> {
        self.answer.filter(|answer| at.since(answer.at) <= span)
    }
}

/// What a frame says of one of our addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) ip: IpAddr,
    pub(super) mac: Mac,
    /// It answers a question, or would: nobody says so by itself only because it has just lost the address.
    pub(super) answers: bool,
}

impl Worker {
    /// A vote is being asked for.
    pub(super) fn look_for_others(&mut self, i: usize) {
        let set = &mut self.sets[i];
        if set.phase != Phase::Open && set.others.next.is_none() {
            set.others.next = Some(BootTime(0));
        }
    }

    pub(super) fn ask_for_others(&mut self, i: usize) {
        let at = now();
        self.see_whether_gone(i, at);
        let set = &mut self.sets[i];
        if set.others.next.is_none() {
            return;
        }
        let piece = set.others.piece(set.addresses.len(), at);
        let link = match (set.phase, &set.below, &set.link) {
            (Phase::Open, Some(link), _) | (Phase::Open, None, Some(link)) => Some(link.clone()),
            _ => self.asking_link(i).ok(), // what is wrong with it is said when it is to open
        };
        if let Some(link) = link {
            self.ask(i, piece, &link);
        }
    }

    /// The interface to ask by: with its own MAC address, to claim nothing.
    pub(super) fn asking_link(&mut self, i: usize) -> Result<Link, String> {
        let found = self.configured_link(i);
        let link = found.and_then(|link| usable(link, &self.sets[i].network))?;
        let set = &mut self.sets[i];
        if set.device.is_none() {
            set.link = Some(link.clone());
        } else {
            set.below = Some(link.clone());
        }
        Ok(link)
    }

    /// "Has anybody this address?"
    pub(super) fn ask(&mut self, i: usize, piece: Range<usize>, link: &Link) {
        let Some(mac) = link.mac else { return };
        let frame = |a: &VirtualAddress| {
            let (ethertype, bytes) = probe(mac, a.ip);
            Frame {
                generation: 0,
                interface: link.index,
                ethertype,
                bytes,
            }
        };
        self.queue
            .extend(self.sets[i].addresses[piece].iter().map(frame));
    }

    /// Before each round while it waits.
    fn see_whether_gone(&mut self, i: usize, at: BootTime) {
        let set = &mut self.sets[i];
        if !set.others.waiting || set.others.place > 0 {
            return;
        }
        // The configuration may have changed.
        let taken = set.on_conflict == OnConflict::Wait
            && set.others.answered_within(2 * AGAIN + FRESH, at).is_some();
        if !taken {
            set.others = Others::default();
        }
        let v = set.v.clone();
        (self.emit)(Event::Taken { v, taken });
    }

    /// Why the set must not open, if it must not.
    pub(super) fn is_taken(&mut self, i: usize) -> Option<String> {
        let set = &mut self.sets[i];
        if set.on_conflict == OnConflict::Take {
            return None;
        }
        let answer = set.others.answered_within(FRESH, now())?;
        set.others.wait();
        self.report(i, answer);
        Some(taken(answer))
    }

    /// A frame says that one of the set's addresses is at a MAC address that is not the set's own.
    pub(super) fn claimed_by_other(&mut self, i: usize, claim: Claim) {
        let at = now();
        let set = &self.sets[i];
        let listens = set.phase == Phase::Open || at.since(set.others.asked) < ANSWER;
        let answered = set.others.answered_within(INTERVAL, at);
        let news = !set.was_reported(claim.ip, at) || (claim.answers && answered.is_none());
        if !listens || !news || self.is_of_this_machine(claim.mac, at) {
            return;
        }
        let of_server = self.server_macs().contains(&claim.mac);
        let (ip, mac) = (claim.ip, claim.mac);
        let set = &mut self.sets[i];
        if claim.answers && !of_server {
            set.others.answer = Some(Answer { ip, mac, at });
        }
        if set.phase != Phase::Open && !set.others.waiting {
            return; // it is said when it keeps from opening
        }
        let early = |opened: BootTime| at.since(opened) < THERE_BEFORE;
        let gives_up = set.on_conflict == OnConflict::Wait
            && set.phase == Phase::Open
            && claim.answers
            && !of_server
            && set.others.opened.is_some_and(early);
        if !set.was_reported(ip, at) {
            if set.phase == Phase::Open && !gives_up {
                self.announce_one(i, ip);
            }
            self.report_claim(i, ip, mac, of_server, at);
        }
        if gives_up {
            self.sets[i].others.wait();
            self.open_failed(i, taken(Answer { ip, mac, at }));
        }
    }

    fn report(&mut self, i: usize, answer: Answer) {
        let at = now();
        if !self.sets[i].was_reported(answer.ip, at) {
            self.report_claim(i, answer.ip, answer.mac, false, at);
        }
    }

    fn report_claim(&mut self, i: usize, ip: IpAddr, mac: Mac, of_server: bool, at: BootTime) {
        let set = &mut self.sets[i];
        set.claims.insert(ip, at);
        (self.emit)(Event::ForeignClaim {
            v: set.v.clone(),
            ip,
            mac,
            of_server,
        });
    }

    /// Another interface of this machine in the same network answers too, as Linux does unless told otherwise.
    fn is_of_this_machine(&mut self, mac: Mac, at: BootTime) -> bool {
        if at.since(self.local_macs.0) > LOCAL {
            let links = self.netlink.links().unwrap_or_default();
            self.local_macs = (at, links.iter().filter_map(|l| l.mac).collect());
        }
        self.local_macs.1.contains(&mac)
    }

    fn server_macs(&self) -> HashSet<Mac> {
        let macs = self.server_macs.lock();
        let macs = macs.unwrap_or_else(std::sync::PoisonError::into_inner);
        macs.values().copied().collect()
    }
}

impl Set {
    fn was_reported(&self, ip: IpAddr, at: BootTime) -> bool {
        let last = self.claims.get(&ip);
        last.is_some_and(|last| at.since(*last) < INTERVAL)
    }
}

fn taken(Answer { ip, mac, .. }: Answer) -> String {
    let mac = owner::Mac(mac);
    format!(
        "another machine, {mac}, has {ip}, and on_conflict = \"wait\": it is taken over when that machine has gone"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(others: &mut Others, count: usize, until: u64) -> Vec<(u64, usize)> {
        let mut asked = Vec::new();
        while let Some(at) = others.next.filter(|at| at.0 <= until * 1_000_000) {
            asked.push((at.0 / 1_000_000, others.piece(count, at).len()));
        }
        asked
    }

    #[test]
    fn addresses_are_asked_for_at_the_opening_soon_after_it_and_each_minute() {
        let mut others = Others::default();
        others.opened(BootTime(0));
        let rounds = [0, 1000, 5000, 65_000, 125_000].map(|ms| (ms, 2));
        assert_eq!(asked(&mut others, 2, 130_000), rounds);
        others.closed();
        assert_eq!(others.next, None);
    }

    #[test]
    fn many_are_asked_for_in_pieces() {
        let mut others = Others::default();
        others.opened(BootTime(0));
        let pieces = [(0, 256), (100, 256), (200, 88), (1000, 256)];
        assert_eq!(asked(&mut others, 600, 1000), pieces);
    }

    #[test]
    fn beside_a_vote_they_are_asked_for_once_and_while_waiting_again_and_again() {
        let mut others = Others {
            next: Some(BootTime(1)),
            ..Others::default()
        };
        assert_eq!(asked(&mut others, 1, 90_000).len(), 1);
        others.waiting = true;
        others.next = Some(BootTime(0));
        assert_eq!(
            asked(&mut others, 1, 20_000),
            [(0, 1), (10_000, 1), (20_000, 1)]
        );
        others.closed();
        assert!(others.next.is_some());
    }

    #[test]
    fn an_adopted_set_is_asked_for_seldom() {
        let mut others = Others::default();
        others.adopted(BootTime(0));
        assert_eq!(asked(&mut others, 1, 130_000), [(60_000, 1), (120_000, 1)]);
    }
}
