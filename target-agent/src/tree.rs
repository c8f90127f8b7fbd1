//! Receiving a tree.
//!
//! ```text
//! N data connections (tasks) → queue → writers (OS threads: check, decode, apply) → owner
//! ```

mod data;
pub(crate) mod driver;
mod writers;
