//! What both agents share, so that knowing one is knowing both: progress and its clocks, the admin
//! port, telemetry, and the way an agent ends.
//!
//! Storage and transport meet here only in one place: [`failure`] turns the errors of both into what
//! a user is told.

#![forbid(unsafe_code)]

pub mod admin;
pub mod backoff;
pub mod control;
pub mod conversation;
pub mod cpu;
pub mod failure;
pub mod metrics;
pub mod options;
pub mod outcome;
pub mod output_files;
pub mod patience;
pub mod pressure;
pub mod progress;
pub mod run;
pub mod shutdown;
pub mod telemetry;
pub mod throttle;
pub mod trace;

/// Name and version of an agent as told to its peer and written into the receipt.
#[must_use]
pub fn agent_name(program: &str) -> String {
    format!("{program}/{}", env!("CARGO_PKG_VERSION"))
}
