//! The side that asks.

use crate::{
    chunks::{self, FINE, Place},
    former::{Former, Put},
    frame::{
        self, BLOB_MAX, Error, Farewell, LIST_MAX, OLDEST, Packer, Range, Request, Response,
        VERSION,
    },
    recipes::Recipes,
};
use filesync::{Digest, Entry, Knowledge, Path, Replica, Standing};
use protocol::{codec, wire::beat::Freshness};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
};

/// Requests for contents under way at once; each is a few kilobytes.
const AHEAD: usize = 8;

/// So many bytes of names and digests fit in a request.
const NAMES: usize = 48 * 1024;

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The other replica.
    pub replica: Replica,
    /// Sequence number of its last entry.
    pub last: u64,
    /// Up to where it believes this side has all.
    pub told: u64,
    /// How fresh what it has is; whoever takes all of it is as fresh.
    pub fresh: Freshness,
    /// The history that it is part of.
    pub standing: Standing,
    /// What it has heard of.
    pub knowledge: Knowledge,
}

/// A file whose contents are wanted.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Where the other has it.
    pub path: &'a Path,
    /// What it must be.
    pub digest: &'a Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What comes next of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// So many zeros.
    Hole(u64),
}

/// Asks another replica over a byte stream.
#[derive(Debug)]
pub struct Puller<S> {
    stream: S,
    blob: Vec<u8>,
    packer: Packer,
    page: Page,
    version: u16,
}

/// The next page of entries.
#[derive(Debug)]
enum Page {
    /// There is none.
    None,
    /// It is still to be asked for.
    Left,
    /// It is under way.
    Asked,
    /// It came before it was wanted.
    Here(Vec<u8>),
}

/// Files that were asked for, all of one request: their sizes. What was asked is heard in the same order.
#[derive(Debug)]
#[must_use]
pub struct Asked(Vec<u64>);

impl<S: Read + Write> Puller<S> {
    /// Over this stream; nothing is said yet.
    pub fn new(stream: S) -> io::Result<Self> {
        Ok(Self {
            stream,
            blob: Vec::new(),
            packer: Packer::new()?,
            page: Page::None,
            version: VERSION,
        })
    }

    /// The same, in the version that the other spoke before.
    pub fn speaking(self, version: u16) -> Self {
        Self { version, ..self }
    }

    /// The stream, to be set up otherwise.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    fn ask(&mut self, request: &Request) -> Result<(), Error> {
        frame::write(&mut self.stream, request, &[])
    }

    fn hear(&mut self) -> Result<Response, Error> {
        match frame::read(&mut self.stream, &mut self.blob)? {
            Response::Refused(why) => Err(Error::Refused(why)),
            response => Ok(response),
        }
    }

    /// Who this side is and what it wants to talk about.
    pub fn greet(&mut self, cluster: &str, set: &str, own: &Replica) -> Result<Greeting, Error> {
        self.call(cluster, set, own)?;
        self.answer()
    }

    /// The same, without waiting for an answer: the other makes itself ready meanwhile.
    pub fn call(&mut self, cluster: &str, set: &str, own: &Replica) -> Result<(), Error> {
        self.ask(&Request::Hello {
            version: self.version,
            chunker: chunks::CHUNKER,
            cluster: cluster.to_owned(),
            set: set.to_owned(),
            replica: own.clone(),
        })?;
        self.flush()
    }

    /// What the other answers to the call.
    pub fn answer(&mut self) -> Result<Greeting, Error> {
        let Response::Hello {
            version,
            replica,
            last,
            told,
            fresh,
        } = self.hear()?
        else {
            return Err(Error::Unexpected("no greeting"));
        };
        if version != self.version {
            return Err(Error::Unexpected("another version"));
        }
        let (standing, knowledge) = match self.version > OLDEST {
            true => match self.hear()? {
                Response::Standing(standing, knowledge) => (standing, knowledge),
                _ => return Err(Error::Unexpected("no standing")),
            },
            false => Default::default(),
        };
        Ok(Greeting {
            replica,
            last,
            told,
            fresh,
            standing,
            knowledge,
        })
    }

    /// Asks for the entries newer than `after`.
    pub fn ask_changes(&mut self, after: u64) -> Result<(), Error> {
        self.page = Page::Asked;
        self.ask(&Request::Changes { after })?;
        self.flush()
    }

    /// The next of them, sorted by path, so many pages of a megabyte if there are as many; empty: that was all. While
    /// one is unpacked, the other side makes the next.
    pub fn entries(&mut self, pages: usize) -> Result<Vec<(Path, Entry)>, Error> {
        let mut entries = Vec::new();
        for page in 1..=pages {
            self.ask_entries()?;
            self.hear_entries()?;
            let Page::Here(blob) = std::mem::replace(&mut self.page, Page::None) else {
                break;
            };
            if blob.is_empty() {
                break;
            }
            self.page = Page::Left;
            if page < pages {
                self.ask_entries()?;
            }
            entries.append(&mut records(&blob)?);
        }
        Ok(entries)
    }

    /// Asks for the next page, if there may be one: the other side makes it meanwhile. Whatever was asked before is heard
    /// before it.
    pub fn ask_entries(&mut self) -> Result<(), Error> {
        if let Page::Left = self.page {
            self.page = Page::Asked;
            self.ask(&Request::More)?;
            self.flush()?;
        }
        Ok(())
    }

    /// Hears the page that was asked for, to be taken later: now something else may be asked.
    pub fn hear_entries(&mut self) -> Result<(), Error> {
        if let Page::Asked = self.page {
            let Response::Entries = self.hear()? else {
                return Err(Error::Unexpected("no entries"));
            };
            self.page = Page::Here(std::mem::take(&mut self.blob));
        }
        Ok(())
    }

    /// The whole contents of these files, several requests ahead: `part` gets each file's number and what comes next of
    /// it. For each in turn whether it came; it may not be there any more. Whether it is what it should be
    /// is for the caller to see.
    pub fn files(
        &mut self,
        wanted: &[Wanted<'_>],
        mut part: impl FnMut(usize, Piece<'_>) -> io::Result<()>,
    ) -> Result<Vec<bool>, Error> {
        let (mut came, mut rest) = (Vec::new(), wanted);
        let mut under_way = VecDeque::new();
        // What was asked for is heard to its end all the same: else it would be taken for the next answer.
        let mut put = Ok(());
        loop {
            while put.is_ok() && under_way.len() < AHEAD && !rest.is_empty() {
                let (some, others) = rest.split_at(together(rest));
                under_way.push_back(self.ask_files(some)?);
                rest = others;
            }
            self.stream.flush()?;
            let Some(first) = under_way.pop_front() else {
                put?;
                return Ok(came);
            };
            let before = came.len();
            came.extend(self.hear_files(&first, |i, piece| {
                if put.is_ok() {
                    put = part(before + i, piece);
                }
            })?);
        }
    }

    /// Asks for so many of these as fit in a request; see [`together`]. Nothing is flushed.
    pub fn ask_files(&mut self, wanted: &[Wanted<'_>]) -> Result<Asked, Error> {
        let list = wanted.iter().map(|w| (w.path.clone(), *w.digest)).collect();
        self.ask(&Request::Files(list))?;
        Ok(Asked(wanted.iter().map(|w| w.size).collect()))
    }

    /// What was asked is sent.
    pub fn flush(&mut self) -> Result<(), Error> {
        Ok(self.stream.flush()?)
    }

    /// Hears what was asked first of what was not heard yet; see [`Puller::files`].
    pub fn hear_files(
        &mut self,
        asked: &Asked,
        mut part: impl FnMut(usize, Piece<'_>),
    ) -> Result<Vec<bool>, Error> {
        const MORE: Error = Error::Unexpected("more than the file has");
        let mut came = Vec::new();
        while let Some(size) = asked.0.get(came.len()) {
            match self.hear()? {
                Response::Together { lengths, packed } => {
                    let sum = lengths.iter().flatten().map(|l| *l as usize).sum();
                    let plain = self.unpack(sum, packed)?;
                    let mut rest = &plain[..];
                    for length in lengths {
                        let size = asked.0.get(came.len()).ok_or(MORE)?;
                        let length = length.map(|l| l as usize);
                        let (contents, others) = rest.split_at(length.unwrap_or(0));
                        if contents.len() as u64 > *size {
                            return Err(MORE);
                        }
                        if length.is_some() {
                            part(came.len(), Piece::Data(contents));
                        }
                        came.push(length.is_some());
                        rest = others;
                    }
                }
                mut next @ (Response::Bytes { .. } | Response::Hole { .. }) => {
                    let (i, mut at) = (came.len(), 0u64);
                    loop {
                        let plain;
                        let (length, piece) = match next {
                            Response::Bytes { length, packed } => {
                                plain = self.unpack(length as usize, packed)?;
                                (plain.len() as u64, Piece::Data(&plain))
                            }
                            Response::Hole { length } => (length, Piece::Hole(length)),
                            Response::Done => break,
                            _ => return Err(Error::Unexpected("no contents")),
                        };
                        at = at.saturating_add(length);
                        if at > *size {
                            return Err(MORE);
                        }
                        part(i, piece);
                        next = self.hear()?;
                    }
                    came.push(true);
                }
                _ => return Err(Error::Unexpected("no contents")),
            }
        }
        Ok(came)
    }

    fn unpack(&mut self, length: usize, packed: bool) -> Result<Vec<u8>, Error> {
        self.packer
            .unpack(std::mem::take(&mut self.blob), length, packed)
    }

    /// A file of which something `like` it may be here, in no more bytes than it takes. Some of it may have been put in
    /// place before, in `begun`. Whether it came.
    pub fn alike(
        &mut self,
        wanted: &Wanted<'_>,
        like: Option<(&File, Option<&Digest>)>,
        begun: Option<&File>,
        put: Put<'_>,
        known: &Recipes,
    ) -> Result<bool, Error> {
        let all = Range {
            offset: 0,
            length: wanted.size,
        };
        let average = chunks::coarse(wanted.size);
        self.ask_recipe(wanted, all, average)?;
        let mut former = match like {
            Some((file, digest)) => {
                let places = digest.and_then(|digest| known.places(digest, average));
                Some(Former::new(file, average, places)?)
            }
            None => None,
        };
        let (mut cut, mut missing, mut data) = (Vec::new(), Vec::new(), Vec::new());
        // What is here is copied while the other cuts what comes next.
        let came = self.recipe(all, |mut part| {
            cut.extend(part.iter().map(|(_, chunk)| *chunk));
            // Where nothing is put there will be a hole.
            part.retain(|(_, chunk)| !chunk.is_hole());
            if let Some(begun) = begun {
                part.retain(|(range, chunk)| {
                    let here = chunks::look(begun, *range, chunk, &mut data);
                    !matches!(here, Ok(Some(_)))
                });
            }
            missing.append(&mut match &mut former {
                Some(former) => former.reuse(part, put)?,
                None => part,
            });
            Ok(())
        })?;
        if !came {
            return Ok(false);
        }
        if let Some(former) = &mut former {
            missing = former.search(missing, put)?;
        }
        let mut missing = joined(missing);
        // A change of a few bytes is few bytes on the way.
        if let (Some(former), false) = (&mut former, missing.is_empty())
            && former.finer(&cut)?
        {
            let mut new = Vec::new();
            for range in missing {
                self.ask_recipe(wanted, range, FINE)?;
                let came = self.recipe(range, |mut part| {
                    part.retain(|(_, chunk)| !chunk.is_hole());
                    new.append(&mut former.reuse(part, put)?);
                    Ok(())
                })?;
                if !came {
                    return Ok(false);
                }
            }
            missing = joined(new);
        }
        known.keep(wanted.path, wanted.digest, average, cut);
        self.pieces(wanted, put, missing)
    }

    fn ask_recipe(&mut self, wanted: &Wanted<'_>, range: Range, average: u32) -> Result<(), Error> {
        self.ask(&Request::Recipe {
            path: wanted.path.clone(),
            digest: *wanted.digest,
            range,
            average,
        })?;
        Ok(self.stream.flush()?)
    }

    /// The chunks of a part of a file, as they come; false if it is not there any more. All of it is heard, and then what
    /// went wrong here is told.
    fn recipe(
        &mut self,
        range: Range,
        mut each: impl FnMut(Vec<Place>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let (mut fine, mut offset) = (Ok(()), range.offset);
        loop {
            match self.hear()? {
                Response::Chunks(chunks) => {
                    let mut part = Vec::with_capacity(chunks.len());
                    for (place, chunk) in chunks::placed(offset, chunks) {
                        let sound = (1..=BLOB_MAX as u64).contains(&place.length)
                            || chunk.is_hole() && place.length > 0;
                        if !sound || place.end() > range.end() {
                            return Err(Error::Unexpected("chunks beyond the file"));
                        }
                        part.push((place, chunk));
                        offset = place.end();
                    }
                    if fine.is_ok() {
                        fine = each(part);
                    }
                }
                Response::Done => return fine.map(|()| true),
                Response::Gone => return Ok(false),
                _ => return Err(Error::Unexpected("no recipe")),
            }
        }
    }

    fn pieces(
        &mut self,
        wanted: &Wanted<'_>,
        put: Put<'_>,
        ranges: Vec<Range>,
    ) -> Result<bool, Error> {
        for ranges in ranges.chunks(LIST_MAX) {
            self.ask(&Request::Pieces {
                path: wanted.path.clone(),
                digest: *wanted.digest,
                ranges: ranges.to_vec(),
            })?;
            self.stream.flush()?;
            let mut done = Ok(()); // as in `files`
            for range in ranges {
                match self.hear()? {
                    Response::Bytes { length, packed } => {
                        let plain = self.unpack(length as usize, packed)?;
                        if plain.len() as u64 > range.length {
                            return Err(Error::Unexpected("more than was asked for"));
                        }
                        if done.is_ok() {
                            done = put(range.offset, &plain);
                        }
                    }
                    Response::Gone => return Ok(false),
                    _ => return Err(Error::Unexpected("no contents")),
                }
            }
            done?;
        }
        Ok(true)
    }

    /// All up to there is here now, and on the disk; the other notes it meanwhile. It is to be [heard](Self::heard).
    pub fn took(&mut self, sequence: u64) -> Result<(), Error> {
        self.ask(&Request::Took { sequence })?;
        self.flush()
    }

    /// The other has noted what this side took.
    pub fn heard(&mut self) -> Result<(), Error> {
        match self.hear()? {
            Response::Done => Ok(()),
            _ => Err(Error::Unexpected("no acknowledgement")),
        }
    }

    /// Now the other asks.
    pub fn your_turn(&mut self) -> Result<(), Error> {
        self.ask(&Request::YourTurn)?;
        Ok(self.stream.flush()?)
    }

    /// Nothing more.
    pub fn bye(&mut self, farewell: Farewell) -> Result<(), Error> {
        self.ask(&Request::Bye(farewell))?;
        Ok(self.stream.flush()?)
    }
}

/// Asks whether anybody is there who could be greeted.
pub fn ping<S: Read + Write>(stream: &mut S) -> Result<(), Error> {
    frame::write(stream, &Request::Ping, &[])?;
    stream.flush()?;
    match frame::read(stream, &mut Vec::new())? {
        Response::Done => Ok(()),
        _ => Err(Error::Unexpected("no answer to a ping")),
    }
}

/// How many of these, at least one, go in a request: they make a megabyte, and their names fit in a frame.
pub fn together(wanted: &[Wanted<'_>]) -> usize {
    let (mut bytes, mut names) = (0u64, 0);
    let fits = wanted.iter().take(LIST_MAX).take_while(|one| {
        bytes = bytes.saturating_add(one.size);
        names += one.path.as_bytes().len() + one.digest.0.len();
        bytes <= BLOB_MAX as u64 && names <= NAMES
    });
    fits.count().max(1)
}

/// Neighbours made one, none longer than a blob.
fn joined(places: Vec<Place>) -> Vec<Range> {
    let mut joined: Vec<Range> = Vec::new();
    for (range, _) in places {
        match joined.last_mut() {
            Some(last)
                if last.end() == range.offset && last.length + range.length <= BLOB_MAX as u64 =>
            {
                last.length += range.length;
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Entries as the other wrote them.
fn records(mut blob: &[u8]) -> Result<Vec<(Path, Entry)>, Error> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = blob.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((record, rest)) = rest.split_at_checked(length) else {
            return Err(Error::Unexpected("a cut entry"));
        };
        entries.push(codec::decode_record(record)?);
        blob = rest;
    }
    Ok(entries)
}
