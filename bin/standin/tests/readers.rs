//! Who may read the status of a server, and that nobody who may can do anything else: tried with real users, under a group
//! file of their own in a mount namespace.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

const CONFIG: &str = r#"[cluster]
name = "web"
key = "KEY"

[[server]]
name = "alpha"
address = ["127.0.0.11"]

[[server]]
name = "beta"
address = ["127.0.0.12"]

[[server]]
name = "gamma"
address = ["127.0.0.13"]

[[virtual_server]]
name = "web"
interface = "lo"
address = ["192.0.2.10/32"]

[time]
discipline = "observe"
"#;

/// Runs the main daemon under a group file that knows standin-status, then each of its arguments as a user of its own.
const STAGE: &str = r#"
ip link set lo up
cp /etc/group group && echo standin-status:x:54321: >>group && mount --bind group /etc/group
mkdir run && mount -t tmpfs -o mode=755 run run && mkdir run/standin
standin() { "$BIN"/standin "$@" --config standin.toml --run-dir run/standin --state-dir state --server alpha; }
as() { ids=$1; shift; setpriv $ids ./standin "$@" --config standin.toml --run-dir run/standin --state-dir state --server alpha 2>&1 && echo "exit 0" || echo "exit $?"; }
cp "$BIN"/standin .
standin init >/dev/null
standin run >log 2>&1 &
trap 'kill $!; wait $!' EXIT
for try in $(seq 100); do standin status >/dev/null 2>&1 && break; sleep 0.1; done
MEMBER='--reuid=61001 --regid=61001 --groups=54321'
for command in "status" "maintenance on" "resign" "promote beta" "server remove beta"; do
    echo "== member: $command"; as "$MEMBER" $command
done
echo "== owner of the group: status"; as '--reuid=61001 --regid=54321 --clear-groups' status
echo "== stranger: status"; as '--reuid=61001 --regid=61001 --clear-groups' status
echo "== stranger: check"; as '--reuid=61001 --regid=61001 --clear-groups' status --check
echo "== root: status"; standin status --json | grep -E '"(maintenance|voters|local_refused_command)"' -A4
"#;

fn may_skip() -> bool {
    env::var_os("STANDIN_TESTS_SKIP_NOTHING").is_none()
}

fn part<'a>(text: &'a str, head: &str) -> &'a str {
    let from = text.find(&format!("== {head}\n")).expect(head);
    let part = &text[from + 3..];
    part.find("\n== ").map_or(part, |end| &part[..end])
}

#[test]
fn members_of_the_status_group_read_the_status_and_nothing_else() {
    let bin = Path::new(env!("CARGO_BIN_EXE_standin")).parent().unwrap();
    // Other packages' programs; a build of this package alone has not made them.
    let whole = ["hbd", "listend", "doctord", "electd"].map(|role| bin.join(role).exists());
    let root = nix::unistd::Uid::effective().is_root();
    if (whole.contains(&false) || !root) && may_skip() {
        return eprintln!("skipped: needs root, and `cargo build --workspace --bins` before");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    mode(dir.path(), 0o755).unwrap();
    let key = path("key").display().to_string();
    fs::write(path("standin.toml"), CONFIG.replace("KEY", &key)).unwrap();
    fs::write(path("key"), "5a".repeat(32)).unwrap();
    mode(&path("key"), 0o600).unwrap();
    let Output { stdout, stderr, .. } = Command::new("unshare")
        .args(["-mnp", "--fork", "--mount-proc", "--propagation", "private"])
        .args(["sh", "-ec", STAGE])
        .env("BIN", bin)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&stdout);
    let seen = format!(
        "{text}\n{}\n{}",
        String::from_utf8_lossy(&stderr),
        fs::read_to_string(path("log")).unwrap_or_default()
    );
    for head in ["member: status", "owner of the group: status"] {
        let status = part(&text, head);
        for expected in ["electd   runs", "main     runs", "exit 0"] {
            assert!(status.contains(expected), "{head}: {expected}: {seen}");
        }
    }
    for command in [
        "maintenance on",
        "resign",
        "promote beta",
        "server remove beta",
    ] {
        let refused = part(&text, &format!("member: {command}"));
        // Maintenance is also kept in the state-dir, which is root's.
        let said = ["only root may command", "Permission denied"];
        assert!(said.iter().any(|s| refused.contains(s)), "{seen}");
        assert!(refused.contains("exit 1"), "{seen}");
    }
    let root = part(&text, "root: status");
    assert!(root.contains("\"maintenance\": false"), "{seen}");
    assert!(root.contains("\"beta\""), "{seen}");
    let stranger = part(&text, "stranger: status");
    assert!(stranger.contains("web: not known: not permitted"), "{seen}");
    assert!(!stranger.contains("down"), "{seen}");
    assert!(stranger.contains("exit 1"), "{seen}");
    let check = part(&text, "stranger: check");
    assert!(
        check.contains("standin UNKNOWN - not known: not permitted"),
        "{seen}"
    );
    assert!(check.contains("exit 3"), "{seen}");
}
