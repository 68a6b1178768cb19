//! What `standin status` shows of the elector.

use crate::{
    campaign::BUSY,
    elector::Elector,
    input::Mode,
    state::{Change, Taking},
};
use protocol::{
    BootTime, Term, VirtualServerName,
    local::{
        ring::HealthState,
        status::{ElectdStatus, ServerView, VirtualServerView},
    },
    version::Since,
    wire::beat::Beat,
};
use std::collections::BTreeMap;

impl Elector {
    /// Everything counted, refusals by reason.
    pub fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.counters
    }

    /// The term in which this server is master of `name`, if it is.
    pub fn term(&self, name: &VirtualServerName) -> Option<Term> {
        Some(self.virtuals.get(name)?.mastership.as_ref()?.term)
    }

    /// What an earlier electd of this boot knew of the last change of each virtual server.
    pub fn recall_changes(
        &mut self,
        changes: impl IntoIterator<Item = (VirtualServerName, Change)>,
    ) {
        for (name, change) in changes {
            if let Some(v) = self.virtuals.get_mut(&name) {
                v.change = change;
            }
        }
    }

    /// The present state; the shell adds addresses, gate, clients and scripts of each virtual server.
    pub fn view(&self, now: BootTime) -> ElectdStatus {
        let ranked = self.settings.virtual_servers.keys().next();
        let own = ServerView {
            name: self.settings.me.clone(),
            state: HealthState::Alive,
            rank: ranked.and_then(|v| self.rank(now, v, &self.settings.me)),
            last_heard: Some(now),
            freshness: (self.freshness.term, self.freshness.run),
            config_differs: false,
            withdrawn: Since(self.maintenance || self.stopping),
            witness: Since(self.settings.witness),
            participation: Since(Some(self.participation())),
            hears: Since(Some(true)),
        };
        let servers = self.peers.iter().map(|(name, peer)| ServerView {
            name: name.clone(),
            state: if self.doctor {
                peer.health.unwrap_or(HealthState::Unknown)
            } else {
                HealthState::Unknown
            },
            rank: ranked.and_then(|v| self.rank(now, v, name)),
            last_heard: peer.heard,
            freshness: peer
                .beat
                .as_ref()
                .map_or_else(Default::default, |b| (b.freshness.term, b.freshness.run)),
            config_differs: peer
                .beat
                .as_ref()
                .is_some_and(|b| b.config_hash != self.settings.config_hash),
            withdrawn: Since(peer.beat.as_ref().is_some_and(|b| b.maintenance)),
            witness: Since(peer.beat.as_ref().is_some_and(|b| b.witness)),
            participation: Since(peer.beat.as_ref().map(|b| b.participation)),
            hears: Since(peer.beat.as_ref().map(|b| self.is_heard_by(b))),
        });
        let virtual_servers = self
            .virtuals
            .iter()
            .filter(|(n, _)| self.settings.virtual_servers.contains_key(*n));
        let virtual_servers = virtual_servers.map(|(name, v)| {
            let role = match (&v.mastership, &v.campaign) {
                (Some(_), _) => "master",
                (None, Some(_)) => "candidate",
                (None, None) if self.settings.witness => "witness",
                (None, None) => "slave",
            };
            let master = v.master.as_ref().filter(|(m, _)| {
                if *m == self.settings.me {
                    v.mastership.is_some()
                } else {
                    self.peers.get(m).is_some_and(|p| {
                        p.claim(m, name, &v.voter).is_some() && p.health != Some(HealthState::Dead)
                    })
                }
            });
            let idle =
                ["", BUSY].contains(&v.obstacle) || v.mastership.is_some() || master.is_some();
            let reason = &v.change.reason;
            let waits = if idle {
                reason.clone()
            } else {
                format!("{reason}; waiting: {}", v.obstacle)
            };
            VirtualServerView {
                name: name.clone(),
                role: role.into(),
                master: master.map(|(m, _)| m.clone()),
                term: v
                    .mastership
                    .as_ref()
                    .map(|m| m.term)
                    .or(master.map(|(_, t)| *t))
                    .unwrap_or(v.highest()),
                addresses: Vec::new(),
                addresses_total: 0,
                mac: None,
                gate: String::new(),
                lease_left: self.lease_end(v).map(|end| end.since(now)),
                clients: None,
                reason: waits,
                changed: Since(v.change.at),
                scripts: Since(None),
                fit: Since(Some(self.fit_servers(now, name))),
                unfit: Since(self.fit(name, now).err().map(str::to_owned)),
                gated: Since(None),
            }
        });
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        ElectdStatus {
            server: self.settings.me.clone(),
            standing: match self.taking {
                Taking::Blank => "blank: no reservation; run standin init on a new cluster".into(),
                Taking::Silent { until, .. } => {
                    format!("silent for {} ms more", until.since(now).as_millis())
                }
                Taking::Active => "taking part".into(),
            },
            maintenance: self.maintenance,
            witness: self.settings.witness,
            lease: self.lease,
            quorum: match self.settings.mode {
                Mode::Majority => "majority".into(),
                Mode::None => "none: two masters are possible in a partition".into(),
            },
            quorum_need: count(self.quorum()),
            quorum_have: count(match self.settings.mode {
                Mode::Majority => self.in_touch(now),
                Mode::None => 1,
            }),
            roster: self.reservation.roster.version,
            voters: self.reservation.roster.voters.clone(),
            servers: std::iter::once(own).chain(servers).collect(),
            virtual_servers: virtual_servers.collect(),
            abstains: Since(self.taking != Taking::Active),
        }
    }

    /// The sender has heard this server within a lease.
    fn is_heard_by(&self, beat: &Beat) -> bool {
        let mut heard = beat.heard.iter();
        heard.any(|h| h.server == self.settings.me && h.age <= self.lease)
    }

    /// Who could serve `name` by its own word, by its place: this server is the first, the others follow.
    fn fit_servers(&self, now: BootTime, name: &VirtualServerName) -> Vec<u8> {
        let own = std::iter::once(self.fit(name, now).is_ok());
        let others = self
            .peers
            .values()
            .map(|p| p.standing(name).is_some_and(|s| s.fit));
        let all = (0..=u8::MAX).zip(own.chain(others));
        all.filter_map(|(place, fit)| fit.then_some(place))
            .collect()
    }
}
