//! Whole servers on real networks: what breaks, and what must still be true.
//!
//! Each scenario waits for an outcome, with a deadline; none asserts how long something took (`bench` measures
//! that), but for the best of several attempts. Each runs as a process of its own inside a lab of its own, so that nothing is left behind by any.
//!
//! Usage: `netns [--list] [--nightly] [PART OF A NAME]...`; without a name all but those that take long, with `--nightly`
//! these alone.

mod config;
mod disk;
mod failover;
mod fences;
mod files;
mod handover;
mod hostile;
mod mac;
mod membership;
mod others;
mod quorum;
mod renewal;
mod scale;
mod scene;
mod slow;

use scene::Outcome;
use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode, Stdio, exit},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A scenario may take so long.
const DEADLINE: Duration = Duration::from_secs(180);
/// Exit code of a scenario that could not run; its last line says why.
const SKIPPED: i32 = 77;

struct Test {
    name: &'static str,
    run: fn() -> Outcome,
}

macro_rules! tests {
    ($($module:ident: $($name:ident)*;)*) => {
        const TESTS: &[Test] = &[$($(Test { name: stringify!($name), run: $module::$name }),*),*];
    };
}

tests! {
    failover:
        cold_start_of_all_servers_gives_one_master
        power_loss_moves_the_address_and_the_old_master_returns_as_slave
        pulled_cable_moves_the_address_and_plugging_it_in_again_moves_nothing
        a_server_speaks_again_as_soon_as_its_cable_is_plugged_in
        so_it_does_over_ipv6
        graceful_stop_hands_over
        promote_and_resign_hand_over
        maintenance_hands_over_and_keeps_the_server_voting
        a_killed_role_is_replaced_without_a_failover
        restart_of_the_whole_cluster
        power_loss_of_the_whole_cluster
        ipv6_servers_fail_over
        two_virtual_servers_have_different_masters
        role_scripts_run_and_a_hanging_one_delays_nothing
        an_address_taken_away_by_another_program_is_put_back;
    fences:
        a_master_whose_roles_all_stop_or_die_is_silenced_by_the_kernel
        so_does_the_gate_at_clsact
        so_does_the_gate_of_nftables
        a_stall_before_the_gate_is_written_lets_nothing_past_the_lease
        nor_does_one_before_the_gate_of_nftables
        a_stranger_who_flushes_nftables_changes_nothing
        an_electd_that_is_killed_leaves_the_gate_of_nftables_as_it_is;
    handover:
        handovers_lose_no_request
        handovers_lose_no_request_over_ipv6;
    files:
        files_are_alike_after_an_election_and_a_server_that_missed_a_run_does_not_win
        a_server_whose_files_are_not_mounted_does_not_win_until_they_are_again
        a_master_that_loses_its_power_in_a_run_keeps_nothing_occupied
        what_two_masters_changed_in_a_split_is_alike_after_it_and_nothing_is_lost;
    quorum:
        partition_never_makes_two_masters_and_healing_moves_nothing
        lost_beats_make_no_takeover
        one_way_loss_leaves_one_master
        quorum_lost_and_regained
        two_servers_and_a_witness
        without_quorum_a_split_heals_to_one_master;
    membership:
        a_lost_or_damaged_reservation_makes_a_server_blank_until_the_others_have_told
        a_server_is_added_and_another_removed_under_load
        the_lease_changes_while_running
        init_refuses_a_server_that_has_a_reservation
        a_copied_state_dir_makes_no_second_master
        a_cluster_restored_on_other_machines_goes_on_when_it_is_adopted;
    disk:
        a_full_disk_forbids_voting_and_says_so
        a_stuck_disk_delays_no_election;
    config:
        config_errors_name_file_line_key_and_mend
        check_accepts_a_good_server;
    hostile:
        forged_and_damaged_packets_change_nothing
        replayed_and_reordered_beats_change_nothing
        replayed_and_damaged_signals_change_nothing
        floods_of_garbage_hide_no_beat
        half_open_and_slow_connections_keep_no_link_out
        local_sockets_stand_garbage_and_floods
        roles_find_each_other_while_their_sockets_are_attacked
        strange_users_reach_no_local_socket;
    slow:
        hanging_crashing_and_talkative_scripts_disturb_nothing
        a_full_disk_and_a_dead_log_disturb_nothing
        a_hundred_clients_asking_for_status_disturb_nothing
        hogs_and_memory_pressure_disturb_nothing
        a_killed_main_daemon_finds_its_roles_again
        rounds_of_restarts_cost_no_takeover
        two_roles_killed_at_once_cost_no_takeover;
    scale:
        a_thousand_addresses_move
        two_hundred_virtual_servers_move;
    renewal:
        a_killed_electd_is_gone_and_back_at_once
        roles_killed_as_soon_as_they_run_are_always_replaced_at_once
        new_programs_replace_running_ones_without_a_takeover
        a_program_that_does_not_run_replaces_nothing
        a_main_daemon_killed_again_and_again_stops_all_in_the_end;
    mac:
        a_client_with_a_static_entry_is_served_after_power_loss_and_handover
        a_client_that_ignores_announcements_is_served_after_power_loss_and_handover
        a_virtual_mac_address_serves_ipv6_clients
        only_the_virtual_mac_address_answers
        the_device_of_a_stopped_electd_says_nothing
        a_virtual_mac_address_outlives_electd_and_goes_with_a_clean_stop
        a_device_taken_away_by_another_program_is_put_back
        virtual_mac_addresses_come_and_go_with_the_configuration;
    others:
        status_tells_what_it_promises
        what_forbids_a_failover_is_an_alarm_that_comes_and_goes
        a_client_that_hears_no_broadcast_moves_after_power_loss
        the_judge_sees_two_masters_where_there_are_two
        the_demo_plays_to_its_end
        a_person_writes_a_file_in_the_lab_and_reads_it_on_the_others
        chaos_for_a_while
        chaos_of_files_for_a_while
        an_ordinary_user_can_run_a_lab;
}

/// So many run at once: nearly all of the time each of them waits.
const AT_ONCE: usize = 3;

/// These load the machine, or look at what happens within milliseconds.
const ALONE: [&str; 10] = [
    "handovers_lose_no_request",
    "handovers_lose_no_request_over_ipv6",
    "floods_of_garbage_hide_no_beat",
    "hogs_and_memory_pressure_disturb_nothing",
    "the_lease_changes_while_running",
    "a_thousand_addresses_move",
    "two_hundred_virtual_servers_move",
    "a_killed_electd_is_gone_and_back_at_once",
    "chaos_for_a_while",
    "chaos_of_files_for_a_while",
];

/// These take half a minute or more each, and repeat what shorter ones do until something gives.
const NIGHTLY: [&str; 18] = [
    "replayed_and_reordered_beats_change_nothing",
    "replayed_and_damaged_signals_change_nothing",
    "floods_of_garbage_hide_no_beat",
    "half_open_and_slow_connections_keep_no_link_out",
    "local_sockets_stand_garbage_and_floods",
    "roles_find_each_other_while_their_sockets_are_attacked",
    "strange_users_reach_no_local_socket",
    "hanging_crashing_and_talkative_scripts_disturb_nothing",
    "a_full_disk_and_a_dead_log_disturb_nothing",
    "a_hundred_clients_asking_for_status_disturb_nothing",
    "hogs_and_memory_pressure_disturb_nothing",
    "rounds_of_restarts_cost_no_takeover",
    "two_roles_killed_at_once_cost_no_takeover",
    "two_hundred_virtual_servers_move",
    "roles_killed_as_soon_as_they_run_are_always_replaced_at_once",
    "a_main_daemon_killed_again_and_again_stops_all_in_the_end",
    "an_electd_that_is_killed_leaves_the_gate_of_nftables_as_it_is",
    "chaos_of_files_for_a_while",
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [option, name] = &args[..]
        && option == "--one"
        && let Some(test) = TESTS.iter().find(|t| t.name == name)
    {
        return one(test);
    }
    if let [option, attack @ ..] = &args[..]
        && option == "--attack"
    {
        return hostile::attack(attack);
    }
    if let [option, bytes] = &args[..]
        && option == "--eat"
    {
        return slow::eat(bytes);
    }
    let (options, parts): (Vec<_>, Vec<_>) = args.into_iter().partition(|a| a.starts_with("--"));
    let unknown = |name: &&&str| !TESTS.iter().any(|test| test.name == **name);
    if let Some(name) = NIGHTLY.iter().chain(&ALONE).find(unknown) {
        println!("no scenario is named {name}");
        return ExitCode::FAILURE;
    }
    let nightly = options.iter().any(|o| o == "--nightly");
    let wanted = |test: &&Test| match parts.is_empty() {
        true => NIGHTLY.contains(&test.name) == nightly,
        false => parts.iter().any(|p| test.name.contains(p.as_str())),
    };
    if options.iter().any(|o| o == "--list") {
        TESTS
            .iter()
            .filter(wanted)
            .for_each(|t| println!("{}: test", t.name));
        return ExitCode::SUCCESS;
    }
    let (alone, together): (Vec<_>, Vec<_>) = TESTS
        .iter()
        .filter(wanted)
        .partition(|test| ALONE.contains(&test.name));
    let ends = [run_all(together, AT_ONCE), run_all(alone, 1)].concat();
    let count = |wanted| ends.iter().filter(|end| **end == wanted).count();
    let failed = count(End::Failed);
    println!(
        "\n{} passed, {failed} failed, {} skipped",
        count(End::Passed),
        count(End::Skipped)
    );
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    Skipped,
}

/// Runs scenarios, so many at once.
fn run_all(tests: Vec<&Test>, at_once: usize) -> Vec<End> {
    let (left, ends) = (Mutex::new(tests.into_iter()), Mutex::new(Vec::new()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(test) = next() {
            let end = run(test);
            ends.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(end);
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    ends.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one and tells how it went.
fn run(test: &Test) -> End {
    let strict = env::var_os("STANDIN_TESTS_SKIP_NOTHING").is_some();
    let start = Instant::now();
    let (code, output) = spawn(test);
    let (end, told) = match code {
        Some(0) => (
            End::Passed,
            format!("ok ({:.0} s)", start.elapsed().as_secs_f64()),
        ),
        Some(SKIPPED) if !strict => {
            let why = output.trim().lines().last().unwrap_or("no reason given");
            (End::Skipped, format!("skipped ({why})"))
        }
        _ => {
            let how = code.map_or("ended by a Unix signal".to_owned(), |c| {
                format!("exit code {c}")
            });
            (
                End::Failed,
                format!("FAILED ({how})\n{}", output.trim_end()),
            )
        }
    };
    println!("test {} ... {told}", test.name);
    end
}

/// Runs a scenario as a process of its own; its exit code and what it printed.
fn spawn(test: &Test) -> (Option<i32>, String) {
    let run = || {
        let program = env::current_exe()?;
        let mut command = Command::new(program);
        command.args(["--one", test.name]).stdin(Stdio::null());
        command.output()
    };
    match run() {
        Ok(output) => {
            let text =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            (
                output
                    .status
                    .code()
                    .or(output.status.signal().map(|s| 128 + s)),
                text.into_owned(),
            )
        }
        Err(error) => (Some(1), error.to_string()),
    }
}

/// The process of one scenario.
fn one(test: &Test) -> ExitCode {
    // These start programs that make labs, and must be outside one.
    let outside = [
        "the_demo_plays_to_its_end",
        "chaos_for_a_while",
        "chaos_of_files_for_a_while",
        "an_ordinary_user_can_run_a_lab",
    ];
    if !outside.contains(&test.name)
        && let Err(error) = lab::enter()
    {
        println!("{error}");
        let code = if matches!(error, lab::Error::NotPermitted { .. }) {
            SKIPPED
        } else {
            1
        };
        exit(code);
    }
    thread::spawn(|| {
        thread::sleep(DEADLINE);
        println!("not over after {} s\n{}", DEADLINE.as_secs(), logs());
        exit(124);
    });
    match (test.run)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(scene::Failure::Skip(why)) => {
            println!("{why}");
            exit(SKIPPED)
        }
        Err(scene::Failure::Wrong(text)) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

/// The last lines of every log in the lab.
fn logs() -> String {
    let mut text = String::new();
    for entry in fs::read_dir(lab::FOLDER).into_iter().flatten().flatten() {
        if let Ok(log) = fs::read_to_string(entry.path().join("log")) {
            let lines: Vec<_> = log.lines().collect();
            text += &format!(
                "--- {}\n{}\n",
                entry.path().display(),
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
    }
    text
}
