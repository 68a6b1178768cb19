//! A MAC address that moves along: the device that carries it.

use super::{
    Worker,
    opening::down,
    set::{Phase, Set},
};
use crate::{clock::now, netlink::Link};
use protocol::BootTime;

impl Worker {
    /// Makes the set's device, if it needs one, so that it is there when its time comes.
    pub(super) fn prepare(&mut self, i: usize) {
        if self.sets[i].device.is_some() && !self.sets[i].retired {
            match self.device_link(i) {
                Ok(link) => {
                    let set = &mut self.sets[i];
                    set.raised = link.up;
                    set.failed = None;
                    self.lower(i);
                }
                Err(what) => {
                    self.sets[i].link = None;
                    self.fail(i, what);
                }
            }
        }
    }

    /// The set's device as it is, made if need be, with the gate on it.
    fn device_link(&mut self, i: usize) -> Result<Link, String> {
        let Some(device) = self.sets[i].device.clone() else {
            return Err("no virtual MAC address is configured".to_owned());
        };
        let (link, below) = self.devices.ensure(&mut self.netlink, &device)?;
        if let Some(gate) = &self.gate {
            gate.attach(&link)?;
        }
        let set = &mut self.sets[i];
        set.link = Some(link.clone());
        set.below = Some(below);
        Ok(link)
    }

    /// The device, up: its addresses are about to come.
    pub(super) fn raise(&mut self, i: usize) -> Result<Link, String> {
        let name = self.sets[i].network.clone();
        let link = self.device_link(i)?;
        if self.sets[i].below.as_ref().is_none_or(|below| !below.up) {
            return Err(down(&name));
        }
        if link.up {
            return Ok(link);
        }
        self.sets[i].raised = true;
        self.netlink
            .set_up(link.index, true)
            .map_err(|e| format!("cannot set {} up: {e}", link.name))?;
        let link = Link { up: true, ..link };
        self.sets[i].link = Some(link.clone());
        Ok(link)
    }

    /// The addresses have gone: no switch is to hear of the MAC address from here. The kernel takes some
    /// milliseconds for it, which another set's addresses can wait for only if the gate guards them.
    pub(super) fn lower(&mut self, i: usize) {
        let guarded = |s: &Set| matches!(s.phase, Phase::Wanted | Phase::Open);
        let set = &self.sets[i];
        if !set.raised
            || set.phase != Phase::Shut
            || now() < set.lower_at
            || self.gate.is_none() && self.sets.iter().any(guarded)
        {
            return;
        }
        if let Some(link) = &set.link
            && let Err(e) = self.netlink.set_up(link.index, false)
        {
            log::warn!("{}: cannot set {} down: {e}", set.v, set.interface);
        }
        self.sets[i].raised = false;
        self.sets[i].lower_at = BootTime(0);
    }

    /// Another program has changed the set's device: it is made anew, and all that is on it.
    pub(super) fn remake(&mut self, i: usize) {
        if self.sets[i].phase != Phase::Open {
            return self.prepare(i);
        }
        let set = &mut self.sets[i];
        set.put_back = Some(format!("{} on {}", set.interface, set.network));
        set.shared.absent();
        set.phase = Phase::Wanted;
        set.retry_at = BootTime(0);
        self.forget_frames(i);
    }

    /// Whether the device of an open set is what it should be.
    pub(super) fn device_holds(&mut self, i: usize) -> bool {
        let (Some(device), Some(below)) = (&self.sets[i].device, &self.sets[i].below) else {
            return true;
        };
        let found = self.netlink.link(&device.name);
        // Not to be told now: the next time tells.
        found.map_or(true, |link| {
            link.is_some_and(|link| link.up && device.is(&link, below))
        })
    }

    pub(super) fn keep_devices(&mut self) {
        let names = self
            .sets
            .iter()
            .filter_map(|s| Some(s.device.as_ref()?.name.as_str()));
        let names: Vec<&str> = names.collect();
        self.devices.keep(&mut self.netlink, &names);
    }
}
