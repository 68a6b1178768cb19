//! The cluster key file: only its owner may read it.

use crate::Error;
use config::{ClusterKeys, ConfigError, parse_key};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Longest key file in bytes; two keys and a page of comments are far below it.
const FILE_MAX: u64 = 64 * 1024;

/// Reads the key file; refuses one that others than its owner can read or change.
pub fn load(path: &Path) -> Result<ClusterKeys, Error> {
    let wrong = |what: String| Error::Config(ConfigError::one(path, None, "", what));
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => wrong(format!(
            "no such file; make it on one server with `standin keygen {}` and copy it to the others",
            path.display()
        )),
        _ => wrong(format!("cannot be read: {e}")),
    };
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(wrong(format!(
            "mode {mode:04o} lets others at the cluster key; run `chmod 600 {}`",
            path.display()
        )));
    }
    let mut text = String::new();
    file.by_ref()
        .take(FILE_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(parse_key(&text, path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs::{Permissions, set_permissions, write};

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_mend() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        assert!(
            load(&path)
                .unwrap_err()
                .to_string()
                .contains("standin keygen")
        );
        write(&path, "5a".repeat(32)).unwrap();
        for mode in [0o644, 0o640, 0o602, 0o610] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("mode {mode:04o}")), "{text}");
            assert!(
                text.contains(&format!("chmod 600 {}", path.display())),
                "{text}"
            );
        }
        for mode in [0o600, 0o400] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(load(&path).unwrap().seal, [0x5a; 32]);
        }
    }
}
