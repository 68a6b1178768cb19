//! The side that answers.

use crate::{
    chunks,
    frame::{
        self, BLOB_MAX, Chunk, Error, Farewell, LIST_MAX, OLDEST, Packer, Range, Request, Response,
        VERSION,
    },
    recipes::{CHUNKS_MAX, Recipes},
    recut::recut,
};
use filesync::{Digest, Entry, Knowledge, Node, Path, Replica, Standing};
use linux::sparse::Part;
use protocol::{codec, wire::beat::Freshness};
use std::{
    fs::File,
    io::{self, Read, Write},
};

/// So many chunks of a recipe are told at once: whoever waits can begin with them.
const CHUNKS: usize = 64;

/// Entries in order of path.
pub type Changes = Box<dyn Iterator<Item = io::Result<(Path, Entry)>>>;

/// Files, each if it has the contents that were asked for by what is known of it, and how many bytes these are: it may
/// have grown.
pub type Files<'a> = Box<dyn Iterator<Item = io::Result<Option<(File, u64)>>> + 'a>;

/// What a server of contents has.
pub trait Origin {
    /// Whose greeting it is, or why it is not let in: cluster, set, replica. Answers with the own replica, the last
    /// sequence number, and up to where the other has been told.
    fn greet(
        &mut self,
        cluster: &str,
        set: &str,
        other: &Replica,
    ) -> Result<(Replica, u64, u64), String>;
    /// The history that it is part of, once greeted.
    fn standing(&mut self) -> io::Result<Standing>;
    /// What it has heard of, once greeted.
    fn knowledge(&mut self) -> io::Result<Knowledge> {
        Ok(Knowledge::default())
    }
    /// How fresh what is here is, once greeted.
    fn fresh(&self) -> Freshness;
    /// The entries with a sequence number above `after`, in order of path.
    fn changes(&mut self, after: u64) -> io::Result<Changes>;
    /// The files at these paths, with these contents, one after another.
    fn open<'a>(&'a mut self, files: &'a [(Path, Digest)]) -> Files<'a>;
    /// The other has all up to here.
    fn took(&mut self, sequence: u64) -> io::Result<()>;
}

/// How it ends that the other asks.
#[derive(Debug)]
pub enum End {
    /// It says goodbye, and how it fared.
    Bye(Farewell),
    /// It wants to be asked now, in this version.
    YourTurn(u16),
}

/// Answers until the other has no more to ask.
pub fn serve<S: Read + Write>(
    stream: &mut S,
    origin: &mut impl Origin,
    known: &Recipes,
) -> Result<End, Error> {
    let mut answers = Answers {
        stream,
        packer: Packer::new()?,
        plain: Vec::new(),
        newer: false,
    };
    let mut spoken = None;
    let mut changes: Option<Changes> = None;
    loop {
        let request = frame::read(answers.stream, &mut Vec::new())?;
        if spoken.is_none() && !matches!(request, Request::Hello { .. } | Request::Ping) {
            return Err(Error::Unexpected("no greeting"));
        }
        match request {
            Request::Hello {
                version,
                chunker,
                cluster,
                set,
                replica,
            } => {
                let welcome = if version >= OLDEST && chunker == chunks::CHUNKER {
                    origin.greet(&cluster, &set, &replica)
                } else {
                    Err(format!(
                        "this server speaks the versions {OLDEST} to {VERSION} and cuts files by {:x}, not {version} and \
                         {chunker:x}: upgrade the older of the two servers",
                        chunks::CHUNKER
                    ))
                };
                match welcome {
                    Ok((replica, last, told)) => {
                        let version = *spoken.insert(version.min(VERSION));
                        answers.newer = version > OLDEST;
                        answers.say(&Response::Hello {
                            version,
                            replica,
                            last,
                            told,
                            fresh: origin.fresh(),
                        })?;
                        if version > OLDEST {
                            let standing = origin.standing()?;
                            answers.say(&Response::Standing(standing, origin.knowledge()?))?;
                        }
                    }
                    Err(why) => {
                        answers.say(&Response::Refused(why.clone()))?;
                        answers.stream.flush()?;
                        return Err(Error::Refused(why));
                    }
                }
            }
            Request::Changes { after } => {
                let first = changes.insert(origin.changes(after)?);
                answers.entries(first)?;
            }
            Request::More => match &mut changes {
                Some(changes) => answers.entries(changes)?,
                None => return Err(Error::Unexpected("more of nothing")),
            },
            Request::Files(files) => {
                within(files.len())?;
                answers.files(origin, &files)?;
            }
            Request::Recipe {
                path,
                digest,
                range,
                average,
            } => match one(origin, path.clone(), digest)? {
                Some((file, size)) if range.offset == 0 && range.length == size => {
                    let older = known.last(&path, average).unwrap_or_default();
                    let mut all = Vec::new();
                    let holes = answers.newer;
                    answers.recipe(|each| {
                        recut(&file, range, average, holes, &older, &mut |range, chunk| {
                            // One too many is not kept.
                            if all.len() <= CHUNKS_MAX {
                                all.push(chunk);
                            }
                            each(range, chunk)
                        })
                    })?;
                    known.keep(&path, &digest, average, all);
                }
                Some((file, _)) => {
                    let holes = answers.newer;
                    answers.recipe(|each| chunks::cut_to(&file, range, average, holes, each))?;
                }
                None => answers.say(&Response::Gone)?,
            },
            Request::Pieces {
                path,
                digest,
                ranges,
            } => {
                within(ranges.len())?;
                match one(origin, path, digest)? {
                    Some((file, _)) => {
                        for range in ranges {
                            answers.bytes(&file, range)?;
                        }
                    }
                    None => answers.say(&Response::Gone)?,
                }
            }
            Request::Took { sequence } => {
                origin.took(sequence)?;
                answers.say(&Response::Done)?;
            }
            Request::Ping => answers.say(&Response::Done)?,
            Request::YourTurn => return Ok(End::YourTurn(spoken.unwrap_or(VERSION))),
            Request::Bye(farewell) => return Ok(End::Bye(farewell)),
        }
        answers.stream.flush()?;
    }
}

/// As version 3 knows it: directories have no times, and no time is after 2262.
fn without_later(node: &mut Node) {
    node.mtime = match node.is_directory() {
        true => 0,
        false => node.mtime.clamp(i64::MIN.into(), i64::MAX.into()),
    };
}

/// One file alone.
fn one(origin: &mut impl Origin, path: Path, digest: Digest) -> io::Result<Option<(File, u64)>> {
    let wanted = [(path, digest)];
    let mut files = origin.open(&wanted);
    files.next().unwrap_or(Ok(None))
}

fn within(length: usize) -> Result<(), Error> {
    if length > LIST_MAX {
        return Err(Error::Unexpected("too many at once"));
    }
    Ok(())
}

struct Answers<'a, S> {
    stream: &'a mut S,
    packer: Packer,
    plain: Vec<u8>,
    /// The other speaks a version after the oldest: it knows holes, and times of directories.
    newer: bool,
}

impl<S: Read + Write> Answers<'_, S> {
    fn say(&mut self, response: &Response) -> Result<(), Error> {
        frame::write(self.stream, response, &[])
    }

    /// As many as fill a page.
    fn entries(&mut self, changes: &mut Changes) -> Result<(), Error> {
        let mut blob = Vec::new();
        while blob.len() < BLOB_MAX - codec::RECORD_MAX - 4
            && let Some(entry) = changes.next()
        {
            let (path, mut entry) = entry?;
            if let Some(node) = entry.node.as_mut().filter(|_| !self.newer) {
                without_later(node);
            }
            let record = codec::encode_record(&(path, entry))?;
            let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
            blob.extend_from_slice(&length.to_le_bytes());
            blob.extend_from_slice(&record);
        }
        frame::write(self.stream, &Response::Entries, &blob)
    }

    /// Small files as many at once as fit in a blob, each large one on its own.
    fn files(&mut self, origin: &mut impl Origin, files: &[(Path, Digest)]) -> Result<(), Error> {
        let mut lengths = Vec::new();
        self.plain.clear();
        for file in origin.open(files) {
            let file = file?;
            let size = file.as_ref().map_or(0, |(_, size)| *size);
            if size > (BLOB_MAX - self.plain.len()) as u64 {
                self.together(&mut lengths)?;
            }
            lengths.push(match file {
                None => None,
                Some((file, size)) if size > BLOB_MAX as u64 => {
                    self.large(&file, size)?;
                    continue;
                }
                Some((file, size)) => {
                    self.plain.reserve(usize::try_from(size).unwrap_or(0));
                    let read = Part::new(&file, 0, size).read_to_end(&mut self.plain)?;
                    u32::try_from(read).ok()
                }
            });
        }
        self.together(&mut lengths)
    }

    fn together(&mut self, lengths: &mut Vec<Option<u32>>) -> Result<(), Error> {
        if lengths.is_empty() {
            return Ok(());
        }
        let lengths = std::mem::take(lengths);
        let packed = self.packer.pack(&self.plain);
        let header = Response::Together {
            lengths,
            packed: packed.is_some(),
        };
        frame::write(self.stream, &header, packed.unwrap_or(&self.plain))?;
        self.plain.clear();
        Ok(())
    }

    /// In as many parts as it takes, then `Done`.
    fn large(&mut self, file: &File, length: u64) -> Result<(), Error> {
        let all = Range { offset: 0, length };
        for extent in chunks::extents(file, all, self.newer) {
            let extent = extent?;
            let mut range = Range::of(&extent);
            if extent.hole {
                let length = range.length;
                self.say(&Response::Hole { length })?;
                continue;
            }
            while range.length > 0 {
                let length = range.length.min(BLOB_MAX as u64);
                self.bytes(file, Range { length, ..range })?;
                range = range.after(range.offset + length);
            }
        }
        self.plain.clear();
        self.say(&Response::Done)
    }

    /// A part of a file, what there is of it.
    fn bytes(&mut self, file: &File, range: Range) -> Result<(), Error> {
        if range.length > BLOB_MAX as u64 {
            return Err(Error::Unexpected("too much at once"));
        }
        let plain = chunks::read(file, range, &mut self.plain)?;
        let packed = self.packer.pack(plain);
        let header = Response::Bytes {
            length: u32::try_from(plain.len()).unwrap_or(u32::MAX),
            packed: packed.is_some(),
        };
        frame::write(self.stream, &header, packed.unwrap_or(plain))
    }

    /// Tells chunks while they are cut.
    fn recipe(
        &mut self,
        cut: impl FnOnce(&mut dyn FnMut(Range, Chunk) -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut list = Vec::new();
        cut(&mut |_, chunk| {
            list.push(chunk);
            if list.len() == CHUNKS {
                self.say(&Response::Chunks(std::mem::take(&mut list)))?;
                self.stream.flush()?;
            }
            Ok(())
        })?;
        self.say(&Response::Chunks(list))?;
        self.say(&Response::Done)
    }
}
