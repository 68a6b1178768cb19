//! What clients see when something breaks: standin beside keepalived, on the same network, in the same run.

use lab::{
    Cluster, DEFAULT, Error, FAST, FASTEST, Hogs, Keepalived, LONG, Net, Outage, Profile, Signal,
    Spec, Spinners, Stalls, Verdict,
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
const USAGE: &str = "bench [--runs N] [--loss-seconds N] [--rounds N] [--systems NAME,...] [--scenarios NAME,...]\n\
    systems: k1s k100 k10 default fast fastest; by name only: long\n\
    scenarios: power cable partition stop handover loss idle; by name only: killed stopped restarts hogs handovers";

/// One of the systems compared.
#[derive(Clone, Copy)]
struct System {
    key: &'static str,
    title: &'static str,
    kind: Kind,
    /// Stalls of the machine longer than this make a figure worthless.
    resolution: Duration,
    scenarios: &'static [&'static str],
    /// Only where it is asked for.
    by_name: bool,
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
/// Only where they are asked for: they are long, or leave more behind than a run should.
const BY_NAME: &[&str] = &["killed", "stopped", "restarts", "hogs", "handovers"];
/// The roles of standin.
const ROLES: [&str; 4] = ["hbd", "listend", "doctord", "electd"];
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
        by_name: false,
    }
}

const SYSTEMS: [System; 7] = [
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
    System {
        by_name: true,
        ..system("long", "standin, lease 3 s", Kind::Standin(LONG), 100)
    },
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

    /// A Unix signal to every process of a server, or of one role of standin.
    fn signal(&self, server: usize, role: Option<&str>, signal: Signal) -> Result<(), Error> {
        let processes = self.net().servers()[server].processes();
        let meant = |p: &&lab::Process| role.is_none_or(|role| p.name == role);
        processes
            .iter()
            .filter(meant)
            .try_for_each(|p| p.signal(signal))
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

/// SIGSTOP for ten seconds, of one role or of the whole master, and what its waking does.
fn stopped(
    subject: &Subject,
    role: Option<&str>,
    rows: [&'static str; 4],
) -> Result<Figures, Error> {
    let master = subject.settle()?;
    let watch = Watch::start(subject.net());
    subject.signal(master, role, Signal::SIGSTOP)?;
    thread::sleep(Duration::from_secs(10));
    let (outage, verdict) = watch.end(subject.net());
    let woken = Watch::start(subject.net());
    subject.signal(master, role, Signal::SIGCONT)?;
    thread::sleep(Duration::from_secs(3));
    let (after, later) = woken.end(subject.net());
    let two = verdict.two + later.two;
    let values = [
        millis(outage.longest),
        millis(after.longest),
        millis(two),
        (verdict.moves() + later.moves()) as f64,
    ];
    Ok(rows.into_iter().zip(values).collect())
}

macro_rules! stopped_rows {
    ($what:literal) => {
        [
            concat!("SIGSTOP of ", $what, " 10 s, ms"),
            concat!("SIGSTOP of ", $what, " ends, ms"),
            concat!("SIGSTOP of ", $what, ", two masters, ms"),
            concat!("SIGSTOP of ", $what, ", takeovers"),
        ]
    };
}

/// SIGKILL of one role and its return, on each server in turn; takeovers are counted by the judge.
fn restart_roles(cluster: &Cluster, rounds: u32) -> Result<(), Error> {
    for _ in 0..rounds {
        for server in 0..SERVERS {
            for role in ROLES {
                let pid = |cluster: &Cluster| match &cluster.role(server, role)[..] {
                    [one] => Some(one.pid),
                    _ => None,
                };
                let before =
                    lab::wait_for("the role runs", Duration::from_secs(30), || pid(cluster))?;
                cluster.kill(server, role, Signal::SIGKILL)?;
                lab::wait_for("the role runs again", Duration::from_secs(30), || {
                    pid(cluster).filter(|now| *now != before)
                })?;
                // One after another: the cluster beats again before the next.
                thread::sleep(cluster.spec().profile.heartbeat * 2);
            }
        }
    }
    Ok(())
}

/// Handovers one after another; how long the longest outage was and how many requests were lost in all.
fn handovers(subject: &mut Subject, rounds: u32) -> Result<Figures, Error> {
    let (mut longest, mut lost, mut two) = (Duration::ZERO, 0, Duration::ZERO);
    for _ in 0..rounds {
        let master = subject.settle()?;
        let watch = Watch::start(subject.net());
        subject.promote(next(master))?;
        wait_over(subject, master)?;
        let (outage, verdict) = watch.end(subject.net());
        subject.demote(next(master))?;
        longest = longest.max(outage.longest);
        lost += outage.lost;
        two += verdict.two;
    }
    Ok(vec![
        ("planned handovers, longest outage, ms", millis(longest)),
        (
            "planned handovers, requests lost each",
            lost as f64 / f64::from(rounds.max(1)),
        ),
        ("planned handovers, two masters in all, ms", millis(two)),
    ])
}

fn play(subject: &mut Subject, scenario: &str, options: &Options) -> Result<Figures, Error> {
    let loss = options.loss;
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
        "killed" => {
            subject.signal(master, None, Signal::SIGKILL)?;
            wait_over(subject, master)?;
            thread::sleep(Duration::from_secs(5));
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("SIGKILL of all of the master, ms", millis(outage.longest)));
            figures.push((
                "SIGKILL of all of the master, two masters in 5 s, ms",
                millis(verdict.two),
            ));
            subject.power_loss(master)?;
            subject.power_on(master)?;
        }
        "stopped" => {
            if let Subject::Standin(_) = subject {
                let each = [
                    stopped_rows!("hbd"),
                    stopped_rows!("listend"),
                    stopped_rows!("doctord"),
                    stopped_rows!("electd"),
                ];
                for (role, rows) in ROLES.into_iter().zip(each) {
                    figures.extend(stopped(subject, Some(role), rows)?);
                }
            }
            figures.extend(stopped(subject, None, stopped_rows!("all of the master"))?);
        }
        "restarts" => {
            if let Subject::Standin(cluster) = subject {
                restart_roles(cluster, options.rounds)?;
                thread::sleep(Duration::from_secs(3));
                let (outage, verdict) = watch.end(subject.net());
                figures.push(("restarts of every role, takeovers", verdict.moves() as f64));
                figures.push(("restarts of every role, requests lost", outage.lost as f64));
                figures.push((
                    "restarts of every role, two masters, ms",
                    millis(verdict.two),
                ));
            }
        }
        "hogs" => {
            let hogs = Hogs::start(8, Duration::from_secs(30))?;
            thread::sleep(Duration::from_secs(30));
            drop(hogs);
            let (outage, verdict) = watch.end(subject.net());
            figures.push(("8 hogs 30 s, takeovers", verdict.moves() as f64));
            figures.push(("8 hogs 30 s, two masters, ms", millis(verdict.two)));
            figures.push(("8 hogs 30 s, longest outage, ms", millis(outage.longest)));
            if let Subject::Standin(cluster) = subject {
                let gap = cluster.counter(master, "electd", "beat_gap_max_us");
                figures.push((
                    "8 hogs 30 s, longest gap between beats, ms",
                    gap as f64 / 1000.0,
                ));
            }
        }
        "handovers" => figures.extend(handovers(subject, options.rounds)?),
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
    /// Rounds of restarts and of handovers.
    rounds: u32,
    systems: Option<Vec<String>>,
    scenarios: Option<Vec<String>>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        runs: 5,
        loss: Duration::from_secs(60),
        rounds: 100,
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
            "--rounds" => options.rounds = number()?,
            "--systems" => options.systems = list(),
            "--scenarios" => options.scenarios = list(),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(options)
}

fn wanted(list: Option<&Vec<String>>, name: &str, by_name: bool) -> bool {
    list.map_or(!by_name, |l| l.iter().any(|one| one == name))
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
    let usual = system.scenarios.iter().map(|s| (*s, false));
    let by_name = BY_NAME.iter().map(|s| (*s, true));
    for (scenario, _) in usual
        .chain(by_name)
        .filter(|(s, by_name)| wanted(options.scenarios.as_ref(), s, *by_name))
    {
        // Long runs with many beats each say enough in a few.
        let runs = match scenario {
            "restarts" | "handovers" => 1,
            "loss" | "idle" | "stopped" | "hogs" => options.runs.min(2),
            _ => options.runs,
        };
        for run in 1..=runs {
            let mut again = 2;
            let (figures, stall) = loop {
                stalls.take();
                let figures = play(&mut subject, scenario, options)?;
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
        .filter(|s| wanted(options.systems.as_ref(), s.key, s.by_name))
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
