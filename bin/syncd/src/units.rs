//! What of a set is kept together: each directory of it, and the single files of one directory.

use crate::pace::Pace;
use config::{Config, SyncSet};
use filesync::Path;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use protocol::ServerName;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path as FsPath, PathBuf},
};

/// One directory and what of it is kept alike.
#[derive(Clone)]
pub struct Unit {
    /// As the servers speak of it: set and directory.
    pub name: String,
    /// Of what is there how much a run may remove without being told to, in percent.
    pub delete_limit: u8,
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

    /// The set that it belongs to.
    pub fn set(&self) -> Option<ServerName> {
        self.name.split(':').next()?.parse().ok()
    }

    /// Where what belongs to it is kept.
    pub fn state(&self, state_dir: &FsPath) -> PathBuf {
        let mut name = self.name.replace('%', "%25").replace('/', "%2f");
        // No name of a file is longer.
        if name.len() > 200 {
            let digest = blake3::hash(self.name.as_bytes()).to_hex();
            name = format!("{}-{digest}", name.chars().take(100).collect::<String>());
        }
        state_dir.join("sync").join(name)
    }
}

/// The units of these sets, or what is wrong with them.
pub fn of(config: &Config, wanted: impl Fn(&SyncSet) -> bool) -> Result<Vec<Unit>, String> {
    let mut units = Vec::new();
    let mut roots = BTreeMap::new();
    for set in &config.sets {
        let (excludes, pace) = (excludes(set)?, Pace::of(set.rate));
        let mut files: BTreeMap<PathBuf, BTreeSet<Vec<u8>>> = BTreeMap::new();
        let mut directories = Vec::new();
        for path in &set.paths {
            let kind = std::fs::symlink_metadata(path);
            match (kind, path.parent(), path.file_name()) {
                (Ok(m), ..) if m.is_dir() => directories.push(path.clone()),
                (Ok(_), Some(parent), Some(name)) => {
                    let names = files.entry(parent.to_owned()).or_default();
                    names.insert(name.as_bytes().to_vec());
                }
                (Ok(_), ..) => return Err(format!("{}: no name", path.display())),
                (Err(e), ..) => {
                    return Err(format!(
                        "set {}: {}: {e}; if it shall be there, make it, empty (mkdir or touch): what is missing \
                         might only not be mounted",
                        set.name,
                        path.display()
                    ));
                }
            }
        }
        let directories = directories.into_iter().map(|root| (root, None));
        let files = files.into_iter().map(|(root, only)| (root, Some(only)));
        for (root, only) in directories.chain(files) {
            if let Some(other) = roots.insert(root.clone(), &set.name) {
                return Err(format!(
                    "{} belongs to the sets {other} and {}; put what is in it into one set",
                    root.display(),
                    set.name
                ));
            }
            if wanted(set) {
                units.push(Unit {
                    name: format!("{}:{}", set.name, root.display()),
                    delete_limit: set.delete_limit,
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
