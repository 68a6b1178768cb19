//! What goes wrong, and lists of it that do not grow without end.

use filesync::{Path, guard::Doubt};
use protocol::codec::CodecError;
use std::{fmt, io};

/// What went wrong, and where.
#[derive(Debug)]
pub enum Error {
    /// A call to the system, about this path.
    At {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The index cannot be read or written.
    Index(Box<redb::Error>),
    /// A record of the index or of what is kept cannot be read or written.
    Record(CodecError),
    /// A record is of another version of standin.
    Version(Option<u8>),
    /// The root of the set is not what it was.
    Root {
        /// Its path.
        root: String,
        /// How so.
        doubt: Doubt,
    },
}

impl Error {
    /// Another process has the index open.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Index(e) if matches!(**e, redb::Error::DatabaseAlreadyOpen))
    }

    /// What is in the root did not come of what the index knows: there must be a new one.
    pub fn is_new_history(&self) -> bool {
        let new = [Doubt::Replaced, Doubt::Past];
        matches!(self, Self::Root { doubt, .. } if new.contains(doubt))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { what, path, source } => write!(f, "cannot {what} \"{path}\": {source}"),
            Self::Index(e) => write!(f, "index: {e}"),
            Self::Record(e) => write!(f, "record: {e}"),
            Self::Version(Some(v)) => write!(f, "record of unknown version {v}"),
            Self::Version(None) => write!(f, "empty record"),
            Self::Root { root, doubt } => {
                let doubt = match doubt {
                    Doubt::Marker => "does not carry the marker that standin left there",
                    Doubt::Device => "is on another file system than before",
                    Doubt::Empty => "is empty and was not",
                    Doubt::Replaced => "is another directory than before, restored or copied",
                    Doubt::Past => "was set back to an older state",
                };
                write!(f, "\"{root}\" {doubt}: ")?;
                f.write_str(match self.is_new_history() {
                    true => "its history is not known",
                    false => "is it mounted? Nothing is taken for removed",
                })
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::At { source, .. } => Some(source),
            Self::Index(e) => Some(e),
            Self::Record(e) => Some(e),
            Self::Version(_) | Self::Root { .. } => None,
        }
    }
}

macro_rules! of_the_index {
    ($($kind:ident)*) => {
        $(impl From<redb::$kind> for Error {
            fn from(error: redb::$kind) -> Self {
                Self::Index(Box::new(error.into()))
            }
        })*
    };
}

of_the_index!(CommitError DatabaseError StorageError TableError TransactionError);

/// Says what was to be done, and with what.
pub(crate) trait At<T> {
    /// To a result of the system.
    fn at(self, what: &'static str, path: &(impl fmt::Display + ?Sized)) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &(impl fmt::Display + ?Sized)) -> Result<T, Error> {
        self.map_err(|source| {
            let path = path.to_string();
            Error::At { what, path, source }
        })
    }
}

/// How many there are, and the first of them with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// All.
    pub count: u64,
    /// The first [`Listing::MOST`].
    pub first: Vec<(Path, String)>,
}

impl Listing {
    /// So many are named.
    pub const MOST: usize = 100;

    /// With those of another list.
    pub fn join(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(Self::MOST);
    }

    /// One more.
    pub fn add(&mut self, path: &Path, why: impl fmt::Display) {
        self.count += 1;
        if self.first.len() < Self::MOST {
            self.first.push((path.clone(), why.to_string()));
        }
    }
}
