//! Is the proof worth anything? Plants each known bug in turn and tells which checker notices.
//!
//! The checkers are the programs beside this one, built with the feature `standin-mutants/plant`: each is asked with
//! one bug planted, and before that with none. The first that notices is enough: chaos, the last, takes real time.

use mutants::{Mutant, VARIABLE};
use std::{
    env, io,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

const USAGE: &str = "mutants [--only NAME,...] [--sim-seconds N] [--chaos-seconds N] [--all]
  --all              ask every checker about every bug, also about those that another has noticed
  --chaos-seconds 0  leave chaos out";

struct Options {
    only: Vec<String>,
    sim_seconds: String,
    chaos_seconds: String,
    all: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        only: Vec::new(),
        sim_seconds: "60".into(),
        chaos_seconds: "60".into(),
        all: false,
    };
    let mut args = env::args().skip(1);
    while let Some(option) = args.next() {
        if option == "--all" {
            options.all = true;
            continue;
        }
        let value = args.next().ok_or(USAGE)?;
        match option.as_str() {
            "--only" => options.only = value.split(',').map(str::to_owned).collect(),
            "--sim-seconds" => options.sim_seconds = value,
            "--chaos-seconds" => options.chaos_seconds = value,
            _ => return Err(USAGE.into()),
        }
    }
    let strange = |name: &&String| !Mutant::ALL.iter().any(|m| m.name() == **name);
    match options.only.iter().find(strange) {
        Some(name) => Err(format!("--only {name}: no such bug\n{USAGE}")),
        None => Ok(options),
    }
}

/// One program that claims to notice bugs.
struct Checker {
    title: &'static str,
    program: &'static str,
    arguments: Vec<String>,
    /// Whether it says nothing where there is nothing; none as long as nobody needed to know.
    sound: Option<bool>,
}

impl Checker {
    /// Is it content without any bug planted? Found out once.
    fn is_sound(&mut self) -> io::Result<bool> {
        if let Some(sound) = self.sound {
            return Ok(sound);
        }
        let complaint = self.ask(None)?;
        if let Some(what) = &complaint {
            println!("{} complains without any bug planted: {what}", self.title);
        }
        Ok(*self.sound.insert(complaint.is_none()))
    }

    /// What it noticed with this bug planted, and after how long; none if all was well in its eyes.
    fn ask(&self, mutant: Option<Mutant>) -> io::Result<Option<String>> {
        let program = sibling(self.program)?;
        let start = Instant::now();
        let output = Command::new(&program)
            .args(&self.arguments)
            .env(VARIABLE, mutant.map_or("", Mutant::name))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
        let told = String::from_utf8_lossy(&output.stdout);
        let caught = told.lines().find_map(|line| line.strip_prefix("caught: "));
        let seconds = start.elapsed().as_secs_f64();
        match (output.status.code(), caught) {
            (Some(0), _) => Ok(None),
            (Some(1), Some(what)) => Ok(Some(format!("{what} ({seconds:.1} s)"))),
            _ => Err(io::Error::other(format!(
                "{} with {}: {} without a verdict\n{}",
                self.program,
                mutant.map_or("no bug", Mutant::name),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ))),
        }
    }
}

fn sibling(program: &str) -> io::Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name(program))
}

fn checkers(options: &Options) -> Vec<Checker> {
    let checker = |title, program, arguments: &[&str]| Checker {
        title,
        program,
        arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
        sound: None,
    };
    let mut all = vec![
        checker(
            "simulator",
            "standin-sim",
            &["--seconds", &options.sim_seconds],
        ),
        checker("model", "standin-model", &["--depth", "quick"]),
        checker("chaos", "chaos", &["--seconds", &options.chaos_seconds]),
    ];
    if options.chaos_seconds == "0" {
        all.pop();
    }
    all
}

/// Whether every bug was noticed, and nothing where there is none.
fn run(options: &Options) -> io::Result<bool> {
    let mut checkers = checkers(options);
    let named = |m: &&Mutant| options.only.is_empty() || options.only.iter().any(|n| n == m.name());
    let (mut sound, mut noticed, mut all) = (true, 0, 0);
    for mutant in Mutant::ALL.iter().filter(named) {
        let (name, place) = (mutant.name(), mutant.place());
        println!("{name:<22} {place:<14} {}", mutant.what());
        let mut caught = false;
        for checker in &mut checkers {
            sound &= checker.is_sound()?;
            let found = checker.ask(Some(*mutant))?;
            caught |= found.is_some();
            let found = found.unwrap_or_else(|| "-".into());
            println!("{:<22} {:<14} {found}", "", checker.title);
            if caught && !options.all {
                break;
            }
        }
        if !caught {
            println!("{:<22} NOT CAUGHT", "");
        }
        noticed += usize::from(caught);
        all += 1;
    }
    println!("{noticed} of {all} planted bugs caught");
    Ok(sound && noticed == all)
}

fn main() -> ExitCode {
    match options().map(|options| run(&options)) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("mutants: {error}");
            ExitCode::from(2)
        }
        Err(usage) => {
            eprintln!("{usage}");
            ExitCode::from(2)
        }
    }
}
