//! Which files are kept alike, and how the servers reach one another for it.

use crate::{
    DELETE_LIMIT, KEEP_MAX, KEEP_VERSIONS_MAX, Keep, SSH_KEY, SSH_PORT, SSH_USER, Server,
    SshConfig, SyncLines, SyncSet, Triggers, nested, raw::Section,
};
use protocol::ServerName;
use schedule::Cron;
use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Component, Path, PathBuf},
    time::Duration,
};
use toml::Spanned;

/// The files that `merge = "accounts"` knows, by their names.
pub const ACCOUNT_FILES: [&str; 6] = ["passwd", "shadow", "group", "gshadow", "subuid", "subgid"];

/// Kinds of keys of an SSH server that are understood.
const KEY_TYPES: [&str; 5] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
];

pub(crate) fn ssh(section: Option<Section<'_>>) -> SshConfig {
    let default = SshConfig {
        user: SSH_USER.into(),
        key: SSH_KEY.into(),
        port: SSH_PORT,
    };
    let Some(section) = section else {
        return default;
    };
    section.only(&["user", "key", "port"]);
    let port = section.number("port", 1..=u32::from(u16::MAX));
    SshConfig {
        user: section
            .text("user")
            .map_or(default.user, |t| t.into_inner().to_owned()),
        key: crate::checked::path(&section, "key", SSH_KEY),
        port: port.and_then(|p| u16::try_from(p).ok()).unwrap_or(SSH_PORT),
    }
}

/// `host_key` of a server: kind and contents, as in its public key file, without the comment.
pub(crate) fn host_key(section: &Section<'_>) -> Option<String> {
    let text = section.text("host_key")?;
    let mut words = text.get_ref().split_whitespace();
    match (words.next(), words.next()) {
        (Some(kind), Some(key))
            if KEY_TYPES.contains(&kind) && key.starts_with("AAAA") && key.is_ascii() =>
        {
            Some(format!("{kind} {key}"))
        }
        _ => {
            let what = format!(
                "no public key of an SSH server; write the line in its /etc/ssh/ssh_host_ed25519_key.pub, or of a key of \
                 another kind that is known here: {}",
                KEY_TYPES.join(", ")
            );
            section.report("host_key", what);
            None
        }
    }
}

pub(crate) fn sets(root: &Section<'_>, servers: &[Server]) -> Vec<SyncSet> {
    let mut names = BTreeSet::new();
    let sections = root.tables("sync");
    let read: Vec<_> = sections.iter().filter_map(|s| set(s, &mut names)).collect();
    nested::check(&read);
    let sets: Vec<_> = read.into_iter().map(|read| read.set).collect();
    for server in servers.iter().filter(|s| !sets.is_empty() && !s.witness) {
        if server.host_key.is_none() {
            let what = format!(
                "{} has no host_key, and files are kept alike with it; write the line in its \
                 /etc/ssh/ssh_host_ed25519_key.pub there: host_key = \"ssh-ed25519 AAAA...\"",
                server.name
            );
            root.report("server", what);
        }
    }
    sets
}

/// A set, and where its paths stand.
pub(crate) struct Read<'a> {
    pub(crate) section: &'a Section<'a>,
    pub(crate) set: SyncSet,
    pub(crate) paths: Vec<(PathBuf, Range<usize>)>,
}

fn set<'a>(section: &'a Section<'a>, names: &mut BTreeSet<ServerName>) -> Option<Read<'a>> {
    section.only(&[
        "name",
        "path",
        "exclude",
        "perishable",
        "delete_limit",
        "on",
        "rate",
        "keep",
        "merge",
        "scrub",
    ]);
    section.required("name", "name = \"...\"");
    section.required("path", "path = [\"/srv/www\"]");
    let name: Option<ServerName> = section.parsed("name");
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        let what = format!("a second set named \"{name}\"; give each its own name");
        section.report("name", what);
    }
    let mut paths: Vec<(PathBuf, Range<usize>)> = Vec::new();
    let texts = section.texts("path");
    for text in &texts {
        match absolute(text.get_ref()) {
            Err(what) => section.report_at(text.span(), "path", what),
            Ok(path) => {
                let near = paths
                    .iter()
                    .find(|(p, _)| path.starts_with(p) || p.starts_with(&path));
                if let Some((other, _)) = near {
                    let what = format!("{} is in this set already", other.display());
                    section.report_at(text.span(), "path", what);
                }
                paths.push((path, text.span()));
            }
        }
    }
    let perishable = section.texts("perishable");
    // What perishes is left out, too.
    let excludes = [section.texts("exclude"), perishable.clone()].concat();
    let merge_accounts = merges_accounts(section, &texts, &excludes);
    let lines = SyncLines {
        set: section.line(),
        paths: section.lines(&texts),
        excludes: section.lines(&excludes),
    };
    let limit = section.number("delete_limit", 0..=100);
    let on = triggers(section);
    let scrub = scrub(section);
    let set = SyncSet {
        name: name?,
        paths: paths.iter().map(|(path, _)| path.clone()).collect(),
        excludes: excludes
            .into_iter()
            .map(|t| t.into_inner().to_owned())
            .collect(),
        perishable: perishable
            .into_iter()
            .map(|t| t.into_inner().to_owned())
            .collect(),
        delete_limit: limit
            .and_then(|l| u8::try_from(l).ok())
            .unwrap_or(DELETE_LIMIT),
        keep: keep(section),
        merge_accounts,
        on,
        scrub,
        rate: section.parsed("rate"),
        lines,
    };
    Some(Read {
        section,
        set,
        paths,
    })
}

/// How many former versions are kept, or for how long.
fn keep(section: &Section<'_>) -> Option<Keep> {
    if !section.is_text("keep") {
        let number = section.number("keep", 1..=KEEP_VERSIONS_MAX)?;
        return Some(Keep::Versions(number));
    }
    let span = section.duration("keep", Duration::ZERO);
    let fine = (Duration::from_secs(60)..=KEEP_MAX).contains(&span);
    if !fine && !span.is_zero() {
        let what =
            "out of range; write \"1min\" to \"3650d\", or a number of versions without quotes";
        section.report("keep", what);
    }
    fine.then_some(Keep::For(span))
}

/// Whether the set is one of password files, which it then has nothing else in.
fn merges_accounts(
    section: &Section<'_>,
    paths: &[Spanned<&str>],
    excludes: &[Spanned<&str>],
) -> bool {
    let Some(how) = section.text("merge") else {
        return false;
    };
    if *how.get_ref() != "accounts" {
        let what = format!(
            "\"{}\" is not known; write \"accounts\", or remove it",
            how.get_ref().escape_debug()
        );
        section.report("merge", what);
        return false;
    }
    for text in paths {
        let name = Path::new(text.get_ref()).file_name();
        if !ACCOUNT_FILES
            .iter()
            .any(|known| name == Some(known.as_ref()))
        {
            let what = format!(
                "merge = \"accounts\" knows files named {}; put \"{}\" into a set of its own",
                ACCOUNT_FILES.join(", "),
                text.get_ref().escape_debug()
            );
            section.report_at(text.span(), "path", what);
        }
    }
    if !excludes.is_empty() {
        let what = "a set of account files has nothing to leave out; remove it";
        for key in ["exclude", "perishable"] {
            if !section.texts(key).is_empty() {
                section.report(key, what);
            }
        }
    }
    true
}

/// `on = ["election", "change", "cron: 0 3 * * 0"]`
fn triggers(section: &Section<'_>) -> Triggers {
    let mut on = Triggers::default();
    for text in section.texts("on") {
        match text.get_ref().trim() {
            "election" => on.election = true,
            "change" => on.change = true,
            other => match other.strip_prefix("cron:").map(str::parse) {
                Some(Ok(cron)) => on.cron.push(cron),
                Some(Err(why)) => section.report_at(text.span(), "on", format!("cron: {why}")),
                None => {
                    let what = format!(
                        "\"{}\" is no reason to run; write \"election\", \"change\", or \"cron: MINUTE HOUR DAY \
                         MONTH WEEKDAY\"",
                        other.escape_debug()
                    );
                    section.report_at(text.span(), "on", what);
                }
            },
        }
    }
    on
}

/// `scrub = "cron: 0 4 1 * *"`
fn scrub(section: &Section<'_>) -> Option<Cron> {
    let text = section.text("scrub")?;
    match text.get_ref().trim().strip_prefix("cron:").map(str::parse) {
        Some(Ok(cron)) => return Some(cron),
        Some(Err(why)) => section.report("scrub", format!("cron: {why}")),
        None => {
            let what = format!(
                "\"{}\" is no moment; write \"cron: MINUTE HOUR DAY MONTH WEEKDAY\"",
                text.get_ref().escape_debug()
            );
            section.report("scrub", what);
        }
    }
    None
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) || text.contains("/./") {
        return Err(format!(
            "\"{}\" is no absolute path; write it from / on, without . and ..",
            text.escape_debug()
        ));
    }
    // Without slashes too many.
    let path: PathBuf = path.components().collect();
    if path.parent().is_none() {
        return Err("the whole file system cannot be kept alike; name what matters in it".into());
    }
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(absolute("/srv//www/").unwrap(), PathBuf::from("/srv/www"));
        for bad in ["", "srv", "/srv/../etc", "/", "//", "/a/./b"] {
            assert!(absolute(bad).is_err(), "{bad}");
        }
    }
}
