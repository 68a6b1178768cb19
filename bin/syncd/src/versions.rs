//! Former versions of one unit: opened only when there is something to keep, or somebody asks.

use filesync::Replica;
use std::{path::PathBuf, sync::OnceLock};
use store::{Archive, Clock, Index, Keep, Listing, Set};

/// So many former versions of account files there always are: they are merged against the last one that both had.
const BASES: Keep = Keep::Versions(16);

/// So often what is too old is looked for, in nanoseconds.
const DAY: u64 = 86_400 * 1_000_000_000;

/// See the module.
pub struct Versions {
    file: PathBuf,
    keep: Option<Keep>,
    open: OnceLock<Archive>,
}

impl Versions {
    /// Of a unit with this state directory.
    pub fn new(state: &std::path::Path, keep: Option<Keep>, accounts: bool) -> Self {
        Self {
            file: state.join("kept"),
            keep: keep.or(accounts.then_some(BASES)),
            open: OnceLock::new(),
        }
    }

    /// They, if any are kept.
    pub fn archive(&self) -> Result<Option<&Archive>, store::Error> {
        if self.keep.is_none() && !self.file.exists() {
            return Ok(None);
        }
        if self.open.get().is_none() {
            let _ = self.open.set(Archive::open(&self.file)?);
        }
        Ok(self.open.get())
    }

    /// Keeps what is there now, before anything takes its place; what could not be kept. `agrees`: no other server's
    /// clock is known to be elsewhere.
    pub fn keep(&self, set: &Set, index: &Index, agrees: bool) -> Result<Listing, store::Error> {
        let Some(keep) = self.keep else {
            return Ok(Listing::default());
        };
        let now = daemon::real_now_ns();
        let state = index.state()?;
        // Most runs find nothing new: then not even the file is opened.
        let Replica { incarnation, .. } = state.replica;
        let seen = format!(
            "{incarnation:x} {} {} {keep:?}\n",
            state.sequence,
            now / DAY
        );
        let note = self.file.with_extension("seen");
        if self.file.exists() && std::fs::read_to_string(&note).is_ok_and(|text| text == seen) {
            return Ok(Listing::default());
        }
        let Some(archive) = self.archive()? else {
            return Ok(Listing::default());
        };
        let clock = Clock { now, agrees };
        let failed = archive.keep(set, index, keep, clock)?.failed;
        if failed.count == 0 && agrees {
            // It only saves time.
            let _ = std::fs::write(&note, seen);
        }
        Ok(failed)
    }
}
