//! The clock of the machine that this server runs on: what can be seen of it, and done to it.

use clock::{Daemon, Kernel, daemon_of};
use config::Config;
use daemon::sys::{self, Capability};
use protocol::ServerName;
use std::{fs, io};

/// A machine's clock; tests have one of their own.
pub trait Machine {
    /// Why it must not be steered from here, whoever else does or does not.
    fn obstacle(&self) -> Option<String>;
    /// What the kernel does with it.
    fn kernel(&self) -> io::Result<Kernel>;
    /// CLOCK_REALTIME minus CLOCK_BOOTTIME, in nanoseconds.
    fn since_boot_ns(&self) -> i64;
    /// Time daemons that run.
    fn daemons(&self) -> Vec<Daemon>;
    /// See [`sys::set_clock_rate`].
    fn set_rate(&mut self, ppb: i64) -> io::Result<()>;
    /// See [`sys::step_clock`].
    fn step(&mut self, ns: i64) -> io::Result<()>;
}

/// This machine.
pub struct This {
    /// Another server of the cluster has its address here: they share this clock.
    shared: Option<ServerName>,
}

impl This {
    pub fn new(config: &Config, me: &ServerName) -> Self {
        let here = |s: &&config::Server| s.addresses.iter().any(|a| a.is_loopback());
        let shared = config.peers(me).find(here).map(|s| s.name.clone());
        Self { shared }
    }
}

impl Machine for This {
    fn obstacle(&self) -> Option<String> {
        if let Some(server) = &self.shared {
            return Some(format!(
                "server {server} is on this machine and shares its clock"
            ));
        }
        if !sys::capabilities().is_ok_and(|have| sys::has(have, Capability::SysTime)) {
            return Some("CAP_SYS_TIME is missing".into());
        }
        // The clock belongs to the machine, of which a container or a server in a lab is only a part.
        let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
        match (network("1"), network("self")) {
            (Ok(first), Ok(own)) if first == own => None,
            (Ok(_), Ok(_)) => Some(
                "this server is in a network namespace of its own and shares the machine's clock"
                    .into(),
            ),
            (Err(e), _) | (_, Err(e)) => Some(format!(
                "it cannot be seen whether this is the machine or a container on it: /proc/1/ns/net: {e}"
            )),
        }
    }

    fn kernel(&self) -> io::Result<Kernel> {
        let seen = sys::kernel_clock()?;
        Ok(Kernel {
            rate_ppb: seen.rate_ppb,
            offset: seen.offset,
            maxerror_us: seen.maxerror_us,
        })
    }

    fn since_boot_ns(&self) -> i64 {
        daemon::real_now_ns().wrapping_sub(daemon::now().0) as i64
    }

    fn daemons(&self) -> Vec<Daemon> {
        running_daemons()
    }

    fn set_rate(&mut self, ppb: i64) -> io::Result<()> {
        sys::set_clock_rate(ppb)
    }

    fn step(&mut self, ns: i64) -> io::Result<()> {
        sys::step_clock(ns)
    }
}

/// The time daemons among all processes that can be seen.
pub fn running_daemons() -> Vec<Daemon> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let daemon = |process: fs::DirEntry| {
        let read = |file| fs::read(process.path().join(file)).ok();
        let comm = read("comm")?;
        let comm = String::from_utf8_lossy(&comm);
        // Most processes are none: their arguments are not read.
        daemon_of(comm.trim_end(), &[])?;
        let arguments = read("cmdline").unwrap_or_default();
        let arguments: Vec<_> = arguments
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let arguments: Vec<_> = arguments.iter().map(|a| a.as_ref()).collect();
        daemon_of(comm.trim_end(), &arguments)
    };
    let numbered = |p: &fs::DirEntry| {
        p.file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit)
    };
    processes.filter(numbered).filter_map(daemon).collect()
}
