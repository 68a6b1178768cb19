//! The core of electd: any beats, acknowledgements, signals and wishes, at any times, with a shell that carries out
//! what it is told, soon, late or never, and with servers that answer what they are asked, or something else.

use crate::{
    difference,
    messages::{self, HEARTBEAT, LEASE, Near, SERVERS, VIRTUAL_SERVERS, name},
    meter,
};
use ::election::{
    Elector, Input, Memory, Mode, Output, Preempt, Reservation, Settings, Start,
    VirtualServerSettings, Wish,
    memory::{SLOT, Vote},
};
use arbitrary::{Result, Unstructured};
use protocol::{
    BootTime, Instance, ServerName, VirtualServerName,
    codec::encode,
    local::ring::{ElectdToHbd, ElectdToListend},
    wire::{
        beat::{Ack, Answer, Beat, Verdict},
        signal::{Body, PreVerdict, Signal},
    },
};
use std::{collections::BTreeMap, time::Duration};

/// This server.
const ME: &str = SERVERS[1];
const INSTANCE: u64 = 42;

/// What a run may have at any time: two electors, what they were told, and what they want.
const RUN_MAX: usize = 8 << 20;

/// So many calls for one event settle everything that time brings about by then.
const TURNS_MAX: usize = 8;

/// Most outputs of an event that concerns one virtual server, for each that there is.
const OUTPUTS_MAX: usize = 32;

/// Most questions of the elector kept for an answer.
const ASKED_MAX: usize = 16;

/// Counters of what is refused: whatever raises one of them changes nothing else (RejectedIsInert).
const REFUSALS: &[&str] = &[
    "beat_unlisted",
    "ack_unlisted",
    "ack_of_former_instance",
    "ack_of_unknown_beat",
    "signal_unlisted",
    "out_of_state_",
    "grant_unasked",
    "grant_late",
    "ready_unasked",
    "not_ready_unasked",
    "clients_not_of_master",
    "hand_over_to_nobody",
    "probe_unasked",
    "gate_shut_unasked",
];

/// Plays the events in `bytes`.
pub fn run(bytes: &[u8]) {
    let _ = meter::within(RUN_MAX, || play(&mut Unstructured::new(bytes)));
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let (settings, start) = (settings(u)?, start(u)?);
    let mut host = Host::new(settings, start, u.arbitrary()?);
    while !u.is_empty() {
        host.event(u)?;
    }
    Ok(())
}

/// An elector that starts with these files, and goes on for some time.
pub(crate) fn start_with(reservation: Option<Reservation>, memory: Option<Memory>) {
    let start = Start {
        instance: Instance(INSTANCE),
        seed: 1,
        reservation,
        memory,
        gates: Vec::new(),
    };
    let Ok(settings) = settings(&mut Unstructured::new(&[])) else {
        return;
    };
    let mut host = Host::new(settings, start, true);
    (0..32).for_each(|_| host.wait());
}

/// A configuration that keeps every rule.
fn settings(u: &mut Unstructured<'_>) -> Result<Settings> {
    let preempt = [Preempt::Never, Preempt::Fresher, Preempt::Always];
    let one = |(text, preempt): (&str, Preempt)| {
        let settings = VirtualServerSettings {
            interface: "eth0".into(),
            priority: 100,
            preempt,
        };
        Ok((name(text)?, settings))
    };
    let configured = u.int_in_range(0..=2)?;
    let chosen = [*u.choose(&preempt)?, *u.choose(&preempt)?];
    let virtual_servers = VIRTUAL_SERVERS.into_iter().zip(chosen);
    Ok(Settings {
        me: name(ME)?,
        heartbeat: *u.choose(&[HEARTBEAT, Duration::from_millis(5)])?,
        lease: *u.choose(&[LEASE, LEASE, LEASE * 2, Duration::from_secs(10)])?,
        margin: *u.choose(&[Duration::ZERO, Duration::from_millis(20)])?,
        mode: if u.int_in_range(0..=7u8)? == 7 {
            Mode::None
        } else {
            Mode::Majority
        },
        witness: u.int_in_range(0..=15u8)? == 15,
        servers: SERVERS.map(name).into_iter().collect::<Result<_>>()?,
        virtual_servers: virtual_servers
            .skip(configured)
            .map(one)
            .collect::<Result<_>>()?,
        config_hash: 1,
    })
}

/// What was left of a former life.
fn start(u: &mut Unstructured<'_>) -> Result<Start> {
    let near = Near::default();
    let reservation = match u.int_in_range(0..=3u8)? {
        0..=1 => {
            let voters = SERVERS.map(name).into_iter().collect::<Result<_>>()?;
            Some(Reservation::first(voters, Some(name("web")?), LEASE))
        }
        2 => Some(Reservation {
            reserved: near.term(u)?,
            promise_max: messages::span(u)?,
            roster: near.roster(u)?,
        }),
        _ => None,
    };
    let vote = |u: &mut Unstructured<'_>| {
        Ok(Vote {
            virtual_server: messages::virtual_server(u)?,
            voted: near.term(u)?,
            holder: if u.arbitrary()? {
                Some(messages::server(u)?)
            } else {
                None
            },
        })
    };
    let memory = match u.int_in_range(0..=2u8)? {
        0 => Some(Memory::default()),
        1 => Some(Memory {
            silent_until: if u.arbitrary()? {
                Some(messages::time(u, BEGIN)?)
            } else {
                None
            },
            silent_since: if u.arbitrary()? {
                Some(messages::time(u, BEGIN)?)
            } else {
                None
            },
            floor_base: near.term(u)?,
            votes: (0..u.int_in_range(0..=3)?)
                .map(|_| vote(u))
                .collect::<Result<_>>()?,
            ..Memory::default()
        }),
        _ => None,
    };
    let gate =
        |u: &mut Unstructured<'_>| Ok((messages::virtual_server(u)?, messages::time(u, BEGIN)?));
    let gates = (0..u.int_in_range(0..=2)?)
        .map(|_| gate(u))
        .collect::<Result<_>>()?;
    Ok(Start {
        instance: Instance(INSTANCE),
        seed: u.arbitrary::<u8>()?.into(),
        reservation,
        memory,
        gates,
    })
}

/// When the elector starts.
const BEGIN: BootTime = BootTime(1_000_000_000_000);

/// Two electors that are told the same, and the shell around them.
struct Host {
    twins: [Elector; 2],
    now: BootTime,
    near: Near,
    /// The shell carries out at once what it is told.
    prompt: bool,
    /// What it has been told and not done.
    owed: Vec<Input>,
    /// What others were asked.
    asked: Vec<(ServerName, Signal)>,
    beat: Option<Beat>,
    stopped: bool,
}

impl Host {
    fn new(settings: Settings, start: Start, prompt: bool) -> Self {
        let twin = || Elector::new(settings.clone(), start.clone(), BEGIN);
        let mut host = Self {
            twins: [twin(), twin()],
            now: BEGIN,
            near: Near {
                instance: INSTANCE,
                ..Near::default()
            },
            prompt,
            owed: Vec::new(),
            asked: Vec::new(),
            beat: None,
            stopped: false,
        };
        host.carry_out();
        host.settle();
        host
    }

    /// One event, some time after the one before.
    fn event(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.now = self.now + messages::step(u)?;
        let (near, now) = (self.near, self.now);
        let input = match u.int_in_range(0..=31u8)? {
            0..=5 => Input::Beat {
                from: messages::server(u)?,
                at: messages::time(u, now)?,
                beat: near.beat(u)?,
            },
            6..=7 => Input::Ack {
                from: messages::server(u)?,
                ack: near.ack(u)?,
            },
            8..=13 => Input::Signal {
                from: messages::server(u)?,
                signal: near.signal(u)?,
            },
            14..=16 => return self.answer(u),
            17..=18 => {
                let from = messages::server(u)?;
                match self.acknowledged() {
                    Some(ack) => Input::Ack { from, ack },
                    None => return Ok(()),
                }
            }
            19..=20 => Input::Health(messages::health(u, now)?),
            21..=22 => {
                self.wait();
                return Ok(());
            }
            23..=24 => return self.pay(u),
            25 => match u.int_in_range(0..=7u8)? {
                0 => Input::Linked(messages::server(u)?),
                1 => Input::DoctorLost,
                2 => Input::GateShut(messages::virtual_server(u)?),
                3 => Input::GateBroken(messages::virtual_server(u)?, "no".into()),
                4 => Input::ForeignClaim(messages::virtual_server(u)?),
                5 => Input::Clients(messages::virtual_server(u)?, Vec::new()),
                6 => Input::Probed(messages::virtual_server(u)?, u.arbitrary()?),
                _ => Input::Fresh(near.freshness(u)?),
            },
            26 => Input::ReserveFailed("disk full".into()),
            27 => Input::Settings(settings(u)?),
            28..=30 => Input::Operator {
                id: u.arbitrary::<u8>()?.into(),
                wish: wish(u)?,
            },
            _ if u.int_in_range(0..=7u8)? == 7 => Input::Stop,
            _ => return Ok(()),
        };
        self.tell(input);
        Ok(())
    }

    /// Somebody says yes to what it was asked.
    fn answer(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.asked.is_empty() {
            return Ok(());
        }
        let at = u.int_in_range(0..=self.asked.len() - 1)?;
        let (from, question) = self.asked.swap_remove(at);
        let body = match question.body {
            Body::PreCall { term, round, .. } => {
                let verdict = PreVerdict::Yes;
                Body::PreAnswer {
                    term,
                    round,
                    verdict,
                }
            }
            Body::Call { term, .. } => Body::Grant {
                instance: question.instance,
                number: question.number,
                term,
            },
            _ => Body::Ready,
        };
        let signal = Signal {
            body,
            ..self.near.signal(u)?
        };
        let virtual_server = question.virtual_server;
        self.tell(Input::Signal {
            from,
            signal: Signal {
                virtual_server,
                ..signal
            },
        });
        Ok(())
    }

    /// The promise that the last beat asks for.
    fn acknowledged(&self) -> Option<Ack> {
        let beat = self.beat.as_ref()?;
        let promised = beat.standings.iter().filter_map(|s| {
            Some(Answer {
                virtual_server: s.virtual_server.clone(),
                verdict: Verdict::Promised(s.claim?.term),
            })
        });
        Some(Ack {
            instance: beat.instance,
            number: beat.number,
            waited: Duration::ZERO,
            answers: promised.collect(),
            roster: beat.roster.version,
        })
    }

    /// The shell does one of the things that it has been told.
    fn pay(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if let Some(last) = self.owed.len().checked_sub(1) {
            let input = self.owed.remove(u.int_in_range(0..=last)?);
            self.tell(input);
        }
        Ok(())
    }

    /// Time goes on to when the elector wants to be woken.
    fn wait(&mut self) {
        if let Some(due) = self.twins[0].poll_timeout() {
            self.now = self.now.max(due);
            self.twins
                .iter_mut()
                .for_each(|t| t.handle_timeout(self.now));
            self.carry_out();
            self.settle();
        }
    }

    fn tell(&mut self, input: Input) {
        self.refused_is_inert(&input);
        for twin in &mut self.twins {
            twin.handle(self.now, input.clone());
        }
        self.carry_out();
        if self.prompt {
            for _ in 0..ASKED_MAX {
                let Some(input) = self.owed.pop() else { break };
                self.twins
                    .iter_mut()
                    .for_each(|t| t.handle(self.now, input.clone()));
                self.carry_out();
            }
        }
        self.settle();
    }

    /// What is refused does what the mere passing of time would have done, and counts.
    fn refused_is_inert(&self, input: &Input) {
        let mut told = self.twins[0].clone();
        told.handle(self.now, input.clone());
        if refusals(&told) > refusals(&self.twins[0]) {
            let mut waited = self.twins[0].clone();
            waited.handle_timeout(self.now);
            let (told, waited) = (state(&told), state(&waited));
            assert!(
                told == waited,
                "{input:?} was refused, and {}",
                difference(&told, &waited)
            );
        }
    }

    /// Nothing that is due waits, and nothing keeps the shell busy.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let due = self.twins[0].poll_timeout();
            if due.is_none_or(|at| at > self.now) {
                assert_eq!(self.twins[1].poll_timeout(), due);
                return;
            }
            self.twins
                .iter_mut()
                .for_each(|t| t.handle_timeout(self.now));
            self.carry_out();
        }
        panic!("the time-out comes again and again: {:?}", self.twins[0]);
    }

    fn carry_out(&mut self) {
        let [one, other] = &mut self.twins;
        let outputs: Vec<Output> = std::iter::from_fn(|| one.poll_output()).collect();
        let again: Vec<Output> = std::iter::from_fn(|| other.poll_output()).collect();
        assert_eq!(outputs, again, "same events, same outputs");
        let known = one
            .view(self.now)
            .virtual_servers
            .len()
            .max(self.beat.as_ref().map_or(0, |b| b.standings.len()));
        assert!(
            outputs.len() <= OUTPUTS_MAX * (known + 2),
            "{} outputs: {outputs:?}",
            outputs.len()
        );
        assert!(
            outputs.is_empty() || !self.stopped,
            "after the last act: {outputs:?}"
        );
        outputs.into_iter().for_each(|output| self.do_one(output));
    }

    fn do_one(&mut self, output: Output) {
        match output {
            Output::Remember(memory) => {
                let bytes = memory.to_bytes().unwrap_or_default();
                assert!(!bytes.is_empty() && bytes.len() <= SLOT);
                assert_eq!(Memory::from_bytes(&bytes), Ok(memory));
            }
            Output::Beat(beat) => {
                self.near.number = beat.number.0;
                let floors = beat.standings.iter().map(|s| s.floor.0);
                self.near.term = floors.fold(0, u64::max);
                self.beat = Some(beat.clone());
                fits(&ElectdToHbd::Beat {
                    made: self.now,
                    beat,
                });
            }
            Output::Ack { to, ack } => fits(&ElectdToHbd::Ack {
                made: self.now,
                to,
                ack,
            }),
            Output::Signal { to, signal } => {
                if let Body::PreCall { round, .. } = signal.body {
                    self.near.round = round;
                }
                if matches!(
                    signal.body,
                    Body::PreCall { .. } | Body::Call { .. } | Body::ReadyQuery
                ) {
                    if self.asked.len() == ASKED_MAX {
                        self.asked.remove(0);
                    }
                    self.asked.push((to.clone(), signal.clone()));
                }
                fits(&ElectdToListend { to, signal });
            }
            Output::Open(_, until) => assert!(until > self.now, "opened for the past"),
            Output::Shut(name) | Output::HandOver(name, _) => self.owe(Input::GateShut(name)),
            Output::Probe(name) => self.owe(Input::Probed(name, false)),
            Output::Reserve(reservation) => {
                assert!(reservation.to_bytes().is_ok());
                self.owe(Input::Reserved(reservation));
            }
            Output::Stopped(_) => self.stopped = true,
            Output::Clients(..)
            | Output::Succeeded(_)
            | Output::Announce(_)
            | Output::Role(_)
            | Output::Changed(..)
            | Output::Alarm(_)
            | Output::Notice(_)
            | Output::Answer { .. } => {}
        }
    }

    fn owe(&mut self, input: Input) {
        self.owed.push(input);
    }
}

fn fits(message: &impl serde::Serialize) {
    assert!(
        encode(message).is_ok(),
        "what the elector says fits into a message"
    );
}

fn wish(u: &mut Unstructured<'_>) -> Result<Wish> {
    Ok(match u.int_in_range(0..=6u8)? {
        0 | 1 => {
            let to = messages::server(u)?;
            let which: Option<VirtualServerName> = if u.arbitrary()? {
                Some(messages::virtual_server(u)?)
            } else {
                None
            };
            Wish::Promote(to, which)
        }
        2 => Wish::Resign,
        3 | 4 => Wish::Maintenance(u.arbitrary()?),
        5 => Wish::Add(messages::server(u)?),
        _ => Wish::Remove(messages::server(u)?),
    })
}

fn refusals(elector: &Elector) -> u64 {
    let counters: &BTreeMap<&str, u64> = elector.counters();
    let refusal = |name: &str| REFUSALS.iter().any(|start| name.starts_with(start));
    counters
        .iter()
        .filter(|(name, _)| refusal(name))
        .map(|(_, n)| n)
        .sum()
}

/// Everything that an elector knows and wants, but for its counters.
fn state(elector: &Elector) -> String {
    let all = format!("{elector:?}");
    all.rsplit_once(", counters: {")
        .map_or(all.clone(), |(state, _)| state.to_owned())
}
