//! One row for every way to be wrong: the change to a good file, and what the error must say.
#![allow(clippy::unwrap_used, missing_docs)]

use config::{Config, Keep, OnConflict, Preempt, Quorum, parse};
use std::{net::IpAddr, path::Path, time::Duration};

const GOOD: &str = r#"[cluster]
name = "web"
key = "/etc/standin/cluster.key"
port = 6946
heartbeat = "100ms"
lease = "500ms"
quorum = "majority"

[[server]]
name = "alpha"
address = ["192.0.2.11", "2001:db8::11"]
priority = 100

[[server]]
name = "beta"
address = ["192.0.2.12"]

[[server]]
name = "tie"
address = ["192.0.2.14"]
witness = true

[[virtual_server]]
name = "web"
interface = "eth0"
address = ["192.0.2.10/24", "2001:db8::10/64"]
preempt = "never"
priority = { alpha = 50 }

[[virtual_server]]
name = "mail"
interface = "eth1"
address = "198.51.100.10"
"#;

fn read(text: &str) -> Result<Config, String> {
    parse(text, Path::new("standin.toml")).map_err(|e| e.to_string())
}

#[test]
fn every_mistake_is_named_with_line_key_and_mend() {
    let rows = [
        // Keys and sections.
        (
            "lease =",
            "leese =",
            "standin.toml:6: [cluster] leese: unknown key; did you mean \"lease\"?",
        ),
        (
            "port =",
            "colour = 1\nport =",
            "standin.toml:4: [cluster] colour: unknown key; known here: name, key,",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[virtual_srever]]\nname = \"mail\"",
            "standin.toml:30: virtual_srever: unknown key; did you mean \"virtual_server\"?",
        ),
        (
            "witness = true",
            "witnes = true",
            "standin.toml:21: [[server]] tie witnes: unknown key; did you mean \"witness\"?",
        ),
        (
            "preempt =",
            "prempt =",
            "standin.toml:27: [[virtual_server]] web prempt: unknown key; did you mean \"preempt\"?",
        ),
        ("[cluster]", "[cluster", "standin.toml:1: not TOML: "),
        (
            "port = 6946",
            "port = 6946\nport = 6946",
            "standin.toml:5: not TOML: duplicate key",
        ),
        (
            "[[server]]\nname = \"alpha\"",
            "[server]\nname = \"alpha\"",
            "not TOML: ",
        ),
        (
            "[cluster]\n",
            "[[cluster]]\n",
            "standin.toml:1: cluster: expected a section; write [cluster]; found a list",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv/www\"]\nrate = \"10\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www rate: \"10\" has no unit: rsync would take it for KiB/s; write for example",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv/www\"]\non = [\"always\", \"cron: 61 * * * *\"]\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www on: \"always\" is no reason to run; write \"election\", \"change\", or",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv/www\"]\non = \"cron: 61 * * * *\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www on: cron: \"61\" must be within 0 and 59",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv\"]\nkeep = 0\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www keep: 0 is out of range; write 1 to 1000",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv\"]\nkeep = \"30\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www keep: \"30\" is no duration; write a number with its unit",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv\"]\nkeep = \"3s\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www keep: out of range; write \"1min\" to \"3650d\"",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv\"]\nkeep = true\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www keep: expected a number without quotes",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/etc/passwd\"]\nmerge = \"records\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www merge: \"records\" is not known; write \"accounts\"",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/etc/passwd\", \"/etc/motd\"]\nmerge = \"accounts\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:32: [[sync]] www path: merge = \"accounts\" knows files named passwd, shadow, group, gshadow, subuid, subgid; put \"/etc/motd\" into a set of its own",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/etc/passwd\"]\nexclude = [\"a\"]\nmerge = \"accounts\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:33: [[sync]] www exclude: a set of account files has nothing to leave out",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"srv/www\"]\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:32: [[sync]] www path: \"srv/www\" is no absolute path; write it from / on",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv\", \"/srv/www\"]\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:32: [[sync]] www path: /srv is in this set already",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"all\"\npath = [\"/srv\"]\n[[sync]]\nname = \"www\"\npath = [\"/srv/www\"]\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:35: [[sync]] www path: \"/srv/www\" is in \"/srv\" of set all, line 32, and no file can be kept alike by two sets; remove it here, or, if it is a directory, leave it out there: exclude = [\"/www\"]",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv/www\"]\n[[sync]]\nname = \"all\"\npath = [\"/srv/\"]\nexclude = [\"/ww\", \"www/x\"]\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:32: [[sync]] www path: \"/srv/www\" is in \"/srv\" of set all, line 35, and",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"etc\"\npath = [\"/etc\"]\n[[sync]]\nname = \"users\"\nmerge = \"accounts\"\npath = [\"/etc/passwd\"]\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:36: [[sync]] users path: \"/etc/passwd\" is in \"/etc\" of set etc, line 32, and no file can be kept alike by two sets; remove it here, or leave it out there: exclude = [\"/passwd\"]",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv/www\"]\n[[sync]]\nname = \"all\"\npath = [\"/srv/www/\"]\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:35: [[sync]] all path: set www has it already, in line 32; remove it from one of the two",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[[sync]]\nname = \"www\"\npath = [\"/srv/www\"]\n[[virtual_server]]\nname = \"mail\"",
            "server: alpha has no host_key, and files are kept alike with it",
        ),
        (
            "witness = true",
            "witness = true\nhost_key = \"what is this\"",
            "standin.toml:22: [[server]] tie host_key: no public key of an SSH server",
        ),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[scripts]\ntimeuot = \"1s\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:31: [scripts] timeuot: unknown key; did you mean \"timeout\"?",
        ),
        // What must be there.
        (
            "name = \"web\"\nkey",
            "key",
            "standin.toml:1: [cluster] name: missing; write name = \"...\"",
        ),
        (
            "name = \"beta\"\n",
            "",
            "standin.toml:14: [[server]] name: missing; write name",
        ),
        (
            "address = [\"192.0.2.12\"]\n",
            "",
            "standin.toml:14: [[server]] beta address: missing; write address",
        ),
        (
            "[\"192.0.2.12\"]",
            "[]",
            "standin.toml:16: [[server]] beta address: 0 addresses; write 1 to 8",
        ),
        (
            "interface = \"eth0\"\n",
            "",
            "standin.toml:23: [[virtual_server]] web interface: missing; write interface",
        ),
        (
            "[\"192.0.2.10/24\", \"2001:db8::10/64\"]",
            "[]",
            "standin.toml:26: [[virtual_server]] web address: 0 addresses",
        ),
        // Types and ranges.
        (
            "port = 6946",
            "port = \"6946\"",
            "standin.toml:4: [cluster] port: expected a number without quotes; found a text",
        ),
        (
            "port = 6946",
            "port = 0",
            "standin.toml:4: [cluster] port: 0 is out of range; write 1 to 65535",
        ),
        (
            "port = 6946",
            "port = 65536",
            "standin.toml:4: [cluster] port: 65536 is out of range; write 1 to 65535",
        ),
        (
            "priority = 100",
            "priority = -1",
            "standin.toml:12: [[server]] alpha priority: -1 is out of range; write 0 to 65535",
        ),
        (
            "witness = true",
            "witness = 1",
            "standin.toml:21: [[server]] tie witness: expected true or false; found a whole number",
        ),
        (
            "[\"192.0.2.12\"]",
            "[192]",
            "standin.toml:16: [[server]] beta address: expected a text in quotes; found a whole number",
        ),
        (
            "[\"192.0.2.12\"]",
            "7",
            "standin.toml:16: [[server]] beta address: expected a list of texts",
        ),
        (
            "name = \"beta\"",
            "name = \"be ta\"",
            "standin.toml:15: [[server]] be ta name: \"be ta\" is not a name: 1 to 63 of",
        ),
        (
            "key = \"/etc",
            "key = \"etc",
            "standin.toml:3: [cluster] key: \"etc/standin/cluster.key\" is not an absolute path; begin it with /",
        ),
        (
            "\"majority\"",
            "\"most\"",
            "standin.toml:7: [cluster] quorum: \"most\" is no quorum rule; write \"majority\" or \"none\"",
        ),
        (
            "\"majority\"",
            "\"gateway\"",
            "standin.toml:7: [cluster] quorum: \"gateway\" is not part of this version",
        ),
        (
            "\"majority\"",
            "\"etcd\"",
            "standin.toml:7: [cluster] quorum: \"etcd\" is not part of this version",
        ),
        (
            "quorum = ",
            "machine = \"host\"\nquorum = ",
            "standin.toml:7: [cluster] machine: \"host\" is no way to recognise a machine; write \"auto\" or \"none\"",
        ),
        (
            "\"never\"",
            "\"sometimes\"",
            "standin.toml:27: [[virtual_server]] web preempt: \"sometimes\" is not known; write \"never\", \"fresher\" or \"always\"",
        ),
        (
            "preempt = ",
            "on_conflict = \"yield\"\npreempt = ",
            "standin.toml:27: [[virtual_server]] web on_conflict: \"yield\" is not known; write \"take\" or \"wait\"",
        ),
        (
            "preempt = ",
            "mac = \"x\"\npreempt = ",
            "standin.toml:27: [[virtual_server]] web mac: \"x\" is no MAC address; write \"own\", \"virtual\", or six bytes as in \"02:00:5e:00:53:01\"",
        ),
        (
            "preempt = ",
            "mac = \"01:00:5e:00:53:01\"\npreempt = ",
            "standin.toml:27: [[virtual_server]] web mac: \"01:00:5e:00:53:01\" is not the MAC address of one station; write six bytes",
        ),
        (
            "interface = \"eth0\"",
            "interface = \"lo\"\nmac = \"virtual\"",
            "standin.toml:26: [[virtual_server]] web mac: the loopback interface has no MAC address and no clients; write mac = \"own\", or another interface",
        ),
        (
            "quorum = ",
            "realtime = \"no\"\nquorum = ",
            "standin.toml:7: [cluster] realtime: expected true or false; found a text",
        ),
        // Clocks.
        (
            "[[server]]\nname = \"alpha\"",
            "[time]\ndiscipline = \"ntp\"\n[[server]]\nname = \"alpha\"",
            "standin.toml:10: [time] discipline: \"ntp\" is none; write \"auto\", \"builtin\" or \"observe\"",
        ),
        (
            "[[server]]\nname = \"alpha\"",
            "[time]\nmax_skew = \"2h\"\n[[server]]\nname = \"alpha\"",
            "standin.toml:10: [time] max_skew: 2h is out of range; write 1ms to 1h",
        ),
        (
            "[[server]]\nname = \"alpha\"",
            "[time]\nmaxskew = \"2s\"\n[[server]]\nname = \"alpha\"",
            "standin.toml:10: [time] maxskew: unknown key; did you mean \"max_skew\"?",
        ),
        // Times.
        (
            "\"100ms\"",
            "100",
            "standin.toml:5: [cluster] heartbeat: expected a number with its unit in quotes, such as \"100ms\"; found a whole number",
        ),
        (
            "\"100ms\"",
            "\"100\"",
            "standin.toml:5: [cluster] heartbeat: \"100\" is no duration; write a number with its unit",
        ),
        (
            "\"100ms\"",
            "\"soon\"",
            "standin.toml:5: [cluster] heartbeat: \"soon\" is no duration",
        ),
        (
            "\"100ms\"",
            "\"4ms\"",
            "standin.toml:5: [cluster] heartbeat: 4ms is too short; write \"5ms\" or more",
        ),
        (
            "\"100ms\"",
            "\"0s\"",
            "standin.toml:5: [cluster] heartbeat: 0s is too short; write \"5ms\" or more",
        ),
        (
            "\"500ms\"",
            "\"499ms\"",
            "standin.toml:6: [cluster] lease: a lease of 499ms is shorter than five heartbeats of 100ms; write lease = \"500ms\" or more, or a shorter heartbeat",
        ),
        (
            "heartbeat = \"100ms\"\nlease = \"500ms\"",
            "heartbeat = \"200ms\"",
            "standin.toml:5: [cluster] heartbeat: a lease of 500ms is shorter than five heartbeats of 200ms",
        ),
        (
            "\"500ms\"",
            "\"11s\"",
            "standin.toml:6: [cluster] lease: 11s is too long; write \"10s\" or less",
        ),
        ("\"500ms\"", "\"584942417355years\"", "[cluster] lease:"),
        (
            "[[virtual_server]]\nname = \"mail\"",
            "[scripts]\ntimeout = \"2h\"\n[[virtual_server]]\nname = \"mail\"",
            "standin.toml:31: [scripts] timeout: 2h is out of range; write \"1s\" to \"1h\"",
        ),
        // Servers.
        (
            "name = \"beta\"",
            "name = \"alpha\"",
            "standin.toml:15: [[server]] alpha name: a second server named \"alpha\"; give each its own name",
        ),
        (
            "192.0.2.12",
            "192.0.2.11",
            "standin.toml:16: [[server]] beta address: 192.0.2.11 is an address of alpha already; each address stands once",
        ),
        (
            "192.0.2.12",
            "192.0.2.300",
            "standin.toml:16: [[server]] beta address: \"192.0.2.300\" is no IP address; write it as in 192.0.2.11",
        ),
        (
            "192.0.2.12",
            "192.0.2.12/24",
            "standin.toml:16: [[server]] beta address: \"192.0.2.12/24\" is no IP address",
        ),
        (
            "192.0.2.12",
            "224.0.0.1",
            "standin.toml:16: [[server]] beta address: 224.0.0.1 is not the address of one host; write a unicast address",
        ),
        (
            "192.0.2.12",
            "0.0.0.0",
            "standin.toml:16: [[server]] beta address: 0.0.0.0 is not the address of one host",
        ),
        (
            "192.0.2.12",
            "fe80::1",
            "standin.toml:16: [[server]] beta address: fe80::1 is link-local",
        ),
        (
            "192.0.2.12",
            "::ffff:192.0.2.12",
            "standin.toml:16: [[server]] beta address: ::ffff:192.0.2.12 is an IPv4 address in IPv6 clothes",
        ),
        (
            "[[server]]\nname = \"tie\"\naddress = [\"192.0.2.14\"]\nwitness = true\n",
            "",
            "standin.toml:7: [cluster] quorum: a majority needs at least three servers and the file lists 2: of two, both must live",
        ),
        (
            "priority = 100\n\n[[server]]\nname = \"beta\"\n",
            "witness = true\n\n[[server]]\nname = \"beta\"\nwitness = true\n",
            "standin.toml:1: [cluster]: every server is a witness and none can serve; remove witness = true",
        ),
        // Virtual servers.
        (
            "name = \"mail\"",
            "name = \"web\"",
            "standin.toml:31: [[virtual_server]] web name: a second virtual server named \"web\"",
        ),
        (
            "\"eth0\"",
            "\"eth0/1\"",
            "standin.toml:25: [[virtual_server]] web interface: \"eth0/1\" is no name of an interface",
        ),
        (
            "\"eth0\"",
            "\"sixteen-letters!\"",
            "standin.toml:25: [[virtual_server]] web interface:",
        ),
        (
            "192.0.2.10/24",
            "192.0.2.10/33",
            "standin.toml:26: [[virtual_server]] web address: prefix /33 of 192.0.2.10 is out of range; write /1 to /32",
        ),
        (
            "2001:db8::10/64",
            "2001:db8::10/0",
            "standin.toml:26: [[virtual_server]] web address: prefix /0 of 2001:db8::10 is out of range; write /1 to /128",
        ),
        (
            "192.0.2.10/24",
            "192.0.2/24",
            "standin.toml:26: [[virtual_server]] web address: \"192.0.2/24\" is no address with prefix; write it as in 192.0.2.10/24",
        ),
        (
            "192.0.2.10/24",
            "192.0.2.10/x",
            "standin.toml:26: [[virtual_server]] web address: \"192.0.2.10/x\" is no address with prefix",
        ),
        (
            "192.0.2.10/24",
            "127.0.0.2/8",
            "standin.toml:26: [[virtual_server]] web address: 127.0.0.2 is a loopback address",
        ),
        (
            "192.0.2.10/24",
            "192.0.2.12/24",
            "standin.toml:26: [[virtual_server]] web address: 192.0.2.12 is an address of server beta already",
        ),
        (
            "198.51.100.10",
            "192.0.2.10",
            "standin.toml:33: [[virtual_server]] mail address: 192.0.2.10 is an address of virtual server web already",
        ),
        (
            "{ alpha = 50 }",
            "{ gamma = 50 }",
            "standin.toml:28: [[virtual_server]] web priority gamma: no [[server]] has this name; the file lists alpha, beta, tie",
        ),
        (
            "{ alpha = 50 }",
            "{ tie = 50 }",
            "standin.toml:28: [[virtual_server]] web priority tie: a witness never serves; remove its priority",
        ),
        (
            "{ alpha = 50 }",
            "{ alpha = \"high\" }",
            "standin.toml:28: [[virtual_server]] web priority alpha: expected a number without quotes",
        ),
        (
            "{ alpha = 50 }",
            "50",
            "standin.toml:28: [[virtual_server]] web priority: expected a section",
        ),
    ];
    let mut missed = Vec::new();
    for (from, to, expected) in rows {
        assert!(GOOD.contains(from), "no such text to change: {from}");
        let error = read(&GOOD.replacen(from, to, 1)).unwrap_err();
        if !error.lines().any(|l| l.contains(expected)) {
            missed.push(format!(
                "{from} -> {to}\nexpected: {expected}\n   found: {error}"
            ));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn an_empty_file_names_what_is_missing() {
    let error = read("").unwrap_err();
    assert!(
        error.contains("standin.toml: cluster: missing; write [cluster]"),
        "{error}"
    );
    assert!(
        error.contains("standin.toml: server: no server; write a [[server]]"),
        "{error}"
    );
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_lines() {
    let text = GOOD
        .replace("6946", "0")
        .replace("eth0", "")
        .replace("192.0.2.12", "x");
    let error = parse(&text, Path::new("f")).unwrap_err();
    let lines: Vec<_> = error.problems.iter().map(|p| p.line).collect();
    assert_eq!(lines, [Some(4), Some(16), Some(25)]);
}

#[test]
fn too_many_servers_for_the_lease_are_refused() {
    let server = |i| format!("[[server]]\nname = \"s{i}\"\naddress = \"198.51.100.{i}\"\n");
    let cluster = "[cluster]\nname = \"many\"\n";
    let text = |n| cluster.to_owned() + &(1..=n).map(server).collect::<String>();
    assert!(read(&text(6)).is_ok());
    let error = read(&text(7)).unwrap_err();
    assert!(
        error.contains("with 7 servers the last in rank would wait 300ms"),
        "{error}"
    );
    assert!(error.contains("write lease = \"600ms\" or more"), "{error}");
}

#[test]
fn two_servers_may_go_without_a_quorum() {
    let text = GOOD.replace("\"majority\"", "\"none\"");
    let cut = text.find("[[server]]\nname = \"tie\"").unwrap();
    let end = text.find("[[virtual_server]]").unwrap();
    let config = read(&(text[..cut].to_owned() + &text[end..])).unwrap();
    assert_eq!(config.cluster.quorum, Quorum::None);
    assert_eq!(config.servers.len(), 2);
}

#[test]
fn a_mac_address_belongs_to_one_virtual_server() {
    let with = |web: &str, mail: &str| {
        let text = GOOD.replace("preempt =", &format!("mac = \"{web}\"\npreempt ="));
        read(&(text + &format!("mac = \"{mail}\"\n")))
    };
    let macs = |config: Config| {
        config
            .virtual_servers
            .iter()
            .map(|v| v.mac)
            .collect::<Vec<_>>()
    };
    assert_eq!(macs(with("own", "own").unwrap()), [None, None]);
    let derived = macs(with("virtual", "virtual").unwrap());
    assert!(derived[0].is_some() && derived[0] != derived[1]);
    let given = macs(with("02:00:5E:00:53:0A", "own").unwrap())[0];
    assert_eq!(given.unwrap().to_string(), "02:00:5e:00:53:0a");
    let error = with("02:00:5e:00:53:01", "02:00:5e:00:53:01").unwrap_err();
    let expected = "[[virtual_server]] mail mac: 02:00:5e:00:53:01 is the MAC address of virtual server web already";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_good_file_means_what_it_says() {
    let config = read(GOOD).unwrap();
    assert_eq!(config.cluster.name, "web");
    assert_eq!(config.cluster.lease, Duration::from_millis(500));
    assert_eq!(config.skew(), Duration::from_millis(50));
    assert!(config.cluster.realtime);
    let [web, mail] = &config.virtual_servers[..] else {
        panic!("two")
    };
    assert_eq!(web.addresses[0].to_string(), "192.0.2.10/24");
    assert_eq!(mail.addresses[0].to_string(), "198.51.100.10/32");
    assert_eq!(mail.preempt, Preempt::Never);
    let (alpha, beta) = (&config.servers[0].name, &config.servers[1].name);
    assert_eq!(config.priority(alpha, &web.name), 50);
    assert_eq!(config.priority(alpha, &mail.name), 100);
    assert_eq!(config.priority(beta, &web.name), 100);
    assert_eq!(config.peers(alpha).count(), 2);
    assert!(config.servers[2].witness);
}

#[test]
fn a_server_finds_itself_by_option_then_address_then_host_name() {
    let config = read(GOOD).unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let find = |given, host, local: &[IpAddr]| {
        config
            .find_self(given, host, local)
            .map(String::from)
            .map_err(|e| e.to_string())
    };
    assert_eq!(
        find(Some("tie"), "alpha", &[ip("192.0.2.12")]).unwrap(),
        "tie"
    );
    assert_eq!(
        find(None, "alpha", &[ip("127.0.0.1"), ip("192.0.2.12")]).unwrap(),
        "beta"
    );
    assert_eq!(find(None, "other", &[ip("2001:db8::11")]).unwrap(), "alpha");
    assert_eq!(find(None, "tie", &[]).unwrap(), "tie");
    assert_eq!(find(None, "tie.example.org", &[]).unwrap(), "tie");
    let unknown = find(Some("gamma"), "alpha", &[]).unwrap_err();
    assert!(
        unknown.contains("no server is named \"gamma\" (--server)"),
        "{unknown}"
    );
    let absent = find(None, "other", &[ip("192.0.2.99")]).unwrap_err();
    assert!(
        absent.contains("this host, \"other\", is not in the list"),
        "{absent}"
    );
    assert!(absent.starts_with("standin.toml:"), "{absent}");
    let both = find(None, "other", &[ip("192.0.2.11"), ip("192.0.2.14")]).unwrap_err();
    assert!(both.contains("addresses of both alpha and tie"), "{both}");
    // What an address that comes later would settle, and nothing else.
    let may_yet = |given, host, local: &[IpAddr]| config.may_yet_be_found(given, host, local);
    assert!(may_yet(None, "other", &[ip("192.0.2.99")]));
    assert!(!may_yet(Some("gamma"), "other", &[]));
    assert!(!may_yet(None, "tie.example.org", &[]));
    assert!(!may_yet(
        None,
        "other",
        &[ip("192.0.2.11"), ip("192.0.2.14")]
    ));
}

#[test]
fn without_files_syncd_runs_where_it_may_keep_the_clock() {
    for (word, runs) in [("auto", true), ("observe", false), ("builtin", true)] {
        let text = format!("{GOOD}[time]\ndiscipline = \"{word}\"\n");
        assert_eq!(read(&text).unwrap().runs_syncd(), runs, "{word}");
    }
}

#[test]
fn the_hash_is_of_the_meaning() {
    let hash = |text: &str| read(text).unwrap().hash;
    let good = hash(GOOD);
    let beta = "[[server]]\nname = \"beta\"\naddress = [\"192.0.2.12\"]\n";
    let moved = GOOD.replace(beta, "") + beta;
    let same = [
        GOOD.replace("port = 6946\n", "# a comment\n"),
        GOOD.replace("/etc/standin/cluster.key", "/root/key"),
        GOOD.replace("quorum = ", "realtime = false\nquorum = "),
        GOOD.replace("quorum = ", "machine = \"none\"\nquorum = "),
        GOOD.replace("\"198.51.100.10\"", "[\"198.51.100.10/32\"]"),
        GOOD.replace("preempt =", "mac = \"own\"\npreempt ="),
        format!("{GOOD}[time]\ndiscipline = \"observe\"\nmax_skew = \"1s\"\n"),
        moved,
    ];
    for text in same {
        assert_eq!(hash(&text), good, "{text}");
    }
    let other = [
        format!("{GOOD}[time]\nmax_skew = \"2s\"\n"),
        GOOD.replace("6946", "6947"),
        GOOD.replace("500ms", "600ms"),
        GOOD.replace("alpha = 50", "alpha = 51"),
        GOOD.replace("witness = true", "witness = false"),
        GOOD.replace("198.51.100.10", "198.51.100.11"),
        GOOD.replace("eth1", "eth2"),
        GOOD.replace("never", "always"),
        GOOD.replace("preempt =", "mac = \"virtual\"\npreempt ="),
    ];
    for text in other {
        assert_ne!(hash(&text), good, "{text}");
    }
}

#[test]
fn every_line_that_is_no_toml_is_named() {
    let bad = "[cluster]\nname = \"web\nlease = \"500ms\"\n[[server]\nname = \"alpha\"\n";
    let problems = read(bad).unwrap_err();
    let lines: Vec<&str> = problems
        .lines()
        .filter_map(|l| l.split(':').nth(1))
        .collect();
    assert_eq!(lines, ["2", "4"], "{problems}");
}

#[test]
fn limits_are_the_same_in_the_sample_the_manual_and_the_program() {
    use config::{
        LEASE_MAX, PATHS_MAX, PRIORITY_MAX, SCRIPTS_TIMEOUT, SCRIPTS_TIMEOUT_MAX,
        VIRTUAL_ADDRESSES_MAX, VIRTUAL_SERVERS_MAX,
    };
    let sample = include_str!("../../../etc/standin.toml");
    let manual = include_str!("../../../docs/man/standin.toml.5");
    let script = include_str!("../../../etc/master.d/10-log");
    let thousands = |n: usize| match n / 1000 {
        0 => n.to_string(),
        high => format!("{high},{:03}", n % 1000),
    };
    let hours = SCRIPTS_TIMEOUT_MAX.as_secs() / 3600;
    for limit in [
        format!("1 to {}", thousands(VIRTUAL_ADDRESSES_MAX)),
        format!("t most {VIRTUAL_SERVERS_MAX}"),
        format!("1 to {PATHS_MAX}"),
        format!("0 to {PRIORITY_MAX}"),
        format!("to {} s", LEASE_MAX.as_secs()),
        format!("1 s to {hours} h"),
    ] {
        assert!(sample.contains(&limit), "the sample has not {limit:?}");
        assert!(manual.contains(&limit), "the manual has not {limit:?}");
    }
    let timeout = format!("timeout, {} s", SCRIPTS_TIMEOUT.as_secs());
    assert!(
        script.contains(&timeout),
        "the sample script has not {timeout:?}"
    );
}

#[test]
fn the_sample_file_is_good_and_shows_every_default() {
    let sample = include_str!("../../../etc/standin.toml");
    let config = read(sample).unwrap();
    let shown =
        |line: &str| line.starts_with('#') && line.contains(" = ") && !line.starts_with("# ");
    let defaults: String = sample
        .lines()
        .map(|l| if shown(l) { &l[1..] } else { l })
        .collect::<Vec<_>>()
        .join("\n");
    let mut spelled_out = read(&defaults).unwrap();
    for virtual_server in &mut spelled_out.virtual_servers {
        // An example, not a default.
        virtual_server.priority.clear();
    }
    spelled_out.cluster.watchdog = None; // an example too
    spelled_out.hash = config.hash;
    assert_eq!(spelled_out, config);
    for key in [
        "name",
        "key",
        "port",
        "heartbeat",
        "lease",
        "quorum",
        "realtime",
        "watchdog",
        "machine",
        "address",
        "priority",
        "witness",
        "interface",
        "mac",
        "on_conflict",
        "preempt",
        "directory",
        "timeout",
    ] {
        let has = |l: &str| l.trim_start_matches('#').starts_with(&format!("{key} = "));
        assert!(sample.lines().any(has), "{key} is not in the sample");
    }
}

#[test]
fn the_example_sets_are_good_and_have_every_key() {
    let (sample, sets) = (
        include_str!("../../../etc/standin.toml"),
        include_str!("../../../etc/sync.toml"),
    );
    let named = |line: &str| line == "name = \"alpha\"" || line == "name = \"beta\"";
    let pinned: String = sample
        .lines()
        .map(|line| match named(line) {
            true => format!("{line}\nhost_key = \"ssh-ed25519 AAAA\"\n"),
            false => format!("{line}\n"),
        })
        .collect();
    let sets_of = |text: &str| read(&(pinned.clone() + text)).unwrap().sets;
    let [accounts, www, mail, home] = &sets_of(sets)[..] else {
        panic!("four sets")
    };
    assert!(accounts.merge_accounts && accounts.on.election && accounts.on.change);
    assert_eq!(accounts.paths.len(), config::ACCOUNT_FILES.len());
    assert!(www.on.change && www.keep.is_some() && !www.excludes.is_empty());
    assert!(mail.on.cron.len() == 2 && mail.rate.is_some() && mail.keep.is_some());
    assert_eq!(home.on, config::Triggers::default());
    // The short one in the sample, once it is no comment any more and without what is told beside the values.
    let at = sample.find("#   [[sync]]").unwrap();
    let lines = sample[at..].lines().filter_map(|l| l.strip_prefix("#   "));
    let plain = |l: &str| l.split("   ").next().unwrap().to_owned();
    let lines: Vec<_> = lines.map(plain).filter(|l| !l.contains("merge")).collect();
    assert_eq!(sets_of(&lines.join("\n"))[0].name.as_str(), "www");
    for key in [
        "name",
        "path",
        "on",
        "exclude",
        "perishable",
        "delete_limit",
        "rate",
        "keep",
        "merge",
    ] {
        let has = |l: &str| {
            l.trim_start_matches(['#', ' '])
                .starts_with(&format!("{key} = "))
        };
        assert!(sets.lines().any(has), "{key} is not in the examples");
        assert!(sample[at..].lines().any(has), "{key} is not in the sample");
    }
}

#[test]
fn what_is_kept_and_merged_is_read_with_the_lines_it_stands_in() {
    let key = "host_key = \"ssh-ed25519 AAAA\"\n";
    let text = GOOD.replace("priority = 100\n", key);
    let text = text.replace("\"192.0.2.12\"]\n", &format!("\"192.0.2.12\"]\n{key}"));
    let sync = "[[sync]]\nname = \"www\"\npath = [\n\"/srv/www\",\n\"/etc/motd\"]\nexclude = [\"*.tmp\",\n\"/cache/\"]\nperishable = [\"*.o\"]\nkeep = \"30d\"\n\
                [[sync]]\nname = \"accounts\"\npath = [\"/etc/passwd\"]\nmerge = \"accounts\"\nkeep = 7\n";
    let plain = read(&(text.clone() + sync)).unwrap();
    let [www, accounts] = &plain.sets[..] else {
        panic!("two sets")
    };
    assert_eq!(www.keep, Some(Keep::For(Duration::from_secs(30 * 86_400))));
    assert_eq!(
        (accounts.keep, accounts.merge_accounts),
        (Some(Keep::Versions(7)), true)
    );
    assert!(!www.merge_accounts);
    let first = text.lines().count() + 1;
    assert_eq!(www.lines.set, first);
    assert_eq!(www.lines.paths, [first + 3, first + 4]);
    assert_eq!(www.lines.excludes, [first + 5, first + 6, first + 7]);
    assert_eq!(www.excludes, ["*.tmp", "/cache/", "*.o"]);
    assert_eq!(www.perishable, ["*.o"]);
    let lasting = sync
        .replace("exclude = [", "exclude = [\"*.o\",")
        .replace("perishable = [\"*.o\"]\n", "");
    assert_ne!(plain.hash, read(&(text.clone() + &lasting)).unwrap().hash);
    let other = read(&(text.clone() + &sync.replace("30d", "31d"))).unwrap();
    assert_ne!(plain.hash, other.hash, "it must be the same on all servers");
    let moved = read(&(text + "\n\n" + sync)).unwrap();
    assert_eq!(plain.hash, moved.hash);
}

#[test]
fn an_address_that_no_host_can_have_is_refused_with_its_mend() {
    let with = |address: &str| read(&GOOD.replace("\"192.0.2.10/24\"", &format!("\"{address}\"")));
    for (address, what) in [
        ("192.0.2.0/24", "network address"),
        ("192.0.2.255/24", "broadcast address"),
        ("192.0.2.64/26", "network address"),
        ("192.0.2.127/26", "broadcast address"),
        ("192.0.2.4/30", "network address"),
        ("2001:db8::/64", "subnet-router anycast address"),
    ] {
        let refused = with(address).unwrap_err().to_string();
        let expected = format!(
            "standin.toml:26: [[virtual_server]] web address: {address} is the {what} of its network and no host's; \
             write another address, or another prefix"
        );
        assert_eq!(refused, expected);
    }
    for address in [
        "192.0.2.10",
        "192.0.2.0/31",
        "192.0.2.255/23",
        "192.0.2.0/32",
        "2001:db8::/127",
        "2001:db8::ffff:ffff:ffff:ffff/64",
    ] {
        assert!(with(address).is_ok(), "{address}");
    }
}

#[test]
fn whether_a_virtual_server_waits_is_part_of_the_configuration_that_all_share() {
    let plain = read(GOOD).unwrap();
    assert_eq!(plain.virtual_servers[0].on_conflict, OnConflict::Take);
    let with =
        |word: &str| GOOD.replace("preempt =", &format!("on_conflict = \"{word}\"\npreempt ="));
    assert_eq!(read(&with("take")).unwrap().hash, plain.hash);
    let waits = read(&with("wait")).unwrap();
    assert_eq!(waits.virtual_servers[0].on_conflict, OnConflict::Wait);
    assert_ne!(waits.hash, plain.hash);
}

#[test]
fn a_set_may_lie_in_the_directory_of_another_that_leaves_it_out_and_beside_its_files() {
    let sets = |outer: &str, exclude: &str, inner: &str| {
        let host_key = "host_key = \"ssh-ed25519 AAAAx\"\n";
        let text = GOOD.replace("[[server]]\n", &format!("[[server]]\n{host_key}"));
        read(&format!(
            "{text}[[sync]]\nname = \"outer\"\npath = {outer}\nexclude = {exclude}\n\
             [[sync]]\nname = \"inner\"\npath = {inner}\n"
        ))
    };
    for (outer, exclude, inner) in [
        ("[\"/srv\"]", "[\"/www\"]", "[\"/srv/www\"]"),
        ("[\"/srv\"]", "[\"www/\"]", "[\"/srv/a/www\"]"),
        ("[\"/srv\"]", "[\"w*\"]", "[\"/srv/www\"]"),
        ("[\"/srv/www\"]", "[]", "[\"/srv/ww\", \"/srv/motd\"]"),
        ("[\"/srv/motd\"]", "[]", "[\"/srv/www\"]"),
    ] {
        let read = sets(outer, exclude, inner);
        assert!(read.is_ok(), "{outer} {exclude} {inner}: {read:?}");
    }
    assert!(sets("[\"/srv\"]", "[\"/ww\"]", "[\"/srv/www\"]").is_err());
}
