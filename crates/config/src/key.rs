//! The cluster key file: one or two keys of 64 hex digits, a line each, comments with `#`.
//!
//! The first key seals, all of them open. Two keys are live while a new one is brought round: add the new
//! one below the old on every server, then swap the lines everywhere, then remove the old.

use crate::error::ConfigError;
use std::{fmt, path::Path};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

/// Keys in a file.
const KEYS_MAX: usize = 2;

/// The keys of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKeys {
    /// Seals what this server sends.
    pub seal: [u8; KEY_LEN],
    /// Open what arrives; `seal` is the first of them.
    pub open: Vec<[u8; KEY_LEN]>,
}

/// Shows how many keys there are, never the keys.
impl fmt::Debug for ClusterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKeys({} secret)", self.open.len())
    }
}

/// Reads the text of a key file. No error repeats anything of the key.
pub fn parse_key(text: &str, file: &Path) -> Result<ClusterKeys, ConfigError> {
    let mut open = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |what: String| ConfigError::one(file, Some(i + 1), "", what);
        let key = from_hex(line).ok_or_else(|| {
            wrong(format!(
                "no key: {} characters that are not 64 hex digits; make one with `standin keygen`",
                line.chars().count()
            ))
        })?;
        if open.len() == KEYS_MAX {
            return Err(wrong("more than two keys; remove the oldest".to_owned()));
        }
        open.push(key);
    }
    let seal = *open.first().ok_or_else(|| {
        ConfigError::one(
            file,
            None,
            "",
            "no key in the file; make one with `standin keygen`",
        )
    })?;
    Ok(ClusterKeys { seal, open })
}

fn from_hex(text: &str) -> Option<[u8; KEY_LEN]> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    if digits.len().is_multiple_of(2) {
        bytes.try_into().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
    const B: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    fn parse(text: &str) -> Result<ClusterKeys, String> {
        parse_key(text, Path::new("cluster.key")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_first_key_seals_and_both_open() {
        let keys = parse(&format!("# made today\n\n{A}  # old\n{B}\n")).unwrap();
        assert_eq!(keys.seal[..3], [0x00, 0x11, 0x22]);
        assert_eq!(keys.seal[31], 0xff);
        assert_eq!(keys.open, [keys.seal, [0xff; 32]]);
    }

    #[test]
    fn errors_name_the_line_and_not_the_key() {
        for (text, expected) in [
            ("".to_owned(), "cluster.key: no key in the file"),
            ("# nothing\n".to_owned(), "cluster.key: no key in the file"),
            (
                format!("\n{}", &A[1..]),
                "cluster.key:2: no key: 63 characters",
            ),
            (format!("{A}00"), "cluster.key:1: no key: 66 characters"),
            (A.replace('0', "g"), "cluster.key:1: no key: 64 characters"),
            (
                format!("{A}\n{B}\n{A}\n"),
                "cluster.key:3: more than two keys",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("112233"), "{error}");
        }
    }

    #[test]
    fn debug_output_hides_the_key() {
        assert_eq!(format!("{:?}", parse(A).unwrap()), "ClusterKeys(1 secret)");
    }
}
