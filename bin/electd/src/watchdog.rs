//! `/dev/watchdog`, fed by the event loop: a machine whose electd makes no beats any more is reset by it.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use nix::libc::O_NONBLOCK;
use protocol::BootTime;

/// How often it is fed: the shortest time-out of a device is a second, usual is a minute.
const INTERVAL: Duration = Duration::from_millis(500);
/// Tells the device that its end is meant.
const END: &[u8] = b"V";

/// The device, open. Closing it without [`Watchdog::end`], as a killed electd does, leaves it counting.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    fed: Option<BootTime>,
    failed: bool,
}

impl Watchdog {
    /// Opens it: from now on it counts. The words say why it cannot be.
    pub fn open(path: &Path) -> Result<Self, String> {
        let device = OpenOptions::new()
            .write(true)
            .custom_flags(O_NONBLOCK)
            .open(path)
            .map_err(|e| format!("no watchdog: cannot open {}: {e}", path.display()))?;
        Ok(Self {
            device,
            fed: None,
            failed: false,
        })
    }

    /// A beat was made.
    pub fn beat(&mut self, now: BootTime) {
        if self.fed.is_some_and(|fed| now.since(fed) < INTERVAL) {
            return;
        }
        self.fed = Some(now);
        let written = self.device.write(b"\0");
        if let Err(e) = &written
            && !self.failed
        {
            log::warn!("cannot feed the watchdog: {e}");
        }
        self.failed = written.is_err();
    }

    /// A clean stop: nothing is to be reset.
    pub fn end(mut self) {
        if let Err(e) = self.device.write(END) {
            log::warn!("cannot end the watchdog, which may reset this machine: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime(ms * 1_000_000)
    }

    #[test]
    fn beats_feed_it_and_only_a_clean_stop_ends_it() {
        let path = std::env::temp_dir().join(format!("electd-watchdog-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let mut watchdog = Watchdog::open(&path).unwrap();
        for ms in [1000, 1100, 1499, 1500, 1600, 3000] {
            watchdog.beat(at(ms));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0");
        drop(watchdog); // as a killed electd does
        assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0");
        std::fs::write(&path, "").unwrap();
        let mut watchdog = Watchdog::open(&path).unwrap();
        watchdog.beat(at(5000));
        watchdog.end();
        assert_eq!(std::fs::read(&path).unwrap(), b"\0V");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_device_that_is_not_there_is_told_and_does_not_block() {
        let why = Watchdog::open(Path::new("/nonexistent/watchdog")).unwrap_err();
        assert!(why.contains("/nonexistent/watchdog"), "{why}");
    }
}
