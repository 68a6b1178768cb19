//! How long this machine stood still, and how to keep it from dozing.
//!
//! An idle virtual CPU may be woken milliseconds to seconds late by its host. So while something is measured
//! every CPU is kept busy at the lowest precedence there is, and a thread of the highest tells how late even it
//! was woken.

use crate::{
    Error,
    enter::{SPIN, again},
    pace,
    process::command,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::{Pid, setsid},
};
use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Precedence of the stall meter among real-time threads; the other measuring threads are below, the daemons
/// further below.
const METER: i32 = 99;

fn on_every_cpu(
    stop: &Arc<AtomicBool>,
    work: impl Fn(&AtomicBool) + Send + Clone + 'static,
) -> Result<(), Error> {
    let here =
        sched_getaffinity(Pid::from_raw(0)).map_err(Error::system("which CPUs there are"))?;
    for cpu in (0..CpuSet::count()).filter(|cpu| here.is_set(*cpu).unwrap_or(false)) {
        let (stop, work) = (Arc::clone(stop), work.clone());
        let run = move || {
            let mut only = CpuSet::new();
            // A CPU taken away meanwhile: the thread then runs where it can, which serves as well.
            let _ = only
                .set(cpu)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
            work(&stop);
        };
        thread::Builder::new()
            .name(format!("cpu-{cpu}"))
            .spawn(run)
            .map_err(Error::system("starting a thread"))?;
    }
    Ok(())
}

/// One thread of highest precedence on each CPU that measures by how much it is woken late.
pub struct Stalls {
    worst: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// The threads have real-time precedence; without it a busy machine looks like a stalled one.
    pub realtime: bool,
}

impl Stalls {
    /// Starts measuring.
    pub fn start() -> Result<Self, Error> {
        let (worst, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let realtime = thread::spawn(|| daemon::sys::scheduler_fifo(METER).is_ok())
            .join()
            .unwrap_or(false);
        let shared = Arc::clone(&worst);
        on_every_cpu(&stop, move |stop| {
            let _ = daemon::sys::scheduler_fifo(METER);
            while !stop.load(Ordering::Relaxed) {
                let due = pace::now() + pace::PERIOD;
                pace::sleep_until(due);
                shared.fetch_max(pace::now().saturating_sub(due), Ordering::Relaxed);
            }
        })?;
        Ok(Self {
            worst,
            stop,
            realtime,
        })
    }

    /// The longest stall since this was last asked.
    pub fn take(&self) -> Duration {
        Duration::from_nanos(self.worst.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Keeps every CPU busy at the lowest precedence, for as long as this lives.
///
/// A process of its own, since the kernel may share time out by session first (autogroups), and a session with a
/// spinner in it then takes half of a CPU from everybody outside, the kernel's own threads among them.
pub struct Spinners(Child);

impl Spinners {
    /// Starts them; only inside a lab.
    pub fn start() -> Result<Self, Error> {
        let spawned = again(SPIN)?.stdin(Stdio::null()).spawn();
        spawned
            .map(Self)
            .map_err(Error::system("starting what keeps the CPUs awake"))
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        // It ends with the lab at the latest.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Programs that take all the time they get, each in a session of its own, for as long as this lives.
pub struct Hogs(Vec<Child>);

/// Writes to a disk without end, each time until it is there, and leaves no file behind.
const WRITE: &str = "file=$(mktemp) || exit; exec 3>\"$file\"; rm \"$file\"; \
     while :; do dd if=/dev/zero of=/dev/fd/3 bs=1M count=32 conv=fsync 2>/dev/null; done";

impl Hogs {
    /// Starts so many that want a CPU; each also ends by itself after `limit`.
    pub fn start(count: usize, limit: Duration) -> Result<Self, Error> {
        Self::each(count, limit, "while :; do :; done")
    }

    /// Starts so many that keep the disk of temporary files busy.
    pub fn writing(count: usize, limit: Duration) -> Result<Self, Error> {
        Self::each(count, limit, WRITE)
    }

    fn each(count: usize, limit: Duration, line: &str) -> Result<Self, Error> {
        let mut hogs = Self(Vec::new());
        for _ in 0..count {
            let mut hog = command("setsid");
            let seconds = format!("{}s", limit.as_secs());
            hog.args(["--wait", "timeout", &seconds, "sh", "-c", line]);
            let spawned = hog.stdin(Stdio::null()).process_group(0).spawn();
            hogs.0
                .push(spawned.map_err(Error::system("starting a hog"))?);
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            // The hog itself ends by itself; what waits for it here need not.
            let _ = hog.kill().and_then(|()| hog.wait());
        }
    }
}

/// What that process does, without end.
pub(crate) fn spin() -> ! {
    // What is refused here only makes the spinners less meek; without the lowest precedence there are none.
    let _ = set_pdeathsig(Signal::SIGKILL);
    let _ = setsid();
    let _ = fs::write("/proc/self/autogroup", "19");
    let _ = on_every_cpu(&Arc::default(), |_| {
        if daemon::sys::scheduler_idle().is_ok() {
            loop {
                std::hint::spin_loop();
            }
        }
    });
    loop {
        thread::park();
    }
}
