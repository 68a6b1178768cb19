use super::*;
use crate::knowledge::tests::author;
use proptest::prelude::*;
use std::collections::BTreeMap;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
const SHADOW: &str = "root:*:1:0:99999:7:::\nann:$y$a:1:0:99999:7:::\nben:$y$b:1:0:99999:7:::\n";
const GROUP: &str = "root:x:0:\nwheel:x:10:ann,ben\n";

fn digest(line: &[u8]) -> Digest {
    let mut sum = [0u8; 32];
    for (i, b) in line.iter().enumerate() {
        sum[i % 32] = sum[i % 32].wrapping_mul(31).wrapping_add(*b);
    }
    Digest(sum)
}

fn node(text: &[u8]) -> Node {
    Node {
        kind: Kind::File {
            size: text.len() as u64,
            digest: digest(text),
        },
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: 0,
        attributes: BTreeMap::new(),
    }
}

type Texts = BTreeMap<File, Vec<u8>>;

/// One server's version of a file.
#[derive(Clone)]
struct Own {
    entry: Entry,
    text: Vec<u8>,
    history: History,
}

impl Own {
    fn edited(&self, file: File, author: &mut Author, text: &[u8], nanos: u64) -> Self {
        if text == self.text {
            return self.clone();
        }
        let entry = author.change(Some(&self.entry), Some(node(text)), nanos);
        Self {
            history: self.history.follow(file, text, &entry, digest),
            text: text.to_vec(),
            entry,
        }
    }

    fn side(&self) -> Side<'_> {
        Side {
            entry: &self.entry,
            text: &self.text,
            history: &self.history,
        }
    }
}

/// What `base` became here and there, merged here; the version here is the later one.
fn settled(
    how: How,
    base: &Texts,
    here: &Texts,
    there: &Texts,
) -> Result<(Texts, Vec<Note>), Unsettled> {
    let [mut first, mut here_by, mut there_by] = ["a", "b", "c"].map(author);
    let mut versions = Vec::new();
    for (file, text) in base {
        let entry = first.change(None, Some(node(text)), 1);
        let old = Own {
            history: History::default().follow(*file, text, &entry, digest),
            text: text.clone(),
            entry,
        };
        let ours = old.edited(*file, &mut here_by, &here[file], 3);
        let theirs = old.edited(*file, &mut there_by, &there[file], 2);
        versions.push((*file, text, ours, theirs));
    }
    let pairs = versions.iter().map(|(file, base, here, there)| Pair {
        file: *file,
        base,
        here: here.side(),
        there: there.side(),
    });
    let pairs: Vec<_> = pairs.collect();
    let settled = settle(how, &pairs, &mut here_by, 4, digest)?;
    let mut texts = here.clone();
    let mut notes = Vec::new();
    for (pair, settled) in pairs.iter().zip(settled) {
        if let Some(settled) = settled {
            texts.insert(pair.file, settled.text);
            notes.extend(settled.notes);
        }
    }
    Ok((texts, notes))
}

/// One file alone.
fn merged(file: File, base: &str, here: &str, there: &str) -> (String, Vec<Note>) {
    let of = |text: &str| Texts::from([(file, text.as_bytes().to_vec())]);
    let merged = settled(How::default(), &of(base), &of(here), &of(there));
    let (mut texts, notes) = merged.unwrap();
    (
        String::from_utf8(texts.remove(&file).unwrap()).unwrap(),
        notes,
    )
}

#[test]
fn a_password_changed_on_each_of_two_servers_keeps_both() {
    let ours = SHADOW.replace("$y$a:1", "$y$A:2");
    let theirs = SHADOW.replace("$y$b:1", "$y$B:3");
    let (text, notes) = merged(File::Shadow, SHADOW, &ours, &theirs);
    assert!(
        text.contains("ann:$y$A:2:") && text.contains("ben:$y$B:3:"),
        "{text}"
    );
    assert_eq!(notes, []);
}

#[test]
fn a_password_changed_twice_is_the_winners_and_told() {
    let ours = SHADOW.replace("$y$a", "$y$A");
    let theirs = SHADOW.replace("$y$a", "$y$Z");
    let (text, notes) = merged(File::Shadow, SHADOW, &ours, &theirs);
    assert!(text.contains("ann:$y$A:"));
    assert_eq!(notes, [Note::Field("ann".into(), 1)]);
}

#[test]
fn where_this_side_yields_what_both_changed_is_the_others() {
    let how = How {
        yields: true,
        ..How::default()
    };
    let yielding = |file: File, base: &str, here: &str, there: &str| {
        let of = |text: &str| Texts::from([(file, text.as_bytes().to_vec())]);
        let (texts, notes) = settled(how, &of(base), &of(here), &of(there)).unwrap();
        (String::from_utf8(texts[&file].clone()).unwrap(), notes)
    };
    let ours = SHADOW.replace("$y$a", "$y$A").replace("$y$b:1", "$y$b:7");
    let theirs = SHADOW.replace("$y$a", "$y$Z");
    let (text, notes) = yielding(File::Shadow, SHADOW, &ours, &theirs);
    assert!(
        text.contains("ann:$y$Z:1:") && text.contains("ben:$y$b:7:"),
        "{text}"
    );
    assert_eq!(notes, [Note::Field("ann".into(), 1)]);
    // Of nothing that both had: lists are fields like others.
    let ours = GROUP.replace("ann,ben", "guest");
    let (text, notes) = yielding(File::Group, "", &ours, GROUP);
    assert_eq!(text, GROUP);
    assert_eq!(notes, [Note::Field("wheel".into(), 3)]);
}

#[test]
fn users_added_and_removed_on_either_side() {
    let ours = format!("{PASSWD}carl:x:1001:1001::/home/carl:/bin/sh\n");
    let theirs = PASSWD.replace(
        "ann:x:1000:1000::/home/ann:/bin/sh\n",
        "dora:x:1002:1002::/home/dora:/bin/sh\n",
    );
    let (text, notes) = merged(File::Passwd, PASSWD, &ours, &theirs);
    let names: Vec<_> = text.lines().map(|l| l.split(':').next().unwrap()).collect();
    assert_eq!(names, ["root", "carl", "dora"]);
    assert_eq!(notes, []);
}

#[test]
fn two_new_users_with_one_number_are_told() {
    let ours = format!("{PASSWD}carl:x:1001:1001::/home/carl:/bin/sh\n");
    let theirs = format!("{PASSWD}dora:x:1001:1001::/home/dora:/bin/sh\n");
    let (text, notes) = merged(File::Passwd, PASSWD, &ours, &theirs);
    assert_eq!(text.lines().count(), 4);
    assert_eq!(notes, [Note::SameNumber("carl".into(), "dora".into())]);
    let found = duplicates(text.as_bytes(), GROUP.as_bytes());
    let told: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["duplicate uid 1001: carl and dora in passwd"]);
    // As long as they have it, it is told by who looks; it is no news of the next merge.
    let theirs = text.replace("/home/dora:/bin/sh", "/home/dora:/bin/zsh");
    let ours = text.replace("/home/ann:/bin/sh", "/home/ann:/bin/zsh");
    assert_eq!(merged(File::Passwd, &text, &ours, &theirs).1, []);
}

#[test]
fn a_group_of_two_lines_is_no_duplicate_and_three_names_are_one() {
    let group = "root:x:0:\nbig:x:60:a\nbig:x:60:b\nadm:x:0:\nstaff:x:0:\n";
    let found = duplicates(b"", group.as_bytes());
    let told: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["duplicate gid 0: root, adm and staff in group"]);
}

#[test]
fn members_of_a_group_come_and_go_one_by_one() {
    let ours = GROUP.replace("ann,ben", "ann,ben,carl");
    let theirs = GROUP.replace("ann,ben", "ben,dora");
    let (text, notes) = merged(File::Group, GROUP, &ours, &theirs);
    assert!(text.contains("wheel:x:10:ben,carl,dora\n"), "{text}");
    assert_eq!(notes, []);
}

#[test]
fn a_record_removed_here_and_changed_there_stays_and_is_told() {
    let ours = PASSWD.replace("ann:x:1000:1000::/home/ann:/bin/sh\n", "");
    let theirs = PASSWD.replace("ann:/bin/sh", "ann:/bin/zsh");
    let (text, notes) = merged(File::Passwd, PASSWD, &ours, &theirs);
    assert!(text.contains("/bin/zsh"));
    assert_eq!(notes, [Note::RemovedAndChanged("ann".into())]);
}

#[test]
fn without_a_common_version_nothing_is_taken_for_removed() {
    let ours = format!("{PASSWD}carl:x:1001:1001::/home/carl:/bin/sh\n");
    let theirs = format!("{PASSWD}dora:x:1002:1002::/home/dora:/bin/sh\n");
    let (text, _) = merged(File::Passwd, "", &ours, &theirs);
    assert_eq!(text.lines().count(), 4);
}

#[test]
fn a_text_without_root_or_with_few_records_is_refused() {
    let merge = |base: &str, ours: &str, theirs: &str| {
        let of = |text: &str| Texts::from([(File::Passwd, text.as_bytes().to_vec())]);
        let merged = settled(How::default(), &of(base), &of(ours), &of(theirs));
        merged.map(drop).map_err(|unsettled| unsettled.why)
    };
    let rootless = PASSWD.replace("root:x:0:0:root:/root:/bin/sh\n", "");
    assert_eq!(merge(PASSWD, PASSWD, &rootless), Err(Refused::NoRoot));
    let many: String = (0..10).map(|i| format!("u{i}:x:{i}:0:::\n")).collect();
    let few: String = many.lines().take(3).map(|l| format!("{l}\n")).collect();
    let too_few = Err(Refused::TooFew {
        before: 10,
        after: 3,
    });
    assert_eq!(merge(&many, &many, &few), too_few);
    // What is no record is none that is left.
    let spoilt = many.replace(":x:", " x ").replacen(" x ", ":x:", 3);
    assert_eq!(merge(&many, &many, &spoilt), too_few);
    assert_eq!(merge("", "", "nobody"), Err(Refused::NoRoot));
}

#[test]
fn lines_that_are_no_records_are_kept_where_they_are_and_keep_nobody_from_merging() {
    let head = "# by hand\n#\n\n";
    let tail = "   \noops\ncut:x:10\n\n#\n+@admins::::::\n-guest::::::\n+::::::\n";
    let base = format!("{head}{PASSWD}nobody4:x:-2:-2::/:/bin/false\n{tail}");
    let carl = "carl:x:1001:1001::/home/carl:/bin/sh\n";
    let ours = base.replace("ann:/bin/sh\n", "ann:/bin/zsh\n");
    let theirs = base.replace("oops\n", &format!("oops\n{carl}"));
    let theirs = theirs.replace("-guest::::::\n", "");
    let (text, notes) = merged(File::Passwd, &base, &ours, &theirs);
    let expected = ours.replace("oops\n", &format!("oops\n{carl}"));
    assert_eq!(text, expected.replace("-guest::::::\n", ""));
    assert_eq!(notes, []);
}

#[test]
fn what_is_new_comes_before_lines_of_nis_that_are_new() {
    let ours = format!("{PASSWD}+::::::\n");
    let carl = "carl:x:1001:1001::/home/carl:/bin/sh\n";
    let theirs = format!("{PASSWD}{carl}");
    for (here, there) in [(&ours, &theirs), (&theirs, &ours)] {
        let (text, _) = merged(File::Passwd, PASSWD, here, there);
        assert_eq!(text, format!("{PASSWD}{carl}+::::::\n"));
    }
}

#[test]
fn a_line_keeps_its_ending_and_a_text_its_last_line() {
    let ours = GROUP.replace('\n', "\r\n");
    let theirs = GROUP.replace("ann,ben", "ann,ben,carl");
    let (text, notes) = merged(File::Group, GROUP, &ours, &theirs);
    assert_eq!(text, "root:x:0:\r\nwheel:x:10:ann,ben,carl\r\n");
    assert_eq!(notes, []);
    let ours = GROUP.trim_end();
    let (text, _) = merged(File::Group, GROUP, ours, GROUP);
    assert_eq!(text, ours);
}

#[test]
fn each_line_of_a_group_that_has_several_is_merged_by_itself() {
    let base = format!("{GROUP}big:x:60:a,b\nbig:x:60:c,d\n");
    let ours = base.replace("a,b", "a,b,e");
    let theirs = base.replace("c,d", "c,d,f");
    let (text, notes) = merged(File::Group, &base, &ours, &theirs);
    assert_eq!(text, format!("{GROUP}big:x:60:a,b,e\nbig:x:60:c,d,f\n"));
    assert_eq!(notes, []);
}

mod database {
    use super::*;

    const ANN: [(File, &str); 6] = [
        (File::Passwd, "ann:x:1000:1000::/home/ann:/bin/sh\n"),
        (File::Shadow, "ann:$y$a:1:0:99999:7:::\n"),
        (File::Group, "ann:x:1000:\n"),
        (File::Gshadow, "ann:!::\n"),
        (File::Subuid, "ann:100000:65536\n"),
        (File::Subgid, "ann:100000:65536\n"),
    ];

    fn base() -> Texts {
        let mut texts: Texts = [
            (
                File::Passwd,
                "root:x:0:0::/root:/bin/sh\nben:x:1001:1001::/:/bin/sh\n",
            ),
            (
                File::Shadow,
                "root:*:1:0:99999:7:::\nben:$y$b:1:0:99999:7:::\n",
            ),
            (
                File::Group,
                "root:x:0:\nben:x:1001:\nwheel:x:10:ann,ben\ndevs:x:500:\n",
            ),
            (
                File::Gshadow,
                "root:*::\nben:!::\nwheel:!:ann:ann,ben\ndevs:!::\n",
            ),
            (File::Subuid, "ben:165536:65536\n"),
            (File::Subgid, "ben:165536:65536\n"),
        ]
        .map(|(file, text)| (file, text.as_bytes().to_vec()))
        .into();
        for (file, line) in ANN {
            texts.get_mut(&file).unwrap().extend(line.as_bytes());
        }
        texts
    }

    fn edit(texts: &mut Texts, file: File, from: &str, to: &str) {
        let text = String::from_utf8(texts[&file].clone()).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        texts.insert(file, text.replace(from, to).into_bytes());
    }

    /// As userdel(8) does it.
    fn without_ann() -> Texts {
        let mut texts = base();
        for (file, line) in ANN {
            edit(&mut texts, file, line, "");
        }
        edit(&mut texts, File::Group, "ann,ben", "ben");
        edit(&mut texts, File::Gshadow, ":ann:ann,ben", "::ben");
        texts
    }

    fn change(file: File, from: &str, to: &str) -> Texts {
        let mut texts = base();
        edit(&mut texts, file, from, to);
        texts
    }

    fn has(texts: &Texts, file: File, part: &str) -> bool {
        String::from_utf8_lossy(&texts[&file]).contains(part)
    }

    /// Both ways, and both servers come to the same.
    fn both_ways(here: &Texts, there: &Texts) -> (Texts, Vec<Note>) {
        let records = |texts: &Texts| {
            let sorted = |text: &Vec<u8>| {
                let mut lines: Vec<_> = text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
                lines.sort();
                lines
            };
            texts.values().map(sorted).collect::<Vec<_>>()
        };
        let (one, notes) = settled(How::default(), &base(), here, there).unwrap();
        let (other, _) = settled(How::default(), &base(), there, here).unwrap();
        assert_eq!(records(&one), records(&other));
        (one, notes)
    }

    #[test]
    fn a_user_removed_here_and_changed_in_any_file_there_lives_in_all() {
        for there in [
            change(File::Passwd, "ann:/bin/sh", "ann:/bin/zsh"),
            change(File::Shadow, "$y$a", "$y$A"),
            change(File::Group, "ann:x:1000:", "ann:x:1000:ben"),
            change(File::Gshadow, "ann:!::", "ann:!:ben:"),
            change(File::Group, "devs:x:500:", "devs:x:500:ann"),
            change(
                File::Subuid,
                "ann:100000:65536",
                "ann:100000:65536\nann:300000:65536",
            ),
        ] {
            let (texts, notes) = both_ways(&without_ann(), &there);
            for (file, _) in ANN {
                assert!(has(&texts, file, "ann:"), "{file:?}: {texts:?}");
            }
            assert!(
                has(&texts, File::Group, "wheel:x:10:ben,ann\n"),
                "{texts:?}"
            );
            assert!(
                has(&texts, File::Gshadow, "wheel:!:ann:ben,ann\n"),
                "{texts:?}"
            );
            let told = Note::RemovedAndChanged("ann".into());
            assert_eq!(notes, [told], "once");
        }
    }

    #[test]
    fn a_user_that_nobody_changed_dies_in_all() {
        let there = change(File::Passwd, "/:/bin/sh", "/:/bin/zsh");
        let (texts, notes) = both_ways(&without_ann(), &there);
        assert!(
            texts.keys().all(|file| !has(&texts, *file, "ann")),
            "{texts:?}"
        );
        assert!(has(&texts, File::Passwd, "zsh"));
        assert_eq!(notes, []);
        // Nor has anybody as a member who is no more.
        let there = change(File::Group, "wheel:x:10:ann,ben", "wheel:x:10:ann,ben,root");
        let (texts, _) = both_ways(&without_ann(), &there);
        assert!(
            has(&texts, File::Group, "wheel:x:10:ben,root\n"),
            "{texts:?}"
        );
    }

    #[test]
    fn a_removal_in_one_file_and_a_change_in_another_leave_both_records() {
        let line = |file: File| ANN.iter().find(|(of, _)| *of == file).unwrap().1;
        for (removed, changed) in [
            (File::Passwd, change(File::Shadow, "$y$a", "$y$A")),
            (
                File::Shadow,
                change(File::Passwd, "ann:/bin/sh", "ann:/bin/zsh"),
            ),
            (File::Group, change(File::Gshadow, "ann:!::", "ann:!:ben:")),
        ] {
            let here = change(removed, line(removed), "");
            let (texts, _) = both_ways(&here, &changed);
            assert!(has(&texts, removed, "ann:"), "{removed:?}");
        }
    }

    #[test]
    fn the_primary_group_of_who_lives_or_is_new_is_not_removed() {
        let mut here = without_ann();
        edit(&mut here, File::Group, "devs:x:500:\n", "");
        edit(&mut here, File::Gshadow, "devs:!::\n", "");
        let dora = "dora:x:1002:500::/:/bin/sh\nann:x:1000";
        for there in [
            change(File::Passwd, "ann:x:1000", dora),
            change(File::Passwd, "ann:x:1000:1000:", "ann:x:1000:500:"),
        ] {
            let (texts, _) = both_ways(&here, &there);
            assert!(has(&texts, File::Group, "devs:x:500:"), "{texts:?}");
            assert!(has(&texts, File::Gshadow, "devs:!::"), "{texts:?}");
        }
    }

    #[test]
    fn ranges_alone_may_be_removed_or_changed() {
        let there = change(File::Passwd, "ann:/bin/sh", "ann:/bin/zsh");
        let here = change(File::Subuid, "ann:100000:65536", "ann:300000:65536");
        let (texts, notes) = both_ways(&here, &there);
        assert!(
            has(&texts, File::Subuid, "ann:300000") && !has(&texts, File::Subuid, "ann:100000")
        );
        let here = change(File::Subuid, "ann:100000:65536\n", "");
        let (texts, _) = both_ways(&here, &there);
        assert!(!has(&texts, File::Subuid, "ann"));
        assert_eq!(notes, []);
    }

    #[test]
    fn of_two_new_ranges_that_overlap_the_later_moves_to_the_next_that_is_free() {
        let new = |user: &str| {
            let line = format!("ben:165536:65536\n{user}:231072:65536");
            change(File::Subuid, "ben:165536:65536", &line)
        };
        let (texts, notes) = settled(How::default(), &base(), &new("carl"), &new("dora")).unwrap();
        assert!(has(&texts, File::Subuid, "dora:231072:65536\n"));
        assert!(has(&texts, File::Subuid, "carl:296608:65536\n"));
        let moved = Note::Moved {
            owner: "carl".into(),
            from: 231_072,
            to: 296_608,
            of: "dora".into(),
        };
        assert_eq!(notes, [moved]);
        // Where this side yields, its own moves.
        let how = How {
            yields: true,
            ..How::default()
        };
        let (texts, _) = settled(how, &base(), &new("dora"), &new("carl")).unwrap();
        assert!(has(&texts, File::Subuid, "carl:231072:65536\n"));
        assert!(has(&texts, File::Subuid, "dora:296608:65536\n"));
        // One that both had before stays where it is.
        let mut there = without_ann();
        edit(&mut there, File::Subuid, "ben:", "carl:100000:65536\nben:");
        let here = change(File::Shadow, "$y$a", "$y$A");
        let (texts, _) = both_ways(&here, &there);
        assert!(has(&texts, File::Subuid, "ann:100000:65536\n"));
        assert!(
            has(&texts, File::Subuid, "carl:231072:65536\n"),
            "{texts:?}"
        );
    }

    #[test]
    fn ranges_that_overlapped_on_one_server_stay_and_are_noted_once() {
        let here = change(File::Subuid, "ben:165536", "ben:150000");
        let there = change(File::Subgid, "ben:165536", "ben:165537");
        let mut later = here.clone();
        let (texts, notes) = both_ways(&here, &change(File::Subuid, "ann:", "eve:900000:10\nann:"));
        assert!(has(&texts, File::Subuid, "ben:150000") && has(&texts, File::Subuid, "ann:100000"));
        assert_eq!(notes, [Note::Overlap("ann".into(), "ben".into())]);
        edit(&mut later, File::Subuid, "ann:", "eve:900000:10\nann:");
        let (_, notes) = settled(How::default(), &here, &later, &there).unwrap();
        assert_eq!(notes, []);
    }

    #[test]
    fn a_range_for_which_there_is_no_room_is_left_out_and_its_file_kept_aside() {
        let full = "ben:165536:599934465";
        let mut old = base();
        edit(
            &mut old,
            File::Subuid,
            "ben:165536:65536\nann:100000:65536\n",
            full,
        );
        let new = |user: &str| {
            let mut texts = old.clone();
            edit(
                &mut texts,
                File::Subuid,
                full,
                &format!("{user}:100000:65536\n{full}"),
            );
            texts
        };
        let (texts, notes) = settled(How::default(), &old, &new("carl"), &new("dora")).unwrap();
        assert!(has(&texts, File::Subuid, "dora:100000:65536\n"));
        assert!(!has(&texts, File::Subuid, "carl"));
        let left_out = Note::LeftOut {
            owner: "carl".into(),
            from: 100_000,
            of: "dora".into(),
        };
        assert!(left_out.loses());
        assert_eq!(notes, [left_out]);
    }
}

proptest! {
    /// Each server edits users of its own: afterwards every edit of both is there.
    #[test]
    fn no_edit_of_different_records_is_lost(
        ours in proptest::collection::btree_map(0..20usize, 0..1000u32, 0..20),
        theirs in proptest::collection::btree_map(20..40usize, 0..1000u32, 0..20),
    ) {
        let base: Vec<String> = (0..40).map(|i| format!("u{i}:old:1:0:99999:7:::")).collect();
        let edit = |edits: &BTreeMap<usize, u32>| {
            let mut lines = base.clone();
            edits.iter().for_each(|(i, password)| lines[*i] = format!("u{i}:{password}:2:0:99999:7:::"));
            lines.join("\n") + "\n"
        };
        let all: BTreeMap<_, _> = ours.iter().chain(&theirs).map(|(i, p)| (*i, *p)).collect();
        let common = base.join("\n") + "\n";
        let (text, notes) = merged(File::Shadow, &common, &edit(&ours), &edit(&theirs));
        prop_assert_eq!(text, edit(&all));
        prop_assert_eq!(notes, vec![]);
    }

    #[test]
    fn any_text_is_merged_or_refused(base: Vec<u8>, ours: Vec<u8>, theirs: Vec<u8>, which in 0..6usize) {
        let of = |text: &[u8]| Texts::from([(File::IN_ORDER[which], text.to_vec())]);
        let _ = settled(How::default(), &of(&base), &of(&ours), &of(&theirs));
    }
}
