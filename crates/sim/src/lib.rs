//! A cluster in a box: the real cores of N servers under virtual time, with every fault a seed can think of.
//!
//! ```text
//!   seed ─▶ generate ─▶ Schedule ─▶ World ─────────────────────────────────────────▶ Outcome
//!            (or a text file) ──┘     │   hbd ─▶ doctord ─▶ electd ─▶ hbd    × N        │
//!                                     │         listend ◀─▶ electd                      ▼
//!                                     │   network, TCP, disks, clocks, gates          shrink
//!                                     └─▶ Judge (every step), Owned (every gap)
//! ```
//!
//! What is real: `heartbeat`, `link`, `detector` and `election`, joined as `bin/*/src/shell.rs` joins them; each
//! role is a process of its own that is killed, restarted and stalled alone. TCP sessions carry sealed bytes; packets
//! do in a share of the schedules and are handed over as what the seal holds in the others, incarnations, sequences and
//! replay windows in force. The gate is the kernel's: an absolute deadline by the server's own boot-time clock that
//! outlives electd.
//!
//! One seed is one history: nothing here sleeps, and nothing is random but the seed. [`Outcome::digest`] is of
//! everything that happened in its order.
//!
//! [`judge`] checks the invariants of DESIGN from what servers do and say, over true time. The module `owned` judges
//! each gap and each new term by what had happened: a rule that only costs time when it is missing is missed too.
//!
//! What servers know of each other's clocks is compared with the truth at every exchange (`clocks`).
//!
//! What is not here: addresses, frames held and followed in a handover, scripts, files (those are `takeover`'s,
//! and tested where there is a kernel).
//!
//! Further reading: FoundationDB, "Testing Distributed Systems w/ Deterministic Simulation" (Wilson, Strange Loop 2014);
//! TigerBeetle, `src/testing/`.

mod acts;
pub mod clock;
mod clocks;
pub mod generate;
pub mod judge;
mod kept;
mod owned;
mod queue;
mod random;
pub mod schedule;
mod shells;
pub mod shrink;
mod tcp;
mod whatif;
mod world;

pub use kept::KEPT;
pub use random::Random;
pub use schedule::Schedule;
pub use world::{Outcome, World};
