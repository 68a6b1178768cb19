//! Can any sequence of losses, crashes, stalls and late messages break the election? All of them are tried.
//!
//! The elector explored is the very one that electd runs: the crate `election`, not a model of it. Around it stands
//! what it lives in: for each server a boot-time clock, the kernel's gate, the run-dir and the disk, a doctor, and
//! the network between them. [`stateright`] explores every state that can be reached within the bounds of a
//! [`scenario`], and asks a judge, who looks at what servers do and say but never into an elector, about the
//! invariants of DESIGN section 2 over true time.
//!
//! ```text
//!             ┌ gate ┐ ┌ run-dir ┐ ┌ disk ┐
//!   clock ──▶ │      electd: election::Elector      │ ──▶ flights ──▶ every other server
//!             └ doctor: truth or lie ┘                      │
//!                                                     lost, late, twice
//! ```
//!
//! # Time
//!
//! Time goes in ticks. A beat is one tick (4 ns of a clock that counts 4 to the tick), a lease five. What a server does
//! of itself it does at ticks, and a message that nothing befalls arrives between two ticks. So each clock time is a
//! whole number, and what lies between two ticks is reckoned: a gate is open until its deadline, and the judge
//! compares that, in true time, with the ends of the promises behind it. Clocks count 4 or 5 to the tick, which is
//! the whole of what ELECTION R1 allows.
//!
//! # What may happen
//!
//! Within a tick, messages arrive in the order they were sent, or in every order. Everything else is a [fault]:
//! it may befall every message, every server, at every place of every run, but so many times in a run as the
//! scenario says. An end to what began is free and may come whenever all messages of a tick have arrived: a late
//! message arrives, what was cut off is healed, a stalled electd goes on, a dead one is started. There is no
//! bound on time: a run goes on until it comes back to a situation already seen. The bound on terms, counted over all
//! virtual servers, ends runs that elect again and again.
//!
//! Beside what has happened the judge looks at what could: while a gate is open, nobody else may find a majority of
//! voters that are free and hold no higher roster; and whatever is on a disk, or about to be, must make a voter that
//! loses power now silent for as long as its promises bind.
//!
//! # What is left out, and why nothing is lost by it
//!
//! - *Names of no meaning.* Times count relative to now, instances and numbers by their order (see `digest`). What is
//!   so long ago that no rule looks back at it is all the same.
//! - *Places of no difference.* A death, stall or cut takes effect with the next thing that happens to the server, so
//!   it is tried just before those. Deliveries to different servers commute; with messages in the order sent, one
//!   of those orders is taken.
//! - *Steps without a choice*, where a scenario is swift, are one with the step before them; the judge looks after each.
//! - *Questions without end*: where nothing takes any time, a renewal that is refused is tried again at once. After some
//!   rounds in one tick the next are lost, so that time goes on.
//! - *The background* (beats without a claim and their acknowledgements), where a scenario says so, arrives at once or,
//!   where a server is cut off, not. The scenario `messages` has it lost, late and twice like all else.
//! - *Round trips* look like nothing, and back-off is drawn from one fixed seed for each server: both only spread
//!   candidates in time.
//! - *Doctors* tell the truth about who was heard, after two ticks and after a lease; or lie, as a fault.
//!
//! Not explored at all: `quorum = none`, more than two virtual servers, preference of a server (R27), packets and
//! their replay (R26), a write tried again after it failed, and the gate itself, which is taken to keep its deadline.
//!
//! [fault]: scenario::Fault

mod cluster;
mod digest;
mod judge;
pub mod run;
pub mod scenario;
mod step;
mod world;
