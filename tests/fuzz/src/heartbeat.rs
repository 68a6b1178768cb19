//! The core of hbd: datagrams of anybody, authentic ones with any contents, and replays of all of them.

use crate::{
    messages::{self, HEARTBEAT, Near, SERVERS, name},
    meter,
};
use ::heartbeat::{Heartbeat, Input, Output, PeerSettings, Refusal, Settings};
use arbitrary::{Result, Unstructured};
use protocol::{
    BootTime, ServerName,
    local::ring::ElectdToHbd,
    seal::{NONCE, Sealer},
    version::Since,
    wire::datagram::{
        self, Body, Challenge, DATAGRAM_MAX, Data, Echo, Incarnation, Left, Packet, Speaks,
    },
};
use std::net::IpAddr;

const ME: &str = SERVERS[1];
const INCARNATION: Incarnation = Incarnation([0xbb; 16]);

/// What a run may have at any time.
const RUN_MAX: usize = 4 << 20;

/// Datagrams kept to be sent again.
const REPLAYS_MAX: usize = 32;

/// Plays the events in `bytes`.
pub fn run(bytes: &[u8]) {
    let _ = meter::within(RUN_MAX, || play(&mut Unstructured::new(bytes)));
}

/// Two paths to each server, and the address of a stranger.
fn address(server: usize, path: u8) -> IpAddr {
    [192, 0, 2, 1 + 10 * u8::try_from(server).unwrap_or(9) + path].into()
}

fn settings(peers: usize) -> Result<Settings> {
    let both = |server| vec![address(server, 0), address(server, 1)];
    let peer = |server| {
        let name = name(SERVERS[server])?;
        Ok(PeerSettings {
            name,
            addresses: both(server),
        })
    };
    Ok(Settings {
        me: name(ME)?,
        addresses: both(1),
        heartbeat: HEARTBEAT,
        part_max: 100,
        peers: [0, 2]
            .into_iter()
            .take(peers)
            .map(peer)
            .collect::<Result<_>>()?,
    })
}

fn sealer() -> Sealer {
    Sealer::new(&[[1; 32]], "web")
}

struct Host {
    twins: [Heartbeat; 2],
    now: BootTime,
    /// What the peers know of us: the last challenge.
    challenge: Challenge,
    past: Vec<(IpAddr, IpAddr, Vec<u8>)>,
    salt: u8,
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let twin = || Ok(Heartbeat::new(settings(2)?, sealer(), INCARNATION));
    let mut host = Host {
        twins: [twin()?, twin()?],
        now: BootTime(1_000_000_000_000),
        challenge: Challenge([0; 16]),
        past: Vec::new(),
        salt: 0,
    };
    while !u.is_empty() {
        host.event(u)?;
    }
    let [one, other] = host.twins.map(|t| format!("{t:?}"));
    assert_eq!(one, other);
    Ok(())
}

impl Host {
    fn event(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.now = self.now + messages::step(u)?;
        match u.int_in_range(0..=15u8)? {
            0..=8 => {
                let (server, path) = (u.int_in_range(0..=3)?, u.int_in_range(0..=1)?);
                let (source, local) = (address(server, path), address(1, u.int_in_range(0..=1)?));
                let datagram = if u.int_in_range(0..=7u8)? == 0 {
                    let length = u.int_in_range(0..=64)?;
                    u.bytes(length.min(u.len()))?.to_vec()
                } else {
                    let packet = self.packet(u)?;
                    let from: ServerName = name(SERVERS[server % SERVERS.len()])?;
                    self.salt = self.salt.wrapping_add(1);
                    let version = u.int_in_range(1..=2)?;
                    let nonce = [self.salt; NONCE];
                    datagram::seal(&sealer(), (&from, &name(ME)?), version, nonce, &packet)
                        .unwrap_or_default()
                };
                self.receive(u, (source, local, datagram))?;
            }
            9..=10 => {
                if let Some(last) = self.past.len().checked_sub(1) {
                    let again = self.past[u.int_in_range(0..=last)?].clone();
                    self.receive(u, again)?;
                }
            }
            11 => {
                let near = Near::default();
                let messages = (0..u.int_in_range(0..=4)?).map(|_| {
                    let made = messages::time(u, self.now)?;
                    Ok(if u.arbitrary()? {
                        ElectdToHbd::Beat {
                            made,
                            beat: near.beat(u)?,
                        }
                    } else {
                        let (to, ack) = (messages::server(u)?, near.ack(u)?);
                        ElectdToHbd::Ack { made, to, ack }
                    })
                });
                let messages = messages.collect::<Result<Vec<_>>>()?;
                let most = messages.len() * 2;
                for twin in &mut self.twins {
                    twin.handle(self.now, Input::Send(messages.clone()));
                }
                self.carry_out(most);
            }
            12 => {
                let peers = u.int_in_range(0..=2)?;
                for twin in &mut self.twins {
                    twin.configure(settings(peers)?);
                }
            }
            13 => {
                self.twins
                    .iter_mut()
                    .for_each(|t| t.handle(self.now, Input::TooLong(address(0, 0))));
                self.carry_out(1);
            }
            _ => {
                self.now = self
                    .now
                    .max(self.twins[0].poll_timeout().unwrap_or(self.now))
            }
        }
        self.settle();
        Ok(())
    }

    /// Any packet; the incarnations are the right ones more often than not.
    fn packet(&self, u: &mut Unstructured<'_>) -> Result<Packet> {
        let from = Incarnation([u.int_in_range(1..=4)?; 16]);
        let to = if u.int_in_range(0..=7u8)? == 7 {
            from
        } else {
            INCARNATION
        };
        let near = Near::default();
        Ok(match u.int_in_range(0..=7u8)? {
            0 => Packet::Hello {
                from,
                challenge: Challenge(u.arbitrary()?),
            },
            1 | 2 => Packet::HelloAnswer {
                from,
                to,
                challenge: if u.int_in_range(0..=7u8)? == 7 {
                    Challenge(u.arbitrary()?)
                } else {
                    self.challenge
                },
                speaks: Since(Speaks {
                    oldest: u.arbitrary()?,
                    newest: u.arbitrary()?,
                }),
            },
            _ => Packet::Data(Box::new(Data {
                from,
                to,
                sequence: messages::number_near(u, 1)?,
                sent_ns: u.arbitrary()?,
                left: Some(Left {
                    sent_ns: u.arbitrary()?,
                    late_ns: u.arbitrary()?,
                }),
                echo: Some(Echo {
                    sent_ns: u.arbitrary()?,
                    received_ns: u.arbitrary()?,
                }),
                bodies: match u.int_in_range(0..=3u8)? {
                    0 => Vec::new(),
                    1 => vec![Body::Beat(near.beat(u)?)],
                    2 => vec![Body::Ack(near.ack(u)?), Body::Beat(near.beat(u)?)],
                    _ => vec![Body::Ack(near.ack(u)?)],
                },
            })),
        })
    }

    fn receive(
        &mut self,
        u: &mut Unstructured<'_>,
        datagram: (IpAddr, IpAddr, Vec<u8>),
    ) -> Result<()> {
        let (at, real_ns) = (messages::time(u, self.now)?, u.arbitrary()?);
        let raw_ns = u.arbitrary()?;
        let (source, local, bytes) = &datagram;
        let before = state(&self.twins[0]);
        for twin in &mut self.twins {
            let (source, local) = (*source, *local);
            twin.handle(
                self.now,
                Input::Datagram {
                    source,
                    local,
                    bytes,
                    at,
                    real_ns,
                    raw_ns,
                },
            );
        }
        let after = state(&self.twins[0]);
        let refused = self.carry_out(2);
        let unheard = |why| {
            use Refusal::{Malformed, NotOurs, TooLong, Unauthentic, Unlisted, Version};
            matches!(
                why,
                Unlisted | TooLong | NotOurs | Version(_) | Unauthentic | Malformed
            )
        };
        if refused.is_some_and(unheard) {
            assert_eq!(before, after, "refused, and changed something");
        }
        if self.past.len() == REPLAYS_MAX {
            self.past.remove(0);
        }
        self.past.push(datagram);
        Ok(())
    }

    /// What is due is done at once, and then nothing is.
    fn settle(&mut self) {
        if self.twins[0]
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            self.salt = self.salt.wrapping_add(1);
            let fresh = [self.salt; 16];
            self.twins
                .iter_mut()
                .for_each(|t| t.handle(self.now, Input::Timeout { fresh }));
            self.carry_out(2);
        }
        let due = self.twins[0].poll_timeout();
        // After the last moment there is none that anything could be put off to.
        let over = self.now == BootTime(u64::MAX);
        let later = due.is_none_or(|at| at > self.now);
        assert!(over || later, "{:?}", self.twins[0]);
    }

    /// Why something was refused, if it was.
    fn carry_out(&mut self, most: usize) -> Option<Refusal> {
        let [one, other] = &mut self.twins;
        let (mut count, mut refused) = (0, None);
        while let Some(output) = one.poll_output() {
            assert_eq!(Some(&output), other.poll_output().as_ref());
            count += 1;
            match output {
                Output::Transmit(mut transmit) => {
                    if let Packet::Hello { challenge, .. } = &transmit.packet {
                        self.challenge = *challenge;
                    }
                    for twin in [&mut *one, &mut *other] {
                        twin.leaves(&mut transmit, u64::MAX, u64::MAX);
                        twin.left(&transmit.to, u64::MAX, u32::MAX);
                    }
                    if let Ok(bytes) = one.seal(&transmit, [0; NONCE]) {
                        assert!(bytes.len() <= DATAGRAM_MAX);
                    }
                }
                Output::Refused { why, .. } => refused = Some(why),
                Output::Deliver(message) => assert!(protocol::codec::encode(&message).is_ok()),
                Output::Met(_) | Output::Doubled { .. } => {}
            }
        }
        assert!(
            count <= most && other.poll_output().is_none(),
            "{count} outputs"
        );
        assert_eq!(one.paths().len(), one.ends().count());
        refused
    }
}

/// Everything that the core knows, but for what it counts and what it tells an operator of packets refused.
fn state(core: &Heartbeat) -> String {
    let all = format!("{core:?}");
    let state = all
        .rsplit_once(", outputs: ")
        .map_or(all.as_str(), |(state, _)| state);
    let mut parts = state.split("refused: [");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |kept, part| {
        kept + part.split_once(']').map_or(part, |(_, rest)| rest)
    })
}
