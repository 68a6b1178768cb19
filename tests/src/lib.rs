//! What the whole-system tests and the comparisons share.

mod chronyd;
mod options;
mod random;

pub use chronyd::chronyd;
pub use options::{Value, options, wanted};
pub use random::Random;

use std::fmt;

/// Median, minimum and maximum of some runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of these values; all zero if there are none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        let last = sorted.len().saturating_sub(1);
        Self {
            median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
            min: at(0),
            max: at(last),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.max < 10.0 { 2 } else { 0 };
        let Self { median, min, max } = self;
        if min == max {
            return write!(f, "{median:.digits$}");
        }
        write!(f, "{median:.digits$} ({min:.digits$}..{max:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_the_middle_and_the_ends() {
        let of = |values: &[f64]| Summary::of(values).to_string();
        assert_eq!(of(&[30.0, 10.0, 20.0]), "20 (10..30)");
        assert_eq!(of(&[1.0, 2.0]), "1.50 (1.00..2.00)");
        assert_eq!(of(&[7.0]), "7.00");
        assert_eq!(of(&[]), "0.00");
    }
}
