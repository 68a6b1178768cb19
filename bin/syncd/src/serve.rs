//! `syncd serve`: the other end of a run, over standard input and output, as SSH's forced command.
//!
//! One unit after another: it is looked at, what is asked for is given, and then this side asks in turn.

use crate::{
    alive::{Hearer, is_gone},
    pace::Pace,
    pull::{RECIPES, pull},
    replica::{Allowed, Answering, Local},
    ssh::BANNER,
    units::{self, Unit},
};
use clap::Command;
use config::Config;
use daemon::{Args, eprintln, machine};
use filesync::{Digest, Knowledge, Path, Replica, Standing};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, poll},
};
use protocol::{
    Role, ServerName,
    local::{ctl::CtlRequest, ring::HealthState, status::Detail},
    wire::beat::Freshness,
};
use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::{Path as FsPath, PathBuf},
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};
use transfer::{Buffered, Changes, End, Error, Files, Origin, Puller, serve};

/// How long this server's daemon may take to listen.
const DAEMON: Duration = Duration::from_millis(500);

/// So long a session may say nothing while nothing is under way.
const IDLE: Duration = Duration::from_secs(5 * 60);
/// So often, while nothing comes, the doctor is asked whether the other lives.
const LOOK_ROUND: u16 = 2000; // ms

pub fn command() -> Command {
    Command::new("serve").about("Answer another server over standard input and output")
}

pub fn run(args: &Args) -> ExitCode {
    let opened = Standard::open(&args.run_dir).map_err(Error::Io);
    let answered = opened.and_then(|standard| {
        let client = Rc::clone(&standard.client);
        let mut stream = Buffered::new(standard);
        stream.write_all(BANNER)?;
        stream.flush()?;
        answer(&mut stream, args, &client)
    });
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("syncd: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Who asked for the unit that is open here, and how fast its contents go.
type Client = Rc<RefCell<Option<(ServerName, Pace)>>>;

/// Standard input and output, without the lines that they are cut into otherwise, and with an end to all waiting: a
/// unit must not stay occupied because whoever asked for it lost its power, or was stopped.
struct Standard {
    input: Hearer<File>,
    output: File,
    run_dir: PathBuf,
    client: Client,
}

impl Standard {
    fn open(run_dir: &FsPath) -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        for end in [&input, &output] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            input: Hearer::new(input.into()),
            output: output.into(),
            run_dir: run_dir.to_owned(),
            client: Rc::default(),
        })
    }

    fn pace(&self) -> Pace {
        let client = self.client.borrow();
        client
            .as_ref()
            .map(|(_, pace)| pace.clone())
            .unwrap_or_default()
    }

    /// Until something may be read, or written, after a `word` that was the last.
    fn wait(&mut self, word: Instant, writing: bool) -> io::Result<()> {
        let mut sign = Instant::now();
        loop {
            let input = PollFd::new(self.input.get_ref().as_fd(), PollFlags::POLLIN);
            let output = PollFd::new(self.output.as_fd(), PollFlags::POLLOUT);
            let mut ends: Vec<_> = writing.then_some(output).into_iter().collect();
            ends.extend((!writing || self.input.has_room()).then_some(input));
            match poll(&mut ends, LOOK_ROUND) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) if ends[0].any() != Some(false) => return Ok(()),
                Ok(_) => {
                    self.input.hear()?;
                    sign = Instant::now();
                    continue;
                }
                Err(e) => return Err(e.into()),
            }
            let (client, now) = (self.client.borrow().clone(), Instant::now());
            let gone = match client {
                Some((server, _)) => is_gone(now, word, sign) || is_dead(&self.run_dir, &server),
                None => now.duration_since(sign) > IDLE,
            };
            if gone {
                let why = "nothing is heard of the other server any more";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

/// Whether this server's doctor holds another one for dead; without a doctor nobody is.
fn is_dead(run_dir: &FsPath, server: &ServerName) -> bool {
    let doctord = daemon::ctl::detail(run_dir, Role::Doctord, DAEMON);
    let Some(Detail::Doctord { health, .. }) = doctord else {
        return false;
    };
    let mut servers = health.servers.iter();
    servers.any(|s| s.server == *server && s.state == HealthState::Dead)
}

impl Read for Standard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            let read = self.pace().get(buffer, |buffer| self.input.read(buffer));
            match read {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(start, false)?;
                }
                other => return other,
            }
        }
    }
}

impl Write for Standard {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            let written = self.pace().send(buffer, |buffer| self.output.write(buffer));
            match written {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(start, true)?;
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Unit after unit, until the other has no more.
fn answer(stream: &mut Buffered<Standard>, args: &Args, client: &Client) -> Result<(), Error> {
    loop {
        *client.borrow_mut() = None;
        let mut asked = Asked {
            client,
            args,
            opened: None,
            other: None,
        };
        let version = match serve(stream, &mut asked, &RECIPES) {
            Ok(End::YourTurn(spoken)) => spoken,
            Ok(End::Bye(_)) => continue,
            // It was told why, and may ask for something else.
            Err(Error::Refused(_)) => continue,
            // It has gone, which is how a conversation ends.
            Err(Error::Io(e)) if is_end(&e) && asked.opened.is_none() => return Ok(()),
            Err(e) => return Err(e),
        };
        let Some((config, local)) = asked.opened else {
            return Err(Error::Unexpected("a turn before a greeting"));
        };
        let mut puller = Puller::new(&mut *stream)?.speaking(version);
        let (cluster, name) = (&config.cluster.name, local.unit.name.clone());
        let greeting = puller.greet(cluster, &name, &local.replica)?;
        let report = pull(&local, &mut puller, &greeting, Allowed::default())?;
        tell_daemon(args, &local.unit, report.applied.done);
        puller.bye(report.farewell())?;
    }
}

fn is_end(e: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, UnexpectedEof};
    matches!(e.kind(), UnexpectedEof | TimedOut)
}

/// Tells the daemon of this server what came here, if it runs.
pub fn tell_daemon(args: &Args, unit: &Unit, changes: u64) {
    if let Some(set) = unit.set() {
        let told = CtlRequest::SyncTook { set, changes };
        // Without it nobody needs to know.
        let _ = daemon::ctl::call(&args.run_dir, Role::Syncd, &told, DAEMON);
    }
}

/// A unit that is opened when it is named, by the configuration as it is then.
struct Asked<'a> {
    client: &'a Client,
    args: &'a Args,
    opened: Option<(Config, Local)>,
    other: Option<Replica>,
}

impl Asked<'_> {
    fn with<T>(&mut self, ask: impl FnOnce(&mut Answering<'_>) -> T) -> Option<T> {
        let (config, local) = self.opened.as_ref()?;
        let mut answering = Answering {
            local,
            cluster: &config.cluster.name,
            other: self.other.take(),
        };
        let answer = ask(&mut answering);
        self.other = answering.other;
        Some(answer)
    }
}

fn unnamed<T>() -> io::Result<T> {
    Err(io::Error::other("no set was named"))
}

impl Origin for Asked<'_> {
    fn greet(
        &mut self,
        cluster: &str,
        set: &str,
        other: &Replica,
    ) -> Result<(Replica, u64, u64), String> {
        let (config, me) = daemon::load_config(self.args).map_err(|e| e.to_string())?;
        if !config.peers(&me).any(|s| s.name == other.server) {
            let others: Vec<_> = config.peers(&me).map(|s| s.name.to_string()).collect();
            let cluster_here = &config.cluster.name;
            return Err(match other.server == me {
                true => format!("this is {me} as well; give one of the two another --server"),
                false => format!(
                    "cluster {cluster_here} has no server {} but {}; if it was renamed or added, write that into {} on \
                     {me} as well",
                    other.server,
                    others.join(", "),
                    config.file.display()
                ),
            });
        }
        let units = units::of(&config, self.args, |_| true);
        let unit = units.iter().find(|u| u.name == set).ok_or_else(|| {
            let faults = units.iter().filter_map(|u| u.fault.as_deref());
            let faults: String = faults.map(|why| format!("; {why}")).collect();
            format!(
                "{me} keeps no {set} alike: is the configuration the same on all servers?{faults}"
            )
        })?;
        let unit = unit.clone();
        *self.client.borrow_mut() = Some((other.server.clone(), unit.pace.clone()));
        let here = machine::present(&config, &me);
        let local = Local::open(unit, &here, self.args, Allowed::default())?;
        self.opened = Some((config, local));
        let greeted = self.with(|a| a.greet(cluster, set, other));
        greeted.unwrap_or_else(|| Err("no set was named".into()))
    }

    fn standing(&mut self) -> io::Result<Standing> {
        self.with(|a| a.standing()).unwrap_or_else(unnamed)
    }

    fn knowledge(&mut self) -> io::Result<Knowledge> {
        self.with(|a| a.knowledge()).unwrap_or_else(unnamed)
    }

    fn fresh(&self) -> Freshness {
        let local = self.opened.as_ref().map(|(_, local)| local);
        local.map_or_else(Freshness::default, Local::fresh)
    }

    fn changes(&mut self, after: u64) -> io::Result<Changes> {
        self.with(|a| a.changes(after)).unwrap_or_else(unnamed)
    }

    fn open<'a>(&'a mut self, files: &'a [(Path, Digest)]) -> Files<'a> {
        match &self.opened {
            Some((_, local)) => local.files(files),
            None => Box::new(std::iter::once(unnamed())),
        }
    }

    fn took(&mut self, sequence: u64) -> io::Result<()> {
        self.with(|a| a.took(sequence)).unwrap_or_else(unnamed)
    }
}
