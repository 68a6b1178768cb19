//! What is to be done.

use crate::{scene::Scene, trees};
use std::{fs, io::Write, os::unix::fs::PermissionsExt};

type Size<'a> = &'a dyn Fn(u64) -> u64;

/// One row of the table.
pub struct Work {
    pub key: &'static str,
    pub title: &'static str,
    /// Part of a run that names none.
    pub usual: bool,
    /// Makes alpha's directory; sizes are scaled.
    pub make: fn(&Scene, Size<'_>) -> Result<(), String>,
    /// Both have the same to begin with; if not, every run is the first.
    pub begin_alike: bool,
    /// Servers besides alpha.
    pub others: usize,
    /// All that is there, if these are account files; the tools that know none copy them.
    pub accounts: &'static [&'static str],
    /// What alpha does before each run.
    pub change: fn(&Scene, usize) -> Result<(), String>,
}

pub const WORKS: &[Work] = &[
    Work {
        change: nothing,
        ..alike("nothing", "nothing changed, 40,000 files", many)
    },
    Work {
        begin_alike: false,
        ..alike("first", "first copy, 40,000 files, 64 MB", many)
    },
    Work {
        change: put_in_front,
        ..alike("front", "1 byte put in front of 256 MiB", large)
    },
    Work {
        change: rename,
        ..alike("rename", "256 MiB renamed", large)
    },
    Work {
        change: chmod,
        ..alike("chmod", "mode of 256 MiB changed", large)
    },
    Work {
        begin_alike: false,
        ..alike("bulk", "first copy, 1 GiB of noise", huge)
    },
    Work {
        others: 3,
        change: |scene, round| touch(scene, round + 1),
        ..alike("small", "4 small files changed, to 3 servers", some)
    },
    Work {
        others: 3,
        accounts: &ACCOUNTS,
        change: add_user,
        ..alike(
            "accounts",
            "account files, a user added, to 3 servers",
            users,
        )
    },
    Work {
        usual: false,
        ..alike("million", "nothing changed, 1,000,000 files", million)
    },
];

const fn alike(
    key: &'static str,
    title: &'static str,
    make: fn(&Scene, Size<'_>) -> Result<(), String>,
) -> Work {
    Work {
        key,
        title,
        usual: true,
        make,
        begin_alike: true,
        others: 1,
        accounts: &[],
        change: nothing,
    }
}

fn told(e: std::io::Error) -> String {
    e.to_string()
}

fn many(scene: &Scene, size: Size<'_>) -> Result<(), String> {
    let files = size(40_000);
    trees::many(&scene.data("alpha"), files, files * 1600).map_err(told)
}

fn million(scene: &Scene, size: Size<'_>) -> Result<(), String> {
    trees::many(&scene.data("alpha"), size(1_000_000), 0).map_err(told)
}

fn large(scene: &Scene, size: Size<'_>) -> Result<(), String> {
    trees::large(&scene.data("alpha").join("large-0"), size(256 << 20)).map_err(told)
}

fn huge(scene: &Scene, size: Size<'_>) -> Result<(), String> {
    trees::large(&scene.data("alpha").join("large-0"), size(1 << 30)).map_err(told)
}

fn some(scene: &Scene, _: Size<'_>) -> Result<(), String> {
    touch(scene, 0)
}

fn touch(scene: &Scene, round: usize) -> Result<(), String> {
    for name in ["first", "second", "third", "fourth"] {
        // Of another length: what stays as long within a second, rsync and csync2 do not see.
        let text = "a line of a file\n".repeat(100 + round);
        fs::write(scene.data("alpha").join(name), text).map_err(told)?;
    }
    Ok(())
}

const ACCOUNTS: [&str; 6] = ["passwd", "shadow", "group", "gshadow", "subuid", "subgid"];

/// A server's own: root, a group of it, and two hundred people.
fn users(scene: &Scene, _: Size<'_>) -> Result<(), String> {
    let first = [
        "root:x:0:0:root:/root:/bin/bash\n",
        "root:*:19700:0:99999:7:::\n",
        "root:x:0:\n",
        "root:*::\n",
        "",
        "",
    ];
    for (name, text) in ACCOUNTS.iter().zip(first) {
        let file = scene.data("alpha").join(name);
        let mode = if name.contains("shadow") {
            0o640
        } else {
            0o644
        };
        fs::write(&file, text)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(mode)))
            .map_err(told)?;
    }
    (0..200).try_for_each(|user| add(scene, 1000 + user))
}

fn add_user(scene: &Scene, round: usize) -> Result<(), String> {
    add(scene, 2000 + round)
}

/// As useradd(8) does it.
fn add(scene: &Scene, id: usize) -> Result<(), String> {
    let (name, subordinate) = (format!("person{id}"), 100_000 + (id - 1000) * 65_536);
    let hash = format!("$y$j9T${id:0>22}${}", "fh3x7k".repeat(7));
    let lines = [
        format!("{name}:x:{id}:{id}::/home/{name}:/bin/bash\n"),
        format!("{name}:{hash}:19700:0:99999:7:::\n"),
        format!("{name}:x:{id}:\n"),
        format!("{name}:!::\n"),
        format!("{name}:{subordinate}:65536\n"),
        format!("{name}:{subordinate}:65536\n"),
    ];
    for (file, line) in ACCOUNTS.iter().zip(lines) {
        let file = fs::File::options()
            .append(true)
            .open(scene.data("alpha").join(file));
        file.and_then(|mut f| f.write_all(line.as_bytes()))
            .map_err(told)?;
    }
    Ok(())
}

fn nothing(_: &Scene, _: usize) -> Result<(), String> {
    Ok(())
}

fn put_in_front(scene: &Scene, round: usize) -> Result<(), String> {
    trees::put_in_front(
        &scene.data("alpha").join("large-0"),
        b'a' + (round % 26) as u8,
    )
    .map_err(told)
}

fn rename(scene: &Scene, round: usize) -> Result<(), String> {
    let name = |n: usize| scene.data("alpha").join(format!("large-{n}"));
    fs::rename(name(round), name(round + 1)).map_err(told)
}

fn chmod(scene: &Scene, round: usize) -> Result<(), String> {
    let mode = if round.is_multiple_of(2) {
        0o600
    } else {
        0o640
    };
    let file = scene.data("alpha").join("large-0");
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).map_err(told)
}
