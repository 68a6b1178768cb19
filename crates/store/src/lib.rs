//! The disk side and the index of syncd: the only crate that reads and writes synced files.
//!
//! What changed and what is to be done, [`filesync`] decides; this finds out what is there and does it, so that at
//! every moment, power cuts included, a path is as it was or as it shall be, and the index never tells of what the
//! disk has not got.
//!
//! ```text
//!   look     sweep ▶ recover ▶ walk ▶ Observer ▶ index
//!   apply    check ▶ keep the loser ▶ stage ▶ barrier ▶ intents ▶ rename ▶ barrier ▶ index
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `dir` | directories as capabilities: nothing beneath them can lead out |
//! | `calls` | every call that changes something, counted, so that a test can cut after each |
//! | `contents` | bytes of files: digests, copies, holes |
//! | `attributes` | owner, mode, extended attributes and times |
//! | `sight` | what is at a name |
//! | `walk` | what is in a set, in order |
//! | `verify` | whether contents changed without a trace |
//! | `threads` | work for all processors |
//! | `times` | which modification times a file system can hold |
//! | `rows` | how the index is laid out in its file |
//! | `index` | what is known of each path, and of the set |
//! | `life` | whether an index came back from a backup |
//! | `set` | a set: root, stage and what is kept aside |
//! | `aside` | what lost, kept |
//! | `archive` | former versions, kept as chunks |
//! | `export` | a version written outside of any set |
//! | `recover` | what a run that was cut off left half done |
//! | `look` | from the disk to the index |
//! | `stage` | a file made ready out of sight |
//! | `filling` | its contents, as they come |
//! | `parts` | digests of large files, by all processors |
//! | `leftover` | directories that were removed elsewhere and hold what is no part of the set |
//! | `apply` | operations staged, carried out and brought to the index together |
//! | `apply/ready` | operations checked, and what they bring made ready |
//! | `apply/place` | the one rename that carries an operation out |
//!
//! It opens no connection: contents come through [`Contents`]. Its threads end with the call they work for, and it reads no clock; of randomness
//! it draws temporary names only.

mod apply;
mod archive;
mod aside;
mod attributes;
mod calls;
mod confirm;
mod contents;
mod dir;
mod error;
mod export;
mod filling;
mod index;
mod leftover;
mod life;
mod look;
mod parts;
mod recover;
mod rows;
mod set;
mod sight;
mod stage;
mod threads;
mod times;
mod verify;
mod walk;

pub use apply::{Applied, apply, apply_by};
pub use archive::{Archive, Clock, Keep, Stored, Version};
pub use aside::{Aside, Kept};
pub use calls::Calls;
pub use dir::{Dir, Name};
pub use error::{Error, Listing};
pub use export::export;
pub use filling::Filling;
pub use index::{Batch, Index, Opened, Reader};
pub use leftover::{LeftOut, clear, held_by};
pub use look::{Look, Summary, look};
pub use rows::{Row, State, Writer};
pub use set::{Adopt, MARKER, Opener, Own, STAGE, Set, reserved as is_own};
pub use stage::Contents;
pub use times::Times;
pub use verify::{Verified, verify};
pub use walk::Counts;
