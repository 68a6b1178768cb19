//! What stops a daemon.

use config::ConfigError;
use std::{fmt, io, process::ExitCode};

/// Why a daemon could not start or go on.
#[derive(Debug)]
pub enum Error {
    /// The configuration or the key file is wrong.
    Config(ConfigError),
    /// The system refused something.
    Io {
        /// What was tried, naming path or interface.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Anything else, in words that name the mend.
    Failed(String),
}

impl Error {
    /// An error of the system while `what` was tried.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// The exit code: 2 for a configuration error, else 1.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) => ExitCode::from(2),
            Self::Io { .. } | Self::Failed(_) => ExitCode::from(1),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(e) => e.fmt(f),
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(e) => Some(e),
            Self::Io { source, .. } => Some(source),
            Self::Failed(_) => None,
        }
    }
}

impl From<ConfigError> for Error {
    fn from(e: ConfigError) -> Self {
        Self::Config(e)
    }
}

impl From<String> for Error {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}
