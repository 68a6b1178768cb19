//! What is said on the network about the addresses, and heard.

use super::{BURSTS, WINDOW, Worker, others::Claim, set::Phase};
use crate::{
    Event,
    arp::{self, Mac},
    clock::now,
    ndp,
    refresher::{self, Opening},
};
use std::{fs, io, net::IpAddr, time::Duration};

/// At most so many frames in each window: a switch or a slow host must not drop them.
const FRAMES_A_WINDOW: usize = 1000;
/// Most frames sent or read between two looks at the deadlines.
const FRAMES_A_ROUND: usize = 64;
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct Frame {
    pub(super) generation: u64,
    pub(super) interface: u32,
    pub(super) ethertype: u16,
    pub(super) bytes: Vec<u8>,
}

impl Worker {
    /// Reads what others say about our addresses.
    pub(super) fn hear(&mut self) {
        let mut buffer = [0; 256];
        for _ in 0..FRAMES_A_ROUND {
            match self.arp.receive(&mut buffer) {
                Ok(Some((length, interface))) => {
                    if let Some(heard) = arp::parse(&buffer[..length]) {
                        let claim = Claim {
                            ip: heard.sender.into(),
                            mac: heard.sender_mac,
                            answers: heard.reply,
                        };
                        self.claimed(interface, claim);
                    }
                }
                Ok(None) => break,
                Err(_) => {} // an interface went down: told elsewhere
            }
        }
        for _ in 0..FRAMES_A_ROUND {
            match self.nd.as_ref().map(|nd| nd.receive(&mut buffer)) {
                Some(Ok(Some((length, interface)))) => {
                    if let Some(heard) = ndp::parse_claim(&buffer[..length]) {
                        let claim = Claim {
                            ip: heard.claimed.into(),
                            mac: heard.mac,
                            answers: heard.advertised,
                        };
                        self.claimed(interface, claim);
                    }
                }
                None | Some(Ok(None)) => break,
                Some(Err(_)) => {}
            }
        }
    }

    fn claimed(&mut self, interface: u32, claim: Claim) {
        let Some(&i) = self.owner.get(&claim.ip) else {
            return;
        };
        let set = &mut self.sets[i];
        // The virtual MAC address is another's until it is up here.
        let ours = match set.phase {
            Phase::Open => &set.link,
            _ => set.below.as_ref().map_or(&set.link, |_| &set.below),
        };
        let mac = Some(claim.mac);
        if !set.is_at(interface) || ours.as_ref().is_some_and(|l| l.mac == mac) {
            return;
        }
        if set.probe.take().is_some() {
            (self.emit)(Event::Probed {
                v: set.v.clone(),
                answered_by: mac,
            });
        }
        self.claimed_by_other(i, claim);
    }

    pub(super) fn announce_one(&mut self, i: usize, ip: IpAddr) {
        let set = &self.sets[i];
        let Some((link, mac)) = set.link.as_ref().and_then(|l| Some((l, l.mac?))) else {
            return;
        };
        self.queue.push_back(announcement(
            set.generation,
            link.index,
            mac,
            ip,
            is_router(&link.name),
        ));
    }

    /// Queues what is due and sends a piece of the queue. Whether there is more to send now.
    pub(super) fn speak(&mut self) -> bool {
        for i in 0..self.sets.len() {
            if self.sets[i].next_burst_at().is_some_and(|at| at <= now()) {
                self.queue_burst(i);
            }
            if self.sets[i].probe.as_ref().is_some_and(|p| p.next <= now()) {
                self.probe_on(i);
            }
            if self.sets[i].others.next.is_some_and(|at| at <= now()) {
                self.ask_for_others(i);
            }
        }
        self.send_some()
    }

    fn queue_burst(&mut self, i: usize) {
        let set = &mut self.sets[i];
        let burst = set.next_burst;
        // Late ones are made up for by one.
        while let Some(at) = set.next_burst_at().filter(|at| *at <= now()) {
            set.next_burst += 1;
            set.last_burst = at.since(set.announced_from);
        }
        let Some((link, mac)) = set.link.as_ref().and_then(|l| Some((l, l.mac?))) else {
            return;
        };
        let router = is_router(&link.name);
        if set.announced().next().is_none() {
            return; // soon
        }
        // Switches are reminded by one frame.
        let whole = burst < BURSTS.len() || set.goes_on_announcing();
        let count = if whole { usize::MAX } else { 1 };
        let own = set.announced().take(count);
        self.queue
            .extend(own.map(|ip| announcement(set.generation, link.index, mac, ip, router)));
        if burst == 0 {
            let opening = Opening {
                v: set.v.clone(),
                generation: set.generation,
                from: set.announced_from,
                interface: link.index,
                name: set.network.clone(),
                mac,
                own: set.announced().collect(),
                shared: set.shared.clone(),
            };
            self.send_some(); // the broadcasts go first
            self.refresher.tell(refresher::Command::Opened(opening));
        }
    }

    fn send_some(&mut self) -> bool {
        if now().since(self.window_from) >= WINDOW {
            self.window_from = now();
            self.window_sent = 0;
        }
        let quota = FRAMES_A_ROUND.min(FRAMES_A_WINDOW - self.window_sent);
        for _ in 0..quota {
            let Some(frame) = self.queue.front() else {
                return false;
            };
            let sent = self
                .sender
                .send(frame.interface, frame.ethertype, &frame.bytes);
            let full = |e: &io::Error| {
                e.kind() == io::ErrorKind::WouldBlock
                    || e.raw_os_error() == Some(nix::libc::ENOBUFS)
            };
            self.window_sent += 1;
            if sent.as_ref().is_err_and(full) {
                self.window_sent = FRAMES_A_WINDOW; // the next window tries it again
                break;
            }
            // Other errors mean that the interface is gone or down: told elsewhere.
            self.queue.pop_front();
        }
        !self.queue.is_empty() && self.window_sent < FRAMES_A_WINDOW
    }

    fn probe_on(&mut self, i: usize) {
        let set = &mut self.sets[i];
        let v = set.v.clone();
        let Some(probe) = &mut set.probe else { return };
        if probe.left == 0 {
            set.probe = None;
            return (self.emit)(Event::Probed {
                v,
                answered_by: None,
            });
        }
        let link = match self.asking_link(i) {
            Ok(link) => link,
            Err(what) => {
                self.sets[i].probe = None;
                return (self.emit)(Event::Failed { v, what });
            }
        };
        let set = &mut self.sets[i];
        if let Some(probe) = &mut set.probe {
            probe.left -= 1;
            probe.next = now() + PROBE_INTERVAL;
        }
        let all = 0..set.addresses.len();
        self.ask(i, all, &link);
    }
}

fn announcement(generation: u64, interface: u32, mac: Mac, ip: IpAddr, router: bool) -> Frame {
    let (ethertype, bytes) = match ip {
        IpAddr::V4(ip) => (arp::ETHERTYPE, arp::gratuitous(mac, ip)),
        IpAddr::V6(ip) => (ndp::ETHERTYPE, ndp::advertisement(mac, ip, router)),
    };
    Frame {
        generation,
        interface,
        ethertype,
        bytes,
    }
}

/// Whether this server forwards IPv6 there: hosts drop a router whose advertisements deny it.
fn is_router(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}
