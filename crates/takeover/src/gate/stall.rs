//! A switch for tests: a stall between reading the clock and writing a deadline.

use std::{path::PathBuf, sync::OnceLock, thread::sleep, time::Duration};

/// Names a file. Its next appearance, with a number of milliseconds in it, stalls the next write for so long.
const SWITCH: &str = "STANDIN_TEST_STALL";

/// Stalls if a test wants it: once, and the file is gone then.
pub(crate) fn stall() {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os(SWITCH).map(PathBuf::from));
    let Some(file) = file else { return };
    let Ok(text) = std::fs::read_to_string(file) else {
        return;
    };
    let _ = std::fs::remove_file(file);
    let stall = Duration::from_millis(text.trim().parse().unwrap_or(0));
    log::warn!("{SWITCH}: the writing of the gate stalls for {stall:?}");
    sleep(stall);
}
