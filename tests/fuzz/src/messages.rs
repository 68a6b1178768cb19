//! Messages made of arbitrary bytes: well formed, of servers and virtual servers that the cores know or not, with
//! numbers that are near to what they expect or as far away as there are.

use arbitrary::{Result, Unstructured};
use protocol::{
    BootTime, Instance, Number, RosterVersion, ServerName, Term, VirtualServerName,
    local::ring::{Health, HealthState, LinkHealth, ServerHealth},
    version::Since,
    wire::{
        beat::{
            Ack, Answer, Beat, Claim, Freshness, Heard, Part, Participation, Roster, Standing,
            Verdict, Why,
        },
        signal::{Body, Client, PreVerdict, Released, Signal},
    },
};
use std::time::Duration;

/// The servers of the configuration, in order.
pub const SERVERS: [&str; 3] = ["alpha", "beta", "gamma"];

/// A server that no configuration lists.
pub const STRANGER: &str = "mallory";

/// Virtual servers; the last one is in nobody's configuration.
pub const VIRTUAL_SERVERS: [&str; 3] = ["mail", "web", "zoo"];

/// Heartbeat interval and lease of the cores.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// See [`HEARTBEAT`].
pub const LEASE: Duration = Duration::from_millis(500);

/// Most entries of a list.
const ENTRIES_MAX: usize = 6;

/// A name that is one.
pub fn name<N: std::str::FromStr>(text: &str) -> Result<N> {
    text.parse().map_err(|_| arbitrary::Error::IncorrectFormat)
}

/// A server of the cluster or, seldom, another one.
pub fn server(u: &mut Unstructured<'_>) -> Result<ServerName> {
    match u.int_in_range(0..=15u8)? {
        15 => name(STRANGER),
        n => name(SERVERS[usize::from(n) % SERVERS.len()]),
    }
}

/// A virtual server; seldom one of thousands that nobody has heard of.
pub fn virtual_server(u: &mut Unstructured<'_>) -> Result<VirtualServerName> {
    match u.int_in_range(0..=31u8)? {
        31 => name(&format!("v{}", u.arbitrary::<u16>()?)),
        n => name(VIRTUAL_SERVERS[usize::from(n) % VIRTUAL_SERVERS.len()]),
    }
}

/// A number near to `near`, near to a limit, or any.
pub fn number_near(u: &mut Unstructured<'_>, near: u64) -> Result<u64> {
    let step = u64::from(u.int_in_range(0..=4u8)?);
    Ok(match u.int_in_range(0..=11u8)? {
        0..=3 => near.saturating_add(step),
        4..=5 => near.saturating_sub(step),
        6 => step,
        7 => u64::MAX - step,
        8 => near.saturating_add((1 << 32) - 2 + step),
        9 => near.saturating_add(2046 + step),
        10 => u.arbitrary::<u16>()?.into(),
        _ => u.arbitrary()?,
    })
}

/// A span: the usual ones, the limits, or any.
pub fn span(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=15u8)? {
        0..=5 => LEASE,
        6 => HEARTBEAT,
        7 => Duration::ZERO,
        8 => Duration::from_nanos(1),
        9 => Duration::from_secs(10),
        10 => Duration::MAX,
        11 => Duration::from_nanos(u64::MAX),
        12..=14 => Duration::from_millis(u.arbitrary::<u16>()?.into()),
        _ => Duration::new(u.arbitrary()?, u.int_in_range(0..=999_999_999)?),
    })
}

/// How far time goes on before the next event. Many such steps stay far from the end of all time.
pub fn step(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=15u8)? {
        0..=5 => Duration::ZERO,
        6 => Duration::from_nanos(1),
        7..=12 => Duration::from_millis(u.int_in_range(0..=127u8)?.into()),
        13 => LEASE,
        14 => Duration::from_millis(u.arbitrary::<u16>()?.into()),
        _ => Duration::from_secs(u.arbitrary::<u16>()?.into()),
    })
}

/// A time about `now`, or any.
pub fn time(u: &mut Unstructured<'_>, now: BootTime) -> Result<BootTime> {
    Ok(match u.int_in_range(0..=7u8)? {
        0..=3 => now,
        4 | 5 => now - span(u)?,
        6 => now + span(u)?,
        _ => BootTime(u.arbitrary()?),
    })
}

fn list<T>(
    u: &mut Unstructured<'_>,
    mut one: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let entries = u.int_in_range(0..=ENTRIES_MAX)?;
    (0..entries).map(|_| one(u)).collect()
}

fn maybe<T>(
    u: &mut Unstructured<'_>,
    one: impl FnOnce(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Option<T>> {
    if u.arbitrary()? {
        one(u).map(Some)
    } else {
        Ok(None)
    }
}

/// What the numbers of a message lie near to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Near {
    /// Terms.
    pub term: u64,
    /// Numbers of the core's own beats and calls.
    pub number: u64,
    /// Rounds of the core's own pre-calls.
    pub round: u64,
    /// Its instance.
    pub instance: u64,
}

impl Near {
    /// A term.
    pub fn term(self, u: &mut Unstructured<'_>) -> Result<Term> {
        number_near(u, self.term).map(Term)
    }

    fn number(self, u: &mut Unstructured<'_>) -> Result<Number> {
        number_near(u, self.number).map(Number)
    }

    fn instance(self, u: &mut Unstructured<'_>) -> Result<Instance> {
        Ok(Instance(match u.int_in_range(0..=7u8)? {
            0..=4 => self.instance,
            5 | 6 => 7,
            _ => u.arbitrary()?,
        }))
    }

    /// A roster version.
    fn version(self, u: &mut Unstructured<'_>) -> Result<RosterVersion> {
        Ok(RosterVersion {
            term: if u.arbitrary()? {
                Term(0)
            } else {
                self.term(u)?
            },
            counter: number_near(u, 0)?,
        })
    }

    /// How fresh files are.
    pub fn freshness(self, u: &mut Unstructured<'_>) -> Result<Freshness> {
        let (term, run) = (self.term(u)?, number_near(u, 1)?);
        Ok(Freshness { term, run })
    }

    /// The voters, as they should be more often than not.
    pub fn roster(self, u: &mut Unstructured<'_>) -> Result<Roster> {
        let listed = SERVERS.map(name).into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Roster {
            version: self.version(u)?,
            voters: if u.int_in_range(0..=3u8)? == 0 {
                list(u, server)?
            } else {
                listed
            },
            keeper: maybe(u, virtual_server)?,
        })
    }

    /// A beat of another server.
    pub fn beat(self, u: &mut Unstructured<'_>) -> Result<Beat> {
        let standing = |u: &mut Unstructured<'_>| {
            let claim = |u: &mut Unstructured<'_>| {
                let (term, lease_held) = (self.term(u)?, u.arbitrary()?);
                Ok(Claim { term, lease_held })
            };
            Ok(Standing {
                virtual_server: virtual_server(u)?,
                floor: self.term(u)?,
                claim: maybe(u, claim)?,
                fit: u.arbitrary()?,
                priority: u.arbitrary::<u8>()?.into(),
            })
        };
        let heard = |u: &mut Unstructured<'_>| {
            let (server, age) = (server(u)?, span(u)?);
            Ok(Heard { server, age })
        };
        Ok(Beat {
            instance: self.instance(u)?,
            number: self.number(u)?,
            lease: span(u)?,
            promise_max: span(u)?,
            floor_base: self.term(u)?,
            participation: *u.choose(&[
                Participation::Active,
                Participation::Active,
                Participation::Silent,
                Participation::Blank,
            ])?,
            maintenance: u.int_in_range(0..=7u8)? == 7,
            witness: u.int_in_range(0..=7u8)? == 7,
            freshness: self.freshness(u)?,
            standings: list(u, standing)?,
            heard: if u.arbitrary()? {
                let all = SERVERS.map(name).into_iter().collect::<Result<Vec<_>>>()?;
                let now = |server| Heard {
                    server,
                    age: Duration::ZERO,
                };
                all.into_iter().map(now).collect()
            } else {
                list(u, heard)?
            },
            roster: self.roster(u)?,
            config_hash: u.arbitrary::<u8>()?.into(),
            part: Since(Part {
                index: u.int_in_range(0..=2)?,
                of: u.int_in_range(0..=3)?,
            }),
        })
    }

    /// An acknowledgement of one of the core's beats.
    pub fn ack(self, u: &mut Unstructured<'_>) -> Result<Ack> {
        let answer = |u: &mut Unstructured<'_>| {
            Ok(Answer {
                virtual_server: virtual_server(u)?,
                verdict: if u.arbitrary()? {
                    Verdict::Promised(self.term(u)?)
                } else {
                    let (why, floor) = (why(u)?, self.term(u)?);
                    let holder = maybe(u, server)?;
                    Verdict::Refused { why, floor, holder }
                },
            })
        };
        Ok(Ack {
            instance: self.instance(u)?,
            number: self.number(u)?,
            waited: if u.arbitrary()? {
                Duration::ZERO
            } else {
                span(u)?
            },
            answers: list(u, answer)?,
            roster: self.version(u)?,
        })
    }

    /// A signal to the core.
    pub fn signal(self, u: &mut Unstructured<'_>) -> Result<Signal> {
        let released = |u: &mut Unstructured<'_>| {
            let (server, instance, number) = (server(u)?, self.instance(u)?, self.number(u)?);
            Ok(Released {
                server,
                instance,
                number,
            })
        };
        let client = |u: &mut Unstructured<'_>| {
            let (ip, mac, age_s) = (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
            Ok(Client { ip, mac, age_s })
        };
        let body = match u.int_in_range(0..=11u8)? {
            0 => Body::PreCall {
                term: self.term(u)?,
                lease: span(u)?,
                round: u.arbitrary::<u8>()?.into(),
            },
            1 | 2 => Body::PreAnswer {
                term: self.term(u)?,
                round: number_near(u, self.round)?,
                verdict: if u.arbitrary()? {
                    PreVerdict::Yes
                } else {
                    PreVerdict::No {
                        why: why(u)?,
                        floor: self.term(u)?,
                        retry_after: maybe(u, span)?,
                    }
                },
            },
            3 => Body::Call {
                term: self.term(u)?,
                lease: span(u)?,
                releases: list(u, released)?,
                roster: self.version(u)?,
            },
            4 | 5 => Body::Grant {
                instance: self.instance(u)?,
                number: self.number(u)?,
                term: self.term(u)?,
            },
            6 => Body::Refuse {
                instance: self.instance(u)?,
                number: self.number(u)?,
                term: self.term(u)?,
                why: why(u)?,
                floor: self.term(u)?,
            },
            7 => Body::Release {
                term: self.term(u)?,
                invited: maybe(u, server)?,
            },
            8 => Body::ReadyQuery,
            9 => Body::Ready,
            10 if u.arbitrary()? => Body::HandOver { to: server(u)? },
            10 => Body::NotReady { why: "no".into() },
            _ => Body::Clients {
                clients: list(u, client)?,
            },
        };
        Ok(Signal {
            virtual_server: virtual_server(u)?,
            instance: self.instance(u)?,
            number: self.number(u)?,
            body,
        })
    }
}

fn why(u: &mut Unstructured<'_>) -> Result<Why> {
    let all = [
        Why::Floor,
        Why::Promised,
        Why::Reservation,
        Why::Silent,
        Why::Doctor,
        Why::Roster,
        Why::Stale,
        Why::Shutting,
        Why::Absurd,
        Why::TooMany,
    ];
    u.choose(&all).copied()
}

/// A doctor's opinion: everybody's the same, or of each another.
pub fn health(u: &mut Unstructured<'_>, now: BootTime) -> Result<Health> {
    let states = [
        HealthState::Dead,
        HealthState::Alive,
        HealthState::Suspect,
        HealthState::Unknown,
    ];
    let mut state = *u.choose(&states)?;
    let of_each: bool = u.arbitrary()?;
    let mut servers = Vec::new();
    for text in SERVERS.into_iter().chain([STRANGER]) {
        if of_each {
            state = *u.choose(&states)?;
        }
        servers.push(ServerHealth {
            server: name(text)?,
            state,
            last_heard: maybe(u, |u| time(u, now))?,
        });
    }
    let link = LinkHealth {
        interface: "eth0".into(),
        up: u.int_in_range(0..=7u8)? != 7,
    };
    Ok(Health {
        servers,
        links: vec![link],
    })
}
