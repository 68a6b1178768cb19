//! doctord as an operator's shell sees it.
#![allow(clippy::expect_used)]

use std::process::{Command, Output};

fn doctord(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doctord"))
        .args(arguments)
        .output()
        .expect("doctord starts")
}

fn error_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn version_names_the_program() {
    let output = doctord(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let expected = format!("doctord {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn an_unknown_option_is_wrong_usage() {
    let output = doctord(&["--frequency", "3"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error_text(&output).contains("--frequency"),
        "{}",
        error_text(&output)
    );
}

#[test]
fn a_missing_configuration_is_named_and_ends_with_2() {
    let output = doctord(&["--config", "/nonexistent/standin.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error_text(&output).contains("/nonexistent/standin.toml"),
        "{}",
        error_text(&output)
    );
}
