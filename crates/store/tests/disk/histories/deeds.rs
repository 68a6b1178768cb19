//! What users do to a tree: each deed either can be done and is, or fails and is not.

use crate::common::{Random, Tree, is_root};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, lsetxattr,
    mknodat, renameat_with, utimensat,
};
use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

const NAMES: [&str; 14] = [
    "a", "b", "d", "d/e", "d/e/z", "d/x", "d/y", "d!", "f", "g", "g/e", "g/e/w", "g/e/z", "g/x",
];

/// Contents that nobody ever wrote before; of two, no part of one is the other, and neither is as long.
#[derive(Default)]
pub struct Values(u64);

impl Values {
    fn next(&mut self, random: &mut Random) -> Vec<u8> {
        self.0 += 1;
        let large = if random.below(40) == 0 { 1 << 20 } else { 0 };
        let mut value = format!("value {};", self.0).into_bytes();
        value.resize(usize::try_from(20 + large + self.0 * 7).unwrap(), b'x');
        value
    }
}

/// The first components of all names.
pub fn firsts() -> Vec<&'static str> {
    NAMES.into_iter().filter(|n| !n.contains('/')).collect()
}

/// A name below one of `firsts`, more often than not of something that is there.
fn somewhere(tree: &Tree, firsts: &[&str], random: &mut Random) -> PathBuf {
    let ours = |name: &&Path| firsts.iter().any(|first| name.starts_with(first));
    let there: Vec<_> = tree.keys().map(PathBuf::as_path).filter(ours).collect();
    let all: Vec<_> = NAMES.iter().map(Path::new).filter(ours).collect();
    match there.is_empty() || random.below(3) == 0 {
        true => random.of(&all).to_owned(),
        false => random.of(&there).to_owned(),
    }
}

/// Does something below one of `firsts` in the `tree` at `root`; in words, what. Of what cannot be done a few are tried.
/// `spare` is a name on the same file system and in no set.
pub fn one(
    root: &Path,
    tree: &Tree,
    spare: &Path,
    firsts: &[&str],
    random: &mut Random,
    values: &mut Values,
) -> String {
    let mut tried = (0..4).map(|_| deed(root, tree, spare, firsts, random, values));
    tried.find_map(Result::ok).unwrap_or_default()
}

fn deed(
    root: &Path,
    tree: &Tree,
    spare: &Path,
    firsts: &[&str],
    random: &mut Random,
    values: &mut Values,
) -> io::Result<String> {
    let name = somewhere(tree, firsts, random);
    let other = somewhere(tree, firsts, random);
    let (at, to) = (root.join(&name), root.join(&other));
    let (what, done) = match random.below(23) {
        0..4 => ("write", write(&at, &values.next(random))),
        4 => ("append", append(&at, &values.next(random))),
        5 => ("truncate", is_file(&at).and_then(|()| fs::write(&at, ""))),
        6 | 7 => {
            let written = fs::write(spare, values.next(random));
            ("replace", written.and_then(|()| fs::rename(spare, &at)))
        }
        8 => ("mkdir", fs::create_dir(&at)),
        9 | 10 => ("remove", remove(&at)),
        11 | 12 => ("rename", fs::rename(&at, &to)),
        13 => (
            "exchange",
            lift(renameat_with(CWD, &at, CWD, &to, RenameFlags::EXCHANGE)),
        ),
        14 | 15 => ("link", fs::hard_link(&at, &to)),
        16 => {
            let _ = fs::remove_file(&at);
            (
                "symlink",
                symlink(format!("nowhere {}", random.below(1000)), &at),
            )
        }
        17 => {
            let _ = fs::remove_file(&at);
            let made = mknodat(CWD, &at, FileType::Fifo, Mode::RUSR, 0);
            ("fifo", lift(made))
        }
        18 => ("chmod", chmod(&at, random)),
        19 => ("old time", old_time(&at, random)),
        20 => ("own", own(&at, random)),
        _ => ("become", become_another(&at, random, values)),
    };
    done?;
    Ok(match what {
        "rename" | "exchange" | "link" => format!("{what} {name:?} {other:?}"),
        _ => format!("{what} {name:?}"),
    })
}

fn lift(result: rustix::io::Result<()>) -> io::Result<()> {
    Ok(result?)
}

fn is_file(at: &Path) -> io::Result<()> {
    match fs::symlink_metadata(at)?.is_file() {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// In place if there is a file, else anew.
fn write(at: &Path, value: &[u8]) -> io::Result<()> {
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_file(at).is_err() && fs::symlink_metadata(at).is_ok() {
        fs::remove_file(at)?;
    }
    fs::write(at, value)
}

fn append(at: &Path, value: &[u8]) -> io::Result<()> {
    is_file(at)?;
    OpenOptions::new().append(true).open(at)?.write_all(value)
}

fn remove(at: &Path) -> io::Result<()> {
    match fs::symlink_metadata(at)?.is_dir() {
        true => fs::remove_dir_all(at),
        false => fs::remove_file(at),
    }
}

fn chmod(at: &Path, random: &mut Random) -> io::Result<()> {
    if fs::symlink_metadata(at)?.is_symlink() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mode = 0o700 | u32::try_from(random.below(64)).unwrap();
    fs::set_permissions(at, Permissions::from_mode(mode))
}

fn old_time(at: &Path, random: &mut Random) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(random.below(1_000_000)).unwrap(),
        tv_nsec: i64::try_from(random.below(1_000_000_000)).unwrap(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    lift(utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW))
}

/// Owner, group or an attribute.
fn own(at: &Path, random: &mut Random) -> io::Result<()> {
    let id = u32::try_from(random.below(5)).unwrap();
    if is_root() && random.below(2) == 0 {
        return lchown(at, Some(id), Some(id));
    }
    is_file(at).or_else(|_| fs::read_dir(at).map(drop))?;
    let value = random.below(1000).to_string();
    lift(lsetxattr(
        at,
        "user.x",
        value.as_bytes(),
        XattrFlags::empty(),
    ))
}

/// A directory with something in it becomes a file, or the other way round.
fn become_another(at: &Path, random: &mut Random, values: &mut Values) -> io::Result<()> {
    let was_directory = fs::symlink_metadata(at)?.is_dir();
    remove(at)?;
    if was_directory {
        return match random.below(3) {
            0 => symlink("nowhere", at),
            _ => fs::write(at, values.next(random)),
        };
    }
    fs::create_dir(at)?;
    for name in ["e", "x", "z"] {
        if random.below(2) == 0 {
            fs::write(at.join(name), values.next(random))?;
        }
    }
    Ok(())
}
