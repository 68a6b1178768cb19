//! Every message type is read from the bytes. What can be read can be written, and is then read as the same; no
//! length that the bytes claim costs memory that they are not worth.

use crate::meter;
use election::{Memory, Reservation};
use protocol::{
    codec::{self, MESSAGE_MAX, RECORD_MAX},
    local::{
        Hello, HelloAnswer,
        ctl::{CtlReply, CtlRequest},
        ring::{DoctordToElectd, ElectdToHbd, ElectdToListend, HbdToDoctord, ListendToElectd},
    },
    wire::{datagram::Packet, frame::Frame},
};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// What one reading may allocate. A list is made with room for what it claims to have, up to one mebibyte, for each
/// list that another is in; and what is read has up to sixty times the size of its bytes.
pub const READING_MAX: usize = 64 * MESSAGE_MAX;

/// Reads `bytes` as every message there is.
pub fn run(bytes: &[u8]) {
    message::<Packet>(bytes);
    message::<Frame>(bytes);
    message::<HbdToDoctord>(bytes);
    message::<DoctordToElectd>(bytes);
    message::<ElectdToHbd>(bytes);
    message::<ElectdToListend>(bytes);
    message::<ListendToElectd>(bytes);
    message::<Hello>(bytes);
    message::<HelloAnswer>(bytes);
    message::<CtlRequest>(bytes);
    record::<CtlReply>(bytes);
    record::<Reservation>(bytes);
    record::<Memory>(bytes);
}

fn message<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let read = meter::within(READING_MAX, || codec::decode::<M>(bytes));
    assert!(read.is_err() || bytes.len() <= MESSAGE_MAX);
    if let Ok(read) = read {
        let written = codec::encode(&read).unwrap_or_default();
        assert!(
            written.len() <= bytes.len(),
            "numbers are written as short as possible"
        );
        assert_eq!(codec::decode::<M>(&written).ok(), Some(read));
    }
    let in_a_row = codec::decode_all::<M>(bytes, 2).take(bytes.len() + 2);
    let (read, refused) = in_a_row.fold((0, 0), |(read, refused), one| match one {
        Ok(_) => (read + 1, refused),
        Err(_) => (read, refused + 1),
    });
    assert!(read <= bytes.len() && refused <= 1);
}

fn record<R: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let read = meter::within(2 * READING_MAX, || codec::decode_record::<R>(bytes));
    assert!(read.is_err() || bytes.len() <= RECORD_MAX);
    if let Ok(read) = read {
        let written = codec::encode_record(&read).unwrap_or_default();
        assert_eq!(codec::decode_record::<R>(&written).ok(), Some(read));
    }
}
