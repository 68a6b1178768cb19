//! Two sides, each with a directory of its own at the same path, and an SSH server between them.

use crate::tools::Tool;
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        resource::{UsageWho, getrusage},
        statvfs::statvfs,
        time::TimeVal,
    },
};
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 2222;
/// What syncd takes for too young to be trusted, and a little more.
const YOUNG: Duration = Duration::from_millis(2500);

/// What one run took.
pub struct Outcome {
    pub seconds: f64,
    pub kilobytes: f64,
    pub megabytes: f64,
    /// Seconds of processors, of all processes on both sides: what others do on the machine matters less to it.
    pub processor: f64,
}

/// See the module.
pub struct Scene {
    dir: PathBuf,
    sshd: Option<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(sshd) = &mut self.sshd {
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// From here on all traffic is within this process and its children.
pub fn own_network() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("needs root: {e}"))?;
    fine(Command::new("ip").args(["link", "set", "lo", "up"])).map(drop)
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

fn told(what: &str) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{what}: {e}")
}

impl Scene {
    pub fn new() -> Result<Self, String> {
        let parent = std::env::temp_dir();
        let free = statvfs(&parent).map_err(|e| e.to_string())?;
        if (free.blocks_available() as u64).saturating_mul(free.fragment_size() as u64) < 8 << 30 {
            return Err(format!("{}: 8 GB are needed there", parent.display()));
        }
        let dir = parent.join(format!("standin-bench-sync-{}", std::process::id()));
        let mut scene = Self { dir, sshd: None };
        for name in ["data", "alpha/data", "beta/data"] {
            fs::create_dir_all(scene.at(name)).map_err(told(name))?;
        }
        for key in ["host", "syncd", "others"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            fine(keygen.arg(scene.at(key)))?;
        }
        scene.configure()?;
        scene.start()?;
        Ok(scene)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What a side keeps alike.
    pub fn data(&self, side: &str) -> PathBuf {
        self.at(side).join("data")
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
        let data = self.at("data").display().to_string();
        let mut text = format!(
            "[cluster]\nname = \"bench\"\nquorum = \"none\"\n[ssh]\nport = {PORT}\nkey = \"{own}\"\n"
        );
        for (name, address) in [("alpha", "127.0.0.2"), ("beta", "127.0.0.1")] {
            text += &format!(
                "[[server]]\nname = \"{name}\"\naddress = [\"{address}\"]\nhost_key = \"{key}\"\n"
            );
        }
        text += &format!("[[sync]]\nname = \"data\"\npath = [\"{data}\"]\n");
        self.write("standin.toml", &text)
    }

    /// A command on a side: where the directory is that side's.
    pub fn on(&self, side: &str, program: &Path) -> Command {
        let view = "mount --bind \"$1\" \"$2\" && mount -t tmpfs run /run && mkdir -m 755 /run/sshd && shift 2 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-c", view, "sh"])
            .args([self.data(side), self.at("data")])
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

    fn start(&mut self) -> Result<(), String> {
        let syncd = crate::tools::syncd()?;
        let (own, others) = (self.read("syncd.pub")?, self.read("others.pub")?);
        let forced = format!(
            "restrict,command=\"{} serve {}\" {own}{others}",
            syncd.display(),
            self.options("beta").join(" ")
        );
        self.write("authorized", &forced)?;
        let host = self.read("host.pub")?;
        self.write("known", &format!("[127.0.0.1]:{PORT} {host}"))?;
        let mut command = self.on("beta", Path::new("/usr/sbin/sshd"));
        command.args(["-D", "-e", "-f", "/dev/null", "-p", &PORT.to_string()]);
        for option in [
            "ListenAddress=127.0.0.1".to_owned(),
            format!("HostKey={}", self.at("host").display()),
            format!("AuthorizedKeysFile={}", self.at("authorized").display()),
            "StrictModes=no".into(),
            "PidFile=none".into(),
            "UsePAM=no".into(),
            "PermitRootLogin=yes".into(),
            "Subsystem=none /bin/false".into(),
        ] {
            command.args(["-o", &option]);
        }
        let log = fs::File::create(self.at("sshd.log")).map_err(told("sshd.log"))?;
        let sshd = command.stdin(Stdio::null()).stderr(log).spawn();
        self.sshd = Some(sshd.map_err(told("sshd"))?);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            if start.elapsed() > Duration::from_secs(30) {
                return Err(format!("sshd: {}", self.read("sshd.log")?));
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
    pub fn forget(&self) -> Result<(), String> {
        let script = "rm -rf alpha/state beta/state unison alpha/data/.standin-* && find beta/data -mindepth 1 -delete";
        let mut command = Command::new("sh");
        fine(command.args(["-c", script]).current_dir(&self.dir)).map(drop)
    }

    /// Whatever is young grows old and is looked at once more.
    pub fn settle(&self, tool: &Tool) -> Result<(), String> {
        thread::sleep(YOUNG);
        tool.run(self)
    }

    /// What others wrote is on the disk, and the disk has nothing to do.
    pub fn quiet(&self) -> Result<(), String> {
        fine(&mut Command::new("sync")).map(drop)
    }

    /// What it takes to run this.
    pub fn measure(&self, command: &mut Command) -> Result<Outcome, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(self.at("said")).map_err(told("said"))?;
        let (before, used) = (over_loopback()?, self.processor()?);
        let start = Instant::now();
        let mut child = command.stderr(log).spawn().map_err(told("spawn"))?;
        let id = child.id();
        let watch = thread::spawn(move || most_memory(id));
        let status = child.wait().map_err(told("wait"))?;
        let seconds = start.elapsed().as_secs_f64();
        if !status.success() {
            return Err(format!("{command:?}: {status}: {}", self.read("said")?));
        }
        Ok(Outcome {
            seconds,
            kilobytes: (over_loopback()? - before) / 1e3,
            megabytes: watch.join().unwrap_or(0.0),
            processor: self.processor()? - used,
        })
    }

    /// What all children that have ended took, once the SSH server has none left.
    fn processor(&self) -> Result<f64, String> {
        let own = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| e.to_string())?;
        let seconds = |t: TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        let id = self.sshd.as_ref().map_or(0, Child::id);
        let children = format!("/proc/{id}/task/{id}/children");
        let start = Instant::now();
        while fs::read_to_string(&children).is_ok_and(|c| !c.is_empty())
            && start.elapsed() < Duration::from_secs(5)
        {
            thread::sleep(Duration::from_millis(5));
        }
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).map_err(told("sshd"))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(13).take(2);
        let ticks: f64 = ticks.filter_map(|t| t.parse::<f64>().ok()).sum();
        Ok(seconds(own.user_time()) + seconds(own.system_time()) + ticks / 100.0)
    }

    /// Both sides have the same, or what differs first.
    pub fn alike(&self) -> Result<(), String> {
        let list = "find . -mindepth 1 -name .standin-stage -prune -o ! -name .standin-set -printf '%P %y %m %U %G %s %T@ %l\\n' \
                    | sed '/ d /s/[0-9]* [0-9.]* $//' | LC_ALL=C sort | sha256sum";
        let list = |side: &str| {
            fine(
                Command::new("sh")
                    .args(["-c", list])
                    .current_dir(self.data(side)),
            )
        };
        match list("alpha")? == list("beta")? {
            true => Ok(()),
            false => Err("the trees differ afterwards".into()),
        }
    }
}

fn over_loopback() -> Result<f64, String> {
    let bytes = fs::read_to_string("/proc/thread-self/net/dev").map_err(told("/proc/net/dev"))?;
    let line = bytes.lines().find(|l| l.trim().starts_with("lo:"));
    let count = line.and_then(|l| l.split(':').nth(1)?.split_whitespace().next()?.parse().ok());
    count.ok_or("no loopback".into())
}

/// Of a process until it ends, looked at often enough.
fn most_memory(process: u32) -> f64 {
    let mut most = 0.0;
    while let Ok(status) = fs::read_to_string(format!("/proc/{process}/status")) {
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let Some(kilobytes) = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
        else {
            break;
        };
        most = kilobytes / 1e3;
        thread::sleep(Duration::from_millis(10));
    }
    most
}
