//! What clients see when something breaks: standin beside keepalived, on the same network, in the same run.

use lab::{
    Cluster, DEFAULT, Error, FAST, FASTEST, Keepalived, Net, Outage, Profile, Spec, Spinners,
    Stalls, Verdict,
};
use standin_tests::Summary;
use std::{
    collections::BTreeMap,
    env,
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const SERVERS: usize = 3;
const USAGE: &str = "bench [--runs N] [--loss-seconds N] [--systems NAME,...] [--scenarios NAME,...]\n\
    systems: k1s k100 k10 default fast fastest\n\
    scenarios: power cable partition stop handover loss idle";

/// One of the systems compared.
#[derive(Clone, Copy)]
struct System {
    key: &'static str,
    title: &'static str,
    kind: Kind,
    /// Stalls of the machine longer than this make a figure worthless.
    resolution: Duration,
    scenarios: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Kind {
    Keepalived(Duration),
    Standin(Profile),
}

const ALL: &[&str] = &[
    "power",
    "cable",
    "partition",
    "stop",
    "handover",
    "loss",
    "idle",
];
const FAULTS: &[&str] = &["power", "cable", "partition", "stop", "handover"];

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn system(key: &'static str, title: &'static str, kind: Kind, resolution_ms: u64) -> System {
    System {
        key,
        title,
        kind,
        resolution: ms(resolution_ms),
        scenarios: ALL,
    }
}

const SYSTEMS: [System; 6] = [
    System {
        scenarios: FAULTS,
        ..system("k1s", "keepalived 1 s", Kind::Keepalived(ms(1000)), 100)
    },
    System {
        scenarios: &["loss", "idle"],
        ..system("k100", "keepalived 100 ms", Kind::Keepalived(ms(100)), 25)
    },
    system("k10", "keepalived 10 ms", Kind::Keepalived(ms(10)), 4),
    system("default", "standin default", Kind::Standin(DEFAULT), 25),
    system("fast", "standin fast", Kind::Standin(FAST), 4),
    system("fastest", "standin fastest", Kind::Standin(FASTEST), 4),
];

/// A running cluster of either kind.
enum Subject {
    Keepalived(Keepalived),
    Standin(Cluster),
}

impl Subject {
    fn start(kind: Kind) -> Result<Self, Error> {
        Ok(match kind {
            Kind::Keepalived(interval) => Self::Keepalived(Keepalived::start(SERVERS, interval)?),
            Kind::Standin(profile) => Self::Standin(Cluster::start(Spec {
                profile,
                ..Spec::default()
            })?),
        })
    }

    fn net(&self) -> &Net {
        match self {
            Self::Keepalived(k) => k.net(),
            Self::Standin(c) => c.net(),
        }
    }

    fn settle(&self) -> Result<usize, Error> {
        match self {
            Self::Keepalived(k) => k.settle(),
            Self::Standin(c) => c.settle(),
        }
    }

    fn power_loss(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.power_loss(server),
            Self::Standin(c) => c.power_loss(server),
        }
    }

    fn power_on(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.power_on(server),
            Self::Standin(c) => c.power_on(server),
        }
    }

    fn stop(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.stop(server),
            Self::Standin(c) => c.stop(server),
        }
    }

    fn promote(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.promote(server),
            Self::Standin(c) => {
                let name = c.name(server).to_owned();
                c.tell(0, &["promote", &name]).map(drop)
            }
        }
    }

    /// What a handover needs to be undone.
    fn demote(&mut self, server: usize) -> Result<(), Error> {
        match self {
            Self::Keepalived(k) => k.demote(server),
            Self::Standin(_) => Ok(()),
        }
    }
}

/// The figures of one run, by row of the table, each with its unit in the row's name.
type Figures = Vec<(&'static str, f64)>;

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Measures from its making to its end.
struct Watch {
    client: usize,
    judge: usize,
}

impl Watch {
    fn start(net: &Net) -> Self {
        Self {
            client: net.client(0).mark(),
            judge: net.judge().mark(),
        }
    }

    fn end(&self, net: &Net) -> (Outage, Verdict) {
        (
            net.client(0).since(self.client),
            net.judge().since(self.judge, 0),
        )
    }
}

/// Waits until another server holds the address and clients are served again, then a little longer.
fn wait_over(subject: &Subject, old: usize) -> Result<(), Error> {
    let net = subject.net();
    lab::wait_for("another server takes over", Duration::from_secs(60), || {
        let moved = net.judge().holders(0).iter().any(|h| *h != old);
        (moved && net.client(0).silence() < ms(20)).then_some(())
    })?;
    thread::sleep(ms(500));
    Ok(())
}

/// Any moment within a beat.
fn jitter() {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    thread::sleep(Duration::from_micros(
        u64::from(nanos / 1000 % 997) * 1009 / 10,
    ));
}

fn next(server: usize) -> usize {
    (server + 1) % SERVERS
}

fn play(subject: &mut Subject, scenario: &str, loss: Duration) -> Result<Figures, Error> {
    let master = subject.settle()?;
    jitter();
    let mut figures = Figures::new();
    let watch = Watch::start(subject.net());
    match scenario {
        "power" => {
            subject.power_loss(master)?;
            wait_over(subject, master)?;
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("power loss, ms", millis(outage.longest)));
            figures.push(("power loss, two masters, ms", millis(verdict.two)));
            subject.power_on(master)?;
        }
        "cable" => {
            subject.net().cable(master, false)?;
            wait_over(subject, master)?;
            let (outage, _) = watch.end(subject.net());
            figures.push(("cable pulled, ms", millis(outage.longest)));
            let watch = Watch::start(subject.net());
            subject.net().cable(master, true)?;
            thread::sleep(Duration::from_secs(3));
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("cable plugged in again, ms", millis(outage.longest)));
            figures.push(("cable plugged in again, takeovers", verdict.moves() as f64));
            figures.push((
                "cable plugged in again, two masters, ms",
                millis(verdict.two),
            ));
        }
        "partition" => {
            let others: Vec<usize> = (0..SERVERS).filter(|s| *s != master).collect();
            subject.net().partition(&[&[master], &others])?;
            thread::sleep(Duration::from_secs(10));
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("partition 10 s, ms", millis(outage.longest)));
            figures.push(("partition 10 s, two masters, ms", millis(verdict.two)));
            let watch = Watch::start(subject.net());
            subject.net().heal()?;
            thread::sleep(Duration::from_secs(5));
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("partition healed, ms", millis(outage.longest)));
            figures.push(("partition healed, takeovers", verdict.moves() as f64));
        }
        "stop" => {
            subject.stop(master)?;
            wait_over(subject, master)?;
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("graceful stop, ms", millis(outage.longest)));
            figures.push(("graceful stop, two masters, ms", millis(verdict.two)));
            subject.power_on(master)?;
        }
        "handover" => {
            subject.promote(next(master))?;
            wait_over(subject, master)?;
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("planned handover, ms", millis(outage.longest)));
            figures.push(("planned handover, requests lost", outage.lost as f64));
            figures.push(("planned handover, two masters, ms", millis(verdict.two)));
            subject.demote(next(master))?;
        }
        "loss" => {
            subject.net().loss(20)?;
            thread::sleep(loss);
            let (outage, verdict) = watch.end(subject.net());
            subject.net().heal()?;
            figures.push(("20 % of beats lost, takeovers", verdict.moves() as f64));
            figures.push(("20 % of beats lost, two masters, ms", millis(verdict.two)));
            figures.push(("20 % of beats lost, requests lost", outage.lost as f64));
        }
        _ => {
            subject.net().quiet(true);
            let usage = |subject: &Subject| {
                let processes = subject.net().servers()[master].processes();
                processes
                    .iter()
                    .map(lab::Process::usage)
                    .fold((Duration::ZERO, 0), |(cpu, rss), u| {
                        (cpu + u.cpu, rss + u.rss)
                    })
            };
            let ((before, _), start) = (usage(subject), Instant::now());
            thread::sleep(Duration::from_secs(30));
            let ((after, rss), took) = (usage(subject), start.elapsed());
            subject.net().quiet(false);
            let share = after.saturating_sub(before).as_secs_f64() / took.as_secs_f64();
            figures.push(("idle master, % of a core", share * 100.0));
            figures.push(("idle master, RSS MiB", rss as f64 / f64::from(1 << 20)));
            thread::sleep(Duration::from_secs(1));
        }
    }
    Ok(figures)
}

struct Options {
    runs: usize,
    loss: Duration,
    systems: Option<Vec<String>>,
    scenarios: Option<Vec<String>>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        runs: 5,
        loss: Duration::from_secs(60),
        systems: None,
        scenarios: None,
    };
    let mut args = env::args().skip(1);
    while let Some(option) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        let list = || Some(value.split(',').map(str::to_owned).collect());
        let number = || {
            value
                .parse::<u32>()
                .map_err(|e| format!("{option} {value}: {e}\n{USAGE}"))
        };
        match option.as_str() {
            "--runs" => options.runs = number()?.max(1) as usize,
            "--loss-seconds" => options.loss = Duration::from_secs(number()?.into()),
            "--systems" => options.systems = list(),
            "--scenarios" => options.scenarios = list(),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(options)
}

fn wanted(list: Option<&Vec<String>>, name: &str) -> bool {
    list.is_none_or(|l| l.iter().any(|one| one == name))
}

/// All figures of all runs: rows in order of appearance, then column.
type Table = Vec<(&'static str, BTreeMap<usize, Vec<f64>>)>;

fn note(table: &mut Table, row: &'static str, column: usize, value: f64) {
    let at = table
        .iter()
        .position(|(name, _)| *name == row)
        .unwrap_or_else(|| {
            table.push((row, BTreeMap::new()));
            table.len() - 1
        });
    table[at].1.entry(column).or_default().push(value);
}

fn measure(
    column: usize,
    system: &System,
    options: &Options,
    stalls: &Stalls,
    table: &mut Table,
) -> Result<Duration, Error> {
    let mut subject = Subject::start(system.kind)?;
    let mut worst = Duration::ZERO;
    for scenario in system
        .scenarios
        .iter()
        .filter(|s| wanted(options.scenarios.as_ref(), s))
    {
        // Long runs with many beats each say enough in a few.
        let runs = if matches!(*scenario, "loss" | "idle") {
            options.runs.min(2)
        } else {
            options.runs
        };
        for run in 1..=runs {
            let mut again = 2;
            let (figures, stall) = loop {
                stalls.take();
                let figures = play(&mut subject, scenario, options.loss)?;
                let stall = stalls.take();
                if stall <= system.resolution || again == 0 || runs != options.runs {
                    break (figures, stall);
                }
                println!(
                    "  {}: {scenario}: the machine stood still for {:.1} ms: again",
                    system.title,
                    millis(stall)
                );
                again -= 1;
            };
            worst = worst.max(stall);
            let told: Vec<_> = figures
                .iter()
                .map(|(name, value)| format!("{name} {value:.1}"))
                .collect();
            println!(
                "  {}: {scenario} {run}/{runs}: {}; stall {:.1} ms",
                system.title,
                told.join("; "),
                millis(stall)
            );
            for (row, value) in figures {
                note(table, row, column, value);
            }
        }
    }
    Ok(worst)
}

fn print(table: &Table, columns: &[System], worst: &[Duration]) {
    println!(
        "\nmedian (minimum..maximum); ratio = keepalived 1 s : standin default, keepalived 10 ms : standin fast\n"
    );
    let titles: Vec<_> = columns.iter().map(|s| s.title).collect();
    println!(
        "| scenario | {} | ratio |\n|---|{}---|",
        titles.join(" | "),
        "---|".repeat(columns.len())
    );
    for (row, cells) in table {
        let summary = |column: usize| cells.get(&column).map(|values| Summary::of(values));
        let texts: Vec<_> = (0..columns.len())
            .map(|c| summary(c).map_or("-".to_owned(), |s| s.to_string()))
            .collect();
        let median =
            |key: &str| summary(columns.iter().position(|s| s.key == key)?).map(|s| s.median);
        let ratio = |theirs: &str, ours: &str| match (median(theirs), median(ours)) {
            (Some(theirs), Some(ours)) if ours > 0.0 => format!("{:.1}", theirs / ours),
            (Some(theirs), Some(_)) if theirs > 0.0 => "all".to_owned(),
            _ => "-".to_owned(),
        };
        println!(
            "| {row} | {} | {}, {} |",
            texts.join(" | "),
            ratio("k1s", "default"),
            ratio("k10", "fast")
        );
    }
    let stalls: Vec<_> = worst.iter().map(|w| format!("{:.1}", millis(*w))).collect();
    println!(
        "| longest stall of this machine, ms | {} | |",
        stalls.join(" | ")
    );
}

fn bench(options: &Options) -> Result<(), Error> {
    let (stalls, _spinners) = (Stalls::start()?, Spinners::start()?);
    if !stalls.realtime {
        println!(
            "note: no real-time precedence for this user: the measuring itself may be late; run as root for figures"
        );
    }
    let columns: Vec<_> = SYSTEMS
        .into_iter()
        .filter(|s| wanted(options.systems.as_ref(), s.key))
        .collect();
    let (mut table, mut worst) = (Table::new(), Vec::new());
    for (column, system) in columns.iter().enumerate() {
        println!("{}", system.title);
        let result = measure(column, system, options, &stalls, &mut table);
        if let Err(error) = &result {
            println!("  {}: ended early: {error}", system.title);
        }
        worst.push(result.unwrap_or_default());
    }
    print(&table, &columns, &worst);
    Ok(())
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match lab::enter().and_then(|()| bench(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
