//! `standin lab`: a whole cluster on this machine, to be broken at will, or to watch being broken.

mod files;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use daemon::{eprintln, print, println};
use lab::{
    Cluster, DEFAULT, Error, FAST, FASTEST, Outage, Profile, Signal, Spec, Spinners, Stalls,
    Verdict,
};
use std::{
    io::{BufRead, Write, stdin, stdout},
    process::ExitCode,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Width of a timeline in cells.
const CELLS: usize = 60;
const HELP: &str = "\
  status                    who is what
  kill ROLE SERVER          SIGKILL hbd, listend, doctord or electd of a server
  power-off SERVER          cut the network, then kill everything at once
  power-on SERVER           start it again
  cut SERVER, plug SERVER   pull its cable, plug it in again
  partition A,B|C           groups of servers that do not hear each other; clients reach all
  loss N                    lose N of 100 beats
  heal                      end partition and loss
  promote SERVER            planned handover
  stop SERVER               ask its main daemon to end
  log SERVER                the last lines of its log
  write SERVER FILE TEXT    write a file there; the others get it when it has been quiet for 2 s
  remove SERVER FILE        remove it there
  read FILE                 what each server has in it
  sync now|status|conflicts|why FILE [SERVER]        as `standin sync` there; without SERVER at the master
  help, quit";

/// The subcommand.
pub fn command() -> Command {
    let profiles = ["default", "fast", "fastest"];
    Command::new("lab")
        .about("A whole cluster in network namespaces on this machine; needs no root")
        .long_about(
            "Builds servers and a client on a bridge, in namespaces of its own, runs the real daemons there, sends a \
             request each millisecond to the virtual address and lets you act. Nothing outside is touched, and \
             nothing is left behind.",
        )
        .subcommand(Command::new("demo").about("Plays a story of failures and prints what clients saw of each"))
        .arg(
            Arg::new("servers")
                .long("servers")
                .value_name("N")
                .default_value("3")
                .global(true)
                .value_parser(value_parser!(u8).range(3..=6))
                .help("How many servers"),
        )
        .arg(
            Arg::new("profile")
                .long("profile")
                .value_name("NAME")
                .default_value("default")
                .global(true)
                .value_parser(profiles)
                .help("Heartbeat and lease: 100 and 500 ms, 10 and 50 ms, or 5 and 25 ms"),
        )
        .arg(
            Arg::new("ipv6")
                .long("ipv6")
                .global(true)
                .action(ArgAction::SetTrue)
                .help("Servers and client speak IPv6"),
        )
        .arg(
            Arg::new("runs")
                .long("runs")
                .value_name("N")
                .default_value("1")
                .global(true)
                .value_parser(value_parser!(u32).range(1..))
                .help("Play the demo so many times"),
        )
}

/// Runs it. Must be called while the program has one thread: it starts itself again inside the lab.
pub fn run(args: &ArgMatches) -> ExitCode {
    let (demo, args) = match args.subcommand() {
        Some((_, sub)) => (true, sub),
        None => (false, args),
    };
    let profile = match args.get_one::<String>("profile").map(String::as_str) {
        Some("fast") => FAST,
        Some("fastest") => FASTEST,
        _ => DEFAULT,
    };
    let servers = args.get_one::<u8>("servers").map_or(3, |n| usize::from(*n));
    let spec = Spec {
        servers,
        profile,
        ipv6: args.get_flag("ipv6"),
        ..Spec::default()
    };
    let runs = args.get_one::<u32>("runs").copied().unwrap_or(1);
    let result = lab::enter().and_then(|()| {
        if demo {
            play(&spec, runs)
        } else {
            interact(&spec)
        }
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("standin lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn millis(span: Duration) -> String {
    let ms = span.as_secs_f64() * 1000.0;
    if ms < 10.0 && ms > 0.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

fn who(cluster: &Cluster, server: Option<usize>) -> &str {
    server.map_or("nobody", |s| cluster.name(s))
}

/// The story. Gives false if two servers ever answered.
fn play(spec: &Spec, runs: u32) -> Result<bool, Error> {
    let Profile {
        name,
        heartbeat,
        lease,
    } = spec.profile;
    println!(
        "{} servers and a client, one request a millisecond; profile {name}: a heartbeat every {}, lease {}",
        spec.servers,
        millis(heartbeat),
        millis(lease)
    );
    let (stalls, _spinners) = (Stalls::start()?, Spinners::start()?);
    let mut fine = true;
    for run in 1..=runs {
        if runs > 1 {
            println!("\nRun {run} of {runs}");
        }
        let mut story = Story {
            stalls: &stalls,
            fine: true,
            total: Outage::default(),
            lines: Vec::new(),
        };
        let mut cluster = Cluster::prepare(spec.clone())?;
        let keeps_files = files::keep(&mut cluster);
        if let Err(error) = story.tell(&mut cluster, keeps_files) {
            return Err(Error::Wrong(format!("{error}\n{}", cluster.tails(20))));
        }
        story.summary();
        fine &= story.fine;
    }
    Ok(fine)
}

struct Story<'a> {
    stalls: &'a Stalls,
    fine: bool,
    total: Outage,
    lines: Vec<String>,
}

impl Story<'_> {
    fn tell(&mut self, cluster: &mut Cluster, keeps_files: bool) -> Result<(), Error> {
        self.act(cluster, "All servers start", |cluster| {
            cluster.boot()?;
            cluster.wait_master(0, None).map(drop)
        })?;
        let first = cluster.settle()?;
        let title = format!("{} loses power", cluster.name(first));
        self.act(cluster, &title, |cluster| {
            cluster.power_loss(first)?;
            cluster.wait_master(0, Some(first)).map(drop)
        })?;
        let title = format!(
            "{} comes back, and does not take the address away",
            cluster.name(first)
        );
        self.act(cluster, &title, |cluster| {
            files::power_on(cluster, first)?;
            cluster.settle().map(drop)
        })?;
        let (name, master) = (cluster.name(first).to_owned(), cluster.settle()?);
        self.act(cluster, &format!("Planned handover to {name}"), |cluster| {
            cluster.tell(master, &["promote", &name])?;
            cluster.wait_master(0, Some(master)).map(drop)
        })?;
        let master = cluster.settle()?;
        let others: Vec<usize> = (0..cluster.spec().servers)
            .filter(|s| *s != master)
            .collect();
        let title = format!(
            "Partition: {} does not hear the others, clients reach all",
            cluster.name(master)
        );
        self.act(cluster, &title, |cluster| {
            cluster.net().partition(&[&[master], &others])?;
            cluster.wait_master(0, Some(master)).map(drop)
        })?;
        self.act(cluster, "The partition heals", |cluster| {
            cluster.net().heal()?;
            cluster.settle().map(drop)
        })?;
        let master = cluster.settle()?;
        let title = format!("electd of {}, the master, is killed", cluster.name(master));
        self.act(cluster, &title, |cluster| {
            cluster.kill(master, "electd", Signal::SIGKILL)?;
            cluster.settle().map(drop)
        })?;
        if keeps_files {
            files::tell(self, cluster)?;
        }
        Ok(())
    }

    /// Plays one act and tells what came of it.
    fn act(
        &mut self,
        cluster: &mut Cluster,
        title: &str,
        act: impl FnOnce(&mut Cluster) -> Result<(), Error>,
    ) -> Result<(), Error> {
        println!("\n{title}");
        self.stalls.take();
        let before = cluster.master(0);
        let (client, judge) = (cluster.net().client(0).mark(), cluster.net().judge().mark());
        // A little of the peace before and after belongs to the picture.
        thread::sleep(Duration::from_millis(200));
        act(cluster)?;
        let served =
            || (cluster.net().client(0).silence() < Duration::from_millis(20)).then_some(());
        lab::wait_for(
            "the client is served again",
            Duration::from_secs(60),
            served,
        )?;
        thread::sleep(Duration::from_millis(300));
        let (outage, verdict) = (
            cluster.net().client(0).since(client),
            cluster.net().judge().since(judge, 0),
        );
        let after = cluster.master(0);
        draw(cluster, &verdict);
        let change = match (before, after) {
            (Some(old), Some(new)) if old == new => {
                format!("master {} throughout", cluster.name(new))
            }
            _ => format!("master {} -> {}", who(cluster, before), who(cluster, after)),
        };
        let stall = self.stalls.take();
        let facts = format!(
            "{change}; client's outage {}, requests lost {}; two servers answered for {}",
            millis(outage.longest),
            outage.lost,
            millis(verdict.two)
        );
        println!("  {facts}");
        if stall > Duration::from_millis(10) {
            println!("  (this machine itself stood still for {})", millis(stall));
        }
        self.fine &= !verdict.guilty();
        // Before there was a master nobody was served: that is no outage.
        if before.is_some() {
            self.total.lost += outage.lost;
            self.total.longest = self.total.longest.max(outage.longest);
        }
        self.lines.push(format!("{title}: {facts}"));
        Ok(())
    }

    fn summary(&self) {
        println!("\nThe story in short");
        for line in &self.lines {
            println!("  {line}");
        }
        println!(
            "  longest outage {}, requests lost {}",
            millis(self.total.longest),
            self.total.lost
        );
        println!(
            "{}",
            if self.fine {
                "Never two masters."
            } else {
                "TWO SERVERS ANSWERED AT THE SAME TIME."
            }
        );
    }
}

/// One line for each server: where it answered for the virtual address.
fn draw(cluster: &Cluster, verdict: &Verdict) {
    let span = verdict
        .holdings
        .last()
        .map_or(Duration::ZERO, |h| h.from + h.length);
    let cell = (span / CELLS as u32).max(Duration::from_millis(1));
    for server in 0..cluster.spec().servers {
        let mut line = String::new();
        for index in 0..CELLS as u32 {
            let (from, until) = (cell * index, cell * (index + 1));
            let held: Duration = verdict
                .holdings
                .iter()
                .filter(|h| h.servers.contains(&server))
                .map(|h| {
                    (h.from + h.length)
                        .min(until)
                        .saturating_sub(h.from.max(from))
                })
                .sum();
            line.push(if held * 2 > cell {
                '█'
            } else if held > Duration::from_millis(1) {
                '▌'
            } else {
                '·'
            });
        }
        println!("  {:<8} {line}", cluster.name(server));
    }
    println!(
        "  {:<8} {:<width$}{}",
        "",
        "0",
        millis(span),
        width = CELLS - 6
    );
}

/// Lets the user act. Always true: what the user breaks is no failure of ours, but two masters are told.
fn interact(spec: &Spec) -> Result<bool, Error> {
    println!("Building {} servers and a client ...", spec.servers);
    let _spinners = Spinners::start()?;
    let mut cluster = Cluster::prepare(spec.clone())?;
    files::keep(&mut cluster);
    cluster.boot()?;
    cluster.settle()?;
    println!(
        "{} is master. The client asks each millisecond. You may:\n{HELP}",
        who(&cluster, cluster.master(0))
    );
    let lines = typed();
    let mut watch = Watch::start(&cluster);
    prompt();
    loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                let words: Vec<&str> = line.split_whitespace().collect();
                if matches!(words[..], ["quit" | "exit"]) {
                    return Ok(!watch.guilty);
                }
                if let Err(error) = obey(&mut cluster, &words) {
                    println!("{error}");
                }
                prompt();
            }
            Err(RecvTimeoutError::Timeout) => watch.look(&cluster),
            Err(RecvTimeoutError::Disconnected) => return Ok(!watch.guilty),
        }
    }
}

fn prompt() {
    print!("lab> ");
    // A terminal that is gone is noticed when reading.
    let _ = stdout().flush();
}

fn typed() -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Follows what the client sees, and tells of every outage once it is over.
struct Watch {
    client: usize,
    judge: usize,
    master: Option<usize>,
    /// Since when nobody answers; and whether that was told.
    silent: Option<(Instant, bool)>,
    guilty: bool,
}

impl Watch {
    fn start(cluster: &Cluster) -> Self {
        let net = cluster.net();
        let (client, judge) = (net.client(0).mark(), net.judge().mark());
        Self {
            client,
            judge,
            master: cluster.master(0),
            silent: None,
            guilty: false,
        }
    }

    fn look(&mut self, cluster: &Cluster) {
        let net = cluster.net();
        let silence = net.client(0).silence();
        if silence > Duration::from_millis(20) {
            let (since, told) = self.silent.get_or_insert((Instant::now(), false));
            if !*told && since.elapsed() > Duration::from_secs(1) {
                println!("\n*** nobody answers the client for a second now");
                *told = true;
                prompt();
            }
            return;
        }
        self.silent = None;
        let (client, judge) = (net.client(0).mark(), net.judge().mark());
        let (outage, verdict) = (
            net.client(0).since(self.client),
            net.judge().since(self.judge, 0),
        );
        (self.client, self.judge) = (client, judge);
        let master = cluster.master(0).or(self.master);
        if outage.lost > 0 || master != self.master || verdict.guilty() {
            println!(
                "\n*** {} -> {}: client's outage {}, requests lost {}; two servers answered for {}",
                who(cluster, self.master),
                who(cluster, master),
                millis(outage.longest),
                outage.lost,
                millis(verdict.two)
            );
            self.guilty |= verdict.guilty();
            self.master = master;
            prompt();
        }
    }
}

fn server(cluster: &Cluster, name: &str) -> Result<usize, Error> {
    let names: Vec<_> = (0..cluster.spec().servers)
        .map(|s| cluster.name(s))
        .collect();
    cluster.named(name).ok_or_else(|| {
        Error::Wrong(format!(
            "no server \"{name}\"; there are {}",
            names.join(", ")
        ))
    })
}

fn obey(cluster: &mut Cluster, words: &[&str]) -> Result<(), Error> {
    match *words {
        [] => Ok(()),
        ["help"] => {
            println!("{HELP}");
            Ok(())
        }
        ["status"] => {
            let on = (0..cluster.spec().servers).filter(|s| cluster.is_on(*s));
            let answer = on.map(|s| cluster.tell(s, &["status"])).find(Result::is_ok);
            println!(
                "{}",
                answer
                    .unwrap_or_else(|| Ok("no server runs".to_owned()))?
                    .trim_end()
            );
            Ok(())
        }
        ["kill", role, name] => cluster.kill(server(cluster, name)?, role, Signal::SIGKILL),
        ["power-off", name] => cluster.power_loss(server(cluster, name)?),
        ["power-on", name] => match server(cluster, name)? {
            on if cluster.is_on(on) => Err(Error::Wrong(format!("{name} is on"))),
            off => files::power_on(cluster, off),
        },
        ["cut", name] => cluster.net().cable(server(cluster, name)?, false),
        ["plug", name] => cluster.net().cable(server(cluster, name)?, true),
        ["stop", name] => cluster.stop(server(cluster, name)?),
        ["partition", ref groups @ ..] if !groups.is_empty() => {
            let groups = groups.join("");
            let group = |names: &str| {
                names
                    .split(',')
                    .map(|n| server(cluster, n))
                    .collect::<Result<Vec<_>, _>>()
            };
            let groups = groups
                .split('|')
                .map(group)
                .collect::<Result<Vec<_>, _>>()?;
            cluster
                .net()
                .partition(&groups.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }
        ["loss", percent] => match percent.parse() {
            Ok(percent) => cluster.net().loss(percent),
            Err(error) => Err(Error::Wrong(format!(
                "\"{percent}\": {error}; give 0 to 100"
            ))),
        },
        ["heal"] => cluster.net().heal(),
        ["promote", name] => {
            let on = (0..cluster.spec().servers).find(|s| cluster.is_on(*s));
            let said = cluster.tell(on.unwrap_or(0), &["promote", name])?;
            println!("{}", said.trim_end());
            Ok(())
        }
        ["log", name] => {
            let log = cluster.log(server(cluster, name)?);
            let lines: Vec<_> = log.lines().collect();
            println!("{}", lines[lines.len().saturating_sub(20)..].join("\n"));
            Ok(())
        }
        ["write", name, file, ref text @ ..] => {
            files::write(cluster, server(cluster, name)?, file, &text.join(" "))
        }
        ["remove", name, file] => files::remove(cluster, server(cluster, name)?, file),
        ["read", file] => files::read(cluster, file),
        ["sync", ref words @ ..] if !words.is_empty() => files::sync(cluster, words),
        _ => Err(Error::Wrong(format!(
            "not understood: {}\n{HELP}",
            words.join(" ")
        ))),
    }
}
