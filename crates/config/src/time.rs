//! How clocks are kept alike, and how alike they must be.

use crate::{MAX_SKEW, MAX_SKEW_RANGE, TimeConfig, raw::Section};
use humantime::format_duration;

/// Who steers this server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeDiscipline {
    /// Whatever time daemon runs; syncd if there is none.
    Auto,
    /// syncd, unless somebody else is seen to steer it.
    Builtin,
    /// Not syncd; it only watches.
    Observe,
}

impl TimeDiscipline {
    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Builtin => "builtin",
            Self::Observe => "observe",
        }
    }
}

pub(crate) fn time(section: Option<Section<'_>>) -> TimeConfig {
    let default = TimeConfig {
        discipline: TimeDiscipline::Auto,
        max_skew: MAX_SKEW,
    };
    let Some(section) = section else {
        return default;
    };
    section.only(&["discipline", "max_skew"]);
    let max_skew = section.duration("max_skew", MAX_SKEW);
    if !MAX_SKEW_RANGE.contains(&max_skew) {
        let (low, high) = (MAX_SKEW_RANGE.start(), MAX_SKEW_RANGE.end());
        let what = format!(
            "{} is out of range; write {} to {}",
            format_duration(max_skew),
            format_duration(*low),
            format_duration(*high)
        );
        section.report("max_skew", what);
    }
    TimeConfig {
        discipline: discipline(&section).unwrap_or(default.discipline),
        max_skew,
    }
}

fn discipline(section: &Section<'_>) -> Option<TimeDiscipline> {
    use TimeDiscipline::{Auto, Builtin, Observe};
    let word = section.text("discipline")?.into_inner();
    let known = [Auto, Builtin, Observe]
        .into_iter()
        .find(|d| d.name() == word);
    if known.is_none() {
        let what = format!("\"{word}\" is none; write \"auto\", \"builtin\" or \"observe\"");
        section.report("discipline", what);
    }
    known
}
