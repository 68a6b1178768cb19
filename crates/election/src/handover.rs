//! Giving up a mastership: release, planned handover, preference, stop (ELECTION R9, R18, R19, R27).

use crate::{
    elector::Elector,
    input::Preempt,
    output::Output,
    state::{Gate, Handover, Kind, Leaving, Peer, Phase, Taking, Virtual, Waiting},
};
use mutants::{Mutant, planted};
use protocol::{
    BootTime, ServerName, Term, VirtualServerName,
    local::ring::HealthState,
    wire::{
        beat::Participation,
        signal::{Body, Released},
    },
};
use std::time::Duration;

/// A preferred server gets its handover at most this often (R27).
const PREFER_EVERY: Duration = Duration::from_secs(600);

/// A server in maintenance that is still master looks for a successor this often.
const OFFER_EVERY: Duration = Duration::from_secs(5);

/// How long a mastership must have lasted before a preferred server gets it, in leases.
const PREFER_AFTER: u32 = 20;

impl Elector {
    // ---- leaving -------------------------------------------------------------------------------------

    /// Gives up a mastership (or a left-over gate): gate first, Release when it reads back shut (R9, R18).
    pub(crate) fn leave(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        invited: Option<ServerName>,
        reason: &str,
    ) {
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        let term = v.mastership.as_ref().map_or(v.voter.voted, |m| m.term);
        let was_master = v.mastership.is_some() || matches!(v.gate, Gate::Open(_));
        self.leave_as(now, name, term, invited, was_master, reason);
    }

    pub(crate) fn leave_as(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        term: Term,
        invited: Option<ServerName>,
        was_master: bool,
        reason: &str,
    ) {
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        v.mastership
            .take_if(|_| !planted(Mutant::ReopensWhileShutting));
        v.campaign = None;
        let handover = v.handover.take();
        let invited_one = invited.is_some();
        v.leaving = Some(Leaving {
            term,
            invited,
            was_master,
            reason: reason.to_owned(),
        });
        if let Some(wish) = handover.and_then(|h| h.wish) {
            self.wait_for(now, wish, name, None);
        }
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        match v.gate {
            Gate::Shut => self.gate_shut(now, name),
            Gate::Open(_) => {
                v.gate = Gate::Shutting;
                self.outputs.push_back(if invited_one {
                    v.succession = Some((term, now + self.lease));
                    Output::HandOver(name.clone(), self.lease)
                } else {
                    Output::Shut(name.clone())
                });
                if planted(Mutant::ReleaseBeforeShut) {
                    self.gate_shut(now, name);
                }
            }
            Gate::Shutting => {}
        }
    }

    /// The gate reads back shut: Release to all, then number + 1, and the own promise ends (R18).
    pub(crate) fn gate_shut(&mut self, now: BootTime, name: &VirtualServerName) {
        let again = now + self.lease * 2;
        let me = self.settings.me.clone();
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        if v.mastership.is_some() && v.leaving.is_none() {
            return self.count("gate_shut_unasked");
        }
        v.gate = Gate::Shut;
        let Some(leaving) = v.leaving.take() else {
            return;
        };
        v.mastership
            .take_if(|_| planted(Mutant::ReopensWhileShutting));
        if leaving.invited.is_some() {
            v.not_before = v.not_before.max(again); // R19 (5)
        }
        if v.voter.promise.as_ref().is_some_and(|p| p.holder == me) {
            v.voter.end_promise(now);
        }
        let (term, invited) = (leaving.term, leaving.invited);
        for other in self.settings.servers.clone().iter().filter(|s| **s != me) {
            self.say(
                other,
                name,
                Body::Release {
                    term,
                    invited: invited.clone(),
                },
            );
        }
        self.number = self.number.next();
        if leaving.was_master {
            self.change_role(now, name, false, term, false, &leaving.reason);
        }
    }

    /// Another server has this one's vote in a higher term, or claims in it: when it announces the addresses, it
    /// has opened.
    pub(crate) fn note_successor(&mut self, name: &VirtualServerName, claimed: Term) {
        let succeeded = |v: &Virtual| v.succession.is_some_and(|(term, _)| claimed > term);
        if self.virtuals.get(name).is_some_and(succeeded)
            && let Some(v) = self.virtuals.get_mut(name)
        {
            v.succession = None;
            self.outputs.push_back(Output::Succeeded(name.clone()));
        }
    }

    /// A release known as fact, by its sender or relayed (R18).
    pub(crate) fn note_release(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        released: &Released,
    ) {
        if released.server == self.settings.me {
            return;
        }
        if let Some(v) = self.virtuals.get_mut(name) {
            v.voter
                .release(&released.server, released.instance, released.number, now);
        }
    }

    /// R18; an invitation to this server is followed at once (R19).
    pub(crate) fn release(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        released: Released,
        term: Term,
        invited: Option<ServerName>,
        active: bool,
    ) {
        self.note_release(now, name, &released);
        let Some(invited) = invited.filter(|_| active) else {
            return;
        };
        if invited != self.settings.me {
            // It has its call's time (R19): two candidates at once may win no majority, for the length of a promise.
            let first = now + self.patience();
            if !planted(Mutant::SuccessorsCompete)
                && let Some(v) = self.virtuals.get_mut(name)
            {
                v.not_before = v.not_before.max(first);
            }
            return;
        }
        let able = self.able_to_serve(now, name);
        let Some(v) = self.virtuals.get(name) else {
            return;
        };
        if able.is_err() || !v.is_idle() || v.gate != Gate::Shut || v.voter.voted > term {
            return self.count("invitation_declined");
        }
        self.stand(now, name, Kind::Invited);
    }

    // ---- handover: the side that gives ---------------------------------------------------------------

    pub(crate) fn promote(
        &mut self,
        now: BootTime,
        id: u64,
        to: &ServerName,
        which: Option<VirtualServerName>,
    ) {
        if !self.settings.servers.contains(to) {
            return self.answer(id, Err(format!("no server {to} in the configuration")));
        }
        let names: Vec<_> = match which {
            Some(name) if self.settings.virtual_servers.contains_key(&name) => vec![name],
            Some(name) => {
                return self.answer(
                    id,
                    Err(format!("no virtual server {name} in the configuration")),
                );
            }
            None => self.settings.virtual_servers.keys().cloned().collect(),
        };
        if names.is_empty() {
            return self.answer(id, Err("no virtual server in the configuration".into()));
        }
        self.expect(id, names.len());
        for name in names {
            let Some(v) = self.virtuals.get(&name) else {
                self.answer(id, Err(format!("{name} is not known yet")));
                continue;
            };
            let mastering = v.mastership.is_some();
            let holder = v.master.clone().map(|(m, _)| m);
            if (mastering && *to == self.settings.me) || (!mastering && holder.as_ref() == Some(to))
            {
                self.answer(id, Ok(format!("{to} is already master of {name}")));
            } else if mastering {
                let reason = format!("handed over to {to} by the operator");
                self.begin_handover(now, &name, vec![to.clone()], reason, Some(id), false);
            } else if let Some(master) = holder.filter(|m| *m != self.settings.me) {
                if *to == self.settings.me
                    && let Err(why) = self.able_to_serve(now, &name)
                {
                    self.answer(
                        id,
                        Err(format!(
                            "{name} stays at {master}: this server is not ready: {why}"
                        )),
                    );
                    continue;
                }
                self.say(&master, &name, Body::HandOver { to: to.clone() });
                self.wait_for(now, id, &name, Some(to.clone()));
            } else {
                self.answer(
                    id,
                    Err(format!(
                        "{name} has no master that could hand over; it will elect one"
                    )),
                );
            }
        }
    }

    pub(crate) fn resign(&mut self, now: BootTime, id: u64) {
        let names = self.masterships();
        if names.is_empty() {
            let answer = Ok("this server is not master of anything".into());
            return self.answer(id, answer);
        }
        self.expect(id, names.len());
        for name in names {
            let heirs = self.heirs(now, &name);
            self.begin_handover(
                now,
                &name,
                heirs,
                "resigned at the operator's word".into(),
                Some(id),
                false,
            );
        }
    }

    pub(crate) fn set_maintenance(&mut self, now: BootTime, id: u64, on: bool) {
        self.maintenance = on;
        self.notice(format!("maintenance is {}", if on { "on" } else { "off" }));
        let names = if on { self.masterships() } else { Vec::new() };
        if names.is_empty() {
            let text = if on {
                "maintenance is on: this server only votes"
            } else {
                "maintenance is off"
            };
            return self.answer(id, Ok(text.into()));
        }
        self.expect(id, names.len());
        self.offered = now;
        for name in names {
            let heirs = self.heirs(now, &name);
            self.begin_handover(now, &name, heirs, "maintenance".into(), Some(id), false);
        }
    }

    pub(crate) fn stop(&mut self, now: BootTime) {
        self.stopping = true;
        self.next_beat = self.next_beat.min(now); // one beat at least tells the others
        for name in self.masterships() {
            let heirs = self.heirs(now, &name);
            self.begin_handover(now, &name, heirs, "stopped".into(), None, true);
        }
    }

    /// While stopping: no candidate, no left-over gate, and no mastership without a handover under way.
    pub(crate) fn stop_time(&mut self, now: BootTime, name: &VirtualServerName) {
        let Some(v) = self.virtuals.get(name).filter(|_| self.stopping) else {
            return;
        };
        if v.leaving.is_some() {
        } else if v.mastership.is_some() {
            if v.handover.is_none() {
                let heirs = self.heirs(now, name);
                self.begin_handover(now, name, heirs, "stopped".into(), None, true);
            }
        } else if v
            .campaign
            .as_ref()
            .is_some_and(|c| matches!(c.phase, Phase::Call { .. }))
            || v.gate != Gate::Shut
        {
            self.leave(now, name, None, "stopped");
        } else if v.campaign.is_some()
            && let Some(v) = self.virtuals.get_mut(name)
        {
            v.campaign = None;
        }
    }

    /// The others by rank, those that could serve.
    fn heirs(&self, now: BootTime, name: &VirtualServerName) -> Vec<ServerName> {
        let others = self
            .settings
            .servers
            .iter()
            .filter(|s| **s != self.settings.me);
        let alive = |s: &&ServerName| {
            let active = |p: &Peer| {
                p.beat
                    .as_ref()
                    .is_some_and(|b| b.participation == Participation::Active)
            };
            self.peers
                .get(*s)
                .is_some_and(|p| p.health.is_none_or(|h| h == HealthState::Alive) && active(p))
        };
        let mut heirs: Vec<_> = others
            .filter(alive)
            .filter_map(|s| Some((self.rank(now, name, s)?, s.clone())))
            .collect();
        heirs.sort();
        heirs.into_iter().map(|(_, s)| s).collect()
    }

    fn begin_handover(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        heirs: Vec<ServerName>,
        reason: String,
        wish: Option<u64>,
        regardless: bool,
    ) {
        let deadline = now + self.lease / 4;
        let mut heirs = heirs.into_iter();
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        if let Some(former) = v.handover.take().and_then(|h| h.wish) {
            let answer = Err("overtaken by another handover".into());
            self.answer(former, answer);
        }
        let Some(to) = heirs.next() else {
            return self.no_heir(
                now,
                name,
                &reason,
                wish,
                regardless,
                "no other server could serve",
            );
        };
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        v.handover = Some(Handover {
            to: to.clone(),
            others: heirs.collect(),
            deadline,
            reason,
            wish,
            regardless,
        });
        self.say(&to, name, Body::ReadyQuery);
    }

    fn no_heir(
        &mut self,
        now: BootTime,
        name: &VirtualServerName,
        reason: &str,
        wish: Option<u64>,
        regardless: bool,
        why: &str,
    ) {
        if let Some(id) = wish {
            let answer = Err(format!("{name} stays here: {why}"));
            self.answer(id, answer);
        } else {
            self.notice(format!("{name} is not handed over: {why}"));
        }
        if regardless {
            self.leave(now, name, None, reason);
        }
    }

    pub(crate) fn handover_time(&mut self, now: BootTime, name: &VirtualServerName) {
        let Some(handover) = self.virtuals.get(name).and_then(|v| v.handover.as_ref()) else {
            return;
        };
        if now > handover.deadline {
            let to = handover.to.clone();
            self.not_ready(now, &to, name, "it does not answer");
        }
    }

    /// R19 (1): the successor is ready; (2): the gate is shut; the rest follows when it reads back shut.
    pub(crate) fn ready(&mut self, now: BootTime, from: &ServerName, name: &VirtualServerName) {
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        if v.handover.as_ref().is_none_or(|h| h.to != *from) {
            return self.count("ready_unasked");
        }
        let Some(handover) = v.handover.take() else {
            return;
        };
        if let Some(id) = handover.wish {
            self.wait_for(now, id, name, Some(from.clone()));
        }
        self.leave(now, name, Some(from.clone()), &handover.reason);
    }

    pub(crate) fn not_ready(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        why: &str,
    ) {
        let Some(v) = self.virtuals.get_mut(name) else {
            return;
        };
        if v.handover.as_ref().is_none_or(|h| h.to != *from) {
            return self.count("not_ready_unasked");
        }
        let Some(h) = v.handover.take() else { return };
        if h.others.is_empty() {
            let why = format!("{from} is not ready: {why}");
            return self.no_heir(now, name, &h.reason, h.wish, h.regardless, &why);
        }
        self.begin_handover(now, name, h.others, h.reason, h.wish, h.regardless);
    }

    /// An operator at another server asks for a handover.
    pub(crate) fn asked_to_hand_over(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        to: &ServerName,
    ) {
        if *to == self.settings.me || !self.settings.servers.contains(to) {
            return self.count("hand_over_to_nobody");
        }
        let reason = format!("handed over to {to} by the operator at {from}");
        self.begin_handover(now, name, vec![to.clone()], reason, None, false);
    }

    fn wait_for(
        &mut self,
        now: BootTime,
        id: u64,
        name: &VirtualServerName,
        to: Option<ServerName>,
    ) {
        let deadline = now + self.lease * 3 + Duration::from_secs(1);
        let virtual_server = name.clone();
        if !self
            .waiting
            .iter()
            .any(|w| w.id == id && w.virtual_server == virtual_server)
        {
            self.waiting.push(Waiting {
                id,
                virtual_server,
                to,
                deadline,
            });
        }
    }

    // ---- handover: the side that takes ---------------------------------------------------------------

    fn able_to_serve(&self, now: BootTime, name: &VirtualServerName) -> Result<(), String> {
        if self.taking != Taking::Active {
            return Err("it has just started and keeps silent".into());
        }
        if self.maintenance {
            return Err("maintenance is on".into());
        }
        if self.stopping {
            return Err("it is stopping".into());
        }
        self.fit(name, now)?;
        let Some(v) = self.virtuals.get(name) else {
            return Err("it does not know it".into());
        };
        if v.highest() >= self.reservation.reserved {
            return Err("its term reservation is not synced".into());
        }
        let asks = self.settings.mode == crate::Mode::Majority;
        if asks && !self.counted_roster().voters.contains(&self.settings.me) {
            return Err("it is not in the roster".into());
        }
        Ok(())
    }

    /// R19 (1), the other side.
    pub(crate) fn ready_query(
        &mut self,
        now: BootTime,
        from: &ServerName,
        name: &VirtualServerName,
        slave: bool,
    ) {
        let able = self.able_to_serve(now, name);
        let body = match able {
            Ok(()) if slave => Body::Ready,
            Ok(()) => Body::NotReady {
                why: "it is not a slave now".into(),
            },
            Err(why) => Body::NotReady { why },
        };
        self.say(from, name, body);
    }

    // ---- preference and stop -------------------------------------------------------------------------

    /// A server in maintenance that had no successor gives its masterships away as soon as it finds one.
    pub(crate) fn offer(&mut self, now: BootTime) {
        if !self.maintenance || self.stopping || now.since(self.offered) < OFFER_EVERY {
            return;
        }
        for name in self.masterships() {
            let busy = |v: &Virtual| v.handover.is_some() || v.campaign.is_some();
            let heirs = self.heirs(now, &name);
            if self.virtuals.get(&name).is_none_or(busy) || heirs.is_empty() {
                continue;
            }
            self.offered = now;
            self.begin_handover(now, &name, heirs, "maintenance".into(), None, false);
        }
    }

    /// R27: a fit master hands over to a better server, at most once in ten minutes.
    pub(crate) fn prefer(&mut self, now: BootTime) {
        if self
            .preempted
            .is_some_and(|at| now.since(at) < PREFER_EVERY && !planted(Mutant::PreferredAgain))
            || self.stopping
        {
            return;
        }
        let settings = &self.settings.virtual_servers;
        let choosy = settings.iter().filter(|(_, s)| s.preempt != Preempt::Never);
        for name in choosy.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let Some(settings) = self.settings.virtual_servers.get(&name) else {
                continue;
            };
            let Some(v) = self.virtuals.get(&name) else {
                continue;
            };
            let settled = v
                .mastership
                .as_ref()
                .is_some_and(|m| now.since(m.since) > self.lease * PREFER_AFTER);
            if !settled || v.handover.is_some() || v.campaign.is_some() {
                continue;
            }
            let Some(best) = self.heirs(now, &name).into_iter().next() else {
                continue;
            };
            let fresher = self.peers.get(&best).and_then(|p| p.beat.as_ref());
            let fresher = fresher.is_some_and(|b| b.freshness > self.freshness);
            let first = self.rank(now, &name, &best) == Some(0);
            let wanted = match settings.preempt {
                Preempt::Never => false,
                Preempt::Fresher => fresher,
                Preempt::Always => first,
            };
            if wanted {
                self.preempted = Some(now);
                let reason = format!("handed over to {best}, which is preferred");
                self.begin_handover(now, &name, vec![best], reason, None, false);
                return;
            }
        }
    }

    /// The last act of a clean stop: reserved := voted (R22).
    pub(crate) fn finish_stop(&mut self, now: BootTime) {
        let busy = |v: &Virtual| {
            let awaits = v.succession.is_some_and(|(_, until)| now <= until);
            !v.is_idle() || awaits
        };
        if !self.stopping || self.stopped || self.virtuals.values().any(busy) {
            return;
        }
        self.stopped = true;
        let voted = self
            .virtuals
            .values()
            .map(|v| v.voter.voted)
            .max()
            .unwrap_or_default();
        // What a blank server has learned but not synced is no reservation yet (R21).
        let last = (!self.reservation.roster.voters.is_empty()).then(|| {
            let mut last = self.reservation.clone();
            last.reserved = voted.max(self.floor_base);
            last
        });
        self.outputs.push_back(Output::Stopped(last));
    }
}
