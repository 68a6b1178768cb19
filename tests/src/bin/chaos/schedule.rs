//! What is to go wrong, and when: as values, and as text with one line for each fault.
//!
//! ```text
//! +1.250 kill master electd
//! +2.000 stop bravo hbd doctord for 0.300
//! +2.400 split alpha / bravo charlie for 4.000
//! ```

use lab::NAMES;
use std::{fmt, str::FromStr, time::Duration};

/// The processes of a server: the main daemon, then the roles.
pub const PARTS: [&str; 5] = ["main", "hbd", "listend", "doctord", "electd"];

/// To whom it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The server of that number.
    Server(usize),
    /// Whoever is master then.
    Master,
}

/// What is done. What lasts ends by itself after the fault's span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// SIGKILL; a main daemon is started again after the span.
    Kill(Vec<&'static str>),
    /// SIGSTOP, and SIGCONT after the span.
    Stop(Vec<&'static str>),
    /// Power loss, and its return after the span.
    Power,
    /// SIGTERM to the main daemon, which is started again after the span.
    Leave,
    /// The cable is pulled.
    Cable,
    /// Another program switches the interface off, and on after the span.
    Bounce,
    /// `standin maintenance on`, and off after the span.
    Maintenance,
    /// `standin promote`, asked of that server itself.
    Promote,
    /// `standin resign`.
    Resign,
    /// `standin restart`.
    Restart,
    /// Another program takes the virtual addresses away.
    Unaddress,
    /// Another program flushes nftables and deletes the queueing discipline `clsact`.
    Ungate,
    /// Groups of servers that do not hear each other.
    Split(Vec<Vec<usize>>),
    /// Two servers do not hear each other.
    Cut(usize, usize),
    /// Nothing of the first reaches the second.
    Mute(usize, usize),
    /// So many beats of a hundred are lost.
    Loss(u8),
}

impl Act {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::Power => "power",
            Self::Leave => "leave",
            Self::Cable => "cable",
            Self::Bounce => "bounce",
            Self::Maintenance => "maintenance",
            Self::Promote => "promote",
            Self::Resign => "resign",
            Self::Restart => "restart",
            Self::Unaddress => "unaddress",
            Self::Ungate => "ungate",
            Self::Split(_) => "split",
            Self::Cut(..) => "cut",
            Self::Mute(..) => "mute",
            Self::Loss(_) => "loss",
        }
    }

    /// Whether it lasts until it is ended.
    pub fn lasts(&self) -> bool {
        match self {
            Self::Kill(parts) => parts.contains(&"main"),
            Self::Promote | Self::Resign | Self::Restart | Self::Unaddress | Self::Ungate => false,
            _ => true,
        }
    }

    /// Whether it is done to one server.
    pub fn aims(&self) -> bool {
        !matches!(
            self,
            Self::Split(_) | Self::Cut(..) | Self::Mute(..) | Self::Loss(_)
        )
    }

    /// Whether the main daemon, and perhaps all of the server, is away meanwhile.
    pub fn ends_a_server(&self) -> bool {
        match self {
            Self::Kill(parts) => parts.contains(&"main"),
            Self::Power | Self::Leave => true,
            _ => false,
        }
    }
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// So long after the beginning.
    pub at: Duration,
    /// To whom, if it is one server.
    pub target: Option<Target>,
    /// What.
    pub act: Act,
    /// For so long, if it lasts.
    pub span: Duration,
}

impl Fault {
    /// When all of it is over, but for what the servers need to recover.
    pub fn end(&self) -> Duration {
        self.at + self.span
    }
}

/// All that goes wrong, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule(pub Vec<Fault>);

impl Schedule {
    /// All servers named.
    pub fn servers(&self) -> impl Iterator<Item = usize> {
        self.0.iter().flat_map(|fault| {
            let mut named = match &fault.act {
                Act::Split(groups) => groups.concat(),
                Act::Cut(a, b) | Act::Mute(a, b) => vec![*a, *b],
                _ => Vec::new(),
            };
            if let Some(Target::Server(server)) = fault.target {
                named.push(server);
            }
            named
        })
    }
}

fn names(servers: &[usize]) -> String {
    let names: Vec<_> = servers.iter().map(|s| NAMES[*s]).collect();
    names.join(" ")
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(server) => NAMES[*server],
            Self::Master => "master",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:.3} {}", self.at.as_secs_f64(), self.act.word())?;
        if let Some(target) = self.target {
            write!(f, " {target}")?;
        }
        match &self.act {
            Act::Kill(parts) | Act::Stop(parts) if parts.len() == PARTS.len() => {
                f.write_str(" all")?;
            }
            Act::Kill(parts) | Act::Stop(parts) => write!(f, " {}", parts.join(" "))?,
            Act::Split(groups) => {
                let groups: Vec<_> = groups.iter().map(|g| names(g)).collect();
                write!(f, " {}", groups.join(" / "))?;
            }
            Act::Cut(a, b) | Act::Mute(a, b) => write!(f, " {}", names(&[*a, *b]))?,
            Act::Loss(percent) => write!(f, " {percent}")?,
            _ => {}
        }
        if self.act.lasts() {
            write!(f, " for {:.3}", self.span.as_secs_f64())?;
        }
        Ok(())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|fault| writeln!(f, "{fault}"))
    }
}

fn server(word: &str) -> Result<usize, String> {
    let found = NAMES.iter().position(|name| *name == word);
    found.ok_or_else(|| format!("\"{word}\" is no server"))
}

fn target(word: Option<&&str>) -> Result<Target, String> {
    match word {
        Some(&"master") => Ok(Target::Master),
        Some(name) => server(name).map(Target::Server),
        None => Err("which server?".to_owned()),
    }
}

fn parts(words: &[&str]) -> Result<Vec<&'static str>, String> {
    let one = |word: &&str| {
        let known = PARTS.into_iter().find(|part| part == word);
        known.ok_or_else(|| format!("\"{word}\" is no process; they are: {}", PARTS.join(" ")))
    };
    match words {
        [] => Err("which processes?".to_owned()),
        ["all"] => Ok(PARTS.to_vec()),
        some => some.iter().map(one).collect(),
    }
}

fn pair(words: &[&str]) -> Result<(usize, usize), String> {
    match words {
        [a, b] if a != b => Ok((server(a)?, server(b)?)),
        _ => Err("two servers are needed".to_owned()),
    }
}

fn seconds(word: &str) -> Result<Duration, String> {
    let number = word.parse().map_err(|e| format!("\"{word}\": {e}"))?;
    Duration::try_from_secs_f64(number).map_err(|e| format!("\"{word}\": {e}"))
}

/// The fault of that word, and what it is done to.
fn act(word: &str, rest: &[&str]) -> Result<Act, String> {
    let which = || parts(rest.get(1..).unwrap_or_default());
    Ok(match word {
        "kill" => Act::Kill(which()?),
        "stop" => Act::Stop(which()?),
        "power" => Act::Power,
        "leave" => Act::Leave,
        "cable" => Act::Cable,
        "bounce" => Act::Bounce,
        "maintenance" => Act::Maintenance,
        "promote" => Act::Promote,
        "resign" => Act::Resign,
        "restart" => Act::Restart,
        "unaddress" => Act::Unaddress,
        "ungate" => Act::Ungate,
        "split" => {
            let groups = rest.split(|word| *word == "/");
            let groups = groups.map(|g| g.iter().map(|name| server(name)).collect());
            Act::Split(groups.collect::<Result<_, _>>()?)
        }
        "cut" => pair(rest).map(|(a, b)| Act::Cut(a, b))?,
        "mute" => pair(rest).map(|(a, b)| Act::Mute(a, b))?,
        "loss" => {
            let percent = rest.first().and_then(|p| p.parse().ok());
            Act::Loss(percent.ok_or("how many of a hundred beats?")?)
        }
        strange => return Err(format!("\"{strange}\" is no fault")),
    })
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (text, span) = match line.split_once(" for ") {
            Some((text, span)) => (text, Some(seconds(span.trim())?)),
            None => (line, None),
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let [at, word, rest @ ..] = &words[..] else {
            return Err("\"+SECONDS FAULT\" is needed".to_owned());
        };
        let act = act(word, rest)?;
        match (act.lasts(), span) {
            (true, None) => return Err("\"for SECONDS\" is needed".to_owned()),
            (false, Some(_)) => return Err("this does not last".to_owned()),
            _ => {}
        }
        Ok(Self {
            at: seconds(at.strip_prefix('+').unwrap_or(at))?,
            target: act.aims().then(|| target(rest.first())).transpose()?,
            act,
            span: span.unwrap_or_default(),
        })
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// Empty lines and those that begin with # are left out.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut faults = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                let fault = line.parse::<Fault>();
                faults.push(fault.map_err(|e| format!("line {}: {e}", number + 1))?);
            }
        }
        faults.sort_by_key(|fault| fault.at);
        Ok(Self(faults))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_to_whom_when_and_for_how_long() {
        let line = "+2.400 split alpha / bravo charlie for 4.000";
        let fault = Fault {
            at: Duration::from_millis(2400),
            target: None,
            act: Act::Split(vec![vec![0], vec![1, 2]]),
            span: Duration::from_secs(4),
        };
        assert_eq!(line.parse(), Ok(fault.clone()));
        assert_eq!(fault.to_string(), line);
        let killed: Fault = "+1 kill master electd hbd".parse().unwrap();
        assert_eq!(killed.target, Some(Target::Master));
        assert_eq!(killed.act, Act::Kill(vec!["electd", "hbd"]));
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_its_line() {
        let why = |text: &str| text.parse::<Schedule>().unwrap_err();
        let table = [
            ("+1 kill zulu hbd", "\"zulu\" is no server"),
            ("+1 kill alpha", "which processes?"),
            ("+1 kill alpha syncd", "\"syncd\" is no process"),
            ("+1 kill alpha main", "\"for SECONDS\" is needed"),
            ("+1 promote alpha for 2", "this does not last"),
            ("+x loss 3 for 1", "\"x\""),
            ("+1 cut alpha alpha for 1", "two servers are needed"),
            ("+1 burn alpha", "\"burn\" is no fault"),
        ];
        for (text, part) in table {
            let said = why(&format!("# by hand\n\n{text}"));
            assert!(
                said.starts_with("line 3: ") && said.contains(part),
                "{said}"
            );
        }
    }
}
