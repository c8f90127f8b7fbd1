//! What can go wrong with a tree.

use std::path::PathBuf;

use volferry_protocol::tree::record::RecordError;

use super::walk::Unasked;
use crate::error::StorageError;

/// Why a tree could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The kernel refused an operation on an entry, or on the root.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The filesystem is full, or a quota is used up.
    #[error("no room for {} ({needed} bytes): {}", path.display(), room(*available, source))]
    NoSpace {
        /// The entry.
        path: PathBuf,
        /// Bytes of its content.
        needed: u64,
        /// Bytes that the filesystem has left for this agent.
        available: u64,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The target directory holds something.
    #[error("{} is not empty: it holds {name:?}", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of its entries.
        name: String,
    },
    /// A tree that is read back as a whole is to be merged into another.
    #[error("{} holds other entries too, and what is merged can't be read back as a whole", path.display())]
    Merged {
        /// The directory.
        path: PathBuf,
    },
    /// The source holds what a clone keeps for itself.
    #[error("{} holds {name:?}, which a clone left that did not end", path.display())]
    Leftover {
        /// The source directory.
        path: PathBuf,
        /// The entry.
        name: String,
    },
    /// Another agent works on the directory.
    #[error("{} is in use: another agent writes to it", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Names that were made are not there.
    #[error("{}: {count} of the names that were made are not there", path.display())]
    NamesMissing {
        /// The root of the tree.
        path: PathBuf,
        /// How many.
        count: u64,
    },
    /// The peer sent a record that is none.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The peer sent what must not be applied.
    #[error("{path}: {refusal}")]
    Refused {
        /// The entry.
        path: String,
        /// Why.
        refusal: Refusal,
    },
    /// The target said what can't be.
    #[error(transparent)]
    Unasked(#[from] Unasked),
    /// What arrived is not what the source read.
    #[error("{path} arrived with other bytes than the source read; it was not put in place")]
    Corrupt {
        /// The entry, or which piece of which file.
        path: String,
    },
}

/// What there is of room. Of a quota the filesystem tells no more than that it is used up.
fn room(available: u64, source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::QuotaExceeded => {
            format!("a quota is used up, of {available} bytes that the filesystem has left")
        }
        _ => format!("the filesystem has {available} bytes left"),
    }
}

/// Why a record of the peer must not be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A component of the path is a symbolic link, a file, or another filesystem.
    #[error("a component of this path is no directory of the target's tree")]
    NotADirectory,
    /// The name was sent twice, or the filesystem takes two names for one.
    #[error("this name came twice, or the target's filesystem takes two names for one")]
    Twice,
    /// The name belongs to the clone itself, or to the filesystem.
    #[error("this name never travels")]
    Reserved,
    /// A record came before any directory was entered.
    #[error("a record came before its directory")]
    NotEntered,
    /// A link to an entry that never came.
    #[error("a link to an entry that never came")]
    UnknownGroup,
    /// Two entries bear one number.
    #[error("two entries bear the same number")]
    GroupTwice,
    /// The number of an inode with several names is larger than any filesystem has inodes.
    #[error("a number of an inode beyond all that a filesystem holds")]
    TooManyGroups,
    /// A piece came twice.
    #[error("a piece came twice")]
    PieceTwice,
    /// More files under way than an honest source has.
    #[error("too many large files are under way")]
    TooManyFiles,
    /// Pieces in an order that no honest source has.
    #[error("its pieces came too much out of order")]
    TooScattered,
    /// More files in a pack of offers than one answer is for.
    #[error("more files are offered than one answer is for")]
    TooManyOffers,
    /// A file that is to be kept, and is not what the source was told of.
    #[error("it is to be kept, and the target does not hold what it said")]
    NotHeld,
    /// A file whose pieces, or whose record, never came.
    #[error("a large file never came to its end")]
    Incomplete,
}

impl TreeError {
    /// What the user can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Storage(error) => error.remedy(),
            Self::NoSpace { .. } => Some(
                "free space, raise the quota, or choose a larger target; then clone again with \
                 --overwrite",
            ),
            Self::NotEmpty { .. } => Some("choose an empty directory, or allow overwriting"),
            Self::Merged { .. } => Some("add --delete-extra, or leave out --verify readback"),
            Self::Leftover { .. } => Some("remove it, or clone what it was a clone of"),
            Self::NamesMissing { .. } => Some(
                "its filesystem takes two names for one (case, Unicode): choose one that doesn't; \
                 or somebody removed them: end that, and clone again",
            ),
            Self::InUse { .. } => Some("wait for it, or choose another target"),
            Self::Corrupt { .. } => {
                Some("memory or a processor of one of the two nodes is failing; clone again")
            }
            Self::Record(_) | Self::Refused { .. } | Self::Unasked(_) => None,
        }
    }
}
