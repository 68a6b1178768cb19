//! What servers need of SSH to keep files alike: pinned host keys, one key pair, and a forced command.

use config::Config;
use nix::unistd::User;
use protocol::{Role, ServerName};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

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

/// Whether files could be kept alike by SSH, as far as this server can tell.
pub fn check(config: &Config, me: &ServerName) -> Findings {
    let mut found = vec![pinned(config, me), private_key(&config.ssh.key)];
    found.push(forced_command(config));
    found
}

/// The key that the others believe in is the one that is shown here.
fn pinned(config: &Config, me: &ServerName) -> Result<String, String> {
    let pinned = config.server(me).and_then(|s| s.host_key.as_deref());
    let pinned = pinned.ok_or_else(|| format!("{me} has no host_key in its [[server]] section"))?;
    let kind = match pinned {
        p if p.starts_with("ssh-ed25519 ") => "ed25519",
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
        "make it once with `ssh-keygen -t ed25519 -N '' -f {shown}` and copy it to all servers"
    );
    let meta = fs::metadata(path).map_err(|e| format!("{shown}: {e}; {made}"))?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(format!("{shown} can be read by others; chmod 600 {shown}"));
    }
    Ok(format!("{shown}: key for the other servers"))
}

/// The others come in with the same key, and to `syncd serve` only.
fn forced_command(config: &Config) -> Result<String, String> {
    let public = config.ssh.key.with_extension("pub");
    let key = fs::read_to_string(&public)
        .ok()
        .and_then(|l| first_words(&l));
    let key = key.ok_or_else(|| {
        format!(
            "{} is missing: put it beside {}, to tell what authorized_keys needs",
            public.display(),
            config.ssh.key.display()
        )
    })?;
    let user = &config.ssh.user;
    let home = User::from_name(user).ok().flatten().map(|u| u.dir);
    let home = home.ok_or_else(|| format!("there is no user {user} here ([ssh] user)"))?;
    let file = home.join(".ssh/authorized_keys");
    let text = fs::read_to_string(&file).unwrap_or_default();
    judge(&text, &key)
        .map(|()| format!("{}: syncd serve, and nothing else", file.display()))
        .map_err(|what| {
            let syncd = crate::child::executable(Role::Syncd);
            let syncd = syncd.map_or("/usr/sbin/syncd".into(), |p| p.display().to_string());
            format!(
                "{}: {what}; it needs the line\nrestrict,command=\"{syncd} serve\" {key}",
                file.display()
            )
        })
}

/// Whether the lines of an authorized_keys let this key in for `syncd serve` only.
fn judge(text: &str, key: &str) -> Result<(), &'static str> {
    let lines = text.lines().filter(|l| !l.trim_start().starts_with('#'));
    let mut with_key = lines.filter(|l| l.contains(key)).peekable();
    if with_key.peek().is_none() {
        return Err("the other servers are not let in");
    }
    // The first line with the key is the one that counts.
    match with_key.next() {
        Some(line) if line.contains("command=\"") && line.contains("syncd serve") => Ok(()),
        _ => Err("whoever has the key may do anything here"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3Nz";

    #[test]
    fn the_key_must_be_tied_to_syncd_serve() {
        let good =
            format!("# of root\nrestrict,command=\"/usr/sbin/syncd serve\" {KEY} a comment\n");
        assert_eq!(judge(&good, KEY), Ok(()));
        assert!(judge("", KEY).unwrap_err().contains("not let in"));
        assert!(judge(&format!("#{good}"), "ssh-ed25519 BBBB").is_err());
        let open = format!("{KEY}\n{good}");
        assert!(judge(&open, KEY).unwrap_err().contains("anything"));
    }

    #[test]
    fn a_private_key_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("ssh_key");
        assert!(
            private_key(&key)
                .unwrap_err()
                .contains("ssh-keygen -t ed25519")
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
