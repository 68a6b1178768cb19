//! A file made ready out of sight: contents, then all it has, then looked at once more.

use crate::{
    attributes, contents,
    dir::{Dir, Name},
    filling::Filling,
    parts::Known,
    sight::{self, Found},
    times::Times,
};
use filesync::{Digest, Kind, Node, Operation, Path};
use rustix::fs::{FileType, RenameFlags, fstat, ftruncate};
use std::{fs::File, io};

/// Where contents come from that are not here.
pub trait Contents {
    /// All of a small file in memory, if this one is small; they are checked before anything is written.
    fn small(&mut self, _path: &Path, _node: &Node) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Whether it can go on with a file that has some of the contents at their places, from a run that was cut off.
    fn resumes(&self) -> bool {
        false
    }

    /// Writes the contents of the file `node`, which the other replica has at `path`, `into` an empty file, or see
    /// [`Contents::resumes`]. They are checked afterwards, and whatever is wrong with them the file here stays as it is.
    fn bring(&mut self, path: &Path, node: &Node, into: &mut Filling<'_>) -> io::Result<()>;

    /// Further operations, once all before them were made ready; none: that was all.
    fn more(&mut self) -> Vec<Operation> {
        Vec::new()
    }
}

/// A file of which so many bytes are to come is kept if the run ends before all of it is here,
const LARGE: u64 = 1 << 20;
/// under such a name and its digest while it comes,
const COMING: &str = "part-";
/// and such a one when that run is over,
const LEFT: &str = "left-";
/// for so long.
const WEEK: i64 = 7 * 24 * 3600;

/// A new directory has such a name, and whatever is in it was made ready there.
const TREE: &str = "new-";

/// Something in the stage, under a random name of always the same length, or one that tells what it will be.
pub(crate) struct Temp(String);

impl Temp {
    pub(crate) fn new() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }

    /// Of a new directory with what will be in it.
    pub(crate) fn tree() -> io::Result<Self> {
        Ok(Self(format!("{TREE}{}", Self::new()?.0)))
    }

    pub(crate) fn is_tree(&self) -> bool {
        is_tree(self.0.as_bytes())
    }

    pub(crate) fn name(&self) -> Name<'_> {
        Name::made(&self.0)
    }

    /// Not needed any more.
    pub(crate) fn discard(&self, stage: &Dir) -> io::Result<()> {
        match self.is_tree() {
            true => discard_all(stage, self.name()),
            false => discard(stage, self.name()),
        }
    }
}

/// Whether a name in the stage is that of a new directory.
pub(crate) fn is_tree(name: &[u8]) -> bool {
    name.starts_with(TREE.as_bytes())
}

/// What was made ready under this name is not needed any more.
pub(crate) fn discard(dir: &Dir, name: Name) -> io::Result<()> {
    match dir.stat_of(name)? {
        None => Ok(()),
        Some(s) if FileType::from_raw_mode(s.st_mode) == FileType::Directory => {
            dir.remove_directory(name)
        }
        Some(_) => dir.unlink(name),
    }
}

/// The same, with all that is in it.
pub(crate) fn discard_all(dir: &Dir, name: Name) -> io::Result<()> {
    match discard(dir, name) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let child = dir.child(name)?;
            for left in child.names()? {
                Name::new(&left).map_or(Ok(()), |name| discard_all(&child, name))?;
            }
            dir.remove_directory(name)
        }
        other => other,
    }
}

/// What was on its way when a former run ended; whether it is of use to this one.
pub(crate) fn leave(stage: &Dir, name: &[u8]) -> io::Result<bool> {
    let (Ok(text), Some(here)) = (std::str::from_utf8(name), Name::new(name)) else {
        return Ok(false);
    };
    let (coming, left) = (text.strip_prefix(COMING), text.strip_prefix(LEFT));
    let Some(stat) = stage.stat_of(here)?.filter(|_| coming.or(left).is_some()) else {
        return Ok(false);
    };
    let now = stage.stat()?.st_ctime; // it was just given its mode
    let fresh = stat.st_ctime.saturating_add(WEEK) > now;
    let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !file || stat.st_size == 0 || !fresh {
        return Ok(false);
    }
    if let Some(digest) = coming {
        let left = format!("{LEFT}{digest}");
        stage.rename(here, stage, Name::made(&left), RenameFlags::empty())?;
    }
    Ok(true)
}

/// A large file that is to come, with what a former run got of it; none if it comes to another path as well.
fn coming(stage: &Dir, digest: &Digest) -> io::Result<Option<(Temp, File)>> {
    let digest = blake3::Hash::from_bytes(digest.0).to_hex();
    let (left, temp) = (format!("{LEFT}{digest}"), Temp(format!("{COMING}{digest}")));
    let (left, name) = (Name::made(&left), temp.name());
    if stage.stat_of(name)?.is_some() {
        return Ok(None);
    }
    if stage.stat_of(left)?.is_some() {
        stage.rename(left, stage, name, RenameFlags::empty())?;
        match stage.open_to_write(name) {
            Ok(file) => return Ok(Some((temp, file))),
            Err(_) => stage.unlink(name)?,
        }
    }
    let file = stage.create(name)?;
    Ok(Some((temp, file)))
}

/// What came is of use to the next run: it is not wrong, and there is room for it.
fn is_of_use(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{InvalidData, QuotaExceeded, StorageFull};
    let kind = error.downcast_ref().map(io::Error::kind);
    let spoilt = matches!(kind, Some(InvalidData | QuotaExceeded | StorageFull));
    !spoilt && error.source().is_none_or(is_of_use)
}

/// Makes `node` ready, with contents from a file here, if there is one, or else from `contents`; `times` can be held.
pub(crate) fn make(
    stage: &Dir,
    times: &Times,
    path: &Path,
    node: &Node,
    local: Option<File>,
    contents: &mut dyn Contents,
) -> io::Result<Temp> {
    let begun = match node.kind {
        Kind::File { size, digest } if size >= LARGE && local.is_none() && contents.resumes() => {
            coming(stage, &digest)?
        }
        _ => None,
    };
    let resumes = begun.is_some();
    let (temp, begun) = match begun {
        Some((temp, file)) => (temp, Some(file)),
        None => (Temp::new()?, None),
    };
    match fill(stage, times, &temp, path, node, begun, local, contents) {
        Ok(()) => Ok(temp),
        Err(e) => {
            let came = || matches!(stage.stat_of(temp.name()), Ok(Some(s)) if s.st_size > 0);
            if !(resumes && is_of_use(&e) && came()) {
                let _ = temp.discard(stage); // the next run sweeps
            }
            Err(e)
        }
    }
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

const LESS: fn() -> io::Error = || wrong("the file system cannot hold all that it has");
const OTHER: fn() -> io::Error = || wrong("other contents came than were announced");

#[allow(clippy::too_many_arguments)]
fn fill(
    stage: &Dir,
    times: &Times,
    temp: &Temp,
    path: &Path,
    node: &Node,
    begun: Option<File>,
    local: Option<File>,
    contents: &mut dyn Contents,
) -> io::Result<()> {
    let Kind::File { size, digest } = node.kind else {
        return make_other(stage, times, temp.name(), node);
    };
    let wanted = (size, digest);
    let file = match begun {
        Some(file) => file,
        None => stage.create(temp.name())?,
    };
    let copied = match &local {
        None => false,
        Some(from) => {
            contents::copy(from, &file, stage.calls())?;
            contents::digest_and_punch(&file, &Known::default())? == wanted
        }
    };
    if !copied {
        if local.is_some() {
            ftruncate(&file, 0)?;
        }
        stage.calls().one("bring")?;
        let mut filling = Filling::new(&file, size)?;
        contents.bring(path, node, &mut filling)?;
        if filling.finish()? != wanted {
            return Err(OTHER());
        }
    }
    attributes::give(&file, node, stage.calls())?;
    is_now(times, node, &made(&file, node)?)
}

fn is_now(times: &Times, node: &Node, made: &Node) -> io::Result<()> {
    match times.is(made, node) {
        true => Ok(()),
        false => Err(LESS()),
    }
}

/// Makes ready what is no file, under this name.
pub(crate) fn make_other(dir: &Dir, times: &Times, name: Name, node: &Node) -> io::Result<()> {
    match &node.kind {
        Kind::File { .. } | Kind::HardLink { .. } => {
            return Err(io::Error::other("a further name of no file"));
        }
        Kind::Symlink { target } => dir.create_symlink(name, target)?,
        Kind::Device {
            block,
            major,
            minor,
        } => dir.create_device(name, *block, *major, *minor)?,
        Kind::Directory => dir.create_directory(name)?,
        Kind::Fifo => dir.create_fifo(name)?,
    }
    match node.is_directory() {
        true => attributes::give(dir.child(name)?, node, dir.calls())?,
        false => attributes::give_unopened(dir, name, node)?,
    }
    match sight::see(dir, name)? {
        Found::Node(made, _) => is_now(times, node, &made),
        _ => Err(io::Error::other("it is gone from the stage")),
    }
}

/// What a staged file has become.
fn made(file: &File, node: &Node) -> io::Result<Node> {
    Ok(sight::node(
        node.kind.clone(),
        &fstat(file)?,
        attributes::read(file)?,
    ))
}

/// Makes a file ready whose contents are these, under this name, in as few calls as it takes.
pub(crate) fn make_small(
    dir: &Dir,
    times: &Times,
    name: Name,
    node: &Node,
    bytes: &[u8],
) -> io::Result<()> {
    let (size, digest) = contents::digest_of(bytes);
    if node.kind != (Kind::File { size, digest }) {
        return Err(OTHER());
    }
    let file = dir.create_as(name, node.mode)?;
    if !bytes.is_empty() {
        dir.calls().one("write")?;
        contents::write_all(&file, bytes)?;
    }
    // Most files have nothing that a new one has not.
    attributes::give_time(&file, node, dir.calls())?;
    if !times.is(&made(&file, node)?, node) {
        attributes::give(&file, node, dir.calls())?;
        is_now(times, node, &made(&file, node)?)?;
    }
    Ok(())
}
