//! What the detector is told.

use protocol::{BootTime, ServerName};
use std::time::Duration;

/// What the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// Every other server.
    pub servers: Vec<ServerName>,
    /// Every interface that a virtual server uses.
    pub interfaces: Vec<String>,
    /// Time between two beats.
    pub heartbeat: Duration,
    /// The lease of servers that have not told theirs yet.
    pub lease: Duration,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A beat arrived.
    Beat {
        /// From whom.
        from: ServerName,
        /// When the kernel received it.
        at: BootTime,
        /// The sender's lease, for which it may be silent before it is called dead.
        lease: Duration,
    },
    /// An acknowledgement arrived. It is no beat: a server whose beats do not get
    /// through cannot hold a lease, however busily it acknowledges others.
    Ack {
        /// From whom.
        from: ServerName,
        /// When the kernel received it.
        at: BootTime,
    },
    /// hbd says that it is there and listens. Once it has said so it must go on, every heartbeat; beats and
    /// acknowledgements count as well.
    HbdListens,
    /// The link of hbd was lost.
    HbdGone,
    /// The answer to [`crate::Output::Drain`]: nothing that arrived is left unread.
    Drained,
    /// Carrier of an interface. One that no virtual server uses is remembered for a later configuration.
    Link {
        /// Its name.
        interface: String,
        /// Present, up and with carrier.
        up: bool,
    },
    /// electd is connected and knows nothing yet.
    ElectdUp,
    /// The configuration was read again.
    Params(Params),
}
