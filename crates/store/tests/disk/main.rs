//! The store on real directories: as root with all that only root can make, else without.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive;
mod common;
mod conflict;
mod converge;
mod cuts;
mod escape;
mod faults;
mod forget;
mod fresh;
mod histories;
mod index;
mod leftover;
mod lent;
mod look;
mod metadata;
mod names;
mod newcomer;
mod rsync;
mod set_back;
