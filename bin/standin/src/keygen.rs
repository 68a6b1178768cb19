//! `standin keygen [FILE]`: a new cluster key.

use clap::{Arg, ArgMatches, Command};
use daemon::Error;
use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

pub fn command() -> Command {
    Command::new("keygen")
        .about("Make a new cluster key, mode 0600; never overwrites a file")
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .default_value(config::KEY_FILE),
        )
}

pub fn run(matches: &ArgMatches) -> Result<String, Error> {
    let file = matches
        .get_one::<String>("file")
        .map_or(config::KEY_FILE, String::as_str);
    write(Path::new(file)).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => Error::Failed(format!(
            "{file} exists and is left as it is; to change the key of a cluster, make a new one in another \
             file and add its line to this one"
        )),
        _ => Error::io(format!("cannot write {file}"), e),
    })?;
    Ok(format!(
        "{file}: new cluster key; copy it to every server and keep it secret"
    ))
}

fn write(file: &Path) -> std::io::Result<()> {
    let key = daemon::random::<32>().map_err(std::io::Error::other)?;
    let mut text = "# cluster key of standin: the same on all servers, and secret\n".to_owned();
    for byte in key {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
