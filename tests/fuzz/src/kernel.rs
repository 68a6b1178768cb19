//! What takeover reads off the wire and from the kernel.

use crate::meter;

/// Longest frame or netlink datagram read, in bytes.
const READ_MAX: usize = 64 * 1024;

/// What one reading may allocate: a netlink message becomes a tree of attributes.
const READING_MAX: usize = 64 * READ_MAX;

/// Gives `bytes` to every reader.
pub fn run(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(READ_MAX)];
    meter::within(READING_MAX, || takeover::read_any(bytes));
}
