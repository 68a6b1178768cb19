//! A file made ready out of sight: contents, then all it has, then looked at once more.

use crate::{
    attributes, contents,
    dir::{Dir, Name},
    filling::Filling,
    sight::{self, Found},
};
use filesync::{Kind, Node, Path};
use rustix::fs::{FileType, fstat, ftruncate};
use std::{fs::File, io};

/// Where contents come from that are not here.
pub trait Contents {
    /// All of a small file in memory, if this one is small; they are checked before anything is written.
    fn small(&mut self, _path: &Path, _node: &Node) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Writes the contents of the file `node`, which the other replica has at `path`, `into` an empty file. They are
    /// checked afterwards, and whatever is wrong with them the file here stays as it is.
    fn bring(&mut self, path: &Path, node: &Node, into: &mut Filling<'_>) -> io::Result<()>;
}

/// Something in the stage, under a random name of always the same length.
pub(crate) struct Temp(String);

impl Temp {
    pub(crate) fn new() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }

    pub(crate) fn name(&self) -> Name<'_> {
        Name::made(&self.0)
    }

    /// Not needed any more.
    pub(crate) fn discard(&self, stage: &Dir) -> io::Result<()> {
        match stage.stat_of(self.name())? {
            None => Ok(()),
            Some(s) if FileType::from_raw_mode(s.st_mode) == FileType::Directory => {
                stage.remove_directory(self.name())
            }
            Some(_) => stage.unlink(self.name()),
        }
    }
}

/// Makes `node` ready, with contents from a file here, if there is one, or else from `contents`.
pub(crate) fn make(
    stage: &Dir,
    path: &Path,
    node: &Node,
    local: Option<File>,
    contents: &mut dyn Contents,
) -> io::Result<Temp> {
    let temp = Temp::new()?;
    match fill(stage, &temp, path, node, local, contents) {
        Ok(()) => Ok(temp),
        Err(e) => {
            let _ = temp.discard(stage); // the next run sweeps
            Err(e)
        }
    }
}

const LESS: fn() -> io::Error = || io::Error::other("the file system cannot hold all that it has");
const OTHER: fn() -> io::Error = || io::Error::other("other contents came than were announced");

fn fill(
    stage: &Dir,
    temp: &Temp,
    path: &Path,
    node: &Node,
    local: Option<File>,
    contents: &mut dyn Contents,
) -> io::Result<()> {
    let name = temp.name();
    let made = match &node.kind {
        Kind::File { size, digest } => {
            let wanted = (*size, *digest);
            let file = stage.create(name)?;
            let copied = match local {
                None => false,
                Some(from) => {
                    contents::copy(&from, &file, stage.calls())?;
                    contents::digest_and_punch(&file)? == wanted
                }
            };
            if !copied {
                ftruncate(&file, 0)?;
                stage.calls().one("bring")?;
                let mut filling = Filling::new(&file);
                contents.bring(path, node, &mut filling)?;
                if filling.finish()? != wanted {
                    return Err(OTHER());
                }
            }
            attributes::give(&file, node, stage.calls())?;
            made(&file, node)?
        }
        Kind::HardLink { .. } => return Err(io::Error::other("a further name of no file")),
        other => {
            match other {
                Kind::Symlink { target } => stage.create_symlink(name, target)?,
                Kind::Device {
                    block,
                    major,
                    minor,
                } => {
                    stage.create_device(name, *block, *major, *minor)?;
                }
                Kind::Directory => stage.create_directory(name)?,
                _ => stage.create_fifo(name)?,
            }
            match other {
                Kind::Directory => attributes::give(stage.child(name)?, node, stage.calls())?,
                _ => attributes::give_unopened(stage, name, node)?,
            }
            match sight::see(stage, name)? {
                Found::Node(node, _) => node,
                _ => return Err(io::Error::other("it is gone from the stage")),
            }
        }
    };
    if made == *node { Ok(()) } else { Err(LESS()) }
}

/// What a staged file has become.
fn made(file: &File, node: &Node) -> io::Result<Node> {
    let stat = sight::stat(&fstat(file)?);
    Ok(sight::node(
        node.kind.clone(),
        &stat,
        attributes::read(file)?,
    ))
}

/// Makes a file ready whose contents are these, in as few calls as it takes.
pub(crate) fn make_small(stage: &Dir, node: &Node, bytes: &[u8]) -> io::Result<Temp> {
    let (size, digest) = contents::digest_of(bytes);
    if node.kind != (Kind::File { size, digest }) {
        return Err(OTHER());
    }
    let temp = Temp::new()?;
    let fill = || -> io::Result<()> {
        let file = stage.create_as(temp.name(), node.mode)?;
        if !bytes.is_empty() {
            stage.calls().one("write")?;
            contents::write_all(&file, bytes)?;
        }
        // Most files have nothing that a new one has not.
        attributes::give_time(&file, node, stage.calls())?;
        if made(&file, node)? != *node {
            attributes::give(&file, node, stage.calls())?;
            if made(&file, node)? != *node {
                return Err(LESS());
            }
        }
        Ok(())
    };
    match fill() {
        Ok(()) => Ok(temp),
        Err(e) => {
            let _ = temp.discard(stage); // the next run sweeps
            Err(e)
        }
    }
}
