//! One behaviour of the rule book each.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{L, Setup, Sim, ms, name, secs};

#[test]
fn a_cluster_started_all_at_once_elects_a_master_within_two_leases_of_its_silence() {
    let mut sim = Sim::new(&Setup::default());
    sim.power_on_all();
    let took = sim.until(secs(5), |s| s.master().is_some());
    assert!(took > L, "silent for promise_max after the start");
    assert!(took < L * 3, "{took:?}");
    let _ = (ms(1), name("a"));
}
