//! Masses of removals that a second server tells of as well (docs/SYNC.md, "Many removals").
//!
//! A server's word counts for a file only if it has confirmed to this one that it had the version that is here: then the
//! removal was made there, or allowed. A new index was merely told of removals, and has confirmed nothing. What one server
//! said is kept until a second one says the same, in this run or a later one.

use crate::replica::Local;
use daemon::durable;
use filesync::{Operation, Replica};
use protocol::codec;
use std::{collections::HashSet, fs};
use store::Error;

/// Files in a unit's directory begin so, and end in the server's name.
const FILE: &str = "removals-";

/// Names a file together with the version of it that is here.
type Name = [u8; 16];

/// How many of these removals, which `from` tells of, no other server has told of.
pub fn alone<'o>(
    local: &Local,
    from: &Replica,
    removals: impl Iterator<Item = &'o Operation>,
    dry: bool,
) -> Result<u64, Error> {
    let confirmed = local.index.ledger()?.told(from);
    let mut said = Vec::new();
    let others = others(local, from);
    let mut alone = 0;
    for removal in removals {
        let row = local.index.row(&removal.path)?;
        let name = row
            .filter(|row| row.sequence <= confirmed)
            .map(|_| name(removal));
        alone += u64::from(!name.is_some_and(|name| others.contains(&name)));
        said.extend(name.into_iter().flatten());
    }
    if !dry {
        // It only spares an operator a word.
        let _ = durable::write(&local.state, &format!("{FILE}{}", from.server), &said);
    }
    Ok(alone)
}

fn name(removal: &Operation) -> Name {
    let vector = removal.was.as_ref().map(|was| &was.vector);
    let told = codec::encode_record(&(&removal.path, vector)).unwrap_or_default();
    let mut name = Name::default();
    name.copy_from_slice(&blake3::hash(&told).as_bytes()[..16]);
    name
}

/// What other servers said.
fn others(local: &Local, from: &Replica) -> HashSet<Name> {
    let own = format!("{FILE}{}", from.server);
    let files = fs::read_dir(&local.state).into_iter().flatten().flatten();
    let others = files.filter(|file| {
        let name = file.file_name();
        name.to_string_lossy().starts_with(FILE) && name != own.as_str()
    });
    let read = others.filter_map(|file| fs::read(file.path()).ok());
    let names = |bytes: Vec<u8>| bytes.as_chunks().0.to_vec();
    read.flat_map(names).collect()
}
