//! Volumes and trees on what the kernel has: loop devices over files, and filesystems on these.
//!
//! They need root and loop devices. Elsewhere each test says why it was skipped, and passes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod devices;
mod support;
mod trees;
