//! What doctord knows of a peer's clock.

use crate::meter;
use ::clock::{DRIFT, PeerClock};
use arbitrary::{Result, Unstructured};
use protocol::local::ring::FourTimes;

/// What a run may have at any time.
const RUN_MAX: usize = 1 << 16;

/// 2001, by the honest peer's clock at the beginning.
const EPOCH: u64 = 1_000_000_000_000_000_000;

/// Plays the exchanges in `bytes`.
pub fn run(bytes: &[u8]) {
    let _ = meter::within(RUN_MAX, || play(&mut Unstructured::new(bytes)));
}

/// This server's raw clock and the honest peer's wall clock.
#[derive(Clone, Copy)]
struct Now {
    raw: u64,
    real: u64,
}

impl Now {
    /// Any time up to twenty minutes passes, in which the peer's clock runs at any rate that it may have.
    fn passes(&mut self, u: &mut Unstructured<'_>) -> Result<Self> {
        let span = u.arbitrary::<u64>()? >> u.int_in_range(24..=63)?;
        let most = (span as i128 * i128::from(DRIFT) / 1_000_000_000) as i64;
        let gained = u.int_in_range(-most..=most)?;
        self.raw += span;
        self.real = (self.real + span).saturating_add_signed(gained);
        Ok(*self)
    }
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let (mut honest, mut liar) = (PeerClock::default(), PeerClock::default());
    let mut now = Now {
        raw: u.arbitrary::<u32>()?.into(),
        real: EPOCH,
    };
    let (mut sent, mut there) = (now, now);
    let mut before = None;
    while !u.is_empty() {
        match u.int_in_range(0..=4u8)? {
            0 => drop(now.passes(u)?),
            1 => before.into_iter().for_each(|times| honest.add(times)),
            2 => liar.add(lies(u, now)?),
            kind => {
                // The peer may answer what it has answered before.
                if kind == 3 {
                    (sent, there) = (now.passes(u)?, now.passes(u)?);
                }
                let (leaves, here) = (now.passes(u)?, now.passes(u)?);
                let times = FourTimes {
                    t1: sent.raw,
                    t2: there.real,
                    t3: leaves.real,
                    t4: here.raw,
                };
                honest.add(times);
                before = Some(times);
            }
        }
        within_the_bound(&honest, now);
        liar.estimate(now.raw);
        liar.estimate(u.arbitrary().unwrap_or_default());
    }
    Ok(())
}

fn within_the_bound(honest: &PeerClock, now: Now) {
    assert_eq!(honest.steps(), 0, "nobody set this clock: {honest:?}");
    if let Some(estimate) = honest.estimate(now.raw) {
        let truth = now.real as i64 - now.raw as i64;
        assert!(
            truth.abs_diff(estimate.offset_ns) <= estimate.bound_ns,
            "{truth}, not {estimate:?}: {honest:?}"
        );
    }
}

/// Stamps of a peer that says anything, about a beat that may have left at any time.
fn lies(u: &mut Unstructured<'_>, now: Now) -> Result<FourTimes> {
    let any = |u: &mut Unstructured<'_>| {
        let near = u.arbitrary::<u64>()? >> u.int_in_range(0..=63)?;
        let edge = *u.choose(&[0, now.raw, now.real, i64::MAX as u64, u64::MAX])?;
        Ok(if u.arbitrary()? {
            edge.saturating_sub(near)
        } else {
            edge.saturating_add(near)
        })
    };
    let t2 = any(u)?;
    let held = u.arbitrary::<u64>()? >> u.int_in_range(24..=63)?;
    let own = u.ratio(7, 8)?;
    Ok(FourTimes {
        t1: if own {
            now.raw.saturating_sub(held)
        } else {
            any(u)?
        },
        t2,
        t3: if u.arbitrary()? {
            t2.saturating_add(held / 2)
        } else {
            any(u)?
        },
        t4: if own { now.raw } else { any(u)? },
    })
}
