//! Which version of a file wins: the core of syncd.
//!
//! Any server may have been master and may hold the newer version of anything. So every replica notes what changed
//! where, as events with version vectors; when two meet, each finds out alone what it has to do, and both come to the
//! same. Clocks decide only between versions that know nothing of each other, and whatever loses is kept aside.
//!
//! ```text
//!   disk ──▶ observe: what changed here ──▶ entries ──▶ plan ◀── the other replica's entries
//!                                              ▲          │
//!                                           index         ▼ operations, each with what must still be true
//!                                                        disk, then index
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `path` | names below the root |
//! | `version` | vectors, and the rank that decides where they do not |
//! | `entry` | what is at a path, and events |
//! | `observe` | from what is seen to events; which files must be read again |
//! | `plan` | from two replicas' entries to operations; conflicts |
//! | `standing` | whose history counts, and who gives way |
//! | `guard` | what must not be taken for removals |
//! | `ledger` | what the others have, and which tombstones can go |
//! | `knowledge` | what a replica has heard of altogether, and what of that it forgot |
//! | `accounts` | password files, merged record by record |
//!
//! It opens nothing, reads no clock and draws nothing: the same inputs give the same operations. It moves no contents
//! and does not know how files are named, cut or sent.
//!
//! Further reading: Balasubramaniam and Pierce, "What is a File Synchronizer?" (1998); Hughes, Pierce, Arts and Norell,
//! "Mysteries of Dropbox" (2016), after which `tests/replicas.rs` is made.

pub mod accounts;
mod entry;
pub mod guard;
mod knowledge;
mod ledger;
mod observe;
mod path;
mod plan;
mod standing;
mod version;

pub use entry::{Author, Digest, Entry, Kind, Node};
pub use knowledge::{Forgotten, Knowledge};
pub use ledger::{Debt, Ledger};
pub use observe::{Difference, LENT, Observer, Proof, RACY, Sight, Span, Stat};
pub use path::{BadPath, NAME_MAX, PATH_MAX, Path};
pub use plan::{Conflict, Operation, Outcome, Planner, Source, Tree};
pub use standing::{Standing, Terms};
pub use version::{Rank, Relation, Replica, Vector};
