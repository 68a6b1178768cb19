//! Names below the root of a set: bytes, never looked at as text.

use serde::{Deserialize, Serialize};
use std::{cmp::Ordering, fmt};

/// Longest path in bytes (PATH_MAX of Linux, less its NUL).
pub const PATH_MAX: usize = 4095;
/// Longest component in bytes (NAME_MAX of Linux).
pub const NAME_MAX: usize = 255;

/// Bytes that are no path below a root: empty, absolute, too long, or with an empty, `.` or `..` component or a NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPath(pub Vec<u8>);

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is no path below a root", self.0.escape_ascii())
    }
}

impl std::error::Error for BadPath {}

/// A path below the root of a set. In order a directory comes right before what is in it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Path(Box<[u8]>);

impl Path {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory that it is in; none directly below the root.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|b| *b == b'/')?;
        Some(Self(self.0[..slash].into()))
    }

    /// Whether it is in `directory`, or in a directory of it.
    pub fn is_below(&self, directory: &Self) -> bool {
        self.0
            .strip_prefix(&*directory.0)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

impl TryFrom<Vec<u8>> for Path {
    type Error = BadPath;
    fn try_from(bytes: Vec<u8>) -> Result<Self, BadPath> {
        let fine = |name: &[u8]| {
            !name.is_empty() && name.len() <= NAME_MAX && name != b"." && name != b".."
        };
        let good =
            bytes.len() <= PATH_MAX && !bytes.contains(&0) && bytes.split(|b| *b == b'/').all(fine);
        if good {
            Ok(Self(bytes.into()))
        } else {
            Err(BadPath(bytes))
        }
    }
}

impl From<Path> for Vec<u8> {
    fn from(path: Path) -> Self {
        path.0.into()
    }
}

impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        // A slash before every other byte; NUL occurs in no path.
        let key = |b: &u8| if *b == b'/' { 0 } else { *b };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn path(text: &[u8]) -> Path {
        Path::try_from(text.to_vec()).unwrap()
    }

    #[test]
    fn what_could_leave_the_root_is_no_path() {
        let bad: [&[u8]; 9] = [
            b"", b"/etc", b"a//b", b"a/", b".", b"a/./b", b"..", b"a/../b", b"a\0b",
        ];
        for bytes in bad {
            assert!(Path::try_from(bytes.to_vec()).is_err(), "{bytes:?}");
        }
        assert!(Path::try_from(vec![b'a'; NAME_MAX + 1]).is_err());
        assert!(Path::try_from(b"ab/".repeat(PATH_MAX / 3 + 1)).is_err());
        for bytes in [&b"a"[..], b"..a/b...", b"a/\xff\x01\n", b" "] {
            assert_eq!(path(bytes).as_bytes(), bytes);
        }
    }

    #[test]
    fn a_directory_stands_right_before_what_is_in_it() {
        let mut paths = [&b"a!"[..], b"a/b", b"a", b"b", b"a/b/c", b"a-"].map(path);
        paths.sort();
        assert_eq!(
            paths,
            [&b"a"[..], b"a/b", b"a/b/c", b"a!", b"a-", b"b"].map(path)
        );
        assert!(path(b"a/b/c").is_below(&path(b"a")));
        assert!(!path(b"a-").is_below(&path(b"a")));
        assert_eq!(path(b"a/b/c").parent(), Some(path(b"a/b")));
        assert_eq!(path(b"a").parent(), None);
    }
}
