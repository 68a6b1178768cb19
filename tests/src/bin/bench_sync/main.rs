//! How fast files become alike: syncd beside rsync, unison and csync2, on loopback, in the same run; all but csync2, which
//! knows none, over the same SSH server.
//!
//! Needs root: each side sees its own directory at the same path, and the network is one of its own.

mod alone;
mod scene;
mod tools;
mod trees;
mod works;

use alone::alone;
use scene::{Outcome, Scene};
use standin_tests::{Summary, wanted};
use std::{
    env,
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};
use tools::{TOOLS, Tool};
use works::{WORKS, Work};

/// Whoever has taken so long for so many runs is known well enough, and so is who took much longer for fewer.
const LONG: Duration = Duration::from_secs(20);
const FEW: usize = 3;
const MUCH: Duration = Duration::from_secs(45);

const USAGE: &str = "bench-sync [--runs N] [--scale PERCENT] [--tools NAME,...] [--works NAME,...]";

struct Options {
    runs: usize,
    /// Of the usual sizes, in percent.
    scale: u64,
    tools: Option<Vec<String>>,
    works: Option<Vec<String>>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        runs: 5,
        scale: 100,
        tools: None,
        works: None,
    };
    let tools: Vec<_> = TOOLS.iter().map(|t| t.key).collect();
    let works: Vec<_> = WORKS.iter().map(|w| w.key).collect();
    let usage = format!(
        "{USAGE}\ntools: {}\nworks: {}",
        tools.join(" "),
        works.join(" ")
    );
    standin_tests::options(&usage, |option, value| {
        match option {
            "--runs" => options.runs = value.number()?,
            "--scale" => options.scale = value.number()?,
            "--tools" => options.tools = value.names(&tools)?,
            "--works" => options.works = value.names(&works)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(options)
}

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    if args.next().as_deref() == Some("--now") {
        return end(tools::now(&PathBuf::from(args.next().unwrap_or_default())));
    }
    end(options().and_then(|options| run(&options, &alone()?)))
}

fn end(told: Result<(), String>) -> ExitCode {
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench-sync: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, dir: &Path) -> Result<(), String> {
    let tools: Vec<_> = TOOLS
        .iter()
        .filter(|t| wanted(options.tools.as_ref(), t.key, true))
        .collect();
    println!(
        "median (minimum..maximum) of {}, or of fewer where each takes long; times in seconds, CPU of both sides, bytes over \
         loopback with all headers, memory of the calling side; ratio = rsync's median : this one's; lacks = what syncd does \
         and it does not\n",
        options.runs
    );
    println!(
        "| work | tool | s | ratio | CPU s | kB | MB | lacks |\n|---|---|---|---|---|---|---|---|"
    );
    for work in WORKS
        .iter()
        .filter(|w| wanted(options.works.as_ref(), w.key, w.usual))
    {
        let mut first = None;
        for tool in &tools {
            let outcomes = play(work, tool, options, dir)
                .map_err(|why| format!("{} with {}: {why}", work.key, tool.key))?;
            if !outcomes.is_empty() {
                println!("{}", row(work, tool, &outcomes, &mut first));
            }
        }
    }
    Ok(())
}

/// One work with one tool, as often as asked for.
fn play(work: &Work, tool: &Tool, options: &Options, dir: &Path) -> Result<Vec<Outcome>, String> {
    let mut outcomes = Vec::new();
    if tool.warm && !work.begin_alike {
        return Ok(outcomes); // the first time is cold
    }
    let mut scene = Scene::new(dir, work.others, work.accounts)?;
    let size = |usual: u64| (usual * options.scale / 100).max(1);
    (work.make)(&scene, &size)?;
    if work.begin_alike {
        (tool.start)(&mut scene)?;
        tool.begin
            .map_or_else(|| tool.run(&scene), |begin| begin(&scene))?;
        scene.settle(tool)?;
    }
    let start = Instant::now();
    for round in 0..options.runs {
        let enough = if round < FEW { MUCH } else { LONG };
        if start.elapsed() > enough {
            break;
        }
        if work.begin_alike {
            (work.change)(&scene, round)?;
        } else {
            scene.forget()?;
            (tool.start)(&mut scene)?;
        }
        scene.quiet()?;
        outcomes.push(scene.measure(&mut (tool.call)(&scene)?)?);
        scene.alike(tool.exact)?;
    }
    Ok(outcomes)
}

fn row(work: &Work, tool: &Tool, outcomes: &[Outcome], first: &mut Option<f64>) -> String {
    let of = |figure: &dyn Fn(&Outcome) -> f64| {
        Summary::of(&outcomes.iter().map(figure).collect::<Vec<_>>())
    };
    let seconds = of(&|o| o.seconds);
    let rsync = *first.get_or_insert(seconds.median);
    let mut line = format!("| {} | {} ", work.title, tool.title);
    let _ = write!(line, "| {:.3} ", seconds.median);
    let _ = write!(line, "({:.3}..{:.3}) ", seconds.min, seconds.max);
    let ratio = of(&|o| rsync / o.seconds.max(0.000_001));
    let _ = write!(
        line,
        "| {:.2} ({:.2}..{:.2}) ",
        ratio.median, ratio.min, ratio.max
    );
    let _ = write!(line, "| {:.2} ", of(&|o| o.processor).median);
    let _ = write!(line, "| {:.1} ", of(&|o| o.kilobytes).median);
    let _ = write!(line, "| {:.0} ", of(&|o| o.megabytes).max);
    let _ = write!(line, "| {} |", tool.lacks);
    line
}
