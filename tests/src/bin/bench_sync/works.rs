//! What is to be done.

use crate::{scene::Scene, trees};
use std::{fs, os::unix::fs::PermissionsExt};

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
        change: accounts,
        ..alike("accounts", "4 small files changed, to 3 servers", some)
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

const ACCOUNTS: [&str; 4] = ["passwd", "shadow", "group", "gshadow"];

fn some(scene: &Scene, _: Size<'_>) -> Result<(), String> {
    accounts(scene, 0)
}

fn accounts(scene: &Scene, round: usize) -> Result<(), String> {
    for name in ACCOUNTS {
        let text = format!("root:{round}:0:0:root:/root:/bin/sh\n").repeat(40);
        fs::write(scene.data("alpha").join(name), text).map_err(told)?;
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
