//! Where a directory is, whatever it is called: symbolic links and bind mounts give one directory several names.

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::{
    cell::OnceCell,
    collections::HashMap,
    ffi::OsString,
    fs::{self, Metadata},
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

/// What is mounted where, read if anybody needs it.
#[derive(Default)]
pub struct Places(OnceCell<HashMap<u64, Mount>>);

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// Which directory of the file system,
    root: PathBuf,
    /// and where it is to be seen.
    point: PathBuf,
}

/// Where a path is that may not be there itself.
#[derive(Debug)]
pub struct Place {
    /// Without symbolic links.
    pub path: PathBuf,
    /// File system and mount; none before Linux 5.8.
    mount: Option<((u32, u32), u64)>,
}

impl Places {
    /// Finds a path, or where it would be.
    pub fn find(&self, path: &Path) -> Place {
        let there = path
            .ancestors()
            .find_map(|above| Some((above, above.canonicalize().ok()?)));
        let Some((above, found)) = there else {
            return Place {
                path: path.to_owned(),
                mount: None,
            };
        };
        let seen = statx(CWD, &found, AtFlags::empty(), StatxFlags::MNT_ID).ok();
        let seen = seen.filter(|seen| seen.stx_mask & StatxFlags::MNT_ID.bits() != 0);
        let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
        Place {
            // Without a slash at its end.
            path: found.join(rest).components().collect(),
            mount: seen.map(|s| ((s.stx_dev_major, s.stx_dev_minor), s.stx_mnt_id)),
        }
    }

    /// Where in a directory another path is; empty: it is the directory.
    pub fn beneath(&self, directory: &Place, other: &Place) -> Option<PathBuf> {
        if let Ok(beneath) = other.path.strip_prefix(&directory.path) {
            return Some(beneath.to_owned());
        }
        let beneath = self.by_mounts(directory, other)?;
        // Mounts from one server (NFS) may be of one file system, each with its own root.
        is_same(&directory.path.join(&beneath), &other.path).then_some(beneath)
    }

    /// The same by what is mounted where.
    fn by_mounts(&self, directory: &Place, other: &Place) -> Option<PathBuf> {
        let ((device, mount), (other_device, other_mount)) = (directory.mount?, other.mount?);
        if device != other_device || mount == other_mount {
            return None;
        }
        let directory = self.within(mount, &directory.path)?;
        let other = self.within(other_mount, &other.path)?;
        Some(other.strip_prefix(directory).ok()?.to_owned())
    }

    /// Where in its file system a path of this mount is.
    fn within(&self, mount: u64, path: &Path) -> Option<PathBuf> {
        let read = || parse(&fs::read("/proc/self/mountinfo").unwrap_or_default());
        let Mount { root, point } = self.0.get_or_init(read).get(&mount)?;
        let path = root.join(path.strip_prefix(point).ok()?);
        Some(path.components().collect())
    }
}

/// Whether two paths are one directory, or would be: then what is above them is.
fn is_same(a: &Path, b: &Path) -> bool {
    let both = a.ancestors().zip(b.ancestors());
    let mut both = both.map(|(a, b)| (fs::metadata(a), fs::metadata(b)));
    let first = both.find(|(a, b)| a.is_ok() || b.is_ok());
    let same = |(a, b): (Metadata, Metadata)| (a.dev(), a.ino()) == (b.dev(), b.ino());
    first.is_some_and(|(a, b)| a.ok().zip(b.ok()).is_some_and(same))
}

/// proc_pid_mountinfo(5)
fn parse(text: &[u8]) -> HashMap<u64, Mount> {
    let mounts = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let root = unescape(words.nth(2)?);
        let point = unescape(words.next()?);
        Some((id, Mount { root, point }))
    });
    mounts.collect()
}

/// Spaces and the like stand there as a backslash and three octal digits.
fn unescape(mut word: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    while let Some((first, rest)) = word.split_first() {
        let octal = rest.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                word = &rest[3..];
            }
            None => {
                path.push(*first);
                word = rest;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_is_found_by_each_of_its_names_and_before_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("srv/www")).unwrap();
        symlink(at("srv"), at("link")).unwrap();
        let places = Places::default();
        let beneath = |directory: &str, other: &str| {
            places.beneath(&places.find(&at(directory)), &places.find(&at(other)))
        };
        for (directory, other, found) in [
            ("srv", "srv/www", Some("www")),
            ("srv", "link/www/", Some("www")),
            ("link", "srv", Some("")),
            ("link/", "srv/not/yet", Some("not/yet")),
            ("srv/www", "srv", None),
            ("srv", "srv2", None),
        ] {
            assert_eq!(
                beneath(directory, other),
                found.map(PathBuf::from),
                "{directory} {other}"
            );
        }
    }

    #[test]
    fn a_bind_mount_shows_a_directory_of_another_mount() {
        let text = b"36 35 98:0 / /srv rw,noatime master:1 - ext4 /dev/vda rw\n\
                     40 35 98:0 /www\\040a /mnt/b\\134c rw - ext4 /dev/vda rw\nnonsense\n";
        let place = |path: &str, mount| Place {
            path: path.into(),
            mount: Some(((98, 0), mount)),
        };
        let places = Places(OnceCell::from(parse(text)));
        let beneath = |a, b| places.by_mounts(&a, &b);
        let (srv, bound) = (|| place("/srv", 36), || place("/mnt/b\\c", 40));
        assert_eq!(beneath(srv(), bound()), Some("www a".into()));
        assert_eq!(beneath(place("/srv/www a", 36), bound()), Some("".into()));
        assert_eq!(
            beneath(bound(), place("/srv/www a/x", 36)),
            Some("x".into())
        );
        assert_eq!(beneath(place("/srv/x", 36), bound()), None);
        assert_eq!(beneath(srv(), place("/mnt/x", 41)), None);
    }

    #[test]
    fn two_directories_are_not_one_whatever_the_mounts_look_like() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/x")).unwrap();
        fs::create_dir_all(at("b")).unwrap();
        let text = format!(
            "36 35 0:50 / {} rw - nfs4 host:/a rw\n40 35 0:50 / {} rw - nfs4 host:/b rw\n",
            at("a").display(),
            at("b").display()
        );
        let places = Places(OnceCell::from(parse(text.as_bytes())));
        let place = |name: &str, mount| Place {
            path: at(name),
            mount: Some(((0, 50), mount)),
        };
        let beneath = |b: &str| places.by_mounts(&place("a", 36), &place(b, 40));
        assert_eq!(
            (beneath("b"), beneath("b/x")),
            (Some("".into()), Some("x".into()))
        );
        for other in ["b", "b/x", "b/y"] {
            let beneath = places.beneath(&place("a", 36), &place(other, 40));
            assert_eq!(beneath, None, "{other}");
        }
        assert!(is_same(&at("a/y/z"), &at("b/../a/y/z")));
    }
}
