//! What the system does not allow leaves every file as it was.

use crate::common::{Store, folder_times, is_root, later, path, tree};
use filesync::{Node, Path};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    process::Command,
};
use store::{Applied, Contents, apply};

pub fn offer(from: &Store, to: &crate::common::Open, contents: &mut dyn Contents) -> Applied {
    let a = from.open();
    let offered = a
        .index
        .since(0)
        .unwrap()
        .map(|row| row.map(|(p, r)| (p, r.entry)));
    let offered = offered.collect::<Result<Vec<_>, _>>().unwrap();
    let operations = filesync::Planner::default().batch(&to.index.reader().unwrap(), offered);
    drop(a);
    apply(&to.set, &to.index, operations, contents, later()).unwrap()
}

/// Mounts of a thread of its own, which nobody else sees.
fn with_mount(test: impl FnOnce(&std::path::Path) + Send) {
    if !is_root() {
        return; // only root can make a file system of a size
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            test(dir.path());
        });
    });
}

fn memory(at: &std::path::Path, flags: MsFlags, options: &str) {
    mount(Some("none"), at, Some("tmpfs"), flags, Some(options)).unwrap();
}

/// The contents of files named so.
struct Given(&'static [(&'static str, usize)]);

impl Contents for Given {
    fn resumes(&self) -> bool {
        true
    }

    fn bring(&mut self, path: &Path, _: &Node, into: &mut store::Filling<'_>) -> io::Result<()> {
        let found = self
            .0
            .iter()
            .find(|(name, _)| path.as_bytes() == name.as_bytes());
        let (_, size) = found.ok_or(io::ErrorKind::NotConnected)?;
        into.write_all(&vec![b'n'; *size])
    }
}

const NEW: Given = Given(&[("big", 2 << 20), ("small", 100), ("zero", 5)]);

fn scene(dir: &std::path::Path) -> (Store, Store) {
    let (alpha, beta) = (Store::new(dir, "alpha"), Store::new(dir, "beta"));
    memory(&beta.root, MsFlags::empty(), "size=1m,mode=755");
    for name in ["big", "small"] {
        beta.write(name, "old");
    }
    beta.look();
    alpha.look();
    alpha.open().pull(&beta.open()).unwrap();
    for (name, size) in NEW.0 {
        alpha.write(name, vec![b'n'; *size]);
    }
    alpha.look();
    (alpha, beta)
}

#[test]
fn on_a_full_disk_what_has_no_room_stays_and_the_rest_goes_on() {
    with_mount(|dir| {
        let (alpha, beta) = scene(dir);
        let open = beta.open();
        let applied = offer(&alpha, &open, &mut { NEW });
        assert_eq!((applied.done, applied.failed.count), (2, 1), "{applied:?}");
        let (at, why) = &applied.failed.first[0];
        assert_eq!(*at, path("big"));
        assert!(why.contains("big") && why.contains("No space"), "{why}");
        assert_eq!(fs::read(beta.at("big")).unwrap(), b"old");
        assert_eq!(fs::read_dir(beta.at(store::STAGE)).unwrap().count(), 0);
        memory(&beta.root, MsFlags::MS_REMOUNT, "size=8m");
        let applied = offer(&alpha, &open, &mut { NEW });
        assert!(applied.is_complete() && applied.done == 1, "{applied:?}");
        assert_eq!(tree(&alpha.root), tree(&beta.root));
    });
}

#[test]
fn a_file_system_of_whole_seconds_holds_what_it_can_and_nobody_else_loses_by_it() {
    with_mount(|dir| {
        let (alpha, beta) = (Store::new(dir, "alpha"), Store::new(dir, "beta"));
        let image = dir.join("image");
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let done = |name: &str, arguments: &[&std::ffi::OsStr]| {
            let output = Command::new(name).args(arguments).output().unwrap();
            assert!(output.status.success(), "{name}: {output:?}");
        };
        let small_inodes = ["-q", "-F", "-I", "128"].map(std::ffi::OsStr::new);
        done(
            "mkfs.ext4",
            &[&small_inodes[..], &[image.as_os_str()]].concat(),
        );
        done(
            "mount",
            &[
                "-o".as_ref(),
                "loop".as_ref(),
                image.as_ref(),
                beta.root.as_ref(),
            ],
        );
        fs::remove_dir(beta.at("lost+found")).unwrap();
        fs::create_dir(alpha.at("d")).unwrap();
        alpha.write("d/far", "");
        std::os::unix::fs::symlink("x", alpha.at("link")).unwrap();
        alpha.write("now", "1");
        let far = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1 << 32);
        let file = fs::File::options()
            .write(true)
            .open(alpha.at("d/far"))
            .unwrap();
        file.set_modified(far).unwrap();
        alpha.look();
        beta.look();
        assert!(beta.open().pull(&alpha.open()).unwrap().is_complete());
        let before = (tree(&alpha.root), folder_times(&alpha.root));
        for _ in 0..2 {
            assert_eq!((alpha.look().changed, beta.look().changed), (0, 0));
            for (here, there) in [(&alpha, &beta), (&beta, &alpha)] {
                let pulled = here.open().pull(&there.open()).unwrap();
                assert!(pulled.is_complete());
            }
        }
        fs::set_permissions(beta.at("now"), fs::Permissions::from_mode(0o604)).unwrap();
        assert_eq!(beta.look().changed, 1);
        alpha.open().pull(&beta.open()).unwrap();
        let (mut now, times) = (tree(&alpha.root), folder_times(&alpha.root));
        now.get_mut(std::path::Path::new("now")).unwrap().mode |= 0o40;
        assert_eq!((now, times), before);
        fs::write(beta.at("now"), "another").unwrap();
        assert_eq!(beta.look().changed, 1);
        alpha.open().pull(&beta.open()).unwrap();
        assert_eq!(fs::read(alpha.at("now")).unwrap(), b"another");
    });
}

#[test]
fn where_nothing_can_be_written_everything_stays() {
    with_mount(|dir| {
        let (alpha, beta) = scene(dir);
        let open = beta.open();
        let before = tree(&beta.root);
        memory(
            &beta.root,
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            "size=1m",
        );
        let applied = offer(&alpha, &open, &mut { NEW });
        assert_eq!((applied.done, applied.failed.count), (0, 3), "{applied:?}");
        assert!(
            applied.failed.first[0].1.contains("Read-only"),
            "{applied:?}"
        );
        assert_eq!(tree(&beta.root), before);
    });
}

#[test]
fn what_is_mounted_in_a_set_is_neither_read_nor_written_nor_removed() {
    with_mount(|dir| {
        let alpha = Store::new(dir, "alpha");
        fs::create_dir(alpha.at("inner")).unwrap();
        alpha.write("inner/x", "1");
        alpha.write("y", "1");
        alpha.look();
        memory(&alpha.at("inner"), MsFlags::empty(), "size=1m");
        alpha.write("inner/other", "1");
        let looked = alpha.look();
        assert_eq!((looked.changed, looked.removed), (0, 0), "{looked:?}");
        assert_eq!(looked.counts.unreadable.first[0].0, path("inner"));
        assert!(alpha.open().set.read(&path("inner/other")).is_err());
    });
}

#[test]
fn wrong_contents_or_none_leave_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = (
        Store::new(dir.path(), "alpha"),
        Store::new(dir.path(), "beta"),
    );
    alpha.write("a", "old");
    alpha.write("zero", "");
    alpha.look();
    beta.look();
    beta.open().pull(&alpha.open()).unwrap();
    alpha.write("a", "nnn");
    alpha.write("b", "nnn");
    alpha.look();
    beta.look();
    let before = tree(&beta.root);
    let open = beta.open();
    for mut wrong in [Given(&[("a", 2), ("b", 4)]), Given(&[])] {
        let applied = offer(&alpha, &open, &mut wrong);
        assert_eq!((applied.done, applied.failed.count), (0, 2), "{applied:?}");
        assert_eq!(tree(&beta.root), before);
    }
    assert!(offer(&alpha, &open, &mut Given(&[("a", 3), ("b", 3)])).is_complete());
}
