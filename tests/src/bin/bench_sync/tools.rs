//! Who makes files alike.

use crate::scene::{Scene, fine};
use daemon::ctl;
use protocol::{
    Role,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::Detail,
    },
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What is done to a scene before it is measured.
type Begin = fn(&Scene) -> Result<(), String>;

/// One way to do it.
pub struct Tool {
    pub key: &'static str,
    pub title: &'static str,
    /// Sessions are kept by alpha's daemon.
    pub warm: bool,
    /// It knows nanoseconds.
    pub exact: bool,
    /// What syncd does and it does not.
    pub lacks: &'static str,
    /// Starts what it needs besides SSH servers.
    pub start: fn(&mut Scene) -> Result<(), String>,
    /// Makes all alike to begin with, if the call that is measured takes too long for it.
    pub begin: Option<Begin>,
    /// The call that is measured.
    pub call: fn(&Scene) -> Result<Command, String>,
}

/// rsync first: the others are measured by it.
pub const TOOLS: &[Tool] = &[
    Tool {
        lacks: "durable",
        ..tool("rsync", "rsync", rsync)
    },
    tool("durable", "rsync, sync -f", durable),
    Tool {
        exact: false,
        lacks: "durable, ACLs, attributes, hard links",
        ..tool("unison", "unison", unison)
    },
    Tool {
        exact: false,
        lacks: "durable, ACLs, attributes, hard links, encrypted",
        start: Scene::start_csync2,
        begin: Some(Scene::begin_csync2),
        ..tool("csync2", "csync2", csync2)
    },
    Tool {
        start: Scene::make_room,
        ..tool("cold", "syncd, cold", cold)
    },
    Tool {
        warm: true,
        start: Scene::start_daemon,
        ..tool("warm", "syncd, warm", warm)
    },
];

const fn tool(
    key: &'static str,
    title: &'static str,
    call: fn(&Scene) -> Result<Command, String>,
) -> Tool {
    Tool {
        key,
        title,
        warm: false,
        exact: true,
        lacks: "",
        start: |_| Ok(()),
        begin: None,
        call,
    }
}

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

/// One command for all others, one after another as a script would.
fn each(scene: &Scene, line: impl Fn(&str, &str) -> String) -> Command {
    let lines = scene.others().iter().map(|(side, at)| line(side, at));
    let mut command = Command::new("sh");
    command.args(["-ec", &lines.collect::<Vec<_>>().join("; ")]);
    command
}

fn rsync(scene: &Scene) -> Result<Command, String> {
    let (from, ssh) = (scene.data("alpha"), scene.ssh_options());
    Ok(each(scene, |side, address| {
        let to = scene.data(side);
        format!(
            "rsync -aHAXS --delete -e 'ssh {ssh}' {}/ root@{address}:{}/",
            from.display(),
            to.display()
        )
    }))
}

fn durable(scene: &Scene) -> Result<Command, String> {
    let (from, ssh) = (scene.data("alpha"), scene.ssh_options());
    Ok(each(scene, |side, address| {
        let to = scene.data(side).display().to_string();
        format!(
            "rsync -aHAXS --delete -e 'ssh {ssh}' {}/ root@{address}:{to}/; ssh {ssh} root@{address} sync -f {to}",
            from.display(),
        )
    }))
}

/// It knows no ACL, no extended attribute and no hard link; the trees here have none.
fn unison(scene: &Scene) -> Result<Command, String> {
    let (from, ssh) = (scene.data("alpha"), scene.ssh_options());
    let mut command = each(scene, |side, address| {
        format!(
            "unison -batch -silent -owner -group -numericids -times -perms -1 -confirmbigdel=false -sshargs '{ssh}' \
             -servercmd 'env UNISON={} unison' {} \
             ssh://root@{address}/{}",
            scene.at("unison-there").display(),
            from.display(),
            scene.data(side).display()
        )
    });
    command.env("UNISON", scene.at("unison"));
    Ok(command)
}

fn csync2(scene: &Scene) -> Result<Command, String> {
    let mut command = scene.csync2("alpha");
    command.arg("-x");
    Ok(command)
}

fn cold(scene: &Scene) -> Result<Command, String> {
    let mut command = scene.on("alpha", &syncd()?);
    command.arg("run").args(scene.options("alpha"));
    Ok(command)
}

/// This program once more, as [`now`].
fn warm(scene: &Scene) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(own);
    command.arg("--now").arg(scene.at("alpha").join("run"));
    Ok(command)
}

/// Has the daemon make all alike, and returns when that is done.
pub fn now(run_dir: &Path) -> Result<(), String> {
    let all = CtlRequest::SyncNow {
        sets: Vec::new(),
        peers: Vec::new(),
    };
    let patience = Duration::from_secs(10);
    let done = ctl::call_until_done(run_dir, Role::Syncd, &all, patience);
    let CtlReply::Status(status) = done.map_err(|e| e.to_string())? else {
        return Err("no status".into());
    };
    let Detail::Syncd(syncd) = status.detail else {
        return Err("no status of syncd".into());
    };
    let mut peers = syncd.sets.iter().flat_map(|s| &s.peers);
    match peers.find(|p| p.debt.is_some()) {
        Some(owed) => Err(format!("{owed:?}")),
        None => Ok(()),
    }
}
