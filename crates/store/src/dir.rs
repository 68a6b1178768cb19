//! Directories as capabilities: who holds one can reach what is beneath it, and nothing else.
//!
//! Every path is resolved by the kernel from an open directory, with no symbolic link followed and no mount point
//! crossed; everything else works on a single name in an open directory. Nobody who can write in a set can thereby make
//! syncd read or write outside of it.

use crate::calls::Calls;
use filesync::{Node, Path, guard::Identity};
use rustix::{
    fs::{
        AtFlags, Dev, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, StatxFlags, fstat,
        fstatfs, fstatvfs, fsync, linkat, makedev, mkdirat, mknodat, open, openat2, readlinkat,
        renameat_with, statat, statx, symlinkat, syncfs, unlinkat,
    },
    io::Errno,
};
use std::{
    cell::RefCell,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    sync::Arc,
};

/// Other mounts count as outside: they come and go.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// None if it could mean anything but an entry of the directory itself.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let fine = !bytes.is_empty() && bytes != b"." && bytes != b"..";
        (fine && !bytes.contains(&b'/') && !bytes.contains(&0)).then_some(Self(bytes))
    }

    /// A name of standin's own making.
    pub(crate) fn made(text: &'a str) -> Self {
        debug_assert!(Self::new(text.as_bytes()).is_some());
        Self(text.as_bytes())
    }

    /// The last component of a path.
    pub fn last(path: &'a Path) -> Self {
        let bytes = path.as_bytes();
        let start = bytes.iter().rposition(|b| *b == b'/').map_or(0, |s| s + 1);
        Self(bytes.get(start..).unwrap_or_default())
    }
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    calls: Arc<Calls>,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A kernel may ask to try again when something was renamed meanwhile.
fn resolve(dir: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
    for _ in 0..16 {
        match openat2(dir, path, flags, Mode::empty(), BENEATH) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

impl Dir {
    /// The one place where a path of the machine is taken, as the operator wrote it.
    pub fn root(path: &std::path::Path, calls: Arc<Calls>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty())?;
        Ok(Self { fd, calls })
    }

    /// A directory beneath it.
    pub fn beneath(&self, path: &Path) -> io::Result<Self> {
        self.directory(path.as_bytes())
    }

    /// A directory in it.
    pub fn child(&self, name: Name) -> io::Result<Self> {
        self.directory(name.0)
    }

    /// Itself, opened once more.
    pub(crate) fn again(&self) -> io::Result<Self> {
        self.directory(b".")
    }

    /// The directory that a path is in, and its name there.
    pub fn place<'p>(&self, path: &'p Path) -> io::Result<(Self, Name<'p>)> {
        let parent = path.parent();
        let parent = parent.as_ref().map_or(&b"."[..], Path::as_bytes);
        Ok((self.directory(parent)?, Name::last(path)))
    }

    fn directory(&self, path: &[u8]) -> io::Result<Self> {
        let fd = resolve(&self.fd, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let calls = Arc::clone(&self.calls);
        Ok(Self { fd, calls })
    }

    /// A regular file in it, to be read.
    pub fn open(&self, name: Name) -> io::Result<File> {
        Ok(self.open_for(name, OFlags::RDONLY)?.0)
    }

    /// The same, and what it is like.
    pub(crate) fn open_and_stat(&self, name: Name) -> io::Result<(File, Stat)> {
        self.open_for(name, OFlags::RDONLY)
    }

    /// A regular file in it, to be read and written.
    pub(crate) fn open_to_write(&self, name: Name) -> io::Result<File> {
        Ok(self.open_for(name, OFlags::RDWR)?.0)
    }

    fn open_for(&self, name: Name, flags: OFlags) -> io::Result<(File, Stat)> {
        // Not to wait for a writer if somebody just put a pipe there.
        let fd = resolve(&self.fd, name.0, flags | OFlags::NONBLOCK)?;
        let stat = fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("no regular file any more"));
        }
        Ok((File::from(fd), stat))
    }

    /// A directory or regular file in it, whichever `node` is, to be given other metadata.
    pub(crate) fn open_to_give(&self, name: Name, node: &Node) -> io::Result<OwnedFd> {
        match node.is_directory() {
            true => Ok(self.child(name)?.fd),
            false => Ok(self.open(name)?.into()),
        }
    }

    /// Whether each name that comes or goes changes the times of the directory, at once and for all to see: so it is
    /// with these file systems; of others, and of those on other machines, nothing is assumed.
    pub(crate) fn tells_of_names(&self) -> io::Result<bool> {
        const EXT: u64 = 0xef53;
        const XFS: u64 = 0x5846_5342;
        const BTRFS: u64 = 0x9123_683e;
        const F2FS: u64 = 0xf2f5_2010;
        const TMPFS: u64 = 0x0102_1994;
        let kind = u64::try_from(fstatfs(&self.fd)?.f_type).unwrap_or(0);
        Ok([EXT, XFS, BTRFS, F2FS, TMPFS].contains(&kind))
    }

    /// Its change time in nanoseconds since 1970.
    pub(crate) fn changed(&self) -> io::Result<i64> {
        let seen = self.stat()?;
        let nanos = i64::try_from(seen.st_ctime_nsec).unwrap_or(0);
        Ok(seen
            .st_ctime
            .saturating_mul(1_000_000_000)
            .saturating_add(nanos))
    }

    /// How this directory is known again.
    pub(crate) fn identity(&self) -> io::Result<Identity> {
        identity(&self.fd)
    }

    /// What is in it, sorted.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if Name::new(&name).is_some() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Itself.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(fstat(&self.fd)?)
    }

    /// What is at a name; none if there is nothing.
    pub fn stat_of(&self, name: Name) -> io::Result<Option<Stat>> {
        match statat(&self.fd, name.0, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Where a symbolic link points.
    pub fn target(&self, name: Name) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.fd, name.0, Vec::new())?.into_bytes())
    }

    /// Names as they go to the kernel, for what [`Dir`] has no word for.
    pub(crate) fn bytes<'n>(&self, name: Name<'n>) -> &'n [u8] {
        name.0
    }

    /// See [`Calls`].
    pub(crate) fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// A new, empty file that nobody else may open.
    pub fn create(&self, name: Name) -> io::Result<File> {
        self.create_as(name, 0o600)
    }

    /// A new, empty file with no more than these permissions.
    pub(crate) fn create_as(&self, name: Name, mode: u16) -> io::Result<File> {
        self.calls.one("create")?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(u32::from(mode) & 0o777);
        let fd = rustix::fs::openat(&self.fd, name.0, flags, mode)?;
        Ok(File::from(fd))
    }

    /// A new directory that nobody else may enter.
    pub fn create_directory(&self, name: Name) -> io::Result<()> {
        self.calls.one("mkdir")?;
        Ok(mkdirat(&self.fd, name.0, Mode::RWXU)?)
    }

    /// A new symbolic link.
    pub fn create_symlink(&self, name: Name, target: &[u8]) -> io::Result<()> {
        self.calls.one("symlink")?;
        Ok(symlinkat(target, &self.fd, name.0)?)
    }

    /// A new named pipe.
    pub fn create_fifo(&self, name: Name) -> io::Result<()> {
        self.node(name, FileType::Fifo, 0)
    }

    /// A new device.
    pub fn create_device(&self, name: Name, block: bool, major: u32, minor: u32) -> io::Result<()> {
        let kind = if block {
            FileType::BlockDevice
        } else {
            FileType::CharacterDevice
        };
        self.node(name, kind, makedev(major, minor))
    }

    fn node(&self, name: Name, kind: FileType, device: Dev) -> io::Result<()> {
        self.calls.one("mknod")?;
        Ok(mknodat(&self.fd, name.0, kind, Mode::RUSR, device)?)
    }

    /// One more name for what is at `name`, which must be no directory.
    pub fn link(&self, name: Name, to: &Self, new: Name) -> io::Result<()> {
        self.calls.one("link")?;
        Ok(linkat(&self.fd, name.0, &to.fd, new.0, AtFlags::empty())?)
    }

    /// Moves what is at `name`.
    pub fn rename(&self, name: Name, to: &Self, new: Name, flags: RenameFlags) -> io::Result<()> {
        self.calls.one("rename")?;
        Ok(renameat_with(&self.fd, name.0, &to.fd, new.0, flags)?)
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, name: Name) -> io::Result<()> {
        self.calls.one("unlink")?;
        Ok(unlinkat(&self.fd, name.0, AtFlags::empty())?)
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, name: Name) -> io::Result<()> {
        self.calls.one("rmdir")?;
        Ok(unlinkat(&self.fd, name.0, AtFlags::REMOVEDIR)?)
    }

    /// Its names are on the disk when this returns.
    pub fn sync(&self) -> io::Result<()> {
        self.calls.one("fsync")?;
        Ok(fsync(&self.fd)?)
    }

    /// All of its file system is on the disk when this returns.
    pub fn sync_all(&self) -> io::Result<()> {
        self.calls.one("syncfs")?;
        Ok(syncfs(&self.fd)?)
    }
}

/// Finds the directories of paths; the next path is often in the directory of the one before.
#[derive(Default)]
pub(crate) struct Places(RefCell<Option<(Option<Path>, Rc<Dir>)>>);

impl Places {
    /// The directory that a path beneath `root` is in, and its name there.
    pub(crate) fn of<'p>(&self, root: &Dir, path: &'p Path) -> io::Result<(Rc<Dir>, Name<'p>)> {
        let (parent, name) = (path.parent(), Name::last(path));
        let mut last = self.0.borrow_mut();
        if let Some((known, dir)) = &*last
            && *known == parent
        {
            return Ok((Rc::clone(dir), name));
        }
        let dir = Rc::new(root.place(path)?.0);
        *last = Some((parent, Rc::clone(&dir)));
        Ok((dir, name))
    }

    /// What is at a path beneath `root`; none if there is nothing, or no way to it.
    pub(crate) fn stat(&self, root: &Dir, path: &Path) -> io::Result<Option<Stat>> {
        match self.of(root, path) {
            Err(e) if is_no_way(&e) => Ok(None),
            found => {
                let (dir, name) = found?;
                dir.stat_of(name)
            }
        }
    }

    /// Something else may be there by now.
    pub(crate) fn forget(&self) {
        self.0.take();
    }
}

/// There is no such directory, or something that is none or a symbolic link stands there.
pub(crate) fn is_no_way(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Makes a directory of standin's own with those above it, for standin alone.
pub(crate) fn own_directory(path: &std::path::Path, calls: Arc<Calls>) -> io::Result<Dir> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)?;
    Dir::root(path, calls)
}

/// How a directory or a file is known again. Of some file systems the identity lasts only until they are mounted anew.
pub(crate) fn identity(file: &impl AsFd) -> io::Result<Identity> {
    const XFS: u64 = 0x5846_5342;
    const OVERLAY: u64 = 0x794c_7630;
    const TMPFS: u64 = 0x0102_1994;
    let kind = u64::try_from(fstatfs(file)?.f_type).unwrap_or(0);
    let seen = statx(
        file,
        "",
        AtFlags::EMPTY_PATH,
        StatxFlags::BTIME | StatxFlags::INO,
    )?;
    let born = (seen.stx_mask & StatxFlags::BTIME.bits() != 0).then_some(seen.stx_btime);
    Ok(Identity {
        filesystem: match [XFS, OVERLAY, TMPFS].contains(&kind) {
            true => 0,
            false => fstatvfs(file)?.f_fsid,
        },
        inode: seen.stx_ino,
        born: born.map_or(0, |born| {
            born.tv_sec
                .saturating_mul(1_000_000_000)
                .saturating_add(born.tv_nsec.into())
        }),
    })
}
