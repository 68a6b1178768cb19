//! Times as people write and read them: by the clock on the wall here.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Nanoseconds since 1970 of a time as it was typed: a date and time, or how long ago.
pub fn parse(text: &str, now: u64) -> Result<u64, String> {
    let text = text.trim();
    let nanos = |time: Timestamp| u64::try_from(time.as_nanosecond()).ok();
    let time = if let Some(seconds) = text.strip_prefix('@') {
        let seconds = seconds.parse::<u64>().ok();
        seconds.and_then(|s| s.checked_mul(1_000_000_000))
    } else if let Ok(ago) = humantime::parse_duration(text.trim_end_matches("ago").trim()) {
        let ago = u64::try_from(ago.as_nanos()).ok();
        ago.and_then(|ago| now.checked_sub(ago))
    } else if let Ok(time) = text.parse::<Timestamp>() {
        nanos(time)
    } else {
        let local = text.parse::<DateTime>().ok();
        let local = local.and_then(|t| t.to_zoned(TimeZone::system()).ok());
        local.and_then(|zoned| nanos(zoned.timestamp()))
    };
    time.ok_or_else(|| {
        format!(
            "\"{}\" is no time; write \"2026-11-25 14:00\", \"2026-11-25T13:00:00Z\", or how long ago: \"2h\", \"3d\"",
            text.escape_debug()
        )
    })
}

/// To the second, and never a later one.
pub fn show(nanos: u64) -> String {
    let time = Timestamp::from_nanosecond(nanos.into());
    time.map_or_else(
        |_| format!("@{}", nanos / 1_000_000_000),
        |time| {
            let local = time.to_zoned(TimeZone::system());
            local.strftime("%Y-%m-%d %H:%M:%S").to_string()
        },
    )
}

/// Which modification times a file system can hold, if that is worth a word: some since 1910 or in two centuries it cannot.
pub fn limits(times: &store::Times) -> Option<String> {
    const SECOND: i128 = 1_000_000_000;
    let date = |nanos: i128| {
        Timestamp::from_nanosecond(nanos).map_or_else(
            |_| format!("@{}", nanos.div_euclid(SECOND)),
            |time| time.strftime("%Y-%m-%d").to_string(),
        )
    };
    const YEAR: i128 = 365 * 86_400 * SECOND;
    let now = i128::from(daemon::real_now_ns());
    let limits = [
        (times.grain > 1).then(|| format!("in steps of {:?}", span(times.grain))),
        (times.first > -60 * YEAR).then(|| format!("from {} on", date(times.first))),
        (times.last < now + 200 * YEAR).then(|| format!("until {}", date(times.last))),
    ];
    let limits: Vec<_> = limits.into_iter().flatten().collect();
    (!limits.is_empty()).then(|| limits.join(", "))
}

fn span(nanos: i128) -> std::time::Duration {
    std::time::Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_times_that_may_come_are_worth_a_word() {
        let second = 1_000_000_000;
        let ext4 = store::Times {
            grain: 1,
            first: -(1 << 31) * second,
            last: 15_032_385_535 * second,
        };
        let limited = |change: &dyn Fn(&mut store::Times)| {
            let mut times = ext4;
            change(&mut times);
            limits(&times)
        };
        assert_eq!(limited(&|_| ()), None);
        let ext3 = limited(&|t| (t.grain, t.last) = (second, i128::from(i32::MAX) * second));
        assert_eq!(ext3.unwrap(), "in steps of 1s, until 2038-01-19");
        let fat = limited(&|t| (t.grain, t.first) = (2 * second, 315_532_800 * second));
        assert_eq!(fat.unwrap(), "in steps of 2s, from 1980-01-01 on");
    }

    #[test]
    fn times_as_they_are_typed() {
        let now = 1_800_000_000_000_000_000;
        assert_eq!(parse("2h", now).unwrap(), now - 7_200_000_000_000);
        assert_eq!(parse("3d ago", now).unwrap(), now - 3 * 86_400_000_000_000);
        assert_eq!(parse("@5", now).unwrap(), 5_000_000_000);
        assert_eq!(parse("1970-01-01T00:01:00Z", now).unwrap(), 60_000_000_000);
        assert_eq!(parse("1970-01-01T01:00:00+01:00", now).unwrap(), 0);
        let shown = show(now);
        assert_eq!(parse(&shown, now).unwrap(), now, "{shown}");
        assert!(parse(&shown[..16], now).is_ok() && parse(&shown[..10], now).is_ok());
        for bad in ["", "yesterday", "2026-13-01", "@x", "99999999999d"] {
            assert!(
                parse(bad, now).unwrap_err().contains("is no time; write"),
                "{bad}"
            );
        }
    }
}
