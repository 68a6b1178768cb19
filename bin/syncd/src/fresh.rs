//! How fresh a unit is, by runs that were completed (docs/SYNC.md, "Which server is fresher").
//!
//! The master of the first virtual server numbers runs: (term, run) means "all that this master had then". Whoever takes
//! all that a server has is as fresh as that server was when it began to tell. So a number is only ever proved by a run,
//! whoever it was made with. Each unit has its own; a server is as fresh as the least fresh of its `election` sets, and
//! only while each of them is what it was when it was last looked at.

use crate::{
    replica::{Allowed, BUSY, Local},
    units::{self, Unit},
};
use config::Config;
use daemon::{Args, durable, machine};
use filesync::{
    Path as SetPath, Replica,
    guard::{Root, recognise},
};
use protocol::{ServerName, Term, codec, owner::Present, wire::beat::Freshness};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::ffi::OsStringExt,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};
use store::Set;

/// In a unit's directory.
const FILE: &str = "fresh";
/// So often a unit that is at work is waited for,
const TRIES: u32 = 50;
/// so long each time.
const STEP: Duration = Duration::from_millis(100);

/// Several threads may prove a unit at once; no two processes do, for the index has one owner.
static WRITING: Mutex<()> = Mutex::new(());

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    /// Of the replica that it was proved for: a lost index knows nothing.
    incarnation: u64,
    fresh: Freshness,
    /// The index's last change when this server gave it a number itself.
    sequence: u64,
    /// What the last look found, or why it found nothing out.
    seen: Result<Seen, String>,
}

/// What a unit that is gone or was emptied is told by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    root: Root,
    filled: bool,
}

/// What was proved for this replica.
pub fn of(state: &Path, replica: &Replica) -> Freshness {
    stamp(state, replica).fresh
}

fn stamp(state: &Path, replica: &Replica) -> Stamp {
    let read = read(state);
    let own = read.filter(|s| s.incarnation == replica.incarnation);
    own.unwrap_or(Stamp {
        incarnation: replica.incarnation,
        fresh: Freshness::default(),
        sequence: 0,
        seen: Err("it was not looked at yet".into()),
    })
}

fn read(state: &Path) -> Option<Stamp> {
    // What cannot be read proves nothing.
    codec::decode_record(&fs::read(state.join(FILE)).ok()?).ok()
}

fn write(state: &Path, stamp: &Stamp) -> Result<(), String> {
    let bytes = codec::encode_record(stamp).map_err(|e| e.to_string())?;
    durable::write(state, FILE, &bytes).map_err(|e| e.to_string())
}

/// All that another server of this freshness had is here now. It is on the disk when this returns.
pub fn raise(state: &Path, replica: &Replica, to: Freshness) -> Result<(), String> {
    change(state, Some(replica), |stamp| {
        stamp.fresh = stamp.fresh.max(to);
    })
}

/// It was looked at, and has something or nothing in it.
pub fn looked(state: &Path, replica: &Replica, root: &Root, filled: bool) -> Result<(), String> {
    let root = root.clone();
    change(state, Some(replica), |stamp| {
        stamp.seen = Ok(Seen { root, filled });
    })
}

/// It could not be looked at, for this reason: nobody counts on what is in it until somebody has.
pub fn doubted(state: &Path, why: &str) -> Result<(), String> {
    change(state, None, |stamp| stamp.seen = Err(why.to_owned()))
}

/// Changes what is written, of this replica or of whichever it is.
fn change(
    state: &Path,
    replica: Option<&Replica>,
    change: impl FnOnce(&mut Stamp),
) -> Result<(), String> {
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let known = replica.map(|replica| stamp(state, replica));
    let Some(known) = known.or_else(|| read(state)) else {
        return Ok(());
    };
    let mut stamp = known.clone();
    change(&mut stamp);
    match stamp == known {
        true => Ok(()),
        false => write(state, &stamp),
    }
}

/// The units that count in elections.
fn units(config: &Config, me: &ServerName, args: &Args) -> Vec<Unit> {
    let witness = config.server(me).is_some_and(|s| s.witness);
    units::of(config, args, |set| set.on.election && !witness)
}

/// How fresh this server is: the least fresh of what counts, if all of it is there as it was looked at.
pub fn now(config: &Config, me: &ServerName, args: &Args) -> Result<Freshness, String> {
    let units = units(config, me, args);
    let fresh = units.iter().map(|unit| {
        let whole = whole(unit, &unit.state(&args.state_dir));
        whole.map_err(|why| format!("{}: {why}", unit.name))
    });
    let fresh: Vec<_> = fresh.collect::<Result<_, _>>()?;
    Ok(fresh.into_iter().min().unwrap_or_default())
}

/// How fresh a unit is, by a glimpse at it: the index is not opened, for a run may have it.
fn whole(unit: &Unit, state: &Path) -> Result<Freshness, String> {
    let told = |e: io::Error| e.to_string();
    if let Some(fault) = &unit.fault {
        return Err(fault.clone());
    }
    if !state.join("index").try_exists().map_err(told)? {
        return Err("its index is lost".into());
    }
    let stamp = read(state).ok_or("it was not looked at yet")?;
    let known = stamp.seen?;
    let root = Set::glimpse(unit.own(), &unit.root).map_err(|e| e.to_string())?;
    let filled = known.filled && is_filled(unit).map_err(told)?;
    let had = known.filled && !unit.may_be_empty();
    let same = recognise(&known.root, &root, had.into(), filled.into());
    same.map_err(|doubt| {
        let root = unit.root.display().to_string();
        store::Error::Root { root, doubt }.to_string()
    })?;
    Ok(stamp.fresh)
}

fn is_filled(unit: &Unit) -> io::Result<bool> {
    for entry in fs::read_dir(&unit.root)? {
        let entry = entry?;
        let directory = entry.file_type().is_ok_and(|t| t.is_dir());
        let path = SetPath::try_from(entry.file_name().into_vec());
        if path.is_ok_and(|path| !store::is_own(&path) && !unit.excludes(&path, directory)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks at each unit that counts, or only those of which it is not certain that they are there. What comes of it is
/// what [`now`] says afterwards.
pub fn look(config: &Config, me: &ServerName, args: &Args, all: bool) {
    let here = machine::present(config, me);
    // What is missing is told by `now`, too.
    for unit in units(config, me, args) {
        if all || whole(&unit, &unit.state(&args.state_dir)).is_err() {
            let _ = open(&unit, &here, args);
        }
    }
}

fn open(unit: &Unit, here: &Present, args: &Args) -> Result<Local, String> {
    let mut tries = 0;
    loop {
        match Local::open(unit.clone(), here, args, Allowed::default()) {
            Err(why) if why == BUSY && tries < TRIES => thread::sleep(STEP),
            other => return other.map_err(|why| format!("{}: {why}", unit.name)),
        }
        tries += 1;
    }
}

/// Numbers what is here as the next run of `term`, of which this server is master, if anything is new since the last.
pub fn number(config: &Config, me: &ServerName, args: &Args, term: Term) -> Result<bool, String> {
    let (here, locals) = (machine::present(config, me), units(config, me, args));
    let locals: Result<Vec<Local>, _> = locals.iter().map(|u| open(u, &here, args)).collect();
    let mut stamps = Vec::new();
    for local in locals? {
        let sequence = local.index.state().map_err(|e| e.to_string())?.sequence;
        stamps.push((stamp(&local.state, &local.replica), sequence, local));
    }
    let last = stamps.iter().map(|(s, ..)| s.fresh).max();
    let Some(next) = next(
        last,
        term,
        stamps.iter().map(|(s, q, _)| (s.fresh, s.sequence, *q)),
    ) else {
        return Ok(false);
    };
    for (_, sequence, local) in stamps {
        change(&local.state, Some(&local.replica), |stamp| {
            (stamp.fresh, stamp.sequence) = (next, sequence);
        })?;
    }
    Ok(true)
}

/// The next number, if there is anything new; each unit has its freshness, and its index's last change when it was
/// last numbered here and now.
fn next(
    last: Option<Freshness>,
    term: Term,
    units: impl Iterator<Item = (Freshness, u64, u64)>,
) -> Option<Freshness> {
    let last = last?;
    let mut units = units;
    let new = units.any(|(fresh, numbered, now)| fresh != last || numbered != now);
    match last.term.cmp(&term) {
        // Another master numbers in a higher term; this one will hear of it.
        std::cmp::Ordering::Greater => None,
        std::cmp::Ordering::Less => Some(Freshness { term, run: 1 }),
        std::cmp::Ordering::Equal => new.then(|| Freshness {
            term,
            run: last.run.saturating_add(1),
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::owner::{Mac, Machine};

    fn fresh(term: u64, run: u64) -> Freshness {
        Freshness {
            term: Term(term),
            run,
        }
    }

    fn replica(incarnation: u64) -> Replica {
        Replica {
            server: "alpha".parse().unwrap(),
            incarnation,
        }
    }

    #[test]
    fn what_was_proved_stays_and_only_rises_and_ends_with_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("set");
        assert_eq!(of(&state, &replica(1)), fresh(0, 0));
        raise(&state, &replica(1), fresh(7, 2)).unwrap();
        raise(&state, &replica(1), fresh(6, 9)).unwrap();
        assert_eq!(of(&state, &replica(1)), fresh(7, 2));
        assert_eq!(of(&state, &replica(2)), fresh(0, 0), "another index");
        raise(&state, &replica(2), fresh(1, 1)).unwrap();
        assert_eq!(of(&state, &replica(2)), fresh(1, 1));
        fs::write(state.join(FILE), b"?").unwrap();
        assert_eq!(of(&state, &replica(2)), fresh(0, 0));
    }

    #[test]
    fn a_number_is_given_to_what_is_new_only() {
        let number = |term, units: &[(Freshness, u64, u64)]| {
            let last = units.iter().map(|u| u.0).max();
            next(last, Term(term), units.iter().copied())
        };
        assert_eq!(number(7, &[]), None, "nothing counts");
        assert_eq!(number(7, &[(fresh(0, 0), 0, 0)]), Some(fresh(7, 1)));
        assert_eq!(number(7, &[(fresh(7, 1), 4, 4)]), None, "nothing is new");
        assert_eq!(number(7, &[(fresh(7, 1), 4, 5)]), Some(fresh(7, 2)));
        let cut_off = [(fresh(7, 2), 4, 4), (fresh(7, 1), 3, 3)];
        assert_eq!(
            number(7, &cut_off),
            Some(fresh(7, 3)),
            "one was written only"
        );
        assert_eq!(number(8, &[(fresh(7, 3), 4, 4)]), Some(fresh(8, 1)));
        assert_eq!(number(6, &[(fresh(7, 3), 4, 9)]), None, "deposed");
    }

    #[test]
    fn a_copied_state_dir_begins_anew_and_is_not_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "of it").unwrap();
        let text = format!(
            "[cluster]\nname = \"web\"\nquorum = \"none\"\n[[server]]\nname = \"alpha\"\naddress = \"127.0.0.1\"\n\
             host_key = \"ssh-ed25519 AAAAx\"\n[[sync]]\nname = \"data\"\npath = \"{}\"\non = [\"election\"]\n",
            data.display()
        );
        let config = config::parse(&text, Path::new("standin.toml")).unwrap();
        let me: ServerName = "alpha".parse().unwrap();
        let args = Args {
            config: folder.path().join("standin.toml"),
            run_dir: folder.path().join("run"),
            state_dir: folder.path().join("state"),
            server: None,
        };
        let [unit] = &units(&config, &me, &args)[..] else {
            panic!("one set")
        };
        let on_machine = |mac: u8| {
            let mut here = machine::present(&config, &me);
            here.macs = [Mac([2, 0, 0, 0, 0, mac])].into();
            here.owner.machine = Some(Machine {
                macs: here.macs.clone(),
                ..Machine::default()
            });
            open(unit, &here, &args).unwrap()
        };
        let original = on_machine(1);
        raise(&original.state, &original.replica, fresh(7, 2)).unwrap();
        let (state, replica) = (original.state.clone(), original.replica.clone());
        drop(original);
        assert_eq!(on_machine(1).fresh(), fresh(7, 2));

        let copy = on_machine(2);
        assert_eq!(copy.replica.server, replica.server);
        assert_ne!(copy.replica.incarnation, replica.incarnation);
        assert_eq!(copy.fresh(), fresh(0, 0));
        assert!(state.join("index.foreign-1").exists());
        assert!(data.join("file").exists());
    }

    #[test]
    fn only_a_set_that_is_as_it_was_looked_at_is_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let (data, away) = (folder.path().join("data"), folder.path().join("away"));
        fs::create_dir(&data).unwrap();
        let text = format!(
            "[cluster]\nname = \"web\"\nquorum = \"none\"\n[[server]]\nname = \"alpha\"\naddress = \"127.0.0.1\"\n\
             host_key = \"ssh-ed25519 AAAAx\"\n[[sync]]\nname = \"data\"\npath = \"{}\"\non = [\"election\"]\nexclude = [\"lost\"]\n",
            data.display()
        );
        let config = config::parse(&text, Path::new("standin.toml")).unwrap();
        let me: ServerName = "alpha".parse().unwrap();
        let args = Args {
            config: folder.path().join("standin.toml"),
            run_dir: folder.path().join("run"),
            state_dir: folder.path().join("state"),
            server: None,
        };
        let now = || now(&config, &me, &args);
        let look = || look(&config, &me, &args, false);
        let doubt = |what: &str| {
            let why = now().unwrap_err();
            assert!(why.contains(what), "not \"{what}\": {why}");
        };
        doubt("its index is lost");
        look();
        assert_eq!(now(), Ok(fresh(0, 0)), "an empty set is one, too");
        let [unit] = &units(&config, &me, &args)[..] else {
            panic!("one set")
        };
        let state = unit.state(&args.state_dir);
        let here = machine::present(&config, &me);
        let replica = Local::open(unit.clone(), &here, &args, Allowed::default())
            .unwrap()
            .replica;
        raise(&state, &replica, fresh(7, 2)).unwrap();
        fs::write(data.join("file"), "of it").unwrap();
        assert!(number(&config, &me, &args, Term(7)).unwrap());
        let whole = Ok(fresh(7, 3));
        assert_eq!(now(), whole);

        // Not mounted: nothing at all, or another directory.
        fs::rename(&data, &away).unwrap();
        doubt("might only not be mounted");
        fs::create_dir(&data).unwrap();
        doubt("does not carry the marker");
        look();
        doubt("does not carry the marker");
        fs::remove_dir(&data).unwrap();
        fs::rename(&away, &data).unwrap();
        assert_eq!(now(), whole);

        // Emptied, but for what is no part of it.
        fs::rename(data.join("file"), &away).unwrap();
        fs::write(data.join("lost"), "").unwrap();
        doubt("is empty and was not");
        fs::rename(&away, data.join("file")).unwrap();
        assert_eq!(now(), whole);

        // Not to be looked at.
        let stage = data.join(store::STAGE);
        fs::remove_dir(&stage).unwrap();
        fs::write(&stage, "").unwrap();
        assert_eq!(now(), whole, "nobody has noticed");
        open(unit, &here, &args).err().unwrap();
        doubt("prepare the stage");
        fs::remove_file(&stage).unwrap();
        doubt("prepare the stage");
        look();
        assert_eq!(now(), whole);

        // Without its index, or with a new one.
        fs::rename(state.join("index"), &away).unwrap();
        doubt("its index is lost");
        fs::rename(&away, state.join("index")).unwrap();
        assert_eq!(now(), whole);
        fs::remove_file(state.join("index")).unwrap();
        look();
        assert_eq!(now(), Ok(fresh(0, 0)));
    }
}
