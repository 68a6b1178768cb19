//! Who is master, provably: the core of electd.
//!
//! ```text
//!   beats, acks ──▶ ┌─────────┐ ──▶ Remember (run-dir), then whatever relies on it
//!   signals     ──▶ │ Elector │ ──▶ beats, acks, signals
//!   health      ──▶ │         │ ──▶ Open / Shut the gate, absolute deadlines
//!   time        ──▶ └─────────┘ ──▶ Reserve (disk, in the background), Role, Answer
//! ```
//!
//! Two locks, neither leaning on the other: *promises* (clocks, no disk, no terms) keep two gates from
//! being open at once, *terms* (memory, no clocks) make the fencing token unique. Each rule is cited where
//! it is kept, as R1 to R27 of the rule book in `docs/ELECTION.md`:
//!
//! | file | rules |
//! |---|---|
//! | `voter` | promises: R4 to R6, R18 |
//! | `elector` | beats, acknowledgements, lease: R1, R2, R5, R7 to R9, R17, R25; start: R20 |
//! | `pace` | when beats and acknowledgements leave |
//! | `campaign` | standing, pre-vote, call, vote, renewal: R10 to R16 |
//! | `handover` | release, handover, preference: R18, R19, R27 |
//! | `roster` | reservation, longest promise, roster, blank start: R21 to R24 |
//! | `signals` | the table of what each state accepts |
//!
//! The crate opens nothing, reads no clock, starts no thread and draws randomness from a given seed only:
//! the same inputs at the same times give the same outputs.

mod campaign;
mod elector;
mod handover;
mod input;
pub mod memory;
mod output;
mod pace;
mod record;
pub mod reservation;
mod roster;
mod signals;
#[doc(hidden)]
pub mod situation;
mod state;
mod view;
mod virtuals;
mod voter;
mod withheld;

pub use elector::Elector;
pub use input::{Input, Mode, Preempt, Settings, Start, VirtualServerSettings, Wish};
pub use memory::Memory;
pub use output::{Output, RoleChange};
pub use record::BadRecord;
pub use reservation::{Kept, Reservation};
pub use state::Change;
pub use withheld::Withheld;
