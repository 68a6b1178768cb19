//! No file is kept alike by two sets: a path in the directory of another set is to be excluded there.
//!
//! That is judged by the text alone, and only where the text decides: whether a pattern matches, and what is where by
//! another name, syncd finds out.

use crate::sync::Read;
use std::path::{Path, PathBuf};

pub(crate) fn check(sets: &[Read<'_>]) {
    for (place, inner) in sets.iter().enumerate() {
        let others = sets.iter().enumerate();
        for (other, outer) in others.filter(|(other, _)| *other != place) {
            for (path, at) in &inner.paths {
                for what in clashes(inner, path, outer, other < place) {
                    inner.section.report_at(at.clone(), "path", what);
                }
            }
        }
    }
}

/// Why a path of a set cannot be there beside another set. Of two sets with the same path the second is wrong.
fn clashes(inner: &Read<'_>, path: &Path, outer: &Read<'_>, second: bool) -> Vec<String> {
    let name = &outer.set.name;
    let around = outer.set.paths.iter().zip(&outer.set.lines.paths);
    let clash = |(directory, line): (&PathBuf, &usize)| {
        let beneath = path.strip_prefix(directory).ok()?;
        if beneath.as_os_str().is_empty() {
            let what =
                format!("set {name} has it already, in line {line}; remove it from one of the two");
            return second.then_some(what);
        }
        if may_be_excluded(&outer.set.excludes, beneath) {
            return None;
        }
        let or = match inner.set.merge_accounts {
            true => "or",
            false => "or, if it is a directory,",
        };
        Some(format!(
            "\"{}\" is in \"{}\" of set {name}, line {line}, and no file can be kept alike by two sets; remove it \
             here, {or} leave it out there: exclude = [\"/{}\"]",
            path.display(),
            directory.display(),
            beneath.display()
        ))
    };
    around.filter_map(clash).collect()
}

/// Whether a path below a set's directory is left out by these lines, in the manner of gitignore(5), or may be: what a
/// pattern with wildcards matches is not found out here.
fn may_be_excluded(lines: &[String], beneath: &Path) -> bool {
    lines.iter().any(|line| {
        if line.contains(['*', '?', '[', '\\', '!']) {
            return true;
        }
        let pattern = line.trim_end().trim_end_matches('/');
        match pattern.contains('/') {
            true => beneath.starts_with(pattern.trim_start_matches('/')),
            false => beneath.iter().any(|name| name == pattern),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_exclude_is_matched_as_gitignore_does_and_a_wildcard_may_match() {
        let excluded = |line: &str, path: &str| may_be_excluded(&[line.into()], Path::new(path));
        for (line, path) in [
            ("/www", "www"),
            ("/www/", "www"),
            ("www", "www"),
            ("www", "a/www/b"),
            ("a/www", "a/www/b"),
            ("/a", "a/www"),
            ("*.d", "www"),
            ("!www", "www"),
        ] {
            assert!(excluded(line, path), "{line} {path}");
        }
        for (line, path) in [
            ("/www", "a/www"),
            ("/a/www", "a"),
            ("ww", "www"),
            ("/ww", "www"),
            ("", "www"),
            ("# www", "www"),
        ] {
            assert!(!excluded(line, path), "{line} {path}");
        }
        assert!(!may_be_excluded(&[], Path::new("www")));
    }
}
