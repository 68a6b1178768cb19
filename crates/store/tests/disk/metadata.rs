//! All that a file has arrives, whole.

use crate::common::{Store, differing, is_root, tree};
use filesync::Kind;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, makedev,
    mknodat, setxattr, utimensat,
};
use std::{
    fs::{self, File, Permissions},
    io::{Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

/// An access ACL: rwx for the owner, r for user 12345, r-x for the group, mask r-x, nothing for others.
pub fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 7, u32::MAX),
        (0x02, 4, 12345),
        (0x04, 5, u32::MAX),
        (0x10, 5, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

pub fn set(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

pub fn own(path: &Path, uid: u32, gid: u32) {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn fill(from: &Store) {
    let at = |name: &str| from.at(name);
    from.write("plain", "text");
    fs::set_permissions(at("plain"), Permissions::from_mode(0o640)).unwrap();
    from.write("setuid", "#!");
    from.write("empty", "");
    fs::create_dir(at("sticky")).unwrap();
    fs::set_permissions(at("sticky"), Permissions::from_mode(0o1777)).unwrap();
    from.write("sticky/read-only", "r");
    fs::set_permissions(at("sticky/read-only"), Permissions::from_mode(0o400)).unwrap();
    symlink("/etc/passwd", at("absolute")).unwrap();
    symlink(std::ffi::OsStr::from_bytes(b"no\xffwhere"), at("dangling")).unwrap();
    let old = Timespec {
        tv_sec: -86_400,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: old,
    };
    for name in ["plain", "dangling"] {
        utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff\x01\n*'\"\\name");
    fs::write(from.root.join(odd), "odd").unwrap();
    from.write(&"n".repeat(255), "long");
    fs::create_dir(at("links")).unwrap();
    from.write("links/one", "linked");
    fs::hard_link(at("links/one"), at("links/two")).unwrap();
    fs::hard_link(at("links/one"), at("a-third")).unwrap();
    mknodat(
        CWD,
        at("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o620),
        0,
    )
    .unwrap();
    let mut sparse = File::create(at("sparse")).unwrap();
    sparse.write_all(b"head").unwrap();
    sparse.seek(SeekFrom::Start(5 << 20)).unwrap();
    sparse.write_all(b"middle").unwrap();
    sparse.set_len(9 << 20).unwrap();
    set(&at("plain"), "user.note", b"kept\0alike");
    set(&at("sticky"), "user.note", &[7; 300]);
    set(&at("empty"), "system.posix_acl_access", &acl());
    set(&at("sticky"), "system.posix_acl_default", &acl());
    set(&at("pipe"), "system.posix_acl_access", &acl());
    UnixListener::bind(at("socket")).unwrap();
    if is_root() {
        own(&at("plain"), 1234, 4321);
        own(&at("absolute"), 77, 78);
        own(&at("pipe"), 5, 6);
        own(&at("setuid"), 1000, 1001);
        mknodat(
            CWD,
            at("device"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o660),
            makedev(1, 3),
        )
        .unwrap();
        set(&at("device"), "system.posix_acl_access", &acl());
        // cap_net_raw, effective and permitted, version 2.
        let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
        for word in [1u32 << 13, 0, 0, 0] {
            capability.extend(word.to_le_bytes());
        }
        from.write("capable", "elf");
        own(&at("capable"), 9, 9);
        set(&at("capable"), "security.capability", &capability);
    }
    fs::set_permissions(at("setuid"), Permissions::from_mode(0o6755)).unwrap();
}

#[test]
fn all_kinds_and_all_they_have_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (
        Store::new(dir.path(), "alpha"),
        Store::new(dir.path(), "beta"),
    );
    fill(&from);
    let looked = from.look();
    assert_eq!(looked.counts.skipped.count, 1, "the socket: {looked:?}");
    to.look();
    let pulled = to.open().pull(&from.open()).unwrap();
    assert!(pulled.is_complete(), "{pulled:?}");
    let mut wanted = tree(&from.root);
    wanted.remove(Path::new("socket"));
    let got = tree(&to.root);
    assert_eq!(got, wanted, "{}", differing(&got, &wanted));
    let blocks = |store: &Store| fs::metadata(store.at("sparse")).unwrap().blocks();
    assert!(blocks(&to) <= blocks(&from), "holes are holes");

    let looked = to.look();
    assert_eq!((looked.changed, looked.removed), (0, 0), "{looked:?}");
    assert_eq!(to.open().known(), from.open().known());
    assert_eq!(
        to.open().pull(&from.open()).unwrap().operations,
        0,
        "a second run"
    );
    let named = |name: &str| from.open().known()[name].kind.clone();
    assert!(
        matches!(named("links/two"), Kind::HardLink { to } if to == crate::common::path("a-third"))
    );
}

#[test]
fn each_change_of_metadata_alone_arrives_too() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (
        Store::new(dir.path(), "alpha"),
        Store::new(dir.path(), "beta"),
    );
    fill(&from);
    fs::remove_file(from.at("socket")).unwrap();
    let round = || {
        from.look();
        to.look();
        let (a, b) = (from.open(), to.open());
        let pulled = b.pull(&a).unwrap();
        assert!(pulled.is_complete(), "{pulled:?}");
        let (wanted, got) = (tree(&from.root), tree(&to.root));
        assert_eq!(got, wanted, "{}", differing(&got, &wanted));
    };
    round();
    fs::set_permissions(from.at("links/two"), Permissions::from_mode(0o4711)).unwrap();
    round();
    fs::set_permissions(from.at("sticky"), Permissions::from_mode(0o2750)).unwrap();
    round();
    rustix::fs::removexattr(from.at("plain"), "user.note").unwrap();
    set(&from.at("sparse"), "user.new", b"1");
    round();
    rustix::fs::removexattr(from.at("sticky"), "system.posix_acl_default").unwrap();
    rustix::fs::removexattr(from.at("pipe"), "system.posix_acl_access").unwrap();
    round();
    fs::hard_link(from.at("plain"), from.at("sticky/plain")).unwrap();
    fs::remove_file(from.at("a-third")).unwrap();
    round();
    if is_root() {
        own(&from.at("setuid"), 3, 3);
        own(&from.at("links"), 3, 4);
        round();
    }
}
