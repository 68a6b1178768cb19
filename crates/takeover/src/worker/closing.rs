//! The deadlines, and the way from open to shut.

use super::{BURSTS, Worker, set::Phase};
use crate::{Event, clock::now, gate::any::Gate, netlink};
use protocol::BootTime;
use std::time::Duration;

/// After its addresses have gone the device stays up for so long behind the kernel's gate, which keeps it silent: the
/// late packets of a planned handover still come by it.
const LATE: Duration = Duration::from_secs(2);
const RETRY_CLOSE: Duration = Duration::from_millis(10);

impl Worker {
    /// Begins to remove the addresses whose time has come. Called between any two pieces of work.
    pub(super) fn guard(&mut self) {
        for i in 0..self.sets.len() {
            let set = &mut self.sets[i];
            let guarded = matches!(set.phase, Phase::Wanted | Phase::Open);
            if !guarded || now() < set.last_call() {
                continue;
            }
            // Extended in this very moment, perhaps, by somebody who thought that they were there.
            if !set.shared.lapse(|| now() >= set.last_call()) {
                continue;
            }
            // With deadline 0 a command to shut is under way, and will have its own event.
            set.lapsed = set.deadline() != BootTime(0);
            self.close(i);
        }
    }

    /// Removes all addresses of a set and reads back. Ceasing is becoming in reverse: gate first.
    pub(super) fn close(&mut self, i: usize) {
        let set = &mut self.sets[i];
        set.shared.absent();
        if set.shut_asked && set.shared.settle() && self.gate.as_ref().is_some_and(Gate::holds) {
            set.shut_asked = false;
            (self.emit)(Event::Shut { v: set.v.clone() });
        }
        if set.going > 0 {
            return; // under way
        }
        let was_open = matches!(set.phase, Phase::Wanted | Phase::Open);
        set.phase = Phase::Closing;
        if was_open && self.gate.is_some() {
            set.lower_at = now() + LATE;
        }
        set.next_burst = BURSTS.len();
        set.others.closed();
        set.unforgotten = usize::MAX;
        if was_open && set.shared.door.is_some() && set.is_large() && set.link.is_some() {
            // The gate is shut, so nobody waits for it; and what others wait for must not wait for this.
            set.going = set.addresses.len();
            return self.forget_frames(i);
        }
        let mut result = Ok(());
        if was_open && let Some(link) = &set.link {
            // In reverse: with the first address of a network the kernel would drop or move the others.
            let reversed: Vec<_> = set.addresses.iter().rev().copied().collect();
            result = self
                .netlink
                .remove(link.index, &reversed)
                .map(drop)
                .map_err(|e| e.to_string());
        }
        self.forget_frames(i);
        self.read_back(i, result);
    }

    /// Removes a piece of what is to go behind the shut gate. Whether there is more.
    pub(super) fn remove_some(&mut self) -> bool {
        let Some(i) = self.sets.iter().position(|s| s.going > 0) else {
            return false;
        };
        let set = &mut self.sets[i];
        let piece = set.going.saturating_sub(set.batch(false))..set.going;
        set.going = piece.start;
        let reversed: Vec<_> = set.addresses[piece].iter().rev().copied().collect();
        let removed = match &set.link {
            Some(link) => self.netlink.remove(link.index, &reversed).map(drop),
            None => Ok(()),
        };
        if self.sets[i].going == 0 || removed.is_err() {
            self.sets[i].going = 0;
            self.read_back(i, removed.map_err(|e| e.to_string()));
        }
        true
    }

    /// Reading back tells more than the answers to the removal.
    fn read_back(&mut self, i: usize, result: Result<(), String>) {
        match self.sweep(i).or_else(|e| result.and(Err(e))) {
            Ok(()) => self.closed(i),
            Err(what) => {
                self.sets[i].retry_at = now() + RETRY_CLOSE;
                self.fail(i, format!("cannot remove addresses: {what}"));
            }
        }
    }

    fn closed(&mut self, i: usize) {
        let set = &mut self.sets[i];
        set.phase = Phase::Shut;
        set.failed = None;
        set.retry_at = BootTime(0);
        let v = set.v.clone();
        if std::mem::take(&mut set.lapsed) {
            (self.emit)(Event::Lapsed { v: v.clone() });
        }
        if std::mem::take(&mut self.sets[i].shut_asked) {
            (self.emit)(Event::Shut { v });
        }
        self.lower(i);
    }

    /// Removes every address of the set that is listed, until none is.
    pub(super) fn sweep(&mut self, i: usize) -> Result<(), String> {
        let mut found = Vec::new();
        for _ in 0..3 {
            let set = &mut self.sets[i];
            set.link = self
                .netlink
                .link(&set.interface)
                .map_err(|e| e.to_string())?;
            found = self.netlink.addresses().map_err(|e| e.to_string())?;
            found.retain(|listed| set.left_over(listed));
            if found.is_empty() {
                return Ok(());
            }
            let mut listed = found.clone();
            listed.reverse();
            self.netlink
                .remove_listed(listed)
                .map_err(|e| e.to_string())?;
        }
        let ips: Vec<String> = found
            .iter()
            .filter_map(netlink::ip_of)
            .map(|ip| ip.to_string())
            .collect();
        Err(format!(
            "{} still on {}",
            ips.join(", "),
            self.sets[i].interface
        ))
    }
}
