//! What can go wrong before the addresses are under guard. Later troubles are [`Event::Failed`](crate::Event).

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Why the takeover cannot start.
#[derive(Debug)]
pub enum Error {
    /// A file could not be used.
    File {
        /// What was tried: read, open, create.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a socket, a timer or a thread.
    Kernel {
        /// What was asked for, and what mends it.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Addresses left over from an earlier life could not be listed or removed.
    LeftOver(String),
    /// The kernel's gate cannot be had: the next weaker one can.
    Gate(String),
    /// The worker ended before it was ready.
    Worker,
}

impl Error {
    pub(crate) fn file(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            what,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { what, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { what, path, source } => {
                write!(f, "cannot {what} {}: {source}", path.display())
            }
            Self::Kernel { what, source } => write!(f, "cannot open {what}: {source}"),
            Self::LeftOver(what) => write!(f, "cannot remove left-over addresses: {what}"),
            Self::Gate(why) => write!(f, "the kernel's gate cannot be had: {why}"),
            Self::Worker => f.write_str("the thread that guards the addresses did not start"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } | Self::Kernel { source, .. } => Some(source),
            Self::LeftOver(_) | Self::Gate(_) | Self::Worker => None,
        }
    }
}
