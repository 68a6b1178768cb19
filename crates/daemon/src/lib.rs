//! What all daemons share, so that each one's `main` tells only its own story.
//!
//! ```text
//!   args ──▶ log ──▶ config ──▶ Boot ──▶ run(boot): open, drop privileges, ready, event loop ──▶ exit code
//! ```
//!
//! [`EventLoop`] holds the Unix sockets of the ring, the timer, the Unix signals and whatever else the
//! daemon listens to, behind one closed enum of events. Nothing in it blocks, and everything has a limit.

mod args;
mod boot;
mod clock;
pub mod ctl;
pub mod durable;
mod error;
mod event_loop;
pub mod key;
mod limiter;
pub mod links;
mod local_socket;
mod log;
pub mod machine;
pub mod maintenance;
mod out;
pub mod privileges;
mod ready;
pub mod run_dir;
pub mod sys;

pub use args::{Args, CONFIG, RUN_DIR, STATE_DIR};
pub use boot::{Boot, Loaded, RELOADS, RELOADS_REFUSED, load_config, load_or_kept, main, run_as};
pub use clock::{check as check_clock, now, random, random_u64, raw_and_lead_ns, real_now_ns};
pub use error::Error;
pub use event_loop::{ConnId, Event, EventLoop};
pub use limiter::Limiter;
pub use log::{FILE as LOG_FILE, open_file as open_log};
pub use privileges::{Keep, START_PRIORITY, STATUS_GROUP};
pub use ready::watchdog;
