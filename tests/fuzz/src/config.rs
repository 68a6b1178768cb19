//! The two files that an operator writes.

use crate::meter;
use ::config::{Problem, parse, parse_key};
use std::path::Path;

/// Longest text tried, in bytes.
const TEXT_MAX: usize = 64 * 1024;

/// What reading a text of that length may allocate: the parser keeps a tree of spans.
const READING_MAX: usize = 256 * TEXT_MAX;

/// Reads `bytes` as `standin.toml` and as key file.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_MAX)]);
    let file = Path::new("standin.toml");
    match meter::within(READING_MAX, || parse(&text, file)) {
        Ok(config) => {
            assert_eq!(parse(&text, file).as_ref().ok(), Some(&config));
            let lease = config.cluster.lease;
            assert!(lease <= ::config::LEASE_MAX && lease >= config.cluster.heartbeat * 5);
            assert!(config.virtual_servers.len() <= ::config::VIRTUAL_SERVERS_MAX);
            for server in &config.servers {
                let found = config.find_self(Some(server.name.as_str()), "", &[]);
                assert_eq!(found.ok().as_ref(), Some(&server.name));
            }
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            let lines = text.lines().count().max(1);
            let placed = |p: &Problem| p.line.is_none_or(|line| (1..=lines).contains(&line));
            assert!(error.problems.iter().all(placed), "{error}");
        }
    }
    if let Ok(keys) = meter::within(READING_MAX, || parse_key(&text, file)) {
        assert!((1..=2).contains(&keys.open.len()) && keys.open[0] == keys.seal);
    }
}
