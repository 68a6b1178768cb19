//! Frames: a header by `protocol::codec`, and bytes that need no reading.
//!
//! ```text
//!   header length (u32, little-endian)   blob length (u32)   header   blob
//! ```

use filesync::{Digest, Knowledge, Path, Replica, Standing};
use linux::sparse::Extent;
use protocol::{
    codec::{self, CodecError, MESSAGE_MAX},
    wire::beat::Freshness,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt,
    io::{self, Read, Write},
};

/// Version of this protocol. Whoever begins names one, and whoever answers speaks no newer one.
pub const VERSION: u16 = 4;

/// The oldest version that is spoken still: nobody tells in it of its history.
pub const OLDEST: u16 = 3;

/// Longest blob in bytes.
pub const BLOB_MAX: usize = 1 << 20;

/// Most files, or ranges, in one request.
pub const LIST_MAX: usize = 256;

/// Most notes in a farewell.
pub const NOTES_MAX: usize = 16;
/// Longest note in characters.
pub const NOTE_MAX: usize = 300;

/// So much of a blob is packed to see whether it pays.
const SAMPLE: usize = 16 * 1024;

/// Why two replicas could not go on.
#[derive(Debug)]
pub enum Error {
    /// The connection, or a file of this side.
    Io(io::Error),
    /// What the other said is no message.
    Codec(CodecError),
    /// The other said something that is not its turn to say, or more than it may.
    Unexpected(&'static str),
    /// The other refused, in its words.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "{e}"),
            Self::Codec(e) => write!(f, "{e}"),
            Self::Unexpected(what) => {
                write!(f, "the other server said something unexpected: {what}")
            }
            Self::Refused(why) => write!(f, "the other server refuses: {}", why.escape_debug()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(e) => Some(e),
            Self::Codec(e) => Some(e),
            Self::Unexpected(_) | Self::Refused(_) => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<CodecError> for Error {
    fn from(e: CodecError) -> Self {
        Self::Codec(e)
    }
}

/// What the puller asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello {
        version: u16,
        chunker: u32,
        cluster: String,
        set: String,
        replica: Replica,
    },
    /// Entries with a sequence number above this one; the first of them.
    Changes {
        after: u64,
    },
    /// The next of them.
    More,
    /// Whole files. Those that fit in a blob come several to an answer, any other one in parts.
    Files(Vec<(Path, Digest)>),
    /// How this part of a file is cut into chunks of about so many bytes.
    Recipe {
        path: Path,
        digest: Digest,
        range: Range,
        average: u32,
    },
    /// Parts of a file.
    Pieces {
        path: Path,
        digest: Digest,
        ranges: Vec<Range>,
    },
    /// All up to this sequence number is here now.
    Took {
        sequence: u64,
    },
    /// Whether anybody is there.
    Ping,
    /// Now the other asks, on the same connection, until it says `Bye`.
    YourTurn,
    Bye(Farewell),
}

/// What the puller says of itself when it has no more to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// What it took.
    pub taken: u64,
    /// What it could not take now.
    pub left: u64,
    /// Its versions that lost a conflict.
    pub kept: u64,
    /// What somebody should look at, [`NOTES_MAX`] at most.
    pub notes: Vec<String>,
}

/// Part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Range {
    /// Where it ends.
    pub(crate) fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    pub(crate) fn of(extent: &Extent) -> Self {
        Self {
            offset: extent.from,
            length: extent.length(),
        }
    }

    /// What of it is from there on.
    pub(crate) fn after(self, offset: u64) -> Self {
        let length = self.end().saturating_sub(offset);
        Self { offset, length }
    }
}

/// One chunk of a recipe. The digest of the whole file is what counts; this one only says where it may come from. Since
/// version 4 it may be a hole, however long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) length: u32,
    pub(crate) hash: [u8; 8],
}

impl Chunk {
    /// What a hole has for a hash.
    pub(crate) const HOLE: [u8; 8] = [0; 8];

    /// Of a hole with so many bytes left, as much as a chunk can tell.
    pub(crate) fn hole(left: u64) -> Self {
        Self {
            length: u32::try_from(left).unwrap_or(u32::MAX),
            hash: Self::HOLE,
        }
    }

    pub(crate) fn is_hole(&self) -> bool {
        self.hash == Self::HOLE
    }
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Response {
    Hello {
        version: u16,
        replica: Replica,
        /// Sequence number of its last entry.
        last: u64,
        /// Up to where it believes the puller has all.
        told: u64,
        /// How fresh it is.
        fresh: Freshness,
    },
    /// In the blob: entries as records; none: that was all.
    Entries,
    /// In the blob: contents, or a part of them.
    Bytes {
        /// Length of what is in the blob, once it is unpacked.
        length: u32,
        packed: bool,
    },
    /// In the blob: the next of the files asked for, one behind another. Their lengths; none: it is not there any more.
    Together {
        lengths: Vec<Option<u32>>,
        packed: bool,
    },
    Chunks(Vec<Chunk>),
    /// It is not there any more, or not with these contents.
    Gone,
    /// That was all.
    Done,
    Refused(String),
    /// The history that it is part of, and what it has heard of; since version 4, after its greeting.
    Standing(Standing, Knowledge),
    /// Among a file's parts: so many zeros; since version 4.
    Hole {
        length: u64,
    },
}

/// Writes one frame; nothing is flushed.
pub(crate) fn write(
    to: &mut impl Write,
    header: &impl Serialize,
    blob: &[u8],
) -> Result<(), Error> {
    let header = codec::encode(header)?;
    let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    debug_assert!(blob.len() <= BLOB_MAX);
    to.write_all(&length(header.len()))?;
    to.write_all(&length(blob.len()))?;
    to.write_all(&header)?;
    Ok(to.write_all(blob)?)
}

/// Reads one frame; `blob` is made to hold what came with it.
pub(crate) fn read<T: DeserializeOwned>(
    from: &mut impl Read,
    blob: &mut Vec<u8>,
) -> Result<T, Error> {
    let mut lengths = [0; 8];
    from.read_exact(&mut lengths)?;
    let [a, b, c, d, e, f, g, h] = lengths;
    let header = u32::from_le_bytes([a, b, c, d]) as usize;
    let bulk = u32::from_le_bytes([e, f, g, h]) as usize;
    if header > MESSAGE_MAX || bulk > BLOB_MAX {
        return Err(Error::Unexpected("a frame that is too long"));
    }
    let mut bytes = vec![0; header];
    from.read_exact(&mut bytes)?;
    blob.clear();
    // Only what has come is made room for.
    let come = from.take(bulk as u64).read_to_end(blob)?;
    if come < bulk {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(codec::decode(&bytes)?)
}

/// Packs blobs, and unpacks them.
pub(crate) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(1)?,
            decompressor: zstd::bulk::Decompressor::new()?,
            packed: Vec::new(),
        })
    }

    /// What `plain` is packed, if that is worth it. Of much, a sample tells.
    pub(crate) fn pack(&mut self, plain: &[u8]) -> Option<&[u8]> {
        let middle = plain.len() / 2;
        let sample = plain.get(middle..middle + SAMPLE);
        let pays = plain.len() < 4 * SAMPLE || sample.is_some_and(|s| self.squeeze(s));
        (plain.len() >= 64 && pays && self.squeeze(plain)).then_some(&self.packed)
    }

    fn squeeze(&mut self, plain: &[u8]) -> bool {
        self.packed.resize(plain.len() - plain.len() / 16, 0);
        // What does not fit is not worth it.
        let length = self
            .compressor
            .compress_to_buffer(plain, &mut self.packed[..]);
        length.is_ok_and(|length| {
            self.packed.truncate(length);
            true
        })
    }

    /// What `blob` holds, `length` bytes of it once it is unpacked.
    pub(crate) fn unpack(
        &mut self,
        blob: Vec<u8>,
        length: usize,
        packed: bool,
    ) -> Result<Vec<u8>, Error> {
        if length > BLOB_MAX {
            return Err(Error::Unexpected("contents that are too long"));
        }
        let plain = if packed {
            self.decompressor.decompress(&blob, length)?
        } else {
            blob
        };
        if plain.len() == length {
            Ok(plain)
        } else {
            Err(Error::Unexpected("contents of another length than told"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_and_a_cut_or_boastful_one_does_not() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Response::Entries, b"blob").unwrap();
        let mut blob = Vec::new();
        let read_back: Response = read(&mut &bytes[..], &mut blob).unwrap();
        assert_eq!((read_back, &blob[..]), (Response::Entries, &b"blob"[..]));
        for cut in 0..bytes.len() {
            assert!(read::<Response>(&mut &bytes[..cut], &mut blob).is_err());
        }
        let mut boast = bytes.clone();
        boast[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read::<Response>(&mut &boast[..], &mut blob).is_err());
        boast[4..8].copy_from_slice(&(BLOB_MAX as u32).to_le_bytes());
        let mut blob = Vec::new();
        assert!(read::<Response>(&mut &boast[..], &mut blob).is_err());
        assert!(
            blob.capacity() < 1000,
            "room is made for what has come only"
        );
    }

    #[test]
    fn packing_is_undone_and_not_done_where_it_does_not_pay() {
        let mut packer = Packer::new().unwrap();
        let text = b"never two masters, never a lost file, never a mystery. ".repeat(50);
        let packed = packer.pack(&text).unwrap().to_vec();
        assert!(packed.len() < text.len() / 5);
        let length = text.len();
        assert_eq!(packer.unpack(packed.clone(), length, true).unwrap(), text);
        assert!(packer.unpack(packed.clone(), length - 1, true).is_err());
        assert!(packer.unpack(packed, usize::MAX, true).is_err());
        let long = text.repeat(100);
        let packed = packer.pack(&long).unwrap().to_vec();
        assert_eq!(packer.unpack(packed, long.len(), true).unwrap(), long);
        for length in [96, 4096, 1 << 20] {
            let mut noise = vec![0; length];
            let mut digest = blake3::Hasher::new().update(b"noise").finalize_xof();
            digest.fill(&mut noise);
            assert_eq!(packer.pack(&noise), None, "{length}");
        }
    }
}
