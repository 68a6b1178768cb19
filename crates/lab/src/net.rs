//! The network: a bridge, the hosts on it, and what can go wrong with it.

use crate::{
    Client, Error, Judge, Process, echo,
    process::{command, in_namespace, kill_namespace, tool},
};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::AsRawFd, unix::fs::MetadataExt, unix::process::CommandExt},
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Names of the servers, in order.
pub const NAMES: [&str; 6] = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"];

/// A host: a network namespace.
pub struct Host {
    name: String,
    namespace: File,
    inode: u64,
}

impl Host {
    pub(crate) fn new(name: &str) -> Result<Self, Error> {
        let make = || -> Result<File, Error> {
            unshare(CloneFlags::CLONE_NEWNET).map_err(Error::system("a network namespace"))?;
            File::open("/proc/thread-self/ns/net").map_err(Error::system("a network namespace"))
        };
        let joined = thread::spawn(make).join();
        let namespace = joined
            .unwrap_or_else(|_| Err(Error::Wrong("a thread of the lab panicked".to_owned())))?;
        let inode = namespace
            .metadata()
            .map_err(Error::system("a network namespace"))?
            .ino();
        let host = Self {
            name: name.to_owned(),
            namespace,
            inode,
        };
        host.sysctls()?;
        host.tool("ip", &["link", "set", "dev", "lo", "up"], "")?;
        Ok(host)
    }

    /// An end station that takes addresses the moment it gets them, whatever this machine's own settings are.
    fn sysctls(&self) -> Result<(), Error> {
        self.run(|| {
            let base = Path::new("/proc/sys/net");
            let mut settings = vec![
                ("ipv4/ip_forward", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv4/conf/all/arp_ignore", "0"),
                ("ipv4/conf/default/arp_ignore", "0"),
            ];
            if base.join("ipv6").exists() {
                settings.extend([
                    ("ipv6/conf/all/disable_ipv6", "0"),
                    ("ipv6/conf/default/disable_ipv6", "0"),
                    ("ipv6/conf/all/accept_dad", "0"),
                    ("ipv6/conf/default/accept_dad", "0"),
                    ("ipv6/conf/default/accept_ra", "0"),
                ]);
            }
            for (file, value) in settings {
                let path = base.join(file);
                fs::write(&path, value).map_err(Error::system(path.display().to_string()))?;
            }
            Ok(())
        })?
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in this host's network namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let inside = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)
                .map_err(Error::system(format!("entering {}", self.name)))?;
            Ok(work())
        };
        thread::scope(|scope| {
            scope.spawn(inside).join().unwrap_or_else(|_| {
                Err(Error::Wrong(format!("a thread on {} panicked", self.name)))
            })
        })
    }

    /// Starts a thread. (What it uses of this host it has opened before with [`Host::run`].)
    pub(crate) fn thread(
        &self,
        what: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let named = thread::Builder::new().name(format!("{what}-{}", self.name));
        named
            .spawn(work)
            .map(drop)
            .map_err(Error::system("starting a thread"))
    }

    /// Runs a tool of the system on this host.
    pub fn tool(&self, program: &str, args: &[&str], input: &str) -> Result<(), Error> {
        self.run(|| tool(program, args, input))?
    }

    /// Starts a program on this host; its output is appended to the file `log`.
    pub fn spawn(
        &self,
        program: &Path,
        args: &[String],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Child, Error> {
        let named = log.display().to_string();
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(Error::system(&named))?;
        let err = out.try_clone().map_err(Error::system(&named))?;
        let mut command = command(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        command.envs(environment.iter().copied());
        self.run(|| command.spawn())?
            .map_err(Error::system(program.display().to_string()))
    }

    /// Runs a program on this host to its end.
    pub fn output(&self, program: &Path, args: &[String]) -> Result<process::Output, Error> {
        let mut command: Command = command(program);
        command.args(args).stdin(Stdio::null());
        self.run(|| command.output())?
            .map_err(Error::system(program.display().to_string()))
    }

    /// The processes that run here.
    pub fn processes(&self) -> Vec<Process> {
        in_namespace(self.inode)
    }

    /// The processes of that name.
    pub fn named(&self, name: &str) -> Vec<Process> {
        let mut found = self.processes();
        found.retain(|p| p.name == name);
        found
    }

    /// Kills every process that runs here.
    pub fn kill_all(&self) -> Result<(), Error> {
        kill_namespace(self.inode)
    }

    /// The names of this host's macvlan devices.
    pub fn macvlans(&self) -> Result<Vec<String>, Error> {
        let args = ["-o", "link", "show", "type", "macvlan"].map(String::from);
        let output = self.output(Path::new("ip"), &args)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        Ok(text.lines().filter_map(name).collect())
    }

    /// Writes a setting of the kernel's network: "ipv4/conf/eth0/arp_ignore".
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        let path = Path::new("/proc/sys/net").join(key);
        self.run(|| fs::write(&path, value))?
            .map_err(Error::system(path.display().to_string()))
    }

    /// Reads a setting of the kernel's network.
    pub fn sysctl(&self, key: &str) -> Result<String, Error> {
        let path = Path::new("/proc/sys/net").join(key);
        let text = self
            .run(|| fs::read_to_string(&path))?
            .map_err(Error::system(path.display().to_string()))?;
        Ok(text.trim().to_owned())
    }

    /// Whether this host has the address on an interface.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let args = ["-o", "addr", "show", "to", &address.to_string()].map(String::from);
        self.output(Path::new("ip"), &args)
            .is_ok_and(|output| !output.stdout.is_empty())
    }
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// How many servers, at most six.
    pub servers: usize,
    /// How many virtual servers; each has one IPv4 and one IPv6 address.
    pub virtual_servers: usize,
    /// The client and the judge use the IPv6 addresses.
    pub ipv6: bool,
    /// What a beat is, as nftables sees it.
    pub beats: String,
}

/// The network of a lab.
pub struct Net {
    wiring: Wiring,
    servers: Vec<Host>,
    client: Host,
    /// Kept for its namespace: the judge's interfaces live as long as this.
    judge_host: Host,
    faults: Mutex<Faults>,
    stop: Arc<AtomicBool>,
    clients: Vec<Client>,
    judge: Judge,
}

/// What is wrong between the servers; clients reach all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Servers of different groups do not hear each other.
    pub groups: Vec<Vec<usize>>,
    /// Nothing of the first reaches the second.
    pub one_way: Vec<(usize, usize)>,
    /// So many beats of a hundred are lost, at random.
    pub loss: u8,
}

/// Last byte of a server's addresses.
pub(crate) fn last_byte(server: usize) -> u8 {
    11 + u8::try_from(server).unwrap_or(u8::MAX - 11)
}

pub(crate) fn mac(last: u8) -> String {
    format!("02:00:00:00:00:{last:02x}")
}

pub(crate) fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

/// The IPv6 address that reads like the IPv4 one: 2001:db8::11 beside 192.0.2.11.
fn v6(last: u8) -> Ipv6Addr {
    let digits = u16::from_str_radix(&last.to_string(), 16).unwrap_or(u16::from(last));
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits)
}

/// Last byte of the judge's address on the interface that leads to this server.
fn judge_byte(server: usize) -> u8 {
    JUDGE + u8::try_from(server).unwrap_or(0)
}

pub(crate) const CLIENT: u8 = 100;
const STRANGER: u8 = 150;
const JUDGE: u8 = 200;
pub(crate) const INTERFACE: &str = "eth0";

impl Net {
    /// Builds the network and starts clients, judge and the service on every server.
    pub fn build(wiring: Wiring) -> Result<Self, Error> {
        if wiring.servers > NAMES.len() || wiring.servers == 0 {
            return Err(Error::Wrong(format!(
                "a lab has 1 to {} servers, not {}",
                NAMES.len(),
                wiring.servers
            )));
        }
        let bridge = "link add name lab type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set dev lab up\n";
        tool("ip", &["-batch", "-"], bridge)?;
        let servers = NAMES[..wiring.servers]
            .iter()
            .map(|name| Host::new(name))
            .collect::<Result<Vec<_>, _>>()?;
        let (client, judge_host) = (Host::new("client")?, Host::new("judge")?);
        for (index, host) in servers.iter().enumerate() {
            let last = last_byte(index);
            plug(host, host.name(), INTERFACE, last)?;
            let (port, own) = (format!("judge-{}", host.name()), to(host));
            plug(&judge_host, &port, &own, judge_byte(index))?;
            know_judge(host, wiring.servers)?;
            let addresses =
                (0..wiring.virtual_servers).map(|v| (v4(virtual_byte(v)), v6(virtual_byte(v))));
            judge_host.tool("ip", &["-batch", "-"], &neighbours(&own, addresses, last))?;
        }
        plug(&client, "client", INTERFACE, CLIENT)?;
        let stop = Arc::new(AtomicBool::new(false));
        let measured: Vec<IpAddr> = (0..wiring.virtual_servers)
            .map(|v| address(v, wiring.ipv6))
            .collect();
        let served: Vec<IpAddr> = (0..wiring.virtual_servers)
            .flat_map(|v| [address(v, false), address(v, true)])
            .collect();
        for (index, host) in servers.iter().enumerate() {
            echo::serve(host, u8::try_from(index).unwrap_or(u8::MAX), &served, &stop)?;
        }
        let interfaces: Vec<_> = servers.iter().map(to).collect();
        let judge = Judge::start(&judge_host, &interfaces, &measured, &stop)?;
        let clients = measured
            .iter()
            .map(|a| Client::start(&client, *a, &stop))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            wiring,
            servers,
            client,
            judge_host,
            faults: Mutex::default(),
            stop,
            clients,
            judge,
        })
    }

    /// The servers' hosts.
    pub fn servers(&self) -> &[Host] {
        &self.servers
    }

    /// The client's host.
    pub fn client_host(&self) -> &Host {
        &self.client
    }

    /// A further host on the same network, without any part in it.
    pub fn stranger(&self) -> Result<Host, Error> {
        let host = Host::new("stranger")?;
        plug(&host, "stranger", INTERFACE, STRANGER)?;
        Ok(host)
    }

    /// The client of virtual server number `index`.
    pub fn client(&self, index: usize) -> &Client {
        &self.clients[index]
    }

    /// The judge.
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// Stops (or resumes) all requests, for measuring what the daemons use alone.
    pub fn quiet(&self, quiet: bool) {
        self.judge.pause(quiet);
        self.clients.iter().for_each(|c| c.pause(quiet));
    }

    /// Pulls or plugs a server's cable: it loses, or gets, its carrier.
    pub fn cable(&self, server: usize, plugged: bool) -> Result<(), Error> {
        let state = if plugged { "up" } else { "down" };
        tool(
            "ip",
            &["link", "set", "dev", self.servers[server].name(), state],
            "",
        )
    }

    /// Whether a server's cable carries again. The kernel tells of cables at most once a second, and a bridge's port
    /// forwards nothing before it is told.
    pub fn carries(&self, server: usize) -> bool {
        let args = |device| ["-o", "-d", "link", "show", "dev", device];
        let says = |output: process::Output, word: &str| {
            String::from_utf8_lossy(&output.stdout).contains(word)
        };
        let host = &self.servers[server];
        let port = command("ip").args(args(host.name())).output();
        let own = host.output(Path::new("ip"), &args(INTERFACE).map(String::from));
        port.is_ok_and(|o| says(o, "state forwarding")) && own.is_ok_and(|o| says(o, "state UP"))
    }

    /// Another program switches a server's own interface off, or on again. With it go the IPv6 addresses and the
    /// neighbours; those of the lab come back.
    pub fn interface(&self, server: usize, up: bool) -> Result<(), Error> {
        let host = &self.servers[server];
        let state = if up { "up" } else { "down" };
        host.tool("ip", &["link", "set", "dev", INTERFACE, state], "")?;
        if !up {
            return Ok(());
        }
        let own = format!("{}/64", v6(last_byte(server)));
        let add = ["addr", "replace", &own, "dev", INTERFACE, "nodad"];
        host.tool("ip", &add, "")?;
        know_judge(host, self.wiring.servers)
    }

    /// What a server loses with its power, apart from its processes: addresses beyond its own, neighbours,
    /// interfaces on top of its own, settings. It is soon enough to forget them before power is back: to remove
    /// thousands of addresses here keeps the kernel, which is the other servers' too, from adding theirs.
    pub fn forget(&self, server: usize) -> Result<(), Error> {
        let host = &self.servers[server];
        for device in host.macvlans()? {
            host.tool("ip", &["link", "del", "dev", &device], "")?;
        }
        for key in ["arp_ignore", "arp_announce"] {
            host.set_sysctl(&format!("ipv4/conf/{INTERFACE}/{key}"), "0")?;
        }
        let last = last_byte(server);
        // Of thousands of addresses it removes some at a time, and then fails.
        let flush = ["addr", "flush", "dev", INTERFACE, "scope", "global"];
        let mut tries = (0..100).map(|_| host.tool("ip", &flush, ""));
        if !tries.any(|done| done.is_ok()) {
            host.tool("ip", &flush, "")?;
        }
        let commands = format!(
            "addr add {}/24 dev {INTERFACE}\naddr add {}/64 dev {INTERFACE} nodad\n\
             neigh flush dev {INTERFACE}\n",
            v4(last),
            v6(last)
        );
        host.tool("ip", &["-batch", "-"], &commands)?;
        // Without any address for a moment, the kernel forgot even the permanent neighbours.
        know_judge(host, self.wiring.servers)
    }

    /// Servers of different groups do not hear each other; clients reach all. No groups: healed.
    pub fn partition(&self, groups: &[&[usize]]) -> Result<(), Error> {
        self.change(|faults| faults.groups = groups.iter().map(|g| g.to_vec()).collect())
    }

    /// Nothing of `from` reaches `to` any more.
    pub fn one_way(&self, from: usize, to: usize) -> Result<(), Error> {
        self.change(|faults| faults.one_way.push((from, to)))
    }

    /// So many beats of a hundred are lost, at random.
    pub fn loss(&self, percent: u8) -> Result<(), Error> {
        self.change(|faults| faults.loss = percent)
    }

    /// Exactly these faults, in place of all others.
    pub fn set(&self, wanted: Faults) -> Result<(), Error> {
        self.change(|faults| *faults = wanted)
    }

    /// Ends partitions, one-way faults and loss.
    pub fn heal(&self) -> Result<(), Error> {
        self.set(Faults::default())
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) -> Result<(), Error> {
        let mut faults: MutexGuard<'_, Faults> =
            self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        tool("nft", &["-f", "-"], &self.rules(&faults))
    }

    /// All faults as one transaction.
    fn rules(&self, faults: &Faults) -> String {
        let names = |group: &[usize]| {
            group
                .iter()
                .map(|s| format!("\"{}\"", NAMES[*s]))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let mut rules = String::from(
            "table bridge faults\ndelete table bridge faults\ntable bridge faults {\nchain forward {\n",
        );
        rules += "type filter hook forward priority 0; policy accept;\n";
        for (index, group) in faults.groups.iter().enumerate() {
            let others: Vec<usize> = faults
                .groups
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != index)
                .flat_map(|(_, g)| g.clone())
                .collect();
            if !group.is_empty() && !others.is_empty() {
                let _ = writeln!(
                    rules,
                    "iifname {{ {} }} oifname {{ {} }} drop",
                    names(group),
                    names(&others)
                );
            }
        }
        for (from, to) in &faults.one_way {
            let _ = writeln!(
                rules,
                "iifname \"{}\" oifname \"{}\" drop",
                NAMES[*from], NAMES[*to]
            );
        }
        if faults.loss > 0 {
            let _ = writeln!(
                rules,
                "{} numgen random mod 100 < {} drop",
                self.wiring.beats,
                faults.loss.min(100)
            );
        }
        rules + "}\n}\n"
    }
}

impl Drop for Net {
    /// Ends every process of the hosts and takes the bridge away, so that the next lab finds a clean table.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for host in self.servers.iter().chain([&self.client, &self.judge_host]) {
            // What cannot be ended now ends with the lab's own process.
            let _ = host.kill_all();
        }
        let ports = self
            .servers
            .iter()
            .flat_map(|h| [h.name().to_owned(), format!("judge-{}", h.name())]);
        for port in ports.chain(["client", "stranger", "lab"].map(str::to_owned)) {
            let _ = tool("ip", &["link", "del", "dev", &port], "");
        }
        let _ = tool("nft", &["flush", "ruleset"], "");
    }
}

/// Lets a server answer the judge without needing a cache either, also what was meant for another one of
/// `servers` and handed over to it.
fn know_judge(host: &Host, servers: usize) -> Result<(), Error> {
    let entry = |server| {
        let judge = judge_byte(server);
        neighbours(INTERFACE, [(v4(judge), v6(judge))], judge)
    };
    let entries: String = (0..servers).map(entry).collect();
    host.tool("ip", &["-batch", "-"], &entries)
}

/// The judge's interface that leads to this server.
fn to(server: &Host) -> String {
    format!("to-{}", server.name())
}

/// Last byte of a virtual server's address: .10, .20, ...
fn virtual_byte(index: usize) -> u8 {
    10 * (1 + u8::try_from(index).unwrap_or(0).min(8))
}

/// The address of virtual server number `index`.
pub(crate) fn address(index: usize, ipv6: bool) -> IpAddr {
    let last = virtual_byte(index);
    if ipv6 {
        v6(last).into()
    } else {
        v4(last).into()
    }
}

/// Many further addresses: of the network for benchmarks (RFC 2544), since those for documentation are too few.
pub(crate) fn further(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xc612_0001 + u32::try_from(number).unwrap_or(0))
}

/// The own address of server number `index`.
pub(crate) fn server_address(index: usize, ipv6: bool) -> IpAddr {
    let last = last_byte(index);
    if ipv6 {
        v6(last).into()
    } else {
        v4(last).into()
    }
}

/// A cable from the bridge's `port` to the host's `interface`, which gets the addresses ending in `last`.
fn plug(host: &Host, port: &str, interface: &str, last: u8) -> Result<(), Error> {
    let addresses = [format!("{}/24", v4(last)), format!("{}/64 nodad", v6(last))];
    attach(host, port, interface, &mac(last), &addresses)
}

/// A cable from the bridge's `port` to the host's `interface`, which gets this MAC address and these addresses.
pub(crate) fn attach(
    host: &Host,
    port: &str,
    interface: &str,
    mac: &str,
    addresses: &[String],
) -> Result<(), Error> {
    let namespace = format!("/proc/{}/fd/{}", process::id(), host.namespace.as_raw_fd());
    let outer = format!(
        "link add name {port} type veth peer name {interface} address {mac} netns {namespace}\n\
         link set dev {port} master lab\nlink set dev {port} up\n"
    );
    tool("ip", &["-batch", "-"], &outer)?;
    let mut inner = format!("link set dev {interface} up\n");
    for address in addresses {
        let _ = writeln!(inner, "addr add {address} dev {interface}");
    }
    host.tool("ip", &["-batch", "-"], &inner)
}

/// Permanent neighbour entries.
fn neighbours(
    interface: &str,
    addresses: impl IntoIterator<Item = (Ipv4Addr, Ipv6Addr)>,
    last: u8,
) -> String {
    let mac = mac(last);
    let line =
        |ip: IpAddr| format!("neigh replace {ip} lladdr {mac} dev {interface} nud permanent\n");
    addresses
        .into_iter()
        .map(|(v4, v6)| line(v4.into()) + &line(v6.into()))
        .collect()
}
