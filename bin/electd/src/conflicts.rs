//! Which addresses machines have that are no servers of the cluster: for the log, and as long as it lasts for
//! `standin status`. Pure.

use protocol::{BootTime, VirtualServerName, owner::Mac};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Whoever has not been heard for so long has gone: longer than two rounds of questions.
const GONE: Duration = Duration::from_secs(150);
/// So many addresses are kept, and so many are named in `standin status`.
const KEPT: usize = 1024;
const NAMED: usize = 8;

#[derive(Debug, Default)]
pub struct Conflicts {
    others: BTreeMap<IpAddr, Other>,
    claims: u64,
}

#[derive(Debug)]
struct Other {
    v: VirtualServerName,
    mac: Mac,
    heard: BootTime,
}

impl Conflicts {
    /// The machine at `mac` has `ip` too. An alarm, unless that was known.
    pub fn claimed(
        &mut self,
        now: BootTime,
        v: &VirtualServerName,
        ip: IpAddr,
        mac: Mac,
    ) -> Option<String> {
        self.claims += 1;
        self.others.retain(|_, other| !other.has_gone(now));
        if self.others.len() >= KEPT && !self.others.contains_key(&ip) {
            return None;
        }
        let other = Other {
            v: v.clone(),
            mac,
            heard: now,
        };
        let before = self.others.insert(ip, other);
        if before.is_some_and(|before| before.mac == mac) {
            return None;
        }
        Some(format!(
            "{v}: {mac} claims {ip} and is no server of this cluster: clients reach the one or the other; take the \
             address off that machine"
        ))
    }

    /// How often another machine was heard to claim an address.
    pub fn claims(&self) -> u64 {
        self.claims
    }

    /// What is so now.
    pub fn notes(&self, now: BootTime) -> impl Iterator<Item = String> {
        let all = self.others.iter();
        let there: Vec<_> = all.filter(|(_, other)| !other.has_gone(now)).collect();
        let more = there.len().saturating_sub(NAMED);
        let more = (more > 0).then(|| format!("{more} more addresses are claimed by others"));
        let note = |(ip, other): &(&IpAddr, &Other)| {
            let (v, mac, ago) = (&other.v, other.mac, now.since(other.heard));
            format!(
                "{v}: {mac} claims {ip} and is no server of this cluster, heard {} s ago",
                ago.as_secs()
            )
        };
        let notes: Vec<_> = there.iter().take(NAMED).map(note).collect();
        notes.into_iter().chain(more)
    }
}

impl Other {
    fn has_gone(&self, now: BootTime) -> bool {
        now.since(self.heard) > GONE
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x99]);

    fn at(seconds: u64) -> BootTime {
        BootTime(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn an_alarm_is_raised_once_and_the_note_stays_while_the_other_is_heard() {
        let (v, ip) = ("web".parse().unwrap(), "192.0.2.10".parse().unwrap());
        let mut conflicts = Conflicts::default();
        assert_eq!(conflicts.notes(at(0)).count(), 0);
        let alarm = conflicts.claimed(at(1), &v, ip, MAC).unwrap();
        assert!(
            alarm.starts_with("web: 02:00:00:00:00:99 claims 192.0.2.10 and"),
            "{alarm}"
        );
        for second in [2, 60, 120] {
            assert_eq!(conflicts.claimed(at(second), &v, ip, MAC), None);
        }
        let notes: Vec<_> = conflicts.notes(at(180)).collect();
        assert!(notes[0].ends_with("heard 60 s ago"), "{notes:?}");
        assert_eq!(conflicts.notes(at(300)).count(), 0);
        assert!(conflicts.claimed(at(300), &v, ip, MAC).is_some());
        let another = Mac([2, 0, 0, 0, 0, 0x98]);
        assert!(conflicts.claimed(at(301), &v, ip, another).is_some());
        assert_eq!(conflicts.claims(), 6);
    }

    #[test]
    fn few_are_named_and_not_all_are_kept() {
        let v = "web".parse().unwrap();
        let mut conflicts = Conflicts::default();
        for n in 0..2000u32 {
            let ip = std::net::Ipv4Addr::from_bits(n).into();
            conflicts.claimed(at(1), &v, ip, MAC);
        }
        let notes: Vec<_> = conflicts.notes(at(1)).collect();
        assert_eq!(notes.len(), NAMED + 1);
        assert!(notes[NAMED].starts_with("1016 more"), "{notes:?}");
    }
}
