//! Each state in which the next failure would be an outage, or less would be left than there should be.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::host::{ScriptFault, Unfit};
use daemon::links::LinkState;
use protocol::{
    RosterVersion, Term,
    local::{
        ring::Health,
        status::{PathRefusal, Refused},
    },
    version::Since,
};

const NOW: BootTime = BootTime(1_000_000_000_000);

fn ago(seconds: u64) -> BootTime {
    BootTime(NOW.0 - seconds * 1_000_000_000)
}

fn name(text: &str) -> ServerName {
    text.parse().unwrap()
}

/// A cluster as its server `alpha` sees it; in the beginning all is well and beta is master of all.
struct World {
    config: Config,
    electd: ElectdStatus,
    paths: Vec<PathStatus>,
    peers: Vec<PeerStatus>,
    strangers: Vec<Stranger>,
    links: Vec<(ServerName, bool)>,
    offsets: Vec<(ServerName, OffsetStatus)>,
    host: Host,
    silent: Vec<Role>,
}

impl World {
    fn new(servers: &[&str]) -> Self {
        let others = || servers.iter().copied().filter(|s| *s != "alpha").map(name);
        let server = |s: &&str| ServerView {
            name: name(s),
            state: HealthState::Alive,
            rank: Some(0),
            last_heard: Some(ago(0)),
            freshness: (Term(0), 0),
            config_differs: false,
            withdrawn: Since(false),
            witness: Since(false),
            participation: Since(Some(Participation::Active)),
            hears: Since(Some(true)),
        };
        let places: Vec<u8> = (0..).zip(servers).map(|(place, _)| place).collect();
        let virtual_server = |v: &str| VirtualServerView {
            name: v.parse().unwrap(),
            role: "slave".into(),
            master: Some(name("beta")),
            term: Term(7),
            addresses: Vec::new(),
            addresses_total: 0,
            mac: None,
            gate: String::new(),
            lease_left: None,
            clients: None,
            reason: String::new(),
            changed: Since(None),
            scripts: Since(None),
            fit: Since(Some(places.clone())),
            unfit: Since(None),
            gated: Since(Some(true)),
        };
        let count = |n: usize| u32::try_from(n).unwrap();
        let path = |server: ServerName, network: u8| PathStatus {
            address: format!("192.0.{network}.{}", server.as_str().len()),
            server,
            last_heard: Some(ago(0)),
            local: Since(Some([192, 0, network, 1].into())),
            refused: Since(None),
            mtu: Since(Some(1500)),
        };
        let text = "[cluster]\nname = \"web\"\nquorum = \"none\"\n[[server]]\nname = \"alpha\"\naddress = \"192.0.2.1\"\n";
        let mut config = config::parse(text, std::path::Path::new("f")).unwrap();
        config.cluster.quorum = Quorum::Majority;
        Self {
            config,
            electd: ElectdStatus {
                server: name("alpha"),
                standing: String::new(),
                maintenance: false,
                witness: false,
                lease: Duration::from_millis(500),
                quorum: "majority".into(),
                quorum_need: count(servers.len() / 2 + 1),
                quorum_have: count(servers.len()),
                roster: RosterVersion::default(),
                voters: servers.iter().copied().map(name).collect(),
                servers: servers.iter().map(server).collect(),
                virtual_servers: vec![virtual_server("mail"), virtual_server("web")],
                abstains: Since(false),
            },
            paths: others()
                .flat_map(|s| [path(s.clone(), 2), path(s, 3)])
                .collect(),
            peers: others()
                .map(|server| PeerStatus {
                    server,
                    asked: Some(ago(500)),
                    met: Some(ago(500)),
                    beat: Some(ago(0)),
                    parts_missing: None,
                })
                .collect(),
            strangers: Vec::new(),
            links: others().map(|s| (s, true)).collect(),
            offsets: Vec::new(),
            host: Host::default(),
            silent: Vec::new(),
        }
    }

    fn server(&mut self, server: &str) -> &mut ServerView {
        let mut all = self.electd.servers.iter_mut();
        all.find(|s| s.name.as_str() == server).unwrap()
    }

    fn path(&mut self, server: &str, place: usize) -> &mut PathStatus {
        let mut of = self
            .paths
            .iter_mut()
            .filter(|p| p.server.as_str() == server);
        of.nth(place).unwrap()
    }

    fn peer(&mut self, server: &str) -> &mut PeerStatus {
        let mut all = self.peers.iter_mut();
        all.find(|p| p.server.as_str() == server).unwrap()
    }

    fn master(&mut self, server: &str) {
        for v in &mut self.electd.virtual_servers {
            v.master = Some(name(server));
            v.role = if server == "alpha" { "master" } else { "slave" }.into();
        }
    }

    fn unlink(&mut self, servers: &[&str]) {
        let down = |(s, up): &mut (ServerName, bool)| *up &= !servers.contains(&s.as_str());
        self.links.iter_mut().for_each(down);
    }

    /// As if it had lost its power some time ago.
    fn kill(&mut self, server: &str) {
        let s = self.server(server);
        (s.state, s.last_heard) = (HealthState::Dead, Some(ago(60)));
        for place in [0, 1] {
            self.path(server, place).last_heard = Some(ago(60));
        }
        self.peer(server).beat = Some(ago(60));
        self.unlink(&[server]);
        self.electd.quorum_have -= 1;
    }

    fn answers(&self) -> BTreeMap<Role, RoleStatus> {
        let details = [
            (
                Role::Hbd,
                Detail::Hbd {
                    paths: self.paths.clone(),
                    peers: Since(self.peers.clone()),
                    strangers: Since(self.strangers.clone()),
                },
            ),
            (
                Role::Listend,
                Detail::Listend {
                    links: self.links.clone(),
                    failed: Since(vec![(name("gamma"), "no answer to connecting".into())]),
                },
            ),
            (
                Role::Doctord,
                Detail::Doctord {
                    health: Health::default(),
                    offsets: self.offsets.clone(),
                },
            ),
            (Role::Electd, Detail::Electd(Box::new(self.electd.clone()))),
        ];
        let status = |(role, detail)| {
            let status = RoleStatus {
                role,
                pid: 1,
                started: ago(500),
                version: String::new(),
                counters: BTreeMap::new(),
                notes: Vec::new(),
                detail,
            };
            (role, status)
        };
        let answers = details
            .into_iter()
            .filter(|(r, _)| !self.silent.contains(r));
        answers.map(status).collect()
    }

    fn judge(&self) -> Judgement {
        judge(&Known {
            config: &self.config,
            now: NOW,
            answers: &self.answers(),
            host: &self.host,
        })
    }

    fn lines(&self) -> Vec<String> {
        let all = self.electd.virtual_servers.iter();
        self.judge()
            .lines(&all.map(|v| v.name.clone()).collect::<Vec<_>>())
    }

    /// Everything found, a line each.
    fn found(&self) -> Vec<String> {
        let found = self.judge().findings;
        found
            .iter()
            .map(|f| format!("{:?}: {f}", f.weight))
            .collect()
    }
}

const THREE: [&str; 3] = ["alpha", "beta", "gamma"];
const FIVE: [&str; 5] = ["alpha", "beta", "gamma", "delta", "eps"];

#[test]
fn where_all_is_well_nothing_is_found() {
    for master in THREE {
        let mut world = World::new(&THREE);
        world.master(master);
        assert_eq!(world.found(), [""; 0]);
        assert_eq!(world.lines(), ["can fail over: yes"]);
        assert_eq!(world.judge().can(None), Some(true));
    }
}

/// What is changed in a world, and the start of its first line about failovers.
type Row = (&'static [&'static str], fn(&mut World), &'static str);

#[test]
fn the_next_failure_would_be_an_outage() {
    let rows: &[Row] = &[
        (
            &THREE,
            |w| w.kill("gamma"),
            "can fail over: no, because without the master 1 voters would be left and 2 are needed",
        ),
        (&FIVE, |w| w.kill("gamma"), "can fail over: yes"),
        (
            &FIVE,
            |w| ["gamma", "delta"].iter().for_each(|s| w.kill(s)),
            "can fail over: no, because without the master 2 voters",
        ),
        (
            &FIVE,
            |w| {
                w.server("beta").witness = Since(true);
                w.master("alpha");
                ["gamma", "delta", "eps"].iter().for_each(|s| w.kill(s));
            },
            "can fail over: no, because 2 of the voters take part and 3 are needed; no other server could serve: beta is a \
             witness, gamma is dead",
        ),
        // A voter that does not vote is none.
        (
            &THREE,
            |w| w.server("gamma").participation = Since(Some(Participation::Silent)),
            "can fail over: no, because without the master",
        ),
        // Signals blocked to a majority: whoever would stand.
        (
            &THREE,
            |w| w.unlink(&["gamma"]),
            "can fail over: no, because there is no link for signals (TCP) to gamma",
        ),
        (
            &THREE,
            |w| {
                w.master("alpha");
                w.unlink(&["beta", "gamma"]);
            },
            "can fail over: no, because there is no link for signals (TCP) to beta, gamma",
        ),
        (
            &THREE,
            |w| {
                w.unlink(&["beta", "gamma"]);
                w.electd
                    .virtual_servers
                    .iter_mut()
                    .for_each(|v| v.master = None);
            },
            "can fail over: no, because nobody is master; there is no link for signals (TCP) to beta, gamma",
        ),
        // The others may elect one of themselves.
        (
            &FIVE,
            |w| w.unlink(&["beta", "gamma", "delta", "eps"]),
            "can fail over: yes",
        ),
        (
            &THREE,
            |w| {
                w.master("alpha");
                w.server("beta").withdrawn = Since(true);
                w.server("gamma").witness = Since(true);
            },
            "can fail over: no, because no other server could serve: beta is in maintenance, gamma is a witness",
        ),
        (
            &THREE,
            |w| {
                w.server("alpha").withdrawn = Since(true);
                w.electd.voters.pop();
                w.electd.quorum_need = 1;
            },
            "can fail over: no, because no other server could serve: alpha is in maintenance, gamma is no voter",
        ),
        (
            &["alpha", "beta"],
            |w| {
                w.config.cluster.quorum = Quorum::None;
                (w.electd.quorum_need, w.electd.quorum_have) = (1, 1);
                w.kill("beta");
                w.electd.quorum_have = 1;
                w.master("alpha");
            },
            "can fail over: no, because no other server could serve: beta is dead",
        ),
        (
            &["alpha"],
            |w| w.master("alpha"),
            "can fail over: no, because without the master 0 voters would be left and 1 are needed; there is no \
             other server",
        ),
        (
            &THREE,
            |w| w.silent.push(Role::Electd),
            "can fail over: not known, for electd does not answer",
        ),
    ];
    for (row, (servers, change, start)) in rows.iter().enumerate() {
        let mut world = World::new(servers);
        change(&mut world);
        let lines = world.lines();
        assert!(lines[0].starts_with(start), "row {row}: {lines:?}");
        assert_eq!(lines.len(), 1, "row {row}: {lines:?}");
        let no = start.contains(": no,");
        assert_eq!(world.judge().can(None) == Some(false), no, "row {row}");
    }
}

#[test]
fn virtual_servers_that_differ_have_a_line_each() {
    let mut world = World::new(&THREE);
    world.electd.virtual_servers[1].fit = Since(Some(vec![1]));
    world.electd.virtual_servers[1].unfit = Since(Some("its interface is down".into()));
    assert_eq!(
        world.lines(),
        [
            "can fail over: yes for mail",
            "can fail over: no for web, because no other server could serve: alpha is not fit (its interface is down), \
             gamma is not fit (interface or gate)",
        ]
    );
    let judgement = world.judge();
    let can = |v: &str| judgement.can(Some(&v.parse().unwrap()));
    assert_eq!(
        (can("mail"), can("web"), judgement.can(None)),
        (Some(true), Some(false), Some(false))
    );
}

#[test]
fn an_older_electd_that_does_not_tell_who_is_fit_raises_no_alarm() {
    let mut world = World::new(&THREE);
    for v in &mut world.electd.virtual_servers {
        (v.fit, v.gated) = (Since(None), Since(None));
    }
    world
        .electd
        .servers
        .iter_mut()
        .for_each(|s| s.participation = Since(None));
    assert_eq!(world.found(), [""; 0]);
}

#[test]
fn less_is_left_than_there_should_be() {
    let refusal = |why| Since(Some(PathRefusal { at: ago(1), why }));
    type Row<'a> = (&'a dyn Fn(&mut World), &'a str);
    let rows: &[Row<'_>] = &[
        (
            &|w| {
                w.unlink(&["gamma"]);
            },
            "Weakness: no link for signals (TCP) to gamma, though it is alive (no answer to connecting)",
        ),
        (
            &|w| w.path("gamma", 1).last_heard = Some(ago(6)),
            "Weakness: the path to gamma from 192.0.3.1 to 192.0.3.5 is silent, though gamma is alive over another",
        ),
        (
            &|w| w.path("gamma", 1).last_heard = None,
            "Weakness: the path to gamma from 192.0.3.1 to 192.0.3.5 is silent",
        ),
        (
            &|w| {
                w.path("gamma", 1).last_heard = None;
                w.path("gamma", 1).refused = refusal(Refused::NotOurs);
            },
            "Weakness: the path to gamma from 192.0.3.1 to 192.0.3.5 is lost: what comes from there is refused: no packets",
        ),
        (
            &|w| w.path("gamma", 0).mtu = Since(Some(1000)),
            "Remark: the path to gamma from 192.0.2.1 to 192.0.2.5 passes only packets of 1000 bytes in one piece",
        ),
        (
            &|w| w.peer("gamma").parts_missing = Some(ago(9)),
            "Weakness: of the beats of gamma some parts never come",
        ),
        (
            &|w| w.kill("eps"),
            "Weakness: eps is not heard: nothing arrives",
        ),
        (
            &|w| {
                w.kill("eps");
                w.path("eps", 0).refused = refusal(Refused::Unauthentic);
            },
            "Weakness: eps is not heard: what comes from 192.0.2.3 is refused: the seal does not open",
        ),
        (
            &|w| {
                w.kill("eps");
                w.path("eps", 1).refused = refusal(Refused::Version(9));
            },
            "Weakness: eps is not heard: what comes from 192.0.3.3 is refused: protocol version 9",
        ),
        (
            &|w| {
                w.kill("eps");
                w.strangers = vec![Stranger {
                    address: "198.51.100.7".parse().unwrap(),
                    at: ago(2),
                    server: Some(name("eps")),
                }];
            },
            "Weakness: eps is not heard: its packets come from 198.51.100.7, an address that",
        ),
        (
            &|w| {
                w.kill("eps");
                w.server("eps").last_heard = None;
                w.strangers = vec![Stranger {
                    address: "198.51.100.7".parse().unwrap(),
                    at: ago(2),
                    server: None,
                }];
            },
            "Weakness: eps is not heard; packets with another cluster.key or cluster name come from 198.51.100.7",
        ),
        (
            &|w| {
                w.kill("eps");
                w.peer("eps").asked = Some(ago(0));
            },
            "Weakness: eps is not heard: its questions arrive, and it answers none",
        ),
        (
            &|w| {
                w.kill("eps");
                w.peer("eps").beat = None;
            },
            "Weakness: eps is not heard: its hbd has answered, and no beat has come",
        ),
        (
            &|w| {
                w.kill("eps");
                w.links.iter_mut().for_each(|l| l.1 = true);
            },
            "Weakness: eps is not heard, though its link for signals (TCP) is up",
        ),
        (
            &|w| {
                w.kill("eps");
                w.server("eps").withdrawn = Since(true);
            },
            "Weakness: eps is not heard: it was stopped",
        ),
        (
            &|w| w.server("eps").state = HealthState::Unknown,
            "Weakness: eps is not judged yet",
        ),
        (
            &|w| w.server("gamma").hears = Since(Some(false)),
            "Weakness: gamma is heard and does not hear this server",
        ),
        (
            &|w| w.server("gamma").withdrawn = Since(true),
            "Remark: gamma is in maintenance",
        ),
        (
            &|w| w.server("alpha").participation = Since(Some(Participation::Blank)),
            "Weakness: this server is blank",
        ),
        (
            &|w| {
                let offset = OffsetStatus {
                    offset_ns: -3_000_000_000,
                    bound_ns: 1_000,
                    rate_ppb: 0,
                };
                w.offsets = vec![(name("gamma"), offset)];
            },
            "Weakness: the clock of gamma differs by more than max_skew",
        ),
        (
            &|w| w.electd.virtual_servers[0].gated = Since(Some(false)),
            "Remark: nothing in the kernel keeps the lease",
        ),
        (
            &|w| w.silent.push(Role::Listend),
            "Weakness: listend of this server does not answer",
        ),
        (
            &|w| {
                let fault = ScriptFault::NoInterpreter("/bin/zsh".into());
                w.host.scripts = vec![("/etc/standin/master.d/10-a".into(), fault)];
            },
            "Weakness: /etc/standin/master.d/10-a: cannot run: its first line names /bin/zsh",
        ),
        (
            &|w| {
                let unfit = Unfit::Link("eth1".into(), LinkState::NoCarrier);
                w.host.interfaces = [("web".parse().unwrap(), unfit)].into();
            },
            "Weakness: virtual server web: interface eth1 has no carrier",
        ),
        (
            &|w| {
                let both = ["192.0.2.1", "192.0.3.1"].map(|ip| ip.parse().unwrap());
                w.host.shared = vec![("eth0".into(), both.into())];
            },
            "Remark: heartbeat addresses 192.0.2.1 and 192.0.3.1 share one cable",
        ),
    ];
    for (row, (change, start)) in rows.iter().enumerate() {
        let mut world = World::new(&FIVE);
        change(&mut world);
        let found = world.found();
        assert!(
            found.len() == 1 && found[0].starts_with(start),
            "row {row}: {found:?}"
        );
        assert_eq!(world.lines(), ["can fail over: yes"], "row {row}");
    }
}

#[test]
fn what_is_old_explains_nothing() {
    let mut world = World::new(&FIVE);
    world.path("eps", 0).refused = Since(Some(PathRefusal {
        at: ago(100),
        why: Refused::Unauthentic,
    }));
    assert_eq!(world.found(), [""; 0], "heard since");
    world.kill("eps");
    let found = world.found();
    assert!(found[0].contains("nothing arrives"), "{found:?}");
}

#[test]
fn servers_without_a_reservation_that_wait_for_one_another_are_named() {
    let mut world = World::new(&FIVE);
    for s in ["delta", "eps"] {
        world.server(s).participation = Since(Some(Participation::Blank));
    }
    let found = world.found();
    assert!(
        found[0].starts_with("Outage: without the master 2 voters"),
        "{found:?}"
    );
    let wait = "Weakness: delta, eps are blank, and each waits for ever";
    assert!(found[1].starts_with(wait) && found.len() == 2, "{found:?}");
    // As one of them sees it, which knows of no voters.
    for s in ["alpha", "gamma"] {
        world.server(s).participation = Since(Some(Participation::Blank));
    }
    world.electd.voters.clear();
    let found = world.found();
    let wait = "Weakness: alpha, gamma, delta, eps are blank";
    assert!(found.iter().any(|f| f.starts_with(wait)), "{found:?}");
    let why = "can fail over: not known, for this server is blank and knows of no voters";
    assert_eq!(world.lines(), [why]);
    assert_eq!(world.judge().can(None), None);
}
