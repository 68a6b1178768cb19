//! Standard output of a command. Who reads it may have gone (`standin status | head -1`): that is no panic, and the exit
//! code stays true. `use daemon::println;` takes the place of the standard library's.

/// As `std::println!`; what nobody reads is lost.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// As `std::print!`; what nobody reads is lost.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stdout(), $($text)*);
    }};
}

/// As `std::eprintln!`; what nobody reads is lost.
#[macro_export]
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
