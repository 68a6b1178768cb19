//! The command as an operator types it. The main daemon keeps shell scripts running here; `tests/netns` has
//! the real daemons.
#![allow(clippy::unwrap_used, missing_docs)]

use protocol::owner::{Id, Mac, Machine, Owner};
use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

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
name = "tie"
address = ["127.0.0.13"]
witness = true

[[virtual_server]]
name = "web"
interface = "none0"
address = ["192.0.2.10/24"]
"#;

const ROLES: [&str; 5] = ["hbd", "listend", "doctord", "electd", "syncd"];

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir };
        place.configure(CONFIG);
        fs::write(place.path("key"), "5a".repeat(32)).unwrap();
        place.mode("key", 0o600);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, text: &str) {
        let key = self.path("key").display().to_string();
        fs::write(self.path("standin.toml"), text.replace("KEY", &key)).unwrap();
    }

    fn path_of_bin(&self) -> PathBuf {
        let bin = self.path("bin");
        fs::create_dir(&bin).unwrap();
        bin
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standin"));
        self.complete(&mut command, line);
        command
    }

    fn complete(&self, command: &mut Command, line: &str) {
        command.args(line.split_whitespace());
        command.arg("--config").arg(self.path("standin.toml"));
        command.arg("--run-dir").arg(self.path("run"));
        command.arg("--state-dir").arg(self.path("state"));
        command.args(["--server", "alpha"]).env_remove("RUST_LOG");
    }

    fn run(&self, line: &str) -> (i32, String) {
        told(self.command(line).output().unwrap())
    }
}

fn told(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    (output.status.code().unwrap_or(-1), text.concat())
}

fn told_of(command: &mut Command) -> (i32, String) {
    told(command.output().unwrap())
}

fn standin(arguments: &[&str]) -> (i32, String) {
    told_of(Command::new(env!("CARGO_BIN_EXE_standin")).args(arguments))
}

#[test]
fn version_help_and_wrong_usage() {
    assert_eq!(
        standin(&["--version"]),
        (0, format!("standin {}\n", env!("CARGO_PKG_VERSION")))
    );
    let (code, help) = standin(&["--help"]);
    assert_eq!(code, 0);
    for command in [
        "run",
        "status",
        "check",
        "keygen",
        "init",
        "promote",
        "resign",
        "maintenance",
    ] {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
    }
    for wrong in [
        &[][..],
        &["stauts"],
        &["status", "--jsno"],
        &["promote"],
        &["promote", "be ta"],
        &["promote", "beta", "--virtual-server", ""],
        &["maintenance", "maybe"],
        &["server"],
        &["server", "swap", "beta"],
    ] {
        let (code, text) = standin(wrong);
        assert_eq!(code, 2, "{wrong:?}: {text}");
    }
}

#[test]
fn a_wrong_configuration_is_exit_code_2_with_file_line_key_and_mend() {
    let place = Place::new();
    place.configure(&CONFIG.replace("address = [\"127.0.0.12\"]", "adress = [\"127.0.0.12\"]"));
    for line in [
        "run",
        "run --daemon",
        "status",
        "status --json",
        "check",
        "init",
    ] {
        let (code, text) = place.run(line);
        assert_eq!(code, 2, "{line}: {text}");
        let expected =
            "standin.toml:11: [[server]] beta adress: unknown key; did you mean \"address\"?";
        assert!(text.contains(expected), "{line}: {text}");
    }
    fs::remove_file(place.path("standin.toml")).unwrap();
    let (code, text) = place.run("check");
    assert_eq!(code, 2);
    assert!(text.contains("ok     run-dir"), "it goes on: {text}");
    assert!(
        text.contains("standin.toml: cannot be read: No such file"),
        "{text}"
    );
}

#[test]
fn a_host_that_is_not_listed_is_told_so() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_standin"));
    command
        .arg("check")
        .arg("--config")
        .arg(place.path("standin.toml"));
    let (code, text) = told(command.args(["--server", "gamma"]).output().unwrap());
    assert_eq!(code, 2);
    assert!(
        text.contains("no server is named \"gamma\" (--server); the file lists alpha, beta, tie"),
        "{text}"
    );
}

#[test]
fn keygen_makes_a_secret_file_and_never_overwrites_one() {
    let place = Place::new();
    let file = place.path("new.key");
    let file = file.to_str().unwrap();
    assert_eq!(standin(&["keygen", file]).0, 0);
    let text = fs::read_to_string(file).unwrap();
    let key = text.lines().find(|l| !l.starts_with('#')).unwrap();
    assert!(
        key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit()),
        "{key}"
    );
    assert_eq!(
        fs::metadata(file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (code, again) = standin(&["keygen", file]);
    assert_eq!(code, 1);
    assert!(again.contains("exists and is left as it is"), "{again}");
    assert_eq!(fs::read_to_string(file).unwrap(), text);
    let (code, nowhere) = standin(&["keygen", &format!("{file}/deeper")]);
    assert_eq!(code, 1);
    assert!(nowhere.contains("new.key/deeper"), "{nowhere}");
}

#[test]
fn keygen_makes_an_ssh_key_tells_its_line_and_never_overwrites_one() {
    let place = Place::new();
    let file = place.path("ssh.key");
    let file = file.to_str().unwrap();
    let (code, told) = standin(&["keygen", "--ssh", file]);
    assert_eq!(code, 0, "{told}");
    let private = fs::read_to_string(file).unwrap();
    assert!(private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
    assert_eq!(
        fs::metadata(file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let public = fs::read_to_string(place.path("ssh.key.pub")).unwrap();
    let words: Vec<_> = public.split_whitespace().collect();
    assert_eq!(words[0], "ssh-ed25519");
    let line = told.lines().last().unwrap();
    assert!(line.starts_with("restrict,command=\"/"), "{line}");
    assert!(
        line.ends_with(&format!("syncd serve\" {} {}", words[0], words[1])),
        "{line}"
    );
    let (code, again) = standin(&["keygen", "--ssh", file]);
    assert_eq!(code, 1);
    assert!(again.contains("exists and is left as it is"), "{again}");
    assert!(again.contains(line), "{again}");
    fs::remove_file(file).unwrap();
    let (code, half) = standin(&["keygen", "--ssh", file]);
    assert_eq!(code, 1);
    assert!(half.contains("ssh.key.pub exists"), "{half}");
    let (code, nowhere) = standin(&["keygen", "--ssh", &format!("{file}/deeper")]);
    assert_eq!(code, 1);
    assert!(nowhere.contains("ssh.key/deeper"), "{nowhere}");
    let mut without = Command::new(env!("CARGO_BIN_EXE_standin"));
    let without = without.args(["keygen", "--ssh", &format!("{file}2")]);
    let (code, missing) = told_of(without.env("PATH", place.path("none")));
    assert_eq!(code, 1);
    assert!(missing.contains("apt-get install"), "{missing}");
}

#[test]
fn init_writes_the_first_reservation_once() {
    let place = Place::new();
    let (code, text) = place.run("init");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("alpha votes with alpha, beta, tie"), "{text}");
    let file = place.path("state/reservation");
    let bytes = fs::read(&file).unwrap();
    let reservation = election::Reservation::from_bytes(&bytes).unwrap();
    assert_eq!(reservation.roster.voters.len(), 3);
    assert_eq!(reservation.promise_max, Duration::from_millis(500));
    let (code, text) = place.run("init");
    assert_eq!(code, 1);
    assert!(
        text.contains("reservation exists: alpha belongs to a cluster already"),
        "{text}"
    );
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

/// Rewrites the reservation as if another machine, or another server or cluster, had written it.
fn written_by(place: &Place, change: impl FnOnce(&mut Owner)) -> Vec<u8> {
    let file = place.path("state/reservation");
    let reservation = election::Reservation::from_bytes(&fs::read(&file).unwrap()).unwrap();
    let mut owner = Owner {
        cluster: "web".into(),
        server: "alpha".parse().unwrap(),
        machine: Some(Machine {
            machine_id: Id::of_machine(&"5a".repeat(16)),
            dmi_uuid: Id::of_dmi(&"5a".repeat(16)),
            macs: [Mac([2, 0, 0, 0, 0x5a, 0x5a])].into(),
        }),
    };
    change(&mut owner);
    let bytes = reservation.to_owned_bytes(&owner).unwrap();
    fs::write(&file, &bytes).unwrap();
    bytes
}

#[test]
fn a_state_dir_of_another_machine_is_refused_and_can_be_adopted() {
    let place = Place::new();
    let (code, text) = place.run("init --adopt");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("there is none"), "{text}");
    place.run("init");
    let file = place.path("state/reservation");
    let own = fs::read(&file).unwrap();
    let (code, text) = place.run("init --adopt");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("it is this machine's own"), "{text}");
    fs::write(&file, b"damaged").unwrap();
    let (code, text) = place.run("init --adopt");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("nothing of it can be adopted"), "{text}");

    fs::write(&file, &own).unwrap();
    let foreign = written_by(&place, |_| {});
    for line in ["check", "init"] {
        let (code, text) = place.run(line);
        assert_eq!(code, 1, "{text}");
        for named in [
            "written on another machine",
            "remove the file",
            "`standin init --adopt`",
        ] {
            assert!(text.contains(named), "{line}: no {named}: {text}");
        }
    }
    assert_eq!(fs::read(&file).unwrap(), foreign);
    let (code, text) = place.run("init --adopt");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("alpha votes with alpha, beta, tie"), "{text}");
    assert!(text.contains("must never run with it again"), "{text}");
    assert_eq!(
        fs::read(&file).unwrap(),
        own,
        "all but the owner is as it was"
    );
    let (_, text) = place.run("check");
    assert!(text.contains("reservation: terms up to"), "{text}");
}

#[test]
fn a_state_dir_of_another_server_or_cluster_cannot_be_adopted() {
    let place = Place::new();
    place.run("init");
    let beta = |owner: &mut Owner| owner.server = "beta".parse().unwrap();
    let mail = |owner: &mut Owner| owner.cluster = "mail".into();
    for (bytes, why) in [
        (
            written_by(&place, beta),
            "it is of server beta, and this is alpha",
        ),
        (
            written_by(&place, mail),
            "it is of cluster mail, and this is web",
        ),
    ] {
        fs::write(place.path("state/reservation"), &bytes).unwrap();
        for line in ["init", "init --adopt", "check"] {
            let (code, text) = place.run(line);
            assert_eq!(code, 1, "{line}: {text}");
            assert!(text.contains(why), "{line}: {text}");
            assert!(!text.contains("`standin init --adopt`"), "{line}: {text}");
        }
        assert_eq!(fs::read(place.path("state/reservation")).unwrap(), bytes);
    }
}

#[test]
fn a_server_that_is_bound_to_no_machine_takes_a_state_dir_of_any() {
    let place = Place::new();
    place.configure(&CONFIG.replace("key = ", "machine = \"none\"\nkey = "));
    place.run("init");
    written_by(&place, |_| {});
    let (_, text) = place.run("check");
    assert!(text.contains("reservation: terms up to"), "{text}");
    let (code, text) = place.run("init");
    assert_eq!(code, 1);
    assert!(text.contains("belongs to a cluster already"), "{text}");
}

#[test]
fn check_tells_a_reservation_of_the_former_format() {
    let place = Place::new();
    place.run("init");
    let file = place.path("state/reservation");
    let reservation = election::Reservation::from_bytes(&fs::read(&file).unwrap()).unwrap();
    fs::write(&file, reservation.to_bytes().unwrap()).unwrap();
    let (_, text) = place.run("check");
    assert!(text.contains("it names no owner"), "{text}");
}

#[test]
fn check_names_what_is_wrong_here() {
    let place = Place::new();
    let (code, text) = place.run("check");
    assert_eq!(code, 1, "{text}");
    for expected in [
        "ok     CONFIG: cluster web, this server is alpha",
        "ok     KEY: cluster key, 1 live",
        "WRONG  virtual server web: no interface none0 on this host",
        "note   electd: does not run",
        "ok     address 127.0.0.11 is here and port 6946 free",
        "/state/reservation: no term reservation; on a new cluster run `standin init`",
    ] {
        let expected = expected
            .replace("CONFIG", place.path("standin.toml").to_str().unwrap())
            .replace("KEY", place.path("key").to_str().unwrap());
        assert!(text.contains(&expected), "{expected}\n{text}");
    }
    place.run("init");
    let (_, text) = place.run("check");
    assert!(text.contains("reservation: terms up to"), "{text}");
    fs::write(place.path("state/reservation"), b"damaged").unwrap();
    let (code, text) = place.run("check");
    assert_eq!(code, 1);
    assert!(text.contains("this server would be blank"), "{text}");
    place.mode("key", 0o644);
    let (code, text) = place.run("check");
    assert_eq!(code, 2, "{text}");
    assert!(
        text.contains("mode 0644") && text.contains("chmod 600"),
        "{text}"
    );
}

#[test]
fn check_names_numbers_that_two_users_or_groups_have_as_long_as_they_have_them() {
    let place = Place::new();
    let key = "host_key = \"ssh-ed25519 AAAAx\"\n\n[[";
    let servers = CONFIG.replacen("\n[[", key, 3);
    let servers = servers.replacen(key, "\n[[", 1);
    let file = |name: &str| place.path(name).display().to_string();
    let set = format!(
        "[[sync]]\nname = \"accounts\"\nmerge = \"accounts\"\npath = [\"{}\", \"{}\"]\n",
        file("passwd"),
        file("group")
    );
    place.configure(&(servers + &set));
    let user = |name: &str, id: u32| format!("{name}:x:{id}:{id}::/:/bin/sh\n");
    let root = user("root", 0) + "# by hand\n" + &user("ann", 7);
    fs::write(place.path("passwd"), root.clone() + &user("bob", 7)).unwrap();
    fs::write(place.path("group"), "root:x:0:\nbig:x:6:a\nbig:x:6:b\n").unwrap();
    let told =
        "note   set accounts: duplicate uid 7: ann and bob in passwd; give one of them another";
    let (_, text) = place.run("check");
    assert!(
        text.contains(told) && text.matches("duplicate").count() == 1,
        "{text}"
    );
    fs::write(place.path("passwd"), root).unwrap();
    let (_, text) = place.run("check");
    assert!(!text.contains("duplicate"), "{text}");
}

#[test]
fn without_daemons_status_and_requests_say_so() {
    let place = Place::new();
    let (code, text) = place.run("status");
    assert_eq!(code, 1);
    assert!(text.contains("server alpha of cluster web: down"), "{text}");
    let (code, text) = place.run("status --json");
    assert_eq!(code, 1);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&json["role"], &json["server"]),
        (&"down".into(), &"alpha".into())
    );
    for line in [
        "promote beta",
        "resign",
        "maintenance on",
        "server add beta",
        "server remove beta",
    ] {
        let (code, text) = place.run(line);
        assert_eq!(code, 1, "{line}: {text}");
        assert!(
            text.contains("electd does not run, start it with `standin run`"),
            "{line}: {text}"
        );
    }
}

/// A syncd that says what it was asked, and ends so.
const ASKED: &str = "#!/bin/sh\nprintf '<%s>' \"$@\"\nexit 5\n";

#[test]
fn what_only_syncd_knows_is_handed_over_to_it() {
    let place = Place::new();
    fs::create_dir(place.path("bin")).unwrap();
    install(&place.path("bin"));
    let ask = |line: &str| {
        let mut command = Command::new(place.path("bin/standin"));
        place.complete(&mut command, line);
        told(command.output().unwrap())
    };
    for line in [
        "sync conflicts",
        "sync restore /etc/motd",
        "sync why /etc/motd",
    ] {
        let (code, text) = ask(line);
        assert_eq!(code, 1, "{line}: {text}");
        assert!(
            text.contains("bin/syncd is missing; install it beside"),
            "{line}: {text}"
        );
    }
    fs::write(place.path("bin/syncd"), ASKED).unwrap();
    place.mode("bin/syncd", 0o755);
    let own: String = [
        ("config", "standin.toml"),
        ("run-dir", "run"),
        ("state-dir", "state"),
    ]
    .map(|(option, name)| format!("<--{option}><{}>", place.path(name).display()))
    .concat();
    for (line, first, last) in [
        ("sync conflicts", "<conflicts>", ""),
        ("sync conflicts --set www", "<conflicts>", "<--set><www>"),
        ("sync why /a/b", "<why></a/b>", ""),
        (
            "sync restore /a/b --at 2h --list",
            "<restore></a/b><--at><2h><--list>",
            "",
        ),
    ] {
        let (code, text) = ask(line);
        assert_eq!(code, 5, "{line}: {text}");
        assert_eq!(
            text,
            format!("{first}{own}<--server><alpha>{last}"),
            "{line}"
        );
    }
    // What is not given is told all the same, before the path, and nothing twice.
    let mut command = Command::new(place.path("bin/standin"));
    command.args(["sync", "why", "/a/b", "--server", "beta"]);
    let (code, text) = told(command.output().unwrap());
    assert_eq!(code, 5, "{text}");
    assert!(text.starts_with("<why><--config></"), "{text}");
    assert!(text.ends_with("></a/b><--server><beta>"), "{text}");
    assert_eq!(text.matches("<--").count(), 4, "{text}");
    for wrong in ["sync conflicts www", "sync conflicts --sets www"] {
        let (code, text) = ask(wrong);
        let help = text.contains("Usage: ");
        assert!(code == 2 && help, "{wrong}: {code}: {text}");
    }
}

#[test]
fn config_only_looks_at_file_and_key_and_at_nothing_else() {
    let place = Place::new();
    let (code, text) = place.run("check --config-only");
    assert_eq!((code, text.lines().count()), (0, 2), "{text}");
    fs::remove_file(place.path("key")).unwrap();
    let (code, text) = place.run("check --config-only");
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("standin keygen"), "{text}");
    place.configure("[cluster]\nnmae = \"web\"\n");
    let (code, text) = place.run("check --config-only");
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("standin.toml:2: [cluster] nmae"), "{text}");
}

#[test]
fn check_goes_on_and_names_each_line_that_is_wrong() {
    let place = Place::new();
    place.mode("key", 0o644);
    let bad = CONFIG.replace("witness = true", "witness = 1\ncolour = \"red\"");
    place.configure(&bad.replace("192.0.2.10/24", "192.0.2.10/99"));
    let lines = [
        "16: [[server]] tie witness",
        "17: [[server]] tie colour",
        "22: [[virtual_server]]",
    ];
    let (code, text) = place.run("check");
    assert_eq!(code, 2, "{text}");
    for line in lines {
        let wrong =
            |l: &str| l.starts_with("WRONG  ") && l.contains(&format!("standin.toml:{line}"));
        assert_eq!(
            text.lines().filter(|l| wrong(l)).count(),
            1,
            "{line}: {text}"
        );
    }
    // While the daemons go on with a good one, all else is looked at, by that.
    fs::create_dir(place.path("run")).unwrap();
    let key = place.path("key").display().to_string();
    fs::write(
        place.path("run/last-good.toml"),
        CONFIG.replace("KEY", &key),
    )
    .unwrap();
    let (code, text) = place.run("check");
    assert_eq!(code, 2, "{text}");
    for expected in [
        "standin.toml:22",
        "last good",
        "WRONG  ",
        "chmod 600",
        "no interface none0",
        "reservation",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn what_nobody_reads_is_no_panic_and_the_exit_code_stays_true() {
    let place = Place::new();
    for (line, expected) in [("status --json", 1), ("check --config-only", 0)] {
        let mut child = place
            .command(line)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let (code, text) = told(child.wait_with_output().unwrap());
        assert_eq!((code, text.as_str()), (expected, ""), "{line}");
    }
}

#[test]
fn a_main_daemon_without_a_key_or_a_free_port_ends_at_once() {
    let place = Place::new();
    install(&place.path_of_bin());
    for role in ROLES {
        fs::write(place.path(&format!("bin/{role}")), "#!/bin/sh\n").unwrap();
        place.mode(&format!("bin/{role}"), 0o755);
    }
    let run = |line: &str| {
        let mut command = Command::new(place.path("bin/standin"));
        place.complete(&mut command, line);
        told(command.output().unwrap())
    };
    let taken = std::net::UdpSocket::bind("127.0.0.11:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    place.configure(&CONFIG.replace("key = ", &format!("port = {port}\nkey = ")));
    let (code, text) = run("run");
    assert_eq!(code, 2, "{text}");
    let expected = format!("port {port} of 127.0.0.11 is taken by another program");
    assert!(text.contains(&expected), "{text}");
    drop(taken);
    fs::remove_file(place.path("key")).unwrap();
    let (code, text) = run("run");
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("standin keygen"), "{text}");
}

#[test]
fn maintenance_ends_in_the_state_dir_even_if_electd_is_away() {
    let place = Place::new();
    fs::create_dir(place.path("state")).unwrap();
    let file = place.path("state/maintenance");
    assert_eq!(place.run("maintenance on").0, 1);
    assert!(!file.exists(), "nobody is in maintenance");
    fs::write(&file, "1\n").unwrap();
    assert_eq!(place.run("maintenance off").0, 1);
    assert!(!file.exists());
}

// The main daemon with four shell scripts.

/// Says on which Unix signal it ended.
const ROLE: &str = r#"#!/bin/sh
name=$(basename "$0")
echo "$name start $$" >> LOG
trap 'echo "$name term $$" >> LOG; exit 0' TERM INT
trap 'echo "$name hup $$" >> LOG' HUP
while :; do sleep 0.02; done
"#;

struct Run {
    place: Place,
    main: Child,
}

impl Run {
    fn new(role: &str) -> Self {
        let place = Place::new();
        let bin = place.path("bin");
        fs::create_dir(&bin).unwrap();
        install(&bin);
        let script = role.replace("LOG", place.path("log").to_str().unwrap());
        for role in ROLES {
            fs::write(bin.join(role), &script).unwrap();
            place.mode(&format!("bin/{role}"), 0o755);
        }
        let main = Self::spawn(&place);
        let run = Self { place, main };
        for role in ROLES {
            run.await_line(role, "start", 1);
        }
        run
    }

    fn spawn(place: &Place) -> Child {
        let mut command = Command::new(place.path("bin/standin"));
        place.complete(&mut command, "run");
        command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn lines(&self, role: &str, what: &str) -> Vec<String> {
        let log = fs::read_to_string(self.place.path("log")).unwrap_or_default();
        let begin = format!("{role} {what} ");
        log.lines()
            .filter_map(|l| l.strip_prefix(&begin))
            .map(str::to_owned)
            .collect()
    }

    /// Waits until the log says so `count` times; the last one's process number.
    fn await_line(&self, role: &str, what: &str, count: usize) -> String {
        await_that(&format!("{count} x {role} {what}"), || {
            let lines = self.lines(role, what);
            (lines.len() >= count).then(|| lines[count - 1].clone())
        })
    }

    fn await_end(&mut self) -> Option<i32> {
        await_that("the end", || self.main.try_wait().unwrap()).code()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.main.kill();
        let _ = self.main.wait();
        for role in ROLES {
            for pid in self.lines(role, "start") {
                if fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|c| c.contains(role))
                {
                    kill("KILL", &pid);
                }
            }
        }
    }
}

/// Puts the executable into `bin`. Linked where possible: a copy just written may be "busy" for a moment.
fn install(bin: &Path) {
    let (own, new) = (env!("CARGO_BIN_EXE_standin"), bin.join("standin"));
    if fs::hard_link(own, &new).is_err() {
        fs::copy(own, &new).unwrap();
    }
}

fn kill(signal: &str, pid: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{signal}"), pid])
        .stderr(Stdio::null())
        .status();
}

fn await_that<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn position(log: &str, line: &str) -> usize {
    log.lines()
        .position(|l| l.starts_with(line))
        .unwrap_or_else(|| panic!("{line}: {log}"))
}

#[test]
fn run_restarts_the_dead_and_stops_in_order() {
    let mut run = Run::new(ROLE);
    let pid_file = fs::read_to_string(run.place.path("run/standin.pid")).unwrap();
    assert_eq!(pid_file.trim(), run.main.id().to_string());
    let first = run.await_line("electd", "start", 1);
    kill("KILL", &first);
    let second = run.await_line("electd", "start", 2);
    assert_ne!(first, second);
    assert_eq!(
        run.lines("hbd", "start").len(),
        1,
        "the others are left alone"
    );
    let (code, text) = run.place.run("status --json");
    assert_eq!(code, 1, "no real electd answers");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let roles = json["roles"].as_array().unwrap();
    assert_eq!(
        roles.iter().find(|r| r["name"] == "electd").unwrap()["restarts"],
        1
    );
    assert_eq!(
        roles.iter().find(|r| r["name"] == "main").unwrap()["pid"],
        run.main.id()
    );

    kill("TERM", &run.main.id().to_string());
    assert_eq!(run.await_end(), Some(0));
    let log = fs::read_to_string(run.place.path("log")).unwrap();
    let order =
        ["electd term", "listend term", "doctord term", "hbd term"].map(|l| position(&log, l));
    assert!(order.is_sorted(), "{log}");
    assert!(!run.place.path("run/standin.pid").exists());
}

#[test]
fn a_role_that_dies_again_and_again_is_started_with_pauses() {
    let run = Run::new("#!/bin/sh\necho \"$(basename $0) start $$\" >> LOG\nexit 3\n");
    run.await_line("hbd", "start", 7);
    thread::sleep(Duration::from_millis(1500));
    let starts = run.lines("hbd", "start").len();
    assert!((7..=12).contains(&starts), "{starts} starts");
}

#[test]
fn a_reload_tells_all_roles_and_a_new_key_restarts_hbd_then_listend() {
    let run = Run::new(ROLE);
    let main = run.main.id().to_string();
    run.place
        .configure(&CONFIG.replace("name = \"web\"\nkey", "nmae = \"web\"\nkey"));
    kill("HUP", &main);
    thread::sleep(Duration::from_millis(300));
    assert!(
        run.lines("electd", "hup").is_empty(),
        "a bad file changes nothing"
    );
    run.place.configure(CONFIG);
    kill("HUP", &main);
    for role in ["electd", "doctord", "hbd", "listend"] {
        run.await_line(role, "hup", 1);
    }
    fs::write(run.place.path("key"), "a5".repeat(32)).unwrap();
    kill("HUP", &main);
    for role in ["electd", "doctord"] {
        run.await_line(role, "hup", 2);
    }
    for role in ["hbd", "listend"] {
        run.await_line(role, "start", 2);
        assert_eq!(run.lines(role, "hup").len(), 1);
    }
    for role in ["electd", "doctord"] {
        assert_eq!(run.lines(role, "start").len(), 1);
    }
    let log = fs::read_to_string(run.place.path("log")).unwrap();
    let order = ["hbd term", "listend term"].map(|l| position(&log, l));
    assert!(order.is_sorted(), "{log}");
}

#[test]
fn roles_outlive_the_main_daemon_and_a_second_one_is_refused() {
    let mut run = Run::new(ROLE);
    let mut second = Run::spawn(&run.place);
    assert_eq!(
        await_that("the refusal", || second.try_wait().unwrap()).code(),
        Some(1)
    );
    run.main.kill().unwrap();
    run.main.wait().unwrap();
    thread::sleep(Duration::from_millis(100));
    let pid = run.await_line("hbd", "start", 1);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert!(run.lines("hbd", "term").is_empty());
}

#[test]
fn a_new_main_daemon_finds_roles_that_do_not_answer_and_starts_no_second_ones() {
    let mut run = Run::new(ROLE);
    run.main.kill().unwrap();
    run.main.wait().unwrap();
    run.main = Run::spawn(&run.place);
    let hbd = run.await_line("hbd", "start", 1);
    await_that("the main daemon", || {
        let (_, text) = run.place.run("status --json");
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        let main = json["roles"]
            .as_array()?
            .iter()
            .find(|r| r["name"] == "main")?
            .clone();
        (main["pid"] == run.main.id()).then_some(())
    });
    kill("KILL", &hbd);
    run.await_line("hbd", "start", 2);
    for role in ["listend", "doctord", "electd"] {
        assert_eq!(run.lines(role, "start").len(), 1, "{role}");
    }
}

#[test]
fn the_last_good_configuration_is_kept_and_serves_while_the_file_is_bad() {
    let run = Run::new(ROLE);
    let kept = || fs::read_to_string(run.place.path("run/last-good.toml")).unwrap();
    let first = kept();
    let server = fs::read_to_string(run.place.path("run/last-server"));
    assert_eq!(server.unwrap(), "alpha\n");
    run.place.configure("[cluster]\nnmae = \"web\"\n");
    let (code, text) = run.place.run("status");
    assert_eq!(code, 1, "no real electd answers");
    assert!(text.contains("standin.toml:2: [cluster] nmae"), "{text}");
    assert!(text.contains("server alpha of cluster web"), "{text}");
    let (code, text) = run.place.run("reload");
    assert_eq!(code, 2, "{text}");
    kill("HUP", &run.main.id().to_string());
    thread::sleep(Duration::from_millis(100));
    assert_eq!(kept(), first);
    run.place
        .configure(&CONFIG.replace("\"web\"\nkey", "\"mail\"\nkey"));
    kill("HUP", &run.main.id().to_string());
    await_that("the new one", || kept().contains("mail").then_some(()));
}

#[test]
fn a_missing_executable_is_named() {
    let place = Place::new();
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    install(&bin);
    let mut command = Command::new(bin.join("standin"));
    place.complete(&mut command, "run");
    let (code, text) = told(command.output().unwrap());
    assert_eq!(code, 1);
    assert!(
        text.contains("bin/hbd is missing; install it beside"),
        "{text}"
    );
}

#[test]
fn a_host_without_an_address_of_a_server_waits_and_says_so() {
    let place = Place::new();
    let manager = UnixDatagram::bind(place.path("notify")).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let bin = place.path_of_bin();
    install(&bin);
    let elsewhere = CONFIG.replace("127.0.0.", "203.0.113.");
    place.configure(&elsewhere);
    let nameless = |line: &str| {
        let mut command = Command::new(bin.join("standin"));
        place.complete(&mut command, line);
        let given = command.get_args().map(OsStr::to_owned);
        let given: Vec<_> = given.take_while(|a| a != "--server").collect();
        let mut command = Command::new(bin.join("standin"));
        command.args(given);
        command
    };
    let (code, text) = told_of(&mut nameless("check --config-only"));
    assert_eq!(code, 0, "init scripts may start it: {text}");
    assert!(text.contains("a daemon waits until it has one"), "{text}");
    let (code, _) = told_of(&mut nameless("check"));
    assert_eq!(code, 2);
    let log = place.path("main.log");
    let mut command = nameless("run --daemon");
    command
        .env("NOTIFY_SOCKET", place.path("notify"))
        .env("WATCHDOG_USEC", "10000000");
    let (code, text) = told(command.arg("--log").arg(&log).output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("yet: waiting for one"), "{text}");
    let (_, pid) = text.split_once("runs, pid ").unwrap();
    let (pid, _) = pid.split_once(',').unwrap();
    let says = |what: &str| {
        await_that(what, || {
            fs::read_to_string(&log).ok()?.contains(what).then_some(())
        });
    };
    says("is not in the list: none of alpha, beta, tie");
    says("waiting until this host has an address");
    let notified = || {
        let mut buffer = [0; 128];
        let n = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    assert!(notified().starts_with("READY=1\nSTATUS=waiting until this host"));
    assert_eq!(notified(), "WATCHDOG=1");
    assert!(place.path("run/main.waiting").exists());
    // Neither a file that is bad for a moment nor a log that was renamed ends it.
    place.configure(&elsewhere.replace("192.0.2.10/24", "nowhere"));
    says("[[virtual_server]]");
    fs::rename(&log, place.path("main.log.1")).unwrap();
    kill("HUP", pid);
    await_that("the new log", || log.exists().then_some(()));
    place.configure(&CONFIG.replace("127.0.0.11", "127.0.0.1"));
    says("this host is alpha now");
    says("bin/hbd is missing");
    assert!(!place.path("run/main.waiting").exists());
}

#[test]
fn a_server_whose_address_is_gone_for_a_while_stays_itself() {
    let place = Place::new();
    let elsewhere = CONFIG.replace("127.0.0.", "203.0.113.");
    place.configure(&elsewhere);
    fs::create_dir(place.path("run")).unwrap();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standin"));
        command.args(["check", "--config"]);
        command.arg(place.path("standin.toml"));
        told_of(command.arg("--run-dir").arg(place.path("run")))
    };
    assert_eq!(check().0, 2);
    fs::write(place.path("run/last-server"), "beta\n").unwrap();
    let (_, text) = check();
    assert!(text.contains("this server is beta"), "{text}");
    place.configure(&CONFIG.replace("127.0.0.11", "127.0.0.1"));
    let (_, text) = check();
    assert!(text.contains("this server is alpha"), "{text}");
    place.configure(&elsewhere.replace("beta", "delta"));
    assert_eq!(check().0, 2);
}

#[test]
fn run_in_the_background_comes_back_when_it_serves() {
    let run = Run::new(ROLE);
    let place = &run.place;
    kill("TERM", &run.main.id().to_string());
    await_that("the end", || {
        (!place.path("run/standin.pid").exists()).then_some(())
    });
    let log = place.path("main.log");
    let mut command = Command::new(place.path("bin/standin"));
    place.complete(&mut command, "run --daemon");
    let (code, text) = told(command.arg("--log").arg(&log).output().unwrap());
    assert_eq!(code, 0, "{text}");
    let pid = fs::read_to_string(place.path("run/standin.pid")).unwrap();
    assert!(
        text.contains(&format!("standin runs, pid {}", pid.trim())),
        "{text}"
    );
    run.await_line("electd", "start", 2);
    kill("TERM", pid.trim());
    await_that("its end", || {
        (!place.path("run/standin.pid").exists()).then_some(())
    });
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("main[alpha]: info: ready"), "{log}");
}
