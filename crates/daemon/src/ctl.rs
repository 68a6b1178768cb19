//! One request to a role of this server, for the `standin` command.

use crate::{
    Error,
    local_socket::{self, Received, Sent},
};
use protocol::{
    Role,
    codec::{MESSAGE_MAX, RECORD_MAX, decode_record_as, encode_as},
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
        status::Detail,
    },
    version,
};
use serde::de::DeserializeOwned;
use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

/// Why a role did not answer a request.
#[derive(Debug)]
pub enum CallError {
    /// Nobody listens at its socket.
    NotRunning(Role, PathBuf),
    /// This user may not connect to it: whether it runs is not known.
    NotPermitted(Role, PathBuf),
    /// It did not answer, or not in time.
    NoAnswer(Role, PathBuf, io::Error),
    /// It ended, or was restarted, before it was done with what it had begun.
    BrokeOff(Role, io::Error),
    /// It speaks no version of the local protocol that this program speaks.
    Refused(Role, String),
}

impl CallError {
    fn new(role: Role, path: &Path, e: io::Error) -> Self {
        let path = path.to_owned();
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Self::NotRunning(role, path)
            }
            io::ErrorKind::PermissionDenied => Self::NotPermitted(role, path),
            _ => Self::NoAnswer(role, path, e),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning(role, path) => write!(
                f,
                "{role} does not run, start it with `standin run` (nobody listens at {})",
                path.display()
            ),
            Self::NotPermitted(role, path) => write!(
                f,
                "no right to talk to {role} at {}; run this command as root",
                path.display()
            ),
            Self::NoAnswer(role, path, e) => {
                write!(f, "{role} does not answer at {}: {e}", path.display())
            }
            Self::BrokeOff(role, _) => write!(
                f,
                "{role} ended, or was restarted, before it was done; its status tells more"
            ),
            Self::Refused(role, why) => write!(f, "{role} refuses: {why}"),
        }
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoAnswer(_, _, e) | Self::BrokeOff(_, e) => Some(e),
            Self::NotRunning(..) | Self::NotPermitted(..) | Self::Refused(..) => None,
        }
    }
}

impl From<CallError> for Error {
    fn from(e: CallError) -> Self {
        Self::Failed(e.to_string())
    }
}

/// Sends `request` to `role` and waits for the answer; no single step of it takes longer than `timeout`.
pub fn call(
    run_dir: &Path,
    role: Role,
    request: &CtlRequest,
    timeout: Duration,
) -> Result<CtlReply, CallError> {
    ask(run_dir, role, request, timeout).map(|(reply, ..)| reply)
}

/// Sends a `request` that takes its time: its answer, and whatever comes after that if it was begun.
pub fn call_until_done(
    run_dir: &Path,
    role: Role,
    request: &CtlRequest,
    timeout: Duration,
) -> Result<CtlReply, CallError> {
    match ask(run_dir, role, request, timeout)? {
        (CtlReply::Done(_), socket, version) => {
            let done =
                local_socket::wait_for_ever(&socket).and_then(|()| receive(&socket, version));
            done.map_err(|e| CallError::BrokeOff(role, e))
        }
        (other, ..) => Ok(other),
    }
}

/// The first answer, and what it came by.
fn ask(
    run_dir: &Path,
    role: Role,
    request: &CtlRequest,
    timeout: Duration,
) -> Result<(CtlReply, OwnedFd, u8), CallError> {
    let path = local_socket::path(run_dir, role);
    let failed = |e: io::Error| CallError::new(role, &path, e);
    let mut version = *version::LOCAL.end();
    loop {
        let socket = local_socket::dial_blocking(&path, timeout).map_err(failed)?;
        let hello = Hello {
            magic: MAGIC,
            version: version.into(),
            role: Role::Standin,
        };
        transmit(&socket, &hello, version).map_err(failed)?;
        match receive(&socket, version).map_err(failed)? {
            HelloAnswer::Welcome => {
                transmit(&socket, request, version).map_err(failed)?;
                let reply = receive(&socket, version).map_err(failed)?;
                return Ok((reply, socket, version));
            }
            other => {
                let refused = |why| CallError::Refused(role, why);
                version = other.version_instead(version).map_err(refused)?;
            }
        }
    }
}

/// A greeting on its way to a role: the answer proves that its event loop turns. Nothing of it waits.
pub struct Ping(OwnedFd);

impl Ping {
    /// Greets `role`.
    pub fn send(run_dir: &Path, role: Role) -> io::Result<Self> {
        let socket = local_socket::dial(&local_socket::path(run_dir, role))?;
        let version = *version::LOCAL.end();
        let hello = Hello {
            magic: MAGIC,
            version: version.into(),
            role: Role::Main,
        };
        transmit(&socket, &hello, version)?;
        Ok(Self(socket))
    }

    /// Whether the role has answered, be it with a refusal.
    pub fn answered(&self) -> bool {
        let mut buffer = [0; MESSAGE_MAX];
        matches!(
            local_socket::receive(&self.0, &mut buffer),
            Received::Message(_) | Received::Closed
        )
    }
}

/// What `role` tells of itself, if it runs and answers in time.
pub fn detail(run_dir: &Path, role: Role, timeout: Duration) -> Option<Detail> {
    match call(run_dir, role, &CtlRequest::Status, timeout) {
        Ok(CtlReply::Status(status)) => Some(status.detail),
        Ok(CtlReply::Done(_) | CtlReply::No(_)) | Err(_) => None,
    }
}

fn transmit<M: serde::Serialize>(socket: &OwnedFd, message: &M, version: u8) -> io::Result<()> {
    let bytes = encode_as(message, version).map_err(io::Error::other)?;
    match local_socket::transmit(socket, &bytes) {
        Sent::Yes => Ok(()),
        Sent::Full => Err(io::ErrorKind::TimedOut.into()),
        Sent::Closed => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn receive<M: DeserializeOwned>(socket: &OwnedFd, version: u8) -> io::Result<M> {
    let mut buffer = vec![0; RECORD_MAX]; // a status may be longer than what the ring carries
    match local_socket::receive(socket, &mut buffer) {
        Received::Message(n) => decode_record_as(&buffer[..n], version).map_err(io::Error::other),
        Received::Nothing => Err(io::ErrorKind::TimedOut.into()),
        Received::Closed => Err(io::ErrorKind::ConnectionReset.into()),
    }
}
