//! Virtual servers that take their MAC address along.

use crate::scene::{Failure, Outcome, PATIENCE, ensure, no_takeover, others, unlapsed, with};
use lab::{Cluster, Host, MacWatch, Signal, Spec};
use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

fn spec() -> Spec {
    Spec {
        mac: "virtual",
        ..Spec::default()
    }
}

/// The MAC address of the first virtual server, as `status` tells it.
fn told(cluster: &Cluster) -> Result<String, Failure> {
    let status = cluster.status(0).unwrap_or_default();
    let mac = status["virtual_servers"][0]["mac"].as_str();
    mac.map(str::to_owned)
        .ok_or_else(|| Failure::Wrong(format!("status names no MAC address: {status}")))
}

/// The device of that MAC address.
fn device(mac: &str) -> String {
    format!("si-{}", mac.replace(':', ""))
}

fn said(host: &Host, program: &str, args: &[&str]) -> Result<String, Failure> {
    let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
    let output = host.output(Path::new(program), &args)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sends a datagram to a port where nobody listens, and waits for the word that nobody does.
fn refused(address: IpAddr) -> Outcome {
    let ask = || -> io::Result<usize> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect((address, 9))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(b"is anybody there?")?;
        socket.recv(&mut [0; 8])
    };
    match ask() {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(Failure::Wrong(format!("{address} port 9 said {other:?}"))),
    }
}

fn is_up(host: &Host, device: &str) -> Result<bool, Failure> {
    let text = said(host, "ip", &["-o", "link", "show", "dev", device])?;
    let flags = text.split(['<', '>']).nth(1).unwrap_or_default();
    Ok(flags.split(',').any(|flag| flag == "UP"))
}

fn served(cluster: &Cluster) -> Outcome {
    lab::wait_for("answers to the client", PATIENCE, || {
        (cluster.net().client(0).silence() < Duration::from_millis(50)).then_some(())
    })?;
    Ok(())
}

/// Power loss, return, and planned handover, seen by a client whose entry nobody can change; the switch must learn,
/// once each time.
fn through_losses(cluster: &mut Cluster, deafen: impl Fn(&Host, &str) -> Outcome) -> Outcome {
    let old = cluster.settle()?;
    let mac = told(cluster)?;
    let watch = MacWatch::start(cluster.net().servers(), &mac)?;
    deafen(cluster.net().client_host(), &mac)?;
    served(cluster)?;

    let (mark, client) = (watch.mark(), cluster.net().client(0).mark());
    cluster.power_loss(old)?;
    let new = cluster.wait_master(0, Some(old))?;
    served(cluster)?;
    ensure(
        cluster.net().client(0).since(client).lost > 0,
        "the client did not notice a power loss at all",
    )?;
    no_takeover(cluster, |cluster| {
        cluster.power_on(old)?;
        cluster.settle()?;
        Ok(())
    })?;
    let places = watch.since(mark);
    ensure(
        places == [new] || places == [old, new],
        format!("after power loss of {old} {mac} was heard at {places:?}, not at {new} alone"),
    )?;

    let (mark, client) = (watch.mark(), cluster.net().client(0).mark());
    let name = cluster.name(old).to_owned();
    cluster.tell(new, &["promote", &name])?;
    cluster.wait_master(0, Some(new))?;
    served(cluster)?;
    cluster.settle()?;
    println!("handover: {:?}", cluster.net().client(0).since(client));
    thread::sleep(Duration::from_secs(2)); // the fifth announcement, and what the kernel may have to say
    let places = watch.since(mark);
    ensure(
        places == [old] || places == [new, old],
        format!("after the handover to {old} {mac} was heard at {places:?}"),
    )?;
    served(cluster)?;
    for slave in others(cluster, old) {
        ensure(
            !is_up(cluster.host(slave), &device(&mac))?,
            format!("the device is up on {}, a slave", cluster.name(slave)),
        )?;
    }
    let entry = said(
        cluster.net().client_host(),
        "ip",
        &["neigh", "show", &cluster.address(0).to_string()],
    )?;
    ensure(
        entry.contains(&mac),
        format!("the client has another entry: {entry}"),
    )
}

pub fn a_client_with_a_static_entry_is_served_after_power_loss_and_handover() -> Outcome {
    with(spec(), |cluster| {
        let address = cluster.address(0);
        // Requests come in by the device, and the way back is by the interface below.
        for server in 0..3 {
            cluster
                .host(server)
                .set_sysctl("ipv4/conf/all/rp_filter", "1")?;
        }
        through_losses(cluster, |client, mac| {
            let entry = format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent\n");
            Ok(client.tool("ip", &["-batch", "-"], &entry)?)
        })
    })
}

pub fn a_client_that_ignores_announcements_is_served_after_power_loss_and_handover() -> Outcome {
    with(spec(), |cluster| {
        let address = cluster.address(0);
        through_losses(cluster, |client, mac| {
            client.set_sysctl("ipv4/neigh/eth0/base_reachable_time_ms", "600000")?;
            let rules = format!(
                "table netdev deaf {{\nchain in {{\ntype filter hook ingress device eth0 priority 0\n\
                 arp saddr ip {address} drop\n}}\n}}\n"
            );
            client.tool("nft", &["-f", "-"], &rules)?;
            let entry = format!("neigh replace {address} lladdr {mac} dev eth0 nud reachable\n");
            Ok(client.tool("ip", &["-batch", "-"], &entry)?)
        })
    })
}

pub fn a_virtual_mac_address_serves_ipv6_clients() -> Outcome {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Err(Failure::Skip("this kernel has no IPv6".to_owned()));
    }
    let spec = Spec {
        ipv6: true,
        ..spec()
    };
    with(spec, |cluster| through_losses(cluster, |_, _| Ok(())))
}

/// Whoever asks for the address by broadcast gets the virtual MAC address and no other, and is asked by no other.
pub fn only_the_virtual_mac_address_answers() -> Outcome {
    with(spec(), |cluster| {
        let master = cluster.settle()?;
        let mac = told(cluster)?;
        let stranger = cluster.net().stranger()?;
        let address = cluster.address(0).to_string();
        // Whatever is said about the address with another sender is counted.
        let count = format!(
            "table netdev count {{\nchain in {{\ntype filter hook ingress device eth0 priority 0\n\
             arp saddr ip {address} arp saddr ether {mac} counter comment \"virtual\"\n\
             arp saddr ip {address} arp saddr ether != {mac} counter comment \"other\"\n}}\n}}\n"
        );
        stranger.tool("nft", &["-f", "-"], &count)?;
        for _ in 0..5 {
            stranger.tool("ip", &["neigh", "flush", "dev", "eth0"], "")?;
            let host = cluster.host(master);
            host.tool("ip", &["neigh", "flush", "dev", "eth0"], "")?;
            // Refused, and told so: the server had to ask for this client too.
            stranger.run(|| refused(cluster.address(0)))??;
        }
        let counted = said(&stranger, "nft", &["list", "ruleset"])?;
        let packets = |of: &str| {
            let line = counted
                .lines()
                .find(|line| line.contains(&format!("\"{of}\"")));
            let word = line?.split("packets ").nth(1)?.split(' ').next()?;
            word.parse::<u64>().ok()
        };
        ensure(
            packets("virtual") >= Some(5) && packets("other") == Some(0),
            format!("who spoke for {address}:\n{counted}"),
        )?;
        let checked = cluster.ask(master, &["check"])?;
        let checked = String::from_utf8_lossy(&checked.stdout);
        let words = cluster.tell(master, &["status"])?;
        ensure(
            checked.contains(&mac) && words.contains(&mac),
            format!("check and status do not both name {mac}:\n{checked}\n{words}"),
        )
    })
}

/// electd cannot set its device down, and the kernel has something to say from it that is from no virtual address.
pub fn the_device_of_a_stopped_electd_says_nothing() -> Outcome {
    with(spec(), |cluster| {
        let old = cluster.settle()?;
        let status = cluster.status(old).unwrap_or_default();
        let gate = status["virtual_servers"][0]["gate"].clone();
        if !gate.as_str().is_some_and(|gate| gate.starts_with("eBPF")) {
            return Err(Failure::Skip(format!("{gate}")));
        }
        let mac = told(cluster)?;
        let watch = MacWatch::start(cluster.net().servers(), &mac)?;
        let join = |cluster: &Cluster, group: &str| -> Result<UdpSocket, Failure> {
            let (group, host) = (group.parse::<Ipv6Addr>(), cluster.host(old));
            let joined = host.run(|| {
                let index = nix::net::if_::if_nametoindex(device(&mac).as_str())?;
                let socket = UdpSocket::bind("[::]:0")?;
                let group = group.map_err(io::Error::other)?;
                socket.join_multicast_v6(&group, index)?;
                // The kernel reports it to the network now and a little later.
                thread::sleep(Duration::from_millis(300));
                io::Result::Ok(socket)
            })?;
            joined.map_err(|e| Failure::Wrong(format!("joining a group on {}: {e}", device(&mac))))
        };
        let _first = join(cluster, "ff02::5353:1")?;
        ensure(
            watch.since(0) == [old],
            "joining a group is not heard even from the master",
        )?;
        cluster.kill(old, "electd", Signal::SIGSTOP)?;
        let new = cluster.wait_master(0, Some(old))?;
        served(cluster)?;
        ensure(
            is_up(cluster.host(old), &device(&mac))?,
            "somebody set the stopped electd's device down",
        )?;
        let mark = watch.mark();
        let _second = join(cluster, "ff02::5353:2")?;
        cluster.kill(old, "electd", Signal::SIGCONT)?;
        cluster.settle()?;
        let places = watch.since(mark);
        ensure(
            places.iter().all(|place| *place == new),
            format!("{mac} of {new} was heard at {places:?}"),
        )
    })
}

pub fn a_virtual_mac_address_outlives_electd_and_goes_with_a_clean_stop() -> Outcome {
    with(spec(), |cluster| {
        let master = cluster.settle()?;
        let mac = told(cluster)?;
        let watch = MacWatch::start(cluster.net().servers(), &mac)?;
        let index = |cluster: &Cluster| {
            let host = cluster.host(master);
            said(host, "ip", &["-o", "link", "show", "dev", &device(&mac)])
        };
        let before = index(cluster)?;
        unlapsed(cluster, |cluster| {
            for _ in 0..3 {
                cluster.kill(master, "electd", Signal::SIGKILL)?;
                thread::sleep(Duration::from_secs(1));
            }
            Ok(())
        })?;
        ensure(
            before.split(':').next() == index(cluster)?.split(':').next(),
            "the device was made anew",
        )?;
        ensure(
            watch.since(0).iter().all(|place| *place == master),
            "another server spoke with the MAC address",
        )?;
        let host = cluster.host(master);
        for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            let key = format!("ipv4/conf/eth0/{key}");
            ensure(
                host.sysctl(&key)? == value,
                format!("{key} is not {value} beside the device"),
            )?;
        }
        cluster.stop(master)?;
        cluster.wait_master(0, Some(master))?;
        let host = cluster.host(master);
        let left = host.macvlans()?;
        ensure(left.is_empty(), format!("left after a stop: {left:?}"))?;
        for key in ["arp_ignore", "arp_announce"] {
            let key = format!("ipv4/conf/eth0/{key}");
            ensure(host.sysctl(&key)? == "0", format!("{key} was not put back"))?;
        }
        ensure(
            !cluster.run_dir(master).join("macvlan").exists(),
            "the record of what was changed is left",
        )
    })
}

pub fn a_device_taken_away_by_another_program_is_put_back() -> Outcome {
    with(spec(), |cluster| {
        let master = cluster.settle()?;
        let slave = others(cluster, master)[0];
        let mac = told(cluster)?;
        let device = device(&mac);
        let note = format!("{device} on eth0 was removed by another program and put back");
        for (what, args) in [
            ("deleted", vec!["link", "del", "dev", &device]),
            ("set down", vec!["link", "set", "dev", &device, "down"]),
            (
                "given another address",
                vec![
                    "link",
                    "set",
                    "dev",
                    &device,
                    "address",
                    "02:00:5e:00:53:99",
                ],
            ),
        ] {
            let log = cluster.log(master).matches(&note).count();
            no_takeover(cluster, |cluster| {
                cluster.host(master).tool("ip", &args, "")?;
                lab::wait_for(&format!("the device {what} is reported"), PATIENCE, || {
                    (cluster.log(master).matches(&note).count() > log).then_some(())
                })?;
                served(cluster)
            })?;
        }
        // On a slave it is made again, and stays silent.
        let watch = MacWatch::start(cluster.net().servers(), &mac)?;
        let host = cluster.host(slave);
        host.tool("ip", &["link", "set", "dev", &device, "up"], "")?;
        host.tool("ip", &["link", "del", "dev", &device], "")?;
        let back = || {
            let here = host.macvlans().ok()?.contains(&device);
            (here && !is_up(host, &device).ok()?).then_some(())
        };
        lab::wait_for("the slave's device is put back, down", PATIENCE, back)?;
        host.tool("ip", &["link", "set", "dev", &device, "up"], "")?;
        lab::wait_for("the slave's device is set down again", PATIENCE, back)?;
        ensure(
            !watch.since(0).contains(&slave),
            "a slave spoke with the virtual MAC address",
        )?;
        // The interface below goes down and comes up: a failover at most, and the addresses are served.
        cluster
            .host(master)
            .tool("ip", &["link", "set", "dev", "eth0", "down"], "")?;
        thread::sleep(Duration::from_secs(2));
        let up = format!(
            "link set dev eth0 up\naddr replace {}/24 dev eth0\n",
            cluster.server_address(master)
        );
        cluster.host(master).tool("ip", &["-batch", "-"], &up)?;
        cluster.settle()?;
        served(cluster)
    })
}

pub fn virtual_mac_addresses_come_and_go_with_the_configuration() -> Outcome {
    with(Spec::default(), |cluster| {
        let master = cluster.settle()?;
        let text = cluster.spec().config(3);
        for (mac, devices) in [("virtual", 1), ("02:00:5e:00:53:01", 1), ("own", 0)] {
            let new = text.replace("mac = \"own\"", &format!("mac = \"{mac}\""));
            for server in 0..3 {
                cluster.write_config(server, &new)?;
                cluster.kill(server, "electd", Signal::SIGHUP)?;
            }
            let there = |cluster: &Cluster| {
                (0..3).all(|s| cluster.host(s).macvlans().is_ok_and(|d| d.len() == devices))
            };
            lab::wait_for(&format!("mac = \"{mac}\" is in force"), PATIENCE, || {
                let status = cluster.status(master)?;
                let told = status["virtual_servers"][0]["mac"].as_str();
                let right = match mac {
                    "own" => told.is_none(),
                    "virtual" => told.is_some_and(|t| !t.starts_with("02:00:5e")),
                    explicit => told == Some(explicit),
                };
                (right && there(cluster)).then_some(())
            })?;
            served(cluster)?;
            cluster.settle()?;
        }
        let ignore = cluster.host(master).sysctl("ipv4/conf/eth0/arp_ignore")?;
        ensure(ignore == "0", "arp_ignore was not put back")?;
        let bad = text.replace("mac = \"own\"", "mac = \"x\"");
        cluster.write_config(master, &bad)?;
        let checked = cluster.ask(master, &["check"])?;
        let words = String::from_utf8_lossy(&checked.stdout);
        let line = 1 + bad.lines().position(|l| l == "mac = \"x\"").unwrap_or(0);
        let file = cluster.config_file(master).display().to_string();
        ensure(
            [&format!("{file}:{line}"), "mac", "\"x\"", "\"virtual\""]
                .iter()
                .all(|word| words.contains(*word)),
            format!("the error does not name file, line, key and mend: {words}"),
        )?;
        fs::remove_file(cluster.config_file(master)).map_err(|e| Failure::Wrong(e.to_string()))?;
        cluster.write_config(master, &text)?;
        Ok(())
    })
}
