//! Could another server take over if one failed now? One pure function over all that is known; `standin status`, `standin
//! check` and the alarms of the main daemon say what it finds.

pub mod alarm;
mod reason;
#[cfg(test)]
mod tests;

pub use reason::{Reason, Silence, Unable, Weight};

use crate::host::Host;
use config::{Config, Quorum};
use protocol::{
    BootTime, Role, ServerName, VirtualServerName,
    local::{
        ctl::{CtlReply, CtlRequest},
        ring::HealthState,
        status::{
            Detail, ElectdStatus, OffsetStatus, PathStatus, PeerStatus, Refused, RoleStatus,
            ServerView, Stranger, VirtualServerView,
        },
    },
    wire::beat::Participation,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

/// A path of a living server is lost when it was silent for so long, or so many heartbeat intervals.
const PATH_SILENT: Duration = Duration::from_secs(5);
const PATH_SILENT_BEATS: u32 = 5;
/// What was refused, asked or sent by a stranger counts for so long as something that goes on.
const RECENT: Duration = Duration::from_secs(30);
/// Who is asked and does not answer asks again in less.
const ASKED_LATELY: Duration = Duration::from_secs(5);
/// A peer that has answered and sends no beat for so long sends none.
const BEATS_LATE: Duration = Duration::from_secs(5);
/// Longest IPv4 packet with part of a beat.
const PACKET_MAX: u32 = 1228;
/// A role that does not answer by then does not answer.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Virtual servers named in one line.
const NAMED: usize = 8;

/// All that is known at one moment.
pub struct Known<'a> {
    pub config: &'a Config,
    pub now: BootTime,
    pub answers: &'a BTreeMap<Role, RoleStatus>,
    pub host: &'a Host,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub weight: Weight,
    /// Of these virtual servers; none: of all.
    pub of: Vec<VirtualServerName>,
    pub reason: Reason,
    /// More about it, which may change while it lasts.
    pub more: Option<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.of.is_empty() {
            write!(f, "virtual server {}: ", named(&self.of))?;
        }
        self.reason.fmt(f)?;
        match &self.more {
            Some(more) => write!(f, " ({more})"),
            None => Ok(()),
        }
    }
}

/// Why nothing is known about a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// electd does not answer.
    Electd,
    /// This server is blank and knows of no voters.
    Voters,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Why nothing is known about a failover.
    pub unknown: Option<Unknown>,
    pub findings: Vec<Finding>,
}

impl Judgement {
    /// Whether a failover of `v`, or of any virtual server, would succeed.
    pub fn can(&self, v: Option<&VirtualServerName>) -> Option<bool> {
        let concerns = |f: &&Finding| v.is_none_or(|v| f.of.is_empty() || f.of.contains(v));
        let mut outages = self.outages().filter(concerns);
        self.unknown.is_none().then(|| outages.next().is_none())
    }

    fn outages(&self) -> impl Iterator<Item = &Finding> {
        let is = |f: &&Finding| f.weight == Weight::Outage;
        self.findings.iter().filter(is)
    }

    /// `can fail over: ...`, once if it is the same of all virtual servers.
    pub fn lines(&self, all: &[VirtualServerName]) -> Vec<String> {
        let why = match self.unknown {
            Some(Unknown::Electd) => Some("electd does not answer"),
            Some(Unknown::Voters) => Some("this server is blank and knows of no voters"),
            None => None,
        };
        if let Some(why) = why {
            return vec![format!("can fail over: not known, for {why}")];
        }
        let mut same = BTreeMap::<Vec<String>, Vec<VirtualServerName>>::new();
        for v in all {
            let concerns = |f: &&Finding| f.of.is_empty() || f.of.contains(v);
            let why = self.outages().filter(concerns).map(|f| f.reason.brief());
            same.entry(why.collect()).or_default().push(v.clone());
        }
        let several = same.len() > 1;
        let line = |(why, of): (Vec<String>, Vec<VirtualServerName>)| {
            let of = if several {
                format!(" for {}", named(&of))
            } else {
                String::new()
            };
            match why.as_slice() {
                [] => format!("can fail over: yes{of}"),
                why => format!("can fail over: no{of}, because {}", why.join("; ")),
            }
        };
        same.into_iter().map(line).collect()
    }
}

/// What the roles of this server tell.
pub fn ask(run_dir: &Path, config: &Config) -> BTreeMap<Role, RoleStatus> {
    let ask = |role| match daemon::ctl::call(run_dir, role, &CtlRequest::Status, TIMEOUT) {
        Ok(CtlReply::Status(status)) => Some((role, *status)),
        Ok(CtlReply::Done(_) | CtlReply::No(_)) | Err(_) => None,
    };
    crate::run::roles(config).filter_map(ask).collect()
}

/// The function.
pub fn judge(known: &Known<'_>) -> Judgement {
    let mut findings = known.of_this_machine();
    findings.extend(known.of_roles());
    let mut unknown = Some(Unknown::Electd);
    if let Some(electd) = known.electd() {
        let majority = known.config.cluster.quorum == Quorum::Majority;
        unknown = (majority && electd.voters.is_empty()).then_some(Unknown::Voters);
        let cluster = Cluster::new(known, electd);
        findings.extend(cluster.of_elections());
        findings.extend(cluster.of_servers());
        findings.extend(cluster.of_blanks());
    }
    findings.sort_by_key(|f| f.weight);
    Judgement { unknown, findings }
}

/// A finding about everything.
fn all(weight: Weight, reason: Reason) -> Finding {
    some(weight, Vec::new(), reason)
}

fn some(weight: Weight, of: Vec<VirtualServerName>, reason: Reason) -> Finding {
    Finding {
        weight,
        of,
        reason,
        more: None,
    }
}

impl<'a> Known<'a> {
    fn detail(&self, role: Role) -> Option<&'a Detail> {
        self.answers.get(&role).map(|status| &status.detail)
    }

    fn electd(&self) -> Option<&'a ElectdStatus> {
        match self.detail(Role::Electd)? {
            Detail::Electd(status) => Some(status),
            _ => None,
        }
    }

    fn hbd(&self) -> Option<(&'a [PathStatus], &'a [PeerStatus], &'a [Stranger])> {
        match self.detail(Role::Hbd)? {
            Detail::Hbd {
                paths,
                peers,
                strangers,
            } => Some((paths, &peers.0, &strangers.0)),
            _ => None,
        }
    }

    fn link(&self, server: &ServerName) -> Option<bool> {
        let Detail::Listend { links, .. } = self.detail(Role::Listend)? else {
            return None;
        };
        let found = links.iter().find(|(name, _)| name == server);
        found.map(|(_, up)| *up)
    }

    fn offsets(&self) -> &'a [(ServerName, OffsetStatus)] {
        match self.detail(Role::Doctord) {
            Some(Detail::Doctord { offsets, .. }) => offsets,
            _ => &[],
        }
    }

    fn is_recent(&self, at: BootTime) -> bool {
        self.now.since(at) < RECENT
    }

    fn of_this_machine(&self) -> Vec<Finding> {
        let mut by_fault = BTreeMap::<_, Vec<VirtualServerName>>::new();
        for (v, unfit) in &self.host.interfaces {
            by_fault.entry(unfit).or_default().push(v.clone());
        }
        let interfaces = by_fault
            .into_iter()
            .map(|(unfit, of)| some(Weight::Weakness, of, Reason::Interface(unfit.clone())));
        let shared = self.host.shared.iter().map(|(cable, addresses)| {
            let reason = Reason::SharedCable(cable.clone(), addresses.clone());
            all(Weight::Remark, reason)
        });
        let scripts = self.host.scripts.iter().map(|(path, fault)| {
            all(
                Weight::Weakness,
                Reason::Script(path.clone(), fault.clone()),
            )
        });
        interfaces.chain(shared).chain(scripts).collect()
    }

    /// Only where some answer: else standin does not run, or this user may not ask.
    fn of_roles(&self) -> Vec<Finding> {
        let roles = [Role::Hbd, Role::Listend, Role::Doctord, Role::Electd];
        let silent = roles.iter().filter(|r| !self.answers.contains_key(r));
        let silent: Vec<_> = silent
            .map(|role| all(Weight::Weakness, Reason::Silent(*role)))
            .collect();
        if silent.len() == roles.len() {
            return Vec::new();
        }
        silent
    }
}

/// The servers as this one sees them.
struct Cluster<'k, 'a> {
    known: &'k Known<'a>,
    electd: &'a ElectdStatus,
    needed: usize,
    /// Voters that vote, as far as is known.
    voting: BTreeSet<&'a ServerName>,
}

impl<'k, 'a> Cluster<'k, 'a> {
    fn new(known: &'k Known<'a>, electd: &'a ElectdStatus) -> Self {
        let votes = |s: &&ServerView| {
            is_heard(s)
                && electd.voters.contains(&s.name)
                && s.participation.0.is_none_or(|p| p == Participation::Active)
        };
        let voting = electd.servers.iter().filter(votes).map(|s| &s.name);
        Self {
            known,
            electd,
            needed: usize::try_from(electd.quorum_need).unwrap_or(usize::MAX),
            voting: voting.collect(),
        }
    }

    fn is_majority(&self) -> bool {
        self.known.config.cluster.quorum == Quorum::Majority
    }

    fn me(&self) -> &ServerName {
        &self.electd.server
    }

    fn server(&self, name: &ServerName) -> Option<&'a ServerView> {
        self.electd.servers.iter().find(|s| s.name == *name)
    }

    /// What is found about elections, with the virtual servers of which it is so.
    fn of_elections(&self) -> Vec<Finding> {
        let mut found = BTreeMap::<Reason, Vec<VirtualServerName>>::new();
        for v in &self.electd.virtual_servers {
            for reason in self.obstacles(v) {
                found.entry(reason).or_default().push(v.name.clone());
            }
        }
        let everywhere = self.electd.virtual_servers.len();
        let finding = |(reason, of): (Reason, Vec<VirtualServerName>)| {
            let of = if of.len() == everywhere {
                Vec::new()
            } else {
                of
            };
            some(Weight::Outage, of, reason)
        };
        let mut findings: Vec<Finding> = found.into_iter().map(finding).collect();
        let gates = &self.electd.virtual_servers;
        if gates.iter().any(|v| v.gated.0 == Some(false)) {
            findings.push(all(Weight::Remark, Reason::Ungated));
        }
        let own = self.server(self.me()).and_then(|s| s.participation.0);
        let own = match own {
            Some(Participation::Blank) => Some(Reason::OwnBlank),
            Some(Participation::Silent) => Some(Reason::OwnSilent),
            Some(Participation::Active) | None => None,
        };
        findings.extend(own.map(|reason| all(Weight::Weakness, reason)));
        findings
    }

    /// Why nobody could take `v` over if its master failed now.
    fn obstacles(&self, v: &VirtualServerView) -> Vec<Reason> {
        let master = if v.role == "master" {
            Some(self.me())
        } else {
            v.master.as_ref()
        };
        let mut reasons = Vec::new();
        if master.is_none() {
            reasons.push(Reason::NoMaster);
        }
        let heard = usize::try_from(self.electd.quorum_have).unwrap_or(usize::MAX);
        if self.electd.voters.is_empty() && self.is_majority() {
            return reasons;
        }
        let left: BTreeSet<_> = self
            .voting
            .iter()
            .copied()
            .filter(|s| Some(*s) != master)
            .collect();
        let voting = self.voting.len().min(heard);
        if self.is_majority() {
            if voting < self.needed {
                let needed = self.needed;
                reasons.push(Reason::TooFewVoters {
                    heard: voting,
                    needed,
                });
            } else if left.len() < self.needed {
                reasons.push(Reason::LastVoters {
                    left: left.len(),
                    needed: self.needed,
                });
            }
        }
        let others = self.electd.servers.iter();
        let others = others.filter(|s| Some(&s.name) != master);
        let judged = others.map(|s| (s, self.unable(s, v)));
        let (able, unable): (Vec<_>, Vec<_>) = judged.partition(|(_, why)| why.is_none());
        if able.is_empty() {
            let unable = unable.into_iter();
            let unable = unable.filter_map(|(s, why)| Some((s.name.clone(), why?)));
            reasons.push(Reason::NoSpare(unable.collect()));
        }
        let cut_off = |(s, _): &(&ServerView, _)| self.reach(&s.name, &left) < self.needed;
        let by_signals = !able.is_empty() && left.len() >= self.needed && able.iter().all(cut_off);
        // Where this server is master, or nobody is, it cannot be that it alone is cut off and others need not care.
        let concerned = master.is_none_or(|m| m == self.me());
        let alone = concerned && self.reach(self.me(), &self.voting) < self.needed;
        if by_signals || alone && voting >= self.needed {
            reasons.push(Reason::NoSignals(self.unlinked()));
        }
        reasons
    }

    fn unable(&self, s: &ServerView, v: &VirtualServerView) -> Option<Unable> {
        let place = self.electd.servers.iter().position(|x| x.name == s.name);
        let place = place.and_then(|place| u8::try_from(place).ok());
        let fit = v.fit.0.as_ref();
        let is_fit = fit.is_none_or(|fit| place.is_none_or(|place| fit.contains(&place)));
        match s {
            s if s.witness.0 => Some(Unable::Witness),
            s if s.withdrawn.0 && is_heard(s) => Some(Unable::Withdrawn),
            s if !is_heard(s) => Some(Unable::Unheard(s.state)),
            s if s.participation.0 == Some(Participation::Blank) => Some(Unable::Blank),
            s if self.is_majority() && !self.electd.voters.contains(&s.name) => {
                Some(Unable::NotVoter)
            }
            s if !is_fit => {
                let own = s.name == *self.me();
                Some(Unable::Unfit(v.unfit.0.clone().filter(|_| own)))
            }
            _ => None,
        }
    }

    /// How many of these voters would get the signals of `candidate`, itself included. Of links between others nothing
    /// is known, so they count as up.
    fn reach(&self, candidate: &ServerName, voters: &BTreeSet<&ServerName>) -> usize {
        let up = |server: &ServerName| self.known.link(server) != Some(false);
        let reached = |voter: &&&ServerName| match () {
            () if **voter == candidate => true,
            () if candidate == self.me() => up(voter),
            () if **voter == self.me() => up(candidate),
            () => true,
        };
        voters.iter().filter(reached).count()
    }

    /// Living servers to which this one has no link.
    fn unlinked(&self) -> Vec<ServerName> {
        let others = self.electd.servers.iter();
        let down = others.filter(|s| is_heard(s) && self.known.link(&s.name) == Some(false));
        down.map(|s| s.name.clone()).collect()
    }

    fn of_servers(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for server in self.unlinked() {
            findings.push(Finding {
                more: self.link_failure(&server),
                ..all(Weight::Weakness, Reason::NoLink(server))
            });
        }
        let others = self.electd.servers.iter().filter(|s| s.name != *self.me());
        for s in others {
            if is_heard(s) {
                let withdrawn = Reason::Withdrawn(s.name.clone());
                findings.extend(s.withdrawn.0.then(|| all(Weight::Remark, withdrawn)));
                let deaf = s.hears.0 == Some(false);
                let reason = || all(Weight::Weakness, Reason::Deaf(s.name.clone()));
                findings.extend(deaf.then(reason));
                findings.extend(self.of_paths(&s.name));
            } else {
                let reason = Reason::Unheard(s.name.clone(), self.silence(s));
                findings.push(all(Weight::Weakness, reason));
            }
        }
        let limit = self.known.config.time.max_skew.as_nanos();
        let apart = |o: &&(ServerName, OffsetStatus)| u128::from(o.1.least_ns()) > limit;
        for (server, offset) in self.known.offsets().iter().filter(apart) {
            findings.push(Finding {
                more: Some(offset.in_words()),
                ..all(Weight::Weakness, Reason::Clock(server.clone()))
            });
        }
        findings
    }

    fn link_failure(&self, server: &ServerName) -> Option<String> {
        let Some(Detail::Listend { failed, .. }) = self.known.detail(Role::Listend) else {
            return None;
        };
        let found = failed.0.iter().find(|(name, _)| name == server);
        found.map(|(_, why)| why.clone())
    }

    /// What is wrong with the paths of a living server.
    fn of_paths(&self, server: &ServerName) -> Vec<Finding> {
        let Some((paths, peers, _)) = self.known.hbd() else {
            return Vec::new();
        };
        let started = self.known.answers.get(&Role::Hbd).map(|s| s.started);
        let paths: Vec<_> = paths.iter().filter(|p| p.server == *server).collect();
        let limit = PATH_SILENT.max(self.known.config.cluster.heartbeat * PATH_SILENT_BEATS);
        let mut findings = Vec::new();
        for path in &paths {
            let since = path.last_heard.max(started).unwrap_or(self.known.now);
            if paths.len() > 1 && self.known.now.since(since) > limit {
                let why = self.refused(path);
                let reason = Reason::PathLost(server.clone(), way(path), why);
                findings.push(all(Weight::Weakness, reason));
            }
            if let Some(mtu) = path.mtu.0.filter(|mtu| *mtu < PACKET_MAX) {
                let reason = Reason::ShortPackets(server.clone(), way(path), mtu);
                findings.push(all(Weight::Remark, reason));
            }
        }
        let peer = peers.iter().find(|p| p.server == *server);
        if peer.is_some_and(|p| p.parts_missing.is_some()) {
            findings.push(all(Weight::Weakness, Reason::PartsLost(server.clone())));
        }
        findings
    }

    /// Why packets of a path that is silent are refused, if they come.
    fn refused(&self, path: &PathStatus) -> Option<Refused> {
        let refusal = path.refused.0?;
        let is_last = path.last_heard.is_none_or(|heard| heard < refusal.at);
        (is_last && self.known.is_recent(refusal.at)).then_some(refusal.why)
    }

    /// Why a server is not heard.
    fn silence(&self, s: &ServerView) -> Silence {
        let Some((paths, peers, strangers)) = self.known.hbd() else {
            return Silence::Unknown;
        };
        let now = self.known.now;
        let mut paths = paths.iter().filter(|p| p.server == s.name);
        if let Some((path, why)) = paths.find_map(|p| Some((p, self.refused(p)?))) {
            return Silence::Refused(path.address.clone(), why);
        }
        let lately = || strangers.iter().filter(|s| self.known.is_recent(s.at));
        if let Some(it) = lately().find(|x| x.server.as_ref() == Some(&s.name)) {
            return Silence::Elsewhere(it.address);
        }
        let peer = peers.iter().find(|p| p.server == s.name);
        let asks = peer
            .and_then(|p| p.asked)
            .is_some_and(|at| now.since(at) < ASKED_LATELY);
        if s.state == HealthState::Unknown && !asks {
            return Silence::Unknown;
        }
        if let Some(met) = peer.and_then(|p| p.met)
            && peer.is_some_and(|p| p.beat.is_none())
            && now.since(met) > BEATS_LATE
        {
            return Silence::NoBeats;
        }
        match s {
            _ if asks => Silence::OneWay,
            s if self.known.link(&s.name) == Some(true) => Silence::SignalsOnly,
            s if s.withdrawn.0 => Silence::Stopped,
            s if s.last_heard.is_none() => {
                let unknown = lately().filter(|x| x.server.is_none());
                let mut addresses: Vec<_> = unknown.map(|x| x.address).collect();
                addresses.sort();
                if addresses.is_empty() {
                    Silence::Nothing
                } else {
                    Silence::Strangers(addresses)
                }
            }
            _ => Silence::Nothing,
        }
    }

    /// R21: a blank server ends to be so when every other voter has told what it remembers.
    fn of_blanks(&self) -> Option<Finding> {
        let voters = &self.electd.voters;
        let votes = |name: &ServerName| voters.is_empty() || voters.contains(name);
        let blank =
            |s: &&ServerView| s.participation.0 == Some(Participation::Blank) && votes(&s.name);
        let blanks: Vec<_> = self.electd.servers.iter().filter(blank).collect();
        let names = blanks.iter().map(|s| s.name.clone()).collect();
        (blanks.len() > 1).then(|| all(Weight::Weakness, Reason::BlanksWait(names)))
    }
}

/// "from 192.0.2.1 to 192.0.2.2"
fn way(path: &PathStatus) -> String {
    match path.local.0 {
        Some(local) => format!("from {local} to {}", path.address),
        None => format!("at {}", path.address),
    }
}

/// Heard lately enough to count on.
fn is_heard(s: &ServerView) -> bool {
    matches!(s.state, HealthState::Alive | HealthState::Suspect)
}

/// The first of these, and how many more there are.
fn named(of: &[VirtualServerName]) -> String {
    let mut names: Vec<_> = of.iter().take(NAMED).map(ToString::to_string).collect();
    if of.len() > NAMED {
        names.push(format!("and {} more", of.len() - NAMED));
    }
    names.join(" ")
}
