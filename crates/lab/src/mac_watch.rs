//! Where a MAC address is heard: what a switch would learn.
//!
//! Servers that share a MAC address cannot be told apart by it, but the bridge has a port for each. Frames that
//! come in at a port were sent by that server.

use crate::{Error, Host, pace};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};
use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A frame of this machine's own on its way out of a port.
const OUTGOING: u8 = 4;

#[derive(Default)]
struct Heard {
    /// When each frame was heard, and from which server.
    frames: Vec<(u64, usize)>,
}

/// Listens on the bridge's ports for frames from one MAC address, until it is dropped.
pub struct MacWatch {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MacWatch {
    /// Begins to listen for `mac` ("02:00:5e:00:53:01") at the ports of these servers.
    pub fn start(servers: &[Host], mac: &str) -> Result<Self, Error> {
        let bytes: Vec<u8> = mac
            .split(':')
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        let mac: [u8; 6] = bytes
            .try_into()
            .map_err(|_| Error::Wrong(format!("\"{mac}\" is no MAC address")))?;
        let ports = servers
            .iter()
            .map(|host| if_nametoindex(host.name()).map(|index| index as usize))
            .collect::<nix::Result<Vec<usize>>>()
            .map_err(Error::system("a bridge's port"))?;
        let open = || -> nix::Result<OwnedFd> {
            let (family, kind) = (AddressFamily::Packet, SockType::Raw);
            let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
            let _ = setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20));
            Ok(fd)
        };
        let socket = open().map_err(Error::system("a packet socket on the bridge"))?;
        let watch = Self {
            heard: Arc::default(),
            stop: Arc::default(),
        };
        let (heard, stop) = (Arc::clone(&watch.heard), Arc::clone(&watch.stop));
        let listen = move || {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                let from = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
                    Ok((_, Some(from))) if buffer[6..12] == mac => from,
                    // Errors are those of time-outs and of a network that is being broken on purpose.
                    Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => continue,
                    Err(_) => return,
                };
                let port = ports.iter().position(|p| *p == from.ifindex());
                if from.pkttype() != OUTGOING
                    && let Some(server) = port
                {
                    lock(&heard).frames.push((pace::now(), server));
                }
            }
        };
        thread::Builder::new()
            .name("mac-watch".to_owned())
            .spawn(listen)
            .map_err(Error::system("starting a thread"))?;
        Ok(watch)
    }

    /// Marks this moment, for [`MacWatch::since`].
    pub fn mark(&self) -> usize {
        lock(&self.heard).frames.len()
    }

    /// Where the MAC address was heard from the mark until now, in order, each place once as long as it stays.
    pub fn since(&self, mark: usize) -> Vec<usize> {
        thread::sleep(Duration::from_millis(50));
        let heard = lock(&self.heard);
        let mut places: Vec<usize> = heard.frames[mark..].iter().map(|(_, s)| *s).collect();
        places.dedup();
        places
    }
}

impl Drop for MacWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
