//! Trees: a directory with all that is below it, read at one end and made again at the other.
//!
//! - [`walk`] reads a tree with several threads and makes packs and pieces of it;
//! - [`restore`] takes packs and pieces and makes the tree again, below one root and nowhere else;
//! - `journal` keeps what of a tree is durable, in the target directory itself;
//! - `metadata` is what an entry has besides its content, at both ends;
//! - `directories` opens directories below a root, however deep and whatever their names.
//!
//! Nothing here holds more of a tree in memory than what is under way, but for two things: the
//! inodes with several names that were met and not yet all seen, and losses, of which a hundred
//! paths are kept for each class.

mod directories;
mod error;
mod journal;
mod metadata;
pub mod restore;
pub mod walk;

pub use error::{Refusal, TreeError};
pub use restore::{Restore, RestoreWorker, Reuse, Room, TreeTarget, TreeTargetOptions};
pub use walk::{Outgoing, Seen, TreeSource, Unasked, Walk, WalkEnd, WalkOptions, Walked};

/// The directory at the root of a volume in which filesystem checkers put what they find. It
/// belongs to the filesystem, not to the tree.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// How the name of the directory begins in which a clone keeps what is not in its place yet.
const STAGING_PREFIX: &[u8] = b".volferry-";

/// Whether `name` is that of a staging directory of some clone.
fn is_staging(name: &[u8]) -> bool {
    let id = name.strip_prefix(STAGING_PREFIX);
    id.is_some_and(|id| id.len() == 36 && id.iter().all(|byte| b"0123456789abcdef-".contains(byte)))
}
