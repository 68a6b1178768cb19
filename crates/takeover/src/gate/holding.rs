//! What the gate does with packets of a virtual server that is being handed over: it leads them to a tap of
//! electd's, until an absolute time of CLOCK_BOOTTIME like all else here. So electd has exactly those that were
//! not delivered, and if it dies they are dropped.

use super::{Door, Gate};
use crate::sys::bpf::{Map, Memory};
use protocol::BootTime;
use std::{io, sync::atomic::Ordering::SeqCst};

/// Of what is held of a door, in bytes: until when, and the number of the tap's interface.
pub(super) const HOLD_UNTIL: i16 = 0;
pub(super) const HOLD_TAP: i16 = 8;
const HOLD: usize = 16;

/// Length of the note that a held frame carries in the place of its MAC addresses.
pub(crate) const NOTE: usize = 12;
/// Tells held frames from what else the kernel sends through a tap.
pub(super) const NOTE_MARK: i32 = 0x7374_616e;

/// Where a held frame was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// The number of the interface that it came in by.
    pub(crate) interface: u32,
    /// The door that it was not let through.
    pub(crate) door: usize,
}

impl Note {
    /// The note in a frame; none if the gate has not sent it.
    pub(crate) fn read(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = frame.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_ne_bytes(bytes))
        };
        (word(8)? == NOTE_MARK.cast_unsigned()).then_some(())?;
        Some(Self {
            interface: word(0)?,
            door: word(4)? as usize,
        })
    }
}

/// What is held of each door: memory shared with the kernel. Not pinned: the next electd holds nothing.
#[derive(Debug)]
pub(super) struct Holds {
    map: Map,
    memory: Memory,
}

impl Holds {
    pub(super) fn new(doors: usize) -> io::Result<Self> {
        let map = Map::array(HOLD, doors)?;
        let memory = map.memory()?;
        Ok(Self { map, memory })
    }

    pub(super) fn fd(&self) -> i32 {
        self.map.fd()
    }
}

impl Gate {
    fn held_until(&self, place: usize) -> &std::sync::atomic::AtomicU64 {
        self.holds.memory.word(place, 0)
    }
}

impl Door {
    /// Its number in the notes of held frames.
    pub(crate) fn number(&self) -> usize {
        self.place
    }

    /// Packets that arrive for it go to the tap until then, instead of being delivered or dropped.
    pub(crate) fn hold(&self, tap: u32, until: BootTime) {
        let word = u64::from_ne_bytes({
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&tap.to_ne_bytes());
            bytes
        });
        self.gate
            .holds
            .memory
            .word(self.place, 1)
            .store(word, SeqCst);
        self.gate.held_until(self.place).store(until.0, SeqCst);
    }

    /// Packets that arrive for it are delivered or dropped again.
    pub(crate) fn hold_no_more(&self) {
        self.gate.held_until(self.place).store(0, SeqCst);
    }

    /// ARP and neighbour discovery end now, all else that leaves at `until`, or when it would anyway.
    pub(crate) fn drain(&self, until: BootTime) {
        self.gate.memory.word(self.place, 0).store(0, SeqCst);
        self.gate
            .memory
            .word(self.place, 1)
            .fetch_min(until.0, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_the_program_writes_it_and_nothing_else_is() {
        let mut frame = [7u32, 3, NOTE_MARK.cast_unsigned()]
            .map(u32::to_ne_bytes)
            .concat();
        let note = Note {
            interface: 7,
            door: 3,
        };
        assert_eq!(Note::read(&frame), Some(note));
        frame[9] ^= 1;
        assert_eq!(Note::read(&frame), None);
        assert_eq!(Note::read(&frame[..11]), None);
    }
}
