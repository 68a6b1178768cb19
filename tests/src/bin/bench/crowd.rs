//! Hundreds of clients that have just learned where the master is.

use crate::{
    Options,
    subject::{Subject, System},
    watch::{Figures, millis},
};
use lab::{Crowd, Error};
use std::{thread, time::Duration};

/// Clients, of which the last few ask over IPv6 where the system has an IPv6 address.
const CLIENTS: usize = 250;
/// keepalived has the IPv4 address alone.
const CLIENTS_V4: usize = 200;

/// Power loss of the master less than a second after every client has learned its address.
pub fn crowd(system: &System, _: &Options) -> Result<Figures, Error> {
    let mut subject = Subject::start(system.kind)?;
    let master = subject.settle()?;
    let count = match subject {
        Subject::Standin(_) => CLIENTS,
        Subject::Keepalived(_) => CLIENTS_V4,
    };
    let crowd = Crowd::gather(count)?;
    crowd.refresh()?;
    // The master looks at its neighbours, and tells the others of new ones, every few seconds.
    thread::sleep(Duration::from_secs(12));
    crowd.refresh()?;
    subject.power_loss(master)?;
    let back = crowd.back(master, Duration::from_secs(40));
    let mut figures = vec![
        (
            "clients with fresh entries, power loss: first to last served, ms",
            millis(back.spread),
        ),
        (
            "clients with fresh entries, power loss: never served",
            back.missing as f64,
        ),
    ];
    if let Subject::Standin(cluster) = &subject {
        thread::sleep(Duration::from_secs(1));
        let master = cluster.wait_master(0, None)?;
        let status = cluster.status(master).unwrap_or_default();
        let clients = &status["virtual_servers"][0]["clients"];
        let number = |what: &str| clients[what].as_f64().unwrap_or(f64::NAN);
        figures.extend([
            ("clients asked", number("asked")),
            ("clients that acknowledged", number("answered")),
            (
                "last acknowledgement after the addresses came, ms",
                number("last_answer_ms"),
            ),
        ]);
    }
    Ok(figures)
}
