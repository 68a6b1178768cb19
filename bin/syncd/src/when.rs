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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
