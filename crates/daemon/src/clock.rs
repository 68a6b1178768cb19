//! The clocks, and random numbers.

use crate::Error;
use nix::time::{ClockId, clock_gettime};
use protocol::BootTime;

/// This server's CLOCK_BOOTTIME: never set back, and it goes on while the machine sleeps.
pub fn now() -> BootTime {
    BootTime(read(ClockId::CLOCK_BOOTTIME))
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn real_now_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// CLOCK_MONOTONIC_RAW, which nobody sets or slews, and by how much CLOCK_REALTIME is ahead of it, in nanoseconds.
pub fn raw_and_lead_ns() -> (u64, i64) {
    let reading = || {
        let before = read(ClockId::CLOCK_MONOTONIC_RAW);
        let real = real_now_ns();
        let raw = read(ClockId::CLOCK_MONOTONIC_RAW);
        let middle = before + (raw - before) / 2;
        (raw - before, raw, real.wrapping_sub(middle) as i64)
    };
    // Of three the one that was least interrupted.
    let best = [reading(), reading(), reading()].into_iter().min();
    best.map_or((0, 0), |(_, raw, lead)| (raw, lead))
}

fn read(clock: ClockId) -> u64 {
    // The call cannot fail for a clock that the kernel knows (Linux 2.6.39 or later knows both).
    clock_gettime(clock).map_or(0, |t| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(t.tv_nsec()).unwrap_or(0))
    })
}

/// 64 random bits from the kernel.
pub fn random_u64() -> Result<u64, Error> {
    random().map(u64::from_le_bytes)
}

/// `N` random bytes from the kernel.
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::Failed(format!("the kernel gives no random numbers: {e}")))?;
    Ok(bytes)
}

/// Refuses clocks that leases must not be measured with (ELECTION, "What a configuration must satisfy").
pub fn check() -> Result<(), Error> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    check_texts(
        &read("/proc/self/timens_offsets"),
        read("/sys/devices/system/clocksource/clocksource0/current_clocksource").trim(),
    )
    .map_err(Error::Failed)
}

fn check_texts(offsets: &str, source: &str) -> Result<(), String> {
    let shifted = offsets.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("boottime") && words.any(|w| w != "0")
    });
    if shifted {
        return Err(
            "this time namespace shifts the boot-time clock; start standin outside of it".into(),
        );
    }
    if ["jiffies", "refined-jiffies"].contains(&source) {
        return Err(format!(
            "the kernel's clock source is \"{source}\", which marks its better ones as unstable; leases \
             cannot be measured with it: choose another in \
             /sys/devices/system/clocksource/clocksource0/current_clocksource"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn clocks_advance_and_random_numbers_differ() {
        let before = now();
        assert!(before.0 > 0 && real_now_ns() > 1_600_000_000_000_000_000);
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
        assert!(now() > before);
        let (raw, lead) = raw_and_lead_ns();
        assert!(raw > 0 && raw.wrapping_add_signed(lead) <= real_now_ns());
    }

    #[test]
    fn shifted_and_coarse_clocks_are_refused() {
        assert_eq!(check_texts("monotonic 0 0\nboottime 0 0\n", "tsc"), Ok(()));
        assert_eq!(check_texts("", ""), Ok(()));
        assert!(
            check_texts("monotonic 0 0\nboottime 5 0\n", "tsc")
                .unwrap_err()
                .contains("namespace")
        );
        assert!(check_texts("", "jiffies").unwrap_err().contains("jiffies"));
    }
}
