//! Contents by numbers.

/// The content of a chunk or a piece, by a number: 0 is zeros.
pub(crate) type Tag = u64;

/// What no source ever holds: content that was written in part, or went bad.
pub(crate) const TORN: Tag = 1 << 63;
