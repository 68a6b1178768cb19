//! What of a set is kept together: each directory of it, and the single files of one directory.

use crate::{
    pace::Pace,
    places::{Place, Places},
};
use config::{Config, SyncSet};
use daemon::Args;
use filesync::{Path, guard::Limit};
use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};
use protocol::ServerName;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::Metadata,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path as FsPath, PathBuf},
    time::Duration,
};
use store::LeftOut;

/// So few removals are never too many.
const FEW: u64 = 20;

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
    /// Why nothing may be done with it now.
    pub fault: Option<String>,
    /// These files of it only.
    only: Option<BTreeSet<Vec<u8>>>,
    excludes: Gitignore,
    perishable: Gitignore,
    /// The servers that keep it alike.
    pub members: Vec<ServerName>,
    /// The patterns, in one number.
    patterns: u64,
    /// Directories of standin's own in it, and their names.
    own: Vec<(Path, PathBuf)>,
}

impl LeftOut for Unit {
    fn excludes(&self, path: &Path, directory: bool) -> bool {
        self.excludes(path, directory)
    }

    fn perishes(&self, path: &Path, directory: bool) -> bool {
        let path = FsPath::new(OsStr::from_bytes(path.as_bytes()));
        self.perishable.matched(path, directory).is_ignore()
    }
}

impl Unit {
    /// Whether this path below the root is left out.
    pub fn excludes(&self, path: &Path, directory: bool) -> bool {
        if let Some(only) = &self.only {
            return !only.contains(path.as_bytes());
        }
        if self.own_directory(path).is_some() {
            return true;
        }
        let path = FsPath::new(OsStr::from_bytes(path.as_bytes()));
        self.excludes.matched(path, directory).is_ignore()
    }

    /// Names what is left out.
    pub fn rules(&self) -> u64 {
        number(&format!(
            "{:x} {:?} {:?}",
            self.patterns, self.only, self.own
        ))
    }

    /// The state-dir or the run-dir, if a path is that or in it: they are this server's alone.
    pub fn own_directory(&self, path: &Path) -> Option<&FsPath> {
        let mut own = self.own.iter();
        let found = own.find(|(own, _)| path == own || path.is_below(own));
        found.map(|(_, name)| name.as_path())
    }

    /// Those that are left out.
    pub fn own_directories(&self) -> impl Iterator<Item = &FsPath> {
        self.own.iter().map(|(_, name)| name.as_path())
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
        self.set_name().parse().ok()
    }

    /// The same as it is written.
    pub fn set_name(&self) -> &str {
        self.name.split(':').next().unwrap_or_default()
    }

    /// Nothing need be there: single files come and go.
    pub fn may_be_empty(&self) -> bool {
        self.only.is_some()
    }

    fn with(
        &self,
        name: String,
        root: &FsPath,
        only: Option<BTreeSet<Vec<u8>>>,
        fault: Option<String>,
    ) -> Self {
        Self {
            name,
            root: root.to_owned(),
            only,
            fault: self.fault.clone().or(fault),
            ..self.clone()
        }
    }

    /// Whether it has no file of another unit with the same directory: account files have a stage of their own.
    fn is_apart(&self, other: &Self) -> bool {
        let (accounts, rest) = match self.accounts {
            true => (self, other),
            false => (other, self),
        };
        let left_out = |name: &[u8]| {
            let path = Path::try_from(name.to_vec());
            path.is_ok_and(|path| rest.excludes(&path, false))
        };
        self.accounts != other.accounts && accounts.names().all(left_out)
    }

    /// Whether a directory in it is no part of it.
    fn leaves_out(&self, directory: &FsPath) -> bool {
        let path = Path::try_from(directory.as_os_str().as_bytes().to_vec());
        path.is_ok_and(|path| {
            self.own_directory(&path).is_some() || self.excluded_by(&path, true).is_some()
        })
    }

    /// Where what belongs to it is kept.
    pub fn state(&self, state_dir: &FsPath) -> PathBuf {
        state_of(&self.name, state_dir)
    }

    /// Where it is noted how its index was left; see [`store::Index::open`].
    pub fn note(&self, run_dir: &FsPath) -> PathBuf {
        run_dir.join("sync").join(file_of(&self.name))
    }

    /// How much of what is there a run may remove, or take for edits, without being told to.
    pub fn limit(&self) -> Limit {
        Limit {
            percent: self.delete_limit,
            least: FEW,
        }
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
        self.set_name() == set.name.as_str()
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
    state_dir.join("sync").join(file_of(name))
}

fn file_of(name: &str) -> String {
    let mut file = name.replace('%', "%25").replace('/', "%2f");
    // No name of a file is longer.
    if file.len() > 200 {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        file = format!("{}-{digest}", file.chars().take(100).collect::<String>());
    }
    file
}

/// The units of these sets. A path that is missing is taken for what it was, as what is kept of it tells; what is wrong
/// with a unit keeps no other one up.
pub fn of(config: &Config, args: &Args, wanted: impl Fn(&SyncSet) -> bool) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for set in &config.sets {
        let patterns = patterns(set, &set.excludes);
        // They were read among the others.
        let perishable = self::patterns(set, &set.perishable);
        let members = config.servers.iter().filter(|server| !server.witness);
        let template = Unit {
            name: String::new(),
            members: members.map(|server| server.name.clone()).collect(),
            patterns: number(&format!("{:?}", set.excludes)),
            delete_limit: set.delete_limit,
            max_skew: config.time.max_skew,
            keep: set.keep.map(kept),
            accounts: set.merge_accounts,
            root: PathBuf::new(),
            pace: Pace::of(set.rate),
            fault: patterns.as_ref().err().cloned(),
            only: None,
            excludes: patterns.unwrap_or_else(|_| Gitignore::empty()),
            perishable: perishable.unwrap_or_else(|_| Gitignore::empty()),
            own: Vec::new(),
        };
        units.extend(of_set(set, &template, &args.state_dir));
    }
    let places = Places::default();
    let found: Vec<_> = units.iter().map(|unit| places.find(&unit.root)).collect();
    own(&mut units, &found, &places, args);
    part(&mut units, &found, &places);
    let of_wanted = |unit: &Unit| config.sets.iter().any(|set| unit.is_of(set) && wanted(set));
    units.retain(of_wanted);
    units
}

/// Leaves out what is standin's own on this server; nothing in it can be kept alike.
fn own(units: &mut [Unit], found: &[Place], places: &Places, args: &Args) {
    for name in [&args.state_dir, &args.run_dir] {
        let own = places.find(name);
        for (unit, place) in units.iter_mut().zip(found) {
            if places.beneath(&own, place).is_some() {
                let why = format!(
                    "set {}: {} is in {}, which is standin's own and differs on each server; take it out of the set, \
                     or keep that elsewhere (--state-dir, --run-dir)",
                    unit.set_name(),
                    unit.root.display(),
                    name.display()
                );
                unit.fault.get_or_insert(why);
            } else if let Some(inner) = places.beneath(place, &own)
                && unit.only.is_none()
                && let Ok(inner) = Path::try_from(inner.into_os_string().into_vec())
            {
                unit.own.push((inner, name.clone()));
            }
        }
    }
}

/// No file belongs to two of them, whatever the names of their directories.
fn part(units: &mut [Unit], found: &[Place], places: &Places) {
    for (i, place) in found.iter().enumerate() {
        for (j, other) in found.iter().enumerate().filter(|(j, _)| *j != i) {
            let (Some(outer), Some(inner)) = (units.get(i), units.get(j)) else {
                continue;
            };
            let Some(beneath) = places.beneath(place, other) else {
                continue;
            };
            let (root, set) = (inner.root.display(), inner.set_name());
            let (outer_root, outer_set) = (outer.root.display(), outer.set_name());
            if beneath.as_os_str().is_empty() {
                let why = format!(
                    "{root} belongs to the sets {outer_set} and {set}; put what is in it into one set"
                );
                if i < j && !outer.is_apart(inner) {
                    units[j].fault.get_or_insert(why);
                }
            } else if outer.only.is_none() && !outer.leaves_out(&beneath) {
                let by_another_name = match inner.root.starts_with(&outer.root) {
                    true => String::new(),
                    false => format!(", which is {},", other.path.display()),
                };
                let why = format!(
                    "set {set}: {root}{by_another_name} is in {outer_root} of set {outer_set}, and no file can be kept \
                     alike by two; leave it out there: exclude = [\"/{}\"], or take it out of one of them",
                    beneath.display()
                );
                for unit in [i, j] {
                    units[unit].fault.get_or_insert(why.clone());
                }
            }
        }
    }
}

fn of_set(set: &SyncSet, template: &Unit, state_dir: &FsPath) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut files: BTreeMap<&FsPath, (BTreeSet<Vec<u8>>, Option<String>)> = BTreeMap::new();
    let name = |root: &FsPath| format!("{}:{}", set.name, root.display());
    for path in &set.paths {
        let known = |root: &FsPath| state_of(&name(root), state_dir).is_dir();
        let (is_directory, fault) = match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() && set.merge_accounts => {
                let why = "is a directory, and an account file is to be merged";
                (true, Some(format!("{} {why}", path.display())))
            }
            Ok(found) => match led_to(path, &found) {
                Some(directory) => {
                    let why = format!(
                        "set {}: {} is a symbolic link to the directory {}, and what is in that would not be kept alike; \
                         give the directory itself: path = [{:?}]",
                        set.name,
                        path.display(),
                        directory.display(),
                        directory
                    );
                    (true, Some(why))
                }
                None => (found.is_dir(), None),
            },
            Err(e) => {
                let is_directory = known(path);
                // A single file may be removed, unless nothing is known of it, or nobody could log in without it.
                let gone = e.kind() == std::io::ErrorKind::NotFound
                    && !is_directory
                    && !set.merge_accounts
                    && path
                        .parent()
                        .is_some_and(|parent| known(parent) && parent.is_dir());
                let remedy = "if it shall be there, make it, empty (mkdir or touch): what is missing might only not be \
                              mounted";
                let why = format!("set {}: {}: {e}; {remedy}", set.name, path.display());
                (is_directory, (!gone).then_some(why))
            }
        };
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(file)) if !is_directory => {
                let (names, doubt) = files.entry(parent).or_default();
                names.insert(file.as_bytes().to_vec());
                *doubt = doubt.take().or(fault);
            }
            _ => units.push(template.with(name(path), path, None, fault)),
        }
    }
    let files = files.into_iter();
    units.extend(
        files.map(|(root, (only, fault))| template.with(name(root), root, Some(only), fault)),
    );
    units
}

fn number(text: &str) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(number)
}

/// The directory that a symbolic link leads to.
fn led_to(path: &FsPath, found: &Metadata) -> Option<PathBuf> {
    let target = found.is_symlink().then(|| path.canonicalize().ok())??;
    target.is_dir().then_some(target)
}

fn kept(keep: config::Keep) -> store::Keep {
    match keep {
        config::Keep::Versions(most) => store::Keep::Versions(most),
        config::Keep::For(span) => store::Keep::For(span),
    }
}

fn patterns(set: &SyncSet, lines: &[String]) -> Result<Gitignore, String> {
    let mut builder = GitignoreBuilder::new("");
    for line in lines {
        builder
            .add_line(None, line)
            .map_err(|e| format!("set {}: exclude \"{}\": {e}", set.name, line.escape_debug()))?;
    }
    builder
        .build()
        .map_err(|e| format!("set {}: exclude: {e}", set.name))
}
