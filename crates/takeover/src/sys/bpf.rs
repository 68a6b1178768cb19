//! bpf(2): maps, programs and their links to interfaces; and the file system that they are pinned in.
//!
//! Every call gets its attributes as one zeroed block, laid out as in `linux/bpf.h`; what a call points to
//! is checked here against the sizes that the kernel will read or write.

use nix::libc;
use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_INFO: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;
const SCHED_CLS: u32 = 3;
const LINK_TCX: u32 = 11;
/// Before all others: a program that accepts a packet for good would keep it from ours.
const BEFORE: u32 = 1 << 3;
/// Most programs that the kernel allows in one place.
const PLACES: usize = 64;

const ATTRIBUTES: usize = 128;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Packets that arrive (`BPF_TCX_INGRESS`).
    Ingress = 46,
    /// Packets that leave (`BPF_TCX_EGRESS`).
    Egress = 47,
}

/// The attributes of a call.
struct Attributes([u8; ATTRIBUTES]);

impl Attributes {
    fn new() -> Self {
        Self([0; ATTRIBUTES])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: &OwnedFd) -> Self {
        self.u32(at, fd.as_raw_fd().cast_unsigned())
    }

    fn pointer<T>(mut self, at: usize, to: *const T) -> Self {
        self.0[at..at + 8].copy_from_slice(&(to as u64).to_ne_bytes());
        self
    }

    fn name(mut self, at: usize) -> Self {
        self.0[at..at + 7].copy_from_slice(b"standin");
        self
    }

    fn get(&self, at: usize) -> u32 {
        word(&self.0, at)
    }

    /// # Safety
    /// Every pointer in the attributes must be valid for what the command reads or writes there.
    unsafe fn call(&mut self, command: libc::c_long) -> io::Result<i32> {
        // SAFETY: the block is as long as stated; the pointers in it are the caller's promise.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), ATTRIBUTES) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        i32::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// # Safety
    /// As [`Self::call`]; the command must return a new descriptor.
    unsafe fn call_for_fd(&mut self, command: libc::c_long) -> io::Result<OwnedFd> {
        // SAFETY: the caller's promise.
        let fd = unsafe { self.call(command)? };
        // SAFETY: the kernel has just given this descriptor to us alone; it is close-on-exec.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// What the kernel says about a map, program or link: its first words.
fn info(fd: &OwnedFd) -> io::Result<[u8; 64]> {
    let mut info = [0; 64];
    let mut attributes = Attributes::new()
        .fd(0, fd)
        .u32(4, info.len() as u32)
        .pointer(8, info.as_mut_ptr());
    // SAFETY: the kernel writes at most the 64 bytes stated.
    unsafe { attributes.call(OBJ_INFO)? };
    Ok(info)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn pin(fd: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = Attributes::new().pointer(0, path.as_ptr()).fd(8, fd);
    // SAFETY: the path ends with a zero and outlives the call.
    unsafe { attributes.call(OBJ_PIN) }.map(drop)
}

fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = Attributes::new().pointer(0, path.as_ptr());
    // SAFETY: the path ends with a zero and outlives the call, which returns a descriptor.
    unsafe { attributes.call_for_fd(OBJ_GET) }
}

/// A table of the kernel, with keys and values of fixed size.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    key: usize,
    value: usize,
    entries: usize,
}

impl Map {
    fn new(kind: u32, key: usize, value: usize, entries: usize, flags: u32) -> io::Result<Self> {
        let mut attributes = Attributes::new()
            .u32(0, kind)
            .u32(4, key as u32)
            .u32(8, value as u32)
            .u32(12, entries as u32)
            .u32(16, flags)
            .name(28);
        // SAFETY: the attributes hold no pointer, and the call returns a descriptor.
        let fd = unsafe { attributes.call_for_fd(MAP_CREATE)? };
        Ok(Self {
            fd,
            key,
            value,
            entries,
        })
    }

    /// A table by key; its entries take memory only when they are there.
    pub(crate) fn hash(key: usize, value: usize, entries: usize) -> io::Result<Self> {
        Self::new(HASH, key, value, entries, NO_PREALLOC)
    }

    /// A table by place (a `u32`), whose memory may be shared with this process.
    pub(crate) fn array(value: usize, entries: usize) -> io::Result<Self> {
        Self::new(ARRAY, 4, value, entries, MMAPABLE)
    }

    /// An array that was pinned; an error if it has another shape.
    pub(crate) fn pinned_array(path: &Path, value: usize) -> io::Result<Self> {
        let fd = pinned(path)?;
        let about = info(&fd)?;
        let entries = word(&about, 16) as usize;
        let shape = (word(&about, 0), word(&about, 8), word(&about, 12) as usize);
        if shape != (ARRAY, 4, value) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            fd,
            key: 4,
            value,
            entries,
        })
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    pub(crate) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.fd, path)
    }

    fn attributes(&self, key: &[u8], value: *const u8) -> io::Result<Attributes> {
        if key.len() != self.key {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Attributes::new()
            .fd(0, &self.fd)
            .pointer(8, key.as_ptr())
            .pointer(16, value))
    }

    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if value.len() != self.value {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = self.attributes(key, value.as_ptr())?;
        // SAFETY: key and value have the map's sizes.
        unsafe { attributes.call(MAP_UPDATE) }.map(drop)
    }

    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.value];
        let mut attributes = self.attributes(key, value.as_mut_ptr())?;
        // SAFETY: key and value have the map's sizes.
        unsafe { attributes.call(MAP_LOOKUP)? };
        Ok(value)
    }

    /// Removes an entry; one that is not there is no error.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<()> {
        let mut attributes = self.attributes(key, std::ptr::null())?;
        // SAFETY: the key has the map's size; there is no value.
        match unsafe { attributes.call(MAP_DELETE) } {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The array's memory itself: what is stored there, the programs see.
    pub(crate) fn memory(&self) -> io::Result<Memory> {
        let stride = self.value.next_multiple_of(size_of::<u64>());
        let length = stride * self.entries;
        // SAFETY: a new mapping, anywhere.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Memory { at, stride, length })
    }
}

/// The memory of an array, as words of 64 bits.
#[derive(Debug)]
pub(crate) struct Memory {
    at: NonNull<u8>,
    stride: usize,
    length: usize,
}

// SAFETY: the memory belongs to the process, not to a thread, and is used through atomics only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// The word `number` of the entry `place`.
    ///
    /// # Panics
    /// If there is no such word.
    pub(crate) fn word(&self, place: usize, number: usize) -> &AtomicU64 {
        let offset = number * size_of::<u64>();
        assert!(offset + size_of::<u64>() <= self.stride);
        let at = place * self.stride + offset;
        assert!(at + size_of::<u64>() <= self.length);
        // SAFETY: inside the mapping and aligned to 8: mapping, stride and offset are. It lives as long as
        // `self`, and all in this process use it as an atomic.
        unsafe { AtomicU64::from_ptr(self.at.as_ptr().add(at).cast()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// A program for packets, checked by the kernel.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
    id: u32,
}

impl Program {
    /// Loads it. A refusal carries the last line of what the kernel's verifier said.
    pub(crate) fn load(code: &[u8]) -> io::Result<Self> {
        let mut attributes = Self::attributes(code);
        // SAFETY: code and licence are as long as stated or end with a zero, and outlive the call.
        let loaded = unsafe { attributes.call_for_fd(PROG_LOAD) };
        let fd = match loaded {
            Ok(fd) => fd,
            Err(e) => return Err(Self::refusal(code, e)),
        };
        let id = word(&info(&fd)?, 4);
        Ok(Self { fd, id })
    }

    pub(crate) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Its number in the kernel.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// What the program says to a frame, without sending it anywhere.
    #[cfg(test)]
    pub(crate) fn try_on(&self, frame: &[u8]) -> io::Result<i32> {
        const PROG_TEST_RUN: libc::c_long = 10;
        let mut attributes = Attributes::new()
            .fd(0, &self.fd)
            .u32(8, frame.len() as u32)
            .pointer(16, frame.as_ptr());
        // SAFETY: the frame is as long as stated; no output is asked for.
        unsafe { attributes.call(PROG_TEST_RUN)? };
        Ok(attributes.get(4).cast_signed())
    }

    fn attributes(code: &[u8]) -> Attributes {
        Attributes::new()
            .u32(0, SCHED_CLS)
            .u32(4, (code.len() / 8) as u32)
            .pointer(8, code.as_ptr())
            .pointer(16, c"Dual MIT/GPL".as_ptr())
            .name(48)
    }

    /// Loads it once more, for the words of the refusal.
    fn refusal(code: &[u8], error: io::Error) -> io::Error {
        let mut log = vec![0u8; 64 * 1024];
        let mut attributes = Self::attributes(code)
            .u32(24, 1)
            .u32(28, log.len() as u32)
            .pointer(32, log.as_mut_ptr());
        // SAFETY: as in `load`; the log is as long as stated. A descriptor is closed at once.
        let _ = unsafe { attributes.call_for_fd(PROG_LOAD) };
        let text = String::from_utf8_lossy(&log);
        let mut said = text.trim_end_matches('\0').lines();
        match said.rfind(|line| !line.is_empty() && !line.starts_with("processed")) {
            Some(line) => io::Error::new(error.kind(), format!("{error}: {line}")),
            None => error,
        }
    }
}

/// A program's place at an interface. It ends when neither a descriptor nor a pin holds it.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    id: u32,
}

impl Link {
    pub(crate) fn create(interface: u32, side: Side, program: &Program) -> io::Result<Self> {
        let mut attributes = Attributes::new()
            .fd(0, &program.fd)
            .u32(4, interface)
            .u32(8, side as u32)
            .u32(12, BEFORE);
        // SAFETY: the attributes hold no pointer, and the call returns a descriptor.
        let fd = unsafe { attributes.call_for_fd(LINK_CREATE)? };
        Self::known(fd)
    }

    /// A link that was pinned.
    pub(crate) fn pinned(path: &Path) -> io::Result<Self> {
        Self::known(pinned(path)?)
    }

    fn known(fd: OwnedFd) -> io::Result<Self> {
        let about = info(&fd)?;
        if word(&about, 0) != LINK_TCX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let id = word(&about, 4);
        Ok(Self { fd, id })
    }

    /// Puts another program in the place, with no packet between the two.
    pub(crate) fn update(&self, program: &Program) -> io::Result<()> {
        let mut attributes = Attributes::new().fd(0, &self.fd).fd(4, &program.fd);
        // SAFETY: the attributes hold no pointer.
        unsafe { attributes.call(LINK_UPDATE) }.map(drop)
    }

    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.fd, path)
    }

    /// Takes the program off the interface, as another program might.
    #[cfg(test)]
    pub(crate) fn detach(&self) -> io::Result<()> {
        const LINK_DETACH: libc::c_long = 34;
        let mut attributes = Attributes::new().fd(0, &self.fd);
        // SAFETY: the attributes hold no pointer.
        unsafe { attributes.call(LINK_DETACH) }.map(drop)
    }
}

/// What is attached to one side of an interface of this network namespace, in order.
#[derive(Debug)]
pub(crate) struct Attached(Vec<(u32, u32)>);

impl Attached {
    pub(crate) fn query(interface: u32, side: Side) -> io::Result<Self> {
        let mut programs = [0u32; PLACES];
        let mut links = [0u32; PLACES];
        let mut attributes = Attributes::new()
            .u32(0, interface)
            .u32(4, side as u32)
            .pointer(16, programs.as_mut_ptr())
            .u32(24, PLACES as u32)
            .pointer(40, links.as_mut_ptr());
        // SAFETY: the kernel writes at most as many words as stated to either.
        match unsafe { attributes.call(PROG_QUERY) } {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self(Vec::new())),
            result => result?,
        };
        let count = (attributes.get(24) as usize).min(PLACES);
        Ok(Self(links.into_iter().zip(programs).take(count).collect()))
    }

    /// How many programs are here.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this link is here, with whatever program.
    pub(crate) fn has(&self, link: &Link) -> bool {
        self.0.iter().any(|(l, _)| *l == link.id)
    }

    /// Whether this link is here and carries this program.
    pub(crate) fn carries(&self, link: &Link, program: &Program) -> bool {
        self.0.contains(&(link.id, program.id))
    }
}
