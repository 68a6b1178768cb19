//! keepalived on the same network, for comparison.

use crate::{
    Error, FOLDER, Net, Signal, Wiring,
    net::{address, further},
    wait_for,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Duration,
};

/// What a beat of keepalived is, as nftables sees it.
const BEATS: &str = "ip protocol 112";
/// Far apart: neighbouring priorities make two backups take over at once.
const PRIORITIES: [u8; 6] = [200, 150, 100, 75, 50, 25];
/// Higher than all of these.
const RAISED: u8 = 250;

/// A cluster of keepalived, of the version the system has, as it comes.
pub struct Keepalived {
    net: Net,
    interval: Duration,
    /// Further addresses.
    further: usize,
    children: Vec<Option<Child>>,
    priorities: Vec<u8>,
    virtual_mac: bool,
}

impl Keepalived {
    /// Starts `servers` of them, advertising every `interval`, and waits until one holds the address.
    pub fn start(servers: usize, interval: Duration) -> Result<Self, Error> {
        Self::begin(servers, interval, 0, false)
    }

    /// The same with so many further addresses as [`Spec::further`](crate::Spec::further) has. They are left out of
    /// the adverts, which have no room for them.
    pub fn start_with(servers: usize, interval: Duration, further: usize) -> Result<Self, Error> {
        Self::begin(servers, interval, further, false)
    }

    /// As [`Keepalived::start`], at the MAC address [`Keepalived::VIRTUAL_MAC`].
    pub fn start_virtual_mac(servers: usize, interval: Duration) -> Result<Self, Error> {
        Self::begin(servers, interval, 0, true)
    }

    /// The MAC address of its virtual router (RFC 9568, 7.3).
    pub const VIRTUAL_MAC: &'static str = "00:00:5e:00:01:33";

    fn begin(
        servers: usize,
        interval: Duration,
        further: usize,
        virtual_mac: bool,
    ) -> Result<Self, Error> {
        let net = Net::build(Wiring {
            servers,
            virtual_servers: 1,
            ipv6: false,
            beats: BEATS.to_owned(),
        })?;
        let mut cluster = Self {
            net,
            interval,
            further,
            children: (0..servers).map(|_| None).collect(),
            priorities: PRIORITIES[..servers].to_vec(),
            virtual_mac,
        };
        for server in 0..servers {
            cluster.power_on(server)?;
        }
        cluster.settle()?;
        Ok(cluster)
    }

    /// The network it runs on.
    pub fn net(&self) -> &Net {
        &self.net
    }

    fn folder(&self, server: usize) -> PathBuf {
        Path::new(FOLDER).join(format!("keepalived-{}", self.net.servers()[server].name()))
    }

    fn configure(&self, server: usize) -> Result<PathBuf, Error> {
        let folder = self.folder(server);
        fs::create_dir_all(&folder).map_err(Error::system(folder.display().to_string()))?;
        let file = folder.join("keepalived.conf");
        let lines: String = (0..self.further)
            .map(|n| format!("    {}/15\n", further(n)))
            .collect();
        let excluded = match self.further {
            0 => String::new(),
            _ => format!("  virtual_ipaddress_excluded {{\n{lines}  }}\n"),
        };
        let text = format!(
            "global_defs {{\n  vrrp_version 3\n}}\nvrrp_instance web {{\n  state BACKUP\n  interface eth0\n  \
             virtual_router_id 51\n{}  priority {}\n  advert_int {}\n  virtual_ipaddress {{\n    {}/24\n  }}\n{}}}\n",
            if self.virtual_mac {
                "  use_vmac\n  vmac_xmit_base\n"
            } else {
                ""
            },
            self.priorities[server],
            self.interval.as_secs_f64(),
            address(0, false),
            excluded,
        );
        fs::write(&file, text).map_err(Error::system(file.display().to_string()))?;
        Ok(file)
    }

    /// The only holder now, if there is exactly one.
    pub fn master(&self) -> Option<usize> {
        match self.net.judge().holders(0)[..] {
            [one] => Some(one),
            _ => None,
        }
    }

    /// Waits until the running server of highest priority holds the address alone, for a while, and clients know.
    pub fn settle(&self) -> Result<usize, Error> {
        let running = (0..self.children.len()).filter(|s| self.children[*s].is_some());
        let due = running.max_by_key(|s| self.priorities[*s]);
        let calm = self.interval * 4 + Duration::from_millis(300);
        wait_for(
            "keepalived settles on one master",
            Duration::from_secs(120),
            || {
                let served = self.net.client(0).silence() < Duration::from_millis(20);
                let master = self.master().filter(|m| served && Some(*m) == due)?;
                let mark = self.net.judge().mark();
                thread::sleep(calm);
                let verdict = self.net.judge().since(mark, 0);
                (verdict
                    .holdings
                    .iter()
                    .all(|h| h.servers.is_empty() || h.servers == [master]))
                .then_some(master)
            },
        )
    }

    /// Cuts the network, then kills everything at once.
    pub fn power_loss(&mut self, server: usize) -> Result<(), Error> {
        self.net.cable(server, false)?;
        self.net.servers()[server].kill_all()?;
        self.reap(server)
    }

    /// Starts a server, with its cable plugged.
    pub fn power_on(&mut self, server: usize) -> Result<(), Error> {
        let file = self.configure(server)?;
        let folder = self.folder(server);
        self.net.forget(server)?;
        self.net.cable(server, true)?;
        let file_arg =
            |option: &str, name: &str| [option.to_owned(), folder.join(name).display().to_string()];
        let mut args = vec![
            "-n".to_owned(),
            "-l".to_owned(),
            "-P".to_owned(),
            "-f".to_owned(),
        ];
        args.push(file.display().to_string());
        args.extend(file_arg("-p", "parent.pid"));
        args.extend(file_arg("-r", "vrrp.pid"));
        let log = folder.join("log");
        let child = self.net.servers()[server].spawn(Path::new("keepalived"), &args, &[], &log);
        let child = child.map_err(|error| match error {
            Error::System { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Error::Missing {
                    tool: "keepalived".to_owned(),
                }
            }
            other => other,
        })?;
        self.children[server] = Some(child);
        Ok(())
    }

    /// Asks a server to stop, as its service script does.
    pub fn stop(&mut self, server: usize) -> Result<(), Error> {
        if let Some(child) = &self.children[server] {
            let pid = child.id().cast_signed();
            for process in self.net.servers()[server]
                .processes()
                .into_iter()
                .filter(|p| p.pid == pid)
            {
                process.signal(Signal::SIGTERM)?;
            }
        }
        self.reap(server)
    }

    /// Moves the address to `server` by giving it the highest priority and reloading it.
    pub fn promote(&mut self, server: usize) -> Result<(), Error> {
        self.priorities[server] = RAISED;
        self.reload(server)
    }

    /// Takes the highest priority away again.
    pub fn demote(&mut self, server: usize) -> Result<(), Error> {
        self.priorities[server] = PRIORITIES[server];
        self.reload(server)
    }

    fn reload(&self, server: usize) -> Result<(), Error> {
        self.configure(server)?;
        let parent = self.children[server].as_ref().map(|c| c.id().cast_signed());
        let processes = self.net.servers()[server].processes();
        processes
            .iter()
            .filter(|p| Some(p.pid) == parent)
            .try_for_each(|p| p.signal(Signal::SIGHUP))
    }

    fn reap(&mut self, server: usize) -> Result<(), Error> {
        match self.children[server].take() {
            Some(mut child) => child
                .wait()
                .map(drop)
                .map_err(Error::system("waiting for keepalived")),
            None => Ok(()),
        }
    }
}

impl Drop for Keepalived {
    /// A process that nobody has waited for counts as running, and the next keepalived beside its pid file as one too
    /// many.
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}
