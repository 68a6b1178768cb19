//! A byte stream to `syncd serve` on another server, over SSH.
//!
//! The other's host key is pinned in the configuration and nothing else is believed: no known_hosts, no certificate, no
//! first use. What a login shell prints before `syncd serve` speaks is passed over, up to a limit.

use crate::{
    alive::{Signs, Teller},
    channel::{Outlet, broken, ended, millis},
    pace::Pace,
};
use config::{Config, Server};
use nix::sys::socket::{setsockopt, sockopt};
use ssh2::{Channel, HostKeyType, MethodType, Session};
use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use transfer::Buffered;

/// What the other side says first.
pub const BANNER: &[u8] = b"standin syncd 2\n";

/// So much may come before the banner.
const NOISE_MAX: usize = 16 * 1024;

/// How long a handshake, or what was sent, may go unanswered by the other's system.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// How long the other may be at work on what it was asked: it may have to read all of its files, or wait for a slow
/// disk. Whether it is there at all, its system tells all the while.
pub const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// How long it may be silent while it tells what it has: then it only reads, and others wait for what comes.
pub const READING: Duration = Duration::from_secs(60);

/// If the other says nothing for so long, its system is asked, as often as this, and so many times.
const QUIET: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(4);
const PROBES: u32 = 3;

/// How long one address may take to let us in.
const CONNECT: Duration = Duration::from_secs(5);

/// The window of the channel: at 10 ms round trip enough for 1.6 GB/s.
const WINDOW: u32 = 16 << 20;

/// How what is sent is sealed, best first: of all that libssh2 has, it sends this a quarter faster than its first choice,
/// ChaCha20, with which it receives faster than with anything else.
const SEND_CIPHERS: &str = "aes128-ctr,chacha20-poly1305@openssh.com,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com";
const SEND_MACS: &str =
    "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512";

/// How a host proves that it has an RSA key (RFC 8332); the last is for what is older.
const RSA: &str = "rsa-sha2-512,rsa-sha2-256,ssh-rsa";

/// Why a server cannot be reached.
#[derive(Debug)]
pub struct Unreachable {
    what: String,
    /// Nobody answers at all, and there may be nothing wrong with it.
    pub silent: bool,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Unreachable {}

/// The stream.
pub type Connection = Buffered<Ssh>;

/// As SSH gives it.
pub struct Ssh {
    session: Session,
    channel: Channel,
    /// The same channel's other direction.
    teller: Arc<Mutex<Teller<Outlet>>>,
    socket: TcpStream,
    /// While a run goes on: `syncd serve` hears that this process does.
    signs: Option<Signs>,
    /// How fast it goes.
    pace: Pace,
    /// Nothing is said or heard later.
    until: Option<Instant>,
    patience: Duration,
}

impl Ssh {
    /// How long the other may take to answer from now on.
    pub fn patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// A run begins: until it ends, signs of life are given.
    pub fn begin(&mut self, pace: Pace, until: Option<Instant>) -> io::Result<()> {
        (self.pace, self.until) = (pace, until);
        self.signs = Some(Signs::give(&self.teller)?);
        Ok(())
    }

    /// It has ended, and others may come.
    pub fn end(&mut self) {
        (self.pace, self.until, self.signs) = (Pace::default(), None, None);
    }

    /// How long, in milliseconds, what is said or heard now may take.
    fn at_most(&self) -> io::Result<u32> {
        time_left(self.patience, self.until, Instant::now()).map(millis)
    }
}

/// How long the other may still take.
fn time_left(patience: Duration, until: Option<Instant>, now: Instant) -> io::Result<Duration> {
    let left = until.map_or(patience, |until| until.saturating_duration_since(now));
    // libssh2 takes nothing for no limit.
    if left < Duration::from_millis(1) {
        let why = "the time for this run is over; the rest is owed";
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    }
    Ok(left.min(patience))
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // libssh2 would say goodbye, and wait for ever to be heard.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Read for Ssh {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.at_most()?;
        let Self {
            pace,
            channel,
            session,
            teller,
            ..
        } = self;
        pace.get(buffer, |buffer| {
            // The session has one limit for all, and whoever gives signs of life sets another one.
            let _alone = teller.lock().unwrap_or_else(PoisonError::into_inner);
            session.set_timeout(most);
            match channel.read(buffer) {
                Ok(0) if !buffer.is_empty() => Err(ended(session, channel)),
                other => other.map_err(broken),
            }
        })
    }
}

impl Write for Ssh {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let most = self.at_most()?;
        self.pace.send(buffer, |buffer| {
            let teller = self.teller.lock();
            let mut teller = teller.unwrap_or_else(PoisonError::into_inner);
            self.session.set_timeout(most);
            teller.tell(buffer).map_err(broken)?;
            Ok(buffer.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to `syncd serve` on this server, over the first of its addresses that answers.
pub fn connect(config: &Config, server: &Server, command: &str) -> Result<Connection, Unreachable> {
    let mut reasons = Vec::new();
    for address in &server.addresses {
        let address = SocketAddr::new(*address, config.ssh.port);
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => {
                let because = |what: String| Unreachable {
                    what: format!("{} at {address}: {what}", server.name),
                    silent: false,
                };
                return open(config, server, socket, command).map_err(because);
            }
            Err(e) => reasons.push(format!("{address}: {e}")),
        }
    }
    Err(Unreachable {
        what: format!("{}: {}", server.name, reasons.join("; ")),
        silent: true,
    })
}

fn open(
    config: &Config,
    server: &Server,
    socket: TcpStream,
    command: &str,
) -> Result<Connection, String> {
    let pinned = server
        .host_key
        .as_deref()
        .ok_or("no host_key in the configuration")?;
    let (kind, contents) = pinned
        .split_once(' ')
        .ok_or("no host_key in the configuration")?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: ssh2::Error| format!("{what}: {}", e.message())
    };
    socket.set_nodelay(true).map_err(|e| e.to_string())?;
    // A dead peer ends the stream, whatever libssh2 waits for.
    setsockopt(&socket, sockopt::TcpUserTimeout, &millis(HANDSHAKE))
        .and_then(|()| setsockopt(&socket, sockopt::TcpKeepIdle, &seconds(QUIET)))
        .and_then(|()| setsockopt(&socket, sockopt::TcpKeepInterval, &seconds(PROBE)))
        .and_then(|()| setsockopt(&socket, sockopt::TcpKeepCount, &PROBES))
        .and_then(|()| setsockopt(&socket, sockopt::KeepAlive, &true))
        .map_err(|e| e.to_string())?;
    let mut session = Session::new().map_err(failed("SSH"))?;
    session.set_timeout(millis(HANDSHAKE));
    let algorithms = match kind {
        "ssh-rsa" => RSA,
        other => other,
    };
    session
        .method_pref(MethodType::HostKey, algorithms)
        .map_err(failed("the kind of the host_key"))?;
    session
        .method_pref(MethodType::CryptCs, SEND_CIPHERS)
        .and_then(|()| session.method_pref(MethodType::MacCs, SEND_MACS))
        .map_err(failed("the ciphers"))?;
    session.set_tcp_stream(socket.try_clone().map_err(|e| e.to_string())?);
    session.handshake().map_err(failed("no handshake"))?;
    let (key, key_kind) = session.host_key().ok_or("it shows no host key")?;
    if base64(key) != contents {
        return Err(format!(
            "it is not who it should be: it shows the key {} {}, not the host_key of the configuration",
            name(key_kind),
            base64(key)
        ));
    }
    session
        .userauth_pubkey_file(&config.ssh.user, None, &config.ssh.key, None)
        .map_err(|e| {
            format!(
                "it does not let in {} with {}: {}",
                config.ssh.user,
                config.ssh.key.display(),
                e.message()
            )
        })?;
    let mut channel = session
        .channel_open("session", WINDOW, 32 * 1024, None)
        .map_err(failed("no channel"))?;
    channel
        .handle_extended_data(ssh2::ExtendedData::Ignore)
        .map_err(failed("no channel"))?;
    channel
        .exec(command)
        .map_err(failed("it does not start syncd"))?;
    let outlet = Outlet::new(&session, &channel);
    let mut connection = Buffered::new(Ssh {
        session,
        teller: Arc::new(Mutex::new(Teller::new(outlet))),
        channel,
        socket,
        signs: None,
        pace: Pace::default(),
        until: None,
        patience: HANDSHAKE,
    });
    pass_over_noise(&mut connection)?;
    connection.get_mut().patience(PATIENCE);
    Ok(connection)
}

/// Reads up to the banner.
fn pass_over_noise(stream: &mut impl Read) -> Result<(), String> {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(BANNER) {
        let told = || {
            String::from_utf8_lossy(&seen)
                .trim()
                .escape_debug()
                .to_string()
        };
        match stream.read(&mut byte) {
            Ok(1) if seen.len() < NOISE_MAX => seen.extend_from_slice(&byte),
            Ok(0) if seen.is_empty() => return Err(not_started(&"nobody answers")),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && seen.is_empty() => {
                return Err(not_started(&e));
            }
            Ok(_) => return Err(format!("something else than syncd answers: {}", told())),
            Err(e) => return Err(format!("{e}; it said: {}", told())),
        }
    }
    Ok(())
}

fn not_started(why: &dyn fmt::Display) -> String {
    format!(
        "syncd does not start there: is it installed, and is the key its forced command's? ({why})"
    )
}

fn name(kind: HostKeyType) -> &'static str {
    match kind {
        HostKeyType::Ed25519 => "ssh-ed25519",
        HostKeyType::Ecdsa256 => "ecdsa-sha2-nistp256",
        HostKeyType::Ecdsa384 => "ecdsa-sha2-nistp384",
        HostKeyType::Ecdsa521 => "ecdsa-sha2-nistp521",
        HostKeyType::Rsa => "ssh-rsa",
        _ => "of an unknown kind",
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i > three.len() {
                '='
            } else {
                char::from(digit)
            });
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_run_cuts_patience_short() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let left = |until: Option<Duration>| time_left(60 * second, until.map(|u| now + u), now);
        assert_eq!(left(None).unwrap(), 60 * second);
        assert_eq!(left(Some(90 * second)).unwrap(), 60 * second);
        assert_eq!(left(Some(second)).unwrap(), second);
        assert_eq!(
            left(Some(Duration::ZERO)).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }

    #[test]
    fn base64_as_in_the_rfc() {
        let table = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, text) in table {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    #[test]
    fn what_a_shell_prints_first_is_passed_over_and_what_is_no_syncd_is_told() {
        let greeting = [&b"Welcome to beta!\nstandin syncd\n"[..], BANNER, b"rest"].concat();
        let mut stream = &greeting[..];
        pass_over_noise(&mut stream).unwrap();
        assert_eq!(stream, b"rest");
        let told = pass_over_noise(&mut &b"sh: syncd: not found\n"[..]).unwrap_err();
        assert!(told.contains("not found"), "{told}");
        let told = pass_over_noise(&mut &b""[..]).unwrap_err();
        assert!(told.contains("installed"), "{told}");
        let endless = vec![b'x'; NOISE_MAX + 10];
        assert!(pass_over_noise(&mut &endless[..]).is_err());
    }
}
