//! The wire and the decisions of a clone, without any I/O: no file, socket, clock, thread or
//! runtime. Time comes in as an argument, actions come out of polls.
//!
//! Two participants share a *session*: the source, which reads a volume, and the target, which
//! makes it durable elsewhere. Read [`session`] for how a session goes, [`frame`] and [`message`]
//! for what travels, [`digest`] for how a clone is proven.
//!
//! What holds throughout:
//! - Bytes of a peer never reach a panic, and every length is bounded before anything is allocated.
//! - Durable means flushed and journaled; only durable bytes are progress, and only they are acknowledged.
//! - A receipt exists only where both ends computed the same digest.
//!
//! Payload bytes never pass through here: the state machines decide about chunks, the agents move
//! them.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "a test may panic"
    )
)]

pub mod codec;
pub mod compression;
pub mod digest;
pub mod failure;
pub mod frame;
pub mod geometry;
pub mod journal;
pub mod manifest;
pub mod message;
pub mod range_set;
pub mod receipt;
pub mod session;
pub mod tree;
pub mod waits;
pub mod zero_map;
