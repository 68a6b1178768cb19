//! Numbers that several names have: each can read and change what is the other's.

use super::{
    File,
    records::{self, Line},
};
use std::{collections::BTreeMap, fmt};

/// Names that have one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Where: users or groups.
    pub file: File,
    /// Which.
    pub number: i64,
    /// Two or more, in order of the text.
    pub names: Vec<String>,
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, file) = match self.file {
            File::Group => ("gid", "group"),
            _ => ("uid", "passwd"),
        };
        let Some((last, others)) = self.names.split_last() else {
            return Ok(());
        };
        let (number, others) = (self.number, others.join(", "));
        write!(
            f,
            "duplicate {what} {number}: {others} and {last} in {file}"
        )
    }
}

/// Those of passwd and group.
pub fn duplicates(passwd: &[u8], group: &[u8]) -> Vec<Duplicate> {
    let of = |file: File, text| {
        let numbers = owners(file, records::lines(text)).into_iter();
        let several = numbers.filter(|(_, names)| names.len() > 1);
        several.map(move |(number, names)| Duplicate {
            file,
            number,
            names: names.into_iter().map(records::shown).collect(),
        })
    };
    let groups = of(File::Group, group);
    of(File::Passwd, passwd).chain(groups).collect()
}

/// Each name that has the number of an earlier one, after that.
pub(super) fn pairs<'a>(file: File, lines: impl Iterator<Item = Line<'a>>) -> Vec<[&'a [u8]; 2]> {
    let owners = owners(file, lines).into_values();
    let pairs = |names: Vec<&'a [u8]>| {
        let first = names.first().copied().unwrap_or_default();
        let others: Vec<_> = names.into_iter().skip(1).collect();
        others.into_iter().map(move |other| [first, other])
    };
    owners.flat_map(pairs).collect()
}

/// Who has each number. A group may have several lines, and is one all the same.
fn owners<'a>(file: File, lines: impl Iterator<Item = Line<'a>>) -> BTreeMap<i64, Vec<&'a [u8]>> {
    let mut owners: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let numbered = matches!(file, File::Passwd | File::Group);
    for line in lines.filter(|_| numbered) {
        let name = records::name(file, line);
        if let Some((name, number)) = name.zip(records::number(records::field(line, 2))) {
            let names = owners.entry(number).or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    owners
}
