//! Trees: a directory with all that is below it, read at one end and made again at the other.
//!
//! - [`walk`] reads a tree with several threads and makes packs and pieces of it;
//! - [`restore`] takes packs and pieces and makes the tree again, below one root and nowhere else;
//! - `journal` keeps what of a tree is durable, in the target directory itself;
//! - `metadata` is what an entry has besides its content, at both ends;
//! - `directories` opens directories below a root, however deep and whatever their names;
//! - `group_sums` keeps what is known of inodes with several names, at the target;
//! - `witness` tells whether a directory is the one that was proven;
//! - `names` puts what a directory holds in the order in which a disk gives it at once.
//!
//! Nothing here holds more of a tree in memory than what is under way, but for two things: at the
//! source the inodes with several names of which some were met and some not, with some 70 bytes each;
//! and losses, of which a hundred paths are kept for each class.

use std::path::{Path, PathBuf};

mod directories;
mod error;
mod group_sums;
mod journal;
mod metadata;
mod names;
pub mod restore;
pub mod walk;
mod witness;

pub use error::{Refusal, TreeError};
pub use restore::{ReadBack, Restore, RestoreWorker, Reuse, Room, TreeTarget, TreeTargetOptions};
pub use walk::{Outgoing, Seen, TreeSource, Unasked, Walk, WalkEnd, WalkOptions, Walked};

/// The file that holds a block volume in a filesystem volume, as in KubeVirt.
pub const DISK_IMAGE: &str = "disk.img";

/// The disk image that is all that a directory holds: it is a block volume in a filesystem volume.
#[must_use]
pub fn disk_image_in(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .filter(|name| !matches!(name, Ok(name) if name.as_encoded_bytes() == LOST_AND_FOUND));
    let is_alone = names.next()?.ok()? == DISK_IMAGE && names.next().is_none();
    is_alone.then(|| directory.join(DISK_IMAGE))
}

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

/// Lets this process open as many files as it may, of which programs begin with few. At the source a
/// thread has a batch of files open, and directories wait open; at the target a large file under way
/// takes three descriptors.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    // Where it may not, fewer files are enough for most trees.
    let _refused = setrlimit(Resource::Nofile, all);
}
