//! Files that the servers keep alike: each has its own directory, at the same path, and an SSH server.
//!
//! An SSH server of root's wants more users than the namespace of an ordinary user has. There it runs as somebody who is
//! not root, in a namespace within, and lets in nobody else; whom it starts becomes the lab's root again.

use crate::{
    Cluster, Error, FOLDER, NAMES, Signal,
    cluster::{accepted, make_folder},
    process::{binary, find},
    wait_for,
};
use nix::mount::{MsFlags, mount};
use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the SSH servers listen: not even the lab's root may have a lower port within.
const PORT: u16 = 2222;
/// Who the SSH servers let in where there is no user but one.
const OTHER: &str = "lab";
/// The users as an SSH server of the lab sees them: root's shell reads no start-up files, which could do anything and take
/// any time, and whoever may be let in instead of root is there.
const USERS: &str = "{ echo lab:x:1:1::/:/bin/sh; sed '/^root:/s|[^:]*$|/bin/sh|' /etc/passwd; } >\"$0\" && \
                     mount --bind \"$0\" /etc/passwd &&";
/// Room for an index.
const STATE: &str = "size=64m,mode=755";

fn at(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(Error::system(path.display().to_string()))
}

/// Whether the lab has one user alone.
fn one_user() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2) == Some("1")
}

impl Cluster {
    /// The directory that a server keeps like the others'.
    pub fn files(&self, server: usize) -> PathBuf {
        at(self.name(server)).join("files")
    }

    /// Where each server sees its own of these directories.
    pub fn files_path() -> PathBuf {
        at("files")
    }

    /// Gives the servers SSH servers and a set of files, made alike when `on` says so. Before any of them is initialised.
    pub fn keep_files(&mut self, on: &[&str]) -> Result<(), Error> {
        let ours =
            ["standin", "hbd", "listend", "doctord", "electd"].map(|name| (name, binary(name)));
        let (syncd, sshd) = (binary("syncd")?, find("sshd")?);
        // The main daemon looks for the roles beside itself, and it knows itself by its real path.
        let bin = at("bin");
        make_folder(&bin)?;
        for (name, from) in ours {
            let to = bin.join(name);
            let _ = fs::remove_file(&to);
            let made = match name {
                "standin" => fs::copy(from?, &to).map(drop),
                _ => symlink(from?, &to),
            };
            made.map_err(Error::system(to.display().to_string()))?;
        }
        let own = format!(
            "#!/bin/sh\nfor word; do [ \"$last\" = --server ] && server=$word; last=$word; done\n\
             exec unshare -m --propagation private sh -c 'mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"' sh \
             {FOLDER}/$server/files {} {} \"$@\"\n",
            Self::files_path().display(),
            syncd.display()
        );
        write(&bin.join("syncd"), &own, 0o755)?;
        make_folder(&Self::files_path())?;
        make_folder(Path::new("/run/sshd"))?; // sshd wants it, and puts nothing there
        let standin = bin.join("standin");
        for key in ["host", "user"] {
            for file in [key.to_owned(), format!("{key}.pub")] {
                let _ = fs::remove_file(at(&file));
            }
            let words = ["keygen", "--ssh", &at(key).display().to_string()].map(str::to_owned);
            let made = self.net().client_host().output(&standin, &words)?;
            accepted("standin keygen --ssh", made)?;
        }
        for server in 0..self.spec().servers {
            make_folder(&self.files(server))?;
            let (state, none) = (self.state_dir(server), None::<&str>);
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID;
            mount(none, &state, none, flags, Some(STATE))
                .map_err(Error::system(state.display().to_string()))?;
        }
        self.use_programs(bin);
        for server in 0..self.spec().servers {
            self.start_ssh_by(server, &sshd)?;
        }
        let text = self.config_with_files(on)?;
        (0..self.spec().servers).try_for_each(|server| self.write_config(server, &text))?;
        self.keeps_files = true;
        Ok(())
    }

    fn config_with_files(&self, on: &[&str]) -> Result<String, Error> {
        let public = at("host.pub");
        let key =
            fs::read_to_string(&public).map_err(Error::system(public.display().to_string()))?;
        let mut text = self.spec().config(self.spec().servers);
        for name in &NAMES[..self.spec().servers] {
            let named = format!("name = \"{name}\"\n");
            let pinned = format!("{named}host_key = \"{}\"\n", key.trim());
            text = text.replacen(&named, &pinned, 1);
        }
        let _ = write!(
            text,
            "\n[ssh]\nport = {PORT}\nkey = \"{FOLDER}/user\"\n{}\n[[sync]]\nname = \"files\"\npath = \"{}\"\non = {on:?}\n",
            if one_user() {
                format!("user = \"{OTHER}\"\n")
            } else {
                String::new()
            },
            Self::files_path().display()
        );
        Ok(text)
    }

    /// Starts a server's SSH server, which ends with whatever else runs there, and waits until it listens.
    pub fn start_ssh(&mut self, server: usize) -> Result<(), Error> {
        self.start_ssh_by(server, &find("sshd")?)
    }

    fn start_ssh_by(&mut self, server: usize, sshd: &Path) -> Result<(), Error> {
        let public = at("user.pub");
        let key =
            fs::read_to_string(&public).map_err(Error::system(public.display().to_string()))?;
        let (own, one_user) = (at(self.name(server)), one_user());
        let serve = self.args(server, &["serve"]).join(" ");
        let become_root = if one_user {
            "unshare --user --map-root-user "
        } else {
            ""
        };
        let forced = format!("restrict,command=\"{become_root}{FOLDER}/bin/syncd {serve}\" {key}");
        write(&own.join("authorized"), &forced, 0o644)?;
        let address = SocketAddr::new(self.server_address(server), PORT);
        let become_other = match one_user {
            true => "unshare --user --map-user=1 --map-group=1",
            false => "",
        };
        let among = format!("{USERS} exec {become_other} \"$@\"");
        let passwd = own.join("passwd").display().to_string();
        let words = ["--mount", "--propagation", "private", "sh", "-c", &among];
        let mut args: Vec<String> = words.map(str::to_owned).into();
        args.extend([passwd, sshd.display().to_string()]);
        args.extend(["-D", "-e", "-f", "/dev/null"].map(str::to_owned));
        for option in [
            format!("ListenAddress={address}"),
            format!("HostKey={FOLDER}/host"),
            format!("AuthorizedKeysFile={}", own.join("authorized").display()),
            "StrictModes=no".into(),
            "PidFile=none".into(),
            "UsePAM=no".into(),
            "PermitRootLogin=yes".into(),
        ] {
            args.extend(["-o".to_owned(), option]);
        }
        let (unshare, log) = (Path::new("unshare"), own.join("log"));
        let mut child = self.host(server).spawn(unshare, &args, &[], &log)?;
        let what = format!("the SSH server of {} listens", self.name(server));
        wait_for(&what, Duration::from_secs(20), || {
            let reached = self.host(server).run(|| TcpStream::connect(address));
            let ended = matches!(child.try_wait(), Ok(Some(_)));
            (ended || matches!(reached, Ok(Ok(_)))).then_some(ended)
        })
        .and_then(|ended| match ended {
            false => Ok(()),
            true => Err(Error::Refused {
                command: sshd.display().to_string(),
                output: self.log(server),
            }),
        })?;
        self.keep_ssh(server, child);
        Ok(())
    }

    /// Ends a server's SSH server, and whoever it has let in.
    pub fn stop_ssh(&self, server: usize) -> Result<(), Error> {
        let mut processes = self.host(server).processes();
        processes.retain(|p| p.name.starts_with("sshd"));
        processes.iter().try_for_each(|p| p.signal(Signal::SIGKILL))
    }
}
