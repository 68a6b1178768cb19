//! Versions of the protocol. Two that differ agree on the newest that both speak; where there is none, each says so in
//! words.
//!
//! A change of any message is a new version, and the one before is still spoken: servers, and the processes of one server,
//! are replaced one after another. A field that came later is a [`Since`]; a message that came later is sent to those only
//! that know it. A beat travels between servers and within them, so both count alike.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{cell::Cell, ops::RangeInclusive};

/// Versions spoken between servers; the one in use is bound into every seal.
pub const WIRE: RangeInclusive<u8> = 1..=2;

/// Versions spoken on the Unix sockets of one server.
pub const LOCAL: RangeInclusive<u8> = WIRE;

/// What asks for a version is written and sealed as of this one for ever, so that any two that can agree do.
pub const GREETING: u8 = 2;

/// The version before there was anything to agree on.
pub const FIRST: u8 = 1;

/// The newest version in both ranges.
pub fn common(ours: &RangeInclusive<u8>, theirs: &RangeInclusive<u8>) -> Option<u8> {
    let newest = *ours.end().min(theirs.end());
    (newest >= *ours.start().max(theirs.start())).then_some(newest)
}

thread_local! {
    static WRITTEN: Cell<u8> = const { Cell::new(*WIRE.end()) };
}

/// Runs `f`, which writes or reads one message of `version`.
pub(crate) fn with<T>(version: u8, f: impl FnOnce() -> T) -> T {
    let before = WRITTEN.replace(version);
    let done = f();
    WRITTEN.set(before);
    done
}

/// A field that a message has since version `V`: no byte of it is there before, and it reads as the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Since<const V: u8, T>(pub T);

impl<const V: u8, T: Serialize> Serialize for Since<V, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if WRITTEN.get() >= V {
            self.0.serialize(serializer)
        } else {
            serializer.serialize_unit()
        }
    }
}

impl<'de, const V: u8, T: Deserialize<'de> + Default> Deserialize<'de> for Since<V, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if WRITTEN.get() >= V {
            T::deserialize(deserializer).map(Self)
        } else {
            <()>::deserialize(deserializer).map(|()| Self::default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_both_speak_is_spoken() {
        for (ours, theirs, spoken) in [
            (1..=1, 1..=1, Some(1)),
            (1..=2, 1..=1, Some(1)),
            (1..=2, 2..=3, Some(2)),
            (1..=4, 2..=3, Some(3)),
            (1..=1, 2..=3, None),
            (3..=4, 1..=2, None),
        ] {
            assert_eq!(common(&ours, &theirs), spoken, "{ours:?} {theirs:?}");
            assert_eq!(common(&theirs, &ours), spoken, "{theirs:?} {ours:?}");
        }
        const { assert!(*WIRE.start() <= GREETING && GREETING <= *WIRE.end()) };
    }
}
