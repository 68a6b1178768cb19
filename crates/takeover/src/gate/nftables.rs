//! The gate of nftables, where eBPF is not to be had: packets of a virtual address pass while its door's number is an
//! element of two sets, from which it goes by itself.
//!
//! nftables knows no absolute deadline, only how long from now an element lives, so a stall between reading the
//! clock and the kernel's doing stretches it. Therefore:
//!
//! - The clock is read again after each write. What took longer than [`LATE`] counts as not written and is written
//!   again; electd ends its use of the lease as much earlier ([`MARGIN`]).
//! - Two sets, `a` and `b`, and a packet needs both. While one is written the other one's element is known to be
//!   in time, and ends by itself: a write that was held up for any time opens nothing.
//! - Taking out and putting in again is one batch: putting in what is there would not extend it.
//!
//! The tables outlive electd. A later life makes tables with a name of its own and removes the earlier ones in the
//! same batch, with no packet between: what an earlier life might still write finds no table. The same when the
//! addresses change, and when another program has changed or flushed them.
//!
//! Extending a lease only notes the deadline; a thread of the gate's own writes it. So a program that keeps nftables
//! busy delays no heartbeat.

use super::{DOORS, lock, ruleset, stall};
use crate::{
    clock::now,
    gate_file,
    nfnetlink::{
        ARP, Attributes, DEL_ELEMENT, DEL_TABLE, DESTROY_ELEMENT, GET_TABLE, INET, Message,
        NEW_ELEMENT, Nfnetlink, attribute,
    },
    sys,
};
use nix::errno::Errno;
use protocol::BootTime;
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{JoinHandle, Thread},
    time::Duration,
};

/// How much earlier than a lease's end its deadline must be.
pub(crate) const MARGIN: Duration = Duration::from_millis(20);
/// A write that took longer is not to be relied on: the element may outlive the deadline by so much. The rest of the
/// margin is for the kernel's own count of time, which stands still between two ticks, and for some more
/// when the processor that counts is held up.
const LATE: Duration = Duration::from_millis(2);
/// What would be open for less than this stays shut. (And never 0 ms, which would mean for good.)
const SHORTEST: Duration = Duration::from_millis(12);
/// How often a write is tried in a row.
const TRIES: usize = 6;
const STACK: usize = 256 * 1024;
const PREFIX: &str = "standin-";

/// One electd's gate: its own tables.
#[derive(Debug)]
pub(crate) struct Nftables {
    core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Core {
    /// What the names of this server's tables begin with.
    prefix: String,
    wanted: Vec<Wanted>,
    stop: AtomicBool,
    writer: OnceLock<Thread>,
    state: Mutex<State>,
}

/// The two deadlines that a door is to have: of ARP and neighbour discovery, and of all else.
#[derive(Debug, Default)]
struct Wanted {
    first: AtomicU64,
    second: AtomicU64,
}

impl Wanted {
    fn get(&self) -> Deadlines {
        [&self.first, &self.second].map(|d| BootTime(d.load(SeqCst)))
    }
}

type Deadlines = [BootTime; 2];
const SHUT: Deadlines = [BootTime(0); 2];

#[derive(Debug)]
struct State {
    kernel: Nfnetlink,
    /// What takes an element out: the kind of message.
    take_out: u8,
    free: Vec<usize>,
    addresses: BTreeMap<IpAddr, usize>,
    /// The tables, once they are in force.
    table: Option<Table>,
    /// The addresses have changed since the tables were made.
    stale: bool,
    /// The tables were put back, and nobody has been told yet.
    put_back: bool,
    written: Vec<Deadlines>,
}

#[derive(Debug)]
struct Table {
    name: String,
    /// Tables, chains and rules as the kernel lists them.
    listed: Vec<Vec<u8>>,
}

/// Whether nftables would have the gate; the words say why not.
pub(super) fn check() -> Result<(), String> {
    let mut kernel = Nfnetlink::open().map_err(|e| format!("a netlink socket: {e}"))?;
    let name = format!("standin-check-{:x}", now().0);
    let mut messages = ruleset::tables(&name);
    messages.extend(ruleset::doors(&name, 0));
    messages.extend(ruleset::rules(&name));
    try_out(&mut kernel, messages)
}

/// Has the kernel carry these out, and undo them.
pub(super) fn try_out(kernel: &mut Nfnetlink, mut messages: Vec<Message>) -> Result<(), String> {
    // The last one is refused, so nothing of it happens.
    messages.push(delete(INET, "standin-none"));
    let refused = kernel.commit(&messages).map_err(|e| e.to_string())?;
    match refused.iter().find(|(n, _)| *n + 1 < messages.len()) {
        Some((_, Errno::EPERM)) => Err("CAP_NET_ADMIN is needed".to_owned()),
        Some((n, errno)) => {
            let kind = messages[*n].kind;
            Err(format!("{} (message {n}, kind {kind})", errno.desc()))
        }
        None => Ok(()),
    }
}

/// Removes the tables of a server that has another gate now.
pub(crate) fn remove_left_over(run_dir: &Path) {
    remove_named(&prefix(PREFIX, run_dir));
}

/// Removes the tables whose names begin so.
pub(super) fn remove_named(prefix: &str) {
    let removed = Nfnetlink::open().and_then(|mut kernel| {
        let gone: Vec<_> = existing(&mut kernel, prefix)?;
        kernel.commit(&gone)
    });
    // Without nftables there is nothing left over.
    if let Ok(refused) = removed
        && let Some((_, errno)) = refused.first()
    {
        log::warn!("cannot remove tables {prefix}...: {}", errno.desc());
    }
}

/// What the names of a server's tables begin with.
pub(super) fn prefix(kind: &str, run_dir: &Path) -> String {
    let run_dir = run_dir.canonicalize().unwrap_or(run_dir.to_owned());
    let short = gate_file::checksum(run_dir.as_os_str().as_bytes()) as u32;
    format!("{kind}{short:08x}-")
}

pub(super) fn delete(family: u8, table: &str) -> Message {
    Message::new(DEL_TABLE, family, 0, Attributes::new().text(1, table))
}

/// What removes the tables that are there.
pub(super) fn existing(kernel: &mut Nfnetlink, prefix: &str) -> io::Result<Vec<Message>> {
    let mut gone = Vec::new();
    for family in [INET, ARP] {
        for table in kernel.list(GET_TABLE, family, &Attributes::new())? {
            let name = attribute(&table, 1).unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            let name = name.trim_end_matches('\0');
            if name.starts_with(prefix) {
                gone.push(delete(family, name));
            }
        }
    }
    Ok(gone)
}

impl Nftables {
    /// Nothing is made yet. The thread that writes runs under SCHED_FIFO with the priority given if any.
    pub(crate) fn load(run_dir: &Path, realtime: Option<i32>) -> Result<Self, String> {
        check()?;
        let mut kernel = Nfnetlink::open().map_err(|e| format!("a netlink socket: {e}"))?;
        let destroy = {
            let name = format!("standin-check-{:x}", now().0);
            let mut messages = ruleset::tables(&name);
            let element = (INET, ruleset::SETS[0], 0);
            messages.push(ruleset::timed(DESTROY_ELEMENT, &name, element, None));
            try_out(&mut kernel, messages)
        };
        let state = State {
            kernel,
            take_out: destroy.map_or(DEL_ELEMENT, |()| DESTROY_ELEMENT),
            free: (0..DOORS).rev().collect(),
            addresses: BTreeMap::new(),
            table: None,
            stale: true,
            put_back: false,
            written: vec![SHUT; DOORS],
        };
        let core = Arc::new(Core {
            prefix: prefix(PREFIX, run_dir),
            wanted: (0..DOORS).map(|_| Wanted::default()).collect(),
            stop: AtomicBool::new(false),
            writer: OnceLock::new(),
            state: Mutex::new(state),
        });
        let own = core.clone();
        let thread = std::thread::Builder::new()
            .name("gate".into())
            .stack_size(STACK)
            .spawn(move || {
                if let Some(priority) = realtime
                    && let Err(e) = sys::scheduler_fifo(priority)
                {
                    log::warn!("the thread that writes the gate has no real-time priority: {e}");
                }
                own.run();
            })
            .map_err(|e| format!("a thread that writes it: {e}"))?;
        let _ = core.writer.set(thread.thread().clone());
        Ok(Self {
            core,
            thread: Some(thread),
        })
    }

    /// Makes sure that the tables are whole and know all addresses. Whether they had been damaged.
    pub(crate) fn hold(&self) -> Result<bool, String> {
        let mut state = lock(&self.core.state);
        let had = state.table.is_some();
        let whole = state.intact();
        if !whole || state.stale {
            self.core.build(&mut state)?;
        }
        Ok(std::mem::take(&mut state.put_back) || (had && !whole))
    }

    /// Whether the tables are as they were made.
    pub(crate) fn holds(&self) -> bool {
        lock(&self.core.state).intact()
    }

    /// Takes the gate away: a clean stop.
    pub(crate) fn remove(&self) {
        let mut state = lock(&self.core.state);
        state.table = None;
        let kernel = &mut state.kernel;
        let gone = existing(kernel, &self.core.prefix);
        if let Err(e) = gone.and_then(|gone| kernel.commit(&gone)) {
            log::warn!("cannot remove the tables {}...: {e}", self.core.prefix);
        }
    }
}

impl Drop for Nftables {
    fn drop(&mut self) {
        self.core.stop.store(true, SeqCst);
        self.core.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn intact(&mut self) -> bool {
        let Self { kernel, table, .. } = self;
        table.as_ref().is_some_and(|table| {
            ruleset::listed(kernel, &table.name).is_ok_and(|listed| listed == table.listed)
        })
    }

    fn commit(&mut self, messages: &[Message]) -> Result<(), String> {
        let refused = self.kernel.commit(messages);
        match refused.map_err(|e| e.to_string())?.first() {
            Some((_, errno)) => Err(errno.desc().to_owned()),
            None => Ok(()),
        }
    }

    /// Writes a door's elements of one set: those whose deadline is far enough ahead are put in, the others taken
    /// out. When the clock was read before and after. An error: the tables are not as they should be.
    fn write_set(
        &mut self,
        table: &str,
        (place, set): (usize, &'static str),
        deadlines: Deadlines,
    ) -> Result<(BootTime, BootTime), String> {
        let before = now();
        let _stalled = stall();
        let [first, second] = deadlines.map(|deadline| {
            let left = deadline.since(before);
            (deadline > before && left >= SHORTEST).then_some(left.as_millis() as u64)
        });
        let (arp_nd, traffic) = (
            ruleset::element(place, false),
            ruleset::element(place, true),
        );
        let elements = [
            ((ARP, set, arp_nd), first),
            ((INET, set, arp_nd), first),
            ((INET, set, traffic), second),
        ];
        // Older kernels refuse to take out what is not there, which costs milliseconds; it may end in this moment.
        let known = self.written[place].map(|until| now() < until);
        let mut there = [known[0], known[0], known[1]];
        if self.take_out == DESTROY_ELEMENT {
            there = [true; 3];
        }
        for _ in 0..TRIES {
            let mut messages = Vec::new();
            let mut about = Vec::new();
            for (n, (which, timeout)) in elements.iter().enumerate() {
                if there[n] {
                    messages.push(ruleset::timed(self.take_out, table, *which, None));
                    about.push(n);
                }
                if timeout.is_some() {
                    messages.push(ruleset::timed(NEW_ELEMENT, table, *which, *timeout));
                    about.push(n);
                }
            }
            let refused = self.kernel.commit(&messages).map_err(|e| e.to_string())?;
            if refused.is_empty() {
                return Ok((before, now()));
            }
            for (message, errno) in refused {
                let taking = messages[message].kind == self.take_out;
                match errno {
                    Errno::ENOENT if taking => there[about[message]] = false,
                    Errno::EEXIST => there[about[message]] = true,
                    _ => return Err(errno.desc().to_owned()),
                }
            }
        }
        Err("its elements come and go".to_owned())
    }
}

impl Core {
    fn run(&self) {
        while !self.stop.load(SeqCst) {
            std::thread::park();
            for place in self.pending() {
                self.settle(place, false);
            }
        }
    }

    /// The doors that are not as they are to be.
    fn pending(&self) -> Vec<usize> {
        let state = lock(&self.state);
        let written = state.written.iter().zip(&self.wanted).enumerate();
        let other = written.filter(|(_, (written, wanted))| **written != wanted.get());
        other.map(|(place, _)| place).collect()
    }

    fn wake(&self) {
        if let Some(thread) = self.writer.get() {
            thread.unpark();
        }
    }

    /// Writes what is wanted of a door. Whether it is so.
    fn settle(&self, place: usize, repeat: bool) -> bool {
        let wanted = &self.wanted[place];
        let mut state = lock(&self.state);
        if !repeat && state.written[place] == wanted.get() {
            return true;
        }
        let Some(name) = state.table.as_ref().map(|table| table.name.clone()) else {
            return false; // written when the tables are made
        };
        let result = self.write(&mut state, &name, place);
        if result.is_ok() || wanted.get() == SHUT {
            return result.is_ok_and(|()| state.written[place] == wanted.get());
        }
        // Flushed by another program, most likely.
        match self.build(&mut state) {
            Ok(()) => {
                state.put_back = true;
                true
            }
            Err(e) => {
                state.written[place] = SHUT;
                log::warn!("cannot write the gate in nftables: {e}");
                false
            }
        }
    }

    /// One set after the other: while one is written, the other's elements are known to end in time.
    fn write(&self, state: &mut State, table: &str, place: usize) -> Result<(), String> {
        for _ in 0..TRIES {
            let deadlines = self.wanted[place].get();
            let mut late = false;
            for set in ruleset::SETS {
                late = !self.write_in_time(state, table, (place, set), deadlines)?;
                if late {
                    break;
                }
            }
            state.written[place] = if late { SHUT } else { deadlines };
            if late || self.wanted[place].get() == deadlines {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether it was written in time; if not, after some tries, it is shut.
    fn write_in_time(
        &self,
        state: &mut State,
        table: &str,
        which: (usize, &'static str),
        deadlines: Deadlines,
    ) -> Result<bool, String> {
        for _ in 0..TRIES {
            let (before, after) = state.write_set(table, which, deadlines)?;
            if deadlines == SHUT || after.since(before) <= LATE {
                return Ok(true);
            }
            log::warn!(
                "writing the gate took {:?}: shut and written again",
                after.since(before)
            );
        }
        state.write_set(table, which, SHUT)?;
        Ok(false)
    }

    /// Makes the tables anew and puts them in the place of all earlier ones.
    fn build(&self, state: &mut State) -> Result<(), String> {
        let name = format!("{}{:x}", self.prefix, now().0);
        if let Some(table) = &state.table {
            let own = [INET, ARP].map(|family| delete(family, &table.name).attributes);
            let others = existing(&mut state.kernel, &self.prefix).map_err(|e| e.to_string())?;
            if others.iter().any(|m| !own.contains(&m.attributes)) {
                return Err("nftables: a later electd has put its own gate in the place".to_owned());
            }
        }
        let built = self.build_named(state, &name);
        if let Err(what) = built {
            for family in [INET, ARP] {
                let _ = state.kernel.commit(&[delete(family, &name)]);
            }
            return Err(format!("nftables: {what}"));
        }
        Ok(())
    }

    fn build_named(&self, state: &mut State, name: &str) -> Result<(), String> {
        // No packet is looked at yet: the first set can be written, and looked at, in peace.
        state.commit(&ruleset::tables(name))?;
        let addresses: Vec<_> = state.addresses.iter().map(|(ip, p)| (*ip, *p)).collect();
        let mut doors: Vec<_> = addresses.iter().map(|(_, place)| *place).collect();
        doors.sort_unstable();
        doors.dedup();
        for place in &doors {
            state.commit(&ruleset::doors(name, *place))?;
        }
        for message in ruleset::leads(name, &addresses) {
            state.commit(&[message])?;
        }
        let mut wanted: Vec<_> = doors.iter().map(|p| (*p, self.wanted[*p].get())).collect();
        for (place, deadlines) in &mut wanted {
            for set in ruleset::SETS {
                if !self.write_in_time(state, name, (*place, set), *deadlines)? {
                    *deadlines = SHUT;
                }
            }
        }
        let mut refused = String::new();
        for _ in 0..TRIES {
            let gone = existing(&mut state.kernel, &self.prefix).map_err(|e| e.to_string())?;
            let (this, mut messages) = (delete(INET, name), gone);
            messages.retain(|m| m.attributes != this.attributes);
            messages.extend(ruleset::rules(name));
            match state.commit(&messages) {
                Ok(()) => {
                    let listed =
                        ruleset::listed(&mut state.kernel, name).map_err(|e| e.to_string())?;
                    let name = name.to_owned();
                    state.table = Some(Table { name, listed });
                    state.stale = false;
                    wanted
                        .iter()
                        .for_each(|(place, written)| state.written[*place] = *written);
                    return Ok(());
                }
                Err(e) => refused = e, // one of the earlier tables has gone in this moment, perhaps
            }
        }
        Err(refused)
    }
}

/// One virtual server's door. Given back when dropped.
#[derive(Debug)]
pub(crate) struct NftablesDoor {
    core: Arc<Core>,
    place: usize,
}

impl NftablesDoor {
    /// A door, shut.
    pub(crate) fn new(gate: &Nftables) -> Result<Self, String> {
        let core = gate.core.clone();
        let place = lock(&core.state).free.pop();
        let place = place.ok_or_else(|| format!("more than {DOORS} virtual servers"))?;
        let door = Self { core, place };
        door.set(BootTime(0), BootTime(0));
        Ok(door)
    }

    /// Leads packets of these addresses through this door, from the next [`Nftables::hold`] on.
    pub(crate) fn lead(&self, addresses: impl Iterator<Item = IpAddr>) {
        let mut state = lock(&self.core.state);
        for ip in addresses {
            state.stale |= state.addresses.insert(ip, self.place) != Some(self.place);
        }
    }

    /// Forgets an address, which is on no interface any more.
    pub(crate) fn forget(&self, ip: IpAddr) {
        let mut state = lock(&self.core.state);
        if state.addresses.get(&ip) == Some(&self.place) {
            state.addresses.remove(&ip);
            state.stale = true;
        }
    }

    /// ARP and neighbour discovery are to pass until then; soon.
    pub(crate) fn open_first(&self, deadline: BootTime) {
        self.core.wanted[self.place].first.store(deadline.0, SeqCst);
        self.core.wake();
    }

    /// Each is to pass until then; soon.
    pub(crate) fn set(&self, first: BootTime, second: BootTime) {
        let wanted = &self.core.wanted[self.place];
        wanted.first.store(first.0, SeqCst);
        wanted.second.store(second.0, SeqCst);
        self.core.wake();
    }

    /// What was asked for last is carried out now; whether it is so.
    pub(crate) fn settle(&self) -> bool {
        let shut = self.core.wanted[self.place].get() == SHUT;
        self.core.settle(self.place, shut)
    }
}

impl Drop for NftablesDoor {
    fn drop(&mut self) {
        // Not shut: electd ends without a word when it is killed too, and the next one adopts.
        lock(&self.core.state).free.push(self.place);
    }
}
