//! Servers that keep files alike over real SSH servers on loopback, each with a directory of its own at the same path.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use protocol::{
    Role,
    local::{
        ctl::{CtlReply, CtlRequest},
        status::{Detail, SetPeer, SetStatus},
    },
};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const SERVERS: [&str; 3] = ["alpha", "beta", "gamma"];

/// Three servers. Only root may give each its own view of the file system.
struct Scene {
    dir: TempDir,
    /// The configured `[[sync]]`.
    set: &'static str,
    sshds: Vec<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for sshd in &mut self.sshds {
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
    }
}

fn may_run() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let skip = std::env::var_os("STANDIN_TESTS_SKIP_NOTHING").is_none();
    assert!(root || skip, "only root can do this");
    if !root {
        eprintln!("skipped: only root may give each server its own view of the file system");
    }
    root
}

fn done(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// A directory with all that is in it.
const DATA: &str = "[[sync]]\nname = \"data\"\npath = [\"DATA\"]\nexclude = [\"*.tmp\"]\n";
/// The same, and former versions.
const KEPT: &str =
    "[[sync]]\nname = \"data\"\npath = [\"DATA\"]\nexclude = [\"*.tmp\", \"/cache/\"]\nkeep = 3\n";
/// Password files in it.
const ACCOUNTS: &str = "[[sync]]\nname = \"accounts\"\nmerge = \"accounts\"\n\
                        path = [\"DATA/passwd\", \"DATA/shadow\", \"DATA/group\"]\n\
                        [[sync]]\nname = \"rest\"\npath = [\"DATA/hosts\"]\n";

impl Scene {
    fn new() -> Self {
        Self::of(DATA)
    }

    fn of(set: &'static str) -> Self {
        let scene = Self {
            dir: TempDir::new().unwrap(),
            set,
            sshds: Vec::new(),
        };
        // sshd looks at who owns the way to its keys.
        fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for key in ["host", "user", "stranger"] {
            let made = done(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(scene.at(key)),
            );
            assert!(made.status.success(), "{made:?}");
        }
        fs::create_dir(scene.at("data")).unwrap();
        for server in SERVERS {
            fs::create_dir_all(scene.at(server).join("data")).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        scene.configure(port, "host.pub", "user");
        let mut scene = scene;
        for server in SERVERS {
            scene.start_sshd(server, port);
        }
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, server: &str) -> PathBuf {
        self.at(server).join("data")
    }

    fn configure(&self, port: u16, host_key: &str, user_key: &str) {
        let at = |name: &str| self.at(name).display().to_string();
        let key = fs::read_to_string(self.at(host_key)).unwrap();
        let key = key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        let mut text = format!(
            "[cluster]\nname = \"web\"\n[ssh]\nport = {port}\nkey = \"{}\"\n",
            at(user_key)
        );
        for (i, server) in SERVERS.iter().enumerate() {
            text += &format!(
                "[[server]]\nname = \"{server}\"\naddress = [\"127.0.0.{}\"]\nhost_key = \"{key}\"\n",
                i + 1
            );
        }
        text += &self.set.replace("DATA", &at("data"));
        fs::write(self.at("standin.toml"), text).unwrap();
        fs::write(self.at("port"), port.to_string()).unwrap();
    }

    fn port(&self) -> u16 {
        fs::read_to_string(self.at("port"))
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A command on a server: where the set's directory is that server's.
    fn on(&self, server: &str, program: &str) -> Command {
        // A shell that reads no start-up files of root's, which could do anything and take any time.
        let view = "mount --bind \"$1\" \"$2\" && mount -t tmpfs run /run && \
                    mkdir -m 755 /run/sshd && sed '/^root:/s|[^:]*$|/bin/sh|' /etc/passwd >/run/passwd && \
                    mount --bind /run/passwd /etc/passwd && shift 2 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-c", view, "sh"])
            .args([self.data(server), self.at("data")])
            .arg(program);
        command
    }

    fn own(&self, server: &str) -> Vec<String> {
        let at = |path: PathBuf| path.display().to_string();
        vec![
            "--config".into(),
            at(self.at("standin.toml")),
            "--server".into(),
            server.into(),
            "--state-dir".into(),
            at(self.at(server).join("state")),
            "--run-dir".into(),
            at(self.at(server).join("run")),
        ]
    }

    fn start_sshd(&mut self, server: &str, port: u16) {
        let user = fs::read_to_string(self.at("user.pub")).unwrap();
        let forced = format!(
            "restrict,command=\"{} serve {}\" {user}",
            env!("CARGO_BIN_EXE_syncd"),
            self.own(server).join(" ")
        );
        fs::write(self.at(server).join("authorized"), forced).unwrap();
        let place = SERVERS.iter().position(|s| *s == server).unwrap();
        let address = format!("127.0.0.{}", place + 1);
        let mut command = self.on(server, "/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", "/dev/null", "-p", &port.to_string()]);
        for option in [
            format!("ListenAddress={address}"),
            format!("HostKey={}", self.at("host").display()),
            format!(
                "AuthorizedKeysFile={}",
                self.at(server).join("authorized").display()
            ),
            "StrictModes=no".into(),
            "PidFile=none".into(),
            "UsePAM=no".into(),
            "PermitRootLogin=yes".into(),
        ] {
            command.args(["-o", &option]);
        }
        let log = fs::File::create(self.at(server).join("sshd.log")).unwrap();
        self.sshds
            .push(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        let start = Instant::now();
        while TcpStream::connect((address.as_str(), port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{}",
                fs::read_to_string(self.at(server).join("sshd.log")).unwrap()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn syncd(&self, server: &str, arguments: &[&str]) -> Command {
        let mut command = self.on(server, env!("CARGO_BIN_EXE_syncd"));
        command.args(arguments).args(self.own(server));
        command
    }

    /// What a run on this server says, and its exit code.
    fn run(&self, server: &str, arguments: &[&str]) -> (String, Option<i32>) {
        self.says(server, &[&["run"], arguments].concat())
    }

    /// What a command on this server says, and its exit code.
    fn says(&self, server: &str, arguments: &[&str]) -> (String, Option<i32>) {
        let output = done(self.syncd(server, arguments).stderr(Stdio::piped()));
        let said = [output.stdout, output.stderr].concat();
        (String::from_utf8(said).unwrap(), output.status.code())
    }

    fn fine(&self, server: &str, arguments: &[&str]) -> String {
        let (said, code) = self.run(server, arguments);
        assert_eq!(code, Some(0), "{said}");
        said
    }

    /// A run on this server, which is to get no faster what others give as fast as they can.
    fn slowly(&self, server: &str, rate: &str) -> Command {
        self.limit("slow.toml", rate);
        let own = self.own(server).join(" ");
        let own = own.replace("standin.toml", "slow.toml");
        let mut run = self.on(server, env!("CARGO_BIN_EXE_syncd"));
        run.args(["run", "--peer", "beta"]).args(own.split(' '));
        run
    }

    fn write(&self, server: &str, name: &str, contents: &str) {
        let path = self.data(server).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// The set may go no faster, by this configuration.
    fn limit(&self, config: &str, rate: &str) {
        let text = fs::read_to_string(self.at("standin.toml")).unwrap();
        fs::write(self.at(config), format!("{text}rate = \"{rate}\"\n")).unwrap();
    }

    /// Makes a file that cannot be packed.
    fn noise(&self, server: &str, name: &str, length: usize) {
        let mut noise = vec![0; length];
        let mut random = fs::File::open("/dev/urandom").unwrap();
        random.read_exact(&mut noise).unwrap();
        fs::write(self.data(server).join(name), &noise).unwrap();
    }

    fn read(&self, server: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.data(server).join(name)).ok()
    }

    /// Makes account files on a server: root and these users, with their passwords.
    fn accounts(&self, server: &str, users: &[(&str, &str)]) {
        let all = || {
            [("root", "*")]
                .into_iter()
                .chain(users.iter().copied())
                .enumerate()
        };
        let passwd =
            all().map(|(i, (user, _))| format!("{user}:x:{}:{}::/:/bin/sh\n", i * 1000, i * 1000));
        let shadow = all().map(|(_, (user, word))| format!("{user}:{word}:1:0:99999:7:::\n"));
        let group = all().map(|(i, (user, _))| format!("{user}:x:{}:\n", i * 1000));
        self.write(server, "passwd", &passwd.collect::<String>());
        self.write(server, "shadow", &shadow.collect::<String>());
        self.write(server, "group", &group.collect::<String>());
        self.write(server, "hosts", "another set's");
        let shadow = self.data(server).join("shadow");
        fs::set_permissions(shadow, fs::Permissions::from_mode(0o640)).unwrap();
    }

    fn edit(&self, server: &str, name: &str, from: &str, to: &str) {
        let text = self.read(server, name).unwrap();
        assert!(text.contains(from), "{text}");
        self.write(server, name, &text.replace(from, to));
    }

    /// What is in a server's directory that is kept alike, with all that stat(2) tells of it.
    fn tree(&self, server: &str) -> Vec<String> {
        let list = "find . -mindepth 1 -name '.standin*-stage' -prune -o ! -name '.standin*-set' ! -name '*.tmp' ! -name .pwd.lock \
                    -printf '%P %y %m %U %G %s %T@ %l\\n' | sed '/ d /s/[0-9]* [0-9.]* $//' | sort";
        let output = done(
            Command::new("sh")
                .args(["-c", list])
                .current_dir(self.data(server)),
        );
        let lines = output.stdout.split(|b| *b == b'\n');
        lines.map(|l| l.escape_ascii().to_string()).collect()
    }

    /// A run, and a dry run before it that tells the same, and does nothing.
    fn foretold(&self, server: &str, arguments: &[&str], code: Option<i32>) -> String {
        let names = |tree: Vec<String>| -> BTreeMap<String, String> {
            let lines = tree.into_iter().filter_map(|line| {
                let (name, rest) = line.split_once(' ')?;
                Some((name.to_owned(), rest.to_owned()))
            });
            lines.collect()
        };
        let before = names(self.tree(server));
        let (dry, _) = self.run(server, &[arguments, &["--dry-run"]].concat());
        assert_eq!(names(self.tree(server)), before);
        let (said, ended) = self.run(server, arguments);
        assert_eq!(ended, code, "{said}");
        let after = names(self.tree(server));
        let mut did: Vec<_> = before
            .keys()
            .chain(after.keys())
            .filter_map(|name| match (before.get(name), after.get(name)) {
                (Some(was), Some(is)) if was == is => None,
                (Some(_), Some(_)) => Some(format!("changed: {name}")),
                (None, _) => Some(format!("made: {name}")),
                (_, None) => Some(format!("removed: {name}")),
            })
            .collect();
        let told = dry
            .lines()
            .filter_map(|line| line.split_once(": would be "));
        let mut told: Vec<_> = told.map(|(_, what)| what.to_owned()).collect();
        did.sort();
        did.dedup();
        told.sort();
        assert_eq!(told, did, "{dry}\n{said}");
        let stays = |said: &str| said.lines().filter(|l| l.contains("stay here")).count();
        assert_eq!(stays(&dry), stays(&said), "{dry}\n{said}");
        said
    }

    fn assert_moved(&self, server: &str) {
        assert_eq!(self.read(server, "new/f7").unwrap(), "of 3");
        assert_eq!(self.tree(server), self.tree("alpha"));
    }

    fn assert_alike(&self) {
        for server in &SERVERS[1..] {
            assert_eq!(
                self.tree(SERVERS[0]),
                self.tree(server),
                "alpha and {server}"
            );
        }
    }
}

#[test]
fn what_was_made_changed_and_removed_anywhere_is_everywhere() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "a/one", "1");
    scene.write("beta", "b/two", "2");
    scene.write("gamma", "three", "3");
    scene.write("gamma", "not.tmp", "left out");
    scene.fine("alpha", &[]);
    scene.fine("alpha", &[]);
    scene.assert_alike();
    assert_eq!(scene.read("beta", "three").unwrap(), "3");
    assert_eq!(scene.read("beta", "not.tmp"), None);
    fs::remove_dir_all(scene.data("beta").join("a")).unwrap();
    fs::rename(
        scene.data("gamma").join("three"),
        scene.data("gamma").join("four"),
    )
    .unwrap();
    scene.write("alpha", "b/two", "changed");
    scene.fine("beta", &[]);
    scene.fine("beta", &[]);
    scene.assert_alike();
    assert_eq!(scene.read("gamma", "b/two").unwrap(), "changed");
    assert_eq!(
        (scene.read("alpha", "a/one"), scene.read("alpha", "three")),
        (None, None)
    );
    assert_eq!(scene.read("alpha", "four").unwrap(), "3");
    let said = scene.fine("gamma", &[]);
    assert_eq!(
        said.matches("0 taken; 0 given").count(),
        2,
        "nothing is left to do: {said}"
    );
}

#[test]
fn what_was_a_directory_may_become_a_file_with_further_names_and_the_other_way_round() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "k/in", "x");
    scene.write("alpha", "m", "will be a directory");
    scene.write("alpha", "o/p/in", "will be a link");
    scene.fine("alpha", &[]);
    let data = scene.data("alpha");
    fs::remove_dir_all(data.join("k")).unwrap();
    scene.write("alpha", "k", "small");
    fs::hard_link(data.join("k"), data.join("l")).unwrap();
    fs::remove_file(data.join("m")).unwrap();
    scene.write("alpha", "m/in", "y");
    fs::remove_dir_all(data.join("o")).unwrap();
    std::os::unix::fs::symlink("k", data.join("o")).unwrap();
    // A conflict over kinds: the younger one stays, or what is in the directory is kept aside.
    scene.write("beta", "z/in", "of beta");
    scene.write("alpha", "z", "of alpha");
    scene.fine("alpha", &[]);
    scene.fine("beta", &[]);
    scene.assert_alike();
    assert_eq!(scene.read("gamma", "l").unwrap(), "small");
    let said = scene.fine("alpha", &[]);
    assert_eq!(said.matches("0 taken; 0 given").count(), 2, "{said}");
}

#[test]
fn on_a_terminal_a_run_shows_how_far_it_has_got_and_nowhere_else() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "one", "1");
    let seen = |options: &[&str]| {
        let run = scene.syncd("alpha", &[&["run"], options].concat());
        let words = std::iter::once(run.get_program()).chain(run.get_args());
        let quoted =
            words.map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''")));
        let line = quoted.collect::<Vec<_>>().join(" ");
        let output = done(Command::new("script").args(["-qec", &line, "/dev/null"]));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = seen(&[]);
    assert!(
        shown.contains("/data: looking") && shown.contains("1 given"),
        "{shown}"
    );
    scene.write("alpha", "two", "2");
    let hidden = seen(&["--no-progress"]);
    assert!(
        !hidden.contains('\x1b') && hidden.contains("1 given"),
        "{hidden}"
    );
    scene.write("alpha", "three", "3");
    let (said, _) = scene.run("alpha", &[]);
    assert!(!said.contains('\x1b') && said.contains("1 given"), "{said}");
}

#[test]
fn a_socket_has_an_exit_status_of_its_own_and_what_was_verified_is_told() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "file", "contents");
    let socket = scene.data("alpha").join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (said, code) = scene.run("alpha", &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("not kept alike: socket: a socket"), "{said}");
    assert_eq!(scene.read("beta", "file").unwrap(), "contents");
    drop(listener);
    fs::remove_file(socket).unwrap();
    let said = scene.fine("alpha", &["--checksum"]);
    assert!(said.contains("1 files verified"), "{said}");
}

#[test]
fn contents_go_no_faster_than_the_set_may() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.limit("standin.toml", "200KB/s");
    scene.noise("beta", "noise", 150_000);
    let start = Instant::now();
    scene.fine("alpha", &[]);
    // It came here, and went to gamma: in one direction after the other.
    assert!(start.elapsed() > Duration::from_millis(1400));
    scene.assert_alike();
}

#[test]
fn all_that_a_file_has_arrives() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    let script = "echo suid >suid && chown 12:34 suid && chmod 4751 suid && touch -d '2001-02-03 04:05:06.789' suid && \
                  ln suid further && ln -s nowhere link && mkfifo -m 620 pipe && mkdir -m 1777 sticky && \
                  truncate -s 10M sparse && echo end >>sparse && printf 'odd' >\"$(printf 'a\\377\\nb')\" && \
                  mkdir empty && : >nothing";
    let made = done(
        Command::new("sh")
            .args(["-ec", script])
            .current_dir(scene.data("alpha")),
    );
    assert!(made.status.success(), "{made:?}");
    scene.fine("alpha", &[]);
    scene.assert_alike();
    let meta = |name: &str| fs::metadata(scene.data("gamma").join(name)).unwrap();
    assert_eq!(
        meta("suid").ino(),
        meta("further").ino(),
        "one file of two names"
    );
    assert_eq!(
        (
            meta("suid").mode() & 0o7777,
            meta("suid").uid(),
            meta("suid").gid()
        ),
        (0o4751, 12, 34)
    );
    assert_eq!(meta("suid").mtime_nsec(), 789_000_000);
    assert!(meta("sparse").blocks() < 100, "holes stay holes");
}

#[test]
fn what_two_changed_is_decided_alike_and_the_loser_is_kept() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "file", "before");
    scene.fine("alpha", &[]);
    scene.write("alpha", "file", "of alpha");
    scene.write("beta", "file", "of beta!");
    let said = scene.fine("alpha", &[]) + &scene.fine("beta", &[]) + &scene.fine("alpha", &[]);
    scene.assert_alike();
    let winner = scene.read("gamma", "file").unwrap();
    let loser = if winner == "of beta!" {
        "of alpha"
    } else {
        "of beta!"
    };
    assert!(
        said.contains("file: changed here and on another server"),
        "{said}"
    );
    let kept = "find */state -path '*aside*' -type f -exec cat {} +";
    let kept = done(
        Command::new("sh")
            .args(["-c", kept])
            .current_dir(scene.dir.path()),
    );
    assert!(
        String::from_utf8_lossy(&kept.stdout).contains(loser),
        "{loser} is kept"
    );
}

#[test]
fn a_server_with_another_host_key_and_a_server_that_does_not_know_us_get_nothing() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "secret", "s");
    scene.configure(scene.port(), "stranger.pub", "user");
    let (said, code) = scene.run("alpha", &["--peer", "beta"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("beta at 127.0.0.2") && said.contains("not the host_key"),
        "{said}"
    );
    scene.configure(scene.port(), "host.pub", "stranger");
    let (said, code) = scene.run("alpha", &["--peer", "beta"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("does not let in root with"), "{said}");
    assert_eq!(scene.read("beta", "secret"), None);
}

#[test]
fn the_way_to_each_other_server_can_be_tried_before_anything_is_made_alike() {
    if !may_run() {
        return;
    }
    let mut scene = Scene::new();
    let reach = |scene: &Scene| {
        let output = done(&mut scene.syncd("alpha", &["reach"]));
        (
            String::from_utf8(output.stdout).unwrap(),
            output.status.code(),
        )
    };
    let (said, code) = reach(&scene);
    assert_eq!(code, Some(0), "{said}");
    for other in ["beta", "gamma"] {
        assert!(said.contains(&format!("ok     {other}: ")), "{said}");
    }
    let mut beta = scene.sshds.remove(1);
    beta.kill().unwrap();
    beta.wait().unwrap();
    let (said, code) = reach(&scene);
    assert_eq!(code, Some(3), "{said}");
    fs::write(scene.at("gamma/authorized"), "").unwrap();
    let (said, code) = reach(&scene);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("note   files cannot be kept alike with beta"),
        "{said}"
    );
    assert!(said.contains("WRONG  gamma at 127.0.0.3"), "{said}");
    assert!(said.contains("does not let in root with"), "{said}");
}

#[test]
fn a_server_that_is_down_is_told_and_the_others_are_served() {
    if !may_run() {
        return;
    }
    let mut scene = Scene::new();
    let mut beta = scene.sshds.remove(1);
    beta.kill().unwrap();
    beta.wait().unwrap();
    scene.write("alpha", "file", "1");
    let (said, code) = scene.run("alpha", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot reach beta: 127.0.0.2"), "{said}");
    assert_eq!(scene.read("gamma", "file").unwrap(), "1");
    scene.start_sshd("beta", scene.port());
    scene.fine("gamma", &[]);
    scene.assert_alike();
}

#[test]
fn a_disk_that_is_full_or_read_only_is_told_and_the_next_run_makes_it_good() {
    if !may_run() {
        return;
    }
    let mut scene = Scene::new();
    // This thread's own, and that of what it starts.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let disk = scene.data("beta");
    let mount = |arguments: &str| {
        let mut command = Command::new("mount");
        let done = done(command.args(arguments.split(' ')).arg(&disk));
        assert!(done.status.success(), "{done:?}");
    };
    let private = done(Command::new("mount").args(["--make-rprivate", "/"]));
    assert!(private.status.success(), "{private:?}");
    take_away(scene.sshds.remove(1));
    mount("-t tmpfs -o size=1m small");
    scene.start_sshd("beta", scene.port());
    scene.write("alpha", "old", "as it was");
    scene.write("alpha", "d/old", "as it was");
    scene.fine("alpha", &[]);
    let mut noise = vec![0; 3 << 20];
    let mut random = fs::File::open("/dev/urandom").unwrap();
    random.read_exact(&mut noise).unwrap();
    let of_beta = |name: &str| fs::read(scene.data("beta").join(name)).ok();
    // A run that begins on this side, and one that begins on the other.
    for (first, end) in [("alpha", "beta"), ("beta", "alpha")] {
        let why = match first {
            "alpha" => "not taken there: run syncd on beta to see why",
            _ => "No space left on device",
        };
        mount("-o remount,size=1m");
        let large = format!("large of {first}");
        fs::write(scene.data("alpha").join(&large), &noise).unwrap();
        fs::write(scene.data("alpha").join("old"), &noise).unwrap();
        let before = of_beta("old");
        let (said, code) = scene.run(first, &["--peer", end]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(why), "{said}");
        assert_eq!((of_beta("old"), of_beta(&large)), (before, None));
        assert_eq!(of_beta("d/old").unwrap(), b"as it was");
        mount("-o remount,size=64m");
        scene.fine(first, &[]);
        scene.assert_alike();
        scene.write("alpha", "old", "as it was");
        fs::remove_file(scene.data("alpha").join(&large)).unwrap();
        scene.fine(first, &[]);
        // Nothing is written, nothing removed, and all is told.
        mount("-o remount,ro");
        scene.write("alpha", "old", first);
        let (said, code) = scene.run(first, &["--peer", end]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("Read-only file system"), "{said}");
        assert_eq!(of_beta("old").unwrap(), b"as it was");
        mount("-o remount,rw");
        scene.fine(first, &[]);
        scene.assert_alike();
        assert_eq!(of_beta("old").unwrap(), first.as_bytes());
    }
}

#[test]
fn neither_a_mass_of_removals_nor_a_directory_that_is_not_mounted_is_believed() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    for i in 0..100 {
        scene.write("alpha", &format!("f{i}"), "x");
    }
    scene.fine("alpha", &[]);
    for i in 0..90 {
        fs::remove_file(scene.data("alpha").join(format!("f{i}"))).unwrap();
    }
    let (said, code) = scene.run("beta", &["--peer", "alpha"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("90 were removed on alpha and stay here") && said.contains("--allow-deletes"),
        "{said}"
    );
    assert!(scene.read("beta", "f0").is_some());
    scene.fine("beta", &["--peer", "alpha", "--allow-deletes"]);
    assert_eq!(scene.read("beta", "f0"), None);
    // Something else is mounted where the directory was.
    let away = scene.at("gamma").join("away");
    fs::rename(scene.data("gamma"), &away).unwrap();
    fs::create_dir(scene.data("gamma")).unwrap();
    let (said, code) = scene.run("gamma", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is it mounted?"), "{said}");
    assert!(scene.read("alpha", "f95").is_some() && scene.read("beta", "f95").is_some());
}

#[test]
fn a_directory_of_unknown_history_can_be_tried_and_nothing_is_noted_of_it() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "f", "monday");
    scene.fine("alpha", &[]);
    let kept = || {
        let list = "find . -type f ! -name index -exec sha256sum {} + | sort; ls */";
        let mut find = Command::new("sh");
        let find = find
            .args(["-c", list])
            .current_dir(scene.at("alpha").join("state/sync"));
        String::from_utf8(done(find).stdout).unwrap()
    };
    let before = kept();
    assert!(before.contains("fresh"), "{before}");
    fs::remove_file(scene.data("alpha").join(store::MARKER)).unwrap();
    scene.write("alpha", "f", "of a backup");
    let (said, code) = scene.run("alpha", &["--trust-root", "--dry-run"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("would be changed: f"), "{said}");
    assert_eq!(kept(), before);
    assert_eq!(scene.read("alpha", "f").unwrap(), "of a backup");
    scene.fine("alpha", &["--trust-root"]);
    assert_eq!(scene.read("alpha", "f").unwrap(), "monday");
}

#[test]
fn what_is_missing_keeps_up_no_other_set_and_a_single_file_may_be_removed() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(
        "[[sync]]\nname = \"a\"\npath = [\"DATA/a\"]\n[[sync]]\nname = \"b\"\npath = [\"DATA/b\", \"DATA/motd\"]\n",
    );
    for server in SERVERS {
        for file in ["a/f", "b/f"] {
            scene.write(server, file, "1");
        }
    }
    scene.write("alpha", "motd", "m");
    // Nobody knows yet what motd is: a file, or a directory that is not mounted.
    let (said, code) = scene.run("beta", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("motd: No such file"), "{said}");
    let [b, away] = ["b", "away"].map(|name| scene.data("beta").join(name));
    fs::rename(&b, &away).unwrap();
    scene.write("beta", "a/g", "new");
    scene.fine("beta", &["--set", "a"]);
    assert_eq!(scene.read("alpha", "a/g").unwrap(), "new");
    fs::rename(&away, &b).unwrap();
    for server in &SERVERS[1..] {
        scene.write(server, "motd", "");
    }
    scene.fine("alpha", &[]);
    fs::remove_file(scene.data("alpha").join("motd")).unwrap();
    scene.write("gamma", "a/h", "new");
    scene.fine("alpha", &[]);
    assert_eq!(scene.read("beta", "motd"), None);
    assert_eq!(scene.read("beta", "a/h").unwrap(), "new");
    scene.fine("gamma", &[]);
    assert!(SERVERS.iter().all(|s| scene.read(s, "motd").is_none()));
}

#[test]
fn what_moved_is_no_removal_and_of_what_is_refused_nothing_is_done_or_told_to_others() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    for i in 0..40 {
        scene.write("alpha", &format!("old/f{i}"), &format!("of {}", i / 2));
        scene.write("alpha", &format!("lost/f{i}"), &format!("lost {i}"));
    }
    let data = scene.data("alpha");
    fs::hard_link(data.join("old/f1"), data.join("old/name")).unwrap();
    std::os::unix::fs::symlink("f1", data.join("old/link")).unwrap();
    for server in SERVERS {
        scene.fine(server, &[]);
    }
    fs::rename(data.join("old"), data.join("new")).unwrap();
    scene.foretold("beta", &["--peer", "alpha"], Some(0));
    scene.assert_moved("beta");
    scene.foretold("gamma", &["--peer", "beta"], Some(0));
    scene.assert_moved("gamma");
    // The same with a loss beside it.
    fs::rename(data.join("new"), data.join("old")).unwrap();
    fs::remove_dir_all(data.join("lost")).unwrap();
    let said = scene.foretold("beta", &["--peer", "alpha"], Some(1));
    assert!(
        said.contains("41 were removed on alpha and stay here"),
        "{said}"
    );
    scene.foretold("gamma", &["--peer", "beta"], Some(0));
    for server in ["beta", "gamma"] {
        assert_eq!(scene.read(server, "old/f7").unwrap(), "of 3");
        assert_eq!(scene.read(server, "new/f7"), None);
        assert_eq!(scene.read(server, "lost/f7").unwrap(), "lost 7");
    }
    let said = scene.foretold("gamma", &["--peer", "alpha"], Some(1));
    assert!(said.contains("41 were removed on alpha"), "{said}");
    for server in ["beta", "gamma"] {
        scene.foretold(server, &["--peer", "alpha", "--allow-deletes"], Some(0));
    }
    scene.assert_alike();
}

#[test]
fn a_mass_of_removals_is_believed_if_a_second_server_that_had_the_files_removed_them() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    for i in 0..100 {
        scene.write("alpha", &format!("f{i}"), "x");
    }
    // Each tells each other that it has them.
    for server in SERVERS {
        scene.fine(server, &[]);
    }
    for i in 0..90 {
        fs::remove_file(scene.data("alpha").join(format!("f{i}"))).unwrap();
    }
    // A server that begins anew is told of the removals, and removes nothing.
    fs::remove_dir_all(scene.at("gamma").join("state")).unwrap();
    for left in fs::read_dir(scene.data("gamma")).unwrap() {
        let left = left.unwrap().path();
        let _ = fs::remove_file(&left).or_else(|_| fs::remove_dir(&left));
    }
    scene.fine("gamma", &["--peer", "alpha"]);
    let (said, code) = scene.run("beta", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("were removed on alpha and stay here"),
        "{said}"
    );
    assert!(
        said.contains("were removed on gamma and stay here"),
        "{said}"
    );
    assert!(scene.read("beta", "f0").is_some());
    // One that had them, and removed what it had, is a second one.
    for i in 0..100 {
        scene.write("gamma", &format!("g{i}"), "x");
    }
    for server in SERVERS {
        scene.run(server, &[]);
        scene.run(server, &["--allow-deletes"]);
    }
    scene.assert_alike();
    for i in 0..90 {
        fs::remove_file(scene.data("alpha").join(format!("g{i}"))).unwrap();
    }
    scene.fine("gamma", &["--peer", "alpha", "--allow-deletes"]);
    scene.run("beta", &["--peer", "alpha"]);
    assert!(scene.read("beta", "g0").is_some());
    scene.fine("beta", &["--peer", "gamma"]);
    assert_eq!(scene.read("beta", "g0"), None);
}

#[test]
fn a_run_that_is_killed_at_any_moment_is_made_good_by_the_next() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    for i in 0..60 {
        scene.write(
            "alpha",
            &format!("d{}/f{i}", i % 7),
            &"contents ".repeat(i * 50),
        );
    }
    fs::write(scene.data("alpha").join("large"), vec![7; 30_000_000]).unwrap();
    for wait in [5, 20, 40, 80, 150, 300] {
        let mut run = scene.syncd("beta", &["run", "--peer", "alpha"]);
        let mut run = run
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(wait));
        let _ = run.kill(); // unshare has become syncd
        run.wait().unwrap();
        for name in scene.tree("beta") {
            let name = name.split(' ').next().unwrap();
            let ours = scene.data("beta").join(name);
            if ours.is_file() {
                let theirs = fs::read(scene.data("alpha").join(name)).unwrap();
                assert!(
                    fs::read(&ours).unwrap() == theirs,
                    "{name} is whole or not there"
                );
            }
        }
    }
    scene.fine("beta", &[]);
    scene.assert_alike();
    let said = scene.fine("beta", &[]);
    assert!(said.contains("0 taken; 0 given"), "{said}");
    assert!(!said.contains("kept aside"), "{said}");
}

#[test]
fn a_run_that_takes_its_time_keeps_the_other_server_and_one_that_was_stopped_does_not() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.noise("beta", "small", 900_000);
    // Beta has told all that it was asked, and hears no other word for longer than it waits for a sign.
    let start = Instant::now();
    let slow = done(&mut scene.slowly("alpha", "25KB/s"));
    assert!(slow.status.success(), "{slow:?}");
    assert!(start.elapsed() > Duration::from_secs(33));
    assert_eq!(scene.tree("alpha"), scene.tree("beta"));

    scene.noise("beta", "large", 8_000_000);
    let mut stopped = scene.slowly("gamma", "1MB/s");
    let mut stopped = stopped.stdout(Stdio::null()).spawn().unwrap();
    let stage = scene.data("gamma").join(".standin-stage");
    // The marker of a new set is made there as well, before anything is asked of beta.
    scene.wait("gamma gets something", || {
        let files = fs::read_dir(&stage).ok()?;
        let mut sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
        sizes.find(|size| *size > 1000)
    });
    let signal = |which: &str| {
        let id = stopped.id().to_string(); // unshare has become syncd
        assert!(
            done(Command::new("kill").args([which, &id]))
                .status
                .success()
        );
    };
    signal("-STOP");
    scene.write("alpha", "news", "for beta");
    let busy = scene.run("alpha", &["--peer", "beta"]).0;
    assert!(busy.contains("another run is at work on it"), "{busy}");
    scene.wait("beta is free again", || {
        let code = scene.run("alpha", &["--peer", "beta"]).1;
        (code == Some(0)).then_some(())
    });
    assert_eq!(scene.read("beta", "news").unwrap(), "for beta");
    signal("-CONT");
    assert_eq!(stopped.wait().unwrap().code(), Some(1));
    scene.fine("gamma", &[]);
    scene.assert_alike();
}

#[test]
fn a_syncd_that_is_killed_on_the_other_server_ends_the_run_and_it_is_said_how_it_died() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.limit("standin.toml", "4MB/s");
    for (from, to) in [("alpha", "beta"), ("beta", "alpha")] {
        scene.noise(from, &format!("large of {from}"), 10_000_000);
        let mut run = scene.syncd("alpha", &["run", "--peer", "beta"]);
        let run = run
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stage = scene.data(to).join(".standin-stage");
        scene.wait("something comes", || {
            let files = fs::read_dir(&stage).ok()?;
            let mut sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
            sizes.find(|size| *size > 1000)
        });
        let name = |id: &&u32| fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        let there = descendants(scene.sshds[1].id());
        let serve = there.iter().find(|id| name(id) == "syncd\n").unwrap();
        kill(*serve);
        let start = Instant::now();
        let ended = run.wait_with_output().unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(
            said.contains("with beta: its syncd was killed by SIGKILL"),
            "{said}"
        );
    }
    scene.configure(scene.port(), "host.pub", "user");
    scene.fine("alpha", &[]);
    scene.assert_alike();
}

#[test]
fn a_file_that_may_not_grow_as_large_is_told_and_the_rest_arrives() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.noise("beta", "large", 6_000_000);
    scene.write("beta", "small", "1");
    let syncd = env!("CARGO_BIN_EXE_syncd");
    let script = format!(
        "ulimit -f 8192; exec {syncd} run --peer beta {}",
        scene.own("alpha").join(" ")
    );
    let run = done(scene.on("alpha", "sh").args(["-c", &script]));
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(
        said.contains("large") && said.contains("File too large"),
        "{said}"
    );
    assert_eq!(scene.read("alpha", "small").unwrap(), "1");
}

#[test]
fn what_came_of_a_large_file_before_a_run_was_killed_is_gone_on_with() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.limit("standin.toml", "2MB/s");
    scene.noise("alpha", "large", 8_000_000);
    let mut run = scene.syncd("beta", &["run", "--peer", "alpha"]);
    let mut run = run.stdout(Stdio::null()).spawn().unwrap();
    let stage = scene.data("beta").join(".standin-stage");
    let parts = || -> Vec<fs::Metadata> {
        let all = fs::read_dir(&stage).into_iter().flatten();
        all.filter_map(|entry| entry.unwrap().metadata().ok())
            .collect()
    };
    let start = Instant::now();
    while !parts().iter().any(|part| part.len() >= 2_000_000) {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing comes");
        thread::sleep(Duration::from_millis(5));
    }
    let _ = run.kill(); // unshare has become syncd
    run.wait().unwrap();
    let part = &parts()[0];
    assert!(part.len() < 8_000_000 && scene.read("beta", "large").is_none());

    scene.fine("beta", &["--peer", "alpha"]);
    let large = fs::metadata(scene.data("beta").join("large")).unwrap();
    let which = |file: &fs::Metadata| (file.ino(), file.created().unwrap());
    assert_eq!(which(&large), which(part), "it was gone on with");
    assert!(parts().is_empty());
    scene.fine("gamma", &[]);
    scene.assert_alike();
}

#[test]
fn a_path_that_is_too_long_is_told_and_the_exit_status_says_so() {
    if !may_run() {
        return;
    }
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let scene = Scene::new();
    scene.write("alpha", "file", "1");
    let mut at = fs::File::open(scene.data("alpha")).unwrap();
    let name = "d".repeat(240);
    for _ in 0..18 {
        mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = openat(&at, &name, OFlags::DIRECTORY, Mode::empty())
            .unwrap()
            .into();
    }
    let (said, code) = scene.run("alpha", &["--peer", "beta"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("has more than 4,095 bytes; shorten it"),
        "{said}"
    );
    assert_eq!(scene.read("beta", "file").unwrap(), "1");
    fs::rename(
        scene.data("alpha").join(&name),
        scene.data("alpha").join("d.tmp"),
    )
    .unwrap();
    scene.fine("alpha", &["--peer", "beta"]);
}

#[test]
fn runs_of_all_servers_at_once_end_alike() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    for server in SERVERS {
        scene.write(server, &format!("of {server}"), server);
    }
    thread::scope(|scope| {
        for server in SERVERS {
            let scene = &scene;
            scope.spawn(move || scene.run(server, &[]));
        }
    });
    scene.fine("alpha", &[]);
    scene.fine("alpha", &[]);
    scene.assert_alike();
}

#[test]
fn a_password_changed_on_each_of_three_servers_is_kept_by_all_in_any_order_of_meetings() {
    if !may_run() {
        return;
    }
    let users = [("ann", "a0"), ("ben", "b0"), ("carl", "c0")];
    for order in [
        ["alpha", "beta", "gamma"],
        ["gamma", "alpha", "beta"],
        ["beta", "gamma", "alpha"],
    ] {
        let scene = Scene::of(ACCOUNTS);
        for server in SERVERS {
            scene.accounts(server, &users);
        }
        for server in ["alpha", "beta", "alpha"] {
            scene.fine(server, &[]);
        }
        scene.edit("alpha", "shadow", "ann:a0", "ann:a1");
        scene.edit("beta", "shadow", "ben:b0", "ben:b1");
        scene.edit("gamma", "shadow", "carl:c0", "carl:c1");
        // And users come and go, each with two files.
        scene.edit(
            "alpha",
            "passwd",
            "carl:x",
            "dora:x:4000:4000::/:/bin/sh\ncarl:x",
        );
        scene.edit(
            "alpha",
            "shadow",
            "carl:c0",
            "dora:d0:1:0:99999:7:::\ncarl:c0",
        );
        scene.edit("beta", "group", "ann:x:1000:", "ann:x:1000:ben");
        scene.edit("gamma", "group", "ann:x:1000:", "ann:x:1000:carl");
        let [first, second, third] = order;
        let said = scene.fine(first, &["--peer", second]);
        assert!(
            said.contains("shadow: changed on both servers, merged record by record"),
            "{said}"
        );
        scene.fine(second, &["--peer", third]);
        // A change of what came merged: whoever has it only within the merged file must know which is older.
        let letter = ["a", "b", "c"][SERVERS.iter().position(|s| *s == second).unwrap()];
        let [before, after] = ["1", "2"].map(|n| format!(":{letter}{n}:"));
        scene.edit(first, "shadow", &before, &after);
        scene.fine(third, &["--peer", first]);
        scene.fine(first, &[]);
        let said = scene.fine(second, &["--set", "accounts"]);
        assert_eq!(said.matches(" 0 taken; 0 given").count(), 2, "{said}");
        scene.assert_alike();
        let shadow = scene.read("alpha", "shadow").unwrap();
        for word in ["ann:a1:", "ben:b1:", "carl:c1:", "dora:d0:", "root:*:"] {
            let word = word.replace(&before, &after);
            assert!(shadow.contains(&word), "{order:?}: {word}: {shadow}");
        }
        assert!(
            scene
                .read("gamma", "passwd")
                .unwrap()
                .contains("dora:x:4000")
        );
        let group = scene.read("beta", "group").unwrap();
        assert!(
            group.contains("ann:x:1000:ben,carl\n") || group.contains("ann:x:1000:carl,ben\n"),
            "{group}"
        );
        assert_eq!(
            fs::metadata(scene.data("gamma").join("shadow"))
                .unwrap()
                .mode()
                & 0o7777,
            0o640
        );
        for server in SERVERS {
            assert!(!scene.data(server).join("shadow.lock").exists());
            let aside = scene.at(server).join("state/sync");
            let kept = done(Command::new("find").arg(aside).args(["-path", "*aside/*"]));
            assert_eq!(String::from_utf8_lossy(&kept.stdout), "", "nobody lost");
        }
    }
}

#[test]
fn an_account_that_was_removed_here_and_changed_there_is_in_all_files_and_odd_lines_are_in_nobodys_way()
 {
    if !may_run() {
        return;
    }
    let scene = Scene::of(ACCOUNTS);
    for server in SERVERS {
        scene.accounts(server, &[("ann", "a0"), ("ben", "b0")]);
    }
    scene.fine("alpha", &[]);
    scene.fine("alpha", &[]);
    for (file, line) in [
        ("passwd", "ann:x:1000:1000::/:/bin/sh\n"),
        ("shadow", "ann:a0:1:0:99999:7:::\n"),
        ("group", "ann:x:1000:\n"),
    ] {
        scene.edit("alpha", file, line, "");
    }
    scene.edit("beta", "passwd", "1000::/:/bin/sh", "1000::/:/bin/zsh");
    let odd = "# by hand\n\n   \noops\nben:x:60:\nben:x:60:ann\r\nnobody4:x:-2:\n";
    scene.edit("beta", "group", "root:x:0:\n", &format!("root:x:0:\n{odd}"));
    let (said, code) = scene.run("alpha", &["--peer", "beta", "--dry-run"]);
    assert_eq!(code, Some(0), "{said}");
    let said = scene.fine("alpha", &["--peer", "beta"]);
    let told =
        "passwd: ann was removed on one server and changed on the other: it stays, in all files";
    assert_eq!(said.matches("it stays").count(), 1, "{said}");
    assert!(said.contains(told), "{said}");
    scene.fine("gamma", &[]);
    scene.fine("gamma", &[]);
    scene.assert_alike();
    for (file, line) in [
        ("passwd", "ann:x:1000:1000::/:/bin/zsh\n"),
        ("shadow", "ann:a0:1:0:99999:7:::\n"),
        ("group", "ann:x:1000:\n"),
        ("group", odd),
    ] {
        let text = scene.read("gamma", file).unwrap();
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn account_files_that_nobody_could_log_in_with_are_not_taken() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(ACCOUNTS);
    for server in SERVERS {
        scene.accounts(server, &[("ann", "a0"), ("ben", "b0")]);
    }
    scene.fine("alpha", &[]);
    scene.fine("alpha", &[]);
    let good = scene.read("alpha", "passwd").unwrap();
    for (bad, why) in [
        (
            good.replace("root:x:0:0", "root:x:7:0"),
            "nobody would have user id 0",
        ),
        (
            good.replace("ann:x", "ann x").replace("ben:x", "ben x"),
            "only 1 of 3 records would be left",
        ),
        (
            "root:x:0:0::/:/bin/sh\n".into(),
            "only 1 of 3 records would be left",
        ),
        (String::new(), "only 0 of 3 records would be left"),
    ] {
        scene.write("beta", "passwd", &bad);
        let (said, code) = scene.run("alpha", &["--peer", "beta"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(&format!("passwd: not taken: {why}")),
            "{why}: {said}"
        );
        assert_eq!(scene.read("alpha", "passwd").unwrap(), good);
    }
    scene.write("beta", "passwd", &good);
    scene.fine("alpha", &["--peer", "beta"]);
    fs::remove_file(scene.data("gamma").join("shadow")).unwrap();
    let (said, code) = scene.run("gamma", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("if it shall be there, make it"), "{said}");
    // Somebody is at work on them, there and here.
    let mut vipw = Command::new("sleep").arg("1000").spawn().unwrap();
    let lock = format!("{}\0", vipw.id());
    fs::write(scene.data("beta").join("shadow.lock"), &lock).unwrap();
    scene.edit("alpha", "shadow", "ann:a0", "ann:a1");
    let (said, code) = scene.run("alpha", &["--peer", "beta"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("1 not taken there: run syncd on beta"),
        "{said}"
    );
    let (said, code) = scene.run("beta", &["--peer", "alpha"]);
    vipw.kill().unwrap();
    vipw.wait().unwrap();
    assert_eq!(code, Some(1), "{said}");
    let told = format!("shadow.lock: process {} has it", vipw.id());
    assert!(
        said.contains("shadow: cannot lock") && said.contains(&told),
        "{said}"
    );
    assert!(scene.read("beta", "shadow").unwrap().contains("ann:a0"));
    scene.fine("alpha", &["--peer", "beta"]);
}

#[test]
fn former_versions_come_back_and_spread() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(KEPT);
    let at = |name: &str| scene.at("data").join(name).display().to_string();
    let restore = |server: &str, arguments: &[&str]| {
        let output = done(
            scene
                .syncd(server, &[&["restore"], arguments].concat())
                .stderr(Stdio::piped()),
        );
        let said = [output.stdout, output.stderr].concat();
        (String::from_utf8(said).unwrap(), output.status.code())
    };
    let large: String = (0..200_000).map(|i| format!("line {i}\n")).collect();
    scene.write("alpha", "dir/file", "first");
    scene.write("alpha", "dir/large", &large);
    scene.write("alpha", "dir/gone", "gone");
    fs::hard_link(
        scene.data("alpha").join("dir/gone"),
        scene.data("alpha").join("dir/linked"),
    )
    .unwrap();
    fs::set_permissions(
        scene.data("alpha").join("dir/file"),
        fs::Permissions::from_mode(0o2750),
    )
    .unwrap();
    scene.fine("alpha", &[]);
    scene.fine("alpha", &[]);
    // A local change on alpha, where no other server's version replaces it, and one that beta takes.
    scene.write("alpha", "dir/file", "second");
    scene.write("alpha", "dir/large", &("front\n".to_owned() + &large));
    scene.fine("alpha", &[]);
    let before_removal = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    fs::remove_dir_all(scene.data("alpha").join("dir")).unwrap();
    scene.write("alpha", "other", "so that it is not empty");
    thread::sleep(Duration::from_millis(1100));
    scene.fine("alpha", &[]);
    scene.assert_alike();
    for server in SERVERS {
        let (said, code) = restore(server, &[&at("dir/file"), "--list"]);
        assert_eq!(code, Some(0), "{said}");
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{said}");
        assert!(
            lines[0].contains("2750 0:0  file of 5 bytes, by alpha"),
            "{said}"
        );
        assert!(
            lines[1].contains("file of 6 bytes") && lines[2].contains("removed"),
            "{said}"
        );
    }
    // On another server than the one that removed it: only what is asked for, with all it had.
    let (said, _) = restore("gamma", &[&at("dir/file"), "--list"]);
    let first = said.split_whitespace().nth(2).unwrap();
    let copy = scene.at("copy").display().to_string();
    let (said, code) = restore("gamma", &[&at("dir/file"), "--id", first, "--to", &copy]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read_to_string(&copy).unwrap(), "first");
    assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o2750);
    let (said, code) = restore("gamma", &[&at("dir/file"), "--to", &copy]);
    assert_eq!(code, Some(1), "nothing is overwritten: {said}");
    let (said, code) = restore("gamma", &[&at("dir/file")]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(scene.read("gamma", "dir/file").unwrap(), "second");
    scene.fine("gamma", &[]);
    assert_eq!(scene.read("alpha", "dir/file").unwrap(), "second");
    assert_eq!(scene.read("beta", "dir/large"), None);
    // The whole directory as it was then.
    let then = format!("@{}", before_removal.as_secs() + 1);
    let (said, code) = restore("beta", &[&at("dir"), "--at", &then]);
    assert_eq!(code, Some(0), "{said}");
    scene.fine("beta", &[]);
    scene.fine("beta", &[]);
    scene.assert_alike();
    assert_eq!(
        scene.read("alpha", "dir/large").unwrap(),
        "front\n".to_owned() + &large
    );
    let inode = |name: &str| fs::metadata(scene.data("alpha").join(name)).unwrap().ino();
    assert_eq!(inode("dir/gone"), inode("dir/linked"));
    let said = scene.fine("gamma", &[]);
    assert_eq!(said.matches(" 0 taken; 0 given").count(), 2, "{said}");
    // What is wanted and not there is told.
    let (said, code) = restore("beta", &[&at("dir/file"), "--at", "2001-01-01"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the oldest version is of"), "{said}");
    let (said, code) = restore("beta", &[&at("dir/file"), "--at", "teatime"]);
    assert_eq!(code, Some(2), "{said}");
    let (said, code) = restore("beta", &["/etc/motd", "--list"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is in no set"), "{said}");
    // Chunks are there once: of two large versions that differ in a line.
    let kept = fs::metadata(scene.at("alpha").join("state/sync")).unwrap();
    assert!(kept.is_dir());
}

#[test]
fn a_further_name_is_put_back_with_its_file_and_alone_where_it_is_its_name_no_more() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(KEPT);
    let at = |name: &str| scene.data("alpha").join(name);
    scene.write("alpha", "a", "one");
    fs::hard_link(at("a"), at("b")).unwrap();
    let run = || scene.fine("alpha", &["--peer", "beta"]);
    run();
    scene.write("alpha", "a", "other");
    run();
    let b = scene.at("data/b");
    let b = b.to_str().unwrap();
    let restore = |more: &[&str]| {
        let (said, code) = scene.says("alpha", &[&["restore", b], more].concat());
        assert_eq!(code, Some(0), "{said}");
        said
    };
    let said = restore(&["--list"]);
    assert!(
        said.contains("of 3 bytes") && said.contains("of 5 bytes, by alpha, as a name of a"),
        "{said}"
    );
    let copy = scene.at("copy");
    restore(&["--to", copy.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(copy).unwrap(), "one");
    restore(&[]);
    assert_eq!(scene.read("alpha", "a").unwrap(), "one");
    assert_eq!(
        fs::metadata(at("b")).unwrap().ino(),
        fs::metadata(at("a")).unwrap().ino()
    );
    scene.write("alpha", "a", "third");
    run();
    // Once it is removed it comes back as a file of its own.
    fs::remove_file(at("b")).unwrap();
    run();
    restore(&[]);
    assert_eq!(scene.read("alpha", "b").unwrap(), "third");
    assert_eq!(fs::metadata(at("b")).unwrap().nlink(), 1);
}

#[test]
fn a_host_key_of_rsa_is_believed_and_another_one_is_not() {
    if !may_run() {
        return;
    }
    let mut scene = Scene::new();
    take_away(scene.sshds.remove(1));
    for key in ["host", "other"] {
        let _ = fs::remove_file(scene.at(key));
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
            .arg(scene.at(key));
        assert!(done(&mut make).status.success());
    }
    scene.start_sshd("beta", scene.port());
    scene.write("alpha", "file", "1");
    scene.configure(scene.port(), "other.pub", "user");
    let (said, code) = scene.run("alpha", &["--peer", "beta"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("it shows the key ssh-rsa AAAA") && said.contains("not the host_key"),
        "{said}"
    );
    scene.configure(scene.port(), "host.pub", "user");
    scene.fine("alpha", &["--peer", "beta"]);
    assert_eq!(scene.read("beta", "file").unwrap(), "1");
}

#[test]
fn a_server_that_was_renamed_here_alone_is_refused_with_the_cause_and_the_remedy() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "file", "1");
    let text = fs::read_to_string(scene.at("standin.toml")).unwrap();
    fs::write(
        scene.at("renamed.toml"),
        text.replace("\"alpha\"", "\"anna\""),
    )
    .unwrap();
    let own = scene.own("alpha").join(" ");
    let own = own
        .replace("standin.toml", "renamed.toml")
        .replace("--server alpha", "--server anna");
    let mut run = scene.on("alpha", env!("CARGO_BIN_EXE_syncd"));
    let run = done(run.args(["run", "--peer", "beta"]).args(own.split(' ')));
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no server anna but alpha, gamma; ") && said.contains("on beta as well"),
        "{said}"
    );
}

#[test]
fn what_lost_a_conflict_comes_back() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(DATA);
    scene.write("alpha", "file", "before");
    scene.fine("alpha", &[]);
    scene.fine("alpha", &[]);
    scene.write("alpha", "file", "of alpha");
    thread::sleep(Duration::from_millis(1100));
    scene.write("beta", "file", "of beta!");
    scene.fine("alpha", &["--peer", "beta"]);
    assert_eq!(scene.read("alpha", "file").unwrap(), "of beta!");
    let path = scene.at("data").join("file").display().to_string();
    let restored = done(&mut scene.syncd("alpha", &["restore", &path]));
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(scene.read("alpha", "file").unwrap(), "of alpha");
    scene.fine("alpha", &[]);
    assert_eq!(scene.read("gamma", "file").unwrap(), "of alpha");
    // What it took the place of is kept in turn.
    let list = done(&mut scene.syncd("alpha", &["restore", &path, "--list"]));
    assert_eq!(
        String::from_utf8_lossy(&list.stdout).lines().count(),
        2,
        "{list:?}"
    );
}

#[test]
fn conflicts_lists_what_lost_with_where_its_contents_are() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(DATA);
    let listed = |server: &str, arguments: &[&str]| {
        let output = done(&mut scene.syncd(server, &[&["conflicts"], arguments].concat()));
        let said = [output.stdout, output.stderr].concat();
        (String::from_utf8(said).unwrap(), output.status.code())
    };
    let none = ("nothing is kept aside\n".to_owned(), Some(0));
    assert_eq!(listed("alpha", &[]), none, "nothing ever ran");
    scene.write("alpha", "file", "before");
    std::os::unix::fs::symlink("before", scene.data("alpha").join("link")).unwrap();
    scene.fine("alpha", &[]);
    assert_eq!(listed("alpha", &[]), none);
    let link = |server: &str| {
        let link = scene.data(server).join("link");
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(server, link).unwrap();
    };
    link("alpha");
    scene.write("alpha", "file", "of alpha");
    thread::sleep(Duration::from_millis(1100));
    link("beta");
    scene.write("beta", "file", "of beta!");
    scene.fine("alpha", &["--peer", "beta"]);
    assert_eq!(scene.read("alpha", "file").unwrap(), "of beta!");
    assert_eq!(listed("beta", &[]), none, "what won is kept nowhere");
    let (said, code) = listed("alpha", &["--set", "data"]);
    assert_eq!((&said, code), (&listed("alpha", &[]).0, Some(0)));
    let path = |name: &str| scene.at("data").join(name).display().to_string();
    let file = format!("  {}: file of 8 bytes: ", path("file"));
    let after = said.split_once(&file).unwrap().1;
    let contents = after.lines().nth(1).unwrap().trim();
    let contents = contents.strip_prefix("its contents: ").unwrap();
    assert_eq!(fs::read_to_string(contents).unwrap(), "of alpha");
    assert!(
        said.contains(&format!("  {}: symbolic link: ", path("link"))),
        "{said}"
    );
    assert!(said.contains("    its target: alpha\n"), "{said}");
    assert_eq!(said.lines().count(), 4, "{said}");
    let (said, code) = listed("alpha", &["--set", "date"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no such [[sync]]"), "{said}");
    // What cannot be read is not told to be nothing.
    let folder = Path::new(contents).parent().unwrap();
    fs::remove_dir_all(folder).unwrap();
    fs::write(folder, "").unwrap();
    let (said, code) = listed("alpha", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&folder.display().to_string()), "{said}");
}

impl Scene {
    /// A run on this server that is killed after so many milliseconds, wherever it is then.
    fn killed(&self, server: &str, arguments: &[&str], wait: u64) {
        let mut run = self.syncd(server, &[&["run"], arguments].concat());
        let run = run.stdout(Stdio::null()).stderr(Stdio::null());
        let mut run = run.spawn().unwrap();
        thread::sleep(Duration::from_millis(wait));
        let _ = run.kill(); // unshare has become syncd
        run.wait().unwrap();
    }
}

#[test]
fn account_files_are_whole_and_free_whenever_a_run_is_killed() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(ACCOUNTS);
    let names: Vec<String> = (0..40).map(|i| format!("user{i}")).collect();
    let users: Vec<_> = names.iter().map(|name| (name.as_str(), "w0")).collect();
    for server in SERVERS {
        scene.accounts(server, &users);
    }
    scene.fine("alpha", &[]);
    scene.fine("alpha", &[]);
    let accounts = ["--set", "accounts", "--peer", "beta"];
    for round in 1..30u64 {
        for (server, half) in [("alpha", 0), ("beta", 1)] {
            let user = format!("user{}:", (round * 2 + half) % 40);
            let text = scene.read(server, "shadow").unwrap();
            let line = text.lines().find(|l| l.starts_with(&user)).unwrap();
            let new = format!("{user}w{round}:1:0:99999:7:::");
            scene.write(server, "shadow", &text.replace(line, &new));
            let group = scene.read(server, "group").unwrap();
            let all = ["alpha", "beta"].map(|server| format!("of{server}{round}"));
            let own = &all[half as usize];
            scene.write(
                server,
                "group",
                &group.replace("root:x:0:", &format!("root:x:0:{own},")),
            );
        }
        scene.killed("alpha", &accounts, round * 11 % 230);
        for server in ["alpha", "beta"] {
            let (passwd, shadow) = (scene.read(server, "passwd"), scene.read(server, "shadow"));
            for text in [passwd, shadow] {
                assert_eq!(text.unwrap().lines().count(), 41, "{server}, round {round}");
            }
        }
    }
    for server in ["alpha", "beta", "alpha"] {
        scene.fine(server, &[]);
    }
    scene.assert_alike();
    let (shadow, group) = (
        scene.read("gamma", "shadow").unwrap(),
        scene.read("gamma", "group").unwrap(),
    );
    for round in 10..30u64 {
        for half in [0, 1] {
            let user = format!("user{}:w{round}:", (round * 2 + half) % 40);
            assert!(shadow.contains(&user), "{user} {shadow}");
        }
    }
    let members: Vec<_> = group.split([':', ',', '\n']).collect();
    for round in 1..30 {
        for member in [format!("ofalpha{round}"), format!("ofbeta{round}")] {
            assert!(members.contains(&member.as_str()), "{member} {group}");
        }
    }
}

#[test]
fn former_versions_outlive_a_run_killed_at_any_moment() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(KEPT);
    let contents = |name: &str, round: u64| format!("{name} {round}\n").repeat(40_000);
    for i in 0..3 {
        scene.write("beta", &format!("f{i}"), &contents(&format!("f{i}"), 0));
    }
    scene.fine("alpha", &["--peer", "beta"]);
    for round in 1..12u64 {
        for i in 0..3 {
            let name = format!("f{i}");
            scene.write("beta", &name, &contents(&name, round));
        }
        scene.killed("alpha", &["--peer", "beta"], round * 37 % 300);
    }
    scene.fine("alpha", &["--peer", "beta"]);
    let out = scene.at("out");
    let mut versions = 0;
    for i in 0..3 {
        let path = scene.at("data").join(format!("f{i}")).display().to_string();
        let list = done(&mut scene.syncd("alpha", &["restore", &path, "--list"]));
        for line in String::from_utf8(list.stdout).unwrap().lines() {
            let id = line.split_whitespace().nth(2).unwrap();
            let to = ["restore", &path, "--id", id, "--to", out.to_str().unwrap()];
            let output = done(&mut scene.syncd("alpha", &to));
            assert!(output.status.success(), "{line}: {output:?}");
            let text = fs::read_to_string(&out).unwrap();
            let first = text.lines().next().unwrap().to_owned() + "\n";
            assert!(
                first.starts_with(&format!("f{i} ")) && text == first.repeat(40_000),
                "{first}"
            );
            fs::remove_file(&out).unwrap();
            versions += 1;
        }
    }
    assert!(versions >= 6, "{versions}");
}

#[test]
fn why_names_the_rule_and_its_line() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(KEPT);
    scene.write("alpha", "a.tmp", "");
    scene.write("alpha", "cache/x", "");
    scene.write("alpha", "kept", "");
    scene.fine("alpha", &["--peer", "beta"]);
    let why = |path: &Path| {
        let output = done(&mut scene.syncd("alpha", &["why", path.to_str().unwrap()]));
        (
            String::from_utf8(output.stdout).unwrap(),
            output.status.code(),
        )
    };
    let text = fs::read_to_string(scene.at("standin.toml")).unwrap();
    let line = |start: &str| {
        let place = text.lines().position(|l| l.starts_with(start)).unwrap();
        format!("standin.toml:{}", place + 1)
    };
    let data = scene.at("data");
    let (said, code) = why(&data.join("kept"));
    assert_eq!(code, Some(0), "{said}");
    for what in [
        "set data",
        &line("[[sync]]"),
        &line("path"),
        "kept alike with beta, gamma",
        "keep = 3",
        "1 versions kept",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    for (path, pattern) in [("a.tmp", "*.tmp"), ("cache/x", "/cache/")] {
        let (said, code) = why(&data.join(path));
        assert_eq!(code, Some(1), "{said}");
        let told = format!("not kept alike: exclude \"{pattern}\", ");
        assert!(
            said.contains(&told) && said.contains(&line("exclude")),
            "{said}"
        );
    }
    let (said, code) = why(&data.join(".standin-stage/x"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("standin's own"), "{said}");
    let (said, code) = why(Path::new("/etc/motd"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/etc/motd is in no set"), "{said}");
}

#[test]
fn standins_own_directories_in_a_set_are_left_out_by_whatever_name_and_it_is_said() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    // The set's directory is another mount of what this link leads to.
    fs::create_dir(scene.data("alpha").join("standin")).unwrap();
    symlink(scene.data("alpha").join("standin"), scene.at("alpha/state")).unwrap();
    scene.write("alpha", "x", "1");
    for server in SERVERS.iter().cycle().take(4) {
        scene.fine(server, &[]);
    }
    assert!(scene.data("alpha").join("standin/sync").exists());
    for other in &SERVERS[1..] {
        assert_eq!(scene.read(other, "x").unwrap(), "1");
        assert!(!scene.data(other).join("standin").exists());
    }
    let own = scene.at("data/standin/sync");
    let (said, code) = scene.says("alpha", &["why", own.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("which is standin's own"), "{said}");
    let (said, code) = scene.says("alpha", &["check"]);
    assert_eq!(code, Some(0), "{said}");
    let note = format!("note   set data: {} in ", scene.at("alpha/state").display());
    assert!(said.contains(&note), "{said}");
    // And no set in them.
    fs::remove_file(scene.at("alpha/state")).unwrap();
    symlink(scene.data("alpha"), scene.at("alpha/state")).unwrap();
    for command in ["run", "check"] {
        let (said, code) = scene.says("alpha", &[command]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("--state-dir"), "{said}");
    }
}

#[test]
fn a_set_in_the_directory_of_another_is_refused_by_whatever_name_unless_it_is_left_out_there() {
    if !may_run() {
        return;
    }
    let mut scene = Scene::of(
        "[[sync]]\nname = \"all\"\npath = [\"DATA\"]\nexclude = [\"*.tmp\", \"/passwd\"]\n\
         [[sync]]\nname = \"www\"\npath = [\"DATAlink/www\"]\n\
         [[sync]]\nname = \"users\"\nmerge = \"accounts\"\npath = [\"DATA/passwd\"]\n",
    );
    symlink("data", scene.at("datalink")).unwrap();
    for server in SERVERS {
        scene.write(server, "www/index", "1");
        scene.accounts(server, &[]);
    }
    for command in [["run", "--peer", "beta"].as_slice(), &["check"]] {
        let (said, code) = scene.says("alpha", command);
        assert_eq!(code, Some(1), "{said}");
        let www = scene.at("data/www").display().to_string();
        let told = format!("www, which is {www}, is in ");
        assert!(
            said.contains(&told) && said.contains("exclude = [\"/www\"]"),
            "{said}"
        );
    }
    let (said, code) = scene.says("alpha", &["why", scene.at("data/x").to_str().unwrap()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not kept alike: set www: "), "{said}");
    scene.set = "[[sync]]\nname = \"all\"\npath = [\"DATA\"]\nexclude = [\"*.tmp\", \"/www/\", \"/passwd\"]\n\
                 [[sync]]\nname = \"www\"\npath = [\"DATAlink/www\"]\n\
                 [[sync]]\nname = \"users\"\nmerge = \"accounts\"\npath = [\"DATA/passwd\"]\n";
    scene.configure(scene.port(), "host.pub", "user");
    scene.write("alpha", "www/index", "2");
    scene.write("alpha", "x", "1");
    scene.accounts("alpha", &[("ann", "*")]);
    scene.fine("alpha", &[]);
    scene.fine("beta", &[]);
    assert_eq!(scene.read("beta", "www/index").unwrap(), "2");
    assert_eq!(scene.read("beta", "x").unwrap(), "1");
    assert!(scene.read("beta", "passwd").unwrap().contains("ann:"));
    let (said, code) = scene.says("alpha", &["check"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_path_that_is_a_link_to_a_directory_is_refused_with_the_directory_and_another_link_is_kept_alike()
 {
    if !may_run() {
        return;
    }
    let scene = Scene::of(
        "[[sync]]\nname = \"www\"\npath = [\"DATA/www\"]\n[[sync]]\nname = \"rest\"\npath = [\"DATA/motd\", \"DATAlink/etc\"]\n",
    );
    symlink("data", scene.at("datalink")).unwrap();
    for server in SERVERS {
        scene.write(server, "real/f", server);
        fs::create_dir(scene.data(server).join("etc")).unwrap();
        symlink("real", scene.data(server).join("www")).unwrap();
        symlink("nowhere", scene.data(server).join("motd")).unwrap();
    }
    scene.write("alpha", "etc/f", "2");
    let real = scene.at("data/real").display().to_string();
    let told = format!("give the directory itself: path = [\"{real}\"]");
    let www = scene.at("data/www");
    let paths = [www.join("f"), www.clone()];
    let [below, root] = paths.each_ref().map(|p| p.to_str().unwrap());
    for command in [
        ["run"].as_slice(),
        &["check"],
        &["why", below],
        &["why", root],
    ] {
        let (said, code) = scene.says("alpha", command);
        assert_eq!(code, Some(1), "{command:?}: {said}");
        assert!(said.contains(&told), "{command:?}: {said}");
    }
    assert_eq!(scene.read("beta", "etc/f").unwrap(), "2");
    assert_eq!(scene.read("beta", "real/f").unwrap(), "beta");
    let (said, _) = scene.says("alpha", &["check"]);
    let note = format!("{} is a symbolic link", scene.at("data/motd").display());
    assert!(said.contains(&note), "{said}");
    scene.fine("alpha", &["--set", "rest"]);
}

#[test]
fn an_emptied_directory_is_believed_with_the_option_that_the_text_names() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "last", "1");
    scene.fine("alpha", &["--peer", "beta"]);
    fs::remove_file(scene.data("alpha").join("last")).unwrap();
    for server in ["alpha", "beta"] {
        let other = match server {
            "alpha" => "beta",
            _ => "alpha",
        };
        let (said, code) = scene.run(server, &["--peer", other]);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("on alpha with --allow-deletes once") && !said.contains("--trust-root"),
            "{said}"
        );
    }
    scene.fine("alpha", &["--peer", "beta", "--allow-deletes"]);
    assert_eq!(scene.read("beta", "last"), None);
    fs::remove_file(scene.data("alpha").join(".standin-set")).unwrap();
    let (said, code) = scene.run("alpha", &["--peer", "beta"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("on alpha with --trust-root once") && !said.contains("--allow-deletes"),
        "{said}"
    );
    scene.fine("alpha", &["--peer", "beta", "--trust-root"]);
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    scene.write("alpha", "new", "1");
    let said = scene.fine("beta", &["--peer", "alpha", "--dry-run"]);
    assert!(said.contains("would be made: new"), "{said}");
    assert_eq!(scene.read("beta", "new"), None);
}

#[test]
fn a_directory_that_was_removed_stays_for_what_is_left_out_and_what_perishes_goes_with_it() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(
        "[[sync]]\nname = \"data\"\npath = [\"DATA\"]\nexclude = [\"*.own\"]\nperishable = [\"*.o\"]\n",
    );
    for file in ["kept/f", "gone/f", "stays"] {
        scene.write("alpha", file, file);
    }
    scene.fine("alpha", &[]);
    for file in ["kept/x.own", "kept/x.o", "gone/x.o", "x.o"] {
        scene.write("beta", file, file);
    }
    for directory in ["kept", "gone"] {
        fs::remove_dir_all(scene.data("alpha").join(directory)).unwrap();
    }
    let stays = "kept: removed elsewhere and stays here: kept/x.own is left out";
    let said = scene.fine("beta", &["--dry-run"]);
    assert!(said.contains("would be removed: gone"), "{said}");
    assert!(
        said.contains(&stays.replace("and stays", "and would stay")),
        "{said}"
    );
    let said = scene.fine("beta", &[]);
    assert!(said.contains(stays), "{said}");
    for server in SERVERS {
        let said = scene.fine(server, &[]);
        assert!(
            said.contains(" 0 taken") && !said.contains(" 1 given"),
            "{said}"
        );
        let told = said.contains("removed elsewhere and stays here: kept: kept/x.own is left out");
        assert_eq!(told, server == "beta", "{said}");
    }
    let is_there = |name: &str| scene.data("beta").join(name).exists();
    assert!(is_there("kept/x.own") && is_there("kept/x.o") && is_there("x.o"));
    assert!(!is_there("gone") && !scene.data("alpha").join("kept").exists());
    let said = scene
        .syncd("beta", &["why"])
        .arg(scene.at("data").join("x.o"))
        .output();
    let said = String::from_utf8(said.unwrap().stdout).unwrap();
    assert!(said.contains("perishable \"*.o\""), "{said}");
    fs::remove_file(scene.data("beta").join("kept/x.own")).unwrap();
    scene.fine("beta", &["--dry-run"]);
    assert!(is_there("kept/x.o"));
    scene.fine("beta", &[]);
    assert!(!is_there("kept"));
}

#[test]
fn a_dry_run_with_several_servers_tells_what_comes_of_all_of_them_together() {
    if !may_run() {
        return;
    }
    let scene = Scene::new();
    for file in ["both", "gone", "moved", "d/e/f", "d/g"] {
        scene.write("alpha", file, file);
    }
    for server in SERVERS {
        scene.fine(server, &[]);
    }
    let [beta, gamma] = ["beta", "gamma"].map(|server| scene.data(server));
    scene.write("beta", "both", "of beta");
    scene.write("gamma", "both", "of gamma");
    scene.write("gamma", "new/x", "x");
    fs::remove_file(beta.join("gone")).unwrap();
    fs::rename(beta.join("moved"), beta.join("d/moved")).unwrap();
    fs::remove_dir_all(beta.join("d/e")).unwrap();
    fs::remove_file(gamma.join("d/g")).unwrap();
    scene.foretold("alpha", &[], Some(0));
    scene.fine("alpha", &[]);
    scene.assert_alike();
}

#[test]
fn wrong_usage_is_told_with_the_mend() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("standin.toml");
    let sample = "[cluster]\nname = \"web\"\nquorum = \"none\"\n[[server]]\nname = \"alpha\"\naddress = \"127.0.0.1\"\n";
    let run = |text: &str, arguments: &[&str]| {
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
        command
            .arg("run")
            .args(arguments)
            .args(["--server", "alpha", "--config"])
            .arg(&config);
        let output = done(&mut command);
        (
            String::from_utf8(output.stderr).unwrap(),
            output.status.code(),
        )
    };
    let (said, code) = run(sample, &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("has no [[sync]]"), "{said}");
    let path = |p: &Path| {
        format!(
            "{sample}host_key = \"ssh-ed25519 AAAAx\"\n[[sync]]\nname = \"data\"\npath = \"{}\"\n",
            p.display()
        )
    };
    let (said, code) = run(&path(dir.path()), &["--set", "date"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--set date: no such [[sync]]"), "{said}");
    let witness = "[[server]]\nname = \"tie\"\naddress = \"127.0.0.9\"\nwitness = true\n";
    let with_witness = format!("{}{witness}", path(dir.path()));
    for (peer, why) in [
        ("gamma", "no such [[server]]"),
        ("alpha", "this server itself"),
        ("tie", "a witness has no files"),
    ] {
        let (said, code) = run(&with_witness, &["--peer", peer]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(&format!("--peer {peer}: {why}")), "{said}");
    }
    let (said, code) = run(&path(&dir.path().join("missing")), &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("mkdir or touch"), "{said}");
    let version = done(Command::new(env!("CARGO_BIN_EXE_syncd")).arg("--version"));
    let mut said = String::new();
    version.stdout.as_slice().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("syncd "), "{said}");
}

/// A daemon of a server, ended with its last owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Scene {
    fn start_daemon(&self, server: &str) -> Daemon {
        fs::create_dir_all(self.at(server).join("run")).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.at(server).join("daemon.log"))
            .unwrap();
        let mut command = self.syncd(server, &[]);
        Daemon(command.stdin(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn ask(&self, server: &str, request: &CtlRequest) -> Option<CtlReply> {
        let patience = Duration::from_secs(5);
        daemon::ctl::call(&self.at(server).join("run"), Role::Syncd, request, patience).ok()
    }

    /// How a set of a server fares with another.
    fn sets(&self, server: &str) -> Option<Vec<SetStatus>> {
        let Some(CtlReply::Status(status)) = self.ask(server, &CtlRequest::Status) else {
            return None;
        };
        let Detail::Syncd(syncd) = status.detail else {
            panic!("no answer of syncd's: {:?}", status.detail);
        };
        Some(syncd.sets)
    }

    fn fares(&self, server: &str, with: &str) -> Option<SetPeer> {
        let peers = self.sets(server)?.into_iter().flat_map(|s| s.peers);
        peers.into_iter().find(|p| p.server.as_str() == with)
    }

    fn wait<T>(&self, what: &str, found: impl Fn() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = found() {
                return found;
            }
            let log = fs::read_to_string(self.at("alpha").join("daemon.log"));
            assert!(start.elapsed() < Duration::from_secs(60), "{what}: {log:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn whoever_asks_for_a_run_hears_of_its_end_and_how_it_went_however_long_it_takes() {
    if !may_run() {
        return;
    }
    let mut scene = Scene::new();
    scene.limit("standin.toml", "500KB/s");
    scene.noise("alpha", "large", 6_000_000);
    take_away(scene.sshds.pop().unwrap());
    let running = scene.start_daemon("alpha");
    scene.wait("the daemon", || scene.sets("alpha"));
    let run = |peers: &[&str]| {
        let now = CtlRequest::SyncNow {
            sets: Vec::new(),
            peers: peers.iter().map(|p| p.parse().unwrap()).collect(),
        };
        let run_dir = scene.at("alpha/run");
        let patience = Duration::from_secs(5);
        daemon::ctl::call_until_done(&run_dir, Role::Syncd, &now, patience)
    };
    let Ok(CtlReply::Status(status)) = run(&[]) else {
        panic!("no status");
    };
    let Detail::Syncd(syncd) = status.detail else {
        panic!("no answer of syncd's");
    };
    let fares = |with: &str| {
        let mut peers = syncd.sets[0].peers.iter();
        peers.find(|p| p.server.as_str() == with).unwrap()
    };
    let beta = fares("beta").last.as_ref().unwrap();
    assert!(beta.complete && fares("beta").debt.is_none(), "{syncd:?}");
    assert_eq!(fares("gamma").debt.as_ref().unwrap().tries, 1, "{syncd:?}");
    assert!(scene.data("beta").join("large").exists());
    assert!(matches!(run(&["delta"]), Ok(CtlReply::No(_))));
    // It ends in the middle.
    scene.noise("alpha", "more", 6_000_000);
    let asked = thread::scope(|scope| {
        let asked = scope.spawn(|| run(&["beta"]));
        scene.wait("it runs", || scene.sets("alpha")?[0].running.clone());
        drop(running);
        asked.join().unwrap()
    });
    assert!(
        matches!(asked, Err(daemon::ctl::CallError::BrokeOff(..))),
        "{asked:?}"
    );
}

/// An SSH server goes, with all its sessions.
fn take_away(mut sshd: Child) {
    descendants(sshd.id()).into_iter().for_each(kill);
    sshd.wait().unwrap();
}

fn kill(id: u32) {
    let id = nix::unistd::Pid::from_raw(id.cast_signed());
    let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL);
}

/// A process with all that it has started.
fn descendants(id: u32) -> Vec<u32> {
    let mut all = vec![id];
    let mut next = 0;
    while let Some(id) = all.get(next) {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        all.extend(
            children
                .split_whitespace()
                .map(|c| c.parse::<u32>().unwrap()),
        );
        next += 1;
    }
    all
}

#[test]
fn a_number_that_two_users_have_is_told_as_long_as_they_have_it() {
    if !may_run() {
        return;
    }
    let scene = Scene::of(ACCOUNTS);
    scene.accounts("alpha", &[("ann", "a0"), ("ben", "b0")]);
    scene.edit("alpha", "passwd", "ben:x:2000:", "ben:x:1000:");
    let _running = scene.start_daemon("alpha");
    let told = |notes: &[&str]| {
        scene.wait("the notes", || {
            let sets = scene.sets("alpha")?.into_iter();
            let all: Vec<String> = sets.flat_map(|set| set.notes.0).collect();
            (all == notes).then_some(())
        });
    };
    told(&["duplicate uid 1000: ann and ben in passwd"]);
    scene.edit("alpha", "passwd", "ben:x:1000:", "ben:x:2000:");
    told(&[]);
}

#[test]
fn a_daemon_passes_changes_on_and_makes_up_for_who_was_away() {
    if !may_run() {
        return;
    }
    let mut scene = Scene::new();
    let config = scene.at("standin.toml");
    let text = fs::read_to_string(&config).unwrap()
        + "on = [\"change\"]\n[time]\ndiscipline = \"observe\"\n";
    fs::write(&config, text).unwrap();
    scene.write("alpha", "before", "before");
    let running = scene.start_daemon("alpha");
    let has = |scene: &Scene, server: &str, name: &str, contents: &str| {
        scene.wait(&format!("{server} has {name}"), || {
            (scene.read(server, name).as_deref() == Some(contents)).then_some(())
        });
    };
    has(&scene, "gamma", "before", "before");
    scene.write("alpha", "new/deep/file", "1");
    has(&scene, "beta", "new/deep/file", "1");
    has(&scene, "gamma", "new/deep/file", "1");
    let log = fs::read_to_string(scene.at("beta").join("sshd.log")).unwrap();
    assert_eq!(log.matches("Accepted").count(), 1, "one session: {log}");
    // One is away, and the daemon itself is killed meanwhile.
    take_away(scene.sshds.pop().unwrap());
    scene.write("alpha", "new/deep/file", "two");
    has(&scene, "beta", "new/deep/file", "two");
    let owed = scene.wait("gamma is owed", || {
        scene.fares("alpha", "gamma")?.debt.filter(|d| d.tries > 0)
    });
    assert_eq!(owed.why, "change");
    drop(running);
    let _running = scene.start_daemon("alpha");
    let again = scene.wait("gamma is still owed", || {
        scene.fares("alpha", "gamma")?.debt
    });
    assert_eq!(again.since, owed.since, "since the same moment");
    scene.start_sshd("gamma", scene.port());
    let now = CtlRequest::SyncNow {
        sets: Vec::new(),
        peers: vec!["gamma".parse().unwrap()],
    };
    assert!(matches!(scene.ask("alpha", &now), Some(CtlReply::Done(_))));
    has(&scene, "gamma", "new/deep/file", "two");
    scene.wait("nothing is owed", || {
        scene.fares("alpha", "gamma")?.debt.is_none().then_some(())
    });
    scene.assert_alike();
    // What came from elsewhere is passed on by nobody here: it would go round for ever. (The first time after its
    // start the daemon does not know yet that nothing of its own is new.)
    let last = |with: &str| scene.fares("alpha", with).unwrap().last.unwrap();
    let rests = || {
        let before = (last("beta"), last("gamma"));
        thread::sleep(Duration::from_secs(4));
        (last("beta"), last("gamma")) == before
    };
    scene.write("beta", "of beta", "3");
    scene.fine("beta", &[]);
    scene.wait("it comes to rest", || rests().then_some(()));
    scene.write("beta", "of beta", "more");
    scene.fine("beta", &[]);
    has(&scene, "gamma", "of beta", "more");
    assert!(rests());
    let unknown = CtlRequest::SyncNow {
        sets: vec!["date".parse().unwrap()],
        peers: Vec::new(),
    };
    assert!(matches!(
        scene.ask("alpha", &unknown),
        Some(CtlReply::No(_))
    ));
}
