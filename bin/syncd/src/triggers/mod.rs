//! What makes syncd run by itself, beside the clock and elections.

pub mod change;
