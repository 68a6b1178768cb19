//! Contents from another server, for whoever puts files in place: small ones are fetched ahead, many at once.

use crate::progress::Meter;
use filesync::{Digest, Kind, Node, Operation, Path, Source};
use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read, Write},
};
use store::{Contents, Filling, Set};
use transfer::{Asked, Error, Piece, Puller, Recipes, Wanted, together};

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
    recipes: &'a Recipes,
    next: Next<'a, S>,
    /// What was asked of it and did not come.
    failed: Option<Error>,
    /// What is here instead of large files, as far as known.
    former: BTreeMap<Path, Digest>,
    /// What will be asked for, in order.
    queue: VecDeque<(Path, Digest, u64)>,
    asked: VecDeque<(Asked, Vec<Path>)>,
    /// What came, in order; none: it is not there any more.
    ready: VecDeque<(Path, Option<Vec<u8>>)>,
}

/// Makes the next operations; none: that was all.
pub type Next<'a, S> = &'a mut dyn FnMut(&mut Puller<S>) -> Result<Vec<Operation>, Error>;

/// A large file that is here and gets other contents.
fn former(operation: &Operation) -> Option<(Path, Digest)> {
    let (size, digest) = operation.was.as_ref()?.file()?;
    (size > BY_PARTS).then(|| (operation.path.clone(), digest))
}

impl<'a, S: Read + Write> Bring<'a, S> {
    pub fn new(
        puller: &'a mut Puller<S>,
        set: &'a Set,
        meter: &'a Meter,
        recipes: &'a Recipes,
        next: Next<'a, S>,
    ) -> Self {
        Self {
            puller,
            set,
            meter,
            recipes,
            next,
            failed: None,
            former: BTreeMap::new(),
            queue: VecDeque::new(),
            asked: VecDeque::new(),
            ready: VecDeque::new(),
        }
    }

    /// Of these it is known what will be wanted, in order.
    fn expect(&mut self, operations: &[Operation]) {
        let fetched = operations.iter().filter(|o| o.source == Source::Fetch);
        for (size, _) in fetched.clone().filter_map(|o| o.entry.file()) {
            self.meter.expect(size);
        }
        let small = |o: &Operation| {
            let (size, digest) = o.entry.file()?;
            (size <= SMALL).then(|| (o.path.clone(), digest, size))
        };
        self.former = fetched.clone().filter_map(former).collect();
        self.queue = fetched.filter_map(small).collect();
    }

    /// Whoever asks next on this stream must not hear what was asked before.
    pub fn finish(mut self) -> Result<(), Error> {
        self.queue.clear();
        self.settle()?;
        self.failed.map_or(Ok(()), Err)
    }

    /// Hears all that was asked.
    fn settle(&mut self) -> Result<(), Error> {
        while self.hear()? {}
        self.puller.hear_entries()
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
        if self.queue.is_empty() {
            self.puller.ask_entries()?;
        }
        self.puller.flush()
    }

    /// Whether anything was under way.
    fn hear(&mut self) -> Result<bool, Error> {
        let Some((asked, paths)) = self.asked.pop_front() else {
            return Ok(false);
        };
        let mut contents = vec![Vec::new(); paths.len()];
        let part = |i: usize, piece: Piece<'_>| match piece {
            Piece::Data(bytes) => contents[i].extend_from_slice(bytes),
            // None of a file as small as these.
            Piece::Hole(_) => {}
        };
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

    fn resumes(&self) -> bool {
        true
    }

    fn bring(&mut self, path: &Path, node: &Node, into: &mut Filling<'_>) -> io::Result<()> {
        let Kind::File { size, digest } = &node.kind else {
            return Ok(());
        };
        self.settle().map_err(io::Error::other)?;
        let wanted = Wanted {
            path,
            digest,
            size: *size,
        };
        let like = (*size > BY_PARTS)
            .then(|| self.set.read(path).ok())
            .flatten();
        let begun = into.begun();
        let came = if like.is_some() || begun.is_some() {
            let like = like.as_ref().map(|like| (like, self.former.get(path)));
            let puller = &mut self.puller;
            let came = puller.alike(&wanted, like, begun, &into.anywhere(), self.recipes);
            self.meter.part(*size);
            came
        } else {
            let part = |_: usize, piece: Piece<'_>| match piece {
                Piece::Data(bytes) => {
                    self.meter.part(bytes.len() as u64);
                    into.write_all(bytes)
                }
                Piece::Hole(length) => {
                    self.meter.part(length);
                    into.skip(length)
                }
            };
            let came = self.puller.files(&[wanted], part);
            came.map(|came| came == [true])
        };
        if came.map_err(io::Error::other)? {
            self.meter.file();
            Ok(())
        } else {
            Err(gone())
        }
    }

    fn more(&mut self) -> Vec<Operation> {
        let more = self.settle().and_then(|()| (self.next)(self.puller));
        let more = more.unwrap_or_else(|e| {
            self.failed = Some(e);
            Vec::new()
        });
        self.expect(&more);
        more
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use filesync::{Author, Entry, Replica, Standing};
    use protocol::{
        owner::{Owner, Present},
        wire::beat::Freshness,
    };
    use std::{
        collections::BTreeMap,
        fs,
        os::unix::{fs::MetadataExt, net::UnixStream},
        thread,
    };
    use store::{Applied, Calls, Index, apply};
    use transfer::{Changes, Files, Origin, serve};

    fn replica(name: &str) -> Replica {
        Replica {
            server: name.parse().unwrap(),
            incarnation: 1,
        }
    }

    fn noise(seed: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    /// Has files, and entries; whoever asks for contents knows which.
    struct Beta {
        files: Vec<Vec<u8>>,
        entries: Vec<(Path, Entry)>,
    }

    impl Beta {
        fn of(files: Vec<Vec<u8>>) -> Self {
            let entries = Vec::new();
            Self { files, entries }
        }
    }

    impl Origin for Beta {
        fn greet(&mut self, _: &str, _: &str, _: &Replica) -> Result<(Replica, u64, u64), String> {
            Ok((replica("beta"), 1, 0))
        }

        fn standing(&mut self) -> io::Result<Standing> {
            Ok(Standing::default())
        }

        fn fresh(&self) -> Freshness {
            Freshness::default()
        }

        fn changes(&mut self, _: u64) -> io::Result<Changes> {
            Ok(Box::new(self.entries.clone().into_iter().map(Ok)))
        }

        fn open<'a>(&'a mut self, files: &'a [(Path, Digest)]) -> Files<'a> {
            let all = files.iter();
            Box::new(all.map(|(_, digest)| {
                let has = |file: &&Vec<u8>| *blake3::hash(file).as_bytes() == digest.0;
                let Some(contents) = self.files.iter().find(has) else {
                    return Ok(None);
                };
                let mut file = tempfile::tempfile()?;
                file.write_all(contents)?;
                Ok(Some((file, contents.len() as u64)))
            }))
        }

        fn took(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    /// A stream that ends after so many bytes from the other.
    struct Short(UnixStream, usize);

    impl Read for Short {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(self.1);
            let read = self.0.read(&mut buffer[..length])?;
            self.1 -= read;
            Ok(read)
        }
    }

    impl Write for Short {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0.write(buffer)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn file(contents: &[u8]) -> Kind {
        Kind::File {
            size: contents.len() as u64,
            digest: Digest(*blake3::hash(contents).as_bytes()),
        }
    }

    struct Alpha(tempfile::TempDir);

    impl Alpha {
        fn open(&self) -> (Set, Index) {
            let (root, state) = (self.0.path().join("data"), self.0.path().join("state"));
            fs::create_dir_all(&root).unwrap();
            fs::create_dir_all(&state).unwrap();
            let calls = Calls::unlimited();
            let here = Present {
                owner: Owner {
                    cluster: "web".into(),
                    server: "alpha".parse().unwrap(),
                    machine: None,
                },
                macs: Default::default(),
            };
            let new = || replica("alpha");
            let (file, note) = (state.join("index"), state.join("note"));
            let opened = Index::open(&file, &note, &here, new, calls.clone());
            let index = opened.unwrap().index;
            let set = Set::open(&root, &state, &index, store::Adopt::No, calls).unwrap();
            (set, index)
        }

        fn node(&self, kind: Kind) -> Node {
            let own = fs::metadata(self.0.path()).unwrap();
            let mode = match kind {
                Kind::Symlink { .. } => 0o777,
                _ => 0o400,
            };
            let mtime = 1_000_000_007;
            let attributes = BTreeMap::new();
            Node {
                kind,
                mode,
                uid: own.uid(),
                gid: own.gid(),
                mtime,
                attributes,
            }
        }

        /// Takes these contents in a run of its own, which hears so many bytes at most; what came of it, and how many
        /// bytes there were.
        fn take(&self, contents: &[u8], most: usize) -> (Applied, usize) {
            let (set, index) = self.open();
            let path = Path::try_from(b"large".to_vec()).unwrap();
            let was = index.row(&path).unwrap().map(|row| row.entry);
            let node = self.node(file(contents));
            let mut author = Author {
                replica: replica("beta"),
                count: was
                    .as_ref()
                    .map_or(0, |w: &Entry| w.vector.count(&replica("beta"))),
                held: false,
                unit: 1,
                uncertain: false,
                forgotten: None,
            };
            let entry = author.change(was.as_ref(), Some(node), 7);
            let mut operations = vec![Operation {
                path,
                was,
                entry,
                keep: false,
                source: Source::Fetch,
            }];
            let (here, mut there) = UnixStream::pair().unwrap();
            thread::scope(|scope| {
                scope.spawn(move || {
                    let _ = serve(
                        &mut there,
                        &mut Beta::of(vec![contents.to_vec()]),
                        &Recipes::new(),
                    );
                });
                let mut puller = Puller::new(Short(here, most)).unwrap();
                puller.greet("c", "s", &replica("alpha")).unwrap();
                let (meter, recipes) = (Meter::default(), Recipes::new());
                let mut next = |_: &mut Puller<_>| Ok(std::mem::take(&mut operations));
                let mut bring = Bring::new(&mut puller, &set, &meter, &recipes, &mut next);
                let applied = apply(&set, &index, Vec::new(), &mut bring, 9).unwrap();
                drop(bring);
                (applied, most - puller.stream().1)
            })
        }

        fn has(&self, contents: &[u8]) -> bool {
            fs::read(self.0.path().join("data/large")).is_ok_and(|own| own == contents)
        }

        /// What is in the stage.
        fn staged(&self) -> Vec<std::path::PathBuf> {
            let stage = self.0.path().join("data").join(store::STAGE);
            let all = fs::read_dir(stage).unwrap();
            all.map(|entry| entry.unwrap().path()).collect()
        }
    }

    const MIB: usize = 1 << 20;

    #[test]
    fn what_came_before_the_other_died_is_not_sent_again() {
        let alpha = Alpha(tempfile::tempdir().unwrap());
        let new = noise(1, 16 * MIB);
        let mut came = 0;
        for _ in 0..3 {
            let (applied, bytes) = alpha.take(&new, 5 * MIB);
            assert_eq!((applied.done, applied.failed.count), (0, 1), "{applied:?}");
            assert_eq!(alpha.staged().len(), 1);
            came += bytes;
        }
        let (applied, bytes) = alpha.take(&new, usize::MAX);
        assert!(applied.is_complete() && alpha.has(&new), "{applied:?}");
        // With each death went what was half here.
        assert!(came + bytes < new.len() + 4 * MIB, "{came}, then {bytes}");
        assert!(alpha.staged().is_empty());
    }

    #[test]
    fn an_older_version_and_what_came_of_the_new_one_are_both_of_use() {
        let alpha = Alpha(tempfile::tempdir().unwrap());
        let old = noise(1, 8 * MIB);
        assert!(alpha.take(&old, usize::MAX).0.is_complete());
        let new = [noise(2, 6 * MIB), old.clone()].concat();
        let (applied, came) = alpha.take(&new, 4 * MIB);
        assert_eq!(applied.failed.count, 1);
        assert!(alpha.has(&old));
        let (applied, bytes) = alpha.take(&new, usize::MAX);
        assert!(applied.is_complete() && alpha.has(&new), "{applied:?}");
        assert!(came + bytes < 8 * MIB, "{came}, then {bytes}");
    }

    #[test]
    fn where_an_older_version_has_zeros_nothing_is_written() {
        let alpha = Alpha(tempfile::tempdir().unwrap());
        let data = noise(1, 64 << 10);
        let old = [data.clone(), vec![0; 24 * MIB]].concat();
        assert!(alpha.take(&old, usize::MAX).0.is_complete());
        let blocks = |file: &std::path::Path| 512 * fs::metadata(file).unwrap().blocks();
        let there = alpha.0.path().join("data/large");
        assert!(blocks(&there) < 100_000);
        let mut new = old;
        new[12 * MIB..12 * MIB + data.len()].copy_from_slice(&noise(2, data.len()));
        assert_eq!(alpha.take(&new, 10_000).0.failed.count, 1);
        let left = blocks(&alpha.staged()[0]);
        assert!((1..100_000).contains(&left), "{left}");
        assert!(alpha.take(&new, usize::MAX).0.is_complete() && alpha.has(&new));
        assert!(blocks(&there) < 200_000);
    }

    #[test]
    fn entries_come_page_after_page_between_small_files_and_large_ones() {
        let alpha = Alpha(tempfile::tempdir().unwrap());
        let (set, index) = alpha.open();
        let mut author = Author {
            replica: replica("beta"),
            count: 0,
            held: false,
            unit: 1,
            uncertain: false,
            forgotten: None,
        };
        let mut beta = Beta::of(vec![noise(1, 5), noise(2, 300_000), noise(3, 2_000_000)]);
        for i in 0..1200 {
            let kind = match beta.files.get(i % 300) {
                Some(contents) => file(contents),
                None => Kind::Symlink {
                    target: vec![b'a'; 4000],
                },
            };
            let path = Path::try_from(format!("{i:04}").into_bytes()).unwrap();
            let entry = author.change(None, Some(alpha.node(kind)), 7);
            beta.entries.push((path, entry));
        }
        let files = beta.files.clone();
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut pages = 0;
        let applied = thread::scope(|scope| {
            scope.spawn(move || serve(&mut there, &mut beta, &Recipes::new()).map(drop));
            let mut puller = Puller::new(here).unwrap();
            puller.greet("c", "s", &replica("alpha")).unwrap();
            puller.ask_changes(0).unwrap();
            let mut next = |puller: &mut Puller<_>| {
                pages += 1;
                let page = puller.entries(1)?.into_iter();
                let operation = |(path, entry): (Path, Entry)| Operation {
                    path,
                    was: None,
                    source: match entry.file() {
                        Some(_) => Source::Fetch,
                        None => Source::Nothing,
                    },
                    entry,
                    keep: false,
                };
                Ok(page.map(operation).collect())
            };
            let (meter, recipes) = (Meter::default(), Recipes::new());
            let mut bring = Bring::new(&mut puller, &set, &meter, &recipes, &mut next);
            let applied = apply(&set, &index, Vec::new(), &mut bring, 9).unwrap();
            bring.finish().unwrap();
            // Nothing is left that the next answer could be taken for.
            puller.took(1200).unwrap();
            puller.heard().unwrap();
            applied
        });
        assert!(applied.is_complete(), "{applied:?}");
        assert_eq!(applied.done, 1200);
        assert!(pages > 4, "{pages}");
        for i in 0..12 {
            let (place, which) = (i / 3 * 300, i % 3);
            let path = alpha.0.path().join(format!("data/{:04}", place + which));
            assert!(fs::read(path).unwrap() == files[which], "{place} {which}");
        }
    }

    #[test]
    fn what_is_left_is_believed_by_nobody() {
        let alpha = Alpha(tempfile::tempdir().unwrap());
        let new = [noise(1, 3 * MIB), vec![0; MIB], noise(2, 3 * MIB)].concat();
        assert!(!alpha.take(&new, 5 * MIB).0.is_complete());
        let left = &alpha.staged()[0];
        let mut spoilt = fs::read(left).unwrap();
        spoilt[MIB / 2..MIB].fill(7);
        spoilt[3 * MIB..3 * MIB + 9000].fill(7);
        fs::write(left, &spoilt).unwrap();
        let (applied, _) = alpha.take(&new, usize::MAX);
        assert!(applied.is_complete() && alpha.has(&new), "{applied:?}");
        assert!(alpha.staged().is_empty());
    }
}
