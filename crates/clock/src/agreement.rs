//! Whether a majority of clocks agrees against one.

/// What one clock shows: at most `bound_ns` from `offset_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// From any one clock; the same for all.
    pub offset_ns: i64,
    /// It is off by this at most.
    pub bound_ns: u64,
}

impl Interval {
    /// Whether the two are certainly further apart than `skew_ns`.
    fn differs(&self, other: &Self, skew_ns: u64) -> bool {
        let apart = self.offset_ns.abs_diff(other.offset_ns);
        apart
            > self
                .bound_ns
                .saturating_add(other.bound_ns)
                .saturating_add(skew_ns)
    }
}

/// Whether more than half of all clocks, `one` included, show the same within `skew_ns` and `one` does not.
pub fn outvoted(one: Interval, others: &[Interval], skew_ns: u64) -> bool {
    let against: Vec<_> = others.iter().filter(|o| one.differs(o, skew_ns)).collect();
    // Intervals that agree pairwise have a point in common, and the lower end of one of them is such a point.
    let with = |edge: &Interval| {
        let point = Interval {
            offset_ns: edge
                .offset_ns
                .saturating_sub_unsigned(edge.bound_ns + skew_ns / 2),
            bound_ns: 0,
        };
        against
            .iter()
            .filter(|o| !o.differs(&point, skew_ns / 2))
            .count()
    };
    against.iter().any(|edge| 2 * with(edge) > others.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agreeing_majority_outvotes() {
        // The master's offset, those of the others (this server's is 0), with bound 1 and skew 10.
        let table: [(i64, &[i64], bool); 9] = [
            (100, &[0], false),
            (100, &[0, 0], true),
            (100, &[0, 50], false),
            (12, &[0, 0], false),
            (13, &[0, 0], true),
            (100, &[0, 0, 100], false),
            (100, &[0, 5, 8, 100], true),
            (100, &[0, 30, 60, -30], false),
            (0, &[0, 0], false),
        ];
        for (master, others, out) in table {
            let interval = |offset_ns| Interval {
                offset_ns,
                bound_ns: 1,
            };
            let others: Vec<_> = others.iter().copied().map(interval).collect();
            assert_eq!(
                outvoted(interval(master), &others, 10),
                out,
                "{master} against {others:?}"
            );
        }
    }

    #[test]
    fn whoever_knows_little_votes_against_nobody() {
        let vague = Interval {
            offset_ns: 0,
            bound_ns: 1_000,
        };
        let master = Interval {
            offset_ns: 500,
            bound_ns: 1,
        };
        assert!(!outvoted(master, &[vague, vague], 10));
    }
}
