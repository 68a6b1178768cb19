//! Two sides, each with a directory of its own at the same path, and an SSH server between them.

use crate::tools::Tool;
use nix::sys::{
    resource::{UsageWho, getrusage},
    statvfs::statvfs,
    time::TimeVal,
};
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

const PORT: u16 = 2222;
const CSYNC2_PORT: u16 = 30865;
/// Who may be there besides alpha, each with an address of its own.
const OTHERS: [(&str, &str); 3] = [
    ("beta", "127.0.0.1"),
    ("gamma", "127.0.0.3"),
    ("delta", "127.0.0.4"),
];
/// A disk that does no more than this in a moment is at rest.
const FEW_TRANSFERS: u64 = 20;

/// What syncd takes for too young to be trusted, and a little more.
const YOUNG: Duration = Duration::from_millis(2500);

/// What one run took.
pub struct Outcome {
    pub seconds: f64,
    pub kilobytes: f64,
    pub megabytes: f64,
    /// Seconds of processors, of all processes on both sides that end with it: what others do on the machine matters
    /// less to it.
    pub processor: f64,
}

/// See the module.
pub struct Scene {
    dir: PathBuf,
    others: &'static [(&'static str, &'static str)],
    /// Of SSH, and of csync2 if it is its turn.
    servers: Vec<Child>,
    /// syncd's daemon of alpha, if one is running.
    daemon: Option<Child>,
    accounts: &'static [&'static str],
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.servers.extend(self.daemon.take());
        self.stop_servers();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What a command says, or why not.
pub fn fine(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{command:?}: {e}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(said(&output.stdout))
    } else {
        let why = said(&output.stderr);
        Err(format!("{command:?}: {}: {why}", output.status))
    }
}

/// The same of a call.
pub fn told(what: &str) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{what}: {e}")
}

impl Scene {
    /// Alpha, and so many others, in this folder, which is made; these files of theirs are account files.
    pub fn new(
        dir: &Path,
        others: usize,
        accounts: &'static [&'static str],
    ) -> Result<Self, String> {
        let parent = dir.parent().unwrap_or(dir);
        let free = statvfs(parent).map_err(|e| e.to_string())?;
        if (free.blocks_available() as u64).saturating_mul(free.fragment_size() as u64) < 8 << 30 {
            return Err(format!("{}: 8 GB are needed there", parent.display()));
        }
        let mut scene = Self {
            dir: dir.to_owned(),
            others: &OTHERS[..others],
            servers: Vec::new(),
            daemon: None,
            accounts,
        };
        let sides = scene.others.iter().map(|(name, _)| *name);
        for side in sides.chain(["alpha", "."]) {
            fs::create_dir_all(scene.at(side)).map_err(told(side))?;
            scene.make_data(side)?;
        }
        for key in ["host", "syncd", "others"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            fine(keygen.arg(scene.at(key)))?;
        }
        scene.configure()?;
        for (side, address) in scene.others {
            scene.start(side, address)?;
        }
        Ok(scene)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What a side keeps alike.
    pub fn data(&self, side: &str) -> PathBuf {
        self.at(side).join("data")
    }

    fn stop_servers(&mut self) {
        for mut child in self.servers.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// An empty directory, far from what was removed: for minutes ext4 passes each inode that was removed by, one by one,
    /// before it takes one.
    fn make_data(&self, side: &str) -> Result<(), String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let name = format!(
            "{}-{}",
            std::process::id(),
            now.unwrap_or_default().as_nanos()
        );
        let fresh = self.at(side).join(name);
        // Of directories in such a one each goes to a group of its own, by its name; other file systems know no such thing.
        let _ = fine(Command::new("chattr").arg("+T").arg(self.at(side)));
        fs::create_dir(&fresh)
            .and_then(|()| fs::rename(&fresh, self.data(side)))
            .map_err(told(side))
    }

    fn read(&self, name: &str) -> Result<String, String> {
        fs::read_to_string(self.at(name)).map_err(told(name))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), String> {
        fs::write(self.at(name), text).map_err(told(name))
    }

    fn configure(&self) -> Result<(), String> {
        let key = self.read("host.pub")?;
        let key: Vec<_> = key.split_whitespace().take(2).collect();
        let key = key.join(" ");
        let own = self.at("syncd").display().to_string();
        let data = self.at("data");
        let mut text = format!(
            "[cluster]\nname = \"bench\"\nquorum = \"none\"\n[ssh]\nport = {PORT}\nkey = \"{own}\"\n"
        );
        for (name, address) in self.others.iter().chain(&[("alpha", "127.0.0.2")]) {
            text += &format!(
                "[[server]]\nname = \"{name}\"\naddress = [\"{address}\"]\nhost_key = \"{key}\"\n"
            );
        }
        let files: Vec<_> = self.accounts.iter().map(|name| data.join(name)).collect();
        text += &match files.is_empty() {
            true => format!("[[sync]]\nname = \"data\"\npath = {data:?}\n"),
            false => format!("[[sync]]\nname = \"data\"\npath = {files:?}\nmerge = \"accounts\"\n"),
        };
        self.write("standin.toml", &text)?;
        // csync2 knows servers by name, and takes only calls from where a name leads.
        let mut hosts = "127.0.0.1 localhost alpha\n".to_owned();
        for (name, address) in self.others {
            hosts += &format!("{address} {name}\n");
        }
        self.write("hosts", &hosts)
    }

    /// A command on a side: where the directory is that side's.
    pub fn on(&self, side: &str, program: &Path) -> Command {
        // A shell that reads no start-up files of root's, which could do anything and take any time.
        let view = "mount --bind \"$1\" \"$2\" && mount --bind \"$3\" /etc/hosts && mount -t tmpfs run /run && \
                    mkdir -m 755 /run/sshd && sed '/^root:/s|[^:]*$|/bin/sh|' /etc/passwd >/run/passwd && \
                    mount --bind /run/passwd /etc/passwd && shift 3 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-c", view, "sh"])
            .args([self.data(side), self.at("data"), self.at("hosts")])
            .arg(program);
        command
    }

    /// syncd's options on a side.
    pub fn options(&self, side: &str) -> Vec<String> {
        let at = |path: PathBuf| path.display().to_string();
        let mut options = vec!["--config".into(), at(self.at("standin.toml"))];
        options.extend(["--server".into(), side.into()]);
        options.extend(["--state-dir".into(), at(self.at(side).join("state"))]);
        options.extend(["--run-dir".into(), at(self.at(side).join("run"))]);
        options
    }

    fn start(&mut self, side: &str, address: &str) -> Result<(), String> {
        let syncd = crate::tools::syncd()?;
        let (own, others) = (self.read("syncd.pub")?, self.read("others.pub")?);
        let forced = format!(
            "restrict,command=\"{} serve {}\" {own}{others}",
            syncd.display(),
            self.options(side).join(" ")
        );
        let authorized = format!("{side}/authorized");
        self.write(&authorized, &forced)?;
        let host = self.read("host.pub")?;
        self.write("known", &format!("[127.0.0.*]:{PORT} {host}"))?;
        let mut command = self.on(side, Path::new("/usr/sbin/sshd"));
        command.args(["-D", "-e", "-f", "/dev/null", "-p", &PORT.to_string()]);
        for option in [
            format!("ListenAddress={address}"),
            format!("HostKey={}", self.at("host").display()),
            format!("AuthorizedKeysFile={}", self.at(&authorized).display()),
            "StrictModes=no".into(),
            "PidFile=none".into(),
            "UsePAM=no".into(),
            "PermitRootLogin=yes".into(),
            "Subsystem=none /bin/false".into(),
        ] {
            command.args(["-o", &option]);
        }
        self.serve(command, (address, PORT), "sshd")
    }

    /// Starts a server and waits until it listens.
    fn serve(&mut self, mut command: Command, at: (&str, u16), name: &str) -> Result<(), String> {
        let log = format!("{name}.log");
        let said = fs::File::create(self.at(&log)).map_err(told(&log))?;
        let server = command.stdin(Stdio::null()).stderr(said).spawn();
        self.servers.push(server.map_err(told(name))?);
        let start = Instant::now();
        while TcpStream::connect(at).is_err() {
            if start.elapsed() > Duration::from_secs(30) {
                return Err(format!("{name}: {}", self.read(&log)?));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// csync2 on a side, with configuration and database of its own.
    pub fn csync2(&self, side: &str) -> Command {
        let mut command = self.on(side, Path::new("csync2"));
        command
            .args(["-N", side, "-D"])
            .arg(self.at("csync2").join(side));
        command.env("CSYNC2_SYSTEM_DIR", self.at("csync2"));
        command
    }

    /// Starts csync2's servers, which are no SSH servers and whose data nobody encrypts.
    pub fn start_csync2(&mut self) -> Result<(), String> {
        let dir = self.at("csync2");
        let sides = self.others.iter().map(|(side, _)| *side);
        for side in sides.chain(["alpha"]) {
            fs::create_dir_all(dir.join(side)).map_err(told("csync2"))?;
        }
        let others: Vec<_> = self.others.iter().map(|(side, _)| *side).collect();
        let config = format!(
            "nossl * *;\ngroup data {{\nhost alpha {};\nkey {};\ninclude {};\nexclude {};\nauto younger;\n}}\n",
            others.join(" "),
            dir.join("key").display(),
            self.at("data").display(),
            self.at("data").join(".standin-stage").display()
        );
        self.write("csync2/csync2.cfg", &config)?;
        self.write("csync2/key", &"keyOfABench".repeat(5))?;
        for (side, address) in self.others {
            let mut command = self.csync2(side);
            command.arg("-ii").stdout(Stdio::null());
            self.serve(command, (address, CSYNC2_PORT), "csync2")?;
        }
        Ok(())
    }

    /// Copies, and has each side take note of all that is there, as csync2's manual says for a start.
    pub fn begin_csync2(&self) -> Result<(), String> {
        let from = self.data("alpha").join(".");
        for (side, _) in self.others {
            fine(Command::new("cp").arg("-a").arg(&from).arg(self.data(side)))?;
        }
        let sides = self.others.iter().map(|(side, _)| *side);
        for side in sides.chain(["alpha"]) {
            fine(self.csync2(side).args(["-cIr", "/"]))?;
        }
        Ok(())
    }

    /// Where the others are: name and address.
    pub fn others(&self) -> &'static [(&'static str, &'static str)] {
        self.others
    }

    /// syncd wants single files to be there, for what is missing may be on a disk that is.
    pub fn make_room(&mut self) -> Result<(), String> {
        for (side, _) in self.others {
            for file in self.accounts {
                fs::File::create(self.data(side).join(file)).map_err(told(file))?;
            }
        }
        Ok(())
    }

    /// Starts alpha's daemon, which keeps its sessions.
    pub fn start_daemon(&mut self) -> Result<(), String> {
        self.make_room()?;
        fs::create_dir_all(self.at("alpha/run")).map_err(told("run"))?;
        let mut command = self.on("alpha", &crate::tools::syncd()?);
        command.args(self.options("alpha")).stdin(Stdio::null());
        let log = fs::File::create(self.at("daemon.log")).map_err(told("daemon.log"))?;
        let daemon = command.stdout(Stdio::null()).stderr(log).spawn();
        self.daemon = Some(daemon.map_err(told("syncd"))?);
        let start = Instant::now();
        while !self.at("alpha/run/syncd.sock").exists() {
            if start.elapsed() > Duration::from_secs(30) {
                return Err(format!("syncd: {}", self.read("daemon.log")?));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How the others call ssh.
    pub fn ssh_options(&self) -> String {
        format!(
            "-p {PORT} -i {} -o IdentitiesOnly=yes -o UserKnownHostsFile={} -F /dev/null",
            self.at("others").display(),
            self.at("known").display()
        )
    }

    /// Nothing of former runs is left, nor what beta has: the next one is the first.
    pub fn forget(&mut self) -> Result<(), String> {
        let script = "rm -rf */state unison* csync2/*/* alpha/data/.standin-* beta/data";
        let mut command = Command::new("sh");
        fine(command.args(["-c", script]).current_dir(&self.dir))?;
        self.make_data("beta")?;
        // They held on to the former one.
        self.stop_servers();
        for (side, address) in self.others {
            self.start(side, address)?;
        }
        Ok(())
    }

    /// Whatever is young grows old and is looked at once more.
    pub fn settle(&self, tool: &Tool) -> Result<(), String> {
        thread::sleep(YOUNG);
        tool.run(self)
    }

    /// What others wrote here is on the disk, and disks that are told what was removed know it.
    pub fn quiet(&self) -> Result<(), String> {
        const PAUSE: Duration = Duration::from_millis(300);
        const LONG: Duration = Duration::from_secs(60);
        fine(Command::new("sync").arg("-f").arg(&self.dir))?;
        let (start, mut before) = (Instant::now(), transfers()?);
        while start.elapsed() < LONG {
            thread::sleep(PAUSE);
            let now = transfers()?;
            if now < before + FEW_TRANSFERS {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// What it takes to run this.
    pub fn measure(&self, command: &mut Command) -> Result<Outcome, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(self.at("said")).map_err(told("said"))?;
        let (before, used) = (over_loopback()?, self.processor()?);
        let start = Instant::now();
        let mut child = command.stderr(log).spawn().map_err(told("spawn"))?;
        let id = self.daemon.as_ref().map_or(child.id(), Child::id);
        let most = Arc::new(Mutex::new(0.0));
        let watched = Arc::clone(&most);
        thread::spawn(move || watch(id, &watched));
        let status = child.wait().map_err(told("wait"))?;
        let seconds = start.elapsed().as_secs_f64();
        if !status.success() {
            return Err(format!("{command:?}: {status}: {}", self.read("said")?));
        }
        Ok(Outcome {
            seconds,
            kilobytes: (over_loopback()? - before) / 1e3,
            megabytes: *most.lock().unwrap_or_else(PoisonError::into_inner),
            processor: self.processor()? - used,
        })
    }

    /// What all children that have ended took, once the SSH server has none left.
    fn processor(&self) -> Result<f64, String> {
        let own = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| e.to_string())?;
        let seconds = |t: TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        let mut ticks = 0.0;
        for id in self.servers.iter().map(Child::id) {
            let children = format!("/proc/{id}/task/{id}/children");
            let start = Instant::now();
            while fs::read_to_string(&children).is_ok_and(|c| !c.is_empty())
                && start.elapsed() < Duration::from_secs(5)
                && self.daemon.is_none()
            {
                thread::sleep(Duration::from_millis(5));
            }
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).map_err(told("sshd"))?;
            let fields = stat.rsplit(')').next().unwrap_or_default();
            let fields = fields.split_whitespace().skip(13).take(2);
            ticks += fields.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>();
        }
        Ok(seconds(own.user_time()) + seconds(own.system_time()) + ticks / 100.0)
    }

    /// Both sides have the same; with times in nanoseconds, if they go `exactly`.
    pub fn alike(&self, exactly: bool) -> Result<(), String> {
        let time = if exactly { "%T@" } else { "" };
        let list = format!(
            "find . -mindepth 1 -name .standin-stage -prune -o ! -name '.standin-*set' ! -name .pwd.lock -printf '%P %y %m %U %G %s {time} %l\\n' \
             | sed '/ d /s/[0-9]* [0-9.]* $//' | LC_ALL=C sort; \
             find . -type f -size -1024k ! -name '.standin-*set' -print0 | LC_ALL=C sort -z | xargs -0r cat | sha256sum"
        );
        let list = |side: &str| {
            fine(
                Command::new("sh")
                    .args(["-c", &list])
                    .current_dir(self.data(side)),
            )
        };
        let own = list("alpha")?;
        for (side, _) in self.others {
            let theirs = list(side)?;
            let mut lines = own.lines().zip(theirs.lines());
            if let Some((own, theirs)) = lines.find(|(own, theirs)| own != theirs) {
                return Err(format!("afterwards alpha has {own}, and {side} {theirs}"));
            }
            if own.len() != theirs.len() {
                return Err(format!("one of alpha and {side} has more than the other"));
            }
        }
        Ok(())
    }
}

/// What all disks did: reads, writes, discards.
fn transfers() -> Result<u64, String> {
    let all = fs::read_to_string("/proc/diskstats").map_err(told("/proc/diskstats"))?;
    let figures = |line: &str| -> u64 {
        let fields: Vec<_> = line.split_whitespace().collect();
        let figure = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
        [3, 7, 14].into_iter().filter_map(figure).sum()
    };
    Ok(all.lines().map(figures).sum())
}

fn over_loopback() -> Result<f64, String> {
    let bytes = fs::read_to_string("/proc/thread-self/net/dev").map_err(told("/proc/net/dev"))?;
    let line = bytes.lines().find(|l| l.trim().starts_with("lo:"));
    let count = line.and_then(|l| l.split(':').nth(1)?.split_whitespace().next()?.parse().ok());
    count.ok_or("no loopback".into())
}

/// The most memory that a process has had, until it ends or nobody wants to know any more.
fn watch(process: u32, most: &Arc<Mutex<f64>>) {
    while let Ok(status) = fs::read_to_string(format!("/proc/{process}/status"))
        && Arc::strong_count(most) > 1
    {
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let Some(kilobytes) = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
        else {
            break;
        };
        *most.lock().unwrap_or_else(PoisonError::into_inner) = kilobytes / 1e3;
        thread::sleep(Duration::from_millis(10));
    }
}
