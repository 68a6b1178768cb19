//! Runs the role scripts: `master.d` and `slave.d`, one after the other for each virtual server.
//!
//! Nothing waits for them: each virtual server has a thread of its own, and a newer role stops what an older
//! one still runs. Scripts come in the order of their names and are called with `start`; those of the role
//! that was left are called first, in reverse order, with `stop`.

use crate::{clock, sys};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use protocol::{
    ServerName, Term, VirtualServerName,
    local::status::{FailedScript, SCRIPT_TEXT_MAX, ScriptsView},
};
use std::{
    collections::BTreeMap,
    fmt, fs,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::{
        fs::{FileExt, OpenOptionsExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

/// From SIGTERM to SIGKILL, and from there to giving up on the process.
const GRACE: Duration = Duration::from_secs(2);
/// How often to see whether a script has ended.
const TICK: Duration = Duration::from_millis(5);
/// Longest log in bytes; then it begins anew.
const LOG_MAX: u64 = 1 << 20;
const STACK: usize = 128 * 1024;
/// Where programs are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The role that a server has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptRole {
    /// It holds the addresses.
    Master,
    /// It does not.
    Slave,
}

impl ScriptRole {
    fn other(self) -> Self {
        match self {
            Self::Master => Self::Slave,
            Self::Slave => Self::Master,
        }
    }
}

impl fmt::Display for ScriptRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Slave => "slave",
        })
    }
}

/// A change of role, as the scripts are told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptRun {
    /// In which virtual server.
    pub virtual_server: VirtualServerName,
    /// This server.
    pub server: ServerName,
    /// Its new role.
    pub role: ScriptRole,
    /// In which term.
    pub term: Term,
    /// Who is master now, if that is known.
    pub master: Option<ServerName>,
    /// Why, in words.
    pub reason: String,
}

/// The runner. Dropping it lets a running script go on by itself.
#[derive(Debug)]
pub struct Scripts {
    place: Arc<Place>,
    queues: Mutex<BTreeMap<VirtualServerName, Arc<Queue>>>,
}

#[derive(Debug)]
struct Place {
    directory: PathBuf,
    timeout: Duration,
    log: PathBuf,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Only the newest is kept: what was overtaken before it began is not run.
    next: Option<ScriptRun>,
    running: Option<(Term, ScriptRole)>,
    cancelled: bool,
    dropped: bool,
    /// The last run, or the one that goes on.
    last: Option<ScriptsView>,
}

impl Scripts {
    /// Runs the scripts of `<directory>/master.d` and `<directory>/slave.d`, each for at most `timeout`;
    /// what they print goes to `log`, which is begun anew at 1 MiB.
    pub fn start(directory: &Path, timeout: Duration, log: &Path) -> Self {
        let place = Place {
            directory: directory.to_owned(),
            timeout,
            log: log.to_owned(),
        };
        Self {
            place: Arc::new(place),
            queues: Mutex::default(),
        }
    }

    /// Has the scripts told about a change of role; returns at once. A newer term, or another role,
    /// stops the scripts of an older change; an older term is ignored.
    pub fn run(&self, run: ScriptRun) {
        let queue = match self.queue(&run.virtual_server) {
            Ok(queue) => queue,
            Err(e) => {
                return log::error!("{}: cannot run scripts: no thread: {e}", run.virtual_server);
            }
        };
        let mut state = lock(&queue.state);
        let newest = state
            .next
            .as_ref()
            .map(|n| (n.term, n.role))
            .or(state.running);
        if newest
            .is_some_and(|(term, role)| run.term < term || (run.term == term && run.role == role))
        {
            return;
        }
        state.cancelled = state.running.is_some();
        state.next = Some(run);
        queue.changed.notify_all();
    }

    /// Waits until all scripts have ended, at most so long; whether they have.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let queues: Vec<_> = lock(&self.queues).values().cloned().collect();
        queues.iter().all(|queue| {
            let left = end.saturating_duration_since(Instant::now());
            let busy = |s: &mut State| s.next.is_some() || s.running.is_some();
            let waited = queue
                .changed
                .wait_timeout_while(lock(&queue.state), left, busy);
            !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
        })
    }

    /// How the scripts last fared, if any run was due.
    pub fn last(&self, v: &VirtualServerName) -> Option<ScriptsView> {
        let queue = lock(&self.queues).get(v).cloned()?;
        let state = lock(&queue.state);
        state.last.clone()
    }

    fn queue(&self, v: &VirtualServerName) -> io::Result<Arc<Queue>> {
        let mut queues = lock(&self.queues);
        if let Some(queue) = queues.get(v) {
            return Ok(queue.clone());
        }
        let queue = Arc::new(Queue::default());
        let (place, own) = (self.place.clone(), queue.clone());
        thread::Builder::new()
            .name("scripts".into())
            .stack_size(STACK)
            .spawn(move || serve(&place, &own))?;
        queues.insert(v.clone(), queue.clone());
        Ok(queue)
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        for queue in lock(&self.queues).values() {
            lock(&queue.state).dropped = true;
            queue.changed.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One virtual server's thread.
fn serve(place: &Place, queue: &Queue) {
    // It was started by a thread that may run under real-time scheduling; scripts must not.
    if let Err(e) = sys::scheduler_normal() {
        log::warn!("role scripts run under the scheduling of electd: {e}");
    }
    loop {
        let idle = |s: &mut State| s.next.is_none() && !s.dropped;
        let waited = queue.changed.wait_while(lock(&queue.state), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let Some(run) = state.next.take().filter(|_| !state.dropped) else {
            return;
        };
        state.running = Some((run.term, run.role));
        state.cancelled = false;
        state.last = Some(ScriptsView {
            began: clock::now(),
            running: true,
            failed: 0,
            first_failed: None,
        });
        drop(state);
        change_role(place, queue, &run);
        let mut state = lock(&queue.state);
        state.running = None;
        if let Some(last) = &mut state.last {
            last.running = false;
        }
        drop(state);
        queue.changed.notify_all();
    }
}

fn change_role(place: &Place, queue: &Queue, run: &ScriptRun) {
    let left = scripts_of(place, run.role.other())
        .into_iter()
        .rev()
        .map(|script| (script, "stop"));
    let taken = scripts_of(place, run.role)
        .into_iter()
        .map(|script| (script, "start"));
    for (script, action) in left.chain(taken) {
        if is_over(queue) {
            return;
        }
        let name = format!("{}: {} {action}", run.virtual_server, script.display());
        let began = Instant::now();
        let mut output = Output::default();
        let how = match run_script(place, queue, run, (&script, action), &mut output) {
            Ok(Outcome::Ended(status)) if status.success() => {
                log::debug!("{name}: done after {:?}", began.elapsed());
                continue;
            }
            Ok(Outcome::Cancelled) => {
                log::info!("{name}: stopped, the role has changed again");
                continue;
            }
            Ok(Outcome::Ended(status)) => status.to_string(),
            Ok(Outcome::TooLong) => format!("stopped after {:?}", place.timeout),
            Err(e) => e.to_string(),
        };
        log::warn!("{name}: {how}; see {}", place.log.display());
        let script = script.strip_prefix(&place.directory).unwrap_or(&script);
        let failed = FailedScript {
            script: short(&format!("{} {action}", script.display())),
            how: short(&how),
            output: output.first_line(place),
        };
        if let Some(last) = &mut lock(&queue.state).last {
            last.failed += 1;
            last.first_failed.get_or_insert(failed);
        }
    }
}

/// As much as an answer to an operator has room for.
fn short(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    text.chars().take(SCRIPT_TEXT_MAX).collect()
}

/// Where in the log a script's output begins, once it runs.
#[derive(Debug, Default)]
struct Output(Option<u64>);

impl Output {
    /// Scripts of another virtual server may write in between: it is a hint, and the log has it all.
    fn first_line(&self, place: &Place) -> String {
        let mut buffer = [0; 4 * SCRIPT_TEXT_MAX];
        let read = |at| File::open(&place.log)?.read_at(&mut buffer, at);
        let length = self.0.map_or(Ok(0), read).unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..length]);
        short(text.lines().find(|l| !l.trim().is_empty()).unwrap_or(""))
    }
}

fn is_over(queue: &Queue) -> bool {
    let state = lock(&queue.state);
    state.cancelled || state.dropped
}

/// The scripts of a role by name. What editors and packages leave behind is passed over.
fn scripts_of(place: &Place, role: ScriptRole) -> Vec<PathBuf> {
    let folder = place.directory.join(format!("{role}.d"));
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            log::warn!("cannot read {}: {e}", folder.display());
            return Vec::new();
        }
    };
    let mut scripts: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|path| is_script(path))
        .collect();
    scripts.sort();
    scripts
}

/// A file of an editor or of the package manager, which is no script whatever is in it.
pub fn is_left_over(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name.ends_with('~') || name.contains(".dpkg-")
}

fn is_script(path: &Path) -> bool {
    !is_left_over(path)
        && fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

enum Outcome {
    Ended(ExitStatus),
    TooLong,
    Cancelled,
}

fn run_script(
    place: &Place,
    queue: &Queue,
    run: &ScriptRun,
    (script, action): (&Path, &str),
    begins: &mut Output,
) -> io::Result<Outcome> {
    let log = open_log(place, run, script, action)
        .inspect_err(|e| log::warn!("cannot write {}: {e}", place.log.display()))
        .ok();
    begins.0 = log
        .as_ref()
        .and_then(|log| Some(log.metadata().ok()?.len()));
    let output = || -> io::Result<Stdio> {
        Ok(match &log {
            Some(log) => log.try_clone()?.into(),
            None => Stdio::null(),
        })
    };
    let mut child = Command::new(script)
        .arg(action)
        .env_clear()
        .env("PATH", PATH)
        .env("STANDIN_ROLE", run.role.to_string())
        .env("STANDIN_SERVER", run.server.as_str())
        .env("STANDIN_VIRTUAL_SERVER", run.virtual_server.as_str())
        .env("STANDIN_TERM", run.term.to_string())
        .env(
            "STANDIN_MASTER",
            run.master.as_ref().map_or("", |m| m.as_str()),
        )
        .env("STANDIN_REASON", run.reason.replace('\0', " "))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .process_group(0)
        .spawn()?;
    let end = Instant::now() + place.timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Outcome::Ended(status));
        }
        if let Some(Err(e)) = log.as_ref().map(cut_log) {
            log::debug!("cannot cut {}: {e}", place.log.display());
        }
        let mut state = lock(&queue.state);
        if !state.cancelled && !state.dropped {
            let waited = queue.changed.wait_timeout(state, TICK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let (cancelled, dropped) = (state.cancelled, state.dropped);
        drop(state);
        if dropped || cancelled || Instant::now() >= end {
            if !dropped {
                stop(&mut child)?;
            }
            return Ok(if cancelled || dropped {
                Outcome::Cancelled
            } else {
                Outcome::TooLong
            });
        }
    }
}

/// Stops a script and all it has started: asked first, then by force.
fn stop(child: &mut Child) -> io::Result<()> {
    let group = Pid::from_raw(child.id() as i32);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        killpg(group, signal)?;
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            if child.try_wait()?.is_some() {
                // The script has gone; what it left in its group goes too.
                let _ = killpg(group, Signal::SIGKILL);
                return Ok(());
            }
            thread::sleep(TICK);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "does not end, not even by force; left behind",
    ))
}

/// Scripts write to the file themselves: through a pipe, a service that a script starts would die with it.
fn open_log(place: &Place, run: &ScriptRun, script: &Path, action: &str) -> io::Result<File> {
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(&place.log)?;
    cut_log(&log)?;
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    let (v, term) = (&run.virtual_server, run.term);
    writeln!(log, "{time} {v} term {term}: {} {action}", script.display())?;
    Ok(log)
}

fn cut_log(mut log: &File) -> io::Result<()> {
    if log.metadata()?.len() > LOG_MAX {
        log.set_len(0)?;
        writeln!(log, "... begun anew: it was longer than {LOG_MAX} bytes")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A script that is being written cannot be run, and a process being started by another test would
    /// hold it open for writing: one test at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    struct Stage {
        folder: tempfile::TempDir,
        scripts: Scripts,
        _alone: MutexGuard<'static, ()>,
    }

    impl Stage {
        fn new(timeout: Duration) -> Self {
            let alone = lock(&ONE_AT_A_TIME);
            let folder = tempfile::tempdir().unwrap();
            for role in ["master.d", "slave.d"] {
                fs::create_dir(folder.path().join(role)).unwrap();
            }
            let scripts =
                Scripts::start(folder.path(), timeout, &folder.path().join("scripts.log"));
            Self {
                folder,
                scripts,
                _alone: alone,
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn script(&self, name: &str, body: &str) {
            let out = self.path("out");
            let new = self.path("new");
            fs::write(&new, format!("#!/bin/sh\nOUT={}\n{body}\n", out.display())).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(new, self.path(name)).unwrap();
        }

        fn run(&self, role: ScriptRole, term: u64) {
            self.scripts.run(ScriptRun {
                virtual_server: "web".parse().unwrap(),
                server: "alpha".parse().unwrap(),
                role,
                term: Term(term),
                master: Some("beta".parse().unwrap()),
                reason: "lease expired".into(),
            });
        }

        fn output(&self) -> String {
            fs::read_to_string(self.path("out")).unwrap_or_default()
        }

        fn output_has(&self, text: &str) -> bool {
            let end = Instant::now() + Duration::from_secs(10);
            while Instant::now() < end {
                if self.output().contains(text) {
                    return true;
                }
                thread::sleep(Duration::from_millis(2));
            }
            false
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_left_role_stops_in_reverse_then_the_new_one_starts_in_order() {
        let stage = Stage::new(LONG);
        for name in [
            "master.d/10-a",
            "master.d/20-b",
            "slave.d/10-c",
            "slave.d/20-d",
        ] {
            stage.script(name, r#"echo "${0##*/} $1" >> $OUT"#);
        }
        stage.run(ScriptRole::Master, 1);
        assert!(stage.scripts.wait_idle(LONG));
        assert_eq!(
            stage.output(),
            "20-d stop\n10-c stop\n10-a start\n20-b start\n"
        );
    }

    #[test]
    fn only_executable_files_run() {
        let stage = Stage::new(LONG);
        for name in [".hidden", "old~", "conf.dpkg-old", "plain", "fine"] {
            stage.script(&format!("master.d/{name}"), r#"echo "${0##*/}" >> $OUT"#);
        }
        fs::set_permissions(
            stage.path("master.d/plain"),
            fs::Permissions::from_mode(0o644),
        )
        .unwrap();
        fs::create_dir(stage.path("master.d/folder")).unwrap();
        stage.run(ScriptRole::Master, 1);
        assert!(stage.scripts.wait_idle(LONG));
        assert_eq!(stage.output(), "fine\n");
    }

    #[test]
    fn scripts_are_told_all_in_their_environment_and_nothing_else_is_inherited() {
        let stage = Stage::new(LONG);
        stage.script(
            "master.d/env",
            "env | grep -v -e ^PWD -e ^_ -e ^SHLVL | sort > $OUT; ls -l /proc/self/fd >> $OUT
echo policy $(cut -d' ' -f41 /proc/$$/stat) >> $OUT",
        );
        let _ours = File::create(stage.path("ours")).unwrap();
        stage.run(ScriptRole::Master, 7);
        assert!(stage.scripts.wait_idle(LONG));
        let expected = format!(
            "PATH={PATH}\nSTANDIN_MASTER=beta\nSTANDIN_REASON=lease expired\nSTANDIN_ROLE=master\n\
             STANDIN_SERVER=alpha\nSTANDIN_TERM=7\nSTANDIN_VIRTUAL_SERVER=web\n"
        );
        let output = stage.output();
        assert!(output.starts_with(&expected), "{output}");
        assert!(
            output.ends_with("policy 0\n"),
            "not normal scheduling: {output}"
        );
        assert!(
            output.contains("scripts.log") && !output.contains("/ours"),
            "{output}"
        );
    }

    #[test]
    fn a_script_that_hangs_is_stopped_and_the_next_one_runs() {
        let stage = Stage::new(Duration::from_millis(100));
        stage.script(
            "master.d/1",
            "trap '' TERM; echo hanging >> $OUT; while :; do sleep 1; done",
        );
        stage.script("master.d/2", "echo next >> $OUT");
        stage.run(ScriptRole::Master, 1);
        assert!(stage.scripts.wait_idle(LONG));
        assert_eq!(stage.output(), "hanging\nnext\n");
    }

    #[test]
    fn what_failed_is_told_with_its_exit_status_and_the_first_line_that_it_printed() {
        let stage = Stage::new(Duration::from_millis(300));
        stage.script("master.d/10-fine", "echo fine");
        stage.script(
            "master.d/20-bad",
            "echo; echo \"no $1 of nginx\" >&2; echo more; exit 3",
        );
        stage.script("master.d/30-slow", "exec sleep 60");
        let web = "web".parse().unwrap();
        assert_eq!(stage.scripts.last(&web), None);
        stage.run(ScriptRole::Master, 1);
        assert!(stage.scripts.wait_idle(LONG));
        let last = stage.scripts.last(&web).unwrap();
        assert_eq!((last.failed, last.running), (2, false));
        let failed = FailedScript {
            script: "master.d/20-bad start".into(),
            how: "exit status: 3".into(),
            output: "no start of nginx".into(),
        };
        assert_eq!(last.first_failed, Some(failed));
        stage.script("master.d/20-bad", "exit 0");
        stage.script("master.d/30-slow", "exit 0");
        stage.run(ScriptRole::Slave, 2);
        assert!(stage.scripts.wait_idle(LONG));
        let last = stage.scripts.last(&web).unwrap();
        assert_eq!((last.failed, last.first_failed), (0, None));
    }

    #[test]
    fn a_newer_term_stops_an_older_run_and_an_older_term_is_ignored() {
        let stage = Stage::new(LONG);
        stage.script("master.d/1", "trap 'echo cancelled >> $OUT; exit' TERM; echo begun >> $OUT; while :; do sleep 0.01; done");
        stage.script(
            "slave.d/1",
            r#"[ $1 = start ] && echo "slave $STANDIN_TERM" >> $OUT"#,
        );
        fs::write(stage.path("out"), "").unwrap();
        stage.run(ScriptRole::Master, 5);
        assert!(stage.output_has("begun"));
        stage.script("master.d/1", "true");
        stage.run(ScriptRole::Slave, 6);
        stage.run(ScriptRole::Slave, 4);
        assert!(stage.scripts.wait_idle(LONG));
        assert_eq!(stage.output(), "begun\ncancelled\nslave 6\n");
    }

    #[test]
    fn one_virtual_server_does_not_wait_for_another() {
        let stage = Stage::new(LONG);
        stage.script(
            "master.d/1",
            "[ $STANDIN_VIRTUAL_SERVER = web ] && exec sleep 15; echo mail >> $OUT",
        );
        stage.run(ScriptRole::Master, 1);
        stage.scripts.run(ScriptRun {
            virtual_server: "mail".parse().unwrap(),
            server: "alpha".parse().unwrap(),
            role: ScriptRole::Master,
            term: Term(1),
            master: None,
            reason: String::new(),
        });
        assert!(stage.output_has("mail"));
        stage.script("master.d/1", "true");
        stage.run(ScriptRole::Slave, 2);
        assert!(stage.scripts.wait_idle(LONG));
    }

    #[test]
    fn the_log_is_bounded() {
        let stage = Stage::new(LONG);
        stage.script("master.d/1", "head -c 3000000 /dev/zero");
        stage.script("master.d/2", "echo the end");
        stage.run(ScriptRole::Master, 1);
        assert!(stage.scripts.wait_idle(LONG));
        let log = fs::read_to_string(stage.path("scripts.log")).unwrap();
        assert!(log.len() < LOG_MAX as usize, "{} bytes", log.len());
        assert!(log.ends_with("the end\n"));
    }
}
