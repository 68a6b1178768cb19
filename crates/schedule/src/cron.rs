//! Points in local time, as crontab(5) writes them: minute, hour, day, month, day of the week.
//!
//! Each minute of the wall clock comes once: what would come twice when clocks are set back comes the first time, and
//! what is left out when they are set forward comes right after.

use std::{fmt, str::FromStr};

const DAY: i64 = 86_400;
/// Leap days are eight years apart at most.
const DAYS_MAX: i64 = 366 * 9;
/// No clock is set back by more.
const SET_BACK: i64 = 3 * 3600;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both days are given: either will do.
    either_day: bool,
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cron({})", self.text)
    }
}

impl FromStr for Cron {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!(
                "\"{}\" has {} fields; write five: minute hour day month weekday",
                text.escape_debug(),
                fields.len()
            ));
        };
        let sundays = field(weekdays, 0, 7, &WEEKDAYS)?;
        let cron = Self {
            text: fields.join(" "),
            minutes: field(minutes, 0, 59, &[])?,
            hours: field(hours, 0, 23, &[])?,
            days: field(days, 1, 31, &[])?,
            months: field(months, 1, 12, &MONTHS)?,
            weekdays: sundays | sundays >> 7,
            either_day: !days.starts_with('*') && !weekdays.starts_with('*'),
        };
        if cron.next_wall(0).is_none() {
            return Err(format!("\"{text}\" never comes"));
        }
        Ok(cron)
    }
}

impl Cron {
    /// The first moment after `after`, both in seconds since 1970; `offset` tells by how many seconds local time is
    /// ahead at a moment.
    pub fn next(&self, after: i64, offset: &dyn Fn(i64) -> i64) -> Option<i64> {
        let before = after - SET_BACK;
        let mut reached = after + offset(after);
        if offset(before) > offset(after) {
            let back = transition(before, after, offset);
            reached = reached.max(back + offset(before) - 1);
        }
        let wall = self.next_wall(reached.div_euclid(60) + 1)? * 60;
        let (from, to) = (wall - DAY, wall + DAY);
        let (ahead, later) = (offset(from), offset(to));
        if ahead == later {
            return Some(wall - ahead);
        }
        let change = transition(from, to, offset);
        Some(match wall < change + ahead {
            true => wall - ahead,
            false => change.max(wall - later),
        })
    }

    /// The first minute of the wall clock from `minute` on.
    fn next_wall(&self, minute: i64) -> Option<i64> {
        let (first, mut from) = (minute.div_euclid(1440), minute.rem_euclid(1440));
        for day in first..first + DAYS_MAX {
            if self.is_on(day) {
                let found = (from..1440)
                    .find(|m| self.hours >> (m / 60) & 1 == 1 && self.minutes >> (m % 60) & 1 == 1);
                if let Some(found) = found {
                    return Some(day * 1440 + found);
                }
            }
            from = 0;
        }
        None
    }

    /// Days since 1970.
    fn is_on(&self, day: i64) -> bool {
        let (month, of_month) = civil(day);
        let weekday = (day + 4).rem_euclid(7); // the first was a Thursday
        let by_day = self.days >> of_month & 1 == 1;
        let by_weekday = self.weekdays >> weekday & 1 == 1;
        let fits = match self.either_day {
            true => by_day || by_weekday,
            false => by_day && by_weekday,
        };
        fits && self.months >> month & 1 == 1
    }
}

/// The first moment after `from` at which the offset is that of `to`.
fn transition(mut from: i64, mut to: i64, offset: &dyn Fn(i64) -> i64) -> i64 {
    let later = offset(to);
    while to - from > 1 {
        let middle = from + (to - from) / 2;
        if offset(middle) == later {
            to = middle;
        } else {
            from = middle;
        }
    }
    to
}

/// Month and day of the month of a day since 1970 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(day: i64) -> (i64, i64) {
    let of_era = (day + 719_468).rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    (if month < 10 { month + 3 } else { month - 9 }, of_month)
}

/// One field: `*`, `3`, `1-5`, `*/15`, `10-20/2` and names, several with commas between.
fn field(text: &str, least: u64, most: u64, names: &[&str]) -> Result<u64, String> {
    let wrong = |why: String| format!("\"{}\" {why}", text.escape_debug());
    let number = |word: &str| -> Result<u64, String> {
        let named = names.iter().position(|n| word.eq_ignore_ascii_case(n));
        let value = match named {
            Some(place) => place as u64 + least,
            None => word
                .parse()
                .map_err(|_| wrong(format!("has \"{}\" in it", word.escape_debug())))?,
        };
        if (least..=most).contains(&value) {
            Ok(value)
        } else {
            Err(wrong(format!("must be within {least} and {most}")))
        }
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => match step.parse() {
                Ok(step) if step > 0 => (range, step),
                _ => return Err(wrong("has no number after /".into())),
            },
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (least, most),
            Some((from, to)) => (number(from)?, number(to)?),
            None if part.contains('/') => (number(range)?, most),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return Err(wrong("begins after its end".into()));
        }
        bits |= (from..=to)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .fold(0, |bits, n| bits | 1 << n);
    }
    Ok(bits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cron(text: &str) -> Cron {
        text.parse().unwrap()
    }

    /// Seconds since 1970 of a day, hour and minute in UTC; the days are of 2026.
    fn utc(day: i64, hour: i64, minute: i64) -> i64 {
        (20_453 + day) * DAY + hour * 3600 + minute * 60
    }

    #[test]
    fn days_have_their_names() {
        assert_eq!(civil(0), (1, 1));
        assert_eq!(civil(20_454), (1, 1));
        assert_eq!(civil(20_454 + 58), (2, 28));
        assert_eq!(civil(19_782), (2, 29));
        assert_eq!(civil(-1), (12, 31));
    }

    #[test]
    fn the_next_moment_is_found() {
        let flat = |_: i64| 0;
        let next = |text: &str, after| cron(text).next(after, &flat).unwrap();
        // 1 January 2026 is a Thursday.
        assert_eq!(next("0 3 * * 0", utc(1, 0, 0)), utc(4, 3, 0));
        assert_eq!(next("0 3 * * 7", utc(1, 0, 0)), utc(4, 3, 0));
        assert_eq!(next("0 3 * * sun", utc(4, 3, 0)), utc(11, 3, 0));
        assert_eq!(next("*/15 * * * *", utc(1, 0, 1)), utc(1, 0, 15));
        assert_eq!(next("*/15 * * * *", utc(1, 0, 15)), utc(1, 0, 30));
        assert_eq!(next("5,35 22-23 * * *", utc(1, 22, 35)), utc(1, 23, 5));
        assert_eq!(next("0 0 1 mar *", utc(1, 0, 0)), utc(60, 0, 0));
        assert_eq!(next("0 0 13 * fri", utc(1, 0, 0)), utc(2, 0, 0), "either");
        assert_eq!(next("0 0 13 * fri", utc(9, 0, 0)), utc(13, 0, 0), "either");
        assert_eq!(next("0 0 29 2 *", utc(1, 0, 0)), 21_243 * DAY, "in 2028");
        assert_eq!(next("10-20/5 * * * *", utc(1, 0, 11)), utc(1, 0, 15));
    }

    #[test]
    fn local_time_counts() {
        let ahead = |_: i64| 2 * 3600;
        let next = cron("0 3 * * *").next(utc(1, 1, 0), &ahead).unwrap();
        assert_eq!(next, utc(2, 1, 0));
    }

    #[test]
    fn what_clocks_leave_out_comes_right_after_and_nothing_comes_twice() {
        // Set forward from 2:00 to 3:00 local time at 1:00 UTC of the tenth, back from 3:00 to 2:00 at 1:00 of the
        // twentieth.
        let summer = |t: i64| {
            let on = t >= utc(10, 1, 0) && t < utc(20, 1, 0);
            if on { 7200 } else { 3600 }
        };
        let daily = cron("30 2 * * *");
        let mut at = utc(8, 12, 0);
        let mut times = Vec::new();
        for _ in 0..14 {
            at = daily.next(at, &summer).unwrap();
            times.push(at);
        }
        let expected: Vec<i64> = (9..=22)
            .map(|day| match day {
                10 => utc(10, 1, 0),
                11..=20 => utc(day, 0, 30),
                _ => utc(day, 1, 30),
            })
            .collect();
        assert_eq!(times, expected);
        let often = cron("*/20 * * * *");
        assert_eq!(often.next(utc(10, 0, 59), &summer), Some(utc(10, 1, 0)));
        assert_eq!(often.next(utc(10, 1, 0), &summer), Some(utc(10, 1, 20)));
        assert_eq!(often.next(utc(20, 0, 45), &summer), Some(utc(20, 2, 0)));
        assert_eq!(often.next(utc(20, 1, 10), &summer), Some(utc(20, 2, 0)));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "x * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "*/x * * * *",
            "0 0 30 2 *",
            "-1 * * * *",
            "* * * * * *",
            "1- * * * *",
        ] {
            assert!(bad.parse::<Cron>().is_err(), "{bad}");
        }
        assert_eq!(cron(" 0  3 * * 0 ").to_string(), "0 3 * * 0");
    }
}
