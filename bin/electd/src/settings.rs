//! The configuration as the elector and the takeover want it.

use config::{Config, Preempt, Quorum};
use election::{Mode, Settings, VirtualServerSettings};
use protocol::ServerName;
use std::{net::IpAddr, time::Duration};
use takeover::AddressSet;

/// What the elector needs to know. `margin`: how much of a lease the gate in force may not use.
pub fn election(config: &Config, me: &ServerName, margin: Duration) -> Settings {
    let mut servers: Vec<_> = config.servers.iter().map(|s| s.name.clone()).collect();
    servers.sort();
    let virtual_servers = config.virtual_servers.iter().map(|v| {
        let settings = VirtualServerSettings {
            interface: v.interface.clone(),
            priority: config.priority(me, &v.name),
            preempt: match v.preempt {
                Preempt::Never => election::Preempt::Never,
                Preempt::Fresher => election::Preempt::Fresher,
                Preempt::Always => election::Preempt::Always,
            },
        };
        (v.name.clone(), settings)
    });
    Settings {
        me: me.clone(),
        heartbeat: config.cluster.heartbeat,
        lease: config.cluster.lease,
        margin,
        mode: match config.cluster.quorum {
            Quorum::Majority => Mode::Majority,
            Quorum::None => Mode::None,
        },
        witness: config.server(me).is_some_and(|s| s.witness),
        servers,
        virtual_servers: virtual_servers.collect(),
        config_hash: config.hash,
    }
}

/// Where the servers of the cluster are.
pub fn server_addresses(config: &Config) -> Vec<IpAddr> {
    let servers = config.servers.iter();
    servers.flat_map(|s| s.addresses.iter().copied()).collect()
}

/// The addresses this server may have to take over: none for a witness.
pub fn address_sets(config: &Config, me: &ServerName) -> Vec<AddressSet> {
    if config.server(me).is_some_and(|s| s.witness) {
        return Vec::new();
    }
    let set = |v: &config::VirtualServer| AddressSet {
        virtual_server: v.name.clone(),
        interface: v.interface.clone(),
        addresses: v.addresses.clone(),
        mac: v.mac.map(|mac| mac.0),
        on_conflict: v.on_conflict,
    };
    config.virtual_servers.iter().map(set).collect()
}
