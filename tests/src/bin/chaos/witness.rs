//! What the answers prove.
//!
//! All of the lab reads one clock, and an answer that arrives has passed its server's gate after the moment it names.
//! So the answers of all servers, in order of that moment, tell who held the address when; no tolerance is
//! needed.

use lab::{Answered, NAMES};
use std::time::Duration;

/// From a server to another and back takes two handovers, each with at least a millisecond in which nobody has the address.
const TWO_HANDOVERS: Duration = Duration::from_millis(2);

/// A stretch of time in which a server could not renew a lease, since it was stopped or heard nobody.
#[derive(Clone, Debug)]
pub struct Barred {
    pub server: usize,
    pub why: String,
    pub from: Duration,
    /// The lease's end at the latest, if all went well just before.
    pub lapsed: Duration,
    /// None: still.
    pub until: Option<Duration>,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crime {
    pub at: Duration,
    pub what: String,
}

/// Two servers in turn, faster than the address can move. The answers must be in order of time.
pub fn interleaved(answers: &[Answered]) -> Option<Crime> {
    let mut last: [Option<Duration>; NAMES.len()] = [None; NAMES.len()];
    let mut before: Option<Answered> = None;
    for answer in answers {
        let seen = last.get_mut(answer.server)?;
        if let (Some(other), Some(own)) = (before, *seen)
            && other.server != answer.server
            && answer.at - own < TWO_HANDOVERS
        {
            let what = format!(
                "{} answered {:?} before and {:?} after an answer of {}",
                NAMES[answer.server],
                other.at - own,
                answer.at - other.at,
                NAMES[other.server]
            );
            return Some(Crime { at: other.at, what });
        }
        *seen = Some(answer.at);
        before = Some(*answer);
    }
    None
}

/// An answer given when no lease could be left.
pub fn without_lease(answers: &[Answered], barred: &[Barred]) -> Option<Crime> {
    let crime = |answer: &Answered| {
        let during = |b: &&Barred| {
            let over = b.until.is_some_and(|until| answer.at >= until);
            b.server == answer.server && answer.at > b.lapsed && !over
        };
        let bar = barred.iter().find(during)?;
        let what = format!(
            "{} answered {:?} after {}, {:?} past the end of any lease",
            NAMES[bar.server],
            answer.at - bar.from,
            bar.why,
            answer.at - bar.lapsed
        );
        Some(Crime {
            at: answer.at,
            what,
        })
    };
    answers.iter().find_map(crime)
}

/// A request answered by two servers. (A network that is only broken, never repeats.)
pub fn answered_twice(answers: &[(usize, Answered)]) -> Option<Crime> {
    let mut sorted = answers.to_vec();
    sorted.sort_by_key(|(request, answer)| (*request, *answer));
    let twice = sorted.windows(2).find(|pair| {
        let [(one, first), (other, second)] = pair else {
            return false;
        };
        one == other && first.server != second.server
    })?;
    let (first, second) = (twice[0].1, twice[1].1);
    let what = format!(
        "one request was answered by {} and {:?} later by {}",
        NAMES[first.server],
        second.at.abs_diff(first.at),
        NAMES[second.server]
    );
    Some(Crime { at: first.at, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(at: u64) -> Duration {
        Duration::from_micros(at)
    }

    fn answered(answers: &[(u64, usize)]) -> Vec<Answered> {
        let one = |(at, server): &(u64, usize)| Answered {
            at: us(*at),
            server: *server,
        };
        answers.iter().map(one).collect()
    }

    #[test]
    fn an_address_does_not_go_and_come_within_two_handovers() {
        let fine = answered(&[(0, 0), (1000, 0), (2100, 1), (3000, 0), (9000, 2)]);
        assert_eq!(interleaved(&fine), None);
        let crime = interleaved(&answered(&[(0, 0), (1000, 0), (1500, 1), (2900, 0)]));
        assert_eq!(crime.unwrap().at, us(1500));
        let beside = answered(&[(0, 2), (100, 1), (1000, 2)]);
        assert!(interleaved(&beside).is_some());
    }

    #[test]
    fn nobody_answers_past_the_end_of_any_lease() {
        let bar = |until| Barred {
            server: 1,
            why: "SIGSTOP".to_owned(),
            from: us(1000),
            lapsed: us(5000),
            until,
        };
        let answers = answered(&[(4000, 1), (5000, 1), (6000, 0), (8000, 1)]);
        assert_eq!(without_lease(&answers, &[bar(Some(us(8000)))]), None);
        let crime = without_lease(&answers, &[bar(None)]).unwrap();
        assert_eq!(crime.at, us(8000));
        assert!(crime.what.contains("bravo answered 7ms after SIGSTOP"));
    }

    #[test]
    fn a_request_has_one_answer() {
        let [a, b, c] = [(100, 0), (200, 0), (300, 1)].map(|one| answered(&[one])[0]);
        assert_eq!(answered_twice(&[(0, a), (1, b), (2, c), (0, a)]), None);
        let crime = answered_twice(&[(5, c), (0, a), (5, b)]).unwrap();
        assert_eq!(crime.at, us(200));
    }
}
