//! Who edits what when, and what fails, from a seed.

use standin_tests::Random;
use std::time::Duration;

pub const SERVERS: usize = 3;

/// What a user does.
#[derive(Clone, Debug)]
pub enum Edit {
    /// As `>` does: the file stays, what is in it goes.
    Overwrite {
        path: String,
        size: usize,
    },
    /// As editors do: a new file is renamed over it.
    Replace {
        path: String,
        size: usize,
    },
    Append {
        path: String,
        size: usize,
    },
    /// In the middle of what is there.
    Patch {
        path: String,
        size: usize,
    },
    Delete {
        path: String,
    },
    DeleteAll {
        path: String,
    },
    Move {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        path: String,
    },
    Mkdir {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        id: u32,
    },
    /// So many seconds after now, or before.
    Touch {
        path: String,
        seconds: i64,
    },
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// SIGKILL of the daemon, of whoever serves another server, or of both; if `busy`, as soon as a file is staged.
    Kill {
        daemon: bool,
        serve: bool,
        busy: bool,
    },
    /// SIGSTOP of both; if `busy`, between the check of what is there and the rename, or so.
    Stall {
        lasts: Duration,
        busy: bool,
    },
    /// SIGKILL of the SSH server and its sessions.
    Ssh {
        away: Duration,
    },
    Cable {
        out: Duration,
    },
    /// So little is left on the disk of the files.
    Full {
        left: usize,
        lasts: Duration,
    },
    Power {
        off: Duration,
        index_lost: bool,
    },
}

pub enum Act {
    Edit(Edit),
    Fault(Fault),
}

pub struct Step {
    pub at: Duration,
    pub server: usize,
    pub act: Act,
}

pub struct Plan {
    pub steps: Vec<Step>,
    pub length: Duration,
}

const FOLDERS: [&str; 6] = ["", "d/", "d/e/", "f/", "f/g/", "h/"];
const MOVED: [&str; 5] = ["d", "d/e", "f", "h", "i"];
const LARGE: usize = 6 << 20;

struct Maker(Random);

impl Maker {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.0.below(of.len())]
    }

    fn path(&mut self) -> String {
        format!("{}{}", self.one(&FOLDERS), self.one(&["a", "b", "c", "k"]))
    }

    fn large(&mut self) -> String {
        self.one(&["large", "f/large", "d/large"]).to_owned()
    }

    /// Most files are small.
    fn size(&mut self) -> usize {
        match self.0.below(8) {
            0 => self.0.below(300_000),
            _ => self.0.below(3000),
        }
    }

    fn edit(&mut self, path: String) -> Edit {
        let size = self.size();
        match self.0.below(40) {
            0..6 => Edit::Overwrite { path, size },
            6..13 => Edit::Replace { path, size },
            13..17 => Edit::Append { path, size },
            17..19 => Edit::Patch { path, size: 100 },
            19..23 => Edit::Delete { path },
            23..26 => Edit::Move {
                from: path,
                to: self.path(),
            },
            26 | 27 => Edit::Move {
                from: self.one(&MOVED).to_owned(),
                to: self.one(&MOVED).to_owned(),
            },
            28 | 29 => Edit::Link {
                from: path,
                to: self.path(),
            },
            30 => Edit::Symlink { path },
            31 => match self.0.below(3) {
                0 => Edit::DeleteAll {
                    path: self.one(&MOVED).to_owned(),
                },
                _ => Edit::Mkdir {
                    path: self.one(&MOVED).to_owned(),
                },
            },
            32 | 33 => Edit::Chmod {
                path,
                mode: [0o600, 0o644, 0o755, 0o4711][self.0.below(4)],
            },
            34 => Edit::Chown {
                path,
                id: self.0.below(4) as u32,
            },
            35 => Edit::Touch {
                path,
                seconds: [-40_000_000, -3, 0, 3, 40_000_000][self.0.below(5)],
            },
            36 => Edit::Replace {
                path: self.large(),
                size: (1 << 20) + self.0.below(LARGE),
            },
            37 => Edit::Move {
                from: self.large(),
                to: self.large(),
            },
            _ => Edit::Patch {
                path: self.large(),
                size: 1 + self.0.below(60_000),
            },
        }
    }

    fn fault(&mut self) -> Fault {
        let mut within = |low, high| {
            self.0
                .between(Duration::from_millis(low), Duration::from_millis(high))
        };
        let (short, long) = (within(100, 4000), within(1000, 12_000));
        match self.0.below(20) {
            roll @ 0..7 => Fault::Kill {
                daemon: roll != 0 && roll < 5,
                serve: roll == 0 || roll > 3,
                busy: self.0.below(3) > 0,
            },
            7 => Fault::Stall {
                lasts: short,
                busy: false,
            },
            8..12 => Fault::Stall {
                lasts: short / 4,
                busy: true,
            },
            12 | 13 => Fault::Ssh { away: short },
            14 | 15 => Fault::Cable { out: long },
            16 | 17 => Fault::Full {
                left: self.0.below(300) << 10,
                lasts: long,
            },
            _ => Fault::Power {
                off: short,
                index_lost: self.0.below(3) == 0,
            },
        }
    }
}

/// Busy stretches and rests; in three of four seeds no index is lost.
pub fn plan(seed: u64, length: Duration, faults: bool) -> Plan {
    let mut maker = Maker(Random::new(seed));
    let (mut steps, keep_indexes) = (Vec::new(), !seed.is_multiple_of(4));
    let mut now = Duration::ZERO;
    while now < length {
        // As fast as scripts do it, or as people do.
        let pause = [5, 30, 200, 800][maker.0.below(4)];
        for _ in 0..=maker.0.below(24) {
            let (server, path) = (maker.0.below(SERVERS), maker.path());
            let mut edit = |maker: &mut Maker, at, server, path: &str| {
                let act = Act::Edit(maker.edit(path.to_owned()));
                steps.push(Step { at, server, act });
            };
            edit(&mut maker, now, server, &path);
            if maker.0.below(3) == 0 {
                // At once, or just as the first edit comes there.
                let most = [300, 2500][maker.0.below(2)];
                let after = maker.0.between(Duration::ZERO, Duration::from_millis(most));
                let at = now + after;
                edit(&mut maker, at, (server + 1) % SERVERS, &path);
            }
            now += maker
                .0
                .between(Duration::ZERO, Duration::from_millis(pause));
        }
        now += maker.0.between(Duration::ZERO, Duration::from_secs(3));
    }
    let mut now = Duration::from_secs(2);
    while faults && now < length {
        let (server, mut fault) = (maker.0.below(SERVERS), maker.fault());
        if let Fault::Power { index_lost, .. } = &mut fault {
            *index_lost &= !keep_indexes;
        }
        let act = Act::Fault(fault);
        steps.push(Step {
            at: now,
            server,
            act,
        });
        now += maker
            .0
            .between(Duration::from_millis(200), Duration::from_secs(6));
    }
    steps.sort_by_key(|step| step.at);
    Plan { steps, length }
}

impl Plan {
    pub fn loses_indexes(&self) -> bool {
        let lost = |step: &Step| {
            matches!(
                step.act,
                Act::Fault(Fault::Power {
                    index_lost: true,
                    ..
                })
            )
        };
        self.steps.iter().any(lost)
    }
}
