//! What a server has promised, and to whom: the safety of the whole rests here (ELECTION R4 to R6, R18).

use mutants::{Mutant, planted};
use protocol::{BootTime, Instance, Number, RosterVersion, ServerName, Term};
use std::{collections::BTreeMap, time::Duration};

/// Most releases remembered for one virtual server.
const RELEASES_MAX: usize = 64;

/// A promise to `holder`: before `until`, neither vote for nor acknowledge anybody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// To whom.
    pub holder: ServerName,
    /// By which beat or call of which instance; `None` after a restart, for any instance.
    pub by: Option<(Instance, Number)>,
    /// Until when.
    pub until: BootTime,
    /// Until then no release ends it (R20).
    pub firm_until: Option<BootTime>,
    /// The roster version that the beat or call told; the lowest there is after a restart.
    pub roster: RosterVersion,
    /// The lowest version told by earlier beats or calls that still bind, and until when they do.
    pub earlier: Option<(RosterVersion, BootTime)>,
}

impl Promise {
    /// R24: the lowest roster version by which what binds at `now` may be counted.
    fn counted_by(&self, now: BootTime) -> Option<RosterVersion> {
        let own = (now <= self.until).then_some(self.roster);
        let earlier = self.earlier.filter(|(_, until)| now <= *until);
        own.into_iter()
            .chain(earlier.map(|(roster, _)| roster))
            .min()
    }
}

/// A beat that claims, or a call: what a promise is given for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// In which term.
    pub term: Term,
    /// By which instance.
    pub instance: Instance,
    /// Under which number.
    pub number: Number,
    /// For how long.
    pub lease: Duration,
    /// Counting by which roster (R24).
    pub roster: RosterVersion,
}

/// One virtual server's votes and promises of this server.
#[derive(Clone, Debug, Default)]
pub struct Voter {
    /// Highest term voted or acknowledged in: the floor told to others. `ack_min` of the rules is the same
    /// number while electd lives, so it is not kept twice.
    pub voted: Term,
    /// The server last promised to, as remembered in the run-dir.
    pub holder: Option<ServerName>,
    /// The last promise, also when it has run out.
    pub promise: Option<Promise>,
    /// When the last promise that was released would have ended, or was released.
    pub released_at: BootTime,
    released: BTreeMap<(ServerName, Instance), Number>,
}

impl Voter {
    /// A voter that knows nothing but its floor.
    pub fn with_floor(voted: Term) -> Self {
        Self {
            voted,
            ..Self::default()
        }
    }

    /// R4: may `who` be promised anything now?
    pub fn free_for(&self, who: &ServerName, now: BootTime) -> bool {
        self.promise
            .as_ref()
            .is_none_or(|p| now > p.until || &p.holder == who)
            || planted(Mutant::PromiseNotKept)
    }

    /// How long until it is free for everybody.
    pub fn busy_for(&self, now: BootTime) -> Duration {
        self.promise
            .as_ref()
            .map_or(Duration::ZERO, |p| p.until.since(now))
    }

    /// R5, R14: was this beat or call released, or overtaken by a later one of its instance?
    pub fn stale(&self, who: &ServerName, instance: Instance, number: Number) -> bool {
        if planted(Mutant::StaleCounts) {
            return false;
        }
        self.is_released(who, instance, number)
            || self.promise.as_ref().is_some_and(|p| {
                &p.holder == who && p.by.is_some_and(|(i, k)| i == instance && number < k)
            })
    }

    /// R18: does a release cover this beat or call?
    pub fn is_released(&self, who: &ServerName, instance: Instance, number: Number) -> bool {
        !self.released.is_empty()
            && self
                .released
                .get(&(who.clone(), instance))
                .is_some_and(|k| number <= *k)
    }

    /// R5, R6: promise for `lease` from now. Returns whether the memory in the run-dir must be written.
    pub fn promise(&mut self, who: &ServerName, asked: Asked, now: BootTime) -> bool {
        let Asked {
            term,
            instance,
            number,
            lease,
            roster,
        } = asked;
        let changed = self.voted != term || self.holder.as_ref() != Some(who);
        self.voted = self.voted.max(term);
        self.holder = Some(who.clone());
        let before = self.promise.take().filter(|p| &p.holder == who);
        let until = before
            .as_ref()
            .map_or(now + lease, |p| p.until.max(now + lease));
        let earlier = before.as_ref().and_then(|p| {
            if p.roster < roster {
                Some((p.counted_by(now)?, p.until))
            } else {
                p.earlier
            }
        });
        self.promise = Some(Promise {
            holder: who.clone(),
            by: Some((instance, number)),
            until,
            firm_until: before.and_then(|p| p.firm_until),
            roster,
            earlier,
        });
        changed
    }

    /// R24: the lowest roster version by which a promise in force may be counted, if one is in force.
    pub fn counted_by(&self, now: BootTime) -> Option<RosterVersion> {
        self.promise.as_ref()?.counted_by(now)
    }

    /// R18: nothing `who` sent up to `number` counts any more. Comes late, twice or relayed with one effect.
    pub fn release(&mut self, who: &ServerName, instance: Instance, number: Number, now: BootTime) {
        let known = self
            .released
            .entry((who.clone(), instance))
            .or_insert(number);
        *known = if planted(Mutant::OldReleaseCounts) {
            number
        } else {
            number.max(*known)
        };
        if self.released.len() > RELEASES_MAX {
            let other = self
                .released
                .keys()
                .find(|(s, i)| !(s == who && *i == instance))
                .cloned();
            other.map(|key| self.released.remove(&key));
        }
        let covered = |p: &Promise| {
            &p.holder == who
                && (p.by.is_some_and(|(i, k)| i == instance && k <= number)
                    || planted(Mutant::ReleaseEndsAny))
                && p.firm_until.is_none_or(|firm| now > firm)
        };
        if self.promise.as_ref().is_some_and(covered) {
            self.end_promise(now);
        }
    }

    /// The holder's own word that its gate is shut ends its promise to itself.
    pub fn end_promise(&mut self, now: BootTime) {
        if let Some(promise) = self.promise.take() {
            self.released_at = now.min(promise.until);
        }
    }

    /// When the last promise ended or will end.
    pub fn promise_end(&self) -> BootTime {
        self.promise.as_ref().map_or(self.released_at, |p| p.until)
    }

    /// The releases known, to be relayed in a call (R13).
    pub fn releases(&self) -> impl Iterator<Item = (&ServerName, Instance, Number)> {
        self.released
            .iter()
            .map(|((server, instance), number)| (server, *instance, *number))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }
    const L: Duration = Duration::from_millis(500);
    const I: Instance = Instance(7);

    fn asked(number: u64, lease: Duration, counter: u64) -> Asked {
        Asked {
            term: Term(3),
            instance: I,
            number: Number(number),
            lease,
            roster: version(counter),
        }
    }

    fn version(counter: u64) -> RosterVersion {
        RosterVersion {
            term: Term(1),
            counter,
        }
    }

    fn promised(at: u64) -> Voter {
        let mut voter = Voter::default();
        assert!(voter.promise(&name("a"), asked(5, L, 0), BootTime(at)));
        voter
    }

    #[test]
    fn a_promise_binds_until_its_last_nanosecond_and_only_against_others() {
        let voter = promised(1000);
        let end = BootTime(1000) + L;
        assert!(!voter.free_for(&name("b"), end));
        assert!(voter.free_for(&name("b"), end + Duration::from_nanos(1)));
        assert!(voter.free_for(&name("a"), BootTime(1001)));
    }

    #[test]
    fn a_promise_to_the_same_instance_never_shrinks() {
        let mut voter = promised(1000);
        let shorter = asked(6, Duration::from_millis(1), 0);
        assert!(!voter.promise(&name("a"), shorter, BootTime(1001)));
        assert_eq!(voter.promise_end(), BootTime(1000) + L);
        assert!(voter.stale(&name("a"), I, Number(5)));
        assert!(!voter.stale(&name("a"), I, Number(6)));
        assert!(!voter.stale(&name("a"), Instance(8), Number(1)));
    }

    #[test]
    fn a_release_ends_what_it_covers_and_nothing_else() {
        let mut voter = promised(1000);
        voter.release(&name("a"), I, Number(4), BootTime(2000));
        assert!(
            !voter.free_for(&name("b"), BootTime(2000)),
            "an older release covers nothing"
        );
        voter.release(&name("a"), Instance(8), Number(9), BootTime(2000));
        assert!(
            !voter.free_for(&name("b"), BootTime(2000)),
            "another instance's release covers nothing"
        );
        voter.release(&name("a"), I, Number(5), BootTime(2000));
        assert!(voter.free_for(&name("b"), BootTime(2000)));
        assert!(
            voter.stale(&name("a"), I, Number(5)),
            "a late copy of what was released is dropped"
        );
        assert_eq!(voter.voted, Term(3), "a release never touches the floor");
    }

    #[test]
    fn a_firm_promise_outlives_a_release() {
        let mut voter = Voter {
            promise: Some(Promise {
                holder: name("a"),
                by: None,
                until: BootTime(5000),
                firm_until: Some(BootTime(5000)),
                roster: RosterVersion::default(),
                earlier: None,
            }),
            ..Voter::default()
        };
        let short = asked(1, Duration::from_nanos(1), 0);
        voter.promise(&name("a"), short, BootTime(10));
        voter.release(&name("a"), I, Number(1), BootTime(20));
        assert!(!voter.free_for(&name("b"), BootTime(4999)));
        assert!(voter.free_for(&name("b"), BootTime(5001)));
    }

    #[test]
    fn a_promise_is_counted_by_the_lowest_roster_until_what_was_asked_with_it_has_run_out() {
        let mut voter = promised(1000);
        let at = BootTime(1000) + L / 2;
        let (first_ends, second_ends) = (BootTime(1000) + L, at + L);
        voter.promise(&name("a"), asked(6, L, 1), at);
        assert_eq!(voter.counted_by(at), Some(version(0)));
        voter.promise(&name("a"), asked(7, L, 1), at);
        assert_eq!(voter.counted_by(first_ends), Some(version(0)));
        let after = first_ends + Duration::from_nanos(1);
        assert_eq!(voter.counted_by(after), Some(version(1)));
        assert_eq!(
            voter.counted_by(second_ends + Duration::from_nanos(1)),
            None
        );
    }

    #[test]
    fn two_rosters_one_after_another_leave_the_lowest_in_force() {
        let mut voter = promised(1000);
        voter.promise(&name("a"), asked(6, L, 1), BootTime(1001));
        voter.promise(&name("a"), asked(7, L, 2), BootTime(1002));
        assert_eq!(voter.counted_by(BootTime(1003)), Some(version(0)));
        // A claimant that was restarted knows less again.
        voter.promise(&name("a"), asked(8, L, 1), BootTime(1004) + L);
        assert_eq!(voter.counted_by(BootTime(1005) + L), Some(version(1)));
    }

    #[test]
    fn another_holder_is_counted_by_its_own_roster() {
        let mut voter = promised(1000);
        let free = BootTime(1001) + L;
        voter.promise(&name("b"), asked(1, L, 4), free);
        assert_eq!(voter.counted_by(free), Some(version(4)));
    }
}
