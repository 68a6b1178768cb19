//! What a server has.

use crate::history::Contents;
use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    /// A directory's says nothing.
    pub mtime: (i64, i64),
    pub contents: Option<Contents>,
    pub target: Option<String>,
    /// The first path that is the same file.
    pub first: String,
}

pub type Tree = BTreeMap<String, Item>;

/// Names in a directory, in order; standin's own left out.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with(".standin"))
        .collect();
    names.sort();
    names
}

/// All that is beneath a directory; what goes meanwhile is left out.
pub fn tree(root: &Path) -> Tree {
    let (mut tree, mut firsts) = (Tree::new(), HashMap::new());
    let mut todo: Vec<String> = names(root);
    todo.reverse();
    while let Some(path) = todo.pop() {
        let Ok(item) = item(root, &path, &mut firsts) else {
            continue;
        };
        if item.kind == "directory" {
            let within = names(&root.join(&path)).into_iter();
            todo.extend(within.rev().map(|name| format!("{path}/{name}")));
        }
        tree.insert(path, item);
    }
    tree
}

fn item(root: &Path, path: &str, firsts: &mut HashMap<u64, String>) -> io::Result<Item> {
    let at = root.join(path);
    let found = fs::symlink_metadata(&at)?;
    let kind = match found.file_type() {
        t if t.is_file() => "file",
        t if t.is_dir() => "directory",
        t if t.is_symlink() => "symlink",
        t if t.is_fifo() => "fifo",
        _ => "other",
    };
    let contents = match kind {
        "file" => Some(blake3::hash(&fs::read(&at)?)),
        _ => None,
    };
    let target = match kind {
        "symlink" => Some(fs::read_link(&at)?.to_string_lossy().into_owned()),
        _ => None,
    };
    let first = match kind {
        "directory" => path.to_owned(),
        _ => firsts
            .entry(found.ino())
            .or_insert_with(|| path.to_owned())
            .clone(),
    };
    Ok(Item {
        kind,
        mode: found.mode() & 0o7777,
        owner: (found.uid(), found.gid()),
        mtime: (found.mtime(), found.mtime_nsec()),
        contents,
        target,
        first,
    })
}
