//! The operator's requests, understood by every role's socket as far as they concern it.

use super::status::RoleStatus;
use crate::ids::{ServerName, VirtualServerName};
use serde::{Deserialize, Serialize};

/// A request of the `standin` command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtlRequest {
    /// Every role: how are you?
    Status,
    /// electd: hand a virtual server (or all) over to this server.
    Promote {
        /// The server that shall be master.
        to: ServerName,
        /// Only this virtual server.
        virtual_server: Option<VirtualServerName>,
    },
    /// electd: hand over whatever this server is master of.
    Resign,
    /// electd: take no mastership (and hand over what there is), or take part again.
    Maintenance(bool),
    /// electd of a master: add a voter to the roster.
    ServerAdd(ServerName),
    /// electd of a master: remove a voter from the roster.
    ServerRemove(ServerName),
    /// syncd: make files alike now.
    SyncNow {
        /// Only these sets; none: all.
        sets: Vec<ServerName>,
        /// Only with these servers; none: all.
        peers: Vec<ServerName>,
    },
    /// syncd: a run that it did not start itself has taken so many changes.
    SyncTook {
        /// In which set.
        set: ServerName,
        /// How many.
        changes: u64,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtlReply {
    /// To [`CtlRequest::Status`].
    Status(Box<RoleStatus>),
    /// Done; what was done, in words.
    Done(String),
    /// Not done; why, and what to do, in words.
    No(String),
}
