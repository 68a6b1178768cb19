//! syncd, the file daemon: keeps files alike on all servers (syncd(8)).

mod ssh;

fn main() {}
