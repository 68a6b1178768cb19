//! Who makes files alike.

use crate::scene::{Scene, fine};
use std::{path::PathBuf, process::Command};

/// One way to do it.
pub struct Tool {
    pub key: &'static str,
    pub title: &'static str,
    /// The call that is measured.
    pub call: fn(&Scene) -> Result<Command, String>,
}

/// rsync first: the others are measured by it.
pub const TOOLS: &[Tool] = &[
    Tool {
        key: "rsync",
        title: "rsync",
        call: rsync,
    },
    Tool {
        key: "unison",
        title: "unison",
        call: unison,
    },
    Tool {
        key: "syncd",
        title: "syncd, cold",
        call: cold,
    },
];

impl Tool {
    pub fn run(&self, scene: &Scene) -> Result<(), String> {
        fine(&mut (self.call)(scene)?).map(drop)
    }
}

/// The one that was built with this.
pub fn syncd() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    Ok(own.with_file_name("syncd"))
}

fn rsync(scene: &Scene) -> Result<Command, String> {
    let mut command = Command::new("rsync");
    command
        .args(["-aHAXS", "--delete", "-e"])
        .arg(format!("ssh {}", scene.ssh_options()))
        .arg(format!("{}/", scene.data("alpha").display()))
        .arg(format!("root@127.0.0.1:{}/", scene.data("beta").display()));
    Ok(command)
}

/// It knows no ACL, no extended attribute and no hard link; the trees here have none.
fn unison(scene: &Scene) -> Result<Command, String> {
    let mut command = Command::new("unison");
    command
        .env("UNISON", scene.at("unison"))
        .args([
            "-batch",
            "-silent",
            "-owner",
            "-group",
            "-numericids",
            "-times",
        ])
        .args(["-perms", "-1", "-confirmbigdel=false", "-sshargs"])
        .arg(scene.ssh_options())
        .arg(scene.data("alpha"))
        .arg(format!(
            "ssh://root@127.0.0.1/{}",
            scene.data("beta").display()
        ));
    Ok(command)
}

fn cold(scene: &Scene) -> Result<Command, String> {
    let mut command = scene.on("alpha", &syncd()?);
    command.arg("run").args(scene.options("alpha"));
    Ok(command)
}
