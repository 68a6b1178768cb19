//! What all scenarios share.

use lab::{Cluster, Error, LONG, Spec, Stalls};
use std::{fmt, thread, time::Duration};

/// Why a scenario did not pass.
pub enum Failure {
    /// It cannot run here.
    Skip(String),
    /// Something was not as it must be.
    Wrong(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Wrong(error.to_string())
    }
}

pub type Outcome = Result<(), Failure>;

/// How long anything ordinary may take before it counts as not happening.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Fails with `text` unless `fine`.
pub fn ensure(fine: bool, text: impl fmt::Display) -> Outcome {
    if fine {
        Ok(())
    } else {
        Err(Failure::Wrong(text.to_string()))
    }
}

/// Whether two servers may ever answer at the same time in this scenario.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Two {
    Never,
    /// `quorum = "none"` does not promise it.
    Allowed,
}

/// Plays a scenario on a running cluster of that kind.
pub fn with(spec: Spec, play: impl FnOnce(&mut Cluster) -> Outcome) -> Outcome {
    with_environment(spec, &[], play)
}

/// The same, with more in the environment of all daemons.
pub fn with_environment(
    spec: Spec,
    environment: &[(&'static str, &str)],
    play: impl FnOnce(&mut Cluster) -> Outcome,
) -> Outcome {
    judged(spec, Two::Never, |cluster| {
        for server in 0..cluster.spec().servers {
            cluster.init(server)?;
            for (name, value) in environment {
                cluster.set_environment(server, name, value);
            }
        }
        for server in 0..cluster.spec().servers {
            cluster.start_server(server)?;
        }
        cluster.settle()?;
        play(cluster)
    })
}

/// Plays a scenario on a cluster that is neither initialised nor started; on failure the servers' logs are told
/// with it. Whatever the scenario looks at itself, two servers must never have answered.
pub fn judged(spec: Spec, two: Two, play: impl FnOnce(&mut Cluster) -> Outcome) -> Outcome {
    let mut cluster = Cluster::prepare(spec)?;
    let mut outcome = play(&mut cluster);
    if two == Two::Never {
        for v in 0..cluster.spec().virtual_servers {
            let verdict = cluster.net().judge().since(0, v);
            if verdict.guilty() {
                let both = verdict.holdings.iter().filter(|h| h.servers.len() > 1);
                let when: Vec<_> = both
                    .map(|h| format!("{:?} at {:?} for {:?}", h.servers, h.from, h.length))
                    .collect();
                let text = format!(
                    "two servers answered for {:?}: {}",
                    verdict.two,
                    when.join("; ")
                );
                outcome = match outcome {
                    Err(Failure::Wrong(first)) => Err(Failure::Wrong(format!("{first}\n{text}"))),
                    _ => Err(Failure::Wrong(text)),
                };
            }
        }
    }
    outcome.map_err(|failure| match failure {
        Failure::Wrong(text) => Failure::Wrong(format!("{text}\n{}", cluster.tails(60))),
        skip @ Failure::Skip(_) => skip,
    })
}

/// Every server of the cluster but this one.
pub fn others(cluster: &Cluster, server: usize) -> Vec<usize> {
    (0..cluster.spec().servers)
        .filter(|s| *s != server)
        .collect()
}

/// The master must not change while `act` happens and for a good while after.
pub fn no_takeover(cluster: &mut Cluster, act: impl FnOnce(&mut Cluster) -> Outcome) -> Outcome {
    let master = cluster.wait_master(0, None)?;
    let mark = cluster.net().judge().mark();
    act(cluster)?;
    thread::sleep(cluster.spec().profile.lease * 3);
    ensure(
        cluster.wait_master(0, None)? == master,
        "the master changed",
    )?;
    let moves = cluster.net().judge().since(mark, 0).moves();
    ensure(moves == 0, format!("the address moved {moves} times"))
}

/// A cluster whose lease no stall of an ordinary machine outlasts: what breaks it is what the scenario does.
pub fn patient() -> Spec {
    Spec {
        profile: LONG,
        ..Spec::default()
    }
}

/// As [`no_takeover`], and the address must answer all the time but for stalls of this machine, from a master in the
/// same term.
pub fn undisturbed(cluster: &mut Cluster, act: impl FnOnce(&mut Cluster) -> Outcome) -> Outcome {
    let term = |cluster: &Cluster| -> Result<_, Error> {
        let master = cluster.wait_master(0, None)?;
        lab::wait_for("the master tells its term", PATIENCE, || {
            cluster.status(master)?["virtual_servers"][0]["term"].as_u64()
        })
    };
    let before = term(cluster)?;
    unlapsed(cluster, act)?;
    let after = term(cluster)?;
    ensure(
        before == after,
        format!("the master had to be elected again: term {before}, now {after}"),
    )
}

/// As [`no_takeover`], and the address must answer all the time but for stalls of this machine.
pub fn unlapsed(cluster: &mut Cluster, act: impl FnOnce(&mut Cluster) -> Outcome) -> Outcome {
    let stalls = Stalls::start()?;
    let mark = cluster.net().judge().mark();
    no_takeover(cluster, act)?;
    let verdict = cluster.net().judge().since(mark, 0);
    let (gap, stall) = (verdict.longest_gap(), stalls.take());
    // Without precedence the judge and those it asks are as late as anybody on a busy machine.
    ensure(
        !stalls.realtime || gap < stall * 2 + Duration::from_millis(150),
        format!("nobody answered for {gap:?}; the machine's longest stall was {stall:?}"),
    )
}

/// Memory in use by each role of a server, in bytes.
pub fn memory(cluster: &Cluster, server: usize) -> Vec<(String, u64)> {
    let roles = ["hbd", "listend", "doctord", "electd"];
    let rss = |role: &str| {
        cluster
            .role(server, role)
            .iter()
            .map(|p| p.usage().rss)
            .sum()
    };
    roles
        .iter()
        .map(|role| ((*role).to_owned(), rss(role)))
        .collect()
}

/// No role may have grown by more than this since `before`, whatever happened to it.
pub fn bounded(cluster: &Cluster, server: usize, before: &[(String, u64)]) -> Outcome {
    const GROWTH: u64 = 16 << 20;
    for ((role, then), (_, now)) in before.iter().zip(memory(cluster, server)) {
        let name = cluster.name(server);
        ensure(
            now < then + GROWTH,
            format!("{role} of {name} grew from {then} to {now} bytes"),
        )?;
    }
    Ok(())
}

/// The counter must rise above what it was.
pub fn rises(cluster: &Cluster, server: usize, (role, what): (&str, &str), before: u64) -> Outcome {
    let name = format!("{what} of {role} on {} rises", cluster.name(server));
    lab::wait_for(&name, PATIENCE, || {
        (cluster.counter(server, role, what) > before).then_some(())
    })?;
    Ok(())
}

/// Nobody may answer for the first virtual server for this long (after what is under way has ended).
pub fn nobody(cluster: &Cluster, why: &str, span: Duration) -> Outcome {
    lab::wait_for(&format!("nobody answers ({why})"), PATIENCE, || {
        // A moment in which this machine stood still is not enough.
        let silent = cluster.net().client(0).silence() > Duration::from_millis(300);
        (silent && cluster.net().judge().holders(0).is_empty()).then_some(())
    })?;
    let mark = cluster.net().judge().mark();
    thread::sleep(span);
    let verdict = cluster.net().judge().since(mark, 0);
    let held = verdict.holdings.iter().find(|h| !h.servers.is_empty());
    ensure(
        held.is_none(),
        format!("somebody answered although {why}: {held:?}"),
    )
}

/// The server of that number holds none of the first virtual server's addresses.
pub fn gave_up(cluster: &Cluster, server: usize) -> Outcome {
    let name = cluster.name(server);
    lab::wait_for(&format!("{name} gives the address up"), PATIENCE, || {
        (!cluster.host(server).has_address(cluster.address(0))).then_some(())
    })?;
    Ok(())
}
