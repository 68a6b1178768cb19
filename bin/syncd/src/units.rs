//! What of a set is kept together: each directory of it, and the single files of one directory.

use crate::pace::Pace;
use config::{Config, SyncSet};
use filesync::Path;
use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};
use protocol::ServerName;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path as FsPath, PathBuf},
    time::Duration,
};

/// One directory and what of it is kept alike.
#[derive(Clone)]
pub struct Unit {
    /// As the servers speak of it: set and directory.
    pub name: String,
    /// Of what is there how much a run may remove without being told to, in percent.
    pub delete_limit: u8,
    /// What clocks may differ by while modification times decide: the same on all servers.
    pub max_skew: Duration,
    /// Which former versions are kept.
    pub keep: Option<store::Keep>,
    /// It is of account files, merged record by record.
    pub accounts: bool,
    /// The directory.
    pub root: PathBuf,
    /// How fast its contents go; one for all units of the set.
    pub pace: Pace,
    /// These files of it only.
    only: Option<BTreeSet<Vec<u8>>>,
    excludes: Gitignore,
}

impl Unit {
    /// Whether this path below the root is left out.
    pub fn excludes(&self, path: &Path, directory: bool) -> bool {
        if let Some(only) = &self.only {
            return !only.contains(path.as_bytes());
        }
        let path = FsPath::new(OsStr::from_bytes(path.as_bytes()));
        self.excludes.matched(path, directory).is_ignore()
    }

    /// What standin has in its directory.
    pub fn own(&self) -> store::Own {
        match self.accounts {
            true => store::Own::ACCOUNTS,
            false => store::Own::FILES,
        }
    }

    /// The files, if it is of single ones.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.only.iter().flatten().map(Vec::as_slice)
    }

    /// The set that it belongs to.
    pub fn set(&self) -> Option<ServerName> {
        self.name.split(':').next()?.parse().ok()
    }

    /// Where what belongs to it is kept.
    pub fn state(&self, state_dir: &FsPath) -> PathBuf {
        state_of(&self.name, state_dir)
    }

    /// Where in it a path is, what is excluded, too; `Some(None)`: it is its directory.
    pub fn inner(&self, path: &FsPath) -> Option<Option<Path>> {
        let inner = path.strip_prefix(&self.root).ok()?.as_os_str().as_bytes();
        if inner.is_empty() {
            return self.only.is_none().then_some(None);
        }
        let inner = Path::try_from(inner.to_vec()).ok()?;
        let named = |only: &BTreeSet<Vec<u8>>| only.contains(inner.as_bytes());
        self.only.as_ref().is_none_or(named).then_some(Some(inner))
    }

    /// Whether it is one of this set's.
    pub fn is_of(&self, set: &SyncSet) -> bool {
        let (name, _) = self.name.split_once(':').unwrap_or_default();
        name == set.name.as_str()
    }

    /// The pattern that a path, or a directory above it, is left out by.
    pub fn excluded_by(&self, path: &Path, directory: bool) -> Option<(Path, String)> {
        let above = std::iter::successors(path.parent(), Path::parent);
        let mut all: Vec<_> = above.map(|p| (p, true)).collect();
        all.reverse();
        all.push((path.clone(), directory));
        all.into_iter().find_map(|(path, directory)| {
            let shown = FsPath::new(OsStr::from_bytes(path.as_bytes()));
            match self.excludes.matched(shown, directory) {
                Match::Ignore(glob) => Some((path.clone(), glob.original().to_owned())),
                Match::None | Match::Whitelist(_) => None,
            }
        })
    }
}

fn state_of(name: &str, state_dir: &FsPath) -> PathBuf {
    let mut file = name.replace('%', "%25").replace('/', "%2f");
    // No name of a file is longer.
    if file.len() > 200 {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        file = format!("{}-{digest}", file.chars().take(100).collect::<String>());
    }
    state_dir.join("sync").join(file)
}

/// The units of these sets, or what is wrong with them.
pub fn of(config: &Config, wanted: impl Fn(&SyncSet) -> bool) -> Result<Vec<Unit>, String> {
    units(config, wanted, |set, path, e| {
        Err(format!(
            "set {}: {}: {e}; if it shall be there, make it, empty (mkdir or touch): what is missing might only not \
             be mounted",
            set.name,
            path.display()
        ))
    })
}

/// The same where something is missing: it is taken for the directory that it was, as what is kept of it tells, or else
/// for a file.
pub fn former(config: &Config, state_dir: &FsPath) -> Result<Vec<Unit>, String> {
    units(
        config,
        |_| true,
        |set, path, _| {
            let name = format!("{}:{}", set.name, path.display());
            Ok(state_of(&name, state_dir).is_dir())
        },
    )
}

fn units(
    config: &Config,
    wanted: impl Fn(&SyncSet) -> bool,
    missing: impl Fn(&SyncSet, &FsPath, std::io::Error) -> Result<bool, String>,
) -> Result<Vec<Unit>, String> {
    let mut units = Vec::new();
    let mut roots = BTreeMap::<_, Vec<_>>::new();
    for set in &config.sets {
        let (excludes, pace) = (excludes(set)?, Pace::of(set.rate));
        let mut files: BTreeMap<PathBuf, BTreeSet<Vec<u8>>> = BTreeMap::new();
        let mut directories = Vec::new();
        for path in &set.paths {
            let is_directory = match std::fs::symlink_metadata(path) {
                Ok(found) => found.is_dir(),
                Err(e) => missing(set, path, e)?,
            };
            match (is_directory, path.parent(), path.file_name()) {
                (true, ..) if set.merge_accounts => {
                    return Err(format!(
                        "set {}: {} is a directory, and an account file is to be merged",
                        set.name,
                        path.display()
                    ));
                }
                (true, ..) => directories.push(path.clone()),
                (false, Some(parent), Some(name)) => {
                    let names = files.entry(parent.to_owned()).or_default();
                    names.insert(name.as_bytes().to_vec());
                }
                (false, ..) => return Err(format!("{}: no name", path.display())),
            }
        }
        let directories = directories.into_iter().map(|root| (root, None));
        let files = files.into_iter().map(|(root, only)| (root, Some(only)));
        for (root, only) in directories.chain(files) {
            let there: &mut Vec<(Option<BTreeSet<_>>, bool, _)> =
                roots.entry(root.clone()).or_default();
            // Account files have a stage of their own beside other files.
            let apart = |(names, accounts, _): &(Option<BTreeSet<_>>, bool, _)| match (names, &only)
            {
                (Some(names), Some(only)) => {
                    *accounts != set.merge_accounts && names.is_disjoint(only)
                }
                _ => false,
            };
            let other = there.iter().find(|other| !apart(other));
            if let Some((_, _, other)) = other {
                return Err(format!(
                    "{} belongs to the sets {other} and {}; put what is in it into one set",
                    root.display(),
                    set.name
                ));
            }
            there.push((only.clone(), set.merge_accounts, &set.name));
            if wanted(set) {
                units.push(Unit {
                    name: format!("{}:{}", set.name, root.display()),
                    delete_limit: set.delete_limit,
                    max_skew: config.time.max_skew,
                    keep: set.keep.map(kept),
                    accounts: set.merge_accounts,
                    root,
                    pace: pace.clone(),
                    only,
                    excludes: excludes.clone(),
                });
            }
        }
    }
    Ok(units)
}

fn kept(keep: config::Keep) -> store::Keep {
    match keep {
        config::Keep::Versions(most) => store::Keep::Versions(most),
        config::Keep::For(span) => store::Keep::For(span),
    }
}

fn excludes(set: &SyncSet) -> Result<Gitignore, String> {
    let mut builder = GitignoreBuilder::new("");
    for line in &set.excludes {
        builder
            .add_line(None, line)
            .map_err(|e| format!("set {}: exclude \"{}\": {e}", set.name, line.escape_debug()))?;
    }
    builder
        .build()
        .map_err(|e| format!("set {}: exclude: {e}", set.name))
}
