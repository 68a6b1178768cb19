//! The virtual servers by name, and which of them the next turn must look at: an event about one of two hundred
//! costs no look at the others.
//!
//! What the elector does about a virtual server depends on the virtual server itself, on time, and on what holds
//! for all of them. So it is looked at when it was written to, when one of its own times has come, or when
//! something common has changed ([`Virtuals::stir_all`]).

use crate::state::Virtual;
use protocol::{BootTime, Term, VirtualServerName};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
};

/// When something will be due for one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// It is to be looked at by then.
    pub look: Option<BootTime>,
    /// The shell must wake the elector then.
    pub wake: Option<BootTime>,
}

/// Read it as the map it is; whoever writes to one of them stirs it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Virtuals {
    map: BTreeMap<VirtualServerName, Virtual>,
    stirred: BTreeSet<VirtualServerName>,
    all: bool,
    dues: BTreeMap<VirtualServerName, Due>,
    looks: BTreeSet<(BootTime, VirtualServerName)>,
    wakes: BTreeSet<(BootTime, VirtualServerName)>,
}

impl Deref for Virtuals {
    type Target = BTreeMap<VirtualServerName, Virtual>;
    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl Virtuals {
    pub fn get_mut(&mut self, name: &VirtualServerName) -> Option<&mut Virtual> {
        let v = self.map.get_mut(name)?;
        if !self.stirred.contains(name) {
            self.stirred.insert(name.clone());
        }
        Some(v)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Virtual> {
        self.all = true;
        self.map.values_mut()
    }

    pub fn insert(&mut self, name: VirtualServerName, v: Virtual) {
        self.stirred.insert(name.clone());
        self.map.insert(name, v);
    }

    /// The one of that name, made with this floor if it is new.
    pub fn know(&mut self, name: &VirtualServerName, floor: Term) -> &mut Virtual {
        self.stirred.insert(name.clone());
        self.map
            .entry(name.clone())
            .or_insert_with(|| Virtual::new(floor))
    }

    pub fn stir(&mut self, name: &VirtualServerName) {
        self.stirred.insert(name.clone());
    }

    /// Something changed that all depend on.
    pub fn stir_all(&mut self) {
        self.all = true;
    }

    /// Those to look at now, in order of name.
    pub fn take_turn(&mut self, now: BootTime) -> Vec<VirtualServerName> {
        if std::mem::take(&mut self.all) {
            self.stirred.clear();
            return self.map.keys().cloned().collect();
        }
        let mut turn = std::mem::take(&mut self.stirred);
        turn.extend(self.due(now));
        turn.into_iter().collect()
    }

    /// Those whose time has come, in order of name.
    pub fn due(&self, now: BootTime) -> BTreeSet<VirtualServerName> {
        let come = self.looks.iter().take_while(|(at, _)| *at <= now);
        come.map(|(_, name)| name.clone()).collect()
    }

    /// Those written to since the turn began: they are looked at again in the next one.
    pub fn stirred(&self) -> Vec<VirtualServerName> {
        if self.all {
            return self.map.keys().cloned().collect();
        }
        self.stirred.iter().cloned().collect()
    }

    /// Notes when something will be due.
    pub fn set_due(&mut self, name: &VirtualServerName, due: Due) {
        let old = match self.dues.get_mut(name) {
            Some(old) => std::mem::replace(old, due),
            None => {
                self.dues.insert(name.clone(), due);
                Due::default()
            }
        };
        let change = |set: &mut BTreeSet<_>, old: Option<BootTime>, new: Option<BootTime>| {
            if old != new {
                old.map(|at| set.remove(&(at, name.clone())));
                new.map(|at| set.insert((at, name.clone())));
            }
        };
        change(&mut self.looks, old.look, due.look);
        change(&mut self.wakes, old.wake, due.wake);
    }

    /// When something will be due for this one.
    pub fn due_of(&self, name: &VirtualServerName) -> Due {
        self.dues.get(name).copied().unwrap_or_default()
    }

    /// When the elector must be woken for one of them.
    pub fn wake(&self) -> Option<BootTime> {
        self.wakes.first().map(|(at, _)| *at)
    }
}
