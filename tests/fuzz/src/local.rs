//! A role's Unix socket, a real one: packets before and after the greeting, of strangers, neighbours and operators.
//! Whatever comes, that connection at most is closed, and the next operator gets an answer.

use arbitrary::{Result, Unstructured};
use daemon::{Args, Boot, Event, EventLoop, now};
use nix::sys::socket::{self as s, MsgFlags, UnixAddr};
use protocol::{
    Role,
    codec::{self, MESSAGE_MAX, encode},
    local::{Hello, HelloAnswer, MAGIC, ctl::CtlReply, ctl::CtlRequest, ring::HbdToDoctord},
    version,
};
use std::{
    cell::RefCell,
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};
use tempfile::TempDir;

const CONFIG: &str = include_str!("../../../etc/standin.toml");

/// Most packets of one input: they all fit into a socket's buffer.
const PACKETS_MAX: usize = 16;

/// The loop never waits in vain for longer than that.
const PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    /// One role for all inputs of a thread.
    static DOCTORD: RefCell<Option<(TempDir, EventLoop)>> = const { RefCell::new(None) };
}

/// Sends the packets in `bytes`.
pub fn run(bytes: &[u8]) {
    DOCTORD.with_borrow_mut(|place| {
        let played = match place {
            Some((dir, doctord)) => play(dir, doctord, &mut Unstructured::new(bytes)),
            None => open().and_then(|(dir, mut doctord)| {
                let played = play(&dir, &mut doctord, &mut Unstructured::new(bytes));
                *place = Some((dir, doctord));
                played
            }),
        };
        if let Err(e) = played {
            panic!("the role cannot be reached any more: {e}");
        }
    });
}

fn open() -> io::Result<(TempDir, EventLoop)> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("standin.toml");
    std::fs::write(&config, CONFIG)?;
    let args = Args {
        config,
        run_dir: dir.path().to_owned(),
        state_dir: dir.path().to_owned(),
        server: Some("alpha".into()),
    };
    let boot = Boot::new(Role::Doctord, args).map_err(io::Error::other)?;
    let doctord = EventLoop::open(&boot, &[Role::Hbd], &[]).map_err(io::Error::other)?;
    Ok((dir, doctord))
}

fn play(dir: &TempDir, doctord: &mut EventLoop, u: &mut Unstructured<'_>) -> io::Result<()> {
    let stranger = connect(dir)?;
    for packet in packets(u).unwrap_or_default() {
        // It may have been closed already.
        let _ = send(&stranger, &packet);
    }
    // An operator that comes later: it is served when all that came before is dealt with.
    let operator = connect(dir)?;
    send(&operator, &hello(Role::Standin))?;
    send(
        &operator,
        &encode(&CtlRequest::Status).map_err(io::Error::other)?,
    )?;
    let (mut events, mut heard, mut served) = (Vec::new(), Vec::new(), false);
    let end = now() + PATIENCE;
    while !served {
        doctord
            .wait(Some(end), &mut events)
            .map_err(io::Error::other)?;
        for event in events.drain(..) {
            match event {
                Event::Message { from, bytes, .. } => {
                    assert_eq!(from, Role::Hbd);
                    assert!(codec::decode_all::<HbdToDoctord>(&bytes, 2).count() <= MESSAGE_MAX);
                }
                Event::Ctl { conn, .. } => {
                    doctord.reply(conn, &reply());
                    served = answered(&operator, &mut heard)?;
                }
                Event::Deadline => panic!("no answer to an operator within {PATIENCE:?}"),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Some packets: any bytes, or good greetings and messages that end differently.
fn packets(u: &mut Unstructured<'_>) -> Result<Vec<Vec<u8>>> {
    let mut packets = match u.int_in_range(0..=3u8)? {
        0 => Vec::new(),
        1 => vec![hello(Role::Hbd)],
        2 => vec![hello(Role::Standin)],
        _ => vec![hello(*u.choose(&[
            Role::Main,
            Role::Electd,
            Role::Doctord,
        ])?)],
    };
    while !u.is_empty() && packets.len() < PACKETS_MAX {
        let length = match u.int_in_range(0..=31u8)? {
            31 => u.int_in_range(0..=MESSAGE_MAX + 8)?,
            n => usize::from(n),
        };
        let mut packet = u.bytes(length.min(u.len()))?.to_vec();
        packet.resize(length, 0);
        packets.push(packet);
    }
    Ok(packets)
}

fn hello(role: Role) -> Vec<u8> {
    let version = (*version::LOCAL.end()).into();
    encode(&Hello {
        magic: MAGIC,
        version,
        role,
    })
    .unwrap_or_default()
}

fn connect(dir: &TempDir) -> io::Result<OwnedFd> {
    let flags = s::SockFlag::SOCK_CLOEXEC | s::SockFlag::SOCK_NONBLOCK;
    let socket = s::socket(s::AddressFamily::Unix, s::SockType::SeqPacket, flags, None)?;
    s::connect(
        socket.as_raw_fd(),
        &UnixAddr::new(&dir.path().join("doctord.sock"))?,
    )?;
    Ok(socket)
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    s::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

/// Reads on what the operator hears; whether it has its answer: a welcome, then the reply.
fn answered(operator: &OwnedFd, heard: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let mut buffer = [0; 64];
    loop {
        match s::recv(operator.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
            Ok(length) => heard.push(buffer[..length].to_vec()),
            Err(nix::errno::Errno::EAGAIN) => break,
            Err(e) => return Err(e.into()),
        }
    }
    let expected = [encode(&HelloAnswer::Welcome), encode(&reply())];
    let expected = expected.map(std::result::Result::unwrap_or_default);
    assert!(expected.starts_with(heard), "{heard:?}");
    Ok(heard.len() == expected.len())
}

fn reply() -> CtlReply {
    CtlReply::Done("heard".into())
}
