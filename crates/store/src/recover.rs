//! What a run that was cut off left half done and a look must not take for changes: further names of a file that did not
//! follow it yet, and directories and large files with some of what they were to have.

use crate::{
    attributes,
    error::{At, Error},
    index::Index,
    set::Set,
    sight::{self, Found},
    stage::Temp,
};
use filesync::{Kind, Node, Path};
use rustix::fs::RenameFlags;
use std::io;

/// Finishes it.
pub(crate) fn recover(set: &Set, index: &Index) -> Result<(), Error> {
    let intents = index.intents()?;
    for (path, entry) in &intents {
        let Some(node) = &entry.node else { continue };
        let known = index.row(path)?.and_then(|row| row.entry.node);
        match (&node.kind, known) {
            (Kind::HardLink { to }, Some(known)) if known == *node => {
                let first = intents.iter().find(|(path, _)| path == to);
                let next = first.and_then(|(_, entry)| entry.node.as_ref());
                let old = index.row(to)?.and_then(|row| row.entry.node);
                if let (Some(next), Some(old)) = (next, old) {
                    follow(set, path, to, next, &old).at("link", path)?;
                }
            }
            (Kind::Directory | Kind::File { .. }, Some(known)) if known.kind == node.kind => {
                finish(set, path, &known, node).at("change", path)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// `path` was a name of the file at `to`, which was replaced by `next`.
fn follow(set: &Set, path: &Path, to: &Path, next: &Node, old: &Node) -> io::Result<()> {
    let Some(there) = node_at(set, to)? else {
        return Ok(());
    };
    let Some(here) = node_at(set, path)? else {
        return Ok(());
    };
    if !set.times.is(&there, next) || !set.times.is(&here, old) {
        return Ok(());
    }
    let (from, name) = set.root.place(to)?;
    let (dir, own) = set.root.place(path)?;
    let temp = Temp::new()?;
    from.link(name, &set.stage, temp.name())?;
    set.stage
        .rename(temp.name(), &dir, own, RenameFlags::empty())?;
    // It may have followed already: then the rename did nothing.
    temp.discard(&set.stage)
}

/// It was `known` and is to be `node`, and may be half of each.
fn finish(set: &Set, path: &Path, known: &Node, node: &Node) -> io::Result<()> {
    let Some(now) = node_at(set, path)? else {
        return Ok(());
    };
    let either = |value: &dyn Fn(&Node) -> i128| [value(known), value(node)].contains(&value(&now));
    let held = |n: &Node| set.times.held(n.mtime);
    // A new owner takes them away.
    let less = now.mode & !known.mode == 0 && known.mode & !now.mode & !0o6000 == 0;
    let mixed = now.kind == node.kind
        && (less || either(&|n| n.mode.into()))
        && (now.is_directory() || either(&held))
        && either(&|n| n.uid.into())
        && either(&|n| n.gid.into())
        && now.attributes.iter().all(|(name, value)| {
            [known, node]
                .iter()
                .any(|n| n.attributes.get(name) == Some(value))
        });
    if !mixed || set.times.is(&now, known) || set.times.is(&now, node) {
        return Ok(());
    }
    let (dir, name) = set.root.place(path)?;
    attributes::give(dir.open_to_give(name, node)?, node, dir.calls())
}

fn node_at(set: &Set, path: &Path) -> io::Result<Option<Node>> {
    let Ok((dir, name)) = set.root.place(path) else {
        return Ok(None);
    };
    Ok(match sight::see(&dir, name)? {
        Found::Node(node, _) => Some(node),
        Found::Busy | Found::Growing(_) | Found::Socket | Found::Nothing => None,
    })
}
