//! The calls that no safe wrapper offers. The only unsafe code of this crate.
#![allow(unsafe_code)]

use nix::{errno::Errno, libc};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Capabilities by their number in the kernel (`linux/capability.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Signals to processes of other users.
    Kill = 5,
    /// Change of user for a child.
    SetGid = 6,
    /// Change of user for a child.
    SetUid = 7,
    /// Addresses, routes, links.
    NetAdmin = 12,
    /// Packet sockets.
    NetRaw = 13,
    /// Locked memory.
    IpcLock = 14,
    /// Mounts.
    SysAdmin = 21,
    /// Real-time scheduling.
    SysNice = 23,
    /// The clock.
    SysTime = 25,
    /// Maps and programs of the kernel's virtual machine.
    Bpf = 39,
}

fn scheduler(policy: libc::c_int, priority: i32) -> io::Result<()> {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: pid 0 is the calling thread; `param` is a live, initialised sched_param.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// First in, first out at `priority` (1 to 99) for the calling thread; threads and children that it starts
/// are ordinary again.
pub fn scheduler_fifo(priority: i32) -> io::Result<()> {
    scheduler(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, priority)
}

/// As [`scheduler_fifo`], but children begin with it too.
pub fn scheduler_fifo_for_children(priority: i32) -> io::Result<()> {
    scheduler(libc::SCHED_FIFO, priority)
}

/// Only when nothing else wants the processor, for the calling thread.
pub fn scheduler_idle() -> io::Result<()> {
    scheduler(libc::SCHED_IDLE, 0)
}

/// Ordinary scheduling for the calling thread.
pub fn scheduler_normal() -> io::Result<()> {
    scheduler(libc::SCHED_OTHER, 0)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_VERSION_3: u32 = 0x2008_0522;

/// The calling thread's effective capabilities, a bit each.
pub fn capabilities() -> io::Result<u64> {
    let header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads one header and writes two data structs, both laid out as in the kernel.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    Errno::result(result).map_err(io::Error::from)?;
    Ok(u64::from(data[0].effective) | u64::from(data[1].effective) << 32)
}

/// Whether `capabilities` holds `capability`.
pub fn has(capabilities: u64, capability: Capability) -> bool {
    capabilities & 1 << (capability as u8) != 0
}

/// Gives up every capability of the calling thread but those of `keep` that it has.
pub fn keep_capabilities(keep: &[Capability]) -> io::Result<()> {
    let kept = capabilities()? & keep.iter().fold(0, |bits, c| bits | 1u64 << (*c as u8));
    let part = |bits: u64| {
        let bits = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        CapData {
            effective: bits,
            permitted: bits,
            inheritable: 0,
        }
    };
    let header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let data = [part(kept), part(kept >> 32)];
    // SAFETY: version 3 reads one header and two data structs, both laid out as in the kernel.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Takes every capability out of what programs started later may ever get.
pub fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: the call takes plain numbers.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(result) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break, // beyond the last one this kernel knows
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A descriptor that becomes readable when the process ends; it stays that process's even if the number is
/// given to another.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd).map_err(io::Error::from)?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just given this descriptor to us alone; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Who writes beyond the limit of a file's size (RLIMIT_FSIZE) gets the error EFBIG, and no signal.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, and no memory touched; it cannot fail for a signal that may be ignored.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Sends the Unix signal number `signal` to the process behind `pidfd`.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks for the same as kill(2); the rest are plain numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// What the kernel says of its clock (adjtimex(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelClock {
    /// By how much it is made to run faster, in parts of 10^9: frequency and tick together.
    pub rate_ppb: i64,
    /// What is left of a slew by the kernel itself.
    pub offset: i64,
    /// By how much it may be off, in microseconds.
    pub maxerror_us: i64,
}

/// Length of a tick that slews nothing, in microseconds, and what one microsecond of it changes, in parts of 10^9.
const TICK: (i64, i64) = (10_000, 100_000);

fn clock_adjust(timex: &mut libc::timex) -> io::Result<()> {
    // SAFETY: `timex` is a live, initialised timex.
    let result = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, timex) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

fn timex() -> libc::timex {
    // SAFETY: a timex is made of numbers alone; all zero is one that asks for nothing.
    unsafe { std::mem::zeroed() }
}

/// Reads what the kernel does with its clock; changes nothing.
pub fn kernel_clock() -> io::Result<KernelClock> {
    let mut timex = timex();
    clock_adjust(&mut timex)?;
    // In parts of 10^6, of which the lower 16 bits are a fraction.
    let frequency = (timex.freq * 1000 + (1 << 15)) >> 16;
    Ok(KernelClock {
        rate_ppb: frequency + (timex.tick - TICK.0) * TICK.1,
        offset: timex.offset,
        maxerror_us: timex.maxerror,
    })
}

/// Makes CLOCK_REALTIME run so much faster, in parts of 10^9, at most 500,000 either way. The kernel's own
/// loops are off, and it goes on calling the clock unsynchronised: nobody compares it with the world.
pub fn set_clock_rate(ppb: i64) -> io::Result<()> {
    let mut now = timex();
    clock_adjust(&mut now)?;
    let mut timex = timex();
    timex.modes = libc::ADJ_FREQUENCY | libc::ADJ_TICK | libc::ADJ_STATUS;
    timex.freq = ((ppb << 16) + 500) / 1000;
    timex.tick = TICK.0;
    timex.status = (now.status | libc::STA_UNSYNC) & !(libc::STA_PLL | libc::STA_FLL);
    clock_adjust(&mut timex)
}

/// Sets CLOCK_REALTIME forward (back, if negative) by so many nanoseconds.
pub fn step_clock(ns: i64) -> io::Result<()> {
    let mut timex = timex();
    timex.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    timex.time.tv_sec = ns.div_euclid(1_000_000_000);
    timex.time.tv_usec = ns.rem_euclid(1_000_000_000);
    clock_adjust(&mut timex)
}

/// Accepts a connection, non-blocking and close-on-exec; `WouldBlock` if none waits.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::sys::socket::{SockFlag, accept4};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The supplementary groups that the process at the other end of a Unix socket had when it connected (SO_PEERGROUPS).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    const MOST: usize = 1 << 16; // NGROUPS_MAX
    let mut groups = vec![0; 64];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(&groups[..])).unwrap_or(0);
        // SAFETY: the buffer is live and as long as `length` says; the kernel writes at most that and tells how much.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if count > groups.len() && count <= MOST => groups.resize(count, 0),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Lets group `gid` read and write `path`, beside owner and group of the file, whose own rights are these, too
/// (acl(5), as the kernel takes it).
pub fn admit_group(path: &std::path::Path, gid: libc::gid_t) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    const READ_WRITE: u16 = 6;
    const NOBODY: u32 = u32::MAX; // an entry that names nobody
    // ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_GROUP, ACL_MASK, ACL_OTHER.
    let entries: [(u16, u16, u32); 5] = [
        (0x01, READ_WRITE, NOBODY),
        (0x04, READ_WRITE, NOBODY),
        (0x08, READ_WRITE, gid),
        (0x10, READ_WRITE, NOBODY),
        (0x20, 0, NOBODY),
    ];
    let mut value = 2u32.to_le_bytes().to_vec(); // POSIX_ACL_XATTR_VERSION
    for (tag, rights, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&rights.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end with a zero byte, and the value is live and as long as is said.
    let result = unsafe {
        libc::setxattr(
            path.as_ptr(),
            c"system.posix_acl_access".as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// By how many seconds local time is ahead of UTC at `time`, in seconds since 1970.
pub fn local_offset(time: i64) -> i64 {
    // SAFETY: all fields of a tm are plain numbers and a pointer, for which zero is good.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of this frame.
    let found = unsafe { libc::localtime_r(&raw const time, &raw mut local) };
    if found.is_null() { 0 } else { local.tm_gmtoff }
}
