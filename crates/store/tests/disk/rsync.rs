//! Random trees with all kinds of metadata: all arrives, and wherever it is not what was sent, `rsync -aHAXS --delete`
//! makes the same of it.

use crate::{
    common::{Random, Store, differing, fast, folder_times, is_root, tree},
    metadata::{acl, own, set},
};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};
use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

/// A capability (`cap_net_raw+ep`), as the kernel keeps it.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn name(random: &mut Random) -> Vec<u8> {
    let odd: [&[u8]; 6] = [b"n", b"\xff\xfe", b"a\nb", b" ", b"*?", b"-r"];
    let mut name = random.of(&odd).to_vec();
    name.extend(random.below(30).to_string().bytes());
    name
}

/// Something new at a path where nothing is.
fn make(at: &Path, random: &mut Random, files: &[PathBuf]) {
    match random.below(12) {
        0 | 1 => fs::create_dir(at).unwrap(),
        2 => symlink(OsStr::from_bytes(&name(random)), at).unwrap(),
        3 => mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        4 => {
            let (kind, device) = (FileType::CharacterDevice, makedev(1, 3));
            mknodat(CWD, at, kind, Mode::RUSR, device).unwrap();
        }
        5 if !files.is_empty() => {
            let first = &files[random.below(files.len() as u64) as usize];
            fs::hard_link(first, at).unwrap();
            return; // it has all that the file has
        }
        6 => {
            let mut sparse = vec![0; 300_000];
            sparse.extend(random.below(1 << 40).to_le_bytes());
            fs::write(at, sparse).unwrap();
        }
        _ => {
            let byte = random.below(250) as u8;
            fs::write(at, vec![byte; random.below(9000) as usize]).unwrap();
        }
    }
    dress(at, random);
}

/// Owner, mode, attributes and times.
fn dress(at: &Path, random: &mut Random) {
    let kind = fs::symlink_metadata(at).unwrap().file_type();
    own(at, random.of(&[0, 12, 70_000]), random.of(&[0, 34, 80_000]));
    if !kind.is_symlink() {
        let mode = random.of(&[0o644, 0o4755, 0o2750, 0o1777, 0o400, 0o6711]);
        fs::set_permissions(at, Permissions::from_mode(mode)).unwrap();
    }
    if (kind.is_file() || kind.is_dir()) && random.below(3) == 0 {
        set(at, "user.note", &random.below(1 << 50).to_le_bytes());
    }
    if !kind.is_symlink() && random.below(3) == 0 {
        set(at, "system.posix_acl_access", &acl());
    }
    if kind.is_dir() && random.below(3) == 0 {
        set(at, "system.posix_acl_default", &acl());
    }
    if kind.is_file() && random.below(4) == 0 {
        set(at, "security.capability", &CAPABILITY);
    }
    if random.below(4) == 0 {
        let value = random.below(1 << 50).to_le_bytes();
        lsetxattr(at, "trusted.note", &value, XattrFlags::empty()).unwrap();
    }
    let time = Timespec {
        tv_sec: random.below(2_000_000_000) as i64,
        tv_nsec: random.below(1_000_000_000) as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Makes, changes and removes this and that.
fn change(root: &Path, random: &mut Random) {
    for _ in 0..25 {
        let all = tree(root);
        let of = |wanted: fn(&fs::FileType) -> bool| -> Vec<PathBuf> {
            let paths = all.keys().map(|p| root.join(p));
            paths
                .filter(|p| wanted(&fs::symlink_metadata(p).unwrap().file_type()))
                .collect()
        };
        let (mut folders, files) = (of(fs::FileType::is_dir), of(|kind| !kind.is_dir()));
        folders.push(root.to_owned());
        let folder = &folders[random.below(folders.len() as u64) as usize];
        let at = folder.join(OsStr::from_bytes(&name(random)));
        match (fs::symlink_metadata(&at), random.below(4)) {
            (Err(_), _) => make(&at, random, &files),
            (Ok(found), 0) if found.is_dir() => fs::remove_dir_all(&at).unwrap(),
            (Ok(_), 0) => fs::remove_file(&at).unwrap(),
            (Ok(found), 1) if found.is_file() => {
                let extra = random.below(1 << 30).to_string();
                fs::write(&at, extra).unwrap();
            }
            (Ok(_), _) => dress(&at, random),
        }
    }
}

#[test]
fn random_trees_arrive_as_rsync_brings_them() {
    let rsync = Command::new("rsync").arg("--version").output();
    if !is_root() || !rsync.is_ok_and(|o| o.status.success()) {
        let skip = std::env::var_os("STANDIN_TESTS_SKIP_NOTHING").is_none();
        assert!(skip, "only root with rsync can do this");
        return;
    }
    for seed in 0..15 {
        let dir = fast();
        let (alpha, beta) = (
            Store::new(dir.path(), "alpha"),
            Store::new(dir.path(), "beta"),
        );
        let brought = dir.path().join("rsync");
        fs::create_dir(&brought).unwrap();
        let mut random = Random(seed);
        alpha.write("never empty", "");
        for round in 0..4 {
            change(&alpha.root, &mut random);
            alpha.look();
            // A name whose file went elsewhere in the same run may have to wait for the next.
            let complete = (0..3).any(|_| {
                beta.look();
                beta.open().pull(&alpha.open()).unwrap().is_complete()
            });
            assert!(complete, "seed {seed}, round {round}");
            let from = format!("{}/", alpha.root.display());
            let copied = Command::new("rsync")
                .args(["-aHAXS", "--delete", "--exclude=/.standin-*", &from])
                .arg(&brought)
                .output()
                .unwrap();
            assert!(copied.status.success(), "{copied:?}");
            let [sent, ours, theirs] = [&alpha.root, &beta.root, &brought].map(|root| tree(root));
            let what = format!("seed {seed}, round {round}");
            let fine = |path: &PathBuf| {
                ours.get(path) == sent.get(path) || ours.get(path) == theirs.get(path)
            };
            let all = sent.keys().chain(ours.keys());
            assert!(all.clone().all(fine), "{what}: {}", differing(&ours, &sent));
            assert_eq!(
                folder_times(&beta.root),
                folder_times(&alpha.root),
                "{what}"
            );
            for path in ours.keys() {
                let (ours, theirs) = (beta.root.join(path), brought.join(path));
                let blocks = |at: &Path| fs::symlink_metadata(at).unwrap().blocks();
                // A last page that is not whole may stay.
                assert!(
                    blocks(&ours) <= blocks(&theirs) + 8,
                    "{what}: holes of {path:?}"
                );
            }
        }
    }
}
