//! What holds for any bytes: one module for each decoder or machine, each with a `run` that takes
//! an input and panics when something doesn't hold.
//!
//! The fuzz targets feed these functions for as long as one lets them; `tests/corpus.rs` of the
//! protocol, which includes this file, replays every committed input in each test run. An input
//! that once made a target fail joins the corpus together with the fix.

pub mod compressed;
pub mod control;
pub mod data_frame;
pub mod digest_tree;
mod input;
pub mod journal;
pub mod manifest;
mod model;
pub mod pack;
pub mod preamble;
pub mod session_ops;

/// The name of a target, which is also that of its corpus, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 9] = [
    ("compressed", compressed::run),
    ("control", control::run),
    ("data_frame", data_frame::run),
    ("digest_tree", digest_tree::run),
    ("journal", journal::run),
    ("manifest", manifest::run),
    ("pack", pack::run),
    ("preamble", preamble::run),
    ("session_ops", session_ops::run),
];
