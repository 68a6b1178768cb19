//! Contents from another server, for whoever puts files in place: small ones are fetched ahead, many at once.

use filesync::{Digest, Kind, Node, Operation, Path, Source};
use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};
use store::{Contents, Set};
use transfer::{Puller, Wanted};

/// Files up to this size are fetched ahead, in bytes,
const SMALL: u64 = 256 * 1024;
/// so many bytes at once,
const AHEAD: u64 = 8 << 20;
/// and files.
const FILES: usize = 512;
/// A file of which an older version is here comes in parts if it is larger than this.
const BY_PARTS: u64 = 1 << 20;

/// See the module.
pub struct Bring<'a, S> {
    puller: &'a mut Puller<S>,
    set: &'a Set,
    /// What will be asked for, in order.
    queue: VecDeque<(Path, Digest, u64)>,
    ready: HashMap<Path, Vec<u8>>,
}

impl<'a, S: Read + Write> Bring<'a, S> {
    pub fn new(puller: &'a mut Puller<S>, set: &'a Set, operations: &[Operation]) -> Self {
        let fetched = operations.iter().filter(|o| o.source == Source::Fetch);
        let file = |o: &Operation| match o.entry.node.as_ref()?.kind {
            Kind::File { size, digest } => Some((o.path.clone(), digest, size)),
            _ => None,
        };
        Self {
            puller,
            set,
            queue: fetched.filter_map(file).collect(),
            ready: HashMap::new(),
        }
    }

    /// Fetches this file and the small ones after it.
    fn fetch_ahead(&mut self, path: &Path) -> io::Result<()> {
        while self.queue.front().is_some_and(|(next, ..)| next != path) {
            self.queue.pop_front();
        }
        let (mut files, mut bytes) = (Vec::new(), 0);
        while files.len() < FILES
            && bytes <= AHEAD
            && self
                .queue
                .front()
                .is_some_and(|(_, _, size)| *size <= SMALL)
            && let Some(one) = self.queue.pop_front()
        {
            bytes += one.2;
            files.push(one);
        }
        let wanted: Vec<_> = files
            .iter()
            .map(|(path, digest, size)| Wanted {
                path,
                digest,
                size: *size,
            })
            .collect();
        let mut contents = vec![Vec::new(); wanted.len()];
        let part = |i: usize, _: u64, bytes: &[u8]| {
            contents[i].extend_from_slice(bytes);
            Ok(())
        };
        let came = self.puller.files(&wanted, part).map_err(io::Error::other)?;
        let came = files
            .into_iter()
            .zip(contents)
            .zip(came)
            .filter(|(_, came)| *came);
        self.ready = came
            .map(|(((path, ..), contents), _)| (path, contents))
            .collect();
        Ok(())
    }
}

impl<S: Read + Write> Contents for Bring<'_, S> {
    fn bring(&mut self, path: &Path, node: &Node, into: &File) -> io::Result<()> {
        let Kind::File { size, digest } = &node.kind else {
            return Ok(());
        };
        let gone = || io::Error::new(io::ErrorKind::NotFound, "it has changed there meanwhile");
        if *size <= SMALL {
            if !self.ready.contains_key(path) {
                self.fetch_ahead(path)?;
            }
            let contents = self.ready.remove(path).ok_or_else(gone)?;
            return into.write_all_at(&contents, 0);
        }
        let wanted = Wanted {
            path,
            digest,
            size: *size,
        };
        let like = (*size > BY_PARTS)
            .then(|| self.set.read(path).ok())
            .flatten();
        let came = match like {
            Some(like) => self.puller.alike(&wanted, &like, into),
            None => {
                let part = |_: usize, at, bytes: &[u8]| into.write_all_at(bytes, at);
                self.puller
                    .files(&[wanted], part)
                    .map(|came| came == [true])
            }
        };
        if came.map_err(io::Error::other)? {
            Ok(())
        } else {
            Err(gone())
        }
    }
}
