//! Behind the eBPF gate: static rules of nftables that drop packets of virtual addresses on every interface that has no
//! gate. An interface that comes while electd is stopped, killed or slow answers for nothing; no clock is needed.
//!
//! The tables know the virtual addresses and the interfaces that have the gate, by number. A thread of their own writes
//! them, so that a program that keeps nftables busy delays no takeover: an interface has its gate first, and is let
//! through here a moment later. They outlive electd, as the gate does; a later life makes tables with a name of its own
//! and removes the earlier ones in the same batch, with no packet between.

use super::{
    lock,
    nftables::{delete, existing, prefix, try_out},
    ruleset::{
        self, ARP_INPUT, ARP_OUTPUT, Chain, DROP, IIF, LOCAL_INPUT, LOOPBACK, OIF, POSTROUTING,
        PREROUTING, PRIORITY, is_in, item, meta, named, network, transport, verdict,
    },
    transit,
};
use crate::{
    clock::now,
    nfnetlink::{
        ARP, CREATE, DEL_CHAIN, DEL_ELEMENT, DEL_RULE, DEL_TABLE, EXCLUSIVE, INET, Message,
        Monitor, NEW_ELEMENT, NEW_SET, NEW_TABLE, Nfnetlink,
    },
    sleep::Sleeper,
};
use crossbeam_channel::{Receiver, Sender};
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

const GATED: &str = "gated";
const VIRTUAL4: &str = "virtual4";
const VIRTUAL6: &str = "virtual6";
const LOCAL: &str = "local";

/// How often tables are put in the place of others that change in this moment.
const TRIES: usize = 6;
/// A clean stop waits for the removal for so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
const STACK: usize = 256 * 1024;

enum Command {
    /// What the tables are to know has changed.
    Look,
    /// Take them away, and say so.
    Remove(Sender<()>),
    Stop,
}

/// What the tables are to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    addresses: BTreeSet<IpAddr>,
    /// Numbers of the interfaces that have the gate.
    gated: BTreeSet<u32>,
}

/// One electd's tables. They stay when this is dropped.
#[derive(Debug)]
pub(super) struct Backstop {
    wanted: Arc<Mutex<Known>>,
    commands: Sender<Command>,
    waker: Arc<EventFd>,
}

/// Whether nftables would have the rules; the words say why not.
pub(super) fn check() -> Result<(), String> {
    let mut kernel = Nfnetlink::open().map_err(|e| format!("a netlink socket: {e}"))?;
    let name = format!("standin-check-{:x}", now().0);
    try_out(&mut kernel, [tables(&name), rules(&name)].concat())
}

/// The beginning of the names of a server's tables.
pub(super) fn prefix_of(run_dir: &Path) -> String {
    prefix("standin-backstop-", run_dir)
}

impl Backstop {
    /// Starts the thread. Nothing is made before [`Self::know`] has told of interfaces.
    pub(super) fn start(run_dir: &Path) -> Result<Self, String> {
        check()?;
        let socket = |e| format!("a netlink socket: {e}");
        let kernel = Nfnetlink::open().map_err(socket)?;
        let monitor = Monitor::open().map_err(socket)?;
        let waker = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|e| format!("an event descriptor: {e}"))?;
        let waker = Arc::new(waker);
        let sleeper = Sleeper::new(waker.clone()).map_err(|e| e.to_string())?;
        sleeper.watch(&monitor).map_err(|e| e.to_string())?;
        let (commands, inbox) = crossbeam_channel::unbounded();
        let wanted = Arc::<Mutex<Known>>::default();
        let writer = Writer {
            prefix: prefix_of(run_dir),
            kernel,
            monitor,
            sleeper,
            commands: inbox,
            wanted: wanted.clone(),
            tables: None,
            failed: false,
        };
        std::thread::Builder::new()
            .name("backstop".into())
            .stack_size(STACK)
            .spawn(move || writer.run())
            .map_err(|e| format!("a thread that writes them: {e}"))?;
        Ok(Self {
            wanted,
            commands,
            waker,
        })
    }

    /// These interfaces, and no others, have the gate now.
    pub(super) fn know<'a>(&self, gated: impl Iterator<Item = &'a u32> + Clone) {
        let mut wanted = lock(&self.wanted);
        if !wanted.gated.iter().eq(gated.clone()) {
            wanted.gated = gated.copied().collect();
            drop(wanted);
            self.tell(Command::Look);
        }
    }

    pub(super) fn lead(&self, addresses: impl Iterator<Item = IpAddr>) {
        lock(&self.wanted).addresses.extend(addresses);
        self.tell(Command::Look);
    }

    pub(super) fn forget(&self, ip: IpAddr) {
        lock(&self.wanted).addresses.remove(&ip);
        self.tell(Command::Look);
    }

    /// A clean stop.
    pub(super) fn remove(&self) {
        let (done, removed) = crossbeam_channel::bounded(1);
        self.tell(Command::Remove(done));
        if removed.recv_timeout(PATIENCE).is_err() {
            log::warn!("the tables of the backstop may be left: nftables is busy");
        }
    }

    fn tell(&self, command: Command) {
        // Both fail only when the thread is gone or the counter full: it is readable then.
        let _ = self.commands.send(command);
        let _ = self.waker.write(1);
    }
}

impl Drop for Backstop {
    fn drop(&mut self) {
        // Not waited for: nftables may be busy.
        self.tell(Command::Stop);
    }
}

struct Writer {
    prefix: String,
    kernel: Nfnetlink,
    monitor: Monitor,
    sleeper: Sleeper,
    commands: Receiver<Command>,
    wanted: Arc<Mutex<Known>>,
    /// The name of the tables in force, and what they know.
    tables: Option<(String, Known)>,
    failed: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Look => {}
                    Command::Stop => return,
                    Command::Remove(done) => {
                        self.remove();
                        let _ = done.send(());
                        return;
                    }
                }
            }
            if self.monitor.saw(&[DEL_TABLE, DEL_CHAIN, DEL_RULE]) && !self.is_whole() {
                self.tables = None;
                log::warn!("another program has removed the backstop in nftables: put back");
            }
            let written = self.write();
            if let Err(what) = &written
                && !self.failed
            {
                log::error!("the backstop in nftables: {what}");
            }
            self.failed = written.is_err();
            let again = self.failed.then(|| now() + RETRY);
            self.sleeper.wait(again, false);
        }
    }

    /// As far as that is looked at: the chains are there, each with its rules.
    fn is_whole(&mut self) -> bool {
        let Some((name, _)) = &self.tables else {
            return true;
        };
        let expected = rules(name).len() - 1; // the chain `LOCAL` is not in the list, its rule is
        let there = ruleset::listed(&mut self.kernel, name).map(|all| all.len());
        // The two tables are in the list too.
        there.is_ok_and(|there| there == expected + 2)
    }

    fn write(&mut self) -> Result<(), String> {
        let wanted = lock(&self.wanted).clone();
        let Some((name, written)) = &mut self.tables else {
            if wanted.gated.is_empty() {
                return Ok(()); // not begun
            }
            return self.build(wanted);
        };
        if *written == wanted {
            return Ok(());
        }
        let gone = elements(DEL_ELEMENT, name, written, &wanted);
        let new = elements(NEW_ELEMENT, name, &wanted, written);
        for message in gone.into_iter().chain(new) {
            if let Err(what) = commit(&mut self.kernel, &[message]) {
                log::warn!("the backstop in nftables: {what}; made anew");
                return self.build(wanted);
            }
        }
        *written = wanted;
        Ok(())
    }

    /// Makes the tables anew and puts them in the place of all earlier ones.
    fn build(&mut self, wanted: Known) -> Result<(), String> {
        let name = format!("{}{:x}", self.prefix, now().0);
        let built = self.build_named(&name, &wanted);
        if built.is_ok() {
            self.tables = Some((name, wanted));
        } else {
            self.tables = None;
            for family in [INET, ARP] {
                let _ = self.kernel.commit(&[delete(family, &name)]);
            }
        }
        built
    }

    fn build_named(&mut self, name: &str, wanted: &Known) -> Result<(), String> {
        commit(&mut self.kernel, &tables(name))?;
        for message in elements(NEW_ELEMENT, name, wanted, &Known::default()) {
            commit(&mut self.kernel, &[message])?;
        }
        let mut refused = String::new();
        for _ in 0..TRIES {
            let mut messages =
                existing(&mut self.kernel, &self.prefix).map_err(|e| e.to_string())?;
            let this = delete(INET, name);
            messages.retain(|m| m.attributes != this.attributes);
            messages.extend(rules(name));
            match commit(&mut self.kernel, &messages) {
                Ok(()) => return Ok(()),
                Err(e) => refused = e, // one of the earlier tables has gone in this moment, perhaps
            }
        }
        Err(refused)
    }

    fn remove(&mut self) {
        let gone = existing(&mut self.kernel, &self.prefix);
        if let Err(e) = gone.and_then(|gone| self.kernel.commit(&gone)) {
            log::warn!("cannot remove the tables {}...: {e}", self.prefix);
        }
    }
}

fn commit(kernel: &mut Nfnetlink, messages: &[Message]) -> Result<(), String> {
    let refused = kernel.commit(messages).map_err(|e| e.to_string())?;
    // What is to go has gone.
    let mut refused = refused
        .iter()
        .filter(|(n, e)| !(messages[*n].kind == DEL_ELEMENT && *e == Errno::ENOENT));
    refused
        .next()
        .map_or(Ok(()), |(_, errno)| Err(errno.desc().to_owned()))
}

/// Puts in (or takes out, by `kind`) what these know and those do not. Messages for batches of their own.
fn elements(kind: u8, table: &str, these: &Known, those: &Known) -> Vec<Message> {
    let (mut v4, mut v6, mut gated) = (vec![], vec![], vec![]);
    for ip in these.addresses.difference(&those.addresses) {
        match ip {
            IpAddr::V4(ip) => v4.push(item(&ip.octets(), None)),
            IpAddr::V6(ip) => v6.push(item(&ip.octets(), None)),
        }
    }
    for index in these.gated.difference(&those.gated) {
        gated.push(item(&index.to_ne_bytes(), None));
    }
    let sets = [
        (INET, VIRTUAL4, &v4),
        (INET, VIRTUAL6, &v6),
        (INET, GATED, &gated),
        (ARP, VIRTUAL4, &v4),
        (ARP, GATED, &gated),
    ];
    let flags = if kind == NEW_ELEMENT { CREATE } else { 0 };
    sets.iter()
        .flat_map(|(family, set, items)| ruleset::fill(kind, flags, (*family, table, set), items))
        .collect()
}

/// The tables and their sets, empty; no packet is looked at yet.
fn tables(table: &str) -> Vec<Message> {
    // As nft names the type of an interface's number.
    const INTERFACE: (u32, u32) = (20, 4);
    let mut id = 0;
    let mut set = |family, name: &str, key: (u32, u32)| {
        id += 1;
        let about = named(table)
            .text(2, name)
            .number(3, 0)
            .number(4, key.0)
            .number(5, key.1)
            .number(10, id);
        Message::new(NEW_SET, family, EXCLUSIVE, about)
    };
    let new_table = |family| Message::new(NEW_TABLE, family, EXCLUSIVE, named(table));
    vec![
        new_table(INET),
        new_table(ARP),
        set(INET, VIRTUAL4, ruleset::IPV4),
        set(INET, VIRTUAL6, ruleset::IPV6),
        set(INET, GATED, INTERFACE),
        set(ARP, VIRTUAL4, ruleset::IPV4),
        set(ARP, GATED, INTERFACE),
    ]
}

/// Chains and rules: from here on packets are looked at. The kinds of packets are those of the gate; what is only passed
/// on is dropped too, for before it is routed an address may be translated.
fn rules(table: &str) -> Vec<Message> {
    let [input, output] = ruleset::CHAINS;
    let drop = |which: &[_], address, set| [which, &[address, is_in(set), verdict(DROP)]].concat();
    let has_gate = |direction| [meta(direction), is_in(GATED)];
    let is_loopback = |direction| [meta(direction), ruleset::is(&LOOPBACK.to_ne_bytes())];
    let (ipv4, ipv6) = (ruleset::ipv4(), ruleset::ipv6());
    let (solicitation, advertisement) = (ruleset::icmpv6(135), ruleset::icmpv6(136));
    let target = transport(8, 16);

    let mut arriving = Chain::new(table, INET, input, PREROUTING);
    arriving.accept(&has_gate(IIF));
    arriving.accept(&is_loopback(IIF));
    arriving.rule(&drop(&ipv4, network(16, 4), VIRTUAL4));
    arriving.rule(&drop(&solicitation, target.clone(), VIRTUAL6));
    arriving.rule(&drop(&ipv6, network(24, 16), VIRTUAL6));

    let mut leaving = Chain::new(table, INET, output, POSTROUTING);
    leaving.accept(&has_gate(OIF));
    leaving.accept(&is_loopback(OIF));
    leaving.rule(&drop(&ipv4, network(12, 4), VIRTUAL4));
    leaving.rule(&drop(&advertisement, target, VIRTUAL6));
    leaving.rule(&drop(&ipv6, network(8, 16), VIRTUAL6));

    let mut arp_in = Chain::new(table, ARP, input, ARP_INPUT);
    arp_in.accept(&has_gate(IIF));
    arp_in.accept(&[network(14, 4), is_in(VIRTUAL4)]); // another one's claim
    arp_in.rule(&drop(&[], network(24, 4), VIRTUAL4));

    let mut arp_out = Chain::new(table, ARP, output, ARP_OUTPUT);
    arp_out.accept(&has_gate(OIF));
    arp_out.rule(&drop(&[], network(14, 4), VIRTUAL4));

    // What the gate let through as only passing through, and is delivered here all the same: by a translation, or a
    // rule for transparent proxies.
    let mut local = Chain::new(table, INET, LOCAL, LOCAL_INPUT);
    let marked = ruleset::is(&transit::ONWARD_PRIORITY.to_ne_bytes());
    local.rule(&[meta(PRIORITY), marked, verdict(DROP)]);

    [arriving, leaving, local, arp_in, arp_out]
        .into_iter()
        .flat_map(|chain| chain.messages)
        .collect()
}
