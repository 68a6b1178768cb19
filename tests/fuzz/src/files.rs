//! What electd keeps for itself: the reservation, the memory, and an elector that starts with whatever they say.

use crate::{codec::READING_MAX, election::start_with, meter};
use ::election::{Memory, Reservation, memory::SLOT};
use sha2::{Digest, Sha256};

/// The boot that the memory must be of.
const BOOT: [u8; 16] = [0; 16];

/// What may be allocated for all slots of a file together: each text of theirs is read once.
const FILE_MAX: usize = 8 * READING_MAX;

/// Reads `bytes` as each of the files, as they are and as content under a good checksum.
pub fn run(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(2 * SLOT)];
    read(bytes, bytes);
    let reservation = Reservation::first(Vec::new(), None, Default::default()).to_bytes();
    if let (Ok(reservation), Ok(memory)) = (reservation, Memory::default().to_bytes()) {
        read(&record(&reservation, bytes), &record(&memory, bytes));
    }
}

fn read(reservation: &[u8], memory: &[u8]) {
    let reservation = meter::within(FILE_MAX, || Reservation::from_bytes(reservation)).ok();
    let memory = meter::within(FILE_MAX, || Memory::newest(memory, BOOT));
    if let Some(reservation) = &reservation {
        let bytes = reservation.to_bytes().unwrap_or_default();
        assert_eq!(Reservation::from_bytes(&bytes).as_ref(), Ok(reservation));
    }
    if reservation.is_some() || memory.is_some() {
        start_with(reservation, memory);
    }
}

/// A record of the same kind as `like` with this content.
fn record(like: &[u8], content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let digest = &Sha256::digest(content)[..16];
    [&like[..8], &length.to_le_bytes(), digest, content].concat()
}
