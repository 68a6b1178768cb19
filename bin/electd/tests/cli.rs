//! The command line of the real daemon.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_electd"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn tells_its_version() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("electd "));
}

#[test]
fn wrong_usage_and_a_missing_configuration_end_with_2() {
    assert_eq!(run(&["--no-such-option"]).status.code(), Some(2));
    let output = run(&["--config", "/nonexistent/standin.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/standin.toml"));
}

#[test]
fn a_quorum_it_does_not_know_is_refused_with_line_and_mend() {
    let folder = std::env::temp_dir().join(format!("electd-cli-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("standin.toml");
    std::fs::write(&file, "[cluster]\nname = \"web\"\nquorum = \"most\"\n").unwrap();
    let output = run(&["--config", file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("standin.toml:3") && text.contains("quorum"),
        "{text}"
    );
}
