//! The wire and the decisions of a clone, without any I/O.

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

pub mod digest;
pub mod geometry;
pub mod range_set;
pub mod zero_map;
