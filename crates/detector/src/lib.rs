//! The doctor's opinion: who is alive, suspect, dead or unknown, and which links have carrier.
//!
//! ```text
//!     last beat                 2 h                    L
//!   ──────┼──────── alive ───────┼────── suspect ──────┼────── dead ──▶   heard, and watched ever since
//!
//!          not watching           watching since     + L
//!   ─────────── unknown ──────────────┼──── unknown ────┼────── dead ──▶   silent while nobody watched
//! ```
//!
//! Silence alone proves nothing: it takes a listener. The detector therefore keeps, beside the last beat
//! of each server, the time since when it has listened without a gap. A beat heard within two heartbeats
//! is proof of life whatever happened here; every other verdict needs the whole silence to have been
//! listened to. The gap begins anew
//!
//! - when hbd goes, or does not say in time that it still listens, until it is heard again;
//! - when the detector's own tick comes late, or a beat took long from the kernel to here: the machine was
//!   stalled, and more beats may still wait in some queue.
//!
//! "Late" is a quarter of the shortest lease. A heartbeat is at most a fifth of a lease, and so is the
//! tick, so that a stall too short to be noticed spans less than 0.45 of a lease: it hides at most three
//! of the five beats that must be missing before anybody is called dead. Less tolerance would delay
//! true verdicts on a busy machine for nothing.
//!
//! Before the first word *dead* about a server, [`Output::Drain`] asks the shell to read whatever waits in
//! its sockets; only [`Input::Drained`] lets the verdict pass. Time is the kernel's time of arrival, never
//! the time of reading.
//!
//! The detector opens nothing and reads no clock. It does not know who is master, does not vote, and its
//! word is never needed for safety: a wrong *dead* costs an election that the other voters refuse.
//!
//! Further reading: Chandra and Toueg, "Unreliable Failure Detectors for Reliable Distributed Systems"
//! (1996); Dadgar et al., "Lifeguard: SWIM-ing with Situational Awareness" (2017).

mod input;
mod output;
mod state;

pub use input::{Input, Params};
pub use output::Output;
pub use state::{Detector, LEASE_MAX, LEASE_MIN};
