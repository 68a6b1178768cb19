//! When files are made alike, and with whom: the pure part, without clock, thread or network.
//!
//! | file | what it knows |
//! |---|---|
//! | `cron` | points in local time, as crontab(5) writes them |
//! | `memory` | what is owed to whom since when, and how it last went: what survives a restart |
//! | `plan` | what is due now, and what comes of how it ended |
//!
//! Everything that is to be done is a *debt*: a set owed to another server. Triggers make debts, runs that left nothing
//! undone clear them, and those that failed make them wait longer and longer, or until the other is heard again.

mod cron;
mod memory;
mod plan;

pub use cron::Cron;
pub use memory::{Debt, Done, Last, Memory, Past, Why};
pub use plan::{Ended, Job, Now, Plan, Rules, SetRules};
