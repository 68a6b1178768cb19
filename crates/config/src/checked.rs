//! The file as meant: every rule of a configuration is kept here (ELECTION, "What a configuration must
//! satisfy").

use crate::{
    Cluster, Config, ConfigError, HEARTBEAT, HEARTBEAT_MIN, KEY_FILE, LEASE, LEASE_HEARTBEATS_MIN,
    LEASE_MAX, MAX_SKEW, MacAddress, MachineBinding, OnConflict, PATHS_MAX, PORT, PRIORITY,
    PRIORITY_MAX, Preempt, Quorum, SCRIPTS_DIRECTORY, SCRIPTS_TIMEOUT, SCRIPTS_TIMEOUT_MAX,
    ScriptsConfig, Server, SyncSet, TimeConfig, Triggers, VIRTUAL_ADDRESSES_MAX,
    VIRTUAL_SERVERS_MAX, VirtualAddress, VirtualServer,
    raw::{Section, Source},
    sync, time,
};
use humantime::format_duration;
use protocol::{ServerName, VirtualServerName};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::{Spanned, de::DeTable};

/// Longest name of an interface, the kernel's IFNAMSIZ without its last byte.
const INTERFACE_MAX: usize = 15;

pub(crate) fn config(text: &str, file: &Path) -> Result<Config, ConfigError> {
    let source = Source::new(file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for e in &errors {
        let what = format!("not TOML: {}", e.message().trim().replace('\n', "; "));
        source.report(e.span(), String::new(), what);
    }
    if !errors.is_empty() {
        return source.finish(None); // what was read in spite of them is not what is meant
    }
    let table = table.into_inner();
    let config = read(&source, &table, file);
    source.finish(config)
}

fn read<'a>(source: &'a Source<'a>, table: &'a DeTable<'a>, file: &Path) -> Option<Config> {
    let root = Section::root(source, table);
    root.only(&[
        "cluster",
        "server",
        "virtual_server",
        "scripts",
        "time",
        "ssh",
        "sync",
    ]);
    root.required("cluster", "[cluster] with name = \"...\"");
    let cluster = root
        .table("cluster")
        .map(|section| (cluster(&section), section));
    let servers = servers(&root);
    if let Some((cluster, section)) = &cluster {
        time_rules(section, cluster, servers.len());
        voter_rules(section, cluster, &servers);
    }
    let name = cluster.as_ref().map_or("", |(c, _)| c.name.as_str());
    let virtual_servers = virtual_servers(&root, &servers, name);
    let scripts = scripts(root.table("scripts"));
    let time = time::time(root.table("time"));
    let ssh = sync::ssh(root.table("ssh"));
    let sets = sync::sets(&root, &servers);
    let (cluster, _) = cluster?;
    let hash = hash(&cluster, &servers, &virtual_servers, &sets, &time);
    Some(Config {
        file: file.to_owned(),
        cluster,
        servers,
        virtual_servers,
        scripts,
        time,
        ssh,
        sets,
        hash,
    })
}

fn cluster(section: &Section<'_>) -> Cluster {
    section.only(&[
        "name",
        "key",
        "port",
        "heartbeat",
        "lease",
        "quorum",
        "realtime",
        "watchdog",
        "machine",
    ]);
    section.required("name", "name = \"...\", the same on all servers");
    let port = section.number("port", 1..=u32::from(u16::MAX));
    Cluster {
        name: section
            .parsed::<ServerName>("name")
            .map(String::from)
            .unwrap_or_default(),
        key: path(section, "key", KEY_FILE),
        port: port.and_then(|p| u16::try_from(p).ok()).unwrap_or(PORT),
        heartbeat: section.duration("heartbeat", HEARTBEAT),
        lease: section.duration("lease", LEASE),
        quorum: quorum(section),
        realtime: section.truth("realtime", true),
        watchdog: section
            .has("watchdog")
            .then(|| path(section, "watchdog", "")),
        machine: machine(section),
    }
}

fn machine(section: &Section<'_>) -> MachineBinding {
    let Some(word) = section.text("machine") else {
        return MachineBinding::Auto;
    };
    match *word.get_ref() {
        "auto" => return MachineBinding::Auto,
        "none" => return MachineBinding::None,
        word => section.report(
            "machine",
            format!("\"{word}\" is no way to recognise a machine; write \"auto\" or \"none\""),
        ),
    }
    MachineBinding::Auto
}

fn quorum(section: &Section<'_>) -> Quorum {
    let Some(word) = section.text("quorum") else {
        return Quorum::Majority;
    };
    match *word.get_ref() {
        "majority" => return Quorum::Majority,
        "none" => return Quorum::None,
        word @ ("gateway" | "etcd") => section.report(
            "quorum",
            format!("\"{word}\" is not part of this version; write \"majority\" or \"none\""),
        ),
        word => section.report(
            "quorum",
            format!("\"{word}\" is no quorum rule; write \"majority\" or \"none\""),
        ),
    }
    Quorum::Majority
}

/// h >= 5 ms; 5 h <= L <= 10 s; (n - 1) skew <= L/2.
fn time_rules(section: &Section<'_>, cluster: &Cluster, servers: usize) {
    let (h, lease) = (cluster.heartbeat, cluster.lease);
    if h < HEARTBEAT_MIN {
        let what = format!(
            "{} is too short; write \"{}\" or more",
            format_duration(h),
            format_duration(HEARTBEAT_MIN)
        );
        return section.report("heartbeat", what);
    }
    if lease > LEASE_MAX {
        let what = format!(
            "{} is too long; write \"{}\" or less",
            format_duration(lease),
            format_duration(LEASE_MAX)
        );
        return section.report("lease", what);
    }
    let shortest = h.saturating_mul(LEASE_HEARTBEATS_MIN);
    if lease < shortest {
        let key = if section.has("lease") {
            "lease"
        } else {
            "heartbeat"
        };
        let what = format!(
            "a lease of {} is shorter than five heartbeats of {}; write lease = \"{}\" or more, or a \
             shorter heartbeat",
            format_duration(lease),
            format_duration(h),
            format_duration(shortest)
        );
        return section.report(key, what);
    }
    let others = u32::try_from(servers.saturating_sub(1)).unwrap_or(u32::MAX);
    let last = (h / 2).saturating_mul(others);
    if last > lease / 2 {
        let what = format!(
            "with {servers} servers the last in rank would wait {}, more than half a lease of {}; write \
             lease = \"{}\" or more, or a shorter heartbeat",
            format_duration(last),
            format_duration(lease),
            format_duration(last.saturating_mul(2))
        );
        section.report(
            if section.has("lease") {
                "lease"
            } else {
                "heartbeat"
            },
            what,
        );
    }
}

fn voter_rules(section: &Section<'_>, cluster: &Cluster, servers: &[Server]) {
    if cluster.quorum == Quorum::Majority && (1..3).contains(&servers.len()) {
        let what = format!(
            "a majority needs at least three servers and the file lists {}: of two, both must live, so \
             neither could ever take over; add a [[server]] with witness = true on a third machine, or \
             write quorum = \"none\" and accept that a broken network makes two masters",
            servers.len()
        );
        section.report("quorum", what);
    }
    if !servers.is_empty() && servers.iter().all(|s| s.witness) {
        section.report(
            "",
            "every server is a witness and none can serve; remove witness = true from some",
        );
    }
}

fn servers(root: &Section<'_>) -> Vec<Server> {
    let sections = root.tables("server");
    if sections.is_empty() {
        root.report(
            "server",
            "no server; write a [[server]] with name and address for each",
        );
    }
    let mut names = BTreeSet::new();
    let mut owners = BTreeMap::new();
    sections
        .iter()
        .filter_map(|s| server(s, &mut names, &mut owners))
        .collect()
}

fn server(
    section: &Section<'_>,
    names: &mut BTreeSet<ServerName>,
    owners: &mut BTreeMap<IpAddr, String>,
) -> Option<Server> {
    section.only(&["name", "address", "priority", "witness", "host_key"]);
    section.required("name", "name = \"...\"");
    section.required("address", "address = [\"192.0.2.11\"]");
    let name: Option<ServerName> = section.parsed("name");
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        section.report(
            "name",
            format!("a second server named \"{name}\"; give each its own name"),
        );
    }
    let written = section.texts("address");
    if section.has("address") && (written.is_empty() || written.len() > PATHS_MAX) {
        section.report(
            "address",
            format!("{} addresses; write 1 to {PATHS_MAX}", written.len()),
        );
    }
    let mut addresses = Vec::new();
    for text in &written {
        match server_address(text.get_ref()) {
            Err(what) => section.report_at(text.span(), "address", what),
            Ok(ip) => {
                let owner = name.as_ref().map_or("this server", |n| n.as_str());
                if let Some(other) = owners.insert(ip, owner.to_owned()) {
                    let what =
                        format!("{ip} is an address of {other} already; each address stands once");
                    section.report_at(text.span(), "address", what);
                }
                addresses.push(ip);
            }
        }
    }
    let priority = section
        .number("priority", 0..=PRIORITY_MAX)
        .unwrap_or(PRIORITY);
    let witness = section.truth("witness", false);
    Some(Server {
        name: name?,
        addresses,
        priority,
        witness,
        host_key: sync::host_key(section),
    })
}

/// An address that another server can send to.
fn server_address(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| {
        format!("\"{text}\" is no IP address; write it as in 192.0.2.11 or 2001:db8::11")
    })?;
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(format!(
            "{ip} is link-local and needs a scope; write a global or site address"
        )),
        _ => unicast(ip),
    }
}

fn unicast(ip: IpAddr) -> Result<IpAddr, String> {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if ip.is_multicast() || ip.is_unspecified() || broadcast {
        return Err(format!(
            "{ip} is not the address of one host; write a unicast address"
        ));
    }
    if mapped {
        return Err(format!(
            "{ip} is an IPv4 address in IPv6 clothes; write it as IPv4"
        ));
    }
    Ok(ip)
}

fn virtual_servers(root: &Section<'_>, servers: &[Server], cluster: &str) -> Vec<VirtualServer> {
    let sections = root.tables("virtual_server");
    if sections.len() > VIRTUAL_SERVERS_MAX {
        let what = format!(
            "{} virtual servers; at most {VIRTUAL_SERVERS_MAX} are possible",
            sections.len()
        );
        root.report("virtual_server", what);
        return Vec::new();
    }
    let mut names = BTreeSet::new();
    let mut owners: BTreeMap<IpAddr, String> = servers
        .iter()
        .flat_map(|s| {
            s.addresses
                .iter()
                .map(|ip| (*ip, format!("server {}", s.name)))
        })
        .collect();
    let mut macs = BTreeMap::new();
    let read = |section: &Section<'_>| {
        let mut v = virtual_server(section, servers, &mut names, &mut owners)?;
        v.mac = mac(section, cluster, &v, &mut macs);
        Some(v)
    };
    sections.iter().filter_map(read).collect()
}

fn virtual_server(
    section: &Section<'_>,
    servers: &[Server],
    names: &mut BTreeSet<VirtualServerName>,
    owners: &mut BTreeMap<IpAddr, String>,
) -> Option<VirtualServer> {
    section.only(&[
        "name",
        "interface",
        "address",
        "mac",
        "on_conflict",
        "preempt",
        "priority",
    ]);
    section.required("name", "name = \"...\"");
    section.required("interface", "interface = \"eth0\"");
    section.required("address", "address = [\"192.0.2.10/24\"]");
    let name: Option<VirtualServerName> = section.parsed("name");
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        let what = format!("a second virtual server named \"{name}\"; give each its own name");
        section.report("name", what);
    }
    let owner = format!(
        "virtual server {}",
        name.as_ref().map_or("?", |n| n.as_str())
    );
    Some(VirtualServer {
        interface: interface(section),
        addresses: virtual_addresses(section, &owner, owners),
        mac: None,
        on_conflict: on_conflict(section),
        preempt: preempt(section),
        priority: section
            .table("priority")
            .map(|s| priorities(&s, servers))
            .unwrap_or_default(),
        name: name?,
    })
}

fn mac(
    section: &Section<'_>,
    cluster: &str,
    v: &VirtualServer,
    owners: &mut BTreeMap<MacAddress, VirtualServerName>,
) -> Option<MacAddress> {
    let text = section.text("mac")?;
    let mac = match *text.get_ref() {
        "own" => return None,
        "virtual" => MacAddress::derived(cluster, &v.name),
        text => match text.parse() {
            Ok(mac) => mac,
            Err(what) => {
                section.report("mac", what);
                return None;
            }
        },
    };
    if v.interface == "lo" {
        let what = "the loopback interface has no MAC address and no clients; write mac = \"own\", or \
                    another interface";
        section.report("mac", what);
    }
    if let Some(other) = owners.insert(mac, v.name.clone()) {
        let what = format!(
            "{mac} is the MAC address of virtual server {other} already; give each its own"
        );
        section.report("mac", what);
    }
    Some(mac)
}

fn interface(section: &Section<'_>) -> String {
    let Some(text) = section.text("interface") else {
        return String::new();
    };
    let name = text.into_inner();
    let fine = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    if name.is_empty() || name.len() > INTERFACE_MAX || !name.bytes().all(fine) {
        let what = format!(
            "\"{}\" is no name of an interface; write one that `ip link` shows, such as \"eth0\"",
            name.escape_debug()
        );
        section.report("interface", what);
    }
    name.to_owned()
}

fn virtual_addresses(
    section: &Section<'_>,
    owner: &str,
    owners: &mut BTreeMap<IpAddr, String>,
) -> Vec<VirtualAddress> {
    let written = section.texts("address");
    if section.has("address") && (written.is_empty() || written.len() > VIRTUAL_ADDRESSES_MAX) {
        let what = format!(
            "{} addresses; write 1 to {VIRTUAL_ADDRESSES_MAX}",
            written.len()
        );
        section.report("address", what);
    }
    let mut addresses = Vec::new();
    for text in &written {
        match virtual_address(text) {
            Err(what) => section.report_at(text.span(), "address", what),
            Ok(address) => {
                if let Some(other) = owners.insert(address.ip, owner.to_owned()) {
                    let what = format!(
                        "{} is an address of {other} already; a virtual address stands once",
                        address.ip
                    );
                    section.report_at(text.span(), "address", what);
                }
                addresses.push(address);
            }
        }
    }
    addresses
}

fn virtual_address(text: &Spanned<&str>) -> Result<VirtualAddress, String> {
    let text = *text.get_ref();
    let bad = || {
        format!(
            "\"{text}\" is no address with prefix; write it as in 192.0.2.10/24 or 2001:db8::10/64"
        )
    };
    let (ip, prefix) = match text.split_once('/') {
        Some((ip, prefix)) => (ip, Some(prefix)),
        None => (text, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => longest,
        Some(prefix) => prefix.parse().map_err(|_| bad())?,
    };
    if prefix == 0 || prefix > longest {
        return Err(format!(
            "prefix /{prefix} of {ip} is out of range; write /1 to /{longest}"
        ));
    }
    if ip.is_loopback() {
        return Err(format!(
            "{ip} is a loopback address that no client can reach; write another"
        ));
    }
    let address = VirtualAddress {
        ip: unicast(ip)?,
        prefix,
    };
    match no_host(&address) {
        Some(what) => Err(format!(
            "{text} is the {what} of its network and no host's; write another address, or another prefix"
        )),
        None => Ok(address),
    }
}

/// What an address is that is kept from hosts: all bits behind the prefix are the same. A network of two has neither
/// (RFC 3021, RFC 6164).
fn no_host(address: &VirtualAddress) -> Option<&'static str> {
    let (bits, length) = match address.ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let host_bits = length - u32::from(address.prefix);
    if host_bits < 2 {
        return None;
    }
    let all_ones = u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
    match (address.ip, bits & all_ones) {
        (IpAddr::V4(_), 0) => Some("network address"),
        (IpAddr::V6(_), 0) => Some("subnet-router anycast address"),
        (IpAddr::V4(_), host) if host == all_ones => Some("broadcast address"),
        _ => None,
    }
}

fn on_conflict(section: &Section<'_>) -> OnConflict {
    let Some(word) = section.text("on_conflict") else {
        return OnConflict::Take;
    };
    match *word.get_ref() {
        "take" => return OnConflict::Take,
        "wait" => return OnConflict::Wait,
        word => {
            let what = format!("\"{word}\" is not known; write \"take\" or \"wait\"");
            section.report("on_conflict", what);
        }
    }
    OnConflict::Take
}

fn preempt(section: &Section<'_>) -> Preempt {
    let Some(word) = section.text("preempt") else {
        return Preempt::Never;
    };
    match *word.get_ref() {
        "never" => Preempt::Never,
        "fresher" => Preempt::Fresher,
        "always" => Preempt::Always,
        word => {
            let what =
                format!("\"{word}\" is not known; write \"never\", \"fresher\" or \"always\"");
            section.report("preempt", what);
            Preempt::Never
        }
    }
}

fn priorities(section: &Section<'_>, servers: &[Server]) -> BTreeMap<ServerName, u32> {
    let mut priorities = BTreeMap::new();
    for (key, at) in section.keys() {
        match servers.iter().find(|s| s.name.as_str() == key) {
            None => {
                let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
                let what = format!(
                    "no [[server]] has this name; the file lists {}",
                    names.join(", ")
                );
                section.report_at(at, key, what);
            }
            Some(server) if server.witness => {
                section.report_at(at, key, "a witness never serves; remove its priority");
            }
            Some(server) => {
                if let Some(priority) = section.number(key, 0..=PRIORITY_MAX) {
                    priorities.insert(server.name.clone(), priority);
                }
            }
        }
    }
    priorities
}

fn scripts(section: Option<Section<'_>>) -> ScriptsConfig {
    let Some(section) = section else {
        return ScriptsConfig {
            directory: SCRIPTS_DIRECTORY.into(),
            timeout: SCRIPTS_TIMEOUT,
        };
    };
    section.only(&["directory", "timeout"]);
    let timeout = section.duration("timeout", SCRIPTS_TIMEOUT);
    if timeout < Duration::from_secs(1) || timeout > SCRIPTS_TIMEOUT_MAX {
        let what = format!(
            "{} is out of range; write \"1s\" to \"1h\"",
            format_duration(timeout)
        );
        section.report("timeout", what);
    }
    ScriptsConfig {
        directory: path(&section, "directory", SCRIPTS_DIRECTORY),
        timeout,
    }
}

pub(crate) fn path(section: &Section<'_>, key: &str, default: &str) -> PathBuf {
    let Some(text) = section.text(key) else {
        return default.into();
    };
    let path = PathBuf::from(text.into_inner());
    if !path.is_absolute() {
        let what = format!(
            "\"{}\" is not an absolute path; begin it with /",
            path.display()
        );
        section.report(key, what);
    }
    path
}

/// The first 64 bits of a SHA-256 over everything that must be the same on all servers, each part behind its
/// length, lists of named things in the order of their names.
fn hash(
    cluster: &Cluster,
    servers: &[Server],
    virtual_servers: &[VirtualServer],
    sets: &[SyncSet],
    time: &TimeConfig,
) -> u64 {
    let mut parts = Parts(Sha256::new());
    let times = (cluster.heartbeat.as_nanos(), cluster.lease.as_nanos());
    parts.add(&cluster.name);
    parts.add(format!(
        "{} {} {} {}",
        cluster.port, times.0, times.1, cluster.quorum
    ));
    let mut servers: Vec<_> = servers.iter().collect();
    servers.sort_by_key(|s| &s.name);
    for s in servers {
        parts.add(format!(
            "server {} {:?} {} {}",
            s.name, s.addresses, s.priority, s.witness
        ));
    }
    let mut virtual_servers: Vec<_> = virtual_servers.iter().collect();
    virtual_servers.sort_by_key(|v| &v.name);
    for v in virtual_servers {
        let mut addresses = v.addresses.clone();
        addresses.sort();
        let (name, interface, preempt) = (&v.name, &v.interface, v.preempt);
        parts.add(format!(
            "virtual {name} {interface} {preempt} {addresses:?} {:?}",
            v.priority
        ));
        // As before these keys were known, where they are not used.
        if let Some(mac) = v.mac {
            parts.add(format!("mac {mac}"));
        }
        if v.on_conflict == OnConflict::Wait {
            parts.add("wait on conflict");
        }
    }
    for SyncSet {
        name,
        paths,
        excludes,
        perishable,
        delete_limit,
        keep,
        merge_accounts,
        on,
        scrub,
        rate,
        lines: _,
    } in sets
    {
        parts.add(format!("set {name} {paths:?} {excludes:?} {delete_limit}"));
        // As before these keys were known, where they are not used.
        if !perishable.is_empty() {
            parts.add(format!("perishable {perishable:?}"));
        }
        if let Some(keep) = keep {
            parts.add(format!("keep {keep:?}"));
        }
        if *merge_accounts {
            parts.add("merge accounts");
        }
        if *on != Triggers::default() {
            parts.add(format!("on {on:?}"));
        }
        if let Some(scrub) = scrub {
            parts.add(format!("scrub {scrub}"));
        }
        if let Some(rate) = rate {
            parts.add(format!("rate {}", rate.0));
        }
    }
    if time.max_skew != MAX_SKEW {
        parts.add(format!("max_skew {}", time.max_skew.as_nanos()));
    }
    parts.finish()
}

struct Parts(Sha256);

impl Parts {
    fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    fn finish(self) -> u64 {
        let digest = self.0.finalize();
        let first = digest.iter().take(8);
        first.fold(0, |hash, byte| hash << 8 | u64::from(*byte))
    }
}
