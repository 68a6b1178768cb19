//! One unit as this server has it: index, directory, and what another server may ask of it.

use crate::{
    accounts, foretold::Foretold, fresh, progress::Meter, units::Unit, versions::Versions, when,
};
use daemon::Args;
use filesync::{Author, Digest, Knowledge, Path, Planner, Replica, Standing, guard::Doubt};
use protocol::{
    Role, ServerName,
    local::status::{Detail, OffsetStatus},
    owner::Present,
    wire::beat::Freshness,
};
use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use store::{
    Adopt, Calls, Counts, Index, Listing, Look, Opened, Opener, Reader, Set, Summary, Verified,
};
use transfer::{Changes, Files, Origin};

/// What is said while another run has the unit.
pub const BUSY: &str = "another run is at work on it";

/// How long electd may take to say whether this server is master, and doctord how clocks differ.
const ANSWER: Duration = Duration::from_millis(500);

/// No backup of files that is put back without its index is older: what was removed longer ago, and is gone on all
/// servers, is forgotten.
const HORIZON: Duration = Duration::from_secs(30 * 86_400);

/// So many files are verified together.
const VERIFIED: usize = 256;

/// See the module.
pub struct Local {
    pub unit: Unit,
    pub index: Index,
    pub set: Set,
    pub replica: Replica,
    /// Where what belongs to it is kept.
    pub state: PathBuf,
    /// Former versions.
    pub versions: Versions,
    /// What the look at it gave.
    summary: OnceLock<Summary>,
    verified: OnceLock<Verified>,
    /// Taken by whoever changes what is here: from one server after another. What would have been changed by now, if that
    /// is only to be told.
    pub turn: Mutex<Foretold>,
    /// How much is to be moved, and was.
    pub meter: Arc<Meter>,
    held: bool,
    /// The other servers' clocks, as far as known.
    clocks: Vec<(ServerName, OffsetStatus)>,
    allowed: Allowed,
    /// Index and state are gone afterwards.
    _trial: Option<Trial>,
}

/// A directory for an index, and what belongs to it, that nobody needs once it is known what would be done.
struct Trial(PathBuf);

impl Drop for Trial {
    fn drop(&mut self) {
        // What is left of it is removed the next time.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What an operator may allow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// To remove more than the limit.
    pub deletes: bool,
    /// To take a directory that is not the one known for the set.
    pub root: bool,
    /// Nothing: it is only to be told what would be done.
    pub dry: bool,
    /// To read what looks as when it was last read, too.
    pub checksum: bool,
}

impl Local {
    /// Opens a unit and looks at it.
    pub fn open(unit: Unit, here: &Present, args: &Args, allowed: Allowed) -> Result<Self, String> {
        let local = Self::prepare(unit, here, args, allowed)?;
        local.look()?;
        Ok(local)
    }

    /// Opens a unit that is still to be looked at.
    pub fn prepare(
        unit: Unit,
        here: &Present,
        args: &Args,
        allowed: Allowed,
    ) -> Result<Self, String> {
        if let Some(fault) = &unit.fault {
            return Err(fault.clone());
        }
        let me = &here.owner.server;
        let state_dir = unit.state(&args.state_dir);
        std::fs::create_dir_all(&state_dir)
            .map_err(|e| format!("cannot make {}: {e}", state_dir.display()))?;
        let calls = Calls::unlimited();
        let doubted = |e| doubted(&state_dir, me, e);
        let (file, note) = (state_dir.join("index"), unit.note(&args.run_dir));
        let open = |index: &Index, state: &std::path::Path, adopt| {
            let (own, calls) = (unit.own(), calls.clone());
            Set::open_with(own, &unit.root, state, index, adopt, calls)
        };
        let adopt = match allowed.root {
            true => Adopt::Yes,
            false => Adopt::No,
        };
        let mut index = open_index(&unit, &file, &note, here)?;
        let mut trial = None;
        let set = match open(&index, &state_dir, adopt) {
            Err(e) if e.is_new_history() => {
                log::error!("{}: {e}", unit.name);
                if allowed.dry {
                    let folder = state_dir.join("trial");
                    drop(Trial(folder.clone()));
                    std::fs::create_dir(&folder).map_err(|e| e.to_string())?;
                    trial = Some(Trial(folder.clone()));
                    index = open_index(&unit, &folder.join("index"), &folder.join("note"), here)?;
                    open(&index, &folder, Adopt::Try)
                } else {
                    index.give_up().map_err(doubted)?;
                    drop(index);
                    index = open_index(&unit, &file, &note, here)?;
                    open(&index, &state_dir, adopt)
                }
            }
            other => other,
        };
        let mut set = set.map_err(doubted)?;
        set.left_out = Box::new(unit.clone());
        if !allowed.dry {
            index.abide(unit.rules()).map_err(doubted)?;
        }
        let held = holds_an_address(args, me);
        let replica = index.state().map_err(told)?.replica;
        let state = trial.as_ref().map_or(&state_dir, |trial: &Trial| &trial.0);
        let state = state.clone();
        Ok(Self {
            versions: Versions::new(&state, unit.keep, unit.accounts),
            unit,
            index,
            set,
            replica,
            state,
            summary: OnceLock::new(),
            verified: OnceLock::new(),
            turn: Mutex::default(),
            meter: Arc::default(),
            held,
            clocks: clocks(args),
            allowed,
            _trial: trial,
        })
    }

    /// Which modification times its file system can hold, if somebody should know and was not told yet.
    pub fn new_limits(&self) -> Option<String> {
        let limits = when::limits(&self.set.times);
        let new = self.index.tell_times(&self.set.times);
        // Else it is told once more.
        limits.filter(|_| new.unwrap_or(true))
    }

    /// Keeps what is here now, before anything takes its place; what could not be kept.
    pub fn keep(&self) -> Result<Listing, store::Error> {
        self.versions.keep(&self.set, &self.index, self.agrees())
    }

    /// No other server's clock is known to be elsewhere.
    fn agrees(&self) -> bool {
        let apart = |(_, offset): &(_, _)| is_apart(offset, self.skew_ns());
        !self.clocks.iter().any(apart)
    }

    /// Forgets removals of which all servers know.
    fn forget(&self) -> Result<(), store::Error> {
        // Which record of an account was removed is known by them for ever.
        if self.unit.accounts || !self.agrees() {
            return Ok(());
        }
        let others = self.unit.members.iter();
        let others = others.filter(|server| **server != self.replica.server);
        let others: Vec<_> = others.cloned().collect();
        let now = daemon::real_now_ns();
        self.index.forget(&others, now, HORIZON).map(drop)
    }

    /// Finds out what changed.
    pub fn look(&self) -> Result<(), String> {
        if self.allowed.checksum {
            let verified = self.verify().map_err(told)?;
            self.verified.get_or_init(|| verified);
        }
        let look = Look {
            now: daemon::real_now_ns(),
            held: self.held,
            unit: self.skew_ns(),
            excluded: &|path, directory| self.unit.excludes(path, directory),
            may_be_empty: self.allowed.deletes || self.unit.may_be_empty(),
            limit: self.unit.limit(),
        };
        let locks = accounts::quiet(&self.unit)?;
        let summary = store::look(&self.set, &self.index, &look);
        drop(locks);
        if let Err(e) = &summary
            && e.is_new_history()
            && !self.allowed.dry
        {
            // Whoever opens it again begins anew.
            log::error!("{}: {e}", self.unit.name);
            self.index.give_up().map_err(told)?;
            return Err(BUSY.to_owned());
        }
        let summary = summary.map_err(|e| doubted(&self.state, &self.replica.server, e))?;
        if !self.allowed.dry {
            store::clear(&self.set, &self.index, &summary).map_err(told)?;
            self.forget().map_err(told)?;
        }
        self.summary.get_or_init(|| summary);
        let filled = self.index.state().map_err(told)?.live > 0;
        fresh::looked(&self.state, &self.replica, self.set.root(), filled)?;
        accounts::note(self)
    }

    /// Reads all that looks as when it was last read.
    fn verify(&self) -> Result<Verified, store::Error> {
        let index = self.index.reader()?;
        let mut verified = Verified::default();
        let mut last: Option<Path> = None;
        loop {
            let rows = index.after(last.as_ref(), VERIFIED)?;
            let Some((path, _)) = rows.last() else {
                return Ok(verified);
            };
            last = Some(path.clone());
            verified.join(store::verify(self.set.dir(), rows));
        }
    }

    /// What was read though it looked as when it was last read, and what came of it.
    pub fn verified(&self) -> Option<&Verified> {
        self.verified.get()
    }

    /// What the look came by.
    pub fn counts(&self) -> Counts {
        self.summary
            .get()
            .map(|s| s.counts.clone())
            .unwrap_or_default()
    }

    /// How fresh it is, by completed runs.
    pub fn fresh(&self) -> Freshness {
        fresh::of(&self.state, &self.replica)
    }

    /// What is asked for, as far as it is here.
    pub fn files<'a>(&'a self, files: &'a [(Path, Digest)]) -> Files<'a> {
        match self.index.reader() {
            Ok(index) => {
                let opener = self.set.opener();
                let open = move |(path, digest): &(_, _)| self.file(&index, &opener, path, digest);
                Box::new(files.iter().map(open))
            }
            Err(e) => Box::new(std::iter::once(Err(io::Error::other(e)))),
        }
    }

    fn file(
        &self,
        index: &Reader,
        opener: &Opener<'_>,
        path: &Path,
        digest: &Digest,
    ) -> io::Result<Option<(File, u64)>> {
        if let Some(history) = accounts::asked(self, path, digest)? {
            let size = history.metadata()?.len();
            return Ok(Some((history, size)));
        }
        let row = index.row(path).map_err(io::Error::other)?;
        let file = row.and_then(|r| r.entry.file());
        let Some((size, _)) = file.filter(|(_, known)| known == digest) else {
            return Ok(None);
        };
        // As if it had gone by now.
        self.meter.part(size);
        self.meter.file();
        match opener.read(path) {
            Ok(file) => Ok(Some((file, size))),
            // It went meanwhile; the next look will tell.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn skew_ns(&self) -> u64 {
        u64::try_from(self.unit.max_skew.as_nanos()).unwrap_or(u64::MAX)
    }

    /// A plan for what this server offers. If its clock may be too far off, no modification time decides.
    pub fn planner(&self, other: &ServerName) -> Result<Planner, store::Error> {
        let mut planner = Planner::default();
        planner.undecided = may_be_apart(&self.clocks, other, self.skew_ns());
        planner.known = self.index.knowledge()?;
        Ok(planner)
    }

    /// Who makes changes here now.
    pub fn author(&self) -> Result<Author, store::Error> {
        let store::Writer { replica, count } = self.index.writer()?;
        Ok(Author {
            replica,
            count,
            held: self.held,
            unit: self.skew_ns(),
            uncertain: false,
            forgotten: None,
        })
    }
}

/// Opens the index of a unit, and tells if it is not the one that was there.
fn open_index(
    unit: &Unit,
    file: &std::path::Path,
    note: &std::path::Path,
    here: &Present,
) -> Result<Index, String> {
    let incarnation = daemon::random_u64().map_err(|e| e.to_string())?;
    let new = || Replica {
        server: here.owner.server.clone(),
        incarnation,
    };
    let opened = Index::open(file, note, here, new, Calls::unlimited());
    let state = file.parent().unwrap_or(file);
    let Opened {
        index,
        damaged,
        foreign,
        given_up,
        new: _,
    } = opened.map_err(|e| doubted(state, &here.owner.server, e))?;
    let foreign = foreign.map(|(file, why)| (format!("was not this server's: {why}"), file));
    let aside = [
        damaged.map(|file| ("could not be read".to_owned(), file)),
        foreign,
        given_up.map(|file| ("knows nothing of what is there now".to_owned(), file)),
    ];
    for (why, file) in aside.into_iter().flatten() {
        log::error!(
            "{}: the index {why}; it is kept as {}. What is here counts as unknown history: where another server has \
             another version, that one stays, and the one here is kept aside",
            unit.name,
            file.display()
        );
    }
    Ok(index)
}

fn told(e: store::Error) -> String {
    match e.is_busy() {
        true => BUSY.to_owned(),
        false if e.is_new_history() => {
            format!("{e}; a run without --dry-run begins with a new index")
        }
        false => e.to_string(),
    }
}

/// By which an operator says that a root is right as it is.
fn remedy(e: &store::Error) -> Option<&'static str> {
    let store::Error::Root { doubt, .. } = e else {
        return None;
    };
    match doubt {
        Doubt::Empty => Some("--allow-deletes"),
        Doubt::Marker | Doubt::Device => Some("--trust-root"),
        Doubt::Replaced | Doubt::Past => None,
    }
}

/// The same of what keeps a unit from being looked at; that its root is not what it was is seen by whoever asks.
fn doubted(state: &std::path::Path, me: &ServerName, e: store::Error) -> String {
    if let Some(option) = remedy(&e) {
        return format!("{e}; if all is as it should be, run syncd on {me} with {option} once");
    }
    let lasting = !e.is_busy() && !matches!(e, store::Error::Root { .. });
    let why = told(e);
    if lasting && let Err(e) = fresh::doubted(state, &why) {
        log::warn!("how fresh it is still counts: {e}");
    }
    why
}

/// Whether this server is master of anything; if nobody can tell, it is not.
fn holds_an_address(args: &Args, me: &ServerName) -> bool {
    let electd = daemon::ctl::detail(&args.run_dir, Role::Electd, ANSWER);
    let Some(Detail::Electd(electd)) = electd else {
        return false;
    };
    let mut virtuals = electd.virtual_servers.iter();
    virtuals.any(|v| v.master.as_ref() == Some(me))
}

/// Of a clock that nothing is known of it is believed that somebody keeps it.
fn may_be_apart(clocks: &[(ServerName, OffsetStatus)], other: &ServerName, skew_ns: u64) -> bool {
    let known = clocks.iter().find(|(name, _)| name == other);
    known.is_some_and(|(_, offset)| is_apart(offset, skew_ns))
}

fn is_apart(offset: &OffsetStatus, skew_ns: u64) -> bool {
    let most = offset.offset_ns.unsigned_abs();
    most.saturating_add(offset.bound_ns) > skew_ns
}

/// How far other servers' clocks are from this one's, if doctord runs.
fn clocks(args: &Args) -> Vec<(ServerName, OffsetStatus)> {
    match daemon::ctl::detail(&args.run_dir, Role::Doctord, ANSWER) {
        Some(Detail::Doctord { offsets, .. }) => offsets,
        _ => Vec::new(),
    }
}

/// What another server may ask of a unit once it has named one.
pub struct Answering<'a> {
    pub local: &'a Local,
    pub cluster: &'a str,
    pub other: Option<Replica>,
}

impl Origin for Answering<'_> {
    fn greet(
        &mut self,
        cluster: &str,
        set: &str,
        other: &Replica,
    ) -> Result<(Replica, u64, u64), String> {
        if (cluster, set) != (self.cluster, self.local.unit.name.as_str()) {
            return Err(format!(
                "this is {} of cluster {}, not {set} of {cluster}",
                self.local.unit.name, self.cluster
            ));
        }
        let ledger = self.local.index.ledger().map_err(|e| e.to_string())?;
        let state = self.local.index.state().map_err(|e| e.to_string())?;
        self.other = Some(other.clone());
        Ok((state.replica, state.sequence, ledger.told(other)))
    }

    fn standing(&mut self) -> io::Result<Standing> {
        self.local.index.standing().map_err(io::Error::other)
    }

    fn knowledge(&mut self) -> io::Result<Knowledge> {
        self.local.index.knowledge().map_err(io::Error::other)
    }

    fn fresh(&self) -> Freshness {
        self.local.fresh()
    }

    fn changes(&mut self, after: u64) -> io::Result<Changes> {
        let rows = self.local.index.since(after).map_err(io::Error::other)?;
        let meter = Arc::clone(&self.local.meter);
        Ok(Box::new(rows.map(move |row| {
            let (path, row) = row.map_err(io::Error::other)?;
            if let Some((size, _)) = row.entry.file() {
                meter.expect(size);
            }
            Ok((path, row.entry))
        })))
    }

    fn open<'a>(&'a mut self, files: &'a [(Path, Digest)]) -> Files<'a> {
        self.local.files(files)
    }

    fn took(&mut self, sequence: u64) -> io::Result<()> {
        let Some(other) = &self.other else {
            return Ok(());
        };
        let now = daemon::real_now_ns();
        let write = |batch: &mut store::Batch<'_>| batch.acknowledged(other, sequence, now);
        self.local.index.write(write).map_err(io::Error::other)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_may_be_beyond_the_limit_decides_nothing_and_an_unknown_one_is_believed() {
        let name = |n: &str| n.parse::<ServerName>().unwrap();
        for (offset_ns, bound_ns, apart) in [
            (900, 100, false),
            (901, 100, true),
            (-901, 100, true),
            (0, 1001, true),
        ] {
            let offset = OffsetStatus {
                offset_ns,
                bound_ns,
                rate_ppb: 0,
            };
            let clocks = [(name("beta"), offset)];
            assert_eq!(
                may_be_apart(&clocks, &name("beta"), 1000),
                apart,
                "{offset_ns}"
            );
            assert!(!may_be_apart(&clocks, &name("gamma"), 1000));
        }
    }
}
