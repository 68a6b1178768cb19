//! The core of doctord.

use crate::{
    messages::{self, HEARTBEAT, LEASE, SERVERS, name},
    meter,
};
use ::detector::{Detector, Input, LEASE_MAX, Output, Params};
use arbitrary::{Result, Unstructured};
use protocol::{
    BootTime,
    local::ring::{HealthState, ServerHealth},
};

/// What a run may have at any time.
const RUN_MAX: usize = 1 << 20;

/// Most outputs of one event.
const OUTPUTS_MAX: usize = 2;

/// Plays the events in `bytes`.
pub fn run(bytes: &[u8]) {
    let _ = meter::within(RUN_MAX, || play(&mut Unstructured::new(bytes)));
}

fn params(u: &mut Unstructured<'_>) -> Result<Params> {
    let servers = SERVERS.into_iter().skip(1 + u.int_in_range(0..=2)?);
    Ok(Params {
        servers: servers.map(name).collect::<Result<_>>()?,
        interfaces: vec!["eth0".into()],
        heartbeat: HEARTBEAT,
        lease: *u.choose(&[LEASE, LEASE * 2, LEASE_MAX])?,
    })
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let mut now = BootTime(u.arbitrary::<u32>()?.into());
    let params = params(u)?;
    let mut twins = [
        Detector::new(params.clone(), now),
        Detector::new(params, now),
    ];
    while !u.is_empty() {
        now = now + messages::step(u)?;
        if let Some(input) = input(u, now)? {
            twins.iter_mut().for_each(|t| t.handle(now, input.clone()));
        } else {
            now = now.max(twins[0].poll_timeout().unwrap_or(now));
        }
        let drains = carry_out(&mut twins);
        // What waits in the sockets comes between the question and the answer.
        if let Some(unread) = input(u, now)?.filter(|_| drains) {
            twins.iter_mut().for_each(|t| t.handle(now, unread.clone()));
            carry_out(&mut twins);
        }
        settle(&mut twins, now, drains);
    }
    let [one, other] = twins.map(|t| format!("{t:?}"));
    assert_eq!(one, other);
    Ok(())
}

fn input(u: &mut Unstructured<'_>, now: BootTime) -> Result<Option<Input>> {
    Ok(Some(match u.int_in_range(0..=15u8)? {
        0..=4 => Input::Beat {
            from: messages::server(u)?,
            at: messages::time(u, now)?,
            lease: messages::span(u)?,
        },
        5..=6 => Input::Ack {
            from: messages::server(u)?,
            at: messages::time(u, now)?,
        },
        7 => Input::HbdListens,
        8 => Input::HbdGone,
        9 => Input::Drained,
        10 => Input::Link {
            interface: "eth0".into(),
            up: u.arbitrary()?,
        },
        11 => Input::ElectdUp,
        12 => Input::Params(params(u)?),
        _ => return Ok(None),
    }))
}

/// Once everything due was done, time-outs lie ahead.
fn settle(twins: &mut [Detector; 2], now: BootTime, mut drains: bool) {
    for _ in 0..2 {
        twins.iter_mut().for_each(|t| t.handle_timeout(now));
        drains |= carry_out(twins);
        if std::mem::take(&mut drains) {
            twins.iter_mut().for_each(|t| t.handle(now, Input::Drained));
            drains = carry_out(twins);
        }
    }
    assert!(!drains, "asked to drain what has just been drained");
    assert!(
        twins[0].poll_timeout().is_none_or(|at| at > now),
        "{:?}",
        twins[0]
    );
}

/// Whether it wants the sockets drained.
fn carry_out(twins: &mut [Detector; 2]) -> bool {
    let mut drains = false;
    let mut told = 0;
    while let Some(output) = twins[0].poll_output() {
        assert_eq!(Some(&output), twins[1].poll_output().as_ref());
        told += 1;
        match output {
            Output::Drain => drains = true,
            Output::Health(health) => {
                assert!(protocol::codec::encode(&health).is_ok());
                let listed = |s: &ServerHealth| SERVERS.contains(&s.server.as_str());
                assert!(health.servers.iter().all(listed), "a stranger");
                let deaf = twins[0].listening_since().is_none();
                let dead = health.servers.iter().any(|s| s.state == HealthState::Dead);
                assert!(!(deaf && dead), "a deaf doctor accuses somebody");
            }
        }
    }
    assert!(told <= OUTPUTS_MAX && twins[1].poll_output().is_none());
    drains
}
