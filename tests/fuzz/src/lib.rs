//! Hostile input for everything that reads what it did not write, and for every core: nothing received may
//! panic, allocate beyond its limit or block.
//!
//! ```text
//!   make fuzz   libFuzzer, led by coverage ──▶ fuzz_targets/<subject>.rs ──┐
//!                                                                          ├──▶ src/<subject>.rs  run(&[u8])
//!   make test   proptest, and the corpora  ──▶ tests/subjects.rs ──────────┘
//! ```
//!
//! | subject | is fed |
//! |---|---|
//! | [`codec`] | every message type, read from the bytes |
//! | [`seal`] | datagrams and sealed texts, raw, damaged, and authentic with any contents |
//! | [`local`] | packets at a role's Unix socket, before and after the greeting |
//! | [`config`] | `standin.toml` and the key file |
//! | [`files`] | what electd keeps for itself, and an elector that starts with it |
//! | [`kernel`] | frames from the wire and netlink messages, as takeover reads them |
//! | [`heartbeat`], [`link`], [`detector`], [`election`] | a core: any events at any times that do not go back |
//! | [`clock`] | exchanges with an honest peer, whose clock must be within the bound, and with a liar |
//!
//! A core is run twice side by side and must do the same both times; time-outs must not come again at once; what is
//! refused must change nothing but counters; what it says must fit into a message.
//!
//! To add a subject: a module here with `pub fn run(bytes: &[u8])`, a line in [`SUBJECTS`], a file in
//! `fuzz_targets/` with its `[[bin]]` in `Cargo.toml`, and a few small seeds in `corpus/<subject>/`. A test holds
//! these together. An input that broke something becomes a test of the crate that it broke, or stays as a seed.

pub mod clock;
pub mod codec;
pub mod config;
pub mod detector;
pub mod election;
pub mod files;
pub mod heartbeat;
pub mod kernel;
pub mod link;
pub mod local;
mod messages;
pub mod meter;
pub mod seal;

/// Where two texts begin to differ.
fn difference(one: &str, other: &str) -> String {
    let same = one
        .bytes()
        .zip(other.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let about = |text: &str| {
        text.chars()
            .skip(same.saturating_sub(80))
            .take(160)
            .collect::<String>()
    };
    format!("this: ...{}...\n is: ...{}...", about(one), about(other))
}

/// Its name, and what feeds it.
pub type Subject = (&'static str, fn(&[u8]));

/// Every subject by name.
pub const SUBJECTS: &[Subject] = &[
    ("clock", clock::run),
    ("codec", codec::run),
    ("config", config::run),
    ("detector", detector::run),
    ("election", election::run),
    ("files", files::run),
    ("heartbeat", heartbeat::run),
    ("kernel", kernel::run),
    ("link", link::run),
    ("local", local::run),
    ("seal", seal::run),
];
