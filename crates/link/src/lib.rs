//! Core of listend: one sealed, lasting TCP session to each other server.
//!
//! Signals between electors must arrive in order, once, from whom they claim to come, and soon. TCP gives the
//! order; this crate adds who, freshness and an early notice of death, and keeps trying.
//!
//! ```text
//!   the lesser name dials                                the other accepts from listed addresses only
//!     preamble, hello(challenge D)            ──▶
//!                                             ◀──   preamble, hello(challenge A, names D)
//!     ping(names D and A, sequence 1)         ──▶   the session is open and replaces an older one
//!     signal, ping, ...  (names D and A, sequence n + 1)  ◀─▶
//! ```
//!
//! Every frame names both fresh challenges and its place in the sequence, so nothing recorded opens a
//! session or slips into one. Each side speaks at least once a ping interval and closes on silence. A stranger
//! costs at most a few buffers of [`protocol::wire::frame::HANDSHAKE_MAX`] bytes until the handshake deadline.
//!
//! [`Links`] is the table of all sessions, [`Session`] one of them, [`Dialer`] says when to dial and where. All
//! are pure: the shell owns sockets and clock and draws the challenges. What it does not do: queue signals
//! for a server without link (electd repeats what still matters), and judge signals (electd does).

mod dial;
mod reason;
mod session;
mod table;

pub use dial::{BACKOFF_MAX, BACKOFF_MIN, Dialer};
pub use reason::Reason;
pub use session::{Heard, OUTGOING_MAX, PING_MAX, Session, Timing};
pub use table::{ConnId, Links, Output, PENDING_MAX, Peer, Unwanted};
