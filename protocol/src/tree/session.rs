//! The two state machines of a session that clones a tree.
//!
//! They speak with the messages of every session, and differ from those of
//! [block sessions](crate::session) in what they count: a tree has no size until it was walked, so
//! there is no ledger. What the target holds already, of an earlier session or of an older copy, is
//! [asked for](crate::tree::offer) file by file. All else is sent, all is applied, a flush makes it
//! durable, and then the two digests are compared.
//!
//! ```text
//! source                                     target
//!   Hello (the terms)               ───────►
//!                                   ◄───────  Welcome (the terms of both)
//!   packs, pieces, zero pieces      ═══════►  check, apply; now and then, flush and journal
//!                                   ◄───────  Answer, Pieces (what it holds), Watermark
//!   Finish (digest, counts, losses) ───────►  complete: links, directories, flush; compare
//!                                   ◄───────  Receipt
//! ```

use serde::{Deserialize, Serialize};

use super::fidelity::{ClassSet, FidelityReport};
use super::set_digest::TreeCounts;

pub mod source;
pub mod target;

pub use source::{TreeSourceAction, TreeSourceSession};
pub use target::{Earlier, TreeLimits, TreeTargetAction, TreeTargetSession};

/// What of a tree has to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeTerms {
    /// Classes that may be lost.
    #[serde(default)]
    pub accept: ClassSet,
    /// Whether SELinux labels are cloned.
    #[serde(default)]
    pub selinux: bool,
}

impl TreeTerms {
    /// The terms of a session whose ends have these: what either accepts is accepted, and labels
    /// are cloned where both say so.
    #[must_use]
    pub const fn of_both(source: Self, target: Self) -> Self {
        Self {
            accept: source.accept.with_all(target.accept),
            selinux: source.selinux && target.selinux,
        }
    }
}

/// What the source found in its tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeFinish {
    /// What it holds.
    pub counts: TreeCounts,
    /// What the source could not read.
    #[serde(default)]
    pub fidelity: FidelityReport,
    /// Entries that changed while they were read, which was allowed.
    #[serde(default)]
    pub changed: u64,
}

/// What one end made of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeSummary {
    /// The digest of what it read or wrote.
    pub digest: crate::digest::Digest,
    /// What that was.
    pub counts: TreeCounts,
    /// What it could not keep.
    pub fidelity: FidelityReport,
    /// Entries that changed while they were read.
    pub changed: u64,
    /// Bytes in blocks that hold data.
    pub data_bytes: u64,
    /// At the target: bytes of files, holes included, that an earlier session brought.
    pub resumed_bytes: u64,
    /// At the target: bytes in blocks that hold data, of what it held already, as comparing showed.
    pub matched_bytes: u64,
    /// At the target: bytes in blocks that hold data, of what read back wrong and came again.
    pub repaired_bytes: u64,
}

#[cfg(test)]
mod tests;
