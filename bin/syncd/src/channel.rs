//! A channel of an SSH connection whose other end may die: who writes notices it, and it is told how it died.

use nix::sys::signal::Signal;
use ssh2::{Channel, Session};
use std::{
    fmt,
    io::{self, Write},
    time::{Duration, Instant},
};

/// libssh2 waits for room to write, and would go on when nobody is left to make room: so often that is looked for.
const STEP: Duration = Duration::from_secs(1);
/// So long it is waited for how a program ended that has closed its output.
const LAST_WORD: Duration = Duration::from_secs(2);

/// How the program at the other end ended, before it had answered.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// By this Unix signal, without SIG.
    Signal(String),
    /// With this exit status.
    Status(i32),
    /// Nobody says.
    Unknown,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => {
                write!(
                    f,
                    "its syncd was killed by SIG{name} before it had answered"
                )?;
                match name.as_str() {
                    "KILL" | "ABRT" => f.write_str("; out of memory? The system's log there tells"),
                    _ => Ok(()),
                }
            }
            Self::Status(status) => write!(
                f,
                "its syncd ended with exit status {status} before it had answered: an error there, or it heard nothing of this \
                 server for too long; run syncd there to see"
            ),
            Self::Unknown => f.write_str("it closed the connection before it had answered"),
        }
    }
}

impl std::error::Error for Ended {}

/// The other end is closed: how that came.
pub fn ended(session: &Session, channel: &mut Channel) -> io::Error {
    session.set_timeout(millis(LAST_WORD));
    // Without an answer it is not known how.
    let _ = channel.wait_close();
    let signal = channel.exit_signal().ok().and_then(|s| s.exit_signal);
    let how = match (signal, channel.exit_status()) {
        // Other signals than SSH knows have the name of who names them behind theirs.
        (Some(name), _) => Ended::Signal(name.split('@').next().unwrap_or(&name).to_owned()),
        (None, Ok(status)) if status != 0 => by_status(status),
        (None, _) => Ended::Unknown,
    };
    io::Error::new(io::ErrorKind::UnexpectedEof, how)
}

/// The same of what libssh2 says, which is of its own insides.
pub fn broken(e: io::Error) -> io::Error {
    let what = match e.kind() {
        io::ErrorKind::TimedOut => "it did not answer in time",
        io::ErrorKind::Other => "the connection to it is lost",
        _ => return e,
    };
    io::Error::new(e.kind(), format!("{what} ({e})"))
}

/// A shell that ran it tells of a signal by 128 and its number.
fn by_status(status: i32) -> Ended {
    match Signal::try_from(status - 128) {
        Ok(signal) => Ended::Signal(signal.as_str().trim_start_matches("SIG").to_owned()),
        Err(_) => Ended::Status(status),
    }
}

/// Where what is said goes in; it is given up when nobody is at the other end.
pub struct Outlet {
    session: Session,
    channel: Channel,
}

impl Outlet {
    pub fn new(session: &Session, channel: &Channel) -> Self {
        Self {
            session: session.clone(),
            channel: channel.clone(),
        }
    }

    /// Once more and once more, as long as it may take and somebody is there.
    fn try_for(&mut self, most: Duration, bytes: &[u8]) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            let left = most.saturating_sub(start.elapsed());
            // libssh2 takes nothing for no limit.
            self.session.set_timeout(millis(left.min(STEP)).max(1));
            let written = self.channel.write(bytes);
            let in_vain = match &written {
                Ok(length) => *length == 0 && !bytes.is_empty(),
                Err(e) => e.kind() == io::ErrorKind::TimedOut,
            };
            if in_vain && self.channel.eof() {
                return Err(ended(&self.session, &mut self.channel));
            }
            if !in_vain || left.is_zero() {
                return written;
            }
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = self.session.timeout();
        let written = self.try_for(Duration::from_millis(most.into()), bytes);
        self.session.set_timeout(most);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_named_and_another_status_is_told() {
        assert_eq!(by_status(137), Ended::Signal("KILL".into()));
        for other in [1, 127, 128, 255, -1] {
            assert_eq!(by_status(other), Ended::Status(other));
        }
    }
}
