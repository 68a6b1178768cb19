//! A cluster of standin's daemons on a lab's network.

use crate::{
    Error, FOLDER, Host, Net, Process, Signal, Usage, Wiring, binary,
    net::{address, further, last_byte, mac, server_address},
    wait_for,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Output},
    thread,
    time::Duration,
};

/// The daemons' port, UDP and TCP.
pub const PORT: u16 = 6946;
/// Names of the virtual servers, in order.
const VIRTUAL: [&str; 3] = ["web", "mail", "files"];
/// How long anything ordinary may take before it counts as not happening.
const PATIENCE: Duration = Duration::from_secs(30);

/// Heartbeat and lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What it is called.
    pub name: &'static str,
    /// Time between beats.
    pub heartbeat: Duration,
    /// How long a promise binds.
    pub lease: Duration,
}

const fn profile(name: &'static str, heartbeat_ms: u64, lease_ms: u64) -> Profile {
    let (heartbeat, lease) = (
        Duration::from_millis(heartbeat_ms),
        Duration::from_millis(lease_ms),
    );
    Profile {
        name,
        heartbeat,
        lease,
    }
}

/// As a cluster is without any word about time in its configuration.
pub const DEFAULT: Profile = profile("default", 100, 500);
/// Ten times as fast.
pub const FAST: Profile = profile("fast", 10, 50);
/// As fast as the rules allow.
pub const FASTEST: Profile = profile("fastest", 5, 25);

/// A lease that no stall of an ordinary machine outlasts.
pub const LONG: Profile = profile("long", 200, 3000);

/// What cluster to build.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Servers in the configuration.
    pub servers: usize,
    /// Further hosts, not in the configuration yet.
    pub spares: usize,
    /// The last of the servers only votes.
    pub witness: bool,
    /// Virtual servers; each but the first prefers the server of its own number.
    pub virtual_servers: usize,
    /// Heartbeat and lease.
    pub profile: Profile,
    /// The quorum rule.
    pub quorum: &'static str,
    /// So many further IPv4 addresses of the first virtual server.
    pub further_addresses: usize,
    /// So many further virtual servers of one IPv4 address each.
    pub further_virtual_servers: usize,
    /// Servers speak, and clients ask, over IPv6.
    pub ipv6: bool,
    /// The virtual servers' MAC addresses: "own", "virtual".
    pub mac: &'static str,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            servers: 3,
            spares: 0,
            witness: false,
            virtual_servers: 1,
            profile: DEFAULT,
            quorum: "majority",
            further_addresses: 0,
            further_virtual_servers: 0,
            ipv6: false,
            mac: "own",
        }
    }
}

impl Spec {
    /// The configuration of a cluster of the first `servers` hosts.
    pub fn config(&self, servers: usize) -> String {
        let ms = |span: Duration| format!("{}ms", span.as_millis());
        let mut text = format!(
            "[cluster]\nname = \"lab\"\nkey = \"{FOLDER}/cluster.key\"\nport = {PORT}\nheartbeat = \"{}\"\nlease = \"{}\"\n\
             quorum = \"{}\"\n\n[scripts]\ndirectory = \"{FOLDER}/etc\"\n\n\
             [time]\ndiscipline = \"observe\"\n",
            ms(self.profile.heartbeat),
            ms(self.profile.lease),
            self.quorum
        );
        for (index, name) in crate::NAMES[..servers].iter().enumerate() {
            let address = server_address(index, self.ipv6);
            let _ = write!(
                text,
                "\n[[server]]\nname = \"{name}\"\naddress = [\"{address}\"]\n"
            );
            if self.witness && index + 1 == self.servers {
                text += "witness = true\n";
            }
        }
        for (index, name) in VIRTUAL[..self.virtual_servers].iter().enumerate() {
            let (v4, v6) = (address(index, false), address(index, true));
            let _ = write!(
                text,
                "\n[[virtual_server]]\nname = \"{name}\"\ninterface = \"eth0\"\naddress = [\"{v4}/24\", \"{v6}/64\""
            );
            for n in 0..if index == 0 {
                self.further_addresses
            } else {
                0
            } {
                let _ = write!(text, ",\n  \"{}/15\"", further(n));
            }
            text += "]\n";
            let _ = writeln!(text, "mac = \"{}\"", self.mac);
            if index > 0 {
                let _ = writeln!(
                    text,
                    "priority = {{ {} = 200 }}",
                    crate::NAMES[index % servers.max(1)]
                );
            }
        }
        for n in 0..self.further_virtual_servers {
            let (address, preferred) = (further(self.further_addresses + n), n % servers.max(1));
            let _ = write!(
                text,
                "\n[[virtual_server]]\nname = \"further-{n}\"\ninterface = \"eth0\"\naddress = [\"{address}/15\"]\n\
                 priority = {{ {} = 200 }}\n",
                crate::NAMES[preferred]
            );
        }
        text
    }

    /// The further addresses: those of the first virtual server, then one of each further one.
    pub fn further(&self) -> Vec<Ipv4Addr> {
        let count = self.further_addresses + self.further_virtual_servers;
        (0..count).map(further).collect()
    }
}

/// A running cluster. Dropping it ends all of it.
pub struct Cluster {
    net: Net,
    spec: Spec,
    command: PathBuf,
    servers: Vec<Server>,
    pub(crate) keeps_files: bool,
}

#[derive(Default)]
struct Server {
    child: Option<Child>,
    ssh: Option<Child>,
    environment: Vec<(&'static str, String)>,
}

impl Cluster {
    /// Builds the network and every server's files, but starts and initialises nothing.
    pub fn prepare(spec: Spec) -> Result<Self, Error> {
        for role in ["hbd", "listend", "doctord", "electd"] {
            binary(role)?;
        }
        let command = binary("standin")?;
        let hosts = spec.servers + spec.spares;
        let net = Net::build(Wiring {
            servers: hosts,
            virtual_servers: spec.virtual_servers,
            ipv6: spec.ipv6,
            beats: format!("udp dport {PORT}"),
        })?;
        let cluster = Self {
            net,
            spec,
            command,
            servers: (0..hosts).map(|_| Server::default()).collect(),
            keeps_files: false,
        };
        let root = Path::new(FOLDER);
        for side in ["master.d", "slave.d"] {
            let script = root.join("etc").join(side).join("50-note");
            make_folder(&root.join("etc").join(side))?;
            let name = script.display().to_string();
            let line = format!("$STANDIN_SERVER {side} $1 $STANDIN_VIRTUAL_SERVER $STANDIN_TERM");
            let text = format!("#!/bin/sh\necho \"{line}\" >>{FOLDER}/scripts\n");
            fs::write(&script, text).map_err(Error::system(&name))?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
                .map_err(Error::system(&name))?;
        }
        let key = root.join("cluster.key").display().to_string();
        let output = cluster
            .net
            .client_host()
            .output(&cluster.command, &["keygen".to_owned(), key])?;
        accepted("standin keygen", output)?;
        for server in 0..hosts {
            make_folder(&cluster.run_dir(server))?;
            make_folder(&cluster.state_dir(server))?;
            // A file system of its own, so that a test can fill it.
            let state = cluster.state_dir(server);
            mount(
                Some("state"),
                &state,
                Some("tmpfs"),
                MsFlags::MS_NOSUID,
                Some("size=1m,mode=755"),
            )
            .map_err(|e| Error::system(state.display().to_string())(e))?;
            cluster.write_config(server, &cluster.spec.config(cluster.spec.servers))?;
        }
        Ok(cluster)
    }

    /// A cluster of that kind, initialised and started, with a master everywhere.
    pub fn start(spec: Spec) -> Result<Self, Error> {
        let mut cluster = Self::prepare(spec)?;
        cluster.boot()?;
        cluster.settle()?;
        Ok(cluster)
    }

    /// Initialises all servers, and starts them.
    pub fn boot(&mut self) -> Result<(), Error> {
        (0..self.spec.servers).try_for_each(|server| self.init(server))?;
        (0..self.spec.servers).try_for_each(|server| self.start_server(server))
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// What was built.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// A server's host.
    pub fn host(&self, server: usize) -> &Host {
        &self.net.servers()[server]
    }

    /// A server's name.
    pub fn name(&self, server: usize) -> &str {
        self.host(server).name()
    }

    /// The server of that name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.net.servers().iter().position(|h| h.name() == name)
    }

    /// Whether it was started and not ended since.
    pub fn is_on(&self, server: usize) -> bool {
        self.servers[server].child.is_some()
    }

    fn folder(&self, server: usize) -> PathBuf {
        Path::new(FOLDER).join(self.name(server))
    }

    /// The server's run-dir.
    pub fn run_dir(&self, server: usize) -> PathBuf {
        self.folder(server).join("run")
    }

    /// The server's state-dir, a file system of 1 MiB.
    pub fn state_dir(&self, server: usize) -> PathBuf {
        self.folder(server).join("state")
    }

    /// The server's configuration file.
    pub fn config_file(&self, server: usize) -> PathBuf {
        self.folder(server).join("standin.toml")
    }

    /// What the server's daemons have logged.
    pub fn log(&self, server: usize) -> String {
        fs::read(self.folder(server).join("log"))
            .map_or(String::new(), |b| String::from_utf8_lossy(&b).into_owned())
    }

    /// The last lines of every server's log.
    pub fn tails(&self, lines: usize) -> String {
        let mut text = String::new();
        for server in 0..self.servers.len() {
            let log = self.log(server);
            let all: Vec<_> = log.lines().collect();
            let _ = writeln!(
                text,
                "--- log of {}, {} lines",
                self.name(server),
                all.len()
            );
            for line in &all[all.len().saturating_sub(lines)..] {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }

    /// What the role scripts have noted: server, folder, argument, virtual server, term.
    pub fn script_notes(&self) -> String {
        fs::read_to_string(Path::new(FOLDER).join("scripts")).unwrap_or_default()
    }

    /// Writes a server's configuration.
    pub fn write_config(&self, server: usize, text: &str) -> Result<(), Error> {
        let file = self.config_file(server);
        fs::write(&file, text).map_err(Error::system(file.display().to_string()))
    }

    /// Copies the programs into a folder of the cluster's own, to be replaced there; its servers run them from their next
    /// start on.
    pub fn copy_programs(&mut self) -> Result<PathBuf, Error> {
        let folder = Path::new(FOLDER).join("bin");
        make_folder(&folder)?;
        for name in ["standin", "hbd", "listend", "doctord", "electd", "syncd"] {
            let to = folder.join(name);
            fs::copy(binary(name)?, &to).map_err(Error::system(to.display().to_string()))?;
        }
        self.use_programs(folder.clone());
        Ok(folder)
    }

    /// Whether the servers keep files alike.
    pub fn keeps_files(&self) -> bool {
        self.keeps_files
    }

    pub(crate) fn use_programs(&mut self, folder: PathBuf) {
        self.command = folder.join("standin");
    }

    /// The SSH server that runs on a server now.
    pub(crate) fn keep_ssh(&mut self, server: usize, child: Child) {
        if let Some(mut killed) = self.servers[server].ssh.replace(child) {
            let _ = killed.try_wait();
        }
    }

    /// Adds to the environment of a server's daemons, from its next start on.
    pub fn set_environment(&mut self, server: usize, name: &'static str, value: &str) {
        self.servers[server].environment.retain(|(n, _)| *n != name);
        self.servers[server]
            .environment
            .push((name, value.to_owned()));
    }

    pub(crate) fn args(&self, server: usize, command: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = command.iter().map(|&a| a.to_owned()).collect();
        let paths = [
            ("--config", self.config_file(server)),
            ("--run-dir", self.run_dir(server)),
            ("--state-dir", self.state_dir(server)),
        ];
        for (option, path) in paths {
            args.extend([option.to_owned(), path.display().to_string()]);
        }
        args.extend(["--server".to_owned(), self.name(server).to_owned()]);
        args
    }

    /// Runs `standin COMMAND` on a server, whatever comes of it.
    pub fn ask(&self, server: usize, command: &[&str]) -> Result<Output, Error> {
        self.host(server)
            .output(&self.command, &self.args(server, command))
    }

    /// Runs `standin COMMAND` on a server; an error if it says no.
    pub fn tell(&self, server: usize, command: &[&str]) -> Result<String, Error> {
        accepted(
            &format!("standin {} ({})", command.join(" "), self.name(server)),
            self.ask(server, command)?,
        )
    }

    /// Begins `standin COMMAND` on a server and does not wait; what it says is appended to the server's log.
    pub fn begin(&self, server: usize, command: &[&str]) -> Result<Child, Error> {
        let (args, log) = (self.args(server, command), self.folder(server).join("log"));
        let host = self.host(server);
        host.spawn(&self.command, &args, &[], &log)
    }

    /// `standin init` on a server.
    pub fn init(&self, server: usize) -> Result<(), Error> {
        self.tell(server, &["init"]).map(drop)
    }

    /// Starts `standin run` on a server.
    pub fn start_server(&mut self, server: usize) -> Result<(), Error> {
        let log = self.folder(server).join("log");
        let environment: Vec<_> = self.servers[server]
            .environment
            .iter()
            .map(|(n, v)| (*n, v.as_str()))
            .collect();
        let child = self.host(server).spawn(
            &self.command,
            &self.args(server, &["run"]),
            &environment,
            &log,
        )?;
        if let Some(mut killed) = self.servers[server].child.replace(child) {
            let _ = killed.try_wait();
        }
        Ok(())
    }

    /// Asks a server's main daemon to stop and waits for it. An SSH server ends with it.
    pub fn stop(&mut self, server: usize) -> Result<(), Error> {
        self.stop_ssh(server)?;
        self.send(server, Signal::SIGTERM)?;
        self.reap(server)
    }

    /// Sends a Unix signal to a server's main daemon.
    pub fn send(&self, server: usize, signal: Signal) -> Result<(), Error> {
        let pid = self.servers[server]
            .child
            .as_ref()
            .map(|c| c.id().cast_signed());
        let processes = self.host(server).processes();
        processes
            .iter()
            .filter(|p| Some(p.pid) == pid)
            .try_for_each(|p| p.signal(signal))
    }

    /// Whether a server's main daemon has ended, and all else that ran there.
    pub fn has_ended(&mut self, server: usize) -> bool {
        let child = &mut self.servers[server].child;
        if let Some(running) = child
            && matches!(running.try_wait(), Ok(Some(_)))
        {
            *child = None;
        }
        child.is_none() && self.host(server).processes().is_empty()
    }

    /// Waits for a server to end.
    fn reap(&mut self, server: usize) -> Result<(), Error> {
        let what = format!("all daemons of {} end", self.name(server));
        wait_for(&what, PATIENCE, || self.has_ended(server).then_some(()))
    }

    /// SIGKILL of whatever runs on a server, at once. Its kernel keeps what it has: addresses, gate.
    pub fn kill_all(&mut self, server: usize) -> Result<(), Error> {
        self.host(server).kill_all()?;
        self.reap(server)
    }

    /// Power loss: the network is cut first, then everything dies at once; the disk alone remains.
    pub fn power_loss(&mut self, server: usize) -> Result<(), Error> {
        self.net.cable(server, false)?;
        self.kill_all(server)?;
        let run = self.run_dir(server);
        let _ = umount2(&run.join("bpf"), MntFlags::MNT_DETACH); // the kernel's gate goes with the power
        fs::remove_dir_all(&run).map_err(Error::system(run.display().to_string()))?;
        make_folder(&run)
    }

    /// Power is back: the server boots.
    pub fn power_on(&mut self, server: usize) -> Result<(), Error> {
        self.net.forget(server)?;
        self.net.cable(server, true)?;
        self.start_server(server)
    }

    /// The processes of one role on a server.
    pub fn role(&self, server: usize, role: &str) -> Vec<Process> {
        self.host(server).named(role)
    }

    /// Sends a Unix signal to one role of a server.
    pub fn kill(&self, server: usize, role: &str, signal: Signal) -> Result<(), Error> {
        let found = self.role(server, role);
        if found.is_empty() {
            return Err(Error::Wrong(format!(
                "no {role} runs on {}",
                self.name(server)
            )));
        }
        found.iter().try_for_each(|p| p.signal(signal))
    }

    /// What a server's processes use.
    pub fn usage(&self, server: usize) -> Usage {
        let usages = self.host(server).processes().into_iter().map(|p| p.usage());
        usages.fold(Usage::default(), |sum, one| Usage {
            cpu: sum.cpu + one.cpu,
            rss: sum.rss + one.rss,
        })
    }

    /// What `standin status --json` says on a server; none if it says nothing.
    pub fn status(&self, server: usize) -> Option<Value> {
        let output = self.ask(server, &["status", "--json"]).ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// What a server says about virtual server number `v`: its own role, and whom it believes master.
    pub fn view(&self, server: usize, v: usize) -> Option<(String, Option<String>)> {
        let status = self.status(server)?;
        let all = status["virtual_servers"].as_array()?;
        let one = all.iter().find(|one| one["name"] == VIRTUAL[v])?;
        Some((
            one["role"].as_str()?.to_owned(),
            one["master"].as_str().map(str::to_owned),
        ))
    }

    /// A server's own address.
    pub fn server_address(&self, server: usize) -> IpAddr {
        server_address(server, self.spec.ipv6)
    }

    /// The MAC address of a server's own interface.
    pub fn mac(&self, server: usize) -> String {
        mac(last_byte(server))
    }

    /// What a server's roles have counted: `what` of `role`, 0 if that was never counted.
    pub fn counter(&self, server: usize, role: &str, what: &str) -> u64 {
        self.status(server).map_or(0, |status| {
            status["counters"][role][what].as_u64().unwrap_or(0)
        })
    }

    /// The address of virtual server number `v` that clients ask.
    pub fn address(&self, v: usize) -> IpAddr {
        address(v, self.spec.ipv6)
    }

    /// The only server that answers for virtual server number `v` now, as the judge sees it.
    pub fn master(&self, v: usize) -> Option<usize> {
        match self.net.judge().holders(v)[..] {
            [one] => Some(one),
            _ => None,
        }
    }

    /// Waits until one server other than `not` answers for virtual server number `v`.
    pub fn wait_master(&self, v: usize, not: Option<usize>) -> Result<usize, Error> {
        let what = match not {
            Some(old) => format!(
                "a server other than {} answers for {}",
                self.name(old),
                VIRTUAL[v]
            ),
            None => format!("a server answers for {}", VIRTUAL[v]),
        };
        wait_for(&what, PATIENCE, || {
            self.master(v).filter(|m| Some(*m) != not)
        })
    }

    /// Waits until every virtual server has one master and all running servers of the cluster agree on it and
    /// hold each other for alive. Gives the master of the first.
    pub fn settle(&self) -> Result<usize, Error> {
        wait_for("all servers agree on the masters", PATIENCE, || {
            let on: Vec<usize> = (0..self.servers.len()).filter(|s| self.is_on(*s)).collect();
            for v in 0..self.spec.virtual_servers {
                let master = self.master(v)?;
                for &server in &on {
                    let (_, believed) = self.view(server, v)?;
                    if believed.as_deref() != Some(self.name(master)) {
                        return None;
                    }
                }
            }
            for &server in &on {
                let status = self.status(server)?;
                let alive = |name: &str| {
                    let others = status["servers"].as_array().into_iter().flatten();
                    others
                        .into_iter()
                        .any(|s| s["name"] == name && s["state"] == "alive")
                };
                if on
                    .iter()
                    .any(|&other| other != server && !alive(self.name(other)))
                {
                    return None;
                }
            }
            Some(())
        })?;
        thread::sleep(self.spec.profile.lease * 2);
        self.wait_master(0, None)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (host, server) in self.net.servers().iter().zip(&mut self.servers) {
            // Whatever remains ends with the lab's own process.
            let _ = host.kill_all();
            for child in server.child.iter_mut().chain(&mut server.ssh) {
                let _ = child.wait();
            }
            for mounted in ["state", "run/bpf"] {
                let mounted = Path::new(FOLDER).join(host.name()).join(mounted);
                let _ = umount2(&mounted, MntFlags::MNT_DETACH);
            }
            let _ = fs::remove_dir_all(Path::new(FOLDER).join(host.name()));
        }
        for file in ["cluster.key", "scripts"] {
            let _ = fs::remove_file(Path::new(FOLDER).join(file));
        }
        let _ = fs::remove_dir_all(Path::new(FOLDER).join("bin"));
    }
}

pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::system(path.display().to_string()))
}

pub(crate) fn accepted(command: &str, output: Output) -> Result<String, Error> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let output = text + &String::from_utf8_lossy(&output.stderr);
    Err(Error::Refused {
        command: command.to_owned(),
        output,
    })
}
