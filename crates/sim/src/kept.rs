//! Schedules that once violated an invariant, with the code of then or with a bug planted: they are played before
//! any seed.

macro_rules! kept {
    ($($name:literal)*) => {
        /// Their names and texts.
        pub const KEPT: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../testdata/", $name, ".txt"))),)*
        ];
    };
}

kept! {
    "a_master_whose_gate_never_opened"
    "blank_loses_power_again"
    "deaf_master_without_links"
    "floor_told"
    "former_answer"
    "former_successor"
    "hbd_stopped_twice"
    "invited_of_five"
    "invited_of_three"
    "lease_lowered_while_blank"
    "mute_master"
    "paused_master"
    "paused_voter"
    "power_of_a_paused_server"
    "power_of_a_slave"
    "roster_changes_in_a_campaign"
    "roster_on_no_disk_yet"
    "rough_start"
    "stalled_voter"
    "vote_for_a_removed_server"
}
