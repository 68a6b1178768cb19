//! Protocol versions. A mismatch is answered in words, never guessed around.

/// Version of everything sealed between servers; bound into every seal.
pub const WIRE: u8 = 1;

/// Version of the messages on the Unix sockets of one server.
pub const LOCAL: u16 = 1;
