//! The real elector, model-checked: every state of small clusters within stated bounds.
#![allow(missing_docs)]

mod digest;
mod judge;
mod model;
pub mod run;
pub mod scenario;
mod step;
mod world;
