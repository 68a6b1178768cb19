//! The MAC address of a virtual server.

use protocol::VirtualServerName;
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// A MAC address that a virtual server takes along from server to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The one that follows from the names: the same on all servers, locally administered, of one station.
    pub(crate) fn derived(cluster: &str, v: &VirtualServerName) -> Self {
        let mut hash = Sha256::new();
        for part in ["standin virtual mac", cluster, v.as_str()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let mut bytes = [0; 6];
        for (to, from) in bytes.iter_mut().zip(&digest) {
            *to = *from;
        }
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Self(bytes)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2);
            let digits = part.filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit()));
            let read = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
            *byte = read.ok_or_else(|| {
                format!(
                    "\"{}\" is no MAC address; write \"own\", \"virtual\", or six bytes as in \
                     \"02:00:5e:00:53:01\"",
                    text.escape_debug()
                )
            })?;
        }
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(format!(
                "\"{}\" is not the MAC address of one station; write six bytes, the first of them even, as in \
                 \"02:00:5e:00:53:01\"",
                text.escape_debug()
            ));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_derived_one_depends_on_both_names_and_is_never_a_group_or_a_vendors() {
        let mut seen = std::collections::BTreeSet::new();
        for cluster in ["web", "we", "lab"] {
            for v in ["web", "bweb", "mail"] {
                let mac = MacAddress::derived(cluster, &v.parse().unwrap());
                assert_eq!(mac.0[0] & 3, 2, "{mac}");
                assert!(seen.insert(mac), "{mac} twice");
            }
        }
        // For ever: servers of different versions must agree, and clients have it in their tables.
        let known = MacAddress::derived("web", &"web".parse().unwrap());
        assert_eq!(known.to_string(), "62:92:98:87:21:5f");
    }

    #[test]
    fn what_is_shown_is_read() {
        for text in ["02:00:5e:00:53:01", "00:00:5e:00:01:0a"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_stations_address_is_refused() {
        for text in [
            "",
            "x",
            "02:00:5e:00:53",
            "02:00:5e:00:53:01:02",
            "2:0:5e:0:53:1",
            "02-00-5e-00-53-01",
            "02:00:5e:00:53:0g",
            "02:00:5e:00:53:+1",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
