//! `standin keygen [FILE]`: a new cluster key; with `--ssh` the pair of keys by which servers reach one another's files.

use crate::ssh;
use clap::{Arg, ArgAction, ArgMatches, Command};
use daemon::Error;
use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{self, Stdio},
};

pub fn command() -> Command {
    Command::new("keygen")
        .about("Make a new cluster key, or SSH key, mode 0600; never overwrites a file")
        .arg(Arg::new("ssh").long("ssh").action(ArgAction::SetTrue).help(
            "The pair of SSH keys to keep files alike with; tells its line for authorized_keys",
        ))
        .arg(Arg::new("file").value_name("FILE").help(format!(
            "Default: {}, or {} of an SSH key",
            config::KEY_FILE,
            config::SSH_KEY
        )))
}

pub fn run(matches: &ArgMatches) -> Result<String, Error> {
    let ssh = matches.get_flag("ssh");
    let usual = if ssh {
        config::SSH_KEY
    } else {
        config::KEY_FILE
    };
    let file = matches
        .get_one::<String>("file")
        .map_or(usual, String::as_str);
    if ssh {
        return ssh_key(Path::new(file));
    }
    write(Path::new(file)).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => Error::Failed(format!(
            "{file} exists and is left as it is; to change the key of a cluster, make a new one in another \
             file and add its line to this one"
        )),
        _ => Error::io(format!("cannot write {file}"), e),
    })?;
    Ok(format!(
        "{file}: new cluster key; copy it to every server and keep it secret"
    ))
}

fn write(file: &Path) -> io::Result<()> {
    let key = daemon::random::<32>().map_err(io::Error::other)?;
    let mut text = "# cluster key of standin: the same on all servers, and secret\n".to_owned();
    for byte in key {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The SSH server that each server has anyway comes with the program that makes its keys.
fn ssh_key(file: &Path) -> Result<String, Error> {
    let (shown, public) = (file.display(), ssh::public_of(file));
    for there in [file, &public] {
        // Not `exists`: what cannot be looked at must not be overwritten either.
        if fs::symlink_metadata(there).is_ok() {
            let line = ssh::line_of(file).map(|l| format!("; its line in authorized_keys:\n{l}"));
            return Err(Error::Failed(format!(
                "{} exists and is left as it is{}",
                there.display(),
                line.unwrap_or_default()
            )));
        }
    }
    let made = process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "standin", "-f"])
        .arg(file)
        // It asks before it overwrites, and nobody says yes.
        .stdin(Stdio::null())
        .output();
    let made = made.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::Failed(
            "ssh-keygen is not installed; it comes with OpenSSH: apt-get install openssh-client"
                .into(),
        ),
        _ => Error::io("cannot start ssh-keygen", e),
    })?;
    if !made.status.success() {
        let said = [made.stdout, made.stderr].concat();
        return Err(Error::Failed(format!(
            "cannot make {shown}: {}",
            String::from_utf8_lossy(&said).trim()
        )));
    }
    let folder = file.parent().filter(|p| *p != Path::new(""));
    for written in [file, &public, folder.unwrap_or(Path::new("."))] {
        File::open(written)
            .and_then(|f| f.sync_all())
            .map_err(|e| Error::io(format!("cannot write {}", written.display()), e))?;
    }
    let line = ssh::line_of(file).map_err(Error::Failed)?;
    Ok(format!(
        "{shown}: new SSH key; copy it and {} to every server but witnesses, and keep it secret\n\
         on each of them add this line to /root/.ssh/authorized_keys (or of the user that [ssh] names):\n{line}",
        public.display()
    ))
}
