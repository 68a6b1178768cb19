//! Stores in directories of their own, and what the tests see of them without the crate's help.

use filesync::{
    Author, Conflict, Node, Operation, Path, Planner, Replica, Standing, Terms, guard::Limit,
};
use protocol::owner::{Mac, Machine, Owner, Present};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
    vec,
};
use store::{
    Adopt, Applied, Calls, Contents, Error, Filling, Index, Look, Set, Summary, apply_by, look,
};

/// What a run may take for edits.
pub const LIMIT: Limit = Limit {
    percent: 50,
    least: 20,
};

/// Of whoever goes on with an index that came back.
static INCARNATIONS: AtomicU64 = AtomicU64::new(8);

/// Ten seconds from now: whatever a test has written is old by then, and can be proven.
pub fn later() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap() + 10_000_000_000
}

pub fn path(text: &str) -> Path {
    Path::try_from(text.as_bytes().to_vec()).unwrap()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A set with its index, opened anew for each run as syncd does.
pub struct Store {
    pub name: &'static str,
    pub root: PathBuf,
    pub state: PathBuf,
    /// With a new index it is a newcomer.
    pub joins: bool,
}

/// This server, on the machine with that MAC address.
pub fn present(server: &str, mac: u8) -> Present {
    let macs = BTreeSet::from([Mac([2, 0, 0, 0, 0, mac])]);
    Present {
        owner: Owner {
            cluster: "web".into(),
            server: server.parse().unwrap(),
            machine: Some(Machine {
                machine_id: None,
                dmi_uuid: None,
                macs: macs.clone(),
            }),
        },
        macs,
    }
}

pub struct Open {
    pub set: Set,
    pub index: Index,
    /// Operations with one barrier.
    pub together: usize,
    /// Entries planned at once.
    pub page: usize,
    /// What would be lost is not removed.
    pub strict: bool,
}

impl Store {
    pub fn new(dir: &std::path::Path, name: &'static str) -> Self {
        let (root, state) = (dir.join(name), dir.join(format!("{name}-state")));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&state).unwrap();
        Self {
            name,
            root,
            state,
            joins: false,
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.at(name), contents).unwrap();
    }

    pub fn index(&self, calls: Arc<Calls>) -> Result<Index, Error> {
        let file = self.state.join("index");
        let known = file.exists();
        let replica = || Replica {
            server: self.name.parse().unwrap(),
            incarnation: match known {
                true => INCARNATIONS.fetch_add(1, Ordering::Relaxed),
                false => self.name.bytes().map(u64::from).sum(),
            },
        };
        let note = self.state.join("note");
        Ok(Index::open(&file, &note, &present(self.name, 1), replica, calls)?.index)
    }

    pub fn open_with(&self, calls: Arc<Calls>) -> Result<Open, Error> {
        let mut index = self.index(Arc::clone(&calls))?;
        if !self.joins && index.standing()?.is_newcomer() {
            index.write(|batch| batch.standing(&Standing::default()))?;
        }
        let open = |index: &Index| {
            let calls = Arc::clone(&calls);
            Set::open(&self.root, &self.state, index, Adopt::No, calls)
        };
        let set = match open(&index) {
            Err(e) if e.is_new_history() => {
                index.give_up()?;
                drop(index);
                index = self.index(Arc::clone(&calls))?;
                open(&index)?
            }
            other => other?,
        };
        Ok(Open {
            set,
            index,
            together: 4096,
            page: 7,
            strict: false,
        })
    }

    pub fn open(&self) -> Open {
        self.open_with(Calls::unlimited()).unwrap()
    }

    /// Looks, as a run of its own.
    pub fn look(&self) -> Summary {
        self.open().look().unwrap()
    }

    /// A copy of everything, as a machine that was restored.
    pub fn copy(&self, dir: &std::path::Path) -> Self {
        let copy = Self::new(dir, self.name);
        for (from, to) in [(&self.root, &copy.root), (&self.state, &copy.state)] {
            fs::remove_dir(to).unwrap();
            let done = std::process::Command::new("cp")
                .arg("-a")
                .arg(from)
                .arg(to)
                .status();
            assert!(done.unwrap().success());
        }
        copy
    }
}

impl Open {
    pub fn look(&self) -> Result<Summary, Error> {
        self.look_but(&|_, _| false)
    }

    pub fn look_but(&self, excluded: &dyn Fn(&Path, bool) -> bool) -> Result<Summary, Error> {
        self.look_at(later(), excluded)
    }

    /// `at` that time, in nanoseconds since 1970.
    pub fn look_at(
        &self,
        at: u64,
        excluded: &dyn Fn(&Path, bool) -> bool,
    ) -> Result<Summary, Error> {
        let how = Look {
            now: at,
            held: false,
            unit: 100_000_000,
            excluded,
            may_be_empty: false,
            limit: LIMIT,
        };
        look(&self.set, &self.index, &how)
    }

    /// What is known to be there.
    pub fn known(&self) -> BTreeMap<String, Node> {
        let rows = self.index.rows().unwrap().map(Result::unwrap);
        rows.filter_map(|(p, row)| Some((p.to_string(), row.entry.node?)))
            .collect()
    }

    fn author(&self) -> Result<Author, Error> {
        let writer = self.index.writer()?;
        Ok(Author {
            replica: writer.replica,
            count: writer.count,
            held: false,
            unit: 100_000_000,
            uncertain: false,
            forgotten: None,
        })
    }

    /// Takes what the other has; both have looked.
    pub fn pull(&self, other: &Self) -> Result<Pulled, Error> {
        self.pull_while(other, &mut || ())
    }

    /// The same, with something that happens each time a few operations are asked for.
    pub fn pull_while(&self, other: &Self, happens: &mut dyn FnMut()) -> Result<Pulled, Error> {
        let state = self.index.state()?;
        let mut planner = Planner::default();
        let mut pulled = Pulled::default();
        let (mut standing, theirs) = (self.index.standing()?, other.index.standing()?);
        match standing.terms(&theirs) {
            Terms::Equal => {}
            Terms::Yield => planner.yields = true,
            Terms::Wait => return Ok(pulled),
        }
        let told = other.index.ledger()?.told(&state.replica);
        let from = other.index.state()?;
        let (from, last) = (from.replica, from.sequence);
        let taken = self.index.taken()?.map(|taken| taken.told(&from));
        let mut told = told.min(taken.unwrap_or(told));
        let known = other.index.knowledge()?;
        planner.known = self.index.knowledge()?;
        if !known.told_all(told) {
            told = 0;
            for row in self.index.rows()? {
                let (path, row) = row?;
                if other.index.row(&path)?.is_none() && row.entry.node.is_some() {
                    planner.unnamed(path, row.entry, &known, &state.replica.server);
                }
            }
        }
        let mut offers = other
            .index
            .since(told)?
            .map(|row| row.map(|(p, row)| (p, row.entry)));
        let mut contents = Meanwhile(Peer(&other.set), happens);
        loop {
            let batch: Vec<_> = offers.by_ref().take(self.page).collect::<Result<_, _>>()?;
            if batch.is_empty() {
                break;
            }
            let operations = planner.batch(&self.index.reader().unwrap(), batch);
            pulled.add(self, operations, &mut contents)?;
        }
        let reader = self.index.reader()?;
        if self.strict {
            let came = self.index.rows()?.filter_map(|item| match item {
                Ok((path, row)) => (row.sequence > state.sequence).then_some(Ok((path, row.entry))),
                Err(e) => Some(Err(e)),
            });
            let lost = planner.lost(&reader, came)?;
            pulled.refused = lost.len();
            if !lost.is_empty() {
                planner.refuse(&lost);
            }
        }
        planner.orphans(&reader, &mut self.author()?, later());
        pulled.add(self, planner.groups(&reader), &mut contents)?;
        pulled.add(self, planner.removals(), &mut contents)?;
        let reader = self.index.reader()?;
        let operations = planner.directories(&reader, &mut self.author()?, later());
        pulled.add(self, operations, &mut contents)?;
        let resolved = !planner.conflicts.iter().any(filesync::Conflict::stayed);
        pulled.conflicts = planner.conflicts;
        if pulled.is_complete() && resolved {
            self.index.write(|batch| batch.knows(&known))?;
            let mut ledger = other.index.ledger()?;
            ledger.acknowledged(&state.replica, last, later());
            other.index.write(|batch| batch.ledger(&ledger))?;
            standing.has_all_of(&theirs);
            self.index.write(|batch| {
                batch.took(&from, last, later())?;
                batch.standing(&standing)
            })?;
        }
        Ok(pulled)
    }
}

#[derive(Debug, Default)]
pub struct Pulled {
    pub operations: usize,
    pub conflicts: Vec<Conflict>,
    pub applied: Vec<Applied>,
    /// So many removals.
    pub refused: usize,
}

impl Pulled {
    fn add(
        &mut self,
        to: &Open,
        operations: Vec<Operation>,
        contents: &mut Meanwhile<'_>,
    ) -> Result<(), Error> {
        self.operations += operations.len();
        let mut lots = Lots {
            contents,
            left: operations.into_iter(),
        };
        let (set, index) = (&to.set, &to.index);
        let applied = apply_by(to.together, set, index, Vec::new(), &mut lots, later());
        self.applied.push(applied?);
        Ok(())
    }

    pub fn is_complete(&self) -> bool {
        self.refused == 0 && self.applied.iter().all(Applied::is_complete)
    }
}

/// Operations that come a few at a time, as their contents do.
struct Lots<'a, 'b> {
    contents: &'a mut Meanwhile<'b>,
    left: vec::IntoIter<Operation>,
}

impl Contents for Lots<'_, '_> {
    fn small(&mut self, path: &Path, node: &Node) -> io::Result<Option<Vec<u8>>> {
        self.contents.0.small(path, node)
    }

    fn resumes(&self) -> bool {
        self.contents.0.resumes()
    }

    fn bring(&mut self, path: &Path, node: &Node, into: &mut Filling<'_>) -> io::Result<()> {
        self.contents.0.bring(path, node, into)
    }

    fn more(&mut self) -> Vec<Operation> {
        (self.contents.1)();
        self.left.by_ref().take(7).collect()
    }
}

/// The other store, and what happens while it is asked.
struct Meanwhile<'a>(Peer<'a>, &'a mut dyn FnMut());

/// Contents straight from the other store.
pub struct Peer<'a>(pub &'a Set);

impl Contents for Peer<'_> {
    fn small(&mut self, path: &Path, node: &Node) -> io::Result<Option<Vec<u8>>> {
        if !matches!(node.kind, filesync::Kind::File { size, .. } if size % 2 == 0 && size < 1000) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.0.read(path)?.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn bring(&mut self, path: &Path, _: &Node, into: &mut Filling<'_>) -> io::Result<()> {
        io::copy(&mut self.0.read(path)?, into)?;
        Ok(())
    }
}

/// All that can be seen of one path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub device: u64,
    pub mtime: (i64, i64),
    pub contents: Vec<u8>,
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// All names of the same file in the tree.
    pub names: BTreeSet<PathBuf>,
}

pub type Tree = BTreeMap<PathBuf, Seen>;

/// All beneath a directory but what is standin's own.
pub fn tree(root: &std::path::Path) -> Tree {
    let mut all = BTreeMap::new();
    let mut inodes: BTreeMap<u64, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let at = entry.unwrap().path();
            let name = at.strip_prefix(root).unwrap().to_owned();
            if name.as_os_str() == store::STAGE || name.as_os_str() == store::MARKER {
                continue;
            }
            let meta = fs::symlink_metadata(&at).unwrap();
            let kind = meta.file_type();
            if !kind.is_dir() {
                inodes.entry(meta.ino()).or_default().insert(name.clone());
            }
            let contents = if kind.is_file() {
                fs::read(&at).unwrap()
            } else if kind.is_symlink() {
                fs::read_link(&at).unwrap().into_os_string().into_vec()
            } else {
                Vec::new()
            };
            let timed = !kind.is_dir();
            let seen = Seen {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                device: meta.rdev(),
                mtime: if timed {
                    (meta.mtime(), meta.mtime_nsec())
                } else {
                    (0, 0)
                },
                contents,
                attributes: attributes(&at),
                names: BTreeSet::new(),
            };
            if kind.is_dir() {
                folders.push(at.clone());
            }
            all.insert(name, seen);
        }
    }
    for names in inodes.into_values() {
        for name in &names {
            all.get_mut(name).unwrap().names.clone_from(&names);
        }
    }
    all
}

/// Modification times of all directories beneath a directory.
pub fn folder_times(root: &std::path::Path) -> BTreeMap<PathBuf, (i64, i64)> {
    let folders = tree(root)
        .into_iter()
        .filter(|(_, seen)| seen.mode & 0o170_000 == 0o040_000);
    let time = |(name, _): (PathBuf, Seen)| {
        let meta = fs::symlink_metadata(root.join(&name)).unwrap();
        (name, (meta.mtime(), meta.mtime_nsec()))
    };
    folders.map(time).collect()
}

fn attributes(at: &std::path::Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65536];
    let n = rustix::fs::llistxattr(at, &mut list[..]).unwrap_or(0);
    let names = list[..n].split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut all = BTreeMap::new();
    for name in names {
        let mut value = vec![0; 65536];
        let n = rustix::fs::lgetxattr(at, name, &mut value[..]).unwrap();
        value.truncate(n);
        all.insert(name.to_vec(), value);
    }
    all
}

/// Which paths differ, and how.
pub fn differing(one: &Tree, other: &Tree) -> String {
    let paths: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let short = |seen: Option<&Seen>| {
        seen.map(|s| Seen {
            contents: s.contents.iter().take(32).copied().collect(),
            ..s.clone()
        })
    };
    let differ = paths.into_iter().filter(|p| one.get(*p) != other.get(*p));
    let each = differ.map(|p| {
        let name = p.as_os_str().as_bytes().escape_ascii();
        format!(
            "{name}:\n  {:?}\n  {:?}",
            short(one.get(p)),
            short(other.get(p))
        )
    });
    each.collect::<Vec<_>>().join("\n")
}

/// splitmix64 (Steele et al. 2014).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

/// A directory in memory, where there is one, for what calls for many barriers.
pub fn fast() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}
