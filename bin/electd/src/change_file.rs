//! `<run-dir>/electd.changes`: the last change of each virtual server, so that an operator reads why it came about also
//! after a restart of electd. Nothing is decided by it.

use crate::memory_file;
use daemon::Error;
use election::Change;
use protocol::{BootTime, VirtualServerName};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Longer than this, the file is begun anew with what counts.
const LENGTH_MAX: usize = 256 * 1024;

/// A line for each change, the last of a virtual server counts. The first line names the boot.
pub struct ChangeFile {
    path: PathBuf,
    /// None: it could not be written, and its text is lost with this process.
    file: Option<File>,
    length: usize,
    boot: String,
    last: BTreeMap<VirtualServerName, Change>,
}

impl ChangeFile {
    /// Reads what this boot's last electd left.
    pub fn open(run_dir: &Path) -> Result<Self, Error> {
        let boot = format!("{:032x}", u128::from_be_bytes(memory_file::boot_id()?));
        let path = run_dir.join("electd.changes");
        let text = fs::read(&path).unwrap_or_default();
        let last = parse(&String::from_utf8_lossy(&text), &boot, daemon::now());
        let mut this = Self {
            path,
            file: None,
            length: 0,
            boot,
            last,
        };
        this.begin_anew();
        Ok(this)
    }

    /// What is kept.
    pub fn changes(&self) -> impl Iterator<Item = (VirtualServerName, Change)> {
        self.last.clone().into_iter()
    }

    /// Keeps `change`.
    pub fn keep(&mut self, name: VirtualServerName, change: Change) {
        let line = line(&name, &change);
        self.last.insert(name, change);
        let written = match &mut self.file {
            Some(file) if self.length + line.len() <= LENGTH_MAX => file.write_all(line.as_bytes()),
            Some(_) | None => return self.begin_anew(),
        };
        match written {
            Ok(()) => self.length += line.len(),
            Err(e) => self.lost(&e),
        }
    }

    fn begin_anew(&mut self) {
        let lines = self.last.iter().map(|(name, change)| line(name, change));
        let text: String = std::iter::once(format!("{}\n", self.boot))
            .chain(lines)
            .collect();
        let fresh = self.path.with_extension("changes.new");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&fresh).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            fs::rename(&fresh, &self.path)?;
            Ok(file)
        });
        match written {
            Ok(file) => (self.file, self.length) = (Some(file), text.len()),
            Err(e) => self.lost(&e),
        }
    }

    fn lost(&mut self, e: &io::Error) {
        if self.file.take().is_some() {
            log::warn!("cannot write {}: {e}", self.path.display());
        }
    }
}

fn line(name: &VirtualServerName, change: &Change) -> String {
    let at = change.at.map_or(0, |at| at.0);
    let master = change.master.as_ref().map_or("-", |m| m.as_str());
    let reason = change.reason.replace(char::is_control, " ");
    format!("{at} {name} {master} {reason}\n")
}

/// Nothing of another boot, whose time was another; nothing that cannot be read.
fn parse(text: &str, boot: &str, now: BootTime) -> BTreeMap<VirtualServerName, Change> {
    let mut lines = text.lines();
    if lines.next() != Some(boot) {
        return BTreeMap::new();
    }
    let change = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let at = BootTime(words.next()?.parse().ok()?);
        let name = words.next()?.parse().ok()?;
        let master = match words.next()? {
            "-" => None,
            master => Some(master.parse().ok()?),
        };
        let (at, reason) = ((at.0 > 0).then_some(at), words.next()?.to_owned());
        let change = Change { at, master, reason };
        (at <= Some(now)).then_some((name, change))
    };
    lines.filter_map(change).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn change(at: u64, master: Option<&str>, reason: &str) -> Change {
        Change {
            at: (at > 0).then_some(BootTime(at)),
            master: master.map(|m| m.parse().unwrap()),
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn the_last_change_of_each_virtual_server_is_found_by_the_next_electd() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = ChangeFile::open(dir.path()).unwrap();
        let (web, mail): (VirtualServerName, VirtualServerName) =
            ("web".parse().unwrap(), "mail".parse().unwrap());
        file.keep(
            web.clone(),
            change(1, Some("alpha"), "elected with 2 of 3 votes"),
        );
        file.keep(mail.clone(), change(2, None, "eth0: no\ncarrier"));
        file.keep(web.clone(), change(3, None, "stopped"));
        let kept: Vec<_> = ChangeFile::open(dir.path()).unwrap().changes().collect();
        let expected = [
            (mail, change(2, None, "eth0: no carrier")),
            (web, change(3, None, "stopped")),
        ];
        assert_eq!(kept, expected);
    }

    #[test]
    fn the_file_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = ChangeFile::open(dir.path()).unwrap();
        for _ in 0..10 {
            let long = change(7, Some("alpha"), &"x".repeat(LENGTH_MAX / 4));
            file.keep("web".parse().unwrap(), long);
        }
        let length = fs::metadata(dir.path().join("electd.changes"))
            .unwrap()
            .len();
        assert!(length <= LENGTH_MAX as u64, "{length}");
        assert_eq!(ChangeFile::open(dir.path()).unwrap().changes().count(), 1);
    }

    #[test]
    fn another_boot_the_future_and_garbage_count_for_nothing() {
        let now = BootTime(100);
        let good = "b\n5 web alpha elected\n";
        assert_eq!(parse(good, "b", now).len(), 1);
        for bad in [
            "other\n5 web alpha elected\n",
            "b\n101 web alpha elected\n",
            "b\nx web alpha elected\n",
            "b\n5 we/b alpha elected\n",
            "b\n5 web\n",
            "",
        ] {
            assert_eq!(parse(bad, "b", now).len(), 0, "{bad}");
        }
    }
}
