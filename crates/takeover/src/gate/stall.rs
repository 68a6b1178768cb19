//! A switch for tests: a stall between reading the clock and writing a deadline.

use nix::sys::signal::{Signal, raise};
use std::{path::PathBuf, sync::OnceLock, thread::sleep, time::Duration};

/// Names a file. Its next appearance stalls the next write: for so many milliseconds as it says, or if it says
/// "stop" until somebody continues the process, which then writes and dies.
const SWITCH: &str = "STANDIN_TEST_STALL";

/// To be held until the write is done.
pub(crate) struct Stalled {
    dies: bool,
}

/// Stalls if a test wants it: once, and the file is gone then.
pub(crate) fn stall() -> Stalled {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os(SWITCH).map(PathBuf::from));
    let text = file.as_ref().and_then(|f| std::fs::read_to_string(f).ok());
    let Some((file, text)) = file.as_ref().zip(text) else {
        return Stalled { dies: false };
    };
    log::warn!("{SWITCH}: the writing of the gate stalls: {text}");
    let _ = std::fs::remove_file(file);
    let dies = text == "stop";
    if dies {
        let _ = raise(Signal::SIGSTOP);
    } else {
        sleep(Duration::from_millis(text.trim().parse().unwrap_or(0)));
    }
    Stalled { dies }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        if self.dies {
            let _ = raise(Signal::SIGKILL);
        }
    }
}
