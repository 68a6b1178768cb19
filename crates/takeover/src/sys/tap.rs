//! A tap: an interface whose outgoing frames this process reads.

use super::done;
use crate::{Mac, outlive::outlive};
use nix::libc;
use std::{
    ffi::CStr,
    fs::{self, File},
    io::{self, Read},
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
};

const DEVICE: &str = "/dev/net/tun";
const NAME: &[u8] = b"standin%d";
/// Frames that the kernel keeps for a reader who is late.
const FRAMES: libc::c_int = 4096;

/// The tap. The interface is gone with it; the process that holds it ends without waiting for that.
#[derive(Debug)]
pub(crate) struct Tap {
    file: File,
    index: u32,
    _kept: Option<OwnedFd>,
}

fn request() -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq.
    unsafe { zeroed() }
}

/// # Safety
/// The request must be one that takes an ifreq, with what it reads from it filled in.
unsafe fn ask(fd: BorrowedFd, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the ifreq is valid for reads and writes; the rest is the caller's promise.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), what, std::ptr::from_mut(request)) })
}

/// Any socket: what interfaces are asked through.
fn asking() -> io::Result<OwnedFd> {
    // SAFETY: no memory is handed over.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    done(fd)?;
    // SAFETY: the descriptor is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The MAC address of the interface of that number.
pub(crate) fn mac_of(interface: u32) -> io::Result<Mac> {
    let socket = asking()?;
    let mut request = request();
    request.ifr_ifru.ifru_ifindex = interface as libc::c_int;
    // SAFETY: it takes a number and gives a name.
    unsafe { ask(socket.as_fd(), libc::SIOCGIFNAME, &mut request)? };
    // SAFETY: it takes the name and gives an address.
    unsafe { ask(socket.as_fd(), libc::SIOCGIFHWADDR, &mut request)? };
    // SAFETY: the kernel has just written the address.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mac = Mac::default();
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from.cast_unsigned();
    }
    Ok(mac)
}

impl Tap {
    /// Makes the interface, without any address, and brings it up. Needs CAP_NET_ADMIN.
    pub(crate) fn open() -> Result<Self, String> {
        let mut options = File::options();
        options.read(true).write(true);
        let file = options
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|e| format!("cannot open {DEVICE}: {e}"))?;
        Self::set_up(file).map_err(|e| format!("cannot make a tap: {e}"))
    }

    fn set_up(file: File) -> io::Result<Self> {
        let mut request = request();
        for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: name and flags are filled in.
        unsafe { ask(file.as_fd(), libc::TUNSETIFF, &mut request)? };
        // SAFETY: the kernel has written the name, which ends with a zero.
        let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
        if let Ok(name) = name.to_str() {
            // Or the kernel would use it to look for routers: no harm, but no use either.
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            let _ = fs::write(path, "1");
        }
        let socket = asking()?;
        request.ifr_ifru.ifru_metric = FRAMES;
        // SAFETY: name and length are filled in.
        unsafe { ask(socket.as_fd(), libc::SIOCSIFTXQLEN, &mut request)? };
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as libc::c_short;
        // SAFETY: name and flags are filled in.
        unsafe { ask(socket.as_fd(), libc::SIOCSIFFLAGS, &mut request)? };
        // SAFETY: the name is filled in.
        unsafe { ask(socket.as_fd(), libc::SIOCGIFINDEX, &mut request)? };
        // SAFETY: the kernel has just written the number.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        let kept = outlive(file.as_fd()).ok();
        Ok(Self {
            file,
            index: index.cast_unsigned(),
            _kept: kept,
        })
    }

    /// The number of the interface.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Reads one frame: its length; none if there is no frame.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
