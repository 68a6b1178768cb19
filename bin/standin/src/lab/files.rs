//! The lab's files: what a person may do with them, and two scenes of the demo.

use super::Story;
use daemon::println;
use lab::{Cluster, Error, wait_for};
use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    time::Duration,
};

/// How long files may take to be everywhere: a run that failed is tried again after seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives the servers files to keep alike, or says why not.
pub fn keep(cluster: &mut Cluster) -> bool {
    let kept = cluster.keep_files(&["change", "election"]);
    if let Err(why) = &kept {
        println!("files are left out: {why}");
    }
    kept.is_ok()
}

/// Power is back, and with it the SSH server, if there was one.
pub fn power_on(cluster: &mut Cluster, server: usize) -> Result<(), Error> {
    cluster.power_on(server)?;
    match cluster.keeps_files() {
        true => cluster.start_ssh(server),
        false => Ok(()),
    }
}

fn path(cluster: &Cluster, server: usize, file: &str) -> Result<PathBuf, Error> {
    if !cluster.keeps_files() {
        return Err(Error::Wrong("files are left out here".into()));
    }
    let plain = |c| matches!(c, Component::Normal(_));
    match Path::new(file).components().all(plain) {
        true => Ok(cluster.files(server).join(file)),
        false => Err(Error::Wrong(format!(
            "{file}: give a name in the set's directory, such as news or docs/news"
        ))),
    }
}

fn failed(file: &str) -> impl Fn(io::Error) -> Error {
    move |e| Error::Wrong(format!("{file}: {e}"))
}

pub fn write(cluster: &Cluster, server: usize, file: &str, text: &str) -> Result<(), Error> {
    let path = path(cluster, server, file)?;
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    folder
        .and_then(|()| fs::write(path, format!("{text}\n")))
        .map_err(failed(file))
}

pub fn remove(cluster: &Cluster, server: usize, file: &str) -> Result<(), Error> {
    fs::remove_file(path(cluster, server, file)?).map_err(failed(file))
}

pub fn read(cluster: &Cluster, file: &str) -> Result<(), Error> {
    for server in 0..cluster.spec().servers {
        let read = fs::read_to_string(path(cluster, server, file)?);
        let power = if cluster.is_on(server) { "" } else { " (off)" };
        let text = read.unwrap_or_else(|e| format!("- ({e})"));
        println!("{}{power}: {}", cluster.name(server), text.trim_end());
    }
    Ok(())
}

/// `standin sync` on the server that the last word names, or on the master.
pub fn sync(cluster: &Cluster, words: &[&str]) -> Result<(), Error> {
    let named = words.split_last().and_then(|(last, rest)| {
        let server = cluster.named(last)?;
        Some((server, rest))
    });
    let (server, words) = match named {
        Some(found) => found,
        None => match cluster.master(0) {
            Some(master) => (master, words),
            None => return Err(Error::Wrong("there is no master; name a server".into())),
        },
    };
    let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    if let [what, file, ..] = &mut words[..]
        && matches!(&**what, "why" | "restore")
    {
        // Here a file is named as it is in the set's directory.
        let path = Cluster::files_path().join(&*file);
        *file = path.display().to_string();
    }
    let mut line = vec!["sync"];
    line.extend(words.iter().map(String::as_str));
    println!("{}", cluster.tell(server, &line)?.trim_end());
    Ok(())
}

/// Waits until these servers have the file.
fn wait_file(cluster: &Cluster, servers: &[usize], file: &str, text: &str) -> Result<(), Error> {
    let has = |server: &usize| {
        let read = fs::read_to_string(cluster.files(*server).join(file));
        read.is_ok_and(|read| read.trim_end() == text)
    };
    wait_for(&format!("{file} is on its servers"), PATIENCE, || {
        servers.iter().all(has).then_some(())
    })
}

/// Where `of` stands in the order of succession, as it sees that itself.
fn rank(cluster: &Cluster, of: usize) -> Option<u64> {
    let status = cluster.status(of)?;
    let mut servers = status["servers"].as_array()?.iter();
    servers.find(|s| s["name"] == cluster.name(of))?["rank"].as_u64()
}

fn slaves(cluster: &Cluster, master: usize) -> Vec<usize> {
    (0..cluster.spec().servers)
        .filter(|s| *s != master)
        .collect()
}

/// Whoever takes over has the files, and whoever has not got the last of them does not take over.
pub fn tell(story: &mut Story<'_>, cluster: &mut Cluster) -> Result<(), Error> {
    let first = cluster.settle()?;
    let writer = cluster.name(first).to_owned();
    let title =
        format!("{writer}, the master, writes a file; when all have it, {writer} loses power");
    story.act(cluster, &title, |cluster| {
        write(cluster, first, "news", "from the first")?;
        wait_file(cluster, &slaves(cluster, first), "news", "from the first")?;
        cluster.power_loss(first)?;
        cluster.wait_master(0, Some(first)).map(drop)
    })?;
    let second = cluster.wait_master(0, Some(first))?;
    read_aloud(cluster, &[second])?;

    power_on(cluster, first)?;
    cluster.settle()?;
    let (writer, left) = (cluster.name(second).to_owned(), slaves(cluster, second));
    wait_file(cluster, &left, "news", "from the first")?;
    let stands = |server: &usize| rank(cluster, *server).unwrap_or(u64::MAX);
    let Some(stale) = left.iter().copied().min_by_key(stands) else {
        return Ok(());
    };
    let fresh: Vec<_> = left.into_iter().filter(|s| *s != stale).collect();
    let title = format!(
        "{}, first in line, loses its SSH server and so misses what {writer} writes; then {writer} loses power",
        cluster.name(stale)
    );
    story.act(cluster, &title, |cluster| {
        cluster.stop_ssh(stale)?;
        write(cluster, second, "news", "from the second")?;
        wait_file(cluster, &fresh, "news", "from the second")?;
        wait_for("the fresh servers stand first", PATIENCE, || {
            let behind = rank(cluster, stale)?;
            let before = |s: &usize| rank(cluster, *s).is_some_and(|r| r < behind);
            fresh.iter().all(before).then_some(())
        })?;
        cluster.power_loss(second)?;
        cluster.wait_master(0, Some(second)).map(drop)
    })?;
    let third = cluster.wait_master(0, Some(second))?;
    read_aloud(cluster, &[third, stale])?;
    if third == stale {
        return Err(Error::Wrong("the one that missed it took over".into()));
    }
    println!("  the fresh slave has won");
    Ok(())
}

fn read_aloud(cluster: &Cluster, servers: &[usize]) -> Result<(), Error> {
    for server in servers {
        let text =
            fs::read_to_string(cluster.files(*server).join("news")).map_err(failed("news"))?;
        println!(
            "  the file on {}: {}",
            cluster.name(*server),
            text.trim_end()
        );
    }
    Ok(())
}
