//! `<state-dir>/reservation`: written by a thread of its own, never in the path of an election.

use crossbeam_channel::{Receiver, Sender, unbounded};
use daemon::Error;
use election::Reservation;
use std::{
    io,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

/// The reservation on disk, if it is there and good; the reason, if it is bad.
pub fn read(state_dir: &Path) -> Result<Option<Reservation>, Error> {
    let path = state_dir.join(daemon::durable::RESERVATION);
    match std::fs::read(&path) {
        Ok(bytes) => match Reservation::from_bytes(&bytes) {
            Ok(reservation) => Ok(Some(reservation)),
            Err(why) => {
                log::error!(
                    "{}: {why}; this server is blank until the others have told",
                    path.display()
                );
                Ok(None)
            }
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("cannot read {}", path.display()), e)),
    }
}

/// Writes it: temporary file, fsync, rename, fsync of the folder.
pub fn write(state_dir: &Path, reservation: &Reservation) -> Result<(), Error> {
    let bytes = reservation
        .to_bytes()
        .map_err(|e| Error::Failed(e.to_string()))?;
    daemon::durable::write(state_dir, daemon::durable::RESERVATION, &bytes)
}

/// The thread that writes reservations, one after another; only the last one asked for matters.
pub struct Writer {
    requests: Sender<Reservation>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts the thread; `done` is called on it with what was written, or why it was not.
    pub fn start(
        state_dir: PathBuf,
        done: impl Fn(Result<Reservation, String>) + Send + 'static,
    ) -> Result<Self, Error> {
        let (requests, inbox): (Sender<Reservation>, Receiver<Reservation>) = unbounded();
        let thread = thread::Builder::new()
            .name("reservation".into())
            .spawn(move || {
                while let Ok(first) = inbox.recv() {
                    let reservation = inbox.try_iter().last().unwrap_or(first);
                    let written = write(&state_dir, &reservation);
                    done(written.map(|()| reservation).map_err(|e| e.to_string()));
                }
            })
            .map_err(|e| Error::io("cannot start the thread that writes reservations", e))?;
        Ok(Self { requests, thread })
    }

    /// Asks for `reservation` to be written.
    pub fn request(&self, reservation: Reservation) {
        if self.requests.send(reservation).is_err() {
            log::error!("the thread that writes reservations is gone");
        }
    }

    /// Ends the thread; what was asked for is written first, and nothing after it.
    pub fn finish(self) {
        drop(self.requests);
        if self.thread.join().is_err() {
            log::error!("the thread that writes reservations has failed");
        }
    }
}
