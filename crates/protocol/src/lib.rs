//! Every message that crosses a process or a host: its types, bytes, version and seal.
//!
//! ```text
//!   UDP  hbd ──▶ doctord ──▶ electd ──▶ hbd  UDP        wire::beat inside wire::datagram
//!   TCP  listend ──────────▶ electd ──▶ listend  TCP    wire::signal inside wire::frame
//!        standin ──▶ every role                          local::ctl
//! ```
//!
//! Types are declared here once; `codec` is the only place that turns them into bytes, `seal` the only
//! place that encrypts. The crate is pure: it opens nothing, reads no clock and draws no random number.

pub mod codec;
pub mod ids;
pub mod local;
pub mod owner;
pub mod seal;
pub mod version;
pub mod wire;

pub use ids::{
    BadName, BootTime, Instance, Number, Role, RosterVersion, ServerName, Term, VirtualServerName,
};
