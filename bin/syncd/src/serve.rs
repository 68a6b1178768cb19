//! `syncd serve`: the other end of a run, over standard input and output, as SSH's forced command.
//!
//! One unit after another: it is looked at, what is asked for is given, and then this side asks in turn.

use crate::{
    pull::pull,
    replica::{Allowed, Answering, Local},
    ssh::{self, BANNER},
    units::{self, Unit},
};
use clap::{ArgMatches, Command};
use config::Config;
use daemon::Args;
use filesync::{Digest, Path, Replica};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::{Role, local::ctl::CtlRequest, wire::beat::Freshness};
use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    process::ExitCode,
    rc::Rc,
    time::Duration,
};
use transfer::{Buffered, Changes, Error, Origin, Puller, serve};

/// How long this server's daemon may take to listen.
const DAEMON: Duration = Duration::from_millis(500);

/// So long a session may say nothing while nothing is under way.
const IDLE: Duration = Duration::from_secs(5 * 60);

pub fn command() -> Command {
    Command::new("serve").about("Answer another server over standard input and output")
}

pub fn run(matches: &ArgMatches) -> ExitCode {
    let args = Args::from_matches(matches);
    if let Err(e) = daemon::load_config(&args) {
        eprintln!("syncd: {e}");
        return e.exit_code();
    }
    let answered = Standard::open().map_err(Error::Io).and_then(|mut stream| {
        stream.write_all(BANNER)?;
        stream.flush()?;
        answer(&mut stream, &args)
    });
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("syncd: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Standard input and output, without the lines that they are cut into otherwise.
struct Standard {
    input: File,
    output: File,
    /// How long the other may say nothing.
    patience: Rc<Cell<Duration>>,
}

impl Standard {
    fn open() -> io::Result<Buffered<Self>> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Buffered::new(Self {
            input: input.into(),
            output: output.into(),
            patience: Rc::new(Cell::new(IDLE)),
        }))
    }
}

impl Read for Standard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Whoever is gone without a word must not keep a unit from others for ever.
        let patience = PollTimeout::try_from(self.patience.get()).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, patience) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => self.input.read(buffer),
            Err(e) => Err(e.into()),
        }
    }
}

impl Write for Standard {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.output.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Unit after unit, until the other has no more.
fn answer(stream: &mut Buffered<Standard>, args: &Args) -> Result<(), Error> {
    loop {
        let mut asked = Asked {
            args,
            opened: None,
            other: None,
            patience: Rc::clone(&stream.get_ref().patience),
        };
        asked.patience.set(IDLE);
        match serve(stream, &mut asked) {
            Ok(None) => {}
            Ok(Some(_)) => continue,
            // It was told why, and may ask for something else.
            Err(Error::Refused(_)) => continue,
            // It has gone, which is how a conversation ends.
            Err(Error::Io(e)) if is_end(&e) && asked.opened.is_none() => return Ok(()),
            Err(e) => return Err(e),
        }
        let Some((config, local)) = asked.opened else {
            return Err(Error::Unexpected("a turn before a greeting"));
        };
        let mut puller = Puller::new(&mut *stream)?;
        let (cluster, name) = (&config.cluster.name, local.unit.name.clone());
        let greeting = puller.greet(cluster, &name, &local.replica)?;
        let report = pull(&local, &mut puller, &greeting, Allowed::default(), false)?;
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
    args: &'a Args,
    opened: Option<(Config, Local)>,
    other: Option<Replica>,
    patience: Rc<Cell<Duration>>,
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
            return Err(format!(
                "{} is no other server of cluster {}",
                other.server, config.cluster.name
            ));
        }
        let units = units::of(&config, |_| true)?;
        let unit = units.into_iter().find(|u| u.name == set).ok_or_else(|| {
            format!("{me} keeps no {set} alike: is the configuration the same on all servers?")
        })?;
        let local = Local::open(unit, &me, self.args, Allowed::default())?;
        self.opened = Some((config, local));
        self.patience.set(ssh::PATIENCE);
        let greeted = self.with(|a| a.greet(cluster, set, other));
        greeted.unwrap_or_else(|| Err("no set was named".into()))
    }

    fn fresh(&self) -> Freshness {
        let local = self.opened.as_ref().map(|(_, local)| local);
        local.map_or_else(Freshness::default, Local::fresh)
    }

    fn changes(&mut self, after: u64) -> io::Result<Changes> {
        self.with(|a| a.changes(after)).unwrap_or_else(unnamed)
    }

    fn open(&mut self, path: &Path, digest: &Digest) -> io::Result<Option<File>> {
        self.with(|a| a.open(path, digest)).unwrap_or_else(unnamed)
    }

    fn took(&mut self, sequence: u64) -> io::Result<()> {
        self.with(|a| a.took(sequence)).unwrap_or_else(unnamed)
    }
}
