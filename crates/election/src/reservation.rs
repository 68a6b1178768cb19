//! What survives everything: the term reservation in `<state-dir>/reservation` (ELECTION, "State").

use crate::record::{self, BadRecord};
use protocol::{
    ServerName, Term, VirtualServerName,
    codec::CodecError,
    owner::{Foreign, Owner, Present},
    wire::beat::Roster,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const MAGIC: &[u8; 8] = b"standR\x00\x01";
/// Of the owner's record, which follows. Programs that know of no owner ignore it.
const OWNER: &[u8; 8] = b"standO\x00\x01";

/// Terms reserved at a time; half of them are kept ahead of every floor seen (ELECTION R22).
pub const BLOCK: u64 = 2048;

/// Written with a temporary file, fsync, rename and fsync of the folder, never in the path of an election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Votes are given only in terms up to this one.
    pub reserved: Term,
    /// Longest lease ever promised: a restarted voter is silent that long.
    pub promise_max: Duration,
    /// The voters in force.
    pub roster: Roster,
}

impl Reservation {
    /// The first reservation of a new cluster (`standin init`): the same on every server.
    ///
    /// `keeper` is the virtual server whose master may change the roster: the first of the configuration.
    pub fn first(
        mut voters: Vec<ServerName>,
        keeper: Option<VirtualServerName>,
        lease: Duration,
    ) -> Self {
        voters.sort();
        voters.dedup();
        let roster = Roster {
            voters,
            keeper,
            ..Roster::default()
        };
        Self {
            reserved: Term(BLOCK),
            promise_max: lease,
            roster,
        }
    }

    /// The file's content, without an owner.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        record::to_bytes(MAGIC, self)
    }

    /// Reads a file's content, whoever it belongs to.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadRecord> {
        record::from_bytes(MAGIC, bytes)
    }

    /// The file's content: it, and whose it is.
    pub fn to_owned_bytes(&self, owner: &Owner) -> Result<Vec<u8>, CodecError> {
        let mut bytes = self.to_bytes()?;
        bytes.extend(record::to_bytes(OWNER, owner)?);
        Ok(bytes)
    }
}

/// What a file's content is to the server that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Its own.
    Own {
        /// The reservation.
        reservation: Reservation,
        /// The owner to store from now on.
        owner: Owner,
        /// The one that is stored; none in a file of the former format.
        stored: Option<Owner>,
    },
    /// Another one's: it counts as absent (ELECTION R21).
    Foreign {
        /// The other one's reservation.
        reservation: Reservation,
        /// What differs.
        why: Foreign,
    },
}

impl Kept {
    /// Reads a file's content as the server that `present` is. A damaged owner makes a bad file.
    pub fn read(bytes: &[u8], present: &Present) -> Result<Self, BadRecord> {
        let (reservation, rest) = record::split::<Reservation>(MAGIC, bytes)?;
        let stored = match rest {
            [] => None,
            rest => Some(record::from_bytes::<Owner>(OWNER, rest)?),
        };
        Ok(match present.claim(stored.as_ref()) {
            Ok(owner) => Self::Own {
                reservation,
                owner,
                stored,
            },
            Err(why) => Self::Foreign { reservation, why },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::owner::{Id, Mac, Machine};
    use std::collections::BTreeSet;

    fn present(mac: u8) -> Present {
        let macs = BTreeSet::from([Mac([2, 0, 0, 0, 0, mac])]);
        Present {
            owner: Owner {
                cluster: "web".into(),
                server: "alpha".parse().unwrap(),
                machine: Some(Machine {
                    machine_id: Id::of_machine(&"5a".repeat(16)),
                    dmi_uuid: None,
                    macs: macs.clone(),
                }),
            },
            macs,
        }
    }

    fn reservation() -> Reservation {
        let voters = ["alpha", "beta", "tie"].map(|n| n.parse().unwrap());
        Reservation::first(voters.to_vec(), None, Duration::from_millis(500))
    }

    #[test]
    fn a_file_is_its_owners_and_nobody_elses() {
        let bytes = reservation().to_owned_bytes(&present(1).owner).unwrap();
        let own = Kept::Own {
            reservation: reservation(),
            owner: present(1).owner,
            stored: Some(present(1).owner),
        };
        assert_eq!(Kept::read(&bytes, &present(1)), Ok(own));
        let Kept::Foreign { reservation, why } = Kept::read(&bytes, &present(2)).unwrap() else {
            panic!("on a machine with another MAC address")
        };
        assert_eq!(reservation, self::reservation());
        assert!(matches!(why, Foreign::Macs { .. }), "{why}");
    }

    #[test]
    fn a_file_of_the_former_format_is_anybodys_and_one_with_an_owner_is_read_by_former_programs() {
        let former = Kept::Own {
            reservation: reservation(),
            owner: present(2).owner,
            stored: None,
        };
        let bytes = reservation().to_bytes().unwrap();
        assert_eq!(Kept::read(&bytes, &present(2)), Ok(former));
        let bytes = reservation().to_owned_bytes(&present(1).owner).unwrap();
        assert_eq!(Reservation::from_bytes(&bytes), Ok(reservation()));
    }

    #[test]
    fn a_file_whose_owner_is_damaged_is_bad() {
        let bytes = reservation().to_owned_bytes(&present(1).owner).unwrap();
        let owner = reservation().to_bytes().unwrap().len();
        for at in owner..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            Kept::read(&damaged, &present(1)).unwrap_err();
            if at > owner {
                assert_eq!(Kept::read(&bytes[..at], &present(1)), Err(BadRecord::Short));
            }
        }
    }
}
