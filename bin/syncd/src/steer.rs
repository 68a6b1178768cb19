//! Keeps this server's clock like the master's, unless somebody else steers it: a thread that looks once a second.
//!
//! ```text
//!   looking ──▶ watching, and why; looks again each minute
//!      ├──────▶ steering ──▶ another daemon appears: watching
//!      │            └──────▶ somebody writes to the clock, or it cannot be written: stopped, until syncd is restarted
//! ```

use crate::machine::{Machine, This};
use clock::{Action, Alarm, Discipline, Interval, Kernel, LOOK_AGAIN, Reading, Source, in_charge};
use config::{Config, TimeDiscipline};
use daemon::{Args, durable};
use protocol::{
    BootTime, Role, ServerName,
    local::status::{Detail, OffsetStatus},
};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Name of the file in the state-dir that has the clock's own rate, in parts of 10^9.
const DRIFT: &str = "drift";
/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often, while it is only watched, whether it still is to be; and while it is steered, whether a daemon has come.
const LOOK_ROUND: Duration = Duration::from_secs(60);
/// How long a role may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// The thread; it ends with this.
pub struct Steer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    said: Arc<Mutex<String>>,
}

/// Begins, if a thread is to be had. `fresh` if syncd has just started, so that the clock may still be set.
pub fn spawn(config: Arc<Config>, me: ServerName, args: Args, fresh: bool) -> Steer {
    let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
    let (stopped, tell) = (Arc::clone(&stop), Arc::clone(&said));
    let work = move || {
        let machine = This::new(&config, &me);
        let mut helm = Helm::new(machine, &config, args.state_dir.clone(), fresh);
        while !stopped.load(Ordering::Relaxed) {
            let view = helm.needs_view().then(|| View::of(&config, &me, &args));
            helm.second(daemon::now(), &view.unwrap_or_default());
            *tell.lock().unwrap_or_else(PoisonError::into_inner) = helm.in_words();
            thread::park_timeout(LOOK);
        }
        helm.leave();
    };
    let thread = thread::Builder::new().name("steer".into()).spawn(work);
    let thread = thread
        .map_err(|e| log::error!("cannot start a thread: {e}"))
        .ok();
    Steer { stop, thread, said }
}

impl Steer {
    /// What is done about the clock, for the operator.
    pub fn in_words(&self) -> String {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Steer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Steer {
    /// Ends; the clock goes on at its own rate.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// What the other roles know at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// As in [`Reading`].
    holds: bool,
    source: Option<Source>,
    others: Vec<Interval>,
}

impl View {
    fn of(config: &Config, me: &ServerName, args: &Args) -> Self {
        let ask = |role| daemon::ctl::detail(&args.run_dir, role, ANSWER);
        let (Some(Detail::Doctord { offsets, .. }), Some(Detail::Electd(electd))) =
            (ask(Role::Doctord), ask(Role::Electd))
        else {
            return Self::unknown();
        };
        let virtuals = electd.virtual_servers;
        let holds = virtuals
            .iter()
            .any(|v| v.role == "master" || v.role == "candidate");
        // One clock for all: that of the master of the first virtual server that has one.
        let mut masters = config.virtual_servers.iter().filter_map(|written| {
            let known = virtuals.iter().find(|v| v.name == written.name)?;
            known.master.clone()
        });
        Self::from(holds, masters.next().filter(|m| m != me), &offsets)
    }

    /// Whoever does not know whether it holds an address may hold one.
    fn unknown() -> Self {
        Self {
            holds: true,
            ..Self::default()
        }
    }

    fn from(
        holds: bool,
        master: Option<ServerName>,
        offsets: &[(ServerName, OffsetStatus)],
    ) -> Self {
        let interval = |o: &OffsetStatus| Interval {
            offset_ns: o.offset_ns,
            bound_ns: o.bound_ns,
        };
        let is = |name: &ServerName| master.as_ref() == Some(name);
        let source = offsets
            .iter()
            .find(|(name, _)| is(name))
            .map(|(name, o)| Source {
                server: name.clone(),
                interval: interval(o),
                rate_ppb: o.rate_ppb,
            });
        let others = offsets.iter().filter(|(name, _)| !is(name));
        Self {
            holds,
            source,
            others: others.map(|(_, o)| interval(o)).collect(),
        }
    }
}

/// What is done about the clock.
#[derive(Debug)]
enum Course {
    /// Nobody else is to be seen so far.
    Looking {
        first: Option<(Kernel, BootTime)>,
    },
    Watching {
        why: String,
        until: BootTime,
    },
    Steering {
        discipline: Box<Discipline>,
        look_at: BootTime,
        alarm: Option<Alarm>,
    },
    Stopped {
        why: String,
    },
}

/// The thread's mind.
struct Helm<M> {
    machine: M,
    wanted: TimeDiscipline,
    skew_ns: u64,
    state_dir: PathBuf,
    course: Course,
    /// Nobody has steered or watched yet: the clock may still be set.
    fresh: bool,
}

impl<M: Machine> Helm<M> {
    fn new(machine: M, config: &Config, state_dir: PathBuf, fresh: bool) -> Self {
        Self {
            machine,
            wanted: config.time.discipline,
            skew_ns: u64::try_from(config.time.max_skew.as_nanos()).unwrap_or(u64::MAX),
            state_dir,
            course: Course::Looking { first: None },
            fresh,
        }
    }

    fn needs_view(&self) -> bool {
        matches!(self.course, Course::Steering { .. })
    }

    /// A second has passed.
    fn second(&mut self, now: BootTime, view: &View) {
        match &mut self.course {
            Course::Stopped { .. } => {}
            Course::Watching { until, .. } => {
                if *until <= now {
                    self.course = Course::Looking { first: None };
                }
            }
            Course::Looking { .. } => self.look(now),
            Course::Steering { look_at, .. } => {
                if *look_at <= now {
                    *look_at = now + LOOK_ROUND / 6;
                    if let Some(why) = self.other_daemon() {
                        log::error!("{why}: syncd leaves the clock alone from now on");
                        self.leave();
                        return self.watch(why, now);
                    }
                }
                self.steer(view);
            }
        }
    }

    fn look(&mut self, now: BootTime) {
        let Course::Looking { first } = &mut self.course else {
            return;
        };
        if self.wanted == TimeDiscipline::Observe {
            return self.watch("discipline = \"observe\"".into(), now);
        }
        if let Some(why) = self.machine.obstacle() {
            return self.watch(why, now);
        }
        let kernel = match self.machine.kernel() {
            Ok(kernel) => kernel,
            Err(e) => return self.watch(format!("the kernel's clock cannot be read: {e}"), now),
        };
        let (before, at) = *first.get_or_insert((kernel, now));
        if now.since(at) < LOOK_AGAIN {
            return;
        }
        let other = match self.wanted {
            TimeDiscipline::Builtin => self.other_daemon(),
            _ => in_charge(before, kernel, &self.machine.daemons()),
        };
        if let Some(why) = other {
            return self.watch(why, now);
        }
        log::info!("steers this server's clock: it follows the master's");
        let discipline =
            Discipline::new(self.remembered(), kernel.rate_ppb, self.skew_ns, self.fresh);
        self.fresh = false;
        self.course = Course::Steering {
            discipline: Box::new(discipline),
            look_at: now + LOOK_ROUND / 6,
            alarm: None,
        };
    }

    /// A time daemon that steers, or might.
    fn other_daemon(&self) -> Option<String> {
        let auto = self.wanted == TimeDiscipline::Auto;
        let daemons = self.machine.daemons();
        let daemon = daemons.iter().find(|d| auto || !d.only_watches)?;
        Some(format!("{} runs", daemon.name))
    }

    fn watch(&mut self, why: String, now: BootTime) {
        let until = now + LOOK_ROUND;
        if self.fresh || !matches!(self.course, Course::Looking { .. }) {
            log::info!("this server's clock is only watched: {why}");
        }
        self.fresh = false;
        self.course = Course::Watching { why, until };
    }

    fn steer(&mut self, view: &View) {
        let Course::Steering {
            discipline, alarm, ..
        } = &mut self.course
        else {
            return;
        };
        let kernel = match self.machine.kernel() {
            Ok(kernel) => kernel,
            Err(e) => return self.stop(format!("the kernel's clock cannot be read: {e}")),
        };
        let actions = discipline.handle(&Reading {
            rate_ppb: kernel.rate_ppb,
            since_boot_ns: self.machine.since_boot_ns(),
            holds: view.holds,
            source: view.source.clone(),
            others: view.others.clone(),
        });
        let stopped = discipline.is_stopped();
        for action in actions {
            let done = match action {
                Action::Rate(ppb) => self.machine.set_rate(ppb),
                Action::Step(ns) => {
                    log::warn!(
                        "sets this server's clock by {:.3} s, to the master's",
                        ns as f64 / 1e9
                    );
                    self.machine.step(ns)
                }
                Action::Remember(ppb) => {
                    let written =
                        durable::write(&self.state_dir, DRIFT, format!("{ppb}\n").as_bytes());
                    written.unwrap_or_else(|e| log::warn!("{e}"));
                    Ok(())
                }
                Action::Alarm(Alarm::Over) => {
                    log::info!("{}", Alarm::Over);
                    *alarm = None;
                    Ok(())
                }
                Action::Alarm(now) => {
                    log::error!("{now}");
                    *alarm = Some(now);
                    Ok(())
                }
            };
            if let Err(e) = done {
                return self.stop(format!("the kernel's clock cannot be steered: {e}"));
            }
        }
        if stopped {
            let why = alarm.as_ref().map(Alarm::to_string);
            self.course = Course::Stopped {
                why: why.unwrap_or_default(),
            };
        }
    }

    fn stop(&mut self, why: String) {
        log::error!("{why}: it is left alone until syncd is restarted");
        self.course = Course::Stopped { why };
    }

    /// A slew does not go on without anybody at the helm.
    fn leave(&mut self) {
        if let Course::Steering { discipline, .. } = &self.course {
            let left = self.machine.set_rate(discipline.own_rate());
            left.unwrap_or_else(|e| log::warn!("the clock's rate stays as it is: {e}"));
        }
    }

    fn remembered(&self) -> Option<i64> {
        let text = std::fs::read_to_string(self.state_dir.join(DRIFT)).ok()?;
        text.trim().parse().ok()
    }

    fn in_words(&self) -> String {
        match &self.course {
            Course::Looking { .. } => "clock: looks whether anybody steers it".into(),
            Course::Watching { why, .. } => format!("clock: only watched: {why}"),
            Course::Steering { alarm: None, .. } => {
                "clock: steered, it follows the master's".into()
            }
            Course::Steering {
                alarm: Some(alarm), ..
            } => format!("clock: {alarm}"),
            Course::Stopped { why } => format!("clock: left alone: {why}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clock::Daemon;
    use std::{cell::Cell, io};

    const CONFIG: &str = r#"
[cluster]
name = "web"
quorum = "none"
[[server]]
name = "alpha"
address = "192.0.2.11"
[[server]]
name = "beta"
address = "192.0.2.12"
"#;
    const MS: i64 = 1_000_000;

    /// A clock that nobody but this test has.
    #[derive(Default)]
    struct Fake {
        rate: i64,
        since_boot: i64,
        maxerror: Cell<i64>,
        daemons: Vec<Daemon>,
        real_daemons: bool,
        obstacle: Option<String>,
        refuses: bool,
        writes: Vec<i64>,
    }

    impl Machine for Fake {
        fn obstacle(&self) -> Option<String> {
            self.obstacle.clone()
        }
        fn kernel(&self) -> io::Result<Kernel> {
            Ok(Kernel {
                rate_ppb: self.rate,
                offset: 0,
                maxerror_us: self.maxerror.get(),
            })
        }
        fn since_boot_ns(&self) -> i64 {
            self.since_boot
        }
        fn daemons(&self) -> Vec<Daemon> {
            if self.real_daemons {
                return crate::machine::running_daemons();
            }
            self.daemons.clone()
        }
        fn set_rate(&mut self, ppb: i64) -> io::Result<()> {
            if self.refuses {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.writes.push(ppb);
            self.rate = ppb;
            Ok(())
        }
        fn step(&mut self, ns: i64) -> io::Result<()> {
            self.writes.push(ns);
            self.since_boot += ns;
            Ok(())
        }
    }

    struct Scene {
        helm: Helm<Fake>,
        now: BootTime,
        _dir: tempfile::TempDir,
    }

    impl Scene {
        fn new(discipline: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let text = format!("{CONFIG}[time]\ndiscipline = \"{discipline}\"\n");
            let config = config::parse(&text, std::path::Path::new("f")).unwrap();
            let free = Fake {
                maxerror: Cell::new(16_000_000),
                ..Fake::default()
            };
            Self {
                helm: Helm::new(free, &config, dir.path().to_owned(), true),
                now: BootTime(1_000_000_000),
                _dir: dir,
            }
        }

        /// So many seconds with a master's clock so far ahead.
        fn seconds(&mut self, count: u32, ahead_ns: i64) -> &mut Self {
            let offset = OffsetStatus {
                offset_ns: ahead_ns,
                bound_ns: 1000,
                rate_ppb: 0,
            };
            let alpha: ServerName = "alpha".parse().unwrap();
            let view = View::from(false, Some(alpha.clone()), &[(alpha, offset)]);
            for _ in 0..count {
                self.helm.second(self.now, &view);
                self.now = self.now + LOOK;
            }
            self
        }

        fn words(&self) -> String {
            self.helm.in_words()
        }
    }

    #[test]
    fn a_free_clock_is_steered_after_three_seconds_and_left_at_its_own_rate() {
        let mut scene = Scene::new("auto");
        scene.seconds(4, 50 * MS);
        assert_eq!(scene.helm.machine.writes, []);
        scene.seconds(3, 50 * MS);
        assert_eq!(scene.helm.machine.rate, 500_000);
        assert!(scene.words().contains("steered"), "{}", scene.words());
        scene.helm.leave();
        assert_eq!(scene.helm.machine.rate, 0);
        // What was learned is there for the next start.
        assert!(scene.helm.remembered().is_none());
        durable::write(&scene.helm.state_dir, DRIFT, b"-1234\n").unwrap();
        assert_eq!(scene.helm.remembered(), Some(-1234));
    }

    #[test]
    fn whoever_is_in_charge_stays_in_charge() {
        type Change = fn(&mut Fake);
        let table: [(&str, &str, Change); 6] = [
            ("auto", "chronyd runs", |f| {
                f.daemons = vec![Daemon {
                    name: "chronyd",
                    only_watches: true,
                }]
            }),
            ("builtin", "ntpd-rs runs", |f| {
                f.daemons = vec![Daemon {
                    name: "ntpd-rs",
                    only_watches: false,
                }]
            }),
            ("auto", "kept within 15999999 us", |f| {
                f.maxerror = Cell::new(15_999_999)
            }),
            ("observe", "observe", |_| {}),
            ("auto", "a container", |f| {
                f.obstacle = Some("a container".into())
            }),
            ("builtin", "a container", |f| {
                f.obstacle = Some("a container".into())
            }),
        ];
        for (discipline, why, change) in table {
            let mut scene = Scene::new(discipline);
            change(&mut scene.helm.machine);
            scene.seconds(200, 50 * MS);
            assert_eq!(scene.helm.machine.writes, [], "{discipline} {why}");
            assert!(scene.words().contains(why), "{}", scene.words());
        }
    }

    #[test]
    fn builtin_takes_what_others_have_left_and_may_have_a_daemon_that_watches() {
        let mut scene = Scene::new("builtin");
        scene.helm.machine.maxerror = Cell::new(5);
        scene.helm.machine.daemons = vec![Daemon {
            name: "chronyd",
            only_watches: true,
        }];
        scene.seconds(5, MS);
        assert!(!scene.helm.machine.writes.is_empty());
    }

    #[test]
    fn a_daemon_that_comes_later_gets_the_clock_and_when_it_has_gone_nothing_is_set() {
        let mut scene = Scene::new("auto");
        scene.seconds(20, MS);
        scene.helm.machine.daemons = vec![Daemon {
            name: "ptp4l",
            only_watches: false,
        }];
        scene.seconds(15, MS);
        assert!(scene.words().contains("ptp4l runs"), "{}", scene.words());
        let writes = scene.helm.machine.writes.len();
        scene.seconds(100, MS);
        assert_eq!(scene.helm.machine.writes.len(), writes);
        scene.helm.machine.daemons.clear();
        let before = scene.helm.machine.since_boot;
        scene.seconds(100, 900 * MS);
        assert!(scene.words().contains("steered"), "{}", scene.words());
        assert_eq!(
            scene.helm.machine.since_boot, before,
            "set only at the start"
        );
    }

    #[test]
    fn a_second_writer_or_a_refusal_is_the_end_until_the_next_start() {
        let mut scene = Scene::new("auto");
        scene.seconds(10, MS);
        scene.helm.machine.rate += 777;
        scene.seconds(1, MS);
        let writes = scene.helm.machine.writes.len();
        scene.seconds(300, MS);
        assert_eq!(scene.helm.machine.writes.len(), writes);
        assert!(scene.words().contains("somebody else"), "{}", scene.words());

        let mut scene = Scene::new("auto");
        scene.helm.machine.refuses = true;
        scene.seconds(100, MS);
        assert!(scene.words().contains("left alone"), "{}", scene.words());
    }

    #[test]
    fn without_electd_nothing_is_set() {
        assert!(View::unknown().holds);
    }

    /// The real chronyd, with and without `rtcsync`, told not to touch the clock (`-x`): no test may.
    #[test]
    fn beside_a_real_chronyd_nothing_is_steered() {
        let Some(chronyd) = standin_tests::chronyd() else {
            return;
        };
        let user = nix::unistd::User::from_uid(nix::unistd::getuid());
        let user = user.unwrap().unwrap().name;
        for rtcsync in ["rtcsync\n", ""] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name).display().to_string();
            let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let text = format!(
                "port {port}\nbindaddress 127.0.0.1\nallow 127.0.0.1\ncmdport 0\nbindcmdaddress /\npidfile {}\n\
                 local stratum 10\n{rtcsync}",
                at("pid")
            );
            std::fs::write(at("conf"), text).unwrap();
            let mut child = std::process::Command::new(&chronyd)
                .args(["-x", "-d", "-u", &user, "-U", "-f", &at("conf")])
                .spawn()
                .unwrap();
            let end = std::time::Instant::now() + Duration::from_secs(10);
            while !std::path::Path::new(&at("pid")).exists() && std::time::Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
            let mut scene = Scene::new("auto");
            scene.helm.machine.real_daemons = true;
            scene.seconds(120, 50 * MS);
            let ended = child.try_wait().unwrap();
            let _ = child.kill();
            let _ = child.wait();
            assert_eq!(ended, None, "chronyd has ended by itself");
            assert_eq!(scene.helm.machine.writes, []);
            assert!(scene.words().contains("chronyd runs"), "{}", scene.words());
        }
    }
}
