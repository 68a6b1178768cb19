//! Who steers this server's clock.

/// The kernel's limit of `maxerror`: what it has grown to when nobody keeps the clock (`NTP_PHASE_LIMIT`).
const MAXERROR_LIMIT_US: i64 = 16_000_000;

/// What the kernel says of its clock (adjtimex(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// By how much the clock is made to run faster, in parts of 10^9: frequency and tick together.
    pub rate_ppb: i64,
    /// What is left of a slew by the kernel itself.
    pub offset: i64,
    /// By how much the clock may be off, in microseconds; whoever keeps it sets this.
    pub maxerror_us: i64,
}

/// The second look at the kernel comes so long after the first.
pub const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(3);

/// A time daemon that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its name.
    pub name: &'static str,
    /// It was told to leave the clock alone (`chronyd -x`).
    pub only_watches: bool,
}

/// What a process is called (`/proc/<pid>/comm`, 15 letters), and what that is.
const DAEMONS: [(&str, &str); 10] = [
    ("chronyd", "chronyd"),
    ("ntpd", "ntpd"),
    ("openntpd", "openntpd"),
    ("ntp-daemon", "ntpd-rs"),
    ("ntpd-rs", "ntpd-rs"),
    ("systemd-timesyn", "systemd-timesyncd"),
    ("ptp4l", "ptp4l"),
    ("phc2sys", "phc2sys"),
    ("statime", "statime"),
    ("ntpsec", "ntpsec"),
];

/// The time daemon that a process is, by its name and arguments.
pub fn daemon_of(comm: &str, arguments: &[&str]) -> Option<Daemon> {
    let (_, name) = DAEMONS.iter().find(|(known, _)| *known == comm)?;
    let letters = |a: &&str| a.starts_with('-') && !a.starts_with("--") && a.len() > 1;
    let mut options = arguments.iter().filter(|a| letters(a));
    Some(Daemon {
        name,
        only_watches: comm == "chronyd"
            && options.any(|a| a[1..].starts_with('x') || a.ends_with('x')),
    })
}

/// Who steers the clock, if anybody but standin does, from two looks at the kernel [`LOOK_AGAIN`] apart. A daemon that
/// runs counts even if it only watches now: it may be told otherwise.
pub fn in_charge(before: Kernel, after: Kernel, daemons: &[Daemon]) -> Option<String> {
    if let Some(daemon) = daemons.iter().find(|d| !d.only_watches).or(daemons.first()) {
        return Some(format!("{} runs", daemon.name));
    }
    if after.maxerror_us < MAXERROR_LIMIT_US {
        // Not the flag STA_UNSYNC: chrony without rtcsync leaves it set, others let it lapse.
        return Some(format!(
            "the kernel's clock is kept within {} us by somebody, or was until a short time ago",
            after.maxerror_us
        ));
    }
    if (before.rate_ppb, before.offset) != (after.rate_ppb, after.offset) {
        return Some("somebody changes the rate of the kernel's clock".into());
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const IDLE: Kernel = Kernel {
        rate_ppb: 0,
        offset: 0,
        maxerror_us: MAXERROR_LIMIT_US,
    };

    #[test]
    fn a_clock_that_nobody_keeps_is_free() {
        assert_eq!(in_charge(IDLE, IDLE, &[]), None);
        let rate = Kernel {
            rate_ppb: 12_345,
            ..IDLE
        };
        assert_eq!(in_charge(rate, rate, &[]), None);
    }

    #[test]
    fn any_sign_of_another_keeps_hands_off() {
        let kept = Kernel {
            maxerror_us: 15_999_999,
            ..IDLE
        };
        let moved = Kernel {
            rate_ppb: 1,
            ..IDLE
        };
        let slewing = Kernel { offset: 5, ..IDLE };
        let chronyd = |x| Daemon {
            name: "chronyd",
            only_watches: x,
        };
        for (after, daemons) in [
            (kept, vec![]),
            (moved, vec![]),
            (slewing, vec![]),
            (IDLE, vec![chronyd(false)]),
            (IDLE, vec![chronyd(true)]),
        ] {
            assert!(
                in_charge(IDLE, after, &daemons).is_some(),
                "{after:?} {daemons:?}"
            );
        }
    }

    #[test]
    fn daemons_are_known_by_name_and_chronyd_that_watches_by_its_option() {
        assert_eq!(daemon_of("sshd", &[]), None);
        assert_eq!(
            daemon_of("systemd-timesyn", &[]).unwrap().name,
            "systemd-timesyncd"
        );
        for (arguments, watches) in [
            (&["chronyd"][..], false),
            (&["chronyd", "-x"], true),
            (&["chronyd", "-dx", "-F", "1"], true),
            (&["/usr/sbin/chronyd", "--max", "-F", "1"], false),
        ] {
            assert_eq!(
                daemon_of("chronyd", arguments).unwrap().only_watches,
                watches,
                "{arguments:?}"
            );
        }
    }
}
