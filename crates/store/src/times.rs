//! Which modification times a file system can hold: not each keeps nanoseconds, and none keeps all years.

use crate::dir::Dir;
use filesync::Node;
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, fstat, futimens};
use serde::{Deserialize, Serialize};
use std::io;

const SECOND: i128 = 1_000_000_000;

/// See the module. All in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// It keeps multiples of this.
    pub grain: i128,
    /// None before this,
    pub first: i128,
    /// and none after.
    pub last: i128,
}

impl Times {
    /// Of one that holds them all.
    pub(crate) const ALL: Self = Self {
        grain: 1,
        first: i128::MIN,
        last: i128::MAX,
    };

    /// Of the file system of this directory of standin's own, which gets other times thereby.
    pub(crate) fn probe(dir: &Dir) -> io::Result<Self> {
        /// What a time becomes.
        fn held(dir: &Dir, time: Timespec) -> io::Result<Option<i128>> {
            match futimens(dir, &modified(time)) {
                Ok(()) => Ok(Some(of(&fstat(dir)?))),
                // It is refused and not cut: so is that of a file, with a name.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::RANGE) => Ok(None),
                Err(e) => Err(e.into()),
            }
        }
        const ODD: i128 = SECOND * SECOND + SECOND + 123_456_789;
        let all = Self::ALL;
        let far = |tv_sec| held(dir, Timespec { tv_sec, tv_nsec: 0 });
        let (first, last) = (far(i64::MIN)?, far(i64::MAX)?);
        let odd = held(dir, timespec(ODD))?;
        let grains = (0..=9).map(|zeros| 10i128.pow(zeros)).chain([2 * SECOND]);
        let mut grains = grains.filter(|grain| odd == Some(ODD.div_euclid(*grain) * grain));
        Ok(Self {
            grain: grains.next().unwrap_or(all.grain),
            first: first.filter(|first| *first < 0).unwrap_or(all.first),
            last: last.filter(|last| *last > ODD).unwrap_or(all.last),
        })
    }

    /// What becomes of a time.
    pub(crate) fn held(&self, time: i128) -> i128 {
        let Self { grain, first, last } = *self;
        time.clamp(first, last).div_euclid(grain) * grain
    }

    /// What was seen, with the time that `wanted` has if this is all that can be held of it, and nobody wrote to the file.
    pub(crate) fn meant(&self, seen: Node, wanted: Option<&Node>) -> Node {
        match wanted {
            Some(wanted) if wanted.kind == seen.kind && self.held(wanted.mtime) == seen.mtime => {
                Node {
                    mtime: wanted.mtime,
                    ..seen
                }
            }
            _ => seen,
        }
    }

    /// Whether it is the same, as far as it can be held.
    pub(crate) fn is(&self, seen: &Node, wanted: &Node) -> bool {
        let mtime = self.held(wanted.mtime) == seen.mtime;
        (mtime || seen.is_directory()) && seen.says_the_same(wanted)
    }
}

/// The modification time that stat(2) tells.
pub(crate) fn of(stat: &rustix::fs::Stat) -> i128 {
    i128::from(stat.st_mtime) * SECOND + i128::from(stat.st_mtime_nsec)
}

fn timespec(time: i128) -> Timespec {
    let tv_sec = time
        .div_euclid(SECOND)
        .clamp(i64::MIN.into(), i64::MAX.into());
    Timespec {
        tv_sec: tv_sec as i64,
        tv_nsec: time.rem_euclid(SECOND) as _,
    }
}

/// As a call takes it that leaves the access time alone.
fn modified(last_modification: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification,
    }
}

/// The same of a time in nanoseconds since 1970.
pub(crate) fn stamps(time: i128) -> Timestamps {
    modified(timespec(time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use filesync::Kind;

    fn link(target: &str, mtime: i128) -> Node {
        Node {
            kind: Kind::Symlink {
                target: target.into(),
            },
            mode: 0o777,
            uid: 0,
            gid: 0,
            mtime,
            attributes: Default::default(),
        }
    }

    #[test]
    fn what_cannot_be_held_is_meant_and_what_somebody_wrote_is_not() {
        let times = Times {
            grain: SECOND,
            first: 0,
            last: 100 * SECOND,
        };
        let (fine, seen) = (link("a", 7 * SECOND + 5), link("a", 7 * SECOND));
        assert_eq!(times.held(-5), 0);
        assert_eq!(times.held(101 * SECOND), 100 * SECOND);
        assert_eq!(times.meant(seen.clone(), Some(&fine)), fine);
        assert_eq!(times.meant(seen.clone(), None), seen);
        for other in [link("b", fine.mtime), link("a", 8 * SECOND)] {
            assert_eq!(times.meant(seen.clone(), Some(&other)), seen);
        }
        assert!(times.is(&seen, &fine) && !times.is(&fine, &fine));
        assert!(Times::ALL.is(&fine, &fine) && !Times::ALL.is(&seen, &fine));
        let late = link("a", i128::from(u64::MAX) * SECOND);
        assert!(times.is(&link("a", 100 * SECOND), &late));
    }
}
