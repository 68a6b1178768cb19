//! `syncd restore`: former versions listed, and put back as a change of this server, which the others then take.

use crate::{
    accounts,
    replica::{Allowed, BUSY, Local},
    units::{self, Unit},
    when,
};
use clap::{Arg, ArgAction, ArgMatches, Command};
use config::Config;
use daemon::{Args, eprintln, machine, println};
use filesync::{Entry, Kind, Node, Operation, Path, Source};
use protocol::{ServerName, owner::Present};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::{Component, Path as FsPath, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use store::{Archive, Aside, Contents, Filling, Kept};

/// So long a run that is at work is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many of what is kept aside are looked through.
const ASIDE_MAX: usize = 100_000;

pub fn command() -> Command {
    let value = |id: &'static str, name: &'static str, help: &'static str| {
        Arg::new(id).long(id).value_name(name).help(help)
    };
    Command::new("restore")
        .about("Put a former version of a file or directory back")
        .args([
            Arg::new("path")
                .value_name("PATH")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf))
                .help("As it is or was on this server"),
            Arg::new("list")
                .long("list")
                .action(ArgAction::SetTrue)
                .help("List its former versions, and do nothing"),
            value(
                "at",
                "TIME",
                "As it was then: \"2026-11-25 14:00\", or \"2h\" ago",
            )
            .conflicts_with("list"),
            value("id", "ID", "This version, as --list names it")
                .conflicts_with_all(["list", "at"]),
            value(
                "to",
                "FILE",
                "Write it to this new file, and leave PATH as it is",
            )
            .value_parser(clap::value_parser!(PathBuf))
            .conflicts_with("list"),
        ])
}

pub fn run(matches: &ArgMatches, args: &Args, config: &Config, me: &ServerName) -> ExitCode {
    let text = |id: &str| matches.get_one::<String>(id).map(String::as_str);
    let path = matches
        .get_one::<PathBuf>("path")
        .cloned()
        .unwrap_or_default();
    let now = daemon::real_now_ns();
    let wanted = match (text("at"), text("id")) {
        (Some(at), _) => match when::parse(at, now) {
            Ok(at) => Wanted::At(at),
            Err(why) => {
                eprintln!("syncd: --at: {why}");
                return ExitCode::from(2);
            }
        },
        (None, Some(id)) => Wanted::Version(id.to_owned()),
        (None, None) => Wanted::Last,
    };
    let done = place(config, args, &path).and_then(|(unit, path)| {
        let restore = Restore {
            here: machine::present(config, me),
            args,
            unit,
            wanted,
        };
        let one = || {
            path.clone()
                .ok_or("it is the directory of a set: name a file in it")
        };
        match (matches.get_flag("list"), matches.get_one::<PathBuf>("to")) {
            (true, _) => restore.list(&one()?),
            (false, Some(to)) => restore.export(&one()?, to),
            (false, None) => restore.put_back(path.as_ref()),
        }
    });
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("syncd: {why}");
            ExitCode::FAILURE
        }
    }
}

/// An absolute path as it is written, no link followed: what it names may be gone.
pub fn plain(path: &FsPath) -> Result<PathBuf, String> {
    let absolute = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    match absolute.components().any(|c| c == Component::ParentDir) {
        true => Err(format!("{}: write it without ..", path.display())),
        false => Ok(absolute.components().collect()),
    }
}

/// The unit that a path belongs to.
fn place(config: &Config, args: &Args, path: &FsPath) -> Result<(Unit, Option<Path>), String> {
    let path = plain(path)?;
    let units = units::of(config, args, |_| true);
    let place = units.into_iter().find_map(|unit| {
        let inner = unit.inner(&path)?;
        Some((unit, inner))
    });
    place.ok_or_else(|| {
        format!(
            "{} is in no set; `standin sync why` tells more",
            path.display()
        )
    })
}

/// Which version.
enum Wanted {
    /// The last one that is not what is there.
    Last,
    At(u64),
    Version(String),
}

/// One former version.
struct Former {
    at: u64,
    node: Option<Node>,
    /// By which what is kept aside is asked for.
    aside: Option<String>,
    why: String,
    /// The path was a further name of the file there.
    name_of: Option<Path>,
}

impl Former {
    /// Whether it is all that there is to it, and not whose further name it is.
    fn is_whole(&self) -> bool {
        let node = self.node.as_ref();
        node.is_some_and(|node| !matches!(node.kind, Kind::HardLink { .. }))
    }

    /// What people name it by.
    fn id(&self) -> String {
        let what = format!("{} {:?}", self.at, self.node);
        blake3::hash(what.as_bytes())
            .to_hex()
            .chars()
            .take(8)
            .collect()
    }

    fn line(&self) -> String {
        let (id, at) = (self.id(), when::show(self.at));
        let Some(node) = &self.node else {
            return format!("{at}  {id}  removed, {}", self.why);
        };
        let what = kind(&node.kind);
        let Node { mode, uid, gid, .. } = node;
        format!("{at}  {id}  {mode:04o} {uid}:{gid}  {what}, {}", self.why)
    }
}

/// What it is, for people.
pub fn kind(kind: &Kind) -> String {
    match kind {
        Kind::File { size, .. } => format!("file of {size} bytes"),
        Kind::Directory => "directory".into(),
        Kind::Symlink { target } => format!("link to {}", target.escape_ascii()),
        Kind::HardLink { to } => format!("further name of {to}"),
        Kind::Fifo => "pipe".into(),
        Kind::Device { .. } => "device".into(),
    }
}

/// What is kept of a unit.
struct Chest<'a> {
    archive: Option<&'a Archive>,
    aside: Option<&'a Aside>,
    lost: Vec<(String, Kept)>,
}

impl<'a> Chest<'a> {
    fn new(archive: Option<&'a Archive>, aside: Option<&'a Aside>) -> Result<Self, String> {
        let lost = aside.map(|a| a.list(ASIDE_MAX)).transpose();
        let lost = lost.map_err(|e| e.to_string())?.unwrap_or_default();
        Ok(Self {
            archive,
            aside,
            lost,
        })
    }

    /// The versions of a path, the oldest first.
    fn of(&self, path: &Path) -> Result<Vec<Former>, String> {
        let versions = self.archive.map(|a| a.of(path)).transpose();
        let versions = versions.map_err(|e| e.to_string())?.unwrap_or_default();
        let mut all: Vec<_> = versions
            .into_iter()
            .map(|version| Former {
                at: version.at,
                why: format!("by {}", version.entry.rank.replica.server),
                node: version.entry.node,
                aside: None,
                name_of: None,
            })
            .collect();
        for (id, kept) in self.lost.iter().filter(|(_, kept)| kept.path == *path) {
            match all.iter_mut().find(|f| f.node.as_ref() == Some(&kept.node)) {
                Some(known) => known.why += &format!(", {}", kept.why),
                None => {
                    let since = u64::try_from(kept.node.mtime).unwrap_or(kept.at);
                    all.push(Former {
                        at: since.min(kept.at),
                        node: Some(kept.node.clone()),
                        aside: Some(id.clone()),
                        why: kept.why.clone(),
                        name_of: None,
                    });
                }
            }
        }
        all.sort_by_key(|former| former.at);
        Ok(all)
    }

    /// The same of the file that a path is or was a name of: a further name has that file's versions.
    fn of_file(&self, path: &Path) -> Result<Vec<Former>, String> {
        let mut all = Vec::new();
        let mut names = self.of(path)?.into_iter().peekable();
        while let Some(former) = names.next() {
            let Some(Kind::HardLink { to }) = former.node.as_ref().map(|n| &n.kind) else {
                all.push(former);
                continue;
            };
            let (first, until) = (to.clone(), names.peek().map_or(u64::MAX, |next| next.at));
            let mut file = self.of(&first)?;
            file.retain(|f| f.at < until && f.is_whole());
            let before = file.iter().rposition(|f| f.at <= former.at);
            // What it was when this became its name, too.
            let Some(before) = before else {
                all.push(former);
                continue;
            };
            all.extend(file.drain(before..).map(|version| Former {
                at: version.at.max(former.at),
                why: format!("{}, as a name of {first}", version.why),
                name_of: Some(first.clone()),
                ..version
            }));
        }
        Ok(all)
    }

    /// All paths in a directory, or in the set.
    fn below(&self, path: Option<&Path>) -> Result<BTreeSet<Path>, String> {
        let kept = self.archive.map(|a| a.below(path)).transpose();
        let kept = kept.map_err(|e| e.to_string())?.unwrap_or_default();
        let is_below = |p: &Path| path.is_none_or(|path| p.is_below(path));
        let lost = self.lost.iter().map(|(_, kept)| kept.path.clone());
        Ok(kept.into_iter().chain(lost.filter(is_below)).collect())
    }
}

/// Contents of versions, for whoever writes them.
struct Bytes<'a> {
    kept: &'a Chest<'a>,
    aside: BTreeMap<Path, String>,
}

impl Contents for Bytes<'_> {
    fn bring(&mut self, path: &Path, node: &Node, into: &mut Filling<'_>) -> io::Result<()> {
        let Kind::File { digest, .. } = &node.kind else {
            return Ok(());
        };
        if let (Some(id), Some(aside)) = (self.aside.get(path), self.kept.aside) {
            match aside.contents(id) {
                Ok(mut contents) => return io::copy(&mut contents, into).map(drop),
                // It gave way to one with the same contents, and these have been replaced since.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let piece = |bytes: &[u8]| into.write_all(bytes);
        let read = self.kept.archive.map(|a| a.read(digest, piece)).transpose();
        match read.map_err(io::Error::other)? {
            Some(true) => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "its contents were not kept",
            )),
        }
    }
}

struct Restore<'a> {
    here: Present,
    args: &'a Args,
    unit: Unit,
    wanted: Wanted,
}

impl Restore<'_> {
    /// The one that is wanted; `now` is there.
    fn choose(&self, path: &Path, all: Vec<Former>, now: Option<&Node>) -> Result<Former, String> {
        let none = |why: &str| format!("{path}: {why}; `--list` tells what there is");
        let oldest = all.first().map(|f| when::show(f.at));
        match &self.wanted {
            Wanted::Version(id) => {
                let mut named = all.into_iter().filter(|f| f.id().starts_with(id.as_str()));
                let first = named
                    .next()
                    .ok_or_else(|| none(&format!("no version {id}")))?;
                match named.next() {
                    Some(_) => Err(none(&format!(
                        "{id} begins the names of more than one version"
                    ))),
                    None => Ok(first),
                }
            }
            Wanted::At(at) => {
                let then = all.into_iter().rfind(|f| f.at <= *at);
                match (then, oldest) {
                    (Some(then), _) => Ok(then),
                    (None, Some(oldest)) => {
                        Err(none(&format!("the oldest version is of {oldest}")))
                    }
                    (None, None) => Err(none("no former version is kept")),
                }
            }
            Wanted::Last => {
                let former = |f: &Former| f.node.is_some() && f.node.as_ref() != now;
                let last = all.into_iter().rfind(former);
                last.ok_or_else(|| none("no former version is kept"))
            }
        }
    }

    /// What is kept, without a look at the directory, which may be gone.
    fn with_kept<T>(&self, ask: impl FnOnce(&Chest<'_>) -> Result<T, String>) -> Result<T, String> {
        let state = self.unit.state(&self.args.state_dir);
        let file = state.join("kept");
        let open = || file.exists().then(|| Archive::open(&file)).transpose();
        let archive = patiently(|| open().map_err(|e| (e.is_busy(), e.to_string())))?;
        let aside = match Aside::read(&state.join("aside")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|e| e.to_string())?),
        };
        ask(&Chest::new(archive.as_ref(), aside.as_ref())?)
    }

    fn list(&self, path: &Path) -> Result<String, String> {
        let all = self.with_kept(|kept| kept.of_file(path))?;
        if all.is_empty() {
            let mend = match self.unit.keep {
                Some(_) => "it was never seen by a run",
                None => "its set has no keep in the configuration",
            };
            return Err(format!("no former version of {path} is kept: {mend}"));
        }
        Ok(all.iter().map(Former::line).collect::<Vec<_>>().join("\n"))
    }

    fn export(&self, path: &Path, to: &FsPath) -> Result<String, String> {
        self.with_kept(|kept| {
            let all = kept.of_file(path)?;
            // What was seen last is what is there.
            let now = all.last().and_then(|f| f.node.clone());
            let former = whole(self.choose(path, all, now.as_ref())?)?;
            let at = former.at;
            let Some(node) = &former.node else {
                return Err(format!("{path} was not there at that time"));
            };
            if node.is_directory() {
                return Err(format!("{path} was a directory: name a file in it"));
            }
            let aside = former.aside.iter().map(|id| (path.clone(), id.clone()));
            let mut bytes = Bytes {
                kept,
                aside: aside.collect(),
            };
            store::export(to, path, node, &mut bytes).map_err(|e| e.to_string())?;
            Ok(format!("{} is {path} of {}", to.display(), when::show(at)))
        })
    }

    fn put_back(&self, path: Option<&Path>) -> Result<String, String> {
        // A single file that is gone is no directory that might not be mounted.
        let allowed = Allowed {
            deletes: self.unit.names().next().is_some(),
            ..Allowed::default()
        };
        let open = || Local::open(self.unit.clone(), &self.here, self.args, allowed);
        let local = patiently(|| open().map_err(|e| (e == BUSY, e)))?;
        let told = |e: store::Error| e.to_string();
        let unkept = local.keep().map_err(told)?;
        if let Some((path, why)) = unkept.first.first() {
            return Err(format!(
                "what is there now could not be kept: {path}: {why}"
            ));
        }
        let archive = local.versions.archive().map_err(told)?;
        let kept = Chest::new(archive, Some(&local.set.aside))?;
        let (nodes, aside) = self.nodes(&local, &kept, path)?;
        let count = nodes.len();
        let operations = operations(&local, &kept, nodes)?;
        if operations.is_empty() {
            return Ok("all is as it was: nothing to do".into());
        }
        let locks = accounts::lock(&local.unit)?;
        let mut bytes = Bytes { kept: &kept, aside };
        let now = daemon::real_now_ns();
        let applied = store::apply(&local.set, &local.index, operations, &mut bytes, now);
        drop(locks);
        let applied = applied.map_err(told)?;
        accounts::note(&local)?;
        local.keep().map_err(told)?;
        let left = applied.failed.first.iter().chain(&applied.put_off.first);
        let left: Vec<_> = left.map(|(path, why)| format!("{path}: {why}")).collect();
        match left.is_empty() {
            true => Ok(format!(
                "{} of {count} put back; the next run makes it so on the other servers",
                applied.done
            )),
            false => Err(format!("not put back: {}", left.join("; "))),
        }
    }

    /// What shall be there: the path itself, and what was in it if it was a directory.
    fn nodes(&self, local: &Local, kept: &Chest<'_>, path: Option<&Path>) -> Result<Nodes, String> {
        let there = |path: &Path| -> Result<Option<Node>, String> {
            let row = local.index.row(path).map_err(|e| e.to_string())?;
            Ok(row.and_then(|row| row.entry.node))
        };
        let mut chosen = Vec::new();
        if let Some(path) = path {
            let (mut now, all) = (there(path)?, kept.of_file(path)?);
            let directory = |node: &Node| node.is_directory();
            let was_directory = all.iter().any(|f| f.node.as_ref().is_some_and(directory));
            if !was_directory || !now.as_ref().is_none_or(directory) {
                let first = match now.as_ref().map(|n| &n.kind) {
                    Some(Kind::HardLink { to }) => Some(to.clone()),
                    _ => None,
                };
                if let Some(first) = &first {
                    now = there(first)?;
                }
                let former = whole(self.choose(path, all, now.as_ref())?)?;
                if former.node.is_none() {
                    return Err(format!("{path} was not there at that time"));
                }
                // As long as it is a name of that file, the file is put back with all its names.
                let file = former
                    .name_of
                    .clone()
                    .filter(|of| first.as_ref() == Some(of));
                chosen.push((file.unwrap_or_else(|| path.clone()), former));
            }
        }
        if chosen.is_empty() {
            if matches!(self.wanted, Wanted::Version(_)) {
                return Err("it is a directory: give --at, or name a file in it".into());
            }
            let fits = |f: &Former| match &self.wanted {
                Wanted::At(at) => f.at <= *at,
                _ => f.node.is_some(),
            };
            for path in path.cloned().into_iter().chain(kept.below(path)?) {
                // What is there stays.
                if matches!(self.wanted, Wanted::Last) && there(&path)?.is_some() {
                    continue;
                }
                let former = kept.of(&path)?.into_iter().rfind(fits);
                chosen.extend(former.map(|former| (path, former)));
            }
            let live = chosen.iter().filter(|c| c.1.node.is_some());
            let live: BTreeSet<_> = live.map(|c| c.0.clone()).collect();
            // A further name is a file of its own where that file is not there.
            let single = |path: &Path, former: Former| -> Result<Former, String> {
                match former.node.as_ref().map(|n| &n.kind) {
                    Some(Kind::HardLink { to }) if !live.contains(to) && there(to)?.is_none() => {
                        whole(
                            kept.of_file(path)?
                                .into_iter()
                                .rfind(fits)
                                .unwrap_or(former),
                        )
                    }
                    _ => Ok(former),
                }
            };
            let each = chosen.into_iter();
            let each = each.map(|(path, former)| {
                let former = single(&path, former)?;
                Ok((path, former))
            });
            chosen = each.collect::<Result<_, String>>()?;
        }
        let (mut nodes, mut aside) = Nodes::default();
        for (path, former) in chosen {
            aside.extend(former.aside.map(|id| (path.clone(), id)));
            nodes.extend(former.node.map(|node| (path, node)));
        }
        Ok((nodes, aside))
    }
}

/// The version itself, if it is no further name of a file that is not kept.
fn whole(former: Former) -> Result<Former, String> {
    match former.node.as_ref().map(|n| &n.kind) {
        Some(Kind::HardLink { to }) => {
            Err(format!("{to}, of which it was a further name, is not kept"))
        }
        _ => Ok(former),
    }
}

/// What shall be where, and what of it is kept aside.
type Nodes = (BTreeMap<Path, Node>, BTreeMap<Path, String>);

/// Operations that make it so, each a change of this server; directories that are missing are made.
fn operations(
    local: &Local,
    kept: &Chest<'_>,
    mut nodes: BTreeMap<Path, Node>,
) -> Result<Vec<Operation>, String> {
    let entry = |path: &Path| -> Result<Option<Entry>, String> {
        let row = local.index.row(path).map_err(|e| e.to_string())?;
        Ok(row.map(|row| row.entry))
    };
    for path in nodes.keys().cloned().collect::<Vec<_>>() {
        for above in std::iter::successors(path.parent(), Path::parent) {
            if nodes.contains_key(&above) || entry(&above)?.is_some_and(|e| e.node.is_some()) {
                break;
            }
            let last = kept.of(&above)?.into_iter().filter_map(|f| f.node);
            let last = last.rev().find(Node::is_directory);
            let made = || Node {
                kind: Kind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: 0,
                attributes: BTreeMap::new(),
            };
            nodes.insert(above, last.unwrap_or_else(made));
        }
    }
    let mut author = local.author().map_err(|e| e.to_string())?;
    let now = daemon::real_now_ns();
    let mut operations = Vec::new();
    for (path, node) in nodes {
        let was = entry(&path)?;
        let known = was.as_ref().and_then(|w| w.node.as_ref());
        if known.is_some_and(|known| known.is_as(&node)) {
            continue;
        }
        // What only gave way in its owner or mode has no contents of its own.
        let source = match known.is_some_and(|known| known.kind == node.kind) {
            true => Source::Nothing,
            false => Source::Fetch,
        };
        operations.push(Operation {
            // What is in no archive is kept aside.
            keep: local.unit.keep.is_none() && known.is_some_and(|n| !n.is_directory()),
            entry: author.change(was.as_ref(), Some(node), now),
            path,
            was,
            source,
        });
    }
    Ok(operations)
}

/// Tries again while somebody else has it.
fn patiently<T>(mut open: impl FnMut() -> Result<T, (bool, String)>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match open() {
            Err((true, _)) if start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(50))
            }
            Err((true, _)) => return Err(BUSY.into()),
            other => return other.map_err(|(_, why)| why),
        }
    }
}
