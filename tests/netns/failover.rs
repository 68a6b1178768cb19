//! A server, or a part of it, ends or is asked to; another takes over.

use crate::scene::{Failure, Outcome, PATIENCE, ensure, gave_up, no_takeover, others, with};
use lab::{Cluster, Signal, Spec};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output, thread, time::Duration};

pub fn cold_start_of_all_servers_gives_one_master() -> Outcome {
    with(Spec::default(), |cluster| {
        no_takeover(cluster, |_| Ok(()))?;
        let master = cluster.wait_master(0, None)?;
        for server in others(cluster, master) {
            gave_up(cluster, server)?;
        }
        Ok(())
    })
}

pub fn power_loss_moves_the_address_and_the_old_master_returns_as_slave() -> Outcome {
    with(Spec::default(), |cluster| {
        let old = cluster.settle()?;
        cluster.power_loss(old)?;
        let new = cluster.wait_master(0, Some(old))?;
        no_takeover(cluster, |cluster| {
            cluster.power_on(old)?;
            cluster.settle()?;
            Ok(())
        })?;
        ensure(
            cluster.master(0) == Some(new),
            "the old master took the address back",
        )?;
        gave_up(cluster, old)
    })
}

pub fn pulled_cable_moves_the_address_and_plugging_it_in_again_moves_nothing() -> Outcome {
    with(Spec::default(), |cluster| {
        let old = cluster.settle()?;
        cluster.net().cable(old, false)?;
        cluster.wait_master(0, Some(old))?;
        gave_up(cluster, old)?;
        no_takeover(cluster, |cluster| {
            cluster.net().cable(old, true)?;
            cluster.settle()?;
            Ok(())
        })
    })
}

pub fn a_server_speaks_again_as_soon_as_its_cable_is_plugged_in() -> Outcome {
    asked_in_vain(false)
}

pub fn so_it_does_over_ipv6() -> Outcome {
    with_ipv6()?;
    asked_in_vain(true)
}

/// What a server has its kernel ask for while the cable is out, is not asked again before the test is over, and nobody
/// has to ask for the server.
fn asked_in_vain(ipv6: bool) -> Outcome {
    let spec = Spec {
        ipv6,
        ..Spec::default()
    };
    with(spec, |cluster| {
        let master = cluster.settle()?;
        let [mute, other] = others(cluster, master)[..] else {
            return ensure(false, "not three servers");
        };
        let family = if ipv6 { "ipv6" } else { "ipv4" };
        let repeat = format!("{family}/neigh/eth0/retrans_time_ms");
        cluster.host(mute).set_sysctl(&repeat, "600000")?;
        let (own, mac) = (cluster.server_address(mute), cluster.mac(mute));
        let known = format!("neigh replace {own} lladdr {mac} dev eth0 nud permanent\n");
        for peer in [master, other] {
            let host = cluster.host(peer);
            host.tool("ip", &["-batch", "-"], &known)?;
        }
        cluster.net().cable(mute, false)?;
        let show = ["neigh", "show", "nud", "incomplete"].map(String::from);
        lab::wait_for("questions into a cable that is out", PATIENCE, || {
            let output = cluster.host(mute).output(Path::new("ip"), &show).ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let asked = |peer| text.contains(&format!("{} ", cluster.server_address(peer)));
            (asked(master) && asked(other)).then_some(())
        })?;
        lab::wait_for("the others miss it", PATIENCE, || {
            let states = [master, other].map(|peer| {
                let status = cluster.status(peer)?;
                let servers = status["servers"].as_array()?;
                let it = servers.iter().find(|s| s["name"] == cluster.name(mute))?;
                Some(it["state"] == "dead")
            });
            (states == [Some(true); 2]).then_some(())
        })?;
        cluster.net().cable(mute, true)?;
        cluster.settle()?;
        Ok(())
    })
}

pub fn graceful_stop_hands_over() -> Outcome {
    with(Spec::default(), |cluster| {
        let old = cluster.settle()?;
        cluster.stop(old)?;
        cluster.wait_master(0, Some(old))?;
        gave_up(cluster, old)?;
        lab::wait_for("the others know that it was stopped", PATIENCE, || {
            let know = others(cluster, old).into_iter().all(|peer| {
                let status = cluster.status(peer).unwrap_or_default();
                let mut servers = status["servers"].as_array().into_iter().flatten();
                let it = servers.find(|s| s["name"] == cluster.name(old));
                it.is_some_and(|it| it["state"] == "dead" && it["withdrawn"] == true)
            });
            know.then_some(())
        })?;
        no_takeover(cluster, |cluster| {
            cluster.start_server(old)?;
            cluster.settle()?;
            Ok(())
        })
    })
}

fn role_of(cluster: &Cluster, server: usize) -> Option<String> {
    cluster.view(server, 0).map(|(role, _)| role)
}

fn refused(output: &Output) -> bool {
    output.status.code() == Some(1) && !output.stderr.is_empty()
}

pub fn promote_and_resign_hand_over() -> Outcome {
    with(Spec::default(), |cluster| {
        let first = cluster.settle()?;
        for target in others(cluster, first) {
            // Any server may be asked, not only the master.
            let name = cluster.name(target).to_owned();
            cluster.tell(first, &["promote", &name])?;
            lab::wait_for(&format!("{name} is master"), PATIENCE, || {
                cluster.master(0).filter(|m| *m == target)
            })?;
            cluster.settle()?;
        }
        let master = cluster.settle()?;
        cluster.tell(master, &["resign"])?;
        cluster.wait_master(0, Some(master))?;
        cluster.settle()?;
        let nowhere = cluster.ask(0, &["promote", "zulu"])?;
        ensure(
            refused(&nowhere),
            format!("promoting an unknown server was not refused: {nowhere:?}"),
        )
    })
}

pub fn maintenance_hands_over_and_keeps_the_server_voting() -> Outcome {
    with(Spec::default(), |cluster| {
        let first = cluster.settle()?;
        cluster.tell(first, &["maintenance", "on"])?;
        let second = cluster.wait_master(0, Some(first))?;
        let third = others(cluster, first)
            .into_iter()
            .find(|s| *s != second)
            .unwrap_or(first);
        // Only the vote of the server in maintenance makes a majority now.
        cluster.power_loss(second)?;
        let next = cluster.wait_master(0, Some(second))?;
        ensure(
            next == third,
            format!("{} is master in maintenance", cluster.name(next)),
        )?;
        cluster.tell(first, &["maintenance", "off"])?;
        cluster.power_on(second)?;
        cluster.settle()?;
        let name = cluster.name(first).to_owned();
        cluster.tell(third, &["promote", &name])?;
        lab::wait_for("the server is master again", PATIENCE, || {
            cluster.master(0).filter(|m| *m == first)
        })?;
        Ok(())
    })
}

pub fn a_killed_role_is_replaced_without_a_failover() -> Outcome {
    with(Spec::default(), |cluster| {
        let master = cluster.settle()?;
        let slave = others(cluster, master)[0];
        let told = [slave, master].map(|server| last_change(cluster, server));
        for server in [slave, master] {
            for role in ["hbd", "listend", "doctord", "electd"] {
                no_takeover(cluster, |cluster| {
                    let before = cluster.role(server, role);
                    cluster.kill(server, role, Signal::SIGKILL)?;
                    let what = format!("{role} of {} runs again", cluster.name(server));
                    lab::wait_for(&what, PATIENCE, || {
                        let now = cluster.role(server, role);
                        (now.len() == 1 && now[0].pid != before[0].pid).then_some(())
                    })?;
                    cluster.settle()?;
                    Ok(())
                })?;
            }
        }
        ensure(
            role_of(cluster, master).as_deref() == Some("master"),
            "status does not say who is master",
        )?;
        for (server, before) in [slave, master].into_iter().zip(told) {
            let now = last_change(cluster, server);
            let same = |(why, at): &(String, u64)| {
                now.as_ref()
                    .is_some_and(|(now, then)| now == why && then.abs_diff(*at) < 2)
            };
            let what = format!("the last change was {before:?} and is {now:?}");
            ensure(before.as_ref().is_some_and(same), what)?;
        }
        Ok(())
    })
}

/// Why the virtual server last changed, and when, in seconds since 1970.
fn last_change(cluster: &Cluster, server: usize) -> Option<(String, u64)> {
    let status = cluster.status(server)?;
    let v = &status["virtual_servers"][0];
    Some((v["reason"].as_str()?.to_owned(), v["changed"].as_u64()?))
}

pub fn restart_of_the_whole_cluster() -> Outcome {
    with(Spec::default(), |cluster| {
        for _ in 0..2 {
            for server in 0..3 {
                cluster.stop(server)?;
                gave_up(cluster, server)?;
            }
            for server in 0..3 {
                cluster.start_server(server)?;
            }
            cluster.settle()?;
        }
        Ok(())
    })
}

pub fn power_loss_of_the_whole_cluster() -> Outcome {
    with(Spec::default(), |cluster| {
        for server in 0..3 {
            cluster.power_loss(server)?;
        }
        for server in 0..3 {
            cluster.power_on(server)?;
        }
        cluster.settle()?;
        Ok(())
    })
}

/// Skips the test where there is no IPv6.
fn with_ipv6() -> Outcome {
    if Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    Err(Failure::Skip("this kernel has no IPv6".to_owned()))
}

pub fn ipv6_servers_fail_over() -> Outcome {
    with_ipv6()?;
    with(
        Spec {
            ipv6: true,
            ..Spec::default()
        },
        |cluster| {
            let old = cluster.settle()?;
            let mark = cluster.net().client(0).mark();
            cluster.power_loss(old)?;
            let new = cluster.wait_master(0, Some(old))?;
            lab::wait_for("clients are served again", PATIENCE, || {
                (cluster.net().client(0).silence() < Duration::from_millis(20)).then_some(())
            })?;
            ensure(
                cluster.net().client(0).since(mark).lost > 0,
                "the client did not notice a power loss at all",
            )?;
            cluster.power_on(old)?;
            cluster.settle()?;
            let name = cluster.name(old).to_owned();
            cluster.tell(new, &["promote", &name])?;
            cluster.wait_master(0, Some(new))?;
            Ok(())
        },
    )
}

pub fn two_virtual_servers_have_different_masters() -> Outcome {
    with(
        Spec {
            virtual_servers: 2,
            ..Spec::default()
        },
        |cluster| {
            cluster.settle()?;
            cluster.tell(0, &["promote", "alpha", "--virtual-server", "web"])?;
            cluster.tell(0, &["promote", "bravo", "--virtual-server", "mail"])?;
            lab::wait_for("alpha has web and bravo has mail", PATIENCE, || {
                (cluster.master(0) == Some(0) && cluster.master(1) == Some(1)).then_some(())
            })?;
            cluster.settle()?;
            let mark = cluster.net().judge().mark();
            cluster.power_loss(1)?;
            cluster.wait_master(1, Some(1))?;
            ensure(
                cluster.net().judge().since(mark, 0).moves() == 0,
                "web moved although only mail's master died",
            )?;
            cluster.power_on(1)?;
            cluster.settle()?;
            Ok(())
        },
    )
}

pub fn role_scripts_run_and_a_hanging_one_delays_nothing() -> Outcome {
    with(Spec::default(), |cluster| {
        let old = cluster.settle()?;
        let noted = |cluster: &Cluster, server: usize, what: &str| {
            let line = format!("{} {what} web ", cluster.name(server));
            cluster.script_notes().lines().any(|l| l.starts_with(&line))
        };
        let wait = |cluster: &Cluster, server: usize, what: &str| {
            let name = format!("{what} runs on {}", cluster.name(server));
            lab::wait_for(&name, PATIENCE, || {
                noted(cluster, server, what).then_some(())
            })
        };
        wait(cluster, old, "master.d start")?;
        let hang = Path::new(lab::FOLDER).join("etc/master.d/10-hang");
        let write = fs::write(&hang, "#!/bin/sh\nexec sleep 1000\n")
            .and_then(|()| fs::set_permissions(&hang, fs::Permissions::from_mode(0o755)));
        ensure(write.is_ok(), format!("{}: {write:?}", hang.display()))?;
        cluster.tell(old, &["resign"])?;
        let new = cluster.wait_master(0, Some(old))?;
        wait(cluster, old, "slave.d start")?;
        no_takeover(cluster, |_| {
            thread::sleep(Duration::from_secs(2));
            Ok(())
        })?;
        // The next change of role does not wait for the script that hangs.
        let name = cluster.name(old).to_owned();
        cluster.tell(old, &["promote", &name])?;
        cluster.wait_master(0, Some(new))?;
        cluster.settle()?;
        Ok(())
    })
}

pub fn an_address_taken_away_by_another_program_is_put_back() -> Outcome {
    with(Spec::default(), |cluster| {
        let master = cluster.settle()?;
        no_takeover(cluster, |cluster| {
            let address = cluster.address(0);
            cluster.host(master).tool(
                "ip",
                &["addr", "del", &format!("{address}/24"), "dev", "eth0"],
                "",
            )?;
            lab::wait_for("the address is put back", PATIENCE, || {
                cluster.host(master).has_address(address).then_some(())
            })?;
            Ok(())
        })
    })
}
