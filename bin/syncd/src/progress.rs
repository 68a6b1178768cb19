//! How far a run has got: counted by whoever moves files, and shown on one line of a terminal that is written anew some
//! times a second.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// So often the line is written anew.
const EVERY: Duration = Duration::from_millis(250);
/// Before so long nothing is said of what is left.
const GUESS: Duration = Duration::from_secs(2);
/// Of a terminal that does not say.
const WIDTH: usize = 80;

/// What is to be moved of one unit, in both directions and with all servers, and what has been.
#[derive(Debug, Default)]
pub struct Meter {
    files: AtomicU64,
    bytes: AtomicU64,
    files_of: AtomicU64,
    bytes_of: AtomicU64,
}

impl Meter {
    /// A file of this size is to come or to go.
    pub fn expect(&self, bytes: u64) {
        self.files_of.fetch_add(1, Relaxed);
        self.bytes_of.fetch_add(bytes, Relaxed);
    }

    /// So much of a file has come or gone.
    pub fn part(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// All of it has.
    pub fn file(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    /// In words, after so long.
    fn line(&self, name: &str, after: Duration) -> String {
        let [files, files_of, bytes, bytes_of] =
            [&self.files, &self.files_of, &self.bytes, &self.bytes_of].map(|n| n.load(Relaxed));
        if files_of == 0 {
            return format!("{name}: looking");
        }
        // What was asked for twice has come twice.
        let (files, bytes) = (files.min(files_of), bytes.min(bytes_of));
        let rate = bytes as f64 / after.as_secs_f64().max(0.001);
        let mut line = format!(
            "{name}: {files} of {files_of} files, {} of {}, {}/s",
            size(bytes as f64),
            size(bytes_of as f64),
            size(rate)
        );
        if after >= GUESS && rate >= 1.0 {
            let left = Duration::from_secs_f64((bytes_of - bytes) as f64 / rate).as_secs();
            line += &match (left / 3600, left / 60 % 60, left % 60) {
                (0, 0, seconds) => format!(", {seconds} s left"),
                (0, minutes, seconds) => format!(", {minutes}:{seconds:02} min left"),
                (hours, minutes, _) => format!(", {hours}:{minutes:02} h left"),
            };
        }
        line
    }
}

fn size(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let place = units.iter().enumerate().rev();
    let mut fitting = place.filter(|(i, _)| bytes >= 1000f64.powi(*i as i32));
    match fitting.next() {
        None | Some((0, _)) => format!("{bytes:.0} B"),
        Some((i, unit)) => format!("{:.1} {unit}", bytes / 1000f64.powi(i as i32)),
    }
}

/// As much of a line as a terminal has room for; what it could take for orders is shown.
fn fit(line: &str, width: usize) -> String {
    let plain = line.chars().flat_map(|c| match c.is_control() {
        true => c.escape_default().collect::<Vec<_>>(),
        false => vec![c],
    });
    plain.take(width.saturating_sub(1)).collect()
}

/// What is at work now: name, meter, since when.
type Now = Option<(String, Arc<Meter>, Instant)>;

/// The line, if anybody sees it.
#[derive(Default)]
pub struct Board {
    shown: bool,
    now: Mutex<Now>,
}

impl Board {
    /// Standard error, if it is a terminal.
    pub fn of_terminal() -> Self {
        Self {
            shown: stderr().is_terminal(),
            ..Self::default()
        }
    }

    /// From now on this is shown.
    pub fn show(&self, name: &str, meter: &Arc<Meter>) {
        let now = Some((name.to_owned(), Arc::clone(meter), Instant::now()));
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        if self.shown {
            self.draw();
        }
    }

    /// There is room for another line.
    pub fn clear(&self) {
        if self.shown {
            let _ = stderr().write_all(b"\r\x1b[K");
        }
    }

    /// Shows while this is done.
    pub fn beside<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.shown {
            return work();
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let line = scope.spawn(|| {
                while !done.load(Relaxed) {
                    self.draw();
                    thread::park_timeout(EVERY);
                }
                self.clear();
            });
            let value = work();
            done.store(true, Relaxed);
            line.thread().unpark();
            value
        })
    }

    fn draw(&self) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((name, meter, since)) = &*now else {
            return;
        };
        let size = rustix::termios::tcgetwinsize(stderr());
        let width = match size.map(|size| usize::from(size.ws_col)) {
            Ok(width) if width > 0 => width,
            _ => WIDTH,
        };
        let line = fit(&meter.line(name, since.elapsed()), width);
        let _ = stderr().write_all(format!("\r{line}\x1b[K").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_much_of_how_much_and_how_long_still() {
        let (meter, second) = (Meter::default(), Duration::from_secs(1));
        assert_eq!(meter.line("data", second), "data: looking");
        (0..4).for_each(|_| meter.expect(25_000_000));
        meter.part(20_000_000);
        meter.file();
        assert_eq!(
            meter.line("data", second),
            "data: 1 of 4 files, 20.0 MB of 100.0 MB, 20.0 MB/s"
        );
        assert!(
            meter
                .line("data", 2 * second)
                .ends_with("10.0 MB/s, 8 s left")
        );
        assert!(meter.line("data", 40 * second).ends_with(", 2:40 min left"));
        assert!(meter.line("data", 4000 * second).ends_with(", 4:26 h left"));
        meter.part(u64::MAX / 2);
        assert!(meter.line("data", 2 * second).ends_with(", 0 s left"));
    }

    #[test]
    fn a_line_is_no_longer_than_the_terminal_and_gives_it_no_orders() {
        assert_eq!(fit("data: looking", 80), "data: looking");
        assert_eq!(fit("data: looking", 8), "data: l");
        assert_eq!(fit("a\x1b[2Jb\n", 80), "a\\u{1b}[2Jb\\n");
        let sizes = [0.0, 999.0, 1000.0, 1_500_000.0, 2e15];
        assert_eq!(
            sizes.map(size),
            ["0 B", "999 B", "1.0 kB", "1.5 MB", "2000.0 TB"]
        );
    }
}
