//! One version written outside of any set.

use crate::{
    calls::Calls,
    dir::{Dir, Name},
    error::{At, Error},
    stage::{self, Contents},
    times::Times,
};
use filesync::{Node, Path};
use rustix::fs::RenameFlags;
use std::os::unix::ffi::OsStrExt;

/// Writes what was at `path` to a new name, whole and with all it had, or not at all.
pub fn export(
    to: &std::path::Path,
    path: &Path,
    node: &Node,
    contents: &mut dyn Contents,
) -> Result<(), Error> {
    let shown = to.display();
    let mut write = || {
        let name = to.file_name().map(OsStrExt::as_bytes).and_then(Name::new);
        let name = name.ok_or(std::io::ErrorKind::InvalidInput)?;
        let folder = to.parent().filter(|f| !f.as_os_str().is_empty());
        let folder = folder.unwrap_or(std::path::Path::new("."));
        let dir = Dir::root(folder, Calls::unlimited())?;
        let temp = stage::make(&dir, &Times::ALL, path, node, None, contents)?;
        let placed = dir
            .sync_all()
            .and_then(|()| dir.rename(temp.name(), &dir, name, RenameFlags::NOREPLACE));
        if placed.is_err() {
            let _ = temp.discard(&dir);
        }
        placed?;
        dir.sync()
    };
    write().at("write", &shown)
}
