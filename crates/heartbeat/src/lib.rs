//! Core of hbd: which packets are new words of a living peer, and what to send to whom.
//!
//! The problem: a beat recorded yesterday and sent again today must not keep a dead server alive, although
//! neither side may trust a clock, keep a file, or remember anything across its own restart.
//!
//! The idea (ELECTION R26): each start of hbd draws a random *incarnation*. Packets name both, so a packet
//! recorded before either side restarted names an incarnation that is no more. A new incarnation counts
//! once it has said back this side's own fresh challenge; from then on the former is refused.
//!
//! ```text
//!   alpha (restarted)                     beta (knows alpha's former run)
//!     Hello{a2, challenge x}   ─────────▶   answers, keeps nothing; a2 is new to it: asks in turn
//!     knows beta  ◀─────────  HelloAnswer{b, to a2, x}, Hello{b, challenge y}
//!     HelloAnswer{a2, to b, y} ─────────▶   knows a2, refuses a1
//!     Data{a2, b, 1, ...}      ◀────────▶   Data{b, a2, ...}
//! ```
//!
//! When both restart at once both ask at once, and one round is enough. Within a pair of incarnations a
//! sliding window over the sequence number passes every message on once, however many paths it came by.
//!
//! Packets of a former incarnation that keep arriving are late, replayed from a recording, or of a second server that
//! runs under the name (a clone). None of them can answer a challenge made after the replacement but the last: so the
//! peer is asked again, once a second at most, and such an answer raises the alarm [`Output::Doubled`].
//!
//! What it does not do: decide who is alive (doctord), make beats (electd), repeat anything.
//! Pure: no socket, clock or random source; see [`Input`] and [`Output`].

mod input;
mod output;
mod parts;
mod peer;
mod refusal;
mod state;
mod strangers;
mod times;
mod window;

pub use input::{Input, PART_MAX, PeerSettings, Settings};
pub use output::{Output, Path, Transmit};
pub use refusal::Refusal;
pub use state::Heartbeat;
