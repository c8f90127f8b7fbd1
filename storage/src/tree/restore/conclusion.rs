//! The end of a clone: what it kept for itself goes, and the root gets its metadata.
//!
//! By then the tree is proven and durable. With its journal, which lies within it, goes what a later run
//! would go on from. Whoever wants to be able to end it later keeps [`Restore::witness`] and
//! [`Restore::root_metadata`] elsewhere first: a run that finds [`TreeTarget::bears_out`] what they say
//! may do it as well, from whatever point it came to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use volferry_protocol::digest::Digest;
use volferry_protocol::tree::path::show;
use volferry_protocol::tree::record::Metadata;

use super::super::TreeError;
use super::super::metadata::{self, Handle, Terms};
use super::super::witness::witness;
use super::below::remove;
use super::{Restore, TreeTarget, lock};
use crate::error::{Operation, StorageError};

impl Restore {
    /// Shows whether a directory is the one that was made here.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn witness(&self) -> Result<Digest, TreeError> {
        look_at(&self.root, &self.path)
    }

    /// What the root gets at the very end.
    #[must_use]
    pub fn root_metadata(&self) -> Option<Metadata> {
        lock(&self.root_metadata).clone()
    }

    /// The tree is proven: removes what the clone kept for itself, gives the root its metadata, and
    /// makes that durable.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn conclude(&self) -> Result<(), TreeError> {
        let root_metadata = self.root_metadata();
        let end = End {
            root: &self.root,
            path: &self.path,
            staging_name: &self.staging_name,
        };
        end.conclude(root_metadata.as_ref(), self.terms.selinux)
    }
}

impl TreeTarget {
    /// Whether the directory is the one that showed this `witness` when it was proven.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn bears_out(&self, witness: Digest) -> Result<bool, TreeError> {
        Ok(look_at(&self.root, &self.path)? == witness)
    }

    /// Does what [`Restore::conclude`] of an earlier run does, or did in part.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn conclude(
        &mut self,
        root_metadata: Option<&Metadata>,
        selinux: bool,
    ) -> Result<(), TreeError> {
        let end = End {
            root: &self.root,
            path: &self.path,
            staging_name: &self.staging_name(),
        };
        end.conclude(root_metadata, selinux)?;
        // With the journal went what there was to go on from.
        self.goes_on = false;
        self.is_blank = false;
        self.was_alone = None;
        Ok(())
    }
}

fn look_at(root: &OwnedFd, path: &Path) -> Result<Digest, TreeError> {
    Ok(witness(root).map_err(StorageError::io(Operation::List, path))?)
}

/// What is to be ended.
struct End<'a> {
    root: &'a OwnedFd,
    path: &'a Path,
    staging_name: &'a [u8],
}

impl End<'_> {
    fn conclude(&self, root_metadata: Option<&Metadata>, selinux: bool) -> Result<(), TreeError> {
        // What it was given may not let its owner in.
        metadata::open_up(self.root.as_fd());
        let staging = self.path.join(show(self.staging_name));
        remove(self.root, self.staging_name)
            .map_err(StorageError::io(Operation::Remove, &staging))?;
        if let Some(wanted) = root_metadata {
            let terms = Terms {
                selinux,
                // The root was there in any case.
                is_dirty: true,
                is_symlink: false,
            };
            // What is lost was counted when it was given this for the first time.
            metadata::adorn(Handle::Open(self.root.as_fd()), wanted, terms, |_lost| {})
                .map_err(StorageError::io(Operation::Adorn, self.path))?;
        }
        rustix::fs::syncfs(self.root)
            .map_err(|errno| StorageError::io(Operation::Flush, self.path)(errno.into()))?;
        Ok(())
    }
}
