//! The time daemon that tests look at.

use std::{env, path::PathBuf};

/// Where chronyd is: unpacked by `make chrony` in a folder above the test, or installed. Without one the test is left out;
/// where nothing may be, it fails.
pub fn chronyd() -> Option<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    let unpacked = program
        .ancestors()
        .map(|p| p.join("chrony/usr/sbin/chronyd"));
    let installed = ["/usr/sbin/chronyd".into(), "/usr/local/sbin/chronyd".into()];
    let found = unpacked.chain(installed).find(|p| p.exists());
    let all = env::var_os("STANDIN_TESTS_SKIP_NOTHING").is_some();
    assert!(found.is_some() || !all, "chronyd is missing: make chrony");
    if found.is_none() {
        eprintln!("skipped: no chronyd (make chrony)");
    }
    found
}
