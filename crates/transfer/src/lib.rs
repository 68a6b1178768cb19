//! What two replicas say to each other: who has what, and the contents of files.
//!
//! ```text
//!   puller                                  server
//!     Hello{set, replica}      ─────────▶     Hello{replica, last}       versions, clusters, chunkers agree
//!     Changes{after}, More ... ─────────▶     Entries                    only what is new since last time
//!     Files, Recipe, Pieces    ─────────▶     contents                   several requests ahead
//!     Took{sequence}           ─────────▶     Done                       what is owed is less now
//!     YourTurn, or Bye         ─────────▶     Hello ...                  and now the other way round
//! ```
//!
//! One side asks, the other answers, in order; asks are small and few are under way, so neither ever waits for the
//! other to read. A large file of which an older version is here comes as a recipe of chunks cut where its contents
//! say (FastCDC, Xia et al. 2020), those that are new cut once more, smaller; the digest of the whole decides whether
//! it is the file.
//!
//! The crate reads and writes any byte stream and the files it is given; it knows no network, and nothing it reads
//! makes it allocate more than its limits.

mod bucket;
mod buffered;
mod chunks;
mod former;
mod frame;
mod halves;
mod pull;
mod recipes;
mod recut;
mod serve;

pub use bucket::Bucket;
pub use buffered::Buffered;
pub use chunks::CHUNKER;
pub use former::Put;
pub use frame::{BLOB_MAX, Error, Farewell, NOTE_MAX, NOTES_MAX, OLDEST, VERSION};
pub use pull::{Asked, Greeting, Piece, Puller, Wanted, ping, together};
pub use recipes::Recipes;
pub use serve::{Changes, End, Files, Origin, serve};
