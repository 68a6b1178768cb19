//! Contents from another server, for whoever puts files in place: small ones are fetched ahead, many at once.

use crate::{progress::Meter, replica::Local};
use filesync::{Digest, Kind, Node, Operation, Path, Source};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
};
use store::{Contents, Filling, Set};
use transfer::{Asked, Error, Puller, Wanted, together};

/// Files up to this size are fetched ahead, in bytes,
const SMALL: u64 = 256 * 1024;
/// so many requests at once, each for a megabyte at most.
const AHEAD: usize = 8;
/// So many files are looked at for one request.
const MOST: usize = 256;
/// A file of which an older version is here comes in parts if it is larger than this.
const BY_PARTS: u64 = 1 << 20;

/// See the module.
pub struct Bring<'a, S> {
    puller: &'a mut Puller<S>,
    set: &'a Set,
    meter: &'a Meter,
    /// What will be asked for, in order.
    queue: VecDeque<(Path, Digest, u64)>,
    asked: VecDeque<(Asked, Vec<Path>)>,
    /// What came, in order; none: it is not there any more.
    ready: VecDeque<(Path, Option<Vec<u8>>)>,
}

impl<'a, S: Read + Write> Bring<'a, S> {
    pub fn new(puller: &'a mut Puller<S>, local: &'a Local, operations: &[Operation]) -> Self {
        let fetched = operations.iter().filter(|o| o.source == Source::Fetch);
        for operation in fetched.clone() {
            if let Some(Kind::File { size, .. }) = operation.entry.node.as_ref().map(|n| &n.kind) {
                local.meter.expect(*size);
            }
        }
        let small = |o: &Operation| match o.entry.node.as_ref()?.kind {
            Kind::File { size, digest } if size <= SMALL => Some((o.path.clone(), digest, size)),
            _ => None,
        };
        Self {
            puller,
            set: &local.set,
            meter: &local.meter,
            queue: fetched.filter_map(small).collect(),
            asked: VecDeque::new(),
            ready: VecDeque::new(),
        }
    }

    /// Whoever asks next on this stream must not hear what was asked before.
    pub fn finish(mut self) -> Result<(), Error> {
        self.queue.clear();
        while self.hear()? {
            self.ready.clear();
        }
        Ok(())
    }

    fn ask_ahead(&mut self) -> Result<(), Error> {
        while self.asked.len() < AHEAD && !self.queue.is_empty() {
            let wanted =
                |(path, digest, size): &'_ (Path, Digest, u64)| (path.clone(), *digest, *size);
            let next: Vec<_> = self.queue.iter().take(MOST).map(wanted).collect();
            let wanted: Vec<_> = next
                .iter()
                .map(|(path, digest, size)| Wanted {
                    path,
                    digest,
                    size: *size,
                })
                .collect();
            let count = together(&wanted);
            let asked = self.puller.ask_files(&wanted[..count])?;
            let paths = self.queue.drain(..count).map(|(path, ..)| path).collect();
            self.asked.push_back((asked, paths));
        }
        self.puller.flush()
    }

    /// Whether anything was under way.
    fn hear(&mut self) -> Result<bool, Error> {
        let Some((asked, paths)) = self.asked.pop_front() else {
            return Ok(false);
        };
        let mut contents = vec![Vec::new(); paths.len()];
        let part = |i: usize, _: u64, bytes: &[u8]| contents[i].extend_from_slice(bytes);
        let came = self.puller.hear_files(&asked, part)?;
        let contents = contents.into_iter().zip(came);
        let contents = contents.map(|(contents, came)| came.then_some(contents));
        self.ready.extend(paths.into_iter().zip(contents));
        Ok(true)
    }

    /// A small file.
    fn take(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        loop {
            while let Some((next, contents)) = self.ready.pop_front() {
                if next == *path {
                    self.meter
                        .part(contents.as_ref().map_or(0, Vec::len) as u64);
                    self.meter.file();
                    return Ok(contents);
                }
            }
            self.ask_ahead()?;
            if !self.hear()? {
                return Ok(None);
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "it has changed there meanwhile")
}

impl<S: Read + Write> Contents for Bring<'_, S> {
    fn small(&mut self, path: &Path, node: &Node) -> io::Result<Option<Vec<u8>>> {
        if !matches!(node.kind, Kind::File { size, .. } if size <= SMALL) {
            return Ok(None);
        }
        let came = self.take(path).map_err(io::Error::other)?;
        came.ok_or_else(gone).map(Some)
    }

    fn bring(&mut self, path: &Path, node: &Node, into: &mut Filling<'_>) -> io::Result<()> {
        let Kind::File { size, digest } = &node.kind else {
            return Ok(());
        };
        while self.hear().map_err(io::Error::other)? {}
        let wanted = Wanted {
            path,
            digest,
            size: *size,
        };
        let like = (*size > BY_PARTS)
            .then(|| self.set.read(path).ok())
            .flatten();
        let came = match like {
            Some(like) => {
                let came = self.puller.alike(&wanted, &like, into.file());
                self.meter.part(*size);
                came
            }
            None => {
                let part = |_: usize, _: u64, bytes: &[u8]| {
                    self.meter.part(bytes.len() as u64);
                    into.write_all(bytes)
                };
                self.puller
                    .files(&[wanted], part)
                    .map(|came| came == [true])
            }
        };
        if came.map_err(io::Error::other)? {
            self.meter.file();
            Ok(())
        } else {
            Err(gone())
        }
    }
}
