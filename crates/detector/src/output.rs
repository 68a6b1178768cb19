//! What the detector wants done.

use protocol::local::ring::Health;

/// To be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Read everything that waits in the sockets, pass it in, then say [`crate::Input::Drained`]: somebody
    /// is about to be called dead.
    Drain,
    /// Tell electd. Comes whenever a verdict or a link changes, when electd has connected, and with every
    /// heartbeat.
    Health(Health),
}
