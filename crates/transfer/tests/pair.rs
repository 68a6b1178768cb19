//! A puller and a server at the two ends of a socket.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use filesync::{Author, Digest, Entry, Kind, Node, Path, Replica, Standing};
use protocol::{Term, wire::beat::Freshness};
use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    rc::Rc,
    thread,
};
use transfer::{
    Changes, End, Error, Farewell, Files, OLDEST, Origin, Piece, Puller, Recipes, VERSION, Wanted,
    serve,
};

const FRESH: Freshness = Freshness {
    term: Term(7),
    run: 3,
};

/// A modification time in the year 2300.
const LATE: i128 = 10_413_792_000_000_000_005;

fn path(text: &str) -> Path {
    Path::try_from(text.as_bytes().to_vec()).unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Pages of zeros are holes.
fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (i, page) in bytes.chunks(4096).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, i as u64 * 4096).unwrap();
        }
    }
    file
}

/// Goes on with a file.
fn put_next(mut file: &File, piece: Piece<'_>) -> io::Result<()> {
    match piece {
        Piece::Data(bytes) => file.write_all(bytes),
        Piece::Hole(length) => {
            let end = file.seek_relative(length.cast_signed());
            end.and_then(|()| file.set_len(file.stream_position()?))
        }
    }
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn replica(name: &str) -> Replica {
    Replica {
        server: name.parse().unwrap(),
        incarnation: 5,
    }
}

/// Files in memory.
struct Memory {
    files: BTreeMap<Path, (Vec<u8>, Entry)>,
    took: u64,
}

impl Memory {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let mut author = Author {
            replica: replica("beta"),
            count: 0,
            held: false,
            unit: 1,
            uncertain: false,
            forgotten: None,
        };
        let entry = |(name, bytes): &(&str, Vec<u8>)| {
            let kind = match *name {
                "directory" => Kind::Directory,
                _ => Kind::File {
                    size: bytes.len() as u64,
                    digest: digest(bytes),
                },
            };
            let node = Node {
                kind,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: LATE,
                attributes: BTreeMap::new(),
            };
            (
                path(name),
                (bytes.clone(), author.change(None, Some(node), 7)),
            )
        };
        Self {
            files: files.iter().map(entry).collect(),
            took: 0,
        }
    }
}

impl Origin for Memory {
    fn greet(
        &mut self,
        cluster: &str,
        set: &str,
        _: &Replica,
    ) -> Result<(Replica, u64, u64), String> {
        match (cluster, set) {
            ("web", "etc") => Ok((replica("beta"), self.files.len() as u64, self.took)),
            _ => Err(format!("no set {set} in cluster {cluster}")),
        }
    }

    fn standing(&mut self) -> io::Result<Standing> {
        Ok(Standing::new(&replica("beta")))
    }

    fn fresh(&self) -> Freshness {
        FRESH
    }

    fn changes(&mut self, after: u64) -> io::Result<Changes> {
        let new =
            |(_, (_, e)): &(&Path, &(Vec<u8>, Entry))| e.vector.count(&replica("beta")) > after;
        let new = self.files.iter().filter(new);
        let new: Vec<_> = new.map(|(p, (_, e))| Ok((p.clone(), e.clone()))).collect();
        Ok(Box::new(new.into_iter()))
    }

    fn open<'a>(&'a mut self, wanted: &'a [(Path, Digest)]) -> Files<'a> {
        Box::new(wanted.iter().map(|(path, wanted)| {
            let known = self.files.get(path);
            let known = known.filter(|(bytes, _)| digest(bytes) == *wanted);
            // It has grown since.
            let grown = |bytes: &Vec<u8>| [bytes, &b"more"[..]].concat();
            Ok(known.map(|(bytes, _)| (file(&grown(bytes)), bytes.len() as u64)))
        }))
    }

    fn took(&mut self, sequence: u64) -> io::Result<()> {
        self.took = sequence;
        Ok(())
    }
}

/// A stream that counts.
struct Counted(UnixStream, Rc<Cell<usize>>);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.set(self.1.get() + read);
        Ok(read)
    }
}

impl Write for Counted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.0.write(buffer)?;
        self.1.set(self.1.get() + written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Plays against a server of these files; what the server came to, and the bytes that went to and fro.
fn with<T>(
    files: &[(&str, Vec<u8>)],
    play: impl FnOnce(&mut Puller<Counted>) -> T,
) -> (T, Result<Option<Farewell>, Error>, usize, u64) {
    with_version(VERSION, files, play)
}

/// The same, in this version of the protocol.
fn with_version<T>(
    version: u16,
    files: &[(&str, Vec<u8>)],
    play: impl FnOnce(&mut Puller<Counted>) -> T,
) -> (T, Result<Option<Farewell>, Error>, usize, u64) {
    let (here, mut there) = UnixStream::pair().unwrap();
    let mut memory = Memory::new(files);
    thread::scope(|scope| {
        let server =
            scope.spawn(move || (serve(&mut there, &mut memory, &Recipes::new()), memory.took));
        let farewell = |end| match end {
            End::Bye(farewell) => Some(farewell),
            End::YourTurn(_) => None,
        };
        let count = Rc::new(Cell::new(0));
        let puller = Puller::new(Counted(here, count.clone())).unwrap();
        let mut puller = puller.speaking(version);
        let result = play(&mut puller);
        drop(puller);
        let (end, took) = server.join().unwrap();
        (result, end.map(farewell), count.get(), took)
    })
}

#[test]
fn entries_come_in_order_and_only_those_that_are_new() {
    let files: Vec<_> = (0..10)
        .map(|i| {
            (
                ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][i],
                vec![0; i],
            )
        })
        .collect();
    let (names, end, _, took) = with(&files, |puller| {
        let greeting = puller.greet("web", "etc", &replica("alpha")).unwrap();
        assert_eq!(
            (
                greeting.replica,
                greeting.last,
                greeting.told,
                greeting.fresh
            ),
            (replica("beta"), 10, 0, FRESH)
        );
        puller.ask_changes(4).unwrap();
        let names = puller.entries(1).unwrap();
        assert_eq!(puller.entries(3).unwrap(), []);
        puller.took(10).unwrap();
        puller.heard().unwrap();
        puller.your_turn().unwrap();
        names
    });
    let names: Vec<_> = names.iter().map(|(p, _)| p.to_string()).collect();
    assert_eq!(names, ["e", "f", "g", "h", "i", "j"]);
    assert_eq!(end.unwrap(), None, "it is asked to ask now");
    assert_eq!(took, 10);
}

#[test]
fn files_of_every_size_come_whole_and_what_has_changed_meanwhile_is_told() {
    let sizes = [0, 1, 63, 64, 5000, 1 << 20, (1 << 20) + 1, 3_000_000];
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let files: Vec<_> = names
        .iter()
        .zip(sizes)
        .map(|(name, size)| (*name, noise(name, size)))
        .collect();
    let (results, end, ..) = with(&files, |puller| {
        puller.greet("web", "etc", &replica("alpha")).unwrap();
        let targets: Vec<_> = files
            .iter()
            .map(|_| tempfile::tempfile().unwrap())
            .collect();
        let paths: Vec<_> = names.iter().map(|n| path(n)).collect();
        let mut digests: Vec<_> = files.iter().map(|(_, bytes)| digest(bytes)).collect();
        digests[4] = digest(b"as it was before");
        let wanted: Vec<_> = (0..files.len())
            .map(|i| Wanted {
                path: &paths[i],
                digest: &digests[i],
                size: files[i].1.len() as u64,
            })
            .collect();
        let write = |i: usize, piece: Piece<'_>| put_next(&targets[i], piece);
        let came = puller.files(&wanted, write).unwrap();
        puller.bye(Farewell::default()).unwrap();
        let same = targets
            .iter()
            .zip(&files)
            .map(|(t, (_, bytes))| contents(t) == *bytes);
        came.into_iter().zip(same).collect::<Vec<_>>()
    });
    for (i, result) in results.into_iter().enumerate() {
        assert_eq!(result, (i != 4, i != 4), "{}", names[i]);
    }
    assert_eq!(end.unwrap(), Some(Farewell::default()));
}

/// Data of 64 KiB here and there in a file of so many MiB.
fn sparse(size: usize, data: &[usize]) -> Vec<u8> {
    let mut bytes = vec![0; size << 20];
    for at in data {
        bytes[at << 16..(at + 1) << 16].copy_from_slice(&noise(&format!("{at}"), 1 << 16));
    }
    bytes
}

#[test]
fn of_holes_is_told_how_long_they_are_to_whoever_knows_holes() {
    let bytes = sparse(40, &[0, 99, 100, 300]);
    for (version, version_knows_holes) in [(VERSION, true), (OLDEST, false)] {
        let (holes, end, ..) = with_version(version, &[("a", bytes.clone())], |puller| {
            puller.greet("web", "etc", &replica("alpha")).unwrap();
            let wanted = [Wanted {
                path: &path("a"),
                digest: &digest(&bytes),
                size: bytes.len() as u64,
            }];
            let (into, mut holes) = (tempfile::tempfile().unwrap(), 0);
            let put = |_: usize, piece: Piece<'_>| {
                holes += u64::from(matches!(piece, Piece::Hole(_)));
                put_next(&into, piece)
            };
            assert_eq!(puller.files(&wanted, put).unwrap(), [true]);
            assert!(contents(&into) == bytes);
            puller.bye(Farewell::default()).unwrap();
            holes
        });
        end.unwrap();
        assert_eq!(holes > 0, version_knows_holes, "version {version}");
    }
}

#[test]
fn a_change_of_a_sparse_file_costs_no_more_than_its_data() {
    let old = sparse(40, &[0, 99, 100, 300]);
    for data in [
        &[0, 99, 300, 450][..],
        &[0, 200, 99, 100, 300],
        &[0],
        &[639],
    ] {
        let bytes = delta(&old, &sparse(40, data));
        assert!(bytes < 80_000, "{bytes} for {data:?}");
    }
}

/// Bytes on the wire for a file of which an older version is here.
fn delta(old: &[u8], new: &[u8]) -> usize {
    let (same, end, bytes, _) = with(&[("big", new.to_vec())], |puller| {
        puller.greet("web", "etc", &replica("alpha")).unwrap();
        let (into, like) = (tempfile::tempfile().unwrap(), file(old));
        into.set_len(new.len() as u64).unwrap();
        let wanted = Wanted {
            path: &path("big"),
            digest: &digest(new),
            size: new.len() as u64,
        };
        let came = puller
            .alike(
                &wanted,
                Some((&like, None)),
                None,
                &|at, bytes| into.write_all_at(bytes, at),
                &Recipes::new(),
            )
            .unwrap();
        puller.bye(Farewell::default()).unwrap();
        came && contents(&into) == new
    });
    assert!(same && end.unwrap().is_some());
    bytes
}

#[test]
fn a_file_that_came_in_parts_need_not_be_cut_again_and_a_wrong_memory_misleads_once() {
    let first = noise("big", 8 << 20);
    let second = [&b"x"[..], &first].concat();
    let third = [&b"y"[..], &second].concat();
    let files = [("second", second.clone()), ("third", third.clone())];
    let recipes = Recipes::new();
    let ((), end, bytes, _) = with(&files, |puller| {
        puller.greet("web", "etc", &replica("alpha")).unwrap();
        let mut take = |name: &str, new: &[u8], like: &File, digest: &Digest| {
            let into = tempfile::tempfile().unwrap();
            let wanted = Wanted {
                path: &path(name),
                digest: &self::digest(new),
                size: new.len() as u64,
            };
            let like = Some((like, Some(digest)));
            let put: transfer::Put<'_> = &|at, bytes| into.write_all_at(bytes, at);
            assert!(puller.alike(&wanted, like, None, put, &recipes).unwrap());
            contents(&into)
        };
        assert!(take("second", &second, &file(&first), &digest(&first)) == second);
        // It is not what it was: found by whoever checks all, and no more at the next try.
        let other = file(&noise("other", second.len()));
        assert!(take("third", &third, &other, &digest(&second)) != third);
        assert!(take("third", &third, &other, &digest(&second)) == third);
        assert!(take("second", &second, &file(&third), &digest(&third)) == second);
        puller.bye(Farewell::default()).unwrap();
    });
    assert!(end.unwrap().is_some());
    assert!(bytes < 10 << 20, "{bytes}");
}

#[test]
fn what_cannot_be_put_anywhere_is_told_and_not_taken_for_the_next_answer() {
    let names = ["a", "b", "c"];
    let files = names.map(|name| (name, noise(name, 3_000_000)));
    let ((), end, ..) = with(&files, |puller| {
        puller.greet("web", "etc", &replica("alpha")).unwrap();
        let paths = names.map(path);
        let digests = files.each_ref().map(|(_, bytes)| digest(bytes));
        let wanted = [0, 1, 2].map(|i| Wanted {
            path: &paths[i],
            digest: &digests[i],
            size: files[i].1.len() as u64,
        });
        for full in [0, 1, 2] {
            let mut pieces = [0; 3];
            let put = |i: usize, _: Piece<'_>| {
                pieces[i] += 1;
                match i == full && pieces[i] > 1 {
                    true => Err(io::ErrorKind::StorageFull.into()),
                    false => Ok(()),
                }
            };
            let told = puller.files(&wanted, put).unwrap_err();
            assert!(
                matches!(&told, Error::Io(e) if e.kind() == io::ErrorKind::StorageFull),
                "{told}"
            );
            let target = tempfile::tempfile().unwrap();
            let put = |_: usize, piece: Piece<'_>| put_next(&target, piece);
            assert_eq!(puller.files(&wanted[1..2], put).unwrap(), [true]);
            assert!(contents(&target) == files[1].1);
        }
        puller.bye(Farewell::default()).unwrap();
    });
    assert_eq!(end.unwrap(), Some(Farewell::default()));
}

#[test]
fn of_a_large_file_only_what_is_new_is_on_the_wire() {
    let old = noise("big", 32 << 20);
    let inserted = [&b"x"[..], &old].concat();
    let bytes = delta(&old, &inserted);
    assert!(bytes < 40_000, "one byte in front: {bytes} bytes");
    let mut changed = old.clone();
    changed[20_000_000] ^= 1;
    let bytes = delta(&old, &changed);
    assert!(bytes < 40_000, "one byte changed: {bytes} bytes");
    let cut = old[..20 << 20].to_vec();
    assert!(delta(&old, &cut) < 40_000);
    let beginning_lost = old[5_000_001..].to_vec();
    assert!(delta(&old, &beginning_lost) < 40_000);
    let swapped = [&old[20_000_000..], &old[..20_000_000]].concat();
    assert!(delta(&old, &swapped) < 80_000);
    let twice = [&old[..10_000_000], &old[..10_000_000]].concat();
    assert!(delta(&old, &twice) < 80_000);
    let put_in = noise("put in", 3_000_000);
    let here_and_there = [
        &old[..7_000_000],
        &put_in,
        &old[7_000_000..9_000_000],
        b"and",
        &old[9_100_000..],
    ];
    let bytes = delta(&old, &here_and_there.concat());
    assert!(bytes < put_in.len() + 120_000, "{bytes}");
    let other = noise("other", 2 << 20);
    assert!(
        delta(&old, &other) < other.len() * 11 / 10,
        "nothing in common costs little more than all"
    );
}

#[test]
fn another_set_is_refused_in_words_and_before_a_greeting_nothing_is_said() {
    let (refusal, ..) = with(&[], |puller| {
        puller.greet("web", "home", &replica("alpha")).unwrap_err()
    });
    assert!(refusal.to_string().contains("no set home"), "{refusal}");
    let (result, end, ..) = with(&[("a", vec![1])], |puller| {
        puller.ask_changes(0)?;
        puller.entries(1)
    });
    assert!(result.is_err() && end.is_err());
}

#[test]
fn garbage_ends_the_conversation_and_nothing_else() {
    for seed in 0..200 {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let bytes = noise(&format!("garbage {seed}"), 200);
        here.write_all(&bytes).unwrap();
        drop(here);
        assert!(serve(&mut there, &mut Memory::new(&[]), &Recipes::new()).is_err());
    }
}

#[test]
fn an_older_release_is_spoken_to_in_its_version() {
    let (here, mut there) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let files = [("directory", Vec::new()), ("file", Vec::new())];
        let mut memory = Memory::new(&files);
        let server = scope.spawn(move || serve(&mut there, &mut memory, &Recipes::new()));
        let mut puller = Puller::new(here).unwrap().speaking(OLDEST);
        let greeting = puller.greet("web", "etc", &replica("alpha")).unwrap();
        assert_eq!(greeting.standing, Standing::default(), "nobody could tell");
        puller.ask_changes(0).unwrap();
        let times = puller.entries(1).unwrap().into_iter();
        let times = times.map(|(_, entry)| entry.node.unwrap().mtime);
        assert_eq!(times.collect::<Vec<_>>(), [0, i64::MAX.into()]);
        puller.your_turn().unwrap();
        let end = server.join().unwrap();
        assert!(matches!(end, Ok(End::YourTurn(OLDEST))), "{end:?}");
    });
    let (greeting, ..) = with(&[], |puller| {
        puller.greet("web", "etc", &replica("alpha")).unwrap()
    });
    assert!(greeting.standing.is_newcomer());
}
