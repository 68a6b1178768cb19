//! `standin-sim`: runs schedules from seeds until one fails, or time is up.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use nix::time::{ClockId, clock_gettime};
use sim::{
    KEPT, Outcome, Schedule, World,
    generate::{self, PROFILES, Profile},
    shrink::shrink,
};
use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How often a long run says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let matches = command().get_matches();
    match run(&matches) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("standin-sim: {why}");
            ExitCode::from(2)
        }
    }
}

fn command() -> Command {
    let option =
        |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let number = || value_parser!(u64);
    let command = Command::new("standin-sim")
        .about("Run the real cores of several servers under virtual time, with faults from a seed")
        .after_help("Exit code: 0 nothing found, 1 an invariant does not hold, 2 usage.")
        .version(env!("CARGO_PKG_VERSION"))
        .arg(
            option("seed", "N")
                .value_parser(number())
                .help("This seed alone"),
        )
        .arg(
            option("seeds", "A..B")
                .conflicts_with("seed")
                .help("These seeds"),
        )
        .arg(
            option("file", "FILE")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with_all(["seed", "seeds"])
                .help("This schedule"),
        )
        .arg(flag("explain").help("Print the history"))
        .arg(flag("print").help("Print the schedule of a seed, to be kept"))
        .arg(
            option("seconds", "N")
                .value_parser(number())
                .help("For so long (10)"),
        )
        .arg(
            option("threads", "N")
                .value_parser(number())
                .help("On so many processors (1)"),
        )
        .arg(
            option("profile", "NAME")
                .value_parser(PROFILES.map(Profile::name))
                .help("Only clusters that live this fast"),
        )
        .arg(flag("keep-going").help("Do not stop at the first seed that fails"));
    #[cfg(feature = "mutants")]
    let command = command.arg(option("mutant", "NAME").help("Plant this bug in the cores"));
    command
}

fn run(matches: &ArgMatches) -> Result<bool, String> {
    #[cfg(feature = "mutants")]
    if let Some(name) = matches.get_one::<String>("mutant") {
        let mutant = mutants::Mutant::ALL.iter().find(|m| m.name() == name);
        mutants::plant(Some(
            *mutant.ok_or_else(|| format!("--mutant {name}: no such bug"))?,
        ));
    }
    let profile = matches.get_one::<String>("profile");
    let profile = profile.and_then(|name| PROFILES.into_iter().find(|p| p.name() == name));
    let explain = matches.get_flag("explain");
    if let Some(file) = matches.get_one::<PathBuf>("file") {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        return Ok(one(&text.parse()?, explain, &file.display().to_string()));
    }
    if let Some(seed) = matches.get_one::<u64>("seed") {
        let schedule = generate::schedule(*seed, profile);
        if matches.get_flag("print") {
            print!("{schedule}");
            return Ok(true);
        }
        return Ok(one(&schedule, explain, &format!("seed {seed}")));
    }
    let seeds = match matches.get_one::<String>("seeds") {
        None if !kept()? => return Ok(false),
        None => 0..u64::MAX,
        Some(text) => range(text)?,
    };
    let bounded = matches.contains_id("seeds");
    let seconds = matches.get_one::<u64>("seconds").copied();
    let most = seconds
        .or((!bounded).then_some(10))
        .map(Duration::from_secs);
    let threads = matches.get_one::<u64>("threads").copied().unwrap_or(1);
    Ok(many(
        &seeds,
        most,
        threads,
        profile,
        matches.get_flag("keep-going"),
    ))
}

/// The schedules kept; true if they hold.
fn kept() -> Result<bool, String> {
    for (name, text) in KEPT {
        if let Some(violation) = World::run(&text.parse()?, false).violation {
            println!("{violation}\ncaught: {} {name}", violation.invariant);
            return Ok(false);
        }
    }
    Ok(true)
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("--seeds {text}: two numbers, as in 0..1000");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    Ok(from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?)
}

/// One schedule; a failing one is shrunk and told.
fn one(schedule: &Schedule, explain: bool, name: &str) -> bool {
    let outcome = World::run(schedule, explain);
    for line in &outcome.lines {
        println!("{line}");
    }
    println!(
        "{name}: {:.3} s, {} events, digest {:016x}",
        outcome.end as f64 / 1e9,
        outcome.events,
        outcome.digest
    );
    if explain {
        println!("{:?}", outcome.seen);
    }
    let Some(violation) = outcome.violation else {
        return true;
    };
    println!("{violation}\ncaught: {} {name}", violation.invariant);
    let short = shrink(schedule, violation.invariant);
    println!("shrunk to:\n{short}");
    if let Some(violation) = World::run(&short, false).violation {
        println!("{violation}");
    }
    false
}

/// What a thread has done in one profile.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    schedules: u64,
    events: u64,
    /// Seconds that all servers lived through.
    server_seconds: f64,
    spent: Duration,
}

/// What this thread has used of its processor, whoever else is there.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

struct Totals {
    next: AtomicU64,
    stop: AtomicBool,
    failed: Mutex<Vec<(u64, String, &'static str)>>,
    done: Mutex<BTreeMap<&'static str, Done>>,
    seen: Mutex<BTreeMap<&'static str, u64>>,
}

fn many(
    seeds: &Range<u64>,
    most: Option<Duration>,
    threads: u64,
    profile: Option<Profile>,
    keep_going: bool,
) -> bool {
    let begin = Instant::now();
    let totals = Totals {
        next: AtomicU64::new(seeds.start),
        stop: AtomicBool::new(false),
        failed: Mutex::default(),
        done: Mutex::default(),
        seen: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| work(&totals, seeds.end, begin, most, profile, keep_going));
        }
    });
    report(&totals, begin, threads);
    let mut failed = totals.failed.into_inner().unwrap_or_default();
    failed.sort();
    for (seed, what, invariant) in &failed {
        println!("seed {seed}: {what}\ncaught: {invariant} seed {seed}");
    }
    failed.is_empty()
}

fn work(
    totals: &Totals,
    end: u64,
    begin: Instant,
    most: Option<Duration>,
    profile: Option<Profile>,
    keep_going: bool,
) {
    let mut told = Instant::now();
    let (mut done, mut seen) = (
        BTreeMap::<&'static str, Done>::new(),
        BTreeMap::<&'static str, u64>::new(),
    );
    let mut first = false;
    loop {
        let seed = totals.next.fetch_add(1, Relaxed);
        let late = most.is_some_and(|most| begin.elapsed() >= most);
        if seed >= end || late || totals.stop.load(Relaxed) {
            break;
        }
        first |= seed == 0;
        let schedule = generate::schedule(seed, profile);
        let started = processor_time();
        let outcome = World::run(&schedule, false);
        note(
            &mut done,
            &mut seen,
            seed,
            &schedule,
            &outcome,
            processor_time().saturating_sub(started),
            profile,
        );
        if let Some(violation) = outcome.violation {
            totals.stop.store(!keep_going, Relaxed);
            if let Ok(mut failed) = totals.failed.lock() {
                failed.push((seed, violation.to_string(), violation.invariant));
            }
        }
        if first && told.elapsed() >= REPORT_EVERY {
            told = Instant::now();
            println!(
                "{:.0} s: {seed} schedules begun",
                begin.elapsed().as_secs_f64()
            );
        }
    }
    if let (Ok(mut all), Ok(mut whole)) = (totals.done.lock(), totals.seen.lock()) {
        for (name, part) in done {
            let sum = all.entry(name).or_default();
            sum.schedules += part.schedules;
            sum.events += part.events;
            sum.server_seconds += part.server_seconds;
            sum.spent += part.spent;
        }
        seen.into_iter()
            .for_each(|(what, n)| *whole.entry(what).or_default() += n);
    }
}

fn note(
    done: &mut BTreeMap<&'static str, Done>,
    seen: &mut BTreeMap<&'static str, u64>,
    seed: u64,
    schedule: &Schedule,
    outcome: &Outcome,
    spent: Duration,
    profile: Option<Profile>,
) {
    let name = profile.unwrap_or_else(|| generate::profile(seed)).name();
    let sum = done.entry(name).or_default();
    sum.schedules += 1;
    sum.events += outcome.events;
    sum.server_seconds += outcome.end as f64 / 1e9 * schedule.size() as f64;
    sum.spent += spent;
    for (what, n) in &outcome.seen {
        *seen.entry(what).or_default() += n;
    }
}

fn report(totals: &Totals, begin: Instant, threads: u64) {
    let wall = begin.elapsed();
    let (Ok(done), Ok(seen)) = (totals.done.lock(), totals.seen.lock()) else {
        return;
    };
    let mut all = Done::default();
    println!("profile    schedules   ms each   events/s   server-hours a minute and processor");
    let line = |name: &str, d: &Done| {
        let spent = d.spent.as_secs_f64().max(1e-9);
        let (each, events) = (
            spent * 1e3 / d.schedules.max(1) as f64,
            d.events as f64 / spent,
        );
        let hours = d.server_seconds / 3600.0 / (spent / 60.0);
        println!(
            "{name:10} {:9} {each:9.2} {events:10.0} {hours:10.0}",
            d.schedules
        );
    };
    for (name, d) in done.iter() {
        line(name, d);
        all.schedules += d.schedules;
        all.events += d.events;
        all.server_seconds += d.server_seconds;
        all.spent += d.spent;
    }
    line("all", &all);
    println!(
        "{} schedules in {:.1} s on {threads} thread(s): {:.0} a second; {:.0} server-hours",
        all.schedules,
        wall.as_secs_f64(),
        all.schedules as f64 / wall.as_secs_f64(),
        all.server_seconds / 3600.0
    );
    println!("{seen:?}");
}
