//! Which event each record of a password file is from.
//!
//! The file's vector says which events are in a version; with the event of each record it says all about the record,
//! whoever met whom: a version that has the event of another one's record in it, and the record not, or another one,
//! removed or changed it later. What neither has of the other was changed on both. (Almeida et al., "Scalable and
//! Accurate Causality Tracking for Eventually Consistent Stores", 2014, call the events dots.)

use super::{
    File,
    records::{Line, Records},
};
use crate::{
    entry::{Digest, Entry},
    version::{Replica, Vector},
};
use std::collections::BTreeMap;

/// Longest list of replicas, names and so on that is read.
const LONG: usize = u16::MAX as usize;

/// As much of a key as is kept: a line that is no record may be longer.
fn short(key: &[u8]) -> &[u8] {
    &key[..key.len().min(LONG)]
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    replica: Replica,
    count: u64,
}

impl Event {
    /// The one that this is the contents of.
    fn last(entry: &Entry) -> Self {
        let replica = entry.rank.replica.clone();
        let count = entry.vector.count(&replica);
        Self { replica, count }
    }

    /// Whether a version has it.
    pub(super) fn is_in(&self, vector: &Vector) -> bool {
        vector.count(&self.replica) >= self.count
    }
}

/// See the module; the records by their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(BTreeMap<Vec<u8>, (Digest, Event)>);

impl History {
    /// Of a text that came to be with the last event of `entry`, from one of which this is known: what is as it was is
    /// from where it was.
    pub fn follow(
        &self,
        file: File,
        text: &[u8],
        entry: &Entry,
        digest: impl Fn(&[u8]) -> Digest,
    ) -> Self {
        let lines = Records::read(file, text).lines.into_iter();
        let followed = lines.map(|(key, line)| {
            let line = digest(line);
            let same =
                |(known, event): &&(Digest, Event)| *known == line && event.is_in(&entry.vector);
            let old = self.0.get(short(&key)).filter(same);
            let event = old.map_or_else(|| Event::last(entry), |(_, event)| event.clone());
            (short(&key).to_vec(), (line, event))
        });
        Self(followed.collect())
    }

    /// The event that a record is from; one that is not known is as young as the version.
    pub(super) fn of(&self, key: Line<'_>, entry: &Entry) -> Event {
        let known = self.0.get(short(key));
        known.map_or_else(|| Event::last(entry), |(_, event)| event.clone())
    }

    pub(super) fn put(&mut self, key: Line<'_>, line: Digest, event: Event) {
        self.0.insert(short(key).to_vec(), (line, event));
    }

    /// As it is kept and sent: the replicas, then each record with the place of its replica among them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut replicas: Vec<_> = self.0.values().map(|(_, e)| &e.replica).collect();
        replicas.sort_unstable();
        replicas.dedup();
        let mut bytes = Vec::new();
        let text = |bytes: &mut Vec<u8>, text: &[u8]| {
            bytes.extend((text.len().min(LONG) as u16).to_le_bytes());
            bytes.extend(text.iter().take(LONG));
        };
        bytes.extend((replicas.len().min(LONG) as u16).to_le_bytes());
        for replica in &replicas {
            text(&mut bytes, replica.server.as_str().as_bytes());
            bytes.extend(replica.incarnation.to_le_bytes());
        }
        for (key, (line, event)) in &self.0 {
            text(&mut bytes, key);
            bytes.extend(line.0);
            let place = replicas.binary_search(&&event.replica).unwrap_or(0);
            bytes.extend((place as u16).to_le_bytes());
            bytes.extend(event.count.to_le_bytes());
        }
        bytes
    }

    /// None if these bytes are no such thing.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let mut replicas = Vec::new();
        for _ in 0..u16::from_le_bytes(reader.array()?) {
            let server = std::str::from_utf8(reader.text()?).ok()?.parse().ok()?;
            let incarnation = u64::from_le_bytes(reader.array()?);
            replicas.push(Replica {
                server,
                incarnation,
            });
        }
        let mut history = Self::default();
        while !reader.0.is_empty() {
            let key = reader.text()?;
            let line = Digest(reader.array()?);
            let place = u16::from_le_bytes(reader.array()?);
            let replica = replicas.get(usize::from(place))?.clone();
            let count = u64::from_le_bytes(reader.array()?);
            history.put(key, line, Event { replica, count });
        }
        Some(history)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }
}
