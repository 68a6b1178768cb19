//! Servers that take their MAC address along, and a client whose entry nobody can change.

use crate::{
    Options, faults,
    subject::{SERVERS, Subject, System},
    watch::Figures,
};
use lab::{Error, Keepalived, MacWatch};
use std::{thread, time::Duration};

/// The master loses its power, and gets it again.
pub fn power(system: &System, options: &Options) -> Result<Figures, Error> {
    let mut subject = Subject::start_virtual_mac(system.kind)?;
    let master = subject.settle()?;
    let mac = match &subject {
        Subject::Keepalived(_) => Keepalived::VIRTUAL_MAC.to_owned(),
        Subject::Standin(cluster) => {
            let status = cluster.status(master).unwrap_or_default();
            let mac = status["virtual_servers"][0]["mac"].as_str();
            mac.unwrap_or_default().to_owned()
        }
    };
    let watch = MacWatch::start(subject.net().servers(), &mac)?;
    let entry = format!("neigh replace 192.0.2.10 lladdr {mac} dev eth0 nud permanent\n");
    let client = subject.net().client_host();
    client.tool("ip", &["-batch", "-"], &entry)?;
    thread::sleep(Duration::from_millis(500));
    let mark = watch.mark();
    let before = faults::power(&mut subject, master, options)?;
    subject.settle()?;
    let heard = watch.since(mark);
    // Where it was before may still be heard once.
    let moves = heard.windows(2).count() + usize::from(heard.first() != Some(&master));
    debug_assert!(heard.iter().all(|server| *server < SERVERS));
    let rows = [
        "virtual MAC, static entry: power loss, ms",
        "virtual MAC, static entry: two masters, ms",
    ];
    let figures = rows
        .into_iter()
        .zip(before.into_iter().map(|(_, value)| value));
    let moves = (
        "virtual MAC: moves of the MAC address, power on too",
        moves as f64,
    );
    Ok(figures.chain([moves]).collect())
}
