//! `<state-dir>/reservation`: written by a thread of its own, never in the path of an election.

use crossbeam_channel::{Receiver, Sender, unbounded};
use daemon::{Error, durable, machine::foreign};
use election::{Kept, Reservation};
use protocol::owner::{Owner, Present};
use std::{
    io,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

/// What electd starts with.
#[derive(Debug)]
pub struct Found {
    /// The reservation on disk, if it is there, good and this server's.
    pub reservation: Option<Reservation>,
    /// The owner to write with every reservation.
    pub owner: Owner,
    /// Why the reservation on disk is another one's, and what can be done.
    pub foreign: Option<String>,
}

/// Reads it, and makes it this machine's where it is of the former format or what tells the machine has changed.
pub fn open(state_dir: &Path, present: &Present) -> Result<Found, Error> {
    let path = state_dir.join(durable::RESERVATION);
    let shown = path.display();
    let mut found = Found {
        reservation: None,
        owner: present.owner.clone(),
        foreign: None,
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(Error::io(format!("cannot read {shown}"), e)),
    };
    match Kept::read(&bytes, present) {
        Ok(Kept::Own {
            reservation,
            owner,
            stored,
        }) => {
            if stored.as_ref() != Some(&owner) {
                match stored {
                    None => {
                        log::info!("{shown}: it names no owner and is this server's from now on")
                    }
                    Some(_) => {
                        log::info!("{shown}: what tells this machine has changed and is noted")
                    }
                }
                if let Err(e) = write(state_dir, &reservation, &owner) {
                    log::error!("{e}; the owner is noted with the next reservation");
                }
            }
            found.owner = owner;
            found.reservation = Some(reservation);
        }
        Ok(Kept::Foreign { why, .. }) => {
            let told = format!("{shown}: {}", foreign(&why));
            log::error!("{told}");
            found.foreign = Some(told);
        }
        Err(why) => {
            log::error!("{shown}: {why}; this server is blank until the others have told");
        }
    }
    Ok(found)
}

/// Writes it: temporary file, fsync, rename, fsync of the folder.
pub fn write(state_dir: &Path, reservation: &Reservation, owner: &Owner) -> Result<(), Error> {
    let bytes = reservation
        .to_owned_bytes(owner)
        .map_err(|e| Error::Failed(e.to_string()))?;
    durable::write(state_dir, durable::RESERVATION, &bytes)
}

/// The thread that writes reservations, one after another; only the last one asked for matters.
pub struct Writer {
    requests: Sender<Reservation>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts the thread, which writes for this owner; `done` is called on it with what was written, or why it was not.
    pub fn start(
        state_dir: PathBuf,
        owner: Owner,
        done: impl Fn(Result<Reservation, String>) + Send + 'static,
    ) -> Result<Self, Error> {
        let (requests, inbox): (Sender<Reservation>, Receiver<Reservation>) = unbounded();
        let thread = thread::Builder::new()
            .name("reservation".into())
            .spawn(move || {
                while let Ok(first) = inbox.recv() {
                    let reservation = inbox.try_iter().last().unwrap_or(first);
                    let written = write(&state_dir, &reservation, &owner);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::owner::{Mac, Machine};
    use std::{fs, time::Duration};

    /// On a machine with these MAC addresses, of which the first is a heartbeat interface's.
    fn present(macs: &[u8]) -> Present {
        let macs = macs.iter().map(|n| Mac([2, 0, 0, 0, 0, *n]));
        Present {
            owner: Owner {
                cluster: "web".into(),
                server: "alpha".parse().unwrap(),
                machine: Some(Machine {
                    machine_id: None,
                    dmi_uuid: None,
                    macs: macs.clone().take(1).collect(),
                }),
            },
            macs: macs.collect(),
        }
    }

    fn reservation() -> Reservation {
        let voters = ["alpha", "beta", "tie"].map(|n| n.parse().unwrap());
        Reservation::first(voters.to_vec(), None, Duration::from_millis(500))
    }

    #[test]
    fn one_without_an_owner_is_adopted_once() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = reservation().to_bytes().unwrap();
        durable::write(folder.path(), durable::RESERVATION, &bytes).unwrap();
        let found = open(folder.path(), &present(&[1])).unwrap();
        assert_eq!(
            (found.reservation, found.foreign),
            (Some(reservation()), None)
        );
        assert_eq!(found.owner, present(&[1]).owner);
        let elsewhere = open(folder.path(), &present(&[2])).unwrap();
        assert_eq!(elsewhere.reservation, None);
        let why = elsewhere.foreign.unwrap();
        for named in ["02:00:00:00:00:01", "standin init --adopt", "remove"] {
            assert!(why.contains(named), "no {named}: {why}");
        }
    }

    #[test]
    fn what_tells_the_machine_is_noted_as_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &reservation(), &present(&[1]).owner).unwrap();
        for macs in [[2, 1], [3, 2], [4, 3]] {
            // Each time the former heartbeat interface is still there.
            let found = open(folder.path(), &present(&macs)).unwrap();
            assert_eq!(
                (found.reservation, found.foreign),
                (Some(reservation()), None),
                "{macs:?}"
            );
        }
        let back = open(folder.path(), &present(&[1])).unwrap();
        assert!(back.foreign.is_some());
    }

    #[test]
    fn a_foreign_or_bad_one_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(durable::RESERVATION);
        write(folder.path(), &reservation(), &present(&[1]).owner).unwrap();
        let good = fs::read(&file).unwrap();
        let damaged = good[..good.len() - 1].to_vec();
        for (bytes, is_foreign) in [(good, true), (damaged, false)] {
            fs::write(&file, &bytes).unwrap();
            let found = open(folder.path(), &present(&[2])).unwrap();
            assert_eq!(
                (found.reservation, found.foreign.is_some()),
                (None, is_foreign)
            );
            assert_eq!(found.owner, present(&[2]).owner);
            assert_eq!(fs::read(&file).unwrap(), bytes);
        }
    }

    #[test]
    fn the_thread_writes_the_owner_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let owner = present(&[1]).owner;
        let writer = Writer::start(folder.path().to_owned(), owner, |written| {
            written.unwrap();
        });
        let writer = writer.unwrap();
        writer.request(reservation());
        writer.finish();
        let bytes = fs::read(folder.path().join(durable::RESERVATION)).unwrap();
        let kept = Kept::read(&bytes, &present(&[1])).unwrap();
        assert!(
            matches!(
                kept,
                Kept::Own {
                    stored: Some(_),
                    ..
                }
            ),
            "{kept:?}"
        );
    }
}
