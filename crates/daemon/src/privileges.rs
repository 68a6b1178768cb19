//! Giving up rights, and taking real time where it is given.

use crate::{
    Error,
    sys::{self, Capability},
};
use nix::{
    sys::{
        mman::{MlockAllFlags, mlockall},
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    },
    unistd::{Uid, User, setgroups, setresgid, setresuid},
};

/// The user that daemons without privileges run as, where it exists.
pub const USER: &str = "standin";

/// Members of this group may read the status of every role, and do nothing else.
pub const STATUS_GROUP: &str = "standin-status";

/// What a daemon keeps for the rest of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// hbd, listend: nothing; user "standin", no capabilities, no new privileges.
    Nothing,
    /// doctord: nothing either; listening to the kernel's link changes takes no right.
    Doctor,
    /// electd: addresses, their gate in the kernel, raw packets, real time, and its role scripts, which run as it does.
    NetAdmin,
}

/// Gives up everything but `keep`. The notes say what was not possible. Call it before any thread is
/// started: capabilities belong to threads.
pub(crate) fn drop_to(keep: Keep) -> Result<Vec<String>, Error> {
    match keep {
        Keep::Nothing | Keep::Doctor => drop_all(),
        Keep::NetAdmin => {
            let keep = [
                Capability::NetAdmin,
                Capability::NetRaw,
                Capability::SysNice,
                Capability::IpcLock,
                Capability::Kill,
                Capability::SetUid,
                Capability::SetGid,
                Capability::Bpf,
            ];
            sys::keep_capabilities(&keep)
                .map_err(|e| Error::io("cannot give up capabilities", e))?;
            let missing = |c| !sys::capabilities().is_ok_and(|have| sys::has(have, c));
            let needed = [
                (Capability::NetAdmin, "CAP_NET_ADMIN"),
                (Capability::NetRaw, "CAP_NET_RAW"),
            ];
            let needed = needed.into_iter().filter(|(c, _)| missing(*c));
            Ok(needed
                .map(|(_, name)| format!("{name} is missing: this server cannot hold an address"))
                .collect())
        }
    }
}

fn drop_all() -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    if Uid::effective().is_root() {
        // A program started by mistake shall gain nothing; without the right to say so, no_new_privs does.
        let _ = sys::empty_bounding_set();
        match User::from_name(USER) {
            Ok(Some(user)) => {
                let become_user = setgroups(&[])
                    .and_then(|()| setresgid(user.gid, user.gid, user.gid))
                    .and_then(|()| setresuid(user.uid, user.uid, user.uid));
                if let Err(e) = become_user {
                    notes.push(format!(
                        "cannot become user {USER} ({e}); runs as root, without capabilities"
                    ));
                }
            }
            Ok(None) | Err(_) => {
                notes.push(format!(
                    "no user {USER}; runs as root, without capabilities"
                ));
            }
        }
    }
    sys::keep_capabilities(&[]).map_err(|e| Error::io("cannot give up capabilities", e))?;
    prctl::set_no_new_privs().map_err(|e| Error::io("cannot set no_new_privs", e))?;
    Ok(notes)
}

/// Above ordinary processes and below every role's own priority: the main daemon's, and a role's while it starts.
pub const START_PRIORITY: i32 = 5;

/// Real-time scheduling at `priority` and locked memory. The notes say what was not possible.
pub(crate) fn realtime(priority: i32) -> Vec<String> {
    let mut notes = Vec::new();
    if let Err(e) = sys::scheduler_fifo(priority) {
        notes.push(format!(
            "no real-time scheduling ({e}): needs CAP_SYS_NICE or an rtprio limit, or realtime = false"
        ));
    }
    // Memory mapped later is locked too only where no limit can make an allocation fail for it.
    let unlimited = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok()
        || getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let on_fault = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    let mut flags = MlockAllFlags::MCL_CURRENT | on_fault;
    if unlimited {
        flags |= MlockAllFlags::MCL_FUTURE;
    }
    if let Err(e) = mlockall(flags) {
        notes.push(format!(
            "memory is not locked ({e}): needs CAP_IPC_LOCK or a memlock limit"
        ));
    }
    notes
}
