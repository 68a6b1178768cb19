//! The manual pages are rendered and read: what a formatter complains about, what a broken macro leaves behind, and what is
//! not what the program says.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Longer than any word of the pages: a macro that runs its arguments together makes longer ones.
const WORD_MAX: usize = 40;

fn pages() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man");
    let mut pages: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    pages.sort();
    assert!(pages.len() >= 7, "{pages:?}");
    pages
}

/// The page as a reader sees it, without hyphens at the ends of lines, and what the formatter says of it. None: there is no
/// formatter here, and tests may be skipped.
fn rendered(page: &Path) -> Option<(String, String)> {
    let mut groff = Command::new("groff");
    groff.args(["-ww", "-Tutf8", "-P-cbou", "-rHY=0", "-mandoc"]);
    let Ok(Output { stdout, stderr, .. }) = groff.arg(page).output() else {
        assert!(
            std::env::var_os("STANDIN_TESTS_SKIP_NOTHING").is_none(),
            "no groff: make deps"
        );
        eprintln!("skipped: no groff");
        return None;
    };
    let [text, complaints] = [stdout, stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    Some((text, complaints))
}

#[test]
fn no_page_makes_a_formatter_complain() {
    for page in pages() {
        let Some((text, complaints)) = rendered(&page) else {
            return;
        };
        assert!(complaints.is_empty(), "{}: {complaints}", page.display());
        assert!(text.contains("SEE ALSO"), "{}: {text}", page.display());
    }
}

#[test]
fn no_macro_is_left_over_or_runs_words_together() {
    for page in pages() {
        let shown = page.display();
        for (n, line) in fs::read_to_string(&page).unwrap().lines().enumerate() {
            let strange = line.chars().find(|c| !matches!(c, ' '..='~'));
            assert_eq!(strange, None, "{shown}, line {}: {line}", n + 1);
        }
        let Some((text, _)) = rendered(&page) else {
            return;
        };
        for word in text.split_whitespace() {
            let plain = !word.contains(['/', '.']) || word.contains("),");
            let long = word.chars().count() > WORD_MAX && plain;
            assert!(!long, "{shown} runs words together: {word}");
            let left = word.contains(r"\f") || word.contains(r"\(") || word.starts_with(".B");
            assert!(!left, "{shown} shows a macro: {word}");
        }
    }
}

/// The words behind `standin` in the lines of help that list commands.
fn commands(arguments: &[&str]) -> Vec<String> {
    let program = env!("CARGO_BIN_EXE_standin");
    let output = Command::new(program).args(arguments).arg("--help").output();
    let help = String::from_utf8(output.unwrap().stdout).unwrap();
    let Some((_, listed)) = help.split_once("Commands:\n") else {
        return Vec::new();
    };
    listed
        .lines()
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_whitespace().next())
        .filter(|c| *c != "help")
        .map(str::to_owned)
        .collect()
}

/// Options of its own that a command has.
fn options(arguments: &[&str]) -> Vec<String> {
    let program = env!("CARGO_BIN_EXE_standin");
    let output = Command::new(program).args(arguments).arg("--help").output();
    let help = String::from_utf8(output.unwrap().stdout).unwrap();
    let common = ["--config", "--run-dir", "--state-dir", "--server", "--help"];
    let long = |l: &str| {
        let option = l.split_whitespace().find(|w| w.starts_with("--"))?;
        l.trim_start().starts_with('-').then(|| option.to_owned())
    };
    let long = help.lines().filter_map(long);
    long.filter(|o| !common.contains(&o.as_str())).collect()
}

#[test]
fn the_synopsis_has_every_command_and_option() {
    let page = pages()
        .into_iter()
        .find(|p| p.ends_with("standin.8"))
        .unwrap();
    let Some((text, _)) = rendered(&page) else {
        return;
    };
    let (_, from) = text.split_once("SYNOPSIS\n").unwrap();
    let (synopsis, _) = from.split_once("\nDESCRIPTION").unwrap();
    // One entry for each command; a line that is continued is indented further.
    let words = synopsis.split_whitespace().collect::<Vec<_>>().join(" ");
    let entries: BTreeSet<&str> = words.split("standin ").map(str::trim).collect();
    let mut missing = Vec::new();
    let mut look = |line: &[&str]| {
        let command = line.join(" ");
        let entry = entries.iter().find(|e| {
            let mut words = e.split([' ', '|', '[', ']']);
            words.next() == line.first().copied()
                && line[1..].iter().all(|further| words.any(|w| w == *further))
        });
        let Some(entry) = entry else {
            return missing.push(command);
        };
        let absent = options(line)
            .into_iter()
            .filter(|o| !entry.contains(o.as_str()));
        missing.extend(absent.map(|o| format!("{command} {o}")));
    };
    for command in commands(&[]) {
        let below = commands(&[&command]);
        // What can be said without a word more is looked for as well.
        if below.is_empty() || command == "lab" {
            look(&[&command]);
        }
        for further in below {
            look(&[&command, &further]);
        }
    }
    assert!(missing.is_empty(), "{missing:?} not in {synopsis}");
}
