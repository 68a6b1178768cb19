//! Other servers' clocks, and the steering of this one.
//!
//! The problem: modification times decide which copy of a file is newer, so clocks must be alike, and everybody
//! must know how alike they are. Beats cross between all servers anyway, and each brings four timestamps.
//!
//! ```text
//!   peer's clock     ──── t2 ──── t3 ────▶        at t1 it shows at most   t2           (the beat cannot have
//!                        ↗          ↘             at t4 it shows at least  t3            come before it left)
//!   this server's  ── t1 ──────────── t4 ──▶
//! ```
//!
//! - [`PeerClock`] keeps the sharpest of these two limits, which give way with age by as much as two clocks can
//!   drift apart: the peer's clock *is* between them, however lopsided the network. Within them a filter that
//!   trusts the quickest exchanges says where, and how fast it runs. Time here is this server's
//!   CLOCK_MONOTONIC_RAW, which nobody slews or sets: steering disturbs no measurement.
//! - [`outvoted`] tells whether a majority of clocks agrees against the master's.
//! - [`Discipline`] says what to do about it: the rate of the clock, never more than 500 ppm from its own, and at the
//!   start, while no address is held, perhaps one step.
//! - [`in_charge`] tells whether somebody else steers this clock; then nobody here does.
//!
//! What one wrong peer can do: a slave's word moves nothing. A master's clock is followed at a
//! limited rate, and not at all if it runs wild or a majority agrees against it.
//!
//! Pure: no clock is read or set here. Further reading: RFC 5905; Marzullo, "Maintaining the Time in a Distributed
//! System" (1984); Gusella and Zatti, "The Accuracy of the Clock Synchronization Achieved by TEMPO in Berkeley UNIX
//! 4.3BSD" (1989).

mod agreement;
mod discipline;
mod filter;
mod kernel;
mod peer;

pub use agreement::{Interval, outvoted};
pub use discipline::{Action, Alarm, Discipline, RATE_MAX, Reading, STEP_MIN, STEP_SANE, Source};
pub use kernel::{Daemon, Kernel, LOOK_AGAIN, daemon_of, in_charge};
pub use peer::{DRIFT, Estimate, PeerClock};
