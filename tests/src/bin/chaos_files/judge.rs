//! Plays a plan, watches what readers see all the while, and says in the end what is wrong.

use crate::{
    faults::{self, disk},
    history::{Contents, Event, History, Known},
    plan::{Act, Edit, Plan, SERVERS},
    tree::{self, Tree},
    users::{self, Users},
};
use lab::{Cluster, Error, NAMES};
use standin_tests::Random;
use std::{
    collections::{BTreeSet, HashSet},
    fmt::Write as _,
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// By themselves, and then when asked to.
const PATIENCE: Duration = Duration::from_secs(45);
/// So many complaints of a kind are told.
const MOST: usize = 4;

/// Plays it. What was caught.
pub fn play(plan: &Plan) -> Result<Vec<String>, Error> {
    let mut cluster = faults::servers()?;
    let history = History::new();
    let writing: [Mutex<()>; SERVERS] = Default::default();
    let users = |(server, writing)| {
        let disk = disk(NAMES[server]);
        Users {
            server,
            files: disk.join("files"),
            beside: disk.join("beside"),
            history: &history,
            writing,
        }
    };
    let users: Vec<_> = writing.iter().enumerate().map(users).collect();
    let (over, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let played = thread::scope(|scope| {
        for (server, writing) in writing.iter().enumerate() {
            let (history, over, seen) = (&history, &over, &seen);
            scope.spawn(move || read_all_the_time(server, history, writing, over, seen));
            let users = &users[server];
            scope.spawn(move || {
                for step in plan.steps.iter().filter(|step| step.server == server) {
                    if let Act::Edit(edit) = &step.act {
                        thread::sleep(step.at.saturating_sub(history.now()));
                        users.edit(edit);
                    }
                }
            });
        }
        let result = play_faults(&mut cluster, plan, &history, &users).and_then(|()| {
            thread::sleep(plan.length.saturating_sub(history.now()));
            println!("all is mended after {:.0} s", history.now().as_secs_f64());
            come_to_rest(&mut cluster)
        });
        over.store(true, Ordering::Relaxed);
        result
    });
    let mut caught = seen.into_inner().unwrap_or_default();
    caught.extend(played?);
    let judge = Judge {
        cluster: &cluster,
        history: &history,
        loses_indexes: plan.loses_indexes(),
    };
    judge.judge(&mut caught);
    if !caught.is_empty() {
        keep_logs(&cluster);
    }
    Ok(caught)
}

fn play_faults(
    cluster: &mut Cluster,
    plan: &Plan,
    history: &History,
    users: &[Users<'_>],
) -> Result<(), Error> {
    for step in &plan.steps {
        if let Act::Fault(fault) = &step.act {
            thread::sleep(step.at.saturating_sub(history.now()));
            if history.now() > plan.length {
                break; // those before took their time
            }
            let begun = history.now().as_secs_f64();
            // What others wrote just now may be about to be put in place here.
            let stalled = || {
                for path in history.recent(step.server) {
                    users[step.server].edit(&Edit::Replace { path, size: 50 });
                }
            };
            faults::play(cluster, step.server, fault, stalled)?;
            let ended = history.now().as_secs_f64();
            println!(
                "{begun:8.3} to {ended:.3}: {} {fault:?}",
                NAMES[step.server]
            );
        }
    }
    Ok(())
}

/// What each server says of what is owed.
fn statuses(cluster: &Cluster) -> Result<String, Error> {
    let mut told = String::new();
    for (server, name) in NAMES[..SERVERS].iter().enumerate() {
        let said = cluster.ask(server, &["sync", "status"])?;
        let _ = write!(told, "\n{name}: {}", String::from_utf8_lossy(&said.stdout));
    }
    Ok(told)
}

/// Until nothing is owed; what did not come to rest.
fn come_to_rest(cluster: &mut Cluster) -> Result<Vec<String>, Error> {
    cluster.settle()?;
    let daemons = |cluster: &Cluster| -> Vec<Vec<i32>> {
        let of = |server| faults::syncd(cluster, server, false);
        let ids = |server| of(server).into_iter().map(|p| p.pid).collect();
        (0..SERVERS).map(ids).collect()
    };
    let before = daemons(cluster);
    let mut caught = Vec::new();
    if !faults::quiet(cluster, PATIENCE) {
        // They wait up to 15 minutes for a server that was away.
        println!("asked to make all alike{}", statuses(cluster)?);
        for server in 0..SERVERS {
            cluster.ask(server, &["sync", "now"])?;
        }
        if !faults::quiet(cluster, 2 * PATIENCE) {
            caught.push(format!("something is owed still{}", statuses(cluster)?));
        }
    }
    if daemons(cluster) != before {
        caught.push("a daemon ended by itself".into());
    }
    Ok(caught)
}

/// Reads files of a server and complains of contents that nobody wrote.
fn read_all_the_time(
    server: usize,
    history: &History,
    writing: &Mutex<()>,
    over: &AtomicBool,
    seen: &Mutex<Vec<String>>,
) {
    let files = disk(NAMES[server]).join("files");
    let mut random = Random::new(server as u64);
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(10));
        let mut at = files.clone();
        for _ in 0..4 {
            let names = tree::names(&at);
            let Some(name) = names.get(random.below(names.len())) else {
                break;
            };
            at.push(name);
            if fs::symlink_metadata(&at).map_or(true, |found| !found.is_dir()) {
                break;
            }
        }
        let read = || {
            fs::symlink_metadata(&at)
                .is_ok_and(|found| found.is_file())
                .then(|| users::read(writing, &at))
        };
        let Some(Ok(hash)) = read() else { continue };
        if !history.is_known(&hash) {
            let at = at.strip_prefix(&files).unwrap_or(&at).display().to_string();
            let when = history.now().as_secs_f64();
            let about = history.known().about(&at, Some(&hash));
            let told = format!(
                "at {when:.3} a reader on {} saw in {at} what nobody wrote\n{about}",
                NAMES[server]
            );
            seen.lock()
                .map(|mut seen| seen.push(told))
                .unwrap_or_default();
            return;
        }
    }
}

/// Where the machine's owner can read them.
fn keep_logs(cluster: &Cluster) {
    let folder = std::env::temp_dir().join("standin-chaos-files");
    for (server, name) in NAMES[..SERVERS].iter().enumerate() {
        let file = folder.join(format!("{name}.log"));
        if fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&file, cluster.log(server)))
            .is_ok()
        {
            println!("log: {}", file.display());
        }
    }
}

struct Judge<'a> {
    cluster: &'a Cluster,
    history: &'a History,
    loses_indexes: bool,
}

impl Judge<'_> {
    fn judge(&self, caught: &mut Vec<String>) {
        let files = |server: usize| disk(NAMES[server]).join("files");
        let trees: Vec<Tree> = (0..SERVERS)
            .map(|server| tree::tree(&files(server)))
            .collect();
        let known = self.history.known();
        let count = (known.events.len(), known.versions.len(), trees[0].len());
        let doubtful = known.versions.values().filter(|v| v.doubtful).count();
        let kept: Vec<_> = (0..SERVERS)
            .map(|server| self.kept(server, caught))
            .collect();
        println!(
            "{} edits, {} contents ({doubtful} doubtful), {} paths left, {} kept aside",
            count.0,
            count.1,
            count.2,
            kept.iter().map(Vec::len).sum::<usize>()
        );
        self.alike(&trees, &known, caught);
        self.nothing_lost(&trees, &kept, &known, caught);
        self.nothing_back(&trees, &known, caught);
        self.nobody_else(&trees, &known, caught);
        for (server, name) in NAMES[..SERVERS].iter().enumerate() {
            self.nothing_left(name, &files(server), caught);
            if let Some(line) = self
                .cluster
                .log(server)
                .lines()
                .find(|l| l.contains("panicked"))
            {
                caught.push(format!("{name}: {line}"));
            }
        }
    }

    /// All there is to say about a path and these contents.
    fn about(&self, path: &str, hash: Option<&Contents>, trees: &[Tree], known: &Known) -> String {
        let mut text = known.about(path, hash);
        for server in 0..SERVERS {
            let has = match trees[server].get(path) {
                None => "nothing".into(),
                Some(item) => {
                    let contents = item
                        .contents
                        .as_ref()
                        .map_or_else(String::new, |h| known.name(h));
                    format!("{contents} {item:?}")
                }
            };
            let _ = writeln!(text, "  {} has {has}", NAMES[server]);
            let shown = Cluster::files_path().join(path).display().to_string();
            if let Ok(why) = self.cluster.ask(server, &["sync", "why", &shown]) {
                let why = String::from_utf8_lossy(&why.stdout).into_owned();
                for line in why
                    .lines()
                    .filter(|l| l.contains("known") || l.contains("not "))
                {
                    let _ = writeln!(text, "    {}", line.trim());
                }
            }
        }
        text
    }

    fn alike(&self, trees: &[Tree], known: &Known, caught: &mut Vec<String>) {
        let paths: BTreeSet<_> = trees.iter().flat_map(Tree::keys).collect();
        let differs = |path: &&&String| {
            trees
                .iter()
                .any(|tree| tree.get(**path) != trees[0].get(**path))
        };
        for path in paths.iter().filter(differs).take(MOST) {
            let about = self.about(path, None, trees, known);
            caught.push(format!("{path} is not alike\n{about}"));
        }
    }

    /// The contents that a server keeps aside.
    fn kept(&self, server: usize, caught: &mut Vec<String>) -> Vec<Contents> {
        let told = self.cluster.tell(server, &["sync", "conflicts"]);
        let told = told.unwrap_or_else(|e| {
            caught.push(e.to_string());
            String::new()
        });
        let files = told
            .lines()
            .filter_map(|line| line.split_once("its contents: "));
        let read = files.filter_map(|(_, file)| fs::read(file).ok());
        read.map(|bytes| blake3::hash(&bytes)).collect()
    }

    fn nothing_lost(
        &self,
        trees: &[Tree],
        kept: &[Vec<Contents>],
        known: &Known,
        caught: &mut Vec<String>,
    ) {
        let there = trees
            .iter()
            .flat_map(Tree::values)
            .filter_map(|item| item.contents);
        let there: HashSet<_> = there.chain(kept.iter().flatten().copied()).collect();
        let mut lost: Vec<_> = known
            .versions
            .iter()
            .filter(|(hash, version)| {
                !version.superseded && !version.doubtful && !there.contains(*hash)
            })
            .collect();
        lost.sort_by_key(|(_, version)| version.number);
        for (hash, version) in lost.into_iter().take(MOST) {
            let about = self.about(&version.path, Some(hash), trees, known);
            caught.push(format!(
                "v{} of {} is lost\n{about}",
                version.number, version.path
            ));
        }
    }

    /// What was removed when nobody else had done anything there since it came.
    fn nothing_back(&self, trees: &[Tree], known: &Known, caught: &mut Vec<String>) {
        if self.loses_indexes {
            return; // a new index knows of no removal
        }
        for (path, item) in &trees[0] {
            let touches = |event: &&Event| {
                event.paths.iter().any(|p| {
                    p == path
                        || path
                            .strip_prefix(p.as_str())
                            .is_some_and(|rest| rest.starts_with('/'))
                })
            };
            let about: Vec<_> = known.events.iter().filter(touches).collect();
            if let [.., made, removed] = &about[..]
                && removed.removes
                && made.wrote.is_some()
                && made.wrote == item.contents
                && removed
                    .saw
                    .iter()
                    .any(|(p, hash)| p == path && Some(*hash) == item.contents)
            {
                let about = self.about(path, None, trees, known);
                caught.push(format!("{path} was removed and is back\n{about}"));
            }
        }
    }

    fn nobody_else(&self, trees: &[Tree], known: &Known, caught: &mut Vec<String>) {
        for (path, item) in &trees[0] {
            let hash = match &item.target {
                Some(target) => Some(blake3::hash(format!("symlink {target}").as_bytes())),
                None => item.contents,
            };
            if hash.is_some_and(|hash| !known.versions.contains_key(&hash)) {
                let about = self.about(path, None, trees, known);
                caught.push(format!("nobody wrote what is in {path}\n{about}"));
            }
        }
    }

    /// Of standin's own nothing stays but what a later run can go on with.
    fn nothing_left(&self, name: &str, files: &Path, caught: &mut Vec<String>) {
        let stage = fs::read_dir(files.join(".standin-stage"));
        for entry in stage.into_iter().flatten().flatten() {
            let left = entry.file_name().to_string_lossy().into_owned();
            if !left.starts_with("left-") {
                caught.push(format!("{name}: {left} lies in the stage"));
            }
        }
    }
}
