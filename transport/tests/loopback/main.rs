//! Two ends over 127.0.0.1: who gets in, who doesn't, and what each end then knows.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test may panic, and says aloud what it skips"
)]

mod connections;
mod local;
mod quic;
mod refusals_by_source;
mod refusals_by_target;
mod support;
