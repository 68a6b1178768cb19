//! Connections that are kept between runs: the next run with a server begins without a handshake.
//!
//! A session is lent to one run at a time, and given back only by one that ended where a new one can begin. It is asked
//! whether it still answers before it is lent, and now and then while nobody needs it, for the other side gives up
//! sessions that say nothing.

use crate::ssh::{self, Connection};
use config::{Config, Server, SshConfig};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use transfer::ping;

/// What runs on the other server; a forced command there runs the same whatever this says.
pub const COMMAND: &str = "syncd serve";

/// How long a session that is alive may take to say so.
const PING: Duration = Duration::from_secs(2);

/// So often a session that nobody needs is asked: more often than `syncd serve` gives up.
const TEND: Duration = Duration::from_secs(60);

/// What a session was made for: with another key, address or user it is of no use any more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct To {
    addresses: Vec<IpAddr>,
    host_key: Option<String>,
    ssh: (String, std::path::PathBuf, u16),
}

impl To {
    fn of(config: &Config, server: &Server) -> Self {
        let SshConfig { user, key, port } = config.ssh.clone();
        Self {
            addresses: server.addresses.clone(),
            host_key: server.host_key.clone(),
            ssh: (user, key, port),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Sessions(Mutex<BTreeMap<To, Connection>>);

impl Sessions {
    /// Sessions that are tended as long as anybody holds them.
    pub fn tended() -> std::io::Result<Arc<Self>> {
        let sessions = Arc::new(Self::default());
        let held = Arc::downgrade(&sessions);
        thread::Builder::new()
            .name("sessions".into())
            .spawn(move || {
                loop {
                    thread::sleep(TEND);
                    match held.upgrade() {
                        Some(sessions) => sessions.tend(),
                        None => return,
                    }
                }
            })?;
        Ok(sessions)
    }

    /// A session with this server that answers.
    pub fn lend(&self, config: &Config, server: &Server) -> Result<Connection, ssh::Unreachable> {
        let kept = self.kept().remove(&To::of(config, server));
        match kept.and_then(answers) {
            Some(session) => Ok(session),
            None => ssh::connect(config, server, COMMAND),
        }
    }

    /// Takes back a session on which nothing is under way.
    pub fn give_back(&self, config: &Config, server: &Server, mut session: Connection) {
        session.get_mut().end();
        self.kept().insert(To::of(config, server), session);
    }

    /// Whoever does not answer any more is let go.
    fn tend(&self) {
        let all: Vec<_> = self.kept().keys().cloned().collect();
        for to in all {
            // Not while the others wait.
            let session = self.kept().remove(&to);
            if let Some(session) = session.and_then(answers) {
                self.kept().entry(to).or_insert(session);
            }
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<To, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answers(mut session: Connection) -> Option<Connection> {
    session.get_mut().patience(PING);
    ping(&mut session).ok()?;
    session.get_mut().patience(ssh::PATIENCE);
    Some(session)
}
