//! How fast files may go: `10MB/s`, in the units of `rsync --bwlimit`.

use std::{fmt, str::FromStr};

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

impl Rate {
    /// Less would never end.
    pub const MIN: Self = Self(1024);
    /// More is no limit.
    pub const MAX: Self = Self(100_000_000_000);
}

/// Capital letters count, as they do for bits and bytes.
const UNITS: [(&str, u64); 13] = [
    ("B", 1),
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("KB", 1000),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("Mbit", 125_000),
    ("Gbit", 125_000_000),
];

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRate(String);

impl fmt::Display for BadRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let bad = |what: &str| BadRate(format!("\"{}\" {what}", text.escape_debug()));
        let plain = text.trim();
        let plain = plain.strip_suffix("/s").unwrap_or(plain).trim_end();
        let digits = plain.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &plain[digits.len()..];
        let number = digits.trim_end();
        // Without signs, exponents and words like inf.
        let plain_number = number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let Some(number) = number.parse::<f64>().ok().filter(|_| plain_number) else {
            return Err(bad("is no rate; write for example \"10MB/s\""));
        };
        if unit.is_empty() {
            return Err(bad(
                "has no unit: rsync would take it for KiB/s; write for example \"10MB/s\"",
            ));
        }
        let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            let names: Vec<_> = UNITS.iter().map(|(name, _)| *name).collect();
            let what = format!("has no unit that is known: {}", names.join(", "));
            return Err(bad(&what));
        };
        // Exact enough: a rate is no count.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let rate = Self((number * *bytes as f64) as u64);
        if (Self::MIN..=Self::MAX).contains(&rate) {
            Ok(rate)
        } else {
            Err(bad("must be within 1KiB/s and 100GB/s"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_rsync_and_of_networks() {
        let table = [
            ("10MB/s", 10_000_000),
            ("10 MB/s", 10_000_000),
            ("10MiB/s", 10 << 20),
            ("10M", 10 << 20),
            ("1.5MB", 1_500_000),
            ("200K", 200 << 10),
            ("2000B/s", 2000),
            ("100Mbit/s", 12_500_000),
            ("1G", 1 << 30),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse::<Rate>(), Ok(Rate(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_told_with_the_mend() {
        let table = [
            ("", "is no rate"),
            ("fast", "is no rate"),
            ("-1MB/s", "is no rate"),
            ("1e3MB", "is no rate"),
            ("infMB/s", "is no rate"),
            ("1.2.3MB", "is no rate"),
            ("10", "has no unit"),
            ("10/s", "has no unit"),
            ("10mb/s", "has no unit that is known"),
            ("10MB/h", "is no rate"),
            ("0MB/s", "must be within"),
            ("1000GB/s", "must be within"),
            ("9999999999999999999999GB", "must be within"),
        ];
        for (text, what) in table {
            let told = text.parse::<Rate>().unwrap_err().to_string();
            assert!(told.contains(what), "{text}: {told}");
        }
    }
}
