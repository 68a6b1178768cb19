//! What several crates need of Linux.
//!
//! | file | what it knows |
//! |---|---|
//! | `sparse` | which parts of a file are holes, lseek(2) |

pub mod sparse;
