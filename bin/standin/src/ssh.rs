//! What servers need of SSH to keep files alike: pinned host keys, one key pair, and a forced command.

use config::Config;
use daemon::Args;
use nix::unistd::User;
use protocol::{Role, ServerName};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Where SSH servers keep their public keys.
const HOST_KEYS: &str = "/etc/ssh";

/// The line for this server's section in the configuration, if an SSH server has a key here.
pub fn host_key_line(me: &ServerName, config: &Config) -> Option<String> {
    let key = host_key(Path::new(HOST_KEYS), "ed25519")?;
    let server = config.server(me)?;
    (!server.witness && server.host_key.as_ref() != Some(&key)).then(|| {
        format!("to keep files alike, {me} needs in its [[server]] section:\nhost_key = \"{key}\"")
    })
}

/// Kind and contents of an SSH server's public key.
fn host_key(folder: &Path, kind: &str) -> Option<String> {
    first_words(&fs::read_to_string(folder.join(format!("ssh_host_{kind}_key.pub"))).ok()?)
}

fn first_words(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    Some(format!("{} {}", words.next()?, words.next()?))
}

/// What is good, and what is wrong, each with the mend.
pub type Findings = Vec<Result<String, String>>;

/// Whether files could be kept alike by SSH, as far as this server can tell without asking another.
pub fn check(config: &Config, me: &ServerName) -> Findings {
    vec![
        pinned(config, me),
        private_key(&config.ssh.key),
        forced_command(config),
    ]
}

/// The public part lies beside a private key.
pub fn public_of(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// What authorized_keys needs for this private key: whoever has it may talk with `syncd serve`, and do nothing else.
pub fn line_of(key: &Path) -> Result<String, String> {
    let public = public_of(key);
    let text = fs::read_to_string(&public).ok();
    let text = text.and_then(|l| first_words(&l)).ok_or_else(|| {
        format!(
            "{} is missing or no public key; make it with `ssh-keygen -y -f {} >{0}`",
            public.display(),
            key.display()
        )
    })?;
    let syncd = crate::child::executable(Role::Syncd);
    let syncd = syncd.map_or("/usr/sbin/syncd".into(), |p| p.display().to_string());
    Ok(format!("restrict,command=\"{syncd} serve\" {text}"))
}

/// The key that the others believe in is the one that is shown here.
fn pinned(config: &Config, me: &ServerName) -> Result<String, String> {
    let pinned = config.server(me).and_then(|s| s.host_key.as_deref());
    let pinned = pinned.ok_or_else(|| format!("{me} has no host_key in its [[server]] section"))?;
    let kind = match pinned {
        p if p.starts_with("ssh-ed25519 ") => "ed25519",
        p if p.starts_with("ssh-rsa ") => "rsa",
        _ => "ecdsa",
    };
    match host_key(Path::new(HOST_KEYS), kind) {
        Some(key) if key == pinned => Ok(format!("host_key of {me}: as in {HOST_KEYS}")),
        Some(key) => Err(format!(
            "host_key of {me} is not the key in {HOST_KEYS}, so no server will give it files; on all servers write \
             into its [[server]] section: host_key = \"{key}\""
        )),
        None => Err(format!(
            "no {HOST_KEYS}/ssh_host_{kind}_key.pub: is there an SSH server on this host? Make its keys with \
             `ssh-keygen -A`"
        )),
    }
}

fn private_key(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let made = format!(
        "make it on one server with `standin keygen --ssh {shown}` and copy it to the others"
    );
    let meta = fs::metadata(path).map_err(|e| format!("{shown}: {e}; {made}"))?;
    if !meta.is_file() {
        return Err(format!("{shown} is no file; {made}"));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown}: mode {mode:04o} lets others at the key; run `chmod 600 {shown}`"
        ));
    }
    Ok(format!("{shown}: key for the other servers"))
}

/// The others come in with the same key, and to `syncd serve` only.
fn forced_command(config: &Config) -> Result<String, String> {
    let line = line_of(&config.ssh.key)?;
    let user = &config.ssh.user;
    let home = User::from_name(user).ok().flatten().map(|u| u.dir);
    let home = home.ok_or_else(|| format!("there is no user {user} here ([ssh] user)"))?;
    let file = home.join(".ssh/authorized_keys");
    let text = fs::read_to_string(&file).unwrap_or_default();
    judge(&text, &line)
        .map(|()| format!("{}: syncd serve, and nothing else", file.display()))
        .map_err(|what| format!("{}: {what}; it needs the line\n{line}", file.display()))
}

/// Whether the lines of an authorized_keys let the key of this line in, and for `syncd serve` only.
fn judge(text: &str, line: &str) -> Result<(), &'static str> {
    let key = line.split_once("\" ").map_or(line, |(_, key)| key);
    let lines = text.lines().filter(|l| !l.trim_start().starts_with('#'));
    // The first line with the key is the one that counts.
    match lines.into_iter().find(|l| l.contains(key)) {
        None => Err("the other servers are not let in"),
        Some(l) if !(l.contains("command=\"") && l.contains("syncd serve")) => {
            Err("whoever has the key may do anything here")
        }
        Some(l) if !l.trim_start().starts_with("restrict,") => {
            Err("whoever has the key may forward ports and more")
        }
        Some(_) => Ok(()),
    }
}

/// Looks at the paths of the sets, which only syncd can, and tells what is wrong with them.
pub fn paths(args: &Args) -> Result<(), String> {
    match syncd("check", args)? {
        Some(0) => Ok(()),
        _ => Err("not every path of the sets can be kept alike".into()),
    }
}

/// The exit status of syncd, which tells in the words of `standin check`.
fn syncd(word: &str, args: &Args) -> Result<Option<i32>, String> {
    let syncd = crate::child::executable(Role::Syncd).map_err(|e| e.to_string())?;
    let mut command = Command::new(&syncd);
    command.arg(word).args(args.to_arguments());
    let ended = command.status();
    let ended = ended.map_err(|e| format!("cannot start {}: {e}", syncd.display()))?;
    Ok(ended.code())
}

/// Tries the way to each other server, which only syncd can, and tells of each what came of it. Without a key there is
/// nothing to try.
pub fn reach(config: &Config, args: &Args) -> Result<(), String> {
    if private_key(&config.ssh.key).is_err() {
        return Ok(());
    }
    // One that does not answer at all is a note.
    if matches!(syncd("reach", args)?, Some(0 | 3)) {
        return Ok(());
    }
    let line = line_of(&config.ssh.key)?;
    Err(format!(
        "not every server can be used; one that does not let this one in needs this line in authorized_keys of {}:\n\
         {line}",
        config.ssh.user
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3Nz";

    #[test]
    fn the_key_must_be_tied_to_syncd_serve() {
        let line = format!("restrict,command=\"/usr/sbin/syncd serve\" {KEY}");
        let good = format!("# of root\n{line} a comment\n");
        assert_eq!(judge(&good, &line), Ok(()));
        assert!(judge("", &line).unwrap_err().contains("not let in"));
        let commented = good.replace("restrict", "#restrict");
        assert!(judge(&commented, &line).unwrap_err().contains("not let in"));
        let other = good.replace(KEY, "ssh-ed25519 BBBB");
        assert!(judge(&other, &line).unwrap_err().contains("not let in"));
        let open = format!("{KEY}\n{good}");
        assert!(judge(&open, &line).unwrap_err().contains("anything"));
        let half = good.replace("restrict,", "");
        assert!(judge(&half, &line).unwrap_err().contains("forward ports"));
    }

    #[test]
    fn the_line_is_of_the_public_key_beside() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key.of.web");
        assert!(line_of(&key).unwrap_err().contains("key.of.web.pub"));
        fs::write(public_of(&key), format!("{KEY} standin\n")).unwrap();
        let line = line_of(&key).unwrap();
        assert!(line.ends_with(&format!("syncd serve\" {KEY}")), "{line}");
    }

    #[test]
    fn a_private_key_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("ssh_key");
        assert!(
            private_key(&key)
                .unwrap_err()
                .contains("standin keygen --ssh")
        );
        fs::write(&key, "secret").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(private_key(&key).unwrap_err().contains("chmod 600"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(private_key(&key).is_ok());
    }

    #[test]
    fn a_host_key_is_kind_and_contents() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(host_key(folder.path(), "ed25519"), None);
        let file = folder.path().join("ssh_host_ed25519_key.pub");
        fs::write(file, format!("{KEY} root@alpha\n")).unwrap();
        assert_eq!(host_key(folder.path(), "ed25519").unwrap(), KEY);
    }
}
