//! Whose a state-dir is: a cluster's, a server's and a machine's.
//!
//! A state-dir that was copied (clone of a virtual machine, restored backup) must not act as the original. So
//! whatever is kept in it carries its [`Owner`], and is compared with the [`Present`] machine before it is used.

use crate::ServerName;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// DMI UUIDs that vendors give to machines without one.
const DMI_PLACEHOLDERS: [[u8; 16]; 3] = [
    [0; 16],
    [0xff; 16],
    [3, 0, 2, 0, 4, 0, 5, 0, 0, 6, 0, 7, 0, 8, 0, 9],
];

/// 128 bits that tell one machine from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id([u8; 16]);

impl Id {
    /// The content of `/etc/machine-id`; none if it is empty or "uninitialized", as in the image of a machine.
    pub fn of_machine(text: &str) -> Option<Self> {
        hexadecimal(text)
            .filter(|bytes| *bytes != [0; 16])
            .map(Self)
    }

    /// The DMI's UUID of the product; none if it is a vendor's placeholder.
    pub fn of_dmi(text: &str) -> Option<Self> {
        let known = hexadecimal(text)?;
        (!DMI_PLACEHOLDERS.contains(&known)).then_some(Self(known))
    }
}

/// 32 digits, with or without dashes.
fn hexadecimal(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some(number.to_be_bytes())
}

impl fmt::Display for Id {
    /// Both ends: enough to tell two apart, and not what programs on the machine take for a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, .., y, z] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}..{y:02x}{z:02x}")
    }
}

/// MAC address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Who wrote what is kept, and on which machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the server.
    pub server: ServerName,
    /// The machine; none where machines are not compared (`machine = "none"`).
    pub machine: Option<Machine>,
}

/// How a machine is recognised, as far as that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `/etc/machine-id`.
    pub machine_id: Option<Id>,
    /// The DMI's UUID of the product.
    pub dmi_uuid: Option<Id>,
    /// MAC addresses of the interfaces that carry the server's own addresses.
    pub macs: BTreeSet<Mac>,
}

/// What can be read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// This server, on this machine.
    pub owner: Owner,
    /// The MAC addresses of all interfaces of this machine, but those that virtual servers take along.
    pub macs: BTreeSet<Mac>,
}

/// Why a state is another one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The name of the cluster differs.
    Cluster {
        /// The stored one.
        there: String,
        /// The present one.
        here: String,
    },
    /// The name of the server differs.
    Server {
        /// The stored one.
        there: ServerName,
        /// The present one.
        here: ServerName,
    },
    /// `/etc/machine-id` differs.
    MachineId {
        /// The stored one.
        there: Id,
        /// The present one.
        here: Id,
    },
    /// The DMI's UUID differs.
    DmiUuid {
        /// The stored one.
        there: Id,
        /// The present one.
        here: Id,
    },
    /// None of the stored MAC addresses is left.
    Macs {
        /// The stored ones.
        there: BTreeSet<Mac>,
    },
}

impl Foreign {
    /// It is this server's, only another machine's: an operator may know that the machine was replaced.
    pub fn may_be_adopted(&self) -> bool {
        match self {
            Self::Cluster { .. } | Self::Server { .. } => false,
            Self::MachineId { .. } | Self::DmiUuid { .. } | Self::Macs { .. } => true,
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = "it was written on another machine";
        match self {
            Self::Cluster { there, here } => {
                write!(f, "it is of cluster {there}, and this is {here}")
            }
            Self::Server { there, here } => {
                write!(f, "it is of server {there}, and this is {here}")
            }
            Self::MachineId { there, here } => {
                write!(f, "{machine}: machine-id {there} there, {here} here")
            }
            Self::DmiUuid { there, here } => {
                write!(f, "{machine}: DMI UUID {there} there, {here} here")
            }
            Self::Macs { there } => {
                let all: Vec<_> = there.iter().map(Mac::to_string).collect();
                let all = all.join(", ");
                write!(
                    f,
                    "{machine}: heartbeat MAC address {all} there, on no interface here"
                )
            }
        }
    }
}

impl std::error::Error for Foreign {}

impl Present {
    /// The owner to store from now on, if what is `stored` is this server's; nothing stored is adopted.
    ///
    /// What cannot be read on both sides says nothing. What cannot be read now stays as it is stored.
    pub fn claim(&self, stored: Option<&Owner>) -> Result<Owner, Foreign> {
        let mut owner = self.owner.clone();
        let Some(stored) = stored else {
            return Ok(owner);
        };
        if stored.cluster != owner.cluster {
            let (there, here) = (stored.cluster.clone(), owner.cluster);
            return Err(Foreign::Cluster { there, here });
        }
        if stored.server != owner.server {
            let (there, here) = (stored.server.clone(), owner.server);
            return Err(Foreign::Server { there, here });
        }
        if let (Some(now), Some(then)) = (&mut owner.machine, &stored.machine) {
            self.recognise(now, then)?;
        }
        Ok(owner)
    }

    /// Compares two machines, and completes the one of now by what is known of it from then.
    fn recognise(&self, now: &mut Machine, then: &Machine) -> Result<(), Foreign> {
        if let (Some(there), Some(here)) = (then.machine_id, now.machine_id)
            && there != here
        {
            return Err(Foreign::MachineId { there, here });
        }
        if let (Some(there), Some(here)) = (then.dmi_uuid, now.dmi_uuid)
            && there != here
        {
            return Err(Foreign::DmiUuid { there, here });
        }
        let comparable = !then.macs.is_empty() && !self.macs.is_empty();
        if comparable && then.macs.is_disjoint(&self.macs) {
            let there = then.macs.clone();
            return Err(Foreign::Macs { there });
        }
        now.machine_id = now.machine_id.or(then.machine_id);
        now.dmi_uuid = now.dmi_uuid.or(then.dmi_uuid);
        if now.macs.is_empty() {
            now.macs.clone_from(&then.macs);
        } else {
            // One whose interface only has no address yet is not gone.
            now.macs.extend(then.macs.intersection(&self.macs));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(n: u8) -> Option<Id> {
        Some(Id([n; 16]))
    }

    fn macs(last: &[u8]) -> BTreeSet<Mac> {
        last.iter().map(|n| Mac([2, 0, 0, 0, 0, *n])).collect()
    }

    fn owner(machine_id: Option<Id>, dmi_uuid: Option<Id>, of: &[u8]) -> Owner {
        Owner {
            cluster: "web".into(),
            server: "alpha".parse().unwrap(),
            machine: Some(Machine {
                machine_id,
                dmi_uuid,
                macs: macs(of),
            }),
        }
    }

    fn unbound() -> Owner {
        Owner {
            machine: None,
            ..owner(None, None, &[])
        }
    }

    fn present(owner: Owner, all: &[u8]) -> Present {
        Present {
            owner,
            macs: macs(all),
        }
    }

    #[test]
    fn what_is_stored_is_this_machines_or_another_ones() {
        let there = |n| Id([n; 16]);
        let machine_id = |a, b| {
            Err(Foreign::MachineId {
                there: there(a),
                here: there(b),
            })
        };
        let dmi_uuid = |a, b| {
            Err(Foreign::DmiUuid {
                there: there(a),
                here: there(b),
            })
        };
        let gone = |of: &[u8]| Err(Foreign::Macs { there: macs(of) });
        let full = || owner(id(1), id(2), &[11]);
        for (what, stored, now, all, expected) in [
            ("the same", full(), full(), &[11][..], Ok(full())),
            (
                "machine-id",
                full(),
                owner(id(3), id(2), &[11]),
                &[11],
                machine_id(1, 3),
            ),
            (
                "DMI UUID",
                full(),
                owner(id(1), id(3), &[11]),
                &[11],
                dmi_uuid(2, 3),
            ),
            (
                "MAC address",
                full(),
                owner(id(1), id(2), &[12]),
                &[12],
                gone(&[11]),
            ),
            (
                "no address yet",
                full(),
                owner(id(1), id(2), &[]),
                &[12],
                gone(&[11]),
            ),
            (
                "nothing readable now",
                full(),
                owner(None, None, &[]),
                &[],
                Ok(full()),
            ),
            (
                "machine-id only then",
                full(),
                owner(None, id(2), &[11]),
                &[11],
                Ok(full()),
            ),
            (
                "machine-id only now",
                owner(None, id(2), &[11]),
                full(),
                &[11],
                Ok(full()),
            ),
            (
                "DMI UUID only then",
                full(),
                owner(id(1), None, &[11]),
                &[11],
                Ok(full()),
            ),
            (
                "DMI UUID only now",
                owner(id(1), None, &[11]),
                full(),
                &[11],
                Ok(full()),
            ),
            (
                "MAC address only now",
                owner(id(1), id(2), &[]),
                full(),
                &[11],
                Ok(full()),
            ),
            (
                "address not there yet",
                full(),
                owner(id(1), id(2), &[]),
                &[11],
                Ok(full()),
            ),
            (
                "the address moved",
                full(),
                owner(id(1), id(2), &[12]),
                &[11, 12],
                Ok(owner(id(1), id(2), &[11, 12])),
            ),
            (
                "one of two replaced",
                owner(id(1), id(2), &[11, 12]),
                owner(id(1), id(2), &[12, 13]),
                &[12, 13],
                Ok(owner(id(1), id(2), &[12, 13])),
            ),
            (
                "one of two down",
                owner(id(1), id(2), &[11, 12]),
                owner(id(1), id(2), &[11]),
                &[11, 12],
                Ok(owner(id(1), id(2), &[11, 12])),
            ),
            (
                "not bound any more",
                full(),
                unbound(),
                &[12],
                Ok(unbound()),
            ),
            ("bound from now on", unbound(), full(), &[11], Ok(full())),
            ("never bound", unbound(), unbound(), &[], Ok(unbound())),
        ] {
            assert_eq!(present(now, all).claim(Some(&stored)), expected, "{what}");
        }
    }

    #[test]
    fn names_count_before_machines_and_where_none_is_compared() {
        for stored in [owner(id(7), id(7), &[7]), unbound()] {
            let here = present(owner(id(1), id(2), &[11]), &[11]);
            let mut other = stored.clone();
            other.cluster = "mail".into();
            let why = here.claim(Some(&other)).unwrap_err();
            assert_eq!(why.to_string(), "it is of cluster mail, and this is web");
            assert!(!why.may_be_adopted());
            let mut other = stored.clone();
            other.server = "beta".parse().unwrap();
            let why = here.claim(Some(&other)).unwrap_err();
            assert_eq!(why.to_string(), "it is of server beta, and this is alpha");
            assert!(!why.may_be_adopted());
        }
    }

    #[test]
    fn what_no_owner_is_stored_of_is_adopted() {
        let here = present(owner(id(1), id(2), &[11]), &[11, 12]);
        assert_eq!(here.claim(None), Ok(here.owner.clone()));
    }

    #[test]
    fn the_reason_says_what_differs() {
        let stored = owner(id(0x12), id(0x34), &[0x11, 0x12]);
        for (now, words) in [
            (
                owner(id(0x56), id(0x34), &[0x11]),
                "machine-id 12121212..1212 there, 56565656..5656 here",
            ),
            (
                owner(id(0x12), id(0x56), &[0x11]),
                "DMI UUID 34343434..3434 there, 56565656..5656 here",
            ),
            (
                owner(id(0x12), id(0x34), &[0x13]),
                "heartbeat MAC address 02:00:00:00:00:11, 02:00:00:00:00:12 there, on no interface here",
            ),
        ] {
            let of = now.machine.as_ref().unwrap().macs.clone();
            let here = Present {
                owner: now,
                macs: of,
            };
            let why = here.claim(Some(&stored)).unwrap_err();
            assert_eq!(
                why.to_string(),
                format!("it was written on another machine: {words}")
            );
            assert!(why.may_be_adopted());
        }
    }

    #[test]
    fn an_id_is_32_digits_that_mean_something() {
        let good = "12345678-9abc-DEF0-1234-56789abcdef0\n";
        assert_eq!(Id::of_dmi(good).unwrap().to_string(), "12345678..def0");
        assert_eq!(Id::of_machine(&good.replace('-', "")), Id::of_dmi(good));
        for bad in [
            "",
            "uninitialized\n",
            "1234",
            "+2345678-9abc-def0-1234-56789abcdef0",
            "Not Settable",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert_eq!(Id::of_machine(bad), None, "{bad}");
            assert_eq!(Id::of_dmi(bad), None, "{bad}");
        }
        for placeholder in [
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
        ] {
            assert_eq!(Id::of_dmi(placeholder), None, "{placeholder}");
        }
    }
}
