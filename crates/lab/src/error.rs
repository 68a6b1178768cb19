use std::{fmt, io, path::PathBuf, time::Duration};

/// Why the lab could not do something.
#[derive(Debug)]
pub enum Error {
    /// The system does not let this user make namespaces.
    NotPermitted {
        /// What was refused.
        what: String,
    },
    /// A call of the operating system failed.
    System {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A tool is not installed.
    Missing {
        /// Its name.
        tool: String,
    },
    /// A program of standin's own is not where it should be.
    NoBinary {
        /// Its name.
        name: String,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// A command said no.
    Refused {
        /// The command.
        command: String,
        /// What it printed.
        output: String,
    },
    /// Something did not happen in time.
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A check of a scenario failed.
    Wrong(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted { what } => write!(
                f,
                "{what} is not permitted here; run as root, or allow user namespaces (sysctl \
                 kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0, where they \
                 exist); in a container, give it CAP_SYS_ADMIN and an unmasked /proc"
            ),
            Self::System { what, source } => write!(f, "{what}: {source}"),
            Self::Missing { tool } => write!(
                f,
                "the program \"{tool}\" is not installed: run `make deps` as root"
            ),
            Self::NoBinary { name, folders } => {
                let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
                write!(
                    f,
                    "the program \"{name}\" is not in {}: run `cargo build --workspace --bins`, or set STANDIN_BIN_DIR",
                    folders.join(", ")
                )
            }
            Self::Refused { command, output } => write!(f, "`{command}` failed: {}", output.trim()),
            Self::Late { what, limit } => {
                write!(f, "waited {:.1} s in vain: {what}", limit.as_secs_f64())
            }
            Self::Wrong(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Error {
    /// For `map_err`: a failed system call, named.
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }
}
