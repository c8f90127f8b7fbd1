//! What the end-to-end tests are made of: volumes whose content is known, devices and filesystems
//! that go away by themselves, the real programs as child processes, identities good and bent, and
//! peers that misbehave on purpose.
//!
//! The tests in `tests/` read as stories; whatever is not the story lives here:
//!
//! - [`programs`] finds the programs, runs them, and never waits for ever;
//! - [`agents`] runs a source and a target agent with identities of one clone;
//! - [`tree`] plants trees with everything in them, and judges whether two are the same;
//! - [`volume`] fills volumes from a seed, holes included, and compares them;
//! - [`device`] makes loop devices and mounts, and [`mod@skip`] says aloud where that can't be;
//! - [`identity`] mints what must be accepted and what must be refused;
//! - [`proxy`] stands between two agents and fails as networks do, and [`gate`] stops a clone in the
//!   middle, for as long as wanted;
//! - [`link`] is a path between two network namespaces: slow, long, lossy, for any protocol;
//! - [`relay`] carries datagrams between them, and changes its address;
//! - [`nbd`] makes files whose storage loses, fails or stalls;
//! - [`trial`] is a clone whose network fails and whose agents are started again;
//! - [`peer`] speaks the protocol by hand, from either end;
//! - [`http`] asks an agent's admin port.
//!
//! Time decides nothing here. Every wait has the same generous limit ([`PATIENCE`]), and whoever
//! reaches it fails and shows what the programs said.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test's helper may panic: that is how a test fails"
)]

use std::time::Duration;

pub mod agents;
pub mod device;
pub mod gate;
pub mod http;
pub mod identity;
pub mod link;
pub mod nbd;
pub mod peer;
pub mod programs;
pub mod proxy;
pub mod random;
pub mod relay;
pub mod skip;
pub mod tree;
pub mod trial;
pub mod volume;

/// Bytes of a MiB, the default chunk size.
pub const MIB: u64 = 1 << 20;

/// How long anything may take before it counts as hanging: far longer than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A temporary directory, removed when dropped.
#[must_use]
pub fn temporary_directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("volferry-test-")
        .tempdir()
        .unwrap()
}
