//! What is wrong with a configuration is said so that it can be mended.

use crate::scene::{Outcome, Two, ensure, judged};
use lab::Spec;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// What is wrong, how a good file becomes so, and what the complaint must name.
struct Case {
    what: &'static str,
    from: &'static str,
    to: &'static str,
    /// The first of the good file's lines that the complaint may name by number, by its beginning; empty: none.
    line: &'static str,
    named: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        what: "unknown key",
        from: "heartbeat =",
        to: "hartbeat =",
        line: "hartbeat",
        named: &["hartbeat"],
    },
    Case {
        what: "missing server",
        from: "[[server]]\nname = \"charlie\"\naddress = [\"192.0.2.13\"]\n",
        to: "",
        line: "",
        named: &["server"],
    },
    Case {
        what: "duplicate address",
        from: "192.0.2.12",
        to: "192.0.2.11",
        line: "address = [\"192.0.2.11\"]",
        named: &["192.0.2.11"],
    },
    Case {
        what: "short lease",
        from: "\"500ms\"",
        to: "\"499ms\"",
        line: "lease",
        named: &["lease", "heartbeat"],
    },
    Case {
        what: "bad address",
        from: "192.0.2.13",
        to: "192.0.2.1333",
        line: "address = [\"192.0.2.1333\"]",
        named: &["address", "192.0.2.1333"],
    },
    Case {
        what: "bad number",
        from: "port = 6946",
        to: "port = 66946",
        line: "port",
        named: &["port"],
    },
    Case {
        what: "bad quorum",
        from: "quorum = \"majority\"",
        to: "quorum = \"most\"",
        line: "quorum",
        named: &["quorum", "majority"],
    },
    Case {
        what: "not TOML",
        from: "[cluster]",
        to: "[cluster",
        line: "[cluster",
        named: &[],
    },
];

/// Every program that reads the configuration.
const PROGRAMS: [&str; 5] = ["standin", "hbd", "listend", "doctord", "electd"];

fn complain(cluster: &lab::Cluster, what: &str, server: &str, named: &[&str]) -> Outcome {
    let paths = [
        cluster.config_file(0),
        cluster.run_dir(0),
        cluster.state_dir(0),
    ]
    .map(|p| p.display().to_string());
    let [config, run, state] = paths;
    for program in PROGRAMS {
        let mut args: Vec<String> = Vec::new();
        if program == "standin" {
            args.push("check".to_owned());
        }
        let options = [
            "--config",
            &config,
            "--run-dir",
            &run,
            "--state-dir",
            &state,
            "--server",
            server,
        ];
        args.extend(options.map(str::to_owned));
        let output = cluster.host(0).output(&lab::binary(program)?, &args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        ensure(
            output.status.code() == Some(2),
            format!(
                "{what}: {program} ends with {} instead of 2, and says: {said}",
                output.status
            ),
        )?;
        for name in named {
            ensure(
                said.contains(name),
                format!("{what}: {program} does not name {name}: {said}"),
            )?;
        }
    }
    Ok(())
}

pub fn config_errors_name_file_line_key_and_mend() -> Outcome {
    judged(Spec::default(), Two::Never, |cluster| {
        let good = cluster.spec().config(3);
        let file = cluster.config_file(0).display().to_string();
        for case in CASES {
            ensure(
                good.contains(case.from),
                format!("{}: the good file has no {}", case.what, case.from),
            )?;
            let bad = good.replacen(case.from, case.to, 1);
            cluster.write_config(0, &bad)?;
            let at = bad
                .lines()
                .enumerate()
                .filter(|(_, l)| !case.line.is_empty() && l.starts_with(case.line))
                .last();
            let place = at.map_or(file.clone(), |(index, _)| format!("{file}:{}", index + 1));
            let named: Vec<&str> = case.named.iter().copied().chain([place.as_str()]).collect();
            complain(cluster, case.what, "alpha", &named)?;
        }
        cluster.write_config(0, &good)?;
        complain(cluster, "host not in the list", "zulu", &[&file, "zulu"])?;
        let key = Path::new(lab::FOLDER).join("cluster.key");
        let opened = fs::set_permissions(&key, fs::Permissions::from_mode(0o644));
        ensure(opened.is_ok(), format!("{opened:?}"))?;
        // Only those that use the key complain, and `check`.
        let output = cluster.ask(0, &["check"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        ensure(
            output.status.code() == Some(2),
            format!("a key that all may read: {} {said}", output.status),
        )?;
        for name in ["cluster.key", "600"] {
            ensure(
                said.contains(name),
                format!("a key that all may read: {name} is not named: {said}"),
            )?;
        }
        Ok(())
    })
}

pub fn check_accepts_a_good_server() -> Outcome {
    crate::scene::with(Spec::default(), |cluster| {
        let output = cluster.ask(0, &["check"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        ensure(
            output.status.success(),
            format!("standin check says no to a running server: {said}"),
        )
    })
}
